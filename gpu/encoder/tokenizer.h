/* WordPiece as BERT does it: a text to the ids that the encoder is fed, equal to what Hugging Face `tokenizers` makes
 * of the folder's tokenizer.json (added tokens, BertNormalizer, BertPreTokenizer, WordPiece, [CLS] and [SEP] around).
 * Room-internal. A tokenizer never changes after it is opened: any number of threads may use one at the same time. */
#ifndef ENGRAM_GPU_ENCODER_TOKENIZER_H
#define ENGRAM_GPU_ENCODER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"

struct tokenizer;

#define WORD_CHARS_MAX 1000  /* the highest word_chars_max */
#define WORD_CHARS_USUAL 100 /* and what almost every model has */
#define ADDED_BYTES_MAX 256  /* of an added token */
#define CONTINUING "##"      /* the usual prefix of a word's inner pieces */

/* A token that is looked for in the text before it is split into words: at each place the longest, from left to right.
 */
struct added_token {
    struct slice text;
    int32_t id;
    bool special;     /* of two that are looked for alike, a special one is found, else the first */
    bool normalized;  /* looked for in the normalised text, after those that are not; else in the text as it is */
    bool single_word; /* only where no word character (a letter, mark, digit or underscore) touches it */
};

/* What a tokenizer is made of. Borrowed while it is opened. */
struct tokenizer_settings {
    const struct slice *pieces; /* [piece_count], by id, UTF-8; an empty one is none */
    size_t piece_count;
    const struct added_token *added; /* [added_count] */
    size_t added_count;
    bool lower_case;
    bool strip_accents; /* where the model's file says null: as lower_case */
    bool tokenize_chinese_chars;
    struct slice continuing; /* the prefix of a word's inner pieces; CONTINUING */
    size_t word_chars_max;   /* longer words are [UNK]: 1 to WORD_CHARS_MAX */
};

/* The five that BERT's own vocabulary brings, and that are added tokens even where no file says so. */
#define SPECIAL_TOKENS 5
extern const char *const special_tokens[SPECIAL_TOKENS];

/* Errors are FATAL E_MODEL, without the file's name: no [UNK], [CLS] or [SEP], or an added token that cannot be run.
 * The caller closes it. */
int tokenizer_open(struct tokenizer **out, const struct tokenizer_settings *s, struct error *e);
void tokenizer_close(struct tokenizer *t); /* NULL is fine */

/* Writes [CLS], the pieces of the text, [SEP] to ids, at most ids_max (at least 2) of them, and returns how many.
 * *truncated (NULL is fine) is true when pieces were dropped. Time is linear in the text, and hardly more of it is read
 * than is needed to fill ids. The text is UTF-8; bytes that are not are read as U+FFFD. */
size_t tokenizer_encode(const struct tokenizer *t, const char *text, size_t text_bytes, int32_t *ids, size_t ids_max,
                        bool *truncated);

size_t tokenizer_ids_end(const struct tokenizer *t);                                          /* every id is below it */
int32_t tokenizer_piece_id(const struct tokenizer *t, const char *piece, size_t piece_bytes); /* -1: no such piece */

/* For the fingerprint, owned by t: the pieces, one a line in the order of their ids, each ended by one newline; and
 * what else there is to a tokenizer than pieces and the special tokens among them (empty where there is nothing). */
struct slice tokenizer_vocabulary(const struct tokenizer *t);
struct slice tokenizer_extras(const struct tokenizer *t);

#endif
