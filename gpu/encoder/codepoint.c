/* Code points as `tokenizers` classes them. utf8proc is asked first; the tables are searched only for what it calls a
 * mark, punctuation or format character outside ASCII, so ordinary text does not pay for them. Touches nothing else.
 * The surprise: a character newer than Unicode 8 is a letter here whatever it is in truth, because the model's own
 * tokenizer takes it for one. */
#include "gpu/encoder/codepoint.h"

#include <utf8proc.h>

struct range {
    int32_t first;
    int32_t last;
};

struct range_value {
    int32_t first;
    int32_t last;
    int32_t value;
};

#include "gpu/encoder/codepoint_tables.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Ranges rise and do not overlap. */
static bool range_holds(const struct range *ranges, size_t count, int32_t c)
{
    size_t low = 0;
    size_t high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranges[middle].last < c) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < count && ranges[low].first <= c;
}

/* These tables have a handful of rows. 0: none holds c. */
static int32_t range_value(const struct range_value *rows, size_t count, int32_t c)
{
    for (size_t i = 0; i < count && rows[i].first <= c; i++) {
        if (c <= rows[i].last) {
            return rows[i].value;
        }
    }
    return 0;
}

size_t codepoint_first(struct slice text, int32_t *c)
{
    size_t most = text.bytes > 4 ? 4 : text.bytes;
    utf8proc_ssize_t read = utf8proc_iterate((const utf8proc_uint8_t *)text.data, (utf8proc_ssize_t)most, c);
    return read > 0 ? (size_t)read : most > 0;
}

bool codepoint_is_space(int32_t c)
{
    return c == ' ' || (c >= '\t' && c <= '\r') || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

static enum codepoint_class ascii_class(int32_t c)
{
    if (c == ' ' || c == '\t' || c == '\n' || c == '\r') {
        return CODEPOINT_SPACE;
    }
    if (c < ' ' || c == 0x7F) {
        return CODEPOINT_DROPPED; /* vertical tab and form feed too: they are controls before they are spaces */
    }
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    return letter ? CODEPOINT_PLAIN : CODEPOINT_PUNCTUATION;
}

static enum codepoint_class category_class(utf8proc_propval_t category)
{
    switch (category) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CO:
        return CODEPOINT_DROPPED;
    case UTF8PROC_CATEGORY_MN:
        return CODEPOINT_MARK;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
        return CODEPOINT_PUNCTUATION;
    default:
        return CODEPOINT_PLAIN;
    }
}

enum codepoint_class codepoint_class(int32_t c)
{
    if (c < 0x80) {
        return ascii_class(c);
    }
    int32_t changed = range_value(CHANGED_CATEGORY, COUNT(CHANGED_CATEGORY), c);
    if (changed != 0) {
        return changed == 1 ? CODEPOINT_MARK : CODEPOINT_PUNCTUATION;
    }
    enum codepoint_class class = category_class(utf8proc_get_property(c)->category);
    if (class == CODEPOINT_DROPPED || c == 0xFFFD) { /* U+0085 is a control before it is a space */
        return range_holds(LATE_CATEGORY, COUNT(LATE_CATEGORY), c) ? CODEPOINT_PLAIN : CODEPOINT_DROPPED;
    }
    if (codepoint_is_space(c)) {
        return CODEPOINT_SPACE;
    }
    if (class != CODEPOINT_PLAIN && range_holds(LATE_CATEGORY, COUNT(LATE_CATEGORY), c)) {
        return CODEPOINT_PLAIN;
    }
    return class;
}

bool codepoint_is_word(int32_t c)
{
    if (c < 0x80) {
        return c == '_' || (c >= '0' && ascii_class(c) == CODEPOINT_PLAIN);
    }
    switch (utf8proc_get_property(c)->category) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
        return true;
    default:
        return range_holds(OTHER_WORD, COUNT(OTHER_WORD), c);
    }
}

bool codepoint_is_cjk(int32_t c)
{
    return (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0xF900 && c <= 0xFAFF) ||
           (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
           (c >= 0x2F800 && c <= 0x2FA1F);
}

size_t codepoint_lower(int32_t c, int32_t out[2])
{
    if (c < 0x80) {
        out[0] = c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
        return 1;
    }
    if (c == 0x130) { /* capital i with a dot: Unicode's only lower case of two code points that needs no context */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = utf8proc_tolower(c);
    if (out[0] == c) {
        out[0] = c + range_value(LATE_LOWER, COUNT(LATE_LOWER), c);
    }
    return 1;
}

/* What a capital sigma asks of its neighbours (Unicode's Final_Sigma): those that are passed over, those that make the
 * word go on, and all others. */
enum casing { CASING_NONE, CASING_CASED, CASING_IGNORED };

static enum casing casing_of(int32_t c)
{
    static const struct range ignored[] = {
        {'\'', '\''},     {'.', '.'},       {':', ':'},       {0xB7, 0xB7},     {0x387, 0x387},   {0x55F, 0x55F},
        {0x5F4, 0x5F4},   {0x2018, 0x2019}, {0x2024, 0x2024}, {0x2027, 0x2027}, {0xFE13, 0xFE13}, {0xFE52, 0xFE52},
        {0xFE55, 0xFE55}, {0xFF07, 0xFF07}, {0xFF0E, 0xFF0E}, {0xFF1A, 0xFF1A},
    };
    static const struct range cased[] = {
        {0xAA, 0xAA},       {0xBA, 0xBA},       {0x2160, 0x217F},   {0x24B6, 0x24E9},
        {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189},
    };
    switch (utf8proc_get_property(c)->category) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
        return CASING_IGNORED;
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
        return CASING_CASED;
    default:
        return range_holds(ignored, COUNT(ignored), c) ? CASING_IGNORED
               : range_holds(cased, COUNT(cased), c)   ? CASING_CASED
                                                       : CASING_NONE;
    }
}

static enum casing front_casing(struct slice text)
{
    enum casing casing = CASING_IGNORED;
    for (int32_t c; text.bytes > 0 && casing == CASING_IGNORED;) {
        size_t bytes = codepoint_first(text, &c);
        casing = casing_of(c);
        text = (struct slice){text.data + bytes, text.bytes - bytes};
    }
    return casing;
}

void text_lower(struct slice text, struct buffer *out)
{
    enum casing before = CASING_NONE;
    while (text.bytes > 0) {
        int32_t c, lower[2];
        const size_t bytes = codepoint_first(text, &c);
        const struct slice rest = {text.data + bytes, text.bytes - bytes};
        const enum casing casing = casing_of(c);
        size_t n = c < 0 ? 0 : codepoint_lower(c, lower);
        if (c == 0x3A3 && before == CASING_CASED && front_casing(rest) != CASING_CASED) {
            lower[0] = 0x3C2; /* a sigma that ends its word */
        }
        if (c < 0) {
            buffer_append(out, text.data, bytes);
        }
        for (size_t i = 0; i < n; i++) {
            char encoded[4];
            buffer_append(out, encoded, (size_t)utf8proc_encode_char(lower[i], (utf8proc_uint8_t *)encoded));
        }
        before = casing == CASING_IGNORED ? before : casing;
        text = rest;
    }
}

size_t codepoint_decompose(int32_t c, int32_t out[CODEPOINT_DECOMPOSED_MAX])
{
    out[0] = c;
    bool hangul = c >= 0xAC00 && c <= 0xD7A3; /* by arithmetic: no entry in the tables */
    if (c < 0xC0 || (!hangul && utf8proc_get_property(c)->decomp_seqindex == UINT16_MAX) ||
        range_holds(LATE_NFD, COUNT(LATE_NFD), c)) {
        return 1;
    }
    int boundary = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char(c, out, CODEPOINT_DECOMPOSED_MAX, UTF8PROC_DECOMPOSE, &boundary);
    return n > 0 ? (size_t)n : 1;
}

uint8_t codepoint_combining_class(int32_t c)
{
    uint8_t combining = c < 0x300 ? 0 : (uint8_t)utf8proc_get_property(c)->combining_class;
    return combining != 0 && range_holds(LATE_NFD, COUNT(LATE_NFD), c) ? 0 : combining;
}
