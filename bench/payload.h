/* payload.h: what is written, so that it can be made again and compared byte by byte when it is read back.
 *
 * Every entry is named by {run, producer, batch, index}. Its bytes come from a pool of random bytes, from a
 * place that follows from the name, so that entries and batches differ and do not compress; then the first
 * 16 bytes are stamped with the name. That costs one memcpy and two stores per entry in the measured loop. */
#ifndef WALRUS_BENCH_PAYLOAD_H
#define WALRUS_BENCH_PAYLOAD_H

#include "../shared/base.h"

#define PAYLOAD_POOL (1u << 20)
#define PAYLOAD_EXTRA                                                                                        \
    (64u << 10) /* the pool's beginning again behind its end: entries up to this size need one copy */
#define PAYLOAD_STAMP 16u

#define PAYLOAD_RUN_BITS      12u
#define PAYLOAD_PRODUCER_BITS 12u
#define PAYLOAD_BATCH_BITS    40u

struct payload_pool {
    uint64_t seed;
    uint8_t *bytes; /* PAYLOAD_POOL + PAYLOAD_EXTRA */
};

struct payload_name {
    uint32_t run, producer;
    uint64_t batch;
    uint64_t index;
};

static inline uint64_t payload_mix(uint64_t x)
{
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    x ^= x >> 29;
    return x;
}

int payload_pool_make(struct payload_pool *pool, uint64_t seed) must_check;
void payload_pool_release(struct payload_pool *pool);

static inline uint64_t payload_batch_word(uint32_t run, uint32_t producer, uint64_t batch)
{
    return (uint64_t)run << (PAYLOAD_PRODUCER_BITS + PAYLOAD_BATCH_BITS) |
           (uint64_t)producer << PAYLOAD_BATCH_BITS | batch;
}

void payload_fill_long(const struct payload_pool *pool, uint8_t *to, uint64_t length, uint64_t start);

/* Writes entry `index` of the batch named by `word` (payload_batch_word). */
static inline void payload_fill(const struct payload_pool *pool, uint64_t word, uint64_t index, void *to,
                                uint64_t length)
{
    uint64_t check = payload_mix(pool->seed ^ word) + index;
    uint64_t start = (check * UINT64_C(0x9e3779b97f4a7c15) >> 40) % PAYLOAD_POOL & ~UINT64_C(7);
    if (length <= PAYLOAD_EXTRA)
        memcpy(to, pool->bytes + start, length);
    else
        payload_fill_long(pool, to, length, start);
    uint64_t stamp[2] = {word, index};
    if (length >= sizeof stamp)
        memcpy(to, stamp, sizeof stamp);
    else
        memcpy(to, stamp, length);
}

/* Reads the stamp of an entry of at least PAYLOAD_STAMP bytes. It says who the entry claims to be; compare
 * before you believe it. */
struct payload_name payload_name_of(const void *entry);

/* What writes to the device without Walrus gets the memory that the broker's groups have: aligned, in large
 * pages if the kernel gives them. To be freed. */
#define LARGE_PAGE (UINT64_C(2) << 20)
void *device_memory(uint64_t bytes) must_check;

#endif
