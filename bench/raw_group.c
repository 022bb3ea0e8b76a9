/* raw_group.c: a group writer with nothing in it: no checks, no checksums, no topics, no recovery.
 *
 * Happy path
 *   1. Each client process owns `depth` slots in shared memory. It copies a payload into a free one and
 *      raises `published`; if the writer sleeps, it rings the doorbell (eventfd).
 *   2. The writer process gathers all published slots of all clients, copies them behind one another into an
 *      aligned buffer, writes whole blocks, makes them durable, raises each client's `done` and writes its
 *      eventfd.
 *   3. The client reaps: one sample per payload, from before its copy into the slot to after it saw `done`.
 *
 * Store-buffering pair: the writer stores `asleep` and looks at `published`, the client stores `published`
 * and looks at `asleep`; both fence in between. For the clients the eventfd counter remembers.
 *
 * Failure modes: a write error ends the writer with status 1, which ends the run. */
#include "raw_group.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "payload.h"
#include "phases.h"

#define HEADER      64u
#define FRAME_ALIGN 64u
#define SPINS       400u
#define RANK_NS     INT64_C(400000000)

const char *const raw_group_way_names[RAW_GROUP_WAYS] = {
    "group writer, O_DIRECT|O_DSYNC",
    "group writer, O_DIRECT + fdatasync",
    "group writer, O_DIRECT|O_DSYNC, clients spin first",
    "group writer, O_DIRECT + fdatasync, clients spin first",
};

struct client {
    uint32_t published; /* the client's */
    uint8_t separate0[60];
    uint32_t done; /* the writer's */
    uint8_t separate1[60];
    uint64_t commits; /* the client's, of the measured interval */
    struct histogram latency;
    uint8_t slots[RAW_GROUP_DEPTH][RAW_GROUP_PAYLOAD];
};

struct shared {
    struct phases phases;
    uint32_t asleep; /* the writer's */
    uint32_t ended;  /* clients that have ended */
    struct client clients[];
};

struct group_run {
    const struct raw_group_request *request;
    enum raw_group_way way;
    struct shared *shared;
    struct payload_pool pool;
    int doorbell;
    int signals[RAW_GROUP_CLIENTS];
};

static uint32_t load(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void signal_fd(int fd)
{
    uint64_t one = 1;
    (void)!write(fd, &one, sizeof one);
}

static void sleep_on(int fd)
{
    uint64_t value;
    struct pollfd p = {fd, POLLIN, 0};
    if (poll(&p, 1, 100) > 0)
        (void)!read(fd, &value, sizeof value);
}

static int client_main(struct group_run *run, uint32_t number)
{
    const struct raw_group_request *request = run->request;
    struct client *self = &run->shared->clients[number];
    struct phases *phases = &run->shared->phases;
    bool spin = run->way == RAW_GROUP_DSYNC_SPIN || run->way == RAW_GROUP_FDATASYNC_SPIN;
    int64_t begun[RAW_GROUP_DEPTH];
    bool sampled[RAW_GROUP_DEPTH];
    uint32_t published = 0, reaped = 0;
    if (phases_ready(phases) < 0)
        return 1;
    for (;;) {
        enum phase phase = phase_now(phases);
        bool news = false;
        while (phase != PHASE_STOP && published - reaped < request->depth) {
            uint32_t slot = published % request->depth;
            begun[slot] = now_ns();
            sampled[slot] = phase == PHASE_MEASURE;
            payload_fill(&run->pool, payload_batch_word(0, number, published), 0, self->slots[slot],
                         request->size);
            __atomic_store_n(&self->published, ++published, __ATOMIC_RELEASE);
            news = true;
        }
        if (news) {
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (load(&run->shared->asleep) != 0)
                signal_fd(run->doorbell);
        }
        if (published == reaped)
            break;
        for (uint32_t i = 0; spin && i < SPINS && load(&self->done) == reaped; i++)
            relax();
        while (load(&self->done) == reaped && !phases_given_up(phases))
            sleep_on(run->signals[number]);
        if (phases_given_up(phases))
            break;
        int64_t now = now_ns();
        phase = phase_now(phases);
        for (uint32_t done = load(&self->done); reaped != done; reaped++) {
            if (sampled[reaped % request->depth])
                histogram_add(&self->latency, now - begun[reaped % request->depth], 1);
            if (phase == PHASE_MEASURE)
                self->commits++;
        }
    }
    __atomic_add_fetch(&run->shared->ended, 1, __ATOMIC_ACQ_REL);
    signal_fd(run->doorbell);
    return 0;
}

/* Copies what has been published since `seen`; seen moves on. Bytes used. */
static uint64_t gather(struct group_run *run, uint8_t *buffer, uint32_t *seen)
{
    uint64_t used = 0, frame = align_up(HEADER + run->request->size, FRAME_ALIGN);
    for (uint32_t i = 0; i < run->request->clients; i++) {
        struct client *client = &run->shared->clients[i];
        for (uint32_t published = load(&client->published); seen[i] != published; seen[i]++) {
            memcpy(buffer + used, &seen[i], sizeof seen[i]);
            memcpy(buffer + used + HEADER, client->slots[seen[i] % run->request->depth], run->request->size);
            used += frame;
        }
    }
    return used;
}

static bool anything(struct group_run *run, const uint32_t *seen)
{
    for (uint32_t i = 0; i < run->request->clients; i++)
        if (load(&run->shared->clients[i].published) != seen[i])
            return true;
    return false;
}

static int commit(const struct group_run *run, int fd, const uint8_t *buffer, uint64_t used, uint64_t *offset)
{
    uint64_t whole = align_up(used, RAW_BLOCK);
    if (*offset + whole > run->request->file->bytes)
        *offset = 0;
    ssize_t n = pwrite(fd, buffer, whole, (off_t)*offset);
    *offset += whole;
    if (n != (ssize_t)whole)
        return -EIO;
    bool flush = run->way == RAW_GROUP_FDATASYNC || run->way == RAW_GROUP_FDATASYNC_SPIN;
    return flush && fdatasync(fd) < 0 ? -errno : 0;
}

static int writer_main(struct group_run *run)
{
    const struct raw_group_request *request = run->request;
    struct shared *shared = run->shared;
    bool flush = run->way == RAW_GROUP_FDATASYNC || run->way == RAW_GROUP_FDATASYNC_SPIN;
    uint64_t most =
        align_up((uint64_t)request->clients * request->depth * align_up(HEADER + request->size, FRAME_ALIGN),
                 RAW_BLOCK);
    uint32_t seen[RAW_GROUP_CLIENTS] = {0}, told[RAW_GROUP_CLIENTS] = {0};
    uint64_t offset = 0;
    uint8_t *buffer = device_memory(most);
    int fd = open(request->file->path, O_RDWR | O_CLOEXEC | O_DIRECT | (flush ? 0 : O_DSYNC));
    if (buffer == NULL || fd < 0 || phases_ready(&shared->phases) < 0)
        return 1;
    memset(buffer, 0x5a, most);
    while (load(&shared->ended) < request->clients && !phases_given_up(&shared->phases)) {
        uint64_t used = gather(run, buffer, seen);
        if (used == 0) {
            __atomic_store_n(&shared->asleep, 1, __ATOMIC_RELAXED);
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (!anything(run, seen) && load(&shared->ended) < request->clients)
                sleep_on(run->doorbell);
            __atomic_store_n(&shared->asleep, 0, __ATOMIC_RELAXED);
            continue;
        }
        if (commit(run, fd, buffer, used, &offset) < 0)
            return 1;
        for (uint32_t i = 0; i < request->clients; i++)
            if (told[i] != seen[i]) {
                __atomic_store_n(&shared->clients[i].done, seen[i], __ATOMIC_RELEASE);
                signal_fd(run->signals[i]);
                told[i] = seen[i];
            }
    }
    close(fd);
    free(buffer);
    return 0;
}

static int worker(struct group_run *run, uint32_t i)
{
    child_begin();
    int status = i < run->request->clients ? client_main(run, i) : writer_main(run);
    if (status != 0)
        phases_give_up(&run->shared->phases);
    return status;
}

static void add_up(const struct group_run *run, struct raw_numbers *result)
{
    const struct phases *phases = &run->shared->phases;
    double seconds = (double)(phases->measure_to - phases->measure_from) / 1e9;
    struct histogram *sum = malloc(sizeof *sum);
    uint64_t commits = 0;
    check_bug(sum != NULL);
    histogram_clear(sum);
    for (uint32_t i = 0; i < run->request->clients; i++) {
        commits += run->shared->clients[i].commits;
        histogram_merge(sum, &run->shared->clients[i].latency);
    }
    snprintf(result->method, sizeof result->method, "%s", raw_group_way_names[run->way]);
    result->commits_per_s = seconds > 0 ? (double)commits / seconds : 0;
    result->bytes_per_s = result->commits_per_s * (double)run->request->size;
    result->latency = histogram_quantiles(sum);
    result->curve = histogram_curve(sum);
    free(sum);
}

/* Forks the clients and the writer and leads them. */
static int run_all(struct group_run *run, struct error *err)
{
    uint32_t count = run->request->clients + 1;
    pid_t pids[RAW_GROUP_CLIENTS + 1];
    uint32_t started = 0;
    for (; started < count; started++) {
        pids[started] = fork();
        if (pids[started] == 0)
            _exit(worker(run, started));
        if (pids[started] < 0)
            break;
    }
    if (started < count)
        phases_give_up(&run->shared->phases);
    int code = phases_lead(&run->shared->phases, pids, started, run->request->interrupted);
    if (code == 0 && started < count)
        code = -EAGAIN;
    return code < 0 ? error_set(err, code, "the raw group writer: %s", strerror(-code)) : 0;
}

int raw_group_run(const struct raw_group_request *request, enum raw_group_way way, struct raw_numbers *result,
                  struct error *err)
{
    memset(result, 0, sizeof *result);
    if (request->clients == 0 || request->clients > RAW_GROUP_CLIENTS || request->depth > RAW_GROUP_DEPTH ||
        request->size > RAW_GROUP_PAYLOAD)
        return error_set(err, -EINVAL, "the raw group writer takes at most %u clients, depth %u, %u bytes",
                         RAW_GROUP_CLIENTS, RAW_GROUP_DEPTH, RAW_GROUP_PAYLOAD);
    size_t bytes = sizeof(struct shared) + request->clients * sizeof(struct client);
    struct group_run run = {.request = request, .way = way, .doorbell = -1};
    memset(run.signals, 0xff, sizeof run.signals);
    int code = -ENOMEM;
    run.shared = shared_memory(bytes);
    if (run.shared == NULL || payload_pool_make(&run.pool, (uint64_t)now_ns()) < 0) {
        error_set(err, code, "out of memory for the raw group writer");
        goto out;
    }
    run.doorbell = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    for (uint32_t i = 0; i < request->clients; i++) {
        histogram_clear(&run.shared->clients[i].latency);
        run.signals[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (run.doorbell < 0 || run.signals[i] < 0) {
            code = error_set(err, -errno, "cannot make an eventfd: %s", strerror(errno));
            goto out;
        }
    }
    run.shared->phases.warm_ns = request->warm_ns;
    run.shared->phases.measure_ns = request->duration_ns;
    code = run_all(&run, err);
    if (code == 0)
        add_up(&run, result);
out:
    for (uint32_t i = 0; i < request->clients; i++)
        if (run.signals[i] >= 0)
            close(run.signals[i]);
    if (run.doorbell >= 0)
        close(run.doorbell);
    payload_pool_release(&run.pool);
    shared_memory_release(run.shared, bytes);
    return code;
}

int raw_group_rank(const struct raw_group_request *request, enum raw_group_way ranking[RAW_GROUP_WAYS],
                   struct error *err)
{
    struct raw_numbers numbers[RAW_GROUP_WAYS] = {0};
    struct raw_group_request brief = *request;
    if (brief.duration_ns > RANK_NS)
        brief.duration_ns = RANK_NS;
    for (enum raw_group_way way = 0; way < RAW_GROUP_WAYS; way++) {
        struct raw_numbers one = {0};
        int code = raw_group_run(&brief, way, &one, err);
        if (code < 0)
            return code;
        int at = (int)way;
        for (; at > 0 && one.commits_per_s > numbers[at - 1].commits_per_s; at--) {
            numbers[at] = numbers[at - 1];
            ranking[at] = ranking[at - 1];
        }
        numbers[at] = one;
        ranking[at] = way;
    }
    return 0;
}
