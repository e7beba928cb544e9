/* engram encode: what the encoder makes of each line, for comparing it with others and for use elsewhere. Lines are
 * answered in order, in batches of whatever waits. Floats are written in the fewest digits that read back as the same
 * float; printf would take as long over that as the encoder over the text. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"
#include "cli/internal.h"

enum { LINES_MAX = 1024, FLOAT_DIGITS = 9 };

static const struct config_flag flags[] = {
    {"stdin", NULL, "read texts from standard input, one a line (required)", false},
    {"json-lines", NULL, "each line is a JSON string, so a text may contain newlines", false},
    {0},
};

static const struct config_command command = {
    .name = "encode",
    .usage = "--stdin [--json-lines] [-c FILE] [any option]",
    .help = "Prints {\"tokens\": [ids], \"embedding\": [floats], \"truncated\": bool} for each line of standard input. "
            "The tokens are the encoder's input, [CLS] and [SEP] included. An empty line is an empty text, but with "
            "--json-lines a blank line is skipped. A line that is not a text gets {\"error\": ...} instead, and the "
            "exit status at the end is 1.",
    .example = "printf 'a lightweight PDF viewer\\n' | engram encode --stdin",
    .flags = flags,
};

/* ---- floats ---- */

/* Every power here is exact in a double. */
static const double tens[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                              1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* The number of `digits` digits nearest to x in [10^exponent, 10^(exponent + 1)), as number / 10^(digits - 1 -
 * exponent); false: it reads back as another float. low and high are halfway to x's neighbours among floats. The
 * quotient is the double nearest to the decimal number, so where it is strictly between them the number itself is. */
static bool decimal(double x, double low, double high, int exponent, int digits, long long *number)
{
    double scale = tens[digits - 1 - exponent];
    *number = llrint(x * scale);
    double back = (double)*number / scale;
    return low < back && back < high;
}

/* Digits with a dot before the last `decimals` of them, or with an exponent where that would take many zeros. */
static void decimal_write(struct buffer *out, long long number, int decimals)
{
    char text[24];
    int count = snprintf(text, sizeof text, "%lld", number);
    int whole = count - decimals; /* digits before the dot */
    if (whole < -4) {
        buffer_format(out, "%c%s%.*s", text[0], count > 1 ? "." : "", count - 1, text + 1);
        buffer_format(out, "e%d", whole - 1);
        return;
    }
    if (whole <= 0) {
        buffer_append(out, "0.0000", (size_t)(2 - whole));
        buffer_append(out, text, (size_t)count);
        return;
    }
    buffer_append(out, text, (size_t)whole);
    if (decimals > 0) {
        buffer_byte(out, '.');
        buffer_append(out, text + whole, (size_t)decimals);
    }
}

static void float_write(struct buffer *out, float value)
{
    float magnitude = fabsf(value);
    double x = (double)magnitude;
    if (signbit(value)) {
        buffer_byte(out, '-');
    }
    if (!(x >= 1e-13 && x < 10)) {
        struct json_writer w = {.out = out};
        json_write_double(&w, x);
        return;
    }
    double low = (x + (double)nextafterf(magnitude, 0)) / 2;
    double high = (x + (double)nextafterf(magnitude, INFINITY)) / 2;
    int exponent = 0;
    while (x < 1 / tens[-exponent]) {
        exponent--;
    }
    int digits = FLOAT_DIGITS;
    long long number, shorter;
    decimal(x, low, high, exponent, digits, &number);
    while (digits > 1 && decimal(x, low, high, exponent, digits - 1, &shorter)) {
        number = shorter;
        digits--;
    }
    decimal_write(out, number, digits - 1 - exponent);
}

/* ---- lines ---- */

struct item {
    struct tokens tokens;
    struct error error; /* kind ERROR_NONE: none */
};

struct encode {
    struct engine *engine;
    bool json_lines, any_bad;
    struct arena arena;
    struct item items[LINES_MAX];
    struct buffer out;
};

static int text_read(struct encode *n, struct slice line, struct slice *text, struct error *e)
{
    const struct json *value;
    *text = line;
    if (n->json_lines) {
        if (json_parse(line, 1, &n->arena, &value, e)) {
            return -1;
        }
        if (value->type != JSON_STRING) {
            return error_set(e, ERROR_POISON, E_FIELD, "the line is not a JSON string");
        }
        *text = value->text;
    }
    if (!utf8_valid(text->data, text->bytes)) {
        return error_set(e, ERROR_POISON, E_UTF8, "the text is not UTF-8");
    }
    return 0;
}

static void item_read(struct encode *n, struct item *item, const struct input_line *line)
{
    struct slice text;
    *item = (struct item){0};
    if (line->bad) {
        error_set(&item->error, ERROR_POISON, E_LIMIT, "%s", line->data);
    } else if (text_read(n, (struct slice){line->data, line->bytes}, &text, &item->error) == 0) {
        encoder_tokenize(engine_encoder(n->engine), ENCODER_TEXT, text, &item->tokens);
    }
}

static void item_write(struct encode *n, const struct item *item, const float *embedding)
{
    struct json_writer w = {.out = &n->out};
    json_object_begin(&w);
    if (item->error.kind != ERROR_NONE) {
        n->any_bad = true;
        json_name(&w, "error");
        json_write_string(&w, slice_of(item->error.text));
    } else {
        size_t dim = encoder_dim(engine_encoder(n->engine));
        json_name(&w, "tokens");
        json_array_begin(&w);
        for (uint32_t i = 0; i < item->tokens.count; i++) {
            json_write_int(&w, item->tokens.ids[i]);
        }
        json_array_end(&w);
        json_name(&w, "embedding");
        json_write_raw(&w, slice_of("["));
        for (size_t i = 0; i < dim; i++) {
            buffer_append(&n->out, ",", i > 0);
            float_write(&n->out, embedding[i]);
        }
        buffer_byte(&n->out, ']');
        json_name(&w, "truncated");
        json_write_bool(&w, item->tokens.truncated);
    }
    json_object_end(&w);
    buffer_byte(&n->out, '\n');
}

/* Encodes items[first..last) in one call and appends their lines. */
static int items_encode(struct encode *n, size_t first, size_t last, struct error *e)
{
    const struct tokens *inputs[LINES_MAX];
    size_t dim = encoder_dim(engine_encoder(n->engine)), count = 0;
    for (size_t i = first; i < last; i++) {
        if (n->items[i].error.kind == ERROR_NONE) {
            inputs[count++] = &n->items[i].tokens;
        }
    }
    float *embeddings = mem_alloc((count * dim + 1) * sizeof *embeddings);
    int result = count ? engine_encode(n->engine, inputs, count, embeddings, e) : 0;
    const float *embedding = embeddings;
    for (size_t i = first; i < last && result == 0; i++) {
        item_write(n, &n->items[i], embedding);
        embedding += n->items[i].error.kind == ERROR_NONE ? dim : 0;
    }
    free(embeddings);
    return result;
}

/* What was taken at once, in batches of batch_tokens or of what the engine takes in one turn. */
static bool items_flush(struct encode *n, size_t count, size_t batch_tokens)
{
    struct error e = {0};
    bool good = true;
    for (size_t first = 0, last; good && first < count; first = last) {
        size_t tokens = 0;
        for (last = first; last < count; last++) {
            tokens += n->items[last].tokens.count;
            if (last > first && tokens > batch_tokens) {
                break;
            }
        }
        if (items_encode(n, first, last, &e)) {
            cli_fail(command.name, &e);
            good = false;
        } else {
            good = cli_output(command.name, &n->out);
        }
    }
    for (size_t i = 0; i < count; i++) {
        tokens_free(&n->items[i].tokens);
    }
    arena_free(&n->arena);
    return good;
}

static bool encode_input(struct encode *n, size_t batch_tokens)
{
    struct input *in = NULL;
    struct error e = {0};
    struct input_line *lines = mem_zero(LINES_MAX, sizeof *lines);
    int taken = input_open(&in, &e);
    bool good = taken == 0;
    while (good && (taken = input_take(in, lines, LINES_MAX, &e)) > 0) {
        size_t count = 0;
        for (int i = 0; i < taken; i++) {
            if (!input_passes_over(&lines[i], n->json_lines)) {
                item_read(n, &n->items[count++], &lines[i]);
            }
            free(lines[i].data);
        }
        good = items_flush(n, count, batch_tokens);
    }
    if (taken < 0) {
        cli_fail(command.name, &e);
    }
    input_close(in);
    free(lines);
    return good && taken == 0;
}

static int encode_run(const struct config *config, bool json_lines)
{
    struct cli_engine opened = {0};
    struct error e = {0};
    struct encode *n = mem_zero(1, sizeof *n);
    int status = STATUS_FAILED;
    if (cli_open(&opened, config, CLI_ENCODER, &e)) {
        status = cli_fail(command.name, &e);
        goto done;
    }
    n->engine = opened.engine;
    n->json_lines = json_lines;
    size_t batch_tokens = config->batch_tokens ? (size_t)config->batch_tokens : engine_slice_tokens(n->engine);
    if (encode_input(n, batch_tokens) && !n->any_bad) {
        status = STATUS_OK;
    }
done:
    buffer_free(&n->out);
    free(n);
    cli_close(&opened);
    return status;
}

int command_encode(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    int status = STATUS_FAILED;
    if (cli_read(&command, argc, argv, &config, &arguments, &status)) {
        status = arguments_has(arguments, "stdin")
                     ? encode_run(&config, arguments_has(arguments, "json-lines"))
                     : cli_usage(command.name, "the texts come from standard input: give --stdin");
    }
    arguments_free(arguments);
    config_free(&config);
    return status;
}
