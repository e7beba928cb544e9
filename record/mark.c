/* A record's mark: what is remembered of it to know it again. */
#include <string.h>

#include "record/record.h"

/* Both are hashed apart, so that no byte can move from one to the other; a null is no hash at all. */
struct record_mark record_mark_of(int64_t offset, int64_t time_ms, struct slice key, struct slice value)
{
    struct digest k = key.data ? digest_of(key.data, key.bytes) : (struct digest){0};
    struct digest v = value.data ? digest_of(value.data, value.bytes) : (struct digest){0};
    const uint64_t both[] = {key.data != NULL, k.high, k.low, value.data != NULL, v.high, v.low};
    return (struct record_mark){.offset = offset, .time_ms = time_ms, .hash = digest_of(both, sizeof both)};
}

bool record_mark_known(const struct record_mark *m)
{
    return m->hash.high != 0 || m->hash.low != 0;
}

bool record_mark_equal(const struct record_mark *a, const struct record_mark *b)
{
    return a->offset == b->offset && a->time_ms == b->time_ms && a->hash.high == b->hash.high &&
           a->hash.low == b->hash.low;
}

bool topic_id_known(const unsigned char id[TOPIC_ID_BYTES])
{
    static const unsigned char unknown[TOPIC_ID_BYTES];
    return memcmp(id, unknown, sizeof unknown) != 0;
}
