#include "options.h"

#include <argp.h>
#include <math.h>

#include "../libclient/include/walrus.h"
#include "others_run.h"
#include "payload.h"

const char *argp_program_version = "walrus-bench " WALRUS_VERSION_STRING;

enum {
    KEY_SCENARIO = 256,
    KEY_PRODUCERS,
    KEY_TOPICS,
    KEY_BATCH,
    KEY_SIZE,
    KEY_DEPTH,
    KEY_SECONDS,
    KEY_COUNT,
    KEY_QUEUE,
    KEY_DURABILITY,
    KEY_WAIT,
    KEY_RAW,
    KEY_JSON,
    KEY_SOCKET,
    KEY_BROKER,
    KEY_DIR,
    KEY_ROUNDS,
    KEY_IO,
    KEY_SIZE_GIB,
    KEY_SUSTAINED,
    KEY_SUSTAINED_ONLY,
    KEY_KEEP,
    KEY_QUIET,
    KEY_PROCESSES,
    KEY_IN_FLIGHT,
    KEY_RATE,
    KEY_OTHERS,
    KEY_OTHERS_PROGRAM,
};

static const struct argp_option known[] = {
    {"scenario", KEY_SCENARIO, "NAME", 0,
     "P1 to P11, S1 to S3, \"all\" of these, \"open\" (P1 at a fixed rate), the series batch, size, "
     "producers, topics, "
     "connections, log; or several with commas between",
     1},
    {"rounds", KEY_ROUNDS, "N", 0, "rounds of each row; medians are reported", 1},
    {"sustained", KEY_SUSTAINED, NULL, 0, "add a row beyond the prepared space to P1 to P5", 1},
    {"sustained-only", KEY_SUSTAINED_ONLY, NULL, 0, "of P1 to P5 these rows alone", 1},
    {"size-gib", KEY_SIZE_GIB, "N", 0,
     "P8, log: size of the largest store, P10: of the batch (default 2; the goals speak of 10); a tenth and "
     "a "
     "hundredth of it are measured too",
     1},
    {"producers", KEY_PRODUCERS, "N", 0, "processes that write (default 1)", 2},
    {"topics", KEY_TOPICS, "N", 0, "topics they write to (default 1)", 2},
    {"batch", KEY_BATCH, "N", 0, "entries in a batch (default 100); 1: appends", 2},
    {"size", KEY_SIZE, "BYTES", 0, "bytes of an entry (default 700)", 2},
    {"depth", KEY_DEPTH, "N", 0, "batches each producer keeps in flight (default 1)", 2},
    {"seconds", KEY_SECONDS, "S", 0, "measured time of a round (default 2)", 2},
    {"count", KEY_COUNT, "N", 0, "measured batches of a round, instead of a time", 2},
    {"queue", KEY_QUEUE, NULL, 0, "wait in line behind other handles' batches instead of -EBUSY", 2},
    {"processes", KEY_PROCESSES, "N", 0,
     "spread the producers, a connection each, over N processes (default: a process each)", 2},
    {"in-flight", KEY_IN_FLIGHT, "N", 0, "most batches in flight of one process: its producers send in turn",
     2},
    {"rate", KEY_RATE, "N", 0,
     "open loop: N batches per second of all producers together, at fixed times; latency counts from the "
     "time at which a "
     "batch was due",
     2},
    {"durability", KEY_DURABILITY, "LEVEL", 0, "sync (default), interval:MS or none", 2},
    {"wait", KEY_WAIT, "HOW", 0, "spin, hybrid (default) or block", 2},
    {"raw", KEY_RAW, NULL, 0, "measure the device itself at the same work, in the same rounds", 2},
    {"socket", KEY_SOCKET, "PATH", 0, "use the broker that serves there instead of starting one", 3},
    {"broker", KEY_BROKER, "PATH", 0, "the walrusd to start (default: beside this program, else from PATH)",
     3},
    {"others", KEY_OTHERS, "NAMES", 0,
     "let these stores do the same work beside P1 to P5 and free loads, in the same rounds: rocksdb, sqlite, "
     "redis, with "
     "commas between, or \"all\"",
     3},
    {"others-program", KEY_OTHERS_PROGRAM, "PATH", 0,
     "the walrus-bench-others to run (default: beside this program)", 3},
    {"io", KEY_IO, "BACKEND", 0, "its --io: auto, uring, pwrite or mmap", 3},
    {"dir", KEY_DIR, "DIR", 0,
     "folder on the disk to measure (default: here); a folder below it is made and removed", 3},
    {"quiet", KEY_QUIET, "S", 0,
     "wait up to S seconds before each run until others leave the cores alone (default 10)", 3},
    {"keep", KEY_KEEP, NULL, 0, "leave that folder", 3},
    {"json", KEY_JSON, NULL, 0, "print JSON instead of a table", 4},
    {0},
};

int options_durability(struct load *load, const char *text)
{
    if (strcmp(text, "sync") == 0)
        load->level = WALRUS_LEVEL_DURABLE;
    else if (strcmp(text, "none") == 0)
        load->level = WALRUS_LEVEL_ACCEPTED;
    else if (strncmp(text, "interval:", 9) == 0) {
        char *end;
        unsigned long ms = strtoul(text + 9, &end, 10);
        if (end == text + 9 || *end != 0 || ms == 0 || ms > 3600000)
            return -EINVAL;
        load->level = WALRUS_LEVEL_WRITTEN;
    } else
        return -EINVAL;
    snprintf(load->durability, sizeof load->durability, "%s", text);
    return 0;
}

/* A whole number between `least` and `most`; else the program ends with usage. */
static uint64_t number(struct argp_state *state, const char *option, const char *text, uint64_t least,
                       uint64_t most)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != 0 || text[0] == '-' || value < least || value > most)
        argp_error(state, "--%s takes a number from %llu to %llu, not \"%s\"", option,
                   (unsigned long long)least, (unsigned long long)most, text);
    return value;
}

static double fraction(struct argp_state *state, const char *option, const char *text, double least,
                       double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != 0 || !isfinite(value) || value < least || value > most)
        argp_error(state, "--%s takes a number from %g to %g, not \"%s\"", option, least, most, text);
    return value;
}

static error_t parse_load(int key, char *text, struct argp_state *state)
{
    struct options *o = state->input;
    struct load *load = &o->load;
    switch (key) {
    case KEY_PRODUCERS:
        load->producers = (uint32_t)number(state, "producers", text, 1, 4000);
        o->given |= GIVEN_PRODUCERS;
        return 0;
    case KEY_TOPICS:
        load->topics = (uint32_t)number(state, "topics", text, 1, 65000);
        o->given |= GIVEN_TOPICS;
        return 0;
    case KEY_BATCH:
        load->batch = (uint32_t)number(state, "batch", text, 1, WALRUS_MAX_BATCH_ENTRIES);
        o->given |= GIVEN_BATCH;
        return 0;
    case KEY_SIZE:
        load->size = number(state, "size", text, 1, UINT64_C(1) << 32);
        o->given |= GIVEN_SIZE;
        return 0;
    case KEY_DEPTH:
        load->depth = (uint32_t)number(state, "depth", text, 1, 1000);
        o->given |= GIVEN_DEPTH;
        return 0;
    case KEY_SECONDS:
        load->seconds = fraction(state, "seconds", text, 0.01, 86400);
        load->count = 0;
        o->given = (o->given | GIVEN_SECONDS) & ~(uint32_t)GIVEN_COUNT;
        return 0;
    case KEY_COUNT:
        load->count = number(state, "count", text, 1, UINT64_C(1) << 32);
        o->given = (o->given | GIVEN_COUNT) & ~(uint32_t)GIVEN_SECONDS;
        return 0;
    case KEY_QUEUE:
        load->queue = true;
        return 0;
    case KEY_PROCESSES:
        load->processes = (uint32_t)number(state, "processes", text, 1, 1000);
        o->given |= GIVEN_PROCESSES;
        return 0;
    case KEY_IN_FLIGHT:
        load->in_flight = (uint32_t)number(state, "in-flight", text, 1, 1000000);
        o->given |= GIVEN_IN_FLIGHT;
        return 0;
    case KEY_RATE:
        load->rate = fraction(state, "rate", text, 0.1, 1e8);
        o->given |= GIVEN_RATE;
        return 0;
    case KEY_DURABILITY:
        if (options_durability(load, text) < 0)
            argp_error(state, "--durability takes sync, interval:MS or none, not \"%s\"", text);
        o->given |= GIVEN_DURABILITY;
        return 0;
    case KEY_WAIT:
        if (strcmp(text, "spin") == 0)
            load->wait = WAIT_SPIN;
        else if (strcmp(text, "hybrid") == 0)
            load->wait = WAIT_HYBRID;
        else if (strcmp(text, "block") == 0)
            load->wait = WAIT_BLOCK;
        else
            argp_error(state, "--wait takes spin, hybrid or block, not \"%s\"", text);
        o->given |= GIVEN_WAIT;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse(int key, char *text, struct argp_state *state)
{
    struct options *o = state->input;
    switch (key) {
    case KEY_SCENARIO:
        if (o->scenarios[0] != 0)
            argp_error(state, "--scenario is given twice; put commas between the names");
        if (strlen(text) >= sizeof o->scenarios)
            argp_error(state, "--scenario is too long");
        snprintf(o->scenarios, sizeof o->scenarios, "%s", text);
        return 0;
    case KEY_ROUNDS:
        o->rounds = (uint32_t)number(state, "rounds", text, 1, ROUNDS_MOST);
        return 0;
    case KEY_SIZE_GIB:
        o->size_gib = fraction(state, "size-gib", text, 0.01, 1024);
        return 0;
    case KEY_RAW:
        o->raw = true;
        return 0;
    case KEY_JSON:
        o->json = true;
        return 0;
    case KEY_SUSTAINED:
        o->sustained = true;
        return 0;
    case KEY_SUSTAINED_ONLY:
        o->sustained = o->sustained_only = true;
        return 0;
    case KEY_QUIET:
        o->quiet = fraction(state, "quiet", text, 0, 3600);
        return 0;
    case KEY_KEEP:
        o->keep = true;
        return 0;
    case KEY_SOCKET:
        o->socket = text;
        return 0;
    case KEY_BROKER:
        o->broker = text;
        return 0;
    case KEY_OTHERS:
        if (others_parse(text, &o->others) < 0)
            argp_error(state, "--others takes rocksdb, sqlite, redis or all, not \"%s\"", text);
        return 0;
    case KEY_OTHERS_PROGRAM:
        o->others_program = text;
        return 0;
    case KEY_DIR:
        o->dir = text;
        return 0;
    case KEY_IO:
        o->io = text;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "\"%s\" is not an option", text);
        return 0;
    default:
        return parse_load(key, text, state);
    }
}

void options_parse(struct options *options, int argc, char **argv)
{
    static const struct argp argp = {
        .options = known,
        .parser = parse,
        .doc = "Measures a Walrus broker: what is written is random, is read back after a restart of the "
               "broker, and is "
               "compared with what the device itself does in the same minutes.\v"
               "Without --scenario the load is what the options say. Exit status: 0 measured, 1 failed or "
               "what was read "
               "back is not what was written, 2 usage.",
    };
    memset(options, 0, sizeof *options);
    options->load = (struct load){.producers = 1,
                                  .topics = 1,
                                  .batch = 100,
                                  .size = 700,
                                  .depth = 1,
                                  .seconds = 2,
                                  .wait = WAIT_HYBRID,
                                  .level = WALRUS_LEVEL_DURABLE,
                                  .durability = "sync"};
    options->dir = ".";
    options->size_gib = 2;
    options->quiet = 10;
    options->argc = argc;
    options->argv = argv;
    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, options);
}

struct load options_over(const struct options *options, const struct load *preset)
{
    const struct load *said = &options->load;
    struct load load = *preset;
    if (options->given & GIVEN_PRODUCERS)
        load.producers = said->producers;
    if (options->given & GIVEN_TOPICS)
        load.topics = said->topics;
    if (options->given & GIVEN_BATCH)
        load.batch = said->batch;
    if (options->given & GIVEN_SIZE)
        load.size = said->size;
    if (options->given & GIVEN_DEPTH)
        load.depth = said->depth;
    if (options->given & GIVEN_SECONDS) {
        load.seconds = said->seconds;
        load.count = 0;
    }
    if (options->given & GIVEN_COUNT)
        load.count = said->count;
    if (options->given & GIVEN_PROCESSES)
        load.processes = said->processes;
    if (options->given & GIVEN_IN_FLIGHT)
        load.in_flight = said->in_flight;
    if (options->given & GIVEN_RATE)
        load.rate = said->rate;
    if (options->given & GIVEN_WAIT)
        load.wait = said->wait;
    if (options->given & GIVEN_DURABILITY) {
        load.level = said->level;
        memcpy(load.durability, said->durability, sizeof load.durability);
    }
    load.queue = load.queue || said->queue;
    return load;
}
