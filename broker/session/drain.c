/* drain.c: takes descriptors from the submission rings, in turn, bounded in count and bytes (step 3 of DESIGN
 * section 2).
 *
 * Happy path
 *   1. Every active session gets its share of a turn; the one that was looked at goes to the end of the list.
 *   2. ring_pop copies the descriptor into private memory; from here on only the copy is looked at.
 *   3. The credit is checked, admission.c decides.
 *   4. A session seen empty for EMPTY_TURNS turns is parked; before the loop sleeps, all of them are.
 *
 * Parking (store-buffering pair of layout.h): store PARKED, full fence, look at the tail once more. The
 * client stores its tail, full fence, looks at the parked word. At least one of the two sees the other's
 * store: either the broker finds the descriptor now, or the client rings the doorbell.
 *
 * Failure modes: an impossible tail or more descriptors than credit end the session. A session that is
 * blocked (a held write, all requests in the log) stays on the list and is neither looked at nor parked: what
 * unblocks it is a completion, which wakes the loop by itself.
 *
 * Writes that found no memory or log space stand in two rows (whole ones, chunks), whoever waits for them: a
 * session's drain, which is blocked by it; a topic's queue; a stream whose chunks wait behind.
 *
 * Invariant: a session that is LEAVING, or any when the server stops, is drained up to the tail noted then
 * and no further. A LEAVING one ends when nothing of it waits for its topic any more. */
#include "session.h"

#define CLOCK_BYTES 4096u /* copying them takes less than a microsecond */

static bool blocked(const struct session *session)
{
    return session->held != NULL ||
           (TAILQ_EMPTY(&session->pool) && session->pool_used == session->pool_size) || share_waits(session);
}

static bool at_final_tail(const struct session *session)
{
    return (session->state == SESSION_LEAVING || session->server->stopping) &&
           session->sq.mirror.c_head == session->final_tail;
}

/* Descriptors taken and not answered, and answers not reaped, must leave every answer a slot. */
static bool credit_kept(struct session *session)
{
    if (session->state != SESSION_LIVE)
        return true; /* nothing is posted any more */
    uint32_t capacity = ring_capacity(&session->cq);
    if (session->outstanding + (session->cq.mirror.p_tail - session->cq.mirror.c_head) <= capacity)
        return true;
    if (ring_refresh_free(&session->cq) < 0) {
        session_hostile(session, "reaped an impossible number of completions");
        return false;
    }
    if (session->outstanding + (session->cq.mirror.p_tail - session->cq.mirror.c_head) <= capacity)
        return true;
    session_hostile(session, "has more descriptors in flight than its credit of %u", capacity);
    return false;
}

/* What it published is committed as if it lived, also what waits for its topic. What has no end it will never
 * end, and might keep others, or its own batches behind them, from a topic. */
static void leave_if_decided(struct session *session)
{
    if (!session->settled)
        stream_abort_unfinished(session);
    session->settled = true;
    if (session->waiting == 0)
        session_end(session);
}

/* When a descriptor is drained: the clock of the last one, if that was a moment ago; never before what the
 * client says, so that no stage of an honest client's receipt is negative. */
static int64_t drained_at(struct server *server, const struct descriptor *d, uint64_t bytes)
{
    if (server->drained_ns == 0 || bytes - server->drained_bytes >= CLOCK_BYTES ||
        d->published_ns > server->drained_ns) {
        server->drained_ns = io_now(server->io);
        server->drained_bytes = bytes;
    }
    return server->drained_ns;
}

bool drain_session(struct session *session, uint64_t *bytes)
{
    struct server *server = session->server;
    uint64_t limit = *bytes + DRAIN_BYTES;
    if (session->state == SESSION_LEAVING)
        queue_leaving(session);
    for (uint32_t n = 0; n < DRAIN_DESCRIPTORS && *bytes < limit; n++) {
        if (session->state == SESSION_ENDED || blocked(session)) {
            server->share_held_back |= share_waits(session);
            return false;
        }
        if (session->fencing && !session->fenced && session->sq.mirror.c_head == session->fence_tail)
            producer_fence_reached(session);
        if (at_final_tail(session)) {
            if (session->state == SESSION_LEAVING)
                leave_if_decided(session);
            return false;
        }
        struct descriptor descriptor;
        int rc = ring_pop_descriptor(&session->sq, &descriptor);
        if (rc < 0) {
            session_hostile(session, "published an impossible number of descriptors");
            return false;
        }
        if (rc == 0) {
            session->empty_turns++;
            return false;
        }
        session->empty_turns = 0;
        session->outstanding++;
        server->values.session_descriptors_drained++;
        server->stat_dirty = true;
        if (!credit_kept(session))
            return false;
        uint64_t before = *bytes;
        admit(session, &descriptor, drained_at(server, &descriptor, before), bytes);
        share_charge(session, *bytes - before);
    }
    return session->state != SESSION_ENDED;
}

static bool still_empty(struct session *session)
{
    return ring_refresh_filled(&session->sq) == 0; /* an impossible tail is found by the next drain */
}

static void park_if_empty(struct session *session)
{
    if (session->state != SESSION_LIVE || blocked(session))
        return;
    word_store(&session->broker->parked, PARKED);
    full_fence();
    if (!still_empty(session)) {
        word_store(&session->broker->parked, ACTIVE);
        session->empty_turns = 0;
        session->server->more = true;
        return;
    }
    session_park(session);
    session->server->values.session_parks++;
}

void drain_all(struct server *server)
{
    uint64_t bytes = 0;
    uint64_t count = server->values.session_active;
    share_turn(server);
    /* What has ended in the device is seen to first: its flush, or the next group, would wait for copies. */
    for (; count > 0 && bytes < TURN_BYTES && (bytes == 0 || !io_ready(server->io)); count--) {
        struct session *session = TAILQ_FIRST(&server->active);
        if (session == NULL)
            break;
        TAILQ_REMOVE(&server->active, session, activity);
        TAILQ_INSERT_TAIL(&server->active, session, activity);
        if (drain_session(session, &bytes))
            server->more = true;
        else if (session->active && session->empty_turns > EMPTY_TURNS)
            park_if_empty(session);
    }
    if (count > 0)
        server->more = true;
    server->values.session_payload_drained += bytes;
}

/* All of them at once, with one fence. */
bool drain_park_all(struct server *server)
{
    struct session *session;
    struct session *next;
    TAILQ_FOREACH(session, &server->active, activity)
    if (session->state == SESSION_LIVE && !blocked(session))
        word_store(&session->broker->parked, PARKED);
    full_fence();
    bool found = false;
    for (session = TAILQ_FIRST(&server->active); session != NULL; session = next) {
        next = TAILQ_NEXT(session, activity);
        if (session->state != SESSION_LIVE || blocked(session)) {
            server->share_held_back |= share_waits(session);
            continue;
        }
        if (at_final_tail(session) || still_empty(session)) {
            session_park(session);
            server->values.session_parks++;
        } else {
            word_store(&session->broker->parked, ACTIVE);
            found = true;
        }
    }
    return !found;
}

bool drain_anything(struct server *server)
{
    struct session *session;
    TAILQ_FOREACH(session, &server->active, activity)
    if (session->state == SESSION_LIVE && !blocked(session) && !at_final_tail(session) &&
        word_load(session->sq.peer_word) != session->sq.mirror.c_head)
        return true;
    return false;
}

/* Oldest first, and the first one that is still refused stops the row: a large batch is not starved by small
 * ones behind it. It is off the row while it is tried. */
static void retry_row(struct server *server, struct request_list *row)
{
    struct request *request;
    while ((request = TAILQ_FIRST(row)) != NULL) {
        write_unhold(request);
        if (!write_retry(request)) {
            request->held = true;
            TAILQ_INSERT_HEAD(row, request, hold);
            server->values.session_held_writes++;
            return;
        }
        server->more = true;
    }
}

void drain_retry_held(struct server *server)
{
    retry_row(server, &server->held[0]);
    if (TAILQ_EMPTY(&server->held[0]))
        retry_row(server, &server->held[1]);
}
