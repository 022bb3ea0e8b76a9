/* Groups and frames in memory, no disk: what does not check out is rejected, whatever it is; and
 * FORMAT.md against format.h. */
#include "life.h"

#include "format_fields.h"

#include <glob.h>

#define BLOCK 4096u

static struct segment_identity identity_make(uint64_t number)
{
    uint64_t salt[2] = {UINT64_C(0x1122334455667788) * number, UINT64_C(0x99aabbccddeeff00) + number};
    return (struct segment_identity){
        .number = number, .epoch = 3, .epoch_nonce = 77, .block = BLOCK, .seed = seed_from_salt(salt)};
}

struct made {
    _Alignas(BLOCK) uint8_t bytes[4 * BLOCK];
    struct segment_identity identity;
    uint64_t offset, file_end;
};

static struct frame_header *frame_add(struct made *m, uint32_t at, uint32_t entries, uint32_t bytes)
{
    _Alignas(16) uint8_t payload[BLOCK];
    uint32_t padded = (uint32_t)align_up(bytes, PAYLOAD_ALIGN);
    struct frame_header *frame = (struct frame_header *)(void *)(m->bytes + at);
    *frame = (struct frame_header){
        .magic = FRAME_MAGIC,
        .kind = FRAME_BATCH,
        .header_bytes = frame_header_bytes(entries, padded * entries),
        .payload_bytes = padded * entries,
        .topic = 5,
        .entries = entries,
        .first_sequence = 9,
        .ended = entries,
        .batch_entries = entries,
        .batch_bytes = (uint64_t)padded * entries,
        .offset = at,
        .pieces = frame_pieces(padded * entries),
        .level = LEVEL_DURABLE,
    };
    memset(payload, 0, sizeof payload);
    for (uint32_t i = 0; i < entries; i++) {
        frame_records(frame)[i] = (struct entry_record){.length = bytes};
        entry_fill(payload + (size_t)i * padded, bytes, "t", 9 + i);
    }
    frame_copy_payload(frame, entries, payload, padded * entries);
    frame_fill(frame, m->identity.seed);
    return frame;
}

/* Two frames, of 3 and 1 entries, in one block. */
static void make(struct made *m)
{
    *m = (struct made){.identity = identity_make(4), .offset = 3 * BLOCK, .file_end = 20 * BLOCK};
    uint32_t at = sizeof(struct group_header);
    struct frame_header *frame = frame_add(m, at, 3, 50);
    at += frame->header_bytes + frame->payload_bytes;
    frame = frame_add(m, at, 1, 7);
    at += frame->header_bytes + frame->payload_bytes;
    struct group_facts facts = {
        .number = 12, .offset = m->offset, .durable_upto = 11, .time_ns = 1, .used = at, .frames = 2};
    group_fill(m->bytes, &m->identity, &facts);
}

static enum group_verdict judge_at(const struct made *m, const struct segment_identity *identity,
                                   uint64_t offset)
{
    struct group_header header;
    enum group_verdict verdict = group_check_header(m->bytes, identity, offset, m->file_end, &header);
    return verdict != GROUP_VALID ? verdict : group_check_body(m->bytes, &header, identity);
}

static enum group_verdict judge(const struct made *m)
{
    return judge_at(m, &m->identity, m->offset);
}

static struct group_header *header_of(struct made *m)
{
    return (struct group_header *)(void *)m->bytes;
}

static struct frame_header *first_frame(struct made *m)
{
    return (struct frame_header *)(void *)(m->bytes + sizeof(struct group_header));
}

/* As somebody would who knows the salt: every sum is right again. */
static void sum_again(struct made *m)
{
    struct group_header *h = header_of(m);
    h->crc = crc32c(m->identity.seed.crc, h, offsetof(struct group_header, crc));
}

static void sum_frames_again(struct made *m)
{
    struct group_header *h = header_of(m);
    uint32_t sum = m->identity.seed.crc, at = sizeof *h;
    for (uint32_t i = 0; i < 2; i++) {
        struct frame_header *frame = (struct frame_header *)(void *)(m->bytes + at);
        uint32_t length = frame->header_bytes + frame->payload_bytes;
        frame->crc = crc32c(m->identity.seed.crc, frame, offsetof(struct frame_header, crc));
        sum = crc32c(sum, frame, offsetof(struct frame_header, crc));
        if (length % PAYLOAD_ALIGN != 0 || at + length > sizeof m->bytes - sizeof *frame)
            break;
        at += length;
    }
    h->frames_crc = sum;
    sum_again(m);
}

/* ----------------------------------------------------------------------------------------------- damage */

Test(format, a_group_as_made_is_valid_and_its_frames_are_found)
{
    static struct made m;
    make(&m);
    cr_assert_eq(judge(&m), GROUP_VALID);
    const struct frame_header *frame = group_next_frame(m.bytes, header_of(&m), NULL);
    cr_assert_eq(frame->entries, 3u);
    frame = group_next_frame(m.bytes, header_of(&m), frame);
    cr_assert_eq(frame->entries, 1u);
    cr_assert_null(group_next_frame(m.bytes, header_of(&m), frame));
}

Test(format, g13_every_single_flipped_bit_of_a_group_is_detected)
{
    static struct made m;
    make(&m);
    uint32_t length = header_of(&m)->length;
    cr_assert_eq(length, BLOCK);
    for (uint32_t bit = 0; bit < length * 8; bit++) {
        m.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        cr_assert_neq(judge(&m), GROUP_VALID, "bit %u of byte %u", bit % 8, bit / 8);
        m.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    cr_assert_eq(judge(&m), GROUP_VALID);
}

Test(format, g13_a_flipped_bit_of_a_frame_alone_is_detected_without_the_group)
{
    static struct made m;
    make(&m);
    struct frame_header *frame = first_frame(&m);
    uint32_t length = frame->header_bytes + frame->payload_bytes;
    uint8_t *bytes = (uint8_t *)frame;
    cr_assert(frame_check(frame, length, m.identity.seed, true));
    for (uint32_t bit = 0; bit < length * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        cr_assert(!frame_check(frame, length, m.identity.seed, true), "bit %u of byte %u", bit % 8, bit / 8);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

Test(format, g13_a_torn_group_is_detected_wherever_it_was_torn)
{
    static struct made m;
    make(&m);
    for (uint32_t sectors = 0; sectors < (1u << (BLOCK / 512)) - 1; sectors++) {
        static struct made torn;
        torn = m;
        bool lost = false;
        for (uint32_t s = 0; s < BLOCK / 512; s++) {
            if ((sectors >> s & 1) != 0)
                continue;
            lost = lost || !all_zero(m.bytes + s * 512, 512);
            memset(torn.bytes + s * 512, 0, 512);
        }
        cr_assert_eq(judge(&torn) == GROUP_VALID, !lost, "sectors %02x", sectors);
    }
}

Test(format, zeros_are_blank_and_anything_else_is_invalid)
{
    static struct made m;
    make(&m);
    memset(m.bytes, 0, sizeof m.bytes);
    cr_assert_eq(judge(&m), GROUP_BLANK);
    m.bytes[100] = 1;
    cr_assert_eq(judge(&m), GROUP_INVALID);
    memset(m.bytes, 0xff, sizeof m.bytes);
    cr_assert_eq(judge(&m), GROUP_INVALID);
}

/* ---------------------------------------------------------------------------------------- another place */

Test(format, g18_a_group_at_another_offset_is_rejected)
{
    static struct made m;
    make(&m);
    cr_assert_neq(judge_at(&m, &m.identity, m.offset + BLOCK), GROUP_VALID);
    cr_assert_neq(judge_at(&m, &m.identity, m.offset - BLOCK), GROUP_VALID);
    cr_assert_neq(judge_at(&m, &m.identity, 0), GROUP_VALID);
}

Test(format, g18_a_group_of_another_segment_is_rejected_even_with_the_same_salt)
{
    static struct made m;
    make(&m);
    struct segment_identity other = m.identity;
    other.number++;
    cr_assert_neq(judge_at(&m, &other, m.offset), GROUP_VALID);
}

Test(format, g15_a_group_of_another_epoch_or_attempt_is_rejected_even_with_the_same_salt)
{
    static struct made m;
    make(&m);
    struct segment_identity other = m.identity;
    other.epoch++;
    cr_assert_neq(judge_at(&m, &other, m.offset), GROUP_VALID);
    other = m.identity;
    other.epoch_nonce ^= 1;
    cr_assert_neq(judge_at(&m, &other, m.offset), GROUP_VALID);
}

Test(format, g15_a_group_under_another_salt_is_rejected)
{
    static struct made m;
    make(&m);
    struct segment_identity other = m.identity;
    other.seed = identity_make(5).seed;
    cr_assert_neq(judge_at(&m, &other, m.offset), GROUP_VALID);
}

Test(format, digests_of_headers_that_differ_in_one_bit_differ)
{
    static struct made m;
    make(&m);
    struct digest before = digest_of(m.identity.seed, m.bytes, sizeof(struct group_header));
    for (uint32_t bit = 0; bit < sizeof(struct group_header) * 8; bit++) {
        m.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        cr_assert(!digest_equal(before, digest_of(m.identity.seed, m.bytes, sizeof(struct group_header))));
        m.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    struct sum_seed other = identity_make(5).seed;
    cr_assert(!digest_equal(before, digest_of(other, m.bytes, sizeof(struct group_header))));
}

/* ----------------------------------------------------------------------------------------------- limits */

#define rejects_header(change)                                                                               \
    do {                                                                                                     \
        make(&m);                                                                                            \
        struct group_header *h = header_of(&m);                                                              \
        change;                                                                                              \
        sum_again(&m);                                                                                       \
        cr_assert_neq(judge(&m), GROUP_VALID, "accepted: %s", #change);                                      \
    } while (0)

Test(format, g16_lengths_of_a_group_are_held_to_their_limits_under_right_sums)
{
    static struct made m;
    rejects_header(h->length = 0);
    rejects_header(h->length = BLOCK + 512);
    rejects_header(h->length = 2 * BLOCK - 1);
    rejects_header(h->length = GROUP_MAX + BLOCK);
    rejects_header(h->length = UINT32_MAX - BLOCK + 1);
    rejects_header(h->length = UINT32_MAX);
    rejects_header(h->used = h->length + 1);
    rejects_header(h->used = UINT32_MAX);
    rejects_header(h->used = 0);
    rejects_header(h->used = sizeof *h);
    rejects_header(h->used -= 16);
    rejects_header(h->used += 16);
    rejects_header(h->frames = 0);
    rejects_header(h->frames = 1);
    rejects_header(h->frames = 3);
    rejects_header(h->frames = UINT32_MAX);
    rejects_header(h->header_bytes = 191);
    rejects_header(h->header_bytes = 0);
    rejects_header(h->durable_upto = h->number);
    rejects_header(h->durable_upto = UINT64_MAX);
    rejects_header(h->offset += BLOCK);
    make(&m);
    m.file_end = m.offset + BLOCK;
    cr_assert_eq(judge(&m), GROUP_VALID, "a group may end where the file ends");
    m.file_end--;
    cr_assert_neq(judge(&m), GROUP_VALID, "a group beyond the end of the file");
    m.file_end = m.offset - 1;
    cr_assert_neq(judge(&m), GROUP_VALID);
    m.file_end = 0;
    cr_assert_neq(judge(&m), GROUP_VALID);
}

/* Its frames would be looked for where there is nothing of it. */
Test(format, g16_a_group_that_uses_more_than_its_length_is_rejected_before_its_frames_are_looked_at)
{
    static struct made m;
    struct group_header copy;
    make(&m);
    header_of(&m)->used = header_of(&m)->length + PAYLOAD_ALIGN;
    sum_again(&m);
    cr_assert_neq(group_check_header(m.bytes, &m.identity, m.offset, m.file_end, &copy), GROUP_VALID);
}

Test(format, g18_a_valid_frame_that_is_not_the_one_of_its_group_is_rejected)
{
    static struct made m;
    make(&m);
    first_frame(&m)->first_sequence++;
    frame_fill(first_frame(&m), m.identity.seed);
    cr_assert(frame_check(first_frame(&m), BLOCK, m.identity.seed, true));
    cr_assert_neq(judge(&m), GROUP_VALID);
}

Test(format, reserved_bytes_and_flags_of_a_group_must_be_zero)
{
    static struct made m;
    rejects_header(h->flags = 1);
    for (unsigned i = 0; i < sizeof header_of(&m)->reserved; i++)
        rejects_header(h->reserved[i] = 1);
}

#define rejects_frame(change)                                                                                \
    do {                                                                                                     \
        make(&m);                                                                                            \
        struct frame_header *f = first_frame(&m);                                                            \
        change;                                                                                              \
        sum_frames_again(&m);                                                                                \
        cr_assert_neq(judge(&m), GROUP_VALID, "accepted: %s", #change);                                      \
        cr_assert(!frame_check(f, sizeof m.bytes - sizeof(struct group_header), m.identity.seed, true),      \
                  "accepted alone: %s", #change);                                                            \
    } while (0)

Test(format, g16_lengths_of_a_frame_are_held_to_their_limits_under_right_sums)
{
    static struct made m;
    rejects_frame(f->payload_bytes += 16);
    rejects_frame(f->payload_bytes -= 16);
    rejects_frame(f->payload_bytes += 1);
    rejects_frame(f->payload_bytes = 0);
    rejects_frame(f->payload_bytes = GROUP_MAX + 16);
    rejects_frame(f->payload_bytes = UINT32_MAX & ~15u);
    rejects_frame(f->header_bytes = 0);
    rejects_frame(f->header_bytes += 16);
    rejects_frame(f->header_bytes = UINT32_MAX & ~15u);
    rejects_frame(f->entries = 0);
    rejects_frame(f->entries = 2);
    rejects_frame(f->entries = 4);
    rejects_frame(f->entries = MAX_BATCH_ENTRIES + 1);
    rejects_frame(f->entries = UINT32_MAX);
    rejects_frame(f->ended = 0);
    rejects_frame(f->ended -= 1);
    rejects_frame(f->ended += 1);
    rejects_frame(f->ended = UINT32_MAX);
    rejects_frame(f->pieces = 0);
    rejects_frame(f->pieces = 2);
    rejects_frame(f->pieces = UINT32_MAX);
    rejects_frame(f->kind = 0);
    rejects_frame(f->kind = FRAME_PRODUCER + 1);
    rejects_frame(f->kind = UINT16_MAX);
    rejects_frame(f->magic ^= 1);
}

Test(format, reserved_bytes_and_flags_of_a_frame_must_be_zero)
{
    static struct made m;
    rejects_frame(f->flags = 1);
    for (unsigned i = 0; i < sizeof first_frame(&m)->reserved; i++)
        rejects_frame(f->reserved[i] = 1);
}

Test(format, a_frame_that_does_not_lie_where_it_says_is_rejected)
{
    static struct made m;
    make(&m);
    first_frame(&m)->offset += 16;
    sum_frames_again(&m);
    cr_assert_neq(judge(&m), GROUP_VALID);
}

Test(format, g16_records_whose_lengths_do_not_add_up_are_rejected)
{
    static struct made m;
    uint32_t lengths[] = {0, 33, 65, 66, 4096, UINT32_MAX - 15, UINT32_MAX};
    for (size_t i = 0; i < array_count(lengths); i++) {
        make(&m);
        struct frame_header *f = first_frame(&m);
        frame_records(f)[1].length = lengths[i];
        f->table_crc = crc32c(m.identity.seed.crc, f + 1, f->header_bytes - sizeof *f);
        sum_frames_again(&m);
        cr_assert_eq(judge(&m) == GROUP_VALID, align_up((uint64_t)lengths[i], 16) == 64, "length %u",
                     lengths[i]);
    }
}

Test(format, a_frame_of_which_less_is_at_hand_than_it_says_is_not_read_beyond)
{
    static struct made m;
    make(&m);
    struct frame_header *f = first_frame(&m);
    uint32_t length = f->header_bytes + f->payload_bytes;
    for (uint32_t have = 0; have < length; have++) {
        uint8_t *exactly = malloc(have + 1); /* so that a sanitizer sees a step beyond it */
        cr_assert_not_null(exactly);
        memcpy(exactly, f, have);
        cr_assert(!frame_check(exactly, have, m.identity.seed, true), "%u of %u bytes", have, length);
        free(exactly);
    }
}

Test(format, group_limits_leave_room_for_the_largest_whole_batch)
{
    uint64_t largest = (uint64_t)frame_header_bytes(MAX_BATCH_ENTRIES, MAX_WHOLE_PAYLOAD) + MAX_WHOLE_PAYLOAD;
    cr_assert_leq(sizeof(struct group_header) + largest + 1024, GROUP_MAX - BLOCK_MAX);
    cr_assert_geq(SEGMENT_MIN, GROUP_MAX + BLOCK_MAX,
                  "a group and the header block fit the smallest segment");
}

/* -------------------------------------------------------------------------------------------- FORMAT.md */

struct document {
    char *text;
    size_t length;
};

static struct document document_load(void)
{
    const char *path = getenv("WALRUS_TEST_FORMAT");
    cr_assert_not_null(path, "WALRUS_TEST_FORMAT is not set; run this through meson test");
    FILE *file = fopen(path, "re");
    cr_assert_not_null(file, "%s: %s", path, strerror(errno));
    struct document d = {.text = calloc(1, 1 << 20)};
    cr_assert_not_null(d.text);
    d.length = fread(d.text, 1, (1 << 20) - 1, file);
    fclose(file);
    return d;
}

/* The heading of the struct's table in the document: "`struct NAME`, N bytes". */
static const char *table_of(const struct document *d, const char *name, unsigned bytes)
{
    char heading[96];
    snprintf(heading, sizeof heading, "`struct %s`, %u bytes", name, bytes);
    const char *at = strstr(d->text, heading);
    cr_assert_not_null(at, "FORMAT.md has no table \"%s\"", heading);
    return at;
}

Test(format, the_tables_of_format_md_are_those_of_format_h)
{
    struct document d = document_load();
    const char *at = NULL;
    unsigned rows = 0;
    for (size_t i = 0; i < array_count(format_fields); i++) {
        const struct format_field *f = &format_fields[i];
        if (f->field == NULL) {
            at = table_of(&d, f->structure, f->bytes);
            continue;
        }
        char row[96];
        snprintf(row, sizeof row, "\n| %u | %u | %s |", f->offset, f->bytes, f->field);
        cr_assert_not_null(at);
        const char *there = strstr(at, row);
        const char *next = strstr(at + 1, "\n`struct ");
        cr_assert(there != NULL && (next == NULL || there < next), "FORMAT.md lacks%s of struct %s", row + 1,
                  f->structure);
        at = there;
        rows++;
    }
    unsigned written = 0;
    for (const char *line = strstr(d.text, "\n| "); line != NULL; line = strstr(line + 1, "\n| "))
        written += line[3] >= '0' && line[3] <= '9';
    cr_assert_eq(written, rows, "FORMAT.md has %u rows of fields, format.h %u", written, rows);
    free(d.text);
}

/* "`SUITE::NAME`" in the document: a test of this folder. */
static bool test_there(const char *suite, const char *name)
{
    const char *folder = getenv("WALRUS_TEST_SOURCES");
    cr_assert_not_null(folder, "WALRUS_TEST_SOURCES is not set; run this through meson test");
    char pattern[512], wanted[256];
    snprintf(pattern, sizeof pattern, "%s/test_*.c", folder);
    snprintf(wanted, sizeof wanted, "Test(%s, %s", suite, name);
    glob_t files;
    bool there = false;
    cr_assert_eq(glob(pattern, 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc && !there; i++) {
        char line[256];
        FILE *file = fopen(files.gl_pathv[i], "re");
        cr_assert_not_null(file);
        while (!there && fgets(line, sizeof line, file) != NULL)
            there = strncmp(line, wanted, strlen(wanted)) == 0 && strchr("),", line[strlen(wanted)]) != NULL;
        fclose(file);
    }
    globfree(&files);
    return there;
}

Test(format, every_test_that_format_md_names_for_a_case_is_there)
{
    struct document d = document_load();
    unsigned named = 0;
    for (const char *at = d.text; (at = strstr(at, "::")) != NULL; at += 2) {
        char suite[64] = "", name[160] = "";
        const char *from = at;
        while (from > d.text && from[-1] != '`' && at - from < 40)
            from--;
        snprintf(suite, sizeof suite, "%.*s", (int)(at - from), from);
        if (sscanf(at + 2, "%159[a-z0-9_]", name) != 1)
            continue;
        cr_assert(test_there(suite, name), "FORMAT.md names %s::%s", suite, name);
        named++;
    }
    cr_assert_geq(named, 20u);
    free(d.text);
}
