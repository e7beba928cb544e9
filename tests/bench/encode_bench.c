/* Encodes the texts of a JSONL file and tells how fast: what `engram encode` does, without writing the numbers out.
 * encode_bench MODEL FILE [--threads N] [--batch-tokens N] [--max-seq-length N] [--repeat N] [--texts N] [--embeddings
 * FILE] One JSON line a pass: texts, tokens, seconds (tokenization included). --embeddings leaves the raw f32 rows in
 * FILE. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/lines.h"
#include "engine/engine.h"

struct bench {
    const char *model, *file, *embeddings;
    size_t threads, batch_tokens, max_seq_length, repeat, texts_max;
    struct arena arena;
    struct slice *texts;
    size_t count;
    struct backend *backend;
    struct encoder *encoder;
    struct engine *engine;
    float *out;
};

static int texts_read(struct bench *b, struct error *e)
{
    struct lines *lines = NULL;
    struct slice line;
    int more = lines_open(&lines, b->file, (size_t)1 << 24, e);
    if (more != 0) {
        return -1;
    }
    while (b->count < b->texts_max && (more = lines_next(lines, &line, e)) == 1) {
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

/* One pass over all texts in batches of whole texts; *tokens counts what the encoder was fed. */
static int pass(struct bench *b, size_t *tokens, struct error *e)
{
    int result = 0;
    struct tokens *inputs = mem_alloc(b->count * sizeof *inputs);
    const struct tokens **batch = mem_alloc(b->count * sizeof *batch);
    *tokens = 0;
    for (size_t first = 0, next; first < b->count && result == 0; first = next) {
        size_t room = b->batch_tokens;
        for (next = first; next < b->count && room > 0; next++) {
            encoder_tokenize(b->encoder, ENCODER_TEXT, b->texts[next], &inputs[next]);
            batch[next - first] = &inputs[next];
            room -= inputs[next].count < room ? inputs[next].count : room;
            *tokens += inputs[next].count;
        }
        result = engine_encode(b->engine, batch, next - first, b->out + first * encoder_dim(b->encoder), e);
        for (size_t i = first; i < next; i++) {
            tokens_free(&inputs[i]);
        }
    }
    free(batch);
    free(inputs);
    return result;
}

static int run(struct bench *b, struct error *e)
{
    struct encoder_options options = {.folder = b->model, .max_seq_length = b->max_seq_length};
    struct predict_options predict = {.lambda = 0.5, .tau = 1, .b = 1};
    if (texts_read(b, e) != 0 ||
        backend_cpu_open(&b->backend, &(struct backend_options){.threads = b->threads, .compute = DTYPE_F32}, e) != 0 ||
        encoder_open(&b->encoder, b->backend, &options, e) != 0 ||
        engine_open(&b->engine, b->backend, b->encoder, NULL, &predict, e) != 0) {
        return -1;
    }
    b->batch_tokens = b->batch_tokens ? b->batch_tokens : b->backend->facts.batch_tokens;
    b->out = mem_alloc(b->count * encoder_dim(b->encoder) * sizeof *b->out);
    for (size_t i = 0; i < b->repeat; i++) {
        size_t tokens;
        uint64_t start = clock_us();
        if (pass(b, &tokens, e) != 0) {
            return -1;
        }
        double seconds = (double)(clock_us() - start) * 1e-6;
        printf("{\"texts\": %zu, \"tokens\": %zu, \"seconds\": %.4f, \"tokens_per_s\": %.0f}\n", b->count, tokens,
               seconds, (double)tokens / seconds);
        fflush(stdout);
    }
    FILE *f = b->embeddings ? fopen(b->embeddings, "wb") : NULL;
    if (b->embeddings && (!f || fwrite(b->out, encoder_dim(b->encoder) * sizeof *b->out, b->count, f) != b->count)) {
        return error_set(e, ERROR_FATAL, E_IO, "%s: %s", b->embeddings, strerror(errno));
    }
    return f && fclose(f) != 0 ? error_set(e, ERROR_FATAL, E_IO, "%s: %s", b->embeddings, strerror(errno)) : 0;
}

static int arguments_read(struct bench *b, int argc, char **argv)
{
    const struct {
        const char *name;
        size_t *value;
    } numbers[] = {{"--threads", &b->threads},
                   {"--batch-tokens", &b->batch_tokens},
                   {"--max-seq-length", &b->max_seq_length},
                   {"--repeat", &b->repeat},
                   {"--texts", &b->texts_max}};
    if (argc < 3 || argc % 2 == 0) {
        return -1;
    }
    b->model = argv[1];
    b->file = argv[2];
    for (int i = 3; i < argc; i += 2) {
        bool known = !strcmp(argv[i], "--embeddings");
        b->embeddings = known ? argv[i + 1] : b->embeddings;
        for (size_t j = 0; j < sizeof numbers / sizeof *numbers; j++) {
            if (!strcmp(argv[i], numbers[j].name)) {
                *numbers[j].value = strtoull(argv[i + 1], NULL, 10);
                known = true;
            }
        }
        if (!known) {
            return -1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct bench b = {.repeat = 1, .texts_max = SIZE_MAX};
    struct error e = {0};
    if (arguments_read(&b, argc, argv) != 0) {
        fprintf(stderr,
                "usage: encode_bench MODEL FILE [--threads N] [--batch-tokens N] [--max-seq-length N] [--repeat N] "
                "[--texts N] [--embeddings FILE]\n");
        return 2;
    }
    int failed = run(&b, &e);
    if (failed) {
        fprintf(stderr, "encode_bench: %s\n", e.text);
    }
    engine_close(b.engine);
    encoder_close(b.encoder);
    backend_close(b.backend);
    arena_free(&b.arena);
    free(b.texts);
    free(b.out);
    return failed ? 1 : 0;
}
