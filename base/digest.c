/* Checksums and digests: see digest.h. */
#include "base/digest.h"

#include <inttypes.h>
#include <stdio.h>
#include <xxhash.h>

uint64_t hash64(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

uint64_t hash64_seeded(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, bytes, seed);
}

struct digest digest_of(const void *data, size_t bytes)
{
    XXH128_hash_t h = XXH3_128bits(data, bytes);
    return (struct digest){h.high64, h.low64};
}

struct digest digest_add(struct digest a, struct digest b)
{
    uint64_t low = a.low + b.low;
    return (struct digest){a.high + b.high + (low < a.low), low};
}

struct digest digest_subtract(struct digest a, struct digest b)
{
    return (struct digest){a.high - b.high - (a.low < b.low), a.low - b.low};
}

void digest_hex(struct digest d, char out[33])
{
    snprintf(out, 33, "%016" PRIx64 "%016" PRIx64, d.high, d.low);
}
