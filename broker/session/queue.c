/* queue.c: writes that wait for their topic, and refusals that wait to be told when a try may succeed.
 *
 * Happy path of a write with the queue flag
 *   1. Its topic is busy, or others wait for it: the request joins the line of its session (handle) at the
 *      topic. It has left the ring, keeps the copied descriptor and nothing else: its payload stays in the
 *      client's arena, unread, and the log holds nothing of it. Its session's drain goes on.
 *   2. The topic's last batch in progress ends: the log's callback puts the topic on server->ready.
 *   3. queue_turn: the line in front sends its run to the log: all that waits in it, up to QUEUE_RUN writes
 *      or QUEUE_RUN_BYTES, in order. They gather in one group. Then the line goes to the end of the row, and
 *      the topic is busy for the next one; after appends it is not, so the lines behind go on at once.
 *
 *           others wait, or the topic is            the line is in front, the topic
 *           another handle's                        free; taken, or refused
 *      NEW ----------------------------> QUEUED ------------------------------------> in the log, answered
 *       |                                  |  ^
 *       |                       no memory, |  | again, in the order of the row
 *       |                   no space: held |  |
 *       |                                  v  |
 *       |                               in a row of drain.c; the topic waits for its front
 *       |  -EBUSY with MORE                             told TRY_NOW, cancelled, stop
 *       +------------------------------> REFUSED -------------------------------------> answered again
 *
 *   A write without the flag is refused (-EBUSY) while another handle waits, also that of the handle whose
 *   batches are in progress: nobody is passed for ever.
 *
 * Streams: their first chunk waits like a batch. What follows it on the ring is BEHIND it (stream.c), not in
 * line: once the first chunk is taken the others never wait for the topic.
 *
 * Refusals with the notify flag: when the topic is free and nobody is in line, the one refused longest ago is
 * told, once. It may be gone or think better of it, so the next one is told after a pause that doubles, or
 * with the next time that the topic becomes free. Who has no room for a completion is passed over, and keeps
 * its place.
 *
 * Failure modes
 *   - the client is gone: what waits is published, and is committed in its turn. Refusals are dropped.
 *   - hostile, or fenced: queue_drop_session; nothing of it is in the log.
 *   - deadline, cancel: the write leaves its line. If it was in front, the topic is looked at again.
 *   - the arena is changed or punched while its batch waits: the log reads it once, when it takes it, and
 *     takes what is there then, or refuses it. The file cannot shrink, so there is no SIGBUS.
 *   - no memory for the struct of a topic: -EAGAIN, reason MEMORY.
 *
 * Why there is no deadlock
 *   - What waits here holds neither the log's memory nor a topic, so nobody waits for it but those behind it
 *     in line, and a topic whose front waits for memory or log space. Both come back from the log by itself:
 *     a group needs nothing of any client to end. Waiting for memory is one row for all (drain.c), first come
 *     first served, so a front is not starved by rings, nor they by it.
 *   - A topic is busy until its batches end. Whole ones end by themselves. A stream needs its client: its
 *     chunks are never behind a line, a full ring cannot keep the broker from taking them (a waiting write
 *     has left the ring; the pool of requests has one for each credit), and a client that does not send them
 *     is rolled back by the idle limit, one that dies at once, before its own waiting writes are decided.
 *     That the client still has credit and arena for its chunks is the library's care; and if it has not,
 *     the idle limit ends the stream.
 *   - Two clients that each stream to one topic and wait for the other's: neither wait blocks a drain, so
 *     both streams can go on.
 *
 * Invariants
 *   - the topic's word is its struct topic_queue exactly while a line or a refusal is on it.
 *   - a line has one request at least; a session has one line at most at a topic, whatever numbers it has for
 *     it. So no handle gets more turns by opening a topic often. Lines lie in the requests' memory: as many
 *     requests are QUEUED as lines in use at least.
 *   - only the front (first request of the first line) can be in a row. */
#include "session.h"

#define QUEUE_RUN        32u
#define QUEUE_RUN_BYTES  (4u << 20)
#define TELL_PAUSE_LEAST INT64_C(1000000)
#define TELL_PAUSE_MOST  INT64_C(1000000000)
#define BUCKETS_MOST     65536u

static struct topic_queue *queue_at(struct topic *topic)
{
    return *log_topic_word(topic);
}

static void make_ready(struct topic_queue *queue)
{
    queue->server->more = true;
    if (queue->ready)
        return;
    queue->ready = true;
    TAILQ_INSERT_TAIL(&queue->server->ready, queue, link);
    queue->server->ready_count++;
}

static void not_ready(struct topic_queue *queue)
{
    if (!queue->ready)
        return;
    queue->ready = false;
    TAILQ_REMOVE(&queue->server->ready, queue, link);
    queue->server->ready_count--;
}

/* The log's callback: from within io_wait or log_turn. */
static void topic_is_free(void *context, struct topic *topic)
{
    (void)context;
    struct topic_queue *queue = queue_at(topic);
    check_bug(queue != NULL);
    queue->told = false;
    queue->pause_ns = 0;
    make_ready(queue);
}

static struct topic_queue *queue_make(struct server *server, struct topic *topic)
{
    struct topic_queue *queue = queue_at(topic);
    if (queue != NULL)
        return queue;
    queue = calloc(1, sizeof *queue);
    if (queue == NULL)
        return NULL;
    queue->server = server;
    queue->topic = topic;
    TAILQ_INIT(&queue->lines);
    TAILQ_INIT(&queue->refused);
    *log_topic_word(topic) = queue;
    return queue;
}

/* Before the request that waited last is freed: with it the topic's last reference may go. */
static void free_if_idle(struct topic_queue *queue)
{
    if (!TAILQ_EMPTY(&queue->lines) || !TAILQ_EMPTY(&queue->refused))
        return;
    if (queue->gone != NULL)
        *queue->gone = true;
    *log_topic_word(queue->topic) = NULL;
    not_ready(queue);
    deadline_clear(queue->server, &queue->again);
    free(queue);
}

/* ------------------------------------------------------------------------------------- lines */

static struct line_list *bucket_of(const struct line_table *table, const struct session *session,
                                   const struct topic *topic)
{
    uint64_t mixed =
        ((uint64_t)(uintptr_t)session * UINT64_C(0x9e3779b97f4a7c15)) ^ (uint64_t)(uintptr_t)topic;
    mixed *= UINT64_C(0xff51afd7ed558ccd);
    return &table->buckets[(mixed >> 40) & (table->room - 1)];
}

static struct queue_line *line_find(const struct server *server, const struct session *session,
                                    const struct topic *topic)
{
    struct queue_line *line;
    LIST_FOREACH(line, bucket_of(&server->lines, session, topic), same)
    if (line->session == session && line->queue->topic == topic)
        return line;
    return NULL;
}

/* Without memory for more buckets it goes on with those it has. */
static void table_grow(struct line_table *table)
{
    uint32_t room = table->room * 2;
    struct line_list *buckets = calloc(room, sizeof *buckets);
    if (buckets == NULL)
        return;
    struct line_table old = *table;
    table->buckets = buckets;
    table->room = room;
    for (uint32_t i = 0; i < old.room; i++) {
        struct queue_line *line;
        while ((line = LIST_FIRST(&old.buckets[i])) != NULL) {
            LIST_REMOVE(line, same);
            LIST_INSERT_HEAD(bucket_of(table, line->session, line->queue->topic), line, same);
        }
    }
    if (old.buckets != table->least)
        free(old.buckets);
}

static struct queue_line *line_make(struct topic_queue *queue, struct session *session)
{
    struct line_table *table = &queue->server->lines;
    struct queue_line *line = TAILQ_FIRST(&session->line_pool);
    if (line != NULL) {
        TAILQ_REMOVE(&session->line_pool, line, turn);
    } else {
        check_bug(session->lines_used < session->pool_size);
        line = &session->requests[session->lines_used++].line_space;
    }
    *line = (struct queue_line){.session = session, .queue = queue};
    TAILQ_INIT(&line->requests);
    TAILQ_INSERT_TAIL(&queue->lines, line, turn);
    queue->line_count++;
    if (++table->count > table->room && table->room < BUCKETS_MOST)
        table_grow(table);
    LIST_INSERT_HEAD(bucket_of(table, session, queue->topic), line, same);
    return line;
}

static void new_run(struct topic_queue *queue)
{
    queue->run = 0;
    queue->run_bytes = 0;
}

static void line_end(struct queue_line *line)
{
    struct topic_queue *queue = line->queue;
    if (TAILQ_FIRST(&queue->lines) == line)
        new_run(queue);
    TAILQ_REMOVE(&queue->lines, line, turn);
    queue->line_count--;
    queue->server->lines.count--;
    LIST_REMOVE(line, same);
    TAILQ_INSERT_HEAD(&line->session->line_pool, line, turn);
}

/* ------------------------------------------------------------------------------------- joining, leaving */

enum queue_answer queue_ask(const struct request *request)
{
    if (request->stream != NULL && request->stream->stream.admitted)
        return QUEUE_GO; /* its batch is in progress */
    struct topic *topic = request->write.topic;
    const struct topic_queue *queue = queue_at(topic);
    const struct queue_line *first = queue == NULL ? NULL : TAILQ_FIRST(&queue->lines);
    bool busy = log_topic_busy(topic, request->session);
    if (request->may_queue)
        return first != NULL || busy ? QUEUE_WAIT : QUEUE_GO;
    if (first == NULL)
        return QUEUE_GO; /* if it is busy, the log says so */
    /* Behind its own ones that wait for memory it waits, too. */
    bool only_own = first->session == request->session && TAILQ_NEXT(first, turn) == NULL;
    return only_own && !busy ? QUEUE_WAIT : QUEUE_BUSY;
}

int queue_join(struct request *request)
{
    struct session *session = request->session;
    struct server *server = session->server;
    struct topic *topic = request->write.topic;
    check_bug(request->write_state == WRITE_NEW && !request->held);
    struct topic_queue *queue = queue_make(server, topic);
    if (queue == NULL)
        return -ENOMEM;
    int rc = write_watch_deadline(request);
    if (rc != 0) {
        free_if_idle(queue);
        return rc;
    }
    struct queue_line *line = line_find(server, session, topic);
    if (line == NULL)
        line = line_make(queue, session);
    request->write_state = WRITE_QUEUED;
    request->line = line;
    TAILQ_INSERT_TAIL(&line->requests, request, link);
    TAILQ_INSERT_TAIL(&session->waits, request, wait);
    if (request->stream != NULL)
        request->stream->queued = request;
    session->waiting++;
    server->values.session_queued_writes++;
    server->values.session_queued++;
    if (!log_topic_busy(topic, TAILQ_FIRST(&queue->lines)->session))
        make_ready(queue);
    return 0;
}

void queue_leave(struct request *request)
{
    struct session *session = request->session;
    struct queue_line *line = request->line;
    struct topic_queue *queue = line->queue;
    check_bug(request->write_state == WRITE_QUEUED);
    bool front = TAILQ_FIRST(&queue->lines) == line && TAILQ_FIRST(&line->requests) == request;
    TAILQ_REMOVE(&line->requests, request, link);
    TAILQ_REMOVE(&session->waits, request, wait);
    request->write_state = WRITE_NEW;
    request->line = NULL;
    if (request->stream != NULL)
        request->stream->queued = NULL;
    session->waiting--;
    session->server->values.session_queued_writes--;
    if (session->state == SESSION_LEAVING)
        session->server->more = true; /* it may be over now */
    if (TAILQ_EMPTY(&line->requests))
        line_end(line);
    if (front && queue->gone == NULL)
        make_ready(queue);
    free_if_idle(queue);
}

/* How long it may take until a try succeeds: the groups of those that wait before it, and the one in
 * progress. */
uint32_t queue_estimate_us(const struct request *request)
{
    const struct topic_queue *queue = queue_at(request->write.topic);
    uint64_t group_us = (uint64_t)(request->session->server->group_ns / 1000) + 1;
    if (request->write.retry_after_us > group_us)
        group_us = request->write.retry_after_us;
    uint64_t groups = queue == NULL ? 1 : 1 + (uint64_t)queue->line_count;
    return (uint32_t)min_u64(group_us * groups, UINT32_MAX);
}

/* ------------------------------------------------------------------------------------- refusals */

bool queue_note_refusal(struct request *request)
{
    struct session *session = request->session;
    struct server *server = session->server;
    if (session->state != SESSION_LIVE || server->stopping)
        return false;
    struct topic_queue *queue = queue_make(server, request->write.topic);
    if (queue == NULL)
        return false;
    if (request->stream != NULL) { /* the batch is over; its number is the client's again */
        stream_chunk_done(request->stream);
        request->stream = NULL;
    }
    request->write_state = WRITE_REFUSED;
    request->refused_at = queue;
    TAILQ_INSERT_TAIL(&queue->refused, request, link);
    TAILQ_INSERT_TAIL(&session->waits, request, wait);
    session->refusals++;
    server->values.session_waiting_refusals++;
    if (!log_topic_busy(queue->topic, NULL))
        make_ready(queue);
    complete_first(request, -EBUSY, REASON_TOPIC); /* may end the session, and with it the request */
    return true;
}

static void end_refusal(struct request *request, int result, uint32_t flags)
{
    struct session *session = request->session;
    struct topic_queue *queue = request->refused_at;
    check_bug(request->write_state == WRITE_REFUSED);
    TAILQ_REMOVE(&queue->refused, request, link);
    TAILQ_REMOVE(&session->waits, request, wait);
    request->write_state = WRITE_NEW;
    request->refused_at = NULL;
    session->refusals--;
    session->server->values.session_waiting_refusals--;
    free_if_idle(queue);
    complete_second(request, result, flags);
}

static void tell_again(struct server *server, struct deadline *deadline)
{
    (void)server;
    struct topic_queue *queue = container_of(deadline, struct topic_queue, again);
    queue->told = false;
    make_ready(queue);
}

/* One at a time. */
static void tell_longest_refused(struct topic_queue *queue)
{
    struct server *server = queue->server;
    if (queue->told || !TAILQ_EMPTY(&queue->lines) || TAILQ_EMPTY(&queue->refused) ||
        log_topic_busy(queue->topic, NULL))
        return;
    struct request *request;
    TAILQ_FOREACH(request, &queue->refused, link)
    if (request->session->state == SESSION_LIVE && complete_has_room(request->session))
        break;
    queue->told = true;
    queue->pause_ns = queue->pause_ns == 0 ? TELL_PAUSE_LEAST : queue->pause_ns * 2;
    if (queue->pause_ns < 2 * server->group_ns)
        queue->pause_ns = 2 * server->group_ns;
    if (queue->pause_ns > TELL_PAUSE_MOST)
        queue->pause_ns = TELL_PAUSE_MOST;
    deadline_clear(server, &queue->again);
    if (deadline_set(server, &queue->again, io_now(server->io) + queue->pause_ns, tell_again) != 0) {
        queue->told = false; /* no memory for a pause: the next one at once */
        make_ready(queue);
    }
    if (request != NULL) {
        server->values.session_told++;
        end_refusal(request, 0, COMPLETION_TRY_NOW);
    }
}

/* ------------------------------------------------------------------------------------- turns */

/* After the front's write was decided: `line` may be gone. */
static void count_run(struct topic_queue *queue, struct queue_line *line, uint32_t bytes)
{
    if (TAILQ_FIRST(&queue->lines) != line)
        return; /* ended, and line_end began to count anew */
    queue->run++;
    queue->run_bytes += bytes;
    if (queue->run < QUEUE_RUN && queue->run_bytes < QUEUE_RUN_BYTES)
        return;
    new_run(queue);
    TAILQ_REMOVE(&queue->lines, line, turn);
    TAILQ_INSERT_TAIL(&queue->lines, line, turn);
}

/* The front line's run and, as long as the topic lets them, those of the lines behind. false: `retried`, the
 * front that had been held, found no room again. */
static bool serve(struct topic_queue *queue, struct request *retried)
{
    bool gone = false;
    uint64_t most = (uint64_t)queue->line_count * QUEUE_RUN;
    queue->gone = &gone;
    for (; most > 0 && !TAILQ_EMPTY(&queue->lines); most--) {
        struct queue_line *line = TAILQ_FIRST(&queue->lines);
        struct request *request = TAILQ_FIRST(&line->requests);
        struct stream_slot *slot = request->stream;
        uint32_t bytes = request->write.payload_bytes;
        if (request->held || log_topic_busy(queue->topic, line->session))
            break;
        enum admission admission = ADMIT_LATER;
        if (request == retried || !write_must_hold(request))
            admission = admit_write(request);
        if (admission == ADMIT_LATER && request == retried) {
            queue->gone = NULL;
            return false;
        }
        if (admission == ADMIT_LATER) {
            write_hold(request);
            break;
        }
        if (admission == ADMIT_BUSY) { /* the log knows better: again in the next turn */
            make_ready(queue);
            break;
        }
        if (slot != NULL)
            stream_go_on(slot, NULL);
        if (gone)
            return true;
        count_run(queue, line, bytes);
    }
    if (most == 0 && !TAILQ_EMPTY(&queue->lines))
        make_ready(queue);
    queue->gone = NULL;
    tell_longest_refused(queue);
    return true;
}

bool queue_retry(struct request *request)
{
    return serve(request->line->queue, request);
}

static void end_refusals(struct session *session, int result)
{
    struct request *request;
    struct request *next;
    for (request = TAILQ_FIRST(&session->waits); request != NULL; request = next) {
        next = TAILQ_NEXT(request, wait);
        if (request->write_state == WRITE_REFUSED)
            end_refusal(request, result, 0);
        if (session->state == SESSION_ENDED) /* the answer was one too many: nothing waits any more */
            return;
    }
}

void queue_leaving(struct session *session)
{
    if (session->refusals > 0)
        end_refusals(session, -ECANCELED);
}

/* ------------------------------------------------------------------------------------- of a session */

void queue_drop_session(struct session *session, int result)
{
    struct request *request;
    while ((request = TAILQ_FIRST(&session->waits)) != NULL) {
        if (request->write_state == WRITE_REFUSED)
            end_refusal(request, result, 0);
        else
            write_end(request, result, REASON_NONE); /* of a stream: all its chunks */
    }
}

/* Of a stream whose first chunk waits, any chunk may be named. */
static bool goes_by(const struct request *request, uint64_t user_data)
{
    if (request->user_data == user_data)
        return true;
    const struct request *chunk;
    if (request->write_state == WRITE_QUEUED && request->stream != NULL)
        TAILQ_FOREACH(chunk, &request->stream->behind, link)
    if (chunk->user_data == user_data)
        return true;
    return false;
}

int queue_cancel(struct session *session, uint64_t user_data, enum write_state state)
{
    struct request *request;
    TAILQ_FOREACH(request, &session->waits, wait)
    if (request->write_state == state && goes_by(request, user_data))
        break;
    if (request == NULL)
        return -ENOENT;
    if (state == WRITE_REFUSED)
        end_refusal(request, -ECANCELED, 0);
    else
        write_end(request, -ECANCELED, REASON_NONE);
    session->server->values.session_cancelled++;
    return 0;
}

bool queue_has_number(const struct session *session, const struct topic *topic, uint64_t number)
{
    const struct request *request;
    const struct request *chunk;
    TAILQ_FOREACH(request, &session->waits, wait)
    {
        if (request->write_state != WRITE_QUEUED || request->write.topic != topic)
            continue;
        if (request->write.number == number)
            return true;
        if (request->stream != NULL)
            TAILQ_FOREACH(chunk, &request->stream->behind, link)
        if (chunk->write.number == number)
            return true;
    }
    return false;
}

/* ------------------------------------------------------------------------------------- of the server */

void queue_turn(struct server *server)
{
    if (server->stopping) { /* nobody will be told any more */
        struct session *next;
        for (struct session *session = TAILQ_FIRST(&server->sessions); session != NULL; session = next) {
            next = TAILQ_NEXT(session, all);
            end_refusals(session, -ESHUTDOWN);
        }
    }
    for (uint64_t most = server->ready_count; most > 0 && !TAILQ_EMPTY(&server->ready); most--) {
        struct topic_queue *queue = TAILQ_FIRST(&server->ready);
        not_ready(queue);
        serve(queue, NULL);
    }
}

void queue_start(struct server *server)
{
    server->lines.buckets = server->lines.least;
    server->lines.room = array_count(server->lines.least);
    TAILQ_INIT(&server->ready);
    log_on_topic_free(server->log, topic_is_free, NULL);
}

void queue_stop(struct server *server)
{
    check_bug(server->lines.count == 0 && server->ready_count == 0);
    if (server->lines.buckets != server->lines.least)
        free(server->lines.buckets);
    deadline_free(server);
}
