/* walrusd: the broker.
 *
 * Happy path
 *   1. Options, folders, and a look whether somebody serves on the socket already.
 *   2. The I/O back end opens the store, the log recovers it (or makes it).
 *   3. The socket listens, the counters file lies beside it: "walrusd: ready on PATH" on stdout, READY=1 to
 *      the service manager.
 *   4. server_turn until SIGTERM, SIGINT or SIGHUP arrives by signalfd.
 *   5. Everything published until then is committed and answered, the log writes a clean checkpoint, the rest
 *      is answered -ESHUTDOWN, socket and counters file are removed, exit 0.
 *
 * Failure modes: a start that fails says one line and exits 1 (3 if trying again later may help, 2 for a
 * wrong option). A flush that fails ends the process at once with EXIT_FLUSH_FAILED and no answer to anybody
 * (G10); socket and counters file stay, the latter says so.
 *
 * Invariant: what was acquired is released in reverse order, by main's ladder only. */
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../../shared/message.h"
#include "../session/server.h"
#include "paths.h"
#include "say.h"

#define EXIT_USAGE        2
#define EXIT_TRY_AGAIN    3
#define EXIT_FLUSH_FAILED 74
#define NAMED_PRODUCERS   65536u
#define STOP_PATIENCE_NS  INT64_C(60000000000)

struct broker {
    struct options options;
    struct paths paths;
    struct io *io;
    struct watermarks watermarks;
    struct log *log;
    struct server *server;
    struct listener listener;
    struct stat_page *stat; /* NULL: none */
    struct watch signals;
    int epoll_fd;
    bool stop;
};

static int exit_code(int error)
{
    return error == -ENOSPC || error == -EAGAIN || error == -ETIMEDOUT ? EXIT_TRY_AGAIN : EXIT_FAILURE;
}

static int complain(const struct error *err)
{
    fprintf(stderr, "walrusd: %s\n", err->text);
    return exit_code(err->code);
}

/* ------------------------------------------------------------------------------------- process */

static void signal_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    struct broker *broker = (struct broker *)(void *)((char *)watch - offsetof(struct broker, signals));
    struct signalfd_siginfo info;
    if (read(watch->fd, &info, sizeof info) == (ssize_t)sizeof info)
        broker->stop = true;
}

/* Before any thread: they inherit the mask. */
static int prepare_process(struct broker *broker, struct error *err)
{
    umask(077);
    prctl(PR_SET_DUMPABLE, 0); /* what clients write is nobody else's to read */
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    sigaction(SIGPIPE, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
    /* RLIMIT_FSIZE is then -EFBIG, which rolls back, and not our death. */
    sigaction(SIGXFSZ, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    broker->signals =
        (struct watch){.ready = signal_ready, .fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)};
    if (broker->signals.fd < 0)
        return error_set(err, -errno, "cannot take signals: %s", strerror(errno));
    broker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (broker->epoll_fd < 0)
        return error_set(err, -errno, "cannot make an epoll descriptor: %s", strerror(errno));
    return 0;
}

/* ------------------------------------------------------------------------------------- store */

static int start_store(struct broker *broker, struct error *err)
{
    const char *folder = broker->paths.data_folder;
    struct io_real_options io_options = {.folder = folder,
                                         .backend = broker->options.backend,
                                         .watch_fd = broker->epoll_fd,
                                         .allow_direct = true};
    char fallback[128] = "";
    int rc = io_real_create(&io_options, &broker->io, fallback, err);
    if (rc != 0)
        return rc;
    if (fallback[0] != '\0')
        sayf(folder, SAY_WARNING, "io_uring is not to be had here (%s): using the slower back end pwrite",
             fallback);
    char name[32];
    bool known;
    file_system_of(folder, name, &known);
    if (!known)
        sayf(folder, SAY_WARNING,
             "the file system is %s: what is promised after power loss is known to hold on ext4 and xfs only",
             name);
    uint32_t topics = broker->options.max_topics != 0 ? broker->options.max_topics : WATERMARK_SLOTS;
    uint32_t producers = broker->options.max_producers != 0 ? broker->options.max_producers : NAMED_PRODUCERS;
    rc = watermarks_create(topics, &broker->watermarks, err);
    if (rc != 0)
        goto close_io;
    struct log_options log_options = {
        .io = broker->io,
        .watermarks = broker->watermarks.slots,
        .watermark_slots = broker->watermarks.count,
        .segment_bytes = broker->options.segment_bytes,
        .memory_bytes = broker->options.memory_bytes,
        .commit_align = broker->options.commit_align,
        .level = broker->options.level,
        .interval_ns = broker->options.interval_ns,
        .max_topics = topics,
        .max_topics_of_uid = topics - topics / 4,
        .max_named = producers,
        .max_named_of_uid = producers - producers / 4,
        .max_batch_bytes = broker->options.max_batch_bytes,
        .say = say_line,
        .context = broker->paths.data_folder,
    };
    rc = log_start(&log_options, &broker->log, err);
    if (rc != 0)
        goto drop_watermarks;
    return 0;

drop_watermarks:
    watermarks_destroy(&broker->watermarks);
close_io:
    broker->io->functions->destroy(broker->io);
    return rc;
}

/* After the log has stopped. */
static void close_store(struct broker *broker)
{
    watermarks_destroy(&broker->watermarks);
    broker->io->functions->destroy(broker->io);
}

/* ------------------------------------------------------------------------------------------------ counters
 * file */

static const char *backend_name(int backend)
{
    switch (backend) {
    case IO_BACKEND_URING:
        return "uring";
    case IO_BACKEND_PWRITE:
        return "pwrite";
    case IO_BACKEND_MMAP:
        return "mmap";
    default:
        return "unknown";
    }
}

static void read_boot_id(char *out, size_t size)
{
    out[0] = '\0';
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, out, size - 1);
    close(fd);
    out[n > 0 ? n : 0] = '\0';
    out[strcspn(out, "\n")] = '\0';
}

/* A broker without counters serves all the same. */
static void start_stat(struct broker *broker)
{
    struct error err = {0};
    uint32_t mode = 0600 | (broker->options.socket_mode & 0444);
    if (stat_file_create(broker->paths.stat, mode, &broker->stat, &err) != 0) {
        sayf(broker->paths.data_folder, SAY_WARNING, "%s (there will be no counters for walrus stat)",
             err.text);
        broker->stat = NULL;
        return;
    }
    struct log_stats stats;
    log_stats(broker->log, &stats);
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    struct stat_identity identity = {
        .broker_pid = (uint32_t)getpid(),
        .started_wall_ns = (int64_t)wall.tv_sec * 1000000000 + wall.tv_nsec,
        .started_ns = io_now(broker->io),
        .epoch = stats.epoch,
        .io_backend = (uint32_t)broker->io->backend,
        .default_level = broker->options.level,
        .layout_version = LAYOUT_VERSION,
    };
    snprintf(identity.broker_version, sizeof identity.broker_version, "%s", WALRUS_VERSION);
    snprintf(identity.io_backend_name, sizeof identity.io_backend_name, "%s",
             backend_name(broker->io->backend));
    snprintf(identity.store_id, sizeof identity.store_id, "%s", log_store_id(broker->log));
    read_boot_id(identity.boot_id, sizeof identity.boot_id);
    snprintf(identity.store_path, sizeof identity.store_path, "%.*s", (int)sizeof identity.store_path - 1,
             broker->paths.data_folder);
    snprintf(identity.socket_path, sizeof identity.socket_path, "%s", broker->paths.socket);
    stat_page_begin(broker->stat, &identity);
}

static void stop_stat(struct broker *broker)
{
    if (broker->stat == NULL)
        return;
    stat_file_close(broker->stat);
    unlink(broker->paths.stat);
}

/* ------------------------------------------------------------------------------------- serving */

/* The log cannot say any more what is on disk: nobody gets an answer, the next start decides (G10). */
__attribute__((noreturn)) static void fail_stop(struct broker *broker)
{
    const struct error *why = log_failed(broker->log);
    sayf(broker->paths.data_folder, SAY_ERROR,
         "ends at once, unanswered batches are decided at the next start: %s",
         why != NULL ? why->text : "the log has failed");
    if (broker->stat != NULL)
        stat_page_loop(broker->stat, STAT_LOOP_FAILED, io_now(broker->io), 0);
    _exit(EXIT_FLUSH_FAILED);
}

static int start_server(struct broker *broker, struct error *err)
{
    struct server_options server_options = {
        .io = broker->io,
        .log = broker->log,
        .epoll_fd = broker->epoll_fd,
        .listen_fd = broker->listener.fd,
        .default_level = broker->options.level,
        .spin_ns = broker->options.spin_ns,
        .idle_stream_ns = broker->options.idle_stream_ns,
        .max_connections = broker->options.max_connections,
        .max_queue = broker->options.max_in_flight,
        .max_shared = broker->options.max_shared,
        .max_batch_bytes = broker->options.max_batch_bytes,
        .watermarks = &broker->watermarks,
        .stat = broker->stat,
        .say = say_line,
        .context = broker->paths.data_folder,
    };
    int rc = server_create(&server_options, &broker->server, err);
    if (rc != 0)
        return rc;
    rc = server_watch(broker->server, &broker->signals, EPOLLIN);
    if (rc != 0)
        error_set(err, rc, "cannot watch for signals: %s", strerror(-rc));
    return rc;
}

static void serve(struct broker *broker)
{
    printf("walrusd: ready on %s\n", broker->paths.socket);
    fflush(stdout);
    notify_manager("READY=1");
    while (!broker->stop)
        if (server_turn(broker->server) != 0)
            fail_stop(broker);
    notify_manager("STOPPING=1");
    sayf(broker->paths.data_folder, SAY_NOTICE, "stopping: committing what was published");
}

static int stop(struct broker *broker, struct error *err)
{
    int rc = server_stop(broker->server, STOP_PATIENCE_NS);
    if (rc == -EIO)
        fail_stop(broker);
    if (rc != 0) {
        error_set(err, rc, "%s: the log did not finish within %lld s; the next start decides",
                  broker->paths.data_folder, (long long)(STOP_PATIENCE_NS / 1000000000));
        socket_remove(broker->paths.socket, &broker->listener);
        complain(err);
        _exit(exit_code(rc)); /* memory of sessions is still in use by the log */
    }
    if (log_failed(broker->log) != NULL)
        fail_stop(broker);
    rc = log_stop(broker->log, err);
    server_destroy(broker->server);
    return rc;
}

/* ------------------------------------------------------------------------------------- main */

static int run(struct broker *broker)
{
    struct error err = {0};
    int code;
    if (paths_resolve(&broker->options, &broker->paths, &err) != 0 ||
        socket_probe(broker->paths.socket, &err) != 0 || prepare_process(broker, &err) != 0 ||
        start_store(broker, &err) != 0)
        return complain(&err);
    if (socket_listen(broker->paths.socket, broker->options.socket_mode, &broker->listener, &err) != 0) {
        code = complain(&err);
        goto stop_log;
    }
    start_stat(broker);
    if (start_server(broker, &err) != 0) {
        code = complain(&err);
        goto close_socket;
    }
    serve(broker);
    code = stop(broker, &err) == 0 ? EXIT_SUCCESS : complain(&err);
    stop_stat(broker);
    socket_remove(broker->paths.socket, &broker->listener);
    close_store(broker);
    return code;

close_socket:
    stop_stat(broker);
    socket_remove(broker->paths.socket, &broker->listener);
    close(broker->listener.fd);
stop_log:
    if (log_stop(broker->log, &err) != 0)
        complain(&err);
    close_store(broker);
    return code;
}

int main(int argc, char **argv)
{
    struct error err = {0};
    struct broker *broker = calloc(1, sizeof *broker);
    if (broker == NULL)
        return EXIT_FAILURE;
    int rc = options_parse(argc, argv, &broker->options, &err);
    int code = EXIT_SUCCESS;
    if (rc != 0) {
        fprintf(stderr, "walrusd: %s\n", err.text);
        code = EXIT_USAGE;
    } else if (!broker->options.finished) {
        code = run(broker);
    }
    free(broker);
    return code;
}
