/* scenario.h: the named measurements. */
#ifndef WALRUS_BENCH_SCENARIO_H
#define WALRUS_BENCH_SCENARIO_H

#include "row.h"

/* Runs what the options name and fills bench->rows. Rows measured before an error stay. */
int scenarios_run(struct bench *bench, struct error *err) must_check;
/* -EINVAL: a name is not known; err says which ones are. */
int scenarios_check(const char *names, struct error *err) must_check;

/* The series batch, size, producers, topics, connections and log: rows that differ in that alone. */
bool scenario_is_series(const char *name, size_t length);
int scenario_series(struct bench *bench, const char *name, size_t length, struct error *err) must_check;

int scenario_idle(struct bench *bench, struct error *err) must_check;             /* P7 */
int scenario_many(struct bench *bench, struct error *err) must_check;             /* P9 */
int scenario_start(struct bench *bench, struct error *err) must_check;            /* P8 */
int scenario_large_batch(struct bench *bench, struct error *err) must_check;      /* P10 */
int scenario_beside_stream(struct bench *bench, struct error *err) must_check;    /* P11 */
int scenario_batch_or_appends(struct bench *bench, struct error *err) must_check; /* S1 */
int scenario_batch_latency(struct bench *bench, struct error *err) must_check;    /* S2 */
int scenario_append_success(struct bench *bench, struct error *err) must_check;   /* S3 */

#endif
