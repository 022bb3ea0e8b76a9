/* death.c: row 25: victims that are killed at any point. What they had published is committed as if they
 * lived: whole batches, which verify.c looks for; what they had not is not there; their memory comes back. */
#include "hostile.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST_ENTRIES 24u

static uint64_t batch_number(struct attacker *a)
{
    return rng_next(&a->rng) | 1;
}

static uint32_t whole_topic(struct attacker *a, struct raw *raw)
{
    char name[32];
    snprintf(name, sizeof name, WHOLE_TOPIC "-%u", rng_below(&a->rng, 4));
    return raw_open(raw, name);
}

/* Publishes whole batches until it is killed. Each has arena space of its own while it is in flight. */
static void victim_publishes(struct attacker *a)
{
    struct raw raw;
    struct hello hello = hello_small(&a->rng);
    hello.arena_bytes = (uint64_t)1 << 20;
    hello.queue_entries = 16;
    uint32_t topic = raw_connect(a, &raw, &hello) == 0 ? whole_topic(a, &raw) : 0;
    uint32_t share = 1u << 16; /* 16 shares; at most 15 are in flight */
    for (uint32_t i = 0; topic != 0 && !over(a); i++) {
        struct completion completion;
        struct descriptor d = raw_stamped(&raw, a->seed, topic, (i % 16) * share, batch_number(a),
                                          1 + rng_below(&a->rng, MOST_ENTRIES));
        int rc = raw_push(&raw, &d);
        if (rc < 0 || (rc == 1 && i % 16 < 12))
            continue;
        for (uint32_t n = 0; n < (i % 16 < 15 ? 1 : 15); n++)
            if (raw_answer(&raw, &completion, 20 * MS) != 0)
                break;
    }
}

/* The entries of a stamped batch, spread over chunks. */
static void victim_streams(struct attacker *a)
{
    struct raw raw;
    struct hello hello = hello_small(&a->rng);
    hello.arena_bytes = (uint64_t)1 << 20;
    hello.queue_entries = 64;
    uint32_t topic = raw_connect(a, &raw, &hello) == 0 ? whole_topic(a, &raw) : 0;
    for (uint32_t stream = 1; topic != 0 && !over(a); stream++) {
        uint64_t batch = batch_number(a);
        uint32_t chunks = 2 + rng_below(&a->rng, 12);
        for (uint32_t i = 0; i < chunks; i++) {
            uint8_t *at = raw.arena + (i * (uint64_t)4096);
            uint32_t length = stamp_fill(a->seed, WRITER_HOSTILE, batch, i, chunks, at);
            uint32_t padded = (uint32_t)align_up(length, PAYLOAD_ALIGN);
            struct entry_record record = {.length = length};
            memcpy(at + padded, &record, sizeof record);
            struct descriptor d = {.op = OP_CHUNK,
                                   .topic = topic,
                                   .stream = stream,
                                   .chunk = i,
                                   .flags = (uint16_t)((i == 0 ? DESCRIPTOR_FIRST : 0) |
                                                       (i + 1 == chunks ? DESCRIPTOR_LAST : 0)),
                                   .arena_offset = i * 4096,
                                   .payload_bytes = padded,
                                   .entries = 1,
                                   .user_data = i};
            if (raw_push(&raw, &d) != 1)
                return;
        }
        struct completion completion;
        for (uint32_t i = 0; i < chunks; i++)
            if (raw_answer(&raw, &completion, 200 * MS) != 0)
                return; /* its memory may still be read: no reuse */
    }
}

static void victim_connects(struct attacker *a)
{
    while (!over(a)) {
        struct raw raw;
        if (raw_connect(a, &raw, NULL) == 0)
            raw_close(&raw);
    }
}

static void kill_again_and_again(struct attacker *a, void (*victim)(struct attacker *a), uint32_t most_us)
{
    while (!over(a)) {
        uint64_t seed = rng_next(&a->rng);
        pid_t pid = fork();
        if (pid == 0) {
            a->rng.state = seed;
            victim(a);
            _exit(0);
        }
        if (pid < 0)
            continue;
        pause_ns(INT64_C(1000) * rng_below(&a->rng, most_us));
        if (rng_chance(&a->rng, 20)) {
            kill(pid, SIGSTOP);
            pause_ns(INT64_C(1000) * rng_below(&a->rng, most_us));
        }
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
}

void attack_kill_publish(struct attacker *a)
{
    kill_again_and_again(a, victim_publishes, 20000);
}

void attack_kill_stream(struct attacker *a)
{
    kill_again_and_again(a, victim_streams, 20000);
}

void attack_kill_hello(struct attacker *a)
{
    kill_again_and_again(a, victim_connects, 3000);
}

/* ------------------------------------------------------------------------------------- fork */

/* The grandchild has socket, memory and eventfds of a dead client: it keeps them, or goes on using them. */
static void haunt(struct attacker *a, struct raw *raw, uint32_t topic)
{
    bool quiet = rng_chance(&a->rng, 50);
    while (quiet && !over(a))
        pause_ns(10 * MS);
    while (!over(a)) {
        struct descriptor d = raw_batch(raw, &a->rng, topic, 0, 2, 100);
        struct completion completion;
        if (raw_push(raw, &d) < 0)
            word_store_release(&raw->words->sq_tail, (uint32_t)rng_next(&a->rng));
        raw_ring(raw);
        (void)raw_pop(raw, &completion);
        if (rng_chance(&a->rng, 10))
            pause_ns(MS);
    }
    _exit(0);
}

static void victim_with_heir(struct attacker *a, const char *name, int told)
{
    struct raw raw;
    struct hello hello = hello_named(&a->rng, name, 0);
    int rc;
    while ((rc = raw_connect(a, &raw, &hello)) != 0 && !over(a))
        pause_ns(MS);
    uint32_t topic = rc == 0 ? raw_open(&raw, "hostile-heirs") : 0;
    a->deadline_ns += 2 * FREE_LIMIT; /* the heir outlives the slot, until it is killed */
    pid_t heir = topic != 0 ? fork() : -1;
    if (heir == 0)
        haunt(a, &raw, topic);
    uint8_t named = rc == 0 && raw.welcome.producer != 0;
    if (write(told, &named, 1) != 1)
        _exit(1);
    for (;;) /* to be killed */
        pause_ns(SECOND);
}

/* The name of a dead process must be free, whatever its children keep. */
static void expect_name_free(struct attacker *a, const char *name)
{
    struct raw raw;
    struct hello hello = hello_named(&a->rng, name, 0);
    int64_t end = now_ns() + FREE_LIMIT;
    int64_t deadline_ns = a->deadline_ns;
    int rc;
    a->deadline_ns = end + SECOND; /* whatever becomes of the slot: this is seen to its end */
    while ((rc = raw_connect(a, &raw, &hello)) != 0) {
        if (rc != -EBUSY && !raw_may_fail(rc))
            found(a, "the name of a dead producer: %s (%s)", strerror(-rc), raw.welcome.text);
        if (now_ns() >= end)
            found(a, "the name of a dead producer is not free: a child keeps its descriptors");
        pause_ns(MS);
    }
    a->deadline_ns = deadline_ns;
    raw_close(&raw);
}

void attack_fork_keeps(struct attacker *a)
{
    for (unsigned life = 0; !over(a); life++) {
        char name[64];
        int ends[2];
        snprintf(name, sizeof name, "heir-%d-%u", (int)getpid(), life);
        if (pipe(ends) != 0)
            return;
        pid_t pid = fork();
        if (pid == 0)
            victim_with_heir(a, name, ends[1]);
        close(ends[1]);
        uint8_t named = 0;
        bool told = read(ends[0], &named, 1) == 1;
        close(ends[0]);
        pause_ns(MS * rng_below(&a->rng, 10));
        if (pid > 0) {
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
        }
        if (told && named != 0)
            expect_name_free(a, name);
        else
            pause_ns(20 * MS);
    }
}
