/* What recover.c, restore.c and group.c decide only about a store that somebody forged, that changes while
 * the start reads it, or on a disk that is full. G13, G14. */
#include "life.h"

#define FORGED_FILE "00000090.segment"

static struct life life;
static struct disk disk;
static const int A;

static void make(void)
{
    life_make(&life);
    life_start(&life);
    life_quiet(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(branches_recover, .init = make, .fini = clean, .timeout = 120);

static void same_after_restarts(void)
{
    for (unsigned i = 0; i < 2; i++) {
        life_crash(&life);
        life_start(&life);
        life_verify(&life);
    }
}

/* --------------------------------------------------------------------- what happens while the start reads */

static void (*meanwhile)(void);
static void (*submit_on)(struct io *io, struct io_op *op);
static bool (*awaited)(const struct io_op *op);

static void happen(void)
{
    void (*what)(void) = meanwhile;
    meanwhile = NULL;
    what();
}

/* The first random numbers of a start are drawn when all groups are walked and none is copied yet. */
static int random_meanwhile(struct io *io, void *buffer, size_t length)
{
    if (meanwhile != NULL)
        happen();
    return life.inner->random(io, buffer, length);
}

static void between_walk_and_copy(void (*what)(void))
{
    life_open(&life);
    meanwhile = what;
    life.functions.random = random_meanwhile;
}

static void submit_meanwhile(struct io *io, struct io_op *op)
{
    if (meanwhile != NULL && awaited(op))
        happen();
    submit_on(io, op);
}

static void before_op(bool (*which)(const struct io_op *op), void (*what)(void))
{
    life_open(&life);
    meanwhile = what;
    awaited = which;
    submit_on = life.functions.submit;
    life.functions.submit = submit_meanwhile;
}

/* The last group of a killed broker: nothing proves that it was durable, so the next start copies it. */
static struct disk_group last;

static void killed_with_an_unproved_group(void)
{
    for (unsigned i = 0; i < 3; i++)
        life_put(&life, "t", 2, 1000);
    life_crash(&life);
    disk_scan(&life, &disk);
    last = *disk_last(&disk);
}

static void poke_header(struct group_header g)
{
    g.crc = crc32c(last.identity.seed.crc, &g, offsetof(struct group_header, crc));
    file_poke(&life, last.file, last.header.offset, &g, sizeof g);
}

static void cut_it(void)
{
    file_cut(&life, last.file, last.header.offset);
}

static void damage_its_header(void)
{
    file_flip(&life, last.file, last.header.offset + offsetof(struct group_header, time_ns), 3);
}

static void number_it_anew(void)
{
    struct group_header g = last.header;
    g.number++;
    poke_header(g);
}

static void lengthen_it(void)
{
    struct group_header g = last.header;
    g.length += last.identity.block;
    poke_header(g);
}

static void damage_its_frame(void)
{
    file_flip(&life, last.file, last.header.offset + last.header.used - 16, 3);
}

static void refused_when(void (*what)(void))
{
    killed_with_an_unproved_group();
    between_walk_and_copy(what);
    life_refused(&life, -EBADMSG, "it changed while the start read it");
    cr_assert_null(meanwhile, "nothing happened between");
}

Test(branches_recover, g13_a_group_that_is_cut_off_before_it_is_copied_refuses_the_start)
{
    refused_when(cut_it);
}

Test(branches_recover, g13_a_group_whose_header_is_damaged_before_it_is_copied_refuses_the_start)
{
    refused_when(damage_its_header);
}

Test(branches_recover, g13_a_group_with_another_number_than_the_one_walked_is_not_copied)
{
    refused_when(number_it_anew);
}

Test(branches_recover, g13_a_group_with_another_length_than_the_one_walked_is_not_copied)
{
    refused_when(lengthen_it);
}

Test(branches_recover, g13_a_group_whose_frame_is_damaged_before_it_is_copied_refuses_the_start)
{
    refused_when(damage_its_frame);
}

static struct disk_group large; /* reached by a read of its own */

static bool reads_the_large_one(const struct io_op *op)
{
    return op->kind == IO_READ && op->offset == large.header.offset;
}

static void come_short(void)
{
    io_fault_set(life.io, IO_READ, &(struct fault){.action = FAULT_SHORT, .nth = 1});
}

static void fail_to_read(void)
{
    io_fault_set(life.io, IO_READ, &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = 1});
}

static void killed_behind_a_large_group(void)
{
    life_put(&life, "t", 1, 100);
    life_put(&life, "t", 1, 1000000);
    life_put(&life, "t", 1, 100);
    life_crash(&life);
    disk_scan(&life, &disk);
    for (size_t i = 0; i < disk.group_count; i++)
        if (disk.groups[i].header.length > 1000000)
            large = disk.groups[i];
    cr_assert_gt(large.header.length, 1000000u);
}

Test(branches_recover, g14_a_group_that_a_read_brings_only_in_part_is_not_taken_for_the_tail)
{
    killed_behind_a_large_group();
    before_op(reads_the_large_one, come_short);
    life_refused(&life, -EIO, "nothing was decided");
    cr_assert_null(meanwhile, "it was not read by itself");
    life_start(&life); /* the next read brings all of it */
    life_verify(&life);
    same_after_restarts();
}

Test(branches_recover, g14_a_group_whose_second_half_cannot_be_read_refuses_the_start)
{
    killed_behind_a_large_group();
    before_op(reads_the_large_one, fail_to_read);
    life_refused(&life, -EIO, "nothing was decided");
    cr_assert_null(meanwhile, "it was not read by itself");
    life_start(&life);
    life_verify(&life);
    same_after_restarts();
}

static const struct disk_segment *newest;

static bool flushes_the_folder(const struct io_op *op)
{
    return op->kind == IO_SYNC_DIRECTORY;
}

static void grow_it(void)
{
    file_cut(&life, newest->name, newest->end + 4096);
}

static uint32_t align_4096(struct io *io, struct io_file *file)
{
    (void)io, (void)file;
    return 4096;
}

Test(branches_recover, g14_a_segment_that_grows_while_the_start_reads_it_ends_where_it_did)
{
    killed_with_an_unproved_group();
    newest = disk_newest(&disk);
    file_cut(&life, newest->name, newest->end + 100);
    before_op(flushes_the_folder, grow_it); /* all files are open, and their sizes known */
    life.functions.file_align = align_4096;
    life_start(&life);
    cr_assert_null(meanwhile, "it did not grow");
    life_verify(&life);
    same_after_restarts();
}

/* ------------------------------------------------------------------------------------------------ walking */

Test(branches_recover, g6_a_start_walks_more_groups_than_its_first_table_holds)
{
    for (unsigned i = 0; i < 300; i++)
        life_put(&life, "t", 1, 10);
    life_crash(&life);
    life_start(&life);
    cr_assert_gt(life_stats(&life).start_groups_walked, 256u);
    life_verify(&life);
    same_after_restarts();
}

Test(branches_recover, g6_a_group_that_fills_its_blocks_to_the_last_byte_is_found_again)
{
    life_put(&life, "t", 1, 10); /* the catalogue's entry is in this group */
    uint32_t bytes = 4096 - (uint32_t)sizeof(struct group_header);
    while (sizeof(struct group_header) + frame_header_bytes(1, bytes) + bytes > 4096)
        bytes -= PAYLOAD_ALIGN;
    life_put(&life, "t", 1, bytes);
    life_crash(&life);
    disk_scan(&life, &disk);
    const struct group_header *g = &disk_last(&disk)->header;
    cr_assert_eq(g->used, g->length, "%u of %u", g->used, g->length);
    life_start(&life);
    life_verify(&life);
    same_after_restarts();
}

/* ------------------------------------------------------------------------------------- forged checkpoints */

static struct checkpoint_header newest_checkpoint(char name[40])
{
    struct checkpoint_header best = {.counter = 0};
    for (unsigned which = 0; which < 2; which++) {
        char other[40];
        struct checkpoint_header h;
        snprintf(other, sizeof other, CHECKPOINT_FILE, which);
        if (!file_there(&life, other))
            continue;
        file_peek(&life, other, 0, &h, sizeof h);
        if (h.counter > best.counter) {
            best = h;
            snprintf(name, 40, "%s", other);
        }
    }
    cr_assert_eq(best.magic, CHECKPOINT_MAGIC);
    return best;
}

/* Becomes the only one, with right sums. */
static void put_checkpoint(const char *name, struct checkpoint_header h)
{
    uint8_t *body = malloc(h.bytes);
    cr_assert_not_null(body);
    file_peek(&life, name, sizeof h, body, h.bytes - sizeof h);
    h.body_crc = crc32c(0, body, h.bytes - sizeof h);
    h.crc = crc32c(0, &h, offsetof(struct checkpoint_header, crc));
    free(body);
    file_poke(&life, name, 0, &h, sizeof h);
    const char *other = strcmp(name, "checkpoint-0") == 0 ? "checkpoint-1" : "checkpoint-0";
    if (file_there(&life, other))
        file_delete(&life, other);
}

Test(branches_recover, g13_a_checkpoint_may_not_point_behind_the_end_of_its_segment)
{
    char name[40];
    life_put(&life, "t", 1, 100);
    life_stop(&life);
    struct checkpoint_header h = newest_checkpoint(name);
    file_copy(&life, name, &life, "kept");
    life_start(&life); /* this one's segment says where the one before ends */
    life_crash(&life);
    file_copy(&life, "kept", &life, name);
    file_delete(&life, "kept");
    disk_scan(&life, &disk);
    for (size_t i = 0; i < disk.segment_count; i++) {
        if (disk.segments[i].header.number != h.segment)
            continue;
        cr_assert_lt(i + 1, disk.segment_count, "it is the newest one");
        h.offset = disk.segments[i].end + disk.segments[i].header.block;
        file_cut(&life, disk.segments[i].name, h.offset);
    }
    put_checkpoint(name, h);
    life_refused(&life, -EBADMSG, "a checkpoint names a place that the segment does not have");
}

Test(branches_recover, g13_a_checkpoint_of_no_segment_without_any_segment_refuses_the_start)
{
    char name[40];
    life_put(&life, "t", 1, 100);
    life_stop(&life);
    struct checkpoint_header h = newest_checkpoint(name);
    h.segment = 0;
    put_checkpoint(name, h);
    disk_scan(&life, &disk);
    for (size_t i = 0; i < disk.segment_count; i++)
        file_delete(&life, disk.segments[i].name);
    life_refused(&life, -EBADMSG, "a checkpoint is there, but no segment");
}

Test(branches_recover, g13_a_pair_of_a_checkpoint_with_a_reserved_field_set_refuses_the_start)
{
    struct producer *p;
    cr_assert_eq(log_producer_named(life.log, "n", 1, 7, &p), 0);
    struct sent *sent = SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 10,
                             .producer = p, .number = 1);
    life_settle(&life);
    cr_assert_eq(sent->write.result, 0);
    log_producer_release(life.log, p);
    life_stop(&life);
    char name[40];
    struct checkpoint_header h = newest_checkpoint(name);
    cr_assert_eq(h.producers, 1u);
    uint32_t one = 1; /* the one pair is what comes last */
    file_poke(&life, name,
              h.bytes - sizeof(struct checkpoint_pair) + offsetof(struct checkpoint_pair, reserved), &one,
              sizeof one);
    put_checkpoint(name, h);
    life_refused(&life, -EBADMSG, "checkpoint: producer");
}

/* ---------------------------------------------------------------------- files whose header does not count */

static void forge_group(uint64_t at, struct group_header g)
{
    file_poke(&life, FORGED_FILE, at, &g, sizeof g);
}

/* A header that was torn, and one block behind it. */
static void forge_file(void)
{
    uint64_t torn = UINT64_MAX;
    file_poke(&life, FORGED_FILE, 0, &torn, sizeof torn);
    file_cut(&life, FORGED_FILE, 8192);
}

static struct group_header evidence(uint64_t at)
{
    return (struct group_header){
        .magic = GROUP_MAGIC, .offset = at, .length = 4096, .durable_upto = UINT64_C(1) << 40};
}

static void serves_without_the_file(void)
{
    life_start(&life);
    life_verify(&life);
    cr_assert(!file_there(&life, FORGED_FILE), "it is of no use and stays");
    life_crash(&life);
}

Test(branches_recover, g13_only_what_looks_like_a_group_is_evidence_behind_a_torn_header)
{
    life_put(&life, "t", 1, 100);
    life_crash(&life);
    forge_file();
    forge_group(4096, evidence(4096));
    life_refused(&life, -EBADMSG, "which was committed, lies behind it");
    struct group_header other[] = {evidence(8192), evidence(4096), evidence(4096), evidence(4096)};
    other[1].length = 0;
    other[2].length = GROUP_MAX + 4096;
    other[3].length = 4097;
    for (size_t i = 0; i < array_count(other); i++) {
        forge_file();
        forge_group(4096, other[i]);
        serves_without_the_file();
    }
}

Test(branches_recover, g13_a_file_that_ends_within_a_header_of_a_group_holds_no_evidence)
{
    life_put(&life, "t", 1, 100);
    life_crash(&life);
    forge_file();
    forge_group(4096, evidence(4096));
    file_cut(&life, FORGED_FILE, 4096 + 100);
    serves_without_the_file();
}

Test(branches_recover, g13_64_groups_behind_a_torn_header_are_looked_at_and_no_more)
{
    life_put(&life, "t", 1, 100);
    life_crash(&life);
    for (unsigned groups = 64; groups <= 96; groups += 32) {
        forge_file();
        uint64_t at = 4096;
        for (unsigned i = 1; i <= groups; i++, at += 4096) {
            struct group_header g = evidence(at);
            if (i < groups)
                g.durable_upto = 0;
            forge_group(at, g);
        }
        if (groups == 64)
            life_refused(&life, -EBADMSG, "which was committed, lies behind it");
        else
            serves_without_the_file();
    }
}

/* ------------------------------------------------------------------------------------- files for the pool */

static void blank_file(unsigned number, uint64_t length)
{
    char name[40];
    uint8_t zero = 0;
    snprintf(name, sizeof name, SEGMENT_FILE, (unsigned long long)number);
    file_poke(&life, name, 0, &zero, 1);
    file_cut(&life, name, length);
}

static unsigned blank_files(unsigned first, unsigned count)
{
    unsigned there = 0;
    for (unsigned number = first; number < first + count; number++) {
        char name[40];
        snprintf(name, sizeof name, SEGMENT_FILE, (unsigned long long)number);
        there += file_there(&life, name);
    }
    return there;
}

Test(branches_recover, blank_files_of_whole_blocks_and_the_least_length_are_used_again)
{
    life_put(&life, "t", 1, 100);
    life_crash(&life);
    life.options.segment_bytes = 64 << 20;
    blank_file(90, SEGMENT_SMALL);
    blank_file(91, SEGMENT_SMALL - 4096);
    blank_file(92, SEGMENT_SMALL + 100);
    life_start(&life);
    cr_assert_eq(blank_files(90, 1), 1u, "a small segment is of use");
    cr_assert_eq(blank_files(91, 2), 0u, "others are not");
    life_verify(&life);
    same_after_restarts();
}

Test(branches_recover, of_many_blank_files_as_many_are_kept_as_the_pool_holds)
{
    life_put(&life, "t", 1, 100);
    life_crash(&life);
    unsigned before = files_with(&life, ".segment");
    for (unsigned i = 0; i < 12; i++)
        blank_file(90 + i, SEGMENT_MIN);
    life_start(&life);
    unsigned kept = blank_files(90, 12);
    cr_assert(kept > 0 && kept < 12 && files_with(&life, ".segment") <= before + kept, "%u are kept", kept);
    life_verify(&life);
    same_after_restarts();
}

/* ------------------------------------------------------------------------------------ a disk that is full */

static void no_space(int error)
{
    life_open(&life);
    io_fault_set(
        life.io, IO_ALLOCATE,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = error, .nth = 1, .from_then_on = true});
}

Test(branches_recover, g9_a_start_beyond_its_quota_begins_in_what_was_prepared_before)
{
    life_put(&life, "t", 1, 500000); /* so much to copy that no prepared segment holds it and a group more */
    life_crash(&life);
    no_space(EDQUOT);
    life_start(&life);
    cr_assert(life_said(&life, "starting in what was prepared before"), "%s", life.said);
    life_verify(&life);
    same_after_restarts();
}

Test(branches_recover, g9_a_start_refuses_when_no_prepared_segment_holds_what_it_must_copy)
{
    life_put(&life, "t", 1, 500000);
    life_quiet(&life);
    life_crash(&life);
    disk_scan(&life, &disk);
    unsigned left = 0;
    for (size_t i = 0; i < disk.spare_count; i++) {
        if (disk.spares[i].size > 500000)
            file_delete(&life, disk.spares[i].name);
        else
            left++;
    }
    cr_assert_gt(left, 0u, "no prepared file is left that is too small");
    no_space(ENOSPC);
    life_refused(&life, -ENOSPC, "no space for a new segment");
    life_start(&life);
    life_verify(&life);
    same_after_restarts();
}

/* ---------------------------------------------------------------------------------------------- gathering */

Test(branches_recover, a_topic_with_a_word_that_nobody_asked_to_be_told_of_becomes_free)
{
    int word = 0;
    struct topic *t = life_topic(&life, "t");
    *log_topic_word(t) = &word;
    life_put(&life, "t", 2, 100);
    cr_assert(!log_topic_busy(t, &word));
    *log_topic_word(t) = NULL;
    log_topic_release(life.log, t);
    life_verify(&life);
}

static bool header_written_since(size_t op)
{
    for (; op < life.op_count; op++)
        if (life.ops[op].kind == IO_WRITE && life.ops[op].offset == 0 && !life.ops[op].background)
            return true;
    return false;
}

Test(branches_recover, g7_what_arrives_before_the_header_of_the_next_segment_is_taken_and_follows_in_it)
{
    life_crash(&life);
    life.options.segment_bytes = 20 << 20; /* so that some of it may stay unflushed */
    life.options.interval_ns = 100 * SECOND;
    life_start(&life);
    life_quiet(&life); /* the next segment is prepared; from here on a rest would flush */
    for (unsigned i = 0; i < 7; i++) {
        if (i == 6)
            life_quiet(&life); /* the checkpoint of these 16 MiB, and the flush before it */
        struct sent *written = SEND(&life, .name = "w", .topic_level = LEVEL_WRITTEN, .level = LEVEL_WRITTEN,
                                    .kind = WRITE_BATCH, .owner = &A, .entries = 2, .bytes = 1400000);
        life_settle(&life);
        cr_assert_eq(written->write.result, 0);
        cr_assert(i < 6 || written->write.level_reached == LEVEL_WRITTEN, "something is not flushed");
        life_committed(&life, "w", 2);
    }
    uint64_t segments = life_stats(&life).segments;
    io_fault_hold(life.io, IO_FLUSH, true);
    size_t ops = life.op_count;
    struct sent *change =
        SEND(&life, .name = "w", .kind = WRITE_BATCH, .owner = &A, .entries = 2, .bytes = 1400000);
    life_until_held(&life, IO_FLUSH, 1);
    cr_assert(!header_written_since(ops), "the closing segment is not flushed yet");
    struct sent *arriving =
        SEND(&life, .name = "v", .kind = WRITE_BATCH, .owner = &A, .entries = 3, .bytes = 100);
    cr_assert(change->refused == 0 && arriving->refused == 0, "%d, %d", change->refused, arriving->refused);
    io_fault_hold(life.io, IO_FLUSH, false);
    io_fault_release(life.io, IO_FLUSH, 100);
    life_settle(&life);
    cr_assert(change->write.result == 0 && arriving->write.result == 0);
    cr_assert(header_written_since(ops) && life_stats(&life).segments == segments + 1);
    life_committed(&life, "w", 2);
    life_committed(&life, "v", 3);
    life_verify(&life);
    same_after_restarts();
}

Test(branches_recover, g4_an_empty_last_chunk_does_not_end_the_entry_that_is_open_behind_others)
{
    struct stream s = {.owner = &A};
    struct request chunk = {
        .name = "s", .kind = WRITE_CHUNK, .owner = &A, .stream = &s, .first = true, .from = 1};
    chunk.entries = 2; /* the second one goes on */
    chunk.bytes = 4096;
    chunk.goes_on = true;
    struct sent *open = life_send(&life, &chunk);
    cr_assert_eq(open->refused, 0);
    struct sent *end =
        SEND(&life, .name = "s", .kind = WRITE_CHUNK, .owner = &A, .stream = &s, .last = true, .from = 1);
    cr_assert_eq(end->refused, -EINVAL, "%d", end->refused);
    cr_assert(s.failed);
    life_settle(&life);
    log_stream_abort(life.log, &s);
    life_put(&life, "s", 1, 10); /* nothing of it counts */
    life_verify(&life);
    same_after_restarts();
}
