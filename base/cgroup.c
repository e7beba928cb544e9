/* /proc/self/cgroup names the process's group in each hierarchy. /proc/self/mountinfo says where a hierarchy is
 * mounted, and which of its groups is the mount's root: a container sees its own one there. systemd's CPUQuota= limits
 * a slice or a service, Kubernetes a pod and a container below it, so each level counts. A path in /proc/self/cgroup
 * may lie outside of what is mounted: a level that is not there has no quota. */
#include "base/cgroup.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"

/* A file below the root; NULL: there is none. */
static FILE *file_open(const char *root, const char *folder, const char *name)
{
    struct buffer path = {0};
    buffer_format(&path, "%s%s/%s", root, folder, name);
    FILE *file = fopen(path.data, "re");
    buffer_free(&path);
    return file;
}

/* The first one or two numbers of a file; how many there are. */
static int numbers_read(const char *root, const char *folder, const char *name, double of[2])
{
    FILE *file = file_open(root, folder, name);
    int count = file ? fscanf(file, "%lf %lf", &of[0], &of[1]) : 0;
    if (file) {
        fclose(file);
    }
    return count;
}

/* CPUs that one group grants, below 0: no limit ("max" in v2, -1 in v1). */
static double group_cpus(const char *root, const char *folder, bool v2)
{
    double of[2] = {-1, 0}; /* quota, period: microseconds */
    bool whole;
    if (v2) {
        whole = numbers_read(root, folder, "cpu.max", of) == 2;
    } else {
        double period[2];
        whole = numbers_read(root, folder, "cpu.cfs_quota_us", of) == 1 &&
                numbers_read(root, folder, "cpu.cfs_period_us", period) == 1;
        of[1] = whole ? period[0] : 0;
    }
    return whole && of[0] > 0 && of[1] > 0 ? of[0] / of[1] : -1;
}

/* Is `name` one of the names between commas? */
static bool names_have(const char *names, const char *name)
{
    size_t bytes = strlen(name);
    for (const char *at = names; *at; at += strcspn(at, ","), at += *at == ',') {
        if (strcspn(at, ",") == bytes && strncmp(at, name, bytes) == 0) {
            return true;
        }
    }
    return false;
}

/* The process's group in the hierarchy of v2 or of v1's cpu controller, into *path; "" where it is not named. A line is
 * "4:cpu,cpuacct:/user.slice" or "0::/user.slice". */
static void own_group(const char *root, bool v2, struct buffer *path)
{
    FILE *file = file_open(root, "/proc/self", "cgroup");
    char *line = NULL;
    size_t capacity = 0;
    buffer_string(path, "");
    while (file && path->bytes == 0 && getline(&line, &capacity, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        char *names = strchr(line, ':');
        char *group = names ? strchr(names + 1, ':') : NULL;
        if (!group) {
            continue;
        }
        *group++ = '\0';
        if (v2 ? names[1] == '\0' : names_have(names + 1, "cpu")) {
            buffer_string(path, group);
        }
    }
    free(line);
    if (file) {
        fclose(file);
    }
}

/* mountinfo writes blanks and the like as \040. */
static void unescape(char *text)
{
    char *out = text;
    for (const char *c = text; *c; out++) {
        bool octal = c[0] == '\\' && strspn(c + 1, "01234567") >= 3;
        *out = octal ? (char)((c[1] - '0') << 6 | (c[2] - '0') << 3 | (c[3] - '0')) : *c;
        c += octal ? 4 : 1;
    }
    *out = '\0';
}

/* Is `text` the group or one below it? Then *below is what follows. */
static bool lies_below(const char *text, const char *group, const char **below)
{
    size_t bytes = strcmp(group, "/") == 0 ? 0 : strlen(group);
    *below = text + bytes;
    return strncmp(text, group, bytes) == 0 && (!**below || **below == '/');
}

static double smaller(double a, double b)
{
    return a < 0 || (b >= 0 && b < a) ? b : a;
}

/* The smallest quota from the process's group up to the mount's root. */
static double mount_cpus(const char *root, const char *mount, const char *mount_group, bool v2)
{
    struct buffer own = {0}, folder = {0};
    const char *below = "";
    double cpus = -1;
    own_group(root, v2, &own);
    /* a group of another container, mounted here to look at it */
    bool foreign = strncmp(mount_group, "/..", 3) == 0;
    if (!foreign) {
        bool inside = lies_below(own.data, mount_group, &below) && !strstr(below, "/..");
        buffer_format(&folder, "%s%s", mount, inside ? below : "");
        const size_t top = strlen(mount);
        for (cpus = group_cpus(root, folder.data, v2); folder.bytes > top;
             cpus = smaller(cpus, group_cpus(root, folder.data, v2))) {
            while (--folder.bytes > top && folder.data[folder.bytes] != '/') {}
            folder.data[folder.bytes] = '\0';
        }
    }
    buffer_free(&own);
    buffer_free(&folder);
    return cpus;
}

/* "32 31 0:29 /group /sys/fs/cgroup/cpu rw,relatime shared:7 - cgroup cgroup rw,cpu,cpuacct" */
static double line_cpus(const char *root, char *line)
{
    char *own[5] = {0}; /* id, parent, device, group, where */
    char *end = strstr(line, " - ");
    char *rest = NULL;
    if (!end) {
        return -1;
    }
    *end = '\0';
    for (int i = 0; i < 5; i++) {
        own[i] = strtok_r(i ? NULL : line, " ", &rest);
    }
    const char *kind = strtok_r(end + 3, " \n", &rest);
    strtok_r(NULL, " \n", &rest); /* the source */
    const char *options = strtok_r(NULL, " \n", &rest);
    bool v2 = kind && strcmp(kind, "cgroup2") == 0;
    bool v1 = kind && strcmp(kind, "cgroup") == 0 && options && names_have(options, "cpu");
    if (!own[4] || (!v1 && !v2)) {
        return -1;
    }
    unescape(own[3]);
    unescape(own[4]);
    return mount_cpus(root, own[4], own[3], v2);
}

size_t cgroup_cpus(const char *root)
{
    FILE *file = file_open(root, "/proc/self", "mountinfo");
    char *line = NULL;
    size_t capacity = 0;
    double cpus = -1;
    while (file && getline(&line, &capacity, file) > 0) {
        cpus = smaller(cpus, line_cpus(root, line));
    }
    free(line);
    if (file) {
        fclose(file);
    }
    if (cpus < 0 || cpus > 1e6) {
        return 0;
    }
    size_t whole = (size_t)cpus;
    return whole + ((double)whole < cpus);
}
