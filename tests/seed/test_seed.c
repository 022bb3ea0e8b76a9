/* The seed's testing strategy (unit and integration), its failure table and its behavioural changes, by
 * name, on the real broker. */
#include "seed.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

TestSuite(seed_unit, .init = place_begin, .fini = place_end, .timeout = 120);
TestSuite(seed_integration, .init = place_begin, .fini = place_end, .timeout = 120);
TestSuite(seed_failure, .init = place_begin, .fini = place_end, .timeout = 120);
TestSuite(seed_behaviour, .init = place_begin, .fini = place_end, .timeout = 120);

/* A stream of `handle` on the topic that the broker has admitted: `other` is refused because of it. */
static walrus_batch *stream_begun(walrus *handle, walrus *other, const char *topic, uint64_t from)
{
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic_of(handle, topic), &batch), 0);
    int result = add_entries(batch, topic, from, 40, 60000); /* more than the arena: chunks are sent */
    expect(result == 0, &place, NULL, "add: %d: %s", result, walrus_error(handle));
    for (unsigned i = 0; put_one(other, "probe", 1, 1) == 0 && counters().log_streams_open == 0; i++)
        expect(i < 1000, &place, NULL, "the stream's first chunk is not admitted");
    return batch;
}

/* ------------------------------------------------------------------------------------------- unit tests */

Test(seed_unit, size_limit_of_10_gib_is_enforced)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    /* Memory that is never touched: the limit is checked first. */
    size_t half = (size_t)5 << 30;
    void *data = mmap(NULL, half, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    cr_assert_neq(data, MAP_FAILED);
    struct walrus_slice slices[3] = {{data, half}, {data, half - 2 * WALRUS_ENTRY_OVERHEAD + 1}};
    int result = walrus_batch_append_for_topic(handle, "t", slices, 2, NULL, NULL);
    cr_assert_eq(result, -EINVAL, "one byte too many: %d", result);
    slices[0].length = slices[1].length = half - 96;
    slices[2] = (struct walrus_slice){NULL, 1};
    slices[2].data = data;
    cr_assert_eq(walrus_batch_append_for_topic(handle, "t", slices, 3, NULL, NULL), -EINVAL,
                 "overhead counts");
    munmap(data, half);
    walrus_batch *batch;
    void *at;
    cr_assert_eq(walrus_batch_begin(topic_of(handle, "t"), &batch), 0);
    cr_assert_eq(walrus_batch_reserve(batch, WALRUS_MAX_BATCH_BYTES - WALRUS_ENTRY_OVERHEAD + 1, &at),
                 -EINVAL);
    cr_assert_eq(walrus_batch_reserve(batch, WALRUS_MAX_BATCH_BYTES - WALRUS_ENTRY_OVERHEAD, &at), -EMSGSIZE,
                 "exactly the limit is within it, only larger than the arena");
    walrus_batch_abort(batch);
    cr_assert_eq(count_of(handle, "t"), 0);
    put_well(handle, "t", 1, 2, 10);
    walrus_close(handle);
}

Test(seed_unit, more_than_2000_entries_are_refused_and_2000_taken)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    cr_assert_eq(put(handle, "t", 1, 2001, 10, NULL), -EINVAL);
    put_well(handle, "t", 1, 2000, 10);
    cr_assert_eq(count_of(handle, "t"), 2000);
    walrus_close(handle);
}

Test(seed_unit, a_concurrent_batch_write_is_rejected)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *one = client(), *two = client();
    walrus_batch *batch = stream_begun(one, two, "t", 1);
    struct walrus_receipt receipt = {0};
    cr_assert_eq(put(two, "t", 1, 3, 10, &receipt), -EBUSY);
    cr_assert_eq(walrus_reason(two), WALRUS_REASON_TOPIC);
    cr_assert_eq(put(two, "other", 1, 3, 10, NULL), 0, "batches to different topics run in parallel");
    cr_assert_eq(finish(one, batch, NULL), 0);
    cr_assert_eq(put(two, "t", 41, 3, 10, NULL), 0);
    cr_assert_eq(count_of(two, "t"), 43);
    walrus_close(one);
    walrus_close(two);
}

Test(seed_unit, an_allocation_failure_rolls_back)
{
    small_disk(26u << 20);
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    put_well(handle, "t", 1, 3, 1000);
    int result = put(handle, "t", 4, 40, 1000000, NULL);
    cr_assert_eq(result, -ENOSPC, "%d: %s", result, walrus_error(handle));
    cr_assert_eq(count_of(handle, "t"), 3, "the original state");
    put_well(handle, "t", 4, 2, 100);
    cr_assert_eq(count_of(handle, "t"), 5);
    grow_disk(200u << 20);
    for (unsigned i = 0; (result = put(handle, "t", 6, 40, 1000000, NULL)) == -ENOSPC && i < 100; i++)
        pause_ms(100); /* it is tried again each second */
    cr_assert_eq(result, 0, "space came back: %d: %s", result, walrus_error(handle));
    cr_assert_eq(count_of(handle, "t"), 45);
    walrus_close(handle);
    broker_kill(&place);
    broker_start(&place, SMALL_SEGMENTS);
    handle = client();
    cr_assert_eq(count_of(handle, "t"), 45);
    walrus_close(handle);
}

static void limit_file_size(rlim_t bytes)
{
    struct rlimit limit = {.rlim_cur = bytes, .rlim_max = RLIM_INFINITY};
    cr_assert_eq(prlimit(place.broker.pid, RLIMIT_FSIZE, &limit, NULL), 0, "%s", strerror(errno));
}

/* Writes beyond `bytes` of any file fail with EFBIG (and SIGXFSZ) from now on. The spares for a roll-back
 * have been prepared. */
static void writes_fail_beyond(rlim_t bytes)
{
    for (unsigned i = 0; store_files(".segment") < 5 || store_files(".new") > 0; i++) {
        expect(i < 1000, &place, NULL, "no spares are prepared");
        pause_ms(10);
    }
    limit_file_size(bytes);
}

Test(seed_unit, a_write_failure_rolls_back)
{
    broker_start(&place, SMALL_SEGMENTS, "--io", "pwrite");
    walrus *handle = client();
    put_well(handle, "t", 1, 3, 1000);
    writes_fail_beyond(256u << 10);
    int result = put(handle, "t", 4, 2, 900000, NULL);
    cr_assert(result == -EIO || result == -ENOSPC, "%d: %s", result, walrus_error(handle));
    cr_assert_eq(count_of(handle, "t"), 3, "the original state");
    limit_file_size(RLIM_INFINITY);
    for (unsigned i = 0; (result = put(handle, "t", 4, 2, 900000, NULL)) == -ENOSPC && i < 100; i++)
        pause_ms(100);
    cr_assert_eq(result, 0, "%d: %s", result, walrus_error(handle));
    cr_assert_eq(count_of(handle, "t"), 5);
    walrus_close(handle);
    broker_kill(&place);
    broker_start(&place, SMALL_SEGMENTS);
    handle = client();
    cr_assert_eq(count_of(handle, "t"), 5);
    walrus_close(handle);
}

/* ------------------------------------------------------------------------------------ integration tests */

Test(seed_integration, a_batch_is_written_and_all_its_entries_are_readable)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    put_well(handle, "t", 1, 1000, 64);
    put_well(handle, "t", 1001, 1, 0);
    put_well(handle, "t", 1002, 7, 100000);
    cr_assert_eq(count_of(handle, "t"), 1008);
    cr_assert_eq(broker_stop(&place), 0);
    broker_start(&place, SMALL_SEGMENTS);
    walrus_close(handle);
    handle = client();
    cr_assert_eq(count_of(handle, "t"), 1008);
    walrus_close(handle);
}

Test(seed_integration, concurrent_regular_writes_during_a_batch_get_would_block)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *one = client(), *two = client();
    put_well(two, "t", 1, 1, 10);
    walrus_batch *batch = stream_begun(one, two, "t", 2);
    for (unsigned i = 0; i < 10; i++)
        cr_assert_eq(put_one(two, "t", 2, 10), -EBUSY);
    cr_assert_eq(count_of(two, "t"), 1, "reads go on");
    cr_assert_eq(finish(one, batch, NULL), 0);
    cr_assert_eq(put_one(two, "t", 42, 10), 0);
    cr_assert_eq(count_of(two, "t"), 42);
    walrus_close(one);
    walrus_close(two);
}

Test(seed_integration, a_batch_may_span_many_files)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    put_well(handle, "t", 1, 30, 500000); /* 15 MB over segments of 4 MiB */
    cr_assert_geq(store_files(".segment"), 4u);
    cr_assert_eq(count_of(handle, "t"), 30);
    walrus_close(handle);
    broker_kill(&place);
    broker_start(&place, SMALL_SEGMENTS);
    handle = client();
    cr_assert_eq(count_of(handle, "t"), 30);
    walrus_close(handle);
}

Test(seed_integration, g2_recovery_after_a_crash_mid_batch_shows_nothing_of_it)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client(), *other = client();
    put_well(handle, "t", 1, 5, 100);
    walrus_batch *batch = stream_begun(handle, other, "t", 6);
    broker_kill(&place);
    int result = add_entries(batch, "t", 46, 40, 60000);
    if (result == 0)
        result = finish(handle, batch, NULL);
    else
        walrus_batch_abort(batch);
    cr_assert_eq(result, -ECONNRESET, "%d", result);
    walrus_close(handle);
    walrus_close(other);
    broker_start(&place, SMALL_SEGMENTS);
    handle = client();
    cr_assert_eq(count_of(handle, "t"), 5);
    put_well(handle, "t", 6, 3, 100);
    cr_assert_eq(count_of(handle, "t"), 8);
    walrus_close(handle);
}

/* ---------------------------------------------------------------------------------------- failure table */

Test(seed_failure, a_failed_size_validation_returns_at_once_and_changes_nothing)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    put_well(handle, "t", 1, 1, 10);
    struct stat_values before = counters();
    cr_assert_eq(put(handle, "t", 2, 2001, 1, NULL), -EINVAL);
    struct stat_values after = counters();
    cr_assert_eq(after.log_groups, before.log_groups);
    cr_assert_eq(after.log_log_bytes, before.log_log_bytes);
    cr_assert_eq(count_of(handle, "t"), 1);
    walrus_close(handle);
}

Test(seed_failure, g4_a_busy_topic_returns_at_once_and_changes_nothing)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *one = client(), *two = client();
    walrus_batch *batch = stream_begun(one, two, "t", 1);
    struct stat_values before = counters();
    for (unsigned i = 0; i < 5; i++)
        cr_assert_eq(put(two, "t", 1, 10, 1000, NULL), -EBUSY);
    struct stat_values after = counters();
    cr_assert_eq(after.log_log_bytes, before.log_log_bytes, "a refusal wrote something");
    cr_assert_geq(after.log_refused_busy, before.log_refused_busy + 5);
    walrus_batch_abort(batch);
    walrus_close(one);
    walrus_close(two);
}

Test(seed_failure, g9_a_failed_allocation_returns_an_error_and_changes_nothing)
{
    small_disk(26u << 20);
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    uint64_t next = 1;
    int result;
    while ((result = put(handle, "t", next, 1, 800000, NULL)) == 0 && next < 100)
        next++;
    cr_assert_eq(result, -ENOSPC, "%d: %s", result, walrus_error(handle));
    cr_assert_gt(next, 2u);
    for (unsigned i = 0; i < 3; i++)
        cr_assert_eq(put(handle, "t", next, 1, 800000, NULL), -ENOSPC);
    cr_assert_eq(count_of(handle, "t"), (int64_t)next - 1);
    walrus_close(handle);
}

Test(seed_failure, g3_a_failed_write_is_rolled_back_for_ever)
{
    broker_start(&place, SMALL_SEGMENTS, "--io", "pwrite");
    walrus *handle = client();
    put_well(handle, "t", 1, 2, 100);
    writes_fail_beyond(128u << 10);
    int result = put(handle, "t", 3, 1, 2000000, NULL);
    expect(result == -EIO || result == -ENOSPC, &place, NULL, "%d: %s", result, walrus_error(handle));
    for (unsigned i = 0; i < 3; i++) {
        walrus_close(handle);
        broker_kill(&place);
        broker_start(&place, SMALL_SEGMENTS);
        handle = client();
        cr_assert_eq(count_of(handle, "t"), 2);
    }
    put_well(handle, "t", 3, 1, 50);
    cr_assert_eq(count_of(handle, "t"), 3);
    walrus_close(handle);
}

Test(seed_failure, g10_a_failed_flush_ends_the_broker_without_an_answer)
{
    const char *module = getenv("WALRUS_TEST_FAILING_FLUSH");
    char trigger[PATH_MAX];
    if (module == NULL || module[0] == '\0') {
        place_end();
        cr_skip("SKIPPED: a preloaded library does not go with a sanitizer\n");
    }
    snprintf(trigger, sizeof trigger, "%s/fail", place.folder);
    setenv("LD_PRELOAD", module, 1);
    setenv("WALRUS_TEST_FAIL_IF", trigger, 1);
    broker_start(&place, SMALL_SEGMENTS, "--io", "pwrite");
    unsetenv("LD_PRELOAD");
    walrus *handle = client();
    put_well(handle, "t", 1, 2, 100);
    FILE *file = fopen(trigger, "we");
    cr_assert_not_null(file);
    fclose(file);
    int result = put(handle, "t", 3, 2, 100, NULL);
    cr_assert_eq(result, -ECONNRESET, "the outcome is not known: %d", result);
    place.serving = false;
    int code = child_finish(&place.broker, LIMIT_MS);
    expect(code == 74, &place, &place.broker, "exit code %d", code);
    walrus_close(handle);
    int64_t decided = -1;
    for (unsigned i = 0; i < 3; i++) {
        broker_start(&place, SMALL_SEGMENTS);
        handle = client();
        int64_t count = count_of(handle, "t");
        cr_assert(count == 2 || count == 4, "%lld entries", (long long)count);
        cr_assert(decided < 0 || decided == count, "recovery decides once");
        decided = count;
        walrus_close(handle);
        broker_kill(&place);
    }
}

Test(seed_failure, g22_the_death_of_a_client_in_a_batch_frees_the_topic)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *other = client();
    int ready[2];
    char byte;
    cr_assert_eq(pipe(ready), 0);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    if (child == 0) {
        walrus *mine = client();
        (void)stream_begun(mine, mine, "t", 1);
        if (write(ready[1], "r", 1) != 1)
            _exit(1);
        pause();
        _exit(2);
    }
    close(ready[1]);
    cr_assert_eq(read(ready[0], &byte, 1), 1);
    cr_assert_eq(put(other, "t", 1, 1, 10, NULL), -EBUSY);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    int result = -EBUSY;
    for (unsigned i = 0; result == -EBUSY && i < 2000; i++) {
        result = put(other, "t", 1, 1, 10, NULL);
        pause_ms(result == -EBUSY ? 5 : 0);
    }
    cr_assert_eq(result, 0, "%d", result);
    cr_assert_eq(count_of(other, "t"), 1);
    walrus_close(other);
}

Test(seed_failure, the_death_of_the_broker_in_a_batch_frees_the_topic)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *one = client(), *two = client();
    walrus_batch *batch = stream_begun(one, two, "t", 1);
    broker_kill(&place);
    walrus_batch_abort(batch);
    walrus_close(one);
    walrus_close(two);
    broker_start(&place, SMALL_SEGMENTS);
    one = client();
    put_well(one, "t", 1, 2, 10);
    cr_assert_eq(count_of(one, "t"), 2);
    walrus_close(one);
}

/* -------------------------------------------------------------------------------------------- behaviour */

Test(seed_behaviour, an_empty_batch_succeeds_and_writes_nothing)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    struct walrus_receipt receipt;
    cr_assert_eq(put(handle, "t", 1, 0, 0, &receipt), 0);
    cr_assert_eq(receipt.count, 0u);
    cr_assert_eq(counters().log_groups, 0u);
    walrus_close(handle);
}

Test(seed_behaviour, regular_writes_are_as_before_while_no_batch_is_in_progress)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *one = client(), *two = client();
    for (unsigned i = 0; i < 20; i++)
        cr_assert_eq(put_one(i % 2 ? one : two, "t", 1 + i, 30), 0);
    cr_assert_eq(count_of(one, "t"), 20);
    walrus_close(one);
    walrus_close(two);
}

Test(seed_behaviour, a_write_that_would_block_succeeds_when_tried_again_after_the_batch)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *one = client(), *two = client();
    walrus_batch *batch = stream_begun(one, two, "t", 1);
    cr_assert_eq(put_one(two, "t", 41, 10), -EBUSY);
    walrus_batch_abort(batch); /* rolled back: the writer's state is the original one */
    int result = -EBUSY;
    for (unsigned i = 0; result == -EBUSY && i < 2000; i++) {
        result = put_one(two, "t", 1, 10);
        pause_ms(result == -EBUSY ? 5 : 0);
    }
    cr_assert_eq(result, 0);
    cr_assert_eq(count_of(two, "t"), 1);
    walrus_close(one);
    walrus_close(two);
}

Test(seed_behaviour, a_whole_batch_is_one_group_and_one_flush)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    put_well(handle, "t", 1, 1, 10);
    struct stat_values before = counters();
    put_well(handle, "t", 2, 1000, 200); /* small enough for the arena: one descriptor */
    struct stat_values after = counters();
    cr_assert_eq(after.log_groups, before.log_groups + 1);
    cr_assert_eq(after.log_flushes, before.log_flushes + 1);
    walrus_close(handle);
}

Test(seed_behaviour, g2_readers_see_all_of_a_batch_or_nothing)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *one = client(), *two = client();
    walrus_batch *batch = stream_begun(one, two, "t", 1);
    for (unsigned i = 0; i < 5; i++) {
        cr_assert_eq(count_of(two, "t"), 0);
        cr_assert_eq(add_entries(batch, "t", 41 + 10 * i, 10, 60000), 0);
    }
    cr_assert_eq(finish(one, batch, NULL), 0);
    cr_assert_eq(count_of(two, "t"), 90);
    walrus_close(one);
    walrus_close(two);
}

Test(seed_behaviour, memory_of_the_broker_does_not_grow_with_the_batch)
{
    broker_start(&place, SMALL_SEGMENTS);
    walrus *handle = client();
    put_well(handle, "t", 1, 1, 10);
    char path[64], line[256];
    uint64_t peak = 0;
    put_well(handle, "t", 2, 100, 900000); /* 90 MB */
    snprintf(path, sizeof path, "/proc/%d/status", (int)place.broker.pid);
    FILE *status = fopen(path, "re");
    cr_assert_not_null(status);
    while (fgets(line, sizeof line, status) != NULL)
        (void)number_behind(line, "VmHWM:\t", &peak);
    fclose(status);
    expect(peak > 0 && peak < 80u << 10, &place, NULL, "%llu KiB at the most", (unsigned long long)peak);
    walrus_close(handle);
}

Test(seed_behaviour, unsupported_is_said_to_who_requires_io_uring)
{
    broker_start(&place, SMALL_SEGMENTS, "--io", "pwrite");
    struct walrus_connect_options options = client_options();
    options.flags = WALRUS_REQUIRE_IO_URING;
    walrus *handle = NULL;
    cr_assert_eq(walrus_connect(&handle, &options), -EOPNOTSUPP);
    handle = client();
    put_well(handle, "t", 1, 3, 10);
    walrus_close(handle);
}

Test(seed_behaviour, the_mmap_back_end_writes_batches_too)
{
    broker_start(&place, SMALL_SEGMENTS, "--io", "mmap");
    walrus *handle = client();
    put_well(handle, "t", 1, 500, 1000);
    put_well(handle, "t", 501, 10, 600000);
    cr_assert_eq(count_of(handle, "t"), 510);
    walrus_close(handle);
    broker_kill(&place);
    broker_start(&place, SMALL_SEGMENTS, "--io", "mmap");
    handle = client();
    cr_assert_eq(count_of(handle, "t"), 510);
    walrus_close(handle);
}
