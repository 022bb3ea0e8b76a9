/* group.c: see group.h. Frame sums are seeded by the segment's salt. The segment is known only when the group
 * is sealed (a roll-back may move it to another one), so payload sums are made with seed 0 while copying,
 * where the bytes are in the cache anyway, and bound to the segment through the seeded sum over the table
 * that holds them. */
#include "group.h"

void frame_copy_payload(void *frame, uint32_t entries, const void *payload, uint32_t payload_bytes)
{
    uint8_t *table_end = (uint8_t *)(frame_records(frame) + entries);
    uint8_t *to = (uint8_t *)frame + frame_header_bytes(entries, payload_bytes);
    const uint8_t *from = payload;
    uint32_t pieces = frame_pieces(payload_bytes);
    for (uint32_t piece = 0; piece < pieces; piece++) {
        uint32_t at = piece * PIECE_BYTES;
        uint32_t length = payload_bytes - at < PIECE_BYTES ? payload_bytes - at : PIECE_BYTES;
        memcpy(to + at, from + at, length);
        uint32_t sum = crc32c(0, to + at, length);
        memcpy(table_end + piece * sizeof sum, &sum, sizeof sum);
    }
    uint8_t *padding = table_end + pieces * sizeof(uint32_t);
    memset(padding, 0, (size_t)(to - padding));
}

void frame_fill(struct frame_header *frame, struct sum_seed seed)
{
    const uint8_t *table = (const uint8_t *)frame + sizeof *frame;
    frame->table_crc = crc32c(seed.crc, table, frame->header_bytes - sizeof *frame);
    frame->crc = crc32c(seed.crc, frame, offsetof(struct frame_header, crc));
}

/* Without the header's own sum: a CRC over bytes that end with their CRC is the same number whatever they
 * are. */
static uint32_t headers_sum(uint32_t sum, const struct frame_header *frame)
{
    return crc32c(sum, frame, offsetof(struct frame_header, crc));
}

void group_fill(uint8_t *group, const struct segment_identity *identity, const struct group_facts *facts)
{
    uint32_t length = (uint32_t)align_up(facts->used, identity->block);
    check_bug(length <= GROUP_MAX && facts->used > sizeof(struct group_header));
    memset(group + facts->used, 0, length - facts->used);
    struct group_header header = {
        .magic = GROUP_MAGIC,
        .header_bytes = sizeof header,
        .number = facts->number,
        .epoch = identity->epoch,
        .epoch_nonce = identity->epoch_nonce,
        .segment = identity->number,
        .offset = facts->offset,
        .length = length,
        .used = facts->used,
        .durable_upto = facts->durable_upto,
        .previous_digest = facts->previous,
        .time_ns = facts->time_ns,
        .frames = facts->frames,
    };
    uint32_t sum = identity->seed.crc;
    uint32_t at = sizeof header;
    for (uint32_t i = 0; i < facts->frames; i++) {
        const struct frame_header *frame = (const struct frame_header *)(const void *)(group + at);
        sum = headers_sum(sum, frame);
        at += frame->header_bytes + frame->payload_bytes;
    }
    check_bug(at == facts->used);
    header.frames_crc = sum;
    header.crc = crc32c(identity->seed.crc, &header, offsetof(struct group_header, crc));
    memcpy(group, &header, sizeof header);
}

enum group_verdict group_check_header(const void *block, const struct segment_identity *identity,
                                      uint64_t offset, uint64_t file_end, struct group_header *header)
{
    memcpy(header, block, sizeof *header);
    if (header->magic != GROUP_MAGIC)
        return all_zero(block, sizeof *header) ? GROUP_BLANK : GROUP_INVALID;
    if (header->crc != crc32c(identity->seed.crc, header, offsetof(struct group_header, crc)))
        return GROUP_INVALID;
    if (header->header_bytes != sizeof *header || header->flags != 0 ||
        !all_zero(header->reserved, sizeof header->reserved))
        return GROUP_INVALID;
    if (header->segment != identity->number || header->epoch != identity->epoch ||
        header->epoch_nonce != identity->epoch_nonce || header->offset != offset)
        return GROUP_INVALID;
    if (header->length > GROUP_MAX || header->length == 0 || header->length % identity->block != 0 ||
        offset > file_end || header->length > file_end - offset)
        return GROUP_INVALID;
    if (header->used > header->length || header->used < sizeof *header + sizeof(struct frame_header) ||
        header->durable_upto >= header->number)
        return GROUP_INVALID;
    return GROUP_VALID;
}

static bool frame_check_fixed(const struct frame_header *frame, uint64_t available, struct sum_seed seed)
{
    if (available < sizeof *frame || frame->magic != FRAME_MAGIC ||
        frame->crc != crc32c(seed.crc, frame, offsetof(struct frame_header, crc)))
        return false;
    if (frame->flags != 0 || !all_zero(frame->reserved, sizeof frame->reserved) ||
        frame->kind < FRAME_BATCH || frame->kind > FRAME_PRODUCER)
        return false;
    if (frame->payload_bytes % PAYLOAD_ALIGN != 0 || frame->payload_bytes > GROUP_MAX ||
        frame->entries > MAX_BATCH_ENTRIES || frame->pieces != frame_pieces(frame->payload_bytes) ||
        frame->header_bytes != frame_header_bytes(frame->entries, frame->payload_bytes))
        return false;
    return frame->header_bytes <= available && frame->payload_bytes <= available - frame->header_bytes;
}

bool frame_check(const void *at, uint64_t available, struct sum_seed seed, bool payload)
{
    const struct frame_header *frame = at;
    if (!frame_check_fixed(frame, available, seed))
        return false;
    const uint8_t *table = (const uint8_t *)frame + sizeof *frame;
    if (frame->table_crc != crc32c(seed.crc, table, frame->header_bytes - sizeof *frame))
        return false;
    const struct entry_record *records = (const struct entry_record *)(const void *)table;
    uint64_t total = 0;
    uint32_t ended = 0;
    for (uint32_t i = 0; i < frame->entries; i++) {
        total += align_up(records[i].length, PAYLOAD_ALIGN);
        ended += (records[i].flags & ENTRY_CONTINUES) == 0;
    }
    if (total != frame->payload_bytes || ended != frame->ended)
        return false;
    if (!payload)
        return true;
    const uint8_t *sums = (const uint8_t *)(records + frame->entries);
    const uint8_t *from = (const uint8_t *)frame + frame->header_bytes;
    for (uint32_t piece = 0; piece < frame->pieces; piece++) {
        uint32_t start = piece * PIECE_BYTES, want;
        uint32_t left = frame->payload_bytes - start;
        memcpy(&want, sums + piece * sizeof want, sizeof want);
        if (want != crc32c(0, from + start, left < PIECE_BYTES ? left : PIECE_BYTES))
            return false;
    }
    return true;
}

enum group_verdict group_check_body(const uint8_t *group, const struct group_header *header,
                                    const struct segment_identity *identity)
{
    uint32_t at = sizeof *header;
    uint32_t sum = identity->seed.crc;
    for (uint32_t i = 0; i < header->frames; i++) {
        const struct frame_header *frame = (const struct frame_header *)(const void *)(group + at);
        if (!frame_check(frame, header->used - at, identity->seed, true) || frame->offset != at)
            return GROUP_INVALID;
        sum = headers_sum(sum, frame);
        at += frame->header_bytes + frame->payload_bytes;
    }
    if (at != header->used || sum != header->frames_crc || !all_zero(group + at, header->length - at))
        return GROUP_INVALID;
    return GROUP_VALID;
}

const struct frame_header *group_next_frame(const uint8_t *group, const struct group_header *header,
                                            const struct frame_header *frame)
{
    uint32_t at =
        frame == NULL ? (uint32_t)sizeof *header : frame->offset + frame->header_bytes + frame->payload_bytes;
    return at < header->used ? (const struct frame_header *)(const void *)(group + at) : NULL;
}
