/* stage.c: the broker of a row, its store, its counters, its ledger.
 *
 * Happy path: a fresh folder and a fresh store, a broker of our own that is ready before anything is timed;
 * rounds of producers on it, with what it counted meanwhile; stop, start, read everything back; remove
 * everything.
 *
 * Failure modes: a broker that ends is found by the round that it spoils, with its last words. One that does
 * not say what it has prepared (an older one, or of --socket without a counters file) is taken to have
 * POOL_GUESS. */
#include <unistd.h>

#include "../libclient/include/walrus.h"
#include "row.h"

#define WARM_NS         INT64_C(150000000)
#define SETTLE_NS       INT64_C(10000000000)
#define POOL_GUESS      (UINT64_C(128) << 20) /* prepared space if the broker does not say */
#define COUNTER_LOOKS   60
#define COUNTER_LOOK_NS 10000000
#define PRIME_BYTES     (UINT64_C(96) << 20)

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

/* What the broker counted in a round. `before` NULL: it does not say. */
static void note_counters(struct numbers *n, const struct load *load, const struct stat_values *before,
                          const struct stat_values *after)
{
    if (before == NULL || after->log_log_bytes <= before->log_log_bytes)
        return;
    n->log_bytes = (double)(after->log_log_bytes - before->log_log_bytes);
    n->log_factor = n->written_bytes > 0 ? n->log_bytes / n->written_bytes : 0;
    if (after->log_flushes > before->log_flushes)
        n->entries_per_flush =
            n->written_bytes / (double)load->size / (double)(after->log_flushes - before->log_flushes);
}

int stage_round(struct stage_set *stage, const struct load *load, const struct load *beside,
                uint64_t syscall_event, struct producers_result *result, struct error *err)
{
    uint64_t space = POOL_GUESS;
    bool known = prepared_space(stage, &space);
    struct stat_snapshot before = {0}, after = {0};
    bool counted = fresh_counters(stage, &before) == 0;
    struct producers_request request = {
        .load = load,
        .pool = &stage->bench->pool,
        .socket_path = stage->socket,
        .topic_prefix = stage->ledger.topic_prefix,
        .run = ledger_run(&stage->ledger),
        .beside = beside,
        .warm_ns = WARM_NS,
        .broker_pid = stage->broker.pid != 0 ? stage->broker.pid : stage->broker_pid,
        .syscall_event = syscall_event,
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
    counted = counted && fresh_counters(stage, &after) == 0;
    note_counters(&result->numbers, load, counted ? &before.values : NULL, &after.values);
    double used = result->numbers.log_bytes > 0 ? result->numbers.log_bytes : result->numbers.written_bytes;
    result->numbers.prepared_known = known;
    result->numbers.prepared = used <= (double)space;
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

int stage_fill(struct stage_set *stage, const struct load *like, uint64_t bytes, struct error *err)
{
    struct load load = {
        .producers = 1, .topics = 1, .batch = 100, .size = 10000, .depth = 2, .wait = WAIT_BLOCK};
    struct producers_result result;
    load.count = max_u64(bytes / load_batch_bytes(&load), 1);
    load.level = like->level;
    memcpy(load.durability, like->durability, sizeof load.durability);
    int code = stage_round(stage, &load, NULL, 0, &result, err);
    return code < 0 ? error_wrap(err, "before the first round") : 0;
}

int stage_prime(struct stage_set *stage, const struct load *like, struct error *err)
{
    return stage_fill(stage, like, PRIME_BYTES, err);
}

int stage_create_topics(struct stage_set *stage, const struct load *like, struct error *err)
{
    struct producers_result result;
    struct load load = *like;
    load.seconds = 0;
    load.rate = 0;
    load.count = UINT64_C(2) * load.topics;
    int code = stage_round(stage, &load, NULL, 0, &result, err);
    return code < 0 ? error_wrap(err, "creating the topics") : 0;
}
