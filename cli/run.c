/* engram run: the stage until SIGTERM or SIGINT. This file owns the signals: they are blocked in every thread and
 * waited for here. The first one drains; the second ends the process at once (what is not committed is done again next
 * time). */
#include "cli/internal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "stage/stage.h"

static const struct config_command run_command = {
    .name = "run",
    .usage = "[-c FILE] [OPTION]...",
    .help = "Runs the stage: texts in, predictions out, labelled instances and labels folded into the memory as they "
            "come.\n"
            "SIGTERM or SIGINT drains, commits and ends it.",
    .example = "engram run -X bootstrap.servers=localhost:9092 --memory /var/lib/engram/memory",
};

/* Its last word is a line of the log like the others: whoever reads the log as JSON can read this one too. */
static int run_fail(const struct error *e)
{
    log_error("%s", e->text);
    return cli_status(e);
}

static void stop_at_once(int number)
{
    (void)number;
    _exit(STATUS_FAILED);
}

/* While the clients leave their brokers nobody waits for signals here, and one that does not answer can hold that up:
 * a second signal must still end it. */
static void signals_let_through(const sigset_t *signals)
{
    const struct sigaction at_once = {.sa_handler = stop_at_once};
    sigaction(SIGTERM, &at_once, NULL);
    sigaction(SIGINT, &at_once, NULL);
    sigprocmask(SIG_UNBLOCK, signals, NULL);
}

/* Drives the stage until it has ended; a signal begins the drain. */
static void run_until_ended(struct stage *stage, const sigset_t *signals)
{
    const struct timespec step = {.tv_nsec = 250 * 1000 * 1000};
    bool stopping = false;
    while (!stage_ended(stage)) {
        int got = sigtimedwait(signals, NULL, &step);
        if (got > 0 && stopping) {
            log_warn("stopped at once by a second signal: what was not committed will be done again");
            _exit(STATUS_FAILED);
        }
        if (got > 0) {
            log_info("stopping: finishing what is in compute");
            stage_stop(stage);
            stopping = true;
        }
        if (!stopping) {
            stage_tick(stage);
        }
    }
}

int command_run(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    struct cli_engine c = {0};
    struct stage *stage = NULL;
    struct error e = {0};
    struct buffer versions = {0};
    int status = STATUS_OK;
    if (!cli_read(&run_command, argc, argv, &config, &arguments, &status)) {
        goto done;
    }
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL); /* before any thread: all inherit it */
    signal(SIGPIPE, SIG_IGN);

    if (cli_open(&c, &config, CLI_MEMORY_WRITE, &e)) {
        status = run_fail(&e);
        goto done;
    }
    cli_versions(c.backend->ops->library, encoder_name(c.encoder), &versions);
    size_t threads = config.threads ? (size_t)config.threads : threads_allowed();
    log_info("%s; memory %s, brokers %s, %zu thread%s", versions.data, config.memory, config_bootstrap_servers(&config),
             threads, threads == 1 ? "" : "s");
    if (stage_start(&stage, &config, c.engine, c.memory, versions.data, &e)) {
        status = run_fail(&e);
        goto done;
    }
    run_until_ended(stage, &signals);
    signals_let_through(&signals);
    if (stage_close(stage, &e)) {
        status = run_fail(&e);
        goto done;
    }
    log_info("stopped");
done:
    buffer_free(&versions);
    cli_close(&c);
    arguments_free(arguments);
    config_free(&config);
    return status;
}
