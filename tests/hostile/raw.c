/* raw.c: the client's side of the protocol, by hand: everything may be done right or wrong.
 *
 * Happy path: dial, hello, welcome with five descriptors, two mappings, two rings.
 * Failure modes: the broker may refuse or hang up at any moment (that is what it ought to do with most of the
 * attacks): every wait has a limit and sees the hang-up. */
#include "hostile.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define WELCOME_LIMIT_NS (10 * SECOND)
#define ANSWER_LIMIT_NS  (10 * SECOND)
#define SPINS            200

/* ------------------------------------------------------------------------------------- connecting */

struct hello hello_small(struct rng *rng)
{
    return (struct hello){.magic = MESSAGE_MAGIC,
                          .version_min = LAYOUT_VERSION,
                          .version_max = LAYOUT_VERSION,
                          .fingerprint = layout_fingerprint(),
                          .queue_entries = MIN_QUEUE_ENTRIES << rng_below(rng, 5),
                          .arena_bytes = (uint64_t)MIN_ARENA_BYTES << rng_below(rng, 4),
                          .window_bytes = MIN_WINDOW_BYTES};
}

struct hello hello_named(struct rng *rng, const char *name, uint32_t flags)
{
    struct hello hello = hello_small(rng);
    size_t length = strlen(name);
    check_bug(length <= MAX_PRODUCER_NAME);
    memcpy(hello.name, name, length);
    hello.name_bytes = (uint32_t)length;
    hello.flags = flags;
    return hello;
}

int raw_dial(const struct attacker *a)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", a->socket);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    int rc = -errno;
    close(fd);
    return rc;
}

int raw_say(int fd, const void *bytes, size_t length, const int *fds, unsigned fd_count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(253 * sizeof(int))];
    } control = {0};
    struct iovec iov;
    memcpy(&iov.iov_base, &bytes, sizeof bytes);
    iov.iov_len = length;
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd_count > 0) {
        check_bug(fd_count <= 253);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(header), fds, fd_count * sizeof(int));
    }
    ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return n < 0 ? -errno : 0;
}

static ssize_t receive_welcome(struct raw *raw)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FD_COUNT * sizeof(int))];
    } control = {0};
    struct iovec iov = {.iov_base = &raw->welcome, .iov_len = sizeof raw->welcome};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t n = recvmsg(raw->socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0)
        return -errno;
    struct cmsghdr *header = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header != NULL && header->cmsg_type == SCM_RIGHTS) {
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(raw->fds, CMSG_DATA(header), (count < FD_COUNT ? count : FD_COUNT) * sizeof(int));
    }
    return n;
}

static int map_files(struct raw *raw)
{
    raw->sizes = (struct layout_sizes){.queue_entries = raw->welcome.queue_entries,
                                       .arena_bytes = raw->welcome.arena_bytes,
                                       .window_bytes = raw->welcome.window_bytes};
    if (!layout_place(&raw->sizes))
        return -EPROTO;
    void *client = mmap(NULL, raw->sizes.client_file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                        raw->fds[FD_CLIENT_FILE], 0);
    if (client == MAP_FAILED)
        return -errno;
    void *broker =
        mmap(NULL, raw->sizes.broker_file_bytes, PROT_READ, MAP_SHARED, raw->fds[FD_BROKER_FILE], 0);
    if (broker == MAP_FAILED) {
        int rc = -errno;
        munmap(client, raw->sizes.client_file_bytes);
        return rc;
    }
    raw->client = client;
    raw->broker = broker;
    raw->words = client;
    raw->arena = raw->client + raw->sizes.arena_at;
    raw->broker_words = broker;
    raw->slots = (struct descriptor *)(void *)(raw->client + LAYOUT_PAGE);
    ring_init(&raw->sq, raw->sizes.queue_entries, &raw->words->sq_tail, &raw->broker_words->sq_head,
              raw->slots);
    ring_init(&raw->cq, raw->sizes.queue_entries, &raw->words->cq_head, &raw->broker_words->cq_tail,
              (uint8_t *)broker + LAYOUT_PAGE);
    return 0;
}

static void forget(struct raw *raw)
{
    *raw = (struct raw){.socket = -1};
    for (unsigned i = 0; i < FD_COUNT; i++)
        raw->fds[i] = -1;
}

int raw_finish(struct attacker *a, struct raw *raw, int64_t limit_ns)
{
    int64_t end = now_ns() + limit_ns;
    ssize_t n;
    while ((n = receive_welcome(raw)) == -EAGAIN) {
        if (now_ns() >= end || over(a))
            return -ETIME;
        poll(&(struct pollfd){.fd = raw->socket, .events = POLLIN}, 1, 10);
    }
    if (n != (ssize_t)sizeof raw->welcome)
        return n < 0 ? (int)n : -ECONNRESET;
    if (raw->welcome.magic != MESSAGE_MAGIC)
        return -EPROTO;
    if (raw->welcome.status != 0)
        return raw->welcome.status < 0 ? raw->welcome.status : -EPROTO;
    return map_files(raw);
}

int raw_connect(struct attacker *a, struct raw *raw, const struct hello *hello)
{
    struct hello small = hello_small(&a->rng);
    forget(raw);
    raw->socket = raw_dial(a);
    if (raw->socket < 0)
        return raw->socket;
    int rc = raw_say(raw->socket, hello != NULL ? hello : &small, sizeof small, NULL, 0);
    if (rc == 0 || rc == -EPIPE || rc == -ECONNRESET) /* a refusal may have come before the hello */
        rc = raw_finish(a, raw, WELCOME_LIMIT_NS);
    if (rc != 0)
        raw_close(raw);
    return rc;
}

bool raw_may_fail(int rc)
{
    return rc == -EDQUOT || rc == -EAGAIN || rc == -ETIME || rc == -ECONNRESET || rc == -EMFILE ||
           rc == -ENFILE || rc == -EPIPE;
}

bool raw_connected(struct attacker *a, struct raw *raw)
{
    while (!over(a)) {
        int rc = raw_connect(a, raw, NULL);
        if (rc == 0)
            return true;
        if (!raw_may_fail(rc))
            found(a, "a good hello was refused: %s (%s)", strerror(-rc), raw->welcome.text);
        pause_ns(MS);
    }
    forget(raw);
    return false;
}

void raw_close(struct raw *raw)
{
    struct welcome welcome = raw->welcome;
    if (raw->client != NULL)
        munmap(raw->client, raw->sizes.client_file_bytes);
    if (raw->broker != NULL) {
        union {
            const uint8_t *bytes;
            void *mapping;
        } broker = {.bytes = raw->broker};
        munmap(broker.mapping, raw->sizes.broker_file_bytes);
    }
    for (unsigned i = 0; i < FD_COUNT; i++)
        if (raw->fds[i] >= 0)
            close(raw->fds[i]);
    if (raw->socket >= 0)
        close(raw->socket);
    forget(raw);
    raw->welcome = welcome; /* its words are still asked for */
}

bool raw_ended(const struct raw *raw)
{
    struct pollfd fd = {.fd = raw->socket, .events = POLLRDHUP};
    return raw->socket < 0 || (poll(&fd, 1, 0) == 1 && (fd.revents & (POLLHUP | POLLRDHUP | POLLERR)) != 0);
}

/* ------------------------------------------------------------------------------------- rings */

void raw_ring(const struct raw *raw)
{
    uint64_t one = 1;
    struct pollfd fd = {.fd = raw->fds[FD_DOORBELL], .events = POLLOUT};
    if (poll(&fd, 1, 0) != 1)
        return; /* full: it has rung enough, and may be a blocking one by now */
    ssize_t ignored = write(raw->fds[FD_DOORBELL], &one, sizeof one);
    (void)ignored;
}

int raw_push(struct raw *raw, const struct descriptor *d)
{
    struct descriptor copy = *d;
    int rc = ring_push_descriptor(&raw->sq, &copy);
    if (rc != 1)
        return rc;
    full_fence();
    if (word_load(&raw->broker_words->parked) == PARKED)
        raw_ring(raw);
    return 1;
}

bool raw_pop(struct raw *raw, struct completion *out)
{
    return ring_pop_completion(&raw->cq, out) == 1;
}

int raw_answer(struct raw *raw, struct completion *out, int64_t limit_ns)
{
    int64_t end = now_ns() + limit_ns;
    for (int i = 0; i < SPINS; i++)
        if (raw_pop(raw, out))
            return 0;
    while (now_ns() < end) {
        word_store(&raw->words->wake_at, raw->cq.mirror.c_head);
        full_fence();
        if (raw_pop(raw, out))
            return 0;
        if (raw_ended(raw))
            return raw_pop(raw, out) ? 0 : -ECONNRESET;
        struct pollfd fds[] = {{.fd = raw->fds[FD_SIGNAL], .events = POLLIN},
                               {.fd = raw->socket, .events = POLLRDHUP}};
        poll(fds, 2, 2);
        uint64_t value;
        if ((fds[0].revents & POLLIN) != 0 && read(raw->fds[FD_SIGNAL], &value, sizeof value) < 0)
            return -errno;
    }
    return -ETIME;
}

int raw_call(struct raw *raw, const struct descriptor *d, struct completion *out)
{
    int rc = raw_push(raw, d);
    if (rc != 1)
        return rc == 0 ? -EAGAIN : rc;
    while ((rc = raw_answer(raw, out, ANSWER_LIMIT_NS)) == 0)
        if (out->user_data == d->user_data)
            return 0;
    return rc;
}

uint32_t raw_topic(struct raw *raw, const char *name, size_t length, struct completion *out)
{
    size_t fits = length < raw->sizes.arena_bytes ? length : raw->sizes.arena_bytes;
    memcpy(raw->arena, name, fits);
    struct descriptor d = {.op = OP_OPEN,
                           .flags = DESCRIPTOR_CREATE,
                           .payload_bytes = (uint32_t)length,
                           .user_data = UINT64_C(0x6f70656e00000000) + length};
    if (raw_call(raw, &d, out) != 0)
        out->result = -ECONNRESET;
    return out->result == 0 ? out->entries : 0;
}

uint32_t raw_open(struct raw *raw, const char *name)
{
    struct completion completion;
    return raw_topic(raw, name, strlen(name), &completion);
}

/* ------------------------------------------------------------------------------------- batches */

struct descriptor raw_batch(struct raw *raw, struct rng *rng, uint32_t topic, uint32_t offset, uint32_t count,
                            uint32_t length)
{
    uint64_t room = raw->sizes.arena_bytes - offset;
    uint32_t padded = (uint32_t)align_up(length, PAYLOAD_ALIGN);
    uint64_t most = room / (padded + sizeof(struct entry_record));
    if (count > most)
        count = (uint32_t)most;
    uint32_t bytes = padded * count;
    rng_fill(rng, raw->arena + offset, bytes < 64 ? bytes : 64); /* the rest is whatever lies there */
    for (uint32_t i = 0; i < count; i++) {
        struct entry_record record = {.length = length, .type = (uint8_t)i};
        memcpy(raw->arena + offset + bytes + i * sizeof record, &record, sizeof record);
    }
    return (struct descriptor){.op = OP_BATCH,
                               .topic = topic,
                               .arena_offset = offset,
                               .payload_bytes = bytes,
                               .entries = count,
                               .user_data = rng_next(rng),
                               .published_ns = now_ns()};
}

struct descriptor raw_stamped(struct raw *raw, uint64_t seed, uint32_t topic, uint32_t offset, uint64_t batch,
                              uint32_t count)
{
    struct entry_record records[64];
    uint32_t at = 0;
    check_bug(count <= array_count(records));
    for (uint32_t i = 0; i < count; i++) {
        check_bug(offset + at + ENTRY_MOST + sizeof records <= raw->sizes.arena_bytes);
        uint32_t length = stamp_fill(seed, WRITER_HOSTILE, batch, i, count, raw->arena + offset + at);
        records[i] = (struct entry_record){.length = length};
        at += (uint32_t)align_up(length, PAYLOAD_ALIGN);
    }
    memcpy(raw->arena + offset + at, records, count * sizeof records[0]);
    return (struct descriptor){.op = OP_BATCH,
                               .topic = topic,
                               .arena_offset = offset,
                               .payload_bytes = at,
                               .entries = count,
                               .user_data = batch,
                               .published_ns = now_ns()};
}
