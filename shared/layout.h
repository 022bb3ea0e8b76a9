/* layout.h: the shared memory between one client and the broker, word by word. The only definition.
 *
 * Two memfds per connection, and one for all of them, made, allocated in full and sealed SHRINK|GROW|SEAL by
 * the broker:
 *
 *   client file (writable by both; every word in it is written by the client alone)
 *     page 0      struct client_words
 *     4096        submission slots: struct descriptor[queue_entries]
 *     arena_at    arena (page aligned), arena_bytes
 *   broker file (F_SEAL_FUTURE_WRITE: read-only for the client; the broker alone writes every word in it)
 *     page 0      struct broker_words
 *     4096        completion slots: struct completion[queue_entries]
 *     window_at   read window (page aligned), window_bytes, a power of two
 *   watermark file (one for the broker; F_SEAL_FUTURE_WRITE: read-only for every client)
 *     0           struct watermark[slots]; a topic's slot is told by OP_OPEN and is its own while it is open
 *
 * Each index word lives in the file of its writer. Indices are free-running 32-bit counters; the slot is
 * index & (n - 1). Nothing in the client file is believed: the broker reads a word once, copies, checks by
 * subtraction, then uses the copy. The client holds the broker's words to the same checks: a broken broker
 * must not crash it.
 *
 * Submission ring (client -> broker)                    Completion ring (broker -> client)
 *   client: fill slot, release-store sq_tail               broker: fill slot, release-store cq_tail
 *   broker: acquire-load sq_tail, copy slot,               client: acquire-load cq_tail, copy slot,
 *           release-store sq_head                                  release-store cq_head
 *   hostile if sq_tail - sq_head > queue_entries - 1       hostile if cq_tail - cq_head > queue_entries - 1
 *
 * Credit: descriptors submitted and not yet answered, plus answers not yet reaped, are never more than
 * queue_entries - 1. The library refuses with -EAGAIN before; a client that goes over it is ended. So a
 * completion never lacks a slot. A write with NOTIFY may have two: it counts twice until the first is reaped.
 *
 * Doorbell (client -> broker), per connection. `parked` is the broker's word:
 *
 *        ACTIVE (0)  -> PARKED (1)   broker, ring seen empty for some turns: store, full fence, one more look
 *        PARKED (1)  -> ACTIVE (0)   broker, on the doorbell, before it posts an answer, or if that
 *                                    look found something
 *
 *   client: release-store sq_tail, full fence, load parked; PARKED -> write the doorbell eventfd.
 *   Store-buffering pair: the broker stores `parked` and loads sq_tail, the client stores sq_tail and loads
 *   `parked`. With both fences at least one of them sees the other; without either, both may miss and the
 *   batch sleeps for ever.
 *
 * Signal (broker -> client), by event index. `wake_at` is the client's: "signal me when cq_tail passes it".
 *   client: only when its ring is empty: store wake_at = cq_head (+ n - 1 to wait for n), full fence,
 *           load cq_tail again.
 *   broker: release-store cq_tail (old -> new), full fence, load wake_at; signal if wake_at lies in
 *           [old, new), that is if (uint32_t)(new - wake_at - 1) < (uint32_t)(new - old).
 *   The eventfd is a hint, the ring is the truth: n completions may give one wake-up.
 */
#ifndef WALRUS_SHARED_LAYOUT_H
#define WALRUS_SHARED_LAYOUT_H

#include "base.h"
#include "limits.h"

#define LAYOUT_MAGIC   UINT64_C(0x57414c5255533031) /* "WALRUS01" */
#define LAYOUT_VERSION 2u /* raised whenever the meaning of anything in this file changes */
#define LAYOUT_PAGE    4096u

/* ----------------------------------------------------------------------------------- client file, page 0 */

struct client_words {
    uint32_t sq_tail;        /*    0-3    descriptors published */
    uint8_t reserved0[124];  /*    4-127  zero */
    uint32_t cq_head;        /*  128-131  completions reaped */
    uint8_t reserved1[124];  /*  132-255  zero */
    uint32_t wake_at;        /*  256-259  event index, see above */
    uint8_t reserved2[124];  /*  260-383  zero */
    uint64_t window_head;    /*  384-391  window bytes released, free-running */
    uint8_t reserved3[3704]; /*  392-4095 zero */
};

/* ----------------------------------------------------------------------------------- broker file, page 0 */

enum parked { ACTIVE = 0, PARKED = 1 };

struct broker_words {
    uint64_t magic;          /*    0-7    LAYOUT_MAGIC */
    uint32_t version;        /*    8-11   LAYOUT_VERSION */
    uint32_t queue_entries;  /*   12-15   both rings; a power of two */
    uint64_t fingerprint;    /*   16-23   layout_fingerprint() */
    uint64_t arena_at;       /*   24-31   offset of the arena in the client file */
    uint64_t arena_bytes;    /*   32-39 */
    uint64_t window_at;      /*   40-47   offset of the window in the broker file */
    uint64_t window_bytes;   /*   48-55   a power of two */
    uint64_t epoch;          /*   56-63   epoch counter of the broker */
    uint8_t reserved0[64];   /*   64-127  zero */
    uint32_t sq_head;        /*  128-131  descriptors taken */
    uint8_t reserved1[124];  /*  132-255  zero */
    uint32_t cq_tail;        /*  256-259  completions posted */
    uint8_t reserved2[124];  /*  260-383  zero */
    uint32_t parked;         /*  384-387  enum parked */
    uint8_t reserved3[3708]; /*  388-4095 zero */
};

/* ----------------------------------------------------------------------------------------- submission */

enum op {
    OP_NONE = 0,   /* never valid: a zeroed slot is a mistake */
    OP_OPEN = 1,   /* name (payload_bytes at arena_offset) -> topic number; level: for a new topic */
    OP_CLOSE = 2,  /* forget a topic number */
    OP_APPEND = 3, /* one entry */
    OP_BATCH = 4,  /* a whole batch */
    OP_CHUNK = 5,  /* part of a batch; answered once copied, the LAST one at the end of the batch */
    OP_ABORT = 6,  /* roll back the stream `stream` */
    OP_READ = 7,   /* entries of a topic into the window */
    OP_TOPICS = 8, /* topic records into the window: those with an id above `number` */
    OP_CANCEL = 9, /* end what waits and has the user_data `number`: a pending follow, a write that waits for
                    * its topic; it is answered -ECANCELED. Result 0, or -ENOENT: nothing waits under it */
    OP_QUERY = 10, /* was `number` of this connection's producer committed on this topic? result 1 yes, 0 no,
                    * -EINPROGRESS it is in flight, -EINVAL the connection has no producer */
};

enum descriptor_flag {
    DESCRIPTOR_FIRST = 1 << 0,  /* CHUNK: opens the stream */
    DESCRIPTOR_LAST = 1 << 1,   /* CHUNK: closes it; the batch is committed with this one */
    DESCRIPTOR_FOLLOW = 1 << 2, /* READ: stay pending at the end of the topic until there is something */
    DESCRIPTOR_CREATE = 1 << 3, /* OPEN: the topic need not exist yet (it is created by its first write) */
    DESCRIPTOR_QUEUE = 1 << 4,  /* writes (CHUNK: the first one): wait for the topic instead of -EBUSY */
    DESCRIPTOR_NOTIFY = 1 << 5, /* writes: -EBUSY comes with MORE, and a TRY_NOW follows */
    DESCRIPTOR_FLAGS = (1 << 6) - 1,
};

/* A payload in the arena: at arena_offset (a multiple of PAYLOAD_ALIGN) lie `payload_bytes` bytes: the
 * entries in order, each starting at a multiple of PAYLOAD_ALIGN from the start; payload_bytes is the padded
 * sum. Directly behind follow `entries` records of struct entry_record. A chunk holds consecutive pieces of
 * the batch's entries: its records describe the pieces; ENTRY_CONTINUES marks a piece whose entry goes on in
 * the next chunk, so that an entry may be larger than an arena. Each entry counts where it ends; the first
 * piece of a chunk goes on with the entry that the chunk before left open. */
struct descriptor {
    uint64_t user_data;     /*  0-7   comes back in the completion, never looked at */
    uint8_t op;             /*  8     enum op */
    uint8_t level;          /*  9     enum level; 0 = the topic's */
    uint16_t flags;         /* 10-11  enum descriptor_flag */
    uint32_t topic;         /* 12-15  topic number from OP_OPEN */
    uint32_t arena_offset;  /* 16-19 */
    uint32_t payload_bytes; /* 20-23  padded payload, or length of the name (OPEN) */
    uint32_t entries;       /* 24-27  entry records */
    uint32_t chunk;         /* 28-31  CHUNK: number in its stream, from 0 */
    uint64_t number;        /* 32-39  writes (CHUNK: only the LAST one): batch number, 0 = none, which only a
                             *        connection without producer may say; READ: first sequence; else see
                             *        op */
    int64_t published_ns;   /* 40-47  CLOCK_MONOTONIC when submitted */
    union {
        struct {
            uint32_t max_entries; /* 48-51  READ */
            uint32_t max_bytes;   /* 52-55  READ: payload bytes wanted; always an entry, or a piece of one */
        };
        int64_t deadline_ns; /* 48-55  writes: CLOCK_MONOTONIC; not admitted by then: -ETIMEDOUT; 0 = none */
    };
    uint32_t stream;          /* 56-59  CHUNK, ABORT: the client's number of the stream */
    uint32_t entry_offset_4k; /* 60-63 READ: start at byte 4096 * this of entry `number` */
};

/* Both in the arena and in the log. */
struct entry_record {
    uint32_t length;       /* 0-3  bytes of this entry (or piece) */
    uint8_t type;          /* 4    the user's; not looked at */
    uint8_t flags;         /* 5    enum entry_flag */
    uint16_t header_bytes; /* 6-7  leading bytes that are key and headers; zero in this version */
};

enum entry_flag {
    ENTRY_CONTINUES = 1 << 0, /* the entry goes on in the next chunk */
    ENTRY_FLAGS = (1 << 1) - 1,
};

enum level { LEVEL_TOPIC = 0, LEVEL_ACCEPTED = 1, LEVEL_WRITTEN = 2, LEVEL_DURABLE = 3 };

/* ----------------------------------------------------------------------------------------- completion */

enum completion_flag {
    COMPLETION_MORE = 1 << 0,         /* another completion with the same user_data follows */
    COMPLETION_COPIED = 1 << 1,       /* a CHUNK that is not the last: its arena space is free again */
    COMPLETION_DUPLICATE = 1 << 2,    /* that id was committed before */
    COMPLETION_EARLIER_LOST = 1 << 3, /* data answered below durable was lost here since the last */
    COMPLETION_UNSTABLE = 1 << 4,     /* READ: what was returned is written but not durable yet */
    COMPLETION_CREATED = 1 << 5,      /* OPEN: the topic exists in the catalogue already */
    COMPLETION_TRY_NOW = 1 << 6,      /* second completion of a refusal: a try may succeed now; result 0 */
};

/* Why -EAGAIN or -EBUSY. */
enum reason {
    REASON_NONE = 0,
    REASON_TOPIC = 1,      /* a batch of another handle is in progress on this topic */
    REASON_RING = 2,       /* the connection's credit is used up (library only) */
    REASON_ARENA = 3,      /* no arena space (library only) */
    REASON_OPEN_BATCH = 4, /* this handle's own open batches hold the arena (library only) */
    REASON_MEMORY = 5,     /* the broker's buffers are full */
    REASON_SPACE = 6,      /* log space is being prepared */
    REASON_WINDOW = 7,     /* READ: the window is full of unreleased entries */
    REASON_ORDER = 8,      /* a batch number before this one did not commit */
};

struct completion {
    uint64_t user_data;      /*   0-7 */
    int32_t result;          /*   8-11  0 or a count, or a negative errno */
    uint32_t flags;          /*  12-15  enum completion_flag */
    uint64_t first_sequence; /*  16-23  writes: of the first entry; READ: of the first entry returned */
    uint32_t entries;        /*  24-27  writes: entries committed; OPEN: topic number */
    uint8_t level;           /*  28     enum level reached; OPEN: the topic's level */
    uint8_t reason;          /*  29     enum reason */
    uint8_t reserved0[2];    /*  30-31  zero */
    uint64_t group;          /*  32-39  number of the group that committed it */
    int64_t published_ns;    /*  40-47  stage stamps, CLOCK_MONOTONIC, when it happened; 0 = did not */
    int64_t drained_ns;      /*  48-55 */
    int64_t submitted_ns;    /*  56-63  the group went to the kernel */
    int64_t durable_ns;      /*  64-71  the flush (written level: the write) was reaped */
    int64_t signalled_ns;    /*  72-79  this completion was posted */
    uint64_t window_at;      /*  80-87  READ, TOPICS: free-running byte index of the records in the window;
                              *         OPEN: slot of the topic in the watermark file */
    uint32_t window_bytes;   /*  88-91 */
    uint32_t retry_after_us; /*  92-95  -EAGAIN, -EBUSY: estimate; 0 = none */
    uint64_t next_sequence;  /*  96-103 READ: sequence to ask for next */
    uint64_t end_sequence;   /* 104-111 READ: next sequence of the topic that is not yet visible */
    uint64_t epoch;          /* 112-119 */
    uint64_t number;         /* 120-127 batch number; OPEN: the last one that this connection's producer has
                              *         committed on the topic, 0 = none */
};

/* ------------------------------------------------------------------------------------- window */

/* What OP_READ puts into the window: runs, one behind the other, never wrapping round the window's end (the
 * broker skips the rest and window_at says where it starts; the client releases up to window_at +
 * window_bytes). Every run starts at a multiple of PAYLOAD_ALIGN: struct run, records, padding to
 * PAYLOAD_ALIGN, payload. */
struct run {
    uint32_t bytes;          /*  0-3   whole run, a multiple of PAYLOAD_ALIGN */
    uint32_t entries;        /*  4-7   records */
    uint64_t first_sequence; /*  8-15 */
    uint64_t time_ns;        /* 16-23  wall clock (CLOCK_REALTIME) when the batch was taken by the broker */
    uint64_t epoch;          /* 24-31  epoch that committed it */
    uint64_t entry_bytes;    /* 32-39  length of the whole entry, if this run is one piece of it; else 0 */
    uint64_t entry_offset;   /* 40-47  where in the entry the piece lies */
    uint32_t flags;          /* 48-51  enum run_flag */
    uint32_t payload_bytes;  /* 52-55 */
    uint64_t reserved;       /* 56-63  zero */
};

enum run_flag {
    RUN_PIECE = 1 << 0,    /* one piece of a large entry; all but its last one are multiples of 4096 bytes */
    RUN_UNSTABLE = 1 << 1, /* written, not yet durable */
    RUN_LAST_PIECE = 1 << 2, /* with RUN_PIECE: the entry ends here */
};

/* What OP_TOPICS puts into the window. */
struct topic_record {
    uint32_t bytes;         /*  0-3   whole record, a multiple of PAYLOAD_ALIGN */
    uint32_t name_bytes;    /*  4-7   the name follows the struct */
    uint64_t id;            /*  8-15 */
    uint64_t next_sequence; /* 16-23  visible entries are those below it */
    uint64_t durable_next;  /* 24-31 */
    uint8_t level;          /* 32 */
    uint8_t reserved[15];   /* 33-47  zero */
};

/* ------------------------------------------------------------------------------------- watermarks */

/* Of one topic, whoever commits to it. Entries with a sequence below written_next are written, those below
 * durable_next are flushed. Each is stored with release, written_next before
 * durable_next, so that a reader who loads durable_next first never sees it pass written_next; both are 0 in
 * a slot that is nobody's. The broker stores O(1) words per batch, whoever looks. */
struct watermark {
    uint64_t written_next; /* 0-7 */
    uint64_t durable_next; /* 8-15 */
};

/* ------------------------------------------------------------------------------------- proof */

#define LAYOUT_AT(type, field, at)                                                                           \
    _Static_assert(offsetof(struct type, field) == (at), #type "." #field " moved")
_Static_assert(sizeof(struct client_words) == 4096, "client_words is one page");
LAYOUT_AT(client_words, sq_tail, 0);
LAYOUT_AT(client_words, cq_head, 128);
LAYOUT_AT(client_words, wake_at, 256);
LAYOUT_AT(client_words, window_head, 384);
_Static_assert(sizeof(struct broker_words) == 4096, "broker_words is one page");
LAYOUT_AT(broker_words, magic, 0);
LAYOUT_AT(broker_words, version, 8);
LAYOUT_AT(broker_words, queue_entries, 12);
LAYOUT_AT(broker_words, fingerprint, 16);
LAYOUT_AT(broker_words, arena_at, 24);
LAYOUT_AT(broker_words, arena_bytes, 32);
LAYOUT_AT(broker_words, window_at, 40);
LAYOUT_AT(broker_words, window_bytes, 48);
LAYOUT_AT(broker_words, epoch, 56);
LAYOUT_AT(broker_words, sq_head, 128);
LAYOUT_AT(broker_words, cq_tail, 256);
LAYOUT_AT(broker_words, parked, 384);
_Static_assert(sizeof(struct descriptor) == 64, "descriptor is one cache line");
LAYOUT_AT(descriptor, op, 8);
LAYOUT_AT(descriptor, level, 9);
LAYOUT_AT(descriptor, flags, 10);
LAYOUT_AT(descriptor, topic, 12);
LAYOUT_AT(descriptor, arena_offset, 16);
LAYOUT_AT(descriptor, payload_bytes, 20);
LAYOUT_AT(descriptor, entries, 24);
LAYOUT_AT(descriptor, chunk, 28);
LAYOUT_AT(descriptor, number, 32);
LAYOUT_AT(descriptor, published_ns, 40);
LAYOUT_AT(descriptor, max_entries, 48);
LAYOUT_AT(descriptor, deadline_ns, 48);
LAYOUT_AT(descriptor, max_bytes, 52);
LAYOUT_AT(descriptor, stream, 56);
LAYOUT_AT(descriptor, entry_offset_4k, 60);
_Static_assert(sizeof(struct entry_record) == 8, "entry_record");
LAYOUT_AT(entry_record, type, 4);
LAYOUT_AT(entry_record, flags, 5);
LAYOUT_AT(entry_record, header_bytes, 6);
_Static_assert(sizeof(struct completion) == 128, "completion is two cache lines");
LAYOUT_AT(completion, result, 8);
LAYOUT_AT(completion, flags, 12);
LAYOUT_AT(completion, first_sequence, 16);
LAYOUT_AT(completion, entries, 24);
LAYOUT_AT(completion, level, 28);
LAYOUT_AT(completion, reason, 29);
LAYOUT_AT(completion, group, 32);
LAYOUT_AT(completion, published_ns, 40);
LAYOUT_AT(completion, drained_ns, 48);
LAYOUT_AT(completion, submitted_ns, 56);
LAYOUT_AT(completion, durable_ns, 64);
LAYOUT_AT(completion, signalled_ns, 72);
LAYOUT_AT(completion, window_at, 80);
LAYOUT_AT(completion, window_bytes, 88);
LAYOUT_AT(completion, retry_after_us, 92);
LAYOUT_AT(completion, next_sequence, 96);
LAYOUT_AT(completion, end_sequence, 104);
LAYOUT_AT(completion, epoch, 112);
LAYOUT_AT(completion, number, 120);
_Static_assert(sizeof(struct run) == 64, "run");
LAYOUT_AT(run, first_sequence, 8);
LAYOUT_AT(run, time_ns, 16);
LAYOUT_AT(run, epoch, 24);
LAYOUT_AT(run, entry_bytes, 32);
LAYOUT_AT(run, entry_offset, 40);
LAYOUT_AT(run, flags, 48);
LAYOUT_AT(run, payload_bytes, 52);
_Static_assert(sizeof(struct topic_record) == 48, "topic_record");
LAYOUT_AT(topic_record, id, 8);
LAYOUT_AT(topic_record, next_sequence, 16);
LAYOUT_AT(topic_record, durable_next, 24);
LAYOUT_AT(topic_record, level, 32);
_Static_assert(sizeof(struct watermark) == 16, "watermark");
LAYOUT_AT(watermark, durable_next, 8);

/* A number over sizes and the offsets that matter: equal on both sides or the connection is refused. It is of
 * the layout, not of the build. */
uint64_t layout_fingerprint(void);

/* Where things lie for given sizes; false if the sizes are out of range. */
struct layout_sizes {
    uint32_t queue_entries;
    uint64_t arena_bytes;
    uint64_t window_bytes;
    uint64_t arena_at, client_file_bytes; /* results */
    uint64_t window_at, broker_file_bytes;
};
bool layout_place(struct layout_sizes *sizes) must_check;

#endif
