/* io.h: the seam. Everything the core (log, index, recovery, admission) asks of the operating system goes
 * through one struct io: files of the store folder, time, randomness. Four things stand behind it: the back
 * ends uring, pwrite and mmap, and the simulator's disk. The core never makes a system call of its own and
 * has no globals, so that the simulator runs the real code and several engines can live in one process.
 *
 * Happy path
 *   1. The caller fills a struct io_op (it owns it, and every buffer and name in it, until `done` was
 *      called).
 *   2. io_submit() queues it. It never fails and never calls `done` itself.
 *   3. io_kick() hands everything queued to the kernel in as few system calls as the back end can.
 *   4. io_wait() calls `done` for everything that has completed, in the caller's thread; op->result is set.
 *   Ops that are in flight together are not ordered. Whoever wants order waits for the completion of the
 *   first.
 *
 * Results: 0, a byte count, or a negative errno. A short READ or WRITE is a count below `length`: the back
 * end never repeats, never hides it; the caller decides (G8). FLUSH is fdatasync of the file's data and what
 * is needed to read it.
 *
 * Failure modes: any op may fail with any errno. After the process is killed, WRITEs in flight may still
 * land: that is what lock() waits for. A failed FLUSH leaves unknown bytes behind; nobody may try it again
 * and believe the second answer (G10).
 *
 * Invariants
 *   - `done` is called exactly once for each submitted op, from io_wait only.
 *   - WRITE, READ: offset, length and buffer are multiples of the file's alignment (file_align), except on
 *     files opened with IO_FILE_BUFFERED.
 *   - Blocking file work (CREATE, OPEN, ALLOCATE, TRUNCATE, RENAME, UNLINK, SYNC_DIRECTORY, CLOSE and every
 *     op with `background` set) runs in a helper thread, never in the caller's and never through io_uring.
 *   - An op with `background` set belongs to a file that is not part of the log yet.
 */
#ifndef WALRUS_IO_H
#define WALRUS_IO_H

#include "../../shared/base.h"

struct io;
struct io_signal;
struct io_file; /* an open file of the store folder */

enum io_kind {
    IO_WRITE,          /* file, buffer, offset, length -> bytes written */
    IO_READ,           /* file, buffer, offset, length -> bytes read; fewer at the end of the file */
    IO_FLUSH,          /* file -> 0: everything written and reaped before is durable */
    IO_CREATE,         /* name, flags -> 0 and op->file: a new file, locked as lock() does; -EEXIST */
    IO_OPEN,           /* name, flags -> 0 and op->file: an existing one */
    IO_CLOSE,          /* file -> 0; also gives up its lock */
    IO_ALLOCATE,       /* file, length -> 0: allocate all of it (fallocate), the size becomes `length` */
    IO_TRUNCATE,       /* file, length -> 0: cut the file at `length` */
    IO_RENAME,         /* name -> new_name, over an existing one */
    IO_UNLINK,         /* name */
    IO_SYNC_DIRECTORY, /* fsync of the store folder */
    IO_KIND_COUNT
};

enum io_file_flag {
    IO_FILE_BUFFERED = 1 << 0, /* small files (checkpoint, store, sidecar): page cache, no alignment rule */
    IO_FILE_READ_ONLY = 1 << 1,
};

struct io_op {
    enum io_kind kind;
    bool background; /* helper thread; see above */
    bool durable;    /* WRITE: write and flush in one (RWF_DSYNC); its error counts as the flush's */
    bool brief;      /* FLUSH: of little; done in the caller's thread if flushes have been quick of late */
    uint32_t flags;  /* enum io_file_flag, for CREATE and OPEN */
    struct io_file *file;
    void *buffer;
    uint64_t offset;
    uint64_t length;
    const char *name;
    const char *new_name;
    int64_t result;
    void (*done)(struct io_op *op);
    void *owner;          /* the caller's */
    struct io_op *next;   /* the caller's once done, the back end's before */
    uint64_t private_[4]; /* the back end's */
};

/* A file as list() shows it. */
struct io_entry {
    char name[256];
    uint64_t size;
    bool regular;
};

struct io_functions {
    /* -- at any time, from the one core thread */
    void (*submit)(struct io *io, struct io_op *op);
    void (*kick)(struct io *io);
    /* Runs `done` of what has completed. Waits until at least one op completed, the watched descriptor is
     * readable, or timeout_ns passed (0: do not wait, negative: no limit), or a signal handler ran (then
     * perhaps early, with 0). Does what kick does first. Returns the number of ops completed. */
    int (*wait)(struct io *io, int64_t timeout_ns);
    int64_t (*now)(struct io *io);  /* CLOCK_MONOTONIC, ns */
    int64_t (*wall)(struct io *io); /* CLOCK_REALTIME, ns */
    int (*random)(struct io *io, void *buffer, size_t length);
    uint64_t (*file_size)(struct io *io, struct io_file *file);
    uint32_t (*file_align)(struct io *io, struct io_file *file); /* 1 for buffered ones */

    /* -- at start and stop only; these may block */
    /* Names of all entries of the folder, in no order, into a malloc'ed array. */
    int (*list)(struct io *io, struct io_entry **entries, size_t *count);
    /* Takes the lock on an open file of the store that lasts as long as any I/O on it (flock): 0,
     * -EWOULDBLOCK. */
    int (*lock)(struct io *io, struct io_file *file);
    /* Says "I live here" on the file `name` (a record lock, gone with the process, not with its I/O): 0;
     * -EWOULDBLOCK and the living holder's pid (0 if unknown); other errno. */
    int (*claim)(struct io *io, const char *name, int64_t *holder_pid);
    void (*sleep)(struct io *io, int64_t ns); /* between two tries of lock(); virtual time in the simulator */
    uint64_t (*space_free)(struct io *io);    /* bytes an unprivileged writer could still allocate; a hint */
    void (*destroy)(struct io *io);           /* closes every file; no op may be in flight */

    /* -- at any time, see struct io_signal; NULL in a back end that has no clients (the simulator) */
    void (*signal_send)(struct io *io, struct io_signal *signal);
    void (*signal_cancel)(struct io *io, struct io_signal *signal);
    /* True: a wait would find something ended, now. No system call. NULL: not known without one. */
    bool (*ready)(const struct io *io);
    /* This memory is going to be written from and read into, in large pieces: see io_prepare_memory. NULL:
     * nothing to prepare. */
    void (*prepare_memory)(struct io *io, void *memory, size_t bytes);
};

struct io {
    const struct io_functions *functions;
    const char *folder;     /* for words in messages */
    uint32_t logical_block; /* of the device: the least alignment of direct I/O */
    uint32_t align;         /* default of --commit-align: max(4096, physical block); the page when buffered */
    int backend;            /* enum io_backend of message.h */
    bool errors_are_final;  /* mmap: a failed WRITE leaves unknown bytes, as a failed FLUSH does */
    uint32_t inflight;      /* ops submitted and not done */
    bool watch_ready;       /* set by each wait(): the watched descriptor was readable */
};

static inline void io_submit(struct io *io, struct io_op *op)
{
    check_bug(op->done != NULL);
    io->inflight++;
    io->functions->submit(io, op);
}

static inline void io_kick(struct io *io)
{
    io->functions->kick(io);
}

static inline int io_wait(struct io *io, int64_t timeout_ns)
{
    return io->functions->wait(io, timeout_ns);
}

static inline int64_t io_now(struct io *io)
{
    return io->functions->now(io);
}

/* Back ends call this, and only this, to finish an op. */
static inline void io_complete(struct io *io, struct io_op *op, int64_t result)
{
    check_bug(io->inflight > 0);
    io->inflight--;
    op->result = result;
    op->done(op);
}

/* Submits one op and waits for it (others that complete meanwhile get their `done`). Start and stop only.
 * Returns op->result. Ignores op->done. */
int64_t io_run(struct io *io, struct io_op *op) must_check;

/* ------------------------------------------------------------------------------------------ the real ones */

struct io_real_options {
    const char *folder;
    int backend;       /* enum io_backend; 0 = uring if it can be had, else pwrite */
    int watch_fd;      /* wait() also ends when this is readable (the broker's epoll fd); -1 = none */
    bool allow_direct; /* use O_DIRECT where the file system has it */
};

/* Opens the folder and starts the back end. On success *out is to be given to io->functions->destroy.
 * *fallback_reason (may be NULL) is set to words when backend 0 ended up with pwrite, else to "".
 * -EOPNOTSUPP: io_uring was asked for by name and is refused here. */
int io_real_create(const struct io_real_options *options, struct io **out, char fallback_reason[128],
                   struct error *err) must_check;

/* Signals a client's eventfd without ever blocking on it, whatever the peer did to the eventfd (filled it,
 * cleared O_NONBLOCK). Zeroed but for `fd` before the first use; one struct for each descriptor. `parked` is
 * true while an earlier signal is still on its way: sending then costs nothing, and the eventfd becomes
 * readable once more after this call in any case. Signals leave at once, or with a later io_wait. The owner
 * keeps struct and descriptor until `parked` is false. */
struct io_signal {
    int fd;
    bool parked;
    uint8_t state; /* the back end's */
    void *backend; /* the back end's */
};
void io_signal_send(struct io *io, struct io_signal *signal);
/* Begins to take back a parked signal (the connection is gone); `parked` becomes false within later io_wait
 * calls. */
void io_signal_cancel(struct io *io, struct io_signal *signal);

/* Large pages: a direct write of 4 KiB pages has a descriptor for each of them on its way to the device. p50
 * of write and flush, a virtio disk, us: 72 KiB 185 and 175, 1.1 MiB 607 and 454, 2.8 MiB 1,352 and 1,047.
 * Where the kernel gives none nothing changes. The memory is aligned to IO_LARGE_PAGE and still the
 * caller's. */
#define IO_LARGE_PAGE (UINT32_C(2) << 20)
static inline void io_prepare_memory(struct io *io, void *memory, size_t bytes)
{
    if (io->functions->prepare_memory != NULL)
        io->functions->prepare_memory(io, memory, bytes);
}

/* Whether something has surely ended, so that it pays to leave longer work for io_wait. */
static inline bool io_ready(const struct io *io)
{
    return io->functions->ready != NULL && io->functions->ready(io);
}

#endif
