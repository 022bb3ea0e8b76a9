/* test_mutation.c: would the harness notice? Each of these takes away something the log relies on, without
 * telling it; the crash tests must then fail. A suite that passes with the flush removed proves nothing. */
#include "explore.h"
#include "mutant.h"

#include <criterion/criterion.h>

static bool noticed(const struct fault *lie)
{
    struct explore_options options = explore_defaults();
    options.lie = lie;
    for (uint32_t i = 0; i < scenario_count; i++) {
        if (scenarios[i].big)
            continue;
        struct explore_result result = explore_crashes(&scenarios[i], &options);
        if (result.failed)
            return true;
    }
    return false;
}

Test(mutation, g1_is_broken_without_flushes_of_segments)
{
    cr_assert(noticed(&(struct fault){
        .kinds = 1u << IO_FLUSH, .classes = CLASS_SEGMENT, .count = FAULT_FOR_EVER, .lies = true}));
}

Test(mutation, g1_is_broken_without_flushes_of_small_files)
{
    cr_assert(noticed(&(struct fault){
        .kinds = 1u << IO_FLUSH, .classes = CLASS_SMALL, .count = FAULT_FOR_EVER, .lies = true}));
}

Test(mutation, g19_is_broken_without_syncs_of_the_folder)
{
    cr_assert(
        noticed(&(struct fault){.kinds = 1u << IO_SYNC_DIRECTORY, .count = FAULT_FOR_EVER, .lies = true}));
}

/* Leaves out the n-th flush of a segment after the start, one at a time. The prepared space and the
 * sidecars may not need theirs; the groups and headers do. */
Test(mutation, g1_is_broken_without_a_single_one_of_some_flushes)
{
    uint32_t found = 0, tried = 0;
    struct explore_options options = explore_defaults();
    const struct scenario *scenario = scenario_find("first-start");
    for (uint64_t n = 0; n < 12; n++, tried++) {
        struct fault lie = {
            .kinds = 1u << IO_FLUSH, .classes = CLASS_SEGMENT, .skip = n, .count = 1, .lies = true};
        options.lie = &lie;
        found += explore_crashes(scenario, &options).failed;
    }
    cr_assert_geq(found, 2, "%u of %u left out flushes were noticed", found, tried);
}

/* ------------------------------------------------------------------------------ numbers */

static void finds_wrong_numbers(enum mutant wrong, const char *scenario)
{
    struct explore_options options = explore_defaults();
    mutant = wrong;
    struct explore_result result = explore_crashes(scenario_find(scenario), &options);
    cr_assert(result.failed, "mistake %d was not noticed", wrong);
    cr_assert(strstr(result.text, "G5") != NULL, "mistake %d shows as: %s", wrong, result.text);
}

Test(mutation, g5_is_broken_without_the_check_of_duplicates)
{
    finds_wrong_numbers(MUTANT_TAKES_DUPLICATES, "producers");
}

Test(mutation, g5_is_broken_without_the_check_of_the_order)
{
    finds_wrong_numbers(MUTANT_TAKES_ANY_ORDER, "producers");
}

Test(mutation, g5_is_broken_if_nothing_is_dropped_behind_a_failure)
{
    finds_wrong_numbers(MUTANT_KEEPS_WHAT_FOLLOWS, "numbers-behind-a-failure");
}

Test(mutation, g5_is_broken_without_the_pairs_of_the_checkpoint)
{
    finds_wrong_numbers(MUTANT_LOSES_PAIRS, "numbers-and-levels");
}

Test(mutation, g5_is_broken_without_the_horizon_of_the_checkpoint)
{
    finds_wrong_numbers(MUTANT_LOSES_HORIZON, "forgotten-producers");
}

Test(mutation, g5_is_broken_if_admitted_counts_as_committed)
{
    finds_wrong_numbers(MUTANT_COUNTS_EARLY, "producers");
}

Test(mutation, g5_is_broken_if_forgotten_producers_count_as_new)
{
    finds_wrong_numbers(MUTANT_TAKES_FORGOTTEN, "forgotten-producers");
}

Test(mutation, g5_is_broken_without_the_numbers_of_the_log)
{
    finds_wrong_numbers(MUTANT_NUMBERS_WITHOUT_LOG, "start-with-producers");
}
