/* The moment that a gathered group waits for those that were just answered, in a time that stands still until
 * the test moves it. */
#include "../../broker/log/internal.h"
#include "life.h"

#define IN_DEVICE  (1000 * INT64_C(1000)) /* of each group here: a millisecond */
#define DELAY_MOST (150 * INT64_C(1000))  /* as delay.c has it */

static struct life life;
static int64_t time_now;
static int64_t in_device = IN_DEVICE;
static const int owners[8];

static int64_t standing(struct io *io)
{
    (void)io;
    return time_now;
}

/* One entry of a topic of its own for each i, so that nothing waits for its topic. */
static struct sent *append(unsigned i, uint32_t bytes)
{
    static const char *const names[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    struct sent *sent = SEND(&life, .name = names[i], .kind = WRITE_APPEND, .owner = &owners[i], .entries = 1,
                             .bytes = bytes, .from = 1);
    cr_assert_eq(sent->refused, 0);
    return sent;
}

static uint64_t writes(void)
{
    return io_fault_count(life.io, IO_WRITE);
}

/* The group in the device ends. */
static void group_ends(struct sent *of)
{
    life_until_held(&life, IO_FLUSH, 1);
    time_now += in_device;
    io_fault_release(life.io, IO_FLUSH, 1);
    for (unsigned i = 0; i < 1000 && !of->done; i++)
        life_turn(&life);
    cr_assert(of->done);
    cr_assert_eq(of->write.result, 0);
}

static void make(void)
{
    life_use_memory();
    life_make(&life);
    life_start(&life);
    life_quiet(&life);
    time_now = life.functions.now(life.io);
    life.functions.now = standing;
    io_fault_hold(life.io, IO_FLUSH, true);
    for (unsigned i = 0; i < 40; i++) /* so that the log knows how long a group takes */
        group_ends(append(0, 10));
}

static void clean(void)
{
    if (life.log != NULL) {
        io_fault_hold(life.io, IO_FLUSH, false);
        io_fault_release(life.io, IO_FLUSH, 1000);
    }
    life_remove(&life);
}

TestSuite(delay, .init = make, .fini = clean, .timeout = 60);

/* One is answered, two have gathered meanwhile. */
static void one_of_three_is_answered(struct sent *gathered[2], uint32_t bytes)
{
    time_now += DELAY_MOST; /* whoever was answered before is not waited for any more */
    struct sent *first = append(0, 10);
    life_until_held(&life, IO_FLUSH, 1);
    gathered[0] = append(1, bytes);
    gathered[1] = append(2, bytes);
    group_ends(first);
    log_turn(life.log);
}

/* Turns that would take the gathered group to the device, were it not to wait. */
static void some_turns(void)
{
    for (unsigned i = 0; i < 20; i++)
        log_turn(life.log);
}

Test(delay, a_gathered_group_waits_for_the_one_who_was_just_answered_and_no_longer)
{
    struct sent *gathered[2];
    one_of_three_is_answered(gathered, 10);
    uint64_t before = writes(), groups = life_stats(&life).groups;
    some_turns();
    cr_assert_eq(log_delayed_until(life.log), time_now + DELAY_MOST);
    cr_assert_eq(log_turn(life.log), time_now + DELAY_MOST, "the loop has to wake for it");
    cr_assert_eq(writes(), before);
    cr_assert(log_busy(life.log));
    struct sent *third = append(0, 10);
    log_turn(life.log);
    cr_assert_eq(log_delayed_until(life.log), 0);
    cr_assert_eq(writes(), before + 1, "the third is here: at once, in the same moment");
    group_ends(third);
    cr_assert(gathered[0]->done && gathered[1]->done);
    cr_assert_eq(life_stats(&life).groups, groups + 1);
}

Test(delay, a_wait_is_no_longer_than_a_group_takes)
{
    struct sent *gathered[2];
    in_device = 40 * INT64_C(1000);
    for (unsigned i = 0; i < 100; i++)
        group_ends(append(0, 10));
    one_of_three_is_answered(gathered, 10);
    int64_t left = log_delayed_until(life.log) - time_now;
    cr_assert(left >= in_device - 1000 && left <= in_device + 1000, "%lld", (long long)left);
}

Test(delay, a_wait_ends_with_its_time)
{
    struct sent *gathered[2];
    one_of_three_is_answered(gathered, 10);
    time_now += DELAY_MOST - 1;
    some_turns();
    cr_assert_neq(log_delayed_until(life.log), 0);
    time_now += 1;
    uint64_t before = writes();
    log_turn(life.log);
    cr_assert_eq(log_delayed_until(life.log), 0);
    cr_assert_eq(writes(), before + 1);
    group_ends(gathered[1]);
}

/* True: it waited, and in vain. */
static bool round_in_vain(void)
{
    struct sent *gathered[2];
    one_of_three_is_answered(gathered, 10);
    bool waited = log_delayed_until(life.log) != 0;
    time_now += DELAY_MOST;
    log_turn(life.log);
    group_ends(gathered[1]);
    return waited;
}

Test(delay, waits_in_vain_are_left_out_more_and_more_often_until_one_is_not)
{
    for (unsigned left_out = 1; left_out <= 8; left_out *= 2) {
        cr_assert(round_in_vain(), "%u", left_out);
        for (unsigned i = 0; i < left_out; i++)
            cr_assert(!round_in_vain(), "%u of %u", i, left_out);
    }
    struct sent *gathered[2];
    one_of_three_is_answered(gathered, 10);
    cr_assert_neq(log_delayed_until(life.log), 0);
    group_ends(append(0, 10));
    for (unsigned i = 0; i < 5; i++) {
        one_of_three_is_answered(gathered, 10);
        cr_assert_neq(log_delayed_until(life.log), 0, "it pays now: each time");
        group_ends(append(0, 10));
    }
}

/* Some thousand rounds of groups on a real folder would show the same: */
Test(delay, a_wait_is_tried_again_after_1024_left_out_however_long_they_were_in_vain)
{
    cr_assert(round_in_vain());
    for (unsigned last = 1; last < 1024; last = life.log->delay.skip_next) {
        cr_assert_eq(life.log->delay.skip_next, last);
        life.log->delay.skip = 0;
        cr_assert(round_in_vain());
        cr_assert_eq(life.log->delay.skip_next, 2 * last);
    }
    life.log->delay.skip = 0;
    cr_assert(round_in_vain());
    cr_assert_eq(life.log->delay.skip_next, 1024u);
    cr_assert_eq(life.log->delay.skip, 1024u);
    cr_assert(!round_in_vain());
}

Test(delay, a_checkpoint_to_be_tried_again_is_not_put_off)
{
    struct sent *gathered[2];
    one_of_three_is_answered(gathered, 10);
    life.log->checkpoint.wanted = true;
    life.log->checkpoint.retry_at = time_now + DELAY_MOST / 2;
    cr_assert_eq(log_turn(life.log), time_now + DELAY_MOST / 2);
    cr_assert_eq(log_delayed_until(life.log), time_now + DELAY_MOST);
    group_ends(append(0, 10));
}

Test(delay, a_lone_producer_never_waits)
{
    for (unsigned i = 0; i < 50; i++) {
        uint64_t before = writes();
        struct sent *sent = append(i % 8, 10);
        log_turn(life.log);
        cr_assert_eq(writes(), before + 1);
        cr_assert_eq(log_delayed_until(life.log), 0);
        group_ends(sent);
    }
}

Test(delay, nobody_is_waited_for_who_has_been_gone_for_long)
{
    struct sent *first = append(0, 10), *second = append(1, 10);
    group_ends(first);
    cr_assert(second->done);
    time_now += DELAY_MOST;
    uint64_t before = writes();
    struct sent *sent = append(0, 10);
    log_turn(life.log);
    cr_assert_eq(writes(), before + 1);
    group_ends(sent);
}

Test(delay, a_large_group_does_not_wait)
{
    struct sent *gathered[2];
    uint64_t before = writes();
    one_of_three_is_answered(gathered, 150000);
    cr_assert_eq(log_delayed_until(life.log), 0);
    cr_assert_geq(writes(), before + 2);
    group_ends(gathered[1]);
}

Test(delay, a_stop_waits_for_nobody)
{
    struct sent *gathered[2];
    one_of_three_is_answered(gathered, 10);
    cr_assert_neq(log_delayed_until(life.log), 0);
    io_fault_hold(life.io, IO_FLUSH, false);
    struct error error = {0};
    cr_assert_eq(log_stop(life.log, &error), 0, "%s", error.text); /* time stands still: it would hang */
    life.log = NULL;
    cr_assert(gathered[0]->done && gathered[1]->done);
    cr_assert_eq(gathered[1]->write.result, 0);
    life_close(&life);
}
