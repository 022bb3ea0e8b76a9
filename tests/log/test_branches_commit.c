/* What commit.c and gather.c do only when things come together: a change of segment while writes arrive, two
 * failures at once, no spare that is large enough, a table that is full. */
#include "life.h"

static struct life life;
static const int A, B;

static void make(void)
{
    life_make(&life);
    life_start(&life);
    life_quiet(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(branches_commit, .init = make, .fini = clean, .timeout = 120);

static struct sent *batch(const char *topic, uint32_t entries, uint32_t bytes)
{
    return SEND(&life, .name = topic, .kind = WRITE_BATCH, .owner = &A, .entries = entries, .bytes = bytes);
}

static void fail_ops(enum io_kind kind, uint64_t failing, int error)
{
    life.plans[kind] = (struct plan){.failing = failing, .error = error};
}

static void same_after_restarts(void)
{
    for (unsigned i = 0; i < 2; i++) {
        life_crash(&life);
        life_start(&life);
        life_verify(&life);
    }
}

static void release(enum io_kind kind)
{
    io_fault_hold(life.io, kind, false);
    io_fault_release(life.io, kind, 100);
}

static void no_new_segments(int error)
{
    life_quiet(&life);
    io_fault_set(
        life.io, IO_ALLOCATE,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = error, .nth = 1, .from_then_on = true});
}

/* ------------------------------------------------------------------------- changes of segment, roll-backs */

Test(branches_commit, g7_what_arrives_while_a_closing_segment_is_flushed_follows_in_the_next_one)
{
    life_crash(&life);
    life.options.segment_bytes = 20 << 20; /* so that some of it may stay unflushed */
    life.options.interval_ns = 100 * SECOND;
    life_start(&life);
    for (unsigned i = 0; i < 7; i++) {
        struct sent *sent = SEND(&life, .name = "w", .topic_level = LEVEL_WRITTEN, .kind = WRITE_BATCH,
                                 .owner = &A, .entries = 2, .bytes = 1400000);
        life_settle(&life);
        cr_assert_eq(sent->write.result, 0);
        cr_assert(i < 5 || sent->write.level_reached == LEVEL_WRITTEN, "something is not flushed");
        life_committed(&life, "w", 2);
    }
    life_quiet(&life);
    uint64_t segments = life_stats(&life).segments;
    io_fault_hold(life.io, IO_FLUSH, true);
    uint64_t flushes = life.plans[IO_FLUSH].seen; /* of the log: those of the pool are in the background */
    struct sent *change = batch("w", 2, 1400000), *arriving;
    for (unsigned turns = 0; life.plans[IO_FLUSH].seen == flushes; turns++) {
        cr_assert_lt(turns, 10000u);
        life_turn(&life);
    }
    arriving = batch("v", 3, 100);
    cr_assert(change->refused == 0 && arriving->refused == 0, "%d, %d", change->refused, arriving->refused);
    cr_assert(!change->done && !arriving->done);
    release(IO_FLUSH);
    life_settle(&life);
    cr_assert(change->write.result == 0 && arriving->write.result == 0);
    cr_assert_lt(change->order, arriving->order);
    cr_assert_eq(life_stats(&life).segments, segments + 1);
    life_committed(&life, "w", 2);
    life_committed(&life, "v", 3);
    life_verify(&life);
    same_after_restarts();
}

Test(branches_commit, g8_a_group_of_which_two_writes_fail_is_rolled_back_once)
{
    fail_ops(IO_WRITE, 1 << 1 | 1 << 3, -EIO);
    struct sent *sent = batch("t", 10, 300000);
    life_settle(&life);
    cr_assert_eq(sent->write.result, 0);
    cr_assert_eq(life_stats(&life).rollbacks, 1u);
    life_committed(&life, "t", 10);
    life_verify(&life);
    same_after_restarts();
}

Test(branches_commit, g3_without_a_spare_that_the_group_fits_it_is_answered_after_one_try)
{
    no_new_segments(ENOSPC);
    life_put(&life, "u", 2, 1400000);
    struct sent *filling = batch("u", 2, 1400000); /* takes the one large segment that is prepared */
    life_settle(&life);
    cr_assert_eq(filling->write.result, 0);
    life_committed(&life, "u", 2);
    life_quiet(&life);
    cr_assert_eq(life_stats(&life).prepared_segments, 0u);
    fail_ops(IO_WRITE, 1, -EIO);
    struct sent *sent = batch("t", 3, 5000);
    life_settle(&life);
    cr_assert_eq(sent->write.result, -EIO, "%d", sent->write.result);
    cr_assert(life_said(&life, "after 1 tries"), "%s", life.said);
    io_fault_clear(life.io, IO_ALLOCATE);
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    life_put(&life, "t", 1, 10);
    life_verify(&life);
    same_after_restarts();
}

Test(branches_commit, g9_what_gathered_when_the_last_segment_was_lost_to_a_failure_is_enospc)
{
    no_new_segments(ENOSPC);
    fail_ops(IO_WRITE, 1 << 0 | 1 << 2, -EIO);
    io_fault_hold(life.io, IO_WRITE, true);
    struct sent *failing = batch("t", 3, 5000);
    life_until_held(&life, IO_WRITE, 1);
    struct sent *behind = batch("u", 1, 100);
    cr_assert_eq(behind->refused, 0);
    release(IO_WRITE);
    life_settle(&life);
    cr_assert_eq(failing->write.result, -EIO, "%d", failing->write.result);
    cr_assert_eq(behind->write.result, -ENOSPC, "%d", behind->write.result);
    cr_assert_null(log_failed(life.log));
    io_fault_clear(life.io, IO_ALLOCATE);
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    life_put(&life, "u", 1, 10); /* it heals, and no sequence is missing */
    life_put(&life, "t", 1, 10);
    life_verify(&life);
    same_after_restarts();
}

Test(branches_commit, a_predecessor_that_cannot_be_cut_only_takes_space)
{
    io_fault_set(life.io, IO_TRUNCATE,
                 &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = 1, .from_then_on = true});
    for (unsigned i = 0; i < 2; i++)
        life_put(&life, "t", 2, 1400000);
    life_quiet(&life);
    cr_assert(life_said(&life, "cannot truncate a closed segment"), "%s", life.said);
    life_verify(&life);
    same_after_restarts();
}

Test(branches_commit, a_death_while_a_predecessor_is_cut_says_nothing_and_loses_nothing)
{
    io_fault_set(life.io, IO_TRUNCATE,
                 &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = 1, .from_then_on = true});
    io_fault_hold(life.io, IO_TRUNCATE, true);
    for (unsigned i = 0; i < 2; i++)
        life_put(&life, "t", 2, 1400000);
    life_until_held(&life, IO_TRUNCATE, 1);
    release(IO_TRUNCATE); /* it ends while the log goes */
    log_abandon(life.log);
    life.log = NULL;
    cr_assert(!life_said(&life, "cannot truncate"), "%s", life.said);
    life_close(&life);
    life_start(&life);
    life_verify(&life);
    same_after_restarts();
}

Test(branches_commit, a_segment_with_200000_batches_is_closed_though_it_has_room)
{
    life_crash(&life);
    life.options.segment_bytes = 64 << 20;
    life.options.prepare_only_spare = false;
    life_start(&life);
    life_quiet(&life);
    struct log_stats stats = life_stats(&life);
    for (; stats.segment_length < life.options.segment_bytes; stats = life_stats(&life))
        life_put(&life, "big", 1, 3000000); /* the first segments are small ones */
    uint64_t before = stats.batches;
    struct topic *t = life_topic(&life, "t");
    uint64_t first_segments = stats.segments, used = 0;
    unsigned taken = 0;
    for (; stats.segments == first_segments && taken < 260000; taken++) {
        struct sent *sent =
            SEND(&life, .name = "t", .kind = WRITE_APPEND, .owner = &A, .entries = 1, .from = 1);
        while (sent->refused == -EAGAIN) {
            life_turn(&life);
            life_again(sent);
        }
        cr_assert_eq(sent->refused, 0);
        used = stats.segment_used;
        if (taken % 1024 == 0)
            stats = life_stats(&life);
    }
    life_settle(&life);
    stats = life_stats(&life);
    cr_assert_gt(stats.segments, first_segments, "%u batches in one segment", taken);
    cr_assert_lt(used, 50u << 20, "it was full of bytes, not of batches");
    cr_assert_eq(stats.batches - before, taken);
    log_topic_release(life.log, t);
}

/* ------------------------------------------------------------------------------- what a failed group held */

Test(branches_commit, g3_a_durable_write_to_a_topic_of_level_accepted_fails_with_eio_and_burns_its_sequence)
{
    struct sent *sent = SEND(&life, .name = "a", .topic_level = LEVEL_ACCEPTED, .level = LEVEL_DURABLE,
                             .kind = WRITE_BATCH, .owner = &A, .entries = 2, .bytes = 100);
    fail_ops(IO_WRITE, 1 << 0 | 1 << 2, -EIO);
    life_settle(&life);
    cr_assert_eq(sent->write.result, -EIO, "%d", sent->write.result);
    cr_assert_eq(life_stats(&life).lost_batches, 0u, "nothing that was answered is lost");
    life_quiet(&life);
    struct sent *next = SEND(&life, .name = "a", .level = LEVEL_DURABLE, .kind = WRITE_BATCH, .owner = &A,
                             .entries = 1, .bytes = 10);
    life_settle(&life);
    cr_assert_eq(next->write.result, 0, "%d, refused %d", next->write.result, next->refused);
    cr_assert_eq(next->write.first_sequence, 3u, "%llu", (unsigned long long)next->write.first_sequence);
    cr_assert_eq(next->write.flags & COMPLETION_EARLIER_LOST, 0u);
}

Test(branches_commit, g3_an_append_and_a_chunk_that_fail_are_answered_and_their_topics_free)
{
    struct stream s = {.owner = &A, .level = LEVEL_DURABLE};
    struct sent *chunk = SEND(&life, .name = "a", .topic_level = LEVEL_ACCEPTED, .kind = WRITE_CHUNK,
                              .owner = &A, .stream = &s, .first = true, .entries = 1, .bytes = 100);
    struct sent *append = SEND(&life, .name = "t", .kind = WRITE_APPEND, .entries = 1, .bytes = 10);
    cr_assert(chunk->refused == 0 && append->refused == 0);
    fail_ops(IO_WRITE, 1 << 0 | 1 << 2, -EIO);
    life_settle(&life);
    cr_assert_eq(append->write.result, -EIO);
    cr_assert(s.failed && s.error == -EIO);
    log_stream_abort(life.log, &s); /* topic "a" goes with it: nothing of it was ever committed */
    life_put(&life, "t", 1, 10);
    life_verify(&life);
    same_after_restarts();
}

Test(branches_commit, g5_a_numbered_append_behind_a_failed_number_is_given_back)
{
    struct producer *p;
    cr_assert_eq(log_producer_named(life.log, "n", 1, 7, &p), 0);
    fail_ops(IO_WRITE, 1 << 0 | 1 << 2, -EIO);
    struct request r = {
        .name = "t", .kind = WRITE_APPEND, .entries = 1, .bytes = 10, .producer = p, .number = 1};
    struct sent *one = life_send(&life, &r);
    log_turn(life.log);
    r.number = 2;
    struct sent *two = life_send(&life, &r);
    cr_assert(one->refused == 0 && two->refused == 0);
    life_settle(&life);
    cr_assert_eq(one->write.result, -EIO);
    cr_assert(two->write.result == -EAGAIN && two->write.reason == REASON_ORDER);
    cr_assert_eq(log_last_number(life.log, p, one->write.topic), 0u);
    log_producer_release(life.log, p);
}

/* ----------------------------------------------------------------------------------------------- refusals */

static struct sent *chunk_of(struct stream *s, bool first, bool last, uint32_t entries, uint32_t bytes,
                             bool goes_on)
{
    return SEND(&life, .name = "s", .kind = WRITE_CHUNK, .owner = &A, .stream = s, .first = first,
                .last = last, .entries = entries, .bytes = bytes, .goes_on = goes_on);
}

Test(branches_commit, g4_an_append_beyond_the_largest_payload_is_refused)
{
    struct sent *sent =
        SEND(&life, .name = "t", .kind = WRITE_APPEND, .entries = 1, .bytes = MAX_WHOLE_PAYLOAD + 16);
    cr_assert_eq(sent->refused, -EINVAL);
}

Test(branches_commit, g4_a_chunk_too_large_or_without_its_stream_is_refused)
{
    struct stream s = {.owner = &A}, other = {.owner = &A, .topic = life_topic(&life, "other")};
    cr_assert_eq(chunk_of(&s, true, false, 1, MAX_CHUNK_PAYLOAD + 16, false)->refused, -EINVAL);
    cr_assert_eq(chunk_of(NULL, true, false, 1, 16, false)->refused, -EINVAL);
    cr_assert_eq(chunk_of(&other, true, false, 1, 16, false)->refused, -EINVAL);
    struct sent *good = chunk_of(&s, true, true, 1, 16, false);
    life_settle(&life);
    cr_assert_eq(good->write.result, 0);
    life_committed(&life, "s", 1);
    log_topic_release(life.log, other.topic);
    life_verify(&life);
}

Test(branches_commit, g4_only_the_last_piece_of_a_chunk_may_go_on_and_not_with_0_bytes)
{
    struct stream s = {.owner = &A};
    cr_assert_eq(chunk_of(&s, true, false, 1, 0, true)->refused, -EINVAL);
    struct stream t = {.owner = &A};
    struct sent *sent = chunk_of(&t, true, false, 2, 4096, true);
    cr_assert_eq(sent->refused, 0);
    struct stream u = {.owner = &B, .topic = life_topic(&life, "u")};
    static _Alignas(16) uint8_t payload[8192];
    struct entry_record records[2] = {{.length = 4096, .flags = ENTRY_CONTINUES},
                                      {.length = 4096, .flags = ENTRY_CONTINUES}};
    struct write w = {.kind = WRITE_CHUNK,
                      .first = true,
                      .topic = u.topic,
                      .owner = &B,
                      .stream = &u,
                      .payload = payload,
                      .records = records,
                      .entries = 2,
                      .payload_bytes = 8192,
                      .done = sent->write.done};
    cr_assert_eq(log_write(life.log, &w), -EINVAL);
    log_stream_abort(life.log, &t);
    life_settle(&life);
    log_topic_release(life.log, u.topic);
}

Test(branches_commit, g4_a_stream_ends_with_the_end_of_its_entry_and_within_its_count_of_chunks)
{
    struct stream s = {.owner = &A};
    cr_assert_eq(chunk_of(&s, true, false, 1, 4096, true)->refused, 0);
    cr_assert_eq(chunk_of(&s, false, true, 0, 0, false)->refused, -EINVAL, "its entry is still open");
    cr_assert(s.failed);
    life_settle(&life);
    log_stream_abort(life.log, &s);
    struct stream t = {.owner = &A};
    cr_assert_eq(chunk_of(&t, true, false, 1, 16, false)->refused, 0);
    t.chunks = UINT32_MAX;
    cr_assert_eq(chunk_of(&t, false, false, 1, 16, false)->refused, -EINVAL);
    life_settle(&life);
    log_stream_abort(life.log, &t);
}

static int in_stop;

static void write_in_answer(struct write *w)
{
    struct write again = *w;
    in_stop = log_write(life.log, &again);
    log_topic_release(life.log, w->topic);
}

Test(branches_commit, g4_a_write_from_an_answer_of_a_stopping_log_is_refused)
{
    struct sent *sent = batch("t", 1, 10);
    cr_assert_eq(sent->refused, 0);
    sent->write.done = write_in_answer;
    in_stop = 0;
    struct log *log = life.log;
    cr_assert_eq(log_stop(log, &life.error), 0);
    life.log = NULL;
    cr_assert_eq(in_stop, -ESHUTDOWN);
    life_close(&life);
    life_start(&life);
    life_committed(&life, "t", 1);
    life_verify(&life);
}
