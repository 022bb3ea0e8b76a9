/* faults.c: every op of a scenario fails, and every op of a recovery; see explore.h.
 *
 *   1. Op n of the scenario is hit, n = 1, 2, ..., until the scenario ends before that; once for each kind of
 *      fault: once or from then on; with old, new or mixed bytes left behind; short. If the fault was a
 *      single one the log must be writable again afterwards (G9), unless it has fail-stopped.
 *   2. Then the broker is killed or power goes, and what follows is recovered and judged, twice.
 *   3. Of a crash image's recovery (fail_recovery) op n is hit likewise. It may then refuse, or serve; what
 *      it serves is judged. The next one, on a sound disk, must serve, and show what the image had (G6, G14).
 *      */
#include "explorer.h"

static const struct fault fault_kinds[] = {
    {.count = 1, .error = -EIO, .leaves = LEAVES_OLD},
    {.count = 1, .error = -EIO, .leaves = LEAVES_NEW},
    {.count = 2, .error = -EIO, .leaves = LEAVES_MIX},
    {.count = 1, .error = -ENOSPC, .leaves = LEAVES_OLD},
    {.count = 1, .short_count = 511, .leaves = LEAVES_MIX},
    {.count = 1, .short_count = 4096, .leaves = LEAVES_OLD},
    {.count = FAULT_FOR_EVER, .error = -EIO, .leaves = LEAVES_NEW},
    {.count = FAULT_FOR_EVER, .error = -ENOSPC, .leaves = LEAVES_OLD},
};

/* The life with the fault in it. False: the scenario ended before op n. */
static bool fault_life(struct explorer *explorer, struct branch *branch, const struct fault *kind, uint64_t n)
{
    struct run_state run;
    begin_act(explorer, &run, branch);
    struct fault fault = *kind;
    fault.skip = n - 1;
    disk_set_fault(run.disk, &fault);
    explorer->scenario->act(&run);
    bool reached = disk_events(run.disk) >= n;
    if (reached && kind->count < 3 && run_alive(&run)) {
        run_idle(&run, INT64_C(10000000000));
        uint64_t acked = run.acked;
        run_write(&run, 1, 3, 2, 50);
        run_settle(&run);
        if (run_alive(&run) && run.acked == acked)
            ledger_fail(&branch->ledger, "G9: nothing can be written although the fault is over");
    }
    explorer->result.faults += disk_faults_hit(run.disk);
    finish_life(&run, branch);
    explorer->result.points += reached;
    return reached;
}

static void judge_after_fault(struct explorer *explorer, const struct branch *from, uint64_t n, uint32_t kind)
{
    for (uint32_t i = 0; i < 5 && explorer_goes_on(explorer); i++) {
        struct branch branch;
        branch_copy(&branch, from);
        snprintf(explorer->place, sizeof explorer->place, "op %llu hit by fault %u, end %u",
                 (unsigned long long)n, kind, i);
        branch_crash(&branch, i == 0 ? CRASH_KILL : CRASH_POWER,
                     i < 3 ? choices_mask(i % 2 == 0 ? UINT64_MAX : 0)
                           : explorer_chance(explorer, n * 17 + i));
        explorer->result.images++;
        explorer->result.different++;
        branch_judge(explorer, &branch, false);
        if (!branch_broken(explorer, &branch) && i % 2 == 0) {
            branch_crash(&branch, CRASH_POWER, choices_mask(0));
            explorer->result.images++;
            explorer->result.different++;
            branch_judge(explorer, &branch, false);
        }
        branch_broken(explorer, &branch);
        branch_free(&branch);
    }
}

struct explore_result explore_faults(const struct scenario *scenario, const struct explore_options *options)
{
    struct explorer explorer = explorer_begin(scenario, options);
    struct branch base;
    branch_base(&explorer, &base);
    branch_broken(&explorer, &base);
    for (uint32_t kind = 0; kind < array_count(fault_kinds); kind++) {
        bool more = true;
        for (uint64_t n = 1 + kind % options->fault_step; more && explorer_goes_on(&explorer);
             n += options->fault_step) {
            struct branch branch;
            branch_copy(&branch, &base);
            snprintf(explorer.place, sizeof explorer.place, "op %llu hit by fault %u", (unsigned long long)n,
                     kind);
            more = fault_life(&explorer, &branch, &fault_kinds[kind], n);
            if (more && !branch_broken(&explorer, &branch))
                judge_after_fault(&explorer, &branch, n, kind);
            branch_free(&branch);
        }
    }
    branch_free(&base);
    return explorer_end(&explorer);
}

/* ------------------------------------------------------------------------------ recovery */

/* The recovery of the branch, with op n hit. False: it was over before that. */
static bool failed_start(struct explorer *explorer, struct branch *branch, const struct fault *kind,
                         uint64_t n)
{
    struct run_state run;
    begin_life(explorer, &run, branch);
    explorer->result.recoveries++;
    struct fault fault = *kind;
    fault.skip = n - 1;
    disk_set_fault(run.disk, &fault);
    if (run_start(&run))
        run_check(&run);
    bool reached = disk_events(run.disk) >= n;
    explorer->result.faults += disk_faults_hit(run.disk);
    finish_life(&run, branch);
    return reached;
}

void fail_recovery(struct explorer *explorer, const struct branch *from, uint64_t number)
{
    char place[sizeof explorer->place];
    memcpy(place, explorer->place, sizeof place);
    uint64_t lives = explorer->lives;
    bool more = true;
    for (uint64_t n = 1; more && explorer_goes_on(explorer); n++) {
        /* Each kind meets each op in some image. */
        uint32_t kind = (uint32_t)((n + number) % array_count(fault_kinds));
        struct branch failed;
        branch_copy(&failed, from);
        explorer->lives = lives;
        more = failed_start(explorer, &failed, &fault_kinds[kind], n);
        snprintf(explorer->place, sizeof explorer->place, "%.150s; then fault %u at op %llu of the recovery",
                 place, kind, (unsigned long long)n);
        if (!branch_broken(explorer, &failed)) {
            judge_image(explorer, &failed, CRASH_KILL, choices_mask(UINT64_MAX), 1);
            judge_image(explorer, &failed, CRASH_POWER, choices_mask(n % 2 == 0 ? 0 : UINT64_MAX), 1);
            judge_image(explorer, &failed, CRASH_POWER, explorer_chance(explorer, n * 13 + lives), 1);
        }
        branch_free(&failed);
    }
    memcpy(explorer->place, place, sizeof place);
}
