/* The encoder f(x): a Hugging Face / sentence-transformers folder of the BERT family, WordPiece, the forward pass on a
 * backend, pooling, an optional Dense, L2 norm. Reads the folder once at open; nothing of it is changed later. */
#ifndef ENGRAM_GPU_ENCODER_ENCODER_H
#define ENGRAM_GPU_ENCODER_ENCODER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"
#include "gpu/backend.h"

struct encoder;

struct encoder_options {
    const char *folder;
    size_t max_seq_length;    /* 0: the model's own; counts [CLS] and [SEP] */
    const char *text_prefix;  /* put before each text unchanged; NULL or "": the folder's default prompt, if any */
    const char *label_prefix; /* the same for label texts */
    bool masters;             /* keep the matrices' values as they are in the file too, for who trains them */
};

enum encoder_input { ENCODER_TEXT, ENCODER_LABEL };

/* Word-piece ids of one input, [CLS] and [SEP] included, after truncation. */
struct tokens {
    int32_t *ids; /* owned; tokens_free */
    uint32_t count;
    bool truncated;
};

/* Errors are FATAL E_MODEL: one line that names the file and what this reader cannot do. The backend must outlive the
 * encoder. */
int encoder_open(struct encoder **out, struct backend *backend, const struct encoder_options *options, struct error *e);
void encoder_close(struct encoder *enc);

size_t encoder_dim(const struct encoder *enc);
size_t encoder_max_seq_length(const struct encoder *enc);
size_t encoder_vocabulary(const struct encoder *enc);         /* every token's id is below this */
const char *encoder_name(const struct encoder *enc);          /* the folder's last name */
const char *encoder_fingerprint(const struct encoder *enc);   /* 32 hex digits, over what the encoder uses */
const char *encoder_model_version(const struct encoder *enc); /* its first 16 */

/* Any thread may tokenize; valid UTF-8 goes in. */
void encoder_tokenize(const struct encoder *enc, enum encoder_input input, struct slice text, struct tokens *out);
void tokens_free(struct tokens *t);

/* Parameters by name, for whoever trains them: one a matrix or norm, named as in the folder's file without `.weight`;
 * the three matrices of a layer's attention are one, `encoder.layer.N.attention.self`, with q, k and v one below the
 * other. The matrix of a Dense module is `dense`, the last; its bias is zero where the folder has none. */
enum parameter_kind {
    PARAMETER_TABLE,  /* weight [rows, columns]: an embedding */
    PARAMETER_NORM,   /* gamma and beta: weight [columns] and bias [columns]; rows is 1 */
    PARAMETER_LINEAR, /* weight [rows, columns] and bias [rows]: out = in W' + bias */
};

struct encoder_parameter {
    char name[80];
    enum parameter_kind kind;
    size_t rows, columns;
    struct tensor tensor;  /* the master values, f32 on the device: TABLE and LINEAR [rows, columns], NORM [2, columns];
                              no data for a LINEAR without encoder_options.masters */
    struct tensor bias;    /* LINEAR: [1, rows], as `tensor` */
    struct weight *packed; /* LINEAR, in the backend's layout; else NULL */
};

const struct encoder_parameter *encoder_parameters(const struct encoder *enc, size_t *count);

/* Puts new values (host memory, shapes as above; bias NULL for a TABLE) in place of parameter i's and packs them again.
 * No pass may be running. The fingerprint stays that of the folder. */
int encoder_parameter_set(struct encoder *enc, size_t i, const float *weight, const float *bias, struct error *e);

/* What a pass makes of each sequence, in the stream's arena: the norms and, after them in the same memory, so that one
 * download may take both, the vectors. */
struct encoded {
    struct tensor norms;   /* [sequences, 1] f32: not finite where the vector is not */
    struct tensor vectors; /* [sequences, encoder_dim] f32: f(x) */
};

/* Puts f(x) of the tile's sequences on the stream: *out is right until the stream's next pass. The tile is the host's
 * and must stay as it is until `wait`. between (may be NULL) is called between two layers, where the backend lets the
 * thread do something else there. */
int encoder_pass(const struct encoder *enc, struct stream *s, const struct tile *tile, void (*between)(void *context),
                 void *context, struct encoded *out, struct error *e);

/* 0, or -1: the norm of sequence i of n in its batch, of `tokens` word pieces, is not finite: FATAL E_MODEL. */
int encoder_norm_check(const struct encoder *enc, float norm, size_t tokens, size_t i, size_t n, struct error *e);

#endif
