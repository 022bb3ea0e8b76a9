/* signaller.h: signals to clients' eventfds, the same on every back end. For broker/io only. */
#ifndef WALRUS_SIGNALLER_H
#define WALRUS_SIGNALLER_H

#include "io.h"
#include <linux/aio_abi.h>
#include <pthread.h>
#include <semaphore.h>
#include <time.h>

/* Where a signal is: its field `state`. */
enum signal_state {
    SIGNAL_IDLE = 0,
    SIGNAL_QUEUED,     /* waits to be handed over */
    SIGNAL_SENT,       /* handed over: the kernel or the thread has it */
    SIGNAL_SENT_AGAIN, /* handed over; to be sent once more when that has ended */
    SIGNAL_CANCELLED,  /* handed over; being taken back */
};

struct signal_list {
    struct io_signal *first, *last; /* linked by `backend` */
};
void signal_list_push(struct signal_list *list, struct io_signal *signal);
struct io_signal *signal_list_pop(struct signal_list *list);
void signal_list_remove(struct signal_list *list, struct io_signal *signal);

/* The thread of the last resort, see signal_thread.c. */
struct signal_thread {
    pthread_t thread;
    pthread_mutex_t mutex;
    struct signal_list cancelled, done; /* under the mutex */
    bool stop;                          /* under the mutex */
    int epoll_fd; /* watches the signals' descriptors for room, each once, and wake_fd */
    int wake_fd;
    int event_fd; /* borrowed: tells the core that something is done */
    sem_t started;
    int start_result; /* valid once `started` was posted */
};

int signal_thread_start(struct signal_thread *sender, int event_fd) must_check;
void signal_thread_stop(struct signal_thread *sender);
/* 0, or the errno for which the kernel would not take it: nothing happened then. */
int signal_thread_send(struct signal_thread *sender, struct io_signal *signal) must_check;
void signal_thread_cancel(struct signal_thread *sender, struct io_signal *signal);
void signal_thread_reap(struct signal_thread *sender, struct signal_list *done);

struct signaller {
    aio_context_t aio; /* 0: refused; signals go by the thread */
    int ready_fd;      /* AIO: an eventfd that is always readable */
    unsigned unreaped; /* AIO: events that nobody took yet */
    bool has_thread;
    struct signal_thread thread;
    struct signal_list unsent; /* QUEUED: the kernel would not take them; tried again at each reap */
};

int signaller_start(struct signaller *signaller, int event_fd) must_check;
void signaller_stop(struct signaller *signaller);
void signaller_send(struct io *io, struct io_signal *signal);
void signaller_cancel(struct io *io, struct io_signal *signal);
void signaller_reap(struct signaller *signaller);

#endif
