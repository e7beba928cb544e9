/* The trees of a memory's file: the free list, the tree of names, and the eleven that it names. Checked page by page
 * before anybody follows them through the map: by a writer when it opens, which would spread what is wrong, and by
 * memory_verify. A reader's opening checks no more than which of the two meta pages is the newer one. */
#include <stdio.h>

#include "store/internal.h"

struct named_trees {
    struct lmdb_tree trees[DB_COUNT];
    bool there[DB_COUNT];
};

static int named_tree_take(const struct tree_entry *entry, void *context, struct error *e)
{
    struct named_trees *named = context;
    enum db db = 0;
    while (db < DB_COUNT && !slice_equal(entry->key, slice_of(db_name(db)))) {
        db++;
    }
    if (db == DB_COUNT || entry->bytes != sizeof *named->trees) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "the list of databases has an entry \"%.*s\" that it should not have",
                         (int)(entry->key.bytes < 100 ? entry->key.bytes : 100), entry->key.data);
    }
    memcpy(&named->trees[db], entry->data, sizeof *named->trees);
    named->there[db] = true;
    return 0;
}

static int named_trees_walk(struct pages *p, struct named_trees *named, struct error *e)
{
    *named = (struct named_trees){0};
    return tree_walk(p, "the list of databases", &p->meta.main, 0, named_tree_take, named, e);
}

/* ---- the newer of two ---- */

enum shown { SHOWN_NOTHING, SHOWN_COUNTER, SHOWN_UNKNOWN };

/* What a meta page shows of `meta`. */
struct commit {
    enum shown shown;
    uint64_t counter;
};

static int meta_take(const struct tree_entry *entry, void *context, struct error *e)
{
    struct commit *commit = context;
    struct slice value = {(const char *)entry->data, (size_t)entry->bytes};
    struct meta record;
    (void)e;
    bool known = entry->data && meta_stored(entry->key, value, &record);
    commit->shown = known ? SHOWN_COUNTER : SHOWN_UNKNOWN; /* of another format, or damaged */
    commit->counter = known ? record.counter : 0;
    return 0;
}

static struct commit commit_at(const struct pages *p, const struct lmdb_meta *meta)
{
    struct pages at = *p;
    struct named_trees named;
    struct commit commit = {SHOWN_NOTHING, 0};
    at.meta = *meta;
    at.used = at.free = NULL;
    bool whole = named_trees_walk(&at, &named, NULL) == 0 &&
                 (!named.there[DB_META] ||
                  tree_walk(&at, "'meta'", &named.trees[DB_META], db_flags(DB_META), meta_take, &commit, NULL) == 0);
    return whole ? commit : (struct commit){SHOWN_UNKNOWN, 0};
}

int trees_newer_check(const struct pages *p, struct error *e)
{
    bool second = p->metas[1].transaction > p->metas[0].transaction;
    struct pages again;
    struct commit newer = commit_at(p, &p->metas[second]), older = commit_at(p, &p->metas[!second]);
    bool right = newer.shown == SHOWN_UNKNOWN || older.shown != SHOWN_COUNTER ||
                 (newer.shown == SHOWN_COUNTER && newer.counter >= older.counter);
    /* a writer beside us may have written over what was read: then the meta pages have changed */
    if (right || pages_read(p->fd, &again, NULL) || memcmp(again.metas, p->metas, sizeof again.metas) != 0) {
        return 0;
    }
    return error_set(e, ERROR_FATAL, E_CORRUPT,
                     "the memory is damaged: the older of its first pages has the later commit: restore a copy, or "
                     "read the topics again");
}

/* ---- all of them ---- */

struct check {
    void (*report)(const char *line, void *context);
    void *context;
    uint64_t problems;
};

static void check_take(struct check *c, int result, const struct error *fault)
{
    if (result) {
        c->problems++;
        c->report(fault->text, c->context);
    }
}

uint64_t trees_check(struct pages *p, void (*report)(const char *line, void *context), void *context)
{
    struct check c = {report, context, 0};
    struct named_trees named;
    struct error fault = {0};
    pages_track(p);
    check_take(&c, trees_newer_check(p, &fault), &fault);
    check_take(&c, pages_free_walk(p, &fault), &fault);
    int listed = named_trees_walk(p, &named, &fault);
    check_take(&c, listed, &fault);
    for (enum db db = 0; db < DB_COUNT && listed == 0; db++) {
        char name[32];
        snprintf(name, sizeof name, "'%s'", db_name(db));
        int result = named.there[db] ? tree_walk(p, name, &named.trees[db], db_flags(db), NULL, NULL, &fault)
                                     : error_set(&fault, ERROR_FATAL, E_CORRUPT, "the database %s is missing", name);
        check_take(&c, result, &fault);
    }
    pages_untrack(p);
    return c.problems;
}

struct first {
    const struct memory *m;
    struct error *e;
    bool taken;
};

static void first_take(const char *line, void *context)
{
    struct first *first = context;
    if (!first->taken) {
        corrupt(first->m, first->e, "%s", line);
        first->taken = true;
    }
}

int trees_prove(const struct memory *m, struct error *e)
{
    struct pages p;
    struct first first = {m, e, false};
    int fd;
    int rc = mdb_env_get_fd(m->env, &fd);
    if (rc) {
        return memory_error(m, rc, "reading", e);
    }
    if (pages_read(fd, &p, e)) {
        return error_wrap(e, "%s", m->path);
    }
    return trees_check(&p, first_take, &first) ? -1 : 0;
}
