/* What the lexical score costs (engine/lexical.h), on a real memory. The figures in docs/PERFORMANCE.md are its output.
 * lexical_bench FOLDER [KEYS] [PIECES] [VOCABULARY]: makes FOLDER/lexical and removes it, about 200 bytes a key at 20
 * pieces; name a folder in /dev/shm. Pieces are drawn by Zipf's law, as words are, in texts of PIECES / 2 to
 * PIECES * 3 / 2. One thread; CPU time, so that what else the machine does falls out for the most part. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/lexical.h"

enum { DIM = 8, BATCH = 4096, TEXTS = 200, CANDIDATES = 1000, FOLDS = 20 };

struct bench {
    struct memory *m;
    size_t keys, pieces_count;
    double *harmonic; /* [vocabulary]: Zipf's cumulated weights */
    size_t vocabulary;
    int32_t *pieces; /* [2 * pieces_count]: the text at hand */
    uint64_t random;
};

static void check(int rc, const struct error *e)
{
    if (rc) {
        fprintf(stderr, "lexical_bench: %s\n", e->text);
        exit(1);
    }
}

static uint64_t cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static double unit(struct bench *b)
{
    return (double)(random_next(&b->random) >> 11) * 0x1p-53;
}

/* A text's pieces into b->pieces; how many. */
static size_t text_draw(struct bench *b)
{
    size_t count = b->pieces_count / 2 + (size_t)(random_next(&b->random) % (b->pieces_count + 1));
    for (size_t i = 0; i < count; i++) {
        double want = unit(b) * b->harmonic[b->vocabulary - 1];
        size_t low = 0, high = b->vocabulary - 1;
        while (low < high) {
            size_t middle = (low + high) / 2;
            if (b->harmonic[middle] < want) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        b->pieces[i] = (int32_t)low;
    }
    return count;
}

static void fold(struct bench *b, struct transaction *t, size_t key)
{
    struct error e = {0};
    static const float vector[DIM] = {1};
    char id[24];
    struct slice label = slice_of("l");
    struct memory_source source = {0};
    size_t count = text_draw(b);
    struct memory_key encoded = {vector, b->pieces, count};
    snprintf(id, sizeof id, "%zu", key);
    check(transaction_fold(t, slice_of(id), slice_of(""), &label, 1, &encoded, &source, NULL, &e), &e);
}

static void folds(struct bench *b, size_t first, size_t count)
{
    struct error e = {0};
    struct transaction *t;
    check(memory_begin(b->m, &t, &e), &e);
    for (size_t i = 0; i < count; i++) {
        fold(b, t, first + i);
    }
    check(transaction_commit(t, &e), &e);
}

static struct snapshot *snapshot_of(struct bench *b)
{
    struct error e = {0};
    struct snapshot *s;
    check(memory_snapshot(b->m, &s, &e), &e);
    return s;
}

static double sync_us(struct bench *b, struct lexical *x)
{
    struct snapshot *s = snapshot_of(b);
    uint64_t start = cpu_us();
    lexical_sync(x, s);
    double us = (double)(cpu_us() - start);
    snapshot_release(s);
    return us;
}

static size_t resident(void)
{
    size_t total = 0, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%zu %zu", &total, &pages) != 2) {
        pages = 0;
    }
    if (f) {
        fclose(f);
    }
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* Microseconds a text: TEXTS texts, each beside CANDIDATES random keys. `same`: all texts beside the same ones. */
static double score_us(struct bench *b, struct lexical *x, struct lexical_query *q, bool same, uint64_t seed)
{
    static uint64_t slots[TEXTS][CANDIDATES];
    static float cosines[CANDIDATES];
    uint64_t drawn = seed, spent = 0;
    for (size_t i = 0; i < TEXTS; i++) {
        for (size_t k = 0; k < CANDIDATES; k++) {
            slots[i][k] = same && i ? slots[0][k] : random_next(&drawn) % b->keys;
        }
    }
    for (size_t i = 0; i < TEXTS; i++) {
        size_t count = text_draw(b);
        uint64_t start = cpu_us();
        lexical_query_set(q, x, b->pieces, count);
        lexical_scores(q, x, slots[i], CANDIDATES, (float *[LEXICAL_FORMS]){[LEXICAL_COSINE] = cosines});
        spent += cpu_us() - start;
    }
    return (double)spent / TEXTS;
}

static void run(struct bench *b)
{
    size_t before = resident();
    struct lexical *x = lexical_open();
    struct lexical_query *q = lexical_query_open();
    printf("  counted at open: %.2f s\n", sync_us(b, x) / 1e6);
    printf("  resident memory: %.0f MiB\n", (double)(resident() - before) / 1048576.0);
    double follow = 0;
    for (size_t i = 0; i < FOLDS; i++) {
        folds(b, b->keys + i, 1);
        follow += sync_us(b, x) / FOLDS;
    }
    printf("  after a fold of one key: %.0f us\n", follow);
    double first = score_us(b, x, q, false, 1), again = score_us(b, x, q, false, 1), near = 0;
    folds(b, b->keys + FOLDS, 1); /* every norm is another now */
    sync_us(b, x);
    near = score_us(b, x, q, true, 2);
    printf("  a text beside %d keys: norms not known %.0f us, known %.0f us; keys in the cache, known %.0f us\n",
           CANDIDATES, first, again, near);
    lexical_query_close(q);
    lexical_close(x);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: lexical_bench FOLDER [KEYS] [PIECES] [VOCABULARY]\n");
        return 2;
    }
    struct bench b = {.keys = argc > 2 ? strtoul(argv[2], NULL, 10) : 1000000,
                      .pieces_count = argc > 3 ? strtoul(argv[3], NULL, 10) : 20,
                      .vocabulary = argc > 4 ? strtoul(argv[4], NULL, 10) : 30522};
    struct error e = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/lexical", argv[1]);
    struct memory_options options = {.path = path,
                                     .dtype = DTYPE_BF16,
                                     .dim = DIM,
                                     .fingerprint = "00000000000000000000000000000000",
                                     .model_name = "bench",
                                     .vocabulary = b.vocabulary};
    b.pieces = mem_zero(2 * b.pieces_count, sizeof *b.pieces);
    b.harmonic = mem_zero(b.vocabulary, sizeof *b.harmonic);
    double sum = 0;
    for (size_t i = 0; i < b.vocabulary; i++) {
        b.harmonic[i] = sum += 1 / (double)(i + 1);
    }
    check(memory_open(&b.m, MEMORY_WRITE, &options, &e), &e);
    for (size_t first = 0; first < b.keys; first += BATCH) {
        folds(&b, first, b.keys - first < BATCH ? b.keys - first : BATCH);
    }
    printf("%zu keys of about %zu word pieces, of %zu by Zipf's law\n", b.keys, b.pieces_count, b.vocabulary);
    run(&b);
    memory_close(b.m);
    static const char *const files[] = {"data.mdb", "lock.mdb", "writer.lock"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char file[600];
        snprintf(file, sizeof file, "%s/%s", path, files[i]);
        unlink(file);
    }
    rmdir(path);
    free(b.pieces);
    free(b.harmonic);
    return 0;
}
