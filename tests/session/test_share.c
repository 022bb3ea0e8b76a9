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
