/* What only engine/'s own files share: the engine itself, the turns on the backend, and the prediction that evaluation
 * stands on. */
#ifndef ENGRAM_ENGINE_INTERNAL_H
#define ENGRAM_ENGINE_INTERNAL_H

#include <pthread.h>

#include "engine/engine.h"

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
    struct keys *keys; /* used by who holds the turn; NULL without a memory */
    size_t dim;
    size_t batch_tokens, slice_tokens;
    char model_version[17];
    struct turns turns;
};

struct predict_options engine_options(struct engine *g); /* those in force now; any thread */

/* How many of inputs[0..n) make one slice: at least one, at most count_max, together at most slice_tokens. */
size_t engine_slice(const struct engine *g, const struct tokens *const *inputs, size_t n, size_t count_max);

/* out [n, dim]: encodes slice by slice, each in a turn of its own. */
int engine_encode_turns(struct engine *g, enum turn turn, const struct tokens *const *inputs, size_t n, float *out,
                        struct error *e);

/* engine_predict with other options than the engine's. After an error, out holds nothing: freeing it is harmless. */
int engine_predict_with(struct engine *g, const struct predict_options *options, const struct tokens *const *inputs,
                        size_t n, struct prediction *out, struct predict_times *times, struct error *e);

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
