/* real.c: making a back end, and what all of them share.
 *
 * Which one: the one asked for by name, or none. Not asked: io_uring if it can be set up and does a write for
 * us, else pwrite, with words that say why. Setting it up is not enough: a filter may let the set-up pass and
 * refuse the rest. */
#include "real.h"
#include "../../shared/message.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define MAX_TRANSFER    (1u << 30)
#define SIGNAL_RETRY_NS 1000000

/* ---------------------------------------------------------------------------------------------------- ops */

static void check_transfer(const struct io_op *op)
{
    uint64_t mask = op->file->align - 1;
    check_bug(op->buffer != NULL);
    check_bug(op->length > 0 && op->length <= MAX_TRANSFER);
    check_bug(op->offset <= INT64_MAX - op->length);
    check_bug((op->offset & mask) == 0);
    check_bug((op->length & mask) == 0);
    check_bug(((uintptr_t)op->buffer & mask) == 0);
}

static void check_name(const char *name)
{
    check_bug(name != NULL && name[0] != 0 && strchr(name, '/') == NULL);
}

bool real_admit(const struct real *real, struct io_op *op)
{
    (void)real;
    switch (op->kind) {
    case IO_READ:
    case IO_WRITE:
        check_transfer(op);
        break;
    case IO_RENAME:
        check_name(op->new_name);
        check_name(op->name);
        return true;
    case IO_CREATE:
    case IO_OPEN:
    case IO_UNLINK:
        check_name(op->name);
        return true;
    case IO_SYNC_DIRECTORY:
        return true;
    case IO_CLOSE:
        check_bug(op->file->inflight == 0);
        break;
    case IO_FLUSH:
    case IO_ALLOCATE:
    case IO_TRUNCATE:
        break;
    default:
        bug(__FILE__, __LINE__, "a known kind of op");
    }
    op->file->inflight++;
    bool data = op->kind == IO_READ || op->kind == IO_WRITE || op->kind == IO_FLUSH;
    return !data || op->background;
}

void real_finish(struct real *real, struct io_op *op, int64_t result)
{
    switch (op->kind) {
    case IO_READ:
    case IO_WRITE:
    case IO_FLUSH:
    case IO_ALLOCATE:
    case IO_TRUNCATE:
        check_bug(op->file->inflight > 0);
        op->file->inflight--;
        break;
    default: /* no file, or one that is gone or new */
        break;
    }
    io_complete(&real->io, op, result);
}

static int64_t run_file_work(void *context, struct io_op *op)
{
    struct real *real = context;
    if (op->kind == IO_READ || op->kind == IO_WRITE || op->kind == IO_FLUSH)
        return file_perform(op);
    return folder_perform(&real->folder, op);
}

void real_submit_file_work(struct real *real, struct io_op *op)
{
    struct op_queue one = {0};
    op_queue_push(&one, op);
    worker_submit(&real->files, &one);
}

int real_reap_file_work(struct real *real)
{
    struct op_queue done = {0};
    worker_reap(&real->files, &done);
    int count = 0;
    struct io_op *op;
    while ((op = op_queue_pop(&done)) != NULL) {
        real_finish(real, op, op->result);
        count++;
    }
    return count;
}

int64_t real_limit_sleep(const struct real *real, int64_t ns)
{
    bool retry = real->signaller.unsent.first != NULL;
    return retry && (ns < 0 || ns > SIGNAL_RETRY_NS) ? SIGNAL_RETRY_NS : ns;
}

/* ----------------------------------------------------------------------------------- the common functions */

static int64_t clock_ns(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int64_t real_now(struct io *io)
{
    (void)io;
    return clock_ns(CLOCK_MONOTONIC);
}

int64_t real_wall(struct io *io)
{
    (void)io;
    return clock_ns(CLOCK_REALTIME);
}

int real_random(struct io *io, void *buffer, size_t length)
{
    (void)io;
    uint8_t *at = buffer;
    while (length > 0) {
        ssize_t n = getrandom(at, length, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        at += n;
        length -= (size_t)n;
    }
    return 0;
}

uint64_t real_file_size(struct io *io, struct io_file *file)
{
    (void)io;
    return file_size(file);
}

uint32_t real_file_align(struct io *io, struct io_file *file)
{
    (void)io;
    return file->align;
}

int real_list(struct io *io, struct io_entry **entries, size_t *count)
{
    return folder_list(&real_of(io)->folder, entries, count);
}

int real_lock(struct io *io, struct io_file *file)
{
    (void)io;
    return file_lock(file);
}

int real_claim(struct io *io, const char *name, int64_t *holder_pid)
{
    check_name(name);
    return folder_claim(&real_of(io)->folder, name, holder_pid);
}

void real_sleep(struct io *io, int64_t ns)
{
    (void)io;
    struct timespec left = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    /* lint-allow: nanosleep, this is the clock of the seam */
    (void)nanosleep(&left, NULL); /* shorter is fine: it is the time between two tries */
}

uint64_t real_space_free(struct io *io)
{
    return folder_space_free(&real_of(io)->folder);
}

/* --------------------------------------------------------------------------------------------- making one */

static size_t size_of(int backend)
{
    return backend == IO_BACKEND_URING ? uring_size() : threaded_size();
}

static int start(struct real *real, int backend, struct error *err)
{
    return backend == IO_BACKEND_URING  ? uring_start(real, err)
           : backend == IO_BACKEND_MMAP ? mmap_start(real, err)
                                        : pwrite_start(real, err);
}

void real_release(struct real *real)
{
    worker_stop(&real->files);
    signaller_stop(&real->signaller);
    close(real->event_fd);
    folder_close(&real->folder);
}

void real_prepare_memory(struct io *io, void *memory, size_t bytes)
{
    (void)io;
    (void)madvise(memory, bytes, MADV_HUGEPAGE); /* refused: small pages do as well */
}

/* One try with one back end. */
static int create_backend(const struct io_real_options *options, int backend, struct io **out,
                          struct error *err)
{
    struct real *real = calloc(1, size_of(backend));
    if (real == NULL)
        return error_set(err, -ENOMEM, "out of memory opening the store folder %s", options->folder);
    bool allow_direct = options->allow_direct && backend != IO_BACKEND_MMAP;
    int result = folder_open(&real->folder, options->folder, allow_direct, err);
    if (result != 0)
        goto free_real;
    real->watch_fd = options->watch_fd;
    real->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (real->event_fd < 0) {
        result = error_set(err, -errno, "cannot make an eventfd: %s", strerror(errno));
        goto close_folder;
    }
    result = signaller_start(&real->signaller, real->event_fd);
    if (result != 0) {
        error_set(err, result, "cannot set up signals to clients: %s", strerror(-result));
        goto close_event;
    }
    result = worker_start(&real->files, "walrus-files", real->event_fd, run_file_work, real);
    if (result != 0) {
        error_set(err, result, "cannot start the thread for file work: %s", strerror(-result));
        goto stop_signaller;
    }
    real->io.folder = real->folder.path;
    real->io.logical_block = real->folder.logical_block;
    real->io.align = real->folder.align;
    real->io.backend = backend;
    result = start(real, backend, err);
    if (result != 0)
        goto stop_worker;
    *out = &real->io;
    return 0;

stop_worker:
    worker_stop(&real->files);
stop_signaller:
    signaller_stop(&real->signaller);
close_event:
    close(real->event_fd);
close_folder:
    folder_close(&real->folder);
free_real:
    free(real);
    return result;
}

int io_real_create(const struct io_real_options *options, struct io **out, char fallback_reason[128],
                   struct error *err)
{
    struct error why = {0};
    if (fallback_reason != NULL)
        fallback_reason[0] = 0;
    *out = NULL;
    if (options->backend != 0 && options->backend != IO_BACKEND_URING)
        return create_backend(options, options->backend, out, err);
    int result = create_backend(options, IO_BACKEND_URING, out, &why);
    if (result == 0)
        return 0;
    if (result != -EOPNOTSUPP) { /* not io_uring is what is missing */
        if (err != NULL)
            *err = why;
        return result;
    }
    if (options->backend == IO_BACKEND_URING)
        return error_set(err, result,
                         "io_uring was asked for and is not to be had here: %s; use --io=auto or --io=pwrite",
                         why.text);
    if (fallback_reason != NULL)
        snprintf(fallback_reason, 128, "%.127s", why.text);
    return create_backend(options, IO_BACKEND_PWRITE, out, err);
}
