/* walrus.h: write batches of entries so that 0 means "it is on disk".
 *
 * libwalrus-client talks to the broker (walrusd) of this host through shared memory. A batch is committed
 * whole or not at all, durably, and in order within its topic.
 *
 * Rules that hold for everything here
 *   - Threads: a handle (struct walrus) and all that hangs on it (topics, batches, entries) is used by one
 *     thread at a time; it may be handed from thread to thread. Many handles in one thread, or one each in
 *     many threads, are fine.
 *   - fork: a handle does not survive it. In the child every call on it returns -EOWNERDEAD; walrus_close
 *     only releases memory. The connection ends with the process that made it, whatever a child keeps open.
 *   - The library installs no signal handlers, starts no threads, prints nothing, raises no SIGPIPE.
 *   - Calls return 0 (or a count) or a negative errno. walrus_error() gives the words of the last error of
 *     the handle.
 *   - Times are int64_t nanoseconds, monotonic and relative; negative means for ever.
 *   - Pointers from walrus_batch_reserve are aligned to 16 bytes and valid until submit or abort; entries
 *     that were read, until walrus_entries_release.
 *   - Completions of one topic come in commit order. Blocking and asynchronous calls mix on one handle.
 *   - Option structs carry their size in `size`: set it to sizeof, the rest to zero, then what you want
 *     (struct walrus_write_options o = {.size = sizeof o}). NULL options mean all defaults.
 *
 * Caveats
 *   - 0 says that the receipt's level was reached. With a topic at WALRUS_LEVEL_DURABLE (the default) that is
 *     "survives power loss"; lower levels are a choice of the topic or the broker, see enum walrus_level.
 *   - -ECONNRESET and -EINPROGRESS say that the outcome is not known; all other errors of writes say "not
 *     written, never will be". With a producer (see walrus_connect_options) the outcome can always be asked
 *     for: walrus_query.
 *   - Without WALRUS_RECONNECT, once the connection is lost every call says so: -ECONNRESET, or -EPROTO if
 *     this library ended it because the broker broke the protocol (batches in flight are -ECONNRESET then,
 *     too). Close the handle and connect again.
 *   - A device that lies about flushes cannot be helped from here.
 *
 * Who waits for whom
 *   - A topic takes one handle's batches at a time. Another handle's batch or append is refused (-EBUSY), or
 *     with `queue` waits for its turn, or with `notify` is told when a try may succeed. Of the queue_entries
 *     - 1 that a handle has, those that wait like this leave two: so the chunks of its own streams, and a
 *     walrus_cancel, always get through.
 *   - A batch that outgrew the arena has its topic from its first chunk to its end. Who stops in the middle
 *     is rolled back by the broker after a while (-ECANCELED). Do not wait for another topic's turn with one
 *     open: two programs that do this crosswise wait until then.
 *
 * Exactly once
 *   - A handle with a producer (a name, or WALRUS_RECONNECT) numbers what it writes, for each topic by
 *     itself: 1, 2, 3, ... Number n is admitted only after n - 1, and only a commit takes a number: one that
 *     was refused, cancelled, aborted or failed is used again, and what followed it in flight gets -EAGAIN
 *     with the reason ORDER: reap it all, then send it again, in order. A number that is committed already is
 *     answered 0 with the flag DUPLICATE and writes nothing. So whatever died in between, sending the same
 *     number again never commits twice.
 *   - The library numbers by itself, over topic handles and blocking calls alike. `number` in the option
 *     structs is for programs with a count of their own (a line of a file, an offset): after a restart they
 *     go on at walrus_topic_last_number + 1. A number that is given must go with the same entries each time.
 */
#ifndef WALRUS_H
#define WALRUS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define WALRUS_API        __attribute__((visibility("default")))
#define WALRUS_MUST_CHECK __attribute__((warn_unused_result))
#else
#define WALRUS_API
#define WALRUS_MUST_CHECK
#endif

#define WALRUS_VERSION_MAJOR  0
#define WALRUS_VERSION_MINOR  1
#define WALRUS_VERSION_PATCH  0
#define WALRUS_VERSION_STRING "0.1.0"

/* Limits. */
#define WALRUS_MAX_BATCH_ENTRIES 2000u            /* entries in a batch, and entries one read returns */
#define WALRUS_MAX_BATCH_BYTES   (10240ull << 20) /* payload bytes + WALRUS_ENTRY_OVERHEAD for each entry */
#define WALRUS_ENTRY_OVERHEAD    64u
#define WALRUS_MAX_TOPIC_NAME    255u /* bytes; no control characters (0x00-0x1f, 0x7f) */

typedef struct walrus walrus;                 /* one connection to the broker */
typedef struct walrus_topic walrus_topic;     /* a topic as one handle knows it */
typedef struct walrus_batch walrus_batch;     /* a batch being filled or under way */
typedef struct walrus_entries walrus_entries; /* what one read returned */

/* The library's version at run time, e.g. "0.1.0". Static storage. Any thread. */
WALRUS_API const char *walrus_version(void);

/* ---------------------------------------------------------------------------------- connection */

enum walrus_level {
    WALRUS_LEVEL_DEFAULT = 0,  /* the topic's; for a new topic the broker's --durability */
    WALRUS_LEVEL_ACCEPTED = 1, /* in the broker's memory: survives this process */
    WALRUS_LEVEL_WRITTEN = 2,  /* the device has taken the write: survives the broker */
    WALRUS_LEVEL_DURABLE = 3   /* flushed: survives power loss */
};

enum walrus_connect_flag {
    WALRUS_REQUIRE_IO_URING = 1u << 0, /* -EOPNOTSUPP unless io_uring is the broker's active back end */
    /* When the connection is lost (the broker died, was restarted): connect again, with growing pauses,
     * inside the calls on this handle, and send again what was in flight, under its numbers. What was
     * committed is then answered 0 with DUPLICATE; a stream that was not cannot be sent again: -ECANCELED. */
    WALRUS_RECONNECT = 1u << 1,
    WALRUS_TAKE_OVER = 1u << 2 /* of `producer` from its holder, if it lives: see there */
};

struct walrus_connect_options {
    size_t size;             /* sizeof(struct walrus_connect_options) */
    const char *socket_path; /* NULL: WALRUS_SOCKET, else the default of walrusd for this user */
    const char *instance;    /* NULL: WALRUS_INSTANCE, else none */
    uint32_t flags;          /* enum walrus_connect_flag */
    uint32_t queue_entries;  /* batches and reads in flight, + 1; a power of two, 8 to 4096; 0 = 256 */
    uint64_t arena_bytes;    /* memory for batches being filled and in flight; 64 KiB to 1 GiB; 0 = 1 MiB */
    uint64_t window_bytes;   /* for entries being read; 64 KiB to 64 MiB, a power of two; 0 = 256 KiB */
    int64_t timeout_ns;      /* for connecting; 0 = 5 s */
    int64_t spin_ns;         /* how long a wait spins before it sleeps; 0 = adaptive, < 0 never */
    char *error;             /* where the words go if there is no handle yet; may be NULL */
    size_t error_size;
    /* Name of the producer, by the rules of topic names, or NULL. It belongs to the first uid that uses it
     * and is remembered for ever. It has one holder: while another connection has it, -EBUSY, or with
     * WALRUS_TAKE_OVER that one is fenced (-ESTALE from then on) once what it had published is decided. A
     * holder that died is no holder. */
    const char *producer;
    int64_t reconnect_ns; /* WALRUS_RECONNECT: give up after so long without a broker; 0 = 30 s, < 0 never */
};

/* Connects. On success *handle is yours until walrus_close. -EINVAL option out of range; -ENOTCONN no
 * socket there; -ECONNREFUSED nobody listens on it (a stale socket); -EACCES not allowed; -EPROTO another
 * layout version; -EDQUOT the broker's limits for this user; -EOPNOTSUPP io_uring required and not active;
 * -EBUSY the producer has a living holder; -EACCES also: the producer belongs to another user; -ETIMEDOUT;
 * -ENAMETOOLONG the path is too long for a socket; -ENOMEM, -EMFILE. What to do: as the words say. */
WALRUS_API int walrus_connect(walrus **handle,
                              const struct walrus_connect_options *options) WALRUS_MUST_CHECK;

/* Disconnects and frees everything that hangs on the handle. Batches submitted are committed all the same;
 * their completions are lost. NULL is fine. */
WALRUS_API void walrus_close(walrus *handle);

/* Words of the handle's last error: what, where, the way out. Never NULL; valid until the next call on the
 * handle. */
WALRUS_API const char *walrus_error(const walrus *handle);

/* Why the handle's last call said -EAGAIN or -EBUSY: enum walrus_reason. Completions say it in their
 * receipt. */
WALRUS_API int walrus_reason(const walrus *handle);

/* One descriptor for the handle's life, for poll, select, epoll: readable whenever a completion is
 * unreaped or the connection is lost. Do not read it or close it. Level triggered; n completions may be
 * one wake-up. */
WALRUS_API int walrus_fd(const walrus *handle);

struct walrus_info {
    size_t size;
    uint64_t epoch; /* life of the broker */
    uint32_t broker_pid;
    uint32_t layout_version;
    uint64_t arena_bytes, window_bytes;
    uint32_t queue_entries;
    uint8_t default_level; /* enum walrus_level */
    uint8_t io_backend;    /* 1 io_uring, 2 pwrite, 3 mmap */
    uint8_t reserved[2];
    uint64_t max_batch_bytes; /* the broker's limit; WALRUS_MAX_BATCH_BYTES unless it was told another one */
    uint64_t producer;        /* id; 0 = none */
    uint64_t reconnects;      /* how often the connection was made anew */
};
WALRUS_API int walrus_get_info(const walrus *handle, struct walrus_info *info) WALRUS_MUST_CHECK;

/* ------------------------------------------------------------------------------------ receipts */

enum walrus_receipt_flag {
    WALRUS_RECEIPT_DUPLICATE = 1u << 0,    /* that id was committed before; nothing was written now */
    WALRUS_RECEIPT_EARLIER_LOST = 1u << 1, /* data answered below durable was lost since, on this topic */
    WALRUS_RECEIPT_MORE = 1u << 2, /* with -EBUSY: a second completion with this user_data follows: TRY_NOW */
    /* The second completion of a refusal. Nothing was written. Result 0: a try may succeed now; else why
     * nobody will say so any more (-ECANCELED, -ECONNRESET, -ESHUTDOWN). */
    WALRUS_RECEIPT_TRY_NOW = 1u << 3
};

/* Why -EBUSY or -EAGAIN. */
enum walrus_reason {
    WALRUS_REASON_NONE = 0,
    WALRUS_REASON_TOPIC = 1,      /* a batch of another handle is in progress on the topic: again */
    WALRUS_REASON_RING = 2,       /* queue_entries are in flight or unreaped: reap */
    WALRUS_REASON_ARENA = 3,      /* the arena is in use by batches in flight: reap */
    WALRUS_REASON_OPEN_BATCH = 4, /* this handle's own open batches hold the arena: submit or abort one */
    WALRUS_REASON_MEMORY = 5,     /* the broker's buffers are full: wait */
    WALRUS_REASON_SPACE = 6,      /* log space is being prepared: wait */
    WALRUS_REASON_WINDOW = 7,     /* the window is full of entries: release some */
    WALRUS_REASON_ORDER = 8       /* a number before this one did not commit, or this one is in flight */
};

struct walrus_receipt {
    uint64_t first_sequence; /* of the batch's first entry, in its topic, from 1; 0 for an empty batch */
    uint64_t count;          /* entries */
    uint64_t epoch;
    uint64_t group; /* position in the log: rises with commit order over all topics */
    uint32_t flags; /* enum walrus_receipt_flag */
    uint8_t level;  /* enum walrus_level reached */
    uint8_t reason; /* enum walrus_reason, with -EBUSY and -EAGAIN */
    uint8_t reserved[2];
    uint32_t retry_after_us; /* with -EBUSY, -EAGAIN: estimate, 0 = none */
    uint32_t reserved2;
    int64_t published_ns; /* stage stamps, CLOCK_MONOTONIC, each taken when it happened; 0 = did not happen */
    int64_t drained_ns;   /* the broker took it from the ring */
    int64_t submitted_ns; /* its group went to the kernel */
    int64_t durable_ns;   /* its level was reached */
    int64_t signalled_ns; /* its completion was posted */
    uint64_t number;      /* the batch's number in its topic, of this handle's producer; 0 = none. With an
                           * error: the one it was sent with, which is free again */
};

/* ------------------------------------------------------------------------------ blocking calls */

struct walrus_slice {
    const void *data; /* may be NULL if length is 0 */
    size_t length;
};

/* Tries again what was refused with -EBUSY, -EAGAIN or -ENOSPC, after a wait of random length, from 0 to a
 * bound that doubles with each try; after -EBUSY the wait ends as soon as the topic is free. Never after
 * -EINVAL or any other code, and never so that something could be committed twice. (What is in flight when
 * the broker dies is WALRUS_RECONNECT's: it sends it again inside the same try.) */
struct walrus_retry {
    size_t size;
    uint32_t max_tries; /* tries in all; 0 = as many as the deadline allows (then there must be one) */
    uint32_t reserved;
    int64_t first_wait_ns; /* bound of the first wait; 0 = the broker's estimate, else 1 ms */
    int64_t max_wait_ns;   /* what the bound grows to; 0 = 1 s */
};

struct walrus_write_options {
    size_t size;
    uint8_t level; /* enum walrus_level; a higher one than the topic's has effect, a lower one not */
    uint8_t queue; /* 1: wait for one's turn on the topic instead of -EBUSY: first come, first served, in turn
                    * between handles. Not while this handle has a stream open on the topic: it would wait for
                    * itself, so that is -EBUSY if another handle waits there */
    uint8_t reserved[6];
    int64_t deadline_ns; /* from now, over all tries; 0 or negative = none. Not admitted by then: -ETIMEDOUT.
                          * Sent, and no answer a moment later: -EINPROGRESS, and its completion comes by
                          * walrus_reap (so queue_entries - 1 in flight or unreaped are -EAGAIN, RING) */
    uint64_t user_data;  /* of that completion */
    uint64_t number;     /* 0 = the next one; an empty batch takes none */
    const struct walrus_retry *retry; /* NULL: no retry */
};

/* Appends one entry to the topic `topic` (NUL-terminated; created by its first write) and waits for its
 * level. `receipt` may be NULL. 0, or
 *   -EINVAL bad name, entry over the limit: fix the call
 *   -EBUSY a batch of another handle is in progress: again
 *   -EDQUOT too many topics: ask the operator
 *   -ENOSPC the disk is full: later
 *   -EIO not written and never will be: decide
 *   -ESHUTDOWN the broker is stopping: later
 *   -ECONNRESET the broker died, outcome unknown
 *   -EAGAIN the broker's buffers or its log space did not clear within 30 s; shorter waits are the library's.
 *     Reason ORDER: a number was given that is not the next one. Reason RING: see deadline_ns
 *   -ETIMEDOUT the deadline passed before admission: not written
 *   -EINPROGRESS the deadline passed and the outcome is not known yet: see deadline_ns
 *   -ESTALE the producer was taken over: stop
 *   -ECANCELED a stream that a lost connection rolled back: again
 *   -EOWNERDEAD forked child
 * A signal handler does not end the call: the outcome would not be known. */
WALRUS_API int walrus_append_for_topic(walrus *handle, const char *topic, const void *data, size_t length,
                                       const struct walrus_write_options *options,
                                       struct walrus_receipt *receipt) WALRUS_MUST_CHECK;

/* Appends `count` entries as one atomic batch and waits for its level. 0 to WALRUS_MAX_BATCH_ENTRIES
 * entries, up to WALRUS_MAX_BATCH_BYTES; an empty batch succeeds and writes nothing. Larger than the arena
 * is fine: it is sent in chunks and becomes visible at the end. Errors as walrus_append_for_topic. */
WALRUS_API int walrus_batch_append_for_topic(walrus *handle, const char *topic,
                                             const struct walrus_slice *entries, size_t count,
                                             const struct walrus_write_options *options,
                                             struct walrus_receipt *receipt) WALRUS_MUST_CHECK;

struct walrus_entry {
    const void *data; /* aligned to 16 bytes */
    uint64_t length;
    uint64_t sequence;
    uint64_t time_ns; /* wall clock when the broker took it, ns since 1970 */
    uint64_t epoch;   /* (epoch, sequence) is never given to two different entries */
    uint8_t type;     /* as written */
    uint8_t unstable; /* 1: written, not yet durable; it may still be lost */
    uint8_t reserved[6];
};

struct walrus_read_options {
    size_t size;
    uint32_t max_entries; /* 1 to WALRUS_MAX_BATCH_ENTRIES; 0 = WALRUS_MAX_BATCH_ENTRIES */
    uint32_t reserved;
    uint64_t max_bytes; /* payload bytes; but at least one entry; 0 = what the window holds */
    int64_t follow_ns;  /* nothing there yet: 0 = return 0 at once; else wait so long (negative: for ever) */
};

/* Reads entries of a topic from sequence `from` on (0 or 1: the earliest). Returns their number and
 * *entries, yours until walrus_entries_release; 0 (and *entries NULL) when there is nothing at `from` yet.
 * -ENOENT no such topic (with follow_ns: it is waited for); -ENODATA `from` is not there any more;
 * -EBADMSG stored data is damaged; -EAGAIN the window is held by entries not yet released; -ETIME nothing
 * came within follow_ns; -EINTR a signal handler ran while it followed; -EINVAL; -EIO; -ENOMEM;
 * -ESHUTDOWN; -ECONNRESET; -EOWNERDEAD. An entry larger than the window is put together in memory of its
 * own. */
WALRUS_API int walrus_batch_read_for_topic(walrus *handle, const char *topic, uint64_t from,
                                           const struct walrus_read_options *options,
                                           walrus_entries **entries) WALRUS_MUST_CHECK;
WALRUS_API size_t walrus_entries_count(const walrus_entries *entries);
/* Entry `index` (from 0): 1, or 0 if there is none. The data is valid until release. */
WALRUS_API int walrus_entries_get(const walrus_entries *entries, size_t index,
                                  struct walrus_entry *entry) WALRUS_MUST_CHECK;
/* The sequence to ask for next. */
WALRUS_API uint64_t walrus_entries_next(const walrus_entries *entries);
/* Gives the window space back. NULL is fine. */
WALRUS_API void walrus_entries_release(walrus_entries *entries);

struct walrus_topic_info {
    size_t size;
    uint64_t id;
    uint64_t next_sequence; /* entries below it can be read */
    uint64_t durable_next;  /* entries below it survive power loss */
    uint8_t level;          /* enum walrus_level */
    uint8_t reserved[7];
    char name[WALRUS_MAX_TOPIC_NAME + 1];
};
/* The topic of the catalogue with the smallest id above info->id (set it to 0 to begin), into *info. 1, 0
 * at the end, or an error as for reads. */
WALRUS_API int walrus_next_topic(walrus *handle, struct walrus_topic_info *info) WALRUS_MUST_CHECK;

/* ------------------------------------------------------------------------- asynchronous writes */

struct walrus_topic_options {
    size_t size;
    uint8_t level; /* enum walrus_level of the topic if this handle's write creates it */
    uint8_t reserved[7];
};

/* A topic handle, so that no name is looked up per batch. Blocks for one round trip. Lives until
 * walrus_topic_close or walrus_close. -EINVAL, -EDQUOT, -EAGAIN, -ECONNRESET, -EOWNERDEAD; -ESHUTDOWN the
 * broker is stopping: connect again once it is back. */
WALRUS_API int walrus_topic_open(walrus *handle, const char *name, size_t length,
                                 const struct walrus_topic_options *options,
                                 walrus_topic **topic) WALRUS_MUST_CHECK;
/* Its open batches must have been submitted or aborted. NULL is fine. */
WALRUS_API void walrus_topic_close(walrus_topic *topic);

/* The last number of this handle's producer that is known to be committed on the topic, 0 = none: as the
 * broker had it when the topic was opened, then as completions say. A restarted program goes on behind it. */
WALRUS_API uint64_t walrus_topic_last_number(const walrus_topic *topic);

/* Was `number` of this handle's producer committed on the topic? Blocks for one round trip. 1 yes (*receipt,
 * which may be NULL, gets its number, and sequence and count if they are still known, else 0); 0 no, and it
 * never will be unless it is sent again; -EINPROGRESS it is in flight; -EINVAL the handle has no producer;
 * -ESHUTDOWN the broker is stopping and says nothing of it: ask the next one; -ECONNRESET, -ESTALE,
 * -EOWNERDEAD. */
WALRUS_API int walrus_query(walrus_topic *topic, uint64_t number,
                            struct walrus_receipt *receipt) WALRUS_MUST_CHECK;

/* Watermarks: what everybody has committed to the topic, at the moment of the call: one load from memory that
 * the broker writes. Entries with a sequence below are flushed (durable) or written; so "is it safe?" is
 * sequence < walrus_topic_durable_next(topic). They stay while the connection is lost. 0 if the broker has
 * none for this topic. Never fail. */
WALRUS_API uint64_t walrus_topic_durable_next(const walrus_topic *topic);
WALRUS_API uint64_t walrus_topic_written_next(const walrus_topic *topic);

/* Begins a batch. Nothing is sent. Several may be open on one handle. -EAGAIN (reason RING), -ENOMEM,
 * -EOWNERDEAD. */
WALRUS_API int walrus_batch_begin(walrus_topic *topic, walrus_batch **batch) WALRUS_MUST_CHECK;

/* Room for one more entry of up to `length` bytes, to be written in place. The entry before it is final
 * from then on. An entry that does not fit the arena's share of a batch beside the batch so far, or a
 * batch that goes in chunks already: -EMSGSIZE (use walrus_batch_add, which sends the batch in chunks).
 * -EAGAIN (ARENA, OPEN_BATCH): nothing changed. -EINVAL over a limit. */
WALRUS_API int walrus_batch_reserve(walrus_batch *batch, size_t length, void **data) WALRUS_MUST_CHECK;
/* The last reserved entry used only `length` bytes (at most what was reserved). */
WALRUS_API int walrus_batch_trim(walrus_batch *batch, size_t length) WALRUS_MUST_CHECK;
/* Copies one entry in. A batch that outgrows the arena's share of a batch (half of it, at most 3 MiB) is
 * sent in chunks while it is filled: the topic is then busy from its first chunk on, and pointers from
 * reserve are no longer valid. May wait for arena space. -EINVAL over a limit; otherwise the stream has
 * failed, with the error of a completion: submit or abort it. */
WALRUS_API int walrus_batch_add(walrus_batch *batch, const void *data, size_t length) WALRUS_MUST_CHECK;
/* Copies a part of one entry in: `more` says that the entry goes on with the next call, which must be another
 * one of this function (or abort); the last part may be empty. For entries larger than one's memory, up to
 * the limit of a batch. Else as walrus_batch_add. */
WALRUS_API int walrus_batch_add_part(walrus_batch *batch, const void *data, size_t length,
                                     int more) WALRUS_MUST_CHECK;
/* The user's byte `type` of the last entry: right after that was added. */
WALRUS_API int walrus_batch_set_type(walrus_batch *batch, uint8_t type) WALRUS_MUST_CHECK;

struct walrus_submit_options {
    size_t size;
    uint64_t user_data;
    uint8_t level;  /* enum walrus_level, as in walrus_write_options */
    uint8_t append; /* 1: one entry, admitted as an append (see -EBUSY), not as a batch */
    uint8_t queue;  /* 1: wait for one's turn on the topic instead of -EBUSY, as in walrus_write_options. A
                     * batch that outgrew the arena has waited already if walrus_batch_set_queue said so */
    uint8_t notify; /* 1: -EBUSY comes with MORE, and a second completion says TRY_NOW: the longest refused
                     * first. The refused batch is gone: a try is another one. Takes two queue entries until
                     * the first completion. No effect with `queue`, or on a batch that outgrew the arena */
    uint8_t reserved[4];
    int64_t deadline_ns; /* from now; not admitted by then: -ETIMEDOUT; 0 or negative = none. No effect on a
                          * batch that outgrew the arena: it was admitted with its first chunk */
    uint64_t number;     /* 0 = the next one; -EINVAL without a producer, or for an empty batch */
};
/* Sends the batch; its memory goes back to the handle, do not touch `batch` again, whatever is returned
 * but -EAGAIN (then it is still open: reap, then submit again). An empty batch completes with 0. The
 * outcome comes by walrus_reap. -EINVAL, -ESHUTDOWN, -ECONNRESET, -EOWNERDEAD; -EAGAIN with the reason
 *   RING        too few queue entries are free: reap
 *   ORDER       a number before this one was refused, or was given, and what follows it is not answered: reap
 *   OPEN_BATCH, ARENA   it would wait on the bytes that are kept for chunks: submit, abort or reap another */
WALRUS_API int walrus_batch_submit(walrus_batch *batch,
                                   const struct walrus_submit_options *options) WALRUS_MUST_CHECK;
/* A batch that outgrows the arena takes its topic with its first chunk, before submit. With `queue` the
 * walrus_batch_add that sends it waits for its turn, however long that takes, instead of failing with -EBUSY;
 * not while another stream of this handle has the topic. A program that must not wait there keeps its batches
 * smaller than the arena's share, and submits them with `queue`. Before the first add. 0, -EINVAL,
 * -EOWNERDEAD. */
WALRUS_API int walrus_batch_set_queue(walrus_batch *batch, int queue) WALRUS_MUST_CHECK;
/* Takes back a submitted batch that still waits for its turn (queue), or for the word that a try may succeed
 * (notify), by the user_data of its submit: its completion is then -ECANCELED. Of several the oldest that
 * waits. Blocks for one round trip. 0; -ENOENT none waits under it: it was admitted, or decided, or never
 * submitted; -ECONNRESET, -EAGAIN (RING), -EOWNERDEAD. */
WALRUS_API int walrus_cancel(walrus *handle, uint64_t user_data) WALRUS_MUST_CHECK;
/* Drops it; what a stream had sent is rolled back. NULL is fine. */
WALRUS_API void walrus_batch_abort(walrus_batch *batch);

struct walrus_completion {
    uint64_t user_data;
    int32_t result; /* 0 or a negative errno, as walrus_append_for_topic */
    uint32_t reserved;
    struct walrus_receipt receipt;
};
/* Takes up to `max` completions, in order, without waiting; without a system call while there are some and
 * walrus_fd is not in use. Returns how many. -EINVAL, -EOWNERDEAD. After the broker died, what it had
 * answered comes first, then -ECONNRESET for each batch still in flight, and when nothing is left the call
 * itself says -ECONNRESET. */
WALRUS_API int walrus_reap(walrus *handle, struct walrus_completion *completions, int max) WALRUS_MUST_CHECK;
/* Waits until at least `count` completions can be reaped, or the connection is lost and nothing more will
 * come. 0, -ETIME, -EINTR (a signal handler ran), -EINVAL (more than walrus_in_flight), -EOWNERDEAD. */
WALRUS_API int walrus_wait(walrus *handle, int count, int64_t timeout_ns) WALRUS_MUST_CHECK;
/* Batches submitted whose last completion is not yet reaped. */
WALRUS_API uint32_t walrus_in_flight(const walrus *handle);

#ifdef __cplusplus
}
#endif

#endif
