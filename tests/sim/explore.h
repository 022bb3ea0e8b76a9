/* explore.h: tries a scenario with a crash or a fault at every point, and random work with random crashes
 * and faults. */
#ifndef WALRUS_SIM_EXPLORE_H
#define WALRUS_SIM_EXPLORE_H

#include "scenario.h"

struct explore_result {
    uint64_t points;     /* crash points, or ops that were failed */
    uint64_t images;     /* crash images made */
    uint64_t different;  /* of these, not bytewise equal to an earlier one: recovered and judged */
    uint64_t recoveries; /* starts of the log on a crash image, also those that were crashed or failed */
    uint64_t faults;     /* faults that hit */
    bool stopped;        /* options.enough said so */
    bool failed;
    char text[1536]; /* what broke, where, and the command that shows it again */
};

struct explore_options {
    uint32_t bits;         /* up to this many open questions every answer is tried */
    uint32_t images;       /* random images for each point beyond that */
    uint32_t nested_every; /* one of how many images is recovered with a crash at each point; 0: none */
    uint32_t twice_every;  /* of how many images one is recovered, cut and recovered again; 0: none */
    uint32_t failed_every; /* of how many images one is recovered with each op failing; 0: none */
    uint32_t fault_step;   /* of how many ops one is failed; which ones differs with the kind of fault */
    uint32_t point_step;   /* of how many events one is crashed: which ones, the seed says; 0 or 1: all */
    uint64_t seed;
    /* For mutation checks. */
    const struct fault *lie;          /* set in every life */
    const struct fault *lie_in_start; /* set while a crash image is started, and gone when it serves */
    bool hasty_lock;                  /* the lock of a file waits for nobody's writes */
    const struct log_options
        *log;       /* segment, memory, align, level and interval of every life; NULL: small ones */
    bool no_damage; /* random runs: no rot and no misdirected writes */
    FILE *trace;
    const char *again; /* words behind the command that shows a finding again; NULL: none */
    /* Asked now and then: is it enough? NULL: never. */
    bool (*enough)(void *context, const struct explore_result *so_far);
    void *context;
};
struct explore_options explore_defaults(void);
/* The same, and no less of it in a sanitized build: for a test that must find something. */
struct explore_options explore_in_full(void);
struct explore_options explore_deep(void);

/* A crash before every event, power and kill, with the choices that `options` allow; each image is
 * recovered and judged. */
struct explore_result explore_crashes(const struct scenario *scenario, const struct explore_options *options);
/* The n-th op fails, n = 1, 2, ...: once, or from then on; then the machine loses power, or the broker is
 * killed. */
struct explore_result explore_faults(const struct scenario *scenario, const struct explore_options *options);
/* One whole random run of several lives. *trace gets a hash of everything that happened. */
struct explore_result explore_random(uint64_t seed, const struct explore_options *options, uint64_t *trace);

#endif
