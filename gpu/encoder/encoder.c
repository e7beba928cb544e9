/* The encoder as other rooms see it: opening a folder, tokenizing, and what it is called. The rest is in folder.c,
 * parameters.c, tokenizer.c and forward.c. An open encoder never changes, unless by encoder_parameter_set. */
#include "gpu/encoder/encoder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/encoder/codepoint.h"
#include "gpu/encoder/internal.h"

static int length_choose(struct encoder *enc, size_t asked, const char *folder, struct error *e)
{
    if (asked == 0) {
        return 0;
    }
    if (asked < LENGTH_MIN || asked > enc->config.positions) {
        return error_set(e, ERROR_FATAL, E_MODEL,
                         "max_seq_length %zu: model folder %s has positions for %d to %zu tokens", asked, folder,
                         LENGTH_MIN, enc->config.positions);
    }
    enc->config.max_seq_length = asked;
    return 0;
}

/* The option wins over the folder's own prompt. */
static char *prefix_choose(const char *option, const char *prompt)
{
    const char *prefix = option && *option ? option : prompt ? prompt : "";
    return mem_string(prefix, strlen(prefix));
}

int encoder_open(struct encoder **out, struct backend *backend, const struct encoder_options *options, struct error *e)
{
    int result = -1;
    struct encoder *enc = mem_zero(1, sizeof *enc);
    struct model_config *c = &enc->config;
    enc->backend = backend;
    enc->masters = options->masters;
    struct slice name = slice_of_last_name(options->folder);
    enc->name = mem_string(name.data, name.bytes);
    if (model_config_read(c, options->folder, e) != 0 ||
        length_choose(enc, options->max_seq_length, options->folder, e) != 0) {
        goto done;
    }
    enc->prefixes[ENCODER_TEXT] = prefix_choose(options->text_prefix, c->prompt);
    enc->prefixes[ENCODER_LABEL] = prefix_choose(options->label_prefix, c->prompt);
    if (backend->ops->stream_open(backend, &enc->stream, e) != 0 || parameters_load(enc, e) != 0) {
        goto done;
    }
    *out = enc;
    enc = NULL;
    result = 0;
done:
    encoder_close(enc);
    return result;
}

void encoder_close(struct encoder *enc)
{
    if (!enc) {
        return;
    }
    parameters_free(enc);
    if (enc->stream) {
        enc->backend->ops->stream_close(enc->stream);
    }
    model_config_free(&enc->config);
    free(enc->prefixes[ENCODER_TEXT]);
    free(enc->prefixes[ENCODER_LABEL]);
    free(enc->name);
    free(enc);
}

size_t encoder_dim(const struct encoder *enc)
{
    return enc->config.width;
}

size_t encoder_vocabulary(const struct encoder *enc)
{
    return tokenizer_ids_end(enc->config.tokenizer);
}

size_t encoder_max_seq_length(const struct encoder *enc)
{
    return enc->config.max_seq_length;
}

const char *encoder_name(const struct encoder *enc)
{
    return enc->name;
}

const char *encoder_fingerprint(const struct encoder *enc)
{
    return enc->fingerprint;
}

const char *encoder_model_version(const struct encoder *enc)
{
    return enc->model_version;
}

const struct encoder_parameter *encoder_parameters(const struct encoder *enc, size_t *count)
{
    *count = enc->parameter_count;
    return enc->parameters;
}

/* A vector that is not finite would match no key, in silence. The model is at fault, not the text: no finite weight of
 * a trained model comes near f32's end. So this is FATAL: were the text refused as poison, replicas whose sums round
 * differently could otherwise disagree on which texts the memory holds. */
int encoder_norm_check(const struct encoder *enc, float norm, size_t tokens, size_t i, size_t n, struct error *e)
{
    return isfinite(norm) ? 0
                          : error_set(e, ERROR_FATAL, E_MODEL,
                                      "model %s: the vector of a text of %zu word pieces (number %zu of %zu in its "
                                      "batch) is not finite: the model's weights are damaged or too large; use another "
                                      "model",
                                      enc->name, tokens, i + 1, n);
}

void encoder_tokenize(const struct encoder *enc, enum encoder_input input, struct slice text, struct tokens *out)
{
    const struct slice prefix = slice_of(enc->prefixes[input]);
    const size_t max = enc->config.max_seq_length;
    struct buffer whole = {0};
    struct buffer lower = {0};
    if (prefix.bytes > 0) { /* one string: a piece may span the seam */
        buffer_append(&whole, prefix.data, prefix.bytes);
        buffer_append(&whole, text.data, text.bytes);
        text = (struct slice){whole.data, whole.bytes};
    }
    if (enc->config.lower_text && text.bytes > 0) {
        text_lower(text, &lower);
        text = (struct slice){lower.data, lower.bytes};
    }
    out->ids = mem_alloc(max * sizeof *out->ids);
    out->count =
        (uint32_t)tokenizer_encode(enc->config.tokenizer, text.data, text.bytes, out->ids, max, &out->truncated);
    out->ids = mem_resize(out->ids, out->count * sizeof *out->ids);
    buffer_free(&whole);
    buffer_free(&lower);
}

void tokens_free(struct tokens *t)
{
    free(t->ids);
    *t = (struct tokens){0};
}
