/* successor.c: a broker is started while writes of its killed predecessor are still in the device (G11).
 *
 *   1. While a broker lives, a second one on its store is refused, and told its pid.
 *   2. The device keeps writes back; when commits have stopped, the broker is killed, and another is started.
 *   3. That one must say that it waits, and must not serve.
 *   4. The device goes on: the predecessor's writes land, its successor serves. All that was acknowledged is
 *      there, and what was open is decided for good: the next life has the same. */
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.h"

#define DEVICE_SIZE (UINT64_C(160) << 20)
#define WAITS       "waiting for the I/O of a dead predecessor"

struct scene {
    struct work *work;
    struct device device;
    struct ledger *ledger;
    struct sight *sight;
    struct daemon first, second;
    struct daemon_options options;
    const char *broken;
    pid_t pids[PRODUCERS];
    char folder[PATH_MAX];
    uint64_t held;
};

static int refused_by_a_living_one(struct scene *scene, struct error *err)
{
    char socket[80], words[40];
    struct daemon daemon = {0};
    struct daemon_options options = scene->options;
    snprintf(socket, sizeof socket, "%s2", scene->work->run.socket);
    snprintf(words, sizeof words, "process %d", (int)scene->first.pid);
    options.socket = socket;
    off_t said = daemon_words(scene->work);
    int rc = daemon_launch(scene->work, &options, &daemon, err);
    if (rc == 0)
        rc = daemon_await_end(&daemon, err);
    bool refused = rc == 0 && WIFEXITED(daemon.status) && WEXITSTATUS(daemon.status) == 1 && !daemon.is_ready;
    unsigned status = (unsigned)daemon.status;
    daemon_kill(&daemon);
    if (rc < 0)
        return error_wrap(err, "a second broker on a store in use");
    if (!refused || !daemon_said(scene->work, said, words))
        return error_set(err, -EBADMSG,
                         "G11: a second broker ended with status %#x, and was to be refused with \"%s\"",
                         status, words);
    return 0;
}

/* Commits have stopped: what they wait for is in the device. */
static int hold(struct scene *scene, struct error *err)
{
    struct device_switches *switches = scene->device.switches;
    int64_t limit = now_ns() + PATIENCE_NS;
    uint64_t acked = 0;
    __atomic_store_n(&switches->hold, HOLD_NEW, __ATOMIC_RELEASE);
    for (int quiet = 0; quiet < 100;) {
        uint64_t now = __atomic_load_n(&scene->ledger->acked, __ATOMIC_RELAXED);
        quiet = now == acked && __atomic_load_n(&switches->held, __ATOMIC_ACQUIRE) > 0 ? quiet + 1 : 0;
        acked = now;
        int rc = verdict_check(&scene->ledger->verdict, err);
        if (rc == 0)
            rc = run_interrupted(err);
        if (rc < 0)
            return rc;
        if (now_ns() > limit)
            return error_set(err, -ETIMEDOUT, "no write is in the device");
        pause_ns(NS_PER_MS);
    }
    scene->held += __atomic_load_n(&switches->held, __ATOMIC_ACQUIRE);
    return 0;
}

static int successor_waits(struct scene *scene, struct error *err)
{
    int64_t limit = now_ns() + PATIENCE_NS / 4;
    off_t said = daemon_words(scene->work);
    kill(scene->first.pid, SIGKILL);
    /* Where a thread does the writes, the process itself cannot end before they have. */
    for (int i = 0; i < 500 && !scene->first.has_ended; i++) {
        daemon_look(&scene->first);
        pause_ns(NS_PER_MS);
    }
    __atomic_store_n(&scene->device.switches->hold, HOLD_KEPT, __ATOMIC_RELEASE);
    int rc = daemon_launch(scene->work, &scene->options, &scene->second, err);
    while (rc == 0 && !daemon_said(scene->work, said, WAITS)) {
        daemon_look(&scene->second);
        if (scene->second.is_ready)
            return error_set(err, -EBADMSG,
                             "G11: a broker serves while its predecessor's writes are in the device");
        if (scene->second.has_ended)
            return error_set(err, -EBADMSG,
                             "G11: a broker whose predecessor's writes are in the device ended "
                             "with status %#x and did not wait",
                             (unsigned)scene->second.status);
        if (now_ns() > limit)
            return error_set(err, -ETIMEDOUT, "a successor neither waits nor serves");
        rc = run_interrupted(err);
        pause_ns(NS_PER_MS);
    }
    for (int i = 0; rc == 0 && i < 20; i++) { /* it does not only say so */
        pause_ns(NS_PER_MS);
        daemon_look(&scene->second);
        if (scene->second.is_ready)
            return error_set(err, -EBADMSG, "G11: a broker said that it waits, and serves");
    }
    return rc;
}

static int judge_and_settle(struct scene *scene, struct error *err)
{
    int rc = ledger_judge(scene->work, scene->ledger, 1, scene->sight, err);
    return rc == 0 ? ledger_settle(scene->work, scene->ledger, scene->sight, err) : rc;
}

static int act(struct scene *scene, struct error *err)
{
    int rc = daemon_start(scene->work, &scene->options, &scene->first, err);
    if (rc == 0)
        rc = refused_by_a_living_one(scene, err);
    if (rc == 0)
        rc = producers_start(scene->work, scene->ledger, scene->pids, err);
    if (rc < 0)
        return rc;
    producers_go(scene->ledger);
    rc = producers_await_acks(scene->ledger, 100, err);
    if (rc == 0)
        rc = hold(scene, err);
    if (rc == 0)
        rc = successor_waits(scene, err);
    __atomic_store_n(&scene->device.switches->hold, HOLD_NONE, __ATOMIC_RELEASE);
    daemon_kill(&scene->first);
    if (rc == 0)
        rc = daemon_await_ready(&scene->second, err);
    if (rc == 0)
        rc = producers_await_parked(scene->ledger, err);
    if (rc == 0)
        rc = judge_and_settle(scene, err);
    if (rc < 0)
        return rc;
    producers_go(scene->ledger);
    rc = producers_await_acks(scene->ledger, 20, err);
    daemon_kill(&scene->second);
    if (rc == 0)
        rc = producers_await_parked(scene->ledger, err);
    if (rc == 0)
        rc = daemon_start(scene->work, &scene->options, &scene->first, err);
    return rc == 0 ? judge_and_settle(scene, err) : rc;
}

static int one_scene(struct scene *scene, const char *backend, struct error *err)
{
    struct work *work = scene->work;
    scene->options =
        (struct daemon_options){.arguments = {"--io", backend, "--segment", "5M"}, .broken = scene->broken};
    scene->ledger = ledger_new(WALRUS_LEVEL_WRITTEN);
    scene->sight = sight_new();
    if (scene->ledger == NULL || scene->sight == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    int rc = file_system_make(scene->device.file, true, "ext4", err);
    if (rc == 0)
        rc = file_system_mount(scene->device.file, true, "ext4", scene->folder, err);
    if (rc != 0)
        return rc;
    rc = act(scene, err);
    __atomic_store_n(&scene->device.switches->hold, HOLD_NONE, __ATOMIC_RELEASE);
    daemon_kill(&scene->first);
    daemon_kill(&scene->second);
    producers_end(scene->pids);
    struct error other = {0};
    int unmounted = file_system_unmount(scene->folder, rc < 0 ? &other : err);
    ledger_free(scene->ledger);
    sight_free(scene->sight);
    scene->ledger = NULL;
    scene->sight = NULL;
    work->done += rc == 0;
    return rc < 0 ? error_wrap(err, "--io %s", backend) : unmounted;
}

static int scene_begin(struct scene *scene, struct work *work, struct error *err)
{
    *scene = (struct scene){.work = work, .device = {.memory = -1}};
    int rc = namespace_make(err);
    if (rc == 0)
        rc = device_make(work, DEVICE_SIZE, &scene->device, err);
    snprintf(scene->folder, sizeof scene->folder, "%s/mounted", work->run.folder);
    snprintf(work->run.store, sizeof work->run.store, "%s/mounted/store", work->run.folder);
    if (rc == 0 && mkdir(scene->folder, 0700) != 0 && errno != EEXIST)
        rc = error_set(err, -errno, "%s: %s", scene->folder, strerror(errno));
    return rc;
}

static void scene_end(struct scene *scene)
{
    ledger_free(scene->ledger);
    sight_free(scene->sight);
    device_remove(&scene->device);
}

/* With io_uring: the thread of the others keeps the process, and so its claim on the store, until the writes
 * are done. */
int successor_broken(struct work *work, struct error *err)
{
    struct scene scene;
    int rc = scene_begin(&scene, work, err);
    scene.broken = "locks";
    if (rc == 0)
        rc = one_scene(&scene, "uring", err);
    scene_end(&scene);
    return rc;
}

int job_successor(struct work *work, struct error *err)
{
    static const char *const backends[] = {"uring", "pwrite", "mmap"};
    struct scene scene;
    int rc = scene_begin(&scene, work, err);
    while (rc == 0 && work_goes_on(work)) {
        for (size_t i = 0; rc == 0 && i < array_count(backends); i++)
            rc = one_scene(&scene, backends[i], err);
        run_progress(&work->run, "%llu successors waited", (unsigned long long)work->done);
    }
    if (rc == 0)
        snprintf(
            work->run.totals, sizeof work->run.totals,
            "%llu successors waited for %llu writes of killed predecessors, then served all; as many second "
            "brokers were refused",
            (unsigned long long)work->done, (unsigned long long)scene.held);
    scene_end(&scene);
    return rc;
}
