/* numbers.c: batch numbers, counted for each topic, of a handle that has a producer.
 *
 * Happy path: a write takes next_number as it is submitted; its commit raises last_number. So many writes are
 * in flight with consecutive numbers, and all is O(1).
 *
 * Failure modes
 *   - Number n is refused or fails: only a commit takes a number, so next_number falls back to n. What
 *     followed in flight is answered -EAGAIN with the reason ORDER, since n never came. Until all of that is
 *     answered no number at or behind n is given out: a second write under a number that is in flight could
 *     be taken for the first one, and be answered as its duplicate. (walrus__number_next: -EAGAIN, ORDER.)
 *   - A number that the user gave is sent as it is; it counts as above, so that numbers given and numbers
 *     taken never meet.
 *   - The connection is lost: a reconnection asks for the last number, and sends what is in flight again
 *     under the numbers it has.
 *
 * Invariants: last_number < next_number; unless `uncertain`, no number from next_number on is in flight. */
#include "handle.h"

#include <sys/random.h>

/* A write of this topic with a number from `from` on that has no answer yet. */
static bool in_flight_from(const struct walrus *handle, const struct known_topic *known, uint64_t from)
{
    for (uint32_t i = handle->oldest; i != NO_REQUEST; i = handle->requests[i].later) {
        const struct request *request = &handle->requests[i];
        if (request->known == known && request->number >= from)
            return true;
    }
    return false;
}

int walrus__number_next(struct walrus *handle, struct known_topic *known, uint64_t wanted, uint64_t *number)
{
    *number = 0;
    if (!walrus__numbered(handle)) {
        if (wanted == 0)
            return 0;
        return walrus__fail(
            handle, -EINVAL, REASON_NONE,
            "number %llu: this handle has no producer: connect with a producer's name, or with "
            "WALRUS_RECONNECT",
            (unsigned long long)wanted);
    }
    if (wanted != 0) {
        *number = wanted;
        return 0;
    }
    if (known->uncertain) {
        walrus__pump(handle);
        if (in_flight_from(handle, known, known->next_number))
            return walrus__fail(handle, -EAGAIN, REASON_ORDER,
                                "topic \"%s\": number %llu was refused, or was given, and what follows it is "
                                "still in flight: reap, then submit again",
                                known->name, (unsigned long long)known->next_number);
        known->uncertain = false;
    }
    *number = known->next_number;
    return 0;
}

void walrus__number_sent(struct known_topic *known, uint64_t wanted, uint64_t number)
{
    if (number == 0)
        return;
    if (wanted == 0)
        known->next_number = number + 1;
    else if (number >= known->next_number)
        known->uncertain = true;
}

void walrus__write_answered(struct walrus *handle, struct request *request,
                            const struct completion *completion)
{
    struct known_topic *known = request->known;
    request->known = NULL;
    check_bug(known->in_flight > 0);
    if (--known->in_flight == 0 && known->uses == 0)
        handle->unused_topics = true;
    uint64_t number = request->number;
    if (number == 0)
        return;
    if (completion->result >= 0) {
        if (number > known->last_number)
            known->last_number = number;
        if (number >= known->next_number)
            known->next_number = number + 1;
    } else if (number < known->next_number) {
        known->next_number = number > known->last_number ? number : known->last_number + 1;
        known->uncertain = true;
    }
}

/* xorshift64*: spreads the waits of programs that were refused together; nothing depends on its quality. */
int64_t walrus__random(struct walrus *handle, int64_t most)
{
    uint64_t x = handle->random;
    if (x == 0 && getrandom(&x, sizeof x, GRND_NONBLOCK) != (ssize_t)sizeof x)
        x = (uint64_t)walrus__now() ^ (uint64_t)(uintptr_t)handle;
    x |= x == 0;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    handle->random = x;
    if (most <= 0)
        return 0;
    return (int64_t)((x * UINT64_C(0x2545f4914f6cdd1d) >> 1) % ((uint64_t)most + 1));
}
