/* options.h: the command line. */
#ifndef WALRUS_BENCH_OPTIONS_H
#define WALRUS_BENCH_OPTIONS_H

#include "load.h"

/* Which parts of the load were said by hand: they win over a scenario's. */
enum given {
    GIVEN_PRODUCERS = 1 << 0,
    GIVEN_TOPICS = 1 << 1,
    GIVEN_BATCH = 1 << 2,
    GIVEN_SIZE = 1 << 3,
    GIVEN_DEPTH = 1 << 4,
    GIVEN_SECONDS = 1 << 5,
    GIVEN_COUNT = 1 << 6,
    GIVEN_DURABILITY = 1 << 7,
    GIVEN_WAIT = 1 << 8,
    GIVEN_PROCESSES = 1 << 9,
    GIVEN_IN_FLIGHT = 1 << 10,
    GIVEN_RATE = 1 << 11,
};

struct options {
    char scenarios[256]; /* names separated by commas; "": the load as given */
    struct load load;
    uint32_t given; /* enum given */
    bool raw, json;
    bool sustained, sustained_only;
    bool keep; /* leave the working folder for a look */
    const char *socket;
    const char *broker;
    const char *dir;
    const char *io;
    const char *others_program; /* NULL: beside this program */
    uint32_t others;            /* which other stores do the same work: a bit each, as other_names */
    uint32_t rounds;            /* 0: the scenario's, else 3 */
    double size_gib;            /* P8, P10 */
    double quiet;               /* seconds to wait for a quiet machine before each run */
    int argc;
    char **argv;
};

#define ROUNDS_MOST 64u

/* Parses; usage errors end the program with status 2, --help and --version with 0. */
void options_parse(struct options *options, int argc, char **argv);
/* "sync", "none", "interval:MS" -> level and text of the load. -EINVAL. */
int options_durability(struct load *load, const char *text) must_check;
/* `preset` with what was given by hand put over it. */
struct load options_over(const struct options *options, const struct load *preset);

#endif
