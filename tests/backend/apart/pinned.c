/* Host memory of internal.h's device, where APART_HOST is set. The caller reads and writes it as its own; every copy
 * that names it is checked when it runs. An address is never handed out twice. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/backend/apart/internal.h"

enum { PAGE = 65536, ALIGNMENT = 64 };

int apart_host_alloc(struct backend *b, size_t bytes, void **out, struct error *e)
{
    struct device *d = device_of(b);
    bytes = bytes ? bytes : 1;
    const size_t span = rounded(bytes, PAGE) + PAGE;
    char *pages = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages, span - PAGE, PROT_READ | PROT_WRITE) != 0) {
        return d->host->error_set(e, ERROR_RETRY, E_DEVICE_MEMORY, "the host has no room for %zu bytes more", bytes);
    }
    struct pinned *p = host_memory(1, sizeof *p);
    *p = (struct pinned){
        .start = pages + (span - PAGE - rounded(bytes, ALIGNMENT)), .bytes = bytes, .pages = pages, .span = span};
    memset(p->start, 0xFF, bytes); /* nothing says that it is zeroed */
    pthread_mutex_lock(&d->lock);
    p->next = d->pinned;
    d->pinned = p;
    pthread_mutex_unlock(&d->lock);
    *out = p->start;
    return 0;
}

void apart_host_release(struct backend *b, void *memory)
{
    struct device *d = device_of(b);
    if (!memory) {
        return;
    }
    pthread_mutex_lock(&d->lock);
    struct pinned *p = d->pinned;
    while (p && (p->released || p->start != memory)) {
        p = p->next;
    }
    if (!p) {
        slip("%p of the host was released before, or never handed out", memory);
    }
    p->released = true; /* and the addresses stay taken: nobody may read or write there */
    if (mmap(p->pages, p->span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
        MAP_FAILED) {
        slip("mmap failed");
    }
    pthread_mutex_unlock(&d->lock);
}

void pinned_check(struct device *d, const void *memory, size_t bytes, const char *what)
{
    const char *start = memory;
    pthread_mutex_lock(&d->lock);
    for (const struct pinned *p = d->pinned; p; p = p->next) {
        if (start < p->pages || start >= p->pages + p->span) {
            continue;
        }
        if (p->released) {
            slip("%s: %p of the host was released", what, memory);
        }
        if (start < p->start || start > p->start + p->bytes || bytes > (size_t)(p->start + p->bytes - start)) {
            slip("%s: %zu bytes at %p of the host, where %zu begin at %p", what, bytes, memory, p->bytes,
                 (void *)p->start);
        }
    }
    pthread_mutex_unlock(&d->lock);
}

size_t pinned_close(struct device *d)
{
    size_t left = 0;
    while (d->pinned) {
        struct pinned *p = d->pinned;
        d->pinned = p->next;
        left += !p->released;
        munmap(p->pages, p->span);
        free(p);
    }
    return left;
}
