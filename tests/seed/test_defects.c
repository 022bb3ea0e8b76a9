/* The thirteen defects that were reproduced in the original, by their numbers: none of them is here. */
#include "seed.h"

#include "../../broker/log/format.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

TestSuite(original_defect, .init = place_begin, .fini = place_end, .timeout = 120);

static walrus *restarted(walrus *handle)
{
    walrus_close(handle);
    broker_kill(&place);
    broker_start(&place, SMALL_SEGMENTS);
    return client();
}

/* -------------------------------------------------------------------------------------------- 1: atomic */

/* A batch of 300 x 512 KiB of which the broker has `sent` when it is killed. */
static void killed_in_a_batch(size_t sent)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    put_well(handle, "t", 1, 2, 100);
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic_of(handle, "t"), &batch), 0);
    int result = add_entries(batch, "t", 3, sent, 512u << 10);
    expect(result == 0, &place, NULL, "add: %d: %s", result, walrus_error(handle));
    cr_assert_gt(counters().log_chunks, 0u);
    broker_kill(&place);
    result = add_entries(batch, "t", 3 + sent, 300 - sent, 512u << 10);
    cr_assert_eq(result, -ECONNRESET, "%d", result);
    walrus_batch_abort(batch);
    walrus_close(handle);
    for (unsigned i = 0; i < 2; i++) {
        broker_start(&place, SMALL_SEGMENTS);
        handle = client();
        cr_assert_eq(count_of(handle, "t"), 2, "a part of the batch is there");
        walrus_close(handle);
        broker_kill(&place);
    }
}

Test(original_defect, d01_kill_9_in_a_batch_of_300_x_512_kib_leaves_nothing_of_it)
{
    killed_in_a_batch(40);
}

Test(original_defect, d01_kill_9_right_after_submit_leaves_all_or_nothing)
{
    uint64_t next = 1;
    for (unsigned round = 0; round < 6; round++) {
        broker_start(&place, SMALL_SEGMENTS);
        walrus *handle = client();
        walrus_batch *batch;
        cr_assert_eq(walrus_batch_begin(topic_of(handle, "t"), &batch), 0);
        cr_assert_eq(add_entries(batch, "t", next, 300, 2048), 0);
        cr_assert_eq(walrus_batch_submit(batch, NULL), 0);
        for (unsigned spin = 0; spin < round * 40000; spin++)
            __atomic_thread_fence(__ATOMIC_SEQ_CST); /* another moment in each round */
        broker_kill(&place);
        struct walrus_completion completion;
        cr_assert_eq(walrus_wait(handle, 1, INT64_C(60) * 1000000000), 0);
        cr_assert_eq(walrus_reap(handle, &completion, 1), 1);
        cr_assert(completion.result == 0 || completion.result == -ECONNRESET, "%d", completion.result);
        walrus_close(handle);
        broker_start(&place, SMALL_SEGMENTS);
        handle = client();
        uint64_t from = next;
        int64_t count = read_on(handle, "t", &from);
        count = count == -ENOENT ? 0 : count;
        cr_assert(count == 0 || count == 300, "%lld of 300 entries", (long long)count);
        cr_assert(completion.result != 0 || count == 300, "G1: it was answered with 0");
        next += (uint64_t)count;
        walrus_close(handle);
        broker_kill(&place);
    }
}

/* ---------------------------------------------------------------------------------- 2 and 3: full disks */

Test(original_defect, d02_appends_after_a_failed_batch_that_needed_new_space_are_readable)
{
    small_disk(26u << 20);
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    cr_assert_eq(put(handle, "t", 1, 3, 9u << 20, NULL), -ENOSPC);
    for (uint64_t i = 1; i <= 5; i++)
        cr_assert_eq(put_one(handle, "t", i, 100), 0);
    cr_assert_eq(count_of(handle, "t"), 5);
    handle = restarted(handle);
    cr_assert_eq(count_of(handle, "t"), 5);
    cr_assert_eq(put_one(handle, "t", 6, 100), 0);
    cr_assert_eq(count_of(handle, "t"), 6);
    walrus_close(handle);
}

Test(original_defect, d03_a_full_disk_never_says_0_for_what_is_not_there)
{
    small_disk(26u << 20);
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    uint64_t next = 1;
    unsigned refused = 0;
    for (unsigned i = 0; i < 40; i++) {
        int result = put_one(handle, "t", next, 1u << 20);
        cr_assert(result == 0 || result == -ENOSPC, "%d: %s", result, walrus_error(handle));
        next += result == 0;
        refused += result != 0;
    }
    cr_assert_gt(refused, 0u, "26 MB held 40");
    cr_assert_eq(count_of(handle, "t"), (int64_t)next - 1);
    handle = restarted(handle);
    cr_assert_eq(count_of(handle, "t"), (int64_t)next - 1);
    walrus_close(handle);
}

/* ---------------------------------------------------------------------------------------- 4 and 5: cost */

Test(original_defect, d04_a_durable_batch_of_2000_entries_costs_one_flush)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    put_well(handle, "t", 1, 1, 100);
    struct stat_values before = counters();
    put_well(handle, "t", 2, 2000, 100);
    struct stat_values after = counters();
    cr_assert_eq(after.log_flushes - before.log_flushes, 1u);
    cr_assert_eq(after.log_entries - before.log_entries, 2000u);
    walrus_close(handle);
}

struct producer {
    pthread_t thread;
    unsigned batches, refusals;
    int error; /* an answer that is neither 0 nor -EBUSY */
    bool without_reason;
    bool without_estimate;
};

#define BATCHES_EACH 25u

static void *produce(void *context)
{
    struct producer *p = context;
    walrus *handle = client();
    while (p->batches < BATCHES_EACH && p->error == 0) {
        struct walrus_receipt receipt = {0};
        int result = put(handle, "shared", 1, 10, 100, &receipt);
        if (result == 0) {
            p->batches++;
            continue;
        }
        p->error = result == -EBUSY ? 0 : result;
        p->refusals++;
        p->without_reason |= receipt.reason != WALRUS_REASON_TOPIC;
        p->without_estimate |= receipt.retry_after_us == 0;
        pause_ms(receipt.retry_after_us == 0 ? 1 : (int)(receipt.retry_after_us + 999) / 1000);
    }
    walrus_close(handle);
    return NULL;
}

Test(original_defect, d05_busy_is_told_with_its_reason_and_four_producers_do_not_spin)
{
    struct producer producers[4] = {0};
    unsigned refusals = 0;
    broker_start(&place, SMALL_SEGMENTS);
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&producers[i].thread, NULL, produce, &producers[i]), 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(producers[i].thread, NULL);
    for (unsigned i = 0; i < 4; i++) {
        cr_assert_eq(producers[i].error, 0, "%d", producers[i].error);
        cr_assert_eq(producers[i].batches, BATCHES_EACH);
        cr_assert(!producers[i].without_reason, "a refusal without its reason");
        refusals += producers[i].refusals;
    }
    /* The original: 12 to 19 million refusals for 75 to 1,000 batches. */
    cr_assert_leq(refusals, 100 * 4 * BATCHES_EACH, "%u refusals of %u batches", refusals, 4 * BATCHES_EACH);
    struct stat_values values = counters();
    cr_assert_eq(values.log_batches, 4 * BATCHES_EACH);
}

Test(original_defect, d05_busy_is_told_with_an_estimate)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *one = client(), *two = client();
    put_well(two, "t", 1, 1, 10);
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic_of(one, "t"), &batch), 0);
    cr_assert_eq(add_entries(batch, "t", 2, 40, 60000), 0);
    struct walrus_receipt receipt = {0};
    int result = 0;
    for (unsigned i = 0; result != -EBUSY && i < 1000; i++)
        result = put(two, "u", 1 + i, 1, 10, NULL) == 0 ? put(two, "t", 2, 1, 10, &receipt) : -EIO;
    cr_assert_eq(result, -EBUSY);
    cr_assert_gt(receipt.retry_after_us, 0u);
    walrus_batch_abort(batch);
    walrus_close(one);
    walrus_close(two);
}

/* -------------------------------------------------------------------------------------- 6 to 8: content */

Test(original_defect, d06_what_follows_an_entry_of_25_mib_survives_a_restart)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    put_well(handle, "before", 1, 3, 100);
    cr_assert_eq(put_one(handle, "large", 1, 25u << 20), 0);
    put_well(handle, "large", 2, 5, 1000);
    put_well(handle, "after", 1, 7, 2000);
    for (unsigned i = 0; i < 2; i++) {
        cr_assert_eq(count_of(handle, "before"), 3);
        uint64_t next = 2;
        cr_assert_eq(read_on(handle, "large", &next), 5);
        cr_assert_eq(count_of(handle, "after"), 7);
        handle = restarted(handle);
    }
    cr_assert_eq(count_of(handle, "large"), 6);
    put_well(handle, "after", 8, 1, 10);
    walrus_close(handle);
}

/* Where the bytes of this entry lie: file and offset. */
static bool find_bytes(const char *topic, uint64_t sequence, size_t length, char path[PATH_MAX],
                       off_t *offset)
{
    uint8_t *want = malloc(length), *have = malloc(8u << 20);
    bool found = false;
    cr_assert(want != NULL && have != NULL);
    fill(want, length, topic, sequence);
    for (unsigned file = 1; file < 30 && !found; file++) {
        snprintf(path, PATH_MAX, "%.4000s/%08u.segment", place.store, file);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t got = pread(fd, have, 8u << 20, 0);
        uint8_t *at = got > 0 ? memmem(have, (size_t)got, want, length) : NULL;
        found = at != NULL;
        *offset = found ? at - have : 0;
        close(fd);
    }
    free(want);
    free(have);
    return found;
}

static void flip(const char *path, off_t offset)
{
    uint8_t byte;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    cr_assert_eq(pread(fd, &byte, 1, offset), 1);
    byte ^= 0x20;
    cr_assert_eq(pwrite(fd, &byte, 1, offset), 1);
    close(fd);
}

/* A start that walks the whole log finds the damage. */
static void refused_without_checkpoints(void)
{
    char name[PATH_MAX];
    struct child child;
    for (unsigned i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%.4000s/checkpoint-%u", place.store, i);
        unlink(name);
    }
    broker_try(&place, &child, list_of(SMALL_SEGMENTS));
    expect(child.code == 1 && strstr(child.errors.data, "damaged at offset") != NULL, &place, &child,
           "code %d", child.code);
    child_free(&child);
}

Test(original_defect, d07_a_flipped_byte_is_told_and_hides_nothing_else)
{
    char path[PATH_MAX];
    off_t offset;
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    for (uint64_t i = 1; i <= 5; i++)
        cr_assert_eq(put_one(handle, "t", i, 200), 0);
    put_well(handle, "other", 1, 3, 100);
    walrus_close(handle);
    cr_assert_eq(broker_stop(&place), 0);
    cr_assert(find_bytes("t", 2, 200, path, &offset));
    flip(path, offset + 77);
    broker_start(&place, SMALL_SEGMENTS);
    handle = client();
    walrus_entries *entries;
    int got = walrus_batch_read_for_topic(handle, "t", 1, NULL, &entries);
    cr_assert_eq(got, 1, "what lies before it: %d", got);
    walrus_entries_release(entries);
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 2, NULL, &entries), -EBADMSG);
    uint64_t next = 3;
    cr_assert_eq(read_on(handle, "t", &next), 3, "what lies behind it");
    cr_assert_eq(count_of(handle, "other"), 3);
    cr_assert(file_contains(place.log, "damaged") && file_contains(place.log, "offset"));
    walrus_close(handle);
}

Test(original_defect, d07_a_flipped_byte_that_a_start_must_pass_refuses_it_with_the_place)
{
    char path[PATH_MAX];
    off_t offset;
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    for (uint64_t i = 1; i <= 5; i++)
        cr_assert_eq(put_one(handle, "t", i, 200), 0);
    walrus_close(handle);
    broker_kill(&place); /* no checkpoint, or one that lies before: the log is walked */
    cr_assert(find_bytes("t", 2, 200, path, &offset));
    flip(path, offset);
    refused_without_checkpoints();
}

Test(original_defect, d08_topic_names_of_30_to_255_bytes_work_in_batch_and_append)
{
    char name[256];
    size_t lengths[] = {1, 29, 30, 31, 64, 128, 254, 255};
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    for (unsigned round = 0; round < 2; round++) {
        for (size_t i = 0; i < array_count(lengths); i++) {
            memset(name, 'a' + (int)i, lengths[i]);
            name[lengths[i]] = '\0';
            uint64_t from = 1 + 4 * (uint64_t)round;
            put_well(handle, name, from, 3, 50);
            cr_assert_eq(put_one(handle, name, from + 3, 50), 0);
            cr_assert_eq(count_of(handle, name), 4 + 4 * (int64_t)round);
        }
        handle = restarted(handle);
    }
    char longer[300];
    memset(longer, 'x', sizeof longer);
    longer[256] = '\0';
    cr_assert_eq(put_one(handle, longer, 1, 10), -EINVAL);
    cr_assert_eq(put(handle, longer, 1, 2, 10, NULL), -EINVAL);
    walrus_close(handle);
}

/* ---------------------------------------------------------------------------------------- 9: redelivery */

Test(original_defect, d09_a_reader_that_goes_on_from_next_sees_each_entry_once_over_restarts)
{
    uint64_t next = 1;
    int64_t seen = 0;
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    for (unsigned round = 0; round < 4; round++) {
        put_well(handle, "t", 1 + 500 * (uint64_t)round, 500, 100);
        seen += read_on(handle, "t", &next);
        cr_assert_eq(seen, 500 * ((int64_t)round + 1));
        handle = restarted(handle);
        cr_assert_eq(read_on(handle, "t", &next), 0, "a restart delivered something again");
    }
    cr_assert_eq(next, 2001u);
    walrus_close(handle);
}

/* --------------------------------------------------------------------------------------- 10: containers */

Test(original_defect, d10_without_io_uring_everything_works_and_it_is_said)
{
    const char *arguments[] = {program_path("WALRUS_TEST_NO_URING"),
                               program_path("WALRUS_TEST_WALRUSD"),
                               "--data-dir",
                               place.store,
                               "--socket",
                               place.socket,
                               SMALL_SEGMENTS,
                               NULL};
    struct child broker;
    child_start(&broker, &(struct start){.arguments = arguments, .errors_to = place.log});
    bool ready = child_await(&broker, &broker.output, "walrusd: ready on ");
    if (!ready && child_finish(&broker, LIMIT_MS) == 125) {
        child_free(&broker);
        place_end();
        cr_skip("SKIPPED: seccomp filters are refused here\n");
    }
    expect(ready, &place, &broker, "it does not start without io_uring");
    cr_assert(file_contains(place.log, "io_uring"), "it says that it fell back");
    walrus *handle = client();
    struct walrus_info info = {.size = sizeof info};
    cr_assert_eq(walrus_get_info(handle, &info), 0);
    cr_assert_eq(info.io_backend, 2, "pwrite");
    cr_assert_eq(put_one(handle, "t", 1, 100), 0);
    put_well(handle, "t", 2, 1000, 500);
    cr_assert_eq(count_of(handle, "t"), 1001);
    walrus_close(handle);
    kill(broker.pid, SIGTERM);
    cr_assert_eq(child_finish(&broker, LIMIT_MS), 0);
    child_free(&broker);
}

/* ---------------------------------------------------------------------------------- 11 and 12: restarts */

Test(original_defect, d11_restarts_do_not_pile_up_files_or_space)
{
    uint64_t files[17], bytes[17], most_files = 0, most_bytes = 0;
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    put_well(handle, "t", 1, 10, 1000);
    walrus_close(handle);
    for (unsigned i = 0; i < array_count(files); i++) {
        if (i % 2)
            cr_assert_eq(broker_stop(&place), 0);
        else
            broker_kill(&place);
        broker_start(&place, SMALL_SEGMENTS);
        for (unsigned n = 0; store_files(".new") > 0 && n < 500; n++)
            pause_ms(5);
        files[i] = store_files("");
        bytes[i] = store_bytes();
        if (i < 5) {
            most_files = max_u64(most_files, files[i]);
            most_bytes = max_u64(most_bytes, bytes[i]);
        }
    }
    /* How far the preparation of spare files has come differs by a few; twelve restarts would pile up
     * twelve. */
    cr_assert_leq(files[16], most_files + 4, "%llu files, then %llu", (unsigned long long)most_files,
                  (unsigned long long)files[16]);
    cr_assert_leq(bytes[16], most_bytes + (25u << 20), "%llu bytes, then %llu",
                  (unsigned long long)most_bytes, (unsigned long long)bytes[16]);
    handle = client();
    cr_assert_eq(count_of(handle, "t"), 10);
    walrus_close(handle);
}

Test(original_defect, d12_positions_after_a_restart_do_not_collide_with_those_before)
{
    uint64_t epochs[4], ids[4], groups = 0;
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    for (unsigned i = 0; i < 4; i++) {
        struct walrus_receipt receipt;
        char name[16];
        cr_assert_eq(put(handle, "t", 1 + 3 * (uint64_t)i, 3, 20, &receipt), 0);
        cr_assert_eq(receipt.first_sequence, 1 + 3 * (uint64_t)i);
        cr_assert_gt(receipt.group, groups);
        groups = receipt.group;
        epochs[i] = receipt.epoch;
        cr_assert(i == 0 || epochs[i] > epochs[i - 1]);
        snprintf(name, sizeof name, "topic %u", i);
        cr_assert_eq(put_one(handle, name, 1, 10), 0);
        handle = restarted(handle);
    }
    unsigned count = 0;
    struct walrus_topic_info info = {.size = sizeof info};
    while (walrus_next_topic(handle, &info) == 1) {
        cr_assert_lt(count, 5u);
        if (count > 0)
            ids[count - 1] = info.id;
        cr_assert(count < 2 || ids[count - 1] > ids[count - 2], "ids are never used again");
        count++;
    }
    cr_assert_eq(count, 5u);
    cr_assert_eq(count_of(handle, "t"), 12);
    for (unsigned i = 0; i < 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "topic %u", i);
        cr_assert_eq(count_of(handle, name), 1);
    }
    walrus_close(handle);
}

/* ------------------------------------------------------------------------------- 13: checksums, holders */

Test(original_defect, d13_every_field_of_the_headers_is_under_a_checksum)
{
    char path[PATH_MAX];
    off_t payload;
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    for (uint64_t i = 1; i <= 3; i++)
        cr_assert_eq(put_one(handle, "t", i, 200), 0);
    walrus_close(handle);
    cr_assert_eq(broker_stop(&place), 0);
    cr_assert(find_bytes("t", 2, 200, path, &payload));
    /* Before the payload lie the frame's header, table and sums; the group's header is where its block is. */
    off_t group = payload / BLOCK_MIN * BLOCK_MIN;
    for (off_t at = group + 3; at < payload; at += 37) {
        flip(path, at);
        broker_start(&place, SMALL_SEGMENTS); /* a checkpoint vouches for it: found when it is read */
        handle = client();
        walrus_entries *entries = NULL;
        int got = walrus_batch_read_for_topic(handle, "t", 2, NULL, &entries);
        bool in_group_header = at < group + (off_t)sizeof(struct group_header);
        cr_assert(got == -EBADMSG || (in_group_header && got == 2), "byte %lld of the group: %d",
                  (long long)(at - group), got);
        walrus_entries_release(entries);
        walrus_close(handle);
        cr_assert_eq(broker_stop(&place), 0);
        refused_without_checkpoints();
        flip(path, at);
        broker_start(&place, SMALL_SEGMENTS);
        cr_assert_eq(broker_stop(&place), 0);
    }
}

Test(original_defect, d13_a_second_broker_on_the_folder_is_refused)
{
    struct child child;
    char pid[32], other[PATH_MAX + 8];
    broker_start(&place, SMALL_SEGMENTS);
    snprintf(pid, sizeof pid, "%d", (int)place.broker.pid);
    snprintf(other, sizeof other, "%s.two", place.socket);
    struct start start = {.arguments = list_of(program_path("WALRUS_TEST_WALRUSD"), "--data-dir", place.store,
                                               "--socket", other)};
    child_start(&child, &start);
    child_finish(&child, LIMIT_MS);
    expect(child.code == 1 || child.code == 3, &place, &child, "code %d", child.code);
    expect(strstr(child.errors.data, pid) != NULL, &place, &child, "it does not name the holder");
    child_free(&child);
    walrus *handle = client();
    put_well(handle, "t", 1, 3, 10);
    walrus_close(handle);
}

static uint8_t level_of(const char *durability)
{
    struct walrus_receipt receipt;
    broker_start(&place, SMALL_SEGMENTS, "--durability", durability);
    walrus *handle = client();
    cr_assert_eq(put(handle, "t", 1, 2, 10, &receipt), 0);
    for (unsigned i = 0; count_of(handle, "t") != 2; i++) /* readers see it once it is written */
        cr_assert_lt(i, 100000u);
    walrus_close(handle);
    cr_assert_eq(broker_stop(&place), 0);
    return receipt.level;
}

Test(original_defect, d13_each_store_has_its_own_durability)
{
    cr_assert_eq(level_of("sync"), WALRUS_LEVEL_DURABLE);
    struct place first = place;
    place_make(&place);
    uint8_t second = level_of("none");
    struct place none = place;
    place = first;
    /* The topic of the first store keeps its level whatever the next broker's default is. */
    struct walrus_receipt receipt;
    broker_start(&place, SMALL_SEGMENTS, "--durability", "none");
    walrus *handle = client();
    cr_assert_eq(put(handle, "t", 3, 2, 10, &receipt), 0);
    uint8_t kept = receipt.level;
    walrus_close(handle);
    place_remove(&none);
    cr_assert_eq(second, WALRUS_LEVEL_ACCEPTED);
    cr_assert_eq(kept, WALRUS_LEVEL_DURABLE);
}
