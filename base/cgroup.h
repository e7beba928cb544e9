/* The CPU quota of the control groups that this process is in. */
#ifndef ENGRAM_BASE_CGROUP_H
#define ENGRAM_BASE_CGROUP_H

#include <stddef.h>

/* CPUs that the quota grants, rounded up; 0: there is none. It is the smallest one of all levels, from the process's
 * own group up to the one that is mounted, v1 and v2. Everything is read below `root`: "" for this machine. */
size_t cgroup_cpus(const char *root);

#endif
