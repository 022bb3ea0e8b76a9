/* append.c: `walrus append`: lines into a topic, each batch of them atomic.
 *
 * Happy path
 *   1. Input is cut into lines. Each goes into the open batch at once (the library sends a large batch in
 *      chunks), so memory stays at the longest line and the arena.
 *   2. A batch is closed after --batch lines, after a silence of --linger, at the end of the input. It is
 *      submitted once the batch before it is committed; meanwhile the next one is filled. So what is
 *      committed is always a prefix of the input.
 *   3. At the end the last batch is waited for. Exit 0: every line is at the topic's level.
 *
 * Failure modes
 *   - A batch is refused or fails: the open one is dropped, the message says how many lines are committed; 3
 *     if trying again helps.
 *   - The broker dies: at most one batch is in flight, its lines are "unknown"; the open batch was never
 *     published whole, so it can not be committed. While the input is silent the broker's death ends the
 *     program as well.
 *
 * Invariant: lines read = committed + in flight + open. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "lines.h"

#define NAME "append"

struct append {
    struct connection connection;
    const char *topic_name;
    const char *file;
    uint32_t batch_lines;
    int linger_ms;

    walrus *handle;
    walrus_topic *topic;
    walrus_batch *open;
    uint32_t open_lines;
    uint32_t in_flight; /* lines of the one batch that is submitted and not settled; 0 = none */
    uint64_t committed;
    struct lines lines;
};

/* -------------------------------------------------------------------------------- failures */

static const char *lines_word(uint64_t count)
{
    return count == 1 ? "line is" : "lines are";
}

/* Says what went wrong with the topic and what became of the lines; returns the exit code. */
static int report(const struct append *append, const char *words, int error, uint32_t unknown)
{
    struct shown shown;
    uint64_t committed = append->committed;
    if (unknown > 0)
        complain(NAME,
                 "topic '%s': %s; %" PRIu64
                 " %s committed, %u %s unknown (they may or may not be committed: read the "
                 "end of the topic to find out)",
                 show(&shown, append->topic_name), words, committed, lines_word(committed), unknown,
                 lines_word(unknown));
    else
        complain(NAME, "topic '%s': %s; %" PRIu64 " %s committed", show(&shown, append->topic_name), words,
                 committed, lines_word(committed));
    return exit_code_of(error);
}

/* -------------------------------------------------------------------------------- batches */

/* Accounts for the completion of the batch in flight, if it is there. 1 settled, 0 not yet, or the exit code
 * as a negative number after a complaint. */
static int take_completion(struct append *append)
{
    struct walrus_completion completion;
    int count = walrus_reap(append->handle, &completion, 1);
    if (count == 0)
        return 0;
    int result = count < 0 ? count : completion.result;
    uint8_t reason = count < 0 ? 0 : completion.receipt.reason;
    uint32_t lines = append->in_flight;
    append->in_flight = 0;
    if (result == 0) {
        append->committed += lines;
        return 1;
    }
    bool unknown = result == -ECONNRESET || result == -EINPROGRESS || count < 0;
    return -report(append, failure_words(result, reason), result, unknown ? lines : 0);
}

/* Waits until nothing is in flight. 0, or the exit code after a complaint. */
static int settle(struct append *append)
{
    while (append->in_flight > 0) {
        int taken = take_completion(append);
        if (taken < 0)
            return -taken;
        if (taken > 0)
            return EXIT_DONE;
        int rc = walrus_wait(append->handle, 1, -1);
        if (rc < 0 && rc != -EINTR && rc != -ETIME)
            return report(append, failure_words(rc, 0), rc, append->in_flight);
    }
    return EXIT_DONE;
}

/* A call of the library failed for the open batch: what is in flight is settled first, its failure comes
 * before this one. */
static int fail(struct append *append, int error)
{
    char words[600];
    const char *said = walrus_error(append->handle);
    snprintf(words, sizeof words, "%s", said[0] != '\0' ? said : failure_words(error, 0));
    walrus_batch_abort(append->open);
    append->open = NULL;
    int code = settle(append);
    return code != EXIT_DONE ? code : report(append, words, error, 0);
}

static int close_batch(struct append *append)
{
    if (append->open == NULL)
        return EXIT_DONE;
    int code = settle(append);
    if (code != EXIT_DONE)
        return code;
    struct walrus_submit_options options = {.size = sizeof options};
    int rc = walrus_batch_submit(append->open, &options);
    if (rc == -EAGAIN)
        return fail(append, rc);
    append->open = NULL;
    uint32_t lines = append->open_lines;
    append->open_lines = 0;
    if (rc == 0) {
        append->in_flight = lines;
        return EXIT_DONE;
    }
    return report(append, failure_words(rc, 0), rc, rc == -ECONNRESET ? lines : 0);
}

static int add_line(struct append *append, const char *data, size_t length)
{
    int rc = append->open != NULL ? 0 : walrus_batch_begin(append->topic, &append->open);
    if (rc == 0)
        rc = walrus_batch_add(append->open, data, length);
    if (rc == -EAGAIN && append->in_flight > 0) { /* the batch in flight holds what is missing */
        int code = settle(append);
        if (code != EXIT_DONE)
            return code;
        rc = append->open != NULL ? 0 : walrus_batch_begin(append->topic, &append->open);
        if (rc == 0)
            rc = walrus_batch_add(append->open, data, length);
    }
    if (rc < 0)
        return fail(append, rc);
    append->open_lines++;
    return append->open_lines == append->batch_lines ? close_batch(append) : EXIT_DONE;
}

/* -------------------------------------------------------------------------------- input */

/* The handle's descriptor is readable with nothing to reap: a round trip tells a dead broker from a late
 * signal. */
static int probe(struct append *append)
{
    walrus_topic *again = NULL;
    int rc = walrus_topic_open(append->handle, append->topic_name, strlen(append->topic_name), NULL, &again);
    if (rc == 0)
        walrus_topic_close(again);
    return rc == 0 ? EXIT_DONE : fail(append, rc);
}

/* Waits for input, a silence, or news from the broker. */
static int wait_for_input(struct append *append)
{
    struct pollfd fds[2] = {{.fd = append->lines.fd, .events = POLLIN},
                            {.fd = walrus_fd(append->handle), .events = POLLIN}};
    int ready = poll(fds, 2, append->open != NULL ? append->linger_ms : -1);
    if (ready < 0)
        return errno == EINTR ? EXIT_DONE : report(append, strerror(errno), -errno, 0);
    if (ready == 0)
        return close_batch(append);
    if (fds[1].revents != 0) {
        int taken = append->in_flight > 0 ? take_completion(append) : 0;
        if (taken < 0)
            return -taken;
        if (taken == 0) {
            int code = probe(append);
            if (code != EXIT_DONE)
                return code;
        }
    }
    if (fds[0].revents == 0)
        return EXIT_DONE;
    int rc = lines_read(&append->lines);
    if (rc >= 0)
        return EXIT_DONE;
    walrus_batch_abort(append->open);
    append->open = NULL;
    int code = settle(append);
    if (code != EXIT_DONE)
        return code;
    complain(NAME, "cannot read %s: %s; %" PRIu64 " %s committed",
             append->file != NULL ? append->file : "standard input", strerror(-rc), append->committed,
             lines_word(append->committed));
    return EXIT_FAILED;
}

static int pump(struct append *append)
{
    for (;;) {
        const char *data;
        size_t length;
        while (lines_next(&append->lines, &data, &length) > 0) {
            int code = add_line(append, data, length);
            if (code != EXIT_DONE)
                return code;
        }
        bool ended = append->lines.ended;
        int code = ended ? close_batch(append) : wait_for_input(append);
        if (code != EXIT_DONE)
            return code;
        if (ended)
            return settle(append);
    }
}

static int open_input(struct append *append)
{
    append->lines.fd = STDIN_FILENO;
    if (append->file == NULL)
        return EXIT_DONE;
    append->lines.fd = open(append->file, O_RDONLY | O_CLOEXEC);
    if (append->lines.fd >= 0)
        return EXIT_DONE;
    struct shown shown;
    complain(NAME, "cannot open %s: %s; 0 lines are committed", show(&shown, append->file), strerror(errno));
    return EXIT_FAILED;
}

static int run(struct append *append)
{
    int code = open_input(append);
    if (code != EXIT_DONE)
        return code;
    code = connect_to_broker(NAME, &append->connection, &append->handle);
    if (code == EXIT_DONE) {
        int rc = walrus_topic_open(append->handle, append->topic_name, strlen(append->topic_name), NULL,
                                   &append->topic);
        code = rc == 0 ? pump(append) : fail(append, rc);
        walrus_batch_abort(append->open);
        walrus_topic_close(append->topic);
        walrus_close(append->handle);
    }
    lines_free(&append->lines);
    if (append->file != NULL)
        close(append->lines.fd);
    return code;
}

/* -------------------------------------------------------------------------------- arguments */

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct append *append = state->input;
    uint64_t number = 0;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &append->connection;
        return 0;
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
    case ARGP_KEY_ARG:
        if (state->arg_num > 0)
            argp_error(state, "one topic only; '%s' is one too many", arg);
        if (topic_name_problem(arg) != NULL)
            argp_error(state, "%s", topic_name_problem(arg));
        append->topic_name = arg;
        return 0;
    case ARGP_KEY_END:
        if (append->topic_name == NULL)
            argp_error(state, "which topic?");
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
    static const struct argp_child children[] = {{&connection_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {
        options,
        parse,
        "TOPIC",
        "Append lines to TOPIC, each an entry.\v"
        "Exit code 0: every line is committed, durably unless the topic says otherwise. 1: failed. 2: wrong "
        "arguments. "
        "3: busy or full, try again. An error says how many lines were committed; these are the first ones.",
        children,
        NULL,
        NULL};
    struct append append = {.batch_lines = 1000, .linger_ms = 100};
    argp_parse(&argp, argc, argv, 0, NULL, &append);
    return run(&append);
}
