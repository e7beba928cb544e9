/* WordPiece as BERT does it: a text to the ids that the encoder is fed, equal to what Hugging Face `tokenizers` makes
 * of the folder's tokenizer.json (BertNormalizer, BertPreTokenizer, WordPiece, [CLS] and [SEP] around). Room-internal.
 * A tokenizer never changes after it is opened: any number of threads may use one at the same time. */
#ifndef ENGRAM_GPU_ENCODER_TOKENIZER_H
#define ENGRAM_GPU_ENCODER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"

struct tokenizer;

/* Reads a vocab.txt: one piece a line, its id the line's number from 0. lower_case, strip_accents (pass lower_case
 * where the model's file says null) and tokenize_chinese_chars as in tokenizer_config.json. The caller closes it.
 * Errors are FATAL E_MODEL and name the file: unreadable, or a vocabulary without [UNK], [CLS] or [SEP]. */
int tokenizer_open(struct tokenizer **out, const char *vocab_path, bool lower_case, bool strip_accents,
                   bool tokenize_chinese_chars, struct error *e);
void tokenizer_close(struct tokenizer *t); /* NULL is fine */

/* Writes [CLS], the pieces of the text, [SEP] to ids, at most ids_max (at least 2) of them, and returns how many.
 * *truncated (NULL is fine) is true when pieces were dropped. Special tokens spelt in the text are taken as such.
 * Time is linear in the text, and no more of it is read than is needed to fill ids. The text is UTF-8; bytes that are
 * not are read as U+FFFD. */
size_t tokenizer_encode(const struct tokenizer *t, const char *text, size_t text_bytes, int32_t *ids, size_t ids_max,
                        bool *truncated);

size_t tokenizer_vocab_size(const struct tokenizer *t);
int32_t tokenizer_piece_id(const struct tokenizer *t, const char *piece, size_t piece_bytes); /* -1: no such piece */

/* The pieces as read, one a line in the order of their ids, each ended by one newline (for the fingerprint). Owned by
 * t. */
struct slice tokenizer_vocabulary(const struct tokenizer *t);

#endif
