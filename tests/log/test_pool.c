/* Segments prepared ahead: complete before they are used, given up cleanly, and a full disk that heals by
 * itself. */
#include "life.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

static struct life life;
static const int A;

static void make(void)
{
    life_make(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(pool, .init = make, .fini = clean, .timeout = 60);

static void disk_full(enum io_kind kind, int error)
{
    io_fault_set(life.io, kind,
                 &(struct fault){.action = FAULT_FAIL_BEFORE,
                                 .error = error,
                                 .nth = 1,
                                 .from_then_on = true,
                                 .only_background = true});
}

/* Writes until the log refuses; the entries taken are in the model. */
static int fill_until_refused(uint32_t bytes)
{
    for (unsigned i = 0; i < 200; i++) {
        struct sent *sent =
            SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = bytes);
        for (unsigned turns = 0; sent->refused == -EAGAIN; turns++) {
            cr_assert_lt(turns, 20000u);
            life_turn(&life);
            life_again(sent);
        }
        if (sent->refused != 0)
            return sent->refused;
        life_settle(&life);
        if (sent->write.result != 0)
            return sent->write.result;
        life_committed(&life, "t", 1);
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------ order */

static bool op_is(const struct op_record *op, enum io_kind kind, const char *name)
{
    return op->kind == kind && strcmp(op->name, name) == 0;
}

/* What happened to the file before it got its name, and between that and its first byte of the log. */
static void complete_before_use(size_t renamed)
{
    const struct op_record *rename = &life.ops[renamed];
    bool created = false, flushed = false, synced = false;
    for (size_t i = 0; i < renamed; i++) {
        const struct op_record *op = &life.ops[i];
        created |= op_is(op, IO_CREATE, rename->name);
        if (op_is(op, IO_WRITE, rename->name) || op_is(op, IO_ALLOCATE, rename->name))
            flushed = false;
        if (op_is(op, IO_FLUSH, rename->name))
            flushed = true;
        cr_assert(strcmp(op->name, rename->new_name) != 0, "%s is used before it has its name",
                  rename->new_name);
    }
    cr_assert(created && flushed, "%s was renamed without a flush", rename->name);
    for (size_t i = renamed + 1; i < life.op_count; i++) {
        const struct op_record *op = &life.ops[i];
        synced |= op->kind == IO_SYNC_DIRECTORY;
        if (op_is(op, IO_WRITE, rename->new_name))
            cr_assert(synced, "%s is written to before the folder was flushed", rename->new_name);
    }
}

Test(pool, g19_a_file_has_its_name_only_after_its_flush_and_is_used_only_after_the_folders)
{
    life_start(&life);
    for (unsigned i = 0; i < 12; i++)
        life_put(&life, "t", 1, 2000000);
    life_quiet(&life);
    unsigned renamed = 0;
    for (size_t i = 0; i < life.op_count; i++) {
        if (life.ops[i].kind != IO_RENAME || strstr(life.ops[i].new_name, ".segment") == NULL)
            continue;
        complete_before_use(i);
        renamed++;
    }
    cr_assert_gt(renamed, 5u);
}

Test(pool, g19_the_identity_and_checkpoints_have_their_names_only_after_their_flush)
{
    life_start(&life);
    life_put(&life, "t", 1, 10);
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    cr_assert_gt(life_stats(&life).checkpoints, 0u);
    unsigned renamed = 0;
    for (size_t i = 0; i < life.op_count; i++) {
        const struct op_record *rename = &life.ops[i];
        if (rename->kind != IO_RENAME || strstr(rename->new_name, ".segment") != NULL ||
            strstr(rename->new_name, ".index") != NULL)
            continue;
        bool flushed = false;
        for (size_t k = 0; k < i; k++) {
            if (op_is(&life.ops[k], IO_WRITE, rename->name))
                flushed = false;
            if (op_is(&life.ops[k], IO_FLUSH, rename->name))
                flushed = true;
        }
        cr_assert(flushed, "%s", rename->new_name);
        renamed++;
    }
    cr_assert_eq(renamed, 2u);
}

/* ----------------------------------------------------------------------------------------------- zeroes */

static bool is_zeros(const struct op_record *op)
{
    return op->kind == IO_WRITE && op->background && op->length >= 65536;
}

static void let_go(void)
{
    io_fault_hold(life.io, IO_WRITE, false);
    (void)io_fault_release(life.io, IO_WRITE, UINT32_MAX);
}

static unsigned count_zeros(void)
{
    unsigned zeros = 0;
    for (size_t i = 0; i < life.op_count; i++)
        zeros += is_zeros(&life.ops[i]);
    return zeros;
}

Test(pool, zeros_go_into_files_that_are_not_in_the_log_yet)
{
    life.options.prepare_only_spare = false;
    life_start(&life);
    for (unsigned i = 0; i < 8; i++) {
        life.ahead += SECOND;
        life_quiet(&life);
        life_put(&life, "t", 1, 2000000);
    }
    cr_assert_gt(count_zeros(), 0u);
    for (size_t i = 0; i < life.op_count; i++) {
        if (!is_zeros(&life.ops[i]))
            continue;
        for (size_t k = 0; k < i; k++)
            cr_assert(life.ops[k].kind != IO_WRITE || life.ops[k].background ||
                          strcmp(life.ops[k].name, life.ops[i].name) != 0,
                      "zeros into %s, which is in the log", life.ops[i].name);
    }
    life_verify(&life);
}

Test(pool, segments_are_prepared_while_a_group_is_in_the_device_and_zeros_wait_for_it)
{
    life.options.prepare_only_spare = false;
    life_start(&life);
    io_fault_hold(life.io, IO_WRITE, true);
    struct sent *sent =
        SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 100);
    cr_assert_eq(sent->refused, 0);
    life_until_held(&life, IO_WRITE, 1);
    life.ahead += SECOND;
    for (unsigned turns = 0; life_stats(&life).prepared_segments < 2; turns++) {
        cr_assert_lt(turns, 20000u);
        life_turn(&life);
    }
    for (unsigned i = 0; i < 20; i++)
        life_turn(&life);
    cr_assert_eq(count_zeros(), 0u, "zeros beside a group");
    let_go();
    life_settle(&life);
    life_committed(&life, "t", 1);
    life.ahead += SECOND;
    life_quiet(&life);
    cr_assert_gt(count_zeros(), 0u);
    life_verify(&life);
}

/* A group that cannot be committed without the next segment gathers on, so the log is not quiet again: were
 * the segment's zeroes waited for, every write would be held for ever. */
Test(pool, a_segment_is_given_back_after_one_step_of_zeros_when_there_is_work)
{
    life.options.prepare_only_spare = false;
    life_start(&life);
    for (unsigned turns = 0; life_stats(&life).prepared_segments < 2 && count_zeros() == 0; turns++) {
        cr_assert_lt(turns, 20000u);
        life_turn(&life);
    }
    io_fault_hold(life.io, IO_WRITE, true);
    life.ahead += SECOND;
    life_until_held(&life, IO_WRITE, 1);
    unsigned zeros = count_zeros();
    cr_assert_gt(zeros, 0u);
    cr_assert_eq(life_stats(&life).prepared_segments, 1u,
                 "the segment that is written to is still a ready one");
    struct sent *first =
        SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 1000000);
    cr_assert_eq(first->refused, 0);
    life_until_held(&life, IO_WRITE, 2);
    let_go();
    for (unsigned i = 0; i < 12; i++) { /* one gathers before the last one is answered */
        struct sent *next = SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1,
                                 .bytes = 1000000, .from = 2 + i);
        for (unsigned turns = 0; next->refused == -EAGAIN; turns++) {
            cr_assert_lt(turns, 20000u);
            life_turn(&life);
            life_again(next);
        }
        cr_assert_eq(next->refused, 0);
        life_turn(&life);
    }
    cr_assert_eq(count_zeros(), zeros, "zeros were written beside work");
    life_settle(&life);
    life_committed(&life, "t", 13);
    cr_assert_gt(life_stats(&life).segments, 1u);
    life_verify(&life);
}

/* --------------------------------------------------------------------------------------------- failures */

static void preparing_fails_at(enum io_kind kind, int error)
{
    life.options.prepare_only_spare = false;
    life_start(&life);
    disk_full(kind, error);
    life.ahead += SECOND; /* quiet for long: zeroes may be written */
    for (unsigned i = 0; i < 30 && !life_said(&life, "cannot prepare"); i++)
        life_turn(&life);
    io_fault_clear(life.io, kind);
    life_quiet(&life);
    cr_assert(life_said(&life, "cannot prepare"), "%s", life.said);
    cr_assert_eq(files_with(&life, ".new"), 0u, "an unfinished file is left");
    uint64_t creates = io_fault_count(life.io, IO_CREATE);
    life_quiet(&life);
    cr_assert_eq(io_fault_count(life.io, IO_CREATE), creates, "tried again at once");
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    cr_assert_geq(life_stats(&life).prepared_segments, 2u);
    cr_assert(life_said(&life, "prepared again"));
    for (unsigned i = 0; i < 4; i++)
        life_put(&life, "t", 1, 3000000);
    life_verify(&life);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(pool, g9_a_failed_create_is_undone_and_tried_again)
{
    preparing_fails_at(IO_CREATE, EIO);
}

Test(pool, g9_a_failed_allocation_is_undone_and_tried_again)
{
    preparing_fails_at(IO_ALLOCATE, EIO);
}

Test(pool, g9_no_room_for_the_flush_of_a_prepared_file_is_no_fail_stop)
{
    preparing_fails_at(IO_FLUSH, ENOSPC);
}

Test(pool, g9_a_quota_that_is_used_up_at_the_flush_of_a_prepared_file_is_no_fail_stop)
{
    preparing_fails_at(IO_FLUSH, EDQUOT);
}

Test(pool, g9_a_failed_rename_is_undone_and_tried_again)
{
    preparing_fails_at(IO_RENAME, EIO);
}

Test(pool, g19_a_failed_flush_of_the_folder_is_undone_and_tried_again)
{
    preparing_fails_at(IO_SYNC_DIRECTORY, ENOSPC);
}

/* The device's cache is one for all files: a failed flush says that it may have dropped the log's group. */
static void fail_stop_at(enum io_kind kind)
{
    life.options.prepare_only_spare = false;
    life_start(&life);
    io_fault_set(
        life.io, kind,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = 1, .only_background = true});
    uint64_t kept = life_stats(&life).groups;
    io_fault_hold(life.io, IO_WRITE, true);
    struct sent *sent =
        SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 100);
    life.ahead += SECOND;
    for (unsigned i = 0; i < 1000 && log_failed(life.log) == NULL; i++)
        life_turn(&life);
    cr_assert_not_null(log_failed(life.log));
    cr_assert(life_said(&life, "the flush of a segment that is being prepared failed"), "%s", life.said);
    cr_assert_eq(life_stats(&life).groups, kept);
    io_fault_hold(life.io, IO_WRITE, false);
    (void)io_fault_release(life.io, IO_WRITE, UINT32_MAX);
    while (life.io->inflight > 0) /* its own write and flush are good */
        io_wait(life.io, 20 * MILLISECOND);
    cr_assert(!sent->done, "nothing is answered any more");
    life_crash(&life);
    life_start(&life);
}

Test(pool, g10_a_failed_flush_of_a_prepared_file_is_a_fail_stop)
{
    fail_stop_at(IO_FLUSH);
}

Test(pool, g10_a_failed_flush_of_the_folder_is_a_fail_stop)
{
    fail_stop_at(IO_SYNC_DIRECTORY);
}

Test(pool, g9_failed_zeros_are_undone_and_tried_again)
{
    preparing_fails_at(IO_WRITE, EIO);
}

/* ------------------------------------------------------------------------------------------ a full disk */

Test(pool, g9_a_full_disk_refuses_with_enospc_reads_go_on_and_it_heals_by_itself)
{
    life_start(&life);
    life_quiet(&life);
    disk_full(IO_ALLOCATE, ENOSPC);
    cr_assert_eq(fill_until_refused(1000000), -ENOSPC);
    uint64_t writes = io_fault_count(life.io, IO_WRITE);
    struct sent *refused =
        SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 1000000);
    cr_assert_eq(refused->refused, -ENOSPC);
    cr_assert_eq(io_fault_count(life.io, IO_WRITE), writes, "G4: a refusal writes nothing");
    cr_assert_gt(life_stats(&life).refused_space, 0u);
    life_verify(&life);
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    cr_assert_eq(
        SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 1000000)->refused,
        -ENOSPC);
    io_fault_clear(life.io, IO_ALLOCATE);
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    for (unsigned i = 0; i < 5; i++)
        life_put(&life, "t", 1, 1000000);
    life_verify(&life);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(pool, g9_what_fits_the_space_there_is_goes_on_on_a_full_disk)
{
    life_start(&life);
    life_quiet(&life);
    disk_full(IO_ALLOCATE, ENOSPC);
    cr_assert_eq(fill_until_refused(1000000), -ENOSPC);
    struct sent *small =
        SEND(&life, .name = "s", .kind = WRITE_APPEND, .owner = &A, .entries = 1, .bytes = 10);
    cr_assert_eq(small->refused, 0, "%d", small->refused);
    life_settle(&life);
    cr_assert_eq(small->write.result, 0);
    life_committed(&life, "s", 1);
    life_verify(&life);
}

Test(pool, g9_a_full_disk_can_be_started_and_stopped)
{
    life.options.prepare_only_spare = false;
    life_start(&life);
    life_quiet(&life);
    disk_full(IO_ALLOCATE, ENOSPC);
    cr_assert_eq(fill_until_refused(1000000), -ENOSPC);
    life_crash(&life);
    for (unsigned i = 0; i < 3; i++) { /* each start takes one header-only spare at least */
        life_open(&life);
        disk_full(IO_ALLOCATE, ENOSPC);
        int error = life_try_start(&life);
        if (error == -ENOSPC) {
            cr_assert_gt(i, 0u, "the first start on a full disk must find room: %s", life.error.text);
            break;
        }
        cr_assert_eq(error, 0, "%s", life.error.text);
        life_verify(&life);
        life_crash(&life);
    }
    life_start(&life);
    life_quiet(&life);
    life_put(&life, "t", 1, 1000000);
    life_verify(&life);
}

/* A real one. In a mount namespace of this process; needs root or user namespaces. */
static void small_disk(uint64_t bytes)
{
    char options[64];
    snprintf(options, sizeof options, "size=%llu", (unsigned long long)bytes);
    if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
        cr_skip("SKIPPED: a mount namespace is refused here, and with it a small file system\n");
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("walrus-test", life.folder, "tmpfs", 0, options) != 0)
        cr_skip("SKIPPED: mounting a tmpfs is refused here\n");
}

Test(pool, g9_a_disk_that_is_really_full_refuses_keeps_all_and_heals)
{
    small_disk(26u << 20);
    life.options.prepare_only_spare = false; /* one is kept back for a start on a full disk */
    life_start(&life);
    life_quiet(&life);
    cr_assert_eq(fill_until_refused(700000), -ENOSPC);
    uint64_t held = life_next(&life, "t");
    cr_assert_gt(held, 3u);
    life_verify(&life);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
    char larger[160];
    snprintf(larger, sizeof larger, "size=%u", 60u << 20);
    cr_assert_eq(mount("none", life.folder, NULL, MS_REMOUNT, larger), 0);
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    for (unsigned i = 0; i < 5; i++)
        life_put(&life, "t", 1, 700000);
    life_verify(&life);
    life_stop(&life);
    life_start(&life);
    life_verify(&life);
    life_stop(&life);
    umount2(life.folder, MNT_DETACH);
}

Test(pool, a_store_on_a_disk_without_room_is_refused_with_enospc)
{
    small_disk(2u << 20);
    cr_assert_eq(life_try_start(&life), -ENOSPC);
    cr_assert_not_null(strstr(life.error.text, "space"), "%s", life.error.text);
    umount2(life.folder, MNT_DETACH);
}

Test(pool, segments_left_by_lives_that_wrote_nothing_do_not_pile_up)
{
    life.options.prepare_only_spare = false;
    life_start(&life);
    life_put(&life, "t", 1, 10);
    life_quiet(&life);
    life_stop(&life);
    unsigned first = 0;
    for (unsigned i = 0; i < 8; i++) {
        life_start(&life);
        life_quiet(&life);
        if (i % 2)
            life_stop(&life);
        else
            life_crash(&life);
        unsigned now = files_with(&life, ".segment");
        cr_assert(i < 2 || now <= first, "%u files after %u starts, %u before", now, i + 1, first);
        first = i == 1 ? now : first;
    }
    life_start(&life);
    life_verify(&life);
}

Test(pool, the_first_segments_are_small)
{
    life.options.segment_bytes = 64u << 20;
    life.options.prepare_only_spare = false;
    life_start(&life);
    life_quiet(&life);
    static struct disk disk;
    disk_scan(&life, &disk);
    uint64_t total = disk.segments[0].size;
    for (size_t i = 0; i < disk.spare_count; i++)
        total += disk.spares[i].size;
    cr_assert_leq(total, 64u << 20, "an empty store takes %llu bytes", (unsigned long long)total);
    cr_assert_eq(disk.segments[0].size, SEGMENT_SMALL);
}

Test(pool, sizes_and_blocks_out_of_range_are_refused_with_words)
{
    struct log_options options = life.options;
    uint64_t segments[] = {1, SEGMENT_MIN - 1, SEGMENT_MAX + 1};
    for (size_t i = 0; i < array_count(segments); i++) {
        life.options.segment_bytes = segments[i];
        cr_assert_eq(life_try_start(&life), -EINVAL);
        cr_assert_not_null(strstr(life.error.text, "--segment"));
    }
    life.options = options;
    uint32_t blocks[] = {512, 5000, 2048, 128u << 10};
    for (size_t i = 0; i < array_count(blocks); i++) {
        life.options.commit_align = blocks[i];
        cr_assert_eq(life_try_start(&life), -EINVAL);
        cr_assert_not_null(strstr(life.error.text, "--commit-align"));
    }
    life.options = options;
    life.options.memory_bytes = 1u << 20;
    cr_assert_eq(life_try_start(&life), -EINVAL);
    cr_assert_not_null(strstr(life.error.text, "--memory"));
    life.options = options;
    life.options.level = LEVEL_DURABLE + 1;
    cr_assert_eq(life_try_start(&life), -EINVAL);
    cr_assert_eq(files_with(&life, ".segment"), 0u, "nothing was touched");
}

Test(pool, g9_a_store_that_filled_the_disk_in_a_hurry_can_be_started)
{
    life.options.prepare_only_spare = false;
    life_start(&life);
    life_quiet(&life);
    io_fault_set(
        life.io, IO_ALLOCATE,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = ENOSPC, .nth = 1, .from_then_on = true});
    io_fault_hold(life.io, IO_ALLOCATE, true); /* the disk takes its time to say that it is full */
    int refused;
    do {
        struct sent *sent =
            SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 1000000);
        refused = sent->refused;
        if (refused == 0) {
            life_settle(&life);
            cr_assert_eq(sent->write.result, 0);
            life_committed(&life, "t", 1);
        }
    } while (refused == 0);
    life_crash(&life);
    life_open(&life);
    io_fault_set(
        life.io, IO_ALLOCATE,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = ENOSPC, .nth = 1, .from_then_on = true});
    life_start(&life);
    life_verify(&life);
}
