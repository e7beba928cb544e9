/* A hash table from 64-bit numbers to pointers: open addressing, never shrinks, no removal. Touches memory only. */
#include <stdlib.h>

#include "store/internal.h"

static size_t place(const struct table *t, uint64_t key)
{
    size_t i = (size_t)((key * 0x9E3779B97F4A7C15u) >> 20) & (t->capacity - 1);
    while (t->values[i] && t->keys[i] != key) {
        i = (i + 1) & (t->capacity - 1);
    }
    return i;
}

void *table_get(const struct table *t, uint64_t key)
{
    return t->capacity ? t->values[place(t, key)] : NULL;
}

static void grow(struct table *t)
{
    struct table old = *t;
    *t = (struct table){.capacity = old.capacity ? old.capacity * 2 : 64, .count = old.count};
    t->keys = mem_zero(t->capacity, sizeof *t->keys);
    t->values = mem_zero(t->capacity, sizeof *t->values);
    for (size_t i = 0; i < old.capacity; i++) {
        if (old.values[i]) {
            size_t to = place(t, old.keys[i]);
            t->keys[to] = old.keys[i];
            t->values[to] = old.values[i];
        }
    }
    table_free(&old);
}

void table_put(struct table *t, uint64_t key, void *value)
{
    if (t->count * 2 >= t->capacity) {
        grow(t);
    }
    size_t i = place(t, key);
    t->count += t->values[i] ? 0 : 1;
    t->keys[i] = key;
    t->values[i] = value;
}

void table_free(struct table *t)
{
    free(t->keys);
    free(t->values);
    *t = (struct table){0};
}
