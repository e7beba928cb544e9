/* The progress bar: see internal.h. It writes to standard error alone, and reads the terminal's width once a drawing.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/internal.h"
#include "cli/terminal.h"

enum { REDRAW_US = 100000, LINE_US = 5000000, BAR_MIN = 4, BAR_MAX = 30 };

/* 1234567 as "1,234,567". */
static void number_grouped(struct buffer *out, uint64_t number)
{
    char digits[24];
    int count = snprintf(digits, sizeof digits, "%" PRIu64, number);
    for (int i = 0; i < count; i++) {
        if (i > 0 && (count - i) % 3 == 0) {
            buffer_byte(out, ',');
        }
        buffer_byte(out, digits[i]);
    }
}

static void seconds_format(struct buffer *out, uint64_t seconds)
{
    if (seconds >= 3600) {
        buffer_format(out, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, seconds / 3600, seconds / 60 % 60, seconds % 60);
    } else {
        buffer_format(out, "%" PRIu64 ":%02" PRIu64, seconds / 60, seconds % 60);
    }
}

/* "24,324 instances, 1,310/s, 0:07 left" */
static void describe(struct buffer *out, const struct progress *p, double fraction, bool over)
{
    uint64_t elapsed_us = clock_us() - p->started_us;
    number_grouped(out, p->items);
    buffer_format(out, " %s, ", p->unit);
    number_grouped(out, elapsed_us ? (uint64_t)((double)p->items * 1e6 / (double)elapsed_us) : 0);
    buffer_string(out, "/s");
    if (over) {
        buffer_string(out, ", ");
        seconds_format(out, elapsed_us / 1000000);
    } else if (fraction > 0.001) {
        buffer_string(out, ", ");
        seconds_format(out, (uint64_t)((double)elapsed_us / 1e6 * (1 - fraction) / fraction));
        buffer_string(out, " left");
    }
}

static void draw(const struct progress *p, double fraction, bool over)
{
    struct buffer line = {0};
    struct buffer text = {0};
    describe(&text, p, fraction, over);
    buffer_string(&line, p->terminal ? "\r\033[K" : "");
    buffer_format(&line, "%s ", p->what);
    if (fraction >= 0 && p->terminal) {
        size_t others = strlen(p->what) + text.bytes + sizeof " [] 100%  ";
        size_t columns = terminal_columns(STDERR_FILENO);
        size_t bar = columns > others + BAR_MIN ? columns - others : BAR_MIN;
        bar = bar > BAR_MAX ? BAR_MAX : bar;
        size_t full = (size_t)((double)bar * fraction);
        buffer_byte(&line, '[');
        for (size_t i = 0; i < bar; i++) {
            buffer_byte(&line, i < full ? '#' : '.');
        }
        buffer_string(&line, "] ");
    }
    if (fraction >= 0) {
        buffer_format(&line, "%3d%% ", (int)(fraction * 100));
    }
    buffer_append(&line, text.data, text.bytes);
    buffer_string(&line, p->terminal && !over ? "" : "\n");
    fwrite(line.data, 1, line.bytes, stderr);
    fflush(stderr);
    buffer_free(&line);
    buffer_free(&text);
}

void progress_start(struct progress *p, const char *what, const char *unit)
{
    *p = (struct progress){.what = what, .unit = unit, .started_us = clock_us(), .terminal = isatty(STDERR_FILENO)};
    p->shown_us = p->started_us;
}

void progress_update(struct progress *p, uint64_t items, double fraction)
{
    uint64_t now = clock_us();
    p->items = items;
    if (now - p->shown_us >= (p->terminal ? REDRAW_US : LINE_US)) {
        draw(p, fraction > 1 ? 1 : fraction, false);
        p->shown_us = now;
        p->shown = true;
    }
}

void progress_end(struct progress *p, uint64_t items)
{
    p->items = items;
    if (p->shown || p->terminal) {
        draw(p, 1, true);
    }
    p->shown = false;
}

void progress_clear(struct progress *p)
{
    if (p->shown && p->terminal) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
    }
}
