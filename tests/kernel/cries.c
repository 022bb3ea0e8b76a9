/* cries.c: do the other jobs notice a broker that loses what it has acknowledged? Each proof is a broker, or
 * a device, with one thing taken away; its run must end with a lost batch, else the job fails.
 *
 *   1. A device whose recorder leaves the flushes out.
 *   2. A broker whose flushes are swallowed by a preloaded module.
 *   3. Kills of a broker whose answers came before anything was written, held against a ledger that believes
 *      them. */
#include <unistd.h>

#include "crash.h"

#define IMAGES_EACH 20u
#define MOST_KILLS  40u

static int must_cry(struct work *work, uint64_t *proofs, const char *what, int rc, struct error *err)
{
    bool cried = rc == -EBADMSG && strstr(err->text, "LOST") != NULL;
    if (rc == SOAK_SKIPPED || rc == -EINTR)
        return rc;
    if (!cried) {
        struct error other = *err;
        return error_set(err, -EPROTO, "%s: nothing was noticed to be lost (%d: %.300s)", what, rc,
                         rc < 0 ? other.text : "passed");
    }
    fprintf(stderr, "kernel: %s: %s: as it must be: %s\n", work->run.name, what, err->text);
    *err = (struct error){0};
    (*proofs)++;
    return 0;
}

static int crash_cry(struct work *work, bool lying, const char *preload, struct error *err)
{
    struct crash crash;
    int rc = crash_begin(&crash, work, "ext4", err);
    crash.lying = lying;
    crash.preload = preload;
    crash.only_flushed = true; /* else the file system itself may be beyond repair, which proves nothing */
    if (rc == 0)
        rc = crash_round(&crash, IMAGES_EACH, err);
    crash_end(&crash);
    return rc;
}

int job_cries(struct work *work, struct error *err)
{
    bool no_module = work->no_flush == NULL || access(work->no_flush, R_OK) != 0;
    uint64_t proofs = 0;
    int rc = must_cry(work, &proofs, "kills of a broker that answers too early",
                      kill_too_early(work, MOST_KILLS, err), err);
    if (rc == 0)
        rc = must_cry(work, &proofs, "a recorder without flushes", crash_cry(work, true, NULL, err), err);
    if (rc == 0 && !no_module)
        rc = must_cry(work, &proofs, "a broker without flushes", crash_cry(work, false, work->no_flush, err),
                      err);
    work->done = proofs;
    if (rc == 0)
        snprintf(work->run.totals, sizeof work->run.totals, "%llu proofs that a loss is noticed%s",
                 (unsigned long long)proofs,
                 no_module ? " (without --no-flush: not that of a broker without flushes)" : "");
    return rc;
}
