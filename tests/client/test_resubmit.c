/* What was in flight when the connection was lost: sent again once and in order, or known to be committed. */
#include "reconnect.h"

TestSuite(resubmit, .init = begin, .fini = end);
TestSuite(resubmit_otherwise);

/* ---------------------------------------------------------------------------------------- writes */

Test(resubmit, g5_what_was_in_flight_is_sent_again_once_and_in_order)
{
    int fd = walrus_fd(handle);
    fake.hold_writes = true;
    for (uint64_t i = 1; i <= 20; i++)
        send_one(topic, i);
    wait_until_held(20);
    die();
    for (uint64_t i = 1; i <= 20; i++)
        expect(i, 0, 0, i);
    expect_entries("t", 1, 20);
    cr_assert_eq(info().reconnects, 1);
    cr_assert_eq(info().epoch, 8);
    cr_assert_eq(walrus_fd(handle), fd);
    cr_assert_eq(walrus_in_flight(handle), 0);
}

Test(resubmit, g5_what_was_committed_and_not_answered_is_a_duplicate_and_is_not_written_again)
{
    rule((struct fake_rule){.op = OP_BATCH, .after = 1, .times = 1, .result = FAKE_DIE_MUTE});
    fake_pause(&fake);
    for (uint64_t i = 1; i <= 4; i++)
        send_one(topic, i);
    fake_resume(&fake);
    struct walrus_completion c = expect(1, 0, 0, 1);
    cr_assert_eq(c.receipt.first_sequence, 1);
    c = expect(2, 0, WALRUS_RECEIPT_DUPLICATE, 2);
    cr_assert_eq(c.receipt.level, WALRUS_LEVEL_DURABLE);
    expect(3, 0, 0, 3);
    expect(4, 0, 0, 4);
    expect_entries("t", 1, 4);
    cr_assert_eq(walrus_topic_last_number(topic), 4);
}

Test(resubmit, every_topic_is_opened_again_and_may_have_another_number)
{
    enum { TOPICS = 70 };
    walrus_topic *topics[TOPICS];
    char name[WALRUS_MAX_TOPIC_NAME + 1];
    for (int i = 0; i < TOPICS - 30; i++) {
        snprintf(name, sizeof name, i % 10 == 0 ? "%0255d" : "topic %d", i);
        topics[i] = open_topic(handle, name);
    }
    fake.hold_writes = true;
    for (int i = 0; i < TOPICS - 30; i++)
        send_one(topics[i], 1);
    wait_until_held(TOPICS - 30);
    die();
    for (int i = 0; i < TOPICS - 30; i++)
        expect(1, 0, 0, 1);
    for (int i = 0; i < TOPICS - 30; i++)
        expect_entries(fake.topics[i + 1]->name, 1, 1);
    send_one(topics[7], 2);
    expect(2, 0, 0, 2);
    append("topic 7", "by its name");
    cr_assert_eq(fake_topic(&fake, "topic 7")->count, 3);
}

Test(resubmit, what_is_submitted_while_there_is_no_broker_waits_for_one)
{
    fake_down(&fake);
    while (info().reconnects == 0 && walrus_in_flight(handle) < 63) {
        walrus_batch *batch = NULL;
        cr_assert_eq(walrus_batch_begin(topic, &batch), 0, "%s", walrus_error(handle));
        uint64_t n = walrus_in_flight(handle) + 1;
        memcpy(reserve(batch, sizeof n), &n, sizeof n);
        cr_assert_eq(submit(batch, n), 0, "%s", walrus_error(handle));
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
    }
    walrus_batch *batch = new_batch(topic);
    reserve(batch, 8);
    cr_assert_eq(submit(batch, 64), -EAGAIN);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_RING);
    cr_assert_eq(walrus_wait(handle, 1, 1), -ETIME);
    walrus_batch_abort(batch);
    fake_up(&fake);
    for (uint64_t i = 1; i <= 63; i++)
        expect(i, 0, 0, i);
    expect_entries("t", 1, 63);
}

Test(resubmit, pointers_into_an_open_batch_stay_valid)
{
    walrus_batch *batch = new_batch(topic);
    char *first = reserve(batch, 5000), *second = reserve(batch, 100);
    memset(first, 'a', 5000);
    memset(second, 'b', 50);
    fake.hold_writes = true;
    walrus_batch *other = new_batch(topic);
    memset(reserve(other, 3000), 'x', 3000);
    cr_assert_eq(submit(other, 1), 0);
    wait_until_held(1);
    die();
    expect(1, 0, 0, 1);
    memset(second + 50, 'c', 50);
    memset(first + 4000, 'd', 1000);
    memset(reserve(batch, 10), 'e', 10);
    cr_assert_eq(submit(batch, 2), 0);
    expect(2, 0, 0, 2);
    fake_pause(&fake);
    const struct fake_topic *t = fake_topic(&fake, "t");
    cr_assert_eq(t->count, 4);
    for (int i = 0; i < 3000; i++)
        cr_assert_eq(t->entries[0].data[i], 'x');
    for (int i = 0; i < 5000; i++)
        cr_assert_eq(t->entries[1].data[i], i < 4000 ? 'a' : 'd');
    for (int i = 0; i < 100; i++)
        cr_assert_eq(t->entries[2].data[i], i < 50 ? 'b' : 'c');
    cr_assert_eq(t->entries[3].data[9], 'e');
    fake_resume(&fake);
}

Test(resubmit, blocking_writes_notice_nothing)
{
    rule((struct fake_rule){.op = OP_APPEND, .times = 1, .result = FAKE_DIE});
    append("blocking", "first");
    rule((struct fake_rule){.op = OP_APPEND, .times = 1, .result = FAKE_DIE_MUTE});
    struct walrus_receipt receipt;
    cr_assert_eq(walrus_append_for_topic(handle, "blocking", "second", 6, NULL, &receipt), 0);
    cr_assert_eq(receipt.flags, WALRUS_RECEIPT_DUPLICATE);
    cr_assert_eq(receipt.number, 2);
    rule((struct fake_rule){.op = OP_OPEN, .times = 1, .result = FAKE_DIE});
    append("another", "third");
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "blocking")->count, 2);
    cr_assert_eq(fake_topic(&fake, "another")->count, 1);
    fake_resume(&fake);
    cr_assert_eq(info().reconnects, 3);
}

Test(resubmit, a_topic_that_is_being_opened_is_asked_for_again)
{
    rule((struct fake_rule){.op = OP_OPEN, .times = 1, .result = FAKE_DIE_AFTER});
    walrus_topic *other = open_topic(handle, "other");
    rule((struct fake_rule){.op = OP_OPEN, .times = 1, .result = FAKE_DIE});
    walrus_topic *third = open_topic(handle, "third");
    send_one(other, 1);
    expect(1, 0, 0, 1);
    send_one(third, 2);
    expect(2, 0, 0, 1);
    expect_entries("other", 1, 1);
    expect_entries("third", 2, 2);
}

Test(resubmit, a_broker_that_dies_at_each_step_of_coming_back_only_costs_time)
{
    walrus_topic *other = open_topic(handle, "other");
    fake.hold_writes = true;
    send_one(topic, 1);
    send_one(other, 1);
    wait_until_held(2);
    fake_pause(&fake);
    fake.handshake = HANDSHAKE_HANG_UP;
    fake_die(&fake);
    fake.hold_writes = false;
    fake_rule(&fake, (struct fake_rule){.op = OP_OPEN, .times = 1, .result = FAKE_DIE});
    fake_rule(&fake, (struct fake_rule){.op = OP_OPEN, .after = 1, .times = 1, .result = FAKE_DIE_AFTER});
    fake_rule(&fake, (struct fake_rule){.op = OP_BATCH, .after = 1, .times = 1, .result = FAKE_DIE});
    fake_resume(&fake);
    cr_assert_eq(walrus_wait(handle, 1, 20000000), -ETIME);
    fake_pause(&fake);
    fake.handshake = HANDSHAKE_GOOD;
    fake_resume(&fake);
    expect(1, 0, 0, 1);
    expect(1, 0, 0, 1);
    expect_entries("t", 1, 1);
    expect_entries("other", 1, 1);
    cr_assert_geq(fake.lives, 4);
}

Test(resubmit, a_number_below_what_was_answered_says_that_data_was_lost_and_numbers_move_down)
{
    for (uint64_t i = 1; i <= 5; i++) {
        send_one(topic, i);
        expect(i, 0, 0, i);
    }
    fake.hold_writes = true;
    for (uint64_t i = 6; i <= 8; i++)
        send_one(topic, i);
    wait_until_held(3);
    fake_pause(&fake);
    fake_topic(&fake, "t")->last_number = 2; /* 3 to 5 were answered below durable */
    fake_resume(&fake);
    die();
    expect(6, 0, WALRUS_RECEIPT_EARLIER_LOST, 3);
    expect(7, 0, 0, 4);
    expect(8, 0, 0, 5);
    send_one(topic, 9);
    expect(9, 0, 0, 6);
}

Test(resubmit, a_deadline_passes_while_there_is_no_broker)
{
    fake_down(&fake);
    notice();
    struct walrus_write_options options = {.size = sizeof options, .deadline_ns = 1};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options, NULL), -ETIMEDOUT);
    cr_assert_eq(walrus_append_for_topic(handle, "not open yet", "x", 1, &options, NULL), -ETIMEDOUT);
    walrus_batch *batch = new_batch(topic);
    reserve(batch, 8);
    struct walrus_submit_options submit_options = {
        .size = sizeof submit_options, .user_data = 9, .deadline_ns = 1000};
    cr_assert_eq(walrus_batch_submit(batch, &submit_options), 0);
    expect(9, -ETIMEDOUT, 0, 1);
    fake_up(&fake);
    send_one(topic, 1);
    expect(1, 0, 0, 1);
    expect_entries("t", 1, 1);
}

Test(resubmit, what_waited_for_its_turn_waits_again_and_can_be_taken_back)
{
    fake_pause(&fake);
    fake_take_topic(&fake, "t");
    fake_resume(&fake);
    for (uint64_t i = 1; i <= 3; i++) {
        walrus_batch *batch = new_batch(topic);
        memcpy(reserve(batch, sizeof i), &i, sizeof i);
        struct walrus_submit_options options = {.size = sizeof options, .user_data = i, .queue = 1};
        cr_assert_eq(walrus_batch_submit(batch, &options), 0);
    }
    die();
    cr_assert_eq(walrus_cancel(handle, 3), 0, "%s", walrus_error(handle));
    cr_assert_eq(info().reconnects, 1);
    expect(3, -ECANCELED, 0, 3);
    fake_pause(&fake);
    cr_assert_eq(fake.waiting_count, 2);
    fake_free_topic(&fake, "t");
    fake_resume(&fake);
    expect(1, 0, 0, 1);
    expect(2, 0, 0, 2);
    expect_entries("t", 1, 2);
}

Test(resubmit, who_waits_for_a_try_may_have_it_when_the_broker_is_gone)
{
    fake_pause(&fake);
    fake_take_topic(&fake, "t");
    fake_resume(&fake);
    walrus_batch *batch = new_batch(topic);
    reserve(batch, 8);
    struct walrus_submit_options options = {.size = sizeof options, .user_data = 5, .notify = 1};
    cr_assert_eq(walrus_batch_submit(batch, &options), 0);
    expect(5, -EBUSY, WALRUS_RECEIPT_MORE, 1);
    fake_pause(&fake);
    fake_topic(&fake, "t")->other = false;
    fake_resume(&fake);
    die();
    expect(5, 0, WALRUS_RECEIPT_TRY_NOW, 0);
    send_one(topic, 1);
    expect(1, 0, 0, 1);
}

Test(resubmit_otherwise, watermarks_stay_and_then_are_those_of_the_new_broker)
{
    fake.watermark_slots = 1000;
    WITH(.producer = "me");
    fake_pause(&fake);
    fake.watermarks[2] = (struct watermark){.written_next = 50, .durable_next = 40};
    fake_resume(&fake);
    cr_assert_eq(walrus_topic_durable_next(topic), 40);
    int maps = mappings();
    fake_down(&fake);
    notice();
    cr_assert_eq(walrus_topic_durable_next(topic), 40);
    fake.hold_opens = true;
    fake_up(&fake);
    fake_pause(&fake);
    fake_resume(&fake);
    for (uint32_t held = 0; held < 1;) { /* until it is reopening */
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
        fake_pause(&fake);
        held = fake.held_count;
        if (held > 0) {
            fake.watermarks[2] = (struct watermark){.written_next = 7, .durable_next = 6};
            fake.watermarks[3] = (struct watermark){.written_next = 70, .durable_next = 60};
        }
        fake_resume(&fake);
    }
    cr_assert_eq(walrus_topic_durable_next(topic), 40);
    fake_pause(&fake);
    fake.slot_shift = 1;
    fake.hold_opens = false;
    fake_answer_held(&fake, fake.held_count);
    fake_resume(&fake);
    send_one(topic, 1);
    expect(1, 0, 0, 1);
    cr_assert_eq(walrus_topic_durable_next(topic), 60);
    cr_assert_eq(walrus_topic_written_next(topic), 70);
    cr_assert_eq(mappings(), maps);
    end();
}

Test(resubmit, what_a_broker_that_stops_did_not_take_is_sent_to_the_next_one)
{
    rule((struct fake_rule){.op = OP_BATCH, .after = 1, .times = 3, .result = -ESHUTDOWN});
    for (uint64_t i = 1; i <= 4; i++)
        send_one(topic, i);
    expect(1, 0, 0, 1);
    for (uint64_t taken = 0; taken < 5; sched_yield()) { /* OPEN and four batches */
        fake_pause(&fake);
        taken = fake.answered;
        fake_resume(&fake);
    }
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
    cr_assert_eq(walrus_in_flight(handle), 3);
    die();
    for (uint64_t i = 2; i <= 4; i++)
        expect(i, 0, 0, i);
    expect_entries("t", 1, 4);
}

Test(resubmit, a_topic_may_be_closed_while_it_is_opened_again)
{
    walrus_topic *other = open_topic(handle, "other");
    fake_down(&fake);
    notice();
    fake.hold_opens = true;
    fake_up(&fake);
    for (uint32_t held = 0; held < 2;) { /* until it is reopening */
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
        fake_pause(&fake);
        held = fake.held_count;
        fake_resume(&fake);
    }
    walrus_topic_close(other);
    fake_pause(&fake);
    fake.hold_opens = false;
    fake_answer_held(&fake, fake.held_count);
    cr_assert_eq(fake.seen[OP_CLOSE], 0);
    fake_resume(&fake);
    send_one(topic, 1);
    expect(1, 0, 0, 1);
    for (uint64_t closed = 0; closed == 0; sched_yield()) {
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
        walrus_topic_close(open_topic(handle, "another"));
        fake_pause(&fake);
        closed = fake.seen[OP_CLOSE];
        fake_resume(&fake);
    }
}

Test(resubmit, a_new_name_is_not_asked_for_while_the_others_are_opened_again)
{
    append("one", "1");
    append("two", "2");
    fake_down(&fake);
    notice();
    fake.hold_opens = true;
    fake_up(&fake);
    for (uint32_t held = 0; held < 3;) { /* until it is reopening */
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
        fake_pause(&fake);
        held = fake.held_count;
        fake_resume(&fake);
    }
    struct walrus_write_options options = {.size = sizeof options, .deadline_ns = 1000000};
    cr_assert_eq(walrus_append_for_topic(handle, "xxxxxxxx", "x", 1, &options, NULL), -ETIMEDOUT);
    fake_pause(&fake);
    fake.hold_opens = false;
    fake_answer_held(&fake, fake.held_count);
    fake_resume(&fake);
    append("one", "1");
    append("two", "2");
    append("xxxxxxxx", "3");
    fake_pause(&fake);
    cr_assert_eq(fake.topic_count, 4);
    cr_assert_eq(fake_topic(&fake, "one")->count, 2);
    cr_assert_eq(fake_topic(&fake, "two")->count, 2);
    cr_assert_eq(fake_topic(&fake, "xxxxxxxx")->count, 1);
    fake_resume(&fake);
}

/* --------------------------------------------------------------------------------------- streams */

static char large[200000];

static void fill_large(void)
{
    for (size_t i = 0; i < sizeof large; i++)
        large[i] = (char)(i * 31 + i / 1000);
}

static void add_large(walrus_batch *batch, int count)
{
    fill_large();
    for (int i = 0; i < count; i++) {
        int code = walrus_batch_add(batch, large, sizeof large);
        cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    }
}

Test(resubmit, an_open_stream_has_failed_and_its_topic_is_free)
{
    walrus_batch *batch = new_batch(topic);
    add_large(batch, 5);
    die();
    append("other", "until it is connected again");
    cr_assert_eq(walrus_batch_add(batch, large, sizeof large), -ECANCELED);
    cr_assert_eq(submit(batch, 1), 0);
    expect(1, -ECANCELED, 0, 0);
    send_one(topic, 2);
    expect(2, 0, 0, 1);
    expect_entries("t", 2, 2);
    batch = new_batch(topic);
    add_large(batch, 5);
    die();
    walrus_batch_abort(batch);
    send_one(topic, 3);
    expect(3, 0, 0, 2);
    expect_entries("t", 2, 3);
}

/* The first chunk of another stream is answered, later ones will not be. */
static void hold_the_rest(uint64_t chunks_before)
{
    for (bool seen = false; !seen; sched_yield()) {
        fake_pause(&fake);
        seen = fake.seen[OP_CHUNK] > chunks_before;
        fake.hold_writes = seen;
        fake_resume(&fake);
    }
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
}

Test(resubmit, g5_a_stream_whose_end_was_sent_is_a_duplicate_or_cancelled)
{
    walrus_batch *batch = new_batch(topic);
    add_large(batch, 4);
    hold_the_rest(0);
    cr_assert_eq(submit(batch, 1), 0);
    wait_until_held(1);
    die(); /* not committed */
    expect(1, -ECANCELED, 0, 1);
    uint64_t chunks = fake.seen[OP_CHUNK];
    batch = new_batch(topic);
    add_large(batch, 4);
    hold_the_rest(chunks);
    cr_assert_eq(submit(batch, 2), 0);
    wait_until_held(1);
    fake_pause(&fake);
    fake.mute = true; /* all of what is held is done, and not answered */
    fake_answer_held(&fake, fake.held_count);
    fake.mute = false;
    fake_resume(&fake);
    die();
    expect(2, 0, WALRUS_RECEIPT_DUPLICATE, 1);
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "t")->count, 4);
    fake_resume(&fake);
    send_one(topic, 3);
    expect(3, 0, 0, 2);
}

Test(resubmit, g5_a_stream_that_still_waited_for_its_turn_is_sent_again_from_its_first_chunk)
{
    for (uint64_t round = 1; round <= 2; round++) {
        fake.hold_writes = true;
        walrus_batch *batch = new_batch(topic);
        add_large(batch, 3); /* what fits of it into the arena is on its way */
        cr_assert_eq(submit(batch, round), 0);
        wait_until_held(3);
        if (round == 1) {
            die();
            expect(1, 0, 0, 1);
        } else { /* everything is done, nothing answered */
            fake_pause(&fake);
            fake.mute = true;
            fake_answer_held(&fake, fake.held_count);
            fake.mute = false;
            fake_resume(&fake);
            die();
            expect(2, 0, WALRUS_RECEIPT_DUPLICATE, 2);
        }
        fake_pause(&fake);
        const struct fake_topic *t = fake_topic(&fake, "t");
        cr_assert_eq(t->count, 3 * round);
        for (uint64_t i = 0; i < t->count; i++)
            cr_assert_eq(memcmp(t->entries[i].data, large, sizeof large), 0);
        fake_resume(&fake);
    }
    cr_assert_eq(info().reconnects, 2);
}

Test(resubmit, a_stream_may_begin_while_there_is_no_broker)
{
    fake_down(&fake);
    notice();
    walrus_batch *batch = new_batch(topic);
    cr_assert_eq(walrus_batch_add(batch, large, sizeof large), 0);
    cr_assert_eq(walrus_batch_add(batch, large, sizeof large), 0);
    fake_up(&fake);
    add_large(batch, 6);
    cr_assert_eq(submit(batch, 1), 0);
    expect(1, 0, 0, 1);
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "t")->count, 8);
    fake_resume(&fake);
}
