/* device.h: a block device that records what is written to it and when it is flushed.
 *
 * It is one file of a FUSE file system, served by a process of its own out of memory that it shares with this
 * one; a loop device makes a block device of it. Each write and each flush that has been done is one step of
 * its log; the position is how many steps there were. Nothing of it outlives this process: mounts are made
 * in a mount namespace of its own, and a loop device is let go by the last one who has it open.
 *
 * While nothing is mounted the content is this process's to change (image.c does). */
#ifndef WALRUS_KERNEL_DEVICE_H
#define WALRUS_KERNEL_DEVICE_H

#include "kernel.h"

enum step_kind { STEP_WRITE, STEP_FLUSH, STEP_FAILED_FLUSH };

struct step {
    uint64_t offset, data; /* data: where in the log's bytes */
    uint32_t length;
    uint16_t kind;    /* enum step_kind */
    bool was_dropped; /* by a flush that failed, perhaps: see image.c */
};

/* Groups of the log that are kept in the device, unanswered. */
enum hold {
    HOLD_NONE, /* no longer: they are done now */
    HOLD_NEW,  /* from now on */
    HOLD_KEPT  /* those that are; what comes now is done at once */
};

#define DEVICE_STEPS (UINT64_C(1) << 20)
#define DEVICE_BYTES (UINT64_C(2) << 30) /* of the log; taken as it is used */

/* What conductor and server tell each other. */
struct device_switches {
    uint64_t position;     /* steps in the log */
    uint64_t bytes;        /* of the log in use */
    uint64_t writes;       /* in all, recorded or not */
    uint32_t serving;      /* the server answers */
    uint32_t overflow;     /* the log was full: its end is missing */
    uint32_t recording;    /* add to the log */
    uint32_t lying;        /* flushes are answered, and not recorded */
    uint32_t hold;         /* enum hold */
    uint32_t held;         /* writes kept so now */
    uint32_t full;         /* no room for blocks that hold nothing, or zeroes: ENOSPC; the others go on */
    uint32_t fail_writes;  /* so many writes from now on fail with EIO; half of each is done */
    uint32_t fail_groups;  /* the same, of the writes that begin with a group of the log */
    uint32_t fail_flushes; /* so many flushes from now on fail with EIO */
    int64_t flush_ns;      /* a flush takes so long before it counts */
};

struct device {
    uint64_t size;
    int memory; /* memfd of the content */
    uint8_t *content;
    struct step *steps;
    uint8_t *bytes;
    struct device_switches *switches;
    pid_t server;
    char file[PATH_MAX];   /* of the FUSE file system */
    char folder[PATH_MAX]; /* where that is mounted */
};

/* A mount namespace of one's own, that shares nothing. SOAK_SKIPPED with words where it is refused. */
int namespace_make(struct error *err) must_check;

/* Makes and serves a device of zeros. SOAK_SKIPPED with words where there is no FUSE. */
int device_make(struct work *work, uint64_t size, struct device *device, struct error *err) must_check;
/* Ends the server. Zero-initialised is fine. */
void device_remove(struct device *device);

static inline uint64_t device_position(const struct device *device)
{
    return __atomic_load_n(&device->switches->position, __ATOMIC_ACQUIRE);
}
/* Cuts the log off there. Nothing may be under way. */
void device_rewind(struct device *device, uint64_t position);

/* -------------------------------------------------------------------------------- loop and mount */

/* A loop device over `file`, let go when its last user closes it. Its descriptor and path, or SOAK_SKIPPED
 * with words if there are none here. `direct`: past the page cache of the file. */
int loop_attach(const char *file, bool direct, char path[32], struct error *err) must_check;

/* Makes a file system ("ext4" or "xfs") on what the file holds. SOAK_SKIPPED without its mkfs. */
int file_system_make(const char *file, bool direct, const char *type, struct error *err) must_check;
/* Mounts what the file holds. */
int file_system_mount(const char *file, bool direct, const char *type, const char *folder,
                      struct error *err) must_check;
/* Tries until nobody uses it any more, within PATIENCE_NS. */
int file_system_unmount(const char *folder, struct error *err) must_check;

/* Runs a program to its end, its words thrown away but for the last ones of stderr. */
int run_program(const char *const *arguments, struct error *err) must_check;

#endif
