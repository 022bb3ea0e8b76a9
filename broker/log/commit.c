/* commit.c: making one group durable, and what happens when that fails (step 6 of DESIGN section 2).
 *
 * Happy path
 *   1. commit_turn(): nothing is in flight and something has gathered: the group is sealed (sequences,
 *      catalogue entries, headers) and submitted as a few large writes to one contiguous range of the current
 *      segment. The other buffer gathers.
 *   2. All writes are reaped, then one flush is submitted, if anything in the group is to be answered at
 *      durable, or much log is unflushed.
 *   3. The flush is reaped: index, sequences and catalogue take effect, then completions in order, then
 *      followers wake.
 *   4. The group does not fit: the current segment is flushed, the header of a prepared segment, which says
 *      where the current one ends, is written and flushed; then that one is current. Its predecessor is
 *      truncated at its end, in the background.
 *
 *                       fits                          all writes good          needs no flush
 *     IDLE ----------------------------> WRITE ----------------------------------------------> IDLE
 *       |                                 ^  |  \_____ needs one _____> FLUSH ---- good -----> IDLE
 *       | does not fit                    |  |                            |
 *       v                                 |  | a write failed             | bad: fail-stop
 *     CHANGE_FLUSH -> CHANGE_HEADER -> CHANGE_PROVE <----+ ROLL_WAIT      v
 *       |  bad            | bad           | bad          |              (G10)
 *       +-----------------+---------------+--> fail-stop |
 *                                                        |
 *   5. A write of the group failed: the same change of segment, from the group's start: "roll". From the
 *      moment its header is durable the failed bytes can never count, whatever they are. Then the group is
 *      written again there, once. If that fails too, the log rolls once more and the group's writes are
 *      answered with the error: never before that header is flushed (G3). While the pool has no spare yet
 *      (the first moments of a broker) the roll waits for it; if none can be made: fail-stop.
 *   6. A failed flush, a failed header: nothing is answered any more; recovery decides once, for ever.
 *
 * Invariants: one group in flight at most; all its completions are reaped before anything else is submitted;
 * nothing is written below current->end; a group is answered only in IDLE's direction of the arrows above. */
#include "internal.h"

#define BRIEF_FLUSH_MOST (256u << 10)

static void change_begin(struct log *log, bool roll);
static void group_write(struct log *log);
static void group_failed(struct log *log, struct group *g, int error);

/* -------------------------------------------------------------------------------------- space and buffers */

bool commit_fits(const struct log *log, uint64_t bytes)
{
    const struct segment *s = log_current(log);
    const struct commit *c = &log->commit;
    uint64_t length = s->length, at = s->end;
    if (c->state == COMMIT_CHANGE_FLUSH || c->state == COMMIT_CHANGE_HEADER ||
        c->state == COMMIT_CHANGE_PROVE) {
        length = c->next.length;
        at = log->block;
    } else if (log->current_rows + log->gather->count >= ROWS_MAX) {
        return false;
    }
    uint64_t inflight = c->group != NULL ? c->group->length : 0;
    check_bug(at <= length);
    return inflight + align_up(bytes, log->block) <= length - at;
}

static void group_reset(struct group *g)
{
    g->count = 0;
    g->used = sizeof(struct group_header);
    g->reserve = 0;
    g->chunk_bytes = 0;
    g->small = 0;
    g->needs_flush = false;
    g->recent = false;
}

/* The buffer that was committed longest ago gathers next; the others stay for readers at the tail. */
static void gather_next(struct log *log)
{
    struct group *best = NULL;
    for (uint32_t i = 0; i < log->group_count; i++) {
        struct group *g = &log->groups[i];
        if (g == log->commit.group)
            continue;
        if (best == NULL || (best->recent && (!g->recent || g->number < best->number)))
            best = g;
    }
    check_bug(best != NULL);
    group_reset(best);
    log->gather = best;
}

/* ------------------------------------------------------------------------------------------------ sealing */

static struct frame_header *note_frame(const struct group *g, uint32_t i)
{
    return (struct frame_header *)(void *)(g->data + g->notes[i].at);
}

static bool has_sequence(const struct frame_header *frame)
{
    return frame->kind == FRAME_BATCH || frame->kind == FRAME_LAST;
}

static void seal_producer(struct group *g, struct producer *producer, uint64_t wall)
{
    if (producer->committed || producer->sealed)
        return;
    producer->sealed = true;
    struct frame_header *entry = (struct frame_header *)(void *)(g->data + g->used);
    producer_entry_write(producer, entry, wall);
    entry->offset = g->used;
    g->used += entry->header_bytes + entry->payload_bytes;
}

/* Gives sequences and adds catalogue entries: once per group. */
static void group_seal(struct log *log, struct group *g)
{
    uint64_t wall = 0; /* looked at if a catalogue entry needs it */
    for (uint32_t i = 0; i < g->count; i++) {
        struct frame_note *note = &g->notes[i];
        struct frame_header *frame = note_frame(g, i);
        struct topic *t = note->topic;
        frame->magic = FRAME_MAGIC;
        frame->topic = t->id;
        if (note->last && note->stream != NULL && note->stream->failed) {
            /* A chunk of it was lost meanwhile: dead bytes, answered with the stream's error. */
            frame->kind = FRAME_CHUNK;
            frame->batch_entries = frame->batch_bytes = frame->first_segment = 0;
        }
        if (has_sequence(frame) && t->level != LEVEL_ACCEPTED) {
            frame->first_sequence = t->next_assign;
            t->next_assign += frame->batch_entries;
        }
        bool new_producer = note->pair != NULL && !note->pair->producer->committed;
        if (wall == 0 && (!t->committed || new_producer))
            wall = log_wall(log, io_now(log->io));
        if (!t->committed && !t->sealed) {
            t->sealed = true;
            struct frame_header *entry = (struct frame_header *)(void *)(g->data + g->used);
            topic_entry_write(t, entry, wall);
            entry->offset = g->used;
            g->used += entry->header_bytes + entry->payload_bytes;
        }
        if (note->pair != NULL && has_sequence(frame)) /* dead bytes bring nobody into the catalogue */
            seal_producer(g, note->pair->producer, wall);
    }
    g->number = log->next_group;
    g->length = (uint32_t)align_up(g->used, log->block);
    check_bug(g->length <= GROUP_MAX);
}

/* Binds the group to its place in the current segment; again after a roll. */
static void group_bind(struct log *log, struct group *g, int64_t now)
{
    const struct segment *s = log_current(log);
    uint32_t frames = 0;
    for (uint32_t at = sizeof(struct group_header); at < g->used; frames++) {
        struct frame_header *frame = (struct frame_header *)(void *)(g->data + at);
        check_bug(frame->offset == at);
        frame_fill(frame, s->identity.seed);
        at += frame->header_bytes + frame->payload_bytes;
    }
    g->segment = s->number;
    g->offset = s->end;
    struct group_facts facts = {
        .number = g->number,
        .offset = g->offset,
        .durable_upto = log->durable_upto,
        .time_ns = log_wall(log, now),
        .previous = log->last_digest,
        .used = g->used,
        .frames = frames,
    };
    group_fill(g->data, &s->identity, &facts);
}

/* --------------------------------------------------------------------------------------------- completion */

static void flushed(struct log *log)
{
    log->stats.flushes++;
    log->durable_upto = log->next_group - 1;
    log->unflushed_bytes = 0;
    log->flush_wanted = false;
    while (log->unflushed_topics != NULL) {
        struct topic *t = log->unflushed_topics;
        log->unflushed_topics = t->unflushed_next;
        t->unflushed = false;
        t->durable_next = t->written_next;
        topic_watermark(log, t);
    }
}

static void answer(struct write *w, struct group *g, const struct frame_header *frame, uint8_t level,
                   int64_t now)
{
    struct topic *t = w->topic;
    w->first_sequence = frame->first_sequence;
    w->committed = frame->batch_entries;
    w->group = g->number;
    w->submitted_ns = g->submitted_ns;
    w->durable_ns = now;
    w->level_reached = level;
    if (t->lost) {
        w->flags |= COMPLETION_EARLIER_LOST;
        t->lost = false;
    }
}

static void take_effect(struct log *log, struct group *g, uint32_t i)
{
    struct frame_note *note = &g->notes[i];
    struct topic *t = note->topic;
    struct frame_header *frame = note_frame(g, i);
    if (!t->committed) {
        check_bug(t->sealed);
        t->committed = true;
        t->sealed = false;
        log->stats.topics++;
    }
    if (has_sequence(frame)) {
        t->next_sequence = t->written_next = frame->first_sequence + frame->batch_entries;
        check_bug(t->next_assign >= t->next_sequence);
        topic_watermark(log, t);
        if (!t->unflushed) {
            t->unflushed = true;
            t->unflushed_next = log->unflushed_topics;
            log->unflushed_topics = t;
        }
        if (note->pair != NULL)
            number_commit(log, note->pair, frame);
        log->stats.batches++;
        log->stats.entries += frame->batch_entries;
    }
    log->stats.payload_bytes += frame->payload_bytes;
    if (index_add(log, t, frame, g->offset) != 0)
        log_fail(log, "out of memory for the index of segment %llu; restart with more memory",
                 (unsigned long long)g->segment);
}

static void group_committed(struct log *log, struct group *g, bool durable)
{
    struct segment *s = log_current(log);
    const struct group_header *header = (const struct group_header *)(const void *)g->data;
    int64_t now = io_now(log->io);
    s->end += g->length;
    log->last_digest = digest_of(s->identity.seed, header, sizeof *header);
    log->next_group++;
    log->stats.groups++;
    log->stats.log_bytes += g->length;
    if (log->unflushed_bytes == 0)
        log->unflushed_since = now;
    log->unflushed_bytes += g->length;
    log->last_group_ns = now;
    log->group_ns += (now - g->submitted_ns - log->group_ns) / 8;
    if (log->checkpoint.dirty_since == 0)
        log->checkpoint.dirty_since = now;
    for (uint32_t i = 0; i < g->count; i++)
        take_effect(log, g, i);
    if (log->failed.code != 0)
        return;
    if (durable)
        flushed(log);
    g->recent = true;
    if (durable)
        delay_answered(log, g->count, now);
    uint8_t level = durable ? LEVEL_DURABLE : LEVEL_WRITTEN;
    for (uint32_t i = 0; i < g->count; i++) {
        struct write *w = g->notes[i].write;
        if (w == NULL)
            continue;
        answer(w, g, note_frame(g, i), level, now);
        w->topic->strong--;
        if (w->kind == WRITE_BATCH) {
            batch_ended(log, w->topic);
        } else if (g->notes[i].last) {
            if (w->stream->failed)
                w->result = w->stream->error;
            else
                gather_stream_end(log, w->stream);
        }
        w->done(w);
    }
    for (uint32_t i = 0; i < g->count; i++) {
        topic_wake(g->notes[i].topic);
        log_topic_release(log, g->notes[i].topic);
    }
    g->count = 0;
}

/* The group is not in the log and never will be. */
static void group_failed(struct log *log, struct group *g, int error)
{
    for (uint32_t i = 0; i < g->count; i++) {
        struct frame_note *note = &g->notes[i];
        struct topic *t = note->topic;
        t->sealed = false;
        if (note->pair != NULL) {
            note->pair->producer->sealed = false;
            note->pair->admitted = note->pair->last;
        }
        if (t->level != LEVEL_ACCEPTED) {
            t->next_assign = t->next_sequence;
        } else if (note->write == NULL && has_sequence(note_frame(g, i))) {
            t->lost = true;
            log->stats.lost_batches++;
            log_say(log, SAY_ERROR,
                    "topic \"%s\": %llu entries from sequence %llu were answered at level accepted and are "
                    "lost: %s",
                    t->name, (unsigned long long)note_frame(g, i)->batch_entries,
                    (unsigned long long)note_frame(g, i)->first_sequence, strerror(-error));
        }
        if (note->stream != NULL)
            gather_stream_fail(log, note->stream, error);
    }
    for (uint32_t i = 0; i < g->count; i++) {
        struct write *w = g->notes[i].write;
        if (w == NULL)
            continue;
        log->stats.failed_batches++;
        w->result = error;
        w->topic->strong--;
        if (w->kind == WRITE_BATCH)
            batch_ended(log, w->topic);
        w->done(w);
    }
    for (uint32_t i = 0; i < g->count; i++)
        log_topic_release(log, g->notes[i].topic);
    g->count = 0;
    if (g != log->gather)
        gather_drop_out_of_order(log);
}

/* ---------------------------------------------------------------------------------------- write and flush */

static void flush_begin(struct log *log, enum commit_state state, struct io_file *file, bool brief);

static void writes_reaped(struct log *log)
{
    struct commit *c = &log->commit;
    struct group *g = c->group;
    if (c->error != 0) {
        const struct segment *s = log_current(log);
        if (log->io->errors_are_final) {
            log_fail(log,
                     "write of group %llu at offset %llu of segment %llu failed: %s; what is on the disk is "
                     "not known",
                     (unsigned long long)g->number, (unsigned long long)g->offset,
                     (unsigned long long)s->number, strerror((int)-c->error));
            return;
        }
        log_say(log, SAY_WARNING,
                "write of group %llu at offset %llu of segment %llu failed: %s; rolling back",
                (unsigned long long)g->number, (unsigned long long)g->offset, (unsigned long long)s->number,
                strerror((int)-c->error));
        log->stats.rollbacks++;
        change_begin(log, true);
        return;
    }
    if (g->needs_flush || log->unflushed_bytes + g->length >= (uint64_t)log_flush_limit(log)) {
        flush_begin(log, COMMIT_FLUSH, log_current(log)->file,
                    log->unflushed_bytes + g->length <= BRIEF_FLUSH_MOST);
        return;
    }
    c->state = COMMIT_IDLE;
    c->group = NULL;
    group_committed(log, g, false);
}

/* EIO can arrive as a short count: the rest is submitted, which tells. Only progress in whole blocks
 * counts. */
static void write_done(struct io_op *op)
{
    struct log *log = op->owner;
    struct commit *c = &log->commit;
    if (!log->abandoned && op->result > 0 && (uint64_t)op->result < op->length &&
        (uint64_t)op->result % log->block == 0) {
        op->buffer = (uint8_t *)op->buffer + op->result;
        op->offset += (uint64_t)op->result;
        op->length -= (uint64_t)op->result;
        io_submit(log->io, op);
        io_kick(log->io);
        return;
    }
    if (op->result != (int64_t)op->length && c->error == 0)
        c->error = op->result < 0 ? op->result : -EIO;
    check_bug(c->op_left > 0);
    if (--c->op_left == 0 && !log->abandoned && log->failed.code == 0)
        writes_reaped(log);
}

static void group_write(struct log *log)
{
    struct commit *c = &log->commit;
    struct group *g = c->group;
    g->submitted_ns = io_now(log->io);
    group_bind(log, g, g->submitted_ns);
    c->state = COMMIT_WRITE;
    c->error = 0;
    c->attempts++;
    uint32_t piece = (uint32_t)align_up((g->length + WRITE_OPS - 1) / WRITE_OPS, BLOCK_MAX);
    if (piece < 512u << 10)
        piece = 512u << 10;
    c->op_count = c->op_left = (g->length + piece - 1) / piece;
    check_bug(c->op_count <= WRITE_OPS);
    for (uint32_t i = 0; i < c->op_count; i++) {
        uint32_t at = i * piece;
        c->ops[i] = (struct io_op){
            .kind = IO_WRITE,
            .file = log_current(log)->file,
            .buffer = g->data + at,
            .offset = g->offset + at,
            .length = g->length - at < piece ? g->length - at : piece,
            .done = write_done,
            .owner = log,
        };
        io_submit(log->io, &c->ops[i]);
    }
}

static void flush_done(struct io_op *op);

static void flush_begin(struct log *log, enum commit_state state, struct io_file *file, bool brief)
{
    struct commit *c = &log->commit;
    c->state = state;
    c->op = (struct io_op){.kind = IO_FLUSH, .brief = brief, .file = file, .done = flush_done, .owner = log};
    io_submit(log->io, &c->op);
}

/* -------------------------------------------------------------------------------------- change of segment */

static void cut_done(struct io_op *op)
{
    struct log *log = op->owner;
    log->commit.cutting = false;
    if (op->result < 0 && !log->abandoned)
        log_say(log, SAY_WARNING, "cannot truncate a closed segment (it only takes space): %s",
                strerror((int)-op->result));
}

static void cut_predecessor(struct log *log, struct segment *s)
{
    struct commit *c = &log->commit;
    if (c->cutting || s->end >= s->length)
        return; /* a start does it later */
    c->cutting = true;
    s->cut = true;
    c->cut = (struct io_op){.kind = IO_TRUNCATE,
                            .background = true,
                            .file = s->file,
                            .length = s->end,
                            .done = cut_done,
                            .owner = log};
    io_submit(log->io, &c->cut);
}

static void change_header_write(struct log *log);

/* The header is durable: from here on it decides where the predecessor ends. */
static void change_done(struct log *log)
{
    struct commit *c = &log->commit;
    struct segment *old = log_current(log);
    struct segment next = {
        .number = c->header->number,
        .file_number = c->next.file_number,
        .length = c->next.length,
        .end = log->block,
        .first_group = c->header->first_group,
        .identity = segment_identity_of(c->header),
        .known = true,
        .file = c->next.file,
    };
    if (index_close(log, old) != 0 || log_push_segment(log, &next) != 0) {
        log_fail(log, "out of memory at a change of segment; restart with more memory");
        return;
    }
    cut_predecessor(log, old);
    log->stats.segment_number = next.number;
    struct group *g = c->group;
    bool room = g->length <= next.length - next.end;
    if (c->roll && (c->give_up || !room)) {
        int error = c->error == -ENOSPC || c->error == -EDQUOT ? -ENOSPC : -EIO;
        log_say(log, SAY_ERROR,
                "group %llu is rolled back for good after %u tries: its batches are answered %s",
                (unsigned long long)g->number, c->attempts, strerror(-error));
        c->state = COMMIT_IDLE;
        c->group = NULL;
        group_failed(log, g, error);
    } else {
        check_bug(room);
        group_write(log);
    }
}

static void flush_done(struct io_op *op)
{
    struct log *log = op->owner;
    struct commit *c = &log->commit;
    if (log->abandoned || log->failed.code != 0)
        return; /* the latter: a flush beside the log failed meanwhile, so a good one proves nothing */
    if (op->result < 0) {
        log_fail(log,
                 "flush of segment %llu failed: %s; nothing in flight is answered, the next start decides "
                 "what is in the log",
                 (unsigned long long)log_current(log)->number, strerror((int)-op->result));
        return;
    }
    if (c->state == COMMIT_CHANGE_FLUSH) {
        flushed(log);
        change_header_write(log);
    } else if (c->state == COMMIT_CHANGE_PROVE) {
        change_done(log);
    } else {
        check_bug(c->state == COMMIT_FLUSH);
        struct group *g = c->group;
        c->state = COMMIT_IDLE;
        c->group = NULL;
        if (g != NULL)
            group_committed(log, g, true);
        else
            flushed(log);
    }
}

static void header_done(struct io_op *op)
{
    struct log *log = op->owner;
    if (log->abandoned || log->failed.code != 0)
        return;
    if (op->result != (int64_t)op->length) {
        log_fail(log, "header of segment %llu (file %llu) cannot be written: %s",
                 (unsigned long long)log->commit.header->number,
                 (unsigned long long)log->commit.next.file_number,
                 strerror(op->result < 0 ? (int)-op->result : EIO));
        return;
    }
    flush_begin(log, COMMIT_CHANGE_PROVE, log->commit.next.file, false);
}

static void change_header_write(struct log *log)
{
    struct commit *c = &log->commit;
    const struct segment *s = log_current(log);
    check_bug(log->unflushed_bytes ==
              0); /* everything before the header in the log is durable: it proves it */
    memset(c->header, 0, log->block);
    *c->header = (struct segment_header){
        .magic = SEGMENT_MAGIC,
        .version = FORMAT_VERSION,
        .block = log->block,
        .number = s->number + 1,
        .file = c->next.file_number,
        .length = c->next.length,
        .epoch = log->epoch,
        .epoch_nonce = log->epoch_nonce,
        .previous_number = s->number,
        .previous_end = s->end,
        .first_group = log->next_group,
        .previous_digest = log->last_digest,
        .durable_upto = log->durable_upto,
        .oldest_number = log->segments[0]->number,
        .created_ns = (uint64_t)log->io->functions->wall(log->io),
    };
    memcpy(c->header->store_id, log->store_id, sizeof log->store_id);
    int error = log->io->functions->random(log->io, c->header->salt, sizeof c->header->salt);
    if (error != 0) {
        log_fail(log, "no random numbers for a segment's salt: %s", strerror(-error));
        return;
    }
    segment_header_fill(c->header);
    c->state = COMMIT_CHANGE_HEADER;
    c->op = (struct io_op){.kind = IO_WRITE,
                           .file = c->next.file,
                           .buffer = c->header,
                           .length = log->block,
                           .done = header_done,
                           .owner = log};
    io_submit(log->io, &c->op);
}

/* The spare has been taken into c->next. */
static void change_begin(struct log *log, bool roll)
{
    struct commit *c = &log->commit;
    c->roll = roll;
    if (roll) {
        c->give_up = c->attempts >= 2;
        uint64_t wanted = log->block + c->group->length;
        bool enough = c->give_up ? log->pool.count > 0 : pool_fits(log, wanted);
        if (!enough && log->pool.error == 0) {
            c->state = COMMIT_ROLL_WAIT; /* shortly after a start: see commit_turn */
            return;
        }
        if (!pool_take(log, wanted, true, &c->next)) {
            log_fail(log, "no spare segment to roll back into, and none can be prepared: %s",
                     strerror(-log->pool.error));
            return;
        }
    }
    if (log->unflushed_bytes > 0)
        flush_begin(log, COMMIT_CHANGE_FLUSH, log_current(log)->file, false);
    else
        change_header_write(log);
}

/* ------------------------------------------------------------------------------------------------ turn */

static bool flush_due(const struct log *log)
{
    if (log->unflushed_bytes == 0)
        return false;
    check_bug(log->unflushed_bytes < (uint64_t)log_flush_limit(log)); /* writes_reaped sees to that */
    return log->flush_wanted || io_now(log->io) - log->unflushed_since >= log->options.interval_ns;
}

void commit_turn(struct log *log)
{
    struct commit *c = &log->commit;
    if (c->state == COMMIT_ROLL_WAIT && log->failed.code == 0)
        change_begin(log, true);
    if (c->state != COMMIT_IDLE || log->failed.code != 0)
        return;
    if (flush_due(log)) {
        flush_begin(log, COMMIT_FLUSH, log_current(log)->file, false);
        return;
    }
    struct group *g = log->gather;
    if (g->count == 0 || delay_wanted(log, g))
        return;
    uint64_t bytes = (uint64_t)g->used + g->reserve;
    if (!commit_fits(log, bytes)) {
        if (!pool_take(log, log->block + GROUP_MAX, false, &c->next)) {
            if (log->pool.error != 0) {
                group_failed(log, g, -ENOSPC);
                group_reset(g);
            }
            return;
        }
        c->group = g;
        c->attempts = 0;
        c->give_up = false;
        group_seal(log, g);
        gather_next(log);
        change_begin(log, false);
        return;
    }
    c->group = g;
    c->attempts = 0;
    c->give_up = false;
    group_seal(log, g);
    gather_next(log);
    group_write(log);
}
