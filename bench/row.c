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
#define SETTLE_NS         INT64_C(10000000000)
#define RAW_FILE_BYTES    (UINT64_C(768) << 20)
#define POOL_GUESS        (UINT64_C(128) << 20) /* prepared space if the broker does not say */
#define COUNTER_LOOKS     60
#define COUNTER_LOOK_NS   10000000
#define PRIME_BYTES       (UINT64_C(96) << 20)
#define POOL_SHARE        0.85
#define SMALL_FACTOR      6.0 /* a batch alone in a group of one block */
#define LARGE_FACTOR      1.2
#define SUSTAINED_TIMES   4u
#define SUSTAINED_LEAST   (UINT64_C(1) << 30)
#define SUSTAINED_SECONDS 60.0

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

/* ------------------------------------------------------------------------------------------------ stage */

/* The counters as they are now: the broker writes them while something happens, so something is made to
 * happen. */
static int fresh_counters(const struct stage_set *stage, struct stat_snapshot *snapshot)
{
    uint64_t before = broker_counters(stage->socket, snapshot) == 0 ? snapshot->updates : 0;
    struct walrus_connect_options options = {.size = sizeof options, .socket_path = stage->socket};
    walrus *handle = NULL;
    if (walrus_connect(&handle, &options) < 0)
        return -ENOTCONN;
    walrus_close(handle);
    int result = -EAGAIN;
    for (int i = 0; i < COUNTER_LOOKS; i++) {
        result = broker_counters(stage->socket, snapshot);
        if (result == 0 && snapshot->updates > before)
            return 0;
        pause_ns(COUNTER_LOOK_NS);
    }
    return result;
}

static void note_broker(struct stage_set *stage)
{
    struct stat_snapshot snapshot;
    struct bench *bench = stage->bench;
    if (fresh_counters(stage, &snapshot) < 0)
        return;
    snprintf(bench->backend_text, sizeof bench->backend_text, "%s", snapshot.identity.io_backend_name);
    snprintf(bench->broker_version, sizeof bench->broker_version, "%s", snapshot.identity.broker_version);
    stage->broker_pid = (pid_t)snapshot.identity.broker_pid;
}

int stage_begin(struct stage_set *stage, struct bench *bench, const char *durability, struct error *err)
{
    char prefix[64];
    memset(stage, 0, sizeof *stage);
    stage->bench = bench;
    int code = folder_make(&stage->folder, bench->options.dir, err);
    if (code < 0)
        return code;
    folder_join(&stage->folder, "store", stage->store, sizeof stage->store);
    folder_join(&stage->folder, "walrusd.log", stage->log, sizeof stage->log);
    const char *socket = bench->options.socket != NULL ? bench->options.socket : stage->folder.socket;
    if (strlen(socket) >= sizeof stage->socket) {
        stage_end(stage);
        return error_set(err, -ENAMETOOLONG, "%s: too long for a socket", socket);
    }
    snprintf(stage->socket, sizeof stage->socket, "%s", socket);
    /* On a broker that lives on, topics of an earlier run must not be met again. */
    if (bench->options.socket != NULL)
        snprintf(prefix, sizeof prefix, "bench-%d-%llx", (int)getpid(), (unsigned long long)now_ns());
    else
        snprintf(prefix, sizeof prefix, "bench");
    ledger_begin(&stage->ledger, prefix);
    stage->broker_options = (struct broker_options){
        .program = bench->options.broker,
        .data_folder = stage->store,
        .socket_path = stage->socket,
        .durability = durability,
        .io = bench->options.io,
        .log_path = stage->log,
        .interrupted = &bench->interrupted,
    };
    if (bench->options.socket == NULL) {
        code = broker_start(&stage->broker, &stage->broker_options, err);
        if (code < 0) {
            stage_end(stage);
            return code;
        }
    }
    note_broker(stage);
    return 0;
}

/* Space that the broker has prepared and not used, in bytes; false if it does not say. */
static bool prepared_space(const struct stage_set *stage, uint64_t *bytes)
{
    struct stat_snapshot snapshot;
    if (fresh_counters(stage, &snapshot) < 0)
        return false;
    const struct stat_values *v = &snapshot.values;
    *bytes = v->log_segment_length > v->log_segment_used ? v->log_segment_length - v->log_segment_used : 0;
    *bytes += stage->broker.pid != 0 ? broker_spare_bytes(stage->store)
                                     : v->log_prepared_segments * v->log_segment_length;
    return true;
}

double stage_settle(const struct stage_set *stage)
{
    broker_settle(&stage->broker, SETTLE_NS);
    return machine_wait_quiet((int64_t)(stage->bench->options.quiet * 1e9));
}

uint64_t stage_prepared(const struct stage_set *stage)
{
    uint64_t bytes = POOL_GUESS;
    return prepared_space(stage, &bytes) ? bytes : POOL_GUESS;
}

static uint64_t log_bytes(const struct stage_set *stage)
{
    struct stat_snapshot snapshot;
    return fresh_counters(stage, &snapshot) < 0 ? 0 : snapshot.values.log_log_bytes;
}

int stage_round(struct stage_set *stage, const struct load *load, const struct load *beside,
                struct producers_result *result, struct error *err)
{
    uint64_t space = POOL_GUESS;
    bool known = prepared_space(stage, &space);
    uint64_t before = log_bytes(stage);
    struct producers_request request = {
        .load = load,
        .pool = &stage->bench->pool,
        .socket_path = stage->socket,
        .topic_prefix = stage->ledger.topic_prefix,
        .run = ledger_run(&stage->ledger),
        .beside = beside,
        .warm_ns = WARM_NS,
        .broker_pid = stage->broker.pid != 0 ? stage->broker.pid : stage->broker_pid,
        .interrupted = &stage->bench->interrupted,
    };
    if (beside != NULL)
        request.beside_run = ledger_run(&stage->ledger);
    int code = producers_run(&request, result, err);
    if (code < 0) {
        struct error death = {0};
        if (broker_check(&stage->broker, &death) < 0)
            error_wrap(err, "%s", death.text);
        return code;
    }
    code = ledger_add(&stage->ledger, load, request.run, result->batches);
    if (code == 0 && beside != NULL)
        code = ledger_add(&stage->ledger, beside, request.beside_run, result->batches + load->producers);
    free(result->batches);
    result->batches = NULL;
    if (code < 0)
        return error_set(err, code, "out of memory");
    uint64_t used = log_bytes(stage);
    double written = used > before ? (double)(used - before) : result->numbers.written_bytes;
    result->numbers.log_bytes = used > before ? written : 0;
    result->numbers.prepared_known = known;
    result->numbers.prepared = written <= (double)space;
    return 0;
}

int stage_read_back(struct stage_set *stage, struct read_back *result, struct error *err)
{
    memset(result, 0, sizeof *result);
    if (stage->bench->options.socket == NULL) {
        int code = broker_stop(&stage->broker, err);
        if (code == 0)
            code = broker_start(&stage->broker, &stage->broker_options, err);
        if (code < 0)
            return code;
        result->after_restart = true;
    }
    int code = ledger_read_back(&stage->ledger, &stage->bench->pool, stage->socket,
                                &stage->bench->interrupted, result, err);
    if (code < 0)
        error_wrap(err, "reading back");
    return code;
}

void stage_end(struct stage_set *stage)
{
    struct error ignored = {0};
    if (broker_stop(&stage->broker, &ignored) < 0)
        broker_kill(&stage->broker);
    raw_remove(&stage->raw_file);
    ledger_release(&stage->ledger);
    if (stage->bench->options.keep)
        progress(stage->bench, "left: %s", stage->folder.path);
    else
        folder_remove(&stage->folder);
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
    if (!row->has_raw || row->rounds == 0)
        return;
    RAW_MEDIAN(commits_per_s);
    RAW_MEDIAN(bytes_per_s);
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
        bool better = request.depth == 1 ? one.latency.p50 < result->latency.p50
                                         : one.bytes_per_s > result->bytes_per_s;
        if (i == 0 || better)
            *result = one;
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
    return run_device(yard, result, err);
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

static void settle(const struct yard *yard)
{
    double cores = stage_settle(yard->stage);
    if (cores > yard->row->other_cores_before)
        yard->row->other_cores_before = cores;
}

int stage_prime(struct stage_set *stage, const struct load *like, struct error *err)
{
    struct load load = {
        .producers = 1, .topics = 1, .batch = 100, .size = 10000, .depth = 2, .wait = WAIT_BLOCK};
    struct producers_result result;
    load.count = PRIME_BYTES / load_batch_bytes(&load);
    load.level = like->level;
    memcpy(load.durability, like->durability, sizeof load.durability);
    int code = stage_round(stage, &load, NULL, &result, err);
    return code < 0 ? error_wrap(err, "before the first round") : 0;
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
    code = stage_round(stage, &yard->load, NULL, &result, err);
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
    return code;
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

int row_run(struct bench *bench, struct row *row, uint32_t rounds, struct error *err)
{
    struct stage_set stage;
    char path[4200];
    check_bug(rounds <= ROUNDS_MOST);
    row->has_raw = row->yardstick != YARDSTICK_NONE;
    progress(bench, "%s %s: starting a broker", row->id, row->label);
    int code = stage_begin(&stage, bench, row->load.durability, err);
    if (code < 0)
        return code;
    struct yard yard = {.stage = &stage,
                        .row = row,
                        .log_factor = load_batch_bytes(&row->load) < RAW_BLOCK ? SMALL_FACTOR : LARGE_FACTOR};
    if (row->has_raw && (!row->sustained || row->yardstick == YARDSTICK_CEILING)) {
        uint64_t bytes = max_u64(RAW_FILE_BYTES, UINT64_C(4) * row->load.depth *
                                                     align_up(load_batch_bytes(&row->load), RAW_BLOCK));
        folder_join(&stage.folder, "raw.dat", path, sizeof path);
        progress(bench, "%s %s: preparing space for the raw runs", row->id, row->label);
        code = raw_prepare(&stage.raw_file, path, bytes, err);
    }
    if (code == 0 && row->load.most_bytes == MOST_BYTES_PREPARED)
        code = stage_prime(&stage, &row->load, err);
    for (uint32_t i = 0; i < rounds && code == 0; i++) {
        progress(bench, "%s %s: round %u of %u", row->id, row->label, i + 1, rounds);
        code = one_round(&yard, i, err);
        if (code == 0)
            row->rounds++;
    }
    if (code == 0) {
        row_medians(row);
        note_device_loop(&yard);
        progress(bench, "%s %s: reading back", row->id, row->label);
        code = stage_read_back(&stage, &row->read_back, err);
    }
    stage_end(&stage);
    if (isatty(STDERR_FILENO))
        progress(bench, "%s", "");
    return code;
}
