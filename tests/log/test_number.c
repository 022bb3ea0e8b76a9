/* Numbered batches: each number at most once, in order, for ever; and nothing but a commit takes one. */
#include "numbers.h"

TestSuite(numbers, .init = make, .fini = clean, .timeout = 60);

/* ------------------------------------------------------------------------------------------------- order */

Test(numbers, g5_a_number_is_admitted_only_after_the_one_before_it)
{
    struct producer *p = named("p");
    cr_assert_eq(last_of(p, "t"), 0u);
    expect_order(send_one(p, "t", 2));
    cr_assert_eq(send_one(p, "t", 0)->refused, -EINVAL);
    commit_one(p, "t", 1);
    expect_order(send_one(p, "t", 3));
    expect_order(send_one(p, "t", UINT64_MAX));
    commit_one(p, "t", 2);
    cr_assert_eq(last_of(p, "t"), 2u);
    cr_assert_eq(last_of(p, "other"), 0u);
    commit_one(p, "other", 1);
    life_verify(&life);
    let_go(p);
}

Test(numbers, g5_one_producer_numbers_each_of_many_topics_for_itself)
{
    struct producer *p = named("p");
    char name[16];
    for (unsigned i = 0; i < 30; i++) {
        snprintf(name, sizeof name, "t%u", i);
        for (uint64_t number = 1; number <= 1 + i % 2; number++)
            commit_one(p, name, number);
    }
    for (unsigned i = 0; i < 100; i++) { /* topics without a number share a place with some that have one */
        snprintf(name, sizeof name, "t%u", i);
        cr_assert_eq(last_of(p, name), i < 30 ? 1 + i % 2 : 0, "%s", name);
    }
    life_verify(&life);
    let_go(p);
}

Test(numbers, g5_several_numbers_in_flight_share_a_group_and_none_comes_twice)
{
    struct producer *p = named("p");
    commit_one(p, "t", 1);
    io_fault_hold(life.io, IO_WRITE, true);
    struct sent *two = send_one(p, "t", 2);
    life_until_held(&life, IO_WRITE, 1);
    struct sent *three = send_from(p, 3, 7), *four = send_from(p, 4, 10);
    cr_assert_eq(two->refused + three->refused + four->refused, 0);
    expect_order(send_one(p, "t", 2)); /* in the device */
    expect_order(send_one(p, "t", 4)); /* gathering */
    uint64_t sequence;
    cr_assert_eq(ask(p, "t", 1, &sequence), 1);
    cr_assert_eq(ask(p, "t", 2, &sequence), -EINPROGRESS);
    cr_assert_eq(ask(p, "t", 4, &sequence), -EINPROGRESS);
    cr_assert_eq(ask(p, "t", 5, &sequence), 0);
    cr_assert_eq(ask(p, "t", 0, &sequence), 0);
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 1);
    life_settle(&life);
    cr_assert_eq(two->write.result + three->write.result + four->write.result, 0);
    cr_assert_eq(three->write.group, four->write.group);
    life_committed(&life, "t", 9);
    cr_assert_eq(last_of(p, "t"), 4u);
    life_verify(&life);
    let_go(p);
}

Test(numbers, g5_a_committed_number_is_a_duplicate_for_ever)
{
    struct producer *p = named("p");
    commit_one(p, "t", 1);
    commit_one(p, "t", 2);
    struct sent *again = send_one(p, "t", 2);
    expect_duplicate(again, 4);
    cr_assert_eq(again->write.level_reached, LEVEL_DURABLE);
    expect_duplicate(send_one(p, "t", 1), 0); /* where it is, is not known any more */
    let_go(p);
    for (unsigned i = 0; i < 3; i++) {
        if (i == 1) {
            life_stop(&life);
            life_start(&life);
            life_quiet(&life);
        } else {
            restart();
        }
        p = named("p");
        cr_assert_eq(last_of(p, "t"), 2 + i);
        expect_duplicate(send_one(p, "t", 1), 0);
        expect_duplicate(send_one(p, "t", 2 + i), 4 + 3 * i);
        uint64_t sequence;
        cr_assert_eq(ask(p, "t", 2 + i, &sequence), 1);
        cr_assert_eq(sequence, 4 + 3 * i);
        commit_one(p, "t", 3 + i);
        let_go(p);
    }
    life_verify(&life);
}

Test(numbers, a_duplicate_is_answered_while_the_topic_is_busy)
{
    struct producer *p = named("p");
    commit_one(p, "t", 1);
    io_fault_hold(life.io, IO_WRITE, true);
    struct sent *other = SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &B, .entries = 1, .bytes = 9);
    cr_assert_eq(other->refused, 0);
    life_until_held(&life, IO_WRITE, 1);
    expect_duplicate(send_one(p, "t", 1), 1);
    cr_assert_eq(send_one(p, "t", 2)->refused, -EBUSY);
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 1);
    life_settle(&life);
    let_go(p);
}

Test(numbers, two_producers_number_for_themselves)
{
    struct producer *p = named("p"), *q = named("q"), *r = anonymous();
    commit_one(p, "t", 1);
    commit_one(q, "t", 1);
    commit_one(r, "t", 1);
    commit_one(p, "t", 2);
    cr_assert_eq(last_of(p, "t"), 2u);
    cr_assert_eq(last_of(q, "t"), 1u);
    cr_assert_eq(last_of(r, "t"), 1u);
    life_verify(&life);
    let_go(p);
    let_go(q);
    let_go(r);
}

/* ---------------------------------------------------------------------------------------------- failures */

/* The group with the writes sent since fails for good. */
static void fail_for_good(void)
{
    life.plans[IO_WRITE] =
        (struct plan){.failing = 5, .error = -EIO}; /* both tries; in between is a header */
}

Test(numbers, g3_only_a_commit_takes_a_number)
{
    struct producer *p = named("p");
    commit_one(p, "t", 1);
    fail_for_good();
    struct sent *two = send_one(p, "t", 2), *three = send_one(p, "t", 3);
    life_settle(&life);
    cr_assert_eq(two->write.result, -EIO);
    cr_assert_eq(three->write.result, -EIO);
    cr_assert_eq(last_of(p, "t"), 1u);
    uint64_t sequence;
    cr_assert_eq(ask(p, "t", 2, &sequence), 0);
    expect_order(send_one(p, "t", 3));
    life_quiet(&life);
    commit_one(p, "t", 2);
    restart();
    life_verify(&life);
}

Test(numbers, what_follows_a_failed_number_in_flight_is_answered_order_and_the_rest_of_its_group_stays)
{
    struct producer *p = named("p"), *q = named("q");
    commit_one(p, "t", 1);
    commit_one(q, "u", 1);
    life_quiet(&life);
    io_fault_hold(life.io, IO_WRITE, true);
    fail_for_good();
    struct sent *two = send_one(p, "t", 2);
    life_until_held(&life, IO_WRITE, 1);
    struct sent *plain =
        SEND(&life, .name = "v", .kind = WRITE_BATCH, .owner = &A, .entries = 2, .bytes = 5000);
    struct sent *three = send_one(p, "t", 3);
    struct sent *other = send_one(q, "u", 2);
    struct sent *four = send_one(p, "t", 4);
    struct sent *last =
        SEND(&life, .name = "w", .kind = WRITE_APPEND, .owner = &B, .entries = 1, .bytes = 77);
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 1);
    life_settle(&life);
    cr_assert_eq(two->write.result, -EIO);
    cr_assert_eq(three->write.result, -EAGAIN);
    cr_assert_eq(three->write.reason, REASON_ORDER);
    cr_assert_gt(three->write.retry_after_us, 0u);
    cr_assert_eq(four->write.result, -EAGAIN);
    cr_assert_lt(two->order, three->order);
    cr_assert_lt(three->order, four->order);
    cr_assert_eq(plain->write.result, 0);
    cr_assert_eq(other->write.result, 0);
    cr_assert_eq(last->write.result, 0);
    life_committed(&life, "u", 3);
    life_committed(&life, "v", 2);
    life_committed(&life, "w", 1);
    cr_assert_eq(last_of(p, "t"), 1u);
    cr_assert_eq(last_of(q, "u"), 2u);
    let_go(q);
    life_verify(&life);
    commit_one(p, "t", 2);
    let_go(p);
    restart();
    life_verify(&life);
    p = named("p");
    cr_assert_eq(last_of(p, "t"), 2u);
    let_go(p);
}

Test(numbers, the_topic_is_free_after_a_number_was_dropped)
{
    struct producer *p = named("p");
    commit_one(p, "t", 1);
    life_quiet(&life);
    io_fault_hold(life.io, IO_WRITE, true);
    fail_for_good();
    send_one(p, "t", 2);
    life_until_held(&life, IO_WRITE, 1);
    struct sent *three = send_one(p, "t", 3);
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 1);
    life_settle(&life);
    cr_assert_eq(three->write.result, -EAGAIN);
    struct topic *topic = life_topic(&life, "t");
    cr_assert(!log_topic_busy(topic, &B));
    log_topic_release(life.log, topic);
    let_go(p);
}

Test(numbers, a_first_batch_that_failed_leaves_no_producer_behind)
{
    struct producer *p = named("p");
    fail_for_good();
    struct sent *one = send_one(p, "t", 1);
    life_settle(&life);
    cr_assert_eq(one->write.result, -EIO);
    life_quiet(&life);
    commit_one(p, "t", 1); /* the catalogue entry comes with this one */
    let_go(p);
    restart();
    p = named("p");
    cr_assert_eq(last_of(p, "t"), 1u);
    let_go(p);
    life_verify(&life);
}

/* ----------------------------------------------------------------------------------------------- streams */

static struct sent *chunk(struct stream *stream, struct producer *p, uint64_t number, uint64_t from,
                          bool last)
{
    return SEND(&life, .name = "t", .kind = WRITE_CHUNK, .owner = &A, .entries = 2, .bytes = 3000,
                .from = from, .stream = stream, .first = stream->chunks == 0, .last = last, .producer = p,
                .number = number);
}

Test(numbers, a_stream_takes_its_number_with_its_last_chunk)
{
    struct producer *p = named("p");
    struct stream stream = {.owner = &A};
    cr_assert_eq(chunk(&stream, p, 0, 1 + 3, false)->refused, 0);
    struct sent *one = send_one(p, "t", 1); /* goes before it */
    cr_assert_eq(one->refused, 0);
    struct sent *last = chunk(&stream, p, 2, 3 + 3, true);
    cr_assert_eq(last->refused, 0);
    life_settle(&life);
    cr_assert_eq(last->write.result, 0);
    cr_assert_eq(last_of(p, "t"), 2u);
    life_committed(&life, "t", 7);
    let_go(p);
    restart();
    life_verify(&life);
}

Test(numbers, a_stream_whose_number_is_committed_is_a_duplicate_and_leaves_no_trace)
{
    struct producer *p = named("p");
    commit_one(p, "t", 1);
    struct stream stream = {.owner = &A};
    cr_assert_eq(chunk(&stream, p, 0, 4, false)->refused, 0);
    life_settle(&life);
    expect_duplicate(chunk(&stream, p, 1, 6, true), 1);
    struct topic *topic = life_topic(&life, "t");
    cr_assert(!log_topic_busy(topic, &B));
    log_topic_release(life.log, topic);
    commit_one(p, "t", 2);
    let_go(p);
    restart();
    life_verify(&life);
}

Test(numbers, a_streams_number_behind_a_failed_one_is_dropped_with_the_stream)
{
    struct producer *p = named("p");
    commit_one(p, "t", 1);
    life_quiet(&life);
    io_fault_hold(life.io, IO_WRITE, true);
    fail_for_good();
    struct sent *two = send_one(p, "t", 2);
    life_until_held(&life, IO_WRITE, 1);
    struct stream stream = {.owner = &A};
    cr_assert_eq(chunk(&stream, p, 0, 4, false)->refused, 0);
    struct sent *last = chunk(&stream, p, 3, 6, true);
    cr_assert_eq(last->refused, 0);
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 1);
    life_settle(&life);
    cr_assert_eq(two->write.result, -EIO);
    cr_assert_eq(last->write.result, -EAGAIN);
    cr_assert_eq(last->write.reason, REASON_ORDER);
    life_quiet(&life);
    commit_one(p, "t", 2);
    commit_one(p, "t", 3);
    let_go(p);
    restart();
    life_verify(&life);
}

Test(numbers, a_number_behind_a_stream_that_failed_is_dropped_too)
{
    struct producer *p = named("p");
    commit_one(p, "t", 1);
    life_quiet(&life);
    io_fault_hold(life.io, IO_WRITE, true);
    fail_for_good();
    struct stream stream = {.owner = &A};
    cr_assert_eq(chunk(&stream, p, 0, 4, false)->refused, 0);
    life_until_held(&life, IO_WRITE, 1);
    struct sent *last = chunk(&stream, p, 2, 6, true);
    struct sent *three = send_one(p, "t", 3);
    cr_assert_eq(last->refused + three->refused, 0);
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 1);
    life_settle(&life);
    cr_assert_eq(last->write.result, -EIO);
    cr_assert_eq(three->write.result, -EAGAIN);
    cr_assert_eq(last_of(p, "t"), 1u);
    life_quiet(&life);
    commit_one(p, "t", 2);
    let_go(p);
    restart();
    life_verify(&life);
}

/* --------------------------------------------------------------------------------------------- levels */

Test(numbers, a_numbered_batch_of_an_accepted_topic_is_answered_when_it_is_in_the_log)
{
    struct producer *p = named("p");
    struct sent *sent = SEND(&life, .name = "fast", .kind = WRITE_BATCH, .owner = &A, .entries = 1,
                             .bytes = 10, .topic_level = LEVEL_ACCEPTED, .producer = p, .number = 1);
    cr_assert_eq(sent->refused, 0);
    log_turn(life.log);
    life_settle(&life);
    cr_assert_geq(sent->write.level_reached, LEVEL_WRITTEN);
    let_go(p);
}
