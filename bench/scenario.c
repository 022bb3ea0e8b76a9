/* scenario.c: the speed goals P1 to P6 as plans, and the way to all other scenarios. */
#include "scenario.h"

#include "../libclient/include/walrus.h"

#define DEFAULT_ROUNDS 5u
#define PLANS_MOST     2u

#define SYNC .level = WALRUS_LEVEL_DURABLE, .durability = "sync"
#define NONE .level = WALRUS_LEVEL_ACCEPTED, .durability = "none"

struct plan {
    const char *label; /* NULL: there is no such row */
    struct load load;
    enum yardstick yardstick;
    bool sustained_too, others;
    void (*goals)(struct row *row);
};

static void goals_p1(struct row *row)
{
    row_goal(row, false, 1.15, row->ratio_p50, "p50 <= 1.15 x raw");
    row_goal(row, false, 3, row->ratio_p99, "p99 <= 3 x raw p99");
}

static void goals_p2(struct row *row)
{
    row_goal(row, true, 0.85, row->ratio_bytes, "bytes/s >= 0.85 x raw");
}

static void goals_p3(struct row *row)
{
    row_goal(row, true, 0.7, row->ratio_bytes, "bytes/s >= 0.7 x raw at the same group size");
}

static void goals_p4(struct row *row)
{
    if (row->load.depth == 1 && row->has_raw)
        row_goal(row, true, 0.8, row->ratio_bytes, "commits/s >= 0.8 x a raw group writer");
    else if (row->load.depth > 1)
        row_goal(row, true, 80000, row->walrus.commits_per_s, "commits/s >= 80,000");
}

static void goals_p5(struct row *row)
{
    row_goal(row, true, 34e6, row->walrus.entries_per_s, "entries/s >= 34 M");
    row_goal(row, true, 0.5, row->ratio_bytes, ">= 0.5 x fill, copy, checksum");
}

static void goals_p6(struct row *row)
{
    row_goal(row, false, 1, row->walrus.latency.p50, "p50 <= 1 us");
}

static void goals_none(struct row *row)
{
    (void)row;
}

/* clang-format off */
static const struct scenario {
    const char *name;
    struct plan plans[PLANS_MOST];
    int (*run)(struct bench *bench, struct error *err); /* instead of plans */
} scenarios[] = {
    {"P1", {{"1 producer, batch 100 x 700 B, sync, spinning",
             {.producers = 1, .topics = 1, .batch = 100, .size = 700, .depth = 1, .seconds = 2,
              .most_bytes = MOST_BYTES_PREPARED, .wait = WAIT_SPIN, SYNC},
             YARDSTICK_DEVICE, true, true, goals_p1}}, NULL},
    {"P2", {{"1 producer, batch 2000 x 700 B, sync, depth 4",
             {.producers = 1, .topics = 1, .batch = 2000, .size = 700, .depth = 4, .seconds = 2,
              .most_bytes = MOST_BYTES_PREPARED, .wait = WAIT_HYBRID, SYNC},
             YARDSTICK_DEVICE, true, true, goals_p2}}, NULL},
    {"P3", {{"8 producers, 8 topics, batch 100 x 700 B, sync, depth 2",
             {.producers = 8, .topics = 8, .batch = 100, .size = 700, .depth = 2, .seconds = 2,
              .most_bytes = MOST_BYTES_PREPARED, .wait = WAIT_HYBRID, SYNC},
             YARDSTICK_GROUP_SIZE, true, true, goals_p3}}, NULL},
    {"P4", {{"8 producers, 8 topics, 1 x 700 B, sync, depth 1",
             {.producers = 8, .topics = 8, .batch = 1, .size = 700, .depth = 1, .seconds = 2,
              .most_bytes = MOST_BYTES_PREPARED,
              .wait = WAIT_HYBRID, SYNC},
             YARDSTICK_GROUP_WRITER, true, true, goals_p4},
            {"8 producers, 8 topics, 1 x 700 B, sync, depth 8",
             {.producers = 8, .topics = 8, .batch = 1, .size = 700, .depth = 8, .seconds = 2,
              .most_bytes = MOST_BYTES_PREPARED,
              .wait = WAIT_HYBRID, SYNC},
             YARDSTICK_GROUP_WRITER, true, true, goals_p4}}, NULL},
    {"P5", {{"1 producer, batch 1000 x 64 B, none, depth 16",
             {.producers = 1, .topics = 1, .batch = 1000, .size = 64, .depth = 16, .seconds = 1,
              .most_bytes = MOST_BYTES_PREPARED, .wait = WAIT_SPIN, NONE},
             YARDSTICK_CEILING, true, true, goals_p5}}, NULL},
    {"P6", {{"1 producer, 1 x 64 B, none, spinning",
             {.producers = 1, .topics = 1, .batch = 1, .size = 64, .depth = 1, .seconds = 1,
              .wait = WAIT_SPIN, NONE},
             YARDSTICK_NONE, false, false, goals_p6}}, NULL},
    {"open", {{"P1 as an open loop, 2,000 batches/s",
               {.producers = 1, .topics = 1, .batch = 100, .size = 700, .depth = 64, .rate = 2000,
                .seconds = 2, .most_bytes = MOST_BYTES_PREPARED, .wait = WAIT_SPIN, SYNC},
               YARDSTICK_NONE, false, false, goals_none}}, NULL},
    {"P7", {{0}}, scenario_idle},
    {"P8", {{0}}, scenario_start},
    {"P9", {{0}}, scenario_many},
    {"P10", {{0}}, scenario_large_batch},
    {"P11", {{0}}, scenario_beside_stream},
    {"S1", {{0}}, scenario_batch_or_appends},
    {"S2", {{0}}, scenario_batch_latency},
    {"S3", {{0}}, scenario_append_success},
};
/* clang-format on */

static const struct scenario *find_scenario(const char *name, size_t length)
{
    for (size_t i = 0; i < array_count(scenarios); i++)
        if (strlen(scenarios[i].name) == length && strncasecmp(scenarios[i].name, name, length) == 0)
            return &scenarios[i];
    return NULL;
}

int scenarios_check(const char *names, struct error *err)
{
    if (strcmp(names, "all") == 0)
        return 0;
    while (*names != 0) {
        size_t length = strcspn(names, ",");
        if (find_scenario(names, length) == NULL && !scenario_is_series(names, length))
            return error_set(
                err, -EINVAL,
                "\"%.*s\" is not a scenario; there are P1 to P11, S1 to S3, all (of these), open, and the "
                "series batch, size, producers, topics, connections, log",
                (int)length, names);
        names += length + (names[length] == ',');
    }
    return 0;
}

static uint32_t rounds_of(const struct bench *bench)
{
    return bench->options.rounds != 0 ? bench->options.rounds : DEFAULT_ROUNDS;
}

static int run_plan(struct bench *bench, const struct scenario *scenario, const struct plan *plan,
                    bool sustained, struct error *err)
{
    struct load load = options_over(&bench->options, &plan->load);
    struct row *row = row_new(bench, scenario->name, plan->label, &load);
    if (row == NULL)
        return error_set(err, -ENOSPC, "too many rows; name fewer scenarios");
    /* The group writer has no form that prepares its space as part of the run. */
    row->yardstick =
        sustained && plan->yardstick == YARDSTICK_GROUP_WRITER ? YARDSTICK_NONE : plan->yardstick;
    row->others = plan->others && !sustained;
    row->sustained = sustained;
    uint32_t rounds = rounds_of(bench);
    if (sustained && rounds > 3 && bench->options.rounds == 0)
        rounds = 3;
    int code = row_run(bench, row, rounds, err);
    if (code < 0) {
        bench->row_count--;
        return error_wrap(err, "%s", scenario->name);
    }
    plan->goals(row);
    return 0;
}

static int run_scenario(struct bench *bench, const struct scenario *scenario, struct error *err)
{
    if (scenario->run != NULL) {
        int code = scenario->run(bench, err);
        return code < 0 ? error_wrap(err, "%s", scenario->name) : 0;
    }
    int code = 0;
    for (size_t i = 0; i < PLANS_MOST && scenario->plans[i].label != NULL && code == 0; i++) {
        const struct plan *plan = &scenario->plans[i];
        /* P4's two rows differ in depth alone: a depth by hand makes them one. */
        if (i > 0 && (bench->options.given & GIVEN_DEPTH))
            break;
        if (!bench->options.sustained_only)
            code = run_plan(bench, scenario, plan, false, err);
        if (code == 0 && plan->sustained_too && bench->options.sustained)
            code = run_plan(bench, scenario, plan, true, err);
    }
    return code;
}

/* The load as the options say it. */
static int run_custom(struct bench *bench, struct error *err)
{
    const struct load *load = &bench->options.load;
    struct row *row = row_new(bench, "custom", "as given", load);
    check_bug(row != NULL);
    row->others = true;
    if (bench->options.raw && load->level != WALRUS_LEVEL_DURABLE)
        row->yardstick = YARDSTICK_CEILING;
    else if (bench->options.raw && load->producers == 1)
        row->yardstick = YARDSTICK_DEVICE;
    else if (bench->options.raw && load->producers <= RAW_GROUP_CLIENTS && load->depth <= RAW_GROUP_DEPTH &&
             load_batch_bytes(load) <= RAW_GROUP_PAYLOAD)
        row->yardstick = YARDSTICK_GROUP_WRITER;
    else if (bench->options.raw)
        row->yardstick = YARDSTICK_GROUP_SIZE;
    int code = row_run(bench, row, bench->options.rounds != 0 ? bench->options.rounds : 3, err);
    if (code < 0)
        bench->row_count--;
    return code;
}

int scenarios_run(struct bench *bench, struct error *err)
{
    const char *names = bench->options.scenarios;
    int code = 0;
    if (names[0] == 0)
        return run_custom(bench, err);
    if (strcmp(names, "all") == 0) {
        for (size_t i = 0; i < array_count(scenarios) && code == 0; i++)
            code = run_scenario(bench, &scenarios[i], err);
        return code;
    }
    while (*names != 0 && code == 0) {
        size_t length = strcspn(names, ",");
        const struct scenario *scenario = find_scenario(names, length);
        code = scenario != NULL ? run_scenario(bench, scenario, err)
                                : scenario_series(bench, names, length, err);
        names += length + (names[length] == ',');
    }
    return code;
}
