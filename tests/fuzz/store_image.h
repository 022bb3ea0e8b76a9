/* store_image.h: small sound stores, their structures by place, and damage with right sums.
 *
 * A fuzzer that flips bytes of a store learns nothing: a checksum stops each of them at the door. Here an
 * input is a list of changes to named structures, and afterwards the sums that cover them are made right
 * again, so that the code behind the checksums sees what was changed. */
#ifndef WALRUS_FUZZ_STORE_IMAGE_H
#define WALRUS_FUZZ_STORE_IMAGE_H

#include "../../broker/log/group.h"
#include "memory_disk.h"

#define BASES_MOST 4u

enum place_kind {
    PLACE_STORE,      /* the identity */
    PLACE_SEGMENT,    /* a segment's header */
    PLACE_GROUP,      /* a group's header */
    PLACE_FRAME,      /* a frame's fixed header */
    PLACE_TABLE,      /* records and piece sums of a frame */
    PLACE_PAYLOAD,    /* of a system frame: a catalogue entry; of a batch: its bytes */
    PLACE_CHECKPOINT, /* header */
    PLACE_BODY,       /* of a checkpoint or a sidecar */
    PLACE_INDEX,      /* header of a sidecar */
};

struct place {
    enum place_kind kind;
    uint32_t file;   /* number in base->files */
    uint32_t offset; /* in the file */
    uint32_t length;
    uint32_t parent; /* TABLE, PAYLOAD: their FRAME; FRAME: its GROUP; GROUP: its SEGMENT; BODY: its header */
};

struct base_file {
    char name[MEMORY_NAME];
    uint8_t *bytes; /* what is used of it, whole blocks */
    uint32_t length;
    uint64_t size;
};

struct base {
    struct base_file *files;
    uint32_t file_count;
    struct place *places;
    uint32_t place_count;
};

/* Stores of different histories, made by the real log. How many. */
uint32_t bases_make(struct base bases[BASES_MOST]);

/* One change: `width` bytes (1 to 8) at `offset` of a place become `value`. */
struct change_to {
    uint32_t place, offset, width;
    uint64_t value;
};
enum sums {
    SUMS_AS_THEY_WERE = 0,
    SUMS_RIGHT = 1, /* of everything that was changed and of what covers it */
    SUMS_CHAIN = 2, /* digests of group headers, too, in what follows */
};
/* Puts the base with the changes on an empty disk. Nothing in the changes needs to be in range. */
void base_changed(const struct base *base, const struct change_to *changes, uint32_t count, unsigned sums,
                  struct memory_disk *disk);

#endif
