/* Clocks and threads allowed: see clock.h. */
#define _GNU_SOURCE /* sched_getaffinity */
#include "base/clock.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <time.h>

uint64_t clock_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

int64_t clock_wall_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void clock_sleep_ms(unsigned ms)
{
    struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) {}
}

/* CPUs that a cgroup's quota grants, rounded up; 0 when there is no quota to be read. */
static size_t threads_quota(void)
{
    double quota = -1;
    double period = 0;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (file) {
        if (fscanf(file, "%lf %lf", &quota, &period) != 2) {
            quota = -1; /* "max": no quota */
        }
        fclose(file);
    } else if ((file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "re"))) {
        if (fscanf(file, "%lf", &quota) != 1) {
            quota = -1;
        }
        fclose(file);
        if ((file = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "re"))) {
            if (fscanf(file, "%lf", &period) != 1) {
                period = 0;
            }
            fclose(file);
        }
    }
    if (quota <= 0 || period <= 0) {
        return 0;
    }
    size_t whole = (size_t)(quota / period);
    return whole + ((double)whole * period < quota);
}

size_t threads_allowed(void)
{
    cpu_set_t set;
    size_t count = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        count = (size_t)CPU_COUNT(&set);
    }
    size_t quota = threads_quota();
    if (quota && quota < count) {
        count = quota;
    }
    return count ? count : 1;
}
