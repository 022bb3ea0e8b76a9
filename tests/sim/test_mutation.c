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

/* ------------------------------------------------------------------------------ starts */

/* The real thing passes; this one is noticed, by these words. */
static bool start_breaks(const char *scenario, const struct explore_options *broken, const char *words)
{
    struct explore_options sound = explore_defaults();
    struct explore_result result = explore_crashes(scenario_find(scenario), &sound);
    cr_assert(!result.failed, "%s", result.text);
    result = explore_crashes(scenario_find(scenario), broken);
    cr_assert(!result.failed || strstr(result.text, "again with: walrus-sim") != NULL, "%s", result.text);
    return result.failed && strstr(result.text, words) != NULL;
}

/* One flush of a segment is left out in each start, the n-th: among them that of the tail that was copied,
 * which is then served from the cache, and gone at the next start. */
Test(mutation, g6_is_broken_if_a_start_serves_what_it_has_not_flushed)
{
    struct explore_options broken = explore_defaults();
    uint32_t found = 0;
    for (uint64_t n = 0; n < 9; n++) {
        struct fault lie = {
            .kinds = 1u << IO_FLUSH, .classes = CLASS_SEGMENT, .skip = n, .count = 1, .lies = true};
        broken.lie_in_start = &lie;
        found += start_breaks("start-after-kill", &broken, "shown to a reader) is lost");
    }
    cr_assert_geq(found, 1, "nothing that a start has shown was lost");
}

Test(mutation, g11_is_broken_if_a_start_does_not_wait_for_the_writes_of_a_dead_broker)
{
    struct explore_options broken = explore_defaults();
    broken.hasty_lock = true;
    cr_assert(start_breaks("one-group", &broken, "G11"));
    cr_assert(start_breaks("start-after-kill", &broken, "G11"));
}

/* It believes what it reads, though nothing makes that durable: it is shown, power goes, it is gone. */
Test(mutation, g12_is_broken_if_a_start_decides_on_what_it_has_not_made_durable)
{
    struct explore_options broken = explore_in_full();
    struct fault lie = {
        .kinds = 1u << IO_FLUSH, .classes = CLASS_SEGMENT, .count = FAULT_FOR_EVER, .lies = true};
    broken.lie_in_start = &lie;
    cr_assert(start_breaks("start-after-kill", &broken, "shown to a reader) is lost"));
    cr_assert(start_breaks("epoch-change", &broken, "shown to a reader) is lost"));
}

/* The first one: before anything is read and decided. A file that has no durable name yet is believed. */
Test(mutation, g12_is_broken_if_a_start_does_not_sync_the_folder_before_it_decides)
{
    struct explore_options broken = explore_in_full();
    struct fault lie = {.kinds = 1u << IO_SYNC_DIRECTORY, .count = 1, .lies = true};
    broken.lie_in_start = &lie;
    cr_assert(start_breaks("start-after-failed-flush", &broken, "is lost"));
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
