/* ledger.h: what was asked of the log and what it answered, kept outside the disk; and the judgement of
 * what a reader finds.
 *
 * Who checks what (the rest is checked by suites of their own: G11 test_start.c, G13, G16, G18 test_damage.c)
 *
 *   G1   settle_one, ledger_resolve: what was answered, or shown, is there after every crash
 *   G2   scan_stamp, scan_feed, scan_end: whole and in one piece, or not at all
 *   G3   scan_order, ledger_resolve: FAILED and GONE are never seen, however often it is started
 *   G4   ledger_note_written, run_end: no byte of a REFUSED batch was handed to the disk
 *   G5   numbers.c: each answer to a number is foreseen; queries, numbers and readers say the same
 *   G6   run_check: visible_before; explore.c crashes each recovery, faults.c fails each of its ops
 *   G7   scan_feed, scan_order, ledger_settle: no gap, in order, nothing missing before what is there
 *   G8   short writes of faults.c and chaos.c, through G1 and G2
 *   G9   fault_life: a write is taken once the fault is over
 *   G10  answered: nothing after log_failed(); disk.c poisons what a failed flush covered (G1)
 *   G11  run_start: it serves only after the last write of a killed predecessor has landed
 *   G12  cut_after_look, crash_recovery: what a start has shown is there after a power cut, and no more
 *   G13  judge_damaged: a refusal says where; G18, G27: else the committed bytes or -EBADMSG
 *   G14  fail_recovery, explore_faults of scenarios that cut the start
 *   G15  scenario recycled-segment, through G2 and G27; salts and nonces: test_damage.c
 *   G16  hostile.c
 *   G17  disk.c check_op: SLOT_SEALED
 *   G19  disk.c: names are durable only by SYNC_DIRECTORY, any subset of the others is lost, through G1
 *   G26  test_random.c
 *   G27  scan_feed: every byte of every entry
 *
 * Every entry's bytes follow from {batch, entry, entries of the batch}, so that any mixture of batches,
 * any missing, doubled or changed byte is seen. The first entry of a batch is never shorter than its stamp.
 *
 * The fate of a batch
 *
 *   OPEN    --answered 0--------------------> OK       must stay (see settle)
 *   OPEN    --answered with an error, aborted> FAILED   must never be seen
 *   OPEN    --a crash, then seen by a start--> OK       at level durable, as all that a start serves
 *   OPEN    --a crash, then not seen---------> GONE     must never be seen
 *   OK      --level below durable, power-----> GONE
 *   refused at once: REFUSED; must never be seen, and no byte of it may reach the disk
 *
 * Batches of producers have a number besides. Their fate is known as soon as a start serves, because the log
 * says which numbers are committed; the reader must then find the same. One that is not OK can be sent again,
 * as the same batch: it is OPEN again. Of the batches that were sent with one number of one producer on one
 * topic the last one *claims* it; those before it are FAILED, GONE or REFUSED for ever. */
#ifndef WALRUS_SIM_LEDGER_H
#define WALRUS_SIM_LEDGER_H

#include "../../shared/layout.h"
#include "seed.h"

#define SIM_TOPICS    8u
#define SIM_PRODUCERS 48u
#define SIM_ROLES     5u
#define SIM_NAMED     2u /* the first ones of the roles */
#define STAMP_BYTES   32u
#define STAMP_MAGIC   UINT64_C(0x5ca1ab1e0ddba11)

enum fate { FATE_OPEN, FATE_OK, FATE_FAILED, FATE_REFUSED, FATE_GONE };

struct batch {
    uint32_t id; /* index in the ledger + 1 */
    uint32_t entries;
    uint32_t bytes; /* about how long an entry is */
    uint8_t topic;
    uint8_t fate;     /* enum fate */
    uint8_t level;    /* reached */
    bool complete;    /* all of it was admitted */
    bool on_disk;     /* a byte of it was handed to the disk */
    bool shown;       /* a reader saw it as durable */
    bool sequenced;   /* first_sequence is known */
    bool limbo;       /* a start has decided about it, and nobody has looked yet */
    bool streamed;    /* its number was not known when its first bytes were sent */
    bool flying;      /* its number is admitted, and not answered in this life */
    bool denied;      /* the start said that its number is not committed, and nobody has looked yet */
    uint8_t producer; /* index in the ledger + 1; 0: none */
    uint32_t number;  /* 0: none yet */
    uint32_t claim;   /* order in which numbers were claimed; 0: not */
    uint64_t order;   /* of admission of its last piece */
    uint64_t first_sequence;
    uint64_t group;
    uint64_t
        flush; /* in ledger.flushes: which one has made it durable, or was the last when it failed; 0: never
                     * answered */
    uint64_t epoch;
};

struct known_producer {
    uint64_t id;
    uint64_t since; /* order of admission when it came */
    uint8_t role;
    bool forgotten; /* the log has said so */
};

struct ledger {
    uint32_t count, capacity;
    struct batch *batches;
    uint64_t next_order;
    uint64_t durable_group;     /* the highest one of a durable answer in this life */
    uint8_t levels[SIM_TOPICS]; /* of the topics; 0 counts as durable */
    struct known_producer producers[SIM_PRODUCERS];
    uint32_t producer_count;
    uint8_t roles[SIM_ROLES]; /* who plays it now: index + 1; 0: nobody yet */
    uint32_t next_claim;
    uint32_t max_anonymous; /* that the log remembers; 0: many */
    uint64_t flushes;       /* groups of durable answers so far, in all lives */
    uint64_t flushed_group; /* the last of them in this life */
    uint64_t rot_flushes;   /* of so many of the last ones of those all that says so was damaged */
    uint64_t rot_since;     /* bytes were damaged: what was admitted from this order on may be lost; 0: not */
    bool lossy;             /* something failed in a way that may take answers at level accepted with it */
    char failure[768];      /* the first broken promise; "" = none */
};

void ledger_init(struct ledger *ledger);
void ledger_copy(struct ledger *to, const struct ledger *from);
void ledger_free(struct ledger *ledger);
uint64_t ledger_hash(const struct ledger *ledger);
void ledger_fail(struct ledger *ledger, const char *format, ...) printf_like(2, 3);

/* The returned pointer is good until the next call. */
struct batch *ledger_add(struct ledger *ledger, uint32_t topic, uint32_t entries, uint32_t bytes);
struct batch *ledger_at(struct ledger *ledger, uint32_t id);

/* ------------------------------------------------------------------------------------------------ numbers */

#define PRODUCER_NAME "producer %u" /* of a role */

/* Damage may have taken all that was known of it. */
bool ledger_producer_may_rot(const struct ledger *ledger, uint8_t producer);
/* Index + 1 of a new producer in this role; 0: there are too many. */
uint8_t ledger_add_producer(struct ledger *ledger, uint32_t role, uint64_t id);
/* Who claims the number; NULL: nobody. */
struct batch *ledger_claimant(struct ledger *ledger, uint8_t producer, uint32_t topic, uint32_t number);
void ledger_claim(struct ledger *ledger, struct batch *batch, uint8_t producer, uint32_t number);
/* What is committed and what is admitted, as far as the answers say: 1 to *last, 1 to *admitted. */
void ledger_numbers(const struct ledger *ledger, uint8_t producer, uint32_t topic, uint32_t *last,
                    uint32_t *admitted);
/* It is about to be OPEN again: remembers the sequences that it was given and has lost. */
void ledger_reopen(struct ledger *ledger, uint32_t id);
/* Some batch of it may be committed. */
bool ledger_may_be_committed(const struct ledger *ledger, uint8_t producer);

uint64_t entry_length(const struct batch *batch, uint32_t entry);
void entry_fill(const struct batch *batch, uint32_t entry, uint64_t offset, uint8_t *to, uint64_t length);

/* Bytes were handed to the disk: remembers whose. */
void ledger_note_written(struct ledger *ledger, const void *bytes, uint64_t length);

/* ------------------------------------------------------------------------------------------------ judging
 * readers */

/* Reads one topic in order and matches what comes with the ledger. */
struct scan {
    struct ledger *ledger;
    uint32_t topic;
    uint32_t batch; /* id of the one being read, 0 = between two */
    uint32_t entry;
    uint64_t offset;
    uint64_t next_sequence; /* of the next entry; while `offset` is not 0, of this one */
    uint64_t last_order;
    uint32_t batches;
    bool from_start;
    uint8_t *seen;                   /* by batch id */
    uint32_t numbers[SIM_PRODUCERS]; /* the last one of each producer */
};
void scan_begin(struct scan *scan, struct ledger *ledger, uint32_t topic, bool from_start);
/* One entry, or (run->flags) a piece of one. */
void scan_feed(struct scan *scan, const struct run *run, uint64_t sequence, const uint8_t *bytes,
               uint64_t length);
void scan_end(struct scan *scan);

/* A new life begins to write, and nobody has read what its start made of the batches so far. */
void ledger_limbo(struct ledger *ledger);
/* A clean stop answered 0: everything answered so far is durable. */
void ledger_stopped(struct ledger *ledger);

enum end {
    END_NONE,
    END_STOP,
    END_KILL,
    END_POWER
}; /* how a life ended; the worst one since the last start counts */

/* A start serves, and the log says whether a number of the lives before is committed. */
void ledger_resolve(struct ledger *ledger, struct batch *batch, bool committed, enum end end);

/* A start served: `seen` (by batch id) is all that can be read of all topics. Judges it, and settles every
 * open fate. */
void ledger_settle(struct ledger *ledger, const uint8_t *seen, enum end end);

#endif
