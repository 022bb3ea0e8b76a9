/* spin.c: whether it pays to look at the rings for a while before sleeping.
 *
 * A wake-up across cores costs a small machine 25 us and more, a look at a ring nanoseconds. So a broker that
 * has just answered and expects the next batch within that time looks; one that does not sleeps at once.
 *   - fixed (--spin-us N): up to N us each time.
 *   - adaptive: up to SPIN_MOST if a moving average says that work came within that time lately. The average
 *     moves with every gap, slept or not, so a client that has become slow costs a few useless spins and then
 *     none.
 *
 * Never when this thread had to wait for a core of late (the spinner would take its own client's core),
 * and never while an answer waits for the device and nothing gathers: busy polling has starved completions;
 * sleeping in the kernel is how they come soonest. */
#include "session.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#define SPIN_MOST       INT64_C(60000)
#define GAP_CAP         INT64_C(1000000)
#define LOAD_PERIOD_NS  INT64_C(1000000)
#define WAITED_PART     20 /* more than this part of the time without a core: crowded */
#define LOOKS_PER_TIME  32
#define ROUNDS_PER_POLL 16 /* doorbells of parked sessions, new connections: a system call */

void spin_start(struct server *server)
{
    cpu_set_t set;
    server->cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    server->schedstat_fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    server->gap_ns = GAP_CAP;
}

void spin_stop(struct server *server)
{
    if (server->schedstat_fd >= 0)
        close(server->schedstat_fd);
}

/* The second number of schedstat: how long this thread has been runnable and waited for a core, in ns. (The
 * count of runnable threads in /proc/loadavg would say too much: since Linux 6.12 a thread stays counted for
 * a while after it has gone to sleep.) */
static bool waited_for_a_core(struct server *server, int64_t period)
{
    char text[96];
    ssize_t n = server->schedstat_fd >= 0 ? pread(server->schedstat_fd, text, sizeof text - 1, 0) : -1;
    if (n <= 0)
        return true; /* not known: be polite */
    text[n] = '\0';
    const char *at = strchr(text, ' ');
    int64_t waited = at != NULL ? strtoll(at, NULL, 10) : 0;
    int64_t lately = waited - server->waited_ns;
    server->waited_ns = waited;
    return lately > period / WAITED_PART;
}

static bool crowded(struct server *server, int64_t now)
{
    int64_t period = now - server->spin_checked_ns;
    if (period >= LOAD_PERIOD_NS) {
        server->spin_checked_ns = now;
        server->crowded = server->cores < 2 || waited_for_a_core(server, period);
    }
    return server->crowded;
}

static bool device_owes_answers(const struct server *server)
{
    return server->values.session_held_writes > 0 || (server->writes_in_log > 0 && log_busy(server->log));
}

static int64_t spin_length(const struct server *server)
{
    if (server->options.spin_ns != SPIN_ADAPTIVE)
        return server->options.spin_ns;
    return server->gap_ns <= SPIN_MOST ? SPIN_MOST : 0;
}

/* At the end of each turn. What counts is the time from the moment when nothing is owed any more, so that a
 * spin could begin, to the next work: not the device's time before it. */
void spin_learn(struct server *server, bool drained)
{
    if (drained && server->idle_since_ns != 0) {
        int64_t gap = server->turn_started_ns - server->idle_since_ns;
        gap = gap < 0 ? 0 : gap > GAP_CAP ? GAP_CAP : gap;
        server->gap_ns += (gap - server->gap_ns) / 4;
    }
    if (device_owes_answers(server))
        server->idle_since_ns = 0;
    else if (drained || server->idle_since_ns == 0)
        server->idle_since_ns = server->turn_ended_ns;
}

/* True: something is there, do not sleep. */
bool spin_until_work(struct server *server, int64_t now)
{
    int64_t length = spin_length(server);
    if (length <= 0 || server->stopping || TAILQ_EMPTY(&server->active) || device_owes_answers(server) ||
        crowded(server, now))
        return false;
    server->values.loop_spins++;
    int64_t until = now + length;
    if (server->log_deadline < until)
        until = server->log_deadline;
    for (int round = 1; now < until; round++) {
        for (int i = 0; i < LOOKS_PER_TIME; i++) {
            if (drain_anything(server))
                return true;
            ck_pr_stall();
        }
        if (io_wait(server->io, 0) > 0 || server->more)
            return true;
        if (round % ROUNDS_PER_POLL == 0) {
            server_poll_events(server);
            if (server->more)
                return true;
        }
        now = io_now(server->io);
    }
    return false;
}
