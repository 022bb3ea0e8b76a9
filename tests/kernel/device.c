/* device.c: the recorded device: a FUSE file system of one file, in a process of its own.
 *
 *   1. device_make forks the server. It mounts, answers, and says so in the switches.
 *   2. Requests are answered one after the other, so the log has an order: a write is in it before it is
 *      answered, a flush covers every write that stands before it.
 *   3. While `hold` says so, writes of groups of the log are queued, unanswered; everything else goes on, the
 *      file system's own writes among it. A thread does them, in order, once nothing is to be held any more.
 *
 * Invariant: a flush in the log is one that was answered with 0, or STEP_FAILED_FLUSH. */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../broker/log/format.h"
#include "device.h"

int namespace_make(struct error *err)
{
    if (unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0)
        return 0;
    (void)error_set(err, -errno, "a mount namespace is refused here (%s): it needs root", strerror(errno));
    return SOAK_SKIPPED;
}

void device_rewind(struct device *device, uint64_t position)
{
    struct device_switches *switches = device->switches;
    if (position >= switches->position)
        return;
    switches->bytes = device->steps[position].data;
    __atomic_store_n(&switches->position, position, __ATOMIC_RELEASE);
    uint64_t keep = align_up(switches->bytes, 4096);
    madvise(device->bytes + keep, DEVICE_BYTES - keep, MADV_REMOVE);
}

#ifdef HAVE_FUSE3
#define FUSE_USE_VERSION 35
#include <fuse_lowlevel.h>

#define NODE_FILE ((fuse_ino_t)2)
#define NAME      "disk"
#define BLOCK     4096u

struct held {
    struct held *next;
    fuse_req_t request;
    uint64_t offset;
    size_t length;
    uint8_t data[];
};

struct server {
    struct device *device;
    struct device_switches *switches;
    pthread_mutex_t mutex; /* of the log and of what is held */
    struct held *first, **last;
};

/* ------------------------------------------------------------------------------------- the log */

static void add_step(struct server *server, enum step_kind kind, const void *data, size_t length,
                     uint64_t offset)
{
    struct device_switches *switches = server->switches;
    if (__atomic_load_n(&switches->recording, __ATOMIC_ACQUIRE) == 0)
        return;
    if (switches->position >= DEVICE_STEPS || length > DEVICE_BYTES - switches->bytes) {
        switches->overflow = 1;
        return;
    }
    memcpy(server->device->bytes + switches->bytes, data, length);
    server->device->steps[switches->position] = (struct step){
        .offset = offset, .data = switches->bytes, .length = (uint32_t)length, .kind = (uint16_t)kind};
    switches->bytes += length;
    __atomic_store_n(&switches->position, switches->position + 1, __ATOMIC_RELEASE);
}

/* How many are left of a countdown is taken down by one; false: none was left. */
static bool take(uint32_t *countdown)
{
    uint32_t left = __atomic_load_n(countdown, __ATOMIC_ACQUIRE);
    return left > 0 &&
           __atomic_compare_exchange_n(countdown, &left, left - 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

static bool begins_group(const void *data, size_t length)
{
    uint64_t magic = 0;
    memcpy(&magic, data, min_u64(length, sizeof magic));
    return magic == GROUP_MAGIC;
}

static bool holds_zeroes(const struct server *server, uint64_t block)
{
    static const uint8_t zeroes[BLOCK];
    return memcmp(server->device->content + block, zeroes, BLOCK) == 0;
}

/* How much of a write there is room for. */
static size_t room_for(const struct server *server, size_t length, uint64_t offset)
{
    if (__atomic_load_n(&server->switches->full, __ATOMIC_ACQUIRE) == 0)
        return length;
    for (uint64_t block = offset / BLOCK * BLOCK; block < offset + length; block += BLOCK)
        if (holds_zeroes(server, block))
            return block > offset ? block - offset : 0;
    return length;
}

static void do_write(struct server *server, fuse_req_t request, const void *data, size_t length,
                     uint64_t offset)
{
    struct device_switches *switches = server->switches;
    bool fails = take(&switches->fail_writes) || (begins_group(data, length) && take(&switches->fail_groups));
    size_t done = fails ? length / 1024 * 512 : room_for(server, length, offset);
    memcpy(server->device->content + offset, data, done);
    add_step(server, STEP_WRITE, data, done, offset);
    __atomic_fetch_add(&switches->writes, 1, __ATOMIC_RELAXED);
    if (fails)
        fuse_reply_err(request, EIO);
    else if (done < length)
        fuse_reply_err(request, ENOSPC);
    else
        fuse_reply_write(request, length);
}

/* ------------------------------------------------------------------------------------- requests */

static void fill_stat(const struct server *server, fuse_ino_t node, struct stat *st)
{
    *st = (struct stat){.st_ino = node, .st_nlink = 1, .st_mode = S_IFDIR | 0700};
    if (node != NODE_FILE)
        return;
    st->st_mode = S_IFREG | 0600;
    st->st_size = (off_t)server->device->size;
    st->st_blocks = st->st_size / 512;
}

static void on_init(void *context, struct fuse_conn_info *connection)
{
    struct server *server = context;
    (void)connection;
    __atomic_store_n(&server->switches->serving, 1, __ATOMIC_RELEASE);
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.ino = NODE_FILE, .attr_timeout = 3600, .entry_timeout = 3600};
    if (parent != FUSE_ROOT_ID || strcmp(name, NAME) != 0) {
        fuse_reply_err(request, ENOENT);
        return;
    }
    fill_stat(fuse_req_userdata(request), NODE_FILE, &entry.attr);
    fuse_reply_entry(request, &entry);
}

static void on_getattr(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *info)
{
    struct stat st;
    (void)info;
    fill_stat(fuse_req_userdata(request), node, &st);
    fuse_reply_attr(request, &st, 3600);
}

static void on_open(fuse_req_t request, fuse_ino_t node, struct fuse_file_info *info)
{
    if (node != NODE_FILE) {
        fuse_reply_err(request, EISDIR);
        return;
    }
    info->direct_io = 1; /* the kernel keeps nothing of it: what it answered is here */
    fuse_reply_open(request, info);
}

static bool is_inside(const struct server *server, size_t length, off_t offset)
{
    return offset >= 0 && (uint64_t)offset <= server->device->size &&
           length <= server->device->size - (uint64_t)offset;
}

static void on_read(fuse_req_t request, fuse_ino_t node, size_t length, off_t offset,
                    struct fuse_file_info *info)
{
    struct server *server = fuse_req_userdata(request);
    (void)node, (void)info;
    if (is_inside(server, length, offset))
        fuse_reply_buf(request, (const char *)server->device->content + offset, length);
    else
        fuse_reply_err(request, EIO);
}

static void on_write(fuse_req_t request, fuse_ino_t node, const char *data, size_t length, off_t offset,
                     struct fuse_file_info *info)
{
    struct server *server = fuse_req_userdata(request);
    (void)node, (void)info;
    if (!is_inside(server, length, offset)) {
        fuse_reply_err(request, EIO);
        return;
    }
    pthread_mutex_lock(&server->mutex);
    bool hold =
        begins_group(data, length) && __atomic_load_n(&server->switches->hold, __ATOMIC_ACQUIRE) == HOLD_NEW;
    struct held *held = hold ? malloc(sizeof *held + length) : NULL;
    if (held != NULL) {
        *held = (struct held){.request = request, .offset = (uint64_t)offset, .length = length};
        memcpy(held->data, data, length);
        *server->last = held;
        server->last = &held->next;
        __atomic_fetch_add(&server->switches->held, 1, __ATOMIC_RELEASE);
    } else {
        do_write(server, request, data, length, (uint64_t)offset);
    }
    pthread_mutex_unlock(&server->mutex);
}

static void on_fsync(fuse_req_t request, fuse_ino_t node, int data_only, struct fuse_file_info *info)
{
    struct server *server = fuse_req_userdata(request);
    struct device_switches *switches = server->switches;
    (void)node, (void)data_only, (void)info;
    bool fails = take(&switches->fail_flushes);
    pause_ns(__atomic_load_n(&switches->flush_ns, __ATOMIC_ACQUIRE));
    pthread_mutex_lock(&server->mutex);
    if (fails)
        add_step(server, STEP_FAILED_FLUSH, "", 0, 0);
    else if (__atomic_load_n(&switches->lying, __ATOMIC_ACQUIRE) == 0)
        add_step(server, STEP_FLUSH, "", 0, 0);
    pthread_mutex_unlock(&server->mutex);
    fuse_reply_err(request, fails ? EIO : 0);
}

/* Does what was held once it may go on. */
static void *release_held(void *context)
{
    struct server *server = context;
    for (;;) {
        pause_ns(NS_PER_MS);
        if (__atomic_load_n(&server->switches->hold, __ATOMIC_ACQUIRE) != HOLD_NONE)
            continue;
        pthread_mutex_lock(&server->mutex);
        while (server->first != NULL) {
            struct held *held = server->first;
            server->first = held->next;
            do_write(server, held->request, held->data, held->length, held->offset);
            __atomic_fetch_sub(&server->switches->held, 1, __ATOMIC_RELEASE);
            free(held);
        }
        server->last = &server->first;
        pthread_mutex_unlock(&server->mutex);
    }
    return NULL;
}

__attribute__((noreturn)) static void be_server(struct device *device)
{
    static const struct fuse_lowlevel_ops operations = {.init = on_init,
                                                        .lookup = on_lookup,
                                                        .getattr = on_getattr,
                                                        .open = on_open,
                                                        .read = on_read,
                                                        .write = on_write,
                                                        .fsync = on_fsync};
    char *words[] = {(char[]){"walrus-kernel-test"}, NULL};
    struct fuse_args arguments = FUSE_ARGS_INIT(1, words);
    struct server server = {.device = device, .switches = device->switches};
    pthread_t thread;
    pthread_mutex_init(&server.mutex, NULL);
    server.last = &server.first;
    struct fuse_session *session = fuse_session_new(&arguments, &operations, sizeof operations, &server);
    if (session == NULL || fuse_session_mount(session, device->folder) != 0 ||
        pthread_create(&thread, NULL, release_held, &server) != 0)
        _exit(1);
    int rc = fuse_session_loop(session);
    _exit(rc != 0);
}

/* ------------------------------------------------------------------------------------- its life */

static bool child_has_ended(pid_t pid)
{
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
}

static int await_server(struct device *device, struct error *err)
{
    int64_t limit = now_ns() + 10 * NS_PER_S;
    while (__atomic_load_n(&device->switches->serving, __ATOMIC_ACQUIRE) == 0) {
        if (now_ns() > limit || run_interrupted(NULL) != 0 || child_has_ended(device->server)) {
            (void)error_set(err, -ENODEV, "a FUSE file system cannot be mounted here");
            return SOAK_SKIPPED;
        }
        pause_ns(NS_PER_MS);
    }
    return 0;
}

int device_make(struct work *work, uint64_t size, struct device *device, struct error *err)
{
    *device = (struct device){.size = size, .memory = -1};
    if (access("/dev/fuse", R_OK | W_OK) != 0) {
        (void)error_set(err, -errno, "/dev/fuse: %s", strerror(errno));
        return SOAK_SKIPPED;
    }
    snprintf(device->folder, sizeof device->folder, "%s/device", work->run.folder);
    snprintf(device->file, sizeof device->file, "%s/device/" NAME, work->run.folder);
    device->memory = memfd_create("walrus-kernel-device", MFD_CLOEXEC);
    if (device->memory < 0 || ftruncate(device->memory, (off_t)size) != 0 ||
        (mkdir(device->folder, 0700) != 0 && errno != EEXIST))
        return error_set(err, -errno, "cannot make the device: %s", strerror(errno));
    device->content = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, device->memory, 0);
    device->steps = shared_new(DEVICE_STEPS * sizeof *device->steps);
    device->bytes =
        mmap(NULL, DEVICE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    device->switches = shared_new(sizeof *device->switches);
    if (device->content == MAP_FAILED || device->steps == NULL || device->bytes == MAP_FAILED ||
        device->switches == NULL)
        return error_set(err, -ENOMEM, "out of memory for the device");
    device->server = child_fork();
    if (device->server == 0)
        be_server(device);
    return device->server > 0 ? await_server(device, err)
                              : error_set(err, -errno, "fork: %s", strerror(errno));
}

#else

int device_make(struct work *work, uint64_t size, struct device *device, struct error *err)
{
    (void)work, (void)size;
    *device = (struct device){.memory = -1};
    (void)error_set(err, -ENOSYS, "built without libfuse3 (Debian: libfuse3-dev)");
    return SOAK_SKIPPED;
}

#endif

void device_remove(struct device *device)
{
    if (device->folder[0] != '\0')
        umount2(device->folder, MNT_DETACH);
    if (device->server > 0)
        child_end(device->server);
    if (device->content != NULL && device->content != MAP_FAILED)
        munmap(device->content, device->size);
    if (device->bytes != NULL && device->bytes != MAP_FAILED)
        munmap(device->bytes, DEVICE_BYTES);
    shared_free(device->steps, DEVICE_STEPS * sizeof *device->steps);
    shared_free(device->switches, sizeof *device->switches);
    if (device->memory > 0)
        close(device->memory);
    *device = (struct device){.memory = -1};
}
