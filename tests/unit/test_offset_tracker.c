/* The offset tracker against an oracle that keeps every offset in a table and looks from the start each time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "consumer/consumer.h"

static void only_what_is_contiguous_moves(void **state)
{
    (void)state;
    struct offset_tracker *t = offset_tracker_new();
    struct partition_offset out[4];
    for (int64_t offset = 10; offset < 14; offset++) {
        offset_tracker_add(t, 3, 1, offset);
    }
    offset_tracker_done(t, 3, 1, 12);
    offset_tracker_done(t, 3, 1, 11);
    assert_int_equal(offset_tracker_take(t, out, 4), 0);
    offset_tracker_done(t, 3, 1, 10);
    assert_int_equal(offset_tracker_take(t, out, 4), 1);
    assert_int_equal(out[0].partition, 3);
    assert_int_equal(out[0].epoch, 1);
    assert_int_equal(out[0].next, 13);
    assert_int_equal(offset_tracker_take(t, out, 4), 0);
    offset_tracker_done(t, 3, 1, 13);
    assert_int_equal(offset_tracker_take(t, out, 4), 1);
    assert_int_equal(out[0].next, 14);
    offset_tracker_free(t);
}

static void gaps_are_no_offsets(void **state)
{
    (void)state;
    struct offset_tracker *t = offset_tracker_new();
    struct partition_offset out[1];
    offset_tracker_add(t, 0, 1, 5);
    offset_tracker_add(t, 0, 1, 900); /* a compacted gap */
    offset_tracker_done(t, 0, 1, 6);  /* never added */
    offset_tracker_done(t, 0, 1, 5);
    assert_int_equal(offset_tracker_take(t, out, 1), 1);
    assert_int_equal(out[0].next, 6);
    offset_tracker_done(t, 0, 1, 900);
    assert_int_equal(offset_tracker_take(t, out, 1), 1);
    assert_int_equal(out[0].next, 901);
    offset_tracker_free(t);
}

static void a_new_epoch_forgets_the_old(void **state)
{
    (void)state;
    struct offset_tracker *t = offset_tracker_new();
    struct partition_offset out[2];
    offset_tracker_add(t, 0, 1, 5);
    offset_tracker_add(t, 0, 1, 6);
    offset_tracker_done(t, 0, 1, 5); /* moved, and not taken yet */
    offset_tracker_add(t, 0, 2, 3);  /* given back and taken again */
    offset_tracker_done(t, 0, 1, 6);
    assert_int_equal(offset_tracker_take(t, out, 2), 0);
    offset_tracker_done(t, 0, 2, 3);
    assert_int_equal(offset_tracker_take(t, out, 2), 1);
    assert_int_equal(out[0].epoch, 2);
    assert_int_equal(out[0].next, 4);
    offset_tracker_clear(t);
    offset_tracker_done(t, 0, 2, 3);
    assert_int_equal(offset_tracker_take(t, out, 2), 0);
    offset_tracker_free(t);
}

enum { PARTITIONS = 3, OFFSETS = 4000 };

static int64_t oracle(const char *states, int64_t last)
{
    int64_t next = -1;
    for (int64_t offset = 0; offset <= last; offset++) {
        if (states[offset] == 1) { /* added, not done */
            break;
        }
        next = states[offset] == 2 ? offset + 1 : next;
    }
    return next;
}

static void any_order_agrees_with_the_oracle(void **state)
{
    (void)state;
    static char states[PARTITIONS][OFFSETS];
    int64_t last[PARTITIONS] = {-1, -1, -1}, committed[PARTITIONS] = {-1, -1, -1};
    struct offset_tracker *t = offset_tracker_new();
    srand(1);
    for (int step = 0; step < 6 * OFFSETS; step++) {
        int p = rand() % PARTITIONS;
        if (rand() % 2) {
            int64_t offset = last[p] + 1 + rand() % 3;
            if (offset < OFFSETS) {
                offset_tracker_add(t, p, 7, offset);
                states[p][offset] = 1;
                last[p] = offset;
            }
        } else if (last[p] >= 0) {
            int64_t offset = last[p] - rand() % 200;
            if (offset >= 0 && states[p][offset] == 1) {
                offset_tracker_done(t, p, 7, offset);
                states[p][offset] = 2;
            }
        }
        if (step % 7 == 0) {
            struct partition_offset out[2]; /* fewer than partitions: the rest comes next time */
            size_t n = offset_tracker_take(t, out, 2);
            for (size_t i = 0; i < n; i++) {
                assert_int_equal(out[i].next, oracle(states[out[i].partition], last[out[i].partition]));
                assert_true(out[i].next > committed[out[i].partition]);
                committed[out[i].partition] = out[i].next;
            }
        }
    }
    for (int p = 0; p < PARTITIONS; p++) {
        for (int64_t offset = 0; offset <= last[p]; offset++) {
            offset_tracker_done(t, p, 7, offset);
        }
    }
    struct partition_offset out[PARTITIONS];
    size_t n = offset_tracker_take(t, out, PARTITIONS);
    for (size_t i = 0; i < n; i++) {
        committed[out[i].partition] = out[i].next;
    }
    for (int p = 0; p < PARTITIONS; p++) {
        assert_int_equal(committed[p], last[p] + 1);
    }
    offset_tracker_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_is_contiguous_moves),
        cmocka_unit_test(gaps_are_no_offsets),
        cmocka_unit_test(a_new_epoch_forgets_the_old),
        cmocka_unit_test(any_order_agrees_with_the_oracle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
