/* The lexical score: cos(t(q), t(k)), where t is TF-IDF over a text's word pieces and its pairs of neighbouring word
 * pieces. A term's weight is (1 + ln tf) * (ln((1 + n) / (1 + df)) + 1), n keys in all, df of them with that term; the
 * vector is L2-normalised; a term that no key has is left out. Counts are exact: they follow every fold and forget. */
#ifndef ENGRAM_ENGINE_LEXICAL_H
#define ENGRAM_ENGINE_LEXICAL_H

#include <stddef.h>
#include <stdint.h>

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
/* cosines [n], of the keys in slots [n]: 0 where a text or a key has no term. */
void lexical_cosines(struct lexical_query *q, struct lexical *x, const uint64_t *slots, size_t n, float *cosines);

#endif
