/* `walrus append` with --queue, --retry and --stream on a real broker: waiting for a busy topic, and one
 * entry of any size, whole or not at all. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <unistd.h>

#include "program.h"

static struct place place;

static void make(void)
{
    place_make(&place);
}

static void clean(void)
{
    place_remove(&place);
}

TestSuite(append, .init = make, .fini = clean, .timeout = 300);

static void expect_topic(const char *topic, const char *wanted)
{
    struct child child;
    walrus(&place, &child, "", "read", topic);
    expect_end(&place, &child, 0, NULL);
    expect_output(&place, &child, wanted);
    child_free(&child);
}

/* The topic may be known; there is nothing in it. */
static void expect_nothing(const char *topic)
{
    struct child child;
    walrus(&place, &child, "", "read", topic);
    expect(child.output.length == 0 &&
               (child.code == 0 || strstr(child.errors.data, "no such topic") != NULL),
           &place, &child, "exit code %d, %zu bytes", child.code, child.output.length);
    child_free(&child);
}

/* A counter of the broker; its page is written now and then. */
static json_int_t counter(const char *name)
{
    struct child child;
    walrus(&place, &child, "", "stat", "--json");
    expect_end(&place, &child, 0, NULL);
    json_t *object = json_loads(child.output.data, JSON_REJECT_DUPLICATES, NULL);
    expect(object != NULL, &place, &child, "not JSON");
    json_t *value = json_object_get(json_object_get(object, "session"), name);
    expect(json_is_integer(value), &place, &child, "there is no counter %s", name);
    json_int_t number = json_integer_value(value);
    json_decref(object);
    child_free(&child);
    return number;
}

static void await_counter(const char *name, json_int_t least)
{
    int64_t limit = clock_ms() + LIMIT_MS;
    while (counter(name) < least) {
        expect(clock_ms() < limit, &place, NULL, "%s does not become %d", name, (int)least);
        pause_ms(5);
    }
}

/* Random bytes: everything that a text tool might change is in there. */
static char *make_bytes(size_t length)
{
    char *bytes = malloc(length + 1);
    uint64_t state = 1;
    cr_assert(bytes != NULL);
    for (size_t i = 0; i < length; i++) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        bytes[i] = (char)(state >> 56);
    }
    return bytes;
}

/* A stream that holds the topic until its stdin is closed. */
static void hold_topic(struct child *holder, const char *topic)
{
    size_t length = (size_t)4 << 20; /* more than the arena */
    char *bytes = make_bytes(length);
    walrus_start(&place, holder, "append", topic, "--stream");
    cr_assert(child_write(holder, bytes, length));
    free(bytes);
    int64_t limit = clock_ms() + LIMIT_MS;
    int code;
    do { /* until its first chunk is admitted */
        struct child other;
        walrus(&place, &other, "", "append", topic, "--stream");
        code = other.code;
        child_free(&other);
        expect(clock_ms() < limit, &place, holder, "it does not hold the topic");
    } while (code != 3);
}

static uint64_t last_of(const char *topic)
{
    struct child child;
    uint64_t last = 0;
    char words[64];
    walrus(&place, &child, "", "topics", "--json");
    expect_end(&place, &child, 0, NULL);
    snprintf(words, sizeof words, "\"topic\":\"%s\"", topic);
    const char *at = strstr(child.output.data, words);
    if (at != NULL)
        cr_assert(number_behind(at, "\"last_sequence\":", &last));
    child_free(&child);
    return last;
}

/* -------------------------------------------------------------------------------- queue, retry */

Test(append, queued_appends_wait_for_the_topic_and_are_committed_behind_the_batch_in_front)
{
    struct child holder, waiters[3], child;
    broker_start(&place, NULL);
    hold_topic(&holder, "t");
    uint64_t before = last_of("t");
    for (size_t i = 0; i < array_count(waiters); i++) {
        char line[16];
        walrus_start(&place, &waiters[i], "append", "t", "--queue");
        snprintf(line, sizeof line, "waiter %zu\n", i);
        cr_assert(child_write(&waiters[i], line, strlen(line)));
        child_close_input(&waiters[i]);
        await_counter("queued_writes", (json_int_t)i + 1); /* first come, first served */
    }
    child_finish(&holder, LIMIT_MS);
    expect_end(&place, &holder, 0, NULL);
    for (size_t i = 0; i < array_count(waiters); i++) {
        child_wait(&waiters[i], LIMIT_MS);
        expect_end(&place, &waiters[i], 0, NULL);
        child_free(&waiters[i]);
    }
    char from[32];
    snprintf(from, sizeof from, "%llu", (unsigned long long)before + 2);
    walrus(&place, &child, "", "read", "t", "--from", from);
    expect_end(&place, &child, 0, NULL);
    expect_output(&place, &child, "waiter 0\nwaiter 1\nwaiter 2\n");
    child_free(&child);
    child_free(&holder);
}

Test(append, a_stream_waits_for_its_turn_too)
{
    struct child holder, waiter, child;
    size_t length = (size_t)3 << 20, first = (size_t)560 << 10; /* one chunk; it reads no further meanwhile */
    char *bytes = make_bytes(length);
    broker_start(&place, NULL);
    hold_topic(&holder, "t");
    uint64_t before = last_of("t");
    walrus_start(&place, &waiter, "append", "t", "--stream", "--queue");
    cr_assert(child_write(&waiter, bytes, first));
    await_counter("queued_writes", 1);
    child_finish(&holder, LIMIT_MS);
    expect_end(&place, &holder, 0, NULL);
    cr_assert(child_write(&waiter, bytes + first, length - first));
    child_finish(&waiter, LIMIT_MS);
    expect_end(&place, &waiter, 0, NULL);
    char from[32];
    snprintf(from, sizeof from, "%llu", (unsigned long long)before + 2);
    walrus(&place, &child, "", "read", "t", "--raw", "--from", from);
    expect(child.output.length == length && memcmp(child.output.data, bytes, length) == 0, &place, NULL,
           "%zu bytes came back", child.output.length);
    child_free(&child);
    child_free(&holder);
    child_free(&waiter);
    free(bytes);
}

Test(append, retry_ends_when_the_topic_is_free_when_its_time_is_over_or_after_its_tries)
{
    struct child holder, child, patient;
    broker_start(&place, NULL);
    hold_topic(&holder, "t");
    walrus(&place, &child, "x\n", "append", "t", "--retry=3");
    expect_end(&place, &child, 3, "0 lines are committed\n");
    child_free(&child);
    walrus(&place, &child, "x\n", "append", "t", "--retry=300ms");
    expect_end(&place, &child, 3, "0 lines are committed\n");
    child_free(&child);
    walrus(&place, &child, "x\n", "append", "t", "--retry=300ms", "--queue");
    expect_end(&place, &child, 3, "0 lines are committed\n");
    child_free(&child);
    uint64_t before = last_of("t");
    walrus_start(&place, &patient, "append", "t", "--retry=1h");
    cr_assert(child_write(&patient, "patient\n", 8));
    child_close_input(&patient);
    await_counter("waiting_refusals", 1);
    child_finish(&holder, LIMIT_MS);
    expect_end(&place, &holder, 0, NULL);
    child_wait(&patient, LIMIT_MS);
    expect_end(&place, &patient, 0, NULL);
    char from[32];
    snprintf(from, sizeof from, "%llu", (unsigned long long)before + 2);
    walrus(&place, &child, "", "read", "t", "--from", from);
    expect_output(&place, &child, "patient\n");
    child_free(&child);
    child_free(&patient);
    child_free(&holder);
}

Test(append, a_stream_from_a_file_is_sent_again_until_the_topic_is_free)
{
    struct child holder, patient, child;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/file", place.folder);
    size_t length = (size_t)3 << 20;
    char *bytes = make_bytes(length);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && write(fd, bytes, length) == (ssize_t)length && close(fd) == 0);
    broker_start(&place, NULL);
    hold_topic(&holder, "t");
    json_int_t busy = counter("busy");
    uint64_t before = last_of("t");
    walrus_start(&place, &patient, "append", "t", "--stream", "--retry", "--file", path);
    await_counter("busy", busy + 2);
    child_finish(&holder, LIMIT_MS);
    expect_end(&place, &holder, 0, NULL);
    child_wait(&patient, LIMIT_MS);
    expect_end(&place, &patient, 0, NULL);
    char from[32];
    snprintf(from, sizeof from, "%llu", (unsigned long long)before + 2);
    walrus(&place, &child, "", "read", "t", "--raw", "--from", from);
    expect(child.output.length == length && memcmp(child.output.data, bytes, length) == 0, &place, NULL,
           "%zu bytes came back", child.output.length);
    child_free(&child);
    child_free(&patient);
    child_free(&holder);
    free(bytes);
}

/* -------------------------------------------------------------------------------- one entry of any size */

Test(append, g2_a_stream_is_one_entry_of_exact_bytes_that_is_invisible_until_its_end)
{
    struct child child, reader;
    size_t length = ((size_t)20 << 20) + 7, half = length / 2;
    char *bytes = make_bytes(length);
    broker_start(&place, "--memory", "24M");
    walrus_start(&place, &child, "append", "t", "--stream");
    cr_assert(child_write(&child, bytes, half) && child_await_read(&child));
    walrus(&place, &reader, "", "read", "t");
    expect(reader.output.length == 0, &place, NULL, "half of a batch is visible");
    child_free(&reader);
    cr_assert(child_write(&child, bytes + half, length - half));
    child_finish(&child, LIMIT_MS);
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    broker_kill(&place);
    broker_start(&place, NULL);
    cr_assert(last_of("t") == 1);
    walrus(&place, &reader, "", "read", "t", "--raw");
    expect_end(&place, &reader, 0, NULL);
    expect(reader.output.length == length && memcmp(reader.output.data, bytes, length) == 0, &place, NULL,
           "%zu bytes came back", reader.output.length);
    child_free(&reader);
    free(bytes);
}

Test(append, small_and_empty_streams_are_entries_as_well)
{
    struct child child;
    broker_start(&place, NULL);
    static const char *const inputs[] = {"", "\n", "a\nb", "no newline"};
    for (size_t i = 0; i < array_count(inputs); i++) {
        walrus(&place, &child, inputs[i], "append", "t", "--stream");
        expect_end(&place, &child, 0, NULL);
        child_free(&child);
    }
    cr_assert(last_of("t") == array_count(inputs));
    walrus(&place, &child, "", "read", "t", "--raw");
    expect_end(&place, &child, 0, NULL);
    expect_output(&place, &child, "\na\nbno newline");
    child_free(&child);
    expect_topic("t", "\n\n\na\nb\nno newline\n");
}

/* Half a stream is sent, then this happens to its sender. */
static void half_a_stream(struct child *child)
{
    size_t length = (size_t)8 << 20;
    char *bytes = make_bytes(length);
    walrus_start(&place, child, "append", "t", "--stream");
    cr_assert(child_write(child, bytes, length) && child_await_read(child));
    free(bytes);
}

Test(append, g3_a_stream_whose_sender_is_killed_or_ended_leaves_no_trace_and_its_topic_free)
{
    static const int numbers[] = {SIGKILL, SIGINT, SIGTERM};
    broker_start(&place, NULL);
    for (size_t i = 0; i < array_count(numbers); i++) {
        struct child child;
        half_a_stream(&child);
        kill(child.pid, numbers[i]);
        child_wait(&child, LIMIT_MS);
        if (numbers[i] == SIGKILL)
            expect_end(&place, &child, 128 + SIGKILL, NULL);
        else
            expect_end(&place, &child, 1, "before the end of the input; nothing is committed\n");
        child_free(&child);
        expect_nothing("t");
    }
    struct child child;
    walrus(&place, &child, "after\n", "append", "t", "--queue");
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    expect_topic("t", "after\n");
}

Test(append, g3_a_stream_whose_broker_is_killed_leaves_no_trace)
{
    struct child child;
    broker_start(&place, NULL);
    half_a_stream(&child);
    broker_kill(&place);
    child_wait(&child, LIMIT_MS);
    expect_end(&place, &child, 1, "topic 't': ");
    child_free(&child);
    broker_start(&place, NULL);
    expect_nothing("t");
}

Test(append, a_stream_over_the_limit_of_a_batch_is_refused_and_one_of_exactly_the_limit_is_not)
{
    struct child child;
    size_t length = ((size_t)2 << 20) - 64; /* a batch counts 64 bytes for its entry */
    char *bytes = make_bytes(length + 1);
    broker_start(&place, "--max-batch", "2M");
    walrus_with(&place, &child, bytes, length + 1, list_of("append", "t", "--stream"));
    expect_end(&place, &child, 1, "nothing is committed\n");
    child_free(&child);
    expect_nothing("t");
    walrus_with(&place, &child, bytes, length, list_of("append", "t", "--stream"));
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    cr_assert(last_of("t") == 1);
    free(bytes);
}
