/* uring.c: the back end io_uring.
 *
 * Happy path
 *   1. submit puts an op on a list; kick (and wait) turn the list into submission entries and hand all of
 *      them to the kernel in one system call.
 *   2. wait hands over what is new, sleeps in the kernel for one completion, and finishes everything that is
 *      there.
 *   3. The watched descriptor and the eventfd of the helper thread are polls in the same ring, so that there
 *      is one place to sleep. Each poll fires once and is set again by the next wait: a level-triggered epoll
 *      descriptor that stays readable costs one completion a wait, not a spin in the kernel.
 *
 * Flush. Measured: O_DIRECT, pre-written space, the ways interleaved, p50 of 1,500 each in microseconds,
 * first alone, then with a client that spins on the other of two cores.
 *                                       4 KiB   72 KiB    1 MiB | 72 KiB beside it (p99)
 *     write in the ring, fdatasync here 120.7    137.4    418.2 |
 *     write, then FSYNC, in the ring    124.2    140.6    420.2 | 168.6 (1,385)
 *     one write with RWF_DSYNC          121.1    137.3    416.6 | 138.3 (4,020)
 *     pwrite and fdatasync, no ring     121.2    136.3    416.9 | 140.7   (258)
 *   (The 4 ms are those of a worker of the kernel that waits for the spinner's core.)
 *   So a brief flush (of little; the caller says so) is made here, by this thread, which would otherwise have
 *   nothing to do but wait for it; as long as flushes have been quick of late. On a device whose flushes are
 *   slow they go through the ring, where one that hangs keeps nobody from being answered.
 *
 * Large writes. More than two entries in one call are held back by the kernel (a plug) and merged into one
 * request, which the device works off slower than its pieces side by side: write and fdatasync of 2.8 MiB in
 * pieces of 512 KiB, in large pages, p50 of 300: 1,003 us together, 879 by twos; of 4 MiB 1,446 and 1,226.
 *
 * Failure modes: the kernel takes no more at the moment (-EAGAIN, -EBUSY): what is left stays listed and goes
 * with the next kick or wait. A signal handler ran: wait returns early. Neither is ever an op's result. A
 * write or read that comes back with -EINTR did nothing and is submitted again; a flush is not, its answer is
 * passed on whatever it is (G10).
 *
 * Invariants
 *   - The completion queue cannot overflow: what is in the ring at once is bounded by less than its length.
 *     What is over the bound waits on its list.
 *   - Nothing of a client's is ever given to the ring. A write to its eventfd may be done by the kernel
 *     inside io_uring_enter when O_NONBLOCK is set, and a peer that clears the flag between the kernel's two
 *     looks at it makes this thread sleep there: seen within seconds of trying. Signals go the way of
 *     signal.c.
 *   - One thread makes, uses and destroys this: the kernel refuses others (SINGLE_ISSUER), and completions
 *     are only worked off when that thread enters (DEFER_TASKRUN). */
#include "real.h"

#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SUBMIT_ENTRIES     256u
#define COMPLETION_ENTRIES 2048u
#define MAX_OPS            1024u
#define POLLS              2u
#define QUICK_FLUSH_NS     INT64_C(500000)
#define LARGE_PIECE        (256u << 10)
#define NOT_MERGED         2u /* entries that the kernel takes in one call without holding them back */
_Static_assert(MAX_OPS + POLLS < COMPLETION_ENTRIES, "completions must not overflow");

/* What a completion is for: the low bits of its user data, under a pointer or alone. */
enum tag { TAG_OP = 0, TAG_WATCH = 1, TAG_EVENT = 2, TAG_PROBE = 3, TAG_MASK = 7 };

struct uring {
    struct real real; /* first */
    struct io_uring ring;
    struct op_queue waiting; /* submitted to us, not yet an entry */
    struct op_queue made;    /* flushes made in this thread, to be finished by wait */
    int64_t flush_ns;        /* how long a flush takes: a moving average */
    uint32_t ops;            /* in the ring */
    bool watch_armed, event_armed;
};

static struct uring *uring_of(struct io *io)
{
    return (struct uring *)(void *)io;
}

static int64_t now_of(struct uring *uring)
{
    return io_now(&uring->real.io);
}

/* --------------------------------------------------------------------------------------------- submission */

static uint64_t tagged(const void *pointer, enum tag tag)
{
    check_bug(((uintptr_t)pointer & TAG_MASK) == 0);
    return (uint64_t)(uintptr_t)pointer | tag;
}

static void *pointer_of(uint64_t user_data)
{
    return (void *)(uintptr_t)(user_data & ~(uint64_t)TAG_MASK);
}

static void enter(struct uring *uring)
{
    int taken = io_uring_submit(&uring->ring);
    check_bug(taken >= 0 || taken == -EAGAIN || taken == -EBUSY || taken == -EINTR);
}

/* A free submission entry, or NULL while the kernel takes none. */
static struct io_uring_sqe *entry(struct uring *uring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    if (sqe == NULL) {
        enter(uring);
        sqe = io_uring_get_sqe(&uring->ring);
    }
    return sqe;
}

static void prepare_op(struct io_uring_sqe *sqe, struct io_op *op, int64_t now_ns)
{
    switch (op->kind) {
    case IO_READ:
        io_uring_prep_read(sqe, op->file->fd, op->buffer, (unsigned)op->length, op->offset);
        break;
    case IO_WRITE:
        io_uring_prep_write(sqe, op->file->fd, op->buffer, (unsigned)op->length, op->offset);
        if (op->durable)
            sqe->rw_flags = RWF_DSYNC;
        break;
    case IO_FLUSH:
        io_uring_prep_fsync(sqe, op->file->fd, IORING_FSYNC_DATASYNC);
        op->private_[0] = (uint64_t)now_ns;
        break;
    default:
        bug(__FILE__, __LINE__, "an op for the ring");
    }
    io_uring_sqe_set_data64(sqe, tagged(op, TAG_OP));
}

/* Turns what is listed into entries, as far as there is room. */
static void fill(struct uring *uring)
{
    struct io_uring_sqe *sqe;
    while (uring->waiting.first != NULL && uring->ops < MAX_OPS && (sqe = entry(uring)) != NULL) {
        struct io_op *op = op_queue_pop(&uring->waiting);
        prepare_op(sqe, op, op->kind == IO_FLUSH ? now_of(uring) : 0);
        uring->ops++;
        if (op->length >= LARGE_PIECE && io_uring_sq_ready(&uring->ring) >= NOT_MERGED)
            enter(uring);
    }
}

static bool arm_one(struct uring *uring, int fd, enum tag tag)
{
    struct io_uring_sqe *sqe = entry(uring);
    if (sqe == NULL)
        return false;
    io_uring_prep_poll_add(sqe, fd, POLLIN);
    io_uring_sqe_set_data64(sqe, tag);
    return true;
}

static void arm(struct uring *uring)
{
    if (!uring->watch_armed && uring->real.watch_fd >= 0)
        uring->watch_armed = arm_one(uring, uring->real.watch_fd, TAG_WATCH);
    if (!uring->event_armed)
        uring->event_armed = arm_one(uring, uring->real.event_fd, TAG_EVENT);
}

static void learn_flush(struct uring *uring, int64_t began_ns)
{
    int64_t took = now_of(uring) - began_ns;
    uring->flush_ns += (took - uring->flush_ns) / 4;
}

static void flush_here(struct uring *uring, struct io_op *op)
{
    int64_t began = now_of(uring);
    op->result = fdatasync(op->file->fd) == 0 ? 0 : -errno;
    learn_flush(uring, began);
    op_queue_push(&uring->made, op);
}

static void uring_submit(struct io *io, struct io_op *op)
{
    struct uring *uring = uring_of(io);
    if (real_admit(&uring->real, op))
        real_submit_file_work(&uring->real, op);
    else if (op->kind == IO_FLUSH && op->brief && uring->flush_ns < QUICK_FLUSH_NS)
        flush_here(uring, op);
    else
        op_queue_push(&uring->waiting, op);
}

static void uring_kick(struct io *io)
{
    struct uring *uring = uring_of(io);
    fill(uring);
    if (io_uring_sq_ready(&uring->ring) > 0)
        enter(uring);
}

/* --------------------------------------------------------------------------------------------- completion */

static int finish_op(struct uring *uring, struct io_op *op, int32_t result)
{
    uring->ops--;
    if (op->kind == IO_FLUSH)
        learn_flush(uring, (int64_t)op->private_[0]);
    if (result == -EINTR && op->kind != IO_FLUSH && !op->durable) {
        op_queue_push(&uring->waiting, op);
        return 0;
    }
    real_finish(&uring->real, op, result);
    return 1;
}

static int finish(struct uring *uring, uint64_t user_data, int32_t result)
{
    switch (user_data & TAG_MASK) {
    case TAG_OP:
        return finish_op(uring, pointer_of(user_data), result);
    case TAG_WATCH:
        uring->watch_armed = false;
        uring->real.io.watch_ready = true;
        return 0;
    case TAG_EVENT:
        uring->event_armed = false;
        event_clear(uring->real.event_fd);
        return real_reap_file_work(&uring->real);
    default:
        bug(__FILE__, __LINE__, "a known completion");
    }
}

static int finish_made(struct uring *uring)
{
    int count = 0;
    struct op_queue made = uring->made;
    uring->made = (struct op_queue){0};
    for (; made.first != NULL; count++) {
        struct io_op *op = op_queue_pop(&made);
        real_finish(&uring->real, op, op->result);
    }
    return count;
}

/* Works off what is there now, and not what `done` adds: a turn is bounded. */
static int reap(struct uring *uring)
{
    int count = 0;
    for (unsigned ready = io_uring_cq_ready(&uring->ring); ready > 0; ready--) {
        struct io_uring_cqe *cqe = NULL;
        if (io_uring_peek_cqe(&uring->ring, &cqe) != 0)
            break;
        uint64_t user_data = cqe->user_data;
        int32_t result = cqe->res;
        io_uring_cqe_seen(&uring->ring, cqe);
        count += finish(uring, user_data, result);
    }
    return count;
}

/* The kernel has put something aside for this thread. */
static bool has_put_aside(const struct uring *uring)
{
    return (IO_URING_READ_ONCE(*uring->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

static bool uring_ready(const struct io *io)
{
    const struct uring *uring = (const struct uring *)(const void *)io;
    return has_put_aside(uring) || io_uring_cq_ready(&uring->ring) > 0;
}

/* Hands over what is new and lets the kernel work off what it has put aside for this thread; no system call
 * if there is neither. */
static void poll_kernel(struct uring *uring)
{
    if (io_uring_sq_ready(&uring->ring) > 0)
        enter(uring);
    if (has_put_aside(uring))
        (void)io_uring_get_events(&uring->ring);
}

/* Hands over what is new and sleeps until something completes. False: a signal handler ran. */
static bool sleep_in_kernel(struct uring *uring, int64_t ns)
{
    struct __kernel_timespec limit = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    struct io_uring_cqe *cqe = NULL;
    int taken = io_uring_submit_and_wait_timeout(&uring->ring, &cqe, 1, ns < 0 ? NULL : &limit, NULL);
    check_bug(taken >= 0 || taken == -ETIME || taken == -EINTR || taken == -EAGAIN || taken == -EBUSY);
    return taken != -EINTR;
}

static int uring_wait(struct io *io, int64_t timeout_ns)
{
    struct uring *uring = uring_of(io);
    int64_t deadline = timeout_ns > 0 ? time_after(real_now(io), timeout_ns) : 0;
    int64_t left = timeout_ns;
    bool go_on = true;
    io->watch_ready = false;
    for (;;) {
        arm(uring);
        fill(uring);
        if (left == 0 || uring->made.first != NULL || io_uring_cq_ready(&uring->ring) > 0)
            poll_kernel(uring);
        else
            go_on = sleep_in_kernel(uring, real_limit_sleep(&uring->real, left));
        int count = reap(uring);
        count += finish_made(uring); /* what this reap has led to as well */
        signaller_reap(&uring->real.signaller);
        if (count > 0 || io->watch_ready || left == 0 || !go_on)
            return count;
        if (timeout_ns > 0) {
            left = deadline - real_now(io);
            if (left < 0)
                left = 0;
        }
    }
}

/* ----------------------------------------------------------------------------------------- start and stop */

static void uring_destroy(struct io *io)
{
    struct uring *uring = uring_of(io);
    check_bug(io->inflight == 0);
    io_uring_queue_exit(&uring->ring);
    real_release(&uring->real);
    free(uring);
}

static const struct io_functions uring_functions = {
    .submit = uring_submit,
    .kick = uring_kick,
    .wait = uring_wait,
    .now = real_now,
    .wall = real_wall,
    .random = real_random,
    .file_size = real_file_size,
    .file_align = real_file_align,
    .list = real_list,
    .lock = real_lock,
    .claim = real_claim,
    .sleep = real_sleep,
    .space_free = real_space_free,
    .destroy = uring_destroy,
    .signal_send = signaller_send,
    .signal_cancel = signaller_cancel,
    .prepare_memory = real_prepare_memory,
    .ready = uring_ready,
};

size_t uring_size(void)
{
    return sizeof(struct uring);
}

/* Words for a refusal; what is no refusal but a shortage of ours keeps its errno. */
static int refused(struct error *err, int code, const char *call)
{
    if (code == -EMFILE || code == -ENFILE)
        return error_set(err, code, "cannot set up io_uring: %s; raise the limit on open files",
                         strerror(-code));
    if (code == -ENOSYS)
        return error_set(err, -EOPNOTSUPP, "the kernel has no io_uring, or a filter hides it");
    if (code == -ENOMEM)
        return error_set(err, -EOPNOTSUPP,
                         "no memory for %s; the limit on locked memory (ulimit -l) may be too low", call);
    if (code == -EPERM || code == -EACCES) {
        char text[16] = "";
        FILE *file = fopen("/proc/sys/kernel/io_uring_disabled", "re");
        if (file != NULL) {
            if (fgets(text, sizeof text, file) == NULL)
                text[0] = '\0';
            fclose(file);
        }
        long disabled = strtol(text, NULL, 10);
        if (disabled > 0)
            return error_set(err, -EOPNOTSUPP, "kernel.io_uring_disabled is %ld", disabled);
        return error_set(err, -EOPNOTSUPP, "%s is refused (%s), as a seccomp filter does", call,
                         strerror(-code));
    }
    return error_set(err, -EOPNOTSUPP, "%s failed: %s", call, strerror(-code));
}

/* Newer kernels do more for less; older ones refuse what they do not know. */
static int set_up_ring(struct io_uring *ring)
{
    static const unsigned wanted[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
            IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,                     /* 6.1 */
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, /* 5.19 */
        IORING_SETUP_SUBMIT_ALL,                                                         /* 5.18 */
        0,
    };
    int result = -EINVAL;
    for (size_t i = 0; i < array_count(wanted) && result == -EINVAL; i++) {
        struct io_uring_params params = {.flags = IORING_SETUP_CQSIZE | wanted[i],
                                         .cq_entries = COMPLETION_ENTRIES};
        result = io_uring_queue_init_params(SUBMIT_ENTRIES, ring, &params);
    }
    return result;
}

/* Writes to an eventfd of our own through the ring: no disk has a say in whether that works. */
static int probe_write(struct io_uring *ring)
{
    uint64_t one = 1, count = 0;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return -errno;
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    io_uring_prep_write(sqe, fd, &one, sizeof one, 0);
    io_uring_sqe_set_data64(sqe, TAG_PROBE);
    struct __kernel_timespec limit = {.tv_sec = 5};
    struct io_uring_cqe *cqe = NULL;
    int result = io_uring_submit_and_wait_timeout(ring, &cqe, 1, &limit, NULL);
    if (result >= 0 && cqe != NULL) {
        result = cqe->res < 0 ? cqe->res : 0;
        io_uring_cqe_seen(ring, cqe);
    }
    if (result >= 0 && read(fd, &count, sizeof count) != sizeof count)
        result = -EIO;
    close(fd);
    return result < 0 ? result : 0;
}

int uring_start(struct real *real, struct error *err)
{
    struct uring *uring = (struct uring *)(void *)real;
    int result = set_up_ring(&uring->ring);
    if (result != 0)
        return refused(err, result, "io_uring_setup");
    if ((uring->ring.features & IORING_FEAT_EXT_ARG) == 0 ||
        (uring->ring.features & IORING_FEAT_NODROP) == 0) {
        io_uring_queue_exit(&uring->ring);
        return error_set(err, -EOPNOTSUPP,
                         "the kernel's io_uring is too old; 5.11 is the oldest that will do");
    }
    result = probe_write(&uring->ring);
    if (result != 0) {
        io_uring_queue_exit(&uring->ring);
        return refused(err, result, "a write through io_uring");
    }
    real->io.functions = &uring_functions;
    return 0;
}
