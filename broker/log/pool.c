/* pool.c: segments prepared ahead, so that a change of segment costs two small flushes and no allocation.
 *
 * Happy path, one file at a time, all of it in the helper thread:
 *   1. CREATE NNN.new -> ALLOCATE its whole length -> FLUSH -> RENAME to NNN.segment -> SYNC the folder ->
 *      ready. A file is the store's only after all of that (G19): before, a power cut may leave it short,
 *      unnamed or not there, and a start removes what it finds under the .new name.
 *   2. The log is quiet, nothing is missing, and a ready segment lacks zeroes: it is taken out, ZERO step by
 *      step for as long as the log stays quiet, FLUSH_ZEROS after the last one, and it is ready again.
 *
 * What is kept: two whole segments (one to change to, one that stays back so that a start on a full disk has
 * room for what it must copy) and two header-only ones (roll-back and start when there is no space at all).
 *
 * Zeroes: a write into pre-written blocks needs no extent conversion in the file system's journal: a durable
 * 72 KiB takes 140 us there and 200 in blocks that are merely allocated. But a zero written beside a group
 * makes that one late. So they are written only while no group was for QUIET_NS, and in small steps at first;
 * a log that is never quiet goes on in segments as they were allocated. Which of the two a segment is, is
 * decided when it becomes the current one: zeroes go only into files that are not in the log, and only what
 * is taken out of the ready ones is written to, so that no group waits for zeroes longer than one step.
 *
 * Failure: any error undoes the file (close, unlink), is kept in pool->error for admission, and is tried
 * again after a second: a full disk heals by itself (G9). */
#include "internal.h"

#define ZERO_STEP       (1ull << 20)
#define ZERO_SMALL_STEP (128ull << 10)
#define ZERO_LIMIT      (64ull << 20) /* per file */
#define QUIET_NS        (NS_PER_SECOND / 1000)
#define LONG_QUIET_NS   (NS_PER_SECOND / 50)
#define RETRY_NS        NS_PER_SECOND

static void step_done(struct io_op *op);

static uint32_t count_large(const struct log *log)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < log->pool.count; i++)
        n += log->pool.ready[i].length > log->block;
    return n;
}

uint64_t pool_segment_length(const struct log *log)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < log->segment_count && used < 2 * SEGMENT_SMALL; i++)
        used += log->segments[i]->end;
    uint64_t full = log->options.segment_bytes;
    return used < 2 * SEGMENT_SMALL && full > SEGMENT_SMALL ? SEGMENT_SMALL : full;
}

static uint64_t zero_limit(const struct spare *spare)
{
    return min_u64(spare->length, ZERO_LIMIT);
}

static bool lacks_zeros(const struct log *log, const struct spare *spare)
{
    return spare->length > log->block && spare->zeroed < zero_limit(spare);
}

void pool_put(struct log *log, struct spare spare)
{
    check_bug(log->pool.count < POOL_MAX);
    log->pool.ready[log->pool.count++] = spare;
    log->pool.lack_zeros += lacks_zeros(log, &spare);
}

static struct spare take_out(struct log *log, uint32_t i)
{
    struct pool *p = &log->pool;
    struct spare spare = p->ready[i];
    p->ready[i] = p->ready[--p->count];
    p->lack_zeros -= lacks_zeros(log, &spare);
    return spare;
}

/* Whether a change of segment may have one: the last large one stays back, because it is not known whether
 * another can be made, and a start on a full disk needs it. */
bool pool_can_spare(const struct log *log)
{
    return count_large(log) >= (log->options.prepare_only_spare ? 1 : POOL_SEGMENTS);
}

bool pool_fits(const struct log *log, uint64_t at_least)
{
    for (uint32_t i = 0; i < log->pool.count; i++)
        if (log->pool.ready[i].length >= at_least)
            return true;
    return false;
}

/* Of two, the one that a change of segment takes: the smaller one, then the one with zeroes. */
static bool is_better(const struct spare *spare, const struct spare *than)
{
    return spare->length != than->length ? spare->length < than->length : spare->zeroed > than->zeroed;
}

/* `any`: for a roll-back or a start: the smallest that is large enough, else whatever there is. */
bool pool_take(struct log *log, uint64_t at_least, bool any, struct spare *out)
{
    struct pool *p = &log->pool;
    if (!any && !pool_can_spare(log))
        return false;
    uint32_t best = POOL_MAX;
    for (uint32_t i = 0; i < p->count; i++) {
        bool fits = p->ready[i].length >= at_least;
        if (!fits && !any)
            continue;
        if (best == POOL_MAX ||
            (fits && (p->ready[best].length < at_least || is_better(&p->ready[i], &p->ready[best]))))
            best = i;
    }
    if (best == POOL_MAX)
        return false;
    *out = take_out(log, best);
    return true;
}

static void step(struct log *log, enum pool_state state, struct io_op op)
{
    struct pool *p = &log->pool;
    p->state = state;
    op.background = true;
    op.owner = log;
    op.done = step_done;
    p->op = op;
    io_submit(log->io, &p->op);
}

static void undo(struct log *log)
{
    struct pool *p = &log->pool;
    if (p->making.file != NULL && !p->closing) {
        p->closing = true;
        step(log, POOL_UNDO, (struct io_op){.kind = IO_CLOSE, .file = p->making.file});
        p->making.file = NULL;
        return;
    }
    if (!p->unlinked) {
        p->unlinked = true;
        step(log, POOL_UNDO, (struct io_op){.kind = IO_UNLINK, .name = p->name});
        return;
    }
    p->state = POOL_IDLE;
}

static void failed(struct log *log, const char *what, int error)
{
    struct pool *p = &log->pool;
    if (p->error == 0)
        log_say(log, error == -ENOSPC ? SAY_WARNING : SAY_ERROR,
                "cannot prepare a segment (%s): %s; trying again each second", what, strerror(-error));
    p->error = error;
    p->retry_at = io_now(log->io) + RETRY_NS;
    undo(log);
}

/* ------------------------------------------------------------------------------------------------ zeroes */

static bool nothing_to_commit(const struct log *log)
{
    return !log->stopping && log->commit.state == COMMIT_IDLE && log->gather->count == 0;
}

static bool quiet(const struct log *log, int64_t for_ns)
{
    return nothing_to_commit(log) && io_now(log->io) - log->last_group_ns >= for_ns;
}

static bool zeros_wanted(const struct log *log)
{
    return log->pool.lack_zeros > 0 && !log->options.prepare_only_spare;
}

/* Cleared at first use: a start that has nothing to zero need not touch a megabyte. */
static void *zeros(struct pool *p)
{
    if (!p->zeros_cleared)
        memset(p->zeros, 0, ZERO_STEP);
    p->zeros_cleared = true;
    return p->zeros;
}

static void zero_step(struct log *log)
{
    struct pool *p = &log->pool;
    uint64_t length = quiet(log, LONG_QUIET_NS) ? ZERO_STEP : ZERO_SMALL_STEP;
    step(log, POOL_ZERO,
         (struct io_op){.kind = IO_WRITE,
                        .file = p->making.file,
                        .buffer = zeros(p),
                        .offset = p->making.zeroed,
                        .length = min_u64(length, zero_limit(&p->making) - p->making.zeroed)});
}

static void zero_begin(struct log *log)
{
    struct pool *p = &log->pool;
    if (!zeros_wanted(log) || !quiet(log, QUIET_NS))
        return;
    uint32_t i = 0;
    while (!lacks_zeros(log, &p->ready[i]))
        i++;
    p->making = take_out(log, i);
    snprintf(p->name, sizeof p->name, SEGMENT_FILE, (unsigned long long)p->making.file_number);
    p->closing = p->unlinked = false;
    zero_step(log);
}

static void made(struct log *log)
{
    struct pool *p = &log->pool;
    pool_put(log, p->making);
    p->making.file = NULL;
    p->state = POOL_IDLE;
}

static void zero_step_done(struct log *log, uint64_t length)
{
    struct pool *p = &log->pool;
    p->making.zeroed += length;
    if (!lacks_zeros(log, &p->making))
        step(log, POOL_FLUSH_ZEROS, (struct io_op){.kind = IO_FLUSH, .file = p->making.file});
    else if (quiet(log, QUIET_NS))
        zero_step(log);
    else
        made(log); /* the rest when it is quiet again */
}

/* ---------------------------------------------------------------------------------------------- new files */

static const char *const step_names[] = {[POOL_IDLE] = "",
                                         [POOL_CREATE] = "create",
                                         [POOL_ALLOCATE] = "allocate",
                                         [POOL_FLUSH] = "flush",
                                         [POOL_RENAME] = "rename",
                                         [POOL_SYNC] = "flush of the folder",
                                         [POOL_ZERO] = "write zeros",
                                         [POOL_FLUSH_ZEROS] = "flush zeros",
                                         [POOL_UNDO] = "undo"};

static void step_done(struct io_op *op)
{
    struct log *log = op->owner;
    struct pool *p = &log->pool;
    op->done = NULL;
    if (log->abandoned)
        return;
    if (p->state == POOL_UNDO) {
        undo(log);
        return;
    }
    log_flush_lost(log, op, "the flush of a segment that is being prepared");
    if (op->result < 0 || (p->state == POOL_ZERO && op->result != (int64_t)op->length)) {
        failed(log, step_names[p->state], op->result < 0 ? (int)op->result : -ENOSPC);
        return;
    }
    switch (p->state) {
    case POOL_CREATE:
        p->making.file = op->file;
        step(log, POOL_ALLOCATE,
             (struct io_op){.kind = IO_ALLOCATE, .file = p->making.file, .length = p->making.length});
        break;
    case POOL_ALLOCATE:
        step(log, POOL_FLUSH, (struct io_op){.kind = IO_FLUSH, .file = p->making.file});
        break;
    case POOL_FLUSH:
        step(log, POOL_RENAME, (struct io_op){.kind = IO_RENAME, .name = p->name, .new_name = p->new_name});
        break;
    case POOL_RENAME:
        snprintf(p->name, sizeof p->name, "%s", p->new_name);
        step(log, POOL_SYNC, (struct io_op){.kind = IO_SYNC_DIRECTORY});
        break;
    case POOL_SYNC:
        if (p->error != 0)
            log_say(log, SAY_NOTICE, "segments can be prepared again");
        p->error = 0;
        made(log);
        break;
    case POOL_ZERO:
        zero_step_done(log, op->length);
        break;
    case POOL_FLUSH_ZEROS:
        made(log);
        break;
    case POOL_IDLE:
    case POOL_UNDO:
        check_bug(false);
    }
}

static void make(struct log *log, uint64_t length)
{
    struct pool *p = &log->pool;
    p->making = (struct spare){.file_number = p->next_file++, .length = length};
    p->closing = p->unlinked = false;
    snprintf(p->name, sizeof p->name, SEGMENT_NEW, (unsigned long long)p->making.file_number);
    snprintf(p->new_name, sizeof p->new_name, SEGMENT_FILE, (unsigned long long)p->making.file_number);
    step(log, POOL_CREATE, (struct io_op){.kind = IO_CREATE, .name = p->name});
}

void pool_turn(struct log *log)
{
    struct pool *p = &log->pool;
    if (log->failed.code != 0)
        return;
    bool needed = log->gather->count > 0 || log->commit.state == COMMIT_ROLL_WAIT;
    if (p->state != POOL_IDLE || (log->stopping && !needed))
        return;
    if (p->error != 0 && io_now(log->io) < p->retry_at)
        return;
    uint32_t large = count_large(log), headers = p->count - large;
    uint32_t want = log->options.prepare_only_spare ? 1 : POOL_SEGMENTS;
    if (p->count >= POOL_MAX)
        return;
    /* A header first: it is quickly done, and a roll-back needs at least that. */
    bool header = headers == 0 || (large > 0 && headers < POOL_HEADERS);
    bool whole = large < want || (large < POOL_SEGMENTS && p->error != 0);
    if (header || whole) {
        make(log, header ? log->block : pool_segment_length(log));
        return;
    }
    p->error = 0; /* nothing is missing */
    zero_begin(log);
}

int64_t pool_deadline(const struct log *log)
{
    const struct pool *p = &log->pool;
    if (p->state != POOL_IDLE)
        return INT64_MAX;
    if (p->error != 0)
        return p->retry_at;
    return zeros_wanted(log) && nothing_to_commit(log) ? log->last_group_ns + QUIET_NS : INT64_MAX;
}

bool pool_busy(const struct log *log)
{
    return log->pool.state != POOL_IDLE;
}

/* Only while stopping, with no op under way: what was being made is left for the next start to remove. */
void pool_free(struct log *log)
{
    struct pool *p = &log->pool;
    free(p->zeros);
    p->zeros = NULL;
}

int pool_make_now(struct log *log, uint64_t length, bool zero, struct spare *out, struct error *err)
{
    struct pool *p = &log->pool;
    struct io *io = log->io;
    struct spare s = {.file_number = p->next_file++, .length = length};
    char name[32], new_name[32];
    snprintf(name, sizeof name, SEGMENT_NEW, (unsigned long long)s.file_number);
    snprintf(new_name, sizeof new_name, SEGMENT_FILE, (unsigned long long)s.file_number);
    const char *what = "create";
    int error = io_open_file(io, name, true, 0, &s.file);
    if (error == 0) {
        what = "allocate";
        struct io_op op = {.kind = IO_ALLOCATE, .file = s.file, .length = length, .background = true};
        error = (int)io_run(io, &op);
        uint64_t limit = zero && length > log->block ? min_u64(length, 8 * ZERO_STEP) : 0;
        for (uint64_t at = 0; at < limit && error == 0; at += ZERO_STEP) {
            what = "write zeros";
            error = io_write_full(io, s.file, zeros(p), at, min_u64(ZERO_STEP, limit - at));
        }
    }
    if (error == 0) {
        what = "flush";
        error = (int)io_simple(io, IO_FLUSH, s.file, NULL, NULL);
    }
    if (error == 0) {
        what = "rename";
        error = (int)io_simple(io, IO_RENAME, NULL, name, new_name);
    }
    if (error == 0) {
        what = "flush of the folder";
        error = (int)io_simple(io, IO_SYNC_DIRECTORY, NULL, NULL, NULL);
    }
    if (error == 0) {
        *out = s;
        return 0;
    }
    if (s.file != NULL) {
        (void)io_simple(io, IO_CLOSE, s.file, NULL, NULL);
        (void)io_simple(io, IO_UNLINK, NULL, name, NULL);
    }
    return error_set(err, error, "store %s: cannot make segment file %s of %llu bytes (%s): %s%s", io->folder,
                     new_name, (unsigned long long)length, what, strerror(-error),
                     error == -ENOSPC ? "; free some space on the disk" : "");
}
