/* What every backend shares: see backend.h. */
#include "gpu/backend.h"

void backend_close(struct backend *b)
{
    if (b) {
        b->ops->close(b);
    }
}
