#include "harness.h"
#include "folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE_NS INT64_C(25000000000) /* less than a stream may idle: that must be nobody's rescue */

int open_descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    cr_assert_not_null(folder);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

/* ------------------------------------------------------------------------------------- server */

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    cr_assert_geq(fd, 0);
    cr_assert_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(fd, 1024), 0);
    return fd;
}

static void say(void *context, enum say priority, const char *line)
{
    (void)context;
    if (getenv("WALRUS_TEST_TALK") != NULL)
        fprintf(stderr, "say %d: %s\n", (int)priority, line);
}

void rig_start(struct rig *rig, const struct server_options *options, int backend)
{
    struct error err = {0};
    *rig = (struct rig){0};
    snprintf(rig->folder, sizeof rig->folder, "/tmp/walrus-session-XXXXXX");
    cr_assert_not_null(mkdtemp(rig->folder));
    snprintf(rig->socket_path, sizeof rig->socket_path, "%s/socket", rig->folder);
    rig->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    cr_assert_geq(rig->epoll_fd, 0);
    struct io_real_options io_options = {.folder = rig->folder,
                                         .backend = backend != 0 ? backend : IO_BACKEND_PWRITE,
                                         .watch_fd = rig->epoll_fd};
    int rc = io_real_create(&io_options, &rig->io, NULL, &err);
    if (rc == -EOPNOTSUPP)
        cr_skip("SKIPPED: this back end is not to be had here: %s", err.text);
    cr_assert_eq(rc, 0, "%s", err.text);
    fake_log_init(&rig->log, rig->io);
    struct server_options all = {0};
    if (options != NULL)
        all = *options;
    all.io = rig->io;
    all.log = &rig->log;
    all.epoll_fd = rig->epoll_fd;
    all.listen_fd = listen_at(rig->socket_path);
    all.default_level = LEVEL_DURABLE;
    all.say = say;
    cr_assert_eq(server_create(&all, &rig->server, &err), 0, "%s", err.text);
}

void rig_turn(struct rig *rig, int turns)
{
    while (turns-- > 0)
        cr_assert_eq(server_turn(rig->server), 0);
}

void rig_stop(struct rig *rig)
{
    if (rig->running)
        rig_halt(rig);
    rig->log.hold_answers = rig->log.hold_reads = false;
    cr_assert_eq(server_stop(rig->server, INT64_C(5000000000)), 0);
    server_destroy(rig->server);
    cr_assert_eq(fake_references(&rig->log), 0, "sessions gave back every topic");
    rig->io->functions->destroy(rig->io);
    close(rig->epoll_fd);
    fake_log_clear(&rig->log);
    cr_assert_eq(folder_remove(rig->folder), 0);
}

static void stop_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    struct rig *rig = container_of(watch, struct rig, stop);
    rig->stop_asked = true;
}

static void *run(void *argument)
{
    struct rig *rig = argument;
    while (!rig->stop_asked && rig->turn_result == 0)
        rig->turn_result = server_turn(rig->server);
    return NULL;
}

void rig_watch_stop(struct rig *rig)
{
    rig->log.deadline = INT64_MAX;
    rig->stop_asked = false;
    rig->stop = (struct watch){.ready = stop_ready, .fd = eventfd(0, EFD_CLOEXEC)};
    cr_assert_eq(server_watch(rig->server, &rig->stop, EPOLLIN), 0);
}

void rig_unwatch_stop(struct rig *rig)
{
    rig->log.deadline = 0;
    server_unwatch(rig->server, &rig->stop);
    close(rig->stop.fd);
}

void rig_run(struct rig *rig)
{
    cr_assert_neq(rig->io->backend, IO_BACKEND_URING, "a uring belongs to the thread that made it");
    rig_watch_stop(rig);
    cr_assert_eq(pthread_create(&rig->thread, NULL, run, rig), 0);
    rig->running = true;
}

void rig_halt(struct rig *rig)
{
    uint64_t one = 1;
    cr_assert_eq(write(rig->stop.fd, &one, sizeof one), sizeof one);
    cr_assert_eq(pthread_join(rig->thread, NULL), 0);
    rig->running = false;
    rig_unwatch_stop(rig);
    cr_assert_eq(rig->turn_result, 0);
}

/* ------------------------------------------------------------------------------------- client */

struct hello hello_good(void)
{
    return (struct hello){.magic = MESSAGE_MAGIC,
                          .version_min = LAYOUT_VERSION,
                          .version_max = LAYOUT_VERSION,
                          .fingerprint = layout_fingerprint(),
                          .queue_entries = 16,
                          .arena_bytes = MIN_ARENA_BYTES,
                          .window_bytes = MIN_WINDOW_BYTES};
}

int client_dial(const struct rig *rig)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", rig->socket_path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    cr_assert_geq(fd, 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static ssize_t receive_welcome(struct client *client, int fds[FD_COUNT], size_t *count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FD_COUNT * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = &client->welcome, .iov_len = sizeof client->welcome};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t n = recvmsg(client->socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    *count = 0;
    struct cmsghdr *header = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header != NULL && header->cmsg_type == SCM_RIGHTS) {
        *count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(header), *count * sizeof(int));
    }
    return n;
}

static void map_files(struct client *client)
{
    client->sizes = (struct layout_sizes){.queue_entries = client->welcome.queue_entries,
                                          .arena_bytes = client->welcome.arena_bytes,
                                          .window_bytes = client->welcome.window_bytes};
    cr_assert(layout_place(&client->sizes));
    uint8_t *mine =
        mmap(NULL, client->sizes.client_file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, client->files[0], 0);
    client->broker_mapping =
        mmap(NULL, client->sizes.broker_file_bytes, PROT_READ, MAP_SHARED, client->files[1], 0);
    const uint8_t *theirs = client->broker_mapping;
    cr_assert_neq(mine, MAP_FAILED);
    cr_assert_neq(theirs, MAP_FAILED);
    client->words = (struct client_words *)(void *)mine;
    client->arena = mine + client->sizes.arena_at;
    client->broker = (const struct broker_words *)(const void *)theirs;
    client->window = theirs + client->sizes.window_at;
    ring_init(&client->sq, client->sizes.queue_entries, &client->words->sq_tail, &client->broker->sq_head,
              mine + LAYOUT_PAGE);
    union {
        const uint8_t *bytes;
        void *slots; /* ring.h has one kind of ring; this side only pops */
    } completions = {.bytes = theirs + LAYOUT_PAGE};
    ring_init(&client->cq, client->sizes.queue_entries, &client->words->cq_head, &client->broker->cq_tail,
              completions.slots);
}

void client_say_hello(const struct rig *rig, struct client *client, const struct hello *hello, size_t bytes)
{
    *client = (struct client){.files = {-1, -1}, .doorbell = -1, .signal = -1, .watermarks = -1};
    client->socket = client_dial(rig);
    cr_assert_eq(send(client->socket, hello, bytes, MSG_NOSIGNAL), (ssize_t)bytes);
}

bool client_take_welcome(struct client *client, int *status)
{
    int fds[FD_COUNT];
    size_t count = 0;
    ssize_t n = receive_welcome(client, fds, &count);
    if (n < 0)
        return false;
    cr_assert_eq(n, sizeof client->welcome, "a welcome came");
    cr_assert_eq(client->welcome.magic, MESSAGE_MAGIC);
    *status = client->welcome.status;
    cr_assert_not_null(memchr(client->welcome.text, '\0', sizeof client->welcome.text));
    if (client->welcome.status != 0) {
        cr_assert_eq(count, 0, "no descriptors with a refusal");
        return true;
    }
    cr_assert_eq(count, FD_COUNT);
    client->files[0] = fds[FD_CLIENT_FILE];
    client->files[1] = fds[FD_BROKER_FILE];
    client->doorbell = fds[FD_DOORBELL];
    client->signal = fds[FD_SIGNAL];
    client->watermarks = fds[FD_WATERMARKS];
    map_files(client);
    return true;
}

int client_handshake(struct rig *rig, struct client *client, const struct hello *hello, size_t bytes)
{
    int status;
    client_say_hello(rig, client, hello, bytes);
    int64_t patience = io_now(rig->io) + PATIENCE_NS; /* large memory is made beside the loop */
    while (io_now(rig->io) < patience) {
        if (client_take_welcome(client, &status))
            return status;
        if (rig->running)
            poll(&(struct pollfd){.fd = client->socket, .events = POLLIN}, 1, 10000);
        else
            rig_turn(rig, 1);
    }
    cr_assert_fail("no welcome came");
    return -ETIMEDOUT;
}

void client_connect(struct rig *rig, struct client *client)
{
    struct hello hello = hello_good();
    int rc = client_handshake(rig, client, &hello, sizeof hello);
    cr_assert_eq(rc, 0, "%s", client->welcome.text);
}

void client_close(struct client *client)
{
    close(client->socket);
    if (client->words == NULL)
        return;
    munmap(client->words, client->sizes.client_file_bytes);
    munmap(client->broker_mapping, client->sizes.broker_file_bytes);
    close(client->files[0]);
    close(client->files[1]);
    close(client->doorbell);
    close(client->signal);
    close(client->watermarks);
}

bool client_ended(struct client *client)
{
    struct pollfd poll_fd = {.fd = client->socket, .events = POLLRDHUP};
    return poll(&poll_fd, 1, 0) == 1 && (poll_fd.revents & (POLLHUP | POLLRDHUP)) != 0;
}

void client_push(struct client *client, const struct descriptor *d)
{
    struct descriptor copy = *d;
    cr_assert_eq(ring_push_descriptor(&client->sq, &copy), 1);
    full_fence();
    if (word_load(&client->broker->parked) == PARKED) {
        uint64_t one = 1;
        cr_assert_eq(write(client->doorbell, &one, sizeof one), sizeof one);
    }
}

bool client_pop(struct client *client, struct completion *out)
{
    int rc = ring_pop_completion(&client->cq, out);
    cr_assert_geq(rc, 0, "the broker's tail is possible");
    return rc == 1;
}

struct completion client_answer(struct rig *rig, struct client *client)
{
    struct completion completion;
    int64_t patience = io_now(rig->io) + PATIENCE_NS; /* some answers take their time; see queue.c */
    while (io_now(rig->io) < patience) {
        if (client_pop(client, &completion))
            return completion;
        rig_turn(rig, 1);
    }
    cr_assert_fail("no completion came");
    return (struct completion){0};
}

struct completion client_call(struct rig *rig, struct client *client, const struct descriptor *d)
{
    client_push(client, d);
    struct completion completion = client_answer(rig, client);
    cr_assert_eq(completion.user_data, d->user_data);
    return completion;
}

uint32_t client_topic(struct rig *rig, struct client *client, const char *name)
{
    memcpy(client->arena, name, strlen(name));
    struct descriptor d = {
        .op = OP_OPEN, .flags = DESCRIPTOR_CREATE, .payload_bytes = (uint32_t)strlen(name), .user_data = 99};
    struct completion completion = client_call(rig, client, &d);
    cr_assert_eq(completion.result, 0);
    cr_assert_neq(completion.entries, 0);
    return completion.entries;
}

struct descriptor client_batch(struct client *client, uint32_t topic, uint32_t offset, uint32_t count,
                               const char *const *texts)
{
    struct entry_record records[64];
    cr_assert_leq(count, array_count(records));
    uint32_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t length = (uint32_t)strlen(texts[i]);
        memcpy(client->arena + offset + at, texts[i], length);
        records[i] = (struct entry_record){.length = length};
        at += (uint32_t)align_up(length, PAYLOAD_ALIGN);
    }
    memcpy(client->arena + offset + at, records, count * sizeof records[0]);
    return (struct descriptor){.op = OP_BATCH,
                               .topic = topic,
                               .arena_offset = offset,
                               .payload_bytes = at,
                               .entries = count,
                               .user_data = 1000 + offset,
                               .published_ns = 1};
}

struct descriptor client_text(struct client *client, uint32_t topic, uint32_t offset, const char *text)
{
    return client_batch(client, topic, offset, 1, &text);
}
