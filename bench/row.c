/* row.c: how a row is measured.
 *
 * Happy path
 *   1. A fresh folder on the disk, a fresh store, a broker of our own, ready before anything is timed.
 *   2. The yardstick's space is prepared and its ways are ranked once by brief runs.
 *   3. Each round: wait until the broker writes nothing any more (it prepares space ahead; neither side may
 *      be measured beside that), one run of the yardstick, the same wait, one run of the broker. The order
 *      changes from round to round.
 *   4. Stop the broker, start it again, read back and compare everything.
 *   5. Medians over the rounds; ratios are medians of the ratios within a round, not ratios of medians.
 *
 * A row is "prepared" if each round fits the space that the broker had prepared when it began; runs are cut
 * short by bytes to stay inside. A "sustained" row writes SUSTAINED_TIMES as much. */
#include "row.h"

#include <stdarg.h>
#include <unistd.h>

#include "../libclient/include/walrus.h"
#include "ceiling.h"

#define WARM_NS           INT64_C(150000000)
#define RAW_FILE_BYTES    (UINT64_C(768) << 20)
#define POOL_SHARE        0.85
#define SMALL_FACTOR      6.0 /* a batch alone in a group of one block */
#define LARGE_FACTOR      1.2
#define SUSTAINED_TIMES   4u
#define SUSTAINED_LEAST   (UINT64_C(1) << 30)
#define SUSTAINED_SECONDS 60.0
#define BRIEF_FILE_BYTES  (UINT64_C(256) << 20)
#define OTHERS_BYTES      (UINT64_C(1) << 30) /* Redis keeps all of it in memory */
#define COUNT_SECONDS     0.2
#define CREATE_FIRST      100u /* topics: so many are not all met in the warm-up */

void progress(const struct bench *bench, const char *format, ...)
{
    char line[512];
    (void)bench;
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    bool terminal = isatty(STDERR_FILENO);
    fprintf(stderr, "%s%s%s", terminal ? "\r\033[K" : "", line, terminal ? "" : "\n");
    fflush(stderr);
}

/* ------------------------------------------------------------------------------------------------ rows */

struct row *row_new(struct bench *bench, const char *id, const char *label, const struct load *load)
{
    if (bench->row_count == ROWS_MOST)
        return NULL;
    struct row *row = &bench->rows[bench->row_count++];
    memset(row, 0, sizeof *row);
    snprintf(row->id, sizeof row->id, "%s", id);
    snprintf(row->label, sizeof row->label, "%s", label);
    row->load = *load;
    return row;
}

void row_goal(struct row *row, bool at_least, double wanted, double reached, const char *text)
{
    check_bug(row->goal_count < GOALS_MOST);
    struct goal *goal = &row->goals[row->goal_count++];
    snprintf(goal->text, sizeof goal->text, "%s", text);
    goal->wanted = wanted;
    goal->reached = reached;
    goal->at_least = at_least;
}

void row_extra(struct row *row, const char *name, double value)
{
    check_bug(row->extra_count < EXTRAS_MOST);
    struct extra *extra = &row->extras[row->extra_count++];
    snprintf(extra->name, sizeof extra->name, "%s", name);
    extra->value = value;
}

static int compare_doubles(const void *a, const void *b)
{
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

double row_median(double *values, uint32_t count)
{
    if (count == 0)
        return 0;
    qsort(values, count, sizeof *values, compare_doubles);
    return count % 2 == 1 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* The median over the rounds of the double that lies `at` bytes into each of `rounds` structs of `stride`
 * bytes. */
static double median_of(const void *rounds, size_t stride, size_t at, uint32_t count)
{
    double values[ROUNDS_MOST];
    for (uint32_t i = 0; i < count; i++)
        memcpy(&values[i], (const char *)rounds + i * stride + at, sizeof values[i]);
    return row_median(values, count);
}

static void median_quantiles(struct quantiles *out, const void *rounds, size_t stride, size_t at,
                             uint32_t count)
{
    out->p50 = median_of(rounds, stride, at + offsetof(struct quantiles, p50), count);
    out->p90 = median_of(rounds, stride, at + offsetof(struct quantiles, p90), count);
    out->p99 = median_of(rounds, stride, at + offsetof(struct quantiles, p99), count);
    out->p999 = median_of(rounds, stride, at + offsetof(struct quantiles, p999), count);
    out->max = 0;
    out->samples = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct quantiles one;
        memcpy(&one, (const char *)rounds + i * stride + at, sizeof one);
        out->max = one.max > out->max ? one.max : out->max;
        out->samples += one.samples;
    }
}

static void median_curve(struct curve *out, const void *rounds, size_t stride, size_t at, uint32_t count)
{
    for (size_t i = 0; i < CURVE_POINTS; i++)
        out->us[i] =
            median_of(rounds, stride, at + offsetof(struct curve, us) + i * sizeof out->us[0], count);
}

/* Medians of another store's rounds, and of the ratios to it within a round. */
static void other_medians(struct row *row, uint32_t which)
{
    struct other_numbers *other = &row->other[which];
    const struct other_numbers *rounds = row->rounds_others[which];
    double p50[ROUNDS_MOST], bytes[ROUNDS_MOST];
    if (row->rounds == 0 || !rounds[row->rounds - 1].there)
        return;
    *other = rounds[row->rounds - 1];
    other->commits_per_s =
        median_of(rounds, sizeof *rounds, offsetof(struct other_numbers, commits_per_s), row->rounds);
    other->bytes_per_s =
        median_of(rounds, sizeof *rounds, offsetof(struct other_numbers, bytes_per_s), row->rounds);
    median_quantiles(&other->latency, rounds, sizeof *rounds, offsetof(struct other_numbers, latency),
                     row->rounds);
    median_curve(&other->curve, rounds, sizeof *rounds, offsetof(struct other_numbers, curve), row->rounds);
    for (uint32_t i = 0; i < row->rounds; i++) {
        p50[i] = rounds[i].latency.p50 > 0 ? row->rounds_walrus[i].latency.p50 / rounds[i].latency.p50 : 0;
        bytes[i] = rounds[i].bytes_per_s > 0 ? row->rounds_walrus[i].bytes_per_s / rounds[i].bytes_per_s : 0;
    }
    row->other_ratio_p50[which] = row_median(p50, row->rounds);
    row->other_ratio_bytes[which] = row_median(bytes, row->rounds);
}

#define NUMBERS_MEDIAN(field)                                                                                \
    row->walrus.field =                                                                                      \
        median_of(row->rounds_walrus, sizeof(struct numbers), offsetof(struct numbers, field), row->rounds)
#define RAW_MEDIAN(field)                                                                                    \
    row->raw.field = median_of(row->rounds_raw, sizeof(struct raw_numbers),                                  \
                               offsetof(struct raw_numbers, field), row->rounds)

void row_medians(struct row *row)
{
    double p50[ROUNDS_MOST], p99[ROUNDS_MOST], bytes[ROUNDS_MOST];
    NUMBERS_MEDIAN(seconds);
    NUMBERS_MEDIAN(commits_per_s);
    NUMBERS_MEDIAN(entries_per_s);
    NUMBERS_MEDIAN(bytes_per_s);
    NUMBERS_MEDIAN(busy);
    NUMBERS_MEDIAN(again);
    NUMBERS_MEDIAN(groups_per_s);
    NUMBERS_MEDIAN(group_bytes);
    NUMBERS_MEDIAN(broker_cpu);
    NUMBERS_MEDIAN(client_cpu);
    NUMBERS_MEDIAN(other_cpu);
    NUMBERS_MEDIAN(written_bytes);
    NUMBERS_MEDIAN(log_bytes);
    NUMBERS_MEDIAN(cpu_s_per_gb);
    NUMBERS_MEDIAN(broker_cpu_s_per_gb);
    NUMBERS_MEDIAN(broker_switches);
    NUMBERS_MEDIAN(client_switches);
    NUMBERS_MEDIAN(entries_per_flush);
    NUMBERS_MEDIAN(log_factor);
    NUMBERS_MEDIAN(device_factor);
    median_curve(&row->walrus.curve, row->rounds_walrus, sizeof(struct numbers),
                 offsetof(struct numbers, curve), row->rounds);
    median_quantiles(&row->walrus.late, row->rounds_walrus, sizeof(struct numbers),
                     offsetof(struct numbers, late), row->rounds);
    median_quantiles(&row->walrus.latency, row->rounds_walrus, sizeof(struct numbers),
                     offsetof(struct numbers, latency), row->rounds);
    for (size_t i = 0; i < STAGE_COUNT; i++)
        median_quantiles(&row->walrus.stages[i], row->rounds_walrus, sizeof(struct numbers),
                         offsetof(struct numbers, stages) + i * sizeof(struct quantiles), row->rounds);
    row->walrus.prepared = row->walrus.prepared_known = row->rounds > 0;
    for (uint32_t i = 0; i < row->rounds; i++) {
        row->walrus.prepared = row->walrus.prepared && row->rounds_walrus[i].prepared;
        row->walrus.prepared_known = row->walrus.prepared_known && row->rounds_walrus[i].prepared_known;
    }
    for (uint32_t i = 0; i < OTHERS_MOST; i++)
        other_medians(row, i);
    if (!row->has_raw || row->rounds == 0)
        return;
    RAW_MEDIAN(commits_per_s);
    RAW_MEDIAN(bytes_per_s);
    median_curve(&row->raw.curve, row->rounds_raw, sizeof(struct raw_numbers),
                 offsetof(struct raw_numbers, curve), row->rounds);
    median_quantiles(&row->raw.latency, row->rounds_raw, sizeof(struct raw_numbers),
                     offsetof(struct raw_numbers, latency), row->rounds);
    snprintf(row->raw.method, sizeof row->raw.method, "%s", row->rounds_raw[row->rounds - 1].method);
    for (uint32_t i = 0; i < row->rounds; i++) {
        const struct numbers *ours = &row->rounds_walrus[i];
        const struct raw_numbers *raw = &row->rounds_raw[i];
        p50[i] = raw->latency.p50 > 0 ? ours->latency.p50 / raw->latency.p50 : 0;
        p99[i] = raw->latency.p99 > 0 ? ours->latency.p99 / raw->latency.p99 : 0;
        bytes[i] = raw->bytes_per_s > 0 ? ours->bytes_per_s / raw->bytes_per_s : 0;
    }
    row->ratio_p50 = row_median(p50, row->rounds);
    row->ratio_p99 = row_median(p99, row->rounds);
    row->ratio_bytes = row_median(bytes, row->rounds);
}

/* ------------------------------------------------------------------------------------------------
 * yardsticks */

struct yard {
    struct stage_set *stage;
    bool begun;
    struct row *row;
    struct load load; /* of the round: with its limit in bytes */
    enum raw_method methods[RAW_METHODS];
    int method_count; /* 0: not ranked yet */
    enum raw_group_way ways[RAW_GROUP_WAYS];
    bool ways_ranked;
    double group_bytes; /* of the broker's last round */
    double log_factor;  /* bytes of log for a byte of payload; first a guess, then as the last round had it */
    double
        device_bytes[ROUNDS_MOST]; /* YARDSTICK_CEILING: bytes/s of the loop that also writes to the device */
    double device_ratios[ROUNDS_MOST];
    uint32_t device_count;
    struct raw_numbers fresh[ROUNDS_MOST]; /* raw, but of bytes that were just made */
    uint32_t fresh_count;
};

static struct raw_request device_request(const struct yard *yard)
{
    const struct load *load = &yard->load;
    struct raw_request request = {
        .file = &yard->stage->raw_file,
        .payload = load_batch_bytes(load),
        .depth = load->depth,
        .duration_ns = (int64_t)((load->seconds > 0 ? load->seconds : 1) * 1e9),
        .most_bytes = load->count != 0 ? load->count * load_batch_bytes(load) : load->most_bytes,
        .interrupted = &yard->stage->bench->interrupted,
    };
    if (yard->row->yardstick == YARDSTICK_GROUP_SIZE) {
        request.payload = max_u64((uint64_t)yard->group_bytes, 1);
        request.depth = 1;
    }
    return request;
}

/* The best two methods of the ranking, the better run of both. */
static int run_device(struct yard *yard, struct raw_numbers *result, struct error *err)
{
    struct raw_request request = device_request(yard);
    memset(result, 0, sizeof *result);
    if (yard->method_count == 0) {
        yard->method_count = raw_rank(&request, yard->methods, err);
        if (yard->method_count < 0)
            return yard->method_count;
    }
    for (int i = 0; i < yard->method_count && i < 2; i++) {
        struct raw_numbers one;
        int code = raw_run(&request, yard->methods[i], &one, err);
        if (code < 0)
            return code;
        if (i == 0 || raw_better(&one, result, request.depth))
            *result = one;
    }
    return 0;
}

/* The same, of bytes that were just made, by the two best of the methods that can do it. */
static int run_fresh(struct yard *yard, struct error *err)
{
    struct raw_request request = device_request(yard);
    struct raw_numbers *best = &yard->fresh[yard->fresh_count];
    request.fresh = true;
    for (int i = 0, done = 0; i < yard->method_count && done < 2; i++) {
        struct raw_numbers one;
        int code = raw_run(&request, yard->methods[i], &one, err);
        if (code == -EOPNOTSUPP)
            continue;
        if (code < 0)
            return code;
        if (done++ == 0 || raw_better(&one, best, request.depth))
            *best = one;
        yard->fresh_count += done == 1;
    }
    return 0;
}

static int run_group_writer(struct yard *yard, struct raw_numbers *result, struct error *err)
{
    const struct load *load = &yard->load;
    struct raw_group_request request = {
        .file = &yard->stage->raw_file,
        .clients = load->producers,
        .depth = load->depth,
        .size = load_batch_bytes(load),
        .warm_ns = WARM_NS,
        .duration_ns = (int64_t)((load->seconds > 0 ? load->seconds : 1) * 1e9),
        .interrupted = &yard->stage->bench->interrupted,
    };
    if (!yard->ways_ranked) {
        int code = raw_group_rank(&request, yard->ways, err);
        if (code < 0)
            return code;
        yard->ways_ranked = true;
    }
    for (int i = 0; i < 2; i++) {
        struct raw_numbers one;
        int code = raw_group_run(&request, yard->ways[i], &one, err);
        if (code < 0)
            return code;
        if (i == 0 || one.commits_per_s > result->commits_per_s)
            *result = one;
    }
    return 0;
}

static int run_sustained(struct yard *yard, struct raw_numbers *result, struct error *err)
{
    char path[4200];
    struct raw_request request = device_request(yard);
    request.duration_ns = (int64_t)(SUSTAINED_SECONDS * 1e9);
    folder_join(&yard->stage->folder, "raw-sustained.dat", path, sizeof path);
    return raw_sustained(&request, path, result, err);
}

static int run_yardstick(struct yard *yard, struct raw_numbers *result, struct error *err)
{
    const struct load *load = &yard->load;
    struct bench *bench = yard->stage->bench;
    if (yard->row->yardstick == YARDSTICK_CEILING) {
        int64_t duration = (int64_t)((load->seconds > 0 ? load->seconds : 1) * 1e9);
        struct raw_numbers with_device;
        int code =
            ceiling_run(load, &yard->stage->raw_file, duration, &bench->interrupted, &with_device, err);
        if (code < 0)
            return code;
        yard->device_bytes[yard->device_count++] = with_device.bytes_per_s;
        return ceiling_run(load, NULL, duration, &bench->interrupted, result, err);
    }
    if (yard->row->sustained)
        return run_sustained(yard, result, err);
    if (yard->row->yardstick == YARDSTICK_GROUP_WRITER)
        return run_group_writer(yard, result, err);
    int code = run_device(yard, result, err);
    return code == 0 && !yard->row->brief ? run_fresh(yard, err) : code;
}

/* ------------------------------------------------------------------------------------------------ rounds */

/* Limits the round in bytes so that it stays inside the prepared space, or goes well beyond. */
static void set_byte_limit(const struct yard *yard, struct load *load)
{
    const struct row *row = yard->row;
    uint64_t pool = stage_prepared(yard->stage);
    if (row->sustained) {
        load->most_bytes = max_u64(SUSTAINED_TIMES * pool, SUSTAINED_LEAST);
        load->seconds = SUSTAINED_SECONDS;
    } else if (load->count == 0 && load->most_bytes == MOST_BYTES_PREPARED)
        load->most_bytes = (uint64_t)((double)pool * POOL_SHARE / yard->log_factor);
}

void row_settle(struct row *row, const struct stage_set *stage)
{
    double cores = stage_settle(stage);
    if (cores > row->other_cores_before)
        row->other_cores_before = cores;
}

static void settle(const struct yard *yard)
{
    row_settle(yard->row, yard->stage);
}

/* The other stores at the same work, each in a folder of its own on the same disk. One that is not to be had
 * is left out; what fails is an error. */
static int run_others(struct yard *yard, uint32_t number, struct error *err)
{
    struct bench *bench = yard->stage->bench;
    struct row *row = yard->row;
    struct load load = yard->load;
    if (!row->others || bench->others_program[0] == 0)
        return 0;
    load.most_bytes = load.most_bytes != 0 ? min_u64(load.most_bytes, OTHERS_BYTES) : OTHERS_BYTES;
    for (uint32_t i = 0; i < OTHERS_MOST; i++) {
        if ((bench->options.others >> i & 1) == 0)
            continue;
        settle(yard);
        int code = others_run(bench->others_program, other_names[i], yard->stage->folder.path, &load,
                              &bench->interrupted, &row->rounds_others[i][number], err);
        if (code < 0 && code != -EOPNOTSUPP)
            return code;
    }
    return 0;
}

/* One more round that nobody measures: counting makes each system call slower. */
static int count_calls(struct yard *yard, struct error *err)
{
    struct producers_result result;
    struct row *row = yard->row;
    struct load load = row->load;
    uint64_t event = yard->stage->bench->syscall_event;
    if (event == 0)
        return 0;
    set_byte_limit(yard, &load);
    if (load.count == 0 && load.seconds > COUNT_SECONDS)
        load.seconds = COUNT_SECONDS;
    settle(yard);
    int code = stage_round(yard->stage, &load, NULL, event, &result, err);
    if (code < 0)
        return code;
    row->calls_counted = true;
    row->walrus.broker_calls = result.numbers.broker_calls;
    row->walrus.client_calls = result.numbers.client_calls;
    return 0;
}

static int one_round(struct yard *yard, uint32_t number, struct error *err)
{
    struct stage_set *stage = yard->stage;
    struct row *row = yard->row;
    struct producers_result result;
    int code = 0;
    /* Which is first changes; the size of groups is only known after a round of the broker. */
    bool raw_first = row->yardstick != YARDSTICK_GROUP_SIZE && number % 2 == 0;
    settle(yard);
    yard->load = row->load;
    set_byte_limit(yard, &yard->load);
    if (row->has_raw && raw_first) {
        code = run_yardstick(yard, &row->rounds_raw[number], err);
        if (code < 0)
            return code;
        settle(yard);
    }
    code = stage_round(stage, &yard->load, NULL, 0, &result, err);
    if (code < 0)
        return code;
    row->rounds_walrus[number] = result.numbers;
    if (result.numbers.log_bytes > 0)
        yard->log_factor = result.numbers.log_bytes / result.numbers.written_bytes;
    yard->group_bytes =
        result.numbers.group_bytes > 0 ? result.numbers.group_bytes : (double)load_batch_bytes(&row->load);
    if (row->has_raw && !raw_first) {
        settle(yard);
        code = run_yardstick(yard, &row->rounds_raw[number], err);
    }
    return code == 0 ? run_others(yard, number, err) : code;
}

/* The copying loop that also writes says what of the distance is the device's. */
static void note_device_loop(struct yard *yard)
{
    struct row *row = yard->row;
    if (yard->device_count == 0)
        return;
    for (uint32_t i = 0; i < yard->device_count; i++)
        yard->device_ratios[i] =
            yard->device_bytes[i] > 0 ? row->rounds_walrus[i].bytes_per_s / yard->device_bytes[i] : 0;
    row_extra(row, "ratio_to_loop_that_writes", row_median(yard->device_ratios, yard->device_count));
    row_extra(row, "loop_that_writes_entries_per_s",
              row_median(yard->device_bytes, yard->device_count) / (double)row->load.size);
}

/* What of the distance to raw is the device's, since ours are bytes that were just made. */
static void note_fresh(struct yard *yard)
{
    struct row *row = yard->row;
    double p50[ROUNDS_MOST], bytes[ROUNDS_MOST], rates[ROUNDS_MOST];
    if (yard->fresh_count == 0 || yard->fresh_count != row->rounds)
        return;
    for (uint32_t i = 0; i < yard->fresh_count; i++) {
        const struct raw_numbers *fresh = &yard->fresh[i];
        rates[i] = fresh->bytes_per_s / 1e6;
        p50[i] = fresh->latency.p50 > 0 ? row->rounds_walrus[i].latency.p50 / fresh->latency.p50 : 0;
        bytes[i] = fresh->bytes_per_s > 0 ? row->rounds_walrus[i].bytes_per_s / fresh->bytes_per_s : 0;
    }
    row_extra(row, "raw_of_fresh_bytes_mb_per_s", row_median(rates, yard->fresh_count));
    row_extra(row, "ratio_p50_to_fresh", row_median(p50, yard->fresh_count));
    row_extra(row, "ratio_bytes_to_fresh", row_median(bytes, yard->fresh_count));
}

/* ------------------------------------------------------------------------------------------------ rows */

static int prepare_raw_file(struct yard *yard, struct error *err)
{
    const struct row *row = yard->row;
    const struct load *load = &row->load;
    char path[4200];
    if (!row->has_raw || (row->sustained && row->yardstick != YARDSTICK_CEILING))
        return 0;
    uint64_t bytes = max_u64(row->brief ? BRIEF_FILE_BYTES : RAW_FILE_BYTES,
                             UINT64_C(4) * load->depth * align_up(load_batch_bytes(load), RAW_BLOCK));
    folder_join(&yard->stage->folder, "raw.dat", path, sizeof path);
    progress(yard->stage->bench, "%s %s: preparing space for the raw runs", row->id, row->label);
    return raw_prepare(&yard->stage->raw_file, path, bytes, err);
}

/* A broker, space for the yardstick, the store in the state that the row is about. */
static int begin_row(struct yard *yard, struct bench *bench, struct row *row, struct error *err)
{
    yard->row = row;
    yard->log_factor = load_batch_bytes(&row->load) < RAW_BLOCK ? SMALL_FACTOR : LARGE_FACTOR;
    row->has_raw = row->yardstick != YARDSTICK_NONE;
    progress(bench, "%s %s: starting a broker", row->id, row->label);
    int code = stage_begin(yard->stage, bench, row->load.durability, err);
    if (code < 0)
        return code;
    yard->begun = true;
    code = prepare_raw_file(yard, err);
    if (code == 0 && row->fill_bytes != 0) {
        progress(bench, "%s %s: filling the log", row->id, row->label);
        code = stage_fill(yard->stage, &row->load, row->fill_bytes, err);
    } else if (code == 0 && row->load.most_bytes == MOST_BYTES_PREPARED)
        code = stage_prime(yard->stage, &row->load, err);
    if (code == 0 && row->load.topics >= CREATE_FIRST)
        code = stage_create_topics(yard->stage, &row->load, err);
    return code;
}

static int end_row(struct yard *yard, struct error *err)
{
    struct row *row = yard->row;
    row_medians(row);
    note_device_loop(yard);
    note_fresh(yard);
    int code = row->sustained ? 0 : count_calls(yard, err);
    if (code < 0)
        return code;
    progress(yard->stage->bench, "%s %s: reading back", row->id, row->label);
    return stage_read_back(yard->stage, &row->read_back, err);
}

int rows_run(struct bench *bench, struct row *const *rows, uint32_t count, uint32_t rounds, struct error *err)
{
    check_bug(rounds <= ROUNDS_MOST);
    struct yard *yards = calloc(count, sizeof *yards);
    struct stage_set *stages = calloc(count, sizeof *stages);
    if (yards == NULL || stages == NULL) {
        free(stages);
        free(yards);
        return error_set(err, -ENOMEM, "out of memory");
    }
    int code = 0;
    for (uint32_t i = 0; i < count && code == 0; i++) {
        yards[i].stage = &stages[i];
        code = begin_row(&yards[i], bench, rows[i], err);
    }
    for (uint32_t round = 0; round < rounds && code == 0; round++)
        for (uint32_t i = 0; i < count && code == 0; i++) {
            progress(bench, "%s %s: round %u of %u", rows[i]->id, rows[i]->label, round + 1, rounds);
            code = one_round(&yards[i], round, err);
            if (code == 0)
                rows[i]->rounds++;
        }
    for (uint32_t i = 0; i < count && code == 0; i++)
        code = end_row(&yards[i], err);
    for (uint32_t i = 0; i < count; i++)
        if (yards[i].begun)
            stage_end(&stages[i]);
    if (isatty(STDERR_FILENO))
        progress(bench, "%s", "");
    free(stages);
    free(yards);
    return code;
}

int row_run(struct bench *bench, struct row *row, uint32_t rounds, struct error *err)
{
    return rows_run(bench, &row, 1, rounds, err);
}
