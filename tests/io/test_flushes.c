/* Does what is called a flush reach the kernel as one? A flush that is left out cannot be told from one by
 * what the files hold, short of a power cut. So the calls themselves are watched: this program is linked with
 * --wrap for each of them, and the entries of the ring are looked at as they are handed over. */
#include "support.h"

#include <liburing.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_SYNCS 16

/* What the back ends asked of the kernel, from any of their threads. */
static struct {
    unsigned fdatasyncs, durable_writes, folder_flushes, ring_writes;
    unsigned msyncs;
    struct {
        const void *from;
        size_t length;
    } ranges[MOST_SYNCS];
    unsigned handed_over;                               /* entries of the ring */
    int fail_fdatasync, fail_msync, fail_durable_write; /* with this errno, once */
    int fail_ring_flush;                                /* its completion says so, once */
    uint64_t ring_flush;                                /* its user data */
} calls;

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names; pwritev64v2 is pwritev2 with 64 bits */
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __real_msync(void *from, size_t length, int flags);
int __wrap_msync(void *from, size_t length, int flags);
ssize_t __real_pwritev64v2(int fd, const struct iovec *parts, int count, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *parts, int count, off_t offset, int flags);
int __real_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit(struct io_uring *ring);
int __real_io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned count,
                                            struct __kernel_timespec *limit, sigset_t *mask);
int __wrap_io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned count,
                                            struct __kernel_timespec *limit, sigset_t *mask);
/* NOLINTEND(bugprone-reserved-identifier) */

/* -1 and errno if the test wants this call to fail. */
static int fails(int *error)
{
    errno = *error;
    *error = 0;
    return errno != 0 ? -1 : 0;
}

int __wrap_fdatasync(int fd)
{
    calls.fdatasyncs++;
    return fails(&calls.fail_fdatasync) != 0 ? -1 : __real_fdatasync(fd);
}

int __wrap_fsync(int fd)
{
    struct stat facts;
    calls.folder_flushes += fstat(fd, &facts) == 0 && S_ISDIR(facts.st_mode);
    return __real_fsync(fd);
}

int __wrap_msync(void *from, size_t length, int flags)
{
    cr_assert_eq(flags, MS_SYNC);
    cr_assert_lt(calls.msyncs, MOST_SYNCS);
    calls.ranges[calls.msyncs].from = from;
    calls.ranges[calls.msyncs].length = length;
    calls.msyncs++;
    return fails(&calls.fail_msync) != 0 ? -1 : __real_msync(from, length, flags);
}

ssize_t __wrap_pwritev64v2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    calls.durable_writes += (flags & RWF_DSYNC) != 0;
    return fails(&calls.fail_durable_write) != 0 ? -1 : __real_pwritev64v2(fd, parts, count, offset, flags);
}

static void look_at_entries(const struct io_uring *ring)
{
    const struct io_uring_sq *sq = &ring->sq;
    for (unsigned at = sq->sqe_head; at != sq->sqe_tail; at++) {
        const struct io_uring_sqe *sqe = &sq->sqes[at & sq->ring_mask];
        bool flush = sqe->opcode == IORING_OP_FSYNC && sqe->fsync_flags == IORING_FSYNC_DATASYNC;
        bool write = sqe->opcode == IORING_OP_WRITE;
        calls.fdatasyncs += flush;
        if (flush)
            calls.ring_flush = sqe->user_data;
        calls.ring_writes += write;
        calls.durable_writes += write && (sqe->rw_flags & RWF_DSYNC) != 0;
        calls.handed_over += flush || write || sqe->opcode == IORING_OP_READ;
    }
}

int __wrap_io_uring_submit(struct io_uring *ring)
{
    look_at_entries(ring);
    return __real_io_uring_submit(ring);
}

/* A completion that the test wants to be a failed one is changed before anybody has seen it. */
int __wrap_io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned count,
                                            struct __kernel_timespec *limit, sigset_t *mask)
{
    look_at_entries(ring);
    int result = __real_io_uring_submit_and_wait_timeout(ring, cqe, count, limit, mask);
    struct io_uring_cqe *done;
    unsigned head;
    io_uring_for_each_cqe(ring, head,
                          done) if (calls.fail_ring_flush != 0 && done->user_data == calls.ring_flush)
    {
        done->res = -calls.fail_ring_flush;
        calls.fail_ring_flush = 0;
    }
    return result;
}

static struct io_file *begin_file(const struct fixture *f, uint32_t flags)
{
    struct io_file *file;
    cr_assert_eq(do_create(f->io, "a", flags, &file), 0);
    cr_assert_eq(do_allocate(f->io, file, BUFFER_BYTES), 0);
    memset(&calls, 0, sizeof calls);
    return file;
}

each_backend(flushes, g1_a_flush_is_handed_to_the_kernel)
{
    struct fixture f = begin(*backend);
    struct io_file *file = begin_file(&f, 0);
    for (unsigned i = 1; i <= 3; i++) {
        cr_assert_eq(do_write(f.io, file, f.buffer, 65536 * i, 65536), 65536);
        cr_assert_eq(calls.fdatasyncs, i - 1, "a write is no flush");
        cr_assert_eq(do_flush(f.io, file), 0);
        cr_assert_eq(calls.fdatasyncs, i);
        cr_assert_eq(calls.msyncs, *backend == IO_BACKEND_MMAP ? i : 0);
    }
    end(&f);
}

each_backend(flushes, g1_a_durable_write_is_flushed_with_it)
{
    struct fixture f = begin(*backend);
    struct io_file *file = begin_file(&f, 0);
    cr_assert_eq(do_write_durable(f.io, file, f.buffer, 0, 65536), 65536);
    if (*backend == IO_BACKEND_MMAP) {
        cr_assert_eq(calls.msyncs, 1);
        cr_assert_eq(calls.fdatasyncs, 1);
    } else {
        cr_assert_eq(calls.durable_writes, 1);
    }
    end(&f);
}

Test(flushes, g1_where_no_write_is_durable_by_itself_a_flush_follows)
{
    struct fixture f = begin(IO_BACKEND_PWRITE);
    struct io_file *file = begin_file(&f, 0);
    calls.fail_durable_write = EOPNOTSUPP;
    cr_assert_eq(do_write_durable(f.io, file, f.buffer, 0, 65536), 65536);
    cr_assert_eq(calls.fdatasyncs, 1);
    calls.fail_durable_write = ENOSYS;
    calls.fail_fdatasync = EIO;
    cr_assert_eq(do_write_durable(f.io, file, f.buffer, 0, 65536), -EIO, "its failure is the write's");
    cr_assert_eq(calls.fdatasyncs, 2);
    end(&f);
}

each_backend(flushes, g19_a_flush_of_the_folder_is_handed_to_the_kernel)
{
    struct fixture f = begin(*backend);
    memset(&calls, 0, sizeof calls);
    cr_assert_eq(do_sync_directory(f.io), 0);
    cr_assert_eq(calls.folder_flushes, 1);
    end(&f);
}

/* The second one could succeed over what the first has dropped. */
each_backend(flushes, g10_a_flush_that_was_interrupted_is_not_tried_again)
{
    struct fixture f = begin(*backend);
    struct io_file *file = begin_file(&f, 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    if (*backend == IO_BACKEND_URING)
        calls.fail_ring_flush = EINTR;
    else
        calls.fail_fdatasync = EINTR;
    cr_assert_eq(do_flush(f.io, file), -EINTR);
    cr_assert_eq(calls.fdatasyncs, 1);
    end(&f);
}

Test(flushes, g1_a_mapped_file_is_synced_wherever_it_was_written_since)
{
    struct fixture f = begin(IO_BACKEND_MMAP);
    struct io_file *file = begin_file(&f, 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 1 << 20, 65536), 65536);
    cr_assert_eq(do_write(f.io, file, f.buffer, 65536, 65536), 65536);
    cr_assert_eq(do_write(f.io, file, f.buffer, 512 << 10, 4096), 4096);
    cr_assert_eq(do_flush(f.io, file), 0);
    cr_assert_eq(calls.msyncs, 1);
    cr_assert_eq(calls.ranges[0].length, 1 << 20);
    cr_assert_eq(do_flush(f.io, file), 0);
    cr_assert_eq(calls.msyncs, 1, "nothing was written since");
    end(&f);
}

/* Which pages are on the disk is not known any more, so no later flush may say that all is well. */
Test(flushes, g10_a_mapped_file_whose_flush_failed_is_never_believed_again)
{
    struct fixture f = begin(IO_BACKEND_MMAP);
    struct io_file *file = begin_file(&f, 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    calls.fail_msync = EIO;
    cr_assert_eq(do_flush(f.io, file), -EIO);
    cr_assert_eq(do_flush(f.io, file), -EIO);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    cr_assert_eq(do_flush(f.io, file), -EIO);
    end(&f);
}

static unsigned finished;

static void count_finished(struct io_op *op)
{
    cr_assert_eq(op->result, 1);
    finished++;
}

/* The completions of more would have no room: the kernel would have to keep them aside. */
Test(flushes, g21_no_more_is_handed_over_than_the_ring_has_completions_for)
{
    enum { OPS = 3000, COMPLETIONS = 2048 };
    static struct io_op ops[OPS];
    struct fixture f = begin(IO_BACKEND_URING);
    struct io_file *file = begin_file(&f, IO_FILE_BUFFERED);
    for (unsigned i = 0; i < OPS; i++) {
        ops[i] = (struct io_op){
            .kind = IO_READ, .file = file, .buffer = f.buffer, .length = 1, .done = count_finished};
        io_submit(f.io, &ops[i]);
    }
    while (finished < OPS) {
        io_kick(f.io);
        cr_assert_lt(calls.handed_over - finished, COMPLETIONS);
        io_wait(f.io, -1);
    }
    cr_assert_eq(calls.handed_over, OPS);
    end(&f);
}
