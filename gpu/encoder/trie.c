/* See trie.h. Touches nothing else. */
#include "gpu/encoder/trie.h"

#include <stdlib.h>

static void edges_grow(struct trie *trie)
{
    struct trie larger = *trie;
    larger.bits = trie->bits + 1;
    larger.edges = mem_zero((size_t)1 << larger.bits, sizeof(*larger.edges));
    for (size_t i = 0; i < (size_t)1 << trie->bits; i++) {
        uint32_t key = trie->edges[i].key - 1;
        if (trie->edges[i].key != 0) {
            *trie_edge_find(&larger, key >> 8, (unsigned char)(key & 0xFF)) = trie->edges[i];
        }
    }
    free(trie->edges);
    *trie = larger;
}

static uint32_t node_add(struct trie *trie)
{
    if (trie->nodes == trie->capacity) {
        trie->capacity *= 2;
        trie->values = mem_resize(trie->values, trie->capacity * sizeof(*trie->values));
    }
    trie->values[trie->nodes] = TRIE_NONE;
    return trie->nodes++;
}

void trie_open(struct trie *trie)
{
    trie->bits = 8;
    trie->edges = mem_zero((size_t)1 << trie->bits, sizeof(*trie->edges));
    trie->capacity = 128;
    trie->nodes = 0;
    trie->values = mem_alloc(trie->capacity * sizeof(*trie->values));
    node_add(trie); /* the root */
}

void trie_close(struct trie *trie)
{
    free(trie->edges);
    free(trie->values);
}

void trie_insert(struct trie *trie, struct slice string, int32_t value)
{
    uint32_t node = 0;
    for (size_t i = 0; i < string.bytes; i++) {
        if ((size_t)trie->nodes * 2 > (size_t)1 << trie->bits) {
            edges_grow(trie);
        }
        unsigned char byte = (unsigned char)string.data[i];
        struct trie_edge *edge = trie_edge_find(trie, node, byte);
        if (edge->key == 0) {
            edge->key = (node << 8 | byte) + 1;
            edge->child = node_add(trie);
        }
        node = edge->child;
    }
    trie->values[node] = value;
}

uint32_t trie_walk(const struct trie *trie, struct slice string)
{
    uint32_t node = 0;
    for (size_t i = 0; i < string.bytes; i++) {
        node = trie_step(trie, node, (unsigned char)string.data[i]);
        if (node == 0) {
            break;
        }
    }
    return node;
}

int32_t trie_find(const struct trie *trie, struct slice string)
{
    uint32_t node = trie_walk(trie, string);
    return node == 0 ? TRIE_NONE : trie->values[node];
}

size_t trie_longest(const struct trie *trie, uint32_t node, struct slice text, int32_t *value)
{
    size_t longest = 0;
    for (size_t i = 0; i < text.bytes; i++) {
        node = trie_step(trie, node, (unsigned char)text.data[i]);
        if (node == 0) {
            break;
        }
        if (trie->values[node] != TRIE_NONE) {
            *value = trie->values[node];
            longest = i + 1;
        }
    }
    return longest;
}
