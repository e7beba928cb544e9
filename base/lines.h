/* Lines of a file, plain or .gz (several members too), or of standard input ("-"). A BOM at the start and a CR before
 * the newline are dropped; a last line without newline counts. A gz that ends early is an error, never a short file. */
#ifndef ENGRAM_BASE_LINES_H
#define ENGRAM_BASE_LINES_H

#include "base/buffer.h"
#include "base/error.h"

struct lines;

/* line_max: longest line accepted, in bytes (a longer one is an error that names its number). */
int lines_open(struct lines **out, const char *path, size_t line_max, struct error *e);

/* 1: *line holds the next line (valid until the next call); 0: the end; -1: an error (FATAL E_IO, or POISON E_LIMIT for
 * a line that is too long: the next call goes on after it). Blank lines are returned: the caller knows what they mean.
 */
int lines_next(struct lines *l, struct slice *line, struct error *e);

size_t lines_number(const struct lines *l);   /* of the line last returned, from 1 */
uint64_t lines_offset(const struct lines *l); /* bytes of the (compressed) file read so far, for a progress bar */
uint64_t lines_size(const struct lines *l);   /* of the file, 0 when unknown */
bool line_is_blank(struct slice line);        /* nothing but spaces, tabs and CRs */
void lines_close(struct lines *l);

#endif
