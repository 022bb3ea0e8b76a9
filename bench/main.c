/* main.c: walrus-bench. Exit status: 0 measured and everything read back, 1 failed, 2 usage. */
#include <signal.h>
#include <unistd.h>

#include "report.h"
#include "scenario.h"
#include "usage.h"

/* A signal handler can reach nothing else. */
static volatile sig_atomic_t *interrupted_flag;

static void interrupted(int number)
{
    (void)number;
    *interrupted_flag = 1;
}

static void catch_signals(struct bench *bench)
{
    struct sigaction action = {.sa_handler = interrupted};
    interrupted_flag = &bench->interrupted;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGPIPE, &ignore, NULL);
}

static int report(const struct bench *bench)
{
    int code = bench->options.json ? report_json(bench) : report_table(bench);
    if (code < 0)
        fprintf(stderr, "walrus-bench: cannot write the report: %s\n", strerror(-code));
    return code;
}

static int find_others(struct bench *bench, struct error *err)
{
    const char *said = bench->options.others_program;
    if (said == NULL)
        return others_find(bench->others_program, sizeof bench->others_program, err);
    snprintf(bench->others_program, sizeof bench->others_program, "%s", said);
    return access(said, X_OK) == 0 ? 0 : error_set(err, -errno, "%s: %s", said, strerror(errno));
}

int main(int argc, char **argv)
{
    static struct bench bench;
    struct error err = {0};
    options_parse(&bench.options, argc, argv);
    if (scenarios_check(bench.options.scenarios, &err) < 0) {
        fprintf(stderr, "walrus-bench: %s\n", err.text);
        return 2;
    }
    catch_signals(&bench);
    bench.rows = calloc(ROWS_MOST, sizeof *bench.rows);
    if (bench.rows == NULL || payload_pool_make(&bench.pool, (uint64_t)now_ns()) < 0) {
        fprintf(stderr, "walrus-bench: out of memory\n");
        return 1;
    }
    machine_look(&bench.machine, bench.options.dir);
    if (!bench.machine.is_disk)
        fprintf(stderr, "walrus-bench: %s; use --dir with a folder on a disk\n", bench.machine.not_a_disk);
    if (syscall_event(&bench.syscall_event) < 0)
        bench.syscall_event = 0;
    if (bench.options.others != 0 && find_others(&bench, &err) < 0) {
        fprintf(stderr, "walrus-bench: %s\n", err.text);
        return 2;
    }
    int status = 0;
    int code = scenarios_run(&bench, &err);
    if (bench.row_count > 0 && report(&bench) < 0)
        status = 1;
    if (code < 0) {
        fprintf(stderr, "walrus-bench: %s\n", err.text);
        status = 1;
    } else if (!report_read_back_ok(&bench)) {
        fprintf(stderr, "walrus-bench: what was read back is not what was written\n");
        status = 1;
    }
    payload_pool_release(&bench.pool);
    free(bench.rows);
    return status;
}
