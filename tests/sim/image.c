/* image.c: files, names and versions of a simulated store folder; see image.h. What a crash makes of them
 * is in crash.c. */
#include "image.h"

#include <xxhash.h>

struct block block_truncated = {.refs = 1};
static const uint8_t zeros[SIM_BLOCK];

static void *must_allocate(void *pointer)
{
    check_bug(pointer != NULL);
    return pointer;
}

/* ------------------------------------------------------------------------------------------------ blocks,
 * slots */

struct block *block_new(const void *bytes)
{
    if (memcmp(bytes, zeros, SIM_BLOCK) == 0)
        return NULL;
    struct block *block = must_allocate(malloc(sizeof *block));
    block->refs = 1;
    memcpy(block->bytes, bytes, SIM_BLOCK);
    block->hash = XXH3_64bits(bytes, SIM_BLOCK);
    return block;
}

struct block *block_ref(struct block *block)
{
    if (block != NULL)
        block->refs++;
    return block;
}

void block_drop(struct block *block)
{
    if (block == NULL)
        return;
    check_bug(block->refs > 0);
    if (--block->refs == 0)
        free(block);
}

static void versions_drop(struct versions *versions)
{
    if (versions == NULL || --versions->refs > 0)
        return;
    for (uint32_t i = 0; i < versions->count; i++)
        block_drop(versions->block[i]);
    free(versions);
}

static bool same_bytes(const struct block *a, const struct block *b)
{
    if (a == b)
        return true;
    if (a == NULL || b == NULL || a == &block_truncated || b == &block_truncated)
        return false;
    return a->hash == b->hash && memcmp(a->bytes, b->bytes, SIM_BLOCK) == 0;
}

void slot_offer(struct slot *slot, struct block *block)
{
    struct versions *old = slot->versions;
    uint32_t count = old == NULL ? 1 : old->count;
    if (old == NULL && same_bytes(slot->now, block))
        return;
    for (uint32_t i = 0; old != NULL && i < count; i++) {
        if (same_bytes(old->block[i], block))
            return;
    }
    struct versions *versions =
        must_allocate(malloc(sizeof *versions + (count + 1) * sizeof versions->block[0]));
    versions->refs = 1;
    versions->count = count + 1;
    for (uint32_t i = 0; i < count; i++)
        versions->block[i] = block_ref(old == NULL ? slot->now : old->block[i]);
    versions->block[count] = block_ref(block);
    versions_drop(old);
    slot->versions = versions;
}

void slot_show(struct slot *slot, struct block *block)
{
    slot_offer(slot, block);
    struct block *old = slot->now;
    slot->now = block_ref(block == &block_truncated ? NULL : block);
    block_drop(old);
    slot->flags = (uint8_t)(slot->flags & ~SLOT_POISONED);
}

void slot_settle(struct slot *slot, bool segment)
{
    if (slot->versions == NULL || (slot->flags & SLOT_POISONED))
        return;
    versions_drop(slot->versions);
    slot->versions = NULL;
    if (segment && slot->now != NULL && (slot->flags & SLOT_WHOLE))
        slot->flags |= SLOT_SEALED;
}

/* ------------------------------------------------------------------------------ files */

static void inode_drop(struct inode *inode)
{
    if (inode == NULL || --inode->refs > 0)
        return;
    for (uint32_t i = 0; i < inode->slot_count; i++) {
        block_drop(inode->slots[i].now);
        versions_drop(inode->slots[i].versions);
    }
    free(inode->slots);
    free(inode);
}

static struct inode *inode_copy(const struct inode *from)
{
    struct inode *inode = must_allocate(malloc(sizeof *inode));
    *inode = *from;
    inode->refs = 1;
    inode->slots =
        from->slot_count == 0 ? NULL : must_allocate(malloc(from->slot_count * sizeof *inode->slots));
    for (uint32_t i = 0; i < from->slot_count; i++) {
        inode->slots[i] = from->slots[i];
        block_ref(inode->slots[i].now);
        if (inode->slots[i].versions != NULL)
            inode->slots[i].versions->refs++;
    }
    return inode;
}

struct inode *image_own(struct image *image, uint32_t number)
{
    check_bug(number < image->inode_count && image->inodes[number] != NULL);
    struct inode *inode = image->inodes[number];
    if (inode->refs > 1) {
        image->inodes[number] = inode_copy(inode);
        inode_drop(inode);
        inode = image->inodes[number];
    }
    return inode;
}

struct slot *image_slot(struct image *image, uint32_t number, uint32_t index)
{
    struct inode *inode = image_own(image, number);
    if (index >= inode->slot_count) {
        uint32_t count = index + 1;
        inode->slots = must_allocate(realloc(inode->slots, count * sizeof *inode->slots));
        memset(inode->slots + inode->slot_count, 0, (count - inode->slot_count) * sizeof *inode->slots);
        inode->slot_count = count;
    }
    return &inode->slots[index];
}

/* `cut`: bytes beyond the new size are gone, and read as zeros if the file grows again. */
void inode_resize(struct image *image, uint32_t number, uint64_t size, bool cut)
{
    struct inode *inode = image_own(image, number);
    uint64_t old = inode->sizes[inode->size_count - 1];
    if (cut && size < old) {
        for (uint32_t i = (uint32_t)(size / SIM_BLOCK); i < inode->slot_count; i++) {
            struct slot *slot = &inode->slots[i];
            if (slot->now == NULL && slot->versions == NULL)
                continue;
            uint64_t start = (uint64_t)i * SIM_BLOCK;
            if (start >= size) {
                slot_show(slot, &block_truncated);
            } else {
                uint8_t bytes[SIM_BLOCK] = {0};
                memcpy(bytes, slot->now == NULL ? zeros : slot->now->bytes, size - start);
                struct block *block = block_new(bytes);
                slot_show(slot, block);
                block_drop(block);
            }
            slot->flags = 0;
        }
        inode->space = align_up(size, SIM_BLOCK);
    }
    if (size == old)
        return;
    if (inode->size_count == SIM_SIZES) {
        memmove(&inode->sizes[1], &inode->sizes[2], (SIM_SIZES - 2) * sizeof inode->sizes[0]);
        inode->size_count--;
    }
    inode->sizes[inode->size_count++] = size;
}

uint32_t image_new_inode(struct image *image, bool segment)
{
    if (image->inode_count == image->inode_capacity) {
        image->inode_capacity = image->inode_capacity == 0 ? 16 : image->inode_capacity * 2;
        image->inodes = must_allocate(realloc(image->inodes, image->inode_capacity * sizeof *image->inodes));
    }
    struct inode *inode = must_allocate(calloc(1, sizeof *inode));
    inode->refs = 1;
    inode->segment = segment;
    inode->size_count = 1;
    image->inodes[image->inode_count] = inode;
    return image->inode_count++;
}

/* ------------------------------------------------------------------------------ names */

uint32_t names_find(const struct names *names, const char *name)
{
    for (uint32_t i = 0; i < names->count; i++) {
        if (strcmp(names->list[i].name, name) == 0)
            return i;
    }
    return UINT32_MAX;
}

static void names_remove(struct names *names, const char *name)
{
    uint32_t at = names_find(names, name);
    if (at != UINT32_MAX)
        names->list[at] = names->list[--names->count];
}

static void names_set(struct names *names, const char *name, uint32_t inode)
{
    uint32_t at = names_find(names, name);
    if (at == UINT32_MAX) {
        if (names->count == names->capacity) {
            names->capacity = names->capacity == 0 ? 16 : names->capacity * 2;
            names->list = must_allocate(realloc(names->list, names->capacity * sizeof *names->list));
        }
        at = names->count++;
        snprintf(names->list[at].name, SIM_NAME, "%s", name);
    }
    names->list[at].inode = inode;
}

void names_apply(struct names *names, const struct change *change)
{
    if (change->kind == CHANGE_CREATE)
        names_set(names, change->name, change->inode);
    else
        names_remove(names, change->name);
    if (change->kind == CHANGE_RENAME)
        names_set(names, change->new_name, change->inode);
}

void image_copy_names(struct names *to, const struct names *from)
{
    if (to->capacity < from->count) {
        to->list = must_allocate(realloc(to->list, from->count * sizeof *to->list));
        to->capacity = from->count;
    }
    to->count = from->count;
    if (from->count > 0)
        memcpy(to->list, from->list, from->count * sizeof *to->list);
}

void image_change(struct image *image, const struct change *change)
{
    names_apply(&image->now, change);
    if (image->change_count == image->change_capacity) {
        image->change_capacity = image->change_capacity == 0 ? 16 : image->change_capacity * 2;
        image->changes =
            must_allocate(realloc(image->changes, image->change_capacity * sizeof *image->changes));
    }
    image->changes[image->change_count++] = *change;
}

void image_sync_names(struct image *image)
{
    image->change_count = 0;
    image_copy_names(&image->durable, &image->now);
}

uint32_t image_find(const struct image *image, const char *name)
{
    uint32_t at = names_find(&image->now, name);
    return at == UINT32_MAX ? UINT32_MAX : image->now.list[at].inode;
}

/* ------------------------------------------------------------------------------ images */

struct image *image_new(uint64_t space)
{
    struct image *image = must_allocate(calloc(1, sizeof *image));
    image->space = space;
    image->time = INT64_C(1000000000);
    return image;
}

struct image *image_copy(const struct image *from)
{
    struct image *image = must_allocate(malloc(sizeof *image));
    *image = *from;
    image->inode_capacity = from->inode_count + 4;
    image->inodes = must_allocate(calloc(image->inode_capacity, sizeof *image->inodes));
    for (uint32_t i = 0; i < from->inode_count; i++) {
        image->inodes[i] = from->inodes[i];
        if (image->inodes[i] != NULL)
            image->inodes[i]->refs++;
    }
    image->now = image->durable = (struct names){0};
    image_copy_names(&image->now, &from->now);
    image_copy_names(&image->durable, &from->durable);
    image->change_capacity = from->change_count;
    image->changes = NULL;
    if (from->change_count > 0) {
        image->changes = must_allocate(malloc(from->change_count * sizeof *image->changes));
        memcpy(image->changes, from->changes, from->change_count * sizeof *image->changes);
    }
    image->landing_capacity = from->landing_count;
    image->landings = NULL;
    if (from->landing_count > 0) {
        image->landings = must_allocate(malloc(from->landing_count * sizeof *image->landings));
        memcpy(image->landings, from->landings, from->landing_count * sizeof *image->landings);
        for (uint32_t i = 0; i < image->landing_count; i++)
            block_ref(image->landings[i].block);
    }
    return image;
}

void image_free(struct image *image)
{
    if (image == NULL)
        return;
    for (uint32_t i = 0; i < image->inode_count; i++)
        inode_drop(image->inodes[i]);
    for (uint32_t i = 0; i < image->landing_count; i++)
        block_drop(image->landings[i].block);
    free(image->inodes);
    free(image->now.list);
    free(image->durable.list);
    free(image->changes);
    free(image->landings);
    free(image);
}

void image_add_landing(struct image *image, const struct landing *landing)
{
    if (image->landing_count == image->landing_capacity) {
        image->landing_capacity = image->landing_capacity == 0 ? 16 : image->landing_capacity * 2;
        image->landings =
            must_allocate(realloc(image->landings, image->landing_capacity * sizeof *image->landings));
    }
    image->landings[image->landing_count] = *landing;
    block_ref(landing->block);
    image->landing_count++;
}

void image_drop_inode(struct image *image, uint32_t number)
{
    inode_drop(image->inodes[number]);
    image->inodes[number] = NULL;
}

uint64_t image_used(const struct image *image)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < image->now.count; i++)
        used += image->inodes[image->now.list[i].inode]->space;
    return used;
}

bool image_lands_later(const struct image *image, uint32_t inode)
{
    for (uint32_t i = 0; i < image->landing_count; i++) {
        if (image->landings[i].inode == inode)
            return true;
    }
    return false;
}

void image_land_due(struct image *image, int64_t now)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < image->landing_count; i++) {
        struct landing *landing = &image->landings[i];
        if (landing->due > now) {
            image->landings[kept++] = *landing;
            continue;
        }
        struct inode *inode = image->inodes[landing->inode];
        if (inode != NULL) {
            slot_show(image_slot(image, landing->inode, landing->index), landing->block);
            inode = image->inodes[landing->inode];
            if (inode->sizes[inode->size_count - 1] < landing->size)
                inode_resize(image, landing->inode, landing->size, false);
        }
        block_drop(landing->block);
    }
    image->landing_count = kept;
}

static uint64_t fold(uint64_t hash, uint64_t value)
{
    return seed_mix(hash ^ (value + UINT64_C(0x9e3779b97f4a7c15) + (hash << 6)));
}

static uint64_t block_fold(uint64_t hash, const struct block *block)
{
    return fold(hash, block == NULL ? 1 : block == &block_truncated ? 2 : block->hash);
}

static uint64_t inode_hash(const struct inode *inode)
{
    uint64_t hash = inode->segment;
    for (uint32_t i = 0; i < inode->size_count; i++)
        hash = fold(hash, inode->sizes[i]);
    for (uint32_t i = 0; i < inode->slot_count; i++) {
        const struct slot *slot = &inode->slots[i];
        if (slot->now == NULL && slot->versions == NULL)
            continue;
        hash = fold(hash, i + ((uint64_t)(slot->flags & SLOT_POISONED) << 40));
        hash = block_fold(hash, slot->now);
        for (uint32_t v = 0; slot->versions != NULL && v < slot->versions->count; v++)
            hash = block_fold(hash, slot->versions->block[v]);
    }
    return hash;
}

static uint64_t names_hash(const struct image *image, const struct names *names)
{
    uint64_t hash = 0;
    for (uint32_t i = 0; i < names->count; i++) {
        const struct name *name = &names->list[i];
        hash += fold(XXH3_64bits(name->name, strlen(name->name)), inode_hash(image->inodes[name->inode]));
    }
    return hash;
}

uint64_t image_hash(const struct image *image)
{
    uint64_t hash = names_hash(image, &image->now);
    if (image->change_count > 0)
        hash = fold(hash, names_hash(image, &image->durable));
    for (uint32_t i = 0; i < image->change_count; i++) {
        const struct change *change = &image->changes[i];
        hash = fold(hash, (uint64_t)change->kind + XXH3_64bits(change->name, strlen(change->name)));
        hash = fold(hash, XXH3_64bits(change->new_name, strlen(change->new_name)));
    }
    for (uint32_t i = 0; i < image->landing_count; i++) {
        const struct landing *landing = &image->landings[i];
        hash = fold(hash, (uint64_t)landing->kind + ((uint64_t)landing->inode << 8) +
                              ((uint64_t)landing->index << 32));
        hash = block_fold(fold(hash, (uint64_t)landing->due + landing->length), landing->block);
    }
    return hash;
}

/* ------------------------------------------------------------------------------------------------ for
 * tests */

uint64_t image_size(const struct image *image, const char *name)
{
    uint32_t number = image_find(image, name);
    check_bug(number != UINT32_MAX);
    const struct inode *inode = image->inodes[number];
    return inode->sizes[inode->size_count - 1];
}

static const struct block *block_at(const struct image *image, const char *name, uint32_t index)
{
    uint32_t number = image_find(image, name);
    check_bug(number != UINT32_MAX);
    const struct inode *inode = image->inodes[number];
    return index < inode->slot_count ? inode->slots[index].now : NULL;
}

bool image_block_zero(const struct image *image, const char *name, uint32_t index)
{
    return block_at(image, name, index) == NULL;
}

void image_get_block(const struct image *image, const char *name, uint32_t index, void *bytes)
{
    const struct block *block = block_at(image, name, index);
    memcpy(bytes, block == NULL ? zeros : block->bytes, SIM_BLOCK);
}

void image_set_block(struct image *image, const char *name, uint32_t index, const void *bytes)
{
    uint32_t number = image_find(image, name);
    check_bug(number != UINT32_MAX);
    struct slot *slot = image_slot(image, number, index);
    versions_drop(slot->versions);
    slot->versions = NULL;
    block_drop(slot->now);
    slot->now = block_new(bytes);
    slot->flags = 0;
}

void image_flip(struct image *image, const char *name, uint64_t offset, uint8_t mask)
{
    uint8_t bytes[SIM_BLOCK];
    image_get_block(image, name, (uint32_t)(offset / SIM_BLOCK), bytes);
    bytes[offset % SIM_BLOCK] ^= mask;
    image_set_block(image, name, (uint32_t)(offset / SIM_BLOCK), bytes);
}

void image_clone_file(struct image *image, const char *name, const char *new_name)
{
    uint32_t from = image_find(image, name);
    check_bug(from != UINT32_MAX);
    uint32_t to = image_new_inode(image, false);
    inode_drop(image->inodes[to]);
    image->inodes[to] = inode_copy(image->inodes[from]);
    names_set(&image->now, new_name, to);
    image_sync_names(image);
}

void image_remove_file(struct image *image, const char *name)
{
    names_remove(&image->now, name);
    image_sync_names(image);
}

void image_resize_file(struct image *image, const char *name, uint64_t size)
{
    uint32_t number = image_find(image, name);
    check_bug(number != UINT32_MAX);
    inode_resize(image, number, size, true);
    struct inode *inode = image_own(image, number);
    for (uint32_t i = 0; i < inode->slot_count; i++) {
        inode->slots[i].flags = 0;
        slot_settle(&inode->slots[i], false);
    }
    inode->sizes[0] = size;
    inode->size_count = 1;
}
