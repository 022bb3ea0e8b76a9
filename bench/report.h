/* report.h: a table for people, JSON for machines. */
#ifndef WALRUS_BENCH_REPORT_H
#define WALRUS_BENCH_REPORT_H

#include "row.h"

/* Prints everything measured to stdout. -EIO if it could not be written. */
int report_table(const struct bench *bench) must_check;
int report_json(const struct bench *bench) must_check;
bool goal_met(const struct goal *goal);
/* Everything that was read back is what was written. */
bool report_read_back_ok(const struct bench *bench);

#endif
