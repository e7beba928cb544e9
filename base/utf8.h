/* UTF-8 as the record format means it: RFC 3629 (no overlong forms, no surrogates, at most U+10FFFF). */
#ifndef ENGRAM_BASE_UTF8_H
#define ENGRAM_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the character that begins here, 1 to 4; 0: what is here is none. bytes > 0. */
size_t utf8_character(const char *data, size_t bytes);

/* Does this character of so many bytes end a line for some reader, steer a terminal, or turn the writing direction?
 * Controls (C0, DEL, C1), U+2028 and U+2029, and Unicode's marks, embeddings, overrides and isolates of direction. */
bool utf8_steers(const char *character, size_t bytes);

/* The text as a part of one line for people: what steers and what is no UTF-8 becomes '?'. out holds `bytes`; returns
 * how many were written. */
size_t utf8_clean(char *out, const char *text, size_t bytes);

bool utf8_valid(const char *data, size_t bytes);

/* How many bytes from the start are valid: bytes when all are, else where the first ill-formed sequence begins. */
size_t utf8_valid_prefix(const char *data, size_t bytes);

/* The longest prefix of valid UTF-8 that is at most max bytes and ends at a character's end. */
size_t utf8_cut(const char *data, size_t bytes, size_t max);

#endif
