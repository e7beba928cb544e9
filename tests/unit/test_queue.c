/* The queue between two threads of a lane. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "stage/internal.h"

enum { FILL_MS = 100 };

static void keep(void *item)
{
    (void)item;
}

struct taking {
    struct queue *queue;
    void *items[4];
    size_t count;
};

static void *take_main(void *context)
{
    struct taking *t = context;
    t->count = queue_take(t->queue, t->items, 4, 10, FILL_MS);
    return NULL;
}

/* As a rebalance does it while a batch fills: only a closed queue gives nothing. */
static void test_cleared_while_it_fills(void **state)
{
    (void)state;
    char first, second;
    struct taking t = {.queue = queue_open(100)};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, take_main, &t), 0);
    assert_true(queue_push(t.queue, &first, 1, 0));
    clock_sleep_ms(FILL_MS / 5);
    queue_clear(t.queue, keep);
    clock_sleep_ms(2 * FILL_MS);
    assert_true(queue_push(t.queue, &second, 10, 0));
    pthread_join(thread, NULL);
    assert_int_equal(t.count, 1);
    assert_ptr_equal(t.items[0], &second);
    queue_close(t.queue);
    assert_int_equal(queue_take(t.queue, t.items, 4, 10, FILL_MS), 0);
    queue_free(t.queue, keep);
}

/* Both bounds hold, but for the first item's weight; what was taken counts until it is done. */
static void test_bounds(void **state)
{
    (void)state;
    char items[6];
    void *taken[4];
    struct queue *q = queue_open(12);
    assert_true(queue_push(q, &items[0], 20, 0)); /* the bound would keep it out for ever */
    assert_false(queue_push(q, &items[1], 1, 0));
    assert_int_equal(queue_take(q, taken, 4, 10, 0), 1);
    assert_ptr_equal(taken[0], &items[0]);
    for (size_t i = 1; i < 6; i++) {
        assert_true(queue_push(q, &items[i], 2, 0));
    }
    assert_int_equal(queue_weight(q), 10);
    assert_int_equal(queue_take(q, taken, 2, 10, 0), 2);
    assert_ptr_equal(taken[1], &items[2]);
    assert_int_equal(queue_take(q, taken, 4, 5, 0), 2);
    assert_ptr_equal(taken[1], &items[4]);
    assert_false(queue_wait_below(q, 2, 0));
    assert_false(queue_settle(q, 0));
    queue_done(q, 5);
    assert_true(queue_settle(q, 0));
    queue_close(q);
    queue_free(q, keep);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cleared_while_it_fills),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
