/* no_flush.c: preloaded into a broker that is to be found guilty; WALRUS_BROKEN says of what:
 *
 *   flushes   flushes are answered, and not done; with --io pwrite
 *   errors    writes and flushes of the log that fail are answered as if they had not; with --io pwrite
 *   again     a flush of the log that fails is tried again; with --io pwrite
 *   locks     the locks on the segment files are answered, and not had; nor are the files cut, which only
 *             gives space back: the kernel would wait there
 */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

static bool is_broken(const char *what)
{
    const char *broken = getenv("WALRUS_BROKEN");
    return broken != NULL && strcmp(broken, what) == 0;
}

/* The thread that does the log's writes and flushes; files are prepared by another one. */
static bool is_of_the_log(void)
{
    char name[17] = "";
    return prctl(PR_GET_NAME, name) == 0 && strcmp(name, "walrus-data") == 0;
}

static long believe(long result, long good)
{
    return result < 0 && errno != EINTR && is_broken("errors") && is_of_the_log() ? good : result;
}

static int flush(long call, int fd)
{
    if (is_broken("flushes"))
        return 0;
    long result = syscall(call, fd);
    if (result < 0 && is_broken("again") && is_of_the_log())
        result = syscall(call, fd);
    return (int)believe(result, 0);
}

/* NOLINTBEGIN(readability-inconsistent-declaration-parameter-name) */
PUBLIC int fdatasync(int fd)
{
    return flush(SYS_fdatasync, fd);
}

PUBLIC int fsync(int fd)
{
    return flush(SYS_fsync, fd);
}

PUBLIC ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    return believe(syscall(SYS_pwrite64, fd, data, length, offset), (long)length);
}

/* With one part only, as walrusd has it. */
PUBLIC ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    return believe(syscall(SYS_pwritev2, fd, parts, count, offset, 0, flags), (long)parts[0].iov_len);
}

PUBLIC int flock(int fd, int operation)
{
    return is_broken("locks") ? 0 : (int)syscall(SYS_flock, fd, operation);
}
PUBLIC int ftruncate64(int fd, off64_t length)
{
    return is_broken("locks") ? 0 : (int)syscall(SYS_ftruncate, fd, length);
}
/* NOLINTEND(readability-inconsistent-declaration-parameter-name) */
