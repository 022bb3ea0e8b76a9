/* handshake.c: from connect to a session (step 1 of DESIGN section 2).
 *
 * Happy path
 *   1. accept, at most ACCEPTS_PER_TURN a turn; who it is comes from the kernel (SO_PEERCRED), never from a
 *      message.
 *   2. The hello, one message, within the deadline.
 *   3. Checked: length, magic, version range, fingerprint, flags, reserved bytes, sizes, limits of the uid
 *      and of the broker.
 *   4. Its memory is made (memory.c), which may take a while beside the loop.
 *   5. The producer, if it wants one (producer.c). It may have to wait there until what the former holder had
 *      published is decided.
 *   6. The session is made; the welcome goes out with five descriptors; the two memfds of the connection are
 *      closed here.
 *
 * Failure modes: each refusal is a welcome with a negative status and words, then the connection is closed.
 * Silence until the deadline, a hang-up or a full socket: closed. Descriptors in a message, or anything
 * behind the hello: refused. No file descriptor left: the spare one is
 * given up to accept and refuse, so that the queue of connections does not keep the loop awake.
 *
 * Invariants
 *   - nothing here waits for a peer: every call has MSG_DONTWAIT or is on a non-blocking socket.
 *   - a half-open connection counts against its uid, so one user's silence cannot keep others out.
 *   - descriptors are sent once per connection, and only after everything was checked. */
#include "session.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPTS_PER_TURN 16
#define LISTENER_PAUSE   INT64_C(100000000)

/* ------------------------------------------------------------------------------------- accounts */

static struct account *account_find(struct server *server, uid_t uid)
{
    struct account *account;
    TAILQ_FOREACH(account, &server->accounts, link)
    if (account->uid == uid)
        return account;
    account = calloc(1, sizeof *account);
    if (account != NULL) {
        account->uid = uid;
        TAILQ_INSERT_TAIL(&server->accounts, account, link);
    }
    return account;
}

static void account_free_if_unused(struct server *server, struct account *account)
{
    if (account->connections != 0)
        return;
    check_bug(account->shared == 0);
    TAILQ_REMOVE(&server->accounts, account, link);
    free(account);
}

void account_release(struct server *server, struct account *account, uint64_t shared)
{
    check_bug(account->connections > 0 && account->shared >= shared && server->connections > 0);
    account->connections--;
    account->shared -= shared;
    server->connections--;
    account_free_if_unused(server, account);
}

/* ------------------------------------------------------------------------------------- refusals */

static void fill_welcome(const struct server *server, struct welcome *welcome)
{
    *welcome = (struct welcome){
        .magic = MESSAGE_MAGIC,
        .version = LAYOUT_VERSION,
        .fingerprint = layout_fingerprint(),
        .io_backend = (uint32_t)server->io->backend,
        .epoch = server->epoch,
        .broker_pid = (uint32_t)getpid(),
        .default_level = server->options.default_level,
        .max_batch_bytes = server->options.max_batch_bytes,
        .watermark_slots = server->watermarks.count,
    };
}

/* Says why, and closes. */
static void refuse(struct server *server, int fd, const struct error *why)
{
    struct welcome welcome;
    fill_welcome(server, &welcome);
    welcome.status = why->code;
    snprintf(welcome.text, sizeof welcome.text, "%.*s", (int)sizeof welcome.text - 1, why->text);
    /* A peer that does not listen is closed all the same. */
    ssize_t ignored = send(fd, &welcome, sizeof welcome, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)ignored;
    /* Closing over an unread hello would give the peer ECONNRESET instead of the words. */
    struct msghdr anything = {0};
    shutdown(fd, SHUT_RD);
    for (int i = 0; i < 8 && rights_receive(server, fd, &anything, MSG_DONTWAIT | MSG_TRUNC) > 0; i++)
        continue;
    rights_close(server, fd);
    server->values.session_refused++;
    server->values.session_refused_quota += why->code == -EDQUOT;
    server->stat_dirty = true;
}

/* ------------------------------------------------------------------------------------- accept */

static void socket_ready(struct watch *watch, uint32_t events);

static int check_connections(const struct server *server, const struct account *account, struct error *err)
{
    const struct server_options *options = &server->options;
    if (account->connections >= options->max_connections_of_uid)
        return error_set(err, -EDQUOT, "user %u has %u connections, which is the limit: close some",
                         (unsigned)account->uid, account->connections);
    if (server->connections >= options->max_connections)
        return error_set(err, -EDQUOT, "the broker has %u connections, which is its limit",
                         server->connections);
    return 0;
}

static int begin_handshake(struct server *server, int fd, struct error *err)
{
    struct ucred who;
    socklen_t length = sizeof who;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) != 0)
        return error_set(err, -EACCES, "the kernel does not say who is connecting: %s", strerror(errno));
    struct account *account = account_find(server, who.uid);
    struct handshake *handshake = calloc(1, sizeof *handshake);
    int rc = -ENOMEM;
    if (account == NULL || handshake == NULL)
        error_set(err, rc, "the broker is out of memory");
    else
        rc = check_connections(server, account, err);
    if (rc != 0)
        goto free_handshake;
    *handshake = (struct handshake){.server = server,
                                    .socket = {.ready = socket_ready, .fd = fd},
                                    .process = {.fd = -1},
                                    .account = account,
                                    .pid = who.pid,
                                    .deadline_ns = io_now(server->io) + server->options.handshake_ns};
    rc = server_watch(server, &handshake->socket, EPOLLIN | EPOLLRDHUP);
    if (rc != 0) {
        error_set(err, rc, "the broker cannot watch another socket: %s", strerror(-rc));
        goto free_handshake;
    }
    account->connections++;
    server->connections++;
    TAILQ_INSERT_TAIL(&server->handshakes, handshake, link);
    return 0;

free_handshake:
    free(handshake);
    if (account != NULL)
        account_free_if_unused(server, account);
    return rc;
}

/* Accepts with the spare descriptor, only to say no. 0; -EAGAIN nobody is there; else not even that can be
 * done now. */
static int shed(struct server *server)
{
    server->values.session_out_of_descriptors++;
    if (server->spare_fd < 0)
        return -EMFILE;
    close(server->spare_fd);
    int fd = accept4(server->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    int rc = fd >= 0 ? 0 : -errno;
    if (fd >= 0) {
        struct error err;
        error_set(&err, -EDQUOT, "the broker has no file descriptor left: raise its RLIMIT_NOFILE");
        refuse(server, fd, &err);
    }
    server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return rc;
}

static void pause_listener(struct server *server)
{
    server_unwatch(server, &server->listener);
    server->listener_paused_until = io_now(server->io) + LISTENER_PAUSE;
    if (server->spare_fd < 0)
        server->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

void handshake_listen(struct watch *watch, uint32_t events)
{
    (void)events;
    struct server *server = container_of(watch, struct server, listener);
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            struct error err = {0};
            if (begin_handshake(server, fd, &err) != 0)
                refuse(server, fd, &err);
            continue;
        }
        int rc = -errno;
        if (rc == -EMFILE || rc == -ENFILE)
            rc = shed(server);
        if (rc == 0 || rc == -EINTR || rc == -ECONNABORTED)
            continue;
        if (rc == -EAGAIN)
            return;
        pause_listener(server); /* out of memory, or of everything: later */
        return;
    }
    server->more = true;
}

/* ------------------------------------------------------------------------------------- hello */

static int check_hello(const struct server *server, const struct hello *hello, ssize_t length,
                       struct error *err)
{
    static const uint8_t zero[sizeof hello->reserved];
    if (length != (ssize_t)sizeof *hello || hello->magic != MESSAGE_MAGIC)
        return error_set(err, -EPROTO,
                         "this is walrusd, layout version %u; what connected does not speak its protocol",
                         LAYOUT_VERSION);
    if (hello->version_min > LAYOUT_VERSION || hello->version_max < LAYOUT_VERSION)
        return error_set(
            err, -EPROTO,
            "the client speaks layout versions %u to %u, the broker %u: use a client library and a broker of "
            "the same release",
            hello->version_min, hello->version_max, LAYOUT_VERSION);
    if (hello->version_max == LAYOUT_VERSION && hello->fingerprint != layout_fingerprint())
        return error_set(err, -EPROTO,
                         "client and broker both call their layout version %u but mean different ones "
                         "(fingerprint %016llx, "
                         "the broker's is %016llx): use a client library and a broker of the same release",
                         LAYOUT_VERSION, (unsigned long long)hello->fingerprint,
                         (unsigned long long)layout_fingerprint());
    if ((hello->flags & ~(uint32_t)HELLO_FLAGS) != 0 || memcmp(hello->reserved, zero, sizeof zero) != 0)
        return error_set(err, -EPROTO, "the hello uses something that layout version %u does not know",
                         LAYOUT_VERSION);
    if ((hello->flags & HELLO_REQUIRE_URING) != 0 && server->io->backend != IO_BACKEND_URING)
        return error_set(
            err, -EOPNOTSUPP,
            "the client requires io_uring, which is not the broker's active back end: start walrusd with "
            "--io uring where the kernel allows it");
    return 0;
}

static int take_sizes(const struct hello *hello, struct layout_sizes *sizes, struct error *err)
{
    *sizes = (struct layout_sizes){.queue_entries = hello->queue_entries,
                                   .arena_bytes = hello->arena_bytes,
                                   .window_bytes = hello->window_bytes};
    if (layout_place(sizes))
        return 0;
    return error_set(err, -EINVAL,
                     "sizes out of range: queue %u (a power of two, %u to %u), arena %llu (pages, %u to "
                     "%u), window %llu "
                     "(a power of two, %u to %u)",
                     hello->queue_entries, MIN_QUEUE_ENTRIES, MAX_QUEUE_ENTRIES,
                     (unsigned long long)hello->arena_bytes, MIN_ARENA_BYTES, MAX_ARENA_BYTES,
                     (unsigned long long)hello->window_bytes, MIN_WINDOW_BYTES, MAX_WINDOW_BYTES);
}

static int check_shared(const struct server *server, const struct account *account,
                        const struct layout_sizes *sizes, struct error *err)
{
    uint64_t wanted = sizes->client_file_bytes + sizes->broker_file_bytes; /* both bounded by layout_place */
    const struct server_options *options = &server->options;
    uint64_t total = server->values.session_shared_bytes;
    if (account->shared > options->max_shared_of_uid || wanted > options->max_shared_of_uid - account->shared)
        return error_set(
            err, -EDQUOT,
            "user %u has %llu bytes of shared memory of at most %llu, this connection wants %llu: close "
            "connections or use smaller arenas and windows",
            (unsigned)account->uid, (unsigned long long)account->shared,
            (unsigned long long)options->max_shared_of_uid, (unsigned long long)wanted);
    if (total > options->max_shared || wanted > options->max_shared - total)
        return error_set(err, -EDQUOT, "the broker's shared memory is used up (%llu of %llu bytes)",
                         (unsigned long long)total, (unsigned long long)options->max_shared);
    return 0;
}

static int check_queue(const struct server *server, const struct account *account,
                       const struct layout_sizes *sizes, struct error *err)
{
    const struct server_options *options = &server->options;
    uint64_t entries = sizes->queue_entries;
    if (account->queue > options->max_queue_of_uid || entries > options->max_queue_of_uid - account->queue)
        return error_set(err, -EDQUOT,
                         "user %u may have %llu entries in flight, its connections' rings hold %llu and this "
                         "one wants %llu: close connections or use smaller queues",
                         (unsigned)account->uid, (unsigned long long)options->max_queue_of_uid,
                         (unsigned long long)account->queue, (unsigned long long)entries);
    if (server->queue > options->max_queue || entries > options->max_queue - server->queue)
        return error_set(err, -EDQUOT, "the broker's rings are used up (%llu of %llu entries in flight)",
                         (unsigned long long)server->queue, (unsigned long long)options->max_queue);
    return 0;
}

static int send_welcome(struct session *session, bool resumed)
{
    struct welcome welcome;
    int files[2];
    memory_files(session->memory, files);
    fill_welcome(session->server, &welcome);
    welcome.queue_entries = session->sizes.queue_entries;
    welcome.arena_bytes = session->sizes.arena_bytes;
    welcome.window_bytes = session->sizes.window_bytes;
    welcome.flags = resumed ? WELCOME_RESUMED : 0;
    welcome.producer = session->producer != NULL ? log_producer_id(session->producer) : 0;

    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FD_COUNT * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = &welcome, .iov_len = sizeof welcome};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(FD_COUNT * sizeof(int));
    int fds[FD_COUNT] = {[FD_CLIENT_FILE] = files[0],
                         [FD_BROKER_FILE] = files[1],
                         [FD_DOORBELL] = session->doorbell.fd,
                         [FD_SIGNAL] = session->signal.fd,
                         [FD_WATERMARKS] = session->server->watermarks.fd};
    memcpy(CMSG_DATA(header), fds, sizeof fds);
    return sendmsg(session->socket.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof welcome
               ? 0
               : -errno;
}

/* ------------------------------------------------------------------------------------- ends */

static void leave_list(struct handshake *handshake)
{
    struct server *server = handshake->server;
    struct handshake_list *list = handshake->state == HANDSHAKE_HELLO   ? &server->handshakes
                                  : handshake->state == HANDSHAKE_FILLS ? &server->filling
                                                                        : &server->waiting;
    TAILQ_REMOVE(list, handshake, link);
}

static void over(struct handshake *handshake)
{
    struct server *server = handshake->server;
    check_bug(handshake->state != HANDSHAKE_OVER);
    leave_list(handshake);
    if (handshake->state == HANDSHAKE_WAITS && handshake->holder != NULL)
        producer_leave_row(handshake);
    server_unwatch(server, &handshake->socket);
    if (handshake->process.fd >= 0) {
        server_unwatch(server, &handshake->process);
        close(handshake->process.fd);
        handshake->process.fd = -1;
    }
    handshake->state = HANDSHAKE_OVER;
    TAILQ_INSERT_TAIL(&server->over, handshake, link);
}

/* After over(): what no session has taken over. */
static void release(struct handshake *handshake)
{
    struct server *server = handshake->server;
    if (handshake->producer != NULL)
        log_producer_release(server->log, handshake->producer);
    handshake->producer = NULL;
    if (handshake->memory != NULL)
        memory_drop(handshake->memory); /* and the account */
    else
        account_release(server, handshake->account, 0);
    handshake->memory = NULL;
}

static void give_up(struct handshake *handshake)
{
    over(handshake);
    rights_close(handshake->server, handshake->socket.fd);
    release(handshake);
}

static void say_no(struct handshake *handshake, const struct error *why)
{
    over(handshake);
    refuse(handshake->server, handshake->socket.fd, why);
    release(handshake);
}

/* ------------------------------------------------------------------------------------- yes */

static bool lacks_room(int rc)
{
    return rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM || rc == -ENOSPC;
}

static void say_yes(struct handshake *handshake)
{
    struct server *server = handshake->server;
    struct session *session = NULL;
    struct error err = {0};
    int rc = check_queue(server, handshake->account, &handshake->sizes, &err);
    over(handshake); /* the session watches the socket by itself */
    if (rc == 0)
        rc = session_create(handshake, &session, &err);
    if (lacks_room(rc)) {
        server->values.session_out_of_descriptors += rc == -EMFILE || rc == -ENFILE;
        err.code = -EDQUOT;
    }
    if (rc != 0) {
        refuse(server, handshake->socket.fd, &err);
        release(handshake);
        return;
    }
    rc = send_welcome(session, handshake->resumed);
    memory_files_close(session->memory);
    if (rc != 0)
        session_end(session);
    server->stat_dirty = true;
}

void handshake_go_on(struct handshake *handshake)
{
    check_bug(handshake->state == HANDSHAKE_WAITS && handshake->holder == NULL);
    say_yes(handshake);
}

/* A child may keep the socket of one that is killed while it waits for a producer. */
static void process_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    struct handshake *handshake = container_of(watch, struct handshake, process);
    if (handshake->state == HANDSHAKE_WAITS)
        give_up(handshake);
}

/* Without a descriptor the deadline does it. */
static void watch_process(struct handshake *handshake)
{
    int fd = session_process_open(handshake->socket.fd, handshake->pid);
    handshake->process = (struct watch){.ready = process_ready, .fd = fd};
    if (fd >= 0 && server_watch(handshake->server, &handshake->process, EPOLLIN) != 0) {
        close(fd);
        handshake->process.fd = -1;
    }
}

/* Its memory is there: now its producer. */
static void attach(struct handshake *handshake)
{
    struct server *server = handshake->server;
    struct error err = {0};
    int rc = producer_attach(handshake, &handshake->hello, &err);
    if (rc < 0) {
        err.code = rc == -ENOMEM ? -EDQUOT : rc;
        say_no(handshake, &err);
    } else if (rc == 0) {
        say_yes(handshake);
    } else {
        leave_list(handshake);
        handshake->state = HANDSHAKE_WAITS;
        handshake->deadline_ns = io_now(server->io) + server->options.attach_ns;
        TAILQ_INSERT_TAIL(&server->waiting, handshake, link);
        watch_process(handshake);
    }
}

static void say_no_memory(struct handshake *handshake, int rc)
{
    struct error err;
    error_set(&err, lacks_room(rc) ? -EDQUOT : rc,
              "the broker cannot make a connection with %llu bytes of shared memory: %s",
              (unsigned long long)(handshake->sizes.client_file_bytes + handshake->sizes.broker_file_bytes),
              strerror(-rc));
    handshake->server->values.session_out_of_descriptors += rc == -EMFILE || rc == -ENFILE;
    say_no(handshake, &err);
}

void handshake_filled(struct handshake *handshake, int rc)
{
    check_bug(handshake->state == HANDSHAKE_FILLS);
    if (rc != 0)
        say_no_memory(handshake, rc);
    else
        attach(handshake);
}

static void hello_came(struct handshake *handshake, const struct hello *hello, ssize_t length)
{
    struct server *server = handshake->server;
    struct error err = {0};
    int rc = check_hello(server, hello, length, &err);
    if (rc == 0)
        rc = take_sizes(hello, &handshake->sizes, &err);
    if (rc == 0)
        rc = check_shared(server, handshake->account, &handshake->sizes, &err);
    if (rc == 0)
        rc = check_queue(server, handshake->account, &handshake->sizes, &err);
    if (rc != 0) {
        say_no(handshake, &err);
        return;
    }
    handshake->hello = *hello;
    rc = memory_begin(handshake);
    if (rc < 0) {
        say_no_memory(handshake, rc);
    } else if (rc == 0) {
        attach(handshake);
    } else {
        leave_list(handshake);
        handshake->state = HANDSHAKE_FILLS;
        TAILQ_INSERT_TAIL(&server->filling, handshake, link);
    }
}

/* A hello; while it waits for its memory or producer, anything is the end of it. */
static void socket_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    struct handshake *handshake = container_of(watch, struct handshake, socket);
    if (handshake->state == HANDSHAKE_OVER)
        return;
    struct hello hello;
    struct iovec iov = {.iov_base = &hello, .iov_len = sizeof hello};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    /* MSG_TRUNC: the real length, so that a longer message is not taken for a hello. There is no room for
     * descriptors, so the kernel drops those that were sent along, and says MSG_CTRUNC. */
    ssize_t n = rights_receive(handshake->server, watch->fd, &message, MSG_DONTWAIT | MSG_TRUNC);
    if (n == -EAGAIN || n == -EINTR)
        return;
    if (n <= 0) {
        give_up(handshake);
        return;
    }
    if ((message.msg_flags & MSG_CTRUNC) != 0 || handshake->state != HANDSHAKE_HELLO) {
        struct error err;
        error_set(&err, -EPROTO, "one hello is all that a client may send, without descriptors");
        say_no(handshake, &err);
        return;
    }
    if (n < (ssize_t)sizeof hello)
        memset((char *)&hello + n, 0, sizeof hello - (size_t)n);
    hello_came(handshake, &hello, n);
}

/* ------------------------------------------------------------------------------------- deadlines and stop */

void handshake_expire(struct server *server, int64_t now)
{
    struct handshake *handshake;
    while ((handshake = TAILQ_FIRST(&server->handshakes)) != NULL && handshake->deadline_ns <= now) {
        server->values.session_handshakes_expired++;
        give_up(handshake);
    }
    while ((handshake = TAILQ_FIRST(&server->waiting)) != NULL && handshake->deadline_ns <= now) {
        struct error err;
        error_set(&err, -EBUSY,
                  "what the producer's former holder (pid %d) had published is not decided yet: try again",
                  (int)handshake->holder->pid);
        server->values.session_handshakes_expired++;
        say_no(handshake, &err);
    }
}

void handshake_end_all(struct server *server)
{
    struct handshake *handshake;
    while ((handshake = TAILQ_FIRST(&server->handshakes)) != NULL)
        give_up(handshake);
    while ((handshake = TAILQ_FIRST(&server->filling)) != NULL ||
           (handshake = TAILQ_FIRST(&server->waiting)) != NULL) {
        struct error err;
        error_set(&err, -ESHUTDOWN, "the broker is stopping: connect again once it is back");
        say_no(handshake, &err);
    }
}

void handshake_free_over(struct server *server)
{
    struct handshake *handshake;
    while ((handshake = TAILQ_FIRST(&server->over)) != NULL) {
        TAILQ_REMOVE(&server->over, handshake, link);
        free(handshake);
    }
}
