/* ledger.h: what was written and acknowledged, and the comparison with what can be read. */
#ifndef WALRUS_BENCH_LEDGER_H
#define WALRUS_BENCH_LEDGER_H

#include <signal.h>

#include "load.h"
#include "payload.h"

/* One producer of one round: batches 0 to batches - 1 of the load's shape are committed. */
struct ledger_line {
    uint32_t run, producer;
    uint32_t load; /* into loads */
    uint64_t batches;
};

struct ledger {
    struct ledger_line *lines;
    size_t line_count;
    struct load *loads;
    size_t load_count;
    char topic_prefix[64];
    uint32_t next_run;
};

struct read_back {
    bool done;
    bool after_restart; /* the broker was stopped and started between writing and reading */
    uint32_t sample;    /* every how many-th topic was read; 1: all */
    uint32_t topics;
    uint64_t entries, bytes;
    double seconds;
    char trouble[400]; /* "": everything is there, once, and equal */
};

void ledger_begin(struct ledger *ledger, const char *topic_prefix);
void ledger_release(struct ledger *ledger);
/* A number for a new round. */
uint32_t ledger_run(struct ledger *ledger);
int ledger_add(struct ledger *ledger, const struct load *load, uint32_t run,
               const uint64_t *batches) must_check;

/* Reads every topic of the ledger (of very many some hundreds, evenly) and compares each entry with what it
 * must be. 0 if the reading could be
 * done: then result says what was found; *interrupted ends it. */
int ledger_read_back(const struct ledger *ledger, const struct payload_pool *pool, const char *socket_path,
                     const volatile sig_atomic_t *interrupted, struct read_back *result,
                     struct error *err) must_check;

#endif
