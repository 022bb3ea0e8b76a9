/* signal.c: signalling a client that may be hostile.
 *
 * The eventfd is shared with the peer, who may have filled it and cleared O_NONBLOCK: then write(2) sleeps
 * until the peer likes. io_uring is no way out: for a descriptor that looks non-blocking it does the write
 * inside io_uring_enter, and the peer can clear the flag after that look (the test with the peer that "fills
 * its eventfd at the last moment" put this thread to sleep for good).
 *
 * Happy path: Linux AIO adds 1 to an eventfd (IOCB_FLAG_RESFD) when a request completes. The request here is
 * a poll of a descriptor that is always readable, so it completes inside io_submit: one system call, about
 * half a microsecond (450 ns measured; a plain write 130, io_uring 270). That addition never sleeps: a full
 * counter stays full, and a full eventfd is readable, which is all that a signal says. So nothing is ever
 * parked.
 *
 * Failure modes: no AIO here (not built in, filtered, all contexts taken): the thread of signal_thread.c
 * sends. The kernel takes neither at the moment: the signal stays on a list, counts as parked, and is tried
 * again at each reap.
 *
 * Invariant: a signal is on at most one list, and IDLE exactly when it is not parked. */
#include "real.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AIO_EVENTS  64
#define AIO_REAP_AT 32u

/* -------------------------------------------------------------------------------------------------- lists */

void signal_list_push(struct signal_list *list, struct io_signal *signal)
{
    signal->backend = NULL;
    if (list->first == NULL)
        list->first = signal;
    else
        list->last->backend = signal;
    list->last = signal;
}

struct io_signal *signal_list_pop(struct signal_list *list)
{
    struct io_signal *signal = list->first;
    if (signal != NULL)
        list->first = signal->backend;
    return signal;
}

void signal_list_remove(struct signal_list *list, struct io_signal *signal)
{
    struct signal_list rest = {0};
    struct io_signal *other;
    while ((other = signal_list_pop(list)) != NULL)
        if (other != signal)
            signal_list_push(&rest, other);
    *list = rest;
}

/* ---------------------------------------------------------------------------------------------- Linux AIO */

static void aio_reap(struct signaller *signaller)
{
    struct io_event events[AIO_EVENTS];
    struct timespec no_time = {0};
    (void)syscall(SYS_io_getevents, signaller->aio, 0L, (long)AIO_EVENTS, events, &no_time);
    signaller->unreaped = 0;
}

static int aio_send(struct signaller *signaller, int fd)
{
    struct iocb poll_ready = {
        .aio_lio_opcode = IOCB_CMD_POLL,
        .aio_fildes = (uint32_t)signaller->ready_fd,
        .aio_buf = POLLIN,
        .aio_flags = IOCB_FLAG_RESFD,
        .aio_resfd = (uint32_t)fd,
    };
    struct iocb *requests[1] = {&poll_ready};
    if (++signaller->unreaped >= AIO_REAP_AT)
        aio_reap(signaller);
    if (syscall(SYS_io_submit, signaller->aio, 1L, requests) == 1)
        return 0;
    aio_reap(signaller);
    return syscall(SYS_io_submit, signaller->aio, 1L, requests) == 1 ? 0 : -errno;
}

static void aio_stop(struct signaller *signaller)
{
    if (signaller->aio != 0)
        syscall(SYS_io_destroy, signaller->aio);
    signaller->aio = 0;
    if (signaller->ready_fd >= 0)
        close(signaller->ready_fd);
    signaller->ready_fd = -1;
}

/* Sets AIO up and signals ourselves once, to see that it arrives. */
static int aio_start(struct signaller *signaller)
{
    uint64_t count = 0;
    int result = 0, own = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    signaller->ready_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    if (own < 0 || signaller->ready_fd < 0 || syscall(SYS_io_setup, (long)AIO_EVENTS, &signaller->aio) != 0)
        result = -errno;
    if (result == 0)
        result = aio_send(signaller, own);
    if (result == 0 && read(own, &count, sizeof count) != sizeof count)
        result = -EOPNOTSUPP;
    if (own >= 0)
        close(own);
    if (result != 0)
        aio_stop(signaller);
    return result;
}

/* --------------------------------------------------------------------------------------------------- both */

int signaller_start(struct signaller *signaller, int event_fd)
{
    *signaller = (struct signaller){.ready_fd = -1};
    if (aio_start(signaller) == 0)
        return 0;
    int result = signal_thread_start(&signaller->thread, event_fd);
    signaller->has_thread = result == 0;
    return result;
}

void signaller_stop(struct signaller *signaller)
{
    if (signaller->has_thread)
        signal_thread_stop(&signaller->thread);
    signaller->has_thread = false;
    aio_stop(signaller);
}

/* Hands an idle signal over. */
static void hand_over(struct signaller *signaller, struct io_signal *signal)
{
    if (signaller->aio != 0) {
        if (aio_send(signaller, signal->fd) == 0)
            return;
    } else {
        signal->parked = true;
        signal->state = SIGNAL_SENT; /* before: the thread may be done with it at once */
        if (signal_thread_send(&signaller->thread, signal) == 0)
            return;
    }
    signal->parked = true;
    signal->state = SIGNAL_QUEUED;
    signal_list_push(&signaller->unsent, signal);
}

void signaller_send(struct io *io, struct io_signal *signal)
{
    struct signaller *signaller = &real_of(io)->signaller;
    check_bug(signal->fd >= 0 && signal->state != SIGNAL_CANCELLED);
    if (signal->state == SIGNAL_SENT)
        signal->state = SIGNAL_SENT_AGAIN;
    else if (signal->state == SIGNAL_IDLE)
        hand_over(signaller, signal);
}

void signaller_cancel(struct io *io, struct io_signal *signal)
{
    struct signaller *signaller = &real_of(io)->signaller;
    if (signal->state == SIGNAL_QUEUED) {
        signal_list_remove(&signaller->unsent, signal);
        signal->state = SIGNAL_IDLE;
        signal->parked = false;
    } else if (signal->state == SIGNAL_SENT || signal->state == SIGNAL_SENT_AGAIN) {
        signal->state = SIGNAL_CANCELLED;
        signal_thread_cancel(&signaller->thread, signal);
    }
}

void signaller_reap(struct signaller *signaller)
{
    struct signal_list again = signaller->unsent;
    struct io_signal *signal;
    signaller->unsent = (struct signal_list){0};
    if (signaller->has_thread) {
        struct signal_list done = {0};
        signal_thread_reap(&signaller->thread, &done);
        while ((signal = signal_list_pop(&done)) != NULL) {
            if (signal->state == SIGNAL_SENT_AGAIN) {
                signal_list_push(&again, signal);
            } else {
                signal->state = SIGNAL_IDLE;
                signal->parked = false;
            }
        }
    }
    while ((signal = signal_list_pop(&again)) != NULL) {
        signal->state = SIGNAL_IDLE;
        signal->parked = false;
        hand_over(signaller, signal);
    }
}
