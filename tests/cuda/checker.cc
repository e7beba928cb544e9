// The checker of what kernels and the .cu files' host code touch.
#include "internal.h"

#if !defined(EMULATED_CHECKED)

namespace emulated
{

void checker_access(const void *, size_t, unsigned) {}

void checker_kernel_begin(struct machine *) {}

void checker_barrier(struct machine *) {}

void checker_collective(struct warp *, unsigned) {}

} // namespace emulated

#endif
