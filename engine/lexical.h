/* The lexical score of a key k for a text q, over word pieces and pairs of neighbouring word pieces, in one of two
 * forms. n keys in all, df of them with a term; a term that no key has is left out.
 *   cosine: cos(t(q), t(k)), t being TF-IDF: (1 + ln tf) * (ln((1 + n) / (1 + df)) + 1) for each term.
 *   bm25:   s(q, k) / s(q, q), s(q, k) being the sum over the terms of q of
 *             ln(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length(k) / mean length))
 *           with k1 1.2, b 0.75, lengths in word pieces (Robertson and Zaragoza, "The probabilistic relevance
 *           framework: BM25 and beyond", 2009; the idf that is never negative is Lucene's). It may pass 1.
 * Counts are exact: they follow every fold and forget. */
#ifndef ENGRAM_ENGINE_LEXICAL_H
#define ENGRAM_ENGINE_LEXICAL_H

#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"
#include "store/memory.h"

struct lexical; /* word pieces and counts of all keys of one version of the memory; about 6 bytes a piece */

struct lexical *lexical_open(void);
void lexical_close(struct lexical *x); /* NULL is fine */

/* Brings it to the snapshot's version; the cost follows what changed. Nobody may read meanwhile. */
void lexical_sync(struct lexical *x, const struct snapshot *s);

/* As if the key were not there (leave-one-out), and back. Its own score is not asked for meanwhile. */
void lexical_omit(struct lexical *x, uint64_t slot);
void lexical_restore(struct lexical *x, uint64_t slot);

/* One text to score keys by. Belongs to one thread; several may read one lexical at once. */
struct lexical_query;

struct lexical_query *lexical_query_open(void);
void lexical_query_close(struct lexical_query *q); /* NULL is fine */
/* pieces [count]: the text as encoded, without [CLS] and [SEP]. */
void lexical_query_set(struct lexical_query *q, const struct lexical *x, const int32_t *pieces, size_t count);
void lexical_query_of(struct lexical_query *q, const struct lexical *x, uint64_t slot); /* the text of a key */
/* scores [LEXICAL_FORMS][n], of the keys in slots [n]: 0 where a text or a key has no term. NULL for a form that is not
 * asked for; both at once cost little more than the cosine. */
void lexical_scores(struct lexical_query *q, struct lexical *x, const uint64_t *slots, size_t n,
                    float *const scores[LEXICAL_FORMS]);

#endif
