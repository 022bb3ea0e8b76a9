/* arena.h: who owns which bytes of the client's payload memory. Private bookkeeping; the shared arena
 * itself is only written with payload. One thread. */
#ifndef WALRUS_CLIENT_ARENA_H
#define WALRUS_CLIENT_ARENA_H

#include "../../shared/base.h"

#define ARENA_GRAIN 64u /* extents start at multiples of it: two batches never share a cache line */
#define NO_EXTENT   UINT32_MAX

struct extent {
    uint32_t offset, bytes;  /* in the arena */
    uint32_t before, after;  /* neighbours in the order of addresses */
    uint32_t previous, next; /* in the list of free extents, or of unused slots */
    bool free;
};

struct arena {
    struct extent *extents;
    uint32_t slots;
    uint32_t unused;     /* slots that describe nothing */
    uint32_t first_free; /* extents nobody owns */
};

/* Manages `bytes` bytes from `offset` on, with at most `owners` extents owned at a time. 0 or -ENOMEM. */
int walrus__arena_init(struct arena *arena, uint32_t offset, uint32_t bytes, uint32_t owners) must_check;
void walrus__arena_release(struct arena *arena);

/* The largest free extent and its size, or NO_EXTENT. */
uint32_t walrus__arena_largest(const struct arena *arena, uint32_t *bytes);
/* Makes the first `bytes` bytes of a free extent owned; the rest stays free. Returns the owned extent. */
uint32_t walrus__arena_take(struct arena *arena, uint32_t free_extent, uint32_t bytes);
/* An owned extent gives its end back and keeps `bytes`. */
void walrus__arena_shrink(struct arena *arena, uint32_t extent, uint32_t bytes);
/* An owned extent takes what is free behind it, up to `bytes` altogether. Returns the bytes it has now. */
uint32_t walrus__arena_grow(struct arena *arena, uint32_t extent, uint32_t bytes);
/* Copies what is owned to the same offsets of another arena. */
void walrus__arena_copy_owned(const struct arena *arena, uint8_t *to, const uint8_t *from);
void walrus__arena_give_back(struct arena *arena, uint32_t extent);

#endif
