#include "seed.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

struct place place;

void place_begin(void)
{
    place_make(&place);
}

static bool mounted;

void place_end(void)
{
    child_free(&place.broker);
    if (mounted)
        umount2(place.store, MNT_DETACH);
    place_remove(&place);
}

void small_disk(uint64_t bytes)
{
    char options[64];
    snprintf(options, sizeof options, "size=%llu", (unsigned long long)bytes);
    cr_assert_eq(mkdir(place.store, 0700), 0);
    if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
        place_end();
        cr_skip("SKIPPED: a mount namespace is refused here, and with it a small file system\n");
    }
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("walrus-test", place.store, "tmpfs", 0, options) != 0) {
        place_end();
        cr_skip("SKIPPED: mounting a tmpfs is refused here\n");
    }
    mounted = true;
}

void grow_disk(uint64_t bytes)
{
    char options[64];
    snprintf(options, sizeof options, "size=%llu", (unsigned long long)bytes);
    cr_assert_eq(mount("none", place.store, NULL, MS_REMOUNT, options), 0);
}

/* ---------------------------------------------------------------------------------------------- clients */

struct walrus_connect_options client_options(void)
{
    return (struct walrus_connect_options){.size = sizeof(struct walrus_connect_options),
                                           .socket_path = place.socket};
}

walrus *client(void)
{
    char words[400] = "";
    struct walrus_connect_options options = client_options();
    options.error = words;
    options.error_size = sizeof words;
    walrus *handle = NULL;
    int result = walrus_connect(&handle, &options);
    expect(result == 0, &place, NULL, "connect: %d: %s", result, words);
    return handle;
}

void fill(void *data, size_t length, const char *topic, uint64_t sequence)
{
    uint8_t *to = data;
    uint64_t word = sequence * UINT64_C(0x9e3779b97f4a7c15) + length;
    for (; *topic != 0; topic++)
        word = (word ^ (uint8_t)*topic) * UINT64_C(0x100000001b3);
    for (size_t i = 0; i < length; i += sizeof word) {
        word = word * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        memcpy(to + i, &word, length - i < sizeof word ? length - i : sizeof word);
    }
}

static bool right(const struct walrus_entry *entry, const char *topic, uint64_t sequence)
{
    uint8_t *want = malloc(entry->length + 1);
    cr_assert_not_null(want);
    fill(want, entry->length, topic, sequence);
    bool same = memcmp(want, entry->data, entry->length) == 0;
    free(want);
    return same;
}

int put(walrus *handle, const char *topic, uint64_t from, size_t entries, size_t bytes,
        struct walrus_receipt *receipt)
{
    struct walrus_slice *slices = calloc(entries + 1, sizeof *slices);
    uint8_t *data = malloc(entries * bytes + 1);
    cr_assert(slices != NULL && data != NULL);
    for (size_t i = 0; i < entries; i++) {
        fill(data + i * bytes, bytes, topic, from + i);
        slices[i] = (struct walrus_slice){data + i * bytes, bytes};
    }
    int result = walrus_batch_append_for_topic(handle, topic, slices, entries, NULL, receipt);
    free(slices);
    free(data);
    return result;
}

int put_one(walrus *handle, const char *topic, uint64_t sequence, size_t bytes)
{
    uint8_t *data = malloc(bytes + 1);
    cr_assert_not_null(data);
    fill(data, bytes, topic, sequence);
    int result = walrus_append_for_topic(handle, topic, data, bytes, NULL, NULL);
    free(data);
    return result;
}

void put_well(walrus *handle, const char *topic, uint64_t from, size_t entries, size_t bytes)
{
    struct walrus_receipt receipt;
    int result = put(handle, topic, from, entries, bytes, &receipt);
    expect(result == 0, &place, NULL, "%zu entries of %zu bytes: %d: %s", entries, bytes, result,
           walrus_error(handle));
    expect(receipt.first_sequence == from && receipt.count == entries, &place, NULL,
           "receipt: %llu from %llu", (unsigned long long)receipt.count,
           (unsigned long long)receipt.first_sequence);
}

int64_t read_on(walrus *handle, const char *topic, uint64_t *next)
{
    int64_t count = 0;
    for (;;) {
        walrus_entries *entries;
        int got = walrus_batch_read_for_topic(handle, topic, *next, NULL, &entries);
        if (got <= 0)
            return got < 0 ? got : count;
        struct walrus_entry entry;
        for (size_t i = 0; walrus_entries_get(entries, i, &entry); i++) {
            uint64_t want = *next + i;
            expect(entry.sequence == want, &place, NULL, "entry %llu where %llu ought to be",
                   (unsigned long long)entry.sequence, (unsigned long long)want);
            expect(right(&entry, topic, want), &place, NULL, "entry %llu of %s is not what was written",
                   (unsigned long long)want, topic);
            count++;
        }
        *next = walrus_entries_next(entries);
        walrus_entries_release(entries);
    }
}

int64_t count_of(walrus *handle, const char *topic)
{
    uint64_t next = 1;
    int64_t count = read_on(handle, topic, &next);
    return count == -ENOENT ? 0 : count;
}

struct walrus_topic *topic_of(walrus *handle, const char *name)
{
    walrus_topic *topic = NULL;
    int result = walrus_topic_open(handle, name, strlen(name), NULL, &topic);
    expect(result == 0, &place, NULL, "topic_open: %d: %s", result, walrus_error(handle));
    return topic;
}

int add_entries(walrus_batch *batch, const char *topic, uint64_t from, size_t entries, size_t bytes)
{
    uint8_t *data = malloc(bytes + 1);
    int result = 0;
    cr_assert_not_null(data);
    for (size_t i = 0; i < entries && result == 0; i++) {
        fill(data, bytes, topic, from + i);
        result = walrus_batch_add(batch, data, bytes);
    }
    free(data);
    return result;
}

int finish(walrus *handle, walrus_batch *batch, struct walrus_completion *completion)
{
    struct walrus_completion local;
    if (completion == NULL)
        completion = &local;
    int result = walrus_batch_submit(batch, NULL);
    if (result != 0)
        return result;
    result = walrus_wait(handle, 1, INT64_C(60) * 1000000000);
    expect(result == 0, &place, NULL, "wait: %d: %s", result, walrus_error(handle));
    cr_assert_eq(walrus_reap(handle, completion, 1), 1);
    return completion->result;
}

/* ------------------------------------------------------------------------------- what the broker counts */

/* The page is written when the broker has something to count and before it sleeps: two looks that agree. */
struct stat_values counters(void)
{
    char path[PATH_MAX + 8];
    struct stat_snapshot first, second;
    snprintf(path, sizeof path, "%s.stat", place.socket);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    expect(fd >= 0, &place, NULL, "%s: %s", path, strerror(errno));
    void *page = mmap(NULL, STAT_PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    cr_assert_neq(page, MAP_FAILED);
    close(fd);
    int64_t limit = clock_ms() + LIMIT_MS;
    bool asleep = false;
    do {
        cr_assert_lt(clock_ms(), limit, "the counters do not come to rest");
        pause_ms(5);
        if (stat_page_read(page, STAT_PAGE_BYTES, &first) != 0)
            continue;
        pause_ms(20);
        asleep = stat_page_read(page, STAT_PAGE_BYTES, &second) == 0 && first.updates == second.updates &&
                 second.loop.state == STAT_LOOP_ASLEEP;
    } while (!asleep);
    munmap(page, STAT_PAGE_BYTES);
    return second.values;
}

static void each_store_file(uint64_t *count, uint64_t *bytes, const char *ending)
{
    DIR *folder = opendir(place.store);
    cr_assert_not_null(folder);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        struct stat facts;
        size_t n = strlen(entry->d_name), e = strlen(ending);
        if (fstatat(dirfd(folder), entry->d_name, &facts, 0) != 0 || !S_ISREG(facts.st_mode))
            continue;
        *bytes += (uint64_t)facts.st_blocks * 512;
        *count += n >= e && strcmp(entry->d_name + n - e, ending) == 0;
    }
    closedir(folder);
}

uint64_t store_files(const char *ending)
{
    uint64_t count = 0, bytes = 0;
    each_store_file(&count, &bytes, ending);
    return count;
}

uint64_t store_bytes(void)
{
    uint64_t count = 0, bytes = 0;
    each_store_file(&count, &bytes, "");
    return bytes;
}
