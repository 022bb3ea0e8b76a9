/* producer.c: one producer: the lines of its topics, in atomic batches of varying size, several in flight.
 *
 *   1. Connect (the broker may be down just now: try again for a while), open the topics.
 *   2. Of each topic read what lies behind the last batch that was answered: that is what became of the
 *      batches in flight when the broker died. It must end where one of them ends, else a batch is there in
 *      part. Go on behind it.
 *   3. Keep `depth` batches of each topic in flight. An answer goes into the ledger file before anything else
 *      happens.
 *   4. Connection lost: take the answers that are there, forget the rest, back to 1.
 *
 * Invariants: done <= sent; the batches in flight cover exactly [done, sent), in order. */
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "demo.h"

struct flight {
    size_t first;
    size_t count;
    int64_t started;
};

struct lane {
    const struct topic_range *range;
    unsigned number; /* of the topic */
    walrus_topic *topic;
    size_t done; /* lines known to be committed */
    size_t sent;
    struct flight flights[MAX_DEPTH]; /* a ring */
    unsigned oldest, flying;
    bool broken; /* what became of its oldest batch is not known: its tail must be read first */
};

struct producer {
    const struct demo *demo;
    unsigned number;
    struct progress *progress;
    struct lane lanes[TOPICS_PER_PRODUCER];
    int ledger;
    walrus *handle;
    bool lost; /* the connection */
    int64_t hungry_since;
    struct error err;
};

/* -------------------------------------------------------------------------------- sizes */

/* The size of the batch that begins at a line: the same each time it is tried. Mostly small, now and then the
 * largest. */
static size_t batch_size(const struct producer *producer, const struct lane *lane, size_t first)
{
    uint64_t x =
        producer->demo->seed ^ (first * UINT64_C(0x9e3779b97f4a7c15)) ^ ((uint64_t)lane->number << 56);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    x ^= x >> 31;
    size_t size =
        x % 64 == 0 ? WALRUS_MAX_BATCH_ENTRIES - (x >> 8) % 8 : 1 + (x >> 8) % ((size_t)1 << ((x >> 32) % 9));
    return (size_t)min_u64(size, lane->range->count - first);
}

static const struct line *line_at(const struct producer *producer, const struct lane *lane, size_t at)
{
    return &producer->demo->input.lines[lane->range->first + at];
}

/* -------------------------------------------------------------------------------- ledger */

void ledger_path(const struct demo *demo, unsigned producer, char out[PATH_MAX + 32])
{
    snprintf(out, PATH_MAX + 32, "%s/ledger-%u", demo->folder, producer);
}

static int note(struct producer *producer, const struct ledger_record *record)
{
    if (write(producer->ledger, record, sizeof *record) != (ssize_t)sizeof *record)
        return error_set(&producer->err, -EIO, "cannot write the ledger: %s", strerror(errno));
    atomic_fetch_add(&producer->progress->committed[producer->number], record->count);
    return 0;
}

/* -------------------------------------------------------------------------------- connecting */

static bool worth_trying_again(int rc)
{
    return rc == -ENOTCONN || rc == -ECONNREFUSED || rc == -ECONNRESET || rc == -ESHUTDOWN ||
           rc == -ETIMEDOUT || rc == -EAGAIN;
}

static int connect_again(struct producer *producer)
{
    char words[512] = "";
    struct walrus_connect_options options = {.size = sizeof options,
                                             .socket_path = producer->demo->broker.socket,
                                             .error = words,
                                             .error_size = sizeof words};
    int64_t limit = now_ns() + START_LIMIT_NS + STALL_LIMIT_NS;
    int rc;
    while ((rc = walrus_connect(&producer->handle, &options)) != 0) {
        if (!worth_trying_again(rc) || now_ns() > limit)
            return error_set(&producer->err, rc, "cannot connect: %s (%s)", words, strerror(-rc));
        poll(NULL, 0, 2);
    }
    producer->lost = false;
    for (unsigned i = 0; i < TOPICS_PER_PRODUCER; i++) {
        struct lane *lane = &producer->lanes[i];
        rc = walrus_topic_open(producer->handle, lane->range->name, strlen(lane->range->name), NULL,
                               &lane->topic);
        if (rc != 0 && worth_trying_again(rc)) {
            producer->lost = true;
            return 0;
        }
        if (rc != 0)
            return error_set(&producer->err, rc, "cannot open topic %s: %s", lane->range->name,
                             walrus_error(producer->handle));
    }
    return 0;
}

static void disconnect(struct producer *producer)
{
    for (unsigned i = 0; i < TOPICS_PER_PRODUCER; i++) {
        walrus_topic_close(producer->lanes[i].topic);
        producer->lanes[i].topic = NULL;
    }
    walrus_close(producer->handle);
    producer->handle = NULL;
}

/* -------------------------------------------------------------------------------- what became of them? */

/* Counts and compares the entries behind the last answered one. */
static int read_tail(struct producer *producer, struct lane *lane, size_t *committed)
{
    *committed = 0;
    for (;;) {
        struct walrus_read_options options = {.size = sizeof options};
        walrus_entries *entries = NULL;
        uint64_t from = lane->done + *committed + 1;
        int rc = walrus_batch_read_for_topic(producer->handle, lane->range->name, from, &options, &entries);
        if (rc == 0 || (rc == -ENOENT && lane->done == 0))
            return 0;
        if (rc < 0)
            return error_set(&producer->err, rc, "cannot read %s from entry %llu: %s", lane->range->name,
                             (unsigned long long)from, walrus_error(producer->handle));
        struct walrus_entry entry;
        for (size_t i = 0; walrus_entries_get(entries, i, &entry) > 0; i++, ++*committed) {
            size_t at = lane->done + *committed;
            const struct line *line = at < lane->sent ? line_at(producer, lane, at) : NULL;
            if (line == NULL || entry.sequence != at + 1 || entry.length != line->length ||
                memcmp(entry.data, line->data, line->length) != 0)
                return error_set(&producer->err, -EBADMSG,
                                 "topic %s: entry %llu is not line %zu, or was never sent", lane->range->name,
                                 (unsigned long long)entry.sequence, at);
        }
        walrus_entries_release(entries);
    }
}

static int resolve(struct producer *producer, struct lane *lane)
{
    size_t committed = 0;
    int rc = read_tail(producer, lane, &committed);
    if (rc != 0)
        return rc;
    while (lane->flying > 0 && committed > 0) {
        const struct flight *flight = &lane->flights[lane->oldest];
        if (committed < flight->count)
            return error_set(&producer->err, -EBADMSG,
                             "topic %s: the batch of %zu entries at entry %zu is there in part: %zu",
                             lane->range->name, flight->count, flight->first + 1, committed);
        struct ledger_record record = {.kind = LEDGER_FOUND,
                                       .topic = lane->number,
                                       .first = flight->first,
                                       .count = flight->count,
                                       .sequence = flight->first + 1};
        rc = note(producer, &record);
        if (rc != 0)
            return rc;
        atomic_fetch_add(&producer->progress->found[producer->number], 1);
        lane->done += flight->count;
        committed -= flight->count;
        lane->oldest = (lane->oldest + 1) % MAX_DEPTH;
        lane->flying--;
    }
    check_bug(committed == 0); /* read_tail found nothing that was never sent */
    lane->sent = lane->done;
    lane->flying = 0;
    lane->broken = false;
    return 0;
}

/* -------------------------------------------------------------------------------- batches */

/* 1 submitted, 0 not now, or an error. */
static int send_batch(struct producer *producer, struct lane *lane)
{
    struct flight flight = {.first = lane->sent, .started = now_ns()};
    flight.count = batch_size(producer, lane, lane->sent);
    walrus_batch *batch = NULL;
    int rc = walrus_batch_begin(lane->topic, &batch);
    for (size_t i = 0; i < flight.count && rc == 0; i++) {
        const struct line *line = line_at(producer, lane, flight.first + i);
        rc = walrus_batch_add(batch, line->data, line->length);
    }
    struct walrus_submit_options options = {.size = sizeof options,
                                            .user_data = lane->number % TOPICS_PER_PRODUCER};
    bool submitted = rc == 0;
    if (rc == 0)
        rc = walrus_batch_submit(batch, &options);
    if (rc == 0) {
        lane->flights[(lane->oldest + lane->flying) % MAX_DEPTH] = flight;
        lane->flying++;
        lane->sent += flight.count;
        return 1;
    }
    if (!submitted || rc == -EAGAIN)
        walrus_batch_abort(batch);
    if (rc == -EAGAIN)
        return 0;
    if (worth_trying_again(rc)) {
        producer->lost = true;
        return 0;
    }
    return error_set(&producer->err, rc, "topic %s: cannot send a batch: %s", lane->range->name,
                     walrus_error(producer->handle));
}

static int take_answer(struct producer *producer, const struct walrus_completion *completion)
{
    check_bug(completion->user_data < TOPICS_PER_PRODUCER);
    struct lane *lane = &producer->lanes[completion->user_data];
    const struct walrus_receipt *receipt = &completion->receipt;
    if (completion->result == -ECONNRESET || completion->result == -ESHUTDOWN) {
        atomic_fetch_add(&producer->progress->unknown[producer->number], 1);
        producer->lost = lane->broken = true;
        return 0;
    }
    if (completion->result != 0)
        return error_set(&producer->err, completion->result,
                         "topic %s: a batch was not committed: %s (reason %u)", lane->range->name,
                         strerror(-completion->result), receipt->reason);
    if (lane->broken || lane->flying == 0)
        return error_set(&producer->err, -EPROTO, "topic %s: an answer behind a batch that has none",
                         lane->range->name);
    const struct flight *flight = &lane->flights[lane->oldest];
    if (receipt->first_sequence != flight->first + 1 || receipt->count != flight->count ||
        receipt->level != WALRUS_LEVEL_DURABLE)
        return error_set(&producer->err, -EBADMSG,
                         "topic %s: the receipt says entries %llu+%llu at level %u, not %zu+%zu at %u",
                         lane->range->name, (unsigned long long)receipt->first_sequence,
                         (unsigned long long)receipt->count, receipt->level, flight->first + 1, flight->count,
                         WALRUS_LEVEL_DURABLE);
    struct ledger_record record = {.kind = LEDGER_ANSWERED,
                                   .topic = lane->number,
                                   .first = flight->first,
                                   .count = flight->count,
                                   .sequence = receipt->first_sequence,
                                   .epoch = receipt->epoch,
                                   .latency_ns = now_ns() - flight->started};
    lane->done += flight->count;
    lane->oldest = (lane->oldest + 1) % MAX_DEPTH;
    lane->flying--;
    atomic_fetch_add(&producer->progress->batches[producer->number], 1);
    return note(producer, &record);
}

static int take_answers(struct producer *producer)
{
    struct walrus_completion completions[32];
    uint32_t flying = walrus_in_flight(producer->handle);
    atomic_store(&producer->progress->in_flight[producer->number], flying);
    if (flying == 0)
        return 0;
    int rc = walrus_wait(producer->handle, 1, STALL_LIMIT_NS);
    if (rc == -ETIME)
        return error_set(&producer->err, rc, "%u batches in flight and no answer for %d s", flying,
                         (int)(STALL_LIMIT_NS / 1000000000));
    if (rc < 0 && rc != -EINTR && rc != -ECONNRESET)
        return error_set(&producer->err, rc, "cannot wait: %s", walrus_error(producer->handle));
    int count = walrus_reap(producer->handle, completions, array_count(completions));
    if (count < 0)
        return error_set(&producer->err, count, "cannot reap: %s", walrus_error(producer->handle));
    for (int i = 0; i < count; i++) {
        rc = take_answer(producer, &completions[i]);
        if (rc != 0)
            return rc;
    }
    if (count == 0 && rc != -EINTR)
        producer->lost = true;
    return 0;
}

/* -------------------------------------------------------------------------------- the loop */

static bool finished(const struct producer *producer)
{
    for (unsigned i = 0; i < TOPICS_PER_PRODUCER; i++) {
        if (producer->lanes[i].done < producer->lanes[i].range->count)
            return false;
    }
    return true;
}

/* Until everything is committed or the connection is lost. */
static int feed(struct producer *producer)
{
    while (!producer->lost && !finished(producer)) {
        bool sent = true;
        while (sent && !producer->lost) {
            sent = false;
            for (unsigned i = 0; i < TOPICS_PER_PRODUCER && !producer->lost; i++) {
                struct lane *lane = &producer->lanes[i];
                if (lane->flying >= producer->demo->depth || lane->sent >= lane->range->count)
                    continue;
                int rc = send_batch(producer, lane);
                if (rc < 0)
                    return rc;
                sent = sent || rc > 0;
            }
        }
        if (walrus_in_flight(producer->handle) > 0) {
            producer->hungry_since = 0;
        } else if (!producer->lost) { /* refused with nothing in flight: clears by itself, or never */
            if (producer->hungry_since == 0)
                producer->hungry_since = now_ns();
            if (now_ns() - producer->hungry_since > STALL_LIMIT_NS)
                return error_set(&producer->err, -EAGAIN, "the broker takes nothing: %s",
                                 walrus_error(producer->handle));
            poll(NULL, 0, 1);
        }
        int rc = take_answers(producer);
        if (rc != 0)
            return rc;
    }
    while (producer->lost && walrus_in_flight(producer->handle) > 0) { /* the rest is -ECONNRESET */
        uint32_t before = walrus_in_flight(producer->handle);
        int rc = take_answers(producer);
        if (rc != 0)
            return rc;
        if (walrus_in_flight(producer->handle) == before)
            break;
    }
    return 0;
}

static int run(struct producer *producer)
{
    for (;;) {
        int rc = connect_again(producer);
        for (unsigned i = 0; i < TOPICS_PER_PRODUCER && rc == 0 && !producer->lost; i++) {
            rc = resolve(producer, &producer->lanes[i]);
            if (rc != 0 &&
                worth_trying_again(rc)) { /* killed again while reading: what is found stays found */
                producer->err = (struct error){0};
                producer->lost = true;
                rc = 0;
            }
        }
        if (rc == 0 && !producer->lost)
            rc = feed(producer);
        atomic_store(&producer->progress->in_flight[producer->number], 0);
        if (rc != 0 || finished(producer))
            return rc;
        disconnect(producer);
        atomic_fetch_add(&producer->progress->reconnects[producer->number], 1);
    }
}

int produce(const struct demo *demo, unsigned number)
{
    char path[PATH_MAX + 32];
    struct producer *producer = calloc(1, sizeof *producer);
    if (producer == NULL)
        return 1;
    producer->demo = demo;
    producer->number = number;
    producer->progress = demo->progress;
    for (unsigned i = 0; i < TOPICS_PER_PRODUCER; i++) {
        producer->lanes[i].number = number * TOPICS_PER_PRODUCER + i;
        producer->lanes[i].range = &demo->topics[producer->lanes[i].number];
    }
    ledger_path(demo, number, path);
    producer->ledger = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int rc = producer->ledger < 0
                 ? error_set(&producer->err, -errno, "cannot make %s: %s", path, strerror(errno))
                 : run(producer);
    if (rc != 0)
        fprintf(stderr, "walrus-demo: producer %u: %s\n", number, producer->err.text);
    if (producer->handle != NULL)
        disconnect(producer);
    close(producer->ledger);
    free(producer);
    return rc == 0 ? 0 : 1;
}
