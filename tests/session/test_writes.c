#include "harness.h"

#include <unistd.h>

static struct rig rig;
static struct client client;
static uint32_t topic;

static void start(void)
{
    rig_start(&rig, NULL, 0);
    client_connect(&rig, &client);
    topic = client_topic(&rig, &client, "t");
}

static void stop(void)
{
    client_close(&client);
    rig_turn(&rig, 40);
    rig_stop(&rig);
}

Test(write, is_answered_with_a_receipt_and_its_stamps_in_order)
{
    start();
    static const char *const texts[] = {"one", "", "three"};
    struct descriptor d = client_batch(&client, topic, 0, 3, texts);
    struct completion completion = client_call(&rig, &client, &d);
    cr_assert_eq(completion.result, 0);
    cr_assert_eq(completion.first_sequence, 1);
    cr_assert_eq(completion.entries, 3);
    cr_assert_eq(completion.level, LEVEL_DURABLE);
    cr_assert_eq(completion.epoch, 7);
    cr_assert_eq(completion.number, 0, "no producer, no number");
    cr_assert_eq(completion.group, 1);
    cr_assert_eq(completion.published_ns, d.published_ns);
    cr_assert_gt(completion.drained_ns, completion.published_ns);
    cr_assert_geq(completion.submitted_ns, completion.drained_ns);
    cr_assert_geq(completion.durable_ns, completion.submitted_ns);
    cr_assert_geq(completion.signalled_ns, completion.durable_ns);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 3);
    stop();
}

Test(write, an_empty_batch_succeeds_and_writes_nothing)
{
    start();
    struct descriptor d = {.op = OP_BATCH, .topic = topic, .user_data = 3};
    int seen = rig.log.writes_seen;
    struct completion completion = client_call(&rig, &client, &d);
    cr_assert_eq(completion.result, 0);
    cr_assert_eq(completion.entries, 0);
    cr_assert_eq(rig.log.writes_seen, seen);
    stop();
}

Test(write, busy_and_final_refusals_pass_through_at_once)
{
    start();
    static const int codes[] = {-EBUSY, -EINVAL, -ENOSPC, -EDQUOT, -ESHUTDOWN, -EIO, -EAGAIN};
    struct descriptor d = client_text(&client, topic, 0, "x");
    for (size_t i = 0; i < array_count(codes); i++) {
        rig.log.refuse = codes[i];
        rig.log.refuse_reason = codes[i] == -EBUSY    ? REASON_TOPIC
                                : codes[i] == -EAGAIN ? REASON_ORDER
                                                      : REASON_NONE;
        rig.log.refuse_count = 1;
        struct completion completion = client_call(&rig, &client, &d);
        cr_assert_eq(completion.result, codes[i]);
        cr_assert_eq(completion.reason, rig.log.refuse_reason);
        cr_assert_eq(completion.first_sequence, 0);
    }
    cr_assert_eq(server_values(rig.server)->session_busy, 1);
    stop();
}

Test(write, one_that_waits_for_memory_or_space_is_held_and_taken_later_in_order)
{
    start();
    for (int reason = REASON_MEMORY; reason <= REASON_SPACE; reason++) {
        size_t before = fake_topic(&rig.log, "t")->count;
        rig.log.refuse = -EAGAIN;
        rig.log.refuse_reason = (uint8_t)reason;
        rig.log.refuse_count = 50;
        struct descriptor first = client_text(&client, topic, 0, "first");
        struct descriptor second = client_text(&client, topic, 64, "second");
        client_push(&client, &first);
        client_push(&client, &second);
        rig_turn(&rig, 5);
        struct completion completion;
        cr_assert_not(client_pop(&client, &completion), "nothing surfaces");
        cr_assert_eq(server_values(rig.server)->session_held_writes, 1);
        cr_assert_eq(client.broker->sq_head, client.sq.mirror.p_tail - 1, "the session stops draining");
        completion = client_answer(&rig, &client);
        cr_assert_eq(completion.user_data, first.user_data);
        cr_assert_eq(completion.result, 0);
        cr_assert_eq(client_answer(&rig, &client).user_data, second.user_data);
        cr_assert_eq(memcmp(fake_topic(&rig.log, "t")->entries[before].bytes, "first", 5), 0);
        cr_assert_eq(server_values(rig.server)->session_held_writes, 0);
    }
    stop();
}

Test(write, a_held_chunk_does_not_stop_another_clients_batch_but_a_held_batch_does)
{
    start();
    struct client other;
    client_connect(&rig, &other);
    uint32_t theirs = client_topic(&rig, &other, "other");
    struct descriptor chunk = client_text(&client, topic, 0, "chunk");
    chunk.op = OP_CHUNK;
    chunk.flags = DESCRIPTOR_FIRST;
    rig.log.refuse = -EAGAIN;
    rig.log.refuse_reason = REASON_MEMORY;
    rig.log.refuse_count = 1;
    client_push(&client, &chunk);
    while (server_values(rig.server)->session_holds == 0)
        rig_turn(&rig, 1);
    struct descriptor d = client_text(&other, theirs, 0, "small");
    cr_assert_eq(client_call(&rig, &other, &d).result, 0);
    cr_assert_eq(client_answer(&rig, &client).flags, COMPLETION_COPIED);

    rig.log.refuse_count = 1000000;
    struct descriptor whole = client_text(&client, topic, 128, "whole");
    client_push(&client, &whole);
    while (server_values(rig.server)->session_holds == 1)
        rig_turn(&rig, 1);
    client_push(&other, &d);
    rig_turn(&rig, 20);
    cr_assert_eq(server_values(rig.server)->session_held_writes, 2, "nobody goes past");
    rig.log.refuse_count = 0;
    cr_assert_eq(client_answer(&rig, &client).user_data, whole.user_data);
    cr_assert_eq(client_answer(&rig, &other).user_data, d.user_data);
    client_close(&other);
    stop();
}

Test(write, completions_of_many_descriptors_come_in_order_and_all)
{
    start();
    uint64_t sent = 0;
    uint64_t got = 0;
    while (got < 5000) {
        struct completion completion;
        while (client_pop(&client, &completion)) {
            cr_assert_eq(completion.user_data, got);
            cr_assert_eq(completion.first_sequence, got + 1);
            got++;
        }
        while (sent < 5000 && sent - got < 15) {
            struct descriptor d = client_text(&client, topic, (uint32_t)(sent % 16) * 64, "entry");
            d.user_data = sent++;
            client_push(&client, &d);
        }
        rig_turn(&rig, 1);
    }
    stop();
}

Test(topic, open_close_and_reuse_of_numbers)
{
    start();
    cr_assert_eq(fake_references(&rig.log), 1);
    uint32_t numbers[20];
    for (int i = 0; i < 20; i++) {
        char name[16];
        snprintf(name, sizeof name, "topic %d", i);
        numbers[i] = client_topic(&rig, &client, name);
        for (int j = 0; j < i; j++)
            cr_assert_neq(numbers[i], numbers[j]);
    }
    cr_assert_eq(fake_references(&rig.log), 21);
    struct descriptor close_it = {.op = OP_CLOSE, .topic = numbers[7]};
    cr_assert_eq(client_call(&rig, &client, &close_it).result, 0);
    cr_assert_eq(client_call(&rig, &client, &close_it).result, -EINVAL, "closed is closed");
    cr_assert_eq(fake_references(&rig.log), 20);
    cr_assert_eq(client_topic(&rig, &client, "one more"), numbers[7]);
    stop();
}

Test(topic, closed_with_writes_in_flight_is_released_when_they_are_done)
{
    start();
    rig.log.hold_answers = true;
    struct descriptor d = client_text(&client, topic, 0, "x");
    client_push(&client, &d);
    struct descriptor close_it = {.op = OP_CLOSE, .topic = topic, .user_data = 5};
    cr_assert_eq(client_call(&rig, &client, &close_it).result, 0);
    cr_assert_eq(fake_references(&rig.log), 1);
    rig.log.hold_answers = false;
    cr_assert_eq(client_answer(&rig, &client).result, 0);
    cr_assert_eq(fake_references(&rig.log), 0);
    stop();
}

Test(topic, an_unknown_one_is_opened_only_if_it_may_be_created)
{
    start();
    memcpy(client.arena, "nowhere", 7);
    struct descriptor d = {.op = OP_OPEN, .payload_bytes = 7};
    cr_assert_eq(client_call(&rig, &client, &d).result, -ENOENT);
    d.flags = DESCRIPTOR_CREATE;
    d.level = LEVEL_WRITTEN;
    struct completion completion = client_call(&rig, &client, &d);
    cr_assert_eq(completion.result, 0);
    cr_assert_eq(completion.level, LEVEL_WRITTEN);
    cr_assert_eq(completion.flags & COMPLETION_CREATED, 0);
    fake_append(&rig.log, "here", "x", 1);
    memcpy(client.arena, "here", 4);
    d = (struct descriptor){.op = OP_OPEN, .payload_bytes = 4};
    completion = client_call(&rig, &client, &d);
    cr_assert_eq(completion.flags & COMPLETION_CREATED, COMPLETION_CREATED);
    memcpy(client.arena, "a\nb", 3);
    d = (struct descriptor){.op = OP_OPEN, .flags = DESCRIPTOR_CREATE, .payload_bytes = 3};
    cr_assert_eq(client_call(&rig, &client, &d).result, -EINVAL);
    stop();
}

/* ------------------------------------------------------------------------------------- streams */

static struct descriptor chunk(uint32_t stream, uint32_t number, uint16_t flags, const char *text)
{
    struct descriptor d = client_text(&client, topic, 64 * (number % 16), text);
    d.op = OP_CHUNK;
    d.stream = stream;
    d.chunk = number;
    d.flags = flags;
    d.user_data = 100 * stream + number;
    return d;
}

static int chunk_result(uint32_t stream, uint32_t number, uint16_t flags)
{
    struct descriptor d = chunk(stream, number, flags, "piece");
    return client_call(&rig, &client, &d).result;
}

Test(stream, chunks_are_answered_copied_and_the_last_one_with_the_whole_batch)
{
    start();
    for (uint32_t i = 0; i < 100; i++) {
        uint16_t flags = (uint16_t)((i == 0 ? DESCRIPTOR_FIRST : 0) | (i == 99 ? DESCRIPTOR_LAST : 0));
        struct descriptor d = chunk(9, i, flags, "piece");
        struct completion completion = client_call(&rig, &client, &d);
        cr_assert_eq(completion.result, 0);
        cr_assert_eq(completion.flags, i == 99 ? 0 : COMPLETION_COPIED);
        cr_assert_eq(fake_topic(&rig.log, "t")->count, i == 99 ? 100 : 0, "visible at the end only");
        if (i == 99)
            cr_assert_eq(completion.entries, 100);
    }
    stop();
}

Test(stream, one_chunk_may_be_the_first_and_the_last)
{
    start();
    cr_assert_eq(chunk_result(1, 0, DESCRIPTOR_FIRST | DESCRIPTOR_LAST), 0);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 1);
    stop();
}

Test(stream, chunks_published_behind_a_refused_one_get_the_same_answer)
{
    start();
    rig.log.refuse = -EBUSY;
    rig.log.refuse_reason = REASON_TOPIC;
    rig.log.refuse_count = 1;
    for (uint32_t i = 0; i < 3; i++) {
        struct descriptor d = chunk(
            4, i, (uint16_t)((i == 0 ? DESCRIPTOR_FIRST : 0) | (i == 2 ? DESCRIPTOR_LAST : 0)), "piece");
        client_push(&client, &d);
    }
    for (uint32_t i = 0; i < 3; i++) {
        struct completion completion = client_answer(&rig, &client);
        cr_assert_eq(completion.result, -EBUSY, "chunk %u", i);
        cr_assert_eq(completion.reason, REASON_TOPIC);
    }
    cr_assert_eq(rig.log.aborts, 0, "the log never had it");
    cr_assert_eq(chunk_result(4, 0, DESCRIPTOR_FIRST | DESCRIPTOR_LAST), 0, "the number is free again");
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 1);
    stop();
}

Test(stream, a_chunk_out_of_turn_rolls_the_stream_back)
{
    start();
    cr_assert_eq(chunk_result(1, 0, DESCRIPTOR_FIRST), 0);
    cr_assert_eq(chunk_result(1, 2, 0), -EINVAL);
    cr_assert_eq(rig.log.aborts, 1);
    cr_assert_eq(chunk_result(1, 1, 0), -EINVAL);
    cr_assert_eq(chunk_result(1, 2, DESCRIPTOR_LAST), -EINVAL);
    cr_assert_eq(fake_topic(&rig.log, "t")->batches, 0);
    cr_assert_eq(chunk_result(1, 0, DESCRIPTOR_FIRST), 0);
    cr_assert_eq(chunk_result(1, 0, DESCRIPTOR_FIRST), -EINVAL, "opened twice");
    cr_assert_eq(chunk_result(1, 1, DESCRIPTOR_LAST), -EINVAL);
    cr_assert_eq(chunk_result(2, 0, DESCRIPTOR_FIRST), 0);
    struct descriptor wild = chunk(2, 1, 0, "piece");
    wild.arena_offset = 8;
    cr_assert_eq(client_call(&rig, &client, &wild).result, -EINVAL);
    cr_assert_eq(rig.log.aborts, 3);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 0);
    stop();
}

Test(stream, abort_frees_the_topic_and_the_number)
{
    start();
    cr_assert_eq(chunk_result(1, 0, DESCRIPTOR_FIRST), 0);
    cr_assert_eq(fake_topic(&rig.log, "t")->batches, 1);
    struct descriptor d = {.op = OP_ABORT, .stream = 1, .user_data = 8};
    cr_assert_eq(client_call(&rig, &client, &d).result, 0);
    cr_assert_eq(fake_topic(&rig.log, "t")->batches, 0);
    cr_assert_eq(client_call(&rig, &client, &d).result, -ENOENT);
    cr_assert_eq(chunk_result(1, 1, 0), -EINVAL);
    stop();
}

Test(stream, more_than_the_limit_are_refused_and_failed_ones_make_room)
{
    start();
    for (uint32_t i = 0; i < MAX_STREAMS_OPEN; i++)
        cr_assert_eq(chunk_result(i, 0, DESCRIPTOR_FIRST), 0);
    cr_assert_eq(chunk_result(1000, 0, DESCRIPTOR_FIRST), -EDQUOT);
    cr_assert_eq(chunk_result(3, 5, 0), -EINVAL); /* fails, and its client forgets it */
    cr_assert_eq(chunk_result(1000, 0, DESCRIPTOR_FIRST), 0);
    stop();
}

Test(stream, g22_death_rolls_back_what_has_no_end_and_commits_what_was_published)
{
    start();
    cr_assert_eq(chunk_result(1, 0, DESCRIPTOR_FIRST), 0);
    struct descriptor whole = client_text(&client, topic, 640, "whole");
    struct descriptor more = chunk(1, 1, 0, "piece");
    for (int i = 0; i < 5; i++)
        client_push(&client, i == 2 ? &more : &whole);
    client_close(&client); /* before the broker has looked */
    rig_turn(&rig, 40);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 4);
    cr_assert_eq(rig.log.aborts, 1);
    cr_assert_eq(fake_topic(&rig.log, "t")->batches, 0, "the topic is free");
    cr_assert_eq(server_values(rig.server)->session_connections, 0);
    cr_assert_eq(fake_references(&rig.log), 0);
    rig_stop(&rig);
}

Test(stream, g22_death_with_writes_in_the_log_waits_for_them_before_memory_goes)
{
    start();
    rig.log.hold_answers = true;
    struct descriptor d = client_text(&client, topic, 0, "x");
    client_push(&client, &d);
    rig_turn(&rig, 3);
    client_close(&client);
    rig_turn(&rig, 100);
    cr_assert_eq(server_values(rig.server)->session_connections, 1, "the log may still call done");
    cr_assert_eq(server_values(rig.server)->session_disconnected, 1);
    rig.log.hold_answers = false;
    rig_turn(&rig, 3);
    cr_assert_eq(server_values(rig.server)->session_connections, 0);
    rig_stop(&rig);
}

Test(stream, g22_death_with_a_held_write_still_commits_it)
{
    start();
    rig.log.refuse = -EAGAIN;
    rig.log.refuse_reason = REASON_SPACE;
    rig.log.refuse_count = 200;
    struct descriptor d = client_text(&client, topic, 0, "x");
    client_push(&client, &d);
    client_push(&client, &d);
    rig_turn(&rig, 3);
    client_close(&client);
    rig_turn(&rig, 200);
    cr_assert_eq(fake_topic(&rig.log, "t")->count, 2);
    cr_assert_eq(server_values(rig.server)->session_connections, 0);
    rig_stop(&rig);
}

Test(stream, one_that_goes_idle_is_rolled_back)
{
    struct server_options options = {.idle_stream_ns = 1000000};
    rig_start(&rig, &options, 0);
    client_connect(&rig, &client);
    topic = client_topic(&rig, &client, "t");
    cr_assert_eq(chunk_result(1, 0, DESCRIPTOR_FIRST), 0);
    for (int i = 0; i < 10000000 && rig.log.aborts == 0; i++)
        rig_turn(&rig, 1);
    cr_assert_eq(rig.log.aborts, 1);
    cr_assert_eq(chunk_result(1, 1, DESCRIPTOR_LAST), -ECANCELED);
    stop();
}

Test(stream, more_chunks_in_the_log_than_requests_stop_the_drain_and_nothing_else)
{
    start();
    rig.log.hold_answers = true;
    uint32_t sent = 0;
    uint32_t copied = 0;
    for (int turn = 0; turn < 400; turn++) {
        struct completion completion;
        while (client_pop(&client, &completion))
            copied++;
        if (sent - copied < 15) {
            struct descriptor d = chunk(1, sent, sent == 0 ? DESCRIPTOR_FIRST : 0, "piece");
            client_push(&client, &d);
            sent++;
        }
        rig_turn(&rig, 1);
    }
    cr_assert_eq(copied, 15 + EXTRA_REQUESTS, "every request is in the log");
    cr_assert_not(client_ended(&client));
    rig.log.hold_answers = false;
    while (copied < sent) {
        cr_assert_eq(client_answer(&rig, &client).result, 0);
        copied++;
    }
    stop();
}
