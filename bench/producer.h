/* producer.h: the inside of one producer process (see producer.c) and what it leaves in shared memory. */
#ifndef WALRUS_BENCH_PRODUCER_H
#define WALRUS_BENCH_PRODUCER_H

#include "producers.h"

/* One per producer, in memory shared with the main process; written by the producer alone. */
struct producer_report {
    uint64_t batches; /* committed, of the whole round */
    uint64_t commits; /* those whose completion was reaped inside the measured interval */
    uint64_t busy, again;
    uint64_t first_group, last_group; /* of the measured interval; 0: none */
    int64_t cpu_ns;                   /* of the whole round */
    struct histogram latency;
    struct histogram stages[STAGE_COUNT];
    struct error error;
};

/* Runs in the child process. Returns its exit status. */
int producer_main(const struct producers_request *request, const struct load *load, uint32_t run,
                  uint32_t number, struct phases *phases, struct producer_report *report);

#endif
