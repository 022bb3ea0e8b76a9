/* walrus_wait, the fd and its rules, death, fork. The fake is paused: the test itself takes its turns. */
#include "fake.h"

#include <criterion/criterion.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static struct fake fake;
static walrus *handle;
static walrus_topic *topic;

static void begin(void)
{
    fake_start(&fake);
    handle = CONNECT(&fake, .queue_entries = 16);
    topic = open_topic(handle, "t");
    fake_pause(&fake);
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(wait, .init = begin, .fini = end);

static void submit(uint64_t user_data)
{
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    cr_assert_eq(walrus_batch_add(batch, "entry", 5), 0);
    struct walrus_submit_options options = {.size = sizeof options, .user_data = user_data};
    cr_assert_eq(walrus_batch_submit(batch, &options), 0);
}

static int reap(int max)
{
    struct walrus_completion c[16];
    int count = walrus_reap(handle, c, max);
    for (int i = 0; i < count; i++)
        cr_assert_eq(c[i].result, 0);
    return count;
}

/* Nothing to reap. A signal that came late, for what was reaped before, may wake once; that reap takes it. */
static void quiet(void)
{
    cr_assert_eq(reap(16), 0);
    cr_assert_not(fd_readable(handle));
}

Test(wait, the_fd_is_readable_while_something_is_unreaped)
{
    cr_assert_not(fd_readable(handle));
    for (uint64_t i = 0; i < 3; i++)
        submit(i);
    cr_assert_not(fd_readable(handle));
    fake_turn(&fake);
    cr_assert(fd_readable(handle));
    cr_assert_eq(reap(1), 1);
    cr_assert(fd_readable(handle)); /* partial */
    cr_assert_eq(reap(1), 1);
    cr_assert(fd_readable(handle));
    cr_assert_eq(reap(16), 1);
    cr_assert_not(fd_readable(handle));
    submit(3);
    fake_turn(&fake);
    cr_assert(fd_readable(handle));
    cr_assert_eq(reap(16), 1);
    cr_assert_not(fd_readable(handle));
}

Test(wait, the_fd_learns_of_what_came_before_it_was_asked_for)
{
    submit(1);
    fake_turn(&fake);
    cr_assert(fd_readable(handle));
    cr_assert_eq(reap(16), 1);
    cr_assert_not(fd_readable(handle));
}

Test(wait, signals_coalesce)
{
    cr_assert_not(fd_readable(handle));
    uint64_t before = fake.signals;
    for (uint64_t i = 0; i < 10; i++)
        submit(i);
    fake_turn(&fake);
    cr_assert_eq(fake.signals, before + 1);
    cr_assert_eq(reap(16), 10);
}

Test(wait, a_program_that_never_asked_for_the_fd_costs_no_signals)
{
    uint64_t before = fake.signals;
    for (uint64_t i = 0; i < 50; i++) {
        submit(i);
        fake_turn(&fake);
        cr_assert_eq(reap(16), 1);
    }
    cr_assert_leq(fake.signals, before + 1);
}

Test(wait, nothing_is_missed_between_reaping_and_arming)
{
    cr_assert_not(fd_readable(handle));
    for (uint64_t i = 0; i < 200; i++) {
        submit(i);
        if (i % 3 == 0)
            submit(i);
        fake_turn(&fake);
        cr_assert(fd_readable(handle));
        while (reap(1 + (int)(i % 4)) > 0) {
        }
        cr_assert_eq(walrus_in_flight(handle), 0);
        cr_assert_not(fd_readable(handle), "round %llu", (unsigned long long)i);
    }
}

Test(wait, a_wait_before_keeps_the_fd_readable)
{
    cr_assert_not(fd_readable(handle));
    submit(1);
    submit(2);
    fake_resume(&fake);
    cr_assert_eq(walrus_wait(handle, 2, -1), 0);
    cr_assert(fd_readable(handle));
    cr_assert_eq(reap(1), 1);
    cr_assert(fd_readable(handle));
    fake_pause(&fake);
    cr_assert_eq(reap(1), 1);
    quiet();
}

Test(wait, a_blocking_call_keeps_the_fd_readable_for_others)
{
    cr_assert_not(fd_readable(handle));
    submit(1);
    fake_resume(&fake);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
    cr_assert(fd_readable(handle));
    fake_pause(&fake);
    cr_assert_eq(reap(16), 1);
    quiet();
    fake_resume(&fake);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
    fake_pause(&fake);
    quiet();
}

Test(wait, an_empty_batch_makes_the_fd_readable)
{
    cr_assert_not(fd_readable(handle));
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    cr_assert_eq(walrus_batch_submit(batch, NULL), 0);
    cr_assert(fd_readable(handle));
    cr_assert_eq(reap(16), 1);
    cr_assert_not(fd_readable(handle));
}

Test(wait, a_late_signal_wakes_once_for_nothing)
{
    cr_assert_not(fd_readable(handle));
    uint64_t one = 1;
    cr_assert_eq(write(fake.signal, &one, sizeof one), (ssize_t)sizeof one);
    cr_assert(fd_readable(handle));
    cr_assert_eq(reap(16), 0);
    cr_assert_not(fd_readable(handle));
    /* A full eventfd is no problem either. */
    uint64_t full = UINT64_MAX - 1;
    cr_assert_eq(write(fake.signal, &full, sizeof full), (ssize_t)sizeof full);
    submit(1);
    cr_assert(fd_readable(handle));
    cr_assert_eq(reap(16), 0);
    cr_assert_not(fd_readable(handle));
    fake_turn(&fake);
    cr_assert(fd_readable(handle));
    cr_assert_eq(reap(16), 1);
}

Test(wait, waits_for_as_many_as_were_asked_for)
{
    for (uint64_t i = 0; i < 5; i++)
        submit(i);
    cr_assert_eq(walrus_wait(handle, 5, 0), -ETIME);
    cr_assert_eq(walrus_wait(handle, 0, -1), 0);
    cr_assert_eq(walrus_wait(handle, 6, -1), -EINVAL);
    cr_assert_eq(walrus_wait(handle, -1, -1), -EINVAL);
    cr_assert_eq(walrus_wait(NULL, 1, -1), -EINVAL);
    fake_turn(&fake);
    cr_assert_eq(walrus_wait(handle, 5, -1), 0);
    cr_assert_eq(walrus_wait(handle, 3, 0), 0);
    cr_assert_eq(reap(16), 5);
    cr_assert_eq(walrus_wait(handle, 1, 0), -EINVAL);
}

Test(wait, wakes_for_several_although_some_were_met_before)
{
    for (uint64_t i = 0; i < 4; i++)
        submit(i);
    fake.hold_writes = true;
    fake_turn(&fake);
    fake.hold_writes = false;
    fake_answer_held(&fake, 1); /* in the ring, not met yet */
    pid_t child = fork();
    if (child == 0) { /* answers the rest once the parent has armed for it; rings and eventfds are shared */
        alarm(10);
        while (word_load_acquire(&fake.client->cq_head) != fake.cq.mirror.p_tail)
            sched_yield();
        fake_answer_held(&fake, 3);
        _exit(0);
    }
    cr_assert_eq(walrus_wait(handle, 4, -1), 0);
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0);
    cr_assert_eq(reap(16), 4);
}

static void on_alarm(int signal_number)
{
    (void)signal_number;
}

Test(wait, a_signal_handler_ends_a_wait_and_nothing_else)
{
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    submit(1);
    struct itimerval soon = {.it_value = {.tv_usec = 20000}, .it_interval = {.tv_usec = 20000}};
    setitimer(ITIMER_REAL, &soon, NULL);
    cr_assert_eq(walrus_wait(handle, 1, -1), -EINTR);
    setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {.tv_usec = 0}}, NULL);
    cr_assert_eq(walrus_in_flight(handle), 1);
    fake_turn(&fake);
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert_eq(reap(16), 1);
}

Test(wait, spinning_can_be_fixed_or_forbidden)
{
    walrus_close(handle);
    fake_resume(&fake);
    int64_t options[] = {-1, 1000000, 0};
    for (size_t i = 0; i < array_count(options); i++) {
        handle = CONNECT(&fake, .spin_ns = options[i]);
        for (int k = 0; k < 300; k++)
            cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
        if (i + 1 < array_count(options))
            walrus_close(handle);
    }
}

static void expect_round_trips(uint64_t rounds, uint64_t pause_before_wait)
{
    for (uint64_t i = 0; i < rounds; i++) {
        submit(i);
        fake_idle(i * 13 % pause_before_wait);
        struct walrus_completion c;
        if (walrus_wait(handle, 1, 20000000000) != 0 || walrus_reap(handle, &c, 1) != 1)
            cr_assert_fail("round %llu: a wake-up was lost: %s", (unsigned long long)i, walrus_error(handle));
    }
}

Test(wait, no_doorbell_is_lost)
{
    /* The library spins, so it publishes just when the fake, having answered, goes to sleep. Without the
     * library's fence this fails within 50,000 rounds or so, if two cores are there. */
    walrus_close(handle);
    fake.swallow = true;
    fake.pause_before_park = 20011;
    fake_resume(&fake);
    handle = CONNECT(&fake, .spin_ns = 1000000, .queue_entries = 16);
    topic = open_topic(handle, "t");
    expect_round_trips(200000, 1);
}

Test(wait, no_signal_is_lost)
{
    /* The fake never sleeps, so it answers just when the library goes to sleep. */
    walrus_close(handle);
    fake.swallow = fake.busy = true;
    fake.pause_before_answer = 2003;
    fake_resume(&fake);
    handle = CONNECT(&fake, .spin_ns = -1, .queue_entries = 16);
    topic = open_topic(handle, "t");
    expect_round_trips(100000, 30011);
}

static void *answer_when_seven_are_held(void *unused)
{
    (void)unused;
    for (bool done = false; !done; sched_yield()) {
        fake_pause(&fake);
        done = fake.held_count >= 7;
        if (done) {
            fake_answer_held(&fake, fake.held_count);
            fake.hold_writes = false;
        }
        fake_resume(&fake);
    }
    return NULL;
}

Test(wait, a_blocking_call_waits_for_credit)
{
    walrus_close(handle);
    fake.hold_writes = true;
    fake_resume(&fake);
    handle = CONNECT(&fake, .queue_entries = 8);
    topic = open_topic(handle, "t");
    for (uint64_t i = 0; i < 7; i++)
        submit(i);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, answer_when_seven_are_held, NULL), 0);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
    pthread_join(thread, NULL);
    cr_assert_eq(reap(16), 7);
}

Test(wait, an_answer_beside_the_hang_up_counts)
{
    walrus_close(handle);
    fake_resume(&fake);
    for (int i = 0; i < 100; i++) {
        handle = CONNECT(&fake, .spin_ns = -1);
        cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
        fake_pause(&fake);
        fake.rule_count = 0;
        fake_rule(&fake, (struct fake_rule){.op = FAKE_ANY_WRITE, .times = 1, .result = FAKE_DIE_AFTER});
        fake_resume(&fake);
        cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0, "round %d", i);
        if (i < 99)
            walrus_close(handle);
    }
}

Test(wait, what_was_answered_before_the_broker_died_comes_first)
{
    for (uint64_t i = 0; i < 5; i++)
        submit(i);
    fake.hold_writes = true;
    fake_turn(&fake);
    fake_answer_held(&fake, 2);
    fake_die(&fake);
    cr_assert(fd_readable(handle));
    struct walrus_completion c[16];
    int count = walrus_reap(handle, c, 16);
    cr_assert_eq(count, 2);
    cr_assert_eq(c[0].result, 0);
    cr_assert_eq(c[1].result, 0);
    cr_assert(fd_readable(handle));
    cr_assert_eq(walrus_reap(handle, c, 16), 3);
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(c[i].result, -ECONNRESET);
        cr_assert_eq(c[i].user_data, (uint64_t)i + 2);
    }
    cr_assert(fd_readable(handle)); /* for ever: whoever polls must learn of it */
    cr_assert_eq(walrus_reap(handle, c, 16), -ECONNRESET);
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic, &batch), -ECONNRESET);
    walrus_topic *other;
    cr_assert_eq(walrus_topic_open(handle, "u", 1, NULL, &other), -ECONNRESET);
    struct walrus_topic_info info = {.size = sizeof info};
    cr_assert_eq(walrus_next_topic(handle, &info), -ECONNRESET);
}

Test(wait, death_ends_a_wait)
{
    submit(1);
    submit(2);
    fake_die(&fake);
    cr_assert_eq(walrus_wait(handle, 2, -1), 0);
    struct walrus_completion c[2];
    cr_assert_eq(walrus_reap(handle, c, 2), 2);
    cr_assert_eq(c[1].result, -ECONNRESET);
}

Test(wait, death_is_met_by_reaping_alone)
{
    submit(1);
    fake_die(&fake);
    struct walrus_completion c;
    int count = 0;
    for (int i = 0; i < 5000 && count == 0; i++)
        count = walrus_reap(handle, &c, 1);
    cr_assert_eq(count, 1);
    cr_assert_eq(c.result, -ECONNRESET);
}

Test(wait, death_leaves_an_open_batch_to_be_dropped)
{
    walrus_batch *one, *two;
    cr_assert_eq(walrus_batch_begin(topic, &one), 0);
    cr_assert_eq(walrus_batch_begin(topic, &two), 0);
    cr_assert_eq(walrus_batch_add(one, "x", 1), 0);
    submit(1);
    fake_die(&fake);
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert_eq(walrus_batch_submit(one, NULL), -ECONNRESET);
    cr_assert_eq(walrus_batch_add(two, "x", 1), -ECONNRESET);
    walrus_batch_abort(two);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
}

Test(wait, no_sigpipe)
{
    struct sigaction action = {.sa_handler = SIG_DFL};
    sigaction(SIGPIPE, &action, NULL);
    fake_die(&fake);
    submit(1);
    submit(2);
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
}

/* Every call in the child says -EOWNERDEAD. Exit code: which one did not. */
static int child_calls(walrus_batch *batch, walrus_entries *entries)
{
    struct walrus_completion c;
    struct walrus_info info = {.size = sizeof info};
    struct walrus_topic_info topic_info = {.size = sizeof topic_info};
    walrus_batch *other;
    walrus_topic *other_topic;
    walrus_entries *other_entries;
    void *data;
    int codes[] = {
        walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL),
        walrus_batch_append_for_topic(handle, "t", NULL, 0, NULL, NULL),
        walrus_batch_read_for_topic(handle, "t", 1, NULL, &other_entries),
        walrus_next_topic(handle, &topic_info),
        walrus_topic_open(handle, "t", 1, NULL, &other_topic),
        walrus_batch_begin(topic, &other),
        walrus_batch_reserve(batch, 1, &data),
        walrus_batch_add(batch, "x", 1),
        walrus_batch_trim(batch, 0),
        walrus_batch_set_type(batch, 1),
        walrus_batch_add_part(batch, "x", 1, 0),
        walrus_batch_set_queue(batch, 1),
        walrus_batch_submit(batch, NULL),
        walrus_cancel(handle, 1),
        walrus_query(topic, 1, NULL),
        walrus_reap(handle, &c, 1),
        walrus_wait(handle, 1, 0),
        walrus_get_info(handle, &info),
        walrus_fd(handle),
    };
    for (int i = 0; i < (int)array_count(codes); i++) {
        if (codes[i] != -EOWNERDEAD)
            return i + 1;
    }
    if (walrus_topic_last_number(topic) != 0 || walrus_topic_durable_next(topic) != 0 ||
        walrus_topic_written_next(topic) != 0)
        return 101;
    walrus_batch_abort(batch);
    walrus_topic_close(topic);
    walrus_entries_release(entries);
    if (walrus_in_flight(handle) != 0 || strstr(walrus_error(handle), "connect anew") == NULL)
        return 100;
    walrus_close(handle); /* only releases memory */
    return 0;
}

Test(wait, a_handle_does_not_survive_fork)
{
    fake_resume(&fake);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
    walrus_entries *entries;
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, NULL, &entries), 1);
    fake_pause(&fake);
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    cr_assert_eq(walrus_batch_add(batch, "entry", 5), 0);
    pid_t child = fork();
    if (child == 0) {
        alarm(10); /* a call that waits would wait for ever */
        _exit(child_calls(batch, entries));
    }
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert_eq(status, 0, "call %d", WEXITSTATUS(status));
    /* The parent goes on as if nothing had happened. */
    cr_assert_eq(walrus_batch_submit(batch, NULL), 0);
    fake_turn(&fake);
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    cr_assert_eq(reap(1), 1);
    walrus_entries_release(entries);
}

Test(wait, the_doorbell_is_rung_only_for_a_parked_broker)
{
    fake_resume(&fake);
    for (int i = 0; i < 20; i++)
        cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), 0);
    fake_pause(&fake);
    word_store(&fake.words->parked, ACTIVE);
    struct pollfd fd = {.fd = fake.doorbell, .events = POLLIN};
    uint64_t count;
    if (poll(&fd, 1, 0) == 1)
        cr_assert_gt(read(fake.doorbell, &count, sizeof count), 0);
    submit(1);
    cr_assert_eq(poll(&fd, 1, 0), 0);
    word_store(&fake.words->parked, PARKED);
    submit(2);
    cr_assert_eq(read(fake.doorbell, &count, sizeof count), (ssize_t)sizeof count);
    fake_turn(&fake);
    cr_assert_eq(walrus_wait(handle, 2, -1), 0);
}
