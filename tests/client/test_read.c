/* Blocking reads, the window, pieces, following, the catalogue. */
#include "fake.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <sys/time.h>

static struct fake fake;
static walrus *handle;

static void begin(void)
{
    fake_start(&fake);
    handle = CONNECT(&fake, .queue_entries = 16, .window_bytes = MIN_WINDOW_BYTES);
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(read, .init = begin, .fini = end);

static uint8_t *pattern(size_t length, uint64_t seed)
{
    uint8_t *data = malloc(length + 1);
    for (size_t i = 0; i < length; i++)
        data[i] = (uint8_t)(i * 7 + (i >> 8) * 13 + seed);
    return data;
}

static void append(const char *topic, size_t length, uint64_t seed)
{
    uint8_t *data = pattern(length, seed);
    int code = walrus_append_for_topic(handle, topic, data, length, NULL, NULL);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    free(data);
}

static int read_from(uint64_t from, struct walrus_read_options options, walrus_entries **entries)
{
    options.size = sizeof options;
    return walrus_batch_read_for_topic(handle, "t", from, &options, entries);
}

static void expect(const walrus_entries *entries, size_t index, uint64_t sequence, size_t length,
                   uint64_t seed)
{
    struct walrus_entry e;
    cr_assert_eq(walrus_entries_get(entries, index, &e), 1);
    cr_assert_eq(e.sequence, sequence);
    cr_assert_eq(e.length, length);
    cr_assert_eq((uintptr_t)e.data % 16, 0);
    cr_assert_eq(e.epoch, 7);
    cr_assert_eq(e.time_ns, 1000 + sequence);
    uint8_t *data = pattern(length, seed);
    cr_assert_eq(memcmp(e.data, data, length), 0);
    free(data);
}

Test(read, returns_what_was_written)
{
    for (uint64_t i = 1; i <= 50; i++)
        append("t", i * 3, i);
    walrus_entries *entries;
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 0, NULL, &entries), 50);
    cr_assert_eq(walrus_entries_count(entries), 50);
    for (uint64_t i = 1; i <= 50; i++)
        expect(entries, i - 1, i, i * 3, i);
    cr_assert_eq(walrus_entries_next(entries), 51);
    struct walrus_entry e;
    cr_assert_eq(walrus_entries_get(entries, 50, &e), 0);
    cr_assert_eq(walrus_entries_get(NULL, 0, &e), 0);
    cr_assert_eq(walrus_entries_get(entries, 0, NULL), 0);
    walrus_entries_release(entries);
    walrus_entries_release(NULL);
    cr_assert_eq(walrus_entries_count(NULL), 0);
    cr_assert_eq(walrus_entries_next(NULL), 0);
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 51, NULL, &entries), 0);
    cr_assert_null(entries);
}

Test(read, honours_max_entries_and_max_bytes)
{
    for (uint64_t i = 1; i <= 20; i++)
        append("t", 100, i);
    walrus_entries *entries;
    cr_assert_eq(read_from(3, (struct walrus_read_options){.max_entries = 4}, &entries), 4);
    expect(entries, 0, 3, 100, 3);
    cr_assert_eq(walrus_entries_next(entries), 7);
    walrus_entries_release(entries);
    cr_assert_eq(read_from(1, (struct walrus_read_options){.max_bytes = 350}, &entries), 3);
    walrus_entries_release(entries);
    cr_assert_eq(read_from(1, (struct walrus_read_options){.max_bytes = 1}, &entries), 1); /* at least one */
    walrus_entries_release(entries);
}

Test(read, goes_round_the_window)
{
    for (uint64_t i = 1; i <= 300; i++)
        append("t", (i * 977) % 5000, i);
    uint64_t from = 1;
    while (from <= 300) {
        walrus_entries *entries;
        int count = walrus_batch_read_for_topic(handle, "t", from, NULL, &entries);
        cr_assert_gt(count, 0, "%d: %s", count, walrus_error(handle));
        for (int i = 0; i < count; i++)
            expect(entries, (size_t)i, from + (uint64_t)i, ((from + (uint64_t)i) * 977) % 5000,
                   from + (uint64_t)i);
        from = walrus_entries_next(entries);
        walrus_entries_release(entries);
    }
    cr_assert_eq(from, 301);
}

Test(read, entries_larger_than_the_window_are_assembled)
{
    append("t", 10, 1);
    append("t", 1000003, 2);
    append("t", 0, 3);
    walrus_entries *entries;
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, NULL, &entries),
                 1); /* the large one is for the next read */
    expect(entries, 0, 1, 10, 1);
    uint64_t next = walrus_entries_next(entries);
    cr_assert_eq(next, 2);
    walrus_entries_release(entries);
    walrus_entries *large;
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", next, NULL, &large), 1, "%s", walrus_error(handle));
    expect(large, 0, 2, 1000003, 2);
    cr_assert_eq(walrus_entries_next(large), 3);
    /* It holds no window: others can be read beside it. */
    walrus_entries *again;
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", next, NULL, &again), 1, "%s", walrus_error(handle));
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 3, NULL, &entries), 1);
    expect(entries, 0, 3, 0, 3);
    walrus_entries_release(large);
    expect(again, 0, 2, 1000003, 2);
    walrus_entries_release(entries);
    walrus_entries_release(again);
}

Test(read, an_entry_of_exactly_the_window_or_a_little_more_or_less)
{
    size_t lengths[] = {MIN_WINDOW_BYTES - 80,
                        MIN_WINDOW_BYTES - 79,
                        MIN_WINDOW_BYTES,
                        MIN_WINDOW_BYTES + 1,
                        2 * MIN_WINDOW_BYTES,
                        61440,
                        61441,
                        61439};
    for (uint64_t i = 0; i < array_count(lengths); i++)
        append("t", lengths[i], i);
    for (uint64_t i = 0; i < array_count(lengths); i++) {
        walrus_entries *entries;
        int count = walrus_batch_read_for_topic(handle, "t", i + 1, NULL, &entries);
        cr_assert_geq(count, 1, "%zu: %s", lengths[i], walrus_error(handle));
        expect(entries, 0, i + 1, lengths[i], i);
        walrus_entries_release(entries);
    }
}

Test(read, entries_may_be_released_in_any_order)
{
    walrus_close(handle);
    handle = CONNECT(&fake, .window_bytes = 2 * MIN_WINDOW_BYTES);
    for (uint64_t i = 1; i <= 40; i++)
        append("t", 2000, i);
    walrus_entries *held[4];
    for (uint64_t round = 0; round < 6; round++) {
        for (uint64_t i = 0; i < 4; i++)
            cr_assert_eq(read_from(1 + i * 4, (struct walrus_read_options){.max_entries = 4}, &held[i]), 4,
                         "%s", walrus_error(handle));
        static const int order[6][4] = {{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 3, 0, 2},
                                        {2, 0, 3, 1}, {3, 0, 1, 2}, {1, 0, 3, 2}};
        for (int i = 0; i < 4; i++) {
            for (uint64_t k = 0; k < 4; k++)
                expect(held[order[round][i]], k, 1 + (uint64_t)order[round][i] * 4 + k, 2000,
                       1 + (uint64_t)order[round][i] * 4 + k);
            walrus_entries_release(held[order[round][i]]);
        }
    }
    fake_pause(&fake);
    cr_assert_eq(fake.client->window_head, fake.window_tail);
}

Test(read, a_full_window_says_so_until_something_is_released)
{
    for (uint64_t i = 1; i <= 3; i++)
        append("t", 28000, i);
    walrus_entries *one, *two, *three = (walrus_entries *)handle;
    cr_assert_eq(read_from(1, (struct walrus_read_options){.max_entries = 1}, &one), 1);
    cr_assert_eq(read_from(2, (struct walrus_read_options){.max_entries = 1}, &two), 1);
    cr_assert_eq(read_from(3, (struct walrus_read_options){.max_entries = 1}, &three), -EAGAIN);
    cr_assert_null(three);
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_WINDOW);
    walrus_entries_release(two); /* out of order: nothing is free yet */
    cr_assert_eq(read_from(3, (struct walrus_read_options){.max_entries = 1}, &three), -EAGAIN);
    walrus_entries_release(one);
    cr_assert_eq(read_from(3, (struct walrus_read_options){.max_entries = 1}, &three), 1);
    expect(three, 0, 3, 28000, 3);
    /* Never released: walrus_close takes it along. */
}

Test(read, an_unknown_topic_is_told_from_an_empty_end)
{
    walrus_entries *entries;
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, NULL, &entries), -ENOENT);
    cr_assert_not_null(strstr(walrus_error(handle), "no such topic"));
    append("t", 1, 1);
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, NULL, &entries), 1);
    walrus_entries_release(entries);
}

Test(read, passes_on_errors)
{
    append("t", 1, 1);
    walrus_entries *entries;
    int errors[] = {-ENODATA, -EBADMSG, -EIO, -ESHUTDOWN};
    for (size_t i = 0; i < array_count(errors); i++) {
        fake_rule(&fake, (struct fake_rule){.op = OP_READ, .times = 1, .result = errors[i]});
        cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, NULL, &entries), errors[i]);
        cr_assert_null(entries);
    }
    fake_rule(&fake,
              (struct fake_rule){.op = OP_READ, .times = 2, .result = -EAGAIN, .reason = REASON_MEMORY});
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, NULL, &entries), 1);
    walrus_entries_release(entries);
    fake_rule(&fake, (struct fake_rule){.op = OP_READ, .times = 1, .result = FAKE_DIE});
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, NULL, &entries), -ECONNRESET);
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, NULL, &entries), -ECONNRESET);
}

Test(read, checks_its_arguments)
{
    walrus_entries *entries;
    cr_assert_eq(read_from(1, (struct walrus_read_options){.max_entries = 2001}, &entries), -EINVAL);
    cr_assert_eq(walrus_batch_read_for_topic(handle, "", 1, NULL, &entries), -EINVAL);
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, NULL, NULL), -EINVAL);
    cr_assert_eq(walrus_batch_read_for_topic(NULL, "t", 1, NULL, &entries), -EINVAL);
}

Test(read, following_waits_for_the_first_write)
{
    walrus_entries *entries;
    cr_assert_eq(read_from(1, (struct walrus_read_options){.follow_ns = 1000}, &entries), -ETIME);
    cr_assert_null(entries);
    walrus *writer = NULL;
    (void)writer;
    /* The same handle writes: the batch is in flight while the follow waits for it. */
    walrus_topic *topic = open_topic(handle, "t");
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    cr_assert_eq(walrus_batch_add(batch, "later", 5), 0);
    fake_pause(&fake);
    fake.hold_writes = true;
    fake_resume(&fake);
    cr_assert_eq(walrus_batch_submit(batch, NULL), 0);
    fake_pause(&fake);
    fake_turn(&fake);
    fake.hold_writes = false;
    fake_rule(&fake, (struct fake_rule){.op = OP_READ, .times = 0});
    fake_resume(&fake);
    fake_pause(&fake);
    fake_answer_held(&fake, 1);
    fake_resume(&fake);
    cr_assert_eq(read_from(1, (struct walrus_read_options){.follow_ns = -1}, &entries), 1);
    cr_assert_eq(walrus_entries_next(entries), 2);
    walrus_entries_release(entries);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
}

Test(read, an_abandoned_follow_is_cancelled_and_costs_no_window)
{
    append("t", 1, 1);
    walrus_entries *entries;
    for (int i = 0; i < 40; i++) /* more than there is credit */
        cr_assert_eq(read_from(2, (struct walrus_read_options){.follow_ns = 1}, &entries), -ETIME);
    append("t", 5, 2);
    cr_assert_eq(read_from(2, (struct walrus_read_options){.follow_ns = -1}, &entries), 1);
    expect(entries, 0, 2, 5, 2);
    walrus_entries_release(entries);
    fake_pause(&fake);
    cr_assert_eq(fake.follow_count, 0);
    cr_assert_eq(fake.client->window_head, fake.window_tail);
}

Test(read, an_answer_that_comes_too_late_is_dropped)
{
    append("t", 100, 1);
    fake_pause(&fake);
    fake.hold_reads = true;
    fake_resume(&fake);
    walrus_entries *entries;
    cr_assert_eq(read_from(1, (struct walrus_read_options){.follow_ns = 1}, &entries), -ETIME);
    fake_pause(&fake);
    fake_turn(&fake);
    fake.hold_reads = false;
    fake_answer_held(&fake, 1); /* the CANCEL found nothing; the read is answered with an entry after all */
    fake_resume(&fake);
    cr_assert_eq(read_from(1, (struct walrus_read_options){.follow_ns = -1}, &entries), 1);
    expect(entries, 0, 1, 100, 1);
    walrus_entries_release(entries);
    fake_pause(&fake);
    cr_assert_eq(fake.client->window_head, fake.window_tail);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

Test(read, a_signal_ends_a_follow)
{
    append("t", 1, 1);
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval soon = {.it_value = {.tv_usec = 20000}, .it_interval = {.tv_usec = 20000}};
    setitimer(ITIMER_REAL, &soon, NULL);
    walrus_entries *entries;
    cr_assert_eq(read_from(2, (struct walrus_read_options){.follow_ns = -1}, &entries), -EINTR);
    setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {.tv_usec = 0}}, NULL);
    append("t", 1, 1);
}

Test(read, lists_the_catalogue)
{
    struct walrus_topic_info info = {.size = sizeof info};
    cr_assert_eq(walrus_next_topic(handle, &info), 0);
    for (int i = 0; i < 10; i++) {
        char name[32];
        snprintf(name, sizeof name, "topic number %d", i);
        append(name, 1, 1);
    }
    open_topic(handle, "opened, never written");
    int count = 0;
    uint64_t last = 0;
    while (walrus_next_topic(handle, &info) == 1) {
        char name[32];
        snprintf(name, sizeof name, "topic number %d", count++);
        cr_assert_str_eq(info.name, name);
        cr_assert_gt(info.id, last);
        cr_assert_eq(info.next_sequence, 2);
        cr_assert_eq(info.durable_next, 2);
        cr_assert_eq(info.level, WALRUS_LEVEL_DURABLE);
        cr_assert_eq(info.size, sizeof info);
        last = info.id;
    }
    cr_assert_eq(count, 10);
    fake_pause(&fake);
    cr_assert_lt(fake.seen[OP_TOPICS], 10); /* several records come at a time */
    fake_resume(&fake);
    struct walrus_topic_info bad = {.size = 8};
    cr_assert_eq(walrus_next_topic(handle, &bad), -EINVAL);
    cr_assert_eq(walrus_next_topic(handle, NULL), -EINVAL);
    fake_rule(&fake, (struct fake_rule){.op = OP_TOPICS, .times = 1, .result = -EIO});
    info.id = 0;
    cr_assert_eq(walrus_next_topic(handle, &info), -EIO);
}
