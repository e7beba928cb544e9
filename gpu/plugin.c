/* Loads a backend that is a shared library: see the end of backend.h. The program is linked without -rdynamic, so a
 * plug-in sees none of its functions: what it may call is in `host`. */
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "gpu/backend.h"

static void log_line(enum log_level level, const char *format, va_list arguments)
{
    char line[2048];
    vsnprintf(line, sizeof line, format, arguments);
    log_write(level, "%s", line);
}

static void host_log_info(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    log_line(LOG_LEVEL_INFO, format, arguments);
    va_end(arguments);
}

static void host_log_warn(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    log_line(LOG_LEVEL_WARN, format, arguments);
    va_end(arguments);
}

static const struct backend_host host = {error_set, host_log_info, host_log_warn};

/* The plug-in of a loaded library; NULL: it is none that this program can use. */
static const struct backend_plugin *plugin_of(void *library, const char *path, struct error *e)
{
    union {
        void *symbol;
        backend_plugin_function *function; /* ISO C has no cast from one to the other, POSIX has */
    } found = {dlsym(library, BACKEND_SYMBOL)};
    if (!found.symbol) {
        error_set(e, ERROR_FATAL, E_INTERNAL, "%s is no plug-in of Engram: it has no symbol " BACKEND_SYMBOL, path);
        return NULL;
    }
    const struct backend_plugin *plugin = found.function();
    if (!plugin || plugin->abi != BACKEND_ABI) {
        error_set(e, ERROR_FATAL, E_INTERNAL,
                  "the plug-in %s has ABI %u, this version of Engram needs %u: use the plug-in that came with it", path,
                  plugin ? plugin->abi : 0, BACKEND_ABI);
        return NULL;
    }
    return plugin;
}

int backend_plugin_open(struct backend **out, const char *path, const struct backend_options *options, struct error *e)
{
    char here[4096];
    *out = NULL;
    if (access(path, F_OK) != 0) {
        return error_set(e, ERROR_FATAL, E_NOT_FOUND, "the plug-in %s cannot be loaded: %s", path, strerror(errno));
    }
    /* dlopen looks for a bare name in the system's folders */
    snprintf(here, sizeof here, "%s%s", strchr(path, '/') ? "" : "./", path);
    void *library = dlopen(here, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        return error_set(e, ERROR_FATAL, E_NOT_FOUND, "the plug-in %s cannot be loaded: %s", path, dlerror());
    }
    const struct backend_plugin *plugin = plugin_of(library, path, e);
    if (!plugin) {
        dlclose(library);
        return -1;
    }
    struct backend_options settled = *options;
    settled.threads = options->threads ? options->threads : threads_allowed();
    return plugin->open(out, &settled, &host, e); /* the library stays loaded: the backend's code is in it */
}
