/* demo.c: options, folders, the order of things, the table, and that nothing is left behind. See demo.h for
 * the whole. */
#include <argp.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <linux/magic.h>
#include <unistd.h>

#include "demo.h"

#define LEAST_LINES 100000u
#define LEAST_SPACE ((uint64_t)512 << 20)

volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    interrupted = number;
}

void handle_signals(void (*handler)(int))
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = handler};
    for (size_t i = 0; i < array_count(numbers); i++)
        sigaction(numbers[i], &action, NULL);
    action.sa_handler = handler == SIG_DFL ? SIG_DFL : SIG_IGN;
    sigaction(SIGPIPE, &action, NULL);
}

/* -------------------------------------------------------------------------------- folders */

static bool on_real_disk(const char *folder)
{
    struct statfs fs;
    return access(folder, W_OK | X_OK) == 0 && statfs(folder, &fs) == 0 && fs.f_type != TMPFS_MAGIC &&
           fs.f_type != RAMFS_MAGIC;
}

/* The build folder, else TMPDIR, else /var/tmp: the first one on a real disk. */
static const char *choose_parent(char build[PATH_MAX])
{
    ssize_t length = readlink("/proc/self/exe", build, PATH_MAX - 1);
    build[length > 0 ? length : 0] = '\0';
    char *slash = strrchr(build, '/');
    if (slash != NULL && slash != build)
        *slash = '\0';
    const char *candidates[] = {build, getenv("TMPDIR"), "/var/tmp"};
    for (size_t i = 0; i < array_count(candidates); i++) {
        if (candidates[i] != NULL && candidates[i][0] == '/' && on_real_disk(candidates[i]))
            return candidates[i];
    }
    return "/tmp";
}

static int make_folders(struct demo *demo, struct error *err)
{
    char build[PATH_MAX];
    struct statvfs fs;
    const char *parent = demo->parent != NULL ? demo->parent : choose_parent(build);
    if (statvfs(parent, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < LEAST_SPACE)
        return error_set(err, -ENOSPC, "%s has less than 512 MiB free: give another --folder", parent);
    if ((size_t)snprintf(demo->folder, sizeof demo->folder, "%s/walrus-demo-XXXXXX", parent) >=
        sizeof demo->folder)
        return error_set(err, -ENAMETOOLONG, "%s: the path is too long", parent);
    if (mkdtemp(demo->folder) == NULL) {
        demo->folder[0] = '\0';
        return error_set(err, -errno, "cannot make a folder in %s: %s: give another --folder", parent,
                         strerror(errno));
    }
    struct broker *broker = &demo->broker;
    broker->program = demo->program;
    snprintf(broker->store, sizeof broker->store, "%s/store", demo->folder);
    snprintf(broker->log, sizeof broker->log, "%s/walrusd.log", demo->folder);
    if (strlen(demo->folder) + sizeof "/sock" <= 100) { /* what a socket path may have, with room */
        snprintf(broker->socket, sizeof broker->socket, "%s/sock", demo->folder);
        return 0;
    }
    snprintf(demo->socket_folder, sizeof demo->socket_folder, "/tmp/walrus-demo-XXXXXX");
    if (mkdtemp(demo->socket_folder) == NULL) {
        demo->socket_folder[0] = '\0';
        return error_set(err, -errno, "cannot make a folder in /tmp: %s", strerror(errno));
    }
    snprintf(broker->socket, sizeof broker->socket, "%s/sock", demo->socket_folder);
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static void clean_up(struct demo *demo)
{
    for (unsigned i = 0; i < demo->producers; i++) {
        if (demo->producer_pids[i] != 0) {
            kill(demo->producer_pids[i], SIGKILL);
            waitpid(demo->producer_pids[i], NULL, 0);
        }
    }
    broker_kill(&demo->broker);
    const char *folders[] = {demo->folder, demo->socket_folder};
    for (size_t i = 0; i < array_count(folders); i++) {
        if (folders[i][0] != '\0' && nftw(folders[i], remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0)
            fprintf(stderr, "walrus-demo: could not remove %s: %s\n", folders[i], strerror(errno));
    }
    input_free(&demo->input);
}

/* -------------------------------------------------------------------------------- the order of things */

static void share_out(struct demo *demo)
{
    const size_t topics = (size_t)demo->producers * TOPICS_PER_PRODUCER;
    check_bug(topics > 0 && topics <= MAX_TOPICS);
    demo->topic_count = (unsigned)topics;
    size_t at = 0;
    for (unsigned i = 0; i < topics; i++) {
        struct topic_range *range = &demo->topics[i];
        snprintf(range->name, sizeof range->name, "demo/text-%u", i + 1);
        range->first = at;
        range->count = demo->input.count * (i + 1) / topics - at;
        at += range->count;
    }
}

static int prepare(struct demo *demo, struct error *err)
{
    size_t least = demo->max_lines < LEAST_LINES ? demo->max_lines : LEAST_LINES;
    int rc = input_read(&demo->input, least, demo->max_lines, err);
    if (rc != 0)
        return rc;
    share_out(demo);
    void *shared =
        mmap(NULL, sizeof *demo->progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return error_set(err, -ENOMEM, "out of memory");
    demo->progress = shared;
    return make_folders(demo, err);
}

static int run(struct demo *demo, struct verified *result, struct error *err)
{
    int rc = prepare(demo, err);
    if (rc != 0)
        return rc;
    printf("Text: %zu lines, %.1f MB: %s\n", demo->input.count, (double)demo->input.bytes / 1e6,
           demo->input.sources);
    printf("Work: %u producers, %u topics, %u batches in flight per topic, every answer durable; the broker "
           "is killed %u times\n",
           demo->producers, demo->topic_count, demo->depth, demo->kills);
    printf("Store: %s\n", demo->broker.store);
    fflush(stdout);
    rc = broker_start(&demo->broker, &demo->first_start_ns, err);
    if (rc != 0)
        return error_wrap(err, "start on an empty store");
    rc = conduct(demo, err);
    if (rc != 0)
        return rc;
    rc = broker_stop(&demo->broker, err);
    if (rc != 0)
        return error_wrap(err, "clean stop");
    rc = broker_start(&demo->broker, &demo->recovery_ns[demo->kills], err);
    if (rc != 0)
        return error_wrap(err, "start after a clean stop");
    rc = verify(demo, result, err);
    if (rc != 0)
        return error_wrap(err, "WRONG");
    rc = broker_stop(&demo->broker, err);
    return rc != 0 ? error_wrap(err, "last stop") : 0;
}

static uint64_t sum(const struct demo *demo, const _Atomic uint64_t *counters)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < demo->producers; i++)
        total += atomic_load(&counters[i]);
    return total;
}

static void print_table(const struct demo *demo, const struct verified *result)
{
    double served = (double)(demo->run_ns - demo->down_ns) / 1e9;
    uint64_t unknown = sum(demo, demo->progress->unknown);
    printf("\n");
    printf("  lines                     %12llu  (%.1f MB)\n", (unsigned long long)result->entries,
           (double)result->bytes / 1e6);
    printf("  batches answered          %12llu  (1 to 2000 lines each)\n",
           (unsigned long long)result->answered);
    printf("  batches in flight at a kill %10llu  %llu of them turned out committed, the others were sent "
           "again\n",
           (unsigned long long)unknown, (unsigned long long)result->found);
    printf("  commits/s                 %12.0f  over %.2f s of service\n",
           (double)(result->answered + result->found) / served, served);
    printf("  entries/s                 %12.0f\n", (double)result->entries / served);
    printf("  commit latency p50        %12.0f us  (from filling the batch to its answer, %u in flight per "
           "topic)\n",
           (double)result->p50_ns / 1e3, demo->depth);
    printf("  commit latency p99        %12.0f us\n", (double)result->p99_ns / 1e3);
    printf("  start on an empty store   %12.1f ms\n", (double)demo->first_start_ns / 1e6);
    for (unsigned i = 0; i < demo->killed; i++)
        printf("  recovery after kill %-2u    %12.1f ms  (%llu batches in flight)\n", i + 1,
               (double)demo->recovery_ns[i] / 1e6, (unsigned long long)demo->in_flight_at_kill[i]);
    printf("  start after a clean stop  %12.1f ms\n", (double)demo->recovery_ns[demo->kills] / 1e6);
    printf("\n");
    printf("  yes  every answered batch is there: whole, once, in order (%llu batches)\n",
           (unsigned long long)(result->answered + result->found));
    printf("  yes  no batch is there in part, nothing is there that was not sent\n");
    printf("  yes  what was read back equals the input, byte for byte (%llu lines in %u topics)\n",
           (unsigned long long)result->entries, demo->topic_count);
}

/* -------------------------------------------------------------------------------- arguments */

static uint64_t number(const char *text, uint64_t least, uint64_t most, const char *name,
                       struct argp_state *state)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || text[0] == '-' || value < least || value > most)
        argp_error(state, "--%s %s: a number from %llu to %llu", name, text, (unsigned long long)least,
                   (unsigned long long)most);
    return value;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct demo *demo = state->input;
    switch (key) {
    case 'f':
        demo->parent = arg;
        return 0;
    case 'l':
        demo->max_lines = number(arg, 1000, 2000000, "lines", state);
        return 0;
    case 'p':
        demo->producers = (unsigned)number(arg, 3, MAX_PRODUCERS, "producers", state);
        return 0;
    case 'k':
        demo->kills = (unsigned)number(arg, 0, MAX_KILLS, "kills", state);
        return 0;
    case 'd':
        demo->depth = (unsigned)number(arg, 1, MAX_DEPTH, "depth", state);
        return 0;
    case 's':
        demo->seed = number(arg, 0, UINT64_MAX, "seed", state);
        return 0;
    case 'b':
        if (!break_mode_known(arg))
            argp_error(state, "--break %s: one of %s", arg, break_modes());
        demo->break_mode = arg;
        return 0;
    case ARGP_KEY_ARG:
        if (demo->program != NULL)
            argp_error(state, "one walrusd only");
        demo->program = arg;
        return 0;
    case ARGP_KEY_END:
        if (demo->program == NULL)
            argp_error(state, "where is walrusd?");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"folder", 'f', "DIR", 0,
     "Work in a new folder in DIR (default: beside this program, or TMPDIR, on a real disk)", 0},
    {"lines", 'l', "N", 0, "At most N lines of text (default 1000000)", 0},
    {"producers", 'p', "N", 0, "Producer processes, 3 to 16 (default 3); each has 2 topics", 0},
    {"kills", 'k', "N", 0, "How often the broker is killed (default 5)", 0},
    {"depth", 'd', "N", 0, "Batches in flight per topic (default 8)", 0},
    {"seed", 's', "N", 0, "Seed of the batch sizes", 0},
    {"break", 'b', "MODE", 0, "Damage what was read back before it is checked; the demo must then fail", 0},
    {0},
};

int main(int argc, char **argv)
{
    static const struct argp argp = {options,
                                     parse,
                                     "WALRUSD",
                                     "Commit real text through the broker WALRUSD, kill it on the way, and "
                                     "prove that nothing was lost, doubled or torn.\v"
                                     "Exit code 0 only if every check held.",
                                     NULL,
                                     NULL,
                                     NULL};
    static struct demo demo = {
        .max_lines = 1000000, .producers = 3, .kills = 5, .depth = 8, .seed = 1, .broker = {.output = -1}};
    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &demo);
    handle_signals(on_signal);

    struct error err = {0};
    struct verified result = {0};
    int rc = run(&demo, &result, &err);
    if (rc == 0) {
        print_table(&demo, &result);
    } else {
        fflush(stdout);
        fprintf(stderr, "walrus-demo: %s\n", err.text);
        if (interrupted == 0)
            broker_print_log(&demo.broker);
    }
    clean_up(&demo);
    if (rc == 0 && (fflush(stdout) != 0 || ferror(stdout)))
        return 1;
    return rc == 0 ? 0 : 1;
}
