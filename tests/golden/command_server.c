/* Runs commands of engram, each in a child process of its own, without the half of their time that loading a program
 * takes. A line on standard input is one command: the files of its standard input, output and error, then its
 * arguments, separated by tabs. The answer is a line with its exit status, or with a signal's number below zero;
 * SIGALRM's says that it hung. */
#define _GNU_SOURCE /* strsep */
#define main engram_main
#include "cli/engram.c"
#undef main

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ARGUMENTS_MAX = 64, TIMEOUT_S = 20 };

static void file_become(int fd, const char *path, int flags)
{
    int file = open(path, flags, 0600);
    if (file < 0 || dup2(file, fd) < 0) {
        _exit(125);
    }
    close(file);
}

static int command_run_apart(int count, char **fields)
{
    int status;
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent) {
            _exit(125);
        }
        file_become(STDIN_FILENO, fields[0], O_RDONLY);
        file_become(STDOUT_FILENO, fields[1], O_WRONLY | O_CREAT | O_TRUNC);
        file_become(STDERR_FILENO, fields[2], O_WRONLY | O_CREAT | O_TRUNC);
        alarm(TIMEOUT_S);
        fields[2] = "engram";
        exit(engram_main(count - 2, fields + 2));
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        return 125;
    }
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

int main(void)
{
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, stdin) > 0) {
        char *fields[ARGUMENTS_MAX + 1], *rest = line;
        int count = 0;
        line[strcspn(line, "\n")] = '\0';
        for (char *field; count < ARGUMENTS_MAX && (field = strsep(&rest, "\t"));) {
            fields[count++] = field;
        }
        fields[count] = NULL;
        printf("%d\n", count > 3 ? command_run_apart(count, fields) : 125);
        fflush(stdout);
    }
    free(line);
    return 0;
}
