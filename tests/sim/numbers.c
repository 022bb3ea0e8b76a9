/* numbers.c: the producers of a run: programs that number their batches, die with the broker or outlive it,
 * and send again what they do not know the end of.
 *
 *   1. run_resume(), when a start serves: each takes its producer again, by name or by id, and asks for every
 *      number it has ever claimed. The answer settles that number in the ledger, before anybody has read.
 *   2. run_try_numbers(), run_number(), run_number_stream(): the next numbers. The ledger knows from the
 *      answers which are committed and which are admitted, so that every answer of log_write is foreseen:
 *
 *        0             -EINVAL
 *        1 to last     1, a duplicate
 *        last + 1 to admitted, or above admitted + 1   -EAGAIN, out of order
 *        admitted + 1  taken, or refused for another reason
 *
 *   3. run_again(), run_resubmit(), run_disorder(): what a good program does after a loss, and what a bad one
 *      does at any time.
 *
 * An anonymous producer may be gone after a start: -ENOENT only if nothing of it can be committed, -ENODATA
 * only if so many others may be that the log was free to forget it. Its program goes on with a new one. */
#include "run.h"

#define FIRST_UID 1000u

/* Two of those without names are one user's. */
static uint32_t uid_of(uint32_t role)
{
    return FIRST_UID + (role == SIM_NAMED + 1 ? SIM_NAMED : role);
}

const void *run_owner(const struct run_state *run, uint32_t role)
{
    return (const char *)run + 16 + role;
}

/* ------------------------------------------------------------------------------ what is known */

/* The last chunk of a stream has gathered while a group with another one of its chunks failed: it will be
 * answered with the error, and its number is free from then on. */
static void find_dead_streams(struct run_state *run)
{
    for (struct sim_stream *stream = run->streams; stream != NULL; stream = stream->next) {
        struct batch *batch = ledger_at(run->ledger, stream->batch);
        if (stream->role == 0 || !stream->sent_last || !stream->open || stream->dead ||
            !stream->stream.failed || batch->fate != FATE_OPEN)
            continue;
        stream->dead = true;
        batch->flying = false;
        batch->fate = FATE_FAILED;
    }
}

void run_numbers(struct run_state *run, uint8_t producer, uint32_t topic, uint32_t *last, uint32_t *admitted)
{
    find_dead_streams(run);
    ledger_numbers(run->ledger, producer, topic, last, admitted);
}

/* ------------------------------------------------------------------------------ joining */

/* The log may forget anonymous producers when there are more than it has room for. */
static bool may_be_forgotten(const struct ledger *ledger, uint8_t producer)
{
    uint32_t others = 0;
    for (uint32_t i = 0; i < ledger->producer_count; i++)
        others += i + 1 != producer && ledger->producers[i].role >= SIM_NAMED &&
                  ledger_may_be_committed(ledger, (uint8_t)(i + 1));
    return ledger->max_anonymous != 0 && others >= ledger->max_anonymous;
}

/* Every number that the producer claims, in any topic: `committed` asks the log. */
static void resolve(struct run_state *run, uint8_t producer, const struct producer *handle)
{
    struct ledger *ledger = run->ledger;
    for (uint32_t i = 0; i < ledger->count && ledger->failure[0] == 0; i++) {
        struct batch *batch = &ledger->batches[i];
        if (batch->producer != producer || batch->claim == 0 ||
            ledger_claimant(ledger, producer, batch->topic, batch->number) != batch)
            continue;
        uint64_t first = 0, entries = 0;
        int committed = 0;
        struct topic *topic = run_topic(run, batch->topic);
        if (handle != NULL && topic != NULL)
            committed = log_query(run->log, handle, topic, batch->number, &first, &entries);
        if (committed != 0 && committed != 1)
            ledger_fail(ledger, "G5: number %u of producer %u: a query right after a start says %d",
                        batch->number, producer, committed);
        ledger_resolve(ledger, batch, committed == 1, run->end_before);
        if (committed == 1 && handle != NULL && topic != NULL &&
            batch->number > log_last_number(run->log, handle, topic))
            ledger_fail(ledger, "G5: number %u of producer %u is committed, the last one is said to be lower",
                        batch->number, producer);
        if (first != 0 && batch->sequenced && (first != batch->first_sequence || entries != batch->entries))
            ledger_fail(ledger, "G5: number %u of producer %u lies at sequence %llu, a query says %llu",
                        batch->number, producer, (unsigned long long)batch->first_sequence,
                        (unsigned long long)first);
    }
}

/* Takes the anonymous producer again: 0, -ENOENT: nothing of it is committed, -ENODATA: it was forgotten. */
static int find_again(struct run_state *run, uint8_t producer, struct producer **handle)
{
    struct ledger *ledger = run->ledger;
    struct known_producer *known = &ledger->producers[producer - 1];
    *handle = NULL;
    int error = log_producer_again(run->log, known->id, uid_of(known->role), handle);
    if (error == -EACCES && ledger_producer_may_rot(ledger, producer)) /* its id is somebody else's now */
        error = -ENODATA;
    if (error == -ENODATA &&
        (may_be_forgotten(ledger, producer) || ledger_producer_may_rot(ledger, producer)))
        known->forgotten = true;
    else if (error != 0 && error != -ENOENT)
        ledger_fail(ledger, "G5: anonymous producer %u (id %llx) cannot be had again: %d", producer,
                    (unsigned long long)known->id, error);
    if (error == 0 && log_producer_id(*handle) != known->id)
        ledger_fail(ledger, "producer %u: asked for id %llx, got %llx", producer,
                    (unsigned long long)known->id, (unsigned long long)log_producer_id(*handle));
    return error;
}

static void join_named(struct run_state *run, uint32_t role, bool at_start)
{
    struct ledger *ledger = run->ledger;
    char name[32];
    int length = snprintf(name, sizeof name, PRODUCER_NAME, role);
    struct producer *handle = NULL;
    int error = log_producer_named(run->log, name, (size_t)length, uid_of(role), &handle);
    if (error != 0) {
        ledger_fail(ledger, "producer \"%s\" cannot be had: %d", name, error);
        return;
    }
    uint8_t producer = ledger->roles[role];
    if (producer == 0)
        producer = ledger->roles[role] = ledger_add_producer(ledger, role, log_producer_id(handle));
    check_bug(producer != 0); /* the named ones are few */
    run->producers[role] = handle;
    /* Another id: nothing of it is committed, which the queries must then say. */
    uint64_t id = log_producer_id(handle), before = ledger->producers[producer - 1].id;
    ledger->producers[producer - 1].id = id;
    for (uint32_t i = 0; i < ledger->producer_count && id != before; i++) {
        if (i + 1 != producer && ledger->producers[i].id == id &&
            !ledger_producer_may_rot(ledger, (uint8_t)(i + 1)))
            ledger_fail(ledger, "producer %u gets the id %llx of producer %u", producer,
                        (unsigned long long)id, i + 1);
    }
    if (at_start)
        resolve(run, producer, handle);
}

static void join_anonymous(struct run_state *run, uint32_t role, bool at_start)
{
    struct ledger *ledger = run->ledger;
    uint8_t producer = ledger->roles[role];
    struct producer *handle = NULL;
    if (producer != 0) {
        int error = find_again(run, producer, &handle);
        if (at_start && error != -ENODATA)
            resolve(run, producer, handle);
        uint32_t last = 0, admitted;
        for (uint32_t topic = 0; error == -ENOENT && topic < SIM_TOPICS && last == 0; topic++)
            ledger_numbers(ledger, producer, topic, &last, &admitted);
        if (last != 0)
            ledger_fail(ledger, "G5: producer %u is said never to have committed anything", producer);
    }
    if (handle == NULL && ledger->producer_count < SIM_PRODUCERS) {
        int error = log_producer_anonymous(run->log, uid_of(role), &handle);
        if (error != 0) {
            ledger_fail(ledger, "no new anonymous producer: %d", error);
            return;
        }
        ledger->roles[role] = ledger_add_producer(ledger, role, log_producer_id(handle));
    }
    run->producers[role] = handle;
}

static void join(struct run_state *run, uint32_t role, bool at_start)
{
    if (role < SIM_NAMED)
        join_named(run, role, at_start);
    else
        join_anonymous(run, role, at_start);
}

/* Producers that nobody plays any more: what is still known of them must be right. */
static void look_at_others(struct run_state *run)
{
    struct ledger *ledger = run->ledger;
    for (uint32_t i = 0; i < ledger->producer_count && ledger->failure[0] == 0; i++) {
        uint8_t producer = (uint8_t)(i + 1);
        const struct known_producer *known = &ledger->producers[i];
        if (known->role < SIM_NAMED || ledger->roles[known->role] == producer)
            continue;
        struct producer *handle;
        if (find_again(run, producer, &handle) != -ENODATA)
            resolve(run, producer, handle);
        if (handle != NULL)
            log_producer_release(run->log, handle);
    }
}

/* What the log says is committed, and what the answers so far say, are the same. */
static void compare(struct run_state *run, uint32_t role, uint32_t topic)
{
    struct ledger *ledger = run->ledger;
    uint32_t last, admitted;
    run_numbers(run, ledger->roles[role], topic, &last, &admitted);
    uint64_t said = log_last_number(run->log, run->producers[role], run_topic(run, topic));
    if (said != last)
        ledger_fail(ledger, "G5: topic %u: the last number of producer %u is said to be %llu, it is %u",
                    topic, ledger->roles[role], (unsigned long long)said, last);
}

static bool uses(const struct ledger *ledger, uint8_t producer, uint32_t topic)
{
    for (uint32_t i = 0; i < ledger->count; i++) {
        if (ledger->batches[i].producer == producer && ledger->batches[i].topic == topic)
            return true;
    }
    return false;
}

void run_resume(struct run_state *run)
{
    look_at_others(run);
    for (uint32_t role = 0; role < SIM_ROLES && run->ledger->failure[0] == 0; role++) {
        if (run->ledger->roles[role] != 0)
            join(run, role, true);
        for (uint32_t topic = 0; topic < SIM_TOPICS && run->producers[role] != NULL; topic++) {
            if (uses(run->ledger, run->ledger->roles[role], topic))
                compare(run, role, topic);
        }
    }
}

void run_release_producers(struct run_state *run)
{
    for (uint32_t role = 0; role < SIM_ROLES; role++) {
        if (run->producers[role] != NULL && run->producer_inflight[role] == 0)
            log_producer_release(run->log, run->producers[role]);
        run->producers[role] = NULL;
    }
}

void run_rejoin(struct run_state *run, uint32_t role, bool fresh)
{
    check_bug(role < SIM_ROLES);
    if (!run_alive(run) || run->producer_inflight[role] > 0)
        return;
    for (const struct sim_stream *stream = run->streams; stream != NULL; stream = stream->next) {
        if (stream->role == role + 1 && stream->open)
            return;
    }
    if (run->producers[role] != NULL)
        log_producer_release(run->log, run->producers[role]);
    run->producers[role] = NULL;
    if (fresh && role >= SIM_NAMED && run->ledger->producer_count < SIM_PRODUCERS)
        run->ledger->roles[role] = 0;
    join(run, role, false);
}

void run_strangers(struct run_state *run)
{
    if (!run_alive(run))
        return;
    struct ledger *ledger = run->ledger;
    struct producer *handle;
    if (run->producers[0] != NULL &&
        log_producer_named(run->log, "producer 0", 10, uid_of(0) + 100, &handle) != -EACCES)
        ledger_fail(ledger, "a producer's name is given to another uid");
    for (uint32_t role = 0; role < SIM_ROLES; role++) {
        if (run->producers[role] == NULL)
            continue;
        uint64_t id = log_producer_id(run->producers[role]);
        if (log_producer_again(run->log, id, uid_of(role) + (role < SIM_NAMED ? 0 : 100), &handle) != -EACCES)
            ledger_fail(ledger, "the id of producer %u is given to somebody else", ledger->roles[role]);
        if (log_producer_again(run->log, id + (UINT64_C(1) << 40), uid_of(role), &handle) != -ENODATA)
            ledger_fail(ledger, "an id that was never given is taken for a new one");
    }
}

/* ------------------------------------------------------------------------------ sending */

/* NULL: there are too many. */
static struct producer *producer_of(struct run_state *run, uint32_t role)
{
    if (run->producers[role] == NULL)
        join(run, role, false);
    return run->producers[role];
}

void run_judge_number(struct run_state *run, const struct write *write, const struct batch *batch, int error,
                      uint64_t last, uint64_t admitted)
{
    struct ledger *ledger = run->ledger;
    uint64_t number = write->number;
    bool order = error == -EAGAIN && write->reason == REASON_ORDER;
    bool other = error < 0 && !order && error != -EINVAL;
    bool right = false;
    if (number == 0)
        right = error == -EINVAL || error == -EBUSY;
    else if (number <= last)
        right = error == 1 || (write->kind == WRITE_CHUNK && error < 0 && write->stream->failed);
    else if (number == admitted + 1)
        right = error == 0 || other;
    else
        right = order || error == -EBUSY;
    if (!right)
        ledger_fail(
            ledger,
            "G5: number %llu of producer %u on topic %u is answered %d (reason %u); committed is %llu, "
            "admitted %llu",
            (unsigned long long)number, batch->producer, batch->topic, error, write->reason,
            (unsigned long long)last, (unsigned long long)admitted);
    if (error != 1)
        return;
    bool known = write->first_sequence != 0;
    if (write->result != 0 || (write->flags & COMPLETION_DUPLICATE) == 0 || (number == last && !known) ||
        (known && batch->sequenced && write->first_sequence != batch->first_sequence) ||
        (known && write->committed != batch->entries))
        ledger_fail(ledger,
                    "G5: number %llu of producer %u is a duplicate: result %d, flags %x, sequence %llu, "
                    "%llu entries",
                    (unsigned long long)number, batch->producer, write->result, write->flags,
                    (unsigned long long)write->first_sequence, (unsigned long long)write->committed);
}

uint32_t run_next_number(struct run_state *run, uint32_t role, uint32_t topic)
{
    uint32_t last, admitted;
    run_numbers(run, run->ledger->roles[role], topic, &last, &admitted);
    return admitted + 1;
}

static bool fits_whole(const struct batch *batch)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < batch->entries; i++)
        bytes += align_up(entry_length(batch, i), PAYLOAD_ALIGN);
    return bytes <= MAX_WHOLE_PAYLOAD;
}

/* The batch to send with a number: the one that was sent with it before, or a new one. */
static uint32_t batch_for(struct run_state *run, uint32_t role, uint32_t topic, uint32_t number,
                          uint32_t entries, uint32_t bytes)
{
    struct ledger *ledger = run->ledger;
    uint8_t producer = ledger->roles[role];
    struct batch *batch = ledger_claimant(ledger, producer, topic, number);
    if (batch != NULL && fits_whole(batch) && seed_chance(&run->seed, 600))
        return batch->id;
    batch = ledger_add(ledger, topic, entries, bytes);
    ledger_claim(ledger, batch, producer, number);
    return batch->id;
}

int run_try_numbers(struct run_state *run, uint32_t role, uint32_t topic, uint32_t count, uint32_t entries,
                    uint32_t bytes, uint8_t level)
{
    int error = 0;
    for (uint32_t i = 0; i < count && error == 0; i++) {
        if (!run_alive(run))
            return -ESHUTDOWN;
        if (producer_of(run, role) == NULL || run_topic(run, topic) == NULL)
            return -ENOMEM;
        compare(run, role, topic);
        uint32_t number = run_next_number(run, role, topic);
        uint32_t batch = batch_for(run, role, topic, number, entries, bytes);
        error = run_send(run, batch, run_owner(run, role), level, role + 1, number);
    }
    return error;
}

int run_number(struct run_state *run, uint32_t role, uint32_t topic, uint32_t entries, uint32_t bytes)
{
    for (uint32_t i = 0; run_alive(run) && run->ledger->failure[0] == 0; i++) {
        int error = run_try_numbers(run, role, topic, 1, entries, bytes, 0);
        if (error != -EAGAIN && error != -EBUSY)
            return error;
        if (i > 10000) {
            ledger_fail(run->ledger, "a numbered write gets %d for ever", error);
            return error;
        }
        run_pump(run, INT64_C(50000000));
    }
    return -ESHUTDOWN;
}

struct sim_stream *run_number_stream(struct run_state *run, uint32_t role, uint32_t topic, uint32_t entries,
                                     uint32_t bytes)
{
    if (!run_alive(run) || producer_of(run, role) == NULL)
        return NULL;
    struct batch *batch = ledger_add(run->ledger, topic, entries, bytes);
    batch->streamed = true;
    batch->producer = run->ledger->roles[role];
    struct sim_stream *stream = run_stream_of(run, batch->id, run_owner(run, role));
    if (stream != NULL)
        stream->role = role + 1;
    return stream;
}

/* ------------------------------------------------------------------------------ again */

void run_again(struct run_state *run, uint32_t role, uint32_t topic, uint32_t number, bool stream)
{
    if (!run_alive(run) || producer_of(run, role) == NULL)
        return;
    const struct batch *batch = ledger_claimant(run->ledger, run->ledger->roles[role], topic, number);
    if (batch == NULL)
        return;
    if (!stream && fits_whole(batch)) {
        (void)run_send(run, batch->id, run_owner(run, role), 0, role + 1, number);
    } else if (batch->fate == FATE_OK) {
        struct sim_stream *copy = run_stream_of(run, batch->id, run_owner(run, role));
        if (copy == NULL)
            return;
        copy->role = role + 1;
        copy->number = number;
        run_stream_all(run, copy, 30000);
    }
}

/* False: the topic is not free, or there is no space. */
static bool resend(struct run_state *run, uint32_t role, uint32_t topic, uint32_t number)
{
    const struct batch *batch = ledger_claimant(run->ledger, run->ledger->roles[role], topic, number);
    if (batch == NULL || !fits_whole(batch))
        return false;
    uint32_t id = batch->id;
    for (uint32_t i = 0; i < 100 && run_alive(run); i++) {
        if (run_send(run, id, run_owner(run, role), 0, role + 1, number) == 0)
            return true;
        run_pump(run, INT64_C(50000000));
    }
    return false;
}

void run_resubmit(struct run_state *run)
{
    struct ledger *ledger = run->ledger;
    for (uint32_t role = 0; role < SIM_ROLES && run_alive(run) && ledger->failure[0] == 0; role++) {
        for (uint32_t topic = 0; topic < SIM_TOPICS && run->producers[role] != NULL; topic++) {
            uint8_t producer = ledger->roles[role];
            if (ledger_claimant(ledger, producer, topic, 1) == NULL)
                continue;
            compare(run, role, topic);
            uint32_t last, admitted;
            run_numbers(run, producer, topic, &last, &admitted);
            for (uint32_t number = last; number > 0 && number + 2 > last; number--)
                run_again(run, role, topic, number, seed_chance(&run->seed, 200));
            run_again(run, role, topic, 1, false);
            for (uint32_t number = admitted + 1; resend(run, role, topic, number); number++) {
            }
            run_disorder(run, role, topic);
        }
    }
    run_settle(run);
    run_ask(run);
}

void run_disorder(struct run_state *run, uint32_t role, uint32_t topic)
{
    if (!run_alive(run) || producer_of(run, role) == NULL || run_topic(run, topic) == NULL)
        return;
    struct ledger *ledger = run->ledger;
    uint32_t next = run_next_number(run, role, topic);
    const uint32_t numbers[] = {0, next + 1, next + 2};
    for (uint32_t i = 0; i < array_count(numbers) && run_alive(run); i++) {
        struct batch *batch = ledger_add(ledger, topic, 1 + i, 60);
        batch->producer = ledger->roles[role];
        batch->number = numbers[i];
        if (run_send(run, batch->id, run_owner(run, role), 0, role + 1, numbers[i]) == 0)
            return;
    }
    struct batch *flying = ledger_claimant(ledger, ledger->roles[role], topic, next - 1);
    if (flying != NULL && flying->flying && fits_whole(flying))
        (void)run_send(run, flying->id, run_owner(run, role), 0, role + 1, next - 1);
}

void run_ask(struct run_state *run)
{
    struct ledger *ledger = run->ledger;
    find_dead_streams(run);
    for (uint32_t i = 0; i < ledger->count && run_alive(run) && ledger->failure[0] == 0; i++) {
        const struct batch *batch = &ledger->batches[i];
        if (batch->claim == 0)
            continue;
        uint32_t role = ledger->producers[batch->producer - 1].role;
        struct topic *topic = run_topic(run, batch->topic);
        if (ledger->roles[role] != batch->producer || run->producers[role] == NULL || topic == NULL ||
            ledger_claimant(ledger, batch->producer, batch->topic, batch->number) != batch)
            continue;
        uint64_t first, entries;
        int said = log_query(run->log, run->producers[role], topic, batch->number, &first, &entries);
        int expected = batch->fate == FATE_OK ? 1 : batch->flying ? -EINPROGRESS : 0;
        if (said != expected ||
            (first != 0 && batch->sequenced && (first != batch->first_sequence || entries != batch->entries)))
            ledger_fail(ledger, "G5: number %u of producer %u on topic %u: a query says %d, it should be %d",
                        batch->number, batch->producer, batch->topic, said, expected);
    }
}
