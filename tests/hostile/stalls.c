/* stalls.c: row 24: peers that stop, never read, never speak, never finish. The broker must not wait for
 * any of them. */
#include "hostile.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MANY_SOCKETS 600u
#define MANY_RAWS    24u
#define STREAMS      64u

/* Publishes until its credit is used up, wants to be signalled, reaps nothing. */
static void fill_ring(struct attacker *a, struct raw *raw, uint32_t topic)
{
    uint32_t credit = ring_capacity(&raw->sq);
    word_store(&raw->words->wake_at, raw->cq.mirror.c_head);
    for (uint32_t i = 0; i < credit; i++) {
        struct descriptor d = raw_batch(raw, &a->rng, topic, 0, 1 + rng_below(&a->rng, 4), 128);
        if (rng_chance(&a->rng, 10))
            d = (struct descriptor){
                .op = OP_READ, .flags = DESCRIPTOR_FOLLOW, .topic = topic, .number = UINT64_MAX};
        if (raw_push(raw, &d) != 1)
            return;
    }
}

void attack_stopped(struct attacker *a)
{
    while (!over(a)) {
        pid_t pids[4];
        for (size_t i = 0; i < array_count(pids); i++) {
            uint64_t seed = rng_next(&a->rng);
            pids[i] = fork();
            if (pids[i] != 0)
                continue;
            struct raw raw;
            a->rng.state = seed;
            uint32_t topic = raw_connected(a, &raw) ? raw_open(&raw, "hostile-stopped") : 0;
            if (topic != 0)
                fill_ring(a, &raw, topic);
            raise(SIGSTOP);
            _exit(0);
        }
        pause_ns(20 * MS + MS * rng_below(&a->rng, 100));
        for (size_t i = 0; i < array_count(pids); i++) {
            if (pids[i] <= 0)
                continue;
            kill(pids[i], SIGKILL); /* it never gets to close anything by itself */
            waitpid(pids[i], NULL, 0);
        }
    }
}

void attack_never_reads(struct attacker *a)
{
    struct raw *raws = calloc(MANY_RAWS, sizeof *raws);
    unsigned count = 0;
    while (raws != NULL && !over(a)) {
        if (count < MANY_RAWS && raw_connected(a, &raws[count])) {
            uint32_t topic = raw_open(&raws[count], rng_chance(&a->rng, 20) ? SHARED_TOPIC : "hostile-full");
            if (topic != 0)
                fill_ring(a, &raws[count], topic);
            count++;
        } else {
            raw_ring(&raws[rng_below(&a->rng, count)]);
            pause_ns(MS);
        }
    }
    _exit(0);
}

void attack_half_open(struct attacker *a)
{
    int fds[MANY_SOCKETS];
    unsigned count = 0;
    while (!over(a)) {
        int fd = count < MANY_SOCKETS ? raw_dial(a) : -EMFILE;
        if (fd >= 0) {
            if (rng_chance(&a->rng, 5))
                (void)shutdown(fd, SHUT_WR);
            fds[count++] = fd;
        } else if (count > 0 && rng_chance(&a->rng, 30)) {
            unsigned i = rng_below(&a->rng, count);
            close(fds[i]);
            fds[i] = fds[--count];
        } else {
            pause_ns(MS);
        }
    }
    _exit(0);
}

/* The welcome with its descriptors waits in a socket that nobody reads. */
void attack_full_socket(struct attacker *a)
{
    int fds[MANY_SOCKETS / 4];
    unsigned count = 0;
    while (!over(a)) {
        int fd = count < array_count(fds) ? raw_dial(a) : -EMFILE;
        if (fd < 0) {
            pause_ns(MS);
            if (count > 0 && rng_chance(&a->rng, 10))
                close(fds[--count]);
            continue;
        }
        int least = 1;
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &least, sizeof least);
        struct hello hello = hello_small(&a->rng);
        (void)raw_say(fd, &hello, sizeof hello, NULL, 0);
        fds[count++] = fd;
    }
    _exit(0);
}

void attack_stalled_streams(struct attacker *a)
{
    while (!over(a)) {
        struct raw raw;
        if (!raw_connected(a, &raw))
            return;
        uint32_t streams = rng_below(&a->rng, STREAMS + 2);
        for (uint32_t i = 0; i < streams && !over(a); i++) {
            char name[32];
            snprintf(name, sizeof name, "hostile-stream-%u", i);
            uint32_t topic = raw_open(&raw, rng_chance(&a->rng, 5) ? SHARED_TOPIC : name);
            struct descriptor d = raw_batch(&raw, &a->rng, topic, 1024, 1 + rng_below(&a->rng, 8), 1000);
            struct completion completion;
            d.op = OP_CHUNK;
            d.flags = DESCRIPTOR_FIRST;
            d.stream = i;
            if (topic == 0 || raw_call(&raw, &d, &completion) != 0)
                break;
        }
        pause_ns(MS * rng_below(&a->rng, 200));
        raw_close(&raw);
    }
}
