/* Batches that come in chunks: visible at the end or never, whatever becomes of their chunks. */
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

TestSuite(streams, .init = make, .fini = clean, .timeout = 60);

/* Sends one chunk of `entries` entries that go on from sequence `from`; held back as long as the log says
 * so. */
static struct sent *chunk_of(struct stream *stream, const char *topic, uint64_t from, uint32_t entries,
                             uint32_t bytes, bool last)
{
    struct sent *sent =
        SEND(&life, .name = topic, .kind = WRITE_CHUNK, .owner = &A, .entries = entries, .bytes = bytes,
             .from = from, .stream = stream, .first = stream->chunks == 0, .last = last);
    for (unsigned turns = 0; sent->refused == -EAGAIN; turns++) {
        cr_assert_lt(turns, 20000u);
        life_turn(&life);
        life_again(sent);
    }
    return sent;
}

#define taken(what) cr_assert_eq((what)->refused, 0)

static struct sent *append(const void *owner)
{
    return SEND(&life, .name = "t", .kind = WRITE_APPEND, .owner = owner, .entries = 1, .bytes = 20);
}

/* `chunks` chunks of 4 entries of `bytes`. */
static struct sent *send_all(struct stream *stream, unsigned chunks, uint32_t bytes)
{
    uint64_t from = life_next(&life, "t");
    struct sent *sent = NULL;
    for (unsigned i = 0; i < chunks; i++) {
        sent = chunk_of(stream, "t", from + 4 * i, 4, bytes, i + 1 == chunks);
        taken(sent);
    }
    return sent;
}

static uint64_t visible(const char *name)
{
    struct topic_view view;
    struct topic *topic = life_topic(&life, name);
    log_topic_view(topic, &view);
    log_topic_release(life.log, topic);
    return view.visible_next;
}

Test(streams, chunks_of_several_groups_and_segments_become_one_batch)
{
    struct stream stream = {.owner = &A};
    struct sent *last = send_all(&stream, 24, 120000); /* 11 MiB: three segments */
    life_settle(&life);
    cr_assert_eq(last->write.result, 0);
    cr_assert_eq(last->write.committed, 96u);
    cr_assert_eq(last->write.first_sequence, 1u);
    cr_assert_gt(life_stats(&life).segments, 2u);
    life_committed(&life, "t", 96);
    life_verify(&life);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(streams, g2_nothing_of_a_stream_is_visible_before_its_last_chunk_is_durable)
{
    struct stream stream = {.owner = &A};
    for (unsigned i = 0; i < 12; i++) {
        taken(chunk_of(&stream, "t", 1 + 4 * i, 4, 100000, false));
        life_settle(&life);
        life_quiet(&life);
        cr_assert_eq(visible("t"), 1u);
    }
    io_fault_hold(life.io, IO_FLUSH, true);
    struct sent *last = chunk_of(&stream, "t", 49, 4, 1000, true);
    taken(last);
    life_until_held(&life, IO_FLUSH, 1);
    cr_assert_eq(visible("t"), 1u);
    io_fault_hold(life.io, IO_FLUSH, false);
    io_fault_release(life.io, IO_FLUSH, 1);
    life_settle(&life);
    cr_assert_eq(visible("t"), 53u);
}

Test(streams, a_chunk_that_is_not_the_last_is_answered_in_the_next_turn)
{
    struct stream stream = {.owner = &A};
    io_fault_hold(life.io, IO_WRITE, true);
    struct sent *sent = chunk_of(&stream, "t", 1, 4, 100, false);
    cr_assert(!sent->done, "never from log_write itself");
    log_turn(life.log);
    cr_assert(sent->done);
    cr_assert_eq(sent->write.result, 0);
}

Test(streams, the_topic_is_busy_from_the_first_chunk_to_the_end)
{
    struct stream stream = {.owner = &A};
    taken(append(&B));
    life_settle(&life);
    life_committed(&life, "t", 1);
    taken(chunk_of(&stream, "t", 2, 1, 20, false));
    cr_assert_eq(append(&B)->refused, -EBUSY);
    life_settle(&life);
    life_quiet(&life);
    cr_assert_eq(append(&B)->refused, -EBUSY);
    struct sent *last = chunk_of(&stream, "t", 3, 1, 20, true);
    taken(last);
    cr_assert_eq(append(&B)->refused, -EBUSY);
    life_settle(&life);
    life_committed(&life, "t", 2);
    taken(append(&B));
    life_settle(&life);
    life_committed(&life, "t", 1);
    life_verify(&life);
}

Test(streams, other_topics_go_on_beside_a_stream)
{
    struct stream stream = {.owner = &A};
    for (unsigned i = 0; i < 10; i++) {
        taken(chunk_of(&stream, "t", 1 + 4 * i, 4, 100000, i == 9));
        struct sent *other =
            SEND(&life, .name = "u", .kind = WRITE_APPEND, .owner = &B, .entries = 1, .bytes = 30);
        taken(other);
        life_settle(&life);
        cr_assert_eq(other->write.result, 0);
        life_committed(&life, "u", 1);
    }
    life_committed(&life, "t", 40);
    life_verify(&life);
}

Test(streams, beside_small_writes_a_group_carries_a_small_share_of_chunks)
{
    struct stream stream = {.owner = &A};
    taken(SEND(&life, .name = "u", .kind = WRITE_APPEND, .owner = &B, .entries = 1, .bytes = 30));
    taken(chunk_of(&stream, "t", 1, 4, 25000, false)); /* 100,000 of 128 KiB */
    struct sent *second = SEND(&life, .name = "t", .kind = WRITE_CHUNK, .owner = &A, .entries = 4,
                               .bytes = 25000, .from = 5, .stream = &stream);
    cr_assert_eq(second->refused, -EAGAIN);
    life_turn(&life);
    cr_assert_eq(life_again(second), 0);
    log_stream_abort(life.log, &stream);
    life_settle(&life);
}

Test(streams, p11_a_small_write_that_is_expected_counts_as_one_that_waits)
{
    struct stream stream = {.owner = &A};
    life_put(&life, "u", 1, 30);
    life.ahead -= SECOND / 2; /* this test may be slow; the time that it is about passes below */
    taken(chunk_of(&stream, "t", 1, 4, 25000, false));
    struct sent *second = SEND(&life, .name = "t", .kind = WRITE_CHUNK, .owner = &A, .entries = 4,
                               .bytes = 25000, .from = 5, .stream = &stream);
    cr_assert_eq(second->refused, -EAGAIN, "its producer has just had its answer");
    life.ahead += SECOND / 2 + 2 * MILLISECOND;
    cr_assert_eq(life_again(second), 0, "it has not come back");
    log_stream_abort(life.log, &stream);
    life_settle(&life);
}

/* -------------------------------------------------------------------------------- entries across chunks */

static void send_entry(struct stream *stream, const uint8_t *data, uint32_t length, uint32_t piece, bool last)
{
    for (uint32_t at = 0; at < length;) {
        uint32_t bytes = length - at < piece ? length - at : piece;
        bool goes_on = at + bytes < length;
        struct sent *sent =
            SEND(&life, .name = "t", .kind = WRITE_CHUNK, .owner = &A, .entries = 1, .bytes = bytes,
                 .data = data + at, .from = stream->entries + life_next(&life, "t"), .stream = stream,
                 .first = stream->chunks == 0, .last = last && !goes_on, .goes_on = goes_on);
        for (unsigned turns = 0; sent->refused == -EAGAIN; turns++) {
            cr_assert_lt(turns, 20000u);
            life_turn(&life);
            life_again(sent);
        }
        taken(sent);
        at += bytes;
    }
}

Test(streams, an_entry_may_lie_in_many_chunks_and_segments)
{
    uint32_t lengths[] = {5000000, 1, 3 * 65536, 700001};
    uint8_t *data = malloc(5000000);
    struct stream stream = {.owner = &A};
    for (unsigned i = 0; i < 4; i++) {
        entry_fill(data, lengths[i], "t", 1 + i);
        send_entry(&stream, data, lengths[i], 65536, i == 3);
    }
    free(data);
    life_settle(&life);
    life_committed(&life, "t", 4);
    life_put(&life, "t", 2, 10);
    life_verify(&life);
    cr_assert_eq(life_read_all(&life, "t", 1, 16384), 6u);
    cr_assert_eq(life_read_all(&life, "t", 3, 16384), 4u);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(streams, an_entry_over_closed_segments_is_found_while_their_indexes_are_brought_in_one_by_one)
{
    const uint32_t length = 24000000;
    uint8_t *data = malloc(length);
    struct stream stream = {.owner = &A};
    entry_fill(data, length, "t", 1);
    send_entry(&stream, data, length, 65536, true);
    free(data);
    life_settle(&life);
    life_committed(&life, "t", 1);
    for (unsigned i = 0; i < 4; i++)
        life_put(&life, "bulk", 1, 3000000);
    life_quiet(&life);
    cr_assert_gt(life_stats(&life).segments, 4u);
    life_stop(&life);
    life_start(&life); /* from the checkpoint: nothing of an index is in memory */
    cr_assert_eq(life_read_all(&life, "t", 1, 65536), 1u);
    life_verify(&life);
}

static struct sent *one_chunk(struct stream *stream, struct request r)
{
    r.name = "t";
    r.kind = WRITE_CHUNK;
    r.owner = &A;
    r.stream = stream;
    r.from = 1;
    return life_send(&life, &r);
}

static void refused_and_rolled_back(struct stream *stream, struct request r)
{
    struct sent *sent = one_chunk(stream, r);
    cr_assert_eq(sent->refused, -EINVAL, "%d", sent->refused);
    cr_assert_eq(append(&B)->refused, 0, "the topic is free once the stream is rolled back");
    life_settle(&life);
    life_committed(&life, "t", 1);
    log_stream_abort(life.log, stream);
    life_verify(&life);
}

Test(streams, a_piece_that_goes_on_is_the_last_of_its_chunk_and_whole_blocks_of_4096)
{
    struct stream stream = {.owner = &A};
    taken(one_chunk(&stream, (struct request){.first = true, .entries = 1, .bytes = 8192, .goes_on = true}));
    refused_and_rolled_back(&stream, (struct request){.entries = 1, .bytes = 5000, .goes_on = true});
}

Test(streams, the_last_chunk_ends_its_entries)
{
    struct stream stream = {.owner = &A};
    taken(one_chunk(&stream, (struct request){.first = true, .entries = 1, .bytes = 4096}));
    refused_and_rolled_back(&stream,
                            (struct request){.entries = 1, .bytes = 4096, .goes_on = true, .last = true});
}

Test(streams, the_last_chunk_brings_the_entry_that_is_open)
{
    struct stream stream = {.owner = &A};
    taken(one_chunk(&stream, (struct request){.first = true, .entries = 1, .bytes = 4096, .goes_on = true}));
    refused_and_rolled_back(&stream, (struct request){.entries = 0, .last = true});
}

/* ----------------------------------------------------------------------------------------------- limits */

Test(streams, takes_2000_entries_and_refuses_2001)
{
    struct stream whole = {.owner = &A}, over = {.owner = &A};
    taken(chunk_of(&whole, "t", 1, 1500, 10, false));
    taken(chunk_of(&whole, "t", 1501, 500, 10, true));
    life_settle(&life);
    life_committed(&life, "t", 2000);
    taken(chunk_of(&over, "t", 2001, 1500, 10, false));
    cr_assert_eq(chunk_of(&over, "t", 3501, 501, 10, true)->refused, -EINVAL);
    life_verify(&life);
    taken(append(&B));
    life_settle(&life);
}

/* Arithmetic instead of 10 GiB: the stream's own count of bytes is set to what it would be. */
static int at_the_limit(uint64_t over, struct request r)
{
    struct stream stream = {.owner = &A};
    taken(one_chunk(&stream, (struct request){.first = true, .entries = 3, .bytes = 16}));
    uint64_t entries = 3 + r.entries;
    stream.bytes = MAX_BATCH_BYTES - entries * ENTRY_OVERHEAD - (uint64_t)r.entries * r.bytes + over;
    int result = one_chunk(&stream, r)->refused;
    if (!stream.last_taken || stream.failed)
        log_stream_abort(life.log, &stream);
    life_settle(&life);
    return result;
}

Test(streams, the_limit_of_10_gib_is_exact)
{
    struct request one = {.entries = 1, .bytes = 100, .last = true}, many = {.entries = 7, .bytes = 33};
    cr_assert_eq(at_the_limit(0, one), 0);
    cr_assert_eq(at_the_limit(1, one), -EINVAL);
    cr_assert_eq(at_the_limit(0, many), 0);
    cr_assert_eq(at_the_limit(1, many), -EINVAL);
    cr_assert_eq(at_the_limit(UINT64_C(1) << 33, many), -EINVAL);
    cr_assert_eq(at_the_limit(0, (struct request){.entries = 1, .bytes = 0, .last = true}), 0);
    cr_assert_eq(at_the_limit(1, (struct request){.entries = 1, .bytes = 0, .last = true}), -EINVAL);
}

Test(streams, the_limit_counts_the_overhead_of_an_entry_that_is_still_open)
{
    struct request open = {.entries = 1, .bytes = 4096, .goes_on = true};
    cr_assert_eq(at_the_limit(0, open), 0);
    cr_assert_eq(at_the_limit(1, open), -EINVAL);
}

Test(streams, a_stream_over_the_limit_is_rolled_back)
{
    struct stream stream = {.owner = &A};
    taken(one_chunk(&stream, (struct request){.first = true, .entries = 1, .bytes = 16}));
    stream.bytes = MAX_BATCH_BYTES;
    refused_and_rolled_back(&stream, (struct request){.entries = 1, .bytes = 16, .last = true});
}

/* ------------------------------------------------------------------------------------------------- ends */

Test(streams, g3_an_aborted_stream_never_appears)
{
    struct stream stream = {.owner = &A};
    for (unsigned i = 0; i < 6; i++)
        taken(chunk_of(&stream, "t", 1 + 4 * i, 4, 120000, false));
    life_settle(&life);
    log_stream_abort(life.log, &stream);
    cr_assert_eq(life_stats(&life).streams_open, 0u);
    life_put(&life, "t", 2, 50); /* the same sequences, other content lengths */
    life_verify(&life);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(streams, an_abort_with_the_chunk_still_gathering_or_in_the_device_is_safe)
{
    struct stream gathering = {.owner = &A}, flying = {.owner = &A};
    taken(chunk_of(&gathering, "t", 1, 4, 100, false));
    log_stream_abort(life.log, &gathering);
    memset(&gathering, 0xee, sizeof gathering); /* the log has forgotten it */
    life_settle(&life);
    life_quiet(&life);
    io_fault_hold(life.io, IO_WRITE, true);
    taken(chunk_of(&flying, "t", 1, 4, 100, false));
    life_until_held(&life, IO_WRITE, 1);
    log_stream_abort(life.log, &flying);
    memset(&flying, 0xee, sizeof flying);
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 1);
    life_quiet(&life);
    life_put(&life, "t", 1, 10);
    life_verify(&life);
}

Test(streams, a_stream_that_was_never_admitted_may_be_aborted)
{
    struct stream stream = {.owner = &A};
    log_stream_abort(life.log, &stream);
    life_put(&life, "t", 1, 10);
}

Test(streams, a_stream_that_its_broker_did_not_finish_never_appears)
{
    struct stream stream = {.owner = &A};
    taken(chunk_of(&stream, "t", 1, 4, 120000, false));
    life_settle(&life);
    life_quiet(&life);
    life_crash(&life);
    life_start(&life);
    life_put(&life, "t", 3, 7);
    life_verify(&life);
}

Test(streams, g3_a_failed_chunk_fails_the_stream_and_frees_the_topic)
{
    struct stream stream = {.owner = &A};
    taken(chunk_of(&stream, "t", 1, 4, 1000, false));
    life_settle(&life);
    life_quiet(&life);
    life.plans[IO_WRITE] = (struct plan){.failing = 1 << 0 | 1 << 2, .error = -EIO};
    taken(chunk_of(&stream, "t", 5, 4, 1000, false));
    life_quiet(&life);
    cr_assert(stream.failed);
    cr_assert_eq(stream.error, -EIO);
    cr_assert_eq(chunk_of(&stream, "t", 9, 4, 1000, false)->refused, -EIO);
    cr_assert_eq(chunk_of(&stream, "t", 9, 4, 1000, true)->refused, -EIO);
    taken(append(&B));
    life_settle(&life);
    life_committed(&life, "t", 1);
    log_stream_abort(life.log, &stream);
    life_verify(&life);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(streams, g3_a_last_chunk_that_gathers_while_an_earlier_one_fails_is_answered_with_the_error)
{
    struct stream stream = {.owner = &A};
    life.plans[IO_WRITE] = (struct plan){.failing = 1 << 0 | 1 << 2, .error = -EIO};
    taken(chunk_of(&stream, "t", 1, 4, 1000, false));
    log_turn(life.log); /* in the device */
    struct sent *last = chunk_of(&stream, "t", 5, 4, 1000, true);
    taken(last);
    life_settle(&life);
    cr_assert_eq(last->write.result, -EIO, "%d", last->write.result);
    life_put(&life, "t", 2, 10);
    life_verify(&life);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(streams, a_stream_whose_group_is_written_twice_is_whole)
{
    struct stream stream = {.owner = &A};
    taken(chunk_of(&stream, "t", 1, 4, 1000, false));
    life_settle(&life);
    life_quiet(&life);
    life.plans[IO_WRITE] = (struct plan){.failing = 1 << 0, .error = -EIO};
    taken(chunk_of(&stream, "t", 5, 4, 1000, false));
    life_quiet(&life);
    struct sent *last = chunk_of(&stream, "t", 9, 4, 1000, true);
    life_settle(&life);
    cr_assert_eq(last->write.result, 0);
    cr_assert_eq(life_stats(&life).rollbacks, 1u);
    life_committed(&life, "t", 12);
    life_verify(&life);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(streams, chunks_must_begin_with_a_first_one_and_have_only_one)
{
    struct stream stream = {.owner = &A};
    cr_assert_eq(one_chunk(&stream, (struct request){.entries = 1, .bytes = 16})->refused, -EINVAL);
    taken(one_chunk(&stream, (struct request){.first = true, .entries = 1, .bytes = 16}));
    cr_assert_eq(one_chunk(&stream, (struct request){.first = true, .entries = 1, .bytes = 16})->refused,
                 -EINVAL);
    log_stream_abort(life.log, &stream);
    life_settle(&life);
    taken(append(&B));
}

Test(streams, two_streams_of_one_owner_on_two_topics_run_side_by_side)
{
    struct stream one = {.owner = &A}, two = {.owner = &A};
    for (unsigned i = 0; i < 8; i++) {
        taken(chunk_of(&one, "t", 1 + i, 1, 200000, i == 7));
        taken(chunk_of(&two, "u", 1 + 2 * i, 2, 90000, i == 7));
    }
    life_settle(&life);
    life_committed(&life, "t", 8);
    life_committed(&life, "u", 16);
    life_verify(&life);
}

Test(streams, a_stream_at_level_accepted_is_answered_at_its_last_chunk)
{
    struct stream stream = {.owner = &A};
    struct sent *sent = SEND(&life, .name = "t", .kind = WRITE_CHUNK, .owner = &A, .entries = 1, .bytes = 16,
                             .stream = &stream, .first = true, .topic_level = LEVEL_ACCEPTED);
    taken(sent);
    struct sent *last = chunk_of(&stream, "t", 2, 1, 16, true);
    taken(last);
    io_fault_hold(life.io, IO_WRITE, true);
    log_turn(life.log);
    cr_assert(last->done);
    cr_assert_eq(last->write.result, 0);
    cr_assert_eq(last->write.level_reached, LEVEL_ACCEPTED);
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 100);
    life_quiet(&life);
    life_committed(&life, "t", 2);
    life_verify(&life);
}

Test(streams, a_stream_without_entries_does_no_harm)
{
    struct stream stream = {.owner = &A};
    life_put(&life, "t", 1, 10);
    struct sent *sent = one_chunk(&stream, (struct request){.first = true, .last = true, .entries = 0});
    if (sent->refused == 0) {
        life_settle(&life);
        cr_assert_eq(sent->write.result, 0);
        cr_assert_eq(sent->write.committed, 0u);
    } else {
        cr_assert_eq(sent->refused, -EINVAL);
        log_stream_abort(life.log, &stream);
    }
    for (unsigned i = 0; i < 3; i++)
        life_put(&life, "t", 2, 1500000); /* the segment changes: its index is made */
    life_verify(&life);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}
