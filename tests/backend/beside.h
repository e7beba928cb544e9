/* The path of a file in the folder of the running program: plug-ins for tests are built there. */
#ifndef ENGRAM_TESTS_BACKEND_BESIDE_H
#define ENGRAM_TESTS_BACKEND_BESIDE_H

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define APART "libengram_apart.so"

static inline const char *beside(char path[PATH_MAX], const char *name)
{
    ssize_t bytes = readlink("/proc/self/exe", path, PATH_MAX - 1);
    path[bytes > 0 ? bytes : 0] = '\0';
    char *slash = strrchr(path, '/');
    char *end = slash ? slash + 1 : path;
    snprintf(end, (size_t)(path + PATH_MAX - end), "%s", name);
    return path;
}

#endif
