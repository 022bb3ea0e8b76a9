/* kills.c: walrusd with the user's options, killed under producers that keep a ledger: tests/soak's job
 * exactly-once, in small rounds. */
#include "../soak/soak.h"
#include "torture.h"

static const struct torture *present; /* for the three calls below, which know only their run */
static void (*present_tell)(const struct torture *torture);

bool run_goes_on(const struct run *run, uint64_t done)
{
    return done == 0 || (now_ns() < run->until_ns && !torture_ended(present));
}

void run_progress(struct run *run, const char *format, ...)
{
    (void)format;
    present->shared->kills = run->kills;
    present->shared->kill_batches = run->batches;
    present_tell(present);
}

int run_interrupted(struct error *err)
{
    return __atomic_load_n(&present->shared->stop, __ATOMIC_ACQUIRE) != 0
               ? error_set(err, -EINTR, "interrupted")
               : 0;
}

int torture_kill(const struct torture *torture, void (*tell)(const struct torture *torture),
                 struct torture_kills *out, struct error *err)
{
    struct soak soak = {.walrusd = torture->walrusd,
                        .folder = torture->folder,
                        .prefix = "walrus-kill",
                        .options = torture->words,
                        .option_count = torture->word_count,
                        .ask_durable = torture->answers_early,
                        .is_short = true,
                        .seed = torture->seed};
    struct run run = {.soak = &soak,
                      .name = "kill",
                      .required = 10, /* of a round, each on a store of its own */
                      .random = torture->seed,
                      .started_ns = now_ns(),
                      .until_ns = torture->until_ns,
                      .output = -1};
    present = torture;
    present_tell = tell;
    int rc = place_make(&run, err);
    if (rc == 0)
        rc = job_exactly_once(&run, err);
    if (rc < 0 && rc != -EINTR)
        broker_print_log(&run);
    place_remove(&run);
    present->shared->kills = run.kills;
    present->shared->kill_batches = run.batches;
    if (rc == SOAK_SKIPPED) {
        snprintf(out->skipped, sizeof out->skipped, "%.250s", err->text);
        rc = 0;
    }
    return rc;
}
