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
 *   4. walrus__stream_finish sends what is left with the LAST flag; its answer is the answer for the whole
 *      batch.
 *
 * Failure modes
 *   - a chunk is answered with an error: the stream has failed; that is what put and finish say from then on.
 *     The broker has rolled it back already.
 *   - aborted: OP_ABORT rolls back what was sent; the object lives on until its chunks are answered.
 *   - no arena space: wait for chunks in flight; if open batches hold everything, there is the stream extent;
 *     if another stream's unsent chunk sits in that one, it is sent.
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
                       .topic = batch->topic_number,
                       .chunk = batch->chunk,
                       .stream = batch->stream},
        .kind = REQUEST_CHUNK,
        .batch = batch,
        .extent = NO_EXTENT,
    };
    if (batch->chunk == 0)
        submission.descriptor.flags |= DESCRIPTOR_FIRST;
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

/* Sends the current chunk, waiting for credit. */
static int send_chunk(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    int code = walrus__wait_credit(handle);
    if (code < 0)
        return walrus__fail_lost(handle);
    if (batch->failed < 0)
        return stream_failed(batch);
    struct submission submission = chunk_submission(batch, 0);
    code = walrus__submit(handle, &submission, NULL);
    if (code < 0)
        return code;
    batch->chunks_in_flight++;
    chunk_sent(batch);
    return 0;
}

/* Another open stream may sit on the stream extent with a chunk that is not full yet. */
static int send_idle_chunk(struct walrus *handle)
{
    for (struct walrus_batch *b = handle->open; b != NULL; b = b->next) {
        if (b->extent != STREAM_EXTENT)
            continue;
        if (b->record_count > 0 && b->failed == 0)
            return send_chunk(b);
        walrus__room_give_back(handle, b->extent);
        chunk_sent(b);
        b->chunk--;
        return 0;
    }
    check_bug(handle->lost != 0); /* somebody holds it: a request, or an open stream */
    return walrus__fail_lost(handle);
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
        if (walrus__room_in_flight(handle))
            code = walrus__wait_any(handle, FOR_EVER, false);
        else
            code = send_idle_chunk(handle);
        if (code < 0)
            return handle->lost != 0 ? walrus__fail_lost(handle) : code;
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

int walrus__stream_put(struct walrus_batch *batch, const void *data, uint64_t length, uint8_t type)
{
    const uint8_t *from = data;
    uint64_t left = length;
    for (;;) {
        if (batch->failed < 0)
            return stream_failed(batch);
        int code;
        if (batch->extent == NO_EXTENT && (code = open_chunk(batch)) < 0)
            return code;
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
                return code;
            continue;
        }
        check_bug(piece > 0 && piece < left);
        walrus__put_record(batch, from, piece, type, ENTRY_CONTINUES);
        from += piece;
        left -= piece;
        if ((code = send_chunk(batch)) < 0)
            return code;
    }
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
        .descriptor = {.op = OP_ABORT, .topic = batch->topic_number, .stream = batch->stream},
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

int walrus__stream_finish(struct walrus_batch *batch, struct answer *answer, uint64_t user_data)
{
    struct walrus *handle = batch->handle;
    if (batch->failed < 0) { /* rolled back already; the outcome is known */
        check_bug(answer == NULL);
        batch->outcome.user_data = user_data;
        if (handle->lost == 0)
            send_abort(batch); /* the caller has seen that there is credit */
        walrus__batch_close(batch);
        batch->completed = true;
        if (batch->chunks_in_flight == 0)
            finish(batch);
        return 0;
    }
    struct submission submission = chunk_submission(batch, DESCRIPTOR_LAST);
    submission.kind = answer != NULL ? REQUEST_ANSWER : REQUEST_BATCH;
    submission.batch = answer != NULL ? NULL : batch;
    submission.answer = answer;
    submission.user_data = user_data;
    int code = walrus__submit(handle, &submission, NULL);
    if (code < 0)
        return code;
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
