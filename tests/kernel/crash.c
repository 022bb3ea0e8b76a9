/* crash.c: power cuts of a real file system on a recorded device.
 *
 *   1. Record: a fresh file system, some lives of a broker on it (killed, or stopped cleanly, with changes of
 *      segment and checkpoints), producers that note at which position of the recording each answer came.
 *   2. Cut: at the position of an answer, at a flush, anywhere; of what was not flushed nothing, everything,
 *      some writes, some sectors survive.
 *   3. Mount what is left, so that the kernel repairs it, start a broker, so that it recovers, judge it.
 *   4. Now and then cut again, within what mount, recovery and first service did to the image, and judge
 *      again: what was served by then must be the same.
 *
 * Every start of the steps 3 and 4 gets options of its own. A failure names recording, position and choice;
 * the seed makes the same choices again, though not the same recording: timing is the machine's. */
#include <sys/stat.h>
#include <unistd.h>

#include "crash.h"

#define EXT4_BYTES      (UINT64_C(160) << 20)
#define XFS_BYTES       (UINT64_C(320) << 20)
#define LIFE_BYTES      (UINT64_C(6) << 20)
#define IMAGES_A_RECORD 24u
#define MOST_CUTS       32u

/* ------------------------------------------------------------------------------------- recording */

/* Until the life has written enough to change segments, or its time is over. */
static int let_write(struct crash *crash, uint64_t bytes, struct error *err)
{
    struct ledger *ledger = crash->ledger;
    uint64_t wanted = __atomic_load_n(&ledger->bytes, __ATOMIC_RELAXED) + bytes;
    int64_t limit = now_ns() + 3 * NS_PER_S;
    int rc = producers_await_acks(ledger, 20, err);
    while (rc == 0 && __atomic_load_n(&ledger->bytes, __ATOMIC_RELAXED) < wanted && now_ns() < limit)
        rc = producers_await_acks(ledger, 1, err);
    return rc;
}

void crash_life_options(struct crash *crash, struct life_options *life)
{
    do
        life_options_random(life, true, &crash->work->run.random);
    while (crash->no_mmap && strcmp(life->options.arguments[1], "mmap") == 0);
    if (crash->broken != NULL)
        life->options = (struct daemon_options){.broken = crash->broken, .arguments = {"--io", "pwrite"}};
}

static int record_life(struct crash *crash, bool last, struct error *err)
{
    struct work *work = crash->work;
    uint64_t *random = &work->run.random;
    struct life_options life;
    crash_life_options(crash, &life);
    int rc = daemon_start(work, &life.options, &crash->daemon, err);
    if (rc == 0)
        rc = ledger_judge(work, crash->ledger, work_position(work), crash->sight, err);
    if (rc == 0)
        rc = ledger_settle(work, crash->ledger, crash->sight, err);
    if (rc < 0)
        return error_wrap(err, "while recording");
    producers_go(crash->ledger);
    rc = let_write(crash, random_below(random, crash->fault == NULL ? LIFE_BYTES : LIFE_BYTES / 8), err);
    if (rc == 0 && last && crash->fault != NULL)
        rc = crash->fault(crash, err);
    if (rc == 0 && !last && random_below(random, 3) == 0)
        rc = daemon_stop(&crash->daemon, err);
    daemon_kill(&crash->daemon);
    return rc == 0 ? producers_await_parked(crash->ledger, err) : rc;
}

static int record_lives(struct crash *crash, struct error *err)
{
    struct work *work = crash->work;
    pid_t pids[PRODUCERS] = {0};
    int rc = producers_start(work, crash->ledger, pids, err);
    uint64_t lives = 1 + random_below(&work->run.random, 3);
    for (uint64_t i = 0; rc == 0 && i < lives; i++)
        rc = record_life(crash, i + 1 == lives, err);
    daemon_kill(&crash->daemon);
    producers_end(pids);
    return rc;
}

static int record(struct crash *crash, struct error *err)
{
    struct device *device = &crash->device;
    struct device_switches *switches = device->switches;
    switches->recording = 0;
    switches->lying = 0;
    int rc = file_system_make(device->file, true, crash->type, err);
    if (rc == 0)
        rc = image_begin(&crash->image, device, err);
    if (rc != 0)
        return rc;
    switches->lying = crash->lying;
    switches->flush_ns = (int64_t)random_below(&crash->work->run.random, 3) * NS_PER_MS / 10;
    rc = file_system_mount(device->file, true, crash->type, crash->folder, err);
    if (rc != 0)
        return rc;
    rc = record_lives(crash, err);
    image_end(&crash->image);
    int unmounted = file_system_unmount(crash->folder, err);
    switches->lying = 0;
    switches->flush_ns = 0;
    if (rc == 0 && switches->overflow != 0)
        rc = error_set(err, -EFBIG, "the recording is too long");
    return rc < 0 ? rc : unmounted;
}

/* ------------------------------------------------------------------------------------- one image */

static int judge_image(struct crash *crash, uint64_t position, struct sight *sight, struct error *err)
{
    struct life_options life;
    life_options_random(&life, true, &crash->work->run.random);
    int rc = daemon_start(crash->work, &life.options, &crash->daemon, err);
    if (rc == 0)
        rc = ledger_judge(crash->work, crash->ledger, position, sight, err);
    return rc;
}

/* Mounts what the device holds and judges it. *served: from which position on it was seen. */
static int check_image(struct crash *crash, uint64_t position, struct sight *sight, uint64_t *served,
                       struct error *err)
{
    int rc = file_system_mount(crash->device.file, true, crash->type, crash->folder, err);
    if (rc != 0)
        return rc;
    rc = judge_image(crash, position, sight, err);
    *served = device_position(&crash->device);
    daemon_kill(&crash->daemon);
    int unmounted = file_system_unmount(crash->folder, err);
    crash->images++;
    if (rc == 0 && crash->device.switches->overflow != 0)
        rc = error_set(err, -EFBIG, "the recording is too long");
    return rc < 0 ? rc : unmounted;
}

/* A cut within what was done to the image of `first`. */
static int cut_again(struct crash *crash, struct cut first, uint64_t served, struct error *err)
{
    uint64_t *random = &crash->work->run.random, ignored;
    uint64_t steps = device_position(&crash->device) - crash->image.end;
    struct cut second = {.position = crash->image.end + random_below(random, steps + 1),
                         .choice = (enum choice)random_below(random, CHOICES),
                         .seed = random_next(random)};
    image_make_again(&crash->image, first, second);
    int rc = check_image(crash, first.position, crash->sight_again, &ignored, err);
    if (rc == 0 && second.position >= served)
        rc = sight_compare(crash->sight, crash->sight_again, err);
    crash->again++;
    return rc == 0 ? 0
                   : error_wrap(err, "cut again at step %llu of %llu (seen from %llu on), pending: %s",
                                (unsigned long long)(second.position - crash->image.end),
                                (unsigned long long)steps, (unsigned long long)(served - crash->image.end),
                                choice_names[second.choice]);
}

static int try_cut(struct crash *crash, struct cut cut, struct error *err)
{
    uint64_t served = 0;
    image_make(&crash->image, cut);
    int rc = check_image(crash, cut.position, crash->sight, &served, err);
    for (uint32_t i = 0; rc == 0 && i < 2 && random_below(&crash->work->run.random, 5) == 0; i++)
        rc = cut_again(crash, cut, served, err);
    return rc == 0 ? 0
                   : error_wrap(err, "%s, cut at step %llu of %llu, the last flush was at %llu, pending: %s",
                                crash->type, (unsigned long long)cut.position,
                                (unsigned long long)crash->image.end,
                                (unsigned long long)image_flushed_by(&crash->device, cut.position),
                                choice_names[cut.choice]);
}

/* ------------------------------------------------------------------------------------- where to cut */

/* The position of some answer that binds, else anywhere; not before `from`. */
static uint64_t some_answer(struct crash *crash, uint64_t from)
{
    uint64_t *random = &crash->work->run.random;
    for (int i = 0; i < 100; i++) {
        uint64_t p = random_below(random, PRODUCERS), s = random_below(random, SLOTS);
        uint64_t used = crash->ledger->used[p][s];
        if (used == 0)
            continue;
        uint64_t position = crash->ledger->records[p][s][1 + random_below(random, used)].there_from;
        if (position >= from && position <= crash->image.end)
            return position;
    }
    return from + random_below(random, crash->image.end - from + 1);
}

/* Just before a flush, or just behind it and what follows it. */
static uint64_t some_flush(struct crash *crash, uint64_t from)
{
    uint64_t *random = &crash->work->run.random;
    uint64_t position = from + random_below(random, crash->image.end - from + 1);
    position = image_flushed_by(&crash->device, position);
    if (position > 0 && random_below(random, 2) == 0)
        position--;
    return min_u64(position + random_below(random, 3), crash->image.end);
}

static struct cut random_cut(struct crash *crash)
{
    uint64_t *random = &crash->work->run.random;
    uint64_t kind = crash->only_flushed ? 0 : random_below(random, 4);
    bool anywhere = crash->fault == NULL || random_below(random, 4) == 0;
    uint64_t from = anywhere ? 0 : min_u64(crash->fault_at, crash->image.end);
    uint64_t position = kind < 2    ? some_answer(crash, from)
                        : kind == 2 ? some_flush(crash, from)
                                    : from + random_below(random, crash->image.end - from + 1);
    return (struct cut){.position = position,
                        .choice =
                            crash->only_flushed ? CHOICE_NONE : (enum choice)random_below(random, CHOICES),
                        .seed = random_next(random)};
}

static int by_position(const void *one, const void *other)
{
    const struct cut *a = one, *b = other;
    return a->position < b->position ? -1 : a->position > b->position;
}

static int cut_some(struct crash *crash, uint64_t images, struct error *err)
{
    struct cut cuts[MOST_CUTS];
    struct work *work = crash->work;
    uint64_t count = min_u64(images, MOST_CUTS), end = crash->images + images;
    int rc = 0;
    for (uint64_t i = 0; i < count; i++)
        cuts[i] = random_cut(crash);
    qsort(cuts, count, sizeof cuts[0], by_position);
    for (uint64_t i = 0; rc == 0 && i < count && crash->images < end; i++) {
        rc = try_cut(crash, cuts[i], err);
        run_progress(&work->run, "%llu images, %.1f a second", (unsigned long long)crash->images,
                     (double)crash->images / ((double)(now_ns() - work->run.started_ns) / 1e9));
    }
    return rc;
}

/* ------------------------------------------------------------------------------------- the job */

int crash_begin(struct crash *crash, struct work *work, const char *type, struct error *err)
{
    *crash = (struct crash){.work = work, .type = type, .sight = sight_new(), .sight_again = sight_new()};
    if (crash->sight == NULL || crash->sight_again == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int rc = namespace_make(err);
    if (rc == 0)
        rc = device_make(work, strcmp(type, "xfs") == 0 ? XFS_BYTES : EXT4_BYTES, &crash->device, err);
    if (rc != 0)
        return rc;
    work->device = &crash->device;
    snprintf(crash->folder, sizeof crash->folder, "%s/mounted", work->run.folder);
    snprintf(work->run.store, sizeof work->run.store, "%s/mounted/store", work->run.folder);
    if (mkdir(crash->folder, 0700) != 0 && errno != EEXIST)
        return error_set(err, -errno, "%s: %s", crash->folder, strerror(errno));
    return 0;
}

void crash_end(struct crash *crash)
{
    struct error ignored = {0};
    daemon_kill(&crash->daemon);
    struct stat inside, outside;
    if (stat(crash->folder, &inside) == 0 && stat(crash->work->run.folder, &outside) == 0 &&
        inside.st_dev != outside.st_dev)
        (void)!file_system_unmount(crash->folder, &ignored);
    image_free(&crash->image);
    crash->work->device = NULL;
    device_remove(&crash->device);
    ledger_free(crash->ledger);
    sight_free(crash->sight);
    sight_free(crash->sight_again);
    *crash = (struct crash){0};
}

int crash_round(struct crash *crash, uint64_t images, struct error *err)
{
    crash->ledger = ledger_new(WALRUS_LEVEL_DURABLE);
    if (crash->ledger == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    crash->ledger->may_fail = crash->fault != NULL;
    int rc = record(crash, err);
    if (rc == 0)
        rc = cut_some(crash, images, err);
    crash->recordings++;
    crash->acked += crash->ledger->acked;
    crash->steps += crash->image.end;
    image_free(&crash->image);
    ledger_free(crash->ledger);
    crash->ledger = NULL;
    return rc;
}

static int job_of(struct work *work, const char *type, struct error *err)
{
    struct crash crash;
    int rc = crash_begin(&crash, work, type, err);
    int64_t begin = now_ns();
    while (rc == 0 && work_goes_on(work)) {
        uint64_t left = work->count > work->done ? work->count - work->done : IMAGES_A_RECORD;
        rc = crash_round(&crash, min_u64(left, IMAGES_A_RECORD), err);
        work->done = crash.images;
    }
    if (rc == 0)
        snprintf(
            work->run.totals, sizeof work->run.totals,
            "%llu images (%llu of a cut within recovery or after it) of %llu recordings with %llu steps and "
            "%llu acknowledged batches; %.1f images a second",
            (unsigned long long)work->done, (unsigned long long)crash.again,
            (unsigned long long)crash.recordings, (unsigned long long)crash.steps,
            (unsigned long long)crash.acked, (double)work->done / ((double)(now_ns() - begin) / 1e9));
    crash_end(&crash);
    return rc;
}

int job_ext4(struct work *work, struct error *err)
{
    return job_of(work, "ext4", err);
}

int job_xfs(struct work *work, struct error *err)
{
    return job_of(work, "xfs", err);
}
