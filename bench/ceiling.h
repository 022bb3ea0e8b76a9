/* ceiling.h: how fast two processes can fill, copy and checksum batches when nothing else is done: the
 * yardstick of P5. */
#ifndef WALRUS_BENCH_CEILING_H
#define WALRUS_BENCH_CEILING_H

#include <signal.h>

#include "raw.h"

/* One process fills `batch` entries of `size` bytes and their lengths into slots of shared memory, exactly
 * as a producer does; this one checks the lengths, copies and takes a CRC-32C. Batches of up to 4 MiB.
 * With a `file` (prepared space) the copies are also written to it, in large pieces, several in flight,
 * never flushed: what the device lets through at best. */
int ceiling_run(const struct load *load, const struct raw_file *file, int64_t duration_ns,
                const volatile sig_atomic_t *interrupted, struct raw_numbers *result,
                struct error *err) must_check;

#endif
