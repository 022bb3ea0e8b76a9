#include "support.h"

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------------------------ folders */

char *folder_make(void)
{
    const char *temporary = getenv("TMPDIR");
    char *folder = NULL;
    cr_assert(asprintf(&folder, "%s/walrus-io-XXXXXX", temporary != NULL ? temporary : "/tmp") > 0);
    cr_assert_not_null(mkdtemp(folder), "cannot make a scratch folder %s: %s", folder, strerror(errno));
    return folder;
}

static int remove_one(const char *path, const struct stat *facts, int kind, struct FTW *where)
{
    (void)facts;
    (void)kind;
    (void)where;
    return remove(path);
}

void folder_remove(char *folder)
{
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    free(folder);
}

const char *path_in(const char *folder, const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

char *folder_make_small(uint64_t bytes)
{
    char *folder = folder_make(), options[64];
    snprintf(options, sizeof options, "size=%llu", (unsigned long long)bytes);
    if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
        folder_remove(folder);
        cr_skip("SKIPPED: a mount namespace is refused here, and with it a small file system\n");
    }
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("walrus-test", folder, "tmpfs", 0, options) != 0) {
        folder_remove(folder);
        cr_skip("SKIPPED: mounting a tmpfs is refused here\n");
    }
    return folder;
}

void folder_remove_small(char *folder)
{
    umount2(folder, MNT_DETACH);
    folder_remove(folder);
}

/* ----------------------------------------------------------------------------------------------------- io */

struct io *io_make(const char *folder, int backend, int watch_fd)
{
    struct io_real_options options = {
        .folder = folder, .backend = backend, .watch_fd = watch_fd, .allow_direct = true};
    struct io *io = NULL;
    struct error err = {0};
    int result = io_real_create(&options, &io, NULL, &err);
    if (result == -EOPNOTSUPP && backend == IO_BACKEND_URING)
        cr_skip("SKIPPED: %s\n", err.text);
    cr_assert_eq(result, 0, "back end %d: %s", backend, err.text);
    cr_assert_eq(io->backend, backend);
    return io;
}

void io_end(struct io *io)
{
    io->functions->destroy(io);
}

uint8_t *buffer_make(void)
{
    void *buffer = NULL;
    cr_assert_eq(posix_memalign(&buffer, 65536, BUFFER_BYTES), 0);
    uint32_t word = 12345;
    for (uint32_t i = 0; i < BUFFER_BYTES / sizeof word; i++) {
        word = word * 1664525 + 1013904223;
        memcpy((uint8_t *)buffer + i * sizeof word, &word, sizeof word);
    }
    return buffer;
}

struct fixture begin(int backend)
{
    struct fixture fixture = {.folder = folder_make()};
    fixture.io = io_make(fixture.folder, backend, -1);
    fixture.buffer = buffer_make();
    return fixture;
}

void end(struct fixture *fixture)
{
    io_end(fixture->io);
    folder_remove(fixture->folder);
    free(fixture->buffer);
}

/* ---------------------------------------------------------------------------------------------------- ops */

int64_t do_create(struct io *io, const char *name, uint32_t flags, struct io_file **file)
{
    struct io_op op = {.kind = IO_CREATE, .name = name, .flags = flags};
    int64_t result = io_run(io, &op);
    *file = op.file;
    return result;
}

int64_t do_open(struct io *io, const char *name, uint32_t flags, struct io_file **file)
{
    struct io_op op = {.kind = IO_OPEN, .name = name, .flags = flags};
    int64_t result = io_run(io, &op);
    *file = op.file;
    return result;
}

static int64_t do_file(struct io *io, enum io_kind kind, struct io_file *file, uint64_t length)
{
    struct io_op op = {.kind = kind, .file = file, .length = length};
    return io_run(io, &op);
}

int64_t do_close(struct io *io, struct io_file *file)
{
    return do_file(io, IO_CLOSE, file, 0);
}

int64_t do_flush(struct io *io, struct io_file *file)
{
    return do_file(io, IO_FLUSH, file, 0);
}

int64_t do_allocate(struct io *io, struct io_file *file, uint64_t length)
{
    return do_file(io, IO_ALLOCATE, file, length);
}

int64_t do_truncate(struct io *io, struct io_file *file, uint64_t length)
{
    return do_file(io, IO_TRUNCATE, file, length);
}

static int64_t do_transfer(struct io *io, struct io_op op)
{
    return io_run(io, &op);
}

int64_t do_write(struct io *io, struct io_file *file, const void *buffer, uint64_t offset, uint64_t length)
{
    return do_transfer(io, (struct io_op){.kind = IO_WRITE,
                                          .file = file,
                                          .buffer = (void *)(uintptr_t)buffer,
                                          .offset = offset,
                                          .length = length});
}

int64_t do_write_durable(struct io *io, struct io_file *file, const void *buffer, uint64_t offset,
                         uint64_t length)
{
    return do_transfer(io, (struct io_op){.kind = IO_WRITE,
                                          .durable = true,
                                          .file = file,
                                          .buffer = (void *)(uintptr_t)buffer,
                                          .offset = offset,
                                          .length = length});
}

int64_t do_read(struct io *io, struct io_file *file, void *buffer, uint64_t offset, uint64_t length)
{
    return do_transfer(
        io,
        (struct io_op){.kind = IO_READ, .file = file, .buffer = buffer, .offset = offset, .length = length});
}

int64_t do_rename(struct io *io, const char *name, const char *new_name)
{
    struct io_op op = {.kind = IO_RENAME, .name = name, .new_name = new_name};
    return io_run(io, &op);
}

int64_t do_unlink(struct io *io, const char *name)
{
    struct io_op op = {.kind = IO_UNLINK, .name = name};
    return io_run(io, &op);
}

int64_t do_sync_directory(struct io *io)
{
    struct io_op op = {.kind = IO_SYNC_DIRECTORY};
    return io_run(io, &op);
}

uint64_t size_of_file(struct io *io, struct io_file *file)
{
    return io->functions->file_size(io, file);
}

/* ---------------------------------------------------------------------------------------------- processes */

pid_t fork_child(void)
{
    fflush(NULL);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return child;
}

int in_child(int (*body)(void *context), void *context)
{
    pid_t child = fork_child();
    if (child == 0)
        _exit(body(context));
    int status = 0;
    cr_assert_eq(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void refuse_call(long number, int error)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((uint32_t)error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = array_count(program), .filter = program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
        cr_skip("SKIPPED: seccomp filters are refused here\n");
}

void on_signal_do(int number, void (*handler)(int number))
{
    struct sigaction action = {.sa_handler = handler};
    cr_assert_eq(sigaction(number, &action, NULL), 0);
}

int open_files(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    cr_assert_not_null(directory);
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}
