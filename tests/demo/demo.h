/* demo.h: the demo: real text through a real broker that is killed on the way, and the proof that nothing was
 * lost.
 *
 *   conductor (demo.c, conductor.c)   producers (producer.c), forked            broker (broker.c)
 *     reads the machine's text
 *     starts the broker  ----------------------------------------------------->  walrusd, a fresh store
 *     forks producers    ---------->  batches into own topics, 8 in flight
 *                                     each answer into a ledger file, then on
 *     SIGKILL while batches are in flight, start again, several times
 *                                     connect anew, read the own topic's tail:
 *                                     which batches were committed? go on there
 *     SIGTERM, start again
 *     reads every topic back and compares with the text and the ledgers (verify.c)
 *
 * Each topic holds a range of lines of the text, in order; entry number s of a topic is its line s - 1. A
 * producer is the only writer of its topics. */
#ifndef WALRUS_DEMO_H
#define WALRUS_DEMO_H

#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/types.h>

#include "../../shared/base.h"
#include "walrus.h"

#define MAX_PRODUCERS       16u
#define TOPICS_PER_PRODUCER 2u
#define MAX_TOPICS          (MAX_PRODUCERS * TOPICS_PER_PRODUCER)
#define MAX_DEPTH           64u
#define MAX_KILLS           20u
#define START_LIMIT_NS      (INT64_C(60) * 1000000000)
#define STALL_LIMIT_NS      (INT64_C(60) * 1000000000) /* no progress for so long is a failure */

int64_t now_ns(void);

/* -------------------------------------------------------------------------------- input.c */

struct line {
    const char *data;
    size_t length;
};

struct input {
    char *text;
    size_t bytes;
    struct line *lines;
    size_t count;
    char sources[512]; /* for people: what was read */
};

/* Reads the machine's text, at most `lines` lines; over again if there are fewer than `least`. */
int input_read(struct input *input, size_t least, size_t lines, struct error *err) must_check;
void input_free(struct input *input);

/* -------------------------------------------------------------------------------- what is run */

struct topic_range {
    char name[32];
    size_t first; /* line */
    size_t count;
};

/* Shared between conductor and producers. */
struct progress {
    _Atomic uint64_t committed[MAX_PRODUCERS]; /* lines answered or found */
    _Atomic uint64_t in_flight[MAX_PRODUCERS]; /* batches */
    _Atomic uint64_t batches[MAX_PRODUCERS];   /* answered */
    _Atomic uint64_t unknown[MAX_PRODUCERS];   /* batches whose broker died before it answered ... */
    _Atomic uint64_t found[MAX_PRODUCERS];     /* ... and that turned out to be committed */
    _Atomic uint64_t reconnects[MAX_PRODUCERS];
};

enum { LEDGER_ANSWERED = 1, LEDGER_FOUND = 2 };

struct ledger_record {
    uint32_t kind;
    uint32_t topic;
    uint64_t first; /* line in the topic, from 0 */
    uint64_t count;
    uint64_t sequence; /* of the receipt; FOUND: where it was found */
    uint64_t epoch;
    int64_t latency_ns;
};

struct broker {
    const char *program;
    char store[PATH_MAX];
    char socket[128];
    char log[PATH_MAX]; /* its stderr */
    pid_t pid;          /* 0: not running */
    int output;         /* its stdout; -1 */
};

struct demo {
    const char *program;
    const char *parent; /* folder to work in; NULL: choose */
    size_t max_lines;
    unsigned producers;
    unsigned kills;
    unsigned depth;
    uint64_t seed;
    const char *break_mode;

    char folder[PATH_MAX - 64];
    char socket_folder[64]; /* "" or a short folder for the socket */
    struct input input;
    struct topic_range topics[MAX_TOPICS];
    unsigned topic_count;
    struct progress *progress;
    struct broker broker;
    pid_t producer_pids[MAX_PRODUCERS];

    /* measured */
    int64_t first_start_ns;
    int64_t recovery_ns[MAX_KILLS + 1]; /* exec to ready; the last one after the clean stop */
    uint64_t in_flight_at_kill[MAX_KILLS];
    unsigned killed;
    int64_t down_ns; /* from each kill to ready */
    int64_t run_ns;
};

extern volatile sig_atomic_t interrupted; /* the number of the signal that asked us to stop */
/* SIGINT, SIGTERM, SIGHUP; SIGPIPE is ignored, or, with SIG_DFL for a child, as it always was. */
void handle_signals(void (*handler)(int));

/* -------------------------------------------------------------------------------- broker.c */

/* Starts it and waits for its line "ready"; *ready_ns is the time from exec to that line. */
int broker_start(struct broker *broker, int64_t *ready_ns, struct error *err) must_check;
void broker_kill(struct broker *broker);
/* SIGTERM; it must end with 0. */
int broker_stop(struct broker *broker, struct error *err) must_check;
/* 0 while it runs and keeps its output open; else the words of how it ended. */
int broker_check(struct broker *broker, struct error *err) must_check;
void broker_print_log(const struct broker *broker);

/* -------------------------------------------------------------------------------- the rest */

/* In the forked child; returns its exit code. */
int produce(const struct demo *demo, unsigned number);
void ledger_path(const struct demo *demo, unsigned producer, char out[PATH_MAX + 32]);

/* Producers, kills, restarts, until every line is committed. */
int conduct(struct demo *demo, struct error *err) must_check;

struct verified {
    uint64_t answered; /* batches */
    uint64_t found;
    uint64_t entries;
    uint64_t bytes;
    int64_t p50_ns, p99_ns;
};
/* Reads everything back and compares. 0, or -EBADMSG with the first difference. */
int verify(const struct demo *demo, struct verified *result, struct error *err) must_check;
const char *break_modes(void); /* "drop, swap, ..." */
bool break_mode_known(const char *mode);

#endif
