/* Opening what a command works with, from the options in force: model folder, backend, encoder, memory, engine.
 * Errors come back with one line that says what to change; whatever was opened before one is closed by cli_close. */
#include <librdkafka/rdkafka.h>
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "cli/internal.h"

#define MODEL_NAME "all-MiniLM-L6-v2"
#define CONFIG_FILE "/config.json" /* a model is where this is */

int cli_model(const struct config *config, char **folder, struct error *e)
{
    *folder = *config->model
                  ? mem_string(config->model, strlen(config->model))
                  : cli_beside("models/" MODEL_NAME CONFIG_FILE, "share/engram/models/" MODEL_NAME CONFIG_FILE);
    if (!*folder) {
        return error_set(e, ERROR_FATAL, E_MODEL,
                         "no model: run `make model`, which fetches " MODEL_NAME
                         ", or name a sentence-transformers folder with --model");
    }
    if (!*config->model) {
        (*folder)[strlen(*folder) - strlen(CONFIG_FILE)] = '\0';
    }
    return 0;
}

struct memory_options cli_memory_options(const struct config *config)
{
    return (struct memory_options){
        .path = config->memory,
        .map_size = (uint64_t)config->map_size,
        .dtype = config->key_dtype == CONFIG_F32 ? DTYPE_F32 : DTYPE_BF16,
        .store_text = config->store_text,
        .keys_max = (uint64_t)config->keys_max,
    };
}

int cli_memory_open(struct memory **out, const struct config *config, enum memory_mode mode, struct error *e)
{
    struct memory_options options = cli_memory_options(config);
    return memory_open(out, mode, &options, e);
}

static int encoder_open_from(struct cli_engine *c, const struct config *config, struct error *e)
{
    char *folder = NULL;
    int result = cli_model(config, &folder, e);
    if (result == 0) {
        struct encoder_options options = {
            .folder = folder,
            .max_seq_length = (size_t)config->max_seq_length,
            .text_prefix = config->text_prefix,
            .label_prefix = config->label_prefix,
        };
        result = encoder_open(&c->encoder, c->backend, &options, e);
    }
    free(folder);
    return result;
}

static int memory_open_from(struct cli_engine *c, const struct config *config, enum cli_open_mode mode, struct error *e)
{
    struct memory_options options = cli_memory_options(config);
    options.dim = encoder_dim(c->encoder);
    options.fingerprint = encoder_fingerprint(c->encoder);
    options.model_name = encoder_name(c->encoder);
    options.vocabulary = encoder_vocabulary(c->encoder);
    return memory_open(&c->memory, mode == CLI_MEMORY_WRITE ? MEMORY_WRITE : MEMORY_READ, &options, e);
}

struct predict_options cli_predict_options(const struct config *config)
{
    return (struct predict_options){
        .apart = config->pool == CONFIG_APART,
        .lambda = config->lambda,
        .tau = config->tau,
        .b = (size_t)config->b,
        .lexical = config->lexical,
        .lexical_form = config->lexical_form == CONFIG_BM25 ? LEXICAL_BM25 : LEXICAL_COSINE,
        .label_power = config->label_power,
        .lexical_candidates = (size_t)config->lexical_candidates,
        .labels_max = (size_t)config->labels_max,
        .min_score = config->min_score,
        .evidence_max = (size_t)config->evidence_max,
        .evidence_text = config->evidence_text,
    };
}

/* A machine without the plug-in's device, or without what it needs, is no trouble; all else is. */
static void device_tell(const struct error *why)
{
    if (why->code == E_NOT_FOUND) {
        log_info("the CPU computes: %s", why->text);
    } else if (why->kind != ERROR_NONE) {
        log_warn("the CPU computes: %s", why->text);
    }
}

int cli_open(struct cli_engine *c, const struct config *config, enum cli_open_mode mode, struct error *e)
{
    struct predict_options predict = cli_predict_options(config);
    struct error why;
    *c = (struct cli_engine){0};
    int result = cli_backend_open(&c->backend, config, &why, e);
    if (result == 0) {
        device_tell(&why);
        result = encoder_open_from(c, config, e);
    }
    if (result == 0 && mode != CLI_ENCODER) {
        result = memory_open_from(c, config, mode, e);
    }
    if (result == 0) {
        result = engine_open(&c->engine, c->backend, c->encoder, c->memory, &predict, e);
    }
    if (result) {
        cli_close(c);
    }
    return result;
}

void cli_close(struct cli_engine *c)
{
    if (c->engine) {
        engine_close(c->engine);
    }
    if (c->memory) {
        memory_close(c->memory);
    }
    if (c->encoder) {
        encoder_close(c->encoder);
    }
    if (c->backend) {
        backend_close(c->backend);
    }
    *c = (struct cli_engine){0};
}

void cli_versions(const struct backend *backend, const char *model, struct buffer *out)
{
    int major, minor, patch;
    mdb_version(&major, &minor, &patch);
    struct slice name = model ? slice_of_last_name(model) : slice_of("not found");
    buffer_format(out, "engram " ENGRAM_VERSION " (librdkafka %s, LMDB %d.%d.%d, %s, model %.*s)",
                  rd_kafka_version_str(), major, minor, patch, backend ? backend->facts.library : "no backend",
                  (int)name.bytes, name.data);
}
