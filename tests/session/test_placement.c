/* Which core the broker's thread is held to: the decision, without cores. */
#include "../../broker/session/placement.h"

#include <criterion/criterion.h>

#define LOOK   INT64_C(100000000)
#define SECOND INT64_C(1000000000)

static struct placement placement;
static int64_t now;
static int core; /* on which the thread is */

/* Groups that end on `core` for a tenth of a second, then a choice: held, the thread is there. */
static int look(int64_t slow_core_ns, int64_t fast_core_ns, int fast, bool crowded)
{
    for (unsigned i = 0; i < 200; i++)
        placement_learn(&placement, core, core == fast ? fast_core_ns : slow_core_ns);
    now += LOOK;
    int chosen = placement_choose(&placement, core, crowded, now);
    if (chosen != PLACEMENT_FREE)
        core = chosen;
    return chosen;
}

static void begin(uint64_t allowed)
{
    placement_begin(&placement, allowed);
    now = 5 * SECOND;
    core = 0;
}

Test(placement, the_core_where_groups_end_sooner_is_found_and_kept)
{
    begin(3);
    int64_t until = now + 3 * SECOND;
    while (now < until)
        (void)look(200000, 150000, 1, false);
    unsigned there = 0;
    for (unsigned i = 0; i < 1000; i++)
        there += look(200000, 150000, 1, false) == 1;
    cr_assert_geq(there, 990u, "%u of 1,000 looks", there);
}

Test(placement, a_core_that_has_become_slow_is_left_again)
{
    begin(3);
    for (unsigned i = 0; i < 50; i++)
        (void)look(200000, 150000, 1, false);
    cr_assert_eq(core, 1);
    unsigned there = 0;
    for (unsigned i = 0; i < 2000; i++) /* now the other one is the fast one: found at a try */
    {
        (void)look(200000, 150000, 0, false);
        there += core == 0;
    }
    cr_assert_geq(there, 1200u, "%u of 2,000 looks", there);
}

Test(placement, equal_cores_are_not_changed_back_and_forth)
{
    begin(3);
    unsigned changes = 0;
    for (unsigned i = 0; i < 1000; i++) {
        int before = core;
        (void)look(150000, 145000, 1, false);
        changes += core != before;
    }
    cr_assert_leq(changes, 8u, "tries alone, and those at growing distances: %u", changes);
}

Test(placement, a_crowded_thread_is_let_free)
{
    begin(3);
    for (unsigned i = 0; i < 50; i++)
        (void)look(200000, 150000, 1, false);
    cr_assert_eq(placement.chosen, 1);
    cr_assert_eq(look(200000, 150000, 1, true), PLACEMENT_FREE);
}

Test(placement, nothing_is_chosen_without_groups_enough_or_between_looks)
{
    begin(3);
    for (unsigned i = 0; i < 100; i++) {
        placement_learn(&placement, 0, 200000);
        if (i > 1)
            placement.seen[0] = 3;
        now += LOOK;
        cr_assert_eq(placement_choose(&placement, 0, false, now), PLACEMENT_FREE);
    }
    begin(3);
    for (unsigned i = 0; i < 50; i++)
        (void)look(200000, 150000, 1, false);
    cr_assert_eq(placement_choose(&placement, 1, true, now + LOOK - 1), 1, "not yet time to look");
}

Test(placement, one_core_or_very_many_are_not_chosen_from)
{
    static const uint64_t masks[] = {0, 1, 2, 0x1ff, UINT64_MAX};
    for (size_t m = 0; m < array_count(masks); m++) {
        begin(masks[m]);
        for (unsigned i = 0; i < 100; i++)
            cr_assert_eq(look(200000, 150000, 1, false), PLACEMENT_FREE);
        placement_learn(&placement, 63, 1); /* a core that is no one's choice */
        placement_learn(&placement, -1, 1);
    }
}
