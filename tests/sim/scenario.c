/* scenario.c: see scenario.h. */
#include "scenario.h"

#define SECOND INT64_C(1000000000)

/* ------------------------------------------------------------------------------ before */

static void a_few_batches(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 3, 100);
    run_write(run, 1, 2, 1, 40);
    run_settle(run);
    run_write(run, 0, 1, 2, 3000);
    run_settle(run);
    run_stop(run);
}

/* The last groups are answered at level written only: nothing proves them durable. */
static void an_unproven_tail(struct run_state *run)
{
    run->ledger->levels[2] = LEVEL_WRITTEN;
    run_start(run);
    run_write(run, 0, 1, 3, 100);
    run_settle(run);
    for (uint32_t i = 0; i < 3; i++) {
        run_write(run, 2, 1, 2, 200);
        run_pump(run, 1000);
        run_pump(run, 1000);
    }
    for (uint32_t i = 0; i < 40 && run->inflight > 0; i++)
        run_pump(run, 1000000);
}

/* The last group reads well and is gone at the next power cut: its flush has failed. */
static void a_failed_flush(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 2, 500);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    if (!run_alive(run))
        return;
    disk_set_fault(
        run->disk,
        &(struct fault){.kinds = 1u << IO_FLUSH, .classes = CLASS_SEGMENT, .count = 1, .error = -EIO});
    run_write(run, 0, 1, 3, 700);
    run_write(run, 1, 2, 1, 80);
    run_settle(run);
}

/* A segment file without a header, and groups in it. */
static bool recyclable(const struct image *image)
{
    for (uint32_t i = 0; i < image->now.count; i++) {
        const char *name = image->now.list[i].name;
        if (strstr(name, ".segment") != NULL && image_block_zero(image, name, 0) &&
            !image_block_zero(image, name, 1))
            return true;
    }
    return false;
}

/* A start has copied groups that nothing proved into a new segment, and power went before its header was
 * written. The next start puts that file back among the spares, with the copies in it. */
static bool cut_behind_the_copies(struct image **image, struct ledger *ledger)
{
    for (uint64_t event = 1; event < 200; event++) {
        struct image *try = image_copy(*image);
        struct ledger copy;
        struct run_state run;
        ledger_copy(&copy, ledger);
        run_begin(&run, try, &copy, 55);
        run.end_before = END_KILL;
        disk_crash_at(run.disk, event);
        run_start(&run);
        try = run_end(&run);
        struct choices choices = choices_mask(0);
        struct image *cut = image_crash(try, CRASH_POWER, &choices);
        image_free(try);
        if (copy.failure[0] == 0 && recyclable(cut)) {
            image_free(*image);
            ledger_free(ledger);
            *image = cut;
            *ledger = copy;
            return true;
        }
        image_free(cut);
        ledger_free(&copy);
    }
    return false;
}

/* ------------------------------------------------------------------------------ acts */

static void start_only(struct run_state *run)
{
    run_start(run);
    run_check(run);
}

static void one_group(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 4, 300);
    run_settle(run);
}

static void three_groups(struct run_state *run)
{
    run_start(run);
    for (uint32_t i = 0; i < 3; i++) {
        run_write(run, 0, 1, 2 + i, 900);
        run_settle(run);
    }
}

static void two_groups(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 3, 400);
    run_settle(run);
    run_write(run, 0, 1, 1, 5000);
    run_settle(run);
}

static void four_groups(struct run_state *run)
{
    run_start(run);
    for (uint32_t i = 0; i < 4; i++) {
        run_write(run, i % 2, 1, 1 + i, 700);
        run_write(run, 1, 2, 1, 60);
        run_settle(run);
    }
}

/* A new life on what a killed one has left, and its first groups. */
static void epoch_change(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 2, 300);
    run_settle(run);
    run_write(run, 2, 1, 1, 90);
    run_settle(run);
}

static void hostile_clients(struct run_state *run)
{
    run_start(run);
    for (uint32_t i = 0; i < 3; i++) {
        run_write(run, 0, 1, 2, 200);
        run_hostile(run, 0);
        struct sim_stream *left = run_stream(run, 4 + i, 6, 6000); /* nobody ever goes on with it */
        run_chunk(run, left, 16000);
        run_hostile(run, 1);
        run_hostile(run, 2);
        run_settle(run);
    }
    run_disorder(run, 0, 0);
    run_strangers(run);
    run_write(run, 0, 1, 1, 50);
    run_settle(run);
}

static void two_topics(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 2, 100);
    run_write(run, 3, 2, 5, 100);
    run_settle(run);
    run_write(run, 3, 2, 1, 9000);
    run_write(run, 0, 2, 1, 50);
    run_write(run, 0, 2, 1, 60);
    run_settle(run);
}

static void segment_change(struct run_state *run)
{
    run_start(run);
    for (uint32_t i = 0; i < 5; i++) {
        run_write(run, i % 2, 1, 1, 1100000);
        run_settle(run);
    }
    run_write(run, 0, 1, 3, 200);
    run_settle(run);
}

/* Through two changes of segment: three segments, and the store's first one. */
static void three_segments(struct run_state *run)
{
    run_start(run);
    for (uint32_t i = 0; i < 8; i++) {
        run_write(run, i % 2, 1, 1, 1100000);
        run_settle(run);
        run_idle(run, SECOND); /* the next one is prepared */
    }
    run_write(run, 0, 1, 3, 200);
    run_settle(run);
}

static void fail_segment(struct run_state *run, enum io_kind kind, uint64_t count, enum leaves leaves)
{
    disk_set_fault(
        run->disk,
        &(struct fault){
            .kinds = 1u << kind, .classes = CLASS_SEGMENT, .count = count, .error = -EIO, .leaves = leaves});
}

static void roll_back(struct run_state *run, uint64_t count, enum leaves leaves)
{
    run_start(run);
    run_write(run, 0, 1, 2, 500);
    run_settle(run);
    if (!run_alive(run))
        return;
    run_idle(run, 3 * SECOND); /* until nothing else writes to segments */
    if (!run_alive(run))
        return;
    fail_segment(run, IO_WRITE, count, leaves);
    run_write(run, 0, 1, 3, 700);
    run_write(run, 1, 2, 1, 80);
    run_settle(run);
    run_write(run, 0, 1, 2, 100);
    run_settle(run);
}

static void write_error_old(struct run_state *run)
{
    roll_back(run, 1, LEAVES_OLD);
}

static void write_error_new(struct run_state *run)
{
    roll_back(run, 1, LEAVES_NEW);
}

static void write_error_for_ever(struct run_state *run)
{
    roll_back(run, FAULT_FOR_EVER, LEAVES_NEW);
}

/* The group fails, its second try in the next segment fails too, the header after that does not. */
static void write_error_twice(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 2, 500);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    if (!run_alive(run))
        return;
    disk_set_fault(run->disk, &(struct fault){.kinds = 1u << IO_WRITE,
                                              .classes = CLASS_SEGMENT,
                                              .count = 1,
                                              .error = -EIO,
                                              .leaves = LEAVES_NEW});
    disk_set_fault(run->disk, &(struct fault){.kinds = 1u << IO_WRITE,
                                              .classes = CLASS_SEGMENT,
                                              .skip = 2,
                                              .count = 1,
                                              .error = -ENOSPC,
                                              .leaves = LEAVES_NEW});
    run_write(run, 0, 1, 3, 700);
    run_write(run, 4, 2, 1, 80);
    run_settle(run);
    run_write(run, 0, 1, 2, 100);
    run_settle(run);
}

static void short_write(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 2, 500);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    if (!run_alive(run))
        return;
    disk_set_fault(run->disk, &(struct fault){.kinds = 1u << IO_WRITE,
                                              .classes = CLASS_SEGMENT,
                                              .count = 1,
                                              .short_count = SIM_BLOCK + 511,
                                              .leaves = LEAVES_MIX});
    run_write(run, 0, 1, 30, 700);
    run_settle(run);
    run_write(run, 0, 1, 2, 100);
    run_settle(run);
}

static void failed_flush(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 2, 500);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    if (!run_alive(run))
        return;
    fail_segment(run, IO_FLUSH, 1, LEAVES_NEW);
    run_write(run, 0, 1, 3, 700);
    run_write(run, 1, 2, 1, 80);
    run_settle(run);
}

static void stream(struct run_state *run)
{
    run_start(run);
    struct sim_stream *big = run_stream(run, 0, 12, 9000);
    run_chunk(run, big, 20000);
    run_write(run, 1, 2, 2, 100);
    run_settle(run);
    run_chunk(run, big, 30000);
    run_settle(run);
    run_stream_all(run, big, 50000);
    run_write(run, 1, 2, 2, 100);
    run_settle(run);
    struct sim_stream *dropped = run_stream(run, 0, 8, 5000);
    run_chunk(run, dropped, 16000);
    run_settle(run);
    run_abort(run, dropped);
    run_write(run, 0, 1, 1, 100);
    run_settle(run);
}

static void checkpoint(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 2, 500);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    run_write(run, 5, 1, 2, 500);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    run_write(run, 0, 1, 2, 500);
    run_settle(run);
}

static void clean_stop(struct run_state *run)
{
    run_start(run);
    run_write(run, 0, 1, 2, 500);
    run_write(run, 6, 2, 1, 500);
    run_stop(run);
}

static void levels(struct run_state *run)
{
    run->ledger->levels[2] = LEVEL_WRITTEN;
    run->ledger->levels[3] = LEVEL_ACCEPTED;
    run_start(run);
    run_write(run, 2, 1, 2, 300);
    run_write(run, 3, 1, 2, 300);
    run_settle(run);
    run_write(run, 3, 1, 2, 300);
    run_write(run, 2, 1, 1, 5000);
    run_settle(run);
    run_write(run, 0, 1, 2, 100);
    run_settle(run);
    run_write(run, 2, 1, 1, 100);
    run_settle(run);
    run_idle(run, SECOND / 2);
    run_write(run, 3, 1, 1, 100);
    run_settle(run);
}

/* ------------------------------------------------------------------------------ numbers */

/* Two with names and one without have numbers on two topics: some in the checkpoint, some only in the log. */
static void a_few_numbers(struct run_state *run)
{
    run_start(run);
    run_number(run, 0, 0, 3, 100);
    run_number(run, 2, 0, 1, 40);
    run_number(run, 0, 0, 1, 200);
    run_number(run, 0, 1, 2, 200);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    run_try_numbers(run, 0, 0, 2, 2, 90, 0);
    run_number(run, 1, 1, 1, 60);
    run_settle(run);
}

static void producers(struct run_state *run)
{
    run_start(run);
    run_strangers(run);
    run_try_numbers(run, 0, 0, 3, 2, 150, 0);
    run_try_numbers(run, 2, 1, 2, 1, 80, 0);
    run_disorder(run, 0, 0);
    run_again(run, 0, 0, 1, false);
    run_ask(run);
    run_settle(run);
    run_number(run, 3, 5, 1, 70); /* a new producer on a new topic */
    run_settle(run);
    run_idle(run, 3 * SECOND);
    struct sim_stream *big = run_number_stream(run, 0, 0, 6, 9000);
    run_chunk(run, big, 20000);
    run_number(run, 0, 0, 2, 50);
    run_stream_all(run, big, 30000);
    run_number(run, 1, 1, 1, 60);
    run_rejoin(run, 2, true);
    run_number(run, 2, 1, 2, 60);
    run_settle(run);
    run_again(run, 0, 0, 6, true);
    run_try_numbers(run, 0, 0, 6, 1, 30, 0);
    run_stop(run);
}

/* The next group with numbers fails, and again in the segment that it is rolled into. */
static void fail_next_group_twice(struct run_state *run)
{
    struct fault fault = {
        .kinds = 1u << IO_WRITE, .classes = CLASS_SEGMENT, .count = 1, .error = -EIO, .leaves = LEAVES_NEW};
    disk_set_fault(run->disk, &fault);
    fault.skip = 2;
    disk_set_fault(run->disk, &fault);
}

/* While numbers of a group that fails are in the device, those behind them gather, and others between
 * them. */
static void behind_a_failure(struct run_state *run)
{
    run_start(run);
    run_number(run, 0, 1, 1, 100);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    struct sim_stream *behind = run_number_stream(run, 1, 2, 4, 5000);
    run_chunk(run, behind, 9000);
    run_settle(run);
    if (!run_alive(run))
        return;
    fail_next_group_twice(run);
    struct sim_stream *broken = run_number_stream(run, 3, 5, 4, 5000);
    run_chunk(run, broken, 9000); /* in the group that fails; its last chunk is not */
    run_number(run, 0, 0, 2, 300);
    run_number(run, 0, 1, 1, 100);
    run_number(run, 1, 2, 1, 100);
    if (run_alive(run))
        log_turn(run->log);
    run_try_numbers(run, 0, 0, 2, 2, 200, 0); /* behind it: dropped */
    run_try_write(run, 1, 4, 1, 120, 0);      /* has no number: stays */
    run_try_numbers(run, 0, 1, 1, 1, 90, 0);
    run_try_numbers(run, 2, 1, 2, 1, 90, 0); /* has no number in there: stays */
    run_try_write(run, 1, 4, 1, 130, 0);
    run_stream_all(run, behind, 50000);
    run_stream_all(run, broken, 50000);
    run_settle(run);
    run_ask(run);
    run_number(run, 0, 0, 1, 60);
    run_number(run, 0, 1, 1, 60);
    run_settle(run);
    run_idle(run, 3 * SECOND); /* a checkpoint, in which the producer of `broken` has nothing */
    run_number(run, 3, 5, 1, 60);
    run_number(run, 1, 2, 2, 60);
    run_settle(run);
}

/* At level accepted a stream is answered as soon as its last chunk is copied; another one is in the device
 * then, and fails. */
static void early_answer(struct run_state *run)
{
    run->ledger->levels[3] = LEVEL_ACCEPTED;
    run_start(run);
    run_write(run, 3, 4, 1, 100);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    if (!run_alive(run))
        return;
    fail_next_group_twice(run);
    struct sim_stream *big = run_stream(run, 3, 4, 5000);
    run_chunk(run, big, 9000);
    if (run_alive(run))
        log_turn(run->log);
    run_stream_all(run, big, 50000);
    run_settle(run);
    run_write(run, 3, 4, 1, 100);
    run_settle(run);
    run_idle(run, SECOND / 2);
    run_check(run);
}

static void numbers_and_levels(struct run_state *run)
{
    run->ledger->levels[2] = LEVEL_WRITTEN;
    run->ledger->levels[3] = LEVEL_ACCEPTED;
    run_start(run);
    run_try_numbers(run, 0, 2, 2, 2, 100, 0);
    run_try_numbers(run, 2, 3, 2, 1, 100, 0);
    run_settle(run);
    run_write(run, 3, 4, 1, 50);
    run_try_numbers(run, 2, 3, 1, 3, 100, 0);
    run_try_write(run, 3, 4, 1, 60, 0);
    run_number(run, 0, 0, 1, 100);
    run_settle(run);
    run_try_numbers(run, 0, 2, 1, 2, 100, LEVEL_DURABLE);
    run_try_numbers(run, 0, 2, 1, 1, 100, 0);
    run_settle(run);
    run_again(run, 0, 2, 4, false);
    run_ask(run);
    run_idle(run, SECOND / 2);
    run_number(run, 0, 2, 1, 100);
    run_settle(run);
}

/* The log has room for two without names. */
static void three_anonymous(struct run_state *run)
{
    run->ledger->max_anonymous = 2;
    run_start(run);
    for (uint32_t i = 0; i < 3; i++) {
        run_rejoin(run, 2, true);
        run_number(run, 2, i % 2, 1, 100);
        run_number(run, 2, 0, 2, 30);
        run_settle(run);
    }
    run_number(run, 0, 0, 1, 100);
    run_settle(run);
}

static void forgotten(struct run_state *run)
{
    run_start(run);
    run_number(run, 2, 0, 1, 100);
    run_number(run, 3, 0, 1, 100);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    run_rejoin(run, 2, true);
    run_number(run, 2, 1, 1, 100);
    run_number(run, 3, 1, 1, 50);
    run_settle(run);
    run_rejoin(run, 3, true);
    run_number(run, 3, 0, 1, 100);
    run_settle(run);
    run_idle(run, 3 * SECOND);
    run_strangers(run);
    run_number(run, 3, 0, 1, 100);
    run_settle(run);
}

const struct scenario scenarios[] = {
    {"first-start", NULL, NULL, one_group, true, false},
    {"start", a_few_batches, NULL, start_only, true, false},
    {"start-after-kill", an_unproven_tail, NULL, start_only, true, false},
    {"start-after-failed-flush", a_failed_flush, NULL, start_only, true, false},
    {"one-group", a_few_batches, NULL, one_group, false, false},
    {"two-groups", a_few_batches, NULL, two_groups, false, false},
    {"three-groups", a_few_batches, NULL, three_groups, false, false},
    {"four-groups", a_few_batches, NULL, four_groups, false, false},
    {"two-topics", a_few_batches, NULL, two_topics, false, false},
    {"segment-change", a_few_batches, NULL, segment_change, false, true},
    {"three-segments", NULL, NULL, three_segments, false, true},
    {"recycled-segment", an_unproven_tail, cut_behind_the_copies, segment_change, true, true},
    {"epoch-change", an_unproven_tail, NULL, epoch_change, true, false},
    {"write-error-old", a_few_batches, NULL, write_error_old, false, false},
    {"write-error-new", a_few_batches, NULL, write_error_new, false, false},
    {"write-error-twice", a_few_batches, NULL, write_error_twice, false, false},
    {"write-error-for-ever", a_few_batches, NULL, write_error_for_ever, false, false},
    {"short-write", a_few_batches, NULL, short_write, false, false},
    {"failed-flush", a_few_batches, NULL, failed_flush, false, false},
    {"stream", a_few_batches, NULL, stream, false, false},
    {"checkpoint", a_few_batches, NULL, checkpoint, false, false},
    {"clean-stop", a_few_batches, NULL, clean_stop, false, false},
    {"levels", a_few_batches, NULL, levels, false, false},
    {"producers", a_few_numbers, NULL, producers, false, false},
    {"numbers-behind-a-failure", a_few_batches, NULL, behind_a_failure, false, true},
    {"numbers-and-levels", a_few_batches, NULL, numbers_and_levels, false, false},
    {"forgotten-producers", three_anonymous, NULL, forgotten, false, false},
    {"early-answer", a_few_batches, NULL, early_answer, false, true},
    {"hostile-clients", a_few_batches, NULL, hostile_clients, false, false},
    {"start-with-producers", a_few_numbers, NULL, start_only, true, false},
};
const uint32_t scenario_count = array_count(scenarios);

const struct scenario *scenario_find(const char *name)
{
    for (uint32_t i = 0; i < scenario_count; i++) {
        if (strcmp(scenarios[i].name, name) == 0)
            return &scenarios[i];
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ random
 * work */

enum job {
    JOB_APPEND,
    JOB_BATCH,
    JOB_BIG,
    JOB_STREAM,
    JOB_CHUNK,
    JOB_ABORT,
    JOB_READ,
    JOB_WAIT,
    JOB_IDLE,
    JOB_SETTLE,
    JOB_NUMBERS,
    JOB_NUMBER_STREAM,
    JOB_AGAIN,
    JOB_DISORDER,
    JOB_ASK,
    JOB_REJOIN,
    JOB_HOSTILE,
    JOB_COUNT
};

static struct sim_stream *an_open_stream(struct run_state *run)
{
    for (struct sim_stream *stream = run->streams; stream != NULL; stream = stream->next) {
        if (stream->open && !stream->sent_last && seed_chance(&run->seed, 600))
            return stream;
    }
    return NULL;
}

static void do_job(struct run_state *run, enum job job)
{
    struct seed *seed = &run->seed;
    uint32_t topic = (uint32_t)seed_below(seed, 5), owner = (uint32_t)seed_below(seed, 4);
    uint8_t level = seed_chance(seed, 150) ? LEVEL_DURABLE : 0;
    uint32_t role = (uint32_t)seed_below(seed, SIM_ROLES);
    switch (job) {
    case JOB_NUMBERS:
        run_try_numbers(run, role, topic, 1 + (uint32_t)seed_below(seed, 6),
                        seed_chance(seed, 300) ? 1 : 1 + (uint32_t)seed_below(seed, 20),
                        1 + (uint32_t)seed_below(seed, 900), level);
        break;
    case JOB_NUMBER_STREAM:
        run_number_stream(run, role, topic, 1 + (uint32_t)seed_below(seed, 12),
                          1 + (uint32_t)seed_below(seed, 9000));
        break;
    case JOB_AGAIN:
        run_again(run, role, topic, 1 + (uint32_t)seed_below(seed, 8), seed_chance(seed, 300));
        break;
    case JOB_DISORDER:
        run_disorder(run, role, topic);
        break;
    case JOB_ASK:
        run_ask(run);
        break;
    case JOB_REJOIN:
        run_rejoin(run, role, seed_chance(seed, 500));
        run_strangers(run);
        break;
    case JOB_HOSTILE:
        run_hostile(run, topic);
        break;
    case JOB_APPEND:
        run_try_write(run, topic, owner, 1, 1 + (uint32_t)seed_below(seed, 3000), level);
        break;
    case JOB_BATCH:
        run_try_write(run, topic, owner, 1 + (uint32_t)seed_below(seed, 40),
                      1 + (uint32_t)seed_below(seed, 900), level);
        break;
    case JOB_BIG:
        run_try_write(run, topic, owner, 1, 20000 + (uint32_t)seed_below(seed, 900000), level);
        break;
    case JOB_STREAM:
        run_stream(run, topic, 1 + (uint32_t)seed_below(seed, 30), 1 + (uint32_t)seed_below(seed, 20000));
        break;
    case JOB_CHUNK:
        for (uint32_t i = 0; i < 3; i++)
            run_chunk(run, an_open_stream(run), 8192 + (uint32_t)seed_below(seed, 120000));
        break;
    case JOB_ABORT:
        run_abort(run, an_open_stream(run));
        break;
    case JOB_READ:
        run_read_some(run, topic);
        break;
    case JOB_IDLE:
        run_idle(run, (int64_t)seed_below(seed, run->idle_ns));
        break;
    case JOB_SETTLE:
        run_settle(run);
        break;
    case JOB_WAIT:
    case JOB_COUNT:
        for (uint64_t i = seed_below(seed, 12); i > 0; i--)
            run_pump(run, 1000000);
        break;
    }
}

void workload(struct run_state *run, uint32_t steps)
{
    static const uint32_t usual[JOB_COUNT] = {30, 25, 3, 6, 20, 2, 10, 30, 2, 5, 25, 4, 8, 3, 4, 4, 3};
    uint32_t weights[JOB_COUNT], sum = 0;
    for (uint32_t i = 0; i < JOB_COUNT; i++) {
        weights[i] = seed_chance(&run->seed, 100) || (run->jobs_off >> i & 1) ? 0 : usual[i];
        if (i == JOB_WAIT)
            weights[i] = usual[i];
        sum += weights[i];
    }
    for (uint32_t i = 0; i < steps && run_alive(run) && run->ledger->failure[0] == 0; i++) {
        uint64_t draw = seed_below(&run->seed, sum);
        uint32_t job = 0;
        while (draw >= weights[job])
            draw -= weights[job++];
        do_job(run, (enum job)job);
        if (seed_chance(&run->seed, 500))
            run_pump(run, 1000000);
    }
}
