/* outside.c: jobs that are programs of their own. */
#include <sys/wait.h>
#include <unistd.h>

#include "soak.h"

/* The hostile client brings its own brokers; all it needs is time and a seed. */
int job_hostile(struct run *run, struct error *err)
{
    const char *program = run->soak->hostile;
    char seconds[32], seed[32];
    if (program == NULL || run->soak->walrus == NULL) {
        (void)error_set(err, -ENOENT, "neither or only one of --hostile and --walrus was given");
        return SOAK_SKIPPED;
    }
    int64_t share = (run->until_ns - run->started_ns) / NS_PER_S;
    uint64_t wanted = max_u64(run->required, share > 0 ? (uint64_t)share : 0);
    snprintf(seconds, sizeof seconds, "%llu", (unsigned long long)wanted);
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)run->soak->seed);
    pid_t pid = child_fork();
    if (pid == 0) {
        execl(program, program, "--seed", seed, "--seconds", seconds, "--broker", run->soak->walrusd,
              "--walrus", run->soak->walrus, (char *)NULL);
        _exit(127);
    }
    if (pid < 0)
        return error_set(err, -errno, "fork: %s", strerror(errno));
    int64_t limit = now_ns() + (int64_t)wanted * NS_PER_S + PATIENCE_NS;
    int status = 0, rc = 0;
    while (rc == 0 && waitpid(pid, &status, WNOHANG) == 0) {
        rc = now_ns() > limit ? error_set(err, -ETIMEDOUT, "%s does not end", program) : run_interrupted(err);
        run_progress(run, "%s works", program);
        pause_ns(10 * NS_PER_MS);
    }
    if (rc < 0) {
        child_end(pid);
        return rc;
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return error_set(err, -EBADMSG, "%s --seed %s ended with status %#x: see its messages", program, seed,
                         (unsigned)status);
    snprintf(run->totals, sizeof run->totals, "%s s of %s", seconds, program);
    return 0;
}
