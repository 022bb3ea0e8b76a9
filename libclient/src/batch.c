/* batch.c: filling a batch in place, submitting it, reaping.
 *
 * Happy path: begin takes a batch object from the pool; reserve hands out the next bytes of the batch's
 * extent; submit copies the records, which were kept privately, behind the payload, cuts the extent to what
 * is used, and sends one descriptor. The batch object goes back to the pool at once; the extent belongs to
 * the request until its completion is met.
 *
 * Failure modes: no room or no credit: -EAGAIN, nothing changed. A batch that outgrows its share of the arena
 * goes in chunks if entries are added by copying (stream.c); reserve says -EMSGSIZE. An error of submit other
 * than -EAGAIN drops the batch.
 *
 * Invariants: entries begin at multiples of PAYLOAD_ALIGN; bytes between them are zero; used + 8 *
 * record_count <= limit. No allocation and no system call between begin and reap, once the pool is warm
 * and while the broker is awake. */
#include "handle.h"

#define EMPTY_REAPS_PER_LOOK 1024u

/* ------------------------------------------------------------------------------- batch objects */

struct walrus_batch *walrus__batch_new(struct walrus *handle)
{
    struct walrus_batch *batch = handle->pool;
    if (batch != NULL) {
        handle->pool = batch->next;
    } else {
        batch = malloc(sizeof *batch);
        if (batch == NULL)
            return NULL;
        batch->allocated_next = handle->allocated;
        handle->allocated = batch;
    }
    struct walrus_batch *allocated_next = batch->allocated_next;
    memset(batch, 0, offsetof(struct walrus_batch, records));
    batch->allocated_next = allocated_next;
    batch->handle = handle;
    batch->state = BATCH_OPEN;
    batch->extent = NO_EXTENT;
    batch->next = handle->open;
    if (batch->next != NULL)
        batch->next->previous = batch;
    handle->open = batch;
    handle->open_count++;
    return batch;
}

void walrus__batch_close(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    check_bug(batch->state == BATCH_OPEN);
    if (batch->previous != NULL)
        batch->previous->next = batch->next;
    else
        handle->open = batch->next;
    if (batch->next != NULL)
        batch->next->previous = batch->previous;
    batch->previous = batch->next = NULL;
    handle->open_count--;
    batch->state = BATCH_SENT;
    struct walrus_topic *topic = batch->topic;
    batch->topic = NULL;
    if (topic != NULL) {
        topic->open_batches--;
        walrus__topic_unused(topic);
    }
}

void walrus__batch_recycle(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    check_bug(batch->state != BATCH_UNUSED && batch->chunks_in_flight == 0);
    if (batch->state == BATCH_OPEN)
        walrus__batch_close(batch);
    walrus__room_give_back(handle, batch->extent);
    batch->extent = NO_EXTENT;
    batch->state = BATCH_UNUSED;
    batch->next = handle->pool;
    handle->pool = batch;
}

static int enter_batch(const struct walrus_batch *batch)
{
    if (__builtin_expect(batch == NULL, 0))
        return -EINVAL;
    int code = walrus__enter(batch->handle);
    if (__builtin_expect(code < 0, 0))
        return code;
    if (__builtin_expect(batch->state != BATCH_OPEN, 0))
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE,
                            "the batch is not open: it was submitted or aborted");
    return 0;
}

/* ------------------------------------------------------------------------------------- filling */

int walrus_batch_begin(walrus_topic *topic, walrus_batch **batch_out)
{
    if (topic == NULL || batch_out == NULL)
        return -EINVAL;
    *batch_out = NULL;
    struct walrus *handle = topic->handle;
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    if (topic->closed)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "the topic handle is closed: open the topic again");
    if (handle->lost != 0)
        return walrus__fail_lost(handle);
    if (handle->open_count >= handle->queue_entries - 1)
        return walrus__fail(handle, -EAGAIN, REASON_RING,
                            "%u batches are open, one for each queue entry: submit or abort one",
                            handle->open_count);
    struct walrus_batch *batch = walrus__batch_new(handle);
    if (batch == NULL)
        return walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for a batch");
    batch->topic = topic;
    batch->topic_number = topic->number;
    topic->open_batches++;
    *batch_out = batch;
    return 0;
}

/* One more entry of `length` bytes within the limits? */
static int check_limits(struct walrus_batch *batch, uint64_t length)
{
    if (batch->entries >= MAX_BATCH_ENTRIES)
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE,
                            "the batch has %u entries, the most there can be: submit it", batch->entries);
    uint64_t left = MAX_BATCH_BYTES - batch->bytes;
    if (left < ENTRY_OVERHEAD || length > left - ENTRY_OVERHEAD)
        return walrus__fail(
            batch->handle, -EINVAL, REASON_NONE,
            "an entry of %llu bytes would make the batch larger than %llu bytes (with %u for each entry)",
            (unsigned long long)length, (unsigned long long)MAX_BATCH_BYTES, ENTRY_OVERHEAD);
    return 0;
}

static inline uint64_t bytes_with(const struct walrus_batch *batch, uint64_t length)
{
    return batch->used + align_up(length, PAYLOAD_ALIGN) +
           (batch->record_count + (uint64_t)1) * sizeof(struct entry_record);
}

/* True if the batch with this entry can be sent as one descriptor. */
static inline bool stays_whole(const struct walrus_batch *batch, uint64_t length)
{
    return bytes_with(batch, length) <= batch->handle->whole_bytes &&
           batch->used + align_up(length, PAYLOAD_ALIGN) <= MAX_WHOLE_PAYLOAD;
}

/* Before an entry is written: the last bytes up to the next multiple of PAYLOAD_ALIGN, all at once. */
static inline void zero_end(uint8_t *entry, uint32_t padded)
{
    if (padded > 0)
        memset(entry + padded - PAYLOAD_ALIGN, 0, PAYLOAD_ALIGN);
}

int walrus_batch_reserve(walrus_batch *batch, size_t length, void **data)
{
    int code = enter_batch(batch);
    if (code < 0)
        return code;
    if (data == NULL)
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE, "reserve: no place for the pointer");
    code = check_limits(batch, length);
    if (code < 0)
        return code;
    if (batch->streaming || !stays_whole(batch, length))
        return walrus__fail(
            batch->handle, -EMSGSIZE, REASON_NONE,
            "an entry of %zu bytes does not fit beside the batch into its share (%u bytes) of the arena: "
            "use walrus_batch_add, which sends the batch in chunks",
            length, batch->handle->whole_bytes);
    uint64_t need = bytes_with(batch, length);
    if (need > batch->limit) {
        code = walrus__room_for(batch->handle, batch, (uint32_t)need);
        if (code < 0)
            return code;
    }
    uint8_t *entry = batch->base + batch->used;
    batch->reserved = walrus__padded(length);
    zero_end(entry, batch->reserved);
    batch->records[batch->record_count++] = (struct entry_record){.length = (uint32_t)length};
    batch->used += batch->reserved;
    batch->entries++;
    batch->bytes += length + ENTRY_OVERHEAD;
    batch->trimmable = batch->pinned = true;
    *data = entry;
    return 0;
}

int walrus_batch_trim(walrus_batch *batch, size_t length)
{
    int code = enter_batch(batch);
    if (code < 0)
        return code;
    if (!batch->trimmable || length > batch->records[batch->record_count - 1].length)
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE,
                            "trim: the last entry was not reserved, or fewer than %zu bytes of it were",
                            length);
    struct entry_record *record = &batch->records[batch->record_count - 1];
    uint32_t begin = batch->used - batch->reserved;
    batch->bytes -= record->length - length;
    record->length = (uint32_t)length;
    batch->reserved = walrus__padded(length);
    memset(batch->base + begin + length, 0, batch->reserved - length); /* what it had there is not wanted */
    batch->used = begin + batch->reserved;
    return 0;
}

void walrus__put_record(struct walrus_batch *batch, const void *data, uint32_t length, uint8_t type,
                        uint8_t flags)
{
    uint8_t *entry = batch->base + batch->used;
    uint32_t padded = walrus__padded(length);
    zero_end(entry, padded);
    if (length > 0)
        memcpy(entry, data, length);
    batch->records[batch->record_count++] =
        (struct entry_record){.length = length, .type = type, .flags = flags};
    batch->used += padded;
    batch->trimmable = false;
}

/* Room for a batch that stays whole, waiting for batches in flight. 1: there is none, the batch must go in
 * chunks. */
static int wait_for_room(struct walrus_batch *batch, uint32_t need)
{
    struct walrus *handle = batch->handle;
    for (;;) {
        int code = walrus__room_for(handle, batch, need);
        if (code != -EAGAIN)
            return code;
        if (handle->reason != REASON_ARENA)
            return 1;
        code = walrus__wait_any(handle, FOR_EVER, false);
        if (code < 0)
            return walrus__fail_lost(handle);
    }
}

int walrus__batch_put(struct walrus_batch *batch, const void *data, uint64_t length)
{
    int code = check_limits(batch, length);
    if (code < 0)
        return code;
    if (batch->handle->lost != 0)
        return walrus__fail_lost(batch->handle);
    if (!batch->streaming) {
        bool chunks = !stays_whole(batch, length);
        if (!chunks && bytes_with(batch, length) > batch->limit) {
            code = wait_for_room(batch, (uint32_t)bytes_with(batch, length));
            if (code < 0)
                return code;
            chunks = code == 1;
        }
        if (chunks && (code = walrus__stream_start(batch)) < 0)
            return code;
    }
    if (batch->streaming) {
        code = walrus__stream_put(batch, data, length, 0);
        if (code < 0)
            return code;
    } else {
        walrus__put_record(batch, data, (uint32_t)length, 0, 0);
    }
    batch->entries++;
    batch->bytes += length + ENTRY_OVERHEAD;
    return 0;
}

int walrus_batch_add(walrus_batch *batch, const void *data, size_t length)
{
    int code = enter_batch(batch);
    if (code < 0)
        return code;
    if (data == NULL && length > 0)
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE, "add: NULL is not %zu bytes of data",
                            length);
    code = walrus__batch_put(batch, data, length);
    walrus__leave(batch->handle);
    return code;
}

int walrus_batch_set_type(walrus_batch *batch, uint8_t type)
{
    int code = enter_batch(batch);
    if (code < 0)
        return code;
    if (batch->record_count == 0)
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE,
                            "there is no entry to give a type: set it right after the entry was added");
    batch->records[batch->record_count - 1].type = type;
    return 0;
}

/* ---------------------------------------------------------------------------------- submitting */

void walrus__batch_seal(struct walrus_batch *batch, struct descriptor *descriptor)
{
    struct walrus *handle = batch->handle;
    walrus__room_trim(handle, batch);
    memcpy(batch->base + batch->used, batch->records, batch->record_count * sizeof(struct entry_record));
    descriptor->arena_offset = (uint32_t)(batch->base - handle->arena);
    descriptor->payload_bytes = batch->used;
    descriptor->entries = batch->record_count;
}

static int check_submit(struct walrus_batch *batch, const struct walrus_submit_options *given,
                        struct walrus_submit_options *options)
{
    struct walrus *handle = batch->handle;
    int code = walrus__options(handle, options, sizeof *options, given, "walrus_submit_options");
    if (code < 0)
        return code;
    if (options->level > LEVEL_DURABLE || options->append > 1)
        return walrus__fail(handle, -EINVAL, REASON_NONE,
                            "submit: level %u, append %u: there is no such value", options->level,
                            options->append);
    if (options->append == 1 && batch->entries != 1)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "submit: an append is one entry, this batch has %u",
                            batch->entries);
    if (handle->lost != 0)
        return walrus__fail_lost(handle);
    return 0;
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

static int submit_whole(struct walrus_batch *batch, const struct walrus_submit_options *options)
{
    struct walrus *handle = batch->handle;
    struct submission submission = {
        .descriptor = {.op = options->append == 1 ? OP_APPEND : OP_BATCH,
                       .level = options->level,
                       .topic = batch->topic_number},
        .kind = REQUEST_BATCH,
        .user_data = options->user_data,
    };
    walrus__batch_seal(batch, &submission.descriptor);
    submission.extent = batch->extent;
    int code = walrus__submit(handle, &submission, NULL);
    if (code < 0)
        return code;
    batch->extent = NO_EXTENT;
    walrus__batch_recycle(batch);
    handle->in_flight++;
    return 0;
}

/* Chunks take credit as well: those on their way are waited for, since nobody else can wait for them. */
static int credit_for(struct walrus_batch *batch)
{
    struct walrus *handle = batch->handle;
    bool enough = handle->in_flight < handle->queue_entries - 1;
    if (enough && batch->entries > 0 && !walrus__has_credit(handle)) {
        walrus__pump(handle);
        if (batch->streaming)
            return walrus__wait_credit(handle) < 0 ? walrus__fail_lost(handle) : 0;
        enough = walrus__has_credit(handle);
    }
    return enough ? 0
                  : walrus__fail(handle, -EAGAIN, REASON_RING,
                                 "all %u queue entries are in flight or not reaped: reap, then submit again",
                                 handle->queue_entries - 1);
}

int walrus_batch_submit(walrus_batch *batch, const struct walrus_submit_options *given)
{
    int code = enter_batch(batch);
    if (code < 0)
        return code;
    struct walrus *handle = batch->handle;
    struct walrus_submit_options options;
    code = check_submit(batch, given, &options);
    if (code < 0) {
        struct error words = handle->error;
        walrus_batch_abort(batch);
        handle->error = words;
        return code;
    }
    code = credit_for(batch);
    if (code == -EAGAIN)
        return code;
    if (code < 0) {
        walrus_batch_abort(batch);
        return walrus__fail_lost(handle);
    }
    if (batch->entries == 0)
        return submit_empty(batch, options.user_data);
    batch->level = options.level;
    if (batch->streaming) {
        code = walrus__stream_finish(batch, NULL, options.user_data);
        if (code == 0)
            handle->in_flight++;
    } else {
        code = submit_whole(batch, &options);
    }
    if (code < 0) /* the broker broke the protocol */
        walrus_batch_abort(batch);
    walrus__leave(handle);
    return code < 0 ? walrus__fail_lost(handle) : 0;
}

void walrus_batch_abort(walrus_batch *batch)
{
    if (enter_batch(batch) < 0)
        return;
    struct walrus *handle = batch->handle;
    if (batch->streaming)
        walrus__stream_abort(batch);
    else
        walrus__batch_recycle(batch);
    walrus__leave(handle);
}

/* ------------------------------------------------------------------------------------- reaping */

static int take_kept(struct walrus *handle, struct walrus_completion *completions, int max)
{
    uint32_t count = walrus__kept_count(handle);
    if (count > (uint32_t)max)
        count = (uint32_t)max;
    for (uint32_t i = 0; i < count; i++)
        completions[i] = handle->kept[(handle->kept_head + i) & (handle->queue_entries - 1)];
    handle->kept_head += count;
    check_bug(handle->in_flight >= count);
    handle->in_flight -= count;
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
    walrus__leave(handle);
    return count;
}

uint32_t walrus_in_flight(const walrus *handle)
{
    return walrus__enter(handle) == 0 ? handle->in_flight : 0;
}
