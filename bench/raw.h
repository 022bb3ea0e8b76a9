/* raw.h: what the device itself does at the same work, with no broker: the yardstick of the sync rows.
 *
 * A raw file of the wanted length lies in the working folder, written in full with random bytes and
 * flushed before (prepared space). A run keeps `depth` payloads under way, each rounded up to whole 4 KiB
 * blocks, and takes the clock from before the first system call of a payload to after the one that made it
 * durable. At the end of the file it begins again in front.
 *
 * The yardstick writes the same buffer again and again, with another stamp in each block. That is faster than
 * anything that has something new to say can be, where the device is a program that copies out of this
 * machine's memory: bytes that were just made lie in the cache of the core that made them. (Measured: write
 * and fdatasync of 1.1 MiB 514 us, just copied there 628; of 2.8 MiB 1,020 and 1,230.) `fresh` runs fill the
 * buffer anew for each write, outside the clock. They judge no goal: they say what of a distance is that. */
#ifndef WALRUS_BENCH_RAW_H
#define WALRUS_BENCH_RAW_H

#include <signal.h>

#include "load.h"

#define RAW_BLOCK 4096u

enum raw_method {
    RAW_DSYNC,          /* O_DIRECT | O_DSYNC, the payloads under way as one write */
    RAW_DIRECT,         /* O_DIRECT, one write, fdatasync */
    RAW_URING,          /* O_DIRECT, writes through io_uring, then its fdatasync */
    RAW_BUFFERED,       /* through the page cache, one write, fdatasync */
    RAW_DSYNC_PARALLEL, /* O_DIRECT | O_DSYNC, `depth` writes in flight through io_uring */
    RAW_METHODS
};
extern const char *const raw_method_names[RAW_METHODS];

/* How a file's space is when the run begins. */
enum raw_space {
    RAW_PREPARED,  /* written before, not counted */
    RAW_ALLOCATED, /* the run is the first to write there; allocating counts as part of it */
    RAW_WRITTEN,   /* written first, and that counts as part of the run (bytes_per_s only) */
};

struct raw_file {
    char path[4096];
    uint64_t bytes;
};

/* Makes the file and prepares its space. */
int raw_prepare(struct raw_file *file, const char *path, uint64_t bytes, struct error *err) must_check;
void raw_remove(struct raw_file *file);

struct raw_request {
    const struct raw_file *file;
    uint64_t payload; /* bytes of one payload */
    uint32_t depth;
    int64_t duration_ns;
    uint64_t most_bytes; /* payload bytes after which it ends early; 0: none */
    bool fresh;          /* bytes that were just made; commits_per_s leaves the making out */
    const volatile sig_atomic_t *interrupted;
};

/* One run of one method. -EOPNOTSUPP: this method is not to be had here. */
int raw_run(const struct raw_request *request, enum raw_method method, struct raw_numbers *result,
            struct error *err) must_check;

/* By p50, or by bytes per second at a depth above 1. */
bool raw_better(const struct raw_numbers *a, const struct raw_numbers *b, uint32_t depth);

/* Runs all methods briefly and ranks them, the best first. Returns how many work. */
int raw_rank(const struct raw_request *request, enum raw_method ranking[RAW_METHODS],
             struct error *err) must_check;

/* Writes `bytes` of payloads into space that is new each time, its preparation included in bytes_per_s;
 * the best way of all. */
int raw_sustained(const struct raw_request *request, const char *path, struct raw_numbers *result,
                  struct error *err) must_check;

#endif
