/* explore.c: crashes at every point; see explore.h. Faults are in faults.c, random runs in chaos.c.
 *
 *   1. The lives before the scenario give a branch: an image and its ledger.
 *   2. The scenario lives on a copy of it and is crashed before its event 1, 2, ...: each time the same life,
 *      so that event n is always the same one.
 *   3. Each crash has open questions (what of the unflushed and the unfinished is there): every combination
 *      of answers is an image if there are few, else many by chance, torn and foreign bytes among them.
 *   4. An image that no earlier one was equal to, bytewise and in its ledger, is recovered by the real log,
 *      read to the last byte, judged, written to, and judged as it goes (branch_judge).
 *   5. Of these images some (`nested_every`) have their recovery crashed before each of its events, with all
 *      that can follow; some (`failed_every`) have each op of it fail; some (`twice_every`) lose power right
 *      after they were served, and again later.
 *
 * Invariant (G6): an image after a power cut has nothing open in it. Whatever a start finds there it must
 * find again: a crash or a fault in the recovery, or another order of its I/O, changes nothing of what is
 * visible. */
#include "explorer.h"

#include <signal.h>
#include <unistd.h>

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

struct explore_options explore_in_full(void)
{
    return (struct explore_options){.bits = 7,
                                    .images = 32,
                                    .nested_every = 200,
                                    .twice_every = 4,
                                    .failed_every = 400,
                                    .fault_step = 1,
                                    .seed = 1};
}

struct explore_options explore_defaults(void)
{
#if defined(__SANITIZE_ADDRESS__)
    /* Here the sanitizers look for wrong memory, on the same paths; the search for wrong images is the plain
     * build's. */
    return (struct explore_options){.bits = 3,
                                    .images = 6,
                                    .nested_every = 200,
                                    .twice_every = 8,
                                    .failed_every = 400,
                                    .fault_step = 7,
                                    .seed = 1};
#else
    return explore_in_full();
#endif
}

struct explore_options explore_deep(void)
{
    return (struct explore_options){.bits = 10,
                                    .images = 200,
                                    .nested_every = 8,
                                    .twice_every = 2,
                                    .failed_every = 40,
                                    .fault_step = 1,
                                    .seed = 1};
}

struct explorer explorer_begin(const struct scenario *scenario, const struct explore_options *options)
{
    return (struct explorer){.scenario = scenario, .options = *options, .lives = 100};
}

struct explore_result explorer_end(struct explorer *explorer)
{
    free(explorer->known);
    explorer->known = NULL;
    now_at = "";
    return explorer->result;
}

bool explorer_goes_on(struct explorer *explorer)
{
    struct explore_result *result = &explorer->result;
    if (result->failed || result->stopped)
        return false;
    if (explorer->options.enough != NULL && explorer->options.enough(explorer->options.context, result))
        result->stopped = true;
    return !result->stopped;
}

struct choices explorer_chance(const struct explorer *explorer, uint64_t number)
{
    return choices_chance(seed_mix(explorer->options.seed) + number);
}

/* ------------------------------------------------------------------------------ branches */

void branch_copy(struct branch *to, const struct branch *from)
{
    *to = *from;
    to->image = image_copy(from->image);
    ledger_copy(&to->ledger, &from->ledger);
}

void branch_free(struct branch *branch)
{
    image_free(branch->image);
    ledger_free(&branch->ledger);
}

bool branch_broken(struct explorer *explorer, const struct branch *branch)
{
    if (branch->ledger.failure[0] == 0 || explorer->result.failed)
        return explorer->result.failed;
    const struct explore_options *options = &explorer->options;
    explorer->result.failed = true;
    if (explorer->scenario->act == NULL)
        snprintf(explorer->result.text, sizeof explorer->result.text,
                 "%s\n  in %s of seed %llu\n  again with: walrus-sim --seed %llu --trace",
                 branch->ledger.failure, explorer->place, (unsigned long long)options->seed,
                 (unsigned long long)options->seed);
    else
        snprintf(explorer->result.text, sizeof explorer->result.text,
                 "%s\n  in scenario %s, %s\n  again with: walrus-sim --scenario %s --seed %llu%s",
                 branch->ledger.failure, explorer->scenario->name, explorer->place, explorer->scenario->name,
                 (unsigned long long)options->seed, options->again == NULL ? "" : options->again);
    return true;
}

void branch_crash(struct branch *branch, enum crash crash, struct choices choices)
{
    struct image *next = image_crash(branch->image, crash, &choices);
    image_free(branch->image);
    branch->image = next;
    if (branch->end != END_STOP || crash == CRASH_POWER)
        branch->end = crash == CRASH_POWER || branch->end == END_POWER ? END_POWER : END_KILL;
}

static void new_branch(struct branch *branch)
{
    *branch = (struct branch){.image = image_new(UINT64_MAX)};
    ledger_init(&branch->ledger);
}

static void lives_before(struct explorer *explorer, struct branch *branch)
{
    struct run_state run;
    begin_act(explorer, &run, branch);
    explorer->scenario->before(&run);
    finish_life(&run, branch);
    if (!run.stopped)
        branch_crash(branch, CRASH_KILL, choices_mask(UINT64_MAX));
}

void branch_base(struct explorer *explorer, struct branch *branch)
{
    const struct scenario *scenario = explorer->scenario;
    uint64_t seed = explorer->options.seed;
    watch_aborts(explorer);
    new_branch(branch);
    snprintf(explorer->place, sizeof explorer->place, "in the lives before it");
    if (scenario->before == NULL)
        return;
    lives_before(explorer, branch);
    bool done = scenario->between == NULL;
    for (uint32_t i = 0; !done && i < 20; i++) {
        if (i > 0) { /* other lives */
            branch_free(branch);
            new_branch(branch);
            explorer->options.seed = seed + (UINT64_C(1) << 40) * i;
            lives_before(explorer, branch);
            explorer->options.seed = seed;
        }
        done = scenario->between(&branch->image, &branch->ledger);
        if (done)
            branch->end = END_POWER;
    }
    if (!done)
        ledger_fail(&branch->ledger, "what happens between the lives never could");
}

/* Whether an equal one was judged. */
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

/* ------------------------------------------------------------------------------ lives */

void begin_life(struct explorer *explorer, struct run_state *run, struct branch *branch)
{
    run_begin(run, branch->image, &branch->ledger, explorer->options.seed * 1000003 + explorer->lives++);
    run->end_before = branch->end;
    run->visible_before = branch->visible;
    branch->image = NULL;
    if (explorer->options.lie != NULL)
        disk_set_fault(run->disk, explorer->options.lie);
    disk_set_hasty_lock(run->disk, explorer->options.hasty_lock);
    if (explorer->options.log != NULL)
        run->options = *explorer->options.log;
    if (explorer->options.trace != NULL)
        disk_set_trace(run->disk, explorer->options.trace);
}

void begin_act(struct explorer *explorer, struct run_state *run, struct branch *branch)
{
    uint64_t lives = explorer->lives;
    explorer->lives = 7;
    begin_life(explorer, run, branch);
    explorer->lives = lives;
}

void finish_life(struct run_state *run, struct branch *branch)
{
    if (run->checked)
        branch->end = END_NONE;
    if (run->checked)
        branch->visible = run->visible;
    if (run->wrote)
        branch->visible = 0;
    if (branch->end != END_POWER)
        branch->end = run->stopped ? END_STOP : END_KILL;
    branch->image = run_end(run);
}

void branch_judge(struct explorer *explorer, struct branch *branch, bool only_look)
{
    struct run_state run;
    begin_life(explorer, &run, branch);
    explorer->result.recoveries++;
    if (explorer->options.lie_in_start != NULL)
        disk_set_fault(run.disk, explorer->options.lie_in_start);
    bool served = run_start(&run);
    if (explorer->options.lie_in_start != NULL)
        disk_clear_faults(run.disk);
    if (served) {
        run_check(&run);
        if (!only_look) {
            run_write(&run, 0, 1, 2, 64);
            run_settle(&run);
            if (run_alive(&run) && run.acked == 0)
                ledger_fail(&branch->ledger, "nothing can be written after a start");
            run_resubmit(&run);
        }
    }
    finish_life(&run, branch);
}

/* The recovery of `from` up to a crash before its event n. False: it was over before that. */
static bool recover_until(struct explorer *explorer, const struct branch *from, uint64_t event,
                          struct branch *cut)
{
    struct run_state run;
    branch_copy(cut, from);
    begin_life(explorer, &run, cut);
    explorer->result.recoveries++;
    disk_crash_at(run.disk, event);
    if (run_start(&run))
        run_check(&run);
    bool gone = disk_gone(run.disk);
    finish_life(&run, cut);
    return gone;
}

/* Crashes the recovery of `from` before each of its events, and recovers again. */
static void crash_recovery(struct explorer *explorer, const struct branch *from)
{
    char place[sizeof explorer->place];
    memcpy(place, explorer->place, sizeof place);
    uint64_t lives = explorer->lives;
    bool more = true;
    for (uint64_t event = 1; more && explorer_goes_on(explorer); event++) {
        struct branch cut;
        explorer->lives = lives;
        more = recover_until(explorer, from, event, &cut);
        for (uint32_t kind = 0; kind < 2 && !branch_broken(explorer, &cut); kind++) {
            uint32_t questions = image_questions(cut.image, (enum crash)kind);
            uint64_t masks = questions <= 3 ? UINT64_C(1) << questions : 2;
            for (uint64_t i = 0; i <= masks && !explorer->result.failed; i++) {
                struct choices choices = i == masks ? explorer_chance(explorer, event * 31 + kind + lives * 7)
                                         : questions <= 3 ? choices_mask(i)
                                                          : choices_mask(i == 0 ? 0 : UINT64_MAX);
                snprintf(explorer->place, sizeof explorer->place,
                         "%.150s; then %s in the recovery before its event %llu", place,
                         crash_name((enum crash)kind), (unsigned long long)event);
                judge_image(explorer, &cut, (enum crash)kind, choices, 1);
            }
        }
        branch_free(&cut);
    }
    memcpy(explorer->place, place, sizeof place);
}

/* Power goes right after a start has served: what it has shown is what there is, no more and no less. */
static void cut_after_look(struct explorer *explorer, struct branch *branch, uint64_t number)
{
    branch_judge(explorer, branch, true);
    if (branch_broken(explorer, branch))
        return;
    branch_crash(branch, CRASH_POWER,
                 number % 3 == 0 ? explorer_chance(explorer, number)
                                 : choices_mask(number % 3 == 1 ? 0 : UINT64_MAX));
    explorer->result.images++;
    explorer->result.different++;
}

void judge_image(struct explorer *explorer, const struct branch *prefix, enum crash kind,
                 struct choices choices, uint32_t depth)
{
    const struct explore_options *options = &explorer->options;
    struct branch branch;
    branch_copy(&branch, prefix);
    branch_crash(&branch, kind, choices);
    explorer->result.images++;
    uint64_t hash = image_hash(branch.image) ^ ledger_hash(&branch.ledger) * 3 ^ branch.visible * 5;
    if (known_before(explorer, hash ^ (uint64_t)branch.end)) {
        branch_free(&branch);
        return;
    }
    explorer->result.different++;
    uint64_t number = ++explorer->number;
    bool nested = depth == 0 && options->nested_every > 0 &&
                  number % options->nested_every == 1 % options->nested_every;
    bool failed = depth == 0 && options->failed_every > 0 &&
                  number % options->failed_every == 2 % options->failed_every;
    if ((nested || failed) && kind == CRASH_POWER) { /* what there is, to compare with */
        struct branch first;
        branch_copy(&first, &branch);
        branch_judge(explorer, &first, true);
        branch.visible = first.visible;
        branch_broken(explorer, &first);
        branch_free(&first);
    }
    if (nested && !explorer->result.failed)
        crash_recovery(explorer, &branch);
    if (failed && !explorer->result.failed)
        fail_recovery(explorer, &branch, number);
    bool twice = options->twice_every > 0 && number % options->twice_every == 0;
    if (twice && depth == 0 && number / options->twice_every % 2 == 0 && !explorer->result.failed)
        cut_after_look(explorer, &branch, number);
    if (!explorer->result.failed)
        branch_judge(explorer, &branch, false);
    if (!branch_broken(explorer, &branch) && twice) {
        /* What a start has served is durable, and so is what it has answered since. */
        branch_crash(&branch, CRASH_POWER,
                     number % 8 == 0 ? explorer_chance(explorer, number) : choices_mask(0));
        explorer->result.images++;
        explorer->result.different++;
        branch_judge(explorer, &branch, false);
        branch_broken(explorer, &branch);
    }
    branch_free(&branch);
}

/* ------------------------------------------------------------------------------ crashes */

static void judge_all_images(struct explorer *explorer, const struct branch *prefix, uint64_t event)
{
    for (uint32_t kind = 0; kind < 2; kind++) {
        uint32_t questions = image_questions(prefix->image, (enum crash)kind);
        bool all = questions <= explorer->options.bits;
        uint64_t masks = all ? UINT64_C(1) << questions : 2;
        uint64_t chances = all ? min_u64(explorer->options.images / 8, questions) : explorer->options.images;
        if (explorer->scenario->big)
            chances = (chances + 3) / 4;
        for (uint64_t i = 0; i < masks + chances && explorer_goes_on(explorer); i++) {
            struct choices choices = i >= masks ? explorer_chance(explorer, event * 100003 + i)
                                     : all      ? choices_mask(i)
                                                : choices_mask(i == 0 ? 0 : UINT64_MAX);
            snprintf(explorer->place, sizeof explorer->place,
                     "%s before event %llu, image %llu of %llu (%u open questions)",
                     crash_name((enum crash)kind), (unsigned long long)event, (unsigned long long)i,
                     (unsigned long long)(masks + chances), questions);
            judge_image(explorer, prefix, (enum crash)kind, choices, 0);
        }
    }
}

/* The scenario without a crash. Returns the first event that is crashed. */
static uint64_t whole_act(struct explorer *explorer, const struct branch *base)
{
    struct branch branch;
    struct run_state run;
    branch_copy(&branch, base);
    begin_act(explorer, &run, &branch);
    explorer->scenario->act(&run);
    uint64_t first = explorer->scenario->start_too ? 1 : run.events_at_start + 1;
    finish_life(&run, &branch);
    snprintf(explorer->place, sizeof explorer->place, "without a crash");
    branch_broken(explorer, &branch);
    branch_free(&branch);
    return first;
}

struct explore_result explore_crashes(const struct scenario *scenario, const struct explore_options *options)
{
    struct explorer explorer = explorer_begin(scenario, options);
    struct branch base;
    branch_base(&explorer, &base);
    bool more = !branch_broken(&explorer, &base);
    uint64_t event = more ? whole_act(&explorer, &base) : 0;
    uint64_t step = options->point_step > 1 ? options->point_step : 1;
    event += (options->seed + step - event % step) % step;
    for (; more && explorer_goes_on(&explorer); event += step) {
        struct branch branch;
        struct run_state run;
        branch_copy(&branch, &base);
        begin_act(&explorer, &run, &branch);
        disk_crash_at(run.disk, event);
        scenario->act(&run);
        more = disk_gone(run.disk);
        finish_life(&run, &branch);
        explorer.result.points++;
        snprintf(explorer.place, sizeof explorer.place, "before a crash at event %llu",
                 (unsigned long long)event);
        if (!branch_broken(&explorer, &branch))
            judge_all_images(&explorer, &branch, event);
        branch_free(&branch);
    }
    branch_free(&base);
    return explorer_end(&explorer);
}
