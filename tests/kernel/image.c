/* image.c: what a power cut may leave.
 *
 *   1. `flushed` is the content as of the last flush before the cut: it only moves forward.
 *   2. The device is brought back to it, block by block that was touched since.
 *   3. Then some of the pending writes are done to the device, in their order.
 *   4. A device whose flush fails may give up what it could not write: reads show it until the power is cut,
 *      and every later flush is good. So groups of the log that were pending at a failed flush may be missing
 *      in each image behind it. What the file system itself wrote is not: it would not survive that.
 * What a mounted file system, or a recovery, does to an image is recorded behind the recording; it says which
 * blocks were touched, and can be cut itself. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../broker/log/format.h"
#include "image.h"

#define BLOCK  4096u
#define SECTOR 512u

const char *const choice_names[CHOICES] = {"none", "all", "some", "torn"};

static uint64_t blocks_of(const struct device *device)
{
    return device->size / BLOCK;
}

void image_free(struct image *image)
{
    if (image->flushed != NULL)
        munmap(image->flushed, image->device->size);
    if (image->memory > 0)
        close(image->memory);
    free(image->dirty);
    *image = (struct image){0};
}

/* What holds data; the rest of both is zero. */
static int copy_content(struct image *image)
{
    const struct device *device = image->device;
    for (off_t at = 0; (at = lseek(device->memory, at, SEEK_DATA)) >= 0;) {
        off_t end = lseek(device->memory, at, SEEK_HOLE);
        if (end < at)
            return -errno;
        memcpy(image->flushed + at, device->content + at, (size_t)(end - at));
        at = end;
    }
    return errno == ENXIO ? 0 : -errno;
}

int image_begin(struct image *image, struct device *device, struct error *err)
{
    *image = (struct image){.device = device};
    image->memory = memfd_create("walrus-kernel-image", MFD_CLOEXEC);
    void *flushed = MAP_FAILED;
    if (image->memory >= 0 && ftruncate(image->memory, (off_t)device->size) == 0)
        flushed = mmap(NULL, device->size, PROT_READ | PROT_WRITE, MAP_SHARED, image->memory, 0);
    image->flushed = flushed != MAP_FAILED ? flushed : NULL;
    image->dirty = calloc(blocks_of(device) / 64 + 1, sizeof *image->dirty);
    int rc = image->flushed != NULL && image->dirty != NULL ? copy_content(image) : -ENOMEM;
    if (rc < 0) {
        image_free(image);
        return error_set(err, rc, "cannot copy the device: %s", strerror(-rc));
    }
    device_rewind(device, 0);
    __atomic_store_n(&device->switches->recording, 1, __ATOMIC_RELEASE);
    return 0;
}

/* The step is in the range of the group that began with this one: a part of it, if the kernel split it. */
static bool continues(const struct device *device, const struct step *group, const struct step *step)
{
    struct group_header header = {0};
    memcpy(&header, device->bytes + group->data, min_u64(group->length, sizeof header));
    return step->offset > group->offset && step->offset - group->offset < header.length;
}

static uint64_t first_word(const struct device *device, const struct step *step)
{
    uint64_t word = 0;
    memcpy(&word, device->bytes + step->data, min_u64(step->length, sizeof word));
    return word;
}

/* Marks groups from [from, to) that the failed flush at `to` may have dropped. */
static void mark_dropped(const struct device *device, uint64_t from, uint64_t to)
{
    const struct step *group = NULL;
    for (uint64_t i = from; i < to; i++) {
        struct step *step = &device->steps[i];
        if (step->kind != STEP_WRITE)
            continue;
        bool begins = first_word(device, step) == GROUP_MAGIC;
        if (begins)
            group = step;
        step->was_dropped = begins || (group != NULL && continues(device, group, step));
    }
}

/* From which step on writes were dropped. */
static uint64_t find_dropped(const struct image *image)
{
    const struct device *device = image->device;
    for (uint64_t i = 0; i < image->end; i++)
        if (device->steps[i].kind == STEP_FAILED_FLUSH)
            mark_dropped(device, image_flushed_by(device, i), i);
    for (uint64_t i = 0; i < image->end; i++)
        if (device->steps[i].was_dropped)
            return i;
    return image->end;
}

uint64_t image_flushed_by(const struct device *device, uint64_t position)
{
    while (position > 0 && device->steps[position - 1].kind != STEP_FLUSH)
        position--;
    return position;
}

/* ------------------------------------------------------------------------------------- writes */

static void touch(struct image *image, const struct step *step)
{
    for (uint64_t b = step->offset / BLOCK; b * BLOCK < step->offset + step->length; b++)
        image->dirty[b / 64] |= UINT64_C(1) << b % 64;
}

static void do_whole(const struct device *device, const struct step *step, uint8_t *to)
{
    memcpy(to + step->offset, device->bytes + step->data, step->length);
}

/* The file systems do not survive it when a block of their own is torn (ext4's superblock has a checksum over
 * two sectors, xfs believes the number in the first sector); the broker must when one of its own is. */
static bool may_be_torn(const struct image *image, const struct step *step)
{
    uint64_t magic = first_word(image->device, step);
    return magic == GROUP_MAGIC || magic == SEGMENT_MAGIC || magic == CHECKPOINT_MAGIC;
}

static void do_torn(const struct device *device, const struct step *step, uint64_t *random)
{
    for (uint32_t at = 0; at < step->length; at += SECTOR)
        if (random_below(random, 2) == 0)
            memcpy(device->content + step->offset + at, device->bytes + step->data + at,
                   min_u64(SECTOR, step->length - at));
}

/* Steps [from, cut.position) to the device: all that are flushed for sure by then, and some of the others. */
static void do_steps(struct image *image, uint64_t from, struct cut cut)
{
    const struct device *device = image->device;
    uint64_t flushed = max_u64(image_flushed_by(device, cut.position), from), random = cut.seed;
    uint64_t keep_of_8 = 1 + random_below(&random, 7);
    for (uint64_t i = from; i < cut.position; i++) {
        const struct step *step = &device->steps[i];
        if (step->kind != STEP_WRITE)
            continue;
        touch(image, step);
        bool sure = i < flushed && !step->was_dropped;
        bool whole = sure || cut.choice == CHOICE_ALL ||
                     (cut.choice != CHOICE_NONE && random_below(&random, 8) < keep_of_8);
        if (!sure && cut.choice == CHOICE_TORN && may_be_torn(image, step))
            do_torn(device, step, &random);
        else if (whole)
            do_whole(device, step, device->content);
    }
}

static void undo(struct image *image)
{
    struct device *device = image->device;
    for (uint64_t word = 0; word < blocks_of(device) / 64 + 1; word++) {
        for (uint64_t bits = image->dirty[word]; bits != 0; bits &= bits - 1) {
            uint64_t at = (word * 64 + (uint64_t)__builtin_ctzll(bits)) * BLOCK;
            memcpy(device->content + at, image->flushed + at, BLOCK);
        }
        image->dirty[word] = 0;
    }
}

/* What was done to the device behind the recording is in its log from `end` on. */
static void touch_all(struct image *image, uint64_t from)
{
    for (uint64_t i = from; i < device_position(image->device); i++)
        if (image->device->steps[i].kind == STEP_WRITE)
            touch(image, &image->device->steps[i]);
}

void image_end(struct image *image)
{
    image->end = device_position(image->device);
    image->dropped = find_dropped(image);
    touch_all(image, 0);
}

static void advance(struct image *image, uint64_t flushed)
{
    for (; image->applied < flushed; image->applied++) {
        const struct step *step = &image->device->steps[image->applied];
        if (step->kind != STEP_WRITE)
            continue;
        touch(image, step);
        do_whole(image->device, step, image->flushed);
    }
}

void image_make(struct image *image, struct cut cut)
{
    check_bug(cut.position <= image->end && cut.position >= image->applied);
    touch_all(image, image->end);
    advance(image, min_u64(image_flushed_by(image->device, cut.position), image->dropped));
    undo(image);
    device_rewind(image->device, image->end);
    do_steps(image, image->applied, cut);
}

void image_make_again(struct image *image, struct cut first, struct cut second)
{
    check_bug(second.position >= image->end);
    touch_all(image, image->end);
    undo(image);
    do_steps(image, image->applied, first);
    do_steps(image, image->end, second);
    touch_all(image, image->end);
    device_rewind(image->device, second.position);
}
