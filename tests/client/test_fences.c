/* The library's two fences: one between publishing and looking whether the broker is parked, one between
 * saying when to be woken and looking at the ring. The library here is built on store_buffer.h, the fake is
 * not: so whatever the library has stored without a fence the fake has not seen yet when it matters. Remove
 * either fence, and the test of its name fails, each time. */
#include "../../libclient/src/handle.h"
#include "fake.h"
#include "store_buffer.h"

#include <criterion/criterion.h>
#include <poll.h>
#include <unistd.h>

static struct fake fake;
static walrus *handle;
static walrus_topic *topic;
static uint32_t taken, steps;
static uint64_t signals; /* given by `answer` */

static void begin(void)
{
    fake_start(&fake);
    handle = CONNECT(&fake, .queue_entries = 16, .spin_ns = -1);
    topic = open_topic(handle, "t");
    fake_pause(&fake);
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(fences, .init = begin, .fini = end);

static void submit(void)
{
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    cr_assert_eq(walrus_batch_add(batch, "entry", 5), 0);
    cr_assert_eq(walrus_batch_submit(batch, NULL), 0);
}

/* The broker's side, by the book: parks, fence, one more look. */
static void park(void)
{
    steps++;
    word_store(&fake.words->parked, PARKED);
    full_fence();
    taken = fake_turn(&fake);
    if (taken > 0)
        word_store(&fake.words->parked, ACTIVE);
}

/* By the book as well: posts, fence, looks whether a signal is wanted. */
static void answer(void)
{
    steps++;
    uint64_t before = fake.signals;
    fake_answer_held(&fake, 1);
    signals = fake.signals - before;
}

static bool doorbell_was_rung(void)
{
    struct pollfd fd = {.fd = fake.doorbell, .events = POLLIN};
    return poll(&fd, 1, 0) == 1;
}

Test(fences, a_batch_published_while_the_broker_parks_is_taken_or_rings)
{
    uint64_t count;
    while (doorbell_was_rung())
        cr_assert_gt(read(fake.doorbell, &count, sizeof count), 0);
    for (int i = 0; i < 3; i++) {
        word_store(&fake.words->parked, ACTIVE);
        store_buffer_trap(&handle->client->sq_tail, &handle->broker->parked, park);
        taken = 0;
        submit();
        cr_assert_eq(steps, (uint32_t)i + 1);
        cr_assert(taken == 1 || doorbell_was_rung(), "the broker sleeps on a batch that it never saw");
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    }
}

Test(fences, an_answer_posted_while_a_wait_goes_to_sleep_wakes_it)
{
    for (int i = 0; i < 3; i++) {
        fake.hold_writes = true;
        submit();
        fake_turn(&fake);
        fake.hold_writes = false;
        store_buffer_trap(&handle->client->wake_at, &handle->broker->cq_tail, answer);
        cr_assert_eq(walrus_wait(handle, 1, 100000000), 0);
        cr_assert_eq(steps, (uint32_t)i + 1);
        cr_assert_eq(signals, 1, "it slept beside an answer until its time was over");
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    }
}

Test(fences, an_answer_posted_while_the_fd_is_armed_makes_it_readable)
{
    fake.hold_writes = true;
    submit();
    submit();
    fake_turn(&fake);
    fake.hold_writes = false;
    store_buffer_trap(&handle->client->wake_at, &handle->broker->cq_tail, answer);
    struct pollfd fd = {.fd = walrus_fd(handle), .events = POLLIN};
    fake_answer_held(&fake, steps == 0); /* it was armed from the beginning: nothing to be armed now */
    cr_assert_eq(poll(&fd, 1, 0), 1);
    struct walrus_completion c;
    steps = 0;
    store_buffer_trap(&handle->client->wake_at, &handle->broker->cq_tail, answer);
    cr_assert_eq(walrus_reap(handle, &c, 1), 1); /* arms again, and the second answer falls into it */
    cr_assert_eq(steps, 1);
    cr_assert_eq(poll(&fd, 1, 0), 1, "asleep beside an answer");
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
}
