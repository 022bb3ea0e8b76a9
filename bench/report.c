#include "report.h"

#include <jansson.h>

#include "../libclient/include/walrus.h"

bool goal_met(const struct goal *goal)
{
    return goal->at_least ? goal->reached >= goal->wanted : goal->reached <= goal->wanted;
}

bool report_read_back_ok(const struct bench *bench)
{
    for (uint32_t i = 0; i < bench->row_count; i++)
        if (!bench->rows[i].read_back.done || bench->rows[i].read_back.trouble[0] != 0)
            return false;
    return true;
}

static const char *wait_name(enum wait_mode wait)
{
    return wait == WAIT_SPIN ? "spin" : wait == WAIT_HYBRID ? "hybrid" : "block";
}

static const char *space_name(const struct row *row)
{
    if (row->walrus.prepared)
        return row->walrus.prepared_known ? "prepared" : "prepared (by size)";
    return row->sustained ? "sustained" : "beyond the prepared space";
}

/* Somebody else was at work: neither a goal met nor one missed proves anything. */
static bool disturbed(const struct row *row)
{
    return row->other_cores_before > DISTURBED_CORES;
}

static void command_line(const struct bench *bench, char *out, size_t size)
{
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < bench->options.argc && used < size; i++) {
        int n = snprintf(out + used, size - used, "%s%s", i == 0 ? "" : " ", bench->options.argv[i]);
        used += n > 0 ? (size_t)n : 0;
    }
}

/* ------------------------------------------------------------------------------------------------ JSON */

static json_t *real(double value)
{
    return json_real(value == value && value < 1e300 ? value : 0);
}

static json_t *json_quantiles(const struct quantiles *q)
{
    return json_pack("{so so so so so sI}", "p50", real(q->p50), "p90", real(q->p90), "p99", real(q->p99),
                     "p999", real(q->p999), "max", real(q->max), "samples", (json_int_t)q->samples);
}

static json_t *json_load(const struct load *load)
{
    return json_pack("{sI sI sI sf sI sI sI sI sf sI sI sb ss ss}", "producers", (json_int_t)load->producers,
                     "processes", (json_int_t)load_processes(load), "in_flight", (json_int_t)load->in_flight,
                     "rate", load->rate, "topics", (json_int_t)load->topics, "batch", (json_int_t)load->batch,
                     "size", (json_int_t)load->size, "depth", (json_int_t)load->depth, "seconds",
                     load->seconds, "count", (json_int_t)load->count, "most_bytes",
                     (json_int_t)(load->most_bytes == MOST_BYTES_PREPARED ? 0 : load->most_bytes), "queue",
                     (int)load->queue, "durability", load->durability, "wait", wait_name(load->wait));
}

static json_t *json_curve(const struct curve *curve)
{
    json_t *values = json_array();
    for (size_t i = 0; i < CURVE_POINTS; i++)
        json_array_append_new(values, real(curve->us[i]));
    return values;
}

/* A figure that is 0 when it is not known. */
static json_t *known(double value)
{
    return value > 0 ? json_real(value) : json_null();
}

static json_t *json_stages(const struct numbers *numbers)
{
    json_t *stages = json_object();
    for (size_t i = 0; i < STAGE_COUNT; i++)
        json_object_set_new(stages, stage_names[i], json_quantiles(&numbers->stages[i]));
    return stages;
}

/* The fields of a round, or of the medians, into `object`. */
static void put_numbers(json_t *object, const struct numbers *n)
{
    json_object_set_new(object, "commits_per_s", real(n->commits_per_s));
    json_object_set_new(object, "entries_per_s", real(n->entries_per_s));
    json_object_set_new(object, "bytes_per_s", real(n->bytes_per_s));
    json_object_set_new(object, "latency_us", json_quantiles(&n->latency));
    json_object_set_new(object, "stages_us", json_stages(n));
    json_object_set_new(object, "busy", real(n->busy));
    json_object_set_new(object, "again", real(n->again));
    json_object_set_new(object, "groups_per_s", real(n->groups_per_s));
    json_object_set_new(object, "group_bytes", real(n->group_bytes));
    json_object_set_new(object, "broker_cores", real(n->broker_cpu));
    json_object_set_new(object, "client_cores", real(n->client_cpu));
    json_object_set_new(object, "other_cores", real(n->other_cpu));
    json_object_set_new(object, "seconds", real(n->seconds));
    json_object_set_new(object, "written_bytes", real(n->written_bytes));
    json_object_set_new(object, "log_bytes", real(n->log_bytes));
    json_object_set_new(object, "cpu_seconds_per_gb", known(n->cpu_s_per_gb));
    json_object_set_new(object, "broker_cpu_seconds_per_gb", known(n->broker_cpu_s_per_gb));
    json_object_set_new(object, "broker_switches_per_batch", known(n->broker_switches));
    json_object_set_new(object, "client_switches_per_batch", real(n->client_switches));
    json_object_set_new(object, "entries_per_flush", known(n->entries_per_flush));
    json_object_set_new(object, "log_bytes_per_payload_byte", known(n->log_factor));
    json_object_set_new(object, "device_bytes_per_payload_byte", known(n->device_factor));
    json_object_set_new(object, "late_us", n->late.samples > 0 ? json_quantiles(&n->late) : json_null());
    json_object_set_new(object, "curve_us", json_curve(&n->curve));
}

static json_t *json_raw(const struct raw_numbers *raw)
{
    return json_pack("{ss so so so so so so}", "method", raw->method, "curve_us", json_curve(&raw->curve),
                     "p50_us", real(raw->latency.p50), "p99_us", real(raw->latency.p99), "bytes_per_s",
                     real(raw->bytes_per_s), "commits_per_s", real(raw->commits_per_s), "latency_us",
                     json_quantiles(&raw->latency));
}

/* Of one round (`ratio_p50` negative) or the medians. */
static json_t *json_other(const struct other_numbers *other, double ratio_p50, double ratio_bytes)
{
    json_t *object =
        json_pack("{ss ss so so so so}", "version", other->version, "how", other->how, "commits_per_s",
                  real(other->commits_per_s), "bytes_per_s", real(other->bytes_per_s), "latency_us",
                  json_quantiles(&other->latency), "curve_us", json_curve(&other->curve));
    if (ratio_p50 >= 0) {
        json_object_set_new(object, "ratio_p50", real(ratio_p50));
        json_object_set_new(object, "ratio_bytes", real(ratio_bytes));
    }
    return object;
}

static json_t *json_others(const struct row *row)
{
    json_t *object = json_object();
    for (uint32_t i = 0; i < OTHERS_MOST; i++)
        if (row->other[i].there)
            json_object_set_new(
                object, other_names[i],
                json_other(&row->other[i], row->other_ratio_p50[i], row->other_ratio_bytes[i]));
    return object;
}

static json_t *json_round_others(const struct row *row, uint32_t round)
{
    json_t *object = json_object();
    for (uint32_t i = 0; i < OTHERS_MOST; i++)
        if (row->rounds_others[i][round].there)
            json_object_set_new(object, other_names[i], json_other(&row->rounds_others[i][round], -1, -1));
    return object;
}

static json_t *json_goals(const struct bench *bench, const struct row *row)
{
    json_t *goals = json_array();
    for (uint32_t i = 0; i < row->goal_count; i++) {
        const struct goal *goal = &row->goals[i];
        json_array_append_new(goals,
                              json_pack("{ss so so so}", "goal", goal->text, "wanted", real(goal->wanted),
                                        "reached", real(goal->reached), "met",
                                        bench->machine.is_disk ? json_boolean(goal_met(goal)) : json_null()));
    }
    return goals;
}

static json_t *json_row(const struct bench *bench, const struct row *row)
{
    json_t *object = json_object(), *rounds = json_array(), *extras = json_object();
    const struct read_back *back = &row->read_back;
    json_object_set_new(object, "scenario", json_string(row->id));
    json_object_set_new(object, "label", json_string(row->label));
    json_object_set_new(object, "load", json_load(&row->load));
    put_numbers(object, &row->walrus);
    json_object_set_new(object, "raw", row->has_raw ? json_raw(&row->raw) : json_null());
    json_object_set_new(object, "ratio_p50", row->has_raw ? real(row->ratio_p50) : json_null());
    json_object_set_new(object, "ratio_p99", row->has_raw ? real(row->ratio_p99) : json_null());
    json_object_set_new(object, "ratio_bytes", row->has_raw ? real(row->ratio_bytes) : json_null());
    json_object_set_new(object, "others", json_others(row));
    if (row->series[0] != 0) {
        json_object_set_new(object, "series", json_string(row->series));
        json_object_set_new(object, "x", real(row->x));
    }
    json_object_set_new(object, "sustained", json_boolean(row->sustained));
    json_object_set_new(object, "broker_calls_per_batch",
                        row->calls_counted ? real(row->walrus.broker_calls) : json_null());
    json_object_set_new(object, "client_calls_per_batch",
                        row->calls_counted ? real(row->walrus.client_calls) : json_null());
    json_object_set_new(object, "space", json_string(space_name(row)));
    json_object_set_new(object, "other_cores_before", real(row->other_cores_before));
    json_object_set_new(object, "disturbed", json_boolean(disturbed(row)));
    json_object_set_new(object, "goals", json_goals(bench, row));
    for (uint32_t i = 0; i < row->extra_count; i++)
        json_object_set_new(extras, row->extras[i].name, real(row->extras[i].value));
    json_object_set_new(object, "more", extras);
    json_object_set_new(object, "read_back",
                        json_pack("{sI sb sb sI sI sI sf ss}", "every_nth_topic", (json_int_t)back->sample,
                                  "equal", (int)(back->done && back->trouble[0] == 0), "after_restart",
                                  (int)back->after_restart, "topics", (json_int_t)back->topics, "entries",
                                  (json_int_t)back->entries, "bytes", (json_int_t)back->bytes, "seconds",
                                  back->seconds, "trouble", back->trouble));
    for (uint32_t i = 0; i < row->rounds; i++) {
        json_t *round = json_object();
        put_numbers(round, &row->rounds_walrus[i]);
        json_object_set_new(round, "prepared", json_boolean(row->rounds_walrus[i].prepared));
        json_object_set_new(round, "others", json_round_others(row, i));
        json_object_set_new(round, "raw", row->has_raw ? json_raw(&row->rounds_raw[i]) : json_null());
        json_array_append_new(rounds, round);
    }
    json_object_set_new(object, "rounds", rounds);
    return object;
}

static json_t *json_shares(void)
{
    json_t *values = json_array();
    for (size_t i = 0; i < CURVE_POINTS; i++)
        json_array_append_new(values, json_real(curve_shares[i]));
    return values;
}

static json_t *json_machine(const struct machine *m)
{
    return json_pack("{ss ss sI sI ss ss ss ss ss ss sI sI sb ss}", "kernel", m->kernel, "processor",
                     m->processor, "cores", (json_int_t)m->cores, "memory_bytes", (json_int_t)m->memory_bytes,
                     "folder", m->folder, "file_system", m->file_system, "device", m->device,
                     "device_write_cache", m->write_cache, "device_fua", m->fua, "scheduler", m->scheduler,
                     "physical_block", (json_int_t)m->physical_block, "logical_block",
                     (json_int_t)m->logical_block, "is_disk", (int)m->is_disk, "not_a_disk", m->not_a_disk);
}

int report_json(const struct bench *bench)
{
    char command[1024];
    command_line(bench, command, sizeof command);
    json_t *rows = json_array(), *root = NULL;
    for (uint32_t i = 0; i < bench->row_count; i++)
        json_array_append_new(rows, json_row(bench, &bench->rows[i]));
    /* The first row's fields stand at the top as well: a run with one row reads like one object. */
    root = bench->row_count > 0 ? json_row(bench, &bench->rows[0]) : json_object();
    json_object_set_new(root, "rows", rows);
    json_object_set_new(root, "command", json_string(command));
    json_object_set_new(root, "machine", json_machine(&bench->machine));
    json_object_set_new(root, "curve_shares", json_shares());
    json_object_set_new(root, "versions",
                        json_pack("{ss ss ss ss}", "walrus_bench", WALRUS_VERSION_STRING, "libwalrus_client",
                                  walrus_version(), "walrusd", bench->broker_version, "io_backend",
                                  bench->backend_text));
    int code = json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9) | JSON_PRESERVE_ORDER) < 0
                   ? -EIO
                   : 0;
    json_decref(root);
    return putchar('\n') < 0 || fflush(stdout) != 0 ? -EIO : code;
}

/* ------------------------------------------------------------------------------------------------ table */

/* 12,345,678 */
static const char *grouped(double value, char out[32])
{
    char digits[32];
    int n = snprintf(digits, sizeof digits, "%.0f", value), at = 0;
    for (int i = 0; i < n && at < 30; i++) {
        if (i > 0 && (n - i) % 3 == 0 && digits[i - 1] != '-')
            out[at++] = ',';
        out[at++] = digits[i];
    }
    out[at] = 0;
    return out;
}

static void table_line(const char *who, double commits, double entries, double bytes,
                       const struct quantiles *q)
{
    char a[32], b[32];
    printf("  %-8s %12s %14s %9.1f", who, grouped(commits, a), grouped(entries, b), bytes / 1e6);
    if (q->samples > 0)
        printf(" %9.2f %9.2f %9.2f %9.2f %10.2f\n", q->p50, q->p90, q->p99, q->p999, q->max);
    else
        printf(" %9s %9s %9s %9s %10s\n", "-", "-", "-", "-", "-");
}

static void table_stages(const struct row *row)
{
    printf("  time     ");
    for (size_t i = 0; i < STAGE_COUNT; i++)
        printf(" %s %.2f", stage_names[i], row->walrus.stages[i].p50);
    printf(" us (p50 of each stage);");
    for (size_t i = 0; i < STAGE_COUNT; i++)
        printf(" %s %.1f", stage_names[i], row->walrus.stages[i].p99);
    printf(" (p99)\n");
}

static void table_others(const struct row *row)
{
    for (uint32_t i = 0; i < OTHERS_MOST; i++) {
        const struct other_numbers *other = &row->other[i];
        if (!other->there)
            continue;
        table_line(other_names[i], other->commits_per_s, other->commits_per_s * row->load.batch,
                   other->bytes_per_s, &other->latency);
        printf("           %s (%s); walrus/%s: p50 %.3f, bytes/s %.2f\n", other->version, other->how,
               other_names[i], row->other_ratio_p50[i], row->other_ratio_bytes[i]);
    }
}

/* "-" where it is not known. */
static void table_cost(const char *name, double value, const char *unit)
{
    if (value > 0)
        printf(" %s %.3g%s;", name, value, unit);
    else
        printf(" %s -;", name);
}

static void table_costs(const struct row *row)
{
    const struct numbers *n = &row->walrus;
    printf("  costs   ");
    table_cost("CPU", n->cpu_s_per_gb, " s/GB");
    table_cost("of it the broker", n->broker_cpu_s_per_gb, " s/GB");
    table_cost("switches/batch: broker", n->broker_switches, "");
    table_cost("clients", n->client_switches, "");
    if (row->calls_counted)
        printf(" system calls/batch: broker %.3g, clients %.3g;", n->broker_calls, n->client_calls);
    else
        printf(" system calls: not counted;");
    table_cost("entries/flush", n->entries_per_flush, "");
    table_cost("log", n->log_factor, " x payload");
    table_cost("to the device", n->device_factor, " x payload");
    printf("\n");
    if (n->late.samples > 0)
        printf("  sent     p50 %.1f us, p99 %.1f us later than due (part of the latency)\n", n->late.p50,
               n->late.p99);
}

static void table_loop(const struct row *row)
{
    char text[32];
    const struct numbers *n = &row->walrus;
    table_stages(row);
    table_costs(row);
    printf("  busy %s", grouped(n->busy, text));
    printf(", again %s", grouped(n->again, text));
    printf("; groups/s %s, %.0f payload bytes each; cores: broker %.2f, clients %.2f, others %.2f\n",
           grouped(n->groups_per_s, text), n->group_bytes, n->broker_cpu, n->client_cpu, n->other_cpu);
}

static void table_row(const struct bench *bench, const struct row *row)
{
    char text[32];
    const struct numbers *n = &row->walrus;
    printf("\n%s  %s%s\n", row->id, row->label, row->sustained ? ", sustained" : "");
    printf("  %u producers in %u processes, %u topics, batch %u x %llu B, depth %u, %s, wait %s; %u rounds "
           "of %.2f s; "
           "space: %s\n",
           row->load.producers, load_processes(&row->load), row->load.topics, row->load.batch,
           (unsigned long long)row->load.size, row->load.depth, row->load.durability,
           wait_name(row->load.wait), row->rounds, n->seconds, space_name(row));
    printf("  %-8s %12s %14s %9s %9s %9s %9s %9s %10s\n", "", "commits/s", "entries/s", "MB/s", "p50 us",
           "p90", "p99", "p99.9", "max");
    table_line("walrus", n->commits_per_s, n->entries_per_s, n->bytes_per_s, &n->latency);
    if (row->has_raw) {
        table_line("raw", row->raw.commits_per_s, row->raw.commits_per_s * row->load.batch,
                   row->raw.bytes_per_s, &row->raw.latency);
        printf("  raw is  %s; walrus/raw: p50 %.3f, p99 %.3f, bytes/s %.3f\n", row->raw.method,
               row->ratio_p50, row->ratio_p99, row->ratio_bytes);
    }
    table_others(row);
    if (n->latency.samples > 0)
        table_loop(row);
    for (uint32_t i = 0; i < row->extra_count; i++)
        printf("  %-32s %.3f\n", row->extras[i].name, row->extras[i].value);
    for (uint32_t i = 0; i < row->goal_count; i++) {
        const struct goal *goal = &row->goals[i];
        printf("  goal     %-44s reached %.*f  %s\n", goal->text, goal->wanted >= 1000 ? 0 : 3, goal->reached,
               !bench->machine.is_disk ? "(not on a disk)"
               : goal_met(goal)        ? "met"
                                       : "MISSED");
    }
    if (disturbed(row))
        printf("  DISTURBED: others used up to %.2f cores before a run; measure again on a quiet machine\n",
               row->other_cores_before);
    const struct read_back *back = &row->read_back;
    if (!back->done)
        printf("  read back: not done\n");
    else if (back->trouble[0] != 0)
        printf("  READ BACK IS NOT WHAT WAS WRITTEN: %s\n", back->trouble);
    else
        printf("  read back %s: %s entries of %u topics%s, all equal (%.2f s)\n",
               back->after_restart ? "after a restart" : "(the broker was not restarted)",
               grouped((double)back->entries, text), back->topics, back->sample > 1 ? " (a sample)" : "",
               back->seconds);
}

int report_table(const struct bench *bench)
{
    char command[1024];
    const struct machine *m = &bench->machine;
    command_line(bench, command, sizeof command);
    printf("%s\n", command);
    printf("walrus-bench %s, walrusd %s (%s); %s; %s, %ld cores\n", WALRUS_VERSION_STRING,
           bench->broker_version[0] != 0 ? bench->broker_version : "version unknown",
           bench->backend_text[0] != 0 ? bench->backend_text : "back end unknown", m->kernel, m->processor,
           m->cores);
    printf("%s: %s on %s, write cache: %s, FUA: %s, blocks %u/%u\n", m->folder, m->file_system,
           m->device[0] != 0 ? m->device : "no device", m->write_cache[0] != 0 ? m->write_cache : "unknown",
           m->fua[0] != 0 ? m->fua : "unknown", m->logical_block, m->physical_block);
    if (!m->is_disk)
        printf("NOT A DISK: %s. These figures say nothing about durable writes.\n", m->not_a_disk);
    for (uint32_t i = 0; i < bench->row_count; i++)
        table_row(bench, &bench->rows[i]);
    return fflush(stdout) != 0 ? -EIO : 0;
}
