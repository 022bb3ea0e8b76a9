/* walrusd and walrus while something happens: followers, a broker that dies, stalls or stops under its
 * clients. */
#include <criterion/criterion.h>
#include <jansson.h>
#include <signal.h>
#include <unistd.h>

#include "program.h"

#define DEATH_LIMIT_MS 5000 /* promised: a client whose broker dies ends within 5 s */

static struct place place;

static void make(void)
{
    place_make(&place);
}

static void clean(void)
{
    place_remove(&place);
}

TestSuite(live, .init = make, .fini = clean, .timeout = 300);

static void expect_append(const char *topic, const char *input)
{
    struct child child;
    walrus(&place, &child, input, "append", topic);
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
}

/* -------------------------------------------------------------------------------- follow */

struct effort {
    uint64_t switches; /* voluntary: how often it went to sleep */
    uint64_t ticks;    /* of CPU */
};

static struct effort effort_of(pid_t pid)
{
    struct effort effort = {0};
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "re");
    cr_assert(file != NULL, "%s: %s", path, strerror(errno));
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "voluntary_ctxt_switches:\t", 25) == 0)
            cr_assert(number_behind(line, "\t", &effort.switches));
    }
    fclose(file);
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    file = fopen(path, "re");
    cr_assert(file != NULL && fgets(line, sizeof line, file) != NULL);
    fclose(file);
    char *field = strrchr(line, ')') + 2; /* field 3; CPU times are 14 and 15 */
    for (int i = 3; i < 14; i++)
        field = strchr(field, ' ') + 1;
    char *system;
    effort.ticks = strtoull(field, &system, 10);
    effort.ticks += strtoull(system, NULL, 10);
    return effort;
}

Test(live, a_follower_waits_for_its_topic_gets_what_is_written_later_and_costs_nothing_meanwhile)
{
    struct child follower;
    broker_start(&place, NULL);
    walrus_start(&place, &follower, "read", "news", "--follow");
    /* It is asleep when half a second passes without a switch; what follows it then costs is looked at over a
     * longer time. */
    int64_t limit = clock_ms() + LIMIT_MS;
    struct effort reader, broker;
    do {
        reader = effort_of(follower.pid);
        broker = effort_of(place.broker.pid);
        pause_ms(500);
    } while ((effort_of(follower.pid).switches != reader.switches ||
              effort_of(place.broker.pid).switches > broker.switches + 2) &&
             clock_ms() < limit);
    reader = effort_of(follower.pid);
    broker = effort_of(place.broker.pid);
    pause_ms(2000);
    struct effort reader_later = effort_of(follower.pid), broker_later = effort_of(place.broker.pid);
    expect(reader_later.switches == reader.switches && reader_later.ticks == reader.ticks, &place, &follower,
           "the follower woke up %llu times in 2 s",
           (unsigned long long)(reader_later.switches - reader.switches));
    expect(broker_later.switches <= broker.switches + 4 && broker_later.ticks <= broker.ticks + 1, &place,
           &follower, "the broker woke up %llu times in 2 s",
           (unsigned long long)(broker_later.switches - broker.switches));

    expect_append("news", "first\nsecond\n");
    expect(child_await(&follower, &follower.output, "first\nsecond\n"), &place, &follower, "nothing came");
    expect_append("news", "third\n");
    expect(child_await(&follower, &follower.output, "first\nsecond\nthird\n"), &place, &follower,
           "nothing more came");
    kill(follower.pid, SIGTERM);
    child_finish(&follower, LIMIT_MS);
    expect_end(&place, &follower, 128 + SIGTERM, NULL);
    child_free(&follower);
}

Test(live, a_follower_ends_after_as_many_entries_as_were_wanted)
{
    struct child follower;
    broker_start(&place, NULL);
    expect_append("t", "1\n");
    walrus_start(&place, &follower, "read", "t", "--follow", "--max", "3");
    expect(child_await(&follower, &follower.output, "1\n"), &place, &follower, "nothing came");
    expect_append("t", "2\n3\n4\n");
    child_wait(&follower, LIMIT_MS);
    expect_end(&place, &follower, 0, NULL);
    expect_output(&place, &follower, "1\n2\n3\n");
    child_free(&follower);
}

Test(live, a_follower_ends_when_nobody_reads_it_any_more)
{
    struct child follower;
    broker_start(&place, NULL);
    expect_append("t", "1\n");
    walrus_start(&place, &follower, "read", "t", "--follow");
    expect(child_await(&follower, &follower.output, "1\n"), &place, &follower, "nothing came");
    close(follower.out);
    follower.out = -1;
    child_wait(&follower, LIMIT_MS);
    expect_end(&place, &follower, 0, NULL);
    child_free(&follower);
}

Test(live, a_follower_whose_broker_is_killed_ends_within_5_s)
{
    struct child follower;
    broker_start(&place, NULL);
    expect_append("t", "1\n");
    walrus_start(&place, &follower, "read", "t", "--follow");
    expect(child_await(&follower, &follower.output, "1\n"), &place, &follower, "nothing came");
    broker_kill(&place);
    child_wait(&follower, DEATH_LIMIT_MS);
    expect_end(&place, &follower, 1, "walrus read: topic 't'");
    child_free(&follower);
}

/* -------------------------------------------------------------------------------- signals */

static bool signal_is_caught(pid_t pid, int number)
{
    char path[64], line[256];
    unsigned long long caught = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "re");
    cr_assert(file != NULL, "%s: %s", path, strerror(errno));
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "SigCgt:", 7) == 0)
            caught = strtoull(line + 7, NULL, 16);
    }
    fclose(file);
    return (caught >> (number - 1) & 1) != 0;
}

/* -------------------------------------------------------------------------------- death */

Test(live, an_idle_append_whose_broker_is_killed_ends_within_5_s)
{
    struct child child, reader;
    broker_start(&place, NULL);
    walrus_start(&place, &child, "append", "t");
    cr_assert(child_write(&child, "1\n2\n3\n", 6));
    walrus_start(&place, &reader, "read", "t", "--follow", "--max", "3");
    child_wait(&reader, LIMIT_MS);
    expect_end(&place, &reader, 0, NULL);
    child_free(&reader);
    broker_kill(&place);
    child_wait(&child, DEATH_LIMIT_MS);
    expect_end(&place, &child, 1, "3 lines are committed\n");
    child_free(&child);
}

Test(live, g5_a_busy_append_whose_broker_is_killed_ends_within_5_s_and_knows_what_is_committed)
{
    struct child child, reader;
    char block[64 * 100];
    uint64_t committed = 0, unknown = 0, next = 0;
    broker_start(&place, NULL);
    walrus_start(&place, &child, "append", "t", "--batch", "10");
    for (; next < 10; next++)
        cr_assert(child_write(&child, (char[]){(char)('0' + next), '\n'}, 2));
    walrus_start(&place, &reader, "read", "t", "--follow", "--max", "10"); /* it is connected then */
    child_wait(&reader, LIMIT_MS);
    expect_end(&place, &reader, 0, NULL);
    child_free(&reader);
    bool killed = false;
    for (int round = 0; round < 100000; round++) {
        size_t length = 0;
        for (int i = 0; i < 100; i++)
            length += (size_t)snprintf(block + length, 22, "%llu\n", (unsigned long long)next++);
        if (!child_write(&child, block, length))
            break;
        if (round == 50) {
            broker_kill(&place);
            killed = true;
        }
    }
    child_wait(&child, DEATH_LIMIT_MS);
    cr_assert(killed);
    expect_end(&place, &child, 1, "committed");
    expect(number_behind(child.errors.data, "; ", &committed), &place, &child, "how many lines?");
    (void)number_behind(child.errors.data, "committed, ", &unknown);
    cr_expect(unknown == 0 || unknown == 10, "one batch in flight: %llu", (unsigned long long)unknown);

    broker_start(&place, NULL);
    walrus(&place, &reader, "", "read", "t");
    expect_end(&place, &reader, 0, NULL);
    unsigned long long entries = 0;
    for (const char *line = reader.output.data; *line != '\0'; line = strchr(line, '\n') + 1)
        expect(strtoull(line, NULL, 10) == entries++, &place, NULL, "entry %llu is not line %llu", entries,
               entries - 1);
    expect(entries == committed || entries == committed + unknown, &place, &child, "%llu entries are there",
           entries);
    child_free(&reader);
    child_free(&child);
}

Test(live, a_broker_that_is_stopped_under_an_append_commits_what_it_took)
{
    struct child child;
    broker_start(&place, NULL);
    walrus_start(&place, &child, "append", "t");
    struct child reader;
    cr_assert(child_write(&child, "1\n", 2));
    walrus_start(&place, &reader, "read", "t", "--follow", "--max", "1");
    child_wait(&reader, LIMIT_MS);
    child_free(&reader);
    cr_assert(broker_stop(&place) == 0, "exit code of a stop");
    child_wait(&child, DEATH_LIMIT_MS);
    expect_end(&place, &child, 1, "1 line is committed\n");
    child_free(&child);
}

Test(live, an_append_waits_for_a_stalled_broker_and_goes_on_with_it)
{
    struct child child;
    broker_start(&place, NULL);
    walrus_start(&place, &child, "append", "t");
    cr_assert(child_write(&child, "1\n", 2));
    struct child reader;
    walrus_start(&place, &reader, "read", "t", "--follow", "--max", "2");
    expect(child_await(&reader, &reader.output, "1\n"), &place, &reader, "nothing came");
    kill(place.broker.pid, SIGSTOP);
    cr_assert(child_write(&child, "2\n", 2));
    child_close_input(&child);
    pause_ms(300); /* time in which it could do wrong */
    kill(place.broker.pid, SIGCONT);
    child_wait(&child, LIMIT_MS);
    expect_end(&place, &child, 0, NULL);
    child_wait(&reader, LIMIT_MS);
    expect_output(&place, &reader, "1\n2\n");
    child_free(&reader);
    child_free(&child);
}

Test(live, an_append_that_waits_for_the_broker_is_ended_by_the_second_signal)
{
    struct child child, reader;
    broker_start(&place, NULL);
    walrus_start(&place, &child, "append", "t", "--linger", "0");
    cr_assert(child_write(&child, "1\n", 2));
    walrus_start(&place, &reader, "read", "t", "--follow", "--max", "1");
    child_wait(&reader, LIMIT_MS);
    child_free(&reader);
    kill(place.broker.pid, SIGSTOP);
    cr_assert(child_write(&child, "2\n", 2) && child_await_read(&child));
    kill(child.pid, SIGINT);
    int64_t limit = clock_ms() + LIMIT_MS;
    while (signal_is_caught(child.pid, SIGINT) && clock_ms() < limit)
        pause_ms(1); /* the first one is taken when the handler is gone */
    kill(child.pid, SIGINT);
    child_wait(&child, LIMIT_MS);
    kill(place.broker.pid, SIGCONT);
    expect_end(&place, &child, 128 + SIGINT, NULL);
    child_free(&child);
}

/* -------------------------------------------------------------------------------- a busy topic */

Test(live, an_append_to_a_topic_with_a_batch_in_progress_exits_3_and_other_topics_go_on)
{
    struct child large, other;
    size_t length = (size_t)64 << 10;
    char *line = malloc(length);
    cr_assert(line != NULL);
    memset(line, 'l', length);
    line[length - 1] = '\n';
    broker_start(&place, NULL);
    /* One batch, larger than the client's arena: on its way in chunks, and not at its end. */
    walrus_start(&place, &large, "append", "t", "--batch", "2000", "--linger", "20000");
    for (int i = 0; i < 100; i++)
        cr_assert(child_write(&large, line, length));
    int64_t limit = clock_ms() + LIMIT_MS;
    int code;
    do { /* until its first chunk is admitted, others are */
        walrus(&place, &other, "small\n", "append", "t");
        code = other.code;
        if (code != 3)
            child_free(&other);
    } while (code == 0 && clock_ms() < limit);
    cr_assert(code == 3, "exit code %d", code);
    expect_end(&place, &other, 3, "0 lines are committed\n");
    child_free(&other);
    expect_append("u", "goes on\n");
    child_finish(&large, LIMIT_MS);
    expect_end(&place, &large, 0, NULL);
    expect_append("t", "again\n");
    child_free(&large);
    free(line);
}

/* -------------------------------------------------------------------------------- stat */

static json_t *stat_json(void)
{
    struct child child;
    walrus(&place, &child, "", "stat", "--json");
    expect_end(&place, &child, 0, NULL);
    json_t *object = json_loads(child.output.data, JSON_REJECT_DUPLICATES, NULL);
    expect(object != NULL, &place, &child, "not JSON");
    child_free(&child);
    return object;
}

static void expect_state(const char *wanted)
{
    json_t *object = stat_json();
    const char *state = json_string_value(json_object_get(object, "state"));
    expect(state != NULL && strcmp(state, wanted) == 0, &place, NULL, "state %s, not %s",
           state != NULL ? state : "none", wanted);
    expect(json_integer_value(json_object_get(object, "pid")) == place.broker.pid, &place, NULL, "pid");
    json_decref(object);
}

Test(live, stat_shows_counters_of_a_broker_that_serves_is_stopped_or_dead)
{
    struct child child;
    broker_start(&place, NULL);
    expect_append("t", "1\n2\n3\n");
    expect_state("serving");
    int64_t limit = clock_ms() + LIMIT_MS;
    json_int_t entries;
    do { /* the page is written now and then */
        json_t *object = stat_json();
        entries = json_integer_value(json_object_get(json_object_get(object, "log"), "entries"));
        json_decref(object);
        pause_ms(5);
    } while (entries != 3 && clock_ms() < limit);
    cr_expect(entries == 3, "entries: %lld", (long long)entries);

    kill(place.broker.pid, SIGSTOP);
    limit = clock_ms() + LIMIT_MS;
    for (bool stopped = false; !stopped && clock_ms() < limit;) {
        char path[64], line[512];
        snprintf(path, sizeof path, "/proc/%d/stat", (int)place.broker.pid);
        FILE *file = fopen(path, "re");
        stopped = file != NULL && fgets(line, sizeof line, file) != NULL && strstr(line, ") T ") != NULL;
        if (file != NULL)
            fclose(file);
    }
    expect_state("stopped");
    walrus(&place, &child, "", "stat");
    expect_end(&place, &child, 0, NULL);
    expect(strstr(child.output.data, "stopped by a signal") != NULL &&
               strstr(child.output.data, "log_entries") != NULL,
           &place, &child, "what stat says");
    child_free(&child);
    kill(place.broker.pid, SIGCONT);
    pid_t pid = place.broker.pid;
    broker_kill(&place);
    place.broker.pid = pid;
    expect_state("dead");
    place.broker.pid = pid;
}

Test(live, stat_without_a_broker_says_so)
{
    struct child child;
    walrus(&place, &child, "", "stat");
    expect_end(&place, &child, 1, place.socket);
    child_free(&child);
}

Test(live, stat_refuses_a_file_that_is_not_a_counters_file)
{
    struct child child;
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s.stat", place.socket);
    FILE *file = fopen(path, "w");
    cr_assert(file != NULL);
    for (int i = 0; i < 20000; i++)
        fputc('x', file);
    fclose(file);
    walrus(&place, &child, "", "stat");
    expect_end(&place, &child, 1, "is not a counters file");
    child_free(&child);
    cr_assert(truncate(path, 100) == 0);
    walrus(&place, &child, "", "stat", "--json");
    expect_end(&place, &child, 1, "is not a counters file");
    child_free(&child);
}
