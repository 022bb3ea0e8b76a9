/* record.c: the real log on the real back end, recorded, and what crashes could have left of it.
 *
 * One store
 *   1. A folder, several lives. Each life starts the log with the user's options through the recorder, reads
 *      everything and compares it with the ledger, does random work, stops or is cut off.
 *   2. At random completions, those of the start and the stop too, the image and the ledger of that moment
 *      are kept. Between two steps of the work they are judged: for each, images of a power cut and of a
 *      kill are drawn (everything lost, everything there, any subset, torn at 512 bytes, names lost),
 *      recovered in memory by the real code and compared with the ledger; now and then what that start left
 *      is cut again.
 *   3. A life that is cut off leaves its crash image as files in a new folder. The next life is the real back
 *      end's recovery of that.
 *
 * A failure is the ledger's, or a difference between what was written and what the file system shows. The
 * crash image is kept as files, so that it can be looked at.
 *
 * Invariant: nothing is judged inside a completion; the log is never entered again from there. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../sim/scenario.h"
#include "recorder.h"
#include "torture.h"

#define MOST_KEPT   6u
#define LIVES       4u
#define STEPS       12u /* of work between two judgements */
#define MOST_ROUNDS 12u
#define IMAGES      12u /* of one moment */

struct moment {
    struct image *image;
    struct ledger ledger;
    enum end end;
};

struct recording {
    const struct torture *torture;
    struct torture_counts *counts;
    struct seed seed;
    char base[4096]; /* folders of the lives: base.N */
    uint32_t folder; /* N of the present one */
    struct run_state *run;
    struct recorder *recorder;
    struct ledger ledger;
    struct image *image;
    enum end end; /* how the life before ended */
    struct moment kept[MOST_KEPT];
    uint32_t kept_count;
    uint32_t chance; /* of a thousand completions so many are kept */
    uint64_t judged;
};

static void folder_path(const struct recording *recording, char path[4200])
{
    snprintf(path, 4200, "%s.%u", recording->base, recording->folder);
}

/* ------------------------------------------------------------------------------------- files of an image */

static int write_file(int folder, const struct image *image, const struct name *name)
{
    const struct inode *inode = image->inodes[name->inode];
    int fd = openat(folder, name->name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    uint64_t size = inode->sizes[inode->size_count - 1];
    int rc = ftruncate(fd, (off_t)size) == 0 ? 0 : -errno;
    for (uint32_t i = 0; i < inode->slot_count && rc == 0; i++) {
        uint64_t at = (uint64_t)i * SIM_BLOCK;
        if (inode->slots[i].now == NULL || at >= size)
            continue;
        size_t length = (size_t)min_u64(SIM_BLOCK, size - at);
        ssize_t put = pwrite(fd, inode->slots[i].now->bytes, length, (off_t)at);
        rc = put == (ssize_t)length ? 0 : put < 0 ? -errno : -EIO;
    }
    if (rc == 0 && fsync(fd) != 0)
        rc = -errno;
    close(fd);
    return rc;
}

static int write_files(const char *path, const struct image *image, struct error *err)
{
    int rc = mkdir(path, 0700) == 0 ? 0 : -errno;
    int folder = rc == 0 ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (rc == 0 && folder < 0)
        rc = -errno;
    for (uint32_t i = 0; i < image->now.count && rc == 0; i++)
        rc = write_file(folder, image, &image->now.list[i]);
    if (rc == 0 && fsync(folder) != 0)
        rc = -errno;
    if (folder >= 0)
        close(folder);
    return rc == 0 ? 0 : error_set(err, rc, "cannot write a crash image to %s: %s", path, strerror(-rc));
}

/* The image that broke a promise, as files: for the user and for us. */
static void keep_broken(const struct recording *recording, const struct image *image, const char *what)
{
    char path[4200], again[512];
    struct error err = {0};
    snprintf(path, sizeof path, "%s/" TORTURE_KEPT, recording->torture->folder);
    if (write_files(path, image, &err) == 0)
        snprintf(again, sizeof again,
                 "the crash image is kept in %.300s: `walrus check` reads it; the run was the recorder's, "
                 "--seed %llu",
                 path, (unsigned long long)recording->torture->seed);
    else
        snprintf(again, sizeof again, "the run was the recorder's, --seed %llu",
                 (unsigned long long)recording->torture->seed);
    torture_fail(recording->torture->shared, again, "%s\n  in %.200s", what, recording->counts->place);
}

/* ------------------------------------------------------------------------------------- judging */

static void crash(struct image **image, enum end *end, enum crash kind, struct choices choices)
{
    struct image *next = image_crash(*image, kind, &choices);
    image_free(*image);
    *image = next;
    if (*end != END_STOP || kind == CRASH_POWER)
        *end = kind == CRASH_POWER || *end == END_POWER ? END_POWER : END_KILL;
}

/* The user's options; in memory nothing is prepared that will not be used. */
static struct log_options options_of(const struct torture *torture, bool in_memory)
{
    return (struct log_options){.segment_bytes = torture->segment_bytes,
                                .memory_bytes = torture->memory_bytes,
                                .commit_align = torture->commit_align,
                                .level = torture->level,
                                .interval_ns = torture->interval_ns,
                                .max_batch_bytes = torture->max_batch_bytes,
                                .prepare_only_spare = in_memory};
}

/* Starts on the image, reads everything, judges, writes one more batch. Leaves the image of that. */
static void judge(struct recording *recording, struct image **image, struct ledger *ledger, enum end *end)
{
    struct run_state run;
    run_begin(&run, *image, ledger, recording->torture->seed * 1000003 + recording->judged++);
    run.options = options_of(recording->torture, true);
    run.end_before = *end;
    recording->counts->recoveries++;
    if (run_start(&run)) {
        run_check(&run);
        run_write(&run, 0, 1, 2, 64);
        run_settle(&run);
        if (run_alive(&run) && run.acked == 0)
            ledger_fail(ledger, "nothing can be written after a start");
        run_resubmit(&run);
    }
    if (run.checked)
        *end = END_NONE;
    if (*end != END_POWER)
        *end = END_KILL;
    *image = run_end(&run);
}

/* False: a promise is broken. */
static bool judge_image(struct recording *recording, const struct moment *moment, enum crash kind,
                        struct choices choices)
{
    struct image *image = image_copy(moment->image);
    struct ledger ledger;
    enum end end = moment->end;
    ledger_copy(&ledger, &moment->ledger);
    crash(&image, &end, kind, choices);
    struct image *start = image_copy(image);
    recording->counts->images++;
    judge(recording, &image, &ledger, &end);
    if (ledger.failure[0] == '\0' && recording->counts->images % 6 == 0) {
        /* What a start has served is durable, and so is what it has answered since. */
        crash(&image, &end, CRASH_POWER, choices_chance(recording->judged));
        image_free(start);
        start = image_copy(image);
        judge(recording, &image, &ledger, &end);
    }
    bool good = ledger.failure[0] == '\0';
    if (!good)
        keep_broken(recording, start, ledger.failure);
    image_free(start);
    image_free(image);
    ledger_free(&ledger);
    return good;
}

static bool judge_moment(struct recording *recording, const struct moment *moment)
{
    bool good = true;
    for (uint32_t i = 0; i < IMAGES && good && !torture_ended(recording->torture); i++) {
        enum crash kind = i % 3 == 2 ? CRASH_KILL : CRASH_POWER;
        struct choices choices = i == 0   ? choices_mask(0)
                                 : i == 1 ? choices_mask(UINT64_MAX)
                                          : choices_chance(seed_next(&recording->seed));
        recording->counts->beat++;
        good = judge_image(recording, moment, kind, choices);
    }
    return good;
}

static void drop_moment(struct moment *moment)
{
    image_free(moment->image);
    ledger_free(&moment->ledger);
}

static bool judge_kept(struct recording *recording)
{
    bool good = true;
    for (uint32_t i = 0; i < recording->kept_count; i++) {
        good = good && judge_moment(recording, &recording->kept[i]);
        drop_moment(&recording->kept[i]);
    }
    recording->kept_count = 0;
    return good;
}

/* Before a completion: keeps the moment, perhaps. */
static void before(void *context, bool failed)
{
    struct recording *recording = context;
    struct run_state *run = recording->run;
    recording->counts->beat++;
    run->trouble |= failed;
    if (recording->kept_count == MOST_KEPT || !seed_chance(&recording->seed, recording->chance))
        return;
    struct moment *moment = &recording->kept[recording->kept_count++];
    moment->image = disk_snapshot(run->disk);
    ledger_copy(&moment->ledger, run->ledger);
    for (uint32_t i = 0; i < moment->ledger.count; i++)
        moment->ledger.batches[i].flying = false;
    moment->ledger.lossy |= recorder_counts(recording->recorder)->errors > 0;
    moment->end = run->checked ? END_NONE : run->end_before;
}

/* ------------------------------------------------------------------------------------- a life */

static void work(struct recording *recording)
{
    struct run_state *run = recording->run;
    uint64_t rounds = 1 + seed_below(&recording->seed, MOST_ROUNDS);
    run->idle_ns = seed_chance(&recording->seed, 100) ? UINT64_C(1300000000) : UINT64_C(20000000);
    for (uint64_t i = 0; i < rounds && run_alive(run) && !torture_ended(recording->torture); i++) {
        workload(run, STEPS);
        if (!judge_kept(recording) || run->ledger->failure[0] != '\0')
            return;
    }
    if (seed_chance(&recording->seed, 250)) {
        run_settle(run);
        run_stop(run);
    }
}

static void add_counts(struct recording *recording, const struct run_state *run)
{
    const struct recorder_counts *counts = recorder_counts(recording->recorder);
    struct torture_counts *sum = recording->counts;
    sum->lives++;
    sum->batches += run->acked;
    sum->ops += counts->ops;
    sum->writes += counts->writes;
    sum->flushes += counts->flushes;
    sum->written_bytes += counts->written_bytes;
    sum->errors += counts->errors;
    if (counts->errors > 0)
        memcpy(sum->last_error, counts->last_error, sizeof sum->last_error);
}

static int open_real(const struct torture *torture, const char *path, struct io **real, struct error *err)
{
    char unused[128];
    struct io_real_options options = {
        .folder = path, .backend = torture->backend, .watch_fd = -1, .allow_direct = true};
    return io_real_create(&options, real, unused, err);
}

/* From `image` and the files that hold the same, to the image that the life leaves. */
static int live(struct recording *recording, struct error *err)
{
    static const struct fault lie = {.kinds = 1u << IO_FLUSH, .count = FAULT_FOR_EVER, .lies = true};
    struct run_state run;
    struct io *real;
    char path[4200];
    folder_path(recording, path);
    int rc = open_real(recording->torture, path, &real, err);
    if (rc != 0)
        return rc;
    run_begin(&run, recording->image, &recording->ledger, seed_next(&recording->seed));
    recording->image = NULL;
    recording->run = &run;
    recording->recorder = recorder_create(real, run.disk, before, recording);
    check_bug(recording->recorder != NULL);
    if (recording->torture->lies)
        disk_set_fault(run.disk, &lie);
    run.io = recorder_io(recording->recorder);
    run.options = options_of(recording->torture, false);
    run.end_before = recording->end;
    recording->chance = 10 + (uint32_t)seed_below(&recording->seed, 300);
    const struct recorder_counts *counts = recorder_counts(recording->recorder);
    bool started = run_start(&run);
    if (started) {
        run_check(&run);
        if (judge_kept(recording))
            work(recording);
    }
    if (run.checked)
        recording->end = END_NONE;
    if (recording->end != END_POWER)
        recording->end = run.stopped ? END_STOP : END_KILL;
    recording->chance = 0;
    recording->image = run_end(&run);
    add_counts(recording, &run);
    if (recording->ledger.failure[0] != '\0' && counts->errors == 0)
        keep_broken(recording, recording->image, recording->ledger.failure);
    else if (counts->difference[0] != '\0')
        keep_broken(recording, recording->image, counts->difference);
    else if (!started)
        rc = error_set(err, run.start_error, "%s", run.error.text);
    recorder_destroy(recording->recorder);
    recording->run = NULL;
    judge_kept(recording);
    return rc;
}

/* The files of the life before make room for those of its crash image. */
static int cut_off(struct recording *recording, struct error *err)
{
    char path[4200];
    bool power = seed_chance(&recording->seed, 800);
    folder_path(recording, path);
    crash(&recording->image, &recording->end, power ? CRASH_POWER : CRASH_KILL,
          power && seed_chance(&recording->seed, 800) ? choices_chance(seed_next(&recording->seed))
                                                      : choices_mask(seed_next(&recording->seed)));
    folder_remove(path);
    recording->folder++;
    folder_path(recording, path);
    recording->counts->materialised++;
    return write_files(path, recording->image, err);
}

int record_store(const struct torture *torture, uint64_t seed, struct error *err)
{
    struct recording recording = {
        .torture = torture, .counts = &torture->shared->counts, .seed = seed_fork(seed, 50)};
    char path[4200];
    snprintf(recording.base, sizeof recording.base, "%s/walrus-recorder", torture->folder);
    folder_path(&recording, path);
    if (mkdir(path, 0700) != 0)
        return error_set(err, -errno, "cannot make %s: %s", path, strerror(errno));
    recording.image = image_new(UINT64_MAX);
    ledger_init(&recording.ledger);
    for (uint32_t i = 0; i < 3; i++)
        recording.ledger.levels[i] = torture->level;
    recording.ledger.levels[3] = LEVEL_WRITTEN;
    recording.ledger.levels[4] = LEVEL_ACCEPTED;
    int rc = 0;
    for (uint32_t life = 0; life < LIVES && rc == 0; life++) {
        snprintf(recording.counts->place, sizeof recording.counts->place,
                 "life %u of the recorder's store %llu", life + 1,
                 (unsigned long long)recording.counts->stores + 1);
        rc = live(&recording, err);
        if (torture_ended(torture))
            break;
        if (rc == 0 && life + 1 < LIVES)
            rc = cut_off(&recording, err);
    }
    recording.counts->stores++;
    folder_path(&recording, path);
    folder_remove(path);
    image_free(recording.image);
    ledger_free(&recording.ledger);
    return rc;
}

static void say_nothing(void *context, enum say priority, const char *line)
{
    (void)context, (void)priority, (void)line;
}

int record_try(const struct torture *torture, struct error *err)
{
    char path[4200];
    struct io *real;
    struct log *log;
    snprintf(path, sizeof path, "%s/walrus-recorder.start", torture->folder);
    if (mkdir(path, 0700) != 0)
        return error_set(err, -errno, "cannot make %s: %s", path, strerror(errno));
    int rc = open_real(torture, path, &real, err);
    if (rc == 0) {
        struct log_options options = options_of(torture, false);
        options.io = real;
        options.say = say_nothing;
        rc = log_start(&options, &log, err);
        if (rc == 0)
            rc = log_stop(log, err);
        real->functions->destroy(real);
    }
    folder_remove(path);
    return rc;
}
