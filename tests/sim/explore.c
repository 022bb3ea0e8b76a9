/* explore.c: see explore.h.
 *
 * A branch is an image and the ledger that belongs to it. Lives change copies of both, so that one prefix
 * can be tried with many ends. */
#include "explore.h"

#include <signal.h>
#include <unistd.h>

struct branch {
    struct image *image;
    struct ledger ledger;
    enum end end; /* how the life before ended */
};

struct explorer {
    const struct scenario *scenario;
    struct explore_options options;
    struct explore_result result;
    uint64_t *known; /* images already judged: a hash set */
    uint64_t known_count, known_capacity;
    uint64_t lives;
    char place[256];
};

static const char *now_at = "";
static const struct scenario *now_in;

static void on_abort(int signal_number)
{
    const char *name = now_in == NULL ? "" : now_in->name;
    const char *const parts[] = {"walrus-sim: the log crashed in scenario ", name, ", ", now_at, "\n"};
    for (uint32_t i = 0; i < array_count(parts); i++) {
        if (write(2, parts[i], strlen(parts[i])) < 0)
            break;
    }
    raise(signal_number); /* the handler is gone after its first use */
}

static void watch_aborts(const struct explorer *explorer)
{
    now_at = explorer->place;
    now_in = explorer->scenario;
    struct sigaction action = {.sa_handler = on_abort, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGABRT, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
}

struct explore_options explore_defaults(void)
{
#if defined(__SANITIZE_ADDRESS__)
    /* Here the sanitizers look for wrong memory, on the same paths; the search for wrong images is the plain
     * build's. */
    return (struct explore_options){
        .bits = 3, .images = 6, .nested_every = 200, .twice_every = 8, .fault_step = 7, .seed = 1};
#endif
    return (struct explore_options){
        .bits = 7, .images = 40, .nested_every = 60, .twice_every = 4, .fault_step = 1, .seed = 1};
}

static void branch_copy(struct branch *to, const struct branch *from)
{
    to->image = image_copy(from->image);
    ledger_copy(&to->ledger, &from->ledger);
    to->end = from->end;
}

static void branch_free(struct branch *branch)
{
    image_free(branch->image);
    ledger_free(&branch->ledger);
}

static bool broken(struct explorer *explorer, const struct branch *branch)
{
    if (branch->ledger.failure[0] == 0 || explorer->result.failed)
        return explorer->result.failed;
    explorer->result.failed = true;
    snprintf(explorer->result.text, sizeof explorer->result.text,
             "%s\n  in scenario %s, %s\n  again with: walrus-sim --scenario %s", branch->ledger.failure,
             explorer->scenario->name, explorer->place, explorer->scenario->name);
    return true;
}

static bool known_before(struct explorer *explorer, uint64_t hash)
{
    if (explorer->known_count * 2 >= explorer->known_capacity) {
        uint64_t capacity = explorer->known_capacity == 0 ? 4096 : explorer->known_capacity * 2;
        uint64_t *known = calloc(capacity, sizeof *known);
        check_bug(known != NULL);
        for (uint64_t i = 0; i < explorer->known_capacity; i++) {
            uint64_t at = explorer->known[i] & (capacity - 1);
            while (explorer->known[i] != 0 && known[at] != 0)
                at = (at + 1) & (capacity - 1);
            if (explorer->known[i] != 0)
                known[at] = explorer->known[i];
        }
        free(explorer->known);
        explorer->known = known;
        explorer->known_capacity = capacity;
    }
    hash |= 1;
    uint64_t at = hash & (explorer->known_capacity - 1);
    while (explorer->known[at] != 0 && explorer->known[at] != hash)
        at = (at + 1) & (explorer->known_capacity - 1);
    if (explorer->known[at] == hash)
        return true;
    explorer->known[at] = hash;
    explorer->known_count++;
    return false;
}

static void begin(struct explorer *explorer, struct run_state *run, struct branch *branch)
{
    run_begin(run, branch->image, &branch->ledger, explorer->options.seed * 1000003 + explorer->lives++);
    run->end_before = branch->end;
    branch->image = NULL;
    if (explorer->options.lie != NULL)
        disk_set_fault(run->disk, explorer->options.lie);
    if (explorer->options.log != NULL)
        run->options = *explorer->options.log;
    if (explorer->options.trace != NULL)
        disk_set_trace(run->disk, explorer->options.trace);
}

/* The scenario's own life: the same seed each time, so that event n is always the same event. */
static void begin_act(struct explorer *explorer, struct run_state *run, struct branch *branch)
{
    uint64_t lives = explorer->lives;
    explorer->lives = 7;
    begin(explorer, run, branch);
    explorer->lives = lives;
}

static void finish(struct run_state *run, struct branch *branch)
{
    if (run->checked)
        branch->end = END_NONE;
    if (branch->end != END_POWER)
        branch->end = run->stopped ? END_STOP : END_KILL;
    branch->image = run_end(run);
}

/* Takes the machine or the broker away. */
static void crash(struct branch *branch, enum crash crash, struct choices choices)
{
    struct image *next = image_crash(branch->image, crash, &choices);
    image_free(branch->image);
    branch->image = next;
    if (branch->end != END_STOP || crash == CRASH_POWER)
        branch->end = crash == CRASH_POWER || branch->end == END_POWER ? END_POWER : END_KILL;
}

static void base_branch(struct explorer *explorer, struct branch *branch)
{
    *branch = (struct branch){.image = image_new(UINT64_MAX)};
    ledger_init(&branch->ledger);
    if (explorer->scenario->before == NULL)
        return;
    struct run_state run;
    begin_act(explorer, &run, branch);
    explorer->scenario->before(&run);
    finish(&run, branch);
    if (!run.stopped)
        crash(branch, CRASH_KILL, choices_mask(UINT64_MAX));
}

/* Starts, reads everything, judges, writes one more batch. Leaves the image of a kill after that. */
static void judge(struct explorer *explorer, struct branch *branch)
{
    struct run_state run;
    begin(explorer, &run, branch);
    explorer->result.recoveries++;
    if (run_start(&run)) {
        run_check(&run);
        run_write(&run, 0, 1, 2, 64);
        run_settle(&run);
        if (run_alive(&run) && run.acked == 0)
            ledger_fail(&branch->ledger, "nothing can be written after a start");
        run_resubmit(&run);
    }
    finish(&run, branch);
}

/* Crashes the recovery of `from` before each of its events, and recovers again. */
static void crash_recovery(struct explorer *explorer, const struct branch *from)
{
    char place[sizeof explorer->place];
    memcpy(place, explorer->place, sizeof place);
    bool more = true;
    for (uint64_t event = 1; more && !explorer->result.failed; event++) {
        for (uint32_t kind = 0; kind < 5 && !explorer->result.failed; kind++) {
            struct branch branch;
            struct run_state run;
            branch_copy(&branch, from);
            uint64_t lives = explorer->lives;
            begin(explorer, &run, &branch);
            explorer->lives = kind == 4 ? lives + 1 : lives;
            disk_crash_at(run.disk, event);
            if (run_start(&run))
                run_check(&run);
            more = disk_gone(run.disk);
            finish(&run, &branch);
            snprintf(explorer->place, sizeof explorer->place,
                     "%.180s, crash %u in the recovery before its event %llu", place, kind,
                     (unsigned long long)event);
            crash(&branch, kind < 2 ? CRASH_KILL : CRASH_POWER,
                  kind == 4 ? choices_chance(event * 31 + lives)
                            : choices_mask(kind % 2 == 0 ? 0 : UINT64_MAX));
            if (!broken(explorer, &branch))
                judge(explorer, &branch);
            broken(explorer, &branch);
            branch_free(&branch);
        }
    }
}

static void judge_image(struct explorer *explorer, const struct branch *prefix, enum crash kind,
                        struct choices choices)
{
    struct branch branch;
    branch_copy(&branch, prefix);
    crash(&branch, kind, choices);
    explorer->result.images++;
    if (known_before(explorer,
                     image_hash(branch.image) ^ ledger_hash(&branch.ledger) * 3 ^ (uint64_t)branch.end)) {
        branch_free(&branch);
        return;
    }
    uint64_t number = ++explorer->result.different;
    const struct explore_options *options = &explorer->options;
    if (options->nested_every > 0 && number % options->nested_every == 1)
        crash_recovery(explorer, &branch);
    if (!explorer->result.failed)
        judge(explorer, &branch);
    if (!broken(explorer, &branch) && options->twice_every > 0 && number % options->twice_every == 0) {
        /* What a start has served is durable, and so is what it has answered since. */
        crash(&branch, CRASH_POWER, number % 8 == 0 ? choices_chance(number) : choices_mask(0));
        judge(explorer, &branch);
        broken(explorer, &branch);
    }
    branch_free(&branch);
}

static void judge_all_images(struct explorer *explorer, const struct branch *prefix, uint64_t event)
{
    for (uint32_t kind = 0; kind < 2; kind++) {
        uint32_t questions = image_questions(prefix->image, (enum crash)kind);
        bool all = questions <= explorer->options.bits;
        uint64_t masks = all ? UINT64_C(1) << questions : 2;
        uint64_t chances = all ? min_u64(explorer->options.images / 8, questions) : explorer->options.images;
        if (explorer->scenario->big)
            chances = (chances + 3) / 4;
        for (uint64_t i = 0; i < masks + chances && !explorer->result.failed; i++) {
            struct choices choices = i >= masks ? choices_chance(event * 100003 + i)
                                     : all      ? choices_mask(i)
                                                : choices_mask(i == 0 ? 0 : UINT64_MAX);
            snprintf(explorer->place, sizeof explorer->place,
                     "%s before event %llu, image %llu of %llu (%u open questions)",
                     crash_name((enum crash)kind), (unsigned long long)event, (unsigned long long)i,
                     (unsigned long long)(masks + chances), questions);
            judge_image(explorer, prefix, (enum crash)kind, choices);
        }
    }
}

struct explore_result explore_crashes(const struct scenario *scenario, const struct explore_options *options)
{
    struct explorer explorer = {.scenario = scenario, .options = *options, .lives = 100};
    struct branch base;
    watch_aborts(&explorer);
    base_branch(&explorer, &base);
    snprintf(explorer.place, sizeof explorer.place, "in the lives before it");
    bool more = !broken(&explorer, &base);
    uint64_t event = 1;
    if (!scenario->start_too && more) {
        struct branch branch;
        struct run_state run;
        branch_copy(&branch, &base);
        begin_act(&explorer, &run, &branch);
        scenario->act(&run);
        event = run.events_at_start + 1;
        finish(&run, &branch);
        snprintf(explorer.place, sizeof explorer.place, "without a crash");
        broken(&explorer, &branch);
        branch_free(&branch);
    }
    for (; more && !explorer.result.failed; event++) {
        struct branch branch;
        struct run_state run;
        branch_copy(&branch, &base);
        begin_act(&explorer, &run, &branch);
        disk_crash_at(run.disk, event);
        scenario->act(&run);
        more = disk_gone(run.disk);
        finish(&run, &branch);
        explorer.result.points++;
        snprintf(explorer.place, sizeof explorer.place, "before a crash at event %llu",
                 (unsigned long long)event);
        if (!broken(&explorer, &branch))
            judge_all_images(&explorer, &branch, event);
        branch_free(&branch);
    }
    branch_free(&base);
    free(explorer.known);
    now_at = "";
    return explorer.result;
}

/* ------------------------------------------------------------------------------ faults */

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
    finish(&run, branch);
    explorer->result.points += reached;
    return reached;
}

static void judge_after_fault(struct explorer *explorer, const struct branch *from, uint64_t n, uint32_t kind)
{
    for (uint32_t i = 0; i < 5 && !explorer->result.failed; i++) {
        struct branch branch;
        branch_copy(&branch, from);
        snprintf(explorer->place, sizeof explorer->place, "op %llu hit by fault %u, end %u",
                 (unsigned long long)n, kind, i);
        crash(&branch, i == 0 ? CRASH_KILL : CRASH_POWER,
              i < 3 ? choices_mask(i % 2 == 0 ? UINT64_MAX : 0) : choices_chance(n * 17 + i));
        explorer->result.images++;
        judge(explorer, &branch);
        if (!broken(explorer, &branch)) {
            crash(&branch, CRASH_POWER, choices_mask(0));
            if (i % 2 == 0)
                judge(explorer, &branch);
        }
        broken(explorer, &branch);
        branch_free(&branch);
    }
}

struct explore_result explore_faults(const struct scenario *scenario, const struct explore_options *options)
{
    struct explorer explorer = {.scenario = scenario, .options = *options, .lives = 100};
    struct branch base;
    watch_aborts(&explorer);
    base_branch(&explorer, &base);
    for (uint32_t kind = 0; kind < array_count(fault_kinds) && !explorer.result.failed; kind++) {
        bool more = true;
        for (uint64_t n = 1 + kind % options->fault_step; more && !explorer.result.failed;
             n += options->fault_step) {
            struct branch branch;
            branch_copy(&branch, &base);
            snprintf(explorer.place, sizeof explorer.place, "op %llu hit by fault %u", (unsigned long long)n,
                     kind);
            more = fault_life(&explorer, &branch, &fault_kinds[kind], n);
            if (more && !broken(&explorer, &branch))
                judge_after_fault(&explorer, &branch, n, kind);
            branch_free(&branch);
        }
    }
    branch_free(&base);
    free(explorer.known);
    now_at = "";
    return explorer.result;
}

/* ------------------------------------------------------------------------------ random */

static void random_faults(struct run_state *run)
{
    struct seed *seed = &run->seed;
    if (seed_chance(seed, 500))
        return;
    run->trouble = true;
    for (uint32_t kind = 0; kind < IO_KIND_COUNT; kind++) {
        if (seed_chance(seed, 300) && kind != IO_CLOSE)
            disk_set_chance(run->disk, (enum io_kind)kind, (uint32_t)seed_below(seed, 30000));
    }
    if (seed_chance(seed, 400)) { /* one group fails, and again where it is rolled back into */
        struct fault fault = {.kinds = 1u << IO_WRITE, .classes = CLASS_SEGMENT, .count = 1, .error = -EIO};
        fault.leaves = seed_chance(seed, 500) ? LEAVES_NEW : LEAVES_OLD;
        fault.skip = seed_below(seed, 30);
        disk_set_fault(run->disk, &fault);
        fault.skip += 2;
        disk_set_fault(run->disk, &fault);
    }
    if (seed_chance(seed, 100))
        disk_set_space(run->disk, (24u << 20) + seed_below(seed, 40u << 20));
}

static void random_life(struct explorer *explorer, struct branch *branch, struct seed *seed, uint64_t *trace)
{
    struct run_state run;
    begin(explorer, &run, branch);
    bool faults_at_start = seed_chance(seed, 200);
    if (faults_at_start)
        random_faults(&run);
    if (seed_chance(seed, 150))
        disk_crash_at(run.disk, 1 + seed_below(seed, 60));
    if (run_start(&run)) {
        if (!faults_at_start) {
            run_check(&run);
            if (seed_chance(seed, 300))
                run_resubmit(&run);
            random_faults(&run);
        }
        if (seed_chance(seed, 600))
            disk_crash_at(run.disk, disk_events(run.disk) + 1 + seed_below(seed, 400));
        workload(&run, 10 + (uint32_t)seed_below(seed, 150));
        if (seed_chance(seed, 300)) {
            run_settle(&run);
            run_stop(&run);
        }
    }
    *trace = seed_mix(*trace ^ disk_trace_hash(run.disk));
    finish(&run, branch);
    branch->image->space = UINT64_MAX;
    crash(branch, seed_chance(seed, 600) ? CRASH_POWER : CRASH_KILL,
          seed_chance(seed, 300) ? choices_mask(seed_next(seed)) : choices_chance(seed_next(seed)));
}

struct explore_result explore_random(uint64_t seed, const struct explore_options *options, uint64_t *trace)
{
    static const struct scenario random_scenario = {.name = "random"};
    struct explorer explorer = {.scenario = &random_scenario, .options = *options, .lives = 100};
    explorer.options.seed = seed;
    watch_aborts(&explorer);
    snprintf(explorer.place, sizeof explorer.place, "seed %llu", (unsigned long long)seed);
    struct seed draws = seed_fork(seed, 20);
    struct branch branch = {.image = image_new(UINT64_MAX)};
    ledger_init(&branch.ledger);
    for (uint32_t i = 0; i < 3 && options->log != NULL; i++)
        branch.ledger.levels[i] = options->log->level;
    branch.ledger.levels[3] = LEVEL_WRITTEN;
    branch.ledger.levels[4] = LEVEL_ACCEPTED;
    branch.ledger.max_anonymous = seed_chance(&draws, 300) ? 2 : 0;
    *trace = 0;
    uint32_t lives = 2 + (uint32_t)seed_below(&draws, 3);
    for (uint32_t life = 0; life <= lives && !explorer.result.failed; life++) {
        if (life < lives)
            random_life(&explorer, &branch, &draws, trace);
        else
            judge(&explorer, &branch);
        explorer.result.points++;
        if (branch.ledger.failure[0] == 0)
            continue;
        explorer.result.failed = true;
        snprintf(explorer.result.text, sizeof explorer.result.text,
                 "%s\n  in life %u of seed %llu\n  again with: walrus-sim --seed %llu --trace",
                 branch.ledger.failure, life + 1, (unsigned long long)seed, (unsigned long long)seed);
    }
    *trace = seed_mix(*trace ^ image_hash(branch.image) ^ ledger_hash(&branch.ledger));
    branch_free(&branch);
    now_at = "";
    return explorer.result;
}
