/* The encoder with a Dense module between pooling and normalisation, on the tiny BERT: embeddings as
 * sentence-transformers gives them (tests/golden/make_dense.py), its parameter, the fingerprint, and what is refused.
 * Runs from the root of the project. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "gpu/encoder/internal.h"
#include "tests/unit/encoder_folder.h"

#define GOLDEN "tests/golden/dense.json"
#define WIDTH_MAX 48

#define TRANSFORMER "{\"path\": \"\", \"type\": \"sentence_transformers.models.Transformer\"}"
#define POOLING "{\"path\": \"1_Pooling\", \"type\": \"sentence_transformers.models.Pooling\"}"
#define DENSE "{\"path\": \"2_Dense\", \"type\": \"sentence_transformers.models.Dense\"}"
#define NORMALIZE "{\"path\": \"3_Normalize\", \"type\": \"sentence_transformers.models.Normalize\"}"

static void modules_put(const char *text)
{
    file_put("modules.json", text, strlen(text));
}

/* Adds a Dense of tests/golden/dense to the folder. */
static void dense_put(const char *name)
{
    static const char *const parts[] = {"config.json", "model.safetensors"};
    mkdir(inside("2_Dense"), 0700);
    for (size_t i = 0; i < 2; i++) {
        char from[128], to[64];
        snprintf(from, sizeof from, "tests/golden/dense/%s/%s", name, parts[i]);
        snprintf(to, sizeof to, "2_Dense/%s", parts[i]);
        struct buffer b = whole_read(from);
        file_put(to, b.data, b.bytes);
        buffer_free(&b);
    }
    modules_put("[" TRANSFORMER "," POOLING "," DENSE "," NORMALIZE "]");
}

/* Each text alone and all in one batch, for a Dense that is narrower than the transformer, as wide without a bias, and
 * wider in f16; with Normalize and without. */
static void test_golden(void **state)
{
    (void)state;
    struct arena arena = {0};
    struct error e = {0};
    size_t modules = 0;
    for (const struct json *g = golden_read(GOLDEN, &arena)->child; g; g = g->next, modules++) {
        dense_put(json_member(g, "name")->text.data);
        if (json_member(g, "modules.json")->count == 3) {
            modules_put("[" TRANSFORMER "," POOLING "," DENSE "]");
        }
        struct encoder *enc = encoder_plain();
        const struct json *text = json_member(g, "texts")->child, *row = json_member(g, "embeddings")->child;
        struct tokens tokens[8];
        const struct tokens *batch[8];
        float out[8 * WIDTH_MAX];
        size_t n = 0, width = encoder_dim(enc);
        assert_int_equal(width, row->count);
        for (; text; text = text->next, row = row->next, n++) {
            encoder_tokenize(enc, ENCODER_TEXT, text->text, &tokens[n]);
            batch[n] = &tokens[n];
            assert_int_equal(encode(enc, &batch[n], 1, out, &e), 0);
            numbers_check(out, row, width, 2e-6);
        }
        assert_int_equal(encode(enc, batch, n, out, &e), 0);
        row = json_member(g, "embeddings")->child;
        for (size_t i = 0; i < n; i++, row = row->next) {
            numbers_check(out + i * width, row, width, 2e-6);
            tokens_free(&tokens[i]);
        }
        encoder_close(enc);
    }
    assert_int_equal(modules, 3);
    arena_free(&arena);
}

/* It is the last parameter, with a bias of zeroes where the folder has none. The identity in its place gives the
 * embedding of the model without a Dense. */
static void test_parameter(void **state)
{
    (void)state;
    struct error e = {0};
    float plain[32], out[32], weight[32 * 32] = {0}, bias[32] = {0};
    size_t count, without;
    struct encoder *enc = encoder_plain();
    text_embed(enc, ENCODER_TEXT, "read and write", plain);
    encoder_parameters(enc, &without);
    encoder_close(enc);
    dense_put("square");
    enc = encoder_of(&(struct encoder_options){.folder = folder, .masters = true});
    const struct encoder_parameter *p = encoder_parameters(enc, &count) + without;
    assert_int_equal(count, without + 1);
    assert_string_equal(p->name, "dense");
    assert_true(p->kind == PARAMETER_LINEAR && p->rows == 32 && p->columns == 32);
    backend->ops->download(stream, out, p->bias.data, sizeof out);
    assert_int_equal(backend->ops->wait(stream, &e), 0);
    assert_memory_equal(out, bias, sizeof out);
    for (size_t i = 0; i < 32; i++) {
        weight[i * 33] = 1;
    }
    assert_int_equal(encoder_parameter_set(enc, without, weight, bias, &e), 0);
    text_embed(enc, ENCODER_TEXT, "read and write", out);
    for (size_t i = 0; i < 32; i++) {
        assert_true(fabsf(out[i] - plain[i]) < 1e-6F);
    }
    encoder_close(enc);
}

static void device_read(float *host, const struct tensor *t)
{
    struct error e = {0};
    backend->ops->download(stream, host, t->data, t->rows * t->columns * sizeof *host);
    assert_int_equal(backend->ops->wait(stream, &e), 0);
}

/* vectors = pooled W' + bias, each row divided by its length, in f32 also where the rest of the pass is in bf16. */
static void dense_check(const struct encoder *enc, const struct pass *p)
{
    const struct encoder_parameter *dense = enc->dense;
    const size_t width = dense->rows, dim = dense->columns;
    float weight[WIDTH_MAX * 32], bias[WIDTH_MAX], pooled[2 * 32], vectors[2 * WIDTH_MAX];
    double expected[WIDTH_MAX], sum;
    device_read(weight, &dense->tensor);
    device_read(bias, &dense->bias);
    device_read(pooled, &p->pooled);
    device_read(vectors, &p->vectors);
    for (size_t i = 0; i < 2; i++) {
        sum = 0;
        for (size_t j = 0; j < width; j++) {
            expected[j] = (double)bias[j];
            for (size_t k = 0; k < dim; k++) {
                expected[j] += (double)pooled[i * dim + k] * (double)weight[j * dim + k];
            }
            sum += expected[j] * expected[j];
        }
        for (size_t j = 0; j < width; j++) {
            assert_true(fabs((double)vectors[i * width + j] - expected[j] / sqrt(sum)) < 1e-6);
        }
    }
}

/* The square one has the shape of a matrix of the layers, which are in bf16. */
static void test_dtypes(void **state)
{
    (void)state;
    static const char *const names[] = {"narrow", "square", "wide"};
    const int32_t ids[] = {2, 9, 10, 3, 2, 20, 3};
    const uint32_t starts[] = {0, 4, 7};
    const struct tile tile = {.ids = ids, .starts = starts, .tokens = 7, .sequences = 2};
    struct backend *const usual = backend;
    struct stream *const usual_stream = stream;
    struct error e = {0};
    for (enum compute compute = COMPUTE_F32; compute <= COMPUTE_BF16; compute++) {
        assert_int_equal(backend_cpu_open(&backend, &(struct backend_options){.threads = 1, .compute = compute}, &e),
                         0);
        assert_int_equal(backend->facts.compute, compute == COMPUTE_BF16 ? DTYPE_BF16 : DTYPE_F32);
        assert_int_equal(backend->ops->stream_open(backend, &stream, &e), 0);
        for (size_t i = 0; i < 3; i++) {
            struct layer_pass layer;
            struct pass p = {.layers = &layer};
            void *memory;
            dense_put(names[i]);
            struct encoder *enc = encoder_of(&(struct encoder_options){.folder = folder, .masters = true});
            assert_int_equal(backend->ops->arena(stream, pass_place(enc, &p, NULL, 7, 2, false), &memory, &e), 0);
            pass_place(enc, &p, memory, 7, 2, false);
            assert_int_equal(forward_pass(enc, stream, &tile, &p, NULL, NULL, &e), 0);
            dense_check(enc, &p);
            encoder_close(enc);
        }
        backend->ops->stream_close(stream);
        backend_close(backend);
    }
    backend = usual;
    stream = usual_stream;
}

/* Flips the lowest bit of the last number of the module's last tensor, linear.weight. */
static void weight_flip(void)
{
    struct buffer b = whole_read(inside("2_Dense/model.safetensors"));
    b.data[b.bytes - sizeof(float)] ^= 1;
    file_put("2_Dense/model.safetensors", b.data, b.bytes);
    buffer_free(&b);
}

static void test_fingerprint(void **state)
{
    (void)state;
    static const char *const names[] = {"narrow", "square", "wide"};
    const struct encoder_options options = {.folder = folder};
    char seen[5][33], got[33];
    fingerprint_of(&options, seen[0]);
    for (size_t i = 0; i < 3; i++) {
        dense_put(names[i]);
        fingerprint_of(&options, seen[1 + i]);
    }
    weight_flip();
    fingerprint_of(&options, seen[4]);
    for (size_t i = 0; i < 5; i++) {
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(seen[i], seen[j]);
        }
    }
    weight_flip();
    modules_put("[" TRANSFORMER "," POOLING "," DENSE "]"); /* f(x) has length 1 either way */
    fingerprint_of(&options, got);
    assert_string_equal(got, seen[3]);
    modules_put("[" TRANSFORMER "," POOLING "," NORMALIZE "]"); /* a module that is not named does not count */
    fingerprint_of(&options, got);
    assert_string_equal(got, seen[0]);
}

/* ---- what is refused --------------------------------------------------------------------------------------------- */

static void test_refused_modules(void **state)
{
    (void)state;
    static const struct {
        const char *modules, *named;
    } cases[] = {
        {"[" TRANSFORMER "," DENSE "," POOLING "]",
         "module 1 (Dense) cannot be run; only Transformer, Pooling, one Dense "
         "and Normalize can, in this order"},
        {"[" TRANSFORMER "," POOLING "," NORMALIZE "," DENSE "]", "module 3 (Dense) cannot be run"},
        {"[" TRANSFORMER "," POOLING "," DENSE "," DENSE "]", "module 3 (Dense) cannot be run"},
        {"[" TRANSFORMER "," POOLING "," DENSE "," NORMALIZE "," NORMALIZE "]", "module 4 (Normalize) cannot be run"},
        {"[" TRANSFORMER "," POOLING "," NORMALIZE "," NORMALIZE "]", "module 3 (Normalize) cannot be run"},
        {"[" DENSE "]", "module 0 (Dense) cannot be run"},
        {"[" TRANSFORMER "]", "names no Pooling module"},
        {"[" TRANSFORMER "," POOLING ", {\"type\": \"models.Dense\", \"path\": \"/2_Dense\"}]",
         "module 2 (Dense) has no path inside the folder"},
    };
    dense_put("narrow");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        modules_put(cases[i].modules);
        refused(cases[i].named, "modules.json");
    }
}

/* One change to one file of a module's folder, and the line that it leads to. */
static void test_refused_settings(void **state)
{
    static const struct {
        const char *dense, *file, *from, *to, *named;
    } cases[] = {
        {"narrow", "config.json", "linear.Identity", "activation.Tanh",
         "config.json: activation_function is torch.nn.modules.activation.Tanh; only torch.nn.modules.linear.Identity "
         "can be run"},
        {"narrow", "config.json", "\"activation_function\"", "\"activation\"",
         "config.json: activation_function is missing; only torch.nn.modules.linear.Identity can be run"},
        {"narrow", "config.json", "\"torch.nn.modules.linear.Identity\"", "null", "activation_function is missing"},
        {"narrow", "config.json", "\"in_features\": 32", "\"in_features\": 33",
         "config.json: in_features is 33, but the transformer's hidden_size is 32"},
        {"narrow", "config.json", "\"in_features\": 32,", "", "in_features is missing"},
        {"narrow", "config.json", "\"out_features\": 20", "\"out_features\": 0", "out_features is 0; 1 to 16384 can"},
        {"narrow", "config.json", "\"out_features\": 20,", "", "out_features is missing"},
        {"narrow", "config.json", "\"out_features\": 20", "\"out_features\": 21",
         "model.safetensors: tensor linear.weight has shape [20, 32]; config.json asks for [21, 32]"},
        {"narrow", "config.json", "\"bias\": true", "\"bias\": 1", "bias is 1, neither true nor false"},
        {"narrow", "config.json", "\"bias\": true", "\"bias\": false",
         "model.safetensors: tensor linear.bias is there, but config.json says that bias is false"},
        {"square", "config.json", "\"bias\": false", "\"bias\": true",
         "model.safetensors: tensor linear.bias is missing"},
        {"narrow", "config.json", "{", "{\"use_residual\": true,", "use_residual is true, which cannot be run"},
        {"narrow", "config.json", "{", "{\"module_input_name\": \"token_embeddings\",",
         "module_input_name is token_embeddings; only sentence_embedding can be run"},
        {"narrow", "config.json", "{", "{\"module_output_name\": \"other\",",
         "module_output_name is other; only sentence_embedding can be run"},
        {"narrow", "config.json", "{", "[", "config.json"},
        {"narrow", "model.safetensors", "\"linear.weight\"", "\"linear.weigh_\"",
         "model.safetensors: tensor linear.weight is missing"},
        {"narrow", "model.safetensors", "\"shape\":[20,32]", "\"shape\":[32,20]",
         "linear.weight has shape [32, 20]; config.json asks for [20, 32]"},
        {"narrow", "model.safetensors", "\"shape\":[20]", "\"shape\":[21]", "do not agree"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char file[64];
        dense_put(cases[i].dense);
        snprintf(file, sizeof file, "2_Dense/%s", cases[i].file);
        file_edit(file, cases[i].from, cases[i].to);
        refused(cases[i].named, "2_Dense/");
        assert_int_equal(folder_remove(state), 0);
        folder_make(state);
    }
}

static void test_refused_files(void **state)
{
    (void)state;
    dense_put("narrow");
    struct buffer b = whole_read(inside("2_Dense/model.safetensors"));
    const float value = NAN;
    memcpy(b.data + b.bytes - sizeof value, &value, sizeof value);
    file_put("2_Dense/model.safetensors", b.data, b.bytes);
    refused("2_Dense/model.safetensors: tensor linear.weight [19, 31] is NaN: the file is damaged", "");
    file_put("2_Dense/model.safetensors", b.data, b.bytes - 4);
    refused("2_Dense/model.safetensors is cut short", "");
    buffer_free(&b);
    file_remove("2_Dense/model.safetensors");
    refused(folder, "2_Dense: has no model.safetensors");
    file_put("2_Dense/pytorch_model.bin", "", 0);
    refused(folder, "2_Dense: has only pytorch_model.bin, which cannot be run; save it as model.safetensors");
    file_remove("2_Dense/pytorch_model.bin");
    file_remove("2_Dense/config.json");
    refused(folder, "2_Dense/config.json: is missing, but modules.json names it");
}

/* Weights that are finite but overflow: an error, never a vector. */
static void test_overflow(void **state)
{
    (void)state;
    struct error e = {0};
    float weight[20 * 32], bias[20] = {0}, out[20];
    struct tokens t;
    size_t count;
    dense_put("narrow");
    struct encoder *enc = encoder_plain();
    for (size_t i = 0; i < 20 * 32; i++) {
        weight[i] = i % 2 ? 3e38F : -3e38F;
    }
    encoder_parameters(enc, &count);
    assert_int_equal(encoder_parameter_set(enc, count - 1, weight, bias, &e), 0);
    encoder_tokenize(enc, ENCODER_TEXT, slice_of("read and write"), &t);
    assert_int_equal(encode(enc, &(const struct tokens *){&t}, 1, out, &e), -1);
    assert_true(e.kind == ERROR_FATAL && e.code == E_MODEL);
    assert_non_null(strstr(e.text, "is not finite"));
    tokens_free(&t);
    encoder_close(enc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_golden),          TEST(test_parameter),        TEST(test_dtypes),        TEST(test_fingerprint),
        TEST(test_refused_modules), TEST(test_refused_settings), TEST(test_refused_files), TEST(test_overflow),
    };
    return encoder_tests_run("encoder with a Dense", tests, sizeof tests / sizeof *tests);
}
