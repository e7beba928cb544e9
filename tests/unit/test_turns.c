/* Turns on the backend: a waiting fold goes first, and never twice in a row while texts wait once the stage is ready.
 * Every holder gives its turn back only when all others that should wait do wait, so the order is not left to luck. */
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <pthread.h>
#include <string.h>

#include "base/clock.h"
#include "engine/internal.h"

struct contest {
    struct turns turns;
    char order[64]; /* by who holds the turn */
    size_t count;
    unsigned left[2]; /* turns still to be taken, by kind: written by their thread while it holds the turn */
};

struct contestant {
    struct contest *contest;
    enum turn turn;
    unsigned turns;
    pthread_t thread;
};

static unsigned waiting(struct turns *t, enum turn turn)
{
    pthread_mutex_lock(&t->lock);
    unsigned count = t->waiting[turn];
    pthread_mutex_unlock(&t->lock);
    return count;
}

static void wait_for(struct turns *t, enum turn turn, unsigned count)
{
    while (waiting(t, turn) < count) {
        clock_sleep_ms(1);
    }
}

static void *contend(void *context)
{
    struct contestant *c = context;
    for (unsigned i = 0; i < c->turns; i++) {
        turns_take(&c->contest->turns, c->turn);
        c->contest->order[c->contest->count++] = c->turn == TURN_LEARN ? 'L' : 't';
        c->contest->left[c->turn]--;
        enum turn other = c->turn == TURN_LEARN ? TURN_TEXT : TURN_LEARN;
        wait_for(&c->contest->turns, other, c->contest->left[other] > 0);
        turns_give(&c->contest->turns);
    }
    return NULL;
}

/* Lets contestants queue up behind a turn of the main thread's, then lets go. */
static void contest_run(struct contest *c, struct contestant *contestants, size_t n, bool ready)
{
    unsigned queued[2] = {0, 0};
    turns_open(&c->turns);
    turns_ready(&c->turns, ready);
    turns_take(&c->turns, TURN_TEXT);
    for (size_t i = 0; i < n; i++) {
        contestants[i].contest = c;
        c->left[contestants[i].turn] += contestants[i].turns;
    }
    for (size_t i = 0; i < n; i++) {
        pthread_create(&contestants[i].thread, NULL, contend, &contestants[i]);
        wait_for(&c->turns, contestants[i].turn, ++queued[contestants[i].turn]);
    }
    turns_give(&c->turns);
    for (size_t i = 0; i < n; i++) {
        pthread_join(contestants[i].thread, NULL);
    }
    turns_close(&c->turns);
}

static void test_lanes_alternate(void **state)
{
    (void)state;
    struct contest c = {0};
    contest_run(&c, (struct contestant[]){{.turn = TURN_TEXT, .turns = 4}, {.turn = TURN_LEARN, .turns = 4}}, 2, true);
    assert_string_equal(c.order, "LtLtLtLt");
}

static void test_a_bulk_of_labels_lets_a_text_through(void **state)
{
    (void)state;
    struct contest c = {0};
    contest_run(&c,
                (struct contestant[]){{.turn = TURN_LEARN, .turns = 1},
                                      {.turn = TURN_LEARN, .turns = 1},
                                      {.turn = TURN_LEARN, .turns = 1},
                                      {.turn = TURN_TEXT, .turns = 1}},
                4, true);
    assert_string_equal(c.order, "LtLL");
}

static void test_before_ready_folds_go_first(void **state)
{
    (void)state;
    struct contest c = {0};
    contest_run(&c,
                (struct contestant[]){{.turn = TURN_TEXT, .turns = 1},
                                      {.turn = TURN_LEARN, .turns = 1},
                                      {.turn = TURN_LEARN, .turns = 1}},
                3, false);
    assert_string_equal(c.order, "LLt");
}

static void test_alone_nobody_waits(void **state)
{
    (void)state;
    struct contest c = {0};
    contest_run(&c, (struct contestant[]){{.turn = TURN_LEARN, .turns = 3}}, 1, true);
    assert_string_equal(c.order, "LLL");
    memset(&c, 0, sizeof c);
    contest_run(&c, (struct contestant[]){{.turn = TURN_TEXT, .turns = 3}}, 1, true);
    assert_string_equal(c.order, "ttt");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lanes_alternate),
        cmocka_unit_test(test_a_bulk_of_labels_lets_a_text_through),
        cmocka_unit_test(test_before_ready_folds_go_first),
        cmocka_unit_test(test_alone_nobody_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
