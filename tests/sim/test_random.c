/* test_random.c: random work of several lives with random faults and crashes, each run from one seed. */
#include "explore.h"

#include <criterion/criterion.h>
#include <time.h>

#define RUNS    3000u
#define SECONDS 20

Test(random_runs, g26_same_seed_gives_the_same_run)
{
    struct explore_options options = explore_defaults();
    for (uint64_t seed = 1; seed <= 20; seed++) {
        uint64_t first, second;
        struct explore_result one = explore_random(seed, &options, &first),
                              two = explore_random(seed, &options, &second);
        cr_assert_eq(first, second, "seed %llu: %016llx and %016llx", (unsigned long long)seed,
                     (unsigned long long)first, (unsigned long long)second);
        cr_assert_str_eq(one.text, two.text);
    }
}

/* Seeds that have found something once: in the log, or in the judgement of damage. */
Test(random_runs, seeds_that_found_something_find_nothing)
{
    static const uint64_t seeds[] = {436,  733,  5134,  5535,  6102,   8048,   8101,
                                     8900, 8632, 12210, 11610, 108130, 110383, 110908};
    struct explore_options options = explore_defaults();
    for (uint32_t i = 0; i < array_count(seeds); i++) {
        uint64_t trace;
        struct explore_result result = explore_random(seeds[i], &options, &trace);
        cr_assert(!result.failed, "%s", result.text);
    }
}

/* The clock only bounds how much is tried. */
Test(random_runs, g1_g2_g3_g4_g5_g7_g17_g27_hold_whatever_happens)
{
    struct explore_options options = explore_defaults();
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    uint64_t seed = 1;
    for (; seed <= RUNS; seed++) {
        uint64_t trace;
        struct explore_result result = explore_random(seed, &options, &trace);
        cr_assert(!result.failed, "%s", result.text);
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec - start.tv_sec >= SECONDS)
            break;
    }
    cr_log_info("%llu random runs", (unsigned long long)seed);
}
