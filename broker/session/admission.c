/* admission.c: what a descriptor may say, and what becomes of it (step 4; the log checks what only it can
 * know).
 *
 * Happy path of a write
 *   1. admit_descriptor: op, flags, level, alignment, and that payload and records lie inside the arena, by
 *      subtraction.
 *   2. A request of the session's pool is filled from the copied descriptor; log_write copies the payload.
 *   3. Its answer follows from the log's `done` (complete.c); a chunk that is not the last is answered now:
 *      COPIED.
 *
 * Failure modes
 *   - a descriptor that says something impossible is answered -EINVAL and nobody else notices; a stream it
 *     belongs to is rolled back.
 *   - log_write answers -EAGAIN for memory or space: the write is held, its session stops here,
 *     drain_retry_held goes on with it. The client sees nothing but time.
 *   - any other refusal is answered at once; of a stream, to all its chunks that are already published too.
 *
 * Invariant: of the arena nothing is read here but a topic's name, once, into private memory. */
#include "session.h"

static bool level_valid(uint8_t level)
{
    return level <= LEVEL_DURABLE;
}

/* [offset, offset + bytes + records) inside the arena, without a sum that could wrap. */
static bool inside_arena(const struct session *session, const struct descriptor *d, uint64_t records)
{
    uint64_t arena = session->sizes.arena_bytes;
    if (d->arena_offset > arena || d->payload_bytes > arena - d->arena_offset)
        return false;
    return records * sizeof(struct entry_record) <= arena - d->arena_offset - d->payload_bytes;
}

static int check_write(const struct session *session, const struct descriptor *d, uint32_t most_bytes)
{
    if (d->entries > MAX_BATCH_ENTRIES || d->payload_bytes > most_bytes)
        return -EINVAL;
    if (d->arena_offset % PAYLOAD_ALIGN != 0 || d->payload_bytes % PAYLOAD_ALIGN != 0)
        return -EINVAL;
    return inside_arena(session, d, d->entries) ? 0 : -EINVAL;
}

int admit_descriptor(const struct session *session, const struct descriptor *d)
{
    static const uint16_t flags_of[] = {
        [OP_OPEN] = DESCRIPTOR_CREATE,
        [OP_CHUNK] = DESCRIPTOR_FIRST | DESCRIPTOR_LAST,
        [OP_READ] = DESCRIPTOR_FOLLOW,
        [OP_CANCEL] = 0,
    };
    if (d->op == OP_NONE || d->op >= array_count(flags_of) || (d->flags & ~flags_of[d->op]) != 0 ||
        !level_valid(d->level))
        return -EINVAL;
    switch (d->op) {
    case OP_OPEN:
        if (d->payload_bytes == 0 || d->payload_bytes > MAX_TOPIC_NAME)
            return -EINVAL;
        return inside_arena(session, d, 0) ? 0 : -EINVAL;
    case OP_APPEND:
        return d->entries == 1 ? check_write(session, d, MAX_WHOLE_PAYLOAD) : -EINVAL;
    case OP_BATCH:
        return check_write(session, d, MAX_WHOLE_PAYLOAD);
    case OP_CHUNK:
        return check_write(session, d, MAX_CHUNK_PAYLOAD);
    case OP_READ:
        return d->max_entries <= MAX_BATCH_ENTRIES ? 0 : -EINVAL;
    default:
        return 0;
    }
}

/* ------------------------------------------------------------------------------------- topics */

static void admit_open(struct session *session, const struct descriptor *d, int64_t drained_ns)
{
    char name[MAX_TOPIC_NAME];
    memcpy(name, session->client_arena + d->arena_offset, d->payload_bytes);
    struct topic *topic = NULL;
    uint32_t number = 0;
    bool create = (d->flags & DESCRIPTOR_CREATE) != 0;
    int rc = log_topic(session->server->log, name, d->payload_bytes, d->level, session->account->uid, create,
                       &topic);
    if (rc == 0) {
        rc = session_topic_add(session, topic, &number);
        if (rc != 0)
            log_topic_release(session->server->log, topic);
    }
    if (rc != 0) {
        complete_result(session, d, drained_ns, rc, REASON_NONE);
        return;
    }
    struct topic_view view;
    log_topic_view(topic, &view);
    struct completion completion = {
        .user_data = d->user_data,
        .flags = view.id != 0 ? COMPLETION_CREATED : 0,
        .first_sequence = view.first_sequence,
        .entries = number,
        .level = view.level,
        .published_ns = d->published_ns,
        .drained_ns = drained_ns,
        .next_sequence = view.visible_next,
        .end_sequence = view.visible_next,
    };
    complete_post(session, &completion);
}

/* ------------------------------------------------------------------------------------- writes */

static struct request *request_new(struct session *session, enum request_kind kind,
                                   const struct descriptor *d, int64_t drained_ns)
{
    struct request *request = request_take(session, kind);
    check_bug(request != NULL); /* drain.c takes no descriptor from a session without one */
    request->answered = false;
    request->follow = (d->flags & DESCRIPTOR_FOLLOW) != 0;
    request->cancelled = false;
    request->topic = 0;
    request->stream = NULL;
    request->user_data = d->user_data;
    request->published_ns = d->published_ns;
    request->drained_ns = drained_ns;
    if (kind != REQUEST_TOPICS) {
        request->topic = d->topic;
        session->topics[d->topic].inflight++;
    }
    return request;
}

static void hold(struct request *request)
{
    struct session *session = request->session;
    session->held = request;
    session->has_held = true;
    TAILQ_INSERT_TAIL(&session->server->held[is_chunk(request)], session, hold);
    session->server->values.session_held_writes++;
    session->server->values.session_holds++;
}

void unhold(struct session *session)
{
    TAILQ_REMOVE(&session->server->held[is_chunk(session->held)], session, hold);
    session->held = NULL;
    session->has_held = false;
    session->server->values.session_held_writes--;
}

static void write_refused(struct request *request, int result)
{
    struct server *server = request->session->server;
    uint8_t reason = request->write.reason;
    if (result == -EBUSY)
        server->values.session_busy++;
    if (request->write.kind == WRITE_CHUNK) {
        if (request->stream->state == STREAM_OPEN)
            stream_fail(request->stream, result, reason);
        if (request->write.last && request->stream->state == STREAM_FAILED)
            stream_close(request->stream);
    }
    complete_request(request, result, reason);
}

static void chunk_taken(struct request *request)
{
    struct stream_slot *slot = request->stream;
    slot->chunks++;
    if (request->write.last) {
        stream_close(slot);
        return;
    }
    struct completion completion = {
        .user_data = request->user_data,
        .flags = COMPLETION_COPIED,
        .published_ns = request->published_ns,
        .drained_ns = request->drained_ns,
        .number = request->write.number,
    };
    request->answered = true;
    complete_post(request->session, &completion);
}

bool admit_write(struct request *request)
{
    struct write *write = &request->write;
    struct stream_slot *slot = request->stream;
    if (slot != NULL && slot->state == STREAM_FAILED) { /* while it was held */
        write->reason = slot->reason;
        write_refused(request, slot->result);
        return true;
    }
    write->reason = REASON_NONE;
    int rc = log_write(request->session->server->log, write);
    if (rc == -EAGAIN && (write->reason == REASON_MEMORY || write->reason == REASON_SPACE))
        return false;
    if (rc != 0) {
        write_refused(request, rc);
        return true;
    }
    request->session->server->writes_in_log++;
    if (slot != NULL)
        chunk_taken(request);
    return true;
}

static void admit_new_write(struct session *session, const struct descriptor *d, enum write_kind kind,
                            struct stream_slot *slot, int64_t drained_ns, uint64_t *bytes)
{
    struct request *request = request_new(session, REQUEST_WRITE, d, drained_ns);
    const uint8_t *payload = session->client_arena + d->arena_offset;
    request->write = (struct write){
        .kind = kind,
        .first = (d->flags & DESCRIPTOR_FIRST) != 0,
        .last = (d->flags & DESCRIPTOR_LAST) != 0,
        .level = d->level,
        .topic = session->topics[d->topic].topic,
        .owner = session,
        .stream = slot != NULL ? &slot->stream : NULL,
        .payload = payload,
        .records = payload + d->payload_bytes,
        .entries = d->entries,
        .payload_bytes = d->payload_bytes,
        .number = d->number,
        .drained_ns = drained_ns,
        .done = complete_write_done,
    };
    if (slot != NULL) {
        request->stream = slot;
        slot->inflight++;
    }
    *bytes += d->payload_bytes + sizeof *d;
    /* Nobody goes past those who wait for memory; only a whole batch goes past chunks, of which there may be
     * gigabytes. */
    const struct session_list *held = session->server->held;
    bool behind = !TAILQ_EMPTY(&held[0]) || (kind == WRITE_CHUNK && !TAILQ_EMPTY(&held[1]));
    if (behind || !admit_write(request))
        hold(request);
}

static void admit_empty_batch(struct session *session, const struct descriptor *d, int64_t drained_ns)
{
    struct topic_view view;
    log_topic_view(session->topics[d->topic].topic, &view);
    struct completion completion = {
        .user_data = d->user_data,
        .level = view.level,
        .published_ns = d->published_ns,
        .drained_ns = drained_ns,
        .number = d->number,
    };
    complete_post(session, &completion);
}

/* ------------------------------------------------------------------------------------- streams */

/* A chunk that cannot be part of its stream: both end. */
static void chunk_invalid(struct session *session, struct stream_slot *slot, const struct descriptor *d,
                          int64_t drained_ns)
{
    if (slot != NULL && slot->state == STREAM_OPEN)
        stream_fail(slot, -EINVAL, REASON_NONE);
    if (slot != NULL && (d->flags & DESCRIPTOR_LAST) != 0)
        stream_close(slot);
    session->server->values.session_refused_invalid++;
    complete_result(session, d, drained_ns, -EINVAL, REASON_NONE);
}

static void admit_chunk(struct session *session, const struct descriptor *d, int64_t drained_ns,
                        uint64_t *bytes)
{
    struct stream_slot *slot = stream_find(session, d->stream);
    if ((d->flags & DESCRIPTOR_FIRST) != 0) {
        if (slot != NULL && slot->state == STREAM_FAILED) {
            stream_close(slot); /* the client has given the number a new batch */
            slot = NULL;
        }
        if (slot != NULL || d->chunk != 0) {
            chunk_invalid(session, slot, d, drained_ns);
            return;
        }
        slot = stream_open(session, d->stream, d->topic, d);
        if (slot == NULL) {
            complete_result(session, d, drained_ns, -EDQUOT, REASON_NONE);
            return;
        }
    } else if (slot == NULL) {
        chunk_invalid(session, NULL, d, drained_ns);
        return;
    }
    if (slot->state == STREAM_FAILED) {
        int result = slot->result;
        uint8_t reason = slot->reason;
        if ((d->flags & DESCRIPTOR_LAST) != 0)
            stream_close(slot);
        complete_result(session, d, drained_ns, result, reason);
        return;
    }
    if (slot->topic != d->topic || slot->chunks != d->chunk) {
        chunk_invalid(session, slot, d, drained_ns);
        return;
    }
    slot->touched_ns = drained_ns;
    TAILQ_REMOVE(&session->server->streams, slot, idle);
    TAILQ_INSERT_TAIL(&session->server->streams, slot, idle);
    admit_new_write(session, d, WRITE_CHUNK, slot, drained_ns, bytes);
}

static void admit_abort(struct session *session, const struct descriptor *d, int64_t drained_ns)
{
    struct stream_slot *slot = stream_find(session, d->stream);
    if (slot == NULL) {
        complete_result(session, d, drained_ns, -ENOENT, REASON_NONE);
        return;
    }
    if (slot->state == STREAM_OPEN)
        stream_fail(slot, -ECANCELED, REASON_NONE);
    stream_close(slot);
    complete_result(session, d, drained_ns, 0, REASON_NONE);
}

/* ------------------------------------------------------------------------------------- all ops */

static bool names_topic(uint8_t op)
{
    return op == OP_CLOSE || op == OP_APPEND || op == OP_BATCH || op == OP_CHUNK || op == OP_READ;
}

static void admit_read(struct session *session, const struct descriptor *d, int64_t drained_ns)
{
    if (session->state != SESSION_LIVE || session->server->stopping) { /* nobody will look at the window */
        complete_result(session, d, drained_ns, -ESHUTDOWN, REASON_NONE);
        return;
    }
    enum request_kind kind = d->op == OP_READ ? REQUEST_READ : REQUEST_TOPICS;
    read_start(request_new(session, kind, d, drained_ns), d);
}

void admit(struct session *session, const struct descriptor *d, int64_t drained_ns, uint64_t *bytes)
{
    int rc = admit_descriptor(session, d);
    if (rc == 0 && names_topic(d->op) && session_topic(session, d->topic) == NULL)
        rc = -EINVAL;
    if (rc != 0) {
        if (d->op == OP_CHUNK) {
            chunk_invalid(session, stream_find(session, d->stream), d, drained_ns);
            return;
        }
        session->server->values.session_refused_invalid++;
        complete_result(session, d, drained_ns, rc, REASON_NONE);
        return;
    }
    switch (d->op) {
    case OP_OPEN:
        admit_open(session, d, drained_ns);
        break;
    case OP_CLOSE:
        session_topic_close(session, d->topic);
        complete_result(session, d, drained_ns, 0, REASON_NONE);
        break;
    case OP_APPEND:
        admit_new_write(session, d, WRITE_APPEND, NULL, drained_ns, bytes);
        break;
    case OP_BATCH:
        if (d->entries == 0 && d->payload_bytes == 0)
            admit_empty_batch(session, d, drained_ns);
        else
            admit_new_write(session, d, WRITE_BATCH, NULL, drained_ns, bytes);
        break;
    case OP_CHUNK:
        admit_chunk(session, d, drained_ns, bytes);
        break;
    case OP_ABORT:
        admit_abort(session, d, drained_ns);
        break;
    case OP_READ:
    case OP_TOPICS:
        admit_read(session, d, drained_ns);
        break;
    case OP_CANCEL:
        read_cancel(session, d->number, d, drained_ns);
        break;
    default:
        bug(__FILE__, __LINE__, "an op that admit_descriptor let through");
    }
}
