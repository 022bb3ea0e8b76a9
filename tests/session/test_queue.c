/* Writes that wait for their topic: order, fairness, ends, and that nobody waits for ever. */
#include "folder.h"
#include "handles.h"

#include <fcntl.h>
#include <unistd.h>

#define RUN 32 /* as queue.c has it */

/* The next ones find no memory. */
static int no_memory;
/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__real_realloc(void *at, size_t size);
void *__wrap_realloc(void *at, size_t size);
/* NOLINTEND(bugprone-reserved-identifier) */

void *__wrap_calloc(size_t count, size_t size)
{
    return no_memory > 0 && no_memory-- > 0 ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *at, size_t size)
{
    return no_memory > 0 && no_memory-- > 0 ? NULL : __real_realloc(at, size);
}

/* ------------------------------------------------------------------------------------- order and fairness */

Test(queue, a_write_with_the_flag_waits_for_its_topic_instead_of_being_refused)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    expect_nothing(1, 20);
    cr_assert_eq(values()->session_queued_writes, 1);
    cr_assert_eq(handles[1].broker->sq_head, handles[1].sq.mirror.p_tail, "it has left the ring");
    push(2, 1, 0);
    expect(2, 1, -EBUSY);
    let_go();
    expect(0, 1, 0);
    expect(1, 1, 0);
    expect_content("a1 b1 ");
    cr_assert_eq(values()->session_busy, 1);
    cr_assert_eq(values()->session_queued, 1);
    finish();
}

Test(queue, one_handles_writes_are_taken_together_and_in_their_order_and_handles_in_turn)
{
    start();
    occupy(0, 1);
    for (uint64_t id = 1; id <= 3; id++)
        for (int handle = 1; handle <= 3; handle++)
            push(handle, id, DESCRIPTOR_QUEUE);
    settle();
    let_go();
    rig.log.hold_answers = true;
    settle();
    cr_assert_eq(rig.log.taken, 3, "one run, one group");
    rig.log.hold_answers = false;
    settle();
    expect_content("a1 b1 b2 b3 c1 c2 c3 d1 d2 d3 ");
    for (int handle = 1; handle <= 3; handle++)
        for (uint64_t id = 1; id <= 3; id++)
            expect(handle, id, 0);
    finish();
}

Test(queue, a_handle_with_many_waiting_has_a_bounded_run_and_then_goes_to_the_end)
{
    start_with(NULL, 256, NULL);
    occupy(0, 1);
    for (uint64_t id = 1; id <= 2 * RUN + 3; id++)
        push(1, id, DESCRIPTOR_QUEUE);
    settle();
    push(2, 1, DESCRIPTOR_QUEUE);
    push(3, 1, DESCRIPTOR_QUEUE);
    settle();
    push(2, 2, DESCRIPTOR_QUEUE);
    settle();
    let_go();
    settle();
    const struct topic *topic = fake_topic(&rig.log, "t");
    cr_assert_eq(topic->count, 1 + 2 * RUN + 3 + 3);
    static const char wanted[] = {'a', 'b', 'c', 'c', 'd', 'b', 'b'};
    static const size_t runs[] = {1, RUN, 1, 1, 1, RUN, 3};
    for (size_t i = 0, at = 0; i < array_count(runs); i++)
        for (size_t n = 0; n < runs[i]; n++, at++)
            cr_assert_eq(topic->entries[at].bytes[0], wanted[i], "entry %zu", at);
    for (uint64_t id = 1; id <= 2 * RUN + 3; id++)
        expect(1, id, 0);
    finish();
}

Test(queue, large_batches_end_a_run_by_their_bytes)
{
    start_with(NULL, 64, NULL);
    occupy(0, 1);
    for (uint64_t id = 1; id <= 6; id++) { /* the same 960 KiB of the arena, one entry each */
        struct descriptor d = {.op = OP_BATCH,
                               .topic = topics[1],
                               .flags = DESCRIPTOR_QUEUE,
                               .payload_bytes = 960u << 10,
                               .entries = 1,
                               .user_data = id};
        struct entry_record record = {.length = 960u << 10};
        memcpy(handles[1].arena + d.payload_bytes, &record, sizeof record);
        client_push(&handles[1], &d);
    }
    settle();
    push(2, 1, DESCRIPTOR_QUEUE);
    settle();
    let_go();
    settle();
    const struct topic *topic = fake_topic(&rig.log, "t");
    cr_assert_eq(topic->count, 8);
    cr_assert_eq(topic->entries[6].bytes[0], 'c', "4 MiB before it, not 6");
    finish();
}

Test(queue, the_owner_lets_a_waiting_handle_go_first)
{
    start();
    occupy(0, 1);
    push(0, 2, DESCRIPTOR_QUEUE);
    settle();
    cr_assert_eq(rig.log.taken, 2, "nobody waits: its own go on together");
    push(1, 1, DESCRIPTOR_QUEUE);
    settle();
    push(0, 3, DESCRIPTOR_QUEUE);
    push(0, 4, 0);
    settle();
    cr_assert_eq(rig.log.taken, 2);
    struct completion completion = expect(0, 4, -EBUSY);
    cr_assert_eq(completion.reason, REASON_TOPIC);
    let_go();
    settle();
    expect_content("a1 a2 b1 a3 ");
    finish();
}

Test(queue, nobody_starves_beside_handles_that_never_pause)
{
    start();
    uint64_t sent[HANDLES] = {0};
    uint64_t got[HANDLES] = {0};
    for (int turn = 0; turn < 3000; turn++) {
        for (int handle = 0; handle < HANDLES; handle++) {
            struct completion completion;
            while (client_pop(&handles[handle], &completion)) {
                cr_assert_eq(completion.result, 0);
                cr_assert_eq(completion.user_data, ++got[handle]);
            }
            while (sent[handle] - got[handle] < (handle == 0 ? 40 : 1))
                push(handle, ++sent[handle], DESCRIPTOR_QUEUE);
        }
        rig_turn(&rig, 1);
        for (int handle = 1; handle < HANDLES; handle++)
            cr_assert_leq(got[1], got[handle] + 2, "in turn");
    }
    cr_assert_gt(got[1], 300);
    finish();
}

Test(queue, g4_four_handles_have_no_refusals_and_at_most_one_signal_per_completion)
{
    start();
    uint64_t sent[HANDLES] = {0};
    uint64_t got[HANDLES] = {0};
    uint64_t all = 0;
    while (all < 4 * 500) {
        all = 0;
        for (int handle = 0; handle < HANDLES; handle++) {
            struct client *client = &handles[handle];
            struct completion completion;
            while (client_pop(client, &completion)) {
                cr_assert_eq(completion.result, 0);
                cr_assert_eq(completion.flags, 0);
                cr_assert_eq(completion.user_data, ++got[handle], "first come, first served");
            }
            word_store_release(&client->words->wake_at, client->cq.mirror.c_head); /* and sleeps */
            while (sent[handle] < 500 && sent[handle] - got[handle] < 4)
                push(handle, ++sent[handle], DESCRIPTOR_QUEUE);
            all += got[handle];
        }
        rig_turn(&rig, 1);
    }
    cr_assert_eq(values()->session_busy, 0);
    cr_assert_gt(values()->session_queued, 0);
    uint64_t signals = 0;
    for (int handle = 0; handle < HANDLES; handle++) {
        uint64_t count = 0;
        if (read(handles[handle].signal, &count, sizeof count) == sizeof count)
            signals += count;
    }
    cr_assert_gt(signals, 0);
    cr_assert_leq(signals, values()->session_completions);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 4 * 500);
    finish();
}

Test(queue, appends_of_several_handles_are_taken_together)
{
    start();
    occupy(0, 1);
    for (int handle = 1; handle <= 3; handle++) {
        struct descriptor d = batch(handle, 1, DESCRIPTOR_QUEUE);
        d.op = OP_APPEND;
        client_push(&handles[handle], &d);
    }
    settle();
    push(1, 2, DESCRIPTOR_QUEUE);
    settle();
    let_go();
    rig.log.hold_answers = true;
    settle();
    cr_assert_eq(rig.log.taken, 2,
                 "the first line's run is an append and a batch: then the topic is its own");
    rig.log.hold_answers = false;
    settle();
    expect_content("a1 b1 b2 c1 d1 ");
    occupy(0, 2);
    for (int handle = 1; handle <= 3; handle++) {
        struct descriptor d = batch(handle, 3, DESCRIPTOR_QUEUE);
        d.op = OP_APPEND;
        client_push(&handles[handle], &d);
    }
    settle();
    let_go();
    rig.log.hold_answers = true;
    settle();
    cr_assert_eq(rig.log.taken, 3, "appends alone: all at once");
    finish();
}

Test(queue, many_numbers_for_one_topic_give_a_handle_no_more_turns)
{
    start();
    occupy(0, 1);
    uint32_t more[8];
    for (int i = 0; i < 8; i++)
        more[i] = client_topic(&rig, &handles[1], "t");
    for (uint64_t id = 1; id <= 8; id++) {
        struct descriptor d = batch(1, id, DESCRIPTOR_QUEUE);
        d.topic = more[id - 1];
        client_push(&handles[1], &d);
        if (id == 1)
            settle();
    }
    push(2, 1, DESCRIPTOR_QUEUE);
    settle();
    cr_assert_eq(rig.server->lines.count, 2);
    let_go();
    settle();
    expect_content("a1 b1 b2 b3 b4 b5 b6 b7 b8 c1 ");
    finish();
}

Test(queue, a_thousand_waiting_batches_of_one_client_do_not_slow_another_topic)
{
    rig_start(&rig, NULL, 0);
    struct client owner, many, other;
    struct hello hello = hello_good();
    client_connect(&rig, &owner);
    client_connect(&rig, &other);
    hello.queue_entries = 2048;
    cr_assert_eq(client_handshake(&rig, &many, &hello, sizeof hello), 0);
    struct descriptor chunk = client_text(&owner, client_topic(&rig, &owner, "t"), 0, "half");
    chunk.op = OP_CHUNK;
    chunk.flags = DESCRIPTOR_FIRST;
    cr_assert_eq(client_call(&rig, &owner, &chunk).result, 0);
    struct descriptor d = client_text(&many, client_topic(&rig, &many, "t"), 64, "waits");
    d.flags = DESCRIPTOR_QUEUE;
    for (int i = 0; i < 1000; i++)
        client_push(&many, &d);
    while (values()->session_queued_writes < 1000)
        rig_turn(&rig, 1);
    int seen = rig.log.writes_seen;
    struct descriptor mine = client_text(&other, client_topic(&rig, &other, "other"), 0, "at once");
    for (int i = 0; i < 100; i++) {
        struct completion completion;
        client_push(&other, &mine);
        rig_turn(&rig, 1);
        cr_assert(client_pop(&other, &completion), "within one turn");
        cr_assert_eq(completion.result, 0);
    }
    cr_assert_eq(rig.log.writes_seen - seen, 100, "nothing else was tried");
    client_close(&owner); /* its stream is rolled back */
    while (fake_topic(&rig.log, "t")->count < 1000)
        rig_turn(&rig, 1);
    client_close(&many);
    client_close(&other);
    settle();
    rig_stop(&rig);
}

Test(queue, more_lines_than_buckets_are_all_found_again)
{
    rig_start(&rig, NULL, 0);
    struct client owner, many;
    struct hello hello = hello_good();
    hello.queue_entries = 2048;
    cr_assert_eq(client_handshake(&rig, &owner, &hello, sizeof hello), 0);
    cr_assert_eq(client_handshake(&rig, &many, &hello, sizeof hello), 0);
    static uint32_t numbers[2][900];
    for (int i = 0; i < 900; i++) {
        char name[16];
        snprintf(name, sizeof name, "topic %d", i);
        numbers[0][i] = client_topic(&rig, &owner, name);
        numbers[1][i] = client_topic(&rig, &many, name);
    }
    rig.log.hold_answers = true;
    for (int i = 0; i < 900; i++) {
        struct descriptor d = client_text(&owner, numbers[0][i], 0, "x");
        client_push(&owner, &d);
    }
    while (rig.log.taken < 900)
        rig_turn(&rig, 1);
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 900; i++) {
            no_memory = round == 0 && rig.server->lines.room == 2 * LINE_BUCKETS && i % 2 == 0;
            struct descriptor d = client_text(&many, numbers[1][i], 64, "y");
            d.flags = DESCRIPTOR_QUEUE;
            d.user_data = (uint64_t)i;
            client_push(&many, &d);
            rig_turn(&rig, 1);
        }
    no_memory = 0;
    uint64_t refused = 0;
    struct completion completion;
    while (client_pop(&many, &completion))
        refused += completion.result == -EAGAIN && completion.reason == REASON_MEMORY;
    cr_assert_gt(refused, 0, "no memory for the struct of a topic");
    cr_assert_geq(rig.server->lines.room, 1024);
    cr_assert_eq(rig.server->lines.count, 900);
    cr_assert_eq(values()->session_queued_writes, 1800 - refused);
    rig.log.hold_answers = false;
    while (values()->session_queued_writes > 0)
        rig_turn(&rig, 1);
    client_close(&owner);
    client_close(&many);
    settle();
    rig_stop(&rig);
}

Test(queue, a_log_that_says_busy_of_a_free_topic_is_asked_again)
{
    start();
    rig.log.refuse = -EBUSY;
    rig.log.refuse_reason = REASON_TOPIC;
    rig.log.refuse_count = 5;
    push(0, 1, DESCRIPTOR_QUEUE);
    expect(0, 1, 0);
    cr_assert_eq(rig.log.writes_seen, 6);
    finish();
}

/* ------------------------------------------------------------------------------------- memory */

Test(queue, g21_a_front_that_finds_no_memory_stops_its_topic_and_no_session)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    push(2, 1, DESCRIPTOR_QUEUE);
    settle();
    rig.log.room = 1;
    rig.log.hold_answers = false;
    rig_turn(&rig, 1); /* a1 is answered */
    rig.log.taken = 1; /* and something else has filled the group */
    rig.log.hold_answers = true;
    settle();
    cr_assert_eq(values()->session_held_writes, 1);
    cr_assert_eq(values()->session_queued_writes, 2);
    struct descriptor open = {.op = OP_OPEN, .payload_bytes = 1, .user_data = 77};
    handles[1].arena[0] = 't';
    cr_assert_eq(client_call(&rig, &handles[1], &open).result, 0, "its drain goes on");
    rig.log.hold_answers = false;
    settle();
    expect_content("a1 b1 c1 ");
    finish();
}

/* The group is full, by a write of handle 3 to "u". */
static void fill_memory(void)
{
    topics[3] = client_topic(&rig, &handles[3], "u");
    rig.log.room = 1;
    rig.log.hold_answers = true;
    push(3, 1, 0);
    settle();
    cr_assert_eq(rig.log.taken, 1);
}

Test(queue, a_front_goes_behind_those_who_have_waited_for_memory_longer)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    settle();
    rig.log.room = 1;
    topics[2] = client_topic(&rig, &handles[2], "u");
    topics[3] = client_topic(&rig, &handles[3], "v");
    push(2, 1, 0);
    settle();
    push(3, 1, 0);
    settle();
    cr_assert_eq(values()->session_held_writes, 2);
    rig.log.hold_answers = false;
    uint64_t second = expect(3, 1, 0).group;
    cr_assert_lt(expect(2, 1, 0).group, second);
    cr_assert_gt(expect(1, 1, 0).group, second);
    finish();
}

Test(queue, a_write_held_for_memory_that_finds_its_topic_busy_then_waits_there_and_its_drain_goes_on)
{
    start();
    fill_memory();
    push(0, 1, 0);
    settle();
    push(1, 1, DESCRIPTOR_QUEUE);
    settle();
    cr_assert_eq(values()->session_held_writes, 2);
    rig.log.taken = 0; /* room for one: a1 */
    settle();
    cr_assert_eq(values()->session_held_writes, 0);
    cr_assert_eq(values()->session_queued_writes, 1);
    client_topic(&rig, &handles[1], "x");
    rig.log.hold_answers = false;
    expect(0, 1, 0);
    expect(1, 1, 0);
    finish();
}

Test(queue, without_the_flag_busy_is_said_at_once_also_behind_those_who_wait_for_memory)
{
    start();
    occupy(0, 1);
    fill_memory();
    push(3, 2, 0);
    settle();
    cr_assert_eq(values()->session_held_writes, 1);
    push(1, 1, 0);
    expect(1, 1, -EBUSY);
    finish();
}

Test(queue, behind_its_own_ones_that_wait_for_memory_a_handle_is_not_refused)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    settle();
    rig.log.room = 1;
    let_go();
    rig.log.taken = 1;
    rig.log.hold_answers = true;
    settle();
    cr_assert_eq(values()->session_held_writes, 1, "its front");
    push(1, 2, 0);
    expect_nothing(1, 40);
    push(2, 1, 0);
    expect(2, 1, -EBUSY);
    rig.log.hold_answers = false;
    expect(1, 1, 0);
    expect(1, 2, 0);
    expect_content("a1 b1 b2 ");
    finish();
}

Test(queue, g21_waiting_batches_and_a_broker_without_memory_end_all)
{
    start();
    static const char *const names[] = {"t", "u", "v", "w"};
    uint32_t numbers[HANDLES][4];
    for (int handle = 0; handle < HANDLES; handle++)
        for (int i = 0; i < 4; i++)
            numbers[handle][i] = client_topic(&rig, &handles[handle], names[i]);
    rig.log.room = 1; /* a group has room for one write */
    uint64_t sent = 0;
    uint64_t got = 0;
    uint64_t mine[HANDLES] = {0};
    for (int turn = 0; got < 2000 && turn < 100000; turn++) {
        for (int handle = 0; handle < HANDLES; handle++) {
            struct completion completion;
            while (client_pop(&handles[handle], &completion)) {
                cr_assert_eq(completion.result, 0);
                got++;
                mine[handle]--;
            }
            while (mine[handle] < 30 && sent < 2000) {
                struct descriptor d = batch(handle, ++sent, DESCRIPTOR_QUEUE);
                d.op = sent % 3 == 0 ? OP_APPEND : OP_BATCH;
                d.topic = numbers[handle][(sent / 7) % 4];
                client_push(&handles[handle], &d);
                mine[handle]++;
            }
        }
        rig_turn(&rig, 1);
    }
    cr_assert_eq(got, 2000);
    cr_assert_gt(values()->session_holds, 100);
    finish();
}

/* ------------------------------------------------------------------------------------- ends */

Test(queue, g22_what_a_dead_client_had_waiting_is_committed_in_its_turn)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    push_chunk(1, 7, 1, DESCRIPTOR_LAST);
    push_chunk(1, 8, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE); /* has no end */
    push(1, 2, DESCRIPTOR_QUEUE);
    push(2, 1, DESCRIPTOR_QUEUE);
    settle();
    push(1, 3, DESCRIPTOR_QUEUE); /* published, and not yet taken from the ring */
    client_close(&handles[1]);
    settle();
    cr_assert_eq(values()->session_disconnected, 0, "it waits");
    let_go();
    settle();
    cr_assert_eq(values()->session_disconnected, 1);
    expect_content("a1 b1 b7000 b7001 b2 b3 c1 ");
    client_connect(&rig, &handles[1]); /* for finish() */
    finish();
}

Test(queue, g22_a_dead_clients_unfinished_stream_does_not_keep_its_own_batches_waiting)
{
    start();
    push_chunk(0, 7, 0, DESCRIPTOR_FIRST);
    expect(0, 7000, 0);
    push(1, 1, DESCRIPTOR_QUEUE);
    settle();
    push(0, 1, DESCRIPTOR_QUEUE); /* behind b1, which waits for the stream */
    settle();
    client_close(&handles[0]);
    expect(1, 1, 0);
    settle();
    expect_content("b1 a1 ");
    cr_assert_eq(rig.log.aborts, 1);
    client_connect(&rig, &handles[0]);
    finish();
}

Test(queue, g21_a_client_that_dies_with_all_its_requests_as_refusals_is_freed)
{
    start_with(NULL, 8, NULL);
    occupy(0, 1);
    for (uint64_t id = 1; id <= 7 + EXTRA_REQUESTS; id++) { /* more than its credit allows */
        struct completion completion;
        push(1, id, DESCRIPTOR_NOTIFY);
        settle();
        cr_assert(client_pop(&handles[1], &completion));
        cr_assert_eq(completion.result, -EBUSY);
    }
    client_close(&handles[1]);
    settle();
    cr_assert_eq(values()->session_disconnected, 1);
    cr_assert_eq(values()->session_waiting_refusals, 0);
    client_connect(&rig, &handles[1]);
    finish();
}

Test(queue, a_hostile_client_loses_what_waits_and_those_behind_it_go_on)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    push_chunk(1, 7, 1, DESCRIPTOR_LAST);
    settle();
    push(2, 1, DESCRIPTOR_QUEUE);
    settle();
    word_store_release(&handles[1].words->sq_tail, handles[1].sq.mirror.p_tail + 1000);
    session_activate(TAILQ_NEXT(TAILQ_FIRST(&rig.server->sessions), all));
    settle();
    cr_assert_eq(values()->session_ended_hostile, 1);
    cr_assert_eq(values()->session_queued_writes, 1);
    let_go();
    expect(2, 1, 0);
    expect_content("a1 c1 ");
    client_close(&handles[1]);
    client_connect(&rig, &handles[1]);
    finish();
}

Test(queue, a_session_that_is_dropped_is_answered_and_nothing_of_it_is_written)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    push(1, 2, DESCRIPTOR_NOTIFY);
    push_chunk(1, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    push_chunk(1, 7, 1, DESCRIPTOR_LAST);
    cr_assert_eq(expect(1, 2, -EBUSY).flags, COMPLETION_MORE);
    settle();
    queue_drop_session(TAILQ_NEXT(TAILQ_FIRST(&rig.server->sessions), all), -ESTALE);
    expect(1, 1, -ESTALE);
    cr_assert_eq(expect(1, 2, -ESTALE).flags, 0);
    expect(1, 7000, -ESTALE);
    expect(1, 7001, -ESTALE);
    let_go();
    settle();
    expect_content("a1 ");
    finish();
}

Test(queue, a_stop_commits_what_waits)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    push(2, 1, DESCRIPTOR_QUEUE);
    push_chunk(3, 7, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    push_chunk(3, 8, 0, DESCRIPTOR_FIRST | DESCRIPTOR_QUEUE);
    push_chunk(3, 8, 1, DESCRIPTOR_LAST);
    settle();
    push(1, 2, DESCRIPTOR_QUEUE);
    push(2, 2, DESCRIPTOR_NOTIFY);
    settle();
    push(2, 3, DESCRIPTOR_NOTIFY); /* taken by the stop */
    rig.log.hold_answers = false;
    cr_assert_eq(server_stop(rig.server, INT64_C(5000000000)), 0);
    cr_assert_eq(fake_references(&rig.log), 0);
    expect_content("a1 b1 b2 c1 d8000 d8001 ");
    expect(1, 1, 0);
    expect(1, 2, 0);
    cr_assert_eq(expect(2, 2, -EBUSY).flags, COMPLETION_MORE);
    cr_assert_eq(expect(2, 2, -ESHUTDOWN).flags, 0);
    struct completion completion;
    uint64_t commits = 0;
    while (client_pop(&handles[2], &completion)) {
        commits += completion.user_data == 1 && completion.result == 0;
        if (completion.user_data == 3)
            cr_assert(completion.result == -EBUSY && completion.flags == 0, "nobody would tell it");
    }
    cr_assert_eq(commits, 1);
    expect(3, 7000, -ECANCELED);
    expect(3, 8000, 0);
    expect(3, 8001, 0);
    for (int handle = 0; handle < HANDLES; handle++)
        client_close(&handles[handle]);
    server_destroy(rig.server);
    cr_assert_eq(folder_remove(rig.folder), 0);
}

Test(queue, a_topic_that_was_closed_meanwhile_is_released_with_its_last_write)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    struct descriptor close_it = {.op = OP_CLOSE, .topic = topics[1], .user_data = 9};
    client_push(&handles[1], &close_it);
    expect(1, 9, 0);
    for (int handle = 0; handle < HANDLES; handle++) {
        if (handle == 1)
            continue;
        close_it.topic = topics[handle];
        client_push(&handles[handle], &close_it);
        settle();
    }
    rig.log.refuse = -EINVAL;
    rig.log.refuse_count = 1;
    let_go();
    expect(1, 1, -EINVAL);
    cr_assert_eq(fake_references(&rig.log), 0);
    finish();
}

/* ------------------------------------------------------------------------------------- hostile memory */

Test(queue, g20_an_arena_changed_while_its_batch_waits_is_read_once_and_only_then)
{
    start();
    occupy(0, 1);
    push(1, 1, DESCRIPTOR_QUEUE);
    push(1, 2, DESCRIPTOR_QUEUE);
    push(1, 3, DESCRIPTOR_QUEUE);
    push(2, 1, DESCRIPTOR_QUEUE);
    settle();
    memcpy(handles[1].arena + 64, "XX", 2); /* the payload of the first */
    memset(handles[1].arena + 128 + PAYLOAD_ALIGN, 0xff,
           sizeof(struct entry_record)); /* second: its record */
    cr_assert_eq(fallocate(handles[1].files[0], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                           (off_t)handles[1].sizes.arena_at, LAYOUT_PAGE),
                 0);
    memcpy(handles[1].arena + 64, "XX", 2);
    struct entry_record record = {.length = 2};
    memcpy(handles[1].arena + 64 + PAYLOAD_ALIGN, &record, sizeof record);
    memset(handles[1].arena + 128 + PAYLOAD_ALIGN, 0xff, sizeof record);
    let_go();
    expect(1, 2, -EINVAL);
    expect(1, 3, -EINVAL); /* punched: its record says nothing */
    expect(1, 1, 0);
    expect(2, 1, 0);
    expect_content("a1 XX c1 ");
    finish();
}

Test(queue, no_memory_for_a_deadline_is_an_answer)
{
    start();
    occupy(0, 1);
    struct descriptor d = batch(1, 1, DESCRIPTOR_QUEUE);
    d.deadline_ns = INT64_MAX - 1;
    push(2, 1, DESCRIPTOR_QUEUE); /* the struct of the topic is there */
    settle();
    no_memory = 1;
    client_push(&handles[1], &d);
    cr_assert_eq(expect(1, 1, -EAGAIN).reason, REASON_MEMORY);
    no_memory = 0;
    let_go();
    expect(2, 1, 0);
    rig.log.room = 1;
    rig.log.hold_answers = true;
    push(2, 2, 0);
    settle();
    no_memory = 1;
    struct descriptor held = batch(2, 3, 0);
    held.deadline_ns = INT64_MAX - 1;
    client_push(&handles[2], &held);
    cr_assert_eq(expect(2, 3, -EAGAIN).reason, REASON_MEMORY);
    no_memory = 0;
    finish();
}
