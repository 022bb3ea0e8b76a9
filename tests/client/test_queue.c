/* Waiting for one's turn on a topic, being told when to try, taking back, deadlines; and that nothing which
 * waits for others blocks what those others wait for. The fake says when another handle has a topic. */
#include "fake.h"

#include <criterion/criterion.h>
#include <sched.h>

static struct fake fake;
static walrus *handle;
static walrus_topic *topic;

static void begin(void)
{
    fake_start(&fake);
    handle = CONNECT(&fake, .queue_entries = 8, .arena_bytes = 1 << 20);
    topic = open_topic(handle, "t");
    fake_pause(&fake);
    fake_take_topic(&fake, "t");
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(queue, .init = begin, .fini = end);

static walrus_batch *new_batch(walrus_topic *of)
{
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(of, &batch), 0, "%s", walrus_error(handle));
    return batch;
}

/* One entry; what submit says. A batch that it left open is dropped. */
static int send_with(walrus_topic *to, struct walrus_submit_options options)
{
    walrus_batch *batch = new_batch(to);
    cr_assert_eq(walrus_batch_add(batch, "entry", 5), 0);
    options.size = sizeof options;
    int code = walrus_batch_submit(batch, &options);
    if (code == -EAGAIN)
        walrus_batch_abort(batch);
    return code;
}
#define SEND(to, ...) send_with((to), (struct walrus_submit_options){.size = 0, __VA_ARGS__})

static struct walrus_completion reap_one(void)
{
    struct walrus_completion c = {.result = 1};
    int count = walrus_reap(handle, &c, 1);
    cr_assert_eq(count, 1, "%d: %s", count, walrus_error(handle));
    return c;
}

static void reap_none(void)
{
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
}

Test(queue, a_queued_batch_waits_for_its_turn)
{
    cr_assert_eq(SEND(topic, .user_data = 1, .queue = 1), 0);
    cr_assert_eq(SEND(topic, .user_data = 2, .queue = 1, .append = 1), 0);
    fake_turn(&fake);
    reap_none();
    cr_assert_eq(walrus_in_flight(handle), 2);
    fake_free_topic(&fake, "t");
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, 1);
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.first_sequence, 1);
    c = reap_one();
    cr_assert_eq(c.user_data, 2);
    cr_assert_eq(c.receipt.first_sequence, 2);
}

Test(queue, without_the_flag_it_is_refused_at_once)
{
    cr_assert_eq(SEND(topic, .user_data = 1), 0);
    fake_turn(&fake);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.result, -EBUSY);
    cr_assert_eq(c.receipt.reason, WALRUS_REASON_TOPIC);
    cr_assert_eq(c.receipt.flags, 0);
    cr_assert_eq(walrus_in_flight(handle), 0);
}

Test(queue, a_refusal_that_asked_for_it_gets_a_second_completion)
{
    cr_assert_eq(SEND(topic, .user_data = 1, .notify = 1), 0);
    cr_assert_eq(SEND(topic, .user_data = 2, .notify = 1), 0);
    fake_turn(&fake);
    for (uint64_t i = 1; i <= 2; i++) {
        struct walrus_completion c = reap_one();
        cr_assert_eq(c.user_data, i);
        cr_assert_eq(c.result, -EBUSY);
        cr_assert_eq(c.receipt.flags, WALRUS_RECEIPT_MORE);
    }
    cr_assert_eq(walrus_in_flight(handle), 2); /* a completion of each is still to come */
    fake_free_topic(&fake, "t");
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, 1); /* the longest refused first */
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.flags, WALRUS_RECEIPT_TRY_NOW);
    cr_assert_eq(c.receipt.count, 0);
    reap_none();
    cr_assert_eq(walrus_in_flight(handle), 1);
    cr_assert_eq(SEND(topic, .user_data = 3), 0); /* the try */
    fake_turn(&fake);
    cr_assert_eq(reap_one().result, 0);
    cr_assert_eq(fake_topic(&fake, "t")->count, 1);
    fake_free_topic(&fake, "t");
    cr_assert_eq(reap_one().user_data, 2);
    cr_assert_eq(walrus_in_flight(handle), 0);
}

Test(queue, a_batch_that_is_taken_has_one_completion_though_it_would_have_been_told)
{
    fake_free_topic(&fake, "t");
    for (int i = 0; i < 50; i++) {
        cr_assert_eq(SEND(topic, .notify = 1), 0);
        fake_turn(&fake);
        struct walrus_completion c = reap_one();
        cr_assert_eq(c.result, 0);
        cr_assert_eq(c.receipt.flags, 0);
        cr_assert_eq(walrus_in_flight(handle), 0);
    }
}

Test(queue, the_second_completion_makes_the_fd_readable_and_can_be_waited_for)
{
    cr_assert_not(fd_readable(handle));
    cr_assert_eq(SEND(topic, .notify = 1), 0);
    fake_turn(&fake);
    cr_assert(fd_readable(handle));
    cr_assert_eq(reap_one().result, -EBUSY);
    cr_assert_not(fd_readable(handle));
    cr_assert_eq(walrus_wait(handle, 1, 0), -ETIME);
    fake_free_topic(&fake, "t");
    cr_assert(fd_readable(handle));
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert_eq(reap_one().receipt.flags, WALRUS_RECEIPT_TRY_NOW);
    cr_assert_not(fd_readable(handle));
}

Test(queue, arena_space_is_free_from_the_refusal_on)
{
    walrus_batch *batch = new_batch(topic);
    void *data;
    cr_assert_eq(walrus_batch_reserve(batch, 450000, &data), 0);
    struct walrus_submit_options options = {.size = sizeof options, .notify = 1};
    cr_assert_eq(walrus_batch_submit(batch, &options), 0);
    fake_turn(&fake);
    cr_assert_eq(reap_one().result, -EBUSY);
    walrus_batch *two[2];
    for (int i = 0; i < 2; i++) { /* all of it is there for the try */
        two[i] = new_batch(topic);
        cr_assert_eq(walrus_batch_reserve(two[i], 450000, &data), 0, "%s", walrus_error(handle));
    }
    walrus_batch_abort(two[0]);
    walrus_batch_abort(two[1]);
}

Test(queue, completions_that_come_twice_never_overflow)
{
    /* The fake looks at each turn whether more could come than the ring holds. */
    for (int round = 0; round < 20; round++) {
        int sent = 0;
        while (SEND(topic, .user_data = (uint64_t)sent, .notify = 1) == 0)
            sent++;
        cr_assert_eq(walrus_reason(handle), WALRUS_REASON_RING);
        cr_assert_geq(sent, 2);
        fake_turn(&fake);
        for (int i = 0; i < sent; i++)
            cr_assert_eq(reap_one().result, -EBUSY);
        for (int i = 0; i < sent; i++) {
            fake_free_topic(&fake, "t");
            fake_take_topic(&fake, "t");
        }
        for (int i = 0; i < sent; i++)
            cr_assert_eq(reap_one().receipt.flags, WALRUS_RECEIPT_TRY_NOW);
        cr_assert_eq(walrus_in_flight(handle), 0);
    }
}

Test(queue, both_completions_may_be_unreaped_at_once)
{
    for (int round = 0; round < 3; round++) {
        cr_assert_eq(SEND(topic, .user_data = 7, .notify = 1), 0);
        fake_turn(&fake);
        fake_free_topic(&fake, "t");
        fake_take_topic(&fake, "t");
        struct walrus_completion c[8];
        cr_assert_eq(walrus_reap(handle, c, 8), 2);
        cr_assert_eq(c[0].result, -EBUSY);
        cr_assert_eq(c[1].result, 0);
        cr_assert_eq(c[1].user_data, 7);
        cr_assert_eq(walrus_in_flight(handle), 0);
    }
}

Test(queue, a_lost_connection_ends_the_wait_for_the_second_completion)
{
    cr_assert_eq(SEND(topic, .user_data = 1, .notify = 1), 0);
    fake_turn(&fake);
    cr_assert_eq(reap_one().result, -EBUSY);
    fake_die(&fake);
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, 1);
    cr_assert_eq(c.result, -ECONNRESET);
    cr_assert_eq(c.receipt.flags, WALRUS_RECEIPT_TRY_NOW); /* so it says nothing about a batch */
    cr_assert_eq(walrus_in_flight(handle), 0);
}

Test(queue, g4_what_waits_is_taken_back)
{
    cr_assert_eq(SEND(topic, .user_data = 5, .queue = 1), 0);
    cr_assert_eq(SEND(topic, .user_data = 6, .queue = 1), 0);
    fake_resume(&fake);
    cr_assert_eq(walrus_cancel(handle, 6), 0, "%s", walrus_error(handle));
    cr_assert_eq(walrus_cancel(handle, 6), -ENOENT);
    cr_assert_eq(walrus_cancel(handle, 9), -ENOENT);
    cr_assert_not_null(strstr(walrus_error(handle), "9"));
    fake_pause(&fake);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, 6);
    cr_assert_eq(c.result, -ECANCELED);
    fake_free_topic(&fake, "t");
    cr_assert_eq(reap_one().user_data, 5);
    cr_assert_eq(fake_topic(&fake, "t")->count, 1);
    cr_assert_eq(walrus_cancel(NULL, 5), -EINVAL);
}

Test(queue, of_several_with_one_user_data_the_oldest_that_waits_is_taken_back)
{
    walrus_topic *free_one;
    fake_resume(&fake);
    free_one = open_topic(handle, "u");
    fake_pause(&fake);
    fake.hold_writes = true;
    cr_assert_eq(SEND(free_one, .user_data = 5), 0); /* admitted, not decided */
    fake_turn(&fake);
    fake.hold_writes = false;
    cr_assert_eq(SEND(topic, .user_data = 5, .queue = 1), 0);
    cr_assert_eq(SEND(topic, .user_data = 5, .queue = 1), 0);
    fake_resume(&fake);
    cr_assert_eq(walrus_cancel(handle, 5), 0);
    fake_pause(&fake);
    cr_assert_eq(fake.waiting_count, 1);
    cr_assert_eq(reap_one().result, -ECANCELED);
    fake_answer_held(&fake, 1);
    cr_assert_eq(reap_one().result, 0);
}

Test(queue, a_full_ring_of_waiting_batches_can_be_taken_back)
{
    uint64_t sent = 0;
    while (SEND(topic, .user_data = sent, .queue = 1) == 0)
        sent++;
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_RING);
    fake_resume(&fake);
    for (uint64_t i = 0; i < sent; i++) {
        cr_assert_eq(walrus_cancel(handle, i), 0, "%s", walrus_error(handle));
        cr_assert_eq(reap_one().result, -ECANCELED);
    }
}

Test(queue, a_deadline_is_sent_as_the_time_of_the_clock)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t before = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    cr_assert_eq(SEND(topic, .user_data = 1, .queue = 1, .deadline_ns = 3600000000000), 0);
    fake_turn(&fake);
    cr_assert_geq(fake.last.deadline_ns, before + 3600000000000);
    cr_assert_leq(fake.last.deadline_ns, before + 7200000000000);
    fake_expire(&fake);
    reap_none();
    cr_assert_eq(SEND(topic, .user_data = 2, .queue = 1, .deadline_ns = 1), 0);
    fake_turn(&fake);
    fake_expire(&fake);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, 2);
    cr_assert_eq(c.result, -ETIMEDOUT);
    cr_assert_eq(SEND(topic, .queue = 1, .deadline_ns = -1), 0); /* for ever */
    fake_turn(&fake);
    cr_assert_eq(fake.last.deadline_ns, 0);
}

Test(queue, options_out_of_range_are_refused)
{
    cr_assert_eq(SEND(topic, .queue = 2), -EINVAL);
    cr_assert_eq(SEND(topic, .notify = 2), -EINVAL);
    cr_assert_eq(SEND(topic, .number = 1), -EINVAL); /* no producer */
    cr_assert_not_null(strstr(walrus_error(handle), "producer"));
    walrus_batch *batch = new_batch(topic);
    cr_assert_eq(walrus_batch_set_queue(batch, 2), -EINVAL);
    cr_assert_eq(walrus_batch_set_queue(batch, -1), -EINVAL);
    cr_assert_eq(walrus_batch_set_queue(NULL, 1), -EINVAL);
    cr_assert_eq(walrus_batch_set_queue(batch, 1), 0);
    cr_assert_eq(walrus_batch_add(batch, "x", 1), 0);
    cr_assert_eq(walrus_batch_set_queue(batch, 1), -EINVAL); /* too late */
    walrus_batch_abort(batch);
}

/* ------------------------------------------------------------------------------------- streams */

static uint8_t *some_bytes(size_t length)
{
    uint8_t *data = malloc(length);
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)(i * 31);
    return data;
}

/* Once something waits on the topic, frees it. */
static void *free_when_queued(void *argument)
{
    uint64_t *chunks = argument;
    for (bool done = false; !done; sched_yield()) {
        fake_pause(&fake);
        if (fake.waiting_count > 0) {
            *chunks = fake.seen[OP_CHUNK];
            fake_free_topic(&fake, "t");
            done = true;
        }
        fake_resume(&fake);
    }
    return NULL;
}

Test(queue, a_batch_that_outgrows_the_arena_waits_for_its_turn_with_its_first_chunk)
{
    fake_resume(&fake);
    uint64_t chunks_while_waiting = 0;
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, free_when_queued, &chunks_while_waiting), 0);
    walrus_batch *batch = new_batch(topic);
    cr_assert_eq(walrus_batch_set_queue(batch, 1), 0);
    uint8_t *data = some_bytes(3 << 20);
    cr_assert_eq(walrus_batch_add(batch, data, 3 << 20), 0, "%s", walrus_error(handle));
    free(data);
    pthread_join(thread, NULL);
    cr_assert_eq(chunks_while_waiting, 1); /* nothing followed it before its turn had come */
    struct walrus_submit_options options = {.size = sizeof options, .user_data = 4};
    cr_assert_eq(walrus_batch_submit(batch, &options), 0);
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert_eq(reap_one().result, 0);
}

Test(queue, without_the_flag_an_outgrown_batch_is_refused)
{
    fake_resume(&fake);
    walrus_batch *batch = new_batch(topic);
    uint8_t *data = some_bytes(3 << 20);
    cr_assert_eq(walrus_batch_add(batch, data, 3 << 20), -EBUSY);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_TOPIC);
    free(data);
    walrus_batch_abort(batch);
}

Test(queue, nobody_waits_for_a_topic_that_an_own_stream_has)
{
    /* Another handle waits on "u", where this one has a stream: a second one that queued behind that handle
     * would wait for itself. */
    fake_resume(&fake);
    walrus_topic *u = open_topic(handle, "u");
    uint8_t *data = some_bytes(1 << 20);
    walrus_batch *one = new_batch(u), *two = new_batch(u);
    cr_assert_eq(walrus_batch_add(one, data, 1 << 20), 0);
    fake_pause(&fake);
    fake_take_topic(&fake, "u");
    fake_resume(&fake);
    cr_assert_eq(walrus_batch_set_queue(two, 1), 0);
    cr_assert_eq(walrus_batch_add(two, data, 1 << 20), -EBUSY);
    walrus_batch_abort(two);
    free(data);
    cr_assert_eq(walrus_batch_submit(one, NULL), 0);
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert_eq(reap_one().result, 0);
}

Test(queue, batches_that_wait_never_block_a_stream)
{
    /* The ring is full of batches that wait for another handle, and that one waits for the stream's topic. */
    fake_resume(&fake);
    walrus_topic *u = open_topic(handle, "u");
    uint8_t *data = some_bytes(2 << 20);
    walrus_batch *stream = new_batch(u);
    cr_assert_eq(walrus_batch_add(stream, data, 1 << 20), 0);
    uint64_t waiting = 0;
    while (waiting < 5) { /* of 7: two are left for what others may wait for */
        if (SEND(topic, .user_data = 100 + waiting, .queue = 1) == 0)
            waiting++;
        else
            sched_yield(); /* a chunk is on its way */
    }
    cr_assert_eq(SEND(topic, .queue = 1), -EAGAIN);
    for (int i = 0; i < 10; i++)
        cr_assert_eq(walrus_batch_add(stream, data, 2 << 20), 0, "%s", walrus_error(handle));
    struct walrus_submit_options options = {.size = sizeof options, .user_data = 1};
    cr_assert_eq(walrus_batch_submit(stream, &options), 0, "%s", walrus_error(handle));
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, 1);
    cr_assert_eq(c.result, 0);
    free(data);
    fake_pause(&fake);
    cr_assert_eq(fake.waiting_count, waiting);
    fake_free_topic(&fake, "t");
    for (uint64_t i = 0; i < waiting; i++)
        cr_assert_eq(reap_one().user_data, 100 + i);
}

Test(queue, batches_that_wait_with_all_of_the_arena_never_block_a_stream)
{
    fake_resume(&fake);
    walrus_topic *u = open_topic(handle, "u");
    uint8_t *data = some_bytes(1 << 20);
    walrus_batch *stream = new_batch(u);
    cr_assert_eq(walrus_batch_add(stream, data, 1 << 20), 0);
    struct walrus_submit_options queued = {.size = sizeof queued, .queue = 1};
    for (uint64_t waiting = 0, full = 0; waiting < 3 || full == 0;) {
        walrus_batch *batch = new_batch(topic);
        void *room;
        if (walrus_batch_reserve(batch, 200000, &room) < 0 || walrus_batch_submit(batch, &queued) < 0) {
            walrus_batch_abort(batch); /* a chunk may still be on its way: again */
            full = waiting;
            reap_none();
        } else {
            waiting++;
        }
    }
    cr_assert_eq(walrus_batch_add(stream, data, 1 << 20), 0, "%s", walrus_error(handle));
    cr_assert_eq(walrus_batch_submit(stream, NULL), 0);
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert_eq(reap_one().result, 0);
    free(data);
}

/* Batches that wait for "t" take all that is to be had of the arena. */
static void fill_arena(void)
{
    struct walrus_submit_options queued = {.size = sizeof queued, .queue = 1};
    size_t sizes[] = {200000, 100000, 30000};
    for (size_t i = 0; i < array_count(sizes);) {
        walrus_batch *batch = new_batch(topic);
        void *room;
        if (walrus_batch_reserve(batch, sizes[i], &room) < 0 || walrus_batch_submit(batch, &queued) < 0) {
            walrus_batch_abort(batch);
            reap_none(); /* meets what chunks have been answered */
            i++;
        }
    }
}

Test(queue, several_streams_and_small_batches_get_on_while_the_arena_waits)
{
    walrus_close(handle);
    fake_free_topic(&fake, "t");
    fake_resume(&fake);
    handle = CONNECT(&fake, .queue_entries = 32, .arena_bytes = 1 << 20);
    topic = open_topic(handle, "t");
    walrus_topic *u = open_topic(handle, "u"), *v = open_topic(handle, "v"), *w = open_topic(handle, "w");
    fake_pause(&fake);
    fake_take_topic(&fake, "t");
    fake_resume(&fake);
    uint8_t *data = some_bytes(1 << 20);
    walrus_batch *one = new_batch(u), *two = new_batch(v), *small = new_batch(w);
    cr_assert_eq(walrus_batch_add(one, data, 1 << 20), 0);
    cr_assert_eq(walrus_batch_add(two, data, 1 << 20), 0);
    fill_arena();
    for (int i = 0; i < 20; i++) {
        cr_assert_eq(walrus_batch_add(one, data, 70000), 0, "%s", walrus_error(handle));
        cr_assert_eq(walrus_batch_add(two, data, 100), 0, "%s", walrus_error(handle));
        cr_assert_eq(walrus_batch_add(small, data, 40000), 0, "%s", walrus_error(handle));
        cr_assert_eq(walrus_append_for_topic(handle, "x", data, 50000, NULL, NULL), 0, "%s",
                     walrus_error(handle));
    }
    walrus_batch *all[] = {one, two, small};
    for (size_t i = 0; i < array_count(all); i++) {
        cr_assert_eq(walrus_batch_submit(all[i], NULL), 0, "%s", walrus_error(handle));
        cr_assert_eq(walrus_wait(handle, 1, -1), 0);
        cr_assert_eq(reap_one().result, 0);
    }
    free(data);
    fake_pause(&fake);
    cr_assert_gt(fake.waiting_count, 0);
    cr_assert_eq(fake_topic(&fake, "u")->count, 21);
    cr_assert_eq(fake_topic(&fake, "v")->count, 21);
    cr_assert_eq(fake_topic(&fake, "w")->count, 20);
    cr_assert_eq(fake_topic(&fake, "x")->count, 20);
}

Test(queue, a_waiting_batch_never_sits_on_the_bytes_kept_for_chunks)
{
    fake_resume(&fake);
    walrus_batch *one = new_batch(topic), *two = new_batch(topic);
    void *room;
    cr_assert_eq(walrus_batch_reserve(one, 480000, &room), 0);
    cr_assert_eq(walrus_batch_reserve(two, 480000, &room), 0);
    walrus_batch *small = new_batch(topic);
    uint8_t *data = some_bytes(60000);
    cr_assert_eq(walrus_batch_set_queue(small, 1), 0);
    cr_assert_eq(walrus_batch_add(small, data, 60000), 0, "%s", walrus_error(handle));
    cr_assert_eq(walrus_batch_submit(small, NULL), -EAGAIN); /* there is no other place for it */
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_OPEN_BATCH);
    walrus_batch_abort(one);
    cr_assert_eq(walrus_batch_submit(small, NULL), 0, "%s", walrus_error(handle));
    walrus_batch_abort(two);
    free(data);
    walrus_topic *u = open_topic(handle, "u"); /* works: something of the ring is left */
    walrus_topic_close(u);
    fake_pause(&fake);
    cr_assert_eq(fake.waiting_count, 1);
    fake_free_topic(&fake, "t");
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.count, 1);
    struct fake_entry *e = &fake_topic(&fake, "t")->entries[0];
    cr_assert_eq(e->length, 60000);
    for (size_t i = 0; i < 60000; i++)
        cr_assert_eq(e->data[i], (uint8_t)(i * 31));
}

Test(queue, a_follow_beside_a_full_ring_ends_in_time)
{
    uint64_t waiting = 0;
    while (SEND(topic, .queue = 1) == 0)
        waiting++;
    fake_resume(&fake);
    walrus_entries *entries;
    struct walrus_read_options options = {.size = sizeof options, .follow_ns = 1000000};
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, &options, &entries), -ETIME);
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, &options, &entries), -ETIME);
}
