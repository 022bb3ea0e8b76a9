/* main.c: `walrus COMMAND ...`. Each command is a file of its own; this one finds it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"

static const struct command {
    const char *name;
    char *title; /* argv[0] of the command: what its usage and its messages begin with */
    int (*run)(int argc, char **argv);
    const char *words;
} commands[] = {
    {"append", (char[]){"walrus append"}, command_append, "append lines to a topic, in atomic batches"},
    {"read", (char[]){"walrus read"}, command_read, "print a topic's entries"},
    {"topics", (char[]){"walrus topics"}, command_topics, "list the topics"},
    {"stat", (char[]){"walrus stat"}, command_stat,
     "show the counters of a broker, stalled and dead ones included"},
    {"check", (char[]){"walrus check"}, command_check, "look for damage in a stopped store"},
    {"torture", (char[]){"walrus torture"}, command_torture,
     "try whether a file system can lose what was acknowledged"},
};
#define COMMANDS (sizeof commands / sizeof commands[0])

static void print_version(FILE *stream)
{
    fprintf(stream, "walrus %s\n", walrus_version());
}

static void version_hook(FILE *stream, struct argp_state *state)
{
    (void)state;
    print_version(stream);
}

static void print_help(void)
{
    printf("Usage: walrus COMMAND [OPTION...]\n"
           "The command line of the Walrus broker: durable, atomic batches of entries.\n\n");
    for (size_t i = 0; i < COMMANDS; i++)
        printf("  walrus %-8s %s\n", commands[i].name, commands[i].words);
    printf("\n"
           "  walrus COMMAND --help says more about one; walrus --version prints the version.\n\n"
           "Environment: WALRUS_SOCKET and WALRUS_INSTANCE stand for --socket and --instance.\n"
           "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 try again (busy, short of memory, disk full).\n");
}

/* A descriptor 0, 1 or 2 that is closed would be given to the broker's socket, and output would go there.
 * The substitutes cannot be written (0, 1) or swallow (2), so that a closed standard output is an error when
 * something is printed. */
static bool standard_descriptors_open(void)
{
    static const int modes[3] = {O_WRONLY, O_RDONLY, O_RDWR};
    for (int fd = 0; fd < 3; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", modes[fd]) != fd)
            return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    if (!standard_descriptors_open())
        return EXIT_FAILED;
    argp_err_exit_status = EXIT_USAGE;
    argp_program_version_hook = version_hook;
    const char *word = argc > 1 ? argv[1] : "";
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "-?") == 0 ||
        strcmp(word, "help") == 0) {
        print_help();
        return finish_output("--help");
    }
    if (strcmp(word, "--version") == 0 || strcmp(word, "-V") == 0) {
        print_version(stdout);
        return finish_output("--version");
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(word, commands[i].name) == 0) {
            argv[1] = commands[i].title;
            return commands[i].run(argc - 1, argv + 1);
        }
    }
    struct shown shown;
    if (word[0] == '\0')
        fprintf(stderr, "walrus: which command? append, read, topics, stat, check or torture; `walrus "
                        "--help` says more\n");
    else
        fprintf(
            stderr,
            "walrus: there is no command '%s': append, read, topics, stat, check or torture; `walrus --help` "
            "says more\n",
            show(&shown, word));
    return EXIT_USAGE;
}
