/* signal_thread.c: the last resort for signals, where Linux AIO is not to be had: a thread that writes.
 *
 * Happy path
 *   1. The core adds the client's eventfd to the thread's epoll set, for room, once (EPOLLONESHOT).
 *   2. The thread takes one event at a time: there is room, it writes 1, puts the signal on `done`, posts the
 *      core's eventfd.
 *   3. The core takes `done` in its next wait.
 *   A full eventfd simply waits in the epoll set; it costs nothing and holds nobody up.
 *
 * Failure modes: the peer fills the eventfd between 2's event and its write, with O_NONBLOCK cleared, and the
 * write sleeps. A timer that ticks at the thread every millisecond meanwhile interrupts it (a signal handler
 * that does nothing, no restart), and the signal goes back into the epoll set: a millisecond of this thread
 * is all that a hostile peer gets at a time.
 *
 * Taking back: the core removes the descriptor from the epoll set; but the thread may hold its event already.
 * So the struct goes on `cancelled`, and the thread moves it on to `done` when it holds no event: nobody
 * looks at it any more after that.
 *
 * Invariant: struct io_signal.state is the core's alone. The thread looks at `fd` of the event it holds, no
 * more. A signal is either in the epoll set, held by the thread, on `cancelled` or on `done`. */
#include "signaller.h"
#include "worker.h"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define TICK_NS 1000000

static int tick_signal(void)
{
    return SIGRTMAX - 2;
}

static void on_tick(int number)
{
    (void)number;
}

/* A timer that ticks at the calling thread; -errno if there is none to be had. The handler stays for the life
 * of the process: another engine may use it too, and without one a late tick would end the process. */
static int make_ticker(timer_t *ticker)
{
    struct sigaction action = {.sa_handler = on_tick}; /* no SA_RESTART: it is there to interrupt */
    sigemptyset(&action.sa_mask);
    sigset_t tick;
    sigemptyset(&tick);
    sigaddset(&tick, tick_signal());
    struct sigevent to_us = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = tick_signal()};
    to_us._sigev_un._tid = gettid();
    if (sigaction(tick_signal(), &action, NULL) != 0 || timer_create(CLOCK_MONOTONIC, &to_us, ticker) != 0)
        return -errno;
    pthread_sigmask(SIG_UNBLOCK, &tick, NULL);
    return 0;
}

/* Writes 1; false if there was no room after all. */
static bool write_one(timer_t ticker, int fd)
{
    struct itimerspec ticking = {.it_interval.tv_nsec = TICK_NS, .it_value.tv_nsec = TICK_NS}, still = {0};
    uint64_t one = 1;
    timer_settime(ticker, 0, &ticking, NULL);
    ssize_t n = write(fd, &one, sizeof one);
    bool no_room = n < 0 && (errno == EINTR || errno == EAGAIN);
    timer_settime(ticker, 0, &still, NULL);
    return !no_room; /* any other error: there is nobody to be signalled */
}

static bool take_cancelled(struct signal_thread *sender)
{
    pthread_mutex_lock(&sender->mutex);
    struct io_signal *signal;
    bool any = false, stop = sender->stop;
    while ((signal = signal_list_pop(&sender->cancelled)) != NULL) {
        signal_list_push(&sender->done, signal);
        any = true;
    }
    pthread_mutex_unlock(&sender->mutex);
    if (any)
        event_post(sender->event_fd);
    return !stop;
}

/* One that could not be written goes back into the epoll set, unless it was cancelled meanwhile (then it is
 * no longer in it). */
static void handle(struct signal_thread *sender, timer_t ticker, struct io_signal *signal)
{
    if (!write_one(ticker, signal->fd)) {
        struct epoll_event again = {.events = EPOLLOUT | EPOLLONESHOT, .data.ptr = signal};
        (void)epoll_ctl(sender->epoll_fd, EPOLL_CTL_MOD, signal->fd, &again);
        return;
    }
    pthread_mutex_lock(&sender->mutex);
    /* If the core has removed it, it is on `cancelled` and goes to `done` from there. */
    bool ours = epoll_ctl(sender->epoll_fd, EPOLL_CTL_DEL, signal->fd, NULL) == 0;
    if (ours)
        signal_list_push(&sender->done, signal);
    pthread_mutex_unlock(&sender->mutex);
    if (ours)
        event_post(sender->event_fd);
}

static void *sender_run(void *context)
{
    struct signal_thread *sender = context;
    timer_t ticker = NULL;
    sender->start_result = make_ticker(&ticker);
    bool started = sender->start_result == 0;
    sem_post(&sender->started); /* a failed start frees nothing of ours before it has joined us */
    if (!started)
        return NULL;
    while (take_cancelled(sender)) {
        struct epoll_event event;
        if (epoll_wait(sender->epoll_fd, &event, 1, -1) != 1)
            continue;
        if (event.data.ptr == NULL)
            event_clear(sender->wake_fd);
        else
            handle(sender, ticker, event.data.ptr);
    }
    timer_delete(ticker);
    return NULL;
}

/* ---------------------------------------------------------------------------------------- the core's side */

int signal_thread_start(struct signal_thread *sender, int event_fd)
{
    *sender = (struct signal_thread){.event_fd = event_fd, .wake_fd = -1};
    pthread_mutex_init(&sender->mutex, NULL);
    int result = 0;
    struct epoll_event wake = {.events = EPOLLIN};
    sender->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (sender->epoll_fd < 0)
        goto failed;
    sender->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (sender->wake_fd < 0 || epoll_ctl(sender->epoll_fd, EPOLL_CTL_ADD, sender->wake_fd, &wake) != 0)
        goto failed;
    sem_init(&sender->started, 0, 0);
    result = thread_start(&sender->thread, "walrus-signals", sender_run, sender);
    if (result == 0) {
        while (sem_wait(&sender->started) != 0)
            check_bug(errno == EINTR);
        result = sender->start_result;
        if (result == 0)
            return 0;
        pthread_join(sender->thread, NULL);
    }
    errno = -result;

failed:
    result = -errno;
    if (sender->wake_fd >= 0)
        close(sender->wake_fd);
    if (sender->epoll_fd >= 0)
        close(sender->epoll_fd);
    pthread_mutex_destroy(&sender->mutex);
    return result;
}

void signal_thread_stop(struct signal_thread *sender)
{
    pthread_mutex_lock(&sender->mutex);
    sender->stop = true;
    pthread_mutex_unlock(&sender->mutex);
    event_post(sender->wake_fd);
    pthread_join(sender->thread, NULL);
    close(sender->wake_fd);
    close(sender->epoll_fd);
    pthread_mutex_destroy(&sender->mutex);
}

int signal_thread_send(struct signal_thread *sender, struct io_signal *signal)
{
    struct epoll_event room = {.events = EPOLLOUT | EPOLLONESHOT, .data.ptr = signal};
    return epoll_ctl(sender->epoll_fd, EPOLL_CTL_ADD, signal->fd, &room) == 0 ? 0 : -errno;
}

void signal_thread_cancel(struct signal_thread *sender, struct io_signal *signal)
{
    pthread_mutex_lock(&sender->mutex);
    /* Under the mutex, as the thread's removal is: exactly one of the two succeeds. If the thread's did, it
     * is on `done`. */
    if (epoll_ctl(sender->epoll_fd, EPOLL_CTL_DEL, signal->fd, NULL) == 0)
        signal_list_push(&sender->cancelled, signal);
    pthread_mutex_unlock(&sender->mutex);
    event_post(sender->wake_fd);
}

void signal_thread_reap(struct signal_thread *sender, struct signal_list *done)
{
    pthread_mutex_lock(&sender->mutex);
    *done = sender->done;
    sender->done = (struct signal_list){0};
    pthread_mutex_unlock(&sender->mutex);
}
