/* oneDNN 3's calls for where oneDNN 2 is (Debian 12): onednn.c is written for 3 and includes this. What differs: in 2 a
 * memory descriptor is a struct of the caller's, in 3 an object behind a pointer; 2 has an operation descriptor between
 * the matmul and its primitive descriptor. A layout_handle is a descriptor that its owner destroys, a layout_view one
 * that it must not. Goes when Debian 12 does. */
#ifndef ENGRAM_GPU_CPU_ONEDNN2_H
#define ENGRAM_GPU_CPU_ONEDNN2_H

#include <oneapi/dnnl/dnnl.h>

#if DNNL_VERSION_MAJOR >= 3

typedef dnnl_memory_desc_t layout_handle;
typedef const_dnnl_memory_desc_t layout_view;

#else

#include <stdlib.h>

#include "base/buffer.h"

typedef dnnl_memory_desc_t *layout_handle;
typedef const dnnl_memory_desc_t *layout_view;

static inline dnnl_status_t dnnl_memory_desc_create_with_tag(layout_handle *out, int rank, const dnnl_dims_t shape,
                                                             dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    *out = mem_zero(1, sizeof **out);
    return dnnl_memory_desc_init_by_tag(*out, rank, shape, type, tag);
}

static inline dnnl_status_t dnnl_memory_desc_create_with_strides(layout_handle *out, int rank, const dnnl_dims_t shape,
                                                                 dnnl_data_type_t type, const dnnl_dims_t strides)
{
    *out = mem_zero(1, sizeof **out);
    return dnnl_memory_desc_init_by_strides(*out, rank, shape, type, strides);
}

static inline dnnl_status_t dnnl_memory_desc_create_submemory(layout_handle *out, layout_view of,
                                                              const dnnl_dims_t shape, const dnnl_dims_t begin)
{
    *out = mem_zero(1, sizeof **out);
    return dnnl_memory_desc_init_submemory(*out, of, shape, begin);
}

static inline dnnl_status_t dnnl_memory_desc_clone(layout_handle *out, layout_view from)
{
    *out = mem_zero(1, sizeof **out);
    **out = *from;
    return dnnl_success;
}

static inline dnnl_status_t dnnl_memory_desc_destroy(layout_handle layout)
{
    free(layout);
    return dnnl_success;
}

static inline dnnl_status_t dnnl_matmul_primitive_desc_create(dnnl_primitive_desc_t *out, dnnl_engine_t engine,
                                                              layout_view source, layout_view weights, layout_view bias,
                                                              layout_view target,
                                                              const_dnnl_primitive_attr_t attributes)
{
    dnnl_matmul_desc_t matmul;
    dnnl_status_t status = dnnl_matmul_desc_init(&matmul, source, weights, bias, target);
    return status != dnnl_success ? status : dnnl_primitive_desc_create(out, &matmul, attributes, engine, NULL);
}

#endif

#endif
