/* The configuration as a user meets it: precedence, the file's quirks, Kafka's properties, and one line for every
 * mistake. Each test starts with no ENGRAM_ variable set. */
#include <locale.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <librdkafka/rdkafka.h>

#include "base/json.h"
#include "base/log.h"
#include "config/config.h"
#include "tests/unit/files.h"
#include "tests/unit/variables.h"

static const struct config_flag flags[] = {
    {"label", "L", "a label", true},
    {"id", "ID", "an id", false},
    {"json", NULL, "as JSON", false},
    {0},
};

static const struct config_command command = {
    .name = "probe",
    .usage = "--id ID TEXT",
    .help = "Probes.",
    .example = "engram probe --id a text",
    .flags = flags,
    .positional_max = 2,
};

/* What one call gave, and the folder of its file. */
struct state {
    char folder[64], file[96];
    struct config config;
    struct arguments *arguments;
    struct error error;
    int result;
};

static int setup(void **context)
{
    struct state *s = calloc(1, sizeof *s);
    strcpy(s->folder, "/tmp/engram-config-XXXXXX");
    assert_non_null(mkdtemp(s->folder));
    snprintf(s->file, sizeof s->file, "%s/engram.conf", s->folder);
    *context = s;
    return 0;
}

static void state_clear(struct state *s)
{
    arguments_free(s->arguments);
    config_free(&s->config);
    s->arguments = NULL;
}

static int teardown(void **context)
{
    struct state *s = *context;
    state_clear(s);
    variables_unset();
    unlink(s->file);
    rmdir(s->folder);
    free(s);
    return 0;
}

static void file_write(const struct state *s, const char *text, size_t bytes)
{
    whole_write(s->file, text, bytes);
}

/* Reads a command line of up to 15 words, ended by NULL. */
static int read_line(struct state *s, ...)
{
    char *argv[16];
    int argc = 0;
    va_list words;
    va_start(words, s);
    for (char *word; (word = va_arg(words, char *));) {
        argv[argc++] = word;
    }
    va_end(words);
    state_clear(s);
    memset(&s->error, 0, sizeof s->error);
    s->result = config_read(&command, argc, argv, &s->config, &s->arguments, &s->error);
    return s->result;
}

#define READ(...) read_line(s, __VA_ARGS__, NULL)
#define FILE_TEXT(text) file_write(s, text, sizeof(text) - 1)

static void good(struct state *s)
{
    if (s->result != 0) {
        fail_msg("refused: %s", s->error.text);
    }
}

/* The last call must have failed as usage, with all of these words in its one line. */
static void refused(struct state *s, const char *a, const char *b)
{
    assert_int_equal(s->result, -1);
    assert_int_equal(s->error.code, E_USAGE);
    if (!strstr(s->error.text, a) || !strstr(s->error.text, b) || strchr(s->error.text, '\n')) {
        fail_msg("'%s' lacks '%s' or '%s'", s->error.text, a, b);
    }
}

/* A property as one client would get it. */
static void kafka_value(struct state *s, enum config_client client, const char *name, char *out, size_t bytes)
{
    struct error e = {0};
    rd_kafka_conf_t *conf = config_kafka(&s->config, client, &e);
    assert_non_null(conf);
    assert_int_equal(rd_kafka_conf_get(conf, name, out, &bytes), RD_KAFKA_CONF_OK);
    rd_kafka_conf_destroy(conf);
}

static void assert_kafka(struct state *s, enum config_client client, const char *name, const char *value)
{
    char got[512] = "";
    kafka_value(s, client, name, got, sizeof got);
    assert_string_equal(got, value);
}

/* The last line of standard error while a command line is read. */
static void warning_of(struct state *s, char *const *words, int argc, char *out, size_t bytes)
{
    int saved = dup(STDERR_FILENO);
    char path[128];
    snprintf(path, sizeof path, "%s/stderr", s->folder);
    assert_non_null(freopen(path, "w+", stderr));
    state_clear(s);
    s->result = config_read(&command, argc, (char **)(uintptr_t)words, &s->config, &s->arguments, &s->error);
    fflush(stderr);
    FILE *f = fopen(path, "r");
    size_t got = fread(out, 1, bytes - 1, f);
    out[got] = '\0';
    fclose(f);
    dup2(saved, STDERR_FILENO);
    close(saved);
    unlink(path);
}

/* ---- defaults and precedence
 * ------------------------------------------------------------------------------------------ */

static void test_defaults(void **context)
{
    struct state *s = *context;
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    assert_int_equal(READ(NULL), 0);
    const struct config *c = &s->config;
    assert_string_equal(c->texts_topic, "texts");
    assert_string_equal(c->predictions_topic, "predictions");
    assert_string_equal(c->instances_topic, "instances");
    assert_string_equal(c->labels_topic, "labels");
    assert_string_equal(c->dead_letters_topic, "dead-letters");
    assert_true(c->create_topics);
    assert_int_equal(c->topic_partitions, 6);
    assert_int_equal(c->topic_replication, -1);
    assert_string_equal(c->group, "engram");
    assert_string_equal(c->instance_id, host);
    assert_int_equal(c->start_from, START_EARLIEST);
    assert_int_equal(c->processing_guarantee, GUARANTEE_AT_LEAST_ONCE);
    assert_int_equal(c->batch_tokens, 0);
    assert_int_equal(c->batch_wait_ms, 0);
    assert_int_equal(c->queue_tokens, 65536);
    assert_int_equal(c->timestamp, TIMESTAMP_INPUT);
    assert_string_equal(c->model, "");
    assert_int_equal(c->max_seq_length, 0);
    assert_string_equal(c->text_prefix, "");
    assert_string_equal(c->label_prefix, "");
    assert_int_equal(c->threads, 0);
    assert_string_equal(c->memory, "engram-memory");
    assert_true(c->map_size == (int64_t)1 << 40);
    assert_int_equal(c->key_dtype, CONFIG_BF16);
    assert_true(c->store_text);
    assert_int_equal(c->keys_max, 0);
    assert_true(c->lambda == 0.5 && c->tau == 0.1 && c->min_score == 0);
    assert_int_equal(c->b, 200);
    assert_int_equal(c->labels_max, 10);
    assert_int_equal(c->evidence_max, 5);
    assert_false(c->evidence_text);
    assert_int_equal(c->log_level, LOG_LEVEL_INFO);
    assert_int_equal(c->log_format, LOG_TEXT);
    assert_string_equal(config_bootstrap_servers(c), "localhost:9092");
}

static void test_precedence(void **context)
{
    struct state *s = *context;
    FILE_TEXT("[predict]\nb = 1\nlabels_max = 1\nevidence_max = 1\n");
    setenv("ENGRAM_B", "2", 1);
    setenv("ENGRAM_LABELS_MAX", "2", 1);
    READ("-c", s->file, "--b", "3");
    good(s);
    assert_int_equal(s->config.b, 3);
    assert_int_equal(s->config.labels_max, 2);
    assert_int_equal(s->config.evidence_max, 1);
    assert_int_equal(s->config.topic_partitions, 6);
    READ("--b=4", "--b=5");
    assert_int_equal(s->config.b, 5);
    assert_int_equal(s->config.evidence_max, 5);
    /* what a flag overrides must hold all the same */
    setenv("ENGRAM_B", "many", 1);
    READ("--b", "3");
    refused(s, "ENGRAM_B", "'many'");
}

static void test_origins(void **context)
{
    struct state *s = *context;
    struct buffer out = {0};
    struct arena arena = {0};
    const struct json *root;
    FILE_TEXT("[predict]\n\nb = 1\n[kafka]\nlinger.ms = 7\n");
    setenv("ENGRAM_TAU", "0.25", 1);
    READ("-c", s->file, "--map-size", "2GiB");
    good(s);
    config_print(&s->config, true, &out);
    assert_int_equal(json_parse((struct slice){out.data, out.bytes - 1}, 3, &arena, &root, &s->error), 0);
    const char *const expected[][3] = {{"b", "1", "file:3"},
                                       {"tau", "0.25", "environment"},
                                       {"map_size", "2147483648", "flag"},
                                       {"texts_topic", "texts", "default"},
                                       {"kafka.linger.ms", "7", "file:5"},
                                       {"kafka.consumer.session.timeout.ms", "10000", "default"}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        const struct json *option = json_member(root, expected[i][0]);
        assert_non_null(option);
        assert_string_equal(json_member(option, "value")->text.data ? json_member(option, "value")->text.data : "",
                            expected[i][1]);
        assert_string_equal(json_member(option, "from")->text.data, expected[i][2]);
    }
    arena_free(&arena);
    buffer_free(&out);
}

/* ---- flags
 * -------------------------------------------------------------------------------------------------------------- */

static void test_flags(void **context)
{
    struct state *s = *context;
    READ("--label", "a", "x", "--label=b=c", "--id", "--json", "--", "--tau");
    good(s);
    assert_int_equal(arguments_count(s->arguments, "label"), 2);
    assert_string_equal(arguments_nth(s->arguments, "label", 0), "a");
    assert_string_equal(arguments_nth(s->arguments, "label", 1), "b=c");
    assert_string_equal(arguments_value(s->arguments, "label"), "b=c");
    assert_null(arguments_nth(s->arguments, "label", 2));
    assert_string_equal(arguments_value(s->arguments, "id"), "--json");
    assert_false(arguments_has(s->arguments, "json"));
    assert_int_equal(arguments_positional_count(s->arguments), 2);
    assert_string_equal(arguments_positional(s->arguments, 0), "x");
    assert_string_equal(arguments_positional(s->arguments, 1), "--tau");

    READ("-", "--json");
    assert_string_equal(arguments_positional(s->arguments, 0), "-");
    assert_true(arguments_has(s->arguments, "json"));
    READ("--tau");
    refused(s, "--tau", "needs a value");
    READ("--taw", "1");
    refused(s, "--taw", "--tau");
    READ("--batch_tokens", "1");
    refused(s, "--batch_tokens", "--batch-tokens");
    READ("--lable", "1");
    refused(s, "--lable", "--label");
    READ("--json=yes");
    refused(s, "--json", "no value");
    READ("--id", "a", "--id", "b");
    refused(s, "--id", "twice");
    READ("a", "b", "c");
    refused(s, "'c'", "too many");
    READ("-5");
    refused(s, "-5", "--");
    READ("-c");
    refused(s, "-c", "value");
}

static void test_bool_flags(void **context)
{
    struct state *s = *context;
    READ("--evidence-text", "word");
    good(s);
    assert_true(s->config.evidence_text);
    assert_string_equal(arguments_positional(s->arguments, 0), "word");
    READ("--store-text", "false", "--create-topics=No");
    good(s);
    assert_false(s->config.store_text);
    assert_false(s->config.create_topics);
    assert_int_equal(arguments_positional_count(s->arguments), 0);
    READ("--evidence-text", "--store-text=off");
    assert_true(s->config.evidence_text);
    assert_false(s->config.store_text);
    READ("--store-text=maybe");
    refused(s, "--store-text", "true | false");
}

/* ---- values
 * --------------------------------------------------------------------------------------------------------------- */

static void test_sizes(void **context)
{
    struct state *s = *context;
    static const struct {
        const char *text;
        int64_t bytes;
    } sizes[] = {{"2097152", 2097152},    {"2M", 2097152},       {"2MiB", 2097152},
                 {"4096KiB", 4194304},    {"4096 K", 4194304},   {"3g", 3221225472},
                 {"2TiB", 2199023255552}, {"1T", 1099511627776}, {"1048576B", 1048576}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        READ("--map-size", sizes[i].text);
        good(s);
        assert_true(s->config.map_size == sizes[i].bytes);
    }
    static const char *const wrong[] = {
        "", "x", "1.5G", "-1G", "1GB", "1000", "65TiB", "99999999999T", "9999999999999999999", "1 0"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        READ("--map-size", wrong[i]);
        refused(s, "--map-size", "1MiB .. 64TiB");
    }
}

static void test_ranges(void **context)
{
    struct state *s = *context;
    char many[512] = ""; /* one device more than fit */
    for (size_t i = 0; i <= CONFIG_DEVICES_MAX; i++) {
        sprintf(many + strlen(many), "%s%zu", i ? "," : "", i);
    }
    const char *const wrong[][3] = {
        {"--lambda", "1.01", "0 .. 1"},
        {"--lambda", "-0.1", "0 .. 1"},
        {"--lambda", "0,5", "0 .. 1"},
        {"--lambda", "nan", "0 .. 1"},
        {"--lambda", "0x1", "0 .. 1"},
        {"--lambda", "", "0 .. 1"},
        {"--lambda", ".", "0 .. 1"},
        {"--tau", "0", "0.0001 .. 1000"},
        {"--tau", "inf", "1000"},
        {"--b", "0", "1 .. 10000"},
        {"--b", "10001", "1 .. 10000"},
        {"--b", "1.5", "1 .. 10000"},
        {"--b", "99999999999999999999", "1 .. 10000"},
        {"--b", " 1", "1 .. 10000"},
        {"--topic-replication", "0", "-1"},
        {"--topic-partitions", "0", "1 .. 10000"},
        {"--max-seq-length", "2", "[CLS]"},
        {"--start-from", "erliest", "earliest | latest"},
        {"--key-dtype", "f16", "bf16 | f32"},
        {"--log-level", "trace", "debug"},
        {"--processing-guarantee", "exactly-once", "at-least-once"},
        {"--texts-topic", "", "topic's name"},
        {"--texts-topic", "a b", "'a b'"},
        {"--texts-topic", "..", "topic's name"},
        {"--texts-topic", "labels", "labels_topic"},
        {"--dead-letters-topic", "texts", "texts_topic"},
        {"--instance-id", "a/b", "'a/b'"},
        {"-X", "bootstrap.servers=", "bootstrap.servers is empty"},
        {"--group", "", "1 to 200"},
        {"--memory", "", "folder"},
        {"--text-prefix", "\xff", "UTF-8"},
        {"--batch-tokens", "100000", "queue_tokens"},
        {"--device", "gpu", "auto | cpu | cuda"},
        {"--devices", "0,,1", "devices is '0,,1': an item is empty; it takes numbers of devices, as in 0,1"},
        {"--devices", ",0", "an item is empty"},
        {"--devices", "0,", "an item is empty"},
        {"--devices", " ", "an item is empty"},
        {"--devices", "0,-1", "'-1' is not a number from 0 to 9999"},
        {"--devices", "all", "'all' is not a number from 0 to 9999"},
        {"--devices", "0 1", "'0 1' is not a number from 0 to 9999"},
        {"--devices", "10000", "'10000' is not a number from 0 to 9999"},
        {"--devices", "0,1,00", "0 is there twice"},
        {"--devices", many, "more than 64 numbers"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        READ(wrong[i][0], wrong[i][1]);
        refused(s, wrong[i][0], wrong[i][2]);
    }
    READ("--lambda", "1e-1", "--tau", ".04", "--min-score", "1.", "--topic-replication", "-1");
    good(s);
    assert_true(s->config.lambda == 0.1 && s->config.tau == 0.04 && s->config.min_score == 1);
    setenv("ENGRAM_QUEUE_TOKENS", "1024", 1);
    READ("--batch-tokens", "2000");
    refused(s, "--batch-tokens", "1024");
}

static void test_devices(void **context)
{
    struct state *s = *context;
    int devices[CONFIG_DEVICES_MAX];
    READ("--b", "1");
    good(s);
    assert_int_equal(s->config.device, CONFIG_DEVICE_AUTO);
    assert_int_equal(config_devices(&s->config, devices), 0);
    FILE_TEXT("[compute]\ndevice = cuda\ndevices = 3, 0 ,12\n");
    READ("-c", s->file);
    good(s);
    assert_int_equal(s->config.device, CONFIG_DEVICE_CUDA);
    assert_int_equal(config_devices(&s->config, devices), 3);
    assert_true(devices[0] == 3 && devices[1] == 0 && devices[2] == 12);
    setenv("ENGRAM_DEVICE", "cpu", 1);
    setenv("ENGRAM_DEVICES", "1", 1);
    READ("-c", s->file, "--devices", "");
    good(s);
    assert_int_equal(s->config.device, CONFIG_DEVICE_CPU);
    assert_int_equal(config_devices(&s->config, devices), 0);
    setenv("ENGRAM_DEVICES", "1,x", 1);
    READ("-c", s->file);
    refused(s, "ENGRAM_DEVICES", "'x'");
}

/* A locale whose decimal point is a comma, made in the test's folder since a bare Debian has none. */
static void comma_locale(const struct state *s)
{
    char line[512], text[8];
    snprintf(line, sizeof line,
             "cd %s && printf 'comment_char %%%%\\nescape_char /\\nLC_NUMERIC\\ndecimal_point \"<U002C>\"\\n"
             "thousands_sep \"\"\\ngrouping -1\\nEND LC_NUMERIC\\n' >source && "
             "localedef -c -i ./source -f ANSI_X3.4-1968 ./comma >/dev/null 2>&1",
             s->folder);
    assert_true(system(line) != -1); /* it says 1 for the categories that it makes up */
    setenv("LOCPATH", s->folder, 1);
    assert_non_null(setlocale(LC_NUMERIC, "comma"));
    snprintf(text, sizeof text, "%g", 1.5);
    assert_string_equal(text, "1,5");
}

static void test_locale(void **context)
{
    struct state *s = *context;
    struct buffer out = {0};
    char line[128], text[1024];
    comma_locale(s);
    READ("--tau", "0.04");
    config_print(&s->config, false, &out);
    config_print(&s->config, true, &out);
    int wrong = READ("--lambda", "0,5");
    snprintf(text, sizeof text, "%s", s->error.text);
    setlocale(LC_ALL, "C");
    unsetenv("LOCPATH");
    snprintf(line, sizeof line, "cd %s && rm -rf source comma", s->folder);
    assert_int_equal(system(line), 0);
    assert_int_equal(wrong, -1);
    assert_non_null(strstr(text, "'0,5'"));
    assert_non_null(strstr(out.data, "0.04 "));
    assert_non_null(strstr(out.data, ":0.04,"));
    assert_null(strstr(out.data, "0,04"));
    buffer_free(&out);
}

/* ---- the file
 * --------------------------------------------------------------------------------------------------------------- */

static void test_file_quirks(void **context)
{
    struct state *s = *context;
    FILE_TEXT("\xef\xbb\xbf# a comment\r\n"
              "; another\r\n"
              "\r\n"
              "[kafka]\r\n"
              "sasl.password =  pass ;word # = \"quoted\"  \r\n"
              "  bootstrap.servers=a:1,b:2\r\n"
              "[ stage ]\r\n"
              "\tgroup\t=\tmy group\t\r\n"
              "[encoder]\r\n"
              "text_prefix = \"query: \"\r\n"
              "label_prefix = \"\r\n"
              "model =\r\n"
              "[memory]\r\n"
              "memory = \"as it stands\"");
    READ("-c", s->file);
    good(s);
    assert_string_equal(s->config.group, "my group");
    assert_string_equal(s->config.text_prefix, "query: ");
    assert_string_equal(s->config.label_prefix, "\"");
    assert_string_equal(s->config.memory, "\"as it stands\"");
    assert_string_equal(config_bootstrap_servers(&s->config), "a:1,b:2");
    assert_kafka(s, CLIENT_CONSUMER, "sasl.password", "pass ;word # = \"quoted\"");
}

static void test_file_long_line(void **context)
{
    struct state *s = *context;
    struct buffer text = {0};
    buffer_string(&text, "[memory]\nmemory = /");
    for (int i = 0; i < 300000; i++) {
        buffer_byte(&text, (char)('a' + i % 26));
    }
    buffer_string(&text, "\nmap_size = 5M\n");
    file_write(s, text.data, text.bytes);
    READ("-c", s->file);
    good(s);
    assert_int_equal(strlen(s->config.memory), 300001);
    assert_int_equal(s->config.map_size, 5 << 20);
    buffer_free(&text);
}

static void test_file_errors(void **context)
{
    struct state *s = *context;
    static const struct {
        const char *text, *where, *words;
    } wrong[] = {
        {"[stage]\nbatch_tokns = 1\n", ":2:", "'batch_tokens'"},
        {"[predict]\nbatch_tokens = 1\n", ":2:", "[stage]"},
        {"b = 1\n", ":1:", "[predict]"},
        {"[stgae]\n", ":1:", "[stage]"},
        {"[stage\n", ":1:", "]"},
        {"[stage] # here\n", ":1:", "comments"},
        {"[stage]\n\nnothing\n", ":3:", "key = value"},
        {"[stage]\n= 1\n", ":2:", "key = value"},
        {"[predict]\nb =\n", ":2:", "1 .. 10000"},
        {"[predict]\nb = 5 # five\n", ":2:", "comments"},
        {"[predict]\ntau = 5 ; five\n", ":2:", "comments"},
        {"[stage]\nbootstrap.servers = a\n", ":2:", "[kafka]"},
        {"[kafka]\ngroup = a\n", ":2:", "[stage]"},
        {"[kafka]\nbootstrap.server = a\n", ":2:", "'bootstrap.servers'"},
        {"[kafka]\ngroup.id = a\n", ":2:", "option group"},
        {"[kafka.consumer]\nlinger.ms = 1\n", ":2:", "producer"},
        {"[kafka.producer]\ncompression.type = brotli\n", ":2:", "compression"},
        {"[stage]\ntimestamp = later\n", ":2:", "input | now"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        file_write(s, wrong[i].text, strlen(wrong[i].text));
        READ("-c", s->file);
        refused(s, wrong[i].where, wrong[i].words);
        refused(s, s->file, "");
    }
    FILE_TEXT("[stage]\ngroup = a\0b\n");
    READ("-c", s->file);
    refused(s, ":2:", "NUL");
    unlink(s->file);
    READ("-c", s->file);
    refused(s, s->file, "-c");
    READ("-c", s->folder);
    refused(s, s->folder, "directory");
}

static void test_warnings(void **context)
{
    struct state *s = *context;
    char text[4096];
    char *words[] = {"-c", s->file, "--log-format", "json"};
    FILE_TEXT("[predict]\nb = 1\ntau = 1\nb = 2\n[kafka]\nlinger.ms=1\nqueue.buffering.max.ms=2\n");
    setenv("ENGRAM_BATCH_TOKEN", "1", 1);
    setenv("ENGRAM_KAFKA_NONSENSE", "1", 1);
    warning_of(s, words, 4, text, sizeof text);
    good(s);
    assert_int_equal(s->config.b, 2);
    assert_non_null(strstr(text, "b is in line 2 too"));
    assert_non_null(strstr(text, "queue.buffering.max.ms is in line 6 too"));
    assert_non_null(strstr(text, "ENGRAM_BATCH_TOKEN names no option"));
    assert_non_null(strstr(text, "ENGRAM_BATCH_TOKENS"));
    assert_non_null(strstr(text, "ENGRAM_KAFKA_NONSENSE"));
    assert_int_equal(text[0], '{'); /* in the form that the options ask for */
    assert_kafka(s, CLIENT_PRODUCER, "linger.ms", "2");
    log_setup(LOG_LEVEL_INFO, false);
}

/* ---- Kafka
 * -------------------------------------------------------------------------------------------------------------------
 */

static void test_kafka_defaults(void **context)
{
    struct state *s = *context;
    READ("--instance-id", "one");
    good(s);
    for (int client = CLIENT_CONSUMER; client <= CLIENT_PRODUCER; client++) {
        assert_kafka(s, (enum config_client)client, "bootstrap.servers", "localhost:9092");
        assert_kafka(s, (enum config_client)client, "topic.metadata.refresh.interval.ms", "30000");
        assert_kafka(s, (enum config_client)client, "client.id", "engram-one");
    }
    assert_kafka(s, CLIENT_CONSUMER, "session.timeout.ms", "10000");
    assert_kafka(s, CLIENT_CONSUMER, "check.crcs", "true");
    assert_kafka(s, CLIENT_CONSUMER, "queued.max.messages.kbytes", "4096");
    assert_kafka(s, CLIENT_PRODUCER, "message.max.bytes", "4194304");
    assert_kafka(s, CLIENT_PRODUCER, "check.crcs", "false"); /* a consumer's property is not set on a producer */
    READ("-X", "metadata.broker.list=h:1", "-Xconsumer.session.timeout.ms=20000");
    good(s);
    assert_string_equal(config_bootstrap_servers(&s->config), "h:1");
    assert_kafka(s, CLIENT_PRODUCER, "bootstrap.servers", "h:1");
    assert_kafka(s, CLIENT_CONSUMER, "session.timeout.ms", "20000");
    READ("-X", "session.timeout.ms=30000", "-X", "message.max.bytes=2000000");
    assert_kafka(s, CLIENT_CONSUMER, "session.timeout.ms", "30000"); /* over a default of narrower scope */
    assert_kafka(s, CLIENT_PRODUCER, "message.max.bytes", "2000000");
}

static void test_kafka_scopes(void **context)
{
    struct state *s = *context;
    FILE_TEXT("[kafka]\nclient.id = file\nsocket.timeout.ms = 1000\nlog_level = 3\n"
              "[kafka.consumer]\nclient.id = file-consumer\nsocket.timeout.ms = 2000\n"
              "[kafka.producer]\ncompression.type = lz4\n");
    setenv("ENGRAM_KAFKA_SOCKET_TIMEOUT_MS", "3000", 1);
    setenv("ENGRAM_KAFKA_PRODUCER_SOCKET_TIMEOUT_MS", "4000", 1);
    setenv("ENGRAM_KAFKA_QUEUED_MAX_MESSAGES_KBYTES", "2048", 1);
    setenv("ENGRAM_KAFKA_CONSUMER_FETCH_MIN_BYTES", "10", 1);
    setenv("ENGRAM_KAFKA_ENABLE_SSL_CERTIFICATE_VERIFICATION", "false", 1);
    READ("-c", s->file, "-X", "producer.client.id=flag=producer");
    good(s);
    assert_kafka(s, CLIENT_CONSUMER, "client.id", "file-consumer");
    assert_kafka(s, CLIENT_PRODUCER, "client.id", "flag=producer");
    assert_kafka(s, CLIENT_CONSUMER, "socket.timeout.ms",
                 "3000"); /* a variable wins over the file, whatever its scope */
    assert_kafka(s, CLIENT_PRODUCER, "socket.timeout.ms", "4000");
    assert_kafka(s, CLIENT_PRODUCER, "compression.codec", "lz4");
    assert_kafka(s, CLIENT_CONSUMER, "log_level", "3");
    assert_kafka(s, CLIENT_CONSUMER, "queued.max.messages.kbytes", "2048");
    assert_kafka(s, CLIENT_CONSUMER, "fetch.min.bytes", "10");
    assert_kafka(s, CLIENT_PRODUCER, "enable.ssl.certificate.verification", "false");
    assert_int_equal(s->config.log_level, LOG_LEVEL_INFO);
    setenv("ENGRAM_KAFKA_GROUP_ID", "x", 1);
    READ(NULL);
    refused(s, "ENGRAM_KAFKA_GROUP_ID", "option group");
}

static void test_kafka_refused(void **context)
{
    struct state *s = *context;
    static const char *const names[] = {"enable.auto.commit",
                                        "enable.auto.offset.store",
                                        "group.id",
                                        "group.instance.id",
                                        "transactional.id",
                                        "enable.idempotence",
                                        "acks",
                                        "request.required.acks",
                                        "auto.offset.reset",
                                        "partition.assignment.strategy",
                                        "enable.partition.eof",
                                        "isolation.level",
                                        "group.protocol",
                                        "message.timeout.ms",
                                        "delivery.timeout.ms",
                                        "auto.commit.enable"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char text[128];
        snprintf(text, sizeof text, "%s=1", names[i]);
        READ("-X", text);
        refused(s, names[i], "cannot be set: ");
        snprintf(text, sizeof text, "consumer.%s=1", names[i]);
        READ("-X", text);
        refused(s, names[i], "cannot be set: ");
    }
    READ("-X", "bogus");
    refused(s, "-X", "name=value");
    READ("-X", "=1");
    refused(s, "-X", "name=value");
    READ("-X", "ssl.ca.locaton=/x");
    refused(s, "ssl.ca.locaton", "'ssl.ca.location'");
    READ("-X", "fetch.min.bytes=many");
    refused(s, "-X", "fetch.min.bytes");
    READ("-X", "rebalance_cb=1");
    refused(s, "-X", "rebalance_cb");
}

static void test_secrets(void **context)
{
    struct state *s = *context;
    struct buffer out = {0};
    static const char *const names[] = {"sasl.password", "ssl.key.password", "ssl.keystore.password", "ssl.key.pem",
                                        "sasl.oauthbearer.config"};
    FILE_TEXT("[kafka]\nsasl.password=hunter2\nssl.key.password=hunter2\nssl.keystore.password=hunter2\n"
              "sasl.oauthbearer.config=hunter2\nsasl.username=me\n");
    setenv("ENGRAM_KAFKA_CONSUMER_SSL_KEY_PEM", "hunter2", 1);
    READ("-c", s->file);
    good(s);
    config_print(&s->config, false, &out);
    config_print(&s->config, true, &out);
    assert_null(strstr(out.data, "hunter2"));
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        assert_non_null(strstr(out.data, names[i]));
    }
    assert_non_null(strstr(out.data, "\"me\""));
    assert_kafka(s, CLIENT_CONSUMER, "sasl.password", "hunter2");
    buffer_free(&out);
}

/* ---- read again
 * ------------------------------------------------------------------------------------------------------------------ */

/* The same words and file again, and what of it has changed. */
static void again(struct state *s, char **words, int argc, const char *live, const char *restart,
                  const char *overridden)
{
    struct config now = {0};
    struct config_changes c = {0};
    s->result = config_read_again(&command, argc, words, &s->config, &now, &s->error);
    good(s);
    config_compare(&s->config, &s->config, &now, &c);
    assert_string_equal(c.live.data ? c.live.data : "", live);
    assert_string_equal(c.restart.data ? c.restart.data : "", restart);
    assert_string_equal(c.overridden.data ? c.overridden.data : "", overridden);
    config_changes_free(&c);
    config_free(&now);
}

static void test_read_again(void **context)
{
    struct state *s = *context;
    char *words[] = {"-c", s->file, "--b", "7", "-X", "client.id=me"};
    char restart[512];
    setenv("ENGRAM_LAMBDA", "0.25", 1);
    FILE_TEXT("[predict]\ntau = 0.1\nb = 5\n[kafka]\nlinger.ms = 5\nsasl.password = old\n[stage]\ngroup = a\n");
    s->result = config_read(&command, 6, words, &s->config, &s->arguments, &s->error);
    good(s);
    assert_string_equal(config_file(&s->config), s->file);
    again(s, words, 6, "", "", "");
    /* other texts, the same values */
    FILE_TEXT("[stage]\ngroup = a\n[predict]\nb = 5\nlabels_max = 10\ntau = 1e-1\n[kafka]\nsasl.password=old\n"
              "queue.buffering.max.ms = 5\n");
    again(s, words, 6, "", "", "");
    /* each option that a running stage takes, and no other one */
    FILE_TEXT("[predict]\npool = apart\nlambda = 0.5\ntau = 0.2\nb = 6\nlabels_max = 0\nmin_score = 0.5\n"
              "evidence_max = 1\nevidence_text = yes\n[log]\nlog_level = warn\nlog_format = json\n[stage]\n"
              "group = a\n[encoder]\ntext_prefix = q\n[memory]\nkeys_max = 9\n[kafka]\nlinger.ms = 5\n"
              "sasl.password = old\n");
    again(s, words, 6,
          "pool joint -> apart, tau 0.1 -> 0.2, labels_max 10 -> 0, min_score 0 -> 0.5, evidence_max 5 -> 1, "
          "evidence_text false -> true, log_level info -> warn",
          "text_prefix \"\" -> q, keys_max 0 -> 9, log_format text -> json",
          "lambda (ENGRAM_LAMBDA wins over the file), b (--b wins over the file)");
    /* Kafka's properties, by their names: values may be secrets */
    FILE_TEXT("[predict]\ntau = 0.1\nb = 5\n[kafka]\nlinger.ms = 6\nsasl.password = new\nclient.id = other\n"
              "[kafka.consumer]\nsocket.timeout.ms = 7000\nsession.timeout.ms = 9000\n[stage]\ninstance_id = b\n");
    snprintf(restart, sizeof restart,
             "group a -> engram, instance_id %s -> b, kafka.linger.ms, kafka.sasl.password, "
             "kafka.consumer.session.timeout.ms, kafka.consumer.socket.timeout.ms",
             s->config.instance_id);
    again(s, words, 6, "", restart, "");
}

static void test_read_again_refused(void **context)
{
    struct state *s = *context;
    struct config now = {0};
    char *words[] = {"-c", s->file};
    char link[] = "/dev/fd/0123";
    int ends[2];
    FILE_TEXT("[predict]\ntau = 0.1\n");
    s->result = config_read(&command, 2, words, &s->config, &s->arguments, &s->error);
    good(s);
    FILE_TEXT("[predict]\ntau = 0.2\nb = 0\n");
    s->result = config_read_again(&command, 2, words, &s->config, &now, &s->error);
    refused(s, "engram.conf:3", "b is '0'");
    config_free(&now);
    FILE_TEXT("[stage]\nbatch_tokens = 70000\n");
    s->result = config_read_again(&command, 2, words, &s->config, &now, &s->error);
    refused(s, "engram.conf:2", "queue_tokens");
    config_free(&now);
    unlink(s->file);
    s->result = config_read_again(&command, 2, words, &s->config, &now, &s->error);
    refused(s, "engram.conf", "No such file");
    config_free(&now);
    /* what gives nothing a second time must not put all back to its default */
    assert_int_equal(pipe(ends), 0);
    snprintf(link, sizeof link, "/dev/fd/%d", ends[0]);
    assert_int_equal(write(ends[1], "[predict]\nb = 9\n", 16), 16);
    close(ends[1]);
    words[1] = link;
    state_clear(s);
    s->result = config_read(&command, 2, words, &s->config, &s->arguments, &s->error);
    good(s);
    assert_int_equal(s->config.b, 9);
    s->result = config_read_again(&command, 2, words, &s->config, &now, &s->error);
    refused(s, link, "cannot be read a second time");
    config_free(&now);
    close(ends[0]);
}

/* ---- the rest
 * ---------------------------------------------------------------------------------------------------------------- */

static void test_nearest(void **context)
{
    static const char *const names[] = {"tag", "load", "eval", "encode", "teach"};
    (void)context;
    assert_string_equal(config_nearest("tga", names, 5), "tag");
    assert_string_equal(config_nearest("laod", names, 5), "load");
    assert_string_equal(config_nearest("encoder", names, 5), "encode");
    assert_string_equal(config_nearest("Teach", names, 5), "teach");
    assert_null(config_nearest("x", names, 0));
    static const char *const options[] = {"map_size", "batch_wait_ms", "batch_tokens"};
    assert_string_equal(config_nearest("batch_size", options, 3), "batch_tokens");
}

static void test_error_text_is_optional(void **context)
{
    struct state *s = *context;
    char *words[] = {"--start-from", "never"};
    state_clear(s);
    assert_int_equal(config_read(&command, 2, words, &s->config, &s->arguments, NULL), -1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_defaults),
        TEST(test_precedence),
        TEST(test_origins),
        TEST(test_flags),
        TEST(test_bool_flags),
        TEST(test_sizes),
        TEST(test_ranges),
        TEST(test_devices),
        TEST(test_locale),
        TEST(test_file_quirks),
        TEST(test_file_long_line),
        TEST(test_file_errors),
        TEST(test_warnings),
        TEST(test_kafka_defaults),
        TEST(test_kafka_scopes),
        TEST(test_kafka_refused),
        TEST(test_secrets),
        TEST(test_read_again),
        TEST(test_read_again_refused),
        TEST(test_nearest),
        TEST(test_error_text_is_optional),
    };
    variables_unset();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
