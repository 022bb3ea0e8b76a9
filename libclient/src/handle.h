/* handle.h: what one connection consists of, for the files of the library alone.
 *
 * Who does what
 *   connect.c   the handshake and the handle's life          fork.c      a handle does not survive fork
 *   arena.c     extents of the arena                         room.c      how open batches share it
 *   requests.c  descriptors out, completions in              wait.c      spinning, sleeping, the fd
 *   batch.c     filling a batch in place                     stream.c    batches that go in chunks
 *   submit.c    submit, cancel, reap
 *   append.c    the blocking writes                          read.c      the blocking reads
 *   reconnect.c a connection made anew
 *   runs.c      what lies in the window, checked             window.c    order of its release
 *   topics.c    topic handles, the catalogue                 names.c     the topics that are open, by name
 *   numbers.c   batch numbers                                error.c     words
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
    bool try_now; /* after a refusal with MORE: the second completion has come */
    struct completion completion;
};

enum request_kind {
    REQUEST_FREE = 0,
    REQUEST_BATCH,  /* a whole batch, or the last chunk of one: the user gets the completion */
    REQUEST_CHUNK,  /* a chunk that is not the last */
    REQUEST_ANSWER, /* a call waits for it */
    REQUEST_NOBODY, /* nobody waits any more; what it put into the window is released */
};

/* A descriptor that is not answered yet. Index and generation are its user_data.
 *
 * A write with DESCRIPTOR_NOTIFY may have two completions, so it counts twice for the credit until the first
 * one has come:
 *
 *   notify --(completion without MORE)--> answered, free
 *   notify --(-EBUSY with MORE)--> refused: nothing was written, its extent is free, the user (or the struct
 *                                  answer) has got the refusal --(second completion)--> free
 *
 * A refused one is not sent again by a reconnection: its second completion is then ours, TRY_NOW. */
struct request {
    uint32_t generation;
    uint8_t kind;
    uint8_t op;
    bool notify;
    bool refused;
    uint32_t cancel_round;      /* walrus_cancel has asked for it */
    uint64_t number;            /* of a write: its batch number, 0 = none */
    struct known_topic *known;  /* of a write, until its first completion; its `in_flight` counts this */
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
    struct known_topic *known;
    uint8_t state;
    uint8_t level; /* chunks carry it from the first on */
    bool streaming;
    bool queue;             /* its first chunk waits for its turn */
    bool part_open;         /* the last entry goes on with the next part */
    bool part_here;         /* the last record is a piece of it */
    int64_t deadline;       /* of a blocking call: ends its waits; FOR_EVER = none */
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
    uint32_t tail_bytes; /* of an open part, cut off behind a page: they begin the next chunk */
    uint8_t tail[LAYOUT_PAGE];
};

struct walrus_topic {
    struct walrus *handle;
    struct known_topic *known;
    uint32_t open_batches;
    bool closed; /* freed with its last open batch */
    struct walrus_topic *previous, *next;
};

#define NO_WATERMARK UINT32_MAX

/* A topic that this handle has open at the broker, under one topic number: there is one for each name, shared
 * by topic handles, batches, requests and the blocking calls, so that all of them count on in one series of
 * batch numbers. names.c; the numbers: numbers.c. */
struct known_topic {
    uint32_t number;      /* at the broker; a reconnection opens the name again and gets another one */
    uint32_t uses;        /* topic handles and open batches */
    uint32_t in_flight;   /* writes without a first completion */
    uint8_t level;        /* the topic's */
    uint8_t wanted_level; /* what OP_OPEN asked for, and with DESCRIPTOR_CREATE or not */
    bool create;
    bool cached;                         /* known to the blocking calls */
    bool earlier_lost;                   /* the next receipt says so */
    bool uncertain;                      /* numbers from next_number on may be in flight */
    uint32_t watermark;                  /* slot, or NO_WATERMARK */
    uint64_t next_number;                /* of the next write without a number of its own */
    uint64_t last_number;                /* known to be committed */
    struct known_topic *previous, *next; /* all of the handle */
    struct known_topic *bucket_next;
    struct known_topic *newer, *older; /* cached ones, by last use */
    uint32_t bucket;
    uint32_t length;
    char name[];
};

struct retired_window; /* window.c */

struct walrus_entries {
    struct walrus *handle;
    struct retired_window *retired;         /* they lie in the window of a connection that is gone */
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

/* Where the connection is; the machine is drawn in reconnect.c. */
enum link { LINK_UP = 0, LINK_DOWN, LINK_HELLO, LINK_REOPENING };

struct reconnect; /* reconnect.c */

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
    const struct watermark *watermarks; /* of the broker; NULL if it has none */
    uint32_t watermark_slots;
    size_t watermark_map_bytes;
    struct welcome welcome;  /* checked copy; max_batch_bytes is never 0 */
    uint64_t reconnects;     /* how often the connection was made anew */
    uint8_t link;            /* enum link; always LINK_UP without WALRUS_RECONNECT */
    struct reconnect *again; /* NULL without WALRUS_RECONNECT */
    struct retired_window *retired;
    int lost; /* 0, or why nothing can be sent any more: -ECONNRESET, -EPROTO */
    struct error lost_words;

    struct ring submission, completion;
    struct request *requests; /* queue_entries; at most queue_entries - 1 in use */
    uint32_t free_request;    /* list through `later` */
    uint32_t outstanding;     /* requests */
    uint32_t second_answers;  /* of them, how many may still be answered twice */
    uint32_t cancel_rounds;
    uint32_t oldest, newest; /* requests in the order of submission */
    uint64_t dispatched;     /* completions met */

    struct walrus_completion *kept; /* KEPT_SLOTS slots: two completions for each batch in flight */
    uint32_t kept_head, kept_tail;
    uint32_t in_flight; /* asynchronous batches submitted whose last completion is not reaped */

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
    struct known_topic *known;  /* all there are */
    struct known_topic **names; /* them by name: hash table, made when it is needed */
    struct known_topic *name_newest, *name_oldest;
    uint32_t name_count;         /* cached ones */
    struct known_topic *opening; /* asked for by OP_OPEN, in no list yet */
    struct answer opened;        /* the answer to that */
    bool unused_topics;          /* some may be given back: walrus__sweep_topics */
    uint8_t *listing;            /* topic records read ahead for walrus_next_topic */
    uint32_t listing_at, listing_end;
    uint64_t listing_id; /* id given last; 0 = none */

    uint64_t window_head, window_next;
    struct walrus_entries *reads_oldest, *reads_newest; /* those that hold window bytes, in order */
    struct walrus_entries *reads;                       /* all */

    struct waiting waiting;
    uint64_t random; /* state of walrus__random; 0 = not seeded */
    uint8_t reason;  /* enum walrus_reason of the last -EAGAIN or -EBUSY */
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
    struct known_topic *known; /* of a write: its `in_flight` is counted from here on */
};
int walrus__submit(struct walrus *handle, struct submission *submission, uint32_t *index) must_check;

/* Completions that may still be added to those that are under way: the ring's capacity less one for each
 * request, and one more for each that may be answered twice. What may wait for other handles without a bound
 * leaves some, so that a stream's chunks, on which those others may wait, and a cancel always get through:
 *   PATIENT_ASYNC  queued and notified batches of walrus_batch_submit
 *   PATIENT_CALL   a blocking call that queues or follows: there is one at a time
 * A chunk that is not the last leaves one, too: for the last one, or for the abort. */
#define PATIENT_ASYNC 2u
#define PATIENT_CALL  1u
static inline uint32_t walrus__credit(const struct walrus *handle)
{
    return handle->queue_entries - 1 - handle->outstanding - handle->second_answers;
}
static inline bool walrus__has_credit(const struct walrus *handle)
{
    return walrus__credit(handle) > 0;
}
#define KEPT_SLOTS(handle) ((size_t)2 * (handle)->queue_entries)
/* Takes everything that is in the completion ring and brings it to who waits for it. Returns how many. */
uint32_t walrus__pump(struct walrus *handle);
/* Nobody waits for this request any more. */
void walrus__abandon(struct walrus *handle, uint32_t index);
uint64_t walrus__request_word(const struct walrus *handle, uint32_t index);
/* The connection is gone: what the ring still holds is taken first. With WALRUS_RECONNECT and -ECONNRESET it
 * is made anew; otherwise the handle is lost and the rest is answered -ECONNRESET. */
void walrus__lose(struct walrus *handle, int code, const char *format, ...) printf_like(3, 4);
/* The handle is lost, whatever the options say. */
void walrus__end(struct walrus *handle, int code, const char *words);
/* Sends a request's descriptor, by reconnect.c's copy. False: the broker broke the protocol. */
bool walrus__push(struct walrus *handle, struct descriptor *descriptor) must_check;
void walrus__ring_doorbell(struct walrus *handle);
/* Answers a request as if the broker had. */
void walrus__answer_request(struct walrus *handle, uint32_t index, struct completion *completion);
void walrus__keep(struct walrus *handle, const struct walrus_completion *completion);
static inline uint32_t walrus__kept_count(const struct walrus *handle)
{
    return handle->kept_tail - handle->kept_head;
}
/* What the user sees of a completion of a write. Its `number` is the one the request had. */
void walrus__fill_receipt(struct walrus_receipt *receipt, const struct completion *completion);

/* --------------------------------------------------------------------------------- reconnect.c */

struct attempt; /* connect.h */

int walrus__reconnect_init(struct walrus *handle, const struct attempt *attempt, int64_t reconnect_ns,
                           int64_t timeout_ns) must_check;
void walrus__reconnect_release(struct walrus *handle);
/* A request is submitted: its descriptor is kept for a next time. */
void walrus__reconnect_keep(struct walrus *handle, uint32_t index, const struct descriptor *descriptor);
/* The broker is stopping and did not do this: true if the next one is asked for it. */
bool walrus__reconnect_holds(const struct walrus *handle, uint32_t index);
/* The connection is gone. False: it cannot be made anew, and *code and the words say why. */
bool walrus__reconnect_begin(struct walrus *handle, int *code, char *words, size_t size);
/* Takes the steps that can be taken now; never waits. Only while link is not LINK_UP. */
void walrus__reconnect_step(struct walrus *handle);
/* What is readable when the next step can be taken, besides eventfd and socket: the timer, and in LINK_HELLO
 * the socket of the attempt. */
void walrus__reconnect_fds(const struct walrus *handle, int *socket, int *timer);
/* Something was answered -ESTALE: the producer is somebody else's from now on. */
void walrus__reconnect_fenced(struct walrus *handle);
/* The handle is lost: its fd is readable for ever. */
void walrus__reconnect_over(struct walrus *handle);

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
/* Waits until the connection is up (again), or lost. 0, -ETIME or the code of a lost connection. */
int walrus__wait_up(struct walrus *handle, int64_t deadline) must_check;
/* Waits for credit to submit one descriptor. */
int walrus__wait_credit(struct walrus *handle) must_check;
/* Waits until walrus__credit is at least `need`. 0, -ETIME, or the code of a lost connection. (append.c) */
int walrus__wait_credits(struct walrus *handle, uint32_t need, int64_t deadline) must_check;
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
/* The batch is open: 0, or -EINVAL with words, -EOWNERDEAD. */
int walrus__enter_batch(const struct walrus_batch *batch) must_check;
/* Copies one entry in; waits for arena space. */
int walrus__batch_put(struct walrus_batch *batch, const void *data, uint64_t length) must_check;
/* Copies the private records behind the payload and fills the descriptor's payload fields. */
void walrus__batch_seal(struct walrus_batch *batch, struct descriptor *descriptor);
void walrus__put_record(struct walrus_batch *batch, const void *data, uint32_t length, uint8_t type,
                        uint8_t flags);

/* The last record grows by `length` bytes, for which there is room. */
void walrus__extend_record(struct walrus_batch *batch, const void *data, uint32_t length);
/* How long the library leaves it to the broker to say that a deadline has passed. */
#define DEADLINE_GRACE (20 * NS_PER_MS)
static inline int64_t walrus__with_grace(int64_t deadline)
{
    return deadline < FOR_EVER - DEADLINE_GRACE ? deadline + DEADLINE_GRACE : FOR_EVER;
}
/* The words for a blocking call whose deadline passed before all was sent: -ETIMEDOUT. */
int walrus__too_late(struct walrus *handle);

/* How a batch is sent: submit.c, for walrus_batch_submit and the blocking calls. */
struct sending {
    uint8_t op; /* OP_APPEND or OP_BATCH, unless it goes in chunks */
    uint8_t level;
    uint16_t flags;        /* QUEUE, NOTIFY */
    int64_t deadline;      /* FOR_EVER = none */
    uint64_t number;       /* wanted, or 0 */
    struct answer *answer; /* NULL: the user gets the completion */
    uint64_t user_data;
};
/* The batch with its last or only descriptor, no waiting. 0: it is closed; if it went whole it is recycled.
 * -EAGAIN (ORDER, OPEN_BATCH): nothing changed. Else the broker broke the protocol. The caller has seen that
 * there is credit. */
int walrus__batch_send(struct walrus_batch *batch, const struct sending *sending) must_check;
/* The request whose answer that is; NO_REQUEST if it was answered. */
uint32_t walrus__request_of(const struct walrus *handle, const struct answer *answer);
/* Asks the broker to end what waits under that word, and does not wait for it. False: no credit. */
bool walrus__cancel_word(struct walrus *handle, uint64_t word);

/* A batch of this handle has its topic, and is not submitted yet. */
static inline bool walrus__stream_is_open(const struct walrus *handle)
{
    for (const struct walrus_batch *b = handle->open; b != NULL; b = b->next) {
        if (b->chunk > 0)
            return true;
    }
    return false;
}
/* From now on the batch goes in chunks. */
int walrus__stream_start(struct walrus_batch *batch) must_check;
int walrus__stream_put(struct walrus_batch *batch, const void *data, uint64_t length,
                       uint8_t type) must_check;
/* One more part of an entry; `begins`: its first one. */
int walrus__stream_put_part(struct walrus_batch *batch, const void *data, uint64_t length,
                            bool begins) must_check;
/* walrus__batch_send for it. */
int walrus__stream_finish(struct walrus_batch *batch, const struct sending *sending) must_check;
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
/* Finds or opens a topic by name; one more use of it, until walrus__known_release. -ETIMEDOUT: the answer to
 * the question is still to come, a later call takes it. */
int walrus__known_open(struct walrus *handle, const char *name, size_t length, uint8_t level, bool create,
                       int64_t deadline, struct known_topic **known) must_check;
void walrus__known_release(struct walrus *handle, struct known_topic *known);
/* The topic of a name for a blocking call: from the cache, or asked for. It lives as long as the call. */
int walrus__known_for_call(struct walrus *handle, const char *name, bool create, int64_t deadline,
                           struct known_topic **known) must_check;
/* What OP_OPEN answered (result 0): number, level, watermark slot, last number. After a reconnection, too. */
void walrus__known_opened(struct walrus *handle, struct known_topic *known,
                          const struct completion *completion);
/* Gives back (OP_CLOSE) what nobody uses any more and has nothing in flight, as far as there is credit. Not
 * from inside walrus__pump. */
void walrus__sweep_topics(struct walrus *handle);
void walrus__names_release(struct walrus *handle);

/* ---------------------------------------------------------------------------------- numbers.c */

static inline bool walrus__numbered(const struct walrus *handle)
{
    return handle->welcome.producer != 0;
}
/* The number for a write: `wanted`, or the next one if that is 0; 0 without a producer. Nothing changes
 * before walrus__number_sent. -EAGAIN (ORDER): numbers behind a refused one are still in flight; -EINVAL: a
 * number without a producer. */
int walrus__number_next(struct walrus *handle, struct known_topic *known, uint64_t wanted,
                        uint64_t *number) must_check;
/* The write with that number was submitted. */
void walrus__number_sent(struct known_topic *known, uint64_t wanted, uint64_t number);
/* requests.c, for each write with the first completion, before it is delivered (so for a lost connection,
 * too): the number is taken, or free again; request->known is NULL then. */
void walrus__write_answered(struct walrus *handle, struct request *request,
                            const struct completion *completion);
/* Uniform in [0, most]. */
int64_t walrus__random(struct walrus *handle, int64_t most);

/* ---------------------------------------------------------------------------- window.c, runs.c */

/* Checks where a completion says its bytes lie. 0, or the connection is ended (-EPROTO). The caller then
 * holds or drops them. */
int walrus__window_accept(struct walrus *handle, const struct completion *completion,
                          const uint8_t **bytes) must_check;
/* The bytes accepted last belong to `entries` until it is released ... */
void walrus__window_hold(struct walrus *handle, struct walrus_entries *entries);
/* ... or are free at once (once everything before them is). */
void walrus__window_drop(struct walrus *handle);
/* The window of a connection that is gone: unmapped, once what was read is released. */
int walrus__window_retire(struct walrus *handle) must_check;
void walrus__windows_release(struct walrus *handle);

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
