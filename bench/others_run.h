/* others_run.h: the same work through another store, by the program walrus-bench-others. */
#ifndef WALRUS_BENCH_OTHERS_RUN_H
#define WALRUS_BENCH_OTHERS_RUN_H

#include <signal.h>

#include "load.h"

#define OTHERS_MOST 3u
extern const char *const other_names[OTHERS_MOST];

struct other_numbers {
    bool there; /* this engine could be run */
    char version[48];
    char how[160]; /* what stands for a batch, a producer and depth there */
    double commits_per_s, bytes_per_s;
    struct quantiles latency;
    struct curve curve;
};

/* Which of other_names are in `text` ("all", or names with commas): a bit each. -EINVAL. */
int others_parse(const char *text, uint32_t *which) must_check;
/* Beside this program, in the build tree, in PATH. -ENOENT. */
int others_find(char *path, size_t size, struct error *err) must_check;
/* One run in a folder of its own below `folder`. -EOPNOTSUPP: this engine is not to be had. Levels below
 * durable are run with the engine's writes not flushed. */
int others_run(const char *program, const char *engine, const char *folder, const struct load *load,
               const volatile sig_atomic_t *interrupted, struct other_numbers *result,
               struct error *err) must_check;

#endif
