/* outside.c: jobs that are programs of their own.
 *
 * The program's output, both kinds, goes through a pipe into the place's log, line by line; the last line
 * is how far it is, and a number behind a word that the job knows is what it has done. Where a program does
 * a number of things, however long that takes, it is called for a few at a time, so that the job can end in
 * time. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "soak.h"

#define MOST_KEYS    3u
#define EXIT_SKIPPED 77

/* What is looked for in the output: the number behind `word`; a later one replaces an earlier one. */
struct key {
    const char *word;
    uint64_t *value;
};

struct outside {
    char *const *arguments;
    struct key keys[MOST_KEYS];
    int64_t kill_ns; /* when it is ended, and that is no failure; INT64_MAX: never */
    bool was_ended;
    char last[200]; /* line */
    /* a line that is not complete */
    char line[8192];
    size_t used;
};

static void take_line(struct outside *outside, struct run *run)
{
    outside->line[outside->used] = '\0';
    for (size_t i = 0; i < MOST_KEYS && outside->keys[i].word != NULL; i++) {
        const char *at = strstr(outside->line, outside->keys[i].word);
        if (at == NULL)
            continue;
        at += strlen(outside->keys[i].word);
        at += strspn(at, " ");
        if (*at >= '0' && *at <= '9')
            *outside->keys[i].value = strtoull(at, NULL, 10);
    }
    if (outside->used > 0) {
        snprintf(outside->last, sizeof outside->last, "%.190s", outside->line);
        run_progress(run, "%s", outside->last);
    }
    outside->used = 0;
}

static void take_bytes(struct outside *outside, struct run *run, const char *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] == '\n' || bytes[i] == '\r')
            take_line(outside, run);
        else if (outside->used < sizeof outside->line - 1)
            outside->line[outside->used++] = bytes[i];
    }
}

/* Until its output ends. */
static int follow(struct outside *outside, struct run *run, pid_t pid, int from, int log, struct error *err)
{
    char bytes[4096];
    for (;;) {
        struct pollfd fd = {.fd = from, .events = POLLIN};
        int rc = run_interrupted(err);
        if (rc < 0)
            return rc;
        if (now_ns() > outside->kill_ns && !outside->was_ended) {
            outside->was_ended = true;
            kill(pid, SIGKILL);
        }
        if (run->until_ns < INT64_MAX - 10 * PATIENCE_NS && now_ns() > run->until_ns + 10 * PATIENCE_NS)
            return error_set(err, -ETIMEDOUT, "%s does not end", outside->arguments[0]);
        if (poll(&fd, 1, 100) <= 0)
            continue;
        ssize_t got = read(from, bytes, sizeof bytes);
        if (got <= 0)
            return 0;
        take_bytes(outside, run, bytes, (size_t)got);
        if (write(log, bytes, (size_t)got) < 0)
            continue; /* the disk is full: the messages are lost, the result is not */
    }
}

/* 0, SOAK_SKIPPED, or what it found. */
static int outside_run(struct outside *outside, struct run *run, struct error *err)
{
    const char *program = outside->arguments[0];
    int ends[2], status = 0;
    if (access(program, X_OK) != 0) {
        (void)error_set(err, -ENOENT, "%s is not there", program);
        return SOAK_SKIPPED;
    }
    int log = open(run->log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (log < 0 || pipe2(ends, O_CLOEXEC) != 0)
        return error_set(err, -errno, "cannot take the output of %s: %s", program, strerror(errno));
    pid_t pid = child_fork();
    if (pid == 0) {
        if (dup2(ends[1], 1) >= 0 && dup2(ends[1], 2) >= 0)
            execv(program, outside->arguments);
        _exit(127);
    }
    close(ends[1]);
    int rc = pid < 0 ? error_set(err, -errno, "fork: %s", strerror(errno))
                     : follow(outside, run, pid, ends[0], log, err);
    close(ends[0]);
    close(log);
    if (rc < 0) {
        child_end(pid);
        return rc;
    }
    rc = child_wait(pid, &status, err);
    if (rc < 0 || outside->was_ended)
        return rc;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED) {
        (void)error_set(err, -ENOENT, "%s", outside->last);
        return SOAK_SKIPPED;
    }
    return error_set(err, -EBADMSG, "%s ended with status %#x: %s", program, (unsigned)status, outside->last);
}

/* ------------------------------------------------------------------------------------- words */

struct words {
    char *list[24];
    char texts[24][PATH_MAX];
    size_t count;
};

static void printf_like(2, 3) add(struct words *words, const char *format, ...)
{
    va_list list;
    check_bug(words->count + 1 < array_count(words->list));
    char *text = words->texts[words->count];
    va_start(list, format);
    vsnprintf(text, sizeof words->texts[0], format, list);
    va_end(list);
    words->list[words->count++] = text;
    words->list[words->count] = NULL;
}

static void add_number(struct words *words, const char *option, uint64_t number)
{
    add(words, "%s", option);
    add(words, "%llu", (unsigned long long)number);
}

static void add_program(struct words *words, const struct run *run, const char *path)
{
    words->count = 0;
    add(words, "%s/%s", run->soak->build != NULL ? run->soak->build : "", path);
}

static uint64_t time_left(const struct run *run)
{
    int64_t now = now_ns();
    return run->until_ns > now ? (uint64_t)(run->until_ns - now) : 0;
}

/* Seconds that a job which counts seconds has: at least a few. */
static uint64_t seconds_of(const struct run *run)
{
    uint64_t left = UINT64_MAX;
    if (run->until_ns != INT64_MAX)
        left = time_left(run) / NS_PER_S;
    uint64_t wanted = run->required != 0 ? min_u64(run->required, left) : left;
    return max_u64(wanted, 2);
}

/* ------------------------------------------------------------------------------------- seconds */

/* The hostile client brings its own brokers; all it needs is time and a seed. */
int job_hostile(struct run *run, struct error *err)
{
    struct words *words = calloc(1, sizeof *words);
    struct outside outside = {.arguments = words->list, .kill_ns = INT64_MAX};
    uint64_t seconds = seconds_of(run);
    check_bug(words != NULL);
    add_program(words, run, "tests/hostile/walrus-hostile");
    add_number(words, "--seed", run->seed);
    add_number(words, "--seconds", seconds);
    add(words, "--shared");
    add(words, "--broker");
    add(words, "%s", run->soak->walrusd);
    add(words, "--walrus");
    add(words, "%s/libclient/program/walrus", run->soak->build != NULL ? run->soak->build : "");
    int rc = outside_run(&outside, run, err);
    run->done = rc == 0 ? seconds : 0;
    snprintf(run->totals, sizeof run->totals, "%llu s: %.190s", (unsigned long long)seconds, outside.last);
    free(words);
    return rc;
}

int job_torture(struct run *run, struct error *err)
{
    struct words *words = calloc(1, sizeof *words);
    uint64_t seconds = seconds_of(run), images = 0, kills = 0;
    struct outside outside = {.kill_ns = INT64_MAX,
                              .keys = {{"\"crash_images\":", &images}, {"\"kills\":", &kills}}};
    check_bug(words != NULL);
    outside.arguments = words->list;
    add_program(words, run, "libclient/program/walrus");
    add(words, "torture");
    add(words, "%s/torture", run->folder);
    add_number(words, "--seconds", seconds);
    add_number(words, "--seed", run->seed);
    add(words, "--json");
    int rc = outside_run(&outside, run, err);
    run->done = rc == 0 ? seconds : 0;
    run->images = images;
    run->kills = kills;
    snprintf(run->totals, sizeof run->totals, "%llu s: %llu crash images, %llu kills",
             (unsigned long long)seconds, (unsigned long long)images, (unsigned long long)kills);
    free(words);
    return rc;
}

/* ------------------------------------------------------------------------------------- a few at a time */

/* argument: "JOB KEY FEW": walrus-kernel-test --job JOB --count FEW says KEY=N. */
int job_kernel(struct run *run, struct error *err)
{
    struct words *words = calloc(1, sizeof *words);
    char job[32] = "", key[32] = "", word[40];
    unsigned few = 1;
    int rc = 0;
    /* NOLINTNEXTLINE(cert-err34-c): its text is in jobs.c */
    check_bug(words != NULL && sscanf(run->argument, "%31s %31s %u", job, key, &few) == 3);
    snprintf(word, sizeof word, " %s=", key);
    for (uint64_t slice = 0; rc == 0 && run_goes_on(run, run->done); slice++) {
        uint64_t done = 0, count = run->required != 0 ? min_u64(few, run->required - run->done) : few;
        struct outside outside = {.arguments = words->list, .kill_ns = INT64_MAX, .keys = {{word, &done}}};
        add_program(words, run, "tests/kernel/walrus-kernel-test");
        add(words, "--job");
        add(words, "%s", job);
        add_number(words, "--count", count);
        add_number(words, "--seed", run->seed + slice);
        add(words, "--folder");
        add(words, "%s", run->folder);
        if (strcmp(job, "cries") == 0) {
            add(words, "--no-flush");
            add(words, "%s/tests/kernel/libno-flush.so", run->soak->build != NULL ? run->soak->build : "");
        }
        add(words, "%s", run->soak->walrusd);
        rc = outside_run(&outside, run, err);
        run->done += done;
        if (rc == 0 && done == 0)
            rc = error_set(err, -EPROTO, "%s has done nothing: %s", words->list[0], outside.last);
        if (rc == SOAK_SKIPPED && slice > 0)
            rc = error_set(err, -EPROTO, "%s skips what it did before: %s", words->list[0], outside.last);
    }
    run->kills = strcmp(key, "kills") == 0 ? run->done : 0;
    run->images = strcmp(key, "images") == 0 ? run->done : 0;
    snprintf(run->totals, sizeof run->totals, "%llu %s", (unsigned long long)run->done, key);
    free(words);
    return rc;
}

/* ------------------------------------------------------------------------------------- one call */

int job_sim(struct run *run, struct error *err)
{
    struct words *words = calloc(1, sizeof *words);
    struct outside outside = {.kill_ns = INT64_MAX, .keys = {{" different ", &run->done}}};
    check_bug(words != NULL);
    outside.arguments = words->list;
    add_program(words, run, "tests/sim/walrus-sim");
    if (run->required != 0)
        add_number(words, "--images", run->required);
    if (run->until_ns != INT64_MAX)
        add_number(words, "--seconds", max_u64(1, time_left(run) / NS_PER_S));
    add_number(words, "--seed", run->seed);
    int rc = outside_run(&outside, run, err);
    if (rc == 0 && run->done == 0)
        rc = error_set(err, -EPROTO, "%s has done nothing: %s", words->list[0], outside.last);
    run->images = run->done;
    snprintf(run->totals, sizeof run->totals, "%.190s", outside.last);
    free(words);
    return rc;
}

int job_model(struct run *run, struct error *err)
{
    struct words *words = calloc(1, sizeof *words);
    struct outside outside = {.kill_ns = run->until_ns};
    check_bug(words != NULL);
    outside.arguments = words->list;
    add_program(words, run, "tests/model/walrus-model");
    add(words, "--deep");
    add(words, "--quiet");
    int rc = outside_run(&outside, run, err);
    run->done = rc == 0 && !outside.was_ended;
    snprintf(run->totals, sizeof run->totals, "%s%.190s",
             outside.was_ended ? "not finished: " : "all searched: ", outside.last);
    free(words);
    return rc;
}

/* ------------------------------------------------------------------------------------- fuzzing */

int job_fuzz(struct run *run, struct error *err)
{
    const char *target = run->name + strlen("fuzz-");
    struct words *words = calloc(1, sizeof *words);
    uint64_t runs = 0;
    struct outside outside = {.kill_ns = INT64_MAX, .keys = {{"stat::number_of_executed_units:", &runs}}};
    check_bug(words != NULL);
    outside.arguments = words->list;
    add(words, "%s/fuzz-%s", run->soak->fuzzers != NULL ? run->soak->fuzzers : "", target);
    if (run->required != 0)
        add(words, "-runs=%llu", (unsigned long long)run->required);
    if (run->until_ns != INT64_MAX)
        add(words, "-max_total_time=%llu", (unsigned long long)max_u64(1, time_left(run) / NS_PER_S));
    add(words, "-error_exitcode=1"); /* its own choice, 77, is what a program says that could not run */
    add(words, "-entropic=0");       /* most of its time would go into choosing inputs */
    add(words, "-max_len=256");      /* more steps than that say nothing new, and cost time */
    add(words, "-rss_limit_mb=1024");
    add(words, "-malloc_limit_mb=512");
    add(words, "-timeout=10");
    add(words, "-reload=0");
    add(words, "-print_final_stats=1");
    add(words, "-seed=%u", (unsigned)(run->seed % UINT32_MAX) + 1);
    add(words, "-artifact_prefix=%s/%s-", run->soak->found != NULL ? run->soak->found : run->folder, target);
    add(words, "%s/%s", run->soak->found != NULL ? run->soak->found : run->folder, target);
    (void)mkdir(words->list[words->count - 1], 0700); /* may be there; if not, the fuzzer says so */
    add(words, "%s/%s", run->soak->corpus, target);
    int rc = outside_run(&outside, run, err);
    run->done = runs;
    if (rc == 0 && runs == 0)
        rc = error_set(err, -EPROTO, "%s has done nothing: %s", words->list[0], outside.last);
    snprintf(run->totals, sizeof run->totals, "%llu executions", (unsigned long long)runs);
    free(words);
    return rc;
}
