/* A brief flush, of little and waited for by everybody: made by the thread that asks for it, as long as
 * flushes are quick on this device, and in the ring, where one that hangs keeps nobody from being answered,
 * when they
 * are not. This program is linked with --wrap=fdatasync, and its clock moves when a test says so. */
#include "support.h"

#include <unistd.h>

static struct fixture f;
static struct io_file *file;
static struct io_functions functions;
static int64_t clock_ns, flush_takes_ns; /* what each flush in this thread adds to the clock */
static unsigned made_here;
static int fails;

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
/* NOLINTEND(bugprone-reserved-identifier) */

int __wrap_fdatasync(int fd)
{
    made_here++;
    clock_ns += flush_takes_ns;
    if (fails == 0)
        return __real_fdatasync(fd);
    errno = fails;
    return -1;
}

static int64_t clock_read(struct io *io)
{
    (void)io;
    return clock_ns;
}

static void start(void)
{
    f = begin(IO_BACKEND_URING);
    functions = *f.io->functions;
    functions.now = clock_read;
    f.io->functions = &functions;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_allocate(f.io, file, BUFFER_BYTES), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    made_here = 0;
}

static void stop(void)
{
    cr_assert_eq(do_close(f.io, file), 0);
    end(&f);
}

TestSuite(brief, .init = start, .fini = stop, .timeout = 60);

static void note(struct io_op *op)
{
    *(bool *)op->owner = true;
}

/* Its result; *here: this thread made it. */
static int64_t flush(bool brief, bool *here)
{
    bool done = false;
    unsigned before = made_here;
    struct io_op op = {.kind = IO_FLUSH, .brief = brief, .file = file, .done = note, .owner = &done};
    io_submit(f.io, &op);
    cr_assert(!done, "an op is done in a wait only");
    cr_assert_eq(f.io->inflight, 1u);
    for (int i = 0; i < 100 && !done; i++)
        io_wait(f.io, SECOND);
    cr_assert(done);
    cr_assert_eq(f.io->inflight, 0u);
    *here = made_here != before;
    return op.result;
}

Test(brief, a_brief_flush_is_made_here_and_any_other_one_in_the_ring)
{
    bool here;
    cr_assert_eq(flush(true, &here), 0);
    cr_assert(here);
    cr_assert_eq(flush(false, &here), 0);
    cr_assert(!here);
}

Test(brief, g10_its_error_is_the_ops)
{
    bool here;
    fails = EIO;
    cr_assert_eq(flush(true, &here), -EIO);
    cr_assert(here);
    fails = EINTR;
    cr_assert_eq(flush(true, &here), -EINTR, "passed on, and not tried again");
    cr_assert_eq(made_here, 2u);
    fails = 0;
}

Test(brief, on_a_device_that_has_become_slow_it_goes_through_the_ring_until_flushes_are_quick_again)
{
    bool here = true;
    flush_takes_ns = SECOND / 5;
    cr_assert_eq(flush(true, &here), 0);
    cr_assert(here);
    flush_takes_ns = 0;
    unsigned in_the_ring = 0;
    for (here = false; !here; in_the_ring++) {
        cr_assert_eq(flush(true, &here), 0);
        cr_assert_lt(in_the_ring, 100u, "for ever");
    }
    cr_assert_gt(in_the_ring, 5u, "one slow flush is not forgotten with the next one");
}

Test(brief, several_at_once_are_all_finished_by_one_wait)
{
    bool done[3] = {false};
    struct io_op ops[3];
    for (size_t i = 0; i < array_count(ops); i++) {
        ops[i] =
            (struct io_op){.kind = IO_FLUSH, .brief = true, .file = file, .done = note, .owner = &done[i]};
        io_submit(f.io, &ops[i]);
    }
    cr_assert_eq(io_wait(f.io, SECOND), 3);
    for (size_t i = 0; i < array_count(ops); i++)
        cr_assert(done[i] && ops[i].result == 0);
}
