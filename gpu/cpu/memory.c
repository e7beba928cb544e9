/* Memory of the device, which on a CPU is the process's own: zeroed, since padding rows are computed, never on denormal
 * rubbish. Where the process has none left, mem_aligned ends it with one line. */
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "gpu/cpu/internal.h"

void *memory_zero(size_t bytes)
{
    void *memory = mem_aligned(64, bytes);
    memset(memory, 0, bytes);
    return memory;
}

void *memory_grow(void **memory, size_t *have, size_t bytes)
{
    if (*have < bytes) {
        free(*memory);
        *memory = memory_zero(bytes);
        *have = bytes;
    }
    return *memory;
}
