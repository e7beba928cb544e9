/* engram config: every option, what is in force and from where. */
#include "cli/internal.h"

static const struct config_flag flags[] = {
    {"json", NULL, "one JSON object: {\"name\": {\"value\": ..., \"from\": ...}}", false},
    {"document", NULL, "docs/CONFIG.md, as `make docs` writes it", false},
    {0},
};

static const struct config_command command = {
    .name = "config",
    .usage = "[--json] [-c FILE] [any option]",
    .help = "Prints every option with its value and where that comes from: a flag, the environment, a line of the\n"
            "file, or the default. Kafka's properties stand under kafka., kafka.consumer. and kafka.producer.;\n"
            "secrets are masked.",
    .example = "ENGRAM_TAU=0.04 engram config --b 100\nengram config -c engram.conf --json",
    .flags = flags,
};

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
        config_print(&config, arguments_has(arguments, "json"), &out);
    }
    status = cli_output(command.name, &out) ? STATUS_OK : STATUS_FAILED;
done:
    buffer_free(&out);
    arguments_free(arguments);
    config_free(&config);
    return status;
}
