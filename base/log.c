/* The log: see log.h. */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 4096 };

static enum log_level log_threshold = LOG_LEVEL_INFO;
static bool log_json = false;

void log_setup(enum log_level level, bool json)
{
    log_threshold = level;
    log_json = json;
}

bool log_enabled(enum log_level level)
{
    return level <= log_threshold;
}

static size_t log_stamp(char *out, size_t bytes)
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t used = strftime(out, bytes, "%Y-%m-%dT%H:%M:%S", &utc);
    return used + (size_t)snprintf(out + used, bytes - used, ".%03ldZ", now.tv_nsec / 1000000);
}

/* Copies a message as the inside of a JSON string (json) or as it is; control characters become '?'. */
static size_t log_clean(char *out, size_t bytes, const char *message, bool json)
{
    size_t used = 0;
    for (const char *c = message; *c && used + 3 < bytes; c++) {
        if (json && (*c == '"' || *c == '\\')) {
            out[used++] = '\\';
        }
        out[used++] = (unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c;
    }
    return used;
}

void log_write(enum log_level level, const char *format, ...)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    if (!log_enabled(level)) {
        return;
    }
    char message[LINE_BYTES / 2];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);

    char line[LINE_BYTES + 128];
    char stamp[40];
    log_stamp(stamp, sizeof stamp);
    int head = snprintf(line, sizeof line, log_json ? "{\"time\":\"%s\",\"level\":\"%s\",\"message\":\"" : "%s %-5s ",
                        stamp, names[level]);
    size_t used = (size_t)head;
    used += log_clean(line + used, sizeof line - used - 3, message, log_json);
    memcpy(line + used, log_json ? "\"}\n" : "\n", log_json ? 3 : 1);
    used += log_json ? 3 : 1;
    for (size_t sent = 0; sent < used;) {
        ssize_t n = write(STDERR_FILENO, line + sent, used - sent);
        if (n <= 0) {
            return; /* nobody reads our log: nothing better to do */
        }
        sent += (size_t)n;
    }
}
