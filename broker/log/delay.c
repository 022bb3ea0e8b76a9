/* delay.c: whether the gathered group waits a moment for those that were just answered (a commit delay).
 *
 * Producers that wait for each answer before they send again fall into two halves: while the group of one
 * half is in the device the other half gathers, and each group carries half of what it could. Where the
 * answered ones come back much sooner than the device would, waiting for them is a gain for all: n batches
 * in each device time and a bit instead of n in two.
 *
 * Happy path
 *   1. A group of c writes is durable, n more have gathered meanwhile: n + c are expected.
 *   2. As long as fewer have gathered the group waits, but no longer than a group lately took in the device,
 *      counted from the answers: that is what whoever comes too late would lose. The (n + c)th ends the wait
 *      at once.
 *   3. A wait that brought less than three quarters of what was expected was in vain: the next 1, 2, 4, ...
 *      1,024 waits are left out. One that was not makes this short again.
 *
 * No wait: of a single producer that waits for its answers (n is 0 and the first one that comes is the cth);
 * when the time is over already (nobody sends much); for levels below durable; for large groups, whose time
 * in the device is that of their bytes; when the log stops.
 *
 * Nothing but time is decided here: what is in a group and when it is answered does not change. */
#include "internal.h"

#define DELAY_MOST_NS    INT64_C(150000)
#define DELAY_MOST_BYTES (256u << 10) /* of a group that waits */
#define DELAY_SKIP_MOST  1024u

void delay_answered(struct log *log, uint32_t answered, int64_t now)
{
    struct delay *delay = &log->delay;
    delay->expected = answered + log->gather->count;
    delay->until = now + (log->group_ns < DELAY_MOST_NS ? log->group_ns : DELAY_MOST_NS);
    delay->waiting = false;
}

static void learn(struct delay *delay, uint32_t gathered)
{
    if (!delay->waiting)
        return;
    delay->waiting = false;
    if (gathered >= delay->expected - delay->expected / 4) {
        delay->skip_next = 0;
        return;
    }
    delay->skip_next = delay->skip_next == 0 ? 1 : delay->skip_next * 2;
    if (delay->skip_next > DELAY_SKIP_MOST)
        delay->skip_next = DELAY_SKIP_MOST;
    delay->skip = delay->skip_next;
}

bool delay_wanted(struct log *log, const struct group *g)
{
    struct delay *delay = &log->delay;
    if (delay->expected == 0)
        return false;
    bool useful = g->needs_flush && !log->stopping && g->used < DELAY_MOST_BYTES &&
                  g->count < delay->expected && io_now(log->io) < delay->until;
    if (useful && !delay->waiting && delay->skip > 0) {
        delay->skip--;
        useful = false;
    }
    if (useful) {
        delay->waiting = true;
        return true;
    }
    learn(delay, g->count);
    delay->expected = 0;
    return false;
}
