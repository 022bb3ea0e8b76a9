/* load.h: what a run does, and what came out of it. */
#ifndef WALRUS_BENCH_LOAD_H
#define WALRUS_BENCH_LOAD_H

#include "histogram.h"

enum wait_mode { WAIT_SPIN, WAIT_HYBRID, WAIT_BLOCK };

/* In a plan: as much as fits the prepared space when the round begins. */
#define MOST_BYTES_PREPARED UINT64_MAX

/* The work of one run. Each producer is a connection, in a process of its own unless `processes` says
 * otherwise, and keeps `depth` batches in flight. */
struct load {
    uint32_t producers;
    /* Producer i writes to topics i, i + producers, ... below `topics`; to i % topics if there are fewer. */
    uint32_t topics;
    uint32_t batch; /* entries in a batch; 1: sent as an append */
    uint32_t depth;
    uint32_t processes; /* that the producers are spread over; 0: each has its own */
    /* Most batches in flight of one process: its producers send in turn; 0: `depth` of each. */
    uint32_t in_flight;
    /* Batches per second of all producers together, sent at fixed times: an open loop, whose latency counts
     * from the time at which a batch should have been sent; 0: as fast as they are answered. */
    double rate;
    uint64_t size;  /* bytes of an entry */
    double seconds; /* measured time; 0: by count */
    uint64_t count; /* measured batches of all producers together; 0: by time */
    /* Payload of all producers together, warm-up included, at which a run by time ends early; 0: none. */
    uint64_t most_bytes;
    uint8_t level; /* enum walrus_level that `durability` stands for */
    bool queue;
    enum wait_mode wait;
    char durability[32]; /* as the broker's --durability takes it */
};

static inline uint32_t load_processes(const struct load *load)
{
    return load->processes != 0 && load->processes < load->producers ? load->processes : load->producers;
}

/* How many topics a producer writes to. */
static inline uint32_t producers_topic_count(const struct load *load, uint32_t producer)
{
    if (load->topics <= load->producers)
        return 1;
    return (load->topics - producer + load->producers - 1) / load->producers;
}

/* The topic (number) that batch `batch` of a producer goes to. */
static inline uint32_t producers_topic(const struct load *load, uint32_t producer, uint64_t batch)
{
    if (load->topics <= load->producers)
        return producer % load->topics;
    return producer + (uint32_t)(batch % producers_topic_count(load, producer)) * load->producers;
}

static inline uint64_t load_batch_bytes(const struct load *load)
{
    return load->size * load->batch;
}

/* Stages of a batch's way, from the receipts. */
enum stage {
    STAGE_FILL,   /* before reserve -> published */
    STAGE_RING,   /* published -> taken from the ring */
    STAGE_GATHER, /* taken -> its group went to the kernel */
    STAGE_DEVICE, /* submitted -> level reached */
    STAGE_ANSWER, /* level reached -> completion posted */
    STAGE_REAP,   /* posted -> reaped */
    STAGE_COUNT
};
extern const char *const stage_names[STAGE_COUNT];

/* One round, or the medians of several. */
struct numbers {
    double seconds; /* length of the measured interval */
    double commits_per_s, entries_per_s, bytes_per_s;
    struct quantiles latency;
    struct curve curve;    /* of the latency */
    struct quantiles late; /* open loop: how much later than it was due a batch was begun */
    struct quantiles stages[STAGE_COUNT];
    double busy, again; /* refusals: -EBUSY, -EAGAIN; each was tried again */
    /* Over the whole round, warm-up included; 0: not known. */
    double cpu_s_per_gb, broker_cpu_s_per_gb; /* payload in units of 10^9 bytes */
    double broker_switches, client_switches;  /* context switches per batch */
    double broker_calls, client_calls;        /* system calls per batch; counted in a round of its own */
    double entries_per_flush;
    double log_factor; /* bytes of log for a byte of payload */
    /* Bytes that the broker sent to the device, preparation included, for a byte of payload. */
    double device_factor;
    double groups_per_s;           /* 0: not known */
    double group_bytes;            /* payload bytes per group; 0: not known */
    double broker_cpu, client_cpu; /* cores in use */
    double
        other_cpu; /* cores that everybody else used meanwhile, the kernel's threads for our I/O included */
    double written_bytes; /* payload of the whole round, warm-up included */
    double log_bytes;     /* what the log grew by; 0: not known */
    bool prepared;        /* all of it went into space that had been prepared before the round */
    bool prepared_known;  /* the broker said so; else it is judged by size */
};

/* The device, or another yardstick, at the same work. */
struct raw_numbers {
    char method[64];
    double commits_per_s, bytes_per_s;
    struct quantiles latency;
    struct curve curve;
};

#endif
