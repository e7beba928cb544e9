/* UTF-8: see utf8.h. The table of well-formed sequences is Unicode's table 3-7. */
#include "base/utf8.h"

#include <stdint.h>
#include <string.h>

/* Length of the well-formed sequence at s, 0 when there is none. */
static size_t utf8_sequence(const unsigned char *s, size_t bytes)
{
    unsigned char c = s[0];
    if (c < 0x80) {
        return 1;
    }
    size_t length = c >= 0xc2 && c <= 0xdf ? 2 : (c & 0xf0) == 0xe0 ? 3 : c >= 0xf0 && c <= 0xf4 ? 4 : 0;
    if (length == 0 || bytes < length) {
        return 0;
    }
    unsigned char low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    unsigned char high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    if (s[1] < low || s[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return length;
}

size_t utf8_character(const char *data, size_t bytes)
{
    return utf8_sequence((const unsigned char *)data, bytes);
}

bool utf8_steers(const char *character, size_t bytes)
{
    const unsigned char *s = (const unsigned char *)character;
    unsigned c = bytes == 1   ? s[0]
                 : bytes == 2 ? (s[0] & 0x1fu) << 6 | (s[1] & 0x3fu)
                 : bytes == 3 ? (s[0] & 0x0fu) << 12 | (s[1] & 0x3fu) << 6 | (s[2] & 0x3fu)
                              : 0x10000;
    return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x61c || c == 0x200e || c == 0x200f ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
}

size_t utf8_clean(char *out, const char *text, size_t bytes)
{
    size_t used = 0;
    for (size_t i = 0; i < bytes;) {
        size_t length = utf8_character(text + i, bytes - i);
        if (length == 0 || utf8_steers(text + i, length)) {
            out[used++] = '?';
        } else {
            memcpy(out + used, text + i, length);
            used += length;
        }
        i += length ? length : 1;
    }
    return used;
}

size_t utf8_valid_prefix(const char *data, size_t bytes)
{
    const unsigned char *s = (const unsigned char *)data;
    size_t i = 0;
    while (i < bytes) {
        uint64_t eight;
        if (i + 8 <= bytes && (memcpy(&eight, s + i, 8), (eight & 0x8080808080808080u) == 0)) {
            i += 8; /* eight ASCII characters at once */
            continue;
        }
        size_t length = utf8_sequence(s + i, bytes - i);
        if (length == 0) {
            break;
        }
        i += length;
    }
    return i;
}

bool utf8_valid(const char *data, size_t bytes)
{
    return utf8_valid_prefix(data, bytes) == bytes;
}

size_t utf8_cut(const char *data, size_t bytes, size_t max)
{
    if (bytes <= max) {
        return bytes;
    }
    size_t end = max;
    while (end > 0 && ((unsigned char)data[end] & 0xc0) == 0x80) {
        end--;
    }
    return end;
}
