/* WordPiece: the vocabulary as a trie, and one pass over a text that normalises, splits and matches as it goes.
 * A text is read code point by code point: cleaned, decomposed, stripped of marks, lower-cased; words end at spaces,
 * punctuation, CJK ideographs and special tokens, and each is matched longest piece first. Nothing of a text is kept
 * but the word at hand, so the cost is linear and the pass ends as soon as the ids are full. The surprise: a word of
 * more than 100 characters is [UNK] as a whole, so a run of marks or letters beyond that needs no room and no sorting.
 */
#include "gpu/encoder/tokenizer.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "base/lines.h"
#include "base/utf8.h"
#include "gpu/encoder/codepoint.h"

#define WORD_CHARS_MAX 100 /* max_input_chars_per_word */
#define UTF8_MAX 4
#define PIECE_BYTES_MAX 1024
#define VOCAB_BYTES_MAX (16U << 20) /* a node number has 24 bits */
#define NONE (-1)

static const char *const SPECIAL_TOKENS[] = {"[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"};
enum { UNK, CLS, SEP, SPECIAL_REQUIRED, SPECIAL_COUNT = 5 };

/* One step of the trie, in an open hash table: from a node by a byte to a node. */
struct edge {
    uint32_t key; /* node << 8 | byte, plus 1; 0: empty */
    uint32_t child;
};

struct trie {
    struct edge *edges; /* [1 << bits] */
    unsigned bits;
    int32_t *ids; /* [nodes]: the piece that ends here, or NONE */
    uint32_t nodes;
    uint32_t capacity;
};

struct tokenizer {
    struct trie trie;
    struct buffer vocabulary; /* the pieces, each ended by a newline */
    size_t vocab_size;
    uint32_t continuing; /* the node of "##", where the inner pieces of a word start; 0: no piece has that prefix */
    int32_t special[SPECIAL_COUNT];
    bool lower_case;
    bool strip_accents;
    bool tokenize_chinese_chars;
};

/* ---- the trie -------------------------------------------------------------------------------------------------- */

static size_t edge_place(const struct trie *trie, uint32_t key)
{
    return (size_t)((key * 0x9E3779B97F4A7C15ULL) >> (64 - trie->bits));
}

/* The edge of that key, or the empty place where it would stand. */
static struct edge *edge_find(const struct trie *trie, uint32_t node, unsigned char byte)
{
    uint32_t key = (node << 8 | byte) + 1;
    size_t mask = ((size_t)1 << trie->bits) - 1;
    size_t place = edge_place(trie, key);
    while (trie->edges[place].key != 0 && trie->edges[place].key != key) {
        place = (place + 1) & mask;
    }
    return &trie->edges[place];
}

/* 0: no such step (the root is nobody's child). */
static uint32_t trie_step(const struct trie *trie, uint32_t node, unsigned char byte)
{
    return edge_find(trie, node, byte)->child;
}

static void edges_grow(struct trie *trie)
{
    struct trie larger = *trie;
    larger.bits = trie->bits + 1;
    larger.edges = mem_zero((size_t)1 << larger.bits, sizeof(*larger.edges));
    for (size_t i = 0; i < (size_t)1 << trie->bits; i++) {
        uint32_t key = trie->edges[i].key - 1;
        if (trie->edges[i].key != 0) {
            *edge_find(&larger, key >> 8, (unsigned char)(key & 0xFF)) = trie->edges[i];
        }
    }
    free(trie->edges);
    *trie = larger;
}

static uint32_t node_add(struct trie *trie)
{
    if (trie->nodes == trie->capacity) {
        trie->capacity *= 2;
        trie->ids = mem_resize(trie->ids, trie->capacity * sizeof(*trie->ids));
    }
    trie->ids[trie->nodes] = NONE;
    return trie->nodes++;
}

static void trie_open(struct trie *trie)
{
    trie->bits = 12;
    trie->edges = mem_zero((size_t)1 << trie->bits, sizeof(*trie->edges));
    trie->capacity = 1024;
    trie->ids = mem_alloc(trie->capacity * sizeof(*trie->ids));
    node_add(trie); /* the root */
}

static void trie_close(struct trie *trie)
{
    free(trie->edges);
    free(trie->ids);
}

static void trie_insert(struct trie *trie, struct slice piece, int32_t id)
{
    uint32_t node = 0;
    for (size_t i = 0; i < piece.bytes; i++) {
        if ((size_t)trie->nodes * 2 > (size_t)1 << trie->bits) {
            edges_grow(trie);
        }
        unsigned char byte = (unsigned char)piece.data[i];
        struct edge *edge = edge_find(trie, node, byte);
        if (edge->key == 0) {
            edge->key = (node << 8 | byte) + 1;
            edge->child = node_add(trie);
        }
        node = edge->child;
    }
    trie->ids[node] = id; /* of a repeated piece the last counts, as in a Python dict */
}

/* The node that the bytes lead to, 0 when none. */
static uint32_t trie_walk(const struct trie *trie, const char *data, size_t bytes)
{
    uint32_t node = 0;
    for (size_t i = 0; i < bytes; i++) {
        node = trie_step(trie, node, (unsigned char)data[i]);
        if (node == 0) {
            break;
        }
    }
    return node;
}

/* ---- opening --------------------------------------------------------------------------------------------------- */

static int vocab_read(struct tokenizer *t, const char *path, struct error *e)
{
    struct lines *lines = NULL;
    struct slice line;
    struct error why;
    int rc = -1;
    int more;

    if (lines_open(&lines, path, PIECE_BYTES_MAX, &why) != 0) {
        error_set(e, ERROR_FATAL, E_MODEL, "%s", why.text);
        goto done;
    }
    while ((more = lines_next(lines, &line, &why)) > 0) {
        if (!utf8_valid(line.data, line.bytes)) {
            error_set(e, ERROR_FATAL, E_MODEL, "%s line %zu: a piece that is not UTF-8", path, lines_number(lines));
            goto done;
        }
        if (t->vocabulary.bytes + line.bytes + 1 > VOCAB_BYTES_MAX) {
            error_set(e, ERROR_FATAL, E_MODEL, "%s: a vocabulary of more than %u bytes", path, VOCAB_BYTES_MAX);
            goto done;
        }
        trie_insert(&t->trie, line, (int32_t)t->vocab_size++);
        buffer_append(&t->vocabulary, line.data, line.bytes);
        buffer_byte(&t->vocabulary, '\n');
    }
    if (more < 0) {
        error_set(e, ERROR_FATAL, E_MODEL, "%s", why.text);
        goto done;
    }
    rc = 0;

done:
    lines_close(lines);
    return rc;
}

static int specials_find(struct tokenizer *t, const char *path, struct error *e)
{
    for (size_t i = 0; i < SPECIAL_COUNT; i++) {
        t->special[i] = tokenizer_piece_id(t, SPECIAL_TOKENS[i], strlen(SPECIAL_TOKENS[i]));
        if (i < SPECIAL_REQUIRED && t->special[i] == NONE) {
            return error_set(e, ERROR_FATAL, E_MODEL, "%s has no %s: not the vocabulary of a BERT WordPiece model",
                             path, SPECIAL_TOKENS[i]);
        }
    }
    return 0;
}

int tokenizer_open(struct tokenizer **out, const char *vocab_path, bool lower_case, bool strip_accents,
                   bool tokenize_chinese_chars, struct error *e)
{
    struct tokenizer *t = mem_zero(1, sizeof(*t));
    t->lower_case = lower_case;
    t->strip_accents = strip_accents;
    t->tokenize_chinese_chars = tokenize_chinese_chars;
    trie_open(&t->trie);
    if (vocab_read(t, vocab_path, e) != 0 || specials_find(t, vocab_path, e) != 0) {
        tokenizer_close(t);
        return -1;
    }
    t->continuing = trie_walk(&t->trie, "##", 2);
    *out = t;
    return 0;
}

void tokenizer_close(struct tokenizer *t)
{
    if (t == NULL) {
        return;
    }
    trie_close(&t->trie);
    buffer_free(&t->vocabulary);
    free(t);
}

size_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->vocab_size;
}

int32_t tokenizer_piece_id(const struct tokenizer *t, const char *piece, size_t piece_bytes)
{
    uint32_t node = trie_walk(&t->trie, piece, piece_bytes);
    return node == 0 ? NONE : t->trie.ids[node];
}

struct slice tokenizer_vocabulary(const struct tokenizer *t)
{
    return (struct slice){t->vocabulary.data, t->vocabulary.bytes};
}

/* ---- encoding -------------------------------------------------------------------------------------------------- */

/* A pass over one text. `full` is set when a piece found no room: nothing behind it can matter. */
struct pass {
    const struct tokenizer *t;
    int32_t *ids;
    size_t count;
    size_t max; /* room for pieces: one place is kept for [SEP] */
    bool full;

    unsigned char word[WORD_CHARS_MAX * UTF8_MAX]; /* normalised; no longer filled once word_chars exceeds the limit */
    size_t word_bytes;
    size_t word_chars;

    int32_t marks[WORD_CHARS_MAX + 1]; /* combining characters since the last starter, in canonical order */
    uint8_t classes[WORD_CHARS_MAX + 1];
    size_t marks_count;
};

static void id_push(struct pass *p, int32_t id)
{
    if (p->count == p->max) {
        p->full = true;
    } else {
        p->ids[p->count++] = id;
    }
}

/* The longest piece at the front of word[at..]; returns its end, `at` when there is none. */
static size_t piece_longest(const struct pass *p, size_t at, int32_t *id)
{
    const struct trie *trie = &p->t->trie;
    uint32_t node = at == 0 ? 0 : p->t->continuing;
    size_t end = at;
    if (at != 0 && node == 0) {
        return at;
    }
    for (size_t i = at; i < p->word_bytes; i++) {
        node = trie_step(trie, node, p->word[i]);
        if (node == 0) {
            break;
        }
        if (trie->ids[node] != NONE) {
            *id = trie->ids[node];
            end = i + 1;
        }
    }
    return end;
}

/* A word is its pieces, or one [UNK] where any part of it has none. */
static void word_match(struct pass *p)
{
    int32_t pieces[WORD_CHARS_MAX];
    size_t count = 0;
    size_t at = 0;
    while (at < p->word_bytes) {
        size_t end = piece_longest(p, at, &pieces[count]);
        if (end == at) {
            id_push(p, p->t->special[UNK]);
            return;
        }
        count++;
        at = end;
    }
    for (size_t i = 0; i < count && !p->full; i++) {
        id_push(p, pieces[i]);
    }
}

static void word_end(struct pass *p)
{
    if (p->word_chars > WORD_CHARS_MAX) {
        id_push(p, p->t->special[UNK]);
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
    if (p->word_chars > WORD_CHARS_MAX) {
        return;
    }
    if (++p->word_chars > WORD_CHARS_MAX) {
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

static void char_lower(struct pass *p, int32_t c)
{
    int32_t lower[2] = {c, 0};
    size_t n = p->t->lower_case ? codepoint_lower(c, lower) : 1;
    for (size_t i = 0; i < n; i++) {
        char_place(p, lower[i]);
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
 * order). One more than a word may have makes the word [UNK], so what comes behind that is not kept. */
static void mark_insert(struct pass *p, int32_t c, uint8_t class)
{
    if (p->marks_count > WORD_CHARS_MAX) {
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

static void char_normalise(struct pass *p, int32_t c)
{
    switch (codepoint_class(c)) {
    case CODEPOINT_DROPPED:
        return;
    case CODEPOINT_SPACE:
        marks_flush(p);
        word_end(p);
        return;
    default:
        break;
    }
    bool alone = p->t->tokenize_chinese_chars && codepoint_is_cjk(c);
    if (alone) {
        marks_flush(p);
        word_end(p);
    }
    if (p->t->strip_accents) {
        char_strip(p, c);
    } else {
        char_lower(p, c);
    }
    if (alone) {
        word_end(p);
    }
}

/* A special token spelt at the front of the raw text: its bytes, 0 when there is none. No one is another's beginning.
 */
static size_t special_match(const struct tokenizer *t, const char *text, size_t bytes, int32_t *id)
{
    for (size_t i = 0; i < SPECIAL_COUNT; i++) {
        size_t length = strlen(SPECIAL_TOKENS[i]);
        if (t->special[i] != NONE && length <= bytes && memcmp(text, SPECIAL_TOKENS[i], length) == 0) {
            *id = t->special[i];
            return length;
        }
    }
    return 0;
}

/* Takes one special token, character or bad byte from the front of the text; returns its bytes. */
static size_t text_take(struct pass *p, const char *text, size_t bytes)
{
    int32_t c = (unsigned char)text[0];
    if (c == '[') {
        int32_t id = NONE;
        size_t length = special_match(p->t, text, bytes, &id);
        if (length > 0) {
            marks_flush(p);
            word_end(p);
            id_push(p, id);
            return length;
        }
    }
    if (c < 0x80) {
        if (codepoint_class(c) != CODEPOINT_DROPPED) {
            marks_flush(p);
            char_lower(p, c);
        }
        return 1;
    }
    utf8proc_ssize_t length = bytes > UTF8_MAX ? UTF8_MAX : (utf8proc_ssize_t)bytes;
    length = utf8proc_iterate((const utf8proc_uint8_t *)text, length, &c);
    if (length <= 0) {
        return 1; /* read as U+FFFD, which is dropped */
    }
    char_normalise(p, c);
    return (size_t)length;
}

size_t tokenizer_encode(const struct tokenizer *t, const char *text, size_t text_bytes, int32_t *ids, size_t ids_max,
                        bool *truncated)
{
    assert(ids_max >= 2);
    struct pass p; /* the arrays need no initial value */
    p.t = t;
    p.ids = ids;
    p.count = 0;
    p.max = ids_max - 1;
    p.full = false;
    p.word_bytes = 0;
    p.word_chars = 0;
    p.marks_count = 0;

    id_push(&p, t->special[CLS]);
    for (size_t at = 0; at < text_bytes && !p.full;) {
        at += text_take(&p, text + at, text_bytes - at);
    }
    marks_flush(&p);
    word_end(&p);
    if (truncated != NULL) {
        *truncated = p.full;
    }
    p.ids[p.count++] = t->special[SEP];
    return p.count;
}
