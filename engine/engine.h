/* RAE inference (arXiv 2502.10615) on encoder, backend and memory: predict, fold, forget, evaluate. No Kafka here: the
 * stage and the command line use it as it is. p = sum over the top-b keys of softmax(score / tau) * v, score = q.k, or
 * q.k + a * a lexical score; v = lambda * y for instances, (1 - lambda) * (1 + count)^-g * e for labels. The engine
 * hands the device out tile by tile: a waiting fold goes first, but never twice in a row while texts wait. Any thread
 * may call engine_predict and engine_fold. */
#ifndef ENGRAM_ENGINE_ENGINE_H
#define ENGRAM_ENGINE_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"
#include "engine/metrics.h"
#include "gpu/backend.h"
#include "gpu/encoder/encoder.h"
#include "record/record.h"
#include "store/memory.h"

enum lexical_form { LEXICAL_COSINE, LEXICAL_BM25, LEXICAL_FORMS }; /* see engine/lexical.h */

struct predict_options {
    bool apart; /* the b / 2 best of each kind, a softmax for each (arXiv 2511.13189); else the b best of both, one
                   softmax */
    double lambda, tau;
    size_t b;
    double lexical; /* a: keys are ranked by q.k + a * their lexical score (engine/lexical.h); 0: by q.k alone */
    enum lexical_form lexical_form;
    double label_power;        /* g: label keys are weighted by (1 + instances that have the label)^-g */
    size_t lexical_candidates; /* of each kind, by q.k */
    size_t labels_max;         /* 0: no limit */
    double min_score;
    size_t evidence_max;
    bool evidence_text;
};

struct engine;

/* Borrowed: all three must outlive the engine. memory may be NULL where only encoding is asked for; backend and encoder
 * where only forgets are folded. Errors: FATAL E_USAGE (an option outside its range), E_FINGERPRINT (the memory's
 * vectors are not the encoder's). */
int engine_open(struct engine **out, struct backend *backend, struct encoder *encoder, struct memory *memory,
                const struct predict_options *options, struct error *e);
void engine_close(struct engine *g);
/* Other options from the next batch on; one that is under way ends with the old ones. Any thread. -1: E_USAGE as
 * engine_open, and the old ones stay. */
int engine_options_set(struct engine *g, const struct predict_options *options, struct error *e);
struct encoder *engine_encoder(const struct engine *g);
/* The backend's best batch: more tokens at once gain nothing but the wait, so a batch of more is cut into slices of at
 * most so many. */
size_t engine_slice_tokens(const struct engine *g);

/* Encode: out [n, dim] f32. */
int engine_encode(struct engine *g, const struct tokens *const *inputs, size_t n, float *out, struct error *e);

/* Predict from one snapshot of the memory: out[n], each freed with prediction_free. Inputs come tokenized. */
struct predict_times { /* microseconds of the whole device, or of the host beside it, for metrics; may be NULL */
    uint64_t encode_us, retrieve_us;
};
int engine_predict(struct engine *g, const struct tokens *const *inputs, size_t n, struct prediction *out,
                   struct predict_times *times, struct error *e);
/* engine_predict with other options than the engine's, for this call alone; they must be in the ranges that engine_open
 * asks for. After an error, out holds nothing: freeing it is harmless. */
int engine_predict_with(struct engine *g, const struct predict_options *options, const struct tokens *const *inputs,
                        size_t n, struct prediction *out, struct predict_times *times, struct error *e);

/* engine_predict_with in two halves (options NULL: the engine's), so that the device works on one batch while the last
 * one is finished. begin hands the batch to the device; end waits, aggregates and frees *p, also after an error.
 * Batches end in the order in which they began; inputs stay as they are until then. After E_DEVICE_MEMORY, which is
 * RETRY, the same inputs may begin again at once, before others end. */
struct predicting;
int engine_predict_begin(struct engine *g, const struct predict_options *options, const struct tokens *const *inputs,
                         size_t n, struct predicting **p, struct error *e);
int engine_predict_end(struct predicting *p, struct prediction *out, struct predict_times *times, struct error *e);
/* Returns when every batch that has begun is in work to its last slice: time to begin the next. Another thread ends
 * them meanwhile. */
void engine_wait_begun(struct engine *g);

/* One change of the memory, in the order of its partition. */
enum fold_kind {
    FOLD_INSTANCE, /* fold or replace an instance */
    FOLD_LABEL,    /* define or redefine a label */
    FOLD_FORGET,   /* forget an instance */
    FOLD_UNDEFINE, /* forget a label's definition */
    FOLD_SKIP,     /* nothing but the offset: a record without a usable key */
};

struct fold {
    enum fold_kind kind;
    struct slice name; /* the instance's id or the label's name */
    struct slice text;
    const struct slice *labels; /* sorted, no repeats */
    size_t labels_count;
    struct memory_source source; /* topic bytes 0: by hand */
    struct record_mark mark;     /* stored with the source's offset; may be unknown */
    bool found;                  /* out: for a forget, whether there was something to forget */
    bool moved;                  /* out: the key was last seen in another partition */
};

/* Encodes what needs it and applies all in one transaction, offsets included: source.offset + 1 of each record with a
 * topic. *applied counts the records that were committed: n on success; on E_KEYS_MAX those before the first refused
 * one; on E_MAP_FULL a part, smaller and smaller until it fits. E_MAP_FULL, E_DISK_FULL, E_KEYS_MAX and E_DEVICE_MEMORY
 * are RETRY: nothing is lost, try again from record *applied (at once where *applied is above 0, later where it is 0).
 * found and moved are set for the records that were committed. */
int engine_fold(struct engine *g, struct fold *folds, size_t n, size_t *applied, struct error *e);

/* While false (a stage that catches up before it is ready), folds need not let texts through. true: also counts words,
 * where a lexical score is asked for, and has the device take the keys, now and after each fold, so that no text waits
 * for it. */
void engine_set_ready(struct engine *g, bool ready);
/* Where the device is not the host: has it take the keys as they are now, and see that all who have a part of them are
 * there; where nothing has changed that costs next to nothing. -1: FATAL, the device is of no use any more. What may
 * pass is left to the next text. */
int engine_refresh(struct engine *g, struct error *e);

/* ---- evaluation ---- */

/* A and B where the user names none: those of the field (Jain et al. 2016). */
#define PROPENSITY_DEFAULT                                                                                             \
    {                                                                                                                  \
        .a = 0.55, .b = 1.5                                                                                            \
    }

/* Label counts and N for propensities and deciles. */
struct propensity_source {
    double a, b;
    bool from_train;             /* false: from the memory's instances */
    uint64_t n;                  /* from_train: number of instances */
    const struct slice *names;   /* from_train: label names, sorted */
    const uint64_t *name_counts; /* from_train */
    size_t names_count;
};

/* What turns similarities into labels: the part of predict_options that evaluation compares. */
struct setting {
    bool apart;
    double lambda, tau, lexical;
    enum lexical_form form; /* means nothing where lexical is 0 */
    double label_power;
    size_t b;
};

struct setting setting_of(const struct predict_options *o);

struct evaluation_options {
    struct propensity_source propensity; /* its names and counts are borrowed */
    /* Borrowed, all evaluated from one retrieval per text, cheapest where they have much in common. NULL: the engine's
     * options, one setting, and only then deciles and label counts. */
    const struct setting *settings;
    size_t settings_count;
    bool keep_texts;                /* for evaluation_text */
    size_t at[METRICS_CUTOFFS_MAX]; /* the k's, each 1 to METRICS_RANK_MAX */
    size_t at_count;                /* at least 1 */
    bool exclude_self;              /* a label named as the text's id is neither predicted nor counted */
    bool per_label;                 /* count for evaluation_each_label */
};

/* In percent; see metrics.h for what each is. By cutoff in the order of options->at. p = 1 / (1 + C exp(-A ln(N_l +
 * B))), C = (ln N - 1)(B + 1)^A (Jain et al. 2016, equation 2): N_l instances of N have the label. PSP and PSnDCG are
 * NaN with N < 3; everything is where n is 0. */
struct metrics {
    uint64_t n; /* texts with at least one gold label left; the others are passed over */
    struct metrics_values at[METRICS_CUTOFFS_MAX];
    double calibration_error;
    struct metrics_decile { /* of the labels that the propensity source knows, rarest first */
        struct decile labels;
        uint64_t gold;                                 /* gold labels of the texts */
        struct metrics_values at[METRICS_CUTOFFS_MAX]; /* its labels' part of the whole: the ten add up */
        double recall[METRICS_CUTOFFS_MAX];            /* hits / gold; NaN where gold is 0 */
    } deciles[METRICS_DECILES];
};

/* What one label did over all n texts; hits and predictions by cutoff, in parts where scores were equal. */
struct evaluated_label {
    struct slice name;
    uint64_t train; /* in the propensity source; 0: not known there */
    uint64_t gold;  /* texts that have it */
    double predicted[METRICS_CUTOFFS_MAX], hits[METRICS_CUTOFFS_MAX];
};

struct evaluation; /* an accumulator */
/* Errors: as memory_look. */
int evaluation_open(struct evaluation **out, struct engine *g, const struct evaluation_options *options,
                    struct error *e);
/* Labels that are neither predicted nor counted for one text. */
struct left_out {
    const struct slice *labels;
    size_t count;
};
/* Is the label one of them, or `self`, the text's own name? Both may be NULL. */
bool is_left_out(const struct left_out *left_out, const struct slice *self, struct slice label);
/* Predicts the texts and adds them; labels[i] are text i's gold names (sorted). left_out[n], or NULL. Ignores
 * labels_max and min_score. */
int evaluation_add(struct evaluation *v, const struct instance_record *texts, const struct left_out *left_out, size_t n,
                   struct error *e);
/* How many instances have labels: what leave-one-out can draw from. */
int engine_labelled(struct engine *g, size_t *count, struct error *e);
/* Leave-one-out: `sample` of the memory's labelled instances (an order by their ids' hashes, the same for every
 * replica; `skip` of them are passed over), each retrieved and scored as if its own key were not there, its labels the
 * gold; with exclude_self also without the label named as its id. Needs settings and propensities from the memory.
 * progress (may be NULL) is called between batches. */
int evaluation_leave_one_out(struct evaluation *v, size_t skip, size_t sample,
                             void (*progress)(size_t done, size_t n, void *context), void *context, struct error *e);
void evaluation_metrics(const struct evaluation *v, size_t setting, struct metrics *out); /* setting 0 without a list */
/* With keep_texts: a text's own values, in the order of adding, all 0 where it has no gold labels; NULL behind the
 * last.
 */
const struct metrics_text *evaluation_text(const struct evaluation *v, size_t text, size_t setting);
/* With per_label: every label that is gold somewhere or was predicted within the deepest cutoff, by name; each()
 * returns 0 to go on, else the walk ends there and returns 0. */
int evaluation_each_label(const struct evaluation *v, int (*each)(const struct evaluated_label *l, void *context),
                          void *context, struct error *e);
void evaluation_close(struct evaluation *v);

#endif
