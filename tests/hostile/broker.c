/* broker.c: the place, the broker as a child, and what it holds, seen from outside. Every wait has a
 * limit. */
#include "hostile.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <ftw.h>
#include <unistd.h>

#define READY       "walrusd: ready on "
#define START_LIMIT (60 * SECOND)
#define STOP_LIMIT  (90 * SECOND)
#define CHECK_LIMIT (300 * SECOND)

/* ------------------------------------------------------------------------------------- place */

int place_make(struct place *place, struct error *err)
{
    const char *parent = getenv("TMPDIR");
    *place = (struct place){.output = -1};
    if (parent == NULL || parent[0] != '/' || strlen(parent) > 32)
        parent = "/tmp"; /* a socket's path must be short */
    snprintf(place->folder, sizeof place->folder, "%s/walrus-hostile-XXXXXX", parent);
    if (mkdtemp(place->folder) == NULL)
        return error_set(err, -errno, "cannot make a folder under %s: %s", parent, strerror(errno));
    if (chmod(place->folder, 0711) != 0) /* the other users must reach the socket, nothing else */
        return error_set(err, -errno, "%s: %s", place->folder, strerror(errno));
    snprintf(place->store, sizeof place->store, "%s/store", place->folder);
    snprintf(place->socket, sizeof place->socket, "%s/socket", place->folder);
    snprintf(place->stat, sizeof place->stat, "%s%s", place->socket, STAT_PAGE_SUFFIX);
    snprintf(place->log, sizeof place->log, "%s/log", place->folder);
    snprintf(place->ledger, sizeof place->ledger, "%s/ledger", place->folder);
    return 0;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info;
    (void)kind;
    (void)where;
    (void)remove(path);
    return 0;
}

void place_remove(struct place *place)
{
    if (place->folder[0] != '\0')
        nftw(place->folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    place->folder[0] = '\0';
}

/* ------------------------------------------------------------------------------------- children */

/* Runs `arguments` with stdout to `output` and stderr to `log`. Dies with us. */
__attribute__((noreturn)) static void be_program(const char *const *arguments, int output, const char *log,
                                                 pid_t parent)
{
    char *list[32] = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    if (getppid() != parent)
        _exit(1);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int errors = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (null < 0 || errors < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(errors, 2) < 0)
        _exit(126);
    for (size_t i = 0; arguments[i] != NULL && i + 1 < array_count(list); i++)
        list[i] = strdup(arguments[i]);
    execv(list[0], list);
    dprintf(2, "cannot start %s: %s\n", list[0], strerror(errno));
    _exit(127);
}

static int start_program(const char *const *arguments, const char *log, pid_t *pid, int *output,
                         struct error *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return error_set(err, -errno, "pipe: %s", strerror(errno));
    pid_t parent = getpid();
    *pid = fork();
    if (*pid == 0)
        be_program(arguments, ends[1], log, parent);
    close(ends[1]);
    if (*pid < 0) {
        close(ends[0]);
        return error_set(err, -errno, "fork: %s", strerror(errno));
    }
    *output = ends[0];
    return 0;
}

static int ended_words(const char *what, int status, struct error *err)
{
    if (WIFSIGNALED(status))
        return error_set(err, -ECHILD, "%s was ended by signal %d", what, WTERMSIG(status));
    if (WEXITSTATUS(status) != 0)
        return error_set(err, -ECHILD, "%s ended with exit code %d", what, WEXITSTATUS(status));
    return 0;
}

/* Waits until it has ended; past the limit it is killed. */
static int await_end(const char *what, pid_t pid, int64_t limit_ns, struct error *err)
{
    int64_t end = now_ns() + limit_ns;
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (now_ns() >= end) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            return error_set(err, -ETIMEDOUT, "%s did not end within %d s", what, (int)(limit_ns / SECOND));
        }
        pause_ns(2 * MS);
    }
    return ended_words(what, status, err);
}

/* ------------------------------------------------------------------------------------- broker */

static int await_ready(struct place *place, struct error *err)
{
    char line[256] = "";
    size_t used = 0;
    int64_t end = now_ns() + START_LIMIT;
    while (memchr(line, '\n', used) == NULL) {
        if (now_ns() >= end)
            return error_set(err, -ETIMEDOUT, "the broker was not ready within %d s",
                             (int)(START_LIMIT / SECOND));
        struct pollfd fd = {.fd = place->output, .events = POLLIN};
        if (poll(&fd, 1, 100) <= 0)
            continue;
        ssize_t got = read(place->output, line + used, sizeof line - 1 - used);
        if (got <= 0 || used + (size_t)got >= sizeof line - 1)
            return error_set(err, -ECHILD, "the broker ended, or said something else, before it was ready");
        used += (size_t)got;
    }
    line[used] = '\0';
    return strncmp(line, READY, strlen(READY)) == 0
               ? 0
               : error_set(err, -EPROTO, "the broker's first line is not \"%sPATH\" but: %s", READY, line);
}

static int map_stat(struct place *place, struct error *err)
{
    int fd = open(place->stat, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, -errno, "%s: %s", place->stat, strerror(errno));
    const void *page = mmap(NULL, STAT_PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    int rc = page == MAP_FAILED ? error_set(err, -errno, "%s: %s", place->stat, strerror(errno)) : 0;
    close(fd);
    if (rc == 0)
        place->stat_page = page;
    return rc;
}

int broker_start(struct place *place, const struct options *options, const char *const *more,
                 struct error *err)
{
    const char *arguments[24] = {options->broker, "--data-dir",    place->store, "--socket",
                                 place->socket,   "--socket-mode", "0666"};
    for (size_t i = 0; more[i] != NULL && 8 + i < array_count(arguments); i++)
        arguments[7 + i] = more[i];
    int rc = start_program(arguments, place->log, &place->broker, &place->output, err);
    if (rc == 0)
        rc = await_ready(place, err);
    if (rc == 0)
        rc = map_stat(place, err);
    return rc;
}

int broker_alive(struct place *place, struct error *err)
{
    int status;
    if (waitpid(place->broker, &status, WNOHANG) == 0)
        return 0;
    place->broker = 0;
    if (ended_words("the broker", status, err) == 0)
        return error_set(err, -ECHILD, "the broker ended by itself");
    return err->code;
}

int broker_stop(struct place *place, struct error *err)
{
    kill(place->broker, SIGTERM);
    int rc = await_end("the broker, after SIGTERM,", place->broker, STOP_LIMIT, err);
    place->broker = 0;
    return rc;
}

void broker_kill(struct place *place)
{
    if (place->broker > 0) {
        kill(place->broker, SIGKILL);
        waitpid(place->broker, NULL, 0);
    }
    place->broker = 0;
    if (place->output >= 0)
        close(place->output);
    place->output = -1;
    union {
        const void *page;
        void *mapping;
    } stat = {.page = place->stat_page};
    if (stat.page != NULL)
        munmap(stat.mapping, STAT_PAGE_BYTES);
    place->stat_page = NULL;
}

int store_check(const struct place *place, const struct options *options, struct error *err)
{
    const char *arguments[] = {options->check, "check", place->store, NULL};
    pid_t pid;
    int output;
    int rc = start_program(arguments, place->log, &pid, &output, err);
    if (rc != 0)
        return rc;
    char words[4096] = "";
    size_t used = 0;
    ssize_t got;
    while (used < sizeof words - 1 && (got = read(output, words + used, sizeof words - 1 - used)) > 0)
        used += (size_t)got;
    words[used] = '\0';
    close(output);
    rc = await_end("`walrus check`", pid, CHECK_LIMIT, err);
    return rc == 0 ? 0 : error_wrap(err, "the store is damaged: %.200s", words);
}

/* ------------------------------------------------------------------------------------- what it holds */

int broker_stat(const struct place *place, struct stat_values *values)
{
    struct stat_snapshot snapshot;
    int rc = -EAGAIN;
    for (int i = 0; i < 1000 && rc == -EAGAIN; i++)
        rc = stat_page_read(place->stat_page, STAT_PAGE_BYTES, &snapshot);
    if (rc == 0)
        *values = snapshot.values;
    return rc;
}

static void count_descriptors(pid_t pid, struct holdings *out)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    out->sockets = out->eventfds = out->memfds = out->processes = -1;
    DIR *folder = opendir(path);
    if (folder == NULL)
        return;
    out->sockets = out->eventfds = out->memfds = out->processes = 0;
    struct dirent *entry;
    while ((entry = readdir(folder)) != NULL) {
        char target[256] = "";
        if (readlinkat(dirfd(folder), entry->d_name, target, sizeof target - 1) <= 0)
            continue;
        out->sockets += strncmp(target, "socket:", 7) == 0;
        out->eventfds += strcmp(target, "anon_inode:[eventfd]") == 0;
        out->processes += strcmp(target, "anon_inode:[pidfd]") == 0 || strncmp(target, "pidfd:", 6) == 0;
        out->memfds += strncmp(target, "/memfd:", 7) == 0;
    }
    closedir(folder);
}

static void count_mappings(pid_t pid, struct holdings *out)
{
    char path[64];
    char *line = NULL;
    size_t size = 0;
    snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
    out->mappings = -1;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return;
    while (getline(&line, &size, file) > 0) {
        out->mappings = out->mappings < 0 ? 0 : out->mappings;
        out->mappings += strstr(line, "/memfd:") != NULL;
    }
    free(line);
    fclose(file);
}

static void private_memory(pid_t pid, struct holdings *out)
{
    char path[64];
    char line[256];
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    out->private_kib = -1;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return;
    while (fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, "RssAnon:", 8) == 0)
            out->private_kib = strtoll(line + 8, NULL, 10);
    fclose(file);
}

int broker_holdings(const struct place *place, struct holdings *out)
{
    struct stat_values values = {0};
    *out = (struct holdings){0};
    count_descriptors(place->broker, out);
    count_mappings(place->broker, out);
    private_memory(place->broker, out);
    int rc = broker_stat(place, &values);
    out->connections = values.session_connections;
    out->shared_bytes = values.session_shared_bytes;
    return rc;
}
