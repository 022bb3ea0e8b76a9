/* log_check: names every damage with its place, and changes nothing. */
#include "life.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

static struct life life;
static struct disk disk;
static const int A;

static void make(void)
{
    life_make(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(check, .init = make, .fini = clean, .timeout = 60);

struct told {
    enum finding_kind kind;
    char file[40], topic[40], text[300];
    uint64_t segment, offset, sequence, batch;
};
static struct told told[64];
static unsigned told_count;
static struct check_report report;
static struct error why;
static char damaging[100]; /* what a loop is at */

static void found(void *context, const struct finding *f)
{
    cr_assert_eq(context, &life);
    cr_assert(f->file != NULL && f->topic != NULL && f->text != NULL && f->text[0] != 0);
    if (told_count == array_count(told))
        return;
    struct told *t = &told[told_count++];
    *t = (struct told){.kind = f->kind,
                       .segment = f->segment,
                       .offset = f->offset,
                       .sequence = f->sequence,
                       .batch = f->batch};
    snprintf(t->file, sizeof t->file, "%s", f->file);
    snprintf(t->topic, sizeof t->topic, "%.39s", f->topic);
    snprintf(t->text, sizeof t->text, "%s", f->text);
}

/* The folder is the same before and after, byte for byte and second for second. */
static int check(void)
{
    uint64_t before = folder_digest(&life);
    struct io_real_options options = {
        .folder = life.folder, .backend = IO_BACKEND_PWRITE, .watch_fd = -1, .allow_direct = true};
    struct io *io;
    told_count = 0;
    why = (struct error){0};
    cr_assert_eq(io_real_create(&options, &io, NULL, &why), 0, "%s", why.text);
    int result = log_check(io, found, &life, &report, &why);
    io->functions->destroy(io);
    cr_assert_eq(folder_digest(&life), before, "the check changed the store");
    return result;
}

static const struct told *told_of(enum finding_kind kind)
{
    for (unsigned i = 0; i < told_count; i++)
        if (told[i].kind == kind)
            return &told[i];
    return NULL;
}

static const struct told *damage_told(void)
{
    cr_assert_eq(check(), 0, "%s", why.text);
    const struct told *t = told_of(FINDING_DAMAGE);
    cr_assert_not_null(t, "no damage was found in %s", damaging);
    cr_assert_gt(report.damaged, 0u);
    return t;
}

static void finds_nothing(void)
{
    cr_assert_eq(check(), 0, "%s", why.text);
    cr_assert_eq(report.damaged, 0u, "%s: %s", told[0].file, told[0].text);
    cr_assert_eq(report.torn, 0u, "%s: %s", told[0].file, told[0].text);
}

static void store(bool stop)
{
    life_start(&life);
    life_put(&life, "t", 2, 100);
    life_put(&life, "u", 1, 5000);
    life_put(&life, "t", 3, 10);
    life_put(&life, "bulk", 1, 3000000);
    life_put(&life, "bulk", 1, 3000000);
    life_put(&life, "u", 2, 20);
    life_put(&life, "t", 1, 9000);
    life_quiet(&life);
    if (stop)
        life_stop(&life);
    else
        life_crash(&life);
    disk_scan(&life, &disk);
    cr_assert_eq(disk.group_count, 7u);
    cr_assert_geq(disk.segment_count, 2u);
}

Test(check, names_a_newest_segment_whose_header_is_damaged)
{
    store(false);
    const char *name = disk_newest(&disk)->name;
    file_zero(&life, name, 0, BLOCK_MIN);
    const struct told *t = damage_told();
    cr_assert_str_eq(t->file, name);
    cr_assert_not_null(strstr(t->text, "header"), "%s", t->text);
    cr_assert_not_null(strstr(t->text, "group"), "%s", t->text);
}

Test(check, names_the_only_segment_if_its_header_is_damaged)
{
    life_start(&life);
    life_put(&life, "t", 1, 10);
    life_quiet(&life);
    life_crash(&life);
    disk_scan(&life, &disk);
    file_flip(&life, disk.segments[0].name, 60, 1);
    const struct told *t = damage_told();
    cr_assert_str_eq(t->file, disk.segments[0].name);
    cr_assert_eq(t->segment, 0u, "a damaged header's number is not to be believed");
}

/* ----------------------------------------------------------------------------------------- sound stores */

Test(check, a_sound_store_is_counted_and_nothing_is_found)
{
    store(true);
    finds_nothing();
    cr_assert(report.clean_stop);
    cr_assert_eq(report.groups, 7u);
    cr_assert_eq(report.batches, 7u);
    cr_assert_eq(report.entries, 11u);
    cr_assert_eq(report.topics, 3u);
    cr_assert_eq(report.segments, disk.segment_count);
    cr_assert_eq(strlen(report.store_id), 32u);
    cr_assert_eq(report.epoch, 1u);
}

Test(check, a_killed_store_is_sound)
{
    store(false);
    finds_nothing();
    cr_assert(!report.clean_stop);
    for (unsigned i = 0; i < 3; i++) {
        life_start(&life);
        life_put(&life, "t", 1, 20);
        life_crash(&life);
        finds_nothing();
    }
}

Test(check, an_empty_store_is_sound)
{
    life_start(&life);
    life_stop(&life);
    finds_nothing();
    cr_assert_eq(report.groups, 0u);
}

Test(check, streams_and_topics_are_counted_once)
{
    struct stream stream = {.owner = &A};
    life_start(&life);
    for (unsigned i = 0; i < 3; i++)
        SEND(&life, .name = "s", .kind = WRITE_CHUNK, .owner = &A, .entries = 2, .bytes = 1000,
             .from = 1 + 2 * i, .stream = &stream, .first = i == 0, .last = i == 2);
    life_settle(&life);
    life_stop(&life);
    finds_nothing();
    cr_assert_eq(report.batches, 1u);
    cr_assert_eq(report.entries, 6u);
}

Test(check, what_is_no_store_is_said_so)
{
    cr_assert_eq(check(), -ENOENT);
    file_poke(&life, "letter.txt", 0, "words", 5);
    cr_assert_eq(check(), -ENOTEMPTY);
    cr_assert_not_null(strstr(why.text, life.folder));
}

Test(check, a_newer_format_is_refused)
{
    store(true);
    struct store_header header;
    file_peek(&life, "walrus.store", 0, &header, sizeof header);
    header.version++;
    header.crc = crc32c(0, &header, offsetof(struct store_header, crc));
    file_poke(&life, "walrus.store", 0, &header, sizeof header);
    cr_assert_eq(check(), -EPROTONOSUPPORT);
}

Test(check, a_store_in_use_is_refused)
{
    store(true);
    int fd = open(file_path(&life, disk.segments[0].name), O_RDONLY | O_CLOEXEC);
    cr_assert_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
    cr_assert_eq(check(), -EBUSY);
    close(fd);
    finds_nothing();
}

/* ----------------------------------------------------------------------------------------------- damage */

Test(check, g13_a_damaged_payload_is_named_by_segment_offset_topic_and_batch)
{
    store(true);
    /* Groups 1, 2, 3, 6, 7 hold one batch each of t, u, t, u, t. */
    const char *topics[] = {"t", "u", "t", "bulk", "bulk", "u", "t"};
    uint64_t sequences[] = {1, 1, 3, 1, 2, 2, 6};
    for (unsigned i = 0; i < 7; i++) {
        const struct disk_group *g = &disk.groups[i];
        struct frame_header frame;
        file_peek(&life, g->file, g->header.offset + sizeof(struct group_header), &frame, sizeof frame);
        uint64_t at = g->header.offset + sizeof(struct group_header) + frame.header_bytes;
        file_flip(&life, g->file, at, 4);
        const struct told *t = damage_told();
        cr_assert_str_eq(t->file, g->file);
        cr_assert_eq(t->segment, g->header.segment);
        cr_assert_eq(t->offset, g->header.offset + sizeof(struct group_header));
        cr_assert_str_eq(t->topic, topics[i], "group %u: topic \"%s\"", i + 1, t->topic);
        cr_assert_eq(t->sequence, sequences[i]);
        cr_assert_eq(report.damaged, 1u, "one damage, told once");
        file_flip(&life, g->file, at, 4);
    }
    finds_nothing();
}

Test(check, g13_a_damaged_group_header_is_named_and_the_groups_behind_it_are_counted)
{
    store(true);
    for (unsigned i = 0; i < 7; i++) {
        const struct disk_group *g = &disk.groups[i];
        file_flip(&life, g->file, g->header.offset + 70, 1);
        const struct told *t = damage_told();
        cr_assert_str_eq(t->file, g->file, "group %u", i + 1);
        cr_assert_eq(t->offset, g->header.offset, "group %u", i + 1);
        cr_assert_eq(report.groups, 6u, "group %u: %llu of the other six", i + 1,
                     (unsigned long long)report.groups);
        file_flip(&life, g->file, g->header.offset + 70, 1);
    }
}

Test(check, several_damages_are_all_named_in_one_run)
{
    store(true);
    unsigned which[] = {1, 2, 5};
    for (unsigned i = 0; i < 3; i++) {
        const struct disk_group *g = &disk.groups[which[i]];
        file_flip(&life, g->file, g->header.offset + g->header.used - 1, 0);
    }
    damage_told();
    unsigned count = 0;
    for (unsigned i = 0; i < told_count; i++)
        count += told[i].kind == FINDING_DAMAGE;
    cr_assert_eq(count, 3u, "%u damages are named", count);
}

Test(check, a_torn_tail_is_told_apart_from_damage)
{
    store(false);
    const struct disk_group *last = disk_last(&disk);
    file_zero(&life, last->file, last->header.offset + 4096, last->header.length - 4096);
    cr_assert_eq(check(), 0, "%s", why.text);
    const struct told *t = told_of(FINDING_TORN);
    cr_assert_not_null(t);
    cr_assert_eq(t->offset, last->header.offset);
    cr_assert_str_eq(t->file, last->file);
    cr_assert_eq(report.damaged, 0u);
    cr_assert_eq(report.torn, 1u);
}

Test(check, g13_a_lost_tail_that_a_checkpoint_proves_is_damage)
{
    store(true);
    const struct disk_group *last = disk_last(&disk);
    file_zero(&life, last->file, last->header.offset, last->header.length);
    const struct told *t = damage_told();
    cr_assert_eq(t->offset, last->header.offset);
    cr_assert_eq(report.torn, 0u);
}

Test(check, g13_a_damaged_tail_that_a_group_behind_it_proves_is_damage)
{
    store(false);
    const struct disk_group *g = &disk.groups[5];
    cr_assert_str_eq(g->file, disk_newest(&disk)->name);
    file_flip(&life, g->file, g->header.offset + 20, 1);
    const struct told *t = damage_told();
    cr_assert_eq(t->offset, g->header.offset);
}

Test(check, a_missing_segment_is_named)
{
    store(true);
    file_delete(&life, disk.segments[0].name);
    const struct told *t = damage_told();
    cr_assert_not_null(strstr(t->text, "segment 1 is missing"), "%s", t->text);
}

Test(check, a_short_segment_is_named_with_both_lengths)
{
    store(true);
    file_cut(&life, disk.segments[0].name, disk.segments[0].end - 4096);
    const struct told *t = damage_told();
    cr_assert_str_eq(t->file, disk.segments[0].name);
    cr_assert_not_null(strstr(t->text, "truncated"), "%s", t->text);
}

Test(check, g18_copied_renamed_and_foreign_segments_are_named)
{
    struct life other;
    life_make(&other);
    life_start(&other);
    life_put(&other, "t", 1, 10);
    life_crash(&other);
    store(true);
    file_copy(&life, disk.segments[0].name, &life, "00000077.segment");
    const struct told *t = damage_told();
    cr_assert_str_eq(t->file, "00000077.segment");
    file_delete(&life, "00000077.segment");
    file_copy(&other, "00000001.segment", &life, "00000078.segment");
    t = damage_told();
    cr_assert_str_eq(t->file, "00000078.segment");
    cr_assert_not_null(strstr(t->text, "another store"), "%s", t->text);
    life_remove(&other);
}

Test(check, a_damaged_checkpoint_is_a_note)
{
    store(true);
    file_flip(&life, "checkpoint-1", 200, 5);
    cr_assert_eq(check(), 0);
    cr_assert_not_null(told_of(FINDING_NOTE));
    cr_assert_eq(report.damaged, 0u);
}

Test(check, g14_an_error_of_the_device_stops_the_check_with_words)
{
    store(true);
    struct io_real_options options = {
        .folder = life.folder, .backend = IO_BACKEND_PWRITE, .watch_fd = -1, .allow_direct = true};
    enum io_kind kinds[] = {IO_READ, IO_OPEN};
    for (unsigned k = 0; k < 2; k++) {
        for (unsigned n = 1; n < 40; n++) {
            struct io *real, *io;
            uint64_t before = folder_digest(&life);
            cr_assert_eq(io_real_create(&options, &real, NULL, &why), 0);
            cr_assert_eq(io_fault_create(real, &io), 0);
            io_fault_set(io, kinds[k], &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = n});
            told_count = 0;
            why = (struct error){0};
            int result = log_check(io, found, &life, &report, &why);
            bool hit = io_fault_count(io, kinds[k]) >= n;
            io->functions->destroy(io);
            cr_assert_eq(folder_digest(&life), before);
            cr_assert_eq(result, hit ? -EIO : 0, "op %u: %d (%s)", n, result, why.text);
            if (!hit)
                break;
            cr_assert_not_null(strstr(why.text, life.folder), "\"%s\"", why.text);
        }
    }
}

Test(check, g13_every_flipped_bit_of_the_groups_is_found)
{
    store(true);
    unsigned step = 0;
    for (unsigned i = 0; i < 7; i++) {
        const struct disk_group *g = &disk.groups[i];
        uint32_t length = g->header.length > 20000 ? 20000 : g->header.length;
        for (uint32_t at = 1; at < length; at += 1499, step++) {
            file_flip(&life, g->file, g->header.offset + at, step % 8);
            snprintf(damaging, sizeof damaging, "byte %u of group %u in %s", at, i + 1, g->file);
            damage_told();
            file_flip(&life, g->file, g->header.offset + at, step % 8);
        }
    }
    finds_nothing();
}

Test(check, g13_a_rotten_header_is_found_wherever_it_is)
{
    store(true);
    for (size_t i = 0; i < disk.segment_count; i++) {
        file_flip(&life, disk.segments[i].name, 90, 5);
        snprintf(damaging, sizeof damaging, "the header of %s", disk.segments[i].name);
        damage_told();
        file_flip(&life, disk.segments[i].name, 90, 5);
    }
    finds_nothing();
}
