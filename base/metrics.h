/* Metrics: histograms that any thread may add to, and the Prometheus text format 0.0.4 in which they are shown. Nothing
 * here locks: a histogram that is read while others add is at most a few samples behind in one of its figures. */
#ifndef ENGRAM_BASE_METRICS_H
#define ENGRAM_BASE_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"

enum { HISTOGRAM_BOUNDS_MAX = 8 };

/* Samples are whole numbers (microseconds, texts, tokens); `unit` of them are 1 in what is shown (1e6: seconds). */
struct histogram_scale {
    double unit;
    size_t count;
    uint64_t bounds[HISTOGRAM_BOUNDS_MAX]; /* upper, included, rising */
};

extern const struct histogram_scale histogram_seconds; /* of microseconds: 1 ms to 60 s */
extern const struct histogram_scale histogram_sizes;   /* 1 to 65,536 */

struct histogram { /* zero-initialise, but for the scale */
    const struct histogram_scale *scale;
    _Atomic uint64_t buckets[HISTOGRAM_BOUNDS_MAX + 1]; /* not cumulated; the last one has no bound */
    _Atomic uint64_t sum;
};

void histogram_add(struct histogram *h, uint64_t sample); /* any thread */

/* HELP and TYPE; a metric's samples follow it. type: "counter", "gauge". */
void metrics_head(struct buffer *out, const char *name, const char *type, const char *help);
/* One sample. labels: as metrics_label wrote them, or NULL. */
void metrics_sample(struct buffer *out, const char *name, const char *labels, double value);
/* Adds name="value" to labels, after a comma where it is not the first. */
void metrics_label(struct buffer *labels, const char *name, const char *value);
/* Head and sample of a metric without labels. */
void metrics_counter(struct buffer *out, const char *name, const char *help, uint64_t value);
void metrics_gauge(struct buffer *out, const char *name, const char *help, double value);
void metrics_histogram(struct buffer *out, const char *name, const char *help, const struct histogram *h);

#endif
