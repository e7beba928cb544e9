/* The console: HTTP for operators, on one thread of its own at low priority. It is handed what it shows and whom to
 * call, and knows no lane. Every connection carries one request, without a body, and ends in 10 s; how many there are
 * and what each may hold is bounded, so that slow or hostile clients cost the stage nothing that it would notice. */
#ifndef ENGRAM_STAGE_CONSOLE_CONSOLE_H
#define ENGRAM_STAGE_CONSOLE_CONSOLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"

/* Both are called on the console's thread, return at once and wait for nobody's broker, disk or computation. */
struct console_source {
    void (*metrics)(void *context, struct buffer *out); /* appends /metrics: Prometheus text format 0.0.4 */
    bool (*ready)(void *context, struct buffer *why);   /* false: appends one line that says why not */
    void *context;
    const char *version; /* what /version answers; copied */
};

struct console;

/* GET and HEAD of /ping, /ready, /metrics, /version at address:port. Errors: FATAL, E_IO: the port is in use, or the
 * address is none of this machine's; the line names both. */
int console_open(struct console **out, const char *address, uint16_t port, const struct console_source *source,
                 struct error *e);
void console_sweep(struct console *c); /* ends what has lasted too long: call it about once a second; NULL is fine */
void console_close(struct console *c); /* no call of the source is under way when it returns; NULL is fine */

#endif
