/* stamp.c: chance from a seed, and entries that say whose they are. */
#include "hostile.h"

#include <poll.h>
#include <time.h>

int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * SECOND + now.tv_nsec;
}

void pause_ns(int64_t ns)
{
    if (ns > 0)
        ppoll(NULL, 0, &(struct timespec){.tv_sec = ns / SECOND, .tv_nsec = ns % SECOND}, NULL);
}

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t rng_next(struct rng *rng) /* splitmix64 */
{
    rng->state += UINT64_C(0x9e3779b97f4a7c15);
    return mix(rng->state);
}

uint32_t rng_below(struct rng *rng, uint32_t n)
{
    check_bug(n > 0);
    return (uint32_t)((rng_next(rng) >> 32) * n >> 32);
}

bool rng_chance(struct rng *rng, unsigned percent)
{
    return rng_below(rng, 100) < percent;
}

void rng_fill(struct rng *rng, void *to, size_t bytes)
{
    uint8_t *at = to;
    while (bytes > 0) {
        uint64_t word = rng_next(rng);
        size_t part = bytes < sizeof word ? bytes : sizeof word;
        memcpy(at, &word, part);
        at += part;
        bytes -= part;
    }
}

uint64_t rng_edge(struct rng *rng, uint64_t near)
{
    uint64_t base;
    switch (rng_below(rng, 6)) {
    case 0:
        base = 0;
        break;
    case 1:
        base = near;
        break;
    case 2:
        base = UINT64_C(1) << rng_below(rng, 64);
        break;
    case 3:
        base = UINT32_MAX;
        break;
    case 4:
        base = UINT64_MAX;
        break;
    default:
        return rng_next(rng);
    }
    return base + rng_below(rng, 5) - 2 + (rng_chance(rng, 20) ? 16 : 0);
}

/* ------------------------------------------------------------------------------------- entries */

static uint64_t stamp_key(uint64_t seed, uint32_t writer, uint64_t batch, uint32_t index)
{
    return mix(mix(mix(seed ^ writer) + batch) + index + 1);
}

uint32_t stamp_fill(uint64_t seed, uint32_t writer, uint64_t batch, uint32_t index, uint32_t count, void *to)
{
    struct stamp stamp = {.magic = STAMP_MAGIC,
                          .key = stamp_key(seed, writer, batch, index),
                          .batch = batch,
                          .index = index,
                          .count = count,
                          .writer = writer};
    struct rng rng = {.state = stamp.key};
    stamp.length = (uint32_t)sizeof stamp +
                   rng_below(&rng, (uint32_t)(ENTRY_MOST - sizeof stamp) / (index % 4 == 0 ? 1 : 4));
    memcpy(to, &stamp, sizeof stamp);
    rng_fill(&rng, (uint8_t *)to + sizeof stamp, stamp.length - sizeof stamp);
    return stamp.length;
}

bool stamp_check(uint64_t seed, uint32_t writer, const void *data, size_t length, struct stamp *out)
{
    uint8_t again[ENTRY_MOST];
    if (length < sizeof *out || length > ENTRY_MOST)
        return false;
    memcpy(out, data, sizeof *out);
    if (out->magic != STAMP_MAGIC || out->writer != writer || out->index >= out->count)
        return false;
    uint32_t wanted = stamp_fill(seed, writer, out->batch, out->index, out->count, again);
    return wanted == length && memcmp(again, data, length) == 0;
}
