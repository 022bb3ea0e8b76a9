#include "phases.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define READY_LIMIT_NS INT64_C(60000000000)
#define END_LIMIT_NS   INT64_C(60000000000)
#define LOOK_NS        INT64_C(200000000) /* how often the main process looks for dead workers */

void pause_ns(int64_t ns)
{
    struct timespec t = {ns / 1000000000, ns % 1000000000};
    /* lint-allow: nanosleep, counters of other processes and of the kernel wake nobody */
    nanosleep(&t, NULL);
}

void child_begin(void)
{
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigaction(SIGINT, &ignore, NULL);
}

void *shared_memory(size_t bytes)
{
    void *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    return memory;
}

void shared_memory_release(void *memory, size_t bytes)
{
    if (memory != NULL)
        munmap(memory, bytes);
}

static void futex_sleep(uint32_t *word, uint32_t value, int64_t timeout_ns)
{
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT, value, &t, NULL, 0);
}

static void futex_wake_all(uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

int phases_ready(struct phases *phases)
{
    __atomic_add_fetch(&phases->ready, 1, __ATOMIC_ACQ_REL);
    futex_wake_all(&phases->ready);
    int64_t limit = now_ns() + READY_LIMIT_NS;
    while (phase_now(phases) == PHASE_WAIT) {
        if (now_ns() > limit)
            return -ECANCELED;
        futex_sleep(&phases->phase, PHASE_WAIT, LOOK_NS);
    }
    return phases_given_up(phases) ? -ECANCELED : 0; /* others may even have finished meanwhile */
}

/* The first of those who come at the same time sets the stamp, before the phase that it belongs to can be
 * seen. */
static void stamp(int64_t *word) /* NOLINT(readability-non-const-parameter): the exchange writes */
{
    int64_t unset = 0;
    (void)__atomic_compare_exchange_n(word, &unset, now_ns(), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

void phases_advance(struct phases *phases, enum phase from)
{
    if (from == PHASE_WAIT)
        stamp(&phases->warm_from);
    else if (from == PHASE_WARM)
        stamp(&phases->measure_from);
    else if (from == PHASE_MEASURE)
        stamp(&phases->measure_to);
    uint32_t expected = from;
    if (__atomic_compare_exchange_n(&phases->phase, &expected, (uint32_t)from + 1, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE))
        futex_wake_all(&phases->phase);
}

static void stop(struct phases *phases)
{
    stamp(&phases->measure_to);
    __atomic_store_n(&phases->phase, PHASE_STOP, __ATOMIC_RELEASE);
    futex_wake_all(&phases->phase);
}

void phases_give_up(struct phases *phases)
{
    __atomic_store_n(&phases->given_up, 1, __ATOMIC_RELAXED);
    stop(phases);
}

/* What the main process keeps about its workers. */
struct crew {
    const pid_t *pids;
    uint32_t count, gone;
    bool ended[4096];
    bool failed;
};

static void look_for_ended(struct crew *crew)
{
    for (uint32_t i = 0; i < crew->count; i++) {
        int status;
        if (crew->ended[i] || waitpid(crew->pids[i], &status, WNOHANG) != crew->pids[i])
            continue;
        crew->ended[i] = true;
        crew->gone++;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            crew->failed = true;
    }
}

/* Sleeps while the phase is `phase`, `limit_ns` at most (0: no limit). */
static int stay(struct phases *phases, enum phase phase, int64_t limit_ns, struct crew *crew,
                const volatile sig_atomic_t *interrupted)
{
    int64_t until = now_ns() + limit_ns;
    while (phase_now(phases) == phase) {
        int64_t left = limit_ns == 0 ? LOOK_NS : until - now_ns();
        if (left <= 0)
            return -ETIME;
        futex_sleep(&phases->phase, phase, left < LOOK_NS ? left : LOOK_NS);
        look_for_ended(crew);
        if (crew->failed)
            return -ECHILD;
        if (crew->gone == crew->count)
            return 0;
        if (interrupted != NULL && *interrupted != 0)
            return -EINTR;
    }
    return 0;
}

static int wait_ready(struct phases *phases, struct crew *crew, const volatile sig_atomic_t *interrupted)
{
    int64_t limit = now_ns() + READY_LIMIT_NS;
    for (;;) {
        uint32_t ready = __atomic_load_n(&phases->ready, __ATOMIC_ACQUIRE);
        if (ready == crew->count)
            return 0;
        look_for_ended(crew);
        if (crew->gone > 0)
            return -ECHILD;
        if (interrupted != NULL && *interrupted != 0)
            return -EINTR;
        if (now_ns() > limit)
            return -ETIMEDOUT;
        futex_sleep(&phases->ready, ready, LOOK_NS / 10);
    }
}

static int wait_ended(struct crew *crew)
{
    int64_t limit = now_ns() + END_LIMIT_NS;
    while (crew->gone < crew->count) {
        look_for_ended(crew);
        if (crew->gone == crew->count)
            break;
        if (now_ns() > limit) {
            for (uint32_t i = 0; i < crew->count; i++)
                if (!crew->ended[i])
                    kill(crew->pids[i], SIGKILL);
            for (uint32_t i = 0; i < crew->count; i++)
                if (!crew->ended[i])
                    waitpid(crew->pids[i], NULL, 0);
            return -ETIMEDOUT;
        }
        pause_ns(1000000);
    }
    return crew->failed ? -ECHILD : 0;
}

int phases_await_ready(struct phases *phases, const pid_t *pids, uint32_t count,
                       const volatile sig_atomic_t *interrupted)
{
    struct crew *crew = calloc(1, sizeof *crew);
    if (crew == NULL || count > array_count(crew->ended)) {
        free(crew);
        phases_give_up(phases);
        return -ENOMEM;
    }
    crew->pids = pids;
    crew->count = count;
    int result = wait_ready(phases, crew, interrupted);
    if (result != 0) {
        phases_give_up(phases);
        (void)wait_ended(crew);
    }
    free(crew);
    return result;
}

int phases_lead(struct phases *phases, const pid_t *pids, uint32_t count,
                const volatile sig_atomic_t *interrupted)
{
    struct crew *crew = calloc(1, sizeof *crew);
    if (crew == NULL || count > array_count(crew->ended)) {
        free(crew);
        phases_give_up(phases);
        return -ENOMEM;
    }
    crew->pids = pids;
    crew->count = count;
    int result = wait_ready(phases, crew, interrupted);
    if (result == 0) {
        check_bug(phases->measure_ns != 0 || phases->measure_work != 0);
        phases_advance(phases, PHASE_WAIT);
        if (phases->warm_ns == 0 && phases->warm_work == 0)
            phases_advance(phases, PHASE_WARM);
        for (enum phase phase = PHASE_WARM; result == 0 && phase < PHASE_STOP; phase++) {
            result = stay(phases, phase, phase == PHASE_WARM ? phases->warm_ns : phases->measure_ns, crew,
                          interrupted);
            if (result == -ETIME) {
                phases_advance(phases, phase);
                result = 0;
            }
        }
    }
    if (result != 0)
        phases_give_up(phases);
    stop(phases);
    int ended = wait_ended(crew);
    free(crew);
    return result != 0 ? result : ended;
}
