/* Rules of a start that nothing but a forged store, a disk that cannot be read or bytes that change meanwhile
 * can break: each of them alone refuses such a start, or decides what it shows. */
#include "cases.h"

static void make(void)
{
    life_make(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(start_rules, .init = make, .fini = clean, .timeout = 120);

/* ------------------------------------------------------------------------------ counts of what is safe */

Test(start_rules, g15_a_group_that_takes_back_what_was_flushed_before_its_segment_is_refused)
{
    crashed_with_segments();
    const struct disk_group *last = disk_last(&disk); /* nothing chains its header */
    const struct disk_segment *newest = disk_newest(&disk);
    cr_assert_str_eq(last->file, newest->name);
    cr_assert_gt(newest->header.first_group, 2u);
    struct group_header g = last->header;
    g.durable_upto = newest->header.first_group - 2;
    g.crc = crc32c(last->identity.seed.crc, &g, offsetof(struct group_header, crc));
    file_poke(&life, last->file, g.offset, &g, sizeof g);
    damaged_at(last->file, g.offset);
    cr_assert_not_null(strstr(life.error.text, "its count of flushed groups falls"), "%s", life.error.text);
    file_poke(&life, last->file, g.offset, &last->header, sizeof g);
    serves_the_same_for_ever();
}

Test(start_rules, g13_what_the_older_checkpoint_says_was_committed_must_be_there_too)
{
    stopped();
    life_start(&life);
    life_put(&life, "t", 1, 10);
    life_stop(&life);
    char names[2][40];
    struct checkpoint_header h[2];
    for (unsigned i = 0; i < 2; i++) {
        snprintf(names[i], sizeof names[i], CHECKPOINT_FILE, i);
        file_peek(&life, names[i], 0, &h[i], sizeof h[i]);
        cr_assert_eq(h[i].magic, CHECKPOINT_MAGIC, "%s", names[i]);
    }
    unsigned older = h[0].counter > h[1].counter;
    struct checkpoint_header forged = h[older];
    forged.group = h[!older].group + 1;
    forged.crc = crc32c(0, &forged, offsetof(struct checkpoint_header, crc));
    file_poke(&life, names[older], 0, &forged, sizeof forged);
    for (unsigned i = 0; i < 2; i++) {
        uint64_t before = folder_digest(&life);
        life_refused(&life, -EBADMSG, "was committed and is not there (a checkpoint was written after that)");
        cr_assert_eq(folder_digest(&life), before, "a refused start changed the store");
    }
    file_poke(&life, names[older], 0, &h[older], sizeof forged);
    serves_the_same_for_ever();
}

/* ---------------------------------------------------------------------------------- what cannot be read */

/* Reads of a start at the beginning of the files whose names contain `name`: a bit for each that fails. */
static uint64_t first_reads(const char *name)
{
    struct life copy;
    uint64_t reads = 0;
    unsigned seen = 0;
    life_copy(&copy, &life);
    life_start(&copy);
    for (size_t i = 0; i < copy.op_count; i++) {
        const struct op_record *op = &copy.ops[i];
        if (op->kind != IO_READ || op->background)
            continue;
        cr_assert_lt(seen, 64u);
        if (op->offset == 0 && strstr(op->name, name) != NULL)
            reads |= UINT64_C(1) << seen;
        seen++;
    }
    life_remove(&copy);
    return reads;
}

static void each_must_be_read(const char *name, unsigned least, const char *words)
{
    uint64_t reads = first_reads(name);
    cr_assert_geq((unsigned)__builtin_popcountll(reads), least);
    for (uint64_t read; (read = reads & -reads) != 0; reads &= ~read) {
        struct life copy;
        life_copy(&copy, &life);
        uint64_t before = folder_digest(&copy);
        life_open(&copy);
        copy.plans[IO_READ] = (struct plan){.failing = read, .error = -EIO};
        life_refused(&copy, -EIO, words);
        cr_assert_eq(folder_digest(&copy), before, "a refused start changed the store");
        for (unsigned i = 0; i < 2; i++) {
            life_start(&copy); /* the disk is well again */
            life_verify(&copy);
            life_crash(&copy);
        }
        life_remove(&copy);
    }
}

Test(start_rules, g14_a_segment_whose_header_cannot_be_read_is_not_taken_for_an_unused_one)
{
    crashed_with_segments();
    each_must_be_read(".segment", (unsigned)disk.segment_count, "cannot read the header of file");
}

Test(start_rules, g14_a_checkpoint_that_cannot_be_read_is_not_taken_for_a_missing_one)
{
    stopped();
    life_start(&life);
    life_put(&life, "t", 1, 10);
    life_stop(&life);
    each_must_be_read("checkpoint-", 2, "cannot read checkpoint-");
}

/* ----------------------------------------------------------------------------------------- two headers */

Test(start_rules, g6_the_header_of_a_higher_epoch_counts_though_its_file_comes_later)
{
    crashed();
    life_start(&life); /* what nothing proves is copied, into a file and an epoch of its own */
    life_put(&life, "t", 2, 100);
    life_quiet(&life);
    life_crash(&life);
    disk_scan(&life, &disk);
    const struct disk_segment *newest = disk_newest(&disk);
    struct segment_header stale = newest->header;
    char name[40];
    for (stale.file = 0; stale.file < newest->header.file; stale.file++) {
        snprintf(name, sizeof name, SEGMENT_FILE, (unsigned long long)stale.file);
        if (!file_there(&life, name))
            break;
    }
    cr_assert_lt(stale.file, newest->header.file, "no number of a file is free before it");
    cr_assert_gt(stale.epoch, 1u);
    stale.epoch--;
    stale.durable_upto = 0;
    file_copy(&life, newest->name, &life, name);
    file_header_poke(&life, name, &stale);
    serves_the_same_for_ever();
}

/* ---------------------------------------------------------------------------- what changes meanwhile */

static void (*meanwhile)(const struct disk_group *group);

/* Random numbers are drawn when all groups are walked and none is copied yet. */
static int random_meanwhile(struct io *io, void *buffer, size_t length)
{
    if (meanwhile != NULL)
        meanwhile(disk_last(&disk));
    meanwhile = NULL;
    return life.inner->random(io, buffer, length);
}

static void flip_its_payload(const struct disk_group *group)
{
    file_flip(&life, group->file, group->header.offset + group->header.used - 16, 3);
}

static void flip_its_header(const struct disk_group *group)
{
    file_flip(&life, group->file, group->header.offset + offsetof(struct group_header, time_ns), 3);
}

static void not_copied_after(void (*change)(const struct disk_group *group))
{
    crashed();
    life_open(&life);
    meanwhile = change;
    life.functions.random = random_meanwhile;
    life_refused(&life, -EBADMSG, "it changed while the start read it");
    cr_assert_null(meanwhile, "nothing changed meanwhile");
    change(disk_last(&disk));
    serves_the_same_for_ever();
}

Test(start_rules, g27_a_payload_that_rots_before_it_is_copied_gets_no_new_sum)
{
    not_copied_after(flip_its_payload);
}

Test(start_rules, g27_a_header_that_rots_before_its_group_is_copied_gets_no_new_sum)
{
    not_copied_after(flip_its_header);
}
