/* Turns on the backend. One thread holds it at a time, for one slice of work; when it is given back:
 *   - a waiting fold goes first, so that a label is live in milliseconds;
 *   - but once the stage is ready, never twice in a row while texts wait, so that a bulk of labels starves no text.
 * No clock and no priority: `last` and two counters decide, whatever order the system wakes threads in. */
#include "engine/internal.h"

void turns_open(struct turns *t)
{
    *t = (struct turns){.ready = true, .last = TURN_TEXT};
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->changed, NULL);
}

void turns_close(struct turns *t)
{
    pthread_cond_destroy(&t->changed);
    pthread_mutex_destroy(&t->lock);
}

static bool turn_is(const struct turns *t, enum turn turn)
{
    if (t->busy) {
        return false;
    }
    bool texts_are_due = t->ready && t->last == TURN_LEARN;
    return turn == TURN_LEARN ? !(texts_are_due && t->waiting[TURN_TEXT]) : texts_are_due || !t->waiting[TURN_LEARN];
}

void turns_take(struct turns *t, enum turn turn)
{
    pthread_mutex_lock(&t->lock);
    t->waiting[turn]++;
    while (!turn_is(t, turn)) {
        pthread_cond_wait(&t->changed, &t->lock);
    }
    t->waiting[turn]--;
    t->busy = true;
    t->last = turn;
    pthread_mutex_unlock(&t->lock);
}

void turns_give(struct turns *t)
{
    pthread_mutex_lock(&t->lock);
    t->busy = false;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

void turns_ready(struct turns *t, bool ready)
{
    pthread_mutex_lock(&t->lock);
    t->ready = ready;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}
