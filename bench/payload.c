#include "payload.h"

#include <sys/mman.h>

int payload_pool_make(struct payload_pool *pool, uint64_t seed)
{
    pool->seed = seed;
    pool->bytes = malloc(PAYLOAD_POOL + PAYLOAD_EXTRA);
    if (pool->bytes == NULL)
        return -ENOMEM;
    uint64_t state = seed;
    for (size_t i = 0; i < PAYLOAD_POOL; i += 8) {
        state += UINT64_C(0x9e3779b97f4a7c15);
        uint64_t word = payload_mix(payload_mix(state) + seed);
        memcpy(pool->bytes + i, &word, 8);
    }
    memcpy(pool->bytes + PAYLOAD_POOL, pool->bytes, PAYLOAD_EXTRA);
    return 0;
}

void payload_pool_release(struct payload_pool *pool)
{
    free(pool->bytes);
    pool->bytes = NULL;
}

void payload_fill_long(const struct payload_pool *pool, uint8_t *to, uint64_t length, uint64_t start)
{
    while (length > 0) {
        uint64_t piece = min_u64(length, PAYLOAD_POOL - start);
        memcpy(to, pool->bytes + start, piece);
        to += piece;
        length -= piece;
        start = 0;
    }
}

struct payload_name payload_name_of(const void *entry)
{
    uint64_t stamp[2];
    memcpy(stamp, entry, sizeof stamp);
    struct payload_name name = {
        .run = (uint32_t)(stamp[0] >> (PAYLOAD_PRODUCER_BITS + PAYLOAD_BATCH_BITS)),
        .producer = (uint32_t)(stamp[0] >> PAYLOAD_BATCH_BITS) & ((1u << PAYLOAD_PRODUCER_BITS) - 1),
        .batch = stamp[0] & ((UINT64_C(1) << PAYLOAD_BATCH_BITS) - 1),
        .index = stamp[1],
    };
    return name;
}

void *device_memory(uint64_t bytes)
{
    bytes = align_up(max_u64(bytes, 1), LARGE_PAGE);
    void *memory = aligned_alloc(LARGE_PAGE, bytes);
    if (memory != NULL)
        (void)madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}
