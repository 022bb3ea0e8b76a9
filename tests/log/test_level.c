/* Levels below durable: when they answer, when they are flushed, what is lost and told. */
#include "life.h"

static struct life life;
static const int A;

/* With segments of 4 MiB everything is flushed at once; these leave room for what is not. */
static void make(void)
{
    life_make(&life);
    life.options.segment_bytes = SEGMENT_SMALL;
    life.options.interval_ns = 1000 * SECOND; /* no flush for its sake unless a test moves the clock */
    life_start(&life);
    life_quiet(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(level, .init = make, .fini = clean, .timeout = 60);

static struct sent *send_to(const char *topic, uint8_t topic_level, uint8_t level, uint32_t bytes)
{
    return SEND(&life, .name = topic, .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = bytes,
                .topic_level = topic_level, .level = level);
}

static struct sent *written(const char *topic, uint32_t bytes)
{
    struct sent *sent = send_to(topic, LEVEL_WRITTEN, 0, bytes);
    cr_assert_eq(sent->refused, 0, "%d", sent->refused);
    life_settle(&life);
    cr_assert_eq(sent->write.result, 0);
    life_committed(&life, topic, 1);
    return sent;
}

static uint64_t flushes(void)
{
    return life_stats(&life).flushes;
}

static struct topic_view view_of(const char *name)
{
    struct topic_view view;
    struct topic *topic = life_topic(&life, name);
    log_topic_view(topic, &view);
    log_topic_release(life.log, topic);
    return view;
}

Test(level, written_answers_before_any_flush_and_says_so)
{
    uint64_t before = io_fault_count(life.io, IO_FLUSH);
    struct sent *sent = written("w", 100);
    cr_assert_eq(sent->write.level_reached, LEVEL_WRITTEN);
    cr_assert_eq(io_fault_count(life.io, IO_FLUSH), before);
    struct topic_view view = view_of("w");
    cr_assert_eq(view.visible_next, 2u);
    cr_assert_eq(view.durable_next, 1u);
}

Test(level, written_waits_for_the_write)
{
    io_fault_hold(life.io, IO_WRITE, true);
    struct sent *sent = send_to("w", LEVEL_WRITTEN, 0, 100);
    life_until_held(&life, IO_WRITE, 1);
    cr_assert(!sent->done);
}

Test(level, accepted_answers_in_the_next_turn_before_any_write)
{
    io_fault_hold(life.io, IO_WRITE, true);
    struct sent *sent = send_to("a", LEVEL_ACCEPTED, 0, 100);
    cr_assert(!sent->done, "never from log_write itself");
    log_turn(life.log);
    cr_assert(sent->done);
    cr_assert_eq(sent->write.level_reached, LEVEL_ACCEPTED);
    cr_assert_eq(sent->write.first_sequence, 1u);
    cr_assert_eq(view_of("a").visible_next, 1u, "readers see it once it is written");
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 10);
    life_quiet(&life);
    life_committed(&life, "a", 1);
    life_verify(&life);
}

Test(level, what_is_not_durable_yet_is_read_as_unstable)
{
    written("w", 100);
    struct reading r = {.name = "w", .from = 1};
    life_read(&life, &r);
    cr_assert(r.right && r.entries == 1 && r.read.unstable);
    reading_free(&r);
    life_put(&life, "sync", 1, 10); /* its flush covers all before it */
    cr_assert_eq(view_of("w").durable_next, 2u);
    r = (struct reading){.name = "w", .from = 1};
    life_read(&life, &r);
    cr_assert(r.right && r.entries == 1 && !r.read.unstable);
    reading_free(&r);
}

Test(level, a_flush_follows_within_the_interval)
{
    life_crash(&life);
    life.options.interval_ns = 50 * MILLISECOND;
    life.ahead = 0;
    life_start(&life);
    life_quiet(&life);
    written("w", 100);
    uint64_t before = flushes();
    int64_t due = log_turn(life.log);
    cr_assert_leq(due, io_now(life.io) + 50 * MILLISECOND, "the log asks to be called in time");
    cr_assert(before == flushes() || io_now(life.io) >= due, "not before it is due");
    life.ahead += 60 * MILLISECOND;
    life_quiet(&life);
    cr_assert_eq(flushes(), before + 1);
    cr_assert_eq(view_of("w").durable_next, 2u);
    life.ahead += SECOND / 2;
    life_quiet(&life);
    cr_assert_eq(flushes(), before + 1, "nothing new, no flush");
}

Test(level, a_flush_follows_within_16_mib_of_log)
{
    uint64_t before = flushes(), unflushed = 0, most = 0;
    for (unsigned i = 0; i < 30; i++) {
        written("w", 1000000);
        if (flushes() != before) {
            before = flushes();
            unflushed = 0;
        } else {
            unflushed += 1000000;
        }
        most = unflushed > most ? unflushed : most;
    }
    cr_assert_leq(most, UNFLUSHED_MAX);
    cr_assert_gt(most, 0u);
    cr_assert_gt(before, 0u);
    life_verify(&life);
}

Test(level, a_request_may_ask_for_more_than_the_topic_has)
{
    written("w", 10);
    struct sent *sent = send_to("w", 0, LEVEL_DURABLE, 10);
    life_settle(&life);
    cr_assert_eq(sent->write.level_reached, LEVEL_DURABLE);
    cr_assert_eq(view_of("w").durable_next, 3u);
}

Test(level, a_request_for_less_than_the_topic_has_counts_for_nothing)
{
    life_put(&life, "sync", 1, 10);
    struct sent *sent = send_to("sync", 0, LEVEL_ACCEPTED, 10);
    io_fault_hold(life.io, IO_FLUSH, true);
    life_until_held(&life, IO_FLUSH, 1);
    cr_assert(!sent->done);
    io_fault_hold(life.io, IO_FLUSH, false);
    io_fault_release(life.io, IO_FLUSH, 1);
    life_settle(&life);
    cr_assert_eq(sent->write.level_reached, LEVEL_DURABLE);
}

Test(level, topics_of_different_levels_in_one_group_share_its_flush)
{
    struct sent *accepted = send_to("a", LEVEL_ACCEPTED, 0, 10), *sync = send_to("s", LEVEL_DURABLE, 0, 10),
                *middle = send_to("w", LEVEL_WRITTEN, 0, 10);
    uint64_t before = flushes();
    life_settle(&life);
    cr_assert_eq(flushes(), before + 1);
    cr_assert_eq(accepted->write.level_reached, LEVEL_ACCEPTED);
    cr_assert_eq(sync->write.level_reached, LEVEL_DURABLE);
    cr_assert_eq(middle->write.level_reached, LEVEL_DURABLE, "it got more than it asked for");
    cr_assert_eq(sync->write.group, middle->write.group);
}

Test(level, answers_of_one_topic_stay_in_order_when_levels_mix)
{
    /* An append that waits for the flush, then one that would be answered early: not before the other. */
    struct sent *strong = send_to("a", LEVEL_ACCEPTED, LEVEL_DURABLE, 10);
    struct sent *weak = send_to("a", LEVEL_ACCEPTED, 0, 10);
    cr_assert_eq(strong->refused, 0);
    cr_assert_eq(weak->refused, 0);
    life_settle(&life);
    cr_assert_lt(strong->order, weak->order);
    cr_assert_lt(strong->write.first_sequence, weak->write.first_sequence);
}

Test(level, the_level_of_a_topic_is_kept_in_the_catalogue)
{
    written("w", 10);
    life_put(&life, "s", 1, 10);
    for (unsigned i = 0; i < 2; i++) {
        life_stop(&life);
        life.options.level = LEVEL_ACCEPTED;
        life_start(&life);
        cr_assert_eq(view_of("w").level, LEVEL_WRITTEN);
        cr_assert_eq(view_of("s").level, LEVEL_DURABLE);
        struct topic *topic;
        cr_assert_eq(log_topic(life.log, "w", 1, LEVEL_DURABLE, NO_UID, true, &topic), 0);
        log_topic_release(life.log, topic);
        cr_assert_eq(view_of("w").level, LEVEL_WRITTEN, "an existing topic keeps its level");
    }
    cr_assert_eq(view_of("new").level, LEVEL_ACCEPTED);
}

/* ----------------------------------------------------------------------------------------------- losses */

/* The topic has one entry that is safe; then two are answered and lost. */
static void put_one_accepted(void)
{
    struct sent *sent = send_to("a", LEVEL_ACCEPTED, 0, 10);
    cr_assert_eq(sent->refused, 0);
    life_quiet(&life);
    life_committed(&life, "a", 1);
}

static struct sent *lose_two_accepted(void)
{
    put_one_accepted();
    life.plans[IO_WRITE] = (struct plan){.failing = 1 << 0 | 1 << 2, .error = -EIO};
    struct sent *first = send_to("a", LEVEL_ACCEPTED, 0, 10), *second = send_to("a", 0, 0, 10);
    log_turn(life.log);
    cr_assert(first->done && second->done && first->write.result == 0 && second->write.result == 0);
    life_quiet(&life);
    return second;
}

Test(level, lost_data_that_was_answered_is_told_once_with_the_next_completion)
{
    struct sent *lost = lose_two_accepted();
    cr_assert_eq(lost->write.first_sequence, 3u);
    cr_assert_eq(life_stats(&life).lost_batches, 2u);
    cr_assert(life_said(&life, "lost"));
    struct sent *next = send_to("a", 0, 0, 10), *after = send_to("a", 0, 0, 10);
    life_settle(&life);
    cr_assert(next->write.flags & COMPLETION_EARLIER_LOST);
    cr_assert_eq(after->write.flags & COMPLETION_EARLIER_LOST, 0u);
}

Test(level, lost_data_is_told_with_a_durable_completion_too)
{
    lose_two_accepted();
    struct sent *next = send_to("a", 0, LEVEL_DURABLE, 10), *after = send_to("a", 0, LEVEL_DURABLE, 10);
    life_settle(&life);
    cr_assert(next->write.flags & COMPLETION_EARLIER_LOST);
    cr_assert_eq(after->write.flags & COMPLETION_EARLIER_LOST, 0u);
}

Test(level, sequences_that_were_answered_and_lost_are_burnt)
{
    lose_two_accepted();
    struct sent *next =
        SEND(&life, .name = "a", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 10, .from = 4);
    life_settle(&life);
    cr_assert_eq(next->write.first_sequence, 4u, "an (epoch, sequence) pair is never given twice");
    life_quiet(&life);
    for (unsigned i = 0; i < 2; i++) {
        struct reading r = {.name = "a", .from = 2};
        life_read(&life, &r);
        cr_assert_eq(r.read.result, 1);
        cr_assert_eq(r.read.first_sequence, 4u, "burnt sequences are skipped");
        cr_assert(r.right);
        reading_free(&r);
        life_crash(&life);
        life_start(&life);
    }
}

Test(level, a_lost_stream_of_level_accepted_is_told)
{
    struct stream stream = {.owner = &A};
    put_one_accepted();
    life.plans[IO_WRITE] = (struct plan){.failing = 1 << 0 | 1 << 2, .error = -EIO};
    struct sent *sent = SEND(&life, .name = "a", .kind = WRITE_CHUNK, .owner = &A, .entries = 1, .bytes = 16,
                             .stream = &stream, .first = true, .last = true, .topic_level = LEVEL_ACCEPTED);
    life_settle(&life);
    cr_assert_eq(sent->write.result, 0);
    life_quiet(&life);
    struct sent *next = send_to("a", 0, 0, 10);
    life_settle(&life);
    cr_assert(next->write.flags & COMPLETION_EARLIER_LOST);
}

Test(level, g10_a_failed_flush_of_unflushed_log_is_a_fail_stop)
{
    life_crash(&life);
    life.options.interval_ns = 10 * MILLISECOND;
    life_start(&life);
    life_quiet(&life);
    written("w", 100);
    life.plans[IO_FLUSH] = (struct plan){.failing = UINT64_MAX, .error = -EIO};
    life.ahead += SECOND;
    for (unsigned i = 0; i < 100 && log_failed(life.log) == NULL; i++)
        life_turn(&life);
    cr_assert_not_null(log_failed(life.log));
}

Test(level, unflushed_log_is_flushed_before_the_next_segment_begins)
{
    for (unsigned i = 0; i < 10; i++)
        written("w", 1900000);
    life.plans[IO_FLUSH] = (struct plan){.failing = 0};
    size_t from = life.op_count;
    for (unsigned i = 0; i < 12 && life_stats(&life).segment_number < 2; i++)
        written("w", 1900000);
    cr_assert_eq(life_stats(&life).segment_number, 2u);
    bool flushed = false, header = false;
    for (size_t i = from; i < life.op_count && !header; i++) {
        const struct op_record *op = &life.ops[i];
        if (op->background || strcmp(op->name, "00000001.segment") == 0) {
            flushed = op->background ? flushed : op->kind == IO_FLUSH;
            continue;
        }
        header = op->kind == IO_WRITE && op->offset == 0;
    }
    cr_assert(header && flushed, "the header was written before its predecessor was flushed");
    life_verify(&life);
}

Test(level, a_clean_stop_flushes_what_is_unflushed)
{
    written("w", 100);
    life_stop(&life);
    life_start(&life);
    cr_assert_eq(life_stats(&life).start_groups_copied, 0u, "a clean checkpoint proves everything");
    life_verify(&life);
}

Test(level, unflushed_groups_survive_the_death_of_the_broker)
{
    written("w", 100);
    written("w", 200);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(level, sequences_of_a_lost_first_batch_are_burnt_too)
{
    life.plans[IO_WRITE] = (struct plan){.failing = 1 << 0 | 1 << 2, .error = -EIO};
    struct sent *lost = SEND(&life, .name = "a", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 10,
                             .topic_level = LEVEL_ACCEPTED);
    log_turn(life.log);
    cr_assert(lost->done && lost->write.result == 0);
    life_quiet(&life);
    struct sent *next = SEND(&life, .name = "a", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 10,
                             .topic_level = LEVEL_ACCEPTED);
    life_settle(&life);
    cr_assert_eq(next->write.first_sequence, 2u);
    cr_assert(next->write.flags & COMPLETION_EARLIER_LOST);
}
