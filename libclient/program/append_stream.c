/* append_stream.c: the whole input as one entry, as it is: --stream.
 *
 * Happy path: what is read goes part by part into one batch of one entry. The library sends what outgrows
 * the arena in chunks; nothing of it is visible before the end of the input has been submitted and
 * committed.
 *
 * Failure modes
 *   - refused, or rolled back because the connection was lost: nothing is committed. With --retry (and,
 * after a lost connection, with --producer) it is sent again if the input can be read again, that is, from a
 * file.
 *   - a signal, or input that cannot be read: the batch is rolled back: half an input is never committed.
 *   - the broker dies before it has answered: "unknown"; with --producer the library asks.
 *
 * --producer: the input is batch number 1 of the producer in the topic: it is written once. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "append.h"
#include "interrupt.h"

#define NAME          "append"
#define PART_BYTES    ((size_t)256 << 10)
#define FIRST_WAIT_NS INT64_C(10000000)
#define MOST_WAIT_NS  INT64_C(1000000000)

struct stream {
    struct append *append;
    char *part;   /* PART_BYTES */
    bool regular; /* a file: reading it never waits */
    off_t begin;  /* where the input begins; < 0: it cannot be read again */
    uint64_t bytes;
    walrus_batch *batch;
    char words[600]; /* of the last failure */
};

/* -------------------------------------------------------------------------------- failures */

static int stream_failed(const struct stream *stream, int error)
{
    const struct append *append = stream->append;
    struct shown shown;
    const char *end = "nothing is committed";
    if (error == -ECONNRESET || error == -EINPROGRESS)
        end = append->producer != NULL
                  ? "it is not known whether it is committed: run it again"
                  : "it may or may not be committed: read the end of the topic to find out";
    complain(NAME, "topic '%s': %s; %" PRIu64 " bytes were read, %s", show(&shown, append->common.topic),
             stream->words, stream->bytes, end);
    return error == -ETIMEDOUT ? EXIT_TRY_AGAIN : exit_code_of(error);
}

static int note(struct stream *stream, int error)
{
    append_words(stream->append, error, stream->words, sizeof stream->words);
    return error;
}

/* -------------------------------------------------------------------------------- one try */

/* Waits until something can be read. 0, -EINTR (a signal), or what the library says. */
static int wait_for_input(struct stream *stream)
{
    struct append *append = stream->append;
    while (!stream->regular && interrupt_number() == 0) {
        unsigned news = 0;
        if (append_wait(append, -1, &news) != EXIT_DONE)
            return -EINTR;
        int rc = news & NEWS_BROKER ? append_probe(append) : 0;
        if (rc < 0)
            return note(stream, rc);
        if (news & NEWS_INPUT)
            break;
    }
    return interrupt_number() != 0 ? -EINTR : 0;
}

/* The input into the batch. 0, 1 (it could not be read: errno), -EINTR, or what the library says. */
static int fill(struct stream *stream)
{
    stream->bytes = 0;
    for (;;) {
        int rc = wait_for_input(stream);
        if (rc < 0)
            return rc;
        ssize_t got = read(stream->append->input, stream->part, PART_BYTES);
        if (got < 0 && errno != EINTR && errno != EAGAIN)
            return 1;
        if (got < 0)
            continue;
        rc = walrus_batch_add_part(stream->batch, stream->part, (size_t)got, got > 0);
        if (rc < 0)
            return note(stream, rc);
        stream->bytes += (uint64_t)got;
        if (got == 0)
            return 0;
    }
}

static int outcome(struct stream *stream)
{
    struct append *append = stream->append;
    struct walrus_completion completion;
    for (;;) {
        int count = walrus_reap(append->handle, &completion, 1);
        int result = count < 0 ? count : completion.result;
        if (count < 0)
            return note(stream, result);
        if (count > 0) {
            snprintf(stream->words, sizeof stream->words, "%s",
                     failure_words(result, completion.receipt.reason));
            return result;
        }
        int rc = walrus_wait(append->handle, 1, -1);
        if (rc < 0 && rc != -EINTR && rc != -ETIME)
            return note(stream, rc);
    }
}

/* As fill(). */
static int try_once(struct stream *stream)
{
    struct append *append = stream->append;
    struct walrus_submit_options options = {.size = sizeof options, .queue = append->queue};
    options.number = append->producer != NULL ? 1 : 0;
    int rc = walrus_batch_begin(append->topic, &stream->batch);
    if (rc == 0 && append->queue)
        rc = walrus_batch_set_queue(stream->batch, 1);
    if (rc < 0)
        return note(stream, rc);
    rc = fill(stream);
    if (rc == 0) {
        rc = walrus_batch_submit(stream->batch, &options);
        if (rc != -EAGAIN) /* else it is still open */
            stream->batch = NULL;
        rc = rc < 0 ? note(stream, rc) : outcome(stream);
    }
    int error = errno;
    walrus_batch_abort(stream->batch);
    stream->batch = NULL;
    errno = error;
    return rc;
}

/* -------------------------------------------------------------------------------- trying again */

/* A random time up to `bound`, or until a signal. */
static void wait_a_little(const struct append *append, int64_t bound)
{
    uint32_t random = 0;
    (void)!getrandom(&random, sizeof random, GRND_NONBLOCK);
    struct pollfd fd = {.fd = append->interrupt, .events = POLLIN};
    poll(&fd, 1, (int)(1 + random % (uint32_t)(bound / 1000000)));
}

static bool may_try_again(const struct stream *stream, int error, uint32_t tries, int64_t begin)
{
    const struct append *append = stream->append;
    const struct retry_limit *limit = &append->retry;
    bool refused = limit->given && (error == -EBUSY || error == -EAGAIN || error == -ENOSPC);
    bool rolled_back = append->producer != NULL && error == -ECANCELED;
    if (stream->begin < 0 || interrupt_number() != 0 || !(refused || rolled_back))
        return false;
    if (limit->tries > 0 && tries >= limit->tries)
        return false;
    return limit->time_ns == 0 || now_ns() - begin < limit->time_ns;
}

static int write_stream(struct stream *stream)
{
    struct append *append = stream->append;
    int64_t begin = now_ns(), bound = FIRST_WAIT_NS;
    for (uint32_t tries = 1;; tries++) {
        int rc = try_once(stream);
        if (rc == 0)
            return EXIT_DONE;
        if (rc > 0)
            return append_input_failed(append, -errno);
        if (rc == -EINTR)
            return interrupt_number() != 0 ? append_interrupted(append, "") : EXIT_FAILED;
        if (!may_try_again(stream, rc, tries, begin))
            return stream_failed(stream, rc);
        wait_a_little(append, bound);
        bound = bound < MOST_WAIT_NS / 2 ? 2 * bound : MOST_WAIT_NS;
        if (lseek(append->input, stream->begin, SEEK_SET) < 0)
            return append_input_failed(append, -errno);
    }
}

int append_stream(struct append *append)
{
    struct stream stream = {.append = append, .part = malloc(PART_BYTES)};
    struct stat st;
    if (stream.part == NULL)
        return append_failed(append, strerror(ENOMEM), -ENOMEM, 0);
    stream.regular = fstat(append->input, &st) == 0 && S_ISREG(st.st_mode);
    stream.begin = stream.regular ? lseek(append->input, 0, SEEK_CUR) : -1;
    int code;
    if (append->retry.given && stream.begin < 0) {
        complain(NAME, "--stream with --retry needs input that can be read again: use --file F, or --queue");
        code = EXIT_USAGE;
    } else if (append->producer != NULL && walrus_topic_last_number(append->topic) > 0) {
        code = EXIT_DONE; /* an earlier run has written it */
    } else {
        code = write_stream(&stream);
    }
    free(stream.part);
    return code;
}
