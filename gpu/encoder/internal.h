/* What the files of gpu/encoder/ share: what the folder says (folder.c), the parameters and their loading (encoder.c,
 * parameters.c) and the forward pass (forward.c). */
#ifndef ENGRAM_GPU_ENCODER_INTERNAL_H
#define ENGRAM_GPU_ENCODER_INTERNAL_H

#include "gpu/encoder/encoder.h"
#include "gpu/encoder/tokenizer.h"

/* ---- folder ------------------------------------------------------------------------------------------------------ */

/* What a model folder's JSON files say, checked: everything in it is something that we run as the authors' library
 * does. */
struct model_config {
    char *weights_path; /* model.safetensors */
    char *vocab_path;   /* vocab.txt */
    size_t layers, dim, heads, intermediate;
    size_t vocabulary, positions, types; /* rows of the embeddings */
    float epsilon;                       /* of the layer norms */
    enum pooling pooling;
    size_t max_seq_length;
    bool lower_case, strip_accents, tokenize_chinese_chars;
};

/* Errors are FATAL E_MODEL: one line that names what stands in the way. model_config_free releases, also after an
 * error. */
int model_config_read(struct model_config *out, const char *folder, struct error *e);
void model_config_free(struct model_config *config);

/* ---- the encoder ------------------------------------------------------------------------------------------------- */

/* A layer's parameters, in the order in which they are used. */
struct layer {
    const struct encoder_parameter *attention; /* q, k and v: [3 dim, dim] */
    const struct encoder_parameter *attention_output, *attention_norm;
    const struct encoder_parameter *hidden, *output, *output_norm;
};

struct encoder {
    struct backend *backend;
    struct model_config config;
    struct tokenizer *tokenizer;
    struct encoder_parameter *parameters;
    size_t parameter_count;
    struct layer *layers; /* [config.layers] */
    char *name;
    char *prefixes[2]; /* by enum encoder_input */
    char fingerprint[33];
    char model_version[17];
};

enum { WORD, POSITION, TYPE, EMBEDDING_NORM, FIRST_LAYER }; /* places in parameters; six to a layer follow */

/* Reads model.safetensors into enc->parameters and takes the fingerprint; enc->config, tokenizer and prefixes are set.
 */
int parameters_load(struct encoder *enc, struct error *e);
void parameters_free(struct encoder *enc);

/* ---- the forward pass -------------------------------------------------------------------------------------------- */

/* Where a pass over `tokens` rows writes its intermediates: one layer's tensors one behind the other, each layer's at
 * its own place (keep: training reads them later) or all at the same. */
struct activations {
    float *memory;
    size_t rows; /* tokens rounded up to BACKEND_ROWS */
    bool keep;
};

size_t activations_floats(const struct encoder *enc, size_t tokens, bool keep);

/* out [sequences, dim] (device) = f(x); ids [tokens] and starts [sequences + 1] in host memory. */
void forward_pass(const struct encoder *enc, struct stream *s, const int32_t *ids, const uint32_t *starts,
                  size_t sequences, const struct activations *a, float *out);

#endif
