/* The log: one line an event on standard error, as text or JSON. Any thread may log; a line is one write(2).
 * Set up once by main() before threads start; until then info and above go out as text. */
#ifndef ENGRAM_BASE_LOG_H
#define ENGRAM_BASE_LOG_H

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

void log_setup(enum log_level level, bool json);
bool log_enabled(enum log_level level);

/* The message is one line: control characters in it (a key from outside may hold some) are written as '?'. */
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
