/* race.c: a plain program for the thread sanitizer, which a Criterion suite cannot run under: keeps every
 * thread of the back ends busy at once and checks the results. Prints nothing when all is well. */
#include "../../broker/io/io.h"
#include "../../shared/message.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS  40
#define FILES   4u
#define PIECE   65536u
#define SIGNALS 16u

#define must(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                  \
            _exit(1);                                                                                        \
        }                                                                                                    \
    } while (0)

static unsigned done_count;

static void on_done(struct io_op *op)
{
    must(op->result == (int64_t)op->length || op->result == 0);
    done_count++;
}

static void submit(struct io *io, struct io_op *op, struct io_op like)
{
    *op = like;
    op->done = on_done;
    io_submit(io, op);
}

static void settle(struct io *io)
{
    io_kick(io);
    while (io->inflight > 0)
        io_wait(io, -1);
}

/* Creates, fills, reads and removes some files, all at once, while signals go out. */
static void one_round(struct io *io, uint8_t *buffer, struct io_signal *signals)
{
    struct io_op files[FILES], ops[FILES * 4];
    static char names[FILES][8];
    for (unsigned i = 0; i < FILES; i++) {
        snprintf(names[i], sizeof names[i], "f%u", i);
        submit(io, &files[i], (struct io_op){.kind = IO_CREATE, .name = names[i]});
    }
    settle(io);
    for (unsigned i = 0; i < FILES; i++) {
        struct io_file *file = files[i].file;
        struct io_op write = {.kind = IO_WRITE, .file = file, .buffer = buffer, .length = PIECE};
        submit(io, &ops[4 * i], write);
        write.offset = PIECE;
        write.durable = true;
        submit(io, &ops[4 * i + 1], write);
        submit(io, &ops[4 * i + 2], (struct io_op){.kind = IO_FLUSH, .file = file});
        submit(io, &ops[4 * i + 3], (struct io_op){.kind = IO_SYNC_DIRECTORY});
    }
    for (unsigned i = 0; i < SIGNALS; i++)
        io_signal_send(io, &signals[i]);
    io_kick(io);
    for (unsigned i = 0; i < SIGNALS; i += 2)
        io_signal_send(io, &signals[i]);
    settle(io);
    for (unsigned i = 0; i < FILES; i++)
        submit(io, &files[i], (struct io_op){.kind = IO_CLOSE, .file = files[i].file});
    settle(io);
    for (unsigned i = 0; i < FILES; i++)
        submit(io, &files[i], (struct io_op){.kind = IO_UNLINK, .name = names[i]});
    settle(io);
}

static int run(const char *folder, int backend)
{
    struct io_real_options options = {
        .folder = folder, .backend = backend, .watch_fd = eventfd(0, EFD_NONBLOCK), .allow_direct = true};
    struct io *io;
    struct error err;
    int result = io_real_create(&options, &io, NULL, &err);
    if (result == -EOPNOTSUPP && backend == IO_BACKEND_URING)
        return 77; /* meson: skipped */
    must(result == 0);
    void *buffer;
    must(posix_memalign(&buffer, 65536, PIECE) == 0);
    memset(buffer, 5, PIECE);
    struct io_signal signals[SIGNALS];
    for (unsigned i = 0; i < SIGNALS; i++)
        signals[i] = (struct io_signal){.fd = eventfd(i % 4 == 0 ? UINT32_MAX : 0, 0)};
    for (int round = 0; round < ROUNDS; round++)
        one_round(io, buffer, signals);
    for (unsigned i = 0; i < SIGNALS; i++) {
        io_signal_cancel(io, &signals[i]);
        while (signals[i].parked)
            io_wait(io, 1000000);
        close(signals[i].fd);
    }
    io->functions->destroy(io);
    close(options.watch_fd);
    free(buffer);
    return 0;
}

/* Without Linux AIO signals go by the thread. */
static void refuse_aio(void)
{
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = array_count(program), .filter = program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

int main(void)
{
    const char *temporary = getenv("TMPDIR");
    char folder[512];
    snprintf(folder, sizeof folder, "%s/walrus-io-XXXXXX", temporary != NULL ? temporary : "/tmp");
    must(mkdtemp(folder) != NULL);
    int result = run(folder, IO_BACKEND_PWRITE);
    if (result == 0)
        result = run(folder, IO_BACKEND_MMAP);
    if (result == 0)
        result = run(folder, IO_BACKEND_URING);
    refuse_aio();
    if (result == 0 || result == 77)
        result |= run(folder, IO_BACKEND_PWRITE);
    rmdir(folder);
    return result;
}
