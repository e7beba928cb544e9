/* The nouns that travel: text, labelled instance, label definition, prediction; each in JSON and MessagePack.
 * Decoding decides what is poison: its limits are constants of the format, never options, since every replica must
 * decide alike. No Kafka and no LMDB here. */
#ifndef ENGRAM_RECORD_RECORD_H
#define ENGRAM_RECORD_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/digest.h"
#include "base/error.h"

enum {
    RECORD_BYTES_MAX = 1 << 20,       /* a record's value */
    RECORD_TEXT_BYTES_MAX = 64 << 10, /* a longer text is cut at a character's end, not refused */
    RECORD_LABELS_MAX = 1000,
    RECORD_NAME_BYTES_MAX = 255, /* an id, a label's name */
    RECORD_DEPTH_MAX = 16,
};

enum record_format { FORMAT_JSON, FORMAT_MSGPACK };

struct text_record {
    struct slice id; /* data NULL: none */
    struct slice text;
    struct slice metadata; /* one whole value in the record's own format (JSON: compact); bytes 0: none */
    bool cut;              /* the text was longer than RECORD_TEXT_BYTES_MAX */
    enum record_format format;
};

struct instance_record {
    struct slice id;
    struct slice text;
    struct slice *labels; /* sorted by bytes, no name twice */
    size_t labels_count;
    enum record_format format;
};

struct label_record {
    struct slice label;
    struct slice text;
    enum record_format format;
};

/* Decode a Kafka record's key (data NULL: none) and value. What *out points to lives in the arena (nothing points into
 * key or value), so the caller may free the message. Errors: POISON with one line that says what and where in the
 * value. A null value (tombstone, pass-through) is the caller's: value.data is not NULL here. A text's id is the
 * value's, else the key where it is UTF-8, else none; an instance's and a label's is the key, and one in the value must
 * agree. For data files, where there is no key, *_from_value take the value's own id (load, replay). */
int record_decode_text(struct slice key, struct slice value, struct arena *arena, struct text_record *out,
                       struct error *e);
int record_decode_instance(struct slice key, struct slice value, struct arena *arena, struct instance_record *out,
                           struct error *e);
int record_decode_label(struct slice key, struct slice value, struct arena *arena, struct label_record *out,
                        struct error *e);
int record_instance_from_value(struct slice value, struct arena *arena, struct instance_record *out, struct error *e);
int record_label_from_value(struct slice value, struct arena *arena, struct label_record *out, struct error *e);

/* Is this a key that names something: 1 to 255 bytes of UTF-8 without NUL? Else POISON, E_KEY. what: how the message
 * calls it ("the record key", "--id"). key.data NULL: missing. */
int record_check_name(struct slice key, const char *what, struct error *e);

/* Encoding, appended to *out. A text's metadata goes along in its own format, and from JSON into MessagePack (numbers
 * as 64-bit integers or doubles, as characters where neither holds them); from MessagePack into JSON it is left out. */
void record_encode_text(const struct text_record *r, enum record_format format, struct buffer *out);
void record_encode_instance(const struct instance_record *r, enum record_format format, struct buffer *out);
void record_encode_label(const struct label_record *r, enum record_format format, struct buffer *out);

/* ---- how far a partition was read ---- */

/* A record by which a topic is known again: one that was deleted and created again has another record at this offset,
 * or none. */
struct record_mark {
    int64_t offset;
    int64_t time_ms;    /* Kafka's timestamp; -1: it has none */
    struct digest hash; /* of key and value; zeros: no record is known, whatever the other two say */
};

/* Null and zero bytes are different keys and values. */
struct record_mark record_mark_of(int64_t offset, int64_t time_ms, struct slice key, struct slice value);
bool record_mark_known(const struct record_mark *m);
bool record_mark_equal(const struct record_mark *a, const struct record_mark *b);

enum { TOPIC_ID_BYTES = 16 };

bool topic_id_known(const unsigned char id[TOPIC_ID_BYTES]); /* not all zeros */

/* How far, and by what the topic is known again. */
struct read_position {
    int64_t next;                           /* the next offset to read; 0: nothing was read yet */
    struct record_mark mark;                /* of a record below next */
    unsigned char topic_id[TOPIC_ID_BYTES]; /* Kafka's: another one when the topic is created again; zeros: not known */
};

/* ---- predictions ---- */

/* A prediction and its evidence. The engine fills it; everything it points to lives in its own arena. */
struct predicted_label {
    struct slice label;
    float score;
};

enum evidence_kind { EVIDENCE_INSTANCE, EVIDENCE_LABEL };

struct evidence {
    enum evidence_kind kind;
    struct slice name;    /* the instance's id or the label's name */
    float similarity;     /* q.k, from -1 to 1 */
    bool has_lexical;     /* keys were ranked by similarity + lexical */
    float lexical;        /* a * the lexical score */
    float weight;         /* the softmax's; a label's times (1 + count)^-label_power */
    struct slice *labels; /* of an instance, sorted by bytes */
    size_t labels_count;
    struct slice text; /* data NULL: not asked for, or not stored */
};

struct prediction {
    struct predicted_label *labels; /* by falling score */
    size_t labels_count;
    struct evidence *evidence; /* by falling weight x (lambda or 1 - lambda) */
    size_t evidence_count;
    bool truncated; /* the encoder did not read the text to its end */
    char model_version[17];
    uint64_t memory_version;
    struct arena arena;
};

void prediction_free(struct prediction *p);

struct record_source {
    const char *topic; /* NULL: no source in the output (tag) */
    int32_t partition;
    int64_t offset;
};

/* The prediction's record in the format of its text, metadata copied as it was. with_text: evidence texts too. */
void record_encode_prediction(const struct prediction *p, const struct text_record *text,
                              const struct record_source *source, bool with_text, struct buffer *out);

#endif
