/* phases.h: one measured run of several processes: wait for each other, warm up, measure, stop.
 *
 * Happy path
 *   1. The main process makes a struct phases in shared memory and forks its workers.
 *   2. Each worker prepares itself, calls phases_ready() and sleeps there until all are ready: WARM begins
 *      for all at once.
 *   3. WARM ends after `warm_ns`, or when a worker has done its share `warm_work` (whichever is first):
 *      MEASURE.
 *   4. MEASURE ends after `measure_ns`, or when a worker has done its share `measure_work`: STOP.
 *   5. Workers finish what is in flight (it still counts as a sample if it was begun in MEASURE) and exit.
 *
 * The main process sleeps in a futex meanwhile: it takes no time from the two cores that are measured.
 *
 * Failure modes: a worker that fails calls phases_give_up(); one that dies is seen by waitpid: the run
 * stops.
 *
 * Invariants: the phase only grows; measure_from is set before MEASURE is visible, measure_to before STOP
 * is. */
#ifndef WALRUS_BENCH_PHASES_H
#define WALRUS_BENCH_PHASES_H

#include <signal.h>
#include <sys/types.h>
#include <time.h>

#include "../shared/base.h"

enum phase { PHASE_WAIT, PHASE_WARM, PHASE_MEASURE, PHASE_STOP };

struct phases {
    uint32_t phase;
    uint8_t separate0[60];
    uint32_t ready;
    uint8_t separate1[60];
    uint32_t given_up; /* somebody failed: workers by count stop too */
    uint32_t separate2;
    int64_t warm_from, measure_from, measure_to; /* CLOCK_MONOTONIC, ns */
    int64_t warm_ns, measure_ns;                 /* 0: until the work is done */
    uint64_t warm_work,
        measure_work; /* share of each worker, in units of the caller's; 0: until the time is over */
};

static inline int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static inline enum phase phase_now(const struct phases *phases)
{
    return (enum phase)__atomic_load_n(&phases->phase, __ATOMIC_ACQUIRE);
}

/* Waits for nothing but time: between two looks at something that cannot wake us. */
void pause_ns(int64_t ns);
/* In a child: dies with its parent; Ctrl-C, which goes to the whole terminal, is the parent's. */
void child_begin(void);

/* Memory shared with processes forked later; NULL if there is none. */
void *shared_memory(size_t bytes) must_check;
void shared_memory_release(void *memory, size_t bytes);

/* Worker: ready, and wait for the start. 0, or -ECANCELED if the run was given up. */
int phases_ready(struct phases *phases) must_check;
/* Worker: `work` units done since the start; moves the phase on if its share is done. */
static inline bool phases_share_done(const struct phases *phases, enum phase phase, uint64_t work)
{
    if (phase == PHASE_WARM)
        return phases->warm_work != 0 && work >= phases->warm_work;
    return phase == PHASE_MEASURE && phases->measure_work != 0 &&
           work >= phases->warm_work + phases->measure_work;
}
void phases_advance(struct phases *phases, enum phase from);
/* Anyone: the run has failed, stop now. */
void phases_give_up(struct phases *phases);
static inline bool phases_given_up(const struct phases *phases)
{
    return __atomic_load_n(&phases->given_up, __ATOMIC_RELAXED) != 0;
}

/* Main process: waits until all are ready, and no longer; on error all have ended. Then phases_lead. */
int phases_await_ready(struct phases *phases, const pid_t *pids, uint32_t count,
                       const volatile sig_atomic_t *interrupted) must_check;
/* Main process: waits until all are ready, leads through the phases and waits for the workers to end.
 * `pids` are children; one that ends with another status than 0 stops the run. 0; -ECHILD a worker failed;
 * -EINTR `interrupted` became non-zero; -ETIMEDOUT workers did not end. */
int phases_lead(struct phases *phases, const pid_t *pids, uint32_t count,
                const volatile sig_atomic_t *interrupted) must_check;

#endif
