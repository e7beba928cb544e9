/* Putting values into the configuration file, and nothing else: see config_file_set. The bytes are cut where the reader
 * itself would cut them (file_line_of), and the reader judges the result before it takes the file's place. The
 * surprise: the value in force of a name that is there twice is the last one, over all parts of its section, and under
 * [kafka] a name may be there as an alias. */
#define _XOPEN_SOURCE 700 /* realpath */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/internal.h"

enum {
    FILE_BYTES_MAX = 64 << 20,
    NEW_NAMES_MAX = 100, /* that others may have left beside the file */
};

/* ---- lines ---- */

/* One line of a text: [from, end) without its newline (a CR before that counts as a blank), the next one begins at
 * `next`. Zeroed: before the first. */
struct span {
    size_t from, end, next;
};

static bool span_next(const struct buffer *text, struct span *s)
{
    static const char bom[] = {'\xef', '\xbb', '\xbf'};
    s->from = s->next;
    if (s->from == 0 && text->bytes >= sizeof bom && memcmp(text->data, bom, sizeof bom) == 0) {
        s->from = sizeof bom;
    }
    if (s->from == text->bytes) {
        return false;
    }
    const char *newline = memchr(text->data + s->from, '\n', text->bytes - s->from);
    s->end = newline ? (size_t)(newline - text->data) : text->bytes;
    s->next = newline ? s->end + 1 : s->end;
    return true;
}

static struct file_line span_line(const struct buffer *text, const struct span *s)
{
    return file_line_of((struct slice){text->data + s->from, s->end - s->from});
}

/* The byte before this place; a newline before the first one. */
static char byte_before(const struct buffer *text, size_t at)
{
    return text->data && at > 0 ? text->data[at - 1] : '\n';
}

/* The line end used before this place, else the first one of the text, else LF. */
static const char *line_end_at(const struct buffer *text, size_t at)
{
    const char *newline = text->bytes ? memchr(text->data, '\n', text->bytes) : NULL;
    size_t last = newline ? (size_t)(newline - text->data) : 0;
    if (at > 0 && byte_before(text, at) == '\n') {
        last = at - 1;
    }
    return byte_before(text, last) == '\r' ? "\r\n" : "\n";
}

/* Puts `with` in the place of [from, end). */
static void text_put(struct buffer *text, size_t from, size_t end, const struct buffer *with)
{
    struct buffer made = {0};
    buffer_append(&made, text->data, from);
    buffer_append(&made, with->data, with->bytes);
    buffer_append(&made, text->data + end, text->bytes - end);
    buffer_free(text);
    *text = made;
}

/* ---- where a change goes ---- */

static bool section_of_kafka(const char *section, enum scope *scope)
{
    for (int i = 0; i < SCOPES; i++) {
        if (strcmp(section, scope_names[i]) == 0) {
            *scope = (enum scope)i;
            return true;
        }
    }
    return false;
}

static bool names(struct slice key, const struct config_change *c)
{
    enum scope scope;
    if (slice_equal(key, slice_of(c->name))) {
        return true;
    }
    if (!section_of_kafka(c->section, &scope)) {
        return false;
    }
    char *name = mem_string(key.data, key.bytes);
    bool same = strcmp(property_canonical(name), property_canonical(c->name)) == 0;
    free(name);
    return same;
}

struct place {
    bool found;         /* the name is there already: [from, end) is its value, after its = */
    struct slice value; /* that one, without the blanks around it; points into the text */
    bool section;       /* else, the section does: `from` is its end */
    size_t from, end;
};

/* A section ends after its last pair (or its own line) and the comments right below it, up to a blank line:
 * comments right above the next section are that one's. */
static struct place place_of(const struct buffer *text, const struct config_change *c)
{
    struct place p = {0};
    struct span s = {0};
    bool inside = false, touching = false; /* touching: only comments since the last pair */
    size_t below = 0;                      /* the end of those comments */
    size_t end = 0;
    while (span_next(text, &s)) {
        struct file_line l = span_line(text, &s);
        if (l.kind == LINE_SECTION) {
            inside = slice_equal(l.name, slice_of(c->section));
            p.section = p.section || inside;
        }
        if (!inside) {
            continue;
        }
        if (l.kind == LINE_COMMENT) {
            below = s.next;
        } else if (l.kind == LINE_BLANK) {
            end = touching ? below : end;
            touching = false;
        } else {
            end = below = s.next;
            touching = true;
        }
        if (l.kind == LINE_PAIR && names(l.name, c)) {
            const char *equals = memchr(l.name.data, '=', s.end - (size_t)(l.name.data - text->data));
            p.found = true;
            p.value = l.value;
            p.from = (size_t)(equals + 1 - text->data);
            p.end = s.end;
        }
    }
    if (!p.found) {
        p.from = p.end = inside && touching ? below : end;
    }
    return p;
}

/* ---- a change ---- */

/* The value that an option takes from a text, as it is shown. False: it takes none. */
static bool option_reads(const struct option *o, const char *text, struct buffer *out)
{
    struct config config = {0};
    bool reads = option_set(&config, o, text, NULL) == 0;
    if (reads) {
        option_value(&config, o, out);
    }
    config_free(&config);
    return reads;
}

/* Do both texts say one value? */
static bool same_value(const struct option *o, const char *a, const char *b)
{
    struct buffer x = {0}, y = {0};
    bool same = option_reads(o, a, &x) && option_reads(o, b, &y) &&
                slice_equal((struct slice){x.data, x.bytes}, (struct slice){y.data, y.bytes});
    buffer_free(&x);
    buffer_free(&y);
    return same;
}

static const struct option *option_of(const struct config_change *c)
{
    const struct option *o = option_named(c->name);
    return o && strcmp(o->section, c->section) == 0 ? o : NULL;
}

/* Does the value that is there say this already? */
static bool says_already(const struct config_change *c, struct slice value)
{
    const struct option *o = option_of(c);
    if (!o) {
        return slice_equal(value, slice_of(c->value));
    }
    bool quoted = file_takes_quotes(o) && file_is_quoted(value);
    char *text = quoted ? mem_string(value.data + 1, value.bytes - 2) : mem_string(value.data, value.bytes);
    bool same = same_value(o, text, c->value);
    free(text);
    return same;
}

/* The value as the file holds it: in quotes where it needs them, or where the one before it has them. */
static void value_write(const struct config_change *c, struct slice before, struct buffer *out)
{
    const struct option *o = option_of(c);
    struct slice value = slice_of(c->value);
    bool blanks = value.bytes > 0 && (file_blank(value.data[0]) || file_blank(value.data[value.bytes - 1]));
    bool quotes = o && file_takes_quotes(o) && (blanks || file_is_quoted(value) || file_is_quoted(before));
    buffer_format(out, quotes ? "\"%s\"" : "%s", c->value);
}

/* Is nothing there, or a blank line last? */
static bool ends_blank(const struct buffer *text)
{
    struct span s = {0};
    bool blank = true;
    while (span_next(text, &s)) {
        blank = span_line(text, &s).kind == LINE_BLANK;
    }
    return blank;
}

/* Puts one change into the text. False: it says that already. */
static bool change_put(struct buffer *text, const struct config_change *c)
{
    struct place p = place_of(text, c);
    struct buffer with = {0};
    size_t from = p.from, end = p.end;
    if (p.found && says_already(c, p.value)) {
        return false;
    }
    if (p.found && p.value.bytes) {
        from = (size_t)(p.value.data - text->data);
        end = from + p.value.bytes;
        value_write(c, p.value, &with);
    } else if (p.found) { /* an empty value: after the blanks, or one */
        while (end > from && byte_before(text, end) == '\r') {
            end--;
        }
        buffer_string(&with, end > from ? "" : " ");
        from = end;
        value_write(c, p.value, &with);
    } else {
        from = end = p.section ? p.from : text->bytes;
        const char *line_end = line_end_at(text, from);
        if (byte_before(text, from) != '\n') {
            buffer_string(&with, line_end);
        }
        if (!p.section) {
            buffer_format(&with, "%s[%s]%s", ends_blank(text) ? "" : line_end, c->section, line_end);
        }
        buffer_format(&with, "%s = ", c->name);
        value_write(c, (struct slice){0}, &with);
        buffer_string(&with, line_end);
    }
    text_put(text, from, end, &with);
    buffer_free(&with);
    return true;
}

/* ---- checks ---- */

static int change_check(const struct config_change *c, struct error *e)
{
    struct config config = {0};
    enum scope scope;
    const struct option *o = option_of(c);
    if (!o && !section_of_kafka(c->section, &scope)) {
        return error_set(e, ERROR_FATAL, E_USAGE, "there is no option '%s' under [%s]", c->name, c->section);
    }
    int result = strchr(c->value, '\n')
                     ? error_set(e, ERROR_FATAL, E_USAGE, "%s: a value in a file is one line", c->name)
                 : o ? option_set(&config, o, c->value, e)
                     : 0;
    config_free(&config);
    return result;
}

static bool gives(const struct config *config, const struct config_change *c)
{
    const struct option *o = option_of(c);
    enum scope scope = SCOPE_ALL;
    if (o) {
        const char *text = config->private->file_values[o - config_options];
        return text && same_value(o, text, c->value);
    }
    section_of_kafka(c->section, &scope);
    for (size_t i = 0; i < config->private->properties_count; i++) {
        const struct property *p = &config->private->properties[i];
        if (p->scope == scope && strcmp(property_canonical(p->name), property_canonical(c->name)) == 0) {
            return strcmp(p->value, c->value) == 0;
        }
    }
    return false;
}

/* The new file, read as any other: it must give what was asked for. `path` is the name for messages. */
static int result_check(const char *made, const char *path, const struct config_change *changes, size_t count,
                        struct error *e)
{
    struct config config = {.private = mem_zero(1, sizeof(struct config_private))};
    int result = config_read_file(&config, made, path, e);
    for (size_t i = 0; i < count && result == 0; i++) {
        if (!gives(&config, &changes[i])) {
            result = error_set(e, ERROR_FATAL, E_USAGE,
                               "%s cannot be '%s' in a file: it would be read back as something else", changes[i].name,
                               changes[i].value);
        }
    }
    config_free(&config);
    return result;
}

/* ---- the file ---- */

/* "FILE cannot be changed and is as it was: WHAT: the system's reason" */
static int file_fails(const char *path, const char *what, struct error *e)
{
    int reason = errno;
    return error_set(e, ERROR_FATAL, reason == ENOSPC || reason == EDQUOT || reason == EFBIG ? E_DISK_FULL : E_IO,
                     "%s cannot be changed and is as it was: %s: %s%s", path, what, strerror(reason),
                     reason == EBUSY ? " (if only the file is mounted, mount its folder)" : "");
}

static int file_read(const char *path, struct buffer *text, struct stat *status, struct error *e)
{
    int result = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, status) != 0) {
        file_fails(path, "it cannot be read", e);
        goto done;
    }
    if (!S_ISREG(status->st_mode) || status->st_size > FILE_BYTES_MAX) {
        error_set(e, ERROR_FATAL, E_USAGE, "%s is not a file of options: it cannot be changed", path);
        goto done;
    }
    if (faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) != 0) {
        file_fails(path, "it may not be written", e);
        goto done;
    }
    for (ssize_t got = 1; got > 0;) {
        buffer_reserve(text, 64 << 10);
        got = read(fd, text->data + text->bytes, 64 << 10);
        if (got < 0) {
            file_fails(path, "it cannot be read", e);
            goto done;
        }
        text->bytes += (size_t)got;
    }
    if (text->bytes >= 2 && memcmp(text->data, "\x1f\x8b", 2) == 0) {
        error_set(e, ERROR_FATAL, E_USAGE, "%s is compressed: unpack it first", path);
        goto done;
    }
    result = 0;
done:
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

/* A new file in the same folder, open to write; *name is the caller's to free. -1: errno says why. */
static int new_open(const char *path, mode_t mode, struct buffer *name)
{
    const char *slash = strrchr(path, '/');
    int folder = slash ? (int)(slash - path) + 1 : 0;
    int fd = -1;
    for (unsigned i = 0; fd < 0 && i < NEW_NAMES_MAX; i++) {
        buffer_clear(name);
        buffer_format(name, "%.*s.%s.%ld-%u", folder, path, path + folder, (long)getpid(), i);
        fd = open(name->data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (fd < 0 && errno != EEXIST) {
            break;
        }
    }
    return fd;
}

static int write_all(int fd, const struct buffer *text)
{
    for (size_t sent = 0; sent < text->bytes;) {
        ssize_t n = write(fd, text->data + sent, text->bytes - sent);
        if (n < 0 && errno != EINTR) {
            return -1;
        }
        sent += n > 0 ? (size_t)n : 0;
    }
    return fsync(fd);
}

/* Owner first: changing it takes bits off the mode. */
static int mode_keep(int fd, const struct stat *old)
{
    struct stat new;
    if (fstat(fd, &new) != 0) {
        return -1;
    }
    if ((new.st_uid != old->st_uid || new.st_gid != old->st_gid) && fchown(fd, old->st_uid, old->st_gid) != 0) {
        return -1;
    }
    return fchmod(fd, old->st_mode & 07777);
}

/* So that the new name survives a power cut; the file is changed already, whatever comes of this. */
static void folder_sync(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? mem_string(path, (size_t)(slash - path) + 1) : mem_string(".", 1);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(folder);
}

/* The text in the file's place. old NULL: there is no file yet. */
static int file_replace(const char *path, const struct buffer *text, const struct stat *old,
                        const struct config_change *changes, size_t count, struct error *e)
{
    struct buffer name = {0};
    int result = -1;
    int fd = new_open(path, old ? 0600 : 0666, &name);
    bool made = fd >= 0;
    if (!made) {
        file_fails(path, "no new file can be created in its folder", e);
        goto done;
    }
    if (write_all(fd, text)) {
        file_fails(path, "the new file cannot be written", e);
        goto done;
    }
    if (old && mode_keep(fd, old)) {
        file_fails(path, "the new file cannot be given its owner and mode", e);
        goto done;
    }
    if (result_check(name.data, path, changes, count, e)) {
        goto done;
    }
    if (rename(name.data, path) != 0) {
        file_fails(path, "the new file cannot take its place", e);
        goto done;
    }
    folder_sync(path);
    made = false;
    result = 0;
done:
    if (fd >= 0) {
        close(fd);
    }
    if (made) {
        unlink(name.data);
    }
    buffer_free(&name);
    return result;
}

int config_file_set(const char *path, const struct config_change *changes, size_t count, struct error *e)
{
    struct buffer text = {0};
    struct stat status;
    int result = -1;
    bool changed = false;
    char *target = NULL;
    if (strcmp(path, "-") == 0) {
        error_set(e, ERROR_FATAL, E_USAGE, "standard input is not a file that can be changed");
        goto done;
    }
    target = realpath(path, NULL);
    if (!target && (errno != ENOENT || lstat(path, &status) == 0)) { /* a link that leads nowhere is no missing file */
        file_fails(path, "it points to no file", e);
        goto done;
    }
    if (target && file_read(target, &text, &status, e)) {
        goto done;
    }
    for (size_t i = 0; i < count; i++) {
        if (change_check(&changes[i], e)) {
            goto done;
        }
        changed = change_put(&text, &changes[i]) || changed;
    }
    result = changed ? file_replace(target ? target : path, &text, target ? &status : NULL, changes, count, e) : 0;
done:
    free(target);
    buffer_free(&text);
    return result;
}
