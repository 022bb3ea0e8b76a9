/* mmap.c: the seed's second back end: sequential copies into a shared mapping, made durable by msync.
 *
 * Happy path: the I/O thread maps a file as far as it is allocated, copies, and remembers the range; a flush
 * is msync(MS_SYNC) over that range, then fdatasync for the file's metadata.
 *
 * Failure modes
 *   - The device fails or is full, or somebody cuts the file behind our back: the copy gets SIGBUS. A guard
 *     around the copy, and around nothing else, turns it into -EIO. Bytes before the fault may be in the file
 *     already.
 *   - Nobody knows afterwards which pages reached the disk: the first SIGBUS or failed flush is final, every
 *     later flush fails with it (errors_are_final; the owner ends the process, G10).
 *   - A write beyond the end first allocates: -ENOSPC then has touched nothing and is not final.
 *
 * Invariants
 *   - mapping, mapped and dirty range of a file are the I/O thread's; the helper thread drops them in CLOSE,
 *     when no other op on the file is in flight. Background ops are for files outside the log: they go by
 *     pread and pwrite in the helper thread, which sees the same page cache.
 *   - The SIGBUS handler acts only for a thread inside a guarded copy, and only on addresses in that copy's
 *     range. Any other SIGBUS goes where it went before. */
#include "threaded.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <stdatomic.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------------------- the guard */

struct guard {
    sigjmp_buf out;
    uintptr_t from, to;
};

/* A signal handler belongs to the process: these are what it needs, and the only such words in this folder.
 * */
/* lint-allow: volatile, shared with a signal handler of the same thread only */
static _Thread_local struct guard *volatile guard_of_thread;
static pthread_mutex_t handler_mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned handler_users;
static struct sigaction handler_before;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    struct guard *guard = guard_of_thread;
    uintptr_t at = (uintptr_t)info->si_addr;
    if (guard != NULL && at >= guard->from && at < guard->to)
        siglongjmp(guard->out, 1);
    if ((handler_before.sa_flags & SA_SIGINFO) != 0) {
        handler_before.sa_sigaction(number, info, context);
    } else if (handler_before.sa_handler != SIG_DFL && handler_before.sa_handler != SIG_IGN) {
        handler_before.sa_handler(number);
    } else {
        struct sigaction plain = {.sa_handler = SIG_DFL};
        sigaction(number, &plain, NULL); /* and return: the same access faults again and ends the process */
    }
}

static int guard_install(void)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    pthread_mutex_lock(&handler_mutex);
    int result = handler_users == 0 && sigaction(SIGBUS, &action, &handler_before) != 0 ? -errno : 0;
    if (result == 0)
        handler_users++;
    pthread_mutex_unlock(&handler_mutex);
    return result;
}

static void guard_remove(void)
{
    pthread_mutex_lock(&handler_mutex);
    struct sigaction now;
    bool last = --handler_users == 0;
    if (last && sigaction(SIGBUS, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) != 0 &&
        now.sa_sigaction == on_bus_error)
        sigaction(SIGBUS, &handler_before, NULL);
    pthread_mutex_unlock(&handler_mutex);
}

/* Copies between a mapping and private memory. False: the mapping's pages are not to be had. */
static bool guarded_copy(void *to, const void *from, size_t length, const void *mapping)
{
    struct guard guard = {.from = (uintptr_t)mapping, .to = (uintptr_t)mapping + length};
    if (sigsetjmp(guard.out, 0) != 0) { /* the handler defers nothing, so there is no mask to restore */
        guard_of_thread = NULL;
        return false;
    }
    guard_of_thread = &guard;
    atomic_signal_fence(memory_order_seq_cst); /* the copy stays between the two */
    memcpy(to, from, length);
    atomic_signal_fence(memory_order_seq_cst);
    guard_of_thread = NULL;
    return true;
}

/* ------------------------------------------------------------------------------------------------ the ops */

/* Makes the mapping reach `end`, which is at most the file's size. */
static int map_up_to(struct io_file *file, uint64_t size, uint64_t end)
{
    if (file->mapping != NULL && end <= file->mapped)
        return 0;
    void *mapping = file->mapping == NULL ? mmap(NULL, size, PROT_READ | (file->writable ? PROT_WRITE : 0),
                                                 MAP_SHARED, file->fd, 0)
                                          : mremap(file->mapping, file->mapped, size, MREMAP_MAYMOVE);
    if (mapping == MAP_FAILED)
        return -errno;
    file->mapping = mapping;
    file->mapped = size;
    return 0;
}

static int64_t mmap_read(struct threaded *threaded, struct io_op *op)
{
    (void)threaded;
    uint64_t size = file_size(op->file);
    if (op->offset >= size)
        return 0;
    uint64_t length = min_u64(op->length, size - op->offset);
    int result = map_up_to(op->file, size, op->offset + length);
    if (result != 0)
        return result;
    const uint8_t *from = op->file->mapping + op->offset;
    return guarded_copy(op->buffer, from, length, from) ? (int64_t)length
                                                        : -EIO; /* a read leaves nothing unknown */
}

static int64_t mmap_flush(struct threaded *threaded, struct io_file *file)
{
    if (threaded->final_error != 0)
        return threaded->final_error;
    int failed = 0;
    if (file->dirty_from < file->dirty_to)
        failed = msync(file->mapping + file->dirty_from, file->dirty_to - file->dirty_from, MS_SYNC);
    if (failed == 0)
        failed = fdatasync(file->fd);
    if (failed != 0)
        threaded->final_error = -errno;
    file->dirty_from = file->dirty_to = 0;
    return threaded->final_error;
}

static int64_t mmap_write(struct threaded *threaded, struct io_op *op)
{
    struct io_file *file = op->file;
    if (!file->writable)
        return -EBADF;
    uint64_t size = file_size(file), end = op->offset + op->length;
    if (end > size) {
        if (fallocate(file->fd, 0, (off_t)size, (off_t)(end - size)) != 0)
            return -errno;
        size = end;
    }
    int result = map_up_to(file, size, end);
    if (result != 0)
        return result;
    uint64_t from = op->offset & ~((uint64_t)threaded->real.folder.page - 1);
    if (file->dirty_from >= file->dirty_to) {
        file->dirty_from = from;
        file->dirty_to = end;
    } else {
        file->dirty_from = min_u64(file->dirty_from, from);
        file->dirty_to = max_u64(file->dirty_to, end);
    }
    if (!guarded_copy(file->mapping + op->offset, op->buffer, op->length, file->mapping + op->offset)) {
        if (threaded->final_error == 0)
            threaded->final_error = -EIO;
        return -EIO;
    }
    int64_t flushed = op->durable ? mmap_flush(threaded, file) : 0;
    return flushed == 0 ? (int64_t)op->length : flushed;
}

static int64_t mmap_perform(struct threaded *threaded, struct io_op *op)
{
    switch (op->kind) {
    case IO_READ:
        return mmap_read(threaded, op);
    case IO_WRITE:
        return mmap_write(threaded, op);
    case IO_FLUSH:
        return mmap_flush(threaded, op->file);
    default:
        bug(__FILE__, __LINE__, "an op on a file's data");
    }
}

int mmap_start(struct real *real, struct error *err)
{
    int result = guard_install();
    if (result != 0)
        return error_set(err, result, "cannot install the SIGBUS handler: %s", strerror(-result));
    real->io.errors_are_final = true;
    threaded_of(real)->end = guard_remove;
    result = threaded_start(real, mmap_perform, err);
    if (result != 0)
        guard_remove();
    return result;
}
