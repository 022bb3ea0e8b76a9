/* folder.h: the store folder, its open files and its locks: what the three back ends share. Everything here
 * may block: the helper thread calls it for ops, the core thread at start and stop only. */
#ifndef WALRUS_FOLDER_H
#define WALRUS_FOLDER_H

#include "io.h"

struct io_file {
    int fd;
    uint32_t align; /* what offset, length and buffer of READ and WRITE are multiples of */
    bool direct;    /* opened with O_DIRECT */
    bool writable;
    uint32_t inflight;             /* the core thread's: ops on this file that are not done */
    uint8_t *mapping;              /* back end mmap: the file as far as it was mapped, else NULL */
    uint64_t mapped;               /* bytes of it */
    uint64_t dirty_from, dirty_to; /* back end mmap: written since the last flush; from >= to: nothing */
    struct io_file *next, **link;  /* folder->files */
};

struct claim;

/* Was it killed, or has it ended? It may still hold what it had: a thread of it may be in the device. */
bool process_is_dying(int64_t pid);

struct folder {
    int fd;
    char *path;
    bool direct;   /* files that are not asked for as buffered are opened with O_DIRECT */
    uint32_t page; /* bytes of a memory page */
    /* Least alignment of direct I/O; the page where I/O goes through the page cache. */
    uint32_t logical_block;
    uint32_t align; /* what the log aligns groups to by default */
    /* Open ones. Belongs to the helper thread, and to the caller before that runs and after it has ended. */
    struct io_file *files;
    struct claim *claims; /* held for the life of the folder */
};

int folder_open(struct folder *folder, const char *path, bool allow_direct, struct error *err) must_check;
/* Closes every file and gives up every claim. */
void folder_close(struct folder *folder);

/* CREATE, OPEN, CLOSE, ALLOCATE, TRUNCATE, RENAME, UNLINK, SYNC_DIRECTORY; the result of the op. */
int64_t folder_perform(struct folder *folder, struct io_op *op) must_check;

/* READ, WRITE, FLUSH by pread, pwrite, fdatasync in the calling thread; the result of the op. */
int64_t file_perform(struct io_op *op) must_check;

int folder_list(struct folder *folder, struct io_entry **entries, size_t *count) must_check;
/* As the seam's claim; and -EINPROGRESS: the holder was killed, and will be gone once its I/O has ended. */
int folder_claim(struct folder *folder, const char *name, int64_t *holder_pid) must_check;
uint64_t folder_space_free(const struct folder *folder);

int file_lock(struct io_file *file) must_check;
uint64_t file_size(const struct io_file *file);

#endif
