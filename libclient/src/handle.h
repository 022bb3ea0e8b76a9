/* handle.h: what one connection consists of, for the files of the library alone.
 *
 * Who does what
 *   connect.c   the handshake and the handle's life          fork.c      a handle does not survive fork
 *   arena.c     extents of the arena                         room.c      how open batches share it
 *   requests.c  descriptors out, completions in              wait.c      spinning, sleeping, the fd
 *   batch.c     filling a batch in place, submit, reap       stream.c    batches that go in chunks
 *   append.c    the blocking writes                          read.c      the blocking reads
 *   runs.c      what lies in the window, checked             window.c    order of its release
 *   topics.c    topic handles, the catalogue                 names.c     names known to the blocking calls
 *   error.c     words
 *
 * Ways of a completion: ring -> requests.c -> (an asynchronous batch: the queue `kept`, in order, until
 * walrus_reap; a call that waits: its struct answer; a chunk: its batch; nobody: dropped). */
#ifndef WALRUS_CLIENT_HANDLE_H
#define WALRUS_CLIENT_HANDLE_H

#include "../../shared/layout.h"
#include "../../shared/message.h"
#include "../../shared/ring.h"
#include "../include/walrus.h"
#include "arena.h"

#define NAME_BYTES    256u /* the arena's begin: room for one topic name on its way */
#define NO_REQUEST    UINT32_MAX
#define STREAM_EXTENT (UINT32_MAX - 1) /* the extent kept for chunks, see room.c */
#define FOR_EVER      INT64_MAX
#define MOST_PATIENCE                                                                                        \
    (30 * NS_PER_S) /* how long a blocking call tries again what the broker refuses with -EAGAIN */
#define NS_PER_MS INT64_C(1000000)
#define NS_PER_S  INT64_C(1000000000)

/* What a call that waits gets. Lies on its stack. */
struct answer {
    bool done;
    struct completion completion;
};

enum request_kind {
    REQUEST_FREE = 0,
    REQUEST_BATCH,  /* a whole batch, or the last chunk of one: the user gets the completion */
    REQUEST_CHUNK,  /* a chunk that is not the last */
    REQUEST_ANSWER, /* a call waits for it */
    REQUEST_NOBODY, /* nobody waits any more; what it put into the window is released */
};

/* A descriptor that is not answered yet. Index and generation are its user_data. */
struct request {
    uint32_t generation;
    uint8_t kind;
    uint8_t op;
    uint32_t earlier, later;    /* the order of submission */
    uint32_t extent;            /* given back when answered, or NO_EXTENT */
    struct walrus_batch *batch; /* chunks */
    struct answer *answer;
    uint64_t user_data; /* REQUEST_BATCH */
};

enum batch_state {
    BATCH_UNUSED = 0, /* in the pool */
    BATCH_OPEN,
    BATCH_SENT,    /* a stream whose last chunk is on its way */
    BATCH_DROPPED, /* an aborted stream whose chunks are on their way */
};

struct walrus_batch {
    struct walrus *handle;
    struct walrus_topic *topic; /* NULL for the blocking calls */
    uint32_t topic_number;
    uint8_t state;
    uint8_t level; /* chunks carry it from the first on */
    bool streaming;
    bool trimmable;         /* the last entry came from reserve */
    bool pinned;            /* pointers into it were given out: it cannot be moved */
    uint32_t extent;        /* NO_EXTENT before the first entry, or between two chunks */
    uint8_t *base;          /* first byte of the extent */
    uint32_t limit;         /* bytes of the extent */
    uint32_t used;          /* payload bytes in it, padded */
    uint32_t record_count;  /* records of what is in it */
    uint32_t reserved;      /* padded bytes of the last entry, for trim */
    uint32_t entries;       /* of the whole batch */
    uint64_t bytes;         /* of the whole batch, as WALRUS_MAX_BATCH_BYTES counts */
    uint32_t stream, chunk; /* number of the stream, of its next chunk */
    uint32_t chunks_in_flight;
    int failed; /* what ended the stream */
    uint8_t failed_reason;
    uint32_t failed_retry_us;
    bool completed; /* BATCH_SENT: `outcome` is known */
    struct walrus_completion outcome;
    struct walrus_batch *previous, *next; /* open batches, or the pool (next only) */
    struct walrus_batch *allocated_next;  /* all there are */
    struct entry_record records[MAX_BATCH_ENTRIES];
};

struct walrus_topic {
    struct walrus *handle;
    uint32_t number;
    uint8_t level;
    uint32_t open_batches;
    bool closed; /* freed with its last open batch */
    struct walrus_topic *previous, *next;
};

/* How often a topic number of this connection is held. */
struct number_use {
    uint32_t number;
    uint32_t count;
};

struct known_name; /* names.c */

struct walrus_entries {
    struct walrus *handle;
    struct walrus_entries *previous, *next; /* all of the handle */
    struct walrus_entries *later;           /* the order in the window */
    uint64_t window_end; /* the window is free up to here once this and all before it are released */
    bool in_window, released;
    uint32_t count, capacity;
    uint64_t next_sequence;
    struct walrus_entry *entries;
    void **heap; /* entries assembled from pieces */
    uint32_t heap_count;
};

struct waiting {
    int64_t spin_ns;    /* the option: 0 adaptive, < 0 never */
    int64_t typical_ns; /* how long a wait has taken of late */
    uint32_t skip;      /* waits that do not spin because spinning did not pay */
    uint32_t penalty;   /* how many the next failure skips */
    bool single_core;
    bool fd_used;      /* the user has the fd: it is kept armed */
    uint32_t armed_at; /* what wake_at says; a fresh client file says 0, so the first completion signals */
    bool signalled;    /* the eventfd is, or may be, above zero */
    uint32_t empty_reaps;
};

struct walrus {
    struct walrus *self; /* for calls that get a const handle */
    uint32_t *alive;     /* a page that fork wipes */
    int socket, doorbell, signal, epoll;
    void *client_map, *broker_map;
    size_t client_map_bytes, broker_map_bytes;
    struct client_words *client;
    const struct broker_words *broker;
    uint8_t *arena;
    uint32_t arena_bytes;
    const uint8_t *window;
    uint64_t window_bytes;
    uint32_t queue_entries;
    struct welcome welcome; /* checked copy */
    int lost;               /* 0, or why nothing can be sent any more: -ECONNRESET, -EPROTO */
    struct error lost_words;

    struct ring submission, completion;
    struct request *requests; /* queue_entries; at most queue_entries - 1 in use */
    uint32_t free_request;    /* list through `later` */
    uint32_t outstanding;
    uint32_t oldest, newest; /* requests in the order of submission */
    uint64_t dispatched;     /* completions met */

    struct walrus_completion *kept; /* queue_entries slots */
    uint32_t kept_head, kept_tail;
    uint32_t in_flight; /* asynchronous batches submitted and not reaped */

    struct arena room;
    uint32_t room_bytes;              /* bytes the extents divide */
    uint32_t stream_at, stream_bytes; /* STREAM_EXTENT */
    bool stream_taken;
    uint32_t whole_bytes; /* largest extent of one batch */
    uint32_t chunk_bytes; /* wanted extent of a chunk */
    uint32_t streams;     /* numbers given */

    struct walrus_batch *open; /* newest first */
    uint32_t open_count;
    struct walrus_batch *pool;
    struct walrus_batch *allocated;

    struct walrus_topic *topics;
    struct number_use *numbers;
    uint32_t number_count, number_capacity;
    struct known_name **names; /* hash table, made when it is needed */
    struct known_name *name_newest, *name_oldest;
    uint32_t name_count;
    uint8_t *listing; /* topic records read ahead for walrus_next_topic */
    uint32_t listing_at, listing_end;
    uint64_t listing_id; /* id given last; 0 = none */

    uint64_t window_head, window_next;
    struct walrus_entries *reads_oldest, *reads_newest; /* those that hold window bytes, in order */
    struct walrus_entries *reads;                       /* all */

    struct waiting waiting;
    uint8_t reason; /* enum walrus_reason of the last -EAGAIN or -EBUSY */
    struct error error;
};

/* ----------------------------------------------------------------------------- fork.c, error.c */

#define ALIVE 0x616c6976u

int walrus__fork_page(uint32_t **alive) must_check;
void walrus__fork_page_release(uint32_t *alive);

/* Every public call begins with this. 0, -EINVAL (NULL), -EOWNERDEAD. */
static inline int walrus__enter(const struct walrus *handle)
{
    if (__builtin_expect(handle == NULL, 0))
        return -EINVAL;
    if (__builtin_expect(__atomic_load_n(handle->alive, __ATOMIC_RELAXED) != ALIVE, 0))
        return -EOWNERDEAD;
    return 0;
}

/* Sets the handle's words and returns `code`. */
int walrus__fail(struct walrus *handle, int code, uint8_t reason, const char *format, ...) printf_like(4, 5);
/* The words for a refused or failed request. `what` is "write to topic" or the like. Returns the code. */
int walrus__fail_answer(struct walrus *handle, int code, uint8_t reason, const char *what, const char *topic);
/* The words for a handle whose connection is gone. Returns the code. */
int walrus__fail_lost(struct walrus *handle);

/* Copies an option struct of the caller's size over zeroes. -EINVAL if it has what this version does not
 * know. */
int walrus__options(struct walrus *handle, void *known, size_t known_bytes, const void *given,
                    const char *what) must_check;

/* ---------------------------------------------------------------------------------- requests.c */

int walrus__requests_init(struct walrus *handle) must_check;
/* Submits a descriptor for a new request; user_data and published_ns are filled in here. The index,
 * -EAGAIN (no credit) or the code of a lost connection. */
struct submission {
    struct descriptor descriptor;
    enum request_kind kind;
    uint32_t extent;
    struct walrus_batch *batch;
    struct answer *answer;
    uint64_t user_data;
};
int walrus__submit(struct walrus *handle, struct submission *submission, uint32_t *index) must_check;
static inline bool walrus__has_credit(const struct walrus *handle)
{
    return handle->outstanding < handle->queue_entries - 1;
}
/* Takes everything that is in the completion ring and brings it to who waits for it. Returns how many. */
uint32_t walrus__pump(struct walrus *handle);
/* Nobody waits for this request any more. */
void walrus__abandon(struct walrus *handle, uint32_t index);
uint64_t walrus__request_word(const struct walrus *handle, uint32_t index);
/* Ends the connection: what the ring still holds is taken first, the rest is answered -ECONNRESET. */
void walrus__lose(struct walrus *handle, int code, const char *format, ...) printf_like(3, 4);
void walrus__keep(struct walrus *handle, const struct walrus_completion *completion);
static inline uint32_t walrus__kept_count(const struct walrus *handle)
{
    return handle->kept_tail - handle->kept_head;
}
/* What the user sees of a completion of a write. */
void walrus__fill_receipt(struct walrus_receipt *receipt, const struct completion *completion);

/* -------------------------------------------------------------------------------------- wait.c */

int64_t walrus__now(void);
/* now + relative, for ever if negative. */
int64_t walrus__deadline(int64_t relative_ns);
void walrus__waiting_init(struct walrus *handle, int64_t spin_ns);

typedef bool (*walrus__condition)(const struct walrus *handle, const void *context);
/* Waits until the condition holds; it can change only when a completion is met, and needs at least `need`
 * of them. 0, -ETIME, -EINTR (if `interruptible`), or the code of a lost connection if it does not hold
 * then either. */
int walrus__wait_until(struct walrus *handle, walrus__condition condition, const void *context, uint32_t need,
                       int64_t deadline, bool interruptible) must_check;
/* Waits for an answer, whatever happens: a lost connection answers too. */
int walrus__wait_answer(struct walrus *handle, const struct answer *answer, int64_t deadline,
                        bool interruptible) must_check;
/* Waits until another completion is met. */
int walrus__wait_any(struct walrus *handle, int64_t deadline, bool interruptible) must_check;
/* Waits for credit to submit one descriptor. */
int walrus__wait_credit(struct walrus *handle) must_check;
/* After the broker refused with -EAGAIN for the `attempt`th time (from 0): waits a little, longer each
 * time. False when it has been tried for MOST_PATIENCE since `begin`, or the connection is lost. */
bool walrus__wait_to_retry(struct walrus *handle, uint32_t attempt, uint32_t retry_after_us,
                           int64_t begin) must_check;
/* Looks, without waiting, whether the connection is lost. */
void walrus__look(struct walrus *handle);
/* Before a public call returns that met completions: the fd is readable if something is unreaped, armed
 * otherwise. */
void walrus__settle(struct walrus *handle);
static inline void walrus__leave(struct walrus *handle)
{
    if (handle->waiting.fd_used)
        walrus__settle(handle);
}

/* -------------------------------------------------------------------------------------- room.c */

int walrus__room_init(struct walrus *handle) must_check;
/* Makes the extent of a batch at least `need` bytes. 0 or -EAGAIN (nothing changed); the caller has
 * checked `need` against whole_bytes. */
int walrus__room_for(struct walrus *handle, struct walrus_batch *batch, uint32_t need) must_check;
/* An extent for a chunk: 0 or -EAGAIN. `last_resort` allows small ones. */
int walrus__room_for_chunk(struct walrus *handle, struct walrus_batch *batch, bool last_resort) must_check;
/* The stream extent for a whole batch of a blocking call, when open batches hold the rest. 0 or -EAGAIN. */
int walrus__room_last_resort(struct walrus *handle, struct walrus_batch *batch, uint32_t need) must_check;
/* Cuts the batch's extent to what it holds, payload and records. */
void walrus__room_trim(struct walrus *handle, struct walrus_batch *batch);
void walrus__room_give_back(struct walrus *handle, uint32_t extent);
/* True if something in flight will free arena space. */
bool walrus__room_in_flight(const struct walrus *handle);

/* --------------------------------------------------------------------------- batch.c, stream.c */

static inline uint32_t walrus__padded(uint64_t length)
{
    return (uint32_t)align_up(length, PAYLOAD_ALIGN);
}
struct walrus_batch *walrus__batch_new(struct walrus *handle);
/* It takes no more entries: off the list of open ones, off its topic. */
void walrus__batch_close(struct walrus_batch *batch);
void walrus__batch_recycle(struct walrus_batch *batch);
/* Copies one entry in; waits for arena space. */
int walrus__batch_put(struct walrus_batch *batch, const void *data, uint64_t length) must_check;
/* Copies the private records behind the payload and fills the descriptor's payload fields. */
void walrus__batch_seal(struct walrus_batch *batch, struct descriptor *descriptor);
void walrus__put_record(struct walrus_batch *batch, const void *data, uint32_t length, uint8_t type,
                        uint8_t flags);

/* From now on the batch goes in chunks. */
int walrus__stream_start(struct walrus_batch *batch) must_check;
int walrus__stream_put(struct walrus_batch *batch, const void *data, uint64_t length,
                       uint8_t type) must_check;
/* Sends the last chunk; no waiting. -EAGAIN: no credit. */
int walrus__stream_finish(struct walrus_batch *batch, struct answer *answer, uint64_t user_data) must_check;
/* Rolls back what was sent; the batch object is recycled when its chunks are answered. */
void walrus__stream_abort(struct walrus_batch *batch);
/* A chunk, or the end, of a stream was answered. */
void walrus__stream_chunk_done(struct walrus_batch *batch, const struct completion *completion);
void walrus__stream_end_done(struct walrus_batch *batch, const struct completion *completion,
                             uint64_t user_data);

/* --------------------------------------------------------------------------- topics.c, names.c */

/* Frees a closed topic without open batches. */
void walrus__topic_unused(struct walrus_topic *topic);
bool walrus__name_valid(const char *name, size_t length);
int walrus__bad_name(struct walrus *handle);
int walrus__check_name(struct walrus *handle, const char *name) must_check; /* -EINVAL with words */
int walrus__open_number(struct walrus *handle, const char *name, size_t length, uint8_t level, bool create,
                        uint32_t *number, uint8_t *level_out) must_check;
void walrus__close_number(struct walrus *handle, uint32_t number);
/* The number of a name for a blocking call: from the cache, or asked for. */
int walrus__number_of(struct walrus *handle, const char *name, bool create, uint32_t *number) must_check;
void walrus__names_release(struct walrus *handle);

/* ---------------------------------------------------------------------------- window.c, runs.c */

/* Checks where a completion says its bytes lie. 0, or the connection is ended (-EPROTO). The caller then
 * holds or drops them. */
int walrus__window_accept(struct walrus *handle, const struct completion *completion,
                          const uint8_t **bytes) must_check;
/* The bytes accepted last belong to `entries` until it is released ... */
void walrus__window_hold(struct walrus *handle, struct walrus_entries *entries);
/* ... or are free at once (once everything before them is). */
void walrus__window_drop(struct walrus *handle);

struct walrus_entries *walrus__entries_new(struct walrus *handle);
void walrus__entries_free(struct walrus_entries *entries);

/* One entry that comes in pieces. */
struct assembly {
    uint8_t *buffer; /* NULL: none */
    uint64_t bytes, got;
    struct walrus_entry entry;
};

/* The runs of one answer. Whole entries are added to `entries`; an entry that goes on behind this answer
 * is left in `assembly`. 0, -ENOMEM, or -EPROTO with words in `err`. */
struct runs {
    const uint8_t *bytes; /* in the window */
    uint32_t length;
    uint64_t asked; /* sequence */
    uint32_t max_entries;
};
int walrus__runs_read(const struct runs *runs, struct walrus_entries *entries, struct assembly *assembly,
                      struct error *err) must_check;

#endif
