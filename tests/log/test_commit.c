/* One group on its way to the disk, and every way in which that fails: rolled back durably, or fail-stop. */
#include "life.h"

static struct life life;
static const int A;

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

TestSuite(commit, .init = make, .fini = clean, .timeout = 60);

static struct sent *batch(uint32_t entries, uint32_t bytes)
{
    return SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = entries, .bytes = bytes);
}

/* The i-th foreground op of the kind from now on fails for each bit i. */
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

/* -------------------------------------------------------------------------------------------- good ways */

Test(commit, g1_a_durable_answer_comes_after_write_and_flush)
{
    io_fault_hold(life.io, IO_WRITE, true);
    io_fault_hold(life.io, IO_FLUSH, true);
    uint64_t flushes = io_fault_count(life.io, IO_FLUSH);
    struct sent *sent = batch(3, 100);
    life_until_held(&life, IO_WRITE, 1);
    cr_assert(!sent->done);
    cr_assert_eq(io_fault_count(life.io, IO_FLUSH), flushes, "no flush before all writes are reaped");
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 1);
    life_until_held(&life, IO_FLUSH, 1);
    cr_assert(!sent->done);
    io_fault_hold(life.io, IO_FLUSH, false);
    io_fault_release(life.io, IO_FLUSH, 1);
    life_settle(&life);
    cr_assert_eq(sent->write.level_reached, LEVEL_DURABLE);
    cr_assert_eq(sent->write.group, 1u);
    cr_assert(sent->write.submitted_ns > 0 && sent->write.durable_ns >= sent->write.submitted_ns);
}

Test(commit, a_large_group_is_a_few_large_writes_and_one_flush)
{
    uint64_t writes = io_fault_count(life.io, IO_WRITE), flushes = life_stats(&life).flushes;
    struct sent *sent = batch(10, 300000);
    cr_assert_eq(sent->refused, 0);
    life_settle(&life);
    cr_assert_leq(io_fault_count(life.io, IO_WRITE) - writes, 8u);
    cr_assert_eq(life_stats(&life).flushes, flushes + 1);
}

Test(commit, g1_a_group_of_many_writes_is_flushed_only_when_all_of_them_are_reaped)
{
    enum { WRITES = 6 };
    io_fault_hold(life.io, IO_WRITE, true);
    uint64_t flushes = io_fault_count(life.io, IO_FLUSH);
    struct sent *sent = batch(10, 300000);
    life_until_held(&life, IO_WRITE, WRITES);
    for (unsigned left = WRITES; left > 0; left--) {
        cr_assert_eq(io_fault_count(life.io, IO_FLUSH), flushes, "with %u writes in the device", left);
        cr_assert_eq(io_fault_release(life.io, IO_WRITE, 1), 1u);
        life_turn(&life);
        life_turn(&life);
    }
    io_fault_hold(life.io, IO_WRITE, false);
    life_settle(&life);
    cr_assert(sent->done);
    cr_assert_eq(sent->write.result, 0);
    cr_assert_eq(io_fault_count(life.io, IO_FLUSH), flushes + 1);
}

Test(commit, one_group_is_in_flight_and_everything_else_gathers)
{
    io_fault_hold(life.io, IO_FLUSH, true);
    struct sent *first = batch(1, 10);
    life_until_held(&life, IO_FLUSH, 1);
    uint64_t writes = io_fault_count(life.io, IO_WRITE);
    for (unsigned i = 0; i < 10; i++) {
        cr_assert_eq(SEND(&life, .name = "u", .kind = WRITE_APPEND, .entries = 1, .bytes = 10)->refused, 0);
        life_turn(&life);
    }
    cr_assert_eq(io_fault_count(life.io, IO_WRITE), writes);
    cr_assert(!first->done);
    uint64_t groups = life_stats(&life).groups;
    io_fault_hold(life.io, IO_FLUSH, false);
    io_fault_release(life.io, IO_FLUSH, 1);
    life_settle(&life);
    cr_assert_eq(life_stats(&life).groups, groups + 2);
}

Test(commit, g17_no_write_touches_a_block_that_was_written_before)
{
    for (unsigned i = 0; i < 12; i++)
        life_put(&life, i % 2 ? "t" : "u", 3, 100000 * (1 + i % 5));
    life_quiet(&life);
    /* Headers are the first block of their file; a group's blocks come after all earlier ones in it. */
    for (size_t i = 0; i < life.op_count; i++) {
        const struct op_record *a = &life.ops[i];
        if (a->kind != IO_WRITE || a->background || strstr(a->name, ".segment") == NULL)
            continue;
        for (size_t k = 0; k < i; k++) {
            const struct op_record *b = &life.ops[k];
            bool same = b->kind == IO_WRITE && !b->background && strcmp(a->name, b->name) == 0;
            cr_assert(!same || b->offset + b->length <= a->offset, "%s: %llu bytes at %llu over %llu at %llu",
                      a->name, (unsigned long long)a->length, (unsigned long long)a->offset,
                      (unsigned long long)b->length, (unsigned long long)b->offset);
        }
    }
}

Test(commit, a_predecessor_is_cut_at_its_end_once_its_successor_is_durable)
{
    for (unsigned i = 0; i < 5; i++)
        life_put(&life, "t", 1, 3000000);
    life_quiet(&life);
    static struct disk disk;
    disk_scan(&life, &disk);
    cr_assert_gt(disk.segment_count, 3u);
    for (size_t i = 0; i + 1 < disk.segment_count; i++)
        cr_assert_eq(disk.segments[i].size, disk.segments[i].end);
    life_verify(&life);
}

/* ----------------------------------------------------------------------------------------- write errors */

Test(commit, g3_a_write_error_is_cured_in_the_next_segment)
{
    life_put(&life, "t", 2, 100);
    fail_ops(IO_WRITE, 1, -EIO);
    struct sent *sent = batch(3, 5000);
    life_settle(&life);
    cr_assert_eq(sent->write.result, 0);
    cr_assert_eq(sent->write.first_sequence, 3u);
    life_committed(&life, "t", 3);
    struct log_stats stats = life_stats(&life);
    cr_assert_eq(stats.rollbacks, 1u);
    cr_assert_eq(stats.failed_batches, 0u);
    cr_assert_eq(stats.segments, 2u);
    life_verify(&life);
    same_after_restarts();
}

Test(commit, g3_a_write_that_landed_and_failed_all_the_same_does_not_count_twice)
{
    life_put(&life, "t", 2, 100);
    life.plans[IO_WRITE] = (struct plan){.failing = 1, .error = -EIO, .after = true};
    struct sent *sent = batch(3, 5000);
    life_settle(&life);
    cr_assert_eq(sent->write.result, 0);
    life_committed(&life, "t", 3);
    life_verify(&life);
    same_after_restarts();
}

static void twice(int error, int answer, bool after)
{
    life_put(&life, "t", 2, 100);
    life.plans[IO_WRITE] = (struct plan){.failing = 1 << 0 | 1 << 2, .error = error, .after = after};
    struct sent *sent = batch(3, 5000);
    life_settle(&life);
    cr_assert_eq(sent->write.result, answer, "%d", sent->write.result);
    cr_assert_eq(life_stats(&life).failed_batches, 1u);
    cr_assert_eq(life_stats(&life).rollbacks, 2u);
    life_verify(&life);
    same_after_restarts();
    life_put(&life, "t", 2, 60); /* sequences without a gap: the model says so */
    life_verify(&life);
    same_after_restarts();
}

Test(commit, g3_two_write_errors_are_eio_and_the_batch_never_appears)
{
    twice(-EIO, -EIO, false);
}

Test(commit, g3_two_write_errors_after_the_bytes_landed_are_eio_and_the_batch_never_appears)
{
    twice(-EIO, -EIO, true);
}

Test(commit, g9_two_write_errors_for_lack_of_space_are_enospc)
{
    twice(-ENOSPC, -ENOSPC, false);
}

Test(commit, g9_an_exceeded_quota_is_enospc_too)
{
    twice(-EDQUOT, -ENOSPC, false);
}

Test(commit, g3_a_group_is_tried_twice_and_not_a_third_time_even_if_there_is_space)
{
    life_crash(&life);
    life.options.prepare_only_spare = false;
    life_start(&life);
    life_quiet(&life);
    /* Group, header, group, header: a third try would be write 4. */
    fail_ops(IO_WRITE, 1 << 0 | 1 << 2, -EIO);
    struct sent *sent = batch(3, 5000);
    life_settle(&life);
    cr_assert_eq(sent->write.result, -EIO, "%d", sent->write.result);
    cr_assert_eq(life.plans[IO_WRITE].seen, 4u, "%llu writes", (unsigned long long)life.plans[IO_WRITE].seen);
    life_put(&life, "t", 1, 10);
    life_verify(&life);
    same_after_restarts();
}

Test(commit, g3_a_failed_answer_comes_only_after_the_roll_back_is_durable)
{
    fail_ops(IO_WRITE, 1 << 0 | 1 << 2, -EIO);
    struct sent *sent = batch(3, 5000);
    log_turn(life.log);
    while (io_fault_count(life.io, IO_FLUSH) == 0 || life_stats(&life).rollbacks < 2)
        life_turn(&life);
    io_fault_hold(life.io, IO_FLUSH, true);
    life_until_held(&life, IO_FLUSH, 1);
    cr_assert(!sent->done, "-EIO before the flush of the header that rolls it back");
    io_fault_hold(life.io, IO_FLUSH, false);
    io_fault_release(life.io, IO_FLUSH, 10);
    life_settle(&life);
    cr_assert_eq(sent->write.result, -EIO);
}

Test(commit, g3_what_gathers_behind_a_failed_group_is_committed_with_the_right_sequences)
{
    fail_ops(IO_WRITE, 1 << 0 | 1 << 2, -EIO);
    struct sent *failed = batch(3, 5000);
    log_turn(life.log);
    struct sent *behind =
        SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 2, .bytes = 77, .from = 1);
    cr_assert_eq(behind->refused, 0);
    life_settle(&life);
    cr_assert_eq(failed->write.result, -EIO);
    cr_assert_eq(behind->write.result, 0);
    cr_assert_eq(behind->write.first_sequence, 1u, "no gap on a topic that only ever used sync");
    cr_assert_lt(failed->order, behind->order);
    life_committed(&life, "t", 2);
    life_verify(&life);
    same_after_restarts();
}

Test(commit, g3_a_failed_group_that_brought_a_topic_leaves_the_topic_to_the_next_one)
{
    fail_ops(IO_WRITE, 1 << 0 | 1 << 2, -EIO);
    struct sent *failed = batch(1, 10);
    life_settle(&life);
    cr_assert_eq(failed->write.result, -EIO);
    cr_assert_null(log_topic_after(life.log, 0), "its catalogue entry was in the failed group");
    life_put(&life, "t", 1, 10);
    life_put(&life, "u", 1, 10);
    life_verify(&life);
    same_after_restarts();
}

Test(commit, g3_one_of_many_writes_of_a_large_group_fails)
{
    for (unsigned i = 0; i < 3; i++) {
        life_quiet(&life); /* a spare that the whole group fits is prepared */
        fail_ops(IO_WRITE, 1u << i * 2, -EIO);
        struct sent *sent = batch(10, 300000);
        life_settle(&life);
        cr_assert_eq(sent->write.result, 0);
        life_committed(&life, "t", 10);
        life_quiet(&life);
    }
    life_verify(&life);
    same_after_restarts();
}

/* ----------------------------------------------------------------------------------------- short writes */

static void come_short(uint64_t bytes)
{
    io_fault_set(life.io, IO_WRITE,
                 &(struct fault){.action = FAULT_SHORT, .bytes = bytes, .nth = 1, .only_foreground = true});
    struct sent *sent = batch(5, 9000);
    life_settle(&life);
    cr_assert_eq(sent->write.result, 0, "%d", sent->write.result);
    life_committed(&life, "t", 5);
    life_verify(&life);
}

Test(commit, g8_a_short_write_is_completed_by_submitting_the_rest)
{
    uint64_t writes = io_fault_count(life.io, IO_WRITE);
    come_short(8192);
    cr_assert_eq(io_fault_count(life.io, IO_WRITE), writes + 2);
    cr_assert_eq(life_stats(&life).rollbacks, 0u);
    same_after_restarts();
}

Test(commit, g8_a_write_of_nothing_fails_the_group)
{
    come_short(0);
    cr_assert_eq(life_stats(&life).rollbacks, 1u);
    same_after_restarts();
}

Test(commit, g8_a_write_of_half_a_block_fails_the_group)
{
    come_short(8192 + 512);
    cr_assert_eq(life_stats(&life).rollbacks, 1u);
    same_after_restarts();
}

Test(commit, g8_the_error_behind_a_short_write_fails_the_group)
{
    io_fault_set(life.io, IO_WRITE,
                 &(struct fault){.action = FAULT_SHORT, .bytes = 4096, .nth = 1, .only_foreground = true});
    struct sent *sent = batch(5, 9000);
    log_turn(life.log);
    fail_ops(IO_WRITE, 1, -ENOSPC);
    life_settle(&life);
    cr_assert_eq(sent->write.result, 0);
    cr_assert_eq(life_stats(&life).rollbacks, 1u);
    life_committed(&life, "t", 5);
    same_after_restarts();
}

/* -------------------------------------------------------------------------------------------- fail-stop */

static void stopped_without_an_answer(const struct sent *sent, const char *words)
{
    life_settle(&life);
    const struct error *failed = log_failed(life.log);
    cr_assert_not_null(failed);
    cr_assert_not_null(strstr(failed->text, words), "\"%s\" lacks \"%s\"", failed->text, words);
    cr_assert_not_null(strstr(failed->text, life.folder));
    for (unsigned i = 0; i < 20; i++) {
        cr_assert_eq(log_turn(life.log), INT64_MAX);
        io_wait(life.io, 0);
    }
    cr_assert(!sent->done, "an answer after a fail-stop");
    cr_assert_eq(batch(1, 1)->refused, -ESHUTDOWN);
}

/* Recovery decides, once: all of it or nothing, and the same in every later life. */
static void decided_once(uint32_t entries)
{
    uint64_t found[3];
    for (unsigned i = 0; i < 3; i++) {
        life_crash(&life);
        life_start(&life);
        struct topic *topic = life_topic(&life, "t");
        struct topic_view view;
        log_topic_view(topic, &view);
        found[i] = view.visible_next;
        log_topic_release(life.log, topic);
    }
    uint64_t next = life_next(&life, "t");
    cr_assert(found[0] == next || found[0] == next + entries, "%llu", (unsigned long long)found[0]);
    cr_assert(found[0] == found[1] && found[1] == found[2], "G6: decided anew");
    life_committed(&life, "t", (uint32_t)(found[0] - next));
    life_verify(&life);
    life_put(&life, "t", 1, 5);
    life_verify(&life);
}

Test(commit, g10_a_failed_flush_is_a_fail_stop)
{
    life_put(&life, "t", 2, 10);
    fail_ops(IO_FLUSH, 1, -EIO);
    struct sent *sent = batch(3, 5000);
    stopped_without_an_answer(sent, "flush");
    decided_once(3);
}

Test(commit, g10_enospc_at_a_flush_is_a_fail_stop_too)
{
    life_put(&life, "t", 2, 10);
    fail_ops(IO_FLUSH, 1, -ENOSPC);
    struct sent *sent = batch(3, 5000);
    stopped_without_an_answer(sent, "flush");
    decided_once(3);
}

static unsigned made_for_groups(enum io_kind kind, size_t from)
{
    unsigned count = 0;
    for (size_t i = from; i < life.op_count; i++)
        count += life.ops[i].kind == kind && !life.ops[i].background;
    return count;
}

/* A flush beside the log (a checkpoint's, of the folder) fails while the nth op of the kind for a group is in
 * the device, where it then ends well. The device's cache is one: that proves nothing any more. */
static void fails_beside(enum io_kind kind, unsigned nth, uint8_t level)
{
    bool durable = level == LEVEL_DURABLE;
    io_fault_set(
        life.io, IO_SYNC_DIRECTORY,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = 1, .only_background = true});
    io_fault_hold(life.io, IO_SYNC_DIRECTORY, true);
    life.ahead += 2 * SECOND; /* idle for long: a checkpoint */
    life_until_held(&life, IO_SYNC_DIRECTORY, 1);
    io_fault_hold(life.io, kind, true);
    size_t from = life.op_count;
    struct sent *sent = SEND(&life, .name = durable ? "t" : "w", .kind = WRITE_BATCH, .owner = &A,
                             .entries = 3, .bytes = 100, .level = level, .topic_level = level);
    for (unsigned i = 0; i < 1000 && made_for_groups(kind, from) < nth; i++) {
        (void)io_fault_release(life.io, kind, UINT32_MAX); /* those before it */
        life_turn(&life);
    }
    cr_assert_eq(made_for_groups(kind, from), nth);
    cr_assert(!sent->done);
    from = life.op_count;
    io_fault_hold(life.io, IO_SYNC_DIRECTORY, false);
    (void)io_fault_release(life.io, IO_SYNC_DIRECTORY, UINT32_MAX);
    io_fault_hold(life.io, kind, false);
    (void)io_fault_release(life.io, kind, UINT32_MAX); /* all end in one wait, the failure first */
    for (unsigned i = 0; i < 1000 && life.io->inflight > 0; i++)
        io_wait(life.io, 20 * MILLISECOND);
    cr_assert_eq(life.io->inflight, 0u);
    cr_assert_not_null(log_failed(life.log));
    cr_assert(life_said(&life, "the flush of a checkpoint failed"), "%s", life.said);
    cr_assert(!sent->done, "answered after a flush had failed");
    cr_assert_eq(made_for_groups(IO_WRITE, from) + made_for_groups(IO_FLUSH, from), 0u,
                 "it goes on after a flush has failed");
    life_crash(&life);
    life_start(&life);
}

Test(commit, g10_a_flush_that_failed_beside_the_write_of_a_group_is_a_fail_stop)
{
    life_put(&life, "t", 1, 100);
    fails_beside(IO_WRITE, 1, LEVEL_WRITTEN);
}

Test(commit, g10_a_flush_that_failed_beside_the_flush_of_a_group_is_a_fail_stop)
{
    life_put(&life, "t", 1, 100);
    fails_beside(IO_FLUSH, 1, LEVEL_DURABLE);
}

Test(commit, g10_a_flush_that_failed_beside_the_header_of_a_segment_is_a_fail_stop)
{
    life_put(&life, "t", 1, 100);
    fail_ops(IO_WRITE, 1, -EIO); /* the group's: the header that rolls it back is the second one */
    fails_beside(IO_WRITE, 2, LEVEL_DURABLE);
}

Test(commit, g10_a_flush_that_failed_beside_the_flush_of_a_header_is_a_fail_stop)
{
    life_put(&life, "t", 1, 100);
    fail_ops(IO_WRITE, 1, -EIO);
    fails_beside(IO_FLUSH, 1, LEVEL_DURABLE);
}

Test(commit, g10_no_flush_is_tried_again_after_one_failed)
{
    fail_ops(IO_FLUSH, 1, -EIO);
    struct sent *sent = batch(3, 5000);
    life_settle(&life);
    uint64_t flushes = io_fault_count(life.io, IO_FLUSH);
    stopped_without_an_answer(sent, "flush");
    cr_assert_eq(io_fault_count(life.io, IO_FLUSH), flushes);
    int error = log_stop(life.log, &life.error);
    life.log = NULL;
    cr_assert_eq(error, -EIO);
    cr_assert_eq(io_fault_count(life.io, IO_FLUSH), flushes);
    cr_assert(!file_there(&life, "checkpoint-0") && !file_there(&life, "checkpoint-1"));
}

Test(commit, g10_a_roll_back_whose_header_cannot_be_written_is_a_fail_stop)
{
    life_put(&life, "t", 2, 10);
    fail_ops(IO_WRITE, 1 << 0 | 1 << 1, -EIO);
    stopped_without_an_answer(batch(3, 5000), "header");
    decided_once(3);
}

Test(commit, g10_a_roll_back_whose_header_comes_short_is_a_fail_stop)
{
    life_put(&life, "t", 2, 10);
    fail_ops(IO_WRITE, 1 << 0, -EIO);
    struct sent *sent = batch(3, 5000);
    log_turn(life.log);
    io_fault_set(life.io, IO_WRITE, &(struct fault){.action = FAULT_SHORT, .bytes = 0, .nth = 1});
    stopped_without_an_answer(sent, "header");
    decided_once(3);
}

Test(commit, g10_a_roll_back_whose_header_cannot_be_flushed_is_a_fail_stop)
{
    life_put(&life, "t", 2, 10);
    fail_ops(IO_WRITE, 1 << 0, -EIO);
    fail_ops(IO_FLUSH, 1 << 0, -EIO);
    stopped_without_an_answer(batch(3, 5000), "flush");
    decided_once(3);
}

/* Fills the segment so far that the next batch of 1 MB needs another one. */
static void nearly_full(void)
{
    life_put(&life, "t", 1, 3000000);
    life_put(&life, "t", 1, 600000);
    life_quiet(&life);
}

Test(commit, g10_a_change_of_segment_whose_header_cannot_be_written_is_a_fail_stop)
{
    nearly_full();
    fail_ops(IO_WRITE, 1, -EIO);
    stopped_without_an_answer(batch(1, 1000000), "header");
    decided_once(1);
}

Test(commit, g10_a_change_of_segment_whose_header_cannot_be_flushed_is_a_fail_stop)
{
    nearly_full();
    fail_ops(IO_FLUSH, 1, -EIO);
    stopped_without_an_answer(batch(1, 1000000), "flush");
    decided_once(1);
}

Test(commit, no_random_numbers_for_a_segment_is_a_fail_stop)
{
    nearly_full();
    life.random_error = -EIO;
    struct sent *sent = batch(1, 1000000);
    stopped_without_an_answer(sent, "random");
    life.random_error = 0;
    decided_once(1);
}

Test(commit, g3_a_roll_back_in_the_first_moments_of_a_broker_waits_for_its_spare)
{
    for (unsigned stop = 0; stop < 2; stop++) {
        life_remove(&life);
        life_make(&life);
        life_start(&life);
        io_fault_hold(life.io, IO_CREATE, true); /* of the first spare */
        fail_ops(IO_WRITE, 1 << 0, -EIO);
        struct sent *sent = batch(3, 5000);
        life_until_held(&life, IO_CREATE, 1);
        for (unsigned i = 0; i < 200; i++)
            life_turn(&life);
        cr_assert_null(log_failed(life.log));
        cr_assert(!sent->done);
        cr_assert(log_busy(life.log));
        io_fault_hold(life.io, IO_CREATE, false);
        io_fault_release(life.io, IO_CREATE, 1);
        if (stop == 0) {
            life_settle(&life);
            cr_assert(sent->done);
            cr_assert_eq(sent->write.result, 0);
        } else {
            life_stop(&life); /* waits for it, too */
            life_start(&life);
        }
        life_committed(&life, "t", 3);
        cr_assert_eq(life_stats(&life).rollbacks, 1u - stop);
        life_verify(&life);
    }
}

Test(commit, g10_a_roll_back_whose_spare_cannot_be_made_is_a_fail_stop)
{
    life_remove(&life);
    life_make(&life);
    life_start(&life);
    io_fault_set(
        life.io, IO_CREATE,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = ENOSPC, .nth = 1, .from_then_on = true});
    fail_ops(IO_WRITE, 1 << 0, -EIO);
    stopped_without_an_answer(batch(3, 100), "none can be prepared");
    decided_once(3);
}

Test(commit, g10_no_spare_to_roll_back_into_is_a_fail_stop)
{
    life_remove(&life);
    life_make(&life);
    life_start(&life); /* one segment, and nothing can be prepared */
    io_fault_set(
        life.io, IO_CREATE,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = ENOSPC, .nth = 1, .from_then_on = true});
    life_quiet(&life);
    life_put(&life, "t", 1, 100);
    fail_ops(IO_WRITE, 1 << 0, -EIO);
    stopped_without_an_answer(batch(3, 100), "no spare");
    decided_once(3);
}

Test(commit, g9_when_spares_run_out_on_a_full_disk_batches_are_refused_and_reads_go_on)
{
    io_fault_set(
        life.io, IO_CREATE,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = ENOSPC, .nth = 1, .from_then_on = true});
    life_put(&life, "t", 1, 100);
    struct sent *sent;
    unsigned failed = 0;
    do {
        fail_ops(IO_WRITE, 1 << 0 | 1 << 2, -ENOSPC);
        sent = batch(1, 100);
        life_settle(&life);
        cr_assert_null(log_failed(life.log));
        failed += sent->refused == 0 && sent->write.result == -ENOSPC;
    } while (sent->refused == 0 && failed < 10);
    cr_assert_eq(sent->refused, -ENOSPC, "%d", sent->refused);
    cr_assert_gt(failed, 0u);
    life_verify(&life);
    io_fault_clear(life.io, IO_CREATE);
    life.plans[IO_WRITE] = (struct plan){0};
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    life_put(&life, "t", 2, 100);
    life_verify(&life);
    same_after_restarts();
}

/* ---------------------------------------------------------------------------------------- back end mmap */

Test(commit, g10_where_write_errors_are_final_one_is_a_fail_stop)
{
    life_crash(&life);
    life.backend = IO_BACKEND_MMAP;
    life_start(&life);
    life_quiet(&life);
    life.io->errors_are_final = true;
    life_put(&life, "t", 1, 100);
    fail_ops(IO_WRITE, 1, -EIO);
    stopped_without_an_answer(batch(1, 100), "write of group");
    decided_once(1);
}

Test(commit, the_other_back_ends_keep_the_same_promises)
{
    int backends[] = {IO_BACKEND_MMAP, IO_BACKEND_URING, IO_BACKEND_PWRITE};
    for (size_t i = 0; i < array_count(backends); i++) {
        life_crash(&life);
        life.backend = backends[i];
        life_start(&life);
        life_verify(&life);
        for (unsigned n = 0; n < 4; n++)
            life_put(&life, n % 2 ? "t" : "u", 3, 500000);
        life_verify(&life);
    }
}
