/* broker_rig.c: see broker_rig.h.
 *
 * What is checked here, in every execution:
 *   R1  each slot is read once for each descriptor that is taken from it; it is then the broker's copy.
 *   R2  what comes to log_write is that copy, within the limits of layout.h, and lies inside the arena.
 *   R3  log_write reads no more of the arena than payload and records, once.
 *   R4  an answer is to something that was taken and is not answered; one with MORE is followed by one
 *       more. When the server has stopped, everything that was taken from a living connection is answered.
 *   R5  no descriptor, mapping, topic or producer is left behind. */
#include "broker_rig.h"

#define PATIENCE_NS INT64_C(60000000000)

struct rig rig;

static struct taken taken_by[PEERS][TAKEN_MOST];

static struct taken *taken_at(const struct peer *peer, uint64_t number)
{
    return &taken_by[peer - rig.peers][number];
}

/* ---------------------------------------------------------------------------------------- shared reads */

static struct peer *peer_of_slot(int slot)
{
    for (int i = 0; i < PEERS; i++)
        if (rig.peers[i].client_slot == slot)
            return &rig.peers[i];
    bug(__FILE__, __LINE__, "the memory of no connection");
}

static struct broker_words *broker_words(const struct peer *peer)
{
    return (struct broker_words *)(void *)kernel_slot_memory(peer->broker_slot);
}

static void put32(uint8_t *memory, uint64_t offset, uint32_t value)
{
    memcpy(memory + offset, &value, sizeof value);
}

/* An index word: the honest one, one that is near, or any. */
static uint32_t index_value(uint32_t honest, uint32_t near)
{
    uint8_t kind = rig.hostile ? input_back(rig.input) : 0;
    if (kind < 0xc0)
        return honest;
    if (kind < 0xf0)
        return near + (kind & 0x1f);
    return (uint32_t)input_back_number(rig.input, 4);
}

static void change_bytes(uint8_t *at, uint64_t length)
{
    uint64_t place = input_back_number(rig.input, 2) % length;
    uint64_t value = input_back_value(rig.input);
    memcpy(at + place, &value, min_u64(sizeof value, length - place));
}

static void read_descriptor(struct peer *peer, uint64_t offset, uint64_t length, uint8_t *memory)
{
    uint32_t head = word_load(&broker_words(peer)->sq_head);
    uint32_t slot = (uint32_t)((offset - LAYOUT_PAGE) / sizeof(struct descriptor));
    uint8_t *at = memory + offset;
    check_bug(length == sizeof(struct descriptor) && (offset - LAYOUT_PAGE) % length == 0);
    check_bug((head & (peer->sizes.queue_entries - 1)) == slot);
    check_bug(!peer->any_read || head != peer->last_head); /* R1 */
    peer->any_read = true;
    peer->last_head = head;
    uint8_t kind = rig.hostile ? input_back(rig.input) : 0;
    for (unsigned changes = kind < 0xa0 ? 0 : (kind & 3) + 1u; changes > 0; changes--) {
        uint64_t place = 8 + 4 * (input_back(rig.input) % 14u);
        put32(at, place, (uint32_t)input_back_value(rig.input));
    }
    /* It comes back, and is looked at by nobody: here it says which one it is. */
    check_bug(peer->taken_count < TAKEN_MOST); /* rig_push leaves room for what was not pushed */
    struct taken *taken = taken_at(peer, peer->taken_count);
    uint64_t number = (uint64_t)(peer - rig.peers) << 32 | peer->taken_count++;
    memcpy(at, &number, sizeof number);
    memcpy(&taken->descriptor, at, sizeof taken->descriptor);
    taken->state = TAKEN_OPEN;
    rig.arena_read = 0;
    rig.arena_allowed = taken->descriptor.op == OP_OPEN ? taken->descriptor.payload_bytes : 0; /* the name */
}

static void read_arena(uint64_t length, uint8_t *at)
{
    check_bug(length <= rig.arena_allowed - rig.arena_read); /* R3 */
    rig.arena_read += length;
    if (rig.hostile && length > 0 && input_back(rig.input) >= 0xd0)
        change_bytes(at, length);
}

static void shared_read(int slot, uint64_t offset, uint64_t length, uint8_t *memory)
{
    struct peer *peer = peer_of_slot(slot);
    check_bug(length <= peer->sizes.client_file_bytes && offset <= peer->sizes.client_file_bytes - length);
    if (offset == offsetof(struct client_words, sq_tail)) {
        put32(memory, offset, index_value(peer->tail, word_load(&broker_words(peer)->sq_head)));
    } else if (offset == offsetof(struct client_words, cq_head) ||
               offset == offsetof(struct client_words, wake_at)) {
        put32(memory, offset, index_value(peer->reaped, word_load(&broker_words(peer)->cq_tail) - 16));
    } else if (offset == offsetof(struct client_words, window_head)) {
        if (rig.hostile && input_back(rig.input) >= 0xe0)
            change_bytes(memory + offset, length);
    } else if (offset >= peer->sizes.arena_at) {
        read_arena(length, memory + offset);
    } else {
        check_bug(offset >= LAYOUT_PAGE && offset + length <= peer->sizes.arena_at);
        read_descriptor(peer, offset, length, memory);
    }
}

/* ------------------------------------------------------------------------------------ what is admitted */

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
int __real_log_write(struct log *log, struct write *write);
int __wrap_log_write(struct log *log, struct write *write);
int __real_log_topic(struct log *log, const char *name, size_t length, uint8_t level, uint32_t uid, bool make,
                     struct topic **out);
int __wrap_log_topic(struct log *log, const char *name, size_t length, uint8_t level, uint32_t uid, bool make,
                     struct topic **out);
/* NOLINTEND(bugprone-reserved-identifier) */

static const struct descriptor *taken_of(const struct request *request)
{
    uint64_t index = request->user_data >> 32, number = request->user_data & UINT32_MAX;
    check_bug(index < PEERS && number < rig.peers[index].taken_count);
    const struct taken *taken = taken_at(&rig.peers[index], number);
    check_bug(taken->state == TAKEN_OPEN);
    return &taken->descriptor;
}

/* R2. What a chunk says about its stream is stream.c's, and checked there. */
static void check_admitted(struct write *write)
{
    const struct request *request = container_of(write, struct request, write);
    const struct session *session = request->session;
    const struct descriptor *d = taken_of(request);
    uint64_t records = (uint64_t)write->entries * sizeof(struct entry_record);
    uint64_t at = (uint64_t)((const uint8_t *)write->payload - session->client_arena);
    check_bug(at == d->arena_offset && at % PAYLOAD_ALIGN == 0 && at <= session->sizes.arena_bytes);
    check_bug(write->payload_bytes == d->payload_bytes && write->entries == d->entries);
    check_bug(write->payload_bytes <= session->sizes.arena_bytes - at);
    check_bug(records <= session->sizes.arena_bytes - at - write->payload_bytes);
    check_bug(write->records == (const uint8_t *)write->payload + write->payload_bytes);
    check_bug(write->entries <= MAX_BATCH_ENTRIES && write->level <= LEVEL_DURABLE &&
              write->level == d->level);
    check_bug(write->payload_bytes <= (write->kind == WRITE_CHUNK ? MAX_CHUNK_PAYLOAD : MAX_WHOLE_PAYLOAD));
    check_bug(write->number == d->number && write->payload_bytes % PAYLOAD_ALIGN == 0);
    check_bug(write->kind != WRITE_APPEND || write->entries == 1);
    check_bug(write->last == ((d->flags & DESCRIPTOR_LAST) != 0));
    check_bug(write->owner == session && write->producer == session->producer);
    rig.arena_read = 0;
    rig.arena_allowed = records + write->payload_bytes;
}

int __wrap_log_write(struct log *log, struct write *write)
{
    check_admitted(write);
    if (rig.refuse_count > 0) {
        rig.refuse_count--;
        write->reason = rig.refuse_reason;
        return rig.refuse;
    }
    int result = __real_log_write(log, write);
    rig.arena_allowed = rig.arena_read = 0;
    return result;
}

int __wrap_log_topic(struct log *log, const char *name, size_t length, uint8_t level, uint32_t uid, bool make,
                     struct topic **out)
{
    check_bug(length > 0 && length <= MAX_TOPIC_NAME && level <= LEVEL_DURABLE);
    check_bug(!kernel_is_view(name));
    return __real_log_topic(log, name, length, level, uid, make, out);
}

/* ---------------------------------------------------------------------------------------------- sockets */

static struct peer *peer_of_socket(int fd)
{
    for (int i = 0; i < PEERS; i++)
        if (rig.peers[i].socket == fd)
            return &rig.peers[i];
    return NULL;
}

static ssize_t on_receive(int fd, struct msghdr *message, int flags)
{
    struct peer *peer = peer_of_socket(fd);
    (void)flags;
    check_bug(peer != NULL);
    if (!peer->hello_due)
        return peer->gone ? 0 : -EAGAIN;
    peer->hello_due = false;
    kernel_at(fd)->ready &= ~(uint32_t)EPOLLIN;
    if (message->msg_iovlen > 0)
        memcpy(message->msg_iov->iov_base, &peer->hello,
               min_u64(min_u64(peer->hello_bytes, sizeof peer->hello), message->msg_iov->iov_len));
    message->msg_flags = peer->message_flags | (peer->hello_bytes > sizeof peer->hello ? MSG_TRUNC : 0);
    return (ssize_t)peer->hello_bytes;
}

static ssize_t on_send(int fd, const void *bytes, size_t length, const struct msghdr *message)
{
    struct peer *peer = peer_of_socket(fd);
    check_bug(peer != NULL && length == sizeof peer->welcome);
    memcpy(&peer->welcome, bytes, length);
    check_bug(memchr(peer->welcome.text, '\0', sizeof peer->welcome.text) != NULL);
    check_bug((peer->welcome.status == 0) == (message != NULL) && !peer->welcomed);
    if (message == NULL) {
        check_bug(peer->welcome.status < 0 && peer->welcome.text[0] != '\0');
        return (ssize_t)length;
    }
    int fds[FD_COUNT];
    const struct cmsghdr *control = CMSG_FIRSTHDR(message);
    check_bug(control->cmsg_len == CMSG_LEN(sizeof fds));
    memcpy(fds, CMSG_DATA(control), sizeof fds);
    peer->welcomed = true;
    peer->client_slot = kernel_slot(fds[FD_CLIENT_FILE]);
    peer->broker_slot = kernel_slot(fds[FD_BROKER_FILE]);
    peer->sizes = (struct layout_sizes){.queue_entries = peer->welcome.queue_entries,
                                        .arena_bytes = peer->welcome.arena_bytes,
                                        .window_bytes = peer->welcome.window_bytes};
    bool placed = layout_place(&peer->sizes);
    check_bug(placed);
    return (ssize_t)length;
}

static int on_accept(int listener)
{
    for (int i = 0; i < PEERS; i++) {
        struct peer *peer = &rig.peers[i];
        if (peer->socket != -1 || peer->hello_bytes == 0)
            continue;
        peer->socket = kernel_open(KERNEL_SOCKET);
        if (peer->socket < 0)
            return peer->socket = -1, -EMFILE;
        kernel_at(peer->socket)->ready =
            (peer->hello_due ? EPOLLIN : 0u) | (peer->gone ? EPOLLRDHUP | EPOLLHUP : 0u);
        return peer->socket;
    }
    kernel_at(listener)->ready = 0;
    return -EAGAIN;
}

/* producer.c looks whether the holder is gone. */
static int on_poll(struct pollfd *fds, nfds_t count)
{
    int ready = 0;
    for (nfds_t i = 0; i < count; i++) {
        const struct peer *peer = fds[i].fd >= 0 ? peer_of_socket(fds[i].fd) : NULL;
        fds[i].revents = peer != NULL && peer->gone ? POLLHUP | POLLRDHUP : 0;
        ready += fds[i].revents != 0;
    }
    return ready;
}

struct hello rig_hello(void)
{
    return (struct hello){.magic = MESSAGE_MAGIC,
                          .version_min = LAYOUT_VERSION,
                          .version_max = LAYOUT_VERSION,
                          .fingerprint = layout_fingerprint(),
                          .queue_entries = RIG_ENTRIES,
                          .arena_bytes = MIN_ARENA_BYTES,
                          .window_bytes = MIN_WINDOW_BYTES};
}

static void forget(struct peer *peer)
{
    *peer = (struct peer){.socket = -1, .client_slot = -1, .broker_slot = -1};
}

/* The broker has closed its end. */
static void on_close(int fd)
{
    struct peer *peer = peer_of_socket(fd);
    if (peer != NULL)
        forget(peer);
}

struct peer *rig_connect(void)
{
    for (int i = 0; i < PEERS; i++) {
        struct peer *peer = &rig.peers[i];
        if (peer->hello_bytes != 0)
            continue;
        forget(peer);
        peer->hello_due = true;
        peer->hello = rig_hello();
        peer->hello_bytes = sizeof peer->hello;
        kernel_at(rig.listener)->ready = EPOLLIN;
        return peer;
    }
    return NULL;
}

void rig_hang_up(struct peer *peer)
{
    struct kernel_fd *socket = kernel_at(peer->socket);
    peer->gone = true;
    if (socket != NULL && socket->kind == KERNEL_SOCKET)
        socket->ready |= EPOLLRDHUP | EPOLLHUP | EPOLLIN;
}

/* ------------------------------------------------------------------------------------------- a client */

void rig_put(struct peer *peer, uint64_t offset, const void *from, size_t length)
{
    uint8_t *to = kernel_slot_memory(peer->client_slot) + peer->sizes.arena_at + offset;
    kernel_writes(to, length);
    memcpy(to, from, length);
}

static struct session *session_of(const struct peer *peer)
{
    struct session *session;
    TAILQ_FOREACH(session, &rig.server->sessions, all)
    if (session->socket.fd == peer->socket && peer->welcomed)
        return session;
    return NULL;
}

void rig_ring(struct peer *peer)
{
    struct session *session = session_of(peer);
    if (session != NULL && session->state == SESSION_LIVE)
        kernel_at(session->doorbell.fd)->ready = EPOLLIN;
}

bool rig_push(struct peer *peer, const struct descriptor *descriptor)
{
    if (peer->client_slot < 0 || peer->taken_count > TAKEN_MOST - 64 ||
        peer->tail - word_load(&broker_words(peer)->sq_head) >= peer->sizes.queue_entries - 1)
        return false;
    uint32_t slot = peer->tail & (peer->sizes.queue_entries - 1);
    uint8_t *to = kernel_slot_memory(peer->client_slot) + LAYOUT_PAGE + slot * sizeof *descriptor;
    kernel_writes(to, sizeof *descriptor);
    memcpy(to, descriptor, sizeof *descriptor);
    peer->tail++;
    if (word_load(&broker_words(peer)->parked) == PARKED)
        rig_ring(peer);
    return true;
}

/* R4 */
static void check_answer(struct peer *peer, const struct completion *c)
{
    uint64_t number = c->user_data & UINT32_MAX;
    check_bug(c->user_data >> 32 == (uint64_t)(peer - rig.peers) && number < peer->taken_count);
    struct taken *taken = taken_at(peer, number);
    if ((c->flags & COMPLETION_MORE) != 0) {
        check_bug(taken->state == TAKEN_OPEN && c->result == -EBUSY);
        check_bug((taken->descriptor.flags & DESCRIPTOR_NOTIFY) != 0);
        taken->state = TAKEN_REFUSED;
        return;
    }
    check_bug(taken->state == TAKEN_OPEN || taken->state == TAKEN_REFUSED);
    check_bug((c->flags & COMPLETION_TRY_NOW) == 0 || taken->state == TAKEN_REFUSED);
    taken->state = TAKEN_ANSWERED;
    check_bug(c->window_bytes <= peer->sizes.window_bytes);
    if (taken->descriptor.op == OP_OPEN && c->result == 0 && c->entries == peer->topics + 1)
        peer->topics++;
}

void rig_reap(struct peer *peer)
{
    if (peer->client_slot < 0)
        return;
    uint32_t tail = word_load(&broker_words(peer)->cq_tail);
    if (tail - peer->reaped >= peer->sizes.queue_entries) { /* it lied about what it had reaped */
        peer->lied = true;
        peer->reaped = tail - peer->sizes.queue_entries;
    }
    for (; peer->reaped != tail; peer->reaped++) {
        struct completion completion;
        uint32_t slot = peer->reaped & (peer->sizes.queue_entries - 1);
        memcpy(&completion, kernel_slot_memory(peer->broker_slot) + LAYOUT_PAGE + slot * sizeof completion,
               sizeof completion);
        check_answer(peer, &completion);
    }
}

/* ------------------------------------------------------------------------------------------------ life */

void rig_turn(unsigned turns)
{
    while (turns-- > 0) {
        int rc = server_turn(rig.server);
        check_bug(rc == 0);
        for (int i = 0; i < PEERS; i++)
            rig_reap(&rig.peers[i]);
    }
}

static void start_log(void)
{
    struct error err = {0};
    struct log_options log_options = {
        .io = &rig.disk.io, .segment_bytes = 5u << 20, .memory_bytes = 24u << 20, .prepare_only_spare = true};
    int rc = log_start(&log_options, &rig.log, &err);
    check_bug(rc == 0);
}

static void stop_log(void)
{
    struct error err = {0};
    int rc = log_stop(rig.log, &err);
    check_bug(rc == 0 && memory_disk_idle(&rig.disk));
}

static void start_server(void)
{
    rig.epoll = kernel_open(KERNEL_OTHER);
    rig.listener = kernel_open(KERNEL_SOCKET);
    struct server_options options = {.io = &rig.disk.io,
                                     .log = rig.log,
                                     .epoll_fd = rig.epoll,
                                     .listen_fd = rig.listener,
                                     .default_level = LEVEL_DURABLE,
                                     .max_connections = PEERS,
                                     .max_connections_of_uid = PEERS,
                                     .max_shared = 64u << 20};
    struct error err = {0};
    int rc = server_create(&options, &rig.server, &err);
    check_bug(rc == 0);
}

/* On a store that has been there before: a first start writes megabytes of zeros. */
static struct memory_saved *first_store(void)
{
    kernel_reset();
    memory_disk_init(&rig.disk);
    start_log();
    stop_log();
    memory_disk_shorten(&rig.disk);
    return memory_disk_save(&rig.disk);
}

static struct saved_rig {
    struct kernel_saved *kernel; /* NULL: not yet */
    struct memory_saved *disk;
    struct rig rig;
    struct taken taken[PEERS][RIG_ENTRIES];
} saved_rigs[RIG_SHAPES];

static void save(struct saved_rig *saved)
{
    while (rig.disk.io.inflight > 0)
        rig_turn(1);
    saved->kernel = kernel_save();
    saved->disk = memory_disk_save(&rig.disk);
    saved->rig = rig;
    for (unsigned i = 0; i < PEERS; i++) {
        check_bug(rig.peers[i].taken_count <= RIG_ENTRIES);
        memcpy(saved->taken[i], taken_by[i], sizeof saved->taken[i]);
    }
}

static void restore(const struct saved_rig *saved)
{
    struct memory_disk disk = rig.disk; /* its bytes are its own */
    kernel_restore(saved->kernel);
    rig = saved->rig;
    rig.disk = disk;
    memory_disk_restore(&rig.disk, saved->disk);
    for (unsigned i = 0; i < PEERS; i++)
        memcpy(taken_by[i], saved->taken[i], sizeof saved->taken[i]);
}

void rig_start(struct input *input, unsigned shape, void (*greet)(unsigned shape))
{
    static struct memory_saved *store;
    struct saved_rig *saved = &saved_rigs[shape];
    check_bug(shape < RIG_SHAPES);
    if (store == NULL)
        store = first_store();
    kernel_hooks = (struct kernel_hooks){.receive = on_receive,
                                         .send = on_send,
                                         .accept = on_accept,
                                         .poll = on_poll,
                                         .read = shared_read,
                                         .closed = on_close};
    if (saved->kernel != NULL) {
        restore(saved);
    } else {
        kernel_reset();
        memory_disk_clear(&rig.disk, 1);
        memory_disk_restore(&rig.disk, store);
        start_log();
        for (int i = 0; i < PEERS; i++)
            forget(&rig.peers[i]);
        rig.hostile = false;
        rig.arena_read = rig.arena_allowed = 0;
        rig.refuse_count = 0;
        start_server();
        greet(shape);
        save(saved);
    }
    rig.input = input;
    rig.hostile = true;
}

static void check_all_answered(const struct peer *peer)
{
    for (uint32_t i = 0; peer->welcomed && !peer->gone && !peer->lied && i < peer->taken_count; i++)
        check_bug(taken_at(peer, i)->state == TAKEN_ANSWERED);
}

void rig_stop(bool log_too)
{
    rig.refuse_count = kernel_limit = 0;
    int rc = server_stop(rig.server, PATIENCE_NS);
    check_bug(rc == 0);
    for (int i = 0; i < PEERS; i++) {
        rig_reap(&rig.peers[i]);
        check_all_answered(&rig.peers[i]);
    }
    server_destroy(rig.server);
    if (log_too)
        stop_log();
    while (rig.disk.io.inflight > 0)
        io_wait(&rig.disk.io, -1);
    kernel_close(rig.epoll);
    check_bug(kernel_descriptors() == 0 && kernel_mappings() == 0); /* R5 */
}
