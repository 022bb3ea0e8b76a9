/* The cases of FORMAT.md that concern the newest segment: its tail, groups that nothing proves, headers. */
#include "cases.h"

static void make(void)
{
    life_make(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(tail, .init = make, .fini = clean, .timeout = 60);

/* ------------------------------------------------------------------------------------------ T: the tail */

Test(tail, g13_case_t_a_tail_torn_at_any_sector_is_cut_and_told)
{
    crashed();
    const struct disk_group *last = disk_last(&disk);
    uint32_t next[2] = {(uint32_t)life_next(&life, "t"), 1};
    cr_assert_geq(last->header.length, 8192u);
    for (uint32_t keep = 0; keep < last->header.length; keep += 512) {
        struct life copy;
        life_copy(&copy, &life);
        file_zero(&copy, last->file, last->header.offset + keep, last->header.length - keep);
        bool whole = keep >= last->header.used;
        if (!whole)
            copy.model[0].next = next[0] - 1;
        cr_assert_str_eq(copy.model[0].name, "t");
        life_start(&copy);
        life_verify(&copy);
        cr_assert_eq(life_said(&copy, "was cut"), !whole && keep > 0, "keep %u: %s", keep, copy.said);
        life_crash(&copy);
        life_start(&copy);
        life_verify(&copy);
        life_put(&copy, "t", 1, 50);
        life_verify(&copy);
        life_remove(&copy);
    }
}

Test(tail, g13_case_t_garbage_at_the_tail_is_cut)
{
    crashed();
    const struct disk_group *last = disk_last(&disk);
    uint8_t garbage[8192];
    entry_fill(garbage, sizeof garbage, "garbage", 1);
    file_poke(&life, last->file, last->header.offset + last->header.length, garbage, sizeof garbage);
    life_start(&life);
    cr_assert(life_said(&life, "was cut"));
    life_verify(&life);
    life_crash(&life);
    serves_the_same_for_ever();
}

Test(tail, g15_case_t_an_old_group_of_the_same_segment_behind_the_tail_is_not_taken)
{
    crashed();
    /* The last group once more, behind itself: another offset, a number that was used. */
    const struct disk_group *last = disk_last(&disk);
    uint8_t *bytes = malloc(last->header.length);
    file_peek(&life, last->file, last->header.offset, bytes, last->header.length);
    file_poke(&life, last->file, last->header.offset + last->header.length, bytes, last->header.length);
    free(bytes);
    serves_the_same_for_ever();
}

/* --------------------------------------------------------------------------------------- C, B: unproved */

Test(tail, g12_case_c_valid_groups_that_nothing_proves_are_copied)
{
    crashed();
    life_start(&life);
    cr_assert_eq(life_stats(&life).start_groups_copied, 1u);
    life_verify(&life);
    life_crash(&life);
    disk_scan(&life, &disk);
    cr_assert_eq(disk.group_count, 5u);
    cr_assert_eq(disk_last(&disk)->header.segment, 2u);
    cr_assert_eq(disk.segments[0].end, disk.groups[3].header.offset + disk.groups[3].header.length);
    serves_the_same_for_ever();
}

Test(tail, g12_case_c_the_copies_are_flushed_before_the_header_that_decides)
{
    crashed();
    life_start(&life);
    const char *name = NULL;
    bool copied = false, flushed = false, decided = false;
    for (size_t i = 0; i < life.op_count; i++) {
        const struct op_record *op = &life.ops[i];
        if (op->kind == IO_WRITE && op->offset > 0 && strstr(op->name, ".segment") != NULL) {
            name = op->name;
            copied = true;
            flushed = false;
        }
        if (name != NULL && op->kind == IO_FLUSH && strcmp(op->name, name) == 0)
            flushed = true;
        if (name != NULL && op->kind == IO_WRITE && op->offset == 0 && strcmp(op->name, name) == 0) {
            decided = true;
            cr_assert(copied && flushed, "the header was written before the copies were flushed");
        }
    }
    cr_assert(decided);
}

Test(tail, g12_every_file_and_the_folder_are_flushed_before_anything_is_decided)
{
    crashed();
    life_start(&life);
    bool header = false, folder = false;
    unsigned opened = 0, flushes = 0;
    for (size_t i = 0; i < life.op_count && !header; i++) {
        const struct op_record *op = &life.ops[i];
        bool segment = strstr(op->name, ".segment") != NULL;
        opened += segment && op->kind == IO_OPEN;
        flushes += segment && op->kind == IO_FLUSH;
        folder |= op->kind == IO_SYNC_DIRECTORY;
        header = segment && op->kind == IO_WRITE;
        cr_assert(!segment || op->kind != IO_READ || flushes == opened, "read before it was flushed");
    }
    cr_assert(header && folder && opened > 1 && flushes >= opened);
}

Test(tail, case_b_a_newest_segment_of_which_nothing_is_proved_is_bypassed)
{
    stopped();
    life_start(&life);
    life_put(&life, "t", 2, 40);
    life_crash(&life);
    disk_scan(&life, &disk);
    const struct disk_segment before = *disk_newest(&disk);
    life_start(&life);
    life_verify(&life);
    cr_assert_eq(life_stats(&life).start_groups_copied, 1u);
    life_crash(&life);
    disk_scan(&life, &disk);
    const struct disk_segment *after = disk_newest(&disk);
    cr_assert_gt(after->header.number, before.header.number);
    cr_assert_eq(after->header.previous_number, before.header.previous_number);
    cr_assert_eq(after->header.previous_end, before.header.previous_end);
    cr_assert(!file_there(&life, before.name), "the bypassed segment is removed");
    serves_the_same_for_ever();
}

Test(tail, case_b_an_empty_newest_segment_is_bypassed_again_and_again)
{
    stopped();
    for (unsigned i = 0; i < 5; i++) {
        life_start(&life);
        life_verify(&life);
        life_crash(&life);
    }
    disk_scan(&life, &disk);
    cr_assert_leq(disk.segment_count, 2u, "starts that write nothing leave no segments");
    serves_the_same_for_ever();
}

Test(tail, case_b_the_first_segment_with_nothing_proved_is_bypassed_too)
{
    life_start(&life);
    life_put(&life, "t", 3, 10);
    life_quiet(&life);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
    life_crash(&life);
    disk_scan(&life, &disk);
    cr_assert_eq(disk.segment_count, 1u);
    cr_assert_eq(disk.segments[0].header.previous_number, 0u);
    serves_the_same_for_ever();
}

/* ---------------------------------------------------------------------------------------------- O, R, U */

Test(tail, case_o_blank_and_torn_headers_of_spares_become_void)
{
    crashed();
    uint8_t torn[512];
    entry_fill(torn, sizeof torn, "torn", 1);
    cr_assert_geq(disk.spare_count, 2u);
    file_poke(&life, disk.spares[0].name, 0, torn, sizeof torn);
    struct segment_header half = disk_newest(&disk)->header;
    file_poke(&life, disk.spares[1].name, 0, &half, 100);
    life_start(&life);
    life_verify(&life);
    size_t flushed = 0;
    for (size_t i = 0; i < life.op_count; i++)
        flushed += life.ops[i].kind == IO_FLUSH && strcmp(life.ops[i].name, disk.spares[0].name) == 0;
    cr_assert_geq(flushed, 2u);
    life_crash(&life);
    serves_the_same_for_ever();
}

Test(tail, g13_case_r_a_newest_segment_whose_header_rotted_is_refused)
{
    crashed_with_segments();
    file_flip(&life, disk_newest(&disk)->name, 60, 1);
    life_refused(&life, -EBADMSG, disk_newest(&disk)->name);
    file_flip(&life, disk_newest(&disk)->name, 60, 1);
    file_zero(&life, disk_newest(&disk)->name, 0, 256);
    life_refused(&life, -EBADMSG, disk_newest(&disk)->name);
}

Test(tail, g13_case_r_a_rotten_header_of_a_segment_that_a_checkpoint_names_is_refused)
{
    stopped_with_segments();
    uint64_t named = 0, newest = 0;
    for (unsigned i = 0; i < 2; i++) {
        const char *name = i == 0 ? "checkpoint-0" : "checkpoint-1";
        struct checkpoint_header header = {0};
        if (file_there(&life, name))
            file_peek(&life, name, 0, &header, sizeof header);
        if (header.counter > newest) {
            newest = header.counter;
            named = header.segment;
        }
    }
    for (size_t i = 0; i < disk.segment_count; i++) {
        if (disk.segments[i].header.number != named)
            continue;
        file_flip(&life, disk.segments[i].name, 130, 1);
        life_refused(&life, -EBADMSG, "segment");
        file_flip(&life, disk.segments[i].name, 130, 1);
        life_start(&life);
        life_verify(&life);
        return;
    }
    cr_assert_fail("the checkpoint names segment %llu, which is not there", (unsigned long long)named);
}

Test(tail, g13_case_r_a_rotten_header_is_refused_or_told_when_the_segment_is_read)
{
    stopped_with_segments();
    unsigned refused = 0, told = 0;
    for (size_t i = 0; i < disk.segment_count; i++) {
        struct life copy;
        life_copy(&copy, &life);
        file_flip(&copy, disk.segments[i].name, 130, 1); /* its salt: the crc does not fit any more */
        int error = life_try_start(&copy);
        cr_assert(error == 0 || error == -EBADMSG, "segment %zu: %d", i + 1, error);
        refused += error != 0;
        for (unsigned t = 0; error == 0 && t < copy.model_count; t++) {
            const struct model_topic *m = &copy.model[t];
            for (uint64_t from = 1; from < m->next; from++) {
                struct reading r = {.name = m->name, .from = from, .max_entries = 1};
                life_read(&copy, &r);
                cr_assert(r.read.result == -EBADMSG || (r.read.result == 1 && r.right), "%s %llu: %d",
                          m->name, (unsigned long long)from, r.read.result);
                told += r.read.result == -EBADMSG;
                reading_free(&r);
            }
        }
        life_remove(&copy);
    }
    cr_assert_gt(refused, 0u);
    cr_assert(refused == disk.segment_count || told > 0, "a rotten header was never told");
}

/* The chain is empty then, and no group is known by a sound header. */
Test(tail, g13_case_r_a_store_whose_only_header_rotted_is_refused)
{
    life_start(&life);
    life_put(&life, "t", 1, 10);
    life_quiet(&life);
    life_crash(&life);
    disk_scan(&life, &disk);
    cr_assert_eq(disk.group_count, 1u, "one batch, which nothing else proves");
    file_zero(&life, disk.segments[0].name, 0, BLOCK_MIN);
    life_refused(&life, -EBADMSG, disk.segments[0].name);
}

Test(tail, g13_case_r_a_store_whose_only_header_and_first_group_rotted_is_refused)
{
    crashed();
    cr_assert_eq(disk.segment_count, 1u);
    for (unsigned i = 0; i + 1 < disk.group_count; i++) {
        struct life copy;
        life_copy(&copy, &life);
        file_zero(&copy, disk.segments[0].name, 0, BLOCK_MIN);
        file_zero(&copy, disk.segments[0].name, disk.groups[i].header.offset, BLOCK_MIN);
        life_refused(&copy, -EBADMSG, disk.segments[0].name);
        life_remove(&copy);
    }
}

/* The second group begins far behind. */
Test(tail, g13_case_r_a_large_first_group_hides_nothing)
{
    life_start(&life);
    life_put(&life, "t", 1, 3000000);
    life_put(&life, "t", 1, 10);
    life_quiet(&life);
    life_crash(&life);
    disk_scan(&life, &disk);
    cr_assert_eq(disk.segment_count, 1u);
    cr_assert_eq(disk.group_count, 2u);
    file_zero(&life, disk.segments[0].name, 0, BLOCK_MIN);
    file_zero(&life, disk.segments[0].name, disk.groups[0].header.offset, BLOCK_MIN);
    life_refused(&life, -EBADMSG, disk.segments[0].name);
}

Test(tail, g13_a_rotten_header_in_the_middle_of_the_chain_is_refused_with_its_number)
{
    crashed_with_segments();
    file_flip(&life, disk.segments[1].name, 200, 1);
    life_refused(&life, -EBADMSG, "segment 2 is missing, or its header is damaged");
}

Test(tail, case_u_unfinished_files_are_removed)
{
    crashed();
    const char *names[] = {"00000123.new", "checkpoint.new", "index.new", "walrus.store.new"};
    for (size_t i = 0; i < array_count(names); i++)
        file_poke(&life, names[i], 0, "unfinished", 10);
    life_start(&life);
    cr_assert_eq(files_with(&life, ".new"), 0u);
    life_verify(&life);
    life_quiet(&life);
    life_put(&life, "t", 1, 3000000);
    life_put(&life, "t", 1, 3000000);
    life_quiet(&life);
    life_crash(&life);
    serves_the_same_for_ever();
}

Test(tail, a_strangers_file_beside_a_store_does_no_harm)
{
    crashed();
    file_poke(&life, "notes.txt", 0, "words", 5);
    life_start(&life);
    life_verify(&life);
    cr_assert(file_there(&life, "notes.txt"));
}

/* -------------------------------------------------------------------------------------------- the chain */

static void group_header_poke(const struct disk_group *g, struct group_header *header)
{
    header->crc = crc32c(g->identity.seed.crc, header, offsetof(struct group_header, crc));
    file_poke(&life, g->file, g->header.offset, header, sizeof *header);
}

Test(tail, g15_a_group_of_another_history_is_not_taken_even_with_a_right_sum)
{
    crashed();
    const struct disk_group *middle = &disk.groups[2], *last = disk_last(&disk);
    struct group_header other = middle->header;
    other.previous_digest.high ^= 1;
    group_header_poke(middle, &other);
    damaged_at(middle->file, middle->header.offset);
    other = middle->header;
    other.number++;
    group_header_poke(middle, &other);
    damaged_at(middle->file, middle->header.offset);
    other = middle->header;
    group_header_poke(middle, &other);
    other = last->header;
    other.previous_digest.low ^= 1;
    group_header_poke(last, &other);
    cr_assert_str_eq(life.model[0].name, "t");
    life.model[0].next--; /* the last group, proved by nothing: cut */
    serves_the_same_for_ever();
}

Test(tail, g15_a_segment_that_does_not_continue_the_one_before_is_refused)
{
    crashed_with_segments();
    const struct disk_segment *newest = disk_newest(&disk);
    struct segment_header header = newest->header;
    header.previous_digest.low ^= 1;
    file_header_poke(&life, newest->name, &header);
    life_refused(&life, -EBADMSG, "continue");
    header = newest->header;
    header.first_group++;
    file_header_poke(&life, newest->name, &header);
    life_refused(&life, -EBADMSG, newest->name);
    header = newest->header;
    file_header_poke(&life, newest->name, &header);
    life_start(&life);
    life_verify(&life);
}
