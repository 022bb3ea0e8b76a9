/* Users share the device's time: many large batches of one do not keep a small one of another from its
 * group. */
#include "harness.h"

#include <sys/stat.h>
#include <unistd.h>

#define OTHER_UID 65534
#define LARGE     (60u << 10)

static struct rig rig;
static struct client small, large[2];
static uint32_t small_topic, large_topic[2];
static unsigned sent[2], done[2], small_done;
static bool large_wants;

/* The broker's clock stands still but for what each turn adds, where a test asks for that. */
static struct io_functions functions;
static int64_t clock_ns;

static int64_t stopped_clock(struct io *io)
{
    (void)io;
    return clock_ns;
}

static void stop_the_clock(void)
{
    clock_ns = io_now(rig.io);
    functions = *rig.io->functions;
    functions.now = stopped_clock;
    rig.io->functions = &functions;
}

static unsigned large_done(void)
{
    return done[0] + done[1];
}

/* The broker asks the kernel who connected, at that moment. */
static void connect_as(uid_t uid, struct client *client)
{
    cr_assert_eq(seteuid(uid), 0);
    client_connect(&rig, client);
    cr_assert_eq(seteuid(0), 0);
}

static void start(uid_t other)
{
    if (geteuid() != 0)
        cr_skip("SKIPPED: a second user needs root\n");
    rig_start(&rig, NULL, 0);
    cr_assert_eq(chmod(rig.folder, 0755) + chmod(rig.socket_path, 0666), 0);
    rig.log.group_takes_ns = 100000;
    client_connect(&rig, &small);
    small_topic = client_topic(&rig, &small, "small");
    for (unsigned i = 0; i < array_count(large); i++) {
        connect_as(other, &large[i]);
        large_topic[i] = client_topic(&rig, &large[i], i == 0 ? "large 0" : "large 1");
        sent[i] = done[i] = 0;
    }
    small_done = 0;
    large_wants = true;
}

static void stop(void)
{
    client_close(&small);
    client_close(&large[0]);
    client_close(&large[1]);
    rig_turn(&rig, 200);
    rig_stop(&rig);
}

/* Eight in flight of each handle. */
static void publish_large(unsigned i)
{
    while (large_wants && sent[i] - done[i] < 8) {
        struct descriptor d = {.op = OP_APPEND,
                               .topic = large_topic[i],
                               .payload_bytes = LARGE,
                               .entries = 1,
                               .user_data = sent[i]};
        struct entry_record record = {.length = LARGE};
        memcpy(large[i].arena + LARGE, &record, sizeof record);
        client_push(&large[i], &d);
        sent[i]++;
    }
}

static void reap(struct client *client, unsigned *count)
{
    struct completion completion;
    while (client_pop(client, &completion)) {
        cr_assert_eq(completion.result, 0, "%d", completion.result);
        (*count)++;
    }
}

/* The small one keeps one batch in flight, the large ones as many as they may. One turn is one group. */
static void contend(unsigned turns)
{
    bool in_flight = false;
    for (unsigned i = 0; i < turns; i++) {
        if (!in_flight) {
            struct descriptor d = client_text(&small, small_topic, 0, "x");
            client_push(&small, &d);
            in_flight = true;
        }
        publish_large(0);
        publish_large(1);
        rig_turn(&rig, 1);
        unsigned before = small_done;
        reap(&small, &small_done);
        in_flight = small_done == before;
        reap(&large[0], &done[0]);
        reap(&large[1], &done[1]);
    }
}

Test(share, a_user_of_large_batches_gets_its_part_and_no_more)
{
    start(OTHER_UID);
    contend(400);
    /* A small one is charged a group, 100 us or a little more, a large one 61 us beside its group: to keep
     * level the large user has about as many large ones as the small user has groups, whatever it
     * publishes. */
    cr_assert_gt(small_done, 150u, "%u small, %u large", small_done, large_done());
    cr_assert_lt(large_done(), 3 * small_done, "%u small, %u large", small_done, large_done());
    cr_assert_gt(large_done(), small_done / 4, "%u small, %u large: nobody starves", small_done,
                 large_done());
    stop();
}

Test(share, of_one_user_nobody_is_held_back)
{
    start(0);
    contend(40);
    cr_assert_gt(large_done(), 8 * small_done, "%u small, %u large", small_done, large_done());
    stop();
}

Test(share, a_user_alone_gets_everything_soon_after_the_other_has_stopped)
{
    start(OTHER_UID);
    contend(100);
    cr_assert_gt(sent[0] + sent[1], large_done(), "something is held back");
    rig.log.deadline = INT64_MAX; /* from here on the loop sleeps, until the time is up or a bell rings */
    for (unsigned turns = 0; large_done() < sent[0] + sent[1]; turns++) {
        cr_assert_lt(turns, 3000u, "%u of %u", large_done(), sent[0] + sent[1]);
        rig_turn(&rig, 1);
        reap(&small, &small_done);
        reap(&large[0], &done[0]);
        reap(&large[1], &done[1]);
    }
    rig.log.deadline = 0;
    stop();
}

Test(share, absence_is_not_saved_up)
{
    start(OTHER_UID);
    contend(200);
    large_wants = false; /* it is away for a while */
    contend(300);
    unsigned small_before = small_done, large_before = large_done();
    large_wants = true;
    contend(200);
    cr_assert_gt(small_done - small_before, 75u);
    cr_assert_lt(large_done() - large_before, 3 * (small_done - small_before), "%u small, %u large",
                 small_done - small_before, large_done() - large_before);
    stop();
}

/* Presence is what the broker owes an answer soon. A write behind a stream of its own user would be owed one
 * for as long as that user likes. */
Test(share, a_user_whose_write_waits_in_a_queue_holds_nobody_back)
{
    start(OTHER_UID);
    struct client second;
    client_connect(&rig, &second);
    struct descriptor chunk = client_text(&second, client_topic(&rig, &second, "small"), 0, "x");
    chunk.op = OP_CHUNK;
    chunk.flags = DESCRIPTOR_FIRST;
    chunk.stream = 1;
    cr_assert_eq(client_call(&rig, &second, &chunk).result, 0);
    struct descriptor waits = client_text(&small, small_topic, 0, "y");
    waits.flags = DESCRIPTOR_QUEUE;
    client_push(&small, &waits);
    rig_turn(&rig, 40);
    cr_assert_eq(server_values(rig.server)->session_queued_writes, 1);
    stop_the_clock();
    for (unsigned turn = 0; turn < 400; turn++) {
        clock_ns += 400000;
        publish_large(0);
        publish_large(1);
        rig_turn(&rig, 1);
        reap(&large[0], &done[0]);
        reap(&large[1], &done[1]);
    }
    cr_assert_eq(server_values(rig.server)->session_queued_writes, 1);
    cr_assert_gt(large_done(), 350u, "%u large in 400 turns", large_done());
    client_close(&second);
    stop();
}

Test(share, a_user_that_writes_little_and_often_leaves_the_rest_to_the_others)
{
    start(OTHER_UID);
    stop_the_clock();
    unsigned small_sent = 0;
    for (unsigned turn = 0; turn < 400; turn++) {
        clock_ns += 400000;
        if (small_sent == small_done) {
            struct descriptor d = client_text(&small, small_topic, 0, "x");
            client_push(&small, &d);
            small_sent++;
        }
        publish_large(0);
        publish_large(1);
        rig_turn(&rig, 1);
        reap(&small, &small_done);
        reap(&large[0], &done[0]);
        reap(&large[1], &done[1]);
    }
    cr_assert_gt(small_done, 150u, "%u small", small_done);
    /* A turn takes 400 us and the small user uses 100 of them: there is room for a large one in each turn. */
    cr_assert_gt(large_done(), 350u, "%u large in 400 turns", large_done());
    stop();
}
