/* stat.c: the counters file beside the socket, and the lines the broker says.
 *
 * The file is made in full (a hole in it would be a SIGBUS on a full disk), mapped, and unlinked by the
 * program at the end. A broker without one serves all the same. */
#include "session.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SAYING_PERIOD_NS INT64_C(10000000000)
#define SAYINGS          20u

#define SAME_FIELD(name)                                                                                     \
    _Static_assert(offsetof(struct log_stats, name) == offsetof(struct stat_values, log_##name), #name);
STAT_LOG_FIELDS(SAME_FIELD)
_Static_assert(sizeof(struct log_stats) == offsetof(struct stat_values, session_connections),
               "every field of log_stats");

int stat_file_create(const char *path, uint32_t mode, struct stat_page **out, struct error *err)
{
    if (unlink(path) != 0 && errno != ENOENT)
        return error_set(err, -errno, "%s: cannot remove the old counters file: %s", path, strerror(errno));
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return error_set(err, -errno, "%s: cannot make the counters file: %s", path, strerror(errno));
    int rc = posix_fallocate(fd, 0, STAT_PAGE_BYTES);
    if (rc != 0) {
        rc = error_set(err, -rc, "%s: no room for the counters file: %s", path, strerror(rc));
        goto remove;
    }
    void *at = mmap(NULL, STAT_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        rc = error_set(err, -errno, "%s: cannot map the counters file: %s", path, strerror(errno));
        goto remove;
    }
    close(fd);
    *out = at;
    return 0;

remove:
    close(fd);
    unlink(path);
    return rc;
}

void stat_file_close(struct stat_page *page)
{
    munmap(page, STAT_PAGE_BYTES);
}

void stat_turn(struct server *server, int64_t now)
{
    if (server->unsaid > 0 && now - server->said_since_ns >= SAYING_PERIOD_NS) {
        server_say(server, SAY_WARNING, "%u more messages about connections were left out", server->unsaid);
        server->unsaid = 0;
    }
    server->stat_dirty = false;
    server->stat_written_ns = now;
    if (server->options.stat == NULL)
        return;
    if (!server->log_gone) {
        struct log_stats stats;
        log_stats(server->log, &stats);
        memcpy(&server->values, &stats, sizeof stats);
    }
    stat_page_write(server->options.stat, &server->values, ++server->stat_updates);
}

void server_say(struct server *server, enum say priority, const char *format, ...)
{
    if (server->options.say == NULL)
        return;
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    server->options.say(server->options.context, priority, line);
}

void server_say_of_peer(struct server *server, const char *format, ...)
{
    int64_t now = io_now(server->io);
    if (now - server->said_since_ns >= SAYING_PERIOD_NS) {
        server->said_since_ns = now;
        server->said = 0;
    }
    server->stat_dirty = true;
    if (server->said >= SAYINGS) {
        server->unsaid++;
        return;
    }
    server->said++;
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    server_say(server, SAY_WARNING, "%s", line);
}
