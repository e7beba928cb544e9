/* The publisher: begin, publish, commit, abort behind a table of functions. At-least-once is the first implementation:
 * every output acknowledged by all replicas, then the offsets committed to the group. Exactly-once will be the second,
 * with the offsets inside the transaction, on the same outbox. */
#include <stdlib.h>

#include "producer/internal.h"

struct publisher_functions {
    int (*begin)(struct publisher *p, struct error *e);
    int (*publish)(struct publisher *p, struct outcome *outcomes, size_t n, struct error *e);
    int (*commit)(struct publisher *p, struct error *e);
    void (*abort)(struct publisher *p);
};

struct publisher {
    const struct publisher_functions *functions;
    struct committer committer; /* commit NULL: no offsets of ours */
    struct kafka_wait wait;
    struct outbox *box;
    struct partition_offset *offsets; /* to be committed, one a partition */
    size_t offsets_count;
};

/* ---- at least once ---- */

static int plain_begin(struct publisher *p, struct error *e)
{
    return outbox_begin(p->box, e);
}

static int plain_publish(struct publisher *p, struct outcome *outcomes, size_t n, struct error *e)
{
    for (size_t i = 0; i < n; i++) {
        if (outbox_add(p->box, &outcomes[i], e)) {
            return -1;
        }
    }
    return 0;
}

static int plain_commit(struct publisher *p, struct error *e)
{
    if (outbox_flush(p->box, e)) {
        return -1;
    }
    if (p->committer.commit && p->offsets_count) {
        return p->committer.commit(p->committer.consumer, p->offsets, p->offsets_count, &p->wait, e);
    }
    return 0;
}

static void plain_abort(struct publisher *p)
{
    outbox_clear(p->box);
}

static const struct publisher_functions at_least_once = {plain_begin, plain_publish, plain_commit, plain_abort};

/* ---- what is common ---- */

int publisher_open(struct publisher **out, const struct config *config, const struct committer *committer,
                   const struct kafka_wait *wait, struct error *e)
{
    struct publisher *p = mem_zero(1, sizeof *p);
    *out = NULL;
    p->functions = &at_least_once;
    p->committer = committer ? *committer : (struct committer){0};
    p->wait = wait ? *wait : (struct kafka_wait){0};
    if (outbox_open(&p->box, config, wait, e)) {
        free(p);
        return -1;
    }
    *out = p;
    return 0;
}

void publisher_close(struct publisher *p)
{
    if (p) {
        outbox_close(p->box);
        free(p->offsets);
        free(p);
    }
}

int publisher_begin(struct publisher *p, struct error *e)
{
    return p->functions->begin(p, e);
}

static void offsets_keep(struct publisher *p, const struct partition_offset *offset)
{
    for (size_t i = 0; i < p->offsets_count; i++) {
        if (p->offsets[i].partition == offset->partition) {
            p->offsets[i] = *offset;
            return;
        }
    }
    p->offsets = mem_resize(p->offsets, (p->offsets_count + 1) * sizeof *p->offsets);
    p->offsets[p->offsets_count++] = *offset;
}

int publisher_publish(struct publisher *p, struct outcome *outcomes, size_t n, const struct partition_offset *offsets,
                      size_t offsets_count, struct error *e)
{
    for (size_t i = 0; i < offsets_count; i++) {
        offsets_keep(p, &offsets[i]);
    }
    return p->functions->publish(p, outcomes, n, e);
}

int publisher_commit(struct publisher *p, struct error *e)
{
    if (p->functions->commit(p, e)) {
        return -1;
    }
    outbox_clear(p->box);
    p->offsets_count = 0;
    return 0;
}

void publisher_abort(struct publisher *p)
{
    p->functions->abort(p);
    p->offsets_count = 0;
}

bool publisher_troubled(struct publisher *p, char words[TROUBLE_BYTES])
{
    return outbox_troubled(p->box, words);
}
