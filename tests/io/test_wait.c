/* Waiting: what ends it, and what does not. */
#include "support.h"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* An epoll descriptor over an eventfd, as the broker has it. */
struct watched {
    char *folder;
    struct io *io;
    int epoll_fd, event_fd;
};

static struct watched watched_begin(int backend)
{
    struct watched w = {.folder = folder_make(), .epoll_fd = epoll_create1(EPOLL_CLOEXEC)};
    w.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN};
    cr_assert_eq(epoll_ctl(w.epoll_fd, EPOLL_CTL_ADD, w.event_fd, &event), 0);
    w.io = io_make(w.folder, backend, w.epoll_fd);
    return w;
}

static void watched_end(struct watched *w)
{
    io_end(w->io);
    folder_remove(w->folder);
    close(w->event_fd);
    close(w->epoll_fd);
}

static void *ring_later(void *context)
{
    struct watched *w = context;
    uint64_t one = 1;
    cr_assert_eq(write(w->event_fd, &one, sizeof one), sizeof one);
    return NULL;
}

static void drain(int fd)
{
    uint64_t count;
    cr_assert_eq(read(fd, &count, sizeof count), sizeof count);
}

each_backend(wait, with_no_time_returns_at_once)
{
    struct watched w = watched_begin(*backend);
    for (int i = 0; i < 1000; i++) {
        cr_assert_eq(io_wait(w.io, 0), 0);
        cr_assert_not(w.io->watch_ready);
    }
    watched_end(&w);
}

each_backend(wait, ends_when_its_time_is_over)
{
    struct watched w = watched_begin(*backend);
    int64_t before = io_now(w.io);
    cr_assert_eq(io_wait(w.io, 2000000), 0);
    cr_assert_geq(io_now(w.io) - before, 2000000);
    cr_assert_not(w.io->watch_ready);
    watched_end(&w);
}

each_backend(wait, ends_when_the_watched_descriptor_is_readable)
{
    struct watched w = watched_begin(*backend);
    for (int round = 0; round < 20; round++) {
        pthread_t thread;
        cr_assert_eq(pthread_create(&thread, NULL, ring_later, &w), 0);
        cr_assert_eq(io_wait(w.io, -1), 0);
        cr_assert(w.io->watch_ready);
        pthread_join(thread, NULL);
        drain(w.event_fd);
    }
    watched_end(&w);
}

each_backend(wait, tells_each_time_that_the_watched_descriptor_is_still_readable)
{
    struct watched w = watched_begin(*backend);
    ring_later(&w);
    for (int i = 0; i < 100; i++) {
        cr_assert_eq(io_wait(w.io, -1), 0);
        cr_assert(w.io->watch_ready);
    }
    drain(w.event_fd);
    io_wait(w.io, 1000000); /* one that was set before may still tell */
    cr_assert_eq(io_wait(w.io, 1000000), 0);
    cr_assert_not(w.io->watch_ready);
    watched_end(&w);
}

each_backend(wait, does_ops_beside_a_watched_descriptor_that_stays_readable)
{
    struct watched w = watched_begin(*backend);
    ring_later(&w);
    struct io_file *file;
    uint8_t *buffer = buffer_make();
    cr_assert_eq(do_create(w.io, "a", 0, &file), 0);
    for (uint64_t i = 0; i < 16; i++)
        cr_assert_eq(do_write(w.io, file, buffer, i * 65536, 65536), 65536);
    cr_assert_eq(do_flush(w.io, file), 0);
    free(buffer);
    watched_end(&w);
}

static void on_signal(int number)
{
    (void)number;
}

struct interrupter {
    pthread_t target;
    pthread_barrier_t start;
    bool stop; /* read and written by __atomic builtins */
};

static void *interrupt(void *context)
{
    struct interrupter *interrupter = context;
    pthread_barrier_wait(&interrupter->start);
    while (!__atomic_load_n(&interrupter->stop, __ATOMIC_RELAXED))
        pthread_kill(interrupter->target, SIGUSR1);
    return NULL;
}

static void take_result(struct io_op *op)
{
    *(int64_t *)op->owner = op->result;
}

each_backend(wait, a_storm_of_signals_fails_no_op)
{
    struct fixture f = begin(*backend);
    struct interrupter interrupter = {.target = pthread_self()};
    on_signal_do(SIGUSR1, on_signal);
    pthread_barrier_init(&interrupter.start, NULL, 2);
    pthread_t thread;
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(pthread_create(&thread, NULL, interrupt, &interrupter), 0);
    pthread_barrier_wait(&interrupter.start);
    for (uint64_t i = 0; i < 32; i++) {
        int64_t result = INT64_MIN;
        struct io_op op = {.kind = IO_WRITE,
                           .file = file,
                           .buffer = f.buffer,
                           .offset = i * 65536,
                           .length = 65536,
                           .done = take_result,
                           .owner = &result};
        io_submit(f.io, &op);
        io_kick(f.io);
        while (result == INT64_MIN)
            io_wait(f.io, -1);
        cr_assert_eq(result, 65536, "back end %d, write %llu: %lld", *backend, (unsigned long long)i,
                     (long long)result);
    }
    cr_assert_eq(do_flush(f.io, file), 0);
    __atomic_store_n(&interrupter.stop, true, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    end(&f);
}
