/* Batch numbers: given out by the library, or by the program; taken by commits alone; asked for. And the
 * watermarks of a topic. */
#include "fake.h"

#include <criterion/criterion.h>

static struct fake fake;
static walrus *handle;
static walrus_topic *topic;

static void begin(void)
{
    fake.watermark_slots = 64;
    fake_start(&fake);
    handle = CONNECT(&fake, .queue_entries = 16, .arena_bytes = 1 << 20, .producer = "me");
    topic = open_topic(handle, "t");
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(producer, .init = begin, .fini = end);

static int send_with(walrus_topic *to, struct walrus_submit_options options)
{
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(to, &batch), 0, "%s", walrus_error(handle));
    cr_assert_eq(walrus_batch_add(batch, "entry", 5), 0);
    options.size = sizeof options;
    int code = walrus_batch_submit(batch, &options);
    if (code == -EAGAIN)
        walrus_batch_abort(batch);
    return code;
}
#define SEND(to, ...) send_with((to), (struct walrus_submit_options){.size = 0, __VA_ARGS__})

static struct walrus_completion reap_one(void)
{
    struct walrus_completion c = {.result = 1};
    cr_assert_eq(walrus_wait(handle, 1, -1), 0, "%s", walrus_error(handle));
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    return c;
}

static void refuse_next(int after, int result, uint8_t reason)
{
    fake_pause(&fake);
    fake_rule(&fake,
              (struct fake_rule){
                  .op = FAKE_ANY_WRITE, .after = after, .times = 1, .result = result, .reason = reason});
    fake_resume(&fake);
}

Test(producer, every_write_has_the_next_number_of_its_topic)
{
    walrus_topic *other = open_topic(handle, "u");
    for (uint64_t i = 1; i <= 30; i++) {
        cr_assert_eq(SEND(topic, .user_data = i), 0);
        if (i % 3 == 0)
            cr_assert_eq(SEND(other, .user_data = 100), 0);
        while (walrus_in_flight(handle) > 5) {
            struct walrus_completion c = reap_one();
            cr_assert_eq(c.result, 0);
            if (c.user_data != 100)
                cr_assert_eq(c.receipt.number, c.user_data);
        }
    }
    while (walrus_in_flight(handle) > 0)
        cr_assert_eq(reap_one().result, 0);
    cr_assert_eq(walrus_topic_last_number(topic), 30);
    cr_assert_eq(walrus_topic_last_number(other), 10);
    cr_assert_eq(walrus_topic_last_number(NULL), 0);
}

Test(producer, topic_handles_and_blocking_calls_count_in_one_series)
{
    struct walrus_receipt receipt;
    walrus_topic *again = open_topic(handle, "t");
    struct walrus_slice slices[] = {{"a", 1}, {"b", 1}};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, &receipt), 0);
    cr_assert_eq(receipt.number, 1);
    cr_assert_eq(SEND(topic, .user_data = 1), 0);
    cr_assert_eq(SEND(again, .user_data = 1), 0);
    cr_assert_eq(walrus_batch_append_for_topic(handle, "t", slices, 2, NULL, &receipt), 0);
    cr_assert_eq(receipt.number, 4);
    cr_assert_eq(reap_one().receipt.number, 2);
    cr_assert_eq(reap_one().receipt.number, 3);
    walrus_topic_close(topic);
    walrus_topic_close(again);
    topic = open_topic(handle, "t");
    cr_assert_eq(walrus_topic_last_number(topic), 4);
    cr_assert_eq(SEND(topic, .user_data = 1), 0);
    cr_assert_eq(reap_one().receipt.number, 5);
}

Test(producer, a_topic_opened_again_counts_on_behind_what_is_in_flight)
{
    fake_pause(&fake);
    cr_assert_eq(SEND(topic, .user_data = 1), 0);
    walrus_topic_close(topic);
    fake.hold_writes = true;
    fake_turn(&fake);
    topic = open_topic(handle, "t"); /* no question to the broker, which stands still */
    cr_assert_eq(SEND(topic, .user_data = 2), 0);
    fake_turn(&fake);
    fake_answer_held(&fake, 2);
    fake_resume(&fake);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.receipt.number, 1);
    c = reap_one();
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.number, 2);
    cr_assert_eq(c.receipt.flags, 0);
}

Test(producer, an_empty_batch_takes_no_number)
{
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    cr_assert_eq(walrus_batch_submit(batch, NULL), 0);
    cr_assert_eq(reap_one().receipt.number, 0);
    cr_assert_eq(walrus_batch_append_for_topic(handle, "t", NULL, 0, NULL, NULL), 0);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
    cr_assert_eq(walrus_topic_last_number(topic), 1);
    /* A number for it would never be taken. */
    struct walrus_submit_options numbered = {.size = sizeof numbered, .number = 2};
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    cr_assert_eq(walrus_batch_submit(batch, &numbered), -EINVAL);
    struct walrus_write_options write = {.size = sizeof write, .number = 2};
    cr_assert_eq(walrus_batch_append_for_topic(handle, "t", NULL, 0, &write, NULL), -EINVAL);
}

Test(producer, without_a_producer_there_are_no_numbers)
{
    walrus_close(handle);
    handle = CONNECT(&fake, .queue_entries = 16);
    topic = open_topic(handle, "t");
    struct walrus_receipt receipt;
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, &receipt), 0);
    cr_assert_eq(receipt.number, 0);
    cr_assert_eq(walrus_topic_last_number(topic), 0);
    cr_assert_eq(SEND(topic, .number = 1), -EINVAL);
    struct walrus_write_options write = {.size = sizeof write, .number = 1};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &write, NULL), -EINVAL);
    cr_assert_eq(walrus_query(topic, 1, NULL), -EINVAL);
    cr_assert_not_null(strstr(walrus_error(handle), "producer"), "%s", walrus_error(handle));
}

Test(producer, only_a_commit_takes_a_number)
{
    int results[] = {-EBUSY, -ENOSPC, -EIO, -ECANCELED, -ETIMEDOUT, -EAGAIN};
    for (size_t i = 0; i < array_count(results); i++) {
        refuse_next(0, results[i], REASON_MEMORY);
        cr_assert_eq(SEND(topic, .user_data = i), 0);
        struct walrus_completion c = reap_one();
        cr_assert_eq(c.result, results[i]);
        cr_assert_eq(c.receipt.number, i + 1); /* the one it was sent with */
        cr_assert_eq(SEND(topic, .user_data = i), 0);
        c = reap_one();
        cr_assert_eq(c.result, 0, "%d", c.result);
        cr_assert_eq(c.receipt.number, i + 1);
        fake_pause(&fake);
        fake.rule_count = 0;
        fake_resume(&fake);
    }
}

Test(producer, what_followed_a_refused_number_is_refused_and_all_goes_again_in_order)
{
    fake_pause(&fake);
    fake_rule(&fake, (struct fake_rule){
                         .op = OP_BATCH, .after = 1, .times = 1, .result = -EBUSY, .reason = REASON_TOPIC});
    for (uint64_t i = 1; i <= 5; i++)
        cr_assert_eq(SEND(topic, .user_data = i), 0);
    fake_turn(&fake);
    struct walrus_completion c[8];
    cr_assert_eq(walrus_reap(handle, c, 8), 5);
    cr_assert_eq(c[0].result, 0);
    cr_assert_eq(c[1].result, -EBUSY);
    for (int i = 2; i < 5; i++) {
        cr_assert_eq(c[i].result, -EAGAIN);
        cr_assert_eq(c[i].receipt.reason, WALRUS_REASON_ORDER);
    }
    for (uint64_t i = 2; i <= 5; i++)
        cr_assert_eq(SEND(topic, .user_data = i), 0);
    fake_turn(&fake);
    cr_assert_eq(walrus_reap(handle, c, 8), 4);
    for (uint64_t i = 0; i < 4; i++) {
        cr_assert_eq(c[i].result, 0);
        cr_assert_eq(c[i].receipt.number, i + 2);
        cr_assert_eq(c[i].receipt.flags, 0);
        cr_assert_eq(c[i].receipt.first_sequence, i + 2);
    }
}

Test(producer, g5_no_number_is_given_out_that_is_still_in_flight)
{
    /* 2 is refused early while 3 still waits: a second write under 3 could be answered as its duplicate. */
    fake_pause(&fake);
    cr_assert_eq(SEND(topic, .user_data = 1), 0);
    fake_turn(&fake);
    fake_take_topic(&fake, "t");
    cr_assert_eq(SEND(topic, .user_data = 2), 0);
    cr_assert_eq(SEND(topic, .user_data = 3, .queue = 1), 0);
    fake_turn(&fake);
    struct walrus_completion c[8];
    cr_assert_eq(walrus_reap(handle, c, 8), 2);
    cr_assert_eq(c[1].result, -EBUSY);
    cr_assert_eq(SEND(topic, .user_data = 2), -EAGAIN);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_ORDER);
    fake_free_topic(&fake, "t");
    cr_assert_eq(walrus_reap(handle, c, 8), 1);
    cr_assert_eq(c[0].user_data, 3);
    cr_assert_eq(c[0].result, -EAGAIN);
    cr_assert_eq(SEND(topic, .user_data = 2), 0);
    cr_assert_eq(SEND(topic, .user_data = 3), 0);
    fake_turn(&fake);
    cr_assert_eq(walrus_reap(handle, c, 8), 2);
    cr_assert_eq(c[0].receipt.number, 2);
    cr_assert_eq(c[1].receipt.number, 3);
    cr_assert_eq(fake_topic(&fake, "t")->count, 3);
}

Test(producer, a_given_number_is_sent_as_it_is)
{
    cr_assert_eq(SEND(topic, .number = 1), 0);
    cr_assert_eq(reap_one().receipt.number, 1);
    cr_assert_eq(SEND(topic, .user_data = 1), 0); /* the counter has moved behind it */
    cr_assert_eq(reap_one().receipt.number, 2);
    cr_assert_eq(SEND(topic, .number = 2), 0); /* again: committed before */
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.flags, WALRUS_RECEIPT_DUPLICATE);
    cr_assert_eq(SEND(topic, .number = 9), 0); /* not the next one */
    c = reap_one();
    cr_assert_eq(c.result, -EAGAIN);
    cr_assert_eq(c.receipt.reason, WALRUS_REASON_ORDER);
    cr_assert_eq(SEND(topic, .user_data = 1), 0); /* and the counter has not moved */
    cr_assert_eq(reap_one().receipt.number, 3);
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "t")->count, 3);
}

Test(producer, given_numbers_and_the_librarys_own_never_meet)
{
    fake_pause(&fake);
    cr_assert_eq(SEND(topic, .number = 1), 0);
    cr_assert_eq(SEND(topic, .number = 2), 0);
    cr_assert_eq(SEND(topic, .user_data = 1), -EAGAIN); /* it would be 1 */
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_ORDER);
    fake_turn(&fake);
    struct walrus_completion c[4];
    cr_assert_eq(walrus_reap(handle, c, 4), 2);
    cr_assert_eq(SEND(topic, .user_data = 1), 0);
    fake_turn(&fake);
    cr_assert_eq(walrus_reap(handle, c, 4), 1);
    cr_assert_eq(c[0].receipt.number, 3);
    cr_assert_eq(fake_topic(&fake, "t")->count, 3);
}

Test(producer, blocking_calls_take_given_numbers)
{
    struct walrus_receipt receipt;
    struct walrus_write_options options = {.size = sizeof options, .number = 1};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options, &receipt), 0);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options, &receipt), 0);
    cr_assert_eq(receipt.flags, WALRUS_RECEIPT_DUPLICATE);
    options.number = 3;
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options, &receipt), -EAGAIN);
    cr_assert_eq(receipt.reason, WALRUS_REASON_ORDER);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_ORDER);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, &receipt), 0);
    cr_assert_eq(receipt.number, 2);
}

Test(producer, a_blocking_call_goes_again_when_a_number_before_it_failed)
{
    /* 1 in flight fails; the blocking call had 2, is refused for the order, and takes 1. */
    fake_pause(&fake);
    fake_rule(&fake, (struct fake_rule){.op = OP_BATCH, .times = 1, .result = -EIO});
    cr_assert_eq(SEND(topic, .user_data = 1), 0);
    fake_resume(&fake);
    struct walrus_receipt receipt;
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, &receipt), 0, "%s", walrus_error(handle));
    cr_assert_eq(receipt.number, 1);
    cr_assert_eq(reap_one().result, -EIO);
}

Test(producer, a_stream_takes_its_number_with_its_last_piece)
{
    uint8_t *data = calloc(1, 3 << 20);
    walrus_batch *stream;
    cr_assert_eq(walrus_batch_begin(topic, &stream), 0);
    fake_pause(&fake);
    fake_rule(&fake, (struct fake_rule){.op = OP_CHUNK, .after = 1000, .times = 1}); /* chunks go through */
    fake_resume(&fake);
    cr_assert_eq(walrus_batch_add(stream, data, 3 << 20), 0, "%s", walrus_error(handle));
    walrus_topic *other = open_topic(handle, "u");
    cr_assert_eq(SEND(other, .user_data = 3), 0);
    cr_assert_eq(reap_one().receipt.number, 1);
    cr_assert_eq(walrus_batch_submit(stream, NULL), 0);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.number, 1);
    /* One that fails leaves the number; so does one that is dropped. */
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(walrus_batch_begin(topic, &stream), 0);
        cr_assert_eq(walrus_batch_add(stream, data, 3 << 20), 0);
        if (i == 0) {
            walrus_batch_abort(stream);
            continue;
        }
        refuse_next(0, -EIO, 0);
        cr_assert_eq(walrus_batch_submit(stream, NULL), 0);
        cr_assert_eq(reap_one().result, -EIO);
    }
    struct walrus_slice slice = {data, 3 << 20};
    struct walrus_receipt receipt;
    cr_assert_eq(walrus_batch_append_for_topic(handle, "t", &slice, 1, NULL, &receipt), 0, "%s",
                 walrus_error(handle));
    cr_assert_eq(receipt.number, 2);
    free(data);
}

Test(producer, a_restarted_program_goes_on_behind_what_is_committed)
{
    for (int i = 0; i < 4; i++)
        cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
    walrus_close(handle);
    handle = CONNECT(&fake, .queue_entries = 16, .producer = "me");
    topic = open_topic(handle, "t");
    cr_assert_eq(walrus_topic_last_number(topic), 4);
    cr_assert_eq(SEND(topic, .user_data = 1), 0);
    cr_assert_eq(reap_one().receipt.number, 5);
}

Test(producer, g5_a_number_is_asked_for)
{
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
    struct walrus_receipt receipt;
    cr_assert_eq(walrus_query(topic, 1, &receipt), 1);
    cr_assert_eq(receipt.number, 1);
    cr_assert_eq(walrus_query(topic, 2, &receipt), 0);
    cr_assert_eq(receipt.number, 0);
    cr_assert_eq(walrus_query(topic, 1, NULL), 1);
    cr_assert_eq(walrus_query(topic, 0, NULL), -EINVAL);
    cr_assert_eq(walrus_query(NULL, 1, NULL), -EINVAL);
    fake_pause(&fake);
    fake_rule(&fake, (struct fake_rule){.op = OP_QUERY, .times = 1, .result = -EINPROGRESS});
    fake_rule(&fake, (struct fake_rule){.op = OP_QUERY, .times = 1, .result = -ESTALE});
    fake_resume(&fake);
    cr_assert_eq(walrus_query(topic, 2, NULL), -EINPROGRESS);
    cr_assert_eq(walrus_query(topic, 2, NULL), -ESTALE);
    fake_pause(&fake);
    fake_rule(&fake, (struct fake_rule){.op = OP_QUERY, .times = 1, .result = FAKE_DIE});
    fake_resume(&fake);
    cr_assert_eq(walrus_query(topic, 2, NULL), -ECONNRESET);
    cr_assert_eq(walrus_query(topic, 2, NULL), -ECONNRESET);
}

Test(producer, watermarks_are_one_load)
{
    cr_assert_eq(walrus_topic_durable_next(NULL), 0);
    cr_assert_eq(walrus_topic_written_next(NULL), 0);
    cr_assert_eq(walrus_topic_durable_next(topic), 0);
    fake_pause(&fake); /* nobody answers from here on */
    struct watermark *mark = &fake.watermarks[2];
    __atomic_store_n(&mark->written_next, 12, __ATOMIC_RELEASE);
    __atomic_store_n(&mark->durable_next, 7, __ATOMIC_RELEASE);
    cr_assert_eq(walrus_topic_durable_next(topic), 7);
    cr_assert_eq(walrus_topic_written_next(topic), 12);
    fake_die(&fake); /* and they stay */
    struct walrus_completion c;
    while (walrus_reap(handle, &c, 1) == 0) {
    }
    cr_assert_eq(walrus_topic_durable_next(topic), 7);
}

Test(producer, a_topic_without_a_slot_has_no_watermarks)
{
    walrus_close(handle);
    fake_pause(&fake);
    fake.watermark_slots = 2; /* the fake's first topic would have the third */
    fake_resume(&fake);
    handle = CONNECT(&fake, .queue_entries = 16);
    topic = open_topic(handle, "t");
    cr_assert_eq(walrus_topic_durable_next(topic), 0);
    cr_assert_eq(walrus_topic_written_next(topic), 0);
}
