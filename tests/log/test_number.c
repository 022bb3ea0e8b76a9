/* Numbered batches: each number at most once, in order, for ever; and nothing but a commit takes one. */
#include "life.h"

#include "../../broker/log/checksum.h"

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

TestSuite(numbers, .init = make, .fini = clean, .timeout = 60);

/* ------------------------------------------------------------------------------------------------- helpers */

static struct producer *named(const char *name)
{
    struct producer *producer;
    cr_assert_eq(log_producer_named(life.log, name, strlen(name), 7, &producer), 0);
    return producer;
}

static struct producer *anonymous(void)
{
    struct producer *producer;
    cr_assert_eq(log_producer_anonymous(life.log, 7, &producer), 0);
    return producer;
}

static void let_go(struct producer *producer)
{
    log_producer_release(life.log, producer);
}

static uint64_t last_of(struct producer *producer, const char *name)
{
    struct topic *topic = life_topic(&life, name);
    uint64_t last = log_last_number(life.log, producer, topic);
    log_topic_release(life.log, topic);
    return last;
}

static int ask(struct producer *producer, const char *name, uint64_t number, uint64_t *sequence)
{
    struct topic *topic = life_topic(&life, name);
    uint64_t entries;
    int answer = log_query(life.log, producer, topic, number, sequence, &entries);
    log_topic_release(life.log, topic);
    return answer;
}

/* One batch of three entries. */
static struct sent *send_one(struct producer *producer, const char *topic, uint64_t number)
{
    return SEND(&life, .name = topic, .kind = WRITE_BATCH, .owner = &A, .entries = 3, .bytes = 100,
                .producer = producer, .number = number);
}

/* The same, for more than one in flight on topic "t": its content is that of the entries from `from` on. */
static struct sent *send_from(struct producer *producer, uint64_t number, uint64_t from)
{
    return SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 3, .bytes = 100,
                .from = from, .producer = producer, .number = number);
}

static void commit_one(struct producer *producer, const char *topic, uint64_t number)
{
    struct sent *sent = send_one(producer, topic, number);
    cr_assert_eq(sent->refused, 0, "refused %d", sent->refused);
    life_settle(&life);
    cr_assert_eq(sent->write.result, 0);
    life_committed(&life, topic, 3);
}

static void expect_order(const struct sent *sent)
{
    cr_assert_eq(sent->refused, -EAGAIN);
    cr_assert_eq(sent->write.reason, REASON_ORDER);
    cr_assert(!sent->done);
}

static void expect_duplicate(const struct sent *sent, uint64_t sequence)
{
    cr_assert_eq(sent->refused, 1);
    cr_assert_eq(sent->write.result, 0);
    cr_assert(sent->write.flags & COMPLETION_DUPLICATE);
    cr_assert_eq(sent->write.first_sequence, sequence);
    cr_assert(!sent->done);
}

static void restart(void)
{
    life_crash(&life);
    life_start(&life);
    life_quiet(&life);
}

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
    expect_duplicate(send_one(p, "t", 2), 4);
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

/* ---------------------------------------------------------------------------------------------- catalogue */

Test(numbers, a_name_belongs_to_the_uid_that_made_it)
{
    struct producer *p = named("p"), *again, *other;
    commit_one(p, "t", 1);
    cr_assert_eq(log_producer_named(life.log, "p", 1, 8, &other), -EACCES);
    cr_assert_eq(log_producer_named(life.log, "p", 1, 7, &again), 0);
    cr_assert_eq(again, p);
    cr_assert_eq(log_producer_again(life.log, log_producer_id(p), 7, &other), -EACCES, "it has a name");
    let_go(again);
    let_go(p);
    restart();
    cr_assert_eq(log_producer_named(life.log, "p", 1, 8, &other), -EACCES);
    cr_assert_eq(log_producer_named(life.log, "", 0, 7, &other), -EINVAL);
    cr_assert_eq(log_producer_named(life.log, "a\nb", 3, 7, &other), -EINVAL);
}

Test(numbers, a_name_that_committed_nothing_is_forgotten_when_it_is_let_go)
{
    struct producer *p = named("p"), *other;
    let_go(p);
    cr_assert_eq(log_producer_named(life.log, "p", 1, 8, &other), 0, "it is free for another uid");
    let_go(other);
}

Test(numbers, g5_an_anonymous_id_is_known_again_after_a_restart)
{
    struct producer *p = anonymous(), *again;
    uint64_t id = log_producer_id(p);
    commit_one(p, "t", 1);
    let_go(p);
    restart();
    cr_assert_eq(log_producer_again(life.log, id, 8, &again), -EACCES);
    cr_assert_eq(log_producer_again(life.log, id, 7, &again), 0);
    cr_assert_eq(last_of(again, "t"), 1u);
    expect_duplicate(send_one(again, "t", 1), 1);
    commit_one(again, "t", 2);
    let_go(again);
    struct producer *fresh = anonymous();
    cr_assert_gt(log_producer_id(fresh), id);
    uint64_t unused = log_producer_id(fresh);
    let_go(fresh);
    cr_assert_eq(log_producer_again(life.log, unused, 7, &again), -ENOENT, "nothing was committed under it");
    cr_assert_eq(log_producer_again(life.log, unused + 1, 7, &again), -ENODATA, "it was never given");
    cr_assert_eq(log_producer_again(life.log, UINT64_MAX, 7, &again), -ENODATA);
}

Test(numbers, g5_a_forgotten_id_is_never_taken_for_a_new_one)
{
    life_stop(&life);
    life.options.max_anonymous = 3;
    life_start(&life);
    life_quiet(&life);
    uint64_t ids[6];
    struct producer *held = anonymous(), *again;
    uint64_t held_id = log_producer_id(held);
    commit_one(held, "t", 1);
    for (unsigned i = 0; i < array_count(ids); i++) {
        struct producer *p = anonymous();
        ids[i] = log_producer_id(p);
        commit_one(p, "t", 1);
        let_go(p);
    }
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(log_producer_again(life.log, ids[i], 7, &again), -ENODATA, "id %u", i);
    cr_assert_eq(log_producer_again(life.log, ids[5], 7, &again), 0);
    expect_duplicate(send_one(again, "t", 1), life_next(&life, "t") - 3);
    let_go(again);
    commit_one(held, "t", 2); /* as long as somebody holds it, it is not forgotten */
    commit_one(held, "u", 1);
    let_go(held);
    struct producer *one_more = anonymous();
    commit_one(one_more, "u", 1);
    let_go(one_more);
    for (unsigned round = 0; round < 3; round++) {
        cr_assert_eq(log_producer_again(life.log, held_id, 7, &again), -ENODATA);
        for (unsigned i = 0; i < 4; i++)
            cr_assert_eq(log_producer_again(life.log, ids[i], 7, &again), -ENODATA, "round %u, id %u", round,
                         i);
        cr_assert_eq(log_producer_again(life.log, ids[5], 7, &again), 0);
        let_go(again);
        if (round == 0)
            life_stop(&life); /* writes a checkpoint */
        else
            life_crash(&life);
        life_start(&life);
    }
    life_verify(&life);
}

Test(numbers, g24_names_and_pairs_are_limited)
{
    life_stop(&life);
    life.options.max_named = 2;
    life_start(&life);
    struct producer *p = named("p"), *q = named("q"), *r;
    cr_assert_eq(log_producer_named(life.log, "r", 1, 7, &r), -EDQUOT);
    commit_one(p, "t", 1);
    commit_one(q, "t", 1);
    cr_assert_eq(send_one(p, "u", 1)->refused, -EDQUOT);
    commit_one(p, "t", 2);
    struct producer *free_of_it = anonymous();
    commit_one(free_of_it, "u", 1);
    let_go(free_of_it);
    let_go(q);
    let_go(p);
}

Test(numbers, g24_one_uid_cannot_use_up_the_names_and_pairs_of_all)
{
    life_stop(&life);
    life.options.max_named = 3;
    life.options.max_named_of_uid = 2;
    life_start(&life);
    struct producer *p = named("p"), *q = named("q"), *r, *s;
    cr_assert_eq(log_producer_named(life.log, "r", 1, 7, &r), -EDQUOT);
    commit_one(p, "t", 1);
    commit_one(q, "t", 1);
    cr_assert_eq(send_one(p, "u", 1)->refused, -EDQUOT);
    let_go(q);
    let_go(p);
    restart(); /* counts them anew */
    cr_assert_eq(log_producer_named(life.log, "r", 1, 7, &r), -EDQUOT);
    p = named("p");
    cr_assert_eq(send_one(p, "u", 1)->refused, -EDQUOT);
    cr_assert_eq(log_producer_named(life.log, "r", 1, 8, &r), 0, "another uid");
    commit_one(r, "u", 1);
    cr_assert_eq(log_producer_named(life.log, "s", 1, 8, &s), -EDQUOT, "the total");
    let_go(r);
    let_go(p);
}

/* Else one user could make the broker forget what another one is about to send again. */
Test(numbers, g24_the_anonymous_producers_of_the_uid_that_has_the_most_are_forgotten_first)
{
    life_stop(&life);
    life.options.max_anonymous = 3;
    life_start(&life);
    struct producer *honest;
    cr_assert_eq(log_producer_anonymous(life.log, 8, &honest), 0);
    uint64_t id = log_producer_id(honest);
    commit_one(honest, "t", 1);
    let_go(honest);
    for (int i = 0; i < 10; i++) {
        struct producer *one = anonymous();
        commit_one(one, "t", 1);
        let_go(one);
    }
    for (int round = 0; round < 2; round++) {
        cr_assert_eq(log_producer_again(life.log, id, 8, &honest), 0, "the oldest of all, and remembered");
        cr_assert_eq(last_of(honest, "t"), 1);
        let_go(honest);
        restart();
    }
}

Test(numbers, g24_topics_of_one_uid_are_limited_across_restarts)
{
    life_stop(&life);
    life.options.max_topics_of_uid = 2;
    life_start(&life);
    struct topic *topic, *kept;
    cr_assert_eq(log_topic(life.log, "a", 1, 0, 7, true, &kept), 0);
    cr_assert_eq(log_topic(life.log, "b", 1, 0, 7, true, &topic), 0);
    cr_assert_eq(log_topic(life.log, "c", 1, 0, 7, true, &topic), -EDQUOT);
    cr_assert_eq(log_topic(life.log, "c", 1, 0, 8, true, &topic), 0, "another uid");
    life_put(&life, "b", 1, 10); /* keeps the uid that made it */
    life_put(&life, "c", 1, 10);
    log_topic_release(life.log, kept); /* never written to: it does not count any more */
    cr_assert_eq(log_topic(life.log, "d", 1, 0, 7, true, &topic), 0);
    life_put(&life, "d", 1, 10);
    restart();
    cr_assert_eq(log_topic(life.log, "e", 1, 0, 7, true, &topic), -EDQUOT);
    struct topic_view view;
    cr_assert_eq(log_topic(life.log, "c", 1, 0, 9, false, &topic), 0);
    log_topic_view(topic, &view);
    cr_assert_eq(view.uid, 8u);
}

/* ------------------------------------------------------------------------------------ checkpoint, damage */

Test(numbers, g5_the_log_alone_gives_the_same_numbers_as_its_checkpoint)
{
    struct producer *p = named("p"), *q = anonymous();
    uint64_t id = log_producer_id(q);
    for (uint64_t n = 1; n <= 5; n++) {
        commit_one(p, "t", n);
        commit_one(q, "u", n);
    }
    let_go(p);
    let_go(q);
    life_stop(&life);
    for (unsigned i = 0; i < 2; i++) {
        life_start(&life);
        p = named("p");
        cr_assert_eq(log_producer_again(life.log, id, 7, &q), 0);
        cr_assert_eq(last_of(p, "t"), 5u);
        cr_assert_eq(last_of(q, "u"), 5u);
        uint64_t sequence;
        cr_assert_eq(ask(q, "u", 5, &sequence), 1);
        cr_assert_eq(sequence, 13u);
        let_go(p);
        let_go(q);
        life_crash(&life);
        if (file_there(&life, "checkpoint-0"))
            file_delete(&life, "checkpoint-0");
        if (file_there(&life, "checkpoint-1"))
            file_delete(&life, "checkpoint-1");
    }
}

/* Changes the newest group on the disk and gives it right sums again: what a broker with a mistake would have
 * written. */
static void forge(void (*change)(struct frame_header *frame))
{
    static struct disk disk;
    static uint8_t bytes[GROUP_MAX];
    disk_scan(&life, &disk);
    const struct disk_group *g = disk_last(&disk);
    file_peek(&life, g->file, g->header.offset, bytes, g->header.length);
    uint32_t at = sizeof(struct group_header);
    for (uint32_t i = 0; i < g->header.frames; i++) {
        struct frame_header *frame = (struct frame_header *)(void *)(bytes + at);
        at += frame->header_bytes + frame->payload_bytes;
        change(frame);
        frame_fill(frame, g->identity.seed);
    }
    struct group_facts facts = {.number = g->header.number,
                                .offset = g->header.offset,
                                .durable_upto = g->header.durable_upto,
                                .time_ns = g->header.time_ns,
                                .previous = g->header.previous_digest,
                                .used = g->header.used,
                                .frames = g->header.frames};
    group_fill(bytes, &g->identity, &facts);
    file_poke(&life, g->file, g->header.offset, bytes, g->header.length);
}

static void skip_a_number(struct frame_header *frame)
{
    frame->number += frame->producer != 0;
}

static void name_somebody_else(struct frame_header *frame)
{
    frame->producer += frame->producer != 0;
}

static void damage_the_entry(struct frame_header *frame)
{
    if (frame->kind == FRAME_PRODUCER) {
        struct producer_entry *entry = (void *)((uint8_t *)frame + frame->header_bytes);
        entry->name_bytes = frame->payload_bytes;
        frame_copy_payload(frame, 1, entry, frame->payload_bytes);
    }
}

static void change_the_id(struct frame_header *frame)
{
    if (frame->kind == FRAME_PRODUCER) {
        struct producer_entry *entry = (void *)((uint8_t *)frame + frame->header_bytes);
        entry->producer = 0;
        frame_copy_payload(frame, 1, entry, frame->payload_bytes);
    }
}

static void forged(void (*change)(struct frame_header *frame), const char *words)
{
    struct producer *p = named("p");
    commit_one(p, "t", last_of(p, "t") + 1);
    let_go(p);
    life_crash(&life);
    forge(change);
    life_refused(&life, -EBADMSG, words);
}

Test(numbers, g13_a_number_that_is_not_the_next_one_is_damage)
{
    forged(skip_a_number, "not the next one of its producer");
}

Test(numbers, g13_a_batch_of_a_producer_that_is_not_in_the_catalogue_is_damage)
{
    forged(name_somebody_else, "not the next one of its producer");
}

Test(numbers, g16_a_catalogue_entry_longer_than_its_frame_is_damage)
{
    forged(damage_the_entry, "a catalogue entry makes no sense");
}

Test(numbers, g13_a_catalogue_entry_without_an_id_is_damage)
{
    forged(change_the_id, "a catalogue entry makes no sense");
}

static void a_topic_far_away(struct frame_header *frame)
{
    if (frame->kind == FRAME_TOPIC) {
        struct topic_entry *entry = (void *)((uint8_t *)frame + frame->header_bytes);
        entry->topic = UINT32_MAX / 2 - 1;
        frame_copy_payload(frame, 1, entry, frame->payload_bytes);
    }
}

static void count_findings(void *context, const struct finding *finding)
{
    *(unsigned *)context += finding->kind == FINDING_DAMAGE;
}

Test(numbers, g16_an_id_far_behind_all_others_takes_no_memory)
{
    forged(a_topic_far_away, "a catalogue entry makes no sense");
    life_open(&life);
    struct check_report report;
    unsigned damage = 0;
    cr_assert_eq(log_check(life.io, count_findings, &damage, &report, &life.error), 0);
}

/* Changes the checkpoint of a stopped store at `offset` behind its last producer's beginning and gives it
 * right sums again. */
static void forge_checkpoint(size_t offset, uint64_t add)
{
    const char *name = file_there(&life, "checkpoint-1") ? "checkpoint-1" : "checkpoint-0";
    struct checkpoint_header header;
    static uint8_t bytes[4096];
    cr_assert_leq(file_size_of(&life, name), sizeof bytes);
    file_peek(&life, name, 0, bytes, file_size_of(&life, name));
    memcpy(&header, bytes, sizeof header);
    /* one producer "p" with one pair lies at the end */
    uint8_t *producer =
        bytes + header.bytes - sizeof(struct checkpoint_pair) - 8 - sizeof(struct checkpoint_producer);
    uint64_t value;
    memcpy(&value, producer + offset, sizeof value);
    value += add;
    memcpy(producer + offset, &value, sizeof value);
    header.body_crc = crc32c(0, bytes + sizeof header, header.bytes - sizeof header);
    header.crc = crc32c(0, &header, offsetof(struct checkpoint_header, crc));
    memcpy(bytes, &header, sizeof header);
    file_poke(&life, name, 0, bytes, header.bytes);
    if (file_there(&life, "checkpoint-0") && strcmp(name, "checkpoint-1") == 0)
        file_delete(&life, "checkpoint-0");
}

static void forge_header_of_checkpoint(uint32_t next_topic)
{
    const char *name = file_there(&life, "checkpoint-1") ? "checkpoint-1" : "checkpoint-0";
    struct checkpoint_header header;
    file_peek(&life, name, 0, &header, sizeof header);
    header.next_topic = next_topic;
    header.crc = crc32c(0, &header, offsetof(struct checkpoint_header, crc));
    file_poke(&life, name, 0, &header, sizeof header);
}

static void stopped_with_one_producer(void)
{
    struct producer *p = named("p");
    commit_one(p, "t", 1);
    let_go(p);
    life_stop(&life);
}

Test(numbers, g16_counts_of_a_checkpoint_that_do_not_add_up_make_it_not_count)
{
    stopped_with_one_producer();
    forge_checkpoint(offsetof(struct checkpoint_producer, pairs), 1000);
    life_start(&life);
    cr_assert(life_said(&life, "its counts are wrong"));
    struct producer *p = named("p");
    cr_assert_eq(last_of(p, "t"), 1u, "the log alone tells");
    let_go(p);
}

Test(numbers, g13_a_checkpoint_with_a_number_of_an_unknown_topic_is_refused)
{
    stopped_with_one_producer();
    forge_checkpoint(sizeof(struct checkpoint_producer) + 8 + offsetof(struct checkpoint_pair, topic), 77);
    life_refused(&life, -EBADMSG, "checkpoint: producer");
}

Test(numbers, g13_a_checkpoint_with_a_number_0_is_refused)
{
    stopped_with_one_producer();
    forge_checkpoint(sizeof(struct checkpoint_producer) + 8 + offsetof(struct checkpoint_pair, number),
                     UINT64_MAX);
    life_refused(&life, -EBADMSG, "checkpoint: producer");
}

Test(numbers, g16_a_next_topic_id_out_of_nowhere_is_refused)
{
    stopped_with_one_producer();
    forge_header_of_checkpoint(UINT32_MAX);
    life_refused(&life, -EBADMSG, "next topic id");
}

Test(numbers, g24_topics_of_one_anonymous_producer_are_limited)
{
    life_stop(&life);
    life.options.max_anonymous = 3;
    life_start(&life);
    struct producer *p = anonymous();
    commit_one(p, "a", 1);
    commit_one(p, "b", 1);
    commit_one(p, "c", 1);
    cr_assert_eq(send_one(p, "d", 1)->refused, -EDQUOT);
    commit_one(p, "a", 2);
    let_go(p);
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

/* ------------------------------------------------------------------------------------------- watermarks */

Test(numbers, watermarks_follow_what_is_written_and_what_is_flushed)
{
    static struct watermark marks[2];
    life_remove(&life);
    life_make(&life);
    life.options.segment_bytes = SEGMENT_SMALL; /* smaller ones are flushed at once */
    life.options.interval_ns = 1000 * SECOND;
    life.options.watermarks = marks;
    life.options.watermark_slots = array_count(marks);
    life_start(&life);
    life_quiet(&life);
    struct topic *t = life_topic(&life, "t");
    struct topic_view view;
    log_topic_view(t, &view);
    struct watermark *mark = &marks[view.watermark];
    cr_assert_eq(mark->written_next, 1u);
    cr_assert_eq(mark->durable_next, 1u);
    life_put(&life, "t", 5, 100);
    cr_assert_eq(mark->written_next, 6u);
    cr_assert_eq(mark->durable_next, 6u);
    SEND(&life, .name = "loose", .kind = WRITE_BATCH, .entries = 4, .bytes = 10,
         .topic_level = LEVEL_WRITTEN);
    life_settle(&life);
    struct topic *loose = life_topic(&life, "loose");
    log_topic_view(loose, &view);
    cr_assert_eq(marks[view.watermark].written_next, 5u);
    cr_assert_eq(marks[view.watermark].durable_next, 1u);
    life_put(&life, "t", 1, 100); /* its flush covers everything before it */
    cr_assert_eq(marks[view.watermark].durable_next, 5u);
    struct topic *third = life_topic(&life, "third");
    log_topic_view(third, &view);
    cr_assert_eq(view.watermark, NO_WATERMARK, "there are no more slots");
    log_topic_release(life.log, third);
    log_topic_release(life.log, loose);
    log_topic_release(life.log, t);
    life_crash(&life);
    memset(marks, 0, sizeof marks);
    life_start(&life);
    t = life_topic(&life, "t");
    log_topic_view(t, &view);
    cr_assert_eq(marks[view.watermark].durable_next, 7u, "as recovered");
    log_topic_release(life.log, t);
}

Test(numbers, a_slot_of_a_topic_that_was_never_written_is_given_to_the_next)
{
    static struct watermark marks[1];
    life_stop(&life);
    life.options.watermarks = marks;
    life.options.watermark_slots = array_count(marks);
    life_start(&life);
    for (unsigned i = 0; i < 3; i++) {
        struct topic *t = life_topic(&life, i == 0 ? "a" : i == 1 ? "b" : "c");
        struct topic_view view;
        log_topic_view(t, &view);
        cr_assert_eq(view.watermark, 0u);
        cr_assert_eq(marks[0].written_next, 1u);
        log_topic_release(life.log, t);
        cr_assert_eq(marks[0].written_next, 0u);
    }
}
