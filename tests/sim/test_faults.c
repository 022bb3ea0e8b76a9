/* test_faults.c: the n-th op of each scenario fails, n = 1, 2, ..., once or from then on, in eight ways;
 * then power or kill. G3, G8, G9, G10, and, in the scenarios that cut the start too, G14: an error in a
 * recovery is never "the end of the log". */
#include "explore.h"

#include <criterion/criterion.h>

static void fail_everywhere(const char *name)
{
    struct explore_options options = explore_defaults();
    const struct scenario *scenario = scenario_find(name);
    cr_assert_not_null(scenario);
    struct explore_result result = explore_faults(scenario, &options);
    cr_assert(!result.failed, "%s --faults", result.text);
    cr_assert_gt(result.points * options.fault_step, 50, "only %llu points: is anything failed at all?",
                 (unsigned long long)result.points);
}

#define FAIL(test, scenario)                                                                                 \
    Test(fail_every_op, test)                                                                                \
    {                                                                                                        \
        fail_everywhere(scenario);                                                                           \
    }

FAIL(g9_g14_first_start_on_an_empty_folder, "first-start")
FAIL(g14_start_of_a_stopped_store, "start")
FAIL(g14_start_of_a_killed_store, "start-after-kill")
FAIL(g14_start_after_a_failed_flush, "start-after-failed-flush")
FAIL(g3_g8_g10_one_group, "one-group")
FAIL(g3_g8_g10_three_groups, "three-groups")
FAIL(g3_two_topics, "two-topics")
FAIL(g9_segment_change, "segment-change")
FAIL(g15_segment_file_with_groups_of_an_earlier_life, "recycled-segment")
FAIL(g14_first_groups_of_a_new_epoch, "epoch-change")
FAIL(g4_g16_hostile_clients, "hostile-clients")
FAIL(g3_write_error_twice, "write-error-twice")
FAIL(g10_failed_flush, "failed-flush")
FAIL(g2_stream_of_chunks, "stream")
FAIL(g9_checkpoint, "checkpoint")
FAIL(g10_clean_stop, "clean-stop")
FAIL(g3_levels_below_durable, "levels")
FAIL(g5_numbers_of_producers, "producers")
FAIL(g5_numbers_behind_a_failure, "numbers-behind-a-failure")
FAIL(g5_numbers_below_durable, "numbers-and-levels")
FAIL(g5_forgotten_producers, "forgotten-producers")
FAIL(g5_start_of_a_store_with_producers, "start-with-producers")
FAIL(g2_stream_answered_early_behind_a_failure, "early-answer")
