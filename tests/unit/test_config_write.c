/* Options put into a configuration file: what is asked for is what the reader then gives, and nothing else of the file
 * moves. Exact bytes for the cases a user sees, then a few thousand generated files against an alignment of their lines
 * that knows nothing of how the file is written. */
#define _XOPEN_SOURCE 700 /* realpath's family, seteuid */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/config.h"
#include "tests/unit/files.h"

static const struct config_command command = {.name = "probe", .usage = "", .help = "", .example = ""};

enum { TEXT_MAX = 1 << 16, NOBODY = 65534, RUNS = 1000 };

struct state {
    char folder[64], file[96];
    struct error error;
};

static int setup(void **context)
{
    struct state *s = calloc(1, sizeof *s);
    strcpy(s->folder, "/tmp/engram-write-XXXXXX");
    assert_non_null(mkdtemp(s->folder));
    snprintf(s->file, sizeof s->file, "%s/engram.conf", s->folder);
    *context = s;
    return 0;
}

/* The folder holds the file alone: nothing half-made is left. */
static int teardown(void **context)
{
    struct state *s = *context;
    unlink(s->file);
    int left = rmdir(s->folder);
    free(s);
    return left;
}

static size_t file_get(const char *path, char *text)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t bytes = fread(text, 1, TEXT_MAX - 1, f);
    text[bytes] = '\0';
    fclose(f);
    return bytes;
}

static void must(const struct state *s, int result)
{
    if (result) {
        fail_msg("refused: %s", s->error.text);
    }
}

static int set_one(struct state *s, const char *section, const char *name, const char *value)
{
    struct config_change change = {section, name, value};
    return config_file_set(s->file, &change, 1, &s->error);
}

static void config_of(struct state *s, struct config *config)
{
    char *words[] = {"-c", s->file, "--log-level=error"}; /* a name that is given twice is warned about */
    struct arguments *arguments = NULL;
    must(s, config_read(&command, 3, words, config, &arguments, &s->error));
    arguments_free(arguments);
}

/* ---- exact bytes ---- */

static void test_bytes(void **context)
{
    struct state *s = *context;
    static const struct {
        const char *before, *section, *name, *value, *after;
    } cases[] = {
        /* in place, whatever stands around it */
        {"[predict]\ntau = 0.1\n", "predict", "tau", "0.2", "[predict]\ntau = 0.2\n"},
        {"# mine\r\n[predict]\r\n  tau=0.1  \r\n\r\n; end", "predict", "tau", "0.25",
         "# mine\r\n[predict]\r\n  tau=0.25  \r\n\r\n; end"},
        {"[predict]\n\ttau\t =\t0.1\t", "predict", "tau", "1", "[predict]\n\ttau\t =\t1\t"},
        {"\xef\xbb\xbf[ predict ]\ntau = 0.1", "predict", "tau", "0.2", "\xef\xbb\xbf[ predict ]\ntau = 0.2"},
        {"[topics]\ntexts_topic = a=b\n", "topics", "texts_topic", "c", "[topics]\ntexts_topic = c\n"},
        {"[encoder]\nmodel =\r\ntext_prefix =  \n", "encoder", "model", "/m # 1",
         "[encoder]\nmodel = /m # 1\r\ntext_prefix =  \n"},
        {"[encoder]\nmodel = /m\n", "encoder", "model", "", "[encoder]\nmodel = \n"},
        /* one that is given twice: the last one is in force */
        {"[predict]\nb = 1\nb = 2\n", "predict", "b", "3", "[predict]\nb = 1\nb = 3\n"},
        {"[predict]\nb = 1\n[log]\n[predict]\nb = 2\n[log]\n", "predict", "b", "3",
         "[predict]\nb = 1\n[log]\n[predict]\nb = 3\n[log]\n"},
        /* what says the same stays as it is written */
        {"[predict]\ntau = 0.20\n", "predict", "tau", "0.2", "[predict]\ntau = 0.20\n"},
        {"[memory]\nmap_size = 1024 GiB\n", "memory", "map_size", "1TiB", "[memory]\nmap_size = 1024 GiB\n"},
        {"[encoder]\ntext_prefix = \"query: \"\n", "encoder", "text_prefix",
         "query: ", "[encoder]\ntext_prefix = \"query: \"\n"},
        /* a comment is none */
        {"[predict]\n# tau = 0.1\n", "predict", "tau", "0.2", "[predict]\n# tau = 0.1\ntau = 0.2\n"},
        /* at the end of its section */
        {"[predict]\nb = 1\n\n\n# the log\n[log]\nlog_level = warn\n", "predict", "tau", "0.2",
         "[predict]\nb = 1\ntau = 0.2\n\n\n# the log\n[log]\nlog_level = warn\n"},
        {"[predict]\nb = 1\n# b was 2\n\n[log]\n", "predict", "tau", "0.2",
         "[predict]\nb = 1\n# b was 2\ntau = 0.2\n\n[log]\n"},
        {"[predict]\nb = 1\n\n# far\n\n[log]\n", "predict", "tau", "0.2",
         "[predict]\nb = 1\ntau = 0.2\n\n# far\n\n[log]\n"},
        {"[predict]\nb = 1\n# the log\n[log]\n", "predict", "tau", "0.2",
         "[predict]\nb = 1\ntau = 0.2\n# the log\n[log]\n"},
        {"[predict]\r\n\r\n# none yet\r\n[log]\r\n", "predict", "tau", "0.2",
         "[predict]\r\ntau = 0.2\r\n\r\n# none yet\r\n[log]\r\n"},
        {"[predict]\nb = 1\n[log]\n[predict]\n[topics]\n", "predict", "tau", "0.2",
         "[predict]\nb = 1\n[log]\n[predict]\ntau = 0.2\n[topics]\n"},
        {"[log]\n[predict]\nb = 1", "predict", "tau", "0.2", "[log]\n[predict]\nb = 1\ntau = 0.2\n"},
        {"[log]\r\n[predict]", "predict", "tau", "0.2", "[log]\r\n[predict]\r\ntau = 0.2\r\n"},
        /* a new section */
        {"", "predict", "tau", "0.2", "[predict]\ntau = 0.2\n"},
        {"# mine\n", "predict", "tau", "0.2", "# mine\n\n[predict]\ntau = 0.2\n"},
        {"[log]\r\nlog_level = warn", "predict", "tau", "0.2",
         "[log]\r\nlog_level = warn\r\n\r\n[predict]\r\ntau = 0.2\r\n"},
        {"[log]\n \n", "predict", "tau", "0.2", "[log]\n \n[predict]\ntau = 0.2\n"},
        /* quotes where the reader needs them */
        {"[encoder]\ntext_prefix = a\n", "encoder", "text_prefix", "a: ", "[encoder]\ntext_prefix = \"a: \"\n"},
        {"[encoder]\ntext_prefix = \"a\"\n", "encoder", "text_prefix", "b", "[encoder]\ntext_prefix = \"b\"\n"},
        {"[encoder]\ntext_prefix = a\n", "encoder", "text_prefix", "\"a\"", "[encoder]\ntext_prefix = \"\"a\"\"\n"},
        {"[encoder]\ntext_prefix = a\n", "encoder", "text_prefix", "\"", "[encoder]\ntext_prefix = \"\n"},
        {"[stage]\ngroup = a\n", "stage", "group", "\"a\"", "[stage]\ngroup = \"a\"\n"},
        /* Kafka's properties, also under another name for the same */
        {"[kafka]\nsasl.password = a ; b\n", "kafka", "sasl.password", "c # d", "[kafka]\nsasl.password = c # d\n"},
        {"[kafka.producer]\nqueue.buffering.max.ms = 1\n", "kafka.producer", "linger.ms", "2",
         "[kafka.producer]\nqueue.buffering.max.ms = 2\n"},
        {"[kafka]\nlinger.ms = 1\n", "kafka.producer", "linger.ms", "2",
         "[kafka]\nlinger.ms = 1\n\n[kafka.producer]\nlinger.ms = 2\n"},
    };
    static char text[TEXT_MAX];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        whole_write(s->file, cases[i].before, strlen(cases[i].before));
        must(s, set_one(s, cases[i].section, cases[i].name, cases[i].value));
        file_get(s->file, text);
        assert_string_equal(text, cases[i].after);
    }
}

static void test_several(void **context)
{
    struct state *s = *context;
    static const char before[] = "# Engram\n[predict]\ntau = 0.1 \nb = 100\n\n[log]\n";
    static const struct config_change changes[] = {{"predict", "pool", "apart"}, {"predict", "lambda", "0.3"},
                                                   {"predict", "tau", "0.2"},    {"predict", "b", "100"},
                                                   {"console", "listen", "::1"}, {"console", "port", "0"},
                                                   {"log", "log_level", "warn"}};
    static char text[TEXT_MAX];
    whole_write(s->file, before, sizeof before - 1);
    must(s, config_file_set(s->file, changes, sizeof changes / sizeof changes[0], &s->error));
    file_get(s->file, text);
    assert_string_equal(text, "# Engram\n[predict]\ntau = 0.2 \nb = 100\npool = apart\nlambda = 0.3\n\n[log]\n"
                              "log_level = warn\n\n[console]\nlisten = ::1\nport = 0\n");
}

/* ---- what is refused, with the file as it was ---- */

static void refuses(struct state *s, const char *section, const char *name, const char *value, enum error_code code,
                    const char *word)
{
    static char before[TEXT_MAX], after[TEXT_MAX];
    struct stat old, new;
    assert_int_equal(stat(s->file, &old), 0);
    size_t bytes = file_get(s->file, before);
    assert_int_equal(set_one(s, section, name, value), -1);
    assert_int_equal(s->error.code, code);
    if (!strstr(s->error.text, word) || strchr(s->error.text, '\n')) {
        fail_msg("'%s' lacks '%s'", s->error.text, word);
    }
    assert_int_equal(stat(s->file, &new), 0);
    assert_true(old.st_ino == new.st_ino);
    assert_int_equal(file_get(s->file, after), bytes);
    assert_memory_equal(before, after, bytes);
}

#define FILE_TEXT(text) whole_write(s->file, text, sizeof(text) - 1)

static void test_refused_values(void **context)
{
    struct state *s = *context;
    FILE_TEXT("[predict]\ntau = 0.1\n");
    refuses(s, "predict", "tau", "warm", E_USAGE, "tau is 'warm'");
    refuses(s, "predict", "tua", "0.1", E_USAGE, "no option 'tua' under [predict]");
    refuses(s, "log", "tau", "0.1", E_USAGE, "no option 'tau' under [log]");
    refuses(s, "kafka", "acks", "1", E_USAGE, "acks cannot be set");
    refuses(s, "kafka", "linger.sm", "1", E_USAGE, "librdkafka has no property");
    refuses(s, "kafka", "linger.ms", "x", E_USAGE, "linger.ms");
    refuses(s, "stage", "group", "a\nb = 1", E_USAGE, "one line");
    refuses(s, "stage", "group", " a", E_USAGE, "group cannot be ' a' in a file");
    refuses(s, "stage", "group", "a\r", E_USAGE, "group cannot be");
    refuses(s, "stage", "group", "\xff", E_USAGE, "UTF-8");
    refuses(s, "kafka", "client.id", "a ", E_USAGE, "client.id cannot be");
    /* a file that no command takes is not made better */
    FILE_TEXT("[predict]\ntau 0.1\n");
    refuses(s, "predict", "tau", "0.2", E_USAGE, "engram.conf:2: this is no");
    FILE_TEXT("[predict]\nb = 1\n[log\n");
    refuses(s, "predict", "tau", "0.2", E_USAGE, "engram.conf:");
    FILE_TEXT("[predict]\nb = \0001\n");
    refuses(s, "predict", "tau", "0.2", E_USAGE, "a NUL character");
    FILE_TEXT("\x1f\x8b");
    refuses(s, "predict", "tau", "0.2", E_USAGE, "compressed");
}

static void test_not_a_file(void **context)
{
    struct state *s = *context;
    struct config_change change = {"predict", "tau", "0.2"};
    char path[160];
    assert_int_equal(config_file_set(s->folder, &change, 1, &s->error), -1);
    assert_non_null(strstr(s->error.text, "is not a file of options"));
    assert_int_equal(config_file_set("-", &change, 1, &s->error), -1);
    assert_non_null(strstr(s->error.text, "standard input"));
    snprintf(path, sizeof path, "%s/no/engram.conf", s->folder);
    assert_int_equal(config_file_set(path, &change, 1, &s->error), -1);
    assert_non_null(strstr(s->error.text, "no new file can be created in its folder: No such file"));
    assert_int_equal(mkfifo(s->file, 0600), 0);
    assert_int_equal(config_file_set(s->file, &change, 1, NULL), -1);
    unlink(s->file);
    snprintf(path, sizeof path, "%s/link", s->folder);
    assert_int_equal(symlink("nowhere", path), 0);
    assert_int_equal(config_file_set(path, &change, 1, &s->error), -1);
    assert_non_null(strstr(s->error.text, "it points to no file"));
    unlink(path);
}

static void test_full_disk(void **context)
{
    struct state *s = *context;
    struct rlimit before, little;
    FILE_TEXT("[predict]\ntau = 0.1\n");
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    little = (struct rlimit){10, before.rlim_max};
    struct config_change change = {"predict", "tau", "0.25"};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &little), 0);
    int result = config_file_set(s->file, &change, 1, &s->error);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(result, -1);
    assert_int_equal(s->error.code, E_DISK_FULL);
    assert_non_null(strstr(s->error.text, "engram.conf cannot be changed and is as it was: the new file cannot be "
                                          "written: File too large"));
    static char text[TEXT_MAX];
    file_get(s->file, text);
    assert_string_equal(text, "[predict]\ntau = 0.1\n");
}

/* Root may do all: as root the test asks as nobody. */
static void test_no_right(void **context)
{
    struct state *s = *context;
    bool root = geteuid() == 0;
    FILE_TEXT("[predict]\ntau = 0.1\n");
    assert_int_equal(chmod(s->folder, 0555), 0);
    assert_int_equal(root ? chown(s->file, NOBODY, (gid_t)-1) : 0, 0);
    assert_int_equal(root ? seteuid(NOBODY) : 0, 0);
    refuses(s, "predict", "tau", "0.2", E_IO, "no new file can be created in its folder: Permission denied");
    assert_int_equal(root ? seteuid(0) : 0, 0);
    assert_int_equal(chmod(s->folder, 0777), 0);
    assert_int_equal(chmod(s->file, 0444), 0);
    assert_int_equal(root ? seteuid(NOBODY) : 0, 0);
    refuses(s, "predict", "tau", "0.2", E_IO, "it may not be written: Permission denied");
    assert_int_equal(root ? seteuid(0) : 0, 0);
    if (root) { /* another's file that everybody may write: its owner could not be kept */
        assert_int_equal(chown(s->file, 0, 0) || chmod(s->file, 0666), 0);
        assert_int_equal(seteuid(NOBODY), 0);
        refuses(s, "predict", "tau", "0.2", E_IO, "owner and mode: Operation not permitted");
        assert_int_equal(seteuid(0), 0);
    }
    assert_int_equal(chmod(s->folder, 0700), 0);
}

/* ---- what stays of the file itself ---- */

static void test_owner_mode_and_link(void **context)
{
    struct state *s = *context;
    struct stat old, new;
    char link[160];
    bool root = geteuid() == 0;
    FILE_TEXT("[predict]\ntau = 0.1\n");
    assert_int_equal(chmod(s->file, 0640), 0);
    assert_int_equal(root ? chown(s->file, NOBODY, 12345) : 0, 0);
    assert_int_equal(stat(s->file, &old), 0);
    snprintf(link, sizeof link, "%s/link", s->folder);
    assert_int_equal(symlink("engram.conf", link), 0);
    struct config_change change = {"predict", "tau", "0.2"};
    must(s, config_file_set(link, &change, 1, &s->error));
    assert_int_equal(lstat(link, &new), 0);
    assert_true(S_ISLNK(new.st_mode));
    assert_int_equal(lstat(s->file, &new), 0);
    assert_true(S_ISREG(new.st_mode) && new.st_ino != old.st_ino);
    assert_true(new.st_mode == old.st_mode &&new.st_uid == old.st_uid &&new.st_gid == old.st_gid);
    static char text[TEXT_MAX];
    file_get(s->file, text);
    assert_string_equal(text, "[predict]\ntau = 0.2\n");
    /* nothing to change: nothing is written */
    must(s, config_file_set(link, &change, 1, &s->error));
    assert_int_equal(stat(s->file, &old), 0);
    assert_true(new.st_ino == old.st_ino &&new.st_mtim.tv_nsec == old.st_mtim.tv_nsec);
    unlink(link);
}

static void test_a_missing_file_is_made(void **context)
{
    struct state *s = *context;
    struct stat status;
    static char text[TEXT_MAX];
    mode_t before = umask(027);
    must(s, set_one(s, "predict", "tau", "0.2"));
    umask(before);
    file_get(s->file, text);
    assert_string_equal(text, "[predict]\ntau = 0.2\n");
    assert_int_equal(stat(s->file, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0640);
    /* by a name without a folder */
    char *home = getcwd(NULL, 0);
    assert_true(home && chdir(s->folder) == 0);
    struct config_change change = {"predict", "b", "7"};
    unlink("engram.conf");
    int result = config_file_set("engram.conf", &change, 1, &s->error);
    assert_int_equal(chdir(home), 0);
    free(home);
    must(s, result);
    file_get(s->file, text);
    assert_string_equal(text, "[predict]\nb = 7\n");
}

/* A file left behind by one that was killed is in nobody's way. */
static void test_leftovers(void **context)
{
    struct state *s = *context;
    char path[160];
    snprintf(path, sizeof path, "%s/.engram.conf.%ld-0", s->folder, (long)getpid());
    whole_write(path, "half", 4);
    FILE_TEXT("");
    must(s, set_one(s, "predict", "tau", "0.2"));
    static char text[TEXT_MAX];
    file_get(path, text);
    assert_string_equal(text, "half");
    unlink(path);
}

/* ---- generated files ---- */

static uint64_t seed;

static unsigned below(unsigned n) /* SplitMix64 */
{
    uint64_t z = (seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (unsigned)((z ^ (z >> 31)) % n);
}

#define ONE_OF(list) (list)[below(sizeof(list) / sizeof(list)[0])]

/* Options of all types, and values for each. */
static const struct known {
    const char *section, *name, *values[6];
} known[] = {
    {"predict", "tau", {"0.1", "0.10", "1e-1", "0.25", "1000", "0.0001"}},
    {"predict", "lambda", {"0", "1", "0.3", ".3", "5e-1", "0.5"}},
    {"predict", "pool", {"joint", "apart", "joint", "apart", "joint", "apart"}},
    {"predict", "b", {"1", "200", "+7", "0200", "10000", "50"}},
    {"predict", "evidence_text", {"true", "no", "ON", "0", "off", "1"}},
    {"log", "log_format", {"text", "json", "text", "json", "text", "json"}},
    {"memory", "map_size", {"1TiB", "1024G", "1048576", "2 MiB", "3g", "64TiB"}},
    {"memory", "memory", {"/var/lib/engram", "a # b", "a;b", "a = b", "[x]", "\"q\""}},
    {"encoder", "text_prefix", {"", "query: ", " \t", "\"", "\"\"", "\"a\" = [b] # c"}},
    {"encoder", "label_prefix", {"", "passage:", "\"x", "x\"", "\"x\"", "\xc3\xa9 "}},
    {"kafka", "client.id", {"me", "a = b", "[x]", "a ; b", "# x", "\"q\""}},
    {"kafka.producer", "linger.ms", {"1", "2", "3", "4", "5", "6"}},
    {"kafka.consumer", "fetch.min.bytes", {"1", "2", "3", "4", "5", "6"}},
};

enum { KNOWN = sizeof known / sizeof known[0] };

static void put_blanks(struct buffer *out)
{
    static const char *const blanks[] = {"", "", "", " ", "  ", "\t", " \t "};
    buffer_string(out, ONE_OF(blanks));
}

static void put_pair(const struct known *k, const char *line_end, struct buffer *out)
{
    bool prefix = strstr(k->name, "_prefix") != NULL;
    const char *value = ONE_OF(k->values);
    put_blanks(out);
    buffer_string(out, strcmp(k->name, "linger.ms") == 0 && below(2) ? "queue.buffering.max.ms" : k->name);
    put_blanks(out);
    buffer_byte(out, '=');
    put_blanks(out);
    buffer_format(out, prefix && below(2) ? "\"%s\"" : "%s", value);
    put_blanks(out);
    buffer_string(out, line_end);
}

static void put_file(struct buffer *out)
{
    static const char *const ends[] = {"\n", "\n", "\r\n"};
    static const char *const comments[] = {"# tau = 9", ";b=1", "#", "  # [log]", "; \xc3\xa9", "# x = \"y\""};
    const char *line_end = ONE_OF(ends);
    const char *section = NULL;
    buffer_string(out, below(8) == 0 ? "\xef\xbb\xbf" : "");
    for (unsigned lines = below(25); lines > 0; lines--) {
        line_end = below(20) == 0 ? ONE_OF(ends) : line_end;
        unsigned what = below(10);
        const struct known *k = &known[below(KNOWN)];
        while (section && strcmp(k->section, section) != 0) {
            k = &known[below(KNOWN)];
        }
        if (what < 2) {
            put_blanks(out);
            buffer_string(out, line_end);
        } else if (what < 4) {
            put_blanks(out);
            buffer_format(out, "%s%s", ONE_OF(comments), line_end);
        } else if (what < 6 || !section) {
            section = known[below(KNOWN)].section;
            put_blanks(out);
            buffer_string(out, "[");
            put_blanks(out);
            buffer_string(out, section);
            put_blanks(out);
            buffer_format(out, "]%s", line_end);
        } else {
            put_pair(k, line_end, out);
        }
    }
    if (out->bytes && out->data[out->bytes - 1] == '\n' && below(4) == 0) {
        out->data[--out->bytes] = '\0'; /* no end to the last line; the CR of a CRLF stays */
    }
}

/* The value of a known name as `engram config` shows it. */
static char *shown(const struct config *config, const struct known *k)
{
    struct buffer out = {0};
    char name[64], *at, *found = NULL;
    bool kafka = strncmp(k->section, "kafka", 5) == 0;
    config_print(config, true, &out);
    snprintf(name, sizeof name, "\"%s%s%s\":{\"value\":", kafka ? k->section : "", kafka ? "." : "", k->name);
    if (kafka && !strstr(out.data, name) && strcmp(k->name, "linger.ms") == 0) {
        snprintf(name, sizeof name, "\"kafka.producer.queue.buffering.max.ms\":{\"value\":");
    }
    at = strstr(out.data, name);
    if (at) {
        at += strlen(name);
        char *end = strstr(at, ",\"from\":");
        assert_non_null(end);
        found = mem_string(at, (size_t)(end - at));
    }
    buffer_free(&out);
    return found;
}

/* The end of a line, its line end included. */
static size_t line_after(const char *text, size_t bytes, size_t at)
{
    const char *newline = memchr(text + at, '\n', bytes - at);
    return newline ? (size_t)(newline - text) + 1 : bytes;
}

/* Did one line come of the other by another value: the same bytes up to the = and the blanks behind it, the same
 * blanks and line end behind the value? */
static bool other_value(const char *a, size_t a_from, size_t a_to, const char *b, size_t b_from, size_t b_to)
{
    const char *equals = memchr(a + a_from, '=', a_to - a_from);
    size_t head = equals ? (size_t)(equals - a) + 1 - a_from : 0;
    size_t tail = 0;
    while (head && head < a_to - a_from && strchr(" \t", a[a_from + head])) {
        head++;
    }
    while (tail < a_to - a_from - head && strchr(" \t\r\n", a[a_to - 1 - tail])) {
        tail++;
    }
    return head > 0 && a[a_from] != '#' && a[a_from] != ';' && b_to - b_from >= head + tail &&
           memcmp(a + a_from, b + b_from, head) == 0 && memcmp(a + a_to - tail, b + b_to - tail, tail) == 0;
}

/* The same line, or the same with another value? 1, 2; 0: neither. */
static int alike(const char *a, size_t a_from, size_t a_to, const char *b, size_t b_from, size_t b_to)
{
    bool same = a_to - a_from == b_to - b_from && memcmp(a + a_from, b + b_from, b_to - b_from) == 0;
    return same ? 1 : other_value(a, a_from, a_to, b, b_from, b_to) ? 2 : 0;
}

/* Walks both texts: each old line stands there still, in order, but for at most `changes` ones that have another value
 * and lines that are new: at most `changes` pairs, and a header and a blank for each. A last line without an end may
 * have got one. */
static void assert_kept(const char *a, size_t a_bytes, const char *b, size_t b_bytes, unsigned changes)
{
    unsigned put = 0, added = 0;
    size_t i = 0, j = 0;
    while (i < a_bytes || j < b_bytes) {
        size_t i_end = line_after(a, a_bytes, i), j_end = line_after(b, b_bytes, j);
        bool both = i < a_bytes && j < b_bytes;
        bool open = both && a[i_end - 1] != '\n' && b[j_end - 1] == '\n';
        int is = both ? alike(a, i, i_end, b, j, j_end) : 0;
        is = open && !is ? alike(a, i, i_end, b, j, j_end - 1) : is;
        is = open && !is && j_end - j > 1 && b[j_end - 2] == '\r' ? alike(a, i, i_end, b, j, j_end - 2) : is;
        if (!is && j == b_bytes) {
            fail_msg("lost: '%.*s'\n--- of\n%s\n--- now\n%s", (int)(i_end - i), a + i, a, b);
        }
        put += is == 2;
        added += !is;
        i = is ? i_end : i;
        j = j_end;
    }
    if (put > changes || added > 3 * changes) {
        fail_msg("%u lines changed, %u added for %u changes\n--- of\n%s\n--- now\n%s", put, added, changes, a, b);
    }
}

static void test_generated(void **context)
{
    struct state *s = *context;
    static char before[TEXT_MAX], after[TEXT_MAX], again[TEXT_MAX];
    for (unsigned run = 0; run < RUNS; run++) {
        seed = run;
        struct buffer text = {0};
        struct config old, new;
        struct config_change changes[KNOWN];
        const char *asked[KNOWN] = {0};
        unsigned count = 0;
        put_file(&text);
        whole_write(s->file, text.data ? text.data : "", text.bytes);
        size_t before_bytes = file_get(s->file, before);
        config_of(s, &old);
        for (unsigned i = 0; i < KNOWN; i++) {
            if (below(4) == 0) {
                asked[i] = ONE_OF(known[i].values);
                changes[count++] = (struct config_change){known[i].section, known[i].name, asked[i]};
            }
        }
        must(s, config_file_set(s->file, changes, count, &s->error));
        size_t after_bytes = file_get(s->file, after);
        config_of(s, &new);
        for (unsigned i = 0; i < KNOWN; i++) {
            char *was = shown(&old, &known[i]), *is = shown(&new, &known[i]);
            if (asked[i]) { /* what a flag would have given */
                struct config flag;
                struct arguments *arguments = NULL;
                struct buffer word = {0};
                bool kafka = strncmp(known[i].section, "kafka", 5) == 0;
                const char *scope = strchr(known[i].section, '.');
                buffer_format(&word, kafka ? "%s%s%s=%s" : "--%s%s%s=%s", kafka && scope ? scope + 1 : "",
                              kafka && scope ? "." : "", known[i].name, asked[i]);
                for (char *c = word.data; !kafka && *c != '='; c++) {
                    *c = *c == '_' ? '-' : *c;
                }
                char *words[] = {kafka ? "-X" : word.data, kafka ? word.data : NULL};
                must(s, config_read(&command, kafka ? 2 : 1, words, &flag, &arguments, &s->error));
                char *wanted = shown(&flag, &known[i]);
                assert_non_null(wanted);
                assert_non_null(is);
                assert_string_equal(is, wanted);
                free(wanted);
                buffer_free(&word);
                arguments_free(arguments);
                config_free(&flag);
            } else if (was || is) {
                assert_true(was && is);
                assert_string_equal(is, was);
            }
            free(was);
            free(is);
        }
        assert_kept(before, before_bytes, after, after_bytes, count);
        must(s, config_file_set(s->file, changes, count, &s->error));
        assert_int_equal(file_get(s->file, again), after_bytes);
        assert_memory_equal(after, again, after_bytes);
        config_free(&old);
        config_free(&new);
        buffer_free(&text);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_bytes),     TEST(test_several),   TEST(test_refused_values),      TEST(test_not_a_file),
        TEST(test_full_disk), TEST(test_no_right),  TEST(test_owner_mode_and_link), TEST(test_a_missing_file_is_made),
        TEST(test_leftovers), TEST(test_generated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
