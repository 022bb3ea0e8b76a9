/* threaded.c: the seam over two threads: one for data, one for files.
 *
 * Happy path: submit puts data work on a list, kick hands the list over in one go; wait sleeps in poll on
 * {eventfd of the two threads, watched descriptor} and finishes what came out.
 *
 * Invariants: `done` runs in the thread that calls wait; an op with `background` set goes to the helper
 * thread and never holds up the data thread. */
#include "threaded.h"

#include <poll.h>
#include <unistd.h>

static int64_t run_data(void *context, struct io_op *op)
{
    struct threaded *threaded = context;
    return threaded->perform(threaded, op);
}

static void threaded_submit(struct io *io, struct io_op *op)
{
    struct threaded *threaded = threaded_of(real_of(io));
    if (real_admit(&threaded->real, op))
        real_submit_file_work(&threaded->real, op);
    else
        op_queue_push(&threaded->for_data, op);
}

static void threaded_kick(struct io *io)
{
    struct threaded *threaded = threaded_of(real_of(io));
    if (threaded->for_data.first != NULL)
        worker_submit(&threaded->data, &threaded->for_data);
}

static int reap(struct threaded *threaded)
{
    int count = real_reap_file_work(&threaded->real);
    struct op_queue done = {0};
    worker_reap(&threaded->data, &done);
    struct io_op *op;
    while ((op = op_queue_pop(&done)) != NULL) {
        real_finish(&threaded->real, op, op->result);
        count++;
    }
    return count;
}

static int threaded_wait(struct io *io, int64_t timeout_ns)
{
    struct real *real = real_of(io);
    struct threaded *threaded = threaded_of(real);
    threaded_kick(io);
    int64_t deadline = timeout_ns > 0 ? time_after(real_now(io), timeout_ns) : 0;
    io->watch_ready = false;
    for (;;) {
        struct pollfd polled[2] = {{.fd = real->event_fd, .events = POLLIN},
                                   {.fd = real->watch_fd, .events = POLLIN}};
        int64_t left = timeout_ns > 0 ? deadline - real_now(io) : timeout_ns;
        if (timeout_ns > 0 && left < 0)
            left = 0;
        int64_t sleep = real_limit_sleep(real, left);
        struct timespec limit = {.tv_sec = sleep / 1000000000, .tv_nsec = sleep % 1000000000};
        int ready = ppoll(polled, 2, sleep < 0 ? NULL : &limit, NULL);
        if (ready < 0) {
            check_bug(errno == EINTR || errno == ENOMEM);
            return 0; /* a signal: the caller may want to look at what it was */
        }
        io->watch_ready = polled[1].revents != 0;
        int count = 0;
        if (polled[0].revents != 0) {
            event_clear(real->event_fd);
            count = reap(threaded);
        }
        signaller_reap(&real->signaller);
        if (count > 0 || io->watch_ready || left == 0)
            return count;
    }
}

static void threaded_destroy(struct io *io)
{
    struct threaded *threaded = threaded_of(real_of(io));
    check_bug(io->inflight == 0);
    worker_stop(&threaded->data);
    real_release(&threaded->real);
    if (threaded->end != NULL)
        threaded->end();
    free(threaded);
}

static const struct io_functions threaded_functions = {
    .submit = threaded_submit,
    .kick = threaded_kick,
    .wait = threaded_wait,
    .now = real_now,
    .wall = real_wall,
    .random = real_random,
    .file_size = real_file_size,
    .file_align = real_file_align,
    .list = real_list,
    .lock = real_lock,
    .claim = real_claim,
    .sleep = real_sleep,
    .space_free = real_space_free,
    .destroy = threaded_destroy,
    .signal_send = signaller_send,
    .signal_cancel = signaller_cancel,
    .prepare_memory = real_prepare_memory,
};

size_t threaded_size(void)
{
    return sizeof(struct threaded);
}

int threaded_start(struct real *real, int64_t (*perform)(struct threaded *threaded, struct io_op *op),
                   struct error *err)
{
    struct threaded *threaded = threaded_of(real);
    threaded->perform = perform;
    int result = worker_start(&threaded->data, "walrus-data", real->event_fd, run_data, threaded);
    if (result != 0)
        return error_set(err, result, "cannot start the I/O thread: %s", strerror(-result));
    real->io.functions = &threaded_functions;
    return 0;
}
