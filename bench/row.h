/* row.h: one row of the report: rounds of a load on a broker of its own, the yardstick between them,
 * everything read back. */
#ifndef WALRUS_BENCH_ROW_H
#define WALRUS_BENCH_ROW_H

#include <signal.h>

#include "broker.h"
#include "folder.h"
#include "ledger.h"
#include "machine.h"
#include "options.h"
#include "others_run.h"
#include "producers.h"
#include "raw_group.h"

enum yardstick {
    YARDSTICK_NONE,
    YARDSTICK_DEVICE,       /* one writer: the payload and depth of the load */
    YARDSTICK_GROUP_SIZE,   /* one writer: payloads of the size that the broker's groups had */
    YARDSTICK_GROUP_WRITER, /* as many clients, a group writer without logic */
    YARDSTICK_CEILING,      /* fill, copy and checksum, no disk */
};

struct goal {
    char text[96];
    double wanted, reached;
    bool at_least; /* else at most */
};

struct extra {
    char name[48];
    double value;
};

#define DISTURBED_CORES 0.3 /* used by others before a run: its figures say little */

#define GOALS_MOST  4u
#define EXTRAS_MOST 16u
#define ROWS_MOST   96u

struct row {
    char id[16], label[128];
    struct load load;
    enum yardstick yardstick;
    bool sustained;      /* meant to go beyond the prepared space */
    bool others;         /* the other stores do the same work in each round, if they were asked for */
    bool brief;          /* one point of many: little space for the raw runs */
    bool calls_counted;  /* one more round, not measured, counted the system calls */
    uint64_t fill_bytes; /* what the log holds before the first round; 0: little */
    char series[16];     /* of rows that differ in one quantity alone: its name; "" else */
    double x;            /* and its value */
    uint32_t rounds;     /* done */
    struct numbers rounds_walrus[ROUNDS_MOST];
    struct raw_numbers rounds_raw[ROUNDS_MOST];
    struct numbers walrus; /* medians */
    bool has_raw;
    struct raw_numbers raw;                   /* medians */
    double ratio_p50, ratio_p99, ratio_bytes; /* medians of the rounds' ratios; 0: no yardstick */
    struct other_numbers rounds_others[OTHERS_MOST][ROUNDS_MOST];
    struct other_numbers other[OTHERS_MOST]; /* medians */
    double other_ratio_p50[OTHERS_MOST],
        other_ratio_bytes[OTHERS_MOST]; /* walrus to it, as the ratios to raw */
    struct goal goals[GOALS_MOST];
    uint32_t goal_count;
    struct extra extras[EXTRAS_MOST];
    uint32_t extra_count;
    struct read_back read_back;
    double other_cores_before; /* what others used in the look before a run; the worst of all runs */
};

struct bench {
    struct options options;
    struct machine machine;
    struct payload_pool pool;
    struct row *rows; /* ROWS_MOST */
    uint32_t row_count;
    volatile sig_atomic_t interrupted;
    uint64_t syscall_event; /* 0: system calls cannot be counted here */
    char others_program[4200];
    char backend_text[16];
    char broker_version[32];
};

/* A broker on a fresh store and everything that belongs to it, for as long as a row lasts. */
struct stage_set {
    struct bench *bench;
    struct folder folder;
    struct broker broker;
    pid_t broker_pid; /* as the counters file says it: of a broker that is not ours too */
    struct broker_options broker_options;
    struct ledger ledger;
    struct raw_file raw_file;
    char store[4200], log[4200], socket[108];
};

void progress(const struct bench *bench, const char *format, ...) printf_like(2, 3);

/* Makes folder, broker (or takes the one of --socket) and ledger. */
int stage_begin(struct stage_set *stage, struct bench *bench, const char *durability,
                struct error *err) must_check;
/* The first segments of a store are small and so is what is prepared behind them: writes until that is over.
 * Not measured, but read back like everything else. */
int stage_prime(struct stage_set *stage, const struct load *like, struct error *err) must_check;
/* The same with so many bytes of payload. */
int stage_fill(struct stage_set *stage, const struct load *like, uint64_t bytes,
               struct error *err) must_check;
/* Writes to every topic of the load. */
int stage_create_topics(struct stage_set *stage, const struct load *like, struct error *err) must_check;
/* Neither side is measured beside the broker's own preparations, or other people's work: waits. Returns
 * the cores that others used at last. */
double stage_settle(const struct stage_set *stage);
/* The same, and the row keeps the worst of it. */
void row_settle(struct row *row, const struct stage_set *stage);
/* Bytes that the broker has prepared and not used. */
uint64_t stage_prepared(const struct stage_set *stage);
/* One round; its acknowledged batches go into the ledger. `syscall_event`: as in producers_request. */
int stage_round(struct stage_set *stage, const struct load *load, const struct load *beside,
                uint64_t syscall_event, struct producers_result *result, struct error *err) must_check;
/* Stops the broker, starts it again, reads everything back. */
int stage_read_back(struct stage_set *stage, struct read_back *result, struct error *err) must_check;
/* Stops and removes everything. */
void stage_end(struct stage_set *stage);

/* A new row of the report; NULL if there are too many. */
struct row *row_new(struct bench *bench, const char *id, const char *label, const struct load *load);
void row_goal(struct row *row, bool at_least, double wanted, double reached, const char *text);
void row_extra(struct row *row, const char *name, double value);
/* The whole of it: rounds of broker and yardstick in turn, medians, read back. */
int row_run(struct bench *bench, struct row *row, uint32_t rounds, struct error *err) must_check;
/* Several at a time, each with a broker of its own, their rounds in turn: what is to be compared was
 * measured in the same minutes. */
int rows_run(struct bench *bench, struct row *const *rows, uint32_t count, uint32_t rounds,
             struct error *err) must_check;
/* Sorts them. */
double row_median(double *values, uint32_t count);
/* Medians over row->rounds_walrus and rounds_raw. */
void row_medians(struct row *row);

#endif
