/* What the files of gpu/encoder/ share: what the folder says (folder.c), the parameters and their loading (encoder.c,
 * parameters.c) and the forward pass (forward.c). */
#ifndef ENGRAM_GPU_ENCODER_INTERNAL_H
#define ENGRAM_GPU_ENCODER_INTERNAL_H

#include "base/json.h"
#include "gpu/encoder/encoder.h"
#include "gpu/encoder/tokenizer.h"

/* ---- reading a folder's JSON files ------------------------------------------------------------------------------- */

/* One JSON file of the folder being read, and where to say what is wrong with it. All -1 below have said it: FATAL
 * E_MODEL. */
struct reading {
    const char *folder;
    const char *file;        /* its name inside the folder, for messages; NULL: the folder itself is meant */
    const struct json *json; /* NULL: there is no such file */
    struct arena *arena;     /* where its tree is */
    struct error *e;
};

void reading_complain(const struct reading *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A macro, so that clang's analyser sees the -1: it does not look into variadic functions. */
#define refuse(...) (reading_complain(__VA_ARGS__), -1)

char *reading_path(const char *folder, const char *inside, const char *file); /* the caller frees it */

/* 1: r->json is what the file holds; 0: there is no such file; -1: it cannot be read. */
int reading_file(struct reading *r, const char *inside, const char *file);
int reading_object(struct reading *r, const char *inside, const char *file);  /* the same; it must be an object */
struct reading reading_inside(const struct reading *r, const char *name);     /* of that member, as a file */
const struct json *reading_member(const struct reading *r, const char *name); /* NULL: absent or null */
int reading_flag(const struct reading *r, const char *name, bool absent, bool *out); /* absent: what it then is */
/* `absent` 0: it must be there. */
int reading_size(const struct reading *r, const char *name, size_t low, size_t high, size_t absent, size_t *out);
/* Refused unless absent or this very value. */
int reading_text_expect(const struct reading *r, const char *name, const char *expected);
int reading_flag_expect(const struct reading *r, const char *name, bool expected);
bool json_text_is(const struct json *j, const char *text);
const char *json_shown(const struct json *j); /* for a message */

/* ---- folder ------------------------------------------------------------------------------------------------------ */

#define LENGTH_MIN 3 /* tokens: [CLS], one piece, [SEP] */

/* What a model folder's files say, checked: everything in it is something that we run as the authors' library
 * does. */
struct model_config {
    char *weights_path; /* model.safetensors */
    char *dense_path;   /* the Dense module's; NULL: there is none */
    bool dense_bias;
    struct tokenizer *tokenizer;
    char *prompt; /* what the folder puts before every text; NULL: nothing */
    size_t layers, dim, heads, intermediate;
    size_t width;                        /* of a vector: dim, or what a Dense makes of it */
    size_t vocabulary, positions, types; /* rows of the embeddings */
    float epsilon;                       /* of the layer norms */
    enum pooling pooling;
    size_t max_seq_length;
    bool lower_text; /* sentence-transformers' own flag: the whole text in lower case before the tokenizer sees it */
    bool lower_case, strip_accents, tokenize_chinese_chars; /* the tokenizer's */
};

/* Errors are FATAL E_MODEL: one line that names what cannot be run. model_config_free releases, also after an error. */
int model_config_read(struct model_config *out, const char *folder, struct error *e);
/* The part of it that is the tokenizer (tokenizer_folder.c): the flags and the tokenizer of `out`, whose embeddings'
 * rows are known. *length becomes the length limit that tokenizer_config.json names, where that is smaller. */
int folder_tokenizer_open(struct model_config *out, const struct reading *r, const char *inside, size_t *length);
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
    struct stream *stream; /* on which parameters are loaded and set */
    bool masters;          /* matrices keep their master values too */
    struct model_config config;
    struct encoder_parameter *parameters;
    size_t parameter_count;
    const struct encoder_parameter *dense; /* after pooling; NULL: none */
    struct layer *layers;                  /* [config.layers] */
    char *name;
    char *prefixes[2]; /* by enum encoder_input */
    char fingerprint[33];
    char model_version[17];
};

/* Places in parameters; six to a layer follow, then the Dense's, if any. */
enum { WORD, POSITION, TYPE, EMBEDDING_NORM, FIRST_LAYER };

/* Reads the weights into enc->parameters and takes the fingerprint; enc->config and prefixes are set. */
int parameters_load(struct encoder *enc, struct error *e);
void parameters_free(struct encoder *enc);

/* ---- the forward pass -------------------------------------------------------------------------------------------- */

/* A layer's tensors on the device. Those after `hidden` have a place of their own only where a backward pass needs
 * them. */
struct layer_pass {
    struct tensor qkv;                                 /* [tokens, 3 dim] */
    struct tensor context;                             /* [tokens, dim]: attention's output */
    struct tensor middle;                              /* [tokens, dim]: the norm of attended + the layer's input */
    struct tensor hidden;                              /* [tokens, intermediate]: after GELU */
    struct tensor attended;                            /* [tokens, dim]: context after its matrix */
    struct tensor projected;                           /* [tokens, dim]: hidden after its matrix */
    struct tensor out;                                 /* [tokens, dim]: the norm of projected + middle */
    struct tensor before_gelu, log_sums, norm1, norm2; /* what the operations keep */
};

struct pass {
    struct tensor tokens;     /* [tokens, dim]: the embeddings; without keep each layer's output too */
    struct tensor embed_norm; /* what embed keeps */
    struct tensor pooled;     /* [sequences, dim] */
    struct tensor vectors;    /* [sequences, width]: f(x) */
    struct tensor norms;      /* [sequences, 1]: of the vectors before they had length 1 */
    bool keep;
    struct layer_pass *layers; /* the caller's: [layers] with keep, else [1] */
};

/* Places all tensors in `memory` of the device, one after the other; returns the bytes that they take. */
size_t pass_place(const struct encoder *enc, struct pass *p, void *memory, size_t tokens, size_t sequences, bool keep);

/* p->vectors = f(x) for the tile's sequences; between: see encoder_pass. */
int forward_pass(const struct encoder *enc, struct stream *s, const struct tile *tile, const struct pass *p,
                 void (*between)(void *context), void *context, struct error *e);

#endif
