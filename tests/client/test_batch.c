/* Asynchronous batches: filling in place, limits, credit, arena pressure, reaping. The fake is paused
 * where order matters. */
#include "fake.h"

#include <criterion/criterion.h>

static struct fake fake;
static walrus *handle;
static walrus_topic *topic;

static void begin_with(struct walrus_connect_options options)
{
    fake_start(&fake);
    options.size = sizeof options;
    handle = fake_connect(&fake, options);
    topic = open_topic(handle, "t");
}

static void begin(void)
{
    begin_with((struct walrus_connect_options){.queue_entries = 8, .arena_bytes = 1 << 20});
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(batch, .init = begin, .fini = end);

static walrus_batch *new_batch(void)
{
    walrus_batch *batch = NULL;
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0, "%s", walrus_error(handle));
    return batch;
}

static uint8_t *reserve(walrus_batch *batch, size_t length)
{
    void *data = NULL;
    int code = walrus_batch_reserve(batch, length, &data);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    return data;
}

static int submit(walrus_batch *batch, uint64_t user_data)
{
    struct walrus_submit_options options = {.size = sizeof options, .user_data = user_data};
    return walrus_batch_submit(batch, &options);
}

/* One entry of `length` bytes, submitted. */
static int send_one(uint64_t user_data, size_t length)
{
    walrus_batch *batch = NULL;
    int code = walrus_batch_begin(topic, &batch);
    if (code < 0)
        return code;
    void *data;
    code = walrus_batch_reserve(batch, length, &data);
    if (code == 0) {
        memset(data, (int)user_data, length);
        code = submit(batch, user_data);
    }
    if (code < 0)
        walrus_batch_abort(batch);
    return code;
}

static struct walrus_completion reap_one(void)
{
    struct walrus_completion c;
    int code = walrus_wait(handle, 1, -1);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    return c;
}

Test(batch, pointers_are_aligned_and_trimmed_entries_are_zero_padded)
{
    walrus_batch *batch = new_batch();
    for (size_t i = 0; i < 200; i++) {
        uint8_t *data = reserve(batch, 100);
        cr_assert_eq((uintptr_t)data % 16, 0);
        memset(data, 0xee, 100);
        cr_assert_eq(walrus_batch_trim(batch, i % 101), 0);
    }
    cr_assert_eq(submit(batch, 1), 0);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.count, 200);
    fake_pause(&fake);
    for (uint64_t i = 0; i < 200; i++) {
        struct fake_entry *e = &fake_topic(&fake, "t")->entries[i];
        cr_assert_eq(e->length, i % 101);
        for (uint64_t k = 0; k < e->length; k++)
            cr_assert_eq(e->data[k], 0xee);
    }
}

Test(batch, what_lies_between_entries_is_zero_in_a_used_arena_too)
{
    for (int round = 0; round < 3; round++) { /* the fake looks at the padding of each */
        walrus_batch *batch = new_batch();
        for (size_t i = 0; i < 100; i++) {
            memset(reserve(batch, 64), 0xff, 64);
        }
        walrus_batch_abort(batch);
        batch = new_batch();
        for (size_t i = 0; i < 100; i++) {
            memset(reserve(batch, i), 0xff, i);
            cr_assert_eq(walrus_batch_add(batch, "0123456789abcdef0", i % 18), 0);
        }
        cr_assert_eq(submit(batch, 1), 0);
        cr_assert_eq(reap_one().result, 0);
    }
}

Test(batch, trims_only_what_was_reserved_last)
{
    walrus_batch *batch = new_batch();
    cr_assert_eq(walrus_batch_trim(batch, 0), -EINVAL);
    reserve(batch, 10);
    cr_assert_eq(walrus_batch_trim(batch, 11), -EINVAL);
    cr_assert_eq(walrus_batch_trim(batch, 5), 0);
    cr_assert_eq(walrus_batch_trim(batch, 6), -EINVAL);
    cr_assert_eq(walrus_batch_trim(batch, 0), 0);
    cr_assert_eq(walrus_batch_add(batch, "abc", 3), 0);
    cr_assert_eq(walrus_batch_trim(batch, 1), -EINVAL);
    walrus_batch_abort(batch);
}

Test(batch, carries_types)
{
    walrus_batch *batch = new_batch();
    cr_assert_eq(walrus_batch_set_type(batch, 1), -EINVAL);
    cr_assert_eq(walrus_batch_add(batch, "a", 1), 0);
    cr_assert_eq(walrus_batch_set_type(batch, 17), 0);
    reserve(batch, 1)[0] = 'b';
    cr_assert_eq(walrus_batch_set_type(batch, 18), 0);
    cr_assert_eq(walrus_batch_add(batch, "c", 1), 0);
    cr_assert_eq(submit(batch, 0), 0);
    reap_one();
    fake_pause(&fake);
    struct fake_topic *t = fake_topic(&fake, "t");
    cr_assert_eq(t->entries[0].type, 17);
    cr_assert_eq(t->entries[1].type, 18);
    cr_assert_eq(t->entries[2].type, 0);
}

Test(batch, takes_2000_entries_and_refuses_the_2001st)
{
    walrus_batch *batch = new_batch();
    for (int i = 0; i < 2000; i++)
        cr_assert_eq(walrus_batch_add(batch, &i, sizeof i), 0);
    void *data;
    cr_assert_eq(walrus_batch_add(batch, "x", 1), -EINVAL);
    cr_assert_eq(walrus_batch_reserve(batch, 0, &data), -EINVAL);
    cr_assert_eq(submit(batch, 3), 0);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, 3);
    cr_assert_eq(c.receipt.count, 2000);
}

Test(batch, the_byte_limit_is_exact)
{
    walrus_batch *batch = new_batch();
    void *data;
    cr_assert_eq(walrus_batch_reserve(batch, WALRUS_MAX_BATCH_BYTES - 63, &data), -EINVAL);
    cr_assert_eq(walrus_batch_reserve(batch, SIZE_MAX, &data), -EINVAL);
    cr_assert_eq(walrus_batch_reserve(batch, WALRUS_MAX_BATCH_BYTES - 64, &data), -EMSGSIZE);
    reserve(batch, 0);
    cr_assert_eq(walrus_batch_reserve(batch, WALRUS_MAX_BATCH_BYTES - 127, &data), -EINVAL);
    cr_assert_eq(walrus_batch_reserve(batch, WALRUS_MAX_BATCH_BYTES - 128, &data), -EMSGSIZE);
    cr_assert_eq(walrus_batch_add(batch, "", WALRUS_MAX_BATCH_BYTES - 127), -EINVAL);
    walrus_batch_abort(batch);
}

Test(batch, an_empty_batch_completes_with_0)
{
    cr_assert_eq(submit(new_batch(), 42), 0);
    cr_assert_eq(walrus_in_flight(handle), 1);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, 42);
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.count, 0);
    cr_assert_eq(walrus_in_flight(handle), 0);
    fake_pause(&fake);
    cr_assert_eq(fake.seen[OP_BATCH], 0);
}

Test(batch, append_is_for_one_entry)
{
    struct walrus_submit_options append = {.size = sizeof append, .append = 1};
    walrus_batch *batch = new_batch();
    cr_assert_eq(walrus_batch_add(batch, "a", 1), 0);
    cr_assert_eq(walrus_batch_submit(batch, &append), 0);
    reap_one();
    fake_pause(&fake);
    cr_assert_eq(fake.last.op, OP_APPEND);
    fake_resume(&fake);
    batch = new_batch();
    cr_assert_eq(walrus_batch_add(batch, "a", 1), 0);
    cr_assert_eq(walrus_batch_add(batch, "b", 1), 0);
    cr_assert_eq(walrus_batch_submit(batch, &append), -EINVAL); /* and the batch is gone */
    cr_assert_not_null(strstr(walrus_error(handle), "append"));
    cr_assert_eq(walrus_batch_add(batch, "c", 1), -EINVAL);
    struct walrus_submit_options level = {.size = sizeof level, .level = 4};
    cr_assert_eq(walrus_batch_submit(new_batch(), &level), -EINVAL);
}

Test(batch, a_submitted_or_aborted_batch_is_closed)
{
    walrus_batch *batch = new_batch();
    walrus_batch_abort(batch);
    void *data;
    cr_assert_eq(walrus_batch_reserve(batch, 1, &data), -EINVAL);
    cr_assert_eq(walrus_batch_submit(batch, NULL), -EINVAL);
    walrus_batch_abort(batch);
    walrus_batch_abort(NULL);
    cr_assert_eq(walrus_batch_begin(NULL, &batch), -EINVAL);
    cr_assert_eq(walrus_batch_begin(topic, NULL), -EINVAL);
    cr_assert_eq(walrus_batch_reserve(NULL, 1, &data), -EINVAL);
    batch = new_batch();
    cr_assert_eq(walrus_batch_reserve(batch, 1, NULL), -EINVAL);
    cr_assert_eq(walrus_batch_add(batch, NULL, 1), -EINVAL);
    cr_assert_eq(walrus_batch_add(batch, NULL, 0), 0);
    walrus_batch_abort(batch);
    cr_assert_eq(walrus_in_flight(handle), 0);
}

Test(batch, credit_is_never_exceeded)
{
    fake_pause(&fake);
    for (uint64_t i = 0; i < 7; i++)
        cr_assert_eq(send_one(i, 10), 0);
    cr_assert_eq(send_one(7, 10), -EAGAIN);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_RING);
    cr_assert_eq(fake_turn(&fake), 7);
    cr_assert_eq(send_one(7, 10), -EAGAIN); /* answered, but not reaped */
    struct walrus_completion c[8];
    cr_assert_eq(walrus_reap(handle, c, 2), 2);
    cr_assert_eq(c[0].user_data, 0);
    cr_assert_eq(send_one(7, 10), 0);
    cr_assert_eq(send_one(8, 10), 0);
    cr_assert_eq(send_one(9, 10), -EAGAIN);
    cr_assert_eq(walrus_reap(handle, c, 8), 5);
    fake_turn(&fake);
    cr_assert_eq(walrus_reap(handle, c, 8), 2);
    cr_assert_eq(walrus_in_flight(handle), 0);
}

Test(batch, a_submit_without_credit_leaves_the_batch_open)
{
    fake_pause(&fake);
    for (uint64_t i = 0; i < 7; i++)
        cr_assert_eq(send_one(i, 10), 0);
    walrus_batch *batch = new_batch();
    reserve(batch, 5);
    cr_assert_eq(submit(batch, 7), -EAGAIN);
    reserve(batch, 6);
    fake_turn(&fake);
    struct walrus_completion c[8];
    cr_assert_eq(walrus_reap(handle, c, 8), 7);
    cr_assert_eq(submit(batch, 7), 0);
    fake_turn(&fake);
    cr_assert_eq(walrus_reap(handle, c, 8), 1);
    cr_assert_eq(c[0].receipt.count, 2);
}

Test(batch, as_many_batches_may_be_open_as_can_be_in_flight)
{
    walrus_batch *open[8];
    for (int i = 0; i < 7; i++)
        open[i] = new_batch();
    cr_assert_eq(walrus_batch_begin(topic, &open[7]), -EAGAIN);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_RING);
    for (int i = 0; i < 7; i++)
        walrus_batch_abort(open[i]);
}

Test(batch, open_batches_do_not_starve_each_other)
{
    walrus_batch *open[7];
    for (int i = 0; i < 7; i++) {
        open[i] = new_batch();
        reserve(open[i], 1000);
    }
    /* Each one still has room to grow. */
    for (int i = 0; i < 7; i++)
        reserve(open[i], 8000);
    for (int i = 0; i < 7; i++)
        cr_assert_eq(submit(open[i], (uint64_t)i), 0);
    struct walrus_completion c[8];
    cr_assert_eq(walrus_wait(handle, 7, -1), 0);
    cr_assert_eq(walrus_reap(handle, c, 8), 7);
}

Test(batch, says_who_holds_the_arena)
{
    fake_pause(&fake);
    walrus_batch *one = new_batch(), *two = new_batch();
    reserve(one, 400000);
    reserve(two, 400000);
    void *data;
    walrus_batch *three = new_batch();
    cr_assert_eq(walrus_batch_reserve(three, 300000, &data), -EAGAIN);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_OPEN_BATCH);
    cr_assert_eq(submit(one, 1), 0);
    cr_assert_eq(walrus_batch_reserve(three, 300000, &data), -EAGAIN);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_ARENA);
    fake_turn(&fake);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    cr_assert_eq(walrus_batch_reserve(three, 300000, &data), 0);
    walrus_batch_abort(two);
    walrus_batch_abort(three);
}

Test(batch, arena_space_belongs_to_its_batch_until_the_completion_is_met)
{
    fake.hold_writes = true;
    fake_pause(&fake);
    cr_assert_eq(send_one(0xaa, 450000), 0);
    fake_turn(&fake); /* taken, not copied yet */
    cr_assert_eq(send_one(0xbb, 450000), 0);
    cr_assert_eq(send_one(0xcc, 450000), -EAGAIN);
    fake_answer_held(&fake, 1);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    cr_assert_eq(send_one(0xcc, 450000), 0);
    fake_turn(&fake);
    fake_answer_held(&fake, 2);
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    struct fake_topic *t = fake_topic(&fake, "t");
    for (int i = 0; i < 3; i++) {
        for (uint64_t k = 0; k < t->entries[i].length; k++)
            cr_assert_eq(t->entries[i].data[k], 0xaa + 0x11 * i);
    }
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
}

Test(batch, reserve_says_when_only_add_can_do_it)
{
    walrus_batch *batch = new_batch();
    void *data;
    cr_assert_eq(walrus_batch_reserve(batch, 600000, &data), -EMSGSIZE);
    cr_assert_not_null(strstr(walrus_error(handle), "walrus_batch_add"));
    reserve(batch, 300000);
    cr_assert_eq(walrus_batch_reserve(batch, 300000, &data), -EMSGSIZE);
    walrus_batch_abort(batch);
}

Test(batch, a_round_of_every_size_leaves_no_hole_in_the_arena)
{
    for (uint64_t round = 0; round < 300; round++) {
        for (uint64_t i = 0; i < 1 + round % 5; i++) {
            int code = send_one(i, (size_t)((round * 7919 + i * 104729) % 90000));
            cr_assert_eq(code, 0, "%s", walrus_error(handle));
        }
        while (walrus_in_flight(handle) > 0)
            cr_assert_eq(reap_one().result, 0);
    }
    cr_assert_eq(send_one(1, 480000), 0); /* about half of the arena, in one piece again */
    cr_assert_eq(send_one(2, 480000), 0);
    reap_one();
    reap_one();
}

Test(batch, results_come_with_their_reason)
{
    fake_rule(&fake,
              (struct fake_rule){.op = OP_BATCH, .times = 1, .result = -EBUSY, .reason = REASON_TOPIC});
    fake_rule(&fake, (struct fake_rule){.op = OP_BATCH, .times = 1, .result = -EIO});
    cr_assert_eq(send_one(1, 1), 0);
    cr_assert_eq(send_one(2, 1), 0);
    cr_assert_eq(send_one(3, 1), 0);
    struct walrus_completion c[3];
    cr_assert_eq(walrus_wait(handle, 3, -1), 0);
    cr_assert_eq(walrus_reap(handle, c, 3), 3);
    cr_assert_eq(c[0].result, -EBUSY);
    cr_assert_eq(c[0].receipt.reason, WALRUS_REASON_TOPIC);
    cr_assert_eq(c[1].result, -EIO);
    cr_assert_eq(c[2].result, 0);
    cr_assert_eq(c[2].receipt.first_sequence, 1);
}

Test(batch, a_second_answer_after_more_is_not_the_users)
{
    fake_pause(&fake);
    fake_rule(&fake,
              (struct fake_rule){.op = OP_BATCH, .times = 1, .result = -EBUSY, .flags = COMPLETION_MORE});
    cr_assert_eq(send_one(1, 1), 0);
    fake_turn(&fake);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    cr_assert_eq(c.result, -EBUSY);
    fake_post(&fake, &(struct completion){.user_data = fake.last.user_data});
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
    for (uint64_t i = 0; i < 7; i++)
        cr_assert_eq(send_one(i, 1), 0); /* all credit is back */
}

Test(batch, topics_are_closed_after_their_batches)
{
    walrus_batch *batch = new_batch();
    reserve(batch, 1);
    walrus_topic_close(topic);
    walrus_batch *other;
    cr_assert_eq(walrus_batch_begin(topic, &other), -EINVAL);
    cr_assert_eq(submit(batch, 1), 0);
    cr_assert_eq(reap_one().result, 0);
    walrus_topic_close(NULL);
    topic = open_topic(handle, "t");
    walrus_topic *again = open_topic(handle, "t");
    walrus_topic_close(again);
    cr_assert_eq(send_one(2, 1), 0); /* the number is still in use */
    cr_assert_eq(reap_one().result, 0);
    walrus_topic_close(topic);
    cr_assert_eq(walrus_append_for_topic(handle, "u", "x", 1, NULL, NULL), 0);
    fake_pause(&fake);
    cr_assert_eq(fake.seen[OP_CLOSE], 2);
}

Test(batch, topic_options_are_checked)
{
    walrus_topic *t;
    struct walrus_topic_options level = {.size = sizeof level, .level = 4};
    cr_assert_eq(walrus_topic_open(handle, "u", 1, &level, &t), -EINVAL);
    cr_assert_eq(walrus_topic_open(handle, "u", 0, NULL, &t), -EINVAL);
    cr_assert_eq(walrus_topic_open(handle, "a\0b", 3, NULL, &t), -EINVAL);
    cr_assert_eq(walrus_topic_open(handle, NULL, 1, NULL, &t), -EINVAL);
    cr_assert_eq(walrus_topic_open(handle, "u", 1, NULL, NULL), -EINVAL);
    cr_assert_eq(walrus_topic_open(NULL, "u", 1, NULL, &t), -EINVAL);
    level.level = WALRUS_LEVEL_ACCEPTED;
    cr_assert_eq(walrus_topic_open(handle, "u", 1, &level, &t), 0);
    fake_pause(&fake);
    cr_assert_eq(fake.last.level, LEVEL_ACCEPTED);
}

Test(batch, reap_checks_its_arguments)
{
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, NULL, 1), -EINVAL);
    cr_assert_eq(walrus_reap(handle, &c, -1), -EINVAL);
    cr_assert_eq(walrus_reap(handle, NULL, 0), 0);
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
    cr_assert_eq(walrus_reap(NULL, &c, 1), -EINVAL);
    cr_assert_eq(walrus_in_flight(NULL), 0);
}
