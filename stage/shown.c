/* What the console shows. The caller's thread takes samples in stage_tick; the console's thread reads only those, and
 * counters that are atomic: it takes no lock that a lane takes, so a client that asks without end holds up nobody. The
 * surprise: nothing is asked of a broker that is known not to answer, for the caller's thread waits for signals too. */
#include "stage/internal.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum {
    MEMORY_US = 1000 * 1000,
    LAGS_US = 3 * 1000 * 1000,
    LAGS_MS = 500, /* how long one question for ends may take */
};

/* ---- samples: the caller's thread ---- */

/* Why no progress is possible; empty: it is. */
static void why_not_ready(struct stage *s, char *why, size_t bytes)
{
    pthread_mutex_lock(&s->lock);
    bool ready = s->ready;
    const enum lane_name waits = *s->waits[LEARN_LANE] ? LEARN_LANE : TAG_LANE;
    *why = '\0';
    if (*s->waits[waits]) {
        snprintf(why, bytes, "the %s lane waits: %s", waits == LEARN_LANE ? "learn" : "tag", s->waits[waits]);
    }
    pthread_mutex_unlock(&s->lock);
    if (*why) {
        return;
    }
    struct consumer_status texts = tag_lane_status(s->tag);
    char trouble[TROUBLE_BYTES];
    bool learn = learn_lane_troubled(s->learn, trouble);
    if (learn || tag_lane_troubled(s->tag, trouble)) {
        snprintf(why, bytes, "the %s lane waits for Kafka: %s", learn ? "learn" : "tag", trouble);
    } else if (ready && *texts.trouble) {
        snprintf(why, bytes, "the tag lane waits for Kafka: %s", texts.trouble);
    } else if (!ready) {
        snprintf(why, bytes, "%s",
                 learn_lane_opened(s->learn) ? "the memory is catching up" : "waiting for the brokers and topics");
    } else if (!texts.joined) {
        snprintf(why, bytes, "the consumer group has given no assignment yet");
    } else {
        const char *step = pulse_hangs(learn_lane_pulse(s->learn));
        step = step ? step : tag_lane_hangs(s->tag);
        if (step) {
            snprintf(why, bytes, "a lane has been %s for too long", step);
        }
    }
}

static void sample_memory(struct stage *s)
{
    struct snapshot *snapshot = NULL;
    struct memory_stats stats = {0};
    if (memory_look(s->memory, &snapshot, NULL) == 0 && snapshot_stats(snapshot, &stats, NULL) == 0) {
        pthread_mutex_lock(&s->shown.lock);
        s->shown.keys = stats.instances + stats.label_keys;
        s->shown.bytes = stats.bytes;
        s->shown.version = stats.version;
        digest_hex(stats.digest, s->shown.digest);
        pthread_mutex_unlock(&s->shown.lock);
    }
    memory_stats_free(&stats);
    snapshot_release(snapshot);
}

static void lags_put(struct stage *s, int lane, struct partition_lag *lags, ssize_t count)
{
    pthread_mutex_lock(&s->shown.lock);
    free(s->shown.lags[lane]);
    s->shown.lags[lane] = lags;
    s->shown.lags_count[lane] = count < 0 ? 0 : (size_t)count;
    pthread_mutex_unlock(&s->shown.lock);
}

static void sample_lags(struct stage *s)
{
    struct partition_lag *lags = NULL;
    struct consumer_status texts = tag_lane_status(s->tag);
    char trouble[TROUBLE_BYTES];
    ssize_t count = *texts.trouble ? -1 : tag_lane_lags(s->tag, &lags, LAGS_MS);
    lags_put(s, 0, lags, count);
    lags = NULL;
    count = learn_lane_troubled(s->learn, trouble) ? -1 : learn_lane_lags(s->learn, &lags, LAGS_MS);
    lags_put(s, 1, lags, count);
}

void shown_sample(struct stage *s)
{
    uint64_t now = clock_us();
    char why[sizeof s->shown.why];
    why_not_ready(s, why, sizeof why);
    struct consumer_status texts = tag_lane_status(s->tag);
    size_t queued = tag_lane_queued(s->tag);
    pthread_mutex_lock(&s->shown.lock);
    memcpy(s->shown.why, why, sizeof why);
    s->shown.texts = texts;
    s->shown.queue_tokens = queued;
    pthread_mutex_unlock(&s->shown.lock);
    if (now - s->shown.memory_us >= MEMORY_US) {
        sample_memory(s);
        s->shown.memory_us = now;
    }
    if (now - s->shown.lags_us >= LAGS_US) {
        sample_lags(s);
        s->shown.lags_us = clock_us();
    }
}

void shown_open(struct stage *s)
{
    pthread_mutex_init(&s->shown.lock, NULL);
    snprintf(s->shown.why, sizeof s->shown.why, "starting");
    struct stage_meters *m = &s->meters;
    m->batch_texts.scale = m->batch_tokens.scale = &histogram_sizes;
    m->encode.scale = m->retrieve.scale = m->publish.scale = m->text.scale = m->live.scale = &histogram_seconds;
    sample_memory(s);
}

void shown_close(struct stage *s)
{
    free(s->shown.lags[0]);
    free(s->shown.lags[1]);
    pthread_mutex_destroy(&s->shown.lock);
}

/* ---- answers: the console's thread ---- */

bool shown_ready(void *context, struct buffer *why)
{
    struct stage *s = context;
    if (atomic_load(&s->stopping)) {
        buffer_string(why, "stopping");
        return false;
    }
    pthread_mutex_lock(&s->shown.lock);
    buffer_string(why, s->shown.why);
    pthread_mutex_unlock(&s->shown.lock);
    return why->bytes == 0;
}

static void show_errors(const struct stage *s, struct buffer *out)
{
    const char *name = "engram_errors_total";
    metrics_head(out, name, "counter",
                 "Faults by kind: records that can never be processed, refusals of the memory or the brokers.");
    for (size_t code = E_OK + 1; code < ERROR_KINDS; code++) {
        uint64_t count = atomic_load(&s->counters.errors[code]);
        char kind[32] = {0};
        const char *upper = error_code_name((enum error_code)code);
        for (size_t i = 0; upper[i] && i + 1 < sizeof kind; i++) {
            kind[i] = (char)tolower((unsigned char)upper[i]);
        }
        struct buffer labels = {0};
        metrics_label(&labels, "kind", kind);
        metrics_sample(out, name, labels.data, (double)(code == E_BROKER ? count + kafka_troubles() : count));
        buffer_free(&labels);
    }
}

static void show_reloads(const struct stage *s, struct buffer *out)
{
    static const char *const results[2] = {"refused", "taken"};
    const char *name = "engram_reloads_total";
    metrics_head(out, name, "counter", "How often the options were read again (SIGHUP), by result.");
    for (int taken = 0; taken < 2; taken++) {
        struct buffer labels = {0};
        metrics_label(&labels, "result", results[taken]);
        metrics_sample(out, name, labels.data, (double)atomic_load(&s->counters.reloads[taken]));
        buffer_free(&labels);
    }
}

static void show_lags(const struct stage *s, struct buffer *out)
{
    const char *name = "engram_consumer_lag";
    metrics_head(out, name, "gauge", "Records between position and last stable offset; absent while it is not known.");
    for (int lane = 0; lane < 2; lane++) {
        for (size_t i = 0; i < s->shown.lags_count[lane]; i++) {
            const struct partition_lag *lag = &s->shown.lags[lane][i];
            struct buffer labels = {0};
            char partition[16];
            snprintf(partition, sizeof partition, "%d", (int)lag->partition);
            metrics_label(&labels, "topic", lag->topic);
            metrics_label(&labels, "partition", partition);
            metrics_sample(out, name, labels.data, (double)lag->lag);
            buffer_free(&labels);
        }
    }
}

static void show_info(const struct stage *s, struct buffer *out)
{
    const struct encoder *encoder = engine_encoder(s->engine);
    struct buffer labels = {0};
    char model_version[17];
    snprintf(model_version, sizeof model_version, "%.16s", encoder_fingerprint(encoder));
    metrics_label(&labels, "version", ENGRAM_VERSION);
    metrics_label(&labels, "versions", s->versions);
    metrics_label(&labels, "model", encoder_name(encoder));
    metrics_label(&labels, "model_version", model_version);
    metrics_label(&labels, "digest", s->shown.digest);
    metrics_head(out, "engram_info", "gauge",
                 "Versions and model, and the digest of the memory, which is equal on every replica.");
    metrics_sample(out, "engram_info", labels.data, 1);
    buffer_free(&labels);
}

static void show_sampled(struct stage *s, struct buffer *out)
{
    pthread_mutex_lock(&s->shown.lock);
    metrics_gauge(out, "engram_queue_tokens", "Tokens that wait to be encoded.", (double)s->shown.queue_tokens);
    metrics_counter(out, "engram_rebalances_total", "Assignments of partitions of texts.", s->shown.texts.rebalances);
    metrics_gauge(out, "engram_paused_partitions", "Partitions of texts that are paused while the queue is full.",
                  s->shown.texts.paused ? (double)s->shown.texts.assigned : 0);
    metrics_gauge(out, "engram_memory_keys", "Instances and label definitions in the memory.", (double)s->shown.keys);
    metrics_gauge(out, "engram_memory_bytes", "Bytes of the memory's file that are in use.", (double)s->shown.bytes);
    metrics_gauge(out, "engram_memory_version", "Records applied from the topics: the sum of the next offsets.",
                  (double)s->shown.version);
    show_lags(s, out);
    show_info(s, out);
    pthread_mutex_unlock(&s->shown.lock);
}

void shown_metrics(void *context, struct buffer *out)
{
    struct stage *s = context;
    const struct stage_counters *c = &s->counters;
    const struct stage_meters *m = &s->meters;
    metrics_counter(out, "engram_texts_total", "Texts answered: predictions, nulls and dead letters.",
                    atomic_load(&c->texts));
    metrics_counter(out, "engram_folds_total", "Instances and label definitions folded.", atomic_load(&c->folds));
    metrics_counter(out, "engram_forgets_total", "Instances and label definitions forgotten.",
                    atomic_load(&c->forgets));
    metrics_counter(out, "engram_dead_letters_total", "Records sent to the dead letters.",
                    atomic_load(&c->dead_letters));
    metrics_counter(out, "engram_batches_total", "Batches of texts computed.", atomic_load(&c->batches));
    metrics_histogram(out, "engram_batch_texts", "Texts in a batch.", &m->batch_texts);
    metrics_histogram(out, "engram_batch_tokens", "Tokens in a batch.", &m->batch_tokens);
    metrics_histogram(out, "engram_encode_seconds", "Encoding a batch.", &m->encode);
    metrics_histogram(out, "engram_retrieve_seconds", "Searching the memory for a batch.", &m->retrieve);
    metrics_histogram(out, "engram_publish_seconds", "Publishing a batch, until it is acknowledged and committed.",
                      &m->publish);
    metrics_histogram(out, "engram_text_seconds", "A text from poll until its output is acknowledged.", &m->text);
    metrics_histogram(out, "engram_label_to_live_seconds",
                      "From the timestamp of a label or instance until it counts in predictions.", &m->live);
    struct buffer why = {0};
    metrics_gauge(out, "engram_ready", "1 while /ready answers 200.", shown_ready(s, &why));
    buffer_free(&why);
    show_errors(s, out);
    show_reloads(s, out);
    show_sampled(s, out);
}
