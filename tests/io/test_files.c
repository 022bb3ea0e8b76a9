/* Files of the store folder, the same on every back end. */
#include "support.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

each_backend(files, reads_back_what_was_written)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_allocate(f.io, file, 4 << 20), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 65536, 1 << 20), 1 << 20);
    uint8_t *back = buffer_make();
    memset(back, 0, BUFFER_BYTES);
    cr_assert_eq(do_read(f.io, file, back, 65536, 1 << 20), 1 << 20);
    cr_assert_eq(memcmp(back, f.buffer, 1 << 20), 0);
    cr_assert_eq(do_read(f.io, file, back, 0, 65536), 65536);
    for (int i = 0; i < 65536; i++)
        cr_assert_eq(back[i], 0);
    free(back);
    end(&f);
}

each_backend(files, reads_back_through_another_descriptor_after_a_flush)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_allocate(f.io, file, 1 << 20), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    cr_assert_eq(do_flush(f.io, file), 0);
    cr_assert_eq(do_write_durable(f.io, file, f.buffer + 65536, 65536, 65536), 65536);
    int fd = open(path_in(f.folder, "a"), O_RDONLY);
    uint8_t *back = calloc(1, 131072);
    cr_assert_eq(read(fd, back, 131072), 131072);
    cr_assert_eq(memcmp(back, f.buffer, 131072), 0);
    close(fd);
    free(back);
    end(&f);
}

each_backend(files, reads_short_at_the_end_of_a_file_and_nothing_behind_it)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_allocate(f.io, file, 65536), 0);
    cr_assert_eq(do_read(f.io, file, f.buffer, 32768, 65536), 32768);
    cr_assert_eq(do_read(f.io, file, f.buffer, 65536, 65536), 0);
    cr_assert_eq(do_read(f.io, file, f.buffer, 1 << 20, 65536), 0);
    end(&f);
}

each_backend(files, a_write_beyond_the_end_makes_the_file_longer)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", IO_FILE_BUFFERED, &file), 0);
    cr_assert_eq(f.io->functions->file_align(f.io, file), 1);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 1001), 1001);
    cr_assert_eq(do_write(f.io, file, f.buffer + 1001, 1001, 70000), 70000);
    cr_assert_eq(size_of_file(f.io, file), 71001);
    cr_assert_eq(do_flush(f.io, file), 0);
    uint8_t *back = buffer_make();
    memset(back, 0, BUFFER_BYTES);
    cr_assert_eq(do_read(f.io, file, back, 0, BUFFER_BYTES), 71001);
    cr_assert_eq(memcmp(back, f.buffer, 71001), 0);
    free(back);
    end(&f);
}

each_backend(files, allocate_and_truncate_set_the_size)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    struct stat facts;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(size_of_file(f.io, file), 0);
    cr_assert_eq(do_allocate(f.io, file, 1 << 20), 0);
    cr_assert_eq(size_of_file(f.io, file), 1 << 20);
    cr_assert_eq(stat(path_in(f.folder, "a"), &facts), 0);
    cr_assert_geq(facts.st_blocks * 512, 1 << 20, "allocated, not sparse");
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 1 << 20), 1 << 20);
    cr_assert_eq(do_truncate(f.io, file, 65536), 0);
    cr_assert_eq(size_of_file(f.io, file), 65536);
    cr_assert_eq(do_read(f.io, file, f.buffer, 0, 1 << 20), 65536);
    cr_assert_eq(do_allocate(f.io, file, 32768), 0);
    cr_assert_eq(size_of_file(f.io, file), 32768,
                 "the size becomes what is allocated, also when that is less");
    end(&f);
}

each_backend(files, create_refuses_an_existing_name)
{
    struct fixture f = begin(*backend);
    struct io_file *file, *other;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_create(f.io, "a", 0, &other), -EEXIST);
    cr_assert_null(other);
    struct stat facts;
    cr_assert_eq(stat(path_in(f.folder, "a"), &facts), 0);
    cr_assert_eq(facts.st_mode & 07777, 0600);
    end(&f);
}

each_backend(files, open_says_what_is_missing_or_no_file)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert_eq(do_open(f.io, "none", 0, &file), -ENOENT);
    cr_assert_null(file);
    cr_assert_eq(symlink("elsewhere", path_in(f.folder, "link")), 0);
    cr_assert_eq(do_open(f.io, "link", 0, &file), -ELOOP);
    cr_assert_eq(mkfifo(path_in(f.folder, "pipe"), 0600), 0);
    cr_assert_eq(do_open(f.io, "pipe", IO_FILE_READ_ONLY, &file), -EINVAL, "and does not wait for a writer");
    cr_assert_eq(mkdir(path_in(f.folder, "folder"), 0700), 0);
    cr_assert_eq(do_open(f.io, "folder", IO_FILE_READ_ONLY, &file), -EINVAL);
    cr_assert_eq(do_open(f.io, "folder", 0, &file), -EISDIR);
    end(&f);
}

each_backend(files, a_read_only_file_takes_no_writes)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    cr_assert_eq(do_close(f.io, file), 0);
    cr_assert_eq(do_open(f.io, "a", IO_FILE_READ_ONLY, &file), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), -EBADF);
    uint8_t *back = buffer_make();
    memset(back, 0, 65536);
    cr_assert_eq(do_read(f.io, file, back, 0, 65536), 65536);
    cr_assert_eq(memcmp(back, f.buffer, 65536), 0);
    free(back);
    end(&f);
}

each_backend(files, rename_replaces_and_unlink_removes)
{
    struct fixture f = begin(*backend);
    struct io_file *a, *b;
    cr_assert_eq(do_create(f.io, "a", IO_FILE_BUFFERED, &a), 0);
    cr_assert_eq(do_write(f.io, a, "new", 0, 3), 3);
    cr_assert_eq(do_create(f.io, "b", IO_FILE_BUFFERED, &b), 0);
    cr_assert_eq(do_write(f.io, b, "older", 0, 5), 5);
    cr_assert_eq(do_rename(f.io, "a", "b"), 0);
    cr_assert_eq(do_sync_directory(f.io), 0);
    cr_assert_neq(access(path_in(f.folder, "a"), F_OK), 0);
    cr_assert_eq(do_close(f.io, b), 0);
    cr_assert_eq(do_open(f.io, "b", IO_FILE_BUFFERED, &b), 0);
    cr_assert_eq(size_of_file(f.io, b), 3);
    cr_assert_eq(do_rename(f.io, "none", "b"), -ENOENT);
    cr_assert_eq(do_unlink(f.io, "b"), 0);
    cr_assert_eq(do_unlink(f.io, "b"), -ENOENT);
    cr_assert_eq(do_sync_directory(f.io), 0);
    end(&f);
}

static const struct io_entry *find(const struct io_entry *entries, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(entries[i].name, name) == 0)
            return &entries[i];
    return NULL;
}

each_backend(files, list_shows_every_entry_with_size_and_kind)
{
    struct fixture f = begin(*backend);
    struct io_entry *entries;
    size_t count;
    cr_assert_eq(f.io->functions->list(f.io, &entries, &count), 0);
    cr_assert_eq(count, 0, "nothing is left behind by finding out what the disk can do");
    free(entries);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_allocate(f.io, file, 65536), 0);
    cr_assert_eq(mkdir(path_in(f.folder, "folder"), 0700), 0);
    char longest[256];
    memset(longest, 'n', 255);
    longest[255] = 0;
    cr_assert_eq(do_create(f.io, longest, 0, &file), 0);
    for (int i = 0; i < 200; i++) {
        char name[16];
        snprintf(name, sizeof name, "more-%d", i);
        cr_assert_eq(do_create(f.io, name, IO_FILE_BUFFERED, &file), 0);
        cr_assert_eq(do_close(f.io, file), 0);
    }
    cr_assert_eq(f.io->functions->list(f.io, &entries, &count), 0);
    cr_assert_eq(count, 203);
    const struct io_entry *a = find(entries, count, "a"), *folder = find(entries, count, "folder");
    cr_assert(a != NULL && a->regular && a->size == 65536);
    cr_assert(folder != NULL && !folder->regular);
    cr_assert_not_null(find(entries, count, longest));
    free(entries);
    end(&f);
}

/* --------------------------------------------------------------------------------------- many ops at once */

struct many {
    struct io_op op;
    unsigned done;
};

static unsigned done_total;

static void count_done(struct io_op *op)
{
    struct many *one = op->owner;
    one->done++;
    done_total++;
}

each_backend(files, takes_more_ops_at_once_than_a_ring_has_room_for)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    enum { COUNT = 5000 };
    struct many *many = calloc(COUNT, sizeof *many);
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_allocate(f.io, file, 1 << 20), 0);
    for (unsigned i = 0; i < COUNT; i++) {
        many[i].op = (struct io_op){.kind = IO_READ,
                                    .file = file,
                                    .buffer = f.buffer + i % 16 * 4096,
                                    .offset = i % 256 * 4096,
                                    .length = 4096,
                                    .background = i % 100 == 0,
                                    .done = count_done,
                                    .owner = &many[i]};
        io_submit(f.io, &many[i].op);
    }
    cr_assert_eq(done_total, 0, "submit never completes");
    cr_assert_eq(f.io->inflight, COUNT);
    io_kick(f.io);
    cr_assert_eq(done_total, 0, "nor does kick");
    unsigned reaped = 0;
    while (f.io->inflight > 0)
        reaped += (unsigned)io_wait(f.io, 30 * SECOND);
    cr_assert_eq(reaped, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        cr_assert_eq(many[i].done, 1);
        cr_assert_eq(many[i].op.result, 4096);
    }
    free(many);
    end(&f);
}

struct chain {
    struct io *io;
    struct io_op op;
    unsigned left;
};

static void submit_next(struct io_op *op)
{
    struct chain *chain = op->owner;
    if (op->result == (int64_t)op->length && --chain->left > 0) {
        op->offset += op->length;
        io_submit(chain->io, op);
    }
}

each_backend(files, a_done_may_submit_the_same_op_again)
{
    struct fixture f = begin(*backend);
    struct chain chain = {.io = f.io, .left = 50};
    cr_assert_eq(do_create(f.io, "a", 0, &chain.op.file), 0);
    cr_assert_eq(do_allocate(f.io, chain.op.file, 1 << 20), 0);
    chain.op.kind = IO_WRITE;
    chain.op.buffer = f.buffer;
    chain.op.length = 4096;
    chain.op.done = submit_next;
    chain.op.owner = &chain;
    io_submit(f.io, &chain.op);
    while (f.io->inflight > 0)
        io_wait(f.io, 30 * SECOND);
    cr_assert_eq(chain.left, 0);
    end(&f);
}

each_backend(files, background_work_is_done_in_the_helper_thread)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    struct io_op ops[] = {
        {.kind = IO_ALLOCATE, .background = true, .file = file, .length = 1 << 20},
        {.kind = IO_WRITE, .background = true, .file = file, .buffer = f.buffer, .length = 1 << 20},
        {.kind = IO_FLUSH, .background = true, .file = file},
        {.kind = IO_READ, .file = file, .buffer = f.buffer + (1 << 20), .length = 1 << 20},
    };
    int64_t expected[] = {0, 1 << 20, 0, 1 << 20};
    for (size_t i = 0; i < array_count(ops); i++)
        cr_assert_eq(io_run(f.io, &ops[i]), expected[i]);
    cr_assert_eq(memcmp(f.buffer, f.buffer + (1 << 20), 1 << 20), 0);
    end(&f);
}

/* ---------------------------------------------------------------------------------- facts, start and stop */

each_backend(files, knows_its_alignment)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert(is_power_of_two(f.io->logical_block) && is_power_of_two(f.io->align));
    cr_assert_geq(f.io->logical_block, 512);
    cr_assert_geq(f.io->align, 4096);
    cr_assert_geq(f.io->align, f.io->logical_block);
    cr_assert_eq(f.io->errors_are_final, *backend == IO_BACKEND_MMAP);
    cr_assert_str_eq(f.io->folder, f.folder);
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_leq(f.io->functions->file_align(f.io, file), f.io->align);
    uint32_t least = f.io->logical_block;
    cr_assert_eq(do_write(f.io, file, f.buffer + least, least, least), least, "the least alignment works");
    end(&f);
}

each_backend(files, gives_time_randomness_and_free_space)
{
    struct fixture f = begin(*backend);
    int64_t before = io_now(f.io);
    f.io->functions->sleep(f.io, 1000000);
    cr_assert_geq(io_now(f.io) - before, 1000000);
    cr_assert_gt(f.io->functions->wall(f.io), INT64_C(1600000000) * SECOND);
    uint8_t some[64] = {0}, other[64] = {0};
    cr_assert_eq(f.io->functions->random(f.io, some, sizeof some), 0);
    cr_assert_eq(f.io->functions->random(f.io, other, sizeof other), 0);
    cr_assert_neq(memcmp(some, other, sizeof some), 0);
    cr_assert_gt(f.io->functions->space_free(f.io), 0);
    end(&f);
}

each_backend(files, destroy_closes_every_descriptor)
{
    struct fixture f = begin(*backend); /* the first one also pays for what a process opens once */
    end(&f);
    int before = open_files();
    f = begin(*backend);
    struct io_file *file;
    int64_t pid;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_write(f.io, file, f.buffer, 0, 65536), 65536);
    cr_assert_eq(do_create(f.io, "b", IO_FILE_BUFFERED, &file), 0);
    cr_assert_eq(do_create(f.io, "b", 0, &file), -EEXIST);
    cr_assert_eq(do_open(f.io, "none", 0, &file), -ENOENT);
    cr_assert_eq(f.io->functions->claim(f.io, "claim", &pid), 0);
    end(&f);
    cr_assert_eq(open_files(), before);
}

each_backend(files, a_missing_folder_is_named)
{
    struct io_real_options options = {.folder = "/nonexistent/store", .backend = *backend, .watch_fd = -1};
    struct io *io = NULL;
    struct error err = {0};
    int before = open_files();
    cr_assert_eq(io_real_create(&options, &io, NULL, &err), -ENOENT);
    cr_assert_not_null(strstr(err.text, "/nonexistent/store"), "%s", err.text);
    cr_assert_null(io);
    cr_assert_eq(open_files(), before);
}

/* --------------------------------------------------------------------------------------- our own mistakes */

/* Each runs in a child, which must end by abort. */
#define own_mistake(name)                                                                                    \
    static int name(void *context);                                                                          \
    Test(mistakes, name, .timeout = 60)                                                                      \
    {                                                                                                        \
        char *folder = folder_make();                                                                        \
        cr_assert_eq(in_child(name, folder), 128 + SIGABRT);                                                 \
        folder_remove(folder);                                                                               \
    }                                                                                                        \
    static int name(void *context)

own_mistake(a_write_that_is_not_aligned_stops_the_program)
{
    struct io *io = io_make(context, IO_BACKEND_PWRITE, -1);
    struct io_file *file;
    return do_create(io, "a", 0, &file) == 0 ? (int)do_write(io, file, buffer_make(), 100, 4096) : 1;
}

own_mistake(a_name_with_a_slash_stops_the_program)
{
    struct io *io = io_make(context, IO_BACKEND_PWRITE, -1);
    struct io_file *file;
    return (int)do_create(io, "../a", 0, &file);
}

own_mistake(closing_a_file_with_an_op_in_flight_stops_the_program)
{
    struct io *io = io_make(context, IO_BACKEND_PWRITE, -1);
    struct many one = {.op = {.kind = IO_FLUSH, .done = count_done, .owner = &one}};
    if (do_create(io, "a", 0, &one.op.file) != 0)
        return 1;
    io_submit(io, &one.op);
    return (int)do_close(io, one.op.file);
}

own_mistake(opening_a_claimed_file_stops_the_program)
{
    struct io *io = io_make(context, IO_BACKEND_PWRITE, -1);
    struct io_file *file;
    int64_t pid;
    if (io->functions->claim(io, "store", &pid) != 0)
        return 1;
    return (int)do_open(io, "store", 0, &file);
}
