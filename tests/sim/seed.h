/* seed.h: the one source of chance in the simulator. Every decision comes from a 64-bit seed through this
 * generator (splitmix64), so that the same seed gives the same run, byte for byte (G26). */
#ifndef WALRUS_SIM_SEED_H
#define WALRUS_SIM_SEED_H

#include "../../shared/base.h"

struct seed {
    uint64_t state;
};

static inline uint64_t seed_mix(uint64_t value)
{
    value = (value ^ (value >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ (value >> 27)) * UINT64_C(0x94d049bb133111eb);
    return value ^ (value >> 31);
}

static inline uint64_t seed_next(struct seed *seed)
{
    seed->state += UINT64_C(0x9e3779b97f4a7c15);
    return seed_mix(seed->state);
}

/* 0 .. bound - 1; the bias is of no matter here. */
static inline uint64_t seed_below(struct seed *seed, uint64_t bound)
{
    check_bug(bound > 0);
    return seed_next(seed) % bound;
}

static inline bool seed_chance(struct seed *seed, uint32_t per_thousand)
{
    return seed_below(seed, 1000) < per_thousand;
}

/* A generator of its own for one part of a run, so that one part's draws do not shift another's. */
static inline struct seed seed_fork(uint64_t seed, uint64_t part)
{
    return (struct seed){seed_mix(seed ^ seed_mix(part + UINT64_C(0x632be59bd9b4e019)))};
}

#endif
