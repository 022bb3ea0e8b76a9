/* session.c: one connection: its requests, its topic numbers, its end.
 *
 * Happy path
 *   1. session_create: takes over the handshake's memory (memory.c), mapped and sealed now; two eventfds;
 *      everything into the epoll set. handshake.c sends the descriptors and closes the memfds.
 *   2. LIVE: drain.c takes descriptors, complete.c answers them.
 *   3. The socket hangs up, or the process that connected has ended: LEAVING. What is published is noted
 *      once (a process that kept the memory may go on writing there) and is drained as if the client lived;
 *      open streams are rolled back.
 *   4. ENDED: nothing is taken or posted any more. The session is freed when the log holds nothing of it and
 *      no signal is on its way: until then `done` may be called on its requests, a read may write into its
 *      window.
 *
 * Failure modes: a hostile word or message ends the session at once (session_hostile); what was taken before
 * is committed, its streams are rolled back. Out of memory or descriptors at creation: the connection is
 * refused, with words.
 *
 * Invariants
 *   - both eventfds and the socket leave the epoll set by name before they are closed: the peer holds the
 *     same open files, so closing alone would leave them in the set, with a pointer to freed memory.
 *   - a session is freed only from session_reap_ended, at the end of a turn: no event or list of this turn
 *     can still name it. */
#include "session.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

/* ------------------------------------------------------------------------------------- memory */

int shared_file(const char *name, uint64_t bytes, int *out)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* kernels before 6.3 */
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (bytes > 0 && fallocate(fd, 0, 0, (off_t)bytes) != 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    *out = fd;
    return 0;
}

int shared_map(int fd, uint64_t bytes, int extra_seals, uint8_t **out)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | extra_seals) != 0) {
        int rc = -errno;
        munmap(at, bytes);
        return rc;
    }
    *out = at;
    return 0;
}

static void publish_words(struct session *session)
{
    struct broker_words *words = session->broker;
    check_bug(words != NULL);
    const struct layout_sizes *sizes = &session->sizes;
    words->version = LAYOUT_VERSION;
    words->queue_entries = sizes->queue_entries;
    words->fingerprint = layout_fingerprint();
    words->arena_at = sizes->arena_at;
    words->arena_bytes = sizes->arena_bytes;
    words->window_at = sizes->window_at;
    words->window_bytes = sizes->window_bytes;
    words->epoch = session->server->epoch;
    words->parked = PARKED;
    __atomic_store_n(&words->magic, LAYOUT_MAGIC, __ATOMIC_RELEASE);
}

static int session_memory(struct session *session, struct memory *memory)
{
    uint8_t *client = NULL;
    uint8_t *broker = NULL;
    const struct layout_sizes *sizes = &session->sizes;
    int rc = memory_map(memory, &client, &broker);
    if (rc != 0)
        return rc;
    session->client = (struct client_words *)(void *)client;
    session->client_arena = client + sizes->arena_at;
    session->broker = (struct broker_words *)(void *)broker;
    session->window = broker + sizes->window_at;
    ring_init(&session->sq, sizes->queue_entries, &session->broker->sq_head, &session->client->sq_tail,
              client + LAYOUT_PAGE);
    ring_init(&session->cq, sizes->queue_entries, &session->broker->cq_tail, &session->client->cq_head,
              broker + LAYOUT_PAGE);
    publish_words(session);
    return 0;
}

/* ------------------------------------------------------------------------------------- events */

static void socket_ready(struct watch *watch, uint32_t events)
{
    struct session *session = container_of(watch, struct session, socket);
    if (session->state != SESSION_LIVE)
        return;
    if ((events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0)
        session_leave(session);
    else
        session_hostile(session, "sent a message after the handshake");
}

/* Edge triggered and never read: each write of the client is an edge of its own, and there is nothing to
 * block on. */
static void doorbell_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    struct session *session = container_of(watch, struct session, doorbell);
    session->server->values.session_doorbells++;
    if (session->state == SESSION_LIVE)
        session_activate(session);
}

/* The process that connected has ended; a child of it may still have the socket, and the memory. */
static void process_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    struct session *session = container_of(watch, struct session, process);
    if (session->state != SESSION_LIVE)
        return;
    session->dead = true;
    session->server->values.session_process_deaths++;
    session_leave(session);
}

void session_activate(struct session *session)
{
    session->empty_turns = 0;
    if (session->active)
        return;
    session->active = true;
    word_store(&session->broker->parked, ACTIVE);
    TAILQ_INSERT_TAIL(&session->server->active, session, activity);
    session->server->values.session_active++;
    session->server->values.session_parked--;
    session->server->more = true;
}

/* Only takes it off the list; the parked word and the second look are drain.c's. */
void session_park(struct session *session)
{
    check_bug(session->active);
    session->active = false;
    TAILQ_REMOVE(&session->server->active, session, activity);
    session->server->values.session_active--;
    session->server->values.session_parked++;
}

/* ------------------------------------------------------------------------------------- the process */

/* The kernel's own handle of the peer; before 6.5, by the number that the kernel gave at accept. If that has
 * been given to another process since, then ours has ended, and the socket tells. */
int session_process_open(int socket_fd, pid_t pid)
{
    int fd = -1;
    socklen_t length = sizeof fd;
    if (getsockopt(socket_fd, SOL_SOCKET, SO_PEERPIDFD, &fd, &length) == 0)
        return fd;
    if (errno != ENOPROTOOPT && errno != EOPNOTSUPP)
        return -errno;
    fd = (int)syscall(SYS_pidfd_open, pid, 0);
    return fd >= 0 ? fd : -errno;
}

static int process_watch(struct session *session)
{
    struct server *server = session->server;
    int fd = session_process_open(session->socket.fd, session->pid);
    if (fd == -ESRCH)
        return -ECONNRESET; /* ended before we looked */
    if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM)
        return fd;
    if (fd < 0) {
        if (!server->no_pidfd_said)
            server_say(server, SAY_WARNING,
                       "the kernel gives no descriptor of a client's process (%s): the death of one whose "
                       "children keep its connection is not seen",
                       strerror(-fd));
        server->no_pidfd_said = true;
        return 0;
    }
    session->process.fd = fd;
    int rc = server_watch(server, &session->process, EPOLLIN);
    if (rc != 0) {
        close(fd);
        session->process.fd = -1;
    }
    return rc;
}

static void unwatch(struct session *session)
{
    server_unwatch(session->server, &session->socket);
    server_unwatch(session->server, &session->doorbell);
    if (session->process.fd < 0)
        return;
    server_unwatch(session->server, &session->process);
    close(session->process.fd);
    session->process.fd = -1;
}

/* ------------------------------------------------------------------------------------- creation */

static int session_descriptors(struct session *session)
{
    struct server *server = session->server;
    session->doorbell = (struct watch){.ready = doorbell_ready, .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (session->doorbell.fd < 0)
        return -errno;
    session->signal.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc;
    if (session->signal.fd < 0) {
        rc = -errno;
        goto close_doorbell;
    }
    rc = server_watch(server, &session->doorbell, EPOLLIN | EPOLLET);
    if (rc != 0)
        goto close_signal;
    rc = server_watch(server, &session->socket, EPOLLIN | EPOLLRDHUP);
    if (rc != 0)
        goto unwatch_doorbell;
    rc = process_watch(session);
    if (rc != 0)
        goto unwatch_socket;
    return 0;

unwatch_socket:
    server_unwatch(server, &session->socket);
unwatch_doorbell:
    server_unwatch(server, &session->doorbell);
close_signal:
    close(session->signal.fd);
close_doorbell:
    close(session->doorbell.fd);
    return rc;
}

int session_create(struct handshake *handshake, struct session **out, struct error *err)
{
    struct server *server = handshake->server;
    const struct layout_sizes *sizes = &handshake->sizes;
    struct account *account = handshake->account;
    int rc = -ENOMEM;
    struct session *session = calloc(1, sizeof *session);
    if (session == NULL)
        return error_set(err, rc, "the broker is out of memory");
    *session = (struct session){.server = server,
                                .socket = {.ready = socket_ready, .fd = handshake->socket.fd},
                                .process = {.ready = process_ready, .fd = -1},
                                .account = account,
                                .pid = handshake->pid,
                                .sizes = *sizes,
                                .pool_size = sizes->queue_entries - 1 + EXTRA_REQUESTS};
    TAILQ_INIT(&session->pool);
    TAILQ_INIT(&session->reads);
    TAILQ_INIT(&session->followers);
    TAILQ_INIT(&session->waits);
    TAILQ_INIT(&session->line_pool);
    TAILQ_INIT(&session->waiters);
    session->requests = malloc(session->pool_size * sizeof *session->requests); /* pages come with use */
    session->streams = calloc(MAX_STREAMS_OPEN, sizeof *session->streams);
    if (session->requests == NULL || session->streams == NULL)
        goto free_session;
    rc = session_memory(session, handshake->memory);
    if (rc != 0)
        goto free_session;
    rc = session_descriptors(session);
    if (rc != 0)
        goto free_session;
    session->memory = handshake->memory;
    handshake->memory = NULL;

    TAILQ_INSERT_TAIL(&server->sessions, session, all);
    if (handshake->producer != NULL)
        producer_hold(session, handshake->producer);
    account->queue += sizes->queue_entries;
    server->queue += sizes->queue_entries;
    server->values.session_connections++;
    server->values.session_connected++;
    server->values.session_parked++;
    *out = session;
    return 0;

free_session:
    free(session->streams);
    free(session->requests);
    free(session);
    return error_set(err, rc, "the broker cannot make a connection with %llu bytes of shared memory: %s",
                     (unsigned long long)(sizes->client_file_bytes + sizes->broker_file_bytes),
                     strerror(-rc));
}

/* ------------------------------------------------------------------------------------- end */

void session_leave(struct session *session)
{
    check_bug(session->state == SESSION_LIVE);
    if (ring_refresh_filled(&session->sq) < 0) {
        session_hostile(session, "published an impossible number of descriptors");
        return;
    }
    if (!session->server->stopping)
        session->final_tail = session->sq.mirror.p_tail;
    session->state = SESSION_LEAVING;
    unwatch(session);
    read_end_all(session, -ECANCELED);
    session_activate(session); /* drained to the noted tail, then ended by drain.c */
}

void session_end(struct session *session)
{
    struct server *server = session->server;
    check_bug(session->state != SESSION_ENDED);
    if (session->state == SESSION_LIVE)
        unwatch(session);
    session->state = SESSION_ENDED;
    /* The client sees the end now, whatever else is still on its way. */
    rights_close(server, session->socket.fd);
    session->socket.fd = -1;
    if (session->active)
        session_park(session);
    if (session->held != NULL) {
        struct request *held = session->held;
        unhold(session);
        request_free(held);
    }
    read_end_all(session, -ECANCELED);
    queue_drop_session(session, -ECANCELED);
    stream_abort_all(session);
    if (session->signal.parked)
        io_signal_cancel(server->io, &session->signal);
    TAILQ_REMOVE(&server->sessions, session, all);
    TAILQ_INSERT_TAIL(&server->ended, session, all);
    server->values.session_disconnected++;
    server->stat_dirty = true;
}

void session_hostile(struct session *session, const char *format, ...)
{
    char words[160];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    if (session->state == SESSION_ENDED)
        return;
    server_say_of_peer(session->server, "connection of pid %d (uid %u) ended: it %s", (int)session->pid,
                       (unsigned)session->account->uid, words);
    session->server->values.session_ended_hostile++;
    session_end(session);
}

static void session_free(struct session *session)
{
    struct server *server = session->server;
    TAILQ_REMOVE(&server->ended, session, all);
    if (session->touched)
        TAILQ_REMOVE(&server->touched, session, touch);
    if (session->has_reads)
        TAILQ_REMOVE(&server->readers, session, reader);
    session_topics_release(session);
    producer_release(session);
    server->queue -= session->sizes.queue_entries;
    session->account->queue -= session->sizes.queue_entries;
    close(session->doorbell.fd);
    close(session->signal.fd);
    if (session->dead)
        memory_of_the_dead(session->memory);
    memory_drop(session->memory); /* and the account */
    free(session->topics);
    free(session->streams);
    free(session->requests);
    server->values.session_connections--;
    server->values.session_parked--;
    free(session);
}

void session_reap_ended(struct server *server)
{
    struct session *next;
    for (struct session *session = TAILQ_FIRST(&server->ended); session != NULL; session = next) {
        next = TAILQ_NEXT(session, all);
        if (session->inflight == 0 && !session->signal.parked)
            session_free(session);
    }
}

/* ------------------------------------------------------------------------------------- requests */

struct request *request_take(struct session *session, enum request_kind kind)
{
    struct request *request = TAILQ_FIRST(&session->pool);
    if (request != NULL)
        TAILQ_REMOVE(&session->pool, request, link);
    else if (session->pool_used < session->pool_size)
        request = &session->requests[session->pool_used++];
    else
        return NULL;
    request->session = session;
    request->kind = kind;
    session->inflight++;
    session->writes += kind == REQUEST_WRITE;
    return request;
}

/* Gives the request back, and what it used: its topic number, its stream. */
void request_free(struct request *request)
{
    struct session *session = request->session;
    check_bug(session->inflight > 0);
    session->inflight--;
    session->writes -= request->kind == REQUEST_WRITE;
    if (request->topic != 0)
        session_topic_done(session, request->topic);
    if (request->stream != NULL)
        stream_chunk_done(request->stream);
    TAILQ_INSERT_HEAD(&session->pool, request, link);
}

/* ------------------------------------------------------------------------------------------------ topic
 * numbers */

struct topic_slot *session_topic(struct session *session, uint32_t number)
{
    if (number == 0 || number >= session->topic_count)
        return NULL;
    struct topic_slot *slot = &session->topics[number];
    return slot->topic != NULL && !slot->closed ? slot : NULL;
}

static bool topics_grow(struct session *session)
{
    uint32_t count = session->topic_count == 0 ? 8 : session->topic_count * 2;
    struct topic_slot *topics = realloc(session->topics, count * sizeof *topics);
    if (topics == NULL)
        return false;
    session->topics = topics;
    for (uint32_t i = count - 1; i >= session->topic_count; i--) {
        topics[i] = (struct topic_slot){.next_free = session->topic_free};
        if (i == 0)
            break; /* number 0 is nobody's */
        session->topic_free = i;
    }
    session->topic_count = count;
    return true;
}

int session_topic_add(struct session *session, struct topic *topic, uint32_t *number)
{
    if (session->topic_free == 0) {
        if (session->topic_count >= MAX_TOPICS_OPEN)
            return -EDQUOT;
        if (!topics_grow(session))
            return -ENOMEM;
    }
    uint32_t at = session->topic_free;
    session->topic_free = session->topics[at].next_free;
    session->topics[at] = (struct topic_slot){.topic = topic};
    *number = at;
    return 0;
}

static void topic_release_if_done(struct session *session, uint32_t number)
{
    struct topic_slot *slot = &session->topics[number];
    if (!slot->closed || slot->inflight != 0)
        return;
    log_topic_release(session->server->log, slot->topic);
    *slot = (struct topic_slot){.next_free = session->topic_free};
    session->topic_free = number;
}

void session_topic_close(struct session *session, uint32_t number)
{
    session->topics[number].closed = true;
    topic_release_if_done(session, number);
}

void session_topic_done(struct session *session, uint32_t number)
{
    check_bug(session->topics[number].inflight > 0);
    session->topics[number].inflight--;
    topic_release_if_done(session, number);
}

/* At the end of the session, or of the log. */
void session_topics_release(struct session *session)
{
    for (uint32_t i = 1; i < session->topic_count; i++) {
        struct topic_slot *slot = &session->topics[i];
        if (slot->topic == NULL)
            continue;
        check_bug(slot->inflight == 0);
        log_topic_release(session->server->log, slot->topic);
        *slot = (struct topic_slot){0};
    }
}
