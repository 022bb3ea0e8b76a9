/* test_harness.c: the harness against a toy log: right, it passes; with one mistake of each kind, the
 * mistake is found, and by the promise that it breaks. */
#include "explore.h"
#include "toy.h"

#include <criterion/criterion.h>

static struct explore_result first_failure(uint64_t seeds)
{
    struct explore_options options = explore_defaults();
    options.nested_every = 50;
    options.no_damage = true; /* the toy has no words for it */
    struct explore_result result = {0};
    static const char *const names[] = {"first-start",     "start",       "three-groups", "producers",
                                        "write-error-new", "short-write", "failed-flush"};
    for (uint32_t i = 0; i < array_count(names) && !result.failed; i++)
        result = explore_crashes(scenario_find(names[i]), &options);
    for (uint32_t i = 0; i < 2 && !result.failed; i++)
        result = explore_faults(scenario_find(names[i + 1]), &options);
    uint64_t trace;
    for (uint64_t seed = 1; seed <= seeds && !result.failed; seed++)
        result = explore_random(seed, &options, &trace);
    return result;
}

Test(harness, passes_a_log_without_mistakes)
{
    toy_mistake = TOY_RIGHT;
    struct explore_result result = first_failure(300);
    cr_assert(!result.failed, "%s", result.text);
}

static void finds(enum toy_mistake mistake, const char *words)
{
    toy_mistake = mistake;
    struct explore_result result = first_failure(2000);
    cr_assert(result.failed, "mistake %d was not noticed", mistake);
    cr_assert(strstr(result.text, words) != NULL, "mistake %d shows as: %s", mistake, result.text);
    cr_assert(strstr(result.text, "again with: walrus-sim") != NULL, "no command to replay it: %s",
              result.text);
}

Test(harness, g1_finds_answers_before_the_flush)
{
    finds(TOY_ANSWERS_BEFORE_FLUSH, "G1");
}

Test(harness, g2_finds_records_taken_without_a_checksum)
{
    finds(TOY_SKIPS_CHECKSUM, "G");
}

Test(harness, g3_finds_failures_that_come_back)
{
    finds(TOY_FORGETS_FAILURES, "G");
}

Test(harness, g6_finds_a_recovery_that_trusts_the_cache)
{
    finds(TOY_KEEPS_THE_FILE, "G");
}

Test(harness, g17_finds_writes_over_committed_blocks)
{
    finds(TOY_WRITES_OVER, "G");
}

Test(harness, g19_finds_a_missing_sync_of_the_folder)
{
    finds(TOY_SKIPS_FOLDER_SYNC, "G1");
}

Test(harness, g8_finds_short_writes_that_are_counted)
{
    finds(TOY_COUNTS_SHORT_WRITES, "G1");
}

Test(harness, g14_finds_a_read_error_taken_for_the_end)
{
    finds(TOY_READS_ERRORS_AS_END, "G1");
}

Test(harness, g4_finds_bytes_of_refused_writes)
{
    finds(TOY_WRITES_REFUSED, "G4");
}

Test(harness, g5_finds_numbers_that_are_committed_twice)
{
    finds(TOY_TAKES_DUPLICATES, "G5");
}

Test(harness, g5_finds_numbers_that_leave_a_gap)
{
    finds(TOY_TAKES_ANY_NUMBER, "G5");
}

Test(harness, g5_finds_numbers_that_a_start_has_forgotten)
{
    finds(TOY_FORGETS_NUMBERS, "G5");
}

Test(harness, g5_finds_a_query_that_denies_what_is_committed)
{
    finds(TOY_DENIES_NUMBERS, "G5");
}

Test(harness, g16_finds_hostile_writes_that_are_taken)
{
    finds(TOY_BELIEVES_FLAGS, "G16");
}

Test(harness, g26_finds_a_log_that_looks_at_the_clock)
{
    struct explore_options options = explore_defaults();
    toy_mistake = TOY_DRAWS_FROM_THE_CLOCK;
    bool differs = false;
    for (uint64_t seed = 1; seed <= 20 && !differs; seed++) {
        uint64_t one, two;
        explore_random(seed, &options, &one);
        explore_random(seed, &options, &two);
        differs = one != two;
    }
    cr_assert(differs);
}
