/* paths.c: walks the hot paths a fixed number of times, for guard.py, which runs this under callgrind (counts
 * instructions), under strace (counts system calls) and by itself (counts allocations, looks at the clock).
 *
 *   usage: paths --instructions | --calls | --trace [--uring]
 *
 * Each path is walked twice, with n and with 2n of what is counted, so that the difference has no start-up
 * and no fixed part in it. Client and broker take turns in one thread (rig.h); what is counted is switched on
 * for one of them and off again. For each walk a label "path/count" and, as JSON, what this program counts
 * itself.
 *
 *   callgrind   one profile per label. Where the instructions go: valgrind --tool=callgrind
 *               --toggle-collect=server_turn (or send_batch, reap) guard-paths --calls, then
 *               callgrind_annotate
 *   strace      a write of "+" or "-" to descriptor -1 switches on or off, any other one ends the walk of
 *               that label */
#include <unistd.h>
#include <valgrind/callgrind.h>

#include "rig.h"

enum side { CLIENT, BROKER };
enum mode { INSTRUCTIONS, CALLS, TRACE };

/* One way through client and broker: `rounds` times `depth` batches of `entries` entries of `bytes` bytes. */
struct walk {
    uint32_t rounds, depth, entries, bytes;
};

enum fill { RESERVE, ADD };

struct path {
    const char *name;
    enum side side;
    uint8_t level;
    uint32_t topics;
    enum fill fill;
    struct walk once, twice;
    bool uring;
};

/* In all of them rounds are a multiple of the 16 turns between two looks of the broker at its epoll set. */
#define WALK(...)                                                                                            \
    {                                                                                                        \
        __VA_ARGS__                                                                                          \
    }
#define PATH(...)                                                                                            \
    {                                                                                                        \
        __VA_ARGS__                                                                                          \
    }
static const struct path paths[] = {
    PATH("client: batch", CLIENT, LEVEL_ACCEPTED, 1, RESERVE, WALK(64, 1, 1, 64), WALK(128, 1, 1, 64), false),
    PATH("client: batch, one more in flight", CLIENT, LEVEL_ACCEPTED, 1, RESERVE, WALK(16, 16, 1, 64),
         WALK(16, 32, 1, 64), false),
    PATH("client: entry reserved", CLIENT, LEVEL_ACCEPTED, 1, RESERVE, WALK(16, 1, 500, 64),
         WALK(16, 1, 1000, 64), false),
    PATH("client: entry added", CLIENT, LEVEL_ACCEPTED, 1, ADD, WALK(16, 1, 500, 64), WALK(16, 1, 1000, 64),
         false),
    PATH("broker: batch, accepted", BROKER, LEVEL_ACCEPTED, 1, RESERVE, WALK(64, 1, 1, 64),
         WALK(128, 1, 1, 64), false),
    PATH("broker: batch, one more in its group, accepted", BROKER, LEVEL_ACCEPTED, 1, RESERVE,
         WALK(16, 16, 1, 64), WALK(16, 32, 1, 64), false),
    PATH("broker: batch, durable", BROKER, LEVEL_DURABLE, 1, RESERVE, WALK(64, 1, 1, 64), WALK(128, 1, 1, 64),
         false),
    PATH("broker: batch, one more in its group, durable", BROKER, LEVEL_DURABLE, 1, RESERVE,
         WALK(16, 16, 1, 64), WALK(16, 32, 1, 64), false),
    PATH("broker: batch, durable, over 64 topics", BROKER, LEVEL_DURABLE, 64, RESERVE, WALK(512, 1, 1, 64),
         WALK(1024, 1, 1, 64), false),
    PATH("broker: entry", BROKER, LEVEL_DURABLE, 1, RESERVE, WALK(16, 1, 500, 0), WALK(16, 1, 1000, 0),
         false),
    PATH("broker: KiB of payload", BROKER, LEVEL_DURABLE, 1, RESERVE, WALK(16, 1, 1, 65536),
         WALK(16, 1, 1, 131072), false),
    PATH("client: batch, io_uring", CLIENT, LEVEL_DURABLE, 1, RESERVE, WALK(32, 1, 1, 64), WALK(64, 1, 1, 64),
         true),
    PATH("broker: group, io_uring", BROKER, LEVEL_DURABLE, 1, RESERVE, WALK(32, 1, 1, 64), WALK(64, 1, 1, 64),
         true),
};

/* ------------------------------------------------------------------------------------- what is counted */

struct counter {
    enum mode mode;
    bool on;
    enum side side;
    struct rig_calls from, sum;
};

static void mark(const struct counter *counter, const char *words)
{
    if (counter->mode == TRACE && write(-1, words, strlen(words)) >= 0)
        exit(1);
}

static void begin(struct counter *counter, enum side side)
{
    if (!counter->on || counter->side != side)
        return;
    counter->from = rig_calls;
    mark(counter, "+");
    rig_collecting = counter->mode == INSTRUCTIONS;
    if (rig_collecting)
        CALLGRIND_TOGGLE_COLLECT;
}

static void end(struct counter *counter, enum side side)
{
    if (!counter->on || counter->side != side)
        return;
    if (rig_collecting)
        CALLGRIND_TOGGLE_COLLECT;
    rig_collecting = false;
    mark(counter, "-");
    counter->sum.allocations += rig_calls.allocations - counter->from.allocations;
    counter->sum.clock += rig_calls.clock - counter->from.clock;
    counter->sum.copied += rig_calls.copied - counter->from.copied;
    counter->sum.summed += rig_calls.summed - counter->from.summed;
}

static void report(const struct counter *counter, const char *name, uint32_t count)
{
    char label[128];
    snprintf(label, sizeof label, "%s/%u", name, count);
    mark(counter, label);
    CALLGRIND_DUMP_STATS_AT(label);
    printf("{\"label\": \"%s\", \"allocations\": %llu, \"looks at the clock\": %llu, \"bytes copied\": %llu, "
           "\"bytes summed\": %llu}\n",
           label, (unsigned long long)counter->sum.allocations, (unsigned long long)counter->sum.clock,
           (unsigned long long)counter->sum.copied, (unsigned long long)counter->sum.summed);
}

/* ------------------------------------------------------------------------------------- walking */

/* A function that callgrind can switch itself on at. (Only gcc knows all of it; only its counts are held.) */
#ifdef __clang__
#define WHOLE __attribute__((noinline))
#else
#define WHOLE __attribute__((noipa))
#endif

WHOLE static void send_batch(walrus_topic *topic, const struct walk *walk, enum fill fill, const void *entry)
{
    walrus_batch *batch;
    need(walrus_batch_begin(topic, &batch) == 0);
    for (uint32_t i = 0; i < walk->entries; i++) {
        void *data;
        need((fill == RESERVE ? walrus_batch_reserve(batch, walk->bytes, &data)
                              : walrus_batch_add(batch, entry, walk->bytes)) == 0);
    }
    struct walrus_submit_options options = {.size = sizeof options};
    need(walrus_batch_submit(batch, &options) == 0);
}

WHOLE static void reap(walrus *handle, uint32_t count)
{
    struct walrus_completion completions[64];
    need(walrus_wait(handle, (int)count, -1) == 0);
    need(walrus_reap(handle, completions, 64) == (int)count);
    for (uint32_t i = 0; i < count; i++)
        need(completions[i].result == 0);
}

static void walk_through(struct rig *rig, struct counter *counter, const struct path *path,
                         const struct walk *walk)
{
    static const uint8_t entry[4096];
    for (uint32_t round = 0; round < walk->rounds; round++) {
        begin(counter, CLIENT);
        for (uint32_t i = 0; i < walk->depth; i++)
            send_batch(rig->topics[(round * walk->depth + i) % path->topics], walk, path->fill, entry);
        end(counter, CLIENT);
        for (uint32_t turns = 0; !rig_answered(rig); turns++) {
            begin(counter, BROKER);
            need(server_turn(rig->server) == 0);
            end(counter, BROKER);
            need(turns < 1000);
        }
        begin(counter, CLIENT);
        reap(rig->handle, walk->depth);
        end(counter, CLIENT);
    }
}

static uint32_t count_of(const struct path *path, const struct walk *walk)
{
    if (path->once.depth != path->twice.depth || path->once.rounds != path->twice.rounds)
        return walk->rounds * walk->depth;
    return walk->rounds * (path->once.entries != path->twice.entries ? walk->entries : walk->bytes / 1024);
}

/* Everything is warm by then: what grows by doubling has just grown, and will not while it is counted. */
static void walk_one(const struct path *path, enum mode mode)
{
    struct rig rig;
    struct counter counter = {.mode = mode, .side = path->side};
    struct log_stats before, after;
    rig_start(&rig, path->topics, path->level, path->uring);
    const struct walk first = {path->topics > 1 ? 32 * path->topics : 1024, 1, 1, 64};
    const struct walk again = {path->topics > 16 ? path->topics : 16, 1, 1, 64};
    walk_through(&rig, &counter, path, &first);
    const struct walk *walks[] = {&path->once, &path->twice};
    for (int i = 0; i < 2; i++) {
        rig_settle(&rig);
        walk_through(&rig, &counter, path, &again);
        log_stats(rig.log, &before);
        counter = (struct counter){.mode = mode, .side = path->side, .on = true};
        CALLGRIND_ZERO_STATS;
        walk_through(&rig, &counter, path, walks[i]);
        report(&counter, path->name, count_of(path, walks[i]));
        counter.on = false;
        log_stats(rig.log, &after);
        need(before.segment_number == after.segment_number); /* else a change of segment is in the count */
    }
    rig_stop(&rig);
}

int main(int argc, char **argv)
{
    enum mode mode = INSTRUCTIONS;
    bool uring = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--trace") == 0)
            mode = TRACE;
        else if (strcmp(argv[i], "--calls") == 0)
            mode = CALLS;
        else if (strcmp(argv[i], "--uring") == 0)
            uring = true;
        else if (strcmp(argv[i], "--instructions") != 0)
            return 2;
    }
    for (size_t i = 0; i < array_count(paths); i++)
        if (paths[i].uring == uring)
            walk_one(&paths[i], mode);
    return 0;
}
