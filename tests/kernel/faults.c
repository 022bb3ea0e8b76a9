/* faults.c: devices and file systems that are full or fail (G9, G10).
 *
 * full: a small ext4 on a device whose room is not its size.
 *   1. Writes until the file system is full: they are refused with -ENOSPC, what is there can be read.
 *   2. A file is removed: without a restart writes go on. Kill, restart: nothing is lost.
 *   3. The device itself becomes full: what it holds can be written again, anything else is an error, also
 *      blocks that were prepared as zeroes: at writes or at flushes, as the kernel has it. The broker answers
 *      -EIO, or ends with its own code (74); what is there can be read as long as it lives.
 *   4. Room comes back, the file system is mounted anew: nothing acknowledged is lost, nothing failed is
 *      back.
 *   The device is that of device.c, not a file on a full tmpfs: over one, the loop driver of Linux 6.18
 *   answers a write of 64 pages with 262144 when there is room for 1, 5, 20 or 63 of them, and the flush
 *   behind it with 0; with room for none it is ENOSPC. No file system takes part in that. The kernel puts
 *   mapped pages that are neighbours into one request; where that begins in a block with room, what was
 *   answered at durable is lost.
 *
 * failing: some requests to the recorded device fail while producers work:
 *   - flushes, until the broker has ended. One alone may be that of the file system's journal, or of a file
 *     that is being prepared; the next one, the log's, would be good, and only the device would know what it
 *     has dropped. Then another broker starts on the same mount, if the file system still serves one;
 *   - writes of groups, up to three in a row. A group that fails once is written again behind a new header,
 *     one that fails twice is answered -EIO;
 *   - any writes: mostly those of the journal. What the broker sees of it is a failed flush.
 *   Then the power is cut, in all the ways of crash.c: an answer to anything in a failed group would be a
 *   lost batch, a failed group that can be read would be one that is back. */
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crash.h"

#define EXIT_FLUSH_FAILED  74
#define DISK_BYTES         (UINT64_C(64) << 20)
#define BALLAST_BYTES      (UINT64_C(24) << 20)
#define BLOCK              4096u
#define IMAGES_OF_A_FAULT  4u
#define IMAGES_OF_A_BROKEN 10u

/* Ends with the exit code of a failed flush, or not yet at all. */
static int check_end(const struct daemon *daemon, struct error *err)
{
    if (!daemon->has_ended || (WIFEXITED(daemon->status) && WEXITSTATUS(daemon->status) == EXIT_FLUSH_FAILED))
        return 0;
    return error_set(err, -EBADMSG, "G10: the broker ended with status %#x, not with exit code %d",
                     (unsigned)daemon->status, EXIT_FLUSH_FAILED);
}

/* Until *answers is at least 1 or the broker has ended. `most` acknowledged batches more, or some seconds,
 * are an end, too: the fault met nothing. */
static int await_answers(struct ledger *ledger, struct daemon *daemon, const uint32_t *answers, uint64_t most,
                         struct error *err)
{
    uint64_t wanted = __atomic_load_n(&ledger->acked, __ATOMIC_RELAXED) + most;
    int64_t limit = now_ns() + PATIENCE_NS / 12;
    while (__atomic_load_n(answers, __ATOMIC_RELAXED) == 0) {
        daemon_look(daemon);
        if (daemon->has_ended || now_ns() > limit ||
            __atomic_load_n(&ledger->acked, __ATOMIC_RELAXED) > wanted)
            break;
        int rc = verdict_check(&ledger->verdict, err);
        if (rc == 0)
            rc = run_interrupted(err);
        if (rc < 0)
            return rc;
        pause_ns(NS_PER_MS);
    }
    return check_end(daemon, err);
}

/* ------------------------------------------------------------------------------------- full */

struct full {
    struct work *work;
    struct ledger *ledger;
    struct sight *sight;
    struct daemon daemon;
    struct daemon_options options;
    pid_t pids[PRODUCERS];
    struct device device;
    char folder[PATH_MAX], ballast[PATH_MAX];
    bool device_only;
    uint64_t no_space, errors, ends;
};

static int make_file(const char *path, uint64_t bytes, struct error *err)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int rc = fd >= 0 ? -posix_fallocate(fd, 0, (off_t)bytes) : -errno;
    if (fd >= 0)
        close(fd);
    return rc == 0 ? 0 : error_set(err, rc, "%s: %s", path, strerror(-rc));
}

static int judge(struct full *full, bool settle, struct error *err)
{
    int rc = ledger_judge(full->work, full->ledger, 1, full->sight, err);
    return rc == 0 && settle ? ledger_settle(full->work, full->ledger, full->sight, err) : rc;
}

static int new_life(struct full *full, struct error *err)
{
    int rc = daemon_start(full->work, &full->options, &full->daemon, err);
    return rc == 0 ? judge(full, true, err) : rc;
}

static int fill_file_system(struct full *full, struct error *err)
{
    struct ledger *ledger = full->ledger;
    int64_t limit = now_ns() + PATIENCE_NS / 4;
    int rc = new_life(full, err);
    if (rc < 0)
        return rc;
    producers_go(ledger);
    while (rc == 0 && __atomic_load_n(&ledger->no_space, __ATOMIC_RELAXED) < 10 && now_ns() < limit) {
        pause_ns(NS_PER_MS);
        daemon_look(&full->daemon);
        rc = full->daemon.has_ended ? error_set(err, -ECHILD, "G9: the broker ended on a full disk")
                                    : verdict_check(&ledger->verdict, err);
    }
    if (rc == 0 && ledger->no_space == 0)
        rc = error_set(err, -EBADMSG, "G9: the file system is full and no answer says so");
    if (rc == 0)
        rc = producers_pause(ledger, err);
    if (rc == 0)
        rc = judge(full, false, err); /* reads go on */
    full->no_space += ledger->no_space;
    if (rc < 0)
        return error_wrap(err, "on a full file system");
    if (unlink(full->ballast) != 0)
        return error_set(err, -errno, "%s: %s", full->ballast, strerror(errno));
    producers_resume(ledger);
    rc = producers_await_acks(ledger, 30, err);
    daemon_kill(&full->daemon);
    if (rc == 0)
        rc = producers_await_parked(ledger, err);
    return rc == 0 ? new_life(full, err) : error_wrap(err, "G9: after space came back");
}

static int full_device(struct full *full, struct error *err)
{
    struct ledger *ledger = full->ledger;
    ledger->errors = ledger->no_space = 0;
    __atomic_store_n(&full->device.switches->full, 1, __ATOMIC_RELEASE);
    producers_go(ledger);
    bool sound = full->options.broken == NULL;
    int rc = await_answers(ledger, &full->daemon, &ledger->errors, sound ? UINT64_MAX / 2 : 100, err);
    if (rc == 0 && sound && !full->daemon.has_ended && ledger->errors == 0 && ledger->no_space == 0)
        rc = error_set(err, -EBADMSG, "G9: the device is full and no answer says so");
    full->errors += ledger->errors;
    full->ends += full->daemon.has_ended;
    if (rc == 0 && sound && !full->daemon.has_ended) {
        rc = producers_pause(ledger, err);
        daemon_look(&full->daemon);
        if (rc == 0 && !full->daemon.has_ended)
            rc = judge(full, false, err);
    }
    daemon_kill(&full->daemon);
    producers_resume(ledger);
    if (rc == 0)
        rc = producers_await_parked(ledger, err);
    __atomic_store_n(&full->device.switches->full, 0, __ATOMIC_RELEASE);
    return rc < 0 ? error_wrap(err, "on a full device") : 0;
}

static int full_act(struct full *full, struct error *err)
{
    int rc = producers_start(full->work, full->ledger, full->pids, err);
    if (rc == 0)
        rc = full->device_only ? new_life(full, err) : fill_file_system(full, err);
    if (rc == 0)
        rc = full_device(full, err);
    struct error other = {0};
    daemon_kill(&full->daemon);
    int unmounted = file_system_unmount(full->folder, rc < 0 ? &other : err);
    if (rc == 0)
        rc = unmounted;
    if (rc == 0)
        rc = file_system_mount(full->device.file, true, "ext4", full->folder, err);
    if (rc != 0)
        return rc < 0 ? rc : error_set(err, -EIO, "mounting again: %s", err->text);
    full->options.broken = NULL;
    rc = new_life(full, err);
    if (rc == 0) {
        producers_go(full->ledger);
        rc = producers_await_acks(full->ledger, 20, err);
    }
    daemon_kill(&full->daemon);
    return rc < 0 ? error_wrap(err, "after the device was full") : 0;
}

static int full_round(struct full *full, const char *backend, const char *broken, struct error *err)
{
    full->options =
        (struct daemon_options){.arguments = {"--io", backend, "--segment", "5M"}, .broken = broken};
    full->device_only = broken != NULL;
    full->ledger = ledger_new(WALRUS_LEVEL_WRITTEN);
    full->sight = sight_new();
    if (full->ledger == NULL || full->sight == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    full->ledger->may_fail = true;
    int rc = file_system_make(full->device.file, true, "ext4", err);
    if (rc == 0)
        rc = file_system_mount(full->device.file, true, "ext4", full->folder, err);
    if (rc == 0)
        rc = make_file(full->ballast, BALLAST_BYTES, err);
    if (rc == 0)
        rc = full_act(full, err);
    daemon_kill(&full->daemon);
    producers_end(full->pids);
    struct error ignored = {0};
    (void)!file_system_unmount(full->folder, &ignored);
    ledger_free(full->ledger);
    sight_free(full->sight);
    full->ledger = NULL;
    full->sight = NULL;
    return rc < 0 ? error_wrap(err, "--io %s", backend) : rc;
}

static int full_begin(struct full *full, struct work *work, struct error *err)
{
    const char *at = work->run.folder;
    *full = (struct full){.work = work, .device = {.memory = -1}};
    snprintf(full->folder, sizeof full->folder, "%s/mounted", at);
    snprintf(full->ballast, sizeof full->ballast, "%s/mounted/ballast", at);
    snprintf(work->run.store, sizeof work->run.store, "%s/mounted/store", at);
    int rc = namespace_make(err);
    if (rc == 0)
        rc = device_make(work, DISK_BYTES, &full->device, err);
    if (rc == 0 && mkdir(full->folder, 0700) != 0 && errno != EEXIST)
        rc = error_set(err, -errno, "%s: %s", at, strerror(errno));
    return rc;
}

int full_broken(struct work *work, struct error *err)
{
    struct full full;
    int rc = full_begin(&full, work, err);
    if (rc == 0)
        rc = full_round(&full, "pwrite", "errors", err);
    device_remove(&full.device);
    return rc;
}

int job_full(struct work *work, struct error *err)
{
    static const char *const backends[] = {"uring", "mmap", "pwrite"};
    struct full full;
    int rc = full_begin(&full, work, err);
    uint64_t first = random_below(&work->run.random, array_count(backends));
    while (rc == 0 && work_goes_on(work)) {
        rc = full_round(&full, backends[(first + work->done) % array_count(backends)], NULL, err);
        work->done += rc == 0;
        run_progress(&work->run, "%llu times full", (unsigned long long)work->done);
    }
    device_remove(&full.device);
    if (rc == 0)
        snprintf(
            work->run.totals, sizeof work->run.totals,
            "%llu times: a full file system (%llu answers -ENOSPC, then healed), a full device (%llu answers "
            "-EIO, %llu fail-stops); nothing lost, nothing back",
            (unsigned long long)work->done, (unsigned long long)full.no_space,
            (unsigned long long)full.errors, (unsigned long long)full.ends);
    return rc;
}

/* ------------------------------------------------------------------------------------- failing */

enum fault { FAULT_FLUSH, FAULT_GROUP, FAULT_WRITE, FAULTS };
static const char *const fault_names[FAULTS] = {"flush", "write of a group", "write"};

struct failing {
    struct crash crash;
    enum fault fault;
    uint32_t count;
    uint64_t met, ends, errors, rolled, given_up, went_on;
};

/* What the log did about failed groups: a roll-back for each, and the second in a row for good. Groups follow
 * one another, so the countdown says how many there were. */
static int check_rolls(const struct failing *failing, uint32_t left, struct error *err)
{
    uint32_t met = failing->count - left;
    if (failing->crash.daemon.has_ended || (failing->rolled == met && failing->given_up == met / 2))
        return 0;
    return error_set(err, -EBADMSG,
                     "G3: %u writes of groups failed in a row; the log says of %llu that they are rolled "
                     "back, and of %llu that this is for good",
                     met, (unsigned long long)failing->rolled, (unsigned long long)failing->given_up);
}

/* The next groups of the log are written, and fail, or the broker has ended. */
static int await_groups(const struct failing *failing, struct daemon *daemon, const uint32_t *left,
                        struct error *err)
{
    int64_t limit = now_ns() + PATIENCE_NS / 4;
    while (__atomic_load_n(left, __ATOMIC_ACQUIRE) != 0 && !daemon->has_ended) {
        int rc = verdict_check(&failing->crash.ledger->verdict, err);
        if (rc == 0)
            rc = run_interrupted(err);
        if (rc < 0)
            return rc;
        if (now_ns() > limit)
            return error_set(err, -EPROTO, "no group is written: the fault meets nothing");
        pause_ns(NS_PER_MS);
        daemon_look(daemon);
    }
    return 0;
}

/* Another broker on the same mount, if the file system still serves one: it sees what the failed flush left
 * in the device, and a later cut may find it gone. */
static int life_after(struct failing *failing, struct error *err)
{
    struct crash *crash = &failing->crash;
    struct daemon *daemon = &crash->daemon;
    struct life_options life;
    uint32_t never = 0;
    int64_t limit = now_ns() + PATIENCE_NS;
    int rc = producers_await_parked(crash->ledger, err);
    daemon_kill(daemon);
    crash_life_options(crash, &life);
    if (rc == 0)
        rc = daemon_launch(crash->work, &life.options, daemon, err);
    while (rc == 0 && !daemon->is_ready && !daemon->has_ended && now_ns() < limit) {
        pause_ns(NS_PER_MS);
        daemon_look(daemon);
        rc = run_interrupted(err);
    }
    if (rc < 0 || daemon->has_ended)
        return rc;
    rc = ledger_judge(crash->work, crash->ledger, work_position(crash->work), crash->sight, err);
    if (rc == 0)
        rc = ledger_settle(crash->work, crash->ledger, crash->sight, err);
    if (rc < 0 && rc != -EBADMSG)
        daemon_look(daemon);
    if (rc < 0)
        return daemon->has_ended ? check_end(daemon, err) : error_wrap(err, "in the life after it");
    failing->went_on = 1;
    producers_go(crash->ledger);
    return await_answers(crash->ledger, daemon, &never, 50, err);
}

static int inject(struct crash *crash, struct error *err)
{
    struct failing *failing = (struct failing *)(void *)crash;
    struct device_switches *switches = crash->device.switches;
    uint32_t *countdowns[FAULTS] = {&switches->fail_flushes, &switches->fail_groups, &switches->fail_writes};
    uint32_t *left = countdowns[failing->fault], never = 0;
    struct ledger *ledger = crash->ledger;
    struct daemon *daemon = &crash->daemon;
    off_t said = daemon_words(crash->work);
    crash->fault_at = device_position(&crash->device);
    __atomic_store_n(left, failing->count, __ATOMIC_RELEASE);
    int rc = failing->fault == FAULT_GROUP ? await_groups(failing, daemon, left, err) : 0;
    if (rc == 0)
        rc = await_answers(ledger, daemon, &ledger->errors, 200, err);
    if (rc == 0 && failing->fault == FAULT_GROUP) /* the log goes on behind it */
        rc = await_answers(ledger, daemon, &never, 30, err);
    uint32_t rest = __atomic_exchange_n(left, 0, __ATOMIC_ACQ_REL);
    failing->met = failing->fault == FAULT_FLUSH ? rest < failing->count : rest == 0;
    failing->ends = daemon->has_ended;
    if (rc == 0 && failing->fault == FAULT_GROUP && !daemon->has_ended)
        rc = producers_pause(ledger, err); /* what was in flight when the countdown ended is over then */
    failing->errors = ledger->errors;
    failing->rolled = daemon_said_times(crash->work, said, "; rolling back");
    failing->given_up = daemon_said_times(crash->work, said, " is rolled back for good ");
    producers_resume(ledger);
    if (rc == 0 && failing->fault == FAULT_GROUP && crash->broken == NULL)
        rc = check_rolls(failing, rest, err);
    return rc == 0 && daemon->has_ended ? life_after(failing, err) : rc;
}

static int failing_round(struct failing *failing, struct work *work, enum fault fault, uint64_t turn,
                         struct error *err)
{
    static const char *const types[] = {"ext4", "xfs"};
    static const uint32_t counts[] = {2, 1, 3};
    *failing = (struct failing){.fault = fault};
    failing->count = failing->fault == FAULT_FLUSH   ? UINT32_MAX
                     : failing->fault == FAULT_GROUP ? counts[turn % array_count(counts)]
                                                     : 1 + (uint32_t)random_below(&work->run.random, 3);
    int rc = crash_begin(&failing->crash, work, types[random_below(&work->run.random, 2)], err);
    failing->crash.fault = inject;
    failing->crash.no_mmap =
        failing->fault == FAULT_GROUP && failing->count > 1; /* with it a failed write is a failed flush */
    if (rc == 0)
        rc = crash_round(&failing->crash, IMAGES_OF_A_FAULT, err);
    return rc < 0 ? error_wrap(err, "a %s that fails", fault_names[failing->fault]) : rc;
}

/* One request fails, later ones are good. All cuts are where something was answered; of what was dropped or
 * pending nothing is left. */
static int failing_broken(struct work *work, enum fault fault, const char *broken, struct error *err)
{
    struct failing failing = {.fault = fault, .count = 1};
    int rc = crash_begin(&failing.crash, work, "ext4", err);
    failing.crash.fault = inject;
    failing.crash.broken = broken;
    failing.crash.only_flushed = true;
    if (rc == 0)
        rc = crash_round(&failing.crash, IMAGES_OF_A_BROKEN, err);
    crash_end(&failing.crash);
    return rc;
}

int failing_flush_broken(struct work *work, struct error *err)
{
    return failing_broken(work, FAULT_FLUSH, "again", err);
}

int failing_group_broken(struct work *work, struct error *err)
{
    return failing_broken(work, FAULT_GROUP, "errors", err);
}

int job_failing(struct work *work, struct error *err)
{
    struct failing failing;
    uint64_t images = 0, met = 0, ends = 0, errors = 0, rolled = 0, given_up = 0, went_on = 0;
    int rc = 0;
    while (rc == 0 && work_goes_on(work)) {
        rc = failing_round(&failing, work, (enum fault)(work->done % FAULTS), work->done / FAULTS, err);
        images += failing.crash.images;
        met += failing.met;
        ends += failing.ends;
        errors += failing.errors;
        rolled += failing.rolled;
        given_up += failing.given_up;
        went_on += failing.went_on;
        crash_end(&failing.crash);
        work->done += rc == 0;
        run_progress(&work->run, "%llu faults", (unsigned long long)work->done);
    }
    /* A group may hold nothing but batches that were answered before it was written; not every time. */
    if (rc == 0 && given_up >= 3 && errors == 0)
        rc = error_set(err, -EPROTO, "%llu groups were rolled back for good, and nothing was answered -EIO",
                       (unsigned long long)given_up);
    if (rc == 0)
        snprintf(work->run.totals, sizeof work->run.totals,
                 "%llu faults (%llu met a request): %llu fail-stops with exit code %d (%llu times the next "
                 "broker could work on the same mount), %llu groups rolled "
                 "back, %llu of them for good, %llu answers -EIO; %llu images",
                 (unsigned long long)work->done, (unsigned long long)met, (unsigned long long)ends,
                 EXIT_FLUSH_FAILED, (unsigned long long)went_on, (unsigned long long)rolled,
                 (unsigned long long)given_up, (unsigned long long)errors, (unsigned long long)images);
    return rc;
}
