/* `walrus check` on stores that are sound, cut, flipped, swapped or copied; and that it changes nothing. What
 * it finds, a start must refuse as well. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

#define LINES      12000u /* of LINE_BYTES: several segments of the smallest size */
#define LINE_BYTES 1000u

static struct place place;

static void make(void)
{
    place_make(&place);
}

static void clean(void)
{
    place_remove(&place);
}

TestSuite(check, .init = make, .fini = clean, .timeout = 300);

/* -------------------------------------------------------------------------------- stores */

/* A store of several segments whose topic "sea" has lines "needle NUMBER xxxxx". */
static void fill_store(bool clean_stop)
{
    struct child child;
    char *input = malloc((size_t)LINES * LINE_BYTES);
    cr_assert(input != NULL);
    for (size_t i = 0; i < LINES; i++) {
        char *line = input + i * LINE_BYTES;
        memset(line, 'x', LINE_BYTES);
        line[snprintf(line, LINE_BYTES, "needle %zu ", i)] = ' ';
        line[LINE_BYTES - 1] = '\n';
    }
    broker_start(&place, "--segment", "4325376");
    walrus_with(&place, &child, input, (size_t)LINES * LINE_BYTES,
                list_of("append", "sea", "--batch", "100"));
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    free(input);
    if (clean_stop)
        cr_assert(broker_stop(&place) == 0, "exit code of a stop");
    else
        broker_kill(&place);
}

struct spot {
    char path[PATH_MAX + 300];
    off_t offset;
    off_t size;
};

/* Where line `number` lies in the store: in which file, and that there is exactly one such place. */
static struct spot find_line(unsigned number)
{
    struct spot spot = {.path = ""};
    char needle[64];
    unsigned found = 0;
    snprintf(needle, sizeof needle, "needle %u ", number);
    DIR *directory = opendir(place.store);
    cr_assert(directory != NULL);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        struct stat st;
        char path[PATH_MAX + 300];
        snprintf(path, sizeof path, "%s/%s", place.store, entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size == 0) {
            if (fd >= 0)
                close(fd);
            continue;
        }
        void *mapped = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        close(fd);
        const char *data = mapped;
        cr_assert(mapped != MAP_FAILED);
        const char *at = memmem(data, (size_t)st.st_size, needle, strlen(needle));
        if (at != NULL) {
            found++;
            memcpy(spot.path, path, sizeof path);
            spot.offset = at - data;
            spot.size = st.st_size;
        }
        munmap(mapped, (size_t)st.st_size);
    }
    closedir(directory);
    cr_assert(found == 1, "line %u is in %u files", number, found);
    return spot;
}

static void flip(const struct spot *spot, off_t offset, unsigned char mask)
{
    unsigned char byte;
    int fd = open(spot->path, O_RDWR | O_CLOEXEC);
    cr_assert(fd >= 0 && pread(fd, &byte, 1, offset) == 1);
    byte ^= mask;
    cr_assert(pwrite(fd, &byte, 1, offset) == 1);
    close(fd);
}

/* Names, sizes, times and contents of everything in the store, in one number. */
static uint64_t fingerprint(void)
{
    uint64_t sum = 0;
    DIR *directory = opendir(place.store);
    cr_assert(directory != NULL);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        char path[PATH_MAX + 300];
        struct stat st;
        static unsigned char buffer[1 << 16];
        uint64_t hash = UINT64_C(14695981039346656037);
        snprintf(path, sizeof path, "%s/%s", place.store, entry->d_name);
        cr_assert(lstat(path, &st) == 0);
        for (const char *c = entry->d_name; *c != '\0'; c++)
            hash = (hash ^ (unsigned char)*c) * UINT64_C(1099511628211);
        hash = (hash ^ (uint64_t)st.st_mtim.tv_nsec ^ (uint64_t)st.st_size) * UINT64_C(1099511628211);
        int fd = S_ISREG(st.st_mode) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        for (ssize_t got; fd >= 0 && (got = read(fd, buffer, sizeof buffer)) > 0;) {
            for (ssize_t i = 0; i < got; i++)
                hash = (hash ^ buffer[i]) * UINT64_C(1099511628211);
        }
        if (fd >= 0)
            close(fd);
        sum += hash; /* in whatever order the folder is listed */
    }
    closedir(directory);
    return sum;
}

static void check(struct child *child, const char *more)
{
    const char *arguments[] = {program_path("WALRUS_TEST_WALRUS"), "check", place.store, more, NULL};
    struct start start = {.arguments = arguments};
    uint64_t before = fingerprint();
    child_start(child, &start);
    child_finish(child, LIMIT_MS);
    expect(fingerprint() == before, &place, child, "check changed the store");
}

static void expect_damage(const char *first, const char *second)
{
    struct child child;
    check(&child, NULL);
    expect(child.code == 1, &place, &child, "exit code %d", child.code);
    expect(strstr(child.output.data, "damage: ") != NULL, &place, &child, "no damage was found");
    expect(strstr(child.output.data, first) != NULL && strstr(child.output.data, second) != NULL, &place,
           &child, "stdout lacks \"%s\" or \"%s\"", first, second);
    expect(strstr(child.errors.data, "damaged in ") != NULL, &place, &child, "no words on stderr");
    child_free(&child);
}

/* A start on the damaged store is refused with the place, or readers of the damaged part get an error behind
 * entries that are all right: never wrong data, never a hole (G27). */
static void expect_no_wrong_data(void)
{
    struct child broker, reader;
    struct start start = {.arguments = list_of(program_path("WALRUS_TEST_WALRUSD"), "--data-dir", place.store,
                                               "--socket", place.socket, "--segment", "4325376")};
    child_start(&broker, &start);
    if (child_await(&broker, &broker.output, "walrusd: ready on ")) {
        walrus(&place, &reader, "", "read", "sea");
        expect_end(&place, &reader, 1, "sea");
        uint64_t next = 0, number;
        for (size_t at = 0; at < reader.output.length; at += LINE_BYTES, next++)
            expect(number_behind(reader.output.data + at, "needle ", &number) && number == next, &place,
                   &broker, "line %llu is wrong", (unsigned long long)next);
        expect(next < LINES && reader.output.length % LINE_BYTES == 0, &place, &broker,
               "it read over the damage");
        child_free(&reader);
    } else {
        child_finish(&broker, LIMIT_MS);
        expect_end(&place, &broker, 1, "segment");
    }
    child_free(&broker);
}

/* -------------------------------------------------------------------------------- sound ones */

static void expect_sound(void)
{
    struct child child;
    check(&child, NULL);
    expect_end(&place, &child, 0, NULL);
    expect(strstr(child.output.data, " 12000 entries") != NULL &&
               strstr(child.output.data, "; 0 damaged") != NULL,
           &place, &child, "the numbers");
    child_free(&child);
    check(&child, "--json");
    expect_end(&place, &child, 0, NULL);
    json_t *object = json_loads(child.output.data, JSON_REJECT_DUPLICATES, NULL);
    expect(object != NULL && json_is_true(json_object_get(object, "sound")) &&
               json_integer_value(json_object_get(object, "entries")) == 12000 &&
               json_is_array(json_object_get(object, "findings")),
           &place, &child, "the JSON");
    json_decref(object);
    child_free(&child);
}

Test(check, a_store_that_was_stopped_cleanly_is_sound)
{
    fill_store(true);
    expect_sound();
}

Test(check, a_store_whose_broker_was_killed_is_sound)
{
    fill_store(false);
    expect_sound();
}

Test(check, a_read_only_store_can_be_checked)
{
    if (geteuid() != 0)
        skip(&place, "needs root: it mounts the store read-only");
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        skip(&place, "no mount namespace here: %s", strerror(errno));
    fill_store(true);
    cr_assert(mount(place.store, place.store, NULL, MS_BIND, NULL) == 0);
    cr_assert(mount("none", place.store, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) == 0);
    expect_sound();
}

/* -------------------------------------------------------------------------------- damaged ones */

Test(check, g13_a_flipped_bit_in_an_entry_is_found_with_its_place)
{
    fill_store(true);
    struct spot spot = find_line(5000);
    flip(&spot, spot.offset + 20, 0x10);
    expect_damage("segment ", "topic 'sea'");
    struct child child;
    check(&child, "--json");
    json_t *object = json_loads(child.output.data, 0, NULL);
    json_t *finding = json_array_get(json_object_get(object, "findings"), 0);
    const char *topic = json_string_value(json_object_get(finding, "topic"));
    json_int_t sequence = json_integer_value(json_object_get(finding, "sequence"));
    expect(json_is_false(json_object_get(object, "sound")) && topic != NULL && strcmp(topic, "sea") == 0 &&
               sequence <= 5001 && sequence > 5001 - 2000,
           &place, &child, "the JSON");
    json_decref(object);
    child_free(&child);
}

Test(check, g27_a_flipped_bit_in_an_entry_is_an_error_for_its_reader_and_never_wrong_data)
{
    fill_store(true);
    struct spot spot = find_line(5000);
    flip(&spot, spot.offset + 20, 0x10);
    expect_no_wrong_data();
}

Test(check, g13_a_flipped_bit_in_a_header_is_found)
{
    fill_store(true);
    struct spot spot = find_line(5000);
    flip(&spot, 8, 0x01);
    expect_damage("damage: ", "");
    expect_no_wrong_data();
}

Test(check, g13_a_segment_that_was_cut_short_is_found)
{
    fill_store(true);
    struct spot spot = find_line(5000);
    cr_assert(truncate(spot.path, spot.offset & ~(off_t)4095) == 0);
    expect_damage("segment ", "");
    expect_no_wrong_data();
}

Test(check, g18_segments_that_changed_places_are_found)
{
    fill_store(true);
    struct spot one = find_line(1), other = find_line(7000);
    char aside[PATH_MAX + 300];
    expect(strcmp(one.path, other.path) != 0, &place, NULL, "both lines are in %s", one.path);
    snprintf(aside, sizeof aside, "%s/aside", place.folder);
    cr_assert(rename(one.path, aside) == 0 && rename(other.path, one.path) == 0 &&
              rename(aside, other.path) == 0);
    expect_damage("damage: ", "");
    expect_no_wrong_data();
}

Test(check, g15_a_segment_copied_over_another_is_found)
{
    fill_store(true);
    struct spot one = find_line(1), other = find_line(7000);
    struct child copy;
    struct start start = {.arguments = list_of("/bin/cp", one.path, other.path)};
    child_start(&copy, &start);
    cr_assert(child_finish(&copy, LIMIT_MS) == 0);
    child_free(&copy);
    expect_damage("damage: ", "");
    expect_no_wrong_data();
}

Test(check, a_missing_segment_is_found)
{
    fill_store(true);
    struct spot spot = find_line(5000);
    cr_assert(unlink(spot.path) == 0);
    expect_damage("damage: ", "");
    expect_no_wrong_data();
}

/* -------------------------------------------------------------------------------- no stores */

Test(check, what_is_not_a_store_is_said_to_be_none)
{
    struct child child;
    const char *paths[] = {"/nowhere/at/all", place.folder, "/dev/null"};
    for (size_t i = 0; i < array_count(paths); i++) {
        struct start start = {.arguments = list_of(program_path("WALRUS_TEST_WALRUS"), "check", paths[i])};
        child_start(&child, &start);
        child_finish(&child, LIMIT_MS);
        expect_end(&place, &child, 1, paths[i]);
        child_free(&child);
    }
}

Test(check, a_store_in_use_is_not_checked)
{
    struct child child;
    broker_start(&place, NULL);
    struct start start = {.arguments = list_of(program_path("WALRUS_TEST_WALRUS"), "check", place.store)};
    child_start(&child, &start);
    child_finish(&child, LIMIT_MS);
    expect_end(&place, &child, 1, "a broker is using it");
    child_free(&child);
}

Test(check, wrong_usage_exits_2)
{
    struct child child;
    static const char *const wrong[][2] = {{NULL, NULL}, {"a", "b"}, {"", NULL}, {"--wrong", NULL}};
    for (size_t i = 0; i < array_count(wrong); i++) {
        struct start start = {
            .arguments = list_of(program_path("WALRUS_TEST_WALRUS"), "check", wrong[i][0], wrong[i][1])};
        child_start(&child, &start);
        child_finish(&child, LIMIT_MS);
        expect(child.code == 2 && child.errors.length > 0, &place, &child, "exit code %d", child.code);
        child_free(&child);
    }
}
