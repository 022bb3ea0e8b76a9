/* scenario.h: named small stories that crash and fault tests cut at every point. */
#ifndef WALRUS_SIM_SCENARIO_H
#define WALRUS_SIM_SCENARIO_H

#include "run.h"

struct scenario {
    const char *name;
    void (*before)(struct run_state *run); /* lives before it; NULL: an empty folder */
    /* What happens to the store after them, and power is cut. False: these lives leave nothing that it could
     * happen to. NULL: nothing happens. */
    bool (*between)(struct image **image, struct ledger *ledger);
    void (*act)(struct run_state *run); /* starts the log itself */
    bool start_too;                     /* cut the start as well, not only what follows */
    bool big;                           /* many blocks or points: fewer images for each point */
};

extern const struct scenario scenarios[];
extern const uint32_t scenario_count;
const struct scenario *scenario_find(const char *name);

/* One life of random work: a random subset of operations, in a random mix. */
void workload(struct run_state *run, uint32_t steps);

#endif
