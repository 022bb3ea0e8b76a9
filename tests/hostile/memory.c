/* memory.c: rows 19 and 20: shared memory rewritten by a thread while the broker reads it.
 *
 * Each life of a connection: the attacker publishes what is right, as fast as it goes, while a second thread
 * rewrites index words, descriptors, payload, records, or takes the pages away. The broker may end the
 * connection at any time; then the next life begins. What it must not do is judged from outside: crash,
 * stall, commit something that cannot be read back, touch anybody else. */
#include "hostile.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#define LIFE_NS (30 * MS)

struct scribbler {
    struct attacker *a;
    struct raw *raw;
    struct rng rng;
    void (*scribble)(struct scribbler *s);
    bool stop;
    pthread_t thread;
};

typedef void life_work(struct attacker *a, struct raw *raw, uint32_t topic, int64_t until);

static void *scribble_on(void *argument)
{
    struct scribbler *s = argument;
    while (!__atomic_load_n(&s->stop, __ATOMIC_ACQUIRE))
        s->scribble(s);
    return NULL;
}

static uint32_t some_topic(struct attacker *a, struct raw *raw)
{
    char name[32];
    snprintf(name, sizeof name, "hostile-%u", rng_below(&a->rng, 8));
    return raw_open(raw, rng_chance(&a->rng, 25) ? SHARED_TOPIC : name);
}

static void live(struct attacker *a, void (*scribble)(struct scribbler *s), life_work *work)
{
    while (!over(a)) {
        struct raw raw;
        if (!raw_connected(a, &raw))
            return;
        uint32_t topic = some_topic(a, &raw);
        struct scribbler s = {.a = a, .raw = &raw, .rng = {.state = rng_next(&a->rng)}, .scribble = scribble};
        if (topic != 0 && pthread_create(&s.thread, NULL, scribble_on, &s) == 0) {
            work(a, &raw, topic, now_ns() + LIFE_NS);
            __atomic_store_n(&s.stop, true, __ATOMIC_RELEASE);
            pthread_join(s.thread, NULL);
        }
        raw_close(&raw);
    }
}

static struct descriptor good_batch(struct attacker *a, struct raw *raw, uint32_t topic)
{
    uint32_t offset = rng_below(&a->rng, (uint32_t)raw->sizes.arena_bytes / 2) & ~(PAYLOAD_ALIGN - 1);
    return raw_batch(raw, &a->rng, topic, offset, 1 + rng_below(&a->rng, 40), rng_below(&a->rng, 700));
}

static void reap_all(struct raw *raw)
{
    struct completion completion;
    while (raw_pop(raw, &completion))
        continue;
}

static void publish_batches(struct attacker *a, struct raw *raw, uint32_t topic, int64_t until)
{
    while (now_ns() < until && !raw_ended(raw)) {
        struct descriptor d = good_batch(a, raw, topic);
        if (rng_chance(&a->rng, 10))
            d = (struct descriptor){.op = OP_READ, .topic = topic, .number = 1};
        int rc = raw_push(raw, &d);
        if (rc < 0)
            return;
        if (rc == 0)
            pause_ns(MS / 20);
        reap_all(raw);
    }
}

/* ------------------------------------------------------------------------------------- row 19 */

static uint32_t wild_index(struct rng *rng, uint32_t head, uint32_t size)
{
    switch (rng_below(rng, 5)) {
    case 0:
        return head + size + 1;
    case 1:
        return head - 1;
    case 2:
        return head + rng_below(rng, size);
    case 3:
        return head + size - 1;
    default:
        return (uint32_t)rng_edge(rng, head);
    }
}

static void scribble_tail(struct scribbler *s)
{
    uint32_t head = word_load(&s->raw->broker_words->sq_head);
    word_store_release(&s->raw->words->sq_tail, rng_chance(&s->rng, 2)
                                                    ? wild_index(&s->rng, head, s->raw->sizes.queue_entries)
                                                    : head + rng_below(&s->rng, 3));
    if (rng_chance(&s->rng, 1))
        raw_ring(s->raw);
}

static void scribble_head(struct scribbler *s)
{
    uint32_t tail = word_load(&s->raw->broker_words->cq_tail);
    word_store_release(&s->raw->words->cq_head, rng_chance(&s->rng, 2)
                                                    ? wild_index(&s->rng, tail, s->raw->sizes.queue_entries)
                                                    : tail - rng_below(&s->rng, 3));
}

static void scribble_wake(struct scribbler *s)
{
    word_store(&s->raw->words->wake_at,
               (uint32_t)rng_edge(&s->rng, word_load(&s->raw->broker_words->cq_tail)));
    uint64_t wild = rng_chance(&s->rng, 5) ? rng_edge(&s->rng, s->raw->sizes.window_bytes) : 0;
    __atomic_store_n(&s->raw->words->window_head, wild, __ATOMIC_RELEASE);
}

static void scribble_words(struct scribbler *s)
{
    uint32_t at = rng_below(&s->rng, LAYOUT_PAGE / 4);
    if (rng_chance(&s->rng, 50))
        scribble_wake(s);
    __atomic_store_n((uint32_t *)(void *)s->raw->client + at, (uint32_t)rng_edge(&s->rng, 7),
                     __ATOMIC_RELEASE);
    if (rng_chance(&s->rng, 10))
        scribble_tail(s);
}

void attack_wild_tail(struct attacker *a)
{
    live(a, scribble_tail, publish_batches);
}

void attack_wild_head(struct attacker *a)
{
    live(a, scribble_head, publish_batches);
}

void attack_wild_wake(struct attacker *a)
{
    live(a, scribble_wake, publish_batches);
}

void attack_wild_words(struct attacker *a)
{
    live(a, scribble_words, publish_batches);
}

/* ------------------------------------------------------------------------------------- row 20 */

/* A word anywhere in the slots; the ones published last most often. */
static void scribble_descriptors(struct scribbler *s)
{
    uint32_t size = s->raw->sizes.queue_entries;
    uint32_t index =
        word_load(&s->raw->words->sq_tail) - rng_below(&s->rng, rng_chance(&s->rng, 80) ? 3 : size);
    uint32_t *words = (uint32_t *)(void *)&s->raw->slots[index & (size - 1)];
    uint32_t at = rng_below(&s->rng, sizeof(struct descriptor) / 4);
    uint32_t near = (uint32_t)(rng_chance(&s->rng, 50) ? s->raw->sizes.arena_bytes : MAX_BATCH_ENTRIES);
    __atomic_store_n(words + at, (uint32_t)rng_edge(&s->rng, near), __ATOMIC_RELAXED);
}

static void scribble_payload(struct scribbler *s)
{
    uint32_t words = (uint32_t)(s->raw->sizes.arena_bytes / 4);
    uint32_t from = rng_below(&s->rng, words);
    for (uint32_t i = from; i < from + 64 && i < words; i++)
        __atomic_store_n((uint32_t *)(void *)s->raw->arena + i, (uint32_t)rng_next(&s->rng),
                         __ATOMIC_RELAXED);
}

/* Where the records of the descriptors published last lie, and what these say of their lengths. */
static void scribble_lengths(struct scribbler *s)
{
    uint32_t size = s->raw->sizes.queue_entries;
    uint32_t index = word_load(&s->raw->words->sq_tail) - 1 - rng_below(&s->rng, 4);
    struct descriptor *slot = &s->raw->slots[index & (size - 1)];
    uint32_t payload = __atomic_load_n(&slot->payload_bytes, __ATOMIC_RELAXED);
    uint32_t entries = __atomic_load_n(&slot->entries, __ATOMIC_RELAXED);
    uint64_t records = (uint64_t)__atomic_load_n(&slot->arena_offset, __ATOMIC_RELAXED) + payload;
    for (uint32_t i = 0; i < entries && i < 8; i++) {
        uint64_t at = records + i * sizeof(struct entry_record);
        if (at > s->raw->sizes.arena_bytes - sizeof(struct entry_record))
            break;
        uint32_t *length = (uint32_t *)(void *)(s->raw->arena + at);
        uint32_t was = __atomic_load_n(length, __ATOMIC_RELAXED);
        __atomic_store_n(length, (uint32_t)rng_edge(&s->rng, was), __ATOMIC_RELAXED);
        __atomic_store_n(length, was, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&slot->payload_bytes, (uint32_t)rng_edge(&s->rng, MAX_WHOLE_PAYLOAD), __ATOMIC_RELAXED);
    __atomic_store_n(&slot->entries, (uint32_t)rng_edge(&s->rng, MAX_BATCH_ENTRIES), __ATOMIC_RELAXED);
    __atomic_store_n(&slot->payload_bytes, payload, __ATOMIC_RELAXED);
    __atomic_store_n(&slot->entries, entries, __ATOMIC_RELAXED);
}

static void scribble_holes(struct scribbler *s)
{
    uint64_t from = rng_chance(&s->rng, 30) ? 0 : s->raw->sizes.arena_at;
    uint64_t bytes = s->raw->sizes.client_file_bytes - from;
    if (rng_chance(&s->rng, 50))
        (void)fallocate(s->raw->fds[FD_CLIENT_FILE], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)from,
                        (off_t)bytes);
    else
        (void)madvise(s->raw->arena, s->raw->sizes.arena_bytes, MADV_REMOVE);
    scribble_payload(s);
}

void attack_flip_descriptors(struct attacker *a)
{
    live(a, scribble_descriptors, publish_batches);
}

void attack_flip_payload(struct attacker *a)
{
    live(a, scribble_payload, publish_batches);
}

void attack_grow_lengths(struct attacker *a)
{
    live(a, scribble_lengths, publish_batches);
}

void attack_punch_holes(struct attacker *a)
{
    live(a, scribble_holes, publish_batches);
}

static bool push_patiently(struct raw *raw, const struct descriptor *d, int64_t until)
{
    int rc;
    while ((rc = raw_push(raw, d)) == 0 && now_ns() < until && !raw_ended(raw)) {
        reap_all(raw);
        pause_ns(MS / 20);
    }
    reap_all(raw);
    return rc == 1;
}

static void publish_streams(struct attacker *a, struct raw *raw, uint32_t topic, int64_t until)
{
    for (uint32_t stream = 1; now_ns() < until && !raw_ended(raw); stream++) {
        uint32_t chunks = 1 + rng_below(&a->rng, 6);
        for (uint32_t i = 0; i < chunks && now_ns() < until; i++) {
            struct descriptor d = good_batch(a, raw, topic);
            d.op = OP_CHUNK;
            d.stream = stream;
            d.chunk = i;
            d.flags = (uint16_t)((i == 0 ? DESCRIPTOR_FIRST : 0) | (i + 1 == chunks ? DESCRIPTOR_LAST : 0));
            if (!push_patiently(raw, &d, until))
                return;
        }
    }
}

static void scribble_chunks(struct scribbler *s)
{
    if (rng_chance(&s->rng, 70))
        scribble_lengths(s);
    else if (rng_chance(&s->rng, 70))
        scribble_payload(s);
    else
        scribble_descriptors(s);
}

void attack_flip_chunks(struct attacker *a)
{
    live(a, scribble_chunks, publish_streams);
}
