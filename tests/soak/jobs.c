/* jobs.c: the jobs, and how the lanes divide the time between them.
 *
 *   1. A lane takes the job that lacks most of what is required (the brokers' lane one with brokers, the
 *      others one that only computes) and gives it its share of the time that is left. Nobody else has it
 *      meanwhile.
 *   2. One that did not get there is taken again once all have had their turn, with what is left.
 *   3. The brokers' lane helps with what only computes once it lacks nothing itself.
 *   4. When nothing lacks that is not being done, the rest of the time goes into the same jobs in turns; the
 *      lanes that only compute step back then, so that what still lacks gets the processor.
 *
 * A job that failed is not run again; the others go on. Each pass has a seed of its own. */
#include <dirent.h>
#include <unistd.h>

#include "soak.h"

#define LEAST_NS   (5 * NS_PER_S) /* it is not worth to begin with less */
#define MORE_NS    (60 * NS_PER_S)
#define COMPUTERS  2.0 /* lanes that only compute */
#define POLITENESS 5
#define STEP_BACK  10

/* clang-format off */
static const struct job fixed[] = {
    {"exactly-once", LANE_BROKERS, job_exactly_once, 200, 5, 60, false,
     "kills of the broker under four producers that send again", NULL, false, NULL},
    {"connect-kill", LANE_BROKERS, job_connect_kill, 20000, 600, 120, false,
     "clients that connect and are killed", NULL, false, NULL},
    {"big-batch", LANE_BROKERS, job_big_batch, 10240, 1024, 90, true, "MiB in one batch", NULL, false, NULL},
    {"take-over", LANE_BROKERS, job_take_over, 500, 20, 20, false,
     "times that a producer's name is taken over", NULL, false, NULL},
    {"hostile", LANE_BROKERS, job_hostile, 120, 5, 120, false,
     "seconds of a hostile client beside an honest one", NULL, false, NULL},
    {"kill", LANE_BROKERS, job_kernel, 1000, 0, 600, false,
     "kills of the broker, all read back each time", "kill kills 10", false, NULL},
    {"ext4", LANE_BROKERS, job_kernel, 200, 0, 60, false,
     "images of an ext4 after a power cut, mounted, recovered, judged", "ext4 images 20", false, NULL},
    {"xfs", LANE_BROKERS, job_kernel, 200, 0, 60, false, "the same with xfs", "xfs images 20", false, NULL},
    {"full", LANE_BROKERS, job_kernel, 5, 0, 30, false,
     "times that the file system, then the device below it, is full", "full faults 1", false, NULL},
    {"failing", LANE_BROKERS, job_kernel, 20, 0, 30, false,
     "times that a write or a flush of the device fails", "failing faults 2", false, NULL},
    {"successor", LANE_BROKERS, job_kernel, 5, 0, 30, false,
     "starts while writes of a killed broker are in the device", "successor successors 1", false, NULL},
    {"cries", LANE_BROKERS, job_kernel, 4, 0, 30, true,
     "proofs that the jobs above notice a broker without flushes", "cries cries 2", false, NULL},
    {"torture", LANE_BROKERS, job_torture, 120, 0, 120, false,
     "seconds of `walrus torture` on the file system of the stores", NULL, false, NULL},
    {"sim", LANE_FIRST, job_sim, 1000000, 0, 350, false,
     "crash images in memory, recovered and judged", NULL, false, NULL},
    {"model", LANE_FIRST, job_model, 1, 0, 150, true,
     "searches of the protocol's model, two faults and two crashes", NULL, false, NULL},
};
/* clang-format on */

static int not_dotted(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static struct job fuzz_job(const char *name)
{
    bool slow = strcmp(name, "fuzz-store") == 0;
    struct job job = {.name = strdup(name),
                      .lane = LANE_FIRST,
                      .run = job_fuzz,
                      .required = 10000000,
                      .weight = slow ? 750 : 350,
                      .words = "executions of this fuzz target"};
    check_bug(job.name != NULL);
    return job;
}

size_t jobs_list(const struct soak *soak, struct job jobs[MOST_JOBS])
{
    struct dirent **names;
    size_t count = array_count(fixed);
    memcpy(jobs, fixed, sizeof fixed);
    int found = soak->corpus != NULL ? scandir(soak->corpus, &names, not_dotted, alphasort) : -1;
    for (int i = 0; i < found; i++) {
        char name[80];
        snprintf(name, sizeof name, "fuzz-%.60s", names[i]->d_name);
        free(names[i]);
        if (count == MOST_JOBS)
            continue;
        jobs[count++] = fuzz_job(name);
    }
    if (found >= 0)
        free(names);
    return count;
}

/* ------------------------------------------------------------------------------------- passes */

uint64_t required_of(const struct soak *soak, const struct job *job)
{
    uint64_t required = soak->is_short ? job->required_short : job->required;
    return required > soak->part ? required / soak->part : required;
}

static void run_pass(const struct soak *soak, const struct job *job, uint64_t target, int64_t until_ns,
                     char *saying)
{
    struct error err = {0};
    struct tried *tried = job->tried;
    int64_t now = now_ns();
    struct run run = {.soak = soak,
                      .name = job->name,
                      .argument = job->argument,
                      .required = target,
                      .seed = soak->seed + tried->passes * 1000003,
                      .random = soak->seed ^ tried->passes << 48 ^ (uint64_t)job->name[0] << 32,
                      .started_ns = now,
                      .until_ns = until_ns,
                      .saying = saying,
                      .output = -1};
    snprintf(saying, SAYING, "%s", job->name);
    int rc = place_make(&run, &err);
    if (rc == 0)
        rc = job->run(&run, &err);
    if (rc < 0 && rc != -EINTR)
        broker_print_log(&run);
    place_remove(&run);
    double seconds = (double)(now_ns() - now) / 1e9;
    tried->passes++;
    tried->seconds += seconds;
    tried->done += run.done;
    tried->images += run.images;
    tried->kills += run.kills;
    tried->skipped = rc == SOAK_SKIPPED;
    tried->failed = rc < 0 && rc != -EINTR;
    if (rc != 0)
        snprintf(tried->words, sizeof tried->words, "%.390s", err.text);
    if (rc == SOAK_SKIPPED)
        printf("soak: %s: SKIPPED: %s\n", job->name, err.text);
    else if (rc == 0)
        printf("soak: %s: passed: %s; %.1f s\n", job->name, run.totals, seconds);
    else
        printf("soak: %s: FAILED after %.1f s: %s (seed %llu)\n", job->name, seconds, err.text,
               (unsigned long long)run.seed);
    fflush(stdout);
}

/* May it be run again, and does it lack something? */
static bool is_open(const struct soak *soak, const struct job *job, bool lacking)
{
    const struct tried *tried = job->tried;
    if (!job->wanted || tried->skipped || tried->failed)
        return false;
    return lacking ? tried->done < required_of(soak, job) : !job->once;
}

static bool is_mine(enum lane lane, const struct job *job)
{
    return (lane == LANE_BROKERS) == (job->lane == LANE_BROKERS);
}

/* What a job still needs, in seconds of `weight`; of one that is being done, by the time that it has left. */
static double lacks(const struct soak *soak, const struct job *job, int64_t now)
{
    const struct tried *tried = job->tried;
    uint64_t required = required_of(soak, job);
    if (!is_open(soak, job, true))
        return 0;
    double left = job->weight * (1 - (double)tried->done / (double)required);
    int64_t from = __atomic_load_n(&tried->from_ns, __ATOMIC_RELAXED);
    int64_t until = __atomic_load_n(&tried->until_ns, __ATOMIC_RELAXED);
    if (__atomic_load_n(&tried->taken, __ATOMIC_ACQUIRE) && until > from && until != INT64_MAX)
        left *= until > now ? (double)(until - now) / (double)(until - from) : 0;
    return left;
}

/* Goes before the other: had fewer passes, or lacks more. */
static bool goes_before(const struct soak *soak, const struct job *one, const struct job *other, int64_t now)
{
    if (one->tried->passes != other->tried->passes)
        return one->tried->passes < other->tried->passes;
    return lacks(soak, one, now) > lacks(soak, other, now);
}

static bool take(struct job *job)
{
    return !__atomic_exchange_n(&job->tried->taken, true, __ATOMIC_ACQ_REL);
}

/* The one that lacks most and that nobody is at; NULL: there is none. It is ours then. */
static struct job *take_lacking(const struct soak *soak, bool brokers, struct job *jobs, size_t count)
{
    for (;;) {
        struct job *most = NULL;
        int64_t now = now_ns();
        for (size_t i = 0; i < count; i++)
            if ((jobs[i].lane == LANE_BROKERS) == brokers &&
                !__atomic_load_n(&jobs[i].tried->taken, __ATOMIC_ACQUIRE) && is_open(soak, &jobs[i], true) &&
                (most == NULL || goes_before(soak, &jobs[i], most, now)))
                most = &jobs[i];
        if (most == NULL)
            return NULL;
        if (!take(most))
            continue;
        if (is_open(soak, most, true))
            return most;
        __atomic_store_n(&most->tried->taken, false, __ATOMIC_RELEASE);
    }
}

static int64_t share_of(const struct soak *soak, const struct job *job, const struct job *jobs, size_t count,
                        int64_t now, int64_t end_ns)
{
    double sum = 0, lanes = job->lane == LANE_BROKERS ? 1 : COMPUTERS;
    if (end_ns == INT64_MAX)
        return end_ns;
    for (size_t i = 0; i < count; i++)
        if ((jobs[i].lane == LANE_BROKERS) == (job->lane == LANE_BROKERS))
            sum += &jobs[i] == job
                       ? job->weight * (1 - (double)job->tried->done / (double)required_of(soak, job))
                       : lacks(soak, &jobs[i], now);
    double mine = job->weight * (1 - (double)job->tried->done / (double)required_of(soak, job));
    double part = sum > 0 ? lanes * mine / sum : 1;
    int64_t left = end_ns > now ? end_ns - now : 0;
    return now + (part < 1 ? (int64_t)((double)left * part) : left);
}

static void run_taken(const struct soak *soak, struct job *job, uint64_t target, int64_t until, char *saying)
{
    __atomic_store_n(&job->tried->from_ns, now_ns(), __ATOMIC_RELAXED);
    __atomic_store_n(&job->tried->until_ns, until, __ATOMIC_RELAXED);
    run_pass(soak, job, target, until, saying);
    __atomic_store_n(&job->tried->taken, false, __ATOMIC_RELEASE);
}

/* Something that was required. False: there is nothing, or no time. */
static bool run_lacking(const struct soak *soak, bool brokers, struct job *jobs, size_t count, int64_t end_ns,
                        char *saying)
{
    struct job *job = take_lacking(soak, brokers, jobs, count);
    if (job == NULL)
        return false;
    int64_t now = now_ns();
    bool time = end_ns == INT64_MAX || job->tried->passes == 0 || end_ns - now >= LEAST_NS;
    if (time)
        run_taken(soak, job, required_of(soak, job) - job->tried->done,
                  share_of(soak, job, jobs, count, now, end_ns), saying);
    else
        __atomic_store_n(&job->tried->taken, false, __ATOMIC_RELEASE);
    return time;
}

/* More of what had the fewest passes. False: there is nothing, or no time. */
static bool run_more(const struct soak *soak, enum lane lane, struct job *jobs, size_t count, int64_t end_ns,
                     char *saying)
{
    struct job *least = NULL;
    int64_t now = now_ns();
    if (end_ns == INT64_MAX || end_ns - now < LEAST_NS)
        return false;
    for (size_t i = 0; i < count; i++)
        if (is_mine(lane, &jobs[i]) && is_open(soak, &jobs[i], false) &&
            !__atomic_load_n(&jobs[i].tried->taken, __ATOMIC_ACQUIRE) &&
            (least == NULL || jobs[i].tried->passes < least->tried->passes))
            least = &jobs[i];
    if (least == NULL || !take(least))
        return least != NULL;
    run_taken(soak, least, 0, now + (end_ns - now < 2 * MORE_NS ? end_ns - now : MORE_NS), saying);
    return true;
}

void lane_run(const struct soak *soak, enum lane lane, struct job *jobs, size_t count, int64_t end_ns,
              char *saying)
{
    bool brokers = lane == LANE_BROKERS, stepped_back = brokers;
    if (!brokers)
        (void)!nice(POLITENESS); /* brokers wait for the disk most of the time, and are short of the rest */
    while (run_interrupted(NULL) == 0) {
        if (run_lacking(soak, brokers, jobs, count, end_ns, saying))
            continue;
        if (brokers && run_lacking(soak, false, jobs, count, end_ns, saying))
            continue;
        if (!stepped_back)
            (void)!nice(STEP_BACK);
        stepped_back = true;
        if (!run_more(soak, lane, jobs, count, end_ns, saying))
            break;
    }
    snprintf(saying, SAYING, "done");
}
