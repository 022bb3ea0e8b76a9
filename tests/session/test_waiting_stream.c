/* Streams whose first chunk waits for its topic, and streams that others wait for. */
#include "handles.h"

Test(waiting_stream, a_stream_waits_with_its_first_chunk_and_the_others_behind_it)
{
    start();
    occupy(0, 1);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    push_chunk(1, 7, 1, 0);
    settle();
    push_chunk(1, 7, 2, DESCRIPTOR_LAST);
    push(1, 1, DESCRIPTOR_QUEUE);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_LAST | DESCRIPTOR_QUEUE); /* the number again */
    push(2, 1, DESCRIPTOR_QUEUE);
    expect_nothing(1, 20);
    cr_assert_eq(values()->session_queued_writes, 6);
    let_go();
    cr_assert_eq(expect(1, 7000, 0).flags, COMPLETION_COPIED);
    cr_assert_eq(expect(1, 7001, 0).flags, COMPLETION_COPIED);
    struct completion whole = expect(1, 7002, 0);
    cr_assert_eq(whole.flags, 0);
    cr_assert_eq(whole.entries, 3);
    expect(1, 1, 0);
    expect(1, 7000, 0);
    expect(2, 1, 0);
    expect_content("a1 b7000 b7001 b7002 b1 b7000 c1 ");
    cr_assert_eq(rig.log.aborts, 0);
    finish();
}

Test(waiting_stream, the_chunks_of_a_stream_in_progress_never_wait_for_the_topic)
{
    start();
    push_chunk(0, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    expect(0, 7000, 0);
    push(1, 1, DESCRIPTOR_QUEUE);
    settle();
    push(0, 1, DESCRIPTOR_QUEUE); /* behind b1, in front of the chunks in the ring */
    settle();
    push_chunk(0, 7, 1, 0);
    expect(0, 7001, 0);
    push_chunk(0, 7, 2, DESCRIPTOR_LAST);
    expect(0, 7002, 0);
    expect(1, 1, 0);
    expect(0, 1, 0);
    expect_content("a7000 a7001 a7002 b1 a1 ");
    finish();
}

Test(waiting_stream, g21_queued_batches_in_front_of_a_streams_chunks_let_it_end)
{
    start_with(NULL, 16, NULL);
    for (int handle = 1; handle <= 2; handle++)
        handles[handle].arena[0] = 'u';
    uint32_t mine = client_topic(&rig, &handles[1], "u");
    push_chunk(0, 3, 0, DESCRIPTOR_FIRST); /* a has "t" */
    expect(0, 3000, 0);
    struct descriptor chunk = chunk_of(1, 7, 0, DESCRIPTOR_FIRST); /* b streams to "u" */
    chunk.topic = mine;
    cr_assert_eq(client_call(&rig, &handles[1], &chunk).result, 0);
    for (uint64_t id = 1; id <= 14; id++)
        push(1, id, DESCRIPTOR_QUEUE); /* all its credit but one waits for "t" */
    settle();
    cr_assert_eq(values()->session_queued_writes, 14);
    for (uint32_t n = 1; n <= 50; n++) {
        chunk = chunk_of(1, 7, n, n == 50 ? DESCRIPTOR_LAST : 0);
        chunk.topic = mine;
        cr_assert_eq(client_call(&rig, &handles[1], &chunk).result, 0);
    }
    cr_assert_eq(fake_topic(&rig.log, "u")->count, 51);
    push_chunk(0, 3, 1, DESCRIPTOR_LAST);
    for (uint64_t id = 1; id <= 14; id++)
        expect(1, id, 0);
    finish();
}

Test(waiting_stream, g21_two_streams_that_each_have_what_the_other_waits_for_both_end)
{
    start();
    uint32_t u[2] = {client_topic(&rig, &handles[0], "u"), client_topic(&rig, &handles[1], "u")};
    push_chunk(0, 1, 0, DESCRIPTOR_FIRST);
    expect(0, 1000, 0);
    struct descriptor d = chunk_of(1, 1, 0, DESCRIPTOR_FIRST);
    d.topic = u[1];
    cr_assert_eq(client_call(&rig, &handles[1], &d).result, 0);
    d = chunk_of(0, 2, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    d.topic = u[0];
    client_push(&handles[0], &d);
    push_chunk(1, 2, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    expect_nothing(0, 40);
    expect_nothing(1, 40);
    push_chunk(0, 1, 1, DESCRIPTOR_LAST);
    expect(0, 1001, 0);
    expect(1, 2000, 0);
    d = chunk_of(1, 1, 1, DESCRIPTOR_LAST);
    d.topic = u[1];
    client_push(&handles[1], &d);
    expect(1, 1001, 0);
    expect(0, 2000, 0);
    finish();
}

Test(waiting_stream, a_stream_that_finds_no_memory_once_it_is_taken_goes_on_chunk_by_chunk)
{
    start();
    occupy(0, 1);
    for (uint32_t n = 0; n < 10; n++)
        push_chunk(
            1, 7, n,
            (uint16_t)((n == 0 ? DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE : 0) | (n == 9 ? DESCRIPTOR_LAST : 0)));
    settle();
    rig.log.room = 1;
    rig.log.hold_answers = false;
    for (uint32_t n = 0; n < 10; n++)
        expect(1, 7000 + n, 0);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 11);
    cr_assert_geq(values()->session_holds, 8);
    finish();
}

Test(waiting_stream, a_stream_that_waits_for_its_topic_is_not_idle_and_a_stalled_one_in_front_is)
{
    struct server_options options = {.idle_stream_ns = 1000000};
    start_with(&options, 64, NULL);
    push_chunk(0, 1, 0, DESCRIPTOR_FIRST);
    expect(0, 1000, 0);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    push_chunk(1, 7, 1, DESCRIPTOR_LAST);
    expect(1, 7000, 0);
    expect(1, 7001, 0);
    cr_assert_eq(rig.log.aborts, 1, "the stalled one was rolled back, the waiting one was not");
    expect_content("b7000 b7001 ");
    finish();
}

Test(waiting_stream, a_waiting_stream_that_is_aborted_or_breaks_its_rules_is_answered_in_full)
{
    start();
    occupy(0, 1);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    push_chunk(1, 7, 1, 0);
    struct descriptor abort_it = {.op = OP_ABORT, .stream = 7, .user_data = 5};
    client_push(&handles[1], &abort_it);
    expect(1, 7000, -ECANCELED);
    expect(1, 7001, -ECANCELED);
    expect(1, 5, 0);
    push_chunk(1, 8, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    push_chunk(1, 8, 2, 0); /* out of turn */
    expect(1, 8000, -EINVAL);
    expect(1, 8002, -EINVAL);
    push_chunk(1, 8, 1, DESCRIPTOR_LAST);
    expect(1, 8001, -EINVAL);
    cr_assert_eq(rig.log.aborts, 0);
    cr_assert_eq(values()->session_queued_writes, 0);
    let_go();
    finish();
}

Test(waiting_stream, a_stream_refused_when_its_turn_comes_answers_all_its_chunks_the_same)
{
    start();
    occupy(0, 1);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    push_chunk(1, 7, 1, 0);
    push_chunk(1, 7, 2, DESCRIPTOR_LAST);
    settle();
    rig.log.refuse = -ENOSPC;
    rig.log.refuse_count = 1;
    let_go();
    for (uint64_t id = 7000; id <= 7002; id++)
        expect(1, id, -ENOSPC);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_LAST);
    expect(1, 7000, 0);
    finish();
}
