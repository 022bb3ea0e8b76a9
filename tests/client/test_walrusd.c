/* The library against the real broker: what a fake could get wrong together with the library. */
#include "../../libclient/include/walrus.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
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
        free((void *)(uintptr_t)slices[i].data); /* NOLINT(performance-no-int-to-ptr): const is cast away */
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
            int waited = walrus_wait(handle, 1, -1);
            cr_assert_eq(waited, 0, "%d: %s", waited, walrus_error(handle));
            cr_assert_gt(walrus_reap(handle, c, 16), 0);
        }
        cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
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

/* ---------------------------------------------------------- turns, numbers, watermarks, parts */

static walrus_topic *topic_of(walrus *of, const char *name)
{
    walrus_topic *topic = NULL;
    cr_assert_eq(walrus_topic_open(of, name, strlen(name), NULL, &topic), 0, "%s", walrus_error(of));
    return topic;
}

static int send_with(walrus *from, walrus_topic *to, struct walrus_submit_options options)
{
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(to, &batch), 0, "%s", walrus_error(from));
    cr_assert_eq(walrus_batch_add(batch, "entry", 5), 0);
    options.size = sizeof options;
    int code = walrus_batch_submit(batch, &options);
    if (code == -EAGAIN)
        walrus_batch_abort(batch);
    return code;
}
#define SEND(from, to, ...) send_with((from), (to), (struct walrus_submit_options){.size = 0, __VA_ARGS__})

static struct walrus_completion completion_of(walrus *from)
{
    struct walrus_completion c = {.result = 1};
    cr_assert_eq(walrus_wait(from, 1, -1), 0, "%s", walrus_error(from));
    cr_assert_eq(walrus_reap(from, &c, 1), 1);
    return c;
}

/* A stream of another handle that has the topic until it is submitted. */
static walrus_batch *hold_topic(walrus *other, const char *name)
{
    static const uint8_t much[3 << 20];
    walrus_batch *stream;
    cr_assert_eq(walrus_batch_begin(topic_of(other, name), &stream), 0);
    cr_assert_eq(walrus_batch_add(stream, much, sizeof much), 0, "%s", walrus_error(other));
    return stream;
}

static void let_go(walrus *other, walrus_batch *stream)
{
    cr_assert_eq(walrus_batch_submit(stream, NULL), 0, "%s", walrus_error(other));
    cr_assert_eq(completion_of(other).result, 0);
}

Test(walrusd, g20_queued_batches_wait_for_their_turn_and_can_be_taken_back)
{
    walrus *other = connect_with((struct walrus_connect_options){.spin_ns = 0});
    walrus_topic *topic = topic_of(handle, "t");
    walrus_batch *stream = hold_topic(other, "t");
    cr_assert_eq(SEND(handle, topic, .user_data = 1), 0);
    struct walrus_completion c = completion_of(handle);
    cr_assert_eq(c.result, -EBUSY);
    cr_assert_eq(c.receipt.reason, WALRUS_REASON_TOPIC);
    for (uint64_t i = 1; i <= 5; i++)
        cr_assert_eq(SEND(handle, topic, .user_data = i, .queue = 1, .append = i % 2 == 0), 0);
    cr_assert_eq(walrus_cancel(handle, 3), 0, "%s", walrus_error(handle));
    c = completion_of(handle);
    cr_assert_eq(c.user_data, 3);
    cr_assert_eq(c.result, -ECANCELED);
    cr_assert_eq(SEND(handle, topic, .user_data = 6, .queue = 1, .deadline_ns = 1000000), 0);
    c = completion_of(handle);
    cr_assert_eq(c.user_data, 6);
    cr_assert_eq(c.result, -ETIMEDOUT);
    cr_assert_eq(walrus_in_flight(handle), 4);
    let_go(other, stream);
    uint64_t order[] = {1, 2, 4, 5};
    for (size_t i = 0; i < 4; i++) {
        c = completion_of(handle);
        cr_assert_eq(c.user_data, order[i]);
        cr_assert_eq(c.result, 0, "%d", c.result);
        cr_assert_eq(c.receipt.first_sequence, 2 + i);
    }
    cr_assert_eq(walrus_cancel(handle, 5), -ENOENT);
    walrus_close(other);
}

Test(walrusd, a_refused_batch_is_told_when_to_try)
{
    walrus *other = connect_with((struct walrus_connect_options){.spin_ns = 0});
    walrus_topic *topic = topic_of(handle, "t");
    walrus_batch *stream = hold_topic(other, "t");
    cr_assert_eq(SEND(handle, topic, .user_data = 1, .notify = 1), 0);
    struct walrus_completion c = completion_of(handle);
    cr_assert_eq(c.result, -EBUSY);
    cr_assert_eq(c.receipt.flags, WALRUS_RECEIPT_MORE);
    let_go(other, stream);
    c = completion_of(handle);
    cr_assert_eq(c.user_data, 1);
    cr_assert_eq(c.result, 0);
    cr_assert_eq(c.receipt.flags, WALRUS_RECEIPT_TRY_NOW);
    cr_assert_eq(SEND(handle, topic, .user_data = 2), 0);
    cr_assert_eq(completion_of(handle).result, 0);
    walrus_close(other);
}

static walrus *holder;
static walrus_batch *held;

static void *end_stream(void *unused)
{
    (void)unused;
    static const uint8_t more[1 << 20];
    for (int i = 0; i < 8; i++)
        cr_assert_eq(walrus_batch_add(held, more, sizeof more), 0, "%s", walrus_error(holder));
    let_go(holder, held);
    return NULL;
}

Test(walrusd, blocking_calls_queue_and_retry_until_the_topic_is_free)
{
    holder = connect_with((struct walrus_connect_options){.spin_ns = 0});
    struct walrus_retry retry = {.size = sizeof retry,
                                 .max_tries = 50,
                                 .first_wait_ns = INT64_C(60000000000),
                                 .max_wait_ns = INT64_C(60000000000)};
    struct walrus_write_options options[] = {{.size = sizeof options[0], .queue = 1},
                                             {.size = sizeof options[0], .retry = &retry}};
    for (size_t i = 0; i < 2; i++) {
        held = hold_topic(holder, "t");
        pthread_t thread;
        cr_assert_eq(pthread_create(&thread, NULL, end_stream, NULL), 0);
        struct walrus_receipt receipt;
        cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options[i], &receipt), 0, "%s",
                     walrus_error(handle));
        pthread_join(thread, NULL);
        cr_assert_eq(receipt.first_sequence, 10 + 10 * i);
    }
    held = hold_topic(holder, "t");
    struct walrus_write_options late = {.size = sizeof late, .queue = 1, .deadline_ns = 5000000};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &late, NULL), -ETIMEDOUT);
    static const uint8_t large[2 << 20];
    cr_assert_eq(walrus_append_for_topic(handle, "t", large, sizeof large, &late, NULL), -ETIMEDOUT);
    walrus_batch_abort(held);
    struct walrus_write_options patient = {.size = sizeof patient, .queue = 1};
    cr_assert_eq(walrus_append_for_topic(handle, "t", large, sizeof large, &patient, NULL), 0, "%s",
                 walrus_error(handle));
    walrus_close(holder);
}

Test(walrusd, a_ring_full_of_waiting_batches_does_not_block_the_stream_that_others_wait_for)
{
    /* Ours: a stream on "u", and all the ring allows waiting for "t". The other's: a stream on "t", and a
     * batch that waits for "u". */
    walrus_close(handle);
    handle = connect_with((struct walrus_connect_options){.queue_entries = 8});
    walrus *other = connect_with((struct walrus_connect_options){.queue_entries = 8});
    walrus_batch *ours = hold_topic(handle, "u"), *theirs = hold_topic(other, "t");
    walrus_topic *t = topic_of(handle, "t"), *u = topic_of(other, "u");
    uint64_t waiting = 0;
    while (waiting < 5) {
        if (SEND(handle, t, .user_data = 100, .queue = 1) == 0)
            waiting++;
    }
    cr_assert_eq(SEND(other, u, .user_data = 200, .queue = 1), 0);
    static const uint8_t much[3 << 20];
    cr_assert_eq(walrus_batch_add(ours, much, sizeof much), 0);
    struct walrus_submit_options options = {.size = sizeof options, .user_data = 1};
    cr_assert_eq(walrus_batch_submit(ours, &options), 0);
    cr_assert_eq(completion_of(handle).user_data, 1);
    cr_assert_eq(completion_of(other).user_data, 200);
    let_go(other, theirs);
    for (uint64_t i = 0; i < waiting; i++)
        cr_assert_eq(completion_of(handle).result, 0);
    walrus_close(other);
}

Test(walrusd, g5_g21_numbers_go_on_and_are_taken_once)
{
    walrus *me = connect_with((struct walrus_connect_options){.producer = "me"});
    walrus_topic *topic = topic_of(me, "t");
    for (uint64_t i = 1; i <= 20; i++)
        cr_assert_eq(SEND(me, topic, .user_data = i), 0);
    for (uint64_t i = 1; i <= 20; i++) {
        struct walrus_completion c = completion_of(me);
        cr_assert_eq(c.result, 0);
        cr_assert_eq(c.receipt.number, i);
    }
    uint8_t *large = pattern(3 << 20, 1);
    struct walrus_receipt receipt;
    cr_assert_eq(walrus_append_for_topic(me, "t", large, 3 << 20, NULL, &receipt), 0, "%s", walrus_error(me));
    cr_assert_eq(receipt.number, 21);
    free(large);
    walrus *second = NULL;
    struct walrus_connect_options options = {.size = sizeof options,
                                             .socket_path = path,
                                             .producer = "me",
                                             .error = words,
                                             .error_size = sizeof words};
    cr_assert_eq(walrus_connect(&second, &options), -EBUSY, "%s", words);
    walrus_close(me);
    end_broker(SIGKILL);
    start_broker();
    me = connect_with((struct walrus_connect_options){.producer = "me"});
    topic = topic_of(me, "t");
    cr_assert_eq(walrus_topic_last_number(topic), 21);
    cr_assert_eq(walrus_query(topic, 21, &receipt), 1, "%s", walrus_error(me));
    cr_assert_eq(receipt.number, 21);
    cr_assert_eq(walrus_query(topic, 22, NULL), 0);
    struct walrus_write_options again = {.size = sizeof again, .number = 21};
    cr_assert_eq(walrus_append_for_topic(me, "t", "x", 1, &again, &receipt), 0);
    cr_assert_eq(receipt.flags, WALRUS_RECEIPT_DUPLICATE);
    again.number = 23;
    cr_assert_eq(walrus_append_for_topic(me, "t", "x", 1, &again, &receipt), -EAGAIN);
    cr_assert_eq(receipt.reason, WALRUS_REASON_ORDER);
    cr_assert_eq(walrus_append_for_topic(me, "t", "x", 1, NULL, &receipt), 0);
    cr_assert_eq(receipt.number, 22);
    cr_assert_eq(receipt.first_sequence, 22);
    walrus_close(me);
}

Test(walrusd, g22_who_was_taken_over_is_told_and_stops)
{
    walrus *old = connect_with((struct walrus_connect_options){.producer = "me"});
    walrus_topic *topic = topic_of(old, "t");
    cr_assert_eq(SEND(old, topic, .user_data = 1), 0);
    walrus *new = connect_with((struct walrus_connect_options){.producer = "me", .flags = WALRUS_TAKE_OVER});
    cr_assert_eq(completion_of(old).result, 0); /* published before: decided as if nothing had happened */
    cr_assert_eq(walrus_append_for_topic(old, "t", "x", 1, NULL, NULL), -ESTALE);
    struct walrus_receipt receipt;
    cr_assert_eq(walrus_append_for_topic(new, "t", "x", 1, NULL, &receipt), 0, "%s", walrus_error(new));
    cr_assert_eq(receipt.number, 2);
    walrus_close(old);
    walrus_close(new);
}

Test(walrusd, watermarks_show_the_commits_of_everybody)
{
    walrus *other = connect_with((struct walrus_connect_options){.spin_ns = 0});
    walrus_topic *topic = topic_of(handle, "t");
    for (uint64_t i = 1; i <= 10; i++) {
        struct walrus_receipt receipt;
        cr_assert_eq(walrus_append_for_topic(other, "t", "x", 1, NULL, &receipt), 0);
        cr_assert_eq(receipt.first_sequence, i);
        cr_assert_eq(walrus_topic_durable_next(topic), i + 1); /* before the answer, so: already */
        cr_assert_eq(walrus_topic_written_next(topic), i + 1);
    }
    walrus_close(other);
}

Test(walrusd, an_entry_in_parts_is_read_back_in_one)
{
    size_t length = (40 << 20) + 123;
    uint8_t *bytes = pattern(length, 5);
    walrus_batch *batch;
    cr_assert_eq(walrus_batch_begin(topic_of(handle, "t"), &batch), 0);
    cr_assert_eq(walrus_batch_add(batch, "before", 6), 0);
    for (size_t at = 0, now = 1; at < length; at += now, now = now * 5 % 300007 + 1) {
        if (now > length - at)
            now = length - at;
        cr_assert_eq(walrus_batch_add_part(batch, bytes + at, now, at + now < length), 0, "%s",
                     walrus_error(handle));
    }
    cr_assert_eq(walrus_batch_submit(batch, NULL), 0);
    cr_assert_eq(completion_of(handle).result, 0);
    walrus_entries *entries;
    cr_assert_eq(walrus_batch_read_for_topic(handle, "t", 2, NULL, &entries), 1, "%s", walrus_error(handle));
    struct walrus_entry e;
    cr_assert_eq(walrus_entries_get(entries, 0, &e), 1);
    cr_assert_eq(e.length, length);
    cr_assert_eq(memcmp(e.data, bytes, length), 0);
    walrus_entries_release(entries);
    free(bytes);
}

/* What the dead one had: a stream, in a process whose child keeps every descriptor open. */
static void hold_and_fork(int ready)
{
    walrus *own = connect_with((struct walrus_connect_options){.spin_ns = 0});
    hold_topic(own, "t");
    if (fork() == 0) {
        alarm(30);
        for (;;)
            pause();
    }
    cr_assert_eq(write(ready, "x", 1), 1);
    for (;;)
        pause();
}

Test(walrusd, a_connection_ends_with_its_process_whatever_a_child_keeps_open)
{
    int ready[2];
    char byte;
    cr_assert_eq(pipe2(ready, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        hold_and_fork(ready[1]);
    }
    cr_assert_eq(read(ready[0], &byte, 1), 1);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), -EBUSY);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    struct walrus_write_options options = {.size = sizeof options, .queue = 1, .deadline_ns = 20000000000};
    struct walrus_receipt receipt;
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options, &receipt), 0, "%s",
                 walrus_error(handle));
    cr_assert_eq(receipt.first_sequence, 1); /* the stream left nothing */
    kill(-child, SIGKILL);
}
