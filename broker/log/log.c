/* log.c: one log from start to stop.
 *
 *   log_start   options -> folder claimed -> recovery -> serving
 *   log_turn    answers, commit, change of segment, pool, checkpoint, index, reads: each takes one step if it
 *               can
 *   log_stop    refuse, commit what gathered, flush, clean checkpoint, release
 *
 * Everything moves in log_turn and in the `done` of an op, both in the owner's one thread. */
#include "internal.h"

#define DEFAULT_MEMORY    (48ull << 20)
#define MIN_MEMORY        (24ull << 20)
#define DEFAULT_INTERVAL  (200 * INT64_C(1000000))
#define DEFAULT_TOPICS    65536u
#define DEFAULT_NAMED     65536u
#define DEFAULT_ANONYMOUS 4096u
#define DEFAULT_LOCK_WAIT (30 * NS_PER_SECOND)
#define WALL_AGE          (NS_PER_SECOND / 1000)

void log_say(struct log *log, enum say priority, const char *format, ...)
{
    if (log->options.say == NULL)
        return;
    char line[640];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    log->options.say(log->options.context, priority, line);
}

void log_fail(struct log *log, const char *format, ...)
{
    if (log->failed.code != 0)
        return;
    char text[440];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    error_set(&log->failed, -EIO, "store %s: %s", log->io->folder, text);
    log_say(log, SAY_ERROR, "%s", log->failed.text);
}

void log_flush_lost(struct log *log, const struct io_op *op, const char *what)
{
    if ((op->kind != IO_FLUSH && op->kind != IO_SYNC_DIRECTORY) || op->result >= 0 || op->result == -ENOSPC ||
        op->result == -EDQUOT)
        return;
    log_fail(log,
             "%s failed: %s; what the device has dropped is not known, and the log's last group may be of "
             "it: nothing in flight is answered, the next start decides what is in the log",
             what, strerror((int)-op->result));
}

const struct error *log_failed(const struct log *log)
{
    return log->failed.code != 0 ? &log->failed : NULL;
}

const char *log_store_id(const struct log *log)
{
    return log->store_id_text;
}

void *log_aligned(size_t size)
{
    return aligned_alloc(BLOCK_MAX, align_up(size, BLOCK_MAX));
}

int log_push_segment(struct log *log, const struct segment *segment)
{
    if (log->segment_count == log->segment_room) {
        uint32_t room = log->segment_room == 0 ? 64 : log->segment_room * 2;
        struct segment **segments = realloc(log->segments, room * sizeof(struct segment *));
        if (segments == NULL)
            return -ENOMEM;
        log->segments = segments;
        log->segment_room = room;
    }
    struct segment *copy = malloc(sizeof *copy);
    if (copy == NULL)
        return -ENOMEM;
    *copy = *segment;
    log->segments[log->segment_count++] = copy;
    return 0;
}

/* Two clocks for the price of one; a step of the wall clock is seen after WALL_AGE. */
uint64_t log_wall(struct log *log, int64_t now)
{
    if (log->wall_seen == 0 || now - log->wall_seen >= WALL_AGE) {
        log->wall_seen = now;
        log->wall_ahead = log->io->functions->wall(log->io) - io_now(log->io);
    }
    return (uint64_t)(now + log->wall_ahead);
}

/* What may be unflushed must fit, together with one group, into the segment that a start would copy it to. */
int64_t log_flush_limit(const struct log *log)
{
    uint64_t smallest = min_u64(log->options.segment_bytes, SEGMENT_SMALL);
    uint64_t rest = smallest - log->block - GROUP_MAX;
    rest = rest > GROUP_MAX ? rest - GROUP_MAX : 0;
    return (int64_t)min_u64(rest, UNFLUSHED_MAX);
}

/* ------------------------------------------------------------------------------------------------ start */

static int options_fill(struct log *log, const struct log_options *options, struct error *err)
{
    struct log_options *o = &log->options;
    *o = *options;
    if (o->segment_bytes == 0)
        o->segment_bytes = SEGMENT_DEFAULT;
    if (o->memory_bytes == 0)
        o->memory_bytes = DEFAULT_MEMORY;
    if (o->interval_ns == 0)
        o->interval_ns = DEFAULT_INTERVAL;
    if (o->max_topics == 0)
        o->max_topics = DEFAULT_TOPICS;
    if (o->max_topics_of_uid == 0)
        o->max_topics_of_uid = o->max_topics;
    if (o->max_named == 0)
        o->max_named = DEFAULT_NAMED;
    if (o->max_named_of_uid == 0)
        o->max_named_of_uid = o->max_named;
    if (o->max_anonymous == 0)
        o->max_anonymous = DEFAULT_ANONYMOUS;
    if (o->max_batch_bytes == 0)
        o->max_batch_bytes = MAX_BATCH_BYTES;
    if (o->lock_wait_ns == 0)
        o->lock_wait_ns = DEFAULT_LOCK_WAIT;
    if (o->level == 0)
        o->level = LEVEL_DURABLE;
    log->block = o->commit_align != 0 ? o->commit_align : (uint32_t)max_u64(log->io->align, BLOCK_MIN);
    if (!is_power_of_two(log->block) || log->block < log->io->logical_block || log->block < BLOCK_MIN ||
        log->block > BLOCK_MAX)
        return error_set(err, -EINVAL, "--commit-align %u: it must be a power of two from %llu to %u here",
                         log->block, (unsigned long long)max_u64(log->io->logical_block, BLOCK_MIN),
                         BLOCK_MAX);
    if (o->segment_bytes < SEGMENT_MIN || o->segment_bytes > SEGMENT_MAX)
        return error_set(err, -EINVAL, "--segment %llu: it must be from %llu to %llu bytes",
                         (unsigned long long)o->segment_bytes, (unsigned long long)SEGMENT_MIN,
                         (unsigned long long)SEGMENT_MAX);
    o->segment_bytes = align_up(o->segment_bytes, BLOCK_MAX);
    if (o->memory_bytes < MIN_MEMORY)
        return error_set(err, -EINVAL, "--memory %llu: it must be at least %llu bytes",
                         (unsigned long long)o->memory_bytes, (unsigned long long)MIN_MEMORY);
    if (o->level > LEVEL_DURABLE || o->interval_ns < 0)
        return error_set(err, -EINVAL, "durability: level or interval out of range");
    return 0;
}

static int buffers_make(struct log *log, struct error *err)
{
    bool large = log->options.memory_bytes >= 40u << 20;
    log->group_count = large ? BUFFERS_MAX : 2;
    log->slot_count = large ? SLOTS_MAX : 2;
    bool ok = true;
    for (uint32_t i = 0; i < log->group_count; i++) {
        struct group *g = &log->groups[i];
        g->data = aligned_alloc(IO_LARGE_PAGE, GROUP_MAX);
        if (g->data != NULL)
            io_prepare_memory(log->io, g->data, GROUP_MAX);
        g->notes = malloc(NOTES_MAX * sizeof *g->notes);
        ok = ok && g->data != NULL && g->notes != NULL;
        g->used = sizeof(struct group_header);
    }
    log->commit.header = log_aligned(BLOCK_MAX);
    log->pool.zeros = log_aligned(1u << 20);
    if (log->options.watermarks != NULL) {
        log->watermark_pile = malloc(log->options.watermark_slots * sizeof *log->watermark_pile);
        ok = ok && log->watermark_pile != NULL;
    }
    if (!ok || log->commit.header == NULL || log->pool.zeros == NULL)
        return error_set(err, -ENOMEM, "store %s: out of memory", log->io->folder);
    log->gather = &log->groups[0];
    log->early_last = &log->early_first;
    log->reads_last = &log->reads_first;
    return 0;
}

/* Closes every file and frees; no op is in flight. */
static void release(struct log *log)
{
    struct io *io = log->io;
    for (uint32_t i = 0; i < log->pool.count; i++)
        (void)io_simple(io, IO_CLOSE, log->pool.ready[i].file, NULL, NULL);
    if (log->pool.making.file != NULL)
        (void)io_simple(io, IO_CLOSE, log->pool.making.file, NULL, NULL);
    index_free(log);
    for (uint32_t i = 0; i < log->segment_count; i++) {
        if (log->segments[i]->file != NULL)
            (void)io_simple(io, IO_CLOSE, log->segments[i]->file, NULL, NULL);
        free(log->segments[i]);
    }
    free(log->segments);
    pool_free(log);
    producers_free(log);
    topics_free(log);
    for (uint32_t i = 0; i < log->group_count; i++) {
        free(log->groups[i].data);
        free(log->groups[i].notes);
    }
    for (uint32_t i = 0; i < log->slot_count; i++)
        free(log->slots[i].buffer);
    free(log->commit.header);
    free(log->checkpoint.bytes);
    free(log);
}

int log_start(const struct log_options *options, struct log **out, struct error *err)
{
    struct log *log = calloc(1, sizeof *log);
    if (log == NULL)
        return error_set(err, -ENOMEM, "store %s: out of memory", options->io->folder);
    log->io = options->io;
    log->next_topic = 1;
    log->small_at = -SMALL_LINGER;
    int64_t began = io_now(log->io);
    struct store_list list = {0};
    int error = options_fill(log, options, err);
    if (error == 0)
        error = buffers_make(log, err);
    if (error == 0)
        error = store_open(log, &list, err);
    if (error == 0) {
        error = recover(log, &list, err);
        if (error != 0) {
            /* Files that recovery opened and has not given to the chain or the pool. */
            for (size_t i = 0; i < list.count; i++)
                if (list.files[i].file != NULL && !list.files[i].used)
                    (void)io_simple(log->io, IO_CLOSE, list.files[i].file, NULL, NULL);
        }
        store_list_free(&list);
    }
    if (error != 0) {
        log->abandoned = true;
        release(log);
        return error;
    }
    producers_settle(log);
    struct segment *current = log_current(log);
    log->stats.epoch = log->epoch;
    log->stats.segment_number = current->number;
    log->stats.start_ns = (uint64_t)(io_now(log->io) - began);
    log->last_group_ns = io_now(log->io);
    if (log->next_group > 1)
        log->checkpoint.dirty_since = log->last_group_ns;
    log->checkpoint.wanted = log->stats.start_groups_walked > 0;
    log_say(log, SAY_NOTICE,
            "store %s: id %s, epoch %llu, segment %llu, %llu groups walked, %llu copied, %.1f ms",
            log->io->folder, log->store_id_text, (unsigned long long)log->epoch,
            (unsigned long long)current->number, (unsigned long long)log->stats.start_groups_walked,
            (unsigned long long)log->stats.start_groups_copied, (double)log->stats.start_ns / 1e6);
    *out = log;
    return 0;
}

/* ------------------------------------------------------------------------------------------------ turn */

bool log_busy(const struct log *log)
{
    return log->commit.state != COMMIT_IDLE || log->gather->count > 0 || log->early_first != NULL;
}

int64_t log_delayed_until(const struct log *log)
{
    return log->delay.waiting ? log->delay.until : 0;
}

static int64_t deadline(const struct log *log)
{
    int64_t at = checkpoint_deadline(log);
    if (log->unflushed_bytes > 0 && log->commit.state == COMMIT_IDLE) {
        int64_t flush = log->unflushed_since + log->options.interval_ns;
        at = flush < at ? flush : at;
    }
    if (log->delay.waiting && log->delay.until < at)
        at = log->delay.until;
    int64_t pool = pool_deadline(log);
    return pool < at ? pool : at;
}

int64_t log_turn(struct log *log)
{
    if (log->abandoned || log->failed.code != 0)
        return INT64_MAX;
    gather_answer_early(log);
    commit_turn(log);
    reads_turn(log);
    index_turn(log);
    checkpoint_turn(log);
    commit_turn(log); /* a checkpoint may want a flush */
    pool_turn(log);
    io_kick(log->io);
    return deadline(log);
}

/* ------------------------------------------------------------------------------------------------ stop */

static bool background_busy(const struct log *log)
{
    return pool_busy(log) || log->checkpoint.bytes != NULL || index_busy(log) || reads_busy(log) ||
           log->commit.cutting;
}

void log_abandon(struct log *log)
{
    log->abandoned = true;
    io_kick(log->io);
    while (log->io->inflight > 0)
        io_wait(log->io, -1);
    release(log);
}

/* So that readers of the next life need not wait for a rebuild of what was the current segment. */
static void index_save(struct log *log)
{
    struct segment *current = log_current(log);
    if (current->end <= log->block || index_close(log, current) != 0)
        return;
    index_write_now(log, current);
}

int log_stop(struct log *log, struct error *err)
{
    log->stopping = true;
    while (log->failed.code == 0 && (log_busy(log) || log->reads_first != NULL || background_busy(log))) {
        log_turn(log);
        if (log->io->inflight > 0)
            io_wait(log->io, -1);
    }
    while (log->failed.code == 0 && (log->unflushed_bytes > 0 || log->commit.state != COMMIT_IDLE)) {
        log->flush_wanted = true;
        log_turn(log);
        if (log->io->inflight > 0)
            io_wait(log->io, -1);
    }
    int error = 0;
    if (log->failed.code != 0) {
        error = error_set(err, log->failed.code, "%s", log->failed.text);
        log->abandoned = true;
    } else {
        index_save(log);
        error = checkpoint_write_now(log, true, err);
    }
    while (log->io->inflight > 0)
        io_wait(log->io, -1);
    release(log);
    return error;
}

/* ------------------------------------------------------------------------------------------------ numbers */

void log_stats(const struct log *log, struct log_stats *stats)
{
    *stats = log->stats;
    stats->prepared_segments = 0;
    const struct segment *current = log_current(log);
    stats->segments = log->segment_count;
    for (uint32_t i = 0; i < log->pool.count; i++)
        stats->prepared_segments += log->pool.ready[i].length > log->block;
    stats->space_free = log->io->functions->space_free(log->io);
    stats->segment_used = current->end;
    stats->segment_length = current->length;
    stats->streams_open = log->streams_open;
    stats->memory_bytes = (uint64_t)log->group_count * GROUP_MAX + log->image_bytes;
}
