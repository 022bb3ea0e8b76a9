/* test_disk.c: the simulated disk loses, tears and fails what it says it does. A crash test is worth what
 * its disk is. */
#include "disk.h"

#include <criterion/criterion.h>

static uint8_t page[16 * SIM_BLOCK] __attribute__((aligned(4096)));

static int64_t run_on(struct disk *disk, struct io_op *op)
{
    return io_run(disk_io(disk), op);
}

static struct io_file *create(struct disk *disk, const char *name, uint32_t flags)
{
    struct io_op op = {.kind = IO_CREATE, .name = name, .flags = flags};
    cr_assert_eq(run_on(disk, &op), 0);
    return op.file;
}

static struct io_file *open_file(struct disk *disk, const char *name)
{
    struct io_op op = {.kind = IO_OPEN, .name = name};
    return run_on(disk, &op) == 0 ? op.file : NULL;
}

static int64_t write_at(struct disk *disk, struct io_file *file, uint8_t fill, uint64_t offset,
                        uint64_t length)
{
    memset(page, fill, length);
    struct io_op op = {.kind = IO_WRITE, .file = file, .buffer = page, .offset = offset, .length = length};
    return run_on(disk, &op);
}

static int64_t simple(struct disk *disk, enum io_kind kind, struct io_file *file, uint64_t length)
{
    struct io_op op = {.kind = kind, .file = file, .length = length};
    return run_on(disk, &op);
}

static int64_t named(struct disk *disk, enum io_kind kind, const char *name, const char *new_name)
{
    struct io_op op = {.kind = kind, .name = name, .new_name = new_name};
    return run_on(disk, &op);
}

static uint8_t byte_at(struct disk *disk, struct io_file *file, uint64_t offset)
{
    struct io_op op = {.kind = IO_READ, .file = file, .buffer = page, .length = SIM_BLOCK};
    op.offset = offset - offset % SIM_BLOCK;
    cr_assert_gt(run_on(disk, &op), (int64_t)(offset % SIM_BLOCK));
    return page[offset % SIM_BLOCK];
}

/* A disk with one durable file of four blocks of 'a'. */
static struct disk *disk_with_file(struct io_file **file)
{
    struct disk *disk = disk_start(image_new(UINT64_MAX), 1);
    *file = create(disk, "f", 0);
    cr_assert_eq(simple(disk, IO_ALLOCATE, *file, 4 * SIM_BLOCK), 0);
    cr_assert_eq(write_at(disk, *file, 'a', 0, 4 * SIM_BLOCK), 4 * SIM_BLOCK);
    cr_assert_eq(simple(disk, IO_FLUSH, *file, 0), 0);
    cr_assert_eq(simple(disk, IO_SYNC_DIRECTORY, NULL, 0), 0);
    return disk;
}

static struct image *after(struct disk *disk, enum crash crash, struct choices choices)
{
    disk_crash_now(disk);
    struct image *image = disk_end(disk);
    struct image *next = image_crash(image, crash, &choices);
    image_free(image);
    return next;
}

static uint8_t image_byte(const struct image *image, const char *name, uint64_t offset)
{
    uint8_t bytes[SIM_BLOCK];
    image_get_block(image, name, (uint32_t)(offset / SIM_BLOCK), bytes);
    return bytes[offset % SIM_BLOCK];
}

Test(disk, keeps_what_was_flushed_through_a_power_cut)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    struct image *image = after(disk, CRASH_POWER, choices_mask(0));
    cr_assert_eq(image_size(image, "f"), 4 * SIM_BLOCK);
    cr_assert_eq(image_byte(image, "f", 3 * SIM_BLOCK + 7), 'a');
    image_free(image);
}

Test(disk, loses_what_was_not_flushed_block_by_block)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    write_at(disk, file, 'b', 0, 2 * SIM_BLOCK);
    disk_crash_now(disk);
    struct image *image = disk_end(disk);
    cr_assert_eq(image_questions(image, CRASH_POWER), 2);
    for (uint64_t mask = 0; mask < 4; mask++) {
        struct choices choices = choices_mask(mask);
        struct image *next = image_crash(image, CRASH_POWER, &choices);
        cr_assert_eq(image_byte(next, "f", 0), mask & 1 ? 'b' : 'a');
        cr_assert_eq(image_byte(next, "f", SIM_BLOCK), mask & 2 ? 'b' : 'a');
        image_free(next);
    }
    image_free(image);
}

Test(disk, keeps_unflushed_bytes_through_a_kill)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    write_at(disk, file, 'b', 0, SIM_BLOCK);
    struct image *image = after(disk, CRASH_KILL, choices_mask(0));
    cr_assert_eq(image_byte(image, "f", 0), 'b');
    image = after(disk_start(image, 2), CRASH_POWER, choices_mask(0));
    cr_assert_eq(image_byte(image, "f", 0), 'a', "a kill must not make anything durable");
    image_free(image);
}

Test(disk, may_show_any_version_written_since_the_last_flush)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    write_at(disk, file, 'b', 0, SIM_BLOCK);
    write_at(disk, file, 'c', 0, SIM_BLOCK);
    disk_crash_now(disk);
    struct image *image = disk_end(disk);
    uint32_t seen[256] = {0};
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct choices choices = choices_chance(seed);
        struct image *next = image_crash(image, CRASH_POWER, &choices);
        seen[image_byte(next, "f", 0)]++;
        image_free(next);
    }
    cr_assert(seen['a'] > 0 && seen['b'] > 0 && seen['c'] > 0);
    image_free(image);
}

Test(disk, tears_blocks_at_sectors)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    write_at(disk, file, 'b', 0, SIM_BLOCK);
    disk_crash_now(disk);
    struct image *image = disk_end(disk);
    uint32_t torn = 0, noise = 0;
    for (uint64_t seed = 0; seed < 500; seed++) {
        struct choices choices = choices_chance(seed);
        struct image *next = image_crash(image, CRASH_POWER, &choices);
        uint8_t bytes[SIM_BLOCK];
        image_get_block(next, "f", 0, bytes);
        bool a = false, b = false, other = false;
        for (uint32_t i = 0; i < SIM_BLOCK; i++) {
            a |= bytes[i] == 'a';
            b |= bytes[i] == 'b';
            other |= bytes[i] != 'a' && bytes[i] != 'b';
            cr_assert(i % SIM_SECTOR == 0 || other || bytes[i] == bytes[i - 1],
                      "a sector of versions is whole");
        }
        torn += a && b && !other;
        noise += other;
        image_free(next);
    }
    cr_assert(torn > 0 && noise > 0);
    image_free(image);
}

Test(disk, drops_what_a_failed_flush_covered_although_reads_show_it)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    write_at(disk, file, 'b', 0, SIM_BLOCK);
    disk_set_fault(disk, &(struct fault){.kinds = 1u << IO_FLUSH, .count = 1, .error = -EIO});
    cr_assert_eq(simple(disk, IO_FLUSH, file, 0), -EIO);
    cr_assert_eq(simple(disk, IO_FLUSH, file, 0), 0, "a later flush says it is fine");
    cr_assert_eq(byte_at(disk, file, 0), 'b');
    struct image *image = after(disk, CRASH_KILL, choices_mask(0));
    disk = disk_start(image, 2);
    file = open_file(disk, "f");
    cr_assert_eq(byte_at(disk, file, 0), 'b');
    cr_assert_eq(simple(disk, IO_FLUSH, file, 0), 0);
    image = after(disk, CRASH_POWER, choices_mask(0));
    cr_assert_eq(image_byte(image, "f", 0), 'a');
    image_free(image);
}

Test(disk, heals_a_failed_flush_by_rewriting)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    write_at(disk, file, 'b', 0, SIM_BLOCK);
    disk_set_fault(disk, &(struct fault){.kinds = 1u << IO_FLUSH, .count = 1, .error = -EIO});
    cr_assert_eq(simple(disk, IO_FLUSH, file, 0), -EIO);
    write_at(disk, file, 'c', 0, SIM_BLOCK);
    cr_assert_eq(simple(disk, IO_FLUSH, file, 0), 0);
    struct image *image = after(disk, CRASH_POWER, choices_mask(0));
    cr_assert_eq(image_byte(image, "f", 0), 'c');
    image_free(image);
}

Test(disk, flushes_one_file_only)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    struct io_file *other = create(disk, "g", 0);
    write_at(disk, other, 'b', 0, SIM_BLOCK);
    cr_assert_eq(simple(disk, IO_SYNC_DIRECTORY, NULL, 0), 0);
    cr_assert_eq(simple(disk, IO_FLUSH, file, 0), 0);
    struct image *image = after(disk, CRASH_POWER, choices_mask(0));
    cr_assert_eq(image_size(image, "g"), 0);
    image_free(image);
}

Test(disk, loses_names_until_the_folder_is_synced)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    struct io_file *other = create(disk, "new", 0);
    cr_assert_eq(simple(disk, IO_FLUSH, other, 0), 0);
    cr_assert_eq(named(disk, IO_RENAME, "new", "g"), 0);
    cr_assert_eq(named(disk, IO_UNLINK, "f", NULL), 0);
    disk_crash_now(disk);
    struct image *image = disk_end(disk);
    cr_assert_eq(image_questions(image, CRASH_POWER), 3);
    for (uint64_t mask = 0; mask < 8; mask++) {
        struct choices choices = choices_mask(mask);
        struct image *next = image_crash(image, CRASH_POWER, &choices);
        cr_assert_eq(image_find(next, "f") != UINT32_MAX, !(mask & 4));
        cr_assert_eq(image_find(next, "g") != UINT32_MAX, (mask & 2) != 0);
        cr_assert_eq(image_find(next, "new") != UINT32_MAX, (mask & 3) == 1, "a rename is one change");
        image_free(next);
    }
    image_free(image);
}

Test(disk, keeps_names_after_a_sync_of_the_folder)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    cr_assert_eq(named(disk, IO_RENAME, "f", "g"), 0);
    cr_assert_eq(simple(disk, IO_SYNC_DIRECTORY, NULL, 0), 0);
    struct image *image = after(disk, CRASH_POWER, choices_mask(0));
    cr_assert_eq(image_find(image, "f"), UINT32_MAX);
    cr_assert_neq(image_find(image, "g"), UINT32_MAX);
    image_free(image);
}

Test(disk, loses_a_length_until_the_file_is_flushed)
{
    struct disk *disk = disk_start(image_new(UINT64_MAX), 1);
    struct io_file *file = create(disk, "f", 0);
    cr_assert_eq(simple(disk, IO_SYNC_DIRECTORY, NULL, 0), 0);
    cr_assert_eq(simple(disk, IO_ALLOCATE, file, 4 * SIM_BLOCK), 0);
    cr_assert_eq(byte_at(disk, file, SIM_BLOCK), 0, "allocated space reads as zeros");
    struct image *image = after(disk, CRASH_POWER, choices_mask(0));
    cr_assert_eq(image_size(image, "f"), 0);
    image_free(image);
}

Test(disk, undoes_a_truncation_that_was_not_flushed_with_its_bytes)
{
    for (uint64_t mask = 0; mask < 2; mask++) {
        struct io_file *file;
        struct disk *disk = disk_with_file(&file);
        cr_assert_eq(simple(disk, IO_TRUNCATE, file, SIM_BLOCK), 0);
        struct image *image = after(disk, CRASH_POWER, choices_mask(mask == 0 ? 0 : UINT64_MAX));
        cr_assert_eq(image_size(image, "f"), mask == 0 ? 4 * SIM_BLOCK : SIM_BLOCK);
        cr_assert_eq(image_byte(image, "f", 2 * SIM_BLOCK), mask == 0 ? 'a' : 0);
        image_free(image);
    }
}

static void count_done(struct io_op *op)
{
    ++*(uint32_t *)op->owner;
}

Test(disk, completes_ops_in_an_order_that_the_seed_chooses)
{
    uint32_t first_won = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        struct disk *disk = disk_start(image_new(UINT64_MAX), seed);
        struct io_file *file = create(disk, "f", 0);
        cr_assert_eq(write_at(disk, file, 'x', 0, SIM_BLOCK), SIM_BLOCK);
        static uint8_t a[SIM_BLOCK] __attribute__((aligned(4096))),
            b[SIM_BLOCK] __attribute__((aligned(4096)));
        memset(a, 'a', sizeof a);
        memset(b, 'b', sizeof b);
        struct io_op one = {.kind = IO_WRITE, .file = file, .buffer = a, .length = SIM_BLOCK};
        struct io_op two = {.kind = IO_WRITE, .file = file, .buffer = b, .length = SIM_BLOCK};
        uint32_t finished = 0;
        one.done = two.done = count_done;
        one.owner = two.owner = &finished;
        io_submit(disk_io(disk), &one);
        io_submit(disk_io(disk), &two);
        while (finished < 2)
            io_wait(disk_io(disk), -1);
        first_won += byte_at(disk, file, 0) == 'b';
        image_free(disk_end(disk));
    }
    cr_assert(first_won > 0 && first_won < 40);
}

static uint32_t gone_count;
static void note_gone(struct io_op *op)
{
    gone_count += op->result == -ESHUTDOWN;
}

Test(disk, leaves_a_write_in_flight_to_chance_at_a_crash)
{
    for (uint64_t mask = 0; mask < 4; mask++) {
        struct io_file *file;
        struct disk *disk = disk_with_file(&file);
        memset(page, 'b', 2 * SIM_BLOCK);
        struct io_op op = {
            .kind = IO_WRITE, .file = file, .buffer = page, .length = 2 * SIM_BLOCK, .done = note_gone};
        io_submit(disk_io(disk), &op);
        disk_crash_at(disk, disk_events(disk) + 1);
        gone_count = 0;
        io_wait(disk_io(disk), -1);
        cr_assert_eq(gone_count, 1);
        cr_assert(disk_gone(disk));
        struct io_op late = {.kind = IO_FLUSH, .file = file};
        cr_assert_eq(run_on(disk, &late), -ESHUTDOWN, "nothing works once the machine is gone");
        struct image *image = disk_end(disk);
        cr_assert_eq(image_questions(image, CRASH_POWER), 2);
        cr_assert_eq(image_questions(image, CRASH_KILL), 2);
        for (uint32_t crash = 0; crash < 2; crash++) {
            struct choices choices = choices_mask(mask);
            struct image *next = image_crash(image, (enum crash)crash, &choices);
            cr_assert_eq(image_byte(next, "f", 0), mask & 1 ? 'b' : 'a');
            cr_assert_eq(image_byte(next, "f", SIM_BLOCK), mask & 2 ? 'b' : 'a');
            image_free(next);
        }
        image_free(image);
    }
}

Test(disk, lets_a_killed_brokers_write_land_later_and_lock_waits_for_it)
{
    uint32_t late = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        struct io_file *file;
        struct disk *disk = disk_with_file(&file);
        memset(page, 'b', SIM_BLOCK);
        struct io_op op = {
            .kind = IO_WRITE, .file = file, .buffer = page, .length = SIM_BLOCK, .done = note_gone};
        io_submit(disk_io(disk), &op);
        disk_crash_now(disk);
        io_wait(disk_io(disk), -1);
        struct image *image = disk_end(disk);
        struct choices choices = choices_chance(seed);
        struct image *next = image_crash(image, CRASH_KILL, &choices);
        image_free(image);
        disk = disk_start(next, seed);
        struct io *io = disk_io(disk);
        file = open_file(disk, "f");
        if (io->functions->lock(io, file) == -EWOULDBLOCK) {
            late++;
            cr_assert_eq(byte_at(disk, file, 0), 'a');
            uint32_t tries = 0;
            while (io->functions->lock(io, file) == -EWOULDBLOCK && tries++ < 1000)
                io->functions->sleep(io, 10000000);
            cr_assert_eq(io->functions->lock(io, file), 0);
            cr_assert_eq(byte_at(disk, file, 0), 'b');
        }
        image_free(disk_end(disk));
    }
    cr_assert_gt(late, 0);
}

Test(disk, fails_writes_leaving_old_new_or_torn_bytes)
{
    const enum leaves all[] = {LEAVES_OLD, LEAVES_NEW};
    for (uint32_t i = 0; i < array_count(all); i++) {
        struct io_file *file;
        struct disk *disk = disk_with_file(&file);
        disk_set_fault(disk,
                       &(struct fault){.kinds = 1u << IO_WRITE, .count = 1, .error = -EIO, .leaves = all[i]});
        cr_assert_eq(write_at(disk, file, 'b', 0, SIM_BLOCK), -EIO);
        cr_assert_eq(byte_at(disk, file, 0), all[i] == LEAVES_OLD ? 'a' : 'b');
        struct image *image = after(disk, CRASH_POWER, choices_mask(UINT64_MAX));
        cr_assert(image_byte(image, "f", 0) == 'b',
                  "whatever reads said, the bytes may have reached the medium");
        image_free(image);
    }
}

Test(disk, writes_short)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    struct fault fault = {.kinds = 1u << IO_WRITE, .count = 1, .short_count = SIM_BLOCK + 511};
    disk_set_fault(disk, &fault);
    cr_assert_eq(write_at(disk, file, 'b', 0, 3 * SIM_BLOCK), SIM_BLOCK + 511);
    cr_assert_eq(byte_at(disk, file, SIM_BLOCK + 510), 'b');
    cr_assert_eq(byte_at(disk, file, SIM_BLOCK + 511), 'a');
    image_free(disk_end(disk));
}

Test(disk, counts_space_and_heals)
{
    struct disk *disk = disk_start(image_new(8 * SIM_BLOCK), 1);
    struct io_file *file = create(disk, "f", 0);
    cr_assert_eq(simple(disk, IO_ALLOCATE, file, 6 * SIM_BLOCK), 0);
    struct io_file *other = create(disk, "g", 0);
    cr_assert_eq(simple(disk, IO_ALLOCATE, other, 3 * SIM_BLOCK), -ENOSPC);
    cr_assert_eq(write_at(disk, other, 'x', 0, 3 * SIM_BLOCK), -ENOSPC);
    cr_assert_eq(write_at(disk, file, 'x', 0, 6 * SIM_BLOCK), 6 * SIM_BLOCK,
                 "what is allocated can be written");
    cr_assert_eq(simple(disk, IO_TRUNCATE, file, SIM_BLOCK), 0);
    cr_assert_eq(simple(disk, IO_ALLOCATE, other, 3 * SIM_BLOCK), 0);
    cr_assert_eq(disk_io(disk)->functions->space_free(disk_io(disk)), 4 * SIM_BLOCK);
    image_free(disk_end(disk));
}

Test(disk, g17_notices_a_write_over_committed_bytes)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    cr_assert_null(disk_violation(disk));
    write_at(disk, file, 'b', SIM_BLOCK, SIM_SECTOR);
    cr_assert_not_null(disk_violation(disk));
    image_free(disk_end(disk));
}

Test(disk, g17_takes_prepared_zeros_for_free_space)
{
    struct disk *disk = disk_start(image_new(UINT64_MAX), 1);
    struct io_file *file = create(disk, "f", 0);
    write_at(disk, file, 0, 0, 4 * SIM_BLOCK);
    cr_assert_eq(simple(disk, IO_FLUSH, file, 0), 0);
    write_at(disk, file, 'b', 0, 2 * SIM_BLOCK);
    cr_assert_null(disk_violation(disk));
    image_free(disk_end(disk));
}

Test(disk, notices_a_buffer_that_changes_in_flight)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    struct disk *fresh = disk_start(image_new(UINT64_MAX), 1);
    struct io_file *other = create(fresh, "g", 0);
    struct io_op op = {
        .kind = IO_WRITE, .file = other, .buffer = page, .length = SIM_BLOCK, .done = note_gone};
    io_submit(disk_io(fresh), &op);
    page[100] ^= 1;
    io_wait(disk_io(fresh), -1);
    cr_assert_not_null(disk_violation(fresh));
    image_free(disk_end(fresh));
    image_free(disk_end(disk));
}

Test(disk, g26_same_seed_gives_the_same_trace_and_image)
{
    uint64_t traces[3], images[3];
    for (uint32_t i = 0; i < 3; i++) {
        struct disk *disk = disk_start(image_new(UINT64_MAX), i == 2 ? 8 : 7);
        disk_set_chance(disk, IO_WRITE, 300000);
        struct io_file *file = create(disk, "f", 0);
        for (uint32_t n = 0; n < 30; n++) {
            int64_t result = write_at(disk, file, (uint8_t)n, n * SIM_BLOCK, SIM_BLOCK);
            (void)result;
        }
        traces[i] = disk_trace_hash(disk);
        struct image *image = disk_end(disk);
        images[i] = image_hash(image);
        image_free(image);
    }
    cr_assert_eq(traces[0], traces[1]);
    cr_assert_eq(images[0], images[1]);
    cr_assert_neq(traces[0], traces[2]);
}

Test(disk, shares_blocks_between_copies_without_letting_one_change_the_other)
{
    struct io_file *file;
    struct disk *disk = disk_with_file(&file);
    struct image *image = disk_end(disk), *copy = image_copy(image);
    cr_assert_eq(image_hash(image), image_hash(copy));
    disk = disk_start(copy, 3);
    file = open_file(disk, "f");
    write_at(disk, file, 'z', 2 * SIM_BLOCK, SIM_BLOCK);
    copy = disk_end(disk);
    cr_assert_eq(image_byte(image, "f", 2 * SIM_BLOCK), 'a');
    cr_assert_eq(image_byte(copy, "f", 2 * SIM_BLOCK), 'z');
    cr_assert_neq(image_hash(image), image_hash(copy));
    image_free(copy);
    image_free(image);
}
