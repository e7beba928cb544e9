/* What the memory costs: folds, replaces, snapshots, and what they write. The figures in docs/MEMORY.md are its output.
 * memory_bench FOLDER [KEYS] [DIM] [ROWS] [PIECES]: makes and removes FOLDER/rows-64 and so on, one for each size of a
 * block (ROWS 0: all); bf16 keys, PIECES word pieces of two bytes a text. On a disk the time of a commit is that of two
 * flushes; name a folder in /dev/shm to see the work alone. Bytes written are those handed to write(2), from
 * /proc/self/io. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/memory.h"

enum { LABELS = 600, LABELS_EACH = 4, BATCH = 256, SINGLE = 500, GROWTH = 3000, PIECES = 20, VOCABULARY = 30522 };

struct bench {
    struct memory_options options;
    struct memory *m;
    char path[512], file[600];
    size_t dim, keys;
    float *vector;
    int32_t *pieces;
    size_t pieces_count;
    uint64_t random;
};

static void check(int rc, const struct error *e)
{
    if (rc) {
        fprintf(stderr, "memory_bench: %s\n", e->text);
        exit(1);
    }
}

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static uint64_t written(void)
{
    unsigned long long bytes = 0;
    FILE *io = fopen("/proc/self/io", "r");
    char line[128];
    while (io && fgets(line, sizeof line, io)) {
        sscanf(line, "wchar: %llu", &bytes);
    }
    if (io) {
        fclose(io);
    }
    return bytes;
}

static uint64_t file_bytes(const struct bench *b)
{
    struct stat s;
    return stat(b->file, &s) ? 0 : (uint64_t)s.st_size;
}

/* Folds key number `key` with four of the labels. */
static void fold(struct bench *b, struct transaction *t, size_t key)
{
    struct error e = {0};
    char id[32], names[LABELS_EACH][32];
    struct slice labels[LABELS_EACH];
    struct memory_source source = {slice_of("cluster"), slice_of("instances"), 0, (int64_t)key, 1};
    unsigned first = (unsigned)(random_next(&b->random) % (LABELS - LABELS_EACH));
    for (unsigned i = 0; i < LABELS_EACH; i++) {
        snprintf(names[i], sizeof names[i], "label-%05u", first + i);
        labels[i] = slice_of(names[i]);
    }
    for (size_t i = 0; i < b->dim; i++) {
        b->vector[i] = (float)(random_next(&b->random) >> 40) / (float)(1 << 24) - 0.5f;
    }
    for (size_t i = 0; i < b->pieces_count; i++) {
        b->pieces[i] = (int32_t)(random_next(&b->random) % VOCABULARY);
    }
    struct memory_key encoded = {b->vector, b->pieces, b->pieces_count};
    snprintf(id, sizeof id, "package-%zu", key);
    check(transaction_fold(t, slice_of(id), slice_of("a title of some twenty word pieces, as short texts have"), labels,
                           LABELS_EACH, &encoded, &source, NULL, &e),
          &e);
}

static struct transaction *begin(struct bench *b)
{
    struct transaction *t;
    struct error e = {0};
    check(memory_begin(b->m, &t, &e), &e);
    return t;
}

static void commit(struct transaction *t, size_t next)
{
    struct error e = {0};
    struct read_position read = {.next = (int64_t)next};
    check(transaction_offset(t, slice_of("cluster"), slice_of("instances"), 0, &read, &e), &e);
    check(transaction_commit(t, &e), &e);
}

/* `times` commits of `size` records each: new keys from `first` on, or replaces of random ones. */
static void commits(struct bench *b, const char *what, size_t times, size_t size, bool replace, size_t first)
{
    uint64_t start = clock_us(), bytes = written();
    for (size_t i = 0; i < times; i++) {
        struct transaction *t = begin(b);
        for (size_t k = 0; k < size; k++) {
            fold(b, t, replace ? (size_t)(random_next(&b->random) % b->keys) : first + i * size + k);
        }
        commit(t, first + (i + 1) * size);
    }
    double us = (double)(clock_us() - start);
    printf("  %-34s %9.1f us a commit  %8.2f us a record  %9.1f KiB a commit\n", what, us / (double)times,
           us / (double)(times * size), (double)(written() - bytes) / 1024.0 / (double)times);
}

static double snapshot_us(struct bench *b)
{
    struct error e = {0};
    struct snapshot *s;
    uint64_t start = clock_us();
    check(memory_snapshot(b->m, &s, &e), &e);
    double us = (double)(clock_us() - start);
    snapshot_release(s);
    return us;
}

static void snapshots(struct bench *b)
{
    enum { TIMES = 200 };
    struct error e = {0};
    double same = 0, after = 0, beside = 0;
    for (int i = 0; i < 10000; i++) {
        same += snapshot_us(b) / 10000;
    }
    for (int i = 0; i < 2 * TIMES; i++) {
        struct snapshot *held = NULL;
        if (i % 2) {
            check(memory_snapshot(b->m, &held, &e), &e);
        }
        struct transaction *t = begin(b);
        fold(b, t, (size_t)(random_next(&b->random) % b->keys));
        commit(t, b->keys);
        *(i % 2 ? &beside : &after) += snapshot_us(b) / TIMES;
        snapshot_release(held);
    }
    printf("  snapshot: unchanged %.2f us, after a one-row commit %.1f us, the same beside a held one %.1f us\n", same,
           after, beside);
}

struct renewing {
    struct bench *b;
    atomic_bool done;
};

static void *renew(void *context)
{
    struct renewing *r = context;
    struct error e = {0};
    while (!atomic_load(&r->done)) {
        struct snapshot *s;
        check(memory_snapshot(r->b->m, &s, &e), &e);
        clock_sleep_ms(20);
        snapshot_release(s);
    }
    return NULL;
}

static void growth(struct bench *b)
{
    struct renewing r = {.b = b};
    pthread_t thread;
    uint64_t before = file_bytes(b);
    if (pthread_create(&thread, NULL, renew, &r)) {
        exit(1);
    }
    commits(b, "one-row folds beside a reader", GROWTH, 1, false, b->keys + 10 * SINGLE);
    atomic_store(&r.done, true);
    pthread_join(thread, NULL);
    printf("  the file grew by %.2f MiB in these %d folds\n", (double)(file_bytes(b) - before) / 1048576.0, GROWTH);
}

static void reopen(struct bench *b, enum memory_mode mode)
{
    struct error e = {0};
    if (b->m) {
        memory_close(b->m);
    }
    check(memory_open(&b->m, mode, &b->options, &e), &e);
}

static void run(struct bench *b, const char *folder, uint32_t rows)
{
    snprintf(b->path, sizeof b->path, "%s/rows-%u", folder, rows);
    snprintf(b->file, sizeof b->file, "%s/data.mdb", b->path);
    b->options = (struct memory_options){.path = b->path,
                                         .dtype = DTYPE_BF16,
                                         .dim = b->dim,
                                         .fingerprint = "00000000000000000000000000000000",
                                         .model_name = "bench",
                                         .store_text = true,
                                         .vocabulary = VOCABULARY,
                                         .block_rows = rows};
    printf("%u rows a block\n", rows);
    reopen(b, MEMORY_WRITE);
    commits(b, "folds, 256 a commit", (b->keys + BATCH - 1) / BATCH, BATCH, false, 0);
    printf("  file: %.1f MiB for %zu keys\n", (double)file_bytes(b) / 1048576.0, b->keys);
    uint64_t before = file_bytes(b);
    commits(b, "random replaces, 256 a commit", 20, BATCH, true, b->keys);
    printf("  the file grew by %.1f MiB in these\n", (double)(file_bytes(b) - before) / 1048576.0);
    commits(b, "one-row folds", SINGLE, 1, false, b->keys + BATCH);
    commits(b, "one-row random replaces", SINGLE, 1, true, b->keys + BATCH);
    growth(b);
    reopen(b, MEMORY_WRITE);
    printf("  snapshot: the first of a process %.2f ms (every checksum)\n", snapshot_us(b) / 1000.0);
    snapshots(b);
    memory_close(b->m);
    b->m = NULL;
    static const char *const files[] = {"data.mdb", "lock.mdb", "writer.lock"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char file[600];
        snprintf(file, sizeof file, "%s/%s", b->path, files[i]);
        unlink(file);
    }
    rmdir(b->path);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: memory_bench FOLDER [KEYS] [DIM] [ROWS] [PIECES]\n");
        return 2;
    }
    struct bench b = {.keys = argc > 2 ? strtoul(argv[2], NULL, 10) : 100000,
                      .dim = argc > 3 ? strtoul(argv[3], NULL, 10) : 384,
                      .pieces_count = argc > 5 ? strtoul(argv[5], NULL, 10) : PIECES};
    uint32_t only = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 0;
    b.pieces = mem_zero(b.pieces_count, sizeof *b.pieces);
    b.vector = mem_zero(b.dim, sizeof *b.vector);
    printf("%zu keys of %zu bf16 and %zu word pieces, %d labels, %d a key\n", b.keys, b.dim, b.pieces_count, LABELS,
           LABELS_EACH);
    for (uint32_t rows = 64; rows <= 256; rows *= 2) {
        if (only == 0 || only == rows) {
            run(&b, argv[1], rows);
        }
    }
    free(b.pieces);
    free(b.vector);
    return 0;
}
