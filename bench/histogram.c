#include "histogram.h"

const double curve_shares[CURVE_POINTS] = {0,    0.001, 0.01, 0.02,  0.05,  0.1,   0.2,    0.3,
                                           0.4,  0.5,   0.6,  0.7,   0.75,  0.8,   0.85,   0.9,
                                           0.95, 0.98,  0.99, 0.995, 0.998, 0.999, 0.9999, 1};

void histogram_clear(struct histogram *histogram)
{
    memset(histogram, 0, sizeof *histogram);
    histogram->smallest = UINT64_MAX;
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++)
        into->counts[i] += from->counts[i];
    into->samples += from->samples;
    into->largest = max_u64(into->largest, from->largest);
    into->smallest = min_u64(into->smallest, from->smallest);
}

/* The middle of a bucket's range. */
static uint64_t bucket_value(uint32_t bucket)
{
    if (bucket < 2 * HISTOGRAM_LINEAR)
        return bucket;
    uint32_t shift = bucket / HISTOGRAM_LINEAR - 1;
    uint64_t low = (uint64_t)(HISTOGRAM_LINEAR + bucket % HISTOGRAM_LINEAR) << shift;
    return low + ((uint64_t)1 << shift) / 2;
}

uint64_t histogram_at(const struct histogram *histogram, double share)
{
    if (histogram->samples == 0)
        return 0;
    uint64_t rank = (uint64_t)(share * (double)histogram->samples + 0.999999);
    rank = max_u64(1, min_u64(rank, histogram->samples));
    uint64_t seen = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += histogram->counts[i];
        if (seen >= rank)
            return max_u64(histogram->smallest, min_u64(bucket_value(i), histogram->largest));
    }
    return histogram->largest;
}

struct quantiles histogram_quantiles(const struct histogram *histogram)
{
    struct quantiles result = {
        .p50 = (double)histogram_at(histogram, 0.5) / 1e3,
        .p90 = (double)histogram_at(histogram, 0.9) / 1e3,
        .p99 = (double)histogram_at(histogram, 0.99) / 1e3,
        .p999 = (double)histogram_at(histogram, 0.999) / 1e3,
        .max = (double)histogram->largest / 1e3,
        .samples = histogram->samples,
    };
    return result;
}

struct curve histogram_curve(const struct histogram *histogram)
{
    struct curve curve;
    for (uint32_t i = 0; i < CURVE_POINTS; i++)
        curve.us[i] = (double)histogram_at(histogram, curve_shares[i]) / 1e3;
    return curve;
}
