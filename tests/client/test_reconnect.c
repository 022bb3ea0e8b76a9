/* A connection made anew: what was in flight, what was being filled, what was read, and every way it can
 * fail. The broker is a fake that dies and comes back. */
#include "reconnect.h"

TestSuite(reconnect, .init = begin, .fini = end);
TestSuite(reconnect_otherwise);

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

/* Without a broker the loop wakes for the attempts only: pauses from 2 ms up to 1 s, each at least half of
 * its bound, so however slow the machine is, there are few in half a second. */
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
