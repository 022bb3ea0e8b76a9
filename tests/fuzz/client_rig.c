/* client_rig.c: see client_rig.h.
 *
 * What is checked here, in every execution: C1  each completion's slot is read once for each completion
 *   that is taken from it. C2  the library reads nothing outside the files it was given, and looks no more
 *   than a bounded number of times. C3  what it submits is right: inside the arena, within limits. C4  no
 *   descriptor and no mapping is left behind. */
#include "client_rig.h"

#define READS_MOST UINT64_C(2000000)
#define POLLS_MOST UINT64_C(50000)
#define SEALS      (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define SLOTS      64u /* watermarks */

struct client_rig client_rig;

static struct client_rig *const rig = &client_rig;

static uint8_t next_back(void)
{
    return rig->input == NULL ? 0 : input_back(rig->input);
}

static bool over(void)
{
    return rig->input != NULL && input_over(rig->input);
}

/* --------------------------------------------------------------------------------------------- shared
 * reads */

static struct client_words *client_words(void)
{
    return (struct client_words *)(void *)kernel_slot_memory(rig->client_slot);
}

static struct broker_words *broker_words(void)
{
    return (struct broker_words *)(void *)kernel_slot_memory(rig->broker_slot);
}

static uint32_t index_value(uint32_t honest, uint32_t near)
{
    uint8_t kind = next_back();
    if (kind < 0xd0)
        return honest;
    if (kind < 0xf8)
        return near + (kind & 0x1f);
    return (uint32_t)input_back_number(rig->input, 4);
}

static void change_bytes(uint8_t *at, uint64_t length)
{
    uint64_t place = input_back_number(rig->input, 2) % length;
    uint64_t value = input_back_value(rig->input);
    memcpy(at + place, &value, min_u64(sizeof value, length - place));
}

static void change_words(uint8_t *at, uint64_t length, unsigned changes)
{
    while (changes-- > 0) {
        uint64_t place = 4 * (input_back(rig->input) % (length / 4));
        uint64_t value = input_back_value(rig->input);
        memcpy(at + place, &value, min_u64(sizeof value, length - place));
    }
}

static void read_completion(uint64_t offset, uint64_t length, uint8_t *memory)
{
    uint32_t head = word_load(&client_words()->cq_head);
    uint64_t slot = (offset - LAYOUT_PAGE) / sizeof(struct completion);
    check_bug(length == sizeof(struct completion) && (offset - LAYOUT_PAGE) % length == 0);
    check_bug((head & (rig->sizes.queue_entries - 1)) == slot);
    check_bug(!rig->any_read || head != rig->last_head); /* C1 */
    rig->any_read = true;
    rig->last_head = head;
    uint8_t kind = next_back();
    if (kind >= 0xb0)
        change_words(memory + offset, length, (kind & 3) + 1u);
}

static void broker_read(uint64_t offset, uint64_t length, uint8_t *memory)
{
    struct broker_words *words = (struct broker_words *)(void *)memory;
    check_bug(length <= rig->sizes.broker_file_bytes &&
              offset <= rig->sizes.broker_file_bytes - length); /* C2 */
    if (offset == offsetof(struct broker_words, cq_tail) && length == 4) {
        words->cq_tail = index_value(rig->cq_tail, word_load(&client_words()->cq_head));
    } else if (offset == offsetof(struct broker_words, sq_head) && length == 4) {
        words->sq_head = index_value(rig->sq_head, word_load(&client_words()->sq_tail) - 16);
    } else if (offset >= LAYOUT_PAGE && offset < rig->sizes.window_at) {
        read_completion(offset, length, memory);
    } else if (length > 0) {
        uint8_t kind = next_back();
        if (kind >= 0xc0)
            change_bytes(memory + offset, length);
    }
}

static void on_read(int slot, uint64_t offset, uint64_t length, uint8_t *memory)
{
    check_bug(++rig->reads < READS_MOST); /* C2 */
    if (slot == rig->broker_slot) {
        broker_read(offset, length, memory);
    } else if (slot == rig->watermark_slot) {
        check_bug(offset + length <= align_up(SLOTS * sizeof(struct watermark), LAYOUT_PAGE));
        if (next_back() >= 0x80)
            change_bytes(memory + offset, length);
    }
}

/* ---------------------------------------------------------------------------------------------- answers */

static void post(const struct completion *completion)
{
    uint32_t slot = rig->cq_tail & (rig->sizes.queue_entries - 1);
    uint8_t *to = kernel_slot_memory(rig->broker_slot) + LAYOUT_PAGE + slot * sizeof *completion;
    kernel_writes(to, sizeof *completion);
    memcpy(to, completion, sizeof *completion);
    rig->cq_tail++;
}

/* One entry, if there is room for it in the window. */
static void answer_read(const struct descriptor *d, struct completion *c)
{
    static const struct run run = {
        .bytes = sizeof run + 16 + 32, .entries = 2, .first_sequence = 1, .payload_bytes = 32, .epoch = 1};
    static const struct entry_record records[2] = {{.length = 5}, {.length = 16}};
    uint64_t head, size = rig->sizes.window_bytes, at = rig->window_tail;
    memcpy(&head, &client_words()->window_head, sizeof head);
    if (size - (at & (size - 1)) < run.bytes)
        at = align_up(at, size);
    c->first_sequence = c->next_sequence = d->number;
    c->end_sequence = d->number + 2;
    if (at + run.bytes - head > size) {
        c->result = -EAGAIN;
        c->reason = REASON_WINDOW;
        return;
    }
    struct run mine = run;
    mine.first_sequence = d->number;
    uint8_t *to = kernel_slot_memory(rig->broker_slot) + rig->sizes.window_at + (at & (size - 1));
    kernel_writes(to, run.bytes);
    memcpy(to, &mine, sizeof mine);
    memcpy(to + sizeof mine, records, sizeof records);
    memset(to + sizeof mine + sizeof records, 'x', 32);
    c->result = 2;
    c->next_sequence = d->number + 2;
    c->window_at = at;
    c->window_bytes = run.bytes;
    rig->window_tail = at + run.bytes;
}

static void answer_topics(const struct descriptor *d, struct completion *c)
{
    static const struct topic_record record = {
        .bytes = 64, .name_bytes = 3, .id = 1, .next_sequence = 9, .level = 3};
    uint64_t size = rig->sizes.window_bytes, at = rig->window_tail;
    if (d->number >= 3)
        return;
    struct topic_record mine = record;
    mine.id = d->number + 1;
    uint8_t *to = kernel_slot_memory(rig->broker_slot) + rig->sizes.window_at + (at & (size - 1));
    kernel_writes(to, record.bytes);
    memset(to, 0, record.bytes);
    memcpy(to, &mine, sizeof mine);
    memcpy(to + sizeof mine, "abc", 3); /* NOLINT(bugprone-not-null-terminated-result): a name has no end */
    c->result = 1;
    c->window_at = at;
    c->window_bytes = record.bytes;
    rig->window_tail = at + record.bytes;
}

/* C3 */
static void check_submitted(const struct descriptor *d)
{
    uint64_t records = (uint64_t)d->entries * sizeof(struct entry_record), arena = rig->sizes.arena_bytes;
    check_bug(d->op > OP_NONE && d->op <= OP_QUERY && (d->flags & ~DESCRIPTOR_FLAGS) == 0);
    check_bug(d->entries <= MAX_BATCH_ENTRIES && d->level <= LEVEL_DURABLE);
    if (d->op == OP_OPEN || d->op == OP_APPEND || d->op == OP_BATCH || d->op == OP_CHUNK)
        check_bug(d->arena_offset <= arena && d->payload_bytes <= arena - d->arena_offset &&
                  records <= arena - d->arena_offset - d->payload_bytes);
}

static void answer(const struct descriptor *d)
{
    struct completion c = {.user_data = d->user_data,
                           .published_ns = d->published_ns,
                           .epoch = rig->lives,
                           .level = LEVEL_DURABLE,
                           .number = d->number};
    switch (d->op) {
    case OP_OPEN:
        c.entries = ++rig->topics;
        c.window_at = rig->topics;
        c.number = 0;
        break;
    case OP_CHUNK:
        c.flags = (d->flags & DESCRIPTOR_LAST) == 0 ? COMPLETION_COPIED : 0;
        break;
    case OP_APPEND:
    case OP_BATCH:
        c.entries = d->entries;
        c.first_sequence = rig->sequence + 1;
        rig->sequence += d->entries;
        c.group = ++rig->group;
        break;
    case OP_READ:
        answer_read(d, &c);
        break;
    case OP_TOPICS:
        answer_topics(d, &c);
        break;
    default:
        break;
    }
    post(&c);
}

void client_rig_serve(uint32_t most)
{
    if (rig->broker_slot < 0 || rig->gone)
        return;
    uint32_t tail = word_load(&client_words()->sq_tail), before = rig->cq_tail;
    check_bug(tail - rig->sq_head < rig->sizes.queue_entries || rig->input != NULL);
    for (; most > 0 && rig->sq_head != tail; most--) {
        struct descriptor d;
        uint32_t slot = rig->sq_head & (rig->sizes.queue_entries - 1);
        memcpy(&d, kernel_slot_memory(rig->client_slot) + LAYOUT_PAGE + slot * sizeof d, sizeof d);
        check_submitted(&d);
        rig->sq_head++;
        answer(&d);
    }
    if (rig->cq_tail != before && kernel_at(rig->signal) != NULL)
        kernel_at(rig->signal)->count++;
}

/* ---------------------------------------------------------------------------------------------- welcome */

static void fill_first_page(const struct welcome *welcome)
{
    struct broker_words *words = broker_words();
    *words = (struct broker_words){.magic = LAYOUT_MAGIC,
                                   .version = welcome->version,
                                   .queue_entries = welcome->queue_entries,
                                   .fingerprint = welcome->fingerprint,
                                   .arena_at = rig->sizes.arena_at,
                                   .arena_bytes = welcome->arena_bytes,
                                   .window_at = rig->sizes.window_at,
                                   .window_bytes = welcome->window_bytes,
                                   .epoch = welcome->epoch,
                                   .parked = PARKED};
}

/* What a broker may get wrong with a descriptor. */
static void spoil(int fd)
{
    struct kernel_fd *at = kernel_at(fd);
    uint8_t how = input_back(rig->input);
    switch (how & 7) {
    case 0:
        at->size += (uint64_t)input_back(rig->input) * 512;
        break;
    case 1:
        at->size -= min_u64(at->size, (uint64_t)input_back(rig->input) * 512);
        break;
    case 2:
        at->seals &= ~(1 << (how >> 4 & 3));
        break;
    case 3:
        at->not_an_eventfd = true;
        break;
    case 4:
        at->kind = KERNEL_OTHER;
        break;
    default:
        break;
    }
}

static void open_descriptors(int fds[FD_COUNT])
{
    uint64_t marks = align_up(SLOTS * sizeof(struct watermark), LAYOUT_PAGE);
    fds[FD_CLIENT_FILE] = kernel_open_file(rig->sizes.client_file_bytes, SEALS, false);
    fds[FD_BROKER_FILE] = kernel_open_file(rig->sizes.broker_file_bytes, SEALS, true);
    fds[FD_DOORBELL] = kernel_open(KERNEL_EVENT);
    fds[FD_SIGNAL] = kernel_open(KERNEL_EVENT);
    fds[FD_WATERMARKS] = kernel_open_file(marks, SEALS, true);
    for (int i = 0; i < FD_COUNT; i++)
        check_bug(fds[i] >= 0);
    (void)kernel_memory(fds[FD_CLIENT_FILE]);
    (void)kernel_memory(fds[FD_BROKER_FILE]);
    (void)kernel_memory(fds[FD_WATERMARKS]);
    rig->client_slot = kernel_slot(fds[FD_CLIENT_FILE]);
    rig->broker_slot = kernel_slot(fds[FD_BROKER_FILE]);
    rig->watermark_slot = kernel_slot(fds[FD_WATERMARKS]);
    rig->doorbell = fds[FD_DOORBELL];
    rig->signal = fds[FD_SIGNAL];
}

static void put_rights(struct msghdr *message, const int *fds, uint32_t count)
{
    struct cmsghdr *control = CMSG_FIRSTHDR(message);
    control->cmsg_level = SOL_SOCKET;
    control->cmsg_type = SCM_RIGHTS;
    control->cmsg_len = CMSG_LEN(count * sizeof *fds);
    memcpy(CMSG_DATA(control), fds, count * sizeof *fds);
    message->msg_controllen = CMSG_SPACE(count * sizeof *fds);
}

static ssize_t send_welcome(struct msghdr *message)
{
    struct welcome welcome = {.magic = MESSAGE_MAGIC,
                              .version = LAYOUT_VERSION,
                              .fingerprint = layout_fingerprint(),
                              .queue_entries = CLIENT_ENTRIES,
                              .io_backend = IO_BACKEND_PWRITE,
                              .arena_bytes = MIN_ARENA_BYTES,
                              .window_bytes = MIN_WINDOW_BYTES,
                              .epoch = ++rig->lives,
                              .broker_pid = 7,
                              .default_level = LEVEL_DURABLE,
                              .producer = rig->numbered ? 3 : 0,
                              .watermark_slots = SLOTS};
    int fds[FD_COUNT + 2];
    uint32_t count = FD_COUNT;
    size_t length = sizeof welcome;
    rig->sizes = (struct layout_sizes){
        .queue_entries = CLIENT_ENTRIES, .arena_bytes = MIN_ARENA_BYTES, .window_bytes = MIN_WINDOW_BYTES};
    bool placed = layout_place(&rig->sizes);
    check_bug(placed);
    open_descriptors(fds);
    fill_first_page(&welcome);
    rig->sq_head = rig->cq_tail = rig->topics = 0;
    rig->window_tail = MIN_WINDOW_BYTES - 512; /* its end is where mistakes are made */
    rig->any_read = rig->gone = rig->message = false;
    rig->welcomed = true;
    message->msg_flags = 0;
    uint8_t how = rig->hostile_welcome ? input_back(rig->input) : 0;
    if (how & 1)
        change_words((uint8_t *)&welcome, offsetof(struct welcome, text), 1 + (how >> 6));
    if (how & 2)
        change_words((uint8_t *)broker_words(), 64, 1 + (how >> 6));
    if (how & 4)
        spoil(fds[input_back(rig->input) % FD_COUNT]);
    if (how & 8) {
        uint32_t wanted = input_back(rig->input) & 7u;
        for (; count < wanted && count < array_count(fds); count++)
            fds[count] = kernel_open(KERNEL_OTHER);
        for (; count > wanted; count--)
            kernel_close(fds[count - 1]);
    }
    if (how & 16)
        length = min_u64(length, 2u * input_back(rig->input));
    if (how & 32) {
        welcome.status = -(int32_t)(input_back(rig->input) & 127);
        memset(welcome.text, 'w', sizeof welcome.text); /* without an end */
    }
    for (; count > FD_COUNT + 1; count--) { /* there is room for one too many */
        kernel_close(fds[count - 1]);
        message->msg_flags |= MSG_CTRUNC;
    }
    memcpy(message->msg_iov->iov_base, &welcome, min_u64(length, message->msg_iov->iov_len));
    if (count > 0)
        put_rights(message, fds, count);
    else
        message->msg_controllen = 0;
    return (ssize_t)length;
}

/* ---------------------------------------------------------------------------------------------- sockets */

static int on_connect(int fd)
{
    if (rig->down || over())
        return rig->input != NULL && !rig->down ? -ECONNREFUSED : -ENOENT;
    rig->socket = fd;
    rig->welcomed = rig->gone = rig->message = false;
    return 0;
}

static ssize_t on_receive(int fd, struct msghdr *message, int flags)
{
    (void)flags;
    if (rig->welcomed || rig->gone || fd != rig->socket)
        message->msg_controllen = 0;
    if (fd != rig->socket || rig->gone)
        return 0;
    if (!rig->welcomed) {
        if (rig->hostile_welcome && input_back(rig->input) >= 0xf0) {
            message->msg_controllen = 0;
            return input_back(rig->input) & 1 ? 0 : -ECONNRESET;
        }
        return send_welcome(message);
    }
    if (!rig->message)
        return -EAGAIN;
    memset(message->msg_iov->iov_base, 1, 1);
    return 1;
}

static ssize_t on_send(int fd, const void *bytes, size_t length, const struct msghdr *message)
{
    (void)fd;
    (void)message;
    struct hello hello;
    check_bug(length == sizeof hello);
    memcpy(&hello, bytes, sizeof hello);
    check_bug(hello.magic == MESSAGE_MAGIC && hello.name_bytes <= MAX_PRODUCER_NAME);
    rig->numbered = hello.name_bytes > 0 || (hello.flags & HELLO_PRODUCER) != 0;
    return (ssize_t)length;
}

/* What the broker does while the library waits. False: a signal handler ran. */
static bool something_happens(void)
{
    uint8_t how = next_back();
    if (over())
        rig->gone = rig->down = true;
    if (how < 0xc0)
        client_rig_serve(UINT32_MAX);
    else if (how < 0xd0)
        return true;
    else if (how < 0xd8)
        return false;
    else if (how < 0xdc)
        rig->message = true;
    else if (how < 0xe8)
        rig->gone = true;
    else
        client_rig_serve(1 + (how & 3));
    return true;
}

static short ready_events(const struct pollfd *fd)
{
    const struct kernel_fd *at = kernel_at(fd->fd);
    check_bug(at != NULL);
    if (at->kind == KERNEL_EVENT)
        return (short)(fd->events & (POLLOUT | (at->count > 0 ? POLLIN : 0)));
    if (at->kind != KERNEL_SOCKET || fd->fd != rig->socket)
        return 0;
    if (rig->gone)
        return POLLIN | POLLRDHUP | POLLHUP;
    return rig->message || !rig->welcomed ? POLLIN : 0;
}

static int on_poll(struct pollfd *fds, nfds_t count)
{
    int ready = 0;
    check_bug(++rig->polls < POLLS_MOST); /* C2 */
    if ((count > 1 || kernel_at(fds[0].fd)->kind == KERNEL_SOCKET) && !something_happens()) {
        errno = EINTR;
        return -1;
    }
    for (nfds_t i = 0; i < count; i++) {
        if (fds[i].fd < 0)
            continue;
        fds[i].revents = ready_events(&fds[i]);
        ready += fds[i].revents != 0;
    }
    for (nfds_t i = 0; ready == 0 && i < count; i++) {
        const struct kernel_fd *at = fds[i].fd < 0 ? NULL : kernel_at(fds[i].fd);
        if (at == NULL || at->kind != KERNEL_OTHER || at->count == 0)
            continue;
        if (kernel_now < (int64_t)at->count)
            kernel_now = (int64_t)at->count;
        fds[i].revents = POLLIN;
        ready++;
    }
    return ready;
}

/* A file of a life that is over: nobody answers for its slot any more. */
static void on_close(int fd)
{
    if (fd == rig->socket)
        rig->socket = -1;
    if (fd == rig->signal)
        rig->signal = -1;
}

static void on_moved(int from, int to)
{
    check_bug(rig->client_slot == from);
    rig->client_slot = to;
}

/* ------------------------------------------------------------------------------------------------- life */

void client_rig_begin(struct input *input)
{
    kernel_hooks = (struct kernel_hooks){.receive = on_receive,
                                         .send = on_send,
                                         .connect = on_connect,
                                         .poll = on_poll,
                                         .read = on_read,
                                         .closed = on_close,
                                         .moved = on_moved};
    *rig = (struct client_rig){.input = input,
                               .socket = -1,
                               .signal = -1,
                               .doorbell = -1,
                               .client_slot = -1,
                               .broker_slot = -1,
                               .watermark_slot = -1};
}

int client_rig_connect(struct walrus_connect_options options)
{
    static char words[512];
    options.size = sizeof options;
    options.socket_path = "/s";
    options.error = words;
    options.error_size = sizeof words;
    memset(words, 'x', sizeof words);
    int code = walrus_connect(&rig->handle, &options);
    check_bug((code == 0) == (rig->handle != NULL) && code <= 0 && code >= -4095);
    check_bug(code == 0 || (memchr(words, '\0', sizeof words) != NULL && words[0] != '\0'));
    return code;
}

void client_rig_end(void)
{
    walrus_close(rig->handle);
    rig->handle = NULL;
    check_bug(kernel_descriptors() == 0 && kernel_mappings() == 0); /* C4 */
}
