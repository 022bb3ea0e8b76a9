/* sockets.c: row 26: the door: floods, hellos of every wrong kind, descriptors that nobody asked for. */
#include "hostile.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <linux/io_uring.h>
#include <unistd.h>

#define FLOOD_SOCKETS 1500u

void attack_flood_connect(struct attacker *a)
{
    int fds[FLOOD_SOCKETS];
    unsigned count = 0;
    while (!over(a)) {
        int fd = raw_dial(a);
        if (fd >= 0)
            fds[count++] = fd;
        if (fd == -EAGAIN)
            pause_ns(MS / 10);
        if (count == FLOOD_SOCKETS || (fd < 0 && count > FLOOD_SOCKETS / 2) || rng_below(&a->rng, 2000) == 0)
            while (count > 0)
                close(fds[--count]);
    }
}

void attack_flood_hello(struct attacker *a)
{
    struct raw *kept = calloc(64, sizeof *kept);
    unsigned count = 0;
    while (kept != NULL && !over(a)) {
        if (rng_chance(&a->rng, 40)) { /* gone before the answer */
            struct hello hello = hello_small(&a->rng);
            int fd = raw_dial(a);
            if (fd < 0)
                continue;
            (void)raw_say(fd, &hello, sizeof hello, NULL, 0);
            if (rng_chance(&a->rng, 50))
                (void)shutdown(fd, SHUT_RDWR);
            close(fd);
            continue;
        }
        if (count == 64)
            while (count > 0)
                raw_close(&kept[--count]);
        if (raw_connect(a, &kept[count], NULL) == 0)
            count++;
    }
    _exit(0);
}

/* ------------------------------------------------------------------------------------- descriptors */

/* Sends a hello, or rubbish, with `count` descriptors; before the hello, with it, or after the welcome. */
static void send_with(struct attacker *a, const int *fds, unsigned count)
{
    struct hello hello = hello_small(&a->rng);
    struct raw raw;
    if (rng_chance(&a->rng, 30)) {
        if (!raw_connected(a, &raw))
            return;
        (void)raw_say(raw.socket, &hello, 1 + rng_below(&a->rng, sizeof hello), fds, count);
        pause_ns(MS / 4);
        raw_close(&raw);
        return;
    }
    int fd = raw_dial(a);
    if (fd < 0)
        return;
    size_t length = rng_chance(&a->rng, 70) ? sizeof hello : 1 + rng_below(&a->rng, sizeof hello);
    for (unsigned i = 0; i < 1 + rng_below(&a->rng, 8); i++)
        (void)raw_say(fd, &hello, length, fds, count);
    if (rng_chance(&a->rng, 60))
        (void)poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 5);
    close(fd);
}

void attack_flood_fds(struct attacker *a)
{
    int fds[253];
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (size_t i = 0; i < array_count(fds); i++)
        fds[i] = null;
    while (!over(a))
        send_with(a, fds, rng_chance(&a->rng, 70) ? 253 : 1 + rng_below(&a->rng, 253));
    close(null);
}

static int a_ring(void)
{
    struct io_uring_params params = {0};
    return (int)syscall(SYS_io_uring_setup, 8, &params);
}

void attack_strange_fds(struct attacker *a)
{
    int fds[12];
    unsigned count = 0;
    int pair[2] = {-1, -1};
    (void)socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
    int wanted[] = {a_ring(),
                    open("/dev/fuse", O_RDWR | O_CLOEXEC),
                    open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC),
                    open("/proc/self", O_PATH | O_CLOEXEC),
                    epoll_create1(EPOLL_CLOEXEC),
                    eventfd(0, EFD_CLOEXEC),
                    memfd_create("strange", MFD_CLOEXEC),
                    (int)syscall(SYS_pidfd_open, getpid(), 0),
                    open("/dev/zero", O_RDONLY | O_CLOEXEC),
                    pair[0],
                    pair[1]};
    for (size_t i = 0; i < array_count(wanted); i++)
        if (wanted[i] >= 0)
            fds[count++] = wanted[i];
    while (!over(a)) {
        /* A socket inside the message that it carries: a ring that only the kernel can take apart. */
        if (pair[0] >= 0 && rng_chance(&a->rng, 20))
            (void)raw_say(pair[0], "x", 1, pair, 2);
        unsigned from = rng_below(&a->rng, count);
        send_with(a, fds + from, 1 + rng_below(&a->rng, count - from));
    }
}

/* ------------------------------------------------------------------------------------- hellos */

static void spoil(struct rng *rng, struct hello *hello)
{
    uint8_t *bytes = (uint8_t *)hello;
    switch (rng_below(rng, 8)) {
    case 0:
        rng_fill(rng, hello, sizeof *hello);
        break;
    case 1:
        hello->arena_bytes = rng_edge(rng, MAX_ARENA_BYTES);
        break;
    case 2:
        hello->window_bytes = rng_edge(rng, MAX_WINDOW_BYTES);
        break;
    case 3:
        hello->queue_entries = (uint32_t)rng_edge(rng, MAX_QUEUE_ENTRIES);
        break;
    case 4:
        hello->version_min = (uint32_t)rng_edge(rng, LAYOUT_VERSION);
        hello->version_max = (uint32_t)rng_edge(rng, LAYOUT_VERSION);
        break;
    case 5:
        hello->name_bytes = (uint32_t)rng_edge(rng, MAX_PRODUCER_NAME);
        rng_fill(rng, hello->name, sizeof hello->name);
        break;
    case 6:
        hello->flags = (uint32_t)rng_edge(rng, HELLO_FLAGS);
        hello->producer = rng_edge(rng, 5);
        break;
    default:
        for (int i = 0; i < 3; i++)
            bytes[rng_below(rng, sizeof *hello)] ^= (uint8_t)(1u << rng_below(rng, 8));
    }
}

/* A wrong hello may be refused in words, or hung up on; a welcome must fit what was asked. */
static void expect_sane(struct attacker *a, const struct hello *hello, int rc, const struct raw *raw)
{
    if (rc == 0 && (raw->welcome.queue_entries != hello->queue_entries ||
                    raw->welcome.arena_bytes != hello->arena_bytes || hello->magic != MESSAGE_MAGIC))
        found(a, "a hello that is wrong was welcomed with other sizes");
    if (memchr(raw->welcome.text, '\0', sizeof raw->welcome.text) == NULL)
        found(a, "the words of a welcome have no end");
}

void attack_bad_hellos(struct attacker *a)
{
    static uint8_t large[65536];
    while (!over(a)) {
        struct raw raw;
        struct hello hello = hello_small(&a->rng);
        if (rng_chance(&a->rng, 60)) {
            spoil(&a->rng, &hello);
            if (hello.arena_bytes > 16u << 20 && hello.arena_bytes <= MAX_ARENA_BYTES)
                hello.arena_bytes = MAX_ARENA_BYTES + 1; /* big-arenas does it */
            int rc = raw_connect(a, &raw, &hello);
            expect_sane(a, &hello, rc, &raw);
            if (rc == 0)
                raw_close(&raw);
            continue;
        }
        int fd = raw_dial(a);
        if (fd < 0)
            continue;
        switch (rng_below(&a->rng, 4)) {
        case 0: /* cut */
            (void)raw_say(fd, &hello, rng_below(&a->rng, sizeof hello), NULL, 0);
            break;
        case 1: /* too long */
            memcpy(large, &hello, sizeof hello);
            (void)raw_say(fd, large, sizeof hello + 1 + rng_below(&a->rng, 60000), NULL, 0);
            break;
        case 2: /* in two */
            (void)raw_say(fd, &hello, sizeof hello / 2, NULL, 0);
            (void)raw_say(fd, (const uint8_t *)&hello + sizeof hello / 2, sizeof hello / 2, NULL, 0);
            break;
        default: /* twice */
            (void)raw_say(fd, &hello, sizeof hello, NULL, 0);
            (void)raw_say(fd, &hello, sizeof hello, NULL, 0);
        }
        (void)poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, (int)rng_below(&a->rng, 4));
        close(fd);
    }
}

/* Memory that is allocated in full at connect takes the broker time: it must not take everybody's. */
void attack_big_arenas(struct attacker *a)
{
    while (!over(a)) {
        struct raw raw;
        struct hello hello = hello_small(&a->rng);
        hello.arena_bytes =
            rng_chance(&a->rng, 50) ? MAX_ARENA_BYTES : MAX_ARENA_BYTES >> rng_below(&a->rng, 5);
        hello.window_bytes = MAX_WINDOW_BYTES >> rng_below(&a->rng, 3);
        hello.queue_entries = MAX_QUEUE_ENTRIES;
        int rc = raw_connect(a, &raw, &hello);
        if (rc == -EINVAL)
            found(a, "the largest arena was refused as too large: %s", raw.welcome.text);
        raw_close(&raw);
    }
}
