/* big_batch.c: one batch as large as there can be, through the default arena.
 *
 *   1. A writer (a process of its own) sends the batch. Long: WALRUS_MAX_BATCH_BYTES to the byte, in 2,000
 *      entries; one byte more is refused first, and that changes nothing. Short: one entry of 1 GiB, in
 * parts.
 *   2. Meanwhile a reader sees nothing of it: it is there at the end, as a whole.
 *   3. It is read back, length and checksum are compared. The broker's memory at its highest is at most
 *      GROWTH_KIB above idle.
 *   4. Another one is begun; in the middle of it the broker is killed. After its restart there is no trace
 * of it: what was there is there, and the next entry gets the next sequence number. */
#include <signal.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xxhash.h>

#include "soak.h"

#define TOPIC       "big"
#define MARK        "the entry before"
#define MANY        WALRUS_MAX_BATCH_ENTRIES
#define POOL_BYTES  (8u << 20)
#define PART_BYTES  (1u << 20)
#define GROWTH_KIB  (64u << 10) /* P10 */
#define SLACK_BYTES (UINT64_C(1) << 30)

struct big {
    struct verdict verdict;
    uint64_t sent;      /* bytes so far */
    uint64_t hash;      /* of all entries, when it is submitted */
    uint32_t submitted; /* the last piece is about to be sent */
    uint32_t done;
    int32_t result; /* of the batch, when done */
};

struct shape {
    uint64_t entries, bytes; /* payload */
};

static uint64_t entry_bytes(const struct shape *shape, uint64_t index)
{
    uint64_t each = shape->bytes / shape->entries;
    return index + 1 < shape->entries ? each : shape->bytes - each * (shape->entries - 1);
}

static struct shape shape_of(const struct run *run)
{
    struct shape shape = {.entries = MANY,
                          .bytes = WALRUS_MAX_BATCH_BYTES - (uint64_t)MANY * WALRUS_ENTRY_OVERHEAD};
    if (run->soak->is_short)
        shape = (struct shape){.entries = 1, .bytes = run->required << 20};
    return shape;
}

/* ------------------------------------------------------------------------------------- the writer */

struct writer {
    struct big *big;
    walrus *handle;
    walrus_batch *batch;
    uint8_t *pool; /* random bytes; places in it follow from the position in the batch */
    XXH3_state_t *hash;
};

static const uint8_t *piece_at(const struct writer *writer, uint64_t position)
{
    return writer->pool + position / 7 % (POOL_BYTES - PART_BYTES);
}

/* One entry, in parts. 0 or the library's error. */
static int send_entry(struct writer *writer, uint64_t length)
{
    uint64_t left = length;
    int rc = 0;
    while (rc == 0 && left > 0) {
        size_t part = (size_t)min_u64(left, PART_BYTES);
        const uint8_t *from = piece_at(writer, writer->big->sent);
        rc = walrus_batch_add_part(writer->batch, from, part, left > part);
        XXH3_64bits_update(writer->hash, from, part);
        left -= part;
        __atomic_store_n(&writer->big->sent, writer->big->sent + part, __ATOMIC_RELAXED);
    }
    return rc;
}

/* One byte over the limit is refused, and the batch is as it was. */
static void expect_refusal(struct writer *writer, uint64_t length)
{
    uint8_t *room = malloc(length + 1);
    if (room == NULL)
        return;
    memset(room, 0, length + 1);
    int rc = walrus_batch_add(writer->batch, room, length + 1);
    free(room);
    if (rc != -EINVAL)
        verdict_set(&writer->big->verdict,
                    "a batch of one byte more than %llu is not refused with -EINVAL but %d",
                    (unsigned long long)WALRUS_MAX_BATCH_BYTES, rc);
}

static int send_batch(struct writer *writer, const struct shape *shape)
{
    int rc = 0;
    for (uint64_t i = 0; i < shape->entries && rc == 0; i++) {
        bool is_exact = shape->bytes + shape->entries * WALRUS_ENTRY_OVERHEAD == WALRUS_MAX_BATCH_BYTES;
        if (is_exact && i + 1 == shape->entries)
            expect_refusal(writer, entry_bytes(shape, i));
        rc = send_entry(writer, entry_bytes(shape, i));
    }
    if (rc < 0)
        return rc;
    writer->big->hash = XXH3_64bits_digest(writer->hash);
    __atomic_store_n(&writer->big->submitted, 1, __ATOMIC_RELEASE);
    struct walrus_submit_options options = {.size = sizeof options, .user_data = 7};
    rc = walrus_batch_submit(writer->batch, &options);
    writer->batch = NULL;
    struct walrus_completion completion;
    if (rc == 0)
        rc = walrus_wait(writer->handle, 1, PATIENCE_NS);
    if (rc == 0 && walrus_reap(writer->handle, &completion, 1) != 1)
        rc = -ENODATA;
    if (rc == 0 && completion.result == 0 && completion.receipt.count != shape->entries)
        verdict_set(&writer->big->verdict, "the receipt counts %llu entries of %llu",
                    (unsigned long long)completion.receipt.count, (unsigned long long)shape->entries);
    return rc < 0 ? rc : completion.result;
}

__attribute__((noreturn)) static void be_writer(const struct run *run, struct big *big,
                                                const struct shape *shape)
{
    struct writer writer = {.big = big, .pool = malloc(POOL_BYTES), .hash = XXH3_createState()};
    struct error err = {0};
    walrus_topic *topic;
    uint64_t seed = run->soak->seed;
    if (writer.pool == NULL || writer.hash == NULL) {
        verdict_set(&big->verdict, "out of memory");
        _exit(1);
    }
    for (size_t at = 0; at < POOL_BYTES; at += 8) {
        uint64_t word = random_next(&seed);
        memcpy(writer.pool + at, &word, 8);
    }
    XXH3_64bits_reset(writer.hash);
    int rc = soak_connect(run, &(struct walrus_connect_options){0}, &writer.handle, &err);
    if (rc == 0 && (rc = walrus_topic_open(writer.handle, TOPIC, strlen(TOPIC), NULL, &topic)) == 0)
        rc = walrus_batch_begin(topic, &writer.batch);
    if (rc == 0)
        rc = send_batch(&writer, shape);
    big->result = rc;
    __atomic_store_n(&big->done, 1, __ATOMIC_RELEASE);
    _exit(0);
}

/* ------------------------------------------------------------------------------------- the reader */

/* Number of the next entry to come; 0 with an error. */
static int next_of(walrus *handle, uint64_t *next, struct error *err)
{
    struct walrus_topic_info info = {.size = sizeof info};
    int rc;
    while ((rc = walrus_next_topic(handle, &info)) > 0) {
        if (strcmp(info.name, TOPIC) == 0) {
            *next = info.next_sequence;
            return 0;
        }
    }
    return error_set(err, rc < 0 ? rc : -ENOENT, "cannot find the topic: %s", walrus_error(handle));
}

static int read_back(walrus *handle, const struct big *big, const struct shape *shape, struct error *err)
{
    struct walrus_read_options options = {.size = sizeof options, .max_entries = 1};
    XXH3_state_t *hash = XXH3_createState();
    uint64_t bytes = 0;
    int rc = hash != NULL ? 0 : error_set(err, -ENOMEM, "out of memory");
    if (rc == 0)
        XXH3_64bits_reset(hash);
    for (uint64_t i = 0; i < shape->entries && rc == 0 && (rc = run_interrupted(err)) == 0; i++) {
        walrus_entries *entries = NULL;
        struct walrus_entry entry;
        int count = walrus_batch_read_for_topic(handle, TOPIC, 2 + i, &options, &entries);
        if (count != 1 || walrus_entries_get(entries, 0, &entry) != 1)
            rc = error_set(err, -EBADMSG, "entry %llu of the batch cannot be read (%d): %s",
                           (unsigned long long)i, count, walrus_error(handle));
        else if (entry.length != entry_bytes(shape, i) || entry.sequence != 2 + i)
            rc = error_set(err, -EBADMSG, "entry %llu of the batch has %llu bytes, %llu were written",
                           (unsigned long long)i, (unsigned long long)entry.length,
                           (unsigned long long)entry_bytes(shape, i));
        else
            XXH3_64bits_update(hash, entry.data, entry.length);
        bytes += rc == 0 ? entry.length : 0;
        walrus_entries_release(entries);
    }
    if (rc == 0 && (bytes != shape->bytes || XXH3_64bits_digest(hash) != big->hash))
        rc = error_set(err, -EBADMSG, "what was read back is not what was written");
    XXH3_freeState(hash);
    return rc;
}

/* ------------------------------------------------------------------------------------- the job */

/* Until the writer has sent `bytes`, or has ended. Nothing of it is to be seen meanwhile. */
static int watch(struct run *run, walrus *handle, struct big *big, uint64_t bytes, struct error *err)
{
    int64_t moved = now_ns();
    uint64_t seen = 0;
    for (;;) {
        uint64_t next = 0, sent = __atomic_load_n(&big->sent, __ATOMIC_RELAXED);
        bool submitted = __atomic_load_n(&big->submitted, __ATOMIC_ACQUIRE) != 0;
        if (__atomic_load_n(&big->done, __ATOMIC_ACQUIRE) != 0 || sent >= bytes)
            return verdict_check(&big->verdict, err);
        int rc = next_of(handle, &next, err);
        if (rc == 0 && next != 2 && !submitted && __atomic_load_n(&big->submitted, __ATOMIC_ACQUIRE) == 0)
            rc = error_set(err, -EBADMSG, "%llu entries are visible before the batch is complete",
                           (unsigned long long)next - 1);
        if (rc == 0)
            rc = run_interrupted(err);
        if (rc < 0)
            return rc;
        if (sent != seen)
            moved = now_ns();
        seen = sent;
        if (now_ns() - moved > PATIENCE_NS)
            return error_set(err, -ETIMEDOUT, "the batch does not move on at byte %llu",
                             (unsigned long long)sent);
        run_progress(run, "%llu MiB sent", (unsigned long long)(sent >> 20));
        pause_ns(20 * NS_PER_MS);
    }
}

/* Writes the batch and reads it back. The topic has one entry before. */
static int whole_batch(struct run *run, struct big *big, struct error *err)
{
    walrus *handle = NULL;
    struct shape shape = shape_of(run);
    struct footprint idle, after;
    int status, rc = broker_footprint(run, &idle, err);
    if (rc < 0)
        return rc;
    int64_t begin = now_ns();
    pid_t writer = child_fork();
    if (writer == 0)
        be_writer(run, big, &shape);
    rc = writer > 0 ? soak_connect(run, &(struct walrus_connect_options){0}, &handle, err)
                    : error_set(err, -errno, "fork: %s", strerror(errno));
    if (rc == 0)
        rc = watch(run, handle, big, UINT64_MAX, err);
    if (rc == 0)
        rc = child_wait(writer, &status, err);
    else
        child_end(writer);
    if (rc == 0)
        rc = verdict_check(&big->verdict, err);
    if (rc == 0 && big->result != 0)
        rc = error_set(err, big->result, "the batch failed: %s", strerror(-big->result));
    double seconds = (double)(now_ns() - begin) / 1e9;
    if (rc == 0)
        rc = broker_footprint(run, &after, err);
    if (rc == 0 && !run->soak->no_memory && after.hwm_kib > idle.rss_kib + GROWTH_KIB)
        rc = error_set(err, -ENOMEM, "P10: the broker's VmHWM is %llu KiB, at rest it had %llu",
                       (unsigned long long)after.hwm_kib, (unsigned long long)idle.rss_kib);
    run_progress(run, "reading back");
    if (rc == 0)
        rc = read_back(handle, big, &shape, err);
    if (rc == 0)
        snprintf(run->totals, sizeof run->totals,
                 "%llu entries, %llu bytes as one batch in %.1f s (%.0f MB/s); VmHWM %.1f MiB above idle",
                 (unsigned long long)shape.entries, (unsigned long long)shape.bytes, seconds,
                 (double)shape.bytes / seconds / 1e6, (double)(after.hwm_kib - idle.rss_kib) / 1024);
    walrus_close(handle);
    return rc;
}

/* After a restart the topic ends where it did. */
static int no_trace(const struct run *run, uint64_t next_before, struct error *err)
{
    walrus *handle;
    uint64_t next = 0;
    struct walrus_receipt receipt = {0};
    walrus_entries *entries = NULL;
    struct walrus_entry entry;
    int rc = soak_connect(run, &(struct walrus_connect_options){0}, &handle, err);
    if (rc < 0)
        return rc;
    rc = next_of(handle, &next, err);
    if (rc == 0 && next != next_before)
        rc = error_set(err, -EBADMSG,
                       "after a kill in the middle of a batch the topic ends at %llu, not at %llu",
                       (unsigned long long)next, (unsigned long long)next_before);
    if (rc == 0 && walrus_append_for_topic(handle, TOPIC, MARK, strlen(MARK), NULL, &receipt) != 0)
        rc = error_set(err, -EIO, "cannot append after the restart: %s", walrus_error(handle));
    if (rc == 0 && receipt.first_sequence != next_before)
        rc = error_set(err, -EBADMSG, "the next entry after a kill got sequence %llu, not %llu",
                       (unsigned long long)receipt.first_sequence, (unsigned long long)next_before);
    if (rc == 0 && (walrus_batch_read_for_topic(handle, TOPIC, next_before, NULL, &entries) != 1 ||
                    walrus_entries_get(entries, 0, &entry) != 1 || entry.length != strlen(MARK) ||
                    memcmp(entry.data, MARK, strlen(MARK)) != 0))
        rc = error_set(err, -EBADMSG, "the entry after the kill cannot be read: %s", walrus_error(handle));
    walrus_entries_release(entries);
    walrus_close(handle);
    return rc;
}

/* The broker is killed when a random part of the batch is sent. */
static int kill_in_the_middle(struct run *run, struct big *big, struct error *err)
{
    struct shape shape = shape_of(run);
    uint64_t next = 0, most = min_u64(shape.bytes / 2, UINT64_C(1) << 30);
    uint64_t bytes = PART_BYTES + random_below(&run->random, most);
    walrus *handle;
    *big = (struct big){0};
    int rc = soak_connect(run, &(struct walrus_connect_options){0}, &handle, err);
    if (rc < 0)
        return rc;
    rc = next_of(handle, &next, err);
    walrus_close(handle);
    if (rc < 0)
        return rc;
    pid_t writer = child_fork();
    if (writer == 0)
        be_writer(run, big, &shape);
    if (writer < 0)
        return error_set(err, -errno, "fork: %s", strerror(errno));
    int64_t limit = now_ns() + PATIENCE_NS;
    while (__atomic_load_n(&big->sent, __ATOMIC_RELAXED) < bytes && now_ns() < limit)
        pause_ns(NS_PER_MS);
    bool submitted = __atomic_load_n(&big->submitted, __ATOMIC_ACQUIRE) != 0;
    broker_kill(run);
    child_end(writer);
    if (now_ns() >= limit || submitted)
        return error_set(err, -ETIMEDOUT, "the broker could not be killed in the middle of the batch");
    rc = broker_start(run, err);
    return rc == 0 ? no_trace(run, next, err) : rc;
}

/* The reader puts a large entry together in its own memory. */
static int memory_needs(uint64_t bytes, struct error *err)
{
    struct sysinfo info;
    if (sysinfo(&info) != 0 || (uint64_t)info.totalram * info.mem_unit >= 2 * bytes)
        return 0;
    (void)error_set(err, -ENOMEM, "reading an entry of %llu MiB needs more memory than there is",
                    (unsigned long long)(bytes >> 20));
    return SOAK_SKIPPED;
}

static int write_mark(const struct run *run, struct error *err)
{
    walrus *handle;
    int rc = soak_connect(run, &(struct walrus_connect_options){0}, &handle, err);
    if (rc < 0)
        return rc;
    rc = walrus_append_for_topic(handle, TOPIC, MARK, strlen(MARK), NULL, NULL);
    if (rc < 0)
        (void)error_set(err, rc, "cannot append: %s", walrus_error(handle));
    walrus_close(handle);
    return rc;
}

int job_big_batch(struct run *run, struct error *err)
{
    struct shape shape = shape_of(run);
    struct big *big = shared_new(sizeof *big);
    uint64_t kills = 0;
    int rc = big != NULL ? place_needs(run, shape.bytes * 3 / 2 + 3 * SLACK_BYTES, err)
                         : error_set(err, -ENOMEM, "out of memory");
    if (rc == 0)
        rc = memory_needs(entry_bytes(&shape, 0), err);
    if (rc == 0)
        rc = broker_start(run, err);
    if (rc == 0)
        rc = write_mark(run, err);
    if (rc == 0)
        rc = whole_batch(run, big, err);
    do {
        if (rc == 0)
            rc = kill_in_the_middle(run, big, err);
        kills++;
        run->kills = kills;
        run->done = run->required;
        run_progress(run, "%llu kills in the middle", (unsigned long long)kills);
    } while (rc == 0 && kills < 3 && !run->soak->is_short);
    if (rc == 0) {
        size_t length = strlen(run->totals);
        snprintf(run->totals + length, sizeof run->totals - length,
                 "; %llu kills in the middle left no trace", (unsigned long long)kills);
        rc = broker_stop(run, err);
    }
    shared_free(big, sizeof *big);
    return rc;
}
