/* raw_group.h: the yardstick for many small producers: the least a broker could be. */
#ifndef WALRUS_BENCH_RAW_GROUP_H
#define WALRUS_BENCH_RAW_GROUP_H

#include <signal.h>

#include "raw.h"

struct raw_group_request {
    const struct raw_file *file; /* prepared */
    uint32_t clients, depth;
    uint64_t size; /* bytes of a payload, up to RAW_GROUP_PAYLOAD */
    int64_t warm_ns, duration_ns;
    const volatile sig_atomic_t *interrupted;
};

/* A way of running it: how the group is made durable, how long clients look before they sleep. */
enum raw_group_way {
    RAW_GROUP_DSYNC,
    RAW_GROUP_FDATASYNC,
    RAW_GROUP_DSYNC_SPIN,
    RAW_GROUP_FDATASYNC_SPIN,
    RAW_GROUP_WAYS
};
extern const char *const raw_group_way_names[RAW_GROUP_WAYS];

#define RAW_GROUP_PAYLOAD 4032u
#define RAW_GROUP_DEPTH   64u
#define RAW_GROUP_CLIENTS 64u

int raw_group_run(const struct raw_group_request *request, enum raw_group_way way, struct raw_numbers *result,
                  struct error *err) must_check;
/* The ways, fastest first, by brief runs. */
int raw_group_rank(const struct raw_group_request *request, enum raw_group_way ranking[RAW_GROUP_WAYS],
                   struct error *err) must_check;

#endif
