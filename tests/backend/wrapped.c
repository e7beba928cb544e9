/* Linked with -Wl,--wrap=backend_cpu_open: whoever opens the CPU backend gets tests/backend/apart/ instead. */
#include "gpu/backend.h"
#include "tests/backend/beside.h"

#ifndef OPENS_APART
#define OPENS_APART (void)0
#endif

int __wrap_backend_cpu_open(struct backend **out, const struct backend_options *options, struct error *e);

int __wrap_backend_cpu_open(struct backend **out, const struct backend_options *options, struct error *e)
{
    char path[PATH_MAX];
    OPENS_APART;
    return backend_plugin_open(out, beside(path, APART), options, e);
}
