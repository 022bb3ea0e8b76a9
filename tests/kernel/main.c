/* main.c: walrus-kernel-test: attacks a real walrusd on the real kernel and real file systems.
 *
 *   walrus-kernel-test [--job NAME,...] [--count N] [--seconds S] [--seed N] [--folder DIR] [--list]
 *                      [--no-flush MODULE] WALRUSD
 *
 * Each job does --count (without it: a short form) and goes on until its share of --seconds is over. Progress
 * goes to stderr. Stdout has a line per job and last one line of totals:
 *   kernel: total: jobs=N failed=N skipped=N kills=N images=N faults=N successors=N cries=N seconds=S seed=N
 * Exit code: 0 all passed (or skipped, with the reason), 1 a violation or a failure, 2 usage, 77 nothing
 * could run here. */
#include <argp.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "kernel.h"

#define EXIT_SKIPPED 77

struct command {
    struct soak soak; /* walrusd, folder, jobs, seed */
    const char *no_flush;
    uint64_t count;
    double seconds;
};

/* A signal handler can reach nothing else. */
static volatile sig_atomic_t interrupted;

enum counted { KILLS, IMAGES, FAULTS, SUCCESSORS, CRIES, COUNTED };
static const char *const counted_names[COUNTED] = {"kills", "images", "faults", "successors", "cries"};

/* clang-format off */
static const struct attack {
    const char *name;
    int (*run)(struct work *work, struct error *err);
    uint64_t count_short;
    enum counted counted;
    const char *words;
} attacks[] = {
    {"kill", job_kill, 10, KILLS, "kills of the broker under eight producers; all is read back each time"},
    {"ext4", job_ext4, 10, IMAGES, "images of an ext4 after a power cut, mounted, recovered, judged"},
    {"xfs", job_xfs, 10, IMAGES, "the same with xfs"},
    {"full", job_full, 1, FAULTS, "times that the file system, then the device below it, is full"},
    {"failing", job_failing, 3, FAULTS, "times that a flush, a group or any write of the device fails"},
    {"successor", job_successor, 1, SUCCESSORS, "starts while writes of a killed broker are in the device"},
    {"cries", job_cries, 2, CRIES, "proofs that the jobs above notice what a broken broker does"},
};
/* clang-format on */

/* ------------------------------------------------------------------------------------- for the jobs */

bool work_goes_on(const struct work *work)
{
    return work->done < work->count || now_ns() < work->run.until_ns;
}

void run_progress(struct run *run, const char *format, ...)
{
    char words[256];
    va_list list;
    int64_t now = now_ns();
    if (now - run->said_ns < 3 * NS_PER_S)
        return;
    run->said_ns = now;
    va_start(list, format);
    vsnprintf(words, sizeof words, format, list);
    va_end(list);
    fprintf(stderr, "kernel: %s: %s, %.0f s\n", run->name, words, (double)(now - run->started_ns) / 1e9);
}

int run_interrupted(struct error *err)
{
    return interrupted != 0 ? error_set(err, -EINTR, "interrupted") : 0;
}

/* --------------------------------------------------------------------------- one after the other */

static bool is_wanted(const struct command *command, const char *name)
{
    size_t length = strlen(name);
    const char *at = command->soak.jobs;
    if (at == NULL)
        return true;
    for (; *at != '\0'; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == length && strncmp(at, name, length) == 0)
            return true;
    return false;
}

static int run_job(const struct command *command, const struct attack *job, int64_t share_ns,
                   uint64_t done[COUNTED])
{
    struct error err = {0};
    int64_t now = now_ns();
    struct work work = {.no_flush = command->no_flush,
                        .count = command->count != 0 ? command->count : job->count_short,
                        .run = {.soak = &command->soak,
                                .name = job->name,
                                .random = command->soak.seed ^ (uint64_t)(job - attacks) << 32,
                                .started_ns = now,
                                .until_ns = now + share_ns,
                                .said_ns = now,
                                .output = -1}};
    int rc = place_make(&work.run, &err);
    if (rc == 0)
        rc = job->run(&work, &err);
    if (rc < 0 && rc != -EINTR)
        broker_print_log(&work.run);
    place_remove(&work.run);
    double seconds = (double)(now_ns() - now) / 1e9;
    done[job->counted] += work.done;
    if (rc == SOAK_SKIPPED)
        printf("kernel: %s: SKIPPED: %s\n", job->name, err.text);
    else if (rc == 0)
        printf("kernel: %s: passed: %s; %.1f s\n", job->name, work.run.totals, seconds);
    else
        printf("kernel: %s: FAILED after %.1f s: %s (--job %s --count %llu --seed %llu)\n", job->name,
               seconds, err.text, job->name, (unsigned long long)work.count,
               (unsigned long long)command->soak.seed);
    fflush(stdout);
    return rc;
}

static int run_all(const struct command *command)
{
    unsigned left = 0, passed = 0, skipped = 0, failed = 0;
    uint64_t done[COUNTED] = {0};
    int64_t begin = now_ns(), end = begin + (int64_t)(command->seconds * 1e9);
    for (size_t i = 0; i < array_count(attacks); i++)
        left += is_wanted(command, attacks[i].name);
    for (size_t i = 0; i < array_count(attacks) && interrupted == 0; i++) {
        if (!is_wanted(command, attacks[i].name))
            continue;
        int64_t rest = end - now_ns();
        int rc = run_job(command, &attacks[i], rest > 0 ? rest / left : 0, done);
        left--;
        passed += rc == 0;
        skipped += rc == SOAK_SKIPPED;
        failed += rc < 0;
    }
    printf("kernel: total: jobs=%u failed=%u skipped=%u", passed + failed + skipped, failed, skipped);
    for (unsigned i = 0; i < COUNTED; i++)
        printf(" %s=%llu", counted_names[i], (unsigned long long)done[i]);
    printf(" seconds=%.1f seed=%llu\n", (double)(now_ns() - begin) / 1e9,
           (unsigned long long)command->soak.seed);
    if (failed > 0 || interrupted != 0)
        return 1;
    return passed > 0 ? 0 : EXIT_SKIPPED;
}

/* ------------------------------------------------------------------------------------- arguments */

static uint64_t whole_number(const char *text, const char *option, struct argp_state *state)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 0);
    if (*end != '\0' || end == text || errno != 0 || *text == '-')
        argp_error(state, "%s %s: a number", option, text);
    return value;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct command *command = state->input;
    char *end;
    switch (key) {
    case 'j':
        command->soak.jobs = arg;
        return 0;
    case 'c':
        command->count = whole_number(arg, "--count", state);
        return 0;
    case 's':
        command->seconds = strtod(arg, &end);
        if (*end != '\0' || end == arg || !(command->seconds >= 0 && command->seconds <= 1e7))
            argp_error(state, "--seconds %s: a number from 0 on", arg);
        return 0;
    case 'r':
        command->soak.seed = whole_number(arg, "--seed", state);
        return 0;
    case 'd':
        command->soak.folder = arg;
        return 0;
    case 'l':
        command->soak.list = true;
        return 0;
    case 'n':
        command->no_flush = arg;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0)
            argp_error(state, "one walrusd only");
        command->soak.walrusd = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static bool names_are_known(const char *at)
{
    while (at != NULL && *at != '\0') {
        int length = (int)strcspn(at, ",");
        bool known = false;
        for (size_t i = 0; i < array_count(attacks); i++)
            known = known || (strlen(attacks[i].name) == (size_t)length &&
                              strncmp(attacks[i].name, at, (size_t)length) == 0);
        if (!known) {
            fprintf(stderr, "walrus-kernel-test: there is no job '%.*s'; --list shows them\n", length, at);
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
        {"job", 'j', "NAME,...", 0, "Only these", 0},
        {"count", 'c', "N", 0, "Of each job: see --list (default: its short form)", 0},
        {"seconds", 's', "S", 0, "Time for all jobs; each does its count anyway (default 0)", 0},
        {"seed", 'r', "N", 0, "Of everything random (default: the time)", 0},
        {"folder", 'd', "DIR", 0, "Where the places are made (default /var/tmp)", 0},
        {"no-flush", 'n', "MODULE", 0,
         "Preloaded into a broker that is to break its promises, for the job cries", 0},
        {"list", 'l', NULL, 0, "Show the jobs", 0},
        {0},
    };
    static const struct argp argp = {
        options, parse, "WALRUSD", "Attacks a broker by kills, power cuts, full and failing devices.",
        NULL,    NULL,  NULL};
    struct command command = {
        .soak = {.folder = "/var/tmp", .prefix = "walrus-kernel", .seed = (uint64_t)time(NULL)}};
    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &command);
    if (!names_are_known(command.soak.jobs))
        return 2;
    for (size_t i = 0; command.soak.list && i < array_count(attacks); i++)
        printf("%-10s %s (short: %llu)\n", attacks[i].name, attacks[i].words,
               (unsigned long long)attacks[i].count_short);
    if (command.soak.list)
        return 0;
    if (command.soak.walrusd == NULL || access(command.soak.walrusd, X_OK) != 0) {
        fprintf(stderr, "walrus-kernel-test: %s is not a program: give the path of walrusd\n",
                command.soak.walrusd != NULL ? command.soak.walrusd : "nothing");
        return 2;
    }
    const struct sigaction action = {.sa_handler = interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return run_all(&command);
}
