/* WordPiece: the vocabulary as a trie, and one pass over a text that normalises, splits and matches as it goes.
 * A text is read code point by code point: cleaned, decomposed, stripped of marks, lower-cased; words end at spaces,
 * punctuation, CJK ideographs and added tokens, and each is matched longest piece first. Added tokens are looked for
 * twice: in the text as it is, and, those that are normalised, in what normalising makes of what is left, for which
 * a window as long as the longest of them is kept. Nothing else of a text is kept but the word at hand, so the cost is
 * linear and the pass ends as soon as the ids are full. The surprise: a word of more characters than the model takes is
 * [UNK] as a whole, so a run of marks or letters beyond that needs no room and no sorting. */
#include "gpu/encoder/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "gpu/encoder/codepoint.h"
#include "gpu/encoder/trie.h"

#define UTF8_MAX 4
#define NORMALISED_BYTES_MAX 1024 /* of an added token */
#define WINDOW_BYTES 4096
#define NONE TRIE_NONE

/* An added token in force. */
struct added {
    int32_t id;
    bool single_word;
};

struct tokenizer {
    struct trie pieces;
    struct trie raw;          /* added tokens by their text: places in added */
    struct trie normalised;   /* the same for those that are normalised, by what that makes of them */
    bool raw_first[256];      /* bytes that an added token begins with */
    size_t normalised_max;    /* bytes of the longest; 0: there is none */
    struct added *added;      /* in the order of the settings */
    struct buffer vocabulary; /* the pieces, each ended by a newline */
    struct buffer extras;     /* see tokenizer_extras */
    size_t ids_end;           /* every id is below it */
    uint32_t continuing;      /* the node where the inner pieces of a word start; NO_NODE: none has that prefix */
    int32_t unk, cls, sep;
    bool lower_case;
    bool strip_accents;
    bool tokenize_chinese_chars;
    size_t word_chars_max;
};

#define NO_NODE UINT32_MAX

const char *const special_tokens[SPECIAL_TOKENS] = {"[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"};

static bool special_token(struct slice text)
{
    for (size_t i = 0; i < SPECIAL_TOKENS; i++) {
        if (slice_equal(text, slice_of(special_tokens[i]))) {
            return true;
        }
    }
    return false;
}

/* ---- the pass -------------------------------------------------------------------------------------------------- */

/* A pass over one text. `full` is set when a piece found no room: nothing after it can matter. */
struct pass {
    const struct tokenizer *t;
    struct slice text;
    int32_t *ids;
    size_t count;
    size_t max; /* room for pieces: one place is kept for [SEP] */
    bool full;
    size_t raw_skip; /* bytes of the text that hold no added token any more: a match that was no single word */

    struct buffer *normalised; /* not NULL: takes the normalised text instead */
    bool window_used;
    char window[WINDOW_BYTES]; /* [at..end): normalised, but not yet taken */
    size_t window_at, window_end;
    size_t window_skip;    /* as raw_skip */
    int32_t window_before; /* the character before it; NONE: the text or the last added token ends there */

    unsigned char word[WORD_CHARS_MAX * UTF8_MAX]; /* normalised; no longer filled once word_chars exceeds the limit */
    size_t word_bytes;
    size_t word_chars;

    int32_t marks[WORD_CHARS_MAX + 1]; /* combining characters since the last starter, in canonical order */
    uint8_t classes[WORD_CHARS_MAX + 1];
    size_t marks_count;
};

static void pass_begin(struct pass *p, const struct tokenizer *t, struct slice text)
{
    p->t = t; /* the arrays need no initial value */
    p->text = text;
    p->ids = NULL;
    p->count = 0;
    p->max = 0;
    p->full = false;
    p->raw_skip = 0;
    p->normalised = NULL;
    p->window_used = t->normalised_max > 0;
    p->window_at = 0;
    p->window_end = 0;
    p->window_skip = 0;
    p->window_before = NONE;
    p->word_bytes = 0;
    p->word_chars = 0;
    p->marks_count = 0;
}

static void id_push(struct pass *p, int32_t id)
{
    if (p->count == p->max) {
        p->full = true;
    } else {
        p->ids[p->count++] = id;
    }
}

/* A word is its pieces, or one [UNK] where any part of it has none. */
static void word_match(struct pass *p)
{
    int32_t pieces[WORD_CHARS_MAX];
    size_t count = 0;
    size_t at = 0;
    while (at < p->word_bytes) {
        struct slice rest = {(const char *)p->word + at, p->word_bytes - at};
        uint32_t node = at == 0 ? 0 : p->t->continuing;
        size_t bytes = node == NO_NODE ? 0 : trie_longest(&p->t->pieces, node, rest, &pieces[count]);
        if (bytes == 0) {
            id_push(p, p->t->unk);
            return;
        }
        count++;
        at += bytes;
    }
    for (size_t i = 0; i < count && !p->full; i++) {
        id_push(p, pieces[i]);
    }
}

static void word_end(struct pass *p)
{
    if (p->word_chars > p->t->word_chars_max) {
        id_push(p, p->t->unk);
    } else if (p->word_chars > 0) {
        word_match(p);
    }
    p->word_chars = 0;
    p->word_bytes = 0;
}

static void word_append(struct pass *p, int32_t c)
{
    if (p->count == p->max) {
        p->full = true; /* the word will have a piece, whatever follows */
        return;
    }
    if (p->word_chars > p->t->word_chars_max) {
        return;
    }
    if (++p->word_chars > p->t->word_chars_max) {
        return;
    }
    if (c < 0x80) {
        p->word[p->word_bytes++] = (unsigned char)c;
    } else {
        p->word_bytes += (size_t)utf8proc_encode_char(c, p->word + p->word_bytes);
    }
}

/* A character in its final form: part of a word, or a word of its own. */
static void char_place(struct pass *p, int32_t c)
{
    switch (codepoint_class(c)) {
    case CODEPOINT_SPACE:
        word_end(p);
        break;
    case CODEPOINT_PUNCTUATION:
        word_end(p);
        word_append(p, c);
        word_end(p);
        break;
    default:
        word_append(p, c);
    }
}

/* ---- added tokens ---------------------------------------------------------------------------------------------- */

/* The character at the front of the text, or NONE. */
static int32_t char_first(struct slice text)
{
    int32_t c;
    codepoint_first(text, &c);
    return c;
}

static int32_t char_last(struct slice text)
{
    size_t bytes = 0;
    while (bytes < text.bytes && bytes < UTF8_MAX && (text.data[text.bytes - ++bytes] & 0xC0) == 0x80) {}
    return char_first((struct slice){text.data + text.bytes - bytes, bytes});
}

/* Whether a token found between those two counts: one that must be a single word may touch none. */
static bool added_counts(const struct added *added, int32_t before, struct slice after)
{
    return !added->single_word || !(codepoint_is_word(before) || codepoint_is_word(char_first(after)));
}

static void added_push(struct pass *p, const struct added *added)
{
    word_end(p);
    id_push(p, added->id);
}

/* Takes one added token or character from the front of the window; returns its bytes. */
static size_t window_take(struct pass *p)
{
    struct slice rest = {p->window + p->window_at, p->window_end - p->window_at};
    int32_t which = NONE;
    size_t bytes = p->window_skip > 0 ? 0 : trie_longest(&p->t->normalised, 0, rest, &which);
    if (bytes > 0) {
        const struct added *added = &p->t->added[which];
        if (added_counts(added, p->window_before, (struct slice){rest.data + bytes, rest.bytes - bytes})) {
            added_push(p, added);
            p->window_before = char_last((struct slice){rest.data, bytes});
            return bytes;
        }
        p->window_skip = bytes;
    }
    int32_t c;
    bytes = codepoint_first(rest, &c);
    char_place(p, c);
    p->window_before = c;
    p->window_skip -= p->window_skip > 0 ? bytes : 0;
    return bytes;
}

/* Takes from the window what nothing that follows can change; all of it where nothing follows. */
static void window_advance(struct pass *p, bool last)
{
    size_t keep = last ? 0 : p->t->normalised_max; /* the longest token, and the whole character after it */
    while (p->window_end - p->window_at > keep && !p->full) {
        p->window_at += window_take(p);
    }
    if (p->window_end + UTF8_MAX > sizeof p->window) {
        p->window_end -= p->window_at;
        memmove(p->window, p->window + p->window_at, p->window_end);
        p->window_at = 0;
    }
}

/* A character as normalising leaves it. */
static void char_emit(struct pass *p, int32_t c)
{
    if (p->normalised != NULL) {
        char bytes[UTF8_MAX];
        buffer_append(p->normalised, bytes, (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)bytes));
    } else if (p->window_used && p->full) {
        return; /* the window is not emptied any more */
    } else if (p->window_used) {
        p->window_end += (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)p->window + p->window_end);
        window_advance(p, false);
    } else {
        char_place(p, c);
    }
}

/* ---- normalising ----------------------------------------------------------------------------------------------- */

static void char_lower(struct pass *p, int32_t c)
{
    int32_t lower[2] = {c, 0};
    size_t n = p->t->lower_case ? codepoint_lower(c, lower) : 1;
    for (size_t i = 0; i < n; i++) {
        char_emit(p, lower[i]);
    }
}

static void marks_flush(struct pass *p)
{
    for (size_t i = 0; i < p->marks_count; i++) {
        char_lower(p, p->marks[i]);
    }
    p->marks_count = 0;
}

/* Keeps the marks since the last starter sorted by combining class, equal ones as they came (Unicode's canonical
 * order). One more than a word may have makes the word [UNK], so what comes after that is not kept. */
static void mark_insert(struct pass *p, int32_t c, uint8_t class)
{
    if (p->marks_count > p->t->word_chars_max) {
        return;
    }
    size_t place = p->marks_count++;
    for (; place > 0 && p->classes[place - 1] > class; place--) {
        p->marks[place] = p->marks[place - 1];
        p->classes[place] = p->classes[place - 1];
    }
    p->marks[place] = c;
    p->classes[place] = class;
}

/* Canonical decomposition without the nonspacing marks. */
static void char_strip(struct pass *p, int32_t c)
{
    int32_t parts[CODEPOINT_DECOMPOSED_MAX];
    size_t n = codepoint_decompose(c, parts);
    for (size_t i = 0; i < n; i++) {
        bool stripped = codepoint_class(parts[i]) == CODEPOINT_MARK;
        uint8_t class = codepoint_combining_class(parts[i]);
        if (class == 0) {
            marks_flush(p); /* also before a stripped one: it was there when the marks were ordered */
        }
        if (!stripped && class != 0) {
            mark_insert(p, parts[i], class);
        } else if (!stripped) {
            char_lower(p, parts[i]);
        }
    }
}

static void space_emit(struct pass *p)
{
    marks_flush(p);
    char_emit(p, ' ');
}

static void char_normalise(struct pass *p, int32_t c)
{
    switch (codepoint_class(c)) {
    case CODEPOINT_DROPPED:
        return;
    case CODEPOINT_SPACE:
        space_emit(p);
        return;
    default:
        break;
    }
    bool alone = p->t->tokenize_chinese_chars && codepoint_is_cjk(c);
    if (alone) {
        space_emit(p);
    }
    if (p->t->strip_accents) {
        char_strip(p, c);
    } else {
        char_lower(p, c);
    }
    if (alone) {
        space_emit(p);
    }
}

/* Where an added token cuts the text, and at its end: what came before is complete. */
static void segment_end(struct pass *p)
{
    marks_flush(p);
    if (p->window_used) {
        window_advance(p, true);
        p->window_at = 0;
        p->window_end = 0;
        p->window_before = NONE;
    }
    word_end(p);
}

/* An added token at that place of the text as it is: its bytes, 0 where there is none. */
static size_t raw_take(struct pass *p, size_t at)
{
    struct slice rest = {p->text.data + at, p->text.bytes - at};
    int32_t which = NONE;
    size_t bytes = trie_longest(&p->t->raw, 0, rest, &which);
    if (bytes == 0) {
        return 0;
    }
    const struct added *added = &p->t->added[which];
    if (!added_counts(added, char_last((struct slice){p->text.data, at}),
                      (struct slice){rest.data + bytes, rest.bytes - bytes})) {
        p->raw_skip = bytes;
        return 0;
    }
    segment_end(p);
    added_push(p, added);
    return bytes;
}

/* Takes one added token, character or bad byte from that place of the text; returns its bytes. */
static size_t text_take(struct pass *p, size_t at)
{
    int32_t c = (unsigned char)p->text.data[at];
    if (p->t->raw_first[c] && p->raw_skip == 0) {
        size_t bytes = raw_take(p, at);
        if (bytes > 0) {
            return bytes;
        }
    }
    size_t length = 1;
    if (c >= 0x80) {
        length = codepoint_first((struct slice){p->text.data + at, p->text.bytes - at}, &c);
        c = c < 0 ? 0xFFFD : c;
    }
    p->raw_skip -= p->raw_skip > 0 ? length : 0;
    if (c >= 0x80) {
        char_normalise(p, c);
    } else if (codepoint_class(c) != CODEPOINT_DROPPED) {
        marks_flush(p);
        char_lower(p, codepoint_class(c) == CODEPOINT_SPACE ? ' ' : c);
    }
    return length;
}

size_t tokenizer_encode(const struct tokenizer *t, const char *text, size_t text_bytes, int32_t *ids, size_t ids_max,
                        bool *truncated)
{
    assert(ids_max >= 2);
    struct pass p;
    pass_begin(&p, t, (struct slice){text, text_bytes});
    p.ids = ids;
    p.max = ids_max - 1;
    id_push(&p, t->cls);
    for (size_t at = 0; at < text_bytes && !p.full;) {
        at += text_take(&p, at);
    }
    segment_end(&p);
    if (truncated != NULL) {
        *truncated = p.full;
    }
    p.ids[p.count++] = t->sep;
    return p.count;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static int pieces_add(struct tokenizer *t, const struct tokenizer_settings *s, struct error *e)
{
    for (size_t i = 0; i < s->piece_count; i++) {
        if (t->vocabulary.bytes + s->pieces[i].bytes + 1 > TRIE_BYTES_MAX) {
            return error_set(e, ERROR_FATAL, E_MODEL, "a vocabulary of more than %u bytes", TRIE_BYTES_MAX);
        }
        trie_insert(&t->pieces, s->pieces[i], (int32_t)i); /* of a repeated piece the last counts: a Python dict */
        buffer_append(&t->vocabulary, s->pieces[i].data, s->pieces[i].bytes);
        buffer_byte(&t->vocabulary, '\n');
    }
    t->ids_end = s->piece_count;
    uint32_t prefixed = trie_walk(&t->pieces, s->continuing);
    t->continuing = prefixed == 0 && s->continuing.bytes > 0 ? NO_NODE : prefixed;
    return 0;
}

static int added_refuse(const struct added_token *added, const char *why, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_MODEL, "the added token %.*s (id %d) %s", (int)added->text.bytes,
                     added->text.data, (int)added->id, why);
}

/* What normalising makes of an added token's text. Before any of them is in the tries: none is looked for in it. */
static int added_normalise(const struct tokenizer *t, const struct added_token *added, struct buffer *out,
                           struct error *e)
{
    struct pass p;
    pass_begin(&p, t, added->text);
    p.normalised = out;
    for (size_t at = 0; at < added->text.bytes;) {
        at += text_take(&p, at);
    }
    marks_flush(&p);
    if (out->bytes == 0) {
        return added_refuse(added, "is nothing once it is normalised", e);
    }
    if (out->bytes > NORMALISED_BYTES_MAX) {
        return added_refuse(added, "is too long once it is normalised", e);
    }
    /* of a run of marks no more is kept than a word may have, so that nothing can be looked for in it */
    for (size_t at = 0; t->strip_accents && at < out->bytes;) {
        int32_t c;
        at += codepoint_first((struct slice){out->data + at, out->bytes - at}, &c);
        if (codepoint_combining_class(c) != 0) {
            return added_refuse(added, "has a combining mark that normalising keeps, which cannot be run", e);
        }
    }
    return 0;
}

/* Puts an added token into its trie, unless one that is looked for alike is there. `text` is what is looked for.
 * Returns whether it is one of those that a vocabulary alone brings. */
static bool added_insert(struct tokenizer *t, const struct added_token *added, size_t i, struct slice text)
{
    struct trie *trie = added->normalized ? &t->normalised : &t->raw;
    t->added[i] = (struct added){.id = added->id, .single_word = added->single_word};
    t->ids_end = (size_t)added->id >= t->ids_end ? (size_t)added->id + 1 : t->ids_end;
    if (trie_find(trie, text) != NONE) {
        return false;
    }
    trie_insert(trie, text, (int32_t)i);
    if (!added->normalized) {
        t->raw_first[(unsigned char)text.data[0]] = true;
    } else if (text.bytes > t->normalised_max) {
        t->normalised_max = text.bytes;
    }
    buffer_format(&t->extras, "added %d normalized %d single_word %d bytes %zu ", (int)added->id, added->normalized,
                  added->single_word, text.bytes);
    buffer_append(&t->extras, text.data, text.bytes);
    buffer_byte(&t->extras, '\n');
    return !added->normalized && !added->single_word && special_token(added->text) &&
           trie_find(&t->pieces, added->text) == added->id;
}

/* The special ones first. `normalised` [added_count] are the texts of those that are normalised. */
static void added_insert_all(struct tokenizer *t, const struct tokenizer_settings *s, const struct buffer *normalised)
{
    size_t plain = 0, expected = 0;
    for (int special = 1; special >= 0; special--) {
        for (size_t i = 0; i < s->added_count; i++) {
            const struct added_token *added = &s->added[i];
            if (added->special == (special == 1)) {
                const struct slice text = {normalised[i].data, normalised[i].bytes};
                plain += added_insert(t, added, i, added->normalized ? text : added->text);
            }
        }
    }
    for (size_t i = 0; i < SPECIAL_TOKENS; i++) {
        expected += trie_find(&t->pieces, slice_of(special_tokens[i])) != NONE;
    }
    if (plain == s->added_count && plain == expected) {
        buffer_clear(&t->extras);
    }
}

static int added_open(struct tokenizer *t, const struct tokenizer_settings *s, struct error *e)
{
    int result = -1;
    struct buffer *normalised = mem_zero(s->added_count, sizeof *normalised);
    t->added = mem_zero(s->added_count, sizeof *t->added);
    for (size_t i = 0; i < s->added_count; i++) {
        const struct added_token *added = &s->added[i];
        if (added->text.bytes == 0 || added->text.bytes > ADDED_BYTES_MAX) {
            error_set(e, ERROR_FATAL, E_MODEL, "the added token of id %d has %zu bytes; 1 to %d can be run",
                      (int)added->id, added->text.bytes, ADDED_BYTES_MAX);
            goto done;
        }
        if (codepoint_is_space(char_first(added->text)) || codepoint_is_space(char_last(added->text))) {
            added_refuse(added, "begins or ends with a blank, which cannot be run", e);
            goto done;
        }
        if (added->normalized && added_normalise(t, added, &normalised[i], e) != 0) {
            goto done;
        }
    }
    added_insert_all(t, s, normalised);
    result = 0;
done:
    for (size_t i = 0; i < s->added_count; i++) {
        buffer_free(&normalised[i]);
    }
    free(normalised);
    return result;
}

/* The id of a token that is a piece or added; NONE: it is neither. */
static int32_t token_id(const struct tokenizer *t, const struct tokenizer_settings *s, const char *text)
{
    for (size_t i = 0; i < s->added_count; i++) {
        if (slice_equal(s->added[i].text, slice_of(text))) {
            return s->added[i].id;
        }
    }
    return trie_find(&t->pieces, slice_of(text));
}

static int specials_find(struct tokenizer *t, const struct tokenizer_settings *s, struct error *e)
{
    t->unk = trie_find(&t->pieces, slice_of("[UNK]"));
    t->cls = token_id(t, s, "[CLS]");
    t->sep = token_id(t, s, "[SEP]");
    const char *missing = t->unk == NONE ? "[UNK]" : t->cls == NONE ? "[CLS]" : t->sep == NONE ? "[SEP]" : NULL;
    return missing
               ? error_set(e, ERROR_FATAL, E_MODEL, "has no %s: not the vocabulary of a BERT WordPiece model", missing)
               : 0;
}

int tokenizer_open(struct tokenizer **out, const struct tokenizer_settings *s, struct error *e)
{
    struct tokenizer *t = mem_zero(1, sizeof(*t));
    assert(s->word_chars_max >= 1 && s->word_chars_max <= WORD_CHARS_MAX);
    t->lower_case = s->lower_case;
    t->strip_accents = s->strip_accents;
    t->tokenize_chinese_chars = s->tokenize_chinese_chars;
    t->word_chars_max = s->word_chars_max;
    trie_open(&t->pieces);
    trie_open(&t->raw);
    trie_open(&t->normalised);
    if (pieces_add(t, s, e) != 0 || specials_find(t, s, e) != 0 || added_open(t, s, e) != 0) {
        tokenizer_close(t);
        return -1;
    }
    if (!slice_equal(s->continuing, slice_of(CONTINUING)) || s->word_chars_max != WORD_CHARS_USUAL) {
        buffer_format(&t->extras, "continuing %.*s word_chars %zu\n", (int)s->continuing.bytes, s->continuing.data,
                      s->word_chars_max);
    }
    *out = t;
    return 0;
}

void tokenizer_close(struct tokenizer *t)
{
    if (t == NULL) {
        return;
    }
    trie_close(&t->pieces);
    trie_close(&t->raw);
    trie_close(&t->normalised);
    free(t->added);
    buffer_free(&t->vocabulary);
    buffer_free(&t->extras);
    free(t);
}

size_t tokenizer_ids_end(const struct tokenizer *t)
{
    return t->ids_end;
}

int32_t tokenizer_piece_id(const struct tokenizer *t, const char *piece, size_t piece_bytes)
{
    return trie_find(&t->pieces, (struct slice){piece, piece_bytes});
}

struct slice tokenizer_vocabulary(const struct tokenizer *t)
{
    return (struct slice){t->vocabulary.data, t->vocabulary.bytes};
}

struct slice tokenizer_extras(const struct tokenizer *t)
{
    return (struct slice){t->extras.data, t->extras.bytes};
}
