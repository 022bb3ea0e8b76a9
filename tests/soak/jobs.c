/* jobs.c: the jobs, and how a lane divides its time between them.
 *
 *   1. First pass: each job in turn does what is required of it, within its share of the time. What one
 *      leaves over is shared by those behind it.
 *   2. Those that did not get there try again, with what is left.
 *   3. When all is done that is required, the rest of the time is divided evenly.
 *
 * A job that failed is not run again; the others go on. Each pass has a seed of its own. */
#include <dirent.h>

#include "soak.h"

#define LEAST_NS (5 * NS_PER_S) /* it is not worth to begin with less */

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
    {"sim", LANE_PROCESSOR, job_sim, 1000000, 0, 500, false,
     "crash images in memory, recovered and judged", NULL, false, NULL},
    {"model", LANE_PROCESSOR, job_model, 1, 0, 150, true,
     "searches of the protocol's model, two faults and two crashes", NULL, false, NULL},
};
/* clang-format on */

static int not_dotted(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

/* Those that take longest have a lane of their own, the others follow the simulator. */
static struct job fuzz_job(const char *name)
{
    bool slow = strcmp(name, "fuzz-store") == 0;
    bool long_one = slow || strcmp(name, "fuzz-message") == 0;
    struct job job = {.name = strdup(name),
                      .lane = long_one ? LANE_FUZZERS : LANE_PROCESSOR,
                      .run = job_fuzz,
                      .required = 10000000,
                      .weight = slow ? 1200 : 550,
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

static uint64_t required_of(const struct soak *soak, const struct job *job)
{
    return soak->is_short ? job->required_short : job->required;
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

/* Each open job of the lane once, within its share. False: there was none, or no time. */
static bool run_each(const struct soak *soak, enum lane lane, struct job *jobs, size_t count, int64_t end_ns,
                     bool lacking, char *saying)
{
    double weights = 0;
    bool any = false;
    for (size_t i = 0; i < count; i++)
        if (jobs[i].lane == lane && is_open(soak, &jobs[i], lacking))
            weights += lacking ? jobs[i].weight : 1;
    for (size_t i = 0; i < count && run_interrupted(NULL) == 0; i++) {
        if (jobs[i].lane != lane || !is_open(soak, &jobs[i], lacking))
            continue;
        double weight = lacking ? jobs[i].weight : 1;
        int64_t now = now_ns(), until = end_ns;
        if (end_ns != INT64_MAX) {
            if (jobs[i].tried->passes > 0 && end_ns - now < LEAST_NS)
                break;
            until = now + (int64_t)((double)(end_ns > now ? end_ns - now : 0) * weight / weights);
        }
        weights -= weight;
        run_pass(soak, &jobs[i], lacking ? required_of(soak, &jobs[i]) - jobs[i].tried->done : 0, until,
                 saying);
        any = true;
    }
    return any;
}

void lane_run(const struct soak *soak, enum lane lane, struct job *jobs, size_t count, int64_t end_ns,
              char *saying)
{
    while (run_interrupted(NULL) == 0 && run_each(soak, lane, jobs, count, end_ns, true, saying) &&
           now_ns() + LEAST_NS < end_ns)
        continue;
    while (end_ns != INT64_MAX && run_interrupted(NULL) == 0 && now_ns() + LEAST_NS < end_ns &&
           run_each(soak, lane, jobs, count, end_ns, false, saying))
        continue;
    snprintf(saying, SAYING, "done");
}
