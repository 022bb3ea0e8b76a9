/* share.c: users share the device's time. A group takes as long as its bytes take, whoever they belong to; so
 * a user with many large batches would make everybody's groups large and everybody's answers late.
 *
 * While one user alone is there nothing of this happens: server->shared is false and no clock is looked at.
 *
 * Happy path, with two users (uids) or more that write
 *   1. share_charge, for each descriptor taken: the user's account runs forward by the time that its bytes
 *      take, and, once per group that it has part in, by the time of a small group.
 *   2. share_turn, before the rings are drained: `share_least` is the account of the user behind all others
 *      that are present: that have writes in the log (not in a queue, where a client can make them stay), or
 *      had an answer within SHARE_LINGER (a client needs a moment to send the next batch; giving the device
 *      away in that moment would make it wait for a large group each time).
 *   3. share_waits: a session whose user is ahead of share_least by more than a small group is not drained.
 *      It keeps its place on the list of active sessions; its ring is its queue.
 *   4. The others' groups complete, their accounts run forward, and it is drained again.
 *
 *   So each user has its part of the device's time, and what it does not use goes to the others. Bytes are
 *   charged at twice the time that they take: a user of large batches is to leave the other one at least half
 *   of what it would have alone.
 *
 * Invariants
 *   - the user that is behind all others present is never held back, so there is always one that is drained;
 *     and when no other is present any more, all are: at the latest SHARE_LINGER after the last answer
 *     (server.c wakes up for it).
 *   - an account that was absent starts at share_least: absence is not saved up. */
#include "session.h"

#define SHARE_LINGER         INT64_C(500000)
#define SHARE_NS_PER_BYTE    1 /* twice what a device of 2 GB/s takes */
#define SMALL_GROUP_AT_FIRST INT64_C(200000)

static bool present(const struct account *account, int64_t now)
{
    return account->writes > 0 || now < account->present_until_ns;
}

static bool one_user(const struct server *server)
{
    const struct account *first = TAILQ_FIRST(&server->accounts);
    return first == NULL || TAILQ_NEXT(first, link) == NULL;
}

void share_turn(struct server *server)
{
    const struct account *account;
    bool was_shared = server->shared;
    server->shared = false;
    server->share_held_back = false;
    if (one_user(server) || server->stopping)
        return;
    int64_t least = INT64_MAX;
    TAILQ_FOREACH(account, &server->accounts, link)
    if (present(account, server->turn_started_ns) && account->time_ns < least)
        least = account->time_ns;
    if (least == INT64_MAX)
        return;
    /* Time that the one behind all others let pass is not kept for it: it cannot slow the others down. */
    int64_t passed = was_shared ? server->turn_started_ns - server->share_at_ns : 0;
    if (least < server->share_least_ns + passed)
        least = server->share_least_ns + passed;
    server->shared = true;
    server->share_at_ns = server->turn_started_ns;
    server->share_least_ns = least;
}

bool share_waits(const struct session *session)
{
    const struct server *server = session->server;
    return server->shared && session->account->time_ns - server->share_least_ns > server->small_group_ns;
}

void share_charge(struct session *session, uint64_t bytes)
{
    struct server *server = session->server;
    struct account *account = session->account;
    if (bytes == 0 || one_user(server))
        return;
    if (account->time_ns < server->share_least_ns)
        account->time_ns = server->share_least_ns;
    account->time_ns += (int64_t)bytes * SHARE_NS_PER_BYTE;
    if (account->group_charged != server->group_seen) {
        account->group_charged = server->group_seen;
        account->time_ns += server->small_group_ns;
    }
}

/* An answer to a write of this user was posted. */
void share_answered(struct session *session)
{
    if (!one_user(session->server))
        session->account->present_until_ns = io_now(session->server->io) + SHARE_LINGER;
}

/* The shortest of late; it forgets slowly, so that a device which has become slow is believed. */
void share_learn(struct server *server, int64_t group_ns)
{
    int64_t now = server->small_group_ns == 0 ? SMALL_GROUP_AT_FIRST : server->small_group_ns;
    now += now / 64;
    server->small_group_ns = group_ns < now ? group_ns : now;
}

/* When a session that is held back must be looked at again, whatever else happens. */
int64_t share_deadline(const struct server *server)
{
    return server->share_held_back ? server->turn_started_ns + SHARE_LINGER : INT64_MAX;
}
