/* hostile.h: clients that break every rule they can, beside one that keeps them all.
 *
 *   conductor (main.c, conduct.c)      honest (honest.c), own uid         attackers, another uid
 *     starts walrusd (broker.c)
 *     forks the honest producer  --->  batches of known content,
 *                                      each answer into the ledger
 *     a slot, again and again:
 *       quiet phase: honest alone, its answers are counted
 *       attack phase: forks attackers  ------------------------------->  an attack of the table each, by
 *                                                                        the seed, over the raw protocol
 *       kills what is left of them, then: broker alive? descriptors, mappings, connections back?
 *     stops the honest one
 *     reads everything back, compares with the ledger (verify.c)
 *     stops the broker, `walrus check`
 *
 * Who is who: as root the honest client and the attackers are two ordinary users, and the quotas of one must
 * not touch the other. Otherwise all have one uid, and what needs two is left out, with words.
 *
 * The seed chooses attacks, their order and every value in them. What it cannot fix is how processes
 * interleave: a replay runs the same attacks, not the same nanoseconds. */
#ifndef WALRUS_HOSTILE_H
#define WALRUS_HOSTILE_H

#include <sys/types.h>

#include "../../shared/message.h"
#include "../../shared/ring.h"
#include "../../shared/stat_page.h"

#define MS             INT64_C(1000000)
#define SECOND         INT64_C(1000000000)
#define SHORT_SECONDS  30u /* up to here one episode, and the throughput is only printed */
#define EPISODE_NS     (INT64_C(30) * SECOND)
#define MAX_ATTACKERS  3u
#define OWN_TOPICS     2u /* of the honest client; topic number OWN_TOPICS is shared with the attackers */
#define SHARED_TOPIC   "shared"
#define HONEST_NAME    "honest"
#define WHOLE_TOPIC    "whole" /* prefix: stamped batches of attackers that must be whole or absent */
#define ONCE_TOPIC     "once"  /* prefix: stamped batches that must come as number 1, 2, 3, ..., once each */
#define UID_HONEST     65533u
#define UID_HOSTILE    65534u
#define EXIT_NOT_TRIED 77 /* of an attacker: what it needs is not to be had here */

int64_t now_ns(void);
void pause_ns(int64_t ns);

/* ------------------------------------------------------------------------------------- chance (stamp.c) */

struct rng {
    uint64_t state;
};
uint64_t rng_next(struct rng *rng);
uint32_t rng_below(struct rng *rng, uint32_t n); /* 0 <= it < n; n > 0 */
bool rng_chance(struct rng *rng, unsigned percent);
void rng_fill(struct rng *rng, void *to, size_t bytes);
/* A value that tends to lie where checks go wrong: around 0, `near`, powers of two, the ends of the type. */
uint64_t rng_edge(struct rng *rng, uint64_t near);

/* What an entry says of itself: who wrote it, as which part of which batch. The rest of the entry follows
 * from the key. */
struct stamp {
    uint64_t magic;
    uint64_t key; /* of seed, writer and batch: nobody guesses it */
    uint64_t batch;
    uint32_t index;
    uint32_t count; /* entries of the batch */
    uint32_t length;
    uint32_t writer;
};
#define STAMP_MAGIC    UINT64_C(0x484f53544d415247)
#define WRITER_HONEST  1u
#define WRITER_HOSTILE 2u
#define ENTRY_MOST     512u

/* Fills entry `index` of a batch; returns its length, sizeof(struct stamp) to ENTRY_MOST. */
uint32_t stamp_fill(uint64_t seed, uint32_t writer, uint64_t batch, uint32_t index, uint32_t count, void *to);
/* True if the entry is one that stamp_fill(seed, writer, ...) made, unchanged. */
bool stamp_check(uint64_t seed, uint32_t writer, const void *data, size_t length, struct stamp *out);

/* ------------------------------------------------------------------------------------- the run */

struct options {
    uint64_t seed;
    unsigned seconds;
    unsigned attackers; /* processes in a slot; 0 = 1 to MAX_ATTACKERS, by the seed */
    const char *attack; /* NULL: all */
    const char *program;
    char broker[1024];
    char check[1024]; /* the command line client */
    bool shared;      /* the cores are */
    bool keep;
};

/* Shared by conductor and honest client only. */
struct shared {
    uint64_t acknowledged; /* batches on its own topics */
    uint64_t answered;     /* anything at all */
    uint64_t refused;
    uint64_t second_connections; /* made and closed beside the attacks */
    int64_t slowest_ns;
    uint32_t ready;
    uint32_t stop;
    uint64_t producer; /* id; 0 = none */
};

struct place {
    char folder[64];
    char store[96];
    char socket[96];
    char stat[128];
    char log[96]; /* stderr of the broker */
    char ledger[96];
    pid_t broker;
    int output; /* the broker's stdout */
    const void *stat_page;
};

struct ledger_record {
    uint64_t batch; /* number over all topics, from 1 */
    uint64_t first_sequence;
    uint32_t topic;
    uint32_t count;
    int32_t result; /* 0: acknowledged; what is not known ends as a negative errno, too: see unknown */
    uint32_t unknown;
};

/* ------------------------------------------------------------------------------------- broker.c */

int place_make(struct place *place, struct error *err) must_check;
void place_remove(struct place *place);
/* Starts walrusd on it and waits until it is ready. */
int broker_start(struct place *place, const struct options *options, const char *const *more,
                 struct error *err) must_check;
/* 0 while it lives. */
int broker_alive(struct place *place, struct error *err) must_check;
/* SIGTERM; it must end with 0, by itself. */
int broker_stop(struct place *place, struct error *err) must_check;
void broker_kill(struct place *place);
int broker_stat(const struct place *place, struct stat_values *values) must_check;
/* `walrus check`: it must find nothing. */
int store_check(const struct place *place, const struct options *options, struct error *err) must_check;

/* What the broker holds for its clients. Counts are -1 where /proc does not show them (not root). */
struct holdings {
    int64_t sockets, eventfds, memfds, mappings, processes; /* descriptors, mappings of memfds, pidfds */
    int64_t private_kib;
    uint64_t connections, shared_bytes;
};
int broker_holdings(const struct place *place, struct holdings *out) must_check;

/* ------------------------------------------------------------------------------------- honest.c, verify.c */

/* In the forked child; returns its exit code. */
int honest_run(const struct place *place, struct shared *shared, uint64_t seed, int ledger_fd);
int visitor_run(const struct place *place, struct shared *shared, bool own_uid);
void honest_topic(uint32_t number, char name[32]);

struct verified {
    uint64_t acknowledged, refused, entries, others, topics;
};
int verify(const struct place *place, uint64_t seed, struct verified *out, struct error *err) must_check;

/* ------------------------------------------------------------------------------------- conduct.c */

#define MAX_SLOTS 4096u

struct tally {
    unsigned slots;
    unsigned not_tried;
    double ratio_sum; /* of the honest client's rate in its slots to the quiet rate beside them */
    double ratio_least;
};

struct rates {
    double quiet[MAX_SLOTS];
    double attacked[MAX_SLOTS];
    unsigned count;
    struct tally *tallies; /* one per attack */
};

struct campaign {
    const struct options *options;
    struct rates *rates;
    uint64_t honest_batches;
    int64_t slowest_ns;
};

/* One broker, one honest client, slots until `budget_ns` is used up, then every check. */
int conduct(struct campaign *run, uint64_t seed, int64_t budget_ns, struct error *err) must_check;

/* ------------------------------------------------------------------------------------- attackers */

struct attacker {
    char socket[96];
    char stat[128];
    pid_t broker;
    uint64_t honest_producer; /* id; 0 = none */
    bool other_uid;           /* than the honest client's and the broker's */
    struct rng rng;
    uint64_t seed; /* of stamps */
    int64_t deadline_ns;
    int report; /* where found() writes */
};

struct attack {
    const char *name;
    int row; /* of the checklist */
    void (*run)(struct attacker *a);
    const char *words;
};

#define FREE_LIMIT                                                                                           \
    (8 * SECOND) /* for a dead one's name to be free; the promise is a second, with nobody else */

extern const struct attack attacks[];
extern const unsigned attack_count;

static inline bool over(const struct attacker *a)
{
    return now_ns() >= a->deadline_ns;
}

/* The broker let something through that it must not: ends the attacker, and the run with it. */
__attribute__((noreturn)) void found(const struct attacker *a, const char *format, ...) printf_like(2, 3);
/* What this attack needs is not to be had here. */
__attribute__((noreturn)) void not_tried(const struct attacker *a, const char *format, ...) printf_like(2, 3);

/* ------------------------------------------------------------------------------------- raw.c */

/* A client that speaks the protocol itself. Nothing in here asserts: the broker may hang up at any time. */
struct raw {
    int socket;
    int fds[FD_COUNT]; /* -1 = not there */
    struct welcome welcome;
    struct layout_sizes sizes;
    uint8_t *client;       /* mapped client file */
    const uint8_t *broker; /* mapped broker file */
    struct client_words *words;
    uint8_t *arena;
    const struct broker_words *broker_words;
    struct descriptor *slots;
    struct ring sq, cq;
};

struct hello hello_small(struct rng *rng); /* valid, of a random modest size */
struct hello hello_named(struct rng *rng, const char *name, uint32_t flags);

int raw_dial(const struct attacker *a); /* connected, non-blocking socket, or a negative errno */
int raw_say(int fd, const void *bytes, size_t length, const int *fds, unsigned fd_count);
/* 0 and everything mapped, or what the broker (or the system) says; -ETIME. `hello` NULL: hello_small. */
int raw_connect(struct attacker *a, struct raw *raw, const struct hello *hello);
/* The second half of it, over a socket on which a hello was said. */
int raw_finish(struct attacker *a, struct raw *raw, int64_t limit_ns);
/* Why a good hello may fail: quotas, a full backlog, a broker that is slow for a moment. */
bool raw_may_fail(int rc);
/* The same until it works or time is over (then false). */
bool raw_connected(struct attacker *a, struct raw *raw);
void raw_close(struct raw *raw);
bool raw_ended(const struct raw *raw);

void raw_ring(const struct raw *raw); /* the doorbell, parked or not */
/* 1 published (and rung for, if parked), 0 no room, or negative. Keeps the credit only if asked to. */
int raw_push(struct raw *raw, const struct descriptor *d);
bool raw_pop(struct raw *raw, struct completion *out);
/* 0, -ETIME, -ECONNRESET. */
int raw_answer(struct raw *raw, struct completion *out, int64_t limit_ns);
/* Publishes and waits for its answer: 0 and *out, or -ETIME, -ECONNRESET, -EAGAIN. */
int raw_call(struct raw *raw, const struct descriptor *d, struct completion *out);
/* Number of the topic, 0 = it was refused or the connection ended. */
uint32_t raw_topic(struct raw *raw, const char *name, size_t length, struct completion *out);
uint32_t raw_open(struct raw *raw, const char *name);
/* Puts `count` entries of `length` random bytes at `offset`; clipped to the arena. */
struct descriptor raw_batch(struct raw *raw, struct rng *rng, uint32_t topic, uint32_t offset, uint32_t count,
                            uint32_t length);
/* Puts a stamped batch. */
struct descriptor raw_stamped(struct raw *raw, uint64_t seed, uint32_t topic, uint32_t offset, uint64_t batch,
                              uint32_t count);

/* ------------------------------------------------------------------------------------- attacks */

void attack_wild_tail(struct attacker *a); /* memory.c */
void attack_wild_head(struct attacker *a);
void attack_wild_wake(struct attacker *a);
void attack_wild_words(struct attacker *a);
void attack_flip_descriptors(struct attacker *a);
void attack_flip_payload(struct attacker *a);
void attack_grow_lengths(struct attacker *a);
void attack_punch_holes(struct attacker *a);
void attack_flip_chunks(struct attacker *a);
void attack_bad_lengths(struct attacker *a); /* requests.c */
void attack_bad_names(struct attacker *a);
void attack_wild_descriptors(struct attacker *a);
void attack_wild_reads(struct attacker *a);
void attack_file_tricks(struct attacker *a); /* files.c */
void attack_file_run(struct attacker *a);
void attack_file_signals(struct attacker *a);
void attack_event_full(struct attacker *a); /* events.c */
void attack_event_steal(struct attacker *a);
void attack_event_flood(struct attacker *a);
void attack_event_copies(struct attacker *a);
void attack_stopped(struct attacker *a); /* stalls.c */
void attack_never_reads(struct attacker *a);
void attack_half_open(struct attacker *a);
void attack_full_socket(struct attacker *a);
void attack_stalled_streams(struct attacker *a);
void attack_kill_publish(struct attacker *a); /* death.c */
void attack_kill_stream(struct attacker *a);
void attack_kill_hello(struct attacker *a);
void attack_fork_keeps(struct attacker *a);
void attack_flood_connect(struct attacker *a); /* sockets.c */
void attack_flood_hello(struct attacker *a);
void attack_flood_fds(struct attacker *a);
void attack_strange_fds(struct attacker *a);
void attack_bad_hellos(struct attacker *a);
void attack_big_arenas(struct attacker *a);
void attack_quota_connections(struct attacker *a); /* quotas.c */
void attack_quota_shared(struct attacker *a);
void attack_quota_topics(struct attacker *a);
void attack_quota_streams(struct attacker *a);
void attack_quota_names(struct attacker *a);
void attack_queue_flood(struct attacker *a); /* queues.c */
void attack_notify_flood(struct attacker *a);
void attack_deadlines(struct attacker *a);
void attack_greedy(struct attacker *a);
void attack_take_name(struct attacker *a); /* producers.c */
void attack_take_id(struct attacker *a);
void attack_own_take_over(struct attacker *a);
void attack_read_counters(struct attacker *a);
void attack_numbers_twice(struct attacker *a);
void attack_numbers_wild(struct attacker *a);
void attack_numbers_death(struct attacker *a);

#endif
