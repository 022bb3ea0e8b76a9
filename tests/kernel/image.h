/* image.h: what a power cut may leave of a recorded device. */
#ifndef WALRUS_KERNEL_IMAGE_H
#define WALRUS_KERNEL_IMAGE_H

#include "device.h"

/* Of the writes that no flush covers at the moment of the cut, and of those that a failed flush may have
 * dropped: */
enum choice {
    CHOICE_NONE,
    CHOICE_ALL,
    CHOICE_SOME, /* each one whole, or not at all */
    CHOICE_TORN, /* the same, but of the broker's own blocks some sectors of 512 bytes */
    CHOICES
};
extern const char *const choice_names[CHOICES];

struct cut {
    uint64_t position;
    enum choice choice;
    uint64_t seed; /* of the choice */
};

struct image {
    struct device *device;
    int memory;
    uint8_t *flushed; /* content by `applied` steps, all of them flushed */
    uint64_t applied;
    uint64_t dropped; /* the first step of the recording that a failed flush may have dropped, else its end */
    uint64_t end;     /* steps of the recording; what comes behind it was done to an image */
    uint64_t *dirty;  /* one bit for each 4 KiB of the device that may differ from `flushed` */
};

/* A recording begins with what the device holds now; its log is empty and grows from now on. */
int image_begin(struct image *image, struct device *device, struct error *err) must_check;
void image_free(struct image *image);
/* The recording ends here; what comes later is undone. */
void image_end(struct image *image);

/* The last flush before the position: from there on writes are pending. */
uint64_t image_flushed_by(const struct device *device, uint64_t position);

/* The device holds what the cut left. Positions must not decrease from call to call by more than what is
 * pending. The device's log has the recording alone then. */
void image_make(struct image *image, struct cut cut);
/* The same, and then a second cut, at a position behind the recording, of what was done to that image. The
 * steps up to that position stay in the log. */
void image_make_again(struct image *image, struct cut first, struct cut second);

#endif
