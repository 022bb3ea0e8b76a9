/* daemon.c: one walrusd of a job: its start, its options, its end. Every wait has a limit, and none waits for
 * a killed broker whose writes are still in the device, unless it was asked to. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel.h"

/* ------------------------------------------------------------------------------------- start */

__attribute__((noreturn)) static void be_daemon(const struct work *work, const struct daemon_options *options,
                                                int output)
{
    const struct run *run = &work->run;
    const char *arguments[DAEMON_ARGUMENTS + 6] = {
        "walrusd", "--data-dir", run->store, "--socket",
        options != NULL && options->socket != NULL ? options->socket : run->socket};
    size_t count = 5;
    for (size_t i = 0; options != NULL && options->arguments[i] != NULL; i++)
        arguments[count++] = options->arguments[i];
    if (options != NULL && options->broken != NULL) {
        setenv("LD_PRELOAD", work->no_flush, 1);
        setenv("WALRUS_BROKEN", options->broken, 1);
    }
    int log = open(run->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (log < 0 || null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(log, 2) < 0)
        _exit(126);
    union {
        const char **from;
        char **to;
    } words = {.from = arguments};
    execv(run->soak->walrusd, words.to);
    dprintf(2, "cannot start %s: %s\n", run->soak->walrusd, strerror(errno));
    _exit(127);
}

int daemon_launch(const struct work *work, const struct daemon_options *options, struct daemon *daemon,
                  struct error *err)
{
    int ends[2];
    check_bug(daemon->pid == 0);
    if (pipe2(ends, O_CLOEXEC) != 0)
        return error_set(err, -errno, "pipe: %s", strerror(errno));
    pid_t pid = child_fork();
    if (pid == 0)
        be_daemon(work, options, ends[1]);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return error_set(err, -errno, "fork: %s", strerror(errno));
    }
    *daemon = (struct daemon){.pid = pid, .output = ends[0]};
    return 0;
}

static void look_at_output(struct daemon *daemon, int timeout_ms)
{
    struct pollfd fd = {.fd = daemon->output, .events = POLLIN};
    char text[512];
    if (daemon->is_ready) {
        poll(NULL, 0, timeout_ms);
        return;
    }
    if (poll(&fd, 1, timeout_ms) <= 0)
        return;
    ssize_t got = read(daemon->output, text, sizeof text - 1);
    if (got <= 0) { /* its end: waitpid says more, in a moment */
        poll(NULL, 0, timeout_ms > 0 ? 1 : 0);
        return;
    }
    text[got] = '\0';
    daemon->is_ready = strstr(text, "walrusd: ready on ") != NULL;
}

void daemon_look(struct daemon *daemon)
{
    look_at_output(daemon, 0);
    if (!daemon->has_ended && waitpid(daemon->pid, &daemon->status, WNOHANG) == daemon->pid)
        daemon->has_ended = true;
}

static void forget(struct daemon *daemon)
{
    if (daemon->pid != 0)
        close(daemon->output);
    *daemon = (struct daemon){0};
}

int daemon_await_ready(struct daemon *daemon, struct error *err)
{
    int64_t limit = now_ns() + PATIENCE_NS;
    for (;;) {
        int rc = run_interrupted(err);
        daemon_look(daemon);
        if (daemon->is_ready || rc < 0)
            return rc;
        if (daemon->has_ended)
            return error_set(err, -ECHILD, "the broker ended with status %#x before it was ready",
                             (unsigned)daemon->status);
        if (now_ns() > limit)
            return error_set(err, -ETIMEDOUT, "the broker does not get ready");
        look_at_output(daemon, 20);
    }
}

int daemon_await_end(struct daemon *daemon, struct error *err)
{
    int64_t limit = now_ns() + PATIENCE_NS;
    while (daemon->pid != 0 && !daemon->has_ended) {
        if (now_ns() > limit)
            return error_set(err, -ETIMEDOUT, "broker %d does not end", (int)daemon->pid);
        int rc = run_interrupted(err);
        if (rc < 0)
            return rc;
        daemon_look(daemon);
        if (!daemon->has_ended)
            pause_ns(NS_PER_MS / 5);
    }
    return 0;
}

int daemon_start(struct work *work, const struct daemon_options *options, struct daemon *daemon,
                 struct error *err)
{
    int rc = daemon_launch(work, options, daemon, err);
    if (rc == 0)
        rc = daemon_await_ready(daemon, err);
    if (rc < 0)
        daemon_kill(daemon);
    work->lives += rc == 0;
    return rc;
}

void daemon_kill(struct daemon *daemon)
{
    if (daemon->pid != 0 && !daemon->has_ended)
        child_end(daemon->pid);
    forget(daemon);
}

int daemon_stop(struct daemon *daemon, struct error *err)
{
    kill(daemon->pid, SIGTERM);
    int rc = daemon_await_end(daemon, err);
    int status = daemon->status;
    daemon_kill(daemon);
    if (rc < 0)
        return error_wrap(err, "stopping the broker");
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    return error_set(err, -ECHILD, "the broker ended with status %#x after SIGTERM", (unsigned)status);
}

/* ------------------------------------------------------------------------------------- its words */

off_t daemon_words(const struct work *work)
{
    struct stat st;
    return stat(work->run.log, &st) == 0 ? st.st_size : 0;
}

uint64_t daemon_said_times(const struct work *work, off_t since, const char *words)
{
    FILE *log = fopen(work->run.log, "re");
    uint64_t times = 0;
    char *line = NULL;
    size_t room = 0;
    if (log != NULL && fseeko(log, since, SEEK_SET) == 0)
        while (getline(&line, &room, log) > 0)
            times += strstr(line, words) != NULL;
    free(line);
    if (log != NULL)
        fclose(log);
    return times;
}

bool daemon_said(const struct work *work, off_t since, const char *words)
{
    char text[16384];
    int fd = open(work->run.log, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t got = pread(fd, text, sizeof text - 1, since);
    close(fd);
    text[got > 0 ? got : 0] = '\0';
    return strstr(text, words) != NULL;
}

/* ------------------------------------------------------------------------------------- options */

static void add(struct life_options *life, const char *option, const char *value)
{
    size_t count = 0;
    while (life->options.arguments[count] != NULL)
        count++;
    check_bug(count + 2 < DAEMON_ARGUMENTS);
    snprintf(life->texts[count], sizeof life->texts[count], "%s", option);
    snprintf(life->texts[count + 1], sizeof life->texts[count + 1], "%s", value);
    life->options.arguments[count] = life->texts[count];
    life->options.arguments[count + 1] = life->texts[count + 1];
}

void life_options_random(struct life_options *life, bool small, uint64_t *random)
{
    static const char *const backends[] = {"uring", "uring", "pwrite", "mmap"};
    static const char *const blocks[] = {"4096", "4096", "8192", "16384", "65536"};
    static const char *const segments[] = {"4224K", "4224K", "5M", "8M", "64M"};
    static const char *const memories[] = {"24M", "32M", "48M", "64M"};
    static const char *const levels[] = {"sync", "sync", "interval:1", "interval:20", "none"};
    *life = (struct life_options){0};
    add(life, "--io", backends[random_below(random, array_count(backends))]);
    if (random_below(random, 2) == 0)
        add(life, "--commit-align", blocks[random_below(random, array_count(blocks))]);
    add(life, "--segment", segments[random_below(random, small ? 2 : array_count(segments))]);
    add(life, "--memory", memories[random_below(random, array_count(memories))]);
    add(life, "--durability", levels[random_below(random, array_count(levels))]);
    if (random_below(random, 3) == 0)
        add(life, "--spin-us", random_below(random, 2) == 0 ? "0" : "20");
}
