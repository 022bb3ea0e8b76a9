/* batch.c: filling a batch.
 *
 * Happy path: begin takes a batch object from the pool; reserve hands out the next bytes of the batch's
 * extent, add copies into them. The records are kept privately until the batch is sent (submit.c). An entry
 * may be added in parts: its record grows.
 *
 * Failure modes: no room: -EAGAIN, nothing changed. A batch that outgrows its share of the arena goes in
 * chunks if entries are added by copying (stream.c); reserve says -EMSGSIZE.
 *
 * Invariants: entries begin at multiples of PAYLOAD_ALIGN; bytes between them are zero; used + 8 *
 * record_count <= limit; while `part_open` nothing but another part is taken. No allocation and no system
 * call between begin and reap, once the pool is warm and while the broker is awake. */
#include "handle.h"

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
    batch->tail_bytes = 0;
    batch->deadline = FOR_EVER;
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

int walrus__enter_batch(const struct walrus_batch *batch)
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

/* For everything that cannot happen in the middle of an entry. */
static int enter_between_entries(const struct walrus_batch *batch)
{
    int code = walrus__enter_batch(batch);
    if (code == 0 && __builtin_expect(batch->part_open, 0))
        return walrus__fail(
            batch->handle, -EINVAL, REASON_NONE,
            "an entry of the batch is being added in parts: end it first, by a last part with "
            "`more` 0");
    return code;
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
    batch->known = topic->known;
    topic->open_batches++;
    *batch_out = batch;
    return 0;
}

/* `length` more bytes, `overhead` included, within the limit of a batch? */
static int check_bytes(struct walrus_batch *batch, uint64_t length, uint32_t overhead)
{
    uint64_t most = batch->handle->welcome.max_batch_bytes;
    uint64_t left = most - batch->bytes;
    if (left < overhead || length > left - overhead)
        return walrus__fail(
            batch->handle, -EINVAL, REASON_NONE,
            "%llu more bytes would make the batch larger than %llu bytes (with %u for each entry)",
            (unsigned long long)length, (unsigned long long)most, ENTRY_OVERHEAD);
    return 0;
}

/* One more entry of `length` bytes within the limits? */
static int check_limits(struct walrus_batch *batch, uint64_t length)
{
    if (batch->entries >= MAX_BATCH_ENTRIES)
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE,
                            "the batch has %u entries, the most there can be: submit it", batch->entries);
    return check_bytes(batch, length, ENTRY_OVERHEAD);
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

/* What nearly every entry finds: no limit is near, and the batch has room for it as it is (`limit` is never
 * more than what can be sent as one descriptor, but for the payload). */
static inline bool fits_at_once(const struct walrus_batch *batch, uint64_t length)
{
    return !batch->streaming && batch->entries < MAX_BATCH_ENTRIES && length <= batch->limit &&
           bytes_with(batch, length) <= batch->limit &&
           batch->used + align_up(length, PAYLOAD_ALIGN) <= MAX_WHOLE_PAYLOAD &&
           batch->bytes + length + ENTRY_OVERHEAD <= batch->handle->welcome.max_batch_bytes;
}

/* Before an entry is written: the last bytes up to the next multiple of PAYLOAD_ALIGN, all at once. */
static inline void zero_end(uint8_t *entry, uint32_t padded)
{
    if (padded > 0)
        memset(entry + padded - PAYLOAD_ALIGN, 0, PAYLOAD_ALIGN);
}

/* The way of all others. */
static __attribute__((noinline)) int make_room_to_reserve(struct walrus_batch *batch, uint64_t length)
{
    int code = check_limits(batch, length);
    if (code < 0)
        return code;
    if (batch->streaming || !stays_whole(batch, length))
        return walrus__fail(
            batch->handle, -EMSGSIZE, REASON_NONE,
            "an entry of %llu bytes does not fit beside the batch into its share (%u bytes) of the arena: "
            "use walrus_batch_add, which sends the batch in chunks",
            (unsigned long long)length, batch->handle->whole_bytes);
    uint64_t need = bytes_with(batch, length);
    return need > batch->limit ? walrus__room_for(batch->handle, batch, (uint32_t)need) : 0;
}

int walrus_batch_reserve(walrus_batch *batch, size_t length, void **data)
{
    int code = enter_between_entries(batch);
    if (code < 0)
        return code;
    if (__builtin_expect(data == NULL, 0))
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE, "reserve: no place for the pointer");
    if (__builtin_expect(!fits_at_once(batch, length), 0)) {
        code = make_room_to_reserve(batch, length);
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
    int code = enter_between_entries(batch);
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
 * chunks; also if the handle has a stream open, for which those in flight may be waiting, over others. */
static int wait_for_room(struct walrus_batch *batch, uint32_t need)
{
    struct walrus *handle = batch->handle;
    for (;;) {
        int code = walrus__room_for(handle, batch, need);
        if (code != -EAGAIN)
            return code;
        if (handle->reason != REASON_ARENA || walrus__stream_is_open(handle))
            return 1;
        code = walrus__wait_any(handle, batch->deadline, false);
        if (code < 0)
            return code == -ETIME ? walrus__too_late(handle) : walrus__fail_lost(handle);
    }
}

/* Room for a batch with `need` bytes that could stay whole, unless it streams already. 1: in chunks. */
static int make_room(struct walrus_batch *batch, bool whole, uint64_t need)
{
    if (!whole)
        return 1;
    return need > batch->limit ? wait_for_room(batch, (uint32_t)need) : 0;
}

int walrus__batch_put(struct walrus_batch *batch, const void *data, uint64_t length)
{
    if (__builtin_expect(batch->handle->lost == 0 && fits_at_once(batch, length), 1)) {
        walrus__put_record(batch, data, (uint32_t)length, 0, 0);
        batch->entries++;
        batch->bytes += length + ENTRY_OVERHEAD;
        return 0;
    }
    int code = check_limits(batch, length);
    if (code < 0)
        return code;
    if (batch->handle->lost != 0)
        return walrus__fail_lost(batch->handle);
    if (!batch->streaming) {
        code = make_room(batch, stays_whole(batch, length), bytes_with(batch, length));
        if (code < 0 || (code == 1 && (code = walrus__stream_start(batch)) < 0))
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
    int code = enter_between_entries(batch);
    if (code < 0)
        return code;
    if (data == NULL && length > 0)
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE, "add: NULL is not %zu bytes of data",
                            length);
    code = walrus__batch_put(batch, data, length);
    walrus__leave(batch->handle);
    return code;
}

void walrus__extend_record(struct walrus_batch *batch, const void *data, uint32_t length)
{
    struct entry_record *record = &batch->records[batch->record_count - 1];
    uint32_t old = walrus__padded(record->length), padded = walrus__padded((uint64_t)record->length + length);
    uint8_t *entry = batch->base + batch->used - old;
    if (padded > old)
        zero_end(entry, padded);
    if (length > 0)
        memcpy(entry + record->length, data, length);
    record->length += length;
    batch->used += padded - old;
}

/* A part that does not begin its entry, in a batch that is whole so far. 1: it must go in chunks. */
static int put_more(struct walrus_batch *batch, const void *data, uint64_t length)
{
    uint32_t last = batch->records[batch->record_count - 1].length;
    uint64_t payload = batch->used - walrus__padded(last) + align_up(last + length, PAYLOAD_ALIGN);
    uint64_t need = payload + batch->record_count * (uint64_t)sizeof(struct entry_record);
    int code = make_room(batch, need <= batch->handle->whole_bytes && payload <= MAX_WHOLE_PAYLOAD, need);
    if (code == 0)
        walrus__extend_record(batch, data, (uint32_t)length);
    return code;
}

static int put_part(struct walrus_batch *batch, const void *data, uint64_t length, bool begins)
{
    int code = 1;
    if (!batch->streaming) {
        if (begins)
            code = make_room(batch, stays_whole(batch, length), bytes_with(batch, length));
        else
            code = put_more(batch, data, length);
        if (code == 0 && begins)
            walrus__put_record(batch, data, (uint32_t)length, 0, 0);
        batch->part_here = batch->part_here || (code == 0 && begins);
        if (code == 1 && (code = walrus__stream_start(batch)) == 0)
            code = 1;
    }
    return code == 1 ? walrus__stream_put_part(batch, data, length, begins) : code;
}

int walrus_batch_add_part(walrus_batch *batch, const void *data, size_t length, int more)
{
    int code = walrus__enter_batch(batch);
    if (code < 0)
        return code;
    struct walrus *handle = batch->handle;
    if (data == NULL && length > 0)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "add: NULL is not %zu bytes of data", length);
    bool begins = !batch->part_open;
    code = begins ? check_limits(batch, length) : check_bytes(batch, length, 0);
    if (code < 0)
        return code;
    if (handle->lost != 0)
        return walrus__fail_lost(handle);
    if (begins)
        batch->part_here = false;
    code = put_part(batch, data, length, begins);
    if (code == 0) {
        batch->entries += begins;
        batch->bytes += length + (begins ? ENTRY_OVERHEAD : 0);
        batch->part_open = more != 0;
    }
    walrus__leave(handle);
    return code;
}

int walrus_batch_set_queue(walrus_batch *batch, int queue)
{
    int code = enter_between_entries(batch);
    if (code < 0)
        return code;
    if (queue < 0 || queue > 1)
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE, "queue %d: it is 0 or 1", queue);
    if (batch->entries > 0)
        return walrus__fail(
            batch->handle, -EINVAL, REASON_NONE,
            "the batch has entries, so it may have gone for its topic already: set queue first");
    batch->queue = queue == 1;
    return 0;
}

int walrus_batch_set_type(walrus_batch *batch, uint8_t type)
{
    int code = enter_between_entries(batch);
    if (code < 0)
        return code;
    if (batch->record_count == 0)
        return walrus__fail(batch->handle, -EINVAL, REASON_NONE,
                            "there is no entry to give a type: set it right after the entry was added");
    batch->records[batch->record_count - 1].type = type;
    return 0;
}

void walrus_batch_abort(walrus_batch *batch)
{
    if (walrus__enter_batch(batch) < 0)
        return;
    struct walrus *handle = batch->handle;
    if (batch->streaming)
        walrus__stream_abort(batch);
    else
        walrus__batch_recycle(batch);
    walrus__sweep_topics(handle);
    walrus__leave(handle);
}
