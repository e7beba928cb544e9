/* Several processes that share the keys: here ranks are threads of one process, each with a backend of its own on
 * emulated devices, and a memory that has the same keys in other blocks and slots. Hits are compared with brute force
 * by their names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buffer.h"
#include "gpu/backend.h"
#include "tests/backend/beside.h"

enum {
    RANKS = 3,
    DIM = 8,
    KEYS = 40000,
    BLOCKS = KEYS / 20,
    SLOTS = 1 << 18,
    SOME_KEYS = 900,
    ROWS_MAX = 200,
    N = 5,
    ROUNDS = 4
};

/* ---- the keys that all have ---- */

static struct key {
    float vector[DIM];
    uint64_t tie;
    enum key_kind kind;
    bool gone; /* for some of the tests */
} keys[KEYS];

static size_t keys_count; /* that the test uses */
static uint64_t seed;

static uint32_t random_below(uint32_t n)
{
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)((seed >> 33) % n);
}

/* equal: all score the same, so that ties decide, and each rank has more than a search can keep in mind. */
static void keys_make(bool equal)
{
    keys_count = equal ? KEYS : SOME_KEYS;
    for (size_t i = 0; i < keys_count; i++) {
        for (size_t j = 0; j < DIM; j++) {
            keys[i].vector[j] = equal ? 1 : (float)random_below(5) - 2;
        }
        keys[i].tie = (uint64_t)random_below(1 << 30) << 30 | random_below(1 << 30);
        keys[i].kind = random_below(3) ? KEY_INSTANCE : KEY_LABEL;
        keys[i].gone = false;
    }
}

/* ---- a rank's own memory of them ---- */

struct memory {
    struct keys_block blocks[BLOCKS];
    float vectors[BLOCKS][ROWS_MAX / 8][DIM] __attribute__((aligned(64)));
    uint8_t candidates[BLOCKS][ROWS_MAX / 8];
    uint64_t ties[BLOCKS][ROWS_MAX / 8];
    uint16_t of_slot[SLOTS]; /* which key is in a slot; KEYS: none */
    struct keys_view view;
};

/* Blocks of a few rows of one kind, in the rank's own order. */
static void memory_fill(struct memory *m, size_t rank, uint64_t version)
{
    static uint16_t order[KEYS]; /* the main thread's, and rank 1's of one test */
    for (size_t i = 0; i < keys_count; i++) {
        const size_t j = random_below((uint32_t)i + 1);
        order[i] = order[j];
        order[j] = (uint16_t)i;
    }
    m->view = (struct keys_view){m->blocks, 0, DIM, DTYPE_F32, version};
    for (size_t i = 0; i < SLOTS; i++) {
        m->of_slot[i] = KEYS;
    }
    for (int kind = KEY_INSTANCE; kind <= KEY_LABEL; kind++) {
        struct keys_block *b = NULL;
        for (size_t i = 0; i < keys_count; i++) {
            const struct key *key = &keys[order[i]];
            if (key->gone || (int)key->kind != kind) {
                continue;
            }
            if (!b || b->rows == ROWS_MAX / 8) {
                const size_t n = m->view.count++;
                b = &m->blocks[n];
                *b = (struct keys_block){m->vectors[n], m->candidates[n], m->ties[n], 100 * rank + 64 * n, version, 0,
                                         (uint32_t)kind};
            }
            const size_t n = (size_t)(b - m->blocks), row = b->rows++;
            memcpy(m->vectors[n][row], key->vector, sizeof key->vector);
            m->candidates[n][row] = 1;
            m->ties[n][row] = key->tie;
            m->of_slot[b->first_slot + row] = order[i];
        }
    }
}

/* ---- ranks ---- */

struct rank {
    size_t number;
    pthread_t thread;
    struct backend *backend;
    struct stream *stream;
    struct keys *keys;
    struct memory *memory;
    struct tensor queries; /* [N, DIM] */
    float values[N * DIM];
    char wrong[1100]; /* what went wrong, first */
};

static struct rank ranks[RANKS];
static pthread_barrier_t all;

static void wrong(struct rank *r, const char *what)
{
    if (!*r->wrong) {
        snprintf(r->wrong, sizeof r->wrong, "rank %zu: %s", r->number, what);
    }
}

static void port_free(char port[16])
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof a;
    const int s = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(s, (struct sockaddr *)&a, &bytes), 0);
    close(s);
    snprintf(port, 16, "%d", ntohs(a.sin_port));
}

static void group_say(const char *world)
{
    char port[16];
    port_free(port);
    setenv("EMULATED_DEVICES", "4", 1);
    setenv("MASTER_PORT", port, 1);
    setenv("WORLD_SIZE", world, 1);
}

static void backend_open(struct rank *r, size_t number)
{
    char path[PATH_MAX], text[16];
    struct error e = {0};
    const int device = (int)number;
    *r = (struct rank){.number = number};
    snprintf(text, sizeof text, "%zu", number);
    setenv("RANK", text, 1);
    const struct backend_options options = {.threads = 1, .devices = &device, .devices_count = 1};
    if (backend_plugin_open(&r->backend, beside(path, "libengram_cuda.so"), &options, &e)) {
        fail_msg("%s", e.text);
    }
    assert_int_equal(r->backend->ops->stream_open(r->backend, &r->stream, &e), 0);
    assert_int_equal(tensor_alloc(r->backend, &r->queries, DTYPE_F32, N, DIM, &e), 0);
    r->memory = mem_aligned(64, sizeof *r->memory);
}

static void backend_end(struct rank *r)
{
    tensor_release(r->backend, &r->queries);
    r->backend->ops->stream_close(r->stream);
    backend_close(r->backend);
    free(r->memory);
}

static int double_fall(const void *a, const void *b)
{
    const struct keys_hit *x = a, *y = b;
    if (x->score != y->score) {
        return x->score > y->score ? -1 : 1;
    }
    return x->tie < y->tie ? -1 : x->tie > y->tie;
}

/* By brute force, the key's number as slot. */
static size_t expected(const float *query, enum key_kind kinds, struct keys_hit *out)
{
    size_t count = 0;
    for (size_t i = 0; i < keys_count; i++) {
        float score = 0;
        for (size_t j = 0; j < DIM; j++) {
            score += query[j] * keys[i].vector[j];
        }
        if (!keys[i].gone && (keys[i].kind & kinds)) {
            out[count++] = (struct keys_hit){score, keys[i].kind, i, keys[i].tie};
        }
    }
    qsort(out, count, sizeof *out, double_fall);
    return count;
}

static void hits_check(struct rank *r, const float *query, enum key_kind kinds, size_t b, const struct keys_hit *hits,
                       uint32_t count)
{
    struct keys_hit *right = mem_alloc(KEYS * sizeof *right);
    size_t n = expected(query, kinds, right);
    n = n < b ? n : b;
    if (count != n) {
        wrong(r, "not as many hits");
    }
    for (size_t i = 0; i < n && i < count; i++) {
        if (hits[i].score != right[i].score || hits[i].tie != right[i].tie || hits[i].kind != right[i].kind ||
            r->memory->of_slot[hits[i].slot] != right[i].slot) {
            wrong(r, "another hit");
        }
    }
    free(right);
}

static int search(struct rank *r, size_t b, enum key_kind kinds, struct keys_hit *hits, uint32_t *counts,
                  struct error *e)
{
    const struct backend_operations *ops = r->backend->ops;
    for (size_t i = 0; i < N * DIM; i++) {
        r->values[i] = i % DIM ? (float)((i * 7 + r->number) % 5) - 2 : (float)(i % 2 ? 1 : 2);
    }
    if (ops->upload(r->stream, r->queries.data, r->values, sizeof r->values, e)) {
        return -1;
    }
    ops->keys_scan(r->stream, r->keys, &r->memory->view, &r->queries, b, kinds, hits, counts);
    return ops->wait(r->stream, e);
}

static void search_check(struct rank *r, size_t b, enum key_kind kinds)
{
    struct keys_hit *hits = mem_alloc(N * b * sizeof *hits);
    uint32_t counts[N];
    struct error e = {0};
    if (search(r, b, kinds, hits, counts, &e)) {
        wrong(r, e.text);
    }
    for (size_t i = 0; i < N && !*r->wrong; i++) {
        hits_check(r, r->values + i * DIM, kinds, b, hits + i * b, counts[i]);
    }
    free(hits);
}

/* Takes what its memory has, without a query, and waits until all have. */
static void take_all(struct rank *r)
{
    const struct tensor none = {.dtype = DTYPE_F32, .columns = DIM};
    struct error e = {0};
    r->backend->ops->keys_scan(r->stream, r->keys, &r->memory->view, &none, 1, KEY_BOTH, NULL, NULL);
    if (r->backend->ops->wait(r->stream, &e)) {
        wrong(r, e.text);
    }
    pthread_barrier_wait(&all);
}

static bool keys_of(struct rank *r)
{
    struct error e = {0};
    if (r->backend->ops->keys_open(r->backend, DIM, DTYPE_F32, &r->keys, &e)) {
        wrong(r, e.text);
        r->keys = NULL;
    }
    return r->keys != NULL;
}

static void each(void *(*run)(void *))
{
    char number[8];
    snprintf(number, sizeof number, "%d", RANKS);
    group_say(number);
    pthread_barrier_init(&all, NULL, RANKS);
    for (size_t i = 0; i < RANKS; i++) {
        backend_open(&ranks[i], i);
        memory_fill(ranks[i].memory, i, 1);
    }
    for (size_t i = 0; i < RANKS; i++) {
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, run, &ranks[i]), 0);
    }
    for (size_t i = 0; i < RANKS; i++) {
        pthread_join(ranks[i].thread, NULL);
        backend_end(&ranks[i]);
    }
    pthread_barrier_destroy(&all);
    for (size_t i = 0; i < RANKS; i++) {
        if (*ranks[i].wrong) {
            fail_msg("%s", ranks[i].wrong);
        }
    }
}

/* ---- tests ---- */

/* Each rank searches as often as it likes, also not at all, and finds what one process alone would. */
static void *searches(void *context)
{
    struct rank *r = context;
    if (keys_of(r)) {
        take_all(r);
        for (size_t i = 0; i < ROUNDS * r->number; i++) {
            search_check(r, 1 + 13 * i, (enum key_kind)(1 + i % 3));
        }
        pthread_barrier_wait(&all); /* who closes is gone */
        r->backend->ops->keys_close(r->keys);
    }
    return NULL;
}

static void test_same_as_alone(void **state)
{
    (void)state;
    keys_make(false);
    each(searches);
}

static void test_equal_scores(void **state)
{
    (void)state;
    keys_make(true);
    each(searches);
}

/* A key that goes, and comes back, is gone and back for all once each has taken its view. */
static void *changes(void *context)
{
    struct rank *r = context;
    if (keys_of(r)) {
        for (uint64_t version = 1; version < 4; version++) {
            take_all(r);
            search_check(r, 50, KEY_BOTH);
            pthread_barrier_wait(&all);
            if (r->number == 0) {
                for (size_t i = 0; i < keys_count; i++) {
                    keys[i].gone = version == 1 && i % 3 == 0;
                }
                for (size_t i = 0; i < RANKS; i++) {
                    memory_fill(ranks[i].memory, i, version + 1);
                }
            }
            pthread_barrier_wait(&all);
        }
        r->backend->ops->keys_close(r->keys);
    }
    return NULL;
}

static void test_changes(void **state)
{
    (void)state;
    keys_make(false);
    each(changes);
}

/* A rank has forgotten keys that the others still find for it: it drops them. */
static void *lag(void *context)
{
    struct rank *r = context;
    if (keys_of(r)) {
        struct keys_hit hits[N * 20];
        uint32_t counts[N];
        struct error e = {0};
        take_all(r);
        if (r->number == 1) {
            for (size_t i = 0; i < keys_count; i++) {
                keys[i].gone = i % 2;
            }
            memory_fill(r->memory, 1, 2);
            if (search(r, 20, KEY_BOTH, hits, counts, &e)) {
                wrong(r, e.text);
            }
            for (size_t i = 0; i < N && !*r->wrong; i++) {
                if (counts[i] == 0) { /* of the 20 best some are left */
                    wrong(r, "no hit");
                }
                for (size_t j = 0; j < counts[i]; j++) {
                    const uint16_t key = r->memory->of_slot[hits[20 * i + j].slot];
                    if (key == KEYS || keys[key].gone || keys[key].tie != hits[20 * i + j].tie) {
                        wrong(r, "a hit that it has forgotten");
                    }
                }
            }
        }
        pthread_barrier_wait(&all);
        r->backend->ops->keys_close(r->keys);
    }
    return NULL;
}

static void test_lag(void **state)
{
    (void)state;
    keys_make(false);
    each(lag);
}

/* A rank goes: for the others the next search fails, with the one line. */
static void *leaves(void *context)
{
    struct rank *r = context;
    if (keys_of(r)) {
        struct keys_hit hits[N];
        uint32_t counts[N];
        struct error e = {0};
        char line[128];
        take_all(r);
        search_check(r, 10, KEY_BOTH);
        pthread_barrier_wait(&all);
        if (r->number == 1) {
            r->backend->ops->keys_close(r->keys);
        }
        pthread_barrier_wait(&all);
        if (r->number == 1) {
            return NULL;
        }
        snprintf(line, sizeof line, "rank 1 of %d, which has a part of the keys, is gone: start all ranks again",
                 RANKS);
        if (search(r, 1, KEY_BOTH, hits, counts, &e) == 0 || e.kind != ERROR_FATAL || strcmp(e.text, line) != 0) {
            wrong(r, *e.text ? e.text : "a search without rank 1");
        }
        if (search(r, 1, KEY_BOTH, hits, counts, &e) == 0) {
            wrong(r, "another search without rank 1");
        }
        r->backend->ops->keys_close(r->keys);
    }
    return NULL;
}

static void test_rank_gone(void **state)
{
    (void)state;
    keys_make(false);
    each(leaves);
}

/* ---- who may not take part ---- */

static void must_refuse(const char *rank, const char *world, const int *devices, size_t count, const char *line)
{
    char path[PATH_MAX];
    struct error e = {0};
    struct backend *b = NULL;
    if (rank) {
        setenv("RANK", rank, 1);
    }
    setenv("WORLD_SIZE", world, 1);
    const struct backend_options options = {.threads = 1, .devices = devices, .devices_count = count};
    assert_int_equal(backend_plugin_open(&b, beside(path, "libengram_cuda.so"), &options, &e), -1);
    assert_int_equal(e.kind, ERROR_FATAL);
    assert_int_equal(e.code, E_USAGE);
    assert_string_equal(e.text, line);
}

static void test_variables(void **state)
{
    (void)state;
    static const int two[] = {0, 1};
    setenv("EMULATED_DEVICES", "4", 1);
    must_refuse("3", "3", two, 1, "the environment variable RANK is '3': it must be from 0 to 2");
    must_refuse("-1", "3", two, 1, "the environment variable RANK is '-1': it must be from 0 to 2");
    must_refuse("0", "many", two, 1, "the environment variable WORLD_SIZE is 'many': it must be from 0 to 32");
    unsetenv("RANK");
    must_refuse(NULL, "3", two, 1,
                "the environment variable WORLD_SIZE is 3, and RANK is not set: it must be from 0 to 2");
    must_refuse("0", "3", two, 2,
                "devices names 2 GPUs and WORLD_SIZE is 3: where several processes share the keys, each has one GPU");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_variables), cmocka_unit_test(test_same_as_alone), cmocka_unit_test(test_equal_scores),
        cmocka_unit_test(test_changes),   cmocka_unit_test(test_lag),           cmocka_unit_test(test_rank_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
