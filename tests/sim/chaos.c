/* chaos.c: random runs; see explore.h.
 *
 *   1. The seed draws what this run can do at all: each operation of the clients, each fault of the disk and
 *      each kind of end is left out of some runs (swarm), so that what hides behind the common ones comes up
 *      too.
 *   2. Two to four lives, one after the other on one store: random work, random faults, an end by stop, kill
 *      or power.
 *   3. After each life its end is also answered in other ways: images that are recovered and judged, some
 *      with a crash or a fault at each point of the recovery; and one with damage in it (a flipped bit, a
 *      lost block, a block in the wrong place). That one must be refused, or read as the committed bytes or
 *      -EBADMSG. What may be missing without a word is what only the last flushed bytes say: of the last life
 *      that served, or of the one before, whose tail it has copied, what the last flushed group has made
 *      durable, and what was never answered. A block in the wrong place is missing in its own and takes what
 *      lay there: two places at once may hold all that proved each other (a header and the group behind it),
 *      so there all of these two lives may be missing.
 *   4. A last start judges the whole. */
#include "explorer.h"

struct swarm {
    uint32_t jobs_off;  /* bits of enum job */
    uint32_t kinds_off; /* bits of enum io_kind: ops that never fail by chance */
    bool chances, double_failures, full_disk, failed_flushes, start_faults, start_crashes, kills, powers;
    uint32_t others; /* other ends of each life that are tried, at most */
};

static struct swarm draw_swarm(struct seed *seed)
{
    struct swarm swarm = {.jobs_off = 0};
    for (uint32_t i = 0; i < 32; i++) {
        swarm.jobs_off |= (uint32_t)seed_chance(seed, 200) << i;
        swarm.kinds_off |= (uint32_t)seed_chance(seed, 500) << i;
    }
    swarm.chances = seed_chance(seed, 600);
    swarm.double_failures = seed_chance(seed, 500);
    swarm.full_disk = seed_chance(seed, 300);
    swarm.failed_flushes = seed_chance(seed, 300);
    swarm.start_faults = seed_chance(seed, 400);
    swarm.start_crashes = seed_chance(seed, 400);
    swarm.kills = seed_chance(seed, 800);
    swarm.powers = !swarm.kills || seed_chance(seed, 800);
    swarm.others = seed_chance(seed, 500) ? 1 + (uint32_t)seed_below(seed, 4) : 0;
    return swarm;
}

static void random_faults(struct run_state *run, const struct swarm *swarm)
{
    struct seed *seed = &run->seed;
    if (seed_chance(seed, 400))
        return;
    run->trouble = true;
    for (uint32_t kind = 0; kind < IO_KIND_COUNT; kind++) {
        if (swarm->chances && seed_chance(seed, 500) && kind != IO_CLOSE && !(swarm->kinds_off >> kind & 1))
            disk_set_chance(run->disk, (enum io_kind)kind, (uint32_t)seed_below(seed, 30000));
    }
    if (swarm->double_failures &&
        seed_chance(seed, 600)) { /* one group fails, and again where it is rolled back into */
        struct fault fault = {.kinds = 1u << IO_WRITE, .classes = CLASS_SEGMENT, .count = 1, .error = -EIO};
        fault.leaves = seed_chance(seed, 500) ? LEAVES_NEW : LEAVES_OLD;
        fault.skip = seed_below(seed, 30);
        disk_set_fault(run->disk, &fault);
        fault.skip += 2;
        disk_set_fault(run->disk, &fault);
    }
    if (swarm->failed_flushes && seed_chance(seed, 500)) {
        struct fault fault = {.kinds = 1u << IO_FLUSH, .count = 1, .error = -EIO};
        fault.classes = seed_chance(seed, 700) ? CLASS_SEGMENT : CLASS_SMALL;
        fault.skip = seed_below(seed, 40);
        disk_set_fault(run->disk, &fault);
    }
    if (swarm->full_disk && seed_chance(seed, 400))
        disk_set_space(run->disk, (24u << 20) + seed_below(seed, 40u << 20));
}

/* True: it served, so that what was there before is proved by its segment's header. */
static bool random_life(struct explorer *explorer, struct branch *branch, struct seed *seed,
                        const struct swarm *swarm, uint64_t *trace)
{
    struct run_state run;
    begin_life(explorer, &run, branch);
    run.jobs_off = swarm->jobs_off;
    explorer->result.recoveries++;
    bool faults_at_start = swarm->start_faults && seed_chance(seed, 400);
    if (faults_at_start)
        random_faults(&run, swarm);
    if (swarm->start_crashes && seed_chance(seed, 350))
        disk_crash_at(run.disk, 1 + seed_below(seed, 60));
    bool served = run_start(&run) && run_alive(&run);
    if (run.started) {
        if (!faults_at_start) {
            run_check(&run);
            if (seed_chance(seed, 300))
                run_resubmit(&run);
            random_faults(&run, swarm);
        }
        if (seed_chance(seed, 600))
            disk_crash_at(run.disk, disk_events(run.disk) + 1 + seed_below(seed, 400));
        workload(&run, 10 + (uint32_t)seed_below(seed, 150));
        if (seed_chance(seed, 300)) {
            run_settle(&run);
            run_stop(&run);
        }
    }
    explorer->result.faults += disk_faults_hit(run.disk);
    *trace = seed_mix(*trace ^ disk_trace_hash(run.disk));
    finish_life(&run, branch);
    branch->image->space = UINT64_MAX;
    return served;
}

/* ------------------------------------------------------------------------------ damage */

/* Some block of some file that is not all zeros; false: none was found. */
static bool pick_block(const struct image *image, struct seed *seed, const char **name, uint32_t *index)
{
    for (uint32_t i = 0; i < 200 && image->now.count > 0; i++) {
        *name = image->now.list[seed_below(seed, image->now.count)].name;
        uint64_t blocks = (image_size(image, *name) + SIM_BLOCK - 1) / SIM_BLOCK;
        if (blocks == 0)
            continue;
        *index = (uint32_t)seed_below(seed, min_u64(blocks, seed_chance(seed, 700) ? 12 : blocks));
        if (!image_block_zero(image, *name, *index))
            return true;
    }
    return false;
}

static bool is_segment(const char *name)
{
    return strstr(name, ".segment") != NULL;
}

/* The number of blocks that are not what they were; 0: there is nothing to damage. *small: bytes of another
 * file than a segment were hit. */
static uint32_t damage(struct image *image, struct seed *seed, bool *small, char what[200])
{
    static const uint8_t zeros[SIM_BLOCK];
    const char *name, *other;
    uint32_t index, to;
    uint8_t bytes[SIM_BLOCK];
    if (!pick_block(image, seed, &name, &index))
        return 0;
    *small = !is_segment(name);
    uint64_t kind = seed_below(seed, 4);
    if (kind == 0) {
        image_set_block(image, name, index, zeros);
        snprintf(what, 200, "without block %u of %s", index, name);
    } else if (kind == 1 && is_segment(name) && pick_block(image, seed, &other, &to) && is_segment(other) &&
               (other != name || to != index)) {
        /* A misdirected write: the bytes are somewhere else, and what was there before is still here. */
        to += (uint32_t)seed_below(seed, 2);
        image_get_block(image, name, index, bytes);
        image_set_block(image, other, to, bytes);
        image_set_block(image, name, index, zeros);
        snprintf(what, 200, "with block %u of %s at %u of %s", index, name, to, other);
        return 2;
    } else {
        uint64_t at =
            (uint64_t)index * SIM_BLOCK + seed_below(seed, seed_chance(seed, 500) ? 256 : SIM_BLOCK);
        if (at >= image_size(image, name))
            return 0;
        image_flip(image, name, at, (uint8_t)(1u << seed_below(seed, 8)));
        snprintf(what, 200, "with a bit of %s at %llu flipped", name, (unsigned long long)at);
    }
    return 1;
}

static void judge_damaged(struct explorer *explorer, const struct branch *from, struct seed *seed,
                          uint64_t may_rot_since)
{
    struct branch branch;
    struct run_state run;
    bool small;
    char what[200], place[sizeof explorer->place];
    memcpy(place, explorer->place, sizeof place);
    branch_copy(&branch, from);
    branch_crash(&branch, CRASH_POWER, choices_chance(seed_next(seed)));
    uint32_t blocks = damage(branch.image, seed, &small, what);
    if (blocks == 0) {
        branch_free(&branch);
        return;
    }
    snprintf(explorer->place, sizeof explorer->place, "%.100s %.140s", place, what);
    branch.visible = 0;
    branch.ledger.rot_since = may_rot_since;
    branch.ledger.rot_flushes = blocks == 1 ? 1 : UINT32_MAX;
    explorer->result.images++;
    explorer->result.different++;
    explorer->result.recoveries++;
    begin_life(explorer, &run, &branch);
    run.rot = true;
    run.trouble = small;
    if (run_start(&run))
        run_check(&run);
    if (run.start_error == -EBADMSG && strstr(run.error.text, "segment") == NULL &&
        strstr(run.error.text, "checkpoint") == NULL && strstr(run.error.text, "walrus.store") == NULL)
        ledger_fail(&branch.ledger, "G13: the refusal does not say where: %s", run.error.text);
    finish_life(&run, &branch);
    branch_broken(explorer, &branch);
    branch_free(&branch);
    memcpy(explorer->place, place, sizeof place);
}

/* ------------------------------------------------------------------------------ runs */

static enum crash random_crash(struct seed *seed, const struct swarm *swarm)
{
    return swarm->powers && (!swarm->kills || seed_chance(seed, 600)) ? CRASH_POWER : CRASH_KILL;
}

static struct choices random_choices(struct seed *seed)
{
    return seed_chance(seed, 300) ? choices_mask(seed_next(seed)) : choices_chance(seed_next(seed));
}

static void judge_other_ends(struct explorer *explorer, const struct branch *branch, struct seed *seed,
                             const struct swarm *swarm, uint64_t may_rot_since)
{
    for (uint32_t i = 0; i < swarm->others && explorer_goes_on(explorer); i++) {
        enum crash kind = random_crash(seed, swarm);
        judge_image(explorer, branch, kind, random_choices(seed), 0);
    }
    for (uint32_t i = 0; i < 2 * swarm->others && !explorer->options.no_damage && explorer_goes_on(explorer);
         i++)
        judge_damaged(explorer, branch, seed, may_rot_since);
}

struct explore_result explore_random(uint64_t seed, const struct explore_options *options, uint64_t *trace)
{
    static const struct scenario random_scenario = {.name = "random"};
    struct explore_options own = *options;
    own.seed = seed;
    struct explorer explorer = explorer_begin(&random_scenario, &own);
    struct seed draws = seed_fork(seed, 20);
    struct branch branch;
    branch_base(&explorer, &branch);
    explorer.number = seed_below(&draws, 1000);
    for (uint32_t i = 0; i < 3 && options->log != NULL; i++)
        branch.ledger.levels[i] = options->log->level;
    branch.ledger.levels[3] = LEVEL_WRITTEN;
    branch.ledger.levels[4] = LEVEL_ACCEPTED;
    branch.ledger.max_anonymous = seed_chance(&draws, 300) ? 2 : 0;
    struct swarm swarm = draw_swarm(&draws);
    *trace = 0;
    uint64_t life_began = 1, may_rot_since = 1; /* the last one that served, and the one before */
    uint32_t lives = 2 + (uint32_t)seed_below(&draws, 3);
    for (uint32_t life = 0; life <= lives && !explorer.result.failed; life++) {
        snprintf(explorer.place, sizeof explorer.place, "life %u", life + 1);
        explorer.result.points++;
        if (life == lives) {
            branch_judge(&explorer, &branch, false);
            branch_broken(&explorer, &branch);
            break;
        }
        uint64_t before = branch.ledger.next_order;
        if (random_life(&explorer, &branch, &draws, &swarm, trace)) {
            may_rot_since = life_began;
            life_began = before;
        }
        if (branch_broken(&explorer, &branch))
            break;
        judge_other_ends(&explorer, &branch, &draws, &swarm, may_rot_since);
        branch_crash(&branch, random_crash(&draws, &swarm), random_choices(&draws));
        explorer.result.images++;
        explorer.result.different++;
    }
    *trace = seed_mix(*trace ^ image_hash(branch.image) ^ ledger_hash(&branch.ledger));
    branch_free(&branch);
    return explorer_end(&explorer);
}
