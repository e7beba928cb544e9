/* The one error type. A function that can fail returns 0 or -1 and, on -1, has filled the `struct error *` that it was
 * handed (NULL is allowed: then the reason is dropped). Nothing here allocates, prints or exits.
 * The kind says what the caller does; the code names the fault for machines (dead letters, metrics); the text is one
 * line for a person: what, where, what to do. */
#ifndef ENGRAM_BASE_ERROR_H
#define ENGRAM_BASE_ERROR_H

#include <stdarg.h>

enum error_class {
    ERROR_NONE = 0,
    ERROR_RETRY,  /* the same input again, later */
    ERROR_POISON, /* this input can never work: dead-letter it */
    ERROR_FATAL,  /* stop the process, lose nothing */
};

/* Stable names: they travel in the dead letters' header __connect.errors.exception.class.name. */
#define ERROR_CODES(X)                                                                                                 \
    X(OK)            /* no error */                                                                                    \
    X(USAGE)         /* a wrong flag, option or value: exit status 2 */                                                \
    X(IO)            /* a file cannot be read or written */                                                            \
    X(FORMAT)        /* not JSON or MessagePack, cut short, trailing bytes, too deep */                                \
    X(SCHEMA_FRAME)  /* first byte 0x00: a schema registry's frame */                                                  \
    X(FIELD)         /* a missing or mistyped field */                                                                 \
    X(UTF8)          /* invalid UTF-8 */                                                                               \
    X(NUL)           /* a NUL character where none may be */                                                           \
    X(LIMIT)         /* over one of the record format's limits */                                                      \
    X(KEY)           /* a record key that names nothing, or disagrees with the value */                                \
    X(TOO_LARGE)     /* the broker refused a record for its size */                                                    \
    X(REFUSED)       /* the broker refused this very record for another reason */                                      \
    X(BROKER)        /* not reachable, not authorised, lost leader, time-out */                                        \
    X(TOPIC)         /* a topic is missing or is not what it must be */                                                \
    X(FENCED)        /* the same instance_id runs elsewhere */                                                         \
    X(MODEL)         /* not a model folder that we can run */                                                          \
    X(FINGERPRINT)   /* a memory of another encoder or format */                                                       \
    X(CORRUPT)       /* a checksum or a structure does not hold */                                                     \
    X(LOCKED)        /* another process writes to this memory */                                                       \
    X(MAP_FULL)      /* map_size is used up */                                                                         \
    X(DEVICE_MEMORY) /* the device has no memory left for this much at once */                                         \
    X(DISK_FULL)     /* no space left on the device, or the process's limit on file sizes is reached */                \
    X(KEYS_MAX)      /* keys_max is reached */                                                                         \
    X(NOT_FOUND)     /* no such id, label, file */                                                                     \
    X(INTERNAL)      /* a fault of ours or of a library below us */

#define ERROR_CODE_ENUM(name) E_##name,
enum error_code { ERROR_CODES(ERROR_CODE_ENUM) };

struct error {
    enum error_class kind;
    enum error_code code;
    char text[1024];
};

/* Fills *e (when not NULL) and returns -1, so that a caller can `return error_set(...)`. */
int error_set(struct error *e, enum error_class kind, enum error_code code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts a prefix and ": " before the text that *e already holds; returns -1. */
int error_wrap(struct error *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "MAP_FULL" for E_MAP_FULL; never NULL. */
const char *error_code_name(enum error_code code);

#endif
