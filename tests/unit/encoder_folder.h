/* A copy of the tiny BERT's folder for each test of the encoder, what opens it, and what must be refused. Runs from the
 * root of the project. Include after cmocka.h. */
#ifndef ENGRAM_TESTS_UNIT_ENCODER_FOLDER_H
#define ENGRAM_TESTS_UNIT_ENCODER_FOLDER_H

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "gpu/encoder/encoder.h"
#include "tests/unit/model_folder.h"

#define GOOD "tests/golden/tiny-bert"

static struct backend *backend;
static struct stream *stream;
static char root[64]; /* the temporary folder; each test's `folder` is root/model */

static const char *const files[] = {"config.json",           "modules.json", "sentence_bert_config.json",
                                    "tokenizer_config.json", "vocab.txt",    "model.safetensors",
                                    "1_Pooling/config.json"};

static inline void file_remove(const char *file)
{
    assert_int_equal(unlink(inside(file)), 0);
}

/* A fresh copy of the good folder. */
static inline int folder_make(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "/tmp/engram-test-XXXXXX");
    assert_non_null(mkdtemp(root));
    snprintf(folder, sizeof folder, "%s/model", root);
    assert_int_equal(mkdir(folder, 0700), 0);
    assert_int_equal(mkdir(inside("1_Pooling"), 0700), 0);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char from[256];
        snprintf(from, sizeof from, "%s/%s", GOOD, files[i]);
        struct buffer b = whole_read(from);
        file_put(files[i], b.data, b.bytes);
        buffer_free(&b);
    }
    return 0;
}

static inline int folder_remove(void **state)
{
    (void)state;
    static const char *const extra[] = {"model.safetensors.index.json", "pytorch_model.bin",
                                        "config_sentence_transformers.json", "2_Dense/config.json",
                                        "2_Dense/model.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        unlink(inside(files[i]));
    }
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) {
        unlink(inside(extra[i]));
    }
    rmdir(inside("1_Pooling"));
    rmdir(inside("2_Dense"));
    return rmdir(folder) != 0 || rmdir(root) != 0;
}

static inline struct encoder *encoder_of(const struct encoder_options *options)
{
    struct encoder *enc = NULL;
    struct error e = {0};
    if (encoder_open(&enc, backend, options, &e) != 0) {
        fail_msg("%s", e.text);
    }
    return enc;
}

/* f(x) of a batch as one tile: out [n, dim]. */
static inline int encode(const struct encoder *enc, const struct tokens *const *inputs, size_t n, float *out,
                         struct error *e)
{
    const size_t dim = encoder_dim(enc);
    size_t tokens = 0;
    for (size_t i = 0; i < n; i++) {
        tokens += inputs[i]->count;
    }
    int32_t *ids = mem_alloc(tokens * sizeof *ids);
    uint32_t *starts = mem_zero(n + 1, sizeof *starts);
    float *norms = mem_alloc(n * sizeof *norms);
    for (size_t i = 0; i < n; i++) {
        memcpy(ids + starts[i], inputs[i]->ids, inputs[i]->count * sizeof *ids);
        starts[i + 1] = starts[i] + inputs[i]->count;
    }
    const struct tile tile = {.ids = ids, .starts = starts, .tokens = tokens, .sequences = n};
    struct encoded encoded;
    int result = encoder_pass(enc, stream, &tile, NULL, NULL, &encoded, e);
    if (result == 0) {
        backend->ops->download(stream, out, encoded.vectors.data, n * dim * sizeof *out);
        backend->ops->download(stream, norms, encoded.norms.data, n * sizeof *norms);
        result = backend->ops->wait(stream, e);
    }
    for (size_t i = 0; i < n && result == 0; i++) {
        result = encoder_norm_check(enc, norms[i], inputs[i]->count, i, n, e);
    }
    free(ids);
    free(starts);
    free(norms);
    return result;
}

static inline struct encoder *encoder_plain(void)
{
    return encoder_of(&(struct encoder_options){.folder = folder});
}

static inline const struct json *golden_read(const char *path, struct arena *arena)
{
    const struct json *golden;
    struct error e = {0};
    struct buffer b = whole_read(path);
    assert_int_equal(json_parse((struct slice){b.data, b.bytes}, 8, arena, &golden, &e), 0);
    buffer_free(&b);
    return golden;
}

static inline void numbers_check(const float *got, const struct json *expected, size_t count, double bound)
{
    assert_int_equal(expected->count, count);
    const struct json *j = expected->child;
    for (size_t i = 0; i < count; i++, j = j->next) {
        double x;
        assert_true(json_double(j, &x));
        if (!(fabs((double)got[i] - x) <= bound)) {
            fail_msg("number %zu is %.9g, not %.9g", i, (double)got[i], x);
        }
    }
}

static inline void text_embed(struct encoder *enc, enum encoder_input input, const char *text, float *out)
{
    struct tokens t;
    struct error e = {0};
    encoder_tokenize(enc, input, slice_of(text), &t);
    assert_int_equal(encode(enc, &(const struct tokens *){&t}, 1, out, &e), 0);
    tokens_free(&t);
}

static inline void fingerprint_of(const struct encoder_options *options, char out[33])
{
    struct encoder *enc = encoder_of(options);
    memcpy(out, encoder_fingerprint(enc), 33);
    assert_int_equal(strlen(out), 32);
    assert_true(strncmp(out, encoder_model_version(enc), 16) == 0 && strlen(encoder_model_version(enc)) == 16);
    encoder_close(enc);
}

/* Opening must fail with one line that holds each of the words. */
static inline void refused(const char *first, const char *second)
{
    struct encoder *enc = NULL;
    struct error e = {0};
    assert_int_equal(encoder_open(&enc, backend, &(struct encoder_options){.folder = folder}, &e), -1);
    assert_null(enc);
    assert_int_equal(e.kind, ERROR_FATAL);
    assert_int_equal(e.code, E_MODEL);
    if (!strstr(e.text, first) || !strstr(e.text, second) || strchr(e.text, '\n')) {
        fail_msg("says: %s\nand not: %s, %s", e.text, first, second);
    }
}

/* Runs the tests on the CPU's backend; the exit status. */
static inline int encoder_tests_run(const char *name, const struct CMUnitTest *tests, size_t count)
{
    struct error e = {0};
    if (backend_cpu_open(&backend, &(struct backend_options){.threads = 1, .compute = COMPUTE_F32}, &e) != 0 ||
        backend->ops->stream_open(backend, &stream, &e) != 0) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    int failed = _cmocka_run_group_tests(name, tests, count, NULL, NULL);
    backend->ops->stream_close(stream);
    backend_close(backend);
    return failed;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, folder_make, folder_remove)

#endif
