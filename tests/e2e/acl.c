/* One right given or taken, for tests, by a super user: confluent_kafka 1.7 cannot.
 *   acl BROKERS give|take topic|group NAME OPERATION PRINCIPAL      OPERATION as librdkafka names it: Read, Write, ...
 */
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { WAIT_MS = 30000 };

static rd_kafka_AclOperation_t operation_named(const char *name)
{
    for (int i = 0; i < RD_KAFKA_ACL_OPERATION__CNT; i++) {
        if (strcasecmp(rd_kafka_AclOperation_name((rd_kafka_AclOperation_t)i), name) == 0) {
            return (rd_kafka_AclOperation_t)i;
        }
    }
    return RD_KAFKA_ACL_OPERATION_UNKNOWN;
}

/* 0: the broker has done it. */
static int result_of(rd_kafka_event_t *event, int give)
{
    size_t count = 0;
    if (!event || rd_kafka_event_error(event)) {
        fprintf(stderr, "acl: %s\n", event ? rd_kafka_event_error_string(event) : "no answer");
        return 1;
    }
    if (give) {
        const rd_kafka_acl_result_t **made =
            rd_kafka_CreateAcls_result_acls(rd_kafka_event_CreateAcls_result(event), &count);
        return count != 1 || rd_kafka_acl_result_error(made[0]);
    }
    const rd_kafka_DeleteAcls_result_response_t **taken =
        rd_kafka_DeleteAcls_result_responses(rd_kafka_event_DeleteAcls_result(event), &count);
    if (count == 1) {
        rd_kafka_DeleteAcls_result_response_matching_acls(taken[0], &count);
    }
    return count != 1; /* a right that was never given is a mistake of the test's */
}

int main(int argc, char **argv)
{
    char text[256] = "";
    if (argc != 7) {
        return 2;
    }
    int give = strcmp(argv[2], "give") == 0;
    rd_kafka_ResourceType_t type = strcmp(argv[3], "topic") == 0 ? RD_KAFKA_RESOURCE_TOPIC : RD_KAFKA_RESOURCE_GROUP;
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_conf_set(conf, "bootstrap.servers", argv[1], text, sizeof text);
    rd_kafka_t *rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof text);
    rd_kafka_AclBinding_t *acl = (give ? rd_kafka_AclBinding_new : rd_kafka_AclBindingFilter_new)(
        type, argv[4], RD_KAFKA_RESOURCE_PATTERN_LITERAL, argv[6], "*", operation_named(argv[5]),
        RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW, text, sizeof text);
    if (!rk || !acl) {
        fprintf(stderr, "acl: %s\n", text);
        return 1;
    }
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    if (give) {
        rd_kafka_CreateAcls(rk, &acl, 1, NULL, queue);
    } else {
        rd_kafka_DeleteAcls(rk, &acl, 1, NULL, queue);
    }
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, WAIT_MS);
    int status = result_of(event, give);
    if (event) {
        rd_kafka_event_destroy(event);
    }
    rd_kafka_queue_destroy(queue);
    rd_kafka_AclBinding_destroy(acl);
    rd_kafka_destroy(rk);
    return status;
}
