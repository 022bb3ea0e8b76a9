/* admission.c: what a descriptor may say, and what becomes of it (step 4; the log checks what only it can
 * know).
 *
 * Happy path of a write
 *   1. admit_descriptor: op, flags, level, alignment, and that payload and records lie inside the arena, by
 *      subtraction. number_valid: with a producer every batch has a number, without one none has.
 *   2. A request of the session's pool is filled from the copied descriptor; log_write copies the payload.
 *   3. Its answer follows from the log's `done` (complete.c); a chunk that is not the last is answered now:
 *      COPIED.
 *
 * Failure modes
 *   - a descriptor that says something impossible is answered -EINVAL and nobody else notices; a stream it
 *     belongs to is rolled back.
 *   - its topic is another handle's, or others wait for it: with the queue flag it waits there (queue.c),
 *     without it is refused: -EBUSY.
 *   - log_write answers -EAGAIN for memory or space: the write is held, its session stops here,
 *     drain_retry_held goes on with it. The client sees nothing but time.
 *   - its deadline passes before the log has taken it, wherever it waits: -ETIMEDOUT. A stream is admitted
 *     with its first chunk; the others have no deadline.
 *   - its number is committed already: 0 with DUPLICATE; nothing is written.
 *   - the session's producer was taken over: -ESTALE for all but what gives something back.
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
        [OP_APPEND] = DESCRIPTOR_QUEUE | DESCRIPTOR_NOTIFY,
        [OP_BATCH] = DESCRIPTOR_QUEUE | DESCRIPTOR_NOTIFY,
        [OP_CHUNK] = DESCRIPTOR_FIRST | DESCRIPTOR_LAST | DESCRIPTOR_QUEUE | DESCRIPTOR_NOTIFY,
        [OP_READ] = DESCRIPTOR_FOLLOW,
        [OP_QUERY] = 0,
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

/* Whole batches, and streams with their last chunk, have a number if there is a producer; nothing else has
 * one. An empty batch takes none, so it may say what it likes. */
static bool number_valid(const struct session *session, const struct descriptor *d)
{
    bool whole = d->op == OP_APPEND || d->op == OP_BATCH;
    if ((!whole && d->op != OP_CHUNK) || (d->op == OP_BATCH && d->entries == 0))
        return true;
    bool has_one = session->producer != NULL && (whole || (d->flags & DESCRIPTOR_LAST) != 0);
    return (d->number != 0) == has_one;
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
        .window_at = view.watermark,
        .next_sequence = view.visible_next,
        .end_sequence = view.visible_next,
        .number =
            session->producer == NULL ? 0 : log_last_number(session->server->log, session->producer, topic),
    };
    complete_post(session, &completion);
}

static void admit_query(struct session *session, const struct descriptor *d, int64_t drained_ns)
{
    if (session->producer == NULL) {
        complete_result(session, d, drained_ns, -EINVAL, REASON_NONE);
        return;
    }
    const struct topic *topic = session->topics[d->topic].topic;
    uint64_t entries = 0;
    struct completion completion = {
        .user_data = d->user_data,
        .published_ns = d->published_ns,
        .drained_ns = drained_ns,
        .number = d->number,
    };
    completion.result = log_query(session->server->log, session->producer, topic, d->number,
                                  &completion.first_sequence, &entries);
    if (completion.result == 0 && queue_has_number(session, topic, d->number))
        completion.result = -EINPROGRESS;
    completion.entries = (uint32_t)entries;
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
    request->may_queue = false;
    request->notify = false;
    request->held = false;
    request->write_state = WRITE_NEW;
    request->deadline = (struct deadline){.at = INT64_MAX};
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

/* Nobody goes past those who wait for memory; only a whole batch goes past chunks, of which there may be
 * gigabytes. */
bool write_must_hold(const struct request *request)
{
    const struct request_list *held = request->session->server->held;
    return !TAILQ_EMPTY(&held[0]) || (is_chunk(request) && !TAILQ_EMPTY(&held[1]));
}

void write_hold(struct request *request)
{
    struct server *server = request->session->server;
    check_bug(!request->held);
    request->held = true;
    TAILQ_INSERT_TAIL(&server->held[is_chunk(request)], request, hold);
    server->values.session_held_writes++;
    server->values.session_holds++;
}

void write_unhold(struct request *request)
{
    struct server *server = request->session->server;
    check_bug(request->held);
    request->held = false;
    TAILQ_REMOVE(&server->held[is_chunk(request)], request, hold);
    server->values.session_held_writes--;
}

void unhold(struct session *session)
{
    deadline_clear(session->server, &session->held->deadline);
    write_unhold(session->held);
    session->held = NULL;
}

static void write_due(struct server *server, struct deadline *deadline)
{
    (void)server;
    write_end(container_of(deadline, struct request, deadline), -ETIMEDOUT, REASON_NONE);
}

int write_watch_deadline(struct request *request)
{
    struct deadline *deadline = &request->deadline;
    if (deadline->at == INT64_MAX || deadline->place != 0)
        return 0;
    return deadline_set(request->session->server, deadline, deadline->at, write_due);
}

/* It is decided: it waits nowhere any more. */
static void write_leave(struct request *request)
{
    struct session *session = request->session;
    if (request->held)
        write_unhold(request);
    if (session->held == request) {
        session->held = NULL;
        session->server->more = true; /* its drain goes on */
    }
    deadline_clear(session->server, &request->deadline);
    if (request->write_state == WRITE_QUEUED)
        queue_leave(request);
    else if (request->write_state == WRITE_BEHIND)
        stream_leave(request);
}

static void write_refused(struct request *request, int result)
{
    struct server *server = request->session->server;
    struct stream_slot *slot = request->stream;
    uint8_t reason = request->write.reason;
    if (result == -EBUSY)
        server->values.session_busy++;
    if (result == -ETIMEDOUT)
        server->values.session_timed_out++;
    if (result == -EBUSY || reason == REASON_ORDER)
        request->write.retry_after_us = queue_estimate_us(request);
    if (slot != NULL) {
        if (slot->state == STREAM_OPEN)
            stream_mark_failed(slot, result, reason);
        if (request->write.last && slot->state == STREAM_FAILED)
            stream_close(slot);
    }
    if (result != -EBUSY || !request->notify || !queue_note_refusal(request))
        complete_request(request, result, reason);
    if (slot != NULL)
        stream_answer_behind(slot);
}

void write_end(struct request *request, int result, uint8_t reason)
{
    write_leave(request);
    request->write.reason = reason;
    write_refused(request, result);
}

static void chunk_taken(struct request *request)
{
    struct stream_slot *slot = request->stream;
    if (slot->touched_ns < request->session->server->turn_started_ns) /* it has waited */
        stream_touch(slot, request->session->server->turn_started_ns);
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

/* It is committed, by an earlier copy of the same batch. */
static void write_duplicate(struct request *request)
{
    struct stream_slot *slot = request->stream;
    request->write.flags |= COMPLETION_DUPLICATE;
    request->session->server->values.session_duplicates++;
    if (slot != NULL)
        stream_close(slot);
    complete_write(request);
}

enum admission admit_write(struct request *request)
{
    struct server *server = request->session->server;
    struct write *write = &request->write;
    struct stream_slot *slot = request->stream;
    if (slot != NULL && slot->state == STREAM_FAILED) { /* while it was held */
        write_end(request, slot->result, slot->reason);
        return ADMIT_DECIDED;
    }
    if (request->deadline.at <= server->turn_started_ns || request->deadline.at <= request->drained_ns) {
        write_end(request, -ETIMEDOUT, REASON_NONE);
        return ADMIT_DECIDED;
    }
    write->reason = REASON_NONE;
    write->result = 0;
    int rc = log_write(server->log, write);
    if (rc == -EAGAIN && (write->reason == REASON_MEMORY || write->reason == REASON_SPACE))
        return ADMIT_LATER;
    if (rc == -EBUSY && request->may_queue)
        return ADMIT_BUSY;
    write_leave(request);
    if (rc == 1) {
        write_duplicate(request);
    } else if (rc != 0) {
        write_refused(request, rc);
    } else {
        server->writes_in_log++;
        request->session->account->writes++;
        if (slot != NULL)
            chunk_taken(request);
    }
    return ADMIT_DECIDED;
}

/* A write that came from the ring, now or before it was held. false: it finds no room. */
static bool admit_from_ring(struct request *request, bool was_held)
{
    enum queue_answer answer = queue_ask(request);
    if (answer == QUEUE_GO && !was_held && write_must_hold(request)) {
        if (is_chunk(request) && request->stream->stream.admitted)
            return false;
        if (!log_topic_busy(request->write.topic, request->session))
            return false;
        answer = QUEUE_BUSY;
    }
    if (answer == QUEUE_GO) {
        request->write.drained_ns = was_held ? 0 : request->drained_ns;
        switch (admit_write(request)) {
        case ADMIT_DECIDED:
            return true;
        case ADMIT_LATER:
            return false;
        case ADMIT_BUSY:
            answer = QUEUE_WAIT;
        }
    }
    request->write.drained_ns = 0;
    if (answer == QUEUE_BUSY)
        write_end(request, -EBUSY, REASON_TOPIC);
    else if (queue_join(request) != 0)
        write_end(request, -EAGAIN, REASON_MEMORY);
    return true;
}

bool write_retry(struct request *request)
{
    struct session *session = request->session;
    if (request->write_state == WRITE_QUEUED)
        return queue_retry(request);
    if (request->write_state == WRITE_BEHIND)
        return stream_go_on(request->stream, request);
    session->held = NULL; /* an answer may end the session, which must not find it held */
    if (admit_from_ring(request, true))
        return true;
    session->held = request;
    return false;
}

static void admit_new_write(struct session *session, const struct descriptor *d, enum write_kind kind,
                            struct stream_slot *slot, int64_t drained_ns, uint64_t *bytes)
{
    struct request *request = request_new(session, REQUEST_WRITE, d, drained_ns);
    const uint8_t *payload = session->client_arena + d->arena_offset;
    bool opens = slot == NULL || (d->flags & DESCRIPTOR_FIRST) != 0;
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
        .producer = session->producer,
        .number = d->number,
        .done = complete_write_done,
    };
    if (opens) {
        request->may_queue = (d->flags & DESCRIPTOR_QUEUE) != 0;
        request->notify = (d->flags & DESCRIPTOR_NOTIFY) != 0;
        if (d->deadline_ns != 0)
            request->deadline.at = d->deadline_ns;
    }
    if (slot != NULL) {
        request->stream = slot;
        slot->inflight++;
    }
    *bytes += d->payload_bytes + sizeof *d;
    if (request->deadline.at <= drained_ns) {
        write_end(request, -ETIMEDOUT, REASON_NONE);
    } else if (slot != NULL && stream_waits(slot)) {
        stream_wait_behind(request);
    } else if (!admit_from_ring(request, false)) {
        if (write_watch_deadline(request) != 0) {
            write_end(request, -EAGAIN, REASON_MEMORY);
            return;
        }
        write_hold(request);
        session->held = request;
    }
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

/* The stream fails with it. */
static void chunk_refused(struct session *session, struct stream_slot *slot, const struct descriptor *d,
                          int64_t drained_ns, int result)
{
    if (slot != NULL && slot->state == STREAM_OPEN)
        stream_fail(slot, result, REASON_NONE);
    if (slot != NULL && slot->state == STREAM_FAILED && (d->flags & DESCRIPTOR_LAST) != 0)
        stream_close(slot);
    complete_result(session, d, drained_ns, result, REASON_NONE);
}

/* A chunk that cannot be part of its stream: both end. */
static void chunk_invalid(struct session *session, struct stream_slot *slot, const struct descriptor *d,
                          int64_t drained_ns)
{
    chunk_refused(session, slot, d, drained_ns, -EINVAL);
    session->server->values.session_refused_invalid++;
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
        slot = stream_open(session, d->stream, d->topic, d, drained_ns);
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
    slot->chunks++;
    slot->whole = (d->flags & DESCRIPTOR_LAST) != 0;
    stream_touch(slot, drained_ns);
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
    if (slot->state == STREAM_FAILED)
        stream_close(slot);
    complete_result(session, d, drained_ns, 0, REASON_NONE);
}

/* ------------------------------------------------------------------------------------- all ops */

static bool names_topic(uint8_t op)
{
    return op == OP_CLOSE || op == OP_APPEND || op == OP_BATCH || op == OP_CHUNK || op == OP_READ ||
           op == OP_QUERY;
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

static void admit_cancel(struct session *session, const struct descriptor *d, int64_t drained_ns)
{
    int rc = queue_cancel(session, d->number, WRITE_QUEUED);
    if (rc == -ENOENT)
        rc = read_cancel(session, d->number);
    if (rc == -ENOENT)
        rc = queue_cancel(session, d->number, WRITE_REFUSED);
    complete_result(session, d, drained_ns, rc, REASON_NONE);
}

/* What a fenced session may still do: give back. */
static bool gives_back(uint8_t op)
{
    return op == OP_CLOSE || op == OP_ABORT || op == OP_CANCEL;
}

void admit(struct session *session, const struct descriptor *d, int64_t drained_ns, uint64_t *bytes)
{
    int rc = admit_descriptor(session, d);
    if (rc == 0 && session->fenced && !gives_back(d->op)) {
        struct stream_slot *slot = d->op == OP_CHUNK ? stream_find(session, d->stream) : NULL;
        chunk_refused(session, slot, d, drained_ns, -ESTALE);
        return;
    }
    if (rc == 0 &&
        ((names_topic(d->op) && session_topic(session, d->topic) == NULL) || !number_valid(session, d)))
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
        admit_cancel(session, d, drained_ns);
        break;
    case OP_QUERY:
        admit_query(session, d, drained_ns);
        break;
    default:
        bug(__FILE__, __LINE__, "an op that admit_descriptor let through");
    }
}
