/* group.h: making and taking apart one group: the unit that is valid as a whole or not at all.
 *
 * Making: log_write appends frames behind each other (frame_size, frame_copy_in); when the group is sealed,
 * frame_fill writes each fixed header and group_fill the group's, which covers them all.
 *
 * Taking apart, what a disk returned: group_check_header believes nothing but the header's own checksum, then
 * place, segment and epoch; group_check_body walks the frames by lengths that the header checksum and then
 * each frame checksum cover. Every length is checked by subtraction against what is there. Bytes that do not
 * check out are a return value, never an assert. */
#ifndef WALRUS_LOG_GROUP_H
#define WALRUS_LOG_GROUP_H

#include "checksum.h"
#include "../../shared/layout.h"

/* What identifies the groups of one segment. */
struct segment_identity {
    uint64_t number;
    uint64_t epoch;
    uint64_t epoch_nonce;
    uint32_t block;
    struct sum_seed seed;
};

/* Bytes from the frame's start to its payload, and of the whole frame. */
static inline uint32_t frame_pieces(uint32_t payload_bytes)
{
    return (payload_bytes + PIECE_BYTES - 1) / PIECE_BYTES;
}

static inline uint32_t frame_header_bytes(uint32_t entries, uint32_t payload_bytes)
{
    return (uint32_t)align_up(sizeof(struct frame_header) + (uint64_t)entries * sizeof(struct entry_record) +
                                  frame_pieces(payload_bytes) * sizeof(uint32_t),
                              PAYLOAD_ALIGN);
}

static inline struct entry_record *frame_records(void *frame)
{
    return (struct entry_record *)(void *)((uint8_t *)frame + sizeof(struct frame_header));
}

/* Copies payload into the frame at `frame` piece by piece and writes each piece's checksum; records must be
 * in place. */
void frame_copy_payload(void *frame, uint32_t entries, const void *payload, uint32_t payload_bytes);
/* Same, sum only: the payload is in place already. Seeded sums are made when the group is sealed for a
 * segment. */
void frame_fill(struct frame_header *frame, struct sum_seed seed);
/* Header of a group whose frames are filled and start at sizeof(struct group_header); zeroes the padding. */
struct group_facts {
    uint64_t number, offset, durable_upto, time_ns;
    struct digest previous;
    uint32_t used, frames;
};
void group_fill(uint8_t *group, const struct segment_identity *identity, const struct group_facts *facts);

enum group_verdict {
    GROUP_VALID,
    GROUP_BLANK,   /* zeros where the header should be */
    GROUP_INVALID, /* anything else that is not a valid group of this segment at this place */
};

/* The header at `block` (at least sizeof(struct group_header) bytes), which was read from `offset`. Does not
 * check number and
 * chain: the caller does. Copies it to *header. */
enum group_verdict group_check_header(const void *block, const struct segment_identity *identity,
                                      uint64_t offset, uint64_t file_end, struct group_header *header);
/* The whole group, header->length bytes of it. `frame` (may be NULL) is called for each frame, only if all of
 * it is valid. */
enum group_verdict group_check_body(const uint8_t *group, const struct group_header *header,
                                    const struct segment_identity *identity);

/* One frame of which `available` bytes are at hand: checks fixed header, table, and with `payload` all
 * pieces. False: damaged. */
bool frame_check(const void *frame, uint64_t available, struct sum_seed seed, bool payload);

/* Steps over the frames of a checked group. NULL at the end. */
const struct frame_header *group_next_frame(const uint8_t *group, const struct group_header *header,
                                            const struct frame_header *frame);

#endif
