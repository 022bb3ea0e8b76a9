/* The io that fails on demand: other suites rely on it. */
#include "../../broker/io/fault.h"
#include "support.h"

static struct fixture begin_faulty(int backend)
{
    struct fixture f = begin(backend);
    struct io *inner = f.io;
    cr_assert_eq(io_fault_create(inner, &f.io), 0);
    cr_assert_eq(f.io->align, inner->align);
    return f;
}

each_backend(fault, passes_what_it_is_not_told_to_fail)
{
    struct fixture f = begin_faulty(*backend);
    struct io_file *file;
    struct io_entry *entries;
    size_t count;
    int64_t pid;
    uint32_t word = 0;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_allocate(f.io, file, 1 << 20), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    cr_assert_eq(do_flush(f.io, file), 0);
    cr_assert_eq(do_read(f.io, file, f.buffer + 65536, 0, 65536), 65536);
    cr_assert_eq(memcmp(f.buffer, f.buffer + 65536, 65536), 0);
    cr_assert_eq(size_of_file(f.io, file), 1 << 20);
    cr_assert_leq(f.io->functions->file_align(f.io, file), f.io->align);
    cr_assert_eq(f.io->functions->lock(f.io, file), 0);
    cr_assert_eq(f.io->functions->list(f.io, &entries, &count), 0);
    cr_assert_eq(count, 1);
    free(entries);
    cr_assert_eq(f.io->functions->claim(f.io, "store", &pid), 0);
    cr_assert_eq(f.io->functions->random(f.io, &word, sizeof word), 0);
    cr_assert_gt(f.io->functions->wall(f.io), 0);
    cr_assert_gt(f.io->functions->space_free(f.io), 0);
    f.io->functions->sleep(f.io, 1);
    cr_assert_eq(do_close(f.io, file), 0);
    cr_assert_eq(io_fault_count(f.io, IO_WRITE), 1);
    cr_assert_eq(io_fault_bytes(f.io, IO_WRITE), 65536);
    cr_assert_eq(io_fault_count(f.io, IO_FLUSH), 1);
    end(&f);
}

each_backend(fault, fails_the_nth_once_or_from_then_on)
{
    struct fixture f = begin_faulty(*backend);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    io_fault_set(f.io, IO_WRITE, &(struct fault){.action = FAULT_FAIL_BEFORE, .error = ENOSPC, .nth = 2});
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 4096), 4096);
    cr_assert_eq(do_write(f.io, file, f.buffer, 4096, 4096), -ENOSPC);
    cr_assert_eq(size_of_file(f.io, file), 4096, "it did not reach the disk");
    cr_assert_eq(do_write(f.io, file, f.buffer, 4096, 4096), 4096);
    io_fault_set(f.io, IO_FLUSH,
                 &(struct fault){.action = FAULT_FAIL_AFTER, .error = EIO, .nth = 1, .from_then_on = true});
    cr_assert_eq(do_flush(f.io, file), -EIO);
    cr_assert_eq(do_flush(f.io, file), -EIO);
    io_fault_clear(f.io, IO_FLUSH);
    cr_assert_eq(do_flush(f.io, file), 0);
    end(&f);
}

each_backend(fault, makes_writes_and_reads_come_short)
{
    struct fixture f = begin_faulty(*backend);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    io_fault_set(f.io, IO_WRITE, &(struct fault){.action = FAULT_SHORT, .bytes = 4096, .nth = 1});
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 4096);
    cr_assert_eq(size_of_file(f.io, file), 4096);
    io_fault_set(f.io, IO_WRITE, &(struct fault){.action = FAULT_SHORT, .bytes = 0, .nth = 1});
    cr_assert_eq(do_write(f.io, file, f.buffer, 4096, 65536), 0);
    cr_assert_eq(size_of_file(f.io, file), 4096);
    io_fault_set(f.io, IO_READ, &(struct fault){.action = FAULT_SHORT, .bytes = 4096, .nth = 1});
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    cr_assert_eq(do_read(f.io, file, f.buffer, 0, 65536), 4096);
    end(&f);
}

each_backend(fault, can_tell_background_work_from_the_rest)
{
    struct fixture f = begin_faulty(*backend);
    struct io_op op = {.kind = IO_WRITE, .background = true, .buffer = f.buffer, .length = 4096};
    cr_assert_eq(do_create(f.io, "a", 0, &op.file), 0);
    io_fault_set(
        f.io, IO_WRITE,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = 1, .only_background = true});
    cr_assert_eq(do_write(f.io, op.file, f.buffer, 0, 4096), 4096);
    cr_assert_eq(io_run(f.io, &op), -EIO);
    io_fault_set(
        f.io, IO_WRITE,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = 1, .only_foreground = true});
    cr_assert_eq(io_run(f.io, &op), 4096);
    cr_assert_eq(do_write(f.io, op.file, f.buffer, 0, 4096), -EIO);
    end(&f);
}

static unsigned completed;

static void count_completed(struct io_op *op)
{
    (void)op;
    completed++;
}

each_backend(fault, holds_completions_back_until_they_are_released)
{
    struct fixture f = begin_faulty(*backend);
    struct io_file *file;
    struct io_op ops[3];
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    io_fault_hold(f.io, IO_WRITE, true);
    for (size_t i = 0; i < array_count(ops); i++) {
        ops[i] = (struct io_op){.kind = IO_WRITE,
                                .file = file,
                                .buffer = f.buffer,
                                .offset = i * 4096,
                                .length = 4096,
                                .done = count_completed};
        io_submit(f.io, &ops[i]);
    }
    io_kick(f.io);
    while (io_fault_held(f.io, IO_WRITE) < array_count(ops))
        cr_assert_eq(io_wait(f.io, 10000000), 0);
    cr_assert_eq(completed, 0);
    cr_assert_eq(f.io->inflight, 3);
    cr_assert_eq(io_fault_release(f.io, IO_WRITE, 1), 1);
    cr_assert_eq(io_wait(f.io, -1), 1);
    cr_assert_eq(completed, 1);
    io_fault_hold(f.io, IO_WRITE, false);
    cr_assert_eq(do_write(f.io, file, f.buffer, 1 << 20, 4096), 4096,
                 "one that is not held passes those that are");
    cr_assert_eq(io_fault_release(f.io, IO_WRITE, 10), 2);
    cr_assert_eq(io_wait(f.io, 0), 2);
    cr_assert_eq(f.io->inflight, 0);
    end(&f);
}
