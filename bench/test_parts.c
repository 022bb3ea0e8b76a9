/* test_parts.c: the parts of walrus-bench that can be wrong without anybody seeing it in the figures. */
#include <criterion/criterion.h>
#include <fcntl.h>

#include <unistd.h>

#include "ceiling.h"
#include "folder.h"
#include "histogram.h"
#include "machine.h"
#include "options.h"
#include "payload.h"
#include "phases.h"
#include "producers.h"
#include "raw_group.h"
#include "report.h"
#include "row.h"
#include "usage.h"

/* ------------------------------------------------------------------------------------------------ histogram
 */

Test(histogram, every_value_is_read_back_within_one_percent)
{
    struct histogram *h = malloc(sizeof *h);
    for (uint64_t value = 1; value < UINT64_C(1) << 39; value = value * 5 / 4 + 1) {
        histogram_clear(h);
        histogram_add(h, 0, 1);
        histogram_add(h, (int64_t)value, 1);
        histogram_add(h, INT64_C(1) << 39, 1);
        double read = (double)histogram_at(h, 0.6);
        cr_assert(read >= (double)value * 0.99 && read <= (double)value * 1.01, "%llu was read as %f",
                  (unsigned long long)value, read);
    }
    free(h);
}

Test(histogram, quantiles_are_of_the_nearest_rank)
{
    struct histogram *h = malloc(sizeof *h);
    histogram_clear(h);
    for (int i = 1; i <= 100; i++)
        histogram_add(h, i, 1);
    cr_assert_eq(histogram_at(h, 0.5), 50);
    cr_assert_eq(histogram_at(h, 0.99), 99);
    cr_assert_eq(histogram_at(h, 1), 100);
    cr_assert_eq(histogram_at(h, 0), 1);
    free(h);
}

Test(histogram, of_nothing_is_zero_and_of_the_unbelievable_the_last_bucket)
{
    struct histogram *h = malloc(sizeof *h);
    histogram_clear(h);
    cr_assert_eq(histogram_at(h, 0.5), 0);
    histogram_add(h, INT64_MAX, 1);
    histogram_add(h, -5, 1); /* a clock that went back */
    cr_assert_eq(h->smallest, 0);
    cr_assert_eq(h->largest, INT64_MAX);
    free(h);
}

Test(histogram, merging_is_the_same_as_adding_everything_to_one)
{
    struct histogram *h = calloc(3, sizeof *h);
    for (int i = 0; i < 3; i++)
        histogram_clear(&h[i]);
    for (int i = 0; i < 10000; i++) {
        histogram_add(&h[i % 2], INT64_C(37) * i, 1);
        histogram_add(&h[2], INT64_C(37) * i, 1);
    }
    histogram_merge(&h[0], &h[1]);
    cr_assert(memcmp(&h[0], &h[2], sizeof h[0]) == 0);
    free(h);
}

Test(histogram, its_curve_rises_from_the_smallest_to_the_largest)
{
    struct histogram *h = malloc(sizeof *h);
    histogram_clear(h);
    for (int i = 1; i <= 10000; i++)
        histogram_add(h, INT64_C(1000) * i, 1);
    struct curve curve = histogram_curve(h);
    cr_assert_eq(curve_shares[0], 0);
    cr_assert_eq(curve_shares[CURVE_POINTS - 1], 1);
    for (uint32_t i = 1; i < CURVE_POINTS; i++) {
        cr_assert(curve_shares[i] > curve_shares[i - 1]);
        cr_assert(curve.us[i] >= curve.us[i - 1]);
        cr_assert_float_eq(curve.us[i], curve_shares[i] * 10000, 100);
    }
    free(h);
}

/* ------------------------------------------------------------------------------------------------ payload */

Test(payload, the_same_name_makes_the_same_bytes_and_another_name_others)
{
    static const uint64_t sizes[] = {
        1, 8, 15, 16, 64, 700, PAYLOAD_EXTRA, PAYLOAD_EXTRA + 1, 3 * PAYLOAD_POOL + 5};
    struct payload_pool pool, again;
    cr_assert(payload_pool_make(&pool, 42) == 0 && payload_pool_make(&again, 42) == 0);
    for (size_t i = 0; i < array_count(sizes); i++) {
        uint8_t *a = calloc(1, sizes[i]), *b = calloc(1, sizes[i]);
        uint64_t word = payload_batch_word(3, 7, 123456789);
        payload_fill(&pool, word, 5, a, sizes[i]);
        payload_fill(&again, word, 5, b, sizes[i]);
        cr_assert(memcmp(a, b, sizes[i]) == 0);
        payload_fill(&pool, word + 1, 5, b, sizes[i]);
        cr_assert(memcmp(a, b, sizes[i]) != 0, "size %llu", (unsigned long long)sizes[i]);
        if (sizes[i] >= PAYLOAD_STAMP) {
            struct payload_name name = payload_name_of(a);
            cr_assert(name.run == 3 && name.producer == 7 && name.batch == 123456789 && name.index == 5);
        }
        free(a);
        free(b);
    }
    payload_pool_release(&pool);
    payload_pool_release(&again);
}

Test(payload, the_pool_does_not_compress_by_repetition)
{
    struct payload_pool pool;
    unsigned counts[256] = {0};
    cr_assert(payload_pool_make(&pool, 1) == 0);
    for (size_t i = 0; i < PAYLOAD_POOL; i++)
        counts[pool.bytes[i]]++;
    for (int i = 0; i < 256; i++)
        cr_assert(counts[i] > PAYLOAD_POOL / 256 * 9 / 10 && counts[i] < PAYLOAD_POOL / 256 * 11 / 10,
                  "byte %d: %u", i, counts[i]);
    for (size_t i = 8; i < PAYLOAD_POOL; i += 8)
        cr_assert(memcmp(pool.bytes + i, pool.bytes + i - 8, 8) != 0);
    payload_pool_release(&pool);
}

/* ------------------------------------------------------------------------------------------------ topics of
 * producers */

Test(producers, share_all_topics_among_them_and_each_its_own)
{
    struct load load = {.producers = 3, .topics = 8};
    int owner[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
    for (uint32_t p = 0; p < 3; p++)
        for (uint64_t batch = 0; batch < 20; batch++) {
            uint32_t topic = producers_topic(&load, p, batch);
            cr_assert(topic < 8);
            cr_assert(owner[topic] == -1 || owner[topic] == (int)p);
            owner[topic] = (int)p;
        }
    for (int i = 0; i < 8; i++)
        cr_assert(owner[i] != -1);
    load = (struct load){.producers = 8, .topics = 2};
    cr_assert(producers_topic(&load, 5, 17) == 1 && producers_topic_count(&load, 5) == 1);
}

/* ------------------------------------------------------------------------------------------------ phases */

Test(phases, a_worker_that_dies_ends_the_run_with_an_error)
{
    struct phases *phases = shared_memory(sizeof *phases);
    phases->measure_ns = INT64_C(60000000000);
    pid_t pids[2];
    for (int i = 0; i < 2; i++)
        if ((pids[i] = fork()) == 0) {
            if (phases_ready(phases) < 0)
                _exit(2);
            if (i == 0)
                _exit(1);
            while (phase_now(phases) != PHASE_STOP)
                relax();
            _exit(0);
        }
    cr_assert_eq(phases_lead(phases, pids, 2, NULL), -ECHILD);
    shared_memory_release(phases, sizeof *phases);
}

Test(phases, go_on_by_work_and_stamp_the_measured_interval_once)
{
    struct phases *phases = shared_memory(sizeof *phases);
    phases->warm_work = 10;
    phases->measure_work = 100;
    pid_t pids[2];
    for (int i = 0; i < 2; i++)
        if ((pids[i] = fork()) == 0) {
            if (phases_ready(phases) < 0)
                _exit(2);
            enum phase phase;
            for (uint64_t work = 1; (phase = phase_now(phases)) != PHASE_STOP; work++)
                if (phases_share_done(phases, phase, work))
                    phases_advance(phases, phase);
            _exit(0);
        }
    cr_assert_eq(phases_lead(phases, pids, 2, NULL), 0);
    cr_assert(phases->measure_from != 0 && phases->measure_to >= phases->measure_from);
    cr_assert_not(phases_given_up(phases));
    shared_memory_release(phases, sizeof *phases);
}

/* ------------------------------------------------------------------------------------------------ raw */

static struct folder folder;

static void make_folder(void)
{
    struct error err = {0};
    cr_assert(folder_make(&folder, ".", &err) == 0, "%s", err.text);
}

static void remove_folder(void)
{
    char path[4200];
    snprintf(path, sizeof path, "%s", folder.path);
    folder_remove(&folder);
    cr_assert(access(path, F_OK) < 0);
}

Test(raw, every_method_writes_what_it_says_and_sees_every_sample, .init = make_folder, .fini = remove_folder)
{
    char path[4200];
    struct raw_file file;
    struct error err = {0};
    folder_join(&folder, "raw.dat", path, sizeof path);
    cr_assert(raw_prepare(&file, path, 8u << 20, &err) == 0, "%s", err.text);
    int works = 0;
    for (uint32_t depth = 1; depth <= 4; depth += 3)
        for (enum raw_method method = 0; method < RAW_METHODS; method++) {
            struct raw_request request = {.file = &file,
                                          .payload = 70000,
                                          .depth = depth,
                                          .duration_ns = INT64_C(10000000000),
                                          .most_bytes = UINT64_C(70000) * 40};
            struct raw_numbers numbers;
            int code = raw_run(&request, method, &numbers, &err);
            if (code == -EOPNOTSUPP)
                continue;
            cr_assert(code == 0, "%s: %s", raw_method_names[method], err.text);
            cr_assert_eq(numbers.latency.samples, 40);
            cr_assert(numbers.bytes_per_s > 0 && numbers.latency.p50 > 0 &&
                      numbers.latency.max >= numbers.latency.p99);
            works++;
        }
    cr_assert(works >= 2);
    raw_remove(&file);
    cr_assert(access(path, F_OK) < 0);
}

/* True: the second payload of a run is, but for the stamps, the first one again. */
static bool writes_the_same_again(const struct raw_file *file, enum raw_method method, bool fresh)
{
    struct raw_request request = {.file = file,
                                  .payload = 70000,
                                  .depth = 1,
                                  .duration_ns = INT64_C(10000000000),
                                  .most_bytes = 140000,
                                  .fresh = fresh};
    struct raw_numbers numbers;
    struct error err = {0};
    uint8_t first[RAW_BLOCK], second[RAW_BLOCK];
    cr_assert(raw_run(&request, method, &numbers, &err) == 0, "%s", err.text);
    int fd = open(file->path, O_RDONLY | O_CLOEXEC);
    cr_assert_eq(pread(fd, first, sizeof first, RAW_BLOCK), (ssize_t)sizeof first);
    cr_assert_eq(pread(fd, second, sizeof second, (off_t)align_up(70000, RAW_BLOCK) + RAW_BLOCK),
                 (ssize_t)sizeof second);
    close(fd);
    cr_assert_neq(memcmp(first, second, 8), 0);
    return memcmp(first + 8, second + 8, sizeof first - 8) == 0;
}

Test(raw, fresh_bytes_are_made_anew_for_each_write, .init = make_folder, .fini = remove_folder)
{
    char path[4200];
    struct raw_file file;
    struct error err = {0};
    folder_join(&folder, "raw.dat", path, sizeof path);
    cr_assert(raw_prepare(&file, path, 4u << 20, &err) == 0, "%s", err.text);
    cr_assert(writes_the_same_again(&file, RAW_BUFFERED, false));
    cr_assert(!writes_the_same_again(&file, RAW_BUFFERED, true));
    struct raw_request request = {
        .file = &file, .payload = 70000, .depth = 4, .duration_ns = 1000000, .fresh = true};
    struct raw_numbers numbers;
    cr_assert_eq(raw_run(&request, RAW_DSYNC_PARALLEL, &numbers, &err), -EOPNOTSUPP);
    raw_remove(&file);
}

Test(raw, refuses_a_file_that_is_too_small_for_what_is_under_way, .init = make_folder, .fini = remove_folder)
{
    char path[4200];
    struct raw_file file;
    struct error err = {0};
    folder_join(&folder, "raw.dat", path, sizeof path);
    cr_assert(raw_prepare(&file, path, 4u << 20, &err) == 0, "%s", err.text);
    struct raw_request request = {.file = &file, .payload = 1u << 20, .depth = 5, .duration_ns = 1000000};
    struct raw_numbers numbers;
    cr_assert_eq(raw_run(&request, RAW_BUFFERED, &numbers, &err), -EINVAL);
    raw_remove(&file);
}

Test(raw_group, every_way_commits_for_all_clients, .init = make_folder, .fini = remove_folder)
{
    char path[4200];
    struct raw_file file;
    struct error err = {0};
    folder_join(&folder, "raw.dat", path, sizeof path);
    cr_assert(raw_prepare(&file, path, 8u << 20, &err) == 0, "%s", err.text);
    struct raw_group_request request = {
        .file = &file, .clients = 3, .depth = 2, .size = 700, .warm_ns = 10000000, .duration_ns = 100000000};
    for (enum raw_group_way way = 0; way < RAW_GROUP_WAYS; way++) {
        struct raw_numbers numbers;
        int code = raw_group_run(&request, way, &numbers, &err);
        if (code < 0 && way == RAW_GROUP_DSYNC && access(path, F_OK) == 0)
            cr_skip_test("this file system has no O_DIRECT");
        cr_assert(code == 0, "%s", err.text);
        cr_assert(numbers.commits_per_s > 0 && numbers.latency.samples > 0);
    }
    raw_remove(&file);
}

Test(ceiling, copies_what_was_filled)
{
    struct load load = {.producers = 1, .topics = 1, .batch = 1000, .size = 64, .depth = 16};
    struct raw_numbers numbers;
    struct error err = {0};
    cr_assert(ceiling_run(&load, NULL, 50000000, NULL, &numbers, &err) == 0, "%s", err.text);
    cr_assert(numbers.bytes_per_s > 0);
}

/* ------------------------------------------------------------------------------------------------ options,
 * machine, row */

Test(options, durability_is_understood_or_refused)
{
    struct load load = {0};
    cr_assert(options_durability(&load, "sync") == 0 && load.level == 3);
    cr_assert(options_durability(&load, "interval:20") == 0 && load.level == 2);
    cr_assert(options_durability(&load, "none") == 0 && load.level == 1);
    cr_assert_eq(options_durability(&load, "interval:"), -EINVAL);
    cr_assert_eq(options_durability(&load, "interval:0"), -EINVAL);
    cr_assert_eq(options_durability(&load, "often"), -EINVAL);
}

Test(options, what_is_said_by_hand_wins_over_a_scenario)
{
    static char program[] = "walrus-bench", a[] = "--batch", b[] = "7", c[] = "--count", d[] = "5";
    char *argv[] = {program, a, b, c, d, NULL};
    struct options options;
    options_parse(&options, 5, argv);
    struct load preset = {.producers = 8, .topics = 8, .batch = 100, .size = 700, .depth = 2, .seconds = 2};
    struct load load = options_over(&options, &preset);
    cr_assert(load.batch == 7 && load.count == 5 && load.producers == 8 && load.size == 700);
}

Test(others, are_named_or_refused)
{
    uint32_t which = 0;
    cr_assert(others_parse("all", &which) == 0 && which == 7);
    cr_assert(others_parse("redis,rocksdb", &which) == 0 && which == 5);
    cr_assert_eq(others_parse("redis,oracle", &which), -EINVAL);
    cr_assert_eq(others_parse("red", &which), -EINVAL);
}

Test(usage, of_this_process_grows_with_what_it_does)
{
    struct usage before = usage_of(getpid());
    int64_t until = now_ns() + 20000000;
    while (now_ns() < until)
        relax();
    pause_ns(1000000);
    struct usage after = usage_of(getpid());
    struct usage used = usage_between(&before, &after);
    cr_assert_gt(used.cpu_ns, 0);
    cr_assert_gt(used.switches, 0);
    used = usage_between(&after, &before);
    cr_assert(used.cpu_ns == 0 && used.switches == 0, "a count that went back is nothing");
}

Test(usage, counts_system_calls_exactly_where_the_kernel_lets_us)
{
    uint64_t event;
    struct syscall_counter counter;
    if (syscall_event(&event) < 0 || syscall_counter_begin(&counter, event, 0) < 0)
        cr_skip_test("this user may not count system calls here");
    uint64_t few = 0, many = 0;
    for (int i = 0; i < 10; i++)
        (void)getppid();
    few = syscall_counter_end(&counter);
    cr_assert_eq(syscall_counter_begin(&counter, event, 0), 0);
    for (int i = 0; i < 1011; i++)
        (void)getppid();
    many = syscall_counter_end(&counter);
    cr_assert_eq(many - few, 1001);
}

Test(machine, does_not_call_memory_a_disk)
{
    struct machine machine;
    if (access("/dev/shm", W_OK) < 0)
        cr_skip_test("no /dev/shm here");
    machine_look(&machine, "/dev/shm");
    if (strcmp(machine.file_system, "tmpfs") != 0)
        cr_skip_test("/dev/shm is no tmpfs here");
    cr_assert_not(machine.is_disk);
    cr_assert_neq(machine.not_a_disk[0], 0);
}

Test(row, medians_and_ratios_are_taken_round_by_round)
{
    struct row *row = calloc(1, sizeof *row);
    static const double walrus[] = {110, 300, 120}, raw[] = {100, 100, 200};
    row->rounds = 3;
    row->has_raw = true;
    for (int i = 0; i < 3; i++) {
        row->rounds_walrus[i].latency.p50 = walrus[i];
        row->rounds_walrus[i].latency.max = walrus[i] * 10;
        row->rounds_walrus[i].latency.samples = 5;
        row->rounds_raw[i].latency.p50 = raw[i];
    }
    row_medians(row);
    cr_assert_float_eq(row->walrus.latency.p50, 120, 1e-9);
    cr_assert_float_eq(row->walrus.latency.max, 3000, 1e-9);
    cr_assert_eq(row->walrus.latency.samples, 15);
    cr_assert_float_eq(row->raw.latency.p50, 100, 1e-9);
    cr_assert_float_eq(row->ratio_p50, 1.1, 1e-9); /* of 1.1, 3 and 0.6 */
    free(row);
}

Test(row, a_goal_is_met_in_its_own_direction)
{
    struct goal most = {.wanted = 1.15, .reached = 1.2},
                least = {.wanted = 0.8, .reached = 0.9, .at_least = true};
    cr_assert_not(goal_met(&most));
    cr_assert(goal_met(&least));
}
