/* Where NCCL's ranks in different processes meet. */
#ifndef EMULATED_ROOM_H
#define EMULATED_ROOM_H

#include <stddef.h>
#include <stdint.h>

namespace emulated
{

enum { ROOM_RANKS = 16, PATIENCE_SECONDS = 60 };

static const size_t ROOM_CHUNK = 256 * 1024; /* bytes */

/* What a rank calls, for the others to compare. */
struct room_call {
    int32_t operation, type, reduction, root;
    uint64_t count;
};

struct room;

struct room *room_open(const char *name, int ranks);
void room_close(struct room *r); /* NULL is fine */
void room_join(struct room *r, int rank);
bool room_full(struct room *r);                   /* waits for all ranks */
bool room_has(const struct room *r, int rank);    /* whether it is in this process */
bool room_meet(struct room *r, const char *what); /* all processes, for all their ranks; false: aborted */
struct room_call *room_call_of(struct room *r, int rank);
char *room_chunk(struct room *r, int rank); /* [ROOM_CHUNK] */
void room_abort(struct room *r);
bool room_aborted(const struct room *r);

} // namespace emulated

#endif
