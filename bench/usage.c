/* usage.c: reads what the kernel keeps about processes (see usage.h).
 *
 * Failure modes: a process that is gone, or files that may not be read, count as zeroes; an event that the
 * kernel does not have, or does not give to this user, is -EOPNOTSUPP and the report says "not known". */
#include "usage.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TRACE_FOLDER "/sys/kernel/tracing"
#define EVENT_FILE   TRACE_FOLDER "/events/raw_syscalls/sys_enter/id"

static ssize_t read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd >= 0 ? read(fd, text, size - 1) : -1;
    if (fd >= 0)
        close(fd);
    text[length > 0 ? length : 0] = 0;
    return length;
}

/* The number behind `label`; 0 if it is not there. */
static uint64_t number_behind(const char *text, const char *label)
{
    const char *at = strstr(text, label);
    return at != NULL ? strtoull(at + strlen(label), NULL, 10) : 0;
}

/* Calls `visit` for the threads of a process but the kernel's workers among them, which come and go. */
static void each_thread(pid_t pid, void (*visit)(pid_t thread, const char *status, void *arg), void *arg)
{
    char path[64], status[4096];
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *folder = opendir(path);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        pid_t thread = (pid_t)strtol(entry->d_name, NULL, 10);
        if (thread <= 0)
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%d/status", (int)pid, (int)thread);
        if (read_text(path, status, sizeof status) > 0 && strstr(status, "Name:\tiou-") == NULL)
            visit(thread, status, arg);
    }
    if (folder != NULL)
        closedir(folder);
}

static void add_switches(pid_t thread, const char *status, void *arg)
{
    uint64_t *sum = arg;
    (void)thread;
    *sum += number_behind(status, "\nvoluntary_ctxt_switches:") +
            number_behind(status, "\nnonvoluntary_ctxt_switches:");
}

struct usage usage_of(pid_t pid)
{
    struct usage usage = {0};
    char path[64], text[1024];
    struct timespec t;
    clockid_t clock;
    if (pid <= 0)
        return usage;
    if (clock_getcpuclockid(pid, &clock) == 0 && clock_gettime(clock, &t) == 0)
        usage.cpu_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    each_thread(pid, add_switches, &usage.switches);
    snprintf(path, sizeof path, "/proc/%d/io", (int)pid);
    if (read_text(path, text, sizeof text) > 0)
        usage.device_bytes = number_behind(text, "\nwrite_bytes:");
    return usage;
}

struct usage usage_between(const struct usage *before, const struct usage *after)
{
    struct usage used = {
        .cpu_ns = after->cpu_ns > before->cpu_ns ? after->cpu_ns - before->cpu_ns : 0,
        .switches = after->switches > before->switches ? after->switches - before->switches : 0,
        .device_bytes =
            after->device_bytes > before->device_bytes ? after->device_bytes - before->device_bytes : 0,
    };
    return used;
}

/* ------------------------------------------------------------------------------------------------ system
 * calls */

/* In a child with mounts of its own. */
__attribute__((noreturn)) static void look_up_event(int out)
{
    char text[32];
    if (access(EVENT_FILE, R_OK) != 0 &&
        (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
         mount("tracefs", TRACE_FOLDER, "tracefs", 0, NULL) < 0))
        _exit(1);
    ssize_t length = read_text(EVENT_FILE, text, sizeof text);
    _exit(length > 0 && write(out, text, (size_t)length) == length ? 0 : 1);
}

int syscall_event(uint64_t *event)
{
    char text[32] = "";
    int ends[2], status = 1;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -errno;
    pid_t pid = fork();
    if (pid == 0)
        look_up_event(ends[1]);
    close(ends[1]);
    ssize_t length = pid > 0 ? read(ends[0], text, sizeof text - 1) : -1;
    close(ends[0]);
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    *event = length > 0 ? strtoull(text, NULL, 10) : 0;
    return status == 0 && *event != 0 ? 0 : -EOPNOTSUPP;
}

struct opening {
    struct syscall_counter *counter;
    uint64_t event;
    int result;
};

static void open_one(pid_t thread, const char *status, void *arg)
{
    struct opening *opening = arg;
    struct syscall_counter *counter = opening->counter;
    struct perf_event_attr attributes = {
        .type = PERF_TYPE_TRACEPOINT, .size = sizeof attributes, .config = opening->event};
    (void)status;
    if (opening->result < 0 || counter->count == SYSCALL_THREADS_MOST)
        return;
    long fd = syscall(SYS_perf_event_open, &attributes, thread, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (fd < 0)
        opening->result = -EOPNOTSUPP;
    else
        counter->fds[counter->count++] = (int)fd;
}

int syscall_counter_begin(struct syscall_counter *counter, uint64_t event, pid_t pid)
{
    struct opening opening = {.counter = counter, .event = event};
    counter->count = 0;
    if (pid == 0)
        open_one(0, NULL, &opening);
    else
        each_thread(pid, open_one, &opening);
    if (opening.result == 0 && counter->count > 0)
        return 0;
    (void)syscall_counter_end(counter);
    return -EOPNOTSUPP;
}

uint64_t syscall_counter_end(struct syscall_counter *counter)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < counter->count; i++) {
        uint64_t one;
        if (read(counter->fds[i], &one, sizeof one) == (ssize_t)sizeof one)
            sum += one;
        close(counter->fds[i]);
    }
    counter->count = 0;
    return sum;
}
