/* What the readers of the several forms of data files share: naming a bad line, texts within the record's limits, label
 * names in order, and which names were met before. See data_forms.h. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "cli/data_forms.h"

void data_bad_at(struct data_file *f, const char *path, size_t number, const struct error *e)
{
    f->bad++;
    if (f->progress) {
        progress_clear(f->progress);
    }
    cli_complain(f->command, "%s:%zu: %s", strcmp(path, "-") == 0 ? "standard input" : path, number, e->text);
}

int data_text(struct slice text, const char *what, struct arena *arena, struct slice *out, struct error *e)
{
    size_t valid = utf8_valid_prefix(text.data, text.bytes);
    const char *nul = text.bytes ? memchr(text.data, '\0', text.bytes) : NULL;
    if (valid < text.bytes) {
        return error_set(e, ERROR_POISON, E_UTF8, "%s is not UTF-8 at byte %zu", what, valid);
    }
    if (nul) {
        return error_set(e, ERROR_POISON, E_NUL, "%s has a NUL character at byte %zu", what, (size_t)(nul - text.data));
    }
    text.bytes = utf8_cut(text.data, text.bytes, RECORD_TEXT_BYTES_MAX);
    *out = arena_slice(arena, text);
    return 0;
}

void data_names_sort(struct slice *names, size_t *count)
{
    size_t kept = 0;
    slices_sort(names, *count);
    for (size_t i = 0; i < *count; i++) {
        if (kept == 0 || !slice_equal(names[kept - 1], names[i])) {
            names[kept++] = names[i];
        }
    }
    *count = kept;
}

static void name_set_grow(struct name_set *s)
{
    size_t larger = s->slots_count ? 2 * s->slots_count : 1024;
    struct name_slot *slots = mem_zero(larger, sizeof *slots);
    for (size_t i = 0; i < s->slots_count; i++) {
        if (s->slots[i].number) {
            size_t at = s->slots[i].digest.low & (larger - 1);
            while (slots[at].number) {
                at = (at + 1) & (larger - 1);
            }
            slots[at] = s->slots[i];
        }
    }
    free(s->slots);
    s->slots = slots;
    s->slots_count = larger;
}

size_t name_set_number(struct name_set *s, struct slice name, bool *fresh)
{
    struct digest digest = digest_of(name.data, name.bytes);
    if (s->count >= s->slots_count / 4 * 3) {
        name_set_grow(s);
    }
    size_t at = digest.low & (s->slots_count - 1);
    while (s->slots[at].number && (s->slots[at].digest.low != digest.low || s->slots[at].digest.high != digest.high)) {
        at = (at + 1) & (s->slots_count - 1);
    }
    *fresh = s->slots[at].number == 0;
    if (*fresh) {
        s->slots[at] = (struct name_slot){digest, ++s->count};
    }
    return s->slots[at].number - 1;
}

void name_set_free(struct name_set *s)
{
    free(s->slots);
    *s = (struct name_set){0};
}
