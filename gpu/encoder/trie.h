/* A set of byte strings, each with a number, walked byte by byte. Room-internal, for the tokenizer. */
#ifndef ENGRAM_GPU_ENCODER_TRIE_H
#define ENGRAM_GPU_ENCODER_TRIE_H

#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"

#define TRIE_BYTES_MAX (16U << 20) /* of all strings together: a node number has 24 bits */
#define TRIE_NONE (-1)

/* One step, in an open hash table: from a node by a byte to a node. */
struct trie_edge {
    uint32_t key; /* node << 8 | byte, plus 1; 0: empty */
    uint32_t child;
};

struct trie {
    struct trie_edge *edges; /* [1 << bits] */
    unsigned bits;
    int32_t *values; /* [nodes]: of the string that ends here, or TRIE_NONE */
    uint32_t nodes;  /* the root is node 0 */
    uint32_t capacity;
};

void trie_open(struct trie *trie);
void trie_close(struct trie *trie); /* also of one that is all zeroes */

/* value is at least 0. A string that is there already takes the new value. */
void trie_insert(struct trie *trie, struct slice string, int32_t value);

/* The node that the string leads to; 0: none (or the string is empty). */
uint32_t trie_walk(const struct trie *trie, struct slice string);

/* The string's value, TRIE_NONE where it is not in the set. The empty string never is. */
int32_t trie_find(const struct trie *trie, struct slice string);

/* The longest way from the node along the front of the text that ends a string: its bytes and the string's value; 0
 * where there is none. */
size_t trie_longest(const struct trie *trie, uint32_t node, struct slice text, int32_t *value);

/* The edge of that key, or the empty place where it would be. */
static inline struct trie_edge *trie_edge_find(const struct trie *trie, uint32_t node, unsigned char byte)
{
    uint32_t key = (node << 8 | byte) + 1;
    size_t mask = ((size_t)1 << trie->bits) - 1;
    size_t place = (size_t)((key * 0x9E3779B97F4A7C15ULL) >> (64 - trie->bits));
    while (trie->edges[place].key != 0 && trie->edges[place].key != key) {
        place = (place + 1) & mask;
    }
    return &trie->edges[place];
}

/* 0: no such step (the root is nobody's child). */
static inline uint32_t trie_step(const struct trie *trie, uint32_t node, unsigned char byte)
{
    return trie_edge_find(trie, node, byte)->child;
}

#endif
