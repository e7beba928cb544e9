/* The log: one line an event on standard error, as text or JSON. Any thread may log; a line is one write(2).
 * Set up once by main() before threads start; until then info and above go out as text. The level may change later. */
#ifndef ENGRAM_BASE_LOG_H
#define ENGRAM_BASE_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

void log_setup(enum log_level level, bool json);
void log_set_level(enum log_level level); /* any thread, at any time */
bool log_enabled(enum log_level level);

/* The message is one line of UTF-8: whatever ends lines, steers a terminal, turns the writing direction or is no UTF-8
 * (a key from outside may hold some) is written as '?'. What is longer than about 2,000 bytes is cut. */
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* How often something that may repeat without end is logged. Zeroed: nothing yet. */
struct log_limit {
    _Atomic uint64_t minute;   /* the one that is counted */
    _Atomic unsigned logged;   /* in it */
    _Atomic unsigned left_out; /* since the last line */
};

/* Writes at most LOG_LIMIT_LINES lines a minute; the first one after some were left out says how many. False: it was
 * left out. */
enum { LOG_LIMIT_LINES = 10 };
bool log_limited(struct log_limit *limit, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A message of at most 2,000 bytes as it is, whatever the level is set to. A signal handler may call it. */
void log_text(enum log_level level, const char *message);

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
