/* gather.c: admission, and the one copy of a payload (steps 4 and 5 of DESIGN section 2).
 *
 *   1. Refuse on the write's own fields: limits, kind, stream order.
 *   2. Refuse if a batch of another owner is in progress on the topic (-EBUSY).
 *   3. Hold (-EAGAIN) if the gathering group is full; refuse (-ENOSPC) or hold if there is no log space for
 *      it.
 *   4. Copy the records, check the copy, copy the payload and sum it, piece by piece. This is the only time
 *      the client's memory is read; what is checked is what will be written.
 *   5. Note the frame; the header is filled when the group is sealed, because sequences take effect only at
 *      completion.
 *
 * A refusal in 1 to 4 leaves no trace: `used` moves only in 5, so not one byte of it can reach the kernel
 * (G4).
 *
 * Sequences: topics of level accepted get theirs here, because they are answered before the group is sealed;
 * if the group fails these are burnt. All others get theirs at sealing, and a failed group gives them back.
 *
 * Streams: the batch is in progress on its topic from its first admitted chunk to its end: last chunk's
 * completion, failure of any chunk, or abort. */
#include "internal.h"

/* Free space that catalogue entries need at sealing is set aside here, once per group and topic at most twice
 * over. */
static uint32_t catalogue_reserve(const struct write *w)
{
    uint32_t bytes = w->topic->committed ? 0 : topic_entry_bytes(w->topic);
    if (w->producer != NULL && !w->producer->committed)
        bytes += producer_entry_bytes(w->producer);
    return bytes;
}

static int refuse(struct log *log, struct write *w, int error, uint8_t reason)
{
    w->result = error;
    w->reason = reason;
    if (error == -EBUSY) {
        log->stats.refused_busy++;
        w->retry_after_us = (uint32_t)(log->group_ns / 1000 + 1);
    } else if (error == -ENOSPC)
        log->stats.refused_space++;
    else if (error == -EINVAL)
        log->stats.refused_invalid++;
    return error;
}

static bool fields_valid(const struct write *w)
{
    if (w->level > LEVEL_DURABLE || w->payload_bytes % PAYLOAD_ALIGN != 0 || w->entries > MAX_BATCH_ENTRIES)
        return false;
    switch (w->kind) {
    case WRITE_APPEND:
        return w->entries == 1 && w->payload_bytes <= MAX_WHOLE_PAYLOAD;
    case WRITE_BATCH:
        return w->entries >= 1 && w->payload_bytes <= MAX_WHOLE_PAYLOAD;
    case WRITE_CHUNK:
        return w->payload_bytes <= MAX_CHUNK_PAYLOAD && w->stream != NULL && w->stream->topic == w->topic;
    }
    return false;
}

/* Records of the copy: sizes add up to the payload; counts, for chunks, how many entries end and how many
 * bytes they have. */
static bool records_valid(const struct write *w, const struct entry_record *records, uint32_t *ended,
                          uint64_t *bytes)
{
    uint64_t padded = 0, sum = 0;
    uint32_t flags = 0, headers = 0;
    for (uint32_t i = 0; i < w->entries; i++) {
        padded += align_up(records[i].length, PAYLOAD_ALIGN);
        sum += records[i].length;
        flags |= records[i].flags;
        headers |= records[i].header_bytes;
    }
    *ended = w->entries;
    *bytes = sum;
    if (padded != w->payload_bytes || headers != 0)
        return false;
    if (flags == 0)
        return true;
    if ((flags & ~(uint32_t)ENTRY_FLAGS) != 0 || w->kind != WRITE_CHUNK || w->last)
        return false;
    for (uint32_t i = 0; i + 1 < w->entries; i++)
        if (records[i].flags != 0)
            return false;
    *ended = w->entries - 1;
    return records[w->entries - 1].length % 4096 == 0 && records[w->entries - 1].length != 0;
}

static void batch_begun(struct topic *topic, const void *owner)
{
    topic->owner = owner;
    topic->batches++;
}

void batch_ended(struct log *log, struct topic *topic)
{
    check_bug(topic->batches > 0);
    if (--topic->batches > 0)
        return;
    topic->owner = NULL;
    if (topic->word != NULL && log->on_topic_free != NULL)
        log->on_topic_free(log->on_topic_free_context, topic);
}

/* Log space for the gathering group with this frame in it: in what is left of the current segment, or in a
 * prepared one. */
static int space_for(struct log *log, uint64_t group_bytes)
{
    if (commit_fits(log, group_bytes) || pool_can_spare(log))
        return 0;
    return log->pool.error != 0 ? -ENOSPC : -EAGAIN;
}

static int stream_ready(const struct write *w)
{
    const struct stream *s = w->stream;
    if (s->failed)
        return s->error;
    if (w->first != !s->admitted || s->chunks == UINT32_MAX)
        return -EINVAL;
    return 0;
}

void gather_stream_fail(struct log *log, struct stream *s, int error)
{
    if (s->failed)
        return;
    s->failed = true;
    s->error = error;
    if (s->admitted) {
        log->streams_open--;
        batch_ended(log, s->topic);
    }
}

void gather_stream_end(struct log *log, struct stream *s)
{
    check_bug(s->admitted && !s->failed);
    s->failed = true; /* nothing more is taken */
    s->error = -EINVAL;
    log->streams_open--;
    batch_ended(log, s->topic);
}

/* The caller may free the stream now: no note of a group may point to it any more. */
static void stream_forget(struct log *log, const struct stream *s)
{
    for (uint32_t i = 0; i < log->group_count; i++) {
        struct group *g = &log->groups[i];
        for (uint32_t n = 0; n < g->count; n++)
            if (g->notes[n].stream == s)
                g->notes[n].stream = NULL;
    }
}

/* Copies and checks. The frame lies behind what the group uses; nothing refers to it yet. */
static int copy_in(struct log *log, struct write *w, struct frame_header **out, uint64_t *bytes)
{
    struct group *g = log->gather;
    struct frame_header *frame = (struct frame_header *)(void *)(g->data + g->used);
    memcpy(frame_records(frame), w->records, w->entries * sizeof(struct entry_record));
    uint32_t ended;
    if (!records_valid(w, frame_records(frame), &ended, bytes))
        return -EINVAL;
    if (w->kind == WRITE_CHUNK) {
        const struct stream *s = w->stream;
        uint64_t total = s->entries + ended;
        if (total > MAX_BATCH_ENTRIES || (w->last && (total == 0 || (s->open_entry && w->entries == 0))))
            return -EINVAL;
        /* The limit counts the overhead of an entry when it ends; one that is still open will need it too. */
        uint64_t overhead = (total + (w->entries != ended)) * ENTRY_OVERHEAD;
        if (s->bytes + *bytes > log->options.max_batch_bytes ||
            overhead > log->options.max_batch_bytes - s->bytes - *bytes)
            return -EINVAL;
    }
    *frame = (struct frame_header){
        .magic = FRAME_MAGIC,
        .kind = w->kind != WRITE_CHUNK ? FRAME_BATCH
                : w->last              ? FRAME_LAST
                                       : FRAME_CHUNK,
        .header_bytes = frame_header_bytes(w->entries, w->payload_bytes),
        .payload_bytes = w->payload_bytes,
        .entries = w->entries,
        .producer = w->producer != NULL && w->number != 0 ? w->producer->id : 0,
        .number = w->number,
        .ended = ended,
        .batch_entries = w->entries,
        .batch_bytes = w->payload_bytes,
        .offset = g->used,
        .pieces = frame_pieces(w->payload_bytes),
    };
    frame_copy_payload(frame, w->entries, w->payload, w->payload_bytes);
    *out = frame;
    return 0;
}

static void stream_take(struct log *log, struct write *w, struct frame_header *frame, uint64_t bytes)
{
    struct stream *s = w->stream;
    if (!s->admitted) {
        s->admitted = true;
        s->id = (log->epoch << 32) | log->next_stream++;
        /* A roll-back may move the frame to a later segment, never to an earlier one. */
        s->first_segment = log_current(log)->number;
        log->streams_open++;
        batch_begun(w->topic, w->owner);
    }
    frame->stream = s->id;
    frame->chunk = s->chunks++;
    s->entries += frame->ended;
    s->bytes += bytes;
    s->open_entry = frame->ended != frame->entries;
    s->last_taken = w->last;
    frame->batch_entries = w->last ? s->entries : 0;
    frame->batch_bytes = w->last ? s->bytes : 0;
    frame->first_segment = w->last ? s->first_segment : 0;
    log->stats.chunks++;
}

/* Answered early: at level accepted, and chunks that are not the last. Not what has a number: that is taken
 * only by what is in the log. Nor a stream while a chunk of it is in the device: if that fails its last chunk
 * must not count. */
static bool answers_early(const struct log *log, const struct write *w)
{
    if (w->kind == WRITE_CHUNK && !w->last)
        return true;
    const struct group *g = log->commit.group;
    for (uint32_t i = 0; w->kind == WRITE_CHUNK && g != NULL && i < g->count; i++)
        if (g->notes[i].stream == w->stream)
            return false;
    return w->producer == NULL && w->topic->level == LEVEL_ACCEPTED && w->level <= LEVEL_ACCEPTED &&
           w->topic->strong == 0;
}

static void take(struct log *log, struct write *w, struct frame_header *frame, struct pair *pair)
{
    struct group *g = log->gather;
    struct frame_note *note = &g->notes[g->count++];
    bool early = answers_early(log, w);
    bool chunk = w->kind == WRITE_CHUNK && !w->last;
    *note = (struct frame_note){
        .topic = w->topic,
        .stream = w->kind == WRITE_CHUNK ? w->stream : NULL,
        .pair = pair,
        .write = early ? NULL : w,
        .at = g->used,
        .last = w->kind == WRITE_CHUNK && w->last,
    };
    if (pair != NULL)
        number_admit(pair, w->number);
    w->topic->refs++;
    uint8_t level = w->level > w->topic->level ? w->level : w->topic->level;
    frame->level = level;
    int64_t now = w->drained_ns != 0 ? w->drained_ns : io_now(log->io);
    frame->time_ns = log_wall(log, now);
    if (!chunk && w->topic->level == LEVEL_ACCEPTED) {
        frame->first_sequence = w->topic->next_assign;
        w->topic->next_assign += frame->batch_entries;
    }
    g->used += frame->header_bytes + frame->payload_bytes;
    g->reserve += catalogue_reserve(w);
    if (w->kind == WRITE_CHUNK)
        g->chunk_bytes += w->payload_bytes;
    else {
        g->small++;
        log->small_at = now;
    }
    if (!chunk && level == LEVEL_DURABLE)
        g->needs_flush = true;
    w->result = 0;
    w->next = NULL;
    if (early) {
        w->first_sequence = frame->first_sequence;
        w->committed = frame->batch_entries;
        w->level_reached = LEVEL_ACCEPTED;
        *log->early_last = w;
        log->early_last = &w->next;
    } else {
        w->topic->strong++;
    }
}

/* Beside small writes a group carries only a share of chunks, so that they do not wait for a stream's
 * bandwidth. Also while the next one is only to be expected: a producer that waits for each answer finds the
 * next group under way already, and would wait for megabytes of chunks each time. */
static bool small_expected(const struct log *log)
{
    return log->gather->small > 0 || io_now(log->io) - log->small_at < SMALL_LINGER;
}

static bool group_has_room(const struct log *log, const struct write *w, uint64_t frame_bytes)
{
    const struct group *g = log->gather;
    uint64_t used = g->used + g->reserve + catalogue_reserve(w);
    if (g->count >= NOTES_MAX || frame_bytes > GROUP_MAX - BLOCK_MAX ||
        used > GROUP_MAX - BLOCK_MAX - frame_bytes)
        return false;
    if (w->kind == WRITE_CHUNK && !w->last && g->chunk_bytes > 0 &&
        g->chunk_bytes + w->payload_bytes > CHUNK_SHARE && small_expected(log))
        return false;
    return true;
}

int log_write(struct log *log, struct write *w)
{
    check_bug(w->done != NULL && w->topic != NULL);
    w->reason = REASON_NONE;
    w->flags = 0;
    w->retry_after_us = 0;
    if (log->failed.code != 0 || log->stopping)
        return refuse(log, w, -ESHUTDOWN, REASON_NONE);
    if (!fields_valid(w))
        return refuse(log, w, -EINVAL, REASON_NONE);
    int error = w->kind == WRITE_CHUNK ? stream_ready(w) : 0;
    if (error != 0)
        return refuse(log, w, error, REASON_NONE);
    int numbered = number_check(log, w);
    if (numbered == 1 &&
        w->kind == WRITE_CHUNK) { /* the batch is in the log: this copy of it is not wanted */
        gather_stream_fail(log, w->stream, -ECANCELED);
        stream_forget(log, w->stream);
    }
    if (numbered == 1)
        return 1;
    struct topic *t = w->topic;
    if (t->batches > 0 && t->owner != w->owner)
        return refuse(log, w, -EBUSY, REASON_TOPIC);
    if (numbered != 0)
        return refuse(log, w, numbered, numbered == -EAGAIN ? REASON_ORDER : REASON_NONE);
    uint64_t bytes = (uint64_t)frame_header_bytes(w->entries, w->payload_bytes) + w->payload_bytes;
    if (!group_has_room(log, w, bytes))
        return refuse(log, w, -EAGAIN, REASON_MEMORY);
    error = space_for(log, log->gather->used + log->gather->reserve + catalogue_reserve(w) + bytes);
    if (error != 0)
        return refuse(log, w, error, error == -EAGAIN ? REASON_SPACE : REASON_NONE);

    if (t->id == 0) {
        error = topic_assign_id(log, t);
        if (error != 0)
            return refuse(log, w, error, REASON_NONE);
    }
    struct frame_header *frame;
    struct pair *pair;
    uint64_t payload;
    error = number_reserve(log, w, &pair);
    if (error != 0)
        return refuse(log, w, error, REASON_NONE);
    error = copy_in(log, w, &frame, &payload);
    if (error != 0) {
        if (w->kind == WRITE_CHUNK)
            gather_stream_fail(log, w->stream, error);
        return refuse(log, w, error, REASON_NONE);
    }
    if (w->kind == WRITE_CHUNK)
        stream_take(log, w, frame, payload);
    else if (w->kind == WRITE_BATCH && !answers_early(log, w))
        batch_begun(t, w->owner);
    take(log, w, frame, pair);
    return 0;
}

void log_stream_abort(struct log *log, struct stream *s)
{
    /* Once its last chunk was taken the batch is published: it is committed whether its producer lives or
     * not. */
    check_bug(!s->last_taken || s->failed);
    gather_stream_fail(log, s, -ECANCELED);
    stream_forget(log, s);
}

/* Completions of a topic come in commit order: take() lets a write answer early only if none before it is
 * waiting. */
void gather_answer_early(struct log *log)
{
    while (log->early_first != NULL) {
        struct write *w = log->early_first;
        log->early_first = w->next;
        if (log->early_first == NULL)
            log->early_last = &log->early_first;
        if (w->kind != WRITE_CHUNK || w->last) {
            if (w->topic->lost) {
                w->flags |= COMPLETION_EARLIER_LOST;
                w->topic->lost = false;
            }
            if (w->kind == WRITE_CHUNK) {
                gather_stream_end(log, w->stream);
                stream_forget(log, w->stream);
            }
        }
        w->done(w);
    }
}

/* ------------------------------------------------------------------------------- numbers behind a failure */

/* Its number is not the next one any more. One whose stream has failed is sealed as dead bytes and takes
 * none. */
static bool out_of_order(const struct frame_note *note, const struct frame_header *frame)
{
    struct pair *pair = note->pair;
    if (pair == NULL || (note->stream != NULL && note->stream->failed))
        return false;
    if (frame->number != pair->admitted + 1)
        return true;
    pair->admitted = frame->number;
    return false;
}

static void drop(struct log *log, struct write *w)
{
    w->result = -EAGAIN;
    w->reason = REASON_ORDER;
    w->retry_after_us = (uint32_t)(log->group_ns / 1000 + 1);
    w->topic->strong--;
    if (w->kind == WRITE_BATCH) {
        batch_ended(log, w->topic);
    } else if (w->kind == WRITE_CHUNK) {
        gather_stream_fail(log, w->stream, -EAGAIN);
        stream_forget(log, w->stream);
    }
}

/* The frames that stay move together, so that the group stays one row of frames. */
void gather_drop_out_of_order(struct log *log)
{
    struct group *g = log->gather;
    struct write *dropped = NULL, **last = &dropped;
    uint32_t count = 0, used = sizeof(struct group_header);
    for (uint32_t i = 0; i < g->count; i++)
        if (g->notes[i].pair != NULL)
            g->notes[i].pair->admitted = g->notes[i].pair->last;
    g->small = g->chunk_bytes = 0;
    for (uint32_t i = 0; i < g->count; i++) {
        struct frame_note note = g->notes[i];
        struct frame_header *frame = (struct frame_header *)(void *)(g->data + note.at);
        uint32_t bytes = frame->header_bytes + frame->payload_bytes;
        if (out_of_order(&note, frame)) {
            *last = note.write;
            last = &note.write->next;
            drop(log, note.write);
            continue;
        }
        bool chunk = frame->kind == FRAME_CHUNK || frame->kind == FRAME_LAST;
        *(chunk ? &g->chunk_bytes : &g->small) += chunk ? frame->payload_bytes : 1;
        frame->offset = used;
        note.at = used;
        memmove(g->data + used, frame, bytes);
        g->notes[count++] = note;
        used += bytes;
    }
    g->count = count;
    g->used = used;
    *last = NULL;
    while (dropped != NULL) {
        struct write *w = dropped;
        struct topic *t = w->topic;
        dropped = w->next;
        w->done(w);
        log_topic_release(log, t);
    }
}
