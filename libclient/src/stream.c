/* stream.c: batches that go in chunks, while they are filled.
 *
 * Happy path
 *   1. A batch outgrows its share of the arena: walrus__stream_start. What it holds becomes its first chunk
 *      (or several).
 *   2. walrus__stream_put fills the current chunk; when the next entry does not fit, the chunk is sealed and
 *      sent, and the next one gets another extent. An entry larger than a chunk goes in pieces, all but the
 *      last marked ENTRY_CONTINUES.
 *   3. Each chunk is answered once the broker has copied it; then its extent is free. Several are under way
 *      at a time.
 *   4. walrus__stream_finish sends what is left with the LAST flag, and with the batch's number if the handle
 *      has a producer; its answer is the answer for the whole batch.
 *
 * Waiting for the turn (`queue`): the first chunk carries DESCRIPTOR_QUEUE, and whoever sent it waits for its
 * answer before anything else is done, unless it is the last one, too. So nothing of this handle ever waits
 * behind a chunk that waits for others. While another stream of this handle has the same topic the first
 * chunk does not queue (-EBUSY if another handle waits there): the wait would be for oneself.
 *
 * An entry in parts: its piece in the current chunk is the last record there and grows (`part_here`). When
 * the chunk is full, or must go, the piece is cut at a page; what is behind is kept in `tail` and begins the
 * next chunk.
 *
 * Failure modes
 *   - a chunk is answered with an error: the stream has failed; that is what put and finish say from then on.
 *     The broker has rolled it back already.
 *   - aborted: OP_ABORT rolls back what was sent; the object lives on until its chunks are answered.
 *   - no arena space: wait for chunks in flight; if open batches hold everything, there is the stream extent;
 *     if another stream's unsent chunk sits in that one, it is sent.
 *   - the deadline of a blocking call passes before all is sent: -ETIMEDOUT, and it rolls back.
 *
 * Invariants: chunk numbers rise by one in the order of the submission ring; the current chunk of an open
 * stream is unsent, so its last record may still get a type. */
#include "handle.h"

static int stream_failed(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    if (handle->lost != 0)
        return walrus__fail_lost(handle);
    return walrus__fail_answer(handle, batch->failed, batch->failed_reason,
                               "a batch sent in chunks was rolled back", NULL);
}

static struct submission chunk_submission(struct walrus_batch *batch, uint16_t flags)
{
    struct submission submission = {
        .descriptor = {.op = OP_CHUNK,
                       .level = batch->level,
                       .flags = flags,
                       .topic = batch->known->number,
                       .chunk = batch->chunk,
                       .stream = batch->stream},
        .kind = REQUEST_CHUNK,
        .batch = batch,
        .extent = NO_EXTENT,
        .known = batch->known,
    };
    if (batch->chunk == 0)
        submission.descriptor.flags |= DESCRIPTOR_FIRST;
    if (batch->chunk == 0 && batch->deadline != FOR_EVER)
        submission.descriptor.deadline_ns = batch->deadline;
    if (batch->extent != NO_EXTENT) {
        walrus__batch_seal(batch, &submission.descriptor);
        submission.extent = batch->extent;
    }
    return submission;
}

static void chunk_sent(struct walrus_batch *batch)
{
    batch->extent = NO_EXTENT;
    batch->base = NULL;
    batch->used = batch->limit = batch->record_count = 0;
    batch->trimmable = batch->pinned = false;
    batch->chunk++;
}

static bool chunks_answered(const struct walrus *handle, const void *context)
{
    (void)handle;
    return ((const struct walrus_batch *)context)->chunks_in_flight == 0;
}

static bool topic_is_ours(const struct walrus_batch *batch)
{
    for (const struct walrus_batch *b = batch->handle->open; b != NULL; b = b->next) {
        if (b != batch && b->known == batch->known && b->chunk > 0)
            return true;
    }
    return false;
}

/* Sends the current chunk, waiting for credit, and for its turn. */
static int send_chunk(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    int code = walrus__wait_credits(handle, 2, batch->deadline);
    if (code < 0)
        return code == -ETIME ? walrus__too_late(handle) : walrus__fail_lost(handle);
    if (batch->failed < 0)
        return stream_failed(batch);
    bool waits = batch->queue && batch->chunk == 0 && !topic_is_ours(batch);
    struct submission submission = chunk_submission(batch, waits ? DESCRIPTOR_QUEUE : 0);
    uint32_t index;
    code = walrus__submit(handle, &submission, &index);
    if (code < 0)
        return code;
    batch->chunks_in_flight++;
    chunk_sent(batch);
    if (!waits)
        return 0;
    uint64_t word = walrus__request_word(handle, index);
    code = walrus__wait_until(handle, chunks_answered, batch, 1, walrus__with_grace(batch->deadline), false);
    if (code == -ETIME) { /* the broker should have said so */
        bool asked = walrus__cancel_word(handle, word);
        check_bug(asked || handle->lost != 0);
        return walrus__too_late(handle);
    }
    return batch->failed < 0 || handle->lost != 0 ? stream_failed(batch) : 0;
}

/* The current chunk has nothing that could be sent: its extent goes. */
static void drop_chunk(struct walrus_batch *batch)
{
    walrus__room_give_back(batch->handle, batch->extent);
    chunk_sent(batch);
    batch->chunk--;
}

/* The piece of an open entry that is the last record of the current chunk is cut at a page. */
static void cut_part(struct walrus_batch *batch)
{
    struct entry_record *last = &batch->records[batch->record_count - 1];
    uint32_t begin = batch->used - walrus__padded(last->length);
    uint32_t keep = last->length & ~(LAYOUT_PAGE - 1);
    batch->tail_bytes = last->length - keep;
    memcpy(batch->tail, batch->base + begin + keep, batch->tail_bytes);
    batch->used = begin + keep;
    last->length = keep;
    last->flags = ENTRY_CONTINUES;
    if (keep == 0)
        batch->record_count--;
    batch->part_here = false;
}

/* The current chunk goes as it is, or is dropped if it holds nothing. */
static int push_chunk(struct walrus_batch *batch)
{
    if (batch->part_open && batch->part_here)
        cut_part(batch);
    if (batch->record_count > 0)
        return send_chunk(batch);
    drop_chunk(batch);
    return 0;
}

/* Another open stream that sits on the stream extent with a chunk that is not full yet. */
static struct walrus_batch *find_idle_chunk(const struct walrus *handle)
{
    struct walrus_batch *b = handle->open;
    while (b != NULL && b->extent != STREAM_EXTENT)
        b = b->next;
    return b;
}

static int send_idle_chunk(struct walrus_batch *idle)
{
    if (idle->failed == 0)
        return push_chunk(idle);
    drop_chunk(idle);
    return 0;
}

/* Until something is free. What is in flight may wait for others, and those for a stream of ours: it is only
 * waited for if that is all there is, or if chunks of our own are among it. */
static int wait_for_extent(struct walrus_batch *batch, bool last_resort)
{
    struct walrus *handle = batch->handle;
    struct walrus_batch *idle = last_resort ? find_idle_chunk(handle) : NULL;
    if (idle != NULL)
        return send_idle_chunk(idle);
    check_bug(walrus__room_in_flight(handle) || handle->lost != 0); /* somebody holds it */
    return walrus__wait_any(handle, batch->deadline, false);
}

/* An extent for the next chunk. */
static int open_chunk(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    for (;;) {
        if (batch->failed < 0 || handle->lost != 0)
            return stream_failed(batch);
        bool last_resort = batch->chunks_in_flight == 0; /* else an own chunk is free soon */
        int code = walrus__room_for_chunk(handle, batch, last_resort);
        if (code != -EAGAIN)
            return code;
        code = wait_for_extent(batch, last_resort);
        if (code < 0 && handle->lost != 0)
            return walrus__fail_lost(handle);
        if (code == -ETIME)
            return walrus__too_late(handle);
    }
}

/* Payload bytes that one more record could have in the current chunk. */
static uint32_t chunk_room(const struct walrus_batch *batch)
{
    uint64_t taken = batch->used + (batch->record_count + (uint64_t)1) * sizeof(struct entry_record);
    if (taken > batch->limit || batch->used >= MAX_CHUNK_PAYLOAD)
        return 0;
    uint64_t room = min_u64(batch->limit - taken, MAX_CHUNK_PAYLOAD - batch->used);
    return (uint32_t)room & ~(PAYLOAD_ALIGN - 1);
}

/* Even an entry of 0 bytes needs a record. */
static bool record_fits(const struct walrus_batch *batch)
{
    return batch->used + (batch->record_count + (uint64_t)1) * sizeof(struct entry_record) <= batch->limit &&
           batch->record_count < MAX_BATCH_ENTRIES;
}

/* An entry of which a part is in a chunk already cannot be taken back, nor can the stream go on without its
 * rest: it will never be committed. */
static int cut_in_an_entry(struct walrus_batch *batch, int code)
{
    if (batch->failed == 0 && batch->handle->lost == 0)
        batch->failed = code;
    return code;
}

int walrus__stream_put(struct walrus_batch *batch, const void *data, uint64_t length, uint8_t type)
{
    const uint8_t *from = data;
    uint64_t left = length;
    for (;;) {
        if (batch->failed < 0)
            return stream_failed(batch);
        int code;
        if (batch->extent == NO_EXTENT && (code = open_chunk(batch)) < 0)
            return left < length ? cut_in_an_entry(batch, code) : code;
        uint32_t room = chunk_room(batch);
        if (left <= room && record_fits(batch)) {
            walrus__put_record(batch, from, (uint32_t)left, type, 0);
            return 0;
        }
        /* An entry is split only if it would not fit a chunk of its own. A piece that goes on is whole
         * pages (the broker insists). */
        bool fits_alone = left + sizeof(struct entry_record) + PAYLOAD_ALIGN <= batch->handle->chunk_bytes &&
                          left <= MAX_CHUNK_PAYLOAD;
        uint32_t piece = room & ~(LAYOUT_PAGE - 1);
        if (batch->record_count > 0 && (fits_alone || room < LAYOUT_PAGE)) {
            if ((code = send_chunk(batch)) < 0)
                return left < length ? cut_in_an_entry(batch, code) : code;
            continue;
        }
        check_bug(piece > 0 && piece < left);
        walrus__put_record(batch, from, piece, type, ENTRY_CONTINUES);
        from += piece;
        left -= piece;
        if ((code = send_chunk(batch)) < 0)
            return cut_in_an_entry(batch, code);
    }
}

/* How far the last record, which is the piece of an open entry, can grow. */
static uint32_t part_room(const struct walrus_batch *batch)
{
    uint32_t length = batch->records[batch->record_count - 1].length;
    uint32_t before = batch->used - walrus__padded(length);
    uint64_t taken = before + (uint64_t)batch->record_count * sizeof(struct entry_record);
    uint64_t room = min_u64(batch->limit - taken, MAX_CHUNK_PAYLOAD - before);
    return ((uint32_t)room & ~(PAYLOAD_ALIGN - 1)) - length;
}

/* The open entry has a record at the end of the current chunk. */
static int begin_piece(struct walrus_batch *batch)
{
    while (!batch->part_here) {
        int code;
        if (batch->failed < 0)
            return stream_failed(batch);
        if (batch->extent == NO_EXTENT && (code = open_chunk(batch)) < 0)
            return code;
        if (record_fits(batch) && chunk_room(batch) >= walrus__padded(batch->tail_bytes)) {
            walrus__put_record(batch, batch->tail, batch->tail_bytes, 0, 0);
            batch->tail_bytes = 0;
            batch->part_here = true;
        } else if ((code = push_chunk(batch)) < 0) {
            return code;
        }
    }
    return batch->failed < 0 ? stream_failed(batch) : 0;
}

int walrus__stream_put_part(struct walrus_batch *batch, const void *data, uint64_t length, bool begins)
{
    const uint8_t *from = data;
    uint64_t left = length;
    bool was_open = batch->part_open;
    batch->part_open = true; /* push_chunk must know */
    if (begins)
        batch->part_here = false;
    int code;
    while ((code = begin_piece(batch)) == 0) {
        uint32_t now = (uint32_t)min_u64(left, part_room(batch));
        walrus__extend_record(batch, from, now);
        left -= now;
        if (left == 0)
            break;
        from += now;
        if ((code = push_chunk(batch)) < 0)
            break;
    }
    batch->part_open = was_open;
    bool taken = left < length || (begins && batch->part_here);
    return code < 0 && taken ? cut_in_an_entry(batch, code) : code;
}

int walrus__stream_start(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    batch->streaming = true;
    batch->stream = ++handle->streams;
    if (batch->extent == NO_EXTENT)
        return 0;
    if (batch->used <= MAX_CHUNK_PAYLOAD) {
        walrus__room_trim(handle, batch);
        return 0; /* it is the current chunk */
    }
    /* Too much for one chunk: copy it over, chunk by chunk. Records are overtaken never: a new chunk
     * begins at 0 again. */
    uint32_t old = batch->extent, count = batch->record_count;
    const uint8_t *from = batch->base;
    batch->extent = NO_EXTENT;
    batch->used = batch->limit = batch->record_count = 0;
    int code = 0;
    for (uint32_t i = 0; i < count && code == 0; i++) {
        struct entry_record record = batch->records[i];
        if (batch->part_open && i + 1 == count)
            code = walrus__stream_put_part(batch, from, record.length, true);
        else
            code = walrus__stream_put(batch, from, record.length, record.type);
        from += walrus__padded(record.length);
    }
    walrus__room_give_back(handle, old);
    if (code < 0 && batch->failed == 0 && handle->lost == 0)
        batch->failed = code; /* half of it is sent: it cannot go on */
    return code;
}

/* ------------------------------------------------------------------------------------- the end */

/* The broker remembers a stream until its last chunk or its abort, even one that failed. */
static void send_abort(struct walrus_batch *batch)
{
    struct submission submission = {
        .descriptor = {.op = OP_ABORT, .topic = batch->known->number, .stream = batch->stream},
        .kind = REQUEST_NOBODY,
        .extent = NO_EXTENT,
    };
    if (walrus__submit(batch->handle, &submission, NULL) < 0)
        check_bug(batch->handle->lost != 0);
}

static void finish(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    if (batch->failed < 0 && batch->outcome.result == 0) {
        batch->outcome.receipt.first_sequence = batch->outcome.receipt.count = 0;
    }
    if (batch->failed < 0) {
        batch->outcome.result = batch->failed;
        batch->outcome.receipt.reason = batch->failed_reason;
        batch->outcome.receipt.retry_after_us = batch->failed_retry_us;
    }
    walrus__keep(handle, &batch->outcome);
    walrus__batch_recycle(batch);
}

/* What waits for its turn must not sit on the extent that is kept for chunks. */
static int leave_stream_extent(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    if (batch->extent != STREAM_EXTENT)
        return 0;
    const uint8_t *old = batch->base;
    uint32_t limit = batch->limit;
    batch->extent = NO_EXTENT;
    int code = walrus__room_for_chunk(handle, batch, false);
    if (code < 0) {
        batch->extent = STREAM_EXTENT;
        batch->base = handle->arena + handle->stream_at;
        batch->limit = limit;
        return code;
    }
    memcpy(batch->base, old, batch->used);
    walrus__room_give_back(handle, STREAM_EXTENT);
    return 0;
}

/* Rolled back already; the outcome is known. */
static int finish_failed(struct walrus_batch *batch, const struct sending *sending)
{
    check_bug(sending->answer == NULL);
    batch->outcome.user_data = sending->user_data;
    if (batch->handle->lost == 0)
        send_abort(batch); /* the caller has seen that there is credit */
    walrus__batch_close(batch);
    batch->completed = true;
    if (batch->chunks_in_flight == 0)
        finish(batch);
    return 0;
}

int walrus__stream_finish(struct walrus_batch *batch, const struct sending *sending)
{
    struct walrus *handle = batch->handle;
    if (batch->failed < 0)
        return finish_failed(batch, sending);
    bool first = batch->chunk == 0, patient = sending->answer == NULL;
    bool waits = first && (batch->queue || (sending->flags & DESCRIPTOR_QUEUE) != 0) &&
                 (patient || !topic_is_ours(batch));
    int code = waits && patient ? leave_stream_extent(batch) : 0;
    uint64_t number = 0;
    if (code == 0)
        code = walrus__number_next(handle, batch->known, sending->number, &number);
    if (code < 0)
        return code;
    batch->level = sending->level;
    struct submission submission =
        chunk_submission(batch, DESCRIPTOR_LAST | (waits ? (uint16_t)DESCRIPTOR_QUEUE : 0));
    submission.descriptor.number = number;
    if (first && sending->deadline != FOR_EVER)
        submission.descriptor.deadline_ns = sending->deadline;
    submission.kind = sending->answer != NULL ? REQUEST_ANSWER : REQUEST_BATCH;
    submission.batch = sending->answer != NULL ? NULL : batch;
    submission.answer = sending->answer;
    submission.user_data = sending->user_data;
    code = walrus__submit(handle, &submission, NULL);
    if (code < 0)
        return code;
    walrus__number_sent(batch->known, sending->number, number);
    chunk_sent(batch);
    walrus__batch_close(batch);
    return 0;
}

void walrus__stream_abort(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    walrus__room_give_back(handle, batch->extent);
    batch->extent = NO_EXTENT;
    if (batch->chunk > 0 && walrus__wait_credit(handle) == 0 && handle->lost == 0)
        send_abort(batch);
    walrus__batch_close(batch);
    batch->state = BATCH_DROPPED;
    if (batch->chunks_in_flight == 0)
        walrus__batch_recycle(batch);
}

void walrus__stream_chunk_done(struct walrus_batch *batch, const struct completion *completion)
{
    check_bug(batch->chunks_in_flight > 0);
    batch->chunks_in_flight--;
    if (completion->result < 0 && batch->failed == 0) {
        batch->failed = completion->result;
        batch->failed_reason = completion->reason;
        batch->failed_retry_us = completion->retry_after_us;
    }
    if (batch->chunks_in_flight > 0)
        return;
    if (batch->state == BATCH_DROPPED)
        walrus__batch_recycle(batch);
    else if (batch->completed)
        finish(batch);
}

void walrus__stream_end_done(struct walrus_batch *batch, const struct completion *completion,
                             uint64_t user_data)
{
    batch->outcome.user_data = user_data;
    batch->outcome.result = completion->result;
    walrus__fill_receipt(&batch->outcome.receipt, completion);
    batch->completed = true;
    if (batch->chunks_in_flight == 0)
        finish(batch);
}
