/* test_torture.c: `walrus torture` as a user types it. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <jansson.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

static struct place place;
static char folder[PATH_MAX + 16];

static void setup(void)
{
    place_make(&place);
    snprintf(folder, sizeof folder, "%s/tried", place.folder);
}

static void teardown(void)
{
    place_remove(&place);
}

TestSuite(torture, .init = setup, .fini = teardown);

static void torture_with(struct child *child, const char *const *arguments)
{
    walrus_with(&place, child, "", 0, arguments);
}
#define torture(child, ...) torture_with(child, list_of("torture", __VA_ARGS__))

static uint64_t count_of(const struct child *child, const char *words)
{
    /* "12 crash images": the number before the words. */
    const char *at = strstr(child->output.data, words);
    expect(at != NULL, &place, child, "stdout lacks \"%s\"", words);
    while (at > child->output.data && (at[-1] == ' ' || (at[-1] >= '0' && at[-1] <= '9')))
        at--;
    return strtoull(at, NULL, 10);
}

Test(torture, g1_a_sound_file_system_passes_and_nothing_is_left_behind)
{
    struct child child;
    torture(&child, folder, "--seconds", "2", "--seed", "11", "--segment", "5M");
    expect(child.code == 0, &place, &child, "exit code %d", child.code);
    expect(strstr(child.output.data, "nothing acknowledged was lost, nothing failed came back") != NULL,
           &place, &child, "no verdict");
    expect(count_of(&child, "crash images") > 20 && count_of(&child, "kills,") >= 10 &&
               count_of(&child, "simulated runs") > 0 && count_of(&child, "batches,") > 100,
           &place, &child, "it has hardly tried anything");
    cr_assert(access(folder, F_OK) != 0 && errno == ENOENT, "the folder that it made is still there");
    child_free(&child);
}

Test(torture, g1_a_flush_that_is_swallowed_is_found_and_the_crash_image_kept)
{
    struct child child;
    char kept[PATH_MAX + 64];
    torture(&child, folder, "--seconds", "20", "--seed", "12", "--phase", "recorder", "--lying-flush");
    expect(child.code == 1 && strstr(child.output.data, "BROKEN: ") != NULL, &place, &child, "exit code %d",
           child.code);
    expect(strstr(child.output.data, "nothing acknowledged was lost") == NULL, &place, &child,
           "and a good verdict");
    snprintf(kept, sizeof kept, "%s/broken-crash-image/walrus.store", folder);
    cr_assert(access(kept, F_OK) == 0, "no crash image is kept");
    child_free(&child);
}

Test(torture, options_of_walrusd_are_taken_and_the_result_is_one_object)
{
    struct child child;
    torture(&child, folder, "--seconds", "1", "--json", "--durability", "interval:50", "--io", "pwrite",
            "--segment", "5M", "--memory", "32M", "--commit-align", "8K");
    expect(child.code == 0, &place, &child, "exit code %d", child.code);
    json_error_t error;
    json_t *result = json_loads(child.output.data, 0, &error);
    expect(result != NULL, &place, &child, "not JSON: %s", error.text);
    cr_assert(json_is_true(json_object_get(result, "good")));
    cr_assert_str_eq(json_string_value(json_object_get(json_object_get(result, "folder"), "backend")),
                     "pwrite");
    cr_assert_gt(json_integer_value(json_object_get(result, "crash_images")), 0);
    cr_assert_gt(json_integer_value(json_object_get(result, "kills")), 0);
    json_decref(result);
    child_free(&child);
}

Test(torture, nothing_that_holds_a_store_or_anything_else_is_touched)
{
    struct child child;
    char file[PATH_MAX + 64];
    broker_start_with(&place, NULL);
    cr_assert(broker_stop(&place) == 0);
    torture(&child, place.store, "--seconds", "1");
    expect_end(&place, &child, 2, "holds a store");
    child_free(&child);
    snprintf(file, sizeof file, "%s/walrus.store", place.store);
    cr_assert(access(file, F_OK) == 0);
    cr_assert(mkdir(folder, 0700) == 0);
    snprintf(file, sizeof file, "%s/letter.txt", folder);
    int fd = open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    cr_assert(fd >= 0);
    close(fd);
    torture(&child, folder, "--seconds", "1");
    expect_end(&place, &child, 2, "is not empty");
    cr_assert(access(file, F_OK) == 0);
    child_free(&child);
}

Test(torture, wrong_usage_is_told)
{
    struct child child;
    torture(&child, "--seconds", "1");
    expect_end(&place, &child, 2, "which folder?");
    child_free(&child);
    torture(&child, folder, "--durability", "sometimes");
    expect_end(&place, &child, 2, "is not sync, interval:MS");
    child_free(&child);
    torture(&child, folder, "--commit-align", "512", "--io", "mmap");
    expect_end(&place, &child, 1, "--commit-align 512: it must be");
    child_free(&child);
    torture(&child, folder, "--phase", "magic");
    expect_end(&place, &child, 2, "recorder, simulator or kills");
    child_free(&child);
    torture(&child, folder, "--no-such-option");
    cr_assert(child.code == 2);
    child_free(&child);
    cr_assert(access(folder, F_OK) != 0, "wrong usage makes no folder");
}
