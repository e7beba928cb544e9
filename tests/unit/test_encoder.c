/* The encoder on a tiny random BERT (tests/golden/make_tiny_bert.py): embeddings as the authors' library gives them,
 * alone and in batches; the fingerprint; parameters set again; and every folder that must be refused, made from the
 * good one by one change. Runs from the root of the project. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/json.h"
#include "gpu/encoder/internal.h"
#include "tests/unit/encoder_folder.h"

#define GOLDEN "tests/golden/tiny-bert-golden.json"

/* ---- what is right ------------------------------------------------------------------------------------------------
 */

/* Each text alone, then all of them many times over in one batch. */
static void test_golden(void **state)
{
    (void)state;
    struct arena arena = {0};
    struct error e = {0};
    struct encoder *enc = encoder_plain();
    const struct json *golden = golden_read(GOLDEN, &arena);
    const size_t dim = encoder_dim(enc), n = golden->count, times = 40;
    struct tokens *tokens = mem_zero(n, sizeof *tokens);
    const struct tokens **batch = mem_alloc(n * times * sizeof *batch);
    float *out = mem_alloc(n * times * dim * sizeof *out);
    const struct json *one = golden->child;
    for (size_t i = 0; i < n; i++, one = one->next) {
        encoder_tokenize(enc, ENCODER_TEXT, json_member(one, "text")->text, &tokens[i]);
        const struct json *ids = json_member(one, "tokens"), *id = ids->child;
        assert_int_equal(tokens[i].count, ids->count);
        for (size_t j = 0; j < tokens[i].count; j++, id = id->next) {
            int64_t expected;
            assert_true(json_int(id, &expected));
            assert_int_equal(tokens[i].ids[j], expected);
        }
        batch[0] = &tokens[i];
        assert_int_equal(encode(enc, batch, 1, out, &e), 0);
        numbers_check(out, json_member(one, "embedding"), dim, 2e-6);
    }
    for (size_t i = 0; i < n * times; i++) {
        batch[i] = &tokens[i % n];
    }
    assert_int_equal(encode(enc, batch, n * times, out, &e), 0);
    for (size_t i = 0; i < n * times; i++) {
        one = i % n ? one->next : golden->child;
        numbers_check(out + i * dim, json_member(one, "embedding"), dim, 2e-6);
    }
    for (size_t i = 0; i < n; i++) {
        tokens_free(&tokens[i]);
    }
    free(tokens);
    free(batch);
    free(out);
    arena_free(&arena);
    encoder_close(enc);
}

static void test_prefix(void **state)
{
    (void)state;
    struct encoder *plain = encoder_plain();
    struct encoder *enc =
        encoder_of(&(struct encoder_options){.folder = folder, .text_prefix = "python li", .label_prefix = "a "});
    float expected[32], got[32];
    text_embed(plain, ENCODER_TEXT, "python library", expected);
    text_embed(enc, ENCODER_TEXT, "brary", got); /* the seam is inside a word */
    assert_memory_equal(got, expected, sizeof got);
    text_embed(plain, ENCODER_TEXT, "a tool", expected);
    text_embed(enc, ENCODER_LABEL, "tool", got);
    assert_memory_equal(got, expected, sizeof got);
    encoder_close(enc);
    encoder_close(plain);
}

#define PROMPTS "\"prompts\": {\"query\": \"python li\", \"document\": \"a \", \"none\": \"\"}"

static void prompts_put(const char *rest)
{
    char text[512];
    int bytes = snprintf(text, sizeof text, "{%s%s}", PROMPTS, rest);
    file_put("config_sentence_transformers.json", text, (size_t)bytes);
}

/* The default prompt is put before texts and labels alike, and counts as the option of the same text does; an option
 * wins over it; without a default none is applied, whatever prompts there are. */
static void test_prompts(void **state)
{
    (void)state;
    const struct encoder_options plain = {.folder = folder};
    const struct encoder_options both = {.folder = folder, .text_prefix = "python li", .label_prefix = "python li"};
    const struct encoder_options text = {.folder = folder, .text_prefix = "a "};
    const struct encoder_options mixed = {.folder = folder, .text_prefix = "a ", .label_prefix = "python li"};
    char none[33], options[33], got[33];
    float expected[32], out[32];
    fingerprint_of(&plain, none);
    fingerprint_of(&both, options);
    struct encoder *enc = encoder_of(&both);
    text_embed(enc, ENCODER_TEXT, "brary", expected);
    encoder_close(enc);
    prompts_put("");
    fingerprint_of(&plain, got);
    assert_string_equal(got, none);
    prompts_put(", \"default_prompt_name\": null");
    fingerprint_of(&plain, got);
    assert_string_equal(got, none);
    prompts_put(", \"default_prompt_name\": \"none\"");
    fingerprint_of(&plain, got);
    assert_string_equal(got, none);

    prompts_put(", \"default_prompt_name\": \"query\"");
    fingerprint_of(&plain, got);
    assert_string_equal(got, options);
    enc = encoder_of(&plain);
    for (int input = ENCODER_TEXT; input <= ENCODER_LABEL; input++) {
        text_embed(enc, (enum encoder_input)input, "brary", out);
        assert_memory_equal(out, expected, sizeof out);
    }
    encoder_close(enc);
    fingerprint_of(&text, got);
    file_remove("config_sentence_transformers.json");
    fingerprint_of(&mixed, options);
    assert_string_equal(got, options);

    prompts_put(", \"default_prompt_name\": \"query\"");
    file_remove("modules.json"); /* without it the library does not read the prompts either */
    fingerprint_of(&plain, got);
    assert_string_equal(got, none);
}

static void test_length(void **state)
{
    (void)state;
    struct encoder *enc = encoder_plain();
    struct tokens t;
    assert_int_equal(encoder_max_seq_length(enc), 48); /* sentence_bert_config.json's, not the 64 elsewhere */
    assert_string_equal(encoder_name(enc), "model");
    encoder_close(enc);
    enc = encoder_of(&(struct encoder_options){.folder = folder, .max_seq_length = 5});
    encoder_tokenize(enc, ENCODER_TEXT, slice_of("a tool for the kernel"), &t);
    assert_true(t.count == 5 && t.truncated);
    tokens_free(&t);
    encoder_tokenize(enc, ENCODER_TEXT, slice_of("a tool for"), &t);
    assert_true(t.count == 5 && !t.truncated);
    tokens_free(&t);
    encoder_close(enc);
    file_remove("sentence_bert_config.json");
    enc = encoder_plain();
    assert_int_equal(encoder_max_seq_length(enc), 64);
    encoder_close(enc);
}

/* What only says what is so anyway may be absent. */
static void test_sparse_folder(void **state)
{
    (void)state;
    float expected[32], got[32];
    struct encoder *enc = encoder_plain();
    char fingerprint[33];
    text_embed(enc, ENCODER_TEXT, "a debug tool", expected);
    memcpy(fingerprint, encoder_fingerprint(enc), sizeof fingerprint);
    encoder_close(enc);
    file_remove("modules.json");
    file_remove("tokenizer_config.json");
    enc = encoder_plain();
    text_embed(enc, ENCODER_TEXT, "a debug tool", got);
    assert_memory_equal(got, expected, sizeof got);
    assert_string_equal(encoder_fingerprint(enc), fingerprint);
    encoder_close(enc);
}

/* Runs a pass over the tile, everything kept or not; memory is the caller's to release. */
static void *pass_run(const struct encoder *enc, struct pass *p, const struct tile *tile, bool keep)
{
    struct error e = {0};
    void *memory;
    size_t bytes = pass_place(enc, p, NULL, tile->tokens, tile->sequences, keep);
    assert_int_equal(backend->ops->alloc(backend, bytes, &memory, &e), 0);
    assert_int_equal(pass_place(enc, p, memory, tile->tokens, tile->sequences, keep), bytes);
    assert_int_equal(forward_pass(enc, stream, tile, p, NULL, NULL, &e), 0);
    return memory;
}

static float *host_of(const struct tensor *t)
{
    struct error e = {0};
    const size_t bytes = t->rows * t->columns * sizeof(float);
    float *host = mem_alloc(bytes);
    backend->ops->download(stream, host, t->data, bytes);
    assert_int_equal(backend->ops->wait(stream, &e), 0);
    return host;
}

/* y = (a + b - mean) * rstd * gamma + beta, from what was kept. */
static void norm_kept_check(const struct tensor *y, const struct tensor *a, const struct tensor *b,
                            const struct tensor *kept, const struct tensor *norm)
{
    float *out = host_of(y), *x = host_of(a), *residual = host_of(b), *k = host_of(kept), *n = host_of(norm);
    const size_t dim = y->columns;
    for (size_t i = 0; i < y->rows * dim; i++) {
        double centred = (double)x[i] + (double)residual[i] - (double)k[i / dim * 2];
        double expected = centred * (double)k[i / dim * 2 + 1] * (double)n[i % dim] + (double)n[dim + i % dim];
        assert_true(fabs((double)out[i] - expected) < 1e-5);
    }
    free(out);
    free(x);
    free(residual);
    free(k);
    free(n);
}

/* Keeping everything changes no vector beyond rounding, and what is kept is what a backward pass needs: each
 * operation's inputs. */
static void test_keep(void **state)
{
    (void)state;
    struct encoder *enc = encoder_plain();
    const int32_t ids[] = {2, 9, 10, 3, 2, 3, 2, 20, 21, 22, 3};
    const uint32_t starts[] = {0, 4, 6, 11};
    const struct tile tile = {.ids = ids, .starts = starts, .tokens = 11, .sequences = 3};
    struct layer_pass layers[2], layer;
    struct pass kept = {.layers = layers}, plain = {.layers = &layer};
    assert_int_equal(enc->config.layers, 2);
    void *kept_memory = pass_run(enc, &kept, &tile, true), *plain_memory = pass_run(enc, &plain, &tile, false);
    float *a = host_of(&kept.vectors), *b = host_of(&plain.vectors);
    for (size_t i = 0; i < 3 * encoder_dim(enc); i++) {
        assert_true(fabsf(a[i] - b[i]) < 1e-6F); /* the GELU whose input is kept rounds in its own way */
    }
    for (size_t i = 0; i < 2; i++) {
        const struct layer_pass *l = &layers[i];
        const struct tensor *x = i ? &layers[i - 1].out : &kept.tokens;
        norm_kept_check(&l->middle, &l->attended, x, &l->norm1, &enc->layers[i].attention_norm->tensor);
        norm_kept_check(&l->out, &l->projected, &l->middle, &l->norm2, &enc->layers[i].output_norm->tensor);
        float *before = host_of(&l->before_gelu), *after = host_of(&l->hidden);
        for (size_t j = 0; j < 11 * enc->config.intermediate; j++) {
            double v = (double)before[j];
            assert_true(fabs((double)after[j] - v / 2 * (1 + erf(v / sqrt(2)))) < 1e-6);
        }
        free(before);
        free(after);
    }
    free(a);
    free(b);
    backend->ops->release(backend, kept_memory);
    backend->ops->release(backend, plain_memory);
    encoder_close(enc);
}

/* New values take the place of old ones, and the old ones back give the old embedding. */
static void test_parameters(void **state)
{
    (void)state;
    struct error e = {0};
    struct encoder *enc = encoder_plain();
    size_t count;
    const struct encoder_parameter *p = encoder_parameters(enc, &count);
    assert_int_equal(count, 4 + 2 * 6);
    assert_string_equal(p[0].name, "embeddings.word_embeddings");
    assert_string_equal(p[4].name, "encoder.layer.0.attention.self");
    float before[32], after[32];
    text_embed(enc, ENCODER_TEXT, "read and write", before);
    for (size_t i = 0; i < count; i++) {
        const size_t floats = p[i].rows * p[i].columns;
        float *weight = mem_zero(floats, sizeof *weight), *bias = mem_zero(p[i].rows + p[i].columns, sizeof *bias);
        for (size_t j = 0; j < floats; j++) {
            weight[j] = (float)(j % 7) - 3;
        }
        assert_int_equal(encoder_parameter_set(enc, i, weight, p[i].kind == PARAMETER_TABLE ? NULL : bias, &e), 0);
        text_embed(enc, ENCODER_TEXT, "read and write", after);
        assert_memory_not_equal(before, after, sizeof after);
        memcpy(before, after, sizeof before);
        free(weight);
        free(bias);
    }
    encoder_close(enc);
}

/* ---- the fingerprint ----------------------------------------------------------------------------------------------
 */

/* Where in model.safetensors (its bytes in b) the tensor begins; *size is its bytes. */
static size_t tensor_place(const struct buffer *b, const char *name, size_t *size)
{
    int64_t begin, end;
    struct arena arena = {0};
    const struct json *header;
    struct error e = {0};
    uint64_t bytes;
    memcpy(&bytes, b->data, sizeof bytes);
    assert_int_equal(json_parse((struct slice){b->data + 8, bytes}, 8, &arena, &header, &e), 0);
    const struct json *offsets = json_member(json_member(header, name), "data_offsets");
    assert_true(json_int(offsets->child, &begin) && json_int(offsets->child->next, &end));
    arena_free(&arena);
    *size = (size_t)(end - begin);
    return 8 + bytes + (size_t)begin;
}

/* Flips the lowest bit of a number in the middle of the tensor. */
static void tensor_flip(const char *name)
{
    size_t size;
    struct buffer b = whole_read(inside("model.safetensors"));
    size_t place = tensor_place(&b, name, &size);
    b.data[place + size / 2] ^= 1;
    file_put("model.safetensors", b.data, b.bytes);
    buffer_free(&b);
}

/* Puts a value in the place of the tensor's number `at`, counted through its rows. */
static void tensor_put(const char *name, size_t at, float value)
{
    size_t size;
    struct buffer b = whole_read(inside("model.safetensors"));
    size_t place = tensor_place(&b, name, &size);
    assert_true(at < size / sizeof value);
    memcpy(b.data + place + at * sizeof value, &value, sizeof value);
    file_put("model.safetensors", b.data, b.bytes);
    buffer_free(&b);
}

static void test_fingerprint(void **state)
{
    (void)state;
    struct encoder_options options = {.folder = folder};
    char good[33], other[33];
    fingerprint_of(&options, good);
    assert_string_equal(good, "f2baf16321c0dab47ca99077bbc4717f"); /* or memories made before would be refused */
    fingerprint_of(&options, other);
    assert_string_equal(good, other);
    tensor_flip("pooler.dense.weight"); /* not used: does not count */
    fingerprint_of(&options, other);
    assert_string_equal(good, other);
    tensor_flip("encoder.layer.1.attention.self.key.weight");
    fingerprint_of(&options, other);
    assert_string_not_equal(good, other);
    tensor_flip("encoder.layer.1.attention.self.key.weight");
    fingerprint_of(&options, other);
    assert_string_equal(good, other);
    const struct encoder_options others[] = {{.folder = folder, .max_seq_length = 47},
                                             {.folder = folder, .text_prefix = "query: "},
                                             {.folder = folder, .label_prefix = "query: "}};
    char seen[3][33];
    for (size_t i = 0; i < 3; i++) {
        fingerprint_of(&others[i], seen[i]);
        assert_string_not_equal(good, seen[i]);
    }
    assert_string_not_equal(seen[1], seen[2]);
    fingerprint_of(&(struct encoder_options){.folder = folder, .max_seq_length = 48, .text_prefix = ""}, other);
    assert_string_equal(good, other);
    file_edit("sentence_bert_config.json", "\"do_lower_case\": false", "\"do_lower_case\": true");
    fingerprint_of(&options, other);
    assert_string_not_equal(good, other);
    file_edit("sentence_bert_config.json", "\"do_lower_case\": true", "\"do_lower_case\": false");
    file_edit("vocab.txt", "\nkernel\n", "\nkernal\n");
    fingerprint_of(&options, other);
    assert_string_not_equal(good, other);
    file_edit("vocab.txt", "\nkernal\n", "\nkernel\n");
    file_edit("tokenizer_config.json", "\"strip_accents\": null", "\"strip_accents\": false");
    fingerprint_of(&options, other);
    assert_string_not_equal(good, other);
    file_edit("tokenizer_config.json", "\"strip_accents\": false", "\"additional_special_tokens\": [\"kernel\"]");
    fingerprint_of(&options, other);
    assert_string_not_equal(good, other);
    file_edit("tokenizer_config.json", "[\"kernel\"]", "[\"[MASK]\"]"); /* one already */
    fingerprint_of(&options, other);
    assert_string_equal(good, other);
}

/* ---- what is refused ----------------------------------------------------------------------------------------------
 */

/* One change to one file, and what the refusal must name. */
static void test_refused_settings(void **state)
{
    static const struct {
        const char *file, *from, *to, *named;
    } cases[] = {
        {"config.json", "\"model_type\": \"bert\"", "\"model_type\": \"roberta\"", "roberta"},
        {"config.json", "\"model_type\": \"bert\",", "", "model_type"},
        {"config.json", "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"relu\"", "relu"},
        {"config.json", "\"absolute\"", "\"relative_key\"", "relative_key"},
        {"config.json", "\"hidden_size\": 32", "\"is_decoder\": true, \"hidden_size\": 32", "is_decoder"},
        {"config.json", "\"hidden_size\": 32", "\"hidden_size\": 40", "word_embedding_dimension"},
        {"config.json", "\"hidden_size\": 32", "\"hidden_size\": 1e300", "hidden_size"},
        {"config.json", "\"hidden_size\": 32", "\"hidden_size\": -32", "hidden_size"},
        {"config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "num_attention_heads"},
        {"config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "encoder.layer.2"},
        {"config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1000000000000", "num_hidden_layers"},
        {"config.json", "\"intermediate_size\": 64", "\"intermediate_size\": 72",
         "has shape [64, 32]; config.json asks for [72, 32]"},
        {"config.json", "\"intermediate_size\": 64,", "", "intermediate_size is missing"},
        {"config.json", "\"layer_norm_eps\": 1e-12", "\"layer_norm_eps\": -1", "layer_norm_eps"},
        {"config.json", "\"vocab_size\": 176", "\"vocab_size\": 100", "vocab.txt: has 176 pieces"},
        {"config.json", "{", "[", "config.json"},
        {"tokenizer_config.json", "BertTokenizer", "XLMRobertaTokenizer", "XLMRobertaTokenizer"},
        {"tokenizer_config.json", "\"[MASK]\"", "\"<mask>\"", "<mask>"},
        {"tokenizer_config.json", "\"do_lower_case\": true", "\"do_lower_case\": \"yes\"", "do_lower_case"},
        {"sentence_bert_config.json", "\"do_lower_case\": false", "\"do_lower_case\": 1", "do_lower_case"},
        {"sentence_bert_config.json", "48", "65", "max_seq_length"},
        {"1_Pooling/config.json", "\"pooling_mode_max_tokens\": false", "\"pooling_mode_max_tokens\": true",
         "max_tokens"},
        {"1_Pooling/config.json", "\"pooling_mode_cls_token\": false", "\"pooling_mode_cls_token\": true",
         "mean and [CLS]"},
        {"1_Pooling/config.json", "\"pooling_mode_mean_tokens\": true", "\"pooling_mode_mean_tokens\": false",
         "neither"},
        {"1_Pooling/config.json", "\"word_embedding_dimension\": 32", "\"word_embedding_dimension\": 33",
         "word_embedding"},
        {"1_Pooling/config.json", "{", "{\"include_prompt\": false,", "include_prompt is false"},
        {"modules.json", "models.Normalize", "models.LayerNorm", "LayerNorm"},
        {"modules.json", "models.Transformer", "models.CLIPModel", "CLIPModel"},
        {"modules.json", "\"path\": \"1_Pooling\"", "\"path\": \"../elsewhere\"", "path"},
        {"modules.json", "\"path\": \"1_Pooling\"", "\"path\": \"2_Pooling\"", "2_Pooling/config.json"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        file_edit(cases[i].file, cases[i].from, cases[i].to);
        refused(cases[i].named, "");
        assert_int_equal(folder_remove(state), 0);
        folder_make(state);
    }
}

static void test_refused_prompts(void **state)
{
    (void)state;
    static const struct {
        const char *rest, *named;
    } cases[] = {
        {", \"default_prompt_name\": \"passage\"", "default_prompt_name is passage, which is none of its prompts"},
        {", \"default_prompt_name\": \"\"", "is none of its prompts"},
        {", \"default_prompt_name\": 7", "default_prompt_name is 7"},
        {", \"default_prompt_name\": \"query\", \"prompts\": [\"query\"]", "is none"},
        {", \"default_prompt_name\": \"query\", \"prompts\": {\"query\": null}", "is none"},
        {", \"default_prompt_name\": \"query\", \"prompts\": {\"query\": \"a\\u0000b\"}", "NUL"},
        {", \"default_prompt_name\": \"query\", \"prompts\"", "config_sentence_transformers.json: not JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        prompts_put(cases[i].rest);
        refused(cases[i].named, "config_sentence_transformers.json");
    }
}

static void test_refused_files(void **state)
{
    (void)state;
    file_remove("vocab.txt");
    refused(folder, "vocab.txt");
    file_remove("model.safetensors");
    refused(folder, "has no model.safetensors");
    file_put("pytorch_model.bin", "", 0);
    refused(folder, "pytorch_model.bin");
    file_put("model.safetensors.index.json", "{}", 2);
    refused(folder, "shards");
    file_remove("config.json");
    refused(folder, "not a model folder");
    snprintf(folder + strlen(folder), sizeof folder - strlen(folder), "/config.json");
    refused(folder, "No such file");
    snprintf(folder, sizeof folder, "%s/model", root);
    file_put("config.json", "{}", 2);
    snprintf(folder + strlen(folder), sizeof folder - strlen(folder), "/config.json");
    refused(folder, "not a folder");
    snprintf(folder, sizeof folder, "%s/model", root);
}

static void test_refused_tensors(void **state)
{
    static const struct {
        const char *from, *to, *named;
    } cases[] = {
        {"\"encoder.layer.1.output.dense.bias\"", "\"encoder.layer.1.output.dense.bia_\"",
         "layer.1.output.dense.bias is missing"},
        {"\"embeddings.LayerNorm.weight\"", "\"embeddings.LayerNorm.weigh_\"",
         "embeddings.LayerNorm.weight is missing"},
        {"\"embeddings.word_embeddings.weight\"", "\"embeddings.word_embeddings.weigh_\"", "word_embeddings"},
        {"\"shape\":[64,32]", "\"shape\":[32,64]", "[32, 64]"},
        {"\"shape\":[64,32]", "\"shape\":[64,33]", "do not agree"},
        {"\"shape\":[64,32]", "\"shape\":[-4,32]", "do not agree"},
        {"\"shape\":[64,32]", "\"shape\":3333333", "do not agree"},
        {"\"dtype\":\"F32\"", "\"dtype\":\"F64\"", "F64"},
        {"\"dtype\":\"F32\"", "\"dtype\":[\"F\"]", "dtype"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        file_edit("model.safetensors", cases[i].from, cases[i].to);
        refused(cases[i].named, "model.safetensors");
        assert_int_equal(folder_remove(state), 0);
        folder_make(state);
    }
    for (unsigned i = 0; i < 3; i++) { /* a header that claims more than there is */
        struct buffer b = whole_read(inside("model.safetensors"));
        const uint64_t claims[] = {UINT64_MAX, b.bytes - 7, b.bytes};
        memcpy(b.data, &claims[i], sizeof claims[i]);
        file_put("model.safetensors", b.data, b.bytes);
        refused("cut short", "model.safetensors");
        buffer_free(&b);
    }
}

/* The first number of a used tensor that is not finite, by its place. */
static void test_refused_numbers(void **state)
{
    static const struct {
        const char *tensor;
        size_t at;
        float value;
        const char *named;
    } cases[] = {
        {"embeddings.word_embeddings.weight", 175 * 32 + 31, NAN, "word_embeddings.weight [175, 31] is NaN"},
        {"embeddings.position_embeddings.weight", 0, INFINITY, "position_embeddings.weight [0, 0] is infinite"},
        {"embeddings.LayerNorm.weight", 5, -INFINITY, "embeddings.LayerNorm.weight [5] is infinite"},
        {"embeddings.LayerNorm.bias", 31, NAN, "embeddings.LayerNorm.bias [31] is NaN"},
        {"encoder.layer.0.attention.self.value.weight", 33, NAN, "attention.self.value.weight [1, 1] is NaN"},
        {"encoder.layer.1.attention.self.key.bias", 2, INFINITY, "attention.self.key.bias [2] is infinite"},
        {"encoder.layer.0.output.dense.weight", 3 * 64 + 17, NAN, "encoder.layer.0.output.dense.weight [3, 17] is NaN"},
        {"encoder.layer.1.intermediate.dense.bias", 63, NAN, "intermediate.dense.bias [63] is NaN"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tensor_put(cases[i].tensor, cases[i].at, cases[i].value);
        refused(cases[i].named, "model.safetensors");
        assert_int_equal(folder_remove(state), 0);
        folder_make(state);
    }
    tensor_put("pooler.dense.weight", 0, NAN); /* not used */
    encoder_close(encoder_plain());
}

/* Weights that are finite but overflow on the way: an error, wherever it happens, never a vector. */
static void test_overflow(void **state)
{
    (void)state;
    struct error e = {0};
    struct encoder *enc = encoder_plain();
    struct tokens good, long_one;
    const float huge = 3e38F;
    float out[2 * 32];
    size_t count;
    const struct encoder_parameter *p = encoder_parameters(enc, &count);
    encoder_tokenize(enc, ENCODER_TEXT, slice_of("read and write"), &good);
    encoder_tokenize(enc, ENCODER_TEXT, slice_of("a debug tool for the linux kernel, and more of it"), &long_one);
    const struct tokens *both[] = {&good, &long_one};
    for (size_t i = 0; i < count; i++) {
        const bool norm = p[i].kind == PARAMETER_NORM;
        const size_t floats = p[i].rows * p[i].columns, biases = norm ? p[i].columns : p[i].rows;
        float *weight = mem_alloc(floats * sizeof *weight), *bias = mem_alloc(biases * sizeof *bias);
        for (size_t j = 0; j < floats; j++) {
            weight[j] = j % 2 ? huge : -huge;
        }
        for (size_t j = 0; j < biases; j++) {
            bias[j] = j % 3 ? -huge : huge;
        }
        assert_int_equal(encoder_parameter_set(enc, i, weight, bias, &e), 0);
        free(weight);
        free(bias);
        assert_int_equal(encode(enc, both, 2, out, &e), -1);
        assert_int_equal(e.kind, ERROR_FATAL);
        assert_int_equal(e.code, E_MODEL);
        assert_non_null(strstr(e.text, "is not finite"));
        encoder_close(enc);
        enc = encoder_plain();
        p = encoder_parameters(enc, &count);
        assert_int_equal(encode(enc, both, 2, out, &e), 0);
    }
    tokens_free(&good);
    tokens_free(&long_one);
    encoder_close(enc);
}

/* Cut anywhere, and with any byte of the header changed: refused or read, never a crash (the sanitizers watch). */
static void test_broken_tensors(void **state)
{
    (void)state;
    struct buffer good = whole_read(inside("model.safetensors"));
    uint64_t header;
    memcpy(&header, good.data, sizeof header);
    for (size_t keep = 0; keep < good.bytes; keep += keep < 24 ? 1 : good.bytes / 17) {
        file_put("model.safetensors", good.data, keep);
        refused("model.safetensors", "");
    }
    size_t opened = 0;
    for (size_t i = 0; i < 300; i++) {
        struct encoder *enc = NULL;
        struct error e = {0};
        size_t at = 8 + i * (header - 1) / 299;
        char kept = good.data[at];
        good.data[at] = "}]\"9-,x"[i % 7];
        file_put("model.safetensors", good.data, good.bytes);
        good.data[at] = kept;
        if (encoder_open(&enc, backend, &(struct encoder_options){.folder = folder}, &e) == 0) {
            opened++;
            encoder_close(enc);
        } else {
            assert_int_equal(e.code, E_MODEL);
        }
    }
    assert_true(opened < 150);
    buffer_free(&good);
}

static void test_refused_length(void **state)
{
    (void)state;
    static const size_t lengths[] = {1, 2, 65, SIZE_MAX};
    for (size_t i = 0; i < 4; i++) {
        struct encoder *enc = NULL;
        struct error e = {0};
        struct encoder_options options = {.folder = folder, .max_seq_length = lengths[i]};
        assert_int_equal(encoder_open(&enc, backend, &options, &e), -1);
        assert_non_null(strstr(e.text, "max_seq_length"));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_golden),
        TEST(test_prefix),
        TEST(test_length),
        TEST(test_sparse_folder),
        TEST(test_keep),
        TEST(test_parameters),
        TEST(test_fingerprint),
        TEST(test_refused_settings),
        TEST(test_refused_files),
        TEST(test_refused_tensors),
        TEST(test_broken_tensors),
        TEST(test_refused_length),
        TEST(test_refused_numbers),
        TEST(test_overflow),
        TEST(test_prompts),
        TEST(test_refused_prompts),
    };
    return encoder_tests_run("encoder", tests, sizeof tests / sizeof *tests);
}
