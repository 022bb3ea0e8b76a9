/* producer.c: one producer: a closed loop over the asynchronous API.
 *
 * Happy path
 *   1. Connect, open this producer's topics, allocate slots, wait for the start with the others.
 *   2. While fewer than `depth` batches are in flight: take the clock, reserve, fill in place, submit.
 *   3. Reap; take the clock once; every completion's slot gives one latency sample and is free again.
 *   4. At STOP begin nothing more and reap what is in flight.
 *
 * The clock runs from before the first reserve of a batch to after the reap of its completion. A batch
 * that is refused is made and sent again after the broker's estimate with its first clock: waiting for a
 * turn is part of its latency.
 *
 * Failure modes: any other result than 0, -EBUSY and -EAGAIN ends the run with the library's words; so
 * does a silence of SILENCE_NS.
 *
 * Invariants: batch numbers rise by one; every number begun is committed before the process ends with
 * status 0. */
#include "producer.h"

#include <sys/resource.h>
#include <unistd.h>

#include "../libclient/include/walrus.h"

#define SILENCE_NS        INT64_C(30000000000)
#define REAP_AT_ONCE      64
#define IN_PLACE_BYTES    (3u << 20) /* the library sends larger batches in chunks */
#define STREAM_ARENA      (16u << 20)
#define STREAM_QUEUE      256u
#define ARENA_SLACK       (256u << 10)
#define RECORD_BYTES      8u
#define ENTRY_ALIGN       16u
#define LEAST_RETRY_NS    1000
#define SPINS_BEFORE_LOOK 4096u

const char *const stage_names[STAGE_COUNT] = {"fill", "ring", "gather", "device", "answer", "reap"};

enum slot_state { SLOT_FREE, SLOT_IN_FLIGHT, SLOT_REFUSED };

struct slot {
    int64_t begun;    /* clock before the first reserve */
    int64_t retry_at; /* SLOT_REFUSED */
    uint64_t batch;
    bool sampled;
    uint8_t state; /* enum slot_state */
};

struct producer {
    const struct producers_request *request;
    const struct load *load;
    struct phases *phases;
    struct producer_report *report;
    uint32_t run, number;
    walrus *handle;
    walrus_topic **topics;
    uint32_t topic_count;
    struct slot *slots;
    uint32_t *free_slots;
    uint32_t free_count, refused_count, in_flight;
    uint8_t *scratch; /* one entry, for batches that are not filled in place */
    uint64_t next_batch;
    uint64_t wanted; /* by count: batches of this producer, warm-up included; else 0 */
    int64_t last_progress;
};

static int fail(struct producer *p, int code, const char *what)
{
    return error_set(&p->report->error, code, "producer %u: %s: %s (%s)", p->number, what,
                     walrus_error(p->handle), strerror(-code));
}

/* Filled in place and sent whole; else added entry by entry and streamed by the library. */
static bool in_place(const struct load *load)
{
    return load->batch * (align_up(load->size, ENTRY_ALIGN) + RECORD_BYTES) <= IN_PLACE_BYTES;
}

/* Room for `depth` batches in flight, one being filled and one for what is cut into pieces; a single batch
 * may have half of it. */
static uint64_t arena_bytes(const struct load *load)
{
    if (!in_place(load))
        return STREAM_ARENA;
    uint64_t batch = load->batch * (align_up(load->size, ENTRY_ALIGN) + RECORD_BYTES) + 4096;
    return min_u64(align_up(batch * (load->depth + 2) + ARENA_SLACK, 1u << 20), 1u << 30);
}

static int connect_and_open(struct producer *p)
{
    uint32_t queue = in_place(p->load) ? 8 : STREAM_QUEUE;
    while (queue < p->load->depth + 2)
        queue *= 2;
    struct walrus_connect_options options = {
        .size = sizeof options,
        .socket_path = p->request->socket_path,
        .queue_entries = queue,
        .arena_bytes = arena_bytes(p->load),
        .spin_ns = p->load->wait == WAIT_BLOCK ? -1 : 0,
        .error = p->report->error.text,
        .error_size = sizeof p->report->error.text,
    };
    int result = walrus_connect(&p->handle, &options);
    if (result < 0) {
        p->report->error.code = result;
        error_wrap(&p->report->error, "producer %u cannot connect", p->number);
        return result;
    }
    p->topic_count = producers_topic_count(p->load, p->number);
    p->topics = calloc(p->topic_count, sizeof(walrus_topic *));
    if (p->topics == NULL)
        return fail(p, -ENOMEM, "topics");
    for (uint32_t i = 0; i < p->topic_count; i++) {
        char name[WALRUS_MAX_TOPIC_NAME + 1];
        int length = snprintf(name, sizeof name, "%s-%u", p->request->topic_prefix,
                              producers_topic(p->load, p->number, i));
        struct walrus_topic_options topic_options = {.size = sizeof topic_options, .level = p->load->level};
        result = walrus_topic_open(p->handle, name, (size_t)length, &topic_options, &p->topics[i]);
        if (result < 0)
            return fail(p, result, "opening a topic");
    }
    return 0;
}

static int prepare(struct producer *p)
{
    uint32_t depth = p->load->depth;
    p->slots = calloc(depth, sizeof *p->slots);
    p->free_slots = calloc(depth, sizeof *p->free_slots);
    p->scratch = malloc(max_u64(p->load->size, PAYLOAD_STAMP));
    if (p->slots == NULL || p->free_slots == NULL || p->scratch == NULL)
        return error_set(&p->report->error, -ENOMEM, "producer %u: out of memory", p->number);
    for (uint32_t i = 0; i < depth; i++)
        p->free_slots[i] = depth - 1 - i;
    p->free_count = depth;
    if (p->load->count != 0)
        p->wanted = p->phases->warm_work + p->phases->measure_work;
    return connect_and_open(p);
}

/* Fills and submits the slot's batch. 0; 1 if the library has no room now (nothing was sent); negative:
 * failed. */
static int send_slot(struct producer *p, uint32_t index)
{
    struct slot *slot = &p->slots[index];
    const struct load *load = p->load;
    bool whole = in_place(load);
    walrus_topic *topic = p->topics[slot->batch % p->topic_count];
    uint64_t word = payload_batch_word(p->run, p->number, slot->batch);
    walrus_batch *batch;

    int result = walrus_batch_begin(topic, &batch);
    if (result < 0)
        return result == -EAGAIN ? 1 : fail(p, result, "beginning a batch");
    for (uint32_t i = 0; i < load->batch; i++) {
        if (whole) {
            void *data;
            result = walrus_batch_reserve(batch, load->size, &data);
            if (result == 0)
                payload_fill(p->request->pool, word, i, data, load->size);
        } else {
            payload_fill(p->request->pool, word, i, p->scratch, load->size);
            result = walrus_batch_add(batch, p->scratch, load->size);
        }
        if (__builtin_expect(result < 0, 0)) {
            walrus_batch_abort(batch);
            return result == -EAGAIN ? 1 : fail(p, result, "reserving an entry");
        }
    }
    struct walrus_submit_options options = {
        .size = sizeof options,
        .user_data = index,
        .append = load->batch == 1,
    };
#ifdef WALRUS_SUBMIT_HAS_QUEUE
    options.queue = load->queue;
#endif
    result = walrus_batch_submit(batch, &options);
    if (result == -EAGAIN) {
        walrus_batch_abort(batch);
        return 1;
    }
    return result < 0 ? fail(p, result, "submitting a batch") : 0;
}

/* Begins batches until `depth` are in flight or the round is over. Negative: failed. */
static int begin_some(struct producer *p, enum phase phase)
{
    bool more =
        p->wanted != 0 ? p->next_batch < p->wanted && !phases_given_up(p->phases) : phase < PHASE_STOP;
    while (more && p->free_count > 0) {
        uint32_t index = p->free_slots[p->free_count - 1];
        struct slot *slot = &p->slots[index];
        slot->begun = now_ns();
        slot->batch = p->next_batch;
        slot->sampled = p->wanted != 0 ? p->next_batch >= p->phases->warm_work : phase == PHASE_MEASURE;
        int result = send_slot(p, index);
        if (result < 0)
            return result;
        if (result == 1) {
            p->report->again++;
            if (p->in_flight == 0)
                return fail(p, -EAGAIN, "no room for a batch although none is in flight");
            return 0;
        }
        slot->state = SLOT_IN_FLIGHT;
        p->free_count--;
        p->in_flight++;
        p->next_batch++;
        more = p->wanted == 0 || p->next_batch < p->wanted;
    }
    return 0;
}

/* Sends refused batches again whose time has come. *next is the time of the earliest other one, or
 * INT64_MAX. */
static int retry_some(struct producer *p, int64_t now, int64_t *next)
{
    *next = INT64_MAX;
    for (uint32_t i = 0; i < p->load->depth && p->refused_count > 0; i++) {
        struct slot *slot = &p->slots[i];
        if (slot->state != SLOT_REFUSED)
            continue;
        if (slot->retry_at > now) {
            if (slot->retry_at < *next)
                *next = slot->retry_at;
            continue;
        }
        int result = send_slot(p, i);
        if (result < 0)
            return result;
        if (result == 1) {
            if (p->in_flight == 0)
                return fail(p, -EAGAIN, "no room for a batch although none is in flight");
            return 0;
        }
        slot->state = SLOT_IN_FLIGHT;
        p->refused_count--;
        p->in_flight++;
    }
    return 0;
}

static void note_stages(struct producer *p, const struct slot *slot, const struct walrus_receipt *r,
                        int64_t now)
{
    int64_t stamps[STAGE_COUNT + 1] = {
        slot->begun, r->published_ns, r->drained_ns, r->submitted_ns, r->durable_ns, r->signalled_ns, now,
    };
    /* A stage that did not happen (stamp 0) is part of the next one that did. */
    int64_t last = stamps[0];
    for (int i = 0; i < STAGE_COUNT; i++) {
        if (stamps[i + 1] == 0)
            continue;
        histogram_add(&p->report->stages[i], stamps[i + 1] - last, 1);
        last = stamps[i + 1];
    }
}

static int note_completion(struct producer *p, const struct walrus_completion *completion, int64_t now,
                           enum phase phase)
{
    uint64_t index = completion->user_data;
    check_bug(index < p->load->depth && p->slots[index].state == SLOT_IN_FLIGHT);
    struct slot *slot = &p->slots[index];
    const struct walrus_receipt *receipt = &completion->receipt;
    p->in_flight--;
    if (completion->result == -EBUSY || completion->result == -EAGAIN) {
        if (completion->result == -EBUSY)
            p->report->busy++;
        else
            p->report->again++;
        int64_t pause = (int64_t)receipt->retry_after_us * 1000;
        slot->retry_at = now + (pause > LEAST_RETRY_NS ? pause : LEAST_RETRY_NS);
        slot->state = SLOT_REFUSED;
        p->refused_count++;
        return 0;
    }
    if (completion->result != 0)
        return fail(p, completion->result, "a batch was not committed");
    if (receipt->count != p->load->batch)
        return error_set(&p->report->error, -EPROTO,
                         "producer %u: a receipt speaks of %llu entries, the batch had %u", p->number,
                         (unsigned long long)receipt->count, p->load->batch);
    if (phase == PHASE_MEASURE) {
        p->report->commits++;
        if (p->report->first_group == 0)
            p->report->first_group = receipt->group;
        p->report->last_group = receipt->group;
    }
    if (slot->sampled) {
        histogram_add(&p->report->latency, now - slot->begun, 1);
        note_stages(p, slot, receipt, now);
    }
    slot->state = SLOT_FREE;
    p->free_slots[p->free_count++] = (uint32_t)index;
    p->report->batches++;
    return 0;
}

/* Takes what has completed. Count, or negative: failed. */
static int reap_some(struct producer *p)
{
    struct walrus_completion completions[REAP_AT_ONCE];
    int count = walrus_reap(p->handle, completions, REAP_AT_ONCE);
    if (count < 0)
        return fail(p, count, "reaping");
    if (count == 0)
        return 0;
    int64_t now = now_ns();
    enum phase phase = phase_now(p->phases);
    p->last_progress = now;
    for (int i = 0; i < count; i++) {
        int result = note_completion(p, &completions[i], now, phase);
        if (result < 0)
            return result;
    }
    if (phases_share_done(p->phases, phase, p->report->batches))
        phases_advance(p->phases, phase);
    return count;
}

/* Nothing could be reaped: spin or sleep, until `retry_at` at most. */
static int idle(struct producer *p, int64_t retry_at, uint32_t *spins)
{
    if (p->load->wait == WAIT_SPIN) {
        relax();
        if (++*spins % SPINS_BEFORE_LOOK != 0)
            return 0;
    }
    int64_t now = now_ns();
    if (now - p->last_progress > SILENCE_NS)
        return fail(p, -ETIMEDOUT, "no answer for 30 s");
    if (p->load->wait == WAIT_SPIN)
        return 0;
    int64_t limit = INT64_C(1000000000);
    if (retry_at != INT64_MAX)
        limit = retry_at > now ? retry_at - now : 0;
    if (p->in_flight == 0) {
        pause_ns(limit);
        return 0;
    }
    int result = walrus_wait(p->handle, 1, limit);
    if (result < 0 && result != -ETIME && result != -EINTR)
        return fail(p, result, "waiting");
    return 0;
}

static int measured_loop(struct producer *p)
{
    uint32_t spins = 0;
    p->last_progress = now_ns();
    for (;;) {
        enum phase phase = phase_now(p->phases);
        int64_t retry_at = INT64_MAX;
        if (p->refused_count > 0) {
            int result = retry_some(p, now_ns(), &retry_at);
            if (result < 0)
                return result;
        }
        int result = begin_some(p, phase);
        if (result < 0)
            return result;
        bool over =
            p->wanted != 0 ? p->next_batch == p->wanted || phases_given_up(p->phases) : phase == PHASE_STOP;
        if (over && p->in_flight == 0 && p->refused_count == 0)
            return 0;
        result = reap_some(p);
        if (result < 0)
            return result;
        if (result == 0 && (result = idle(p, retry_at, &spins)) < 0)
            return result;
    }
}

int producer_main(const struct producers_request *request, const struct load *load, uint32_t run,
                  uint32_t number, struct phases *phases, struct producer_report *report)
{
    child_begin();
    struct producer p = {
        .request = request, .load = load, .run = run, .phases = phases, .report = report, .number = number};
    int result = prepare(&p);
    if (result == 0)
        result = phases_ready(phases);
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    if (result == 0)
        result = measured_loop(&p);
    getrusage(RUSAGE_SELF, &after);
    report->cpu_ns =
        (after.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_utime.tv_sec - before.ru_stime.tv_sec) *
            INT64_C(1000000000) +
        (after.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_utime.tv_usec -
         before.ru_stime.tv_usec) *
            INT64_C(1000);
    if (result < 0)
        phases_give_up(phases);
    walrus_close(p.handle);
    free(p.topics);
    free(p.slots);
    free(p.free_slots);
    free(p.scratch);
    return result < 0 ? 1 : 0;
}
