/* One operation shared by several streams: its owner and the threads that lend themselves (assist) take its parts off a
 * counter. Lock-free: nobody waits but the owner, at the end, for parts that others have begun; where that took long,
 * it shares nothing for a while.
 *
 * What an operation is (run, operation) is written by its owner alone, before `claim` shows new parts; who has taken
 * one of them may read it, since the operation cannot end before that part is done. The generation in `claim` makes
 * sure that a part is one of the operation that was looked at. */
#include <sched.h>

#include "base/clock.h"
#include "gpu/cpu/internal.h"

enum {
    SPINS = 2000, /* looks at a counter (some 0.1 ms), before the CPU is left to others between two looks */
    HELD_UP_US = 100,
    REST = 500,        /* operations: some ten texts */
    NONE = 0xffff,     /* no part */
    PARTS_MAX = 0xfffe /* of an operation */
};

static void pause_once(size_t *spins)
{
    if (++*spins > SPINS) {
        sched_yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* claim: generation, next part, parts; 32, 16 and 16 bits. */
static size_t part_claim(struct share *share)
{
    uint64_t claim = atomic_load_explicit(&share->claim, memory_order_acquire);
    for (;;) {
        const size_t next = claim >> 16 & 0xffff, parts = claim & 0xffff;
        if (next >= parts) {
            return NONE;
        }
        if (atomic_compare_exchange_weak_explicit(&share->claim, &claim, claim + (1 << 16), memory_order_acq_rel,
                                                  memory_order_acquire)) {
            return next;
        }
    }
}

static void part_run(struct share *share, struct stream *s, size_t part)
{
    share->run(s, share->operation, true, part);
    if (s->error.kind != ERROR_NONE && !atomic_exchange(&share->failed, true)) {
        share->error = s->error;
    }
    atomic_fetch_add_explicit(&share->done, 1, memory_order_release);
}

/* A part that somebody began and the CPU was then taken from: nothing is shared for a while, or on a busy machine every
 * operation would wait like this. */
static bool held_up(uint64_t start, uint64_t own_end, uint64_t end, size_t own)
{
    return own > 0 && end - own_end > 2 * (own_end - start) / own + HELD_UP_US;
}

static void shared_run(struct share *share, struct stream *s, part_function *run, const void *operation, size_t parts)
{
    const uint64_t generation = (atomic_load_explicit(&share->claim, memory_order_relaxed) >> 32) + 1;
    const uint64_t start = clock_us();
    size_t part, own = 0, spins = 0;
    share->run = run;
    share->operation = operation;
    atomic_store_explicit(&share->failed, false, memory_order_relaxed);
    atomic_store_explicit(&share->done, 0, memory_order_relaxed);
    atomic_store_explicit(&share->claim, generation << 32 | parts, memory_order_release);
    for (; (part = part_claim(share)) != NONE; own++) {
        part_run(share, s, part);
    }
    const uint64_t own_end = clock_us();
    while (atomic_load_explicit(&share->done, memory_order_acquire) < parts) {
        pause_once(&spins);
    }
    if (held_up(start, own_end, clock_us(), own)) {
        atomic_store_explicit(&share->rest, REST, memory_order_relaxed);
    }
    if (atomic_load_explicit(&share->failed, memory_order_relaxed)) {
        s->error = share->error;
    }
}

/* An owner who finds that nothing is to be shared counts it. */
static bool rests(struct share *share)
{
    const size_t rest = atomic_load_explicit(&share->rest, memory_order_relaxed);
    if (rest > 0) {
        atomic_store_explicit(&share->rest, rest - 1, memory_order_relaxed);
    }
    return rest > 0;
}

void share_run(struct stream *s, part_function *run, const void *operation, const size_t parts[2])
{
    struct share *share = &s->cpu->share;
    if (parts[true] > 1 && parts[true] <= PARTS_MAX &&
        atomic_load_explicit(&share->helpers, memory_order_relaxed) > 0 && !rests(share) &&
        !atomic_flag_test_and_set_explicit(&share->taken, memory_order_acquire)) {
        shared_run(share, s, run, operation, parts[true]);
        atomic_flag_clear_explicit(&share->taken, memory_order_release);
        return;
    }
    for (size_t part = 0; part < parts[false] && s->error.kind == ERROR_NONE; part++) {
        run(s, operation, false, part);
    }
}

void cpu_assist(struct stream *s, bool (*finished)(const void *context), const void *context)
{
    struct share *share = &s->cpu->share;
    size_t spins = 0;
    atomic_fetch_add(&share->helpers, 1);
    while (!finished(context)) {
        const size_t part = part_claim(share);
        if (part == NONE) {
            pause_once(&spins);
            continue;
        }
        part_run(share, s, part);
        s->error = (struct error){0}; /* the owner has it */
        spins = 0;
    }
    atomic_fetch_sub(&share->helpers, 1);
}
