/* Counts by label name, for the evaluation's counts of each label: a hash table by open addressing that only grows. By
 * name and not by the memory's label id, since a gold label may be one that the memory does not know. */
#include <stdlib.h>
#include <string.h>

#include "base/digest.h"
#include "engine/internal.h"

enum { PLACES_FIRST = 1024 };

/* The place of that name, or the free one where it belongs. */
static uint32_t *place_find(const struct label_counts *t, struct slice name)
{
    size_t at = hash64(name.data, name.bytes) & t->mask;
    while (t->places[at] && !slice_equal(t->entries[t->places[at] - 1].name, name)) {
        at = (at + 1) & t->mask;
    }
    return &t->places[at];
}

static void places_grow(struct label_counts *t)
{
    size_t places = t->places ? 2 * (t->mask + 1) : PLACES_FIRST;
    free(t->places);
    t->places = mem_zero(places, sizeof *t->places);
    t->entries = mem_resize(t->entries, places / 2 * sizeof *t->entries);
    t->mask = places - 1;
    for (size_t i = 0; i < t->count; i++) {
        *place_find(t, t->entries[i].name) = (uint32_t)i + 1;
    }
}

struct evaluated_label *label_counts_of(struct label_counts *t, struct slice name)
{
    if (!t->places || t->count == (t->mask + 1) / 2) {
        places_grow(t);
    }
    uint32_t *place = place_find(t, name);
    if (!*place) {
        t->entries[t->count++] = (struct evaluated_label){.name = arena_slice(&t->names, name)};
        *place = (uint32_t)t->count;
    }
    return &t->entries[*place - 1];
}

static int by_name(const void *a, const void *b)
{
    return slice_compare((*(const struct evaluated_label *const *)a)->name,
                         (*(const struct evaluated_label *const *)b)->name);
}

const struct evaluated_label **label_counts_sorted(const struct label_counts *t)
{
    const struct evaluated_label **sorted = mem_alloc(t->count * sizeof *sorted);
    for (size_t i = 0; i < t->count; i++) {
        sorted[i] = &t->entries[i];
    }
    if (t->count) {
        qsort(sorted, t->count, sizeof *sorted, by_name);
    }
    return sorted;
}

void label_counts_free(struct label_counts *t)
{
    free(t->places);
    free(t->entries);
    arena_free(&t->names);
}
