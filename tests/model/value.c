/* value.c: block values, each kept once and named by a number, so that a state is small and equal blocks are
 * equal numbers.
 *
 * Invariant: an id is never given up; the ids of one search depend on nothing but the search. */
#include "model.h"

#include "../../shared/base.h"

#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define ROOM      65535u
#define HASH_ROOM 131072u

struct values {
    uint32_t count;
    struct value values[ROOM + 1];
    value_id digests[ROOM + 1];
    uint8_t nonces[ROOM + 1];
    value_id slots[HASH_ROOM];
};

struct values *values_new(void)
{
    struct values *values = calloc(1, sizeof *values);
    check_bug(values != NULL);
    return values;
}

void values_free(struct values *values)
{
    free(values);
}

value_id value_intern(struct values *values, const struct value *value)
{
    size_t slot = XXH3_64bits(value, sizeof *value) & (HASH_ROOM - 1);
    for (; values->slots[slot] != 0; slot = (slot + 1) & (HASH_ROOM - 1))
        if (memcmp(&values->values[values->slots[slot]], value, sizeof *value) == 0)
            return values->slots[slot];
    check_bug(values->count < ROOM);
    value_id id = (value_id)++values->count;
    values->values[id] = *value;
    values->slots[slot] = id;
    uint8_t before = value->digest != 0 ? values->nonces[value->digest] : 0;
    values->nonces[id] = before > value->nonce ? before : value->nonce;
    return id;
}

const struct value *value_get(const struct values *values, value_id id)
{
    return id != 0 ? &values->values[id] : NULL;
}

value_id value_digest(struct values *values, value_id id)
{
    if (values->digests[id] == 0) {
        struct value bare = values->values[id];
        memset(bare.attempts, 0, sizeof bare.attempts);
        values->digests[id] = value_intern(values, &bare);
    }
    return values->digests[id];
}

uint8_t value_nonce(const struct values *values, value_id id)
{
    return id != 0 ? values->nonces[id] : 0;
}

uint32_t values_count(const struct values *values)
{
    return values->count;
}
