/* A file of results being written: it appears under its name only whole, since it is written beside it and renamed;
 * standard output, pipes and devices get the lines as they come. It has the owner and the mode of the file that it
 * replaces; a new one is its owner's alone, as the memory is that the lines come from. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "cli/internal.h"
#include "cli/terminal.h"

enum { GZ_BUFFER_BYTES = 256 << 10 };

static int out_fail(const struct out_file *f, int number, struct error *e)
{
    bool full = number == ENOSPC || number == EFBIG;
    return error_set(e, full ? ERROR_RETRY : ERROR_FATAL, full ? E_DISK_FULL : E_IO, "%s cannot be written: %s%s",
                     strcmp(f->path, "-") == 0 ? "standard output" : f->path, strerror(number),
                     f->partial ? "; nothing of it was kept" : "");
}

/* The file beside `path`, empty. Not one that is there: it may be a link, or open to others. */
static int partial_open(const char *partial, const struct stat *replaced)
{
    unlink(partial);
    int fd = open(partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || !replaced) {
        return fd;
    }
    bool same_owner = fchown(fd, replaced->st_uid, replaced->st_gid) == 0;
    if (fchmod(fd, replaced->st_mode & (same_owner ? 0777 : 0700))) { /* another group's rights are not ours to give */
        int reason = errno;
        close(fd);
        unlink(partial);
        errno = reason;
        return -1;
    }
    return fd;
}

int out_open(struct out_file *f, const char *path, struct error *e)
{
    struct stat there;
    bool replaces = false;
    size_t bytes = strlen(path);
    bool compress = bytes > 3 && strcmp(path + bytes - 3, ".gz") == 0;
    f->path = path;
    if (strcmp(path, "-") == 0) {
        f->fd = dup(STDOUT_FILENO);
    } else if ((replaces = stat(path, &there) == 0) && !S_ISREG(there.st_mode)) {
        f->fd = open(path, O_WRONLY | O_CLOEXEC);
    } else {
        struct buffer partial = {0};
        buffer_format(&partial, "%s.partial", path);
        f->fd = partial_open(partial.data, replaces ? &there : NULL);
        if (f->fd < 0) {
            buffer_free(&partial);
        }
        f->partial = partial.data;
    }
    int gz_fd = f->fd < 0 ? -1 : dup(f->fd); /* gzclose closes its own; ours is for the flush */
    f->gz = gz_fd < 0 ? NULL : gzdopen(gz_fd, compress ? "wb" : "wbT");
    if (!f->gz) {
        return out_fail(f, errno, e);
    }
    gzbuffer(f->gz, GZ_BUFFER_BYTES);
    f->terminal = isatty(f->fd);
    return 0;
}

int out_write(struct out_file *f, struct buffer *line, struct error *e)
{
    if (f->terminal) {
        escape_lines(line);
    }
    errno = 0;
    return gzwrite(f->gz, line->data, (unsigned)line->bytes) == (int)line->bytes ? 0
                                                                                 : out_fail(f, errno ? errno : EIO, e);
}

int out_finish(struct out_file *f, struct error *e)
{
    errno = 0;
    int rc = gzclose(f->gz);
    f->gz = NULL;
    if (rc != Z_OK) {
        return out_fail(f, errno ? errno : EIO, e);
    }
    return f->partial && fsync(f->fd) ? out_fail(f, errno, e) : 0;
}

int out_publish(struct out_file *f, struct error *e)
{
    if (f->partial && rename(f->partial, f->path)) {
        return out_fail(f, errno, e);
    }
    free(f->partial);
    f->partial = NULL;
    return 0;
}

void out_close(struct out_file *f)
{
    if (f->gz) {
        gzclose(f->gz);
    }
    if (f->fd >= 0) {
        close(f->fd);
    }
    if (f->partial) {
        unlink(f->partial);
    }
    free(f->partial);
}
