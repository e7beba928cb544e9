// A plug-in that an Engram of other times would take, and the proof that gpu/backend.h is C++ too.
#include "gpu/backend.h"

static int other_open(struct backend **out, const struct backend_options *options, const struct backend_host *host,
                      struct error *e)
{
    *out = nullptr;
    return host->error_set(e, ERROR_FATAL, E_INTERNAL, "opened for compute %d", static_cast<int>(options->compute));
}

extern "C" const struct backend_plugin *engram_backend()
{
    static const struct backend_plugin plugin = {BACKEND_ABI + 41, other_open};
    return &plugin;
}
