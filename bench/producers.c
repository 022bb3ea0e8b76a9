/* producers.c: starts the producer processes of one round and adds up their reports. */
#include "producers.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "machine.h"
#include "producer.h"

#define LEAST_WORK 1u

uint32_t producers_topic_count(const struct load *load, uint32_t producer)
{
    if (load->topics <= load->producers)
        return 1;
    return (load->topics - producer + load->producers - 1) / load->producers;
}

uint32_t producers_topic(const struct load *load, uint32_t producer, uint64_t batch)
{
    if (load->topics <= load->producers)
        return producer % load->topics;
    return producer + (uint32_t)(batch % producers_topic_count(load, producer)) * load->producers;
}

int64_t process_cpu_ns(pid_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return 0;
    text[length] = 0;
    const char *at = strrchr(text, ')'); /* the name may hold anything */
    if (at == NULL)
        return 0;
    uint64_t ticks = number_in_line(at + 1, 11) + number_in_line(at + 1, 12); /* user, system */
    return (int64_t)ticks * (1000000000 / sysconf(_SC_CLK_TCK));
}

/* Reports and phases of one round, in shared memory. */
struct round {
    struct phases phases;
    struct producer_report reports[];
};

static uint32_t total_producers(const struct producers_request *request)
{
    return request->load->producers + (request->beside != NULL ? request->beside->producers : 0);
}

static size_t round_bytes(uint32_t producers)
{
    return sizeof(struct round) + producers * sizeof(struct producer_report);
}

static void set_limits(struct phases *phases, const struct producers_request *request)
{
    const struct load *load = request->load;
    if (load->count != 0) {
        uint64_t share = max_u64(load->count / load->producers, LEAST_WORK);
        phases->warm_work = min_u64(max_u64(share / 10, LEAST_WORK), 1000);
        phases->measure_work = share;
        return;
    }
    phases->warm_ns = request->warm_ns;
    phases->measure_ns = (int64_t)(load->seconds * 1e9);
    if (load->most_bytes != 0) {
        uint64_t share = load->most_bytes / load->producers / max_u64(load_batch_bytes(load), 1);
        phases->warm_work = max_u64(share / 10, LEAST_WORK);
        phases->measure_work = max_u64(share - min_u64(share, phases->warm_work), LEAST_WORK);
    }
}

/* Adds up the reports of the producers that had the same load. */
static void add_up(const struct phases *phases, const struct producer_report *reports,
                   const struct load *load, struct histogram *sum, struct numbers *n)
{
    uint64_t commits = 0, first_group = UINT64_MAX, last_group = 0, batches = 0;
    int64_t client_cpu = 0;
    for (uint32_t i = 0; i < load->producers; i++) {
        commits += reports[i].commits;
        batches += reports[i].batches;
        n->busy += (double)reports[i].busy;
        n->again += (double)reports[i].again;
        client_cpu += reports[i].cpu_ns;
        if (reports[i].first_group != 0)
            first_group = min_u64(first_group, reports[i].first_group);
        last_group = max_u64(last_group, reports[i].last_group);
    }
    n->seconds = (double)(phases->measure_to - phases->measure_from) / 1e9;
    if (n->seconds > 0) {
        n->commits_per_s = (double)commits / n->seconds;
        n->client_cpu = (double)client_cpu / (double)(phases->measure_to - phases->warm_from);
        if (last_group != 0 && first_group <= last_group) {
            uint64_t groups = last_group - first_group + 1;
            n->groups_per_s = (double)groups / n->seconds;
            n->group_bytes = (double)commits * (double)load_batch_bytes(load) / (double)groups;
        }
    }
    n->entries_per_s = n->commits_per_s * load->batch;
    n->bytes_per_s = n->commits_per_s * (double)load_batch_bytes(load);
    n->written_bytes = (double)batches * (double)load_batch_bytes(load);
    for (int stage = -1; stage < STAGE_COUNT; stage++) {
        histogram_clear(sum);
        for (uint32_t i = 0; i < load->producers; i++)
            histogram_merge(sum, stage < 0 ? &reports[i].latency : &reports[i].stages[stage]);
        *(stage < 0 ? &n->latency : &n->stages[stage]) = histogram_quantiles(sum);
    }
}

/* `rest_ns`: what all processes used but for the broker. */
static void note_others(const struct round *round, uint32_t producers, int64_t rest_ns,
                        struct numbers *numbers)
{
    for (uint32_t i = 0; i < producers; i++)
        rest_ns -= round->reports[i].cpu_ns;
    double whole_ns = (double)(round->phases.measure_to - round->phases.warm_from);
    numbers->other_cpu = rest_ns > 0 ? (double)rest_ns / whole_ns : 0;
}

static int child_main(const struct producers_request *request, struct round *round, uint32_t i)
{
    const struct load *load = request->load;
    if (i < load->producers)
        return producer_main(request, load, request->run, i, &round->phases, &round->reports[i]);
    return producer_main(request, request->beside, request->beside_run, i - load->producers, &round->phases,
                         &round->reports[i]);
}

static int fork_all(const struct producers_request *request, struct round *round, pid_t *pids)
{
    for (uint32_t i = 0; i < total_producers(request); i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            _exit(child_main(request, round, i));
        if (pids[i] < 0) {
            int code = -errno;
            phases_give_up(&round->phases);
            for (uint32_t k = 0; k < i; k++)
                waitpid(pids[k], NULL, 0);
            return code;
        }
    }
    return 0;
}

int producers_run(const struct producers_request *request, struct producers_result *result, struct error *err)
{
    const struct load *load = request->load;
    uint32_t producers = total_producers(request);
    memset(result, 0, sizeof *result);
    struct round *round = shared_memory(round_bytes(producers));
    struct histogram *sum = malloc(sizeof *sum);
    pid_t *pids = calloc(producers, sizeof *pids);
    result->batches = calloc(producers, sizeof *result->batches);
    int code = -ENOMEM;
    if (round == NULL || sum == NULL || pids == NULL || result->batches == NULL) {
        error_set(err, code, "out of memory for %u producers", producers);
        goto out;
    }
    set_limits(&round->phases, request);
    for (uint32_t i = 0; i < producers; i++) {
        histogram_clear(&round->reports[i].latency);
        for (int k = 0; k < STAGE_COUNT; k++)
            histogram_clear(&round->reports[i].stages[k]);
    }
    int64_t cpu = request->broker_pid != 0 ? process_cpu_ns(request->broker_pid) : 0;
    code = fork_all(request, round, pids);
    if (code < 0) {
        error_set(err, code, "cannot start producers: %s", strerror(-code));
        goto out;
    }
    int64_t all = machine_busy_ns();
    code = phases_lead(&round->phases, pids, producers, request->interrupted);
    all = machine_busy_ns() - all;
    cpu = request->broker_pid != 0 ? process_cpu_ns(request->broker_pid) - cpu : 0;
    for (uint32_t i = 0; i < producers; i++)
        if (round->reports[i].error.code != 0) {
            code = error_set(err, round->reports[i].error.code, "%s", round->reports[i].error.text);
            goto out;
        }
    if (code < 0) {
        error_set(err, code, code == -EINTR ? "interrupted" : "a producer process died without a word");
        goto out;
    }
    for (uint32_t i = 0; i < producers; i++)
        result->batches[i] = round->reports[i].batches;
    add_up(&round->phases, round->reports, load, sum, &result->numbers);
    result->numbers.broker_cpu = (double)cpu / (double)(round->phases.measure_to - round->phases.warm_from);
    note_others(round, producers, all - cpu, &result->numbers);
    if (request->beside != NULL)
        add_up(&round->phases, round->reports + load->producers, request->beside, sum, &result->beside);
out:
    if (code < 0) {
        free(result->batches);
        result->batches = NULL;
    }
    free(pids);
    free(sum);
    shared_memory_release(round, round_bytes(producers));
    return code;
}
