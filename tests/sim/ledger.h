/* ledger.h: what was asked of the log and what it answered, kept outside the disk; and the judgement of
 * what a reader finds.
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
 *   refused at once: REFUSED; must never be seen, and no byte of it may reach the disk */
#ifndef WALRUS_SIM_LEDGER_H
#define WALRUS_SIM_LEDGER_H

#include "../../shared/layout.h"
#include "seed.h"

#define SIM_TOPICS  8u
#define STAMP_BYTES 32u
#define STAMP_MAGIC UINT64_C(0x5ca1ab1e0ddba11)

enum fate { FATE_OPEN, FATE_OK, FATE_FAILED, FATE_REFUSED, FATE_GONE };

struct batch {
    uint32_t id; /* index in the ledger + 1 */
    uint32_t entries;
    uint32_t bytes; /* about how long an entry is */
    uint8_t topic;
    uint8_t fate;   /* enum fate */
    uint8_t level;  /* reached */
    bool complete;  /* all of it was admitted */
    bool on_disk;   /* a byte of it was handed to the disk */
    bool shown;     /* a reader saw it as durable */
    bool sequenced; /* first_sequence is known */
    bool limbo;     /* a start has decided about it, and nobody has looked yet */
    uint64_t order; /* of admission of its last piece */
    uint64_t first_sequence;
    uint64_t group;
    uint64_t epoch;
};

struct ledger {
    uint32_t count, capacity;
    struct batch *batches;
    uint64_t next_order;
    uint64_t durable_group;     /* the highest one of a durable answer in this life */
    uint8_t levels[SIM_TOPICS]; /* of the topics; 0 counts as durable */
    bool lossy;        /* something failed in a way that may take answers at level accepted with it */
    char failure[768]; /* the first broken promise; "" = none */
};

void ledger_init(struct ledger *ledger);
void ledger_copy(struct ledger *to, const struct ledger *from);
void ledger_free(struct ledger *ledger);
uint64_t ledger_hash(const struct ledger *ledger);
void ledger_fail(struct ledger *ledger, const char *format, ...) printf_like(2, 3);

/* The returned pointer is good until the next call. */
struct batch *ledger_add(struct ledger *ledger, uint32_t topic, uint32_t entries, uint32_t bytes);
struct batch *ledger_at(struct ledger *ledger, uint32_t id);

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
    uint8_t *seen; /* by batch id */
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

/* A start served: `seen` (by batch id) is all that can be read of all topics. Judges it, and settles every
 * open fate. */
void ledger_settle(struct ledger *ledger, const uint8_t *seen, enum end end);

#endif
