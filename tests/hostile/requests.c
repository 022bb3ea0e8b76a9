/* requests.c: row 21: descriptors, names and reads that are wrong from the start. What is certain to be wrong
 * must be answered -EINVAL, by a connection that goes on serving what is right. */
#include "hostile.h"

static void expect_invalid(struct attacker *a, struct raw *raw, const struct descriptor *d, const char *what)
{
    struct completion completion;
    int rc = raw_call(raw, d, &completion);
    if (rc == -ETIME && over(a))
        return;
    if (rc != 0)
        found(a, "%s: no answer: %s", what, strerror(-rc));
    if (completion.result != -EINVAL)
        found(a, "%s: answered %d, not -EINVAL", what, completion.result);
}

static void wrong_lengths(struct attacker *a, struct raw *raw, const struct descriptor *good)
{
    uint32_t arena = (uint32_t)raw->sizes.arena_bytes;
#define WRONG(change)                                                                                        \
    do {                                                                                                     \
        struct descriptor d = *good;                                                                         \
        d.user_data = rng_next(&a->rng);                                                                     \
        change;                                                                                              \
        expect_invalid(a, raw, &d, #change);                                                                 \
    } while (0)
    WRONG(d.arena_offset = arena);
    WRONG(d.arena_offset = arena - 16);
    WRONG(d.arena_offset = UINT32_MAX - 15);
    WRONG(d.arena_offset = 8);
    WRONG(d.arena_offset = arena; d.payload_bytes = UINT32_MAX - arena + 1);
    WRONG(d.payload_bytes = arena + 16);
    WRONG(d.payload_bytes = arena);
    WRONG(d.payload_bytes = UINT32_MAX - 15);
    WRONG(d.payload_bytes = 0x80000000u);
    WRONG(d.payload_bytes = 15);
    WRONG(d.entries = MAX_BATCH_ENTRIES + 1);
    WRONG(d.entries = UINT32_MAX);
    WRONG(d.entries = 0x20000000u); /* times 8: 0 in 32 bits */
    WRONG(d.entries = 0x20000001u);
    WRONG(d.entries = 0);
    WRONG(d.op = OP_APPEND; d.entries = 0);
    WRONG(d.op = OP_APPEND; d.entries = 2);
    WRONG(d.op = OP_NONE);
    WRONG(d.op = 255);
    WRONG(d.level = LEVEL_DURABLE + 1);
    WRONG(d.flags = 1u << 15);
    WRONG(d.flags = DESCRIPTOR_FIRST);
    WRONG(d.topic = 0);
    WRONG(d.topic = UINT32_MAX);
    WRONG(d.topic = good->topic + 1000);
    WRONG(d.op = OP_OPEN; d.payload_bytes = 0);
    WRONG(d.op = OP_OPEN; d.payload_bytes = 4096);
    WRONG(d.op = OP_OPEN; d.payload_bytes = MAX_TOPIC_NAME; d.arena_offset = arena - MAX_TOPIC_NAME + 1);
    WRONG(d.op = OP_CHUNK; d.stream = 5);
    WRONG(d.op = OP_CHUNK; d.flags = DESCRIPTOR_FIRST; d.chunk = 1);
    WRONG(d.op = OP_CHUNK; d.flags = DESCRIPTOR_FIRST; d.chunk = UINT32_MAX);
    WRONG(d.op = OP_CHUNK; d.flags = DESCRIPTOR_FIRST; d.payload_bytes = MAX_CHUNK_PAYLOAD + 16);
    WRONG(d.op = OP_READ; d.max_entries = MAX_BATCH_ENTRIES + 1);
    WRONG(d.op = OP_READ; d.topic = UINT32_MAX);
    WRONG(d.op = OP_CLOSE; d.topic = good->topic + 1);
#undef WRONG
}

/* Records that lie are found out only after the copy. */
static void wrong_records(struct attacker *a, struct raw *raw, uint32_t topic)
{
    static const struct entry_record wrong[] = {
        {.length = UINT32_MAX},
        {.length = UINT32_MAX - 14},
        {.length = 17},
        {.length = 0},
        {.flags = 0xff},
        {.length = 16, .flags = 2},
        {.length = 16, .header_bytes = 1},
    };
    for (size_t i = 0; i < array_count(wrong); i++) {
        struct descriptor d = raw_batch(raw, &a->rng, topic, 64, 1, 16);
        memcpy(raw->arena + d.arena_offset + d.payload_bytes, &wrong[i], sizeof wrong[i]);
        expect_invalid(a, raw, &d, "a record that lies");
    }
}

void attack_bad_lengths(struct attacker *a)
{
    while (!over(a)) {
        struct raw raw;
        if (!raw_connected(a, &raw))
            return;
        uint32_t topic = raw_open(&raw, "hostile-lengths");
        if (topic != 0) {
            struct descriptor good = raw_batch(&raw, &a->rng, topic, 0, 1, 16);
            wrong_lengths(a, &raw, &good);
            wrong_records(a, &raw, topic);
            struct completion completion;
            good = raw_batch(&raw, &a->rng, topic, 0, 1, 16);
            int rc = raw_call(&raw, &good, &completion);
            if (!over(a) && (rc != 0 || (completion.result != 0 && completion.result != -EBUSY)))
                found(a, "what is right, after all that was wrong, was answered %d",
                      rc != 0 ? rc : completion.result);
        }
        raw_close(&raw);
    }
}

/* ------------------------------------------------------------------------------------- names */

struct name {
    const char *text;
    size_t length;
    bool valid;
};

static void try_name(struct attacker *a, struct raw *raw, const struct name *name)
{
    struct completion completion;
    uint32_t topic = raw_topic(raw, name->text, name->length, &completion);
    if (over(a))
        return;
    if (completion.result != (name->valid ? 0 : -EINVAL) && !(name->valid && completion.result == -EDQUOT))
        found(a, "a topic name of %zu bytes, \"%.20s\", was answered %d", name->length, name->text,
              completion.result);
    if (topic == 0)
        return;
    struct descriptor d = raw_batch(raw, &a->rng, topic, 1024, 1, 32);
    int rc = raw_call(raw, &d, &completion);
    if (rc == 0 && completion.result == -EINVAL)
        found(a, "a batch on topic \"%.20s\" was answered -EINVAL", name->text);
    d = (struct descriptor){.op = OP_CLOSE, .topic = topic, .user_data = 3};
    rc = raw_call(raw, &d, &completion);
    if (rc == 0 && completion.result != 0)
        found(a, "closing a topic was answered %d", completion.result);
}

void attack_bad_names(struct attacker *a)
{
    static char long_name[4096];
    memset(long_name, 'n', sizeof long_name);
    static const struct name names[] = {
        {"", 0, false},
        {long_name, 4096, false},
        {long_name, 256, false},
        {long_name, 255, true},
        {"a\0b", 3, false},
        {"\0", 1, false},
        {"a\n", 2, false},
        {"\x7f", 1, false},
        {"\x1f", 1, false},
        {"../x", 4, true},
        {"../../../../tmp/x", 17, true},
        {"/etc/passwd", 11, true},
        {"\xff\xfe\x80", 3, true},
        {"\xc0\xaf", 2, true},
        {" ", 1, true},
        {"%s%n%s", 6, true},
        {".", 1, true},
        {"..", 2, true},
    };
    while (!over(a)) {
        struct raw raw;
        if (!raw_connected(a, &raw))
            return;
        for (int i = 0; i < 100 && !over(a); i++)
            try_name(a, &raw, &names[rng_below(&a->rng, array_count(names))]);
        raw_close(&raw);
    }
}

/* ------------------------------------------------------------------------------------- any descriptor */

static uint64_t sometimes(struct rng *rng, uint64_t right, uint64_t near)
{
    return rng_chance(rng, 75) ? right : rng_edge(rng, near);
}

static struct descriptor any_descriptor(struct attacker *a, struct raw *raw, uint32_t topic)
{
    struct rng *rng = &a->rng;
    struct descriptor d =
        raw_batch(raw, rng, topic, 16 * rng_below(rng, 1000), 1 + rng_below(rng, 4), rng_below(rng, 200));
    uint64_t arena = raw->sizes.arena_bytes;
    d.user_data = rng_below(rng, 64); /* so that a cancel finds something */
    d.op = (uint8_t)(rng_chance(rng, 95) ? rng_below(rng, OP_QUERY + 2) : rng_next(rng));
    d.level = (uint8_t)sometimes(rng, rng_below(rng, 4), 3);
    d.flags = (uint16_t)(rng_chance(rng, 50)   ? 0
                         : rng_chance(rng, 90) ? rng_below(rng, DESCRIPTOR_FLAGS + 1)
                                               : rng_next(rng));
    d.topic = (uint32_t)sometimes(rng, topic, topic);
    d.arena_offset = (uint32_t)sometimes(rng, d.arena_offset, arena);
    d.payload_bytes = (uint32_t)sometimes(rng, d.payload_bytes, arena);
    d.entries = (uint32_t)sometimes(rng, d.entries, MAX_BATCH_ENTRIES);
    d.chunk = (uint32_t)sometimes(rng, rng_below(rng, 3), 1);
    d.number = sometimes(rng, 0, 64);
    d.deadline_ns = (int64_t)sometimes(rng, 0, (uint64_t)now_ns());
    d.stream = rng_below(rng, 80);
    d.entry_offset_4k = (uint32_t)sometimes(rng, 0, 1);
    return d;
}

void attack_wild_descriptors(struct attacker *a)
{
    while (!over(a)) {
        struct raw raw;
        if (!raw_connected(a, &raw))
            return;
        uint32_t topic = raw_open(&raw, rng_chance(&a->rng, 20) ? SHARED_TOPIC : "hostile-wild");
        uint32_t out = 0;
        int64_t stuck_ns = now_ns();
        while (!over(a) && !raw_ended(&raw) && now_ns() - stuck_ns < 30 * MS) {
            struct completion completion;
            while (raw_pop(&raw, &completion))
                if ((completion.flags & COMPLETION_MORE) == 0 && out > 0)
                    out--;
            if (out >= ring_capacity(&raw.sq) || topic == 0) {
                pause_ns(MS / 10); /* follows, queued ones: pending until the next life */
                continue;
            }
            struct descriptor d = any_descriptor(a, &raw, topic);
            if (raw_push(&raw, &d) != 1)
                continue;
            out++;
            stuck_ns = now_ns();
            if (rng_chance(&a->rng, 1)) {
                uint64_t released = raw.words->window_head + rng_below(&a->rng, 4096);
                __atomic_store_n(&raw.words->window_head, released, __ATOMIC_RELEASE);
            }
        }
        raw_close(&raw);
    }
}

/* ------------------------------------------------------------------------------------- reads */

/* Releases what an answer gave, or all but, or more than that. */
static void release(struct attacker *a, struct raw *raw, const struct completion *completion)
{
    uint64_t end = completion->window_at + completion->window_bytes;
    if (rng_chance(&a->rng, 10))
        end = rng_edge(&a->rng, end);
    else if (rng_chance(&a->rng, 30))
        return;
    __atomic_store_n(&raw->words->window_head, end, __ATOMIC_RELEASE);
}

void attack_wild_reads(struct attacker *a)
{
    static const char *const names[] = {"honest-0", "honest-1", SHARED_TOPIC, "visitors", "hostile-0"};
    while (!over(a)) {
        struct raw raw;
        if (!raw_connected(a, &raw))
            return;
        uint32_t topic = raw_open(&raw, names[rng_below(&a->rng, array_count(names))]);
        for (int i = 0; i < 200 && topic != 0 && !over(a) && !raw_ended(&raw); i++) {
            struct descriptor d = {.op = rng_chance(&a->rng, 90) ? OP_READ : OP_TOPICS,
                                   .user_data = rng_below(&a->rng, 8),
                                   .flags = rng_chance(&a->rng, 10) ? DESCRIPTOR_FOLLOW : 0,
                                   .topic = topic,
                                   .number = sometimes(&a->rng, rng_below(&a->rng, 2000), 1),
                                   .max_entries = (uint32_t)sometimes(&a->rng, 0, 1),
                                   .max_bytes = (uint32_t)sometimes(&a->rng, 0, 1),
                                   .entry_offset_4k = (uint32_t)sometimes(&a->rng, 0, 1)};
            if (rng_chance(&a->rng, 10))
                d = (struct descriptor){.op = OP_CANCEL, .number = rng_below(&a->rng, 8)};
            if (raw_push(&raw, &d) != 1)
                break;
            struct completion completion;
            while (raw_answer(&raw, &completion, MS) == 0)
                release(a, &raw, &completion);
        }
        raw_close(&raw);
    }
}
