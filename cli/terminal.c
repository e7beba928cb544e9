/* Text from outside on a terminal: control characters would move its cursor, and a mark that turns the writing
 * direction would reorder what follows it. Widths are utf8proc's: two columns for a wide character, none for a
 * combining one. */
#include "cli/terminal.h"

#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <utf8proc.h>

#include "base/utf8.h"

enum { COLUMNS_DEFAULT = 80, BYTES_PER_COLUMN = 8 }; /* a column may carry combining marks, but not without end */

size_t terminal_columns(int fd)
{
    struct winsize size;
    return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : COLUMNS_DEFAULT;
}

/* A character as it is shown. */
struct shown {
    size_t bytes; /* in the text */
    size_t columns;
    bool blank;
};

/* at: valid UTF-8, bytes > 0. */
static struct shown character_shown(const char *at, size_t bytes)
{
    utf8proc_int32_t c;
    utf8proc_ssize_t taken = utf8proc_iterate((const utf8proc_uint8_t *)at, (utf8proc_ssize_t)bytes, &c);
    if (taken < 1 || utf8_steers(at, (size_t)taken)) {
        return (struct shown){taken < 1 ? 1 : (size_t)taken, 1, true};
    }
    return (struct shown){(size_t)taken, (size_t)utf8proc_charwidth(c), false};
}

static void shown_append(struct buffer *out, const char *at, struct shown s)
{
    buffer_append(out, s.blank ? " " : at, s.blank ? 1 : s.bytes);
}

void plain_append(struct buffer *out, struct slice text, size_t bytes_max)
{
    size_t bytes = utf8_cut(text.data, text.bytes, bytes_max);
    for (size_t i = 0; i < bytes;) {
        struct shown s = character_shown(text.data + i, bytes - i);
        shown_append(out, text.data + i, s);
        i += s.bytes;
    }
    if (bytes < text.bytes) {
        buffer_string(out, "...");
    }
}

void escape_lines(struct buffer *lines)
{
    struct buffer out = {0};
    for (size_t i = 0; i < lines->bytes;) {
        const char *at = lines->data + i;
        utf8proc_int32_t c;
        size_t bytes = utf8_character(at, lines->bytes - i);
        if (bytes == 0) {
            buffer_byte(&out, '?');
        } else if (*at == '\n' || *at == '\t' || !utf8_steers(at, bytes)) {
            buffer_append(&out, at, bytes);
        } else {
            utf8proc_iterate((const utf8proc_uint8_t *)at, (utf8proc_ssize_t)bytes, &c);
            buffer_format(&out, "\\u%04x", (unsigned)c);
        }
        i += bytes ? bytes : 1;
    }
    buffer_free(lines);
    *lines = out;
}

size_t plain_fit(struct buffer *out, struct slice text, size_t columns)
{
    const size_t dots = strlen("...");
    size_t bytes = utf8_cut(text.data, text.bytes, columns * BYTES_PER_COLUMN);
    size_t end = 0, width = 0, cut_end = 0, cut_width = 0; /* cut: what fits with the dots after it */
    while (end < bytes) {
        struct shown s = character_shown(text.data + end, bytes - end);
        if (width + s.columns > columns) {
            break;
        }
        end += s.bytes;
        width += s.columns;
        if (width + dots <= columns) {
            cut_end = end;
            cut_width = width;
        }
    }
    bool whole = end == text.bytes;
    for (size_t i = 0; i < (whole ? end : cut_end);) {
        struct shown s = character_shown(text.data + i, bytes - i);
        shown_append(out, text.data + i, s);
        i += s.bytes;
    }
    if (whole) {
        return width;
    }
    buffer_string(out, "...");
    return cut_width + dots;
}
