/* race.c: the library in several threads, each with a handle of its own, and a small broker in another one,
 * all on the very same mappings, for the thread sanitizer (which knows shared memory by address, and cannot
 * run under Criterion). A plain program: exit 0 and "ok", or what went wrong.
 *
 * The handshake is real; then each handle's pointers into its two files are replaced by the broker's own.
 * Each client keeps several batches in flight, queued, notified, as appends and in chunks, waits in every way
 * there is, and checks every answer. The broker reads payload and records before it answers, parks, and
 * signals, as layout.h says. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../libclient/src/handle.h"

#define CLIENTS 2
#define BATCHES 20000u
#define TOPIC   5u

#define need(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "race.c:%d: %s\n", __LINE__, #condition);                                        \
            _exit(1);                                                                                        \
        }                                                                                                    \
    } while (0)

/* One connection, as the broker has it. */
struct peer {
    int listener, socket, doorbell, signal;
    struct layout_sizes sizes;
    uint8_t *client_file, *broker_file;
    struct client_words *client;
    struct broker_words *words;
    struct watermark *marks;
    struct ring sq, cq;
    uint64_t sequence, sum, refused;
    pthread_t thread;
    struct walrus *handle;
};

static struct peer peers[CLIENTS];
static int done_fd;

/* ------------------------------------------------------------------------------------ handshake */

static void *make_file(uint64_t bytes, int seals, int *fd)
{
    *fd = memfd_create("race", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    need(*fd >= 0 && ftruncate(*fd, (off_t)bytes) == 0);
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    need(at != MAP_FAILED && fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | seals) == 0);
    return at;
}

static void send_welcome(struct peer *peer, const struct hello *hello, const int fds[FD_COUNT])
{
    struct welcome welcome = {.magic = MESSAGE_MAGIC,
                              .version = LAYOUT_VERSION,
                              .fingerprint = layout_fingerprint(),
                              .queue_entries = hello->queue_entries,
                              .io_backend = IO_BACKEND_PWRITE,
                              .arena_bytes = hello->arena_bytes,
                              .window_bytes = hello->window_bytes,
                              .epoch = 1,
                              .watermark_slots = 256,
                              .default_level = LEVEL_DURABLE};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FD_COUNT * sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec from = {&welcome, sizeof welcome};
    struct msghdr message = {
        .msg_iov = &from, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *m = CMSG_FIRSTHDR(&message);
    *m = (struct cmsghdr){
        .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(FD_COUNT * sizeof(int))};
    memcpy(CMSG_DATA(m), fds, FD_COUNT * sizeof(int));
    need(sendmsg(peer->socket, &message, 0) == (ssize_t)sizeof welcome);
}

static void welcome(struct peer *peer, int listener)
{
    struct hello hello;
    int fds[FD_COUNT];
    peer->socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    need(peer->socket >= 0 && recv(peer->socket, &hello, sizeof hello, 0) == (ssize_t)sizeof hello);
    struct layout_sizes *s = &peer->sizes;
    *s = (struct layout_sizes){.queue_entries = hello.queue_entries,
                               .arena_bytes = hello.arena_bytes,
                               .window_bytes = hello.window_bytes};
    need(layout_place(s));
    peer->client_file = make_file(s->client_file_bytes, 0, &fds[FD_CLIENT_FILE]);
    peer->broker_file = make_file(s->broker_file_bytes, F_SEAL_FUTURE_WRITE, &fds[FD_BROKER_FILE]);
    peer->marks = make_file(LAYOUT_PAGE, F_SEAL_FUTURE_WRITE, &fds[FD_WATERMARKS]);
    peer->client = (void *)peer->client_file;
    peer->words = (void *)peer->broker_file;
    *peer->words = (struct broker_words){.magic = LAYOUT_MAGIC,
                                         .version = LAYOUT_VERSION,
                                         .queue_entries = s->queue_entries,
                                         .fingerprint = layout_fingerprint(),
                                         .arena_at = s->arena_at,
                                         .arena_bytes = s->arena_bytes,
                                         .window_at = s->window_at,
                                         .window_bytes = s->window_bytes,
                                         .epoch = 1};
    ring_init(&peer->sq, s->queue_entries, &peer->words->sq_head, &peer->client->sq_tail,
              peer->client_file + LAYOUT_PAGE);
    ring_init(&peer->cq, s->queue_entries, &peer->words->cq_tail, &peer->client->cq_head,
              peer->broker_file + LAYOUT_PAGE);
    peer->doorbell = fds[FD_DOORBELL] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    peer->signal = fds[FD_SIGNAL] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    send_welcome(peer, &hello, fds);
    close(fds[FD_CLIENT_FILE]);
    close(fds[FD_BROKER_FILE]);
    close(fds[FD_WATERMARKS]);
}

/* The library uses the broker's mappings from now on. Its own stay until walrus_close. */
static void graft(struct peer *peer)
{
    struct walrus *handle = peer->handle;
    handle->client = peer->client;
    handle->broker = peer->words;
    handle->arena = peer->client_file + peer->sizes.arena_at;
    handle->window = peer->broker_file + peer->sizes.window_at;
    handle->watermarks = peer->marks;
    ring_init(&handle->submission, peer->sizes.queue_entries, &peer->client->sq_tail, &peer->words->sq_head,
              peer->client_file + LAYOUT_PAGE);
    ring_init(&handle->completion, peer->sizes.queue_entries, &peer->client->cq_head, &peer->words->cq_tail,
              peer->broker_file + LAYOUT_PAGE);
}

/* --------------------------------------------------------------------------------------- broker */

static void post(struct peer *peer, struct completion *c)
{
    uint32_t old = peer->cq.mirror.p_tail;
    need(ring_push_completion(&peer->cq, c) == 1);
    full_fence();
    uint32_t wake_at = word_load(&peer->client->wake_at);
    if (peer->cq.mirror.p_tail - wake_at - 1 < peer->cq.mirror.p_tail - old) {
        uint64_t one = 1;
        need(write(peer->signal, &one, sizeof one) == (ssize_t)sizeof one);
    }
}

static void take_write(struct peer *peer, const struct descriptor *d, struct completion *c)
{
    const uint8_t *payload = peer->client_file + peer->sizes.arena_at + d->arena_offset;
    for (uint32_t i = 0; i < d->payload_bytes + d->entries * sizeof(struct entry_record); i++)
        peer->sum += payload[i];
    if ((d->flags & DESCRIPTOR_NOTIFY) != 0) {
        *c = (struct completion){
            .user_data = d->user_data, .result = -EBUSY, .reason = REASON_TOPIC, .flags = COMPLETION_MORE};
        post(peer, c);
        peer->refused++;
        *c = (struct completion){.user_data = d->user_data, .flags = COMPLETION_TRY_NOW};
        return;
    }
    if (d->op == OP_CHUNK && (d->flags & DESCRIPTOR_LAST) == 0) {
        c->flags = COMPLETION_COPIED;
        return;
    }
    c->first_sequence = ++peer->sequence;
    c->entries = 1;
    __atomic_store_n(&peer->marks[1].written_next, peer->sequence + 1, __ATOMIC_RELEASE);
    __atomic_store_n(&peer->marks[1].durable_next, peer->sequence + 1, __ATOMIC_RELEASE);
}

static uint32_t turn(struct peer *peer)
{
    uint32_t count = 0;
    struct descriptor d;
    while (ring_pop_descriptor(&peer->sq, &d) == 1) {
        struct completion c = {.user_data = d.user_data, .published_ns = d.published_ns};
        if (d.op == OP_OPEN) {
            c.entries = TOPIC;
            c.window_at = 1;
        } else if (d.op == OP_APPEND || d.op == OP_BATCH || d.op == OP_CHUNK) {
            take_write(peer, &d, &c);
        }
        post(peer, &c);
        count++;
    }
    return count;
}

static bool turn_all(void)
{
    uint32_t count = 0;
    for (int i = 0; i < CLIENTS; i++)
        count += turn(&peers[i]);
    return count > 0;
}

static void park_all(uint32_t parked)
{
    for (int i = 0; i < CLIENTS; i++)
        word_store(&peers[i].words->parked, parked);
    full_fence();
}

static void *serve(void *unused)
{
    (void)unused;
    struct pollfd fds[CLIENTS + 1];
    for (int i = 0; i < CLIENTS; i++)
        fds[i] = (struct pollfd){.fd = peers[i].doorbell, .events = POLLIN};
    fds[CLIENTS] = (struct pollfd){.fd = done_fd, .events = POLLIN};
    for (;;) {
        if (turn_all())
            continue;
        park_all(PARKED);
        if (!turn_all()) {
            need(poll(fds, CLIENTS + 1, 30000) > 0);
            if (fds[CLIENTS].revents != 0)
                return NULL;
        }
        uint64_t count;
        for (int i = 0; i < CLIENTS; i++) {
            ssize_t ignored = read(peers[i].doorbell, &count, sizeof count);
            (void)ignored;
        }
        park_all(ACTIVE);
    }
}

/* --------------------------------------------------------------------------------------- client */

struct player {
    struct peer *peer;
    walrus_topic *topic;
    uint64_t committed, told;
    int epoll;
};

static void send_one(struct player *player, uint64_t n)
{
    static const uint8_t large[200000];
    struct walrus_submit_options options = {.size = sizeof options, .user_data = n};
    walrus_batch *batch;
    void *data;
    need(walrus_batch_begin(player->topic, &batch) == 0);
    if (n % 50 == 49) {
        need(walrus_batch_add(batch, large, sizeof large) == 0);
    } else if (n % 3 == 0) {
        need(walrus_batch_add_part(batch, "ab", 2, 1) == 0 && walrus_batch_add_part(batch, "c", 1, 0) == 0);
    } else {
        need(walrus_batch_reserve(batch, 50, &data) == 0);
        memset(data, (int)n, 50);
        need(walrus_batch_trim(batch, 20) == 0);
    }
    options.append = n % 5 == 1;
    options.queue = n % 7 == 2;
    options.notify = n % 11 == 3;
    int code;
    while ((code = walrus_batch_submit(batch, &options)) == -EAGAIN)
        need(walrus_wait(player->peer->handle, 1, 20000000000) == 0);
    need(code == 0);
}

static void reap(struct player *player, uint64_t round)
{
    struct walrus *handle = player->peer->handle;
    struct walrus_completion c[16];
    if (round % 2 == 0) {
        need(walrus_wait(handle, 1, 20000000000) == 0);
    } else {
        struct pollfd fd = {.fd = walrus_fd(handle), .events = POLLIN};
        need(poll(&fd, 1, 20000) == 1);
    }
    int count = walrus_reap(handle, c, 16);
    need(count >= 0);
    for (int i = 0; i < count; i++) {
        if (c[i].result == -EBUSY || (c[i].receipt.flags & WALRUS_RECEIPT_TRY_NOW) != 0) {
            player->told++;
            continue;
        }
        need(c[i].result == 0 && c[i].receipt.first_sequence == ++player->committed);
        need(walrus_topic_durable_next(player->topic) > player->committed);
    }
}

static void *play(void *argument)
{
    struct player player = {.peer = argument};
    struct walrus *handle = player.peer->handle;
    need(walrus_topic_open(handle, "t", 1, NULL, &player.topic) == 0);
    for (uint64_t n = 0; n < BATCHES; n++) {
        while (walrus_in_flight(handle) >= 8)
            reap(&player, n);
        send_one(&player, n);
        if (n % 100 == 0) {
            while (walrus_in_flight(handle) > 0)
                reap(&player, n);
            need(walrus_append_for_topic(handle, "t", "x", 1, NULL, NULL) == 0);
            player.committed++;
        }
    }
    while (walrus_in_flight(handle) > 0)
        reap(&player, player.committed);
    need(player.told == 2 * player.peer->refused && player.committed == player.peer->sequence);
    return NULL;
}

static void *welcome_one(void *argument)
{
    struct peer *peer = argument;
    welcome(peer, peer->listener);
    return NULL;
}

static void join(struct peer *peer, int listener, const struct sockaddr_un *address, int64_t spin_ns)
{
    struct walrus_connect_options options = {
        .size = sizeof options, .socket_path = address->sun_path, .queue_entries = 32, .spin_ns = spin_ns};
    pthread_t thread;
    peer->listener = listener;
    need(pthread_create(&thread, NULL, welcome_one, peer) == 0);
    need(walrus_connect(&peer->handle, &options) == 0);
    need(pthread_join(thread, NULL) == 0);
    graft(peer);
}

static void leave(struct peer *peer)
{
    walrus_close(peer->handle);
    munmap(peer->client_file, peer->sizes.client_file_bytes);
    munmap(peer->broker_file, peer->sizes.broker_file_bytes);
    munmap(peer->marks, LAYOUT_PAGE);
    close(peer->doorbell);
    close(peer->signal);
    close(peer->socket);
}

int main(void)
{
    static char folder[] = "/tmp/walrus-race-XXXXXX";
    need(mkdtemp(folder) != NULL);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s/socket", folder);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    need(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 4) == 0);
    done_fd = eventfd(0, EFD_CLOEXEC);
    for (int i = 0; i < CLIENTS; i++)
        join(&peers[i], listener, &address, i % 2 == 0 ? 0 : -1);
    pthread_t broker;
    need(pthread_create(&broker, NULL, serve, NULL) == 0);
    for (int i = 0; i < CLIENTS; i++)
        need(pthread_create(&peers[i].thread, NULL, play, &peers[i]) == 0);
    for (int i = 0; i < CLIENTS; i++)
        need(pthread_join(peers[i].thread, NULL) == 0);
    uint64_t one = 1;
    need(write(done_fd, &one, sizeof one) == (ssize_t)sizeof one && pthread_join(broker, NULL) == 0);
    for (int i = 0; i < CLIENTS; i++)
        leave(&peers[i]);
    close(listener);
    close(done_fd);
    unlink(address.sun_path);
    rmdir(folder);
    puts("ok");
    return 0;
}
