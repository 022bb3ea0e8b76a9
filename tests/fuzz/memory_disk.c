/* memory_disk.c: see memory_disk.h. */
#include "memory_disk.h"

#include "../../shared/message.h"

#define FIRST_TIME INT64_C(1000000000)
#define WALL_TIME  INT64_C(1700000000000000000)
#define OP_TAKES   INT64_C(50000)

/* What the core calls a file: one of disk->files, by number from 1. */
static struct io_file *handle_of(uint32_t number)
{
    return (struct io_file *)((uintptr_t)number + 1);
}

static struct memory_disk *disk_of(struct io *io)
{
    return (struct memory_disk *)(void *)((char *)io - offsetof(struct memory_disk, io));
}

static struct memory_file *file_of(struct memory_disk *disk, struct io_file *handle)
{
    uintptr_t number = (uintptr_t)handle - 1;
    check_bug(number < MEMORY_FILES && disk->files[number].used && disk->files[number].opened > 0);
    return &disk->files[number];
}

static struct memory_file *find(struct memory_disk *disk, const char *name)
{
    for (uint32_t i = 0; i < disk->end; i++) {
        const char *at = disk->files[i].name;
        /* Not strcmp: the fuzzer looks at each call of it. */
        for (uint32_t n = 0; disk->files[i].used && at[n] == name[n]; n++)
            if (name[n] == '\0')
                return &disk->files[i];
    }
    return NULL;
}

/* ----------------------------------------------------------------------------------------------- bytes */

static const uint8_t *content(const struct memory_file *file)
{
    return file->lent != NULL ? file->lent : file->bytes;
}

static void make_room(struct memory_file *file, uint64_t length)
{
    if (length <= file->room)
        return;
    file->room = max_u64(2 * length, UINT64_C(64) << 10);
    file->bytes = realloc(file->bytes, file->room);
    check_bug(file->bytes != NULL);
}

/* From now on its bytes are its own, and there are so many. */
static void hold(struct memory_file *file, uint64_t length)
{
    make_room(file, max_u64(length, file->length));
    if (file->lent != NULL && file->length > 0)
        memcpy(file->bytes, file->lent, file->length);
    file->lent = NULL;
    if (length <= file->length)
        return;
    memset(file->bytes + file->length, 0, length - file->length);
    file->length = length;
}

static int64_t do_write(struct memory_file *file, const struct io_op *op)
{
    hold(file, op->offset + op->length);
    memcpy(file->bytes + op->offset, op->buffer, op->length);
    file->size = max_u64(file->size, op->offset + op->length);
    return (int64_t)op->length;
}

static int64_t do_read(const struct memory_file *file, const struct io_op *op)
{
    uint64_t count = op->offset < file->size ? min_u64(op->length, file->size - op->offset) : 0;
    uint64_t held = op->offset < file->length ? min_u64(count, file->length - op->offset) : 0;
    if (held > 0)
        memcpy(op->buffer, content(file) + op->offset, held);
    memset((uint8_t *)op->buffer + held, 0, count - held);
    return (int64_t)count;
}

static void resize(struct memory_file *file, uint64_t size)
{
    file->size = size;
    file->length = min_u64(file->length, size);
}

/* ----------------------------------------------------------------------------------------------- names */

static struct memory_file *new_file(struct memory_disk *disk, const char *name)
{
    check_bug(strlen(name) < MEMORY_NAME);
    for (uint32_t i = 0; i < MEMORY_FILES; i++) {
        struct memory_file *file = &disk->files[i];
        if (file->used)
            continue;
        *file = (struct memory_file){.used = true, .bytes = file->bytes, .room = file->room};
        memcpy(file->name, name, strlen(name));
        if (i >= disk->end)
            disk->end = i + 1;
        return file;
    }
    bug(__FILE__, __LINE__, "more files than a store of this size has");
}

static void free_if_gone(struct memory_file *file)
{
    if (file->opened == 0 && file->name[0] == '\0')
        file->used = false;
}

static int64_t do_open(struct memory_disk *disk, struct io_op *op, bool create)
{
    struct memory_file *file = find(disk, op->name);
    if ((file != NULL) == create)
        return create ? -EEXIST : -ENOENT;
    if (create)
        file = new_file(disk, op->name);
    check_bug(file != NULL);
    file->buffered = (op->flags & IO_FILE_BUFFERED) != 0;
    file->opened++;
    op->file = handle_of((uint32_t)(file - disk->files));
    return 0;
}

static int64_t do_unlink(struct memory_disk *disk, const char *name)
{
    struct memory_file *file = find(disk, name);
    if (file == NULL)
        return -ENOENT;
    memset(file->name, 0, sizeof file->name);
    free_if_gone(file);
    return 0;
}

static int64_t do_rename(struct memory_disk *disk, const struct io_op *op)
{
    struct memory_file *file = find(disk, op->name);
    check_bug(strlen(op->new_name) < MEMORY_NAME);
    if (file == NULL)
        return -ENOENT;
    (void)do_unlink(disk, op->new_name);
    memset(file->name, 0, sizeof file->name);
    memcpy(file->name, op->new_name, strlen(op->new_name));
    return 0;
}

/* ------------------------------------------------------------------------------------------------- ops */

static int64_t perform(struct memory_disk *disk, struct io_op *op)
{
    bool names = op->kind == IO_CREATE || op->kind == IO_OPEN || op->kind == IO_RENAME ||
                 op->kind == IO_UNLINK || op->kind == IO_SYNC_DIRECTORY;
    struct memory_file *file = names ? NULL : file_of(disk, op->file);
    disk->changes += op->kind == IO_WRITE || op->kind == IO_CREATE || op->kind == IO_ALLOCATE ||
                     op->kind == IO_TRUNCATE || op->kind == IO_RENAME || op->kind == IO_UNLINK;
    switch (op->kind) {
    case IO_WRITE:
        return do_write(file, op);
    case IO_READ:
        return do_read(file, op);
    case IO_CREATE:
    case IO_OPEN:
        return do_open(disk, op, op->kind == IO_CREATE);
    case IO_CLOSE:
        file->opened--;
        free_if_gone(file);
        return 0;
    case IO_ALLOCATE:
        file->size = max_u64(file->size, op->length);
        return 0;
    case IO_TRUNCATE:
        resize(file, op->length);
        return 0;
    case IO_RENAME:
        return do_rename(disk, op);
    case IO_UNLINK:
        return do_unlink(disk, op->name);
    default: /* FLUSH, SYNC_DIRECTORY: nothing is ever lost here */
        return 0;
    }
}

static void disk_submit(struct io *io, struct io_op *op)
{
    struct memory_disk *disk = disk_of(io);
    op->next = NULL;
    *disk->last = op;
    disk->last = &op->next;
}

static void disk_kick(struct io *io)
{
    (void)io;
}

static int disk_wait(struct io *io, int64_t timeout_ns)
{
    struct memory_disk *disk = disk_of(io);
    struct io_op *op = disk->first;
    int count = 0;
    disk->first = NULL;
    disk->last = &disk->first;
    if (op == NULL && timeout_ns > 0)
        disk->now += timeout_ns;
    while (op != NULL) {
        struct io_op *next = op->next;
        disk->now += OP_TAKES;
        io_complete(io, op, perform(disk, op));
        op = next;
        count++;
    }
    return count;
}

static int64_t disk_now(struct io *io)
{
    return disk_of(io)->now;
}

static int64_t disk_wall(struct io *io)
{
    return WALL_TIME + disk_of(io)->now;
}

static int disk_random(struct io *io, void *buffer, size_t length)
{
    struct memory_disk *disk = disk_of(io);
    for (size_t i = 0; i < length; i++) {
        disk->random = disk->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        ((uint8_t *)buffer)[i] = (uint8_t)(disk->random >> 56);
    }
    return 0;
}

static uint64_t disk_file_size(struct io *io, struct io_file *file)
{
    return file_of(disk_of(io), file)->size;
}

static uint32_t disk_file_align(struct io *io, struct io_file *file)
{
    return file_of(disk_of(io), file)->buffered ? 1 : io->logical_block;
}

static int disk_list(struct io *io, struct io_entry **entries, size_t *count)
{
    struct memory_disk *disk = disk_of(io);
    *entries = malloc(MEMORY_FILES * sizeof **entries);
    check_bug(*entries != NULL);
    *count = 0;
    for (uint32_t i = 0; i < disk->end; i++) {
        const struct memory_file *file = &disk->files[i];
        if (!file->used || file->name[0] == '\0')
            continue;
        struct io_entry *entry = &(*entries)[(*count)++];
        memcpy(entry->name, file->name, sizeof file->name);
        entry->size = file->size;
        entry->regular = true;
    }
    return 0;
}

static int disk_lock(struct io *io, struct io_file *file)
{
    (void)io;
    (void)file;
    return 0;
}

static int disk_claim(struct io *io, const char *name, int64_t *holder_pid)
{
    (void)io;
    (void)name;
    *holder_pid = 0;
    return 0;
}

static void disk_sleep(struct io *io, int64_t ns)
{
    disk_of(io)->now += ns;
}

static uint64_t disk_space_free(struct io *io)
{
    (void)io;
    return UINT64_C(1) << 40;
}

static void disk_destroy(struct io *io)
{
    (void)io;
}

void memory_disk_init(struct memory_disk *disk)
{
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
    *disk = (struct memory_disk){.io = {.functions = &functions,
                                        .folder = "memory",
                                        .logical_block = 512,
                                        .align = MEMORY_BLOCK,
                                        .backend = IO_BACKEND_PWRITE}};
    memory_disk_clear(disk, 1);
}

void memory_disk_clear(struct memory_disk *disk, uint64_t seed)
{
    check_bug(disk->io.inflight == 0);
    for (uint32_t i = 0; i < disk->end; i++)
        disk->files[i].used = false;
    disk->end = 0;
    disk->first = NULL;
    disk->last = &disk->first;
    disk->now = FIRST_TIME;
    disk->random = seed;
    disk->changes = 0;
}

void memory_disk_lend(struct memory_disk *disk, const char *name, const uint8_t *bytes, uint64_t length,
                      uint64_t size)
{
    struct memory_file *file = new_file(disk, name);
    file->lent = bytes;
    file->length = length;
    file->size = max_u64(size, length);
}

uint8_t *memory_disk_add(struct memory_disk *disk, const char *name, const void *bytes, uint64_t length,
                         uint64_t size)
{
    memory_disk_lend(disk, name, bytes, length, size);
    struct memory_file *file = find(disk, name);
    check_bug(file != NULL);
    hold(file, length);
    return file->bytes;
}

void memory_disk_cut(struct memory_disk *disk, uint64_t slack)
{
    for (uint32_t i = 0; i < disk->end; i++) {
        struct memory_file *file = &disk->files[i];
        if (file->used && file->size > file->length + slack)
            file->size = file->length + slack;
    }
}

void memory_disk_shorten(struct memory_disk *disk)
{
    for (uint32_t i = 0; i < disk->end; i++) {
        struct memory_file *file = &disk->files[i];
        while (file->used && file->length > 0 && content(file)[file->length - 1] == 0)
            file->length--;
    }
}

struct memory_saved {
    struct memory_file files[MEMORY_FILES]; /* with copies of their bytes */
    uint32_t end;
    int64_t now;
    uint64_t random;
};

struct memory_saved *memory_disk_save(const struct memory_disk *disk)
{
    struct memory_saved *saved = malloc(sizeof *saved);
    check_bug(saved != NULL && disk->io.inflight == 0);
    memcpy(saved->files, disk->files, sizeof disk->files);
    saved->end = disk->end;
    saved->now = disk->now;
    saved->random = disk->random;
    for (uint32_t i = 0; i < MEMORY_FILES; i++) {
        struct memory_file *file = &saved->files[i];
        file->lent = NULL;
        if (!file->used || file->length == 0)
            continue;
        file->bytes = malloc(file->length);
        check_bug(file->bytes != NULL);
        memcpy(file->bytes, content(&disk->files[i]), file->length);
    }
    return saved;
}

void memory_disk_restore(struct memory_disk *disk, const struct memory_saved *saved)
{
    check_bug(disk->io.inflight == 0);
    disk->now = saved->now;
    disk->random = saved->random;
    disk->end = (uint32_t)max_u64(disk->end, saved->end);
    for (uint32_t i = 0; i < disk->end; i++) {
        const struct memory_file *from = &saved->files[i];
        struct memory_file *file = &disk->files[i];
        if (!from->used) {
            file->used = false;
            continue;
        }
        *file = (struct memory_file){.used = true,
                                     .buffered = from->buffered,
                                     .opened = from->opened,
                                     .bytes = file->bytes,
                                     .lent = from->length > 0 ? from->bytes : NULL,
                                     .room = file->room,
                                     .length = from->length,
                                     .size = from->size};
        memcpy(file->name, from->name, sizeof file->name);
    }
}

bool memory_disk_idle(const struct memory_disk *disk)
{
    for (uint32_t i = 0; i < disk->end; i++)
        if (disk->files[i].used && disk->files[i].opened != 0)
            return false;
    return disk->io.inflight == 0;
}

void memory_disk_free(struct memory_disk *disk)
{
    for (uint32_t i = 0; i < MEMORY_FILES; i++)
        free(disk->files[i].bytes);
    *disk = (struct memory_disk){.now = 0};
}
