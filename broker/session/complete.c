/* complete.c: answers (step 7): completions into the ring, then signals to those who wait.
 *
 * Happy path
 *   1. The log calls complete_write_done for each write of a group, in order; refusals and reads come from
 *      their own files.
 *   2. complete_post puts the completion into the ring and release-stores the tail. The session is noted as
 *      touched.
 *   3. complete_signals, once per turn for all touched sessions: one full fence, then for each the client's
 *      wake_at, once; a signal if the tail has passed it. n completions of a turn give at most one signal.
 *
 * Failure modes: a ring without room cannot happen while the credit is kept, so the client has changed
 * cq_head against the rules: hostile. A client that is gone gets nothing; its writes are committed all the
 * same. A full or blocking eventfd is the problem of io_signal_send, which never blocks and may let a signal
 * that is still on its way count as this one too.
 *
 * A refusal with the notify flag has two completions. TRY_NOW is posted only if there is room beyond what is
 * owed (complete_has_room), so that a client which counts wrongly only waits; the answer of its end always
 * is.
 *
 * Invariant: a completion's stage stamps are taken when the stage happened; signalled_ns when it is
 * posted. */
#include "session.h"

void complete_post(struct session *session, struct completion *completion)
{
    struct server *server = session->server;
    check_bug(session->outstanding > 0);
    session->outstanding--;
    if (session->state != SESSION_LIVE)
        return;
    if (!session->touched) {
        session->touched = true;
        session->signal_from = session->cq.mirror.p_tail;
        TAILQ_INSERT_TAIL(&server->touched, session, touch);
    }
    completion->epoch = server->epoch;
    completion->signalled_ns = io_now(server->io);
    if (ring_push_completion(&session->cq, completion) != 1) {
        session_hostile(session, "reaped an impossible number of completions");
        return;
    }
    server->values.session_completions++;
    server->stat_dirty = true;
}

void complete_result(struct session *session, const struct descriptor *d, int64_t drained_ns, int result,
                     uint8_t reason)
{
    struct completion completion = {
        .user_data = d->user_data,
        .result = result,
        .reason = reason,
        .published_ns = d->published_ns,
        .drained_ns = drained_ns,
        .number = d->number,
    };
    complete_post(session, &completion);
}

static void post_answer(struct request *request, int result, uint8_t reason, uint32_t flags)
{
    bool write = request->kind == REQUEST_WRITE;
    struct completion completion = {
        .user_data = request->user_data,
        .result = result,
        .flags = flags,
        .reason = reason,
        .published_ns = request->published_ns,
        .drained_ns = request->drained_ns,
        .number = write ? request->write.number : 0,
        .retry_after_us = write && result != 0 ? request->write.retry_after_us : 0,
    };
    complete_post(request->session, &completion);
}

void complete_request(struct request *request, int result, uint8_t reason)
{
    post_answer(request, result, reason, 0);
    request_free(request);
}

/* Towards the broker's count it is answered. The client keeps credit for the second one, and kept it for both
 * from the start (layout.h). */
void complete_first(struct request *request, int result, uint8_t reason)
{
    post_answer(request, result, reason, COMPLETION_MORE);
}

void complete_second(struct request *request, int result, uint32_t flags)
{
    request->session->outstanding++;
    post_answer(request, result, REASON_NONE, flags);
    request_free(request);
}

/* For one completion more than those that are owed. */
bool complete_has_room(struct session *session)
{
    struct ring *cq = &session->cq;
    uint32_t capacity = ring_capacity(cq);
    if (session->outstanding + (cq->mirror.p_tail - cq->mirror.c_head) < capacity)
        return true;
    return ring_refresh_free(cq) >= 0 &&
           session->outstanding + (cq->mirror.p_tail - cq->mirror.c_head) < capacity;
}

/* How long a group takes, from its submission to its end: a moving average over groups. */
static void learn_group_time(struct server *server, const struct write *write)
{
    if (write->group == server->group_seen || write->submitted_ns == 0 ||
        write->durable_ns < write->submitted_ns)
        return;
    server->group_seen = write->group;
    int64_t took = write->durable_ns - write->submitted_ns;
    share_learn(server, took);
    server->group_ns += (took - server->group_ns) / 8;
    if (took < PLACEMENT_SMALL_NS)
        placement_learn(&server->placement, sched_getcpu(), took);
}

void complete_write(struct request *request)
{
    const struct write *write = &request->write;
    struct completion completion = {
        .user_data = request->user_data,
        .result = write->result,
        .flags = write->flags,
        .first_sequence = write->first_sequence,
        .entries = write->result == 0 ? (uint32_t)write->committed : 0,
        .level = write->level_reached,
        .reason = write->reason,
        .group = write->group,
        .published_ns = request->published_ns,
        .drained_ns = request->drained_ns,
        .submitted_ns = write->submitted_ns,
        .durable_ns = write->durable_ns,
        .retry_after_us = write->result == -EAGAIN ? queue_estimate_us(request) : 0,
        .number = write->number,
    };
    complete_post(request->session, &completion);
    request_free(request);
}

void complete_write_done(struct write *write)
{
    struct request *request = container_of(write, struct request, write);
    struct session *session = request->session;
    check_bug(session->server->writes_in_log > 0);
    session->server->writes_in_log--;
    session->account->writes--;
    learn_group_time(session->server, write);
    share_answered(session);
    if (request->answered) {
        request_free(request);
        return;
    }
    /* An answer often brings the next batch, within less than a wake-up takes: look at its ring before
     * sleeping again. Before the answer is posted, so that the client need not ring. */
    if (session->state == SESSION_LIVE)
        session_activate(session);
    complete_write(request);
}

void complete_signals(struct server *server)
{
    if (TAILQ_EMPTY(&server->touched))
        return;
    full_fence(); /* the tails are stored; pairs with the client's between wake_at and its look at the tail */
    bool sent = false;
    struct session *session;
    while ((session = TAILQ_FIRST(&server->touched)) != NULL) {
        TAILQ_REMOVE(&server->touched, session, touch);
        session->touched = false;
        if (session->state != SESSION_LIVE)
            continue;
        uint32_t tail = session->cq.mirror.p_tail;
        uint32_t wake_at = word_load(&session->client->wake_at);
        if (tail - wake_at - 1 >= tail - session->signal_from)
            continue;
        if (session->signal.parked)
            server->values.session_signals_coalesced++;
        io_signal_send(server->io, &session->signal);
        server->values.session_signals++;
        sent = true;
    }
    if (sent)
        io_kick(server->io);
}
