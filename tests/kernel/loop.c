/* loop.c: loop devices, file systems on them, mounts. A loop device lives as long as somebody has it open:
 * the descriptor here until it is mounted, then the mount; so none is left behind by any way out. */
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.h"

#define LOOP_TRIES 50

/* /dev may lack the node that the kernel has just made. */
static int open_loop(int number, char path[32])
{
    snprintf(path, 32, "/dev/loop%d", number);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT && mknod(path, S_IFBLK | 0600, makedev(7, (unsigned)number)) == 0)
        fd = open(path, O_RDWR | O_CLOEXEC);
    return fd;
}

static int configure(int fd, int file, bool direct)
{
    struct loop_config config = {
        .fd = (uint32_t)file,
        .block_size = 512,
        .info = {.lo_flags = LO_FLAGS_AUTOCLEAR | (direct ? LO_FLAGS_DIRECT_IO : 0u)}};
    return ioctl(fd, LOOP_CONFIGURE, &config) == 0 ? 0 : -errno;
}

int loop_attach(const char *file, bool direct, char path[32], struct error *err)
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0) {
        (void)error_set(err, -errno, "/dev/loop-control: %s", strerror(errno));
        return SOAK_SKIPPED;
    }
    int backing = open(file, O_RDWR | O_CLOEXEC);
    int rc = backing < 0 ? error_set(err, -errno, "%s: %s", file, strerror(errno)) : -EBUSY, fd = -1;
    for (int i = 0; backing >= 0 && rc == -EBUSY && i < LOOP_TRIES; i++) { /* somebody else may be quicker */
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        fd = number >= 0 ? open_loop(number, path) : -1;
        rc = fd >= 0 ? configure(fd, backing, direct) : -errno;
        if (rc < 0 && fd >= 0)
            close(fd);
        if (rc == -EBUSY)
            pause_ns(NS_PER_MS);
    }
    close(control);
    if (backing < 0)
        return rc;
    close(backing);
    if (rc == 0)
        return fd;
    (void)error_set(err, rc, "no loop device can be had here: %s", strerror(-rc));
    return SOAK_SKIPPED; /* checked by the caller: a descriptor is never 1 */
}

/* ------------------------------------------------------------------------------------- programs */

int run_program(const char *const *arguments, struct error *err)
{
    int ends[2], status = 0;
    char words[400] = "", more[4096];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return error_set(err, -errno, "pipe: %s", strerror(errno));
    pid_t pid = child_fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        union {
            const char *const *from;
            char *const *to;
        } vector = {.from = arguments};
        if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(ends[1], 2) < 0)
            _exit(126);
        execvp(arguments[0], vector.to);
        _exit(127);
    }
    close(ends[1]);
    ssize_t got = pid > 0 ? read(ends[0], words, sizeof words - 1) : 0;
    words[got > 0 ? got : 0] = '\0';
    while (got > 0)
        got = read(ends[0], more, sizeof more);
    close(ends[0]);
    if (pid < 0)
        return error_set(err, -errno, "fork: %s", strerror(errno));
    int rc = child_wait(pid, &status, err);
    if (rc < 0)
        return error_wrap(err, "%s", arguments[0]);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
        (void)error_set(err, -ENOENT, "%s is not installed", arguments[0]);
        return SOAK_SKIPPED;
    }
    return status == 0 ? 0
                       : error_set(err, -EIO, "%s failed (%#x): %s", arguments[0], (unsigned)status, words);
}

/* ------------------------------------------------------------------------------------- file systems */

int file_system_make(const char *file, bool direct, const char *type, struct error *err)
{
    char path[32];
    int fd = loop_attach(file, direct, path, err);
    if (fd < 0 || fd == SOAK_SKIPPED)
        return fd;
    const char *const ext4[] = {"mkfs.ext4", "-q",   "-F",
                                "-b",        "4096", "-J",
                                "size=4",    "-E",   "nodiscard,lazy_itable_init=0,lazy_journal_init=0",
                                path,        NULL};
    const char *const xfs[] = {"mkfs.xfs", "-q", "-f", "-K", path, NULL};
    int rc = run_program(strcmp(type, "xfs") == 0 ? xfs : ext4, err);
    if (rc == 0 && fsync(fd) != 0)
        rc = error_set(err, -errno, "%s: %s", path, strerror(errno));
    close(fd);
    return rc;
}

int file_system_mount(const char *file, bool direct, const char *type, const char *folder, struct error *err)
{
    char path[32];
    int fd = loop_attach(file, direct, path, err);
    if (fd < 0 || fd == SOAK_SKIPPED)
        return fd;
    int rc = mount(path, folder, type, MS_NOATIME, NULL) == 0 ? 0 : -errno;
    close(fd);
    if (rc == -ENODEV) {
        (void)error_set(err, rc, "this kernel has no %s", type);
        return SOAK_SKIPPED;
    }
    return rc == 0 ? 0 : error_set(err, rc, "mounting %s as %s: %s", path, type, strerror(-rc));
}

int file_system_unmount(const char *folder, struct error *err)
{
    int64_t limit = now_ns() + PATIENCE_NS;
    for (;;) {
        if (umount2(folder, 0) == 0)
            return 0;
        if (errno != EBUSY || now_ns() > limit || run_interrupted(NULL) != 0)
            return error_set(err, -errno, "unmounting %s: %s", folder, strerror(errno));
        pause_ns(NS_PER_MS); /* a killed broker's descriptors are closed behind its end */
    }
}
