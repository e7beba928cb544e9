/* Where a data file is and which form it has: see data.h. A folder has one form, found by its files' names, so that all
 * its parts agree; a file is known by its name, or by its first line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/json.h"
#include "cli/data_forms.h"

enum { PARTS = 3 };

/* In this order: a folder prepared for DEXML may still hold the LF-XMC files, which know the labels' own names. */
static const struct {
    enum data_form form;
    const char *what, *folder;
    const char *names[PARTS]; /* labels, train, test; .gz too */
} layouts[] = {
    {DATA_LFXMC, "an LF-XMC data set", "", {"lbl.json", "trn.json", "tst.json"}},
    {DATA_DEXML, "a data set as DEXML has it", "raw/", {"Y.txt", "trn_X.txt", "tst_X.txt"}},
    {DATA_DEXML, "a data set as DEXML has it", "", {"Y.txt", "trn_X.txt", "tst_X.txt"}},
    {DATA_JSONL, "a data set of JSON lines", "", {"labels.jsonl", "train.jsonl", "test.jsonl"}},
};

enum { LAYOUTS = sizeof layouts / sizeof *layouts };

/* folder "" is the current one. */
static char *file_in(struct slice folder, const char *inner, const char *name)
{
    static const char *const endings[] = {"", ".gz"};
    struct stat status;
    for (int i = 0; i < 2; i++) {
        struct buffer path = {0};
        buffer_append(&path, folder.data, folder.bytes);
        if (folder.bytes && folder.data[folder.bytes - 1] != '/') {
            buffer_byte(&path, '/');
        }
        buffer_format(&path, "%s%s%s", inner, name, endings[i]);
        if (stat(path.data, &status) == 0) {
            return path.data;
        }
        buffer_free(&path);
    }
    return NULL;
}

char *data_beside(const char *path, const char *name, bool up)
{
    const char *slash = strrchr(path, '/');
    struct slice folder = {path, slash ? (size_t)(slash - path) + 1 : 0};
    char *found = file_in(folder, "", name);
    return found || !up ? found : file_in(folder, "../", name);
}

bool data_is_named(const char *path, const char *name)
{
    const char *slash = strrchr(path, '/');
    const char *last = slash ? slash + 1 : path;
    size_t bytes = strlen(name);
    return strncmp(last, name, bytes) == 0 && (last[bytes] == '\0' || strcmp(last + bytes, ".gz") == 0);
}

/* ---- folders ---- */

static int folder_find(const struct data_source *source, char **path, enum data_form *form, struct error *e)
{
    struct slice folder = slice_of(source->path);
    for (int i = 0; i < LAYOUTS; i++) {
        bool here = false;
        for (int part = 0; part < PARTS; part++) {
            char *file = file_in(folder, layouts[i].folder, layouts[i].names[part]);
            here |= file != NULL;
            if (part == (int)source->part) {
                *path = file;
            } else {
                free(file);
            }
        }
        if (here) {
            const char *name = layouts[i].names[source->part];
            *form = layouts[i].form;
            return *path ? 0
                         : error_set(e, ERROR_FATAL, E_NOT_FOUND, "%s has %s, but no %s%s (or %s.gz)", source->path,
                                     layouts[i].what, layouts[i].folder, name, name);
        }
    }
    return error_set(e, ERROR_FATAL, E_NOT_FOUND,
                     "%s has no data set: neither lbl.json, trn.json, tst.json (LF-XMC), nor raw/Y.txt, raw/trn_X.txt, "
                     "raw/tst_X.txt (DEXML), nor labels.jsonl, train.jsonl, test.jsonl",
                     source->path);
}

/* ---- files ---- */

/* A record of ours has a "text"; a line of LF-XMC has none, but these. */
static bool is_lfxmc(struct slice line)
{
    struct arena arena = {0};
    const struct json *tree;
    bool is = json_parse(line, RECORD_DEPTH_MAX, &arena, &tree, NULL) == 0 && tree->type == JSON_OBJECT &&
              !json_member(tree, "text") &&
              (json_member(tree, "target_ind") || (json_member(tree, "uid") && json_member(tree, "title")));
    arena_free(&arena);
    return is;
}

/* By the first line that is not empty. What cannot be read is reported when it is read. */
static bool first_line_is_lfxmc(const char *path)
{
    struct lines *lines = NULL;
    struct slice line = {0};
    bool is = false;
    if (lines_open(&lines, path, DATA_LINE_BYTES_MAX, NULL) == 0) {
        while (lines_next(lines, &line, NULL) > 0 && line.bytes == 0) {}
        is = is_lfxmc(line);
        lines_close(lines);
    }
    return is;
}

static enum data_form form_of_file(const char *path, bool regular)
{
    for (int i = 0; i < LAYOUTS; i++) {
        for (int part = 0; part < PARTS; part++) {
            if (data_is_named(path, layouts[i].names[part])) {
                return layouts[i].form;
            }
        }
    }
    return regular && first_line_is_lfxmc(path) ? DATA_LFXMC : DATA_JSONL;
}

int data_find(const struct data_source *source, char **path, enum data_form *form, struct error *e)
{
    struct stat status = {0};
    bool there = strcmp(source->path, "-") != 0 && stat(source->path, &status) == 0;
    *path = NULL;
    *form = DATA_JSONL;
    if (there && S_ISDIR(status.st_mode)) {
        return folder_find(source, path, form, e);
    }
    if (source->folder_only) {
        return error_set(e, ERROR_FATAL, E_NOT_FOUND, "%s is not a folder: --data takes the folder of a data set",
                         source->path);
    }
    *path = mem_string(source->path, strlen(source->path));
    if (strcmp(source->path, "-") != 0) {
        *form = form_of_file(source->path, there && S_ISREG(status.st_mode));
    }
    return 0;
}
