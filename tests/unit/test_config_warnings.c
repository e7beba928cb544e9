/* What a configuration warns about, and what it leaves out: the variables that Kubernetes sets for a Service, and empty
 * ones; Kafka's properties that do not fit each other. Each test starts with no ENGRAM_ variable set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "config/config.h"
#include "tests/unit/variables.h"

static const struct config_command command = {.name = "probe", .usage = "", .help = "Probes.", .example = ""};

/* What one call gave: its configuration, and what it logged. */
struct state {
    struct config config;
    struct error error;
    int result;
    char logged[8192];
};

/* Before each test and after it. */
static int environment_clear(void **context)
{
    (void)context;
    variables_unset();
    return 0;
}

/* Reads a command line, ended by NULL, with standard error in a file meanwhile. */
static void read_line(struct state *s, ...)
{
    char *argv[8];
    int argc = 0;
    struct arguments *arguments = NULL;
    va_list words;
    va_start(words, s);
    for (char *word; (word = va_arg(words, char *));) {
        argv[argc++] = word;
    }
    va_end(words);
    FILE *log = tmpfile();
    int saved = dup(STDERR_FILENO);
    assert_non_null(log);
    dup2(fileno(log), STDERR_FILENO);
    *s = (struct state){0};
    s->result = config_read(&command, argc, argv, &s->config, &arguments, &s->error);
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(log);
    s->logged[fread(s->logged, 1, sizeof s->logged - 1, log)] = '\0';
    fclose(log);
    arguments_free(arguments);
    if (s->result != 0) {
        fail_msg("refused: %s", s->error.text);
    }
}

#define READ(...) read_line(&s, __VA_ARGS__, NULL)
#define READ_NOTHING() read_line(&s, NULL)

static size_t lines(const char *text)
{
    size_t count = 0;
    for (const char *c = text; *c; c++) {
        count += *c == '\n';
    }
    return count;
}

static void assert_says(const struct state *s, const char *words)
{
    if (!strstr(s->logged, words)) {
        fail_msg("'%s' is not in: %s", words, s->logged);
    }
}

/* What the kubelet sets for a Service of one port with a name. */
static void service_set(const char *prefix)
{
    static const char *const variables[][2] = {
        {"SERVICE_HOST", "10.0.0.1"},
        {"SERVICE_PORT", "8080"},
        {"SERVICE_PORT_HTTP", "8080"},
        {"PORT", "tcp://10.0.0.1:8080"},
        {"PORT_8080_TCP", "tcp://10.0.0.1:8080"},
        {"PORT_8080_TCP_PROTO", "tcp"},
        {"PORT_8080_TCP_PORT", "8080"},
        {"PORT_8080_TCP_ADDR", "10.0.0.1"},
    };
    for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s_%s", prefix, variables[i][0]);
        setenv(name, variables[i][1], 1);
    }
}

/* A Service named engram collides with the option port. */
static void test_service(void **context)
{
    (void)context;
    struct state s;
    service_set("ENGRAM");
    READ_NOTHING();
    assert_int_equal(s.config.port, 8080);
    assert_int_equal(lines(s.logged), 1);
    assert_says(&s, "ENGRAM_PORT and 7 more");
    config_free(&s.config);
    READ("--port", "9");
    assert_int_equal(s.config.port, 9);
    config_free(&s.config);
}

/* Services named engram-kafka, engram-kafka-consumer and engram-b, over UDP and SCTP too: still one warning. */
static void test_services(void **context)
{
    (void)context;
    struct state s;
    service_set("ENGRAM");
    service_set("ENGRAM_KAFKA");
    service_set("ENGRAM_KAFKA_CONSUMER");
    service_set("ENGRAM_B");
    setenv("ENGRAM_DNS_PORT", "udp://[fd00::1]:53", 1);
    setenv("ENGRAM_DNS_PORT_53_UDP", "udp://[fd00::1]:53", 1);
    setenv("ENGRAM_DNS_PORT_53_SCTP_ADDR", "fd00::1", 1);
    READ_NOTHING();
    assert_int_equal(lines(s.logged), 1);
    assert_says(&s, "ENGRAM_B_PORT and 34 more");
    config_free(&s.config);
}

/* A port that somebody set is a port, and what only looks like a Service's is still warned about by name. */
static void test_no_service(void **context)
{
    (void)context;
    struct state s;
    setenv("ENGRAM_PORT", "9090", 1);
    setenv("ENGRAM_TEXT_PREFIX", "tcp://", 1);
    setenv("ENGRAM_PORT_HTTP", "1", 1);
    setenv("ENGRAM_EXPORT_X_TCP", "1", 1);
    READ_NOTHING();
    assert_int_equal(s.config.port, 9090);
    assert_string_equal(s.config.text_prefix, "tcp://");
    assert_int_equal(lines(s.logged), 2);
    assert_says(&s, "ENGRAM_PORT_HTTP names no option");
    assert_says(&s, "ENGRAM_EXPORT_X_TCP names no option");
    config_free(&s.config);
}

/* An empty variable is as good as none: for a number, a text, a property, and where it names nothing. */
static void test_empty(void **context)
{
    (void)context;
    struct state s;
    setenv("ENGRAM_PORT", "", 1);
    setenv("ENGRAM_MEMORY", "", 1);
    setenv("ENGRAM_EVIDENCE_TEXT", "", 1);
    setenv("ENGRAM_KAFKA_BOOTSTRAP_SERVERS", "", 1);
    setenv("ENGRAM_KAFKA_SOCKET_TIMEOUT_MS", "", 1);
    setenv("ENGRAM_NONSENSE", "", 1);
    READ_NOTHING();
    assert_string_equal(s.logged, "");
    assert_int_equal(s.config.port, 8080);
    assert_string_equal(s.config.memory, "engram-memory");
    assert_false(s.config.evidence_text);
    assert_string_equal(config_bootstrap_servers(&s.config), "localhost:9092");
    config_free(&s.config);
}

/* ---- a session of fewer than three heartbeats ---- */

static void test_heartbeats(void **context)
{
    (void)context;
    struct state s;
    READ_NOTHING();
    assert_string_equal(s.logged, "");
    config_free(&s.config);
    READ("-X", "session.timeout.ms=9000");
    assert_string_equal(s.logged, "");
    config_free(&s.config);
    READ("-X", "session.timeout.ms=8999");
    assert_int_equal(lines(s.logged), 1);
    assert_says(&s, "session.timeout.ms (8999) is less than three times heartbeat.interval.ms (3000)");
    config_free(&s.config);
    READ("-X", "heartbeat.interval.ms=4000"); /* against Engram's own session.timeout.ms */
    assert_says(&s, "session.timeout.ms (10000) is less than three times heartbeat.interval.ms (4000)");
    config_free(&s.config);
    READ("-X", "consumer.heartbeat.interval.ms=5000", "-X", "session.timeout.ms=15000");
    assert_string_equal(s.logged, "");
    config_free(&s.config);
    setenv("ENGRAM_KAFKA_CONSUMER_SESSION_TIMEOUT_MS", "6000", 1);
    READ("-X", "session.timeout.ms=45000"); /* the flag wins over the variable */
    assert_string_equal(s.logged, "");
    config_free(&s.config);
    READ_NOTHING();
    assert_says(&s, "session.timeout.ms (6000)");
    config_free(&s.config);
}

/* ---- an option without effect ---- */

static void test_devices(void **context)
{
    (void)context;
    struct state s;
    READ("--devices", "0,1");
    assert_string_equal(s.logged, "");
    config_free(&s.config);
    READ("--device", "cpu");
    assert_string_equal(s.logged, "");
    config_free(&s.config);
    READ("--device", "cpu", "--devices", "0,1");
    assert_int_equal(lines(s.logged), 1);
    assert_says(&s, "devices is '0,1', to no effect: device is cpu");
    config_free(&s.config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_service, environment_clear, environment_clear),
        cmocka_unit_test_setup_teardown(test_services, environment_clear, environment_clear),
        cmocka_unit_test_setup_teardown(test_no_service, environment_clear, environment_clear),
        cmocka_unit_test_setup_teardown(test_empty, environment_clear, environment_clear),
        cmocka_unit_test_setup_teardown(test_heartbeats, environment_clear, environment_clear),
        cmocka_unit_test_setup_teardown(test_devices, environment_clear, environment_clear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
