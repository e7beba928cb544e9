/* The pool: whose piece is taken next, brief pieces inside long ones, help, errors, and shared work. One worker and a
 * piece that waits at a gate make the order certain: everything else is queued while it waits. */
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "base/pool.h"

/* A job whose pieces write its letter into the order of a run. */
struct lettered {
    struct job job; /* first */
    struct run *run;
    char letter;
    bool yields;
    bool fails;
};

struct run {
    struct pool *pool;
    pthread_mutex_t lock;
    char order[64];
    size_t count;
    size_t seats[64];
    atomic_bool gate; /* opened by the test */
    atomic_size_t at_gate, helped;
};

static struct run *run_open(size_t workers, size_t lanes)
{
    static struct run run;
    struct error e = {0};
    memset(&run, 0, sizeof run);
    pthread_mutex_init(&run.lock, NULL);
    assert_int_equal(pool_open(&run.pool, workers, lanes, &e), 0);
    return &run;
}

static void run_close(struct run *r)
{
    pool_close(r->pool);
    pthread_mutex_destroy(&r->lock);
}

static void write_letter(struct run *r, char letter, size_t seat)
{
    pthread_mutex_lock(&r->lock);
    r->order[r->count] = letter;
    r->seats[r->count++] = seat;
    pthread_mutex_unlock(&r->lock);
}

static int letter_run(struct job *job, size_t piece, size_t seat, struct error *e)
{
    struct lettered *l = (struct lettered *)job;
    bool yielded = false;
    (void)piece;
    write_letter(l->run, l->letter, seat);
    for (int step = 0; step < 3 && l->yields; step++) {
        pool_yield(l->run->pool, seat, &yielded);
    }
    return l->fails ? error_set(e, ERROR_RETRY, E_IO, "%c says no", l->letter) : 0;
}

/* Bounded, so that a gate that nobody opens fails a test and does not hang it. */
static void gate_wait(struct run *r)
{
    for (int ms = 0; ms < 10000 && !atomic_load(&r->gate); ms++) {
        clock_sleep_ms(1);
    }
}

static int gate_run(struct job *job, size_t piece, size_t seat, struct error *e)
{
    struct run *r = ((struct lettered *)job)->run;
    (void)piece, (void)seat, (void)e;
    atomic_fetch_add(&r->at_gate, 1);
    gate_wait(r);
    return 0;
}

static struct lettered letters(struct run *r, char letter, enum lane lane, size_t pieces)
{
    return (struct lettered){.job = {.run = letter_run, .pieces = pieces, .lane = lane}, .run = r, .letter = letter};
}

/* Holds `workers` workers until the gate opens. */
static void gate_begin(struct run *r, struct lettered *gate, size_t workers)
{
    *gate = letters(r, '-', LANE_BULK, workers);
    gate->job.run = gate_run;
    pool_begin(r->pool, &gate->job);
    while (atomic_load(&r->at_gate) < workers) {
        clock_sleep_ms(1);
    }
}

/* The order of everything queued behind the gate. */
static void order_check(bool fair, struct lettered *jobs, size_t n, const char *expected)
{
    struct run *r = run_open(1, 1);
    struct lettered gate;
    pool_fair(r->pool, fair);
    gate_begin(r, &gate, 1);
    for (size_t i = 0; i < n; i++) {
        jobs[i].run = r;
        pool_begin(r->pool, &jobs[i].job);
    }
    atomic_store(&r->gate, true);
    assert_int_equal(pool_end(r->pool, &gate.job, NULL), 0);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(pool_end(r->pool, &jobs[i].job, NULL), 0);
    }
    assert_string_equal(r->order, expected);
    run_close(r);
}

static void test_lanes_take_turns(void **state)
{
    (void)state;
    order_check(true, (struct lettered[]){letters(NULL, 't', LANE_BULK, 4), letters(NULL, 'L', LANE_PROMPT, 4)}, 2,
                "LtLtLtLt");
    order_check(true,
                (struct lettered[]){letters(NULL, 'L', LANE_PROMPT, 1), letters(NULL, 'M', LANE_PROMPT, 2),
                                    letters(NULL, 't', LANE_BULK, 1)},
                3, "LtMM");
    order_check(true, (struct lettered[]){letters(NULL, 't', LANE_BULK, 2), letters(NULL, 'u', LANE_BULK, 2)}, 2,
                "ttuu");
}

static void test_an_unfair_pool_lets_prompt_work_go_first(void **state)
{
    (void)state;
    order_check(false, (struct lettered[]){letters(NULL, 't', LANE_BULK, 2), letters(NULL, 'L', LANE_PROMPT, 3)}, 2,
                "LLLtt");
}

/* A brief piece runs where a long one yields, on another seat, and only once in each piece. */
static void test_a_brief_piece_is_let_in(void **state)
{
    (void)state;
    struct run *r = run_open(1, 1);
    struct lettered gate, text = letters(r, 't', LANE_BULK, 3), brief = letters(r, 'b', LANE_PROMPT, 3);
    gate_begin(r, &gate, 1);
    text.yields = true;
    brief.job.brief = true;
    pool_begin(r->pool, &brief.job);
    pool_begin(r->pool, &text.job);
    atomic_store(&r->gate, true);
    assert_int_equal(pool_end(r->pool, &text.job, NULL), 0);
    assert_int_equal(pool_end(r->pool, &brief.job, NULL), 0);
    assert_int_equal(pool_end(r->pool, &gate.job, NULL), 0);
    assert_string_equal(r->order, "btbtbt"); /* its own turn first, then inside the first two texts */
    for (size_t i = 0; i < 6; i++) {
        assert_true(r->seats[i] < pool_seats(r->pool));
        assert_int_equal(r->seats[i] != 0, i == 2 || i == 4);
    }
    run_close(r);
}

static void test_what_is_not_brief_waits(void **state)
{
    (void)state;
    struct run *r = run_open(1, 1);
    struct lettered gate, text = letters(r, 't', LANE_BULK, 2), bulk = letters(r, 'L', LANE_PROMPT, 2);
    gate_begin(r, &gate, 1);
    text.yields = true;
    pool_begin(r->pool, &bulk.job);
    pool_begin(r->pool, &text.job);
    atomic_store(&r->gate, true);
    assert_int_equal(pool_end(r->pool, &text.job, NULL), 0);
    assert_int_equal(pool_end(r->pool, &bulk.job, NULL), 0);
    assert_int_equal(pool_end(r->pool, &gate.job, NULL), 0);
    assert_string_equal(r->order, "LtLt");
    assert_int_equal(r->seats[2], 0);
    run_close(r);
}

/* The first error is the job's, what has not begun is left out, and other jobs go on. */
static void test_an_error_ends_a_job(void **state)
{
    (void)state;
    struct run *r = run_open(1, 1);
    struct lettered bad = letters(r, 'x', LANE_BULK, 5), good = letters(r, 'g', LANE_BULK, 2);
    struct error e = {0};
    bad.fails = true;
    pool_begin(r->pool, &bad.job);
    pool_begin(r->pool, &good.job);
    assert_int_equal(pool_end(r->pool, &bad.job, &e), -1);
    assert_int_equal(e.kind, ERROR_RETRY);
    assert_int_equal(e.code, E_IO);
    assert_string_equal(e.text, "x says no");
    assert_int_equal(pool_end(r->pool, &good.job, &e), 0);
    assert_string_equal(r->order, "xgg");
    run_close(r);
}

/* Only the first `lanes` workers take a lane's jobs, and jobs without pieces are done at once. */
static void test_workers_without_a_lane(void **state)
{
    (void)state;
    struct run *r = run_open(3, 1);
    struct lettered many = letters(r, 't', LANE_BULK, 20), none = letters(r, 'n', LANE_BULK, 0);
    pool_begin(r->pool, &many.job);
    pool_begin(r->pool, &none.job);
    assert_int_equal(pool_end(r->pool, &none.job, NULL), 0);
    assert_int_equal(pool_end(r->pool, &many.job, NULL), 0);
    assert_int_equal(r->count, 20);
    for (size_t i = 0; i < 20; i++) {
        assert_int_equal(r->seats[i], 0);
    }
    run_close(r);
}

static void help_run(struct job *job, size_t seat)
{
    struct run *r = ((struct lettered *)job)->run;
    (void)seat;
    atomic_fetch_add(&r->helped, 1);
    atomic_store(&r->gate, true);
}

/* A worker with nothing to do helps, and pool_end waits for it; also where most of those that wait may not. */
static void test_help(void **state)
{
    (void)state;
    struct run *r = run_open(12, 2);
    for (size_t round = 1; round <= 200; round++) {
        struct lettered first = letters(r, '-', LANE_BULK, 1);
        first.job.run = gate_run;
        first.job.help = help_run;
        atomic_store(&r->gate, false);
        pool_begin(r->pool, &first.job);
        assert_int_equal(pool_end(r->pool, &first.job, NULL), 0); /* nobody but the helper opens the gate */
        assert_true(atomic_load(&r->helped) >= round);
    }
    run_close(r);
}

static void third_help_run(struct job *job, size_t seat)
{
    struct run *r = ((struct lettered *)job)->run;
    (void)seat;
    if (atomic_fetch_add(&r->helped, 1) == 2) {
        atomic_store(&r->gate, true);
    }
    while (!atomic_load(&r->gate)) {
        clock_sleep_ms(1);
    }
}

/* Up to three do. */
static void test_several_help(void **state)
{
    (void)state;
    struct run *r = run_open(6, 6);
    struct lettered first = letters(r, '-', LANE_BULK, 1);
    first.job.run = gate_run;
    first.job.help = third_help_run;
    pool_begin(r->pool, &first.job);
    assert_int_equal(pool_end(r->pool, &first.job, NULL), 0);
    assert_true(atomic_load(&r->helped) >= 3);
    run_close(r);
}

enum { PIECES = 1000, MANY_PIECES = 100 * 1000 * 1000 };

struct share {
    atomic_size_t of[PIECES], in_hand[8], ran;
    size_t fails_on;
    size_t hands;
};

static int share_run(void *context, size_t piece, size_t hand, struct error *e)
{
    struct share *s = context;
    assert_true(hand < s->hands);
    assert_int_equal(atomic_fetch_add(&s->in_hand[hand], 1), 0);
    atomic_fetch_add(&s->of[piece % PIECES], 1);
    atomic_fetch_add(&s->ran, 1);
    atomic_fetch_sub(&s->in_hand[hand], 1);
    return piece == s->fails_on ? error_set(e, ERROR_RETRY, E_IO, "piece %zu says no", piece) : 0;
}

/* Each piece once, no two at once with the same hand; it goes on while every worker is busy; the first error ends it.
 */
static void test_share(void **state)
{
    (void)state;
    struct run *r = run_open(2, 2);
    struct lettered gate;
    struct error e = {0};
    static struct share s;
    memset(&s, 0, sizeof s);
    s.hands = pool_hands(r->pool);
    s.fails_on = SIZE_MAX;
    assert_true(s.hands <= 8);
    assert_int_equal(pool_share(r->pool, PIECES, share_run, &s, &e), 0);
    assert_int_equal(pool_share(r->pool, 0, share_run, &s, &e), 0);
    for (size_t i = 0; i < PIECES; i++) {
        assert_int_equal(atomic_load(&s.of[i]), 1);
    }
    gate_begin(r, &gate, 2);
    assert_int_equal(pool_share(r->pool, PIECES, share_run, &s, &e), 0);
    atomic_store(&r->gate, true);
    assert_int_equal(pool_end(r->pool, &gate.job, NULL), 0);
    assert_int_equal(atomic_load(&s.ran), 2 * PIECES);
    s.fails_on = 400; /* a worker that is held up before it says so leaves many pieces to the others, but not all */
    assert_int_equal(pool_share(r->pool, MANY_PIECES, share_run, &s, &e), -1);
    assert_string_equal(e.text, "piece 400 says no");
    assert_true(atomic_load(&s.ran) < MANY_PIECES);
    run_close(r);
}

/* Shared work whose first two pieces wait until the gate opens, the others until a lane's piece has run. */
struct sharing {
    struct run *run;
    size_t pieces;
    atomic_size_t begun, late;
    pthread_t thread;
};

static int sharing_run(void *context, size_t piece, size_t hand, struct error *e)
{
    struct sharing *s = context;
    (void)hand, (void)e;
    atomic_fetch_add(&s->begun, 1);
    if (piece < 2) {
        gate_wait(s->run);
        return 0;
    }
    for (int ms = 0; ms < 2000 && atomic_load(&s->run->helped) == 0; ms++) {
        clock_sleep_ms(1);
    }
    atomic_fetch_add(&s->late, atomic_load(&s->run->helped) == 0);
    return 0;
}

static void *sharing_main(void *context)
{
    struct sharing *s = context;
    assert_int_equal(pool_share(s->run->pool, s->pieces, sharing_run, s, NULL), 0);
    return NULL;
}

/* Returns when two threads are in it. */
static void sharing_begin(struct sharing *s, struct run *r, size_t pieces)
{
    *s = (struct sharing){.run = r, .pieces = pieces};
    pthread_create(&s->thread, NULL, sharing_main, s);
    while (atomic_load(&s->begun) < 2) {
        clock_sleep_ms(1);
    }
}

static int lane_run(struct job *job, size_t piece, size_t seat, struct error *e)
{
    struct run *r = ((struct lettered *)job)->run;
    (void)piece, (void)e;
    assert_true(seat < pool_seats(r->pool));
    atomic_fetch_add(&r->helped, 1);
    return 0;
}

/* A brief piece does not wait for the end of shared work that every worker is in. */
static void test_a_brief_piece_is_let_in_between_shared_pieces(void **state)
{
    (void)state;
    struct run *r = run_open(1, 1);
    struct sharing sharing;
    struct lettered brief = letters(r, 'b', LANE_PROMPT, 1);
    brief.job.run = lane_run;
    brief.job.brief = true;
    sharing_begin(&sharing, r, 4);
    pool_begin(r->pool, &brief.job);
    atomic_store(&r->gate, true);
    assert_int_equal(pool_end(r->pool, &brief.job, NULL), 0);
    pthread_join(sharing.thread, NULL);
    assert_int_equal(atomic_load(&sharing.late), 0);
    run_close(r);
}

/* Where the host's work has threads of its own, it never keeps a lane waiting. */
static void test_a_lane_does_not_wait_for_shared_work(void **state)
{
    (void)state;
    struct run *r = run_open(2, 1);
    struct sharing sharing;
    struct lettered text = letters(r, 't', LANE_BULK, 1);
    text.job.run = lane_run;
    sharing_begin(&sharing, r, 3);
    clock_sleep_ms(20); /* in which the lane's worker would begin the third piece */
    pool_begin(r->pool, &text.job);
    assert_int_equal(pool_end(r->pool, &text.job, NULL), 0);
    atomic_store(&r->gate, true);
    pthread_join(sharing.thread, NULL);
    assert_int_equal(atomic_load(&sharing.late), 0);
    assert_int_equal(atomic_load(&sharing.begun), 3);
    run_close(r);
}

static void *taken_main(void *context)
{
    struct run *r = context;
    pool_wait_taken(r->pool, LANE_BULK);
    atomic_fetch_add(&r->helped, 1);
    return NULL;
}

/* pool_wait_taken lets go when the last piece is taken, not when it is done. */
static void test_wait_taken(void **state)
{
    (void)state;
    struct run *r = run_open(1, 1);
    struct lettered gate, second;
    pthread_t thread;
    gate_begin(r, &gate, 1);
    pool_wait_taken(r->pool, LANE_BULK);
    second = letters(r, 't', LANE_BULK, 1);
    pool_begin(r->pool, &second.job);
    pthread_create(&thread, NULL, taken_main, r);
    clock_sleep_ms(20);
    assert_int_equal(atomic_load(&r->helped), 0);
    atomic_store(&r->gate, true);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&r->helped), 1);
    assert_int_equal(pool_end(r->pool, &gate.job, NULL), 0);
    assert_int_equal(pool_end(r->pool, &second.job, NULL), 0);
    run_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lanes_take_turns),
        cmocka_unit_test(test_an_unfair_pool_lets_prompt_work_go_first),
        cmocka_unit_test(test_a_brief_piece_is_let_in),
        cmocka_unit_test(test_what_is_not_brief_waits),
        cmocka_unit_test(test_an_error_ends_a_job),
        cmocka_unit_test(test_workers_without_a_lane),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_several_help),
        cmocka_unit_test(test_share),
        cmocka_unit_test(test_a_brief_piece_is_let_in_between_shared_pieces),
        cmocka_unit_test(test_a_lane_does_not_wait_for_shared_work),
        cmocka_unit_test(test_wait_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
