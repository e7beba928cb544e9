/* Reads one .safetensors file: 8 bytes of header length, a JSON header, then the tensors' bytes. Room-internal.
 * The file is mapped, nothing is copied; whatever the header claims is checked against the file's size before use. */
#ifndef ENGRAM_GPU_ENCODER_SAFETENSORS_H
#define ENGRAM_GPU_ENCODER_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct safetensors;

enum tensor_dtype { TENSOR_F32, TENSOR_F16, TENSOR_BF16 };

#define TENSOR_RANK_MAX 4

/* A tensor in the file, row-major, little-endian; bytes may be unaligned. Valid until the file is closed. */
struct stored_tensor {
    const uint8_t *bytes;
    size_t byte_count;
    size_t count; /* of numbers */
    enum tensor_dtype dtype;
    size_t rank;
    size_t shape[TENSOR_RANK_MAX];
};

/* Errors are FATAL E_MODEL and name the file. The caller closes it. */
int safetensors_open(struct safetensors **out, const char *path, struct error *e);
void safetensors_close(struct safetensors *s); /* NULL is fine */

/* 1: *out is the tensor; 0: there is none of that name; -1: there is, but it is broken or of a dtype that we do not
 * read. */
int safetensors_find(const struct safetensors *s, const char *name, struct stored_tensor *out, struct error *e);

const char *tensor_dtype_name(enum tensor_dtype dtype); /* "F32", as in the header */

/* Numbers first .. first + count - 1 as f32. */
void tensor_read(const struct stored_tensor *t, size_t first, size_t count, float *out);

#endif
