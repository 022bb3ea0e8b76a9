/* spin.c: whether it pays to look at the rings for a while before sleeping.
 *
 * A wake-up across cores costs a small machine 25 us and more, a look at a ring nanoseconds. So a broker that
 * has just answered and expects the next batch within that time looks; one that does not sleeps at once.
 *   - fixed (--spin-us N): up to N us each time.
 *   - adaptive: up to SPIN_MOST if a moving average says that work came within that time lately. The average
 *     moves with every gap, slept or not, so a client that has become slow costs a few useless spins and then
 *     none.
 *
 * Never when the kernel has more runnable threads than cores (the spinner would take its own client's core),
 * and never while an answer waits for the device and nothing gathers: busy polling has starved completions;
 * sleeping in the kernel is how they come soonest. */
#include "session.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#define SPIN_MOST       INT64_C(60000)
#define GAP_CAP         INT64_C(1000000)
#define LOAD_PERIOD_NS  INT64_C(1000000)
#define LOOKS_PER_TIME  32
#define ROUNDS_PER_POLL 16 /* doorbells of parked sessions, new connections: a system call */

void spin_start(struct server *server)
{
    cpu_set_t set;
    server->cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    server->load_fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC);
    server->gap_ns = GAP_CAP;
}

void spin_stop(struct server *server)
{
    if (server->load_fd >= 0)
        close(server->load_fd);
}

/* The fourth field of /proc/loadavg is "runnable/all", ourselves included. */
static bool too_many_runnable(const struct server *server)
{
    char text[128];
    ssize_t n = server->load_fd >= 0 ? pread(server->load_fd, text, sizeof text - 1, 0) : -1;
    if (n <= 0)
        return true; /* not known: be polite */
    text[n] = '\0';
    char *at = text;
    for (int field = 0; field < 3 && at != NULL; field++) {
        at = strchr(at, ' ');
        if (at != NULL)
            at++;
    }
    return at == NULL || strtol(at, NULL, 10) > server->cores;
}

static bool crowded(struct server *server, int64_t now)
{
    if (now - server->spin_checked_ns >= LOAD_PERIOD_NS) {
        server->spin_checked_ns = now;
        server->crowded = server->cores < 2 || too_many_runnable(server);
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

/* Called when work was found: how long was there none? */
void spin_learn(struct server *server)
{
    int64_t gap = server->turn_started_ns - server->idle_since_ns;
    if (gap > GAP_CAP)
        gap = GAP_CAP;
    server->gap_ns += (gap - server->gap_ns) / 4;
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
