/* fake_life.c: the fake's handshake and its thread. */
#include "fake_inside.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* ----------------------------------------------------------------------------------- handshake */

static uint8_t *make_file(struct fake *fake, uint64_t bytes, int seals, int *fd)
{
    *fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    cr_assert_geq(*fd, 0);
    uint64_t length = fake->handshake == HANDSHAKE_SHORT_FILE ? bytes / 2 : bytes;
    cr_assert_eq(ftruncate(*fd, (off_t)length), 0);
    uint8_t *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    cr_assert_neq((void *)at, MAP_FAILED);
    if (fake->handshake != HANDSHAKE_UNSEALED)
        cr_assert_eq(fcntl(*fd, F_ADD_SEALS, seals), 0);
    return at;
}

static void make_session(struct fake *fake, int fds[5])
{
    struct layout_sizes *s = &fake->sizes;
    *s = (struct layout_sizes){.queue_entries =
                                   fake->queue_entries != 0 ? fake->queue_entries : fake->hello.queue_entries,
                               .arena_bytes = fake->hello.arena_bytes,
                               .window_bytes = fake->hello.window_bytes};
    cr_assert(layout_place(s));
    int sealed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    fake->client_file = make_file(fake, s->client_file_bytes, sealed, &fds[FD_CLIENT_FILE]);
    fake->broker_file =
        make_file(fake, s->broker_file_bytes, sealed | F_SEAL_FUTURE_WRITE, &fds[FD_BROKER_FILE]);
    fake->client = (void *)fake->client_file;
    fake->words = (void *)fake->broker_file;
    fake->arena = fake->client_file + s->arena_at;
    fake->window = fake->broker_file + s->window_at;
    fake->window_tail = 0;
    if (fake->handshake != HANDSHAKE_SHORT_FILE)
        *fake->words = (struct broker_words){.magic = LAYOUT_MAGIC,
                                             .version = LAYOUT_VERSION,
                                             .queue_entries = s->queue_entries,
                                             .fingerprint = layout_fingerprint(),
                                             .arena_at = s->arena_at,
                                             .arena_bytes = s->arena_bytes,
                                             .window_at = s->window_at,
                                             .window_bytes = s->window_bytes,
                                             .epoch = 7 + fake->lives};
    if (fake->handshake == HANDSHAKE_WORDS_DIFFER)
        fake->words->window_bytes *= 2;
    ring_init(&fake->sq, s->queue_entries, &fake->words->sq_head, &fake->client->sq_tail,
              fake->client_file + LAYOUT_PAGE);
    ring_init(&fake->cq, s->queue_entries, &fake->words->cq_tail, &fake->client->cq_head,
              fake->broker_file + LAYOUT_PAGE);
    fake->doorbell = fds[FD_DOORBELL] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    fake->signal = fds[FD_SIGNAL] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    uint64_t watermark_bytes = align_up(fake->watermark_slots * sizeof(struct watermark) + 1, LAYOUT_PAGE);
    fake->watermarks =
        (void *)make_file(fake, watermark_bytes, sealed | F_SEAL_FUTURE_WRITE, &fds[FD_WATERMARKS]);
    fds[FD_COUNT] = -1;
    free(fake->held);
    fake->held = calloc(s->queue_entries, sizeof *fake->held);
    free(fake->waiting);
    free(fake->listed);
    fake->waiting = calloc(s->queue_entries, sizeof *fake->waiting);
    fake->listed = calloc(s->queue_entries, sizeof *fake->listed);
    fake->held_count = fake->follow_count = fake->waiting_count = fake->listed_count = 0;
    fake->taken = fake->answered = 0;
    fake->number_shift = 3 * fake->lives++;
}

static void send_welcome(struct fake *fake, const struct welcome *welcome, size_t length, const int *fds,
                         unsigned count)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE((FD_COUNT + 1) * sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec from = {(void *)(uintptr_t)welcome, length};
    struct msghdr message = {.msg_iov = &from, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *m = CMSG_FIRSTHDR(&message);
        m->cmsg_level = SOL_SOCKET;
        m->cmsg_type = SCM_RIGHTS;
        m->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(m), fds, count * sizeof(int));
    }
    cr_assert_eq(sendmsg(fake->socket, &message, MSG_NOSIGNAL), (ssize_t)length);
}

static void close_socket(struct fake *fake)
{
    close(fake->socket);
    fake->socket = -1;
}

/* There is one producer for all: what counts is the last number of each topic. */
static void choose_producer(struct fake *fake, struct welcome *welcome)
{
    const struct hello *hello = &fake->hello;
    bool anonymous = hello->name_bytes == 0;
    if (anonymous && (hello->flags & HELLO_PRODUCER) == 0) {
        fake->producer = 0;
        return;
    }
    bool again = anonymous && hello->producer != 0 && !fake->forgets;
    if (again && hello->producer != fake->producer)
        fake_mistake(fake, "it asks for another producer than it had", hello->producer);
    if (!again)
        fake->producer += 100;
    if (again || (!anonymous && fake->lives > 1))
        welcome->flags = WELCOME_RESUMED;
    fake->forgets = false;
    welcome->producer = fake->producer;
}

/* Makes the welcome what fake->handshake wants it to be. How many descriptors are sent. */
static unsigned spoil_welcome(struct fake *fake, struct welcome *welcome, size_t *length,
                              int fds[FD_COUNT + 1], int pipes[2])
{
    unsigned count = FD_COUNT;
    switch (fake->handshake) {
    case HANDSHAKE_SHORT:
        *length /= 2;
        break;
    case HANDSHAKE_BAD_MAGIC:
        welcome->magic++;
        break;
    case HANDSHAKE_OTHER_LAYOUT:
        welcome->version++;
        welcome->fingerprint++;
        break;
    case HANDSHAKE_NO_FDS:
        count = 0;
        break;
    case HANDSHAKE_THREE_FDS:
        count = 3;
        break;
    case HANDSHAKE_SIX_FDS:
        count = FD_COUNT + 1;
        fds[FD_COUNT] = fake->signal;
        break;
    case HANDSHAKE_PIPE_FOR_DOORBELL:
        cr_assert_eq(pipe(pipes), 0);
        fds[FD_DOORBELL] = pipes[1];
        break;
    case HANDSHAKE_SIZES_WILD:
        welcome->arena_bytes = UINT64_C(1) << 60;
        break;
    case HANDSHAKE_UNKNOWN_FLAG:
        welcome->flags |= 1 << 7;
        break;
    case HANDSHAKE_RESERVED:
        welcome->reserved[sizeof welcome->reserved - 1] = 1;
        break;
    case HANDSHAKE_NO_PRODUCER:
        welcome->producer = 0;
        break;
    case HANDSHAKE_OWN_PRODUCER:
        welcome->producer = 5;
        break;
    case HANDSHAKE_FEWER_WATERMARKS:
        welcome->watermark_slots = 1000000;
        break;
    default:
        break;
    }
    return count;
}

static void shake_hands(struct fake *fake)
{
    if (recv(fake->socket, &fake->hello, sizeof fake->hello, 0) != (ssize_t)sizeof fake->hello ||
        fake->hello.magic != MESSAGE_MAGIC || fake->hello.fingerprint != layout_fingerprint())
        fake_mistake(fake, "hello", fake->hello.version_max);
    if (fake->handshake == HANDSHAKE_SILENT)
        return;
    if (fake->handshake == HANDSHAKE_HANG_UP) {
        close_socket(fake);
        return;
    }
    struct welcome welcome = {.magic = MESSAGE_MAGIC, .version = LAYOUT_VERSION};
    if (fake->handshake == HANDSHAKE_REFUSE) {
        welcome.status = fake->refuse_status;
        snprintf(welcome.text, sizeof welcome.text, "%s", fake->refuse_text);
        send_welcome(fake, &welcome, sizeof welcome, NULL, 0);
        close_socket(fake);
        if (fake->refuse_times > 0 && --fake->refuse_times == 0)
            fake->handshake = HANDSHAKE_GOOD;
        return;
    }
    int fds[FD_COUNT + 1];
    make_session(fake, fds);
    welcome.fingerprint = layout_fingerprint();
    welcome.queue_entries = fake->sizes.queue_entries;
    welcome.io_backend = IO_BACKEND_PWRITE;
    welcome.arena_bytes = fake->sizes.arena_bytes;
    welcome.window_bytes = fake->sizes.window_bytes;
    welcome.epoch = 6 + fake->lives;
    welcome.max_batch_bytes = fake->max_batch_bytes;
    welcome.watermark_slots = fake->watermark_slots;
    choose_producer(fake, &welcome);
    welcome.broker_pid = (uint32_t)getpid();
    welcome.default_level = LEVEL_DURABLE;
    size_t length = sizeof welcome;
    int pipes[2] = {-1, -1};
    unsigned count = spoil_welcome(fake, &welcome, &length, fds, pipes);
    send_welcome(fake, &welcome, length, fds, count);
    close(fds[FD_CLIENT_FILE]);
    close(fds[FD_BROKER_FILE]);
    close(fds[FD_WATERMARKS]);
    if (pipes[0] >= 0) {
        close(pipes[0]);
        close(pipes[1]);
    }
}

static void forget_session(struct fake *fake)
{
    if (fake->socket >= 0)
        close_socket(fake);
    for (uint32_t i = 0; i < array_count(fake->streams); i++) {
        if (fake->streams[i].open)
            fake_end_stream(fake, &fake->streams[i], false);
    }
    if (fake->client_file != NULL) {
        munmap(fake->watermarks, align_up(fake->watermark_slots * sizeof(struct watermark) + 1, LAYOUT_PAGE));
        munmap(fake->client_file, fake->sizes.client_file_bytes);
        munmap(fake->broker_file, fake->sizes.broker_file_bytes);
        close(fake->doorbell);
        close(fake->signal);
        fake->client_file = NULL;
        fake->words = NULL;
        fake->doorbell = fake->signal = -1;
    }
}

/* -------------------------------------------------------------------------------------- thread */

static void set_parked(struct fake *fake, uint32_t parked)
{
    if (fake->words != NULL && fake->handshake != HANDSHAKE_SHORT_FILE)
        word_store(&fake->words->parked, parked);
    full_fence();
}

/* Called with the mutex held; lets go of it while it sleeps. */
static void sleep_parked(struct fake *fake)
{
    struct pollfd fds[4] = {{.fd = fake->listener, .events = POLLIN},
                            {.fd = fake->control, .events = POLLIN},
                            {.fd = fake->socket, .events = POLLIN},
                            {.fd = fake->doorbell, .events = POLLIN}};
    pthread_mutex_unlock(&fake->mutex);
    poll(fds, 4, fake->busy ? 0 : -1);
    pthread_mutex_lock(&fake->mutex);
    uint64_t count;
    if ((fds[1].revents & POLLIN) != 0 && read(fake->control, &count, sizeof count) < 0)
        cr_assert_eq(errno, EAGAIN);
    if ((fds[3].revents & POLLIN) != 0 && fake->doorbell >= 0 &&
        read(fake->doorbell, &count, sizeof count) > 0)
        fake->doorbells += count;
    if (fds[2].revents != 0 && fake->socket >= 0) {
        char byte;
        if (recv(fake->socket, &byte, 1, MSG_DONTWAIT) == 0)
            forget_session(fake);
    }
    if ((fds[0].revents & POLLIN) != 0 && !fake->paused) {
        forget_session(fake);
        fake->socket = accept4(fake->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fake->socket >= 0)
            shake_hands(fake);
    }
}

static void *run(void *argument)
{
    struct fake *fake = argument;
    uint32_t idle = 0;
    pthread_mutex_lock(&fake->mutex);
    while (!fake->stop) {
        fake->standing = fake->paused;
        if (fake->paused) {
            pthread_cond_broadcast(&fake->changed);
            pthread_cond_wait(&fake->changed, &fake->mutex);
            continue;
        }
        set_parked(fake, ACTIVE);
        uint32_t taken = fake->words != NULL && fake->handshake == HANDSHAKE_GOOD ? fake_turn(fake) : 0;
        if (taken > 0)
            continue;
        if (fake->busy && ++idle % 64 != 0) {
            pthread_mutex_unlock(&fake->mutex); /* who wants to pause it gets a chance */
            pthread_mutex_lock(&fake->mutex);
            continue;
        }
        if (fake->pause_before_park > 0)
            fake_idle(fake->taken * 13 % fake->pause_before_park);
        set_parked(fake, fake->busy ? ACTIVE : PARKED);
        if (fake->words == NULL || fake->handshake != HANDSHAKE_GOOD || fake_turn(fake) == 0)
            sleep_parked(fake);
    }
    forget_session(fake);
    pthread_mutex_unlock(&fake->mutex);
    return NULL;
}

static void wake(struct fake *fake)
{
    uint64_t one = 1;
    cr_assert_eq(write(fake->control, &one, sizeof one), (ssize_t)sizeof one);
    pthread_cond_broadcast(&fake->changed);
}

static void start_listening(struct fake *fake)
{
    fake->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", fake->path);
    cr_assert_eq(bind(fake->listener, (struct sockaddr *)&address, sizeof address), 0);
    cr_assert_eq(listen(fake->listener, 8), 0);
}

void fake_start(struct fake *fake)
{
    snprintf(fake->folder, sizeof fake->folder, "/tmp/walrus-client-XXXXXX");
    cr_assert_not_null(mkdtemp(fake->folder));
    snprintf(fake->path, sizeof fake->path, "%s/s", fake->folder);
    start_listening(fake);
    fake->control = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    fake->socket = fake->doorbell = fake->signal = -1;
    pthread_mutex_init(&fake->mutex, NULL);
    pthread_cond_init(&fake->changed, NULL);
    cr_assert_eq(pthread_create(&fake->thread, NULL, run, fake), 0);
}

void fake_pause(struct fake *fake)
{
    pthread_mutex_lock(&fake->mutex);
    fake->paused = true;
    wake(fake);
    while (!fake->standing)
        pthread_cond_wait(&fake->changed, &fake->mutex);
    pthread_mutex_unlock(&fake->mutex);
}

void fake_resume(struct fake *fake)
{
    pthread_mutex_lock(&fake->mutex);
    fake->paused = false;
    wake(fake);
    pthread_mutex_unlock(&fake->mutex);
}

void fake_down(struct fake *fake)
{
    fake_pause(fake);
    close(fake->listener);
    fake->listener = -1;
    unlink(fake->path);
    fake_die(fake);
    fake_resume(fake);
}

void fake_up(struct fake *fake)
{
    fake_pause(fake);
    start_listening(fake);
    fake_resume(fake);
}

void fake_die(struct fake *fake)
{
    if (fake->socket >= 0) {
        shutdown(fake->socket, SHUT_RDWR);
        close_socket(fake);
    }
}

void fake_stop(struct fake *fake)
{
    pthread_mutex_lock(&fake->mutex);
    fake->stop = true;
    fake->paused = false;
    wake(fake);
    pthread_mutex_unlock(&fake->mutex);
    pthread_join(fake->thread, NULL);
    close(fake->listener);
    close(fake->control);
    unlink(fake->path);
    rmdir(fake->folder);
    for (uint32_t i = 0; i < fake->topic_count; i++) {
        for (uint64_t k = 0; k < fake->topics[i]->count; k++)
            free(fake->topics[i]->entries[k].data);
        free(fake->topics[i]->entries);
        free(fake->topics[i]);
    }
    for (uint32_t i = 0; i < array_count(fake->streams); i++) {
        if (fake->streams[i].open) {
            fake->streams[i].topic = 0;
            fake_end_stream(fake, &fake->streams[i], false);
        }
    }
    free(fake->held);
    free(fake->waiting);
    free(fake->listed);
}

/* ----------------------------------------------------------------------------------- for tests */

walrus *fake_connect(struct fake *fake, struct walrus_connect_options options)
{
    char words[512] = "";
    walrus *handle = NULL;
    options.socket_path = fake->path;
    options.error = words;
    options.error_size = sizeof words;
    int code = walrus_connect(&handle, &options);
    cr_assert_eq(code, 0, "%d: %s", code, words);
    return handle;
}

walrus_topic *open_topic(walrus *handle, const char *name)
{
    walrus_topic *topic = NULL;
    int code = walrus_topic_open(handle, name, strlen(name), NULL, &topic);
    cr_assert_eq(code, 0, "%d: %s", code, walrus_error(handle));
    return topic;
}

bool fd_readable(const walrus *handle)
{
    struct pollfd fd = {.fd = walrus_fd(handle), .events = POLLIN};
    return poll(&fd, 1, 0) == 1;
}
