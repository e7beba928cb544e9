/* `engram eval --show N`: what one looks at first when a tag is wrong. For each text the labels as they would be
 * published, right or wrong against the file's gold ones, under each the keys that gave it most, and the gold labels
 * that were missed with where they are. The surprise: a text is predicted once more here, for its evidence; the
 * metrics ask for none. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/internal.h"
#include "cli/terminal.h"
#include "record/record.h"

enum {
    BATCH = 16, /* each holds the texts of all its evidence */
    KEYS_SHOWN = 2,
    TEXT_LINES = 3,
    COLUMNS_LEAST = 60,
    COLUMNS_NO_TERMINAL = 120,
    QUOTE_LEAST = 20,
};

void eval_show_start(struct eval_show *s, const struct cli_engine *opened, bool exclude_self,
                     const struct config *config)
{
    size_t columns = isatty(STDOUT_FILENO) ? terminal_columns(STDOUT_FILENO) : COLUMNS_NO_TERMINAL;
    s->engine = opened->engine;
    s->memory = opened->memory;
    s->options = cli_predict_options(config);
    s->labels_max = s->options.labels_max;
    s->min_score = s->options.min_score;
    s->options.labels_max = 0;
    s->options.min_score = 0;
    s->options.evidence_max = SIZE_MAX;
    s->options.evidence_text = true;
    s->exclude_self = exclude_self;
    s->columns = columns > COLUMNS_LEAST ? columns : COLUMNS_LEAST;
}

/* A text with the labels that do not count for it. */
struct shown_text {
    const struct instance_record *record;
    const struct left_out *left_out;
};

static bool is_unwanted(const struct eval_show *s, const struct shown_text *text, struct slice label)
{
    return is_left_out(text->left_out, s->exclude_self ? &text->record->id : NULL, label);
}

static bool has_label(const struct slice *labels, size_t count, struct slice label)
{
    return count && bsearch(&label, labels, count, sizeof *labels, slice_order);
}

static bool has_gold(const struct eval_show *s, const struct shown_text *text)
{
    for (size_t i = 0; i < text->record->labels_count; i++) {
        if (!is_unwanted(s, text, text->record->labels[i])) {
            return true;
        }
    }
    return false;
}

/* ---- evidence ---- */

static void key_append(struct eval_show *s, const struct evidence *v)
{
    struct buffer *out = &s->out;
    size_t start = out->bytes;
    buffer_format(out, "           %.3f ", (double)v->similarity);
    if (v->has_lexical) {
        buffer_format(out, "%.3f ", (double)v->lexical);
    }
    buffer_format(out, "%.3f  %s ", (double)v->weight, v->kind == EVIDENCE_INSTANCE ? "instance" : "label   ");
    size_t used = out->bytes - start;
    used += plain_fit(out, v->name, RECORD_NAME_BYTES_MAX);
    if (v->text.data) {
        size_t quotes = strlen("  \"\"");
        buffer_string(out, "  \"");
        plain_fit(out, v->text,
                  s->columns > used + quotes + QUOTE_LEAST ? s->columns - used - quotes : (size_t)QUOTE_LEAST);
        buffer_byte(out, '"');
    }
    buffer_byte(out, '\n');
}

/* The evidence is in the order of what it gave: the first that has the label gave it most. */
static void keys_append(struct eval_show *s, const struct prediction *p, struct slice label)
{
    size_t count = 0;
    for (size_t i = 0; i < p->evidence_count; i++) {
        const struct evidence *v = &p->evidence[i];
        bool gave =
            v->kind == EVIDENCE_LABEL ? slice_equal(v->name, label) : has_label(v->labels, v->labels_count, label);
        if (gave && count++ < KEYS_SHOWN) {
            key_append(s, v);
        }
    }
    if (count > KEYS_SHOWN) {
        buffer_format(&s->out, "           and %zu more\n", count - KEYS_SHOWN);
    }
}

/* ---- labels ---- */

/* Where a label of a prediction came out among those that count; rank 0: nowhere. */
struct standing {
    size_t rank;
    float score;
    bool published; /* within labels_max and min_score */
};

static bool is_published(const struct eval_show *s, size_t rank, float score)
{
    return (s->labels_max == 0 || rank <= s->labels_max) && (double)score >= s->min_score;
}

static struct standing standing_of(const struct eval_show *s, const struct shown_text *text, const struct prediction *p,
                                   struct slice label)
{
    size_t rank = 0;
    for (size_t i = 0; i < p->labels_count; i++) {
        const struct predicted_label *l = &p->labels[i];
        if (!is_unwanted(s, text, l->label)) {
            rank++;
            if (slice_equal(l->label, label)) {
                return (struct standing){rank, l->score, is_published(s, rank, l->score)};
            }
        }
    }
    return (struct standing){0};
}

static void published_append(struct eval_show *s, const struct shown_text *text, const struct prediction *p)
{
    size_t count = 0;
    for (size_t i = 0; i < p->labels_count; i++) {
        const struct predicted_label *l = &p->labels[i];
        if (is_unwanted(s, text, l->label)) {
            continue;
        }
        if (!is_published(s, count + 1, l->score)) {
            break;
        }
        count++;
        bool right = has_label(text->record->labels, text->record->labels_count, l->label);
        buffer_format(&s->out, "  %-6s  %.3f  ", right ? "right" : "wrong", (double)l->score);
        plain_append(&s->out, l->label, RECORD_NAME_BYTES_MAX);
        buffer_byte(&s->out, '\n');
        keys_append(s, p, l->label);
    }
    if (count == 0) {
        buffer_string(&s->out, p->labels_count ? "  no labels: none reaches min_score\n"
                                               : "  no labels: nothing in the memory supports one\n");
    }
}

static int missed_append(struct eval_show *s, const struct shown_text *text, const struct snapshot *snapshot,
                         const struct prediction *p, struct error *e)
{
    for (size_t i = 0; i < text->record->labels_count; i++) {
        struct slice label = text->record->labels[i];
        struct standing at = standing_of(s, text, p, label);
        struct memory_label known;
        if (at.published || is_unwanted(s, text, label)) {
            continue;
        }
        if (at.rank) {
            buffer_format(&s->out, "  missed  %.3f  ", (double)at.score);
        } else {
            buffer_format(&s->out, "  missed  %5s  ", "-");
        }
        plain_append(&s->out, label, RECORD_NAME_BYTES_MAX);
        if (at.rank) {
            buffer_format(&s->out, "  (rank %zu)\n", at.rank);
            continue;
        }
        int found = snapshot_label_named(snapshot, label, &known, e);
        if (found < 0) {
            return -1;
        }
        buffer_string(&s->out, found && (known.defined || known.instances) ? "  (not among the candidates)\n"
                                                                           : "  (the memory does not know it)\n");
    }
    return 0;
}

/* ---- texts ---- */

static void head_append(struct eval_show *s)
{
    buffer_format(&s->out,
                  "Texts with their tags and scores; under each tag the keys that contributed most:\n"
                  "similarity, %sweight, key. Missed: labels of the file that were not predicted.\n\n",
                  s->options.lexical > 0 ? "lexical, " : "");
}

static int text_append(struct eval_show *s, const struct shown_text *text, const struct snapshot *snapshot,
                       const struct prediction *p, struct error *e)
{
    if (s->shown++ == 0) {
        head_append(s);
    }
    buffer_format(&s->out, "%zu. ", s->shown);
    plain_append(&s->out, text->record->id, RECORD_NAME_BYTES_MAX);
    buffer_string(&s->out, "\n  \"");
    plain_fit(&s->out, text->record->text, TEXT_LINES * s->columns - strlen("  \"\""));
    buffer_string(&s->out, "\"\n");
    published_append(s, text, p);
    if (missed_append(s, text, snapshot, p, e)) {
        return -1;
    }
    if (p->truncated) {
        buffer_string(&s->out, "  (the encoder did not read this text to its end)\n");
    }
    buffer_byte(&s->out, '\n');
    return 0;
}

static int batch_append(struct eval_show *s, const struct shown_text *texts, size_t n, const struct snapshot *snapshot,
                        struct error *e)
{
    struct tokens tokens[BATCH] = {0};
    const struct tokens *inputs[BATCH];
    struct prediction predictions[BATCH] = {0};
    for (size_t i = 0; i < n; i++) {
        encoder_tokenize(engine_encoder(s->engine), ENCODER_TEXT, texts[i].record->text, &tokens[i]);
        inputs[i] = &tokens[i];
    }
    int result = engine_predict_with(s->engine, &s->options, inputs, n, predictions, NULL, e);
    for (size_t i = 0; result == 0 && i < n; i++) {
        result = text_append(s, &texts[i], snapshot, &predictions[i], e);
    }
    for (size_t i = 0; i < n; i++) {
        prediction_free(&predictions[i]);
        tokens_free(&tokens[i]);
    }
    return result;
}

int eval_show_add(struct eval_show *s, const struct instance_record *texts, const struct left_out *left_out, size_t n,
                  struct error *e)
{
    struct snapshot *snapshot = NULL;
    struct shown_text batch[BATCH];
    if (s->shown == s->wanted) {
        return 0;
    }
    int result = memory_look(s->memory, &snapshot, e);
    for (size_t i = 0, count; result == 0 && i < n && s->shown < s->wanted;) {
        for (count = 0; i < n && count < BATCH && s->shown + count < s->wanted; i++) {
            batch[count] = (struct shown_text){&texts[i], &left_out[i]};
            count += has_gold(s, &batch[count]);
        }
        result = count ? batch_append(s, batch, count, snapshot, e) : 0;
    }
    snapshot_release(snapshot);
    return result;
}
