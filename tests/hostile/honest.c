/* honest.c: the client that keeps every rule, through the library, and writes down what it was answered.
 *
 * Happy path
 *   1. It keeps DEPTH batches in flight: three of four on topics of its own, the fourth on the one that the
 *      attackers write, too.
 *   2. Each answer goes into the ledger file as it comes: acknowledged with its sequence, refused with why.
 *   3. On its own topics everything must be acknowledged, in order, at the next sequence.
 *   4. Told to stop, it waits for what is in flight and leaves with 0.
 *
 * Failure modes, all of which end the run: an error other than a refusal on the shared topic, a sequence that
 * is not the next one, no answer for ANSWER_LIMIT_NS, the connection lost. */
#include "hostile.h"

#include <unistd.h>

#include "walrus.h"

#define DEPTH           8u
#define MOST_ENTRIES    12u
#define ANSWER_LIMIT_NS (20 * SECOND)
#define QUEUE_NS        (5 * MS) /* how long it waits for its turn on the shared topic */
#define VISITS_PER_NAME 50u      /* of the smallest limit a quarter is left for all honest users */
#define TOPICS          (OWN_TOPICS + 1)

struct in_flight {
    uint64_t batch; /* 0 = free */
    uint32_t topic;
    uint32_t count;
    int64_t sent_ns;
};

struct honest {
    struct shared *shared;
    uint64_t seed;
    int ledger;
    walrus *handle;
    walrus_topic *topics[TOPICS];
    uint64_t next_sequence[TOPICS];
    struct in_flight in_flight[DEPTH];
    unsigned used;
    uint64_t batches;
};

void honest_topic(uint32_t number, char name[32])
{
    if (number == OWN_TOPICS)
        snprintf(name, 32, "%s", SHARED_TOPIC);
    else
        snprintf(name, 32, "honest-%u", number);
}

static bool failed(const struct honest *h, const char *what, int rc)
{
    fprintf(stderr, "walrus-hostile: the honest client: %s: %s (%s)\n", what, strerror(-rc),
            h->handle != NULL ? walrus_error(h->handle) : "no handle");
    return false;
}

static bool honest_open(struct honest *h, const struct place *place)
{
    char words[256] = "";
    struct walrus_connect_options options = {.size = sizeof options,
                                             .socket_path = place->socket,
                                             .error = words,
                                             .error_size = sizeof words,
                                             .producer = HONEST_NAME};
    int rc = walrus_connect(&h->handle, &options);
    if (rc != 0) {
        fprintf(stderr, "walrus-hostile: the honest client cannot connect: %s\n", words);
        return false;
    }
    struct walrus_info info = {.size = sizeof info};
    rc = walrus_get_info(h->handle, &info);
    if (rc != 0)
        return failed(h, "info", rc);
    __atomic_store_n(&h->shared->producer, info.producer, __ATOMIC_RELEASE);
    for (uint32_t i = 0; i < TOPICS; i++) {
        char name[32];
        honest_topic(i, name);
        rc = walrus_topic_open(h->handle, name, strlen(name), NULL, &h->topics[i]);
        if (rc != 0)
            return failed(h, name, rc);
        h->next_sequence[i] = 1;
    }
    return true;
}

/* 1 sent, 0 no room just now, or an error. */
static int send_batch(struct honest *h, struct in_flight *slot)
{
    uint64_t number = h->batches + 1;
    struct rng rng = {.state = h->seed ^ (number * 31)};
    uint32_t topic = number % 4 == 0 ? OWN_TOPICS : (uint32_t)(number % OWN_TOPICS);
    uint32_t count = 1 + rng_below(&rng, MOST_ENTRIES);
    walrus_batch *batch;
    int rc = walrus_batch_begin(h->topics[topic], &batch);
    if (rc != 0)
        return rc == -EAGAIN ? 0 : rc;
    for (uint32_t i = 0; i < count && rc == 0; i++) {
        uint8_t entry[ENTRY_MOST];
        uint32_t length = stamp_fill(h->seed, WRITER_HONEST, number, i, count, entry);
        rc = walrus_batch_add(batch, entry, length);
    }
    struct walrus_submit_options options = {.size = sizeof options, .user_data = number};
    if (topic == OWN_TOPICS && number % 8 == 0) {
        options.queue = 1;
        options.deadline_ns = QUEUE_NS;
    }
    if (rc == 0)
        rc = walrus_batch_submit(batch, &options);
    if (rc == -EAGAIN) {
        walrus_batch_abort(batch);
        return 0;
    }
    if (rc != 0)
        return rc;
    *slot = (struct in_flight){.batch = number, .topic = topic, .count = count, .sent_ns = now_ns()};
    h->batches++;
    h->used++;
    return 1;
}

static bool write_ledger(const struct honest *h, const struct ledger_record *record)
{
    if (write(h->ledger, record, sizeof *record) == (ssize_t)sizeof *record)
        return true;
    fprintf(stderr, "walrus-hostile: the ledger cannot be written: %s\n", strerror(errno));
    return false;
}

/* The conductor looks at the counters; nothing orders them. */
/* NOLINTNEXTLINE(readability-non-const-parameter): the builtin writes through it */
static void count_up(uint64_t *counter)
{
    __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
}

static bool take_answer(struct honest *h, const struct walrus_completion *answer)
{
    struct in_flight *slot = NULL;
    for (unsigned i = 0; i < DEPTH; i++)
        if (h->in_flight[i].batch == answer->user_data)
            slot = &h->in_flight[i];
    if (slot == NULL || answer->user_data == 0)
        return failed(h, "an answer to a batch that is not in flight", answer->result);
    struct ledger_record record = {.batch = slot->batch,
                                   .first_sequence = answer->receipt.first_sequence,
                                   .topic = slot->topic,
                                   .count = slot->count,
                                   .result = answer->result};
    bool own = slot->topic < OWN_TOPICS;
    /* A number that was refused is used again: what followed it in flight was refused with it. */
    bool order = answer->result == -EAGAIN && answer->receipt.reason == WALRUS_REASON_ORDER;
    if (answer->result != 0 && (own || (answer->result != -EBUSY && answer->result != -ETIMEDOUT && !order)))
        return failed(h, own ? "a batch on its own topic was not taken" : "a batch on the shared topic",
                      answer->result);
    if (answer->result == 0 && (own ? record.first_sequence != h->next_sequence[slot->topic]
                                    : record.first_sequence < h->next_sequence[slot->topic])) {
        fprintf(stderr, "walrus-hostile: honest batch %llu on topic %u has sequence %llu, not %llu\n",
                (unsigned long long)slot->batch, slot->topic, (unsigned long long)record.first_sequence,
                (unsigned long long)h->next_sequence[slot->topic]);
        return false;
    }
    if (answer->result == 0)
        h->next_sequence[slot->topic] = record.first_sequence + slot->count;
    int64_t took = now_ns() - slot->sent_ns;
    if (took > __atomic_load_n(&h->shared->slowest_ns, __ATOMIC_RELAXED))
        __atomic_store_n(&h->shared->slowest_ns, took, __ATOMIC_RELAXED);
    slot->batch = 0;
    h->used--;
    if (!write_ledger(h, &record))
        return false;
    count_up(&h->shared->answered);
    if (answer->result == 0 && own)
        count_up(&h->shared->acknowledged);
    else if (answer->result != 0)
        count_up(&h->shared->refused);
    return true;
}

static bool take_answers(struct honest *h)
{
    struct walrus_completion answers[DEPTH];
    int rc = walrus_wait(h->handle, 1, ANSWER_LIMIT_NS);
    if (rc == -EINTR)
        return true;
    if (rc != 0)
        return failed(h, rc == -ETIME ? "no answer came" : "wait", rc);
    int count = walrus_reap(h->handle, answers, DEPTH);
    if (count < 0)
        return failed(h, "reap", count);
    for (int i = 0; i < count; i++)
        if (!take_answer(h, &answers[i]))
            return false;
    return true;
}

static bool fill_up(struct honest *h)
{
    for (unsigned i = 0; i < DEPTH; i++) {
        if (h->in_flight[i].batch != 0)
            continue;
        int rc = send_batch(h, &h->in_flight[i]);
        if (rc < 0)
            return failed(h, "a batch cannot be sent", rc);
        if (rc == 0)
            return true;
    }
    return true;
}

static bool told_to_stop(const struct honest *h)
{
    return __atomic_load_n(&h->shared->stop, __ATOMIC_ACQUIRE) != 0;
}

int honest_run(const struct place *place, struct shared *shared, uint64_t seed, int ledger_fd)
{
    struct honest h = {.shared = shared, .seed = seed, .ledger = ledger_fd};
    bool well = honest_open(&h, place);
    if (well)
        __atomic_store_n(&shared->ready, 1, __ATOMIC_RELEASE);
    while (well && (!told_to_stop(&h) || h.used > 0)) {
        if (!told_to_stop(&h))
            well = fill_up(&h);
        if (well && h.used > 0)
            well = take_answers(&h);
    }
    walrus_close(h.handle);
    return well ? 0 : 1;
}

/* ------------------------------------------------------------------------------------- the visitor */

/* Another connection of the honest user, made and closed again and again, now and then as a new producer: the
 * door must stay open. */
int visitor_run(const struct place *place, struct shared *shared, bool own_uid)
{
    for (unsigned visit = 0; __atomic_load_n(&shared->stop, __ATOMIC_ACQUIRE) == 0; visit++) {
        char name[32];
        snprintf(name, sizeof name, "visitor-%u", visit / VISITS_PER_NAME);
        char words[256] = "";
        walrus *handle = NULL;
        struct walrus_connect_options options = {.size = sizeof options,
                                                 .socket_path = place->socket,
                                                 .timeout_ns = ANSWER_LIMIT_NS,
                                                 .arena_bytes = MIN_ARENA_BYTES,
                                                 .window_bytes = MIN_WINDOW_BYTES,
                                                 .producer = name,
                                                 .error = words,
                                                 .error_size = sizeof words};
        int rc = walrus_connect(&handle, &options);
        if (rc == -EDQUOT && !own_uid) /* the attackers have used up what is this user's, too */
            rc = 0;
        else if (rc == 0)
            rc = walrus_append_for_topic(handle, "visitors", "here", 4, NULL, NULL);
        if (rc != 0 && rc != -EBUSY) {
            fprintf(stderr, "walrus-hostile: a second connection of the honest user: %s (%s)\n",
                    strerror(-rc), handle != NULL ? walrus_error(handle) : words);
            walrus_close(handle);
            return 1;
        }
        walrus_close(handle);
        count_up(&shared->second_connections);
        pause_ns(20 * MS);
    }
    return 0;
}
