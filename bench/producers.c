/* producers.c: starts the producer processes of one round and adds up their reports. */
#include "producers.h"

#include <sys/wait.h>
#include <unistd.h>

#include "machine.h"
#include "producer.h"
#include "usage.h"

#define LEAST_WORK 1u

/* Reports and phases of one round, in shared memory; behind the reports one word for each producer: its
 * committed batches. */
struct round {
    struct phases phases;
    struct producer_report reports[];
};

static uint32_t total_processes(const struct producers_request *request)
{
    return load_processes(request->load) + (request->beside != NULL ? load_processes(request->beside) : 0);
}

static uint32_t total_producers(const struct producers_request *request)
{
    return request->load->producers + (request->beside != NULL ? request->beside->producers : 0);
}

static size_t round_bytes(const struct producers_request *request)
{
    return sizeof(struct round) + total_processes(request) * sizeof(struct producer_report) +
           total_producers(request) * sizeof(uint64_t);
}

static uint64_t *committed_words(struct round *round, const struct producers_request *request)
{
    return (uint64_t *)(void *)&round->reports[total_processes(request)];
}

static void set_limits(struct phases *phases, const struct producers_request *request)
{
    const struct load *load = request->load;
    if (load->count != 0) {
        uint64_t share = max_u64(load->count / load_processes(load), LEAST_WORK);
        phases->warm_work = min_u64(max_u64(share / 10, LEAST_WORK), 1000);
        phases->measure_work = share;
        return;
    }
    phases->warm_ns = request->warm_ns;
    phases->measure_ns = (int64_t)(load->seconds * 1e9);
    if (load->most_bytes != 0) {
        uint64_t share = load->most_bytes / load_processes(load) / max_u64(load_batch_bytes(load), 1);
        phases->warm_work = max_u64(share / 10, LEAST_WORK);
        phases->measure_work = max_u64(share - min_u64(share, phases->warm_work), LEAST_WORK);
    }
}

static void add_histograms(const struct producer_report *reports, uint32_t count, struct histogram *sum,
                           struct numbers *n)
{
    for (int which = -2; which < STAGE_COUNT; which++) {
        histogram_clear(sum);
        for (uint32_t i = 0; i < count; i++)
            histogram_merge(sum, which == -2   ? &reports[i].latency
                                 : which == -1 ? &reports[i].late
                                               : &reports[i].stages[which]);
        struct quantiles quantiles = histogram_quantiles(sum);
        if (which == -2) {
            n->latency = quantiles;
            n->curve = histogram_curve(sum);
        } else if (which == -1)
            n->late = quantiles;
        else
            n->stages[which] = quantiles;
    }
}

/* Adds up the reports of the processes that had the same load, whose producers committed so many batches. */
static void add_up(const struct phases *phases, const struct producer_report *reports,
                   const struct load *load, const uint64_t *committed, struct histogram *sum,
                   struct numbers *n)
{
    uint64_t commits = 0, first_group = UINT64_MAX, last_group = 0, batches = 0, switches = 0, calls = 0;
    int64_t client_cpu = 0;
    uint32_t processes = load_processes(load);
    for (uint32_t i = 0; i < processes; i++) {
        commits += reports[i].commits;
        n->busy += (double)reports[i].busy;
        n->again += (double)reports[i].again;
        client_cpu += reports[i].cpu_ns;
        switches += reports[i].switches;
        calls += reports[i].calls;
        if (reports[i].first_group != 0)
            first_group = min_u64(first_group, reports[i].first_group);
        last_group = max_u64(last_group, reports[i].last_group);
    }
    for (uint32_t i = 0; i < load->producers; i++)
        batches += committed[i];
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
    if (batches > 0) {
        n->client_switches = (double)switches / (double)batches;
        n->client_calls = (double)calls / (double)batches;
        n->cpu_s_per_gb = (double)client_cpu / n->written_bytes; /* ns per byte is s per 10^9 bytes */
    }
    add_histograms(reports, processes, sum, n);
}

/* What the broker used for `n->written_bytes`, and what it was not told to do by these producers counts too.
 * */
static void add_broker(const struct usage *used, uint64_t calls, const struct load *load, double seconds,
                       struct numbers *n)
{
    double batches = n->written_bytes / (double)max_u64(load_batch_bytes(load), 1);
    n->broker_cpu = seconds > 0 ? (double)used->cpu_ns / 1e9 / seconds : 0;
    if (batches <= 0)
        return;
    n->broker_cpu_s_per_gb = (double)used->cpu_ns / n->written_bytes;
    n->cpu_s_per_gb += n->broker_cpu_s_per_gb;
    n->broker_switches = (double)used->switches / batches;
    n->broker_calls = (double)calls / batches;
    n->device_factor = (double)used->device_bytes / n->written_bytes;
}

/* `rest_ns`: what all processes used but for the broker. */
static void note_others(const struct round *round, uint32_t processes, int64_t rest_ns,
                        struct numbers *numbers)
{
    for (uint32_t i = 0; i < processes; i++)
        rest_ns -= round->reports[i].cpu_ns;
    double whole_ns = (double)(round->phases.measure_to - round->phases.warm_from);
    numbers->other_cpu = rest_ns > 0 ? (double)rest_ns / whole_ns : 0;
}

static int child_main(const struct producers_request *request, struct round *round, uint32_t i)
{
    const struct load *load = request->load;
    uint64_t *committed = committed_words(round, request);
    uint32_t processes = load_processes(load);
    if (i < processes)
        return producer_main(request, load, request->run, i, processes, &round->phases, &round->reports[i],
                             committed);
    return producer_main(request, request->beside, request->beside_run, i - processes,
                         load_processes(request->beside), &round->phases, &round->reports[i],
                         committed + load->producers);
}

static int fork_all(const struct producers_request *request, struct round *round, pid_t *pids)
{
    for (uint32_t i = 0; i < total_processes(request); i++) {
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

static void clear_reports(struct round *round, uint32_t processes)
{
    for (uint32_t i = 0; i < processes; i++) {
        histogram_clear(&round->reports[i].latency);
        histogram_clear(&round->reports[i].late);
        for (int k = 0; k < STAGE_COUNT; k++)
            histogram_clear(&round->reports[i].stages[k]);
    }
}

/* Starts all and leads them; what the broker used from the moment at which all were ready, and what
 * everybody did, goes into *used, *calls and *all_ns. */
static int run_all(const struct producers_request *request, struct round *round, pid_t *pids,
                   struct usage *used, uint64_t *calls, int64_t *all_ns)
{
    uint32_t processes = total_processes(request);
    struct syscall_counter counter = {0};
    int code = fork_all(request, round, pids);
    if (code == 0)
        code = phases_await_ready(&round->phases, pids, processes, request->interrupted);
    if (code < 0)
        return code;
    bool counting = request->syscall_event != 0 && request->broker_pid > 0 &&
                    syscall_counter_begin(&counter, request->syscall_event, request->broker_pid) == 0;
    struct usage before = usage_of(request->broker_pid);
    int64_t all = machine_busy_ns();
    code = phases_lead(&round->phases, pids, processes, request->interrupted);
    struct usage after = usage_of(request->broker_pid);
    *used = usage_between(&before, &after);
    *all_ns = machine_busy_ns() - all;
    *calls = counting ? syscall_counter_end(&counter) : 0;
    return code;
}

static int first_error(const struct round *round, uint32_t processes, int code, struct error *err)
{
    for (uint32_t i = 0; i < processes; i++)
        if (round->reports[i].error.code != 0)
            return error_set(err, round->reports[i].error.code, "%s", round->reports[i].error.text);
    if (code == -EINTR || code == -ECHILD)
        return error_set(err, code,
                         code == -EINTR ? "interrupted" : "a producer process died without a word");
    return code < 0 ? error_set(err, code, "the producers: %s", strerror(-code)) : 0;
}

int producers_run(const struct producers_request *request, struct producers_result *result, struct error *err)
{
    const struct load *load = request->load;
    uint32_t producers = total_producers(request), processes = total_processes(request);
    struct usage used = {0};
    uint64_t calls = 0;
    int64_t all = 0;
    memset(result, 0, sizeof *result);
    struct round *round = shared_memory(round_bytes(request));
    struct histogram *sum = malloc(sizeof *sum);
    pid_t *pids = calloc(processes, sizeof *pids);
    result->batches = calloc(producers, sizeof *result->batches);
    int code = -ENOMEM;
    if (round == NULL || sum == NULL || pids == NULL || result->batches == NULL) {
        error_set(err, code, "out of memory for %u producers", producers);
        goto out;
    }
    set_limits(&round->phases, request);
    clear_reports(round, processes);
    code = first_error(round, processes, run_all(request, round, pids, &used, &calls, &all), err);
    if (code < 0)
        goto out;
    const uint64_t *committed = committed_words(round, request);
    memcpy(result->batches, committed, producers * sizeof *committed);
    add_up(&round->phases, round->reports, load, committed, sum, &result->numbers);
    double whole = (double)(round->phases.measure_to - round->phases.warm_from) / 1e9;
    add_broker(&used, calls, load, whole, &result->numbers);
    note_others(round, processes, all - used.cpu_ns, &result->numbers);
    if (request->beside != NULL)
        add_up(&round->phases, round->reports + load_processes(load), request->beside,
               committed + load->producers, sum, &result->beside);
out:
    if (code < 0) {
        free(result->batches);
        result->batches = NULL;
    }
    free(pids);
    free(sum);
    shared_memory_release(round, round_bytes(request));
    return code;
}
