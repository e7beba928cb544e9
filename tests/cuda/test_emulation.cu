// Runs the emulation's tests: at once and late, then each slip in a child process, which must abort with its line.
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "suite.h"

/* This program again, with other arguments; what it writes to stderr. */
static int again(const char *argument, const char *name, const char *value, const char *slip, char *text, size_t bytes)
{
    int ends[2];
    size_t length = 0;
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        setenv(name, value, 1);
        execl("/proc/self/exe", "test_emulation", argument, slip, (char *)nullptr);
        _exit(127);
    }
    close(ends[1]);
    for (ssize_t n; (n = read(ends[0], text + length, bytes - 1 - length)) > 0 || length == bytes - 1;) {
        if (length == bytes - 1) {
            break;
        }
        length += (size_t)n;
    }
    text[length] = 0;
    char rest[4096];
    while (read(ends[0], rest, sizeof rest) > 0) {}
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static int run_all(const char *name, const struct named_test *tests)
{
    std::vector<struct CMUnitTest> list;
    for (; tests->name; tests++) {
        struct CMUnitTest test = {};
        test.name = tests->name;
        test.test_func = tests->run;
        list.push_back(test);
    }
    print_message("[ EMULATED ] %s%s%s\n", name, getenv("EMULATED_LATE") ? ", late" : "",
                  getenv("EMULATED_REVERSE") ? ", in reverse" : "");
    return _cmocka_run_group_tests(name, list.data(), list.size(), nullptr, nullptr);
}

static int suite(void)
{
    int failed = run_all("kernels", kernel_tests);
    failed += run_all("streams", stream_tests);
    failed += run_all("libraries", library_tests);
    return failed != 0;
}

static void suite_again(const char *name)
{
    char text[16384];
    const int status = again("suite", name, "1", nullptr, text, sizeof text);
    if (status) {
        fail_msg("%s", text);
    }
}

static void late(void **)
{
    suite_again("EMULATED_LATE");
}

static void reverse(void **)
{
    suite_again("EMULATED_REVERSE");
}

static void no_device(void **)
{
    char text[1024];
    for (const char *devices : {"0", "none"}) {
        const int status = again("devices", "EMULATED_DEVICES", devices, nullptr, text, sizeof text);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status),
                         strcmp(devices, "0") == 0 ? (int)cudaErrorNoDevice : (int)cudaErrorInsufficientDriver);
    }
}

static int devices(void)
{
    int count = 7;
    void *memory;
    const cudaError_t error = cudaGetDeviceCount(&count);
    return count == 0 && cudaMalloc(&memory, 1) == error && cudaSetDevice(0) == error ? (int)error : 1;
}

static void slipped(const struct named_slip *slip)
{
    char text[8192];
    for (const char *mode : {"0", "1"}) {
        const int status = again("slip", "EMULATED_LATE", mode, slip->name, text, sizeof text);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || !strstr(text, "emulated CUDA: ") ||
            !strstr(text, slip->line)) {
            fail_msg("%s (late %s): status %d, not a line with \"%s\": %s", slip->name, mode, status, slip->line, text);
        }
    }
}

static void all_slips(void **)
{
    for (const struct named_slip *slip = slips; slip->name; slip++) {
        if (checked || !slip->only_checked) {
            slipped(slip);
        }
    }
}

int main(int count, char **arguments)
{
    static const struct named_test processes[] = {
        {"late", late}, {"reverse", reverse}, {"no_device", no_device}, {"all_slips", all_slips}, {nullptr, nullptr}};
    setenv("EMULATED_DEVICES", "2", 0);
    setenv("EMULATED_MEMORY", "67108864", 1);
    setenv("ASAN_OPTIONS", "abort_on_error=1:handle_abort=0", 1); /* of child processes */
    if (count == 2 && strcmp(arguments[1], "suite") == 0) {
        return suite();
    }
    if (count == 2 && strcmp(arguments[1], "devices") == 0) {
        return devices();
    }
    if (count == 3 && strcmp(arguments[1], "rank") == 0) {
        return rank_process(arguments[2]);
    }
    for (const struct named_slip *slip = slips; count == 3 && slip->name; slip++) {
        if (strcmp(slip->name, arguments[2]) == 0) {
            slip->run();
            return 0;
        }
    }
    return suite() + run_all("processes", processes) != 0;
}
