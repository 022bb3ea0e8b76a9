/* broker.c: the broker as a child: starting it, killing it, stopping it. Every wait has a limit. */
#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "demo.h"

#define STOP_LIMIT_NS (INT64_C(60) * 1000000000)
#define READY         "walrusd: ready on "

int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

__attribute__((noreturn)) static void be_broker(struct broker *broker, int output, pid_t parent)
{
    /* Nothing is left behind, however the demo ends; ^C is for the demo alone. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    if (getppid() != parent)
        _exit(1);
    int log = open(broker->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (log < 0 || null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(log, 2) < 0)
        _exit(126);
    handle_signals(SIG_DFL);
    execl(broker->program, broker->program, "--data-dir", broker->store, "--socket", broker->socket,
          "--durability", "sync", (char *)NULL);
    dprintf(2, "cannot start %s: %s\n", broker->program, strerror(errno));
    _exit(127);
}

/* Reads one line of its output within the limit. */
static int wait_for_ready(struct broker *broker, int64_t started, struct error *err)
{
    char line[512] = "";
    size_t used = 0;
    while (memchr(line, '\n', used) == NULL) {
        int64_t left = started + START_LIMIT_NS - now_ns();
        if (interrupted != 0)
            return error_set(err, -EINTR, "interrupted");
        if (left <= 0)
            return error_set(err, -ETIMEDOUT, "the broker was not ready within %d s",
                             (int)(START_LIMIT_NS / 1000000000));
        struct pollfd fd = {.fd = broker->output, .events = POLLIN};
        if (poll(&fd, 1, 100) <= 0)
            continue;
        ssize_t got = read(broker->output, line + used, sizeof line - 1 - used);
        if (got <= 0 || used + (size_t)got >= sizeof line - 1)
            return error_set(err, -ECHILD, "the broker ended, or said something else, before it was ready");
        used += (size_t)got;
    }
    line[used] = '\0';
    if (strncmp(line, READY, strlen(READY)) != 0)
        return error_set(err, -EPROTO, "the broker's first line is not \"%sPATH\" but: %.200s", READY, line);
    return 0;
}

int broker_start(struct broker *broker, int64_t *ready_ns, struct error *err)
{
    int ends[2];
    check_bug(broker->pid == 0);
    if (pipe2(ends, O_CLOEXEC) != 0)
        return error_set(err, -errno, "pipe: %s", strerror(errno));
    pid_t parent = getpid();
    int64_t started = now_ns();
    pid_t pid = fork();
    if (pid < 0) {
        close(ends[0]);
        close(ends[1]);
        return error_set(err, -errno, "fork: %s", strerror(errno));
    }
    if (pid == 0)
        be_broker(broker, ends[1], parent);
    close(ends[1]);
    broker->pid = pid;
    broker->output = ends[0];
    int rc = wait_for_ready(broker, started, err);
    *ready_ns = now_ns() - started;
    if (rc != 0)
        broker_kill(broker);
    return rc;
}

static void broker_ended(struct broker *broker)
{
    close(broker->output);
    broker->output = -1;
    broker->pid = 0;
}

void broker_kill(struct broker *broker)
{
    if (broker->pid == 0)
        return;
    kill(broker->pid, SIGKILL);
    while (waitpid(broker->pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    broker_ended(broker);
}

static int ended_words(int status, struct error *err)
{
    if (WIFSIGNALED(status))
        return error_set(err, -ECHILD, "the broker was ended by signal %d", WTERMSIG(status));
    return error_set(err, -ECHILD, "the broker ended by itself with exit code %d", WEXITSTATUS(status));
}

int broker_check(struct broker *broker, struct error *err)
{
    int status;
    if (waitpid(broker->pid, &status, WNOHANG) != broker->pid)
        return 0;
    broker_ended(broker);
    return ended_words(status, err);
}

int broker_stop(struct broker *broker, struct error *err)
{
    int64_t limit = now_ns() + STOP_LIMIT_NS;
    int status;
    kill(broker->pid, SIGTERM);
    for (;;) {
        pid_t ended = waitpid(broker->pid, &status, WNOHANG);
        if (ended == broker->pid)
            break;
        if (now_ns() > limit) {
            broker_kill(broker);
            return error_set(err, -ETIMEDOUT, "the broker did not stop within %d s of SIGTERM",
                             (int)(STOP_LIMIT_NS / 1000000000));
        }
        struct pollfd fd = {.fd = broker->output, .events = 0}; /* hangs up when the process has ended */
        poll(&fd, 1, 10);
    }
    broker_ended(broker);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : ended_words(status, err);
}

void broker_print_log(const struct broker *broker)
{
    FILE *file = fopen(broker->log, "re");
    if (file == NULL)
        return;
    char line[1024];
    long from = 0;
    if (fseek(file, 0, SEEK_END) == 0 && ftell(file) > 4096)
        from = ftell(file) - 4096;
    if (fseek(file, from, SEEK_SET) == 0) {
        fprintf(stderr, "the broker's last messages:\n");
        while (fgets(line, sizeof line, file) != NULL)
            fprintf(stderr, "  %s", line);
    }
    fclose(file);
}
