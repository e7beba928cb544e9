/* Clocks, threads allowed, and the process's own figures. */
#ifndef ENGRAM_BASE_CLOCK_H
#define ENGRAM_BASE_CLOCK_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

uint64_t clock_us(void);     /* monotonic, microseconds: for durations */
int64_t clock_wall_ms(void); /* since 1970, milliseconds: as Kafka's timestamps */
void clock_sleep_ms(unsigned ms);
/* The date of a day since 1970-01-01, as gmtime(3) has it, but fit for a signal handler. */
void clock_date(uint64_t days, unsigned *year, unsigned *month, unsigned *day);

/* How many threads this process may keep busy: CPU affinity and the cgroups' quota (base/cgroup.h), at least 1. */
size_t threads_allowed(void);

/* Around the start of a thread that leaves signals to another: blocks all but those that an instruction of its own
 * raises, since a fault that is blocked kills without its handler. *before: for pthread_sigmask afterwards. */
void threads_signals_block(sigset_t *before);

#endif
