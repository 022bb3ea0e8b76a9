/* producer.c: who holds a producer, and how it passes on.
 *
 * A producer (a name, or an anonymous id) has one holder at a time: the session that log_producer_word names.
 * Its numbers go on only once it is known what became of everything that the former holder had published; so
 * a new holder is welcomed no earlier than that.
 *
 * The session that holds it
 *
 *                  another connection takes           drained to             no write of it
 *                  over: its tail is noted            that tail               is undecided
 *      HOLDS ---------------------------> FENCING ---------------> FENCED ----------------> DECIDED
 *        |                                                                                     ^
 *        |  client gone: LEAVING, drained to the tail noted then, ENDED    no write of it      |
 *        +-----------------------------------------------------------------is undecided -------+
 *
 *   FENCING  what was published before the take-over is taken as ever
 *   FENCED   what waited for a topic was answered -ESTALE, unfinished streams are rolled back; whatever the
 *            client sends from here on is answered -ESTALE (admission.c); its connection stays
 *   DECIDED  the word is cleared, the first one in the row is welcomed and holds the producer; the next one
 *            in the row takes it over from that one at once
 *
 * Happy path
 *   1. The hello names a producer, the log finds or makes it.
 *   2. Nobody holds it: the session is made and holds it.
 *   3. A holder whose client is gone, or that is taken over: the handshake waits in the row of the holder,
 *      beside the loop, until producer_turn finds the holder decided.
 *
 * Failure modes
 *   - a living holder and no take-over, or somebody waits already: -EBUSY, with the pid.
 *   - a waiting client hangs up, or the deadline passes (-EBUSY), or the broker stops (-ESHUTDOWN): it leaves
 *     the row. A fence that was begun stays: the old holder has been told -ESTALE.
 *
 * Invariants
 *   - a producer's word is NULL, or a session that has not been freed.
 *   - all but the first in a row asked to take over. */
#include "session.h"

#include <poll.h>

static struct session *holder_of(struct producer *producer)
{
    return *log_producer_word(producer);
}

/* ------------------------------------------------------------------------------------- words */

struct producer_label {
    char text[MAX_PRODUCER_NAME + 32];
};

static struct producer_label label_of(const struct hello *hello)
{
    struct producer_label label;
    if (hello->name_bytes > 0)
        snprintf(label.text, sizeof label.text, "producer \"%.*s\"", (int)hello->name_bytes, hello->name);
    else
        snprintf(label.text, sizeof label.text, "anonymous producer %llu",
                 (unsigned long long)hello->producer);
    return label;
}

static int busy(const struct hello *hello, const struct session *holder, struct error *err)
{
    struct producer_label label = label_of(hello);
    const struct handshake *waits = TAILQ_LAST(&holder->waiters, handshake_row);
    if (waits != NULL)
        return error_set(
            err, -EBUSY,
            "%s is being attached by pid %d (uid %u): end it, or take over with WALRUS_TAKE_OVER", label.text,
            (int)waits->pid, (unsigned)waits->account->uid);
    return error_set(err, -EBUSY, "%s is held by pid %d (uid %u): end it, or take over with WALRUS_TAKE_OVER",
                     label.text, (int)holder->pid, (unsigned)holder->account->uid);
}

static int refused_by_log(const struct hello *hello, int rc, struct error *err)
{
    struct producer_label label = label_of(hello);
    switch (rc) {
    case -EINVAL:
        return error_set(err, rc,
                         "the producer's name is not 1 to %u bytes without NUL and control characters",
                         MAX_PRODUCER_NAME);
    case -EACCES:
        return error_set(err, rc, "%s belongs to another user: it is the one's who used it first",
                         label.text);
    case -EDQUOT:
        return error_set(err, rc,
                         "%s would be one more than the broker keeps of one user, or of all: use a name that "
                         "exists, or raise walrusd's --max-producers",
                         label.text);
    case -ENODATA:
        return error_set(err, rc,
                         "%s is not remembered any more, so nobody can tell whether its last batches were "
                         "committed: read the end of the topics, then connect without it",
                         label.text);
    default:
        return error_set(err, rc, "the broker cannot attach %s: %s", label.text, strerror(-rc));
    }
}

/* ------------------------------------------------------------------------------------- the holder */

/* Nothing that it published can still commit, or fail. */
static bool decided(const struct session *holder)
{
    return holder->writes == 0 && (holder->fenced || holder->state == SESSION_ENDED);
}

/* It is the holder no longer; it keeps its reference. */
static void let_go(struct session *session)
{
    void **word = log_producer_word(session->producer);
    if (*word != session)
        return;
    *word = NULL;
    session->server->values.session_producers--;
}

/* Its end may lie in the epoll set, behind the hello that is looked at. */
static void notice_death(struct session *holder)
{
    struct pollfd fds[] = {{.fd = holder->socket.fd, .events = POLLRDHUP},
                           {.fd = holder->process.fd, .events = POLLIN}};
    if (holder->state == SESSION_LIVE && poll(fds, array_count(fds), 0) > 0 &&
        ((fds[0].revents & (POLLHUP | POLLRDHUP | POLLERR)) != 0 || fds[1].revents != 0))
        session_leave(holder);
}

static void fence(struct session *holder)
{
    if (holder->fencing)
        return;
    if (holder->state == SESSION_LIVE && ring_refresh_filled(&holder->sq) < 0) {
        session_hostile(holder, "published an impossible number of descriptors");
        return;
    }
    holder->fencing = true;
    holder->server->values.session_take_overs++;
    if (holder->state == SESSION_ENDED) {
        holder->fenced = true;
        return;
    }
    holder->fence_tail = holder->state == SESSION_LIVE ? holder->sq.mirror.p_tail : holder->final_tail;
    session_activate(holder);
    if (holder->sq.mirror.c_head == holder->fence_tail && holder->held == NULL)
        producer_fence_reached(holder); /* else drain.c comes to it */
}

void producer_fence_reached(struct session *session)
{
    check_bug(session->fencing && !session->fenced);
    session->fenced = true;
    queue_drop_session(session, -ESTALE);
    for (uint32_t i = 0; i < MAX_STREAMS_OPEN && session->state != SESSION_ENDED; i++)
        if (session->streams[i].state == STREAM_OPEN && !session->streams[i].whole)
            stream_fail(&session->streams[i], -ESTALE, REASON_NONE);
}

/* ------------------------------------------------------------------------------------- the row */

static void join_row(struct handshake *handshake, struct session *holder)
{
    if (TAILQ_EMPTY(&holder->waiters))
        TAILQ_INSERT_TAIL(&holder->server->contested, holder, contest);
    TAILQ_INSERT_TAIL(&holder->waiters, handshake, row);
    handshake->holder = holder;
}

void producer_leave_row(struct handshake *handshake)
{
    struct session *holder = handshake->holder;
    TAILQ_REMOVE(&holder->waiters, handshake, row);
    handshake->holder = NULL;
    if (TAILQ_EMPTY(&holder->waiters))
        TAILQ_REMOVE(&holder->server->contested, holder, contest);
}

/* The first in the row has it; the next one, which has asked to take over, takes it over from that one. */
static void pass_on(struct session *from)
{
    struct producer *producer = from->producer;
    struct handshake *waiter;
    let_go(from);
    while ((waiter = TAILQ_FIRST(&from->waiters)) != NULL) {
        struct session *holder = holder_of(producer);
        producer_leave_row(waiter);
        if (holder != NULL)
            fence(holder);
        if (holder != NULL && !decided(holder)) {
            join_row(waiter, holder);
            continue;
        }
        if (holder != NULL)
            let_go(holder);
        handshake_go_on(waiter); /* if it is refused, or gone, the next one has its turn */
    }
}

static struct session *decided_one(const struct server *server)
{
    struct session *session;
    TAILQ_FOREACH(session, &server->contested, contest)
    if (decided(session))
        break;
    return session;
}

/* Before sessions are freed: none with a row is decided after it. */
void producer_turn(struct server *server)
{
    struct session *session;
    while ((session = decided_one(server)) != NULL)
        pass_on(session);
}

/* ------------------------------------------------------------------------------------- attach and release */

static int check_wish(const struct hello *hello, struct error *err)
{
    static const char zero[sizeof hello->name];
    if (hello->name_bytes > MAX_PRODUCER_NAME)
        return refused_by_log(hello, -EINVAL, err);
    if (memcmp(hello->name + hello->name_bytes, zero, sizeof hello->name - hello->name_bytes) != 0)
        return error_set(err, -EPROTO, "the hello has something behind the producer's name of %u bytes",
                         hello->name_bytes);
    if (hello->producer != 0 && (hello->name_bytes != 0 || (hello->flags & HELLO_PRODUCER) == 0))
        return error_set(err, -EINVAL, "the hello has the id of an anonymous producer and %s",
                         hello->name_bytes != 0 ? "a name" : "does not ask for one");
    if ((hello->flags & HELLO_TAKE_OVER) != 0 && hello->name_bytes == 0 && hello->producer == 0)
        return error_set(err, -EINVAL, "WALRUS_TAKE_OVER needs a producer to take over");
    return 0;
}

static int find(struct handshake *handshake, const struct hello *hello)
{
    struct log *log = handshake->server->log;
    uint32_t uid = handshake->account->uid;
    handshake->resumed = false;
    if (hello->name_bytes > 0) {
        handshake->resumed = true;
        return log_producer_named(log, hello->name, hello->name_bytes, uid, &handshake->producer);
    }
    if (hello->producer != 0) {
        int rc = log_producer_again(log, hello->producer, uid, &handshake->producer);
        handshake->resumed = rc == 0;
        if (rc != -ENOENT)
            return rc;
    }
    return log_producer_anonymous(log, uid, &handshake->producer);
}

int producer_attach(struct handshake *handshake, const struct hello *hello, struct error *err)
{
    int rc = check_wish(hello, err);
    if (rc != 0)
        return rc;
    if (hello->name_bytes == 0 && (hello->flags & HELLO_PRODUCER) == 0)
        return 0;
    rc = find(handshake, hello);
    if (rc != 0) {
        handshake->producer = NULL;
        return refused_by_log(hello, rc, err);
    }
    handshake->take_over = (hello->flags & HELLO_TAKE_OVER) != 0;
    struct session *holder = holder_of(handshake->producer);
    if (holder == NULL)
        return 0;
    notice_death(holder);
    if (handshake->take_over) {
        fence(holder);
    } else if (!TAILQ_EMPTY(&holder->waiters) || (holder->state == SESSION_LIVE && !holder->fencing)) {
        rc = busy(hello, holder, err);
        log_producer_release(handshake->server->log, handshake->producer);
        handshake->producer = NULL;
        return rc;
    }
    if (TAILQ_EMPTY(&holder->waiters) && decided(holder)) {
        let_go(holder);
        return 0;
    }
    join_row(handshake, holder);
    return 1;
}

void producer_hold(struct session *session, struct producer *producer)
{
    void **word = log_producer_word(producer);
    check_bug(*word == NULL);
    *word = session;
    session->producer = producer;
    session->server->values.session_producers++;
}

void producer_release(struct session *session)
{
    if (session->producer == NULL)
        return;
    check_bug(TAILQ_EMPTY(&session->waiters));
    let_go(session);
    log_producer_release(session->server->log, session->producer);
    session->producer = NULL;
}
