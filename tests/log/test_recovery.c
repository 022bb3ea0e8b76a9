/* What a start finds and what it does: the cases of broker/log/FORMAT.md by their letters, but for those of
 * the newest segment (test_tail.c). */
#include "cases.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

static void make(void)
{
    life_make(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(recovery, .init = make, .fini = clean, .timeout = 60);

/* --------------------------------------------------------------------------------------------- A: empty */

Test(recovery, case_a_an_empty_folder_becomes_an_empty_store)
{
    life_start(&life);
    cr_assert_null(log_topic_after(life.log, 0));
    cr_assert_eq(strlen(log_store_id(life.log)), 32u);
    life_quiet(&life);
    life_crash(&life);
    serves_the_same_for_ever();
}

Test(recovery, case_a_a_half_made_store_becomes_an_empty_store)
{
    char zeros[64] = {0};
    file_poke(&life, "walrus.store.new", 0, "half", 4);
    life_start(&life);
    life_crash(&life);
    life_remove(&life);

    life_make(&life); /* identity, nothing else */
    life_start(&life);
    life_crash(&life);
    disk_scan(&life, &disk);
    for (size_t i = 0; i < disk.segment_count; i++)
        file_delete(&life, disk.segments[i].name);
    for (size_t i = 0; i < disk.spare_count; i++)
        file_delete(&life, disk.spares[i].name);
    file_poke(&life, "00000007.new", 0, zeros, sizeof zeros);
    file_poke(&life, "00000008.segment", 0, zeros, sizeof zeros);
    serves_the_same_for_ever();
    life_quiet(&life);
    cr_assert_eq(files_with(&life, ".new"), 0u);
}

Test(recovery, case_a_a_first_segment_without_a_header_is_an_empty_store)
{
    life_start(&life);
    life_crash(&life);
    file_zero(&life, "00000001.segment", 0, BLOCK_MIN);
    serves_the_same_for_ever();
}

Test(recovery, two_stores_have_two_identities)
{
    struct life other;
    life_make(&other);
    life_start(&life);
    life_start(&other);
    cr_assert_str_neq(log_store_id(life.log), log_store_id(other.log));
    life_remove(&other);
}

/* --------------------------------------------------------------------------------------- E, V: not ours */

Test(recovery, case_e_a_folder_of_somebody_else_is_refused_and_left_alone)
{
    file_poke(&life, "thesis.tex", 0, "words", 5);
    uint64_t before = folder_digest(&life);
    life_refused(&life, -ENOTEMPTY, "thesis.tex");
    cr_assert_eq(folder_digest(&life), before);
}

Test(recovery, case_e_segments_without_an_identity_are_refused)
{
    crashed();
    file_delete(&life, "walrus.store");
    life_refused(&life, -ENOTEMPTY, "walrus.store");
}

static void other_format(uint32_t version, const char *words)
{
    stopped();
    struct store_header header;
    file_peek(&life, "walrus.store", 0, &header, sizeof header);
    header.version = version;
    header.crc = crc32c(0, &header, offsetof(struct store_header, crc));
    file_poke(&life, "walrus.store", 0, &header, sizeof header);
    uint64_t before = folder_digest(&life);
    life_refused(&life, -EPROTONOSUPPORT, words);
    cr_assert_eq(folder_digest(&life), before);
}

Test(recovery, case_v_a_newer_format_is_refused_and_left_alone)
{
    other_format(FORMAT_VERSION + 1, "newer");
}

Test(recovery, case_v_an_older_format_is_refused_and_left_alone)
{
    other_format(FORMAT_VERSION - 1, "that wrote it");
}

Test(recovery, g13_a_damaged_identity_is_refused)
{
    stopped();
    unsigned offsets[] = {0, 9, 20, 34, 100, 253};
    for (size_t i = 0; i < array_count(offsets); i++) {
        file_flip(&life, "walrus.store", offsets[i], 3);
        int error = life_try_start(&life);
        cr_assert(error == -EBADMSG || error == -EPROTONOSUPPORT, "byte %u: %d", offsets[i], error);
        cr_assert_not_null(strstr(life.error.text, "walrus.store") != NULL
                               ? life.error.text
                               : strstr(life.error.text, "format"));
        file_flip(&life, "walrus.store", offsets[i], 3);
    }
    file_cut(&life, "walrus.store", 100);
    life_refused(&life, -EBADMSG, "walrus.store");
}

/* ------------------------------------------------------------------------------------------- H, L: held */

Test(recovery, case_h_a_living_broker_is_named_by_its_pid)
{
    int ready[2], end[2];
    char byte;
    cr_assert(pipe(ready) == 0 && pipe(end) == 0);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        struct error err;
        struct io *io;
        struct log *log;
        struct io_real_options real = {
            .folder = life.folder, .backend = IO_BACKEND_PWRITE, .watch_fd = -1, .allow_direct = true};
        struct log_options options = {.segment_bytes = SEGMENT_MIN};
        close(end[1]);
        if (io_real_create(&real, &io, NULL, &err) != 0)
            _exit(1);
        options.io = io;
        if (log_start(&options, &log, &err) != 0 || write(ready[1], "r", 1) != 1)
            _exit(2);
        _exit(read(end[0], &byte, 1) == 0 ? 0 : 3); /* the parent has ended, or wants us to */
    }
    close(ready[1]);
    cr_assert_eq(read(ready[0], &byte, 1), 1, "the holder did not start");
    char pid[32];
    snprintf(pid, sizeof pid, "%d", (int)child);
    life_refused(&life, -EBUSY, pid);
    close(end[1]);
    int status;
    waitpid(child, &status, 0);
    cr_assert_eq(status, 0);
    life_start(&life);
    life_put(&life, "t", 1, 10);
}

static int locked_fd = -1;
static unsigned sleeps;

static void unlock_after_three(struct life *l)
{
    (void)l;
    if (++sleeps == 3 && locked_fd >= 0) {
        close(locked_fd);
        locked_fd = -1;
    }
}

static void lock_newest(void)
{
    locked_fd = open(file_path(&life, disk_newest(&disk)->name), O_RDONLY | O_CLOEXEC);
    cr_assert_eq(flock(locked_fd, LOCK_EX | LOCK_NB), 0);
    life.on_sleep = unlock_after_three;
}

Test(recovery, g11_case_l_a_start_waits_for_the_io_of_a_dead_predecessor)
{
    crashed();
    lock_newest();
    life_start(&life);
    cr_assert_eq(sleeps, 3u);
    cr_assert(life_said(&life, "waiting for the I/O of a dead predecessor"));
    life_verify(&life);
}

Test(recovery, g11_case_l_a_lock_that_is_never_given_up_is_etimedout)
{
    crashed();
    lock_newest();
    life.on_sleep = NULL;
    int64_t before = life.ahead;
    life_refused(&life, -ETIMEDOUT, disk_newest(&disk)->name);
    cr_assert_geq(life.ahead - before, 29 * SECOND);
    cr_assert_leq(life.ahead - before, 31 * SECOND);
    close(locked_fd);
    life_start(&life);
    life_verify(&life);
}

/* -------------------------------------------------------------------------------------- stops and kills */

Test(recovery, g1_a_clean_stop_leaves_nothing_to_walk)
{
    stopped();
    life_start(&life);
    cr_assert_eq(life_stats(&life).start_groups_walked, 0u);
    cr_assert_eq(life_stats(&life).start_groups_copied, 0u);
    life_verify(&life);
    life_crash(&life);
    serves_the_same_for_ever();
}

Test(recovery, g1_a_kill_with_groups_after_the_checkpoint_loses_nothing)
{
    five_groups();
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    cr_assert_eq(life_stats(&life).checkpoints, 1u);
    life_put(&life, "t", 4, 50);
    life_put(&life, "new", 1, 50);
    life_put(&life, "u", 1, 70000);
    life_crash(&life);
    life_start(&life);
    cr_assert_eq(life_stats(&life).start_groups_walked, 3u, "only what came after the checkpoint is walked");
    life_verify(&life);
    life_crash(&life);
    serves_the_same_for_ever();
}

Test(recovery, g1_a_kill_without_any_checkpoint_loses_nothing)
{
    crashed_with_segments();
    life_start(&life);
    cr_assert_eq(life_stats(&life).start_groups_walked, 11u);
    life_verify(&life);
    life_crash(&life);
    serves_the_same_for_ever();
}

Test(recovery, every_start_has_an_epoch_of_its_own)
{
    uint64_t epochs[4];
    crashed();
    for (unsigned i = 0; i < 4; i++) {
        life_start(&life);
        epochs[i] = life_stats(&life).epoch;
        cr_assert(i == 0 || epochs[i] > epochs[i - 1]);
        life_crash(&life);
    }
    disk_scan(&life, &disk);
    for (size_t i = 1; i < disk.segment_count; i++)
        cr_assert_neq(disk.segments[i].header.epoch_nonce, disk.segments[i - 1].header.epoch_nonce);
}

/* --------------------------------------------------------------------------------------- K: checkpoints */

/* Two checkpoints, the newer of a clean stop. */
static const char *two_checkpoints(void)
{
    five_groups();
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    life_put(&life, "late", 2, 10);
    life_stop(&life);
    struct checkpoint_header h[2];
    for (unsigned i = 0; i < 2; i++)
        file_peek(&life, i == 0 ? "checkpoint-0" : "checkpoint-1", 0, &h[i], sizeof h[i]);
    cr_assert_eq(h[0].counter > h[1].counter ? h[0].counter - h[1].counter : h[1].counter - h[0].counter, 1u);
    return h[0].counter > h[1].counter ? "checkpoint-0" : "checkpoint-1";
}

Test(recovery, case_k_a_damaged_newer_checkpoint_leaves_the_older_one_to_count)
{
    const char *newer = two_checkpoints();
    file_flip(&life, newer, 300, 1);
    life_start(&life);
    cr_assert(life_said(&life, "does not count"), "%s", life.said);
    cr_assert_eq(life_stats(&life).start_groups_walked, 1u);
    life_verify(&life);
    life_crash(&life);
    serves_the_same_for_ever();
}

Test(recovery, case_k_without_any_checkpoint_the_whole_log_gives_the_same)
{
    two_checkpoints();
    for (unsigned damaged = 0; damaged < 2; damaged++) {
        for (unsigned i = 0; i < 2; i++) {
            const char *name = i == 0 ? "checkpoint-0" : "checkpoint-1";
            if (damaged)
                file_flip(&life, name, 40, 1);
            else if (file_there(&life, name))
                file_delete(&life, name);
        }
        life_start(&life);
        life_verify(&life);
        life.ahead += 2 * SECOND;
        life_put(&life, "t", 1, 10);
        life.ahead += 2 * SECOND;
        life_quiet(&life);
        life_stop(&life);
        if (!file_there(&life, "checkpoint-0") || !file_there(&life, "checkpoint-1")) {
            life_start(&life);
            life_put(&life, "t", 1, 10);
            life_stop(&life);
        }
    }
    serves_the_same_for_ever();
}

Test(recovery, case_k_a_checkpoint_of_another_store_does_not_count)
{
    struct life other;
    life_make(&other);
    life_start(&other);
    life_put(&other, "foreign", 3, 10);
    life_stop(&other);
    const char *newer = two_checkpoints();
    file_copy(&other, "checkpoint-1", &life, newer);
    life_start(&life);
    cr_assert(life_said(&life, "does not count"));
    struct topic *topic;
    cr_assert_eq(log_topic(life.log, "foreign", 7, 0, NO_UID, false, &topic), -ENOENT);
    life_verify(&life);
    life_remove(&other);
}

Test(recovery, g13_case_k_every_byte_of_a_checkpoint_is_under_a_checksum)
{
    const char *newer = two_checkpoints();
    uint64_t size = file_size_of(&life, newer);
    struct life copy;
    for (uint64_t at = 3; at < size; at += size / 12) {
        life_copy(&copy, &life);
        file_flip(&copy, newer, at, 5);
        life_start(&copy);
        cr_assert(life_said(&copy, "does not count"), "byte %llu", (unsigned long long)at);
        life_verify(&copy);
        life_remove(&copy);
    }
}

/* --------------------------------------------------------------------------------------- M, S, F: files */

Test(recovery, case_m_a_missing_segment_of_the_chain_is_refused_with_its_number)
{
    crashed_with_segments();
    for (size_t i = 0; i + 1 < disk.segment_count; i++) {
        struct life copy;
        char words[40];
        life_copy(&copy, &life);
        file_delete(&copy, disk.segments[i].name);
        snprintf(words, sizeof words, "segment %llu is missing",
                 (unsigned long long)disk.segments[i].header.number);
        life_refused(&copy, -EBADMSG, words);
        life_remove(&copy);
    }
}

Test(recovery, case_m_a_missing_closed_segment_is_refused_with_its_number)
{
    stopped_with_segments();
    file_delete(&life, disk.segments[1].name);
    life_refused(&life, -EBADMSG, "segment 2 ");
    cr_assert_not_null(strstr(life.error.text, "missing"));
}

Test(recovery, case_m_a_checkpoint_without_any_segment_is_refused)
{
    stopped();
    cr_assert_eq(disk.segment_count, 1u);
    file_delete(&life, disk.segments[0].name);
    life_refused(&life, -EBADMSG, "segment");
}

Test(recovery, case_s_a_segment_shorter_than_its_end_is_refused_with_both_lengths)
{
    stopped_with_segments();
    char want[32], have[32];
    uint64_t end = disk.segments[1].end;
    file_cut(&life, disk.segments[1].name, end - 4096);
    snprintf(want, sizeof want, "want %llu", (unsigned long long)end);
    snprintf(have, sizeof have, "have %llu", (unsigned long long)end - 4096);
    life_refused(&life, -EBADMSG, want);
    cr_assert_not_null(strstr(life.error.text, have), "%s", life.error.text);
    cr_assert_not_null(strstr(life.error.text, disk.segments[1].name));
}

Test(recovery, case_s_a_truncated_segment_without_a_checkpoint_is_refused_too)
{
    crashed_with_segments();
    file_cut(&life, disk.segments[0].name, disk.segments[0].end - 1);
    life_refused(&life, -EBADMSG, "truncated");
    cr_assert_not_null(strstr(life.error.text, disk.segments[0].name));
}

Test(recovery, g18_case_f_a_copied_segment_file_is_refused)
{
    crashed();
    file_copy(&life, disk_newest(&disk)->name, &life, "00000099.segment");
    life_refused(&life, -EBADMSG, "00000099.segment");
}

Test(recovery, g18_case_f_a_renamed_segment_file_is_refused)
{
    crashed_with_segments();
    char from[160];
    snprintf(from, sizeof from, "%s", file_path(&life, disk.segments[1].name));
    cr_assert_eq(rename(from, file_path(&life, "00000099.segment")), 0);
    life_refused(&life, -EBADMSG, "00000099.segment");
}

Test(recovery, g18_case_f_two_swapped_segment_files_are_refused)
{
    crashed_with_segments();
    file_copy(&life, disk.segments[0].name, &life, "swap");
    file_copy(&life, disk.segments[1].name, &life, disk.segments[0].name);
    file_copy(&life, "swap", &life, disk.segments[1].name);
    file_delete(&life, "swap");
    life_refused(&life, -EBADMSG, "copy");
}

Test(recovery, g15_case_f_a_segment_of_another_store_is_refused)
{
    struct life other;
    life_make(&other);
    life_start(&other);
    life_put(&other, "t", 3, 10);
    life_crash(&other);
    crashed();
    file_copy(&other, "00000001.segment", &life, "00000001.segment");
    life_refused(&life, -EBADMSG, "another store");
    life_remove(&other);
}

Test(recovery, case_f_a_segment_of_a_newer_format_is_refused)
{
    crashed();
    struct segment_header header = disk_newest(&disk)->header;
    header.version++;
    file_header_poke(&life, disk_newest(&disk)->name, &header);
    life_refused(&life, -EBADMSG, "version");
}

Test(recovery, a_link_or_a_folder_in_the_place_of_a_segment_is_refused)
{
    crashed();
    char name[160];
    snprintf(name, sizeof name, "%s", file_path(&life, disk_newest(&disk)->name));
    cr_assert_eq(rename(name, file_path(&life, "elsewhere")), 0);
    cr_assert_eq(symlink(file_path(&life, "elsewhere"), name), 0);
    int error = life_try_start(&life);
    cr_assert_neq(error, 0, "a link was followed");
}

/* --------------------------------------------------------------------------------------- N: two headers */

/* A second header with the newest segment's number, in a prepared file. */
static void add_header(uint64_t epoch_off)
{
    crashed();
    const struct disk_segment *spare = NULL;
    for (size_t i = 0; i < disk.spare_count; i++)
        if (disk.spares[i].size > BLOCK_MAX)
            spare = &disk.spares[i];
    cr_assert_not_null(spare);
    struct segment_header header = disk_newest(&disk)->header;
    header.file = strtoull(spare->name, NULL, 10);
    header.epoch -= epoch_off;
    header.salt[0] ^= 5;
    file_header_poke(&life, spare->name, &header);
}

Test(recovery, g15_case_n_of_two_headers_with_one_number_the_higher_epoch_counts)
{
    life_start(&life); /* so that there is an epoch below */
    life_quiet(&life);
    life_crash(&life);
    life_start(&life);
    life_put(&life, "t", 2, 100);
    life_quiet(&life);
    life_crash(&life);
    disk_scan(&life, &disk);
    struct segment_header header = disk_newest(&disk)->header;
    cr_assert_gt(header.epoch, 1u);
    for (size_t i = 0; i < disk.spare_count; i++) {
        if (disk.spares[i].size <= BLOCK_MAX)
            continue;
        header.file = strtoull(disk.spares[i].name, NULL, 10);
        header.epoch--;
        file_header_poke(&life, disk.spares[i].name, &header);
        break;
    }
    serves_the_same_for_ever();
}

Test(recovery, case_n_two_headers_with_one_number_and_one_epoch_are_refused)
{
    add_header(0);
    life_refused(&life, -EBADMSG, "two headers");
}

/* ----------------------------------------------------------------------------------------- I, D: damage */

Test(recovery, g13_case_i_damage_in_a_closed_segment_is_refused_with_its_place)
{
    crashed_with_segments();
    for (size_t i = 0; i < disk.group_count; i++) {
        const struct disk_group *g = &disk.groups[i];
        if (g->header.segment == disk_newest(&disk)->header.number)
            break;
        file_flip(&life, g->file, g->header.offset + g->header.used - 1, 6);
        life_refused(&life, -EBADMSG, "damaged");
        says_where(g->file, g->header.offset);
        file_flip(&life, g->file, g->header.offset + g->header.used - 1, 6);
        file_flip(&life, g->file, g->header.offset + 20, 6);
        life_refused(&life, -EBADMSG, "damaged");
        says_where(g->file, g->header.offset);
        file_flip(&life, g->file, g->header.offset + 20, 6);
    }
    life_start(&life);
    life_verify(&life);
}

Test(recovery, g13_case_d_damage_that_a_later_group_proves_is_refused_with_its_place)
{
    crashed();
    for (unsigned i = 0; i < 4; i++) {
        const struct disk_group *g = &disk.groups[i];
        unsigned offsets[] = {0, 30, 190, sizeof(struct group_header) + 20, g->header.used - 1};
        for (size_t k = 0; k < array_count(offsets); k++) {
            file_flip(&life, g->file, g->header.offset + offsets[k], 2);
            life_refused(&life, -EBADMSG, "damaged");
            says_where(g->file, g->header.offset);
            file_flip(&life, g->file, g->header.offset + offsets[k], 2);
        }
    }
    file_zero(&life, disk.groups[1].file, disk.groups[1].header.offset, disk.groups[1].header.length);
    damaged_at(disk.groups[1].file, disk.groups[1].header.offset);
}

Test(recovery, g13_case_d_damage_that_a_checkpoint_proves_is_refused)
{
    five_groups();
    life.ahead += 2 * SECOND;
    life_quiet(&life);
    life_crash(&life);
    disk_scan(&life, &disk);
    /* The walk begins behind the checkpoint's group, which is not read now. But a log that ends before it is
     * refused. */
    const struct disk_group *last = disk_last(&disk);
    file_cut(&life, last->file, last->header.offset);
    life_refused(&life, -EBADMSG, last->file);
}

Test(recovery, g13_case_d_a_copied_group_is_proved_by_its_segments_own_header)
{
    crashed();
    life_start(&life);
    cr_assert_eq(life_stats(&life).start_groups_copied, 1u);
    life_crash(&life);
    disk_scan(&life, &disk);
    const struct disk_group *copy = disk_last(&disk);
    cr_assert_eq(copy->header.number, 5u);
    cr_assert_eq(copy->header.segment, disk_newest(&disk)->header.number);
    file_flip(&life, copy->file, copy->header.offset + 250, 0);
    damaged_at(copy->file, copy->header.offset);
}
