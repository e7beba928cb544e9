/* When does an instance become live? Reads ids from standard input, one a line, and for each looks at the memory every
 * half a millisecond, beside the running stage, until the instance is there. Then it prints the monotonic clock in
 * microseconds, which Python's time.monotonic() reads too. It takes the options of the commands (--memory FOLDER), and
 * gives up after a minute. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "cli/internal.h"

enum { PAUSE_US = 500, WAIT_US = 60000000 };

static const struct config_command command = {
    .name = "live_probe",
    .usage = "[any option]",
    .help = "Prints when the instances whose ids it reads from standard input become live.",
    .example = "echo instance-1 | live_probe --memory engram-memory",
};

/* One look: 1 there, 0 not there, -1 an error. */
static int look(struct memory *m, struct slice id, struct error *e)
{
    struct snapshot *snapshot = NULL;
    struct memory_instance instance;
    if (memory_look(m, &snapshot, e) != 0) {
        return -1;
    }
    int found = snapshot_instance(snapshot, id, &instance, e);
    snapshot_release(snapshot);
    return found;
}

static int await(struct memory *m, const char *id, struct error *e)
{
    const struct timespec pause = {.tv_nsec = PAUSE_US * 1000};
    uint64_t until = clock_us() + WAIT_US;
    int found;
    while ((found = look(m, slice_of(id), e)) == 0) {
        if (clock_us() > until) {
            return error_set(e, ERROR_FATAL, E_NOT_FOUND, "%s did not become live", id);
        }
        nanosleep(&pause, NULL);
    }
    if (found == 1) {
        printf("%" PRIu64 "\n", clock_us());
        fflush(stdout);
    }
    return found == 1 ? 0 : -1;
}

int main(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    struct memory *memory = NULL;
    struct error e = {0};
    char id[256];
    int status;
    if (cli_read(&command, argc - 1, argv + 1, &config, &arguments, &status)) {
        int result = cli_memory_open(&memory, &config, MEMORY_READ, &e);
        while (result == 0 && fgets(id, sizeof id, stdin)) {
            id[strcspn(id, "\n")] = '\0';
            result = await(memory, id, &e);
        }
        status = result == 0 ? STATUS_OK : cli_fail(command.name, &e);
    }
    memory_close(memory);
    arguments_free(arguments);
    config_free(&config);
    return status;
}
