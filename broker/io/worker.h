/* worker.h: a thread that does blocking work for the core: a queue of ops in, a queue of finished ones out,
 * an eventfd that is readable when something came out. Back ends use one for files (all of them) and one for
 * data (pwrite, mmap). */
#ifndef WALRUS_WORKER_H
#define WALRUS_WORKER_H

#include "io.h"
#include <pthread.h>

struct op_queue {
    struct io_op *first, *last;
};
void op_queue_push(struct op_queue *queue, struct io_op *op);
struct io_op *op_queue_pop(struct op_queue *queue);
/* Moves all of `from` to the end of `to`. */
void op_queue_move(struct op_queue *to, struct op_queue *from);

struct worker {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct op_queue in, out; /* under the mutex */
    bool stop;               /* under the mutex */
    int event_fd;            /* borrowed; several workers may share one */
    int64_t (*perform)(void *context, struct io_op *op);
    void *context;
};

/* `perform` runs in the thread and returns the op's result, which lies in op->result until the op is taken
 * out. */
int worker_start(struct worker *worker, const char *name, int event_fd,
                 int64_t (*perform)(void *context, struct io_op *op), void *context) must_check;
/* Takes all ops of `ops`, in order. */
void worker_submit(struct worker *worker, struct op_queue *ops);
/* Moves what is finished to the end of `done`. Empty the eventfd before, not after. */
void worker_reap(struct worker *worker, struct op_queue *done);
/* Ends the thread. Nothing may be in it. */
void worker_stop(struct worker *worker);

/* Starts a thread that takes none of the process's signals (those of its own mistakes excepted). */
int thread_start(pthread_t *thread, const char *name, void *(*run)(void *context), void *context) must_check;

/* The eventfds here are ours alone, non-blocking. */
void event_post(int event_fd);
void event_clear(int event_fd);

#endif
