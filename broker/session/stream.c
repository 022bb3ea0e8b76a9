/* stream.c: batches that come in chunks, as the session sees them. The log has the batch; this file has the
 * client's numbers.
 *
 *            first chunk        last chunk taken, ABORT,
 *                                       client gone
 *      FREE ------------> OPEN ------------------------------> CLOSED ---inflight 0---> FREE
 *                          |                                      ^
 *        refused by        |                                      | LAST, ABORT,
 *        log_write, bad    +-----------> FAILED ------------------+ client gone
 *        descriptor, idle
 *
 * A client may have more chunks published when one of them fails: they find the stream FAILED and get the
 * same answer, so that they are never taken for part of another batch.
 *
 * The first chunk may have to wait for its topic (queue.c). The others leave the ring all the same, since
 * their session's drain goes on, and wait BEHIND it in order, as descriptors. When it was taken they follow,
 * as far as memory goes; the one that finds none is held in the row like any chunk (drain.c), the rest behind
 * it. They never wait for the topic.
 *
 * Once the last chunk is published (`whole`) the stream is as good as a batch: whatever becomes of its
 * client, it is committed in its turn, and the client's number is free for another one.
 *
 * Invariant: the slot, and the struct stream in it, stay until every chunk of it has come back from the
 * log. */
#include "session.h"

struct stream_slot *stream_find(struct session *session, uint32_t number)
{
    for (uint32_t i = 0; i < MAX_STREAMS_OPEN; i++) {
        struct stream_slot *slot = &session->streams[i];
        bool open = slot->state == STREAM_OPEN && !slot->whole;
        if (slot->number == number && (open || slot->state == STREAM_FAILED))
            return slot;
    }
    return NULL;
}

static struct stream_slot *free_slot(struct session *session)
{
    struct stream_slot *failed = NULL;
    for (uint32_t i = 0; i < MAX_STREAMS_OPEN; i++) {
        struct stream_slot *slot = &session->streams[i];
        if (slot->state == STREAM_FREE)
            return slot;
        if (slot->state == STREAM_FAILED && slot->inflight == 0 &&
            (failed == NULL || slot->touched_ns < failed->touched_ns))
            failed = slot;
    }
    if (failed != NULL) /* its client never came back for it */
        stream_close(failed);
    return failed;
}

struct stream_slot *stream_open(struct session *session, uint32_t number, uint32_t topic,
                                const struct descriptor *d, int64_t now)
{
    struct stream_slot *slot = free_slot(session);
    if (slot == NULL)
        return NULL;
    check_bug(slot->state == STREAM_FREE);
    *slot = (struct stream_slot){
        .session = session, .state = STREAM_OPEN, .number = number, .topic = topic, .touched_ns = now};
    TAILQ_INIT(&slot->behind);
    slot->stream.topic = session->topics[topic].topic;
    slot->stream.owner = session;
    slot->stream.level = d->level;
    session->topics[topic].inflight++;
    TAILQ_INSERT_TAIL(&session->server->streams, slot, idle);
    return slot;
}

static void stream_free_if_done(struct stream_slot *slot)
{
    if (slot->state != STREAM_CLOSED || slot->inflight != 0)
        return;
    slot->state = STREAM_FREE;
    session_topic_done(slot->session, slot->topic);
}

void stream_touch(struct stream_slot *slot, int64_t now)
{
    if (slot->state != STREAM_OPEN)
        return;
    slot->touched_ns = now;
    TAILQ_REMOVE(&slot->session->server->streams, slot, idle);
    TAILQ_INSERT_TAIL(&slot->session->server->streams, slot, idle);
}

/* ------------------------------------------------------------------------------------- chunks that wait */

bool stream_waits(const struct stream_slot *slot)
{
    return slot->queued != NULL || !TAILQ_EMPTY(&slot->behind);
}

void stream_wait_behind(struct request *request)
{
    struct stream_slot *slot = request->stream;
    request->write_state = WRITE_BEHIND;
    TAILQ_INSERT_TAIL(&slot->behind, request, link);
    slot->session->waiting++;
    slot->session->server->values.session_queued_writes++;
}

void stream_leave(struct request *request)
{
    struct stream_slot *slot = request->stream;
    check_bug(request->write_state == WRITE_BEHIND);
    request->write_state = WRITE_NEW;
    TAILQ_REMOVE(&slot->behind, request, link);
    slot->session->waiting--;
    slot->session->server->values.session_queued_writes--;
    if (slot->session->state == SESSION_LEAVING)
        slot->session->server->more = true; /* it may be over now */
}

bool stream_go_on(struct stream_slot *slot, struct request *retried)
{
    struct request *request;
    while (slot->stream.admitted && (request = TAILQ_FIRST(&slot->behind)) != NULL && !request->held) {
        enum admission admission = ADMIT_LATER;
        if (request == retried || !write_must_hold(request))
            admission = admit_write(request);
        if (admission == ADMIT_DECIDED)
            continue;
        if (request == retried)
            return false;
        write_hold(request);
    }
    return true;
}

/* With the answer that the stream got. */
void stream_answer_behind(struct stream_slot *slot)
{
    struct request *request;
    if (slot->state == STREAM_OPEN)
        return;
    while ((request = TAILQ_FIRST(&slot->behind)) != NULL)
        write_end(request, slot->result, slot->reason);
}

/* ------------------------------------------------------------------------------------- ends */

/* Rolled back in the log if it is there; its next chunks are answered with `result`. */
void stream_mark_failed(struct stream_slot *slot, int result, uint8_t reason)
{
    struct server *server = slot->session->server;
    check_bug(slot->state == STREAM_OPEN);
    TAILQ_REMOVE(&server->streams, slot, idle);
    slot->state = STREAM_FAILED;
    slot->result = result;
    slot->reason = reason;
    if (slot->stream.admitted) {
        log_stream_abort(server->log, &slot->stream);
        server->values.session_streams_aborted++;
    }
}

/* The same for those of its chunks that wait here; with the last of them it is closed. */
void stream_fail(struct stream_slot *slot, int result, uint8_t reason)
{
    stream_mark_failed(slot, result, reason);
    if (slot->queued != NULL)
        write_end(slot->queued, result, reason); /* and those behind it */
    else
        stream_answer_behind(slot);
}

/* The client's number is free again. */
void stream_close(struct stream_slot *slot)
{
    check_bug(slot->state == STREAM_OPEN || slot->state == STREAM_FAILED);
    if (slot->state == STREAM_OPEN)
        TAILQ_REMOVE(&slot->session->server->streams, slot, idle);
    slot->state = STREAM_CLOSED;
    stream_free_if_done(slot);
}

void stream_chunk_done(struct stream_slot *slot)
{
    check_bug(slot->inflight > 0);
    slot->inflight--;
    stream_free_if_done(slot);
}

static void abort_each(struct session *session, bool whole_too)
{
    for (uint32_t i = 0; i < MAX_STREAMS_OPEN; i++) {
        struct stream_slot *slot = &session->streams[i];
        if (slot->state == STREAM_OPEN && (whole_too || !slot->whole))
            stream_fail(slot, -ECANCELED, REASON_NONE);
        if (slot->state == STREAM_FAILED)
            stream_answer_behind(slot);
        if (slot->state == STREAM_FAILED)
            stream_close(slot);
    }
}

void stream_abort_all(struct session *session)
{
    abort_each(session, true);
}

void stream_abort_unfinished(struct session *session)
{
    abort_each(session, false);
}

int64_t stream_idle_deadline(const struct server *server)
{
    const struct stream_slot *oldest = TAILQ_FIRST(&server->streams);
    return oldest == NULL ? INT64_MAX : oldest->touched_ns + server->options.idle_stream_ns;
}

/* A stream holds its topic; a client that sleeps in the middle of one must not hold it for ever. One whose
 * chunk waits here, for memory or its topic, is not idle. */
void stream_abort_idle(struct server *server, int64_t now)
{
    struct stream_slot *slot;
    while ((slot = TAILQ_FIRST(&server->streams)) != NULL && stream_idle_deadline(server) <= now) {
        struct session *session = slot->session;
        if (stream_waits(slot) || (session->held != NULL && session->held->stream == slot)) {
            stream_touch(slot, now);
            continue;
        }
        server_say_of_peer(server, "stream of pid %d rolled back: no chunk came for %lld ms",
                           (int)session->pid, (long long)(server->options.idle_stream_ns / 1000000));
        stream_fail(slot, -ECANCELED, REASON_NONE);
    }
}
