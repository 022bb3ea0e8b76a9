/* test_model.c: the small search that runs with every other test, and the proof that the search can fail:
 * each rule of the protocol left out is found out. `walrus-model --deep` is the large one. */
#include "model.h"

#include <criterion/criterion.h>

static void search_finds_nothing(const struct program *program, unsigned faults, unsigned crashes)
{
    struct options options = {.program = program, .faults = faults, .crashes = crashes, .words = stderr};
    struct result result;
    search(&options, &result);
    cr_expect(result.violation == NULL, "%s, %u faults, %u crashes: %s (the trace is on stderr)",
              program->name, faults, crashes, result.violation);
    cr_expect(result.complete && result.states > 100, "%s: only %llu states", program->name,
              (unsigned long long)result.states);
}

Test(model, g1_g2_g3_g5_g6_g7_g10_g12_g15_g17_hold_over_every_fault_and_crash)
{
    for (size_t i = 0; i < program_count; i++)
        search_finds_nothing(&programs[i], 1, 1);
}

Test(model, the_same_holds_over_two_faults_and_a_crash_in_the_small_programs)
{
    for (size_t i = 0; i < program_count; i++)
        if (programs[i].small)
            search_finds_nothing(&programs[i], 2, 1);
}

Test(model, g6_the_same_holds_over_a_fault_and_two_crashes_in_the_small_programs)
{
    for (size_t i = 0; i < program_count; i++)
        if (programs[i].small)
            search_finds_nothing(&programs[i], 1, 2);
}

Test(model, each_rule_that_is_left_out_is_found_out)
{
    for (unsigned rule = 0; rule < RULE_COUNT; rule++) {
        const struct variant *v = &variants[rule];
        if (v->program == NULL)
            continue;
        struct options options = {
            .program = program_find(v->program), .faults = v->faults, .crashes = v->crashes};
        struct result result;
        cr_assert(options.program != NULL, "rule %s names no program", rule_names[rule]);
        options.dropped[rule] = true;
        search(&options, &result);
        cr_expect(result.violation != NULL, "without the rule \"%s\" nothing is found in %s",
                  rule_names[rule], v->program);
    }
}
