/* submit.c: sending batches, taking them back, reaping.
 *
 * Happy path: submit copies the records behind the payload, cuts the extent to what is used, takes the next
 * number if the handle has a producer, and sends one descriptor. The batch object goes back to the pool at
 * once; the extent belongs to the request until its completion is met. walrus_reap takes what the completions
 * say, in order, out of the queue `kept`.
 *
 * Failure modes
 *   - no credit, or a number that must wait (numbers.c): -EAGAIN, the batch stays open. Any other error of
 *     submit drops the batch.
 *   - what waits for its turn, or wants to be told when to try, may take long: it leaves some credit for what
 *     others may be waiting for (handle.h, walrus__credit).
 *   - a refusal is final: its arena space is free from then on, also when a second completion will say that a
 *     try may succeed, since the try is another batch that needs the space. */
#include "handle.h"

#define EMPTY_REAPS_PER_LOOK 1024u

/* ------------------------------------------------------------------------------------- sending */

void walrus__batch_seal(struct walrus_batch *batch, struct descriptor *descriptor)
{
    struct walrus *handle = batch->handle;
    walrus__room_trim(handle, batch);
    memcpy(batch->base + batch->used, batch->records, batch->record_count * sizeof(struct entry_record));
    descriptor->arena_offset = (uint32_t)(batch->base - handle->arena);
    descriptor->payload_bytes = batch->used;
    descriptor->entries = batch->record_count;
}

static int send_whole(struct walrus_batch *batch, const struct sending *sending, uint64_t number)
{
    struct walrus *handle = batch->handle;
    struct submission submission = {
        .descriptor = {.op = sending->op,
                       .level = sending->level,
                       .flags = sending->flags,
                       .topic = batch->known->number,
                       .number = number,
                       .deadline_ns = sending->deadline != FOR_EVER ? sending->deadline : 0},
        .kind = sending->answer != NULL ? REQUEST_ANSWER : REQUEST_BATCH,
        .answer = sending->answer,
        .user_data = sending->user_data,
        .known = batch->known,
    };
    walrus__batch_seal(batch, &submission.descriptor);
    submission.extent = batch->extent;
    int code = walrus__submit(handle, &submission, NULL);
    if (code < 0)
        return code;
    walrus__number_sent(batch->known, sending->number, number);
    batch->extent = NO_EXTENT;
    walrus__batch_recycle(batch);
    return 0;
}

int walrus__batch_send(struct walrus_batch *batch, const struct sending *sending)
{
    if (batch->streaming)
        return walrus__stream_finish(batch, sending);
    uint64_t number;
    int code = walrus__number_next(batch->handle, batch->known, sending->number, &number);
    return code < 0 ? code : send_whole(batch, sending, number);
}

/* ---------------------------------------------------------------------------------- submitting */

static int check_values(struct walrus_batch *batch, const struct walrus_submit_options *options)
{
    struct walrus *handle = batch->handle;
    if (options->level > LEVEL_DURABLE || options->append > 1 || options->queue > 1 || options->notify > 1)
        return walrus__fail(handle, -EINVAL, REASON_NONE,
                            "submit: level %u, append %u, queue %u, notify %u: there is no such value",
                            options->level, options->append, options->queue, options->notify);
    if (options->append == 1 && batch->entries != 1)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "submit: an append is one entry, this batch has %u",
                            batch->entries);
    if (batch->part_open)
        return walrus__fail(handle, -EINVAL, REASON_NONE,
                            "submit: the last entry has no end: its last part said that more would follow");
    if (options->number != 0 && batch->entries == 0)
        return walrus__fail(handle, -EINVAL, REASON_NONE,
                            "submit: an empty batch writes nothing, so it takes no number");
    if (options->number != 0 && !walrus__numbered(handle))
        return walrus__fail(handle, -EINVAL, REASON_NONE,
                            "submit: number %llu, but this handle has no producer: connect with a producer's "
                            "name, or with WALRUS_RECONNECT",
                            (unsigned long long)options->number);
    return 0;
}

static int check_submit(struct walrus_batch *batch, const struct walrus_submit_options *given,
                        struct walrus_submit_options *options)
{
    struct walrus *handle = batch->handle;
    int code = walrus__options(handle, options, sizeof *options, given, "walrus_submit_options");
    if (code == 0)
        code = check_values(batch, options);
    if (code < 0)
        return code;
    return handle->lost != 0 ? walrus__fail_lost(handle) : 0;
}

/* Nothing to write: it is done. */
static int submit_empty(struct walrus_batch *batch, uint64_t user_data)
{
    struct walrus *handle = batch->handle;
    int64_t now = walrus__now();
    struct walrus_completion completion = {
        .user_data = user_data,
        .receipt = {.epoch = handle->welcome.epoch, .published_ns = now, .signalled_ns = now},
    };
    walrus__batch_recycle(batch);
    walrus__keep(handle, &completion);
    handle->in_flight++;
    walrus__leave(handle);
    return 0;
}

/* Is there credit for `need` completions? The chunks of a stream take credit as well: those on their way are
 * waited for, since nobody else can wait for them. */
static int credit_for(struct walrus_batch *batch, uint32_t need)
{
    struct walrus *handle = batch->handle;
    bool enough = handle->in_flight < handle->queue_entries - 1;
    bool writes = batch->entries > 0 || batch->failed < 0; /* what was sent of it has to be taken back */
    if (enough && writes && walrus__credit(handle) < need) {
        walrus__pump(handle);
        if (batch->streaming && batch->chunk > 0)
            return walrus__wait_credit(handle) < 0 ? walrus__fail_lost(handle) : 0;
        enough = walrus__credit(handle) >= need;
    }
    return enough ? 0
                  : walrus__fail(handle, -EAGAIN, REASON_RING,
                                 "of %u queue entries too few are free (in flight or not reaped: %u): reap, "
                                 "then submit again",
                                 handle->queue_entries - 1, handle->in_flight);
}

static int submit(struct walrus_batch *batch, const struct walrus_submit_options *options)
{
    struct walrus *handle = batch->handle;
    struct sending sending = {
        .op = options->append == 1 ? OP_APPEND : OP_BATCH,
        .level = options->level,
        .deadline = options->deadline_ns > 0 ? walrus__deadline(options->deadline_ns) : FOR_EVER,
        .number = options->number,
        .user_data = options->user_data,
    };
    uint32_t need = 1;
    if (options->queue == 1) {
        sending.flags = DESCRIPTOR_QUEUE;
        need += batch->chunk == 0 ? PATIENT_ASYNC : 0;
    } else if (options->notify == 1 && !batch->streaming) {
        sending.flags = DESCRIPTOR_NOTIFY;
        need += 1 + PATIENT_ASYNC;
    }
    int code = credit_for(batch, need);
    if (code < 0)
        return code;
    if (batch->entries == 0 && batch->failed == 0)
        return submit_empty(batch, options->user_data);
    code = walrus__batch_send(batch, &sending);
    if (code == 0)
        handle->in_flight++;
    return code;
}

int walrus_batch_submit(walrus_batch *batch, const struct walrus_submit_options *given)
{
    int code = walrus__enter_batch(batch);
    if (code < 0)
        return code;
    struct walrus *handle = batch->handle;
    struct walrus_submit_options options;
    code = check_submit(batch, given, &options);
    if (code == 0)
        code = submit(batch, &options);
    if (code < 0 && code != -EAGAIN) {
        struct error words = handle->error;
        walrus_batch_abort(batch);
        handle->error = words;
        return handle->lost != 0 ? walrus__fail_lost(handle) : code;
    }
    walrus__leave(handle);
    return code;
}

/* -------------------------------------------------------------------------------- taking back */

uint32_t walrus__request_of(const struct walrus *handle, const struct answer *answer)
{
    uint32_t i = handle->newest;
    while (i != NO_REQUEST && handle->requests[i].answer != answer)
        i = handle->requests[i].earlier;
    return i;
}

bool walrus__cancel_word(struct walrus *handle, uint64_t word)
{
    if (handle->lost != 0 || !walrus__has_credit(handle))
        return false;
    struct submission submission = {
        .descriptor = {.op = OP_CANCEL, .number = word},
        .kind = REQUEST_NOBODY,
        .extent = NO_EXTENT,
    };
    return walrus__submit(handle, &submission, NULL) == 0;
}

/* One OP_CANCEL, waited for. 0; -ENOENT: nothing waits under that word; or a lost connection. */
static int cancel_word(struct walrus *handle, uint64_t word)
{
    struct answer answer = {.done = false};
    struct submission submission = {
        .descriptor = {.op = OP_CANCEL, .number = word},
        .kind = REQUEST_ANSWER,
        .extent = NO_EXTENT,
        .answer = &answer,
    };
    int code = walrus__submit(handle, &submission, NULL);
    if (code < 0)
        return code;
    code = walrus__wait_answer(handle, &answer, FOR_EVER, false);
    check_bug(code == 0);
    return handle->lost != 0 ? walrus__fail_lost(handle) : answer.completion.result;
}

/* The oldest batch of the user under `user_data` that has no completion yet and was not asked about. */
static uint32_t find_submitted(const struct walrus *handle, uint64_t user_data)
{
    uint32_t i = handle->oldest;
    for (; i != NO_REQUEST; i = handle->requests[i].later) {
        const struct request *request = &handle->requests[i];
        if (request->kind == REQUEST_BATCH && request->user_data == user_data &&
            request->cancel_round != handle->cancel_rounds)
            return i;
    }
    return i;
}

static int cancel(struct walrus *handle, uint64_t user_data)
{
    handle->cancel_rounds++;
    for (;;) {
        walrus__pump(handle);
        if (handle->lost != 0)
            return walrus__fail_lost(handle);
        uint32_t index = find_submitted(handle, user_data);
        if (index == NO_REQUEST)
            return walrus__fail(handle, -ENOENT, REASON_NONE,
                                "cancel: no batch submitted with user_data %llu waits for its turn: it was "
                                "admitted, or it is decided",
                                (unsigned long long)user_data);
        if (!walrus__has_credit(handle))
            return walrus__fail(handle, -EAGAIN, REASON_RING,
                                "cancel: all queue entries are in flight: wait for a completion, then cancel "
                                "again");
        handle->requests[index].cancel_round = handle->cancel_rounds;
        int code = cancel_word(handle, walrus__request_word(handle, index));
        if (code != -ENOENT)
            return code < 0 && handle->lost == 0
                       ? walrus__fail_answer(handle, code, REASON_NONE, "cancel", NULL)
                       : code;
    }
}

int walrus_cancel(walrus *handle, uint64_t user_data)
{
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    code = cancel(handle, user_data);
    walrus__leave(handle);
    return code;
}

/* ------------------------------------------------------------------------------------- reaping */

static int take_kept(struct walrus *handle, struct walrus_completion *completions, int max)
{
    uint32_t count = walrus__kept_count(handle), last = 0;
    if (count > (uint32_t)max)
        count = (uint32_t)max;
    for (uint32_t i = 0; i < count; i++) {
        completions[i] = handle->kept[(handle->kept_head + i) & (KEPT_SLOTS(handle) - 1)];
        last += (completions[i].receipt.flags & WALRUS_RECEIPT_MORE) == 0;
    }
    handle->kept_head += count;
    check_bug(handle->in_flight >= last);
    handle->in_flight -= last;
    return (int)count;
}

int walrus_reap(walrus *handle, struct walrus_completion *completions, int max)
{
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    if (max < 0 || (max > 0 && completions == NULL))
        return walrus__fail(handle, -EINVAL, REASON_NONE, "reap: no place for %d completions", max);
    walrus__pump(handle);
    int count = take_kept(handle, completions, max);
    if (count == 0 && max > 0) {
        /* Who was woken by the fd must learn why; who spins on this call pays for a look now and then
         * only. */
        if (handle->waiting.fd_used || ++handle->waiting.empty_reaps % EMPTY_REAPS_PER_LOOK == 0) {
            walrus__look(handle);
            walrus__pump(handle);
            count = take_kept(handle, completions, max);
        }
        if (count == 0 && handle->lost != 0)
            return walrus__fail_lost(handle);
    }
    walrus__sweep_topics(handle);
    walrus__leave(handle);
    return count;
}

uint32_t walrus_in_flight(const walrus *handle)
{
    return walrus__enter(handle) == 0 ? handle->in_flight : 0;
}
