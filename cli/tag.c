/* engram tag: predictions without Kafka, from the memory of a stage that runs or not. Text by text in the order given:
 * as JSON, or as a readable card on a terminal. Standard input is read ahead, so that a file is encoded in full batches
 * and a line that somebody types is answered at once. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/utf8.h"
#include "cli/internal.h"
#include "cli/terminal.h"
#include "record/record.h"

enum { LINES_MAX = 1024 }; /* taken at once */

static const struct config_command command = {
    .name = "tag",
    .usage = "TEXT | --stdin [--json-lines]",
    .help = "Predicts the labels of texts, with evidence. Prints a line of JSON for each text, or on a terminal a "
            "readable card. An empty line is an empty text, but with --json-lines a blank line is skipped. A line that "
            "is not a text gets {\"error\": ...} instead; the other lines are still answered.",
    .example = "engram tag --memory my-memory \"tool to inspect and edit PDF files\"\n"
               "cut -f2 titles.tsv | engram tag --memory my-memory --stdin",
    .flags = (const struct config_flag[]){{"stdin", NULL, "read texts from standard input, one a line", false},
                                          {"json-lines", NULL,
                                           "each line is a text record {\"id\", \"text\", \"metadata\"}", false},
                                          {"json", NULL, "print JSON on a terminal too", false},
                                          {0}},
    .positional_max = 1,
};

/* A text that waits for its prediction; without a prediction, one that failed. */
struct item {
    struct text_record text;
    struct tokens tokens;
    struct error error; /* kind ERROR_NONE: none */
};

struct tag {
    struct engine *engine;
    bool records, card;
    struct arena arena; /* of the texts */
    struct item items[LINES_MAX];
    size_t count;
    struct buffer out;
    bool any_bad;
};

/* ---- reading ---- */

static int text_check(struct slice text, struct text_record *out, struct error *e)
{
    if (!utf8_valid(text.data, text.bytes)) {
        return error_set(e, ERROR_POISON, E_UTF8, "the text is not UTF-8");
    }
    if (text.bytes && memchr(text.data, '\0', text.bytes)) {
        return error_set(e, ERROR_POISON, E_NUL, "the text has a NUL character");
    }
    size_t bytes = utf8_cut(text.data, text.bytes, RECORD_TEXT_BYTES_MAX);
    *out = (struct text_record){.text = {text.data, bytes}, .cut = bytes < text.bytes};
    return 0;
}

/* The line stays where it is: it outlives the batch. */
static void item_read(struct tag *t, struct slice line)
{
    struct item *item = &t->items[t->count++];
    *item = (struct item){0};
    int failed = t->records ? record_decode_text((struct slice){0}, line, &t->arena, &item->text, &item->error)
                            : text_check(line, &item->text, &item->error);
    if (!failed) {
        encoder_tokenize(engine_encoder(t->engine), ENCODER_TEXT, item->text.text, &item->tokens);
    }
}

/* ---- the card ---- */

static void card_labels(struct buffer *out, const struct prediction *p)
{
    enum { BAR = 20 };
    size_t width = 0;
    for (size_t i = 0; i < p->labels_count; i++) {
        width = p->labels[i].label.bytes > width ? p->labels[i].label.bytes : width;
    }
    width = width < 40 ? width : 40;
    float top = p->labels_count ? p->labels[0].score : 0;
    for (size_t i = 0; i < p->labels_count; i++) {
        const struct predicted_label *l = &p->labels[i];
        buffer_string(out, "  ");
        plain_append(out, l->label, 255);
        buffer_format(out, "%*s  %.3f  ", (int)(l->label.bytes < width ? width - l->label.bytes : 0), "",
                      (double)l->score);
        for (int bar = (int)(BAR * (top > 0 ? l->score / top : 0) + 0.5F); bar > 0; bar--) {
            buffer_string(out, "\u2588");
        }
        buffer_byte(out, '\n');
    }
    if (p->labels_count == 0) {
        buffer_string(out, "  no labels: nothing in the memory supports one\n");
    }
}

static void card_evidence(struct buffer *out, const struct prediction *p)
{
    bool lexical = p->evidence_count && p->evidence[0].has_lexical;
    if (p->evidence_count) {
        buffer_format(out, "  because of (%s, weight)\n", lexical ? "similarity + lexical" : "similarity");
    }
    for (size_t i = 0; i < p->evidence_count; i++) {
        const struct evidence *v = &p->evidence[i];
        buffer_format(out, "  %.3f", (double)v->similarity);
        if (lexical) {
            buffer_format(out, " + %.3f", (double)v->lexical);
        }
        buffer_format(out, " %.3f  %s ", (double)v->weight, v->kind == EVIDENCE_INSTANCE ? "instance" : "label   ");
        plain_append(out, v->name, 255);
        if (v->text.data) {
            buffer_string(out, "  \"");
            plain_append(out, v->text, 72);
            buffer_byte(out, '"');
        }
        for (size_t l = 0; l < v->labels_count; l++) {
            buffer_format(out, "%s%*s", l == 0 ? "\n" : ", ", l > 0 ? 0 : lexical ? 34 : 26, "");
            plain_append(out, v->labels[l], 255);
        }
        buffer_byte(out, '\n');
    }
}

static void card_append(struct buffer *out, const struct item *item, const struct prediction *p)
{
    if (item->text.id.data) {
        plain_append(out, item->text.id, 255);
        buffer_string(out, ": ");
    }
    plain_append(out, item->text.text, 400);
    buffer_byte(out, '\n');
    card_labels(out, p);
    card_evidence(out, p);
    if (p->truncated) {
        buffer_string(out, "  (the encoder did not read this text to its end)\n");
    }
    buffer_byte(out, '\n');
}

/* ---- writing ---- */

static void error_append(struct tag *t, const struct error *e)
{
    struct json_writer w = {.out = &t->out};
    t->any_bad = true;
    if (t->card) {
        buffer_string(&t->out, "error: ");
        plain_append(&t->out, slice_of(e->text), sizeof e->text);
        buffer_string(&t->out, "\n\n");
        return;
    }
    json_object_begin(&w);
    json_name(&w, "error");
    json_write_string(&w, slice_of(e->text));
    json_object_end(&w);
    buffer_byte(&t->out, '\n');
}

static void item_append(struct tag *t, const struct item *item, const struct prediction *p)
{
    if (item->error.kind != ERROR_NONE) {
        error_append(t, &item->error);
    } else if (t->card) {
        card_append(&t->out, item, p);
    } else {
        record_encode_prediction(p, &item->text, NULL, true, &t->out);
        buffer_byte(&t->out, '\n');
    }
}

/* Predicts items[first..last) in one batch and appends what they gave. */
static int batch_predict(struct tag *t, size_t first, size_t last, struct error *e)
{
    const struct tokens *inputs[LINES_MAX];
    size_t texts = 0;
    for (size_t i = first; i < last; i++) {
        if (t->items[i].error.kind == ERROR_NONE) {
            inputs[texts++] = &t->items[i].tokens;
        }
    }
    struct prediction *predictions = mem_zero(texts, sizeof *predictions);
    int result = engine_predict(t->engine, inputs, texts, predictions, NULL, e);
    if (result == 0) {
        for (size_t i = first, k = 0; i < last; i++) {
            bool predicted = t->items[i].error.kind == ERROR_NONE;
            item_append(t, &t->items[i], predicted ? &predictions[k] : NULL);
            k += predicted;
        }
    }
    for (size_t k = 0; k < texts; k++) {
        prediction_free(&predictions[k]);
    }
    free(predictions);
    return result;
}

/* Everything read so far, a slice at a time, each written as soon as it is there. False: the error was printed. */
static bool items_flush(struct tag *t)
{
    struct error e = {0};
    bool good = true;
    for (size_t first = 0, last; good && first < t->count; first = last) {
        size_t tokens = 0;
        for (last = first; last < t->count && (last == first || tokens < engine_slice_tokens(t->engine)); last++) {
            tokens += t->items[last].tokens.count;
        }
        if (batch_predict(t, first, last, &e)) {
            cli_fail(command.name, &e);
            good = false;
        } else {
            good = cli_output(command.name, &t->out);
        }
    }
    for (size_t i = 0; i < t->count; i++) {
        tokens_free(&t->items[i].tokens);
    }
    t->count = 0;
    arena_free(&t->arena);
    return good;
}

/* ---- the command ---- */

static bool tag_input(struct tag *t)
{
    struct input *in = NULL;
    struct error e = {0};
    struct input_line *lines = mem_zero(LINES_MAX, sizeof *lines);
    bool good = input_open(&in, &e) == 0;
    int taken = good ? 0 : -1;
    while (good && (taken = input_take(in, lines, LINES_MAX, &e)) > 0) {
        for (int i = 0; i < taken; i++) {
            if (lines[i].bad) {
                t->items[t->count] = (struct item){0};
                error_set(&t->items[t->count++].error, ERROR_POISON, E_LIMIT, "%s", lines[i].data);
            } else if (!input_passes_over(&lines[i], t->records)) {
                item_read(t, (struct slice){lines[i].data, lines[i].bytes});
            }
        }
        good = items_flush(t);
        for (int i = 0; i < taken; i++) {
            free(lines[i].data);
        }
    }
    if (taken < 0) {
        cli_fail(command.name, &e);
    }
    input_close(in);
    free(lines);
    return good && taken == 0;
}

static int tag_run(struct config *config, const struct arguments *arguments)
{
    struct cli_engine opened = {0};
    struct tag *t = mem_zero(1, sizeof *t);
    struct error e = {0};
    bool good;
    t->card = isatty(STDOUT_FILENO) && !arguments_has(arguments, "json");
    t->records = arguments_has(arguments, "json-lines");
    config->evidence_text |= t->card;
    if (cli_open(&opened, config, CLI_MEMORY_READ, &e)) {
        cli_fail(command.name, &e);
        good = false;
        goto done;
    }
    t->engine = opened.engine;
    if (arguments_has(arguments, "stdin")) {
        good = tag_input(t);
    } else {
        item_read(t, slice_of(arguments_positional(arguments, 0)));
        good = items_flush(t);
    }
done:
    good = good && !t->any_bad;
    buffer_free(&t->out);
    free(t);
    cli_close(&opened);
    return good ? STATUS_OK : STATUS_FAILED;
}

int command_tag(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    int status;
    if (cli_read(&command, argc, argv, &config, &arguments, &status)) {
        bool from_stdin = arguments_has(arguments, "stdin");
        if (from_stdin == (arguments_positional_count(arguments) == 1)) {
            status = cli_usage(command.name, "give one TEXT, or --stdin");
        } else if (arguments_has(arguments, "json-lines") && !from_stdin) {
            status = cli_usage(command.name, "--json-lines is about standard input: it needs --stdin");
        } else {
            status = tag_run(&config, arguments);
        }
    }
    arguments_free(arguments);
    config_free(&config);
    return status;
}
