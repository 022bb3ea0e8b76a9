/* What must hold before a checkpoint or an identity counts, and what a start asks of numbers whose sums are
 * right: the order of the ops, a write that came short, a log that is not flushed, counts, sizes, names and
 * sequences that cannot be. */
#include "cases.h"

static void make(void)
{
    life_use_memory();
    life_make(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(checkpoint_rules, .init = make, .fini = clean, .timeout = 60);

/* ------------------------------------------------------------------------------------------ order of ops */

/* Where the first such op is behind `from`, of a file whose old or new name begins so; the count of ops if it
 * is nowhere. */
static size_t op_behind(size_t from, enum io_kind kind, const char *name)
{
    size_t length = strlen(name), i = from;
    while (i < life.op_count &&
           (life.ops[i].kind != kind || (strncmp(life.ops[i].name, name, length) != 0 &&
                                         strncmp(life.ops[i].new_name, name, length) != 0)))
        i++;
    return i;
}

/* At rest, spares prepared: what is submitted from here on is the checkpoint's. */
static size_t due_checkpoint(void)
{
    life_start(&life);
    life_put(&life, "t", 2, 100);
    life_quiet(&life);
    cr_assert_eq(life_stats(&life).checkpoints, 0u);
    life.ahead += 2 * SECOND;
    return life.op_count;
}

Test(checkpoint_rules, g19_a_checkpoint_counts_only_after_the_flush_of_the_folder_that_follows_its_rename)
{
    size_t from = due_checkpoint();
    life_quiet(&life);
    size_t renamed = op_behind(from, IO_RENAME, "checkpoint-");
    cr_assert_lt(renamed, life.op_count, "nothing was renamed");
    cr_assert_lt(op_behind(renamed, IO_SYNC_DIRECTORY, ""), life.op_count, "the folder was not flushed");
    cr_assert_eq(life_stats(&life).checkpoints, 1u);
}

Test(checkpoint_rules, g19_a_checkpoint_whose_folder_flush_finds_no_room_is_written_again)
{
    (void)due_checkpoint();
    io_fault_set(life.io, IO_SYNC_DIRECTORY,
                 &(struct fault){.action = FAULT_FAIL_BEFORE, .error = ENOSPC, .nth = 1});
    life_quiet(&life);
    cr_assert_eq(life_stats(&life).checkpoints, 0u);
    cr_assert(life_said(&life, "cannot write a checkpoint (flush of the folder)"));
    size_t from = life.op_count;
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    cr_assert_eq(life_stats(&life).checkpoints, 1u);
    cr_assert_lt(op_behind(from, IO_RENAME, "checkpoint-"), life.op_count);
}

static void fail_stop_at(enum io_kind kind)
{
    (void)due_checkpoint();
    io_fault_set(
        life.io, kind,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = 1, .only_background = true});
    life_quiet(&life);
    cr_assert_not_null(log_failed(life.log));
    cr_assert(life_said(&life, "the flush of a checkpoint failed"), "%s", life.said);
    cr_assert_eq(life_stats(&life).checkpoints, 0u);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(checkpoint_rules, g10_a_failed_flush_of_a_checkpoint_is_a_fail_stop)
{
    fail_stop_at(IO_FLUSH);
}

Test(checkpoint_rules, g10_a_failed_flush_of_the_folder_of_a_checkpoint_is_a_fail_stop)
{
    fail_stop_at(IO_SYNC_DIRECTORY);
}

Test(checkpoint_rules, g19_a_new_store_is_used_only_after_the_folder_of_its_identity_was_flushed)
{
    life_start(&life);
    size_t renamed = op_behind(0, IO_RENAME, STORE_FILE);
    cr_assert_lt(renamed + 1, life.op_count);
    cr_assert_eq(life.ops[renamed + 1].kind, IO_SYNC_DIRECTORY, "the next op is one of kind %d",
                 life.ops[renamed + 1].kind);
}

Test(checkpoint_rules, g19_a_new_store_whose_folder_cannot_be_flushed_is_refused)
{
    life_open(&life);
    life.plans[IO_SYNC_DIRECTORY] = (struct plan){.failing = 1, .error = -EIO, .everything = true};
    life_refused(&life, -EIO, "cannot make a new store");
    life_start(&life);
}

Test(checkpoint_rules, g8_a_checkpoint_that_was_written_in_part_gets_no_name)
{
    (void)due_checkpoint();
    io_fault_set(life.io, IO_WRITE,
                 &(struct fault){.action = FAULT_SHORT, .bytes = 100, .nth = 1, .only_background = true});
    life_quiet(&life);
    cr_assert(life_said(&life, "cannot write a checkpoint (short write)"));
    cr_assert_eq(life_stats(&life).checkpoints, 0u);
    cr_assert(!file_there(&life, "checkpoint-0") && !file_there(&life, "checkpoint-1"));
    io_fault_clear(life.io, IO_WRITE);
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    cr_assert_eq(life_stats(&life).checkpoints, 1u);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(checkpoint_rules, g13_a_checkpoint_waits_until_what_it_names_is_flushed)
{
    life.options.segment_bytes = SEGMENT_SMALL; /* with smaller ones everything is flushed at once */
    life.options.interval_ns = 1000 * SECOND;   /* so that nothing else asks for the flush */
    life_start(&life);
    SEND(&life, .name = "w", .kind = WRITE_BATCH, .owner = &life, .entries = 2, .bytes = 50,
         .topic_level = LEVEL_WRITTEN);
    life_settle(&life);
    life_committed(&life, "w", 2);
    life_quiet(&life);
    life.ahead += 2 * SECOND;
    io_fault_hold(life.io, IO_FLUSH, true);
    size_t from = life.op_count;
    for (unsigned i = 0; i < 20; i++)
        life_turn(&life);
    cr_assert_eq(op_behind(from, IO_UNLINK, CHECKPOINT_NEW), life.op_count,
                 "a checkpoint is made of what is not flushed");
    cr_assert_eq(op_behind(from, IO_CREATE, CHECKPOINT_NEW), life.op_count,
                 "a checkpoint is made of what is not flushed");
    cr_assert_eq(io_fault_held(life.io, IO_FLUSH), 1u, "the checkpoint asks for the flush");
    io_fault_hold(life.io, IO_FLUSH, false);
    (void)io_fault_release(life.io, IO_FLUSH, UINT32_MAX);
    life_quiet(&life);
    cr_assert_eq(life_stats(&life).checkpoints, 1u);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

/* ------------------------------------------------------------------------------------- numbers with sums */

Test(checkpoint_rules, g16_a_segment_whose_block_is_of_no_sensible_size_is_refused)
{
    static const uint32_t blocks[] = {BLOCK_MIN / 2, 3 * BLOCK_MIN, 2 * BLOCK_MAX, 1u << 31, 0};
    crashed();
    for (size_t i = 0; i < array_count(blocks); i++) {
        struct segment_header header = disk_newest(&disk)->header;
        header.block = blocks[i];
        file_header_poke(&life, disk_newest(&disk)->name, &header);
        life_refused(&life, -EBADMSG, "its header makes no sense");
    }
    struct segment_header header = disk_newest(&disk)->header;
    file_header_poke(&life, disk_newest(&disk)->name, &header);
    serves_the_same_for_ever();
}

/* The only checkpoint of a stopped store, as bytes. */
static uint8_t checkpoint[4096];
static const char *checkpoint_name;

static struct checkpoint_header *the_checkpoint(void)
{
    stopped();
    cr_assert_neq(file_there(&life, "checkpoint-0"), file_there(&life, "checkpoint-1"));
    checkpoint_name = file_there(&life, "checkpoint-0") ? "checkpoint-0" : "checkpoint-1";
    uint64_t size = file_size_of(&life, checkpoint_name);
    cr_assert(size > sizeof(struct checkpoint_header) && size < sizeof checkpoint);
    file_peek(&life, checkpoint_name, 0, checkpoint, size);
    return (struct checkpoint_header *)(void *)checkpoint;
}

static void put_checkpoint(void)
{
    struct checkpoint_header *header = (void *)checkpoint;
    header->body_crc = crc32c(0, checkpoint + sizeof *header, header->bytes - sizeof *header);
    header->crc = crc32c(0, header, offsetof(struct checkpoint_header, crc));
    file_poke(&life, checkpoint_name, 0, checkpoint, header->bytes);
}

Test(checkpoint_rules, g16_a_checkpoint_that_names_more_segments_than_it_holds_does_not_count)
{
    struct checkpoint_header *header = the_checkpoint();
    uint64_t room = (header->bytes - sizeof *header) / sizeof(struct checkpoint_segment);
    const uint64_t counts[] = {room + 1, room + 100, UINT64_C(1) << 59, UINT64_MAX - 1, UINT64_MAX};
    for (size_t i = 0; i < array_count(counts); i++) {
        struct life copy;
        header->segments = counts[i];
        put_checkpoint();
        life_copy(&copy, &life);
        life_start(&copy);
        cr_assert(life_said(&copy, "does not count: its counts are wrong"), "%llu segments",
                  (unsigned long long)counts[i]);
        life_verify(&copy);
        life_remove(&copy);
    }
}

Test(checkpoint_rules, g16_a_checkpoint_that_is_shorter_than_its_header_does_not_count)
{
    (void)the_checkpoint();
    const uint64_t lengths[] = {0, 10, sizeof(struct checkpoint_header) - 1};
    for (size_t i = 0; i < array_count(lengths); i++) {
        struct life copy;
        life_copy(&copy, &life);
        file_cut(&copy, checkpoint_name, lengths[i]);
        life_start(&copy);
        cr_assert(life_said(&copy, "does not count: it is too short"), "%s", copy.said);
        life_verify(&copy);
        life_remove(&copy);
    }
}

Test(checkpoint_rules, g16_a_checkpoint_with_two_topics_of_one_name_is_refused)
{
    struct checkpoint_header *header = the_checkpoint();
    cr_assert_eq(header->topics, 2u);
    struct checkpoint_topic first;
    uint8_t *at = checkpoint + sizeof *header + header->segments * sizeof(struct checkpoint_segment);
    memcpy(&first, at, sizeof first);
    uint8_t *name = at + sizeof first, *other = name + 8 + sizeof first;
    cr_assert(first.name_bytes == 1 && *name == 't' && *other == 'u');
    *other = *name;
    put_checkpoint();
    life_refused(&life, -EBADMSG, "checkpoint: topic 2");
}

static void call_it_t(struct frame_header *frame)
{
    if (frame->kind == FRAME_TOPIC) {
        struct topic_entry *entry = (void *)((uint8_t *)frame + frame->header_bytes);
        memcpy(entry + 1, "t", 1);
        frame_copy_payload(frame, 1, entry, frame->payload_bytes);
    }
}

static void give_the_sequence_before(struct frame_header *frame)
{
    if (frame->kind == FRAME_BATCH)
        frame->first_sequence--;
}

Test(checkpoint_rules, g16_a_catalogue_entry_with_the_name_of_another_topic_is_refused)
{
    five_groups();
    life_put(&life, "v", 1, 10);
    life_crash(&life);
    disk_forge_last(&life, call_it_t);
    life_refused(&life, -EBADMSG, "a catalogue entry makes no sense, or contradicts one before");
}

Test(checkpoint_rules, g7_a_batch_whose_sequences_were_given_before_is_refused)
{
    crashed();
    disk_forge_last(&life, give_the_sequence_before);
    life_refused(&life, -EBADMSG, "a batch whose sequences were given before");
}
