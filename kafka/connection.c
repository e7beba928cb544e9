/* Why a connection to a broker fails, in words: what librdkafka says of it, without what the line has already and
 * without what may be a secret, and what to do about it. librdkafka has one code for all that TLS can refuse, so its
 * words are read; only what is wrong with a broker's certificate is asked of OpenSSL, for those words are the same in
 * each case. */
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <string.h>

#include "kafka/internal.h"

enum { SCRAM_FIXED = 0x02060100 }; /* librdkafka 2.6.1 */

/* By OpenSSL's numbers (openssl/x509_vfy.h). */
static const struct flaw {
    int errors[4];
    const char *reason, *advice;
} flaws[] = {
    {{62, 64}, "its certificate is for another name", "name the broker in bootstrap.servers as its certificate does"},
    {{10}, "its certificate has expired", "renew the broker's certificate"},
    {{9}, "its certificate is not valid yet", "check the clock of this machine"},
    {{18, 19, 20, 21},
     "its certificate is signed by none of the authorities in ssl.ca.location",
     "set it to the certificate of the authority that did"},
    {{0}, "its certificate is not valid", "check it with `openssl s_client -connect HOST:PORT`"},
};

enum { FLAWS = sizeof flaws / sizeof flaws[0] };

#define PROTOCOL "set security.protocol as the broker's listener has it"
#define CERTIFICATE                                                                                                    \
    "the broker refuses this client's certificate: check that ssl.certificate.location and ssl.key.location are set, " \
    "that the certificate has not expired, and that the broker trusts its authority"

/* By librdkafka's words, the first that is found. A guess counts only until a broker has answered. */
static const struct refusal {
    const char *mark, *advice;
    bool guess;
} refusals[] = {
    {"alert bad certificate", CERTIFICATE, false},
    {"alert certificate", CERTIFICATE, false},
    {"alert unknown ca", CERTIFICATE, false},
    {"alert handshake failure", CERTIFICATE, false},
    {"security.protocol", PROTOCOL, true},
    {"unexpected eof", PROTOCOL, true},
    {"wrong version number", PROTOCOL, false},
    {"Unsupported SASL mechanism", "set sasl.mechanisms to one that the broker has", false},
    {"authentication", "check sasl.username and sasl.password", false},
};

int connection_certificate_check(struct rd_kafka_s *rk, const char *broker, int32_t id, int *x509_error, int depth,
                                 const char *der, size_t bytes, char *text, size_t text_bytes, void *opaque)
{
    struct kafka_client *c = opaque;
    (void)rk, (void)broker, (void)id, (void)depth, (void)der, (void)bytes;
    if (*x509_error) {
        atomic_store(&c->certificate, *x509_error);
        snprintf(text, text_bytes, "OpenSSL's error %d", *x509_error);
    }
    return *x509_error == 0;
}

static const struct flaw *flaw_of(const struct kafka_client *c)
{
    if (!strstr(c->reason, "certificate verify failed")) {
        return NULL;
    }
    int error = atomic_load(&c->certificate);
    size_t i = 0;
    for (; i < FLAWS - 1; i++) {
        for (size_t k = 0; k < sizeof flaws[i].errors / sizeof flaws[i].errors[0]; k++) {
            if (error && flaws[i].errors[k] == error) {
                return &flaws[i];
            }
        }
    }
    return &flaws[i];
}

/* What librdkafka repeats of a value that may be a secret: kinit's command, an unsecured token's settings. */
static void secrets_hide(char *text)
{
    static const char *const marks[] = {
        "ticket refresh failed: ", "ticket with command: ", "oauthbearer.config beginning at: "};
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        char *at = strstr(text, marks[i]);
        if (at) {
            snprintf(at + strlen(marks[i]), strlen(at + strlen(marks[i])) + 1, "********");
        }
    }
}

void connection_text(const char *text, char *out, size_t bytes)
{
    if (strncmp(text, "[thrd:", 6) == 0 && strstr(text, "]: ")) {
        text = strstr(text, "]: ") + 3;
    }
    snprintf(out, bytes, "%s", text);
    secrets_hide(out);
}

/* librdkafka guesses at another protocol where a connection breaks early, as it does too when a broker dies. A client
 * that a broker has answered speaks the right one. */
static bool answered(const struct kafka_client *c)
{
    char *cluster = c->rk ? rd_kafka_clusterid(c->rk, 0) : NULL;
    if (cluster) {
        rd_kafka_mem_free(c->rk, cluster);
    }
    return cluster != NULL;
}

/* "…/1: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)": without the address in
 * front, which the message has already, and without what was identical before; "error:0A000412:SSL routines::reason"
 * without OpenSSL's numbers. */
void connection_failed(struct kafka_client *c, const char *text)
{
    char whole[512];
    connection_text(text, whole, sizeof whole);
    const char *start = strstr(whole, ": ");
    const char *failed = strstr(whole, " failed: ");
    const char *openssl = strstr(whole, "error:") ? strstr(whole, "::") : NULL;
    start = failed ? failed + strlen(" failed: ") : start ? start + 2 : whole;
    size_t word = strcspn(start, " ");
    if (word > 1 && start[word] && start[word - 1] == ':' && memchr(start, ':', word - 1)) {
        start += word + 1; /* the address once more */
    }
    start = openssl ? openssl + 2 : start;
    const char *after = strstr(start, " (");
    snprintf(c->reason, sizeof c->reason, "%.*s", after ? (int)(after - start) : -1, start);
    char *guess = answered(c) && strstr(c->reason, "security.protocol") ? strstr(c->reason, ": ") : NULL;
    if (guess) {
        *guess = '\0';
    }
}

const char *connection_advice(const struct kafka_client *c)
{
    const struct flaw *flaw = flaw_of(c);
    if (flaw) {
        return flaw->advice;
    }
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        if (strstr(c->reason, refusals[i].mark)) {
            return refusals[i].guess && answered(c) ? NULL
                   : strstr(c->reason, "credentials") && strstr(c->reason, "SCRAM") && rd_kafka_version() < SCRAM_FIXED
                       ? "check sasl.username and sasl.password; brokers from Kafka 4 on refuse SCRAM of librdkafka "
                         "before 2.6.1, which this one is"
                       : refusals[i].advice;
        }
    }
    return NULL;
}

void connection_words(const struct kafka_client *c, const char *advice, struct buffer *out)
{
    const struct flaw *flaw = flaw_of(c);
    buffer_format(out, "no connection to %s: %s: %s", c->brokers, flaw ? flaw->reason : c->reason, advice);
}
