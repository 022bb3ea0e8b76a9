/* The broker's fences: before it parks a session, before it parks all of them, before it looks at who wants a
 * signal. The broker here is built on store_buffer.h, the client is not: so whatever the broker has stored
 * without a fence the client has not seen yet when it matters. Remove a fence, or the second look behind it,
 * and the test of its name fails, each time. (test_wakeup.c waits for the processor to do the same.) */
#include "../client/store_buffer.h"
#include "harness.h"

#include <unistd.h>

static struct rig rig;
static struct client client;
static struct session *session;
static unsigned steps;
static bool seen;

static void begin(void)
{
    rig_start(&rig, NULL, 0);
    client_connect(&rig, &client);
    session = TAILQ_FIRST(&rig.server->sessions);
    rig_turn(&rig, 4);
}

static void end(void)
{
    rig_turn(&rig, 40);
    client_close(&client);
    rig_turn(&rig, 40);
    rig_stop(&rig);
}

TestSuite(fences, .init = begin, .fini = end);

/* The client's side, by the book: publishes, fence, rings if the broker is parked. */
static void publish(void)
{
    struct descriptor nothing = {.op = OP_NONE};
    steps++;
    client_push(&client, &nothing);
}

/* By the book as well: says when to be woken, fence, one more look. */
static void go_to_sleep(void)
{
    struct completion completion;
    steps++;
    word_store(&client.words->wake_at, client.cq.mirror.c_head);
    full_fence();
    seen = ring_pop_completion(&client.cq, &completion) == 1;
}

static void trap_parking(void)
{
    session_activate(session);
    store_buffer_trap(&session->broker->parked, &session->client->sq_tail, publish);
}

/* A session that is parked is looked at only when its doorbell was rung. */
static void expect_taken(unsigned step)
{
    struct completion completion;
    cr_assert_eq(steps, step);
    rig_turn(&rig, 40);
    cr_assert_eq(ring_pop_completion(&client.cq, &completion), 1,
                 "the broker sleeps on a descriptor that it never saw");
}

Test(fences, g21_a_descriptor_published_while_its_session_is_parked_is_taken_or_rings)
{
    for (unsigned i = 1; i <= 3; i++) {
        trap_parking();
        session->empty_turns = 1000; /* it is parked in the next turn, however busy the others are */
        drain_all(rig.server);
        expect_taken(i);
    }
}

Test(fences, g21_a_descriptor_published_while_the_broker_goes_to_sleep_is_taken_or_rings)
{
    for (unsigned i = 1; i <= 3; i++) {
        trap_parking();
        (void)drain_park_all(rig.server);
        expect_taken(i);
    }
}

static bool signalled(void)
{
    uint64_t value;
    return read(client.signal, &value, sizeof value) == (ssize_t)sizeof value;
}

Test(fences, g21_an_answer_posted_while_its_client_goes_to_sleep_is_seen_or_signalled)
{
    for (unsigned i = 1; i <= 3; i++) {
        word_store(&client.words->wake_at, client.cq.mirror.c_head - 1); /* awake */
        while (signalled())
            continue;
        struct completion completion = {.result = 0}, ignored;
        store_buffer_trap(&session->broker->cq_tail, &session->client->wake_at, go_to_sleep);
        session->outstanding++;
        complete_post(session, &completion);
        complete_signals(rig.server);
        cr_assert_eq(steps, i);
        cr_assert(seen || signalled(), "a client sleeps beside its answer");
        if (!seen)
            cr_assert_eq(ring_pop_completion(&client.cq, &ignored), 1);
    }
}
