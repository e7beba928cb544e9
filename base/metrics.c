/* Histograms and the Prometheus text format: see metrics.h. */
#include "base/metrics.h"

#include <inttypes.h>
#include <stdatomic.h>

const struct histogram_scale histogram_seconds = {
    .unit = 1e6,
    .count = 8,
    .bounds = {1000, 5000, 25000, 100000, 500000, 2500000, 10000000, 60000000},
};

const struct histogram_scale histogram_sizes = {
    .unit = 1,
    .count = 7,
    .bounds = {1, 8, 64, 512, 4096, 16384, 65536},
};

void histogram_add(struct histogram *h, uint64_t sample)
{
    size_t i = 0;
    while (i < h->scale->count && sample > h->scale->bounds[i]) {
        i++;
    }
    atomic_fetch_add_explicit(&h->buckets[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum, sample, memory_order_relaxed);
}

void metrics_head(struct buffer *out, const char *name, const char *type, const char *help)
{
    buffer_format(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

void metrics_sample(struct buffer *out, const char *name, const char *labels, double value)
{
    buffer_string(out, name);
    if (labels) {
        buffer_format(out, "{%s}", labels);
    }
    buffer_format(out, " %.15g\n", value); /* whole numbers up to 1e15 as they are */
}

void metrics_label(struct buffer *labels, const char *name, const char *value)
{
    buffer_format(labels, "%s%s=\"", labels->bytes ? "," : "", name);
    for (const char *c = value; *c; c++) {
        if (*c == '\n') {
            buffer_string(labels, "\\n");
            continue;
        }
        if (*c == '"' || *c == '\\') {
            buffer_byte(labels, '\\');
        }
        buffer_byte(labels, *c);
    }
    buffer_byte(labels, '"');
}

void metrics_counter(struct buffer *out, const char *name, const char *help, uint64_t value)
{
    metrics_head(out, name, "counter", help);
    metrics_sample(out, name, NULL, (double)value);
}

void metrics_gauge(struct buffer *out, const char *name, const char *help, double value)
{
    metrics_head(out, name, "gauge", help);
    metrics_sample(out, name, NULL, value);
}

void metrics_histogram(struct buffer *out, const char *name, const char *help, const struct histogram *h)
{
    uint64_t count = 0;
    metrics_head(out, name, "histogram", help);
    for (size_t i = 0; i < h->scale->count; i++) {
        count += atomic_load(&h->buckets[i]);
        buffer_format(out, "%s_bucket{le=\"%.15g\"} %" PRIu64 "\n", name, (double)h->scale->bounds[i] / h->scale->unit,
                      count);
    }
    count += atomic_load(&h->buckets[h->scale->count]);
    buffer_format(out, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, count);
    buffer_format(out, "%s_sum %.15g\n%s_count %" PRIu64 "\n", name, (double)atomic_load(&h->sum) / h->scale->unit,
                  name, count);
}
