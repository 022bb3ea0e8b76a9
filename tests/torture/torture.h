/* torture.h: what the parts of walrus-torture share.
 *
 * Two lanes work at the same time on sub-folders of the user's folder: a process of its own for the
 * recorder and the simulator (where the log may hit an assert), and this process, which kills brokers and
 * tells how far all of it is. What they have done and found lies in memory that both see. */
#ifndef WALRUS_TORTURE_H
#define WALRUS_TORTURE_H

#include "../../shared/base.h"

#define TORTURE_KEPT "broken-crash-image"

/* Written by one lane each, read by the other. */
struct torture_counts {
    uint64_t beat; /* the worker lives */
    uint64_t lives, stores, batches, entries_read, ops, writes, flushes, written_bytes;
    uint64_t images, recoveries, materialised;
    uint64_t runs; /* of the simulator */
    uint64_t errors;
    char last_error[128];
    char place[256]; /* where the worker is, for the case that it dies */
};

struct torture_failure {
    uint32_t taken; /* the first one wins */
    char what[1536];
    char again[512]; /* how to see it again */
};

struct torture_shared {
    struct torture_counts counts;
    struct torture_failure failure;
    uint64_t kills, kill_batches;
    char again[512];  /* how to see what the worker does now again */
    char cannot[512]; /* "" or why the worker gave up: nobody's broken promise */
    uint32_t stop;
};

struct torture {
    const char *folder;
    const char *walrusd; /* NULL: not found, so nothing is killed */
    char *const *words;  /* walrusd's own options, as given */
    int word_count;
    double seconds;
    uint64_t seed;
    bool recorder, simulator, kills; /* which phases */
    bool json, lies;
    /* what `words` say; 0: the default */
    uint8_t level;
    int64_t interval_ns;
    int backend;
    uint32_t commit_align;
    uint64_t segment_bytes, memory_bytes;
    uint64_t max_batch_bytes;
    bool answers_early; /* `level` does not survive a kill */
    int64_t until_ns;
    struct torture_shared *shared;
};

void torture_fail(struct torture_shared *shared, const char *again, const char *format, ...)
    printf_like(3, 4);
bool torture_ended(const struct torture *torture);
/* The command that does this phase with this seed again, into shared->again. */
void torture_say_again(const struct torture *torture, const char *phase, uint64_t seed);

/* ------------------------------------------------------------------------------------- worker.c */

/* Recorder and simulator in turn until the time is over; an exit code. */
int torture_work(const struct torture *torture);

/* ------------------------------------------------------------------------------------- record.c */

/* Starts and stops once with the user's options: what walrusd would refuse is told before anything is
 * tried. */
int record_try(const struct torture *torture, struct error *err) must_check;
/* One store: several lives of the real log on the real back end, and the crash images of each. */
int record_store(const struct torture *torture, uint64_t seed, struct error *err) must_check;

/* ------------------------------------------------------------------------------------- kills.c */

struct torture_kills {
    char skipped[256]; /* "" or why nothing was killed */
};
/* Until the time is over, at least one round. `tell` is called often. */
int torture_kill(const struct torture *torture, void (*tell)(const struct torture *torture),
                 struct torture_kills *out, struct error *err) must_check;

/* ------------------------------------------------------------------------------------- facts.c */

struct torture_facts {
    char file_system[32];
    bool promised;
    bool direct; /* O_DIRECT works there */
    char device[64], write_cache[32], kernel[160];
    uint32_t logical_block, physical_block, align;
    char backend[16];
    char fallback[128]; /* "" or why io_uring is not used */
    double flush_p50_us, flush_p99_us;
    bool implausible; /* answers a flush faster than any disk can */
};
int torture_look(const struct torture *torture, struct torture_facts *facts, struct error *err) must_check;

/* ------------------------------------------------------------------------------------- folder.c */

/* -ENOTEMPTY, ... with words unless the folder is empty or was made; *made: it was. */
int folder_take(const char *folder, bool *made, struct error *err) must_check;
void folder_remove(const char *path);
/* What of the folder begins so. */
void folder_remove_beginning(const char *folder, const char *beginning);

#endif
