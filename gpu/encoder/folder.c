/* A Hugging Face / sentence-transformers folder: which files there are, what they say, and whether that is something
 * that this encoder runs exactly. Whatever it cannot do is refused by name, never approximated. Reads only the small
 * JSON files.
 *
 * What surprises: most settings are only wrong when they are set, so an absent name means the library's own default. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "gpu/encoder/internal.h"

#define JSON_BYTES_MAX ((size_t)4 << 20)
#define LENGTH_MIN 3 /* [CLS], one piece, [SEP] */

/* One JSON file of the folder being read, and where to say what is wrong with it. */
struct reading {
    const char *folder;
    const char *file; /* its name inside the folder, for messages */
    const struct json *json;
    struct arena *arena;
    struct error *e;
};

__attribute__((format(printf, 2, 3))) static void complain(const struct reading *r, const char *format, ...)
{
    struct buffer place = {0};
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    buffer_format(&place, "model folder %s", r->folder);
    if (r->file) {
        buffer_format(&place, ", %s", r->file);
    }
    error_set(r->e, ERROR_FATAL, E_MODEL, "%s: %s", place.data, text);
    buffer_free(&place);
}

/* A macro, so that clang's analyser sees the -1: it does not look into variadic functions. */
#define refuse(...) (complain(__VA_ARGS__), -1)

/* ---- files ------------------------------------------------------------------------------------------------------- */

static char *path_join(const char *folder, const char *inside, const char *file)
{
    struct buffer path = {0};
    buffer_format(&path, "%s/%s%s%s", folder, inside, *inside ? "/" : "", file);
    return path.data;
}

/* 1: r->json is the file's object (it lives in the arena); 0: there is no such file; -1: it cannot be read. */
static int file_read(struct reading *r, const char *inside, const char *file)
{
    int result = -1;
    struct buffer bytes = {0};
    struct error reason = {0};
    char *path = path_join(r->folder, inside, file);
    r->file = arena_string(r->arena, path + strlen(r->folder) + 1, strlen(path) - strlen(r->folder) - 1);
    r->json = NULL;
    FILE *f = fopen(path, "re");
    if (!f) {
        result = errno == ENOENT || errno == ENOTDIR ? 0 : refuse(r, "%s", strerror(errno));
        goto done;
    }
    size_t got;
    char part[4096];
    while ((got = fread(part, 1, sizeof part, f)) > 0 && bytes.bytes <= JSON_BYTES_MAX) {
        buffer_append(&bytes, part, got);
    }
    if (ferror(f) || bytes.bytes > JSON_BYTES_MAX) {
        complain(r, "cannot be read, or is over %zu bytes", JSON_BYTES_MAX);
    } else if (json_parse((struct slice){bytes.data, bytes.bytes}, 32, r->arena, &r->json, &reason) != 0) {
        complain(r, "%s", reason.text);
    } else {
        result = 1;
    }
done:
    if (f) {
        fclose(f);
    }
    buffer_free(&bytes);
    free(path);
    return result;
}

static int object_read(struct reading *r, const char *inside, const char *file)
{
    int found = file_read(r, inside, file);
    return found == 1 && r->json->type != JSON_OBJECT ? refuse(r, "is not a JSON object") : found;
}

/* ---- members ----------------------------------------------------------------------------------------------------- */

/* The member, or NULL where it is absent or null. */
static const struct json *member(const struct reading *r, const char *name)
{
    const struct json *j = r->json ? json_member(r->json, name) : NULL;
    return j && j->type != JSON_NULL ? j : NULL;
}

static bool text_is(const struct json *j, const char *text)
{
    return j->type == JSON_STRING && slice_equal(j->text, slice_of(text));
}

/* What stands there, for a message. */
static const char *shown(const struct json *j)
{
    return j->type == JSON_STRING || j->type == JSON_NUMBER ? j->text.data
           : j->type == JSON_TRUE                           ? "true"
           : j->type == JSON_FALSE                          ? "false"
                                                            : "a list or an object";
}

static int flag_read(const struct reading *r, const char *name, bool absent, bool *out)
{
    const struct json *j = member(r, name);
    if (j && j->type != JSON_TRUE && j->type != JSON_FALSE) {
        return refuse(r, "%s is %.40s, neither true nor false", name, shown(j));
    }
    *out = j ? j->type == JSON_TRUE : absent;
    return 0;
}

/* `absent` 0: it must be there. */
static int size_read(const struct reading *r, const char *name, size_t low, size_t high, size_t absent, size_t *out)
{
    const struct json *j = member(r, name);
    int64_t n = (int64_t)absent;
    if (!j && absent == 0) {
        return refuse(r, "%s is missing", name);
    }
    if (j && (!json_int(j, &n) || n < (int64_t)low || n > (int64_t)high)) {
        return refuse(r, "%s is %.40s; %zu to %zu can be run", name, shown(j), low, high);
    }
    *out = (size_t)n;
    return 0;
}

/* Refused unless absent or this very text. */
static int text_expect(const struct reading *r, const char *name, const char *expected)
{
    const struct json *j = member(r, name);
    return !j || text_is(j, expected) ? 0 : refuse(r, "%s is %.80s; only %s can be run", name, shown(j), expected);
}

static int flag_expect(const struct reading *r, const char *name, bool expected)
{
    bool is;
    if (flag_read(r, name, expected, &is) != 0) {
        return -1;
    }
    return is == expected ? 0 : refuse(r, "%s is %s, which cannot be run", name, is ? "true" : "false");
}

/* ---- what each file says ----------------------------------------------------------------------------------------- */

static int architecture_read(struct model_config *c, struct reading *r, const char *inside)
{
    int found = object_read(r, inside, "config.json");
    if (found <= 0) {
        r->file = NULL;
        return found < 0 ? -1
                         : refuse(r, "is not a model folder: it has no %s%sconfig.json", inside, *inside ? "/" : "");
    }
    const struct json *type = member(r, "model_type");
    if (!type || !text_is(type, "bert")) {
        return refuse(r, "architecture %.80s cannot be run; only bert can", type ? shown(type) : "(no model_type)");
    }
    if (text_expect(r, "hidden_act", "gelu") || text_expect(r, "position_embedding_type", "absolute") ||
        flag_expect(r, "is_decoder", false) || flag_expect(r, "add_cross_attention", false) ||
        size_read(r, "hidden_size", 1, 16384, 0, &c->dim) ||
        size_read(r, "num_hidden_layers", 1, 1000, 0, &c->layers) ||
        size_read(r, "num_attention_heads", 1, 16384, 0, &c->heads) ||
        size_read(r, "intermediate_size", 1, 65536, 0, &c->intermediate) ||
        size_read(r, "vocab_size", 1, (size_t)1 << 24, 0, &c->vocabulary) ||
        size_read(r, "max_position_embeddings", LENGTH_MIN, (size_t)1 << 20, 512, &c->positions) ||
        size_read(r, "type_vocab_size", 1, 1024, 2, &c->types)) {
        return -1;
    }
    if (c->dim % c->heads) {
        return refuse(r, "hidden_size %zu is no multiple of num_attention_heads %zu", c->dim, c->heads);
    }
    const struct json *epsilon = member(r, "layer_norm_eps");
    double value = 1e-12;
    if (epsilon && (!json_double(epsilon, &value) || value < 0 || value > 1)) {
        return refuse(r, "layer_norm_eps is %.40s", shown(epsilon));
    }
    c->epsilon = (float)value;
    return 0;
}

/* [UNK] and its like as a string, or as an object that holds it in `content`. */
static int special_token_expect(const struct reading *r, const char *name, const char *expected)
{
    const struct json *j = member(r, name);
    const struct json *content = j && j->type == JSON_OBJECT ? json_member(j, "content") : j;
    if (j && (!content || !text_is(content, expected))) {
        return refuse(r, "%s is %.40s; only %s can be run", name, content ? shown(content) : "an object", expected);
    }
    return 0;
}

/* *length is left alone where the file names none (or more than anyone could mean: libraries write 1e30 for "no
 * limit"). */
static int tokenizer_config_read(struct model_config *c, struct reading *r, const char *inside, size_t *length)
{
    if (object_read(r, inside, "tokenizer_config.json") < 0) {
        return -1;
    }
    const struct json *class = member(r, "tokenizer_class");
    if (class && !text_is(class, "BertTokenizer") && !text_is(class, "BertTokenizerFast")) {
        return refuse(r, "tokenizer %.80s cannot be run; only BertTokenizer (WordPiece) can", shown(class));
    }
    if (flag_expect(r, "do_basic_tokenize", true) || flag_read(r, "do_lower_case", true, &c->lower_case) ||
        flag_read(r, "strip_accents", c->lower_case, &c->strip_accents) ||
        flag_read(r, "tokenize_chinese_chars", true, &c->tokenize_chinese_chars) ||
        special_token_expect(r, "unk_token", "[UNK]") || special_token_expect(r, "cls_token", "[CLS]") ||
        special_token_expect(r, "sep_token", "[SEP]") || special_token_expect(r, "pad_token", "[PAD]") ||
        special_token_expect(r, "mask_token", "[MASK]")) {
        return -1;
    }
    const struct json *max = member(r, "model_max_length");
    double value;
    if (max && json_double(max, &value) && value >= LENGTH_MIN && value < (double)*length) {
        *length = (size_t)value;
    }
    return 0;
}

static int length_read(struct model_config *c, struct reading *r, const char *inside, size_t otherwise)
{
    if (object_read(r, inside, "sentence_bert_config.json") < 0 || flag_expect(r, "do_lower_case", false)) {
        return -1;
    }
    return size_read(r, "max_seq_length", LENGTH_MIN, c->positions, otherwise, &c->max_seq_length);
}

static int pooling_read(struct model_config *c, struct reading *r, const char *inside)
{
    static const char *const others[] = {"pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens",
                                         "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"};
    int found = object_read(r, inside, "config.json");
    if (found <= 0) {
        return found < 0 ? -1 : refuse(r, "is missing, but modules.json names it");
    }
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        bool on;
        if (flag_read(r, others[i], false, &on) != 0) {
            return -1;
        }
        if (on) {
            return refuse(r, "%s is true; only pooling by mean or by [CLS] can be run", others[i]);
        }
    }
    bool cls, mean;
    size_t width;
    const struct json *mode = member(r, "pooling_mode");
    if (mode && !text_is(mode, "mean") && !text_is(mode, "cls")) {
        return refuse(r, "pooling_mode is %.40s; only mean or cls can be run", shown(mode));
    }
    if (flag_expect(r, "include_prompt", true) ||
        flag_read(r, "pooling_mode_cls_token", mode && text_is(mode, "cls"), &cls) ||
        flag_read(r, "pooling_mode_mean_tokens", mode && text_is(mode, "mean"), &mean) ||
        size_read(r, "word_embedding_dimension", 1, 65536, c->dim, &width)) {
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

/* modules.json: where the transformer and the pooling stand (NULL: there is none). Without the file the folder is a
 * plain Hugging Face one: pooling by mean, as the authors' library does it. */
static int modules_read(struct reading *r, const char **transformer, const char **pooling)
{
    *transformer = "";
    *pooling = NULL;
    int found = file_read(r, "", "modules.json");
    if (found <= 0) {
        return found;
    }
    if (r->json->type != JSON_ARRAY) {
        return refuse(r, "is not a list of modules");
    }
    size_t i = 0;
    for (const struct json *m = r->json->child; m; m = m->next, i++) {
        const struct json *type = m->type == JSON_OBJECT ? json_member(m, "type") : NULL;
        const char *dot = type && type->type == JSON_STRING ? strrchr(type->text.data, '.') : NULL;
        const char *name = dot ? dot + 1 : "without a type", *path = m->type == JSON_OBJECT ? module_path(m) : NULL;
        bool known = (i == 0 && !strcmp(name, "Transformer")) || (i == 1 && !strcmp(name, "Pooling")) ||
                     (i == 2 && !strcmp(name, "Normalize"));
        if (!known) {
            return refuse(
                r, "module %zu (%.80s) cannot be run; only Transformer, Pooling and Normalize can, in this order", i,
                name);
        }
        if (!path) {
            return refuse(r, "module %zu (%.80s) has no path inside the folder", i, name);
        }
        *transformer = i == 0 ? path : *transformer;
        *pooling = i == 1 ? path : *pooling;
    }
    return *pooling ? 0 : refuse(r, "names no Pooling module");
}

/* The files that only have to be there. */
static int files_find(struct model_config *c, struct reading *r, const char *inside)
{
    c->weights_path = path_join(r->folder, inside, "model.safetensors");
    c->vocab_path = path_join(r->folder, inside, "vocab.txt");
    char *shards = path_join(r->folder, inside, "model.safetensors.index.json");
    char *pickled = path_join(r->folder, inside, "pytorch_model.bin");
    int result = 0;
    r->file = NULL;
    if (access(c->weights_path, F_OK) != 0) {
        result = access(shards, F_OK) == 0
                     ? refuse(r, "the model is in shards (model.safetensors.index.json), which cannot be "
                                 "run; save it as one model.safetensors")
                 : access(pickled, F_OK) == 0
                     ? refuse(r, "has only pytorch_model.bin, which cannot be run; save it as model.safetensors")
                     : refuse(r, "has no model.safetensors");
    } else if (access(c->vocab_path, F_OK) != 0) {
        result = refuse(r, "has no vocab.txt; only the WordPiece tokenizer can be run");
    }
    free(shards);
    free(pickled);
    return result;
}

int model_config_read(struct model_config *out, const char *folder, struct error *e)
{
    int result = -1;
    struct arena arena = {0};
    struct reading r = {.folder = folder, .arena = &arena, .e = e};
    const char *transformer, *pooling;
    struct stat status;
    memset(out, 0, sizeof *out);
    bool found = stat(folder, &status) == 0;
    if (!found || !S_ISDIR(status.st_mode)) {
        error_set(e, ERROR_FATAL, E_MODEL, "model folder %s: %s; name a folder with `model`", folder,
                  found ? "is not a folder" : strerror(errno));
        goto done;
    }
    if (modules_read(&r, &transformer, &pooling) || architecture_read(out, &r, transformer)) {
        goto done;
    }
    size_t length = out->positions;
    if (tokenizer_config_read(out, &r, transformer, &length) || length_read(out, &r, transformer, length)) {
        goto done;
    }
    out->pooling = POOLING_MEAN;
    if ((pooling && pooling_read(out, &r, pooling)) || files_find(out, &r, transformer)) {
        goto done;
    }
    result = 0;
done:
    arena_free(&arena);
    return result;
}

void model_config_free(struct model_config *config)
{
    free(config->weights_path);
    free(config->vocab_path);
}
