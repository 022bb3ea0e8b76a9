/* real.h: what the real back ends share behind the seam: the folder, the helper thread for file work, the
 * watched descriptor. For broker/io only. */
#ifndef WALRUS_REAL_H
#define WALRUS_REAL_H

#include "folder.h"
#include "signaller.h"
#include "worker.h"

struct real {
    struct io io; /* first: a struct io of ours is a struct real */
    struct folder folder;
    struct worker files; /* the helper thread */
    struct signaller signaller;
    int event_fd; /* readable when a thread of ours finished something */
    int watch_fd; /* the caller's, or -1 */
};

static inline struct real *real_of(struct io *io)
{
    return (struct real *)(void *)io;
}

/* True for an op that goes to the helper thread. Checks what the caller must have got right, and counts it on
 * its file. */
bool real_admit(const struct real *real, struct io_op *op);
/* Takes it off its file's count and completes it. */
void real_finish(struct real *real, struct io_op *op, int64_t result);
/* Finishes what the helper thread has done; the number of ops. The eventfd has been emptied before. */
int real_reap_file_work(struct real *real);
/* How long a back end may sleep that wants to sleep `ns` (negative: for ever): shortly, while a signal waits
 * to be tried again. */
int64_t real_limit_sleep(const struct real *real, int64_t ns);
/* Hands one op to the helper thread. */
void real_submit_file_work(struct real *real, struct io_op *op);
/* Ends the helper thread, closes every file, frees what real_create made, but not `real` itself. */
void real_release(struct real *real);
void real_prepare_memory(struct io *io, void *memory, size_t bytes);

/* The functions of the seam that are the same for all three. */
int64_t real_now(struct io *io);
int64_t real_wall(struct io *io);
int real_random(struct io *io, void *buffer, size_t length);
uint64_t real_file_size(struct io *io, struct io_file *file);
uint32_t real_file_align(struct io *io, struct io_file *file);
int real_list(struct io *io, struct io_entry **entries, size_t *count);
int real_lock(struct io *io, struct io_file *file);
int real_claim(struct io *io, const char *name, int64_t *holder_pid);
void real_sleep(struct io *io, int64_t ns);
uint64_t real_space_free(struct io *io);

/* Adds a time span to a time; for ever stays for ever. */
static inline int64_t time_after(int64_t now, int64_t span)
{
    return span > INT64_MAX - now ? INT64_MAX : now + span;
}

/* The back ends: start on an embryo made by real_init; on success `functions` is set. The struct real lies at
 * the start of an allocation of the size that the back end asks for. */
size_t threaded_size(void);
int pwrite_start(struct real *real, struct error *err) must_check;
int mmap_start(struct real *real, struct error *err) must_check;
size_t uring_size(void);
/* A refusal says why in words fit for "io_uring is not used: ...". */
int uring_start(struct real *real, struct error *err) must_check;

#endif
