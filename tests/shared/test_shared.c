#include <criterion/criterion.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../shared/layout.h"
#include "../../shared/message.h"
#include "../../shared/paths.h"
#include "../../shared/ring.h"
#include "../../shared/stat_page.h"

/* ------------------------------------------------------------------------------------- errors */

Test(error, the_words_grow_in_front_and_the_code_stays)
{
    struct error err = {0};
    cr_assert_eq(error_set(&err, -ENOSPC, "file %s is full", "a"), -ENOSPC);
    cr_assert_eq(error_wrap(&err, "segment %d", 7), -ENOSPC);
    cr_assert_str_eq(err.text, "segment 7: file a is full");
    cr_assert_eq(error_set(NULL, -EIO, "nobody listens"), -EIO);
    cr_assert_eq(error_wrap(NULL, "nobody listens"), 0);
}

Test(error, words_that_are_too_long_are_cut_and_terminated)
{
    struct error err = {0};
    char text[2000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    cr_assert_eq(error_set(&err, -EIO, "%s", text), -EIO);
    cr_assert_eq(strlen(err.text), sizeof err.text - 1);
    cr_assert_eq(error_wrap(&err, "%s", text), -EIO);
    cr_assert_eq(strlen(err.text), sizeof err.text - 1);
}

Test(error, words_that_cannot_be_formatted_leave_the_code)
{
    struct error err = {0};
    const wchar_t no_character[] = {0x7fffffff, 0};
    cr_assert_eq(error_set(&err, -EIO, "the device"), -EIO);
    cr_assert_eq(error_wrap(&err, "name %ls", no_character), -EIO);
    cr_assert(err.code == -EIO && memchr(err.text, 0, sizeof err.text) != NULL);
}

/* ------------------------------------------------------------------------------------- layout */

Test(layout, the_fingerprint_is_that_of_version_2)
{
    cr_assert_eq(LAYOUT_VERSION, 2, "a new version has a new fingerprint: write it here");
    cr_assert_eq(layout_fingerprint(), UINT64_C(0x97649db9d0ff93f7),
                 "0x%016llx: the layout changed without its version",
                 (unsigned long long)layout_fingerprint());
}

static bool place(uint32_t queue, uint64_t arena, uint64_t window, struct layout_sizes *out)
{
    *out = (struct layout_sizes){.queue_entries = queue, .arena_bytes = arena, .window_bytes = window};
    return layout_place(out);
}

Test(layout, sizes_are_taken_between_their_bounds_and_nowhere_else)
{
    struct layout_sizes s;
    cr_assert(place(MIN_QUEUE_ENTRIES, MIN_ARENA_BYTES, MIN_WINDOW_BYTES, &s));
    cr_assert(place(MAX_QUEUE_ENTRIES, MAX_ARENA_BYTES, MAX_WINDOW_BYTES, &s));
    cr_assert(place(DEFAULT_QUEUE_ENTRIES, DEFAULT_ARENA_BYTES, DEFAULT_WINDOW_BYTES, &s));
    static const uint32_t queues[] = {0, 1, 4, 7, 9, 100, 8192, 0x80000000u, UINT32_MAX};
    for (size_t i = 0; i < array_count(queues); i++)
        cr_assert_not(place(queues[i], MIN_ARENA_BYTES, MIN_WINDOW_BYTES, &s), "%u", queues[i]);
    static const uint64_t arenas[] = {0,
                                      4096,
                                      MIN_ARENA_BYTES - 4096,
                                      MIN_ARENA_BYTES + 1,
                                      MAX_ARENA_BYTES + 4096ull,
                                      UINT64_C(1) << 63,
                                      UINT64_MAX};
    for (size_t i = 0; i < array_count(arenas); i++)
        cr_assert_not(place(8, arenas[i], MIN_WINDOW_BYTES, &s), "%llu", (unsigned long long)arenas[i]);
    static const uint64_t windows[] = {0,
                                       32768,
                                       MIN_WINDOW_BYTES + 4096,
                                       3 * MIN_WINDOW_BYTES,
                                       MAX_WINDOW_BYTES * 2ull,
                                       UINT64_C(1) << 63,
                                       UINT64_MAX};
    for (size_t i = 0; i < array_count(windows); i++)
        cr_assert_not(place(8, MIN_ARENA_BYTES, windows[i], &s), "%llu", (unsigned long long)windows[i]);
}

Test(layout, parts_do_not_overlap_and_begin_at_pages)
{
    for (uint32_t queue = MIN_QUEUE_ENTRIES; queue <= MAX_QUEUE_ENTRIES; queue *= 2) {
        struct layout_sizes s;
        cr_assert(place(queue, MIN_ARENA_BYTES, MIN_WINDOW_BYTES, &s));
        cr_assert_geq(s.arena_at, LAYOUT_PAGE + queue * sizeof(struct descriptor));
        cr_assert_geq(s.window_at, LAYOUT_PAGE + queue * sizeof(struct completion));
        cr_assert_eq(s.arena_at % LAYOUT_PAGE, 0);
        cr_assert_eq(s.window_at % LAYOUT_PAGE, 0);
        cr_assert_eq(s.client_file_bytes, s.arena_at + s.arena_bytes);
        cr_assert_eq(s.broker_file_bytes, s.window_at + s.window_bytes);
    }
}

/* ------------------------------------------------------------------------------------- ring */

#define SIZE 16u

struct shared_ring {
    uint32_t tail;
    uint32_t head;
    struct descriptor slots[SIZE];
};
static struct shared_ring shared;
static struct ring producer, consumer;

static void both_at(uint32_t index)
{
    shared = (struct shared_ring){.tail = index, .head = index};
    ring_init(&producer, SIZE, &shared.tail, &shared.head, shared.slots);
    ring_init(&consumer, SIZE, &shared.head, &shared.tail, shared.slots);
    producer.mirror.p_tail = producer.mirror.c_head = producer.mirror.p_head = index;
    consumer.mirror.p_tail = consumer.mirror.c_head = consumer.mirror.p_head = index;
}

Test(ring, takes_one_less_than_its_size_and_gives_them_back_in_order)
{
    both_at(0);
    for (uint64_t i = 0; i < SIZE - 1; i++)
        cr_assert_eq(ring_push_descriptor(&producer, &(struct descriptor){.user_data = i}), 1);
    cr_assert_eq(ring_push_descriptor(&producer, &(struct descriptor){.user_data = 99}), 0, "full");
    struct descriptor d;
    for (uint64_t i = 0; i < SIZE - 1; i++) {
        cr_assert_eq(ring_pop_descriptor(&consumer, &d), 1);
        cr_assert_eq(d.user_data, i);
    }
    cr_assert_eq(ring_pop_descriptor(&consumer, &d), 0, "empty");
    cr_assert_eq(ring_push_descriptor(&producer, &d), 1);
}

Test(ring, of_completions_takes_one_less_than_its_size_and_believes_no_impossible_word)
{
    static struct completion slots[SIZE];
    struct completion c = {0};
    both_at(7);
    producer.slots = consumer.slots = slots;
    for (uint64_t i = 0; i < SIZE - 1; i++)
        cr_assert_eq(ring_push_completion(&producer, &(struct completion){.user_data = i}), 1);
    cr_assert_eq(ring_push_completion(&producer, &c), 0, "full");
    shared.head = 7 + SIZE;
    cr_assert_eq(ring_push_completion(&producer, &c), -EPROTO, "a head beyond what was published");
    shared.head = 7;
    for (uint64_t i = 0; i < SIZE - 1; i++) {
        cr_assert_eq(ring_pop_completion(&consumer, &c), 1);
        cr_assert_eq(c.user_data, i);
    }
    cr_assert_eq(ring_pop_completion(&consumer, &c), 0, "empty");
    shared.tail = shared.head - 1;
    cr_assert_eq(ring_pop_completion(&consumer, &c), -EPROTO, "a tail behind what was taken");
    shared.tail = shared.head;
    cr_assert_eq(ring_push_completion(&producer, &c), 1);
}

Test(ring, refuses_a_tail_beyond_the_ring)
{
    static const uint32_t jumps[] = {SIZE, SIZE + 1, 1000, 0x7fffffff, 0x80000000, UINT32_MAX};
    static const uint32_t starts[] = {0, 5, 0xfffffff0u, UINT32_MAX};
    for (size_t s = 0; s < array_count(starts); s++)
        for (size_t i = 0; i < array_count(jumps); i++) {
            both_at(starts[s]);
            shared.tail += jumps[i];
            struct descriptor d;
            cr_assert_eq(ring_pop_descriptor(&consumer, &d), -EPROTO, "%u + %u", starts[s], jumps[i]);
            cr_assert_eq(shared.head, starts[s], "nothing was taken");
            shared.tail = starts[s] + SIZE - 1;
            cr_assert_eq(ring_pop_descriptor(&consumer, &d), 1, "a full ring is fine");
        }
}

/* What was seen published stays so: the broker has noted how far it will drain. */
Test(ring, refuses_a_tail_and_a_head_that_are_taken_back)
{
    static const uint32_t starts[] = {0, 5, 0xfffffffcu, UINT32_MAX};
    for (size_t s = 0; s < array_count(starts); s++) {
        both_at(starts[s]);
        struct descriptor d = {0};
        for (uint32_t i = 0; i < 4; i++)
            cr_assert_eq(ring_push_descriptor(&producer, &d), 1);
        cr_assert_eq(ring_refresh_filled(&consumer), 4);
        shared.tail = starts[s] + 3;
        cr_assert_eq(ring_refresh_filled(&consumer), -EPROTO);
        shared.tail = starts[s] + 4;
        cr_assert_eq(ring_refresh_filled(&consumer), 4);
        for (uint32_t i = 0; i < 2; i++)
            cr_assert_eq(ring_pop_descriptor(&consumer, &d), 1);
        cr_assert_eq(ring_refresh_free(&producer), SIZE - 1 - 2);
        shared.head = starts[s] + 1;
        cr_assert_eq(ring_refresh_free(&producer), -EPROTO);
        shared.head = starts[s] + 2;
        cr_assert_eq(ring_refresh_free(&producer), SIZE - 1 - 2);
    }
}

Test(ring, refuses_a_head_beyond_what_was_published)
{
    both_at(0);
    for (uint32_t i = 0; i < SIZE - 1; i++)
        cr_assert_eq(ring_push_descriptor(&producer, &(struct descriptor){0}), 1);
    shared.head = SIZE;
    cr_assert_eq(ring_push_descriptor(&producer, &(struct descriptor){0}), -EPROTO);
    shared.head = UINT32_MAX; /* back in time: more used than there is room */
    cr_assert_eq(ring_push_descriptor(&producer, &(struct descriptor){0}), -EPROTO);
}

Test(ring, indices_wrap_at_two_to_the_32)
{
    both_at(0xfffffff0u);
    uint64_t sent = 0;
    uint64_t got = 0;
    while (got < 100) {
        for (int i = 0; i < 7; i++)
            if (ring_push_descriptor(&producer, &(struct descriptor){.user_data = sent}) == 1)
                sent++;
        struct descriptor d;
        for (int i = 0; i < 5; i++)
            if (ring_pop_descriptor(&consumer, &d) == 1)
                cr_assert_eq(d.user_data, got++);
    }
    cr_assert_lt(shared.tail, 0xfffffff0u, "it did wrap");
}

#define COUNT 1000000u

static uint64_t mix(uint64_t value)
{
    return (value ^ (value >> 31)) * UINT64_C(0x9e3779b97f4a7c15);
}

static void *produce(void *argument)
{
    (void)argument;
    for (uint64_t i = 0; i < COUNT; i++) {
        struct descriptor d = {
            .user_data = i, .number = mix(i), .published_ns = (int64_t)(mix(i) >> 1), .stream = (uint32_t)i};
        int rc;
        while ((rc = ring_push_descriptor(&producer, &d)) == 0)
            sched_yield();
        if (rc < 0)
            return (void *)1;
    }
    return NULL;
}

Test(ring, a_million_descriptors_pass_intact_between_two_threads, .timeout = 60)
{
    both_at(0xfff00000u);
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, produce, NULL), 0);
    for (uint64_t i = 0; i < COUNT; i++) {
        struct descriptor d;
        int rc;
        while ((rc = ring_pop_descriptor(&consumer, &d)) == 0)
            sched_yield();
        cr_assert_eq(rc, 1);
        if (d.user_data != i || d.number != mix(i) || d.published_ns != (int64_t)(mix(i) >> 1) ||
            d.stream != (uint32_t)i)
            cr_assert_fail("descriptor %llu came torn", (unsigned long long)i);
    }
    void *failed;
    cr_assert_eq(pthread_join(thread, &failed), 0);
    cr_assert_null(failed);
}

/* ------------------------------------------------------------------------------------------------ counters
 * file */

static struct stat_page page;
static bool writing;

static void *write_page(void *argument)
{
    (void)argument;
    struct stat_values values;
    for (uint64_t update = 1; __atomic_load_n(&writing, __ATOMIC_RELAXED); update++) {
        for (unsigned i = 0; i < STAT_FIELD_COUNT; i++)
            memcpy((char *)&values + 8 * i, &update, sizeof update);
        stat_page_write(&page, &values, update);
    }
    return NULL;
}

Test(stat_page, a_reader_sees_one_update_whole_whatever_the_writer_does, .timeout = 60)
{
    struct stat_identity identity = {.broker_pid = 77};
    stat_page_begin(&page, &identity);
    writing = true;
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, write_page, NULL), 0);
    for (int seen = 0; seen < 100000;) {
        struct stat_snapshot snapshot;
        if (stat_page_read(&page, sizeof page, &snapshot) != 0)
            continue;
        seen++;
        uint64_t first = stat_field_value(&snapshot.values, 0);
        for (unsigned i = 1; i < STAT_FIELD_COUNT; i++)
            if (stat_field_value(&snapshot.values, i) != first)
                cr_assert_fail("field %s is of another update", stat_field_name(i));
        cr_assert_eq(first, snapshot.updates);
    }
    __atomic_store_n(&writing, false, __ATOMIC_RELAXED);
    cr_assert_eq(pthread_join(thread, NULL), 0);
}

Test(stat_page, a_writer_that_died_in_an_update_leaves_the_one_before)
{
    struct stat_identity identity = {0};
    stat_page_begin(&page, &identity);
    struct stat_snapshot snapshot;
    cr_assert_eq(stat_page_read(&page, sizeof page, &snapshot), -EAGAIN, "nothing written yet");
    struct stat_values values = {.log_epoch = 1};
    stat_page_write(&page, &values, 1);
    values.log_epoch = 2;
    stat_page_write(&page, &values, 2);
    page.copies[1].copy.begin = 3; /* update 3 has begun */
    page.copies[1].copy.values.log_epoch = 3;
    cr_assert_eq(stat_page_read(&page, sizeof page, &snapshot), 0);
    cr_assert_eq(snapshot.values.log_epoch, 2);
}

Test(stat_page, a_page_that_is_not_ours_is_refused)
{
    struct stat_identity identity = {0};
    stat_page_begin(&page, &identity);
    struct stat_values values = {0};
    stat_page_write(&page, &values, 1);
    struct stat_snapshot snapshot;
    cr_assert_eq(stat_page_read(&page, sizeof page - 1, &snapshot), -EPROTO);
    cr_assert_eq(stat_page_read(&page, 0, &snapshot), -EPROTO);
    struct stat_page good = page;
    page.identity.magic ^= 1;
    cr_assert_eq(stat_page_read(&page, sizeof page, &snapshot), -EPROTO);
    page = good;
    page.identity.version++;
    cr_assert_eq(stat_page_read(&page, sizeof page, &snapshot), -EPROTO);
    page = good;
    page.identity.field_count++;
    cr_assert_eq(stat_page_read(&page, sizeof page, &snapshot), -EPROTO);
    page = good;
    memset(page.identity.store_path, 'x', sizeof page.identity.store_path);
    cr_assert_eq(stat_page_read(&page, sizeof page, &snapshot), 0);
    cr_assert_eq(strlen(snapshot.identity.store_path), sizeof snapshot.identity.store_path - 1);
}

Test(stat_page, names_and_fields_belong_together)
{
    cr_assert_str_eq(stat_field_name(STAT_LOG_epoch), "log_epoch");
    cr_assert_str_eq(stat_field_name(STAT_SESSION_signals), "session_signals");
    cr_assert_str_eq(stat_field_name(STAT_FIELD_COUNT - 1), "loop_turns_over_1s");
    cr_assert_null(stat_field_name(STAT_FIELD_COUNT));
}

Test(stat_page, says_since_when_the_loop_is_overdue)
{
    struct stat_snapshot s = {.loop = {.state = STAT_LOOP_AWAKE, .updated_ns = 1000}};
    cr_assert_eq(stat_page_stalled(&s, 5000), 4000);
    s.loop = (struct stat_loop){.state = STAT_LOOP_ASLEEP, .updated_ns = 1000, .wake_by_ns = INT64_MAX};
    cr_assert_eq(stat_page_stalled(&s, 5000), 0);
    s.loop.wake_by_ns = 2000;
    cr_assert_eq(stat_page_stalled(&s, 5000), 3000);
    s.loop.wake_by_ns = INT64_MIN;
    cr_assert_eq(stat_page_stalled(&s, 5000), 0);
}

/* ------------------------------------------------------------------------------------- paths */

Test(paths, an_instance_is_one_plain_folder_name)
{
    static const char *const good[] = {"a", "A-b_c.9",
                                       "0123456789012345678901234567890123456789012345678901234567890123"};
    static const char *const bad[] = {
        "",         ".",
        "..",       ".a",
        "a/b",      "../x",
        "a b",      "a\n",
        "\xc3\xa4", "01234567890123456789012345678901234567890123456789012345678901234"};
    for (size_t i = 0; i < array_count(good); i++)
        cr_assert(paths_instance_valid(good[i]), "%s", good[i]);
    for (size_t i = 0; i < array_count(bad); i++)
        cr_assert_not(paths_instance_valid(bad[i]), "%s", bad[i]);
}

static void become_nobody(void)
{
    if (geteuid() == 0)
        cr_assert_eq(seteuid(65534), 0);
}

Test(paths, of_root_lie_in_the_systems_folders)
{
    if (geteuid() != 0)
        cr_skip("SKIPPED: not root");
    char path[200];
    struct error err;
    cr_assert_eq(paths_default_socket(path, sizeof path, NULL, &err), 0);
    cr_assert_str_eq(path, "/run/walrus/walrus.sock");
    cr_assert_eq(paths_default_data_folder(path, sizeof path, "one", &err), 0);
    cr_assert_str_eq(path, "/var/lib/walrus/one");
}

Test(paths, of_others_lie_in_their_own_folders)
{
    become_nobody();
    char path[200];
    struct error err;
    setenv("XDG_RUNTIME_DIR", "/run/user/7", 1);
    setenv("XDG_STATE_HOME", "/home/x/state", 1);
    cr_assert_eq(paths_default_socket(path, sizeof path, "one", &err), 0);
    cr_assert_str_eq(path, "/run/user/7/walrus/one/walrus.sock");
    cr_assert_eq(paths_default_data_folder(path, sizeof path, "", &err), 0);
    cr_assert_str_eq(path, "/home/x/state/walrus");
    setenv("XDG_STATE_HOME", "relative", 1);
    setenv("HOME", "/home/x", 1);
    cr_assert_eq(paths_default_data_folder(path, sizeof path, NULL, &err), 0);
    cr_assert_str_eq(path, "/home/x/.local/state/walrus");
    cr_assert_eq(paths_default_socket(path, sizeof path, "a/b", &err), -EINVAL);
    cr_assert_eq(paths_default_socket(path, 10, NULL, &err), -ENAMETOOLONG);
}

Test(paths, under_the_temporary_folder_are_used_only_if_they_are_private)
{
    become_nobody();
    char base[] = "/tmp/walrus-paths-XXXXXX";
    cr_assert_not_null(mkdtemp(base));
    unsetenv("XDG_RUNTIME_DIR");
    unsetenv("XDG_STATE_HOME");
    unsetenv("HOME");
    setenv("TMPDIR", base, 1);
    char folder[100];
    char expected[200];
    char path[200];
    struct error err;
    snprintf(folder, sizeof folder, "%s/walrus-%u", base, (unsigned)geteuid());
    snprintf(expected, sizeof expected, "%s/walrus.sock", folder);
    cr_assert_eq(paths_default_socket(path, sizeof path, NULL, &err), 0, "not there yet");
    cr_assert_str_eq(path, expected);
    cr_assert_eq(mkdir(folder, 0700), 0);
    cr_assert_eq(paths_default_socket(path, sizeof path, NULL, &err), 0);
    cr_assert_eq(paths_default_data_folder(path, sizeof path, NULL, &err), 0);
    snprintf(expected, sizeof expected, "%s/store", folder);
    cr_assert_str_eq(path, expected);
    cr_assert_eq(chmod(folder, 0755), 0);
    cr_assert_eq(paths_default_socket(path, sizeof path, NULL, &err), -EACCES, "others can enter");
    cr_assert_not_null(strstr(err.text, folder));
    cr_assert_eq(rmdir(folder), 0);
    cr_assert_eq(symlink("/tmp", folder), 0);
    cr_assert_eq(paths_default_socket(path, sizeof path, NULL, &err), -EACCES, "a link");
    unlink(folder);
    rmdir(base);
}
