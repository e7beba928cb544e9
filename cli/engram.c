/* main(): finds the subcommand in the table and hands it the rest of the line. `engram --version` and `engram --help`
 * are answered here. A command takes part by its line in the table. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/internal.h"

struct command {
    const char *name;
    const char *help;
    int (*run)(int argc, char **argv);
};

static const struct command commands[] = {
    {"run", "run the stage: read texts, publish predictions, learn labels as they come", command_run},
    {"tag", "predict the labels of texts, with evidence", command_tag},
    {"load", "fold files into the memory of a stopped stage", command_load},
    {"eval", "measure the predictions for a labelled file", command_eval},
    {"tune", "find the setting that best predicts the memory's own instances", command_tune},
    {"replay", "send a data set to its topics", command_replay},
    {"teach", "send one labelled instance", command_teach},
    {"define", "send one label definition", command_define},
    {"forget", "send a null record for an instance or a label", command_forget},
    {"memory", "look at a memory; check, export, back up or compact it", command_memory},
    {"encode", "print the tokens and the embedding of each line of standard input", command_encode},
    {"config", "print every option, its value and where that comes from", command_config},
};

enum { COMMANDS = sizeof commands / sizeof commands[0] };

static int print_help(void)
{
    printf("Engram tags a stream of texts in Kafka, from labelled examples that it remembers.\n\n"
           "Usage: engram COMMAND [ARGUMENTS]\n\nCommands\n");
    for (size_t i = 0; i < COMMANDS; i++) {
        printf("  %-8s %s\n", commands[i].name, commands[i].help);
    }
    printf("\n`engram COMMAND --help` prints a command's flags, an example and the options.\n"
           "`engram --version` prints the versions of Engram and its libraries, the model and the device.\n");
    return fflush(stdout) ? STATUS_FAILED : STATUS_OK;
}

/* "device: cpu", and why the one that the options name is none. */
static void device_line(const struct backend *backend, const char *why, struct buffer *out)
{
    buffer_string(out, "device: ");
    if (backend) {
        cli_device(backend, out);
    } else {
        buffer_string(out, "none");
    }
    buffer_format(out, "%s%s\n", *why ? "; " : "", why);
}

/* The model in force may be a flag or a variable, so this reads the options as every command does. */
static int print_version(int argc, char **argv)
{
    static const struct config_command command = {
        .name = "--version",
        .usage = "",
        .help = "Prints the versions of Engram, librdkafka, LMDB and the compute libraries, the model in use, and the "
                "device that computes.",
        .example = "engram --version",
    };
    struct config config = {0};
    struct arguments *arguments = NULL;
    struct backend *backend = NULL;
    struct error why, none = {0};
    struct buffer out = {0};
    char *model = NULL;
    int status = STATUS_OK;
    if (!cli_read(&command, argc, argv, &config, &arguments, &status)) {
        goto done;
    }
    cli_model(&config, &model, NULL);
    config.threads = 1;
    config.compute = CONFIG_COMPUTE_F32; /* nothing is to be measured */
    cli_backend_open(&backend, &config, &why, &none);
    cli_versions(backend, model, &out);
    buffer_byte(&out, '\n');
    device_line(backend, none.kind == ERROR_NONE ? why.text : none.text, &out);
    if (!cli_output("--version", &out)) {
        status = STATUS_FAILED;
    }
done:
    backend_close(backend);
    free(model);
    buffer_free(&out);
    arguments_free(arguments);
    config_free(&config);
    return status;
}

static int unknown_command(const char *name)
{
    const char *names[COMMANDS];
    for (size_t i = 0; i < COMMANDS; i++) {
        names[i] = commands[i].name;
    }
    const char *near = config_nearest(name, names, COMMANDS);
    if (near) {
        cli_usage(NULL, "there is no command '%s'; did you mean '%s'?", name, near);
    } else {
        cli_usage(NULL, "there is no command '%s'", name);
    }
    return STATUS_USAGE;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "--help";
    signal(SIGXFSZ, SIG_IGN); /* a file at the limit of its size is a write that fails, as on a full disk */
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        return print_help();
    }
    if (strcmp(name, "--version") == 0) {
        return print_version(argc - 2, argv + 2);
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(name, commands[i].name) == 0) {
            cli_faults_catch(name);
            return commands[i].run(argc - 2, argv + 2);
        }
    }
    return unknown_command(name);
}
