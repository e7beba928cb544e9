/* engram config: every option, what is in force and from where. */
#include <stdlib.h>

#include "cli/internal.h"

static const struct config_flag flags[] = {
    {"json", NULL, "print one JSON object: {\"name\": {\"value\": ..., \"from\": ...}}", false},
    {"document", NULL, NULL, false}, /* docs/CONFIG.md, for `make docs` */
    {0},
};

static const struct config_command command = {
    .name = "config",
    .usage = "[--json] [-c FILE] [any option]",
    .help = "Prints every option with its value and where that comes from: a flag, the environment, a line of the "
            "file, or the default. Kafka's properties are listed under kafka., kafka.consumer. and kafka.producer.; "
            "secrets are masked.",
    .example = "ENGRAM_TAU=0.04 engram config --b 100\nengram config -c engram.conf --json",
    .flags = flags,
};

/* Left empty, the model in force is the one that is found. */
static void model_show(struct config *config)
{
    char *folder;
    if (cli_model(config, &folder, NULL) == 0) {
        free(config->model);
        config->model = folder;
    }
}

int command_config(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    struct buffer out = {0};
    int status = STATUS_FAILED;
    if (!cli_read(&command, argc, argv, &config, &arguments, &status)) {
        goto done;
    }
    if (arguments_has(arguments, "document")) {
        config_document(&out);
    } else {
        model_show(&config);
        config_print(&config, arguments_has(arguments, "json"), &out);
    }
    status = cli_output(command.name, &out) ? STATUS_OK : STATUS_FAILED;
done:
    buffer_free(&out);
    arguments_free(arguments);
    config_free(&config);
    return status;
}
