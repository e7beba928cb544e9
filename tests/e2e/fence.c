/* Preloaded before the stage: while the file that TEST_FENCE names exists, the next look of a consumer for a fatal
 * error finds that it was fenced, and the file goes. So does librdkafka when a commit leaves a client whose session ran
 * out amid a broker's restart, which needs a moment that no test can hit at will. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <librdkafka/rdkafka.h>
#include <stdlib.h>
#include <unistd.h>

rd_kafka_resp_err_t rd_kafka_fatal_error(rd_kafka_t *rk, char *text, size_t bytes)
{
    rd_kafka_resp_err_t (*next)(rd_kafka_t *, char *, size_t) = dlsym(RTLD_NEXT, "rd_kafka_fatal_error");
    const char *name = getenv("TEST_FENCE");
    if (name && rd_kafka_type(rk) == RD_KAFKA_CONSUMER && unlink(name) == 0) {
        rd_kafka_test_fatal_error(rk, RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, "as if fenced");
    }
    return next(rk, text, bytes);
}
