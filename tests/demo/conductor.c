/* conductor.c: the run: producers, progress, and the kills.
 *
 * A kill is due when its share of the lines is committed; it happens at the next look that finds batches in
 * flight. Then the broker is started again at once, and the time from exec to "ready" is its recovery time.
 * */
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "demo.h"

#define TICK_MS 1

struct run {
    struct demo *demo;
    bool on_terminal;
    int64_t started;
    int64_t printed;
    uint64_t total;
    uint64_t last_committed;
    int64_t last_progress;
};

static uint64_t sum(const struct demo *demo, const _Atomic uint64_t *counters)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < demo->producers; i++)
        total += atomic_load(&counters[i]);
    return total;
}

static int start_producers(struct demo *demo, struct error *err)
{
    pid_t parent = getpid();
    fflush(NULL);
    for (unsigned i = 0; i < demo->producers; i++) {
        pid_t pid = fork();
        if (pid < 0)
            return error_set(err, -errno, "fork: %s", strerror(errno));
        if (pid == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            setpgid(0, 0);
            handle_signals(SIG_DFL);
            _exit(getppid() == parent ? produce(demo, i) : 1);
        }
        demo->producer_pids[i] = pid;
    }
    return 0;
}

/* 1 all have ended well, 0 some still work, or an error. */
static int look_after_producers(struct demo *demo, struct error *err)
{
    bool working = false;
    for (unsigned i = 0; i < demo->producers; i++) {
        int status;
        if (demo->producer_pids[i] == 0)
            continue;
        if (waitpid(demo->producer_pids[i], &status, WNOHANG) != demo->producer_pids[i]) {
            working = true;
            continue;
        }
        demo->producer_pids[i] = 0;
        if (WIFSIGNALED(status))
            return error_set(err, -ECHILD, "producer %u was ended by signal %d", i, WTERMSIG(status));
        if (WEXITSTATUS(status) != 0)
            return error_set(err, -ECHILD, "producer %u failed", i);
    }
    return working ? 0 : 1;
}

static void print_progress(struct run *run, bool last)
{
    const struct demo *demo = run->demo;
    int64_t now = now_ns();
    int64_t pause = run->on_terminal ? 100000000 : 2000000000;
    if (!last && now - run->printed < pause)
        return;
    run->printed = now;
    uint64_t committed = sum(demo, demo->progress->committed);
    printf("%s%3u %%  %llu of %llu lines committed in %llu batches, broker killed %u of %u times, %.1f s%s",
           run->on_terminal ? "\r" : "  ", (unsigned)(100 * committed / run->total),
           (unsigned long long)committed, (unsigned long long)run->total,
           (unsigned long long)sum(demo, demo->progress->batches), demo->killed, demo->kills,
           (double)(now - run->started) / 1e9, run->on_terminal ? last ? "\033[K\n" : "\033[K" : "\n");
    fflush(stdout);
}

static int kill_and_restart(struct demo *demo, uint64_t in_flight, struct error *err)
{
    int64_t killed_at = now_ns();
    demo->in_flight_at_kill[demo->killed] = in_flight;
    broker_kill(&demo->broker);
    int rc = broker_start(&demo->broker, &demo->recovery_ns[demo->killed], err);
    if (rc != 0)
        return error_wrap(err, "start after kill %u", demo->killed + 1);
    demo->down_ns += now_ns() - killed_at;
    demo->killed++;
    return 0;
}

static int step(struct run *run, struct error *err)
{
    struct demo *demo = run->demo;
    uint64_t committed = sum(demo, demo->progress->committed);
    if (committed != run->last_committed) {
        run->last_committed = committed;
        run->last_progress = now_ns();
    }
    if (interrupted != 0)
        return error_set(err, -EINTR, "interrupted by signal %d", (int)interrupted);
    if (now_ns() - run->last_progress > 2 * STALL_LIMIT_NS)
        return error_set(err, -ETIMEDOUT, "no batch was committed for %d s",
                         (int)(2 * STALL_LIMIT_NS / 1000000000));
    int rc = broker_check(&demo->broker, err);
    if (rc != 0)
        return rc;
    uint64_t in_flight = sum(demo, demo->progress->in_flight);
    if (demo->killed < demo->kills && committed * (demo->kills + 1) >= run->total * (demo->killed + 1) &&
        in_flight > 0) {
        rc = kill_and_restart(demo, in_flight, err);
        run->last_progress = now_ns();
    }
    return rc;
}

int conduct(struct demo *demo, struct error *err)
{
    struct run run = {.demo = demo,
                      .on_terminal = isatty(STDOUT_FILENO) != 0,
                      .started = now_ns(),
                      .total = demo->input.count};
    run.last_progress = run.started;
    run.printed = run.started;
    int rc = start_producers(demo, err);
    while (rc == 0) {
        rc = look_after_producers(demo, err);
        if (rc == 0)
            rc = step(&run, err);
        if (rc == 0) {
            print_progress(&run, false);
            struct pollfd fd = {.fd = demo->broker.output, .events = 0};
            poll(&fd, 1, TICK_MS);
        }
    }
    demo->run_ns = now_ns() - run.started;
    if (rc < 0) {
        if (run.on_terminal)
            putchar('\n');
        return rc;
    }
    print_progress(&run, true);
    if (demo->killed < demo->kills)
        return error_set(err, -EAGAIN, "all lines were committed before kill %u of %u: use more --lines",
                         demo->killed + 1, demo->kills);
    return 0;
}
