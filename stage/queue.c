/* A bounded first-in-first-out queue between two threads of a lane, bounded by the weight of what waits (tokens, or
 * batches). It also counts what was taken and is not done yet, so that a drain can wait for the work in hand. The
 * surprise: an item heavier than the bound is let in when the queue is empty, or it would wait for ever. */
#include "stage/internal.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"

struct queue_entry {
    struct queue_entry *next;
    void *item;
    size_t weight;
};

struct queue {
    pthread_mutex_t lock; /* covers everything below */
    pthread_cond_t changed;
    struct queue_entry *head, **end;
    size_t weight, weight_max;
    size_t taken; /* items out of queue_take and not yet in queue_done */
    bool closed;
};

struct queue *queue_open(size_t weight_max)
{
    struct queue *q = mem_zero(1, sizeof *q);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    q->end = &q->head;
    q->weight_max = weight_max;
    return q;
}

void queue_free(struct queue *q, void (*release)(void *item))
{
    if (!q) {
        return;
    }
    queue_clear(q, release);
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

static struct timespec queue_deadline(unsigned wait_ms)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += wait_ms / 1000;
    at.tv_nsec += (long)(wait_ms % 1000) * 1000000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000;
    }
    return at;
}

/* Waits for a change until the deadline; false once it has passed. The lock is held. */
static bool queue_wait(struct queue *q, const struct timespec *deadline)
{
    return pthread_cond_timedwait(&q->changed, &q->lock, deadline) != ETIMEDOUT;
}

bool queue_push(struct queue *q, void *item, size_t weight, unsigned wait_ms)
{
    struct timespec deadline = queue_deadline(wait_ms);
    bool waiting = wait_ms > 0;
    pthread_mutex_lock(&q->lock);
    while (!q->closed && q->head && q->weight + weight > q->weight_max && waiting) {
        waiting = queue_wait(q, &deadline);
    }
    bool room = !q->closed && (!q->head || q->weight + weight <= q->weight_max);
    if (room) {
        struct queue_entry *entry = mem_alloc(sizeof *entry);
        *entry = (struct queue_entry){.item = item, .weight = weight};
        *q->end = entry;
        q->end = &entry->next;
        q->weight += weight;
        pthread_cond_broadcast(&q->changed);
    }
    pthread_mutex_unlock(&q->lock);
    return room;
}

bool queue_wait_below(struct queue *q, size_t weight, unsigned wait_ms)
{
    struct timespec deadline = queue_deadline(wait_ms);
    bool waiting = true;
    pthread_mutex_lock(&q->lock);
    while (q->weight >= weight && waiting) {
        waiting = queue_wait(q, &deadline);
    }
    bool below = q->weight < weight;
    pthread_mutex_unlock(&q->lock);
    return below;
}

static void *queue_pop(struct queue *q)
{
    struct queue_entry *entry = q->head;
    void *item = entry->item;
    q->head = entry->next;
    if (!q->head) {
        q->end = &q->head;
    }
    q->weight -= entry->weight;
    free(entry);
    return item;
}

size_t queue_take(struct queue *q, void **items, size_t items_max, size_t weight_max, unsigned fill_ms)
{
    size_t count = 0;
    size_t weight = 0;
    pthread_mutex_lock(&q->lock);
    do { /* again where it was cleared while it filled */
        while (!q->closed && !q->head) {
            pthread_cond_wait(&q->changed, &q->lock);
        }
        struct timespec deadline = queue_deadline(fill_ms);
        for (bool waiting = fill_ms > 0; waiting && !q->closed && q->head && q->weight < weight_max;) {
            waiting = queue_wait(q, &deadline);
        }
    } while (!q->closed && !q->head);
    while (!q->closed && q->head && count < items_max && (count == 0 || weight + q->head->weight <= weight_max)) {
        weight += q->head->weight;
        items[count++] = queue_pop(q);
    }
    q->taken += count;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
    return count;
}

void queue_done(struct queue *q, size_t count)
{
    pthread_mutex_lock(&q->lock);
    q->taken -= count;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

bool queue_settle(struct queue *q, unsigned wait_ms)
{
    struct timespec deadline = queue_deadline(wait_ms);
    bool waiting = true;
    pthread_mutex_lock(&q->lock);
    while (q->taken > 0 && waiting) {
        waiting = queue_wait(q, &deadline);
    }
    bool settled = q->taken == 0;
    pthread_mutex_unlock(&q->lock);
    return settled;
}

void queue_clear(struct queue *q, void (*release)(void *item))
{
    pthread_mutex_lock(&q->lock);
    while (q->head) {
        release(queue_pop(q));
    }
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

void queue_close(struct queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

size_t queue_weight(struct queue *q)
{
    pthread_mutex_lock(&q->lock);
    size_t weight = q->weight;
    pthread_mutex_unlock(&q->lock);
    return weight;
}
