/* place.c: a broker's place, children, clocks. Every wait has a limit. */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../shared/stat_page.h"
#include "soak.h"

#define MOST_OPTIONS 32

int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

void pause_ns(int64_t ns)
{
    struct timespec time = {.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};
    if (ns > 0)
        ppoll(NULL, 0, &time, NULL);
}

uint64_t random_next(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

/* ------------------------------------------------------------------------------------- folders */

int place_make(struct run *run, struct error *err)
{
    int length =
        snprintf(run->folder, sizeof run->folder, "%s/%s-XXXXXX", run->soak->folder, run->soak->prefix);
    if (length < 0 || (size_t)length >= sizeof run->folder || mkdtemp(run->folder) == NULL) {
        run->folder[0] = '\0';
        return error_set(err, -errno, "cannot make a folder in %s: %s", run->soak->folder, strerror(errno));
    }
    snprintf(run->socket_folder, sizeof run->socket_folder, "/tmp/walrus-soak-XXXXXX");
    if (mkdtemp(run->socket_folder) == NULL) {
        run->socket_folder[0] = '\0';
        return error_set(err, -errno, "cannot make a folder in /tmp: %s", strerror(errno));
    }
    snprintf(run->store, sizeof run->store, "%s/store", run->folder);
    snprintf(run->log, sizeof run->log, "%s/walrusd.log", run->folder);
    snprintf(run->socket, sizeof run->socket, "%s/sock", run->socket_folder);
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    (void)remove(path); /* what cannot be removed does not keep the rest */
    return 0;
}

void place_remove(struct run *run)
{
    broker_kill(run);
    if (run->folder[0] != '\0')
        nftw(run->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    if (run->socket_folder[0] != '\0')
        nftw(run->socket_folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    run->folder[0] = run->socket_folder[0] = '\0';
}

void store_remove(const struct run *run)
{
    nftw(run->store, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int place_needs(const struct run *run, uint64_t bytes, struct error *err)
{
    struct statvfs fs;
    if (statvfs(run->folder, &fs) != 0)
        return error_set(err, -errno, "statvfs of %s: %s", run->folder, strerror(errno));
    uint64_t there = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (there >= bytes)
        return 0;
    (void)error_set(err, -ENOSPC, "%llu MiB of disk are free below %s, it needs %llu MiB",
                    (unsigned long long)(there >> 20), run->soak->folder, (unsigned long long)(bytes >> 20));
    return SOAK_SKIPPED;
}

/* ------------------------------------------------------------------------------------- children */

static void default_signals(void)
{
    const struct sigaction action = {.sa_handler = SIG_DFL};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

pid_t child_fork(void)
{
    pid_t parent = getpid();
    fflush(NULL);
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0); /* ^C is for the parent, which ends us */
    default_signals();
    if (getppid() != parent)
        _exit(1);
    return 0;
}

int child_wait(pid_t pid, int *status, struct error *err)
{
    int64_t limit = now_ns() + PATIENCE_NS;
    for (;;) {
        pid_t ended = waitpid(pid, status, WNOHANG);
        if (ended == pid)
            return 0;
        if (ended < 0 && errno != EINTR)
            return error_set(err, -errno, "waitpid: %s", strerror(errno));
        if (now_ns() > limit || run_interrupted(NULL) != 0) {
            child_end(pid);
            return error_set(err, -ETIMEDOUT, "a client does not end within %d s",
                             (int)(PATIENCE_NS / NS_PER_S));
        }
        pause_ns(NS_PER_MS);
    }
}

void child_end(pid_t pid)
{
    if (pid <= 0)
        return;
    kill(pid, SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
}

void *shared_new(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    return memory;
}

void shared_free(void *memory, size_t size)
{
    if (memory != NULL)
        munmap(memory, size);
}

void verdict_set(struct verdict *verdict, const char *format, ...)
{
    va_list list;
    struct error error = {.code = -EBADMSG};
    va_start(list, format);
    vsnprintf(error.text, sizeof error.text, format, list);
    va_end(list);
    if (__atomic_exchange_n(&verdict->taken, 1, __ATOMIC_RELAXED) != 0)
        return;
    memcpy(verdict->error.text, error.text, sizeof error.text);
    __atomic_store_n(&verdict->error.code, error.code, __ATOMIC_RELEASE);
}

int verdict_check(struct verdict *verdict, struct error *err)
{
    int code = __atomic_load_n(&verdict->error.code, __ATOMIC_ACQUIRE);
    return code == 0 ? 0 : error_set(err, code, "%s", verdict->error.text);
}

/* ------------------------------------------------------------------------------------- the broker */

__attribute__((noreturn)) static void be_broker(const struct run *run, int output)
{
    int log = open(run->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (log < 0 || null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(log, 2) < 0)
        _exit(126);
    char *words[MOST_OPTIONS + 9] = {(char[]){"walrusd"}};
    int count = 1;
    for (int i = 0; i < run->soak->option_count && i < MOST_OPTIONS; i++)
        words[count++] = run->soak->options[i];
    char *const own[] = {(char[]){"--data-dir"}, (char *)(uintptr_t)run->store,
                         (char[]){"--socket"},   (char *)(uintptr_t)run->socket,
                         (char[]){"--memory"},   (char *)(uintptr_t)run->memory};
    for (size_t i = 0; i < array_count(own) - (run->memory == NULL ? 2 : 0); i++)
        words[count++] = own[i];
    execv(run->soak->walrusd, words);
    dprintf(2, "cannot start %s: %s\n", run->soak->walrusd, strerror(errno));
    _exit(127);
}

/* Until it has said its line. */
static int wait_for_ready(struct run *run, struct error *err)
{
    char line[512] = "";
    size_t used = 0;
    int64_t limit = now_ns() + PATIENCE_NS;
    while (memchr(line, '\n', used) == NULL) {
        struct pollfd fd = {.fd = run->output, .events = POLLIN};
        int rc = run_interrupted(err);
        if (rc != 0)
            return rc;
        if (now_ns() > limit)
            return error_set(err, -ETIMEDOUT, "the broker does not get ready");
        if (poll(&fd, 1, 100) <= 0)
            continue;
        ssize_t got = read(run->output, line + used, sizeof line - 1 - used);
        if (got <= 0 || used + (size_t)got >= sizeof line - 1)
            return error_set(err, -ECHILD, "the broker ended before it was ready");
        used += (size_t)got;
    }
    return strncmp(line, "walrusd: ready on ", 18) == 0
               ? 0
               : error_set(err, -EPROTO, "the broker's first line is: %.100s", line);
}

int broker_start(struct run *run, struct error *err)
{
    int ends[2];
    check_bug(run->broker == 0);
    if (pipe2(ends, O_CLOEXEC) != 0)
        return error_set(err, -errno, "pipe: %s", strerror(errno));
    pid_t pid = child_fork();
    if (pid == 0)
        be_broker(run, ends[1]);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return error_set(err, -errno, "fork: %s", strerror(errno));
    }
    run->broker = pid;
    run->output = ends[0];
    int rc = wait_for_ready(run, err);
    if (rc < 0)
        broker_kill(run);
    return rc;
}

static void broker_gone(struct run *run)
{
    if (run->output >= 0)
        close(run->output);
    run->output = -1;
    run->broker = 0;
}

void broker_kill(struct run *run)
{
    child_end(run->broker);
    broker_gone(run);
}

int broker_stop(struct run *run, struct error *err)
{
    int status = 0;
    kill(run->broker, SIGTERM);
    int rc = child_wait(run->broker, &status, err);
    broker_gone(run);
    if (rc < 0)
        return error_wrap(err, "stopping the broker");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    return error_set(err, -ECHILD, "the broker ended with status %#x after SIGTERM", (unsigned)status);
}

void broker_print_log(const struct run *run)
{
    char text[4097];
    int fd = open(run->log, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    off_t size = lseek(fd, 0, SEEK_END), most = sizeof text - 1;
    ssize_t got = pread(fd, text, sizeof text - 1, size > most ? size - most : 0);
    close(fd);
    if (got > 0)
        fprintf(stderr, "the broker's last messages:\n%.*s", (int)got, text);
}

/* Descriptors but those of the store's files, which come and go with the log; 0 if they may not be looked
 * at. */
static uint64_t count_descriptors(const struct run *run)
{
    uint64_t count = 0;
    char path[64], target[512];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)run->broker);
    DIR *directory = opendir(path);
    if (directory == NULL)
        return 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target - 1);
        target[length > 0 ? length : 0] = '\0';
        count += length > 0 && strncmp(target, run->store, strlen(run->store)) != 0;
    }
    closedir(directory);
    return count;
}

static uint64_t count_mappings(const struct run *run)
{
    char path[64], line[4096];
    uint64_t count = 0;
    snprintf(path, sizeof path, "/proc/%d/maps", (int)run->broker);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    while (fgets(line, sizeof line, file) != NULL)
        count += strstr(line, run->store) == NULL;
    fclose(file);
    return count;
}

/* From the counters file; 0 if there is none. */
static uint64_t log_memory_kib(const struct run *run)
{
    char path[sizeof run->socket + sizeof STAT_PAGE_SUFFIX];
    struct stat_snapshot snapshot = {0};
    int rc = -EAGAIN;
    snprintf(path, sizeof path, "%s%s", run->socket, STAT_PAGE_SUFFIX);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    void *mapped = mmap(NULL, STAT_PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        return 0;
    for (int i = 0; i < 100 && rc == -EAGAIN; i++)
        rc = stat_page_read(mapped, STAT_PAGE_BYTES, &snapshot);
    munmap(mapped, STAT_PAGE_BYTES);
    return rc == 0 ? snapshot.values.log_memory_bytes >> 10 : 0;
}

static void status_field(const char *line, const char *name, uint64_t *kib)
{
    if (strncmp(line, name, strlen(name)) == 0)
        *kib = strtoull(line + strlen(name), NULL, 10);
}

int broker_footprint(const struct run *run, struct footprint *footprint, struct error *err)
{
    char path[64], line[256];
    *footprint = (struct footprint){0};
    footprint->fds = count_descriptors(run);
    footprint->mappings = count_mappings(run);
    footprint->log_kib = log_memory_kib(run);
    snprintf(path, sizeof path, "/proc/%d/status", (int)run->broker);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return error_set(err, -errno, "%s: %s: did the broker end?", path, strerror(errno));
    while (fgets(line, sizeof line, file) != NULL) {
        status_field(line, "VmRSS:", &footprint->rss_kib);
        status_field(line, "VmSize:", &footprint->size_kib);
        status_field(line, "VmHWM:", &footprint->hwm_kib);
    }
    fclose(file);
    return footprint->rss_kib > 0 ? 0 : error_set(err, -ESRCH, "%s: the broker has ended", path);
}

int soak_connect(const struct run *run, const struct walrus_connect_options *options, walrus **handle,
                 struct error *err)
{
    char words[400] = "";
    struct walrus_connect_options all = *options;
    all.size = sizeof all;
    all.socket_path = run->socket;
    all.error = words;
    all.error_size = sizeof words;
    int rc = walrus_connect(handle, &all);
    return rc == 0 ? 0 : error_set(err, rc, "%s", words[0] != '\0' ? words : strerror(-rc));
}
