/* The tokenizer of a model folder. tokenizer.json, where there is one, is what runs; else vocab.txt with the settings
 * in tokenizer_config.json. Whatever else the folder says about tokens (vocab.txt, tokenizer_config.json,
 * added_tokens.json, special_tokens_map.json) must agree: the first difference is refused by name, for one of the two
 * must be wrong, and the ids would differ. What changes no id (lstrip, rstrip, padding, a decoder) is not looked at. */
#include <stdlib.h>
#include <string.h>

#include "base/lines.h"
#include "base/utf8.h"
#include "gpu/encoder/internal.h"
#include "gpu/encoder/trie.h"

#define PIECE_BYTES_MAX 1024
#define ADDED_MAX 10000

/* What is known of the tokenizer so far. Everything lies in the arena. */
struct found {
    struct tokenizer_settings settings;
    struct added_token *added; /* settings.added, [ADDED_MAX] */
    size_t rows;               /* of the embeddings: every id must be below */
    bool json;                 /* tokenizer.json is what runs: other files may only repeat what it says */
    struct reading more;       /* added_tokens.json */
};

/* What another file says about an added token. */
struct claim {
    struct slice text;
    int64_t id; /* -1: it does not say */
    bool flags; /* it says the following three */
    bool special, normalized, single_word;
};

/* ---- pieces ------------------------------------------------------------------------------------------------------ */

static int32_t piece_find(const struct tokenizer_settings *s, struct slice text)
{
    for (size_t i = s->piece_count; i-- > 0;) {
        if (text.bytes && slice_equal(s->pieces[i], text)) {
            return (int32_t)i;
        }
    }
    return TRIE_NONE;
}

/* The lines of a vocab.txt: the piece of id i in line i + 1. 0: there is no such file; -1: an error. */
static int vocab_read(struct reading *r, const char *inside, const struct slice **pieces, size_t *count)
{
    struct lines *lines = NULL;
    struct slice line, *all = NULL;
    struct error why = {0};
    size_t capacity = 0, bytes = 0;
    int result = -1, more;
    char *path = reading_path(r->folder, inside, "vocab.txt");
    r->file = arena_string(r->arena, path + strlen(r->folder) + 1, strlen(path) - strlen(r->folder) - 1);
    *count = 0;
    if (lines_open(&lines, path, PIECE_BYTES_MAX, &why) != 0) {
        result = why.code == E_NOT_FOUND ? 0 : refuse(r, "%s", why.text);
        goto done;
    }
    while ((more = lines_next(lines, &line, &why)) > 0) {
        bytes += line.bytes + 1;
        if (!utf8_valid(line.data, line.bytes) || bytes > TRIE_BYTES_MAX) {
            reading_complain(r, "line %zu: %s", lines_number(lines),
                             bytes > TRIE_BYTES_MAX ? "the vocabulary is too large" : "a piece that is not UTF-8");
            goto done;
        }
        if (*count == capacity) {
            capacity = capacity ? 2 * capacity : 32768;
            all = mem_resize(all, capacity * sizeof *all);
        }
        all[(*count)++] = arena_slice(r->arena, line);
    }
    if (more < 0) {
        reading_complain(r, "%s", why.text);
        goto done;
    }
    struct slice *kept = arena_alloc(r->arena, (*count + 1) * sizeof *kept);
    memcpy(kept, all, *count * sizeof *kept);
    *pieces = kept;
    result = 1;
done:
    lines_close(lines);
    free(all);
    free(path);
    return result;
}

/* model.vocab of tokenizer.json, {piece: id}; ids may leave gaps. */
static int json_pieces_read(struct found *f, const struct reading *r)
{
    const struct json *vocab = reading_member(r, "vocab");
    size_t bytes = 0, count = 0;
    int64_t id;
    if (!vocab || vocab->type != JSON_OBJECT) {
        return refuse(r, "vocab is not an object of pieces and ids");
    }
    for (const struct json *j = vocab->child; j; j = j->next) {
        if (!json_int(j, &id) || id < 0 || (uint64_t)id >= f->rows) {
            return refuse(r, "the piece %.80s has the id %.40s, but the model has word embeddings for 0 to %zu",
                          j->name.data, json_shown(j), f->rows - 1);
        }
        bytes += j->name.bytes + 1;
        if (j->name.bytes > PIECE_BYTES_MAX || bytes > TRIE_BYTES_MAX) {
            return refuse(r, "the piece %.80s is too long, or the vocabulary too large", j->name.data);
        }
        count = (size_t)id >= count ? (size_t)id + 1 : count;
    }
    struct slice *pieces = arena_alloc(r->arena, (count + 1) * sizeof *pieces);
    memset(pieces, 0, (count + 1) * sizeof *pieces);
    for (const struct json *j = vocab->child; j; j = j->next) {
        json_int(j, &id);
        if (pieces[id].data) {
            return refuse(r, "the pieces %.80s and %.80s have the same id %lld", pieces[id].data, j->name.data,
                          (long long)id);
        }
        pieces[id] = j->name;
    }
    f->settings.pieces = pieces;
    f->settings.piece_count = count;
    return 0;
}

/* ---- added tokens ------------------------------------------------------------------------------------------------ */

static struct added_token *added_find(const struct found *f, struct slice text)
{
    for (size_t i = 0; i < f->settings.added_count; i++) {
        if (slice_equal(f->added[i].text, text)) {
            return &f->added[i];
        }
    }
    return NULL;
}

static int added_append(struct found *f, const struct reading *r, const struct claim *c)
{
    if (c->id < 0 || (uint64_t)c->id >= f->rows) {
        return refuse(r, "the added token %.80s has the id %lld, but the model has word embeddings for 0 to %zu",
                      c->text.data, (long long)c->id, f->rows - 1);
    }
    if (f->settings.added_count == ADDED_MAX) {
        return refuse(r, "more than %d added tokens", ADDED_MAX);
    }
    f->added[f->settings.added_count++] = (struct added_token){.text = c->text,
                                                               .id = (int32_t)c->id,
                                                               .special = c->special,
                                                               .normalized = c->normalized,
                                                               .single_word = c->single_word};
    return 0;
}

/* Takes what a file says about an added token: it must agree with what is known. Where tokenizer.json runs, nothing new
 * may come. */
static int claim_take(struct found *f, const struct reading *r, struct claim c)
{
    const struct added_token *known = added_find(f, c.text);
    if (!known && f->json) {
        return refuse(r, "the added token %.80s is not in tokenizer.json", c.text.data);
    }
    if (!known) {
        c.id = c.id < 0 ? piece_find(&f->settings, c.text) : c.id;
        if (c.id < 0) {
            json_int(reading_member(&f->more, c.text.data), &c.id);
        }
        return c.id < 0 ? refuse(r, "the special token %.80s has no id in this folder", c.text.data)
                        : added_append(f, r, &c);
    }
    const char *elsewhere = f->json ? "in tokenizer.json" : "elsewhere in this folder";
    if (c.id >= 0 && c.id != known->id) {
        return refuse(r, "the added token %.80s has the id %lld, but %d %s", c.text.data, (long long)c.id,
                      (int)known->id, elsewhere);
    }
    if (c.flags && (c.normalized != known->normalized || c.single_word != known->single_word)) {
        const bool normalized = c.normalized != known->normalized, here = normalized ? c.normalized : c.single_word;
        return refuse(r, "the added token %.80s is%s %s, but is%s %s", c.text.data, here ? "" : " not",
                      normalized ? "normalized" : "single_word", here ? " not" : "", elsewhere);
    }
    return 0;
}

/* An added token as an object, as in tokenizer.json and added_tokens_decoder. */
static int added_object_read(const struct reading *r, const struct json *j, struct claim *c)
{
    struct reading one = *r;
    const struct json *text = json_member(j, "content");
    one.json = j;
    if (j->type != JSON_OBJECT || !text || text->type != JSON_STRING) {
        return refuse(r, "an added token without content");
    }
    c->text = text->text;
    c->flags = true;
    static const char *const flags[] = {"special", "normalized", "single_word"};
    bool *const values[] = {&c->special, &c->normalized, &c->single_word};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        if (!reading_member(&one, flags[i])) {
            return refuse(r, "the added token %.80s has no %s", c->text.data, flags[i]);
        }
        if (reading_flag(&one, flags[i], false, values[i]) != 0) {
            return -1;
        }
    }
    return 0;
}

/* added_tokens of tokenizer.json. */
static int json_added_read(struct found *f, const struct reading *r)
{
    const struct json *list = reading_member(r, "added_tokens");
    if (list && list->type != JSON_ARRAY) {
        return refuse(r, "added_tokens is not a list");
    }
    for (const struct json *j = list ? list->child : NULL; j; j = j->next) {
        struct claim c = {0};
        if (added_object_read(r, j, &c) != 0) {
            return -1;
        }
        if (!json_int(json_member(j, "id"), &c.id)) {
            return refuse(r, "the added token %.80s has no id", c.text.data);
        }
        if (added_find(f, c.text)) {
            return refuse(r, "the added token %.80s is listed twice", c.text.data);
        }
        if (added_append(f, r, &c) != 0) {
            return -1;
        }
    }
    return 0;
}

/* added_tokens_decoder of tokenizer_config.json, {"id": token}; and each known one must be in it. */
static int decoder_take(struct found *f, const struct reading *r)
{
    const struct json *decoder = reading_member(r, "added_tokens_decoder");
    if (!decoder) {
        return 0;
    }
    if (decoder->type != JSON_OBJECT) {
        return refuse(r, "added_tokens_decoder is not an object");
    }
    for (const struct json *j = decoder->child; j; j = j->next) {
        struct claim c = {0};
        const struct json id = {.type = JSON_NUMBER, .text = j->name};
        if (added_object_read(r, j, &c) != 0) {
            return -1;
        }
        const size_t digits = strspn(j->name.data, "0123456789");
        if (digits == 0 || digits != j->name.bytes || !json_int(&id, &c.id)) {
            return refuse(r, "added_tokens_decoder: %.40s is not an id", j->name.data);
        }
        if (claim_take(f, r, c) != 0) {
            return -1;
        }
    }
    for (size_t i = 0; i < f->settings.added_count; i++) {
        const struct json *j = decoder->child;
        while (j && !slice_equal(json_member(j, "content")->text, f->added[i].text)) {
            j = j->next;
        }
        if (!j) {
            return refuse(r, "added_tokens_decoder lacks the added token %.80s of tokenizer.json",
                          f->added[i].text.data);
        }
    }
    return 0;
}

/* The tokens named as special by more than their place: additional_special_tokens, or extra_special_tokens as newer
 * files call them, a list or {name: token}. */
static int special_list_take(struct found *f, const struct reading *r, const char *name)
{
    const struct json *list = reading_member(r, name);
    if (list && list->type != JSON_ARRAY && list->type != JSON_OBJECT) {
        return refuse(r, "%s is not a list", name);
    }
    for (const struct json *j = list ? list->child : NULL; j; j = j->next) {
        const struct json *text = j->type == JSON_OBJECT ? json_member(j, "content") : j;
        if (!text || text->type != JSON_STRING) {
            return refuse(r, "%s has an entry that is not a token", name);
        }
        if (claim_take(f, r, (struct claim){.text = text->text, .id = -1, .special = true}) != 0) {
            return -1;
        }
    }
    return 0;
}

/* [UNK] and its like as a string, or as an object that holds it in `content`. */
static int special_token_expect(const struct reading *r, const char *name, const char *expected)
{
    const struct json *j = reading_member(r, name);
    const struct json *content = j && j->type == JSON_OBJECT ? json_member(j, "content") : j;
    if (j && (!content || !json_text_is(content, expected))) {
        return refuse(r, "%s is %.40s; only %s can be run", name, content ? json_shown(content) : "an object",
                      expected);
    }
    return 0;
}

/* The special tokens that a file names, in tokenizer_config.json or special_tokens_map.json. */
static int specials_take(struct found *f, const struct reading *r)
{
    return special_token_expect(r, "unk_token", "[UNK]") || special_token_expect(r, "cls_token", "[CLS]") ||
                   special_token_expect(r, "sep_token", "[SEP]") || special_token_expect(r, "pad_token", "[PAD]") ||
                   special_token_expect(r, "mask_token", "[MASK]") ||
                   special_list_take(f, r, "additional_special_tokens") ||
                   special_list_take(f, r, "extra_special_tokens")
               ? -1
               : 0;
}

/* added_tokens.json, {token: id}: those that the vocabulary lacks, all of them. */
static int added_file_take(struct found *f, const struct reading *r)
{
    if (!r->json) {
        return 0;
    }
    for (const struct json *j = r->json->child; j; j = j->next) {
        struct claim c = {.text = j->name, .normalized = true}; /* as the library takes one that is not special */
        if (!json_int(j, &c.id) || c.id < 0) {
            return refuse(r, "the added token %.80s has the id %.40s", j->name.data, json_shown(j));
        }
        if (claim_take(f, r, c) != 0) {
            return -1;
        }
    }
    for (size_t i = 0; i < f->settings.added_count; i++) {
        const struct added_token *added = &f->added[i];
        if ((size_t)added->id >= f->settings.piece_count && !json_member(r->json, added->text.data)) {
            return refuse(r, "lacks the added token %.80s, which %s has", added->text.data,
                          f->json ? "tokenizer.json" : "tokenizer_config.json");
        }
    }
    return 0;
}

static int ids_compare(const void *a, const void *b)
{
    const struct added_token *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* ---- tokenizer.json ---------------------------------------------------------------------------------------------- */

/* The part of that name, which must be of that type. */
static int part_expect(const struct reading *r, const char *name, const char *type, struct reading *out)
{
    const struct json *j = reading_member(r, name), *is = j && j->type == JSON_OBJECT ? json_member(j, "type") : NULL;
    if (!is || !json_text_is(is, type)) {
        return refuse(r, "the %s is %.80s; only %s can be run", name,
                      is  ? json_shown(is)
                      : j ? "without a type"
                          : "missing",
                      type);
    }
    *out = reading_inside(r, name);
    return 0;
}

/* Files of 2020 name no type; then WordPiece is known by its members. */
static int model_read(struct found *f, const struct reading *r)
{
    struct reading model = reading_inside(r, "model");
    const bool old = model.json && model.json->type == JSON_OBJECT && !json_member(model.json, "type") &&
                     reading_member(&model, "continuing_subword_prefix") && !json_member(model.json, "merges");
    if ((!old && part_expect(r, "model", "WordPiece", &model) != 0) || json_pieces_read(f, &model) ||
        reading_text_expect(&model, "unk_token", "[UNK]") ||
        reading_size(&model, "max_input_chars_per_word", 1, WORD_CHARS_MAX, WORD_CHARS_USUAL,
                     &f->settings.word_chars_max)) {
        return -1;
    }
    const struct json *prefix = reading_member(&model, "continuing_subword_prefix");
    if (prefix && prefix->type != JSON_STRING) {
        return refuse(&model, "continuing_subword_prefix is %.40s, not a text", json_shown(prefix));
    }
    f->settings.continuing = prefix ? prefix->text : slice_of(CONTINUING);
    return 0;
}

static int normalizer_read(struct found *f, const struct reading *r)
{
    struct tokenizer_settings *s = &f->settings;
    struct reading normalizer;
    return part_expect(r, "normalizer", "BertNormalizer", &normalizer) ||
                   reading_flag_expect(&normalizer, "clean_text", true) ||
                   reading_flag(&normalizer, "lowercase", true, &s->lower_case) ||
                   reading_flag(&normalizer, "handle_chinese_chars", true, &s->tokenize_chinese_chars) ||
                   reading_flag(&normalizer, "strip_accents", s->lower_case, &s->strip_accents)
               ? -1
               : 0;
}

/* One element of a template: {"SpecialToken": {"id": name, "type_id": 0}} or {"Sequence": ...}. */
static bool template_is(const struct json *j, const char *kind, const char *name)
{
    const struct json *inner = j ? json_member(j, kind) : NULL, *id = inner ? json_member(inner, "id") : NULL;
    int64_t type;
    return id && json_text_is(id, name) && json_int(json_member(inner, "type_id"), &type) && type == 0;
}

/* The id that the post-processor puts for a special token: {"ids": [id]} of a template's special_tokens, or the second
 * of [name, id]. */
static int64_t processor_id(const struct reading *r, const char *name, const char *pair)
{
    const struct json *tokens = reading_member(r, "special_tokens"), *one = reading_member(r, pair);
    const struct json *ids = tokens ? json_member(json_member(tokens, name), "ids") : NULL;
    int64_t id = -1;
    if (ids && ids->type == JSON_ARRAY && ids->count == 1) {
        json_int(ids->child, &id);
    } else if (!ids && one && one->type == JSON_ARRAY && one->count == 2) {
        json_int(one->child->next, &id);
    }
    return id;
}

/* [CLS] before and [SEP] after, with the ids that t has for them. */
static int processor_check(const struct reading *r, const struct tokenizer *t)
{
    int32_t ids[2];
    struct reading p;
    const struct json *j = reading_member(r, "post_processor");
    const bool pair =
        j && j->type == JSON_OBJECT && json_member(j, "type") && json_text_is(json_member(j, "type"), "BertProcessing");
    if (part_expect(r, "post_processor", pair ? "BertProcessing" : "TemplateProcessing", &p) != 0) {
        return -1;
    }
    const struct json *single = reading_member(&p, "single");
    const struct json *first = single && single->count == 3 ? single->child : NULL;
    if (!pair && !(first && template_is(first, "SpecialToken", "[CLS]") && template_is(first->next, "Sequence", "A") &&
                   template_is(first->next->next, "SpecialToken", "[SEP]"))) {
        return refuse(&p, "single is a template other than [CLS] $A [SEP] of type 0, which cannot be run");
    }
    tokenizer_encode(t, "", 0, ids, 2, NULL);
    if (processor_id(&p, "[CLS]", "cls") != ids[0] || processor_id(&p, "[SEP]", "sep") != ids[1]) {
        return refuse(&p, "its ids for [CLS] and [SEP] are not %d and %d, which the tokens have", (int)ids[0],
                      (int)ids[1]);
    }
    return 0;
}

static int json_read(struct found *f, const struct reading *r)
{
    struct reading pre, truncation = reading_inside(r, "truncation");
    const struct json *version = reading_member(r, "version");
    if (!version || !json_text_is(version, "1.0")) {
        return refuse(r, "version is %.40s; only 1.0 can be run", version ? json_shown(version) : "missing");
    }
    return model_read(f, r) || normalizer_read(f, r) || part_expect(r, "pre_tokenizer", "BertPreTokenizer", &pre) ||
                   reading_text_expect(&truncation, "direction", "Right") || json_added_read(f, r)
               ? -1
               : 0;
}

/* ---- what must agree with tokenizer.json ------------------------------------------------------------------------- */

/* Whether that piece is in a later line again: then the later one counts. */
static bool line_repeats(const struct slice *lines, size_t count, size_t i)
{
    for (size_t later = i + 1; later < count; later++) {
        if (slice_equal(lines[later], lines[i])) {
            return true;
        }
    }
    return false;
}

/* The lines of vocab.txt against the pieces of tokenizer.json. An added token may be a line too. */
static int vocab_check(struct found *f, struct reading *r, const char *inside)
{
    struct tokenizer_settings *s = &f->settings;
    const struct slice *lines = NULL, none = {"", 0};
    size_t count;
    int found = vocab_read(r, inside, &lines, &count);
    if (found <= 0) {
        return found;
    }
    for (size_t i = 0; i < count || i < s->piece_count; i++) {
        const struct slice line = i < count ? lines[i] : none, piece = i < s->piece_count ? s->pieces[i] : none;
        if (slice_equal(line, piece) || (piece.bytes == 0 && line_repeats(lines, count, i))) {
            continue;
        }
        const struct added_token *added = piece.bytes == 0 ? added_find(f, line) : NULL;
        if (added && (size_t)added->id == i) {
            continue;
        }
        return refuse(r, "line %zu is %.80s, but tokenizer.json has %.80s for id %zu", i + 1,
                      line.bytes ? line.data : "missing", piece.bytes ? piece.data : "nothing", i);
    }
    if (count == s->piece_count) {
        s->pieces = lines; /* the same, with what is repeated: the fingerprint was taken over these before */
    }
    return 0;
}

/* tokenizer_config.json's flags against the normalizer: one that is absent says nothing. */
static int flags_check(const struct found *f, const struct reading *config)
{
    const struct tokenizer_settings *s = &f->settings;
    const bool strip_said = config->json && json_member(config->json, "strip_accents");
    bool lower, chinese, strip;
    if (reading_flag(config, "do_lower_case", s->lower_case, &lower) ||
        reading_flag(config, "tokenize_chinese_chars", s->tokenize_chinese_chars, &chinese) ||
        reading_flag(config, "strip_accents", strip_said ? lower : s->strip_accents, &strip)) {
        return -1;
    }
    const struct {
        const char *name, *theirs;
        bool here, there;
    } flags[] = {{"do_lower_case", "lowercase", lower, s->lower_case},
                 {"tokenize_chinese_chars", "handle_chinese_chars", chinese, s->tokenize_chinese_chars},
                 {"strip_accents", "strip_accents", strip, s->strip_accents}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        if (flags[i].here != flags[i].there) {
            return refuse(config, "%s is %s, but the normalizer in tokenizer.json has %s %s", flags[i].name,
                          flags[i].here ? "true" : "false", flags[i].theirs, flags[i].there ? "true" : "false");
        }
    }
    return 0;
}

/* ---- without tokenizer.json -------------------------------------------------------------------------------------- */

static int vocab_settings_read(struct found *f, struct reading *r, const char *inside, const struct reading *config)
{
    struct tokenizer_settings *s = &f->settings;
    int found = vocab_read(r, inside, &s->pieces, &s->piece_count);
    if (found <= 0) {
        r->file = NULL;
        return found < 0
                   ? -1
                   : refuse(r, "has neither tokenizer.json nor vocab.txt; only the WordPiece tokenizer can be run");
    }
    if (s->piece_count > f->rows) {
        return refuse(r, "has %zu pieces, but the model only %zu word embeddings", s->piece_count, f->rows);
    }
    s->continuing = slice_of(CONTINUING);
    s->word_chars_max = WORD_CHARS_USUAL;
    return reading_flag(config, "do_lower_case", true, &s->lower_case) ||
                   reading_flag(config, "strip_accents", s->lower_case, &s->strip_accents) ||
                   reading_flag(config, "tokenize_chinese_chars", true, &s->tokenize_chinese_chars)
               ? -1
               : 0;
}

/* The special tokens that the vocabulary holds are added tokens too. */
static int vocab_added_end(struct found *f, const struct reading *r)
{
    for (size_t i = 0; i < SPECIAL_TOKENS; i++) {
        struct claim c = {.text = slice_of(special_tokens[i]), .special = true};
        c.id = piece_find(&f->settings, c.text);
        if (c.id >= 0 && !added_find(f, c.text) && added_append(f, r, &c) != 0) {
            return -1;
        }
    }
    qsort(f->added, f->settings.added_count, sizeof *f->added, ids_compare);
    return 0;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

/* A class that stands for any tokenizer will do where tokenizer.json says which it is. */
static int config_read(const struct reading *r, bool json, size_t *length)
{
    static const char *const classes[] = {"BertTokenizer", "BertTokenizerFast", "TokenizersBackend",
                                          "PreTrainedTokenizerFast"};
    const struct json *class = reading_member(r, "tokenizer_class"), *max = reading_member(r, "model_max_length");
    bool known = !class;
    double value;
    for (size_t i = 0; i < (json ? 4 : 2) && class; i++) {
        known = known || json_text_is(class, classes[i]);
    }
    if (!known) {
        return refuse(r, "tokenizer %.80s cannot be run; only BertTokenizer (WordPiece) can", json_shown(class));
    }
    if (reading_flag_expect(r, "do_basic_tokenize", true) || reading_flag_expect(r, "split_special_tokens", false) ||
        reading_text_expect(r, "truncation_side", "right")) {
        return -1;
    }
    if (max && json_double(max, &value) && value >= LENGTH_MIN && value < (double)*length) {
        *length = (size_t)value; /* libraries write 1e30 for "no limit" */
    }
    return 0;
}

/* Each added token in its order has the id that `tokenizers` gives it, whatever the file says: its piece's, else the
 * next one after the pieces (each counted once) and the added tokens before it. */
static int added_ids_check(const struct found *f, const struct reading *r, const struct tokenizer *t)
{
    const struct tokenizer_settings *s = &f->settings;
    int64_t highest = -1, distinct = 0;
    bool empty = false;
    for (size_t i = 0; i < s->piece_count; i++) {
        const struct slice piece = s->pieces[i];
        distinct += piece.bytes && tokenizer_piece_id(t, piece.data, piece.bytes) == (int32_t)i;
        empty = empty || (piece.bytes == 0 && piece.data != NULL);
    }
    distinct += empty;
    for (size_t i = 0; i < s->added_count; i++) {
        const struct added_token *added = &s->added[i];
        int64_t id = tokenizer_piece_id(t, added->text.data, added->text.bytes);
        if (id == TRIE_NONE) {
            id = highest >= distinct ? highest + 1 : distinct;
        }
        if (id != added->id) {
            return refuse(r, "the added token %.80s has the id %d, but the library gives it %lld", added->text.data,
                          (int)added->id, (long long)id);
        }
        highest = id > highest ? id : highest;
    }
    return 0;
}

/* A piece that tokenizer.json names twice, by different ids. */
static int pieces_check(const struct reading *r, const struct slice *pieces, size_t count, const struct tokenizer *t)
{
    for (size_t i = 0; i < count; i++) {
        int32_t id = pieces[i].bytes ? tokenizer_piece_id(t, pieces[i].data, pieces[i].bytes) : (int32_t)i;
        if ((size_t)id != i) {
            return refuse(r, "the piece %.80s has the ids %zu and %d", pieces[i].data, i, (int)id);
        }
    }
    return 0;
}

int folder_tokenizer_open(struct model_config *c, const struct reading *r, const char *inside, size_t *length)
{
    struct found f = {.rows = c->vocabulary, .more = *r};
    struct reading config = *r, json = *r, map = *r, vocab = *r;
    struct error why = {0};
    f.added = arena_alloc(r->arena, ADDED_MAX * sizeof *f.added);
    f.settings.added = f.added;
    int found = reading_object(&json, inside, "tokenizer.json");
    f.json = found == 1;
    if (found < 0 || reading_object(&config, inside, "tokenizer_config.json") < 0 ||
        reading_object(&map, inside, "special_tokens_map.json") < 0 ||
        reading_object(&f.more, inside, "added_tokens.json") < 0 || config_read(&config, f.json, length) != 0 ||
        (f.json ? json_read(&f, &json) : vocab_settings_read(&f, &vocab, inside, &config)) != 0) {
        return -1;
    }
    const struct slice *pieces = f.settings.pieces;
    if ((f.json && (flags_check(&f, &config) || vocab_check(&f, &vocab, inside))) || decoder_take(&f, &config) ||
        specials_take(&f, &config) || specials_take(&f, &map) || added_file_take(&f, &f.more) ||
        (!f.json && vocab_added_end(&f, &vocab))) {
        return -1;
    }
    const struct reading *source = f.json ? &json : &vocab;
    if (tokenizer_open(&c->tokenizer, &f.settings, &why) != 0) {
        return refuse(source, "%s", why.text);
    }
    if (added_ids_check(&f, source, c->tokenizer) != 0) {
        return -1;
    }
    if (f.json &&
        (pieces_check(source, pieces, f.settings.piece_count, c->tokenizer) || processor_check(source, c->tokenizer))) {
        return -1;
    }
    c->lower_case = f.settings.lower_case;
    c->strip_accents = f.settings.strip_accents;
    c->tokenize_chinese_chars = f.settings.tokenize_chinese_chars;
    return 0;
}
