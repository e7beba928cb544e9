/* What only engine/'s own files share: the engine itself, encoding and retrieval, and the scores that prediction and
 * evaluation stand on. */
#ifndef ENGRAM_ENGINE_INTERNAL_H
#define ENGRAM_ENGINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/pool.h"
#include "engine/engine.h"
#include "engine/lexical.h"

/* ---- engine ---- */

/* A place where one piece of work computes: a worker's own, or that of the brief piece that it lets in. */
struct seat {
    struct stream *stream; /* opened by the first piece that comes here */
    void *host;            /* of the tile at hand, pinned where the backend has such memory */
    size_t host_bytes;
    /* in it */
    int32_t *ids;           /* [tokens] */
    uint32_t *starts;       /* [sequences + 1] */
    void *encoded;          /* as it comes from the device: */
    float *norms, *vectors; /* [sequences], [sequences, dim] */
};

/* Read-only after engine_open: what has no lock, but for the seats. */
struct engine {
    struct backend *backend; /* borrowed, as encoder and memory */
    struct encoder *encoder;
    struct memory *memory;
    struct pool *pool;  /* NULL without an encoder */
    struct seat *seats; /* [pool_seats]: each used by who works there */
    struct keys *keys;  /* NULL without a memory */
    size_t dim;
    size_t slice_tokens;
    atomic_size_t tile_tokens; /* the backend's, or fewer once the device had no room for so many */
    char model_version[17];
    pthread_mutex_t options_lock; /* covers options: a batch takes a copy as it begins */
    struct predict_options options;
    pthread_mutex_t snapshot_lock;          /* covers unseen, and `snapshot` and `next_unseen` of those in it */
    struct retrieval *unseen;               /* begun and without a snapshot, the oldest first */
    pthread_mutex_t begin_lock;             /* covers unbegun */
    pthread_cond_t begun;                   /* it became 0 */
    size_t unbegun;                         /* batches with slices that have not begun */
    atomic_bool ready;                      /* texts come: folds go first, but not always; see engine_set_ready */
    pthread_mutex_t refresh_lock;           /* covers the one below */
    struct stream *refresher;               /* of engine_refresh; NULL: not yet */
    pthread_mutex_t words_lock;             /* covers the two below */
    struct lexical *lexical;                /* NULL until a lexical score was asked for */
    struct lexical_query **lexical_queries; /* [pool_hands] */
};

struct predict_options engine_options(struct engine *g); /* those in force now; any thread */

/* Brings g->lexical to the snapshot's version; the caller holds words_lock. */
void engine_lexical_sync(struct engine *g, const struct snapshot *s);

/* How many of inputs[0..n) make one slice: at least one, at most count_max, together at most slice_tokens. */
size_t engine_slice(const struct engine *g, const struct tokens *const *inputs, size_t n, size_t count_max);

/* ---- encoding (tiles.c): texts to vectors, tile by tile ---- */

/* A batch that is dealt out into tiles, each of which goes through the encoder on one stream. Zeroed, then the caller
 * sets what stands before `job`. */
struct encoding {
    struct engine *g;
    const struct tokens *const *inputs; /* [n] */
    size_t n;
    enum lane lane;
    float *out; /* [n, dim], or NULL */
    /* NULL, or puts on the stream what else is to be done with the tile's vectors [.., dim], those of the texts
     * dealt[first..]. */
    int (*then)(struct encoding *x, struct stream *s, const struct tensor *vectors, size_t first, struct error *e);

    struct job job;
    size_t *dealt;              /* [n]: which input, tile by tile */
    size_t *firsts;             /* [tiles + 1]: where each tile's begin in dealt */
    _Atomic uint64_t encode_us; /* of all tiles, as far as the backend does not run on by itself */
    _Atomic uint64_t tiles_us;  /* of all tiles, with what `then` put there */
    atomic_long open;           /* tiles that are not done */
};

void encoding_begin(struct encoding *x);
int encoding_end(struct encoding *x, struct error *e); /* waits */
void encoding_free(struct encoding *x);                /* dealt and firsts, once end has returned */

/* Encodes in that lane: out [n, dim]. */
int engine_encode_lane(struct engine *g, enum lane lane, const struct tokens *const *inputs, size_t n, float *out,
                       struct error *e);

/* run(first, n), and where that fails with E_DEVICE_MEMORY both halves of it, down to parts of one. e is not NULL, and
 * of kind ERROR_NONE before and after what succeeds. */
int run_in_halves(int (*run)(void *context, size_t first, size_t n, struct error *e), void *context, size_t first,
                  size_t n, struct error *e);

/* The seat's stream, opened where it has none yet. */
int seat_stream(struct engine *g, size_t seat, struct stream **out, struct error *e);
void seat_close(struct engine *g, struct seat *seat);

/* ---- retrieval (retrieve.c): a text's keys ---- */

enum { INSTANCES, LABELS, KINDS }; /* places in what is kept by kind */

/* A key found for a text. */
struct match {
    uint64_t slot, tie;
    float similarity;             /* q.k */
    float lexical[LEXICAL_FORMS]; /* of those that were asked for */
    float score;                  /* by which it is ranked: q.k + a * one of them */
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
    bool lexical[LEXICAL_FORMS]; /* which lexical scores are asked for too */
};

/* One slice's. */
struct retrieval {
    struct encoding encoding; /* first */
    struct engine *g;
    struct search search;
    struct retrieval *next_unseen;
    struct snapshot *snapshot;    /* taken when the first tile is encoded, if retrieval_see or the caller has not */
    bool borrowed;                /* the caller's snapshot */
    size_t texts;                 /* room, in texts */
    float *queries;               /* [texts, dim]: retrieval_search's; the caller sets it */
    struct keys_hit *hits[KINDS]; /* [texts, count] each, of dealt texts; all in the first where searched together */
    uint32_t *hit_counts[KINDS];  /* [texts] */
    struct match *found;          /* [texts, matches_max] */
    size_t matches_max;
    struct matches *matches; /* [texts]: of the slice's inputs */
    uint64_t encode_us, search_us;
};

/* Room for slices of at most `texts` texts, or fewer where they need much memory: see r->texts. */
void retrieval_open(struct retrieval *r, struct engine *g, const struct search *search, size_t texts);
void retrieval_close(struct retrieval *r);
/* Encodes and searches: n at most r->texts, together at most one slice of tokens. Between begin and end the device
 * works and r stays where it is. */
void retrieval_begin(struct retrieval *r, const struct tokens *const *inputs, size_t n);
/* Sees to it that r has its snapshot, and all that began before it. */
int retrieval_see(struct retrieval *r, struct error *e);
/* r->matches [n], their lexical scores included. */
int retrieval_end(struct retrieval *r, struct error *e);
/* The lexical score of matches of the row in `slot`, as if that row were not there. The caller holds words_lock, and
 * has synced. */
int retrieval_score_own(struct retrieval *r, uint64_t slot, struct matches *m, struct error *e);
/* r->matches [n] of r->queries [n] as they are, without a lexical score; the snapshot is set. */
int retrieval_search(struct retrieval *r, size_t n, struct error *e);

/* ---- weights (score.c) ---- */

/* Scores and ranks one kind's matches, `count` of them, and keeps the `keep` best; returns how many. */
uint32_t matches_rank(struct match *matches, uint32_t count, double lexical, enum lexical_form form, size_t keep);
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

/* What is searched so that every setting finds its keys. */
struct search search_for(const struct setting *settings, size_t count, size_t lexical_candidates);
bool search_lexical(const struct search *s); /* whether any lexical score is asked for */

/* A text to be scored: its matches of each kind by falling q.k, and what its labels are judged by, if at all. */
struct judged {
    struct matches matches;
    struct gold_label *gold; /* [gold_count], by falling 1/p */
    uint32_t *gold_ids;      /* [gold_count]; NO_LABEL: the memory does not know it */
    size_t gold_count;
    bool left_out;      /* an instance of the memory, as if it were not there: its labels, the gold, have one less */
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
    double *const *weights;        /* [KINDS][matches]: what each gives, before lambda */
};
typedef void scorer_each(void *context, size_t setting, const struct scored_text *scored);

/* For a label id in a value that no label has, and for a key of a slot that holds nothing. */
int label_lost(uint32_t id, struct error *e);
int slot_lost(uint64_t slot, struct error *e);

struct scorer; /* one thread's */
struct scorer *scorer_open(const struct scorer_options *options);
void scorer_close(struct scorer *s); /* NULL is fine */
/* What texts are scored against from now on; borrowed. */
void scorer_snapshot(struct scorer *s, const struct snapshot *snapshot);
/* Calls each() once for every setting, in any order. */
int scorer_text(struct scorer *s, const struct judged *text, scorer_each *each, void *context, struct error *e);

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
