/* Whose slot a hit is in. Memories of different processes hold the same keys in different slots, so hits travel by the
 * hashes of their names, and each process looks up its own slots here: one table of all its keys, those on other
 * processes' GPUs too. */
#include <stdlib.h>

#include "gpu/cuda/group.h"

static size_t name_place(const struct names *n, uint64_t tie, uint32_t kind)
{
    size_t i = (size_t)(tie ^ kind * 0x9E3779B97F4A7C15U) & n->mask;
    while (n->places[i].kind && (n->places[i].kind != kind || n->places[i].tie != tie)) {
        i = (i + 1) & n->mask;
    }
    return i;
}

static bool names_grow(struct names *n, size_t more)
{
    struct names bigger = {};
    if (n->places && 2 * (n->used + more) <= n->mask) {
        return true;
    }
    bigger.mask = 1023;
    while (bigger.mask < 4 * (n->count + more)) {
        bigger.mask = 2 * bigger.mask + 1;
    }
    bigger.places = (struct name *)calloc(bigger.mask + 1, sizeof *bigger.places);
    if (!bigger.places) {
        return false;
    }
    for (size_t i = 0; n->places && i <= n->mask; i++) {
        const struct name *old = &n->places[i];
        if (old->kind && old->kind != GONE) {
            bigger.places[name_place(&bigger, old->tie, old->kind)] = *old;
            bigger.count++;
        }
    }
    bigger.used = bigger.count;
    free(n->places);
    *n = bigger;
    return true;
}

void group_names_add(struct group *g, const struct keys_view *view, size_t place, struct mirrored *m)
{
    const struct keys_block *b = &view->blocks[place];
    struct names *n = &g->names;
    m->names = (uint64_t *)calloc(b->rows, sizeof *m->names);
    if (!m->names || !names_grow(n, b->rows)) {
        host_of(g)->log_warn(
            "out of memory for the names of %u keys: until a restart, hits of them that other ranks find are left out",
            b->rows);
        return;
    }
    for (uint32_t r = 0; r < b->rows; r++) {
        if (b->candidate[r]) {
            const size_t i = name_place(n, b->ties[r], b->kind);
            n->count += n->places[i].kind == 0;
            n->used += n->places[i].kind == 0;
            n->places[i] = {b->ties[r], b->first_slot + r, b->kind, (uint32_t)place};
            m->names[r] = b->ties[r];
        }
    }
}

void group_names_remove(struct group *g, struct mirrored *m)
{
    for (uint32_t r = 0; m->names && r < m->rows; r++) {
        const size_t i = name_place(&g->names, m->names[r], m->kind);
        if (g->names.places[i].kind == m->kind && g->names.places[i].slot == m->first_slot + r) {
            g->names.places[i].kind = GONE; /* the key may already be elsewhere: then its slot is another */
            g->names.count--;
        }
    }
    free(m->names);
    m->names = NULL;
}

/* An earlier view than the names are of may have another key in that slot. Mostly it has the block in the same place.
 */
static bool view_has(const struct keys_view *view, const struct name *name)
{
    const struct keys_block *b = name->place < view->count ? &view->blocks[name->place] : view->blocks;
    for (size_t i = 0; i < view->count && (name->slot < b->first_slot || name->slot - b->first_slot >= b->rows); i++) {
        b = &view->blocks[i];
    }
    if (view->count == 0 || name->slot < b->first_slot || name->slot - b->first_slot >= b->rows) {
        return false;
    }
    const size_t r = (size_t)(name->slot - b->first_slot);
    return b->kind == name->kind && b->ties[r] == name->tie && b->candidate[r];
}

uint32_t group_name(struct group *g, const struct keys_view *view, struct keys_hit *hits, uint32_t count)
{
    const bool same = g->keys->any && g->keys->version == view->version;
    uint32_t left = 0;
    for (uint32_t i = 0; i < count && g->names.places; i++) {
        const struct name *name = &g->names.places[name_place(&g->names, hits[i].tie, hits[i].kind)];
        if (name->kind == hits[i].kind && (same || view_has(view, name))) {
            hits[left] = hits[i];
            hits[left++].slot = name->slot;
        }
    }
    return left;
}
