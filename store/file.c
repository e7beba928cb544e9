/* data.mdb before it is mapped: are its first pages of one file, and does it reach the last page that they count as
 * used? LMDB does not ask, and a missing page is a SIGBUS later. What surprises: a sound file may lack pages at its
 * end, for LMDB never writes pages that one transaction both took and gave back; then all of them must be in the
 * free list. Beside a running writer all this can change under our hands, so what does not fit is read again before it
 * is believed. And the file that lies beside it while a copy is made. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/internal.h"

enum { TRIES = 5 };

/* Are all pages after the file's end free? */
static bool missing_are_free(struct pages *p)
{
    uint64_t missing = p->meta.last_page + 1 - p->in_file;
    if (p->meta.free.root == NO_PAGE || missing / 8 > p->file_bytes) {
        return false; /* the list itself must fit into the file: 8 bytes a page */
    }
    pages_track(p);
    bool all = pages_free_walk(p, NULL) == 0;
    for (uint64_t page = p->in_file; all && page <= p->meta.last_page; page++) {
        all = page_is_free(p, page);
    }
    pages_untrack(p);
    return all;
}

static int check_once(int fd, uint64_t *bytes_in_use, struct error *e)
{
    struct pages p;
    if (pages_read(fd, &p, e)) {
        return -1;
    }
    *bytes_in_use = (p.meta.last_page + 1) * p.page_bytes;
    if (p.meta.last_page >= p.in_file && !missing_are_free(&p)) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "the file is cut off: it has %llu bytes, its pages in use reach to %llu: restore a copy, or "
                         "start an empty memory",
                         (unsigned long long)p.file_bytes, (unsigned long long)*bytes_in_use);
    }
    return trees_newer_check(&p, e);
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
            result = check_once(fd, bytes_in_use, e);
        }
        if (result) {
            error_wrap(e, "%s", path);
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
