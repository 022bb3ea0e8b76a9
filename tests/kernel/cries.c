/* cries.c: do the other jobs notice a broker that breaks its promises? Each proof is a broker, or a device,
 * with one thing taken away; its run must end with the right violation, else the job fails. Timing is the
 * machine's: a run may be over before the broker did anything wrong, so that some get several tries.
 *
 *   1. Kills of a broker whose answers came before anything was written, held against a ledger that believes
 *      them.
 *   2. A device whose recorder leaves the flushes out.
 *   3. A broker whose flushes are swallowed by a preloaded module (no_flush.c).
 *   4. A broker that flushes again when a flush has failed, and believes the second one: what the first one
 *      dropped is lost.
 *   5. A broker that takes a failed write of a group for a good one.
 *   6. A broker that takes failed writes and flushes for good ones, on a device that is full.
 *   7. A broker that does not wait for the locks on the segment files. */
#include <unistd.h>

#include "crash.h"

#define IMAGES_EACH 20u
#define MOST_KILLS  40u

static int answers_too_early(struct work *work, struct error *err)
{
    return kill_too_early(work, MOST_KILLS, err);
}

static int crash_cry(struct work *work, bool lying, const char *broken, struct error *err)
{
    struct crash crash;
    int rc = crash_begin(&crash, work, "ext4", err);
    crash.lying = lying;
    crash.broken = broken;
    crash.only_flushed = true; /* else the file system itself may be beyond repair, which proves nothing */
    if (rc == 0)
        rc = crash_round(&crash, IMAGES_EACH, err);
    crash_end(&crash);
    return rc;
}

static int recorder_lies(struct work *work, struct error *err)
{
    return crash_cry(work, true, NULL, err);
}

static int flushes_swallowed(struct work *work, struct error *err)
{
    return crash_cry(work, false, "flushes", err);
}

static const struct proof {
    const char *what;
    int (*run)(struct work *work, struct error *err);
    const char *words, *other_words; /* of the violation */
    bool module;                     /* needs --no-flush */
    uint32_t tries;
} proofs[] = {
    {"kills of a broker that answers too early", answers_too_early, "LOST", "LOST", false, 1},
    {"a recorder without flushes", recorder_lies, "LOST", "LOST", false, 1},
    {"a broker without flushes", flushes_swallowed, "LOST", "LOST", true, 1},
    /* In vain where the failing flush was one of the journal: that is no good a second time, either. */
    {"a failing flush, and a broker that tries again", failing_flush_broken, "LOST", "LOST", true, 20},
    /* What was written behind it may prove that it is damage, not the end of the log. */
    {"failing writes of groups, and a broker that goes on", failing_group_broken, "LOST",
     "ended with status 0x100 before it was ready", true, 3},
    {"a full device, and a broker that goes on", full_broken, "LOST", "LOST", true, 3},
    {"a broker that does not wait for locks", successor_broken, "G11: a broker serves",
     "G11: a broker said that it waits, and serves", true, 3},
};

static int must_cry(struct work *work, const struct proof *proof, struct error *err)
{
    struct error other = {0};
    int64_t begin = now_ns();
    int rc = 0;
    for (uint32_t try = 1; try <= proof->tries; try++) {
        *err = (struct error){0};
        rc = proof->run(work, err);
        store_remove(&work->run);
        if (rc == SOAK_SKIPPED || rc == -EINTR)
            return rc;
        if (rc < 0 &&
            (strstr(err->text, proof->words) != NULL || strstr(err->text, proof->other_words) != NULL)) {
            fprintf(stderr, "kernel: %s: %s: as it must be, at try %u, %.1f s: %s\n", work->run.name,
                    proof->what, try, (double)(now_ns() - begin) / 1e9, err->text);
            *err = (struct error){0};
            return 0;
        }
        other = *err;
        fprintf(stderr, "kernel: %s: %s: try %u was in vain: %s\n", work->run.name, proof->what, try,
                rc < 0 ? err->text : "passed");
    }
    return error_set(err, -EPROTO, "%s: in %u tries nothing was noticed (%d: %.300s)", proof->what,
                     proof->tries, rc, rc < 0 ? other.text : "passed");
}

int job_cries(struct work *work, struct error *err)
{
    bool no_module = work->no_flush == NULL || access(work->no_flush, R_OK) != 0;
    uint64_t done = 0;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < array_count(proofs); i++) {
        if (proofs[i].module && no_module)
            continue;
        rc = must_cry(work, &proofs[i], err);
        done += rc == 0;
    }
    work->done = done;
    if (rc == 0)
        snprintf(work->run.totals, sizeof work->run.totals, "%llu proofs that a violation is noticed%s",
                 (unsigned long long)done,
                 no_module ? " (without --no-flush: not those of broken brokers)" : "");
    return rc;
}
