/* The Prometheus text format, byte by byte as its specification writes it, and histograms: bounds are included, buckets
 * are cumulated, and nothing is lost between threads. */
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <pthread.h>
#include <stdlib.h>

#include "base/metrics.h"

static void counter_and_gauge(void **state)
{
    (void)state;
    struct buffer out = {0};
    metrics_counter(&out, "a_total", "What it counts.", 9007199254740991u / 16);
    metrics_gauge(&out, "b", "What it shows.", 0.25);
    assert_string_equal(out.data, "# HELP a_total What it counts.\n# TYPE a_total counter\na_total 562949953421311\n"
                                  "# HELP b What it shows.\n# TYPE b gauge\nb 0.25\n");
    buffer_free(&out);
}

static void labels_are_escaped(void **state)
{
    (void)state;
    struct buffer labels = {0}, out = {0};
    metrics_label(&labels, "topic", "texts");
    metrics_label(&labels, "model", "a\\b\"c\nd");
    metrics_label(&labels, "empty", "");
    metrics_sample(&out, "lag", labels.data, 3);
    assert_string_equal(out.data, "lag{topic=\"texts\",model=\"a\\\\b\\\"c\\nd\",empty=\"\"} 3\n");
    buffer_free(&labels);
    buffer_free(&out);
}

static void histogram_text(void **state)
{
    (void)state;
    static const struct histogram_scale scale = {.unit = 1e6, .count = 3, .bounds = {1000, 500000, 2000000}};
    struct histogram h = {.scale = &scale};
    struct buffer out = {0};
    const uint64_t samples[] = {0, 1000, 1001, 500000, 2000001, 9000000};
    for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++) {
        histogram_add(&h, samples[i]);
    }
    metrics_histogram(&out, "t_seconds", "How long.", &h);
    assert_string_equal(out.data, "# HELP t_seconds How long.\n# TYPE t_seconds histogram\n"
                                  "t_seconds_bucket{le=\"0.001\"} 2\n"
                                  "t_seconds_bucket{le=\"0.5\"} 4\n"
                                  "t_seconds_bucket{le=\"2\"} 4\n"
                                  "t_seconds_bucket{le=\"+Inf\"} 6\n"
                                  "t_seconds_sum 11.502002\n"
                                  "t_seconds_count 6\n");
    buffer_free(&out);
}

static void scales_rise(void **state)
{
    (void)state;
    const struct histogram_scale *scales[] = {&histogram_seconds, &histogram_sizes};
    for (size_t s = 0; s < 2; s++) {
        assert_in_range(scales[s]->count, 1, HISTOGRAM_BOUNDS_MAX);
        for (size_t i = 1; i < scales[s]->count; i++) {
            assert_true(scales[s]->bounds[i] > scales[s]->bounds[i - 1]);
        }
    }
}

enum { THREADS = 4, EACH = 20000 };

static void *adds(void *context)
{
    for (uint64_t i = 0; i < EACH; i++) {
        histogram_add(context, i % 100);
    }
    return NULL;
}

static void threads_lose_nothing(void **state)
{
    (void)state;
    struct histogram h = {.scale = &histogram_sizes};
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, adds, &h), 0);
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    uint64_t count = 0;
    for (size_t i = 0; i <= HISTOGRAM_BOUNDS_MAX; i++) {
        count += h.buckets[i];
    }
    assert_int_equal(count, THREADS * EACH);
    assert_int_equal(h.sum, THREADS * EACH / 100 * 4950);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counter_and_gauge), cmocka_unit_test(labels_are_escaped),   cmocka_unit_test(histogram_text),
        cmocka_unit_test(scales_rise),       cmocka_unit_test(threads_lose_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
