// One fiber for each CUDA thread that waits. A thread that finishes without waiting leaves its stack to the next one,
// so a kernel without barriers runs on a single stack. Fibers never move to another host thread.
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "internal.h"

namespace emulated
{

/* Frames are larger under ASan. A page that nobody may touch lies below each stack. */
enum { STACK_BYTES = EMULATED_ASAN || EMULATED_CHECKER ? 256 * 1024 : 128 * 1024, SIGNAL_STACK_BYTES = 64 * 1024 };

struct fiber {
    void *sp;
    char *stack;
    size_t bytes;
    struct thread *thread;
    struct fiber *next, *next_parked;
    void *fake_stack; /* ASan's */
};

__thread const char *stack_low EMULATED_TLS, *stack_high EMULATED_TLS;
static __thread struct fiber *running EMULATED_TLS;

// ---- the switch: what a call must keep goes to the stack, and the stack is exchanged ----

extern "C" void emulated_switch(void **from, void *to) __attribute__((visibility("hidden")));

#if defined(__x86_64__)
enum { SAVED_WORDS = 6 };
asm(R"(
    .text
    .globl emulated_switch
    .hidden emulated_switch
    .type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulated_switch, . - emulated_switch
)");

static void *stack_prepared(char *top, void (*entry)())
{
    void **sp = reinterpret_cast<void **>(top);
    *--sp = nullptr; /* where a return address would be: the entry finds the stack as after a call */
    *--sp = reinterpret_cast<void *>(entry);
    return memset(sp - SAVED_WORDS, 0, SAVED_WORDS * sizeof *sp);
}
#elif defined(__aarch64__)
enum { SAVED_WORDS = 20, LINK = 11 };
asm(R"(
    .text
    .globl emulated_switch
    .hidden emulated_switch
    .type emulated_switch, %function
emulated_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size emulated_switch, . - emulated_switch
)");

static void *stack_prepared(char *top, void (*entry)())
{
    void **sp = reinterpret_cast<void **>(top) - SAVED_WORDS;
    memset(sp, 0, SAVED_WORDS * sizeof *sp);
    sp[LINK] = reinterpret_cast<void *>(entry);
    return sp;
}
#else
#error "the switch of fibers is written for x86-64 and aarch64"
#endif

/* What ASan is told after a switch, in the fiber that runs now. */
static void arrived(struct machine *m, struct fiber *self)
{
    (void)m, (void)self;
#if EMULATED_ASAN
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(self->fake_stack, &bottom, &bytes);
    if (!m->host->stack) { /* the first switch of all comes from there */
        m->host->stack = static_cast<char *>(const_cast<void *>(bottom));
        m->host->bytes = bytes;
    }
#endif
}

static void switch_to(struct machine *m, struct fiber *to)
{
    struct fiber *from = running;
    running = to;
    emulated_here = to->thread;
    stack_low = to->stack;
    stack_high = to->stack + to->bytes;
#if EMULATED_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->bytes);
#endif
    emulated_switch(&from->sp, to->sp);
    arrived(m, from);
}

// ---- fibers ----

static void park(struct machine *m, struct fiber *f)
{
    f->thread = nullptr;
    f->next_parked = m->parked;
    m->parked = f;
}

static void fiber_main()
{
    struct machine *m = machine_here;
    struct fiber *self = running;
    arrived(m, self);
    for (;;) {
        struct thread *done = self->thread;
        thread_run(m, done);
        done->fiber = nullptr;
        struct thread *next = thread_next(m, done->number / WARP);
        if (next && !next->fiber) {
            next->fiber = self;
            self->thread = next;
            emulated_here = next;
        } else {
            park(m, self);
            switch_to(m, next ? next->fiber : m->host);
        }
    }
}

static struct fiber *fiber_new(struct machine *m)
{
    struct fiber *f = static_cast<struct fiber *>(calloc(1, sizeof *f));
    void *pages =
        mmap(nullptr, STACK_BYTES + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!f || pages == MAP_FAILED || mprotect(pages, PAGE, PROT_NONE) != 0) {
        slip("no room for another stack");
    }
    f->stack = static_cast<char *>(pages) + PAGE;
    f->bytes = STACK_BYTES;
    /* not all at the same offset within pages: they would push each other out of the caches */
    f->sp = stack_prepared(f->stack + f->bytes - m->fibers_count++ % 32 * 448, fiber_main);
    f->next = m->fibers;
    m->fibers = f;
    return f;
}

static struct fiber *fiber_for(struct machine *m, struct thread *t)
{
    if (!t->fiber) {
        struct fiber *f = m->parked ? m->parked : fiber_new(m);
        m->parked = f == m->parked ? f->next_parked : m->parked;
        f->thread = t;
        t->fiber = f;
    }
    return t->fiber;
}

void fiber_leave(struct machine *m, struct thread *to)
{
    if (to != thread_here()) {
        switch_to(m, fiber_for(m, to));
    }
}

void fiber_run(struct machine *m)
{
    running = m->host;
    switch_to(m, fiber_for(m, thread_next(m, m->reverse ? m->warps_count - 1 : 0)));
    emulated_here = nullptr;
}

/* Faults of fibers are reported from a stack of their own: the fiber's may be used up. */
void fibers_open(struct machine *m)
{
    stack_t of_signals = {};
    of_signals.ss_sp = malloc(SIGNAL_STACK_BYTES);
    of_signals.ss_size = SIGNAL_STACK_BYTES;
    m->host = static_cast<struct fiber *>(calloc(1, sizeof *m->host));
    stack_t before = {};
    sigaltstack(nullptr, &before);
    if (before.ss_flags & SS_DISABLE) {
        sigaltstack(&of_signals, nullptr);
        m->signal_stack = of_signals.ss_sp;
    } else {
        free(of_signals.ss_sp);
    }
}

void fibers_close(struct machine *m)
{
    stack_t none = {};
    none.ss_flags = SS_DISABLE;
    if (m->signal_stack) {
        sigaltstack(&none, nullptr);
        free(m->signal_stack);
    }
    while (m->fibers) {
        struct fiber *f = m->fibers;
        m->fibers = f->next;
        ASAN_UNPOISON_MEMORY_REGION(f->stack, f->bytes);
        munmap(f->stack - PAGE, f->bytes + PAGE);
        free(f);
    }
    free(m->host);
}

} // namespace emulated
