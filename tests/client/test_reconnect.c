/* A connection made anew: what was in flight, what was being filled, what was read, and every way it can fail.
 * The broker is a fake that dies and comes back. */
#include "fake.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static struct fake fake;
static walrus *handle;
static walrus_topic *topic;

/* Reconnects, if need be for ever. */
#define WITH(...)                                                                                            \
    begin_with((struct walrus_connect_options){                                                              \
        .size = sizeof(struct walrus_connect_options), .queue_entries = 64, __VA_ARGS__})

static void begin_with(struct walrus_connect_options options)
{
    options.flags |= WALRUS_RECONNECT;
    if (options.reconnect_ns == 0)
        options.reconnect_ns = -1;
    fake_start(&fake);
    handle = fake_connect(&fake, options);
    topic = open_topic(handle, "t");
}

static void begin(void)
{
    WITH(.arena_bytes = 1 << 20);
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(reconnect, .init = begin, .fini = end);
TestSuite(reconnect_otherwise);

/* --------------------------------------------------------------------------------------- helpers */

static walrus_batch *new_batch(walrus_topic *on)
{
    walrus_batch *batch = NULL;
    cr_assert_eq(walrus_batch_begin(on, &batch), 0, "%s", walrus_error(handle));
    return batch;
}

static char *reserve(walrus_batch *batch, size_t length)
{
    void *data = NULL;
    int code = walrus_batch_reserve(batch, length, &data);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    return data;
}

static int submit(walrus_batch *batch, uint64_t user_data)
{
    struct walrus_submit_options options = {.size = sizeof options, .user_data = user_data};
    return walrus_batch_submit(batch, &options);
}

/* One entry that says its user_data. */
static void send_one(walrus_topic *on, uint64_t user_data)
{
    walrus_batch *batch = new_batch(on);
    memcpy(reserve(batch, sizeof user_data), &user_data, sizeof user_data);
    cr_assert_eq(submit(batch, user_data), 0, "%s", walrus_error(handle));
}

static struct walrus_completion reap_one(void)
{
    struct walrus_completion c;
    int code = walrus_wait(handle, 1, -1);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    cr_assert_eq(walrus_reap(handle, &c, 1), 1, "%s", walrus_error(handle));
    return c;
}

static struct walrus_completion expect(uint64_t user_data, int result, uint32_t flags, uint64_t number)
{
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, user_data, "%llu", (unsigned long long)c.user_data);
    cr_assert_eq(c.result, result, "%d", c.result);
    cr_assert_eq(c.receipt.flags, flags, "0x%x", c.receipt.flags);
    cr_assert_eq(c.receipt.number, number, "%llu", (unsigned long long)c.receipt.number);
    return c;
}

static struct walrus_info info(void)
{
    struct walrus_info info = {.size = sizeof info};
    cr_assert_eq(walrus_get_info(handle, &info), 0);
    return info;
}

static void append(const char *name, const char *text)
{
    int code = walrus_append_for_topic(handle, name, text, strlen(text), NULL, NULL);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
}

/* The fake's topic has the entries `from` to `to` and nothing else. */
static void expect_entries(const char *name, uint64_t from, uint64_t to)
{
    fake_pause(&fake);
    const struct fake_topic *t = fake_topic(&fake, name);
    cr_assert_eq(t->count, to - from + 1, "%llu entries", (unsigned long long)t->count);
    for (uint64_t i = from; i <= to; i++) {
        const struct fake_entry *e = &t->entries[i - from];
        cr_assert_eq(e->length, sizeof i);
        cr_assert_eq(memcmp(e->data, &i, sizeof i), 0, "entry %llu", (unsigned long long)i);
    }
    fake_resume(&fake);
}

/* Everything published is with the fake, and held there. */
static void wait_until_held(uint32_t count)
{
    for (uint32_t have = 0; have < count; sched_yield()) {
        fake_pause(&fake);
        have = fake.held_count;
        fake_resume(&fake);
    }
}

static void die(void)
{
    fake_pause(&fake);
    fake_die(&fake);
    fake.hold_writes = fake.hold_reads = false;
    fake_resume(&fake);
}

/* The handle learns that its connection is gone. */
static void notice(void)
{
    struct walrus_completion c;
    walrus_fd(handle); /* so that reaping looks at the socket each time */
    cr_assert_eq(walrus_reap(handle, &c, 1), 0, "%s", walrus_error(handle));
}

/* What is in flight is -ECONNRESET, and every call from then on says why. */
static void expect_lost(int code, const char *part_of_words)
{
    struct walrus_completion c;
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), -ECONNRESET);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), code);
    cr_assert_eq(walrus_reap(handle, &c, 1), code);
    cr_assert_not_null(strstr(walrus_error(handle), part_of_words), "%s", walrus_error(handle));
    cr_assert(fd_readable(handle));
}

static void rule(struct fake_rule rule)
{
    fake_pause(&fake);
    fake_rule(&fake, rule);
    fake_resume(&fake);
}

static int open_fds(void)
{
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static int mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    int count = 0;
    while (fgets(line, sizeof line, maps) != NULL)
        count += strstr(line, "memfd:") != NULL;
    fclose(maps);
    return count;
}

/* ---------------------------------------------------------------------------------------- writes */

Test(reconnect, g5_what_was_in_flight_is_sent_again_once_and_in_order)
{
    int fd = walrus_fd(handle);
    fake.hold_writes = true;
    for (uint64_t i = 1; i <= 20; i++)
        send_one(topic, i);
    wait_until_held(20);
    die();
    for (uint64_t i = 1; i <= 20; i++)
        expect(i, 0, 0, i);
    expect_entries("t", 1, 20);
    cr_assert_eq(info().reconnects, 1);
    cr_assert_eq(info().epoch, 8);
    cr_assert_eq(walrus_fd(handle), fd);
    cr_assert_eq(walrus_in_flight(handle), 0);
}

Test(reconnect, g5_what_was_committed_and_not_answered_is_a_duplicate_and_is_not_written_again)
{
    rule((struct fake_rule){.op = OP_BATCH, .after = 1, .times = 1, .result = FAKE_DIE_MUTE});
    fake_pause(&fake);
    for (uint64_t i = 1; i <= 4; i++)
        send_one(topic, i);
    fake_resume(&fake);
    struct walrus_completion c = expect(1, 0, 0, 1);
    cr_assert_eq(c.receipt.first_sequence, 1);
    c = expect(2, 0, WALRUS_RECEIPT_DUPLICATE, 2);
    cr_assert_eq(c.receipt.level, WALRUS_LEVEL_DURABLE);
    expect(3, 0, 0, 3);
    expect(4, 0, 0, 4);
    expect_entries("t", 1, 4);
    cr_assert_eq(walrus_topic_last_number(topic), 4);
}

Test(reconnect, every_topic_is_opened_again_and_may_have_another_number)
{
    enum { TOPICS = 70 };
    walrus_topic *topics[TOPICS];
    char name[WALRUS_MAX_TOPIC_NAME + 1];
    for (int i = 0; i < TOPICS - 30; i++) {
        snprintf(name, sizeof name, i % 10 == 0 ? "%0255d" : "topic %d", i);
        topics[i] = open_topic(handle, name);
    }
    fake.hold_writes = true;
    for (int i = 0; i < TOPICS - 30; i++)
        send_one(topics[i], 1);
    wait_until_held(TOPICS - 30);
    die();
    for (int i = 0; i < TOPICS - 30; i++)
        expect(1, 0, 0, 1);
    for (int i = 0; i < TOPICS - 30; i++)
        expect_entries(fake.topics[i + 1]->name, 1, 1);
    send_one(topics[7], 2);
    expect(2, 0, 0, 2);
    append("topic 7", "by its name");
    cr_assert_eq(fake_topic(&fake, "topic 7")->count, 3);
}

Test(reconnect, what_is_submitted_while_there_is_no_broker_waits_for_one)
{
    fake_down(&fake);
    while (info().reconnects == 0 && walrus_in_flight(handle) < 63) {
        walrus_batch *batch = NULL;
        cr_assert_eq(walrus_batch_begin(topic, &batch), 0, "%s", walrus_error(handle));
        uint64_t n = walrus_in_flight(handle) + 1;
        memcpy(reserve(batch, sizeof n), &n, sizeof n);
        cr_assert_eq(submit(batch, n), 0, "%s", walrus_error(handle));
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
    }
    walrus_batch *batch = new_batch(topic);
    reserve(batch, 8);
    cr_assert_eq(submit(batch, 64), -EAGAIN);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_RING);
    cr_assert_eq(walrus_wait(handle, 1, 1), -ETIME);
    walrus_batch_abort(batch);
    fake_up(&fake);
    for (uint64_t i = 1; i <= 63; i++)
        expect(i, 0, 0, i);
    expect_entries("t", 1, 63);
}

Test(reconnect, pointers_into_an_open_batch_stay_valid)
{
    walrus_batch *batch = new_batch(topic);
    char *first = reserve(batch, 5000), *second = reserve(batch, 100);
    memset(first, 'a', 5000);
    memset(second, 'b', 50);
    fake.hold_writes = true;
    walrus_batch *other = new_batch(topic);
    memset(reserve(other, 3000), 'x', 3000);
    cr_assert_eq(submit(other, 1), 0);
    wait_until_held(1);
    die();
    expect(1, 0, 0, 1);
    memset(second + 50, 'c', 50);
    memset(first + 4000, 'd', 1000);
    memset(reserve(batch, 10), 'e', 10);
    cr_assert_eq(submit(batch, 2), 0);
    expect(2, 0, 0, 2);
    fake_pause(&fake);
    const struct fake_topic *t = fake_topic(&fake, "t");
    cr_assert_eq(t->count, 4);
    for (int i = 0; i < 3000; i++)
        cr_assert_eq(t->entries[0].data[i], 'x');
    for (int i = 0; i < 5000; i++)
        cr_assert_eq(t->entries[1].data[i], i < 4000 ? 'a' : 'd');
    for (int i = 0; i < 100; i++)
        cr_assert_eq(t->entries[2].data[i], i < 50 ? 'b' : 'c');
    cr_assert_eq(t->entries[3].data[9], 'e');
    fake_resume(&fake);
}

Test(reconnect, blocking_writes_notice_nothing)
{
    rule((struct fake_rule){.op = OP_APPEND, .times = 1, .result = FAKE_DIE});
    append("blocking", "first");
    rule((struct fake_rule){.op = OP_APPEND, .times = 1, .result = FAKE_DIE_MUTE});
    struct walrus_receipt receipt;
    cr_assert_eq(walrus_append_for_topic(handle, "blocking", "second", 6, NULL, &receipt), 0);
    cr_assert_eq(receipt.flags, WALRUS_RECEIPT_DUPLICATE);
    cr_assert_eq(receipt.number, 2);
    rule((struct fake_rule){.op = OP_OPEN, .times = 1, .result = FAKE_DIE});
    append("another", "third");
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "blocking")->count, 2);
    cr_assert_eq(fake_topic(&fake, "another")->count, 1);
    fake_resume(&fake);
    cr_assert_eq(info().reconnects, 3);
}

Test(reconnect, a_topic_that_is_being_opened_is_asked_for_again)
{
    rule((struct fake_rule){.op = OP_OPEN, .times = 1, .result = FAKE_DIE_AFTER});
    walrus_topic *other = open_topic(handle, "other");
    rule((struct fake_rule){.op = OP_OPEN, .times = 1, .result = FAKE_DIE});
    walrus_topic *third = open_topic(handle, "third");
    send_one(other, 1);
    expect(1, 0, 0, 1);
    send_one(third, 2);
    expect(2, 0, 0, 1);
    expect_entries("other", 1, 1);
    expect_entries("third", 2, 2);
}

Test(reconnect, a_broker_that_dies_at_each_step_of_coming_back_only_costs_time)
{
    walrus_topic *other = open_topic(handle, "other");
    fake.hold_writes = true;
    send_one(topic, 1);
    send_one(other, 1);
    wait_until_held(2);
    fake_pause(&fake);
    fake.handshake = HANDSHAKE_HANG_UP;
    fake_die(&fake);
    fake.hold_writes = false;
    fake_rule(&fake, (struct fake_rule){.op = OP_OPEN, .times = 1, .result = FAKE_DIE});
    fake_rule(&fake, (struct fake_rule){.op = OP_OPEN, .after = 1, .times = 1, .result = FAKE_DIE_AFTER});
    fake_rule(&fake, (struct fake_rule){.op = OP_BATCH, .after = 1, .times = 1, .result = FAKE_DIE});
    fake_resume(&fake);
    cr_assert_eq(walrus_wait(handle, 1, 20000000), -ETIME);
    fake_pause(&fake);
    fake.handshake = HANDSHAKE_GOOD;
    fake_resume(&fake);
    expect(1, 0, 0, 1);
    expect(1, 0, 0, 1);
    expect_entries("t", 1, 1);
    expect_entries("other", 1, 1);
    cr_assert_geq(fake.lives, 4);
}

Test(reconnect, a_number_below_what_was_answered_says_that_data_was_lost_and_numbers_move_down)
{
    for (uint64_t i = 1; i <= 5; i++) {
        send_one(topic, i);
        expect(i, 0, 0, i);
    }
    fake.hold_writes = true;
    for (uint64_t i = 6; i <= 8; i++)
        send_one(topic, i);
    wait_until_held(3);
    fake_pause(&fake);
    fake_topic(&fake, "t")->last_number = 2; /* 3 to 5 were answered below durable */
    fake_resume(&fake);
    die();
    expect(6, 0, WALRUS_RECEIPT_EARLIER_LOST, 3);
    expect(7, 0, 0, 4);
    expect(8, 0, 0, 5);
    send_one(topic, 9);
    expect(9, 0, 0, 6);
}

Test(reconnect, a_deadline_passes_while_there_is_no_broker)
{
    fake_down(&fake);
    notice();
    struct walrus_write_options options = {.size = sizeof options, .deadline_ns = 1};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options, NULL), -ETIMEDOUT);
    cr_assert_eq(walrus_append_for_topic(handle, "not open yet", "x", 1, &options, NULL), -ETIMEDOUT);
    walrus_batch *batch = new_batch(topic);
    reserve(batch, 8);
    struct walrus_submit_options submit_options = {
        .size = sizeof submit_options, .user_data = 9, .deadline_ns = 1000};
    cr_assert_eq(walrus_batch_submit(batch, &submit_options), 0);
    expect(9, -ETIMEDOUT, 0, 1);
    fake_up(&fake);
    send_one(topic, 1);
    expect(1, 0, 0, 1);
    expect_entries("t", 1, 1);
}

Test(reconnect, what_waited_for_its_turn_waits_again_and_can_be_taken_back)
{
    fake_pause(&fake);
    fake_take_topic(&fake, "t");
    fake_resume(&fake);
    for (uint64_t i = 1; i <= 3; i++) {
        walrus_batch *batch = new_batch(topic);
        memcpy(reserve(batch, sizeof i), &i, sizeof i);
        struct walrus_submit_options options = {.size = sizeof options, .user_data = i, .queue = 1};
        cr_assert_eq(walrus_batch_submit(batch, &options), 0);
    }
    die();
    cr_assert_eq(walrus_cancel(handle, 3), 0, "%s", walrus_error(handle));
    cr_assert_eq(info().reconnects, 1);
    expect(3, -ECANCELED, 0, 3);
    fake_pause(&fake);
    cr_assert_eq(fake.waiting_count, 2);
    fake_free_topic(&fake, "t");
    fake_resume(&fake);
    expect(1, 0, 0, 1);
    expect(2, 0, 0, 2);
    expect_entries("t", 1, 2);
}

Test(reconnect, who_waits_for_a_try_may_have_it_when_the_broker_is_gone)
{
    fake_pause(&fake);
    fake_take_topic(&fake, "t");
    fake_resume(&fake);
    walrus_batch *batch = new_batch(topic);
    reserve(batch, 8);
    struct walrus_submit_options options = {.size = sizeof options, .user_data = 5, .notify = 1};
    cr_assert_eq(walrus_batch_submit(batch, &options), 0);
    expect(5, -EBUSY, WALRUS_RECEIPT_MORE, 1);
    fake_pause(&fake);
    fake_topic(&fake, "t")->other = false;
    fake_resume(&fake);
    die();
    expect(5, 0, WALRUS_RECEIPT_TRY_NOW, 0);
    send_one(topic, 1);
    expect(1, 0, 0, 1);
}

Test(reconnect_otherwise, watermarks_stay_and_then_are_those_of_the_new_broker)
{
    fake.watermark_slots = 1000;
    WITH(.producer = "me");
    fake_pause(&fake);
    fake.watermarks[2] = (struct watermark){.written_next = 50, .durable_next = 40};
    fake_resume(&fake);
    cr_assert_eq(walrus_topic_durable_next(topic), 40);
    int maps = mappings();
    fake_down(&fake);
    notice();
    cr_assert_eq(walrus_topic_durable_next(topic), 40);
    fake.hold_opens = true;
    fake_up(&fake);
    fake_pause(&fake);
    fake_resume(&fake);
    for (uint32_t held = 0; held < 1;) { /* until it is reopening */
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
        fake_pause(&fake);
        held = fake.held_count;
        if (held > 0) {
            fake.watermarks[2] = (struct watermark){.written_next = 7, .durable_next = 6};
            fake.watermarks[3] = (struct watermark){.written_next = 70, .durable_next = 60};
        }
        fake_resume(&fake);
    }
    cr_assert_eq(walrus_topic_durable_next(topic), 40);
    fake_pause(&fake);
    fake.slot_shift = 1;
    fake.hold_opens = false;
    fake_answer_held(&fake, fake.held_count);
    fake_resume(&fake);
    send_one(topic, 1);
    expect(1, 0, 0, 1);
    cr_assert_eq(walrus_topic_durable_next(topic), 60);
    cr_assert_eq(walrus_topic_written_next(topic), 70);
    cr_assert_eq(mappings(), maps);
    end();
}

Test(reconnect, what_a_broker_that_stops_did_not_take_is_sent_to_the_next_one)
{
    rule((struct fake_rule){.op = OP_BATCH, .after = 1, .times = 3, .result = -ESHUTDOWN});
    for (uint64_t i = 1; i <= 4; i++)
        send_one(topic, i);
    expect(1, 0, 0, 1);
    for (uint64_t taken = 0; taken < 5; sched_yield()) { /* OPEN and four batches */
        fake_pause(&fake);
        taken = fake.answered;
        fake_resume(&fake);
    }
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
    cr_assert_eq(walrus_in_flight(handle), 3);
    die();
    for (uint64_t i = 2; i <= 4; i++)
        expect(i, 0, 0, i);
    expect_entries("t", 1, 4);
}

Test(reconnect, a_topic_may_be_closed_while_it_is_opened_again)
{
    walrus_topic *other = open_topic(handle, "other");
    fake_down(&fake);
    notice();
    fake.hold_opens = true;
    fake_up(&fake);
    for (uint32_t held = 0; held < 2;) { /* until it is reopening */
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
        fake_pause(&fake);
        held = fake.held_count;
        fake_resume(&fake);
    }
    walrus_topic_close(other);
    fake_pause(&fake);
    fake.hold_opens = false;
    fake_answer_held(&fake, fake.held_count);
    cr_assert_eq(fake.seen[OP_CLOSE], 0);
    fake_resume(&fake);
    send_one(topic, 1);
    expect(1, 0, 0, 1);
    for (uint64_t closed = 0; closed == 0; sched_yield()) {
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
        walrus_topic_close(open_topic(handle, "another"));
        fake_pause(&fake);
        closed = fake.seen[OP_CLOSE];
        fake_resume(&fake);
    }
}

Test(reconnect, a_new_name_is_not_asked_for_while_the_others_are_opened_again)
{
    append("one", "1");
    append("two", "2");
    fake_down(&fake);
    notice();
    fake.hold_opens = true;
    fake_up(&fake);
    for (uint32_t held = 0; held < 3;) { /* until it is reopening */
        struct walrus_completion c;
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
        fake_pause(&fake);
        held = fake.held_count;
        fake_resume(&fake);
    }
    struct walrus_write_options options = {.size = sizeof options, .deadline_ns = 1000000};
    cr_assert_eq(walrus_append_for_topic(handle, "xxxxxxxx", "x", 1, &options, NULL), -ETIMEDOUT);
    fake_pause(&fake);
    fake.hold_opens = false;
    fake_answer_held(&fake, fake.held_count);
    fake_resume(&fake);
    append("one", "1");
    append("two", "2");
    append("xxxxxxxx", "3");
    fake_pause(&fake);
    cr_assert_eq(fake.topic_count, 4);
    cr_assert_eq(fake_topic(&fake, "one")->count, 2);
    cr_assert_eq(fake_topic(&fake, "two")->count, 2);
    cr_assert_eq(fake_topic(&fake, "xxxxxxxx")->count, 1);
    fake_resume(&fake);
}

/* --------------------------------------------------------------------------------------- streams */

static char large[200000];

static void fill_large(void)
{
    for (size_t i = 0; i < sizeof large; i++)
        large[i] = (char)(i * 31 + i / 1000);
}

static void add_large(walrus_batch *batch, int count)
{
    fill_large();
    for (int i = 0; i < count; i++) {
        int code = walrus_batch_add(batch, large, sizeof large);
        cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    }
}

Test(reconnect, an_open_stream_has_failed_and_its_topic_is_free)
{
    walrus_batch *batch = new_batch(topic);
    add_large(batch, 5);
    die();
    append("other", "until it is connected again");
    cr_assert_eq(walrus_batch_add(batch, large, sizeof large), -ECANCELED);
    cr_assert_eq(submit(batch, 1), 0);
    expect(1, -ECANCELED, 0, 0);
    send_one(topic, 2);
    expect(2, 0, 0, 1);
    expect_entries("t", 2, 2);
    batch = new_batch(topic);
    add_large(batch, 5);
    die();
    walrus_batch_abort(batch);
    send_one(topic, 3);
    expect(3, 0, 0, 2);
    expect_entries("t", 2, 3);
}

/* The first chunk of another stream is answered, later ones will not be. */
static void hold_the_rest(uint64_t chunks_before)
{
    for (bool seen = false; !seen; sched_yield()) {
        fake_pause(&fake);
        seen = fake.seen[OP_CHUNK] > chunks_before;
        fake.hold_writes = seen;
        fake_resume(&fake);
    }
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
}

Test(reconnect, g5_a_stream_whose_end_was_sent_is_a_duplicate_or_cancelled)
{
    walrus_batch *batch = new_batch(topic);
    add_large(batch, 4);
    hold_the_rest(0);
    cr_assert_eq(submit(batch, 1), 0);
    wait_until_held(1);
    die(); /* not committed */
    expect(1, -ECANCELED, 0, 1);
    uint64_t chunks = fake.seen[OP_CHUNK];
    batch = new_batch(topic);
    add_large(batch, 4);
    hold_the_rest(chunks);
    cr_assert_eq(submit(batch, 2), 0);
    wait_until_held(1);
    fake_pause(&fake);
    fake.mute = true; /* all of what is held is done, and not answered */
    fake_answer_held(&fake, fake.held_count);
    fake.mute = false;
    fake_resume(&fake);
    die();
    expect(2, 0, WALRUS_RECEIPT_DUPLICATE, 1);
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "t")->count, 4);
    fake_resume(&fake);
    send_one(topic, 3);
    expect(3, 0, 0, 2);
}

Test(reconnect, g5_a_stream_that_still_waited_for_its_turn_is_sent_again_from_its_first_chunk)
{
    for (uint64_t round = 1; round <= 2; round++) {
        fake.hold_writes = true;
        walrus_batch *batch = new_batch(topic);
        add_large(batch, 3); /* what fits of it into the arena is on its way */
        cr_assert_eq(submit(batch, round), 0);
        wait_until_held(3);
        if (round == 1) {
            die();
            expect(1, 0, 0, 1);
        } else { /* everything is done, nothing answered */
            fake_pause(&fake);
            fake.mute = true;
            fake_answer_held(&fake, fake.held_count);
            fake.mute = false;
            fake_resume(&fake);
            die();
            expect(2, 0, WALRUS_RECEIPT_DUPLICATE, 2);
        }
        fake_pause(&fake);
        const struct fake_topic *t = fake_topic(&fake, "t");
        cr_assert_eq(t->count, 3 * round);
        for (uint64_t i = 0; i < t->count; i++)
            cr_assert_eq(memcmp(t->entries[i].data, large, sizeof large), 0);
        fake_resume(&fake);
    }
    cr_assert_eq(info().reconnects, 2);
}

Test(reconnect, a_stream_may_begin_while_there_is_no_broker)
{
    fake_down(&fake);
    notice();
    walrus_batch *batch = new_batch(topic);
    cr_assert_eq(walrus_batch_add(batch, large, sizeof large), 0);
    cr_assert_eq(walrus_batch_add(batch, large, sizeof large), 0);
    fake_up(&fake);
    add_large(batch, 6);
    cr_assert_eq(submit(batch, 1), 0);
    expect(1, 0, 0, 1);
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "t")->count, 8);
    fake_resume(&fake);
}

/* ----------------------------------------------------------------------------------------- reads */

static walrus_entries *read_from(const char *name, uint64_t from, int64_t follow_ns)
{
    walrus_entries *entries = NULL;
    struct walrus_read_options options = {.size = sizeof options, .follow_ns = follow_ns};
    int code = walrus_batch_read_for_topic(handle, name, from, &options, &entries);
    cr_assert_gt(code, 0, "%d: %s", code, walrus_error(handle));
    return entries;
}

static void expect_text(const walrus_entries *entries, size_t index, const char *text)
{
    struct walrus_entry entry;
    cr_assert_eq(walrus_entries_get(entries, index, &entry), 1);
    cr_assert_eq(entry.length, strlen(text));
    cr_assert_eq(memcmp(entry.data, text, strlen(text)), 0);
}

Test(reconnect, what_was_read_stays_readable_until_it_is_released)
{
    append("r", "one");
    append("r", "two");
    int maps = mappings();
    walrus_entries *first = read_from("r", 1, 0), *second = read_from("r", 2, 0);
    die();
    append("r", "three");
    walrus_entries *third = read_from("r", 3, 0);
    cr_assert_eq(mappings(), maps + 1);
    expect_text(first, 0, "one");
    expect_text(first, 1, "two");
    expect_text(second, 0, "two");
    expect_text(third, 0, "three");
    walrus_entries_release(first);
    expect_text(second, 0, "two");
    cr_assert_eq(mappings(), maps + 1);
    walrus_entries_release(second);
    cr_assert_eq(mappings(), maps);
    expect_text(third, 0, "three");
    die();
    append("r", "four");
    walrus_entries *fourth = read_from("r", 4, 0);
    expect_text(fourth, 0, "four");
    cr_assert_eq(mappings(), maps + 1); /* the third one's */
    walrus_entries_release(fourth);
}

Test(reconnect, reads_and_follows_are_asked_again)
{
    append("r", "one");
    rule((struct fake_rule){.op = OP_READ, .times = 1, .result = FAKE_DIE});
    walrus_entries *entries = read_from("r", 1, 0);
    expect_text(entries, 0, "one");
    walrus_entries_release(entries);
    rule((struct fake_rule){.op = OP_READ, .times = 1, .result = FAKE_DIE_AFTER});
    entries = read_from("r", 1, 0);
    expect_text(entries, 0, "one");
    append("r", "two");
    walrus_entries_release(entries);
    rule((struct fake_rule){.op = OP_READ, .times = 1, .result = FAKE_DIE});
    entries = read_from("r", 2, -1);
    expect_text(entries, 0, "two");
    walrus_entries_release(entries);
    rule((struct fake_rule){.op = OP_TOPICS, .times = 1, .result = FAKE_DIE});
    struct walrus_topic_info about = {.size = sizeof about};
    cr_assert_eq(walrus_next_topic(handle, &about), 1, "%s", walrus_error(handle));
    cr_assert_str_eq(about.name, "r");
    cr_assert_eq(info().reconnects, 4);
}

Test(reconnect, an_entry_that_comes_in_pieces_goes_on_where_it_was)
{
    static char huge[2000000];
    for (size_t i = 0; i < sizeof huge; i++)
        huge[i] = (char)(i * 7 + i / 4096);
    cr_assert_eq(walrus_append_for_topic(handle, "h", huge, sizeof huge, NULL, NULL), 0);
    rule((struct fake_rule){.op = OP_READ, .after = 3, .times = 1, .result = FAKE_DIE});
    walrus_entries *entries = read_from("h", 1, 0);
    struct walrus_entry entry;
    cr_assert_eq(walrus_entries_get(entries, 0, &entry), 1);
    cr_assert_eq(entry.length, sizeof huge);
    cr_assert_eq(memcmp(entry.data, huge, sizeof huge), 0);
    cr_assert_eq(info().reconnects, 1);
    walrus_entries_release(entries);
}

Test(reconnect, a_question_about_a_number_is_asked_again)
{
    send_one(topic, 1);
    expect(1, 0, 0, 1);
    rule((struct fake_rule){.op = OP_QUERY, .times = 1, .result = FAKE_DIE});
    struct walrus_receipt receipt;
    cr_assert_eq(walrus_query(topic, 1, &receipt), 1, "%s", walrus_error(handle));
    cr_assert_eq(walrus_query(topic, 2, &receipt), 0, "%s", walrus_error(handle));
    cr_assert_eq(info().reconnects, 1);
}

/* ---------------------------------------------------------------------------------------- the fd */

/* An event loop that does nothing but poll and reap. Counts its turns. */
static uint32_t loop_until(uint64_t wanted, int timeout_ms)
{
    uint32_t turns = 0;
    uint64_t got = 0;
    while (got < wanted) {
        struct pollfd fd = {.fd = walrus_fd(handle), .events = POLLIN};
        if (poll(&fd, 1, timeout_ms) == 0)
            break;
        turns++;
        struct walrus_completion c[8];
        int n = walrus_reap(handle, c, 8);
        cr_assert_geq(n, 0, "%s", walrus_error(handle));
        for (int i = 0; i < n; i++)
            cr_assert_eq(c[i].result, 0);
        got += (uint64_t)n;
    }
    return turns;
}

Test(reconnect, a_loop_that_only_polls_the_fd_and_reaps_gets_everything)
{
    for (uint64_t round = 0; round < 10; round++) {
        fake.hold_writes = true;
        for (uint64_t i = 1; i <= 20; i++)
            send_one(topic, 20 * round + i);
        wait_until_held(20);
        die();
        loop_until(20, -1);
    }
    expect_entries("t", 1, 200);
    cr_assert_eq(info().reconnects, 10);
    cr_assert(!fd_readable(handle));
}

/* Without a broker the loop wakes for the attempts only: pauses from 2 ms up to 1 s, each at least half of its
 * bound, so however slow the machine is, there are few in half a second. */
Test(reconnect, the_fd_is_not_readable_while_nothing_can_be_done)
{
    cr_assert(!fd_readable(handle));
    fake_down(&fake);
    uint32_t turns = 0;
    struct timespec begin, now;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    do {
        turns += loop_until(1, 100);
        clock_gettime(CLOCK_MONOTONIC, &now);
        cr_assert_lt(turns, 40);
    } while (turns < 6 && (now.tv_sec - begin.tv_sec) < 10);
    send_one(topic, 1);
    fake_up(&fake);
    loop_until(1, -1);
    expect_entries("t", 1, 1);
}

Test(reconnect, a_broker_that_accepts_and_says_nothing_does_not_keep_the_loop_busy)
{
    fake_pause(&fake);
    fake.handshake = HANDSHAKE_SILENT;
    fake_die(&fake);
    fake_resume(&fake);
    uint32_t turns = loop_until(1, 50);
    cr_assert_lt(turns, 20);
    cr_assert(!fd_readable(handle));
    fake_pause(&fake);
    fake.handshake = HANDSHAKE_GOOD;
    fake_die(&fake);
    fake_resume(&fake);
    send_one(topic, 1);
    loop_until(1, -1);
}

Test(reconnect, completions_that_were_not_reaped_keep_the_fd_readable_while_there_is_no_broker)
{
    cr_assert(!fd_readable(handle));
    send_one(topic, 1);
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert(fd_readable(handle));
    fake_down(&fake);
    struct walrus_write_options soon = {.size = sizeof soon, .deadline_ns = 1000000, .user_data = 2};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &soon, NULL), -EINPROGRESS);
    for (int i = 0; i < 3; i++) {
        struct walrus_completion none;
        cr_assert_eq(walrus_reap(handle, &none, 0), 0);
        cr_assert_eq(walrus_wait(handle, 1, 0), 0);
        cr_assert(fd_readable(handle));
    }
    fake_up(&fake);
    append("other", "until it is connected again");
    cr_assert_eq(info().reconnects, 1);
    cr_assert(fd_readable(handle));
    expect(1, 0, 0, 1);
    expect(2, 0, 0, 2);
    cr_assert(!fd_readable(handle));
}

Test(reconnect, a_signal_that_came_with_the_hang_up_does_not_keep_the_loop_busy)
{
    cr_assert(!fd_readable(handle));
    fake.hold_writes = true;
    send_one(topic, 1);
    wait_until_held(1);
    fake_pause(&fake);
    fake_answer_held(&fake, 1);
    fake_resume(&fake);
    fake_down(&fake);
    cr_assert_lt(loop_until(1, -1), 40);
    uint32_t turns = 0;
    for (int i = 0; i < 3; i++) {
        struct walrus_completion c;
        struct pollfd fd = {.fd = walrus_fd(handle), .events = POLLIN};
        for (; turns < 60 && poll(&fd, 1, 60) == 1; turns++)
            cr_assert_eq(walrus_reap(handle, &c, 1), 0);
    }
    cr_assert_lt(turns, 60);
}

Test(reconnect_otherwise, the_timer_of_the_attempts_is_quiet_once_it_is_connected)
{
    WITH(.reconnect_ns = 20000000, .timeout_ns = 20000000);
    die();
    append("t", "x");
    struct walrus_completion c;
    cr_assert(!fd_readable(handle));
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
    struct pollfd fd = {.fd = walrus_fd(handle), .events = POLLIN};
    cr_assert_eq(poll(&fd, 1, 100), 0);
    cr_assert_eq(info().reconnects, 1);
    end();
}

/* --------------------------------------------------------------------------------- ends and refusals */

Test(reconnect_otherwise, gives_up_after_its_time_and_says_so)
{
    WITH(.reconnect_ns = 30000000);
    walrus_fd(handle);
    fake.hold_writes = true;
    send_one(topic, 1);
    send_one(topic, 2);
    wait_until_held(2);
    fake_down(&fake);
    expect(1, -ECONNRESET, 0, 1);
    expect(2, -ECONNRESET, 0, 2);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), -ECONNRESET);
    cr_assert_not_null(strstr(walrus_error(handle), "0.03 s"), "%s", walrus_error(handle));
    cr_assert_not_null(strstr(walrus_error(handle), "no such socket"), "%s", walrus_error(handle));
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic, &batch), -ECONNRESET);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), -ECONNRESET);
    for (int i = 0; i < 3; i++) {
        cr_assert(fd_readable(handle));
        cr_assert_eq(walrus_reap(handle, &c, 1), -ECONNRESET);
    }
    end();
}

/* The next `times` hellos are refused; the connection before is gone. */
static void refuse(int status, uint32_t times)
{
    fake_pause(&fake);
    fake.handshake = HANDSHAKE_REFUSE;
    fake.refuse_status = status;
    fake.refuse_text = "the words of the refusal";
    fake.refuse_times = times;
    fake_die(&fake);
    fake.hold_writes = false;
    fake_resume(&fake);
}

Test(reconnect_otherwise, a_name_that_is_still_held_by_our_dead_predecessor_is_asked_for_again)
{
    WITH(.producer = "me");
    cr_assert_eq(fake.hello.name_bytes, 2);
    fake.hold_writes = true;
    send_one(topic, 1);
    wait_until_held(1);
    refuse(-EBUSY, 3);
    expect(1, 0, 0, 1);
    cr_assert_eq(fake.hello.name_bytes, 2);
    cr_assert_eq(fake.hello.producer, 0);
    cr_assert_str_eq(fake.hello.name, "me");
    expect_entries("t", 1, 1);
    end();
}

Test(reconnect_otherwise, what_clears_by_itself_is_waited_for)
{
    static const int codes[] = {-ESHUTDOWN, -EDQUOT, -EAGAIN, -ENOMEM};
    WITH(.producer = "me");
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        refuse(codes[i], 1);
        append("t", "x");
    }
    cr_assert_eq(info().reconnects, 4);
    end();
}

Test(reconnect_otherwise, what_never_clears_ends_the_handle_with_the_words_of_the_broker)
{
    static const int codes[] = {-ESTALE, -EACCES, -EPROTO, -EINVAL, -EOPNOTSUPP, -ENODATA};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        memset(&fake, 0, sizeof fake);
        WITH(.producer = "me");
        fake.hold_writes = true;
        send_one(topic, 1);
        wait_until_held(1);
        bool never = codes[i] != -ENODATA; /* means nothing for a name: tried again */
        refuse(codes[i], never ? 0 : 1);
        expect(1, never ? -ECONNRESET : 0, 0, 1);
        struct walrus_completion c;
        if (never) {
            cr_assert_eq(walrus_reap(handle, &c, 1), codes[i]);
            cr_assert_not_null(strstr(walrus_error(handle), "the words of the refusal"));
            cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), codes[i]);
            cr_assert(fd_readable(handle));
        }
        end();
    }
}

Test(reconnect_otherwise, a_broker_with_other_sizes_ends_the_handle)
{
    WITH(.producer = "me");
    fake_pause(&fake);
    fake.queue_entries = 128;
    fake_die(&fake);
    fake_resume(&fake);
    expect_lost(-EPROTO, "other sizes");
    end();
}

Test(reconnect, a_topic_that_cannot_be_opened_now_is_opened_later)
{
    rule((struct fake_rule){.op = OP_OPEN, .times = 2, .result = -EAGAIN, .reason = REASON_MEMORY});
    rule((struct fake_rule){.op = OP_OPEN, .times = 1, .result = -ESHUTDOWN});
    die();
    send_one(topic, 1);
    expect(1, 0, 0, 1);
    cr_assert_eq(info().reconnects, 1);
}

Test(reconnect, a_topic_that_can_never_be_opened_ends_the_handle)
{
    rule((struct fake_rule){.op = OP_OPEN, .times = 1, .result = -EDQUOT});
    die();
    expect_lost(-ECONNRESET, "topic \"t\"");
}

Test(reconnect, a_broker_that_answers_nonsense_while_topics_are_opened_ends_the_handle)
{
    rule((struct fake_rule){.op = OP_OPEN, .times = 1, .result = FAKE_NOT_ASKED});
    die();
    expect_lost(-EPROTO, "not asked");
    walrus_close(handle);
    fake_stop(&fake);
    memset(&fake, 0, sizeof fake);
    begin();
    rule((struct fake_rule){.op = OP_OPEN, .times = 1, .result = FAKE_WILD_TAIL});
    die();
    expect_lost(-EPROTO, "impossible");
}

/* ------------------------------------------------------------------------------------- producers */

Test(reconnect, an_anonymous_producer_is_asked_for_by_its_id)
{
    uint64_t id = info().producer;
    cr_assert_neq(id, 0);
    send_one(topic, 1);
    expect(1, 0, 0, 1);
    die();
    send_one(topic, 2);
    expect(2, 0, 0, 2);
    cr_assert_eq(info().producer, id);
    cr_assert_eq(fake.hello.producer, id);
}

Test(reconnect, an_anonymous_producer_that_never_committed_goes_on_with_a_new_id)
{
    uint64_t id = info().producer;
    fake.hold_writes = true;
    for (uint64_t i = 1; i <= 5; i++)
        send_one(topic, i);
    wait_until_held(5);
    fake.forgets = true;
    die();
    for (uint64_t i = 1; i <= 5; i++)
        expect(i, 0, 0, i);
    expect_entries("t", 1, 5);
    cr_assert_neq(info().producer, id);
}

Test(reconnect, a_forgotten_producer_does_not_know_what_was_committed_and_begins_anew)
{
    send_one(topic, 1);
    expect(1, 0, 0, 1);
    fake.hold_writes = true;
    send_one(topic, 2);
    send_one(topic, 3);
    wait_until_held(2);
    refuse(-ENODATA, 1);
    fake.forgets = true;
    fake_pause(&fake);
    fake_topic(&fake, "t")->last_number = 0;
    fake_resume(&fake);
    expect(2, -ECONNRESET, 0, 2);
    expect(3, -ECONNRESET, 0, 3);
    send_one(topic, 4);
    expect(4, 0, 0, 1);
    send_one(topic, 5);
    expect(5, 0, 0, 2);
    cr_assert_eq(walrus_topic_last_number(topic), 2);
    cr_assert_eq(info().reconnects, 1);
}

Test(reconnect_otherwise, a_name_is_taken_over_once_and_never_by_coming_back)
{
    WITH(.producer = "me", .flags = WALRUS_TAKE_OVER);
    cr_assert_eq(fake.hello.flags, HELLO_TAKE_OVER);
    die();
    append("t", "x");
    cr_assert_eq(fake.hello.flags, 0);
    end();
}

Test(reconnect_otherwise, who_was_fenced_does_not_come_back)
{
    WITH(.producer = "me");
    rule((struct fake_rule){.op = OP_BATCH, .times = 1, .result = -ESTALE});
    send_one(topic, 1);
    expect(1, -ESTALE, 0, 1);
    die();
    expect_lost(-ESTALE, "took over");
    cr_assert_eq(fake.lives, 1);
    end();
}

Test(reconnect_otherwise, the_last_attempt_is_made_after_a_call_however_late_it_comes)
{
    WITH(.reconnect_ns = 1);
    fake.hold_writes = true;
    send_one(topic, 1);
    wait_until_held(1);
    die(); /* the socket is there */
    expect(1, 0, 0, 1);
    end();
}

Test(reconnect_otherwise, without_the_flag_a_lost_connection_is_the_end_and_says_so)
{
    fake_start(&fake);
    handle = CONNECT(&fake, .producer = "me");
    topic = open_topic(handle, "t");
    walrus_batch *batch = new_batch(topic);
    char *kept = reserve(batch, 100);
    memset(kept, 'k', 100);
    fake.hold_writes = true;
    send_one(topic, 1);
    wait_until_held(1);
    die();
    expect(1, -ECONNRESET, 0, 1);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), -ECONNRESET);
    cr_assert_not_null(strstr(walrus_error(handle), "connect again"));
    cr_assert_not_null(strstr(walrus_error(handle), "can be read until walrus_close"));
    cr_assert_eq(fake.lives, 1);
    for (int i = 0; i < 100; i++)
        cr_assert_eq(kept[i], 'k');
    end();
}

/* ------------------------------------------------------------------------------ processes, leaks */

Test(reconnect, two_hundred_reconnections_leak_no_descriptor_and_no_mapping)
{
    append("r", "one");
    die();
    append("r", "one");
    int fds = open_fds(), maps = mappings();
    for (uint64_t i = 1; i <= 200; i++) {
        walrus_entries *held = read_from("r", 1, 0);
        if (i % 3 == 0)
            refuse(-EBUSY, 1);
        else if (i % 3 == 1)
            rule((struct fake_rule){.op = OP_BATCH, .times = 1, .result = FAKE_DIE});
        send_one(topic, i);
        expect(i, 0, 0, i);
        walrus_entries_release(held);
        fake_pause(&fake);
        fake.rule_count = 0;
        fake_resume(&fake);
    }
    cr_assert_geq(info().reconnects, 133);
    cr_assert_eq(open_fds(), fds);
    cr_assert_eq(mappings(), maps);
}

Test(reconnect, a_forked_child_can_do_nothing_with_it_and_does_not_hold_the_old_connection)
{
    cr_assert(!fd_readable(handle));
    int ready[2], done[2];
    cr_assert_eq(pipe(ready), 0);
    cr_assert_eq(pipe(done), 0);
    pid_t child = fork();
    if (child == 0) {
        close(done[1]); /* it ends with its parent, however that ends */
        struct walrus_completion c;
        char byte = walrus_reap(handle, &c, 1) == -EOWNERDEAD &&
                    walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL) == -EOWNERDEAD;
        if (write(ready[1], &byte, 1) != 1 || read(done[0], &byte, 1) != 1)
            _exit(2);
        walrus_close(handle);
        _exit(0);
    }
    char byte = 0;
    cr_assert_eq(read(ready[0], &byte, 1), 1);
    cr_assert_eq(byte, 1);
    /* The child keeps all descriptors. */
    for (uint64_t i = 1; i <= 3; i++) {
        die();
        send_one(topic, i);
        loop_until(1, -1);
        cr_assert(!fd_readable(handle));
    }
    expect_entries("t", 1, 3);
    cr_assert_eq(write(done[1], &byte, 1), 1);
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0);
    send_one(topic, 4);
    expect(4, 0, 0, 4);
}

Test(reconnect, no_signal_is_raised_when_the_broker_hangs_up_at_the_worst_moments)
{
    cr_assert_eq(signal(SIGPIPE, SIG_DFL), SIG_DFL);
    for (int i = 0; i < 20; i++) {
        fake_pause(&fake);
        fake.handshake = i % 2 == 0 ? HANDSHAKE_HANG_UP : HANDSHAKE_GOOD;
        fake_die(&fake);
        fake_resume(&fake);
        cr_assert_eq(walrus_wait(handle, 0, 0), 0);
        struct walrus_completion c;
        walrus_fd(handle);
        cr_assert_eq(walrus_reap(handle, &c, 1), 0);
    }
    fake_pause(&fake);
    fake.handshake = HANDSHAKE_GOOD;
    fake_resume(&fake);
    send_one(topic, 1);
    expect(1, 0, 0, 1);
}

Test(reconnect, a_handle_is_closed_in_any_state)
{
    fake.hold_writes = true;
    walrus_batch *batch = new_batch(topic);
    reserve(batch, 10);
    send_one(topic, 1);
    wait_until_held(1);
    fake_down(&fake);
    struct walrus_completion c;
    cr_assert_eq(walrus_wait(handle, 1, 5000000), -ETIME);
    cr_assert_eq(walrus_reap(handle, &c, 1), 0);
}
