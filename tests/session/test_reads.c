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

static void release(const struct completion *completion)
{
    __atomic_store_n(&client.words->window_head, completion->window_at + completion->window_bytes,
                     __ATOMIC_RELEASE);
}

static const struct run *run_of(const struct completion *completion)
{
    uint64_t at = completion->window_at & (client.sizes.window_bytes - 1);
    cr_assert_leq(at + completion->window_bytes, client.sizes.window_bytes, "never wraps");
    cr_assert_eq(completion->window_at % PAYLOAD_ALIGN, 0);
    return (const struct run *)(const void *)(client.window + at);
}

Test(read, entries_come_through_the_window_in_pieces_that_never_wrap)
{
    start();
    char text[3000];
    for (int i = 0; i < 200; i++) {
        memset(text, 'a' + i % 26, sizeof text);
        fake_append(&rig.log, "t", text, (uint32_t)(1 + i * 14));
    }
    uint64_t next = 1;
    while (next <= 200) {
        struct descriptor d = {
            .op = OP_READ, .topic = topic, .number = next, .max_bytes = 20000, .user_data = next};
        struct completion completion = client_call(&rig, &client, &d);
        cr_assert_gt(completion.result, 0);
        cr_assert_eq(completion.first_sequence, next);
        cr_assert_eq(completion.next_sequence, next + (uint64_t)completion.result);
        cr_assert_eq(completion.end_sequence, 201);
        const struct run *run = run_of(&completion);
        cr_assert_eq(run->first_sequence, next);
        const struct entry_record *records = (const struct entry_record *)(const void *)(run + 1);
        const uint8_t *payload = (const uint8_t *)run + run->bytes - run->payload_bytes;
        for (uint32_t i = 0; i < run->entries; i++, next++) {
            cr_assert_eq(records[i].length, 1 + (next - 1) * 14);
            cr_assert_eq(payload[0], 'a' + (next - 1) % 26);
            payload += align_up(records[i].length, PAYLOAD_ALIGN);
        }
        release(&completion);
    }
    stop();
}

Test(read, the_end_of_a_topic_is_zero_entries_and_a_topic_never_written_is_unknown)
{
    start();
    struct descriptor d = {.op = OP_READ, .topic = topic, .number = 1};
    cr_assert_eq(client_call(&rig, &client, &d).result, -ENOENT);
    fake_append(&rig.log, "t", "x", 1);
    d.number = 2;
    struct completion completion = client_call(&rig, &client, &d);
    cr_assert_eq(completion.result, 0);
    cr_assert_eq(completion.window_bytes, 0);
    cr_assert_eq(completion.next_sequence, 2);
    stop();
}

Test(read, a_full_window_is_said_with_its_reason_and_heals_when_released)
{
    start();
    char text[30000] = {0};
    for (int i = 0; i < 4; i++)
        fake_append(&rig.log, "t", text, sizeof text);
    struct descriptor d = {.op = OP_READ, .topic = topic, .number = 1, .max_entries = 1};
    struct completion first = client_call(&rig, &client, &d);
    cr_assert_eq(first.result, 1);
    struct completion second = client_call(&rig, &client, &d);
    cr_assert_eq(second.result, 1);
    struct completion full = client_call(&rig, &client, &d);
    cr_assert_eq(full.result, -EAGAIN);
    cr_assert_eq(full.reason, REASON_WINDOW);
    release(&second);
    cr_assert_eq(client_call(&rig, &client, &d).result, 1);
    stop();
}

Test(read, several_at_once_use_the_window_one_after_the_other)
{
    start();
    fake_append(&rig.log, "t", "first", 5);
    fake_append(&rig.log, "t", "second", 6);
    for (uint64_t i = 1; i <= 10; i++) {
        struct descriptor d = {
            .op = OP_READ, .topic = topic, .number = 1 + i % 2, .max_entries = 1, .user_data = i};
        client_push(&client, &d);
    }
    uint64_t end = 0;
    for (uint64_t i = 1; i <= 10; i++) {
        struct completion completion = client_answer(&rig, &client);
        cr_assert_eq(completion.user_data, i);
        cr_assert_geq(completion.window_at, end, "nothing is written over");
        end = completion.window_at + completion.window_bytes;
        cr_assert_eq(run_of(&completion)->first_sequence, 1 + i % 2);
    }
    stop();
}

Test(follow, stays_pending_and_completes_when_something_comes)
{
    start();
    struct descriptor d = {
        .op = OP_READ, .topic = topic, .flags = DESCRIPTOR_FOLLOW, .number = 1, .user_data = 5};
    for (uint64_t round = 1; round <= 3; round++) { /* the first waits for the topic itself */
        d.number = round;
        client_push(&client, &d);
        rig_turn(&rig, 100);
        struct completion completion;
        cr_assert_not(client_pop(&client, &completion));
        cr_assert_eq(server_values(rig.server)->session_pending_reads, 1);
        fake_append(&rig.log, "t", "now", 3);
        completion = client_answer(&rig, &client);
        cr_assert_eq(completion.user_data, 5);
        cr_assert_eq(completion.result, 1);
        cr_assert_eq(completion.first_sequence, round);
        cr_assert_eq(server_values(rig.server)->session_pending_reads, 0);
        release(&completion);
    }
    stop();
}

Test(follow, sees_what_another_client_commits)
{
    start();
    struct client writer;
    client_connect(&rig, &writer);
    uint32_t theirs = client_topic(&rig, &writer, "t");
    struct descriptor d = {
        .op = OP_READ, .topic = topic, .flags = DESCRIPTOR_FOLLOW, .number = 1, .user_data = 5};
    client_push(&client, &d);
    rig_turn(&rig, 10);
    struct descriptor write = client_text(&writer, theirs, 0, "news");
    cr_assert_eq(client_call(&rig, &writer, &write).result, 0);
    cr_assert_eq(client_answer(&rig, &client).result, 1);
    client_close(&writer);
    stop();
}

Test(follow, is_ended_by_cancel_wherever_it_is)
{
    start();
    struct descriptor follow = {
        .op = OP_READ, .topic = topic, .flags = DESCRIPTOR_FOLLOW, .number = 1, .user_data = 5};
    struct descriptor cancel = {.op = OP_CANCEL, .number = 5, .user_data = 6};
    cr_assert_eq(client_call(&rig, &client, &cancel).result, -ENOENT);

    client_push(&client, &follow); /* waits on the topic */
    rig_turn(&rig, 10);
    client_push(&client, &cancel);
    struct completion completion = client_answer(&rig, &client);
    cr_assert_eq(completion.user_data, 5);
    cr_assert_eq(completion.result, -ECANCELED);
    completion = client_answer(&rig, &client);
    cr_assert_eq(completion.user_data, 6);
    cr_assert_eq(completion.result, 0);

    fake_append(&rig.log, "t", "x", 1);
    follow.number = 2;
    rig.log.hold_reads = true; /* in the log */
    client_push(&client, &follow);
    rig_turn(&rig, 10);
    client_push(&client, &cancel);
    completion = client_answer(&rig, &client);
    cr_assert_eq(completion.user_data, 6);
    rig.log.hold_reads = false;
    completion = client_answer(&rig, &client);
    cr_assert_eq(completion.user_data, 5);
    cr_assert_eq(completion.result, -ECANCELED);

    struct descriptor plain = {.op = OP_READ, .topic = topic, .number = 1, .user_data = 7};
    rig.log.hold_reads = true; /* queued behind another */
    client_push(&client, &plain);
    client_push(&client, &follow);
    rig_turn(&rig, 10);
    client_push(&client, &cancel);
    completion = client_answer(&rig, &client);
    cr_assert_eq(completion.user_data, 5);
    cr_assert_eq(client_answer(&rig, &client).user_data, 6);
    rig.log.hold_reads = false;
    cr_assert_eq(client_answer(&rig, &client).user_data, 7);
    stop();
}

Test(follow, g22_death_of_the_follower_leaves_nothing_on_the_topic)
{
    start();
    struct descriptor d = {.op = OP_READ, .topic = topic, .flags = DESCRIPTOR_FOLLOW, .number = 1};
    client_push(&client, &d);
    rig_turn(&rig, 10);
    client_close(&client);
    rig_turn(&rig, 40);
    cr_assert_null(fake_topic(&rig.log, "t")->waiters);
    cr_assert_eq(server_values(rig.server)->session_pending_reads, 0);
    fake_append(&rig.log, "t", "x", 1);

    client_connect(&rig, &client); /* and with its read in the log */
    topic = client_topic(&rig, &client, "t");
    rig.log.hold_reads = true;
    client_push(&client, &d);
    rig_turn(&rig, 10);
    client_close(&client);
    rig_turn(&rig, 40);
    cr_assert_eq(server_values(rig.server)->session_connections, 1,
                 "the log may still write into the window");
    rig.log.hold_reads = false;
    rig_turn(&rig, 3);
    cr_assert_eq(server_values(rig.server)->session_connections, 0);
    rig_stop(&rig);
}

Test(topics, are_listed_in_order_over_several_answers)
{
    start();
    char name[256];
    for (int i = 0; i < 600; i++) {
        memset(name, 'n', 200);
        snprintf(name + 200, sizeof name - 200, "%d", i);
        fake_append(&rig.log, name, "x", 1);
    }
    uint64_t after = 0;
    int answers = 0;
    for (;;) {
        struct descriptor d = {.op = OP_TOPICS, .number = after, .user_data = 4};
        struct completion completion = client_call(&rig, &client, &d);
        cr_assert_geq(completion.result, 0);
        if (completion.result == 0)
            break;
        answers++;
        const uint8_t *at = (const uint8_t *)run_of(&completion);
        for (int i = 0; i < completion.result; i++) {
            struct topic_record record;
            memcpy(&record, at, sizeof record);
            cr_assert_eq(record.id, ++after);
            cr_assert_eq(record.next_sequence, 2);
            snprintf(name + 200, sizeof name - 200, "%d", (int)after - 1);
            cr_assert_eq(record.name_bytes, strlen(name));
            cr_assert_eq(memcmp(at + sizeof record, name, record.name_bytes), 0);
            at += record.bytes;
        }
        release(&completion);
    }
    cr_assert_eq(after, 600);
    cr_assert_gt(answers, 1);
    stop();
}
