/* The library against the real broker: what a fake could get wrong together with the library. */
#include "../../libclient/include/walrus.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/walrus-client-XXXXXX";
static char data[64], path[64], words[512];
static pid_t broker;
static walrus *handle;

/* Starts walrusd and waits for its line. */
static void start_broker(void)
{
    int out[2];
    cr_assert_eq(pipe2(out, O_CLOEXEC), 0);
    broker = fork();
    if (broker == 0) {
        dup2(out[1], STDOUT_FILENO);
        int nowhere = open("/dev/null", O_WRONLY);
        dup2(nowhere, STDERR_FILENO);
        execl(getenv("WALRUS_TEST_WALRUSD"), "walrusd", "--data-dir", data, "--socket", path, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    char line[200] = "";
    size_t length = 0;
    ssize_t n;
    while (strchr(line, '\n') == NULL && (n = read(out[0], line + length, sizeof line - 1 - length)) > 0)
        length += (size_t)n;
    close(out[0]);
    cr_assert_not_null(strstr(line, "ready on"), "walrusd said: %s", line);
}

static void end_broker(int signal_number)
{
    kill(broker, signal_number);
    waitpid(broker, NULL, 0);
}

static walrus *connect_with(struct walrus_connect_options options)
{
    walrus *new = NULL;
    options.size = sizeof options;
    options.socket_path = path;
    options.error = words;
    options.error_size = sizeof words;
    cr_assert_eq(walrus_connect(&new, &options), 0, "%s", words);
    return new;
}

static void begin(void)
{
    if (getenv("WALRUS_TEST_WALRUSD") == NULL)
        cr_skip("SKIPPED: WALRUS_TEST_WALRUSD does not say where walrusd is");
    cr_assert_not_null(mkdtemp(folder));
    snprintf(data, sizeof data, "%s/data", folder);
    snprintf(path, sizeof path, "%s/socket", folder);
    start_broker();
    handle = connect_with((struct walrus_connect_options){.spin_ns = 0});
}

static int remove_one(const char *name, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(name);
}

static void end(void)
{
    walrus_close(handle);
    end_broker(SIGTERM);
    nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

TestSuite(walrusd, .init = begin, .fini = end, .timeout = 60);

static uint8_t *pattern(size_t length, uint64_t seed)
{
    uint8_t *bytes = malloc(length + 1);
    uint64_t x = seed * 0x9e3779b97f4a7c15 + 1;
    for (size_t i = 0; i < length; i++) {
        if (i % 8 == 0)
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        bytes[i] = (uint8_t)(x >> (i % 8 * 8));
    }
    return bytes;
}

static void expect(const struct walrus_entry *e, uint64_t sequence, size_t length, uint64_t seed)
{
    cr_assert_eq(e->sequence, sequence);
    cr_assert_eq(e->length, length, "entry %llu has %llu bytes", (unsigned long long)sequence,
                 (unsigned long long)e->length);
    uint8_t *bytes = pattern(length, seed);
    cr_assert_eq(memcmp(e->data, bytes, length), 0, "entry %llu", (unsigned long long)sequence);
    free(bytes);
}

/* Sequences 1..count of a topic; entry i has length(i) bytes. */
static void expect_topic(walrus *reader, const char *topic, uint64_t count, size_t (*length)(uint64_t))
{
    uint64_t from = 1;
    while (from <= count) {
        walrus_entries *entries;
        int got = walrus_batch_read_for_topic(reader, topic, from, NULL, &entries);
        cr_assert_gt(got, 0, "%d at %llu: %s", got, (unsigned long long)from, walrus_error(reader));
        struct walrus_entry e;
        for (size_t i = 0; walrus_entries_get(entries, i, &e); i++, from++)
            expect(&e, from, length(from), from);
        cr_assert_eq(walrus_entries_next(entries), from);
        walrus_entries_release(entries);
    }
    walrus_entries *entries;
    cr_assert_eq(walrus_batch_read_for_topic(reader, topic, from, NULL, &entries), 0);
}

static void append_batch(const char *topic, uint64_t first, uint64_t count, size_t (*length)(uint64_t))
{
    static struct walrus_slice slices[WALRUS_MAX_BATCH_ENTRIES];
    for (uint64_t i = 0; i < count; i++)
        slices[i] = (struct walrus_slice){pattern(length(first + i), first + i), length(first + i)};
    struct walrus_receipt r;
    int code = walrus_batch_append_for_topic(handle, topic, slices, count, NULL, &r);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    cr_assert_eq(r.first_sequence, first);
    cr_assert_eq(r.count, count);
    cr_assert_eq(r.level, WALRUS_LEVEL_DURABLE);
    for (uint64_t i = 0; i < count; i++)
        free((void *)(uintptr_t)slices[i].data);
}

static size_t small(uint64_t i)
{
    return i * 37 % 1000;
}

static size_t mixed(uint64_t i)
{
    return i % 50 == 0 ? 700000 + i : i % 7 == 0 ? 0 : i * 977 % 20000;
}

static size_t large(uint64_t i)
{
    return 3000000 + i * 1234567;
}

Test(walrusd, what_was_written_is_read_back_also_after_a_restart)
{
    append_batch("small", 1, 2000, small);
    append_batch("small", 2001, 1, small);
    append_batch("mixed", 1, 300, mixed);
    append_batch("large", 1, 3, large);
    expect_topic(handle, "small", 2001, small);
    expect_topic(handle, "mixed", 300, mixed);
    expect_topic(handle, "large", 3, large);
    end_broker(SIGKILL);
    cr_assert_eq(walrus_append_for_topic(handle, "small", "x", 1, NULL, NULL), -ECONNRESET);
    walrus_close(handle);
    start_broker();
    handle = connect_with((struct walrus_connect_options){.window_bytes = 64 << 10, .arena_bytes = 64 << 10});
    expect_topic(handle, "small", 2001, small);
    expect_topic(handle, "mixed", 300, mixed);
    expect_topic(handle, "large", 3, large);
    append_batch("mixed", 301, 100, mixed);
    expect_topic(handle, "mixed", 400, mixed);
}

Test(walrusd, types_come_back)
{
    walrus_topic *topic;
    walrus_batch *batch;
    cr_assert_eq(walrus_topic_open(handle, "t", 1, NULL, &topic), 0);
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    uint8_t *bytes = pattern(2000000, 2);
    cr_assert_eq(walrus_batch_add(batch, "a", 1), 0);
    cr_assert_eq(walrus_batch_set_type(batch, 11), 0);
    cr_assert_eq(walrus_batch_add(batch, bytes, 2000000), 0);
    cr_assert_eq(walrus_batch_set_type(batch, 12), 0);
    cr_assert_eq(walrus_batch_add(batch, "b", 1), 0);
    cr_assert_eq(walrus_batch_set_type(batch, 13), 0);
    cr_assert_eq(walrus_batch_submit(batch, NULL), 0, "%s", walrus_error(handle));
    cr_assert_eq(walrus_wait(handle, 1, -1), 0);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), 1);
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.count, 3);
    for (uint64_t i = 1; i <= 3; i++) {
        walrus_entries *entries;
        struct walrus_entry e;
        cr_assert_geq(walrus_batch_read_for_topic(handle, "t", i, NULL, &entries), 1);
        cr_assert_eq(walrus_entries_get(entries, 0, &e), 1);
        cr_assert_eq(e.type, 10 + i);
        cr_assert_eq(e.length, i == 2 ? 2000000 : 1);
        walrus_entries_release(entries);
    }
    free(bytes);
}

Test(walrusd, a_stream_keeps_its_topic_busy_until_it_ends)
{
    walrus *other = connect_with((struct walrus_connect_options){.spin_ns = -1});
    walrus_topic *topic;
    walrus_batch *batch;
    uint8_t *bytes = pattern(3000000, 1);
    cr_assert_eq(walrus_topic_open(handle, "t", 1, NULL, &topic), 0);
    cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
    cr_assert_eq(walrus_batch_add(batch, bytes, 3000000), 0);
    struct walrus_receipt r;
    cr_assert_eq(walrus_append_for_topic(other, "t", "x", 1, NULL, &r), -EBUSY);
    cr_assert_eq(r.reason, WALRUS_REASON_TOPIC);
    cr_assert_eq(walrus_append_for_topic(other, "t", bytes, 3000000, NULL, &r), -EBUSY);
    cr_assert_eq(walrus_append_for_topic(other, "u", "x", 1, NULL, NULL), 0);
    walrus_batch_abort(batch);
    /* The abort is on its way before the next call of this handle. */
    cr_assert_eq(walrus_append_for_topic(handle, "t", "y", 1, NULL, &r), 0);
    cr_assert_eq(r.first_sequence, 1);
    cr_assert_eq(walrus_append_for_topic(other, "t", bytes, 3000000, NULL, &r), 0, "%s", walrus_error(other));
    cr_assert_eq(r.first_sequence, 2);
    walrus_close(other);
    free(bytes);
}

Test(walrusd, a_follower_sees_what_comes)
{
    walrus_entries *entries;
    struct walrus_read_options options = {.size = sizeof options, .follow_ns = 1000000};
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 1, &options, &entries), -ETIME);
    pid_t child = fork();
    if (child == 0) {
        alarm(30);
        walrus *writer = NULL;
        struct walrus_connect_options connect = {.size = sizeof connect, .socket_path = path};
        int code = walrus_connect(&writer, &connect);
        for (int i = 0; i < 20 && code == 0; i++)
            code = walrus_append_for_topic(writer, "t", &i, sizeof i, NULL, NULL);
        walrus_close(writer);
        _exit(code == 0 ? 0 : 1);
    }
    options.follow_ns = -1;
    for (uint64_t from = 1; from <= 20;) {
        int count = walrus_batch_read_for_topic(handle, "t", from, &options, &entries);
        cr_assert_gt(count, 0, "%d: %s", count, walrus_error(handle));
        from = walrus_entries_next(entries);
        walrus_entries_release(entries);
    }
    int status;
    waitpid(child, &status, 0);
    cr_assert_eq(status, 0);
}

Test(walrusd, many_batches_in_flight_come_back_in_order)
{
    walrus_topic *topic;
    cr_assert_eq(walrus_topic_open(handle, "t", 1, NULL, &topic), 0);
    uint64_t sent = 0, done = 0, last = 0;
    while (done < 3000) {
        while (sent < 3000) {
            walrus_batch *batch;
            void *at;
            int code = walrus_batch_begin(topic, &batch);
            for (int i = 0; i < 3 && code == 0; i++)
                if ((code = walrus_batch_reserve(batch, 700, &at)) == 0)
                    memset(at, (int)sent, 700);
            struct walrus_submit_options options = {.size = sizeof options, .user_data = sent};
            if (code == 0)
                code = walrus_batch_submit(batch, &options);
            if (code == -EAGAIN) {
                walrus_batch_abort(batch);
                break;
            }
            cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
            sent++;
        }
        struct walrus_completion c[64];
        struct pollfd fd = {.fd = walrus_fd(handle), .events = POLLIN};
        cr_assert_eq(poll(&fd, 1, 30000), 1, "the fd was not readable with %u in flight",
                     walrus_in_flight(handle));
        int count = walrus_reap(handle, c, 64);
        cr_assert_geq(count, 0);
        for (int i = 0; i < count; i++, done++) {
            cr_assert_eq(c[i].result, 0);
            cr_assert_eq(c[i].user_data, done);
            cr_assert_gt(c[i].receipt.first_sequence, last);
            last = c[i].receipt.first_sequence;
        }
    }
    cr_assert_eq(last, 3 * 2999 + 1);
}

Test(walrusd, the_catalogue_lists_more_topics_than_one_answer)
{
    for (int i = 0; i < 300; i++) {
        char name[200];
        snprintf(name, sizeof name, "topic %d of many, with a name that takes some room %0100d", i, i);
        walrus_topic *topic;
        cr_assert_eq(walrus_topic_open(handle, name, strlen(name), NULL, &topic), 0);
        walrus_batch *batch;
        cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
        cr_assert_eq(walrus_batch_add(batch, "x", 1), 0);
        int code;
        while ((code = walrus_batch_submit(batch, NULL)) == -EAGAIN) {
            struct walrus_completion c[16];
            cr_assert_eq(walrus_wait(handle, 1, -1), 0);
            cr_assert_gt(walrus_reap(handle, c, 16), 0);
        }
        cr_assert_eq(code, 0);
        walrus_topic_close(topic);
    }
    cr_assert_eq(walrus_wait(handle, (int)walrus_in_flight(handle), -1), 0);
    struct walrus_topic_info info = {.size = sizeof info};
    int count = 0, code;
    while ((code = walrus_next_topic(handle, &info)) == 1) {
        cr_assert_eq(info.next_sequence, 2);
        count++;
    }
    cr_assert_eq(code, 0);
    cr_assert_eq(count, 300);
}

Test(walrusd, unknown_topics_and_a_broker_that_stops)
{
    walrus_entries *entries;
    cr_assert_eq(walrus_batch_read_for_topic(handle, "nobody", 1, NULL, &entries), -ENOENT);
    struct walrus_info info = {.size = sizeof info};
    cr_assert_eq(walrus_get_info(handle, &info), 0);
    cr_assert_eq(info.broker_pid, (uint32_t)broker);
    end_broker(SIGTERM);
    int code = walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL);
    cr_assert(code == -ECONNRESET || code == -ESHUTDOWN, "%d", code);
    start_broker();
}
