/* Encodes the texts of a JSONL file and tells how fast: what `engram encode` does, without writing the numbers out. It
 * takes every option of the commands, so it measures what they are set to. Prints one JSON line: texts, tokens, seconds
 * (tokenization included), with --one-by-one also the microseconds of each text, which is then a batch of its own. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "cli/internal.h"

static const struct config_flag flags[] = {
    {"texts", "N", "read no more texts than this", false},
    {"warm", "N", "encode the first N texts once before the time is taken (64)", false},
    {"one-by-one", NULL, "each text is a batch of its own; its microseconds are printed", false},
    {"embeddings", "FILE", "leave the raw f32 rows in FILE", false},
    {0},
};

static const struct config_command command = {
    .name = "encode_bench",
    .usage = "FILE [--texts N] [--warm N] [--one-by-one] [--embeddings FILE] [any option]",
    .help = "Encodes the texts of a JSONL file and tells how fast.",
    .example = "encode_bench examples/debtags/test.jsonl.gz --threads 2",
    .flags = flags,
    .positional_min = 1,
    .positional_max = 1,
};

struct bench {
    struct cli_engine c;
    size_t dim, batch_tokens;
    bool one_by_one;
    struct arena arena;
    struct slice *texts;
    size_t count;
    float *out;   /* [count, dim] */
    uint64_t *us; /* [count]: only with one_by_one */
};

static size_t number_of(const struct arguments *arguments, const char *flag, size_t otherwise)
{
    const char *text = arguments_value(arguments, flag);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static int texts_read(struct bench *b, const char *file, size_t texts_max, struct error *e)
{
    struct lines *lines = NULL;
    struct slice line;
    int more = lines_open(&lines, file, (size_t)1 << 24, e);
    if (more != 0) {
        return -1;
    }
    while (b->count < texts_max && (more = lines_next(lines, &line, e)) == 1) {
        const struct json *value, *text;
        if (json_parse(line, 16, &b->arena, &value, e) != 0) {
            more = -1;
            break;
        }
        text = value->type == JSON_OBJECT ? json_member(value, "text") : value;
        b->texts = mem_resize(b->texts, (b->count + 1) * sizeof *b->texts);
        b->texts[b->count++] = text ? text->text : (struct slice){0};
    }
    lines_close(lines);
    return more < 0 ? -1 : 0;
}

/* Texts first to first + *count - 1: those that fit in a batch, at least one. Adds to *tokens what the encoder was
 * fed. */
static int batch(struct bench *b, size_t first, size_t last, size_t *count, size_t *tokens, struct error *e)
{
    struct encoder *encoder = engine_encoder(b->c.engine);
    size_t room = b->batch_tokens, n = 0;
    struct tokens *inputs = mem_alloc((last - first) * sizeof *inputs);
    const struct tokens **batch = mem_alloc((last - first) * sizeof *batch);
    while (first + n < last && room > 0 && (n == 0 || !b->one_by_one)) {
        encoder_tokenize(encoder, ENCODER_TEXT, b->texts[first + n], &inputs[n]);
        batch[n] = &inputs[n];
        room -= inputs[n].count < room ? inputs[n].count : room;
        *tokens += inputs[n].count;
        n++;
    }
    int result = engine_encode(b->c.engine, batch, n, b->out + first * b->dim, e);
    for (size_t i = 0; i < n; i++) {
        tokens_free(&inputs[i]);
    }
    free(batch);
    free(inputs);
    *count = n;
    return result;
}

/* One pass over the first `count` texts. */
static int pass(struct bench *b, size_t count, size_t *tokens, struct error *e)
{
    *tokens = 0;
    for (size_t first = 0, n = 0; first < count; first += n) {
        uint64_t start = clock_us();
        if (batch(b, first, count, &n, tokens, e) != 0) {
            return -1;
        }
        if (b->one_by_one) {
            b->us[first] = clock_us() - start;
        }
    }
    return 0;
}

static void result_print(const struct bench *b, size_t tokens, double seconds)
{
    printf("{\"texts\": %zu, \"tokens\": %zu, \"seconds\": %.4f, \"tokens_per_s\": %.0f", b->count, tokens, seconds,
           (double)tokens / seconds);
    for (size_t i = 0; b->one_by_one && i < b->count; i++) {
        printf("%s%llu", i ? ", " : ", \"us\": [", (unsigned long long)b->us[i]);
    }
    printf("%s}\n", b->one_by_one ? "]" : "");
}

static int embeddings_write(const struct bench *b, const char *file, struct error *e)
{
    FILE *f = fopen(file, "wb");
    bool good = f && fwrite(b->out, b->dim * sizeof *b->out, b->count, f) == b->count;
    if (f && fclose(f) != 0) {
        good = false;
    }
    return good ? 0 : error_set(e, ERROR_FATAL, E_IO, "%s: %s", file, strerror(errno));
}

static int measure(struct bench *b, const struct config *config, const struct arguments *arguments, struct error *e)
{
    size_t warm = number_of(arguments, "warm", 64), tokens;
    const char *embeddings = arguments_value(arguments, "embeddings");
    if (texts_read(b, arguments_positional(arguments, 0), number_of(arguments, "texts", SIZE_MAX), e) != 0 ||
        cli_open(&b->c, config, CLI_ENCODER, e) != 0) {
        return -1;
    }
    b->dim = encoder_dim(engine_encoder(b->c.engine));
    /* the stage begins a batch before the last one ends; here a large one hardly ends */
    b->batch_tokens = config->batch_tokens ? (size_t)config->batch_tokens : 8 * engine_slice_tokens(b->c.engine);
    b->one_by_one = arguments_has(arguments, "one-by-one");
    b->out = mem_alloc(b->count * b->dim * sizeof *b->out + 1);
    b->us = mem_zero(b->count + 1, sizeof *b->us);
    if (pass(b, warm < b->count ? warm : b->count, &tokens, e) != 0) {
        return -1;
    }
    uint64_t start = clock_us();
    if (pass(b, b->count, &tokens, e) != 0) {
        return -1;
    }
    result_print(b, tokens, (double)(clock_us() - start) * 1e-6);
    return embeddings ? embeddings_write(b, embeddings, e) : 0;
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    struct config config = {0};
    struct arguments *arguments = NULL;
    struct error e = {0};
    int status;
    if (cli_read(&command, argc - 1, argv + 1, &config, &arguments, &status)) {
        status = measure(&b, &config, arguments, &e) == 0 ? STATUS_OK : cli_fail(command.name, &e);
    }
    cli_close(&b.c);
    arena_free(&b.arena);
    free(b.texts);
    free(b.out);
    free(b.us);
    arguments_free(arguments);
    config_free(&config);
    return status;
}
