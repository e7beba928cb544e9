/* Lines of files: see lines.h. zlib inflates, but the members of a .gz are walked here: gzread takes whatever follows a
 * member for garbage to be ignored, so a file cut in a later member's first bytes would pass for a whole one. */
#include "base/lines.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

enum { CHUNK_BYTES = 64 << 10 };

enum gzip_state {
    GZIP_UNKNOWN, /* nothing read yet */
    GZIP_NONE,    /* a plain file */
    GZIP_BETWEEN, /* after a member: zeros, another one, or the end */
    GZIP_INSIDE,  /* in a member */
};

struct lines {
    char *path; /* for messages: "standard input" for "-" */
    int fd;
    bool named_gz;
    size_t line_max;
    size_t number;
    uint64_t offset;
    uint64_t size;
    enum gzip_state gzip;
    z_stream inflater;
    bool inflater_ready;
    unsigned char *input; /* [CHUNK_BYTES] of the file */
    size_t input_at, input_end;
    char *chunk; /* [CHUNK_BYTES] of text: the input inflated, or as it is */
    size_t chunk_at, chunk_end;
    struct buffer line; /* a line that spans chunks */
    struct error error; /* kind not NONE: what every further call says */
};

/* Opens the file; a folder is noticed here, since open(2) takes it and only read(2) refuses. */
static int open_file(struct lines *l, const char *path, struct error *e)
{
    if (strcmp(path, "-") == 0) {
        l->fd = STDIN_FILENO;
    } else {
        l->fd = open(path, O_RDONLY | O_CLOEXEC);
        if (l->fd < 0) {
            return error_set(e, ERROR_FATAL, errno == ENOENT ? E_NOT_FOUND : E_IO, "cannot open %s: %s", path,
                             strerror(errno));
        }
    }
    struct stat status;
    if (fstat(l->fd, &status) != 0) {
        return error_set(e, ERROR_FATAL, E_IO, "cannot read %s: %s", l->path, strerror(errno));
    }
    if (S_ISDIR(status.st_mode)) {
        return error_set(e, ERROR_FATAL, E_IO, "cannot read %s: it is a directory", l->path);
    }
    l->size = S_ISREG(status.st_mode) ? (uint64_t)status.st_size : 0;
    return 0;
}

int lines_open(struct lines **out, const char *path, size_t line_max, struct error *e)
{
    struct lines *l = mem_zero(1, sizeof *l);
    size_t path_bytes = strlen(path);
    *out = NULL;
    l->fd = -1;
    l->path = strcmp(path, "-") == 0 ? mem_string("standard input", 14) : mem_string(path, path_bytes);
    l->named_gz = path_bytes > 3 && strcmp(path + path_bytes - 3, ".gz") == 0;
    l->line_max = line_max;
    if (open_file(l, path, e) != 0) {
        lines_close(l);
        return -1;
    }
    l->input = mem_alloc(CHUNK_BYTES);
    l->chunk = mem_alloc(CHUNK_BYTES);
    *out = l;
    return 0;
}

/* Reads more of the file after what is unread of it; 1, 0 at its end, -1. */
static int read_input(struct lines *l)
{
    memmove(l->input, l->input + l->input_at, l->input_end - l->input_at);
    l->input_end -= l->input_at;
    l->input_at = 0;
    ssize_t got;
    do {
        got = read(l->fd, l->input + l->input_end, CHUNK_BYTES - l->input_end);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        return error_set(&l->error, ERROR_FATAL, E_IO, "cannot read %s: %s", l->path, strerror(errno));
    }
    l->input_end += (size_t)got;
    l->offset += (uint64_t)got;
    return got > 0;
}

/* At least `wanted` unread bytes of the file in the input, or all that are left. */
static int want_input(struct lines *l, size_t wanted)
{
    int more = 1;
    while (more > 0 && l->input_end - l->input_at < wanted) {
        more = read_input(l);
    }
    return more < 0 ? -1 : 0;
}

static bool at_gzip_magic(const struct lines *l)
{
    return l->input_end - l->input_at >= 2 && l->input[l->input_at] == 0x1f && l->input[l->input_at + 1] == 0x8b;
}

/* Plain or gzip, by the first two bytes. Of a plain pipe one byte is enough to know, so that a short first line is
 * answered before the second is typed. */
static int recognise(struct lines *l)
{
    if (want_input(l, 1) != 0) {
        return -1;
    }
    if (l->input_at < l->input_end && l->input[l->input_at] == 0x1f && want_input(l, 2) != 0) {
        return -1;
    }
    if (at_gzip_magic(l)) {
        l->gzip = GZIP_BETWEEN;
        return 0;
    }
    if (l->named_gz) {
        return error_set(&l->error, ERROR_FATAL, E_IO, "%s is named .gz but %s", l->path,
                         l->input_end - l->input_at < 2 ? "is cut short" : "is not gzip data");
    }
    l->gzip = GZIP_NONE;
    return 0;
}

/* After a member (or at the first): starts the next one. 1, 0 at the end, -1. */
static int start_member(struct lines *l)
{
    do {
        while (l->input_at < l->input_end && l->input[l->input_at] == 0) {
            l->input_at++; /* padding, as of a tape's last block */
        }
        if (want_input(l, 2) != 0) {
            return -1;
        }
    } while (l->input_at < l->input_end && l->input[l->input_at] == 0);
    if (l->input_at == l->input_end) {
        return 0;
    }
    if (!at_gzip_magic(l)) {
        return error_set(&l->error, ERROR_FATAL, E_IO,
                         "%s: after the gzip data there is something else, or a member that is cut off", l->path);
    }
    int status = l->inflater_ready ? inflateReset(&l->inflater) : inflateInit2(&l->inflater, 15 + 16);
    if (status != Z_OK) {
        return error_set(&l->error, ERROR_FATAL, E_INTERNAL, "%s: zlib cannot be started", l->path);
    }
    l->inflater_ready = true;
    l->gzip = GZIP_INSIDE;
    return 1;
}

/* Inflates into the chunk; may leave it empty (a header, an empty member). 1 or -1. */
static int inflate_some(struct lines *l)
{
    if (l->input_at == l->input_end) {
        int more = read_input(l);
        if (more < 0) {
            return -1;
        }
        if (more == 0) {
            return error_set(&l->error, ERROR_FATAL, E_IO, "%s is cut short: its gzip data does not end (line %zu)",
                             l->path, l->number + 1);
        }
    }
    z_stream *z = &l->inflater;
    z->next_in = l->input + l->input_at;
    z->avail_in = (uInt)(l->input_end - l->input_at);
    z->next_out = (unsigned char *)l->chunk;
    z->avail_out = CHUNK_BYTES;
    int status = inflate(z, Z_NO_FLUSH);
    l->input_at = l->input_end - z->avail_in;
    l->chunk_end = CHUNK_BYTES - z->avail_out;
    if (status == Z_STREAM_END) {
        l->gzip = GZIP_BETWEEN;
    } else if (status != Z_OK && status != Z_BUF_ERROR) {
        return error_set(&l->error, ERROR_FATAL, E_IO, "%s is damaged: %s (line %zu)", l->path,
                         z->msg ? z->msg : "not gzip data", l->number + 1);
    }
    return 1;
}

static int copy_some(struct lines *l)
{
    int more = l->input_at < l->input_end ? 1 : read_input(l);
    l->chunk_end = l->input_end - l->input_at;
    memcpy(l->chunk, l->input + l->input_at, l->chunk_end);
    l->input_at = l->input_end;
    return more;
}

/* Text into the empty chunk: 1, 0 at the end, -1. */
static int fill_chunk(struct lines *l)
{
    l->chunk_at = l->chunk_end = 0;
    if (l->gzip == GZIP_UNKNOWN && recognise(l) != 0) {
        return -1;
    }
    while (l->chunk_end == 0) {
        int more = l->gzip == GZIP_NONE ? copy_some(l) : l->gzip == GZIP_BETWEEN ? start_member(l) : inflate_some(l);
        if (more <= 0) {
            return more;
        }
    }
    return 1;
}

/* Up to the next newline or the end: the bytes, in the chunk where they lie whole in one, and whether a newline ended
 * them. Over `most` bytes they are thrown away, *too_long. 0 or -1. */
static int take_line(struct lines *l, size_t most, struct slice *raw, bool *newline, bool *too_long)
{
    buffer_clear(&l->line);
    while (!*newline) {
        if (l->chunk_at == l->chunk_end) {
            int more = fill_chunk(l);
            if (more <= 0) {
                return more;
            }
        }
        const char *piece = l->chunk + l->chunk_at;
        const char *end = memchr(piece, '\n', l->chunk_end - l->chunk_at);
        size_t bytes = end ? (size_t)(end - piece) : l->chunk_end - l->chunk_at;
        l->chunk_at += bytes + (end ? 1 : 0);
        *newline = end != NULL;
        *too_long = *too_long || l->line.bytes + bytes > most;
        if (*newline && l->line.bytes == 0) {
            *raw = (struct slice){piece, bytes};
        } else if (!*too_long) {
            buffer_append(&l->line, piece, bytes);
            *raw = (struct slice){l->line.data, l->line.bytes};
        }
    }
    return 0;
}

int lines_next(struct lines *l, struct slice *line, struct error *e)
{
    static const char bom[] = {'\xef', '\xbb', '\xbf'};
    struct slice raw = {"", 0};
    bool newline = false;
    bool too_long = false;
    *line = raw;
    if (l->error.kind != ERROR_NONE || take_line(l, l->line_max + sizeof bom + 1, &raw, &newline, &too_long) != 0) {
        if (e) {
            *e = l->error;
        }
        return -1;
    }
    if (l->number == 0 && raw.bytes >= sizeof bom && memcmp(raw.data, bom, sizeof bom) == 0) {
        raw = (struct slice){raw.data + sizeof bom, raw.bytes - sizeof bom};
    }
    if (!newline && !too_long && raw.bytes == 0) {
        return 0;
    }
    l->number++;
    if (newline && raw.bytes > 0 && raw.data[raw.bytes - 1] == '\r') {
        raw.bytes--;
    }
    if (too_long || raw.bytes > l->line_max) {
        return error_set(e, ERROR_POISON, E_LIMIT, "%s, line %zu: longer than %zu bytes", l->path, l->number,
                         l->line_max);
    }
    *line = raw;
    return 1;
}

size_t lines_number(const struct lines *l)
{
    return l->number;
}

uint64_t lines_offset(const struct lines *l)
{
    return l->offset;
}

uint64_t lines_size(const struct lines *l)
{
    return l->size;
}

bool line_is_blank(struct slice line)
{
    for (size_t i = 0; i < line.bytes; i++) {
        if (line.data[i] != ' ' && line.data[i] != '\t' && line.data[i] != '\r') {
            return false;
        }
    }
    return true;
}

void lines_close(struct lines *l)
{
    if (!l) {
        return;
    }
    if (l->inflater_ready) {
        inflateEnd(&l->inflater);
    }
    if (l->fd >= 0 && l->fd != STDIN_FILENO) {
        close(l->fd);
    }
    free(l->input);
    free(l->chunk);
    buffer_free(&l->line);
    free(l->path);
    free(l);
}
