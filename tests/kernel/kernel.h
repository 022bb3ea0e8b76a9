/* kernel.h: the real walrusd on the real kernel and real file systems: what the jobs share.
 *
 * A job works in a place of its own (struct run of tests/soak) until it has done its count and its seconds
 * are over. It returns 0, SOAK_SKIPPED with the reason, or a negative errno with words for a violation.
 *
 * Words: a *life* is one walrusd on the store, from its start to its end. A *position* is how many writes and
 * flushes the recorded device had done at some moment; where there is no such device it is 1 all the time.
 */
#ifndef WALRUS_KERNEL_H
#define WALRUS_KERNEL_H

#include "../soak/soak.h"

struct device;

struct work {
    struct run run;       /* the place: folder, store, socket, the broker's messages; see soak.h */
    const char *no_flush; /* module to preload that breaks a broker, or NULL */
    uint64_t count;       /* what is to be done at least */
    uint64_t done;        /* kills, images, faults: see the table of jobs */
    uint64_t lives;
    struct device *device; /* NULL: a plain folder */
};

/* ------------------------------------------------------------------------------------------ main.c */

bool work_goes_on(const struct work *work);

/* --------------------------------------------------------------------------------------- daemon.c */

#define DAEMON_ARGUMENTS 24

/* One walrusd. Zero-initialised: none. */
struct daemon {
    pid_t pid;
    int output;    /* its stdout */
    bool is_ready; /* it has said so */
    bool has_ended;
    int status; /* as of waitpid, once it has ended */
};

struct daemon_options {
    const char *arguments[DAEMON_ARGUMENTS]; /* more than folder and socket; NULL ends them */
    const char *broken;                      /* what the module takes away, see no_flush.c; NULL: nothing */
    const char *socket;                      /* NULL: the place's */
};

/* Starts it, waits for nothing. */
int daemon_launch(const struct work *work, const struct daemon_options *options, struct daemon *daemon,
                  struct error *err) must_check;
/* Looks, without waiting, whether it is ready and whether it has ended. */
void daemon_look(struct daemon *daemon);
/* Until it is ready; an end before that is an error. */
int daemon_await_ready(struct daemon *daemon, struct error *err) must_check;
/* Until it has ended, within PATIENCE_NS. */
int daemon_await_end(struct daemon *daemon, struct error *err) must_check;
/* launch and await_ready; killed if that fails. */
int daemon_start(struct work *work, const struct daemon_options *options, struct daemon *daemon,
                 struct error *err) must_check;
/* SIGKILL, and its end. None is fine. */
void daemon_kill(struct daemon *daemon);
/* SIGTERM; anything but exit code 0 is an error. */
int daemon_stop(struct daemon *daemon, struct error *err) must_check;
/* How much the brokers of this place have said so far, and whether they said these words since then. */
off_t daemon_words(const struct work *work);
bool daemon_said(const struct work *work, off_t since, const char *words);
/* In how many lines. */
uint64_t daemon_said_times(const struct work *work, off_t since, const char *words);

/* Random options for the next life: back end, block, segment length, memory, durability. */
struct life_options {
    struct daemon_options options;
    char texts[DAEMON_ARGUMENTS][24];
};
/* `small`: short segments only, for a small device. */
void life_options_random(struct life_options *life, bool small, uint64_t *random);

/* --------------------------------------------------------------------------------------- ledger.c */

#define PRODUCERS   8u
#define SLOTS       2u /* topics of one producer */
#define RECORDS     16384u
#define NEVER       UINT64_MAX
#define MOST_EPOCHS 4096u
#define MOST_GAPS   256u

enum topic { TOPIC_SHARED, TOPIC_NAMED, TOPIC_STREAM, TOPIC_WRITTEN, TOPIC_ACCEPTED, TOPICS };
extern const char *const topic_names[TOPICS];

enum fate {
    FATE_NONE,    /* never sent */
    FATE_SENT,    /* no answer yet */
    FATE_ACKED,   /* answered with 0 */
    FATE_FAILED,  /* answered with an error, or given up before its last piece was sent */
    FATE_UNKNOWN, /* the broker died with it */
    FATE_THERE,   /* was unknown, or answered below the needed level; the next start had it */
    FATE_GONE     /* the same, and the next start did not have it */
};

/* One batch, as its producer and the judge know it. */
struct record {
    uint64_t sent_at;                /* position when it was sent first */
    uint64_t there_from;             /* from this position on it must be there; NEVER: nothing was promised */
    uint64_t gone_from;              /* from this position on it must not be there */
    uint64_t sequence, epoch, group; /* of the receipt; 0: not known */
    uint32_t count;
    uint8_t fate; /* enum fate */
    uint8_t level;
};

/* In memory that all processes share; it outlives any of them. */
struct ledger {
    struct verdict verdict;
    uint8_t needed;    /* level from which on an answer binds: written for a kill, durable for a power cut */
    bool may_fail;     /* -EIO and -ENOSPC are answers that may come */
    uint32_t life;     /* producers work for life n once this is n */
    uint32_t finish;   /* producers: complete what is begun, then end */
    uint32_t pause;    /* producers: send nothing new */
    uint32_t parked;   /* producers that have noticed the end of the life */
    uint32_t no_space; /* answers -ENOSPC */
    uint32_t errors;   /* answers -EIO */
    uint64_t acked, failed, unknown, duplicates, aborted, bytes;
    uint64_t used[PRODUCERS][SLOTS]; /* highest number sent */
    struct record records[PRODUCERS][SLOTS][RECORDS];
};

/* What one reading of everything found. */
struct sight {
    uint64_t there, absent;
    uint64_t entries[TOPICS];
    uint64_t sequences[PRODUCERS][SLOTS][RECORDS]; /* of the batch's first entry; 0: not there */
    struct span {
        uint64_t from, epoch;
    } epochs[TOPICS][MOST_EPOCHS];
    uint32_t epoch_count[TOPICS];
    /* Sequences that were given to batches of level accepted, and lost with a group that could not be
     * written: they are never given again. */
    struct gap {
        uint64_t from, to; /* to: the first one that is there */
    } gaps[TOPICS][MOST_GAPS];
    uint32_t gap_count[TOPICS];
};

struct ledger *ledger_new(uint8_t needed);
void ledger_free(struct ledger *ledger);
struct sight *sight_new(void);
void sight_free(struct sight *sight);

uint64_t work_position(const struct work *work);

/* Reads everything through a client and holds it against the ledger as of `position`: G1, G2, G3, G7, G27. */
int ledger_judge(const struct work *work, const struct ledger *ledger, uint64_t position, struct sight *sight,
                 struct error *err) must_check;
/* After a restart: what was open is decided from now on by what was seen (G5). */
int ledger_settle(const struct work *work, struct ledger *ledger, const struct sight *sight,
                  struct error *err) must_check;
/* -EBADMSG unless both saw the same batches at the same places. */
int sight_compare(const struct sight *one, const struct sight *other, struct error *err) must_check;
bool ledger_is_full(const struct ledger *ledger, uint64_t most_bytes);

/* ------------------------------------------------------------------------------------ producers.c */

int producers_start(struct work *work, struct ledger *ledger, pid_t pids[PRODUCERS],
                    struct error *err) must_check;
/* Lets them work for the next life. */
void producers_go(struct ledger *ledger);
/* Until all have noticed that the life is over. */
int producers_await_parked(struct ledger *ledger, struct error *err) must_check;
/* Until so many more batches are acknowledged. */
int producers_await_acks(struct ledger *ledger, uint64_t more, struct error *err) must_check;
/* Until nothing is in flight, and nothing new comes; then back to work. */
int producers_pause(struct ledger *ledger, struct error *err) must_check;
void producers_resume(struct ledger *ledger);
void producers_end(pid_t pids[PRODUCERS]);

enum slot_topic { SLOT_NONE = TOPICS };
/* The topic of a producer's slot, or SLOT_NONE. */
uint32_t producer_topic(uint32_t producer, uint32_t slot);

/* ------------------------------------------------------------------------------------------- jobs */

int job_kill(struct work *work, struct error *err) must_check;
/* Up to so many kills, held against a ledger that believes answers that no kill has to honour. */
int kill_too_early(struct work *work, uint64_t most, struct error *err) must_check;
int job_ext4(struct work *work, struct error *err) must_check;
int job_xfs(struct work *work, struct error *err) must_check;
int job_full(struct work *work, struct error *err) must_check;
int job_failing(struct work *work, struct error *err) must_check;
int job_successor(struct work *work, struct error *err) must_check;
int job_cries(struct work *work, struct error *err) must_check;
/* A round of those jobs with a broken broker: each of them is to end with -EBADMSG. */
int full_broken(struct work *work, struct error *err) must_check;
int failing_flush_broken(struct work *work, struct error *err) must_check;
int failing_group_broken(struct work *work, struct error *err) must_check;
int successor_broken(struct work *work, struct error *err) must_check;

#endif
