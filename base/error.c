/* Errors: see error.h. */
#include "base/error.h"

#include <stdio.h>
#include <string.h>

int error_set(struct error *e, enum error_class kind, enum error_code code, const char *format, ...)
{
    if (!e) {
        return -1;
    }
    char text[sizeof e->text]; /* the arguments may point into e->text */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    e->kind = kind;
    e->code = code;
    memcpy(e->text, text, sizeof text);
    return -1;
}

int error_wrap(struct error *e, const char *format, ...)
{
    if (!e) {
        return -1;
    }
    char prefix[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(prefix, sizeof prefix, format, arguments);
    va_end(arguments);
    return error_set(e, e->kind, e->code, "%s: %s", prefix, e->text);
}

const char *error_code_name(enum error_code code)
{
#define ERROR_CODE_NAME(name) #name,
    static const char *const names[] = {ERROR_CODES(ERROR_CODE_NAME)};
    return (size_t)code < sizeof names / sizeof *names ? names[code] : "INTERNAL";
}
