/* The demo: it passes on a sound broker, fails as soon as its checks see damage, and leaves nothing behind.
 * */
#include <criterion/criterion.h>
#include <dirent.h>
#include <signal.h>
#include <unistd.h>

#include "program.h"

#define DEMO_LIMIT_MS 240000

static struct place place;

static void make(void)
{
    place_make(&place);
}

static void clean(void)
{
    place_remove(&place);
}

TestSuite(demo, .init = make, .fini = clean, .timeout = 600);

static void demo_start(struct child *child, const char *const *more)
{
    const char *arguments[20] = {program_path("WALRUS_TEST_DEMO"), program_path("WALRUS_TEST_WALRUSD"),
                                 "--folder", place.folder};
    for (size_t i = 0; more[i] != NULL; i++)
        arguments[4 + i] = more[i];
    struct start start = {.arguments = arguments};
    child_start(child, &start);
}

static void expect_nothing_left(const struct child *child)
{
    DIR *directory = opendir(place.folder);
    cr_assert(directory != NULL);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        expect(entry->d_name[0] == '.', &place, child, "it left %s behind", entry->d_name);
    closedir(directory);
}

Test(demo, passes_and_leaves_nothing_behind)
{
    struct child child;
    demo_start(&child, list_of("--lines", "30000", "--kills", "2"));
    child_finish(&child, DEMO_LIMIT_MS);
    expect_end(&place, &child, 0, NULL);
    expect(strstr(child.output.data, "recovery after kill 2") != NULL &&
               strstr(child.output.data, "byte for byte") != NULL,
           &place, &child, "no table");
    expect_nothing_left(&child);
    child_free(&child);
}

Test(demo, fails_when_what_was_read_back_is_damaged)
{
    static const char *const modes[] = {"drop", "drop-renumbered", "tail",  "topic", "duplicate", "swap",
                                        "flip", "invent",          "ledger"};
    for (size_t i = 0; i < array_count(modes); i++) {
        struct child child;
        demo_start(&child, list_of("--lines", "3000", "--kills", "0", "--break", modes[i]));
        child_finish(&child, DEMO_LIMIT_MS);
        expect_end(&place, &child, 1, "walrus-demo: WRONG: topic demo/text-");
        expect(strstr(child.output.data, "byte for byte") == NULL, &place, &child,
               "--break %s: it says all is well", modes[i]);
        expect_nothing_left(&child);
        child_free(&child);
    }
}

Test(demo, leaves_nothing_behind_when_it_is_interrupted)
{
    struct child child;
    demo_start(&child, list_of("--lines", "400000", "--kills", "20"));
    expect(child_await(&child, &child.output, "Store: "), &place, &child, "it does not begin");
    kill(child.pid, SIGINT);
    child_wait(&child, LIMIT_MS);
    expect(child.code == 1, &place, &child, "exit code %d", child.code);
    expect(strstr(child.errors.data, "interrupted") != NULL, &place, &child, "it does not say so");
    expect_nothing_left(&child);
    child_free(&child);
}

Test(demo, says_what_is_wrong_when_there_is_no_broker_to_start)
{
    struct child child;
    struct start start = {.arguments = list_of(program_path("WALRUS_TEST_DEMO"), "/nowhere/walrusd",
                                               "--folder", place.folder, "--lines", "1000")};
    child_start(&child, &start);
    child_finish(&child, LIMIT_MS);
    expect_end(&place, &child, 1, "cannot start /nowhere/walrusd");
    expect_nothing_left(&child);
    child_free(&child);
}
