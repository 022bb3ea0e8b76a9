/* main.c: walrus-soak: runs the jobs, divides the time between them, adds up.
 *
 * Exit code: 0 all passed (or skipped, with the reason), 1 a violation or a failure, 2 usage, 77 nothing
 * could run here. */
#include <argp.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "soak.h"

#define EXIT_SKIPPED 77
#define SAY_EVERY_NS (3 * NS_PER_S)

/* A signal handler can reach nothing else. */
static volatile sig_atomic_t interrupted;

/* clang-format off */
static const struct job {
    const char *name;
    int (*run)(struct run *run, struct error *err);
    uint64_t required, required_short; /* what is counted is said in `words` */
    const char *words;
} jobs[] = {
    {"exactly-once", job_exactly_once, 100, 5, "kills of the broker under four producers that send again"},
    {"connect-kill", job_connect_kill, 10000, 300, "clients that connect and are killed"},
    {"big-batch", job_big_batch, 10240, 1024, "MiB in one batch"},
    {"take-over", job_take_over, 500, 20, "times that a producer's name is taken over"},
    {"hostile", job_hostile, 120, 5, "seconds of a hostile client beside an honest one"},
};
/* clang-format on */

/* ------------------------------------------------------------------------------------- for the jobs */

bool run_goes_on(const struct run *run, uint64_t done)
{
    return done < run->required || now_ns() < run->until_ns;
}

void run_progress(struct run *run, const char *format, ...)
{
    char words[256];
    va_list list;
    int64_t now = now_ns();
    if (now - run->said_ns < SAY_EVERY_NS)
        return;
    run->said_ns = now;
    va_start(list, format);
    vsnprintf(words, sizeof words, format, list);
    va_end(list);
    fprintf(stderr, "soak: %s: %s, %.0f s\n", run->name, words, (double)(now - run->started_ns) / 1e9);
}

int run_interrupted(struct error *err)
{
    return interrupted != 0 ? error_set(err, -EINTR, "interrupted") : 0;
}

/* ------------------------------------------------------------------------------------- one after the other
 */

static bool is_wanted(const struct soak *soak, const char *name)
{
    size_t length = strlen(name);
    const char *list = soak->jobs;
    if (list == NULL)
        return true;
    for (const char *at = list; *at != '\0'; at += strcspn(at, ","), at += *at == ',') {
        if (strcspn(at, ",") == length && strncmp(at, name, length) == 0)
            return true;
    }
    return false;
}

static int run_job(const struct soak *soak, const struct job *job, int64_t share_ns, struct error *err)
{
    int64_t now = now_ns();
    struct run run = {.soak = soak,
                      .name = job->name,
                      .required = soak->is_short ? job->required_short : job->required,
                      .random = soak->seed ^ (uint64_t)(job - jobs) << 32,
                      .started_ns = now,
                      .until_ns = now + share_ns,
                      .said_ns = now,
                      .output = -1};
    int rc = place_make(&run, err);
    if (rc == 0)
        rc = job->run(&run, err);
    if (rc < 0 && rc != -EINTR)
        broker_print_log(&run);
    place_remove(&run);
    double seconds = (double)(now_ns() - run.started_ns) / 1e9;
    if (rc == SOAK_SKIPPED)
        printf("soak: %s: SKIPPED: %s\n", job->name, err->text);
    else if (rc == 0)
        printf("soak: %s: passed: %s; %.1f s\n", job->name, run.totals, seconds);
    else
        printf("soak: %s: FAILED after %.1f s: %s (seed %llu)\n", job->name, seconds, err->text,
               (unsigned long long)soak->seed);
    fflush(stdout);
    return rc;
}

static int run_all(const struct soak *soak)
{
    unsigned left = 0, passed = 0, skipped = 0, failed = 0;
    int64_t begin = now_ns();
    int64_t end = begin + (int64_t)(soak->minutes * 60e9);
    for (size_t i = 0; i < array_count(jobs); i++)
        left += is_wanted(soak, jobs[i].name);
    for (size_t i = 0; i < array_count(jobs) && interrupted == 0; i++) {
        if (!is_wanted(soak, jobs[i].name))
            continue;
        struct error err = {0};
        int64_t share = soak->is_short ? 0 : (end - now_ns()) / left;
        int rc = run_job(soak, &jobs[i], share, &err);
        left--;
        passed += rc == 0;
        skipped += rc == SOAK_SKIPPED;
        failed += rc < 0;
    }
    printf("soak: total: %u passed, %u failed, %u skipped, %u not run; %.1f s, seed %llu\n", passed, failed,
           skipped, left, (double)(now_ns() - begin) / 1e9, (unsigned long long)soak->seed);
    if (failed > 0 || interrupted != 0)
        return 1;
    return passed > 0 ? 0 : EXIT_SKIPPED;
}

/* ------------------------------------------------------------------------------------- arguments */

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct soak *soak = state->input;
    char *end;
    switch (key) {
    case 'm':
        soak->minutes = strtod(arg, &end);
        if (*end != '\0' || end == arg || !(soak->minutes >= 0 && soak->minutes <= 100000))
            argp_error(state, "--minutes %s: a number from 0 on", arg);
        return 0;
    case 's':
        soak->is_short = true;
        return 0;
    case 'M':
        soak->no_memory = true;
        return 0;
    case 'j':
        soak->jobs = arg;
        return 0;
    case 'd':
        soak->folder = arg;
        return 0;
    case 'l':
        soak->list = true;
        return 0;
    case 'r':
        errno = 0;
        soak->seed = strtoull(arg, &end, 0);
        if (*end != '\0' || end == arg || errno != 0)
            argp_error(state, "--seed %s: a number", arg);
        return 0;
    case 'H':
        soak->hostile = arg;
        return 0;
    case 'W':
        soak->walrus = arg;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0)
            argp_error(state, "one walrusd only");
        soak->walrusd = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static bool names_are_known(const struct soak *soak)
{
    char name[64];
    for (const char *at = soak->jobs; at != NULL && *at != '\0';) {
        size_t length = strcspn(at, ",");
        bool known = false;
        snprintf(name, sizeof name, "%.*s", (int)length, at);
        for (size_t i = 0; i < array_count(jobs); i++)
            known = known || strcmp(jobs[i].name, name) == 0;
        if (!known) {
            fprintf(stderr, "walrus-soak: there is no job '%s'; --list shows them\n", name);
            return false;
        }
        at += length + (at[length] == ',');
    }
    return true;
}

static void interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

int main(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"minutes", 'm', "N", 0, "Time for all jobs (default 10); each does what is required of it anyway",
         0},
        {"short", 's', NULL, 0, "Each job in a few seconds", 0},
        {"job", 'j', "NAME,...", 0, "Only these", 0},
        {"no-memory", 'M', NULL, 0,
         "Do not compare the broker's memory: for sanitizers, which keep what is freed", 0},
        {"list", 'l', NULL, 0, "Show the jobs", 0},
        {"folder", 'd', "DIR", 0, "Where the stores are made (default /var/tmp)", 0},
        {"seed", 'r', "N", 0, "Of everything random (default: the time)", 0},
        {"hostile", 'H', "PROGRAM", 0, "The hostile client, for the job of this name", 0},
        {"walrus", 'W', "PROGRAM", 0, "The command line, for the same", 0},
        {0},
    };
    static const struct argp argp = {
        options, parse, "WALRUSD", "Runs a broker hard for a long time and checks what must hold.",
        NULL,    NULL,  NULL};
    struct soak soak = {
        .folder = "/var/tmp", .prefix = "walrus-soak", .minutes = 10, .seed = (uint64_t)time(NULL)};
    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &soak);
    if (!names_are_known(&soak))
        return 2;
    for (size_t i = 0; soak.list && i < array_count(jobs); i++)
        printf("%-14s %llu %s (short: %llu)\n", jobs[i].name, (unsigned long long)jobs[i].required,
               jobs[i].words, (unsigned long long)jobs[i].required_short);
    if (soak.list)
        return 0;
    if (soak.walrusd == NULL || access(soak.walrusd, X_OK) != 0) {
        fprintf(stderr, "walrus-soak: %s is not a program: give the path of walrusd\n",
                soak.walrusd != NULL ? soak.walrusd : "nothing");
        return 2;
    }
    const struct sigaction action = {.sa_handler = interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return run_all(&soak);
}
