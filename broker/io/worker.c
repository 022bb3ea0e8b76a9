/* worker.c: the thread for work that blocks.
 *
 * Happy path: the core appends ops under the mutex and wakes the thread; the thread takes one at a time, in
 * order, performs it without the mutex, appends it to `out`; when `out` was empty it posts the eventfd; the
 * core empties the eventfd, then takes `out`. An op put into `out` after that finds it empty and posts again:
 * no wake-up is lost.
 *
 * Invariant: an op belongs to exactly one side; the hand-over is the mutex, so no field of it needs to be
 * atomic. */
#include "worker.h"

#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

void op_queue_push(struct op_queue *queue, struct io_op *op)
{
    op->next = NULL;
    if (queue->first == NULL)
        queue->first = op;
    else
        queue->last->next = op;
    queue->last = op;
}

struct io_op *op_queue_pop(struct op_queue *queue)
{
    struct io_op *op = queue->first;
    if (op != NULL) {
        queue->first = op->next;
        op->next = NULL;
    }
    return op;
}

void op_queue_move(struct op_queue *to, struct op_queue *from)
{
    if (from->first == NULL)
        return;
    if (to->first == NULL)
        to->first = from->first;
    else
        to->last->next = from->first;
    to->last = from->last;
    from->first = NULL;
}

void event_post(int event_fd)
{
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(event_fd, &one, sizeof one);
    while (n < 0 && errno == EINTR);
    check_bug(n == sizeof one || errno == EAGAIN); /* full means readable, which is all that is wanted */
}

void event_clear(int event_fd)
{
    uint64_t count;
    ssize_t n;
    do
        n = read(event_fd, &count, sizeof count);
    while (n < 0 && errno == EINTR);
    check_bug(n == sizeof count || errno == EAGAIN);
}

static void *worker_run(void *context)
{
    struct worker *worker = context;
    pthread_mutex_lock(&worker->mutex);
    for (;;) {
        struct io_op *op = op_queue_pop(&worker->in);
        if (op == NULL) {
            if (worker->stop)
                break;
            pthread_cond_wait(&worker->wake, &worker->mutex);
            continue;
        }
        pthread_mutex_unlock(&worker->mutex);
        op->result = worker->perform(worker->context, op);
        pthread_mutex_lock(&worker->mutex);
        bool was_empty = worker->out.first == NULL;
        op_queue_push(&worker->out, op);
        if (was_empty)
            event_post(worker->event_fd);
    }
    pthread_mutex_unlock(&worker->mutex);
    return NULL;
}

int thread_start(pthread_t *thread, const char *name, void *(*run)(void *context), void *context)
{
    /* Signals are for the core thread. A write beyond a file size limit then ends with EFBIG instead of
     * SIGXFSZ. */
    static const int own_mistakes[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT};
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < array_count(own_mistakes); i++)
        sigdelset(&blocked, own_mistakes[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    int code = pthread_create(thread, NULL, run, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0)
        return -code;
    (void)pthread_setname_np(*thread, name);
    return 0;
}

int worker_start(struct worker *worker, const char *name, int event_fd,
                 int64_t (*perform)(void *context, struct io_op *op), void *context)
{
    *worker = (struct worker){.event_fd = event_fd, .perform = perform, .context = context};
    pthread_mutex_init(&worker->mutex, NULL); /* neither can fail with default attributes */
    pthread_cond_init(&worker->wake, NULL);
    int result = thread_start(&worker->thread, name, worker_run, worker);
    if (result != 0) {
        pthread_cond_destroy(&worker->wake);
        pthread_mutex_destroy(&worker->mutex);
    }
    return result;
}

void worker_submit(struct worker *worker, struct op_queue *ops)
{
    pthread_mutex_lock(&worker->mutex);
    op_queue_move(&worker->in, ops);
    pthread_cond_signal(&worker->wake);
    pthread_mutex_unlock(&worker->mutex);
}

void worker_reap(struct worker *worker, struct op_queue *done)
{
    pthread_mutex_lock(&worker->mutex);
    op_queue_move(done, &worker->out);
    pthread_mutex_unlock(&worker->mutex);
}

void worker_stop(struct worker *worker)
{
    pthread_mutex_lock(&worker->mutex);
    check_bug(worker->in.first == NULL && worker->out.first == NULL);
    worker->stop = true;
    pthread_cond_signal(&worker->wake);
    pthread_mutex_unlock(&worker->mutex);
    pthread_join(worker->thread, NULL);
    pthread_cond_destroy(&worker->wake);
    pthread_mutex_destroy(&worker->mutex);
}
