/* The record room behind a pipe, for test_records.py. A line in: KIND KEY VALUE, in hex ("-": no key). A line out: the
 * error's code and text, or "OK" and in hex what was understood, encoded as JSON and as MessagePack, and for a text its
 * prediction (two labels, two pieces of evidence, all figures fixed). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/lines.h"
#include "record/record.h"

static struct slice unhex(const char *hex, struct arena *arena)
{
    size_t bytes = strlen(hex) / 2;
    char *data = arena_alloc(arena, bytes + 1);
    for (size_t i = 0; i < bytes; i++) {
        unsigned byte;
        sscanf(hex + 2 * i, "%2x", &byte);
        data[i] = (char)byte;
    }
    return (struct slice){data, bytes};
}

static void print_hex(struct buffer *b)
{
    putchar(' ');
    for (size_t i = 0; i < b->bytes; i++) {
        printf("%02x", (unsigned char)b->data[i]);
    }
    buffer_clear(b);
}

static void print_prediction(const struct text_record *text, struct buffer *out)
{
    struct predicted_label labels[] = {{slice_of("\xc3\xa9\"\n"), 0.1f}, {slice_of("b"), 0.73123455f}};
    struct slice names[] = {slice_of("b"), slice_of("\xc3\xa9\"\n")};
    struct evidence evidence[] = {
        {.kind = EVIDENCE_INSTANCE,
         .name = slice_of("vim"),
         .similarity = -0.25f,
         .weight = 1e-20f,
         .labels = names,
         .labels_count = 2,
         .text = slice_of("an editor")},
        {.kind = EVIDENCE_LABEL,
         .name = slice_of("b"),
         .similarity = 0.99999994f,
         .has_lexical = true,
         .lexical = 0.3f,
         .weight = 3.4028235e38f},
    };
    struct prediction p = {.labels = labels,
                           .labels_count = 2,
                           .evidence = evidence,
                           .evidence_count = 2,
                           .truncated = true,
                           .model_version = "0123456789abcdef",
                           .memory_version = UINT64_MAX};
    record_encode_prediction(&p, text, &(struct record_source){"texts", 5, INT64_MAX}, true, out);
    print_hex(out);
}

static void answer(const char *kind, struct slice key, struct slice value, struct arena *arena, struct buffer *out)
{
    struct text_record text;
    struct instance_record instance;
    struct label_record label;
    struct error e = {0};
    int result = *kind == 't'   ? record_decode_text(key, value, arena, &text, &e)
                 : *kind == 'i' ? record_decode_instance(key, value, arena, &instance, &e)
                                : record_decode_label(key, value, arena, &label, &e);
    if (result != 0) {
        printf("%s %s", error_code_name(e.code), e.text);
        return;
    }
    printf("OK");
    for (int format = FORMAT_JSON; format <= FORMAT_MSGPACK; format++) {
        if (*kind == 't') {
            record_encode_text(&text, (enum record_format)format, out);
        } else if (*kind == 'i') {
            record_encode_instance(&instance, (enum record_format)format, out);
        } else {
            record_encode_label(&label, (enum record_format)format, out);
        }
        print_hex(out);
    }
    if (*kind == 't') {
        print_prediction(&text, out);
    }
}

int main(void)
{
    struct lines *lines;
    struct slice line;
    struct error e;
    struct buffer out = {0};
    if (lines_open(&lines, "-", 8 << 20, &e) != 0) {
        return 1;
    }
    while (lines_next(lines, &line, &e) > 0) {
        struct arena arena = {0};
        char *copy = arena_string(&arena, line.data, line.bytes);
        char *kind = copy;
        char *key = strchr(kind, ' ') + 1;
        char *value = strchr(key, ' ') + 1;
        value[-1] = '\0';
        answer(kind, strcmp(key, "-") == 0 ? (struct slice){0} : unhex(key, &arena), unhex(value, &arena), &arena,
               &out);
        putchar('\n');
        arena_free(&arena);
    }
    lines_close(lines);
    buffer_free(&out);
    return 0;
}
