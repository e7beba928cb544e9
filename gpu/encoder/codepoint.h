/* Unicode as Hugging Face `tokenizers` sees it: its categories are those of Unicode 8, its decompositions those of
 * Unicode 9, its lower case that of today. utf8proc gives the rest; codepoint_tables.h lists where the two differ.
 * Room-internal. */
#ifndef ENGRAM_GPU_ENCODER_CODEPOINT_H
#define ENGRAM_GPU_ENCODER_CODEPOINT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"

enum codepoint_class {
    CODEPOINT_PLAIN,
    CODEPOINT_SPACE,       /* White_Space */
    CODEPOINT_DROPPED,     /* control, format, private use, NUL and U+FFFD */
    CODEPOINT_PUNCTUATION, /* P*, and ASCII's symbols */
    CODEPOINT_MARK,        /* Mn */
};

/* Reads the code point at the front of a text; returns its bytes. A byte that is not UTF-8 is -1 and 1 byte, an empty
 * text is -1 and none. */
size_t codepoint_first(struct slice text, int32_t *c);

enum codepoint_class codepoint_class(int32_t c);
bool codepoint_is_space(int32_t c); /* White_Space */
bool codepoint_is_word(int32_t c);  /* what \w matches: letters, marks, decimal digits and connectors; -1 is none */
bool codepoint_is_cjk(int32_t c);   /* set apart as a word of its own; the ranges are BERT's */

/* Lower case without context (no final sigma). Writes 1 or 2 code points. */
size_t codepoint_lower(int32_t c, int32_t out[2]);

/* Appends a whole text in lower case as Python's str.lower() makes it, final sigma and all. Bytes that are not UTF-8
 * stay as they are. Time is linear. */
void text_lower(struct slice text, struct buffer *out);

#define CODEPOINT_DECOMPOSED_MAX 4
/* Full canonical decomposition, in the order of the tables. */
size_t codepoint_decompose(int32_t c, int32_t out[CODEPOINT_DECOMPOSED_MAX]);
uint8_t codepoint_combining_class(int32_t c); /* of a part of a decomposition */

#endif
