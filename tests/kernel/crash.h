/* crash.h: recordings of a broker on a file system, and the power cuts that are tried on them. */
#ifndef WALRUS_KERNEL_CRASH_H
#define WALRUS_KERNEL_CRASH_H

#include "image.h"

struct crash {
    struct work *work;
    const char *type;   /* of the file system */
    const char *broken; /* the recorded brokers, which then use pwrite; or NULL */
    bool lying;         /* the recorder leaves the flushes out */
    bool no_mmap;       /* in a recording */
    bool only_flushed;  /* nothing else survives a cut, and all cuts are where something was answered */
    struct device device;
    struct image image;
    struct ledger *ledger;
    struct sight *sight, *sight_again;
    struct daemon daemon;
    char folder[PATH_MAX]; /* where it is mounted */
    /* Called in the last life of a recording, while producers work; NULL: no fault. */
    int (*fault)(struct crash *crash, struct error *err);
    uint64_t fault_at; /* position of the fault: most cuts are behind it */
    uint64_t recordings, images, steps, acked, again;
};

/* The device and the place. SOAK_SKIPPED with words where the machine lacks something. crash_end either
 * way. */
int crash_begin(struct crash *crash, struct work *work, const char *type, struct error *err) must_check;
void crash_end(struct crash *crash);
/* Of the next broker of a recording. */
void crash_life_options(struct crash *crash, struct life_options *life);
/* A new recording, and so many images of it. */
int crash_round(struct crash *crash, uint64_t images, struct error *err) must_check;

#endif
