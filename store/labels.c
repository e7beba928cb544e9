/* Labels inside a write transaction: found by name or id, counted, dropped once neither defined nor named by an
 * instance. Each is read once, edited in memory and written once at the commit: a batch names the frequent ones again
 * and again. */
#include "store/internal.h"

static struct slice copied(struct transaction *t, struct slice s)
{
    return s.data ? arena_slice(&t->arena, s) : s;
}

static void edit_enter(struct transaction *t, struct label_edit *l)
{
    uint64_t hash = hash64(l->name.data, l->name.bytes);
    l->same_hash = table_get(&t->labels, hash);
    table_put(&t->labels, hash, l);
    l->next = t->label_list;
    t->label_list = l;
}

/* Reads label `id` into a new edit. */
static int edit_load(struct transaction *t, uint64_t id, struct label_edit **out, struct error *e)
{
    struct slice value, name, topic, text;
    struct label_head head;
    int found = entry_get(t->m, t->txn, DB_LABELS, key_of(&id), sizeof head, &value, e);
    if (found <= 0) {
        return found ? -1 : corrupt(t->m, e, "label %llu is missing in 'labels'", (unsigned long long)id);
    }
    if (label_decode(t->m, value, &head, &name, &topic, &text, e)) {
        return -1;
    }
    struct label_edit *l = arena_alloc(&t->arena, sizeof *l);
    *l = (struct label_edit){.head = head, .stored = true};
    l->name = copied(t, name);
    l->topic = copied(t, topic);
    l->text = copied(t, text);
    edit_enter(t, l);
    table_put(&t->label_ids, id, l);
    *out = l;
    return 0;
}

/* The edit of this name that the transaction holds, dropped or not. */
static struct label_edit *edit_find(const struct transaction *t, struct slice name)
{
    struct label_edit *l = table_get(&t->labels, hash64(name.data, name.bytes));
    while (l && !slice_equal(l->name, name)) {
        l = l->same_hash;
    }
    return l;
}

int label_find(struct transaction *t, struct slice name, struct label_edit **out, struct error *e)
{
    *out = edit_find(t, name);
    if (*out) {
        return !(*out)->gone;
    }
    struct slice value;
    struct number_value number;
    int found = entry_get(t->m, t->txn, DB_LABEL_NAMES, name, sizeof number, &value, e);
    if (found <= 0) {
        return found;
    }
    memcpy(&number, value.data, sizeof number);
    return edit_load(t, number.number, out, e) ? -1 : 1;
}

int label_find_or_add(struct transaction *t, struct slice name, struct label_edit **out, struct error *e)
{
    int found = label_find(t, name, out, e);
    if (found) {
        return found < 0 ? -1 : 0;
    }
    uint64_t id;
    int reused = number_take(t, FREE_LABEL_ID, &id, e);
    if (reused < 0) {
        return -1;
    }
    if (!reused) {
        if (t->meta.label_bound > UINT32_MAX) {
            return error_set(e, ERROR_FATAL, E_INTERNAL, "%s: no label ids are left", t->m->path);
        }
        id = t->meta.label_bound++;
    }
    struct label_edit *l = *out; /* dropped earlier in this transaction, or none */
    if (!l) {
        l = arena_alloc(&t->arena, sizeof *l);
        *l = (struct label_edit){.name = copied(t, name)};
        edit_enter(t, l);
    }
    l->head = (struct label_head){.slot = NO_SLOT, .id = (uint32_t)id, .name_bytes = (uint32_t)name.bytes};
    l->topic = l->text = (struct slice){0};
    l->stored = l->gone = false;
    l->changed = true;
    table_put(&t->label_ids, id, l);
    t->meta.labels++;
    *out = l;
    return 0;
}

int label_by_id(struct transaction *t, uint32_t id, struct label_edit **out, struct error *e)
{
    *out = table_get(&t->label_ids, id);
    return *out ? 0 : edit_load(t, id, out, e);
}

int label_drop_if_idle(struct transaction *t, struct label_edit *l, struct error *e)
{
    if (l->gone || label_defined(l) || l->head.instances) {
        return 0;
    }
    uint64_t id = l->head.id;
    if (l->stored && (entry_delete(t->m, t->txn, DB_LABELS, key_of(&id), e) < 0 ||
                      entry_delete(t->m, t->txn, DB_LABEL_NAMES, l->name, e) < 0)) {
        return -1;
    }
    l->gone = true;
    l->stored = l->changed = false;
    t->meta.labels--;
    return number_release(t, FREE_LABEL_ID, id, e);
}

static int edit_flush(struct transaction *t, struct label_edit *l, struct error *e)
{
    uint64_t id = l->head.id;
    struct buffer *out = &t->scratch;
    l->head.topic_bytes = (uint32_t)l->topic.bytes;
    l->head.text_bytes = (uint32_t)l->text.bytes;
    l->head.has_text = l->text.data ? 1 : 0;
    buffer_clear(out);
    buffer_append(out, &l->head, sizeof l->head);
    buffer_append(out, l->name.data, l->name.bytes);
    buffer_append(out, l->topic.data, l->topic.bytes);
    buffer_append(out, l->text.data, l->text.bytes);
    if (entry_put(t->m, t->txn, DB_LABELS, key_of(&id), out->data, out->bytes, e)) {
        return -1;
    }
    struct number_value number = {.number = id};
    if (!l->stored && entry_put(t->m, t->txn, DB_LABEL_NAMES, l->name, &number, sizeof number, e)) {
        return -1;
    }
    l->stored = true;
    l->changed = false;
    return 0;
}

int labels_flush(struct transaction *t, struct error *e)
{
    for (struct label_edit *l = t->label_list; l; l = l->next) {
        if (l->changed && edit_flush(t, l, e)) {
            return -1;
        }
    }
    return 0;
}
