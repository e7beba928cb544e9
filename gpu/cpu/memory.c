/* A stream's growing memory: for activations, and for oneDNN's scratchpad. */
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "gpu/cpu/internal.h"

float *memory_grow(float **memory, size_t *have, size_t floats)
{
    if (*have < floats) {
        free(*memory);
        *memory = mem_aligned(64, floats * sizeof **memory);
        memset(*memory, 0, floats * sizeof **memory); /* padding rows are computed: never on denormal rubbish */
        *have = floats;
    }
    return *memory;
}
