/* stat_page.h: the counters file beside the socket (`<socket path>.stat`), written by the broker, mapped
 * read-only by `walrus stat`. It can be read while the broker is stalled, stopped or dead: no answer of the
 * broker is needed.
 *
 * Layout of the file (STAT_PAGE_BYTES, host byte order)
 *     0     identity: written once before `magic` (release-stored last), then left alone
 *     2048  loop words: each one written on its own, whenever the loop turns
 *     4096  two copies of the counters, 4096 bytes apart
 *
 * Consistency. Each copy has a sequence word in front of it and one behind. The writer fills the copy that
 * was not written last: begin = n, values, end = n (n rises by one with each update, 0 = never written). A
 * reader takes the values between a load of `end` and a load of `begin` and keeps them if both are the same.
 * A broker that dies or stops in the middle of an update leaves the other copy whole, so a reader never
 * waits: it takes the valid copy with the higher n.
 *
 * A reader trusts nothing: stat_page_read copies words, bounds strings, and answers -EPROTO if magic, version
 * or size are not what it knows, -EAGAIN if neither copy is whole just now (try again), never anything
 * outside the struct.
 *
 * Field names are in three lists (X-macros); struct, names and writer are made from them, so they cannot
 * drift. */
#ifndef WALRUS_SHARED_STAT_PAGE_H
#define WALRUS_SHARED_STAT_PAGE_H

#include "base.h"

#define STAT_PAGE_MAGIC   UINT64_C(0x57414c5354415431) /* "WALSTAT1" */
#define STAT_PAGE_VERSION 2u /* raised with any change of the lists or structs below */
#define STAT_PAGE_SUFFIX  ".stat"
#define STAT_PAGE_BYTES   12288u
#define STAT_COPIES       2u

/* clang-format off */
/* struct log_stats of broker/log/log.h, in its order; broker/session/stat.c asserts that they are equal. */
#define STAT_LOG_FIELDS(X)                                                                                   \
    X(epoch)                                                                                                 \
    X(groups) X(batches) X(entries) X(payload_bytes) X(log_bytes) X(flushes) X(chunks)                       \
    X(refused_busy) X(refused_space) X(refused_invalid)                                                      \
    X(rollbacks) X(failed_batches) X(lost_batches)                                                           \
    X(segments) X(prepared_segments) X(segment_number) X(segment_used) X(segment_length)                     \
    X(topics) X(streams_open)                                                                                \
    X(checkpoints) X(reads) X(read_entries) X(read_bytes) X(read_cache_hits) X(damaged_reads)                \
    X(start_ns) X(start_groups_walked) X(start_groups_copied) X(start_bytes_cut)                             \
    X(memory_bytes)                                                                                          \
    X(space_free)

/* Sessions. The first line are gauges, the rest counts since the start. `busy` are writes refused because of
 * another handle's batch, `holds` writes that waited in the broker for memory or log space, `queued` writes
 * that waited for their topic, `told` refusals that were followed by "try now". */
#define STAT_SESSION_FIELDS(X)                                                                               \
    X(connections) X(active) X(parked) X(pending_reads) X(held_writes) X(shared_bytes) X(producers)          \
    X(queued_writes) X(waiting_refusals)                                                                     \
    X(connected) X(refused) X(refused_quota) X(handshakes_expired) X(out_of_descriptors) X(disconnected)   \
    X(ended_hostile) X(take_overs) X(process_deaths)                                                         \
    X(descriptors_drained) X(payload_drained) X(completions) X(signals) X(signals_coalesced) X(doorbells)    \
    X(parks)                                                                                                 \
    X(refused_invalid) X(busy) X(holds) X(streams_aborted)                                                  \
    X(queued) X(told) X(cancelled) X(timed_out) X(duplicates)

/* The loop. Times in ns. A turn is everything between two waits; turns_over_* count the longer ones. */
#define STAT_LOOP_FIELDS(X)                                                                                  \
    X(turns) X(sleeps) X(spins) X(turn_longest) X(turns_over_1ms) X(turns_over_10ms) X(turns_over_100ms)     \
    X(turns_over_1s)
/* clang-format on */

#define STAT_MEMBER_LOG(name)     uint64_t log_##name;
#define STAT_MEMBER_SESSION(name) uint64_t session_##name;
#define STAT_MEMBER_LOOP(name)    uint64_t loop_##name;
struct stat_values {
    STAT_LOG_FIELDS(STAT_MEMBER_LOG)
    STAT_SESSION_FIELDS(STAT_MEMBER_SESSION)
    STAT_LOOP_FIELDS(STAT_MEMBER_LOOP)
};

/* Number of each field in its place, for walking (enum stat_field f; stat_field_name(f)). */
#define STAT_ENUM_LOG(name)     STAT_LOG_##name,
#define STAT_ENUM_SESSION(name) STAT_SESSION_##name,
#define STAT_ENUM_LOOP(name)    STAT_LOOP_##name,
enum stat_field {
    STAT_LOG_FIELDS(STAT_ENUM_LOG) STAT_SESSION_FIELDS(STAT_ENUM_SESSION) STAT_LOOP_FIELDS(STAT_ENUM_LOOP)
        STAT_FIELD_COUNT
};
_Static_assert(sizeof(struct stat_values) == sizeof(uint64_t) * STAT_FIELD_COUNT, "no padding");
#define STAT_PROVE_LOG(name)                                                                                 \
    _Static_assert(offsetof(struct stat_values, log_##name) == sizeof(uint64_t) * STAT_LOG_##name,           \
                   "log_" #name);
#define STAT_PROVE_SESSION(name)                                                                             \
    _Static_assert(offsetof(struct stat_values, session_##name) == sizeof(uint64_t) * STAT_SESSION_##name,   \
                   "session_" #name);
#define STAT_PROVE_LOOP(name)                                                                                \
    _Static_assert(offsetof(struct stat_values, loop_##name) == sizeof(uint64_t) * STAT_LOOP_##name,         \
                   "loop_" #name);
STAT_LOG_FIELDS(STAT_PROVE_LOG)
STAT_SESSION_FIELDS(STAT_PROVE_SESSION)
STAT_LOOP_FIELDS(STAT_PROVE_LOOP)

/* What the loop is doing (stat_loop.state). */
enum stat_loop_state {
    STAT_LOOP_STARTING = 0,
    STAT_LOOP_AWAKE = 1,    /* in a turn since `updated_ns` */
    STAT_LOOP_ASLEEP = 2,   /* in the kernel since `updated_ns`, until something happens or `wake_by_ns` */
    STAT_LOOP_STOPPING = 3, /* committing what was published, then gone */
    STAT_LOOP_FAILED = 4,   /* fail-stop (G10): the process is about to end, or has */
};

struct stat_loop {
    uint64_t state;     /*  0-7   enum stat_loop_state */
    int64_t updated_ns; /*  8-15  CLOCK_MONOTONIC of the last change of state */
    int64_t
        wake_by_ns;    /* 16-23  ASLEEP: when it wakes up at the latest; INT64_MAX = when something happens */
    uint64_t reserved; /* 24-31  zero */
};

struct stat_identity {
    uint64_t magic;           /*    0-7    STAT_PAGE_MAGIC, stored last */
    uint32_t version;         /*    8-11   STAT_PAGE_VERSION */
    uint32_t page_bytes;      /*   12-15   STAT_PAGE_BYTES */
    uint32_t field_count;     /*   16-19   STAT_FIELD_COUNT */
    uint32_t broker_pid;      /*   20-23 */
    int64_t started_wall_ns;  /*   24-31   CLOCK_REALTIME when it began to serve */
    int64_t started_ns;       /*   32-39   CLOCK_MONOTONIC of the same */
    uint64_t epoch;           /*   40-47 */
    uint32_t io_backend;      /*   48-51   enum io_backend */
    uint32_t default_level;   /*   52-55   enum level */
    uint32_t layout_version;  /*   56-59   LAYOUT_VERSION */
    uint32_t reserved0;       /*   60-63   zero */
    char broker_version[32];  /*   64-95   NUL-terminated, as all strings here */
    char io_backend_name[16]; /*   96-111  "uring", "pwrite", "mmap" */
    char store_id[48];        /*  112-159 */
    char boot_id[48]; /*  160-207  of the machine: the clocks of another boot say nothing; "" = not known */
    char store_path[1024];  /*  208-1231 absolute; cut if longer */
    char socket_path[128];  /* 1232-1359 */
    uint8_t reserved1[688]; /* 1360-2047 zero */
};

struct stat_copy {
    uint64_t begin;
    struct stat_values values;
    uint64_t end;
};

struct stat_page {
    struct stat_identity identity; /*    0-2047 */
    struct stat_loop loop;         /* 2048-2079 */
    uint8_t reserved[2016];        /* 2080-4095 zero */
    union {
        struct stat_copy copy;
        uint8_t bytes[4096];
    } copies[STAT_COPIES]; /* 4096-8191, 8192-12287 */
};

#define STAT_AT(type, field, at)                                                                             \
    _Static_assert(offsetof(struct type, field) == (at), #type "." #field " moved")
STAT_AT(stat_identity, version, 8);
STAT_AT(stat_identity, page_bytes, 12);
STAT_AT(stat_identity, field_count, 16);
STAT_AT(stat_identity, broker_pid, 20);
STAT_AT(stat_identity, started_wall_ns, 24);
STAT_AT(stat_identity, started_ns, 32);
STAT_AT(stat_identity, epoch, 40);
STAT_AT(stat_identity, io_backend, 48);
STAT_AT(stat_identity, default_level, 52);
STAT_AT(stat_identity, layout_version, 56);
STAT_AT(stat_identity, broker_version, 64);
STAT_AT(stat_identity, io_backend_name, 96);
STAT_AT(stat_identity, store_id, 112);
STAT_AT(stat_identity, boot_id, 160);
STAT_AT(stat_identity, store_path, 208);
STAT_AT(stat_identity, socket_path, 1232);
_Static_assert(sizeof(struct stat_identity) == 2048, "stat_identity");
STAT_AT(stat_loop, updated_ns, 8);
STAT_AT(stat_loop, wake_by_ns, 16);
STAT_AT(stat_page, loop, 2048);
STAT_AT(stat_page, copies, 4096);
_Static_assert(sizeof(struct stat_copy) <= 4096, "a copy fits its page");
_Static_assert(sizeof(struct stat_page) == STAT_PAGE_BYTES, "stat_page");

/* ------------------------------------------------------------------------------------- reader */

struct stat_snapshot {
    struct stat_identity identity;
    struct stat_loop loop;
    struct stat_values values;
    uint64_t updates; /* how often the counters have been written */
};

/* Copies what the mapped page says; `mapped_bytes` is the length of the mapping (the caller has checked that
 * the file has as many). 0; -EPROTO not a page of this version (too short, other magic, version or size);
 * -EAGAIN no whole copy just now.
 * A slow reader may get an update a little older than the one it got before, but always a whole one. */
int stat_page_read(const void *mapped, size_t mapped_bytes, struct stat_snapshot *out) must_check;

/* "log_groups", "session_connections", "loop_turns"; NULL beyond the end. */
const char *stat_field_name(unsigned field);

/* Value number `field` of the lists. */
static inline uint64_t stat_field_value(const struct stat_values *values, unsigned field)
{
    uint64_t value;
    check_bug(field < STAT_FIELD_COUNT);
    memcpy(&value, (const char *)values + sizeof value * field, sizeof value);
    return value;
}

/* How long (ns) the loop has been overdue at `now_ns` (CLOCK_MONOTONIC): in one turn since then, or asleep
 * past the time at which it meant to wake. 0: it is not. (A stopped process that sleeps with nothing due
 * shows only in /proc/PID/stat.) */
int64_t stat_page_stalled(const struct stat_snapshot *snapshot, int64_t now_ns);

/* ------------------------------------------------------------------------------------- writer */

/* `page` is zeroed and mapped. Writes the identity (magic last). */
void stat_page_begin(struct stat_page *page, const struct stat_identity *identity);
/* `update` is the writer's own count of updates, from 1. */
void stat_page_write(struct stat_page *page, const struct stat_values *values, uint64_t update);
void stat_page_loop(struct stat_page *page, enum stat_loop_state state, int64_t now_ns, int64_t wake_by_ns);

#endif
