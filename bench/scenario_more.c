/* scenario_more.c: P8 (start after kill -9) and the three performance tests that the seed design names. */
#include "scenario.h"

#include "../libclient/include/walrus.h"

#define SYNC .level = WALRUS_LEVEL_DURABLE, .durability = "sync"

#define START_TOPICS   1000u
#define START_ROUNDS   5u
#define START_LIMIT_MS 200.0
#define DEFAULT_ROUNDS 3u

static uint32_t rounds_of(const struct bench *bench, uint32_t otherwise)
{
    return bench->options.rounds != 0 ? bench->options.rounds : otherwise;
}

static int compare_doubles(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* ------------------------------------------------------------------------------------------------ P8 */

/* Kills the broker and starts it again, `rounds` times; milliseconds from before exec to its line "ready",
 * sorted. */
static int kill_and_start(struct stage_set *stage, uint32_t rounds, double ms[ROUNDS_MOST], struct error *err)
{
    for (uint32_t i = 0; i < rounds; i++) {
        broker_kill(&stage->broker);
        int code = broker_start(&stage->broker, &stage->broker_options, err);
        if (code < 0)
            return code;
        ms[i] = (double)stage->broker.ready_ns / 1e6;
    }
    qsort(ms, rounds, sizeof ms[0], compare_doubles);
    return 0;
}

static int start_row(struct bench *bench, double gib, double *median_ms, struct error *err)
{
    struct load preset = {.producers = 1,
                          .topics = START_TOPICS,
                          .batch = 100,
                          .size = 1000,
                          .depth = 16,
                          .wait = WAIT_HYBRID,
                          SYNC};
    struct load load = options_over(&bench->options, &preset);
    struct stage_set stage;
    struct producers_result filled;
    double ms[ROUNDS_MOST];
    char label[96];
    uint32_t rounds = rounds_of(bench, START_ROUNDS);
    load.seconds = 0;
    load.count = max_u64((uint64_t)(gib * 1073741824.0) / load_batch_bytes(&load), load.topics);
    snprintf(label, sizeof label, "start after kill -9, %.2f GiB, %u topics", gib, load.topics);
    struct row *row = row_new(bench, "P8", label, &load);
    if (row == NULL)
        return error_set(err, -ENOSPC, "too many rows; name fewer scenarios");
    progress(bench, "P8: filling %.2f GiB", gib);
    int code = stage_begin(&stage, bench, load.durability, err);
    if (code < 0)
        goto out;
    if (bench->options.socket != NULL) {
        code = error_set(err, -EINVAL, "kills its broker: not with --socket");
        goto end;
    }
    double first_ms = (double)stage.broker.ready_ns / 1e6;
    code = stage_round(&stage, &load, NULL, 0, &filled, err);
    if (code < 0)
        goto end;
    row->rounds_walrus[0] = filled.numbers;
    row->rounds = 1;
    row_medians(row);
    progress(bench, "P8: %u starts after kill -9", rounds);
    code = kill_and_start(&stage, rounds, ms, err);
    if (code < 0)
        goto end;
    *median_ms = ms[rounds / 2];
    row_extra(row, "ready_ms_p50", ms[rounds / 2]);
    row_extra(row, "ready_ms_max", ms[rounds - 1]);
    row_extra(row, "ready_ms_empty_store", first_ms);
    row_goal(row, false, START_LIMIT_MS, ms[rounds / 2], "ready within 200 ms");
    progress(bench, "P8: reading back");
    code = stage_read_back(&stage, &row->read_back, err);
end:
    stage_end(&stage);
out:
    if (code < 0)
        bench->row_count--;
    return code;
}

int scenario_start(struct bench *bench, struct error *err)
{
    double smallest_ms = 0, small_ms = 0, large_ms = 0;
    int code = start_row(bench, bench->options.size_gib / 100, &smallest_ms, err);
    if (code == 0)
        code = start_row(bench, bench->options.size_gib / 10, &small_ms, err);
    if (code == 0)
        code = start_row(bench, bench->options.size_gib, &large_ms, err);
    if (code == 0 && small_ms > 0)
        row_goal(&bench->rows[bench->row_count - 1], false, 1.25, large_ms / small_ms,
                 "the same for a tenth of it (ratio about 1)");
    return code;
}

/* ------------------------------------------------------------------------------------------------ S1, S2,
 * S3 */

int scenario_batch_or_appends(struct bench *bench, struct error *err)
{
    static const struct load batch = {.producers = 1,
                                      .topics = 1,
                                      .batch = 1000,
                                      .size = 100,
                                      .depth = 1,
                                      .seconds = 1,
                                      .wait = WAIT_HYBRID,
                                      SYNC};
    static const struct load appends = {.producers = 1,
                                        .topics = 1,
                                        .batch = 1,
                                        .size = 100,
                                        .depth = 1,
                                        .seconds = 1,
                                        .wait = WAIT_HYBRID,
                                        SYNC};
    struct load first = options_over(&bench->options, &batch);
    struct load second = options_over(&bench->options, &appends);
    second.batch = 1;
    struct row *one = row_new(bench, "S1", "entries as batches", &first);
    struct row *many = row_new(bench, "S1", "the same as single appends", &second);
    if (one == NULL || many == NULL)
        return error_set(err, -ENOSPC, "too many rows; name fewer scenarios");
    int code = row_run(bench, one, rounds_of(bench, DEFAULT_ROUNDS), err);
    if (code == 0)
        code = row_run(bench, many, rounds_of(bench, DEFAULT_ROUNDS), err);
    if (code < 0) {
        bench->row_count -= 2;
        return code;
    }
    row_extra(one, "ms_per_1000_entries", 1e6 / one->walrus.entries_per_s);
    row_extra(many, "ms_per_1000_entries", 1e6 / many->walrus.entries_per_s);
    row_extra(one, "times_faster_than_appends", one->walrus.entries_per_s / many->walrus.entries_per_s);
    return 0;
}

int scenario_batch_latency(struct bench *bench, struct error *err)
{
    static const struct load preset = {.producers = 1,
                                       .topics = 1,
                                       .batch = 1000,
                                       .size = 100,
                                       .depth = 1,
                                       .seconds = 2,
                                       .wait = WAIT_BLOCK,
                                       SYNC};
    struct load load = options_over(&bench->options, &preset);
    struct row *row = row_new(bench, "S2", "batch latency end to end, sleeping wait", &load);
    if (row == NULL)
        return error_set(err, -ENOSPC, "too many rows; name fewer scenarios");
    row->yardstick = YARDSTICK_DEVICE;
    int code = row_run(bench, row, rounds_of(bench, DEFAULT_ROUNDS), err);
    if (code < 0)
        bench->row_count--;
    return code;
}

/* One handle sends batches to a topic without a pause; another one appends to the same topic and counts how
 * often it is taken. */
int scenario_append_success(struct bench *bench, struct error *err)
{
    static const struct load preset = {.producers = 1,
                                       .topics = 1,
                                       .batch = 1000,
                                       .size = 1000,
                                       .depth = 1,
                                       .seconds = 2,
                                       .wait = WAIT_HYBRID,
                                       SYNC};
    static const struct load appends = {.producers = 1,
                                        .topics = 1,
                                        .batch = 1,
                                        .size = 100,
                                        .depth = 1,
                                        .seconds = 2,
                                        .wait = WAIT_HYBRID,
                                        SYNC};
    struct load load = options_over(&bench->options, &preset);
    struct load beside = appends;
    struct producers_result result;
    struct stage_set stage;
    double commits = 0, refused = 0;
    beside.seconds = load.seconds;
    beside.queue = load.queue;
    struct row *row = row_new(bench, "S3", "appends beside batches on one topic", &load);
    if (row == NULL)
        return error_set(err, -ENOSPC, "too many rows; name fewer scenarios");
    int code = stage_begin(&stage, bench, load.durability, err);
    if (code < 0)
        goto out;
    uint32_t rounds = rounds_of(bench, DEFAULT_ROUNDS);
    for (uint32_t i = 0; i < rounds && code == 0; i++) {
        progress(bench, "S3: round %u of %u", i + 1, rounds);
        code = stage_round(&stage, &load, &beside, 0, &result, err);
        if (code < 0)
            break;
        row->rounds_walrus[row->rounds++] = result.numbers;
        commits += result.beside.written_bytes / (double)load_batch_bytes(&beside);
        refused += result.beside.busy;
        row->extra_count = 0; /* the last round's stand */
        row_extra(row, "appends_per_s", result.beside.commits_per_s);
        row_extra(row, "append_latency_p50_us", result.beside.latency.p50);
        row_extra(row, "append_latency_p99_us", result.beside.latency.p99);
    }
    if (code == 0) {
        row_medians(row);
        row_extra(row, "appends_taken", commits);
        row_extra(row, "appends_refused_busy", refused);
        row_extra(row, "append_success_percent",
                  commits + refused > 0 ? 100 * commits / (commits + refused) : 0);
        code = stage_read_back(&stage, &row->read_back, err);
    }
    stage_end(&stage);
out:
    if (code < 0)
        bench->row_count--;
    return code;
}
