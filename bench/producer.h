/* producer.h: one producer (a connection), how it is driven alone and among others, and what a process of
 * producers leaves in shared memory. */
#ifndef WALRUS_BENCH_PRODUCER_H
#define WALRUS_BENCH_PRODUCER_H

#include "../libclient/include/walrus.h"
#include "producers.h"

/* One per process, in memory shared with the main process; written by that process alone. */
struct producer_report {
    uint64_t commits; /* those whose completion was reaped inside the measured interval */
    uint64_t busy, again;
    uint64_t first_group, last_group; /* of the measured interval; 0: none */
    int64_t cpu_ns;                   /* of the whole round */
    uint64_t switches, calls;         /* context switches, system calls of the whole round */
    struct histogram latency;
    struct histogram late; /* open loop: how much later than intended a batch was begun */
    struct histogram stages[STAGE_COUNT];
    struct error error;
};

/* What the producers of one process share. */
struct crew_state {
    const struct producers_request *request;
    const struct load *load;
    uint32_t run;
    struct phases *phases;
    struct producer_report *report;
    uint64_t begun, done; /* batches */
    uint64_t wanted;      /* by count: batches of this process, warm-up included; else 0 */
    uint32_t in_flight, most_in_flight;
    int64_t last_progress;
    int64_t first_send, interval; /* open loop: batch k of this process is due at first_send + k * interval */
};

enum slot_state { SLOT_FREE, SLOT_IN_FLIGHT, SLOT_REFUSED };

struct slot {
    int64_t begun;    /* clock before the first reserve; open loop: when it was due */
    int64_t retry_at; /* SLOT_REFUSED */
    uint64_t batch;
    bool sampled;
    uint8_t state; /* enum slot_state */
};

struct producer {
    struct crew_state *crew;
    /* In shared memory: its batches 0 to *committed - 1 are committed once the round is over. */
    uint64_t *committed;
    uint32_t number;
    walrus *handle;
    walrus_topic **topics;
    uint32_t topic_count;
    struct slot *slots;
    uint32_t *free_slots;
    uint32_t free_count, refused_count, in_flight;
    uint8_t *scratch; /* one entry, for batches that are not filled in place */
    uint64_t next_batch;
};

/* Connects and opens its topics. On error crew->report says why; close it all the same. */
int producer_open(struct producer *p) must_check;
void producer_close(struct producer *p);
/* Begins batches until `depth`, or what the process may have, are in flight, `most` at most, or until
 * nothing is due. How many; negative: failed. */
int producer_begin(struct producer *p, enum phase phase, uint32_t most) must_check;
/* Sends refused batches again whose time has come. *next: the time of the earliest other one, or INT64_MAX.
 * */
int producer_retry(struct producer *p, int64_t now, int64_t *next) must_check;
/* Takes what has completed. Count, or negative: failed. */
int producer_reap(struct producer *p) must_check;

/* May more batches be begun? */
bool crew_goes_on(const struct crew_state *crew, enum phase phase);
/* Open loop: when the next batch is due; INT64_MIN: at once. */
int64_t crew_next_due(const struct crew_state *crew);
int crew_fail(struct crew_state *crew, const struct producer *p, int code, const char *what);

/* A process of producers `first`, `first` + `step`, ... Returns its exit status. `committed`: one word per
 * producer of the load. */
int producer_main(const struct producers_request *request, const struct load *load, uint32_t run,
                  uint32_t first, uint32_t step, struct phases *phases, struct producer_report *report,
                  uint64_t *committed);
/* The loop of a process with many of them (crowd.c). */
int crowd_loop(struct crew_state *crew, struct producer *producers, uint32_t count) must_check;

#endif
