/* quotas.c: row 27: one's own share of everything, used up. Past it the answer is -EDQUOT, for this user. */
#include "hostile.h"

#include <unistd.h>

#define MOST_RAWS    3500u
#define SHARED_ARENA (64u << 20)
#define SHARED_RAWS  8u /* half a GiB: enough to feel, and this machine has other users */

void attack_quota_connections(struct attacker *a)
{
    struct raw *raws = calloc(MOST_RAWS, sizeof *raws);
    unsigned count = 0;
    struct hello hello = hello_small(&a->rng);
    hello.queue_entries = MIN_QUEUE_ENTRIES;
    hello.arena_bytes = MIN_ARENA_BYTES;
    while (raws != NULL && !over(a)) {
        int rc = count < MOST_RAWS ? raw_connect(a, &raws[count], &hello) : -EDQUOT;
        if (rc == 0) {
            count++;
            continue;
        }
        if (!raw_may_fail(rc))
            found(a, "connection %u: %s (%s)", count, strerror(-rc), raws[count].welcome.text);
        for (unsigned i = 0; i < 100 && count > 0; i++) {
            unsigned which = rng_below(&a->rng, count);
            raw_close(&raws[which]);
            raws[which] = raws[--count];
        }
        pause_ns(MS);
    }
    _exit(0);
}

void attack_quota_shared(struct attacker *a)
{
    struct raw raws[SHARED_RAWS];
    unsigned count = 0;
    while (!over(a)) {
        struct hello hello = hello_small(&a->rng);
        hello.arena_bytes = SHARED_ARENA;
        hello.window_bytes = 4u << 20;
        int rc = count < SHARED_RAWS ? raw_connect(a, &raws[count], &hello) : -EDQUOT;
        if (rc == 0)
            count++;
        else if (!raw_may_fail(rc))
            found(a, "connection %u: %s (%s)", count, strerror(-rc), raws[count].welcome.text);
        else if (count > 0)
            raw_close(&raws[--count]);
    }
    _exit(0);
}

void attack_quota_topics(struct attacker *a)
{
    struct raw raw;
    if (!raw_connected(a, &raw))
        return;
    for (uint32_t n = 0; !over(a); n++) {
        char name[64];
        struct completion completion;
        snprintf(name, sizeof name, "t-%d-%u", (int)getpid(), n);
        uint32_t topic = raw_topic(&raw, name, strlen(name), &completion);
        if (topic == 0 && completion.result != -EDQUOT && completion.result != -ECONNRESET && !over(a))
            found(a, "topic %u was answered %d", n, completion.result);
        if (topic == 0) {
            raw_close(&raw);
            if (!raw_connected(a, &raw))
                return;
            continue;
        }
        struct descriptor d = raw_batch(&raw, &a->rng, topic, 1024, 1, 16);
        if (rng_chance(&a->rng, 70) && raw_push(&raw, &d) == 1)
            (void)raw_answer(&raw, &completion, 100 * MS);
        d = (struct descriptor){.op = OP_CLOSE, .topic = topic};
        if (rng_chance(&a->rng, 30) && raw_push(&raw, &d) == 1)
            (void)raw_answer(&raw, &completion, 100 * MS);
    }
    raw_close(&raw);
}

/* Topic numbers of one connection, and more streams than it has slots. */
void attack_quota_streams(struct attacker *a)
{
    while (!over(a)) {
        struct raw raw;
        struct hello hello = hello_small(&a->rng);
        hello.queue_entries = 256;
        if (raw_connect(a, &raw, &hello) != 0)
            continue;
        uint32_t topic = 0;
        for (uint32_t i = 0; i < 300 && !over(a); i++)
            topic = raw_open(&raw, "hostile-numbers"); /* a new number each time */
        for (uint32_t i = 0; topic != 0 && i < 200 && !over(a); i++) {
            struct completion completion;
            struct descriptor d = raw_batch(&raw, &a->rng, topic, 0, 1, 64);
            d.op = OP_CHUNK;
            d.stream = i;
            d.flags = DESCRIPTOR_FIRST;
            if (raw_call(&raw, &d, &completion) != 0)
                break;
            if (rng_chance(&a->rng, 30)) {
                d = (struct descriptor){.op = OP_ABORT, .stream = rng_below(&a->rng, i + 1), .user_data = 9};
                if (raw_call(&raw, &d, &completion) != 0)
                    break;
            }
        }
        raw_close(&raw);
    }
}

void attack_quota_names(struct attacker *a)
{
    for (uint32_t n = 0; !over(a); n++) {
        char name[64];
        struct raw raw;
        snprintf(name, sizeof name, "p-%d-%u", (int)getpid(), n);
        struct hello hello = hello_named(&a->rng, name, 0);
        if (rng_chance(&a->rng, 30)) {
            hello = hello_small(&a->rng);
            hello.flags = HELLO_PRODUCER;
        }
        int rc = raw_connect(a, &raw, &hello);
        if (rc != 0 && !raw_may_fail(rc))
            found(a, "producer \"%s\": %s (%s)", name, strerror(-rc), raw.welcome.text);
        uint32_t topic = rc == 0 ? raw_open(&raw, "hostile-names") : 0;
        if (topic != 0) {
            struct completion completion;
            struct descriptor d = raw_batch(&raw, &a->rng, topic, 0, 1, 16);
            d.number = raw.welcome.producer != 0;
            if (raw_push(&raw, &d) == 1)
                (void)raw_answer(&raw, &completion, 50 * MS);
        }
        raw_close(&raw);
    }
}
