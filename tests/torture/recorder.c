/* recorder.c: see recorder.h.
 *
 * Happy path
 *   1. submit: the op gets a twin: one copy for the real back end, one for the disk in memory. Both are
 *      submitted, so that the disk knows what is in flight, and judges alignment and G17 as in the
 *      simulator.
 *   2. When the real copy completes, `before` is called: a crash now would leave the op undecided.
 *   3. The disk is told the real result and does the same. Reads are compared: what the file system returns
 *      must be what was written.
 *   4. The op completes.
 *
 * A flush that succeeds makes durable, on the disk in memory, what had completed before it: that is what the
 * log may count on, whatever the device has done by itself.
 *
 * Failure modes: an error of the real back end is told to both sides and counted; bytes are not compared any
 * more, as nobody knows what it left behind. Once the disk is gone (a crash) every op ends with -ESHUTDOWN.
 *
 * Invariant: `done` of an op is called from this io's wait only, as that of its real copy is. */
#include "recorder.h"

#define SCRATCH_ALIGN 4096u

struct io_file {
    struct io_file *real, *mirror;
    struct io_file *next, **link; /* recorder->files */
    char name[SIM_NAME];
};

struct recorder {
    struct io io; /* first */
    struct io *real;
    struct disk *disk;
    void (*before)(void *context, bool failed);
    void *context;
    struct io_file *files; /* open ones */
    struct recorder_counts counts;
};

struct twin {
    struct io_op real, mirror;
    struct io_op *op;
    struct recorder *recorder;
    uint8_t *scratch; /* of a READ: what the disk in memory says */
};

static const char *const kind_names[IO_KIND_COUNT] = {"write",
                                                      "read",
                                                      "flush",
                                                      "create",
                                                      "open",
                                                      "close",
                                                      "allocate",
                                                      "truncate",
                                                      "rename",
                                                      "unlink",
                                                      "sync of the folder"};

static struct recorder *recorder_of(struct io *io)
{
    return (struct recorder *)(void *)io;
}

static const char *name_of(const struct io_op *op)
{
    if (op->kind == IO_SYNC_DIRECTORY)
        return "the folder";
    if (op->kind == IO_CREATE || op->kind == IO_OPEN || op->kind == IO_RENAME || op->kind == IO_UNLINK)
        return op->name;
    return op->file->name;
}

static void printf_like(2, 3) differs(struct recorder *recorder, const char *format, ...)
{
    va_list list;
    if (recorder->counts.difference[0] != '\0')
        return;
    va_start(list, format);
    vsnprintf(recorder->counts.difference, sizeof recorder->counts.difference, format, list);
    va_end(list);
}

/* ------------------------------------------------------------------------------------- completion */

static void mirror_done(struct io_op *mirror)
{
    (void)mirror; /* real_done goes on */
}

static bool is_expected(const struct io_op *op, int64_t result)
{
    return ((op->kind == IO_OPEN || op->kind == IO_UNLINK) && result == -ENOENT) ||
           (op->kind == IO_CREATE && result == -EEXIST);
}

static void count(struct recorder *recorder, const struct io_op *op, int64_t result)
{
    struct recorder_counts *counts = &recorder->counts;
    counts->ops++;
    counts->writes += op->kind == IO_WRITE;
    counts->flushes += op->kind == IO_FLUSH;
    if (op->kind == IO_WRITE && result > 0)
        counts->written_bytes += (uint64_t)result;
    if (result >= 0 || is_expected(op, result))
        return;
    counts->errors++;
    snprintf(counts->last_error, sizeof counts->last_error, "%s of %.40s: %s", kind_names[op->kind],
             name_of(op), strerror((int)-result));
}

static void compare(struct recorder *recorder, const struct twin *twin)
{
    const struct io_op *op = twin->op;
    int64_t real = twin->real.result, mirror = twin->mirror.result;
    if (recorder->counts.errors > 0)
        return;
    if (real != mirror)
        differs(recorder, "%s of %.40s at %llu returns %lld; after what was written it should be %lld",
                kind_names[op->kind], name_of(op), (unsigned long long)op->offset, (long long)real,
                (long long)mirror);
    else if (op->kind == IO_READ && real > 0 && memcmp(op->buffer, twin->scratch, (size_t)real) != 0)
        differs(recorder, "a read of %.40s at %llu returns other bytes than were written there", name_of(op),
                (unsigned long long)op->offset);
}

static void file_free(struct io_file *file)
{
    *file->link = file->next;
    if (file->next != NULL)
        file->next->link = file->link;
    free(file);
}

static void take_file(struct twin *twin)
{
    struct io_op *op = twin->op;
    struct io_file **first = &twin->recorder->files;
    if (op->kind == IO_CLOSE) {
        file_free(op->file);
        return;
    }
    if ((op->kind != IO_OPEN && op->kind != IO_CREATE) || twin->mirror.result != 0 || twin->real.result != 0)
        return;
    struct io_file *file = calloc(1, sizeof *file);
    check_bug(file != NULL);
    file->real = twin->real.file;
    file->mirror = twin->mirror.file;
    snprintf(file->name, sizeof file->name, "%s", op->name);
    file->next = *first;
    file->link = first;
    if (*first != NULL)
        (*first)->link = &file->next;
    *first = file;
    op->file = file;
}

static void real_done(struct io_op *real)
{
    struct twin *twin = real->owner;
    struct recorder *recorder = twin->recorder;
    struct io_op *op = twin->op;
    int64_t result = real->result;
    bool gone = disk_gone(recorder->disk);
    if (!gone) {
        recorder->before(recorder->context, result < 0 && !is_expected(op, result));
        count(recorder, op, result);
    }
    disk_finish(recorder->disk, &twin->mirror, result, io_now(recorder->real));
    if (!gone)
        compare(recorder, twin);
    else
        result = -ESHUTDOWN;
    if (result == 0 && twin->mirror.result != 0)
        result = -EIO; /* a difference; the life ends here */
    take_file(twin);
    free(twin->scratch);
    free(twin);
    io_complete(&recorder->io, op, result);
}

/* ------------------------------------------------------------------------------------- the seam */

static void recorder_submit(struct io *io, struct io_op *op)
{
    struct recorder *recorder = recorder_of(io);
    struct twin *twin = calloc(1, sizeof *twin);
    check_bug(twin != NULL && op->kind < IO_KIND_COUNT);
    bool named = op->kind == IO_CREATE || op->kind == IO_OPEN;
    twin->op = op;
    twin->recorder = recorder;
    twin->real = *op;
    twin->real.done = real_done;
    twin->real.owner = twin;
    twin->mirror = *op;
    twin->mirror.done = mirror_done;
    if (op->file != NULL && !named) {
        twin->real.file = op->file->real;
        twin->mirror.file = op->file->mirror;
    }
    if (op->kind == IO_READ) {
        twin->scratch = aligned_alloc(SCRATCH_ALIGN, align_up(op->length, SCRATCH_ALIGN));
        check_bug(twin->scratch != NULL);
        twin->mirror.buffer = twin->scratch;
    }
    io_submit(disk_io(recorder->disk), &twin->mirror);
    io_submit(recorder->real, &twin->real);
}

static void recorder_kick(struct io *io)
{
    io_kick(recorder_of(io)->real);
}

static int recorder_wait(struct io *io, int64_t timeout_ns)
{
    return io_wait(recorder_of(io)->real, timeout_ns);
}

static int64_t recorder_now(struct io *io)
{
    return io_now(recorder_of(io)->real);
}

static int64_t recorder_wall(struct io *io)
{
    struct io *real = recorder_of(io)->real;
    return real->functions->wall(real);
}

static int recorder_random(struct io *io, void *buffer, size_t length)
{
    struct io *real = recorder_of(io)->real;
    return real->functions->random(real, buffer, length);
}

static uint64_t recorder_file_size(struct io *io, struct io_file *file)
{
    struct io *real = recorder_of(io)->real;
    return real->functions->file_size(real, file->real);
}

static uint32_t recorder_file_align(struct io *io, struct io_file *file)
{
    struct io *real = recorder_of(io)->real;
    return real->functions->file_align(real, file->real);
}

static int recorder_list(struct io *io, struct io_entry **entries, size_t *entry_count)
{
    struct io *real = recorder_of(io)->real;
    return real->functions->list(real, entries, entry_count);
}

static int recorder_lock(struct io *io, struct io_file *file)
{
    struct io *real = recorder_of(io)->real;
    return real->functions->lock(real, file->real);
}

static int recorder_claim(struct io *io, const char *name, int64_t *holder_pid)
{
    struct io *real = recorder_of(io)->real;
    return real->functions->claim(real, name, holder_pid);
}

static void recorder_sleep(struct io *io, int64_t ns)
{
    struct io *real = recorder_of(io)->real;
    real->functions->sleep(real, ns);
}

static uint64_t recorder_space_free(struct io *io)
{
    struct io *real = recorder_of(io)->real;
    return real->functions->space_free(real);
}

static void recorder_end(struct io *io)
{
    recorder_destroy(recorder_of(io));
}

static const struct io_functions functions = {
    .submit = recorder_submit,
    .kick = recorder_kick,
    .wait = recorder_wait,
    .now = recorder_now,
    .wall = recorder_wall,
    .random = recorder_random,
    .file_size = recorder_file_size,
    .file_align = recorder_file_align,
    .list = recorder_list,
    .lock = recorder_lock,
    .claim = recorder_claim,
    .sleep = recorder_sleep,
    .space_free = recorder_space_free,
    .destroy = recorder_end,
};

struct recorder *recorder_create(struct io *real, struct disk *disk,
                                 void (*before)(void *context, bool failed), void *context)
{
    struct recorder *recorder = calloc(1, sizeof *recorder);
    if (recorder == NULL)
        return NULL;
    recorder->io = *real;
    recorder->io.functions = &functions;
    recorder->io.inflight = 0;
    recorder->real = real;
    recorder->disk = disk;
    recorder->before = before;
    recorder->context = context;
    return recorder;
}

void recorder_destroy(struct recorder *recorder)
{
    check_bug(recorder->io.inflight == 0);
    recorder->real->functions->destroy(recorder->real);
    while (recorder->files != NULL)
        file_free(recorder->files);
    free(recorder);
}

struct io *recorder_io(struct recorder *recorder)
{
    return &recorder->io;
}

const struct recorder_counts *recorder_counts(const struct recorder *recorder)
{
    return &recorder->counts;
}
