/* paths.c: folders and the socket.
 *
 * Taking over a socket's path: a connect tells whether somebody serves there. Refused means stale: it is
 * removed, and a new one is bound. Two brokers that do this at once would remove each other's, so look,
 * removal and bind happen under a lock on the folder (flock on the folder itself leaves nothing behind).
 *
 * A folder under the temporary folder may have been made by somebody else between look and mkdir: it is
 * looked at again after. */
#include "../io/folder.h"
#include "paths.h"

#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

/* ------------------------------------------------------------------------------------- folders */

static int make_folder(const char *path, uint32_t mode, const char *what, struct error *err)
{
    char at[OPTION_TEXT_MAX + 128];
    size_t length = strlen(path);
    check_bug(length < sizeof at && path[0] == '/');
    memcpy(at, path, length + 1);
    for (size_t i = 1; i <= length; i++) {
        if (at[i] != '/' && at[i] != '\0')
            continue;
        char kept = at[i];
        at[i] = '\0';
        bool made = mkdir(at, 0700) == 0;
        if (!made && errno != EEXIST)
            return error_set(err, -errno, "%s: cannot make the %s folder: %s", at, what, strerror(errno));
        if (made && chmod(at, mode) != 0) /* whatever the umask is */
            return error_set(err, -errno, "%s: cannot set the mode of the %s folder: %s", at, what,
                             strerror(errno));
        at[i] = kept;
    }
    struct stat st;
    if (stat(path, &st) != 0)
        return error_set(err, -errno, "%s: cannot look at the %s folder: %s", path, what, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return error_set(err, -ENOTDIR, "%s: is not a folder (the %s folder is to be there)", path, what);
    return 0;
}

static int make_absolute(const char *path, char *out, size_t size, struct error *err)
{
    char here[PATH_MAX] = "";
    if (path[0] != '/' && getcwd(here, sizeof here) == NULL)
        return error_set(err, -errno, "cannot tell the current folder: %s", strerror(errno));
    int n = snprintf(out, size, "%s%s%s", here, path[0] != '/' ? "/" : "", path);
    if (n < 0 || (size_t)n >= size)
        return error_set(err, -ENAMETOOLONG, "%.200s: the path is too long", path);
    return 0;
}

static int resolve_data_folder(const struct options *options, struct paths *paths, struct error *err)
{
    char *out = paths->data_folder;
    size_t size = sizeof paths->data_folder;
    bool fallback = options->data_folder[0] == '\0';
    int rc;
    if (fallback) {
        rc = paths_default_data_folder(out, size, options->instance, err);
    } else {
        rc = make_absolute(options->data_folder, out, size - PATHS_INSTANCE_MAX - 1, err);
        size_t length = strlen(out);
        if (rc == 0 && options->instance[0] != '\0') /* the room for it was left above */
            snprintf(out + length, size - length, "/%s", options->instance);
    }
    if (rc == 0)
        rc = make_folder(out, 0700, "data", err);
    if (rc == 0 && fallback)
        rc = paths_default_data_folder(out, size, options->instance, err);
    return rc;
}

static int resolve_socket(const struct options *options, struct paths *paths, struct error *err)
{
    char *out = paths->socket;
    bool fallback = options->socket[0] == '\0';
    int rc;
    if (fallback) {
        rc = paths_default_socket(out, sizeof paths->socket, options->instance, err);
    } else { /* as it is: a relative path keeps a long folder's socket short enough */
        check_bug(strlen(options->socket) <= PATHS_SOCKET_MAX);
        memcpy(out, options->socket, strlen(options->socket) + 1);
        rc = 0;
    }
    if (rc != 0)
        return rc;
    char absolute[OPTION_TEXT_MAX];
    rc = make_absolute(out, absolute, sizeof absolute, err);
    if (rc == 0)
        rc = make_folder(dirname(absolute), (options->socket_mode & 077) != 0 ? 0755 : 0700, "socket's", err);
    if (rc == 0 && fallback)
        rc = paths_default_socket(out, sizeof paths->socket, options->instance, err);
    return rc;
}

int paths_resolve(const struct options *options, struct paths *paths, struct error *err)
{
    int rc = resolve_data_folder(options, paths, err);
    if (rc == 0)
        rc = resolve_socket(options, paths, err);
    if (rc == 0)
        snprintf(paths->stat, sizeof paths->stat, "%s.stat", paths->socket);
    return rc;
}

void file_system_of(const char *folder, char name[32], bool *known)
{
    struct statfs fs;
    *known = false;
    if (statfs(folder, &fs) != 0) {
        snprintf(name, 32, "unknown");
        return;
    }
    switch ((unsigned long)fs.f_type) {
    case EXT4_SUPER_MAGIC: /* ext2 and ext3 have the same number */
        snprintf(name, 32, "ext4");
        *known = true;
        break;
    case XFS_SUPER_MAGIC:
        snprintf(name, 32, "xfs");
        *known = true;
        break;
    case TMPFS_MAGIC:
        snprintf(name, 32, "tmpfs");
        break;
    case BTRFS_SUPER_MAGIC:
        snprintf(name, 32, "btrfs");
        break;
    case OVERLAYFS_SUPER_MAGIC:
        snprintf(name, 32, "overlayfs");
        break;
    case NFS_SUPER_MAGIC:
        snprintf(name, 32, "nfs");
        break;
    default:
        snprintf(name, 32, "type 0x%lx", (unsigned long)fs.f_type);
    }
}

/* ------------------------------------------------------------------------------------- socket */

static int socket_address(const char *path, struct sockaddr_un *address, struct error *err)
{
    size_t length = strlen(path);
    if (length > PATHS_SOCKET_MAX)
        return error_set(err, -ENAMETOOLONG,
                         "%.200s has %zu characters, a socket's path has at most %u: use a shorter one", path,
                         length, PATHS_SOCKET_MAX);
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address->sun_path, path, length + 1);
    return 0;
}

int socket_probe(const char *path, struct error *err)
{
    struct sockaddr_un address;
    int rc = socket_address(path, &address, err);
    if (rc != 0)
        return rc;
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? 0
                               : error_set(err, -errno, "%s: cannot look at it: %s", path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return error_set(err, -EEXIST, "%s: exists and is not a socket: remove it, or give another path",
                         path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
    struct ucred who = {.pid = 0};
    socklen_t length = sizeof who;
    int failed = connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 ? 0 : errno;
    if (failed == 0 && getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) != 0)
        who.pid = 0;
    close(fd);
    switch (failed) {
    case 0:
        if (who.pid != 0 && process_is_dying(who.pid))
            return 0; /* its descriptors are closed once its I/O has ended; the store is waited for */
        return error_set(err, -EADDRINUSE, "%s: pid %d already serves there: stop it, or give another path",
                         path, (int)who.pid);
    case ECONNREFUSED: /* stale */
    case ENOENT:
        return 0;
    case EAGAIN: /* its queue is full, so it lives */
        return error_set(err, -EADDRINUSE, "%s: a broker already serves there: stop it, or give another path",
                         path);
    case EPROTOTYPE:
        return error_set(err, -EADDRINUSE, "%s: another kind of program serves there: give another path",
                         path);
    default:
        return error_set(err, -failed, "%s: cannot tell whether somebody serves there: %s", path,
                         strerror(failed));
    }
}

static int lock_folder_of(const char *path, int *out, struct error *err)
{
    char folder[PATHS_SOCKET_MAX + 1];
    snprintf(folder, sizeof folder, "%s", path);
    int fd = open(dirname(folder), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, -errno, "%s: cannot open its folder: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX) != 0) {
        int rc = error_set(err, -errno, "%s: cannot lock its folder: %s", path, strerror(errno));
        close(fd);
        return rc;
    }
    *out = fd;
    return 0;
}

static int64_t made_ns(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

static int bind_and_listen(const char *path, const struct sockaddr_un *address, uint32_t mode,
                           struct listener *out, struct error *err)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
    int rc;
    struct stat st;
    if (unlink(path) != 0 && errno != ENOENT) {
        rc = error_set(err, -errno, "%s: cannot remove the stale socket: %s", path, strerror(errno));
        goto close_socket;
    }
    if (fchmod(fd, 0600) != 0 || bind(fd, (const struct sockaddr *)address, sizeof *address) != 0) {
        rc = error_set(err, -errno, "%s: cannot bind the socket: %s", path, strerror(errno));
        goto close_socket;
    }
    if (stat(path, &st) != 0 || chmod(path, mode) != 0 || listen(fd, SOMAXCONN) != 0) {
        rc = error_set(err, -errno, "%s: cannot listen on the socket: %s", path, strerror(errno));
        unlink(path);
        goto close_socket;
    }
    *out = (struct listener){.fd = fd, .device = st.st_dev, .inode = st.st_ino, .made_ns = made_ns(&st)};
    return 0;

close_socket:
    close(fd);
    return rc;
}

int socket_listen(const char *path, uint32_t mode, struct listener *out, struct error *err)
{
    struct sockaddr_un address;
    int rc = socket_address(path, &address, err);
    if (rc != 0)
        return rc;
    int lock = -1;
    rc = lock_folder_of(path, &lock, err);
    if (rc != 0)
        return rc;
    rc = socket_probe(path, err);
    if (rc == 0)
        rc = bind_and_listen(path, &address, mode, out, err);
    close(lock);
    return rc;
}

void socket_remove(const char *path, const struct listener *listener)
{
    struct stat st;
    if (lstat(path, &st) == 0 && st.st_dev == listener->device && st.st_ino == listener->inode &&
        made_ns(&st) == listener->made_ns)
        unlink(path);
}
