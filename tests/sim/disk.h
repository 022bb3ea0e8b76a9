/* disk.h: one life of a machine on a simulated store folder: struct io over a struct image, in virtual time.
 *
 *   disk = disk_start(image, seed);  log_start({.io = disk_io(disk)}) ...  image = disk_end(disk);
 *
 * Ops complete one at a time, in an order that the seed chooses. Each completion is an *event* and has a
 * number from 1 in this life; crashes and faults name events. A crash happens just before its event: what
 * is in flight then may have happened, in part or not at all. From then on every op ends with -ESHUTDOWN
 * ("the machine is gone"), so that the code under test unwinds; whatever it says after that is heard by
 * nobody.
 *
 * The disk also watches its user: `violation` is set when a rule of the seam or G17 is broken. */
#ifndef WALRUS_SIM_DISK_H
#define WALRUS_SIM_DISK_H

#include "image.h"

enum file_class { CLASS_SEGMENT = 1, CLASS_SMALL = 2, CLASS_FOLDER = 4, CLASS_ANY = 7 };

enum leaves { LEAVES_OLD, LEAVES_NEW, LEAVES_MIX }; /* what a failed write leaves behind, as reads see it */

/* One planned misfortune: of the ops that match, the first `skip` pass, the next `count` are hit. */
struct fault {
    uint32_t kinds;   /* bits 1 << enum io_kind; 0 = all */
    uint32_t classes; /* enum file_class; 0 = all */
    uint64_t skip;
    uint64_t count;
    int error;           /* a negative errno; 0: see below */
    int64_t short_count; /* error == 0, READ and WRITE: that many bytes at most, and no error */
    bool lies;           /* FLUSH, SYNC_DIRECTORY: says 0 and does nothing */
    enum leaves leaves;
    uint64_t matched; /* so far */
    uint64_t hit;
};
#define FAULT_FOR_EVER UINT64_MAX

struct disk;

struct disk_watch {
    void *context;
    /* A write was handed to the disk. */
    void (*written)(void *context, const char *name, const void *bytes, uint64_t length);
    /* A first block that says: nothing in this file is committed. Once it is durable the file is free.
     * NULL: there are none. */
    bool (*frees_file)(const void *block);
};

/* Takes the image over. Virtual time goes on from image->time. */
struct disk *disk_start(struct image *image, uint64_t seed);
struct io *disk_io(struct disk *disk);
/* Ends this life and hands the image back: with the landings of the crash, if there was one. No op may be
 * in flight. */
struct image *disk_end(struct disk *disk) must_check;

void disk_crash_at(struct disk *disk, uint64_t event); /* 0: never */
void disk_crash_now(struct disk *disk);
/* The image that a crash now would leave; life goes on. */
struct image *disk_snapshot(struct disk *disk) must_check;
bool disk_gone(const struct disk *disk);
/* A write of a killed broker to a segment that still has its name is on its way. */
bool disk_lands_later(const struct disk *disk);
uint64_t disk_events(const struct disk *disk);
uint64_t disk_trace_hash(const struct disk *disk);
const char *disk_violation(const struct disk *disk); /* NULL: none */

void disk_set_fault(struct disk *disk, const struct fault *fault); /* up to 8 */
void disk_clear_faults(struct disk *disk);
/* Blocks of segments that were written while they held other bytes than zeros. */
uint64_t disk_overwrites(const struct disk *disk);
uint64_t disk_faults_hit(const struct disk *disk);
/* In how many of a million ops of this kind something goes wrong. */
void disk_set_chance(struct disk *disk, enum io_kind kind, uint32_t per_million);
void disk_set_space(struct disk *disk, uint64_t bytes); /* of the whole disk; may be less than is used */
void disk_set_holder(struct disk *disk, int64_t pid);   /* somebody who lives holds the store; 0: nobody */
/* Of a broken seam: lock() says yes though writes of a killed broker are still to land. */
void disk_set_hasty_lock(struct disk *disk, bool hasty);
void disk_set_watch(struct disk *disk, const struct disk_watch *watch);
void disk_set_trace(struct disk *disk, FILE *trace);
/* For a disk that follows another one (nobody calls wait() on this one then): the op completes now, and does
 * what that one has answered: the count of a WRITE, 0, or a negative errno. */
void disk_finish(struct disk *disk, struct io_op *op, int64_t told, int64_t now);
/* Time passes, and what is due completes. */
void disk_pass_time(struct disk *disk, int64_t ns);

#endif
