/* append_lines.c: lines into batches, one under way while the next one is filled.
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
 *   - A signal: as the end of the input, but a line that is not complete is left out, and it is said.
 *
 * Invariant: lines read = committed + in flight + open. */
#include <errno.h>

#include "append.h"
#include "interrupt.h"

struct piped {
    struct append *append;
    walrus_batch *open;
    uint32_t open_lines;
    uint32_t in_flight; /* lines of the one batch that is submitted and not settled; 0 = none */
    struct lines lines;
};

/* -------------------------------------------------------------------------------- batches */

/* Accounts for the completion of the batch in flight, if it is there. 1 settled, 0 not yet, or the exit code
 * as a negative number after a complaint. */
static int take_completion(struct piped *piped)
{
    struct walrus_completion completion;
    int count = walrus_reap(piped->append->handle, &completion, 1);
    if (count == 0)
        return 0;
    int result = count < 0 ? count : completion.result;
    uint8_t reason = count < 0 ? 0 : completion.receipt.reason;
    uint32_t lines = piped->in_flight;
    piped->in_flight = 0;
    if (result == 0) {
        piped->append->committed += lines;
        return 1;
    }
    bool unknown = result == -ECONNRESET || result == -EINPROGRESS || count < 0;
    return -append_failed(piped->append, failure_words(result, reason), result, unknown ? lines : 0);
}

/* Waits until nothing is in flight. An exit code. */
static int settle(struct piped *piped)
{
    while (piped->in_flight > 0) {
        int taken = take_completion(piped);
        if (taken < 0)
            return -taken;
        if (taken > 0)
            return EXIT_DONE;
        int rc = walrus_wait(piped->append->handle, 1, -1);
        if (rc < 0 && rc != -EINTR && rc != -ETIME)
            return append_failed(piped->append, failure_words(rc, 0), rc, piped->in_flight);
    }
    return EXIT_DONE;
}

/* Drops the open batch and waits for the one in flight, whose failure comes before any other. */
static int drop(struct piped *piped)
{
    walrus_batch_abort(piped->open);
    piped->open = NULL;
    return settle(piped);
}

/* A call of the library failed for the open batch. */
static int fail(struct piped *piped, int error)
{
    char words[600];
    append_words(piped->append, error, words, sizeof words);
    int code = drop(piped);
    return code != EXIT_DONE ? code : append_failed(piped->append, words, error, 0);
}

static int close_batch(struct piped *piped)
{
    if (piped->open == NULL)
        return EXIT_DONE;
    int code = settle(piped);
    if (code != EXIT_DONE)
        return code;
    struct walrus_submit_options options = {.size = sizeof options, .queue = piped->append->queue};
    int rc = walrus_batch_submit(piped->open, &options);
    if (rc == -EAGAIN)
        return fail(piped, rc);
    piped->open = NULL;
    uint32_t lines = piped->open_lines;
    piped->open_lines = 0;
    if (rc == 0) {
        piped->in_flight = lines;
        return EXIT_DONE;
    }
    return append_failed(piped->append, failure_words(rc, 0), rc, rc == -ECONNRESET ? lines : 0);
}

static int try_line(struct piped *piped, const char *data, size_t length)
{
    int rc = 0;
    if (piped->open == NULL) {
        rc = walrus_batch_begin(piped->append->topic, &piped->open);
        if (rc == 0 && piped->append->queue)
            rc = walrus_batch_set_queue(piped->open, 1);
    }
    return rc == 0 ? walrus_batch_add(piped->open, data, length) : rc;
}

static int add_line(struct piped *piped, const char *data, size_t length)
{
    int rc = try_line(piped, data, length);
    if (rc == -EAGAIN && piped->in_flight > 0) { /* the batch in flight holds what is missing */
        int code = settle(piped);
        if (code != EXIT_DONE)
            return code;
        rc = try_line(piped, data, length);
    }
    if (rc < 0)
        return fail(piped, rc);
    piped->open_lines++;
    return piped->open_lines == piped->append->batch_lines ? close_batch(piped) : EXIT_DONE;
}

/* -------------------------------------------------------------------------------- input */

static int read_input(struct piped *piped)
{
    int rc = lines_read(&piped->lines);
    if (rc >= 0)
        return EXIT_DONE;
    int code = drop(piped);
    return code != EXIT_DONE ? code : append_input_failed(piped->append, rc);
}

/* Waits for input, a silence, or news from the broker. */
static int wait_for_input(struct piped *piped)
{
    struct append *append = piped->append;
    unsigned news = 0;
    int code = append_wait(append, piped->open != NULL ? append->linger_ms : -1, &news);
    if (code != EXIT_DONE || interrupt_number() != 0)
        return code;
    if (news == 0)
        return close_batch(piped);
    if (news & NEWS_BROKER) {
        int taken = piped->in_flight > 0 ? take_completion(piped) : 0;
        if (taken < 0)
            return -taken;
        int rc = piped->in_flight == 0 ? append_probe(append) : 0;
        if (rc < 0)
            return fail(piped, rc);
    }
    return news & NEWS_INPUT ? read_input(piped) : EXIT_DONE;
}

static int pump(struct piped *piped)
{
    for (;;) {
        const char *data;
        size_t length;
        int code = EXIT_DONE;
        while (lines_next(&piped->lines, &data, &length) > 0) {
            code = add_line(piped, data, length);
            if (code != EXIT_DONE)
                return code;
        }
        bool ended = piped->lines.ended || interrupt_number() != 0;
        code = ended ? close_batch(piped) : wait_for_input(piped);
        if (code != EXIT_DONE)
            return code;
        if (ended)
            break;
    }
    int code = settle(piped);
    if (code == EXIT_DONE && !piped->lines.ended)
        code =
            append_interrupted(piped->append, piped->lines.end > piped->lines.start ? UNFINISHED_LINE : "");
    return code;
}

int append_lines(struct append *append)
{
    struct piped piped = {.append = append, .lines = {.fd = append->input}};
    int code = pump(&piped);
    walrus_batch_abort(piped.open);
    lines_free(&piped.lines);
    return code;
}
