/* UTF-8 as the record format means it: RFC 3629 (no overlong forms, no surrogates, at most U+10FFFF). */
#ifndef ENGRAM_BASE_UTF8_H
#define ENGRAM_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the character that begins here, 1 to 4; 0: what stands here is none. bytes > 0. */
size_t utf8_character(const char *data, size_t bytes);

bool utf8_valid(const char *data, size_t bytes);

/* How many bytes from the start are valid: bytes when all are, else where the first ill-formed sequence begins. */
size_t utf8_valid_prefix(const char *data, size_t bytes);

/* The longest prefix of valid UTF-8 that is at most max bytes and ends at a character's end. */
size_t utf8_cut(const char *data, size_t bytes, size_t max);

#endif
