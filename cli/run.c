/* engram run: the stage until SIGTERM or SIGINT. This file owns the signals: they are blocked in every thread and
 * waited for here. The first one drains; the second ends the process at once (what is not committed is done again next
 * time). SIGHUP reads the options again. The surprise: the lanes read the configuration that they were started with to
 * the end; what a reload takes goes to the engine and the log, which take it between two batches or lines. */
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
    .help = "Runs the stage: reads texts and publishes predictions, and folds labelled instances and label definitions "
            "into the memory as they come.\n"
            "SIGTERM or SIGINT drains, commits and ends it. SIGHUP makes it read its options again.",
    .example = "engram run -X bootstrap.servers=localhost:9092 --memory /var/lib/engram/memory",
};

struct signals {
    sigset_t again; /* SIGHUP */
    sigset_t ends;  /* SIGTERM, SIGINT */
    sigset_t all;
};

static struct signals signals_of_run(void)
{
    struct signals signals;
    sigemptyset(&signals.again);
    sigaddset(&signals.again, SIGHUP);
    sigemptyset(&signals.ends);
    sigaddset(&signals.ends, SIGTERM);
    sigaddset(&signals.ends, SIGINT);
    signals.all = signals.ends;
    sigaddset(&signals.all, SIGHUP);
    return signals;
}

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
static void signals_let_through(const struct signals *signals)
{
    const struct sigaction at_once = {.sa_handler = stop_at_once};
    sigaction(SIGTERM, &at_once, NULL);
    sigaction(SIGINT, &at_once, NULL);
    sigprocmask(SIG_UNBLOCK, &signals->ends, NULL);
}

/* The next signal, after a moment's wait at the most; 0: none. One that ends goes before any number of reloads. */
static int signals_next(const struct signals *signals)
{
    static const struct timespec at_once, step = {.tv_nsec = 250 * 1000 * 1000};
    int got = sigtimedwait(&signals->ends, NULL, &at_once);
    if (got < 0) {
        got = sigtimedwait(&signals->all, NULL, &step);
    }
    return got > 0 ? got : 0;
}

/* ---- reload ---- */

/* What a reload reads again, and what it changes. */
struct running {
    int argc;
    char **argv;
    const struct config *started; /* the lanes' */
    struct config taken;          /* as last read by a reload; private NULL: by none yet */
    struct engine *engine;
    struct stage *stage;
};

static const struct config *running_taken(const struct running *r)
{
    return r->taken.private ? &r->taken : r->started;
}

/* "reloaded FILE: tau 0.1 -> 0.2; b (--b wins over the file)", then what waits for a restart. */
static void reload_tell(const struct config *now, const struct config_changes *c)
{
    const char *live = c->live.bytes ? c->live.data : c->restart.bytes ? "nothing to take" : "nothing changed";
    log_info("reloaded %s: %s%s%s", config_file(now), live, c->overridden.bytes ? "; to no effect: " : "",
             c->overridden.bytes ? c->overridden.data : "");
    if (c->restart.bytes) {
        log_warn("these changes wait for a restart: %s", c->restart.data);
    }
}

/* All or nothing: what is wrong anywhere in the file, also in what only a restart would take, leaves all as it is. */
static void reload(struct running *r)
{
    const struct config *before = running_taken(r);
    struct config now = {0};
    struct config_changes changes = {0};
    struct error e = {0};
    if (!config_file(before)) {
        log_info("nothing to reload: this stage was started without -c, so there is no file");
        return;
    }
    int result = config_read_again(&run_command, r->argc, r->argv, before, &now, &e);
    if (result == 0) {
        struct predict_options predict = cli_predict_options(&now);
        result = engine_options_set(r->engine, &predict, &e);
    }
    stage_reloaded(r->stage, result == 0);
    if (result) {
        log_warn("reload refused, the options stay as they were: %s", e.text);
        config_free(&now);
        return;
    }
    config_compare(r->started, before, &now, &changes);
    enum log_level level = (enum log_level)now.log_level;
    if (log_enabled(level)) { /* a quieter log begins after the line that says so */
        reload_tell(&now, &changes);
        log_set_level(level);
    } else {
        log_set_level(level);
        reload_tell(&now, &changes);
    }
    config_changes_free(&changes);
    config_free(&r->taken);
    r->taken = now;
}

/* ---- the command ---- */

/* Drives the stage until it has ended; SIGTERM or SIGINT begins the drain. */
static void run_until_ended(struct running *r, const struct signals *signals)
{
    bool stopping = false;
    while (!stage_ended(r->stage)) {
        int got = signals_next(signals);
        if (got == SIGHUP) {
            reload(r);
        } else if (got && stopping) {
            log_warn("stopped at once by a second signal: what was not committed will be repeated");
            _exit(STATUS_FAILED);
        } else if (got) {
            log_info("stopping: finishing what is being computed");
            stage_stop(r->stage);
            stopping = true;
        }
        if (!stopping) {
            stage_tick(r->stage);
        }
    }
}

static void start_line(const struct config *config, const struct backend *b, const char *versions)
{
    const struct backend_facts *facts = &b->facts;
    const size_t threads = facts->host_threads ? facts->host_threads : facts->streams;
    struct buffer device = {0};
    cli_device(b, &device);
    if (facts->host_threads) {
        buffer_format(&device, ", %zu stream%s", facts->streams, facts->streams == 1 ? "" : "s");
    }
    log_info("%s; memory %s, brokers %s, %s, %zu thread%s, %s", versions, config->memory,
             config_bootstrap_servers(config), device.data, threads, threads == 1 ? "" : "s",
             facts->compute == DTYPE_BF16 ? "bf16" : "f32");
    buffer_free(&device);
}

int command_run(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    struct cli_engine c = {0};
    struct running running = {.argc = argc, .argv = argv, .started = &config};
    const struct signals signals = signals_of_run();
    struct error e = {0};
    struct buffer versions = {0};
    int status = STATUS_OK;
    sigprocmask(SIG_BLOCK, &signals.again, NULL); /* an early one waits for the stage */
    if (!cli_read(&run_command, argc, argv, &config, &arguments, &status)) {
        goto done;
    }
    sigprocmask(SIG_BLOCK, &signals.ends, NULL); /* before any thread: all inherit it */
    signal(SIGPIPE, SIG_IGN);

    if (cli_open(&c, &config, CLI_MEMORY_WRITE, &e)) {
        status = run_fail(&e);
        goto done;
    }
    cli_versions(c.backend, encoder_name(c.encoder), &versions);
    start_line(&config, c.backend, versions.data);
    running.engine = c.engine;
    if (stage_start(&running.stage, &config, c.engine, c.memory, versions.data, &e)) {
        status = run_fail(&e);
        goto done;
    }
    run_until_ended(&running, &signals);
    signals_let_through(&signals);
    if (stage_close(running.stage, &e)) {
        status = run_fail(&e);
        goto done;
    }
    log_info("stopped");
done:
    buffer_free(&versions);
    cli_close(&c);
    arguments_free(arguments);
    config_free(&running.taken);
    config_free(&config);
    return status;
}
