/* base/cgroup: folder trees as the kernel, systemd, Docker and Kubernetes make them, and malformed ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cgroup.h"

static char root[] = "/tmp/test_cgroup.XXXXXX";

static int setup(void **context)
{
    (void)context;
    strcpy(root, "/tmp/test_cgroup.XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **context)
{
    (void)context;
    char remove[64];
    snprintf(remove, sizeof remove, "rm -rf %s", root);
    return system(remove);
}

/* Writes a file below the root, with the folders above it. */
static void put(const char *path, const char *text)
{
    char whole[512];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    for (char *slash = whole + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        mkdir(whole, 0700);
        *slash = '/';
    }
    FILE *file = fopen(whole, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void v1_group(const char *folder, const char *quota, const char *period)
{
    char path[256];
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    put(path, quota);
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    put(path, period);
}

#define MOUNT_V2 "28 20 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
#define MOUNT_V1(group) "33 31 0:28 " group " /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
#define MOUNT_ROOT "20 1 8:1 / / rw,relatime - ext4 /dev/vda1 rw\n"

/* systemd: CPUQuota=150% of the service, CPUQuota=80% of the slice above it. */
static void test_systemd(void **context)
{
    (void)context;
    put("/proc/self/cgroup", "0::/system.slice/engram.service\n");
    put("/proc/self/mountinfo", MOUNT_ROOT MOUNT_V2);
    put("/sys/fs/cgroup/system.slice/engram.service/cpu.max", "150000 100000\n");
    put("/sys/fs/cgroup/system.slice/cpu.max", "max 100000\n");
    assert_int_equal(cgroup_cpus(root), 2);
    put("/sys/fs/cgroup/system.slice/cpu.max", "80000 100000\n");
    assert_int_equal(cgroup_cpus(root), 1);
}

/* CPUQuota=200% where cpu and cpuacct are one v1 hierarchy, and v2 is mounted beside it (hybrid). */
static void test_hybrid(void **context)
{
    (void)context;
    put("/proc/self/cgroup", "12:cpuset:/\n4:cpu,cpuacct:/system.slice/engram.service\n1:name=systemd:/x\n0::/y\n");
    put("/proc/self/mountinfo",
        MOUNT_ROOT "31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
                   "32 30 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n" MOUNT_V1("/"));
    v1_group("/sys/fs/cgroup/cpu,cpuacct/system.slice/engram.service", "200000\n", "100000\n");
    v1_group("/sys/fs/cgroup/cpu,cpuacct/system.slice", "-1\n", "100000\n");
    v1_group("/sys/fs/cgroup/cpu,cpuacct", "-1\n", "100000\n");
    v1_group("/sys/fs/cgroup/cpuset", "100000\n", "100000\n"); /* no hierarchy of cpu's */
    assert_int_equal(cgroup_cpus(root), 2);
    v1_group("/sys/fs/cgroup/cpu,cpuacct/system.slice", "25000\n", "50000\n");
    assert_int_equal(cgroup_cpus(root), 1);
}

/* Kubernetes on v1: the container sees its own group as the mount's root, but its path in the host's tree. */
static void test_kubernetes_v1(void **context)
{
    (void)context;
    put("/proc/self/cgroup", "5:cpuacct,cpu:/kubepods/burstable/pod1/abc\n2:memory:/kubepods/burstable/pod1/abc\n");
    put("/proc/self/mountinfo", MOUNT_ROOT MOUNT_V1("/kubepods/burstable/pod1/abc"));
    v1_group("/sys/fs/cgroup/cpu,cpuacct", "350000\n", "100000\n");
    assert_int_equal(cgroup_cpus(root), 4);
    put("/proc/self/cgroup", "5:cpuacct,cpu:/kubepods/burstable/pod1/abc/below\n");
    v1_group("/sys/fs/cgroup/cpu,cpuacct/below", "120000\n", "100000\n");
    assert_int_equal(cgroup_cpus(root), 2);
}

/* Kubernetes on v2 with a namespace of its own: everything is "/", and the quota stands in the mount's root. */
static void test_kubernetes_v2(void **context)
{
    (void)context;
    put("/proc/self/cgroup", "0::/\n");
    put("/proc/self/mountinfo", MOUNT_ROOT MOUNT_V2);
    put("/sys/fs/cgroup/cpu.max", "300000 100000\n");
    assert_int_equal(cgroup_cpus(root), 3);
    /* the pod's own group, seen from the node (hostPath), with a limit for the pod above the container's */
    put("/proc/self/cgroup", "0::/kubepods.slice/pod1.slice/cri-abc.scope\n");
    put("/sys/fs/cgroup/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/kubepods.slice/pod1.slice/cri-abc.scope/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/kubepods.slice/pod1.slice/cpu.max", "500000 100000\n");
    assert_int_equal(cgroup_cpus(root), 5);
}

/* A path that is not below the mount, with and without ".."; a group of somebody else that is mounted too; a mount
 * point with a blank in its name. */
static void test_elsewhere(void **context)
{
    (void)context;
    put("/proc/self/mountinfo", MOUNT_ROOT MOUNT_V2 "29 20 0:25 /../../other /host rw - cgroup2 cgroup2 rw\n");
    put("/sys/fs/cgroup/cpu.max", "200000 100000\n");
    put("/host/cpu.max", "100000 100000\n");
    put("/sys/fs/elsewhere/cpu.max", "100000 100000\n");
    put("/proc/self/cgroup", "0::/../elsewhere\n");
    assert_int_equal(cgroup_cpus(root), 2);
    put("/proc/self/cgroup", "0::/gone/away (deleted)\n");
    assert_int_equal(cgroup_cpus(root), 2);
    put("/proc/self/mountinfo", "29 20 0:25 /pod /c\\040g rw - cgroup2 cgroup2 rw\n");
    put("/proc/self/cgroup", "0::/podium\n");
    put("/c g/cpu.max", "600000 100000\n");
    put("/c gium/cpu.max", "100000 100000\n");
    assert_int_equal(cgroup_cpus(root), 6);
}

/* No limit, and nothing to be read: 0. */
static void test_none(void **context)
{
    static const char *const maxima[] = {"max 100000\n", "max\n", "",          "100000\n",  "-5 100000\n", "100000 0\n",
                                         "0 100000\n",   "x y\n", "nan nan\n", "1e300 1\n", "inf 1\n"};
    static const char *const mounts[] = {"",
                                         "\n\n",
                                         "28 20\n",
                                         " - cgroup2\n",
                                         "28 20 0:25 / - cgroup2 cgroup2 rw\n",
                                         "1 2 3 / /sys/fs/cgroup rw - cgroup cgroup\n",
                                         "- - - - - - -\n"};
    static const char *const groups[] = {"", "0\n", "0:\n", "0::\n", ":::::\n", "nothing", "\n\n"};
    (void)context;
    assert_int_equal(cgroup_cpus("/nonexistent"), 0);
    assert_int_equal(cgroup_cpus(root), 0);
    put("/proc/self/cgroup", "0::/a\n");
    put("/proc/self/mountinfo", MOUNT_V2);
    for (size_t i = 0; i < sizeof maxima / sizeof *maxima; i++) {
        put("/sys/fs/cgroup/a/cpu.max", maxima[i]);
        assert_int_equal(cgroup_cpus(root), 0);
    }
    put("/sys/fs/cgroup/cpu.max", "100000 100000\n");
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++) {
        put("/proc/self/cgroup", groups[i]);
        assert_int_equal(cgroup_cpus(root), 1); /* what is mounted holds */
    }
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
        put("/proc/self/mountinfo", mounts[i]);
        assert_int_equal(cgroup_cpus(root), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_systemd, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hybrid, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kubernetes_v1, setup, teardown),
        cmocka_unit_test_setup_teardown(test_kubernetes_v2, setup, teardown),
        cmocka_unit_test_setup_teardown(test_elsewhere, setup, teardown),
        cmocka_unit_test_setup_teardown(test_none, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
