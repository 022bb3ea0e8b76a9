/* What ends a write before the log has it: refusals and who is told when, deadlines, cancel, numbers. */
#include "handles.h"

#include <sched.h>

/* ------------------------------------------------------------------------------------- told when to try */

static struct completion refused(int handle, uint64_t id)
{
    push(handle, id, DESCRIPTOR_NOTIFY);
    struct completion completion = expect(handle, id, -EBUSY);
    cr_assert_eq(completion.flags, COMPLETION_MORE);
    cr_assert_eq(completion.reason, REASON_TOPIC);
    cr_assert_gt(completion.retry_after_us, 0);
    return completion;
}

static void expect_told(int handle, uint64_t id)
{
    cr_assert_eq(expect(handle, id, 0).flags, COMPLETION_TRY_NOW);
}

/* What "soon" may be is set by a pause of at least a millisecond; the turns meanwhile are few. */
Test(refusal, the_longest_refused_is_told_when_a_try_may_succeed_and_only_it)
{
    start();
    occupy(0, 1);
    refused(2, 7);
    refused(1, 7);
    refused(2, 8);
    cr_assert_eq(values()->session_waiting_refusals, 3);
    let_go();
    expect_told(2, 7);
    cr_assert_eq(values()->session_told, 1);
    rig.log.hold_answers = true;
    push(2, 9, 0); /* it tries again: the topic is its own */
    settle();
    uint64_t told = values()->session_told;
    refused(3, 7);
    cr_assert_eq(values()->session_told, told, "not while the topic is busy");
    let_go();
    rig_turn(&rig, 2);
    cr_assert_eq(values()->session_told, told + 1, "one each time that the topic becomes free");
    expect(2, 9, 0);
    finish();
}

Test(refusal, one_that_does_not_try_is_passed_after_a_while)
{
    start();
    occupy(0, 1);
    refused(1, 1);
    refused(2, 1);
    refused(3, 1);
    let_go();
    expect_told(1, 1);
    expect_told(2, 1); /* client_answer turns for as long as it takes */
    expect_told(3, 1);
    cr_assert_eq(values()->session_told, 3);
    cr_assert_eq(deadline_next(rig.server), INT64_MAX, "nobody is left, nothing is due");
    finish();
}

Test(refusal, who_waits_in_the_queue_goes_first)
{
    start();
    occupy(0, 1);
    refused(1, 1);
    push(2, 1, DESCRIPTOR_QUEUE);
    settle();
    let_go();
    rig.log.hold_answers = true;
    settle();
    cr_assert_eq(rig.log.taken, 1, "the queued one was taken");
    expect_nothing(1, 20);
    let_go();
    expect_told(1, 1);
    expect(2, 1, 0);
    finish();
}

Test(refusal, with_both_flags_a_write_waits_and_is_not_refused)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE | DESCRIPTOR_NOTIFY);
    expect_nothing(1, 40);
    let_go();
    cr_assert_eq(expect(1, 1, 0).flags, 0);
    finish();
}

Test(refusal, a_refused_stream_gives_its_number_back_and_its_other_chunks_wait_for_nothing)
{
    start();
    occupy(0, 1);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_NOTIFY);
    push_chunk(1, 7, 1, DESCRIPTOR_NOTIFY);
    push_chunk(1, 7, 2, DESCRIPTOR_LAST | DESCRIPTOR_NOTIFY);
    cr_assert_eq(expect(1, 7000, -EBUSY).flags, COMPLETION_MORE);
    cr_assert_eq(expect(1, 7001, -EBUSY).flags, 0);
    cr_assert_eq(expect(1, 7002, -EBUSY).flags, 0);
    let_go();
    expect_told(1, 7000);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_LAST);
    expect(1, 7000, 0);
    finish();
}

Test(refusal, a_dead_client_is_not_told_and_the_next_one_is)
{
    start();
    occupy(0, 1);
    refused(1, 1);
    refused(2, 1);
    client_close(&handles[1]);
    settle();
    cr_assert_eq(values()->session_waiting_refusals, 1);
    let_go();
    expect_told(2, 1);
    client_connect(&rig, &handles[1]);
    finish();
}

Test(refusal, g21_one_without_room_for_a_completion_is_passed_over_and_told_once_it_has_reaped)
{
    start_with(NULL, 8, NULL);
    occupy(0, 1);
    for (uint64_t id = 1; id <= 7; id++)
        push(1, id, DESCRIPTOR_NOTIFY);
    settle();
    cr_assert_eq(handles[1].broker->cq_tail, 8, "its ring is full of refusals, unreaped");
    refused(2, 1);
    let_go();
    expect_told(2, 1);
    rig_turn(&rig, 200);
    cr_assert_not(client_ended(&handles[1]));
    cr_assert_eq(handles[1].broker->cq_tail, 8);
    for (uint64_t id = 1; id <= 7; id++)
        cr_assert_eq(expect(1, id, -EBUSY).flags, COMPLETION_MORE);
    for (uint64_t id = 1; id <= 7; id++)
        expect_told(1, id);
    finish();
}

/* With a group that takes long, the pause before the next one is told is the longest: a second. */
static void pause_long(void)
{
    rig.server->group_ns = INT64_C(1000000000);
}

Test(refusal, nobody_else_is_told_before_the_pause_is_over_or_the_topic_becomes_free_again)
{
    start();
    pause_long();
    occupy(0, 1);
    refused(1, 1);
    refused(2, 1);
    let_go();
    expect_told(1, 1);
    pause_long();
    rig.log.refuse = -EBUSY; /* so that the topic is looked at once more */
    rig.log.refuse_count = 1;
    struct descriptor d = batch(3, 1, DESCRIPTOR_QUEUE);
    d.op = OP_APPEND;
    client_push(&handles[3], &d);
    expect(3, 1, 0);
    rig_turn(&rig, 2);
    cr_assert_eq(values()->session_told, 1);
    push(3, 2, 0);
    expect(3, 2, 0); /* a batch: the topic was busy, and is free */
    expect_told(2, 1);
    finish();
}

Test(refusal, one_that_is_leaving_is_passed_over)
{
    start();
    occupy(0, 1);
    refused(1, 1);
    refused(2, 1);
    let_go();
    session_leave(TAILQ_NEXT(TAILQ_FIRST(&rig.server->sessions), all));
    pause_long();
    rig_turn(&rig, 1);
    struct completion completion;
    cr_assert(client_pop(&handles[2], &completion));
    cr_assert_eq(completion.flags, COMPLETION_TRY_NOW);
    client_close(&handles[1]);
    client_connect(&rig, &handles[1]);
    finish();
}

Test(refusal, of_a_topic_that_is_free_already_is_followed_by_the_word_at_once)
{
    start();
    rig.log.refuse = -EBUSY;
    rig.log.refuse_reason = REASON_TOPIC;
    rig.log.refuse_count = 1;
    refused(1, 1);
    expect_told(1, 1);
    finish();
}

Test(refusal, many_refused_streams_leave_room_for_another)
{
    start_with(NULL, 256, NULL);
    occupy(0, 1);
    for (uint32_t stream = 1; stream <= MAX_STREAMS_OPEN + 1; stream++) {
        push_chunk(1, stream, 0, DESCRIPTOR_FIRST | DESCRIPTOR_LAST | DESCRIPTOR_NOTIFY);
        expect(1, 1000 * stream, -EBUSY);
    }
    finish();
}

Test(refusal, the_estimate_grows_with_those_who_wait_and_with_the_time_of_a_group)
{
    start();
    rig.log.group_takes_ns = 8000000;
    for (uint64_t id = 1; id <= 60; id++) {
        push(0, id, 0);
        expect(0, id, 0);
    }
    occupy(0, 100);
    uint32_t alone = refused(1, 1).retry_after_us;
    cr_assert(alone > 7000 && alone < 9000, "about a group: %u us", alone);
    push(2, 1, DESCRIPTOR_QUEUE);
    push(3, 1, DESCRIPTOR_QUEUE);
    settle();
    uint32_t behind = refused(1, 2).retry_after_us;
    cr_assert(behind > 2 * alone && behind <= 3 * alone + 3, "behind two: %u us", behind);
    let_go();
    finish();
}

/* ------------------------------------------------------------------------------------- deadlines */

static void push_until(int handle, uint64_t id, uint16_t flags, int64_t deadline)
{
    struct descriptor d = batch(handle, id, flags);
    d.deadline_ns = deadline;
    client_push(&handles[handle], &d);
}

static int64_t soon(void)
{
    return io_now(rig.io) + 2000000;
}

Test(deadline, one_that_has_passed_is_not_admitted_and_a_later_one_is)
{
    start();
    push_until(0, 1, 0, 1);
    expect(0, 1, -ETIMEDOUT);
    push_until(0, 2, DESCRIPTOR_QUEUE, INT64_MIN);
    expect(0, 2, -ETIMEDOUT);
    push_until(0, 3, 0, INT64_MAX);
    expect(0, 3, 0);
    cr_assert_eq(rig.log.writes_seen, 1, "the log never saw the others");
    cr_assert_eq(values()->session_timed_out, 2);
    occupy(1, 1);
    push_until(0, 4, 0, 1);
    expect(0, 4, -ETIMEDOUT); /* more to the point than that its topic is busy */
    finish();
}

Test(deadline, in_the_queue_it_ends_the_wait_and_those_behind_keep_their_places)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    push_until(1, 2, DESCRIPTOR_QUEUE, soon());
    push(1, 3, DESCRIPTOR_QUEUE);
    push_until(2, 1, DESCRIPTOR_QUEUE, soon());
    expect(1, 2, -ETIMEDOUT);
    expect(2, 1, -ETIMEDOUT);
    cr_assert_eq(values()->session_queued_writes, 2);
    let_go();
    expect(1, 1, 0);
    expect(1, 3, 0);
    expect_content("a1 b1 b3 ");
    finish();
}

Test(deadline, of_a_write_that_was_taken_in_time_is_forgotten)
{
    start();
    occupy(0, 1);
    push_until(1, 1, DESCRIPTOR_QUEUE, INT64_MAX - 1);
    settle();
    cr_assert_eq(deadline_next(rig.server), INT64_MAX - 1);
    let_go();
    expect(1, 1, 0);
    cr_assert_eq(deadline_next(rig.server), INT64_MAX);
    finish();
}

Test(deadline, while_it_is_held_for_memory_it_ends_the_wait_and_its_sessions_drain_goes_on)
{
    start();
    rig.log.room = 1;
    rig.log.hold_answers = true;
    push(0, 1, 0);
    settle();
    topics[1] = client_topic(&rig, &handles[1], "u");
    push_until(1, 1, 0, soon());
    push(1, 2, 0);
    expect(1, 1, -ETIMEDOUT);
    settle();
    cr_assert_eq(values()->session_held_writes, 1, "the next one of its ring");
    rig.log.hold_answers = false;
    rig.log.room = 0;
    expect(1, 2, 0);
    finish();
}

Test(deadline, of_the_front_that_is_held_for_memory_lets_the_next_one_go_on)
{
    start();
    occupy(0, 1);
    push_until(1, 1, DESCRIPTOR_QUEUE, io_now(rig.io) + 50000000);
    push(2, 1, DESCRIPTOR_QUEUE);
    settle();
    rig.log.room = 1;
    let_go();
    rig.log.taken = 1;
    rig.log.hold_answers = true;
    settle();
    cr_assert_eq(values()->session_held_writes, 1);
    expect(1, 1, -ETIMEDOUT);
    rig.log.hold_answers = false;
    expect(2, 1, 0);
    expect_content("a1 c1 ");
    finish();
}

Test(deadline, of_a_stream_counts_until_its_first_chunk_is_taken_and_answers_all_of_it)
{
    start();
    occupy(0, 1);
    struct descriptor d = chunk_of(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    d.deadline_ns = soon();
    client_push(&handles[1], &d);
    push_chunk(1, 7, 1, DESCRIPTOR_LAST);
    expect(1, 7000, -ETIMEDOUT);
    expect(1, 7001, -ETIMEDOUT);
    let_go();
    expect(0, 1, 0);
    push_chunk(1, 8, 0, DESCRIPTOR_FIRST);
    expect(1, 8000, 0);
    d = chunk_of(1, 8, 1, DESCRIPTOR_LAST);
    d.deadline_ns = 1;
    client_push(&handles[1], &d);
    expect(1, 8001, 0); /* admitted long ago */
    finish();
}

Test(deadline, a_sleeping_broker_wakes_up_for_it)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    settle();
    rig_run(&rig);
    push_until(2, 1, DESCRIPTOR_QUEUE, io_now(rig.io) + 20000000);
    struct completion completion;
    while (!client_pop(&handles[2], &completion)) /* ends, or the suite's time does */
        sched_yield();
    rig_halt(&rig);
    cr_assert_eq(completion.result, -ETIMEDOUT);
    cr_assert_gt(values()->loop_sleeps, 0);
    push(3, 1, DESCRIPTOR_QUEUE); /* or the next turn would sleep for ever */
    let_go();
    finish();
}

static int order_seen;
struct numbered {
    struct deadline deadline;
    int order;
};

static void in_order(struct server *server, struct deadline *deadline)
{
    (void)server;
    const struct numbered *numbered = container_of(deadline, struct numbered, deadline);
    cr_assert_geq(numbered->order, order_seen);
    order_seen = numbered->order;
}

Test(deadline, many_come_due_in_their_order_whatever_was_taken_out_between_them)
{
    static struct numbered all[1000];
    start();
    uint32_t random = 12345;
    for (int i = 0; i < 1000; i++) {
        random = random * 1664525 + 1013904223;
        all[i].order = (int)(random >> 16) % 500;
        cr_assert_eq(deadline_set(rig.server, &all[i].deadline, 1000 + all[i].order, in_order), 0);
    }
    for (int i = 0; i < 1000; i += 3)
        deadline_clear(rig.server, &all[i].deadline);
    deadline_clear(rig.server, &all[0].deadline); /* it is not there */
    int due = 0;
    for (int64_t now = 1000; now < 1500; now += 50) {
        order_seen = 0;
        deadline_turn(rig.server, now);
        cr_assert_gt(deadline_next(rig.server), now);
    }
    for (int i = 0; i < 1000; i++)
        due += all[i].deadline.place != 0 && i % 3 == 0;
    cr_assert_eq(due, 0);
    order_seen = 0;
    deadline_turn(rig.server, INT64_MAX - 1);
    finish();
}

/* ------------------------------------------------------------------------------------- cancel */

static int cancel(int handle, uint64_t user_data, uint64_t expected_first, int expected_result)
{
    struct descriptor d = {.op = OP_CANCEL, .number = user_data, .user_data = 555};
    client_push(&handles[handle], &d);
    if (expected_result != 0)
        expect(handle, expected_first, expected_result);
    struct completion completion = client_answer(&rig, &handles[handle]);
    cr_assert_eq(completion.user_data, 555);
    return completion.result;
}

Test(cancel, ends_what_waits_in_the_queue_and_nothing_that_the_log_has)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    push(1, 2, DESCRIPTOR_QUEUE);
    settle();
    cr_assert_eq(cancel(1, 1, 1, -ECANCELED), 0);
    cr_assert_eq(cancel(1, 1, 0, 0), -ENOENT, "only once");
    cr_assert_eq(cancel(0, 1, 0, 0), -ENOENT, "the log has it");
    cr_assert_eq(cancel(2, 2, 0, 0), -ENOENT, "it is another's");
    cr_assert_eq(values()->session_cancelled, 1);
    let_go();
    expect(1, 2, 0);
    expect(0, 1, 0);
    expect_content("a1 b2 ");
    finish();
}

Test(cancel, ends_the_front_that_is_held_for_memory)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    push(2, 1, DESCRIPTOR_QUEUE);
    settle();
    rig.log.room = 1;
    let_go();
    rig.log.taken = 1;
    rig.log.hold_answers = true;
    settle();
    cr_assert_eq(values()->session_held_writes, 1);
    cr_assert_eq(cancel(1, 1, 1, -ECANCELED), 0);
    rig.log.hold_answers = false;
    expect(2, 1, 0);
    finish();
}

Test(cancel, of_any_chunk_of_a_waiting_stream_ends_the_stream)
{
    start();
    occupy(0, 1);
    for (uint32_t named = 0; named <= 2; named += 2) {
        for (uint32_t n = 0; n < 3; n++)
            push_chunk(1, 7, n, n == 0 ? DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE : n == 2 ? DESCRIPTOR_LAST : 0);
        struct descriptor d = {.op = OP_CANCEL, .number = 7000 + named, .user_data = 555};
        client_push(&handles[1], &d);
        for (uint64_t id = 7000; id <= 7002; id++)
            expect(1, id, -ECANCELED);
        expect(1, 555, 0);
    }
    let_go();
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST);
    expect(1, 7000, 0);
    cr_assert_eq(cancel(1, 7000, 0, 0), -ENOENT, "a stream in progress is aborted, not cancelled");
    finish();
}

Test(cancel, ends_a_refusal_that_waits_to_be_told_and_a_follow_as_ever)
{
    start();
    occupy(0, 1);
    refused(1, 5);
    struct descriptor follow = {
        .op = OP_READ, .topic = topics[1], .flags = DESCRIPTOR_FOLLOW, .number = 1000000, .user_data = 5};
    client_push(&handles[1], &follow);
    settle();
    cr_assert_eq(cancel(1, 5, 5, -ECANCELED), 0);
    cr_assert_eq(values()->session_waiting_refusals, 1, "the follow went first");
    struct descriptor d = {.op = OP_CANCEL, .number = 5, .user_data = 555};
    client_push(&handles[1], &d);
    cr_assert_eq(expect(1, 5, -ECANCELED).flags, 0);
    expect(1, 555, 0);
    cr_assert_eq(cancel(1, 5, 0, 0), -ENOENT);
    let_go();
    expect_nothing(1, 40);
    finish();
}

/* ------------------------------------------------------------------------------------- numbers */

static struct descriptor numbered(int handle, uint64_t number, uint16_t flags)
{
    struct descriptor d = batch(handle, number, flags);
    d.number = number;
    return d;
}

static struct completion call(int handle, struct descriptor d)
{
    return client_call(&rig, &handles[handle], &d);
}

Test(number, belongs_to_a_producer_and_to_what_commits)
{
    start();
    cr_assert_eq(call(0, numbered(0, 1, 0)).result, -EINVAL, "no producer, no number");
    struct descriptor d = chunk_of(0, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_LAST);
    d.number = 1;
    cr_assert_eq(call(0, d).result, -EINVAL);
    struct descriptor query = {.op = OP_QUERY, .topic = topics[0], .number = 1, .user_data = 3};
    cr_assert_eq(call(0, query).result, -EINVAL);
    finish();
    start_with(NULL, 16, "p");
    cr_assert_eq(call(0, batch(0, 1, 0)).result, -EINVAL, "a producer's batch has a number");
    d = chunk_of(0, 7, 0, DESCRIPTOR_FIRST);
    d.number = 1;
    cr_assert_eq(call(0, d).result, -EINVAL, "its last chunk has it");
    d = chunk_of(0, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_LAST);
    cr_assert_eq(call(0, d).result, -EINVAL);
    d.number = 1;
    cr_assert_eq(call(0, d).result, 0);
    cr_assert_eq(call(0, numbered(0, 2, 0)).number, 2);
    d = numbered(0, 3, 0);
    d.op = OP_APPEND;
    cr_assert_eq(call(0, d).result, 0);
    struct descriptor empty = {.op = OP_BATCH, .topic = topics[0], .user_data = 1};
    cr_assert_eq(call(0, empty).result, 0, "an empty batch commits nothing and takes none");
    empty.number = 4;
    cr_assert_eq(call(0, empty).result, 0);
    cr_assert_eq(call(0, numbered(0, 4, 0)).result, 0);
    finish();
}

Test(number, g5_a_duplicate_is_answered_and_written_once)
{
    start_with(NULL, 16, "p");
    cr_assert_eq(call(0, numbered(0, 1, 0)).flags, 0);
    struct completion completion = call(0, numbered(0, 1, DESCRIPTOR_QUEUE));
    cr_assert_eq(completion.result, 0);
    cr_assert_eq(completion.flags, COMPLETION_DUPLICATE);
    cr_assert_eq(completion.number, 1);
    struct descriptor d = chunk_of(0, 7, 0, DESCRIPTOR_FIRST);
    cr_assert_eq(call(0, d).result, 0);
    d = chunk_of(0, 7, 1, DESCRIPTOR_LAST);
    d.number = 1;
    rig.log.refuse = 1; /* as the real log has it: the stream is rolled back there */
    rig.log.refuse_count = 1;
    completion = call(0, d);
    cr_assert_eq(completion.result, 0);
    cr_assert_eq(completion.flags, COMPLETION_DUPLICATE);
    struct descriptor abort_it = {.op = OP_ABORT, .stream = 7, .user_data = 5};
    cr_assert_eq(call(0, abort_it).result, -ENOENT, "the stream is closed");
    cr_assert_eq(values()->session_duplicates, 2);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 1);
    finish();
}

Test(number, out_of_order_is_told_with_its_reason_at_admission_and_when_one_before_it_fails)
{
    start_with(NULL, 16, "p");
    rig.log.group_takes_ns = 5000000;
    cr_assert_eq(call(0, numbered(0, 1, 0)).result, 0);
    struct completion completion = call(0, numbered(0, 3, 0));
    cr_assert_eq(completion.result, -EAGAIN);
    cr_assert_eq(completion.reason, REASON_ORDER);
    cr_assert_gt(completion.retry_after_us, 100);
    rig.log.fail = -EAGAIN;
    rig.log.fail_reason = REASON_ORDER;
    rig.log.fail_count = 1;
    completion = call(0, numbered(0, 2, 0));
    cr_assert_eq(completion.result, -EAGAIN);
    cr_assert_eq(completion.reason, REASON_ORDER);
    cr_assert_gt(completion.retry_after_us, 100);
    cr_assert_eq(call(0, numbered(0, 2, 0)).result, 0);
    finish();
}

Test(number, g3_what_stands_behind_a_cancelled_one_is_out_of_order_when_its_turn_comes)
{
    start_with(NULL, 16, "p");
    rig.log.hold_answers = true;
    struct descriptor d = numbered(0, 1, 0);
    client_push(&handles[0], &d);
    settle();
    for (uint64_t number = 1; number <= 3; number++) {
        d = numbered(1, number, DESCRIPTOR_QUEUE);
        client_push(&handles[1], &d);
    }
    settle();
    cr_assert_eq(cancel(1, 2, 2, -ECANCELED), 0);
    let_go();
    cr_assert_eq(expect(1, 3, -EAGAIN).reason, REASON_ORDER);
    expect(1, 1, 0);
    expect_content("a1 b1 ");
    finish();
}

Test(number, is_asked_for_by_query_wherever_its_batch_is)
{
    start_with(NULL, 16, "p");
    struct descriptor query = {.op = OP_QUERY, .topic = topics[1], .number = 1, .user_data = 3};
    cr_assert_eq(call(1, query).result, 0, "never seen");
    rig.log.hold_answers = true;
    struct descriptor d = numbered(0, 1, 0);
    client_push(&handles[0], &d);
    settle();
    query.topic = topics[0];
    cr_assert_eq(call(0, query).result, -EINPROGRESS, "in the log");
    d = numbered(1, 1, DESCRIPTOR_QUEUE);
    client_push(&handles[1], &d);
    settle();
    query.topic = topics[1];
    cr_assert_eq(call(1, query).result, -EINPROGRESS, "in the queue");
    query.number = 2;
    cr_assert_eq(call(1, query).result, 0);
    d = chunk_of(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    client_push(&handles[1], &d);
    d = chunk_of(1, 7, 1, DESCRIPTOR_LAST);
    d.number = 2;
    client_push(&handles[1], &d);
    settle();
    cr_assert_eq(call(1, query).result, -EINPROGRESS, "with the last chunk of a stream that waits");
    let_go();
    expect(1, 7000, 0);
    expect(1, 1, 0);
    expect(1, 7001, 0);
    struct completion completion = call(1, query);
    cr_assert_eq(completion.result, 1);
    cr_assert_eq(completion.number, 2);
    finish();
}

Test(number, the_last_committed_one_and_the_watermark_come_with_the_topic)
{
    start_with(NULL, 16, "p");
    for (uint64_t number = 1; number <= 3; number++)
        cr_assert_eq(call(0, numbered(0, number, 0)).result, 0);
    handles[0].arena[0] = 't';
    struct descriptor open = {.op = OP_OPEN, .payload_bytes = 1, .user_data = 3};
    struct completion completion = call(0, open);
    cr_assert_eq(completion.number, 3);
    struct topic_view view;
    log_topic_view(fake_topic(&rig.log, "t"), &view);
    cr_assert_eq(completion.window_at, view.watermark);
    handles[1].arena[0] = 't';
    cr_assert_eq(call(1, open).number, 0, "it is another producer's");
    finish();
}

/* ------------------------------------------------------------------------------------- descriptors */

Test(flags, that_belong_to_writes_are_invalid_elsewhere)
{
    start();
    static const uint8_t ops[] = {OP_OPEN, OP_CLOSE, OP_ABORT, OP_READ, OP_TOPICS, OP_CANCEL, OP_QUERY};
    for (size_t i = 0; i < array_count(ops); i++)
        for (int flag = 0; flag < 2; flag++) {
            struct descriptor d = {.op = ops[i],
                                   .topic = topics[0],
                                   .payload_bytes = 1,
                                   .flags = flag != 0 ? DESCRIPTOR_QUEUE : DESCRIPTOR_NOTIFY,
                                   .user_data = i};
            cr_assert_eq(call(0, d).result, -EINVAL, "op %u", ops[i]);
        }
    struct descriptor d = {.op = OP_QUERY + 1, .user_data = 4};
    cr_assert_eq(call(0, d).result, -EINVAL);
    finish();
}
