/* The three ways to the disk, and a kernel that has no io_uring for us. */
#include <criterion/criterion.h>
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

TestSuite(backends, .init = make, .fini = clean, .timeout = 300);

static void expect_append(const char *topic, const char *input)
{
    struct child child;
    walrus(&place, &child, input, "append", topic);
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
}

static void expect_topic(const char *topic, const char *wanted)
{
    struct child child;
    walrus(&place, &child, "", "read", topic);
    expect_end(&place, &child, 0, NULL);
    expect_output(&place, &child, wanted);
    child_free(&child);
}

/* false: no io_uring on this machine. */
static bool smoke(const char *backend)
{
    if (strcmp(backend, "uring") == 0) {
        struct child child;
        struct start start = {.arguments = list_of(program_path("WALRUS_TEST_WALRUSD"), "--data-dir",
                                                   place.store, "--socket", place.socket, "--io", backend)};
        child_start(&child, &start);
        bool ready = child_await(&child, &child.output, "walrusd: ready on ");
        bool refused = !ready && strstr(child.errors.data, "io_uring") != NULL;
        expect(ready || refused, &place, &child, "neither ready nor refused");
        kill(child.pid, SIGTERM);
        child_finish(&child, LIMIT_MS);
        child_free(&child);
        if (refused)
            return false;
    }
    broker_start(&place, "--io", backend);
    expect_append("t", "a\nb\n\nd\n");
    expect_topic("t", "a\nb\n\nd\n");
    broker_kill(&place);
    broker_start(&place, "--io", backend);
    expect_append("t", "e\n");
    expect_topic("t", "a\nb\n\nd\ne\n");
    cr_assert(broker_stop(&place) == 0, "exit code of a stop");
    broker_start(&place, "--io", backend);
    expect_topic("t", "a\nb\n\nd\ne\n");
    return true;
}

Test(backends, uring_commits_and_recovers)
{
    if (!smoke("uring"))
        skip(&place, "this machine has no io_uring for us");
}

Test(backends, pwrite_commits_and_recovers)
{
    cr_assert(smoke("pwrite"));
}

Test(backends, mmap_commits_and_recovers)
{
    cr_assert(smoke("mmap"));
}

Test(backends, a_store_may_be_served_by_one_back_end_after_the_other)
{
    static const char *const order[] = {"pwrite", "mmap", "auto", "mmap", "pwrite"};
    char wanted[64] = "";
    for (size_t i = 0; i < array_count(order); i++) {
        char line[16];
        snprintf(line, sizeof line, "%zu\n", i);
        snprintf(wanted + strlen(wanted), sizeof wanted - strlen(wanted), "%s", line);
        broker_start(&place, "--io", order[i]);
        expect_append("t", line);
        expect_topic("t", wanted);
        broker_kill(&place);
    }
}

Test(backends, every_durability_serves_and_a_clean_stop_keeps_everything)
{
    static const char *const levels[] = {"sync", "interval:20", "none"};
    static const char *const words[] = {"sync", "interval", "none"};
    struct child child;
    for (size_t i = 0; i < array_count(levels); i++) {
        broker_start(&place, "--durability", levels[i]);
        expect_append(words[i], "a\nb\n");
        walrus(&place, &child, "", "read", words[i], "--follow", "--max", "2"); /* none: not yet written */
        expect_end(&place, &child, 0, NULL);
        expect_output(&place, &child, "a\nb\n");
        child_free(&child);
        cr_assert(broker_stop(&place) == 0, "exit code of a stop");
    }
    broker_start(&place, NULL);
    for (size_t i = 0; i < array_count(levels); i++)
        expect_topic(words[i], "a\nb\n");
    walrus(&place, &child, "", "topics", "--json");
    expect_end(&place, &child, 0, NULL);
    for (size_t i = 0; i < array_count(levels); i++) {
        char wanted[200];
        snprintf(wanted, sizeof wanted,
                 "{\"topic\":\"%s\",\"id\":%zu,\"last_sequence\":2,\"durable_sequence\":2,\"durability\":\"%"
                 "s\"}\n",
                 words[i], i + 1, words[i]);
        expect(strstr(child.output.data, wanted) != NULL, &place, &child, "lacks %s", wanted);
    }
    child_free(&child);
}

/* Starts walrusd where every io_uring call is refused. */
static void start_without_uring(struct child *child, const char *io)
{
    struct start start = {.arguments = list_of(program_path("WALRUS_TEST_NO_URING"),
                                               program_path("WALRUS_TEST_WALRUSD"), "--data-dir", place.store,
                                               "--socket", place.socket, "--io", io)};
    child_start(child, &start);
    (void)child_await(child, &child->output, "walrusd: ready on ");
    if (child->out < 0 && child_finish(child, LIMIT_MS) == 125) {
        child_free(child);
        skip(&place, "no seccomp filter here");
    }
}

Test(backends, without_io_uring_the_broker_warns_and_works)
{
    struct child broker;
    start_without_uring(&broker, "auto");
    expect(strstr(broker.output.data, "walrusd: ready on ") != NULL, &place, &broker, "not ready");
    expect(child_await(&broker, &broker.errors, "io_uring"), &place, &broker, "no warning");
    expect_append("t", "a\nb\n");
    expect_topic("t", "a\nb\n");
    kill(broker.pid, SIGTERM);
    child_finish(&broker, LIMIT_MS);
    expect(broker.code == 0, &place, &broker, "exit code %d", broker.code);
    child_free(&broker);
}

Test(backends, io_uring_wanted_by_name_and_refused_is_a_clear_error)
{
    struct child broker;
    start_without_uring(&broker, "uring");
    child_finish(&broker, LIMIT_MS);
    expect_end(&place, &broker, 1, "io_uring");
    child_free(&broker);
}
