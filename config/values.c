/* One value at a time: set with its source, said where it is from; and the warnings that wait for the log. What every
 * source (file, environment, flags) puts its values through. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "config/internal.h"

void config_warn(struct config *config, const char *format, ...)
{
    struct config_private *p = config->private;
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    p->warnings = mem_resize(p->warnings, (p->warnings_count + 1) * sizeof *p->warnings);
    p->warnings[p->warnings_count++] = mem_string(text, strlen(text));
}

int config_set(struct config *config, const struct option *o, const char *text, struct source source, const char *where,
               struct error *e)
{
    if (option_set(config, o, text, e)) {
        return error_wrap(e, "%s", where);
    }
    config->private->sources[o - config_options] = source;
    return 0;
}

void config_where(const struct config *config, const struct option *o, struct buffer *out)
{
    struct source source = config->private->sources[o - config_options];
    switch (source.origin) {
    case ORIGIN_FILE:
        buffer_format(out, "%s:%zu", config->private->file, source.line);
        break;
    case ORIGIN_ENVIRONMENT:
        option_environment(o, out);
        break;
    case ORIGIN_FLAG:
        option_flag(o, out);
        break;
    default:
        buffer_string(out, "default");
    }
}
