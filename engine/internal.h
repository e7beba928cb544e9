/* What only engine/'s own files share: the engine itself, the turns on the backend, and the prediction that evaluation
 * stands on. */
#ifndef ENGRAM_ENGINE_INTERNAL_H
#define ENGRAM_ENGINE_INTERNAL_H

#include <pthread.h>

#include "engine/engine.h"
#include "engine/lexical.h"

/* ---- turns ---- */

enum turn { TURN_TEXT, TURN_LEARN };

/* Who may use the backend now. Any thread; everything is covered by the lock. */
struct turns {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool busy;           /* somebody holds the backend */
    bool ready;          /* texts may not starve */
    enum turn last;      /* who holds it, or held it last */
    unsigned waiting[2]; /* by enum turn */
};

void turns_open(struct turns *t);
void turns_close(struct turns *t);
void turns_take(struct turns *t, enum turn turn); /* waits until it is this one's turn */
void turns_give(struct turns *t);
void turns_ready(struct turns *t, bool ready);

/* ---- engine ---- */

/* Everything but turns, keys and options is read-only after engine_open. */
struct engine {
    struct backend *backend; /* borrowed, as encoder and memory; used by who holds the turn */
    struct encoder *encoder;
    struct memory *memory;
    pthread_mutex_t options_lock; /* covers options: a batch takes a copy as it begins */
    struct predict_options options;
    struct keys *keys;                      /* used by who holds the turn; NULL without a memory */
    struct lexical *lexical;                /* the same; NULL until a lexical score was asked for */
    struct lexical_query **lexical_queries; /* [streams] */
    size_t dim;
    size_t batch_tokens, slice_tokens;
    char model_version[17];
    struct turns turns;
};

struct predict_options engine_options(struct engine *g); /* those in force now; any thread */

/* Brings g->lexical to the snapshot's version; the caller holds the turn. */
void engine_lexical_sync(struct engine *g, const struct snapshot *s);

/* How many of inputs[0..n) make one slice: at least one, at most count_max, together at most slice_tokens. */
size_t engine_slice(const struct engine *g, const struct tokens *const *inputs, size_t n, size_t count_max);

/* out [n, dim]: encodes slice by slice, each in a turn of its own. */
int engine_encode_turns(struct engine *g, enum turn turn, const struct tokens *const *inputs, size_t n, float *out,
                        struct error *e);

/* ---- retrieval (retrieve.c): a text's keys ---- */

enum { INSTANCES, LABELS, KINDS }; /* places in what is kept by kind */

/* A key found for a text. */
struct match {
    uint64_t slot, tie;
    float similarity; /* q.k */
    float lexical;    /* cos(t(q), t(k)); 0 where it was not asked for */
    float score;      /* by which it is ranked: q.k + a cos(t(q), t(k)) */
};

/* A text's matches of each kind, both in falling score (ties: the smaller `tie`, then slot). */
struct matches {
    struct match *of[KINDS];
    uint32_t counts[KINDS];
};

/* What is searched: the same for every text of a call. */
struct search {
    bool together;     /* the `count` best of both kinds; else of each */
    bool kinds[KINDS]; /* which kinds are candidates */
    size_t count;
    bool lexical; /* the lexical score is asked for too */
};

struct retrieval {
    struct engine *g;
    struct search search;
    struct snapshot *snapshot; /* taken in the first turn */
    size_t texts;              /* room, in texts */
    float *queries;            /* [texts, dim] */
    struct keys_hit *hits;     /* [texts, count], of one search */
    uint32_t *hit_counts;      /* [texts] */
    struct match *found;       /* [texts, matches_max] */
    size_t matches_max;
    struct matches *matches; /* [texts]: of the slice at hand */
    uint64_t encode_us, search_us;
};

/* Room for slices of at most `texts` texts, or fewer where they need much memory: see r->texts. */
void retrieval_open(struct retrieval *r, struct engine *g, const struct search *search, size_t texts);
void retrieval_close(struct retrieval *r);
/* Encodes and searches in one turn on the backend: n at most r->texts, together at most one slice of tokens. */
int retrieval_slice(struct retrieval *r, const struct tokens *const *inputs, size_t n, struct error *e);
/* The lexical score of matches of the row in `slot`, as if that row were not there; the caller holds the turn. */
int retrieval_score_own(struct retrieval *r, uint64_t slot, struct matches *m, struct error *e);
/* The same for r->queries [n] as they stand, without a lexical score; the caller holds the turn. */
int retrieval_search(struct retrieval *r, size_t n, struct error *e);

/* ---- weights (score.c) ---- */

/* Scores and ranks one kind's matches, `count` of them, and keeps the `keep` best; returns how many. */
uint32_t matches_rank(struct match *matches, uint32_t count, double lexical, size_t keep);
size_t half_of(size_t b); /* at least 1 */
/* Leaves the b best: apart half of b of each kind, else b of both together. */
void matches_cut(struct matches *m, bool apart, size_t b);
/* weights: softmax(score / tau), apart over each kind by itself, else over both. */
void matches_weigh(const struct matches *m, bool apart, double tau, double *weights[KINDS]);

/* The labels that a text's matches name: label id -> place, a hash table by open addressing. Zero-initialise to start.
 */
struct tally {
    uint32_t *labels; /* [count] */
    uint32_t count, mask, epoch;
    struct tally_place {
        uint32_t epoch, at;
    } * places; /* [mask + 1], at least twice as many as labels */
};
#define NO_LABEL UINT32_MAX

void tally_clear(struct tally *t);
uint32_t tally_place(struct tally *t, uint32_t label);      /* its place, a new one where it has none */
uint32_t tally_find(const struct tally *t, uint32_t label); /* NO_LABEL: it has none */
void tally_free(struct tally *t);

/* ---- the scorer (scorer.c): from a text's matches to its labels, by one setting or many ---- */

struct setting setting_of(const struct predict_options *o);
/* What is searched so that every setting finds its keys. */
struct search search_for(const struct setting *settings, size_t count, size_t lexical_candidates);

/* A text to be scored: its matches of each kind by falling q.k, and what its labels are judged by, if at all. */
struct judged {
    struct matches matches;
    struct gold_label *gold; /* [gold_count], by falling 1/p */
    uint32_t *gold_ids;      /* [gold_count]; NO_LABEL: the memory does not know it */
    size_t gold_count;
    uint32_t *unwanted; /* [unwanted_count]: labels that are not predicted */
    size_t unwanted_count;
};

struct scorer_options {
    const struct setting *settings; /* borrowed */
    size_t settings_count;
    size_t lexical_candidates;
    size_t depth; /* how many labels are wanted */
    double least; /* the lowest score that is */
};

/* What one setting makes of a text; valid until the scorer goes on. */
struct scored_text {
    const struct ranked_label *labels; /* [count] by falling score, to the end of the run of ties at the depth */
    const uint32_t *ids;               /* [count]: the memory's */
    size_t count;
    const struct matches *matches; /* the b best */
    double *const *weights;        /* [KINDS][matches] */
};
typedef void scorer_each(void *context, size_t setting, const struct scored_text *scored);

struct scorer; /* one thread's */
struct scorer *scorer_open(const struct scorer_options *options);
void scorer_close(struct scorer *s); /* NULL is fine */
/* Calls each() once for every setting, in any order. */
int scorer_text(struct scorer *s, const struct snapshot *snapshot, const struct judged *text, scorer_each *each,
                void *context, struct error *e);

/* ---- counts of labels ---- */

/* Label name -> counts, for evaluation_each_label; zero-initialise to start. */
struct label_counts {
    struct evaluated_label *entries;
    size_t count;
    uint32_t *places; /* [mask + 1]: entry + 1, by open addressing on the name's hash; at least twice as many */
    size_t mask;
    struct arena names;
};

/* The label's entry, new with zeros; valid until the next call. */
struct evaluated_label *label_counts_of(struct label_counts *t, struct slice name);
/* The entries by name; the array is the caller's to free, what it points to is not. */
const struct evaluated_label **label_counts_sorted(const struct label_counts *t);
void label_counts_free(struct label_counts *t);

#endif
