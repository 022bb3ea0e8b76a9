/* placement.c: which core the broker's thread runs on.
 *
 * A device of few queues interrupts few of the cores, and on a small machine a group that is awaited on such
 * a core is done sooner. (Measured on 2 cores and one queue, 72 KiB, a client spinning on the other core: 141
 * to 160 us in the device on the core that is interrupted, 195 to 240 on the other one; the device alone 140
 * to 150.) The scheduler does not know. So this thread tries, and stays where its groups end sooner.
 *
 *             another core is known to be better by 1/8, or is tried
 *      FREE -----------------------------------------------------------> HELD
 *       ^                                                                  |
 *       \------ crowded, or too few groups on this core to say ------------/
 *
 *   1. The time of each small group goes into the average of the core on which its end was seen.
 *   2. Every LOOK this thread is held to the best of the known cores, if that is better by an eighth than
 *      where it is. Had it to wait for a core meanwhile it is let free: others want that one.
 *   3. A core that is not known is tried for one LOOK; the known ones are tried again after 1, 2, 4, ... 64 s
 *      of work: machines change.
 *
 * No choice where the operator left one core, or where there are more than PLACEMENT_CORES (such machines
 * have a queue for each core). With nothing to write nothing is done. */
#include "placement.h"

#include <string.h>

#define ENOUGH    64u
#define LOOK_NS   INT64_C(100000000)
#define TRY_FIRST INT64_C(1000000000)
#define TRY_LAST  INT64_C(64000000000)

static bool may_use(const struct placement *placement, int core)
{
    return core >= 0 && core < (int)PLACEMENT_CORES && (placement->allowed >> core & 1) != 0;
}

static bool is_known(const struct placement *placement, int core)
{
    return may_use(placement, core) && placement->seen[core] >= ENOUGH;
}

void placement_begin(struct placement *placement, uint64_t allowed)
{
    *placement = (struct placement){.chosen = PLACEMENT_FREE, .try_after = TRY_FIRST};
    if (allowed < UINT64_C(1) << PLACEMENT_CORES && __builtin_popcountll(allowed) > 1)
        placement->allowed = allowed;
}

void placement_learn(struct placement *placement, int core, int64_t took_ns)
{
    if (!may_use(placement, core))
        return;
    int64_t *average = &placement->took_ns[core];
    *average = placement->seen[core] == 0 ? took_ns : *average + (took_ns - *average) / 16;
    if (placement->seen[core] < UINT32_MAX)
        placement->seen[core]++;
}

static int best_known(const struct placement *placement, int core)
{
    int best = core;
    for (int i = 0; i < (int)PLACEMENT_CORES; i++)
        if (is_known(placement, i) && placement->took_ns[i] < placement->took_ns[best])
            best = i;
    return placement->took_ns[best] < placement->took_ns[core] - placement->took_ns[core] / 8 ? best : core;
}

/* Another core: one that is not known first, else the one behind this. */
static int to_try(const struct placement *placement, int core)
{
    for (int i = 0; i < (int)PLACEMENT_CORES; i++)
        if (may_use(placement, i) && !is_known(placement, i))
            return i;
    for (int i = 1; i < (int)PLACEMENT_CORES; i++)
        if (may_use(placement, (core + i) % (int)PLACEMENT_CORES))
            return (core + i) % (int)PLACEMENT_CORES;
    bug(__FILE__, __LINE__, "a choice of cores");
}

int placement_choose(struct placement *placement, int core, bool crowded, int64_t now)
{
    if (now < placement->look_at || placement->allowed == 0)
        return placement->chosen;
    placement->look_at = now + LOOK_NS;
    if (placement->try_at == 0)
        placement->try_at = now + placement->try_after;
    if (crowded || !is_known(placement, core))
        return placement->chosen = PLACEMENT_FREE;
    int best = best_known(placement, core);
    if (best != core)
        return placement->chosen = best;
    if (now < placement->try_at)
        return placement->chosen;
    placement->try_after = placement->try_after < TRY_LAST ? placement->try_after * 2 : TRY_LAST;
    placement->try_at = now + placement->try_after;
    int other = to_try(placement, core);
    placement->seen[other] = 0;
    return placement->chosen = other;
}
