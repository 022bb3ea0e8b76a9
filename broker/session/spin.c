/* spin.c: whether it pays to look at the rings for a while before sleeping.
 *
 * A wake-up across cores costs a small machine 25 us and more, a look at a ring nanoseconds. So a broker that
 * has just answered and expects the next batch within that time looks; one that does not sleeps at once.
 *   - fixed (--spin-us N): up to N us each time.
 *   - adaptive: up to SPIN_MOST if a moving average says that work came within that time lately. The average
 *     moves with every gap, slept or not, so a client that has become slow costs a few useless spins and then
 *     none.
 *
 * Never when this thread had to wait for a core of late (the spinner would take its own client's core).
 *
 * While a group is in the device it looks, too, if groups take little time: a core that halts takes long to
 * wake. Measured: 72 KiB, write awaited so, then fdatasync, 1,500 of each by turns, p50 (p99) in us beside a
 * client that spins, on the core that the device interrupts and on the other one:
 *     asleep in the kernel                        134 (206)     172   (359)
 *     looking                                     121 (2,103)   142   (270)
 *     looking, the core offered meanwhile         125 (197)     142   (239)
 * The 2 ms are work of the kernel that waits for the core of a look without end: so none is longer than a
 * group usually takes. The core is offered only where clients may want it, since one that spins keeps what
 * it is offered for a whole tick. What takes long is slept through: there a wake-up is a small part. */
#include "session.h"

#include <fcntl.h>
#include <unistd.h>

#define SPIN_MOST       INT64_C(60000)
#define GAP_CAP         INT64_C(1000000)
#define LOAD_PERIOD_NS  INT64_C(1000000)
#define WAITED_PART     20 /* more than this part of the time without a core: crowded */
#define LOOKS_PER_TIME  32
#define ROUNDS_PER_POLL 16              /* doorbells of parked sessions, new connections: a system call */
#define DEVICE_MOST     INT64_C(250000) /* groups that take longer are slept through */
#define LOST_NS         INT64_C(100000) /* who keeps an offered core for so long wants one of its own */

void spin_start(struct server *server)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    server->cores = cores > 0 ? (int)cores : 1;
    server->schedstat_fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    server->gap_ns = GAP_CAP;
    uint64_t allowed = 0;
    CPU_ZERO(&server->cores_allowed);
    if (sched_getaffinity(0, sizeof server->cores_allowed, &server->cores_allowed) == 0)
        for (unsigned core = 0; core < 64; core++)
            allowed |= (uint64_t)(CPU_ISSET(core, &server->cores_allowed) != 0) << core;
    if (CPU_COUNT(&server->cores_allowed) == __builtin_popcountll(allowed))
        placement_begin(&server->placement, allowed);
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
    int64_t lately = waited - server->waited_ns - server->yielded_ns;
    server->waited_ns = waited;
    server->yielded_ns = 0;
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

/* A gathered group waits for those that were just answered: they are about to run, or to be let run. Asleep,
 * this thread would be woken by each of them. */
static bool yield_until_work(struct server *server, int64_t now, int64_t until)
{
    int64_t begun = now;
    for (; now < until && !drain_anything(server); now = io_now(server->io))
        sched_yield();
    server->yielded_ns += now - begun; /* waiting for a core meanwhile was our own wish */
    return true;
}

/* As many clients as cores, or more: some of them may be waiting for this one. */
static bool clients_want_cores(const struct server *server)
{
    int left = server->cores;
    const struct session *session;
    TAILQ_FOREACH(session, &server->active, activity)
    if (--left == 0)
        return true;
    return false;
}

/* A group is in the device, and groups take little time: look until it is out, instead of letting the core
 * halt. Not for longer than a group usually takes: work of the kernel for this very group may need the core.
 * Where clients may need it, too, it is offered to them all the time. */
static bool look_at_device(struct server *server, int64_t now)
{
    struct io *io = server->io;
    int64_t most = server->options.spin_ns, usual = server->group_ns;
    if (most == SPIN_ADAPTIVE)
        most = usual <= DEVICE_MOST && !crowded(server, now) ? usual : 0;
    if (most <= 0 || io->functions->ready == NULL || server->stopping || !log_busy(server->log))
        return false;
    bool offer = clients_want_cores(server);
    int64_t until = now + most < server->log_deadline ? now + most : server->log_deadline;
    for (int round = 1; now < until; round++) {
        for (int i = 0; i < LOOKS_PER_TIME; i++) {
            if (io->functions->ready(io) || drain_anything(server))
                return true;
            ck_pr_stall();
        }
        now = io_now(io);
        if (offer) {
            int64_t begun = now;
            sched_yield();
            now = io_now(io);
            server->yielded_ns += now - begun < LOST_NS ? now - begun : 0;
        }
        if (round % ROUNDS_PER_POLL == 0) {
            server_poll_events(server);
            if (server->more)
                return true;
        }
    }
    return false;
}

/* True: something is there, do not sleep. */
bool spin_until_work(struct server *server, int64_t now)
{
    int64_t length = spin_length(server);
    int64_t delayed_until = log_delayed_until(server->log);
    if (delayed_until != 0 && server->options.spin_ns != 0)
        return yield_until_work(server, now, delayed_until);
    if (device_owes_answers(server))
        return look_at_device(server, now);
    if (length <= 0 || server->stopping || TAILQ_EMPTY(&server->active) || crowded(server, now))
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

void spin_place(struct server *server, int64_t now)
{
    struct placement *placement = &server->placement;
    if (now < placement->look_at || placement->allowed == 0)
        return;
    int before = placement->chosen;
    int core = placement_choose(placement, sched_getcpu(), crowded(server, now), now);
    if (core == before)
        return;
    cpu_set_t one;
    CPU_ZERO(&one);
    if (core != PLACEMENT_FREE)
        CPU_SET((unsigned)core, &one);
    if (sched_setaffinity(0, sizeof one, core == PLACEMENT_FREE ? &server->cores_allowed : &one) != 0)
        placement->allowed = 0; /* not for us to choose */
}
