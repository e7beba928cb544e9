/* Standard input read ahead: see internal.h. The thread owns the line reader; the ring between the two is covered by
 * the lock. The surprise: input_close may find the thread inside a read that never returns (a terminal), so it only
 * tells it to stop and leaves what it holds to the end of the process. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/lines.h"
#include "cli/internal.h"

enum { RING_LINES = 4096, RING_BYTES_MAX = 8 << 20, LINE_BYTES_MAX = 16 << 20 };

struct input {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct lines *lines; /* the thread's */
    struct input_line ring[RING_LINES];
    size_t first, count, bytes;
    bool ended, stopped;
    struct error failed; /* kind ERROR_NONE: the end came as it should */
};

/* Puts one line in the ring, once there is room. False: nobody wants it any more. */
static bool ring_push(struct input *in, struct input_line line)
{
    pthread_mutex_lock(&in->lock);
    while (!in->stopped && (in->count == RING_LINES || in->bytes > RING_BYTES_MAX)) {
        pthread_cond_wait(&in->changed, &in->lock);
    }
    bool wanted = !in->stopped;
    if (wanted) {
        in->ring[(in->first + in->count++) % RING_LINES] = line;
        in->bytes += line.bytes;
        pthread_cond_broadcast(&in->changed);
    } else {
        free(line.data);
    }
    pthread_mutex_unlock(&in->lock);
    return wanted;
}

static void *input_read(void *context)
{
    struct input *in = context;
    struct error e = {0};
    bool more = true;
    while (more) {
        struct slice text;
        struct input_line line = {0};
        int found = lines_next(in->lines, &text, &e);
        if (found > 0) {
            line.data = mem_string(text.data, text.bytes);
            line.bytes = text.bytes;
        } else if (found < 0 && e.kind == ERROR_POISON) {
            line = (struct input_line){mem_string(e.text, strlen(e.text)), strlen(e.text), true};
        } else {
            e.kind = found < 0 ? e.kind : ERROR_NONE;
            break;
        }
        more = ring_push(in, line);
    }
    pthread_mutex_lock(&in->lock);
    in->ended = true;
    in->failed = e;
    pthread_cond_broadcast(&in->changed);
    pthread_mutex_unlock(&in->lock);
    return NULL;
}

int input_open(struct input **out, struct error *e)
{
    struct input *in = mem_zero(1, sizeof *in);
    *out = NULL;
    if (lines_open(&in->lines, "-", LINE_BYTES_MAX, e)) {
        free(in);
        return -1;
    }
    pthread_mutex_init(&in->lock, NULL);
    pthread_cond_init(&in->changed, NULL);
    if (pthread_create(&in->thread, NULL, input_read, in)) {
        lines_close(in->lines);
        free(in);
        return error_set(e, ERROR_FATAL, E_INTERNAL, "no thread can be started");
    }
    *out = in;
    return 0;
}

bool input_passes_over(const struct input_line *line, bool json_lines)
{
    return json_lines && !line->bad && line_is_blank((struct slice){line->data, line->bytes});
}

int input_take(struct input *in, struct input_line *lines, size_t max, struct error *e)
{
    int taken = 0;
    pthread_mutex_lock(&in->lock);
    while (in->count == 0 && !in->ended) {
        pthread_cond_wait(&in->changed, &in->lock);
    }
    while (in->count && (size_t)taken < max) {
        lines[taken++] = in->ring[in->first];
        in->bytes -= in->ring[in->first].bytes;
        in->first = (in->first + 1) % RING_LINES;
        in->count--;
    }
    if (taken == 0 && in->failed.kind != ERROR_NONE) {
        *e = in->failed;
        taken = -1;
    }
    pthread_cond_broadcast(&in->changed);
    pthread_mutex_unlock(&in->lock);
    return taken;
}

void input_close(struct input *in)
{
    if (!in) {
        return;
    }
    pthread_mutex_lock(&in->lock);
    in->stopped = true;
    bool ended = in->ended;
    while (in->count) {
        free(in->ring[in->first].data);
        in->first = (in->first + 1) % RING_LINES;
        in->count--;
    }
    pthread_cond_broadcast(&in->changed);
    pthread_mutex_unlock(&in->lock);
    if (!ended) {
        pthread_detach(in->thread);
    } else {
        pthread_join(in->thread, NULL);
        pthread_cond_destroy(&in->changed);
        pthread_mutex_destroy(&in->lock);
        lines_close(in->lines);
        free(in);
    }
}
