/* files.c: row 22: what may not be done with the descriptors. These have a certain answer: the kernel refuses
 * them because of how the broker made and sealed the files; the first one that works ends the run. */
#include "hostile.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

#define REFUSED(call)                                                                                        \
    do {                                                                                                     \
        if ((call) >= 0)                                                                                     \
            found(a, "%s: %s was not refused", names[which], #call);                                         \
    } while (0)

static const char *const names[FD_COUNT] = {"client file", "broker file", "doorbell", "signal", "watermarks"};

static off_t size_of(int fd)
{
    struct stat info;
    return fstat(fd, &info) == 0 ? info.st_size : 0;
}

static void resize_and_seal(const struct attacker *a, const struct raw *raw, unsigned which)
{
    int fd = raw->fds[which];
    off_t size = size_of(fd);
    REFUSED(ftruncate(fd, 0));
    REFUSED(ftruncate(fd, size - 1));
    REFUSED(ftruncate(fd, size + 1));
    REFUSED(fallocate(fd, 0, size, 4096));
    REFUSED(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096));
    for (int bit = 0; bit < 6; bit++)
        REFUSED(fcntl(fd, F_ADD_SEALS, 1 << bit));
    if (size_of(fd) != size)
        found(a, "%s: its size has changed", names[which]);
}

static void map_writable(const struct attacker *a, int fd, unsigned which)
{
    uint64_t wild = rng_next(&(struct rng){.state = a->seed});
    struct iovec iov = {.iov_base = &wild, .iov_len = sizeof wild};
    if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED)
        found(a, "%s: can be mapped writable", names[which]);
    if (mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED)
        found(a, "%s: can be mapped writable", names[which]);
    REFUSED(write(fd, &wild, sizeof wild));
    REFUSED(pwrite(fd, &wild, sizeof wild, 128));
    REFUSED(pwritev(fd, &iov, 1, 0));
    REFUSED(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    REFUSED(fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    void *at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return;
    REFUSED(mprotect(at, 4096, PROT_READ | PROT_WRITE));
    REFUSED(madvise(at, 4096, MADV_REMOVE));
    munmap(at, 4096);
}

static void read_only(const struct attacker *a, const struct raw *raw, unsigned which)
{
    char path[64];
    map_writable(a, raw->fds[which], which);
    snprintf(path, sizeof path, "/proc/self/fd/%d", raw->fds[which]);
    int again = open(path, O_RDWR | O_CLOEXEC);
    if (again < 0)
        return;
    map_writable(a, again, which);
    resize_and_seal(a, raw, which);
    close(again);
}

void attack_file_tricks(struct attacker *a)
{
    while (!over(a)) {
        struct raw raw;
        if (!raw_connected(a, &raw))
            return;
        uint32_t topic = raw_open(&raw, "hostile-files");
        resize_and_seal(a, &raw, FD_CLIENT_FILE);
        resize_and_seal(a, &raw, FD_BROKER_FILE);
        resize_and_seal(a, &raw, FD_WATERMARKS);
        read_only(a, &raw, FD_BROKER_FILE);
        read_only(a, &raw, FD_WATERMARKS);
        for (unsigned which = FD_DOORBELL; which <= FD_SIGNAL; which++) {
            REFUSED(ftruncate(raw.fds[which], 0));
            REFUSED(fallocate(raw.fds[which], 0, 0, 4096));
        }
        struct completion completion;
        struct descriptor d = raw_batch(&raw, &a->rng, topic, 0, 1, 64);
        if (topic != 0 && raw_call(&raw, &d, &completion) == 0 && completion.result != 0 &&
            completion.result != -EBUSY)
            found(a, "after all that was refused, a good batch is answered %d", completion.result);
        raw_close(&raw);
        pause_ns(MS);
    }
}

/* ------------------------------------------------------------------------------------- as a program */

static bool kernel_knows_noexec(void)
{
    int fd = memfd_create("probe", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* The child's exit code; 7 if the memory ran. */
static int run_file(int fd)
{
    pid_t pid = fork();
    if (pid == 0) {
        char path[64];
        char *arguments[] = {(char[]){"x"}, NULL};
        char *environment[] = {NULL};
        (void)fchmod(fd, 0777);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        execve(path, arguments, environment);
        fexecve(fd, arguments, environment);
        _exit(0);
    }
    int status = 0;
    if (pid > 0)
        waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

void attack_file_run(struct attacker *a)
{
    static const char script[] = "#!/bin/sh\nexit 7\n";
    if (!kernel_knows_noexec())
        not_tried(a, "this kernel has no memory that cannot be run (before Linux 6.3)");
    while (!over(a)) {
        struct raw raw;
        if (!raw_connected(a, &raw))
            return;
        (void)raw_open(&raw, "hostile-files");
        memcpy(raw.client, script, sizeof script); /* over the index words: ends the connection, no more */
        for (unsigned i = 0; i < FD_COUNT; i++)
            if (run_file(raw.fds[i]) == 7)
                found(a, "%s: runs as a program", names[i]);
        raw_close(&raw);
    }
}

/* ------------------------------------------------------------------------------------- the process */

static void against_process(const struct attacker *a)
{
    const unsigned which = 0;
    pid_t broker = a->broker;
    char path[64];
    struct rlimit limit = {.rlim_cur = 8, .rlim_max = 8};
    uint64_t word = 0;
    struct iovec iov = {.iov_base = &word, .iov_len = sizeof word};
    REFUSED(kill(broker, 0));
    REFUSED(ptrace(PTRACE_SEIZE, broker, NULL, NULL));
    REFUSED(process_vm_readv(broker, &iov, 1, &iov, 1, 0));
    REFUSED(process_vm_writev(broker, &iov, 1, &iov, 1, 0));
    REFUSED(prlimit(broker, RLIMIT_NOFILE, &limit, NULL));
    REFUSED(setpriority(PRIO_PROCESS, (id_t)broker, 19));
    static const char *const files[] = {"mem", "maps", "fd/3", "environ", "auxv"};
    for (size_t i = 0; i < array_count(files); i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", (int)broker, files[i]);
        REFUSED(open(path, O_RDONLY | O_CLOEXEC));
    }
    int pidfd = (int)syscall(SYS_pidfd_open, broker, 0);
    if (pidfd < 0)
        return;
    for (int fd = 3; fd < 20; fd++)
        REFUSED(syscall(SYS_pidfd_getfd, pidfd, fd, 0));
    close(pidfd);
}

/* Signals, leases and locks on the open files that broker and client share. */
static void against_files(const struct attacker *a, const struct raw *raw)
{
    for (unsigned i = 0; i <= FD_COUNT; i++) {
        int fd = i < FD_COUNT ? raw->fds[i] : raw->socket;
        int flags = fcntl(fd, F_GETFL);
        (void)fcntl(fd, F_SETOWN, a->broker);
        (void)fcntl(fd, F_SETSIG, SIGKILL);
        (void)fcntl(fd, F_SETFL, flags | O_ASYNC | O_APPEND);
        (void)fcntl(fd, F_SETLEASE, F_WRLCK);
        (void)flock(fd, LOCK_EX | LOCK_NB);
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        (void)fcntl(fd, F_OFD_SETLK, &lock);
        int on = i % 2 == 0;
        (void)ioctl(fd, FIOASYNC, &on);
    }
}

void attack_file_signals(struct attacker *a)
{
    if (!a->other_uid)
        not_tried(a, "needs two users: one's own processes are nobody's to protect");
    against_process(a);
    while (!over(a)) {
        struct raw raw;
        if (!raw_connected(a, &raw))
            return;
        uint32_t topic = raw_open(&raw, "hostile-files");
        against_files(a, &raw);
        for (int i = 0; i < 50 && topic != 0 && !over(a); i++) {
            struct completion completion;
            struct descriptor d = raw_batch(&raw, &a->rng, topic, 0, 1, 64);
            if (raw_push(&raw, &d) != 1 || raw_answer(&raw, &completion, 20 * MS) != 0)
                break;
        }
        raw_close(&raw);
    }
}
