/* kernel.c: see kernel.h. */
#include "kernel.h"

#include "../../broker/io/worker.h"
#include "../../shared/base.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define FIRST_TIME INT64_C(5000000000)
#define NS_PER_S   INT64_C(1000000000)

struct kernel_hooks kernel_hooks;
int64_t kernel_now;
const uint8_t *kernel_views;

static struct kernel_fd table[KERNEL_FDS];
static uint8_t *memories; /* KERNEL_SLOTS of KERNEL_VIEW_BYTES, of which KERNEL_BYTES are used */
static bool slot_taken[KERNEL_SLOTS];
static uint32_t mapped[KERNEL_SLOTS];
static uint32_t descriptors, mappings;

/* ------------------------------------------------------------------------------------------------- heap */

#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1 /* as gcc says it */
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)   ((void)(at), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif

#define HEAP_BYTES  (16u << 20)
#define LARGE_BYTES (64u << 10) /* from here on a block of its own, whose content is not saved */
#define LARGE_MOST  32

static uint8_t *heap;
static size_t heap_used, heap_most;

static struct large {
    void *at;
    size_t bytes;
    bool used;
} larges[LARGE_MOST];

/* In front of each one in the heap, and nobody's but ours: between two blocks there is always one. */
struct block {
    size_t bytes;
    uint64_t used;
};

static struct block *block_at(size_t at)
{
    return (struct block *)(void *)(heap + at);
}

static size_t whole_block(size_t bytes)
{
    return sizeof(struct block) + align_up(bytes, 16);
}

static void guard_large(const struct large *large)
{
    if (large->used)
        ASAN_UNPOISON_MEMORY_REGION(large->at, large->bytes);
    else
        ASAN_POISON_MEMORY_REGION(large->at, large->bytes);
}

static void *large_block(size_t bytes)
{
    for (int i = 0; i < LARGE_MOST; i++) {
        struct large *large = &larges[i];
        if (large->used || (large->at != NULL && large->bytes != bytes))
            continue;
        if (large->at == NULL)
            *large = (struct large){.at = aligned_alloc(65536, align_up(bytes, 65536)), .bytes = bytes};
        check_bug(large->at != NULL);
        large->used = true;
        guard_large(large);
        return large->at;
    }
    bug(__FILE__, __LINE__, "more large blocks than a target needs");
}

void *kernel_malloc(size_t bytes)
{
    if (bytes >= LARGE_BYTES)
        return large_block(bytes);
    size_t whole = whole_block(bytes);
    if (heap == NULL)
        heap = aligned_alloc(4096, HEAP_BYTES);
    check_bug(heap != NULL && whole <= HEAP_BYTES - heap_used);
    struct block *block = block_at(heap_used);
    ASAN_UNPOISON_MEMORY_REGION(block, whole);
    *block = (struct block){.bytes = bytes, .used = 1};
    heap_used += whole;
    heap_most = max_u64(heap_most, heap_used);
    uint8_t *at = (uint8_t *)(block + 1);
    ASAN_POISON_MEMORY_REGION(at + bytes, whole - sizeof *block - bytes);
    ASAN_POISON_MEMORY_REGION(block, sizeof *block);
    return at;
}

static struct block *block_of(void *pointer)
{
    struct block *block = (struct block *)pointer - 1;
    ASAN_UNPOISON_MEMORY_REGION(block, sizeof *block);
    return block;
}

/* What is whose, after the heap was brought back: all is open when this is called. */
static void guard_heap(void)
{
#ifdef __SANITIZE_ADDRESS__
    for (size_t at = 0, whole; at < heap_used; at += whole) {
        struct block *block = block_at(at);
        size_t bytes = block->used ? block->bytes : 0;
        whole = whole_block(block->bytes);
        ASAN_POISON_MEMORY_REGION((uint8_t *)(block + 1) + bytes, whole - sizeof *block - bytes);
        ASAN_POISON_MEMORY_REGION(block, sizeof *block);
    }
    ASAN_POISON_MEMORY_REGION(heap + heap_used, heap_most - heap_used);
    for (int i = 0; i < LARGE_MOST; i++)
        if (larges[i].at != NULL)
            guard_large(&larges[i]);
#endif
}

void *kernel_calloc(size_t count, size_t bytes)
{
    check_bug(bytes == 0 || count <= SIZE_MAX / bytes);
    void *at = kernel_malloc(count * bytes);
    memset(at, 0, count * bytes);
    return at;
}

void *kernel_aligned_alloc(size_t alignment, size_t bytes)
{
    check_bug(bytes >= LARGE_BYTES && alignment <= 65536);
    return large_block(bytes);
}

void *kernel_realloc(void *old, size_t bytes)
{
    void *at = kernel_malloc(bytes);
    if (old == NULL)
        return at;
    size_t had = 0;
    for (int i = 0; i < LARGE_MOST; i++)
        if (larges[i].at == old)
            had = larges[i].bytes;
    if (had == 0)
        had = block_of(old)->bytes;
    memcpy(at, old, had < bytes ? had : bytes);
    kernel_free(old);
    return at;
}

void kernel_free(void *pointer)
{
    if (pointer == NULL)
        return;
    if ((uintptr_t)pointer - (uintptr_t)heap < HEAP_BYTES) {
        struct block *block = block_of(pointer);
        check_bug(block->used == 1);
        block->used = 0;
        ASAN_POISON_MEMORY_REGION(block, whole_block(block->bytes));
        return;
    }
    for (int i = 0; i < LARGE_MOST; i++) {
        if (larges[i].at != pointer)
            continue;
        check_bug(larges[i].used);
        larges[i].used = false;
        guard_large(&larges[i]);
        return;
    }
    free(pointer); /* the target's */
}

/* ------------------------------------------------------------------------------------------ descriptors */

void kernel_reset(void)
{
    if (memories == NULL) {
        memories = aligned_alloc(4096, (size_t)KERNEL_SLOTS * KERNEL_VIEW_BYTES);
        void *views = mmap(NULL, (size_t)KERNEL_SLOTS * KERNEL_VIEW_BYTES, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        check_bug(memories != NULL && views != MAP_FAILED);
        kernel_views = views;
    }
    memset(table, 0, sizeof table);
    memset(slot_taken, 0, sizeof slot_taken);
    memset(mapped, 0, sizeof mapped);
    descriptors = mappings = 0;
    kernel_now = FIRST_TIME;
    heap_used = 0;
    for (int i = 0; i < LARGE_MOST; i++)
        larges[i].used = false;
    if (heap != NULL)
        guard_heap();
}

int kernel_open(enum kernel_kind kind)
{
    for (int i = 0; i < KERNEL_FDS; i++) {
        if (table[i].kind != KERNEL_FREE)
            continue;
        table[i] = (struct kernel_fd){.kind = kind, .slot = -1};
        descriptors++;
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
    for (int i = 0; i < KERNEL_FDS; i++)
        if (table[i].kind == KERNEL_FILE && table[i].slot == slot)
            return;
    slot_taken[slot] = false;
}

int kernel_close(int fd)
{
    struct kernel_fd *at = own(fd);
    int slot = at->kind == KERNEL_FILE ? at->slot : -1;
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

uint8_t *kernel_slot_memory(int slot)
{
    return memories + (size_t)slot * KERNEL_VIEW_BYTES;
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
        memset(kernel_slot_memory(i), 0, at->size);
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
    return memories + ((uintptr_t)pointer - (uintptr_t)kernel_views);
}

const void *kernel_look(const void *from, size_t length)
{
    uint64_t at = (uintptr_t)from - (uintptr_t)kernel_views;
    int slot = (int)(at / KERNEL_VIEW_BYTES);
    uint64_t offset = at % KERNEL_VIEW_BYTES;
    uint8_t *memory = kernel_slot_memory(slot);
    check_bug(mapped[slot] > 0 && offset <= KERNEL_BYTES && length <= KERNEL_BYTES - offset);
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
    uintptr_t offset = (uintptr_t)kernel_behind(at) - (uintptr_t)memories;
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
    memcpy(to, old, length);
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
    bool large_used[LARGE_MOST];
    size_t heap_used;
    uint8_t *heap;
    uint8_t *slots[KERNEL_SLOTS];
};

struct kernel_saved *kernel_save(void)
{
    struct kernel_saved *saved = calloc(1, sizeof *saved);
    check_bug(saved != NULL);
    memcpy(saved->table, table, sizeof table);
    memcpy(saved->slot_taken, slot_taken, sizeof slot_taken);
    memcpy(saved->mapped, mapped, sizeof mapped);
    saved->descriptors = descriptors;
    saved->mappings = mappings;
    saved->now = kernel_now;
    for (int i = 0; i < LARGE_MOST; i++)
        saved->large_used[i] = larges[i].used;
    saved->heap_used = heap_used;
    saved->heap = malloc(heap_used);
    check_bug(saved->heap != NULL);
    ASAN_UNPOISON_MEMORY_REGION(heap, heap_most);
    memcpy(saved->heap, heap, heap_used);
    guard_heap();
    for (int i = 0; i < KERNEL_SLOTS; i++) {
        if (!slot_taken[i])
            continue;
        saved->slots[i] = malloc(KERNEL_BYTES);
        check_bug(saved->slots[i] != NULL);
        memcpy(saved->slots[i], kernel_slot_memory(i), KERNEL_BYTES);
    }
    return saved;
}

void kernel_restore(const struct kernel_saved *saved)
{
    memcpy(table, saved->table, sizeof table);
    memcpy(slot_taken, saved->slot_taken, sizeof slot_taken);
    memcpy(mapped, saved->mapped, sizeof mapped);
    descriptors = saved->descriptors;
    mappings = saved->mappings;
    kernel_now = saved->now;
    for (int i = 0; i < LARGE_MOST; i++)
        larges[i].used = saved->large_used[i];
    heap_used = saved->heap_used;
    ASAN_UNPOISON_MEMORY_REGION(heap, heap_most);
    memcpy(heap, saved->heap, heap_used);
    guard_heap();
    for (int i = 0; i < KERNEL_SLOTS; i++)
        if (slot_taken[i])
            memcpy(kernel_slot_memory(i), saved->slots[i], KERNEL_BYTES);
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
    for (int i = 0; i < KERNEL_FDS && count < most; i++) {
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
    (void)own(fd);
    (void)flags;
    (void)value;
    (void)old;
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
    return 0;
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
