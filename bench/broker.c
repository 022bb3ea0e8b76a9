/* broker.c: runs walrusd.
 *
 * Happy path: fork, exec with its own session of options, read stdout until the line "walrusd: ready on
 * ...", hand it back. The time from before fork to that line is ready_ns. Stop: SIGTERM, wait for exit
 * status 0.
 *
 * Failure modes: it ends before it is ready, or says nothing for READY_LIMIT_NS: its stderr's last lines go
 * into the error. It never outlives this program: the kernel kills it with its parent. */
#include "broker.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "phases.h"

#define READY_LIMIT_NS INT64_C(60000000000)
#define STOP_LIMIT_NS  INT64_C(60000000000)
#define QUIET_NS       INT64_C(300000000)
#define SPARE_LEAST    (1 << 20)

static bool usable(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISREG(status.st_mode) && access(path, X_OK) == 0;
}

int broker_find(char *path, size_t size, struct error *err)
{
    static const char *const places[] = {"walrusd", "../broker/program/walrusd", "../broker/walrusd",
                                         "../sbin/walrusd"};
    char self[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length > 0) {
        self[length] = 0;
        char *slash = strrchr(self, '/');
        if (slash != NULL)
            slash[1] = 0;
        for (size_t i = 0; slash != NULL && i < array_count(places); i++) {
            int n = snprintf(path, size, "%s%s", self, places[i]);
            if (n > 0 && (size_t)n < size && usable(path))
                return 0;
        }
    }
    const char *search = getenv("PATH");
    while (search != NULL && *search != 0) {
        int part = (int)strcspn(search, ":");
        int n = snprintf(path, size, "%.*s/walrusd", part, search);
        if (part > 0 && n > 0 && (size_t)n < size && usable(path))
            return 0;
        search += part + (search[part] == ':');
    }
    return error_set(err, -ENOENT,
                     "no walrusd beside this program or in PATH; say where it is with --broker");
}

/* The end of its stderr, on one line, for an error. */
static void last_words(const struct broker *broker, char *out, size_t size)
{
    snprintf(out, size, "(it said nothing on stderr)");
    int fd = open(broker->log_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    off_t end = lseek(fd, 0, SEEK_END);
    off_t from = end > (off_t)size - 1 ? end - ((off_t)size - 1) : 0;
    ssize_t length = pread(fd, out, size - 1, from);
    close(fd);
    if (length <= 0)
        return;
    out[length] = 0;
    while (length > 0 && out[length - 1] == '\n')
        out[--length] = 0;
    for (char *c = out; *c != 0; c++)
        if (*c == '\n')
            *c = ' ';
}

static void run_child(const struct broker_options *options, const char *program, int out)
{
    child_begin();
    int log = open(options->log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    int none = open("/dev/null", O_RDONLY);
    if (log < 0 || none < 0 || dup2(none, 0) < 0 || dup2(out, 1) < 0 || dup2(log, 2) < 0)
        _exit(126);
    const char *arguments[16];
    int n = 0;
    arguments[n++] = "walrusd";
    arguments[n++] = "--data-dir";
    arguments[n++] = options->data_folder;
    arguments[n++] = "--socket";
    arguments[n++] = options->socket_path;
    if (options->durability != NULL) {
        arguments[n++] = "--durability";
        arguments[n++] = options->durability;
    }
    if (options->io != NULL) {
        arguments[n++] = "--io";
        arguments[n++] = options->io;
    }
    arguments[n] = NULL;
    union {
        const char **constant;
        char *const *plain;
    } argv = {.constant = arguments};
    execv(program, argv.plain);
    fprintf(stderr, "cannot run %s: %s\n", program, strerror(errno));
    _exit(127);
}

/* Reads the pipe until the line is there. */
static int wait_ready(struct broker *broker, int in, const volatile sig_atomic_t *interrupted,
                      struct error *err)
{
    char text[512], words[320];
    size_t length = 0;
    int64_t limit = now_ns() + READY_LIMIT_NS;
    for (;;) {
        struct pollfd p = {in, POLLIN, 0};
        int left = (int)((limit - now_ns()) / 1000000);
        if (left <= 0)
            return error_set(err, -ETIMEDOUT, "walrusd was not ready after 60 s: %s",
                             (last_words(broker, words, sizeof words), words));
        if (interrupted != NULL && *interrupted != 0)
            return error_set(err, -EINTR, "interrupted");
        if (poll(&p, 1, left < 200 ? left : 200) <= 0)
            continue;
        ssize_t n = read(in, text + length, sizeof text - 1 - length);
        if (n == 0)
            return error_set(err, -ECHILD, "walrusd ended before it was ready: %s",
                             (last_words(broker, words, sizeof words), words));
        if (n < 0)
            continue;
        length += (size_t)n;
        text[length] = 0;
        if (strstr(text, "ready on ") != NULL && strchr(text, '\n') != NULL)
            return 0;
        if (length == sizeof text - 1)
            return error_set(err, -EPROTO, "walrusd says other things than that it is ready: %.80s", text);
    }
}

int broker_start(struct broker *broker, const struct broker_options *options, struct error *err)
{
    char found[4096];
    int ends[2];
    memset(broker, 0, sizeof *broker);
    snprintf(broker->socket_path, sizeof broker->socket_path, "%s", options->socket_path);
    snprintf(broker->log_path, sizeof broker->log_path, "%s", options->log_path);
    const char *program = options->program;
    if (program == NULL) {
        int result = broker_find(found, sizeof found, err);
        if (result < 0)
            return result;
        program = found;
    }
    if (pipe2(ends, O_CLOEXEC) < 0)
        return error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
    int64_t from = now_ns();
    pid_t pid = fork();
    if (pid == 0)
        run_child(options, program, ends[1]);
    close(ends[1]);
    if (pid < 0) {
        int code = -errno;
        close(ends[0]);
        return error_set(err, code, "cannot start walrusd: %s", strerror(-code));
    }
    broker->pid = pid;
    int result = wait_ready(broker, ends[0], options->interrupted, err);
    broker->ready_ns = now_ns() - from;
    close(ends[0]);
    if (result < 0)
        broker_kill(broker);
    return result;
}

int broker_stop(struct broker *broker, struct error *err)
{
    char words[320];
    if (broker->pid == 0)
        return 0;
    kill(broker->pid, SIGTERM);
    int64_t limit = now_ns() + STOP_LIMIT_NS;
    int status;
    while (waitpid(broker->pid, &status, WNOHANG) == 0) {
        if (now_ns() > limit) {
            broker_kill(broker);
            return error_set(err, -ETIMEDOUT, "walrusd did not end within 60 s of SIGTERM");
        }
        pause_ns(2000000);
    }
    broker->pid = 0;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        last_words(broker, words, sizeof words);
        return error_set(err, -ECHILD, "walrusd ended with %s %d instead of 0: %s",
                         WIFEXITED(status) ? "exit status" : "signal",
                         WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), words);
    }
    return 0;
}

void broker_kill(struct broker *broker)
{
    if (broker->pid == 0)
        return;
    kill(broker->pid, SIGKILL);
    waitpid(broker->pid, NULL, 0);
    broker->pid = 0;
}

int broker_check(struct broker *broker, struct error *err)
{
    char words[320];
    int status;
    if (broker->pid == 0 || waitpid(broker->pid, &status, WNOHANG) == 0)
        return 0;
    broker->pid = 0;
    last_words(broker, words, sizeof words);
    return error_set(err, -ESRCH, "walrusd has ended by itself: %s", words);
}

static uint64_t bytes_written(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/io", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    text[length > 0 ? length : 0] = 0;
    const char *at = strstr(text, "write_bytes:");
    return at != NULL ? strtoull(at + 12, NULL, 10) : 0;
}

void broker_settle(const struct broker *broker, int64_t limit_ns)
{
    if (broker->pid == 0)
        return;
    int64_t limit = now_ns() + limit_ns, quiet_since = now_ns();
    uint64_t last = bytes_written(broker->pid);
    while (now_ns() < limit && now_ns() - quiet_since < QUIET_NS) {
        pause_ns(20000000);
        uint64_t now = bytes_written(broker->pid);
        if (now != last)
            quiet_since = now_ns();
        last = now;
    }
}

static bool blank_at_front(int folder, const char *name)
{
    uint8_t front[4096];
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = pread(fd, front, sizeof front, 0);
    close(fd);
    for (ssize_t i = 0; i < n; i++)
        if (front[i] != 0)
            return false;
    return n > 0;
}

uint64_t broker_spare_bytes(const char *data_folder)
{
    uint64_t sum = 0;
    DIR *folder = opendir(data_folder);
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        size_t length = strlen(entry->d_name);
        struct stat status;
        if (length > 8 && strcmp(entry->d_name + length - 8, ".segment") == 0 &&
            fstatat(dirfd(folder), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISREG(status.st_mode) && status.st_size >= SPARE_LEAST &&
            blank_at_front(dirfd(folder), entry->d_name))
            sum += (uint64_t)status.st_size;
    }
    if (folder != NULL)
        closedir(folder);
    return sum;
}

int broker_counters(const char *socket_path, struct stat_snapshot *snapshot)
{
    char path[160];
    struct stat status;
    snprintf(path, sizeof path, "%s%s", socket_path, STAT_PAGE_SUFFIX);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int result = -EPROTO;
    if (fstat(fd, &status) == 0 && status.st_size >= (off_t)STAT_PAGE_BYTES) {
        void *page = mmap(NULL, STAT_PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
        if (page != MAP_FAILED) {
            result = stat_page_read(page, STAT_PAGE_BYTES, snapshot);
            munmap(page, STAT_PAGE_BYTES);
        }
    }
    close(fd);
    return result;
}
