/* kernel.c: see kernel.h. */
#include "kernel.h"
#include "kernel_heap.h"

#include "../../broker/io/worker.h"
#include "../../shared/base.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define FIRST_TIME INT64_C(5000000000)
#define NS_PER_S   INT64_C(1000000000)
#define PAGE       4096u
/* At the front of every file, where words and rings are written by plain stores: always taken as written. */
#define STORED_PAGES 2u
#define CHECK_EACH   64u

struct kernel_hooks kernel_hooks;
int64_t kernel_now;
uint32_t kernel_limit;
const uint8_t *kernel_views;

static struct kernel_fd table[KERNEL_FDS];
uint8_t *kernel_memories; /* KERNEL_SLOTS of KERNEL_VIEW_BYTES, of which KERNEL_BYTES are used */
static bool slot_taken[KERNEL_SLOTS];
static uint32_t written[KERNEL_SLOTS]; /* a bit for each page that may hold something else than zeros */
static uint32_t mapped[KERNEL_SLOTS];
static uint32_t descriptors, mappings;
static int table_end; /* what is behind it was never open */

/* ------------------------------------------------------------------------------------------ descriptors */

void kernel_reset(void)
{
    if (kernel_memories == NULL) {
        kernel_memories = aligned_alloc(PAGE, (size_t)KERNEL_SLOTS * KERNEL_VIEW_BYTES);
        void *views = mmap(NULL, (size_t)KERNEL_SLOTS * KERNEL_VIEW_BYTES, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        check_bug(kernel_memories != NULL && views != MAP_FAILED);
        kernel_views = views;
        for (int i = 0; i < KERNEL_SLOTS; i++)
            memset(kernel_slot_memory(i), 0, KERNEL_BYTES);
    }
    memset(table, 0, sizeof table);
    memset(slot_taken, 0, sizeof slot_taken);
    memset(mapped, 0, sizeof mapped);
    descriptors = mappings = kernel_limit = 0;
    kernel_now = FIRST_TIME;
    heap_reset();
}

int kernel_open(enum kernel_kind kind)
{
    for (int i = 0; i < KERNEL_FDS && (kernel_limit == 0 || descriptors < kernel_limit); i++) {
        if (table[i].kind != KERNEL_FREE)
            continue;
        table[i] = (struct kernel_fd){.kind = kind, .slot = -1};
        descriptors++;
        if (i >= table_end)
            table_end = i + 1;
        return KERNEL_FD + i;
    }
    errno = EMFILE;
    return -1;
}

struct kernel_fd *kernel_at(int fd)
{
    if (fd < KERNEL_FD || fd >= KERNEL_FD + KERNEL_FDS || table[fd - KERNEL_FD].kind == KERNEL_FREE)
        return NULL;
    return &table[fd - KERNEL_FD];
}

/* A descriptor of the product's: it must be one that is open. */
static struct kernel_fd *own(int fd)
{
    struct kernel_fd *at = kernel_at(fd);
    check_bug(at != NULL);
    return at;
}

static void slot_free_if_unused(int slot)
{
    if (mapped[slot] > 0)
        return;
    for (int i = 0; i < table_end; i++)
        if (table[i].kind != KERNEL_FREE && table[i].slot == slot)
            return;
    slot_taken[slot] = false;
}

int kernel_close(int fd)
{
    struct kernel_fd *at = own(fd);
    int slot = at->slot;
    at->kind = KERNEL_FREE;
    at->watched = 0;
    descriptors--;
    if (slot >= 0)
        slot_free_if_unused(slot);
    if (kernel_hooks.closed != NULL)
        kernel_hooks.closed(fd);
    return 0;
}

int kernel_open_file(uint64_t size, int seals, bool of_peer)
{
    int fd = kernel_open(KERNEL_FILE);
    if (fd >= 0) {
        own(fd)->size = size;
        own(fd)->seals = seals;
        own(fd)->of_peer = of_peer;
    }
    return fd;
}

void kernel_written(uintptr_t at, size_t length)
{
    uint64_t offset = at - (uintptr_t)kernel_memories, in_slot = offset % KERNEL_VIEW_BYTES;
    if (length == 0)
        return;
    uint64_t end = min_u64(in_slot + length, KERNEL_BYTES);
    for (uint64_t page = in_slot / PAGE; page * PAGE < end; page++)
        written[offset / KERNEL_VIEW_BYTES] |= 1u << page;
}

static bool page_written(int slot, unsigned page)
{
    return page < STORED_PAGES || (written[slot] >> page & 1) != 0;
}

static bool is_zero(const uint8_t *page)
{
    uint64_t any = 0, word;
    for (unsigned at = 0; at < PAGE; at += sizeof word) {
        memcpy(&word, page + at, sizeof word);
        any |= word;
    }
    return any == 0;
}

/* Every page that says nothing of itself is zeros: what was forgotten is a bug of the target. */
static void check_pages(int slot)
{
#ifndef __SANITIZE_ADDRESS__
    static unsigned turn = CHECK_EACH;
    if (turn++ % CHECK_EACH != 0)
        return;
#endif
    for (unsigned page = 0; page < KERNEL_BYTES / PAGE; page++)
        check_bug(page_written(slot, page) || is_zero(kernel_slot_memory(slot) + page * PAGE));
}

static void clear_slot(int slot)
{
    check_pages(slot);
    for (unsigned page = 0; page < KERNEL_BYTES / PAGE; page++)
        if (page_written(slot, page))
            memset(kernel_slot_memory(slot) + page * PAGE, 0, PAGE);
    written[slot] = 0;
}

uint8_t *kernel_slot_memory(int slot)
{
    return kernel_memories + (size_t)slot * KERNEL_VIEW_BYTES;
}

int kernel_slot(int fd)
{
    return own(fd)->slot;
}

uint8_t *kernel_memory(int fd)
{
    struct kernel_fd *at = own(fd);
    if (at->size > KERNEL_BYTES)
        return NULL;
    for (int i = 0; at->slot < 0 && i < KERNEL_SLOTS; i++) {
        if (slot_taken[i])
            continue;
        slot_taken[i] = true;
        at->slot = i;
        clear_slot(i);
    }
    return at->slot < 0 ? NULL : kernel_slot_memory(at->slot);
}

uint32_t kernel_descriptors(void)
{
    return descriptors;
}

uint32_t kernel_mappings(void)
{
    return mappings;
}

/* ---------------------------------------------------------------------------------------------- memory */

const void *kernel_behind(const void *pointer)
{
    if (!kernel_is_view(pointer))
        return pointer;
    return kernel_memories + ((uintptr_t)pointer - (uintptr_t)kernel_views);
}

const void *kernel_look(const void *from, size_t length)
{
    uint64_t at = (uintptr_t)from - (uintptr_t)kernel_views;
    int slot = (int)(at / KERNEL_VIEW_BYTES);
    uint64_t offset = at % KERNEL_VIEW_BYTES;
    uint8_t *memory = kernel_slot_memory(slot);
    check_bug(mapped[slot] > 0 && offset <= KERNEL_BYTES && length <= KERNEL_BYTES - offset);
    kernel_writes(memory + offset, max_u64(length, sizeof(uint64_t))); /* a hook writes up to a number */
    kernel_hooks.read(slot, offset, length, memory);
    return memory + offset;
}

uint32_t kernel_load4(const uint32_t *from)
{
    uint32_t value;
    memcpy(&value, kernel_look(from, sizeof value), sizeof value);
    return value;
}

uint64_t kernel_load8(const uint64_t *from)
{
    uint64_t value;
    memcpy(&value, kernel_look(from, sizeof value), sizeof value);
    return value;
}

static int fails(int error)
{
    errno = error;
    return -1;
}

int kernel_memfd_create(const char *name, unsigned flags)
{
    (void)flags;
    return kernel_open_file(0, 0, strcmp(name, "walrus-client") == 0);
}

int kernel_fallocate(int fd, int mode, off_t offset, off_t length)
{
    struct kernel_fd *at = own(fd);
    (void)mode;
    check_bug(at->kind == KERNEL_FILE && offset >= 0 && length > 0);
    at->size = max_u64(at->size, (uint64_t)offset + (uint64_t)length);
    return 0;
}

int kernel_fcntl(int fd, int what, ...)
{
    struct kernel_fd *at = own(fd);
    va_list args;
    if (what == F_GET_SEALS)
        return at->kind == KERNEL_FILE ? at->seals : fails(EINVAL);
    check_bug(what == F_ADD_SEALS);
    va_start(args, what);
    at->seals |= va_arg(args, int);
    va_end(args);
    return 0;
}

int kernel_fstat(int fd, struct stat *out)
{
    const struct kernel_fd *at = own(fd);
    *out = (struct stat){.st_size = (off_t)at->size};
    if (at->kind != KERNEL_EVENT || at->not_an_eventfd)
        out->st_mode = at->kind == KERNEL_SOCKET ? S_IFSOCK : S_IFREG;
    return 0;
}

void *kernel_mmap(void *hint, size_t length, int protection, int flags, int fd, off_t offset)
{
    (void)hint;
    (void)protection;
    check_bug(length > 0 && offset == 0);
    if ((flags & MAP_ANONYMOUS) != 0) {
        void *page = kernel_malloc(length);
        memset(page, 0, length);
        mappings++;
        return page;
    }
    struct kernel_fd *at = own(fd);
    if (at->kind != KERNEL_FILE || length > at->size || kernel_memory(fd) == NULL) {
        errno = at->kind == KERNEL_FILE ? ENOMEM : ENODEV;
        return MAP_FAILED;
    }
    mapped[at->slot]++;
    mappings++;
    if (!at->of_peer)
        return kernel_slot_memory(at->slot);
    union {
        const uint8_t *bytes;
        void *view; /* nobody can write to it */
    } place = {.bytes = kernel_views + (size_t)at->slot * KERNEL_VIEW_BYTES};
    return place.view;
}

static int slot_of(const void *at)
{
    uintptr_t offset = (uintptr_t)kernel_behind(at) - (uintptr_t)kernel_memories;
    if (offset >= (uintptr_t)KERNEL_SLOTS * KERNEL_VIEW_BYTES)
        return -1;
    check_bug(offset % KERNEL_VIEW_BYTES == 0);
    return (int)(offset / KERNEL_VIEW_BYTES);
}

int kernel_munmap(void *at, size_t length)
{
    int slot = slot_of(at);
    check_bug(length > 0 && mappings > 0);
    mappings--;
    if (slot < 0) {
        kernel_free(at);
        return 0;
    }
    check_bug(mapped[slot] > 0);
    mapped[slot]--;
    slot_free_if_unused(slot);
    return 0;
}

/* Only of files that are the product's to read, so that the bytes can move instead of the mapping. */
void *kernel_mremap(void *old, size_t old_length, size_t length, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    void *to = va_arg(args, void *);
    va_end(args);
    check_bug(!kernel_is_view(old) && !kernel_is_view(to) && old_length == length);
    kernel_writes(to, length);
    memcpy(to, old, length);
    kernel_hooks.moved(slot_of(old), slot_of(to));
    kernel_munmap(old, length);
    return to;
}

int kernel_madvise(void *at, size_t length, int advice)
{
    (void)at;
    (void)length;
    (void)advice;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- saving */

struct kernel_saved {
    struct kernel_fd table[KERNEL_FDS];
    bool slot_taken[KERNEL_SLOTS];
    uint32_t mapped[KERNEL_SLOTS];
    uint32_t descriptors, mappings;
    int64_t now;
    struct heap_saved *heap;
    uint32_t written[KERNEL_SLOTS];
    uint8_t *slots[KERNEL_SLOTS];
};

struct kernel_saved *kernel_save(void)
{
    struct kernel_saved *saved = calloc(1, sizeof *saved);
    check_bug(saved != NULL);
    memcpy(saved->table, table, sizeof table);
    memcpy(saved->slot_taken, slot_taken, sizeof slot_taken);
    memcpy(saved->mapped, mapped, sizeof mapped);
    memcpy(saved->written, written, sizeof written);
    saved->descriptors = descriptors;
    saved->mappings = mappings;
    saved->now = kernel_now;
    saved->heap = heap_save();
    for (int i = 0; i < KERNEL_SLOTS; i++) {
        if (!slot_taken[i])
            continue;
        saved->slots[i] = malloc(KERNEL_BYTES);
        check_bug(saved->slots[i] != NULL);
        memcpy(saved->slots[i], kernel_slot_memory(i), KERNEL_BYTES);
    }
    return saved;
}

/* Only what was written, then or since: the rest is zeros both times. */
static void restore_slot(int slot, const struct kernel_saved *saved)
{
    uint8_t *memory = kernel_slot_memory(slot);
    check_pages(slot);
    for (unsigned page = 0; page < KERNEL_BYTES / PAGE; page++) {
        bool was = page < STORED_PAGES || (saved->written[slot] >> page & 1) != 0;
        if (was)
            memcpy(memory + page * PAGE, saved->slots[slot] + page * PAGE, PAGE);
        else if (page_written(slot, page))
            memset(memory + page * PAGE, 0, PAGE);
    }
    written[slot] = saved->written[slot];
}

void kernel_restore(const struct kernel_saved *saved)
{
    memcpy(table, saved->table, sizeof table);
    memcpy(slot_taken, saved->slot_taken, sizeof slot_taken);
    memcpy(mapped, saved->mapped, sizeof mapped);
    descriptors = saved->descriptors;
    mappings = saved->mappings;
    kernel_now = saved->now;
    kernel_limit = 0;
    heap_restore(saved->heap);
    for (int i = 0; i < KERNEL_SLOTS; i++)
        if (slot_taken[i])
            restore_slot(i, saved);
}

/* ---------------------------------------------------------------------------------------------- events */

int kernel_eventfd(unsigned count, int flags)
{
    (void)flags;
    int fd = kernel_open(KERNEL_EVENT);
    if (fd >= 0)
        own(fd)->count = count;
    return fd;
}

int kernel_epoll_ctl(int epoll, int what, int fd, struct epoll_event *event)
{
    struct kernel_fd *at = own(fd);
    (void)own(epoll);
    if (what == EPOLL_CTL_DEL) {
        if (at->watched == 0)
            return fails(ENOENT);
        at->watched = at->ready = 0;
        return 0;
    }
    if (at->watched != 0)
        return fails(EEXIST);
    at->watched = event->events | EPOLLHUP | EPOLLERR;
    at->watch = event->data.ptr;
    return 0;
}

int kernel_epoll_wait(int epoll, struct epoll_event *events, int most, int timeout)
{
    int count = 0;
    (void)own(epoll);
    (void)timeout;
    for (int i = 0; i < table_end && count < most; i++) {
        struct kernel_fd *at = &table[i];
        uint32_t ready = at->kind == KERNEL_FREE ? 0 : at->ready & at->watched;
        if (ready == 0)
            continue;
        events[count].events = ready;
        events[count++].data.ptr = at->watch;
        if ((at->watched & EPOLLET) != 0)
            at->ready = 0;
    }
    return count;
}

int kernel_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    (void)timeout;
    for (nfds_t i = 0; i < count; i++)
        fds[i].revents = 0;
    return kernel_hooks.poll(fds, count);
}

int kernel_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *limit, const sigset_t *mask)
{
    (void)mask;
    int ready = kernel_poll(fds, count, 0);
    if (ready == 0 && limit != NULL)
        kernel_now += (int64_t)limit->tv_sec * NS_PER_S + limit->tv_nsec;
    return ready;
}

int kernel_timerfd_create(int clock, int flags)
{
    (void)clock;
    (void)flags;
    return kernel_open(KERNEL_OTHER);
}

int kernel_timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old)
{
    (void)flags;
    (void)old;
    own(fd)->count =
        (uint64_t)value->it_value.tv_sec * (uint64_t)NS_PER_S + (uint64_t)value->it_value.tv_nsec;
    return 0;
}

/* Each look takes a little, so that who waits for a time gets there. */
int kernel_clock_gettime(clockid_t clock, struct timespec *out)
{
    (void)clock;
    kernel_now += 1000;
    *out = (struct timespec){.tv_sec = kernel_now / NS_PER_S, .tv_nsec = kernel_now % NS_PER_S};
    return 0;
}

/* --------------------------------------------------------------------------------------------- sockets */

int kernel_socket(int domain, int type, int protocol)
{
    (void)domain;
    (void)type;
    (void)protocol;
    return kernel_open(KERNEL_SOCKET);
}

int kernel_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    (void)own(fd);
    (void)address;
    (void)length;
    (void)flags;
    int socket = kernel_hooks.accept(fd);
    return socket >= 0 ? socket : fails(-socket);
}

int kernel_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    (void)own(fd);
    (void)address;
    (void)length;
    int rc = kernel_hooks.connect(fd);
    return rc == 0 ? 0 : fails(-rc);
}

int kernel_getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    (void)own(fd);
    (void)level;
    if (name == SO_PEERPIDFD) {
        int process = kernel_open(KERNEL_OTHER);
        if (process < 0)
            return -1;
        memcpy(value, &process, sizeof process);
        return 0;
    }
    check_bug(name == SO_PEERCRED && *length == sizeof(struct ucred));
    struct ucred who = {.pid = 77, .uid = 1000, .gid = 1000};
    memcpy(value, &who, sizeof who);
    return 0;
}

int kernel_setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    (void)own(fd);
    (void)level;
    (void)name;
    (void)value;
    (void)length;
    return 0;
}

int kernel_shutdown(int fd, int how)
{
    (void)own(fd);
    (void)how;
    return 0;
}

static ssize_t receive(int fd, struct msghdr *message, int flags)
{
    (void)own(fd);
    ssize_t n = kernel_hooks.receive(fd, message, flags);
    return n >= 0 ? n : fails((int)-n);
}

ssize_t kernel_recvmsg(int fd, struct msghdr *message, int flags)
{
    return receive(fd, message, flags);
}

ssize_t kernel_recv(int fd, void *to, size_t length, int flags)
{
    struct iovec iov = {to, length};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    return receive(fd, &message, flags);
}

static ssize_t transmit(int fd, const void *bytes, size_t length, const struct msghdr *message)
{
    (void)own(fd);
    if (kernel_hooks.send == NULL)
        return (ssize_t)length;
    ssize_t n = kernel_hooks.send(fd, bytes, length, message);
    return n >= 0 ? n : fails((int)-n);
}

ssize_t kernel_send(int fd, const void *bytes, size_t length, int flags)
{
    (void)flags;
    return transmit(fd, bytes, length, NULL);
}

ssize_t kernel_sendmsg(int fd, const struct msghdr *message, int flags)
{
    (void)flags;
    return transmit(fd, message->msg_iov->iov_base, message->msg_iov->iov_len, message);
}

/* --------------------------------------------------------------------------------------------- the rest */

int kernel_open_path(const char *path, int flags, ...)
{
    (void)path;
    (void)flags;
    return kernel_open(KERNEL_OTHER);
}

ssize_t kernel_pread(int fd, void *to, size_t length, off_t offset)
{
    (void)own(fd);
    (void)to;
    (void)length;
    (void)offset;
    return fails(EIO); /* /proc/loadavg: not known */
}

static ssize_t take_count(struct kernel_fd *at, void *to)
{
    if (at->kind != KERNEL_EVENT || at->count == 0)
        return fails(EAGAIN);
    memcpy(to, &at->count, sizeof at->count);
    at->count = 0;
    return sizeof at->count;
}

ssize_t kernel_preadv2(int fd, const struct iovec *to, int count, off_t offset, int flags)
{
    (void)count;
    (void)offset;
    (void)flags;
    return take_count(own(fd), to->iov_base);
}

ssize_t kernel_read(int fd, void *to, size_t length)
{
    check_bug(length == sizeof(uint64_t));
    return take_count(own(fd), to);
}

ssize_t kernel_write(int fd, const void *from, size_t length)
{
    struct kernel_fd *at = own(fd);
    uint64_t more;
    check_bug(length == sizeof more);
    memcpy(&more, from, sizeof more);
    if (at->kind == KERNEL_EVENT)
        at->count += more;
    return (ssize_t)length;
}

ssize_t kernel_getrandom(void *out, size_t length, unsigned flags)
{
    (void)flags;
    memset(out, 0x5a, length);
    return (ssize_t)length;
}

int kernel_sigaction(int number, const struct sigaction *action)
{
    (void)number;
    (void)action;
    return 0;
}

long kernel_syscall(long number, ...)
{
    (void)number;
    return fails(ENOSYS);
}

int kernel_timer_create(clockid_t clock, struct sigevent *event, timer_t *out)
{
    (void)clock;
    (void)event;
    (void)out;
    return fails(EAGAIN);
}

/* No threads: the broker then fills memory in its loop (memory.c). */
int worker_start(struct worker *worker, const char *name, int event_fd,
                 int64_t (*perform)(void *context, struct io_op *op), void *context)
{
    (void)worker;
    (void)name;
    (void)event_fd;
    (void)perform;
    (void)context;
    return -EAGAIN;
}

static __attribute__((noreturn)) void no_worker(void)
{
    bug(__FILE__, __LINE__, "there is no worker");
}

void worker_submit(struct worker *worker, struct op_queue *ops)
{
    (void)worker;
    (void)ops;
    no_worker();
}

void worker_reap(struct worker *worker, struct op_queue *done)
{
    (void)worker;
    (void)done;
    no_worker();
}

void worker_stop(struct worker *worker)
{
    (void)worker;
    no_worker();
}

void event_clear(int event_fd)
{
    (void)event_fd;
    no_worker();
}

void op_queue_push(struct op_queue *queue, struct io_op *op)
{
    (void)queue;
    (void)op;
    no_worker();
}

struct io_op *op_queue_pop(struct op_queue *queue)
{
    (void)queue;
    no_worker();
}
