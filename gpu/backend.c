/* What every backend shares: see backend.h. */
#include "gpu/backend.h"

void backend_close(struct backend *b)
{
    if (b) {
        b->ops->close(b);
    }
}

size_t dtype_bytes(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? 2 : 4;
}

size_t tensor_bytes(const struct backend *b, enum dtype dtype, size_t rows, size_t columns)
{
    const size_t multiple = b->facts.row_multiple;
    return (rows + multiple - 1) / multiple * multiple * columns * dtype_bytes(dtype);
}

int tensor_alloc(struct backend *b, struct tensor *out, enum dtype dtype, size_t rows, size_t columns, struct error *e)
{
    *out = (struct tensor){.dtype = dtype, .rows = rows, .columns = columns};
    return b->ops->alloc(b, tensor_bytes(b, dtype, rows, columns), &out->data, e);
}

void tensor_release(struct backend *b, struct tensor *t)
{
    b->ops->release(b, t->data);
    *t = (struct tensor){0};
}
