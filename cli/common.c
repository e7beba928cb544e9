/* How every command begins, fails and writes: see internal.h. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/utf8.h"
#include "cli/internal.h"
#include "cli/terminal.h"

bool cli_read(const struct config_command *command, int argc, char **argv, struct config *config,
              struct arguments **arguments, int *status)
{
    struct error e = {0};
    int result = config_read(command, argc, argv, config, arguments, &e);
    if (result < 0) {
        *status = cli_fail(command->name, &e);
        if (*status == STATUS_USAGE && *command->name != '-') {
            fprintf(stderr, "`engram %s --help` shows its flags and the options.\n", command->name);
        }
    } else if (result > 0) {
        *status = STATUS_OK;
    }
    return result == 0;
}

/* One line, as one write: what comes from outside may hold anything. */
static void line_print(const struct buffer *text)
{
    struct buffer line = {0};
    buffer_reserve(&line, text->bytes);
    line.bytes = utf8_clean(line.data, text->data, text->bytes);
    buffer_byte(&line, '\n');
    fwrite(line.data, 1, line.bytes, stderr);
    buffer_free(&line);
}

static void complain(const char *name, const char *text)
{
    struct buffer line = {0};
    buffer_format(&line, "engram%s%s: %s", name ? " " : "", name ? name : "", text);
    line_print(&line);
    buffer_free(&line);
}

static void complain_format(const char *name, const char *format, va_list arguments)
{
    char text[2048];
    vsnprintf(text, sizeof text, format, arguments);
    complain(name, text);
}

/* ---- a fault in the map, which runs in a signal handler, and memory that runs out: nothing here may allocate ---- */

static const char *fault_command;

static void fault_complain(const char *text)
{
    char line[2200];
    size_t used = 0, size = sizeof line - 1;
    const char *const parts[] = {"engram ", fault_command, ": ", text};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        used += utf8_clean(line + used, parts[i], strnlen(parts[i], size - used));
    }
    line[used++] = '\n';
    if (write(STDERR_FILENO, line, used) < 0) {
        return; /* nobody reads it, and there is nothing else to do */
    }
}

static void fault_log(const char *text)
{
    log_text(LOG_LEVEL_ERROR, text);
}

void cli_faults_catch(const char *name)
{
    void (*say)(const char *line) = strcmp(name, "run") == 0 ? fault_log : fault_complain;
    fault_command = name;
    memory_faults_catch(say);
    mem_failure_to(say);
}

/* ---- what fails ---- */

int cli_fail(const char *name, const struct error *e)
{
    complain(name, e->text);
    return cli_status(e);
}

int cli_status(const struct error *e)
{
    return e->code == E_USAGE ? STATUS_USAGE : STATUS_FAILED;
}

void cli_complain(const char *name, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    complain_format(name, format, arguments);
    va_end(arguments);
}

void cli_note(const char *format, ...)
{
    struct buffer line = {0};
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    buffer_string(&line, text);
    line_print(&line);
    buffer_free(&line);
}

int cli_usage(const char *name, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    complain_format(name, format, arguments);
    va_end(arguments);
    if (name) {
        fprintf(stderr, "`engram %s --help` shows its flags and the options.\n", name);
    } else {
        fprintf(stderr, "`engram --help` lists the commands.\n");
    }
    return STATUS_USAGE;
}

bool cli_output(const char *name, struct buffer *out)
{
    size_t written = 0;
    if (isatty(STDOUT_FILENO)) {
        escape_lines(out);
    }
    fflush(stdout);
    while (written < out->bytes) {
        ssize_t bytes = write(STDOUT_FILENO, out->data + written, out->bytes - written);
        if (bytes < 0 && errno == EINTR) {
            continue;
        }
        if (bytes < 0) {
            cli_complain(name, "standard output cannot be written: %s", strerror(errno));
            return false;
        }
        written += (size_t)bytes;
    }
    buffer_clear(out);
    return true;
}
