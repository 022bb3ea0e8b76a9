/* connect.c: the handshake and the handle's life.
 *
 * Happy path
 *   1. The socket path: the option, else WALRUS_SOCKET, else the default of this user (shared/paths.h).
 *   2. connect, send struct hello, receive struct welcome with exactly four descriptors, all close-on-exec.
 *   3. Before anything is mapped: both files are sealed (nobody can shrink them under us: no SIGBUS) and as
 *      long as the sizes of the welcome say; the other two are eventfds or the like (never a pipe: no
 *      SIGPIPE).
 *   4. Map; the broker's first page must say what its welcome said. The memfds are closed.
 *   5. Rings, room, requests; the epoll descriptor that the user may poll.
 *
 * Failure modes: each with words that name the path and the way out; everything acquired so far is released
 * in walrus_close, which knows a half-made handle. A descriptor that came unasked is closed.
 *
 * Invariants: a handle that walrus_connect returned has all of it. */
#include "handle.h"

#include "../../shared/paths.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_TIMEOUT (5 * NS_PER_S)
#define NEEDED_SEALS    (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct connecting {
    struct walrus_connect_options options;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    struct hello hello;
    int64_t deadline;
    int fds[FD_COUNT];
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
        return paths_default_socket(c->path, sizeof c->path, instance, c->err);
    }
    size_t length = strlen(given);
    if (length >= sizeof c->path)
        return error_set(c->err, -ENAMETOOLONG,
                         "the socket path has %zu characters, a socket can have %zu: use a shorter one",
                         length, sizeof c->path - 1);
    memcpy(c->path, given, length + 1);
    return 0;
}

static int check_options(struct connecting *c)
{
    struct walrus_connect_options *o = &c->options;
    if ((o->flags & ~(uint32_t)WALRUS_REQUIRE_IO_URING) != 0)
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
    c->hello = (struct hello){
        .magic = MESSAGE_MAGIC,
        .version_min = LAYOUT_VERSION,
        .version_max = LAYOUT_VERSION,
        .fingerprint = layout_fingerprint(),
        .flags = (o->flags & WALRUS_REQUIRE_IO_URING) != 0 ? HELLO_REQUIRE_URING : 0,
        .queue_entries = sizes.queue_entries,
        .arena_bytes = sizes.arena_bytes,
        .window_bytes = sizes.window_bytes,
    };
    c->deadline = walrus__deadline(o->timeout_ns != 0 ? o->timeout_ns : DEFAULT_TIMEOUT);
    return 0;
}

/* -------------------------------------------------------------------------------------- socket */

static int64_t time_left(const struct connecting *c)
{
    if (c->deadline == FOR_EVER)
        return FOR_EVER;
    int64_t left = c->deadline - walrus__now();
    return left > 0 ? left : 0;
}

static int timed_out(struct connecting *c)
{
    return error_set(c->err, -ETIMEDOUT,
                     "%s: the broker did not answer in time: see whether it is stopped or overloaded",
                     c->path);
}

static int connect_failed(struct connecting *c, int error)
{
    switch (error) {
    case ENOENT:
    case ENOTDIR:
        return error_set(c->err, -ENOTCONN,
                         "%s: there is no such socket: start walrusd, or set WALRUS_SOCKET to its socket",
                         c->path);
    case ECONNREFUSED:
        return error_set(c->err, -ECONNREFUSED,
                         "%s: nobody listens on it (its broker is gone, or it is no socket): start walrusd",
                         c->path);
    case EACCES:
    case EPERM:
        return error_set(c->err, -EACCES,
                         "%s: this user may not connect: see the mode of the socket and its folder", c->path);
    case EPROTOTYPE:
        return error_set(c->err, -EPROTO, "%s: this is not the socket of a walrusd", c->path);
    case EAGAIN:
    case ETIMEDOUT:
        return timed_out(c);
    default:
        return error_set(c->err, -error, "%s: cannot connect: %s", c->path, strerror(error));
    }
}

static int connect_socket(struct connecting *c, struct walrus *handle)
{
    handle->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (handle->socket < 0)
        return error_set(c->err, -errno, "no socket: %s", strerror(errno));
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, c->path, sizeof address.sun_path);
    for (;;) {
        int64_t left = time_left(c);
        if (left == 0)
            return timed_out(c);
        if (left != FOR_EVER) { /* bounds the wait for a broker whose backlog is full */
            struct timeval limit = {.tv_sec = left / NS_PER_S, .tv_usec = left % NS_PER_S / 1000 + 1};
            if (setsockopt(handle->socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0)
                return error_set(c->err, -errno, "socket timeout: %s", strerror(errno));
        }
        if (connect(handle->socket, (const struct sockaddr *)&address, sizeof address) == 0)
            return 0;
        if (errno != EINTR)
            return connect_failed(c, errno);
    }
}

static int wait_readable(struct connecting *c, int socket)
{
    for (;;) {
        int64_t left = time_left(c);
        struct timespec limit = {left / NS_PER_S, left % NS_PER_S};
        struct pollfd fd = {.fd = socket, .events = POLLIN};
        int ready = ppoll(&fd, 1, left == FOR_EVER ? NULL : &limit, NULL);
        if (ready > 0)
            return 0;
        if (ready == 0)
            return timed_out(c);
        if (errno != EINTR)
            return error_set(c->err, -errno, "%s: poll: %s", c->path, strerror(errno));
    }
}

/* Takes descriptors out of the control data; those beyond four are closed. Returns how many came. */
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

static int receive_welcome(struct connecting *c, struct walrus *handle)
{
    int code = wait_readable(c, handle->socket);
    if (code < 0)
        return code;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE((FD_COUNT + 1) * sizeof(int))];
    } control;
    struct welcome *w = &handle->welcome;
    struct iovec to = {w, sizeof *w};
    struct msghdr message = {
        .msg_iov = &to, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n;
    do
        n = recvmsg(handle->socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return error_set(c->err, -ECONNREFUSED, "%s: the broker hung up during the handshake: see its log",
                         c->path);
    unsigned count = take_fds(&message, c->fds);
    if ((size_t)n != sizeof *w || (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 ||
        w->magic != MESSAGE_MAGIC)
        return error_set(c->err, -EPROTO,
                         "%s: whoever answered speaks another protocol: this is not a walrusd of layout %u",
                         c->path, LAYOUT_VERSION);
    w->text[sizeof w->text - 1] = '\0';
    if (w->status < 0 && w->status >= -4095)
        return error_set(c->err, w->status, "%s: the broker refused: %.380s", c->path,
                         w->text[0] != '\0' ? w->text : strerror(-w->status));
    if (w->status != 0 || count != FD_COUNT)
        return error_set(c->err, -EPROTO,
                         "%s: the broker's welcome has status %d and %u descriptors instead of %d", c->path,
                         w->status, count, FD_COUNT);
    if (w->version != LAYOUT_VERSION || w->fingerprint != layout_fingerprint())
        return error_set(
            c->err, -EPROTO,
            "%s: the broker has layout %u (%016llx), this library %u (%016llx): use the same release of both",
            c->path, w->version, (unsigned long long)w->fingerprint, LAYOUT_VERSION,
            (unsigned long long)layout_fingerprint());
    return 0;
}

static int shake_hands(struct connecting *c, struct walrus *handle)
{
    ssize_t n;
    do
        n = send(handle->socket, &c->hello, sizeof c->hello, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno != EPIPE && errno != ECONNRESET) /* then a refusal may wait to be read */
        return error_set(c->err, errno == EAGAIN ? -ETIMEDOUT : -errno, "%s: hello: %s", c->path,
                         strerror(errno));
    return receive_welcome(c, handle);
}

/* --------------------------------------------------------------------------------------- files */

static int map_file(struct connecting *c, int fd, uint64_t bytes, int protection, void **map,
                    size_t *map_bytes)
{
    const char *which = (protection & PROT_WRITE) != 0 ? "client" : "broker";
    int seals = fcntl(fd, F_GET_SEALS);
    struct stat st;
    if (seals < 0 || (seals & NEEDED_SEALS) != NEEDED_SEALS || fstat(fd, &st) != 0 || st.st_size < 0 ||
        (uint64_t)st.st_size != bytes)
        return error_set(c->err, -EPROTO, "%s: the %s file is not sealed, or not %llu bytes long", c->path,
                         which, (unsigned long long)bytes);
    void *at = mmap(NULL, bytes, protection, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (at == MAP_FAILED)
        return error_set(c->err, -errno, "%s: no address space for the %s file of %llu bytes: %s", c->path,
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

static int map_files(struct connecting *c, struct walrus *handle)
{
    const struct welcome *w = &handle->welcome;
    struct layout_sizes sizes = {
        .queue_entries = w->queue_entries, .arena_bytes = w->arena_bytes, .window_bytes = w->window_bytes};
    if (!layout_place(&sizes))
        return error_set(c->err, -EPROTO, "%s: the broker's welcome has sizes out of range", c->path);
    if (!is_eventfd(c->fds[FD_DOORBELL]) || !is_eventfd(c->fds[FD_SIGNAL]))
        return error_set(c->err, -EPROTO, "%s: the broker sent something else where eventfds belong",
                         c->path);
    int code = map_file(c, c->fds[FD_CLIENT_FILE], sizes.client_file_bytes, PROT_READ | PROT_WRITE,
                        &handle->client_map, &handle->client_map_bytes);
    if (code == 0)
        code = map_file(c, c->fds[FD_BROKER_FILE], sizes.broker_file_bytes, PROT_READ, &handle->broker_map,
                        &handle->broker_map_bytes);
    if (code < 0)
        return code;
    struct broker_words words;
    memcpy(&words, handle->broker_map, sizeof words);
    if (words.magic != LAYOUT_MAGIC || words.version != w->version ||
        words.queue_entries != w->queue_entries || words.fingerprint != w->fingerprint ||
        words.arena_at != sizes.arena_at || words.arena_bytes != w->arena_bytes ||
        words.window_at != sizes.window_at || words.window_bytes != w->window_bytes ||
        words.epoch != w->epoch)
        return error_set(c->err, -EPROTO, "%s: the broker's first page does not say what its welcome says",
                         c->path);
    handle->client = handle->client_map;
    handle->broker = handle->broker_map;
    handle->arena = (uint8_t *)handle->client_map + sizes.arena_at;
    handle->arena_bytes = (uint32_t)sizes.arena_bytes;
    handle->window = (const uint8_t *)handle->broker_map + sizes.window_at;
    handle->window_bytes = sizes.window_bytes;
    handle->queue_entries = sizes.queue_entries;
    ring_init(&handle->submission, sizes.queue_entries, &handle->client->sq_tail, &handle->broker->sq_head,
              (uint8_t *)handle->client_map + LAYOUT_PAGE);
    ring_init(&handle->completion, sizes.queue_entries, &handle->client->cq_head, &handle->broker->cq_tail,
              (uint8_t *)handle->broker_map + LAYOUT_PAGE);
    return 0;
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

static void close_fd(int fd)
{
    if (fd >= 0)
        close(fd);
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
    if ((code = connect_socket(c, handle)) < 0 || (code = shake_hands(c, handle)) < 0 ||
        (code = map_files(c, handle)) < 0)
        return code;
    handle->doorbell = c->fds[FD_DOORBELL];
    handle->signal = c->fds[FD_SIGNAL];
    c->fds[FD_DOORBELL] = c->fds[FD_SIGNAL] = -1;
    if ((code = make_epoll(c, handle)) < 0)
        return code;
    if (walrus__requests_init(handle) < 0 || walrus__room_init(handle) < 0)
        return error_set(c->err, -ENOMEM, "no memory for a connection of %u queue entries",
                         handle->queue_entries);
    walrus__waiting_init(handle, c->options.spin_ns);
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
    struct connecting c = {.fds = {-1, -1, -1, -1, -1}, .err = &err};
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
    for (int i = 0; i < FD_COUNT; i++)
        close_fd(c.fds[i]); /* mapped, or not wanted */
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
    close_fd(handle->epoll);
    close_fd(handle->signal);
    close_fd(handle->doorbell);
    close_fd(handle->socket);
    if (handle->client_map != NULL)
        munmap(handle->client_map, handle->client_map_bytes);
    if (handle->broker_map != NULL)
        munmap(handle->broker_map, handle->broker_map_bytes);
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
    };
    memset(info, 0, size);
    memcpy(info, &known, size < sizeof known ? size : sizeof known);
    return 0;
}
