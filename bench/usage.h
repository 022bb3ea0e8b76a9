/* usage.h: what processes have used so far: CPU time, context switches, bytes sent to the device, system
 * calls. */
#ifndef WALRUS_BENCH_USAGE_H
#define WALRUS_BENCH_USAGE_H

#include <sys/types.h>

#include "../shared/base.h"

struct usage {
    int64_t cpu_ns;        /* of all its threads, those that work for it in the kernel included */
    uint64_t switches;     /* context switches of its own threads */
    uint64_t device_bytes; /* that it caused to be written */
};

/* Zeroes where nothing can be read. */
struct usage usage_of(pid_t pid);
/* `after` - `before`; a count that went back (a thread ended) is 0. */
struct usage usage_between(const struct usage *before, const struct usage *after);

/* Counts the system calls of the threads that a process has at this moment. */
#define SYSCALL_THREADS_MOST 16u
struct syscall_counter {
    int fds[SYSCALL_THREADS_MOST];
    uint32_t count;
};

/* Number of the kernel's event "a system call begins"; -EOPNOTSUPP where it cannot be looked up (not root,
 * no tracefs). Looks in a mount namespace of a child's own: nothing stays mounted. */
int syscall_event(uint64_t *event) must_check;
/* pid 0: the calling thread. On error there is nothing to end. */
int syscall_counter_begin(struct syscall_counter *counter, uint64_t event, pid_t pid) must_check;
/* The count since begin; releases the counter. */
uint64_t syscall_counter_end(struct syscall_counter *counter);

#endif
