/* producer.c: a process of producers over the asynchronous API; the loop of one that is alone (of many:
 * crowd.c).
 *
 * Happy path
 *   1. Connect, open this producer's topics, allocate slots, wait for the start with the others.
 *   2. While fewer than `depth` batches are in flight: take the clock, reserve, fill in place, submit.
 *   3. Reap; take the clock once; every completion's slot gives one latency sample and is free again.
 *   4. At STOP begin nothing more and reap what is in flight.
 *
 * The clock runs from before the first reserve of a batch to after the reap of its completion. A batch
 * that is refused is made and sent again after the broker's estimate with its first clock: waiting for a
 * turn is part of its latency. In an open loop the clock runs from when the batch was due: what waits because
 * others are slow, or the producer itself is late, is part of its latency too.
 *
 * Failure modes: any other result than 0, -EBUSY and -EAGAIN ends the run with the library's words; so
 * does a silence of SILENCE_NS.
 *
 * Invariants: batch numbers rise by one; every number begun is committed before the process ends with
 * status 0. */
#include "producer.h"

#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "usage.h"

#define SILENCE_NS        INT64_C(30000000000)
#define REAP_AT_ONCE      64
#define IN_PLACE_BYTES    (3u << 20) /* the library sends larger batches in chunks */
#define STREAM_ARENA      (16u << 20)
#define STREAM_QUEUE      256u
#define ARENA_SLACK       (256u << 10)
#define CROWD_SLACK       (64u << 10)
#define CROWD_WINDOW      (64u << 10)
#define CONNECT_NS        INT64_C(20000000000) /* a thousand others connect at the same time */
#define RECORD_BYTES      8u
#define ENTRY_ALIGN       16u
#define LEAST_RETRY_NS    1000
#define SPINS_BEFORE_LOOK 4096u

const char *const stage_names[STAGE_COUNT] = {"fill", "ring", "gather", "device", "answer", "reap"};

int crew_fail(struct crew_state *crew, const struct producer *p, int code, const char *what)
{
    return error_set(&crew->report->error, code, "producer %u: %s: %s (%s)", p->number, what,
                     walrus_error(p->handle), strerror(-code));
}

static int fail(struct producer *p, int code, const char *what)
{
    return crew_fail(p->crew, p, code, what);
}

/* Filled in place and sent whole; else added entry by entry and streamed by the library. */
static bool in_place(const struct load *load)
{
    return load->batch * (align_up(load->size, ENTRY_ALIGN) + RECORD_BYTES) <= IN_PLACE_BYTES;
}

/* Room for `depth` batches in flight, one being filled and one for what is cut into pieces; a single batch
 * may have half of it. A producer among many in one process is given little. */
static uint64_t arena_bytes(const struct load *load)
{
    if (!in_place(load))
        return STREAM_ARENA;
    uint64_t batch = load->batch * (align_up(load->size, ENTRY_ALIGN) + RECORD_BYTES) + 4096;
    if (load->processes != 0)
        return min_u64(align_up(batch * (load->depth + 2) + CROWD_SLACK, 64u << 10), 1u << 30);
    return min_u64(align_up(batch * (load->depth + 2) + ARENA_SLACK, 1u << 20), 1u << 30);
}

static int connect_and_open(struct producer *p)
{
    const struct load *load = p->crew->load;
    struct error *err = &p->crew->report->error;
    uint32_t queue = in_place(load) ? 8 : STREAM_QUEUE;
    while (queue < load->depth + 2)
        queue *= 2;
    struct walrus_connect_options options = {
        .size = sizeof options,
        .socket_path = p->crew->request->socket_path,
        .queue_entries = queue,
        .arena_bytes = arena_bytes(load),
        .window_bytes = load->processes != 0 ? CROWD_WINDOW : 0,
        .timeout_ns = CONNECT_NS,
        .spin_ns = load->wait == WAIT_BLOCK ? -1 : 0,
        .error = err->text,
        .error_size = sizeof err->text,
    };
    int result = walrus_connect(&p->handle, &options);
    if (result < 0) {
        err->code = result;
        error_wrap(err, "producer %u cannot connect", p->number);
        return result;
    }
    p->topic_count = producers_topic_count(load, p->number);
    p->topics = calloc(p->topic_count, sizeof(walrus_topic *));
    if (p->topics == NULL)
        return fail(p, -ENOMEM, "topics");
    for (uint32_t i = 0; i < p->topic_count; i++) {
        char name[WALRUS_MAX_TOPIC_NAME + 1];
        int length = snprintf(name, sizeof name, "%s-%u", p->crew->request->topic_prefix,
                              producers_topic(load, p->number, i));
        struct walrus_topic_options topic_options = {.size = sizeof topic_options, .level = load->level};
        result = walrus_topic_open(p->handle, name, (size_t)length, &topic_options, &p->topics[i]);
        if (result < 0)
            return fail(p, result, "opening a topic");
    }
    return 0;
}

int producer_open(struct producer *p)
{
    const struct load *load = p->crew->load;
    p->slots = calloc(load->depth, sizeof *p->slots);
    p->free_slots = calloc(load->depth, sizeof *p->free_slots);
    p->scratch = malloc(max_u64(load->size, PAYLOAD_STAMP));
    if (p->slots == NULL || p->free_slots == NULL || p->scratch == NULL)
        return error_set(&p->crew->report->error, -ENOMEM, "producer %u: out of memory", p->number);
    for (uint32_t i = 0; i < load->depth; i++)
        p->free_slots[i] = load->depth - 1 - i;
    p->free_count = load->depth;
    return connect_and_open(p);
}

void producer_close(struct producer *p)
{
    walrus_close(p->handle);
    free(p->topics);
    free(p->slots);
    free(p->free_slots);
    free(p->scratch);
}

/* Fills and submits the slot's batch. 0; 1 if the library has no room now (nothing was sent); negative:
 * failed. */
static int send_slot(struct producer *p, uint32_t index)
{
    struct slot *slot = &p->slots[index];
    const struct load *load = p->crew->load;
    bool whole = in_place(load);
    walrus_topic *topic = p->topics[slot->batch % p->topic_count];
    uint64_t word = payload_batch_word(p->crew->run, p->number, slot->batch);
    walrus_batch *batch;

    int result = walrus_batch_begin(topic, &batch);
    if (result < 0)
        return result == -EAGAIN ? 1 : fail(p, result, "beginning a batch");
    if (!whole && load->queue && (result = walrus_batch_set_queue(batch, 1)) < 0) {
        walrus_batch_abort(batch);
        return fail(p, result, "asking for a turn");
    }
    for (uint32_t i = 0; i < load->batch; i++) {
        if (whole) {
            void *data;
            result = walrus_batch_reserve(batch, load->size, &data);
            if (result == 0)
                payload_fill(p->crew->request->pool, word, i, data, load->size);
        } else {
            payload_fill(p->crew->request->pool, word, i, p->scratch, load->size);
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
        .queue = load->queue,
    };
    result = walrus_batch_submit(batch, &options);
    if (result == -EAGAIN) {
        walrus_batch_abort(batch);
        return 1;
    }
    return result < 0 ? fail(p, result, "submitting a batch") : 0;
}

bool crew_goes_on(const struct crew_state *crew, enum phase phase)
{
    return crew->wanted != 0 ? crew->begun < crew->wanted && !phases_given_up(crew->phases)
                             : phase < PHASE_STOP;
}

int64_t crew_next_due(const struct crew_state *crew)
{
    return crew->interval == 0 ? INT64_MIN : crew->first_send + (int64_t)crew->begun * crew->interval;
}

int producer_begin(struct producer *p, enum phase phase, uint32_t most)
{
    struct crew_state *crew = p->crew;
    uint32_t count = 0;
    while (crew_goes_on(crew, phase) && p->free_count > 0 && count < most &&
           crew->in_flight < crew->most_in_flight) {
        uint32_t index = p->free_slots[p->free_count - 1];
        struct slot *slot = &p->slots[index];
        int64_t now = now_ns(), due = crew_next_due(crew);
        if (due > now)
            break;
        slot->begun = crew->interval == 0 ? now : due;
        slot->batch = p->next_batch;
        slot->sampled = crew->wanted != 0 ? crew->begun >= crew->phases->warm_work : phase == PHASE_MEASURE;
        int result = send_slot(p, index);
        if (result < 0)
            return result;
        if (result == 1) {
            crew->report->again++;
            if (p->in_flight == 0)
                return fail(p, -EAGAIN, "no room for a batch although none is in flight");
            break;
        }
        if (slot->sampled && crew->interval != 0)
            histogram_add(&crew->report->late, now - due, 1);
        slot->state = SLOT_IN_FLIGHT;
        p->free_count--;
        p->in_flight++;
        p->next_batch++;
        crew->in_flight++;
        crew->begun++;
        count++;
    }
    return (int)count;
}

int producer_retry(struct producer *p, int64_t now, int64_t *next)
{
    *next = INT64_MAX;
    for (uint32_t i = 0; i < p->crew->load->depth && p->refused_count > 0; i++) {
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
        p->crew->in_flight++;
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
        histogram_add(&p->crew->report->stages[i], stamps[i + 1] - last, 1);
        last = stamps[i + 1];
    }
}

static int note_completion(struct producer *p, const struct walrus_completion *completion, int64_t now,
                           enum phase phase)
{
    struct crew_state *crew = p->crew;
    struct producer_report *report = crew->report;
    uint64_t index = completion->user_data;
    check_bug(index < crew->load->depth && p->slots[index].state == SLOT_IN_FLIGHT);
    struct slot *slot = &p->slots[index];
    const struct walrus_receipt *receipt = &completion->receipt;
    p->in_flight--;
    crew->in_flight--;
    if (completion->result == -EBUSY || completion->result == -EAGAIN) {
        if (completion->result == -EBUSY)
            report->busy++;
        else
            report->again++;
        int64_t pause = (int64_t)receipt->retry_after_us * 1000;
        slot->retry_at = now + (pause > LEAST_RETRY_NS ? pause : LEAST_RETRY_NS);
        slot->state = SLOT_REFUSED;
        p->refused_count++;
        return 0;
    }
    if (completion->result != 0)
        return fail(p, completion->result, "a batch was not committed");
    if (receipt->count != crew->load->batch)
        return error_set(&report->error, -EPROTO,
                         "producer %u: a receipt speaks of %llu entries, the batch had %u", p->number,
                         (unsigned long long)receipt->count, crew->load->batch);
    if (phase == PHASE_MEASURE) {
        report->commits++;
        if (report->first_group == 0)
            report->first_group = receipt->group;
        report->last_group = receipt->group;
    }
    if (slot->sampled) {
        histogram_add(&report->latency, now - slot->begun, 1);
        note_stages(p, slot, receipt, now);
    }
    slot->state = SLOT_FREE;
    p->free_slots[p->free_count++] = (uint32_t)index;
    ++*p->committed;
    crew->done++;
    return 0;
}

int producer_reap(struct producer *p)
{
    struct crew_state *crew = p->crew;
    struct walrus_completion completions[REAP_AT_ONCE];
    int count = walrus_reap(p->handle, completions, REAP_AT_ONCE);
    if (count < 0)
        return fail(p, count, "reaping");
    if (count == 0)
        return 0;
    int64_t now = now_ns();
    enum phase phase = phase_now(crew->phases);
    crew->last_progress = now;
    for (int i = 0; i < count; i++) {
        int result = note_completion(p, &completions[i], now, phase);
        if (result < 0)
            return result;
    }
    if (phases_share_done(crew->phases, phase, crew->done))
        phases_advance(crew->phases, phase);
    return count;
}

/* Nothing could be reaped: spin or sleep, until `wake_at` at most. */
static int idle(struct producer *p, int64_t wake_at, uint32_t *spins)
{
    struct crew_state *crew = p->crew;
    if (crew->load->wait == WAIT_SPIN) {
        relax();
        if (++*spins % SPINS_BEFORE_LOOK != 0)
            return 0;
    }
    int64_t now = now_ns();
    if (now - crew->last_progress > SILENCE_NS)
        return fail(p, -ETIMEDOUT, "no answer for 30 s");
    if (crew->load->wait == WAIT_SPIN)
        return 0;
    int64_t limit = INT64_C(1000000000);
    if (wake_at != INT64_MAX)
        limit = wake_at > now ? wake_at - now : 0;
    if (p->in_flight == 0) {
        pause_ns(limit);
        return 0;
    }
    int result = walrus_wait(p->handle, 1, limit);
    if (result < 0 && result != -ETIME && result != -EINTR)
        return fail(p, result, "waiting");
    return 0;
}

/* Alone in its process. */
static int single_loop(struct producer *p)
{
    struct crew_state *crew = p->crew;
    uint32_t spins = 0;
    for (;;) {
        enum phase phase = phase_now(crew->phases);
        int64_t wake_at = INT64_MAX;
        if (p->refused_count > 0) {
            int result = producer_retry(p, now_ns(), &wake_at);
            if (result < 0)
                return result;
        }
        int result = producer_begin(p, phase, UINT32_MAX);
        if (result < 0)
            return result;
        if (!crew_goes_on(crew, phase) && p->in_flight == 0 && p->refused_count == 0)
            return 0;
        if (crew->interval != 0 && p->free_count > 0 && crew_goes_on(crew, phase) &&
            crew_next_due(crew) < wake_at)
            wake_at = crew_next_due(crew);
        result = producer_reap(p);
        if (result < 0)
            return result;
        if (result == 0 && (result = idle(p, wake_at, &spins)) < 0)
            return result;
    }
}

/* Open loop: the processes take turns, evenly over time. */
static void set_pace(struct crew_state *crew, uint32_t first, uint32_t step)
{
    const struct load *load = crew->load;
    if (load->rate <= 0)
        return;
    prctl(PR_SET_TIMERSLACK, 1UL); /* else a sleep ends up to 50 us late */
    crew->interval = (int64_t)(1e9 / load->rate * step);
    crew->first_send = now_ns() + (int64_t)(1e9 / load->rate * first);
}

static int all_open(struct crew_state *crew, struct producer *producers, uint32_t count, uint32_t first,
                    uint32_t step, uint64_t *committed)
{
    int result = 0;
    for (uint32_t i = 0; i < count && result == 0; i++) {
        producers[i] = (struct producer){
            .crew = crew, .number = first + i * step, .committed = &committed[first + i * step]};
        result = producer_open(&producers[i]);
    }
    return result;
}

static int measured(struct crew_state *crew, struct producer *producers, uint32_t count, uint32_t first,
                    uint32_t step)
{
    struct producer_report *report = crew->report;
    struct syscall_counter calls = {0};
    bool counting = crew->request->syscall_event != 0 &&
                    syscall_counter_begin(&calls, crew->request->syscall_event, 0) == 0;
    struct usage before = usage_of(getpid());
    crew->last_progress = now_ns();
    set_pace(crew, first, step);
    int result = count == 1 && crew->load->processes == 0 ? single_loop(&producers[0])
                                                          : crowd_loop(crew, producers, count);
    struct usage after = usage_of(getpid());
    struct usage used = usage_between(&before, &after);
    report->calls = counting ? syscall_counter_end(&calls) : 0;
    report->cpu_ns = used.cpu_ns;
    report->switches = used.switches;
    return result;
}

int producer_main(const struct producers_request *request, const struct load *load, uint32_t run,
                  uint32_t first, uint32_t step, struct phases *phases, struct producer_report *report,
                  uint64_t *committed)
{
    child_begin();
    struct crew_state crew = {.request = request,
                              .load = load,
                              .run = run,
                              .phases = phases,
                              .report = report,
                              .most_in_flight = load->in_flight != 0 ? load->in_flight : UINT32_MAX};
    struct rlimit files;
    if (load->processes != 0 && getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max; /* each connection has a few */
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    uint32_t count = (load->producers - first + step - 1) / step;
    struct producer *producers = calloc(count, sizeof *producers);
    if (producers == NULL) {
        (void)error_set(&report->error, -ENOMEM, "out of memory for %u producers", count);
        phases_give_up(phases);
        return 1;
    }
    int result = all_open(&crew, producers, count, first, step, committed);
    if (load->count != 0)
        crew.wanted = phases->warm_work + phases->measure_work;
    if (result == 0)
        result = phases_ready(phases);
    if (result == 0)
        result = measured(&crew, producers, count, first, step);
    if (result < 0)
        phases_give_up(phases);
    for (uint32_t i = 0; i < count; i++)
        if (producers[i].crew != NULL)
            producer_close(&producers[i]);
    free(producers);
    return result < 0 ? 1 : 0;
}
