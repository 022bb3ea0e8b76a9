/* epoll.c: Walrus in an event loop of epoll. Lines of standard input go to a topic in order, each exactly
 * once, also if the broker is killed and started again meanwhile: several batches are in flight while the
 * loop goes on reading, each is sent again until it is committed, and WALRUS_RECONNECT numbers them.
 *
 *   cc epoll.c $(pkg-config --cflags --libs libwalrus-client) -o epoll
 *   seq 100000 | ./epoll numbers
 *
 * The lines of a batch are kept (struct job) until its completion says 0, since a batch that was refused is
 * gone. What is refused for now takes everything behind it back: those come with -EAGAIN, reason ORDER. */
#include <walrus.h>

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { DEPTH = 8, JOB_BYTES = 64 << 10 };

struct job {
    size_t bytes;
    unsigned lines;
    char text[JOB_BYTES];
};

static struct state {
    walrus *handle;
    walrus_topic *topic;
    int epoll, timer;
    struct job jobs[DEPTH];           /* number n is in jobs[n % DEPTH] */
    unsigned long filled, sent, done; /* numbers: done <= sent <= filled <= done + DEPTH */
    size_t rest;                      /* bytes of an unfinished line, at the begin of the next job */
    int end_of_file, end_of_input;    /* nothing more to read; nothing more to put into jobs */
    int input_is_waited_for, input_can_wait, pausing;
    unsigned long committed;
} state;

static int complain(const char *what)
{
    fprintf(stderr, "epoll: %s: %s; %lu lines committed\n", what, walrus_error(state.handle),
            state.committed);
    return -1;
}

/* Gives a job the whole lines that lie in it, as many as a batch takes. */
static void cut(struct job *job, size_t have)
{
    job->bytes = 0;
    job->lines = 0;
    while (job->lines < WALRUS_MAX_BATCH_ENTRIES && job->bytes < have) {
        const char *newline = memchr(job->text + job->bytes, '\n', have - job->bytes);
        if (newline == NULL && !state.end_of_file)
            return;
        job->bytes = newline != NULL ? (size_t)(newline + 1 - job->text) : have;
        job->lines++;
    }
}

/* Reads one job. 1 done, 0 nothing to read now, -1 failed. */
static int read_job(void)
{
    struct job *job = &state.jobs[state.filled % DEPTH];
    struct job *next = &state.jobs[(state.filled + 1) % DEPTH];
    size_t have = state.rest;
    if (!state.end_of_file && memchr(job->text, '\n', have) == NULL) {
        ssize_t n = read(STDIN_FILENO, job->text + have, JOB_BYTES - have);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR ? 0 : complain(strerror(errno));
        state.end_of_file = n == 0;
        have += (size_t)n;
    }
    cut(job, have);
    if (job->bytes == 0 && have == JOB_BYTES)
        return complain("a line is too long");
    state.rest = have - job->bytes;
    state.end_of_input = state.end_of_file && state.rest == 0;
    if (job->bytes == 0)
        return 0;
    memcpy(next->text, job->text + job->bytes, state.rest); /* that one is free: see can_fill */
    state.filled++;
    return 1;
}

static int can_fill(void)
{
    return !state.end_of_input && state.filled + 1 < state.done + DEPTH;
}

/* Fills the batch in place, line by line. */
static int fill(walrus_batch *batch, const struct job *job)
{
    const char *line = job->text;
    for (unsigned i = 0; i < job->lines; i++) {
        size_t left = (size_t)(job->text + job->bytes - line);
        const char *newline = memchr(line, '\n', left);
        size_t length = newline != NULL ? (size_t)(newline - line) : left;
        void *entry;
        int result = walrus_batch_reserve(batch, length, &entry);
        if (result < 0)
            return result;
        memcpy(entry, line, length);
        line += length + 1;
    }
    return 0;
}

/* Sends one job. 0, or a negative errno; -EAGAIN: later. */
static int send_job(unsigned long number)
{
    walrus_batch *batch;
    int result = walrus_batch_begin(state.topic, &batch);
    if (result < 0)
        return result;
    result = fill(batch, &state.jobs[number % DEPTH]);
    if (result < 0) {
        walrus_batch_abort(batch);
        return result;
    }
    struct walrus_submit_options options = {.size = sizeof options, .user_data = number, .queue = 1};
    result = walrus_batch_submit(batch, &options);
    if (result == -EAGAIN) /* it is still open; the job has everything that is in it */
        walrus_batch_abort(batch);
    return result;
}

/* Goes back to a job that was refused for now; if that was not just for the order, after a pause. */
static int send_again(const struct walrus_completion *c)
{
    if (c->user_data < state.sent)
        state.sent = (unsigned long)c->user_data;
    if (c->receipt.reason == WALRUS_REASON_ORDER)
        return 0;
    long us = c->receipt.retry_after_us > 0 ? (long)c->receipt.retry_after_us : 1000;
    struct itimerspec pause = {.it_value = {us / 1000000, us % 1000000 * 1000}};
    state.pausing = 1;
    return timerfd_settime(state.timer, 0, &pause, NULL);
}

static int reap(void)
{
    struct walrus_completion done[DEPTH];
    int count = walrus_reap(state.handle, done, DEPTH);
    if (count < 0)
        return complain("reap");
    for (int i = 0; i < count; i++) {
        switch (done[i].result) {
        case 0:
            state.committed += state.jobs[done[i].user_data % DEPTH].lines;
            state.done = (unsigned long)done[i].user_data + 1;
            break;
        case -EAGAIN:
        case -EBUSY:
        case -ENOSPC:
            if (send_again(&done[i]) < 0)
                return complain("timer");
            break;
        default:
            return complain(strerror(-done[i].result));
        }
    }
    return 0;
}

static int do_what_can_be_done(void)
{
    while (can_fill()) {
        int result = read_job();
        if (result < 0)
            return -1;
        if (result == 0)
            break;
    }
    while (!state.pausing && state.sent < state.filled) {
        int result = send_job(state.sent);
        if (result == -EAGAIN)
            break;
        if (result < 0)
            return complain("submit");
        state.sent++;
    }
    return reap();
}

/* Sleeps until something can be done. */
static int wait(void)
{
    int want = state.input_can_wait && can_fill();
    if (want != state.input_is_waited_for) {
        struct epoll_event input = {.events = want ? EPOLLIN : 0, .data.fd = STDIN_FILENO};
        if (epoll_ctl(state.epoll, EPOLL_CTL_MOD, STDIN_FILENO, &input) < 0)
            return complain("epoll_ctl");
        state.input_is_waited_for = want;
    }
    if (can_fill() && !state.input_can_wait)
        return 0; /* a file: it can always be read */
    struct epoll_event event;
    if (epoll_wait(state.epoll, &event, 1, -1) < 0)
        return errno == EINTR ? 0 : complain("epoll_wait");
    uint64_t expirations;
    if (event.data.fd == state.timer && read(state.timer, &expirations, sizeof expirations) > 0)
        state.pausing = 0;
    return 0;
}

static int set_up(void)
{
    state.epoll = epoll_create1(EPOLL_CLOEXEC);
    state.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    int fd = walrus_fd(state.handle);
    struct epoll_event done = {.events = EPOLLIN, .data.fd = fd};
    struct epoll_event timer = {.events = EPOLLIN, .data.fd = state.timer};
    struct epoll_event input = {.events = 0, .data.fd = STDIN_FILENO};
    if (state.epoll < 0 || state.timer < 0 || epoll_ctl(state.epoll, EPOLL_CTL_ADD, fd, &done) < 0 ||
        epoll_ctl(state.epoll, EPOLL_CTL_ADD, state.timer, &timer) < 0 ||
        fcntl(STDIN_FILENO, F_SETFL, O_NONBLOCK) < 0)
        return complain("epoll");
    state.input_can_wait = epoll_ctl(state.epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input) == 0;
    return 0;
}

static int loop(void)
{
    while (!state.end_of_input || state.done < state.filled) {
        if (do_what_can_be_done() < 0)
            return -1;
        if (state.end_of_input && state.done == state.filled)
            break;
        if (wait() < 0)
            return -1;
    }
    return 0;
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
        fprintf(stderr, "epoll: %s\n", words);
        return 1;
    }
    int failed = walrus_topic_open(state.handle, argv[1], strlen(argv[1]), NULL, &state.topic);
    if (failed < 0)
        complain("topic");
    else
        failed = set_up() < 0 || loop() < 0;
    if (!failed)
        printf("%lu lines committed\n", state.committed);
    walrus_close(state.handle);
    return failed != 0;
}
