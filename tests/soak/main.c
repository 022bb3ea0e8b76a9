/* main.c: walrus-soak: runs the jobs in lanes, says how far they are, adds up.
 *
 * Exit code: 0 nothing was found (what could not be done, for want of time or of a program, is said in the
 * last line), 1 a violation or a failure, 2 usage, 77 nothing could run here. */
#include <argp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "soak.h"

#define EXIT_SKIPPED 77
#define TELL_NS      (5 * NS_PER_S)

/* A signal handler can reach nothing else. */
static volatile sig_atomic_t interrupted;

/* What the lanes write and the report reads. */
struct board {
    char saying[LANES][SAYING];
    struct tried tried[MOST_JOBS];
};

static const char *const lane_names[LANES] = {"brokers", "processor", "processor"};

/* ------------------------------------------------------------------------------------- for the jobs */

bool run_goes_on(const struct run *run, uint64_t done)
{
    return done == 0 || (now_ns() < run->until_ns && (run->required == 0 || done < run->required));
}

void run_progress(struct run *run, const char *format, ...)
{
    char words[SAYING];
    va_list list;
    va_start(list, format);
    vsnprintf(words, sizeof words, format, list);
    va_end(list);
    snprintf(run->saying, SAYING, "%.24s: %.130s", run->name, words);
}

int run_interrupted(struct error *err)
{
    return interrupted != 0 ? error_set(err, -EINTR, "interrupted") : 0;
}

/* ------------------------------------------------------------------------------------- lanes */

static void tell(const struct board *board, int64_t begin, int64_t end)
{
    char limit[32] = "";
    if (end != INT64_MAX)
        snprintf(limit, sizeof limit, " of %.0f", (double)(end - begin) / 1e9);
    fprintf(stderr, "soak: %.0f%s s | %s | %s | %s\n", (double)(now_ns() - begin) / 1e9, limit,
            board->saying[LANE_BROKERS], board->saying[LANE_FIRST], board->saying[LANE_SECOND]);
}

static pid_t start_lane(const struct soak *soak, enum lane lane, struct job *jobs, size_t count, int64_t end,
                        struct board *board)
{
    pid_t parent = getpid();
    fflush(NULL);
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* as if interrupted: it has brokers and folders to put away */
    if (getppid() != parent)
        _exit(1);
    lane_run(soak, lane, jobs, count, end, board->saying[lane]);
    fflush(NULL);
    _exit(0);
}

/* All lanes to their end. False: one of them did not end as it should. */
static bool run_lanes(const struct soak *soak, struct job *jobs, size_t count, struct board *board,
                      int64_t begin, int64_t end)
{
    pid_t pids[LANES];
    bool good = true, told_them = false;
    int64_t told = begin;
    unsigned left = LANES;
    for (unsigned i = 0; i < LANES; i++)
        pids[i] = start_lane(soak, (enum lane)i, jobs, count, end, board);
    while (left > 0) {
        for (unsigned i = 0; i < LANES; i++) {
            int status = 0;
            if (pids[i] == 0 || (pids[i] > 0 && waitpid(pids[i], &status, WNOHANG) != pids[i]))
                continue;
            if (pids[i] < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
                printf("soak: the lane of the %s ended with status %#x\n", lane_names[i], (unsigned)status);
                good = false;
            }
            pids[i] = 0;
            left--;
        }
        for (unsigned i = 0; i < LANES && interrupted != 0 && !told_them; i++)
            if (pids[i] > 0)
                kill(pids[i], SIGTERM);
        told_them = interrupted != 0;
        if (now_ns() - told >= TELL_NS && left > 0) {
            told = now_ns();
            tell(board, begin, end);
        }
        pause_ns(20 * NS_PER_MS);
    }
    return good;
}

/* ------------------------------------------------------------------------------------- report */

struct line {
    char text[4096];
    size_t used;
};

static void printf_like(2, 3) add(struct line *line, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int length = vsnprintf(line->text + line->used, sizeof line->text - line->used, format, list);
    va_end(list);
    if (length > 0)
        line->used = min_u64(sizeof line->text - 1, line->used + (size_t)length);
}

static int report(const struct soak *soak, const struct job *jobs, size_t count, bool good, double seconds)
{
    struct line line = {.used = 0}, lacks = {.used = 0};
    unsigned passed = 0, failed = 0;
    uint64_t images = 0, kills = 0;
    for (size_t i = 0; i < count; i++) {
        const struct job *job = &jobs[i];
        const struct tried *tried = job->tried;
        uint64_t required = required_of(soak, job);
        images += tried->images;
        kills += tried->kills;
        failed += tried->failed;
        passed += job->wanted && tried->passes > 0 && !tried->failed && !tried->skipped;
        if (job->wanted && tried->skipped)
            add(&lacks, "%s %s SKIPPED (%.100s)", lacks.used > 0 ? "," : "", job->name, tried->words);
        else if (job->wanted && !tried->failed && tried->done < required)
            add(&lacks, "%s %s %llu of %llu", lacks.used > 0 ? "," : "", job->name,
                (unsigned long long)tried->done, (unsigned long long)required);
    }
    add(&line, "soak: total: images=%llu kills=%llu", (unsigned long long)images, (unsigned long long)kills);
    for (size_t i = 0; i < count; i++)
        if (jobs[i].run != NULL && jobs[i].tried->done > 0)
            add(&line, " %s=%llu", jobs[i].name, (unsigned long long)jobs[i].tried->done);
    add(&line, " seconds=%.0f passed=%u failures=%u seed=%llu", seconds, passed, failed,
        (unsigned long long)soak->seed);
    printf("%s%s%s%s\n", line.text, lacks.used > 0 ? "; short of:" : "", lacks.text,
           interrupted != 0 ? "; interrupted" : "");
    if (failed > 0 || !good || interrupted != 0)
        return 1;
    return passed > 0 ? 0 : EXIT_SKIPPED;
}

static int run_all(const struct soak *soak, struct job *jobs, size_t count)
{
    struct board *board = shared_new(sizeof *board);
    int64_t begin = now_ns();
    int64_t end = soak->is_short || soak->minutes <= 0 ? INT64_MAX : begin + (int64_t)(soak->minutes * 60e9);
    if (board == NULL) {
        fprintf(stderr, "walrus-soak: out of memory\n");
        return 1;
    }
    for (size_t i = 0; i < count; i++)
        jobs[i].tried = &board->tried[i];
    bool good = run_lanes(soak, jobs, count, board, begin, end);
    return report(soak, jobs, count, good, (double)(now_ns() - begin) / 1e9);
}

/* ------------------------------------------------------------------------------------- arguments */

static bool is_wanted(const struct soak *soak, const struct job *job)
{
    size_t length = strlen(job->name);
    if (soak->jobs == NULL)
        return !soak->is_short || job->required_short > 0;
    for (const char *at = soak->jobs; *at != '\0'; at += strcspn(at, ","), at += *at == ',') {
        if (strcspn(at, ",") == length && strncmp(at, job->name, length) == 0)
            return true;
    }
    return false;
}

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
    case 'p':
        soak->part = strtoull(arg, &end, 10);
        if (*end != '\0' || soak->part == 0 || soak->part > 1000)
            argp_error(state, "--part %s: a number from 1 to 1000", arg);
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
    case 'b':
        soak->build = arg;
        return 0;
    case 'f':
        soak->fuzzers = arg;
        return 0;
    case 'c':
        soak->corpus = arg;
        return 0;
    case 'F':
        soak->found = arg;
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

static bool names_are_known(const struct soak *soak, const struct job *jobs, size_t count)
{
    char name[64];
    for (const char *at = soak->jobs; at != NULL && *at != '\0';) {
        size_t length = strcspn(at, ",");
        bool known = false;
        snprintf(name, sizeof name, "%.*s", (int)length, at);
        for (size_t i = 0; i < count; i++)
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
        {"minutes", 'm', "N", 0, "Time (default 10); 0: exactly what is required, however long", 0},
        {"short", 's', NULL, 0, "Each job in a few seconds", 0},
        {"job", 'j', "NAME,...", 0, "Only these", 0},
        {"no-memory", 'M', NULL, 0,
         "Do not compare the broker's memory: for sanitizers, which keep what is freed", 0},
        {"part", 'p', "N", 0, "Require N times less: is the time enough?", 0},
        {"list", 'l', NULL, 0, "Show the jobs", 0},
        {"folder", 'd', "DIR", 0, "Where the stores are made (default /var/tmp)", 0},
        {"seed", 'r', "N", 0, "Of everything random (default: the time)", 0},
        {"build", 'b', "DIR", 0, "Build folder with the other programs that jobs run", 0},
        {"fuzzers", 'f', "DIR", 0, "Folder of the programs fuzz-NAME", 0},
        {"corpus", 'c', "DIR", 0, "Folder with a folder of inputs for each fuzz target", 0},
        {"found", 'F', "DIR", 0, "Where new inputs of the fuzzers are kept", 0},
        {0},
    };
    static const struct argp argp = {
        options, parse, "WALRUSD", "Runs a broker hard for a long time and checks what must hold.",
        NULL,    NULL,  NULL};
    struct soak soak = {.folder = "/var/tmp",
                        .prefix = "walrus-soak",
                        .minutes = 10,
                        .part = 1,
                        .seed = (uint64_t)time(NULL)};
    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &soak);
    static struct job jobs[MOST_JOBS];
    size_t count = jobs_list(&soak, jobs);
    if (!names_are_known(&soak, jobs, count))
        return 2;
    for (size_t i = 0; i < count; i++)
        jobs[i].wanted = is_wanted(&soak, &jobs[i]);
    for (size_t i = 0; soak.list && i < count; i++)
        printf("%-14s %9llu %s (%s; short: %llu)\n", jobs[i].name, (unsigned long long)jobs[i].required,
               jobs[i].words, lane_names[jobs[i].lane], (unsigned long long)jobs[i].required_short);
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
    return run_all(&soak, jobs, count);
}
