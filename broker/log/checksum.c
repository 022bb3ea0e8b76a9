#include "checksum.h"

#include <isa-l/crc.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

struct sum_seed seed_from_salt(const uint64_t salt[2])
{
    return (struct sum_seed){
        .crc = (uint32_t)(salt[0] ^ (salt[0] >> 32)),
        .digest = salt[1],
    };
}

uint32_t crc32c(uint32_t seed, const void *data, size_t length)
{
    /* ISA-L's prototype lacks the const and takes an int; pieces are far below 2 GiB but a checkpoint may be
     * large. */
    const uint8_t *at = data;
    while (length > 0) {
        size_t part = length < (1u << 30) ? length : (1u << 30);
        union {
            const uint8_t *in;
            unsigned char *out;
        } pointer = {.in = at};
        seed = crc32_iscsi(pointer.out, (int)part, seed);
        at += part;
        length -= part;
    }
    return seed;
}

struct digest digest_of(struct sum_seed seed, const void *data, size_t length)
{
    XXH128_hash_t hash = XXH3_128bits_withSeed(data, length, seed.digest);
    return (struct digest){.low = hash.low64, .high = hash.high64};
}

bool all_zero(const void *data, size_t length)
{
    const uint8_t *at = data;
    return length == 0 || (at[0] == 0 && memcmp(at, at + 1, length - 1) == 0);
}
