/* race.c: the loop in one thread, clients in others, all on the very same mappings, for the thread sanitizer
 * (which knows shared memory by address, and cannot run under Criterion). A plain program: exit 0 and "ok",
 * or what went wrong.
 *
 * Each client publishes batches as fast as its credit allows, sleeps on its signal in between, and checks
 * every answer. */
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../broker/session/session.h"
#include "fake_log.h"

#define CLIENTS 3
#define BATCHES 20000u

#define need(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "race.c:%d: %s\n", __LINE__, #condition);                                        \
            _exit(1);                                                                                        \
        }                                                                                                    \
    } while (0)

struct player {
    struct session *session; /* the broker's own: only its mappings and descriptors are used here */
    int socket;
    uint32_t topic;
    pthread_t thread;
    struct ring sq, cq;
};

static struct server *server;
static struct watch stop;
static bool stop_asked;

static void stop_ready(struct watch *watch, uint32_t events)
{
    (void)watch;
    (void)events;
    stop_asked = true;
}

static void publish(struct player *player, struct descriptor *d)
{
    need(ring_push_descriptor(&player->sq, d) == 1);
    full_fence();
    if (word_load(&player->session->broker->parked) == PARKED) {
        uint64_t one = 1;
        need(write(player->session->doorbell.fd, &one, sizeof one) == (ssize_t)sizeof one);
    }
}

static void answer(struct player *player, struct completion *completion)
{
    while (ring_pop_completion(&player->cq, completion) != 1) {
        word_store(&player->session->client->wake_at, player->cq.mirror.c_head);
        full_fence();
        if (ring_pop_completion(&player->cq, completion) == 1)
            return;
        struct pollfd poll_fd = {.fd = player->session->signal.fd, .events = POLLIN};
        need(poll(&poll_fd, 1, 20000) == 1);
        uint64_t value;
        ssize_t ignored = read(poll_fd.fd, &value, sizeof value);
        (void)ignored;
    }
}

static struct descriptor batch(struct player *player, uint64_t number)
{
    uint32_t at = (uint32_t)(number % 16) * 256;
    uint8_t *payload = player->session->client_arena + at;
    memset(payload, (int)(number & 0xff), 64);
    struct entry_record record = {.length = 50};
    memcpy(payload + 64, &record, sizeof record);
    return (struct descriptor){.op = OP_BATCH,
                               .topic = player->topic,
                               .arena_offset = at,
                               .payload_bytes = 64,
                               .entries = 1,
                               .user_data = number};
}

static void *play(void *argument)
{
    struct player *player = argument;
    uint64_t sent = 0;
    uint64_t got = 0;
    while (got < BATCHES) {
        while (sent < BATCHES && sent - got < 15) {
            struct descriptor d = batch(player, sent++);
            publish(player, &d);
        }
        struct completion completion;
        answer(player, &completion);
        need(completion.user_data == got && completion.result == 0 && completion.first_sequence == got + 1);
        got++;
    }
    return NULL;
}

static int listen_at(const char *path, struct sockaddr_un *address)
{
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(address->sun_path, sizeof address->sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    need(bind(fd, (struct sockaddr *)address, sizeof *address) == 0 && listen(fd, 10) == 0);
    return fd;
}

static void join(struct player *player, const struct sockaddr_un *address, const char *topic)
{
    struct hello hello = {.magic = MESSAGE_MAGIC,
                          .version_min = LAYOUT_VERSION,
                          .version_max = LAYOUT_VERSION,
                          .fingerprint = layout_fingerprint(),
                          .queue_entries = 16,
                          .arena_bytes = MIN_ARENA_BYTES,
                          .window_bytes = MIN_WINDOW_BYTES};
    player->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    need(connect(player->socket, (const struct sockaddr *)address, sizeof *address) == 0);
    need(send(player->socket, &hello, sizeof hello, 0) == (ssize_t)sizeof hello);
    uint64_t before = server_values(server)->session_connections;
    while (server_values(server)->session_connections == before)
        need(server_turn(server) == 0);
    struct session *session = TAILQ_LAST(&server->sessions, session_list);
    player->session = session;
    ring_init(&player->sq, 16, &session->client->sq_tail, &session->broker->sq_head, session->sq.slots);
    ring_init(&player->cq, 16, &session->client->cq_head, &session->broker->cq_tail, session->cq.slots);
    memcpy(session->client_arena, topic, strlen(topic));
    struct descriptor d = {
        .op = OP_OPEN, .flags = DESCRIPTOR_CREATE, .payload_bytes = (uint32_t)strlen(topic)};
    publish(player, &d);
    struct completion completion;
    while (ring_pop_completion(&player->cq, &completion) != 1)
        need(server_turn(server) == 0);
    need(completion.result == 0);
    player->topic = completion.entries;
}

static void *end_when_done(void *argument)
{
    struct player *players = argument;
    for (int i = 0; i < CLIENTS; i++)
        need(pthread_join(players[i].thread, NULL) == 0);
    uint64_t one = 1;
    need(write(stop.fd, &one, sizeof one) == (ssize_t)sizeof one);
    return NULL;
}

int main(void)
{
    static char folder[] = "/tmp/walrus-race-XXXXXX";
    static struct log log;
    static struct player players[CLIENTS];
    char path[64];
    struct error err = {0};
    need(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/socket", folder);
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct io_real_options io_options = {
        .folder = folder, .backend = IO_BACKEND_PWRITE, .watch_fd = epoll_fd};
    struct io *io;
    need(io_real_create(&io_options, &io, NULL, &err) == 0);
    fake_log_init(&log, io);
    struct sockaddr_un address;
    struct server_options options = {.io = io,
                                     .log = &log,
                                     .epoll_fd = epoll_fd,
                                     .listen_fd = listen_at(path, &address),
                                     .spin_ns = SPIN_ADAPTIVE};
    need(server_create(&options, &server, &err) == 0);
    join(&players[0], &address, "one"); /* the log's deadline 0 keeps the loop awake until here */
    join(&players[1], &address, "two");
    join(&players[2], &address, "three");
    log.deadline = INT64_MAX;
    stop = (struct watch){.ready = stop_ready, .fd = eventfd(0, EFD_CLOEXEC)};
    need(server_watch(server, &stop, EPOLLIN) == 0);
    for (int i = 0; i < CLIENTS; i++)
        need(pthread_create(&players[i].thread, NULL, play, &players[i]) == 0);
    pthread_t waiter;
    need(pthread_create(&waiter, NULL, end_when_done, players) == 0);
    while (!stop_asked)
        need(server_turn(server) == 0);
    need(pthread_join(waiter, NULL) == 0);
    for (int i = 0; i < CLIENTS; i++)
        close(players[i].socket);
    need(server_stop(server, INT64_C(5000000000)) == 0);
    server_destroy(server);
    need(log.stats.batches == (uint64_t)CLIENTS * BATCHES);
    io->functions->destroy(io);
    fake_log_clear(&log);
    unlink(path);
    rmdir(folder);
    puts("ok");
    return 0;
}
