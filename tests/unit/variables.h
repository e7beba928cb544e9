/* The environment of a test. Include after cmocka.h. */
#ifndef ENGRAM_TESTS_UNIT_VARIABLES_H
#define ENGRAM_TESTS_UNIT_VARIABLES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

/* Unsets every ENGRAM_ variable. */
static inline void variables_unset(void)
{
    for (char **entry = environ; *entry;) {
        if (strncmp(*entry, "ENGRAM_", 7) == 0) {
            char name[256];
            snprintf(name, sizeof name, "%.*s", (int)strcspn(*entry, "="), *entry);
            unsetenv(name);
            entry = environ;
        } else {
            entry++;
        }
    }
}

#endif
