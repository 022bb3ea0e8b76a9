/* events.c: row 23: the two eventfds are shared with the client, so it can fill them, block on them, empty
 * them, and keep them for ever. The rings are the truth; what an attacker does here must cost it alone. */
#include "hostile.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <unistd.h>

#define LIFE_NS (50 * MS)

static void make_blocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0)
        (void)fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
}

static void fill(int fd)
{
    uint64_t value;
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    if (poll(&pfd, 1, 0) == 1 && read(fd, &value, sizeof value) < 0)
        return;
    value = UINT64_MAX - 1;
    struct pollfd room = {.fd = fd, .events = POLLOUT};
    if (poll(&room, 1, 0) == 1 && write(fd, &value, sizeof value) < 0)
        return;
    make_blocking(fd);
}

/* Publishes and looks at the ring only. */
static void write_on(struct attacker *a, struct raw *raw, uint32_t topic, int64_t until)
{
    while (!over(a) && now_ns() < until && !raw_ended(raw)) {
        struct completion completion;
        struct descriptor d = raw_batch(raw, &a->rng, topic, 0, 1 + rng_below(&a->rng, 8), 64);
        word_store(&raw->words->wake_at, raw->cq.mirror.c_head);
        if (raw_push(raw, &d) < 0)
            return;
        for (int i = 0; i < 20 && !raw_pop(raw, &completion); i++)
            pause_ns(MS / 20);
    }
}

void attack_event_full(struct attacker *a)
{
    while (!over(a)) {
        struct raw raw;
        if (!raw_connected(a, &raw))
            return;
        uint32_t topic = raw_open(&raw, "hostile-events");
        fill(raw.fds[FD_SIGNAL]);
        if (rng_chance(&a->rng, 50))
            fill(raw.fds[FD_DOORBELL]);
        if (topic != 0)
            write_on(a, &raw, topic, now_ns() + LIFE_NS);
        raw_close(&raw);
    }
}

struct other_thread {
    const struct raw *raw;
    struct rng rng;
    bool stop;
};

static void *steal(void *argument)
{
    struct other_thread *t = argument;
    while (!__atomic_load_n(&t->stop, __ATOMIC_ACQUIRE)) {
        uint64_t value;
        ssize_t got = read(t->raw->fds[FD_DOORBELL], &value, sizeof value);
        if (got < 0 && rng_chance(&t->rng, 5))
            got = read(t->raw->fds[FD_SIGNAL], &value, sizeof value);
        (void)got;
    }
    return NULL;
}

static void *ring_on(void *argument)
{
    struct other_thread *t = argument;
    while (!__atomic_load_n(&t->stop, __ATOMIC_ACQUIRE)) {
        uint64_t value = rng_chance(&t->rng, 90) ? 1 : UINT64_MAX - 1;
        ssize_t ignored = write(t->raw->fds[FD_DOORBELL], &value, sizeof value);
        (void)ignored;
        if (rng_chance(&t->rng, 10))
            ignored = read(t->raw->fds[FD_DOORBELL], &value, sizeof value);
    }
    return NULL;
}

static void beside(struct attacker *a, void *(*run)(void *argument), bool write_too)
{
    while (!over(a)) {
        struct raw raw;
        pthread_t thread;
        if (!raw_connected(a, &raw))
            return;
        uint32_t topic = raw_open(&raw, "hostile-events");
        struct other_thread t = {.raw = &raw, .rng = {.state = rng_next(&a->rng)}};
        if (topic != 0 && pthread_create(&thread, NULL, run, &t) == 0) {
            if (write_too)
                write_on(a, &raw, topic, now_ns() + LIFE_NS);
            else
                pause_ns(LIFE_NS);
            __atomic_store_n(&t.stop, true, __ATOMIC_RELEASE);
            pthread_join(thread, NULL);
        }
        raw_close(&raw);
    }
}

void attack_event_steal(struct attacker *a)
{
    beside(a, steal, true);
}

void attack_event_flood(struct attacker *a)
{
    beside(a, ring_on, rng_chance(&a->rng, 50));
}

/* Copies of everything, the first ones closed, used on after the connection is gone. */
void attack_event_copies(struct attacker *a)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    while (!over(a)) {
        struct raw raw;
        int copies[64];
        unsigned count = 0;
        if (!raw_connected(a, &raw))
            break;
        uint32_t topic = raw_open(&raw, "hostile-events");
        struct descriptor d = raw_batch(&raw, &a->rng, topic, 0, 2, 64);
        while (count < array_count(copies)) {
            int copy = dup(raw.fds[rng_below(&a->rng, 2) == 0 ? FD_DOORBELL : FD_SIGNAL]);
            if (copy < 0)
                break;
            struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET};
            (void)epoll_ctl(epoll, EPOLL_CTL_ADD, copy, &event);
            copies[count++] = copy;
        }
        int rc = topic != 0 ? raw_push(&raw, &d) : 0;
        bool first = rng_chance(&a->rng, 50);
        if (first) {
            close(raw.fds[FD_SIGNAL]);
            close(raw.fds[FD_DOORBELL]);
            raw.fds[FD_SIGNAL] = raw.fds[FD_DOORBELL] = -1;
        }
        if (rc == 1)
            pause_ns(MS * rng_below(&a->rng, 3));
        raw_close(&raw);
        for (unsigned i = 0; i < count; i++) { /* its other end is nobody by now */
            uint64_t one = 1;
            ssize_t ignored = write(copies[i], &one, sizeof one);
            (void)ignored;
            close(copies[i]);
        }
    }
    close(epoll);
}
