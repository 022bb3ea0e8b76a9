/* append.c: `walrus append`: its options, its input, signals, and what is said when it fails. The ways of
 * writing are in append_*.c, see append.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "append.h"
#include "interrupt.h"

#define NAME              "append"
#define DEFAULT_BATCH     1000
#define DEFAULT_LINGER_MS 100
#define DEFAULT_RETRY_NS  INT64_C(30000000000)

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

/* "7 lines are committed" */
struct committed_words {
    char text[64];
};

static const char *committed(const struct append *append, struct committed_words *words)
{
    if (append->stream)
        return "nothing is committed";
    snprintf(words->text, sizeof words->text, "%" PRIu64 " %s committed", append->committed,
             lines_word(append->committed));
    return words->text;
}

int append_failed(const struct append *append, const char *words, int error, uint32_t unknown)
{
    struct shown shown;
    struct committed_words done;
    char rest[160] = "";
    if (unknown > 0)
        snprintf(rest, sizeof rest, ", %u %s unknown (they may or may not be committed: %s)", unknown,
                 lines_word(unknown),
                 append->producer != NULL ? "run it again, and it writes what is missing"
                                          : "read the end of the topic to find out");
    complain(NAME, "topic '%s': %s; %s%s", show(&shown, append->common.topic), words,
             committed(append, &done), rest);
    return error == -ETIMEDOUT ? EXIT_TRY_AGAIN : exit_code_of(error);
}

int append_call_failed(const struct append *append, int error, uint32_t unknown)
{
    char words[600];
    append_words(append, error, words, sizeof words);
    return append_failed(append, words, error, unknown);
}

int append_input_failed(const struct append *append, int error)
{
    struct committed_words done;
    complain(NAME, "cannot read %s: %s; %s", append->file != NULL ? append->file : "standard input",
             strerror(-error), committed(append, &done));
    return EXIT_FAILED;
}

int append_interrupted(const struct append *append, const char *left)
{
    struct committed_words done;
    complain(NAME, "ended by %s before the end of the input; %s%s", interrupt_name(),
             committed(append, &done), left);
    return EXIT_FAILED;
}

/* -------------------------------------------------------------------------------- waiting */

int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

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
    struct walrus_completion unused;
    int rc = walrus_reap(append->handle, &unused, 1);
    return rc < 0 ? rc : 0;
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

static int connect_append(struct append *append)
{
    struct walrus_connect_options more = {.producer = append->producer};
    if (append->producer != NULL) {
        more.flags = WALRUS_RECONNECT | (append->take_over ? WALRUS_TAKE_OVER : 0u);
        more.reconnect_ns = append->retry.time_ns; /* 0: the library's */
    }
    return connect_to_broker(NAME, &append->common, &more, &append->handle);
}

static int write_input(struct append *append)
{
    const char *name = append->common.topic;
    int rc = walrus_topic_open(append->handle, name, strlen(name), NULL, &append->topic);
    if (rc < 0)
        return append_call_failed(append, rc, 0);
    if (append->stream)
        return append_stream(append);
    if (append->producer != NULL || append->retry.given)
        return append_kept(append);
    return append_lines(append);
}

static int run(struct append *append)
{
    append->interrupt = interrupt_catch();
    int code = open_input(append);
    if (code != EXIT_DONE)
        return code;
    code = connect_append(append);
    if (code == EXIT_DONE) {
        code = write_input(append);
        walrus_topic_close(append->topic);
        walrus_close(append->handle);
    }
    if (append->file != NULL)
        close(append->input);
    return code;
}

/* -------------------------------------------------------------------------------- arguments */

/* "5": tries; "5s", "500ms", "2m", "1h": a time. NULL: the default. */
static bool parse_retry(const char *text, struct retry_limit *limit)
{
    static const struct {
        const char *name;
        int64_t ns;
    } units[] = {
        {"ms", 1000000}, {"s", 1000000000}, {"m", INT64_C(60000000000)}, {"h", INT64_C(3600000000000)}};
    char digits[16];
    uint64_t number;
    *limit = (struct retry_limit){.given = true, .time_ns = DEFAULT_RETRY_NS};
    if (text == NULL)
        return true;
    size_t length = strspn(text, "0123456789");
    if (length >= sizeof digits)
        return false;
    memcpy(digits, text, length);
    digits[length] = '\0';
    if (!parse_number(digits, 1, 1000000, &number))
        return false;
    limit->time_ns = 0;
    if (text[length] == '\0')
        limit->tries = (uint32_t)number;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(text + length, units[i].name) == 0)
            limit->time_ns = (int64_t)number * units[i].ns;
    }
    return limit->tries > 0 || limit->time_ns > 0;
}

/* What does not go together. */
static void check_options(const struct append *append, struct argp_state *state)
{
    if (append->take_over && append->producer == NULL)
        argp_error(state, "--take-over: of which --producer?");
    if (append->producer != NULL && append->linger_ms >= 0)
        argp_error(state,
                   "--linger with --producer: its batches are exactly --batch lines, whatever the time");
    if (append->stream && (append->linger_ms >= 0 || append->batch_lines > 0))
        argp_error(state, "--batch or --linger with --stream: the whole input is one batch");
}

static error_t parse_size(int key, char *arg, struct append *append, struct argp_state *state)
{
    uint64_t number = 0;
    if (key == 'n') {
        if (!parse_number(arg, 1, WALRUS_MAX_BATCH_ENTRIES, &number))
            argp_error(state, "--batch %s: a number of lines from 1 to %u", arg, WALRUS_MAX_BATCH_ENTRIES);
        append->batch_lines = (uint32_t)number;
    } else {
        if (!parse_number(arg, 0, INT_MAX, &number))
            argp_error(state, "--linger %s: a number of milliseconds from 0 to %d", arg, INT_MAX);
        append->linger_ms = (int)number;
    }
    return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct append *append = state->input;
    switch (key) {
    case 'n':
    case 'l':
        return parse_size(key, arg, append, state);
    case 'f':
        append->file = strcmp(arg, "-") == 0 ? NULL : arg;
        return 0;
    case 'q':
        append->queue = true;
        return 0;
    case 'r':
        if (!parse_retry(arg, &append->retry))
            argp_error(state, "--retry=%s: a number of tries, or a time: 500ms, 30s, 5m, 1h", arg);
        return 0;
    case 's':
        append->stream = true;
        return 0;
    case 'p':
        if (name_problem(arg) != NULL)
            argp_error(state, "a producer's name %s", name_problem(arg));
        append->producer = arg;
        return 0;
    case 't':
        append->take_over = true;
        return 0;
    case ARGP_KEY_END:
        check_options(append, state);
        if (append->batch_lines == 0)
            append->batch_lines = DEFAULT_BATCH;
        if (append->linger_ms < 0)
            append->linger_ms = DEFAULT_LINGER_MS;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const char append_words_for_help[] =
    "Append lines to TOPIC, each an entry.\v"
    "Exit code 0: every line is committed, durably unless the topic says otherwise. 1: failed. 2: wrong "
    "arguments. 3: busy or full, try again. An error says how many lines were committed; these are the "
    "first ones.\n\n"
    "--queue waits for its turn behind other programs' batches on the topic, first come, first served, as "
    "long as it takes. --retry sends a refused batch again, after pauses of random, growing length; "
    "without it a busy topic is exit code 3.\n\n"
    "--stream: the input is one entry of raw bytes, up to 10 GiB, and appears as a whole or not at all. "
    "`walrus read --raw` gives its exact bytes back. A signal rolls it back, and so does a silence of 30 "
    "s (walrusd --idle-stream).\n\n"
    "--producer NAME: the batches of the input are numbered, and the broker remembers for ever which "
    "number NAME has committed to TOPIC. Killed at any point and run again on the same input with the "
    "same --batch, it skips what is committed, so that each line is there exactly once; it compares the "
    "last batch and refuses another input. Only the end of the input closes a batch early. If the broker "
    "dies it connects again, for 30 s or as long as --retry says. NAME stands for one input of one "
    "program at a time: use another one for another input. With --stream the input is one batch, written "
    "once.\n\n"
    "SIGINT or SIGTERM: the lines read so far are committed (with --producer those of whole batches), the "
    "message says how many; exit code 1, because the input was not at its end. A second one ends the "
    "program at once.";

int command_append(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"batch", 'n', "N", 0, "Every N lines (default 1000, at most 2000) are one atomic batch", 0},
        {"linger", 'l', "MS", 0, "A silence of MS milliseconds (default 100) closes a batch", 0},
        {"file", 'f', "F", 0, "Read the file F, not standard input", 0},
        {"queue", 'q', NULL, 0, "Wait for the topic where it is busy", 0},
        {"retry", 'r', "TIME|TRIES", OPTION_ARG_OPTIONAL,
         "Send a refused batch again for TIME (500ms, 30s, 5m, 1h; default 30s), or TRIES times in all", 0},
        {"stream", 's', NULL, 0, "The whole input, however large, is one entry and one atomic batch", 0},
        {"producer", 'p', "NAME", 0, "Number the batches for NAME: run again, it writes nothing twice", 0},
        {"take-over", 't', NULL, 0,
         "Take NAME over from a program that still holds it, which is then refused", 0},
        {0},
    };
    struct append append = {.common = {.takes_topic = true}, .linger_ms = -1};
    const struct own_arguments own = {options, parse, &append, append_words_for_help};
    parse_arguments(argc, argv, &own, &append.common);
    return run(&append);
}
