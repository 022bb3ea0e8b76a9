/* main.c: walrus-torture: what `walrus torture` runs.
 *
 *   1. The folder is taken: empty or new, never a store. What it lies on is looked at and said.
 *   2. The worker is forked (recorder and simulator); this process kills brokers, tells how far all of it
 *      is, and ends the worker when it hangs.
 *   3. The verdict, one line. Everything that was made in the folder is removed, but a crash image that
 *      broke a promise.
 *
 * Exit code: 0 nothing was broken, 1 something was, or it could not be tried, 2 usage. */
#include <argp.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../broker/program/options.h"
#include "../../shared/layout.h"
#include "torture.h"

#define NS_PER_S      INT64_C(1000000000)
#define TELL_EVERY_NS (2 * NS_PER_S)
#define HANGS_NS      (180 * NS_PER_S)
#define MOST_WORDS    16

struct lane {
    struct torture torture;
    char *words[MOST_WORDS + 1];
    char *argv[MOST_WORDS + 2]; /* for options_parse */
    int64_t started_ns, told_ns;
    pid_t worker;
    int status;
    uint64_t beat;
    int64_t beat_ns;
};

static struct lane lane; /* the signal handler and the kills' progress see nothing else */

static int64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec;
}

static void interrupt(int number)
{
    (void)number;
    __atomic_store_n(&lane.torture.shared->stop, 1, __ATOMIC_RELEASE);
}

/* ------------------------------------------------------------------------------------- for the lanes */

bool torture_ended(const struct torture *torture)
{
    const struct torture_shared *shared = torture->shared;
    return clock_ns() >= torture->until_ns || __atomic_load_n(&shared->stop, __ATOMIC_ACQUIRE) != 0 ||
           __atomic_load_n(&shared->failure.taken, __ATOMIC_ACQUIRE) != 0;
}

void torture_fail(struct torture_shared *shared, const char *again, const char *format, ...)
{
    if (__atomic_exchange_n(&shared->failure.taken, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    va_list list;
    va_start(list, format);
    vsnprintf(shared->failure.what, sizeof shared->failure.what, format, list);
    va_end(list);
    snprintf(shared->failure.again, sizeof shared->failure.again, "%s", again);
}

void torture_say_again(const struct torture *torture, const char *phase, uint64_t seed)
{
    char *again = torture->shared->again;
    size_t size = sizeof torture->shared->again;
    int used = snprintf(again, size, "walrus torture %.200s --phase %s --seed %llu", torture->folder, phase,
                        (unsigned long long)seed);
    if (strcmp(phase, "simulator") == 0)
        used += snprintf(again + used, size - (size_t)used, " --seconds 0");
    for (int i = 0; i < torture->word_count && (size_t)used < size; i++)
        used += snprintf(again + used, size - (size_t)used, " %s", torture->words[i]);
}

/* ------------------------------------------------------------------------------------- the worker */

static int start_worker(void)
{
    pid_t parent = getpid();
    if (!lane.torture.recorder && !lane.torture.simulator)
        return 0;
    fflush(NULL);
    lane.worker = fork();
    if (lane.worker < 0)
        return -errno;
    if (lane.worker > 0)
        return 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGINT, SIG_IGN); /* ^C goes to the parent, which tells us */
    signal(SIGTERM, SIG_IGN);
    if (getppid() != parent)
        _exit(1);
    int code = torture_work(&lane.torture);
    fflush(NULL);
    _exit(code);
}

static void reap_worker(int flags)
{
    if (lane.worker <= 0 || waitpid(lane.worker, &lane.status, flags) != lane.worker)
        return;
    lane.worker = 0;
    struct torture_shared *shared = lane.torture.shared;
    if (WIFSIGNALED(lane.status))
        torture_fail(shared, shared->again, "the log ended its process with signal %d (%s) in %s",
                     WTERMSIG(lane.status), strsignal(WTERMSIG(lane.status)), shared->counts.place);
}

static void watch_worker(void)
{
    reap_worker(WNOHANG);
    int64_t now = clock_ns();
    uint64_t beat = __atomic_load_n(&lane.torture.shared->counts.beat, __ATOMIC_RELAXED);
    if (beat != lane.beat)
        lane.beat_ns = now;
    lane.beat = beat;
    if (lane.worker > 0 && now - lane.beat_ns > HANGS_NS) {
        kill(lane.worker, SIGKILL);
        torture_fail(lane.torture.shared, lane.torture.shared->again, "it hangs in %s",
                     lane.torture.shared->counts.place);
    }
}

/* ------------------------------------------------------------------------------------- words */

static void tell(const struct torture *torture)
{
    int64_t now = clock_ns();
    const struct torture_shared *shared = torture->shared;
    const struct torture_counts *counts = &shared->counts;
    watch_worker();
    if (now - lane.told_ns < TELL_EVERY_NS)
        return;
    lane.told_ns = now;
    fprintf(stderr,
            "torture: %.0f of %.0f s: %llu batches, %llu crash images, %llu of them on disk, %llu simulated "
            "runs, "
            "%llu kills\n",
            (double)(now - lane.started_ns) / 1e9, torture->seconds,
            (unsigned long long)(counts->batches + shared->kill_batches),
            (unsigned long long)(counts->images + counts->materialised),
            (unsigned long long)counts->materialised, (unsigned long long)counts->runs,
            (unsigned long long)shared->kills);
}

static void print_facts(const struct torture_facts *facts)
{
    const struct torture *torture = &lane.torture;
    printf(
        "%s: file system %s%s, device %s%s%s, blocks of %u bytes (physical %u), %s, back end %s, kernel %s\n",
        torture->folder, facts->file_system,
        facts->promised ? "" : " (not one of those that Walrus promises on)",
        facts->device[0] != '\0' ? facts->device : "unknown", facts->write_cache[0] != '\0' ? ", cache " : "",
        facts->write_cache, facts->logical_block, facts->physical_block,
        facts->direct ? "O_DIRECT" : "page cache", facts->backend, facts->kernel);
    printf("64 KiB written and flushed: p50 %.0f us, p99 %.0f us\n", facts->flush_p50_us,
           facts->flush_p99_us);
    if (!facts->promised)
        printf("warning: what is promised after power loss is known to hold on ext4 and xfs only\n");
    if (facts->fallback[0] != '\0')
        printf("warning: io_uring is not to be had here (%s): using the slower back end pwrite\n",
               facts->fallback);
    if (facts->implausible)
        printf(
            "warning: this device answers a flush in %.0f us: it may not be flushing; Walrus cannot know\n",
            facts->flush_p50_us);
    fflush(stdout);
}

static bool set_count(json_t *object, const char *key, uint64_t value)
{
    return json_object_set_new(object, key, json_integer((json_int_t)value)) == 0;
}

static json_t *facts_json(const struct torture_facts *facts)
{
    return json_pack("{s:s, s:b, s:b, s:s, s:s, s:s, s:i, s:i, s:s, s:f, s:f, s:b}", "file_system",
                     facts->file_system, "promised", facts->promised, "direct", facts->direct, "device",
                     facts->device, "write_cache", facts->write_cache, "kernel", facts->kernel,
                     "logical_block", (int)facts->logical_block, "physical_block", (int)facts->physical_block,
                     "backend", facts->backend, "flush_p50_us", facts->flush_p50_us, "flush_p99_us",
                     facts->flush_p99_us, "flush_implausibly_fast", facts->implausible);
}

static void print_json(const struct torture_facts *facts, const struct torture_kills *kills,
                       const char *verdict, bool good, double seconds)
{
    const struct torture_shared *shared = lane.torture.shared;
    const struct torture_counts *counts = &shared->counts;
    json_t *object = json_object();
    bool done = object != NULL && json_object_set_new(object, "good", json_boolean(good)) == 0 &&
                json_object_set_new(object, "verdict", json_string(verdict)) == 0 &&
                json_object_set_new(object, "what", json_string(shared->failure.what)) == 0 &&
                json_object_set_new(object, "again", json_string(shared->failure.again)) == 0 &&
                json_object_set_new(object, "kills_skipped", json_string(kills->skipped)) == 0 &&
                json_object_set_new(object, "folder", facts_json(facts)) == 0 &&
                json_object_set_new(object, "seconds", json_real(seconds)) == 0;
    done = done && set_count(object, "seed", lane.torture.seed) &&
           set_count(object, "batches", counts->batches + shared->kill_batches) &&
           set_count(object, "crash_images", counts->images + counts->materialised) &&
           set_count(object, "crash_images_on_disk", counts->materialised) &&
           set_count(object, "recoveries", counts->recoveries) && set_count(object, "lives", counts->lives) &&
           set_count(object, "simulated_runs", counts->runs) && set_count(object, "kills", shared->kills) &&
           set_count(object, "writes", counts->writes) && set_count(object, "flushes", counts->flushes) &&
           set_count(object, "io_errors", counts->errors);
    if (done)
        done = json_dumpf(object, stdout, JSON_COMPACT) == 0 && putchar('\n') != EOF;
    if (!done)
        fprintf(stderr, "walrus torture: the result could not be printed\n");
    json_decref(object);
}

static int verdict(const struct torture_facts *facts, const struct torture_kills *kills)
{
    const struct torture_shared *shared = lane.torture.shared;
    const struct torture_counts *counts = &shared->counts;
    double seconds = (double)(clock_ns() - lane.started_ns) / 1e9;
    bool broken = shared->failure.taken != 0;
    bool tried = shared->cannot[0] == '\0' && !shared->stop;
    char line[2600], done[400];
    snprintf(done, sizeof done,
             "%llu batches, %llu crash images (%llu of them on disk), %llu simulated runs, %llu kills, %.0f "
             "seconds, seed "
             "%llu",
             (unsigned long long)(counts->batches + shared->kill_batches),
             (unsigned long long)(counts->images + counts->materialised),
             (unsigned long long)counts->materialised, (unsigned long long)counts->runs,
             (unsigned long long)shared->kills, seconds, (unsigned long long)lane.torture.seed);
    if (broken)
        snprintf(line, sizeof line, "BROKEN: %s\n  again: %s\n  after %s", shared->failure.what,
                 shared->failure.again, done);
    else if (!tried)
        snprintf(line, sizeof line, "not finished: %s; nothing was broken until then: %s",
                 shared->stop ? "interrupted" : shared->cannot, done);
    else
        snprintf(line, sizeof line, "nothing acknowledged was lost, nothing failed came back: %s", done);
    if (lane.torture.json) {
        print_json(facts, kills, line, !broken && tried, seconds);
    } else {
        if (kills->skipped[0] != '\0')
            printf("kills: SKIPPED: %s\n", kills->skipped);
        if (counts->errors > 0)
            printf("the file system answered %llu times with an error (last: %s); each was taken as what it "
                   "says\n",
                   (unsigned long long)counts->errors, counts->last_error);
        printf("%s\n", line);
    }
    return fflush(stdout) != 0 || broken || !tried;
}

/* ------------------------------------------------------------------------------------- running */

static void kill_brokers(struct torture_kills *kills)
{
    struct error err = {0};
    if (!lane.torture.kills)
        return;
    if (lane.torture.walrusd == NULL || access(lane.torture.walrusd, X_OK) != 0) {
        snprintf(kills->skipped, sizeof kills->skipped, "no walrusd beside this program");
        return;
    }
    int rc = torture_kill(&lane.torture, tell, kills, &err);
    if (rc < 0 && rc != -EINTR) {
        torture_say_again(&lane.torture, "kills", lane.torture.seed);
        torture_fail(lane.torture.shared, lane.torture.shared->again, "kill -9: %s", err.text);
    }
}

static int torture_run(void)
{
    struct torture_facts facts;
    struct torture_kills kills = {.skipped = ""};
    struct error err = {0};
    bool made;
    if (folder_take(lane.torture.folder, &made, &err) != 0) {
        fprintf(stderr, "walrus torture: %s\n", err.text);
        return err.code == -ENOTEMPTY ? 2 : 1;
    }
    int code = 1;
    if (torture_look(&lane.torture, &facts, &err) != 0 || record_try(&lane.torture, &err) != 0) {
        fprintf(stderr, "walrus torture: %s\n", err.text);
        goto leave;
    }
    if (!lane.torture.json)
        print_facts(&facts);
    if (facts.align > 4096 && lane.torture.commit_align == 0)
        lane.torture.commit_align = facts.align; /* in memory, too */
    lane.started_ns = lane.told_ns = lane.beat_ns = clock_ns();
    lane.torture.until_ns = lane.started_ns + (int64_t)(lane.torture.seconds * 1e9);
    int rc = start_worker();
    if (rc != 0) {
        fprintf(stderr, "walrus torture: fork: %s\n", strerror(-rc));
        goto leave;
    }
    kill_brokers(&kills);
    while (lane.worker > 0) {
        tell(&lane.torture);
        (void)poll(NULL, 0, 10);
    }
    code = verdict(&facts, &kills);

leave:
    folder_remove_beginning(lane.torture.folder, "walrus-recorder.");
    if (made)
        (void)rmdir(lane.torture.folder); /* stays if a broken image is in it */
    return code;
}

/* ------------------------------------------------------------------------------------- arguments */

enum { KEY_SECONDS = 1000, KEY_SEED, KEY_JSON, KEY_PHASE, KEY_WALRUSD, KEY_LIES, KEY_WORD };

static const char *const word_names[] = {"durability", "io", "commit-align", "segment", "memory", "config"};

static void take_phases(char *text, struct argp_state *state)
{
    struct torture *torture = &lane.torture;
    torture->recorder = torture->simulator = torture->kills = false;
    for (char *save, *name = strtok_r(text, ",", &save); name != NULL; name = strtok_r(NULL, ",", &save)) {
        if (strcmp(name, "recorder") == 0)
            torture->recorder = true;
        else if (strcmp(name, "simulator") == 0)
            torture->simulator = true;
        else if (strcmp(name, "kills") == 0)
            torture->kills = true;
        else
            argp_error(state, "--phase '%s': recorder, simulator or kills, with commas", name);
    }
}

static void take_word(unsigned which, const char *value, struct argp_state *state)
{
    struct torture *torture = &lane.torture;
    if (torture->word_count == MOST_WORDS)
        argp_error(state, "too many options");
    if (asprintf(&lane.words[torture->word_count], "--%s=%s", word_names[which], value) < 0)
        argp_failure(state, 1, ENOMEM, "out of memory");
    torture->word_count++;
}

static error_t parse(int key, char *text, struct argp_state *state)
{
    struct torture *torture = &lane.torture;
    char *end = NULL;
    switch (key) {
    case KEY_SECONDS:
        torture->seconds = strtod(text, &end);
        if (end == text || *end != '\0' || !(torture->seconds >= 0 && torture->seconds <= 1e8))
            argp_error(state, "--seconds %s: a number from 0 on", text);
        return 0;
    case KEY_SEED:
        errno = 0;
        torture->seed = strtoull(text, &end, 0);
        if (end == text || *end != '\0' || errno != 0)
            argp_error(state, "--seed %s: a number", text);
        return 0;
    case KEY_JSON:
        torture->json = true;
        return 0;
    case KEY_PHASE:
        take_phases(text, state);
        return 0;
    case KEY_WALRUSD:
        torture->walrusd = text;
        return 0;
    case KEY_LIES:
        torture->lies = true;
        return 0;
    case ARGP_KEY_ARG:
        if (state->arg_num > 0)
            argp_error(state, "one folder only; '%s' is one too many", text);
        if (text[0] == '\0')
            argp_error(state, "the folder's name is empty");
        torture->folder = text;
        return 0;
    case ARGP_KEY_END:
        if (torture->folder == NULL)
            argp_error(state, "which folder? an empty or new one on the file system to be judged");
        return 0;
    default:
        if (key < KEY_WORD || key >= KEY_WORD + (int)array_count(word_names))
            return ARGP_ERR_UNKNOWN;
        take_word((unsigned)(key - KEY_WORD), text, state);
        return 0;
    }
}

/* Gives the words to walrusd's own parser: what it refuses, we refuse with its words. */
static void take_options(void)
{
    struct torture *torture = &lane.torture;
    struct options *options = calloc(1, sizeof *options);
    struct error err = {0};
    check_bug(options != NULL);
    lane.argv[0] = (char[]){"walrusd"};
    for (int i = 0; i < torture->word_count; i++)
        lane.argv[i + 1] = lane.words[i];
    if (options_parse(torture->word_count + 1, lane.argv, options, &err) != 0) {
        fprintf(stderr, "walrus torture: %s\n", err.text);
        exit(2);
    }
    torture->level = options->level;
    torture->answers_early = options->level == LEVEL_ACCEPTED;
    torture->interval_ns = options->interval_ns;
    torture->backend = options->backend;
    torture->commit_align = options->commit_align;
    torture->segment_bytes = options->segment_bytes;
    torture->memory_bytes = options->memory_bytes;
    torture->max_batch_bytes = options->max_batch_bytes;
    free(options);
}

int main(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"seconds", KEY_SECONDS, "S", 0, "How long (default 60)", 0},
        {"seed", KEY_SEED, "N", 0, "Of everything random (default: the time)", 0},
        {"json", KEY_JSON, NULL, 0, "One JSON object", 0},
        {"phase", KEY_PHASE, "NAME,...", 0, "Only these: recorder, simulator, kills", 0},
        {"durability", KEY_WORD + 0, "LEVEL", 0, "walrusd's own options, as you use them:", 1},
        {"io", KEY_WORD + 1, "BACKEND", 0, "see walrusd --help", 1},
        {"commit-align", KEY_WORD + 2, "BYTES", 0, "", 1},
        {"segment", KEY_WORD + 3, "BYTES", 0, "", 1},
        {"memory", KEY_WORD + 4, "BYTES", 0, "", 1},
        {"config", KEY_WORD + 5, "FILE", 0, "", 1},
        {"walrusd", KEY_WALRUSD, "PROGRAM", OPTION_HIDDEN, "", 0},
        {"lying-flush", KEY_LIES, NULL, OPTION_HIDDEN, "",
         0}, /* must end as broken: a test of this program */
        {0},
    };
    static const struct argp argp = {options,
                                     parse,
                                     "DIR",
                                     "Try on the file system of DIR, an empty or new folder, whether "
                                     "anything acknowledged can be lost there.\v"
                                     "The commit log writes with your options into DIR; what crashes at any "
                                     "moment could have left is drawn from a "
                                     "record of its writes and flushes, recovered and compared with what was "
                                     "acknowledged, in memory and as files "
                                     "in DIR. The same is done on a simulated disk with faults, and walrusd "
                                     "is killed again and again. Everything "
                                     "made in DIR is removed; a crash image that broke a promise is kept "
                                     "there. Takes up to 1 GiB of disk.\n\n"
                                     "Exit code 0: nothing acknowledged was lost, nothing failed came back. "
                                     "1: something was broken, or it could "
                                     "not be tried. 2: wrong usage.",
                                     NULL,
                                     NULL,
                                     NULL};
    lane.torture = (struct torture){.seconds = 60,
                                    .seed = (uint64_t)time(NULL),
                                    .words = lane.words,
                                    .recorder = true,
                                    .simulator = true,
                                    .kills = true};
    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &lane.torture);
    take_options();
    lane.torture.shared =
        mmap(NULL, sizeof *lane.torture.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (lane.torture.shared == MAP_FAILED) {
        fprintf(stderr, "walrus torture: out of memory\n");
        return 1;
    }
    const struct sigaction action = {.sa_handler = interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return torture_run();
}
