/* arena.c: extents of the arena, owned or free.
 *
 * All extents form one list in the order of addresses, without gaps: an owned one that ends merges with free
 * neighbours at once, so two free extents never touch. Free ones are in a second list, which is short in
 * practice (batches end in about the order they began). Every operation but the search for the largest free
 * extent is O(1).
 *
 * Invariants: extents are multiples of ARENA_GRAIN; their sum is the arena; no extent of 0 bytes. */
#include "arena.h"

#define NOTHING UINT32_MAX

static struct extent *at(const struct arena *arena, uint32_t extent)
{
    check_bug(extent < arena->slots);
    return &arena->extents[extent];
}

static uint32_t slot_take(struct arena *arena)
{
    uint32_t slot = arena->unused;
    check_bug(slot != NOTHING); /* `owners` was too small */
    arena->unused = arena->extents[slot].next;
    return slot;
}

static void slot_release(struct arena *arena, uint32_t slot)
{
    at(arena, slot)->next = arena->unused;
    arena->unused = slot;
}

static void free_list_add(struct arena *arena, uint32_t extent)
{
    struct extent *e = at(arena, extent);
    e->free = true;
    e->previous = NOTHING;
    e->next = arena->first_free;
    if (e->next != NOTHING)
        at(arena, e->next)->previous = extent;
    arena->first_free = extent;
}

static void free_list_remove(struct arena *arena, uint32_t extent)
{
    struct extent *e = at(arena, extent);
    check_bug(e->free);
    if (e->previous != NOTHING)
        at(arena, e->previous)->next = e->next;
    else
        arena->first_free = e->next;
    if (e->next != NOTHING)
        at(arena, e->next)->previous = e->previous;
    e->free = false;
}

/* Removes `gone`, which lies directly behind `extent`, from the order of addresses. */
static void absorb(struct arena *arena, uint32_t extent, uint32_t gone)
{
    struct extent *e = at(arena, extent);
    struct extent *g = at(arena, gone);
    check_bug(e->after == gone && e->offset + e->bytes == g->offset);
    e->bytes += g->bytes;
    e->after = g->after;
    if (e->after != NOTHING)
        at(arena, e->after)->before = extent;
    slot_release(arena, gone);
}

/* Cuts `extent` to `bytes`; what lies behind becomes an extent of its own (neither owned nor in the free
 * list yet). */
static uint32_t cut(struct arena *arena, uint32_t extent, uint32_t bytes)
{
    uint32_t slot = slot_take(arena);
    struct extent *e = at(arena, extent);
    struct extent *rest = at(arena, slot);
    check_bug(bytes > 0 && bytes < e->bytes && bytes % ARENA_GRAIN == 0);
    *rest = (struct extent){.offset = e->offset + bytes,
                            .bytes = e->bytes - bytes,
                            .before = extent,
                            .after = e->after,
                            .previous = NOTHING,
                            .next = NOTHING};
    if (rest->after != NOTHING)
        at(arena, rest->after)->before = slot;
    e->bytes = bytes;
    e->after = slot;
    return slot;
}

int walrus__arena_init(struct arena *arena, uint32_t offset, uint32_t bytes, uint32_t owners)
{
    check_bug(offset % ARENA_GRAIN == 0 && bytes % ARENA_GRAIN == 0 && bytes > 0);
    uint32_t slots = 2 * owners + 2; /* a free one beside each owned one, and one while merging */
    arena->extents = calloc(slots, sizeof *arena->extents);
    if (arena->extents == NULL)
        return -ENOMEM;
    arena->slots = slots;
    for (uint32_t i = 0; i < slots; i++)
        arena->extents[i].next = i + 1 < slots ? i + 1 : NOTHING;
    arena->unused = 0;
    arena->first_free = NOTHING;
    uint32_t all = slot_take(arena);
    *at(arena, all) = (struct extent){.offset = offset, .bytes = bytes, .before = NOTHING, .after = NOTHING};
    free_list_add(arena, all);
    return 0;
}

void walrus__arena_release(struct arena *arena)
{
    free(arena->extents);
    arena->extents = NULL;
}

uint32_t walrus__arena_largest(const struct arena *arena, uint32_t *bytes)
{
    uint32_t best = NO_EXTENT;
    *bytes = 0;
    for (uint32_t i = arena->first_free; i != NOTHING; i = arena->extents[i].next) {
        if (arena->extents[i].bytes > *bytes) {
            *bytes = arena->extents[i].bytes;
            best = i;
        }
    }
    return best;
}

uint32_t walrus__arena_take(struct arena *arena, uint32_t extent, uint32_t bytes)
{
    free_list_remove(arena, extent);
    uint32_t keep = (uint32_t)align_up(bytes, ARENA_GRAIN);
    check_bug(keep > 0 && keep <= at(arena, extent)->bytes);
    if (keep < at(arena, extent)->bytes)
        free_list_add(arena, cut(arena, extent, keep));
    return extent;
}

void walrus__arena_shrink(struct arena *arena, uint32_t extent, uint32_t bytes)
{
    struct extent *e = at(arena, extent);
    uint32_t keep = (uint32_t)align_up(bytes > 0 ? bytes : 1, ARENA_GRAIN);
    check_bug(!e->free && keep <= e->bytes);
    if (keep == e->bytes)
        return;
    uint32_t rest = cut(arena, extent, keep);
    uint32_t behind = at(arena, rest)->after;
    if (behind != NOTHING && at(arena, behind)->free) {
        free_list_remove(arena, behind);
        absorb(arena, rest, behind);
    }
    free_list_add(arena, rest);
}

uint32_t walrus__arena_grow(struct arena *arena, uint32_t extent, uint32_t bytes)
{
    struct extent *e = at(arena, extent);
    check_bug(!e->free);
    uint32_t behind = e->after;
    if (bytes <= e->bytes || behind == NOTHING || !at(arena, behind)->free)
        return e->bytes;
    uint32_t more = (uint32_t)align_up(bytes - e->bytes, ARENA_GRAIN);
    free_list_remove(arena, behind);
    if (more < at(arena, behind)->bytes)
        free_list_add(arena, cut(arena, behind, more));
    absorb(arena, extent, behind);
    return e->bytes;
}

void walrus__arena_give_back(struct arena *arena, uint32_t extent)
{
    check_bug(!at(arena, extent)->free);
    uint32_t behind = at(arena, extent)->after;
    if (behind != NOTHING && at(arena, behind)->free) {
        free_list_remove(arena, behind);
        absorb(arena, extent, behind);
    }
    uint32_t before = at(arena, extent)->before;
    if (before != NOTHING && at(arena, before)->free) {
        free_list_remove(arena, before);
        absorb(arena, before, extent);
        extent = before;
    }
    free_list_add(arena, extent);
}

void walrus__arena_copy_owned(const struct arena *arena, uint8_t *to, const uint8_t *from)
{
    /* The first in the order of addresses has the first slot for ever: it is never absorbed, nor cut off. */
    for (uint32_t i = 0; i != NOTHING; i = arena->extents[i].after) {
        const struct extent *e = &arena->extents[i];
        if (!e->free)
            memcpy(to + e->offset, from + e->offset, e->bytes);
    }
}
