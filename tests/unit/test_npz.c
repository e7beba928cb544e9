/* base/npz: matrices drawn here and written with libzip come back row by row, in every type that SciPy writes, stored
 * and deflated; each way in which the arrays can disagree is refused in one line; and of a file that is cut at any
 * length, or has any byte changed, either every row comes back as it was or none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <zip.h>

#include "base/buffer.h"
#include "base/npz.h"
#include "tests/unit/files.h"

static char folder[] = "/tmp/test_npz.XXXXXX";
static char path[128];

struct entry {
    const char *name;
    struct buffer bytes;
};

enum { FORMAT, SHAPE, INDPTR, INDICES, DATA, ENTRIES };

struct archive {
    struct entry entries[ENTRIES];
};

static void entry_write(struct entry *out, const char *name, const char *header, const void *data, size_t bytes)
{
    size_t header_bytes = strlen(header) + 1;
    out->name = name;
    buffer_clear(&out->bytes);
    buffer_append(&out->bytes, "\x93NUMPY\x01\x00", 8);
    buffer_byte(&out->bytes, (char)(header_bytes & 0xff));
    buffer_byte(&out->bytes, (char)(header_bytes >> 8));
    buffer_string(&out->bytes, header);
    buffer_byte(&out->bytes, '\n');
    buffer_append(&out->bytes, data, bytes);
}

static void array_write(struct entry *out, const char *name, const char *type, size_t items, const void *data,
                        size_t bytes)
{
    char header[160];
    snprintf(header, sizeof header, "{'descr': '%s', 'fortran_order': False, 'shape': (%zu,), }", type, items);
    entry_write(out, name, header, data, bytes);
}

/* Whole numbers as items of `width` bytes. */
static void numbers_write(struct entry *out, const char *name, size_t width, const int64_t *numbers, size_t count)
{
    struct buffer data = {0};
    for (size_t i = 0; i < count; i++) {
        int32_t narrow = (int32_t)numbers[i];
        buffer_append(&data, width == 4 ? (const void *)&narrow : (const void *)&numbers[i], width);
    }
    array_write(out, name, width == 4 ? "<i4" : "<i8", count, data.data, data.bytes);
    buffer_free(&data);
}

/* The matrix [[0 7 0] [0 0 0] [1 0 5]], with one zero that is stored: row 1, column 2. */
static void small_write(struct archive *a, size_t width)
{
    static const int64_t shape[] = {3, 3}, indptr[] = {0, 1, 2, 4}, indices[] = {1, 2, 0, 2};
    static const float data[] = {7, -0.0F, 1, 5};
    *a = (struct archive){0};
    entry_write(&a->entries[FORMAT], "format.npy", "{'descr': '|S3', 'fortran_order': False, 'shape': (), }", "csr", 3);
    numbers_write(&a->entries[SHAPE], "shape.npy", 8, shape, 2);
    numbers_write(&a->entries[INDPTR], "indptr.npy", width, indptr, 4);
    numbers_write(&a->entries[INDICES], "indices.npy", width, indices, 4);
    array_write(&a->entries[DATA], "data.npy", "<f4", 4, data, sizeof data);
}

static void archive_free(struct archive *a)
{
    for (int i = 0; i < ENTRIES; i++) {
        buffer_free(&a->entries[i].bytes);
    }
}

static void archive_save(const struct archive *a, bool deflated)
{
    int code;
    unlink(path);
    zip_t *zip = zip_open(path, ZIP_CREATE, &code);
    assert_non_null(zip);
    for (int i = 0; i < ENTRIES; i++) {
        if (a->entries[i].bytes.bytes) {
            zip_source_t *source = zip_source_buffer(zip, a->entries[i].bytes.data, a->entries[i].bytes.bytes, 0);
            zip_int64_t index = zip_file_add(zip, a->entries[i].name, source, 0);
            assert_true(index >= 0);
            zip_set_file_compression(zip, (zip_uint64_t)index, deflated ? ZIP_CM_DEFLATE : ZIP_CM_STORE, 0);
        }
    }
    assert_int_equal(zip_close(zip), 0);
}

/* "3x3 [1] [] [0 2]", or "!" and the error's text. */
static char *matrix_read(void)
{
    struct buffer out = {0};
    struct error e = {0};
    struct npz *m;
    uint64_t columns[8];
    size_t count;
    int found = npz_open(&m, path, &e);
    if (found == 0) {
        buffer_format(&out, "%llux%llu", (unsigned long long)npz_rows(m), (unsigned long long)npz_columns(m));
        while ((found = npz_row_next(m, columns, 8, &count, &e)) > 0) {
            buffer_string(&out, " [");
            for (size_t i = 0; i < count && i < 8; i++) {
                buffer_format(&out, "%s%llu", i ? " " : "", (unsigned long long)columns[i]);
            }
            buffer_byte(&out, ']');
        }
        npz_close(m);
    }
    if (found < 0) {
        assert_int_equal(e.kind, ERROR_FATAL);
        assert_true(strstr(e.text, path) != NULL && strchr(e.text, '\n') == NULL);
        buffer_clear(&out);
        buffer_format(&out, "!%s", e.text);
    }
    return out.data;
}

static void expect(const char *expected)
{
    char *got = matrix_read();
    if (*expected == '!' ? *got != '!' || !strstr(got, expected + 1) : strcmp(got, expected) != 0) {
        fail_msg("expected %s, got %s", expected, got);
    }
    free(got);
}

static const char *const small = "3x3 [1] [] [0 2]";

static void test_small(void **state)
{
    (void)state;
    for (size_t width = 4; width <= 8; width += 4) {
        struct archive a;
        small_write(&a, width);
        archive_save(&a, false);
        expect(small);
        archive_save(&a, true);
        expect(small);
        archive_free(&a);
    }
}

static void test_types_of_data(void **state)
{
    static const double doubles[] = {7, 0, 1, 5};
    static const uint8_t bytes[] = {7, 0, 1, 5};
    static const int64_t longs[] = {7, 0, 1, 5};
    static const struct {
        const char *type;
        const void *data;
        size_t bytes;
    } types[] = {{"<f8", doubles, 32}, {"|u1", bytes, 4},  {"|i1", bytes, 4},
                 {"|b1", bytes, 4},    {"<i8", longs, 32}, {"<u8", longs, 32}};
    (void)state;
    struct archive a;
    small_write(&a, 4);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        array_write(&a.entries[DATA], "data.npy", types[i].type, 4, types[i].data, types[i].bytes);
        archive_save(&a, true);
        expect(small);
    }
    entry_write(&a.entries[FORMAT], "format.npy", "{'descr': '<U3', 'fortran_order': False, 'shape': (), }",
                "c\0\0\0s\0\0\0r\0\0\0", 12);
    archive_save(&a, true);
    expect(small);
    archive_free(&a);
}

static void test_no_rows(void **state)
{
    static const int64_t shape[] = {0, 5}, indptr[] = {0};
    (void)state;
    struct archive a;
    small_write(&a, 4);
    numbers_write(&a.entries[SHAPE], "shape.npy", 8, shape, 2);
    numbers_write(&a.entries[INDPTR], "indptr.npy", 4, indptr, 1);
    numbers_write(&a.entries[INDICES], "indices.npy", 4, NULL, 0);
    array_write(&a.entries[DATA], "data.npy", "<f4", 0, "", 0);
    archive_save(&a, false);
    expect("0x5");
    archive_free(&a);
}

/* Each case replaces one array of the small matrix. */
static void test_arrays_that_disagree(void **state)
{
    static const struct {
        int entry;
        size_t width, count;
        int64_t numbers[6];
        const char *says;
    } cases[] = {
        {SHAPE, 8, 2, {4, 3}, "!indptr.npy has 4 items"},
        {SHAPE, 8, 2, {3, 2}, "!row 1 names column 2 (both from 0), but there are 2 columns"},
        {SHAPE, 8, 2, {-3, 3}, "!shape.npy has a negative number"},
        {SHAPE, 8, 3, {3, 3, 3}, "!shape.npy must have two numbers"},
        {INDPTR, 4, 4, {1, 1, 2, 4}, "!indptr.npy does not begin with 0"},
        {INDPTR, 4, 4, {0, 2, 1, 4}, "!row 1 (from 0) ends at 1: indptr.npy must increase"},
        {INDPTR, 4, 4, {0, 1, 2, 3}, "!indptr.npy ends with 3, but there are 4 indices"},
        {INDPTR, 4, 4, {0, 1, 2, 5}, "!row 2 (from 0) ends at 5: indptr.npy must increase"},
        {INDPTR, 8, 4, {0, -1, 2, 4}, "!indptr.npy has a negative number"},
        {INDICES, 4, 4, {1, 2, 0, 3}, "!row 2 names column 3"},
        {INDICES, 4, 4, {1, 2, -1, 2}, "!indices.npy has a negative number"},
        {INDICES, 4, 3, {1, 2, 0}, "!indices.npy has 3 items, data.npy 4"},
        {DATA, 8, 4, {7, 0, 1, -5}, "!data.npy has a value below 0"},
    };
    static const char *const names[] = {"format.npy", "shape.npy", "indptr.npy", "indices.npy", "data.npy"};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct archive a;
        small_write(&a, 4);
        numbers_write(&a.entries[cases[i].entry], names[cases[i].entry], cases[i].width, cases[i].numbers,
                      cases[i].count);
        archive_save(&a, i % 2);
        expect(cases[i].says);
        archive_free(&a);
    }
}

static void test_headers(void **state)
{
    static const struct {
        const char *header, *says;
    } cases[] = {
        {"{'descr': '>i4', 'fortran_order': False, 'shape': (4,), }", "!indices.npy is of type '>i4'"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", "!indices.npy must be a row of whole numbers"},
        {"{'descr': '<i2', 'fortran_order': False, 'shape': (8,), }", "!indices.npy must be a row of whole numbers"},
        {"{'descr': '<i4', 'fortran_order': True, 'shape': (4,), }", "!indices.npy is in Fortran order"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }", "!indices.npy does not have one dimension"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (5,), }", "!indices.npy has"},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (18446744073709551615,), }",
         "!indices.npy does not have one dimension"},
        {"{'descr': '<i99999999999999999999', 'fortran_order': False, 'shape': (4,), }", "!indices.npy is of type"},
        {"{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (4,), }", "!indices.npy is of type [('a'"},
        {"{'shape': (4,), 'fortran_order': False}", "!indices.npy is of type unknown"},
        {"{'descr': '", "!indices.npy is in Fortran order, or does not say"},
        {"{'fortran_order': False, 'descr': '", "!indices.npy is of type"},
        {"", "!indices.npy is in Fortran order, or does not say"},
    };
    static const int32_t indices[] = {1, 2, 0, 2};
    (void)state;
    struct archive a;
    small_write(&a, 4);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        entry_write(&a.entries[INDICES], "indices.npy", cases[i].header, indices, sizeof indices);
        archive_save(&a, true);
        expect(cases[i].says);
    }
    entry_write(&a.entries[INDICES], "indices.npy", "{'descr': '<i4', 'fortran_order': False, 'shape': (4,), }",
                indices, sizeof indices);
    a.entries[INDICES].bytes.data[1] = 'X';
    archive_save(&a, true);
    expect("!indices.npy is not a NumPy array");
    archive_free(&a);
    small_write(&a, 4);
    entry_write(&a.entries[FORMAT], "format.npy", "{'descr': '|S3', 'fortran_order': False, 'shape': (), }", "csc", 3);
    archive_save(&a, true);
    expect("!format \"csc\": save it as csr");
    archive_free(&a);
}

static void test_no_such_file(void **state)
{
    (void)state;
    unlink(path);
    expect("!No such file");
    whole_write(path, "no zip at all", 13);
    expect("!is not a sparse matrix");
    struct archive a;
    for (int missing = 0; missing < ENTRIES; missing++) {
        small_write(&a, 4);
        buffer_clear(&a.entries[missing].bytes);
        archive_save(&a, false);
        expect("!it is not a sparse matrix of scipy.sparse.save_npz");
        archive_free(&a);
    }
}

static void test_cut_and_changed(void **state)
{
    (void)state;
    for (int deflated = 0; deflated <= 1; deflated++) {
        struct archive a;
        small_write(&a, 8);
        archive_save(&a, deflated);
        struct buffer whole = whole_read(path);
        assert_in_range(whole.bytes, 500, 8191);
        for (size_t length = 0; length < whole.bytes; length++) {
            whole_write(path, whole.data, length);
            expect("!");
        }
        size_t refused = 0;
        for (size_t at = 0; at < whole.bytes; at++) {
            static const int masks[] = {0x01, 0x80, 0xff};
            for (size_t i = 0; i < 3; i++) {
                whole.data[at] = (char)(whole.data[at] ^ masks[i]);
                whole_write(path, whole.data, whole.bytes);
                char *got = matrix_read();
                if (*got != '!') {
                    assert_string_equal(got, small);
                }
                refused += *got == '!';
                free(got);
                whole.data[at] = (char)(whole.data[at] ^ masks[i]);
            }
        }
        assert_true(refused > 3 * whole.bytes / 2);
        buffer_free(&whole);
        archive_free(&a);
    }
}

/* Rows across the buffers' ends, against what was drawn. */
static void test_large(void **state)
{
    enum { ROWS = 30000, COLUMNS = 1000, ROW_MAX = 12 };
    (void)state;
    srand(1);
    int64_t *indptr = mem_zero(ROWS + 1, sizeof *indptr), *indices = mem_zero(ROWS * ROW_MAX, sizeof *indices);
    double *data = mem_zero(ROWS * ROW_MAX, sizeof *data);
    const int64_t shape[] = {ROWS, COLUMNS};
    for (size_t row = 0; row < ROWS; row++) {
        size_t count = (size_t)rand() % (ROW_MAX + 1), end = (size_t)indptr[row];
        for (size_t i = 0; i < count; i++, end++) {
            indices[end] = rand() % COLUMNS;
            data[end] = rand() % 10 ? 1 : 0;
        }
        indptr[row + 1] = (int64_t)end;
    }
    size_t items = (size_t)indptr[ROWS];
    struct archive a;
    small_write(&a, 8);
    numbers_write(&a.entries[SHAPE], "shape.npy", 8, shape, 2);
    numbers_write(&a.entries[INDPTR], "indptr.npy", 8, indptr, ROWS + 1);
    numbers_write(&a.entries[INDICES], "indices.npy", 4, indices, items);
    array_write(&a.entries[DATA], "data.npy", "<f8", items, data, items * sizeof *data);
    archive_save(&a, true);
    struct npz *m;
    struct error e;
    assert_int_equal(npz_open(&m, path, &e), 0);
    for (size_t row = 0; row < ROWS; row++) {
        uint64_t columns[ROW_MAX];
        size_t count, expected = 0;
        assert_int_equal(npz_row_next(m, columns, 5, &count, &e), 1);
        for (int64_t i = indptr[row]; i < indptr[row + 1]; i++) {
            if (data[i] != 0) {
                assert_true(expected >= 5 || columns[expected] == (uint64_t)indices[i]);
                expected++;
            }
        }
        assert_int_equal(count, expected);
    }
    size_t count;
    assert_int_equal(npz_row_next(m, NULL, 0, &count, &e), 0);
    npz_close(m);
    archive_free(&a);
    free(data);
    free(indices);
    free(indptr);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),           cmocka_unit_test(test_types_of_data),
        cmocka_unit_test(test_no_rows),         cmocka_unit_test(test_arrays_that_disagree),
        cmocka_unit_test(test_headers),         cmocka_unit_test(test_no_such_file),
        cmocka_unit_test(test_cut_and_changed), cmocka_unit_test(test_large),
    };
    if (!mkdtemp(folder)) {
        return 1;
    }
    snprintf(path, sizeof path, "%s/Y.trn.npz", folder);
    int failed = cmocka_run_group_tests_name("npz", tests, NULL, NULL);
    unlink(path);
    rmdir(folder);
    return failed;
}
