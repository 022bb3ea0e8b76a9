/* read.c: reads of entries and of the list of topics, into a session's window (step 8).
 *
 * Happy path
 *   1. A read joins its session's queue. One at a time goes on: the window then has one writer.
 *   2. Space: what the client has not released is behind `window_tail`; the free bytes in front of it that do
 *      not wrap are given to log_read, or those behind the window's end if there are more of them.
 *   3. log_read's `done`: the bytes used move window_tail on; the completion says where they are.
 *   4. Nothing there yet and FOLLOW: the request waits on the topic's list and costs nothing until wake().
 *
 * Failure modes: no free window -> -EAGAIN, reason WINDOW; a topic nobody has written to -> -ENOENT (with
 * FOLLOW it is waited for); window_head beyond what was given out -> hostile. The client is gone or cancels:
 * what is queued or waits ends at once, what is in the log ends when it comes back.
 *
 * Invariants: window_head is read once per read, and only compared. log.h's functions are not called from
 * within its callbacks, except to join or leave a list of waiters. */
#include "session.h"

static void want_turn(struct session *session)
{
    if (session->has_reads || session->reading != NULL || TAILQ_EMPTY(&session->reads))
        return;
    session->has_reads = true;
    TAILQ_INSERT_TAIL(&session->server->readers, session, reader);
    session->server->more = true;
}

static void enqueue(struct request *request)
{
    request->read_state = READ_QUEUED;
    TAILQ_INSERT_TAIL(&request->session->reads, request, link);
    want_turn(request->session);
}

/* ------------------------------------------------------------------------------------- window */

struct space {
    uint64_t at; /* free-running */
    uint32_t bytes;
};

/* 0; -EAGAIN no room; -EPROTO the session was ended. `want`: more than that is of no use. */
static int window_space(struct session *session, uint64_t want, struct space *space)
{
    uint64_t size = session->sizes.window_bytes;
    uint64_t head = __atomic_load_n(&session->client->window_head, __ATOMIC_ACQUIRE);
    uint64_t used = session->window_tail - head;
    if (used > size) {
        session_hostile(session, "released window space it was never given");
        return -EPROTO;
    }
    uint64_t room = size - used;
    uint64_t to_end = size - (session->window_tail & (size - 1));
    uint64_t here = min_u64(room, to_end);
    uint64_t behind = room > to_end ? room - to_end : 0;
    bool skip = here < want && behind > here;
    uint64_t bytes = skip ? behind : here;
    if (bytes < READ_BUFFER_LEAST)
        return -EAGAIN;
    space->at = session->window_tail + (skip ? to_end : 0);
    space->bytes = (uint32_t)bytes;
    return 0;
}

static uint8_t *window_at(struct session *session, uint64_t at)
{
    return session->window + (at & (session->sizes.window_bytes - 1));
}

/* ------------------------------------------------------------------------------------- entries */

static void woken(struct topic_waiter *waiter)
{
    struct request *request = container_of(waiter, struct request, waiter);
    struct session *session = request->session;
    TAILQ_REMOVE(&session->followers, request, link);
    session->server->values.session_pending_reads--;
    enqueue(request);
}

static void wait_for_more(struct request *request)
{
    struct session *session = request->session;
    request->read_state = READ_WAITING;
    request->waiter = (struct topic_waiter){.wake = woken};
    TAILQ_INSERT_TAIL(&session->followers, request, link);
    session->server->values.session_pending_reads++;
    log_topic_wait(session->topics[request->topic].topic, &request->waiter);
}

static void answer_read(struct request *request)
{
    struct session *session = request->session;
    const struct log_read *read = &request->read;
    struct completion completion = {
        .user_data = request->user_data,
        .result = read->result,
        .flags = read->result > 0 && read->unstable ? COMPLETION_UNSTABLE : 0,
        .first_sequence = read->first_sequence,
        .published_ns = request->published_ns,
        .drained_ns = request->drained_ns,
        .next_sequence = read->next_sequence,
        .end_sequence = read->end_sequence,
    };
    if (read->result > 0) {
        check_bug(read->used <= read->buffer_bytes && read->used % PAYLOAD_ALIGN == 0);
        completion.window_at = request->window_at;
        completion.window_bytes = read->used;
        session->window_tail = request->window_at + read->used;
    }
    complete_post(session, &completion);
    request_free(request);
}

static void read_done(struct log_read *read)
{
    struct request *request = container_of(read, struct request, read);
    struct session *session = request->session;
    check_bug(session->reading == request);
    session->reading = NULL;
    if (session->state != SESSION_LIVE) {
        complete_request(request, -ECANCELED, REASON_NONE);
        return;
    }
    if (read->result != 0 || !request->follow) {
        answer_read(request);
    } else if (request->cancelled || session->server->stopping) {
        complete_request(request, request->cancelled ? -ECANCELED : -ESHUTDOWN, REASON_NONE);
    } else {
        struct topic_view view;
        log_topic_view(session->topics[request->topic].topic, &view);
        if (view.visible_next != read->end_sequence)
            enqueue(request); /* something came since */
        else
            wait_for_more(request);
    }
    want_turn(session);
}

static void start_entries(struct request *request)
{
    struct session *session = request->session;
    struct log_read *read = &request->read;
    struct topic_view view;
    log_topic_view(read->topic, &view);
    if (view.id == 0) {
        if (request->follow)
            wait_for_more(request);
        else
            complete_request(request, -ENOENT, REASON_NONE);
        return;
    }
    uint64_t records = (uint64_t)read->max_entries * (sizeof(struct run) + sizeof(struct entry_record));
    struct space space;
    int rc = window_space(session, read->max_bytes + records, &space);
    if (rc != 0) {
        complete_request(request, rc, rc == -EAGAIN ? REASON_WINDOW : REASON_NONE);
        return;
    }
    request->window_at = space.at;
    read->buffer = window_at(session, space.at);
    read->buffer_bytes = space.bytes;
    request->read_state = READ_IN_LOG;
    session->reading = request;
    log_read(session->server->log, read);
}

/* ------------------------------------------------------------------------------------- topics */

static uint32_t put_topic(uint8_t *to, uint32_t room, const struct topic_view *view)
{
    uint32_t bytes = (uint32_t)align_up(sizeof(struct topic_record) + view->name_length, PAYLOAD_ALIGN);
    if (bytes > room)
        return 0;
    struct topic_record record = {
        .bytes = bytes,
        .name_bytes = (uint32_t)view->name_length,
        .id = view->id,
        .next_sequence = view->visible_next,
        .durable_next = view->durable_next,
        .level = view->level,
    };
    memset(to, 0, bytes);
    memcpy(to, &record, sizeof record);
    memcpy(to + sizeof record, view->name, view->name_length);
    return bytes;
}

static void answer_topics(struct request *request)
{
    struct session *session = request->session;
    struct space space;
    int rc = window_space(session, session->sizes.window_bytes, &space);
    if (rc != 0) {
        complete_request(request, rc, rc == -EAGAIN ? REASON_WINDOW : REASON_NONE);
        return;
    }
    struct completion completion = {.user_data = request->user_data,
                                    .published_ns = request->published_ns,
                                    .drained_ns = request->drained_ns,
                                    .window_at = space.at,
                                    .number = request->after};
    uint32_t after = request->after > UINT32_MAX ? UINT32_MAX : (uint32_t)request->after;
    struct topic *topic;
    while (completion.result < (int)TOPICS_PER_ANSWER &&
           (topic = log_topic_after(session->server->log, after)) != NULL) {
        struct topic_view view;
        log_topic_view(topic, &view);
        check_bug(view.id > after);
        uint32_t bytes = put_topic(window_at(session, space.at) + completion.window_bytes,
                                   space.bytes - completion.window_bytes, &view);
        if (bytes == 0)
            break;
        completion.window_bytes += bytes;
        completion.result++;
        completion.number = after = view.id;
    }
    if (completion.result > 0)
        session->window_tail = space.at + completion.window_bytes;
    complete_post(session, &completion);
    request_free(request);
}

/* ------------------------------------------------------------------------------------- requests */

void read_start(struct request *request, const struct descriptor *d)
{
    struct session *session = request->session;
    if (request->kind == REQUEST_TOPICS) {
        request->after = d->number;
    } else {
        uint64_t most = session->sizes.window_bytes;
        request->read = (struct log_read){
            .topic = session->topics[request->topic].topic,
            .from = d->number,
            .entry_offset = (uint64_t)d->entry_offset_4k * 4096,
            .max_entries = d->max_entries == 0 ? MAX_BATCH_ENTRIES : d->max_entries,
            .max_bytes = d->max_bytes == 0 || d->max_bytes > most ? (uint32_t)most : d->max_bytes,
            .done = read_done,
            .owner = request,
        };
    }
    enqueue(request);
}

/* The sessions that were on the list when the turn began, one read each. */
void read_turn(struct server *server)
{
    struct session *last = TAILQ_LAST(&server->readers, session_list);
    struct session *session;
    while (last != NULL && (session = TAILQ_FIRST(&server->readers)) != NULL) {
        TAILQ_REMOVE(&server->readers, session, reader);
        session->has_reads = false;
        struct request *request = TAILQ_FIRST(&session->reads);
        if (request != NULL && session->reading == NULL) {
            TAILQ_REMOVE(&session->reads, request, link);
            if (request->kind == REQUEST_TOPICS)
                answer_topics(request);
            else
                start_entries(request);
            want_turn(session);
        }
        if (session == last)
            break;
    }
}

static void end_waiting(struct request *request, int result)
{
    struct session *session = request->session;
    log_topic_wait_cancel(&request->waiter);
    TAILQ_REMOVE(&session->followers, request, link);
    session->server->values.session_pending_reads--;
    complete_request(request, result, REASON_NONE);
}

int read_cancel(struct session *session, uint64_t user_data)
{
    struct request *request;
    TAILQ_FOREACH(request, &session->followers, link)
    if (request->user_data == user_data)
        break;
    if (request != NULL) {
        end_waiting(request, -ECANCELED);
        return 0;
    }
    if (session->reading != NULL && session->reading->follow && session->reading->user_data == user_data) {
        session->reading->cancelled = true;
        return 0;
    }
    TAILQ_FOREACH(request, &session->reads, link)
    if (request->follow && request->user_data == user_data)
        break;
    if (request == NULL)
        return -ENOENT;
    TAILQ_REMOVE(&session->reads, request, link);
    complete_request(request, -ECANCELED, REASON_NONE);
    return 0;
}

void read_end_all(struct session *session, int result)
{
    struct request *request;
    while ((request = TAILQ_FIRST(&session->followers)) != NULL)
        end_waiting(request, result);
    while ((request = TAILQ_FIRST(&session->reads)) != NULL) {
        TAILQ_REMOVE(&session->reads, request, link);
        complete_request(request, result, REASON_NONE);
    }
}
