/* Errors of the disk and of the system: each branch provoked for real. */
#include "support.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---------------------------------------------------------------------------------- full disk, size limit */

each_backend(errors, g9_a_full_disk_is_an_error_and_heals)
{
    char *folder = folder_make_small(1 << 20);
    struct io *io = io_make(folder, *backend, -1);
    uint8_t *buffer = buffer_make();
    struct io_file *file, *more;
    cr_assert_eq(do_create(io, "a", IO_FILE_BUFFERED, &file), 0);
    cr_assert_eq(do_allocate(io, file, 4 << 20), -ENOSPC);
    int64_t result = do_write(io, file, buffer, 0, BUFFER_BYTES);
    cr_assert(result == -ENOSPC || (result > 0 && result < BUFFER_BYTES), "got %lld", (long long)result);
    if (result > 0)
        cr_assert_eq(do_write(io, file, buffer, (uint64_t)result, BUFFER_BYTES - (uint64_t)result), -ENOSPC);
    cr_assert_eq(do_truncate(io, file, 0), 0);
    cr_assert_eq(do_write(io, file, buffer, 0, 4096), 4096);
    cr_assert_eq(do_flush(io, file), 0, "no space before a write touched anything is not final");
    cr_assert_eq(do_create(io, "b", 0, &more), 0);
    cr_assert_lt(io->functions->space_free(io), 1 << 20);
    io_end(io);
    free(buffer);
    folder_remove_small(folder);
}

struct limited {
    struct io *io;
    struct io_file *file;
    uint8_t *buffer;
    int backend;
};

static int write_beyond_limit(void *context)
{
    const struct limited *l = context;
    struct rlimit limit = {.rlim_cur = 65536, .rlim_max = 65536};
    char *folder = folder_make();
    struct io *io = io_make(folder, l->backend, -1);
    struct io_file *file;
    on_signal_do(SIGXFSZ, SIG_IGN);
    if (do_create(io, "a", 0, &file) != 0 || setrlimit(RLIMIT_FSIZE, &limit) != 0)
        return 1;
    int64_t across = do_write(io, file, l->buffer, 32768, 65536);
    if (l->backend == IO_BACKEND_MMAP ? across != -EFBIG : across != 32768)
        return 2; /* a mapped file is allocated before: it cannot come short */
    if (do_write(io, file, l->buffer, 65536, 4096) != -EFBIG)
        return 3;
    if (do_write(io, file, l->buffer, 0, 4096) != 4096 || do_flush(io, file) != 0)
        return 4;
    if (do_allocate(io, file, 1 << 20) != -EFBIG)
        return 5;
    io_end(io);
    folder_remove(folder);
    return 0;
}

each_backend(errors, g8_a_short_write_is_returned_as_it_is)
{
    struct fixture f = begin(*backend); /* skips where there is no such back end */
    end(&f);                            /* the child must not begin with a copy of a thread's locks */
    struct limited limited = {.backend = *backend, .buffer = buffer_make()};
    cr_assert_eq(in_child(write_beyond_limit, &limited), 0);
    free(limited.buffer);
}

each_backend(errors, a_file_that_cannot_be_made_says_why)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    struct rlimit before, none = {.rlim_cur = 3}; /* all taken */
    getrlimit(RLIMIT_NOFILE, &before);
    none.rlim_max = before.rlim_max;
    setrlimit(RLIMIT_NOFILE, &none);
    int64_t created = do_create(f.io, "a", 0, &file), pid = 0;
    int claimed = f.io->functions->claim(f.io, "store", &pid);
    struct io_entry *entries;
    size_t count;
    int listed = f.io->functions->list(f.io, &entries, &count);
    setrlimit(RLIMIT_NOFILE, &before);
    cr_assert_eq(created, -EMFILE);
    cr_assert_eq(claimed, -EMFILE);
    cr_assert_eq(listed, -EMFILE);
    char too_long[300];
    memset(too_long, 'n', sizeof too_long - 1);
    too_long[sizeof too_long - 1] = 0;
    cr_assert_eq(do_create(f.io, too_long, 0, &file), -ENAMETOOLONG);
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    end(&f);
}

each_backend(errors, a_folder_that_is_no_longer_there_is_an_error)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert_eq(rmdir(f.folder), 0);
    cr_assert_eq(do_create(f.io, "a", 0, &file), -ENOENT);
    end(&f);
}

Test(errors, no_descriptors_left_is_said_and_is_no_reason_to_fall_back, .timeout = 60)
{
    char *folder = folder_make();
    struct io_real_options options = {.folder = folder, .watch_fd = -1, .allow_direct = true};
    for (int spare = 0; spare < 12; spare++) {
        struct rlimit before, few;
        getrlimit(RLIMIT_NOFILE, &before);
        few = before;
        few.rlim_cur = (rlim_t)(open_files() - 3 + spare); /* less ".", ".." and the one that counts */
        int open_before = open_files();
        setrlimit(RLIMIT_NOFILE, &few);
        struct io *io = NULL;
        struct error err = {0};
        char reason[128];
        int result = io_real_create(&options, &io, reason, &err);
        setrlimit(RLIMIT_NOFILE, &before);
        if (result == 0) {
            cr_assert_gt(spare, 0);
            io_end(io);
        } else {
            cr_assert_eq(result, -EMFILE, "spare %d: %s", spare, err.text);
            cr_assert_neq(err.text[0], 0);
        }
        cr_assert_eq(open_files(), open_before, "spare %d", spare);
    }
    folder_remove(folder);
}

/* ----------------------------------------------------------------------------------- refused system calls */

static void expect_fallback(const char *words)
{
    char *folder = folder_make();
    struct io_real_options options = {.folder = folder, .watch_fd = -1, .allow_direct = true};
    struct io *io = NULL;
    struct error err = {0};
    char reason[128];
    int before = open_files();
    options.backend = IO_BACKEND_URING;
    cr_assert_eq(io_real_create(&options, &io, reason, &err), -EOPNOTSUPP);
    cr_assert_null(io);
    cr_assert_eq(open_files(), before);
    cr_assert_not_null(strstr(err.text, words), "%s", err.text);
    cr_assert_not_null(strstr(err.text, "--io=auto"), "%s", err.text);
    options.backend = 0;
    cr_assert_eq(io_real_create(&options, &io, reason, &err), 0);
    cr_assert_eq(io->backend, IO_BACKEND_PWRITE);
    cr_assert_not_null(strstr(reason, words), "%s", reason);
    uint8_t *buffer = buffer_make();
    struct io_file *file;
    cr_assert_eq(do_create(io, "a", 0, &file), 0);
    cr_assert_eq(do_write(io, file, buffer, 0, 65536), 65536);
    cr_assert_eq(do_flush(io, file), 0);
    io_end(io);
    free(buffer);
    folder_remove(folder);
}

Test(refused, io_uring_by_a_filter_falls_back_to_pwrite, .timeout = 60)
{
    refuse_call(SYS_io_uring_setup, EPERM);
    expect_fallback("refused");
}

Test(refused, io_uring_that_is_not_there_falls_back_to_pwrite, .timeout = 60)
{
    refuse_call(SYS_io_uring_setup, ENOSYS);
    expect_fallback("no io_uring");
}

Test(refused, io_uring_without_memory_falls_back_to_pwrite, .timeout = 60)
{
    refuse_call(SYS_io_uring_setup, ENOMEM);
    expect_fallback("ulimit -l");
}

Test(refused, io_uring_that_does_no_write_falls_back_to_pwrite, .timeout = 60)
{
    refuse_call(SYS_io_uring_enter, EPERM);
    expect_fallback("a write through io_uring");
}

Test(refused, nothing_refused_means_no_reason, .timeout = 60)
{
    struct fixture f = begin(IO_BACKEND_URING); /* skips where there is none */
    end(&f);
    char *folder = folder_make();
    struct io_real_options options = {.folder = folder, .watch_fd = -1, .allow_direct = true};
    struct io *io = NULL;
    char reason[128] = "?";
    cr_assert_eq(io_real_create(&options, &io, reason, NULL), 0);
    cr_assert_eq(io->backend, IO_BACKEND_URING);
    cr_assert_eq(reason[0], 0);
    io_end(io);
    folder_remove(folder);
}

Test(refused, a_durable_write_without_the_flag_is_a_write_and_a_flush, .timeout = 60)
{
    struct fixture f = begin(IO_BACKEND_PWRITE);
    end(&f);
    refuse_call(SYS_pwritev2, EOPNOTSUPP);
    f = begin(IO_BACKEND_PWRITE);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_write_durable(f.io, file, f.buffer, 0, 65536), 65536);
    end(&f);
    refuse_call(SYS_fdatasync, EIO);
    f = begin(IO_BACKEND_PWRITE);
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_write_durable(f.io, file, f.buffer, 0, 65536), -EIO);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    cr_assert_eq(do_flush(f.io, file), -EIO);
    end(&f);
}

static void without_call(long number, int error, int backend, int64_t (*work)(struct fixture *f),
                         int64_t expected)
{
    refuse_call(number, error);
    struct fixture f = begin(backend);
    cr_assert_eq(work(&f), expected);
    end(&f);
}

static int64_t try_write(struct fixture *f)
{
    struct io_file *file;
    return do_create(f->io, "a", 0, &file) == 0 ? do_write(f->io, file, f->buffer, 0, 4096) : 1;
}

static int64_t try_allocate(struct fixture *f)
{
    struct io_file *file;
    return do_create(f->io, "a", 0, &file) == 0 ? do_allocate(f->io, file, 4096) : 1;
}

static int64_t try_lock_at_create(struct fixture *f)
{
    struct io_file *file;
    int64_t result = do_create(f->io, "a", 0, &file);
    return access(path_in(f->folder, "a"), F_OK) == 0 ? 1 : result; /* nothing is left behind */
}

Test(refused, a_failed_write_is_its_errno, .timeout = 60)
{
    without_call(SYS_pwrite64, EIO, IO_BACKEND_PWRITE, try_write, -EIO);
}

Test(refused, a_failed_allocation_is_its_errno, .timeout = 60)
{
    without_call(SYS_fallocate, EOPNOTSUPP, IO_BACKEND_PWRITE, try_allocate, -EOPNOTSUPP);
}

Test(refused, a_file_that_cannot_be_locked_is_not_created, .timeout = 60)
{
    without_call(SYS_flock, ENOLCK, IO_BACKEND_PWRITE, try_lock_at_create, -ENOLCK);
}

Test(refused, a_file_system_without_direct_io_is_used_through_the_page_cache, .timeout = 60)
{
    char *folder = folder_make();
    struct io_real_options options = {.folder = folder, .backend = IO_BACKEND_PWRITE, .watch_fd = -1};
    struct io *io = NULL;
    cr_assert_eq(io_real_create(&options, &io, NULL, NULL), 0);
    cr_assert_eq(io->logical_block, (uint32_t)sysconf(_SC_PAGESIZE));
    cr_assert_eq(io->align, (uint32_t)sysconf(_SC_PAGESIZE));
    uint8_t *buffer = buffer_make();
    struct io_file *file;
    cr_assert_eq(do_create(io, "a", 0, &file), 0);
    cr_assert_eq(io->functions->file_align(io, file), io->align);
    cr_assert_eq(do_write(io, file, buffer, 0, 65536), 65536);
    io_end(io);
    free(buffer);
    folder_remove(folder);
}

/* ---------------------------------------------------------------------------------------- mmap and SIGBUS */

Test(mmap, g10_a_bus_error_is_an_error_and_final, .timeout = 60)
{
    char *folder = folder_make_small(1 << 20);
    struct io *io = io_make(folder, IO_BACKEND_MMAP, -1);
    uint8_t *buffer = buffer_make();
    struct io_file *file, *other;
    cr_assert_eq(do_create(io, "a", 0, &file), 0);
    cr_assert_eq(do_truncate(io, file, 8 << 20), 0); /* sparse: the pages are not to be had */
    cr_assert_eq(do_write(io, file, buffer, 0, 4096), 4096);
    cr_assert_eq(do_flush(io, file), 0);
    cr_assert_eq(do_write(io, file, buffer, 4096, BUFFER_BYTES), -EIO);
    cr_assert_eq(do_flush(io, file), -EIO);
    cr_assert_eq(do_flush(io, file), -EIO, "and stays so");
    cr_assert_eq(do_truncate(io, file, 4096), 0);
    cr_assert_eq(do_create(io, "b", IO_FILE_BUFFERED, &other), 0);
    cr_assert_eq(do_flush(io, other), -EIO, "for every file");
    cr_assert_eq(do_write_durable(io, other, buffer, 0, 100), -EIO);
    cr_assert_eq(do_read(io, file, buffer, 0, 4096), 4096, "reads go on");
    io_end(io);
    free(buffer);
    folder_remove_small(folder);
}

Test(mmap, g10_a_failed_flush_is_final, .timeout = 60)
{
    refuse_call(SYS_msync, EIO);
    struct fixture f = begin(IO_BACKEND_MMAP);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_flush(f.io, file), 0, "there is nothing to sync yet");
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 4096), 4096);
    cr_assert_eq(do_flush(f.io, file), -EIO);
    cr_assert_eq(do_flush(f.io, file), -EIO, "although nothing is dirty any more");
    end(&f);
}

Test(mmap, a_mapping_that_is_refused_is_an_error, .timeout = 60)
{
    refuse_call(SYS_mremap, ENOMEM);
    struct fixture f = begin(IO_BACKEND_MMAP);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 4096), 4096);
    cr_assert_eq(do_truncate(f.io, file, 1 << 20), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 65536, 4096), -ENOMEM);
    cr_assert_eq(do_read(f.io, file, f.buffer, 65536, 4096), -ENOMEM);
    cr_assert_eq(do_read(f.io, file, f.buffer, 0, 4096), 4096, "what is mapped stays so");
    cr_assert_eq(do_flush(f.io, file), 0);
    end(&f);
}

Test(mmap, follows_a_file_that_grows_and_is_cut_behind_its_back, .timeout = 60)
{
    struct fixture f = begin(IO_BACKEND_MMAP);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 1 << 20), 1 << 20);
    cr_assert_eq(truncate(path_in(f.folder, "a"), 65536), 0);
    cr_assert_eq(do_read(f.io, file, f.buffer, 0, 1 << 20), 65536);
    cr_assert_eq(do_read(f.io, file, f.buffer, 65536, 4096), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 1 << 20, 1 << 20), 1 << 20);
    cr_assert_eq(size_of_file(f.io, file), 2 << 20);
    cr_assert_eq(do_flush(f.io, file), 0);
    end(&f);
}

/* Touches a page behind the end of a file, outside any copy of the back end. */
static void touch_a_hole(const char *folder)
{
    int fd = open(path_in(folder, "hole"), O_RDWR | O_CREAT, 0600);
    /* lint-allow: volatile, the access itself is the point */
    volatile uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    page[0] = 1;
}

static void leave_with_7(int number)
{
    (void)number;
    _exit(7);
}

static int bus_error_of_our_own(void *context)
{
    struct io *io = io_make(context, IO_BACKEND_MMAP, -1);
    touch_a_hole(context);
    io_end(io);
    return 0;
}

static int bus_error_with_a_handler(void *context)
{
    on_signal_do(SIGBUS, leave_with_7);
    return bus_error_of_our_own(context);
}

static int bus_error_after_the_back_end(void *context)
{
    on_signal_do(SIGBUS, leave_with_7);
    struct io *one = io_make(context, IO_BACKEND_MMAP, -1), *two = io_make(context, IO_BACKEND_MMAP, -1);
    io_end(one);
    io_end(two);
    struct sigaction now;
    sigaction(SIGBUS, NULL, &now);
    return now.sa_handler == leave_with_7 ? 0 : 1;
}

Test(mmap, a_bus_error_of_somebody_else_goes_where_it_went_before, .timeout = 60)
{
    char *folder = folder_make();
    on_signal_do(SIGBUS, SIG_DFL);
    cr_assert_eq(in_child(bus_error_of_our_own, folder), 128 + SIGBUS);
    cr_assert_eq(in_child(bus_error_with_a_handler, folder), 7);
    cr_assert_eq(in_child(bus_error_after_the_back_end, folder), 0);
    folder_remove(folder);
}
