/* scenario_stream.c: P10 (the broker's memory under one large batch) and P11 (P1 beside a large stream).
 *
 * The large batch is one entry of a process of its own, sent in parts. For P11 it is killed when the round
 * is over, and rolled back by the broker: it must not be done sooner. Each round beside it has one without
 * it right before, so that what is compared was measured in the same minute. */
#include "scenario.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../libclient/include/walrus.h"

#define SYNC .level = WALRUS_LEVEL_DURABLE, .durability = "sync"

#define DEFAULT_ROUNDS  5u
#define PART_BYTES      (256u << 10)
#define BEGIN_BYTES     (1u << 20) /* it is under way */
#define LIMIT_NS        INT64_C(60000000000)
#define MEMORY_GOAL_MIB 64.0
#define SLOWER_GOAL     3.0
/* Of the prepared space, for the payload of P1: alone, and beside the stream, which takes about twice of
 * that. */
#define ALONE_SHARE  0.3
#define BESIDE_SHARE 0.2

struct streaming {
    uint64_t sent;
    uint32_t done; /* of a batch with an end: it was answered ... */
    int32_t result;
};

struct streamer {
    pid_t pid;
    struct streaming *shared;
};

/* ------------------------------------------------------------------------------------------------ the
 * stream */

static int stream_parts(const struct payload_pool *pool, walrus_batch *batch, uint64_t bytes,
                        struct streaming *shared)
{
    while (shared->sent < bytes) {
        size_t part = (size_t)min_u64(bytes - shared->sent, PART_BYTES);
        const uint8_t *from = pool->bytes + shared->sent / 3 % (PAYLOAD_POOL - PART_BYTES);
        int code = walrus_batch_add_part(batch, from, part, shared->sent + part < bytes);
        if (code < 0)
            return code;
        __atomic_store_n(&shared->sent, shared->sent + part, __ATOMIC_RELAXED);
    }
    return 0;
}

__attribute__((noreturn)) static void be_streamer(const struct stage_set *stage, uint64_t bytes,
                                                  struct streaming *shared)
{
    struct walrus_connect_options options = {.size = sizeof options, .socket_path = stage->socket};
    struct walrus_submit_options submit = {.size = sizeof submit};
    struct walrus_completion completion = {0};
    walrus *handle;
    walrus_topic *topic;
    walrus_batch *batch;
    char name[96];
    child_begin();
    snprintf(name, sizeof name, "%s-stream", stage->ledger.topic_prefix);
    int code = walrus_connect(&handle, &options);
    if (code == 0)
        code = walrus_topic_open(handle, name, strlen(name), NULL, &topic);
    if (code == 0)
        code = walrus_batch_begin(topic, &batch);
    if (code == 0)
        code = stream_parts(&stage->bench->pool, batch, bytes, shared);
    if (code == 0)
        code = walrus_batch_submit(batch, &submit);
    if (code == 0)
        code = walrus_wait(handle, 1, -1);
    if (code == 0 && walrus_reap(handle, &completion, 1) == 1)
        code = completion.result;
    shared->result = code;
    __atomic_store_n(&shared->done, 1, __ATOMIC_RELEASE);
    _exit(code == 0 ? 0 : 1);
}

static int streamer_start(struct streamer *streamer, const struct stage_set *stage, uint64_t bytes,
                          struct error *err)
{
    streamer->shared = shared_memory(sizeof *streamer->shared);
    if (streamer->shared == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    streamer->pid = fork();
    if (streamer->pid == 0)
        be_streamer(stage, bytes, streamer->shared);
    if (streamer->pid > 0)
        return 0;
    int code = error_set(err, -errno, "fork: %s", strerror(errno));
    shared_memory_release(streamer->shared, sizeof *streamer->shared);
    return code;
}

/* Ends it wherever it is. Returns the bytes that it had sent. */
static uint64_t streamer_stop(struct streamer *streamer)
{
    kill(streamer->pid, SIGKILL);
    while (waitpid(streamer->pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    uint64_t sent = streamer->shared->sent;
    shared_memory_release(streamer->shared, sizeof *streamer->shared);
    return sent;
}

/* Until it has sent so much, or its batch was answered. */
static int streamer_await(const struct streamer *streamer, uint64_t bytes, const struct bench *bench,
                          struct error *err)
{
    int64_t moved = now_ns();
    uint64_t seen = 0;
    for (;;) {
        uint64_t sent = __atomic_load_n(&streamer->shared->sent, __ATOMIC_RELAXED);
        if (__atomic_load_n(&streamer->shared->done, __ATOMIC_ACQUIRE) != 0)
            return streamer->shared->result == 0
                       ? 0
                       : error_set(err, streamer->shared->result, "the large batch failed: %s",
                                   strerror(-streamer->shared->result));
        if (sent >= bytes)
            return 0;
        if (bench->interrupted != 0)
            return error_set(err, -EINTR, "interrupted");
        if (sent != seen)
            moved = now_ns();
        seen = sent;
        if (now_ns() - moved > LIMIT_NS)
            return error_set(err, -ETIMEDOUT, "the large batch does not go on at byte %llu",
                             (unsigned long long)sent);
        pause_ns(1000000);
    }
}

/* ------------------------------------------------------------------------------------------------ P10 */

/* "VmRSS" or "VmHWM" of a process, in MiB; 0 if it is not known. */
static double status_mib(pid_t pid, const char *field)
{
    char path[64], line[256];
    double kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, field, strlen(field)) == 0 && line[strlen(field)] == ':')
            kib = strtod(line + strlen(field) + 1, NULL);
    }
    fclose(file);
    return kib / 1024;
}

static int one_large_batch(struct stage_set *stage, struct row *row, uint64_t bytes, struct error *err)
{
    struct bench *bench = stage->bench;
    struct streamer streamer;
    double idle = status_mib(stage->broker_pid, "VmRSS");
    int64_t begin = now_ns();
    int code = streamer_start(&streamer, stage, bytes, err);
    if (code < 0)
        return code;
    code = streamer_await(&streamer, UINT64_MAX, bench, err);
    double seconds = (double)(now_ns() - begin) / 1e9;
    (void)streamer_stop(&streamer);
    if (code < 0)
        return code;
    double above = status_mib(stage->broker_pid, "VmHWM") - idle;
    row->rounds_walrus[0].seconds = seconds;
    row->rounds_walrus[0].bytes_per_s = (double)bytes / seconds;
    row->rounds_walrus[0].written_bytes = (double)bytes;
    row->rounds = 1;
    row_medians(row);
    row_extra(row, "batch_gib", (double)bytes / 1073741824.0);
    row_extra(row, "broker_idle_mib", idle);
    row_extra(row, "broker_hwm_above_idle_mib", above);
    row_goal(row, false, MEMORY_GOAL_MIB, above, "VmHWM <= 64 MiB above idle");
    return 0;
}

static int large_batch_row(struct bench *bench, double gib, struct error *err)
{
    struct load load = {.producers = 1, .topics = 1, .batch = 1, .depth = 1, .wait = WAIT_BLOCK, SYNC};
    struct stage_set stage;
    char label[96];
    uint64_t bytes = (uint64_t)(gib * 1073741824.0);
    bytes = min_u64(bytes, WALRUS_MAX_BATCH_BYTES) - WALRUS_ENTRY_OVERHEAD;
    load.size = bytes;
    snprintf(label, sizeof label, "one batch of %.2f GiB", (double)bytes / 1073741824.0);
    struct row *row = row_new(bench, "P10", label, &load);
    if (row == NULL)
        return error_set(err, -ENOSPC, "too many rows; name fewer scenarios");
    progress(bench, "P10: %s", label);
    int code = stage_begin(&stage, bench, load.durability, err);
    if (code == 0) {
        code = one_large_batch(&stage, row, bytes, err);
        if (code == 0) /* the soak job big-batch reads such a batch back; here the ledger is empty */
            code = stage_read_back(&stage, &row->read_back, err);
        stage_end(&stage);
    }
    if (code < 0)
        bench->row_count--;
    return code;
}

int scenario_large_batch(struct bench *bench, struct error *err)
{
    int code = large_batch_row(bench, bench->options.size_gib / 100, err);
    if (code == 0)
        code = large_batch_row(bench, bench->options.size_gib / 10, err);
    return code == 0 ? large_batch_row(bench, bench->options.size_gib, err) : code;
}

/* ------------------------------------------------------------------------------------------------ P11 */

/* One round of the load within a share of the prepared space. */
static int round_of(struct stage_set *stage, const struct load *preset, double share, struct numbers *out,
                    struct error *err)
{
    struct producers_result result;
    struct load load = *preset;
    load.most_bytes = (uint64_t)((double)stage_prepared(stage) * share);
    int code = stage_round(stage, &load, NULL, 0, &result, err);
    if (code == 0)
        *out = result.numbers;
    return code;
}

struct beside {
    struct numbers alone[ROUNDS_MOST];
    double ratio[ROUNDS_MOST], stream_bytes_per_s[ROUNDS_MOST];
};

static int round_beside(struct stage_set *stage, struct row *row, struct beside *beside, struct error *err)
{
    struct streamer streamer;
    uint32_t i = row->rounds;
    row_settle(row, stage);
    int code = round_of(stage, &row->load, ALONE_SHARE, &beside->alone[i], err);
    if (code < 0)
        return code;
    row_settle(row, stage);
    code = streamer_start(&streamer, stage, WALRUS_MAX_BATCH_BYTES - WALRUS_ENTRY_OVERHEAD, err);
    if (code < 0)
        return code;
    int64_t begin = now_ns();
    code = streamer_await(&streamer, BEGIN_BYTES, stage->bench, err);
    if (code == 0)
        code = round_of(stage, &row->load, BESIDE_SHARE, &row->rounds_walrus[i], err);
    double seconds = (double)(now_ns() - begin) / 1e9;
    beside->stream_bytes_per_s[i] = (double)streamer_stop(&streamer) / seconds;
    if (code < 0)
        return code;
    beside->ratio[i] = beside->alone[i].latency.p50 > 0
                           ? row->rounds_walrus[i].latency.p50 / beside->alone[i].latency.p50
                           : 0;
    row->rounds++;
    return 0;
}

static void note_beside(struct row *row, const struct beside *beside)
{
    double p50[ROUNDS_MOST], p99[ROUNDS_MOST], ratio[ROUNDS_MOST], stream[ROUNDS_MOST];
    for (uint32_t i = 0; i < row->rounds; i++) {
        p50[i] = beside->alone[i].latency.p50;
        p99[i] = beside->alone[i].latency.p99;
        ratio[i] = beside->ratio[i];
        stream[i] = beside->stream_bytes_per_s[i];
    }
    row_medians(row);
    double slower = row_median(ratio, row->rounds);
    row_extra(row, "alone_p50_us", row_median(p50, row->rounds));
    row_extra(row, "alone_p99_us", row_median(p99, row->rounds));
    row_extra(row, "stream_bytes_per_s", row_median(stream, row->rounds));
    row_extra(row, "p50_times_alone", slower);
    row_goal(row, false, SLOWER_GOAL, slower, "p50 <= 3 x the same without the stream");
}

int scenario_beside_stream(struct bench *bench, struct error *err)
{
    static const struct load preset = {.producers = 1,
                                       .topics = 1,
                                       .batch = 100,
                                       .size = 700,
                                       .depth = 1,
                                       .seconds = 0.2, /* the stream shall not outgrow the prepared space */
                                       .wait = WAIT_SPIN,
                                       SYNC};
    struct load load = options_over(&bench->options, &preset);
    struct beside beside = {0};
    struct stage_set stage;
    struct row *row = row_new(bench, "P11", "P1 beside a stream of 10 GiB", &load);
    if (row == NULL)
        return error_set(err, -ENOSPC, "too many rows; name fewer scenarios");
    int code = stage_begin(&stage, bench, load.durability, err);
    if (code < 0)
        goto out;
    uint32_t rounds = bench->options.rounds != 0 ? bench->options.rounds : DEFAULT_ROUNDS;
    code = stage_prime(&stage, &load, err);
    while (code == 0 && row->rounds < rounds) {
        progress(bench, "P11: round %u of %u", row->rounds + 1, rounds);
        code = round_beside(&stage, row, &beside, err);
    }
    if (code == 0) {
        note_beside(row, &beside);
        progress(bench, "P11: reading back");
        code = stage_read_back(&stage, &row->read_back, err);
    }
    stage_end(&stage);
out:
    if (code < 0)
        bench->row_count--;
    return code;
}
