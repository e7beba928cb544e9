/* See safetensors.h. Touches the one file that it maps. */
#include "gpu/encoder/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buffer.h"
#include "base/json.h"

#define HEADER_MAX ((size_t)16 << 20) /* bytes; a model of 1,000 layers has 2 MB of it */

struct safetensors {
    char *path;
    const uint8_t *file;
    size_t file_bytes;
    const uint8_t *data; /* after the header */
    size_t data_bytes;
    struct arena arena;
    const struct json *header;
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {[TENSOR_F32] = {"F32", 4}, [TENSOR_F16] = {"F16", 2}, [TENSOR_BF16] = {"BF16", 2}};

const char *tensor_dtype_name(enum tensor_dtype dtype)
{
    return dtypes[dtype].name;
}

static int file_map(struct safetensors *s, struct error *e)
{
    int result = -1;
    struct stat status;
    int fd = open(s->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) != 0) {
        error_set(e, ERROR_FATAL, E_MODEL, "%s: %s", s->path, strerror(errno));
        goto done;
    }
    if (!S_ISREG(status.st_mode) || status.st_size < 8) {
        error_set(e, ERROR_FATAL, E_MODEL, "%s is not a safetensors file", s->path);
        goto done;
    }
    void *file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (file == MAP_FAILED) {
        error_set(e, ERROR_FATAL, E_MODEL, "%s: cannot be mapped: %s", s->path, strerror(errno));
        goto done;
    }
    s->file = file;
    s->file_bytes = (size_t)status.st_size;
    result = 0;
done:
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

int safetensors_open(struct safetensors **out, const char *path, struct error *e)
{
    int result = -1;
    struct safetensors *s = mem_zero(1, sizeof *s);
    s->path = mem_string(path, strlen(path));
    if (file_map(s, e) != 0) {
        goto done;
    }
    uint64_t header_bytes = 0;
    for (size_t i = 0; i < 8; i++) {
        header_bytes |= (uint64_t)s->file[i] << (8 * i);
    }
    if (header_bytes > s->file_bytes - 8 || header_bytes > HEADER_MAX) {
        error_set(e, ERROR_FATAL, E_MODEL,
                  "%s is not a safetensors file, or is cut short: its header claims %llu of %zu bytes", path,
                  (unsigned long long)header_bytes, s->file_bytes);
        goto done;
    }
    struct slice text = {(const char *)s->file + 8, (size_t)header_bytes};
    struct error reason = {0};
    if (json_parse(text, 8, &s->arena, &s->header, &reason) != 0 || s->header->type != JSON_OBJECT) {
        error_set(e, ERROR_FATAL, E_MODEL, "%s is not a safetensors file: header: %s", path,
                  reason.kind == ERROR_NONE ? "not a JSON object" : reason.text);
        goto done;
    }
    s->data = s->file + 8 + header_bytes;
    s->data_bytes = s->file_bytes - 8 - (size_t)header_bytes;
    *out = s;
    s = NULL;
    result = 0;
done:
    safetensors_close(s);
    return result;
}

void safetensors_close(struct safetensors *s)
{
    if (!s) {
        return;
    }
    if (s->file) {
        union {
            const uint8_t *file;
            void *handle;
        } map = {s->file};
        munmap(map.handle, s->file_bytes);
    }
    arena_free(&s->arena);
    free(s->path);
    free(s);
}

static int dtype_find(const struct json *value, enum tensor_dtype *out)
{
    for (size_t i = 0; value && value->type == JSON_STRING && i < sizeof dtypes / sizeof *dtypes; i++) {
        if (slice_equal(value->text, slice_of(dtypes[i].name))) {
            *out = (enum tensor_dtype)i;
            return 0;
        }
    }
    return -1;
}

/* The shape and its product of numbers; -1 where it is none, too deep, or too large to be true. */
static int shape_read(const struct json *value, size_t limit, struct stored_tensor *t)
{
    if (!value || value->type != JSON_ARRAY || value->count > TENSOR_RANK_MAX) {
        return -1;
    }
    t->count = 1;
    for (const struct json *j = value->child; j; j = j->next) {
        int64_t n;
        if (!json_int(j, &n) || n < 1 || (uint64_t)n > limit / t->count) {
            return -1;
        }
        t->shape[t->rank++] = (size_t)n;
        t->count *= (size_t)n;
    }
    return 0;
}

int safetensors_find(const struct safetensors *s, const char *name, struct stored_tensor *out, struct error *e)
{
    const struct json *entry = json_member(s->header, name);
    if (!entry) {
        return 0;
    }
    struct stored_tensor t = {0};
    const struct json *dtype = entry->type == JSON_OBJECT ? json_member(entry, "dtype") : NULL;
    if (dtype_find(dtype, &t.dtype) != 0) {
        return error_set(e, ERROR_FATAL, E_MODEL, "%s: tensor %s has dtype %.20s; F32, F16 and BF16 are read", s->path,
                         name, dtype && dtype->type == JSON_STRING ? dtype->text.data : "?");
    }
    const struct json *offsets = json_member(entry, "data_offsets");
    int64_t begin, end;
    if (shape_read(json_member(entry, "shape"), s->data_bytes, &t) != 0 || !offsets || offsets->type != JSON_ARRAY ||
        offsets->count != 2 || !json_int(offsets->child, &begin) || !json_int(offsets->child->next, &end) ||
        begin < 0 || end < begin || (uint64_t)(end - begin) != t.count * dtypes[t.dtype].bytes) {
        return error_set(e, ERROR_FATAL, E_MODEL, "%s: tensor %s: its shape and its bytes do not agree", s->path, name);
    }
    if ((uint64_t)end > s->data_bytes) {
        return error_set(e, ERROR_FATAL, E_MODEL, "%s is cut short: tensor %s ends after the end of the file", s->path,
                         name);
    }
    t.bytes = s->data + begin;
    t.byte_count = (size_t)(end - begin);
    *out = t;
    return 1;
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

static float float_of_bits(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float float_of_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) { /* zero or a denormal half: fraction * 2^-24, exact in f32 */
        float f = (float)fraction * 0x1p-24F;
        return sign ? -f : f;
    }
    return float_of_bits(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

void tensor_read(const struct stored_tensor *t, size_t first, size_t count, float *out)
{
    const uint8_t *bytes = t->bytes + first * dtypes[t->dtype].bytes;
    if (t->dtype == TENSOR_F32) {
        memcpy(out, bytes, count * sizeof *out);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint16_t half = (uint16_t)(bytes[2 * i] | bytes[2 * i + 1] << 8);
        out[i] = t->dtype == TENSOR_F16 ? float_of_half(half) : float_of_bits((uint32_t)half << 16);
    }
}
