/* scenario_series.c: rows that differ in one quantity alone, their rounds in turn: P9, and what must stay
 * flat. */
#include "scenario.h"

#include "../libclient/include/walrus.h"

#define SYNC           .level = WALRUS_LEVEL_DURABLE, .durability = "sync"
#define DEFAULT_ROUNDS 3u
#define POINTS_MOST    8u
#define FLAT_GOAL      0.8

enum quantity { BY_BATCH, BY_SIZE, BY_PRODUCERS, BY_TOPICS, BY_CONNECTIONS, BY_LOG };

/* clang-format off */
static const struct series {
    const char *name, *before, *after; /* the label, around the value */
    enum quantity quantity;
    struct load load;
    enum yardstick yardstick;
    bool flat; /* the last point is to reach FLAT_GOAL of the first one's commits/s */
    double points[POINTS_MOST]; /* up to a 0 */
} all_series[] = {
    {"batch", "batch of ", " x 700 B", BY_BATCH,
     {.producers = 1, .topics = 1, .size = 700, .depth = 4, .seconds = 0.5, .most_bytes = MOST_BYTES_PREPARED,
      .wait = WAIT_HYBRID, SYNC}, YARDSTICK_DEVICE, false, {1, 10, 100, 500, 1000, 2000}},
    {"size", "batch of 10 x ", " B", BY_SIZE,
     {.producers = 1, .topics = 1, .batch = 10, .depth = 4, .seconds = 0.5, .most_bytes = MOST_BYTES_PREPARED,
      .wait = WAIT_HYBRID, SYNC}, YARDSTICK_DEVICE, false, {16, 64, 256, 1024, 4096, 16384, 65536, 262144}},
    {"producers", "", " producers", BY_PRODUCERS,
     {.batch = 100, .size = 700, .depth = 2, .seconds = 0.5, .most_bytes = MOST_BYTES_PREPARED,
      .wait = WAIT_HYBRID, SYNC}, YARDSTICK_GROUP_SIZE, false, {1, 2, 4, 8, 16}},
    {"topics", "", " topics", BY_TOPICS,
     {.producers = 1, .batch = 10, .size = 100, .depth = 8, .seconds = 0.5, .most_bytes = MOST_BYTES_PREPARED,
      .wait = WAIT_HYBRID, SYNC}, YARDSTICK_GROUP_SIZE, true,
     {1, 10, 100, 1000, 10000}},
    {"connections", "", " connections, 8 batches in flight in all", BY_CONNECTIONS,
     {.processes = 2, .in_flight = 4, .topics = 1000, .batch = 10, .size = 100, .depth = 4, .seconds = 0.5,
      .most_bytes = MOST_BYTES_PREPARED, .wait = WAIT_BLOCK, SYNC}, YARDSTICK_GROUP_SIZE, true,
     {2, 100, 1000}},
    {"log", "", " GiB in the log", BY_LOG,
     {.producers = 1, .topics = 1, .batch = 10, .size = 700, .depth = 4, .seconds = 0.5,
      .most_bytes = MOST_BYTES_PREPARED, .wait = WAIT_HYBRID, SYNC}, YARDSTICK_GROUP_SIZE, true,
     {0.01, 0.1, 1}},
};
/* clang-format on */

static uint32_t rounds_of(const struct bench *bench)
{
    return bench->options.rounds != 0 ? bench->options.rounds : DEFAULT_ROUNDS;
}

static void set_point(const struct series *series, double x, struct row *row)
{
    struct load *load = &row->load;
    if (series->quantity == BY_BATCH)
        load->batch = (uint32_t)x;
    else if (series->quantity == BY_SIZE)
        load->size = (uint64_t)x;
    else if (series->quantity == BY_TOPICS)
        load->topics = (uint32_t)x;
    else if (series->quantity == BY_PRODUCERS)
        load->producers = load->topics = (uint32_t)x;
    else if (series->quantity == BY_CONNECTIONS)
        load->producers = (uint32_t)x;
    else
        row->fill_bytes = (uint64_t)(x * 1073741824.0);
}

/* The ratio of two rows' commits/s, as the median over the rounds. */
static double ratio_of(const struct row *one, const struct row *to)
{
    double ratios[ROUNDS_MOST];
    uint32_t rounds = one->rounds < to->rounds ? one->rounds : to->rounds;
    for (uint32_t i = 0; i < rounds; i++) {
        double below = to->rounds_walrus[i].commits_per_s;
        ratios[i] = below > 0 ? one->rounds_walrus[i].commits_per_s / below : 0;
    }
    return row_median(ratios, rounds);
}

/* CPU time of broker and clients for a batch, in microseconds. */
static double cpu_us(const struct row *row)
{
    return row->walrus.cpu_s_per_gb * (double)load_batch_bytes(&row->load) / 1e3;
}

static int run_series(struct bench *bench, const struct series *series, struct error *err)
{
    struct row *rows[POINTS_MOST];
    uint32_t count = 0;
    for (; count < POINTS_MOST && series->points[count] > 0; count++) {
        char label[96];
        /* The sizes of a log are those of P8: a hundredth, a tenth, all of --size-gib. */
        double x = series->points[count] * (series->quantity == BY_LOG ? bench->options.size_gib : 1);
        struct load load = options_over(&bench->options, &series->load);
        snprintf(label, sizeof label, "%s%g%s", series->before, x, series->after);
        rows[count] = row_new(bench, series->name, label, &load);
        if (rows[count] == NULL)
            return error_set(err, -ENOSPC, "too many rows; name fewer scenarios");
        set_point(series, x, rows[count]);
        snprintf(rows[count]->series, sizeof rows[count]->series, "%s", series->name);
        rows[count]->x = x;
        rows[count]->yardstick = series->yardstick;
        rows[count]->brief = true;
    }
    int code = rows_run(bench, rows, count, rounds_of(bench), err);
    if (code < 0) {
        bench->row_count -= count;
        return code;
    }
    for (uint32_t i = 0; i < count; i++) {
        row_extra(rows[i], "times_first_point", ratio_of(rows[i], rows[0]));
        row_extra(rows[i], "cpu_us_per_batch", cpu_us(rows[i]));
    }
    /* One topic is a special case of its own: it is compared with ten. */
    const struct row *first = series->quantity == BY_TOPICS ? rows[1] : rows[0];
    if (series->flat)
        row_goal(rows[count - 1], true, FLAT_GOAL, ratio_of(rows[count - 1], first),
                 "commits/s >= 0.8 x the smallest");
    return 0;
}

bool scenario_is_series(const char *name, size_t length)
{
    for (size_t i = 0; i < array_count(all_series); i++)
        if (strlen(all_series[i].name) == length && strncmp(all_series[i].name, name, length) == 0)
            return true;
    return false;
}

int scenario_series(struct bench *bench, const char *name, size_t length, struct error *err)
{
    for (size_t i = 0; i < array_count(all_series); i++)
        if (strlen(all_series[i].name) == length && strncmp(all_series[i].name, name, length) == 0) {
            int code = run_series(bench, &all_series[i], err);
            return code < 0 ? error_wrap(err, "%s", all_series[i].name) : 0;
        }
    return error_set(err, -EINVAL, "no such series");
}

/* ------------------------------------------------------------------------------------------------ P9 */

int scenario_many(struct bench *bench, struct error *err)
{
    static const struct load few = {.producers = 2,
                                    .processes = 2,
                                    .topics = 10,
                                    .batch = 10,
                                    .size = 100,
                                    .depth = 4,
                                    .seconds = 1,
                                    .most_bytes = MOST_BYTES_PREPARED,
                                    .wait = WAIT_BLOCK,
                                    SYNC};
    struct load loads[3] = {options_over(&bench->options, &few)};
    loads[2] = loads[1] = loads[0];
    loads[1].producers = loads[2].producers = 1000;
    loads[1].topics = loads[2].topics = 10000;
    check_bug(loads[0].processes > 0);
    loads[2].in_flight = loads[0].depth * loads[0].producers / loads[0].processes;
    static const char *const labels[3] = {"10 topics, 2 connections, depth 4",
                                          "10,000 topics, 1,000 connections, depth 4",
                                          "10,000 topics, 1,000 connections, 8 batches in flight in all"};
    struct row *rows[3];
    for (uint32_t i = 0; i < 3; i++) {
        rows[i] = row_new(bench, "P9", labels[i], &loads[i]);
        if (rows[i] == NULL)
            return error_set(err, -ENOSPC, "too many rows; name fewer scenarios");
    }
    int code = rows_run(bench, rows, 3, rounds_of(bench), err);
    if (code < 0) {
        bench->row_count -= 3;
        return code;
    }
    for (uint32_t i = 0; i < 3; i++)
        row_extra(rows[i], "cpu_us_per_batch", cpu_us(rows[i]));
    row_goal(rows[1], true, FLAT_GOAL, ratio_of(rows[1], rows[0]),
             "commits/s >= 0.8 x over 10 topics, 2 connections");
    row_goal(rows[2], true, FLAT_GOAL, ratio_of(rows[2], rows[0]),
             "the same with no more in flight than these");
    return 0;
}
