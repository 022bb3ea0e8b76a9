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

/* ------------------------------------------------------------------------------------ in parts */

static void add_parts(walrus_batch *batch, size_t length, unsigned seed, size_t part)
{
    uint8_t *data = pattern(length, seed);
    size_t at = 0;
    do {
        size_t now = length - at < part ? length - at : part;
        int code = walrus_batch_add_part(batch, data + at, now, at + now < length);
        cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
        at += now;
    } while (at < length);
    free(data);
}

Test(stream, an_entry_in_parts_is_one_entry)
{
    walrus_batch *batch = new_batch();
    add_parts(batch, 1000, 1, 7);
    add(batch, 33, 2);
    add_parts(batch, 0, 3, 5);
    cr_assert_eq(walrus_batch_add_part(batch, "ab", 2, 1), 0);
    cr_assert_eq(walrus_batch_add_part(batch, NULL, 0, 1), 0);
    cr_assert_eq(walrus_batch_add_part(batch, "c", 1, 1), 0);
    cr_assert_eq(walrus_batch_add_part(batch, NULL, 0, 0), 0); /* the last part may be empty */
    cr_assert_eq(walrus_batch_set_type(batch, 9), 0);
    cr_assert_eq(submit(batch, 1), 0);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.count, 4);
    fake_pause(&fake);
    cr_assert_eq(fake.seen[OP_BATCH], 1);
    expect_entry(0, 1000, 1);
    expect_entry(1, 33, 2);
    expect_entry(2, 0, 3);
    struct fake_entry *last = &fake_topic(&fake, "t")->entries[3];
    cr_assert_eq(last->length, 3);
    cr_assert_eq(memcmp(last->data, "abc", 3), 0);
    cr_assert_eq(last->type, 9);
}

Test(stream, an_entry_in_parts_may_be_larger_than_the_arena)
{
    /* In parts of every kind of size, behind and before entries of every kind. */
    size_t parts[] = {1, 7, 16, 4095, 4096, 4097, 30000, 70000, 1 << 20};
    uint64_t count = 0;
    for (size_t i = 0; i < array_count(parts); i++) {
        size_t length = parts[i] < 16 ? 70000 : 300001;
        walrus_batch *batch = new_batch();
        add(batch, i * 100, 1);
        add_parts(batch, length, 2, parts[i]);
        add_parts(batch, 4096 * 5, 3, parts[i]);
        add(batch, 9000, 4);
        add_parts(batch, length + 1, 5, parts[i]);
        add(batch, 1, 6);
        cr_assert_eq(submit(batch, i), 0, "%s", walrus_error(handle));
        cr_assert_eq(reap_one().result, 0);
        fake_pause(&fake);
        expect_entry(count, i * 100, 1);
        expect_entry(count + 1, length, 2);
        expect_entry(count + 2, 4096 * 5, 3);
        expect_entry(count + 3, 9000, 4);
        expect_entry(count + 4, length + 1, 5);
        expect_entry(count + 5, 1, 6);
        fake_resume(&fake);
        count += 6;
    }
}

Test(stream, random_parts_make_the_entries_that_were_meant)
{
    uint64_t random = 88172645463325252u, count = 0;
    for (int round = 0; round < 60; round++) {
        walrus_batch *batch = new_batch();
        size_t lengths[24];
        for (unsigned i = 0; i < array_count(lengths); i++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            lengths[i] = (size_t)(random % (random % 5 == 0 ? 40000 : 3000));
            if (random % 3 == 0)
                add(batch, lengths[i], i);
            else
                add_parts(batch, lengths[i], i, 1 + (size_t)(random >> 20) % 6000);
        }
        cr_assert_eq(submit(batch, 1), 0);
        cr_assert_eq(reap_one().result, 0);
        fake_pause(&fake);
        for (unsigned i = 0; i < array_count(lengths); i++)
            expect_entry(count++, lengths[i], i);
        fake_resume(&fake);
    }
}

Test(stream, in_the_middle_of_an_entry_only_another_part_is_taken)
{
    walrus_batch *batch = new_batch();
    void *data;
    cr_assert_eq(walrus_batch_add_part(batch, NULL, 1, 1), -EINVAL);
    cr_assert_eq(walrus_batch_add_part(batch, "a", 1, 1), 0);
    cr_assert_eq(walrus_batch_add(batch, "b", 1), -EINVAL);
    cr_assert_not_null(strstr(walrus_error(handle), "more"));
    cr_assert_eq(walrus_batch_reserve(batch, 1, &data), -EINVAL);
    cr_assert_eq(walrus_batch_trim(batch, 0), -EINVAL);
    cr_assert_eq(walrus_batch_set_type(batch, 1), -EINVAL);
    cr_assert_eq(walrus_batch_add_part(batch, "c", 1, 0), 0);
    cr_assert_eq(walrus_batch_set_type(batch, 1), 0);
    cr_assert_eq(walrus_batch_add_part(batch, "d", 1, 1), 0);
    cr_assert_eq(submit(batch, 1), -EINVAL); /* and the batch is gone */
    cr_assert_eq(walrus_batch_add_part(batch, "e", 1, 0), -EINVAL);
    cr_assert_eq(walrus_batch_add_part(NULL, "e", 1, 0), -EINVAL);
    batch = new_batch();
    cr_assert_eq(walrus_batch_add_part(batch, "d", 1, 1), 0);
    walrus_batch_abort(batch);
    fake_pause(&fake);
    cr_assert_eq(fake.commits, 0);
}

Test(stream, parts_count_for_the_limits_as_their_entry)
{
    walrus_close(handle);
    fake_pause(&fake);
    fake.max_batch_bytes = 3 * 64 + 1000;
    fake_resume(&fake);
    handle = CONNECT(&fake, .arena_bytes = 1 << 20);
    topic = open_topic(handle, "t");
    struct walrus_info info = {.size = sizeof info};
    cr_assert_eq(walrus_get_info(handle, &info), 0);
    cr_assert_eq(info.max_batch_bytes, 3 * 64 + 1000);
    uint8_t *data = pattern(1000, 1);
    walrus_batch *batch = new_batch();
    cr_assert_eq(walrus_batch_add_part(batch, data, 400, 1), 0);
    cr_assert_eq(walrus_batch_add_part(batch, data, 729, 1), -EINVAL); /* one byte over */
    cr_assert_eq(walrus_batch_add_part(batch, data, 600, 0), 0);
    cr_assert_eq(walrus_batch_add(batch, data, 65), -EINVAL);
    cr_assert_eq(walrus_batch_add_part(batch, data, 65, 0), -EINVAL);
    cr_assert_eq(walrus_batch_add(batch, data, 64), 0); /* exactly full */
    cr_assert_eq(walrus_batch_add(batch, data, 0), -EINVAL);
    cr_assert_eq(submit(batch, 1), 0);
    cr_assert_eq(reap_one().result, 0);
    struct walrus_slice slices[] = {{data, 1000}, {data, 64}};
    cr_assert_eq(walrus_batch_append_for_topic(handle, "t", slices, 2, NULL, NULL), 0);
    slices[1].length = 65;
    cr_assert_eq(walrus_batch_append_for_topic(handle, "t", slices, 2, NULL, NULL), -EINVAL);
    free(data);
}

Test(stream, a_part_that_sits_on_the_bytes_kept_for_chunks_makes_room)
{
    walrus_batch *one = new_batch(), *two = new_batch();
    void *data;
    cr_assert_eq(walrus_batch_reserve(one, 28000, &data), 0);
    cr_assert_eq(walrus_batch_reserve(two, 28000, &data), 0);
    walrus_topic *u = open_topic(handle, "u");
    walrus_batch *other;
    cr_assert_eq(walrus_batch_begin(u, &other), 0);
    walrus_batch *parts = new_batch();
    uint8_t *bytes = pattern(50000, 3);
    size_t at = 0;
    for (unsigned i = 0; at < 50000; i++) { /* both want the only extent there is, in turn */
        size_t now = 50000 - at < 5001 ? 50000 - at : 5001;
        cr_assert_eq(walrus_batch_add_part(parts, bytes + at, now, at + now < 50000), 0, "%s",
                     walrus_error(handle));
        at += now;
        add(other, 5000, i);
    }
    free(bytes);
    cr_assert_eq(submit(parts, 1), 0);
    cr_assert_eq(reap_one().result, 0);
    cr_assert_eq(submit(other, 1), 0);
    cr_assert_eq(reap_one().result, 0);
    walrus_batch_abort(one);
    walrus_batch_abort(two);
    fake_pause(&fake);
    expect_entry(0, 50000, 3);
    cr_assert_eq(fake_topic(&fake, "u")->count, 10);
}

Test(stream, one_entry_of_1_GiB_goes_in_parts_through_the_default_arena)
{
    walrus_close(handle);
    fake_pause(&fake);
    fake.swallow = true;
    fake_resume(&fake);
    handle = CONNECT(&fake, .queue_entries = 0);
    topic = open_topic(handle, "t");
    uint8_t *data = pattern(1 << 20, 1);
    walrus_batch *batch = new_batch();
    for (int i = 0; i < 1024; i++)
        cr_assert_eq(walrus_batch_add_part(batch, data, 1 << 20, 1), 0, "%s", walrus_error(handle));
    cr_assert_eq(walrus_batch_add_part(batch, data, 0, 0), 0);
    free(data);
    cr_assert_eq(submit(batch, 1), 0);
    cr_assert_eq(reap_one().result, 0);
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "t")->count, 1);
    cr_assert_eq(fake_topic(&fake, "t")->entries[0].length, UINT64_C(1) << 30);
}
