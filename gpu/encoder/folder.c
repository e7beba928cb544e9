/* A Hugging Face / sentence-transformers folder: which files there are, what they say, and whether that is something
 * that this encoder runs exactly. Whatever it cannot do is refused by name, never approximated. tokenizer_folder.c
 * reads what concerns the tokenizer.
 *
 * What surprises: most settings are only wrong when they are set, so an absent name means the library's own default. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "gpu/encoder/internal.h"

#define PROMPT_BYTES_MAX 65536 /* as long as a label's text may be */

/* ---- what each file says ----------------------------------------------------------------------------------------- */

static int architecture_read(struct model_config *c, struct reading *r, const char *inside)
{
    int found = reading_object(r, inside, "config.json");
    if (found <= 0) {
        r->file = NULL;
        return found < 0 ? -1
                         : refuse(r, "is not a model folder: it has no %s%sconfig.json", inside, *inside ? "/" : "");
    }
    const struct json *type = reading_member(r, "model_type");
    if (!type || !json_text_is(type, "bert")) {
        return refuse(r, "architecture %.80s cannot be run; only bert can",
                      type ? json_shown(type) : "(no model_type)");
    }
    if (reading_text_expect(r, "hidden_act", "gelu") || reading_text_expect(r, "position_embedding_type", "absolute") ||
        reading_flag_expect(r, "is_decoder", false) || reading_flag_expect(r, "add_cross_attention", false) ||
        reading_size(r, "hidden_size", 1, 16384, 0, &c->dim) ||
        reading_size(r, "num_hidden_layers", 1, 1000, 0, &c->layers) ||
        reading_size(r, "num_attention_heads", 1, 16384, 0, &c->heads) ||
        reading_size(r, "intermediate_size", 1, 65536, 0, &c->intermediate) ||
        reading_size(r, "vocab_size", 1, (size_t)1 << 24, 0, &c->vocabulary) ||
        reading_size(r, "max_position_embeddings", LENGTH_MIN, (size_t)1 << 20, 512, &c->positions) ||
        reading_size(r, "type_vocab_size", 1, 1024, 2, &c->types)) {
        return -1;
    }
    if (c->dim % c->heads) {
        return refuse(r, "hidden_size %zu is not a multiple of num_attention_heads %zu", c->dim, c->heads);
    }
    const struct json *epsilon = reading_member(r, "layer_norm_eps");
    double value = 1e-12;
    if (epsilon && (!json_double(epsilon, &value) || value < 0 || value > 1)) {
        return refuse(r, "layer_norm_eps is %.40s", json_shown(epsilon));
    }
    c->epsilon = (float)value;
    return 0;
}

static int length_read(struct model_config *c, struct reading *r, const char *inside, size_t otherwise)
{
    if (reading_object(r, inside, "sentence_bert_config.json") < 0 ||
        reading_flag(r, "do_lower_case", false, &c->lower_text) != 0) {
        return -1;
    }
    return reading_size(r, "max_seq_length", LENGTH_MIN, c->positions, otherwise, &c->max_seq_length);
}

static int pooling_read(struct model_config *c, struct reading *r, const char *inside)
{
    static const char *const others[] = {"pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens",
                                         "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"};
    int found = reading_object(r, inside, "config.json");
    if (found <= 0) {
        return found < 0 ? -1 : refuse(r, "is missing, but modules.json names it");
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        bool on;
        if (reading_flag(r, others[i], false, &on) != 0) {
            return -1;
        }
        if (on) {
            return refuse(r, "%s is true; only pooling by mean or by [CLS] can be run", others[i]);
        }
    }
    bool cls, mean;
    size_t width;
    const struct json *mode = reading_member(r, "pooling_mode");
    if (mode && !json_text_is(mode, "mean") && !json_text_is(mode, "cls")) {
        return refuse(r, "pooling_mode is %.40s; only mean or cls can be run", json_shown(mode));
    }
    bool prompt;
    if (reading_flag(r, "include_prompt", true, &prompt) != 0) {
        return -1;
    }
    if (!prompt) {
        return refuse(r, "include_prompt is false: pooling that leaves the prompt's tokens out cannot be run");
    }
    if (reading_flag(r, "pooling_mode_cls_token", mode && json_text_is(mode, "cls"), &cls) ||
        reading_flag(r, "pooling_mode_mean_tokens", mode && json_text_is(mode, "mean"), &mean) ||
        reading_size(r, "word_embedding_dimension", 1, 65536, c->dim, &width)) {
        return -1;
    }
    if (width != c->dim) {
        return refuse(r, "word_embedding_dimension is %zu, but the transformer's hidden_size is %zu", width, c->dim);
    }
    if (cls == mean) {
        return refuse(r, "asks for pooling by %s; exactly one of mean and [CLS] can be run",
                      cls ? "mean and [CLS] at once" : "neither mean nor [CLS]");
    }
    c->pooling = cls ? POOLING_CLS : POOLING_MEAN;
    return 0;
}

/* A module's folder, inside the model's; NULL for one that would lead out of it. */
static const char *module_path(const struct json *module)
{
    const struct json *path = json_member(module, "path");
    if (!path || path->type != JSON_STRING || path->text.data[0] == '/' || strstr(path->text.data, "..") ||
        strlen(path->text.data) != path->text.bytes) {
        return NULL;
    }
    return path->text.data;
}

enum { TRANSFORMER, POOLING, DENSE, NORMALIZE, MODULES };

/* modules.json: where each module is (NULL: there is none). Without the file the folder is a plain Hugging Face one:
 * pooling by mean, as the authors' library does it. */
static int modules_read(struct reading *r, const char *paths[MODULES])
{
    static const char *const names[MODULES] = {"Transformer", "Pooling", "Dense", "Normalize"};
    paths[TRANSFORMER] = "";
    int found = reading_file(r, "", "modules.json");
    if (found <= 0) {
        return found;
    }
    if (r->json->type != JSON_ARRAY) {
        return refuse(r, "is not a list of modules");
    }
    size_t i = 0, next = 0;
    for (const struct json *m = r->json->child; m; m = m->next, i++) {
        const struct json *type = m->type == JSON_OBJECT ? json_member(m, "type") : NULL;
        const char *dot = type && type->type == JSON_STRING ? strrchr(type->text.data, '.') : NULL;
        const char *name = dot ? dot + 1 : "without a type", *path = m->type == JSON_OBJECT ? module_path(m) : NULL;
        if (next == DENSE && strcmp(name, names[DENSE]) != 0) {
            next++;
        }
        if (next == MODULES || strcmp(name, names[next]) != 0) {
            return refuse(r,
                          "module %zu (%.80s) cannot be run; only Transformer, Pooling, one Dense and Normalize can, "
                          "in this order",
                          i, name);
        }
        if (!path) {
            return refuse(r, "module %zu (%.80s) has no path inside the folder", i, name);
        }
        paths[next++] = path;
    }
    return paths[POOLING] ? 0 : refuse(r, "names no Pooling module");
}

/* What sentence-transformers' encode() puts before every text: the default prompt. Other prompts are applied there only
 * where the caller names one, and here where an option does. */
static int prompt_read(struct model_config *c, struct reading *r)
{
    if (reading_object(r, "", "config_sentence_transformers.json") < 0) {
        return -1;
    }
    const struct json *name = reading_member(r, "default_prompt_name"), *prompts = reading_member(r, "prompts");
    if (!name) {
        return 0;
    }
    const struct json *prompt = name->type == JSON_STRING ? json_member(prompts, name->text.data) : NULL;
    if (!prompt || prompt->type != JSON_STRING) {
        return refuse(r, "default_prompt_name is %.80s, which is none of its prompts", json_shown(name));
    }
    if (strlen(prompt->text.data) != prompt->text.bytes || prompt->text.bytes > PROMPT_BYTES_MAX) {
        return refuse(r, "the prompt %.80s has a NUL character or is over %d bytes", json_shown(name),
                      PROMPT_BYTES_MAX);
    }
    c->prompt = mem_string(prompt->text.data, prompt->text.bytes);
    return 0;
}

/* The file that only has to be there, in a module's folder. */
static int weights_find(char **path, struct reading *r, const char *inside)
{
    *path = reading_path(r->folder, inside, "model.safetensors");
    char *shards = reading_path(r->folder, inside, "model.safetensors.index.json");
    char *pickled = reading_path(r->folder, inside, "pytorch_model.bin");
    int result = 0;
    r->file = *inside ? inside : NULL;
    if (access(*path, F_OK) != 0) {
        result = access(shards, F_OK) == 0
                     ? refuse(r, "the model is in shards (model.safetensors.index.json), which cannot be "
                                 "run; save it as one model.safetensors")
                 : access(pickled, F_OK) == 0
                     ? refuse(r, "has only pytorch_model.bin, which cannot be run; save it as model.safetensors")
                     : refuse(r, "has no model.safetensors");
    }
    free(shards);
    free(pickled);
    return result;
}

/* A linear map between pooling and normalisation. */
static int dense_read(struct model_config *c, struct reading *r, const char *inside)
{
    static const char identity[] = "torch.nn.modules.linear.Identity";
    int found = reading_object(r, inside, "config.json");
    if (found <= 0) {
        return found < 0 ? -1 : refuse(r, "is missing, but modules.json names it");
    }
    size_t in;
    if (reading_size(r, "in_features", 1, 65536, 0, &in) || reading_size(r, "out_features", 1, 16384, 0, &c->width) ||
        reading_flag(r, "bias", true, &c->dense_bias) || reading_text_expect(r, "activation_function", identity) ||
        reading_text_expect(r, "module_input_name", "sentence_embedding") ||
        reading_text_expect(r, "module_output_name", "sentence_embedding") ||
        reading_flag_expect(r, "use_residual", false)) {
        return -1;
    }
    if (!reading_member(r, "activation_function")) { /* the library then takes Tanh */
        return refuse(r, "activation_function is missing; only %s can be run", identity);
    }
    if (in != c->dim) {
        return refuse(r, "in_features is %zu, but the transformer's hidden_size is %zu", in, c->dim);
    }
    return weights_find(&c->dense_path, r, inside);
}

int model_config_read(struct model_config *out, const char *folder, struct error *e)
{
    int result = -1;
    struct arena arena = {0};
    struct reading r = {.folder = folder, .arena = &arena, .e = e};
    const char *paths[MODULES] = {NULL};
    struct stat status;
    memset(out, 0, sizeof *out);
    bool found = stat(folder, &status) == 0;
    if (!found || !S_ISDIR(status.st_mode)) {
        error_set(e, ERROR_FATAL, E_MODEL, "model folder %s: %s; name a folder with `model`", folder,
                  found ? "is not a folder" : strerror(errno));
        goto done;
    }
    if (modules_read(&r, paths) || architecture_read(out, &r, paths[TRANSFORMER]) ||
        weights_find(&out->weights_path, &r, paths[TRANSFORMER])) {
        goto done;
    }
    size_t length = out->positions;
    out->pooling = POOLING_MEAN;
    out->width = out->dim;
    if (folder_tokenizer_open(out, &r, paths[TRANSFORMER], &length) ||
        length_read(out, &r, paths[TRANSFORMER], length) ||
        (paths[POOLING] && (pooling_read(out, &r, paths[POOLING]) || prompt_read(out, &r))) ||
        (paths[DENSE] && dense_read(out, &r, paths[DENSE]))) {
        goto done;
    }
    result = 0;
done:
    arena_free(&arena);
    return result;
}

void model_config_free(struct model_config *config)
{
    tokenizer_close(config->tokenizer);
    free(config->weights_path);
    free(config->dense_path);
    free(config->prompt);
}
