/* others_run.c: runs walrus-bench-others and reads its answer.
 *
 * Happy path: fork, exec, read JSON from its stdout until the end, wait for exit status 0. Exit status 77:
 * the engine is not to be had here.
 *
 * Failure modes: silence for LIMIT_NS, or an interrupt: SIGTERM, and SIGKILL if it does not end; it takes
 * its server along in either case (the kernel does: PR_SET_PDEATHSIG). Its stderr is ours. */
#include "others_run.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "phases.h"

#define LIMIT_NS    INT64_C(120000000000)
#define END_NS      INT64_C(10000000000)
#define LOOK_MS     200
#define ANSWER_MOST 65536u
#define NOT_THERE   77

const char *const other_names[OTHERS_MOST] = {"rocksdb", "sqlite", "redis"};

int others_parse(const char *text, uint32_t *which)
{
    *which = 0;
    if (strcmp(text, "all") == 0) {
        *which = (1u << OTHERS_MOST) - 1;
        return 0;
    }
    while (*text != 0) {
        size_t length = strcspn(text, ",");
        uint32_t i = 0;
        while (i < OTHERS_MOST &&
               (strlen(other_names[i]) != length || strncmp(other_names[i], text, length) != 0))
            i++;
        if (i == OTHERS_MOST)
            return -EINVAL;
        *which |= 1u << i;
        text += length + (text[length] == ',');
    }
    return 0;
}

int others_find(char *path, size_t size, struct error *err)
{
    static const char *const places[] = {"walrus-bench-others", "others/walrus-bench-others"};
    char self[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[length > 0 ? length : 0] = 0;
    char *slash = strrchr(self, '/');
    if (slash != NULL)
        slash[1] = 0;
    for (size_t i = 0; slash != NULL && i < array_count(places); i++) {
        int n = snprintf(path, size, "%s%s", self, places[i]);
        if (n > 0 && (size_t)n < size && access(path, X_OK) == 0)
            return 0;
    }
    return error_set(
        err, -ENOENT,
        "no walrus-bench-others beside this program; it is built when the development packages of "
        "RocksDB, SQLite or hiredis are there");
}

/* The command line in strings of its own. */
struct command {
    char text[12][256];
    const char *words[24];
    int count, texts;
};

static void word(struct command *command, const char *value)
{
    command->words[command->count++] = value;
    command->words[command->count] = NULL;
}

static void option(struct command *command, const char *name, double value)
{
    char *text = command->text[command->texts++];
    snprintf(text, sizeof command->text[0], "%s=%.9g", name, value);
    word(command, text);
}

static void make_command(struct command *command, const char *engine, const char *folder,
                         const struct load *load)
{
    *command = (struct command){0};
    word(command, "walrus-bench-others");
    word(command, "--engine");
    word(command, engine);
    word(command, "--dir");
    word(command, folder);
    option(command, "--producers", load->producers);
    option(command, "--topics", load->topics);
    option(command, "--batch", load->batch);
    option(command, "--size", (double)load->size);
    option(command, "--depth", load->depth);
    if (load->count != 0)
        option(command, "--count", (double)load->count);
    else
        option(command, "--seconds", load->seconds);
    if (load->count == 0 && load->most_bytes != 0 && load->most_bytes != MOST_BYTES_PREPARED)
        option(command, "--most-bytes", (double)load->most_bytes);
    if (load->level < 3)
        word(command, "--no-sync");
}

__attribute__((noreturn)) static void be_program(const char *program, const struct command *command, int out)
{
    union {
        const char *const *constant;
        char *const *plain;
    } argv = {.constant = command->words};
    child_begin();
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0 || dup2(out, STDOUT_FILENO) < 0)
        _exit(126);
    execv(program, argv.plain);
    _exit(127);
}

/* Its whole output. 0, -ETIMEDOUT, -EINTR. */
static int read_answer(int in, char *answer, size_t size, const volatile sig_atomic_t *interrupted)
{
    size_t length = 0;
    int64_t limit = now_ns() + LIMIT_NS;
    answer[0] = 0;
    for (;;) {
        struct pollfd p = {in, POLLIN, 0};
        if (interrupted != NULL && *interrupted != 0)
            return -EINTR;
        if (now_ns() > limit)
            return -ETIMEDOUT;
        if (poll(&p, 1, LOOK_MS) <= 0)
            continue;
        ssize_t n = read(in, answer + length, size - 1 - length);
        if (n <= 0)
            return 0;
        length += (size_t)n;
        answer[length] = 0;
    }
}

static int wait_end(pid_t pid)
{
    int64_t limit = now_ns() + END_NS;
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (now_ns() > limit)
            kill(pid, SIGKILL);
        pause_ns(1000000);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static double real_of(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

static int take_answer(const char *answer, struct other_numbers *result, const char *engine,
                       struct error *err)
{
    json_error_t where;
    json_t *root = json_loads(answer, 0, &where);
    if (root == NULL)
        return error_set(err, -EPROTO, "walrus-bench-others (%s) answered what is no JSON: %s", engine,
                         where.text);
    const json_t *latency = json_object_get(root, "latency_us"), *curve = json_object_get(root, "curve_us");
    const char *version = json_string_value(json_object_get(root, "version"));
    const char *how = json_string_value(json_object_get(root, "how"));
    result->there = true;
    snprintf(result->version, sizeof result->version, "%s", version != NULL ? version : "");
    snprintf(result->how, sizeof result->how, "%s", how != NULL ? how : "");
    result->commits_per_s = real_of(root, "commits_per_s");
    result->bytes_per_s = real_of(root, "bytes_per_s");
    result->latency = (struct quantiles){.p50 = real_of(latency, "p50"),
                                         .p90 = real_of(latency, "p90"),
                                         .p99 = real_of(latency, "p99"),
                                         .p999 = real_of(latency, "p999"),
                                         .max = real_of(latency, "max"),
                                         .samples = (uint64_t)real_of(latency, "samples")};
    for (uint32_t i = 0; i < CURVE_POINTS; i++)
        result->curve.us[i] = json_number_value(json_array_get(curve, i));
    json_decref(root);
    return 0;
}

int others_run(const char *program, const char *engine, const char *folder, const struct load *load,
               const volatile sig_atomic_t *interrupted, struct other_numbers *result, struct error *err)
{
    struct command command;
    int ends[2];
    memset(result, 0, sizeof *result);
    char *answer = malloc(ANSWER_MOST);
    if (answer == NULL || pipe2(ends, O_CLOEXEC) < 0) {
        free(answer);
        return error_set(err, -errno, "cannot make a pipe: %s", strerror(errno));
    }
    make_command(&command, engine, folder, load);
    pid_t pid = fork();
    if (pid == 0)
        be_program(program, &command, ends[1]);
    close(ends[1]);
    int code = pid < 0 ? -errno : read_answer(ends[0], answer, ANSWER_MOST, interrupted);
    if (pid > 0 && code < 0)
        kill(pid, SIGTERM);
    int status = pid > 0 ? wait_end(pid) : -1;
    close(ends[0]);
    if (code < 0)
        error_set(err, code, "walrus-bench-others (%s): %s", engine,
                  code == -EINTR ? "interrupted" : strerror(-code));
    else if (status == NOT_THERE)
        code = error_set(err, -EOPNOTSUPP, "%s is not to be had here", engine);
    else if (status != 0)
        code = error_set(err, -EIO, "walrus-bench-others (%s) ended with status %d", engine, status);
    else
        code = take_answer(answer, result, engine, err);
    free(answer);
    return code;
}
