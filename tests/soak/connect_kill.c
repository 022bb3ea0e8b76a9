/* connect_kill.c: clients connect, do something or not, and are killed at a random moment, again and again.
 * The broker's descriptors, mappings and memory must not grow.
 *
 * Several clients live at a time. A client works until it is killed. Now and then one leaves a forked child
 * behind that keeps its descriptors open for a second, or is stopped before it is killed: their connections
 * must be given back all the same.
 *
 * Measured with no client connected, twice: after a warm-up (memory is touched for the first time there) and
 * at the end. Before each look the broker gets time to clean up: until the descriptors are as few as they
 * were before the first client, at most SETTLE_NS. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "soak.h"

#define AT_ONCE         8u
#define WARM_UP         10000u
#define SETTLE_NS       (10 * NS_PER_S)
#define GROWTH_KIB      4096u       /* of VmRSS: less than 420 bytes for each of 10,000 clients */
#define GROWTH_SIZE_KIB (32u << 10) /* of VmSize: malloc takes and gives back, as clients overlap */
#define GROWTH_MAPS     4u
#define LINGER_S        1u
#define NAMES           8u /* named producers are remembered for ever: few */
#define LONGEST_NS      (8 * NS_PER_MS)

enum plan {
    PLAN_NOTHING,
    PLAN_APPEND,
    PLAN_OPEN_BATCH,
    PLAN_IN_FLIGHT,
    PLAN_STREAM,
    PLAN_FOLLOW,
    PLAN_ORPHAN, /* in flight, and a child that keeps the descriptors */
    PLAN_COUNT,
};

/* ------------------------------------------------------------------------------------- a client */

static void append_for_ever(walrus *handle, const char *topic)
{
    while (walrus_append_for_topic(handle, topic, "entry", 5, NULL, NULL) != -ECONNRESET)
        continue;
}

static void fill_for_ever(walrus *handle, walrus_topic *topic, bool submit)
{
    static const char page[4096];
    for (uint64_t n = 0;; n++) {
        walrus_batch *batch;
        struct walrus_completion done[8];
        struct walrus_submit_options options = {.size = sizeof options, .user_data = n};
        void *room;
        if (walrus_batch_begin(topic, &batch) != 0) {
            (void)!walrus_reap(handle, done, 8);
            continue;
        }
        (void)!walrus_batch_add(batch, page, sizeof page);
        (void)!walrus_batch_reserve(batch, sizeof page, &room);
        if (!submit)
            pause_ns(10 * NS_PER_S); /* killed with an open batch */
        if (walrus_batch_submit(batch, &options) == -EAGAIN) {
            walrus_batch_abort(batch);
            (void)!walrus_wait(handle, 1, NS_PER_MS);
        }
        (void)!walrus_reap(handle, done, 8);
    }
}

/* Rolled back each time: 2.5 MiB, which the arena cannot hold. */
static void stream_for_ever(walrus_topic *topic)
{
    static const char block[65536];
    for (;;) {
        walrus_batch *batch;
        if (walrus_batch_begin(topic, &batch) != 0)
            return;
        for (int i = 0; i < 40 && walrus_batch_add(batch, block, sizeof block) == 0; i++)
            continue;
        walrus_batch_abort(batch);
    }
}

static void follow_for_ever(walrus *handle, const char *topic)
{
    struct walrus_read_options options = {.size = sizeof options, .follow_ns = -1};
    walrus_entries *entries;
    uint64_t from = 1;
    while (walrus_batch_read_for_topic(handle, topic, from, &options, &entries) > 0) {
        from = walrus_entries_next(entries);
        walrus_entries_release(entries);
    }
}

__attribute__((noreturn)) static void be_client(const struct run *run, uint64_t seed)
{
    char producer[32], topic_name[32];
    enum plan plan = (enum plan)random_below(&seed, PLAN_COUNT);
    walrus *handle;
    walrus_topic *topic;
    struct walrus_connect_options options = {.timeout_ns = 20 * NS_PER_S};
    if (random_below(&seed, 4) == 0) {
        snprintf(producer, sizeof producer, "killed-%u", (unsigned)random_below(&seed, NAMES));
        options.producer = producer;
        options.flags = random_below(&seed, 2) == 0 ? WALRUS_TAKE_OVER : 0;
    }
    if (plan == PLAN_ORPHAN && random_below(&seed, 16) != 0)
        plan = PLAN_NOTHING; /* they live for long: few */
    snprintf(topic_name, sizeof topic_name, "topic-%u", (unsigned)random_below(&seed, 4));
    if (soak_connect(run, &options, &handle, NULL) != 0 || plan == PLAN_NOTHING ||
        walrus_topic_open(handle, topic_name, strlen(topic_name), NULL, &topic) != 0)
        plan = PLAN_NOTHING;
    if (plan == PLAN_ORPHAN && fork() == 0) {
        alarm(LINGER_S);
        for (;;)
            pause();
    }
    if (plan == PLAN_APPEND)
        append_for_ever(handle, topic_name);
    else if (plan == PLAN_STREAM)
        stream_for_ever(topic);
    else if (plan == PLAN_FOLLOW)
        follow_for_ever(handle, topic_name);
    else if (plan != PLAN_NOTHING)
        fill_for_ever(handle, topic, plan != PLAN_OPEN_BATCH);
    for (;;)
        pause();
}

/* ------------------------------------------------------------------------------------- cycles */

/* AT_ONCE clients, from before their connection to their death. */
static int cycle(struct run *run, struct error *err)
{
    pid_t clients[AT_ONCE];
    unsigned count = 0;
    for (; count < AT_ONCE; count++) {
        uint64_t seed = random_next(&run->random);
        clients[count] = child_fork();
        if (clients[count] == 0)
            be_client(run, seed);
        if (clients[count] < 0)
            break;
    }
    int error = errno;
    for (unsigned i = 0; i < count; i++) {
        pause_ns((int64_t)random_below(&run->random, (uint64_t)LONGEST_NS / AT_ONCE * 2));
        if (random_below(&run->random, 8) == 0)
            kill(clients[i], SIGSTOP);
        child_end(clients[i]);
    }
    return count == AT_ONCE ? 0 : error_set(err, -error, "fork: %s", strerror(error));
}

/* Waits until only what the broker itself has open is open, then looks. */
static int look(struct run *run, const struct footprint *idle, struct footprint *now, struct error *err)
{
    int64_t limit = now_ns() + SETTLE_NS;
    for (;;) {
        int rc = broker_footprint(run, now, err);
        if (rc < 0)
            return rc;
        if (now->fds <= idle->fds || now_ns() > limit)
            break;
        pause_ns(20 * NS_PER_MS);
    }
    /* Without the right to count descriptors, time has to do. */
    if (idle->fds == 0)
        pause_ns((LINGER_S + 1) * NS_PER_S);
    return broker_footprint(run, now, err);
}

/* An honest client is served. */
static int check_service(const struct run *run, struct error *err)
{
    walrus *handle;
    int rc = soak_connect(run, &(struct walrus_connect_options){0}, &handle, err);
    if (rc < 0)
        return error_wrap(err, "after the kills nobody can connect");
    rc = walrus_append_for_topic(handle, "honest", "entry", 5, NULL, NULL);
    if (rc < 0)
        (void)error_set(err, rc, "after the kills nobody can append: %s", walrus_error(handle));
    walrus_close(handle);
    return rc;
}

static int compare(const struct run *run, const struct footprint *before, const struct footprint *after,
                   struct error *err)
{
    if (after->fds != before->fds)
        return error_set(err, -EMFILE, "the broker has %llu descriptors open, it had %llu",
                         (unsigned long long)after->fds, (unsigned long long)before->fds);
    if (run->soak->no_memory)
        return 0;
    if (after->mappings > before->mappings + GROWTH_MAPS)
        return error_set(err, -ENOMEM, "the broker has %llu mappings, it had %llu",
                         (unsigned long long)after->mappings, (unsigned long long)before->mappings);
    /* The log's index grows with the log. */
    uint64_t log_growth = after->log_kib > before->log_kib ? after->log_kib - before->log_kib : 0;
    if (after->rss_kib > before->rss_kib + log_growth + GROWTH_KIB ||
        after->size_kib > before->size_kib + log_growth + GROWTH_SIZE_KIB)
        return error_set(
            err, -ENOMEM,
            "the broker's memory grew: VmRSS from %llu to %llu KiB, VmSize from %llu to %llu, where "
            "the log has %llu more",
            (unsigned long long)before->rss_kib, (unsigned long long)after->rss_kib,
            (unsigned long long)before->size_kib, (unsigned long long)after->size_kib,
            (unsigned long long)log_growth);
    return 0;
}

int job_connect_kill(struct run *run, struct error *err)
{
    struct footprint idle, warm, end;
    uint64_t cycles = 0, warm_up = run->soak->is_short ? run->required / 2 : WARM_UP;
    run->memory = "24M"; /* the log's index and buffers have soon all that they may have */
    int rc = broker_start(run, err);
    if (rc == 0)
        rc = broker_footprint(run, &idle, err);
    while (rc == 0 && cycles < warm_up && (rc = run_interrupted(err)) == 0) {
        rc = cycle(run, err);
        cycles += AT_ONCE;
        run_progress(run, "warm-up, %llu clients killed", (unsigned long long)cycles);
    }
    if (rc == 0)
        rc = look(run, &idle, &warm, err);
    for (uint64_t more = 0;
         rc == 0 && (more == 0 || run_goes_on(run, cycles)) && (rc = run_interrupted(err)) == 0;) {
        rc = cycle(run, err);
        more += AT_ONCE;
        cycles += AT_ONCE;
        run->done = cycles;
        if (broker_footprint(run, &end, NULL) == 0)
            run_progress(run,
                         "%llu clients killed; VmRSS %llu KiB, VmSize %llu KiB, of these the log %llu KiB",
                         (unsigned long long)cycles, (unsigned long long)end.rss_kib,
                         (unsigned long long)end.size_kib, (unsigned long long)end.log_kib);
    }
    if (rc == 0)
        rc = check_service(run, err);
    if (rc == 0)
        rc = look(run, &idle, &end, err);
    if (rc == 0)
        rc = compare(run, &warm, &end, err);
    if (rc == 0)
        rc = broker_stop(run, err);
    if (rc == 0)
        snprintf(run->totals, sizeof run->totals,
                 "%llu clients killed; the broker's descriptors %llu -> %llu, mappings %llu -> %llu, VmRSS "
                 "%llu -> %llu KiB, VmSize %llu -> %llu KiB, of these the log %llu -> %llu KiB%s",
                 (unsigned long long)cycles, (unsigned long long)warm.fds, (unsigned long long)end.fds,
                 (unsigned long long)warm.mappings, (unsigned long long)end.mappings,
                 (unsigned long long)warm.rss_kib, (unsigned long long)end.rss_kib,
                 (unsigned long long)warm.size_kib, (unsigned long long)end.size_kib,
                 (unsigned long long)warm.log_kib, (unsigned long long)end.log_kib,
                 warm.fds == 0 ? " (this user may not count its descriptors and mappings)" : "");
    return rc;
}
