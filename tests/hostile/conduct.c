/* conduct.c: one episode: a broker, an honest client, slots of attacks, and every check.
 *
 * Happy path
 *   1. Broker and honest client start; what the broker holds for the latter alone is noted.
 *   2. Slots: quiet phase, attack phase (the honest client's answers are counted in both), the attackers are
 *      killed with all their children, and within SETTLE_LIMIT the broker holds no more than before.
 *   3. The honest client stops, everything is read back (verify.c), the broker stops, the store is checked.
 *
 * Failure modes: the broker ended; the honest client ended or got no answer; an attacker found that it
 * could do what it must not, or crashed by itself; something was not given back; something is lost. Each
 * ends the episode with words.
 *
 * Invariant: nothing that was started survives the episode: attackers have a process group each and die with
 * it, what they leave behind comes to us (subreaper). */
#include "hostile.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOT_LEAST    (240 * MS)
#define SLOT_MOST     (600 * MS)
#define QUIET_PERCENT 40
#define GRACE_NS      (300 * MS) /* for an attacker to end by itself */
#define SETTLE_LIMIT  (10 * SECOND)
#define STOP_LIMIT    (60 * SECOND)
#define READY_LIMIT   (30 * SECOND)
#define ATTACKER_FDS  8192u
/* KiB of private memory: buffers up to --memory, requests up to --max-in-flight, topics, the index; a
 * sanitizer keeps what is freed. */
#if defined(__SANITIZE_ADDRESS__)
#define MEMORY_SLACK (1024 << 10)
#else
#define MEMORY_SLACK (192 << 10)
#endif
#define ATTACK_LIMIT 128u

struct child {
    pid_t pid;
    int report;
    const struct attack *attack;
};

struct episode {
    struct campaign *run;
    uint64_t seed;
    struct rng rng;
    struct place place;
    struct shared *shared;
    pid_t honest, visitor;
    bool two_uids;
    struct holdings before;
    struct child children[MAX_ATTACKERS];
    unsigned child_count;
    const struct attack *order[ATTACK_LIMIT]; /* shuffled */
    unsigned order_count, order_next;
    bool all_tried; /* each attack has had its turn */
};

/* ------------------------------------------------------------------------------------- processes */

/* In a child: another user if we may, and our end is its end. */
static void become(uid_t uid, bool change, pid_t parent)
{
    if (change &&
        (setgroups(0, NULL) != 0 || setresgid(uid, uid, uid) != 0 || setresuid(uid, uid, uid) != 0)) {
        fprintf(stderr, "walrus-hostile: cannot become user %u: %s\n", (unsigned)uid, strerror(errno));
        _exit(126);
    }
    prctl(PR_SET_DUMPABLE, 1); /* its own /proc/self/fd is part of the attacks */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(126);
}

static int start_honest(struct episode *e, struct error *err)
{
    int ledger = open(e->place.ledger, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (ledger < 0)
        return error_set(err, -errno, "%s: %s", e->place.ledger, strerror(errno));
    pid_t parent = getpid();
    e->honest = fork();
    if (e->honest == 0) {
        become(UID_HONEST, e->two_uids, parent);
        _exit(honest_run(&e->place, e->shared, e->seed, ledger));
    }
    int rc = e->honest < 0 ? error_set(err, -errno, "fork: %s", strerror(errno)) : 0;
    close(ledger);
    int64_t end = now_ns() + READY_LIMIT;
    while (rc == 0 && __atomic_load_n(&e->shared->ready, __ATOMIC_ACQUIRE) == 0) {
        if (waitpid(e->honest, NULL, WNOHANG) != 0) {
            e->honest = 0;
            return error_set(err, -ECHILD, "the honest client ended before it began");
        }
        if (now_ns() >= end)
            return error_set(err, -ETIMEDOUT, "the honest client is not ready");
        pause_ns(MS);
    }
    return rc;
}

static int start_visitor(struct episode *e, struct error *err)
{
    pid_t parent = getpid();
    e->visitor = fork();
    if (e->visitor == 0) {
        become(UID_HONEST, e->two_uids, parent);
        _exit(visitor_run(&e->place, e->shared, e->two_uids));
    }
    return e->visitor < 0 ? error_set(err, -errno, "fork: %s", strerror(errno)) : 0;
}

static int one_lives(pid_t *pid, const char *who, struct error *err)
{
    int status;
    if (*pid <= 0 || waitpid(*pid, &status, WNOHANG) != *pid)
        return 0;
    *pid = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0; /* told to stop */
    return error_set(err, -ECHILD, "%s ended with %s %d", who, WIFEXITED(status) ? "code" : "signal",
                     WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
}

static int all_live(struct episode *e, struct error *err)
{
    int rc = broker_alive(&e->place, err);
    if (rc == 0)
        rc = one_lives(&e->honest, "the honest client", err);
    if (rc == 0)
        rc = one_lives(&e->visitor, "the honest user's visitor", err);
    return rc;
}

/* Lets time pass and looks whether everybody is well. */
static int watch(struct episode *e, int64_t ns, struct error *err)
{
    int64_t end = now_ns() + ns;
    int rc = 0;
    while (rc == 0 && now_ns() < end) {
        int64_t left = end - now_ns();
        pause_ns(left < 10 * MS ? left : 10 * MS);
        rc = all_live(e, err);
    }
    return rc;
}

/* ------------------------------------------------------------------------------------- attackers */

void found(const struct attacker *a, const char *format, ...)
{
    char words[256];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    dprintf(a->report, "%s", words);
    _exit(1);
}

void not_tried(const struct attacker *a, const char *format, ...)
{
    char words[256];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    dprintf(a->report, "%s", words);
    _exit(EXIT_NOT_TRIED);
}

/* Of all that we have it keeps stderr and the pipe for its report. */
static void drop_descriptors(int report)
{
    if (report > 3)
        close_range(3, (unsigned)report - 1, 0);
    close_range((unsigned)report + 1, ~0u, 0);
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max < ATTACKER_FDS ? limit.rlim_max : ATTACKER_FDS;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

__attribute__((noreturn)) static void be_attacker(struct episode *e, const struct attack *attack, int report,
                                                  uint64_t seed, int64_t deadline_ns, pid_t parent)
{
    struct attacker a = {.broker = e->place.broker,
                         .honest_producer = __atomic_load_n(&e->shared->producer, __ATOMIC_ACQUIRE),
                         .other_uid = e->two_uids,
                         .rng = {.state = seed},
                         .seed = e->seed,
                         .deadline_ns = deadline_ns,
                         .report = report};
    memcpy(a.socket, e->place.socket, sizeof a.socket);
    memcpy(a.stat, e->place.stat, sizeof a.stat);
    setpgid(0, 0);
    become(UID_HOSTILE, e->two_uids, parent);
    /* How CPU time is shared out is the kernel's affair, not the broker's. */
    setpriority(PRIO_PROCESS, 0, 19);
    munmap(e->shared, sizeof *e->shared);
    drop_descriptors(report);
    attack->run(&a);
    _exit(0);
}

static int start_attacker(struct episode *e, const struct attack *attack, int64_t deadline_ns,
                          struct error *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return error_set(err, -errno, "pipe: %s", strerror(errno));
    uint64_t seed = rng_next(&e->rng);
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0)
        be_attacker(e, attack, ends[1], seed, deadline_ns, parent);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        return error_set(err, -errno, "fork: %s", strerror(errno));
    }
    setpgid(pid, pid);
    e->children[e->child_count++] = (struct child){.pid = pid, .report = ends[0], .attack = attack};
    return 0;
}

/* Kills what is left of it; judges how it ended. */
static int end_attacker(struct episode *e, struct child *child, int64_t patience_end, struct error *err)
{
    siginfo_t info = {0};
    if (child->attack->run == attack_fork_keeps)
        patience_end += 2 * FREE_LIMIT; /* it sees to the end what it has begun */
    while (waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == 0 &&
           now_ns() < patience_end)
        pause_ns(2 * MS);
    /* Not reaped yet: the group's number is still its own. */
    bool by_itself = info.si_pid == child->pid;
    kill(-child->pid, SIGKILL);
    int status = 0;
    waitpid(child->pid, &status, 0);
    while (waitpid(-child->pid, NULL, 0) > 0) /* its children have come to us */
        continue;
    char words[257] = "";
    ssize_t got = read(child->report, words, sizeof words - 1);
    close(child->report);
    words[got > 0 ? got : 0] = '\0';
    if (!by_itself)
        return 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_NOT_TRIED) {
        struct tally *tally = &e->run->rates->tallies[child->attack - attacks];
        if (tally->not_tried++ == 0)
            fprintf(stderr, "walrus-hostile: %s: not tried: %s\n", child->attack->name, words);
        return 0;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFEXITED(status))
        return error_set(err, -EPERM, "attack %s: %s", child->attack->name, words);
    return error_set(err, -ECHILD, "attack %s: the attacker itself was ended by signal %d",
                     child->attack->name, WTERMSIG(status));
}

static int end_attackers(struct episode *e, struct error *err)
{
    int64_t end = now_ns() + GRACE_NS;
    int rc = 0;
    for (unsigned i = 0; i < e->child_count; i++) {
        struct error own = {0};
        if (end_attacker(e, &e->children[i], end, &own) != 0 && rc == 0)
            rc = error_set(err, own.code, "%s", own.text);
    }
    e->child_count = 0;
    return rc;
}

/* ------------------------------------------------------------------------------------- given back */

static bool back(const struct holdings *before, const struct holdings *now, unsigned visitors)
{
    return now->connections <= before->connections + visitors &&
           (visitors > 0 || now->shared_bytes <= before->shared_bytes) &&
           now->sockets <= before->sockets + 2 * (int64_t)visitors &&
           now->eventfds <= before->eventfds + 2 * (int64_t)visitors &&
           now->memfds <= before->memfds + 2 * (int64_t)visitors &&
           now->mappings <= before->mappings + 2 * (int64_t)visitors &&
           now->processes <= before->processes + (int64_t)visitors;
}

static void say_holdings(const char *when, const struct holdings *h)
{
    fprintf(stderr,
            "walrus-hostile: %s the broker holds %llu connections, %llu bytes shared, %lld sockets, %lld "
            "eventfds, "
            "%lld pidfds, %lld memfds, %lld mappings of them, %lld KiB of its own\n",
            when, (unsigned long long)h->connections, (unsigned long long)h->shared_bytes,
            (long long)h->sockets, (long long)h->eventfds, (long long)h->processes, (long long)h->memfds,
            (long long)h->mappings, (long long)h->private_kib);
}

static int settle(struct episode *e, const struct holdings *before, unsigned visitors, struct error *err)
{
    struct holdings now = {0};
    int64_t end = now_ns() + SETTLE_LIMIT;
    int rc = 0;
    while (rc == 0) {
        if (broker_holdings(&e->place, &now) == 0 && back(before, &now, visitors))
            return 0;
        rc = watch(e, 5 * MS, err);
        if (rc == 0 && now_ns() >= end) {
            say_holdings("before,", before);
            say_holdings("now", &now);
            rc =
                error_set(err, -EBUSY, "the broker did not give back within %d s what the attackers had used",
                          (int)(SETTLE_LIMIT / SECOND));
        }
    }
    return rc;
}

/* ------------------------------------------------------------------------------------- slots */

static void shuffle(struct episode *e)
{
    const char *only = e->run->options->attack;
    e->order_count = e->order_next = 0;
    check_bug(attack_count <= ATTACK_LIMIT);
    for (unsigned i = 0; i < attack_count; i++)
        if (only == NULL || strcmp(only, attacks[i].name) == 0)
            e->order[e->order_count++] = &attacks[i];
    for (unsigned i = e->order_count; i > 1; i--) {
        unsigned other = rng_below(&e->rng, i);
        const struct attack *swap = e->order[i - 1];
        e->order[i - 1] = e->order[other];
        e->order[other] = swap;
    }
}

static const struct attack *next_attack(struct episode *e)
{
    if (e->order_next == e->order_count)
        shuffle(e);
    e->all_tried |= e->order_next + 1 == e->order_count;
    return e->order[e->order_next++];
}

/* Answers per second of the honest client while `ns` pass. */
static int count_rate(struct episode *e, int64_t ns, double *rate, struct error *err)
{
    int64_t from = now_ns();
    uint64_t before = __atomic_load_n(&e->shared->acknowledged, __ATOMIC_RELAXED);
    int rc = watch(e, ns, err);
    uint64_t after = __atomic_load_n(&e->shared->acknowledged, __ATOMIC_RELAXED);
    *rate = (double)(after - before) * (double)SECOND / (double)(now_ns() - from);
    return rc;
}

static void note_rates(struct episode *e, double quiet, double attacked)
{
    struct rates *rates = e->run->rates;
    if (rates->count < MAX_SLOTS) {
        rates->quiet[rates->count] = quiet;
        rates->attacked[rates->count++] = attacked;
    }
    double ratio = quiet > 0 ? attacked / quiet : 0;
    for (unsigned i = 0; i < e->child_count; i++) {
        struct tally *tally = &rates->tallies[e->children[i].attack - attacks];
        if (tally->slots++ == 0 || ratio < tally->ratio_least)
            tally->ratio_least = ratio;
        tally->ratio_sum += ratio;
    }
}

static int slot(struct episode *e, int64_t length_ns, unsigned attackers, struct error *err)
{
    double quiet = 0;
    double attacked = 0;
    int64_t quiet_ns = length_ns * QUIET_PERCENT / 100;
    int64_t attack_ns = length_ns - quiet_ns;
    int rc = count_rate(e, quiet_ns, &quiet, err);
    int64_t deadline = now_ns() + attack_ns;
    for (unsigned i = 0; i < attackers && rc == 0; i++)
        rc = start_attacker(e, next_attack(e), deadline, err);
    if (rc == 0)
        rc = count_rate(e, attack_ns, &attacked, err);
    if (rc == 0)
        note_rates(e, quiet, attacked);
    char names[256] = "";
    size_t used = 0;
    for (unsigned i = 0; i < e->child_count; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, " %s", e->children[i].attack->name);
    int ended = end_attackers(e, rc == 0 ? err : NULL);
    rc = rc == 0 ? ended : rc;
    if (rc == 0)
        rc = settle(e, &e->before, 1, err);
    return rc == 0 ? 0 : error_wrap(err, "under%s", names);
}

static int slots(struct episode *e, int64_t budget_ns, struct error *err)
{
    int64_t end = now_ns() + budget_ns;
    const struct options *options = e->run->options;
    shuffle(e);
    unsigned least = options->attackers;
    if (least == 0) /* so many at once that each has its turn */
        for (least = 1; least < MAX_ATTACKERS && (e->order_count / least + 1) * SLOT_LEAST > budget_ns;)
            least++;
    int64_t length = budget_ns * least / (e->order_count + least);
    length = length < SLOT_LEAST ? SLOT_LEAST : length > SLOT_MOST ? SLOT_MOST : length;
    int rc = 0;
    while (rc == 0 && (now_ns() < end || !e->all_tried)) {
        unsigned attackers =
            options->attackers != 0 ? least : least + rng_below(&e->rng, MAX_ATTACKERS - least + 1);
        rc = slot(e, length, attackers, err);
    }
    return rc;
}

/* ------------------------------------------------------------------------------------- the whole */

static int await_child(struct episode *e, pid_t *pid, const char *who, struct error *err)
{
    int64_t end = now_ns() + STOP_LIMIT;
    int rc = 0;
    while (rc == 0 && *pid > 0) {
        rc = one_lives(pid, who, err);
        if (rc == 0)
            rc = broker_alive(&e->place, err);
        if (rc == 0 && now_ns() >= end)
            rc = error_set(err, -ETIMEDOUT, "%s did not end", who);
        pause_ns(2 * MS);
    }
    return rc;
}

static void say_well(const struct episode *e, const struct verified *verified, const struct holdings *now,
                     const struct stat_values *values)
{
    printf("seed %llu: %llu batches acknowledged, %llu refused, all as the ledger says; %llu entries of %llu "
           "topics "
           "read back; %llu visits\n",
           (unsigned long long)e->seed, (unsigned long long)verified->acknowledged,
           (unsigned long long)verified->refused, (unsigned long long)verified->entries,
           (unsigned long long)verified->topics, (unsigned long long)e->shared->second_connections);
    printf("  the broker: %llu connections, %llu ended as hostile, %llu refused; its memory grew by %lld "
           "KiB; longest "
           "turn %.1f ms, %llu over 10 ms, %llu over 100 ms\n",
           (unsigned long long)values->session_connected, (unsigned long long)values->session_ended_hostile,
           (unsigned long long)values->session_refused, (long long)(now->private_kib - e->before.private_kib),
           (double)values->loop_turn_longest / (double)MS, (unsigned long long)values->loop_turns_over_10ms,
           (unsigned long long)values->loop_turns_over_100ms);
    fflush(stdout);
}

static int finish(struct episode *e, struct error *err)
{
    struct verified verified = {0};
    struct stat_values values = {0};
    struct holdings none = e->before;
    __atomic_store_n(&e->shared->stop, 1, __ATOMIC_RELEASE);
    int rc = await_child(e, &e->visitor, "the honest user's visitor", err);
    if (rc == 0)
        rc = await_child(e, &e->honest, "the honest client", err);
    none.connections = none.shared_bytes = 0;
    if (rc == 0)
        rc = settle(e, &none, 0, err);
    struct holdings now = {0};
    if (rc == 0)
        rc = broker_holdings(&e->place, &now);
    if (rc == 0)
        rc = broker_stat(&e->place, &values);
    if (rc == 0 && now.private_kib > e->before.private_kib + MEMORY_SLACK) {
        say_holdings("before,", &e->before);
        say_holdings("now", &now);
        rc = error_set(err, -ENOMEM, "the broker's private memory has grown");
    }
    if (rc == 0)
        rc = verify(&e->place, e->seed, &verified, err);
    if (rc == 0)
        rc = broker_alive(&e->place, err);
    if (rc == 0)
        rc = broker_stop(&e->place, err);
    if (rc == 0)
        rc = store_check(&e->place, e->run->options, err);
    if (rc == 0)
        say_well(e, &verified, &now, &values);
    return rc;
}

static void kill_child(pid_t *pid)
{
    if (*pid > 0) {
        kill(*pid, SIGKILL);
        waitpid(*pid, NULL, 0);
    }
    *pid = 0;
}

static int begin(struct episode *e, struct error *err)
{
    static const char *const backends[] = {"auto", "auto", "auto", "pwrite", "mmap"};
    /* Small limits are reached; large ones let the attackers go on. */
    static const char *const limits[][5] = {{"4096", "4G", "65536", "262144", "65536"},
                                            {"200", "512M", "400", "4096", "400"}};
    e->two_uids = geteuid() == 0;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    e->shared = mmap(NULL, sizeof *e->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (e->shared == MAP_FAILED) {
        e->shared = NULL;
        return error_set(err, -errno, "mmap: %s", strerror(errno));
    }
    int rc = place_make(&e->place, err);
    const char *const *limit = limits[rng_below(&e->rng, array_count(limits))];
    const char *const more[] = {"--io",
                                backends[rng_below(&e->rng, array_count(backends))],
                                "--max-connections",
                                limit[0],
                                "--max-shared",
                                limit[1],
                                "--max-topics",
                                limit[2],
                                "--max-in-flight",
                                limit[3],
                                "--max-producers",
                                limit[4],
                                NULL};
    if (rc == 0)
        rc = broker_start(&e->place, e->run->options, more, err);
    if (rc == 0)
        rc = start_honest(e, err);
    if (rc == 0)
        rc = watch(e, 100 * MS, err);
    if (rc == 0)
        rc = broker_holdings(&e->place, &e->before);
    if (rc == 0)
        rc = start_visitor(e, err);
    return rc;
}

int conduct(struct campaign *run, uint64_t seed, int64_t budget_ns, struct error *err)
{
    struct episode e = {.run = run, .seed = seed, .rng = {.state = seed}};
    int rc = begin(&e, err);
    if (rc == 0)
        rc = slots(&e, budget_ns, err);
    if (rc == 0)
        rc = finish(&e, err);
    end_attackers(&e, NULL);
    kill_child(&e.visitor);
    kill_child(&e.honest);
    broker_kill(&e.place);
    if (e.shared != NULL) {
        run->honest_batches += e.shared->acknowledged;
        if (e.shared->slowest_ns > run->slowest_ns)
            run->slowest_ns = e.shared->slowest_ns;
        munmap(e.shared, sizeof *e.shared);
    }
    if (rc != 0 && run->options->keep)
        fprintf(stderr, "walrus-hostile: store and broker's messages are kept in %s\n", e.place.folder);
    else
        place_remove(&e.place);
    return rc;
}
