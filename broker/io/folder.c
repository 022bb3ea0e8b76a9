/* folder.c: the store folder.
 *
 * Opening it
 *   1. The folder is opened once; every name is looked up relative to that descriptor, so that a rename of
 *      the folder, or a change of the working directory, moves nothing.
 *   2. Whether direct I/O works is found by doing it, on a file without a name (O_TMPFILE) that leaves
 *      nothing behind. Where that cannot be tried (read-only, no O_TMPFILE) each file is tried by itself when
 *      it is opened.
 *   3. Block sizes come from statx (STATX_DIOALIGN), else from the device in /sys/dev/block, else 512 and
 *      4096.
 *
 * Two locks, for two questions
 *   file_lock   "may I read what is in this file?" flock on the data file. It belongs to the open file
 *               description, and I/O in flight holds on to that: a killed process's lock lasts until its last
 *               write has landed.
 *   claim       "who lives here?" An fcntl record lock: gone the moment the process is, whatever its I/O
 *               does, and the kernel tells the holder's pid. Closing any descriptor of that file would drop
 *               it: a claimed file is kept open for the life of the folder and no op may open it. The lock is
 *               the process's: a second claim of one process on one store is not refused here (the flock of
 *               the data files does that).
 *
 * Failure modes: every call may fail with the errno of its system call; a file is either open and on the
 * list, or closed. A name that is no regular file (a link, a pipe put there by somebody) is refused, never
 * followed and never waited for. */
#include "folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#define DEFAULT_PHYSICAL_BLOCK 4096u
#define LEAST_LOGICAL_BLOCK    512u
#define MOST_BLOCK             65536u

struct claim {
    int fd;
    dev_t device;
    ino_t inode;
    struct claim *next;
};

/* ----------------------------------------------------------------------------------- facts about the disk */

/* One number from the device's queue folder in sysfs, 0 if there is none (tmpfs, network, overlay). */
static uint32_t device_fact(dev_t device, const char *fact)
{
    static const char *const places[] = {"queue", "../queue"}; /* a disk has it itself, a partition one up */
    for (size_t i = 0; i < array_count(places); i++) {
        char path[128];
        snprintf(path, sizeof path, "/sys/dev/block/%u:%u/%s/%s", major(device), minor(device), places[i],
                 fact);
        FILE *file = fopen(path, "re");
        if (file == NULL)
            continue;
        char text[32] = "";
        bool read = fgets(text, sizeof text, file) != NULL;
        fclose(file);
        unsigned long value = read ? strtoul(text, NULL, 10) : 0;
        if (value <= MOST_BLOCK && is_power_of_two(value))
            return (uint32_t)value;
    }
    return 0;
}

/* Least alignment of direct I/O on this file; 0: the file system says it has none. */
static uint32_t logical_block_of(int fd, dev_t device)
{
    uint32_t block = 0;
#ifdef STATX_DIOALIGN
    struct statx facts;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) == 0 && (facts.stx_mask & STATX_DIOALIGN) != 0) {
        if (facts.stx_dio_offset_align == 0)
            return 0;
        block = (uint32_t)max_u64(facts.stx_dio_offset_align, facts.stx_dio_mem_align);
    }
#else
    (void)fd;
#endif
    if (block == 0)
        block = device_fact(device, "logical_block_size");
    return is_power_of_two(block) && block > LEAST_LOGICAL_BLOCK && block <= MOST_BLOCK ? block
                                                                                        : LEAST_LOGICAL_BLOCK;
}

/* Does one direct write and one direct read. False only if direct I/O is what fails: a full disk says nothing
 * about it. */
static bool direct_write_works(int fd, uint32_t block)
{
    void *buffer = NULL;
    size_t length = (size_t)max_u64(block, DEFAULT_PHYSICAL_BLOCK);
    if (posix_memalign(&buffer, length, length) != 0)
        return true;
    memset(buffer, 0, length);
    bool works = true;
    if (pwrite(fd, buffer, length, 0) < 0)
        works = errno != EINVAL && errno != EOPNOTSUPP;
    else if (pread(fd, buffer, length, 0) != (ssize_t)length)
        works = false;
    free(buffer);
    return works;
}

static void find_blocks(struct folder *folder, dev_t device, bool allow_direct)
{
    uint32_t physical = device_fact(device, "physical_block_size");
    if (physical == 0)
        physical = DEFAULT_PHYSICAL_BLOCK;
    folder->direct = allow_direct;
    folder->logical_block = LEAST_LOGICAL_BLOCK;
    if (folder->direct) {
        int fd = openat(folder->fd, ".", O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
        if (fd >= 0) {
            folder->logical_block = logical_block_of(fd, device);
            folder->direct = folder->logical_block != 0 && direct_write_works(fd, folder->logical_block);
            close(fd);
        } else {
            folder->direct = errno != EINVAL; /* else it could not be tried; each file is */
        }
    }
    if (folder->direct) {
        folder->align = (uint32_t)max_u64(DEFAULT_PHYSICAL_BLOCK, max_u64(physical, folder->logical_block));
    } else {
        folder->logical_block = folder->page; /* the page cache writes whole pages */
        folder->align = folder->page;
    }
}

int folder_open(struct folder *folder, const char *path, bool allow_direct, struct error *err)
{
    *folder = (struct folder){.fd = -1, .page = (uint32_t)sysconf(_SC_PAGESIZE)};
    folder->path = strdup(path);
    if (folder->path == NULL)
        return error_set(err, -ENOMEM, "out of memory opening the store folder %s", path);
    folder->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct stat facts;
    if (folder->fd < 0 || fstat(folder->fd, &facts) != 0) {
        int code = -errno;
        folder_close(folder);
        return error_set(err, code,
                         "cannot open the store folder %s: %s; it must exist and be yours to write", path,
                         strerror(-code));
    }
    find_blocks(folder, facts.st_dev, allow_direct);
    return 0;
}

/* --------------------------------------------------------------------------------------------- open files */

static bool is_claimed(const struct folder *folder, const struct stat *facts)
{
    for (const struct claim *claim = folder->claims; claim != NULL; claim = claim->next)
        if (claim->device == facts->st_dev && claim->inode == facts->st_ino)
            return true;
    return false;
}

static int open_file(const struct folder *folder, const char *name, int flags, bool *direct)
{
    flags |= O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK; /* opening a pipe that somebody put there must not wait */
    int fd = -1;
    if (*direct) {
        fd = openat(folder->fd, name, flags | O_DIRECT, 0600);
        if (fd >= 0 || errno != EINVAL)
            return fd >= 0 ? fd : -errno;
        *direct = false;
    }
    fd = openat(folder->fd, name, flags, 0600);
    return fd >= 0 ? fd : -errno;
}

static int64_t perform_open(struct folder *folder, struct io_op *op)
{
    bool create = op->kind == IO_CREATE, buffered = (op->flags & IO_FILE_BUFFERED) != 0;
    bool read_only = (op->flags & IO_FILE_READ_ONLY) != 0;
    check_bug(!create || !read_only);
    op->file = NULL;
    struct io_file *file = calloc(1, sizeof *file);
    if (file == NULL)
        return -ENOMEM;
    file->direct = folder->direct && !buffered;
    file->writable = !read_only;
    file->fd = open_file(folder, op->name, (read_only ? O_RDONLY : O_RDWR) | (create ? O_CREAT | O_EXCL : 0),
                         &file->direct);
    int result = file->fd < 0 ? file->fd : 0;
    if (result != 0)
        goto free_file;
    struct stat facts;
    if (fstat(file->fd, &facts) != 0) {
        result = -errno;
        goto close_file;
    }
    int status = fcntl(file->fd, F_GETFL);
    if (!S_ISREG(facts.st_mode) || status < 0 || fcntl(file->fd, F_SETFL, status & ~O_NONBLOCK) != 0) {
        result = -EINVAL;
        goto close_file;
    }
    check_bug(!is_claimed(folder, &facts)); /* opened only to be closed again, it would drop the claim */
    result = create ? file_lock(file) : 0;
    if (result != 0) {
        (void)unlinkat(folder->fd, op->name, 0);
        goto close_file;
    }
    file->align = buffered ? 1 : file->direct ? folder->logical_block : folder->page;
    file->next = folder->files;
    file->link = &folder->files;
    if (file->next != NULL)
        file->next->link = &file->next;
    folder->files = file;
    op->file = file;
    return 0;

close_file:
    close(file->fd);
free_file:
    free(file);
    return result;
}

static int64_t perform_close(struct io_op *op)
{
    struct io_file *file = op->file;
    if (file->mapping != NULL)
        munmap(file->mapping, file->mapped);
    int result = close(file->fd) == 0 || errno == EINTR ? 0 : -errno; /* Linux: closed in any case */
    *file->link = file->next;
    if (file->next != NULL)
        file->next->link = file->link;
    free(file);
    op->file = NULL;
    return result;
}

void folder_close(struct folder *folder)
{
    struct io_op close_op = {.kind = IO_CLOSE};
    while ((close_op.file = folder->files) != NULL)
        perform_close(&close_op);
    while (folder->claims != NULL) {
        struct claim *claim = folder->claims;
        folder->claims = claim->next;
        close(claim->fd);
        free(claim);
    }
    if (folder->fd >= 0)
        close(folder->fd);
    folder->fd = -1;
    free(folder->path);
    folder->path = NULL;
}

static int64_t perform_allocate(struct io_op *op)
{
    int fd = op->file->fd, failed;
    check_bug(op->length > 0 && op->length <= INT64_MAX);
    do
        failed = fallocate(fd, 0, 0, (off_t)op->length);
    while (failed != 0 && errno == EINTR);
    if (failed == 0 && file_size(op->file) != op->length)
        failed = ftruncate(fd, (off_t)op->length);
    return failed == 0 ? 0 : -errno;
}

int64_t folder_perform(struct folder *folder, struct io_op *op)
{
    int failed = 0;
    switch (op->kind) {
    case IO_CREATE:
    case IO_OPEN:
        return perform_open(folder, op);
    case IO_CLOSE:
        return perform_close(op);
    case IO_ALLOCATE:
        return perform_allocate(op);
    case IO_TRUNCATE:
        check_bug(op->length <= INT64_MAX);
        failed = ftruncate(op->file->fd, (off_t)op->length);
        break;
    case IO_RENAME:
        failed = renameat(folder->fd, op->name, folder->fd, op->new_name);
        break;
    case IO_UNLINK:
        failed = unlinkat(folder->fd, op->name, 0);
        break;
    case IO_SYNC_DIRECTORY:
        failed = fsync(folder->fd);
        break;
    default:
        bug(__FILE__, __LINE__, "an op of the store folder");
    }
    return failed == 0 ? 0 : -errno;
}

/* --------------------------------------------------------------------------------------------------- data */

/* Write and flush in one. Where the file system does not know the flag (or a filter refuses the call): one
 * after the other, which is the same promise. */
static int64_t write_durable(const struct io_op *op)
{
    struct iovec part = {.iov_base = op->buffer, .iov_len = op->length};
    ssize_t n;
    do
        n = pwritev2(op->file->fd, &part, 1, (off_t)op->offset, RWF_DSYNC);
    while (n < 0 && errno == EINTR);
    if (n >= 0)
        return n;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return -errno;
    do
        n = pwrite(op->file->fd, op->buffer, op->length, (off_t)op->offset);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    return fdatasync(op->file->fd) == 0 ? n : -errno;
}

int64_t file_perform(struct io_op *op)
{
    ssize_t n;
    switch (op->kind) {
    case IO_READ:
        do
            n = pread(op->file->fd, op->buffer, op->length, (off_t)op->offset);
        while (n < 0 && errno == EINTR);
        return n >= 0 ? n : -errno;
    case IO_WRITE:
        if (op->durable)
            return write_durable(op);
        do
            n = pwrite(op->file->fd, op->buffer, op->length, (off_t)op->offset);
        while (n < 0 && errno == EINTR);
        return n >= 0 ? n : -errno;
    case IO_FLUSH:
        return fdatasync(op->file->fd) == 0 ? 0 : -errno; /* never twice, not even after EINTR (G10) */
    default:
        bug(__FILE__, __LINE__, "an op on a file's data");
    }
}

uint64_t file_size(const struct io_file *file)
{
    struct stat facts;
    return fstat(file->fd, &facts) == 0 && facts.st_size > 0 ? (uint64_t)facts.st_size : 0;
}

/* ---------------------------------------------------------------------------------- the folder as a whole */

int folder_list(struct folder *folder, struct io_entry **entries, size_t *count)
{
    *entries = NULL;
    *count = 0;
    size_t room = 0;
    int result = 0, fd = openat(folder->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd >= 0 ? fdopendir(fd) : NULL;
    if (directory == NULL) {
        result = -errno;
        if (fd >= 0)
            close(fd);
        return result;
    }
    for (;;) {
        errno = 0;
        struct dirent *found = readdir(directory);
        if (found == NULL) {
            result = -errno;
            break;
        }
        if (strcmp(found->d_name, ".") == 0 || strcmp(found->d_name, "..") == 0)
            continue;
        if (*count == room) {
            room = room == 0 ? 64 : room * 2;
            struct io_entry *larger = reallocarray(*entries, room, sizeof *larger);
            if (larger == NULL) {
                result = -ENOMEM;
                break;
            }
            *entries = larger;
        }
        struct stat facts;
        if (fstatat(folder->fd, found->d_name, &facts, AT_SYMLINK_NOFOLLOW) != 0) {
            if (errno == ENOENT) /* gone meanwhile */
                continue;
            result = -errno;
            break;
        }
        struct io_entry *entry = &(*entries)[*count];
        *entry = (struct io_entry){.size = facts.st_size > 0 ? (uint64_t)facts.st_size : 0,
                                   .regular = S_ISREG(facts.st_mode)};
        snprintf(entry->name, sizeof entry->name, "%s", found->d_name);
        ++*count;
    }
    closedir(directory);
    if (result != 0) {
        free(*entries);
        *entries = NULL;
        *count = 0;
    }
    return result;
}

int file_lock(struct io_file *file)
{
    int failed;
    do
        failed = flock(file->fd, LOCK_EX | LOCK_NB);
    while (failed != 0 && errno == EINTR);
    return failed == 0 ? 0 : -errno;
}

/* Asks who holds the record lock. The holder may be gone by now: then 0. */
static int64_t holder_of(int fd)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_GETLK, &lock) != 0 || lock.l_type == F_UNLCK || lock.l_pid < 0)
        return 0;
    return lock.l_pid;
}

bool process_is_dying(int64_t pid)
{
    char path[64], line[128];
    bool dying = false;
    snprintf(path, sizeof path, "/proc/%lld/status", (long long)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return errno == ENOENT;
    while (!dying && fgets(line, sizeof line, file) != NULL) {
        bool pending = strncmp(line, "SigPnd:", 7) == 0 || strncmp(line, "ShdPnd:", 7) == 0;
        dying = strncmp(line, "State:\tZ", 8) == 0 || strncmp(line, "State:\tX", 8) == 0 ||
                (pending && (strtoull(line + 7, NULL, 16) & UINT64_C(1) << (SIGKILL - 1)) != 0);
    }
    fclose(file);
    return dying;
}

int folder_claim(struct folder *folder, const char *name, int64_t *holder_pid)
{
    *holder_pid = 0;
    struct claim *claim = calloc(1, sizeof *claim);
    if (claim == NULL)
        return -ENOMEM;
    int result = 0;
    claim->fd = openat(folder->fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (claim->fd < 0) {
        result = -errno;
        goto free_claim;
    }
    struct stat facts;
    if (fstat(claim->fd, &facts) != 0) {
        result = -errno;
        goto close_file;
    }
    if (!S_ISREG(facts.st_mode)) {
        result = -EINVAL;
        goto close_file;
    }
    check_bug(!is_claimed(folder, &facts));
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(claim->fd, F_SETLK, &lock) != 0) {
        result = errno == EAGAIN || errno == EACCES ? -EWOULDBLOCK : -errno;
        if (result == -EWOULDBLOCK)
            *holder_pid = holder_of(claim->fd);
        if (result == -EWOULDBLOCK && *holder_pid != 0 && process_is_dying(*holder_pid))
            result = -EINPROGRESS;
        goto close_file;
    }
    claim->device = facts.st_dev;
    claim->inode = facts.st_ino;
    claim->next = folder->claims;
    folder->claims = claim;
    return 0;

close_file:
    close(claim->fd);
free_claim:
    free(claim);
    return result;
}

uint64_t folder_space_free(const struct folder *folder)
{
    struct statvfs facts;
    if (fstatvfs(folder->fd, &facts) != 0)
        return 0;
    return (uint64_t)facts.f_bavail * facts.f_frsize;
}
