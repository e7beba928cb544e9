/* data.mdb before it is mapped: does the file reach the last page that its newest meta page counts as used? LMDB does
 * not ask, and a missing page is a SIGBUS later. Reads the file only, with pread(2). What surprises: a sound file may
 * lack pages at its end, for LMDB never writes pages that one transaction both took and gave back; then all of them
 * must stand in the free list, which is a B-tree in the same file. Beside a running writer all this can change under
 * our hands, so what does not fit is read again before it is believed. And the file that lies beside it while a copy is
 * made. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/internal.h"

enum {
    PAGE_HEAD = 16,
    PAGE_BRANCH = 0x01,
    PAGE_LEAF = 0x02,
    PAGE_OVERFLOW = 0x04,
    PAGE_META = 0x08,
    NODE_HEAD = 8,
    NODE_BIG = 0x01,
    DEPTH_MAX = 32,
    PAGE_BYTES_MIN = 512,
    PAGE_BYTES_MAX = 65536,
    TRIES = 5,
};

#define META_MAGIC_LMDB 0xBEEFC0DEu
#define NO_PAGE UINT64_MAX

/* A meta page behind its page head (LMDB 0.9, data version 1). */
struct lmdb_tree {
    uint32_t pad; /* of the first tree: the page size */
    uint16_t flags, depth;
    uint64_t branch_pages, leaf_pages, overflow_pages, entries, root;
};
struct lmdb_meta {
    uint32_t magic, version;
    uint64_t address, map_size;
    struct lmdb_tree free, main;
    uint64_t last_page, transaction;
};
_Static_assert(sizeof(struct lmdb_meta) == 136, "as LMDB writes it");

struct data_file {
    int fd;
    size_t page_bytes;
    uint64_t pages; /* whole pages that the file has */
    struct lmdb_meta meta;
    unsigned char *is_free; /* a bit for each missing page, from `pages` on */
};

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

static bool page_read(const struct data_file *f, uint64_t page, unsigned char *out, size_t bytes)
{
    return page < f->pages && pread(f->fd, out, bytes, (off_t)(page * f->page_bytes)) == (ssize_t)bytes;
}

static bool meta_at(int fd, off_t offset, struct lmdb_meta *out, size_t *page_bytes)
{
    unsigned char head[PAGE_HEAD + sizeof *out];
    if (pread(fd, head, sizeof head, offset) != (ssize_t)sizeof head) {
        return false;
    }
    memcpy(out, head + PAGE_HEAD, sizeof *out);
    *page_bytes = out->free.pad;
    return (read_16(head + 10) & PAGE_META) && out->magic == META_MAGIC_LMDB && out->version == 1 &&
           *page_bytes >= PAGE_BYTES_MIN && *page_bytes <= PAGE_BYTES_MAX && !(*page_bytes & (*page_bytes - 1));
}

/* The newer of the two meta pages, as LMDB chooses. */
static bool meta_newest(int fd, struct lmdb_meta *out, size_t *page_bytes)
{
    struct lmdb_meta second;
    size_t second_bytes;
    if (!meta_at(fd, 0, out, page_bytes) || !meta_at(fd, (off_t)*page_bytes, &second, &second_bytes) ||
        second_bytes != *page_bytes) {
        return false;
    }
    if (second.transaction > out->transaction) {
        *out = second;
    }
    return true;
}

/* A value of the free list: a count, then page numbers. */
static bool free_list_mark(const struct data_file *f, const unsigned char *list, size_t bytes)
{
    uint64_t count = bytes >= 8 ? read_64(list) : UINT64_MAX;
    if (count > bytes / 8 - 1) {
        return false;
    }
    for (uint64_t i = 1; i <= count; i++) {
        uint64_t page = read_64(list + 8 * i);
        if (page >= f->pages && page <= f->meta.last_page) {
            uint64_t bit = page - f->pages;
            f->is_free[bit / 8] |= (unsigned char)(1u << bit % 8);
        }
    }
    return true;
}

static bool big_value_mark(const struct data_file *f, uint64_t page, size_t bytes)
{
    size_t pages = (PAGE_HEAD + bytes + f->page_bytes - 1) / f->page_bytes;
    if (page >= f->pages || pages > f->pages - page) {
        return false;
    }
    unsigned char *value = mem_alloc(PAGE_HEAD + bytes);
    bool whole = page_read(f, page, value, PAGE_HEAD + bytes) && (read_16(value + 10) & PAGE_OVERFLOW) &&
                 free_list_mark(f, value + PAGE_HEAD, bytes);
    free(value);
    return whole;
}

static bool free_tree_walk(const struct data_file *f, uint64_t page, int depth)
{
    bool whole = false;
    unsigned char *p = mem_alloc(f->page_bytes);
    if (depth > DEPTH_MAX || !page_read(f, page, p, f->page_bytes) || read_64(p) != page) {
        goto done;
    }
    unsigned flags = read_16(p + 10);
    size_t lower = read_16(p + 12);
    if (!(flags & (PAGE_BRANCH | PAGE_LEAF)) || lower < PAGE_HEAD || lower > f->page_bytes) {
        goto done;
    }
    for (size_t i = 0; i < (lower - PAGE_HEAD) / 2; i++) {
        size_t at = read_16(p + PAGE_HEAD + 2 * i);
        if (at + NODE_HEAD > f->page_bytes) {
            goto done;
        }
        const unsigned char *node = p + at;
        uint64_t low = read_16(node) | (uint64_t)read_16(node + 2) << 16;
        unsigned node_flags = read_16(node + 4);
        size_t data_at = at + NODE_HEAD + read_16(node + 6);
        bool good;
        if (flags & PAGE_BRANCH) {
            good = free_tree_walk(f, low | (uint64_t)node_flags << 32, depth + 1);
        } else if (node_flags & NODE_BIG) {
            good = data_at + 8 <= f->page_bytes && big_value_mark(f, read_64(p + data_at), low);
        } else {
            good = data_at + low <= f->page_bytes && free_list_mark(f, p + data_at, low);
        }
        if (!good) {
            goto done;
        }
    }
    whole = true;
done:
    free(p);
    return whole;
}

/* Are all pages behind the file's end free? */
static bool missing_are_free(struct data_file *f)
{
    uint64_t missing = f->meta.last_page + 1 - f->pages;
    if (f->meta.free.root == NO_PAGE || missing / 8 > f->pages * f->page_bytes) {
        return false; /* the list itself must fit into the file: 8 bytes a page */
    }
    f->is_free = mem_zero((size_t)(missing / 8 + 1), 1);
    bool all = free_tree_walk(f, f->meta.free.root, 0);
    for (uint64_t i = 0; all && i < missing; i++) {
        all = f->is_free[i / 8] & 1u << i % 8;
    }
    free(f->is_free);
    f->is_free = NULL;
    return all;
}

static int check_once(const char *path, int fd, uint64_t *bytes_in_use, struct error *e)
{
    struct data_file f = {.fd = fd};
    struct stat s;
    if (!meta_newest(fd, &f.meta, &f.page_bytes)) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s: the file is no LMDB database, or its first pages are damaged: restore a copy, or start "
                         "an empty memory",
                         path);
    }
    if (fstat(fd, &s)) { /* after the meta page: a writer beside us only ever adds */
        return error_set(e, ERROR_FATAL, E_IO, "%s: %s", path, strerror(errno));
    }
    f.pages = (uint64_t)s.st_size / f.page_bytes;
    *bytes_in_use = (f.meta.last_page + 1) * f.page_bytes;
    if (f.meta.last_page >= f.pages && !missing_are_free(&f)) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s: the file is cut off: it has %llu bytes, its pages in use reach to %llu: restore a copy, "
                         "or start an empty memory",
                         path, (unsigned long long)s.st_size, (unsigned long long)*bytes_in_use);
    }
    return 0;
}

int data_file_check(const char *path, uint64_t *bytes_in_use, struct error *e)
{
    *bytes_in_use = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? 0 : error_set(e, ERROR_FATAL, E_IO, "%s: %s", path, strerror(errno));
    }
    struct stat s;
    int result = -1;
    if (fstat(fd, &s)) {
        error_set(e, ERROR_FATAL, E_IO, "%s: %s", path, strerror(errno));
    } else if (s.st_size == 0) {
        result = 0;
    } else {
        for (int i = 0; i < TRIES && result; i++) {
            if (i) {
                clock_sleep_ms(10);
            }
            result = check_once(path, fd, bytes_in_use, e);
        }
    }
    close(fd);
    return result;
}

char *folder_path(const char *folder, const char *name)
{
    char *path = mem_alloc(strlen(folder) + strlen(name) + 2);
    sprintf(path, "%s/%s", folder, name);
    return path;
}

void copy_leftover_drop(const char *folder)
{
    char *path = folder_path(folder, COPY_NAME);
    unlink(path);
    free(path);
}
