/* session.h: what the files of broker/session share: one connection, its requests, and the server that drives
 * them all.
 *
 * A session's life
 *
 *              socket hung up: the            everything up to
 *              published tail is noted        there is taken
 *      LIVE ---------------------------> LEAVING ----------------> ENDED
 *        |                                                           ^
 *        +--- a word, descriptor or message breaks the protocol -----+
 *             (hostile)
 *
 *   LIVE     on `active` (its ring is looked at in each turn) or parked (its doorbell is waited for)
 *   LEAVING  always on `active`; nothing is posted any more; drained as if the client lived
 *   ENDED    socket closed, streams rolled back; nothing is taken; freed once `inflight` is 0 and no signal
 *            is on its way
 *
 * Invariants
 *   - outstanding = descriptors taken and not answered; outstanding + unreaped completions <= capacity, or
 *     the session ends.
 *   - inflight = requests the log or the window queue holds; >= those outstanding there, since a chunk is
 *     answered when copied. Requests come from a pool of the session, so nothing is allocated per descriptor.
 *   - at most one log_read of a session is in the log: the window has one writer at a time.
 *   - a held write that came from the ring (log_write said -EAGAIN) stops its session's drain and nobody
 *     else's. One that waits for its topic stops no drain at all. */
#ifndef WALRUS_SESSION_H
#define WALRUS_SESSION_H

#include <sched.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "../../shared/message.h"
#include "../../shared/ring.h"
#include "../io/worker.h"
#include "placement.h"
#include "server.h"

#define MAX_TOPICS_OPEN   65536u
#define MAX_STREAMS_OPEN  64u
#define EXTRA_REQUESTS    32u        /* beyond the credit: chunks answered and still in the log */
#define DRAIN_DESCRIPTORS 64u        /* of one session in one turn */
#define DRAIN_BYTES       (1u << 20) /* of one session in one turn */
#define TURN_BYTES        (4u << 20) /* of all sessions in one turn */
#define EMPTY_TURNS       128u       /* a session seen empty so often in a row is parked */
#define READ_BUFFER_LEAST (16u << 10)
#define TOPICS_PER_ANSWER 1000u

struct session;
struct server;
struct topic_queue;

/* Something that ends by itself (deadline.c). */
struct deadline {
    int64_t at;
    void (*due)(struct server *server, struct deadline *deadline);
    uint32_t place; /* in server->deadlines; 0 = it is not there */
};

enum request_kind { REQUEST_WRITE, REQUEST_READ, REQUEST_TOPICS };

enum read_state {
    READ_QUEUED,  /* on session->reads */
    READ_IN_LOG,  /* session->reading */
    READ_WAITING, /* on the topic's list of waiters, and on session->followers */
};

/* Where a write is before the log has it, and what of it waits after a refusal (queue.c draws it). */
enum write_state {
    WRITE_NEW,     /* being admitted; if held, its session's drain waits for it */
    WRITE_QUEUED,  /* in its line at a topic */
    WRITE_BEHIND,  /* a chunk on slot->behind: one before it in its stream waits */
    WRITE_REFUSED, /* answered with MORE; on queue->refused */
};

TAILQ_HEAD(request_list, request);

/* The writes of one session that wait for one topic, in order. */
struct queue_line {
    struct session *session;
    struct topic_queue *queue;
    struct request_list requests;
    TAILQ_ENTRY(queue_line) turn; /* on queue->lines, or session->line_pool */
    LIST_ENTRY(queue_line) same;  /* in server->lines */
};
TAILQ_HEAD(line_row, queue_line);
LIST_HEAD(line_list, queue_line);

struct request {
    struct session *session;
    enum request_kind kind;
    bool answered; /* its completion is posted; the log still has it */
    bool follow;
    bool cancelled; /* READ_IN_LOG: the follow is to end when it comes back */
    enum read_state read_state;
    uint32_t topic; /* number in session->topics */
    struct stream_slot *stream;
    uint64_t user_data;
    int64_t published_ns;
    int64_t drained_ns;
    uint64_t window_at;
    uint64_t after; /* TOPICS: ids above it */
    TAILQ_ENTRY(request) link;
    /* writes */
    bool may_queue;
    bool notify;
    bool held; /* on server->held[is_chunk] */
    enum write_state write_state;
    struct queue_line *line;        /* QUEUED */
    struct topic_queue *refused_at; /* REFUSED */
    struct deadline deadline;       /* `at` INT64_MAX: none */
    TAILQ_ENTRY(request) hold;
    TAILQ_ENTRY(request) wait;    /* on session->waits: QUEUED, REFUSED */
    struct queue_line line_space; /* for any line of the session */
    union {
        struct write write;
        struct {
            struct log_read read;
            struct topic_waiter waiter;
        };
    };
};

/* A topic number of a connection. */
struct topic_slot {
    struct topic *topic; /* NULL: free */
    uint32_t inflight;   /* requests that use it */
    uint32_t next_free;
    bool closed; /* to be released when inflight is 0 */
};

enum stream_state {
    STREAM_FREE,
    STREAM_OPEN,   /* in the log, takes chunks */
    STREAM_FAILED, /* refused or rolled back: its chunks are answered with `result` until LAST or ABORT */
    STREAM_CLOSED, /* LAST taken or aborted; waits for inflight 0 */
};

struct stream_slot {
    struct stream stream;
    struct session *session;
    enum stream_state state;
    uint32_t number; /* the client's */
    uint32_t topic;
    uint32_t inflight;
    uint32_t chunks;            /* seen so far */
    bool whole;                 /* the last one was seen */
    struct request *queued;     /* the first chunk, while it waits for the topic */
    struct request_list behind; /* chunks that wait for an earlier one */
    int result;
    uint8_t reason;
    int64_t touched_ns;
    TAILQ_ENTRY(stream_slot) idle; /* on server->streams while OPEN, the longest untouched first */
};
TAILQ_HEAD(stream_list, stream_slot);

enum session_state { SESSION_LIVE, SESSION_LEAVING, SESSION_ENDED };

TAILQ_HEAD(handshake_row, handshake);

struct session {
    struct server *server;
    enum session_state state;
    bool active;    /* on server->active, else parked */
    bool touched;   /* on server->touched */
    bool dead;      /* its process has ended, and that was seen before the socket's end */
    bool settled;   /* LEAVING: its unfinished streams are rolled back */
    bool has_reads; /* on server->readers */
    uint32_t empty_turns;
    uint32_t final_tail; /* LEAVING, or the server stops: taken up to here */
    struct watch socket;
    struct watch doorbell;
    struct watch process; /* its pidfd: readable once the client's process has ended; fd -1: none to be had */
    struct io_signal signal;
    struct account *account;
    pid_t pid;
    struct producer *producer; /* NULL: none; referenced for the session's life. Its word names this session
                                * for as long as it is the holder */
    bool fencing;              /* it is being taken over: what is published up to fence_tail still counts */
    bool fenced;               /* taken over and drained to there: nothing more of this one is taken */
    uint32_t fence_tail;
    struct handshake_row waiters; /* who is to have the producer next, in order */

    struct memory *memory;
    struct layout_sizes sizes;
    struct client_words *client; /* hostile memory: every word is read once */
    uint8_t *client_arena;       /* hostile memory: only log_write and OP_OPEN look at it, once */
    struct broker_words *broker;
    uint8_t *window;
    struct ring sq;
    struct ring cq;
    uint32_t signal_from; /* completions before it have been looked at for signals */
    uint64_t window_tail; /* free-running; what was given to the client so far */

    uint32_t outstanding;
    uint32_t inflight;
    uint32_t writes;    /* those of `inflight` that write: held, waiting for their topic, or in the log */
    uint32_t pool_used; /* requests[0 .. pool_used) have been used before */
    uint32_t pool_size;
    struct request *requests;
    struct request_list pool;
    struct request *held;      /* a write that waits for memory or log space; the drain stops at it */
    struct request_list waits; /* writes that wait for their topic, refusals that wait to be told */
    uint32_t waiting;          /* writes QUEUED or BEHIND */
    uint32_t refusals;         /* those of `waits` that are REFUSED */
    struct line_row line_pool;
    uint32_t lines_used;       /* requests[0 .. lines_used).line_space have been used before */
    struct request *reading;   /* its log_read is in the log */
    struct request_list reads; /* wait for their turn at the window */
    struct request_list followers;

    struct topic_slot *topics; /* number n is topics[n]; 0 is never given out */
    uint32_t topic_count;
    uint32_t topic_free; /* 0 = none */
    struct stream_slot *streams;

    TAILQ_ENTRY(session) all;
    TAILQ_ENTRY(session) activity;
    TAILQ_ENTRY(session) touch;
    TAILQ_ENTRY(session) reader;
    TAILQ_ENTRY(session) contest;
};
TAILQ_HEAD(session_list, session);

/* What one uid uses. */
struct account {
    uid_t uid;
    uint32_t connections; /* half-open ones included */
    uint64_t shared;
    uint64_t queue;  /* entries of its rings */
    uint32_t writes; /* of its sessions in the log: these end by themselves */
    int64_t time_ns; /* of the device, used: see share.c */
    int64_t present_until_ns;
    uint64_t group_charged; /* server->group_seen when a group was charged last */
    TAILQ_ENTRY(account) link;
};
TAILQ_HEAD(account_list, account);

/* A connection without a session yet.
 *
 *          hello    memory   its producer is nobody's
 *   HELLO ---------> FILLS ---------------------------------------> OVER  a session, or refused
 *                      |                     decided; first in row   ^
 *                      +--------> WAITS -----------------------------+
 *        its producer's holder            hang-up, deadline, stop
 *        is not decided
 *
 * Small memories are filled at once: such a handshake is never seen in FILLS.
 */
enum handshake_state {
    HANDSHAKE_HELLO, /* on server->handshakes */
    HANDSHAKE_FILLS, /* on server->filling */
    HANDSHAKE_WAITS, /* on server->waiting, and on holder->waiters */
    HANDSHAKE_OVER,  /* on server->over: freed at the end of the turn */
};

struct handshake {
    struct server *server;
    enum handshake_state state;
    struct watch socket;
    struct watch process; /* WAITS: as the session has it */
    struct account *account;
    pid_t pid;
    int64_t deadline_ns;
    struct hello hello;        /* checked; in FILLS and WAITS */
    struct memory *memory;     /* NULL: not begun, or the session's */
    struct layout_sizes sizes; /* this and the next ones: as the hello has them */
    bool take_over;
    bool resumed;              /* the welcome is to say so */
    struct producer *producer; /* NULL: none; referenced */
    struct session *holder;    /* WAITS: whose writes are not decided */
    TAILQ_ENTRY(handshake) link;
    TAILQ_ENTRY(handshake) row;
};
TAILQ_HEAD(handshake_list, handshake);
TAILQ_HEAD(memory_list, memory);

/* Who waits for a topic: hangs on log_topic_word() as long as there is anybody. */
struct topic_queue {
    struct server *server;
    struct topic *topic;
    struct line_row lines;       /* the one in front is served next */
    struct request_list refused; /* the longest refused first */
    uint32_t line_count;
    uint32_t run;       /* writes of the front line decided in its turn */
    uint64_t run_bytes; /* and their payload */
    bool ready;         /* on server->ready */
    bool told;          /* one was told that a try may succeed; the next one has to wait */
    int64_t pause_ns;
    struct deadline again; /* until then */
    bool *gone;            /* being served: to be set when it is freed */
    TAILQ_ENTRY(topic_queue) link;
};
TAILQ_HEAD(topic_queue_list, topic_queue);

#define LINE_BUCKETS 256u

/* Lines by session and topic. */
struct line_table {
    struct line_list *buckets;
    uint32_t room; /* a power of two */
    uint32_t count;
    struct line_list least[LINE_BUCKETS];
};

struct deadlines {
    struct deadline **heap;
    uint32_t count;
    uint32_t room;
};

struct server {
    struct server_options options;
    struct io *io;
    struct log *log;
    struct watermarks watermarks;     /* what clients are sent: the options', or our own */
    struct watermarks own_watermarks; /* fd -1: none */
    int epoll_fd;
    int spare_fd; /* given up for a moment to shed a connection when there are no descriptors left */
    struct watch listener;
    uint64_t epoch;
    bool stopping; /* nothing beyond the noted tails is taken */
    bool log_gone; /* the log was stopped: everything is answered -ESHUTDOWN */
    bool more;     /* there is work without waiting for anything */

    struct account_list accounts;
    struct handshake_list handshakes; /* the first deadline first */
    struct handshake_list filling;
    struct handshake_list waiting; /* the first deadline first */
    struct handshake_list over;
    struct session_list sessions;
    struct session_list active;
    struct session_list touched;
    struct request_list held[2];   /* whole writes; chunks: the longest held first */
    struct session_list readers;   /* have something in `reads` and nothing in the log */
    struct session_list contested; /* somebody waits for their producer */
    struct session_list ended;
    struct stream_list streams;
    struct topic_queue_list ready; /* topics that have become free, and somebody waits */
    uint64_t ready_count;
    struct line_table lines;
    struct deadlines deadlines;

    struct memory_list memories; /* to be filled or given back; in a row */
    struct memory *memory_working;
    uid_t memory_uid; /* of that one, or the one before */
    struct worker memory_worker;
    struct watch memory_watch; /* its eventfd; -1: it does not run */

    int64_t group_ns; /* how long a group takes: a moving average */
    uint64_t group_seen;
    uint64_t writes_in_log; /* taken and not answered */

    bool shared;            /* several users are present: share.c */
    bool share_held_back;   /* a session was not drained for that */
    int64_t share_at_ns;    /* when the next one was worked out */
    int64_t share_least_ns; /* account of the user that is behind all others */
    int64_t small_group_ns; /* shortest time of a group, of late; 0: none yet */
    int64_t log_deadline;
    int64_t spin_checked_ns; /* load looked at */
    bool crowded;            /* this thread had to wait for a core of late */
    int64_t waited_ns;       /* how long in all, when looked at last */
    int64_t yielded_ns;      /* what this thread has given away itself since then */
    int schedstat_fd;
    int cores;
    struct placement placement;
    cpu_set_t cores_allowed; /* as this thread was started */
    int64_t gap_ns;          /* how long the ring is empty between two pieces of work: a moving average */
    uint32_t turns_since_poll;
    int64_t drained_ns; /* clock of a descriptor in this turn, when so many bytes were drained; 0: none yet */
    uint64_t drained_bytes;
    int64_t turn_ended_ns;         /* of the last turn */
    int64_t listener_paused_until; /* 0: it is not */
    uint32_t connections;          /* half-open ones included */
    uint64_t queue;                /* entries of all rings */
    bool no_pidfd_said;
    bool rights_refused; /* by the kernel: no message carries descriptors */
    int64_t turn_started_ns;
    int64_t idle_since_ns; /* when the last work was done and nothing was owed any more; 0: something is */

    struct stat_values values;
    uint64_t stat_updates;
    int64_t stat_written_ns;
    bool stat_dirty;
    int64_t said_since_ns;
    uint32_t said;
    uint32_t unsaid;
};

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

/* session.c */
/* A memfd, its first `bytes` allocated, and its mapping; then it is sealed SHRINK|GROW|SEAL and
 * `extra_seals`. */
int shared_file(const char *name, uint64_t bytes, int *out) must_check;
int shared_map(int fd, uint64_t bytes, int extra_seals, uint8_t **out) must_check;
/* Takes over the handshake's socket, account, memory and producer on success. -EMFILE, -ENFILE, -ENOMEM;
 * -ECONNRESET: the client's process has ended. */
int session_create(struct handshake *handshake, struct session **out, struct error *err) must_check;
void session_activate(struct session *session);
void session_park(struct session *session);
void session_leave(struct session *session); /* the client is gone */
void session_end(struct session *session);   /* LIVE or LEAVING -> ENDED */
void session_hostile(struct session *session, const char *format, ...) printf_like(2, 3);
/* A pidfd of the process that connected; -ESRCH: it has ended; -ENOSYS, ...: there is none to be had. */
int session_process_open(int socket_fd, pid_t pid) must_check;
void session_reap_ended(struct server *server); /* frees what can be freed */
/* NULL: the pool is empty */
struct request *request_take(struct session *session, enum request_kind kind);
void request_free(struct request *request);
struct topic_slot *session_topic(struct session *session, uint32_t number);
int session_topic_add(struct session *session, struct topic *topic, uint32_t *number) must_check;
void session_topic_close(struct session *session, uint32_t number);
void session_topic_done(struct session *session, uint32_t number); /* one request less uses it */
void session_topics_release(struct session *session);

/* memory.c */
void memory_start(struct server *server);
void memory_stop(struct server *server);
/* Charges the account and fills. 0: handshake->memory can be mapped; 1: handshake_filled will be called;
 * -ENOMEM, -EMFILE, -ENFILE, -ENOSPC. */
int memory_begin(struct handshake *handshake) must_check;
int memory_map(struct memory *memory, uint8_t **client, uint8_t **broker) must_check;
void memory_files(const struct memory *memory, int files[2]);
void memory_files_close(struct memory *memory);
/* Gives it back, now or later, and then, by account_release, what the account has of it and of the
 * connection. */
void memory_drop(struct memory *memory);
void memory_of_the_dead(struct memory *memory); /* before memory_drop: whoever has kept it has a hole */

/* stream.c */
struct stream_slot *stream_find(struct session *session, uint32_t number);
struct stream_slot *stream_open(struct session *session, uint32_t number, uint32_t topic,
                                const struct descriptor *d, int64_t now);
void stream_touch(struct stream_slot *slot, int64_t now);
bool stream_waits(const struct stream_slot *slot); /* a chunk of it waits for its topic, or behind another */
void stream_wait_behind(struct request *request);
void stream_leave(struct request *request); /* BEHIND -> NEW */
/* The chunks behind one that was taken. false: `retried`, which had been held, found no room again. */
bool stream_go_on(struct stream_slot *slot, struct request *retried);
void stream_answer_behind(struct stream_slot *slot);
void stream_mark_failed(struct stream_slot *slot, int result, uint8_t reason);
void stream_fail(struct stream_slot *slot, int result, uint8_t reason);
void stream_close(struct stream_slot *slot);
void stream_chunk_done(struct stream_slot *slot);
void stream_abort_all(struct session *session);
void stream_abort_unfinished(struct session *session); /* those whose last chunk was not published */
void stream_abort_idle(struct server *server, int64_t now);
int64_t stream_idle_deadline(const struct server *server);

static inline unsigned is_chunk(const struct request *request)
{
    return request->write.kind == WRITE_CHUNK ? 1 : 0;
}

/* drain.c, admission.c */
bool drain_session(struct session *session, uint64_t *bytes); /* true: there is more to take at once */
void drain_all(struct server *server);
void drain_retry_held(struct server *server);
bool drain_park_all(struct server *server); /* false: something was found instead */
bool drain_anything(struct server *server); /* something is published on an active ring */
int admit_descriptor(const struct session *session, const struct descriptor *d) must_check;
void admit(struct session *session, const struct descriptor *d, int64_t drained_ns, uint64_t *bytes);
void unhold(struct session *session); /* the one that its drain stopped at */

enum admission {
    ADMIT_DECIDED, /* taken by the log, or answered */
    ADMIT_LATER,   /* no memory or log space: to be held */
    ADMIT_BUSY,    /* to wait for its topic */
};
enum admission admit_write(struct request *request);
bool write_must_hold(const struct request *request); /* others wait for memory before it */
void write_hold(struct request *request);            /* to the end of its row */
void write_unhold(struct request *request);
bool write_retry(struct request *request); /* off its row; false: no room, put it back */
/* Ends a write that the log does not have, wherever it waits. */
void write_end(struct request *request, int result, uint8_t reason);
int write_watch_deadline(struct request *request) must_check; /* -ENOMEM */

/* queue.c: writes that wait for their topic, and refusals that wait to be told */
void queue_start(struct server *server); /* in server_create, once the log is known */
void queue_stop(struct server *server);  /* in server_destroy: nobody waits any more */
/* Admits what waits for topics that have become free. In each turn, before drain_all. */
void queue_turn(struct server *server);
/* Answers everything of the session that waits for a topic with `result` (-ESTALE: fenced), as far as it can
 * still be answered. In the log nothing of it is. */
void queue_drop_session(struct session *session, int result);

enum queue_answer { QUEUE_GO, QUEUE_WAIT, QUEUE_BUSY };
/* May a write that comes from the ring go to the log now, as far as its topic is concerned? */
enum queue_answer queue_ask(const struct request *request);
int queue_join(struct request *request) must_check; /* NEW -> QUEUED; -ENOMEM */
void queue_leave(struct request *request);          /* QUEUED -> NEW */
bool queue_retry(struct request *request);          /* false: no room */
uint32_t queue_estimate_us(const struct request *request);
/* NEW -> REFUSED, and answered with MORE; false: it is to be answered for good. */
bool queue_note_refusal(struct request *request);
void queue_leaving(struct session *session); /* the client is gone: its refusals end */
/* Ends what waits in this state under the user_data: 0, -ENOENT. */
int queue_cancel(struct session *session, uint64_t user_data, enum write_state state) must_check;
bool queue_has_number(const struct session *session, const struct topic *topic, uint64_t number);

/* deadline.c: O(1) when nothing is due */
int deadline_set(struct server *server, struct deadline *deadline, int64_t at,
                 void (*due)(struct server *server, struct deadline *deadline)) must_check;
void deadline_clear(struct server *server, struct deadline *deadline);
void deadline_free(struct server *server);
int64_t deadline_next(const struct server *server); /* INT64_MAX: none */
void deadline_turn(struct server *server, int64_t now);

/* complete.c */
void complete_post(struct session *session, struct completion *completion);
void complete_result(struct session *session, const struct descriptor *d, int64_t drained_ns, int result,
                     uint8_t reason);
void complete_request(struct request *request, int result, uint8_t reason);
void complete_first(struct request *request, int result, uint8_t reason); /* MORE follows */
void complete_second(struct request *request, int result, uint32_t flags);
bool complete_has_room(struct session *session); /* for a second one */
void complete_write(struct request *request);    /* as the log has filled the write */
void complete_write_done(struct write *write);
void complete_signals(struct server *server);

/* read.c */
void read_start(struct request *request, const struct descriptor *d);
void read_turn(struct server *server);
int read_cancel(struct session *session, uint64_t user_data) must_check; /* 0, -ENOENT */
void read_end_all(struct session *session, int result);                  /* ends what is not in the log */

/* handshake.c */
void handshake_listen(struct watch *watch, uint32_t events);
void handshake_expire(struct server *server, int64_t now);
void handshake_free_over(struct server *server);
void handshake_filled(struct handshake *handshake, int rc); /* FILLS -> WAITS or OVER */
void handshake_end_all(struct server *server);
void handshake_go_on(struct handshake *handshake); /* WAITS -> OVER: nobody has its producer any more */
void account_release(struct server *server, struct account *account, uint64_t shared);

/* rights.c: whatever descriptors a message carries, they do not hold the loop up */
struct msghdr;
void rights_start(struct server *server);
void rights_catch_up(struct server *server); /* the kernel cannot refuse them */
ssize_t rights_receive(const struct server *server, int fd, struct msghdr *message, int flags);
void rights_close(const struct server *server, int fd);

/* producer.c */
/* Gives the handshake the producer that its hello asks for, if any. 0: done; 1: it waits for the holder; else
 * refused, with words. */
int producer_attach(struct handshake *handshake, const struct hello *hello, struct error *err) must_check;
void producer_hold(struct session *session, struct producer *producer); /* takes over the reference */
void producer_fence_reached(struct session *session);                   /* drained up to fence_tail */
void producer_leave_row(struct handshake *handshake);                   /* it waits no more */
void producer_turn(struct server *server); /* lets those go on whose holder is decided */
void producer_release(struct session *session);

/* server.c */
void server_poll_events(struct server *server);

/* share.c */
void share_turn(struct server *server);
bool share_waits(const struct session *session); /* not to be drained now */
void share_charge(struct session *session, uint64_t bytes);
void share_answered(struct session *session);
void share_learn(struct server *server, int64_t group_ns);
int64_t share_deadline(const struct server *server);

/* spin.c */
void spin_start(struct server *server);
void spin_stop(struct server *server);
bool spin_until_work(struct server *server, int64_t now);
void spin_learn(struct server *server, bool drained);
/* Chooses the core for this thread, see placement.c. */
void spin_place(struct server *server, int64_t now);

/* stat.c */
void stat_turn(struct server *server, int64_t now);
void server_say(struct server *server, enum say priority, const char *format, ...) printf_like(3, 4);
/* For what a peer caused: bounded, so that nobody can fill the operator's log. */
void server_say_of_peer(struct server *server, const char *format, ...) printf_like(2, 3);

#endif
