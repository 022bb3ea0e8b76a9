/* worker.c: the lane of the recorder and the simulator, in a process of its own: an assert of the log ends
 * that process only, and is told as what it is. */
#include <malloc.h>
#include <time.h>

#include "../sim/explore.h"
#include "torture.h"

/* One run of the simulator: random work, crashes and faults on a disk in memory, the user's options. */
static void simulate(const struct torture *torture, uint64_t seed)
{
    struct log_options log = {.segment_bytes = torture->segment_bytes,
                              .memory_bytes = torture->memory_bytes,
                              .commit_align = torture->commit_align,
                              .level = torture->level,
                              .interval_ns = torture->interval_ns,
                              .prepare_only_spare = true};
    struct explore_options options = explore_defaults();
    struct torture_shared *shared = torture->shared;
    uint64_t trace;
    options.log = &log;
    options.no_damage = true; /* rot is not what crashes do; `walrus check` is there for it */
    shared->counts.beat++;
    snprintf(shared->counts.place, sizeof shared->counts.place, "run %llu of the simulator",
             (unsigned long long)seed);
    torture_say_again(torture, "simulator", seed);
    struct explore_result result = explore_random(seed, &options, &trace);
    shared->counts.runs++;
    shared->counts.images += result.images;
    shared->counts.recoveries += result.recoveries;
    if (result.failed)
        torture_fail(shared, shared->again, "simulator: %s", result.text);
}

static int64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int torture_work(const struct torture *torture)
{
    uint64_t run = 0;
    struct error err = {0};
    /* Each of thousands of starts takes megabytes and gives them back: the kernel need not hear of it. */
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
    for (uint64_t store = 0; store == 0 || !torture_ended(torture); store++) {
        int64_t begin = clock_ns();
        torture_say_again(torture, "recorder", torture->seed);
        int rc = torture->recorder ? record_store(torture, torture->seed + store, &err) : 0;
        if (rc != 0) {
            snprintf(torture->shared->cannot, sizeof torture->shared->cannot, "recorder: %.490s", err.text);
            return 1;
        }
        /* As long as the store has taken. */
        int64_t end = clock_ns() + (clock_ns() - begin);
        do {
            if (!torture->simulator || (run > 0 && torture_ended(torture)))
                break;
            simulate(torture, torture->seed + run++);
        } while (clock_ns() < end);
    }
    return 0;
}
