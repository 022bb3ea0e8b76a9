/* The two locks: flock on data files, which outlives a killed process while its I/O is in flight, and the
 * claim, which does not. */
#include "support.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void tell(int fd)
{
    ssize_t n = write(fd, "x", 1);
    (void)n;
}

static bool hear(int fd)
{
    char byte;
    return read(fd, &byte, 1) == 1;
}

each_backend(locks, a_file_another_process_has_locked_is_refused)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    int ready[2];
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_close(f.io, file), 0);
    cr_assert_eq(pipe(ready), 0);
    pid_t child = fork_child();
    if (child == 0) {
        int fd = open(path_in(f.folder, "a"), O_RDWR);
        if (flock(fd, LOCK_EX | LOCK_NB) == 0)
            tell(ready[1]);
        pause();
    }
    cr_assert(hear(ready[0]));
    cr_assert_eq(do_open(f.io, "a", 0, &file), 0);
    cr_assert_eq(f.io->functions->lock(f.io, file), -EWOULDBLOCK);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    cr_assert_eq(f.io->functions->lock(f.io, file), 0);
    end(&f);
}

each_backend(locks, a_new_file_is_locked_and_close_gives_the_lock_up)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    int fd = open(path_in(f.folder, "a"), O_RDWR | O_CLOEXEC);
    cr_assert_neq(flock(fd, LOCK_EX | LOCK_NB), 0);
    cr_assert_eq(errno, EWOULDBLOCK);
    cr_assert_eq(do_close(f.io, file), 0);
    cr_assert_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
    close(fd);
    end(&f);
}

/* As a predecessor and its successor do, both by the seam. */
each_backend(locks, g11_a_file_that_one_io_has_locked_is_refused_to_another)
{
    struct fixture f = begin(*backend);
    struct io *other = io_make(f.folder, *backend, -1);
    struct io_file *file, *theirs;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_open(other, "a", 0, &theirs), 0);
    cr_assert_eq(other->functions->lock(other, theirs), -EWOULDBLOCK);
    cr_assert_eq(do_close(f.io, file), 0);
    cr_assert_eq(other->functions->lock(other, theirs), 0);
    cr_assert_eq(do_open(f.io, "a", 0, &file), 0);
    cr_assert_eq(f.io->functions->lock(f.io, file), -EWOULDBLOCK);
    io_end(other);
    end(&f);
}

/* ---------------------------------------------------------------------------------------------------- G11 */

#define SPAN   (32u << 20)
#define PIECE  (1u << 20)
#define FLYING 16u

struct flood {
    struct io *io;
    struct io_op ops[FLYING];
    uint8_t *buffer;
    uint64_t next, done;
    int ready;
};

static void flood_next(struct io_op *op)
{
    struct flood *flood = op->owner;
    op->offset = flood->next % SPAN;
    flood->next += PIECE;
    if (++flood->done == FLYING)
        tell(flood->ready);
    io_submit(flood->io, op);
}

/* Writes durably, over and over, many at once, each buffer with a new content, until killed. */
static void flood_for_ever(const char *folder, int backend, int ready)
{
    struct flood flood = {.io = io_make(folder, backend, -1), .ready = ready, .buffer = buffer_make()};
    struct io_file *file;
    if (do_open(flood.io, "a", 0, &file) != 0 || flood.io->functions->lock(flood.io, file) != 0)
        _exit(1);
    for (unsigned i = 0; i < FLYING; i++) {
        flood.ops[i] = (struct io_op){.kind = IO_WRITE,
                                      .durable = true,
                                      .file = file,
                                      .buffer = flood.buffer,
                                      .offset = flood.next,
                                      .length = PIECE,
                                      .done = flood_next,
                                      .owner = &flood};
        flood.next += PIECE;
        io_submit(flood.io, &flood.ops[i]);
    }
    for (uint64_t round = 0;; round++) {
        for (size_t at = 0; at < PIECE; at += 4096)
            memcpy(flood.buffer + at, &round, sizeof round);
        io_wait(flood.io, -1);
    }
}

each_backend(locks, g11_a_killed_process_keeps_its_lock_until_its_writes_have_landed)
{
    struct fixture f = begin(*backend);
    struct io_file *file;
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_allocate(f.io, file, SPAN), 0);
    cr_assert_eq(do_close(f.io, file), 0);
    cr_assert_eq(do_open(f.io, "a", 0, &file), 0);
    uint8_t *first = aligned_alloc(4096, SPAN), *second = aligned_alloc(4096, SPAN);
    for (int round = 0; round < 5; round++) {
        int ready[2];
        cr_assert_eq(pipe(ready), 0);
        pid_t child = fork_child();
        if (child == 0)
            flood_for_ever(f.folder, *backend, ready[1]);
        close(ready[1]);
        cr_assert(hear(ready[0]), "the writing child did not get going");
        close(ready[0]);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        int64_t deadline = io_now(f.io) + 30 * SECOND;
        int locked;
        while ((locked = f.io->functions->lock(f.io, file)) == -EWOULDBLOCK && io_now(f.io) < deadline)
            f.io->functions->sleep(f.io, 100000);
        cr_assert_eq(locked, 0);
        for (uint64_t at = 0; at < SPAN; at += PIECE)
            cr_assert_eq(do_read(f.io, file, first + at, at, PIECE), PIECE);
        for (uint64_t at = 0; at < SPAN; at += PIECE)
            cr_assert_eq(do_read(f.io, file, second + at, at, PIECE), PIECE);
        cr_assert_eq(memcmp(first, second, SPAN), 0, "a write landed after the lock was free");
        cr_assert_eq(do_close(f.io, file), 0);
        cr_assert_eq(do_open(f.io, "a", 0, &file), 0);
    }
    free(first);
    free(second);
    end(&f);
}

/* ---------------------------------------------------------------------------------------------- the claim */

each_backend(locks, g11_a_claim_names_its_living_holder_and_is_free_after_its_death)
{
    struct fixture f = begin(*backend);
    int ready[2];
    int64_t pid = -1;
    cr_assert_eq(pipe(ready), 0);
    pid_t child = fork_child();
    if (child == 0) {
        struct io *io = io_make(f.folder, IO_BACKEND_PWRITE, -1);
        if (io->functions->claim(io, "store", &pid) == 0)
            tell(ready[1]);
        pause();
    }
    cr_assert(hear(ready[0]));
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(f.io->functions->claim(f.io, "store", &pid), -EWOULDBLOCK);
        cr_assert_eq(pid, child);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    cr_assert_eq(f.io->functions->claim(f.io, "store", &pid), 0);
    end(&f);
}

static int try_claim(void *context)
{
    struct io *io = io_make(context, IO_BACKEND_PWRITE, -1);
    int64_t pid = -1;
    int result = io->functions->claim(io, "store", &pid);
    return result == -EWOULDBLOCK && pid == getppid() ? 0 : 1;
}

each_backend(locks, a_claim_outlasts_everything_else_the_process_does)
{
    struct fixture f = begin(*backend);
    int64_t pid;
    struct io_file *file;
    struct io_entry *entries;
    size_t count;
    cr_assert_eq(f.io->functions->claim(f.io, "store", &pid), 0);
    cr_assert_eq(f.io->functions->list(f.io, &entries, &count), 0);
    free(entries);
    cr_assert_eq(do_create(f.io, "a", 0, &file), 0);
    cr_assert_eq(do_close(f.io, file), 0);
    cr_assert_eq(in_child(try_claim, f.folder), 0);
    end(&f);
}

Test(locks, a_claim_on_what_is_no_file_is_refused, .timeout = 60)
{
    struct fixture f = begin(IO_BACKEND_PWRITE);
    int64_t pid;
    cr_assert_eq(symlink("elsewhere", path_in(f.folder, "store")), 0);
    cr_assert_eq(f.io->functions->claim(f.io, "store", &pid), -ELOOP);
    cr_assert_eq(mkfifo(path_in(f.folder, "pipe"), 0600), 0);
    cr_assert_eq(f.io->functions->claim(f.io, "pipe", &pid), -EINVAL);
    end(&f);
}
