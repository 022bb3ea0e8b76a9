/* handles.h: several clients at one topic, for the tests of who waits for whom. */
#ifndef WALRUS_SESSION_HANDLES_H
#define WALRUS_SESSION_HANDLES_H

#include "harness.h"

#define HANDLES 4

static struct rig rig;
static struct client handles[HANDLES];
static uint32_t topics[HANDLES]; /* each handle's number of "t" */

static inline void start_with(const struct server_options *options, uint32_t entries, const char *producer)
{
    rig_start(&rig, options, 0);
    for (int i = 0; i < HANDLES; i++) {
        struct hello hello = hello_good();
        hello.queue_entries = entries;
        hello.arena_bytes = 1u << 20;
        if (producer != NULL) {
            hello.name_bytes = (uint32_t)strlen(producer) + 1;
            memcpy(hello.name, producer, strlen(producer));
            hello.name[strlen(producer)] = (char)('0' + i);
        }
        cr_assert_eq(client_handshake(&rig, &handles[i], &hello, sizeof hello), 0);
        topics[i] = client_topic(&rig, &handles[i], "t");
    }
}

static inline void start(void)
{
    start_with(NULL, 64, NULL);
}

static inline void finish(void)
{
    rig.log.room = 0;
    rig.log.hold_answers = false;
    for (int i = 0; i < HANDLES; i++)
        client_close(&handles[i]);
    for (int i = 0; i < 100000 && server_values(rig.server)->session_connections > 0; i++)
        rig_turn(&rig, 1);
    cr_assert_eq(server_values(rig.server)->session_queued_writes, 0);
    cr_assert_eq(server_values(rig.server)->session_waiting_refusals, 0);
    cr_assert_eq(server_values(rig.server)->session_held_writes, 0);
    cr_assert_eq(deadline_next(rig.server), INT64_MAX);
    rig_stop(&rig);
}

static inline const struct stat_values *values(void)
{
    return server_values(rig.server);
}

/* A batch of one entry, whose text it names itself by; its user_data is `id`. */
static inline struct descriptor batch(int handle, uint64_t id, uint16_t flags)
{
    char text[32];
    snprintf(text, sizeof text, "%c%llu", 'a' + handle, (unsigned long long)id);
    struct descriptor d = client_text(&handles[handle], topics[handle], (uint32_t)(id % 8192) * 64, text);
    d.flags = flags;
    d.user_data = id;
    return d;
}

static inline void push(int handle, uint64_t id, uint16_t flags)
{
    struct descriptor d = batch(handle, id, flags);
    client_push(&handles[handle], &d);
}

static inline struct descriptor chunk_of(int handle, uint32_t stream, uint32_t number, uint16_t flags)
{
    struct descriptor d = batch(handle, 1000 * stream + number, flags);
    d.op = OP_CHUNK;
    d.stream = stream;
    d.chunk = number;
    return d;
}

static inline void push_chunk(int handle, uint32_t stream, uint32_t number, uint16_t flags)
{
    struct descriptor d = chunk_of(handle, stream, number, flags);
    client_push(&handles[handle], &d);
}

/* Until the broker has seen everything: a doorbell is heard in one of 16 turns. */
static inline void settle(void)
{
    rig_turn(&rig, 40);
}

static inline struct completion expect(int handle, uint64_t id, int result)
{
    struct completion completion = client_answer(&rig, &handles[handle]);
    cr_assert_eq(completion.user_data, id, "%c: an answer to %llu, not to %llu", 'a' + handle,
                 (unsigned long long)completion.user_data, (unsigned long long)id);
    cr_assert_eq(completion.result, result, "%c%llu: %d, not %d", 'a' + handle, (unsigned long long)id,
                 completion.result, result);
    return completion;
}

static inline void expect_nothing(int handle, int turns)
{
    struct completion completion;
    rig_turn(&rig, turns);
    cr_assert_not(client_pop(&handles[handle], &completion), "%c: an answer to %llu: %d", 'a' + handle,
                  (unsigned long long)completion.user_data, completion.result);
}

/* From here on the topic is this handle's: a batch of it is in the log and is not answered. */
static inline void occupy(int handle, uint64_t id)
{
    rig.log.hold_answers = true;
    push(handle, id, 0);
    for (int i = 0; i < 1000 && fake_topic(&rig.log, "t")->batches == 0; i++)
        rig_turn(&rig, 1);
    cr_assert_eq(fake_topic(&rig.log, "t")->batches, 1);
}

static inline void let_go(void)
{
    rig.log.hold_answers = false;
    rig_turn(&rig, 1);
}

/* What the topic holds, as texts with a blank behind each. */
static inline const char *content(void)
{
    static char all[1 << 16];
    size_t at = 0;
    const struct topic *topic = fake_topic(&rig.log, "t");
    all[0] = '\0';
    for (size_t i = 0; i < topic->count; i++)
        at += (size_t)snprintf(all + at, sizeof all - at, "%.*s ", (int)topic->entries[i].length,
                               (const char *)topic->entries[i].bytes);
    return all;
}

static inline void expect_content(const char *wanted)
{
    cr_assert_str_eq(content(), wanted);
}

#endif
