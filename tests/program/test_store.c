/* walrusd and walrus together: what was appended is read, also after the broker was killed; what a broker
 * must refuse to start on. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
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

TestSuite(store, .init = make, .fini = clean, .timeout = 300);

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

/* -------------------------------------------------------------------------------- append and read */

Test(store, what_was_appended_is_read)
{
    broker_start(&place, NULL);
    expect_append("t", "a\nb\n");
    expect_topic("t", "a\nb\n");
    cr_assert(broker_stop(&place) == 0, "exit code of a clean stop");
}

Test(store, g1_what_was_appended_is_read_after_the_broker_was_killed)
{
    broker_start(&place, NULL);
    expect_append("t", "a\nb\n");
    broker_kill(&place);
    struct stat st;
    cr_assert(stat(place.socket, &st) == 0,
              "a killed broker leaves its socket, which the next one takes over");
    broker_start(&place, NULL);
    expect_topic("t", "a\nb\n");
    expect_append("t", "c\n");
    broker_kill(&place);
    broker_start(&place, NULL);
    expect_topic("t", "a\nb\nc\n");
}

Test(store, what_was_appended_is_read_after_a_clean_stop)
{
    broker_start(&place, NULL);
    expect_append("t", "a\nb\n");
    cr_assert(broker_stop(&place) == 0);
    cr_assert(access(place.socket, F_OK) != 0, "a clean stop removes the socket");
    broker_start(&place, NULL);
    expect_topic("t", "a\nb\n");
}

Test(store, entries_of_any_bytes_and_length_come_back_as_they_were)
{
    size_t long_line = (size_t)5 << 20, length = 0;
    char *input = malloc(long_line + 4096);
    cr_assert(input != NULL);
    for (int byte = 0; byte < 256; byte++) {
        if (byte != '\n')
            input[length++] = (char)byte;
    }
    memcpy(input + length, "\n\n\n", 3);
    length += 3;
    for (size_t i = 0; i < long_line; i++)
        input[length++] = (char)('a' + i % 23);
    memcpy(input + length, "\nlast\n", 6);
    length += 6;

    struct child child;
    broker_start(&place, NULL);
    walrus_with(&place, &child, input, length, list_of("append", "bytes"));
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    for (int round = 0; round < 2; round++) {
        walrus(&place, &child, "", "read", "bytes");
        expect(child.code == 0 && child.output.length == length &&
                   memcmp(child.output.data, input, length) == 0,
               &place, NULL, "%zu bytes came back of %zu, exit code %d: %s", child.output.length, length,
               child.code, child.errors.data);
        child_free(&child);
        broker_kill(&place);
        broker_start(&place, NULL);
    }
    free(input);
}

Test(store, many_lines_in_full_batches_come_back_in_order)
{
    struct child child;
    size_t lines = 20000, length = 0;
    char *input = malloc(lines * 16);
    cr_assert(input != NULL);
    for (size_t i = 0; i < lines; i++)
        length += (size_t)snprintf(input + length, 16, "line %zu\n", i);
    broker_start(&place, NULL);
    walrus_with(&place, &child, input, length, list_of("append", "many", "--batch", "2000"));
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    walrus(&place, &child, "", "read", "many");
    expect(child.code == 0 && child.output.length == length && memcmp(child.output.data, input, length) == 0,
           &place, NULL, "%zu bytes came back of %zu: %s", child.output.length, length, child.errors.data);
    child_free(&child);
    walrus(&place, &child, "", "read", "many", "--from", "19999");
    expect_end(&place, &child, 0, NULL);
    expect_output(&place, &child, "line 19998\nline 19999\n");
    child_free(&child);
    free(input);
}

Test(store, topic_names_of_all_legal_kinds_work)
{
    char longest[256];
    memset(longest, 'n', 255);
    longest[255] = '\0';
    const char *names[] = {"x", longest, "../../etc/passwd", "with space", "\xc3\xa4", "\xff\xfe", "."};
    char wanted[64];
    broker_start(&place, NULL);
    for (size_t i = 0; i < array_count(names); i++) {
        snprintf(wanted, sizeof wanted, "entry of %zu\n", i);
        expect_append(names[i], wanted);
    }
    broker_kill(&place);
    broker_start(&place, NULL);
    for (size_t i = 0; i < array_count(names); i++) {
        snprintf(wanted, sizeof wanted, "entry of %zu\n", i);
        expect_topic(names[i], wanted);
    }
    struct child child;
    walrus(&place, &child, "", "topics");
    expect_end(&place, &child, 0, NULL);
    for (size_t i = 0; i < array_count(names); i++)
        expect(strstr(child.output.data, names[i]) != NULL, &place, &child, "topic %zu is not listed", i);
    child_free(&child);
}

Test(store, reading_an_unknown_topic_exits_1_and_does_not_make_it)
{
    struct child child;
    broker_start(&place, NULL);
    walrus(&place, &child, "", "read", "nobody");
    expect_end(&place, &child, 1, "topic 'nobody'");
    child_free(&child);
    walrus(&place, &child, "", "topics", "--json");
    expect_end(&place, &child, 0, NULL);
    expect_output(&place, &child, "");
    child_free(&child);
}

Test(store, reading_beyond_the_end_prints_nothing)
{
    struct child child;
    broker_start(&place, NULL);
    expect_append("t", "a\nb\n");
    static const char *const from[] = {"3", "4", "1000000000000"};
    for (size_t i = 0; i < array_count(from); i++) {
        walrus(&place, &child, "", "read", "t", "--from", from[i]);
        expect_end(&place, &child, 0, NULL);
        expect_output(&place, &child, "");
        child_free(&child);
    }
}

Test(store, without_a_broker_a_client_says_so)
{
    struct child child;
    walrus(&place, &child, "a\n", "append", "t");
    expect_end(&place, &child, 1, place.socket);
    child_free(&child);
    broker_start(&place, NULL);
    broker_kill(&place);
    walrus(&place, &child, "a\n", "append", "t");
    expect_end(&place, &child, 1, place.socket);
    child_free(&child);
    walrus(&place, &child, "", "read", "t", "--socket", "/nowhere/sock");
    expect_end(&place, &child, 1, "/nowhere/sock");
    child_free(&child);
}

Test(store, an_empty_store_takes_at_most_64_mib)
{
    uint64_t bytes = 0;
    broker_start(&place, NULL);
    pause_ms(1000); /* preparation in the background counts as well */
    DIR *directory = opendir(place.store);
    cr_assert(directory != NULL);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        struct stat st;
        if (fstatat(dirfd(directory), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            bytes += (uint64_t)st.st_blocks * 512;
    }
    closedir(directory);
    expect(bytes <= (uint64_t)64 << 20, &place, NULL, "it takes %llu bytes", (unsigned long long)bytes);
}

Test(store, an_instance_is_a_store_and_a_socket_of_its_own)
{
    char data[PATH_MAX + 32], folder[PATH_MAX + 32], runtime[PATH_MAX + 32];
    struct child broker, child;
    snprintf(data, sizeof data, "WALRUS_DATA_DIR=%s", place.store);
    snprintf(runtime, sizeof runtime, "WALRUS_SOCKET=%s", place.socket);
    snprintf(folder, sizeof folder, "%s/blue", place.store);
    const char *arguments[] = {program_path("WALRUS_TEST_WALRUSD"), "--instance", "blue", NULL};
    struct start start = {
        .arguments = arguments, .environment = list_of(data, runtime), .errors_to = place.log};
    child_start(&broker, &start);
    expect(child_await(&broker, &broker.output, "walrusd: ready on "), &place, &broker, "not ready");
    cr_assert(access(folder, F_OK) == 0, "an instance's data folder is a sub-folder");
    walrus(&place, &child, "a\n", "append", "t", "--instance", "blue");
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    child_free(&broker);
}

/* -------------------------------------------------------------------------------- refusals */

Test(store, g11_a_second_broker_on_the_store_is_refused_with_the_holders_pid)
{
    struct child child;
    char pid[32], other[PATH_MAX + 8];
    broker_start(&place, NULL);
    snprintf(pid, sizeof pid, "%d", (int)place.broker.pid);
    snprintf(other, sizeof other, "%s2", place.socket);
    broker_try(&place, &child, list_of("--socket", other));
    expect_end(&place, &child, 1, pid);
    expect(strstr(child.errors.data, place.store) != NULL, &place, &child, "it does not name the store");
    child_free(&child);
    expect_append("t", "a\n");
    expect_topic("t", "a\n");
}

Test(store, a_socket_in_use_is_refused_and_keeps_serving)
{
    struct child child;
    char other[PATH_MAX + 8];
    broker_start(&place, NULL);
    snprintf(other, sizeof other, "%s2", place.store);
    broker_try(&place, &child, list_of("--data-dir", other));
    expect_end(&place, &child, 1, place.socket);
    child_free(&child);
    expect_append("t", "a\n");
    expect_topic("t", "a\n");
}

Test(store, a_stale_socket_is_taken_over)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%.100s", place.socket);
    cr_assert(fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof address) == 0);
    close(fd);
    broker_start(&place, NULL);
    expect_append("t", "a\n");
}

Test(store, something_else_at_the_sockets_path_is_refused_and_kept)
{
    struct child child;
    int fd = open(place.socket, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && write(fd, "precious", 8) == 8);
    close(fd);
    broker_try(&place, &child, NULL);
    expect_end(&place, &child, 1, place.socket);
    child_free(&child);
    cr_assert(file_contains(place.socket, "precious"));
}

Test(store, a_socket_path_that_is_too_long_is_refused)
{
    struct child child;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%0120d", place.folder, 0);
    broker_try(&place, &child, list_of("--socket", path));
    expect(child.code == 1 || child.code == 2, &place, &child, "exit code %d", child.code);
    expect(strstr(child.errors.data, "at most 107") != NULL, &place, &child,
           "it does not say that the path is too long");
    child_free(&child);
    walrus(&place, &child, "", "read", "t", "--socket", path);
    expect_end(&place, &child, 1, "107");
    child_free(&child);
}

Test(store, a_folder_that_is_not_a_store_is_refused_and_left_alone)
{
    struct child child;
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/diary", place.store);
    cr_assert(mkdir(place.store, 0700) == 0);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && write(fd, "precious", 8) == 8);
    close(fd);
    broker_try(&place, &child, NULL);
    expect_end(&place, &child, 1, place.store);
    child_free(&child);
    cr_assert(file_contains(path, "precious"));
    DIR *directory = opendir(place.store);
    cr_assert(directory != NULL);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
        cr_assert(entry->d_name[0] == '.' || strcmp(entry->d_name, "diary") == 0, "it made %s",
                  entry->d_name);
    closedir(directory);
}

Test(store, a_data_folder_that_is_a_file_is_refused)
{
    struct child child;
    int fd = open(place.store, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0);
    close(fd);
    broker_try(&place, &child, NULL);
    expect_end(&place, &child, 1, place.store);
    child_free(&child);
}

/* FORMAT.md: bytes 8 to 11 of walrus.store are the version. Returns what it was. */
static uint32_t set_format_version(uint32_t version)
{
    char path[PATH_MAX + 32];
    uint32_t before = 0;
    snprintf(path, sizeof path, "%s/walrus.store", place.store);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert(fd >= 0 && pread(fd, &before, sizeof before, 8) == sizeof before &&
              pwrite(fd, &version, sizeof version, 8) == sizeof version && close(fd) == 0);
    return before;
}

Test(store, a_store_of_a_newer_format_is_refused_and_kept)
{
    struct child child;
    broker_start(&place, NULL);
    expect_append("t", "a\n");
    cr_assert(broker_stop(&place) == 0);
    uint32_t version = set_format_version(99);
    broker_try(&place, &child, NULL);
    expect_end(&place, &child, 1, "version 99");
    child_free(&child);
    walrus(&place, &child, "", "check", place.store);
    expect_end(&place, &child, 1, "version 99");
    child_free(&child);
    (void)set_format_version(version);
    broker_start(&place, NULL);
    expect_topic("t", "a\n");
}

static void expect_usage(const char *const *arguments)
{
    struct child child;
    broker_try(&place, &child, arguments);
    expect(child.code == 2 && child.errors.length > 0, &place, &child, "exit code %d for %s %s", child.code,
           arguments[0], arguments[1]);
    expect(access(place.store, F_OK) != 0, &place, &child, "it made the store all the same");
    child_free(&child);
}

Test(store, options_out_of_range_exit_2)
{
    expect_usage(list_of("--segment", "1"));
    expect_usage(list_of("--segment", "999999999999999"));
    expect_usage(list_of("--memory", "1"));
    expect_usage(list_of("--memory", "lots"));
    expect_usage(list_of("--commit-align", "3000"));
    expect_usage(list_of("--durability", "maybe"));
    expect_usage(list_of("--durability", "interval:"));
    expect_usage(list_of("--durability", "interval:x"));
    expect_usage(list_of("--io", "floppy"));
    expect_usage(list_of("--socket-mode", "9"));
    expect_usage(list_of("--spin-us", "x"));
    expect_usage(list_of("--instance", "../up"));
    expect_usage(list_of("--no-such-option", "x"));
    expect_usage(list_of("stray", "word"));
}

/* -------------------------------------------------------------------------------- file systems of our own */

/* A mount namespace that ends with the test; skips without the right to have one. */
static void own_mounts(void)
{
    if (geteuid() != 0)
        skip(&place, "needs root: it mounts a file system of its own");
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
        skip(&place, "no mount namespace here: %s", strerror(errno));
    cr_assert(mkdir(place.store, 0700) == 0);
}

Test(store, a_read_only_data_folder_is_refused)
{
    struct child child;
    own_mounts();
    cr_assert(mount("none", place.store, "tmpfs", MS_RDONLY, "size=1m") == 0);
    broker_try(&place, &child, NULL);
    expect_end(&place, &child, 1, place.store);
    expect(strcasestr(child.errors.data, "read-only") != NULL, &place, &child, "it does not say why");
    child_free(&child);
}

Test(store, a_full_data_folder_is_refused)
{
    struct child child;
    own_mounts();
    cr_assert(mount("none", place.store, "tmpfs", 0, "size=64k") == 0);
    broker_try(&place, &child, NULL);
    expect(child.code == 1 || child.code == 3, &place, &child, "exit code %d", child.code);
    expect(strstr(child.errors.data, "space") != NULL, &place, &child, "it does not say why");
    child_free(&child);
}

Test(store, g9_a_full_disk_exits_3_says_how_much_is_committed_and_heals)
{
    struct child child, reader;
    uint64_t committed = 0;
    own_mounts();
    cr_assert(mount("none", place.store, "tmpfs", 0, "size=160m") == 0);
    broker_start(&place, NULL);
    size_t length = (size_t)1 << 20, lines = 200;
    char *line = malloc(length);
    cr_assert(line != NULL);
    memset(line, 'b', length);
    line[length - 1] = '\n';
    walrus_start(&place, &child, "append", "big", "--batch", "1");
    for (size_t i = 0; i < lines && child_write(&child, line, length); i++)
        continue;
    child_finish(&child, LIMIT_MS);
    expect_end(&place, &child, 3, "committed");
    bool said = number_behind(child.errors.data, "; ", &committed);
    expect(said && committed > 0 && committed < lines, &place, &child, "how many lines?");
    child_free(&child);

    walrus(&place, &reader, "", "read", "big");
    expect(reader.code == 0 && reader.output.length == committed * length, &place, NULL,
           "reads go on: exit code %d, %zu bytes, not %zu: %s", reader.code, reader.output.length,
           (size_t)committed * length, reader.errors.data);
    child_free(&reader);

    cr_assert(mount("none", place.store, "tmpfs", MS_REMOUNT, "size=400m") == 0);
    int64_t limit = clock_ms() + LIMIT_MS;
    int code;
    do { /* heals by itself, not necessarily at the first try */
        walrus_with(&place, &child, line, length, list_of("append", "big"));
        code = child.code;
        child_free(&child);
        pause_ms(10);
    } while (code == 3 && clock_ms() < limit);
    cr_expect(code == 0, "after there was space again: exit code %d", code);
    child_free(&place.broker);
    free(line);
}
