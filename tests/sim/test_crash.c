/* test_crash.c: each scenario is crashed before every event, by power and by kill; every image that can
 * follow (or many of them) is recovered by the real log and judged: G1 what was answered is there, G2
 * whole or not at all, G3 nothing that failed, G4 nothing refused was written, G5 a number is committed
 * if and only if the log says so, and once, G6 a crash inside the recovery changes nothing, G7 a prefix
 * without holes, G17 no committed block is written again, G27 the very bytes. */
#include "explore.h"

#include <criterion/criterion.h>

static void crash_everywhere(const char *name)
{
    struct explore_options options = explore_defaults();
    const struct scenario *scenario = scenario_find(name);
    cr_assert_not_null(scenario);
    struct explore_result result = explore_crashes(scenario, &options);
    cr_assert(!result.failed, "%s", result.text);
    cr_assert_gt(result.recoveries, 20, "only %llu recoveries: is anything crashed at all?",
                 (unsigned long long)result.recoveries);
}

#define CRASH(test, scenario)                                                                                \
    Test(crash_every_point, test)                                                                            \
    {                                                                                                        \
        crash_everywhere(scenario);                                                                          \
    }

CRASH(g6_first_start_on_an_empty_folder, "first-start")
CRASH(g6_start_of_a_stopped_store, "start")
CRASH(g6_start_of_a_killed_store, "start-after-kill")
CRASH(g6_start_after_a_failed_flush, "start-after-failed-flush")
CRASH(g1_g2_one_group, "one-group")
CRASH(g1_g7_two_groups, "two-groups")
CRASH(g1_g7_three_groups, "three-groups")
CRASH(g1_g7_four_groups, "four-groups")
CRASH(g2_g7_two_topics, "two-topics")
CRASH(g1_g19_segment_change, "segment-change")
CRASH(g1_g19_three_segments, "three-segments")
CRASH(g15_segment_file_with_groups_of_an_earlier_life, "recycled-segment")
CRASH(g12_first_groups_of_a_new_epoch, "epoch-change")
CRASH(g4_g16_hostile_clients, "hostile-clients")
CRASH(g3_write_error_that_left_the_old_bytes, "write-error-old")
CRASH(g3_write_error_that_left_the_new_bytes, "write-error-new")
CRASH(g3_write_error_twice, "write-error-twice")
CRASH(g3_write_error_for_ever, "write-error-for-ever")
CRASH(g8_short_write, "short-write")
CRASH(g10_failed_flush, "failed-flush")
CRASH(g2_stream_of_chunks, "stream")
CRASH(g1_checkpoint, "checkpoint")
CRASH(g1_clean_stop, "clean-stop")
CRASH(g7_levels_below_durable, "levels")
CRASH(g5_numbers_of_producers, "producers")
CRASH(g5_numbers_behind_a_failure, "numbers-behind-a-failure")
CRASH(g5_numbers_below_durable, "numbers-and-levels")
CRASH(g5_forgotten_producers, "forgotten-producers")
CRASH(g5_start_of_a_store_with_producers, "start-with-producers")
CRASH(g2_stream_answered_early_behind_a_failure, "early-answer")
