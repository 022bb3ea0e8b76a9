/* checksum.h: the two sums of the log. CRC-32C (ISA-L) finds damage; XXH3-128 chains group headers (a CRC
 * would not do: its linearity lets two damages cancel). Both are seeded from the segment's secret salt, so
 * that a payload which happens to look like a header, or bytes of an earlier life of the file, do not
 * pass. */
#ifndef WALRUS_LOG_CHECKSUM_H
#define WALRUS_LOG_CHECKSUM_H

#include "format.h"

struct sum_seed {
    uint32_t crc;
    uint64_t digest;
};

struct sum_seed seed_from_salt(const uint64_t salt[2]);
uint32_t crc32c(uint32_t seed, const void *data, size_t length);
struct digest digest_of(struct sum_seed seed, const void *data, size_t length);

static inline bool digest_equal(struct digest a, struct digest b)
{
    return a.low == b.low && a.high == b.high;
}

bool all_zero(const void *data, size_t length);

#endif
