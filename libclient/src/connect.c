/* connect.c: the handshake and the handle's life.
 *
 * Happy path
 *   1. The socket path: the option, else WALRUS_SOCKET, else the default of this user (shared/paths.h).
 *   2. connect, send struct hello, receive struct welcome with exactly five descriptors, all close-on-exec.
 *   3. Before anything is mapped: the files are sealed (nobody can shrink them under us: no SIGBUS) and as
 *      long as the sizes of the welcome say; the other two are eventfds or the like (never a pipe: no
 *      SIGPIPE).
 *   4. Map; the broker's first page must say what its welcome said. The memfds are closed.
 *   5. Rings, room, requests; the epoll descriptor that the user may poll.
 *
 * Failure modes: each with words that name the path and the way out; everything acquired so far is released
 * in walrus_close, which knows a half-made handle. A descriptor that came unasked is closed.
 *
 * Invariants: a handle that walrus_connect returned has all of it. */
#include "connect.h"

#include "../../shared/paths.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#define DEFAULT_TIMEOUT (5 * NS_PER_S)
#define NEEDED_SEALS    (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* What walrus_connect was asked for, and its attempt. */
struct connecting {
    struct walrus_connect_options options;
    struct attempt attempt;
    struct error *err;
};

/* ---------------------------------------------------------------------------- options and path */

static int choose_path(struct connecting *c)
{
    const char *given = c->options.socket_path;
    if (given == NULL || given[0] == '\0')
        given = secure_getenv("WALRUS_SOCKET");
    if (given == NULL || given[0] == '\0') {
        const char *instance =
            c->options.instance != NULL ? c->options.instance : secure_getenv("WALRUS_INSTANCE");
        return paths_default_socket(c->attempt.path, sizeof c->attempt.path, instance, c->err);
    }
    size_t length = strlen(given);
    if (length >= sizeof c->attempt.path)
        return error_set(c->err, -ENAMETOOLONG,
                         "the socket path has %zu characters, a socket can have %zu: use a shorter one",
                         length, sizeof c->attempt.path - 1);
    memcpy(c->attempt.path, given, length + 1);
    return 0;
}

#define KNOWN_FLAGS ((uint32_t)(WALRUS_REQUIRE_IO_URING | WALRUS_RECONNECT | WALRUS_TAKE_OVER))

/* Who the handle writes as. */
static int choose_producer(struct connecting *c)
{
    const struct walrus_connect_options *o = &c->options;
    if (o->producer == NULL) {
        if ((o->flags & WALRUS_TAKE_OVER) != 0)
            return error_set(c->err, -EINVAL,
                             "WALRUS_TAKE_OVER without a producer: there is no name to take over");
        if ((o->flags & WALRUS_RECONNECT) != 0)
            c->attempt.hello.flags |= HELLO_PRODUCER;
        return 0;
    }
    size_t length = strnlen(o->producer, MAX_PRODUCER_NAME + 1);
    if (!walrus__name_valid(o->producer, length))
        return error_set(c->err, -EINVAL,
                         "a producer's name has 1 to %u bytes and no control characters (0x00-0x1f, 0x7f): "
                         "this one does not",
                         MAX_PRODUCER_NAME);
    memcpy(c->attempt.hello.name, o->producer, length);
    c->attempt.hello.name_bytes = (uint32_t)length;
    if ((o->flags & WALRUS_TAKE_OVER) != 0)
        c->attempt.hello.flags |= HELLO_TAKE_OVER;
    return 0;
}

static int check_options(struct connecting *c)
{
    struct walrus_connect_options *o = &c->options;
    if ((o->flags & ~KNOWN_FLAGS) != 0)
        return error_set(c->err, -EINVAL, "flags 0x%x: this library does not know all of them", o->flags);
    struct layout_sizes sizes = {
        .queue_entries = o->queue_entries > 0 ? o->queue_entries : DEFAULT_QUEUE_ENTRIES,
        .arena_bytes = align_up(o->arena_bytes > 0 && o->arena_bytes <= MAX_ARENA_BYTES ? o->arena_bytes
                                                                                        : DEFAULT_ARENA_BYTES,
                                LAYOUT_PAGE),
        .window_bytes = o->window_bytes > 0 ? o->window_bytes : DEFAULT_WINDOW_BYTES,
    };
    if (o->arena_bytes > MAX_ARENA_BYTES || !layout_place(&sizes))
        return error_set(c->err, -EINVAL,
                         "queue_entries %u, arena_bytes %llu, window_bytes %llu: allowed are a power of two "
                         "from %u to %u, %u to "
                         "%u, a power of two from %u to %u",
                         o->queue_entries, (unsigned long long)o->arena_bytes,
                         (unsigned long long)o->window_bytes, MIN_QUEUE_ENTRIES, MAX_QUEUE_ENTRIES,
                         MIN_ARENA_BYTES, MAX_ARENA_BYTES, MIN_WINDOW_BYTES, MAX_WINDOW_BYTES);
    c->attempt.hello = (struct hello){
        .magic = MESSAGE_MAGIC,
        .version_min = LAYOUT_VERSION,
        .version_max = LAYOUT_VERSION,
        .fingerprint = layout_fingerprint(),
        .flags = (o->flags & WALRUS_REQUIRE_IO_URING) != 0 ? HELLO_REQUIRE_URING : 0,
        .queue_entries = sizes.queue_entries,
        .arena_bytes = sizes.arena_bytes,
        .window_bytes = sizes.window_bytes,
    };
    c->attempt.deadline = walrus__deadline(o->timeout_ns != 0 ? o->timeout_ns : DEFAULT_TIMEOUT);
    return choose_producer(c);
}

/* -------------------------------------------------------------------------------------- socket */

void walrus__attempt_begin(struct attempt *a)
{
    a->socket = -1;
    for (int i = 0; i < FD_COUNT; i++)
        a->fds[i] = -1;
    a->client_map = a->broker_map = a->watermark_map = NULL;
    a->welcome = (struct welcome){.magic = 0};
}

static int64_t time_left(const struct attempt *a)
{
    if (a->deadline == FOR_EVER)
        return FOR_EVER;
    int64_t left = a->deadline - walrus__now();
    return left > 0 ? left : 0;
}

static int timed_out(struct attempt *a)
{
    return error_set(a->err, -ETIMEDOUT,
                     "%s: the broker did not answer in time: see whether it is stopped or overloaded",
                     a->path);
}

static int connect_failed(struct attempt *a, int error)
{
    switch (error) {
    case ENOENT:
    case ENOTDIR:
        return error_set(a->err, -ENOTCONN,
                         "%s: there is no such socket: start walrusd, or set WALRUS_SOCKET to its socket",
                         a->path);
    case ECONNREFUSED:
        return error_set(a->err, -ECONNREFUSED,
                         "%s: nobody listens on it (its broker is gone, or it is no socket): start walrusd",
                         a->path);
    case EACCES:
    case EPERM:
        return error_set(a->err, -EACCES,
                         "%s: this user may not connect: see the mode of the socket and its folder", a->path);
    case EPROTOTYPE:
        return error_set(a->err, -EPROTO, "%s: this is not the socket of a walrusd", a->path);
    case EAGAIN:
    case ETIMEDOUT:
        return timed_out(a);
    default:
        return error_set(a->err, -error, "%s: cannot connect: %s", a->path, strerror(error));
    }
}

static int connect_socket(struct attempt *a)
{
    a->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | (a->waits ? 0 : SOCK_NONBLOCK), 0);
    if (a->socket < 0)
        return error_set(a->err, -errno, "no socket: %s", strerror(errno));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, a->path, sizeof address.sun_path);
    for (;;) {
        int64_t left = time_left(a);
        if (left == 0)
            return timed_out(a);
        if (a->waits && left != FOR_EVER) { /* bounds the wait for a broker whose backlog is full */
            struct timeval limit = {.tv_sec = left / NS_PER_S, .tv_usec = left % NS_PER_S / 1000 + 1};
            if (setsockopt(a->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0)
                return error_set(a->err, -errno, "socket timeout: %s", strerror(errno));
        }
        if (connect(a->socket, (const struct sockaddr *)&address, sizeof address) == 0)
            return 0;
        if (errno != EINTR)
            return connect_failed(a, errno);
    }
}

static int wait_readable(struct attempt *a)
{
    for (;;) {
        int64_t left = time_left(a);
        struct timespec limit = {left / NS_PER_S, left % NS_PER_S};
        struct pollfd fd = {.fd = a->socket, .events = POLLIN};
        int ready = ppoll(&fd, 1, left == FOR_EVER ? NULL : &limit, NULL);
        if (ready > 0)
            return 0;
        if (ready == 0)
            return timed_out(a);
        if (errno != EINTR)
            return error_set(a->err, -errno, "%s: poll: %s", a->path, strerror(errno));
    }
}

/* Takes descriptors out of the control data; those beyond five are closed. Returns how many came. */
static unsigned take_fds(struct msghdr *message, int fds[FD_COUNT])
{
    unsigned count = 0;
    for (struct cmsghdr *m = CMSG_FIRSTHDR(message); m != NULL; m = CMSG_NXTHDR(message, m)) {
        if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(m) + i * sizeof fd, sizeof fd);
            if (count < FD_COUNT)
                fds[count] = fd;
            else
                close(fd);
            count++;
        }
    }
    return count;
}

/* What the welcome says beyond layout and sizes. */
static int check_welcome(struct attempt *a, struct welcome *w)
{
    static const uint8_t zero[sizeof w->reserved];
    bool wanted = (a->hello.flags & HELLO_PRODUCER) != 0 || a->hello.name_bytes > 0;
    bool resumed = (w->flags & WELCOME_RESUMED) != 0;
    if ((w->flags & ~WELCOME_RESUMED) != 0 || memcmp(w->reserved0, zero, sizeof w->reserved0) != 0 ||
        memcmp(w->reserved, zero, sizeof zero) != 0)
        return error_set(a->err, -EPROTO,
                         "%s: the broker's welcome uses something that layout %u does not know", a->path,
                         LAYOUT_VERSION);
    if ((w->producer != 0) != wanted ||
        (resumed && a->hello.producer != 0 && w->producer != a->hello.producer))
        return error_set(a->err, -EPROTO,
                         "%s: the broker's welcome has producer %llu, which is not the one asked for",
                         a->path, (unsigned long long)w->producer);
    if (w->max_batch_bytes == 0)
        w->max_batch_bytes = MAX_BATCH_BYTES;
    return 0;
}

int walrus__attempt_welcome(struct attempt *a, bool *refused)
{
    *refused = false;
    int code = a->waits ? wait_readable(a) : 0;
    if (code < 0)
        return code;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE((FD_COUNT + 1) * sizeof(int))];
    } control;
    struct welcome *w = &a->welcome;
    *w = (struct welcome){.magic = 0};
    struct iovec to = {w, sizeof *w};
    struct msghdr message = {
        .msg_iov = &to, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n;
    do
        n = recvmsg(a->socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN && !a->waits)
        return -EAGAIN;
    unsigned count = n >= 0 ? take_fds(&message, a->fds) : 0; /* an empty message may have some, too */
    if (n <= 0)
        return error_set(a->err, -ECONNREFUSED, "%s: the broker hung up during the handshake: see its log",
                         a->path);
    if ((message.msg_flags & MSG_CTRUNC) != 0 && count < FD_COUNT)
        return error_set(
            a->err, -EMFILE,
            "%s: this process has no file descriptors left for the broker's: close some, or raise "
            "its RLIMIT_NOFILE",
            a->path);
    if ((size_t)n != sizeof *w || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ||
        w->magic != MESSAGE_MAGIC)
        return error_set(a->err, -EPROTO,
                         "%s: whoever answered speaks another protocol: this is not a walrusd of layout %u",
                         a->path, LAYOUT_VERSION);
    w->text[sizeof w->text - 1] = '\0';
    *refused = w->status < 0 && w->status >= -4095;
    if (*refused)
        return error_set(a->err, w->status, "%s: the broker refused: %.380s", a->path,
                         w->text[0] != '\0' ? w->text : strerror(-w->status));
    if (w->status != 0 || count != FD_COUNT)
        return error_set(a->err, -EPROTO,
                         "%s: the broker's welcome has status %d and %u descriptors instead of %d", a->path,
                         w->status, count, FD_COUNT);
    if (w->version != LAYOUT_VERSION || w->fingerprint != layout_fingerprint())
        return error_set(
            a->err, -EPROTO,
            "%s: the broker has layout %u (%016llx), this library %u (%016llx): use the same release of both",
            a->path, w->version, (unsigned long long)w->fingerprint, LAYOUT_VERSION,
            (unsigned long long)layout_fingerprint());
    return check_welcome(a, w);
}

int walrus__attempt_call(struct attempt *a)
{
    int code = connect_socket(a);
    if (code < 0)
        return code;
    ssize_t n;
    do
        n = send(a->socket, &a->hello, sizeof a->hello, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno != EPIPE && errno != ECONNRESET) /* then a refusal may wait to be read */
        return error_set(a->err, errno == EAGAIN ? -ETIMEDOUT : -errno, "%s: hello: %s", a->path,
                         strerror(errno));
    return 0;
}

/* --------------------------------------------------------------------------------------- files */

static int map_file(struct attempt *a, enum welcome_fd which_fd, uint64_t bytes, void **map,
                    size_t *map_bytes)
{
    static const char *const names[FD_COUNT] = {
        [FD_CLIENT_FILE] = "client", [FD_BROKER_FILE] = "broker", [FD_WATERMARKS] = "watermark"};
    const char *which = names[which_fd];
    int fd = a->fds[which_fd];
    int protection = which_fd == FD_CLIENT_FILE ? PROT_READ | PROT_WRITE : PROT_READ;
    /* Those of this connection are small and used all over; of the watermarks a few slots are looked at. */
    int flags = which_fd == FD_WATERMARKS ? MAP_SHARED : MAP_SHARED | MAP_POPULATE;
    int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;
    if (seals < 0 || (seals & NEEDED_SEALS) != NEEDED_SEALS || fstat(fd, &st) != 0 || st.st_size < 0 ||
        (uint64_t)st.st_size != bytes)
        return error_set(a->err, -EPROTO, "%s: the %s file is not sealed, or not %llu bytes long", a->path,
                         which, (unsigned long long)bytes);
    void *at = mmap(NULL, bytes, protection, flags, fd, 0);
    if (at == MAP_FAILED)
        return error_set(a->err, -errno, "%s: no address space for the %s file of %llu bytes: %s", a->path,
                         which, (unsigned long long)bytes, strerror(errno));
    *map = at;
    *map_bytes = bytes;
    return 0;
}

/* Anonymous inodes have no file type: a pipe or socket here could raise SIGPIPE. */
static bool is_eventfd(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && (st.st_mode & S_IFMT) == 0;
}

/* The slots of every topic; a broker without any sends whatever it likes. */
static int map_watermarks(struct attempt *a)
{
    uint32_t slots = a->welcome.watermark_slots;
    if (slots == 0)
        return 0;
    return map_file(a, FD_WATERMARKS, align_up((uint64_t)slots * sizeof(struct watermark), LAYOUT_PAGE),
                    &a->watermark_map, &a->watermark_map_bytes);
}

int walrus__attempt_map(struct attempt *a)
{
    const struct welcome *w = &a->welcome;
    struct layout_sizes *sizes = &a->sizes;
    *sizes = (struct layout_sizes){
        .queue_entries = w->queue_entries, .arena_bytes = w->arena_bytes, .window_bytes = w->window_bytes};
    if (!layout_place(sizes))
        return error_set(a->err, -EPROTO, "%s: the broker's welcome has sizes out of range", a->path);
    if (!is_eventfd(a->fds[FD_DOORBELL]) || !is_eventfd(a->fds[FD_SIGNAL]))
        return error_set(a->err, -EPROTO, "%s: the broker sent something else where eventfds belong",
                         a->path);
    size_t ignored;
    int code = map_file(a, FD_CLIENT_FILE, sizes->client_file_bytes, &a->client_map, &ignored);
    if (code == 0)
        code = map_file(a, FD_BROKER_FILE, sizes->broker_file_bytes, &a->broker_map, &ignored);
    if (code == 0)
        code = map_watermarks(a);
    if (code < 0)
        return code;
    struct broker_words words;
    memcpy(&words, a->broker_map, sizeof words);
    if (words.magic != LAYOUT_MAGIC || words.version != w->version ||
        words.queue_entries != w->queue_entries || words.fingerprint != w->fingerprint ||
        words.arena_at != sizes->arena_at || words.arena_bytes != w->arena_bytes ||
        words.window_at != sizes->window_at || words.window_bytes != w->window_bytes ||
        words.epoch != w->epoch)
        return error_set(a->err, -EPROTO, "%s: the broker's first page does not say what its welcome says",
                         a->path);
    return 0;
}

void walrus__adopt(struct walrus *handle, struct attempt *a)
{
    const struct layout_sizes *sizes = &a->sizes;
    handle->socket = a->socket;
    handle->doorbell = a->fds[FD_DOORBELL];
    handle->signal = a->fds[FD_SIGNAL];
    handle->client_map = a->client_map;
    handle->client_map_bytes = sizes->client_file_bytes;
    handle->broker_map = a->broker_map;
    handle->broker_map_bytes = sizes->broker_file_bytes;
    handle->watermarks = a->watermark_map;
    handle->watermark_map_bytes = a->watermark_map_bytes;
    handle->watermark_slots = a->watermark_map != NULL ? a->welcome.watermark_slots : 0;
    handle->welcome = a->welcome;
    handle->client = handle->client_map;
    handle->broker = handle->broker_map;
    handle->arena = (uint8_t *)handle->client_map + sizes->arena_at;
    handle->arena_bytes = (uint32_t)sizes->arena_bytes;
    handle->window = (const uint8_t *)handle->broker_map + sizes->window_at;
    handle->window_bytes = sizes->window_bytes;
    handle->queue_entries = sizes->queue_entries;
    ring_init(&handle->submission, sizes->queue_entries, &handle->client->sq_tail, &handle->broker->sq_head,
              (uint8_t *)handle->client_map + LAYOUT_PAGE);
    ring_init(&handle->completion, sizes->queue_entries, &handle->client->cq_head, &handle->broker->cq_tail,
              (uint8_t *)handle->broker_map + LAYOUT_PAGE);
    a->fds[FD_DOORBELL] = a->fds[FD_SIGNAL] = a->socket = -1;
    a->client_map = a->broker_map = a->watermark_map = NULL;
}

void walrus__attempt_release(struct attempt *a)
{
    if (a->watermark_map != NULL)
        munmap(a->watermark_map, a->watermark_map_bytes);
    if (a->broker_map != NULL)
        munmap(a->broker_map, a->sizes.broker_file_bytes);
    if (a->client_map != NULL)
        munmap(a->client_map, a->sizes.client_file_bytes);
    a->client_map = a->broker_map = a->watermark_map = NULL;
    for (int i = 0; i < FD_COUNT; i++)
        walrus__close_fd(&a->fds[i]); /* mapped, or not wanted */
    walrus__hang_up(&a->socket);
}

static int make_epoll(struct connecting *c, struct walrus *handle)
{
    handle->epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event signal_event = {.events = EPOLLIN};
    struct epoll_event socket_event = {.events = EPOLLIN | EPOLLRDHUP};
    if (handle->epoll < 0 || epoll_ctl(handle->epoll, EPOLL_CTL_ADD, handle->signal, &signal_event) != 0 ||
        epoll_ctl(handle->epoll, EPOLL_CTL_ADD, handle->socket, &socket_event) != 0)
        return error_set(c->err, -errno, "epoll: %s", strerror(errno));
    return 0;
}

/* ---------------------------------------------------------------------------------------- life */

static struct walrus *handle_new(void)
{
    struct walrus *handle = calloc(1, sizeof *handle);
    if (handle == NULL)
        return NULL;
    handle->self = handle;
    handle->socket = handle->doorbell = handle->signal = handle->epoll = -1;
    handle->oldest = handle->newest = NO_REQUEST;
    return handle;
}

void walrus__close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void walrus__hang_up(int *fd)
{
    if (*fd >= 0)
        shutdown(*fd, SHUT_RDWR); /* a forked child may have it, too */
    walrus__close_fd(fd);
}

static int build(struct connecting *c, struct walrus *handle)
{
    int code = choose_path(c);
    if (code == 0)
        code = check_options(c);
    if (code < 0)
        return code;
    code = walrus__fork_page(&handle->alive);
    if (code < 0)
        return error_set(c->err, code, "a page that fork wipes: %s", strerror(-code));
    struct attempt *attempt = &c->attempt;
    bool refused;
    if ((code = walrus__attempt_call(attempt)) < 0 ||
        (code = walrus__attempt_welcome(attempt, &refused)) < 0 || (code = walrus__attempt_map(attempt)) < 0)
        return code;
    walrus__adopt(handle, attempt);
    if ((code = make_epoll(c, handle)) < 0)
        return code;
    if (walrus__requests_init(handle) < 0 || walrus__room_init(handle) < 0)
        return error_set(c->err, -ENOMEM, "no memory for a connection of %u queue entries",
                         handle->queue_entries);
    walrus__waiting_init(handle, c->options.spin_ns);
    if ((c->options.flags & WALRUS_RECONNECT) != 0)
        return walrus__reconnect_init(handle, attempt, c->options.reconnect_ns, c->options.timeout_ns);
    return 0;
}

static int refuse(const struct walrus_connect_options *options, const struct error *err)
{
    if (options->error != NULL && options->error_size > 0)
        snprintf(options->error, options->error_size, "%s", err->text);
    return err->code;
}

int walrus_connect(walrus **handle_out, const struct walrus_connect_options *options)
{
    if (handle_out == NULL)
        return -EINVAL;
    *handle_out = NULL;
    struct error err = {.code = 0};
    struct connecting c = {.attempt = {.waits = true, .err = &err}, .err = &err};
    walrus__attempt_begin(&c.attempt);
    if (walrus__options(NULL, &c.options, sizeof c.options, options, "walrus_connect_options") < 0) {
        error_set(&err, -EINVAL,
                  "walrus_connect_options: set size to sizeof the struct and what this library (%s) does not "
                  "know to zero",
                  WALRUS_VERSION_STRING);
        return refuse(&c.options, &err);
    }
    struct walrus *handle = handle_new();
    if (handle == NULL)
        return refuse(&c.options, &(struct error){.code = -ENOMEM, .text = "no memory for a handle"});
    int code = build(&c, handle);
    walrus__attempt_release(&c.attempt);
    if (code < 0) {
        walrus_close(handle);
        return refuse(&c.options, &err);
    }
    *handle_out = handle;
    return 0;
}

void walrus_close(walrus *handle)
{
    if (handle == NULL)
        return;
    while (handle->reads != NULL)
        walrus__entries_free(handle->reads);
    while (handle->topics != NULL) {
        struct walrus_topic *topic = handle->topics;
        handle->topics = topic->next;
        free(topic);
    }
    while (handle->allocated != NULL) {
        struct walrus_batch *batch = handle->allocated;
        handle->allocated = batch->allocated_next;
        free(batch);
    }
    walrus__names_release(handle);
    walrus__arena_release(&handle->room);
    free(handle->listing);
    free(handle->requests);
    free(handle->kept);
    walrus__reconnect_release(handle);
    walrus__close_fd(&handle->epoll);
    walrus__close_fd(&handle->signal);
    walrus__close_fd(&handle->doorbell);
    walrus__close_fd(&handle->socket);
    walrus__windows_release(handle);
    if (handle->client_map != NULL)
        munmap(handle->client_map, handle->client_map_bytes);
    if (handle->broker_map != NULL)
        munmap(handle->broker_map, handle->broker_map_bytes);
    if (handle->watermarks != NULL)
        munmap((void *)(uintptr_t)handle->watermarks, handle->watermark_map_bytes);
    walrus__fork_page_release(handle->alive);
    free(handle);
}

int walrus_get_info(const walrus *handle, struct walrus_info *info)
{
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    size_t size = info != NULL ? info->size : 0;
    if (size < sizeof size)
        return walrus__fail(handle->self, -EINVAL, REASON_NONE, "get_info: set info->size to sizeof *info");
    struct walrus_info known = {
        .size = size,
        .epoch = handle->welcome.epoch,
        .broker_pid = handle->welcome.broker_pid,
        .layout_version = handle->welcome.version,
        .arena_bytes = handle->arena_bytes,
        .window_bytes = handle->window_bytes,
        .queue_entries = handle->queue_entries,
        .default_level = handle->welcome.default_level,
        .io_backend = (uint8_t)handle->welcome.io_backend,
        .max_batch_bytes = handle->welcome.max_batch_bytes,
        .producer = handle->welcome.producer,
        .reconnects = handle->reconnects,
    };
    memset(info, 0, size);
    memcpy(info, &known, size < sizeof known ? size : sizeof known);
    return 0;
}
