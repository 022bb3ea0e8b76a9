/* Signals to clients: never blocking, never lost, whatever the client does to its eventfd. By Linux AIO, and
 * by the thread where that is refused. */
#include "support.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum way { BY_AIO = 0, BY_THREAD = 8 }; /* and the back end */

#define each_way(name)                                                                                       \
    ParameterizedTestParameters(signals, name)                                                               \
    {                                                                                                        \
        static int ways[] = {BY_AIO | IO_BACKEND_URING, BY_AIO | IO_BACKEND_PWRITE,                          \
                             BY_AIO | IO_BACKEND_MMAP, BY_THREAD | IO_BACKEND_URING,                         \
                             BY_THREAD | IO_BACKEND_PWRITE};                                                 \
        return cr_make_param_array(int, ways, array_count(ways));                                            \
    }                                                                                                        \
    ParameterizedTest(int *way, signals, name, .timeout = 60)

static struct fixture begin_way(int way)
{
    if ((way & BY_THREAD) != 0)
        refuse_call(SYS_io_setup, ENOSYS);
    return begin(way & ~BY_THREAD);
}

static void fill(int fd)
{
    uint64_t most = UINT64_MAX - 1;
    cr_assert_eq(write(fd, &most, sizeof most), sizeof most);
}

static bool readable(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, 0) == 1;
}

/* Lets the io run until the eventfd is readable; false after ten seconds. */
static bool arrives(struct io *io, int fd)
{
    int64_t deadline = io_now(io) + 10 * SECOND;
    while (!readable(fd) && io_now(io) < deadline)
        io_wait(io, 1000000);
    return readable(fd);
}

static bool unparks(struct io *io, const struct io_signal *signal)
{
    int64_t deadline = io_now(io) + 10 * SECOND;
    while (signal->parked && io_now(io) < deadline)
        io_wait(io, 1000000);
    return !signal->parked;
}

static uint64_t take(int fd)
{
    uint64_t count = 0;
    cr_assert_eq(read(fd, &count, sizeof count), sizeof count);
    return count;
}

each_way(arrive)
{
    struct fixture f = begin_way(*way);
    struct io_signal signal = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    io_signal_send(f.io, &signal);
    io_kick(f.io);
    cr_assert(arrives(f.io, signal.fd));
    cr_assert(unparks(f.io, &signal));
    cr_assert_eq(take(signal.fd), 1);
    close(signal.fd);
    end(&f);
}

each_way(arrive_although_the_peer_made_its_eventfd_blocking)
{
    struct fixture f = begin_way(*way);
    struct io_signal signal = {.fd = eventfd(0, EFD_CLOEXEC)};
    for (int i = 0; i < 20; i++) {
        io_signal_send(f.io, &signal);
        io_kick(f.io);
        cr_assert(arrives(f.io, signal.fd));
        cr_assert_geq(take(signal.fd), 1);
    }
    cr_assert(unparks(f.io, &signal));
    close(signal.fd);
    end(&f);
}

each_way(coalesce)
{
    struct fixture f = begin_way(*way);
    struct io_signal signal = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    for (int i = 0; i < 100; i++)
        io_signal_send(f.io, &signal);
    io_kick(f.io);
    cr_assert(arrives(f.io, signal.fd));
    cr_assert(unparks(f.io, &signal));
    uint64_t count = take(signal.fd);
    cr_assert(count >= 1 && count <= 100);
    cr_assert_not(readable(signal.fd));
    close(signal.fd);
    end(&f);
}

/* The peer takes the first signal before the broker knows that it has left: the second one must not count as
 * the first. */
each_way(are_not_lost_when_the_peer_is_faster_than_the_broker)
{
    struct fixture f = begin_way(*way);
    struct io_signal signal = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    for (int round = 0; round < 200; round++) {
        io_signal_send(f.io, &signal);
        io_kick(f.io);
        struct pollfd peer = {.fd = signal.fd, .events = POLLIN};
        if (poll(&peer, 1, 0) == 0)
            cr_assert(arrives(f.io, signal.fd));
        take(signal.fd);
        io_signal_send(f.io, &signal);
        cr_assert(arrives(f.io, signal.fd), "round %d", round);
        take(signal.fd);
    }
    cr_assert(unparks(f.io, &signal));
    close(signal.fd);
    end(&f);
}

each_way(never_block_on_a_full_eventfd_and_can_be_taken_back)
{
    struct fixture f = begin_way(*way);
    struct io_signal signal = {.fd = eventfd(0, EFD_CLOEXEC)};
    fill(signal.fd);
    int files = open_files();
    for (int i = 0; i < 10; i++) {
        io_signal_send(f.io, &signal);
        io_kick(f.io);
        cr_assert_eq(io_wait(f.io, 1000000), 0);
        cr_assert(readable(signal.fd));
    }
    io_signal_cancel(f.io, &signal);
    io_kick(f.io);
    cr_assert(unparks(f.io, &signal));
    close(signal.fd);
    cr_assert_eq(open_files(), files - 1);
    cr_assert_eq(io_wait(f.io, 1000000), 0);
    end(&f);
}

each_way(can_be_taken_back_before_they_left)
{
    struct fixture f = begin_way(*way);
    struct io_signal signals[3];
    for (int i = 0; i < 3; i++) {
        signals[i] = (struct io_signal){.fd = eventfd(0, EFD_CLOEXEC)};
        fill(signals[i].fd);
        io_signal_send(f.io, &signals[i]);
    }
    io_signal_cancel(f.io, &signals[1]);
    io_signal_cancel(f.io, &signals[1]); /* once more is harmless */
    io_signal_cancel(f.io, &signals[2]);
    cr_assert(unparks(f.io, &signals[1]));
    cr_assert(unparks(f.io, &signals[2]));
    io_signal_cancel(f.io, &signals[0]);
    cr_assert(unparks(f.io, &signals[0]));
    io_signal_cancel(f.io, &signals[0]);
    for (int i = 0; i < 3; i++)
        close(signals[i].fd);
    end(&f);
}

each_way(reach_the_peer_that_makes_room_again)
{
    struct fixture f = begin_way(*way);
    struct io_signal signal = {.fd = eventfd(0, EFD_CLOEXEC)};
    fill(signal.fd);
    io_signal_send(f.io, &signal);
    io_kick(f.io);
    io_wait(f.io, 1000000);
    take(signal.fd);
    cr_assert(unparks(f.io, &signal));
    io_signal_send(f.io, &signal);
    cr_assert(arrives(f.io, signal.fd));
    cr_assert(unparks(f.io, &signal));
    close(signal.fd);
    end(&f);
}

each_way(to_an_honest_peer_pass_many_hostile_ones)
{
    enum { HOSTILE = 300 };
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    struct fixture f = begin_way(*way);
    struct io_signal *hostile = calloc(HOSTILE, sizeof *hostile);
    struct io_signal honest = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    for (int i = 0; i < HOSTILE; i++) {
        hostile[i].fd = eventfd(0, EFD_CLOEXEC);
        cr_assert_geq(hostile[i].fd, 0);
        fill(hostile[i].fd);
        io_signal_send(f.io, &hostile[i]);
    }
    io_kick(f.io);
    io_signal_send(f.io, &honest);
    io_kick(f.io);
    cr_assert(arrives(f.io, honest.fd));
    cr_assert(unparks(f.io, &honest));
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    cr_assert_eq(do_flush(f.io, file), 0, "nor do they hold the disk up");
    for (int i = 0; i < HOSTILE; i++)
        io_signal_cancel(f.io, &hostile[i]);
    for (int i = 0; i < HOSTILE; i++) {
        cr_assert(unparks(f.io, &hostile[i]));
        close(hostile[i].fd);
    }
    close(honest.fd);
    free(hostile);
    end(&f);
}

/* A peer that makes room and takes it away again at once, some times a round, and then leaves it full:
 * whoever wrote without a way out sleeps in the write. */
struct flapper {
    int fd;
    unsigned round; /* by __atomic builtins; raised by the test, 0 ends it */
};

static void *flap(void *context)
{
    struct flapper *flapper = context;
    uint64_t count, most = UINT64_MAX - 1;
    unsigned seen = 1, round;
    while ((round = __atomic_load_n(&flapper->round, __ATOMIC_RELAXED)) != 0) {
        for (int i = 0; round != seen && i < 20; i++) {
            fcntl(flapper->fd, F_SETFL, O_NONBLOCK);
            ssize_t taken = read(flapper->fd, &count, sizeof count);
            ssize_t filled = write(flapper->fd, &most, sizeof most);
            (void)taken;
            (void)filled;
            fcntl(flapper->fd, F_SETFL, 0);
        }
        seen = round;
        sched_yield();
    }
    return NULL;
}

each_way(to_an_honest_peer_pass_one_that_fills_its_eventfd_at_the_last_moment)
{
    struct fixture f = begin_way(*way);
    struct flapper flapper = {.fd = eventfd(0, EFD_CLOEXEC), .round = 1};
    struct io_signal hostile = {.fd = flapper.fd}, honest = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, flap, &flapper), 0);
    for (unsigned round = 2; round < 3000; round++) {
        __atomic_store_n(&flapper.round, round, __ATOMIC_RELAXED);
        io_signal_send(f.io, &hostile);
        io_signal_send(f.io, &honest);
        cr_assert(arrives(f.io, honest.fd), "round %u", round);
        take(honest.fd);
    }
    io_signal_cancel(f.io, &hostile);
    cr_assert(unparks(f.io, &hostile));
    __atomic_store_n(&flapper.round, 0, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    close(flapper.fd);
    cr_assert(unparks(f.io, &honest));
    close(honest.fd);
    end(&f);
}

/* ------------------------------------------------------------------------------ when the kernel will not */

each_backend(signals, that_the_kernel_does_not_take_are_tried_again_and_can_be_taken_back)
{
    struct fixture f = begin(*backend);
    struct io_signal signal = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)},
                     other = {.fd = eventfd(0, EFD_CLOEXEC)};
    refuse_call(SYS_io_submit, EAGAIN);
    io_signal_send(f.io, &signal);
    io_signal_send(f.io, &other);
    cr_assert(signal.parked);
    cr_assert_eq(io_wait(f.io, 1000000), 0);
    cr_assert(signal.parked && other.parked);
    io_signal_cancel(f.io, &signal);
    cr_assert_not(signal.parked);
    cr_assert(other.parked);
    io_signal_cancel(f.io, &other);
    cr_assert_not(other.parked);
    close(signal.fd);
    close(other.fd);
    end(&f);
}

Test(signals, without_any_way_to_send_them_there_is_no_back_end, .timeout = 60)
{
    char *folder = folder_make();
    struct io_real_options options = {.folder = folder, .backend = IO_BACKEND_PWRITE, .watch_fd = -1};
    struct io *io = NULL;
    struct error err = {0};
    int before = open_files();
    refuse_call(SYS_io_setup, EAGAIN);
    refuse_call(SYS_timer_create, EAGAIN);
    cr_assert_eq(io_real_create(&options, &io, NULL, &err), -EAGAIN);
    cr_assert_not_null(strstr(err.text, "signals"), "%s", err.text);
    cr_assert_eq(open_files(), before);
    folder_remove(folder);
}
