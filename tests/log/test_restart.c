/* Starts that are cut or meet errors at each of their ops, hostile numbers under right checksums, and stores
 * whose block or segment size changes between lives. */
#include "life.h"

#include <sys/resource.h>

static struct life life;
static struct disk disk;

static void make(void)
{
    life_use_memory();
    life_make(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(restart, .init = make, .fini = clean, .timeout = 120);

/* Two segments, one unproved group at the end, a checkpoint in the middle, an unfinished file. */
static void crashed(void)
{
    life_start(&life);
    life_put(&life, "t", 2, 100);
    life_put(&life, "u", 1, 25000);
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    life.plans[IO_WRITE] =
        (struct plan){.failing = 1, .error = -EIO}; /* a roll-back begins a segment cheaply */
    life_put(&life, "t", 3, 7000);
    life_put(&life, "u", 1, 1000);
    life_put(&life, "t", 1, 10);
    life_quiet(&life);
    life_crash(&life);
    file_poke(&life, "00000099.new", 0, "unfinished", 10);
    disk_scan(&life, &disk);
    cr_assert_eq(disk.segment_count, 2u);
    life.ahead = 0;
}

/* ------------------------------------------------------------------------------------------- cut starts */

/* Starts that end at their n-th op, then one that does not. What is visible stays the same. */
static void cut_everywhere(void)
{
    unsigned refused = 0;
    for (size_t n = 1;; n++) {
        struct life copy;
        life_copy(&copy, &life);
        copy.dies_at = n;
        int error = life_try_start(&copy);
        size_t ops = copy.op_count;
        if (error == 0) {
            life_crash(&copy);
        } else {
            cr_assert_lt(error, 0);
            cr_assert_str_not_empty(copy.error.text);
            refused++;
        }
        copy.dies_at = 0;
        life_start(&copy);
        life_verify(&copy);
        life_remove(&copy);
        if (ops < n)
            break;
    }
    cr_assert_gt(refused, 15u, "only %u starts were cut", refused);
}

Test(restart, g6_a_start_of_a_killed_store_may_end_at_any_op)
{
    crashed();
    cut_everywhere();
}

Test(restart, g6_a_first_start_may_end_at_any_op)
{
    cut_everywhere();
}

/* ----------------------------------------------------------------------------------------------- errors */

/* The n-th op of the kind fails when this store is started, n = 1, 2, ...: refused, or served with
 * everything; the next start is well. */
static void start_fails_everywhere(enum io_kind kind, int error, unsigned least)
{
    unsigned refused = 0;
    for (unsigned n = 0; n < 60; n++) {
        struct life copy;
        life_copy(&copy, &life);
        life_open(&copy);
        copy.plans[kind] = (struct plan){.failing = UINT64_C(1) << n, .error = error, .everything = true};
        int got = life_try_start(&copy);
        uint64_t seen = copy.plans[kind].seen;
        copy.plans[kind] = (struct plan){0}; /* what comes behind the start is not tried here */
        if (got == 0) {
            life_verify(&copy);
            life_crash(&copy);
        } else {
            cr_assert_str_not_empty(copy.error.text);
            refused++;
        }
        life_start(&copy);
        life_verify(&copy);
        life_remove(&copy);
        if (seen <= n)
            break;
    }
    cr_assert_geq(refused, least, "%u refused", refused);
}

static void fails_everywhere(enum io_kind kind, int error, unsigned least)
{
    crashed();
    start_fails_everywhere(kind, error, least);
}

/* Its files are searched for groups before it counts as empty. */
Test(restart, g14_a_failed_read_of_a_store_without_a_header_refuses_the_start_and_the_next_one_works)
{
    life_start(&life);
    life_crash(&life);
    file_zero(&life, "00000001.segment", 0, BLOCK_MIN);
    start_fails_everywhere(IO_READ, -EIO, 4);
}

Test(restart, g14_a_failed_read_refuses_the_start_and_the_next_one_works)
{
    fails_everywhere(IO_READ, -EIO, 5);
}

Test(restart, g14_no_memory_for_a_read_is_not_the_end_of_the_log)
{
    fails_everywhere(IO_READ, -ENOMEM, 5);
}

Test(restart, g14_a_failed_open_refuses_the_start_and_the_next_one_works)
{
    fails_everywhere(IO_OPEN, -EMFILE, 4);
}

Test(restart, g14_a_failed_flush_refuses_the_start_and_the_next_one_works)
{
    fails_everywhere(IO_FLUSH, -EIO, 4);
}

Test(restart, g14_a_failed_write_refuses_the_start_and_the_next_one_works)
{
    fails_everywhere(IO_WRITE, -EIO, 2);
}

Test(restart, g14_a_failed_flush_of_the_folder_refuses_the_start_and_the_next_one_works)
{
    fails_everywhere(IO_SYNC_DIRECTORY, -EIO, 1);
}

Test(restart, g14_failed_creates_renames_and_removals_do_no_harm)
{
    fails_everywhere(IO_CREATE, -EACCES, 0);
    life_remove(&life);
    life_make(&life);
    fails_everywhere(IO_RENAME, -EIO, 0);
    life_remove(&life);
    life_make(&life);
    fails_everywhere(IO_UNLINK, -EIO, 0);
}

Test(restart, g14_a_failed_cut_of_a_closed_segment_does_no_harm)
{
    fails_everywhere(IO_TRUNCATE, -EIO, 0);
}

static int refuse_list(struct io *io, struct io_entry **entries, size_t *count)
{
    (void)io, (void)entries, (void)count;
    return -EACCES;
}

static int refuse_lock(struct io *io, struct io_file *file)
{
    (void)io, (void)file;
    return -ENOLCK;
}

static int refuse_claim(struct io *io, const char *name, int64_t *holder_pid)
{
    (void)io, (void)name;
    *holder_pid = 0;
    return -EROFS;
}

Test(restart, g14_a_folder_that_cannot_be_listed_locked_or_claimed_is_refused_with_words)
{
    crashed();
    life_open(&life);
    life.functions.list = refuse_list;
    life_refused(&life, -EACCES, "list");
    life_open(&life);
    life.functions.lock = refuse_lock;
    life_refused(&life, -ENOLCK, "lock");
    life_open(&life);
    life.functions.claim = refuse_claim;
    life_refused(&life, -EROFS, "write");
    life.random_error = -EIO;
    life_refused(&life, -EIO, "random");
    life.random_error = 0;
    life_start(&life);
    life_verify(&life);
}

Test(restart, g8_short_reads_and_writes_of_a_start_are_completed)
{
    crashed();
    enum io_kind kinds[] = {IO_READ, IO_WRITE};
    for (unsigned k = 0; k < 2; k++) {
        for (unsigned n = 1; n < 8; n++) {
            struct life copy;
            life_copy(&copy, &life);
            life_open(&copy);
            io_fault_set(copy.io, kinds[k], &(struct fault){.action = FAULT_SHORT, .bytes = 4096, .nth = n});
            life_start(&copy);
            life_verify(&copy);
            life_remove(&copy);
        }
    }
}

Test(restart, g14_a_read_that_ends_before_the_file_does_is_not_the_end_of_the_log)
{
    crashed();
    for (unsigned n = 1; n < 12; n++) {
        struct life copy;
        life_copy(&copy, &life);
        life_open(&copy);
        io_fault_set(copy.io, IO_READ, &(struct fault){.action = FAULT_SHORT, .bytes = 0, .nth = n});
        if (life_try_start(&copy) == 0) {
            io_fault_clear(copy.io, IO_READ);
            life_verify(&copy); /* refused, or served with all of it */
            life_crash(&copy);
        }
        life_remove(&copy);
    }
}

/* -------------------------------------------------------------------------------------- hostile numbers */

static void survives(struct life *copy, const char *what, unsigned at)
{
    int error = life_try_start(copy);
    if (error != 0) {
        cr_assert_neq(error, -ENOMEM, "%s, byte %u: %s", what, at, copy->error.text);
        return;
    }
    for (uint32_t id = 0;;) {
        struct topic_view view;
        struct topic *topic = log_topic_after(copy->log, id);
        if (topic == NULL)
            break;
        log_topic_view(topic, &view);
        struct reading r = {.name = view.name, .from = 1, .buffer_bytes = 65536};
        life_read(copy, &r);
        cr_assert(r.read.result <= 0 || r.right || r.entries == 0, "%s, byte %u: wrong entries", what, at);
        reading_free(&r);
        id = view.id;
    }
    life_crash(copy);
}

/* A sanitizer needs more address space than this, and refuses allocations out of reason by itself. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED true
#endif
#endif
#ifndef SANITIZED
#define SANITIZED false
#endif

static void bounded_memory(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = SANITIZED ? limit.rlim_max : UINT64_C(1) << 30;
    cr_assert_eq(setrlimit(RLIMIT_AS, &limit), 0);
}

static const uint64_t hostile[] = {0, 1, UINT64_C(1) << 40, UINT64_MAX};

Test(restart, g16_made_up_numbers_in_a_segments_header_take_no_memory_and_crash_nothing)
{
    crashed();
    bounded_memory();
    const char *name = disk_newest(&disk)->name;
    for (unsigned at = 32; at < 152; at += 8) {
        for (unsigned i = 0; i < array_count(hostile); i++) {
            struct life copy;
            struct segment_header header = disk_newest(&disk)->header;
            memcpy((uint8_t *)&header + at, &hostile[i], 8);
            life_copy(&copy, &life);
            file_header_poke(&copy, name, &header);
            survives(&copy, name, at);
            life_remove(&copy);
        }
    }
}

Test(restart, g16_made_up_numbers_in_a_checkpoint_take_no_memory_and_crash_nothing)
{
    crashed();
    bounded_memory();
    const char *name = file_there(&life, "checkpoint-1") ? "checkpoint-1" : "checkpoint-0";
    for (unsigned at = 32; at < 116; at += 8) {
        for (unsigned i = 0; i < array_count(hostile); i++) {
            struct life copy;
            struct checkpoint_header header;
            file_peek(&life, name, 0, &header, sizeof header);
            memcpy((uint8_t *)&header + at, &hostile[i], 8);
            header.crc = crc32c(0, &header, offsetof(struct checkpoint_header, crc));
            life_copy(&copy, &life);
            file_poke(&copy, name, 0, &header, sizeof header);
            survives(&copy, name, at);
            life_remove(&copy);
        }
    }
}

/* ------------------------------------------------------------------------------------------ other sizes */

Test(restart, commit_align_may_change_between_lives)
{
    uint32_t blocks[] = {4096, 65536, 8192, 4096, 65536, 0};
    for (size_t i = 0; i < array_count(blocks); i++) {
        life.options.commit_align = blocks[i];
        life_start(&life);
        life_verify(&life);
        life_put(&life, "t", 2, 5000);
        life_put(&life, "u", 1, 10);
        if (i % 2) {
            life_put(&life, "t", 1, 2500000);
            life_put(&life, "t", 1, 2500000);
        }
        life_verify(&life);
        life_quiet(&life);
        if (i % 3 == 2)
            life_stop(&life);
        else
            life_crash(&life);
    }
    life_start(&life);
    life_verify(&life);
    life_crash(&life);
    file_delete(&life, "checkpoint-0");
    if (file_there(&life, "checkpoint-1"))
        file_delete(&life, "checkpoint-1");
    life_start(&life);
    life_verify(&life);
}

Test(restart, the_segment_size_may_change_between_lives)
{
    uint64_t sizes[] = {SEGMENT_MIN, 8u << 20, SEGMENT_MIN + (1u << 20), 6u << 20, SEGMENT_MIN};
    for (size_t i = 0; i < array_count(sizes); i++) {
        life.options.segment_bytes = sizes[i];
        life_start(&life);
        life_verify(&life);
        for (unsigned n = 0; n < 3; n++)
            life_put(&life, "t", 1, 2500000);
        life_quiet(&life);
        if (i % 2)
            life_stop(&life);
        else
            life_crash(&life);
    }
    life_start(&life);
    life_verify(&life);
}

Test(restart, a_clean_stop_that_cannot_write_its_checkpoint_loses_nothing)
{
    life_start(&life);
    life_put(&life, "t", 3, 100);
    life_quiet(&life);
    io_fault_set(
        life.io, IO_CREATE,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = ENOSPC, .nth = 1, .from_then_on = true});
    int error = log_stop(life.log, &life.error);
    cr_assert_eq(error, -EIO);
    cr_assert_not_null(strstr(life.error.text, "safe"));
    life.log = NULL;
    struct life next;
    life_copy(&next, &life);
    life_start(&next);
    life_verify(&next);
    life_remove(&next);
}

Test(restart, g6_the_walk_reads_as_much_as_came_after_the_checkpoint_and_no_more)
{
    life_start(&life);
    for (unsigned i = 0; i < 20; i++)
        life_put(&life, "t", 1, 1000000);
    life_quiet(&life);
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    life_put(&life, "t", 1, 10);
    life_crash(&life);
    life_open(&life);
    uint64_t before = io_fault_bytes(life.io, IO_READ);
    life_start(&life);
    cr_assert_leq(io_fault_bytes(life.io, IO_READ) - before, 12u << 20, "a start that reads the whole log");
    cr_assert_eq(life_stats(&life).start_groups_walked, 1u);
    life_verify(&life);
}
