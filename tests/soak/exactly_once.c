/* exactly_once.c: four producers that send again, a broker that is killed again and again.
 *
 *   1. Each producer (a process, with a name and WALRUS_RECONNECT) writes numbered batches to a topic of its
 * own and to one that all share, queued, several in flight. What a batch holds follows from its number, so
 * that it can be made again. Producer 0 sends one larger than its arena now and then.
 *   2. The broker is killed when some more batches have been acknowledged, and started again. Now and then a
 *      producer is killed as well; its successor asks what is committed and goes on behind it.
 *   3. After the last kill the producers finish what they have begun. Then everything is read: each entry
 * once, in order per producer, no batch within another one, and nothing acknowledged is missing.
 *
 * A number that comes back as refused or rolled back is sent again with the same content once nothing of the
 * topic is in flight any more; what followed it in flight must have been refused, too (only a commit takes a
 * number): an answer 0 behind a gap is a violation. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "soak.h"

#define PRODUCERS     4u
#define TOPICS        2u /* of a producer: its own, the shared one */
#define DEPTH         6u /* in flight per topic */
#define MOST_ENTRIES  40u
#define STREAM_EVERY  300u
#define STREAM_MOST   12u          /* entries of up to STREAM_ENTRY bytes */
#define STREAM_ENTRY  (512u << 10) /* half of the default arena: two of them outgrow it */
#define KILLS_A_ROUND 100u
#define DISK_LONG     (UINT64_C(8) << 30)
#define DISK_SHORT    (UINT64_C(1) << 30)

struct tally {
    uint64_t submitted[TOPICS]; /* the highest number that was given to the library */
    uint64_t acked[TOPICS];     /* the highest number answered with 0 */
    uint64_t entries;           /* acknowledged */
    uint64_t duplicates, again, streams, reconnects;
};

struct words {
    struct verdict verdict;
    uint32_t finish; /* producers: complete what is begun, then end */
    struct tally tallies[PRODUCERS];
};

struct producer {
    const struct run *run;
    struct words *words;
    struct tally *tally;
    uint32_t index;
    walrus *handle;
    walrus_topic *topics[TOPICS];
    uint64_t next[TOPICS];
    uint32_t in_flight[TOPICS];
    bool failed[TOPICS]; /* a number came back: nothing new until all are back */
    uint8_t *room;       /* STREAM_ENTRY */
};

static void topic_name(char out[32], uint32_t producer, uint32_t which)
{
    if (which == 0)
        snprintf(out, 32, "of producer %u", producer);
    else
        snprintf(out, 32, "of all");
}

/* ------------------------------------------------------------------------------------- batches */

struct plan {
    uint32_t count;
    bool stream;
    uint64_t seed;
};

static struct plan plan_of(const struct run *run, uint32_t producer, uint32_t which, uint64_t number)
{
    struct plan plan = {.seed = run->soak->seed ^ number * 977 ^ (uint64_t)producer << 40 ^
                                (uint64_t)which << 50};
    plan.stream = producer == 0 && number % STREAM_EVERY == 7 + which;
    plan.count = 1 + (uint32_t)random_below(&plan.seed, plan.stream ? STREAM_MOST : MOST_ENTRIES);
    if (plan.stream && plan.count < 3)
        plan.count = 3;
    return plan;
}

static uint32_t entry_length(struct plan *plan)
{
    return plan->stream ? STREAM_ENTRY - (uint32_t)random_below(&plan->seed, 1000)
                        : CONTENT_LEAST + (uint32_t)random_below(&plan->seed, 120);
}

static int fill(struct producer *producer, uint32_t which, uint64_t number, struct plan plan,
                walrus_batch *batch)
{
    int rc = walrus_batch_set_queue(batch, 1);
    for (uint32_t i = 0; i < plan.count && rc == 0; i++) {
        struct content content = {.producer = producer->index,
                                  .topic = which,
                                  .number = number,
                                  .index = i,
                                  .count = plan.count,
                                  .length = entry_length(&plan)};
        void *room = producer->room;
        bool in_place = !plan.stream && random_below(&plan.seed, 2) == 0;
        if (in_place)
            rc = walrus_batch_reserve(batch, content.length, &room);
        if (rc == 0)
            content_fill(&content, room);
        if (rc == 0 && !in_place)
            rc = walrus_batch_add(batch, room, content.length);
    }
    return rc;
}

/* Sends the next number. 0, or an error that says: later. */
static int send_next(struct producer *producer, uint32_t which)
{
    uint64_t number = producer->next[which];
    struct plan plan = plan_of(producer->run, producer->index, which, number);
    walrus_batch *batch;
    int rc = walrus_batch_begin(producer->topics[which], &batch);
    if (rc < 0)
        return rc;
    if (number > producer->tally->submitted[which])
        __atomic_store_n(&producer->tally->submitted[which], number, __ATOMIC_RELEASE);
    rc = fill(producer, which, number, plan, batch);
    struct walrus_submit_options options = {
        .size = sizeof options, .user_data = number * TOPICS + which, .queue = 1, .number = number};
    options.level = producer->run->soak->ask_durable ? WALRUS_LEVEL_DURABLE : 0;
    if (rc == 0)
        rc = walrus_batch_submit(batch, &options);
    if (rc < 0) {
        walrus_batch_abort(batch);
        return rc;
    }
    producer->next[which]++;
    producer->in_flight[which]++;
    producer->tally->streams += plan.stream;
    return 0;
}

/* Would it help to send the same number again? */
static bool comes_again(int result)
{
    return result == -EAGAIN || result == -ECANCELED || result == -EBUSY;
}

static void settle(struct producer *producer, const struct walrus_completion *completion)
{
    uint32_t which = (uint32_t)(completion->user_data % TOPICS);
    uint64_t number = completion->user_data / TOPICS;
    const struct walrus_receipt *receipt = &completion->receipt;
    struct tally *tally = producer->tally;
    producer->in_flight[which]--;
    if (completion->result != 0) {
        producer->failed[which] = true;
        tally->again++;
        if (!comes_again(completion->result))
            verdict_set(&producer->words->verdict, "producer %u, topic %u: number %llu ended with %d",
                        producer->index, which, (unsigned long long)number, completion->result);
        return;
    }
    if (number != tally->acked[which] + 1)
        verdict_set(&producer->words->verdict,
                    "producer %u, topic %u: number %llu was committed, the one before it was %llu",
                    producer->index, which, (unsigned long long)number,
                    (unsigned long long)tally->acked[which]);
    struct plan plan = plan_of(producer->run, producer->index, which, number);
    bool duplicate = (receipt->flags & WALRUS_RECEIPT_DUPLICATE) != 0;
    if (receipt->number != number || (receipt->count != plan.count && !(duplicate && receipt->count == 0)))
        verdict_set(
            &producer->words->verdict,
            "producer %u, topic %u: the receipt of number %llu with %u entries says number %llu and %llu",
            producer->index, which, (unsigned long long)number, plan.count,
            (unsigned long long)receipt->number, (unsigned long long)receipt->count);
    tally->duplicates += duplicate;
    tally->entries += plan.count;
    __atomic_store_n(&tally->acked[which], number, __ATOMIC_RELEASE);
}

/* ------------------------------------------------------------------------------------- a producer */

static bool may_send(const struct producer *producer, uint32_t which)
{
    if (producer->failed[which] || producer->in_flight[which] >= DEPTH)
        return false;
    return __atomic_load_n(&producer->words->finish, __ATOMIC_ACQUIRE) == 0 ||
           producer->next[which] <= producer->tally->submitted[which];
}

static void give_up(struct producer *producer, const char *what, int rc)
{
    verdict_set(&producer->words->verdict, "producer %u: %s: %s (%d)", producer->index, what,
                producer->handle != NULL ? walrus_error(producer->handle) : "", rc);
    _exit(1);
}

static void reap(struct producer *producer)
{
    struct walrus_completion done[32];
    int count = walrus_reap(producer->handle, done, 32);
    if (count < 0)
        give_up(producer, "reap", count);
    for (int i = 0; i < count; i++)
        settle(producer, &done[i]);
    for (uint32_t which = 0; which < TOPICS; which++) {
        if (producer->failed[which] && producer->in_flight[which] == 0) {
            producer->failed[which] = false;
            producer->next[which] = producer->tally->acked[which] + 1;
        }
    }
}

static void open_topics(struct producer *producer)
{
    for (uint32_t which = 0; which < TOPICS; which++) {
        char name[32];
        topic_name(name, producer->index, which);
        int rc = walrus_topic_open(producer->handle, name, strlen(name), NULL, &producer->topics[which]);
        if (rc < 0)
            give_up(producer, "opening a topic", rc);
        uint64_t last = walrus_topic_last_number(producer->topics[which]);
        uint64_t acked = producer->tally->acked[which], submitted = producer->tally->submitted[which];
        if (last < acked || last > submitted)
            verdict_set(
                &producer->words->verdict,
                "producer %u, topic %u: the broker has number %llu as the last one; %llu was acknowledged, "
                "%llu sent",
                producer->index, which, (unsigned long long)last, (unsigned long long)acked,
                (unsigned long long)submitted);
        __atomic_store_n(&producer->tally->acked[which], last, __ATOMIC_RELEASE);
        producer->next[which] = last + 1;
    }
}

__attribute__((noreturn)) static void be_producer(const struct run *run, struct words *words, uint32_t index)
{
    char name[32];
    struct error err = {0};
    struct producer producer = {.run = run,
                                .words = words,
                                .tally = &words->tallies[index],
                                .index = index,
                                .room = malloc(STREAM_ENTRY)};
    snprintf(name, sizeof name, "producer %u", index);
    struct walrus_connect_options options = {.producer = name,
                                             .flags = WALRUS_RECONNECT,
                                             .reconnect_ns = PATIENCE_NS,
                                             .timeout_ns = 30 * NS_PER_S};
    int64_t limit = now_ns() + PATIENCE_NS;
    int rc;
    while ((rc = soak_connect(run, &options, &producer.handle, &err)) < 0 && now_ns() < limit) {
        err = (struct error){0};
        pause_ns(5 * NS_PER_MS); /* the broker is being started */
    }
    if (rc < 0 || producer.room == NULL) {
        verdict_set(&words->verdict, "producer %u cannot connect: %s", index, err.text);
        _exit(1);
    }
    open_topics(&producer);
    for (;;) {
        bool sent = false, done = __atomic_load_n(&words->finish, __ATOMIC_ACQUIRE) != 0;
        for (uint32_t which = 0; which < TOPICS; which++) {
            if (may_send(&producer, which))
                sent |= send_next(&producer, which) == 0;
            done = done && producer.tally->acked[which] == producer.tally->submitted[which];
        }
        if (done)
            break;
        if (!sent && walrus_in_flight(producer.handle) > 0)
            (void)!walrus_wait(producer.handle, 1, 100 * NS_PER_MS);
        else if (!sent)
            pause_ns(NS_PER_MS);
        reap(&producer);
    }
    struct walrus_info info = {.size = sizeof info};
    if (walrus_get_info(producer.handle, &info) == 0)
        producer.tally->reconnects += info.reconnects;
    walrus_close(producer.handle);
    _exit(0);
}

/* ------------------------------------------------------------------------------------- reading back */

static int check_entries(const walrus_entries *entries, struct in_order *of, uint32_t *open,
                         struct error *err)
{
    struct walrus_entry entry;
    int rc = 0;
    for (size_t i = 0; rc == 0 && walrus_entries_get(entries, i, &entry) == 1; i++) {
        struct content content;
        rc = content_read(entry.data, entry.length, &content, err);
        if (rc == 0)
            rc = in_order_next(of, PRODUCERS, open, &content, err);
        if (rc < 0)
            return error_wrap(err, "entry %llu", (unsigned long long)entry.sequence);
    }
    return 0;
}

/* Each entry once, in order per producer; of[] gets what there is. */
static int read_topic(const struct run *run, walrus *handle, const char *name, struct in_order *of,
                      struct error *err)
{
    uint32_t open = PRODUCERS;
    uint64_t from = 1;
    for (;;) {
        walrus_entries *entries = NULL;
        int rc = walrus_batch_read_for_topic(handle, name, from, NULL, &entries);
        if (rc == -ENOENT)
            return 0; /* nothing was written to it */
        if (rc < 0)
            return error_set(err, rc, "topic '%s': %s", name, walrus_error(handle));
        if (rc == 0)
            break;
        rc = check_entries(entries, of, &open, err);
        from = walrus_entries_next(entries);
        walrus_entries_release(entries);
        if (rc == 0)
            rc = run_interrupted(err);
        if (rc < 0)
            return error_wrap(err, "topic '%s'", name);
    }
    (void)run;
    if (open != PRODUCERS)
        return error_set(err, -EBADMSG, "topic '%s': batch %llu of producer %u is not complete", name,
                         (unsigned long long)of[open].number, open);
    return 0;
}

static int check_last(const struct in_order *of, const struct words *words, uint32_t producer, uint32_t which,
                      struct error *err)
{
    uint64_t acked = words->tallies[producer].acked[which];
    if (of[producer].number == acked)
        return 0;
    return error_set(err, -EBADMSG, "producer %u, topic %u: %llu batches are there, %llu were acknowledged",
                     producer, which, (unsigned long long)of[producer].number, (unsigned long long)acked);
}

static int read_all(const struct run *run, const struct words *words, struct error *err)
{
    walrus *handle;
    char name[32];
    int rc = soak_connect(run, &(struct walrus_connect_options){.window_bytes = 8u << 20}, &handle, err);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i <= PRODUCERS && rc == 0; i++) { /* the last one is the topic of all */
        struct in_order of[PRODUCERS] = {{0}};
        uint32_t which = i == PRODUCERS;
        topic_name(name, i, which);
        rc = read_topic(run, handle, name, of, err);
        for (uint32_t p = 0; p < PRODUCERS && rc == 0; p++)
            if (which == 1 || p == i)
                rc = check_last(of, words, p, which, err);
    }
    walrus_close(handle);
    return rc;
}

/* ------------------------------------------------------------------------------------- kills */

struct total {
    uint64_t kills, producer_kills, batches, entries, duplicates, again, streams;
};

static uint64_t acked_in_all(const struct words *words)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < PRODUCERS; i++)
        for (uint32_t which = 0; which < TOPICS; which++)
            sum += __atomic_load_n(&words->tallies[i].acked[which], __ATOMIC_ACQUIRE);
    return sum;
}

/* Until so many more batches are acknowledged, and a little longer. */
static int let_work(struct run *run, struct words *words, uint64_t more, struct error *err)
{
    uint64_t wanted = acked_in_all(words) + more;
    int64_t limit = now_ns() + PATIENCE_NS;
    while (acked_in_all(words) < wanted) {
        int rc = verdict_check(&words->verdict, err);
        if (rc == 0)
            rc = run_interrupted(err);
        if (rc < 0)
            return rc;
        if (now_ns() > limit)
            return error_set(err, -ETIMEDOUT, "nothing is committed any more");
        pause_ns(NS_PER_MS);
    }
    pause_ns((int64_t)random_below(&run->random, 10 * (uint64_t)NS_PER_MS));
    return 0;
}

static int start_producer(const struct run *run, struct words *words, uint32_t index, pid_t *pid,
                          struct error *err)
{
    *pid = child_fork();
    if (*pid == 0)
        be_producer(run, words, index);
    return *pid > 0 ? 0 : error_set(err, -errno, "fork: %s", strerror(errno));
}

static int kill_and_start(struct run *run, struct words *words, pid_t pids[PRODUCERS], struct total *total,
                          struct error *err)
{
    uint32_t victim = (uint32_t)random_below(&run->random, PRODUCERS);
    bool producer_too = random_below(&run->random, 4) == 0;
    bool before = random_below(&run->random, 2) == 0;
    int rc = 0;
    if (producer_too && before)
        child_end(pids[victim]);
    broker_kill(run);
    total->kills++;
    if (producer_too && !before)
        child_end(pids[victim]);
    if (producer_too) {
        total->producer_kills++;
        rc = start_producer(run, words, victim, &pids[victim], err);
    }
    return rc == 0 ? broker_start(run, err) : rc;
}

static int finish(struct words *words, pid_t pids[PRODUCERS], struct error *err)
{
    int result = 0;
    __atomic_store_n(&words->finish, 1, __ATOMIC_RELEASE);
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        int status = 0, rc = child_wait(pids[i], &status, err);
        pids[i] = 0;
        if (rc < 0 && result == 0)
            result = error_wrap(err, "producer %u", i);
        else if (rc == 0 && result == 0 && status != 0 && verdict_check(&words->verdict, err) == 0)
            result = error_set(err, -ECHILD, "producer %u ended with status %#x", i, (unsigned)status);
    }
    int rc = verdict_check(&words->verdict, err);
    return rc < 0 ? rc : result;
}

/* `kills` kills on a store of its own. */
static int round_of_kills(struct run *run, uint64_t kills, struct total *total, struct error *err)
{
    struct words *words = shared_new(sizeof *words);
    pid_t pids[PRODUCERS] = {0};
    if (words == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int rc = broker_start(run, err);
    for (uint32_t i = 0; i < PRODUCERS && rc == 0; i++)
        rc = start_producer(run, words, i, &pids[i], err);
    for (uint64_t i = 0; i < kills && rc == 0; i++) {
        rc = let_work(run, words, 1 + random_below(&run->random, 200), err);
        if (rc == 0)
            rc = kill_and_start(run, words, pids, total, err);
        run->done = run->kills = total->kills;
        run->batches = total->batches + acked_in_all(words);
        run_progress(run, "%llu kills, %llu batches acknowledged", (unsigned long long)run->kills,
                     (unsigned long long)run->batches);
    }
    if (rc == 0)
        rc = let_work(run, words, PRODUCERS, err);
    if (rc == 0)
        rc = finish(words, pids, err);
    if (rc == 0)
        rc = read_all(run, words, err);
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        child_end(pids[i]);
        total->entries += words->tallies[i].entries;
        total->duplicates += words->tallies[i].duplicates;
        total->again += words->tallies[i].again;
        total->streams += words->tallies[i].streams;
    }
    total->batches += acked_in_all(words);
    if (rc == 0)
        rc = broker_stop(run, err);
    if (rc == 0)
        store_remove(run);
    shared_free(words, sizeof *words);
    return rc;
}

int job_exactly_once(struct run *run, struct error *err)
{
    struct total total = {0};
    int rc = place_needs(run, run->soak->is_short ? DISK_SHORT : DISK_LONG, err);
    while (rc == 0 && run_goes_on(run, total.kills))
        rc = round_of_kills(run, run->required == 0 ? KILLS_A_ROUND : min_u64(run->required, KILLS_A_ROUND),
                            &total, err);
    if (rc == 0)
        snprintf(run->totals, sizeof run->totals,
                 "%llu kills of the broker and %llu of producers: %llu batches, each there once and in order "
                 "(%llu of them streams); %llu sent again were known as committed, %llu were not",
                 (unsigned long long)total.kills, (unsigned long long)total.producer_kills,
                 (unsigned long long)total.batches, (unsigned long long)total.streams,
                 (unsigned long long)total.duplicates, (unsigned long long)total.again);
    return rc;
}
