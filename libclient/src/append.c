/* append.c: the blocking writes.
 *
 * Happy path: the limits are checked over all slices before anything is copied; the name gives a topic number
 * (names.c); the entries are copied into one extent, waiting for batches in flight if need be; one
 * descriptor; wait. A batch larger than one descriptor takes goes in chunks (stream.c) as it is copied.
 *
 * Failure modes: a refusal with -EAGAIN (the broker's buffers, log space) clears by itself: it is tried
 * again, with pauses that grow, for MOST_PATIENCE. Everything else is the caller's. Completions of
 * asynchronous batches that are met meanwhile are kept for walrus_reap. Signal handlers do not end these
 * calls: the outcome would be unknown. */
#include "handle.h"

struct write_call {
    struct walrus *handle;
    const char *topic;
    uint32_t number;
    const struct walrus_slice *slices;
    size_t count;
    uint8_t level;
    uint8_t op; /* OP_APPEND or OP_BATCH */
};

static int check_slices(struct walrus *handle, const struct walrus_slice *slices, size_t count)
{
    if (count > MAX_BATCH_ENTRIES)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "a batch of %zu entries: there can be %u", count,
                            MAX_BATCH_ENTRIES);
    if (slices == NULL && count > 0)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "NULL is not %zu entries", count);
    uint64_t left = MAX_BATCH_BYTES;
    for (size_t i = 0; i < count; i++) {
        if (slices[i].data == NULL && slices[i].length > 0)
            return walrus__fail(handle, -EINVAL, REASON_NONE, "entry %zu: NULL is not %zu bytes of data", i,
                                slices[i].length);
        if (left < ENTRY_OVERHEAD || slices[i].length > left - ENTRY_OVERHEAD)
            return walrus__fail(handle, -EINVAL, REASON_NONE,
                                "entry %zu makes the batch larger than %llu bytes (with %u for each entry)",
                                i, (unsigned long long)MAX_BATCH_BYTES, ENTRY_OVERHEAD);
        left -= slices[i].length + ENTRY_OVERHEAD;
    }
    return 0;
}

/* Bytes of arena for all of it as one descriptor; 0 if it is too much for one. */
static uint32_t whole_size(const struct write_call *call)
{
    uint64_t payload = 0;
    for (size_t i = 0; i < call->count; i++) {
        if (call->slices[i].length > MAX_WHOLE_PAYLOAD)
            return 0;
        payload += align_up(call->slices[i].length, PAYLOAD_ALIGN);
        if (payload > MAX_WHOLE_PAYLOAD)
            return 0;
    }
    uint64_t all = payload + call->count * sizeof(struct entry_record);
    return all <= call->handle->whole_bytes ? (uint32_t)all : 0;
}

/* Room for all of it, waiting for batches in flight; if open batches hold the arena, the stream extent. 1:
 * chunks. */
static int room_for_all(const struct write_call *call, struct walrus_batch *batch)
{
    uint32_t need = whole_size(call);
    if (need == 0)
        return 1;
    for (;;) {
        int code = walrus__room_for(call->handle, batch, need);
        if (code != -EAGAIN)
            return code;
        if (call->handle->reason != REASON_ARENA)
            return walrus__room_last_resort(call->handle, batch, need) == 0 ? 0 : 1;
        if (walrus__wait_any(call->handle, FOR_EVER, false) < 0)
            return walrus__fail_lost(call->handle);
    }
}

static int fill(const struct write_call *call, struct walrus_batch *batch)
{
    int code = room_for_all(call, batch);
    if (code == 1)
        code = walrus__stream_start(batch);
    for (size_t i = 0; i < call->count && code == 0; i++)
        code = walrus__batch_put(batch, call->slices[i].data, call->slices[i].length);
    return code;
}

static bool chunks_answered(const struct walrus *handle, const void *context)
{
    (void)handle;
    return ((const struct walrus_batch *)context)->chunks_in_flight == 0;
}

/* Sends the end of it and waits for the answer. */
static int finish(const struct write_call *call, struct walrus_batch *batch, struct answer *answer)
{
    struct walrus *handle = call->handle;
    if (walrus__wait_credit(handle) < 0)
        return walrus__fail_lost(handle);
    int code;
    if (!batch->streaming) {
        struct submission submission = {
            .descriptor = {.op = call->op, .level = call->level, .topic = call->number},
            .kind = REQUEST_ANSWER,
            .answer = answer,
        };
        walrus__batch_seal(batch, &submission.descriptor);
        submission.extent = batch->extent;
        code = walrus__submit(handle, &submission, NULL);
        if (code == 0)
            batch->extent = NO_EXTENT;
    } else if (batch->failed < 0) {
        code = batch->failed;
    } else {
        code = walrus__stream_finish(batch, answer, 0);
    }
    if (code < 0)
        return code;
    code = walrus__wait_answer(handle, answer, FOR_EVER, false);
    check_bug(code == 0); /* a lost connection answers, too */
    return answer->completion.result;
}

/* Once: 0, or the error with *answer saying why. */
static int write_once(const struct write_call *call, struct answer *answer)
{
    struct walrus *handle = call->handle;
    struct walrus_batch *batch = walrus__batch_new(handle);
    if (batch == NULL)
        return walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for a batch");
    batch->topic_number = call->number;
    batch->level = call->level;
    *answer = (struct answer){.done = false};
    int code = fill(call, batch);
    if (code == 0)
        code = finish(call, batch, answer);
    if (batch->streaming && walrus__wait_until(handle, chunks_answered, batch, 1, FOR_EVER, false) < 0)
        check_bug(batch->chunks_in_flight == 0); /* a lost connection answers, too */
    if (batch->failed < 0) {
        code = batch->failed;
        answer->completion.result = code;
        answer->completion.reason = batch->failed_reason;
        answer->completion.retry_after_us = batch->failed_retry_us;
        answer->done = true;
    }
    if (batch->streaming && batch->state == BATCH_OPEN) {
        walrus__stream_abort(batch); /* what was sent is rolled back */
        return code;
    }
    walrus__batch_recycle(batch);
    return code;
}

static int write_call(struct write_call *call, struct walrus_receipt *receipt)
{
    struct walrus *handle = call->handle;
    int64_t begin = walrus__now();
    for (uint32_t attempt = 0;; attempt++) {
        struct answer answer;
        int code = walrus__number_of(handle, call->topic, true, &call->number);
        if (code < 0)
            return code;
        code = write_once(call, &answer);
        if (answer.done && receipt != NULL)
            walrus__fill_receipt(receipt, &answer.completion);
        if (code == 0)
            return 0;
        if (code > 0) {
            walrus__lose(handle, -EPROTO,
                         "the broker answered a write with %d; the connection has been ended", code);
            return walrus__fail_lost(handle);
        }
        if (code == -ECONNRESET && handle->lost != 0)
            return walrus__fail(handle, code, REASON_NONE, "%s", handle->lost_words.text);
        if (!answer.done)
            return code;
        if (code != -EAGAIN ||
            !walrus__wait_to_retry(handle, attempt, answer.completion.retry_after_us, begin))
            return walrus__fail_answer(handle, code, answer.completion.reason, "write to topic", call->topic);
    }
}

static int begin_write(walrus *handle, const char *topic, const struct walrus_write_options *given,
                       uint8_t *level, struct walrus_receipt *receipt)
{
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    if (receipt != NULL)
        memset(receipt, 0, sizeof *receipt);
    struct walrus_write_options options;
    code = walrus__options(handle, &options, sizeof options, given, "walrus_write_options");
    if (code < 0)
        return code;
    if (options.level > LEVEL_DURABLE)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "level %u: there is no such level", options.level);
    *level = options.level;
    return walrus__check_name(handle, topic);
}

int walrus_append_for_topic(walrus *handle, const char *topic, const void *data, size_t length,
                            const struct walrus_write_options *options, struct walrus_receipt *receipt)
{
    uint8_t level = 0;
    int code = begin_write(handle, topic, options, &level, receipt);
    if (code < 0)
        return code;
    struct walrus_slice slice = {data, length};
    code = check_slices(handle, &slice, 1);
    if (code < 0)
        return code;
    struct write_call call = {
        .handle = handle, .topic = topic, .slices = &slice, .count = 1, .level = level, .op = OP_APPEND};
    code = write_call(&call, receipt);
    walrus__leave(handle);
    return code;
}

int walrus_batch_append_for_topic(walrus *handle, const char *topic, const struct walrus_slice *entries,
                                  size_t count, const struct walrus_write_options *options,
                                  struct walrus_receipt *receipt)
{
    uint8_t level = 0;
    int code = begin_write(handle, topic, options, &level, receipt);
    if (code < 0)
        return code;
    code = check_slices(handle, entries, count);
    if (code < 0)
        return code;
    if (handle->lost != 0)
        return walrus__fail_lost(handle);
    if (count == 0) {
        if (receipt != NULL)
            *receipt = (struct walrus_receipt){.epoch = handle->welcome.epoch};
        return 0;
    }
    struct write_call call = {
        .handle = handle, .topic = topic, .slices = entries, .count = count, .level = level, .op = OP_BATCH};
    code = write_call(&call, receipt);
    walrus__leave(handle);
    return code;
}
