/* histogram.h: counts of nanoseconds in log-linear buckets: 128 buckets for each power of two, so a value
 * read back is at most 0.8 % off. Fixed size, no pointers: it can lie in memory shared between processes,
 * and two can be added up. */
#ifndef WALRUS_BENCH_HISTOGRAM_H
#define WALRUS_BENCH_HISTOGRAM_H

#include "../shared/base.h"

#define HISTOGRAM_BITS    7u
#define HISTOGRAM_LINEAR  (1u << HISTOGRAM_BITS)
#define HISTOGRAM_OCTAVES 34u /* up to 2^40 ns, 18 minutes; anything above counts in the last bucket */
#define HISTOGRAM_BUCKETS (HISTOGRAM_LINEAR * HISTOGRAM_OCTAVES)

struct histogram {
    uint64_t samples;
    uint64_t smallest; /* exact; UINT64_MAX while empty */
    uint64_t largest;  /* exact */
    uint64_t counts[HISTOGRAM_BUCKETS];
};

/* Microseconds. Of an empty histogram everything is 0. */
struct quantiles {
    double p50, p90, p99, p999, max;
    uint64_t samples;
};

/* The shape of a distribution: values in microseconds below which lie fixed shares of the samples. */
#define CURVE_POINTS 24u
extern const double curve_shares[CURVE_POINTS];
struct curve {
    double us[CURVE_POINTS];
};

void histogram_clear(struct histogram *histogram);
void histogram_merge(struct histogram *into, const struct histogram *from);
/* The value in ns below which lies `share` (0 to 1) of the samples: nearest rank, middle of its bucket. */
uint64_t histogram_at(const struct histogram *histogram, double share);
struct quantiles histogram_quantiles(const struct histogram *histogram);
struct curve histogram_curve(const struct histogram *histogram);

static inline uint32_t histogram_bucket(uint64_t value)
{
    if (value < HISTOGRAM_LINEAR)
        return (uint32_t)value;
    uint32_t shift = 63u - (uint32_t)__builtin_clzll(value) - HISTOGRAM_BITS;
    uint32_t bucket = (shift + 1) * HISTOGRAM_LINEAR + (uint32_t)((value >> shift) - HISTOGRAM_LINEAR);
    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

/* Adds `times` samples of the same value. A clock that went backwards counts as 0. */
static inline void histogram_add(struct histogram *histogram, int64_t ns, uint64_t times)
{
    uint64_t value = ns > 0 ? (uint64_t)ns : 0;
    histogram->counts[histogram_bucket(value)] += times;
    histogram->samples += times;
    if (value > histogram->largest)
        histogram->largest = value;
    if (value < histogram->smallest)
        histogram->smallest = value;
}

#endif
