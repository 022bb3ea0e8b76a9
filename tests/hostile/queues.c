/* queues.c: row 27: what waits inside the broker: queued batches, refusals that are to be told, deadlines;
 * and row 28: as much right work as one user can do, against what all share. */
#include "hostile.h"

#include <unistd.h>

#define HANDLES     8u
#define GREEDY_MOST (UINT64_C(256) << 20)

static unsigned connect_all(struct attacker *a, struct raw *raws, uint32_t *topics, unsigned count,
                            const char *name)
{
    for (unsigned i = 0; i < count; i++) {
        struct hello hello = hello_small(&a->rng);
        hello.queue_entries = MAX_QUEUE_ENTRIES / 2;
        while (raw_connect(a, &raws[i], &hello) != 0) {
            if (over(a))
                return i;
            if (hello.queue_entries > MIN_QUEUE_ENTRIES) /* as many as one user may have */
                hello.queue_entries /= 2;
            pause_ns(MS);
        }
        topics[i] = raw_open(&raws[i], name);
        if (topics[i] == 0)
            return i;
    }
    return count;
}

/* One holds the topic with a stream; the others publish what has to wait for it. */
static void hold_topic(struct attacker *a, struct raw *raw, uint32_t topic, uint32_t stream)
{
    struct descriptor d = raw_batch(raw, &a->rng, topic, 0, 1, 64);
    struct completion completion;
    d.op = OP_CHUNK;
    d.flags = DESCRIPTOR_FIRST;
    d.stream = stream;
    (void)raw_call(raw, &d, &completion);
}

static void let_go(struct attacker *a, struct raw *raw, uint32_t stream)
{
    struct completion completion;
    struct descriptor d = {.op = OP_ABORT, .stream = stream, .user_data = rng_next(&a->rng)};
    (void)raw_call(raw, &d, &completion);
}

static int64_t some_deadline(struct rng *rng)
{
    switch (rng_below(rng, 8)) {
    case 0:
        return INT64_MIN;
    case 1:
        return -1;
    case 2:
        return 1;
    case 3:
        return INT64_MAX;
    case 4:
        return now_ns();
    case 5:
        return now_ns() + (int64_t)rng_below(rng, 50) * MS;
    case 6:
        return (int64_t)rng_next(rng);
    default:
        return 0;
    }
}

/* Fills the handles' rings with what waits; takes some back; lets the topic go; goes away, or waits. */
static void wait_in_thousands(struct attacker *a, uint16_t flags, bool deadlines, const char *name)
{
    struct raw *raws = calloc(HANDLES, sizeof *raws);
    uint32_t topics[HANDLES];
    while (raws != NULL && !over(a)) {
        unsigned count = connect_all(a, raws, topics, HANDLES, name);
        if (count == HANDLES)
            hold_topic(a, &raws[0], topics[0], 1);
        for (unsigned i = 1; i < count && count == HANDLES; i++) {
            uint32_t waiting = rng_below(&a->rng, ring_capacity(&raws[i].sq));
            for (uint32_t n = 0; n < waiting; n++) {
                struct descriptor d = raw_batch(&raws[i], &a->rng, topics[i], 0, 1, 32);
                d.user_data = n;
                d.op = rng_chance(&a->rng, 30) ? OP_APPEND : OP_BATCH;
                d.flags = flags;
                d.deadline_ns = deadlines || rng_chance(&a->rng, 5) ? some_deadline(&a->rng) : 0;
                if (rng_chance(&a->rng, 5))
                    d = (struct descriptor){.op = OP_CANCEL, .number = rng_below(&a->rng, n + 1)};
                if (raw_push(&raws[i], &d) != 1)
                    break;
            }
        }
        pause_ns(MS * rng_below(&a->rng, 60));
        if (count == HANDLES && rng_chance(&a->rng, 50)) {
            let_go(a, &raws[0], 1);
            pause_ns(MS * rng_below(&a->rng, 60));
        }
        for (unsigned i = 0; i < count; i++)
            raw_close(&raws[i]);
    }
    free(raws);
}

void attack_queue_flood(struct attacker *a)
{
    wait_in_thousands(a, DESCRIPTOR_QUEUE, false, rng_chance(&a->rng, 30) ? SHARED_TOPIC : "hostile-queue");
}

void attack_notify_flood(struct attacker *a)
{
    wait_in_thousands(a, DESCRIPTOR_NOTIFY, false, rng_chance(&a->rng, 30) ? SHARED_TOPIC : "hostile-notify");
}

void attack_deadlines(struct attacker *a)
{
    wait_in_thousands(a, rng_chance(&a->rng, 70) ? DESCRIPTOR_QUEUE : DESCRIPTOR_NOTIFY, true,
                      "hostile-deadlines");
}

/* Everything right, as much and as large as it goes. */
void attack_greedy(struct attacker *a)
{
    struct raw raws[4];
    uint32_t topics[4];
    uint64_t written = 0;
    unsigned count = 0;
    while (count < array_count(raws) && !over(a)) {
        char name[32];
        struct hello hello = hello_small(&a->rng);
        hello.arena_bytes = 8u << 20;
        hello.queue_entries = 64;
        if (raw_connect(a, &raws[count], &hello) != 0)
            continue;
        snprintf(name, sizeof name, "hostile-greedy-%u", count);
        topics[count] = raw_open(&raws[count], name);
        count += topics[count] != 0;
    }
    while (!over(a) && written < GREEDY_MOST) {
        bool any = false;
        for (unsigned i = 0; i < count; i++) {
            struct completion completion;
            bool large = rng_chance(&a->rng, 50);
            struct descriptor d =
                raw_batch(&raws[i], &a->rng, topics[i], 0, large ? 2000 : 10, large ? 1400 : 100);
            if (raw_push(&raws[i], &d) == 1) {
                written += d.payload_bytes;
                any = true;
            }
            while (raw_pop(&raws[i], &completion))
                any = true;
        }
        if (!any)
            pause_ns(MS / 10);
    }
    _exit(0);
}
