/* soak.h: long jobs: what they share.
 *
 * A job is a function with a place of its own (a folder with store, socket and the broker's messages). It
 * works until it has done its required count or its time is over, says now and then how far it is, and
 * returns 0, SOAK_SKIPPED with the reason, or a negative errno with words for a violation.
 *
 * Jobs run in three lanes at the same time, each a process of its own: one for those with real brokers, which
 * wait for the disk most of the time, two for those that only compute. Clients are processes, too: forked
 * from the lane, which holds no connection while it forks. What they find out lies in memory that all of
 * them share (shared_new); a violation that a client finds goes into a struct verdict there. */
#ifndef WALRUS_SOAK_H
#define WALRUS_SOAK_H

#include <limits.h>
#include <sys/types.h>

#include "../../libclient/include/walrus.h"
#include "../../shared/base.h"

#define SOAK_SKIPPED 1
#define NS_PER_MS    INT64_C(1000000)
#define NS_PER_S     INT64_C(1000000000)
#define PATIENCE_NS  (120 * NS_PER_S) /* of any wait for another process: a hang, not a slow machine */

struct soak {
    const char *walrusd;
    const char *build;    /* folder of the other programs, or NULL */
    const char *fuzzers;  /* folder of the programs fuzz-NAME, or NULL */
    const char *corpus;   /* folder with a folder of inputs for each NAME */
    const char *found;    /* where new inputs are kept: a folder for each NAME is made there */
    const char *folder;   /* where the jobs' folders are made */
    const char *prefix;   /* of their names */
    char *const *options; /* more options for walrusd */
    int option_count;
    bool ask_durable; /* exactly-once: ask for that level, because the broker's own does not survive a kill */
    const char *jobs; /* names with commas, or NULL: all */
    bool is_short;
    bool no_memory; /* is compared: sanitizers keep what is freed */
    bool list;
    double minutes;
    uint64_t part; /* so many times less than required, to see whether the time would do */
    uint64_t seed;
};

struct run {
    const struct soak *soak;
    const char *name;
    const char *argument; /* of the job: see the table in jobs.c */
    uint64_t required;    /* kills, cycles, ... to do now; 0: as many as the time allows */
    uint64_t random;      /* state of random_next */
    uint64_t seed;        /* differs from pass to pass */
    int64_t started_ns;
    int64_t until_ns; /* when it must come to an end; INT64_MAX: whenever `required` is done */
    int64_t said_ns;
    uint64_t done;          /* so far, counted as `required` */
    uint64_t images, kills; /* of these, crash images and kill -9 of brokers */
    uint64_t batches;       /* exactly-once: so far */
    char totals[320];       /* what it did, in words */
    char *saying;           /* how far it is, for the progress line: SAYING bytes */

    char folder[PATH_MAX / 2], store[PATH_MAX], log[PATH_MAX];
    char socket_folder[32]; /* below /tmp: the path of a socket is short */
    char socket[64];
    const char *memory; /* --memory of its brokers; NULL: the default */
    pid_t broker;       /* 0: none */
    int output;         /* its stdout */
};
#define SAYING 160u

/* ------------------------------------------------------------------------------------------ main.c */

/* True when the job has to go on. */
bool run_goes_on(const struct run *run, uint64_t done);
/* How far it is. */
void run_progress(struct run *run, const char *format, ...) printf_like(2, 3);
/* -EINTR with words once a signal asked for the end. */
int run_interrupted(struct error *err) must_check;

/* ---------------------------------------------------------------------------------------- place.c */

int64_t now_ns(void);
/* Sleeps; a signal may end it early. */
void pause_ns(int64_t ns);
uint64_t random_next(uint64_t *state);
/* From 0 to below `bound`. */
static inline uint64_t random_below(uint64_t *state, uint64_t bound)
{
    return random_next(state) % bound;
}

int place_make(struct run *run, struct error *err) must_check;
/* Kills the broker, removes the folder. */
void place_remove(struct run *run);
/* The store's files alone: for a job that begins anew. */
void store_remove(const struct run *run);
/* SOAK_SKIPPED with words unless so many bytes are free on the place's file system. */
int place_needs(const struct run *run, uint64_t bytes, struct error *err) must_check;

int broker_start(struct run *run, struct error *err) must_check;
void broker_kill(struct run *run);
/* SIGTERM; anything but exit code 0 is an error. */
int broker_stop(struct run *run, struct error *err) must_check;
void broker_print_log(const struct run *run);

struct footprint {
    uint64_t fds, mappings;              /* but those of the store's files; 0: not to be seen by this user */
    uint64_t rss_kib, size_kib, hwm_kib; /* VmRSS, VmSize, VmHWM */
    uint64_t log_kib;                    /* of these, what the log accounts for (--memory bounds it) */
};
int broker_footprint(const struct run *run, struct footprint *footprint, struct error *err) must_check;

/* What a client found wrong. The first one wins. */
struct verdict {
    uint32_t taken;
    struct error error;
};
void verdict_set(struct verdict *verdict, const char *format, ...) printf_like(2, 3);
/* 0, or the error that a client set. */
int verdict_check(struct verdict *verdict, struct error *err) must_check;

/* Zeroed memory that children share; NULL if there is none. shared_free(NULL) is fine. */
void *shared_new(size_t size);
void shared_free(void *memory, size_t size);

/* Forks; the child dies with this process. As fork(). */
pid_t child_fork(void);
/* Waits for its end within PATIENCE_NS, then kills it. Its status as of waitpid; -ETIMEDOUT with words. */
int child_wait(pid_t pid, int *status, struct error *err) must_check;
/* Kills it if it lives (pid > 0) and reaps it. */
void child_end(pid_t pid);

/* Connects with these options on the place's socket; words into err. */
int soak_connect(const struct run *run, const struct walrus_connect_options *options, walrus **handle,
                 struct error *err) must_check;

/* -------------------------------------------------------------------------------------- content.c */

/* Entries that say who wrote them: {producer, number of the batch, index of the entry, count of the batch's
 * entries, length}, then bytes that follow from these. */
struct content {
    uint32_t producer;
    uint32_t topic;
    uint64_t number;
    uint32_t index, count;
    uint32_t length; /* of the whole entry; at least CONTENT_LEAST */
};
#define CONTENT_LEAST 40u
void content_fill(const struct content *content, uint8_t *to);
/* 0, or -EBADMSG with words: the bytes are not an entry that content_fill made. */
int content_read(const void *data, uint64_t length, struct content *content, struct error *err) must_check;

/* Numbers of one producer's batches in a topic, in the order in which their entries are met. */
struct in_order {
    uint64_t number; /* of the batch under way or met last */
    uint32_t next;   /* index of the entry to come; 0: a new batch */
    uint32_t count;
};
/* The next entry of a topic with `producers` producers: each entry once, in order per producer, no batch
 * within another one. `open` is the topic's: the producer whose batch is not complete, or `producers`. */
int in_order_next(struct in_order *of, uint32_t producers, uint32_t *open, const struct content *content,
                  struct error *err) must_check;

/* ------------------------------------------------------------------------------------------- jobs.c */

enum lane { LANE_BROKERS, LANE_FIRST, LANE_SECOND, LANES };

/* What a job has done in all its passes; memory that the lanes share with the report. */
struct tried {
    uint64_t passes;
    uint64_t done, images, kills;
    double seconds;
    bool skipped, failed;
    bool taken;                /* a lane is at it, */
    int64_t from_ns, until_ns; /* from then until then */
    char words[400];           /* why */
};

struct job {
    const char *name;
    enum lane lane; /* BROKERS; FIRST: it only computes, both others take it */
    int (*run)(struct run *run, struct error *err);
    uint64_t required, required_short; /* `words` says what is counted; 0: not in the short form */
    double weight;                     /* of the time, about: the seconds that `required` takes */
    bool once;                         /* more time does not make it better */
    const char *words;
    const char *argument;
    bool wanted;
    struct tried *tried; /* shared */
};
#define MOST_JOBS 32u

/* Fills `jobs`, those of the fuzz targets found in soak->corpus included; the number of jobs. */
size_t jobs_list(const struct soak *soak, struct job jobs[MOST_JOBS]);
uint64_t required_of(const struct soak *soak, const struct job *job);
/* All wanted jobs, with the other lanes, as often as the time allows. `saying` is for the progress line. */
void lane_run(const struct soak *soak, enum lane lane, struct job *jobs, size_t count, int64_t end_ns,
              char *saying);

int job_exactly_once(struct run *run, struct error *err) must_check;
int job_connect_kill(struct run *run, struct error *err) must_check;
int job_big_batch(struct run *run, struct error *err) must_check;
int job_take_over(struct run *run, struct error *err) must_check;

/* ---------------------------------------------------------------------------------------- outside.c */

int job_hostile(struct run *run, struct error *err) must_check;
int job_kernel(struct run *run, struct error *err) must_check;
int job_torture(struct run *run, struct error *err) must_check;
int job_sim(struct run *run, struct error *err) must_check;
int job_model(struct run *run, struct error *err) must_check;
int job_fuzz(struct run *run, struct error *err) must_check;

#endif
