/* uring.c: Walrus in an event loop of io_uring. One multishot poll on walrus_fd says when something is done;
 * reads and pauses go through the same ring. Lines of standard input become entries of a topic, up to 2000 a
 * batch, several batches in flight; a batch that was refused for now is sent again.
 *
 *   cc uring.c $(pkg-config --cflags --libs libwalrus-client liburing) -o uring
 *   seq 100000 | ./uring numbers
 *
 * A poll of io_uring tells of a change, not of a state: so everything is reaped, until walrus_reap says 0,
 * each time it fires. After that the library has the fd armed again, and the next completion is a change. */
#include <liburing.h>
#include <walrus.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { DEPTH = 8, JOB_BYTES = 32 << 10 };
enum event { EVENT_WALRUS = 1, EVENT_INPUT, EVENT_PAUSE };

struct job {
    size_t bytes;
    unsigned lines;
    char text[JOB_BYTES];
};

static struct state {
    walrus *handle;
    walrus_topic *topic;
    struct io_uring ring;
    struct job jobs[DEPTH];           /* number n is in jobs[n % DEPTH] */
    unsigned long filled, sent, done; /* numbers: done <= sent <= filled < done + DEPTH */
    size_t rest;                      /* bytes read behind the last job, at the begin of the next one */
    int reading, pausing, end_of_file;
    struct __kernel_timespec pause;
    unsigned long committed;
} state;

static int complain(const char *what)
{
    fprintf(stderr, "uring: %s: %s; %lu lines committed\n", what, walrus_error(state.handle),
            state.committed);
    return -1;
}

static int ask(enum event event)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&state.ring); /* three are in use at most */
    struct job *job = &state.jobs[state.filled % DEPTH];
    if (sqe == NULL)
        return complain("no room in the ring");
    switch (event) {
    case EVENT_WALRUS:
        io_uring_prep_poll_multishot(sqe, walrus_fd(state.handle), POLLIN);
        break;
    case EVENT_INPUT:
        io_uring_prep_read(sqe, STDIN_FILENO, job->text + state.rest, (unsigned)(JOB_BYTES - state.rest),
                           (__u64)-1);
        state.reading = 1;
        break;
    case EVENT_PAUSE:
        io_uring_prep_timeout(sqe, &state.pause, 0, 0);
        state.pausing = 1;
        break;
    }
    sqe->user_data = event;
    return 0;
}

/* Makes jobs of the whole lines among `have` bytes, as long as there are jobs. */
static void make_jobs(size_t have)
{
    while (state.filled + 1 < state.done + DEPTH && have > 0) {
        struct job *job = &state.jobs[state.filled % DEPTH];
        job->bytes = 0;
        job->lines = 0;
        while (job->lines < WALRUS_MAX_BATCH_ENTRIES && job->bytes < have) {
            const char *newline = memchr(job->text + job->bytes, '\n', have - job->bytes);
            if (newline == NULL && !state.end_of_file)
                break;
            job->bytes = newline != NULL ? (size_t)(newline + 1 - job->text) : have;
            job->lines++;
        }
        if (job->lines == 0)
            break;
        state.filled++;
        have -= job->bytes;
        memcpy(state.jobs[state.filled % DEPTH].text, job->text + job->bytes, have);
    }
    state.rest = have;
}

static int send_job(struct job *job, unsigned long number)
{
    walrus_batch *batch;
    const char *line = job->text, *end = job->text + job->bytes;
    int result = walrus_batch_begin(state.topic, &batch);
    if (result < 0)
        return result;
    for (unsigned i = 0; i < job->lines && result == 0; i++) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t length = (size_t)((newline != NULL ? newline : end) - line);
        void *entry;
        result = walrus_batch_reserve(batch, length, &entry);
        if (result == 0)
            memcpy(entry, line, length);
        line += length + 1;
    }
    struct walrus_submit_options options = {.size = sizeof options, .user_data = number, .queue = 1};
    if (result < 0) {
        walrus_batch_abort(batch);
    } else {
        result = walrus_batch_submit(batch, &options);
        if (result == -EAGAIN) /* it is still open; the job has everything that is in it */
            walrus_batch_abort(batch);
    }
    return result;
}

static int send_jobs(void)
{
    while (!state.pausing && state.sent < state.filled) {
        int result = send_job(&state.jobs[state.sent % DEPTH], state.sent);
        if (result == -EAGAIN)
            return 0; /* after the next completion */
        if (result < 0)
            return complain("submit");
        state.sent++;
    }
    return 0;
}

/* Refused: it and all behind it go again (numbers keep the order), after a pause if it was not for the order.
 * */
static int send_again(const struct walrus_completion *c)
{
    if (c->user_data < state.sent)
        state.sent = (unsigned long)c->user_data;
    if (c->receipt.reason == WALRUS_REASON_ORDER || state.pausing)
        return 0;
    state.pause.tv_nsec = c->receipt.retry_after_us > 0 && c->receipt.retry_after_us < 1000000
                              ? (long long)c->receipt.retry_after_us * 1000
                              : 1000000;
    return ask(EVENT_PAUSE);
}

static int reap_all(void)
{
    struct walrus_completion c;
    int count;
    while ((count = walrus_reap(state.handle, &c, 1)) == 1) {
        if (c.result == 0) {
            state.committed += state.jobs[c.user_data % DEPTH].lines;
            state.done = (unsigned long)c.user_data + 1;
        } else if (c.result == -EAGAIN || c.result == -EBUSY || c.result == -ENOSPC) {
            if (send_again(&c) < 0)
                return -1;
        } else {
            return complain(strerror(-c.result));
        }
    }
    return count < 0 ? complain("reap") : 0;
}

static int handle_event(const struct io_uring_cqe *cqe)
{
    switch (cqe->user_data) {
    case EVENT_WALRUS:
        if (cqe->res < 0)
            return complain(strerror(-cqe->res));
        return (cqe->flags & IORING_CQE_F_MORE) != 0 ? 0 : ask(EVENT_WALRUS); /* a multishot may end */
    case EVENT_INPUT:
        state.reading = 0;
        if (cqe->res < 0 && cqe->res != -EINTR && cqe->res != -EAGAIN)
            return complain(strerror(-cqe->res));
        state.end_of_file = cqe->res == 0;
        state.rest += cqe->res > 0 ? (size_t)cqe->res : 0;
        return 0;
    default:
        state.pausing = 0;
        return 0;
    }
}

static int loop(void)
{
    if (ask(EVENT_WALRUS) < 0)
        return -1;
    for (;;) {
        if (!state.reading)
            make_jobs(state.rest);
        if (send_jobs() < 0 || reap_all() < 0)
            return -1;
        if (state.end_of_file && state.rest == 0 && state.done == state.filled)
            return 0;
        if (!state.reading && !state.end_of_file && state.filled + 1 < state.done + DEPTH) {
            if (state.rest == JOB_BYTES)
                return complain("a line is too long");
            if (ask(EVENT_INPUT) < 0)
                return -1;
        }
        struct io_uring_cqe *cqe;
        int result = io_uring_submit_and_wait(&state.ring, 1);
        if (result < 0 && result != -EINTR)
            return complain(strerror(-result));
        while (io_uring_peek_cqe(&state.ring, &cqe) == 0) {
            result = handle_event(cqe);
            io_uring_cqe_seen(&state.ring, cqe);
            if (result < 0)
                return -1;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s TOPIC < LINES\n", argv[0]);
        return 2;
    }
    char words[512] = "";
    struct walrus_connect_options options = {.size = sizeof options,
                                             .flags = WALRUS_RECONNECT,
                                             .arena_bytes = 4 << 20,
                                             .error = words,
                                             .error_size = sizeof words};
    if (walrus_connect(&state.handle, &options) < 0) {
        fprintf(stderr, "uring: %s\n", words);
        return 1;
    }
    int result = io_uring_queue_init(8, &state.ring, 0);
    if (result < 0) {
        fprintf(stderr, "uring: io_uring_queue_init: %s\n", strerror(-result));
        walrus_close(state.handle);
        return 1;
    }
    int failed = walrus_topic_open(state.handle, argv[1], strlen(argv[1]), NULL, &state.topic);
    if (failed < 0)
        complain("topic");
    else
        failed = loop();
    if (!failed)
        printf("%lu lines committed\n", state.committed);
    io_uring_queue_exit(&state.ring);
    walrus_close(state.handle);
    return failed != 0;
}
