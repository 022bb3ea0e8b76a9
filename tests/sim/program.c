/* program.c: walrus-sim, the simulator by hand: replays a seed or a scenario, or runs many; or goes on for a
 * given time.
 *
 *   walrus-sim --seed N [--runs K] [--trace]                    random runs
 *   walrus-sim --scenario NAME|all [--faults] [--deep] [--every N] [--seed N]
 *   walrus-sim --images N and/or --seconds S [--seed N]         the long form: until N images or S seconds
 *
 * The long form does, on one core, with the next seed each time they begin again:
 *   - the small scenarios crashed at every point (deep): most images come from there, since they are quick;
 *   - the rest, which has half of the time: the big scenarios (deep, each time at one of sixteen points, the
 *     seed says which), every scenario with every op failing, and random runs.
 * It writes a line to stderr every five seconds, and one last line to stdout, words and numbers
 * in turn:
 *
 *   sim images N different N recoveries N points N faults N runs N rounds N seconds S cpu S per_minute N seed
 *   N failed 0|1
 *
 *   images      crash images made: what a power cut or a kill, at a point, may have left
 *   different   those of them that no image of the same search was equal to, bytewise; each of these was
 *               recovered by the real log, read to the last byte and judged
 *   recoveries  starts of the log on such images, with those that were crashed or failed on the way
 *   points      crash points, ops that were failed, and lives of random runs
 *   faults      faults that hit
 *   runs        random runs
 *   rounds      times that all small scenarios were done
 *   seconds     as the clock on the wall has it; cpu: of its one core
 *   per_minute  `different` in a minute of cpu
 *   seed        the first one: with the same --images the same is tried again
 *
 * Exit code 0; 1 with what broke, and the one command that shows it again, on stdout before that line; 2
 * usage. */
#include "explore.h"

#include <argp.h>
#include <time.h>

#define RUNS_A_ROUND   200u
#define BIG_STEP       16u
#define PROGRESS_EVERY 5.0

struct arguments {
    uint64_t seed, runs, images, seconds, every;
    const char *scenario;
    bool trace, faults, deep;
};

static const struct argp_option known_options[] = {
    {"seed", 's', "N", 0, "first seed (default 1)", 0},
    {"runs", 'r', "K", 0, "random runs, each with the next seed (default 1)", 0},
    {"scenario", 'c', "NAME", 0,
     "crash this scenario at every point; `all` for each of them; `list` names them", 0},
    {"faults", 'f', NULL, 0, "with --scenario: fail every op instead", 0},
    {"deep", 'd', NULL, 0, "with --scenario: try more images for each point", 0},
    {"every", 'e', "N", 0, "with --scenario: crash at one of N points only; which ones, the seed says", 0},
    {"trace", 't', NULL, 0, "print every event of the disk", 0},
    {"images", 'i', "N", 0, "the long form: everything in turns, until N different crash images were judged",
     1},
    {"seconds", 'S', "S", 0, "the long form: everything in turns, for S seconds", 1},
    {0},
};

static error_t parse(int key, char *text, struct argp_state *state)
{
    struct arguments *arguments = state->input;
    uint64_t *numbers[] = {['s'] = &arguments->seed,
                           ['r'] = &arguments->runs,
                           ['i'] = &arguments->images,
                           ['S'] = &arguments->seconds,
                           ['e'] = &arguments->every};
    char *end = NULL;
    switch (key) {
    case 's':
    case 'r':
    case 'i':
    case 'S':
    case 'e':
        *numbers[key] = strtoull(text, &end, 0);
        if (*text == 0 || *end != 0 || *text == '-')
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

/* ------------------------------------------------------------------------------ scenarios */

static int run_scenario(const struct scenario *scenario, const struct arguments *arguments,
                        const struct explore_options *options)
{
    struct explore_result result =
        arguments->faults ? explore_faults(scenario, options) : explore_crashes(scenario, options);
    printf("%-24s %5llu points %8llu images %8llu different %8llu recoveries: %s\n", scenario->name,
           (unsigned long long)result.points, (unsigned long long)result.images,
           (unsigned long long)result.different, (unsigned long long)result.recoveries,
           result.failed ? "FAILED" : "ok");
    if (result.failed)
        printf("%s\n", result.text);
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

static int run_seeds(const struct arguments *arguments, const struct explore_options *options)
{
    uint64_t failed = 0, trace = 0;
    for (uint64_t i = 0; i < arguments->runs; i++) {
        struct explore_result result = explore_random(arguments->seed + i, options, &trace);
        if (result.failed) {
            failed++;
            printf("seed %llu FAILED\n%s\n", (unsigned long long)(arguments->seed + i), result.text);
        }
    }
    printf("%llu runs, %llu failed; trace hash of the last one %016llx\n",
           (unsigned long long)arguments->runs, (unsigned long long)failed, (unsigned long long)trace);
    return failed > 0;
}

/* ------------------------------------------------------------------------------ the long form */

struct long_form {
    const struct arguments *arguments;
    struct explore_options crashes, random;
    struct explore_result total;
    uint64_t runs, rounds;
    uint64_t small, slow; /* turns so far */
    double small_cpu, slow_cpu;
    double began, told;
    const char *doing;
};

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void add(struct explore_result *to, const struct explore_result *more)
{
    to->points += more->points;
    to->images += more->images;
    to->different += more->different;
    to->recoveries += more->recoveries;
    to->faults += more->faults;
}

/* Also tells how far it is. `so_far` is not in the total yet. */
static bool enough(void *context, const struct explore_result *so_far)
{
    struct long_form *form = context;
    struct explore_result sum = form->total;
    add(&sum, so_far);
    if (form->arguments->images != 0 && sum.different >= form->arguments->images)
        return true;
    double now = seconds_of(CLOCK_MONOTONIC);
    if (now - form->told >= PROGRESS_EVERY) {
        form->told = now;
        fprintf(stderr,
                "sim: %6.0f s, round %llu (%s): %llu images, %llu different, %llu recoveries, %llu faults, "
                "%llu runs\n",
                now - form->began, (unsigned long long)form->rounds + 1, form->doing,
                (unsigned long long)sum.images, (unsigned long long)sum.different,
                (unsigned long long)sum.recoveries, (unsigned long long)sum.faults,
                (unsigned long long)form->runs);
    }
    return form->arguments->seconds != 0 && now - form->began >= (double)form->arguments->seconds;
}

/* False: it was enough, or something broke. */
static bool take(struct long_form *form, const struct explore_result *result)
{
    add(&form->total, result);
    if (result->failed)
        printf("FAILED: %s\n", result->text);
    form->total.failed |= result->failed;
    return !result->failed && !result->stopped;
}

static double cpu_now(void)
{
    return seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}

/* The next small scenario, deep. False: it was enough, or something broke. */
static bool small_turn(struct long_form *form)
{
    const struct scenario *scenario;
    do {
        form->crashes.seed = form->arguments->seed + form->small / scenario_count;
        scenario = &scenarios[(form->small++ + form->arguments->seed) % scenario_count];
    } while (scenario->big);
    form->doing = scenario->name;
    struct explore_result result = explore_crashes(scenario, &form->crashes);
    form->rounds = form->small / scenario_count;
    return take(form, &result);
}

static bool random_turn(struct long_form *form)
{
    form->doing = "random runs";
    for (uint64_t run = 0; run < RUNS_A_ROUND; run++) {
        uint64_t trace;
        struct explore_result result =
            explore_random(form->arguments->seed + form->runs++, &form->random, &trace);
        if (!take(form, &result))
            return false;
    }
    return true;
}

/* In turns: a big scenario crashed, some random runs, any scenario with failing ops. */
static bool slow_turn(struct long_form *form)
{
    uint64_t turn = form->slow++, seed = form->arguments->seed, number = turn / 3 + seed;
    struct explore_options options = form->crashes;
    if (turn % 3 == 1)
        return random_turn(form);
    options.seed = seed + turn / 3 / scenario_count;
    const struct scenario *scenario = &scenarios[number % scenario_count];
    for (uint64_t i = 0; turn % 3 == 0 && !scenario->big; i++) {
        scenario = &scenarios[(number + i) % scenario_count];
        options.seed = seed + turn / 3;
    }
    form->doing = scenario->name;
    if (turn % 3 == 2) {
        options.again = " --faults";
    } else {
        options.again = " --deep --every 16";
        options.point_step = BIG_STEP;
    }
    struct explore_result result =
        turn % 3 == 0 ? explore_crashes(scenario, &options) : explore_faults(scenario, &options);
    return take(form, &result);
}

/* What has had less of the time. */
static bool one_turn(struct long_form *form)
{
    double began = cpu_now();
    bool slow = form->slow_cpu <= form->small_cpu;
    bool more = slow ? slow_turn(form) : small_turn(form);
    *(slow ? &form->slow_cpu : &form->small_cpu) += cpu_now() - began;
    return more;
}

static int run_long(const struct arguments *arguments)
{
    struct long_form form = {.arguments = arguments, .crashes = explore_deep(), .random = explore_defaults()};
    form.crashes.enough = form.random.enough = enough;
    form.crashes.context = form.random.context = &form;
    form.crashes.again = " --deep";
    form.began = form.told = seconds_of(CLOCK_MONOTONIC);
    while (one_turn(&form)) {
    }
    double took = seconds_of(CLOCK_MONOTONIC) - form.began, cpu = cpu_now();
    const struct explore_result *total = &form.total;
    printf("sim images %llu different %llu recoveries %llu points %llu faults %llu runs %llu rounds %llu "
           "seconds %.1f cpu %.1f per_minute %.0f seed %llu failed %d\n",
           (unsigned long long)total->images, (unsigned long long)total->different,
           (unsigned long long)total->recoveries, (unsigned long long)total->points,
           (unsigned long long)total->faults, (unsigned long long)form.runs, (unsigned long long)form.rounds,
           took, cpu, cpu > 0 ? (double)total->different / cpu * 60 : 0, (unsigned long long)arguments->seed,
           total->failed);
    return total->failed;
}

int main(int argc, char **argv)
{
    struct arguments arguments = {.seed = 1, .runs = 1};
    static const struct argp argp = {
        known_options,
        parse,
        NULL,
        "Runs the commit log on a simulated disk.\vWith --images or --seconds the last line on stdout has "
        "the totals: \"sim "
        "images N different N recoveries N points N faults N runs N rounds N seconds S cpu S per_minute N "
        "seed N "
        "failed "
        "0|1\". Exit code 0; 1 if a promise was broken: the command that shows it again is printed; 2 usage.",
        NULL,
        NULL,
        NULL};
    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (arguments.images != 0 || arguments.seconds != 0)
        return run_long(&arguments);
    struct explore_options explore = arguments.deep ? explore_deep() : explore_defaults();
    explore.trace = arguments.trace ? stdout : NULL;
    if (arguments.scenario == NULL)
        return run_seeds(&arguments, &explore);
    explore.seed = arguments.seed;
    explore.point_step = (uint32_t)arguments.every;
    explore.again = arguments.faults ? " --faults" : arguments.deep ? " --deep" : NULL;
    return run_scenarios(&arguments, &explore);
}
