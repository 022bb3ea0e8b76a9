/* kernel.h: put before every file of broker and library (-include) in the targets that have a peer: their
 * system calls end here, in memory, and so do their looks at memory that a peer can write.
 *
 * Descriptors. Numbers from KERNEL_FD on, in a table: eventfds, sockets, memfds, ... of which only as much
 * works as is needed. Nothing is shared with the real kernel, so that an execution costs microseconds, and
 * that every descriptor and mapping that was not given back is seen at once. What a peer
 * does is the target's: it sets the hooks.
 *
 * Shared memory. A memfd of a peer is mapped as a *view*: addresses that nobody can read or write. Each
 * look at shared memory in the product is an atomic load or a memcpy; both are macros here, which ask the
 * target for the value (hooks.read), put it into the memory behind the view, and read there. So each read
 * has a value of its own, which the fuzzer chooses; and a plain load through a pointer, which the compiler
 * may repeat, ends in a SIGSEGV, as does any access beyond the end of the view. */
#ifndef WALRUS_FUZZ_KERNEL_H
#define WALRUS_FUZZ_KERNEL_H

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* NOLINTBEGIN: names of the C library, on purpose */

#define KERNEL_FD    1000
#define KERNEL_FDS   64
#define KERNEL_SLOTS 16          /* memfds with memory */
#define KERNEL_BYTES (96u << 10) /* of a slot; a larger file cannot be mapped */

enum kernel_kind {
    KERNEL_FREE,
    KERNEL_EVENT,
    KERNEL_SOCKET,
    KERNEL_FILE,
    KERNEL_OTHER, /* epoll, timer, process, /dev/null */
};

struct kernel_fd {
    enum kernel_kind kind;
    uint64_t count;      /* EVENT; of a timer: when it fires, 0 = never */
    uint64_t size;       /* FILE */
    int seals;           /* FILE */
    int slot;            /* FILE: -1 none yet */
    bool of_peer;        /* FILE: mapped as a view */
    bool not_an_eventfd; /* has a file type */
    uint32_t watched;    /* epoll: events, 0 = not in the set */
    void *watch;
    uint32_t ready; /* epoll: what there is to report */
};

struct kernel_hooks {
    /* A message for a socket: fills it in and returns its length; a negative errno. */
    ssize_t (*receive)(int fd, struct msghdr *message, int flags);
    /* NULL: everything that is sent is taken. */
    ssize_t (*send)(int fd, const void *bytes, size_t length, const struct msghdr *message);
    int (*accept)(int fd);                         /* a descriptor or a negative errno */
    int (*connect)(int fd);                        /* 0 or a negative errno */
    int (*poll)(struct pollfd *fds, nfds_t count); /* may move time */
    /* A look at `length` bytes at `offset` of the peer's file in this slot, whose memory this is. */
    void (*read)(int slot, uint64_t offset, uint64_t length, uint8_t *memory);
    void (*closed)(int fd);          /* may be NULL */
    void (*moved)(int from, int to); /* mremap: what was in one slot is in another one */
};

extern struct kernel_hooks kernel_hooks;
extern int64_t kernel_now;
extern uint32_t kernel_limit; /* of descriptors: EMFILE beyond it; 0 = none */

void kernel_reset(void); /* no descriptors, the time of the beginning */
int kernel_open(enum kernel_kind kind);
struct kernel_fd *kernel_at(int fd); /* NULL: not open */
int kernel_open_file(uint64_t size, int seals, bool of_peer);
uint8_t *kernel_memory(int fd); /* of a file: allocates its slot, cleared */
int kernel_slot(int fd);
uint8_t *kernel_slot_memory(int slot);
/* The memory behind a pointer into a view, or the pointer itself. */
const void *kernel_behind(const void *pointer);
/* Descriptors and mappings that are open. */
uint32_t kernel_descriptors(void);
uint32_t kernel_mappings(void);

/* The heap of the product: a place of its own in which nothing is used twice, so that what is there, with
 * all descriptors and files, can be saved and brought back: hundreds of microseconds of preparation are
 * then done once. The address sanitizer is told what of it is whose. */
struct kernel_saved;
struct kernel_saved *kernel_save(void);
void kernel_restore(const struct kernel_saved *saved);

/* ----------------------------------------------------------------------------- what the macros call */

void *kernel_malloc(size_t bytes);
void *kernel_calloc(size_t count, size_t bytes);
void *kernel_realloc(void *old, size_t bytes);
void *kernel_aligned_alloc(size_t alignment, size_t bytes);
void kernel_free(void *pointer);

uint32_t kernel_load4(const uint32_t *from);
uint64_t kernel_load8(const uint64_t *from);
const void *kernel_look(const void *from, size_t length); /* where to read */

extern const uint8_t *kernel_views;
#define KERNEL_VIEW_BYTES (1u << 20) /* from one view to the next */

static inline bool kernel_is_view(const void *pointer)
{
    return (uintptr_t)pointer - (uintptr_t)kernel_views < (uintptr_t)KERNEL_SLOTS * KERNEL_VIEW_BYTES;
}

/* Somebody is about to write there, perhaps into the memory of a slot: of that only what was written, and
 * the first pages, are brought back. */
extern uint8_t *kernel_memories;
void kernel_written(uintptr_t at, size_t length);

static inline void kernel_writes(const void *at, size_t length)
{
    if ((uintptr_t)at - (uintptr_t)kernel_memories < (uintptr_t)KERNEL_SLOTS * KERNEL_VIEW_BYTES)
        kernel_written((uintptr_t)at, length);
}

static inline void *kernel_memcpy(void *to, const void *from, size_t length)
{
    kernel_writes(to, length);
    if (kernel_is_view(from))
        from = kernel_look(from, length);
    return memcpy(to, from, length);
}

static inline void *kernel_memset(void *to, int value, size_t length)
{
    kernel_writes(to, length);
    return memset(to, value, length);
}

int kernel_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);
int kernel_close(int fd);
int kernel_connect(int fd, const struct sockaddr *address, socklen_t length);
int kernel_clock_gettime(clockid_t clock, struct timespec *out);
int kernel_epoll_ctl(int epoll, int what, int fd, struct epoll_event *event);
int kernel_epoll_wait(int epoll, struct epoll_event *events, int most, int timeout);
int kernel_eventfd(unsigned count, int flags);
int kernel_fallocate(int fd, int mode, off_t offset, off_t length);
int kernel_fcntl(int fd, int what, ...);
int kernel_fstat(int fd, struct stat *out);
ssize_t kernel_getrandom(void *out, size_t length, unsigned flags);
int kernel_getsockopt(int fd, int level, int name, void *value, socklen_t *length);
int kernel_madvise(void *at, size_t length, int advice);
int kernel_memfd_create(const char *name, unsigned flags);
void *kernel_mmap(void *at, size_t length, int protection, int flags, int fd, off_t offset);
void *kernel_mremap(void *old, size_t old_length, size_t length, int flags, ...);
int kernel_munmap(void *at, size_t length);
int kernel_open_path(const char *path, int flags, ...);
int kernel_poll(struct pollfd *fds, nfds_t count, int timeout);
int kernel_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *limit, const sigset_t *mask);
ssize_t kernel_pread(int fd, void *to, size_t length, off_t offset);
ssize_t kernel_preadv2(int fd, const struct iovec *to, int count, off_t offset, int flags);
ssize_t kernel_read(int fd, void *to, size_t length);
ssize_t kernel_recv(int fd, void *to, size_t length, int flags);
ssize_t kernel_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t kernel_send(int fd, const void *bytes, size_t length, int flags);
ssize_t kernel_sendmsg(int fd, const struct msghdr *message, int flags);
int kernel_setsockopt(int fd, int level, int name, const void *value, socklen_t length);
int kernel_shutdown(int fd, int how);
int kernel_sigaction(int number, const struct sigaction *action);
int kernel_socket(int domain, int type, int protocol);
long kernel_syscall(long number, ...);
int kernel_timer_create(clockid_t clock, struct sigevent *event, timer_t *out);
int kernel_timerfd_create(int clock, int flags);
int kernel_timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old);
ssize_t kernel_write(int fd, const void *from, size_t length);

#ifdef KERNEL_INSIDE
#define __atomic_load_n(pointer, order)                                                                      \
    ((__typeof__(+*(pointer)))(!kernel_is_view(pointer) ? __atomic_load_n(pointer, order)                    \
                               : sizeof *(pointer) == 4                                                      \
                                   ? kernel_load4((const uint32_t *)(const void *)(pointer))                 \
                                   : kernel_load8((const uint64_t *)(const void *)(pointer))))
#define malloc(...)        kernel_malloc(__VA_ARGS__)
#define calloc(...)        kernel_calloc(__VA_ARGS__)
#define realloc(...)       kernel_realloc(__VA_ARGS__)
#define aligned_alloc(...) kernel_aligned_alloc(__VA_ARGS__)
#define free(...)          kernel_free(__VA_ARGS__)
#undef memcpy
#define memcpy(...) kernel_memcpy(__VA_ARGS__)
#undef memset
#define memset(...)          kernel_memset(__VA_ARGS__)
#define accept4(...)         kernel_accept4(__VA_ARGS__)
#define close(...)           kernel_close(__VA_ARGS__)
#define connect(...)         kernel_connect(__VA_ARGS__)
#define clock_gettime(...)   kernel_clock_gettime(__VA_ARGS__)
#define epoll_ctl(...)       kernel_epoll_ctl(__VA_ARGS__)
#define epoll_wait(...)      kernel_epoll_wait(__VA_ARGS__)
#define epoll_create1(g)     kernel_open(KERNEL_OTHER)
#define eventfd(...)         kernel_eventfd(__VA_ARGS__)
#define fallocate(...)       kernel_fallocate(__VA_ARGS__)
#define fcntl(...)           kernel_fcntl(__VA_ARGS__)
#define fstat(...)           kernel_fstat(__VA_ARGS__)
#define getrandom(...)       kernel_getrandom(__VA_ARGS__)
#define getsockopt(...)      kernel_getsockopt(__VA_ARGS__)
#define madvise(...)         kernel_madvise(__VA_ARGS__)
#define memfd_create(...)    kernel_memfd_create(__VA_ARGS__)
#define mmap(...)            kernel_mmap(__VA_ARGS__)
#define mremap(...)          kernel_mremap(__VA_ARGS__)
#define munmap(...)          kernel_munmap(__VA_ARGS__)
#define open(...)            kernel_open_path(__VA_ARGS__)
#define poll(...)            kernel_poll(__VA_ARGS__)
#define ppoll(...)           kernel_ppoll(__VA_ARGS__)
#define pread(...)           kernel_pread(__VA_ARGS__)
#define preadv2(...)         kernel_preadv2(__VA_ARGS__)
#define read(...)            kernel_read(__VA_ARGS__)
#define recv(...)            kernel_recv(__VA_ARGS__)
#define recvmsg(...)         kernel_recvmsg(__VA_ARGS__)
#define send(...)            kernel_send(__VA_ARGS__)
#define sendmsg(...)         kernel_sendmsg(__VA_ARGS__)
#define setsockopt(...)      kernel_setsockopt(__VA_ARGS__)
#define shutdown(...)        kernel_shutdown(__VA_ARGS__)
#define sigaction(n, a, o)   kernel_sigaction(n, a)
#define socket(...)          kernel_socket(__VA_ARGS__)
#define syscall(...)         kernel_syscall(__VA_ARGS__)
#define timer_create(...)    kernel_timer_create(__VA_ARGS__)
#define timer_delete(t)      ((void)(t))
#define timerfd_create(...)  kernel_timerfd_create(__VA_ARGS__)
#define timerfd_settime(...) kernel_timerfd_settime(__VA_ARGS__)
#define write(...)           kernel_write(__VA_ARGS__)
#endif

/* NOLINTEND */

#endif
