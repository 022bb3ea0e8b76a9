/* reconnect.h: what the suites of connections made anew share: one handle at a scripted broker, which dies
 * and comes back as the test says. */
#ifndef WALRUS_TESTS_CLIENT_RECONNECT_H
#define WALRUS_TESTS_CLIENT_RECONNECT_H

#include "fake.h"
#include <criterion/criterion.h>
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static struct fake fake;
static walrus *handle;
static walrus_topic *topic;

/* Reconnects, if need be for ever. */
#define WITH(...)                                                                                            \
    begin_with((struct walrus_connect_options){                                                              \
        .size = sizeof(struct walrus_connect_options), .queue_entries = 64, __VA_ARGS__})

static inline void begin_with(struct walrus_connect_options options)
{
    options.flags |= WALRUS_RECONNECT;
    if (options.reconnect_ns == 0)
        options.reconnect_ns = -1;
    fake_start(&fake);
    handle = fake_connect(&fake, options);
    topic = open_topic(handle, "t");
}

static inline void begin(void)
{
    WITH(.arena_bytes = 1 << 20);
}

static inline void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

/* --------------------------------------------------------------------------------------- helpers */

static inline walrus_batch *new_batch(walrus_topic *on)
{
    walrus_batch *batch = NULL;
    cr_assert_eq(walrus_batch_begin(on, &batch), 0, "%s", walrus_error(handle));
    return batch;
}

static inline char *reserve(walrus_batch *batch, size_t length)
{
    void *data = NULL;
    int code = walrus_batch_reserve(batch, length, &data);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    return data;
}

static inline int submit(walrus_batch *batch, uint64_t user_data)
{
    struct walrus_submit_options options = {.size = sizeof options, .user_data = user_data};
    return walrus_batch_submit(batch, &options);
}

/* One entry that says its user_data. */
static inline void send_one(walrus_topic *on, uint64_t user_data)
{
    walrus_batch *batch = new_batch(on);
    memcpy(reserve(batch, sizeof user_data), &user_data, sizeof user_data);
    cr_assert_eq(submit(batch, user_data), 0, "%s", walrus_error(handle));
}

static inline struct walrus_completion reap_one(void)
{
    struct walrus_completion c;
    int code = walrus_wait(handle, 1, -1);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    cr_assert_eq(walrus_reap(handle, &c, 1), 1, "%s", walrus_error(handle));
    return c;
}

static inline struct walrus_completion expect(uint64_t user_data, int result, uint32_t flags, uint64_t number)
{
    struct walrus_completion c = reap_one();
    cr_assert_eq(c.user_data, user_data, "%llu", (unsigned long long)c.user_data);
    cr_assert_eq(c.result, result, "%d", c.result);
    cr_assert_eq(c.receipt.flags, flags, "0x%x", c.receipt.flags);
    cr_assert_eq(c.receipt.number, number, "%llu", (unsigned long long)c.receipt.number);
    return c;
}

static inline struct walrus_info info(void)
{
    struct walrus_info info = {.size = sizeof info};
    cr_assert_eq(walrus_get_info(handle, &info), 0);
    return info;
}

static inline void append(const char *name, const char *text)
{
    int code = walrus_append_for_topic(handle, name, text, strlen(text), NULL, NULL);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
}

/* The fake's topic has the entries `from` to `to` and nothing else. */
static inline void expect_entries(const char *name, uint64_t from, uint64_t to)
{
    fake_pause(&fake);
    const struct fake_topic *t = fake_topic(&fake, name);
    cr_assert_eq(t->count, to - from + 1, "%llu entries", (unsigned long long)t->count);
    for (uint64_t i = from; i <= to; i++) {
        const struct fake_entry *e = &t->entries[i - from];
        cr_assert_eq(e->length, sizeof i);
        cr_assert_eq(memcmp(e->data, &i, sizeof i), 0, "entry %llu", (unsigned long long)i);
    }
    fake_resume(&fake);
}

/* Everything published is with the fake, and held there. */
static inline void wait_until_held(uint32_t count)
{
    for (uint32_t have = 0; have < count; sched_yield()) {
        fake_pause(&fake);
        have = fake.held_count;
        fake_resume(&fake);
    }
}

static inline void die(void)
{
    fake_pause(&fake);
    fake_die(&fake);
    fake.hold_writes = fake.hold_reads = false;
    fake_resume(&fake);
}

/* The handle learns that its connection is gone. */
static inline void notice(void)
{
    struct walrus_completion c;
    walrus_fd(handle); /* so that reaping looks at the socket each time */
    cr_assert_eq(walrus_reap(handle, &c, 1), 0, "%s", walrus_error(handle));
}

/* What is in flight is -ECONNRESET, and every call from then on says why. */
static inline void expect_lost(int code, const char *part_of_words)
{
    struct walrus_completion c;
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), -ECONNRESET);
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL), code);
    cr_assert_eq(walrus_reap(handle, &c, 1), code);
    cr_assert_not_null(strstr(walrus_error(handle), part_of_words), "%s", walrus_error(handle));
    cr_assert(fd_readable(handle));
}

static inline void rule(struct fake_rule rule)
{
    fake_pause(&fake);
    fake_rule(&fake, rule);
    fake_resume(&fake);
}

static inline int open_fds(void)
{
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static inline int mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    int count = 0;
    while (fgets(line, sizeof line, maps) != NULL)
        count += strstr(line, "memfd:") != NULL;
    fclose(maps);
    return count;
}

#endif
