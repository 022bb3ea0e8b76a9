/* program.c: walrus-sim, the simulator by hand: replays a seed or a scenario, or runs many. */
#include "explore.h"

#include <argp.h>

struct arguments {
    uint64_t seed, runs;
    const char *scenario;
    bool trace, faults, deep;
};

static const struct argp_option known_options[] = {
    {"seed", 's', "N", 0, "first seed of the random runs (default 1)", 0},
    {"runs", 'r', "K", 0, "random runs, each with the next seed (default 1)", 0},
    {"scenario", 'c', "NAME", 0,
     "crash this scenario at every point; `all` for each of them; `list` names them", 0},
    {"faults", 'f', NULL, 0, "with --scenario: fail every op instead", 0},
    {"deep", 'd', NULL, 0, "with --scenario: try more images for each point", 0},
    {"trace", 't', NULL, 0, "print every event of the disk", 0},
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    struct arguments *arguments = state->input;
    char *end = NULL;
    switch (key) {
    case 's':
    case 'r':
        *(key == 's' ? &arguments->seed : &arguments->runs) = strtoull(text, &end, 0);
        if (*text == 0 || *end != 0)
            argp_error(state, "'%s' is not a number", text);
        return 0;
    case 'c':
        arguments->scenario = text;
        return 0;
    case 'f':
        arguments->faults = true;
        return 0;
    case 'd':
        arguments->deep = true;
        return 0;
    case 't':
        arguments->trace = true;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int run_scenario(const struct scenario *scenario, const struct arguments *arguments,
                        const struct explore_options *options)
{
    struct explore_result result =
        arguments->faults ? explore_faults(scenario, options) : explore_crashes(scenario, options);
    printf("%-22s %5llu points %8llu images %8llu different %8llu recoveries: %s\n", scenario->name,
           (unsigned long long)result.points, (unsigned long long)result.images,
           (unsigned long long)result.different, (unsigned long long)result.recoveries,
           result.failed ? "FAILED" : "ok");
    if (result.failed)
        printf("%s%s\n", result.text, arguments->faults ? " --faults" : "");
    return result.failed;
}

static int run_scenarios(const struct arguments *arguments, const struct explore_options *options)
{
    if (strcmp(arguments->scenario, "list") == 0) {
        for (uint32_t i = 0; i < scenario_count; i++)
            printf("%s\n", scenarios[i].name);
        return 0;
    }
    if (strcmp(arguments->scenario, "all") != 0) {
        const struct scenario *scenario = scenario_find(arguments->scenario);
        if (scenario == NULL) {
            fprintf(stderr, "walrus-sim: no scenario '%s'; --scenario list names them\n",
                    arguments->scenario);
            return 2;
        }
        return run_scenario(scenario, arguments, options);
    }
    int failed = 0;
    for (uint32_t i = 0; i < scenario_count; i++)
        failed |= run_scenario(&scenarios[i], arguments, options);
    return failed;
}

int main(int argc, char **argv)
{
    struct arguments arguments = {.seed = 1, .runs = 1};
    static const struct argp argp = {known_options, parse, NULL, "Runs the commit log on a simulated disk.",
                                     NULL,          NULL,  NULL};
    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct explore_options explore = explore_defaults();
    if (arguments.deep) {
        explore.bits = 10;
        explore.images = 200;
        explore.nested_every = 8;
    }
    explore.trace = arguments.trace ? stdout : NULL;
    if (arguments.scenario != NULL)
        return run_scenarios(&arguments, &explore);
    uint64_t failed = 0, trace = 0;
    for (uint64_t i = 0; i < arguments.runs; i++) {
        struct explore_result result = explore_random(arguments.seed + i, &explore, &trace);
        if (result.failed) {
            failed++;
            printf("seed %llu FAILED\n%s\n", (unsigned long long)(arguments.seed + i), result.text);
        }
    }
    printf("%llu runs, %llu failed; trace hash of the last one %016llx\n", (unsigned long long)arguments.runs,
           (unsigned long long)failed, (unsigned long long)trace);
    return failed > 0;
}
