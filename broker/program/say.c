#include "say.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

void say_line(void *context, enum say priority, const char *line)
{
    static const char *const names[] = {
        [SAY_ERROR] = "error", [SAY_WARNING] = "warning", [SAY_NOTICE] = "notice", [SAY_DEBUG] = "debug"};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm tm;
    char when[32] = "";
    if (gmtime_r(&now.tv_sec, &tm) != NULL)
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
    char text[1024];
    int n = snprintf(text, sizeof text - 1, "%s.%03ldZ walrusd %s %s: %s", when, now.tv_nsec / 1000000,
                     names[priority], (const char *)context, line);
    if (n < 0)
        return;
    size_t length = (size_t)n < sizeof text - 1 ? (size_t)n : sizeof text - 2;
    text[length] = '\n';
    ssize_t ignored = write(STDERR_FILENO, text, length + 1); /* one call, so that lines do not mix */
    (void)ignored;
}

void sayf(const char *store, enum say priority, const char *format, ...)
{
    char line[768];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    union {
        const char *text;
        void *context;
    } store_context = {.text = store};
    say_line(store_context.context, priority, line);
}

void notify_manager(const char *state)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (path == NULL || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof address.sun_path)
        return;
    memcpy(address.sun_path, path, strlen(path));
    if (path[0] == '@') /* abstract */
        address.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
    ssize_t ignored = sendto(fd, state, strlen(state), MSG_DONTWAIT | MSG_NOSIGNAL,
                             (const struct sockaddr *)&address, length);
    (void)ignored;
    close(fd);
}
