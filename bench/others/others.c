/* others.c: walrus-bench-others: the load of walrus-bench through another store, one run of one engine.
 *
 * Happy path
 *   1. Make a folder of its own below --dir, go there, open the store; one thread per worker (engine.h says
 *      what a worker is).
 *   2. Warm up; measure; stop: by time, by bytes or by a count of batches of all together. A batch is one
 *      sample, from before its entries are filled in to after its answer, as for a producer of walrus-bench.
 *   3. Close the store, open it again where that is possible, count what is there: every answered entry must
 *      be.
 *   4. Print one JSON object; remove the folder.
 *
 * Failure modes: an engine that was not built in or has no program here: exit status 77. What fails, and a
 * signal, ends it with 1, its words on stderr, its folder removed and no server left (engine_redis.c). */
#include <dirent.h>
#include <ftw.h>
#include <getopt.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../histogram.h"
#include "../load.h"
#include "../payload.h"
#include "../phases.h"
#include "engine.h"

#define WARM_NS      INT64_C(150000000)
#define WORKERS_MOST 256u
#define NOT_THERE    77

static const struct engine *const engines[] = {
#ifdef WALRUS_ROCKSDB_VERSION
    &engine_rocksdb,
#endif
#ifdef WALRUS_HAVE_SQLITE
    &engine_sqlite,
#endif
#ifdef WALRUS_HAVE_HIREDIS
    &engine_redis,
#endif
    NULL,
};

struct job {
    const struct engine *engine;
    struct load load;
    struct payload_pool pool;
    void *store;
    uint64_t *topic_entries;                    /* per topic: sequences given out */
    uint64_t *producer_batches;                 /* per producer: batches begun */
    uint64_t begun, warm_batches, most_batches; /* of all; 0: no limit */
    uint32_t phase;                             /* enum phase */
    int64_t from[PHASE_STOP + 1];               /* when each phase began */
    int64_t phase_ns[PHASE_STOP + 1];
    uint32_t failed;
    volatile sig_atomic_t interrupted;
};

struct worker {
    struct job *job;
    pthread_t thread;
    uint32_t producer, depth;
    void *handle;
    uint8_t *data;
    uint64_t commits;
    struct histogram latency;
    struct error error;
};

/* A signal handler can reach nothing else. */
static struct job *signalled_job;

static void on_signal(int number)
{
    (void)number;
    signalled_job->interrupted = 1;
}

/* The first who sees that a phase is over ends it. */
static enum phase look_at_phase(struct job *job, int64_t now)
{
    uint32_t phase = __atomic_load_n(&job->phase, __ATOMIC_ACQUIRE);
    uint64_t begun = __atomic_load_n(&job->begun, __ATOMIC_RELAXED);
    bool over = job->interrupted != 0 || __atomic_load_n(&job->failed, __ATOMIC_RELAXED) != 0;
    if (phase == PHASE_STOP)
        return PHASE_STOP;
    if (phase == PHASE_WARM)
        over = over || (job->warm_batches != 0 && begun >= job->warm_batches) ||
               (job->phase_ns[PHASE_WARM] != 0 && now - job->from[PHASE_WARM] >= job->phase_ns[PHASE_WARM]);
    else
        over = over || (job->most_batches != 0 && begun >= job->most_batches) ||
               (job->phase_ns[PHASE_MEASURE] != 0 &&
                now - job->from[PHASE_MEASURE] >= job->phase_ns[PHASE_MEASURE]);
    if (!over)
        return (enum phase)phase;
    int64_t unset = 0;
    (void)__atomic_compare_exchange_n(&job->from[phase + 1], &unset, now, false, __ATOMIC_ACQ_REL,
                                      __ATOMIC_ACQUIRE);
    (void)__atomic_compare_exchange_n(&job->phase, &phase, phase + 1, false, __ATOMIC_ACQ_REL,
                                      __ATOMIC_ACQUIRE);
    return (enum phase)__atomic_load_n(&job->phase, __ATOMIC_ACQUIRE);
}

static int send_one(struct worker *worker)
{
    struct job *job = worker->job;
    const struct load *load = &job->load;
    __atomic_add_fetch(&job->begun, 1, __ATOMIC_RELAXED);
    uint64_t number = __atomic_fetch_add(&job->producer_batches[worker->producer], 1, __ATOMIC_RELAXED);
    uint32_t topic = producers_topic(load, worker->producer, number);
    uint64_t word = payload_batch_word(0, worker->producer, number);
    for (uint32_t i = 0; i < load->batch; i++)
        payload_fill(&job->pool, word, i, worker->data + i * load->size, load->size);
    struct engine_batch batch = {
        .data = worker->data,
        .size = load->size,
        .entries = load->batch,
        .topic = topic,
        .first = __atomic_fetch_add(&job->topic_entries[topic], load->batch, __ATOMIC_RELAXED),
    };
    return job->engine->send(worker->handle, &batch, &worker->error);
}

static int work(struct worker *worker)
{
    struct job *job = worker->job;
    int64_t begun[1024];
    bool sampled[1024];
    uint64_t sent = 0, received = 0;
    for (;;) {
        enum phase phase = look_at_phase(job, now_ns());
        while (phase < PHASE_STOP && sent - received < worker->depth) {
            uint64_t slot = sent % worker->depth;
            begun[slot] = now_ns();
            sampled[slot] = phase == PHASE_MEASURE;
            int code = send_one(worker);
            if (code < 0)
                return code;
            sent++;
            phase = look_at_phase(job, now_ns());
        }
        if (sent == received)
            return 0;
        int code = job->engine->receive != NULL ? job->engine->receive(worker->handle, &worker->error) : 0;
        if (code < 0)
            return code;
        int64_t now = now_ns();
        if (sampled[received % worker->depth])
            histogram_add(&worker->latency, now - begun[received % worker->depth], 1);
        received++;
        worker->commits += look_at_phase(job, now) == PHASE_MEASURE;
    }
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    if (work(worker) < 0)
        __atomic_add_fetch(&worker->job->failed, 1, __ATOMIC_RELAXED);
    return NULL;
}

static int workers_open(struct job *job, struct worker *workers, uint32_t count, struct error *err)
{
    int code = 0;
    for (uint32_t i = 0; i < count && code == 0; i++) {
        workers[i].job = job;
        workers[i].producer = i % job->load.producers;
        workers[i].depth = job->engine->pipelines ? job->load.depth : 1;
        histogram_clear(&workers[i].latency);
        workers[i].data = malloc(load_batch_bytes(&job->load));
        if (workers[i].data == NULL)
            return error_set(err, -ENOMEM, "out of memory");
        code = job->engine->worker_open(job->store, &workers[i].handle, err);
    }
    return code;
}

static int workers_run(struct job *job, struct worker *workers, uint32_t count, struct error *err)
{
    uint32_t started = 0;
    job->phase = PHASE_WARM;
    job->from[PHASE_WARM] = now_ns();
    for (; started < count; started++)
        if (pthread_create(&workers[started].thread, NULL, worker_main, &workers[started]) != 0) {
            __atomic_add_fetch(&job->failed, 1, __ATOMIC_RELAXED);
            break;
        }
    for (uint32_t i = 0; i < started; i++)
        pthread_join(workers[i].thread, NULL);
    for (uint32_t i = 0; i < started; i++)
        if (workers[i].error.code != 0)
            return error_set(err, workers[i].error.code, "%s", workers[i].error.text);
    if (job->interrupted != 0)
        return error_set(err, -EINTR, "interrupted");
    return started < count ? error_set(err, -EAGAIN, "cannot start a thread") : 0;
}

/* Everything that was answered is there. */
static int check(struct job *job, const struct engine_options *options, struct error *err)
{
    if (job->engine->reopen != NULL) {
        int code = job->engine->reopen(&job->store, options, err);
        if (code < 0)
            return code;
    }
    for (uint32_t topic = 0; topic < job->load.topics; topic++) {
        uint64_t there = 0;
        if (job->topic_entries[topic] == 0)
            continue;
        int code = job->engine->count(job->store, topic, &there, err);
        if (code < 0)
            return code;
        if (there != job->topic_entries[topic])
            return error_set(err, -EIO, "%s: topic %u has %llu entries, %llu were written", job->engine->name,
                             topic, (unsigned long long)there, (unsigned long long)job->topic_entries[topic]);
    }
    return 0;
}

static int print(const struct job *job, const struct engine_options *options, const struct worker *workers,
                 uint32_t count)
{
    static struct histogram sum;
    double seconds = (double)(job->from[PHASE_STOP] - job->from[PHASE_MEASURE]) / 1e9;
    uint64_t commits = 0;
    char how[200];
    histogram_clear(&sum);
    for (uint32_t i = 0; i < count; i++) {
        histogram_merge(&sum, &workers[i].latency);
        commits += workers[i].commits;
    }
    struct quantiles q = histogram_quantiles(&sum);
    struct curve curve = histogram_curve(&sum);
    double commits_per_s = seconds > 0 ? (double)commits / seconds : 0;
    json_t *points = json_array();
    for (uint32_t i = 0; i < CURVE_POINTS; i++)
        json_array_append_new(points, json_real(curve.us[i]));
    snprintf(how, sizeof how, "%s%s", job->engine->how, options->sync ? "" : "; here nothing is flushed");
    json_t *root =
        json_pack("{ss ss ss sf sf sf s{sf sf sf sf sf sI} so}", "engine", job->engine->name, "version",
                  job->engine->version(job->store), "how", how, "seconds", seconds, "commits_per_s",
                  commits_per_s, "bytes_per_s", commits_per_s * (double)load_batch_bytes(&job->load),
                  "latency_us", "p50", q.p50, "p90", q.p90, "p99", q.p99, "p999", q.p999, "max", q.max,
                  "samples", (json_int_t)q.samples, "curve_us", points);
    int code =
        json_dumpf(root, stdout, JSON_REAL_PRECISION(9)) < 0 || putchar('\n') < 0 || fflush(stdout) != 0
            ? -EIO
            : 0;
    json_decref(root);
    return code;
}

static int run(struct job *job, const struct engine_options *options, struct error *err)
{
    const struct load *load = &job->load;
    uint32_t count = job->engine->pipelines ? load->producers : load->producers * load->depth;
    if (count > WORKERS_MOST || load->depth > 1024)
        return error_set(err, -EINVAL, "%u workers are too many", count);
    struct worker *workers = calloc(count, sizeof *workers);
    job->topic_entries = calloc(load->topics, sizeof *job->topic_entries);
    job->producer_batches = calloc(load->producers, sizeof *job->producer_batches);
    int code = -ENOMEM;
    if (workers == NULL || job->topic_entries == NULL || job->producer_batches == NULL ||
        payload_pool_make(&job->pool, (uint64_t)now_ns()) < 0) {
        error_set(err, code, "out of memory");
        goto out;
    }
    code = job->engine->open(options, &job->store, err);
    if (code < 0)
        goto out;
    code = workers_open(job, workers, count, err);
    if (code == 0)
        code = workers_run(job, workers, count, err);
    for (uint32_t i = 0; i < count; i++)
        if (workers[i].handle != NULL)
            job->engine->worker_close(workers[i].handle);
    if (code == 0)
        code = check(job, options, err);
    if (code == 0 && print(job, options, workers, count) < 0)
        code = error_set(err, -EIO, "cannot write the answer");
    if (job->store != NULL)
        job->engine->close(job->store);
out:
    for (uint32_t i = 0; workers != NULL && i < count; i++)
        free(workers[i].data);
    free(workers);
    free(job->topic_entries);
    free(job->producer_batches);
    payload_pool_release(&job->pool);
    return code;
}

/* ------------------------------------------------------------------------------------------------ command
 * line */

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status;
    (void)kind;
    (void)place;
    (void)remove(path); /* what cannot be removed stays, and is seen */
    return 0;
}

__attribute__((noreturn)) static void usage(const char *words)
{
    fprintf(stderr,
            "walrus-bench-others: %s\nusage: walrus-bench-others --engine rocksdb|sqlite|redis --dir DIR "
            "[--producers N] "
            "[--topics N] [--batch N] [--size BYTES] [--depth N] [--seconds S | --count N] [--most-bytes N] "
            "[--no-sync]\n"
            "One run of the load through that store; prints JSON. walrus-bench --others runs it.\n",
            words);
    exit(2);
}

static double number(const char *text, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != 0 || !(value >= 0) || value > most)
        usage("a number is wrong");
    return value;
}

struct arguments {
    const char *engine, *folder;
    bool sync;
};

static struct arguments parse(struct job *job, int argc, char **argv)
{
    static const struct option known[] = {
        {"engine", required_argument, NULL, 'e'},    {"dir", required_argument, NULL, 'D'},
        {"producers", required_argument, NULL, 'p'}, {"topics", required_argument, NULL, 't'},
        {"batch", required_argument, NULL, 'b'},     {"size", required_argument, NULL, 's'},
        {"depth", required_argument, NULL, 'd'},     {"seconds", required_argument, NULL, 'S'},
        {"count", required_argument, NULL, 'c'},     {"most-bytes", required_argument, NULL, 'm'},
        {"no-sync", no_argument, NULL, 'n'},         {0},
    };
    struct arguments said = {.sync = true};
    struct load *load = &job->load;
    *load = (struct load){.producers = 1, .topics = 1, .batch = 100, .size = 700, .depth = 1, .seconds = 1};
    for (int key; (key = getopt_long(argc, argv, "", known, NULL)) != -1;)
        switch (key) {
        case 'e':
            said.engine = optarg;
            break;
        case 'D':
            said.folder = optarg;
            break;
        case 'p':
            load->producers = (uint32_t)number(optarg, 1000);
            break;
        case 't':
            load->topics = (uint32_t)number(optarg, 65000);
            break;
        case 'b':
            load->batch = (uint32_t)number(optarg, 2000);
            break;
        case 's':
            load->size = (uint64_t)number(optarg, 1e9);
            break;
        case 'd':
            load->depth = (uint32_t)number(optarg, 1000);
            break;
        case 'S':
            load->seconds = number(optarg, 3600);
            break;
        case 'c':
            load->count = (uint64_t)number(optarg, 1e12);
            break;
        case 'm':
            load->most_bytes = (uint64_t)number(optarg, 1e15);
            break;
        case 'n':
            said.sync = false;
            break;
        default:
            usage("an option is wrong");
        }
    if (said.engine == NULL || said.folder == NULL || optind < argc)
        usage("--engine and --dir are needed, and nothing but options");
    if (load->producers == 0 || load->topics == 0 || load->batch == 0 || load->size == 0 || load->depth == 0)
        usage("a number must not be 0");
    return said;
}

static void set_limits(struct job *job)
{
    const struct load *load = &job->load;
    if (load->count != 0) {
        job->warm_batches = max_u64(load->count / 10, 1);
        job->most_batches = job->warm_batches + load->count;
        return;
    }
    job->phase_ns[PHASE_WARM] = WARM_NS;
    job->phase_ns[PHASE_MEASURE] = (int64_t)(load->seconds * 1e9);
    if (load->most_bytes != 0) {
        job->most_batches = max_u64(load->most_bytes / load_batch_bytes(load), 2);
        job->warm_batches = max_u64(job->most_batches / 10, 1);
    }
}

int main(int argc, char **argv)
{
    static struct job job;
    char folder[4200];
    struct error err = {0};
    struct arguments said = parse(&job, argc, argv);
    for (size_t i = 0; engines[i] != NULL; i++)
        if (strcmp(engines[i]->name, said.engine) == 0)
            job.engine = engines[i];
    if (job.engine == NULL) {
        fprintf(stderr, "walrus-bench-others: built without %s\n", said.engine);
        return NOT_THERE;
    }
    signalled_job = &job;
    struct sigaction action = {.sa_handler = on_signal}, ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
    snprintf(folder, sizeof folder, "%.4000s/others-XXXXXX", said.folder);
    if (mkdtemp(folder) == NULL || chdir(folder) < 0) {
        fprintf(stderr, "walrus-bench-others: cannot make a folder in %s: %s\n", said.folder,
                strerror(errno));
        return 1;
    }
    struct engine_options options = {.sync = said.sync};
    set_limits(&job);
    int code = run(&job, &options, &err);
    if (chdir("/") == 0)
        (void)nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
    if (code < 0)
        fprintf(stderr, "walrus-bench-others: %s\n", err.text);
    return code == -EOPNOTSUPP ? NOT_THERE : code < 0 ? 1 : 0;
}
