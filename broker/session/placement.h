/* placement.h: which core the broker's thread runs on; the decision alone, without system calls. */
#ifndef WALRUS_PLACEMENT_H
#define WALRUS_PLACEMENT_H

#include "../../shared/base.h"

#define PLACEMENT_CORES 8u
#define PLACEMENT_SMALL_NS                                                                                   \
    INT64_C(1000000)        /* a group that took longer says more of its bytes than of the core */
#define PLACEMENT_FREE (-1) /* wherever the scheduler likes */

struct placement {
    uint64_t allowed; /* a bit for each core that it may choose from; 0 or one bit: nothing to choose */
    int64_t took_ns[PLACEMENT_CORES];   /* a small group, in the device: a moving average */
    uint32_t seen[PLACEMENT_CORES];     /* groups that the average is of; from ENOUGH on it counts */
    int chosen;                         /* PLACEMENT_FREE or the core it is held to */
    int64_t look_at, try_at, try_after; /* when to choose, to try another core; the next distance of that */
};

void placement_begin(struct placement *placement, uint64_t allowed);
/* A group that was small enough took so long in the device; this thread saw its end on `core`. */
void placement_learn(struct placement *placement, int core, int64_t took_ns);
/* The core to be held to from now on, or PLACEMENT_FREE. `crowded`: this thread had to wait for a core. */
int placement_choose(struct placement *placement, int core, bool crowded, int64_t now);

#endif
