/* explorer.h: what explore.c (crashes), faults.c and chaos.c (random runs) share.
 *
 * A branch is an image and the ledger that belongs to it. Lives change copies of both, so that one prefix can
 * be tried with many ends. */
#ifndef WALRUS_SIM_EXPLORER_H
#define WALRUS_SIM_EXPLORER_H

#include "explore.h"

struct branch {
    struct image *image;
    struct ledger ledger;
    enum end end;     /* how the life before ended */
    uint64_t visible; /* what a start of this image must show: see run_state.visible; 0: it may decide */
};

struct explorer {
    const struct scenario *scenario;
    struct explore_options options;
    struct explore_result result;
    uint64_t *known; /* images already judged: a hash set */
    uint64_t known_count, known_capacity;
    uint64_t lives;
    uint64_t number; /* of the image: says what is done with it besides */
    char place[256];
};

struct explorer explorer_begin(const struct scenario *scenario, const struct explore_options *options);
struct explore_result explorer_end(struct explorer *explorer);
/* False: something broke, or the caller has had enough. */
bool explorer_goes_on(struct explorer *explorer);

void branch_copy(struct branch *to, const struct branch *from);
void branch_free(struct branch *branch);
/* The branch's ledger has a broken promise in it: makes it the result. */
bool branch_broken(struct explorer *explorer, const struct branch *branch);
/* Takes the machine or the broker away. */
void branch_crash(struct branch *branch, enum crash crash, struct choices choices);
/* The lives before the scenario. */
void branch_base(struct explorer *explorer, struct branch *branch);

/* A life of the branch: it has the image until finish_life. */
void begin_life(struct explorer *explorer, struct run_state *run, struct branch *branch);
/* The scenario's own life: the same seed each time, so that event n is always the same event. */
void begin_act(struct explorer *explorer, struct run_state *run, struct branch *branch);
void finish_life(struct run_state *run, struct branch *branch);

/* The branch is a crash image. Starts, reads everything, judges, writes more. Leaves the image as it is at a
 * kill after that. With `only_look` nothing is written: branch->visible is what was seen then. */
void branch_judge(struct explorer *explorer, struct branch *branch, bool only_look);
/* One image of a crash: made, and, if it is a new one, recovered and judged in all ways. `depth` 0: and its
 * recovery is crashed and failed, as often as the options say. */
void judge_image(struct explorer *explorer, const struct branch *prefix, enum crash kind,
                 struct choices choices, uint32_t depth);
/* Chance that depends on the seed of the search and on nothing else. */
struct choices explorer_chance(const struct explorer *explorer, uint64_t number);
/* Fails ops of the recovery of `from`, and recovers again. */
void fail_recovery(struct explorer *explorer, const struct branch *from, uint64_t number);

#endif
