/* crash.c: what a crash makes of an image. The only place that decides it.
 *
 * Power cut
 *   1. Writes in flight become versions of their blocks; name changes, lengths and cuts in flight become
 *      changes that are not durable yet.
 *   2. Each block that is not durable becomes any of its versions, or a mix of their sectors, or partly
 *      garbage. Each file with several lengths takes one of them. Each change of a name that is not
 *      durable happened or did not, in any subset.
 *   3. What has no name is gone. Everything left is durable.
 * Kill
 *   Each thing in flight happened, or did not; a write may also land later, which lock() is there to wait
 *   for. Nothing else changes: versions, failed flushes and names that are not durable stay as they were.
 *
 * A bit of 0 means "as before", 1 "as written", for each question in a fixed order. */
#include "image.h"

const char *crash_name(enum crash crash)
{
    return crash == CRASH_POWER ? "power" : "kill";
}

struct choices choices_mask(uint64_t mask)
{
    return (struct choices){.mask = mask};
}

struct choices choices_chance(uint64_t seed)
{
    static const uint32_t keep[] = {0, 30, 300, 500, 700, 970, 1000};
    static const uint32_t tear[] = {0, 0, 20, 200};
    struct choices choices = {.by_chance = true, .seed = seed_fork(seed, 77)};
    choices.keep = keep[seed_below(&choices.seed, array_count(keep))];
    choices.tear = tear[seed_below(&choices.seed, array_count(tear))];
    return choices;
}

static bool as_written(struct choices *choices)
{
    if (choices->by_chance)
        return seed_chance(&choices->seed, choices->keep);
    uint32_t bit = choices->next++;
    return bit < 64 && (choices->mask >> bit & 1);
}

/* ------------------------------------------------------------------------------ power */

static void offer_landings(struct image *image)
{
    for (uint32_t i = 0; i < image->landing_count; i++) {
        struct landing *landing = &image->landings[i];
        struct inode *inode = image->inodes[landing->inode];
        if (landing->kind == IO_CREATE || landing->kind == IO_RENAME || landing->kind == IO_UNLINK) {
            image_change(image, &landing->change);
        } else if (inode != NULL && landing->kind == IO_WRITE) {
            slot_offer(image_slot(image, landing->inode, landing->index), landing->block);
            if (inode->sizes[inode->size_count - 1] < landing->size)
                inode_resize(image, landing->inode, landing->size, false);
        } else if (inode != NULL) {
            inode_resize(image, landing->inode, landing->length, landing->kind == IO_TRUNCATE);
        }
        block_drop(landing->block);
    }
    image->landing_count = 0;
}

static void bytes_of(const struct block *block, uint8_t *bytes)
{
    if (block == NULL || block == &block_truncated)
        memset(bytes, 0, SIM_BLOCK);
    else
        memcpy(bytes, block->bytes, SIM_BLOCK);
}

/* Sectors of any versions, and now and then one of zeros or of noise. */
static struct block *torn_block(const struct versions *versions, struct seed *seed)
{
    uint8_t mixed[SIM_BLOCK], version[SIM_BLOCK];
    bool noise = seed_chance(seed, 300);
    for (uint32_t at = 0; at < SIM_BLOCK; at += SIM_SECTOR) {
        bytes_of(versions->block[seed_below(seed, versions->count)], version);
        memcpy(mixed + at, version + at, SIM_SECTOR);
        if (noise && seed_chance(seed, 150)) {
            for (uint32_t i = 0; i < SIM_SECTOR; i++)
                mixed[at + i] = (uint8_t)seed_next(seed);
        } else if (noise && seed_chance(seed, 100)) {
            memset(mixed + at, 0, SIM_SECTOR);
        }
    }
    return block_new(mixed);
}

static void settle_slot(struct slot *slot, struct choices *choices, bool undone)
{
    struct versions *versions = slot->versions;
    bool newer = as_written(choices);
    struct block *pick = versions->block[newer ? versions->count - 1 : 0];
    if (choices->by_chance && versions->count > 2 && seed_chance(&choices->seed, 300))
        pick = versions->block[seed_below(&choices->seed, versions->count)];
    if (pick == &block_truncated)
        pick = undone ? versions->block[0] : NULL;
    block_ref(pick);
    if (choices->by_chance && seed_chance(&choices->seed, choices->tear)) {
        block_drop(pick);
        pick = torn_block(versions, &choices->seed);
    }
    slot->flags = 0;
    slot_show(slot, pick);
    slot_settle(slot, false);
    block_drop(pick);
}

static void settle_inode(struct image *image, uint32_t number, struct choices *choices)
{
    struct inode *inode = image->inodes[number];
    bool open = inode->size_count > 1;
    for (uint32_t i = 0; i < inode->slot_count && !open; i++)
        open = inode->slots[i].versions != NULL;
    if (!open)
        return;
    inode = image_own(image, number);
    uint64_t now = inode->sizes[inode->size_count - 1], size = now;
    if (inode->size_count > 1) {
        size = inode->sizes[as_written(choices) ? inode->size_count - 1 : 0];
        if (choices->by_chance && inode->size_count > 2 && seed_chance(&choices->seed, 300))
            size = inode->sizes[seed_below(&choices->seed, inode->size_count)];
    }
    for (uint32_t i = 0; i < inode->slot_count; i++) {
        struct slot *slot = &inode->slots[i];
        if (slot->versions != NULL)
            settle_slot(slot, choices, size != now);
        if ((uint64_t)i * SIM_BLOCK >= size && slot->now != NULL) {
            block_drop(slot->now);
            slot->now = NULL;
        }
    }
    inode->sizes[0] = size;
    inode->size_count = 1;
    inode->space = align_up(size, SIM_BLOCK);
}

static void drop_nameless(struct image *image)
{
    for (uint32_t i = 0; i < image->inode_count; i++) {
        bool named = false;
        for (uint32_t n = 0; n < image->now.count && !named; n++)
            named = image->now.list[n].inode == i;
        for (uint32_t n = 0; n < image->durable.count && !named; n++)
            named = image->durable.list[n].inode == i;
        for (uint32_t n = 0; n < image->change_count && !named; n++)
            named = image->changes[n].inode == i;
        if (!named)
            image_drop_inode(image, i);
    }
}

static void cut_power(struct image *image, struct choices *choices)
{
    offer_landings(image);
    image->now.count = 0;
    image_copy_names(&image->now, &image->durable);
    for (uint32_t i = 0; i < image->change_count; i++) {
        if (as_written(choices))
            names_apply(&image->now, &image->changes[i]);
    }
    image_sync_names(image);
    drop_nameless(image);
    for (uint32_t i = 0; i < image->inode_count; i++) {
        if (image->inodes[i] != NULL)
            settle_inode(image, i, choices);
    }
}

/* ------------------------------------------------------------------------------ kill */

static void kill_broker(struct image *image, struct choices *choices)
{
    struct landing *landings = image->landings;
    uint32_t count = image->landing_count;
    image->landings = NULL;
    image->landing_count = image->landing_capacity = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct landing *landing = &landings[i];
        bool lands = landing->due == 0 && as_written(choices);
        if (landing->kind != IO_WRITE) {
            if (lands && landing->kind != IO_ALLOCATE && landing->kind != IO_TRUNCATE)
                image_change(image, &landing->change);
            else if (lands)
                inode_resize(image, landing->inode, landing->length, landing->kind == IO_TRUNCATE);
            continue;
        }
        if (lands && choices->by_chance && seed_chance(&choices->seed, 500))
            landing->due = image->time + 1 + (int64_t)seed_below(&choices->seed, UINT64_C(3000000000));
        if (lands || landing->due > 0)
            image_add_landing(image, landing);
        block_drop(landing->block);
    }
    free(landings);
    image_land_due(image, image->time);
    drop_nameless(image);
}

struct image *image_crash(const struct image *image, enum crash crash, struct choices *choices)
{
    struct image *next = image_copy(image);
    if (crash == CRASH_POWER)
        cut_power(next, choices);
    else
        kill_broker(next, choices);
    return next;
}

uint32_t image_questions(const struct image *image, enum crash crash)
{
    uint32_t count = 0;
    if (crash == CRASH_KILL) {
        for (uint32_t i = 0; i < image->landing_count; i++)
            count += image->landings[i].due == 0;
        return count;
    }
    struct image *merged = image_copy(image);
    offer_landings(merged);
    count = merged->change_count;
    for (uint32_t i = 0; i < merged->inode_count; i++) {
        const struct inode *inode = merged->inodes[i];
        if (inode == NULL)
            continue;
        count += inode->size_count > 1;
        for (uint32_t s = 0; s < inode->slot_count; s++)
            count += inode->slots[s].versions != NULL;
    }
    image_free(merged);
    return count;
}
