/* producers.c: eight producers of several kinds that note in the ledger what they sent and what was answered.
 *
 *   1. For each life of the broker a producer connects and opens its topics. A named one asks what became of
 *      each number that was open (G5), sends the last committed one again, which must be known, and goes on
 *      behind it. An anonymous one never sends a batch twice: each try has a number of its own.
 *   2. It keeps some batches in flight. What a batch holds follows from producer, topic and number.
 *   3. Once the connection is lost, everything without an answer is unknown; it parks until the next life.
 *
 * A stream whose last piece was never sent counts as failed: it must never appear. */
#include <signal.h>
#include <unistd.h>

#include "kernel.h"

#define ARENA_BYTES  (128u << 10)
#define STREAM_ENTRY (40u << 10) /* three of them outgrow the arena's share of a batch */
#define STREAM_LEAST 3u
#define LATER        1 /* result of a try that could send nothing just now */

/* clang-format off */
static const struct kind {
    const char *name;          /* of the producer; NULL: anonymous */
    uint32_t topics[SLOTS];
    uint32_t most_entries;
    uint32_t depth;            /* in flight per topic; 0: blocking appends of one entry */
    uint32_t stream_one_in;    /* 0: never */
    uint32_t queue_one_in;     /* 0: never: contention is refused */
    uint8_t level;             /* asked for; 0: the topic's */
    int64_t pause_ns;          /* between two batches */
} kinds[PRODUCERS] = {
    {NULL, {TOPIC_SHARED, SLOT_NONE}, 1, 0, 0, 1, 0, 0},
    {NULL, {TOPIC_SHARED, TOPIC_STREAM}, 40, 6, 0, 2, 0, 0},
    {NULL, {TOPIC_SHARED, TOPIC_WRITTEN}, 200, 3, 0, 2, WALRUS_LEVEL_DURABLE, 0},
    {NULL, {TOPIC_STREAM, SLOT_NONE}, 9, 2, 2, 1, 0, NS_PER_MS},
    {"first", {TOPIC_NAMED, TOPIC_SHARED}, 30, 6, 0, 1, WALRUS_LEVEL_DURABLE, 0},
    {"second", {TOPIC_NAMED, TOPIC_STREAM}, 9, 3, 8, 1, WALRUS_LEVEL_DURABLE, 0},
    {NULL, {TOPIC_WRITTEN, SLOT_NONE}, 20, 8, 0, 1, 0, NS_PER_MS / 4},
    {NULL, {TOPIC_ACCEPTED, TOPIC_WRITTEN}, 20, 8, 0, 1, 0, NS_PER_MS / 4},
};
static const uint8_t topic_levels[TOPICS] = {
    [TOPIC_SHARED] = WALRUS_LEVEL_DEFAULT, [TOPIC_NAMED] = WALRUS_LEVEL_DURABLE,
    [TOPIC_STREAM] = WALRUS_LEVEL_DURABLE, [TOPIC_WRITTEN] = WALRUS_LEVEL_WRITTEN,
    [TOPIC_ACCEPTED] = WALRUS_LEVEL_ACCEPTED,
};
/* clang-format on */

struct producer {
    const struct work *work;
    struct ledger *ledger;
    const struct kind *kind;
    uint32_t index;
    uint64_t random;
    walrus *handle;
    walrus_topic *topics[SLOTS];
    uint64_t next[SLOTS];
    uint64_t resent[SLOTS]; /* a committed number that is sent again: its answer must be "known"; 0: none */
    uint32_t in_flight[SLOTS];
    bool failed[SLOTS]; /* named: a number came back: nothing new until all are back */
    uint8_t room[STREAM_ENTRY];
};

uint32_t producer_topic(uint32_t producer, uint32_t slot)
{
    return kinds[producer].topics[slot];
}

/* ------------------------------------------------------------------------------------- records */

static struct record *record_of(const struct producer *producer, uint32_t slot, uint64_t number)
{
    return &producer->ledger->records[producer->index][slot][number];
}

static void set_fate(struct record *record, enum fate fate)
{
    __atomic_store_n(&record->fate, (uint8_t)fate, __ATOMIC_RELEASE);
}

static void count(uint64_t *counter, uint64_t more)
{
    __atomic_fetch_add(counter, more, __ATOMIC_RELAXED);
}

static void note_sent(const struct producer *producer, uint32_t slot, uint64_t number, uint32_t entries)
{
    struct record *record = record_of(producer, slot, number);
    if (record->fate == FATE_NONE)
        *record = (struct record){.sent_at = work_position(producer->work), .count = entries};
    record->there_from = record->gone_from = NEVER;
    set_fate(record, FATE_SENT);
    if (number > producer->ledger->used[producer->index][slot])
        __atomic_store_n(&producer->ledger->used[producer->index][slot], number, __ATOMIC_RELEASE);
}

static void note_failed(const struct producer *producer, uint32_t slot, uint64_t number)
{
    struct record *record = record_of(producer, slot, number);
    record->gone_from = work_position(producer->work);
    set_fate(record, FATE_FAILED);
    count(&producer->ledger->failed, 1);
}

static void note_acked(const struct producer *producer, uint32_t slot, uint64_t number,
                       const struct walrus_receipt *receipt)
{
    struct record *record = record_of(producer, slot, number);
    uint64_t position = work_position(producer->work);
    record->sequence = receipt->first_sequence;
    record->epoch = receipt->epoch;
    record->group = receipt->group;
    record->level = receipt->level;
    if (receipt->level >= producer->ledger->needed)
        record->there_from = position;
    set_fate(record, FATE_ACKED);
    count(&producer->ledger->acked, 1);
}

/* Everything without an answer, once there will be none. */
static void note_lost_connection(struct producer *producer)
{
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        for (uint64_t n = 1; n <= producer->ledger->used[producer->index][slot]; n++) {
            struct record *record = record_of(producer, slot, n);
            if (record->fate != FATE_SENT)
                continue;
            set_fate(record, FATE_UNKNOWN);
            count(&producer->ledger->unknown, 1);
        }
}

#define violation(producer, slot, number, format, ...)                                                       \
    verdict_set(&(producer)->ledger->verdict, "producer %u, topic '%s', batch %llu: " format,                \
                (producer)->index, topic_names[(producer)->kind->topics[slot]],                              \
                (unsigned long long)(number), __VA_ARGS__)

/* ------------------------------------------------------------------------------------- sending */

struct plan {
    uint32_t entries;
    bool stream;
    uint64_t seed;
};

static struct plan plan_of(const struct producer *producer, uint32_t slot, uint64_t number)
{
    const struct kind *kind = producer->kind;
    struct plan plan = {.seed = producer->work->run.soak->seed ^ number * 977 ^
                                (uint64_t)producer->index << 40 ^ (uint64_t)slot << 50};
    plan.stream = kind->stream_one_in != 0 && random_below(&plan.seed, kind->stream_one_in) == 0;
    plan.entries = 1 + (uint32_t)random_below(&plan.seed, kind->most_entries);
    if (plan.stream && plan.entries < STREAM_LEAST)
        plan.entries = STREAM_LEAST;
    return plan;
}

static struct content next_entry(const struct producer *producer, uint32_t slot, uint64_t number,
                                 struct plan *plan, uint32_t index)
{
    uint32_t length = plan->stream ? STREAM_ENTRY - (uint32_t)random_below(&plan->seed, 1000)
                                   : CONTENT_LEAST + (uint32_t)random_below(&plan->seed, 300);
    return (struct content){.producer = producer->index,
                            .topic = producer->kind->topics[slot],
                            .number = number,
                            .index = index,
                            .count = plan->entries,
                            .length = length};
}

static int fill(struct producer *producer, uint32_t slot, uint64_t number, struct plan plan,
                walrus_batch *batch)
{
    int rc = 0;
    for (uint32_t i = 0; i < plan.entries && rc == 0; i++) {
        struct content content = next_entry(producer, slot, number, &plan, i);
        content_fill(&content, producer->room);
        rc = walrus_batch_add(batch, producer->room, content.length);
        count(&producer->ledger->bytes, content.length);
    }
    return rc;
}

static bool wants_queue(struct producer *producer)
{
    uint32_t one_in = producer->kind->queue_one_in;
    return one_in != 0 && random_below(&producer->random, one_in) == 0;
}

/* A batch that never went out whole: it must never appear. */
static void give_up(struct producer *producer, uint32_t slot, uint64_t number, walrus_batch *batch)
{
    walrus_batch_abort(batch);
    note_failed(producer, slot, number);
    if (producer->kind->name == NULL)
        producer->next[slot]++;
    else
        producer->failed[slot] = true;
}

/* 0, LATER, or -ECONNRESET. */
static int send_batch(struct producer *producer, uint32_t slot)
{
    uint64_t number = producer->next[slot];
    struct plan plan = plan_of(producer, slot, number);
    bool queue = wants_queue(producer), resend = number == producer->resent[slot];
    walrus_batch *batch;
    int rc = walrus_batch_begin(producer->topics[slot], &batch);
    if (rc < 0)
        return rc == -ECONNRESET ? rc : LATER;
    if (queue && walrus_batch_set_queue(batch, 1) < 0)
        queue = false;
    if (!resend)
        note_sent(producer, slot, number, plan.entries);
    rc = fill(producer, slot, number, plan, batch);
    struct walrus_submit_options options = {.size = sizeof options,
                                            .user_data = number * SLOTS + slot,
                                            .level = producer->kind->level,
                                            .queue = queue,
                                            .append = plan.entries == 1 && !plan.stream,
                                            .number = producer->kind->name != NULL ? number : 0};
    bool abort = rc == 0 && plan.stream && !resend && random_below(&producer->random, 4) == 0;
    if (rc == 0 && !abort) {
        rc = walrus_batch_submit(batch, &options);
        if (rc == 0) {
            producer->next[slot]++;
            producer->in_flight[slot]++;
            return 0;
        }
    }
    if (resend) {
        walrus_batch_abort(batch);
        producer->resent[slot] = 0;
        producer->next[slot]++;
    } else {
        give_up(producer, slot, number, batch);
    }
    count(&producer->ledger->aborted, 1);
    return rc == -ECONNRESET ? rc : LATER;
}

/* Is this an answer that says "not written"? */
static bool says_not_written(struct ledger *ledger, int result)
{
    if (result == -ENOSPC)
        __atomic_fetch_add(&ledger->no_space, 1, __ATOMIC_RELAXED);
    if (result == -EIO)
        __atomic_fetch_add(&ledger->errors, 1, __ATOMIC_RELAXED);
    if (result == -ENOSPC || result == -EIO)
        return ledger->may_fail;
    return result == -EAGAIN || result == -ECANCELED || result == -EBUSY || result == -ESHUTDOWN;
}

static void settle(struct producer *producer, const struct walrus_completion *completion)
{
    uint32_t slot = (uint32_t)(completion->user_data % SLOTS);
    uint64_t number = completion->user_data / SLOTS;
    const struct walrus_receipt *receipt = &completion->receipt;
    bool duplicate = (receipt->flags & WALRUS_RECEIPT_DUPLICATE) != 0;
    producer->in_flight[slot]--;
    if (number == producer->resent[slot]) {
        producer->resent[slot] = 0;
        count(&producer->ledger->duplicates, 1);
        if (completion->result == 0 ? !duplicate
                                    : !says_not_written(producer->ledger, completion->result) &&
                                          completion->result != -ECONNRESET)
            violation(producer, slot, number, "G5: a committed number that was sent again ended with %d",
                      completion->result);
        return;
    }
    if (completion->result == -ECONNRESET)
        return; /* see note_lost_connection */
    if (completion->result == 0) {
        if (duplicate || receipt->count != record_of(producer, slot, number)->count)
            violation(producer, slot, number, "answered with %llu entries, flags %#x",
                      (unsigned long long)receipt->count, receipt->flags);
        note_acked(producer, slot, number, receipt);
        return;
    }
    note_failed(producer, slot, number);
    producer->failed[slot] = true;
    if (!says_not_written(producer->ledger, completion->result))
        violation(producer, slot, number, "answered with %d", completion->result);
}

static int reap(struct producer *producer)
{
    struct walrus_completion done[32];
    int got = walrus_reap(producer->handle, done, 32);
    for (int i = 0; i < got; i++)
        settle(producer, &done[i]);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        if (!producer->failed[slot] || producer->in_flight[slot] != 0)
            continue;
        producer->failed[slot] = false;
        if (producer->kind->name != NULL)
            producer->next[slot] = walrus_topic_last_number(producer->topics[slot]) + 1;
    }
    return got < 0 ? got : 0;
}

/* One entry, and its answer. */
static int append_one(struct producer *producer)
{
    uint64_t number = producer->next[0];
    struct plan plan = plan_of(producer, 0, number);
    struct content content = next_entry(producer, 0, number, &plan, 0);
    struct walrus_receipt receipt = {0};
    struct walrus_write_options options = {.size = sizeof options, .queue = wants_queue(producer)};
    content_fill(&content, producer->room);
    note_sent(producer, 0, number, 1);
    int rc = walrus_append_for_topic(producer->handle, topic_names[producer->kind->topics[0]], producer->room,
                                     content.length, &options, &receipt);
    producer->next[0]++;
    count(&producer->ledger->bytes, content.length);
    if (rc == 0)
        note_acked(producer, 0, number, &receipt);
    if (rc == 0 || rc == -ECONNRESET)
        return rc;
    note_failed(producer, 0, number);
    if (!says_not_written(producer->ledger, rc))
        violation(producer, 0, number, "answered with %d: %s", rc, walrus_error(producer->handle));
    return rc == -ESHUTDOWN || rc == -ENOSPC || rc == -EIO ? LATER : 0;
}

/* ------------------------------------------------------------------------------------- a life */

/* The broker has gone, or is told to stop and will be gone soon: the next life brings the answer. */
static bool life_is_over(int rc)
{
    return rc == -ECONNRESET || rc == -ESHUTDOWN;
}

/* What the judge has seen and what the broker says must be one (G5). */
static int resolve(struct producer *producer, uint32_t slot)
{
    uint64_t last = walrus_topic_last_number(producer->topics[slot]);
    uint64_t used = producer->ledger->used[producer->index][slot];
    if (last > used)
        violation(producer, slot, last, "G5: it is the broker's last number, the last one sent is %llu",
                  (unsigned long long)used);
    uint64_t from = used > 24 ? used - 24 : 1;
    for (uint64_t n = from; n <= used; n++) {
        uint8_t fate = record_of(producer, slot, n)->fate;
        bool there = fate == FATE_ACKED || fate == FATE_THERE;
        int answer = walrus_query(producer->topics[slot], n, NULL);
        if (life_is_over(answer))
            return answer;
        if (answer != there || there != (n <= last))
            violation(producer, slot, n, "G5: fate %u, the query says %d, the last number is %llu", fate,
                      answer, (unsigned long long)last);
    }
    producer->next[slot] = last + 1;
    if (last > 0 && random_below(&producer->random, 2) == 0)
        producer->resent[slot] = producer->next[slot] = last;
    return 0;
}

static int open_topic(struct producer *producer, uint32_t slot)
{
    uint32_t topic = producer->kind->topics[slot];
    struct walrus_topic_options options = {.size = sizeof options, .level = topic_levels[topic]};
    int rc = walrus_topic_open(producer->handle, topic_names[topic], strlen(topic_names[topic]), &options,
                               &producer->topics[slot]);
    if (rc == 0 && producer->kind->name != NULL)
        return resolve(producer, slot);
    producer->next[slot] = producer->ledger->used[producer->index][slot] + 1;
    if (rc < 0 && !life_is_over(rc))
        violation(producer, slot, 0, "opening the topic: %s", walrus_error(producer->handle));
    return rc;
}

static int begin_life(struct producer *producer)
{
    struct error err = {0};
    struct walrus_connect_options options = {.producer = producer->kind->name, .arena_bytes = ARENA_BYTES};
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        producer->in_flight[slot] = 0;
        producer->resent[slot] = 0;
        producer->failed[slot] = false;
    }
    int rc = soak_connect(&producer->work->run, &options, &producer->handle, &err);
    if (rc == -EPROTO || rc == -EINVAL || rc == -EACCES || rc == -EBUSY)
        verdict_set(&producer->ledger->verdict, "producer %u cannot connect: %s", producer->index, err.text);
    if (rc < 0) {
        producer->handle = NULL;
        return rc;
    }
    for (uint32_t slot = 0; slot < SLOTS && rc == 0; slot++)
        if (producer->kind->topics[slot] != SLOT_NONE)
            rc = open_topic(producer, slot);
    return rc;
}

static bool is_held(struct ledger *ledger)
{
    return __atomic_load_n(&ledger->finish, __ATOMIC_ACQUIRE) != 0 ||
           __atomic_load_n(&ledger->pause, __ATOMIC_ACQUIRE) != 0;
}

static bool may_send(const struct producer *producer, uint32_t slot)
{
    return producer->kind->topics[slot] != SLOT_NONE && !producer->failed[slot] &&
           producer->in_flight[slot] < producer->kind->depth && producer->next[slot] < RECORDS &&
           !is_held(producer->ledger);
}

/* 0, or an error that says that the life is over. */
static int work_a_little(struct producer *producer)
{
    bool sent = false;
    if (producer->kind->depth == 0) {
        if (producer->next[0] >= RECORDS || is_held(producer->ledger)) {
            pause_ns(NS_PER_MS);
            return reap(producer);
        }
        int rc = append_one(producer);
        if (rc == LATER)
            pause_ns(NS_PER_MS);
        return rc < 0 ? rc : reap(producer);
    }
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        int rc = may_send(producer, slot) ? send_batch(producer, slot) : LATER;
        if (rc < 0)
            break; /* what was answered before is reaped first */
        sent |= rc == 0;
    }
    if (!sent && walrus_in_flight(producer->handle) > 0)
        (void)!walrus_wait(producer->handle, 1, 20 * NS_PER_MS);
    else if (!sent)
        pause_ns(NS_PER_MS);
    else
        pause_ns(producer->kind->pause_ns);
    return reap(producer);
}

static bool is_finished(const struct producer *producer)
{
    return __atomic_load_n(&producer->ledger->finish, __ATOMIC_ACQUIRE) != 0 &&
           (producer->handle == NULL || walrus_in_flight(producer->handle) == 0);
}

__attribute__((noreturn)) static void be_producer(struct producer *producer)
{
    for (uint32_t life = 1;; life++) {
        while (__atomic_load_n(&producer->ledger->life, __ATOMIC_ACQUIRE) < life) {
            if (__atomic_load_n(&producer->ledger->finish, __ATOMIC_ACQUIRE) != 0)
                _exit(0);
            pause_ns(NS_PER_MS);
        }
        int rc = begin_life(producer);
        while (rc == 0 && !is_finished(producer))
            rc = work_a_little(producer);
        note_lost_connection(producer);
        walrus_close(producer->handle);
        producer->handle = NULL;
        __atomic_fetch_add(&producer->ledger->parked, 1, __ATOMIC_RELEASE);
    }
}

/* --------------------------------------------------------------------------- the conductor's side */

int producers_start(struct work *work, struct ledger *ledger, pid_t pids[PRODUCERS], struct error *err)
{
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        pids[i] = child_fork();
        if (pids[i] == 0) {
            struct producer *producer = calloc(1, sizeof *producer);
            if (producer == NULL)
                _exit(1);
            producer->work = work;
            producer->ledger = ledger;
            producer->kind = &kinds[i];
            producer->index = i;
            producer->random = work->run.random ^ i;
            be_producer(producer);
        }
        if (pids[i] < 0)
            return error_set(err, -errno, "fork: %s", strerror(errno));
    }
    return 0;
}

void producers_go(struct ledger *ledger)
{
    __atomic_store_n(&ledger->parked, 0, __ATOMIC_RELAXED);
    __atomic_fetch_add(&ledger->life, 1, __ATOMIC_RELEASE);
}

static int look(struct ledger *ledger, int64_t limit, struct error *err)
{
    int rc = verdict_check(&ledger->verdict, err);
    if (rc == 0)
        rc = run_interrupted(err);
    if (rc == 0 && now_ns() > limit)
        rc = -ETIMEDOUT;
    return rc;
}

int producers_await_parked(struct ledger *ledger, struct error *err)
{
    int64_t limit = now_ns() + PATIENCE_NS;
    int rc = 0;
    while (rc == 0 && __atomic_load_n(&ledger->parked, __ATOMIC_ACQUIRE) < PRODUCERS) {
        pause_ns(NS_PER_MS);
        rc = look(ledger, limit, err);
        if (rc == -ETIMEDOUT)
            return error_set(err, rc, "a producer does not notice that the broker is gone");
    }
    return rc == 0 ? verdict_check(&ledger->verdict, err) : rc;
}

int producers_await_acks(struct ledger *ledger, uint64_t more, struct error *err)
{
    uint64_t wanted = __atomic_load_n(&ledger->acked, __ATOMIC_RELAXED) + more;
    int64_t limit = now_ns() + PATIENCE_NS;
    int rc = 0;
    while (rc == 0 && __atomic_load_n(&ledger->acked, __ATOMIC_RELAXED) < wanted) {
        pause_ns(NS_PER_MS);
        rc = look(ledger, limit, err);
        if (rc == -ETIMEDOUT)
            return error_set(err, rc, "nothing is committed any more");
    }
    return rc;
}

static uint64_t unanswered(const struct ledger *ledger)
{
    uint64_t sum = 0;
    for (uint32_t p = 0; p < PRODUCERS; p++)
        for (uint32_t s = 0; s < SLOTS; s++)
            for (uint64_t n = 1; n <= __atomic_load_n(&ledger->used[p][s], __ATOMIC_ACQUIRE); n++)
                sum += __atomic_load_n(&ledger->records[p][s][n].fate, __ATOMIC_ACQUIRE) == FATE_SENT;
    return sum;
}

int producers_pause(struct ledger *ledger, struct error *err)
{
    int64_t limit = now_ns() + PATIENCE_NS;
    int rc = 0;
    __atomic_store_n(&ledger->pause, 1, __ATOMIC_RELEASE);
    /* One that had looked just before may send once more: nothing for some looks means nothing. */
    for (int quiet = 0; rc == 0 && quiet < 20; quiet = unanswered(ledger) == 0 ? quiet + 1 : 0) {
        pause_ns(NS_PER_MS);
        rc = look(ledger, limit, err);
        if (rc == -ETIMEDOUT)
            return error_set(err, rc, "a batch gets no answer");
    }
    return rc;
}

void producers_resume(struct ledger *ledger)
{
    __atomic_store_n(&ledger->pause, 0, __ATOMIC_RELEASE);
}

void producers_end(pid_t pids[PRODUCERS])
{
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        if (pids[i] > 0)
            child_end(pids[i]);
        pids[i] = 0;
    }
}
