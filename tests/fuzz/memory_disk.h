/* memory_disk.h: a store folder in memory behind the seam, for fuzz targets: nothing but files, as fast as
 * can be.
 *
 * The simulator's disk (tests/sim) remembers what a crash may still change; that costs more than the code
 * under test. Here every op does its work when it is waited for, in the order of submission, and time is a
 * counter. What a file holds lies in one piece; behind it, up to the file's size, are zeros that take no
 * memory.
 *
 * One disk is used again and again: memory_disk_clear, add files, run, look. */
#ifndef WALRUS_FUZZ_MEMORY_DISK_H
#define WALRUS_FUZZ_MEMORY_DISK_H

#include "../../broker/io/io.h"

#define MEMORY_BLOCK 4096u
#define MEMORY_NAME  64u
#define MEMORY_FILES 64u

struct memory_file {
    char name[MEMORY_NAME]; /* "" = free, or unlinked and still open */
    bool used;
    bool buffered; /* made without direct I/O */
    uint32_t opened;
    const uint8_t *lent; /* somebody else's bytes, until something is written; NULL: its own */
    uint8_t *bytes;
    uint64_t room;   /* of `bytes` */
    uint64_t length; /* what was written; zeros behind it */
    uint64_t size;
};

struct memory_disk {
    struct io io;
    struct memory_file files[MEMORY_FILES];
    uint32_t end;                /* behind it no file is used */
    struct io_op *first, **last; /* submitted */
    int64_t now;
    uint64_t random;
    uint64_t changes; /* ops that changed something */
};

void memory_disk_init(struct memory_disk *disk);
/* No files, no ops, the same time and randomness again. */
void memory_disk_clear(struct memory_disk *disk, uint64_t seed);
/* A file of `size` bytes that begins with `length` bytes. Its own copy of them, which may be changed until
 * the disk is used. */
uint8_t *memory_disk_add(struct memory_disk *disk, const char *name, const void *bytes, uint64_t length,
                         uint64_t size);
/* The same, without a copy as long as nobody writes to the file: they stay where they are. */
void memory_disk_lend(struct memory_disk *disk, const char *name, const uint8_t *bytes, uint64_t length,
                      uint64_t size);
/* Files end at most `slack` bytes behind what was written to them, as after a cut. */
void memory_disk_cut(struct memory_disk *disk, uint64_t slack);
/* Zeros at the end of files take no memory from now on. */
void memory_disk_shorten(struct memory_disk *disk);
/* Every file was closed, and no op is under way. */
bool memory_disk_idle(const struct memory_disk *disk);
/* A copy of all files, and the disk as it was then. No op is under way at either time. */
struct memory_saved;
struct memory_saved *memory_disk_save(const struct memory_disk *disk);
void memory_disk_restore(struct memory_disk *disk, const struct memory_saved *saved);
void memory_disk_free(struct memory_disk *disk);

#endif
