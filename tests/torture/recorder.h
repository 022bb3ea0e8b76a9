/* recorder.h: a struct io between the log and a real back end. It hands every op on, and does what the real
 * one answers to an image in memory as well (tests/sim): from that, at any moment, the images follow that a
 * power cut or a kill could leave. */
#ifndef WALRUS_TORTURE_RECORDER_H
#define WALRUS_TORTURE_RECORDER_H

#include "../sim/disk.h"

struct recorder;

/* `before` is called just before each completion is heard by anyone; `failed`: with an error of the back
 * end. `disk` is borrowed and shows what `real` holds now; `real` belongs to the recorder from then on.
 * NULL: out of memory, `real` stays the caller's. */
struct recorder *recorder_create(struct io *real, struct disk *disk,
                                 void (*before)(void *context, bool failed), void *context);
/* Closes the real one. No op may be in flight. The disk may be gone already. */
void recorder_destroy(struct recorder *recorder);
struct io *recorder_io(struct recorder *recorder);

struct recorder_counts {
    uint64_t ops, writes, flushes, written_bytes;
    uint64_t errors; /* of the real back end; not: a file that is not there, or there already */
    char last_error[128];
    char difference[256]; /* "" or: the file system shows other bytes or names than were written */
};
const struct recorder_counts *recorder_counts(const struct recorder *recorder);

#endif
