/* producers.h: one round of load on a broker. */
#ifndef WALRUS_BENCH_PRODUCERS_H
#define WALRUS_BENCH_PRODUCERS_H

#include <signal.h>

#include "load.h"
#include "payload.h"
#include "phases.h"

struct producers_request {
    const struct load *load;
    const struct payload_pool *pool;
    const char *socket_path;
    const char *topic_prefix;  /* topics are PREFIX-0, PREFIX-1, ... */
    uint32_t run;              /* number of this round in the ledger */
    const struct load *beside; /* other producers at the same time, on the same topics; NULL: none */
    uint32_t beside_run;
    int64_t warm_ns;        /* a run by count warms up with a tenth of the count instead */
    pid_t broker_pid;       /* for what it uses; 0: not known */
    uint64_t syscall_event; /* 0: system calls are not counted; counting makes each of them slower */
    const volatile sig_atomic_t *interrupted;
};

struct producers_result {
    struct numbers numbers;
    struct numbers beside;
    /* Of each producer, those of `beside` behind the others: batches 0 to batches[i] - 1 were committed.
     * malloc'ed. */
    uint64_t *batches;
};

/* Starts the processes of load->producers, leads them through the phases, adds up what they measured. On
 * error result->batches is NULL. */
int producers_run(const struct producers_request *request, struct producers_result *result,
                  struct error *err) must_check;

#endif
