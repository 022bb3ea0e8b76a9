/* Batches that outgrow their share of the arena while they are filled. */
#include "fake.h"

#include <criterion/criterion.h>

static struct fake fake;
static walrus *handle;
static walrus_topic *topic;

static void begin(void)
{
    fake_start(&fake);
    handle = CONNECT(&fake, .queue_entries = 8, .arena_bytes = MIN_ARENA_BYTES);
    topic = open_topic(handle, "t");
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(stream, .init = begin, .fini = end);

static uint8_t *pattern(size_t length, unsigned seed)
{
    uint8_t *data = malloc(length + 1);
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)(i * 7 + (i >> 8) * 13 + seed);
    return data;
}

static void add(walrus_batch *batch, size_t length, unsigned seed)
{
    uint8_t *data = pattern(length, seed);
    int code = walrus_batch_add(batch, data, length);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    free(data);
}

static void expect_entry(uint64_t index, size_t length, unsigned seed)
{
    uint8_t *data = pattern(length, seed);
    struct fake_entry *e = &fake_topic(&fake, "t")->entries[index];
    cr_assert_eq(e->length, length);
    if (length > 0)
        cr_assert_eq(memcmp(e->data, data, length), 0, "entry %llu", (unsigned long long)index);
    free(data);
}

static walrus_batch *new_batch(void)
{
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0, "%s", walrus_error(handle));
    return batch;
}

static int submit(walrus_batch *batch, uint64_t user_data)
{
    struct walrus_submit_options options = {.size = sizeof options, .user_data = user_data};
    return walrus_batch_submit(batch, &options);
}

static struct walrus_completion reap_one(void)
{
    struct walrus_completion c;
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    return c;
}

Test(stream, a_batch_grows_beyond_the_arena)
{
    walrus_batch *batch = new_batch();
    for (unsigned i = 0; i < 400; i++)
        add(batch, i * 3, i);
    cr_assert_eq(submit(batch, 9), 0);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, 9);
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.count, 400);
    cr_assert_eq(c.receipt.first_sequence, 1);
    fake_pause(&fake);
    cr_assert_gt(fake.seen[OP_CHUNK], 5);
    cr_assert_eq(fake.commits, 1);
    for (unsigned i = 0; i < 400; i++)
        expect_entry(i, i * 3, i);
}

Test(stream, entries_larger_than_the_arena_go_in_pieces)
{
    walrus_batch *batch = new_batch();
    add(batch, 10, 1);
    add(batch, 200000, 2);
    cr_assert_eq(walrus_batch_set_type(batch, 5), 0);
    add(batch, 0, 3);
    add(batch, 4096 * 30, 4);
    add(batch, 4096 * 3 - 8, 5);
    cr_assert_eq(submit(batch, 1), 0);
    cr_assert_eq(reap_one().result, 0);
    fake_pause(&fake);
    expect_entry(0, 10, 1);
    expect_entry(1, 200000, 2);
    expect_entry(2, 0, 3);
    expect_entry(3, 4096 * 30, 4);
    expect_entry(4, 4096 * 3 - 8, 5);
    cr_assert_eq(fake_topic(&fake, "t")->entries[1].type, 5);
}

Test(stream, what_was_reserved_before_is_sent_too)
{
    walrus_batch *batch = new_batch();
    void *data;
    cr_assert_eq(walrus_batch_reserve(batch, 20000, &data), 0);
    uint8_t *first = pattern(20000, 1);
    memcpy(data, first, 20000);
    free(first);
    add(batch, 100000, 2);
    cr_assert_eq(walrus_batch_reserve(batch, 10, &data), -EMSGSIZE); /* only add from now on */
    add(batch, 3, 3);
    cr_assert_eq(submit(batch, 1), 0);
    cr_assert_eq(reap_one().result, 0);
    fake_pause(&fake);
    expect_entry(0, 20000, 1);
    expect_entry(1, 100000, 2);
    expect_entry(2, 3, 3);
}

Test(stream, chunk_completions_are_not_the_users)
{
    walrus_batch *batch = new_batch();
    add(batch, 300000, 1);
    cr_assert_eq(walrus_in_flight(handle), 0);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
    cr_assert_eq(submit(batch, 1), 0);
    cr_assert_eq(walrus_in_flight(handle), 1);
    reap_one();
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
}

Test(stream, an_aborted_stream_is_rolled_back)
{
    walrus_batch *batch = new_batch();
    add(batch, 300000, 1);
    walrus_batch_abort(batch);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0); /* the topic is free again */
    fake_pause(&fake);
    cr_assert_eq(fake.aborts, 1);
    cr_assert_eq(fake_topic(&fake, "t")->count, 1);
    for (uint32_t i = 0; i < array_count(fake.streams); i++)
        cr_assert_not(fake.streams[i].open);
}

Test(stream, several_streams_get_on_beside_each_other)
{
    walrus_batch *a = new_batch(), *b = new_batch(), *c = new_batch();
    walrus_topic *u = open_topic(handle, "u"), *v = open_topic(handle, "v");
    walrus_batch_abort(b);
    walrus_batch_abort(c);
    cr_assert_eq(walrus_batch_begin(u, &b), 0);
    cr_assert_eq(walrus_batch_begin(v, &c), 0);
    for (unsigned i = 0; i < 40; i++) {
        add(a, 9000, i);
        add(b, 100, i);
        add(c, i == 20 ? 70000 : 1000, i);
    }
    cr_assert_eq(submit(a, 1), 0);
    cr_assert_eq(submit(b, 2), 0);
    cr_assert_eq(submit(c, 3), 0);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(reap_one().result, 0);
    fake_pause(&fake);
    for (unsigned i = 0; i < 40; i++)
        expect_entry(i, 9000, i);
    cr_assert_eq(fake_topic(&fake, "u")->count, 40);
    cr_assert_eq(fake_topic(&fake, "v")->count, 40);
}

Test(stream, open_batches_that_hold_the_arena_do_not_stop_it)
{
    walrus_batch *one = new_batch(), *two = new_batch();
    void *data;
    cr_assert_eq(walrus_batch_reserve(one, 28000, &data), 0);
    cr_assert_eq(walrus_batch_reserve(two, 28000, &data), 0);
    walrus_topic *u = open_topic(handle, "u");
    walrus_batch *stream, *other;
    cr_assert_eq(walrus_batch_begin(u, &stream), 0);
    add(stream, 100000, 1);
    /* Its last chunk sits in the extent that is kept for chunks; a second stream makes it go. */
    walrus_topic *v = open_topic(handle, "v");
    cr_assert_eq(walrus_batch_begin(v, &other), 0);
    add(other, 100000, 2);
    add(stream, 50, 3);
    cr_assert_eq(submit(stream, 1), 0);
    cr_assert_eq(submit(other, 2), 0);
    cr_assert_eq(reap_one().result, 0);
    cr_assert_eq(reap_one().result, 0);
    /* Blocking writes, small and large, get on as well. */
    cr_assert_eq(walrus_append_for_topic(handle, "w", "x", 1, NULL, NULL), 0, "%s", walrus_error(handle));
    uint8_t *large = pattern(50000, 4);
    cr_assert_eq(walrus_append_for_topic(handle, "w", large, 50000, NULL, NULL), 0, "%s",
                 walrus_error(handle));
    free(large);
    walrus_batch_abort(one);
    walrus_batch_abort(two);
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "u")->count, 2);
    cr_assert_eq(fake_topic(&fake, "v")->count, 1);
    cr_assert_eq(fake_topic(&fake, "w")->count, 2);
}

Test(stream, a_failed_stream_says_so_and_ends_with_its_error)
{
    fake_rule(&fake, (struct fake_rule){.op = OP_CHUNK, .after = 2, .times = 1, .result = -ENOSPC});
    walrus_batch *batch = new_batch();
    for (unsigned i = 0; i < 100; i++)
        add(batch, 60, i);
    uint8_t *data = pattern(400000, 1);
    int code = walrus_batch_add(batch, data, 400000);
    cr_assert_eq(code, -ENOSPC, "%d", code);
    cr_assert_not_null(strstr(walrus_error(handle), "full"), "%s", walrus_error(handle));
    cr_assert_eq(walrus_batch_add(batch, data, 10), -ENOSPC);
    cr_assert_eq(submit(batch, 8), 0);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, 8);
    cr_assert_eq(c.result, -ENOSPC);
    cr_assert_eq(c.receipt.count, 0);
    /* Aborting a failed one is fine as well. */
    fake_rule(&fake,
              (struct fake_rule){.op = OP_CHUNK, .times = 1, .result = -EBUSY, .reason = REASON_TOPIC});
    batch = new_batch();
    code = walrus_batch_add(batch, data, 400000);
    cr_assert_eq(code, -EBUSY);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_TOPIC);
    walrus_batch_abort(batch);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
    free(data);
    fake_pause(&fake);
    cr_assert_eq(fake.commits, 1);
    for (uint32_t i = 0; i < array_count(fake.streams); i++)
        cr_assert_not(fake.streams[i].open);
}

Test(stream, a_failure_of_the_last_chunk_is_the_result)
{
    walrus_batch *batch = new_batch();
    add(batch, 100000, 1);
    fake_pause(&fake);
    fake_rule(&fake, (struct fake_rule){.op = OP_CHUNK, .times = 99, .result = -EIO});
    fake_resume(&fake);
    cr_assert_eq(submit(batch, 1), 0);
    cr_assert_eq(reap_one().result, -EIO);
}

Test(stream, the_broker_dies_under_it)
{
    walrus_batch *batch = new_batch();
    fake_rule(&fake, (struct fake_rule){.op = OP_CHUNK, .after = 4, .times = 1, .result = FAKE_DIE});
    uint8_t *data = pattern(400000, 1);
    cr_assert_eq(walrus_batch_add(batch, data, 400000), -ECONNRESET);
    cr_assert_eq(walrus_batch_submit(batch, NULL), -ECONNRESET);
    free(data);
}

Test(stream, a_large_share_is_cut_into_chunks)
{
    /* In a larger arena a batch holds more than one chunk takes when it outgrows its share. */
    walrus_close(handle);
    handle = CONNECT(&fake, .arena_bytes = 8 << 20);
    topic = open_topic(handle, "t");
    walrus_batch *batch = new_batch();
    void *data;
    for (unsigned i = 0; i < 300; i++) {
        cr_assert_eq(walrus_batch_reserve(batch, 10000, &data), 0);
        uint8_t *bytes = pattern(10000, i);
        memcpy(data, bytes, 10000);
        free(bytes);
    }
    add(batch, 5 << 20, 7);
    cr_assert_eq(submit(batch, 1), 0);
    cr_assert_eq(reap_one().result, 0);
    fake_pause(&fake);
    for (unsigned i = 0; i < 300; i++)
        expect_entry(i, 10000, i);
    expect_entry(300, 5 << 20, 7);
}

Test(stream, whole_batches_up_to_3_MiB_stay_whole)
{
    walrus_close(handle);
    handle = CONNECT(&fake, .arena_bytes = 8 << 20);
    topic = open_topic(handle, "t");
    walrus_batch *batch = new_batch();
    add(batch, 1 << 20, 1);
    add(batch, 2 << 20, 2);
    cr_assert_eq(submit(batch, 1), 0);
    reap_one();
    batch = new_batch();
    add(batch, 1 << 20, 1);
    add(batch, (2 << 20) + 1, 2);
    cr_assert_eq(submit(batch, 2), 0);
    reap_one();
    fake_pause(&fake);
    cr_assert_eq(fake.seen[OP_BATCH], 1);
    cr_assert_gt(fake.seen[OP_CHUNK], 0);
}
