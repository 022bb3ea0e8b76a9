/* window.c: whose bytes of the read window are whose, and the order they go back in.
 *
 * The broker fills the window as a ring of bytes with free-running indices; the client gives it back by one
 * index, so in order. What was read may be released in any order: an entries object that is released early
 * waits in the list until all before it are. Bytes nobody keeps (pieces that were copied, topic records,
 * answers that came too late) are charged to the object before them.
 *
 * When the connection is made anew there is a new window, which begins empty. What the user still holds lies
 * in the old one, which is *retired*: kept mapped until the last of it is released.
 *
 * The broker's indices are checked by subtraction: bytes begin at or behind where the last ones ended, the
 * whole lies within one window from what is released, and never wraps round the window's end. */
#include "handle.h"

#include <sys/mman.h>

/* The broker file of a connection that is gone, while entries that were read from it are held. */
struct retired_window {
    struct retired_window *previous, *next;
    void *map;
    size_t bytes;
    uint32_t held;
};

int walrus__window_accept(struct walrus *handle, const struct completion *completion, const uint8_t **bytes)
{
    uint64_t at = completion->window_at;
    uint64_t length = completion->window_bytes;
    uint64_t offset = at & (handle->window_bytes - 1);
    bool good = at - handle->window_next <= handle->window_bytes &&
                at - handle->window_head <= handle->window_bytes &&
                length <= handle->window_bytes - (at - handle->window_head) &&
                length <= handle->window_bytes - offset && at % PAYLOAD_ALIGN == 0 &&
                length % PAYLOAD_ALIGN == 0;
    if (!good) {
        walrus__lose(
            handle, -EPROTO,
            "the broker answered a read with bytes outside the window; the connection has been ended");
        return -EPROTO;
    }
    handle->window_next = at + length;
    *bytes = handle->window + offset;
    return 0;
}

static void publish_head(struct walrus *handle, uint64_t head)
{
    handle->window_head = head;
    __atomic_store_n(&handle->client->window_head, head, __ATOMIC_RELEASE);
}

void walrus__window_hold(struct walrus *handle, struct walrus_entries *entries)
{
    entries->in_window = true;
    entries->window_end = handle->window_next;
    entries->later = NULL;
    if (handle->reads_newest != NULL)
        handle->reads_newest->later = entries;
    else
        handle->reads_oldest = entries;
    handle->reads_newest = entries;
}

void walrus__window_drop(struct walrus *handle)
{
    if (handle->reads_newest != NULL)
        handle->reads_newest->window_end = handle->window_next;
    else
        publish_head(handle, handle->window_next);
}

/* ------------------------------------------------------------------------------- retired windows */

static void retired_free(struct walrus *handle, struct retired_window *retired)
{
    if (retired->previous != NULL)
        retired->previous->next = retired->next;
    else
        handle->retired = retired->next;
    if (retired->next != NULL)
        retired->next->previous = retired->previous;
    munmap(retired->map, retired->bytes);
    free(retired);
}

int walrus__window_retire(struct walrus *handle)
{
    uint32_t held = 0;
    struct walrus_entries *entries, *later;
    struct retired_window *retired = NULL;
    if (handle->broker_map == NULL)
        return 0; /* done already, when an attempt came so far */
    if (handle->reads_oldest != NULL && (retired = calloc(1, sizeof *retired)) == NULL)
        return -ENOMEM;
    for (entries = handle->reads_oldest; entries != NULL; entries = later) {
        later = entries->later;
        entries->later = NULL;
        if (entries->released) {
            walrus__entries_free(entries); /* it waited for those before it only */
            continue;
        }
        entries->retired = retired;
        held++;
    }
    handle->reads_oldest = handle->reads_newest = NULL;
    handle->window_head = handle->window_next = 0;
    if (retired == NULL) {
        munmap(handle->broker_map, handle->broker_map_bytes);
    } else {
        check_bug(held > 0); /* the oldest is never released */
        *retired = (struct retired_window){.next = handle->retired,
                                           .map = handle->broker_map,
                                           .bytes = handle->broker_map_bytes,
                                           .held = held};
        if (retired->next != NULL)
            retired->next->previous = retired;
        handle->retired = retired;
    }
    handle->broker_map = NULL;
    return 0;
}

void walrus__windows_release(struct walrus *handle)
{
    while (handle->retired != NULL)
        retired_free(handle, handle->retired);
}

/* ------------------------------------------------------------------------------------- entries */

struct walrus_entries *walrus__entries_new(struct walrus *handle)
{
    struct walrus_entries *entries = calloc(1, sizeof *entries);
    if (entries == NULL)
        return NULL;
    entries->handle = handle;
    entries->next = handle->reads;
    if (entries->next != NULL)
        entries->next->previous = entries;
    handle->reads = entries;
    return entries;
}

static void free_content(struct walrus_entries *entries)
{
    for (uint32_t i = 0; i < entries->heap_count; i++)
        free(entries->heap[i]);
    free(entries->heap);
    free(entries->entries);
    entries->heap = NULL;
    entries->entries = NULL;
    entries->heap_count = entries->count = entries->capacity = 0;
}

void walrus__entries_free(struct walrus_entries *entries)
{
    struct walrus *handle = entries->handle;
    free_content(entries);
    if (entries->previous != NULL)
        entries->previous->next = entries->next;
    else
        handle->reads = entries->next;
    if (entries->next != NULL)
        entries->next->previous = entries->previous;
    free(entries);
}

void walrus_entries_release(walrus_entries *entries)
{
    if (entries == NULL || walrus__enter(entries->handle) < 0 || entries->released)
        return;
    struct walrus *handle = entries->handle;
    entries->released = true;
    if (!entries->in_window) {
        walrus__entries_free(entries);
        return;
    }
    free_content(entries);
    if (entries->retired != NULL) {
        struct retired_window *retired = entries->retired;
        walrus__entries_free(entries);
        if (--retired->held == 0)
            retired_free(handle, retired);
        return;
    }
    while (handle->reads_oldest != NULL && handle->reads_oldest->released) {
        struct walrus_entries *oldest = handle->reads_oldest;
        handle->reads_oldest = oldest->later;
        if (oldest->later == NULL)
            handle->reads_newest = NULL;
        publish_head(handle, oldest->window_end);
        walrus__entries_free(oldest);
    }
}

size_t walrus_entries_count(const walrus_entries *entries)
{
    return entries != NULL ? entries->count : 0;
}

uint64_t walrus_entries_next(const walrus_entries *entries)
{
    return entries != NULL ? entries->next_sequence : 0;
}

int walrus_entries_get(const walrus_entries *entries, size_t index, struct walrus_entry *entry)
{
    if (entries == NULL || entry == NULL || index >= entries->count)
        return 0;
    *entry = entries->entries[index];
    return 1;
}
