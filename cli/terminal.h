/* Text from outside, made fit for a terminal. */
#ifndef ENGRAM_CLI_TERMINAL_H
#define ENGRAM_CLI_TERMINAL_H

#include <stddef.h>

#include "base/buffer.h"

/* What the terminal behind the descriptor is wide; 80 where there is none. */
size_t terminal_columns(int fd);

/* Appends the text, at most bytes_max of it and "..." where it was longer. What could steer the terminal (control
 * characters, line separators, marks that turn the writing direction) becomes a blank. */
void plain_append(struct buffer *out, struct slice text, size_t bytes_max);
/* The same, but at most so many columns wide, "..." included. Returns how wide it came out. */
size_t plain_fit(struct buffer *out, struct slice text, size_t columns);

/* Writes what could steer the terminal as \uXXXX, which is the same value where it is in a JSON string. Newlines
 * and tabs stay. */
void escape_lines(struct buffer *lines);

#endif
