/* rig.c: see rig.h.
 *
 * What would make counts differ from run to run, and what is done about it
 *   - threads: connecting and opening topics block, so the client does that in a thread, which is gone before
 *     anything is counted. The back end is pwrite with its functions replaced: an op is done inside submit.
 *   - time: the broker's clock only moves when it is read. A jump of it in rig_settle lets everything happen
 *     that waits for time: flush, checkpoint, spare segments.
 *   - the device, with io_uring: the broker never spins, so that it makes no call for as long as that takes.
 *   - the machine: /proc/loadavg always says that one thread is runnable, and there are two cores. */
#include "rig.h"

#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#include "../../libclient/src/handle.h"

#define CLOCK_BEGIN  (INT64_C(1) << 60) /* no client's stamp is later */
#define CLOCK_STEP   25
#define CLOCK_JUMP   INT64_C(1000000000000)
#define SETTLE_TURNS 2000
#define SLEEP_MS     10000

/* ------------------------------------------------------------------------------------- counted calls */

struct rig_calls rig_calls;
bool rig_collecting;

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__real_memcpy(void *to, const void *from, size_t bytes);
void *__wrap_memcpy(void *to, const void *from, size_t bytes);
void *__real_memmove(void *to, const void *from, size_t bytes);
void *__wrap_memmove(void *to, const void *from, size_t bytes);
unsigned int __real_crc32_iscsi(unsigned char *at, int bytes, unsigned int seed);
unsigned int __wrap_crc32_iscsi(unsigned char *at, int bytes, unsigned int seed);
int __real_clock_gettime(clockid_t clock, struct timespec *time);
int __wrap_clock_gettime(clockid_t clock, struct timespec *time);
ssize_t __real_pread64(int fd, void *to, size_t bytes, off_t offset);
ssize_t __wrap_pread64(int fd, void *to, size_t bytes, off_t offset);
int __wrap_sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t *set);
/* NOLINTEND(bugprone-reserved-identifier) */

void *__wrap_malloc(size_t size)
{
    rig_calls.allocations++;
    return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    rig_calls.allocations++;
    return __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    rig_calls.allocations++;
    return __real_realloc(old, size);
}

void *__wrap_memcpy(void *to, const void *from, size_t bytes)
{
    rig_calls.copied += bytes;
    return __real_memcpy(to, from, bytes);
}

void *__wrap_memmove(void *to, const void *from, size_t bytes)
{
    rig_calls.copied += bytes;
    return __real_memmove(to, from, bytes);
}

unsigned int __wrap_crc32_iscsi(unsigned char *at, int bytes, unsigned int seed)
{
    rig_calls.summed += (uint64_t)bytes;
    if (rig_collecting)
        CALLGRIND_TOGGLE_COLLECT;
    unsigned int sum = __real_crc32_iscsi(at, bytes, seed);
    if (rig_collecting)
        CALLGRIND_TOGGLE_COLLECT;
    return sum;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *time)
{
    rig_calls.clock++;
    return __real_clock_gettime(clock, time);
}

static bool is_load(int fd)
{
    struct stat at;
    return fstat(fd, &at) == 0 && S_ISREG(at.st_mode) && (at.st_mode & 0222) == 0 && at.st_size == 0;
}

/* The one file of size 0 that nobody may write is the kernel's. */
ssize_t __wrap_pread64(int fd, void *to, size_t bytes, off_t offset)
{
    static const char calm[] = "0.00 0.00 0.00 1/100 1\n";
    if (!is_load(fd) || bytes < sizeof calm)
        return __real_pread64(fd, to, bytes, offset);
    memcpy(to, calm, sizeof calm - 1);
    return sizeof calm - 1;
}

int __wrap_sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t *set)
{
    (void)pid;
    CPU_ZERO_S(bytes, set);
    CPU_SET_S(0, bytes, set);
    CPU_SET_S(1, bytes, set);
    return 0;
}

/* ------------------------------------------------------------------------------------- the io */

static struct {
    struct io_functions functions;
    struct op_queue done;
    int64_t now;
    bool may_sleep;
} at_once;

static void at_once_submit(struct io *io, struct io_op *op)
{
    struct real *real = real_of(io);
    bool data = op->kind == IO_WRITE || op->kind == IO_READ || op->kind == IO_FLUSH;
    (void)real_admit(real, op);
    if (op->background && op->kind == IO_WRITE)
        op->result = (int64_t)op->length; /* zeroes for a spare segment: it is new, it reads as zeroes */
    else
        op->result = data ? file_perform(op) : folder_perform(&real->folder, op);
    op_queue_push(&at_once.done, op);
}

static void at_once_kick(struct io *io)
{
    (void)io;
}

static int at_once_wait(struct io *io, int64_t timeout_ns)
{
    struct op_queue done = at_once.done;
    struct io_op *op;
    int count = 0;
    at_once.done = (struct op_queue){0};
    while ((op = op_queue_pop(&done)) != NULL) {
        real_finish(real_of(io), op, op->result);
        count++;
    }
    io->watch_ready = false;
    if (count == 0 && timeout_ns != 0 && at_once.may_sleep)
        poll(&(struct pollfd){.fd = real_of(io)->watch_fd, .events = POLLIN}, 1, SLEEP_MS);
    return count;
}

static int64_t at_once_now(struct io *io)
{
    (void)io;
    rig_calls.clock++;
    return at_once.now += CLOCK_STEP;
}

static void at_once_signal(struct io *io, struct io_signal *signal)
{
    uint64_t one = 1;
    (void)io;
    need(write(signal->fd, &one, sizeof one) == (ssize_t)sizeof one);
}

static void at_once_take_over(struct io *io)
{
    at_once.functions = *io->functions;
    at_once.functions.submit = at_once_submit;
    at_once.functions.kick = at_once_kick;
    at_once.functions.wait = at_once_wait;
    at_once.functions.now = at_once_now;
    at_once.functions.wall = at_once_now;
    at_once.functions.signal_send = at_once_signal;
    at_once.done = (struct op_queue){0};
    at_once.now = CLOCK_BEGIN;
    io->functions = &at_once.functions;
}

/* ------------------------------------------------------------------------------------- broker */

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    need(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 4) == 0);
    return fd;
}

static void broker_start(struct rig *rig, uint8_t level, bool uring)
{
    struct error err = {0};
    struct io_real_options io_options = {.folder = rig->folder,
                                         .backend = uring ? IO_BACKEND_URING : IO_BACKEND_PWRITE,
                                         .watch_fd = rig->epoll_fd,
                                         .allow_direct = uring};
    int code = io_real_create(&io_options, &rig->io, NULL, &err);
    if (code == -EOPNOTSUPP) {
        printf("SKIPPED: %s\n", err.text);
        exit(77);
    }
    if (code == 0 && !uring)
        at_once_take_over(rig->io);
    if (code == 0)
        code = watermarks_create(4096, &rig->watermarks, &err);
    struct log_options log_options = {.io = rig->io,
                                      .level = level,
                                      .watermarks = rig->watermarks.slots,
                                      .watermark_slots = rig->watermarks.count,
                                      .prepare_only_spare = true};
    if (code == 0)
        code = log_start(&log_options, &rig->log, &err);
    struct server_options server_options = {.io = rig->io,
                                            .log = rig->log,
                                            .epoll_fd = rig->epoll_fd,
                                            .listen_fd = listen_at(rig->socket_path),
                                            .default_level = level,
                                            .spin_ns = uring ? 0 : SPIN_ADAPTIVE,
                                            .watermarks = &rig->watermarks};
    if (code == 0)
        code = server_create(&server_options, &rig->server, &err);
    if (code != 0) {
        fprintf(stderr, "%s\n", err.text);
        exit(1);
    }
}

static void connected(struct watch *watch, uint32_t events)
{
    (void)events;
    ((struct rig *)(void *)watch)->is_connected = true;
}

static void *connect_client(void *argument)
{
    struct rig *rig = argument;
    struct walrus_connect_options options = {.size = sizeof options,
                                             .socket_path = rig->socket_path,
                                             .queue_entries = 64,
                                             .arena_bytes = 4u << 20};
    need(walrus_connect(&rig->handle, &options) == 0);
    for (uint32_t i = 0; i < rig->topic_count; i++) {
        char name[32];
        int length = snprintf(name, sizeof name, "topic-%u", i);
        struct walrus_topic_options topic_options = {.size = sizeof topic_options};
        need(walrus_topic_open(rig->handle, name, (size_t)length, &topic_options, &rig->topics[i]) == 0);
    }
    uint64_t one = 1;
    need(write(rig->connected.fd, &one, sizeof one) == (ssize_t)sizeof one);
    return NULL;
}

void rig_start(struct rig *rig, uint32_t topics, uint8_t level, bool uring)
{
    *rig = (struct rig){.folder = "guard-XXXXXX", .topic_count = topics};
    need(mkdtemp(rig->folder) != NULL);
    snprintf(rig->socket_path, sizeof rig->socket_path, "%s/socket", rig->folder);
    rig->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    need(rig->epoll_fd >= 0);
    broker_start(rig, level, uring);
    at_once.may_sleep = true;
    rig->connected = (struct watch){.ready = connected, .fd = eventfd(0, EFD_CLOEXEC)};
    need(rig->connected.fd >= 0 && server_watch(rig->server, &rig->connected, EPOLLIN) == 0);
    pthread_t thread;
    need(pthread_create(&thread, NULL, connect_client, rig) == 0);
    while (!rig->is_connected)
        need(server_turn(rig->server) == 0);
    need(pthread_join(thread, NULL) == 0);
    server_unwatch(rig->server, &rig->connected);
    close(rig->connected.fd);
    at_once.may_sleep = false;
}

void rig_settle(struct rig *rig)
{
    if (rig->io->functions != &at_once.functions)
        return;
    at_once.now += CLOCK_JUMP - at_once.now % CLOCK_JUMP;
    for (int turn = 0; turn < SETTLE_TURNS; turn++)
        need(server_turn(rig->server) == 0);
    need(server_values(rig->server)->session_active == 0);
}

bool rig_answered(const struct rig *rig)
{
    const struct ring *ring = &rig->handle->completion;
    return word_load_acquire(ring->peer_word) != ring->mirror.c_head;
}

static int remove_one(const char *path, const struct stat *at, int kind, struct FTW *where)
{
    (void)at;
    (void)kind;
    (void)where;
    return remove(path);
}

void rig_stop(struct rig *rig)
{
    struct error err = {0};
    walrus_close(rig->handle);
    need(server_stop(rig->server, INT64_MAX / 2) == 0);
    need(log_stop(rig->log, &err) == 0);
    server_destroy(rig->server);
    rig->io->functions->destroy(rig->io);
    watermarks_destroy(&rig->watermarks);
    close(rig->epoll_fd);
    need(nftw(rig->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
}
