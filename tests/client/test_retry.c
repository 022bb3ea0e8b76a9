/* The blocking calls: trying again, deadlines, waiting for one's turn. */
#include "fake.h"

#include <criterion/criterion.h>
#include <sched.h>
#include <signal.h>
#include <sys/time.h>

static struct fake fake;
static walrus *handle;

static void begin(void)
{
    fake_start(&fake);
    handle = CONNECT(&fake, .queue_entries = 8, .arena_bytes = 1 << 20);
    walrus_topic_close(open_topic(handle, "t"));
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(retry, .init = begin, .fini = end);

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void rule(int result, int times, uint8_t reason)
{
    fake_pause(&fake);
    fake_rule(&fake,
              (struct fake_rule){.op = FAKE_ANY_WRITE, .times = times, .result = result, .reason = reason});
    fake_resume(&fake);
}

static uint64_t writes(void)
{
    fake_pause(&fake);
    uint64_t count = fake.seen[OP_APPEND] + fake.seen[OP_BATCH];
    fake_resume(&fake);
    return count;
}

static struct walrus_retry quick(uint32_t max_tries)
{
    return (struct walrus_retry){.size = sizeof(struct walrus_retry),
                                 .max_tries = max_tries,
                                 .first_wait_ns = 1000,
                                 .max_wait_ns = 100000};
}

static int append(const struct walrus_retry *retry, int64_t deadline_ns, struct walrus_receipt *receipt)
{
    struct walrus_write_options options = {
        .size = sizeof options, .retry = retry, .deadline_ns = deadline_ns, .user_data = 77};
    return walrus_append_for_topic(handle, "t", "x", 1, &options, receipt);
}

Test(retry, what_was_refused_for_now_is_tried_again)
{
    int codes[] = {-EBUSY, -EAGAIN, -ENOSPC};
    struct walrus_retry retry = quick(10);
    for (size_t i = 0; i < array_count(codes); i++) {
        uint64_t before = writes();
        rule(codes[i], 3, codes[i] == -EBUSY ? REASON_TOPIC : REASON_MEMORY);
        struct walrus_receipt receipt;
        cr_assert_eq(append(&retry, 0, &receipt), 0, "%s", walrus_error(handle));
        cr_assert_eq(receipt.count, 1);
        cr_assert_eq(receipt.flags, 0);
        cr_assert_eq(writes() - before, 4);
    }
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "t")->count, 3); /* each once */
}

Test(retry, nothing_else_is)
{
    int codes[] = {-EINVAL, -EIO, -EDQUOT, -ESTALE, -ESHUTDOWN, -ECANCELED, -ETIMEDOUT, -ENOMEM};
    struct walrus_retry retry = quick(10);
    for (size_t i = 0; i < array_count(codes); i++) {
        uint64_t before = writes();
        rule(codes[i], 1, 0);
        cr_assert_eq(append(&retry, 0, NULL), codes[i]);
        cr_assert_eq(writes() - before, 1);
        fake_pause(&fake);
        fake.rule_count = 0;
        fake_resume(&fake);
    }
}

Test(retry, g4_without_it_a_busy_topic_is_the_callers)
{
    rule(-EBUSY, 1, REASON_TOPIC);
    cr_assert_eq(append(NULL, 0, NULL), -EBUSY);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_TOPIC);
    rule(-ENOSPC, 1, 0);
    cr_assert_eq(append(NULL, 0, NULL), -ENOSPC);
    cr_assert_eq(writes(), 2);
}

Test(retry, ends_after_so_many_tries)
{
    struct walrus_retry retry = quick(5);
    rule(-ENOSPC, 100, 0);
    struct walrus_receipt receipt;
    cr_assert_eq(append(&retry, 0, &receipt), -ENOSPC);
    cr_assert_eq(writes(), 5);
    cr_assert_not_null(strstr(walrus_error(handle), "full"), "%s", walrus_error(handle));
}

Test(retry, ends_at_the_deadline)
{
    struct walrus_retry retry = quick(0);
    rule(-EBUSY, 1 << 30, REASON_TOPIC);
    int64_t begun = now_ns();
    cr_assert_eq(append(&retry, 30000000, NULL), -ETIMEDOUT);
    cr_assert_geq(now_ns() - begun, 30000000);
    cr_assert_gt(writes(), 2);
    cr_assert_eq(walrus_in_flight(handle), 0);
}

static void *free_when_listed(void *unused)
{
    (void)unused;
    for (bool done = false; !done; sched_yield()) {
        fake_pause(&fake);
        done = fake.listed_count > 0;
        if (done)
            fake_free_topic(&fake, "t");
        fake_resume(&fake);
    }
    return NULL;
}

Test(retry, the_word_that_a_try_may_succeed_ends_the_wait)
{
    /* Its waits are of hours. */
    fake_pause(&fake);
    fake_take_topic(&fake, "t");
    fake_resume(&fake);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, free_when_listed, NULL), 0);
    struct walrus_retry retry = {
        .size = sizeof retry, .max_tries = 3, .first_wait_ns = INT64_MAX / 4, .max_wait_ns = INT64_MAX / 4};
    struct walrus_receipt receipt;
    cr_assert_eq(append(&retry, 0, &receipt), 0, "%s", walrus_error(handle));
    cr_assert_eq(receipt.flags, 0);
    pthread_join(thread, NULL);
    cr_assert_eq(writes(), 2);
}

Test(retry, keeps_one_place_in_the_list_and_gives_it_back)
{
    fake_pause(&fake);
    fake_take_topic(&fake, "t");
    fake_resume(&fake);
    struct walrus_retry retry = quick(20);
    for (int i = 0; i < 20; i++) {
        cr_assert_eq(append(&retry, 0, NULL), -EBUSY);
        cr_assert_eq(walrus_reason(handle), WALRUS_REASON_TOPIC);
    }
    cr_assert_eq(writes(), 400);
    fake_pause(&fake);
    fake_turn(&fake);
    cr_assert_eq(fake.listed_count, 0); /* all were taken back */
    cr_assert_eq(fake.seen[OP_CANCEL], 20);
    fake_free_topic(&fake, "t");
    fake_resume(&fake);
    cr_assert_eq(append(NULL, 0, NULL), 0);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
}

Test(retry, ends_with_the_last_refusal_when_its_tries_are_used_up)
{
    struct walrus_retry retry = {
        .size = sizeof retry, .max_tries = 12, .first_wait_ns = 1000, .max_wait_ns = 100000};
    rule(-ENOSPC, 12, 0);
    struct walrus_receipt receipt;
    cr_assert_eq(append(&retry, 0, &receipt), -ENOSPC);
    cr_assert_eq(append(&retry, 0, &receipt), 0, "the twelve refusals were all met");
}

Test(retry, streams_are_sent_again_from_the_start)
{
    size_t length = 3 << 20;
    uint8_t *data = malloc(length);
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)(i * 7 + (i >> 9));
    fake_pause(&fake);
    for (int i = 0; i < 3; i++)
        fake_rule(&fake, (struct fake_rule){.op = OP_CHUNK, .after = 3, .times = 1, .result = -ENOSPC});
    fake_resume(&fake);
    struct walrus_retry retry = quick(10);
    struct walrus_write_options options = {.size = sizeof options, .retry = &retry};
    struct walrus_slice slice = {data, length};
    cr_assert_eq(walrus_batch_append_for_topic(handle, "t", &slice, 1, &options, NULL), 0, "%s",
                 walrus_error(handle));
    fake_pause(&fake);
    struct fake_topic *t = fake_topic(&fake, "t");
    cr_assert_eq(t->count, 1);
    cr_assert_eq(t->entries[0].length, length);
    cr_assert_eq(memcmp(t->entries[0].data, data, length), 0);
    for (uint32_t i = 0; i < array_count(fake.streams); i++)
        cr_assert_not(fake.streams[i].open);
    free(data);
}

Test(retry, its_options_are_checked)
{
    struct walrus_retry retry = quick(0);
    cr_assert_eq(append(&retry, 0, NULL), -EINVAL); /* it might never end */
    cr_assert_not_null(strstr(walrus_error(handle), "deadline"));
    retry = quick(1);
    retry.first_wait_ns = -1;
    cr_assert_eq(append(&retry, 0, NULL), -EINVAL);
    retry = quick(1);
    retry.max_wait_ns = -1;
    cr_assert_eq(append(&retry, 0, NULL), -EINVAL);
    retry = quick(1);
    retry.size = 3;
    cr_assert_eq(append(&retry, 0, NULL), -EINVAL);
    struct walrus_write_options options = {.size = sizeof options, .queue = 2};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options, NULL), -EINVAL);
    cr_assert_eq(writes(), 0);
}

/* ----------------------------------------------------------------------------- turns, deadlines */

static void *free_when_queued(void *unused)
{
    (void)unused;
    for (bool done = false; !done; sched_yield()) {
        fake_pause(&fake);
        done = fake.waiting_count > 0;
        if (done)
            fake_free_topic(&fake, "t");
        fake_resume(&fake);
    }
    return NULL;
}

Test(retry, a_queued_call_waits_for_its_turn)
{
    uint8_t *data = calloc(1, 3 << 20);
    size_t lengths[] = {1, 3 << 20};
    for (size_t i = 0; i < array_count(lengths); i++) {
        fake_pause(&fake);
        fake_take_topic(&fake, "t");
        fake_resume(&fake);
        pthread_t thread;
        cr_assert_eq(pthread_create(&thread, NULL, free_when_queued, NULL), 0);
        struct walrus_write_options options = {.size = sizeof options, .queue = 1};
        cr_assert_eq(walrus_append_for_topic(handle, "t", data, lengths[i], &options, NULL), 0, "%s",
                     walrus_error(handle));
        pthread_join(thread, NULL);
    }
    free(data);
}

Test(retry, the_broker_says_that_the_deadline_passed)
{
    rule(-ETIMEDOUT, 1, 0);
    cr_assert_eq(append(NULL, INT64_C(3600000000000), NULL), -ETIMEDOUT);
    cr_assert_eq(walrus_in_flight(handle), 0);
    fake_pause(&fake);
    cr_assert_gt(fake.last.deadline_ns, now_ns());
}

Test(retry, what_was_sent_and_is_not_answered_becomes_a_completion)
{
    fake_pause(&fake);
    fake.hold_writes = true;
    fake_resume(&fake);
    cr_assert_eq(append(NULL, 1000000, NULL), -EINPROGRESS);
    cr_assert_not_null(strstr(walrus_error(handle), "77"), "%s", walrus_error(handle));
    cr_assert_eq(walrus_in_flight(handle), 1);
    fake_pause(&fake);
    fake_turn(&fake);
    fake_answer_held(&fake, fake.held_count);
    struct walrus_completion c;
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    cr_assert_eq(c.user_data, 77);
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.first_sequence, 1);
    cr_assert_eq(walrus_in_flight(handle), 0);
}

Test(retry, a_stream_whose_end_was_sent_becomes_a_completion_too)
{
    uint8_t *data = calloc(1, 3 << 20);
    struct walrus_slice slice = {data, 3 << 20};
    for (int round = 0; round < 20; round++) { /* the deadline falls wherever it falls */
        struct walrus_write_options options = {
            .size = sizeof options, .user_data = 5, .deadline_ns = 100000 * (round + 1)};
        int code = walrus_batch_append_for_topic(handle, "t", &slice, 1, &options, NULL);
        cr_assert(code == 0 || code == -ETIMEDOUT || code == -EINPROGRESS, "%d: %s", code,
                  walrus_error(handle));
        if (code == -EINPROGRESS) {
            struct walrus_completion c;
            cr_assert_eq(walrus_wait(handle, 1, -1), 0);
            cr_assert_eq(walrus_reap(handle, &c, 1), 1);
            cr_assert_eq(c.user_data, 5);
            cr_assert_eq(c.result, 0);
        }
        cr_assert_eq(walrus_in_flight(handle), 0);
    }
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0); /* the topic is free */
    free(data);
}

Test(retry, the_deadline_bounds_the_wait_for_room)
{
    walrus_topic *topic = open_topic(handle, "u");
    fake_pause(&fake);
    fake.hold_writes = true;
    walrus_batch *batch;
    for (int i = 0; i < 7; i++) {
        cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
        cr_assert_eq(walrus_batch_add(batch, "x", 1), 0);
        cr_assert_eq(walrus_batch_submit(batch, NULL), 0);
    }
    cr_assert_eq(append(NULL, 1000000, NULL), -EAGAIN); /* there would be no place for its completion */
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_RING);
    fake_turn(&fake);
    fake_answer_held(&fake, 1);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    fake_answer_held(&fake, 6);
    cr_assert_eq(walrus_wait(handle, 6, -1), 0);
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    /* The arena is held by what is in flight, and nothing is answered. */
    for (int i = 0; i < 2; i++) {
        void *data;
        cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
        cr_assert_eq(walrus_batch_reserve(batch, 480000, &data), 0);
        cr_assert_eq(walrus_batch_submit(batch, NULL), 0, "%s", walrus_error(handle));
        if (i == 0)
            cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    }
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    uint8_t *large = calloc(1, 300000);
    struct walrus_write_options options = {.size = sizeof options, .deadline_ns = 1000000};
    cr_assert_eq(walrus_append_for_topic(handle, "u", large, 300000, &options, NULL), -ETIMEDOUT);
    free(large);
}

Test(retry, the_deadline_bounds_the_question_for_a_new_topic)
{
    fake_pause(&fake);
    struct walrus_write_options options = {.size = sizeof options, .deadline_ns = 1000000};
    cr_assert_eq(walrus_append_for_topic(handle, "new", "x", 1, &options, NULL), -ETIMEDOUT);
    cr_assert_eq(walrus_append_for_topic(handle, "new", "x", 1, &options, NULL), -ETIMEDOUT);
    cr_assert_eq(walrus_append_for_topic(handle, "other", "x", 1, &options, NULL), -ETIMEDOUT);
    fake_resume(&fake);
    cr_assert_eq(walrus_append_for_topic(handle, "other", "x", 1, NULL, NULL), 0, "%s", walrus_error(handle));
    cr_assert_eq(walrus_append_for_topic(handle, "new", "x", 1, NULL, NULL), 0, "%s", walrus_error(handle));
    fake_pause(&fake);
    cr_assert_leq(fake.seen[OP_OPEN], 4); /* "t" before; "new" was given back as nobody used it */
    cr_assert_eq(fake_topic(&fake, "new")->count, 1);
    cr_assert_eq(fake_topic(&fake, "other")->count, 1);
    fake_rule(&fake, (struct fake_rule){.op = OP_OPEN, .times = 1, .result = -EDQUOT});
    cr_assert_eq(walrus_append_for_topic(handle, "third", "x", 1, &options, NULL), -ETIMEDOUT);
    fake_resume(&fake);
    cr_assert_eq(walrus_append_for_topic(handle, "third", "x", 1, NULL, NULL), -EDQUOT);
    cr_assert_eq(walrus_append_for_topic(handle, "third", "x", 1, NULL, NULL), 0);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

Test(retry, a_signal_handler_ends_no_call)
{
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval often = {.it_value = {.tv_usec = 500}, .it_interval = {.tv_usec = 500}};
    setitimer(ITIMER_REAL, &often, NULL);
    struct walrus_retry retry = {
        .size = sizeof retry, .max_tries = 8, .first_wait_ns = 2000000, .max_wait_ns = 4000000};
    rule(-EBUSY, 7, REASON_TOPIC);
    cr_assert_eq(append(&retry, 0, NULL), 0, "%s", walrus_error(handle));
    setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {.tv_usec = 0}}, NULL);
    cr_assert_eq(writes(), 8);
}

Test(retry, a_dead_broker_ends_it)
{
    struct walrus_retry retry = quick(100);
    rule(FAKE_DIE, 1, 0);
    cr_assert_eq(append(&retry, 0, NULL), -ECONNRESET);
    cr_assert_eq(append(&retry, 0, NULL), -ECONNRESET);
}
