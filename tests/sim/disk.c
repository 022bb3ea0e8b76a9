/* disk.c: the simulated disk behind the seam; see disk.h.
 *
 * An op in flight is kept with the time at which it completes. What it does, it does at that moment, all
 * at once: reads see what had completed before, and a flush covers what had been reaped before. At a crash
 * the ops in flight become landings of the image (see crash.c).
 *
 * Invariants: time never goes back; an op's buffer is not looked at after its `done`; the bytes of a WRITE
 * must be the same at completion as at submission (checked); nothing here depends on addresses, the clock
 * or the machine. */
#include "disk.h"

#include <xxhash.h>

#define MAX_FAULTS 8u

struct io_file {
    struct io_file *next;
    uint32_t inode;
    uint32_t flags;
    char name[SIM_NAME];
};

struct flight {
    struct io_op *op;
    int64_t due;
    uint64_t number;
    uint64_t check; /* hash of a WRITE's bytes */
};

struct disk {
    struct io io;
    struct image *image;
    struct seed timing, chance, noise;
    int64_t now;
    struct flight *flights;
    uint32_t flight_count, flight_capacity;
    uint64_t submitted, events, crash_at, trace_hash;
    bool gone;
    struct io_file *files;
    struct fault faults[MAX_FAULTS];
    uint32_t fault_count;
    uint32_t per_million[IO_KIND_COUNT];
    uint64_t faults_hit, overwrites;
    bool hasty_lock;
    int64_t holder_pid;
    struct disk_watch watch;
    FILE *trace;
    char violation[256];
};

static const char *const kind_names[IO_KIND_COUNT] = {"write",  "read",   "flush",      "create",
                                                      "open",   "close",  "allocate",   "truncate",
                                                      "rename", "unlink", "sync-folder"};

static const uint8_t zeros[SIM_BLOCK];

static struct disk *disk_of(struct io *io)
{
    return (struct disk *)(void *)((char *)io - offsetof(struct disk, io));
}

static void printf_like(2, 3) violate(struct disk *disk, const char *format, ...)
{
    if (disk->violation[0] != 0)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(disk->violation, sizeof disk->violation, format, args);
    va_end(args);
}

static struct inode *inode_of(struct disk *disk, const struct io_file *file)
{
    return disk->image->inodes[file->inode];
}

static uint64_t size_of(struct disk *disk, uint32_t number)
{
    const struct inode *inode = disk->image->inodes[number];
    return inode->sizes[inode->size_count - 1];
}

/* ------------------------------------------------------------------------------------------------
 * submission */

/* What anyone may hold against an op before it is even tried: mistakes of the code under test. */
static void check_op(struct disk *disk, const struct io_op *op)
{
    if (op->kind == IO_WRITE || op->kind == IO_READ) {
        check_bug(op->file != NULL && op->buffer != NULL);
        uint32_t align = (op->file->flags & IO_FILE_BUFFERED) ? 1 : disk->io.logical_block;
        if (op->offset % align != 0 || op->length % align != 0 || (uintptr_t)op->buffer % align != 0)
            violate(disk, "seam: %s of %s at %llu, %llu bytes, is not aligned", kind_names[op->kind],
                    op->file->name, (unsigned long long)op->offset, (unsigned long long)op->length);
        if (op->length == 0)
            violate(disk, "seam: %s of %s of no bytes", kind_names[op->kind], op->file->name);
    }
    if (op->kind != IO_WRITE)
        return;
    if (op->file->flags & IO_FILE_READ_ONLY)
        violate(disk, "seam: write to %s, which was opened for reading only", op->file->name);
    struct inode *inode = inode_of(disk, op->file);
    const struct slot *head = inode->slot_count > 0 ? &inode->slots[0] : NULL;
    if (!inode->segment)
        return;
    if (disk->watch.frees_file != NULL && head != NULL && head->now != NULL && head->versions == NULL &&
        disk->watch.frees_file(head->now->bytes)) {
        inode = image_own(disk->image, op->file->inode);
        for (uint32_t i = 0; i < inode->slot_count; i++)
            inode->slots[i].flags = (uint8_t)(inode->slots[i].flags & ~SLOT_SEALED);
    }
    for (uint64_t at = op->offset / SIM_BLOCK;
         at * SIM_BLOCK < op->offset + op->length && at < inode->slot_count; at++) {
        disk->overwrites += at > 0 && inode->slots[at].now != NULL;
        if (inode->slots[at].flags & SLOT_SEALED)
            violate(disk, "G17: write to %s at %llu touches a block that holds committed bytes",
                    op->file->name, (unsigned long long)(at * SIM_BLOCK));
    }
}

static void disk_submit(struct io *io, struct io_op *op)
{
    static const uint32_t usual_us[IO_KIND_COUNT] = {100, 60, 120, 30, 20, 5, 200, 60, 30, 30, 300};
    struct disk *disk = disk_of(io);
    check_bug(op->kind < IO_KIND_COUNT);
    if (disk->flight_count == disk->flight_capacity) {
        disk->flight_capacity = disk->flight_capacity == 0 ? 32 : disk->flight_capacity * 2;
        disk->flights = realloc(disk->flights, disk->flight_capacity * sizeof *disk->flights);
        check_bug(disk->flights != NULL);
    }
    int64_t usual = (int64_t)usual_us[op->kind] * 1000;
    int64_t takes = usual / 2 + (int64_t)seed_below(&disk->timing, (uint64_t)usual * 2);
    struct flight flight = {.op = op, .due = disk->now + takes, .number = ++disk->submitted};
    if (!disk->gone)
        check_op(disk, op);
    if (op->kind == IO_WRITE && !disk->gone) {
        flight.check = XXH3_64bits(op->buffer, op->length);
        if (disk->watch.written != NULL)
            disk->watch.written(disk->watch.context, op->file->name, op->buffer, op->length);
    }
    disk->flights[disk->flight_count++] = flight;
}

static void disk_kick(struct io *io)
{
    (void)io;
}

/* ------------------------------------------------------------------------------ writes */

/* The block at `index` with the op's bytes in it, up to `end` in the file; the rest as it is now. */
static struct block *block_with(struct disk *disk, const struct io_op *op, uint32_t index, uint64_t end)
{
    uint8_t bytes[SIM_BLOCK];
    uint64_t start = (uint64_t)index * SIM_BLOCK;
    uint64_t from = max_u64(start, op->offset), to = min_u64(start + SIM_BLOCK, end);
    if (from == start && to == start + SIM_BLOCK)
        return block_new((const uint8_t *)op->buffer + (from - op->offset));
    const struct inode *inode = inode_of(disk, op->file);
    const struct block *now = index < inode->slot_count ? inode->slots[index].now : NULL;
    memset(bytes, 0, sizeof bytes);
    if (now != NULL)
        memcpy(bytes, now->bytes, SIM_BLOCK);
    if (to > from)
        memcpy(bytes + (from - start), (const uint8_t *)op->buffer + (from - op->offset), to - from);
    return block_new(bytes);
}

/* Puts the first `good` bytes; of the rest the medium may get anything, and reads see what `leaves` says. */
static void put_bytes(struct disk *disk, const struct io_op *op, uint64_t good, enum leaves leaves)
{
    uint32_t number = op->file->inode;
    uint64_t end = op->offset + op->length;
    for (uint64_t start = op->offset - op->offset % SIM_BLOCK; start < end; start += SIM_BLOCK) {
        uint32_t index = (uint32_t)(start / SIM_BLOCK);
        struct block *all = block_with(disk, op, index, end);
        struct slot *slot = image_slot(disk->image, number, index);
        bool whole = min_u64(start + SIM_BLOCK, end) <= op->offset + good;
        struct block *shown = NULL;
        if (whole || leaves == LEAVES_NEW) {
            shown = block_ref(all);
        } else if (start < op->offset + good || (leaves == LEAVES_MIX && seed_chance(&disk->noise, 500))) {
            uint64_t to = start < op->offset + good
                              ? op->offset + good
                              : start + SIM_SECTOR * seed_below(&disk->noise, SIM_BLOCK / SIM_SECTOR + 1);
            shown = block_with(disk, op, index, min_u64(to, end));
        } else {
            shown = block_ref(slot->now);
        }
        uint8_t poisoned =
            whole ? 0 : slot->flags & SLOT_POISONED; /* only new bytes heal what a flush has lost */
        slot_offer(slot, all);
        slot_show(slot, shown);
        slot->flags = (uint8_t)((slot->flags & ~SLOT_WHOLE) | poisoned |
                                (whole && good == op->length ? SLOT_WHOLE : 0));
        if (op->durable && good == op->length)
            slot_settle(slot, inode_of(disk, op->file)->segment);
        else if (op->durable && slot->versions != NULL)
            slot->flags |= SLOT_POISONED;
        block_drop(shown);
        block_drop(all);
    }
    uint64_t size = op->offset + (leaves == LEAVES_OLD ? good : op->length);
    if ((good > 0 || leaves != LEAVES_OLD) && size > size_of(disk, number))
        inode_resize(disk->image, number, size, false);
    struct inode *inode = image_own(disk->image, number);
    inode->space = max_u64(inode->space, align_up(size, SIM_BLOCK));
}

static uint64_t space_left(const struct disk *disk)
{
    uint64_t used = image_used(disk->image);
    return used < disk->image->space ? disk->image->space - used : 0;
}

static int64_t do_write(struct disk *disk, struct io_op *op, const struct fault *fault)
{
    if (XXH3_64bits(op->buffer, op->length) != disk->flights[disk->flight_count].check)
        violate(disk, "seam: the buffer of a write to %s was changed while it was in flight", op->file->name);
    if (fault != NULL && (fault->error != 0 || (uint64_t)fault->short_count < op->length)) {
        uint64_t good = fault->error != 0 ? 0 : (uint64_t)fault->short_count;
        put_bytes(disk, op, good, fault->leaves);
        return fault->error != 0 ? fault->error : (int64_t)good;
    }
    const struct inode *inode = inode_of(disk, op->file);
    uint64_t end = align_up(op->offset + op->length, SIM_BLOCK);
    if (end > inode->space && end - inode->space > space_left(disk))
        return -ENOSPC;
    put_bytes(disk, op, op->length, LEAVES_NEW);
    return (int64_t)op->length;
}

static int64_t do_read(struct disk *disk, struct io_op *op, const struct fault *fault)
{
    if (fault != NULL && fault->error != 0)
        return fault->error;
    uint64_t size = size_of(disk, op->file->inode);
    uint64_t length = op->offset >= size ? 0 : min_u64(op->length, size - op->offset);
    if (fault != NULL)
        length = min_u64(length, (uint64_t)fault->short_count);
    const struct inode *inode = inode_of(disk, op->file);
    for (uint64_t at = 0; at < length;) {
        uint64_t index = (op->offset + at) / SIM_BLOCK, inside = (op->offset + at) % SIM_BLOCK;
        uint64_t take = min_u64(SIM_BLOCK - inside, length - at);
        const struct block *block = index < inode->slot_count ? inode->slots[index].now : NULL;
        uint8_t *to = (uint8_t *)op->buffer + at;
        /* A start reads megabytes of zeros into one buffer, again and again: looking is cheaper. */
        if (block != NULL)
            memcpy(to, block->bytes + inside, take);
        else if (memcmp(to, zeros, take) != 0)
            memset(to, 0, take);
        at += take;
    }
    return (int64_t)length;
}

/* ------------------------------------------------------------------------------ the other ops */

static int64_t do_flush(struct disk *disk, struct io_op *op, const struct fault *fault)
{
    if (fault != NULL && fault->lies)
        return 0;
    struct inode *inode = image_own(disk->image, op->file->inode);
    for (uint32_t i = 0; i < inode->slot_count; i++) {
        struct slot *slot = &inode->slots[i];
        if (slot->versions == NULL)
            continue;
        if (fault != NULL)
            slot->flags |= SLOT_POISONED;
        else
            slot_settle(slot, inode->segment);
    }
    if (fault != NULL)
        return fault->error;
    inode->sizes[0] = inode->sizes[inode->size_count - 1];
    inode->size_count = 1;
    return 0;
}

static struct io_file *file_new(struct disk *disk, uint32_t inode, const struct io_op *op)
{
    struct io_file *file = calloc(1, sizeof *file);
    check_bug(file != NULL);
    file->inode = inode;
    file->flags = op->flags;
    snprintf(file->name, sizeof file->name, "%s", op->name);
    file->next = disk->files;
    disk->files = file;
    return file;
}

static void file_close(struct disk *disk, struct io_file *file)
{
    struct io_file **link = &disk->files;
    while (*link != NULL && *link != file)
        link = &(*link)->next;
    check_bug(*link == file); /* closed twice, or not ours */
    *link = file->next;
    free(file);
}

static bool change_of(struct disk *disk, const struct io_op *op, struct change *change)
{
    memset(change, 0, sizeof *change);
    check_bug(op->name != NULL && strlen(op->name) < SIM_NAME);
    change->inode = image_find(disk->image, op->name);
    memcpy(change->name, op->name, strlen(op->name));
    if (op->kind == IO_RENAME) {
        check_bug(op->new_name != NULL && strlen(op->new_name) < SIM_NAME);
        memcpy(change->new_name, op->new_name, strlen(op->new_name));
    }
    change->kind = op->kind == IO_CREATE   ? CHANGE_CREATE
                   : op->kind == IO_RENAME ? CHANGE_RENAME
                                           : CHANGE_UNLINK;
    return change->inode != UINT32_MAX;
}

static int64_t do_create(struct disk *disk, struct io_op *op)
{
    struct change change;
    if (change_of(disk, op, &change))
        return -EEXIST;
    change.inode = image_new_inode(disk->image, !(op->flags & IO_FILE_BUFFERED));
    image_change(disk->image, &change);
    op->file = file_new(disk, change.inode, op);
    return 0;
}

static int64_t do_name(struct disk *disk, struct io_op *op)
{
    struct change change;
    if (!change_of(disk, op, &change))
        return -ENOENT;
    image_change(disk->image, &change);
    return 0;
}

static int64_t do_allocate(struct disk *disk, const struct io_op *op)
{
    struct inode *inode = image_own(disk->image, op->file->inode);
    if (op->length > inode->space && align_up(op->length, SIM_BLOCK) - inode->space > space_left(disk))
        return -ENOSPC;
    inode->space = max_u64(inode->space, align_up(op->length, SIM_BLOCK));
    if (op->length > size_of(disk, op->file->inode))
        inode_resize(disk->image, op->file->inode, op->length, false);
    return 0;
}

static int64_t do_op(struct disk *disk, struct io_op *op, const struct fault *fault)
{
    bool fails = fault != NULL && !fault->lies && fault->error != 0;
    switch (op->kind) {
    case IO_WRITE:
        return do_write(disk, op, fault);
    case IO_READ:
        return do_read(disk, op, fault);
    case IO_FLUSH:
        return do_flush(disk, op, fault != NULL && (fails || fault->lies) ? fault : NULL);
    case IO_CREATE:
        return fails ? fault->error : do_create(disk, op);
    case IO_OPEN: {
        uint32_t inode = image_find(disk->image, op->name);
        if (fails || inode == UINT32_MAX)
            return fails ? fault->error : -ENOENT;
        op->file = file_new(disk, inode, op);
        return 0;
    }
    case IO_CLOSE:
        file_close(disk, op->file);
        return fails ? fault->error : 0;
    case IO_ALLOCATE:
        return fails ? fault->error : do_allocate(disk, op);
    case IO_TRUNCATE:
        if (!fails)
            inode_resize(disk->image, op->file->inode, op->length, true);
        return fails ? fault->error : 0;
    case IO_RENAME:
    case IO_UNLINK:
        return fails ? fault->error : do_name(disk, op);
    case IO_SYNC_DIRECTORY:
        if (fault == NULL)
            image_sync_names(disk->image);
        return fails ? fault->error : 0;
    case IO_KIND_COUNT:
        break;
    }
    check_bug(op->kind < IO_KIND_COUNT);
    return -EINVAL;
}

/* ------------------------------------------------------------------------------ faults */

static uint32_t class_of(struct disk *disk, const struct io_op *op)
{
    if (op->file != NULL && op->kind != IO_CREATE && op->kind != IO_OPEN)
        return inode_of(disk, op->file)->segment ? CLASS_SEGMENT : CLASS_SMALL;
    if (op->kind == IO_CREATE)
        return (op->flags & IO_FILE_BUFFERED) ? CLASS_SMALL : CLASS_SEGMENT;
    uint32_t inode = op->name == NULL ? UINT32_MAX : image_find(disk->image, op->name);
    if (inode == UINT32_MAX)
        return CLASS_FOLDER;
    return disk->image->inodes[inode]->segment ? CLASS_SEGMENT : CLASS_SMALL;
}

static bool planned_fault(struct disk *disk, const struct io_op *op, struct fault *out)
{
    bool found = false;
    for (uint32_t i = 0; i < disk->fault_count; i++) {
        struct fault *fault = &disk->faults[i];
        if (fault->kinds != 0 && !(fault->kinds & 1u << op->kind))
            continue;
        if (fault->classes != 0 && !(fault->classes & class_of(disk, op)))
            continue;
        uint64_t nth = fault->matched++;
        if (nth < fault->skip || nth - fault->skip >= fault->count || found)
            continue;
        if (fault->error == 0 && !fault->lies && op->kind != IO_READ && op->kind != IO_WRITE)
            continue; /* nothing else can be short */
        fault->hit++;
        *out = *fault;
        found = true;
    }
    return found;
}

static bool chance_fault(struct disk *disk, const struct io_op *op, struct fault *out)
{
    static const int errors[] = {-EIO, -EIO, -EIO, -ENOSPC, -EDQUOT, -EAGAIN};
    if (disk->per_million[op->kind] == 0 || seed_below(&disk->chance, 1000000) >= disk->per_million[op->kind])
        return false;
    *out = (struct fault){.error = errors[seed_below(&disk->chance, array_count(errors))]};
    out->leaves = (enum leaves)seed_below(&disk->chance, 3);
    if ((op->kind == IO_WRITE || op->kind == IO_READ) && seed_chance(&disk->chance, 400)) {
        out->error = 0;
        const int64_t counts[] = {0,
                                  1,
                                  511,
                                  512,
                                  4095,
                                  4096,
                                  (int64_t)op->length - 1,
                                  (int64_t)seed_below(&disk->chance, op->length)};
        out->short_count = counts[seed_below(&disk->chance, array_count(counts))];
        out->leaves = seed_chance(&disk->chance, 500) ? LEAVES_OLD : LEAVES_MIX;
    }
    return true;
}

/* ------------------------------------------------------------------------------ events */

static void note(struct disk *disk, const struct io_op *op, const char *file, int64_t result, uint64_t check)
{
    const uint64_t words[] = {disk->trace_hash,
                              (uint64_t)disk->now,
                              (uint64_t)op->kind,
                              op->offset,
                              op->length,
                              (uint64_t)result,
                              check,
                              XXH3_64bits(file, strlen(file))};
    disk->trace_hash = XXH3_64bits(words, sizeof words);
    if (disk->trace != NULL)
        fprintf(disk->trace, "%6llu %10.3f ms %-11s %-28s %10llu +%-8llu -> %lld%s%s\n",
                (unsigned long long)disk->events, (double)disk->now / 1e6, kind_names[op->kind], file,
                (unsigned long long)op->offset, (unsigned long long)op->length, (long long)result,
                op->new_name != NULL && op->kind == IO_RENAME ? " to " : "",
                op->new_name != NULL && op->kind == IO_RENAME ? op->new_name : "");
}

static void add_landings(struct disk *disk, const struct io_op *op)
{
    struct landing landing = {.kind = op->kind};
    if (op->kind == IO_WRITE) {
        uint64_t end = op->offset + op->length;
        for (uint64_t start = op->offset - op->offset % SIM_BLOCK; start < end; start += SIM_BLOCK) {
            landing.inode = op->file->inode;
            landing.index = (uint32_t)(start / SIM_BLOCK);
            landing.size = min_u64(end, start + SIM_BLOCK);
            landing.block = block_with(disk, op, landing.index, end);
            image_add_landing(disk->image, &landing);
            block_drop(landing.block);
        }
        return;
    }
    if (op->kind == IO_ALLOCATE || op->kind == IO_TRUNCATE) {
        landing.inode = op->file->inode;
        landing.length = op->length;
        bool grows = op->length > size_of(disk, landing.inode);
        if (grows == (op->kind == IO_ALLOCATE))
            image_add_landing(disk->image, &landing);
        return;
    }
    if (op->kind == IO_CREATE) {
        if (change_of(disk, op, &landing.change))
            return;
        landing.change.inode = image_new_inode(disk->image, !(op->flags & IO_FILE_BUFFERED));
    } else if ((op->kind != IO_RENAME && op->kind != IO_UNLINK) || !change_of(disk, op, &landing.change)) {
        return;
    }
    landing.inode = landing.change.inode;
    image_add_landing(disk->image, &landing);
}

void disk_crash_now(struct disk *disk)
{
    if (disk->gone)
        return;
    disk->gone = true;
    if (disk->trace != NULL)
        fprintf(disk->trace, "%6llu %10.3f ms CRASH with %u in flight\n", (unsigned long long)disk->events,
                (double)disk->now / 1e6, disk->flight_count);
    for (uint32_t i = 0; i < disk->flight_count; i++)
        add_landings(disk, disk->flights[i].op);
    disk->image->time = disk->now;
}

struct image *disk_snapshot(struct disk *disk)
{
    struct image *kept = disk->image;
    disk->image = image_copy(kept);
    for (uint32_t i = 0; i < disk->flight_count; i++)
        add_landings(disk, disk->flights[i].op);
    struct image *snapshot = disk->image;
    snapshot->time = disk->now;
    disk->image = kept;
    return snapshot;
}

static uint32_t first_due(const struct disk *disk)
{
    uint32_t first = 0;
    for (uint32_t i = 1; i < disk->flight_count; i++) {
        const struct flight *a = &disk->flights[i], *b = &disk->flights[first];
        if (a->due < b->due || (a->due == b->due && a->number < b->number))
            first = i;
    }
    return first;
}

/* What another disk has answered, as a fault of this one. */
static bool told_fault(const struct io_op *op, int64_t told, struct fault *out)
{
    *out = (struct fault){.leaves = LEAVES_MIX};
    if (told < 0)
        out->error = (int)told;
    else
        out->short_count = told;
    return told < 0 || (op->kind == IO_WRITE && (uint64_t)told < op->length);
}

/* The op at this place completes: with the answer that it is told, or by plan and chance. */
static void end_flight(struct disk *disk, uint32_t at, const int64_t *told)
{
    struct flight flight = disk->flights[at];
    disk->flights[at] = disk->flights[--disk->flight_count];
    disk->flights[disk->flight_count] = flight; /* do_write looks here */
    struct io_op *op = flight.op;
    char file[SIM_NAME] = "";
    if (op->file != NULL && op->kind != IO_CREATE && op->kind != IO_OPEN && op->kind <= IO_TRUNCATE)
        snprintf(file, sizeof file, "%s", op->file->name);
    else if (op->name != NULL && op->kind != IO_SYNC_DIRECTORY)
        snprintf(file, sizeof file, "%s", op->name);
    if (disk->gone) {
        if (op->kind == IO_CLOSE)
            file_close(disk, op->file);
        io_complete(&disk->io, op, -ESHUTDOWN);
        return;
    }
    struct fault fault;
    bool hit = (told != NULL && told_fault(op, *told, &fault)) || planned_fault(disk, op, &fault) ||
               chance_fault(disk, op, &fault);
    disk->faults_hit += hit && !fault.lies && told == NULL;
    int64_t result = do_op(disk, op, hit ? &fault : NULL);
    note(disk, op, file, result, flight.check);
    io_complete(&disk->io, op, result);
}

static void complete_first(struct disk *disk)
{
    uint32_t at = first_due(disk);
    if (!disk->gone) {
        if (disk->flights[at].due > disk->now)
            disk->now = disk->flights[at].due;
        image_land_due(disk->image, disk->now);
        disk->events++;
        if (disk->events == disk->crash_at)
            disk_crash_now(disk);
    }
    end_flight(disk, at, NULL);
}

void disk_finish(struct disk *disk, struct io_op *op, int64_t told, int64_t now)
{
    uint32_t at = 0;
    while (at < disk->flight_count && disk->flights[at].op != op)
        at++;
    check_bug(at < disk->flight_count);
    if (!disk->gone) {
        disk->now = now > disk->now ? now : disk->now;
        disk->events++;
        if (disk->events == disk->crash_at)
            disk_crash_now(disk);
    }
    end_flight(disk, at, &told);
}

static int disk_wait(struct io *io, int64_t timeout_ns)
{
    struct disk *disk = disk_of(io);
    if (disk->flight_count == 0) {
        check_bug(timeout_ns >= 0); /* nobody would ever wake it */
        disk_pass_time(disk, timeout_ns);
        return 0;
    }
    int64_t due = disk->flights[first_due(disk)].due;
    if (!disk->gone && timeout_ns >= 0 && due > disk->now && due - disk->now > timeout_ns) {
        disk->now += timeout_ns;
        return 0;
    }
    complete_first(disk);
    return 1;
}

void disk_pass_time(struct disk *disk, int64_t ns)
{
    check_bug(ns >= 0);
    int64_t end = ns > INT64_MAX / 4 ? disk->now + INT64_MAX / 4 : disk->now + ns;
    while (disk->flight_count > 0 && disk->flights[first_due(disk)].due <= end)
        complete_first(disk);
    disk->now = end > disk->now ? end : disk->now;
    if (!disk->gone)
        image_land_due(disk->image, disk->now);
}

/* ------------------------------------------------------------------------------ the rest of the seam */

static int64_t disk_now(struct io *io)
{
    return disk_of(io)->now;
}

static int64_t disk_wall(struct io *io)
{
    return INT64_C(1700000000000000000) + disk_of(io)->now;
}

static int disk_random(struct io *io, void *buffer, size_t length)
{
    struct disk *disk = disk_of(io);
    for (size_t i = 0; i < length; i++)
        ((uint8_t *)buffer)[i] = (uint8_t)seed_next(&disk->noise);
    return 0;
}

static uint64_t disk_file_size(struct io *io, struct io_file *file)
{
    return size_of(disk_of(io), file->inode);
}

static uint32_t disk_file_align(struct io *io, struct io_file *file)
{
    return (file->flags & IO_FILE_BUFFERED) ? 1 : io->logical_block;
}

static int disk_list(struct io *io, struct io_entry **entries, size_t *count)
{
    struct disk *disk = disk_of(io);
    if (disk->gone)
        return -ESHUTDOWN;
    const struct names *names = &disk->image->now;
    *entries = calloc(names->count + 1, sizeof **entries);
    check_bug(*entries != NULL);
    for (uint32_t i = 0; i < names->count; i++) {
        memcpy((*entries)[i].name, names->list[i].name, SIM_NAME);
        (*entries)[i].size = size_of(disk, names->list[i].inode);
        (*entries)[i].regular = true;
    }
    *count = names->count;
    return 0;
}

static int disk_lock(struct io *io, struct io_file *file)
{
    const struct disk *disk = disk_of(io);
    return disk->gone ? -ESHUTDOWN
                      : (!disk->hasty_lock && image_lands_later(disk->image, file->inode) ? -EWOULDBLOCK : 0);
}

static int disk_claim(struct io *io, const char *name, int64_t *holder_pid)
{
    (void)name;
    *holder_pid = disk_of(io)->holder_pid;
    return disk_of(io)->gone ? -ESHUTDOWN : *holder_pid == 0 ? 0 : -EWOULDBLOCK;
}

static void disk_sleep(struct io *io, int64_t ns)
{
    disk_pass_time(disk_of(io), ns);
}

static uint64_t disk_space_free(struct io *io)
{
    return space_left(disk_of(io));
}

static void disk_destroy(struct io *io)
{
    image_free(disk_end(disk_of(io)));
}

static const struct io_functions functions = {
    .submit = disk_submit,
    .kick = disk_kick,
    .wait = disk_wait,
    .now = disk_now,
    .wall = disk_wall,
    .random = disk_random,
    .file_size = disk_file_size,
    .file_align = disk_file_align,
    .list = disk_list,
    .lock = disk_lock,
    .claim = disk_claim,
    .sleep = disk_sleep,
    .space_free = disk_space_free,
    .destroy = disk_destroy,
};

/* ------------------------------------------------------------------------------ a life */

struct disk *disk_start(struct image *image, uint64_t seed)
{
    struct disk *disk = calloc(1, sizeof *disk);
    check_bug(disk != NULL);
    disk->image = image;
    disk->timing = seed_fork(seed, 1);
    disk->chance = seed_fork(seed, 2);
    disk->noise = seed_fork(seed, 3);
    disk->now = image->time;
    disk->io.functions = &functions;
    disk->io.folder = "simulated store";
    disk->io.logical_block = SIM_SECTOR;
    disk->io.align = SIM_BLOCK;
    disk->io.backend = 1;
    return disk;
}

struct image *disk_end(struct disk *disk)
{
    check_bug(disk->flight_count == 0);
    struct image *image = disk->image;
    if (!disk->gone)
        image->time = disk->now;
    while (disk->files != NULL)
        file_close(disk, disk->files);
    free(disk->flights);
    free(disk);
    return image;
}

struct io *disk_io(struct disk *disk)
{
    return &disk->io;
}

void disk_crash_at(struct disk *disk, uint64_t event)
{
    disk->crash_at = event;
}

bool disk_gone(const struct disk *disk)
{
    return disk->gone;
}

void disk_set_hasty_lock(struct disk *disk, bool hasty)
{
    disk->hasty_lock = hasty;
}

bool disk_lands_later(const struct disk *disk)
{
    const struct image *image = disk->image;
    bool lands = false;
    for (uint32_t i = 0; i < image->now.count && !disk->gone; i++)
        lands = lands || (image->inodes[image->now.list[i].inode]->segment &&
                          image_lands_later(image, image->now.list[i].inode));
    return lands;
}

uint64_t disk_events(const struct disk *disk)
{
    return disk->events;
}

uint64_t disk_trace_hash(const struct disk *disk)
{
    return disk->trace_hash;
}

const char *disk_violation(const struct disk *disk)
{
    return disk->violation[0] == 0 ? NULL : disk->violation;
}

void disk_set_fault(struct disk *disk, const struct fault *fault)
{
    check_bug(disk->fault_count < MAX_FAULTS);
    disk->faults[disk->fault_count++] = *fault;
}

void disk_clear_faults(struct disk *disk)
{
    disk->fault_count = 0;
    memset(disk->per_million, 0, sizeof disk->per_million);
}

uint64_t disk_overwrites(const struct disk *disk)
{
    return disk->overwrites;
}

uint64_t disk_faults_hit(const struct disk *disk)
{
    return disk->faults_hit;
}

void disk_set_chance(struct disk *disk, enum io_kind kind, uint32_t per_million)
{
    disk->per_million[kind] = per_million;
}

void disk_set_space(struct disk *disk, uint64_t bytes)
{
    disk->image->space = bytes;
}

void disk_set_holder(struct disk *disk, int64_t pid)
{
    disk->holder_pid = pid;
}

void disk_set_watch(struct disk *disk, const struct disk_watch *watch)
{
    disk->watch = *watch;
}

void disk_set_trace(struct disk *disk, FILE *trace)
{
    disk->trace = trace;
}
