/* scenario_idle.c: P7: the CPU time of clients that do nothing, and of a broker that waits for them.
 *
 * Happy path
 *   1. IDLE_CLIENTS processes, each with a connection and a topic of its own. The first IDLE_FOLLOWERS write
 *      one entry and follow their topic from behind it (a blocking read without an end); the others sleep in
 *      poll on their handle's descriptor.
 *   2. When all are there and the broker has nothing left to prepare, the CPU clocks of all of these
 *      processes and of the broker are read at both ends of each round. Nothing is sent meanwhile.
 *   3. At the end one entry goes to every followed topic: each follower must have it, or it was not
 *      following.
 *
 * Failure modes: a client that fails or ends early, or a follower that does not get its entry, ends the row
 * with an error. The clients die with this process. */
#include "scenario.h"

#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../libclient/include/walrus.h"
#include "usage.h"

#define IDLE_CLIENTS   100u
#define IDLE_FOLLOWERS 20u
#define IDLE_SECONDS   5.0
#define IDLE_ROUNDS    3u
#define CORES_GOAL     0.001
#define READY_NS       INT64_C(30000000000)
#define LOOK_NS        10000000

struct idle_shared {
    uint32_t ready, failed, received;
};

struct idle_crew {
    struct stage_set *stage;
    struct idle_shared *shared;
    pid_t pids[IDLE_CLIENTS];
    uint32_t count;
};

static void topic_name(const struct stage_set *stage, uint32_t number, char *out, size_t size)
{
    snprintf(out, size, "%.63s-idle-%u", stage->ledger.topic_prefix, number);
}

/* Its own entry, then the one that ends it. */
static int follow(walrus *handle, const char *name, struct idle_shared *shared)
{
    struct walrus_receipt receipt;
    struct walrus_read_options options = {.size = sizeof options, .max_entries = 1, .follow_ns = -1};
    walrus_entries *entries;
    int code = walrus_append_for_topic(handle, name, "first", 5, NULL, &receipt);
    if (code < 0)
        return code;
    __atomic_add_fetch(&shared->ready, 1, __ATOMIC_ACQ_REL);
    code = walrus_batch_read_for_topic(handle, name, receipt.first_sequence + 1, &options, &entries);
    if (code != 1)
        return code < 0 ? code : -EPROTO;
    walrus_entries_release(entries);
    __atomic_add_fetch(&shared->received, 1, __ATOMIC_ACQ_REL);
    return 0;
}

static int client_main(const struct idle_crew *crew, uint32_t number)
{
    char name[128];
    struct walrus_connect_options options = {.size = sizeof options, .socket_path = crew->stage->socket};
    walrus *handle;
    walrus_topic *topic;
    child_begin();
    topic_name(crew->stage, number, name, sizeof name);
    int code = walrus_connect(&handle, &options);
    if (code == 0)
        code = walrus_topic_open(handle, name, strlen(name), NULL, &topic);
    if (code == 0 && number < IDLE_FOLLOWERS)
        code = follow(handle, name, crew->shared);
    else if (code == 0) {
        struct pollfd p = {walrus_fd(handle), POLLIN, 0};
        __atomic_add_fetch(&crew->shared->ready, 1, __ATOMIC_ACQ_REL);
        while (poll(&p, 1, -1) < 0 && errno == EINTR)
            continue;
    }
    if (code < 0)
        __atomic_add_fetch(&crew->shared->failed, 1, __ATOMIC_ACQ_REL);
    return code < 0 ? 1 : 0;
}

/* Until `word` is `wanted`. */
static int await(const struct idle_crew *crew, const uint32_t *word, uint32_t wanted, const char *what,
                 struct error *err)
{
    int64_t limit = now_ns() + READY_NS;
    check_bug(word != NULL);
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) < wanted) {
        if (__atomic_load_n(&crew->shared->failed, __ATOMIC_ACQUIRE) > 0)
            return error_set(err, -EIO, "an idle client failed");
        if (crew->stage->bench->interrupted != 0)
            return error_set(err, -EINTR, "interrupted");
        if (now_ns() > limit)
            return error_set(err, -ETIMEDOUT, "only %u of %u %s after 30 s", *word, wanted, what);
        pause_ns(LOOK_NS);
    }
    return 0;
}

static int crew_start(struct idle_crew *crew, struct error *err)
{
    for (; crew->count < IDLE_CLIENTS; crew->count++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(client_main(crew, crew->count));
        if (pid < 0)
            return error_set(err, -errno, "cannot start a client: %s", strerror(errno));
        crew->pids[crew->count] = pid;
    }
    return await(crew, &crew->shared->ready, IDLE_CLIENTS, "clients are connected", err);
}

static void crew_end(struct idle_crew *crew)
{
    for (uint32_t i = 0; i < crew->count; i++)
        kill(crew->pids[i], SIGKILL);
    for (uint32_t i = 0; i < crew->count; i++)
        while (waitpid(crew->pids[i], NULL, 0) < 0 && errno == EINTR)
            continue;
    shared_memory_release(crew->shared, sizeof *crew->shared);
}

static int64_t clients_cpu(const struct idle_crew *crew)
{
    int64_t sum = 0;
    for (uint32_t i = 0; i < crew->count; i++)
        sum += usage_of(crew->pids[i]).cpu_ns;
    return sum;
}

static int all_received(const struct idle_crew *crew, struct error *err)
{
    struct walrus_connect_options options = {.size = sizeof options, .socket_path = crew->stage->socket};
    walrus *handle;
    char name[128];
    int code = walrus_connect(&handle, &options);
    if (code < 0)
        return error_set(err, code, "cannot connect to wake the followers");
    for (uint32_t i = 0; i < IDLE_FOLLOWERS && code == 0; i++) {
        topic_name(crew->stage, i, name, sizeof name);
        code = walrus_append_for_topic(handle, name, "second", 6, NULL, NULL);
    }
    walrus_close(handle);
    if (code < 0)
        return error_set(err, code, "cannot write to a followed topic: %s", strerror(-code));
    return await(crew, &crew->shared->received, IDLE_FOLLOWERS, "followers got their entry", err);
}

static int measure(struct idle_crew *crew, struct row *row, uint32_t rounds, struct error *err)
{
    struct stage_set *stage = crew->stage;
    double cores[ROUNDS_MOST], broker[ROUNDS_MOST], clients[ROUNDS_MOST];
    for (uint32_t i = 0; i < rounds; i++) {
        progress(stage->bench, "P7: round %u of %u", i + 1, rounds);
        row_settle(row, stage);
        int64_t from = now_ns(), broker_ns = usage_of(stage->broker_pid).cpu_ns,
                clients_ns = clients_cpu(crew);
        int64_t until = from + (int64_t)(row->load.seconds * 1e9);
        while (now_ns() < until && stage->bench->interrupted == 0)
            pause_ns(until - now_ns() > 0 ? until - now_ns() : 0);
        double elapsed = (double)(now_ns() - from);
        broker[i] = (double)(usage_of(stage->broker_pid).cpu_ns - broker_ns) / elapsed;
        clients[i] = (double)(clients_cpu(crew) - clients_ns) / elapsed;
        cores[i] = broker[i] + clients[i];
        row->rounds_walrus[i].seconds = elapsed / 1e9;
        row->rounds_walrus[i].broker_cpu = broker[i];
        row->rounds_walrus[i].client_cpu = clients[i];
        row->rounds++;
    }
    if (stage->bench->interrupted != 0)
        return error_set(err, -EINTR, "interrupted");
    row_medians(row);
    double median = row_median(cores, rounds);
    row_extra(row, "cores_percent", median * 100);
    row_extra(row, "broker_cores_percent", row_median(broker, rounds) * 100);
    row_extra(row, "clients_cores_percent", row_median(clients, rounds) * 100);
    row_goal(row, false, CORES_GOAL * 100, median * 100, "CPU < 0.1 % of a core, clients included");
    return all_received(crew, err);
}

int scenario_idle(struct bench *bench, struct error *err)
{
    struct load load = {.producers = IDLE_CLIENTS,
                        .topics = IDLE_CLIENTS,
                        .batch = 1,
                        .size = 6,
                        .depth = 1,
                        .seconds = IDLE_SECONDS,
                        .wait = WAIT_BLOCK,
                        .level = WALRUS_LEVEL_DURABLE,
                        .durability = "sync"};
    struct stage_set stage;
    if (bench->options.given & GIVEN_SECONDS)
        load.seconds = bench->options.load.seconds;
    struct row *row =
        row_new(bench, "P7", "100 connected clients, 20 of them following, nothing to do", &load);
    if (row == NULL)
        return error_set(err, -ENOSPC, "too many rows; name fewer scenarios");
    int code = stage_begin(&stage, bench, load.durability, err);
    if (code == 0) {
        struct idle_crew crew = {.stage = &stage, .shared = shared_memory(sizeof *crew.shared)};
        code =
            crew.shared != NULL ? stage_prime(&stage, &load, err) : error_set(err, -ENOMEM, "out of memory");
        if (code == 0)
            code = crew_start(&crew, err);
        if (code == 0)
            code = measure(&crew, row, bench->options.rounds != 0 ? bench->options.rounds : IDLE_ROUNDS, err);
        crew_end(&crew);
        if (code == 0)
            code = stage_read_back(&stage, &row->read_back, err);
        stage_end(&stage);
    }
    if (code < 0)
        bench->row_count--;
    return code;
}
