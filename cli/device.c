/* Which device computes: the CPU, or GPUs by the plug-in for CUDA. A binary has that plug-in beside itself (a build) or
 * in ../lib/engram (installed); that it is there is all that `auto` goes by, and where it cannot be used the CPU takes
 * its place. A device that the user named and that is not there is an error in every case. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/internal.h"

#define PLUGIN "libengram_cuda.so"

char *cli_beside(const char *name, const char *installed)
{
    char binary[PATH_MAX];
    struct buffer path = {0};
    ssize_t bytes = readlink("/proc/self/exe", binary, sizeof binary - 1);
    if (bytes <= 0) {
        return NULL;
    }
    binary[bytes] = '\0';
    *strrchr(binary, '/') = '\0';
    buffer_format(&path, "%s/%s", binary, name);
    char *slash = strrchr(binary, '/');
    if (access(path.data, F_OK) != 0 && slash) {
        *slash = '\0'; /* PREFIX/bin/engram */
        buffer_clear(&path);
        buffer_format(&path, "%s/%s", binary, installed);
    }
    if (access(path.data, F_OK) != 0) {
        buffer_free(&path);
        return NULL;
    }
    return path.data;
}

static int cuda_open(struct backend **out, const struct backend_options *options, const char *plugin, struct error *e)
{
    if (!plugin) {
        return error_set(e, ERROR_FATAL, E_NOT_FOUND,
                         "device = cuda needs the plug-in " PLUGIN
                         ", which is neither beside this program nor in ../lib/engram: `make cuda` builds it");
    }
    return backend_plugin_open(out, plugin, options, e);
}

int cli_backend_open(struct backend **out, const struct config *config, struct error *why, struct error *e)
{
    static const enum compute computes[] = {
        [CONFIG_COMPUTE_AUTO] = COMPUTE_AUTO, [CONFIG_COMPUTE_F32] = COMPUTE_F32, [CONFIG_COMPUTE_BF16] = COMPUTE_BF16};
    int devices[CONFIG_DEVICES_MAX];
    const struct backend_options options = {
        .threads = (size_t)config->threads,
        .compute = computes[config->compute],
        .devices = devices,
        .devices_count = config_devices(config, devices),
    };
    char *plugin = config->device == CONFIG_DEVICE_CPU ? NULL : cli_beside(PLUGIN, "lib/engram/" PLUGIN);
    int result = -1;
    *out = NULL;
    *why = (struct error){.kind = ERROR_NONE};
    if (config->device == CONFIG_DEVICE_CUDA) {
        result = cuda_open(out, &options, plugin, e);
    } else if (plugin) {
        result = backend_plugin_open(out, plugin, &options, why);
    }
    if (result && why->code == E_USAGE) { /* of an option: not for the CPU to pass over */
        error_set(e, why->kind, why->code, "%s", why->text);
    } else if (result && config->device != CONFIG_DEVICE_CUDA) {
        result = backend_cpu_open(out, &options, e);
    }
    free(plugin);
    return result;
}

void cli_device(const struct backend *b, struct buffer *out)
{
    const struct backend_facts *facts = &b->facts;
    buffer_string(out, facts->name);
    if (facts->device) {
        buffer_format(out, " (%s)", facts->device);
    }
}
