/* wait.c: spinning, sleeping, and the one descriptor a user may poll.
 *
 * Happy path of a wait
 *   1. Look at the ring. If the condition holds, done.
 *   2. Spin for a while, if spinning has paid off lately.
 *   3. Arm: drain the eventfd, store wake_at, full fence, look at the ring once more, then poll eventfd and
 *      socket.
 *
 * Spinning adapts. `typical_ns` follows how long waits take; a wait that takes longer than a wake-up is worth
 * is slept through at once. A spin that ends without an answer, and above all one in which this thread lost
 * its core (a gap between two looks at the clock: more threads want to run than there are cores), makes the
 * next waits sleep: 1, 2, 4 ... MOST_SKIPPED of them. With one core there is no spinning at all.
 *
 * The fd is an epoll descriptor over eventfd and socket. Until the user asks for it (walrus_fd) nothing is
 * kept armed, so a spinning program costs the broker no signals. From then on, whenever a public call
 * returns:
 *   F1 something is unreaped, or the connection is lost => the eventfd is above zero (by the broker's signal,
 *      or ours), or the socket has hung up: the fd is readable;
 *   F2 nothing is unreaped => the ring was seen empty after wake_at = cq_head was stored and fenced: the next
 *      completion makes the broker signal.
 *   F3 the connection is being made anew and nothing is unreaped => readable only when a step can be taken:
 *      by the timer, or by what came on the socket.
 * The eventfd is drained only when nothing is unreaped. A signal that comes late, for a completion that was
 * reaped already, wakes once for nothing; the walrus_reap that finds nothing then drains it.
 *
 * Failure modes: hang-up: the ring first, then -ECONNRESET (requests.c). A signal handler ran: -EINTR, or
 * the wait goes on, as the caller wants. */
#include "handle.h"

#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SPIN_WORTH_NS   INT64_C(250000) /* longer waits are slept through: a wake-up costs 50 us */
#define SPIN_LEAST_NS   INT64_C(5000)
#define SPIN_GAP_NS     INT64_C(40000)   /* between two looks at the clock: the core was taken away */
#define SPIN_LOOK_NS    INT64_C(2000000) /* a long spin (a fixed spin_ns) looks at the socket this often */
#define SPIN_START_NS   INT64_C(60000)   /* first guess of a wait */
#define MOST_SKIPPED    64u
#define LOOKS_PER_CLOCK 32

int64_t walrus__now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * NS_PER_S + t.tv_nsec;
}

int64_t walrus__deadline(int64_t relative_ns)
{
    if (relative_ns < 0)
        return FOR_EVER;
    int64_t now = walrus__now();
    return relative_ns > FOR_EVER - now ? FOR_EVER : now + relative_ns;
}

void walrus__waiting_init(struct walrus *handle, int64_t spin_ns)
{
    cpu_set_t cores;
    handle->waiting = (struct waiting){
        .spin_ns = spin_ns,
        .typical_ns = SPIN_START_NS,
        .penalty = 1,
        .single_core = sched_getaffinity(0, sizeof cores, &cores) == 0 && CPU_COUNT(&cores) == 1,
    };
}

/* Nothing is taken out of the ring of a connection that is gone, or of one whose topics are not open yet:
 * there reconnect.c does it. */
static bool ring_has_more(const struct walrus *handle)
{
    return (handle->link == LINK_UP || handle->link == LINK_REOPENING) &&
           word_load_acquire(handle->completion.peer_word) != handle->completion.mirror.c_head;
}

static uint32_t cq_head(const struct walrus *handle)
{
    return handle->completion.mirror.c_head;
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__("yield" ::: "memory");
#endif
}

/* --------------------------------------------------------------------------- signal and socket */

/* Never blocks, whatever the other side did to O_NONBLOCK. */
static void drain(struct walrus *handle)
{
    uint64_t count;
    struct iovec to = {&count, sizeof count};
    if (preadv2(handle->signal, &to, 1, -1, RWF_NOWAIT) < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
        struct pollfd fd = {.fd = handle->signal, .events = POLLIN};
        if (poll(&fd, 1, 0) == 1 && read(handle->signal, &count, sizeof count) < 0) {
            /* nothing to be done about it: the fd wakes once more for nothing */
        }
    }
    handle->waiting.signalled = false;
}

/* Makes the fd readable ourselves. */
static void signal_self(struct walrus *handle)
{
    uint64_t one = 1;
    struct pollfd fd = {.fd = handle->signal, .events = POLLIN | POLLOUT};
    bool full = poll(&fd, 1, 0) == 1 && (fd.revents & POLLOUT) == 0;
    if (full || write(handle->signal, &one, sizeof one) == (ssize_t)sizeof one)
        handle->waiting.signalled = true;
}

/* Only on an empty ring. The fence pairs with the broker's between its store of cq_tail and its load of
 * wake_at. */
static void arm(struct walrus *handle, uint32_t index)
{
    word_store(&handle->client->wake_at, index);
    handle->waiting.armed_at = index;
    full_fence();
}

/* The signal for the armed index was given, or is on its way. */
static bool armed_and_passed(const struct walrus *handle)
{
    return (int32_t)(cq_head(handle) - handle->waiting.armed_at) > 0;
}

/* After the socket became readable: nothing is ever sent on it, so this is the end. */
static void hung_up(struct walrus *handle)
{
    char byte;
    ssize_t n = recv(handle->socket, &byte, 1, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0)
        walrus__lose(handle, -EPROTO,
                     "the broker sent a message that has no place here; the connection has been ended");
    else
        walrus__lose(handle, -ECONNRESET,
                     "the broker (pid %u) is gone: connect again; what was in flight may or may not be "
                     "written; what open "
                     "batches hold can be read until walrus_close",
                     handle->welcome.broker_pid);
}

/* Looks at eventfd, socket and timer. > 0: something is there; -EINTR. */
static int look(struct walrus *handle, const struct timespec *limit)
{
    struct pollfd fds[3] = {{.fd = handle->signal, .events = POLLIN},
                            {.fd = handle->socket, .events = POLLIN | POLLRDHUP},
                            {.fd = -1, .events = POLLIN}};
    if (handle->link != LINK_UP)
        walrus__reconnect_fds(handle, &fds[1].fd, &fds[2].fd);
    int ready = ppoll(fds, 3, limit, NULL);
    if (ready < 0)
        return errno == EINTR ? -EINTR : 0;
    if (fds[0].revents != 0)
        handle->waiting.signalled = true;
    if (fds[1].revents != 0 && handle->link != LINK_HELLO) /* then it is the welcome */
        hung_up(handle);
    return ready;
}

void walrus__look(struct walrus *handle)
{
    static const struct timespec at_once = {0, 0};
    if (handle->lost == 0)
        look(handle, &at_once);
}

void walrus__settle(struct walrus *handle)
{
    if (handle->lost != 0)
        return; /* the socket has hung up: readable for ever */
    for (;;) {
        if (walrus__kept_count(handle) > 0) {
            if (!handle->waiting.signalled)
                signal_self(handle);
            return; /* F1 */
        }
        if (ring_has_more(handle)) {
            walrus__pump(handle);
            if (handle->lost != 0)
                return;
            continue;
        }
        if (handle->link == LINK_DOWN || handle->link == LINK_HELLO) {
            if (handle->waiting.signalled)
                drain(handle);
            return; /* F3 */
        }
        if (handle->waiting.armed_at == cq_head(handle) && !handle->waiting.signalled)
            return; /* F2: still armed from before */
        if (handle->waiting.signalled || armed_and_passed(handle))
            drain(handle);
        arm(handle, cq_head(handle));
        if (!ring_has_more(handle))
            return; /* F2 */
    }
}

int walrus_fd(const walrus *handle)
{
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    struct walrus *self = handle->self;
    if (!self->waiting.fd_used) {
        self->waiting.fd_used = true;
        walrus__settle(self);
    }
    return self->epoll;
}

/* ------------------------------------------------------------------------------------ spinning */

static void learn(struct waiting *waiting, int64_t took)
{
    if (took > 4 * SPIN_WORTH_NS)
        took = 4 * SPIN_WORTH_NS; /* one long pause is soon forgotten */
    waiting->typical_ns += (took - waiting->typical_ns) / 8;
}

static void spinning_failed(struct waiting *waiting, bool lost_core)
{
    if (lost_core)
        waiting->penalty = MOST_SKIPPED;
    waiting->skip = waiting->penalty;
    waiting->penalty = waiting->penalty < MOST_SKIPPED ? 2 * waiting->penalty : MOST_SKIPPED;
}

/* One wait's spinning: until `end`, then never again in this wait. */
struct spinning {
    int64_t end;
    bool over;
};

static struct spinning spin_begin(struct waiting *waiting, int64_t now)
{
    int64_t budget = waiting->spin_ns;
    if (budget == 0 && !waiting->single_core && waiting->typical_ns <= SPIN_WORTH_NS) {
        if (waiting->skip > 0)
            waiting->skip--;
        else
            budget = 2 * waiting->typical_ns > SPIN_LEAST_NS ? 2 * waiting->typical_ns : SPIN_LEAST_NS;
    }
    if (budget <= 0)
        return (struct spinning){.over = true};
    return (struct spinning){.end = budget > FOR_EVER - now ? FOR_EVER : now + budget};
}

/* Looks at the ring until something is in it, the budget is spent, or spinning turns out to be wrong. */
static void spin(struct walrus *handle, struct spinning *spinning, int64_t deadline)
{
    struct waiting *waiting = &handle->waiting;
    int64_t last = walrus__now(), last_look = last;
    while (!spinning->over) {
        for (int i = 0; i < LOOKS_PER_CLOCK; i++) {
            if (ring_has_more(handle)) {
                waiting->penalty = 1;
                return;
            }
            relax();
        }
        int64_t now = walrus__now();
        bool lost_core = now - last > SPIN_GAP_NS;
        spinning->over = now >= spinning->end || now >= deadline || (lost_core && waiting->spin_ns == 0);
        if (waiting->spin_ns == 0 && (lost_core || now >= spinning->end))
            spinning_failed(waiting, lost_core);
        if (!spinning->over && now - last_look > SPIN_LOOK_NS) {
            walrus__look(handle);
            if (handle->lost != 0)
                return;
            last_look = now;
        }
        last = now;
    }
}

/* ------------------------------------------------------------------------------------- waiting */

/* Sleeps until something may have changed. 0, -ETIME or -EINTR. */
static int sleep_armed(struct walrus *handle, uint32_t need, int64_t deadline)
{
    if (handle->waiting.signalled || armed_and_passed(handle))
        drain(handle);
    if (handle->link == LINK_REOPENING)
        need = 1;
    if (handle->link == LINK_UP || handle->link == LINK_REOPENING) {
        arm(handle, cq_head(handle) + need - 1);
        if (ring_has_more(handle))
            return 0;
    }
    struct timespec limit, *until = NULL;
    if (deadline != FOR_EVER) {
        int64_t left = deadline - walrus__now();
        if (left < 0)
            left = 0;
        limit = (struct timespec){left / NS_PER_S, left % NS_PER_S};
        until = &limit;
    }
    int ready = look(handle, until);
    if (ready == 0 && deadline != FOR_EVER && walrus__now() >= deadline)
        return -ETIME;
    return ready == -EINTR ? -EINTR : 0;
}

int walrus__wait_until(struct walrus *handle, walrus__condition condition, const void *context, uint32_t need,
                       int64_t deadline, bool interruptible)
{
    uint64_t met_before = handle->dispatched;
    walrus__pump(handle);
    if (condition(handle, context))
        return 0;
    int64_t begin = walrus__now();
    struct spinning spinning = spin_begin(&handle->waiting, begin);
    int slept = 0;
    for (;;) {
        if (handle->lost != 0)
            return handle->lost;
        if (slept == -ETIME || (slept == -EINTR && interruptible))
            return slept;
        if (!spinning.over && handle->link == LINK_UP) {
            spin(handle, &spinning, deadline);
        } else {
            uint64_t met = handle->dispatched - met_before;
            slept = sleep_armed(handle, need > met ? (uint32_t)(need - met) : 1, deadline);
        }
        walrus__pump(handle);
        if (condition(handle, context))
            break;
    }
    learn(&handle->waiting, walrus__now() - begin);
    return 0;
}

static bool answered(const struct walrus *handle, const void *context)
{
    (void)handle;
    return ((const struct answer *)context)->done;
}

int walrus__wait_answer(struct walrus *handle, const struct answer *answer, int64_t deadline,
                        bool interruptible)
{
    return walrus__wait_until(handle, answered, answer, 1, deadline, interruptible);
}

static bool dispatched_more(const struct walrus *handle, const void *context)
{
    return handle->dispatched != *(const uint64_t *)context;
}

int walrus__wait_any(struct walrus *handle, int64_t deadline, bool interruptible)
{
    uint64_t before = handle->dispatched;
    return walrus__wait_until(handle, dispatched_more, &before, 1, deadline, interruptible);
}

static bool has_credit(const struct walrus *handle, const void *context)
{
    (void)context;
    return walrus__has_credit(handle);
}

static bool is_up(const struct walrus *handle, const void *context)
{
    (void)context;
    return handle->link == LINK_UP;
}

int walrus__wait_up(struct walrus *handle, int64_t deadline)
{
    if (handle->link == LINK_UP)
        return handle->lost;
    int code = walrus__wait_until(handle, is_up, NULL, 1, deadline, false);
    return code < 0 ? code : handle->lost;
}

int walrus__wait_credit(struct walrus *handle)
{
    if (walrus__has_credit(handle))
        return 0;
    int code = walrus__wait_until(handle, has_credit, NULL, 1, FOR_EVER, false);
    return code < 0 ? code : handle->lost;
}

bool walrus__wait_to_retry(struct walrus *handle, uint32_t attempt, uint32_t retry_after_us, int64_t begin)
{
    int64_t pause =
        retry_after_us > 0 ? (int64_t)retry_after_us * 1000 : (NS_PER_MS / 4) << (attempt < 8 ? attempt : 8);
    int64_t now = walrus__now();
    if (handle->lost != 0 || now - begin > MOST_PATIENCE)
        return false;
    if (pause > MOST_PATIENCE / 60)
        pause = MOST_PATIENCE / 60;
    /* Whatever completes meanwhile may be what it waits for: try again at once then. */
    int code = walrus__wait_any(handle, now + pause, false);
    return code == 0 || code == -ETIME;
}

static bool kept_enough(const struct walrus *handle, const void *context)
{
    return walrus__kept_count(handle) >= *(const uint32_t *)context;
}

int walrus_wait(walrus *handle, int count, int64_t timeout_ns)
{
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    if (count < 0 || (uint32_t)count > handle->in_flight)
        return walrus__fail(handle, -EINVAL, REASON_NONE,
                            "waiting for %d completions with %u batches in flight: that cannot end", count,
                            handle->in_flight);
    uint32_t wanted = (uint32_t)count;
    uint32_t kept = walrus__kept_count(handle);
    if (kept >= wanted)
        return 0;
    code =
        walrus__wait_until(handle, kept_enough, &wanted, wanted - kept, walrus__deadline(timeout_ns), true);
    walrus__leave(handle);
    if (code == -ETIME || code == -EINTR)
        return walrus__fail(handle, code, REASON_NONE,
                            code == -ETIME ? "%d completions did not come in time: wait again"
                                           : "a signal arrived before %d completions did: wait again",
                            count);
    return code == handle->lost ? 0 : code;
}
