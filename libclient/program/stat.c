/* stat.c: `walrus stat`: the broker's counters, from the file it keeps mapped beside its socket. Nothing is
 * asked of the broker, so a stalled, stopped or dead one is shown as well, and said to be so.
 *
 * Whether it lives: /proc/PID/stat, if that process is a walrusd and the machine has not been booted since;
 * else (another PID namespace, another program name) whether somebody still listens on the socket. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../../shared/paths.h"
#include "../../shared/stat_page.h"
#include "command.h"

#define NAME     "stat"
#define ATTEMPTS 100 /* a copy is whole at nearly every look */

struct life {
    const char *word; /* "serving", "starting", "stopping", "stalled", "stopped", "failed", "dead" */
    int64_t stalled_ns;
};

/* -------------------------------------------------------------------------------- the page */

static int find_path(const struct common *common, char *out, size_t size, struct error *err)
{
    char fallback[PATHS_SOCKET_MAX + 1];
    const char *path = common->socket_path, *variable = getenv("WALRUS_SOCKET");
    if (path == NULL && variable != NULL && variable[0] != '\0')
        path = variable;
    if (path == NULL) {
        const char *instance = common->instance != NULL ? common->instance : getenv("WALRUS_INSTANCE");
        int rc = paths_default_socket(fallback, sizeof fallback, instance, err);
        if (rc != 0)
            return rc;
        path = fallback;
    }
    if ((size_t)snprintf(out, size, "%s%s", path, STAT_PAGE_SUFFIX) >= size)
        return error_set(err, -ENAMETOOLONG, "the socket path is too long: use one of at most %u bytes",
                         PATHS_SOCKET_MAX);
    return 0;
}

static int read_page(const char *path, struct stat_snapshot *snapshot, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return error_set(err, -ENOENT, "there is no counters file %s: is walrusd running on that socket?",
                         path);
    if (fd < 0)
        return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
    struct stat st;
    int rc = fstat(fd, &st) != 0 ? -errno : 0;
    if (rc == 0 && (!S_ISREG(st.st_mode) || st.st_size < (off_t)STAT_PAGE_BYTES))
        rc = -EPROTO;
    void *mapped = MAP_FAILED;
    if (rc == 0) {
        mapped = mmap(NULL, STAT_PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
        rc = mapped == MAP_FAILED ? -errno : -EAGAIN;
    }
    close(fd);
    for (int i = 0; i < ATTEMPTS && rc == -EAGAIN; i++)
        rc = stat_page_read(mapped, STAT_PAGE_BYTES, snapshot);
    if (mapped != MAP_FAILED)
        munmap(mapped, STAT_PAGE_BYTES);
    if (rc == -EPROTO)
        return error_set(
            err, rc, "%s is not a counters file that walrus %s knows: use the walrus of the broker's version",
            path, walrus_version());
    if (rc == -EAGAIN)
        return error_set(err, rc, "%s has no whole copy of the counters just now: try again", path);
    return rc == 0 ? 0 : error_set(err, rc, "cannot read %s: %s", path, strerror(-rc));
}

/* -------------------------------------------------------------------------------- does it live? */

/* The one-letter state of the process if it is a walrusd of this boot, else 0. */
static char process_state(const struct stat_identity *identity)
{
    char boot[64] = "", path[64], text[256] = "";
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file != NULL) {
        if (fgets(boot, sizeof boot, file) == NULL)
            boot[0] = '\0';
        fclose(file);
        boot[strcspn(boot, "\n")] = '\0';
    }
    if (identity->boot_id[0] != '\0' && boot[0] != '\0' && strcmp(boot, identity->boot_id) != 0)
        return 0;
    snprintf(path, sizeof path, "/proc/%u/stat", identity->broker_pid);
    file = fopen(path, "re");
    if (file == NULL)
        return 0;
    const char *got = fgets(text, sizeof text, file);
    fclose(file);
    const char *name = got != NULL ? strchr(text, '(') : NULL;
    const char *behind = got != NULL ? strrchr(text, ')') : NULL;
    if (name == NULL || behind == NULL || behind[1] != ' ' || strncmp(name, "(walrusd)", 9) != 0)
        return 0;
    return behind[2] == 'Z' || behind[2] == 'X' ? 0 : behind[2];
}

static bool somebody_listens(const char *stat_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(stat_path) - strlen(STAT_PAGE_SUFFIX);
    if (length == 0 || length >= sizeof address.sun_path)
        return false;
    memcpy(address.sun_path, stat_path, length);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    bool lives = connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 || errno == EAGAIN;
    close(fd);
    return lives;
}

static struct life look_for_life(const struct stat_snapshot *snapshot, const char *path)
{
    char state = process_state(&snapshot->identity);
    if (state == 0 && !somebody_listens(path))
        return (struct life){"dead", 0};
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t stalled = stat_page_stalled(snapshot, (int64_t)now.tv_sec * 1000000000 + now.tv_nsec);
    if (state == 'T' || state == 't')
        return (struct life){"stopped", stalled};
    switch ((enum stat_loop_state)snapshot->loop.state) {
    case STAT_LOOP_FAILED:
        return (struct life){"failed", stalled};
    case STAT_LOOP_STARTING:
        return (struct life){"starting", 0};
    case STAT_LOOP_STOPPING:
        return (struct life){"stopping", stalled};
    case STAT_LOOP_AWAKE:
    case STAT_LOOP_ASLEEP:
        break;
    }
    return (struct life){stalled > 1000000000 ? "stalled" : "serving", stalled};
}

/* -------------------------------------------------------------------------------- output */

static const char *level_word(uint32_t level)
{
    static const char *const words[] = {"unknown", "none", "interval", "sync"};
    return level < 4 ? words[level] : "unknown";
}

static void print_text(const struct stat_snapshot *snapshot, struct life life, const char *path)
{
    const struct stat_identity *identity = &snapshot->identity;
    char started[40] = "";
    time_t seconds = (time_t)(identity->started_wall_ns / 1000000000);
    struct tm tm;
    struct shown shown;
    if (gmtime_r(&seconds, &tm) != NULL)
        strftime(started, sizeof started, "%Y-%m-%dT%H:%M:%SZ", &tm);
    printf("broker                       walrusd %s, pid %u, %s", identity->broker_version,
           identity->broker_pid, life.word);
    if (life.stalled_ns > 0)
        printf(" (no turn of its loop for %.3f s)", (double)life.stalled_ns / 1e9);
    if (strcmp(life.word, "dead") == 0)
        printf(": these are its last counters; start walrusd again");
    else if (strcmp(life.word, "stopped") == 0)
        printf(" by a signal or a debugger: kill -CONT %u lets it go on", identity->broker_pid);
    printf("\nsince                        %s\n", started);
    printf("store                        %s (%s)\n", show(&shown, identity->store_path), identity->store_id);
    printf("counters                     %s\n", show(&shown, path));
    printf("io                           %s, durability %s\n", identity->io_backend_name,
           level_word(identity->default_level));
    for (unsigned i = 0; i < STAT_FIELD_COUNT; i++)
        printf("%-28s %" PRIu64 "\n", stat_field_name(i), stat_field_value(&snapshot->values, i));
}

/* "log_groups" goes as "groups" into the object "log". */
static bool set_fields(json_t *object, const struct stat_values *values)
{
    for (unsigned i = 0; i < STAT_FIELD_COUNT; i++) {
        const char *name = stat_field_name(i);
        const char *rest = strchr(name, '_');
        char part[32];
        if (rest == NULL)
            return false;
        snprintf(part, sizeof part, "%.*s", (int)(rest - name), name);
        json_t *inner = json_object_get(object, part);
        if (inner == NULL) {
            inner = json_object();
            if (json_object_set_new(object, part, inner) != 0)
                return false;
        }
        if (json_object_set_new(inner, rest + 1, json_integer((json_int_t)stat_field_value(values, i))) != 0)
            return false;
    }
    return true;
}

static bool set_text(json_t *object, const char *key, const char *text)
{
    return json_set_bytes(object, key, text, strlen(text)) == 0;
}

static bool set_number(json_t *object, const char *key, int64_t number)
{
    return json_object_set_new(object, key, json_integer(number)) == 0;
}

static bool print_stat_json(const struct stat_snapshot *snapshot, struct life life, const char *path)
{
    const struct stat_identity *identity = &snapshot->identity;
    json_t *object = json_object();
    bool good = object != NULL;
    good = good && set_text(object, "state", life.word) && set_number(object, "stalled_ns", life.stalled_ns);
    good = good && set_number(object, "pid", identity->broker_pid) &&
           set_text(object, "version", identity->broker_version);
    good = good && set_number(object, "started_ns", identity->started_wall_ns);
    good = good && set_number(object, "epoch", (int64_t)identity->epoch);
    good = good && set_text(object, "io", identity->io_backend_name);
    good = good && set_text(object, "durability", level_word(identity->default_level));
    good = good && set_text(object, "store", identity->store_path) &&
           set_text(object, "store_id", identity->store_id);
    good = good && set_text(object, "socket", identity->socket_path) && set_text(object, "counters", path);
    good = good && set_number(object, "updates", (int64_t)snapshot->updates) &&
           set_fields(object, &snapshot->values);
    if (good)
        return print_json(object);
    json_decref(object);
    return false;
}

int command_stat(int argc, char **argv)
{
    static const struct own_arguments own = {
        .words = "Show the broker's counters. Works on a stalled or dead broker too, and says so."};
    struct common common = {.takes_json = true};
    parse_arguments(argc, argv, &own, &common);
    char path[512];
    struct stat_snapshot snapshot = {0};
    struct error err = {0};
    int rc = find_path(&common, path, sizeof path, &err);
    if (rc == 0)
        rc = read_page(path, &snapshot, &err);
    if (rc != 0) {
        complain(NAME, "%s", err.text);
        return exit_code_of(rc);
    }
    struct life life = look_for_life(&snapshot, path);
    if (!common.json)
        print_text(&snapshot, life, path);
    else if (!print_stat_json(&snapshot, life, path) && !ferror(stdout)) {
        complain(NAME, "out of memory");
        return EXIT_FAILED;
    }
    return finish_output(NAME);
}
