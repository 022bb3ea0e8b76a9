/* take_over.c: a producer's name goes from process to process while batches are in flight.
 *
 * Each holder asks for the last number that is committed, goes on behind it with several in flight, and
 * works until it is fenced: -ESTALE. Then the next one is at work already. A holder without the flag is
 * refused while another one lives. At the end the topic has every number once, in order, whoever wrote it.
 *
 * Violations: the broker's last number is below one that was acknowledged; a holder's number is answered as
 * a duplicate (two had it); an answer 0 behind an -ESTALE; any other code. */
#include <sys/wait.h>
#include <unistd.h>

#include "soak.h"

#define TOPIC        "taken over"
#define NAME         "the one"
#define DEPTH        8u
#define ENTRIES      3u
#define ENTRY_BYTES  100u
#define HOPS_A_ROUND 500u
#define DISK         (UINT64_C(512) << 20)
#define NOBODY       1u /* in_order_next: no batch is open */

struct words {
    struct verdict verdict;
    uint64_t acked;  /* the highest number */
    uint64_t mine;   /* acknowledged to the newest holder */
    uint32_t newest; /* hop of the newest holder that is at work */
    uint32_t finish;
};

struct holder {
    struct words *words;
    uint32_t hop;
    walrus *handle;
    walrus_topic *topic;
    uint64_t next;
    uint64_t refused; /* the lowest number that was answered -ESTALE; 0 = none */
    bool stale;       /* the library says so, or a number was refused */
};

/* ------------------------------------------------------------------------------------- a holder */

static int send_next(struct holder *holder)
{
    walrus_batch *batch;
    int rc = walrus_batch_begin(holder->topic, &batch);
    for (uint32_t i = 0; i < ENTRIES && rc == 0; i++) {
        struct content content = {.topic = holder->hop,
                                  .number = holder->next,
                                  .index = i,
                                  .count = ENTRIES,
                                  .length = ENTRY_BYTES};
        void *room;
        rc = walrus_batch_reserve(batch, ENTRY_BYTES, &room);
        if (rc == 0)
            content_fill(&content, room);
    }
    struct walrus_submit_options options = {
        .size = sizeof options, .user_data = holder->next, .queue = 1, .number = holder->next};
    if (rc == 0)
        rc = walrus_batch_submit(batch, &options);
    if (rc == 0)
        holder->next++;
    else
        walrus_batch_abort(batch);
    return rc;
}

static void settle(struct holder *holder, const struct walrus_completion *completion)
{
    unsigned long long number = completion->user_data;
    struct words *words = holder->words;
    if (completion->result == -ESTALE) {
        if (holder->refused == 0 || number < holder->refused)
            holder->refused = number;
        holder->stale = true;
        return;
    }
    if (completion->result != 0)
        verdict_set(&words->verdict, "holder %u: number %llu ended with %d", holder->hop, number,
                    completion->result);
    else if (holder->refused != 0 && number > holder->refused)
        verdict_set(&words->verdict, "holder %u: number %llu was committed behind one that was refused",
                    holder->hop, number);
    else if (completion->receipt.flags & WALRUS_RECEIPT_DUPLICATE)
        verdict_set(&words->verdict, "holder %u: number %llu was somebody else's", holder->hop, number);
    uint64_t before = __atomic_load_n(&words->acked, __ATOMIC_ACQUIRE);
    while (completion->result == 0 && before < number &&
           !__atomic_compare_exchange_n(&words->acked, &before, number, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE))
        continue;
    if (__atomic_load_n(&words->newest, __ATOMIC_ACQUIRE) == holder->hop)
        __atomic_add_fetch(&words->mine, 1, __ATOMIC_RELEASE);
}

static void begin(struct holder *holder, const struct run *run)
{
    struct words *words = holder->words;
    struct error err = {0};
    struct walrus_connect_options options = {.producer = NAME, .timeout_ns = PATIENCE_NS};
    int rc;
    if (holder->hop > 1 && holder->hop % 8 == 0) { /* its holder lives */
        rc = soak_connect(run, &options, &holder->handle, &err);
        if (rc != -EBUSY)
            verdict_set(&words->verdict, "holder %u: without the flag the name was not refused but: %d %s",
                        holder->hop, rc, err.text);
        err = (struct error){0};
    }
    options.flags = WALRUS_TAKE_OVER;
    rc = soak_connect(run, &options, &holder->handle, &err);
    if (rc == 0)
        rc = walrus_topic_open(holder->handle, TOPIC, strlen(TOPIC), NULL, &holder->topic);
    if (rc < 0) {
        verdict_set(&words->verdict, "holder %u cannot take over: %d %s", holder->hop, rc, err.text);
        _exit(1);
    }
    uint64_t last = walrus_topic_last_number(holder->topic);
    uint64_t acked = __atomic_load_n(&words->acked, __ATOMIC_ACQUIRE);
    if (last < acked)
        verdict_set(&words->verdict,
                    "holder %u: number %llu was acknowledged, the broker knows %llu as the last", holder->hop,
                    (unsigned long long)acked, (unsigned long long)last);
    holder->next = last + 1;
    __atomic_store_n(&words->mine, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&words->newest, holder->hop, __ATOMIC_RELEASE);
}

__attribute__((noreturn)) static void be_holder(const struct run *run, struct words *words, uint32_t hop)
{
    struct holder holder = {.words = words, .hop = hop};
    struct walrus_completion done[DEPTH];
    begin(&holder, run);
    for (;;) {
        bool finish = __atomic_load_n(&words->finish, __ATOMIC_ACQUIRE) != 0;
        int rc = 0;
        while (!finish && !holder.stale && rc == 0 && walrus_in_flight(holder.handle) < DEPTH)
            rc = send_next(&holder);
        if (rc == -ESTALE)
            holder.stale = true;
        else if (rc < 0 && rc != -EAGAIN)
            verdict_set(&words->verdict, "holder %u: cannot send: %s", hop, walrus_error(holder.handle));
        if (walrus_in_flight(holder.handle) == 0 && (finish || holder.stale || rc < 0))
            break;
        if (walrus_in_flight(holder.handle) > 0)
            (void)!walrus_wait(holder.handle, 1, NS_PER_S);
        int count = walrus_reap(holder.handle, done, DEPTH);
        for (int i = 0; i < count; i++)
            settle(&holder, &done[i]);
        if (count < 0) {
            verdict_set(&words->verdict, "holder %u: reap: %s", hop, walrus_error(holder.handle));
            break;
        }
    }
    walrus_close(holder.handle);
    _exit(0);
}

/* ------------------------------------------------------------------------------------- the job */

/* Until the holder of `hop` has got some numbers through. */
static int wait_for_holder(struct words *words, uint32_t hop, uint64_t numbers, struct error *err)
{
    int64_t limit = now_ns() + PATIENCE_NS;
    for (;;) {
        if (__atomic_load_n(&words->newest, __ATOMIC_ACQUIRE) == hop &&
            __atomic_load_n(&words->mine, __ATOMIC_ACQUIRE) >= numbers)
            return verdict_check(&words->verdict, err);
        int rc = verdict_check(&words->verdict, err);
        if (rc == 0)
            rc = run_interrupted(err);
        if (rc < 0)
            return rc;
        if (now_ns() > limit)
            return error_set(err, -ETIMEDOUT, "holder %u does not get to work", hop);
        pause_ns(NS_PER_MS / 4);
    }
}

static int end_holder(struct words *words, pid_t *pid, struct error *err)
{
    int status = 0;
    if (*pid == 0)
        return 0;
    int rc = child_wait(*pid, &status, err);
    *pid = 0;
    if (rc < 0)
        return error_wrap(err, "a fenced holder");
    rc = verdict_check(&words->verdict, err);
    return rc == 0 && status != 0
               ? error_set(err, -ECHILD, "a holder ended with status %#x", (unsigned)status)
               : rc;
}

static int read_all(const struct run *run, uint64_t acked, struct error *err)
{
    struct in_order of[NOBODY] = {{0}};
    uint32_t open = NOBODY;
    uint64_t from = 1;
    walrus *handle;
    int count, rc = soak_connect(run, &(struct walrus_connect_options){0}, &handle, err);
    if (rc < 0)
        return rc;
    walrus_entries *entries;
    while (rc == 0 && (count = walrus_batch_read_for_topic(handle, TOPIC, from, NULL, &entries)) > 0) {
        for (size_t i = 0; i < (size_t)count && rc == 0; i++) {
            struct walrus_entry entry = {0};
            struct content content;
            (void)!walrus_entries_get(entries, i, &entry);
            rc = content_read(entry.data, entry.length, &content, err);
            if (rc == 0)
                rc = in_order_next(of, NOBODY, &open, &content, err);
        }
        from = walrus_entries_next(entries);
        walrus_entries_release(entries);
    }
    if (rc == 0 && count < 0)
        rc = error_set(err, count, "reading back: %s", walrus_error(handle));
    if (rc == 0 && (of[0].number != acked || open != NOBODY))
        rc = error_set(err, -EBADMSG, "%llu numbers are there, %llu were acknowledged",
                       (unsigned long long)of[0].number, (unsigned long long)acked);
    walrus_close(handle);
    return rc;
}

static int round_of_hops(struct run *run, uint64_t hops, uint64_t *done, uint64_t *numbers, struct error *err)
{
    struct words *words = shared_new(sizeof *words);
    pid_t before = 0, now = 0;
    if (words == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int rc = broker_start(run, err);
    for (uint32_t hop = 1; hop <= hops && rc == 0; hop++) {
        before = now;
        now = child_fork();
        if (now == 0)
            be_holder(run, words, hop);
        if (now < 0)
            rc = error_set(err, -errno, "fork: %s", strerror(errno));
        if (rc == 0)
            rc = wait_for_holder(words, hop, 1 + random_below(&run->random, 60), err);
        if (rc == 0)
            rc = end_holder(words, &before, err);
        ++*done;
        run->done = *done;
        run_progress(run, "taken over %llu times", (unsigned long long)*done);
    }
    __atomic_store_n(&words->finish, 1, __ATOMIC_RELEASE);
    if (rc == 0)
        rc = end_holder(words, &now, err);
    child_end(before);
    child_end(now);
    if (rc == 0)
        rc = read_all(run, words->acked, err);
    *numbers += words->acked;
    if (rc == 0)
        rc = broker_stop(run, err);
    store_remove(run);
    shared_free(words, sizeof *words);
    return rc;
}

int job_take_over(struct run *run, struct error *err)
{
    uint64_t hops = 0, numbers = 0;
    int rc = place_needs(run, DISK, err);
    while (rc == 0 && run_goes_on(run, hops))
        rc = round_of_hops(run, run->required == 0 ? HOPS_A_ROUND : min_u64(run->required, HOPS_A_ROUND),
                           &hops, &numbers, err);
    if (rc == 0)
        snprintf(run->totals, sizeof run->totals,
                 "taken over %llu times; %llu numbers, each once and in order", (unsigned long long)hops,
                 (unsigned long long)numbers);
    return rc;
}
