/* The lowest contiguous offset of each partition. Offsets are added in rising order, with gaps (markers, compaction),
 * and finish in any order; what may be committed is the offset behind the last of the finished ones at the front. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "consumer/consumer.h"

struct entry {
    int64_t offset;
    bool done;
};

struct track {
    int32_t partition;
    uint64_t epoch;
    struct entry *entries; /* rising offsets; [head, head + count) are not contiguously done */
    size_t head, count, capacity;
    int64_t next; /* what may be committed; -1: nothing yet */
    bool moved;
};

struct offset_tracker {
    struct track *tracks;
    size_t count;
};

struct offset_tracker *offset_tracker_new(void)
{
    return mem_zero(1, sizeof(struct offset_tracker));
}

void offset_tracker_clear(struct offset_tracker *t)
{
    for (size_t i = 0; i < t->count; i++) {
        free(t->tracks[i].entries);
    }
    free(t->tracks);
    *t = (struct offset_tracker){0};
}

void offset_tracker_free(struct offset_tracker *t)
{
    if (t) {
        offset_tracker_clear(t);
        free(t);
    }
}

static struct track *track_find(struct offset_tracker *t, int32_t partition)
{
    for (size_t i = 0; i < t->count; i++) {
        if (t->tracks[i].partition == partition) {
            return &t->tracks[i];
        }
    }
    return NULL;
}

void offset_tracker_add(struct offset_tracker *t, int32_t partition, uint64_t epoch, int64_t offset)
{
    struct track *track = track_find(t, partition);
    if (!track) {
        t->tracks = mem_resize(t->tracks, (t->count + 1) * sizeof *t->tracks);
        track = &t->tracks[t->count++];
        *track = (struct track){.partition = partition, .epoch = epoch, .next = -1};
    }
    if (track->epoch != epoch) { /* another assignment: what was before is nobody's business here */
        track->epoch = epoch;
        track->head = track->count = 0;
        track->next = -1;
        track->moved = false;
    }
    if (track->head + track->count == track->capacity) {
        if (track->count * 2 >= track->capacity) {
            track->capacity = track->capacity ? 2 * track->capacity : 64;
            track->entries = mem_resize(track->entries, track->capacity * sizeof *track->entries);
        }
        memmove(track->entries, track->entries + track->head, track->count * sizeof *track->entries);
        track->head = 0;
    }
    assert(!track->count || track->entries[track->head + track->count - 1].offset < offset);
    track->entries[track->head + track->count++] = (struct entry){offset, false};
}

void offset_tracker_done(struct offset_tracker *t, int32_t partition, uint64_t epoch, int64_t offset)
{
    struct track *track = track_find(t, partition);
    if (!track || track->epoch != epoch) {
        return;
    }
    size_t low = track->head, high = track->head + track->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (track->entries[middle].offset < offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low == track->head + track->count || track->entries[low].offset != offset) {
        return;
    }
    track->entries[low].done = true;
    while (track->count && track->entries[track->head].done) {
        track->next = track->entries[track->head].offset + 1;
        track->moved = true;
        track->head++;
        track->count--;
    }
}

size_t offset_tracker_take(struct offset_tracker *t, struct partition_offset *out, size_t max)
{
    size_t n = 0;
    for (size_t i = 0; i < t->count && n < max; i++) {
        struct track *track = &t->tracks[i];
        if (track->moved) {
            out[n++] = (struct partition_offset){track->partition, track->epoch, track->next};
            track->moved = false;
        }
    }
    return n;
}
