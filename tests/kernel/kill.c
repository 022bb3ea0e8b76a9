/* kill.c: kill -9 in a loop.
 *
 *   1. A broker starts with random options, everything is read back and judged, what was open is settled.
 *   2. Eight producers work for a random time, then the broker is killed, somewhere.
 *   3. They note what has no answer and park; back to 1. After some kills the store has become large: the
 *      last life is stopped with SIGTERM, judged once more, and a new store begins. */
#include <signal.h>

#include "kernel.h"

#define BYTES_A_STORE (UINT64_C(8) << 20)
#define DISK          (UINT64_C(1) << 30)

struct totals {
    uint64_t stores, acked, failed, unknown, duplicates, there;
};

/* A broker on the store, everything judged and settled. */
static int next_life(struct work *work, struct ledger *ledger, struct sight *sight, struct daemon *daemon,
                     struct error *err)
{
    struct life_options life;
    char words[256] = "";
    life_options_random(&life, false, &work->run.random);
    for (size_t i = 0, at = 0; life.options.arguments[i] != NULL && at < sizeof words; i++)
        at += (size_t)snprintf(words + at, sizeof words - at, " %s", life.options.arguments[i]);
    int rc = daemon_start(work, &life.options, daemon, err);
    if (rc == 0)
        rc = ledger_judge(work, ledger, work_position(work), sight, err);
    if (rc == 0)
        rc = ledger_settle(work, ledger, sight, err);
    return rc < 0 ? error_wrap(err, "life %llu, walrusd%s", (unsigned long long)work->lives, words) : 0;
}

/* Works for a random time, mostly short; killed in the middle of it. */
static int work_and_die(struct work *work, struct ledger *ledger, struct daemon *daemon, struct error *err)
{
    uint64_t *random = &work->run.random;
    uint64_t most = random_below(random, 8) == 0 ? 150 : 30;
    producers_go(ledger);
    int rc = random_below(random, 4) == 0 ? 0 : producers_await_acks(ledger, random_below(random, 60), err);
    if (rc == 0)
        pause_ns((int64_t)random_below(random, most * (uint64_t)NS_PER_MS));
    daemon_kill(daemon);
    if (rc == 0)
        rc = producers_await_parked(ledger, err);
    work->done += rc == 0;
    return rc;
}

/* `needed`: the level from which on an answer is believed. */
static int one_store(struct work *work, uint8_t needed, struct totals *totals, struct error *err)
{
    struct ledger *ledger = ledger_new(needed);
    struct sight *sight = sight_new();
    struct daemon daemon = {0};
    pid_t pids[PRODUCERS] = {0};
    int rc = ledger != NULL && sight != NULL ? 0 : error_set(err, -ENOMEM, "out of memory");
    if (rc == 0)
        rc = producers_start(work, ledger, pids, err);
    uint64_t first = work->done;
    while (rc == 0 && work_goes_on(work) && !ledger_is_full(ledger, BYTES_A_STORE)) {
        rc = next_life(work, ledger, sight, &daemon, err);
        if (rc == 0)
            rc = work_and_die(work, ledger, &daemon, err);
        run_progress(&work->run, "%llu kills", (unsigned long long)work->done);
    }
    if (rc == 0)
        rc = next_life(work, ledger, sight, &daemon, err);
    if (rc == 0)
        rc = daemon_stop(&daemon, err);
    if (rc == 0)
        rc = next_life(work, ledger, sight, &daemon, err);
    if (rc < 0 && work->done > first)
        (void)error_wrap(err, "kill %llu of this store", (unsigned long long)(work->done - first));
    daemon_kill(&daemon);
    producers_end(pids);
    if (ledger != NULL) {
        totals->stores++;
        totals->acked += ledger->acked;
        totals->failed += ledger->failed;
        totals->unknown += ledger->unknown;
        totals->duplicates += ledger->duplicates;
    }
    if (sight != NULL)
        totals->there += sight->there;
    if (rc == 0)
        store_remove(&work->run);
    sight_free(sight);
    ledger_free(ledger);
    return rc;
}

int job_kill(struct work *work, struct error *err)
{
    struct totals totals = {0};
    int64_t begin = now_ns();
    int rc = place_needs(&work->run, DISK, err);
    while (rc == 0 && work_goes_on(work))
        rc = one_store(work, WALRUS_LEVEL_WRITTEN, &totals, err);
    if (rc == 0)
        snprintf(
            work->run.totals, sizeof work->run.totals,
            "%llu kills (%.1f a second), %llu stores: %llu batches acknowledged, %llu refused or given up, "
            "%llu unknown and resolved, %llu sent again and known; %llu read back at the last",
            (unsigned long long)work->done, (double)work->done / ((double)(now_ns() - begin) / 1e9),
            (unsigned long long)totals.stores, (unsigned long long)totals.acked,
            (unsigned long long)totals.failed, (unsigned long long)totals.unknown,
            (unsigned long long)totals.duplicates, (unsigned long long)totals.there);
    return rc;
}

int kill_too_early(struct work *work, uint64_t most, struct error *err)
{
    struct totals totals = {0};
    uint64_t count = work->count, done = work->done;
    int rc = 0;
    work->count = done + most;
    while (rc == 0 && work->done < work->count)
        rc = one_store(work, WALRUS_LEVEL_ACCEPTED, &totals, err);
    work->count = count;
    work->done = done;
    store_remove(&work->run);
    return rc;
}
