/* room.c: how batches share the arena.
 *
 *   0 .. 255                      one topic name on its way (OP_OPEN)
 *   256 .. 256 + stream_bytes the stream extent: kept for chunks alone, so that a batch that goes in chunks
 *   gets on
 *                                 whatever open batches hold
 *   the rest                      extents (arena.c)
 *
 * An open batch grows in place, so its extent is more than it needs yet: all the free space there is, up to
 * `whole_bytes` (half of the arena, or what a frame takes). Of what it has not filled the next batch to begin
 * takes half, if that is more than is free elsewhere: so any number of open batches have room, and none can
 * take it all. What a batch has filled is never moved once a pointer into it was given out.
 *
 * On the way out a batch's extent is cut to what it holds; it is free again when its completion is met. */
#include "handle.h"

#define STREAM_MOST    (128u << 10)
#define SMALLEST_CHUNK 8192u        /* a piece of a page, its record, and some */
#define WANTED_CHUNK   (128u << 10) /* what the broker lets a group carry beside small batches */

int walrus__room_init(struct walrus *handle)
{
    uint32_t stream = handle->arena_bytes / 16;
    stream = stream < SMALLEST_CHUNK ? SMALLEST_CHUNK : stream > STREAM_MOST ? STREAM_MOST : stream;
    handle->stream_at = NAME_BYTES;
    handle->stream_bytes = stream & ~(ARENA_GRAIN - 1);
    uint32_t begin = handle->stream_at + handle->stream_bytes;
    handle->room_bytes = (handle->arena_bytes - begin) & ~(ARENA_GRAIN - 1);
    uint32_t records = MAX_BATCH_ENTRIES * (uint32_t)sizeof(struct entry_record);
    uint64_t whole = min_u64(handle->room_bytes / 2, MAX_WHOLE_PAYLOAD + records);
    handle->whole_bytes = (uint32_t)whole & ~(ARENA_GRAIN - 1);
    uint64_t chunk = min_u64(handle->room_bytes / 4, WANTED_CHUNK);
    handle->chunk_bytes = (uint32_t)chunk & ~(ARENA_GRAIN - 1);
    return walrus__arena_init(&handle->room, begin, handle->room_bytes, 2 * handle->queue_entries + 4);
}

bool walrus__room_in_flight(const struct walrus *handle)
{
    for (uint32_t i = handle->oldest; i != NO_REQUEST; i = handle->requests[i].later) {
        if (handle->requests[i].extent != NO_EXTENT)
            return true;
    }
    return false;
}

static int no_room(struct walrus *handle, uint32_t need)
{
    if (walrus__room_in_flight(handle))
        return walrus__fail(
            handle, -EAGAIN, REASON_ARENA,
            "no %u bytes free in the arena of %u: batches in flight use it: reap, then try again", need,
            handle->arena_bytes);
    return walrus__fail(
        handle, -EAGAIN, REASON_OPEN_BATCH,
        "no %u bytes free in the arena of %u: this handle's own open batches use it: submit or abort one",
        need, handle->arena_bytes);
}

static uint32_t filled(const struct walrus_batch *batch)
{
    uint32_t bytes = batch->used + batch->record_count * (uint32_t)sizeof(struct entry_record);
    return (uint32_t)align_up(bytes > 0 ? bytes : 1, ARENA_GRAIN);
}

/* What `asking` could have of another open batch's unused room. */
static uint32_t best_share(const struct walrus *handle, const struct walrus_batch *asking,
                           struct walrus_batch **owner)
{
    uint32_t best = 0;
    for (struct walrus_batch *b = handle->open; b != NULL; b = b->next) {
        if (b == asking || b->streaming || b->extent == NO_EXTENT)
            continue;
        uint32_t half = (b->limit - filled(b)) / 2 & ~(ARENA_GRAIN - 1);
        if (half > best) {
            best = half;
            *owner = b;
        }
    }
    return best;
}

/* A free extent of at least `need` bytes, as large as can be had; NO_EXTENT if there is none. */
static uint32_t find_room(struct walrus *handle, const struct walrus_batch *batch, uint32_t need,
                          uint32_t *bytes)
{
    uint32_t extent = walrus__arena_largest(&handle->room, bytes);
    if (*bytes >= need && *bytes >= handle->whole_bytes)
        return extent;
    struct walrus_batch *owner = NULL;
    uint32_t share = best_share(handle, batch, &owner);
    if (share > *bytes && share >= need) {
        owner->limit -= share;
        walrus__arena_shrink(&handle->room, owner->extent, owner->limit);
        extent = walrus__arena_largest(&handle->room, bytes);
    }
    return *bytes >= need ? extent : NO_EXTENT;
}

static void place(struct walrus *handle, struct walrus_batch *batch, uint32_t extent)
{
    const struct extent *e = &handle->room.extents[extent];
    batch->extent = extent;
    batch->base = handle->arena + e->offset;
    batch->limit = e->bytes;
}

static void place_in_stream_extent(struct walrus *handle, struct walrus_batch *batch)
{
    handle->stream_taken = true;
    batch->extent = STREAM_EXTENT;
    batch->base = handle->arena + handle->stream_at;
    batch->limit = handle->stream_bytes;
}

int walrus__room_for(struct walrus *handle, struct walrus_batch *batch, uint32_t need)
{
    check_bug(need <= handle->whole_bytes && !batch->streaming);
    if (batch->extent != NO_EXTENT) {
        batch->limit = walrus__arena_grow(&handle->room, batch->extent, handle->whole_bytes);
        if (batch->limit >= need)
            return 0;
        if (batch->pinned)
            return no_room(handle, need);
    }
    uint32_t bytes;
    uint32_t extent = find_room(handle, batch, need, &bytes);
    if (extent == NO_EXTENT)
        return no_room(handle, need);
    uint32_t old = batch->extent;
    const uint8_t *old_base = batch->base;
    place(
        handle, batch,
        walrus__arena_take(&handle->room, extent, bytes < handle->whole_bytes ? bytes : handle->whole_bytes));
    if (old != NO_EXTENT) {
        memcpy(batch->base, old_base, batch->used);
        walrus__arena_give_back(&handle->room, old);
    }
    return 0;
}

int walrus__room_for_chunk(struct walrus *handle, struct walrus_batch *batch, bool last_resort)
{
    check_bug(batch->streaming && batch->extent == NO_EXTENT);
    uint32_t want = handle->chunk_bytes;
    uint32_t bytes;
    uint32_t extent = find_room(handle, batch, want, &bytes);
    if (extent == NO_EXTENT && last_resort && (handle->stream_taken || bytes > handle->stream_bytes))
        extent = find_room(handle, batch, SMALLEST_CHUNK, &bytes);
    if (extent != NO_EXTENT) {
        place(handle, batch, walrus__arena_take(&handle->room, extent, bytes < want ? bytes : want));
        return 0;
    }
    if (!last_resort || handle->stream_taken)
        return no_room(handle, want);
    place_in_stream_extent(handle, batch);
    return 0;
}

int walrus__room_last_resort(struct walrus *handle, struct walrus_batch *batch, uint32_t need)
{
    check_bug(batch->extent == NO_EXTENT);
    if (handle->stream_taken || need > handle->stream_bytes)
        return -EAGAIN;
    place_in_stream_extent(handle, batch);
    return 0;
}

void walrus__room_trim(struct walrus *handle, struct walrus_batch *batch)
{
    if (batch->extent == NO_EXTENT || batch->extent == STREAM_EXTENT)
        return;
    walrus__arena_shrink(&handle->room, batch->extent, filled(batch));
    batch->limit = handle->room.extents[batch->extent].bytes;
}

void walrus__room_give_back(struct walrus *handle, uint32_t extent)
{
    if (extent == NO_EXTENT)
        return;
    if (extent != STREAM_EXTENT) {
        walrus__arena_give_back(&handle->room, extent);
        return;
    }
    check_bug(handle->stream_taken);
    handle->stream_taken = false;
}
