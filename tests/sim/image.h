/* image.h: what a simulated store folder holds, as a value: files, names, and for everything that is not
 * durable yet the choices a power cut has. Copying one is cheap (blocks and files are shared until
 * written), so that one prefix of a run can be tried with many ends.
 *
 * One 4 KiB block of a file is a slot:
 *   now       what a read returns (NULL: zeros)
 *   versions  NULL: the medium holds `now`. Else everything the medium may hold: what it held at the last
 *             successful flush and all that was written since
 *   POISONED  a flush that covered it failed: reads go on showing `now`, later flushes answer 0 and do
 *             nothing for it, until it is written again
 *   WHOLE     the last write to it said that it succeeded
 *   SEALED    WHOLE, and then flushed with success, not zeros: from then on a write to it breaks G17
 *
 * Names: `now` is what list and open see, `durable` what the last SYNC_DIRECTORY made sure of, `changes`
 * lies between. A power cut keeps any subset of the changes, in order. A rename is one change.
 *
 * A crash leaves `landings`: what was in flight. disk_image_power and disk_image_kill turn an image with
 * landings into one that a next life can start on. */
#ifndef WALRUS_SIM_IMAGE_H
#define WALRUS_SIM_IMAGE_H

#include "../../broker/io/io.h"
#include "seed.h"

#define SIM_BLOCK  4096u
#define SIM_SECTOR 512u
#define SIM_NAME   96u
#define SIM_SIZES  8u

struct block {
    uint32_t refs;
    uint64_t hash;
    uint8_t bytes[SIM_BLOCK];
};

struct versions {
    uint32_t refs;
    uint32_t count;
    struct block *block[]; /* NULL: zeros; &block_truncated: cut off by TRUNCATE, reads as zeros */
};

extern struct block block_truncated;

enum slot_flag { SLOT_POISONED = 1, SLOT_SEALED = 2, SLOT_WHOLE = 4 };

struct slot {
    struct block *now;
    struct versions *versions;
    uint8_t flags;
};

struct inode {
    uint32_t refs;
    bool segment; /* created for direct I/O: part of the log */
    uint32_t size_count;
    uint64_t
        sizes[SIM_SIZES]; /* the last one is the size now; the others are what a power cut may bring back */
    uint64_t space;       /* bytes it takes from the disk */
    uint32_t slot_count;
    struct slot *slots;
};

struct name {
    char name[SIM_NAME];
    uint32_t inode;
};

struct names {
    uint32_t count, capacity;
    struct name *list;
};

enum change_kind { CHANGE_CREATE, CHANGE_RENAME, CHANGE_UNLINK };

struct change {
    enum change_kind kind;
    uint32_t inode;
    char name[SIM_NAME];
    char new_name[SIM_NAME];
};

/* In flight at a crash (due == 0), or of a killed broker and still on its way (due > 0; WRITE only). */
struct landing {
    enum io_kind kind; /* WRITE (one block), ALLOCATE, TRUNCATE, or CREATE, RENAME, UNLINK as `change` */
    uint32_t inode;
    uint32_t index;
    uint64_t length;
    uint64_t size; /* WRITE: the file is at least this long then */
    struct block *block;
    struct change change;
    int64_t due;
};

struct image {
    uint32_t inode_count, inode_capacity;
    struct inode **inodes; /* by number; NULL: gone */
    struct names now, durable;
    uint32_t change_count, change_capacity;
    struct change *changes;
    uint32_t landing_count, landing_capacity;
    struct landing *landings;
    int64_t time;   /* virtual time when it was taken */
    uint64_t space; /* bytes the disk has */
};

struct image *image_new(uint64_t space);
struct image *image_copy(const struct image *from);
void image_free(struct image *image);
/* Equal images have equal hashes: names, sizes, bytes, and all that a crash may still change. */
uint64_t image_hash(const struct image *image);

/* ------------------------------------------------------------------------------ crashes */

enum crash { CRASH_POWER, CRASH_KILL };
const char *crash_name(enum crash crash);

/* How the open questions of a crash are answered: by a bit each (0: as before, 1: as written), or by
 * chance, where a block may also become an older version, a mix of sectors, or garbage. */
struct choices {
    bool by_chance;
    uint64_t mask;
    uint32_t next;
    struct seed seed;
    uint32_t keep; /* by_chance: how many in a thousand end up as written */
    uint32_t tear; /* by_chance: how many in a thousand are torn or garbage */
};
struct choices choices_mask(uint64_t mask);
struct choices choices_chance(uint64_t seed);

/* How many open questions a crash of this kind has. */
uint32_t image_questions(const struct image *image, enum crash crash);
/* A new image, as the next life finds it. */
struct image *image_crash(const struct image *image, enum crash crash, struct choices *choices);

/* ------------------------------------------------------------------------------------------------ for
 * tests */

uint32_t image_find(const struct image *image, const char *name); /* inode number, or UINT32_MAX */
uint64_t image_size(const struct image *image, const char *name);
bool image_block_zero(const struct image *image, const char *name, uint32_t index);
/* Changes what the medium and reads hold, as rot would. */
void image_flip(struct image *image, const char *name, uint64_t offset, uint8_t mask);
void image_set_block(struct image *image, const char *name, uint32_t index, const void *bytes);
void image_get_block(const struct image *image, const char *name, uint32_t index, void *bytes);
/* A file as it is, under one more name: with its own bytes. */
void image_clone_file(struct image *image, const char *name, const char *new_name);
void image_remove_file(struct image *image, const char *name);
void image_resize_file(struct image *image, const char *name, uint64_t size);

/* ------------------------------------------------------------------------------------------------ for the
 * disk */

struct block *block_new(const void *bytes); /* NULL for zeros */
struct block *block_ref(struct block *block);
void block_drop(struct block *block);

struct inode *image_own(struct image *image, uint32_t number); /* for writing */
struct slot *image_slot(struct image *image, uint32_t number, uint32_t index);
void slot_offer(struct slot *slot, struct block *block); /* the medium may hold it from now on */
void slot_show(struct slot *slot, struct block *block);  /* and reads return it */
void slot_settle(struct slot *slot, bool segment);       /* flushed with success */
void inode_resize(struct image *image, uint32_t number, uint64_t size, bool cut);
uint32_t image_new_inode(struct image *image, bool segment);
void image_copy_names(struct names *to, const struct names *from);
void image_drop_inode(struct image *image, uint32_t number);
void names_apply(struct names *names, const struct change *change);
uint32_t names_find(const struct names *names, const char *name);
void image_change(struct image *image,
                  const struct change *change); /* seen at once, durable at the next sync */
void image_sync_names(struct image *image);
void image_add_landing(struct image *image, const struct landing *landing);
uint64_t image_used(const struct image *image);
bool image_lands_later(const struct image *image, uint32_t inode);
void image_land_due(struct image *image, int64_t now);

#endif
