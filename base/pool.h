/* Worker threads that share work out in pieces. Two sorts of work:
 *   - jobs in a lane (pool_begin, pool_end): what computes on the device. A worker takes the next piece when it is
 * free. PROMPT goes first, but once the pool is fair no worker that is free takes two in a row while BULK waits. A
 * brief PROMPT piece need not even wait for a worker: a long piece lets it in where it calls pool_yield, and shared
 * work between two pieces.
 *   - shared work (pool_share): the caller does it, and workers that are between two pieces of a lane help, before they
 * take the next.
 * Any thread may call; a piece must not wait for another piece. */
#ifndef ENGRAM_BASE_POOL_H
#define ENGRAM_BASE_POOL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

enum lane { LANE_BULK, LANE_PROMPT, LANES };

struct pool;

/* A job, zeroed, then its first members set; it must live until pool_end. */
struct job {
    /* Piece number `piece`, on a seat of its own while it runs: below pool_seats. -1: the pieces that have not begun
     * are left out, and pool_end returns the first error. */
    int (*run)(struct job *job, size_t piece, size_t seat, struct error *e);
    /* NULL, or how a worker with nothing else to do helps the pieces that run; it returns when they are done. */
    void (*help)(struct job *job, size_t seat);
    size_t pieces;
    enum lane lane;
    bool brief; /* a piece of it may run inside another job's */

    /* the pool's, under its lock */
    struct job *next;
    size_t taken, done, helpers;
    struct error error;
};

/* `workers` threads, of which the first `lanes` take the lanes' jobs. Where there are others, those alone share work: a
 * GPU's streams do not wait for the host.
 * Errors: FATAL E_INTERNAL (a thread cannot be started). */
int pool_open(struct pool **out, size_t workers, size_t lanes, struct error *e);
void pool_close(struct pool *p); /* NULL is fine; no job may be left */
size_t pool_seats(const struct pool *p);
void pool_fair(struct pool *p, bool fair); /* false: PROMPT always goes first */

void pool_begin(struct pool *p, struct job *job);
int pool_end(struct pool *p, struct job *job, struct error *e); /* waits until all pieces are done */
/* Between two steps of a piece that runs on that seat: runs a brief piece where one waits, on a seat of its own. At
 * most once for each piece: *yielded is the piece's own, false at first. */
void pool_yield(struct pool *p, size_t seat, bool *yielded);
/* Returns when no piece of that lane waits to be taken. */
void pool_wait_taken(struct pool *p, enum lane lane);

/* run(0 .. pieces - 1), each once, by the caller and the workers that are between two pieces; `hand` is below
 * pool_hands and no two that run at once have the same. 0, or -1 with the first error; the pieces that had not begun
 * are left out. */
int pool_share(struct pool *p, size_t pieces, int (*run)(void *context, size_t piece, size_t hand, struct error *e),
               void *context, struct error *e);
size_t pool_hands(const struct pool *p);

#endif
