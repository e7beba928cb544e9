/* An engine on a real memory in a temporary folder, with a tiny random BERT in f32, on the CPU unless a plug-in is
 * named. Include after cmocka. */
#ifndef ENGRAM_TESTS_UNIT_WORLD_H
#define ENGRAM_TESTS_UNIT_WORLD_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/engine.h"
#include "tests/backend/beside.h"

struct world {
    char folder[64];
    struct backend *backend;
    struct encoder *encoder;
    struct memory *memory;
    struct engine *engine;
};

struct world_options {
    const struct predict_options *predict;
    size_t threads;    /* 0: 2 */
    uint64_t map_size; /* 0: 64 MiB */
    uint64_t keys_max;
    const char *plugin; /* beside the program; NULL: the CPU */
};

static inline void must(int result, const struct error *e)
{
    if (result) {
        fail_msg("%s", e->text);
    }
}

static inline void world_open(struct world *w, const struct world_options *options)
{
    const struct backend_options backend = {.threads = options->threads ? options->threads : 2, .compute = COMPUTE_F32};
    struct error e = {0};
    *w = (struct world){.folder = "/tmp/engram-unit-XXXXXX"};
    assert_non_null(mkdtemp(w->folder));
    if (options->plugin) {
        char path[PATH_MAX];
        must(backend_plugin_open(&w->backend, beside(path, options->plugin), &backend, &e), &e);
    } else {
        must(backend_cpu_open(&w->backend, &backend, &e), &e);
    }
    must(encoder_open(&w->encoder, w->backend, &(struct encoder_options){.folder = "tests/golden/tiny-bert"}, &e), &e);
    const struct memory_options memory = {.path = w->folder,
                                          .map_size = options->map_size ? options->map_size : 64 << 20,
                                          .dtype = DTYPE_F32,
                                          .dim = encoder_dim(w->encoder),
                                          .fingerprint = encoder_fingerprint(w->encoder),
                                          .model_name = encoder_name(w->encoder),
                                          .store_text = true,
                                          .vocabulary = encoder_vocabulary(w->encoder),
                                          .keys_max = options->keys_max};
    must(memory_open(&w->memory, MEMORY_WRITE, &memory, &e), &e);
    must(engine_open(&w->engine, w->backend, w->encoder, w->memory, options->predict, &e), &e);
}

static inline void world_close(struct world *w)
{
    static const char *const files[] = {"data.mdb", "lock.mdb", "writer.lock"};
    engine_close(w->engine);
    memory_close(w->memory);
    encoder_close(w->encoder);
    backend_close(w->backend);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", w->folder, files[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(w->folder), 0);
}

#endif
