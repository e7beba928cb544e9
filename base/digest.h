/* Checksums and digests (XXH3, seed 0 where none is given). */
#ifndef ENGRAM_BASE_DIGEST_H
#define ENGRAM_BASE_DIGEST_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash64(const void *data, size_t bytes); /* XXH3-64 */
uint64_t hash64_seeded(const void *data, size_t bytes, uint64_t seed);

/* A number modulo 2^128; a sum of XXH3-128 hashes names a set whatever the order of its members. */
struct digest {
    uint64_t high;
    uint64_t low;
};

struct digest digest_of(const void *data, size_t bytes); /* XXH3-128 */
struct digest digest_add(struct digest a, struct digest b);
struct digest digest_subtract(struct digest a, struct digest b);
void digest_hex(struct digest d, char out[33]); /* big-endian, 32 hex digits and a NUL */

#endif
