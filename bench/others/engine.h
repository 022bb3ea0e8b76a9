/* engine.h: what walrus-bench-others asks of another store. */
#ifndef WALRUS_BENCH_OTHERS_ENGINE_H
#define WALRUS_BENCH_OTHERS_ENGINE_H

#include "../../shared/base.h"

/* What the workers write into: the folder that this process is in, the engine's own, empty at first. */
struct engine_options {
    bool sync; /* an answer means: on the disk */
};

/* One batch: `entries` entries of `size` bytes each, behind one another, for topic `topic` from its sequence
 * `first` (from 0). */
struct engine_batch {
    const uint8_t *data;
    uint64_t size;
    uint32_t entries, topic;
    uint64_t first;
};

struct engine {
    const char *name;
    const char *how; /* what stands for a batch, a producer, depth; the settings that matter */
    /* `send` does not wait: a worker keeps `depth` batches in flight; else there are producers x depth
     * workers, each with one. */
    bool pipelines;
    /* Opens or starts the store; *store is the engine's. */
    int (*open)(const struct engine_options *options, void **store, struct error *err);
    /* One for each worker (a thread). */
    int (*worker_open)(void *store, void **worker, struct error *err);
    /* Atomic and, with sync, durable when it (or else the receive that belongs to it) is back. */
    int (*send)(void *worker, const struct engine_batch *batch, struct error *err);
    int (*receive)(void *worker, struct error *err); /* engines that pipeline: the oldest batch sent */
    void (*worker_close)(void *worker);
    /* Entries of a topic that are there. For the stores that are libraries, after closing and opening again.
     * */
    int (*count)(void *store, uint32_t topic, uint64_t *entries, struct error *err);
    int (*reopen)(void **store, const struct engine_options *options,
                  struct error *err); /* NULL: not possible */
    void (*close)(void *store);
    const char *(*version)(void *store);
};

extern const struct engine engine_rocksdb, engine_sqlite, engine_redis;

#endif
