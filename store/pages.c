/* data.mdb page by page, as LMDB 0.9 lays it out (data version 1), read with pread(2) alone: for who must know whether
 * the file holds together before LMDB follows its pointers through the map. Nothing read here is believed before it is
 * checked: each page lies inside the file, is of the kind and the number that it is asked for, its nodes fill it
 * without gaps, its keys ascend and stay within what the page above says, and a tree has the pages, the depth and the
 * entries that its record counts. */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/internal.h"

enum {
    PAGE_BRANCH = 0x01,
    PAGE_LEAF = 0x02,
    PAGE_META = 0x08,
    NODE_HEAD = 8,
    DEPTH_MAX = 32, /* LMDB's own */
    KEY_BYTES_MAX = 511,
    PAGE_BYTES_MIN = 512,
    PAGE_BYTES_MAX = 32768,
    FIRST_PAGE = 2, /* after the two meta pages */
};

#define LMDB_MAGIC 0xBEEFC0DEu

static uint16_t read_16(const unsigned char *at)
{
    uint16_t n;
    memcpy(&n, at, sizeof n);
    return n;
}

static uint64_t read_64(const unsigned char *at)
{
    uint64_t n;
    memcpy(&n, at, sizeof n);
    return n;
}

/* ---- the meta pages ---- */

static bool meta_at(int fd, off_t offset, struct lmdb_meta *out)
{
    unsigned char head[PAGE_HEAD + sizeof *out];
    if (pread(fd, head, sizeof head, offset) != (ssize_t)sizeof head) {
        return false;
    }
    memcpy(out, head + PAGE_HEAD, sizeof *out);
    uint32_t size = out->free.pad;
    return (read_16(head + 10) & PAGE_META) && out->magic == LMDB_MAGIC && out->version == 1 &&
           size >= PAGE_BYTES_MIN && size <= PAGE_BYTES_MAX && !(size & (size - 1));
}

/* Transaction N is written into meta page N & 1, in place of N - 2. A new file has 0 in both, and so has the first one
 * of a copy by LMDB. */
static bool metas_alternate(const struct lmdb_meta *metas)
{
    uint64_t even = metas[0].transaction, odd = metas[1].transaction;
    bool fresh = even == 0 && odd == 0 && metas[0].main.root == NO_PAGE && metas[1].main.root == NO_PAGE;
    return fresh || (even % 2 == 0 && odd % 2 == 1 && (odd > even ? odd - even : even - odd) == 1);
}

int pages_read(int fd, struct pages *out, struct error *e)
{
    struct stat s;
    *out = (struct pages){.fd = fd};
    if (!meta_at(fd, 0, &out->metas[0]) || !meta_at(fd, (off_t)out->metas[0].free.pad, &out->metas[1]) ||
        out->metas[1].free.pad != out->metas[0].free.pad) {
        return error_set(
            e, ERROR_FATAL, E_CORRUPT,
            "the file is not an LMDB database, or its first pages are damaged: restore a copy, or start an "
            "empty memory");
    }
    if (!metas_alternate(out->metas)) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "the memory is damaged: its first pages name transactions %llu and %llu, which cannot follow "
                         "each other: restore a copy, or read the topics again",
                         (unsigned long long)out->metas[0].transaction, (unsigned long long)out->metas[1].transaction);
    }
    if (fstat(fd, &s)) { /* after the meta pages: a writer beside us only ever adds */
        return error_set(e, ERROR_FATAL, E_IO, "%s", strerror(errno));
    }
    out->page_bytes = out->metas[0].free.pad;
    out->in_file = (uint64_t)s.st_size / out->page_bytes;
    out->file_bytes = (uint64_t)s.st_size;
    out->meta = out->metas[out->metas[1].transaction > out->metas[0].transaction];
    return 0;
}

/* ---- which pages are whose ---- */

static bool bit_take(unsigned char *bits, uint64_t at) /* false: it was set */
{
    bool was = bits[at / 8] >> at % 8 & 1;
    bits[at / 8] |= (unsigned char)(1u << at % 8);
    return !was;
}

void pages_track(struct pages *p)
{
    size_t bytes = (size_t)(p->meta.last_page / 8 + 1);
    p->used = mem_zero(bytes, 1);
    p->free = mem_zero(bytes, 1);
}

void pages_untrack(struct pages *p)
{
    free(p->used);
    free(p->free);
    p->used = p->free = NULL;
}

bool page_is_free(const struct pages *p, uint64_t page)
{
    return p->free[page / 8] >> page % 8 & 1;
}

/* ---- a walk through one tree ---- */

struct walk {
    struct pages *pages;
    const char *name;
    const struct lmdb_tree *tree;
    bool integer_keys;
    bool of_trees; /* its values are the records of others */
    tree_entry_each *each;
    void *context;
    uint64_t branch_pages, leaf_pages, overflow_pages, entries;
    unsigned char *buffers[DEPTH_MAX + 1]; /* a page for each level */
};

struct node {
    struct slice key;
    unsigned flags;
    uint64_t low;              /* of a leaf: bytes of the value */
    uint64_t child;            /* of a branch */
    const unsigned char *data; /* of a leaf: the value, or the number of its first page */
};

static int fault(const struct walk *w, uint64_t page, const char *what, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_CORRUPT, "page %llu of %s %s", (unsigned long long)page, w->name, what);
}

static int record_fault(const struct walk *w, const char *what, uint64_t counted, uint64_t stored, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_CORRUPT, "%s has %llu %s, its record counts %llu", w->name,
                     (unsigned long long)counted, what, (unsigned long long)stored);
}

/* The pages from `page` on are inside the file, and belong to nothing else. */
static int pages_take(struct walk *w, uint64_t page, uint64_t count, struct error *e)
{
    const struct pages *p = w->pages;
    uint64_t bound = p->meta.last_page + 1 < p->in_file ? p->meta.last_page + 1 : p->in_file;
    if (page < FIRST_PAGE || page >= bound || count > bound - page) {
        return fault(w, page, "lies outside the file", e);
    }
    for (uint64_t i = page; p->used && i < page + count; i++) {
        if (page_is_free(p, i)) {
            return fault(w, i, "is in use, and listed as free", e);
        }
        if (!bit_take(p->used, i)) {
            return fault(w, i, "is used twice", e);
        }
    }
    return 0;
}

static int big_value_check(struct walk *w, uint64_t page, uint64_t bytes, struct error *e)
{
    const size_t size = w->pages->page_bytes;
    unsigned char head[PAGE_HEAD];
    uint32_t count;
    if (pages_take(w, page, (PAGE_HEAD + bytes + size - 1) / size, e)) {
        return -1;
    }
    if (pread(w->pages->fd, head, sizeof head, (off_t)(page * size)) != (ssize_t)sizeof head) {
        return fault(w, page, "cannot be read", e);
    }
    memcpy(&count, head + 12, sizeof count);
    uint64_t needed = (PAGE_HEAD + bytes + size - 1) / size;
    if (read_64(head) != page || read_16(head + 10) != PAGE_OVERFLOW) {
        return fault(w, page, "is not the page of a value that it should be", e);
    }
    /* more than needed: a shorter value took the place of a longer one in the same transaction */
    if (count < needed || count > w->tree->overflow_pages - w->overflow_pages) {
        return fault(w, page, "counts the pages of its value wrongly", e);
    }
    w->overflow_pages += count;
    return count == needed ? 0 : pages_take(w, page + needed, count - needed, e);
}

/* Reads node i; false, and an empty one, where it does not lie inside the page. */
static bool node_read(const struct walk *w, const unsigned char *p, size_t i, bool branch, struct node *out, size_t *at,
                      size_t *end)
{
    const size_t size = w->pages->page_bytes;
    *at = *end = read_16(p + PAGE_HEAD + 2 * i);
    *out = (struct node){0};
    if (*at % 2 || *at + NODE_HEAD > size) {
        return false;
    }
    const unsigned char *node = p + *at;
    size_t key_bytes = read_16(node + 6);
    uint64_t low = read_16(node) | (uint64_t)read_16(node + 2) << 16;
    *out = (struct node){.key = {(const char *)node + NODE_HEAD, key_bytes},
                         .flags = read_16(node + 4),
                         .low = low,
                         .data = node + NODE_HEAD + key_bytes};
    out->child = low | (uint64_t)out->flags << 32;
    uint64_t bytes = NODE_HEAD + key_bytes + (branch ? 0 : out->flags & NODE_BIG ? sizeof(uint64_t) : low);
    *end = *at + (size_t)(bytes + bytes % 2);
    return bytes <= size && *end <= size;
}

/* The nodes lie side by side from `upper` to the end of the page: each begins where another ends. */
static bool nodes_packed(const struct walk *w, const unsigned char *p, size_t count, bool branch)
{
    const size_t size = w->pages->page_bytes;
    unsigned char starts[PAGE_BYTES_MAX / 2 / 8] = {0};
    size_t lowest = size, sum = 0;
    struct node node;
    size_t at, end;
    for (size_t i = 0; i < count; i++) {
        if (!node_read(w, p, i, branch, &node, &at, &end) || !bit_take(starts, at / 2)) {
            return false;
        }
        lowest = at < lowest ? at : lowest;
        sum += end - at;
    }
    for (size_t i = 0; i < count; i++) {
        node_read(w, p, i, branch, &node, &at, &end);
        if (end < size && bit_take(starts, end / 2)) {
            return false;
        }
    }
    return lowest == read_16(p + 14) && sum == size - lowest;
}

static bool key_possible(const struct walk *w, struct slice key)
{
    return w->integer_keys ? key.bytes == sizeof(uint64_t) : key.bytes >= 1 && key.bytes <= KEY_BYTES_MAX;
}

static int key_order(const struct walk *w, struct slice a, struct slice b)
{
    if (!w->integer_keys) {
        return slice_compare(a, b);
    }
    uint64_t x = read_64((const unsigned char *)a.data), y = read_64((const unsigned char *)b.data);
    return (x > y) - (x < y);
}

/* Keys of the page ascend, and lie from `low` (data NULL: no bound) to below `high`. LMDB never reads the first key of
 * a branch page. */
static bool keys_ascend(const struct walk *w, const unsigned char *p, size_t count, bool branch, struct slice low,
                        struct slice high)
{
    struct slice before = low;
    struct node node;
    size_t at, end;
    for (size_t i = branch; i < count; i++) {
        node_read(w, p, i, branch, &node, &at, &end);
        if (!key_possible(w, node.key)) {
            return false;
        }
        int order = before.data ? key_order(w, before, node.key) : -1;
        if (order > 0 || (order == 0 && (branch || i > 0))) {
            return false;
        }
        before = node.key;
    }
    return !high.data || !before.data || key_order(w, before, high) < 0;
}

static int leaf_check(struct walk *w, uint64_t page, const unsigned char *p, size_t count, struct error *e)
{
    struct node node;
    size_t at, end;
    for (size_t i = 0; i < count; i++) {
        node_read(w, p, i, false, &node, &at, &end);
        struct tree_entry entry = {.key = node.key, .bytes = node.low, .data = node.data};
        if (w->of_trees ? node.flags != NODE_TREE : node.flags & ~(unsigned)NODE_BIG) {
            return fault(w, page, "has an entry of an impossible kind", e);
        }
        if (node.flags & NODE_BIG) {
            entry.data = NULL;
            entry.page = read_64(node.data);
            if (big_value_check(w, entry.page, entry.bytes, e)) {
                return -1;
            }
        }
        if (w->each && w->each(&entry, w->context, e)) {
            return -1;
        }
        w->entries++;
    }
    return 0;
}

static int page_check(struct walk *w, uint64_t page, unsigned depth, struct slice low, struct slice high,
                      struct error *e);

static int children_check(struct walk *w, const unsigned char *p, size_t count, unsigned depth, struct slice low,
                          struct slice high, struct error *e)
{
    struct node node, next;
    size_t at, end;
    for (size_t i = 0; i < count; i++) {
        node_read(w, p, i, true, &node, &at, &end);
        if (i + 1 < count) {
            node_read(w, p, i + 1, true, &next, &at, &end);
        }
        if (page_check(w, node.child, depth + 1, i ? node.key : low, i + 1 < count ? next.key : high, e)) {
            return -1;
        }
    }
    return 0;
}

/* A page at this depth (the root: 1) and all below it. The bounds point into the pages above. */
static int page_check(struct walk *w, uint64_t page, unsigned depth, struct slice low, struct slice high,
                      struct error *e)
{
    const size_t size = w->pages->page_bytes;
    bool branch = depth < w->tree->depth;
    uint64_t *pages = branch ? &w->branch_pages : &w->leaf_pages;
    if (++*pages > (branch ? w->tree->branch_pages : w->tree->leaf_pages)) {
        return fault(w, page, "is more than the tree's record counts", e);
    }
    if (pages_take(w, page, 1, e)) {
        return -1;
    }
    if (w->pages->step) {
        w->pages->step(w->pages->step_context);
    }
    w->buffers[depth] = w->buffers[depth] ? w->buffers[depth] : mem_alloc(size);
    unsigned char *p = w->buffers[depth];
    if (pread(w->pages->fd, p, size, (off_t)(page * size)) != (ssize_t)size) {
        return fault(w, page, "cannot be read", e);
    }
    size_t lower = read_16(p + 12), upper = read_16(p + 14), count = (lower - PAGE_HEAD) / 2;
    if (read_64(p) != page || read_16(p + 10) != (branch ? PAGE_BRANCH : PAGE_LEAF)) {
        return fault(w, page, "is not the page that it should be", e);
    }
    if (lower < PAGE_HEAD || lower % 2 || lower > upper || upper > size || count < (branch ? 2 : 1) ||
        !nodes_packed(w, p, count, branch)) {
        return fault(w, page, "is not as full as it says", e);
    }
    if (!keys_ascend(w, p, count, branch, low, high)) {
        return fault(w, page, "has keys out of order", e);
    }
    return branch ? children_check(w, p, count, depth, low, high, e) : leaf_check(w, page, p, count, e);
}

static int record_check(const struct walk *w, unsigned flags, struct error *e)
{
    const struct lmdb_tree *t = w->tree;
    const uint64_t most = w->pages->meta.last_page;
    if (t->flags != flags) {
        return error_set(e, ERROR_FATAL, E_CORRUPT, "%s has the flags %#x, not %#x", w->name, (unsigned)t->flags,
                         flags);
    }
    if (t->branch_pages > most || t->leaf_pages > most || t->overflow_pages > most) {
        return error_set(e, ERROR_FATAL, E_CORRUPT, "%s counts more pages than there are", w->name);
    }
    if (t->root == NO_PAGE ? t->depth != 0 : t->depth < 1 || t->depth > DEPTH_MAX) {
        return error_set(e, ERROR_FATAL, E_CORRUPT, "%s cannot be %u pages deep", w->name, (unsigned)t->depth);
    }
    return 0;
}

int tree_walk(struct pages *pages, const char *name, const struct lmdb_tree *tree, unsigned flags,
              tree_entry_each *each, void *context, struct error *e)
{
    const struct slice unbounded = {0};
    struct walk w = {.pages = pages,
                     .name = name,
                     .tree = tree,
                     .integer_keys = flags & MDB_INTEGERKEY,
                     .of_trees = tree == &pages->meta.main,
                     .each = each,
                     .context = context};
    int result = record_check(&w, flags, e);
    if (result == 0 && tree->root != NO_PAGE) {
        result = page_check(&w, tree->root, 1, unbounded, unbounded, e);
    }
    const struct {
        const char *what;
        uint64_t counted, stored;
    } sums[] = {{"branch pages", w.branch_pages, tree->branch_pages},
                {"leaf pages", w.leaf_pages, tree->leaf_pages},
                {"pages of values", w.overflow_pages, tree->overflow_pages},
                {"entries", w.entries, tree->entries}};
    for (size_t i = 0; i < sizeof sums / sizeof *sums && result == 0; i++) {
        if (sums[i].counted != sums[i].stored) {
            result = record_fault(&w, sums[i].what, sums[i].counted, sums[i].stored, e);
        }
    }
    for (size_t i = 0; i <= DEPTH_MAX; i++) {
        free(w.buffers[i]);
    }
    return result;
}

/* ---- the free list ---- */

/* A value of the free list: a count, then page numbers, which descend. */
static int free_pages_mark(struct pages *p, const unsigned char *list, uint64_t bytes, struct error *e)
{
    uint64_t count = bytes >= 8 ? read_64(list) : UINT64_MAX, before = p->meta.last_page + 1;
    if (count > bytes / 8 - 1) {
        return error_set(e, ERROR_FATAL, E_CORRUPT, "an entry of the free list is cut off");
    }
    for (uint64_t i = 1; i <= count; i++) {
        uint64_t page = read_64(list + 8 * i);
        if (page < FIRST_PAGE || page >= before) {
            return error_set(e, ERROR_FATAL, E_CORRUPT, "the free list names page %llu out of range or order",
                             (unsigned long long)page);
        }
        before = page;
        if ((p->used[page / 8] >> page % 8 & 1) || !bit_take(p->free, page)) {
            return error_set(e, ERROR_FATAL, E_CORRUPT, "page %llu is listed as free twice, or is also in use",
                             (unsigned long long)page);
        }
    }
    return 0;
}

static int free_entry_mark(const struct tree_entry *entry, void *context, struct error *e)
{
    struct pages *p = context;
    if (read_64((const unsigned char *)entry->key.data) > p->meta.transaction) {
        return error_set(e, ERROR_FATAL, E_CORRUPT, "an entry of the free list does not belong to this file");
    }
    if (entry->data) {
        return free_pages_mark(p, entry->data, entry->bytes, e);
    }
    unsigned char *value = mem_alloc((size_t)entry->bytes); /* its pages were found in the file */
    int result = -1;
    if (pread(p->fd, value, (size_t)entry->bytes, (off_t)(entry->page * p->page_bytes + PAGE_HEAD)) ==
        (ssize_t)entry->bytes) {
        result = free_pages_mark(p, value, entry->bytes, e);
    } else {
        error_set(e, ERROR_FATAL, E_CORRUPT, "page %llu of the free list cannot be read",
                  (unsigned long long)entry->page);
    }
    free(value);
    return result;
}

int pages_free_walk(struct pages *p, struct error *e)
{
    unsigned flags = MDB_INTEGERKEY | (p->meta.free.flags & MDB_NOSUBDIR); /* of the environment that made the file */
    return tree_walk(p, "the free list", &p->meta.free, flags, free_entry_mark, p, e);
}
