/* The log: see log.h. */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/utf8.h"

enum {
    MESSAGE_BYTES = 2048,
    HEAD_BYTES = 128,
    TAIL_BYTES = 8,
    MINUTE_US = 60 * 1000 * 1000,
};

static _Atomic enum log_level log_threshold = LOG_LEVEL_INFO;
static bool log_json = false;

void log_setup(enum log_level level, bool json)
{
    log_set_level(level);
    log_json = json;
}

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&log_threshold, level, memory_order_relaxed);
}

bool log_enabled(enum log_level level)
{
    return level <= atomic_load_explicit(&log_threshold, memory_order_relaxed);
}

static char *number_put(char *out, unsigned digits, uint64_t number)
{
    for (unsigned i = digits; i-- > 0; number /= 10) {
        out[i] = (char)('0' + number % 10);
    }
    return out + digits;
}

/* "2026-01-31T23:59:59.999Z", with nothing that a signal handler may not call. */
static size_t log_stamp(char *out)
{
    struct timespec now;
    unsigned year, month, day;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seconds = now.tv_sec > 0 ? (uint64_t)now.tv_sec : 0, of_day = seconds % 86400;
    clock_date(seconds / 86400, &year, &month, &day);
    const struct {
        unsigned digits;
        uint64_t number;
        char after;
    } parts[] = {{4, year, '-'},
                 {2, month, '-'},
                 {2, day, 'T'},
                 {2, of_day / 3600, ':'},
                 {2, of_day / 60 % 60, ':'},
                 {2, of_day % 60, '.'},
                 {3, (uint64_t)now.tv_nsec / 1000000, 'Z'}};
    char *at = out;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        at = number_put(at, parts[i].digits, parts[i].number);
        *at++ = parts[i].after;
    }
    return (size_t)(at - out);
}

/* Copies a message as the inside of a JSON string (json) or as it is: at most twice its bytes. */
static size_t log_clean(char *out, const char *message, bool json)
{
    char clean[MESSAGE_BYTES];
    size_t bytes = utf8_clean(clean, message, strnlen(message, MESSAGE_BYTES - 1));
    size_t used = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (json && (clean[i] == '"' || clean[i] == '\\')) {
            out[used++] = '\\';
        }
        out[used++] = clean[i];
    }
    return used;
}

static char *string_put(char *out, const char *string)
{
    size_t bytes = strlen(string);
    memcpy(out, string, bytes);
    return out + bytes;
}

void log_text(enum log_level level, const char *message)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    char line[HEAD_BYTES + 2 * MESSAGE_BYTES + TAIL_BYTES];
    char *at = log_json ? string_put(line, "{\"time\":\"") : line;
    at += log_stamp(at);
    at = string_put(at, log_json ? "\",\"level\":\"" : " ");
    at = string_put(at, names[level]);
    at = string_put(at, log_json ? "\",\"message\":\"" : strlen(names[level]) < 5 ? "  " : " ");
    at += log_clean(at, message, log_json);
    at = string_put(at, log_json ? "\"}\n" : "\n");
    for (const char *from = line; from < at;) {
        ssize_t n = write(STDERR_FILENO, from, (size_t)(at - from));
        if (n < 0 && errno != EINTR) {
            return; /* nobody reads our log: nothing better to do */
        }
        from += n > 0 ? n : 0;
    }
}

void log_write(enum log_level level, const char *format, ...)
{
    if (!log_enabled(level)) {
        return;
    }
    char message[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    log_text(level, message);
}

bool log_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
{
    if (!log_enabled(level)) {
        return false;
    }
    uint64_t minute = clock_us() / MINUTE_US + 1;
    if (atomic_exchange(&limit->minute, minute) != minute) {
        atomic_store(&limit->logged, 0);
    }
    if (atomic_fetch_add(&limit->logged, 1) >= LOG_LIMIT_LINES) {
        atomic_fetch_add(&limit->left_out, 1);
        return false;
    }
    char message[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int bytes = vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    unsigned left_out = atomic_exchange(&limit->left_out, 0);
    if (left_out && bytes >= 0 && (size_t)bytes < sizeof message) {
        snprintf(message + bytes, sizeof message - (size_t)bytes, " (and %u lines like this before it)", left_out);
    }
    log_text(level, message);
    return true;
}
