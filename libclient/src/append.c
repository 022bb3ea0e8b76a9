/* append.c: the blocking writes.
 *
 * Happy path: the limits are checked over all slices before anything is copied; the name gives a topic
 * (names.c); the entries are copied into one extent, waiting for batches in flight if need be; one
 * descriptor; wait. A batch larger than one descriptor takes goes in chunks (stream.c) as it is copied.
 *
 * Failure modes
 *   - a refusal with -EAGAIN (the broker's buffers, log space) clears by itself: it is tried again, with
 *     pauses that grow, for MOST_PATIENCE. With struct walrus_retry: that, -EBUSY and -ENOSPC, as long and as
 *     often as it says. Everything else is the caller's. A refusal says that nothing was written, so trying
 *     again writes nothing twice.
 *   - waits between tries are random, from 0 up to a bound that doubles. After -EBUSY the broker is asked to
 *     tell when a try may succeed: that ends the wait. One such request is under way at a time, over all
 *     tries, so that the call keeps its place; it is taken back at the end.
 *   - the deadline. What is not sent by then was not written: -ETIMEDOUT. For what was sent the broker knows
 *     the deadline, too, and answers -ETIMEDOUT itself; if no answer comes within DEADLINE_GRACE of it,
 *     -EINPROGRESS, and the completion becomes one of walrus_reap.
 *
 * Completions of asynchronous batches that are met meanwhile are kept for walrus_reap. Signal handlers do not
 * end these calls: the outcome would be unknown. */
#include "handle.h"

#define FIRST_WAIT NS_PER_MS
#define MOST_WAIT  NS_PER_S

struct write_call {
    struct walrus *handle;
    const char *topic;
    struct known_topic *known;
    const struct walrus_slice *slices;
    size_t count;
    uint8_t op; /* OP_APPEND or OP_BATCH */
    struct walrus_write_options options;
    struct walrus_retry retry; /* max_tries and deadline say when it ends */
    bool retries;
    int64_t begin, deadline;
    int64_t bound;        /* of the next wait; 0 = not begun */
    struct answer listed; /* the request that waits for the word that a try may succeed */
    bool is_listed;
};

static int check_slices(struct walrus *handle, const struct walrus_slice *slices, size_t count)
{
    if (count > MAX_BATCH_ENTRIES)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "a batch of %zu entries: there can be %u", count,
                            MAX_BATCH_ENTRIES);
    if (slices == NULL && count > 0)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "NULL is not %zu entries", count);
    uint64_t most = handle->welcome.max_batch_bytes, left = most;
    for (size_t i = 0; i < count; i++) {
        if (slices[i].data == NULL && slices[i].length > 0)
            return walrus__fail(handle, -EINVAL, REASON_NONE, "entry %zu: NULL is not %zu bytes of data", i,
                                slices[i].length);
        if (left < ENTRY_OVERHEAD || slices[i].length > left - ENTRY_OVERHEAD)
            return walrus__fail(handle, -EINVAL, REASON_NONE,
                                "entry %zu makes the batch larger than %llu bytes (with %u for each entry)",
                                i, (unsigned long long)most, ENTRY_OVERHEAD);
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

/* Room for all of it, waiting for batches in flight; if open batches hold the arena, or those in flight may
 * be waiting for a stream of ours, the stream extent. 1: chunks. */
static int room_for_all(const struct write_call *call, struct walrus_batch *batch)
{
    uint32_t need = whole_size(call);
    if (need == 0)
        return 1;
    for (;;) {
        int code = walrus__room_for(call->handle, batch, need);
        if (code != -EAGAIN)
            return code;
        if (call->handle->reason != REASON_ARENA || walrus__stream_is_open(call->handle))
            return walrus__room_last_resort(call->handle, batch, need) == 0 ? 0 : 1;
        code = walrus__wait_any(call->handle, call->deadline, false);
        if (code < 0)
            return code == -ETIME ? walrus__too_late(call->handle) : walrus__fail_lost(call->handle);
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

/* ------------------------------------------------------------------------------------- waiting */

int walrus__too_late(struct walrus *handle)
{
    return walrus__fail(
        handle, -ETIMEDOUT, REASON_NONE,
        "the deadline passed before the broker had all of it; nothing was written: try again");
}

static bool has_credits(const struct walrus *handle, const void *context)
{
    return walrus__credit(handle) >= *(const uint32_t *)context;
}

int walrus__wait_credits(struct walrus *handle, uint32_t need, int64_t deadline)
{
    if (walrus__credit(handle) >= need)
        return handle->lost;
    int code = walrus__wait_until(handle, has_credits, &need, 1, deadline, false);
    return code < 0 ? code : handle->lost;
}

static bool chunks_answered(const struct walrus *handle, const void *context)
{
    (void)handle;
    return ((const struct walrus_batch *)context)->chunks_in_flight == 0;
}

/* The number must wait for those that follow a refused one (numbers.c); a chunk may fail meanwhile. */
static int send_in_order(const struct write_call *call, struct walrus_batch *batch,
                         const struct sending *sending)
{
    struct walrus *handle = call->handle;
    for (;;) {
        if (batch->failed < 0)
            return batch->failed;
        int code = walrus__batch_send(batch, sending);
        if (code != -EAGAIN || handle->reason != REASON_ORDER)
            return code;
        code = walrus__wait_any(handle, call->deadline, false);
        if (code < 0)
            return code == -ETIME ? walrus__too_late(handle) : walrus__fail_lost(handle);
    }
}

/* It was sent and is not answered: from now on it is the user's, as if it had been submitted. */
static int let_go(const struct write_call *call, struct walrus_batch *stream, const struct answer *answer)
{
    struct walrus *handle = call->handle;
    uint32_t index = walrus__request_of(handle, answer);
    check_bug(index != NO_REQUEST);
    struct request *request = &handle->requests[index];
    request->kind = REQUEST_BATCH;
    request->answer = NULL;
    request->batch = stream;
    request->user_data = call->options.user_data;
    handle->in_flight++;
    return walrus__fail(handle, -EINPROGRESS, REASON_NONE,
                        "write to topic \"%s\": the deadline passed and the broker has not answered: the "
                        "completion comes by walrus_reap, with user_data %llu",
                        call->topic, (unsigned long long)call->options.user_data);
}

/* ------------------------------------------------------------------------------------- one try */

/* Sends the end of it and waits for the answer. -EINPROGRESS: the batch is not ours any more. */
static int finish(const struct write_call *call, struct walrus_batch *batch, struct answer *answer)
{
    struct walrus *handle = call->handle;
    struct sending sending = {
        .op = call->op,
        .level = call->options.level,
        .deadline = call->deadline,
        .number = call->options.number,
        .answer = answer,
    };
    uint32_t need = 1;
    if (call->options.queue == 1) {
        sending.flags = DESCRIPTOR_QUEUE;
        need += PATIENT_CALL;
    } else if (answer == &call->listed && !batch->streaming) {
        sending.flags = DESCRIPTOR_NOTIFY;
        need += 1 + PATIENT_CALL;
    }
    int code = walrus__wait_credits(handle, need, call->deadline);
    if (code < 0)
        return code == -ETIME ? walrus__too_late(handle) : walrus__fail_lost(handle);
    struct walrus_batch *stream = batch->streaming ? batch : NULL;
    code = send_in_order(call, batch, &sending);
    if (code < 0)
        return code;
    code = walrus__wait_answer(handle, answer, walrus__with_grace(call->deadline), false);
    if (code == -ETIME)
        return let_go(call, stream, answer);
    check_bug(code == 0); /* a lost connection answers, too */
    return answer->completion.result;
}

/* A stream that is not on its way as a whole: its error, and back with what was sent. */
static int end_stream(struct walrus_batch *batch, int code, struct answer *answer)
{
    struct walrus *handle = batch->handle;
    if (code != -ETIMEDOUT && walrus__wait_until(handle, chunks_answered, batch, 1, FOR_EVER, false) < 0)
        check_bug(batch->chunks_in_flight == 0); /* a lost connection answers, too */
    if (batch->failed < 0) {
        code = batch->failed;
        answer->completion.result = code;
        answer->completion.flags = 0;
        answer->completion.reason = batch->failed_reason;
        answer->completion.retry_after_us = batch->failed_retry_us;
        answer->done = true;
    }
    if (batch->state == BATCH_OPEN)
        walrus__stream_abort(batch);
    else
        walrus__batch_recycle(batch);
    return code;
}

/* Once: 0, or the error with *answer saying why. */
static int write_once(const struct write_call *call, struct answer *answer)
{
    struct walrus *handle = call->handle;
    *answer = (struct answer){.done = false};
    struct walrus_batch *batch = walrus__batch_new(handle);
    if (batch == NULL)
        return walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for a batch");
    batch->known = call->known;
    batch->queue = call->options.queue == 1;
    batch->deadline = call->deadline;
    int code = fill(call, batch);
    if (code == 0)
        code = finish(call, batch, answer);
    if (batch->streaming)
        return code == -EINPROGRESS ? code : end_stream(batch, code, answer);
    if (batch->state == BATCH_OPEN)
        walrus__batch_recycle(batch);
    return code;
}

/* --------------------------------------------------------------------------------- trying again */

static bool told_to_try(const struct walrus *handle, const void *context)
{
    (void)handle;
    const struct write_call *call = context;
    return call->is_listed && call->listed.try_now;
}

/* Waits before the next try. False: there will be none. */
static bool wait_for_try(struct write_call *call, const struct completion *refusal)
{
    struct walrus *handle = call->handle;
    int64_t most = call->retry.max_wait_ns > 0 ? call->retry.max_wait_ns : MOST_WAIT;
    if (call->bound == 0)
        call->bound = call->retry.first_wait_ns > 0 ? call->retry.first_wait_ns
                      : refusal->retry_after_us > 0 ? (int64_t)refusal->retry_after_us * 1000
                                                    : FIRST_WAIT;
    if (call->bound > most)
        call->bound = most;
    int64_t now = walrus__now(), pause = walrus__random(handle, call->bound);
    int64_t until = pause < call->deadline - now ? now + pause : call->deadline;
    call->bound = call->bound > most / 2 ? most : 2 * call->bound;
    int code;
    if (refusal->result == -EAGAIN) /* whatever completes meanwhile may be what it waits for */
        code = walrus__wait_any(handle, until, false);
    else
        code = walrus__wait_until(handle, told_to_try, call, 1, until, false);
    return code == 0 || code == -ETIME;
}

static bool try_again(struct write_call *call, uint32_t tries, const struct completion *refusal)
{
    struct walrus *handle = call->handle;
    int code = refusal->result;
    if (handle->lost != 0 ||
        (code == -EAGAIN && refusal->reason == REASON_ORDER && call->options.number != 0))
        return false;
    if (!call->retries)
        return code == -EAGAIN && walrus__now() < call->deadline &&
               walrus__wait_to_retry(handle, tries - 1, refusal->retry_after_us, call->begin);
    if (code != -EBUSY && code != -EAGAIN && code != -ENOSPC)
        return false;
    return (call->retry.max_tries == 0 || tries < call->retry.max_tries) && wait_for_try(call, refusal);
}

/* What was said by the last completion. */
static int refused(const struct write_call *call, int code, const struct completion *completion)
{
    struct walrus *handle = call->handle;
    if (handle->lost != 0 && code == -ECONNRESET)
        return walrus__fail(handle, code, REASON_NONE, "%s", handle->lost_words.text);
    if (call->deadline != FOR_EVER && (code == -EBUSY || code == -EAGAIN || code == -ENOSPC) &&
        walrus__now() >= call->deadline)
        return walrus__fail(handle, -ETIMEDOUT, completion->reason,
                            "write to topic \"%s\": refused until the deadline (%s); nothing was written",
                            call->topic, strerror(-code));
    return walrus__fail_answer(handle, code, completion->reason, "write to topic", call->topic);
}

static int write_tries(struct write_call *call, struct walrus_receipt *receipt)
{
    struct walrus *handle = call->handle;
    for (uint32_t tries = 1;; tries++) {
        int code = walrus__known_for_call(handle, call->topic, true, call->deadline, &call->known);
        if (code < 0)
            return code;
        bool lists = call->retries && call->options.queue == 0 && !call->is_listed;
        struct answer own, *answer = lists ? &call->listed : &own;
        code = write_once(call, answer);
        if (answer->done && receipt != NULL)
            walrus__fill_receipt(receipt, &answer->completion);
        if (code == 0)
            return 0;
        if (code > 0) {
            walrus__lose(handle, -EPROTO,
                         "the broker answered a write with %d; the connection has been ended", code);
            return walrus__fail_lost(handle);
        }
        if (!answer->done)
            return code;
        call->is_listed |= lists && (answer->completion.flags & COMPLETION_MORE) != 0;
        struct completion last = answer->completion;
        if (!try_again(call, tries, &last) || walrus__now() >= call->deadline)
            return refused(call, code, &last);
        call->is_listed = call->is_listed && !call->listed.try_now;
    }
}

/* Nobody waits for the word any more: the place in the list is given back. */
static void unlist(struct write_call *call)
{
    struct walrus *handle = call->handle;
    uint32_t index = call->is_listed ? walrus__request_of(handle, &call->listed) : NO_REQUEST;
    if (index == NO_REQUEST)
        return;
    walrus__abandon(handle, index);
    if (!walrus__cancel_word(handle, walrus__request_word(handle, index))) {
        /* No credit for it: the word is dropped when it comes. */
    }
}

static int write_call(struct write_call *call, struct walrus_receipt *receipt)
{
    int code = write_tries(call, receipt);
    struct error words = call->handle->error;
    uint8_t reason = call->handle->reason;
    unlist(call);
    if (code < 0) {
        call->handle->error = words;
        call->handle->reason = reason;
    }
    if (receipt != NULL)
        receipt->flags &= ~(uint32_t)WALRUS_RECEIPT_MORE; /* that was for us */
    walrus__sweep_topics(call->handle);
    walrus__leave(call->handle);
    return code;
}

/* ----------------------------------------------------------------------------------- the calls */

static int check_write(struct write_call *call)
{
    struct walrus *handle = call->handle;
    const struct walrus_write_options *o = &call->options;
    if (o->level > LEVEL_DURABLE || o->queue > 1)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "level %u, queue %u: there is no such value",
                            o->level, o->queue);
    if (o->number != 0 && !walrus__numbered(handle))
        return walrus__fail(
            handle, -EINVAL, REASON_NONE,
            "number %llu, but this handle has no producer: connect with a producer's name, or "
            "with WALRUS_RECONNECT",
            (unsigned long long)o->number);
    if (o->retry != NULL) {
        int code = walrus__options(handle, &call->retry, sizeof call->retry, o->retry, "walrus_retry");
        if (code < 0)
            return code;
        call->retries = true;
        if (call->retry.first_wait_ns < 0 || call->retry.max_wait_ns < 0)
            return walrus__fail(handle, -EINVAL, REASON_NONE, "walrus_retry: a wait is not negative");
        if (call->retry.max_tries == 0 && o->deadline_ns <= 0)
            return walrus__fail(handle, -EINVAL, REASON_NONE,
                                "walrus_retry: neither max_tries nor a deadline: that might never end");
    }
    return 0;
}

static int begin_write(struct write_call *call, const struct walrus_write_options *given,
                       struct walrus_receipt *receipt)
{
    struct walrus *handle = call->handle;
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    if (receipt != NULL)
        memset(receipt, 0, sizeof *receipt);
    code = walrus__options(handle, &call->options, sizeof call->options, given, "walrus_write_options");
    if (code == 0)
        code = check_write(call);
    if (code == 0)
        code = walrus__check_name(handle, call->topic);
    if (code == 0)
        code = check_slices(handle, call->slices, call->count);
    if (code < 0)
        return code;
    call->begin = walrus__now();
    call->deadline = call->options.deadline_ns > 0 ? walrus__deadline(call->options.deadline_ns) : FOR_EVER;
    /* Its completion may become one of walrus_reap. */
    if (call->deadline != FOR_EVER && handle->in_flight >= handle->queue_entries - 1)
        return walrus__fail(handle, -EAGAIN, REASON_RING,
                            "all %u queue entries are in flight or not reaped: reap, then write again",
                            handle->queue_entries - 1);
    return 0;
}

int walrus_append_for_topic(walrus *handle, const char *topic, const void *data, size_t length,
                            const struct walrus_write_options *options, struct walrus_receipt *receipt)
{
    struct walrus_slice slice = {data, length};
    struct write_call call = {
        .handle = handle, .topic = topic, .slices = &slice, .count = 1, .op = OP_APPEND};
    int code = begin_write(&call, options, receipt);
    return code < 0 ? code : write_call(&call, receipt);
}

int walrus_batch_append_for_topic(walrus *handle, const char *topic, const struct walrus_slice *entries,
                                  size_t count, const struct walrus_write_options *options,
                                  struct walrus_receipt *receipt)
{
    struct write_call call = {
        .handle = handle, .topic = topic, .slices = entries, .count = count, .op = OP_BATCH};
    int code = begin_write(&call, options, receipt);
    if (code < 0)
        return code;
    if (count > 0)
        return write_call(&call, receipt);
    if (handle->lost != 0)
        return walrus__fail_lost(handle);
    if (call.options.number != 0)
        return walrus__fail(handle, -EINVAL, REASON_NONE,
                            "an empty batch writes nothing, so it takes no number");
    if (receipt != NULL)
        *receipt = (struct walrus_receipt){.epoch = handle->welcome.epoch};
    return 0;
}
