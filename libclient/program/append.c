/* append.c: `walrus append`: its options, its input, signals, and what is said when it fails. The ways of
 * writing are in append_*.c, see append.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "append.h"
#include "interrupt.h"

#define NAME              "append"
#define DEFAULT_BATCH     1000
#define DEFAULT_LINGER_MS 100

/* -------------------------------------------------------------------------------- failures */

const char *lines_word(uint64_t count)
{
    return count == 1 ? "line is" : "lines are";
}

void append_words(const struct append *append, int error, char *words, size_t size)
{
    const char *said = walrus_error(append->handle);
    snprintf(words, size, "%s", said[0] != '\0' ? said : failure_words(error, 0));
}

int append_failed(const struct append *append, const char *words, int error, uint32_t unknown)
{
    struct shown shown;
    uint64_t committed = append->committed;
    if (unknown > 0)
        complain(NAME,
                 "topic '%s': %s; %" PRIu64
                 " %s committed, %u %s unknown (they may or may not be committed: read the "
                 "end of the topic to find out)",
                 show(&shown, append->common.topic), words, committed, lines_word(committed), unknown,
                 lines_word(unknown));
    else
        complain(NAME, "topic '%s': %s; %" PRIu64 " %s committed", show(&shown, append->common.topic), words,
                 committed, lines_word(committed));
    return exit_code_of(error);
}

int append_input_failed(const struct append *append, int error)
{
    complain(NAME, "cannot read %s: %s; %" PRIu64 " %s committed",
             append->file != NULL ? append->file : "standard input", strerror(-error), append->committed,
             lines_word(append->committed));
    return EXIT_FAILED;
}

int append_interrupted(const struct append *append, size_t left)
{
    complain(NAME, "ended by %s before the end of the input; %" PRIu64 " %s committed%s", interrupt_name(),
             append->committed, lines_word(append->committed), left > 0 ? ", an unfinished one is not" : "");
    return EXIT_FAILED;
}

/* -------------------------------------------------------------------------------- waiting */

int append_wait(struct append *append, int limit_ms, unsigned *news)
{
    struct pollfd fds[3] = {{.fd = append->input, .events = POLLIN},
                            {.fd = walrus_fd(append->handle), .events = POLLIN},
                            {.fd = append->interrupt, .events = POLLIN}};
    *news = 0;
    while (poll(fds, 3, limit_ms) < 0) {
        if (errno != EINTR)
            return append_failed(append, strerror(errno), -errno, 0);
        if (interrupt_number() != 0)
            return EXIT_DONE;
    }
    *news = (fds[0].revents != 0 ? NEWS_INPUT : 0u) | (fds[1].revents != 0 ? NEWS_BROKER : 0u);
    return EXIT_DONE;
}

int append_probe(struct append *append)
{
    walrus_topic *again = NULL;
    const char *name = append->common.topic;
    int rc = walrus_topic_open(append->handle, name, strlen(name), NULL, &again);
    if (rc == 0)
        walrus_topic_close(again);
    return rc;
}

/* -------------------------------------------------------------------------------- running */

static int open_input(struct append *append)
{
    append->input = STDIN_FILENO;
    if (append->file == NULL)
        return EXIT_DONE;
    append->input = open(append->file, O_RDONLY | O_CLOEXEC);
    if (append->input >= 0)
        return EXIT_DONE;
    struct shown shown;
    complain(NAME, "cannot open %s: %s; 0 lines are committed", show(&shown, append->file), strerror(errno));
    return EXIT_FAILED;
}

static int open_topic(struct append *append)
{
    const char *name = append->common.topic;
    int rc = walrus_topic_open(append->handle, name, strlen(name), NULL, &append->topic);
    if (rc == 0)
        return EXIT_DONE;
    char words[600];
    append_words(append, rc, words, sizeof words);
    return append_failed(append, words, rc, 0);
}

static int run(struct append *append)
{
    append->interrupt = interrupt_catch();
    int code = open_input(append);
    if (code != EXIT_DONE)
        return code;
    code = connect_to_broker(NAME, &append->common, &append->handle);
    if (code == EXIT_DONE) {
        code = open_topic(append);
        if (code == EXIT_DONE)
            code = append_lines(append);
        walrus_topic_close(append->topic);
        walrus_close(append->handle);
    }
    if (append->file != NULL)
        close(append->input);
    return code;
}

/* -------------------------------------------------------------------------------- arguments */

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct append *append = state->input;
    uint64_t number = 0;
    switch (key) {
    case 'n':
        if (!parse_number(arg, 1, WALRUS_MAX_BATCH_ENTRIES, &number))
            argp_error(state, "--batch %s: a number of lines from 1 to %u", arg, WALRUS_MAX_BATCH_ENTRIES);
        append->batch_lines = (uint32_t)number;
        return 0;
    case 'l':
        if (!parse_number(arg, 0, INT_MAX, &number))
            argp_error(state, "--linger %s: a number of milliseconds from 0 to %d", arg, INT_MAX);
        append->linger_ms = (int)number;
        return 0;
    case 'f':
        append->file = strcmp(arg, "-") == 0 ? NULL : arg;
        return 0;
    case 'q':
        argp_error(state, "--queue is not in this version: leave it out and try again on exit code 3");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int command_append(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"batch", 'n', "N", 0, "Every N lines (default 1000, at most 2000) are one atomic batch", 0},
        {"linger", 'l', "MS", 0, "A silence of MS milliseconds (default 100) closes a batch", 0},
        {"file", 'f', "F", 0, "Read lines from the file F, not from standard input", 0},
        {"queue", 'q', NULL, OPTION_HIDDEN, NULL, 0},
        {0},
    };
    struct append append = {
        .common = {.takes_topic = true}, .batch_lines = DEFAULT_BATCH, .linger_ms = DEFAULT_LINGER_MS};
    const struct own_arguments own = {
        options, parse, &append,
        "Append lines to TOPIC, each an entry.\v"
        "Exit code 0: every line is committed, durably unless the topic says otherwise. 1: failed. 2: wrong "
        "arguments. 3: busy or full, try again. An error says how many lines were committed; these are the "
        "first ones.\n\n"
        "SIGINT or SIGTERM: the lines read so far are committed, the message says how many; exit code 1, "
        "because the input was not at its end. A second one ends the program at once."};
    parse_arguments(argc, argv, &own, &append.common);
    return run(&append);
}
