/* The tokenizer of a model folder: added tokens of every kind against what Hugging Face tokenizers made of them
 * (tests/golden/make_added_tokens.py), files that must agree, what is refused by name, and a tokenizer.json that is
 * cut, or holds something else than it should, anywhere. Runs from the root of the tree. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/lines.h"
#include "gpu/encoder/internal.h"
#include "tests/unit/model_folder.h"

#define GOLDEN "tests/golden/added-tokens.jsonl.gz"
#define LIMIT 48
#define ROWS 400 /* of the embeddings that the folders are opened for */

static const char *const files[] = {"tokenizer.json", "tokenizer_config.json", "vocab.txt", "added_tokens.json",
                                    "special_tokens_map.json"};

static int folder_empty(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        unlink(inside(files[i]));
    }
    return 0;
}

/* 0, and c->tokenizer is the caller's; -1, with one line in e. */
static int folder_open(struct model_config *c, struct error *e)
{
    struct arena arena = {0};
    const struct reading r = {.folder = folder, .arena = &arena, .e = e};
    size_t length = 512;
    *c = (struct model_config){.vocabulary = ROWS};
    int result = folder_tokenizer_open(c, &r, "", &length);
    arena_free(&arena);
    if (result != 0) {
        tokenizer_close(c->tokenizer);
        assert_int_equal(e->kind, ERROR_FATAL);
        assert_int_equal(e->code, E_MODEL);
        assert_null(strchr(e->text, '\n'));
        assert_non_null(strstr(e->text, folder));
    }
    return result;
}

static struct tokenizer *folder_tokenizer(void)
{
    struct model_config c;
    struct error e = {0};
    if (folder_open(&c, &e) != 0) {
        fail_msg("%s", e.text);
    }
    return c.tokenizer;
}

/* Opening must fail with one line that holds both. */
static void refused(const char *first, const char *second)
{
    struct model_config c;
    struct error e = {0};
    assert_int_equal(folder_open(&c, &e), -1);
    if (!strstr(e.text, first) || !strstr(e.text, second)) {
        fail_msg("says: %s\nand not: %s, %s", e.text, first, second);
    }
}

static void assert_ids(const struct tokenizer *t, const char *text, const int32_t *expected, size_t count)
{
    int32_t ids[LIMIT];
    assert_int_equal(tokenizer_encode(t, text, strlen(text), ids, LIMIT, NULL), count);
    assert_memory_equal(ids, expected, count * sizeof *ids);
}

/* ---- against the reference --------------------------------------------------------------------------------------- */

static void json_put(const char *file, const struct json *value)
{
    struct buffer text = {0};
    struct json_writer w = {.out = &text};
    json_write_tree(&w, value);
    file_put(file, text.data, text.bytes);
    buffer_free(&text);
}

static size_t cases_check(const struct tokenizer *t, const struct json *cases)
{
    size_t seen = 0;
    for (const struct json *one = cases->child; one; one = one->next, seen++) {
        int32_t ids[LIMIT];
        const struct json *text = one->child, *id = text->next->child;
        size_t count = tokenizer_encode(t, text->text.data, text->text.bytes, ids, LIMIT, NULL);
        for (size_t i = 0; i < count; i++, id = id->next) {
            int64_t expected = -1;
            if (!id || !json_int(id, &expected) || expected != ids[i]) {
                fail_msg("id %zu is %d, not %d, in %.300s", i, ids[i], (int)expected, text->text.data);
            }
        }
        if (id) {
            fail_msg("ids are missing at the end of %.300s", text->text.data);
        }
    }
    return seen;
}

/* Every tokenizer of the golden file; then the same one from a vocab.txt, where that says as much. */
static void test_golden(void **state)
{
    struct lines *lines = NULL;
    struct slice line;
    size_t cases = 0;
    assert_int_equal(lines_open(&lines, GOLDEN, 1 << 22, NULL), 0);
    while (lines_next(lines, &line, NULL) > 0) {
        struct arena arena = {0};
        const struct json *golden;
        assert_int_equal(json_parse(line, 16, &arena, &golden, NULL), 0);
        for (const struct json *file = json_member(golden, "files")->child; file; file = file->next) {
            json_put(file->name.data, file);
        }
        struct tokenizer *t = folder_tokenizer();
        cases += cases_check(t, json_member(golden, "cases"));
        tokenizer_close(t);
        arena_free(&arena);
        folder_empty(state);
    }
    lines_close(lines);
    assert_true(cases > 2000);
}

/* ---- the ways to name an added token ----------------------------------------------------------------------------- */

#define VOCAB "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncats\n<\nent\n>\nfoo\n"
#define DECODER_TOKEN(id, text, special, normalized)                                                                   \
    "\"" id "\": {\"content\": \"" text "\", \"special\": " special ", \"normalized\": " normalized                    \
    ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false}"
#define DECODER_SPECIALS                                                                                               \
    DECODER_TOKEN("0", "[PAD]", "true", "false")                                                                       \
    ", " DECODER_TOKEN("1", "[UNK]", "true", "false") ", " DECODER_TOKEN(                                              \
        "2", "[CLS]", "true", "false") ", " DECODER_TOKEN("3", "[SEP]", "true",                                        \
                                                          "false") ", " DECODER_TOKEN("4", "[MASK]", "true", "false")
#define CONFIG(decoder)                                                                                                \
    "{\"do_lower_case\": true, \"strip_accents\": null, \"tokenizer_class\": \"BertTokenizer\", "                      \
    "\"added_tokens_decoder\": {" decoder "}}"
#define JSON_TOKEN(id, text, special, normalized)                                                                      \
    "{\"id\": " id ", \"content\": \"" text "\", \"special\": " special ", \"normalized\": " normalized                \
    ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false}"
#define JSON_SPECIALS                                                                                                  \
    JSON_TOKEN("0", "[PAD]", "true", "false")                                                                          \
    ", " JSON_TOKEN("1", "[UNK]", "true", "false") ", " JSON_TOKEN("2", "[CLS]", "true", "false") ", " JSON_TOKEN(     \
        "3", "[SEP]", "true", "false") ", " JSON_TOKEN("4", "[MASK]", "true", "false")
#define JSON_VOCAB                                                                                                     \
    "{\"[PAD]\": 0, \"[UNK]\": 1, \"[CLS]\": 2, \"[SEP]\": 3, \"[MASK]\": 4, \"cats\": 5, \"<\": 6, \"ent\": 7, "      \
    "\">\": 8, \"foo\": 9}"
#define JSON(added)                                                                                                    \
    "{\"version\": \"1.0\", \"truncation\": {\"direction\": \"Right\", \"max_length\": 128, \"strategy\": "            \
    "\"LongestFirst\", \"stride\": 0}, \"padding\": {\"strategy\": \"BatchLongest\", \"direction\": \"Right\"}, "      \
    "\"added_tokens\": [" added "], \"normalizer\": {\"type\": \"BertNormalizer\", \"clean_text\": true, "             \
    "\"handle_chinese_chars\": true, \"strip_accents\": null, \"lowercase\": true}, \"pre_tokenizer\": {\"type\": "    \
    "\"BertPreTokenizer\"}, \"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\": "   \
    "{\"id\": \"[CLS]\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}, {\"SpecialToken\": "       \
    "{\"id\": \"[SEP]\", \"type_id\": 0}}], \"pair\": [], \"special_tokens\": {\"[CLS]\": {\"id\": \"[CLS]\", "        \
    "\"ids\": [2], \"tokens\": [\"[CLS]\"]}, \"[SEP]\": {\"id\": \"[SEP]\", \"ids\": [3], \"tokens\": "                \
    "[\"[SEP]\"]}}}, "                                                                                                 \
    "\"decoder\": {\"type\": \"WordPiece\", \"prefix\": \"##\", \"cleanup\": true}, \"model\": {\"type\": "            \
    "\"WordPiece\", \"unk_token\": \"[UNK]\", \"continuing_subword_prefix\": \"##\", \"max_input_chars_per_word\": "   \
    "100, \"vocab\": " JSON_VOCAB "}}"
#define ENT_JSON JSON(JSON_SPECIALS ", " JSON_TOKEN("10", "<ent>", "true", "false"))
#define ENT_CONFIG CONFIG(DECODER_SPECIALS ", " DECODER_TOKEN("10", "<ent>", "true", "false"))

#define PUT(file, text) file_put(file, text, sizeof(text) - 1)

/* `<ent> cats`, `[MASK]`, and what is not the token. */
static void ent_check(bool normalized)
{
    struct tokenizer *t = folder_tokenizer();
    assert_ids(t, "<ent> cats", (int32_t[]){2, 10, 5, 3}, 4);
    assert_ids(t, "cats<ent>cats[MASK]", (int32_t[]){2, 5, 10, 5, 4, 3}, 6);
    if (normalized) {
        assert_ids(t, "<ENT>", (int32_t[]){2, 10, 3}, 3);
    } else {
        assert_ids(t, "<ENT>", (int32_t[]){2, 6, 7, 8, 3}, 5);
    }
    assert_ids(t, "< ent>", (int32_t[]){2, 6, 7, 8, 3}, 5);
    assert_int_equal(tokenizer_ids_end(t), 11);
    tokenizer_close(t);
}

static void test_added_ways(void **state)
{
    PUT("tokenizer.json", ENT_JSON); /* transformers 5 */
    PUT("tokenizer_config.json", "{\"tokenizer_class\": \"TokenizersBackend\", \"extra_special_tokens\": [\"<ent>\"]}");
    ent_check(false);
    PUT("vocab.txt", VOCAB); /* transformers 4: everything */
    PUT("tokenizer_config.json", ENT_CONFIG);
    PUT("added_tokens.json", "{\"<ent>\": 10}");
    PUT("special_tokens_map.json", "{\"unk_token\": {\"content\": \"[UNK]\", \"lstrip\": false}, "
                                   "\"additional_special_tokens\": [{\"content\": \"<ent>\", \"lstrip\": false}]}");
    ent_check(false);
    PUT("vocab.txt", VOCAB "<ent>\n"); /* a vocabulary that ends with the added token */
    ent_check(false);
    PUT("vocab.txt", VOCAB);
    unlink(inside("tokenizer.json"));
    ent_check(false);
    unlink(inside("added_tokens.json"));
    ent_check(false);
    PUT("tokenizer_config.json", CONFIG(DECODER_SPECIALS ", " DECODER_TOKEN("10", "<ent>", "false", "true")));
    ent_check(true);
    folder_empty(state);
    PUT("vocab.txt", VOCAB); /* the files of 2019 */
    PUT("added_tokens.json", "{\"<ent>\": 10}");
    ent_check(true);
    PUT("special_tokens_map.json", "{\"additional_special_tokens\": [\"<ent>\", \"foo\"]}");
    ent_check(false);
    struct tokenizer *t = folder_tokenizer();
    assert_ids(t, "catsfoo", (int32_t[]){2, 5, 9, 3}, 4); /* foo has the id of its piece */
    tokenizer_close(t);
}

/* ---- files that disagree ----------------------------------------------------------------------------------------- */

static void all_put(void)
{
    PUT("tokenizer.json", ENT_JSON);
    PUT("vocab.txt", VOCAB);
    PUT("tokenizer_config.json", ENT_CONFIG);
    PUT("added_tokens.json", "{\"<ent>\": 10}");
    PUT("special_tokens_map.json", "{\"additional_special_tokens\": [\"<ent>\"]}");
}

struct change {
    const char *file, *from, *to, *named, *second;
};

static void changes_refused(const struct change *changes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        all_put();
        file_edit(changes[i].file, changes[i].from, changes[i].to);
        refused(changes[i].named, changes[i].second);
    }
    all_put();
    tokenizer_close(folder_tokenizer());
}

static void test_disagree(void **state)
{
    (void)state;
    static const struct change changes[] = {
        {"vocab.txt", "cats\n", "dogs\n", "vocab.txt: line 6 is dogs", "tokenizer.json has cats for id 5"},
        {"vocab.txt", "cats\n<\n", "<\ncats\n", "line 6 is <", "cats for id 5"},
        {"vocab.txt", "foo\n", "", "line 10 is missing", "foo for id 9"},
        {"vocab.txt", "foo\n", "foo\nbar\n", "line 11 is bar", "nothing for id 10"},
        {"tokenizer_config.json", "\"do_lower_case\": true", "\"do_lower_case\": false", "do_lower_case is false",
         "lowercase true"},
        {"tokenizer_config.json", "null", "false", "strip_accents is false", "strip_accents true"},
        {"tokenizer_config.json", "null", "null, \"tokenize_chinese_chars\": false", "tokenize_chinese_chars is false",
         "handle_chinese_chars true"},
        {"tokenizer.json", "\"strip_accents\": null", "\"strip_accents\": false", "strip_accents is true",
         "strip_accents false"},
        {"tokenizer_config.json", "\"10\": {", "\"11\": {", "<ent> has the id 11", "10 in tokenizer.json"},
        {"tokenizer_config.json", "\"10\": {", "\"10x\": {", "added_tokens_decoder: 10x is not an id", ""},
        {"tokenizer_config.json", "\"0\": {", "\"\": {", "added_tokens_decoder: ", " is not an id"},
        {"tokenizer_config.json", "<ent>\", \"special\": true, \"normalized\": false",
         "<ent>\", \"special\": true, \"normalized\": true", "<ent> is normalized", "is not in tokenizer.json"},
        {"tokenizer_config.json", "[PAD]\", \"special\": true, \"normalized\": false, \"single_word\": false",
         "[PAD]\", \"special\": true, \"normalized\": false, \"single_word\": true", "[PAD] is single_word",
         "is not in tokenizer.json"},
        {"tokenizer_config.json", "\"content\": \"<ent>\"", "\"content\": \"<tne>\"", "<tne>", "not in tokenizer.json"},
        {"tokenizer_config.json", ", " DECODER_TOKEN("10", "<ent>", "true", "false"), "",
         "added_tokens_decoder lacks the added token <ent>", ""},
        {"tokenizer_config.json", "\"added_tokens_decoder\"", "\"additional_special_tokens\": [\"<x>\"], \"a\"", "<x>",
         "not in tokenizer.json"},
        {"tokenizer.json", ", " JSON_TOKEN("10", "<ent>", "true", "false"), "", "<ent>", "not in tokenizer.json"},
        {"added_tokens.json", "10", "11", "added_tokens.json: the added token <ent> has the id 11", "10"},
        {"added_tokens.json", "<ent>", "<tne>", "<tne>", "not in tokenizer.json"},
        {"added_tokens.json", "\"<ent>\": 10", "", "added_tokens.json: lacks the added token <ent>", ""},
        {"special_tokens_map.json", "<ent>", "cats", "cats", "not in tokenizer.json"},
        {"special_tokens_map.json", "{", "{\"cls_token\": \"<s>\", ", "cls_token is <s>", "[CLS]"},
    };
    changes_refused(changes, sizeof changes / sizeof *changes);
}

/* What changes no id is no difference. */
static void test_harmless(void **state)
{
    (void)state;
    static const struct change changes[] = {
        {"tokenizer_config.json", "\"do_lower_case\": true, \"strip_accents\": null, ", "", "", ""},
        {"tokenizer_config.json", "\"lstrip\": false", "\"lstrip\": true", "", ""},
        {"tokenizer_config.json", "null", "null, \"model_max_length\": 1e30, \"padding_side\": \"left\"", "", ""},
        {"tokenizer.json", "\"rstrip\": false", "\"rstrip\": true", "", ""},
        {"tokenizer.json", "\"strip_accents\": null", "\"strip_accents\": true", "", ""},
        {"tokenizer.json", "\"max_length\": 128", "\"max_length\": 7", "", ""},
        {"tokenizer.json", "\"cleanup\": true", "\"cleanup\": false", "", ""},
        {"tokenizer.json", "\"type\": \"WordPiece\", \"unk", "\"unk", "", ""}, /* as in files of 2020 */
        {"vocab.txt", "foo\n", "foo\n\n", "", ""},
        {"vocab.txt", "[PAD]\n", "[PAD]\r\n", "", ""},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        all_put();
        file_edit(changes[i].file, changes[i].from, changes[i].to);
        ent_check(false);
    }
    all_put();
    file_edit("tokenizer.json", "\"type\": \"TemplateProcessing\"",
              "\"type\": \"BertProcessing\", \"cls\": [\"[CLS]\", 2], \"sep\": [\"[SEP]\", 3]");
    file_edit("tokenizer.json", "\"special_tokens\"", "\"unused\"");
    ent_check(false);
    PUT("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncats\n<\nent\n>\nfoo\ncats\n"); /* a repeated piece */
    all_put();
}

/* ---- what is refused by name ------------------------------------------------------------------------------------- */

static void test_refused(void **state)
{
    static const struct change changes[] = {
        {"tokenizer.json", "\"type\": \"WordPiece\", \"unk", "\"type\": \"BPE\", \"unk", "model is BPE", "WordPiece"},
        {"tokenizer.json", "\"type\": \"WordPiece\", \"unk", "\"merges\": [], \"unk", "model is without a type", ""},
        {"tokenizer.json", "\"unk_token\": \"[UNK]\"", "\"unk_token\": \"<unk>\"", "unk_token is <unk>", "[UNK]"},
        {"tokenizer.json", "\"max_input_chars_per_word\": 100", "\"max_input_chars_per_word\": 0",
         "max_input_chars_per_word is 0", "1 to 1000"},
        {"tokenizer.json", "BertNormalizer", "NFC", "normalizer is NFC", "BertNormalizer"},
        {"tokenizer.json", "\"clean_text\": true", "\"clean_text\": false", "clean_text is false", "normalizer"},
        {"tokenizer.json", "\"lowercase\": true", "\"lowercase\": 1", "lowercase is 1", "normalizer"},
        {"tokenizer.json", "BertPreTokenizer", "Whitespace", "pre_tokenizer is Whitespace", "BertPreTokenizer"},
        {"tokenizer.json", "TemplateProcessing", "RobertaProcessing", "post_processor is RobertaProcessing", ""},
        {"tokenizer.json", "\"post_processor\"", "\"unused\"", "post_processor is missing", ""},
        {"tokenizer.json", "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}, ", "", "single", "[CLS] $A [SEP]"},
        {"tokenizer.json", "\"id\": \"A\", \"type_id\": 0", "\"id\": \"A\", \"type_id\": 1", "single", "of type 0"},
        {"tokenizer.json", "\"ids\": [3]", "\"ids\": [4]", "its ids for [CLS] and [SEP] are not 2 and 3", ""},
        {"tokenizer.json", "\"direction\": \"Right\"", "\"direction\": \"Left\"", "direction is Left", "truncation"},
        {"tokenizer.json", "\"1.0\"", "\"2.0\"", "version is 2.0", "1.0"},
        {"tokenizer.json", "\"foo\": 9", "\"foo\": 400", "piece foo has the id 400", "0 to 399"},
        {"tokenizer.json", "\"foo\": 9", "\"foo\": -1", "piece foo has the id -1", ""},
        {"tokenizer.json", "\"foo\": 9", "\"foo\": 1e3", "piece foo has the id 1e3", ""},
        {"tokenizer.json", "\"foo\": 9", "\"foo\": 8", "pieces > and foo have the same id 8", ""},
        {"tokenizer.json", "\"foo\": 9", "\"foo\": 9, \"cats\": 11", "vocab.txt: line", "cats"},
        {"tokenizer.json", "{\"id\": 10", "{\"id\": 11", "<ent>", "11"},
        {"tokenizer.json", "{\"id\": 10", "{\"id\": 400", "<ent> has the id 400", "0 to 399"},
        {"tokenizer.json", "{\"id\": 10", "{\"id\": -1", "<ent> has the id -1", ""},
        {"tokenizer.json", "{\"id\": 10", "{\"id\": \"10\"", "<ent> has no id", ""},
        {"tokenizer.json", "<ent>", "[PAD]", "[PAD]", "twice"},
        {"tokenizer.json", "<ent>", "", "", "tokenizer.json"},
        {"tokenizer.json", "\"normalized\": false, ", "", "[PAD] has no normalized", ""},
        {"tokenizer_config.json", "BertTokenizer", "XLMRobertaTokenizer", "XLMRobertaTokenizer", "BertTokenizer"},
        {"tokenizer_config.json", "null", "null, \"split_special_tokens\": true", "split_special_tokens", ""},
        {"tokenizer_config.json", "null", "null, \"truncation_side\": \"left\"", "truncation_side is left", ""},
    };
    changes_refused(changes, sizeof changes / sizeof *changes);

    folder_empty(state);
    PUT("tokenizer.json", ENT_JSON);
    file_edit("tokenizer.json", "\"foo\": 9", "\"foo\": 9, \"cats\": 11");
    refused("cats has the ids 5 and 11", "tokenizer.json");
    PUT("tokenizer.json", ENT_JSON);
    file_edit("tokenizer.json", JSON_VOCAB, "{}");
    refused("has no [UNK]", "tokenizer.json");
    PUT("tokenizer.json", ENT_JSON);
    file_edit("tokenizer.json", "{\"id\": 10", "{\"id\": 11");
    refused("<ent> has the id 11, but the library gives it 10", "tokenizer.json");
    PUT("tokenizer.json", JSON(""));
    tokenizer_close(folder_tokenizer()); /* no added token at all: [MASK] is punctuation and a word */

    folder_empty(state);
    refused("neither tokenizer.json nor vocab.txt", "WordPiece");
    PUT("vocab.txt", "[PAD]\n\xFF\n");
    refused("vocab.txt: line 2", "UTF-8");
    PUT("vocab.txt", VOCAB);
    PUT("tokenizer_config.json", "{\"tokenizer_class\": \"TokenizersBackend\"}");
    refused("TokenizersBackend", "BertTokenizer");
    PUT("tokenizer_config.json", "{\"additional_special_tokens\": [\"<ent>\"]}");
    refused("<ent> has no id", "tokenizer_config.json");
    PUT("tokenizer_config.json", CONFIG(DECODER_TOKEN("12", "<ent>", "true", "false")));
    refused("<ent> has the id 12, but the library gives it 10", "vocab.txt");
    PUT("tokenizer_config.json", CONFIG(DECODER_TOKEN("10", "<ent>", "true", "false")));
    PUT("added_tokens.json", "{\"<ent>\": 11}");
    refused("<ent> has the id 11, but 10 elsewhere", "added_tokens.json");
}

/* ---- broken files ------------------------------------------------------------------------------------------------ */

/* Cut anywhere, and any byte changed: one line or a tokenizer, never a crash (the sanitizers watch). */
static void broken(const char *file, const char *good, size_t bytes, size_t step)
{
    static const char bytes_put[] = "}]{[\"9-,:0nt\\";
    char *text = mem_string(good, bytes);
    size_t opened = 0, tried = 0;
    for (size_t i = 0; i < bytes; i += step, tried++) {
        struct model_config c;
        struct error e = {0};
        const char kept = text[i];
        text[i] = bytes_put[tried % (sizeof bytes_put - 1)];
        file_put(file, text, tried % 4 == 0 ? i : bytes);
        text[i] = kept;
        if (folder_open(&c, &e) == 0) {
            int32_t ids[8];
            tokenizer_encode(c.tokenizer, "<ent> cats", 10, ids, 8, NULL);
            tokenizer_close(c.tokenizer);
            opened++;
        }
    }
    assert_true(opened < tried);
    file_put(file, good, bytes);
    free(text);
}

static void test_broken(void **state)
{
    folder_empty(state);
    broken("tokenizer.json", ENT_JSON, sizeof ENT_JSON - 1, 1);
    broken("tokenizer_config.json", ENT_CONFIG, sizeof ENT_CONFIG - 1, 3);
    static const char *const values[] = {"null", "true", "-1",     "1e999", "\"x\"",          "[]",
                                         "{}",   "[[]]", "[null]", "[{}]",  "{\"type\": {}}", "[0, 1, 2]"};
    static const char *const names[] = {
        "version", "truncation",     "added_tokens", "normalizer", "pre_tokenizer",
        "model",   "post_processor", "vocab",        "single",     "special_tokens",
        "ids",     "SpecialToken",   "content",      "unk_token",  "continuing_subword_prefix"};
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            char name[64], put[256];
            struct model_config c;
            struct error e = {0};
            snprintf(name, sizeof name, "\"%s\": ", names[n]);
            snprintf(put, sizeof put, "\"%s\": %s, \"was\": ", names[n], values[v]);
            PUT("tokenizer.json", ENT_JSON);
            file_edit("tokenizer.json", name, put);
            if (folder_open(&c, &e) == 0) {
                tokenizer_close(c.tokenizer);
            }
        }
    }
}

static int setup(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/test_tokenizer_folder.XXXXXX");
    return mkdtemp(folder) == NULL ? -1 : 0;
}

static int teardown(void **state)
{
    folder_empty(state);
    return rmdir(folder);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_golden),   TEST(test_added_ways), TEST(test_disagree),
        TEST(test_harmless), TEST(test_refused),    TEST(test_broken),
    };
    return cmocka_run_group_tests_name("tokenizer_folder", tests, NULL, NULL);
}
