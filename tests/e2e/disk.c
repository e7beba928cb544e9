/* Preloaded before the stage: a disk of so many bytes under data.mdb, as long as the file that TEST_DISK names holds a
 * number. A write over its end is cut short, as a full file system does it, and the next one refused with ENOSPC;
 * fstatvfs says what is left. Each refusal appends a byte to that file's neighbour ".refused", so that a test can wait
 * for it. Without the file the disk has no end. Unlike a small file system this needs no root. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_data(int fd)
{
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, sizeof path - 1);
    const char name[] = "/data.mdb";
    size_t tail = sizeof name - 1;
    return bytes > (ssize_t)tail && memcmp(path + bytes - tail, name, tail) == 0;
}

/* The disk's size in bytes, or -1: no end. */
static off_t disk_bytes(void)
{
    const char *name = getenv("TEST_DISK");
    FILE *file = name ? fopen(name, "r") : NULL;
    long long bytes = -1;
    if (file && fscanf(file, "%lld", &bytes) != 1) {
        bytes = -1;
    }
    if (file) {
        fclose(file);
    }
    return (off_t)bytes;
}

static void count_refusal(void)
{
    char path[4096];
    snprintf(path, sizeof path, "%s.refused", getenv("TEST_DISK"));
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd >= 0) {
        (void)!((ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write"))(fd, "x", 1);
        close(fd);
    }
}

/* How much of a write of so many bytes at this place there is room for; -1 with errno: nothing. */
static ssize_t room_for(int fd, size_t bytes, off_t at)
{
    off_t end = is_data(fd) ? disk_bytes() : -1;
    if (end < 0 || at + (off_t)bytes <= end) {
        return (ssize_t)bytes;
    }
    count_refusal();
    if (at < end) {
        return (ssize_t)(end - at);
    }
    errno = ENOSPC;
    return -1;
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at)
{
    ssize_t room = room_for(fd, bytes, at);
    ssize_t (*next)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");
    return room < 0 ? -1 : next(fd, data, (size_t)room, at);
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    ssize_t room = room_for(fd, bytes, lseek(fd, 0, SEEK_CUR));
    ssize_t (*next)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return room < 0 ? -1 : next(fd, data, (size_t)room);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    size_t bytes = 0;
    for (int i = 0; i < count; i++) {
        bytes += parts[i].iov_len;
    }
    ssize_t room = room_for(fd, bytes, lseek(fd, 0, SEEK_CUR));
    if (room < 0 || (size_t)room == bytes) {
        ssize_t (*next)(int, const struct iovec *, int) = dlsym(RTLD_NEXT, "writev");
        return room < 0 ? -1 : next(fd, parts, count);
    }
    ssize_t (*next)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return next(fd, parts[0].iov_base, (size_t)room < parts[0].iov_len ? (size_t)room : parts[0].iov_len);
}

int fstatvfs(int fd, struct statvfs *out)
{
    int (*next)(int, struct statvfs *) = dlsym(RTLD_NEXT, "fstatvfs");
    struct stat file;
    off_t end = is_data(fd) ? disk_bytes() : -1;
    if (next(fd, out)) {
        return -1;
    }
    if (end >= 0 && fstat(fd, &file) == 0) {
        off_t left = end > file.st_size ? end - file.st_size : 0;
        out->f_bfree = out->f_bavail = (fsblkcnt_t)left / out->f_frsize;
    }
    return 0;
}
