/* log.h: the commit log of one store, as sessions, tests and tools see it. One log for all topics.
 *
 * Happy path of a write
 *   1. log_topic() finds the topic, or makes one that its first write will put into the catalogue.
 *   2. log_write() admits a write (limits, topic busy, log space), copies its payload once into the gathering
 *      group, checks the copy and checksums it. From here on the client's memory is not looked at again.
 *   3. log_turn() seals the gathering group when no group is in flight: gives sequences, fills headers,
 *      submits the group as one contiguous range of one segment. At most one group is in flight; everything
 *      else gathers.
 *   4. io_wait() reaps the writes, then the one flush; the index learns the group; write->done is called for
 *      each write of the group, in order. Followers of the topic are woken after that.
 *
 * Failure modes
 *   - refused: log_write returns an error and `done` is never called; not one byte went to the kernel (G4).
 *   - write error: the group is written once more in the next segment; if that fails too its writes end with
 *     -EIO, durably rolled back (G3).
 *   - flush error, or a roll-back that cannot be made durable: log_failed() from then on; no `done` is ever
 *     called again; the owner ends the process (G10).
 *   - no space: -ENOSPC at admission; reads go on; heals by itself (G9).
 *
 * Threads: one. Everything here is called from the thread that calls io_wait. */
#ifndef WALRUS_LOG_H
#define WALRUS_LOG_H

#include "../io/io.h"
#include "../../shared/layout.h"

struct log;
struct topic;
struct producer;

/* ----------------------------------------------------------------------------------------- start and stop */

enum say { SAY_ERROR, SAY_WARNING, SAY_NOTICE, SAY_DEBUG };

struct log_options {
    struct io *io;          /* borrowed; outlives the log */
    uint64_t segment_bytes; /* length of segments after the first small ones; 0 = 64 MiB; 4 MiB + 64 KiB to 1
                             * GiB */
    uint64_t memory_bytes;  /* bound of the log's private memory; 0 = 48 MiB; at least 24 MiB */
    uint32_t commit_align;  /* 0 = io->align; a power of two, from io->logical_block to 64 KiB */
    uint8_t level;          /* enum level of topics that are created without one; 0 = LEVEL_DURABLE */
    int64_t interval_ns;    /* LEVEL_WRITTEN and below are flushed at least this often; 0 = 200 ms */
    uint32_t max_topics;    /* 0 = 65,536 */
    uint32_t max_topics_of_uid;   /* made by one uid; 0 = max_topics */
    uint32_t max_named;           /* (named producer, topic) pairs and named producers, each; 0 = 65,536 */
    uint32_t max_named_of_uid;    /* of each, one uid's; 0 = max_named */
    uint32_t max_anonymous;       /* anonymous producers remembered; 0 = 4,096 */
    uint64_t max_batch_bytes;     /* payload and ENTRY_OVERHEAD per entry; 0 = MAX_BATCH_BYTES */
    struct watermark *watermarks; /* zeroed, borrowed; may be NULL. A topic has slot n < watermark_slots, or
                                   * NO_WATERMARK if there are fewer slots than topics */
    uint32_t watermark_slots;
    int64_t lock_wait_ns;    /* how long a start waits for a dead predecessor's I/O; 0 = 30 s */
    bool prepare_only_spare; /* tests: no background preparation beyond one segment */
    void (*say)(void *context, enum say priority, const char *line);
    void *context;
};

/* Starts on the folder behind options->io: makes an empty store of an empty folder, else locks, recovers and
 * serves. Blocks. Errors (err->text names store, place and way out): -ENOTEMPTY not a store; -EPROTONOSUPPORT
 * of a newer format; -EBUSY held by a living broker; -ETIMEDOUT a dead predecessor's I/O does not end;
 * -EBADMSG damage before the tail; -EROFS, -EACCES, -ENOSPC, -EIO, -ENOMEM as the system has them. */
int log_start(const struct log_options *options, struct log **out, struct error *err) must_check;

/* Commits what was admitted, flushes, writes a clean checkpoint, releases everything. Blocks. Writes still
 * waiting for `done` get it. If the log has failed, or on error, it just releases everything (no `done`). */
int log_stop(struct log *log, struct error *err) must_check;

/* Releases everything without writing a byte, as a crash would (after log_failed(), and in the simulator).
 * Ops in flight are waited for. No `done` is called. */
void log_abandon(struct log *log);

/* NULL, or why the log has fail-stopped. */
const struct error *log_failed(const struct log *log);

/* Drives the log: seals, submits, prepares segments, keeps deadlines. Call after each io_wait and after
 * admitting writes. Ends with io_kick. Returns the time (io_now) at which it must be called again at the
 * latest; INT64_MAX for none. */
int64_t log_turn(struct log *log);

/* True while a group is in the device or gathering. */
bool log_busy(const struct log *log);
/* Until when a gathered group waits for more (see delay.c), or 0. */
int64_t log_delayed_until(const struct log *log);

/* ------------------------------------------------------------------------------------------------ topics */

#define NO_WATERMARK UINT32_MAX
#define NO_UID       UINT32_MAX /* nobody's: counts for no uid */

/* Finds the topic `name`; with `make`, makes one in memory if there is none: its first write puts it into
 * the catalogue, with `level` (0 = the log's default), which an existing topic keeps as it has it, and with
 * the uid that made it. Takes a reference.
 * -EINVAL bad name; -ENOENT; -EDQUOT too many topics, or of this uid; -ENOMEM. */
int log_topic(struct log *log, const char *name, size_t length, uint8_t level, uint32_t uid, bool make,
              struct topic **out) must_check;
void log_topic_release(struct log *log, struct topic *topic);

struct topic_view {
    uint32_t id; /* 0 until it is in the catalogue */
    const char *name;
    size_t name_length;
    uint8_t level;
    uint64_t first_sequence; /* first one that can still be read */
    uint64_t visible_next;   /* entries below it may be read */
    uint64_t durable_next;
    uint32_t watermark; /* slot, or NO_WATERMARK */
    uint32_t uid;       /* who made it, or NO_UID */
};
void log_topic_view(const struct topic *topic, struct topic_view *view);
/* The topic of the catalogue with the smallest id above `id`, or NULL. No reference is taken: use it at
 * once. */
struct topic *log_topic_after(struct log *log, uint32_t id);

/* One call of wake() when the visible end of the topic moved, or the topic got its first entry; then it is
 * off the list. */
struct topic_waiter {
    void (*wake)(struct topic_waiter *waiter);
    struct topic_waiter *next, **link; /* link != NULL: on a list */
};
void log_topic_wait(struct topic *topic, struct topic_waiter *waiter);
void log_topic_wait_cancel(struct topic_waiter *waiter);

/* True if a batch of another owner is in progress: a write of `owner` would get -EBUSY. */
bool log_topic_busy(const struct topic *topic, const void *owner);
/* A word per topic for the caller's use, NULL at first. It must be NULL again before the last reference
 * goes. */
void **log_topic_word(struct topic *topic);
/* `call` is made whenever a topic whose word is not NULL stops being busy: just before the completion that
 * ends its last batch in progress, or in log_stream_abort. It must not call the log. One for all topics. */
void log_on_topic_free(struct log *log, void (*call)(void *context, struct topic *topic), void *context);

/* ------------------------------------------------------------------------------------------------ producers
 *
 * A producer numbers its batches, 1, 2, ..., for each topic by itself. Number n is admitted only after n - 1,
 * and only a commit takes a number, so what is committed of a producer on a topic is 1 to last, without gap.
 * Producers are a catalogue like topics: an id, never used again; a uid; a name, or none. Named ones are
 * remembered for ever; of the anonymous ones the lowest ids are forgotten, which raises the horizon: an id
 * that is not known is new only if it lies above it. */

/* Finds or makes the named producer. Takes a reference. -EINVAL bad name; -EACCES it belongs to another uid;
 * -EDQUOT; -ENOMEM. */
int log_producer_named(struct log *log, const char *name, size_t length, uint32_t uid,
                       struct producer **out) must_check;
/* A new anonymous one. -ENOMEM. */
int log_producer_anonymous(struct log *log, uint32_t uid, struct producer **out) must_check;
/* The anonymous one with this id again. -ENOENT: nothing was ever committed under it, take a new one;
 * -ENODATA: it was forgotten, or never existed; -EACCES it belongs to another uid or has a name; -ENOMEM. */
int log_producer_again(struct log *log, uint64_t id, uint32_t uid, struct producer **out) must_check;
void log_producer_release(struct log *log, struct producer *producer);
uint64_t log_producer_id(const struct producer *producer);
/* A word per producer for the caller's use (its holder), NULL at first. */
void **log_producer_word(struct producer *producer);

/* The last number of the producer committed on the topic; 0 = none. */
uint64_t log_last_number(const struct log *log, const struct producer *producer, const struct topic *topic);
/* Was it committed? 1 (then *first_sequence and *entries say where, if that is still known, else 0), 0 no,
 * -EINPROGRESS it was admitted and is not decided. */
int log_query(const struct log *log, const struct producer *producer, const struct topic *topic,
              uint64_t number, uint64_t *first_sequence, uint64_t *entries) must_check;

/* ------------------------------------------------------------------------------------------------ writes */

enum write_kind {
    WRITE_APPEND, /* one entry; appends of different handles are taken together */
    WRITE_BATCH,  /* a whole batch */
    WRITE_CHUNK,  /* part of a stream */
};

/* One batch that comes in chunks. The session makes it zeroed (topic, owner, level set) before the first
 * chunk and keeps it until the last chunk's `done`, or log_stream_abort (not after the last chunk was taken).
 * A chunk that is not the last is `done` in the next log_turn: it says only that its payload has been
 * copied. */
struct stream {
    struct topic *topic;
    const void *owner; /* the handle; see struct write */
    uint8_t level;
    /* the log's */
    uint64_t id;
    uint64_t entries;
    uint64_t bytes; /* payload and overhead so far, as the 10 GiB limit counts them */
    uint32_t chunks;
    bool last_taken; /* the whole batch is published */
    bool open_entry; /* the last piece goes on in the next chunk */
    bool admitted;
    bool failed; /* nothing more is taken; ends with `error` */
    int error;
    uint64_t first_segment;
    struct stream *next;
};

struct write {
    /* the caller's */
    enum write_kind kind;
    bool first, last;      /* WRITE_CHUNK */
    uint8_t level;         /* 0 = the topic's; a lower one than the topic's counts as the topic's */
    struct topic *topic;   /* referenced until `done` */
    const void *owner;     /* identity of the handle, for -EBUSY; only compared */
    struct stream *stream; /* WRITE_CHUNK */
    const void *payload;   /* hostile memory; read once, inside log_write */
    const void *records;   /* hostile memory; struct entry_record[entries] */
    uint32_t entries;
    uint32_t payload_bytes;    /* a multiple of PAYLOAD_ALIGN, up to MAX_WHOLE_PAYLOAD, for chunks
                                * MAX_CHUNK_PAYLOAD */
    struct producer *producer; /* NULL: none; referenced until `done` */
    uint64_t number; /* with a producer: batch number, from 1 (of a chunk only if it is the last; else 0) */
    int64_t drained_ns; /* io_now of a moment ago; 0: the log looks at the clock itself */
    void (*done)(struct write *write);

    /* results: valid in `done`; of a refusal only result and reason */
    int result;              /* 0 or a negative errno */
    uint8_t reason;          /* enum reason */
    uint32_t retry_after_us; /* with -EBUSY: when a try may succeed, from the measured time of a group */
    uint8_t level_reached;
    uint32_t flags; /* enum completion_flag */
    uint64_t first_sequence;
    uint64_t committed; /* entries of the whole batch */
    uint64_t group;
    int64_t submitted_ns;
    int64_t durable_ns;

    /* the log's */
    struct write *next;
};

/* Admits and copies. 0: taken, `done` follows from a later io_wait or log_turn (never from here); its result
 * may then still be -EAGAIN with REASON_ORDER: a number before it failed. 1: that number is committed already
 * (a stream is rolled back): results are as in `done`, with COMPLETION_DUPLICATE, and `done` does not follow;
 * first_sequence and committed are 0 if they are not known any more. Else refused, `done` does not follow:
 *   -EINVAL  limits or the copied records do not add up (for a chunk: the stream is rolled back)
 *   -EBUSY   REASON_TOPIC: a batch of another owner is in progress on this topic
 *   -EAGAIN  REASON_MEMORY, REASON_SPACE: hold it and try again after the next log_turn; clears by itself
 *   -EAGAIN  REASON_ORDER: the number before it is not committed and not admitted, or this one is admitted
 *   -ENOSPC  no log space and none being prepared; -EDQUOT too many topics; -ESHUTDOWN the log is stopping or
 *   has failed -EIO, -ENOSPC, ... (chunk of a failed stream): stream->error */
int log_write(struct log *log, struct write *write) must_check;

/* Rolls a stream back: its chunks become dead bytes and its topic is free; the log forgets the struct. Also
 * right for a stream that has failed or was never admitted; not once the last chunk was taken. */
void log_stream_abort(struct log *log, struct stream *stream);

/* ------------------------------------------------------------------------------------------------ reads */

struct log_read {
    /* the caller's */
    struct topic *topic;   /* referenced until `done` */
    uint64_t from;         /* first sequence; 0 = the first one there is */
    uint64_t entry_offset; /* start inside entry `from`; a multiple of 4096 */
    uint32_t max_entries;  /* 1 to MAX_BATCH_ENTRIES */
    uint32_t max_bytes;    /* payload bytes wanted; at least one entry, or a piece of it, is returned */
    uint8_t *buffer;       /* gets struct run, ...; PAYLOAD_ALIGN aligned */
    uint32_t buffer_bytes; /* at least 16 KiB */
    void (*done)(struct log_read *read);
    void *owner;

    /* results */
    int result;    /* entries returned (a piece counts as 1; 0 = nothing visible at `from` yet) or -EBADMSG,
                    * -EIO, -ENODATA, -EINVAL */
    uint32_t used; /* bytes of buffer */
    uint64_t first_sequence;
    uint64_t next_sequence; /* where to go on; stays at the entry while a piece is not its last one */
    uint64_t end_sequence;  /* visible end */
    bool unstable;

    /* the log's */
    struct log_read *next;
    uint64_t search[4];
};
/* `done` follows from io_wait or log_turn, never from here. The text for -EBADMSG goes to say(). */
void log_read(struct log *log, struct log_read *read);

/* ------------------------------------------------------------------------------------------------ numbers */

/* Counters since the start, and gauges. Copied by value into the stat page: fixed width. */
struct log_stats {
    uint64_t epoch;
    uint64_t groups, batches, entries, payload_bytes, log_bytes, flushes, chunks;
    uint64_t refused_busy, refused_space, refused_invalid;
    uint64_t rollbacks, failed_batches, lost_batches;
    uint64_t segments, prepared_segments, segment_number, segment_used, segment_length;
    uint64_t topics, streams_open;
    uint64_t checkpoints, reads, read_entries, read_bytes, read_cache_hits, damaged_reads;
    uint64_t start_ns, start_groups_walked, start_groups_copied, start_bytes_cut;
    uint64_t memory_bytes;
    uint64_t space_free;
};
void log_stats(const struct log *log, struct log_stats *stats);
const char *log_store_id(const struct log *log); /* 32 hex digits */

#endif
