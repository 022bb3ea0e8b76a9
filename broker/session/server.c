/* server.c: the loop's body.
 *
 * One turn
 *   1. Is there anything to do without waiting? If not: look at the rings for a while if that has paid lately
 *      (spin.c); else park every session and sleep in io_wait, which ends when an op completes, something in
 *      the epoll set is ready, or the earliest deadline passes.
 *   2. epoll: connections, hellos, doorbells, hang-ups. Skipped in most turns of a busy loop: it is a system
 *      call.
 *   3. Signals for what io_wait completed.
 *   4. Deadlines, writes whose topic has become free, held writes, then the rings (drain.c), then reads.
 *   5. log_turn: seals and submits. Held writes once more, since a sealed group has made room.
 *   6. Signals for what 4 and 5 answered.
 *   7. Those who waited for a producer whose holder is decided now are welcomed; sessions that ended are
 *      freed; the counters file is brought up to date.
 *
 * Failure modes: log_failed after any call into the log ends the turn with -EIO; nothing is posted or
 * signalled after it.
 *
 * Invariants
 *   - the loop never sleeps while a session is active that is neither blocked nor parked with the second look
 *     (drain.c).
 *   - every sleep has a reason to end: an op in flight, a descriptor, a deadline. */
#include "session.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#define EVENTS_PER_POLL    64
#define TURNS_BETWEEN_POLL 16u
#define STAT_PERIOD_NS     INT64_C(20000000)
#define MEMORY_RETRY_NS    INT64_C(10000000)
#define NS_PER_SECOND      INT64_C(1000000000)

/* ------------------------------------------------------------------------------------- events */

int server_watch(struct server *server, struct watch *watch, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = watch};
    return epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, watch->fd, &event) == 0 ? 0 : -errno;
}

void server_unwatch(struct server *server, struct watch *watch)
{
    int rc = epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
    check_bug(rc == 0);
}

void server_poll_events(struct server *server)
{
    struct epoll_event events[EVENTS_PER_POLL];
    server->turns_since_poll = 0;
    int count = epoll_wait(server->epoll_fd, events, EVENTS_PER_POLL, 0);
    for (int i = 0; i < count; i++) {
        struct watch *watch = events[i].data.ptr;
        watch->ready(watch, events[i].events);
    }
    if (count == EVENTS_PER_POLL)
        server->more = true;
    if (count > 0)
        server->stat_dirty = true;
}

/* ------------------------------------------------------------------------------------- sleeping */

static int64_t earliest_deadline(const struct server *server)
{
    int64_t deadline = server->log_deadline;
    const struct handshake *handshake = TAILQ_FIRST(&server->handshakes);
    if (handshake != NULL && handshake->deadline_ns < deadline)
        deadline = handshake->deadline_ns;
    handshake = TAILQ_FIRST(&server->waiting);
    if (handshake != NULL && handshake->deadline_ns < deadline)
        deadline = handshake->deadline_ns;
    int64_t next = deadline_next(server);
    if (next < deadline)
        deadline = next;
    next = share_deadline(server);
    if (next < deadline)
        deadline = next;
    int64_t idle = stream_idle_deadline(server);
    if (idle < deadline)
        deadline = idle;
    if (server->listener_paused_until != 0 && server->listener_paused_until < deadline)
        deadline = server->listener_paused_until;
    if (server->options.stat != NULL && server->stat_dirty &&
        server->stat_written_ns + STAT_PERIOD_NS < deadline)
        deadline = server->stat_written_ns + STAT_PERIOD_NS;
    return deadline;
}

static bool anything_held(const struct server *server)
{
    return !TAILQ_EMPTY(&server->held[0]) || !TAILQ_EMPTY(&server->held[1]);
}

/* io_wait, without sleeping if there is something to do. */
static void wait_for_work(struct server *server)
{
    int64_t now = server->turn_ended_ns;
    int64_t timeout = 0;
    int64_t wake_by = INT64_MAX;
    if (!server->more && !spin_until_work(server, now) && drain_park_all(server)) {
        now = io_now(server->io);
        wake_by = earliest_deadline(server);
        if (anything_held(server) && wake_by > now + MEMORY_RETRY_NS)
            wake_by = now + MEMORY_RETRY_NS; /* room comes with a completion; this is only a belt */
        timeout = wake_by == INT64_MAX ? -1 : wake_by - now;
        if (timeout < 0 && wake_by != INT64_MAX)
            timeout = 0;
    }
    if (timeout != 0) {
        server->values.loop_sleeps++;
        if (server->options.stat != NULL)
            stat_page_loop(server->options.stat, STAT_LOOP_ASLEEP, now, wake_by);
    }
    io_wait(server->io, timeout);
    server->turn_started_ns = io_now(server->io);
    if (timeout != 0) {
        server->turns_since_poll = TURNS_BETWEEN_POLL; /* a sleep may have ended for a descriptor */
        if (server->options.stat != NULL)
            stat_page_loop(server->options.stat, STAT_LOOP_AWAKE, server->turn_started_ns, 0);
    }
}

/* ------------------------------------------------------------------------------------- the turn */

static void run_deadlines(struct server *server, int64_t now)
{
    handshake_expire(server, now);
    stream_abort_idle(server, now);
    if (server->listener_paused_until != 0 && server->listener_paused_until <= now && !server->stopping) {
        server->listener_paused_until = 0;
        if (server_watch(server, &server->listener, EPOLLIN) != 0)
            server->listener_paused_until = now + NS_PER_SECOND;
    }
}

static void turn_stats(struct server *server, int64_t now)
{
    uint64_t took = (uint64_t)(now - server->turn_started_ns);
    struct stat_values *values = &server->values;
    values->loop_turns++;
    if (took > values->loop_turn_longest)
        values->loop_turn_longest = took;
    values->loop_turns_over_1ms += took > 1000000;
    values->loop_turns_over_10ms += took > 10000000;
    values->loop_turns_over_100ms += took > 100000000;
    values->loop_turns_over_1s += took > 1000000000;
    if (server->stat_dirty && now - server->stat_written_ns >= STAT_PERIOD_NS)
        stat_turn(server, now);
}

int server_turn(struct server *server)
{
    uint64_t drained = server->values.session_descriptors_drained;
    if (log_failed(server->log) != NULL)
        return -EIO;
    wait_for_work(server);
    if (log_failed(server->log) != NULL)
        return -EIO;
    server->more = false;
    complete_signals(server);
    bool quick = !anything_held(server) && TAILQ_EMPTY(&server->ready);
    if (++server->turns_since_poll >= TURNS_BETWEEN_POLL) {
        quick = false;
        server_poll_events(server);
        run_deadlines(server, server->turn_started_ns);
        spin_place(server, server->turn_started_ns);
    }
    deadline_turn(server, server->turn_started_ns);
    queue_turn(server);
    drain_retry_held(server);
    server->drained_ns = quick ? server->turn_started_ns : 0; /* that was a moment ago */
    server->drained_bytes = 0;
    drain_all(server);
    read_turn(server);

    server->log_deadline = log_turn(server->log);
    if (log_failed(server->log) != NULL)
        return -EIO;
    if (anything_held(server)) {
        drain_retry_held(server);
        if (server->more)
            server->log_deadline = log_turn(server->log);
        if (log_failed(server->log) != NULL)
            return -EIO;
    }
    complete_signals(server);
    producer_turn(server);
    session_reap_ended(server);
    handshake_free_over(server);
    server->turn_ended_ns = io_now(server->io);
    spin_learn(server, drained != server->values.session_descriptors_drained);
    turn_stats(server, server->turn_ended_ns);
    return 0;
}

/* ------------------------------------------------------------------------------------- start */

static uint64_t half_of_memory(void)
{
    long pages = sysconf(_SC_PHYS_PAGES);
    long page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page / 2 : UINT64_C(1) << 30;
}

/* Four descriptors for each connection, and some for the log and the program. */
static uint32_t connections_possible(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < 256)
        return 32;
    uint64_t possible = (limit.rlim_cur - 128) / 4;
    return possible > 4096 ? 4096 : (uint32_t)possible;
}

#define OWN_WATERMARKS 64u

static void fill_defaults(struct server_options *options)
{
    if (options->handshake_ns == 0)
        options->handshake_ns = 5 * NS_PER_SECOND;
    if (options->idle_stream_ns == 0)
        options->idle_stream_ns = 30 * NS_PER_SECOND;
    if (options->max_connections == 0)
        options->max_connections = connections_possible();
    if (options->max_connections_of_uid == 0)
        options->max_connections_of_uid = options->max_connections - options->max_connections / 4;
    if (options->attach_ns == 0)
        options->attach_ns = 30 * NS_PER_SECOND;
    if (options->max_queue == 0)
        options->max_queue = UINT64_C(1048576);
    if (options->max_queue_of_uid == 0)
        options->max_queue_of_uid = options->max_queue - options->max_queue / 4;
    if (options->max_batch_bytes == 0)
        options->max_batch_bytes = MAX_BATCH_BYTES;
    if (options->max_shared == 0)
        options->max_shared = half_of_memory();
    if (options->max_shared_of_uid == 0)
        options->max_shared_of_uid = options->max_shared / 2;
}

static int take_watermarks(struct server *server, struct error *err)
{
    server->own_watermarks = (struct watermarks){.fd = -1};
    if (server->options.watermarks == NULL) {
        int rc = watermarks_create(OWN_WATERMARKS, &server->own_watermarks, err);
        if (rc != 0)
            return rc;
        server->watermarks = server->own_watermarks;
    } else {
        server->watermarks = *server->options.watermarks;
    }
    return 0;
}

static void drop_watermarks(struct server *server)
{
    if (server->own_watermarks.fd >= 0)
        watermarks_destroy(&server->own_watermarks);
}

int server_create(const struct server_options *options, struct server **out, struct error *err)
{
    struct server *server = calloc(1, sizeof *server);
    if (server == NULL)
        return error_set(err, -ENOMEM, "the broker is out of memory");
    server->options = *options;
    fill_defaults(&server->options);
    server->io = options->io;
    server->log = options->log;
    server->epoll_fd = options->epoll_fd;
    server->log_deadline = INT64_MAX;
    server->listener = (struct watch){.ready = handshake_listen, .fd = options->listen_fd};
    TAILQ_INIT(&server->accounts);
    TAILQ_INIT(&server->handshakes);
    TAILQ_INIT(&server->filling);
    TAILQ_INIT(&server->waiting);
    TAILQ_INIT(&server->over);
    TAILQ_INIT(&server->sessions);
    TAILQ_INIT(&server->active);
    TAILQ_INIT(&server->touched);
    TAILQ_INIT(&server->held[0]);
    TAILQ_INIT(&server->held[1]);
    TAILQ_INIT(&server->readers);
    TAILQ_INIT(&server->contested);
    TAILQ_INIT(&server->ended);
    TAILQ_INIT(&server->streams);
    struct log_stats stats;
    log_stats(server->log, &stats);
    server->epoch = stats.epoch;
    spin_start(server);
    queue_start(server);
    rights_start(server);
    memory_start(server);
    server->turn_started_ns = server->turn_ended_ns = io_now(server->io);
    int rc;
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (server->spare_fd < 0) {
        rc = error_set(err, -errno, "cannot open /dev/null: %s", strerror(errno));
        goto free_server;
    }
    rc = take_watermarks(server, err);
    if (rc != 0)
        goto close_spare;
    rc = server_watch(server, &server->listener, EPOLLIN);
    if (rc != 0) {
        error_set(err, rc, "cannot watch the socket: %s", strerror(-rc));
        goto drop_watermarks;
    }
    server->more = true; /* the first turn looks around */
    server->stat_dirty = true;
    server->turns_since_poll = TURNS_BETWEEN_POLL;
    *out = server;
    return 0;

drop_watermarks:
    drop_watermarks(server);
close_spare:
    close(server->spare_fd);
free_server:
    spin_stop(server);
    free(server);
    return rc;
}

const struct stat_values *server_values(const struct server *server)
{
    return &server->values;
}

/* ------------------------------------------------------------------------------------- stop */

static void note_final_tails(struct server *server)
{
    struct session *session;
    struct session *next;
    for (session = TAILQ_FIRST(&server->sessions); session != NULL; session = next) {
        next = TAILQ_NEXT(session, all);
        if (session->state != SESSION_LIVE)
            continue;
        if (ring_refresh_filled(&session->sq) < 0) {
            session_hostile(session, "published an impossible number of descriptors");
            continue;
        }
        session->final_tail = session->sq.mirror.p_tail;
        session_activate(session);
    }
}

/* Nothing of a session is in the log, and everything noted is taken. */
static bool all_answered(const struct server *server)
{
    const struct session *session;
    TAILQ_FOREACH(session, &server->sessions, all)
    if (session->state == SESSION_LEAVING || session->inflight != 0 ||
        session->sq.mirror.c_head != session->final_tail)
        return false;
    return TAILQ_EMPTY(&server->ended);
}

static void stop_accepting(struct server *server)
{
    if (server->listener_paused_until == 0)
        server_unwatch(server, &server->listener);
    server->listener_paused_until = 0;
    close(server->listener.fd);
    server->listener.fd = -1;
    handshake_end_all(server);
}

/* Follows have no end of their own. */
static void end_reads(struct server *server)
{
    struct session *session;
    struct session *next;
    for (session = TAILQ_FIRST(&server->sessions); session != NULL; session = next) {
        next = TAILQ_NEXT(session, all);
        read_end_all(session, -ESHUTDOWN);
    }
}

static bool all_drained(const struct server *server)
{
    const struct session *session;
    TAILQ_FOREACH(session, &server->sessions, all)
    if (session->sq.mirror.c_head != session->final_tail || session->held != NULL)
        return false;
    return true;
}

static void abort_streams(struct server *server)
{
    struct session *session;
    TAILQ_FOREACH(session, &server->sessions, all)
    stream_abort_unfinished(session);
}

int server_stop(struct server *server, int64_t patience_ns)
{
    int64_t deadline = io_now(server->io) + patience_ns;
    if (server->options.stat != NULL)
        stat_page_loop(server->options.stat, STAT_LOOP_STOPPING, io_now(server->io), 0);
    stop_accepting(server);
    server->stopping = true;
    note_final_tails(server);
    end_reads(server);
    bool aborted = false;
    while (!all_answered(server)) {
        server->more = true; /* turns that do not sleep long: the deadline is ours */
        int rc = server_turn(server);
        if (rc != 0)
            return rc;
        end_reads(server);
        if (!aborted && all_drained(server)) {
            abort_streams(server); /* what has no last chunk by now will never be whole */
            aborted = true;
        }
        if (io_now(server->io) >= deadline)
            return -ETIMEDOUT;
        if (!all_answered(server))
            io_wait(server->io, 1000000);
    }
    if (!aborted)
        abort_streams(server);
    struct session *session;
    TAILQ_FOREACH(session, &server->sessions, all)
    {
        session_topics_release(session);
        producer_release(session);
    }
    server->log_gone = true;
    stat_turn(server, io_now(server->io));
    return 0;
}

/* What was published after the stop began. */
static void answer_rest(struct session *session)
{
    struct descriptor descriptor;
    uint32_t most = ring_capacity(&session->sq);
    while (session->state == SESSION_LIVE && most-- > 0 &&
           ring_pop_descriptor(&session->sq, &descriptor) == 1) {
        session->outstanding++;
        complete_result(session, &descriptor, io_now(session->server->io), -ESHUTDOWN, REASON_NONE);
    }
}

void server_destroy(struct server *server)
{
    check_bug(server->log_gone);
    struct session *session;
    struct session *next;
    for (session = TAILQ_FIRST(&server->sessions); session != NULL; session = next) {
        next = TAILQ_NEXT(session, all);
        answer_rest(session);
    }
    complete_signals(server);
    while ((session = TAILQ_FIRST(&server->sessions)) != NULL)
        session_end(session);
    session_reap_ended(server);
    while (!TAILQ_EMPTY(&server->ended)) { /* signals on their way: taken back by now */
        io_wait(server->io, 10000000);
        session_reap_ended(server);
    }
    handshake_free_over(server);
    queue_stop(server);
    memory_stop(server);
    check_bug(TAILQ_EMPTY(&server->accounts));
    drop_watermarks(server);
    if (server->spare_fd >= 0) /* it may have been given up for good */
        close(server->spare_fd);
    spin_stop(server);
    free(server);
}
