/* model.h: the protocol of the log as a finite machine. README.md says which part of broker/log each part is.
 *
 * One `struct state` is everything that decides what can happen next: what the device holds and may come to
 * hold, what the broker has in memory, what the clients do next, and the ledger of what they were told. A
 * *macro step* (a group, a start, a power cut, ...) is plain straight-line code that asks choose() wherever
 * more than one thing can happen: a crash before each I/O, a fault of it, what of it landed. The search runs
 * each macro step once for every sequence of answers.
 *
 * Functions of a macro step return false when the broker's life ended in them (crash, fail-stop, refused
 * start, violation): the caller returns at once. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum {
    FILES = 12, /* slots for segment files */
    BLOCKS = 7, /* header and up to six blocks of groups */
    MEDIA = 6,  /* values that a block may turn out to hold */
    TOPICS = 2,
    NAMES = 6,     /* batches of a program */
    ATTEMPTS = 5,  /* submissions of one batch, the first one included */
    FRAMES = 3,    /* of a group */
    SEGMENTS = 10, /* of a chain */
    OPS = 8,       /* of a program */
    VISIBLE = 12,  /* batches in the log */
    LATE = 2,      /* writes of a dead broker under way */
    GIVEN = 6,     /* sequences answered in one life */
};

typedef uint16_t value_id; /* an interned block value; 0: blank, void or torn, which no reader tells apart */

/* ------------------------------------------------------------------------------------------------ values */

enum value_kind { VALUE_HEADER = 1, VALUE_GROUP, VALUE_BODY, VALUE_CHECKPOINT };
enum frame_kind { FRAME_BATCH = 1, FRAME_CHUNK, FRAME_LAST };

struct frame {
    uint8_t kind, name, topic;
    uint8_t sequence, number;     /* BATCH, LAST */
    uint8_t stream_epoch, stream; /* CHUNK, LAST */
    uint8_t chunk, first_segment;
};

struct place {
    uint8_t number, file, end;
};

struct value {
    uint8_t kind;
    uint8_t epoch, nonce;
    uint8_t number;       /* of the segment or group; of a checkpoint: its counter */
    uint8_t segment;      /* group: its segment's; header: the predecessor's; checkpoint: the position's */
    uint8_t at;           /* group: its block; header: where the predecessor ends; checkpoint: position */
    uint8_t length;       /* group: blocks */
    uint8_t group;        /* header: first group; checkpoint: last group */
    uint8_t durable_upto; /* header, group */
    uint8_t topics, producers; /* group: catalogue entries in it; checkpoint: all */
    uint8_t frame_count;
    value_id digest; /* of the group before; checkpoint: of its group */
    struct frame frames[FRAMES];
    uint8_t attempts[FRAMES]; /* ghosts: no decision of the protocol looks at them */
    uint8_t closed_count;
    struct place closed[SEGMENTS];
    uint8_t next_sequence[TOPICS], last_number[TOPICS];
    uint8_t zero;
};
_Static_assert(sizeof(struct value) == 80, "a value is compared byte by byte: no padding");

struct values;
struct values *values_new(void);
void values_free(struct values *values);
value_id value_intern(struct values *values, const struct value *value);
const struct value *value_get(const struct values *values, value_id id);
/* The digest of a group's header covers everything but the ghosts. */
value_id value_digest(struct values *values, value_id id);
/* Highest nonce in the value or in the chain of digests behind it. */
uint8_t value_nonce(const struct values *values, value_id id);
uint32_t values_count(const struct values *values);

/* ------------------------------------------------------------------------------------------------ device */

struct block {
    value_id current; /* what reads return */
    uint8_t count;    /* of media; 0: `current` is on the disk */
    bool poisoned;    /* a flush failed: clean for later flushes, though not on the disk */
    value_id media[MEDIA];
};

struct file {
    struct block blocks[BLOCKS];
    struct block entry; /* in the folder: 1: there under its name */
    uint8_t length;     /* blocks; 1: a header-only spare */
    uint8_t committed;  /* ghost: blocks that hold committed bytes */
};

struct late {
    uint8_t file, at;
    value_id value;
};

/* ------------------------------------------------------------------------------------------------- state */

enum mode { MODE_RUN, MODE_START, MODE_POWER, MODE_END };

struct broker {                                                /* volatile */
    uint8_t epoch, nonce, next_group, durable_upto, unflushed; /* unflushed: groups */
    uint8_t segment_count;
    struct place segments[SEGMENTS]; /* the last one is current */
    value_id digest;
    uint8_t next_sequence[TOPICS], next_assign[TOPICS], last_number[TOPICS];
    uint8_t topics, producers; /* in the catalogue */
    uint8_t streams, stream, stream_attempt, stream_chunks, stream_segment;
    bool stream_failed, checkpoint_wanted;
    uint8_t checkpoint_step; /* 0: idle; what comes next */
    uint8_t checkpoint_counter;
    value_id checkpoint;
};

struct given { /* a sequence that somebody was told */
    uint8_t topic, sequence, uid;
};

struct ledger {
    uint32_t acked;    /* answered at durable, or visible when a start served */
    uint32_t written;  /* answered at written: survives the broker */
    uint32_t accepted; /* answered at accepted */
    uint32_t dead;     /* answered as failed, or not visible when a start served */
    uint32_t inflight; /* outcome unknown */
    uint8_t visible[VISIBLE], visible_count, public_count;
    uint8_t served_epoch;
    uint8_t given_count;
    struct given given[GIVEN];
    uint8_t zero[2];
};
_Static_assert(sizeof(struct ledger) == 56, "no padding");

struct state {
    struct file files[FILES];
    struct block checkpoint[2];
    struct late late[LATE];
    uint8_t late_count;
    uint8_t mode, faults, crashes, end_phase;
    struct broker broker;
    uint8_t next_op, again, again_chunk; /* again: names to be submitted again */
    bool gathered;                       /* the next op was gathered before the failure: it goes first */
    uint8_t attempt[NAMES];
    struct ledger ledger;
}; /* made of zeros by memset, copied whole, compared as bytes */

/* ---------------------------------------------------------------------------------------------- programs */

enum level { LEVEL_ACCEPTED = 1, LEVEL_WRITTEN, LEVEL_DURABLE };
enum op_kind { OP_GROUP = 1, OP_CHECKPOINT, OP_STOP };

struct part {
    char name; /* 0: none */
    uint8_t chunk;
};

struct op {
    uint8_t kind, blocks;
    struct part parts[FRAMES];
};

struct batch {
    uint8_t topic, number, chunks; /* number 0: not numbered; chunks 0: a whole batch */
};

struct program {
    const char *name, *about;
    uint8_t levels[TOPICS];
    uint8_t length;             /* of a segment, in blocks */
    uint8_t large, header_only; /* spares that are there */
    bool empty;                 /* begins with an empty folder */
    bool small;                 /* cheap enough for two faults or crashes each time */
    bool cuts;                  /* segments are cut at their ends, some time or never */
    bool full;                  /* the disk is: no spare can be made while it serves */
    bool recycled;              /* the spares hold groups of an earlier life of their blocks */
    bool checkpoints;           /* one may be taken after a start */
    bool final_errors;          /* after a failed write nothing is known of the disk: the back end mmap */
    struct batch batches[NAMES];
    struct op ops[OPS];
};

extern const struct program programs[];
extern const size_t program_count;
const struct program *program_find(const char *name);
unsigned program_ops(const struct program *program);

/* ------------------------------------------------------------------------------------------------- rules */

#define RULES(X)                                                                                             \
    X(FLUSH_BEFORE_HEADER, "flush-before-header", "everything before a header in the log is flushed first")  \
    X(COPY, "copy", "a start copies the groups that nothing proves")                                         \
    X(COPY_FIRST, "copy-first", "a start flushes the copies before it writes the header")                    \
    X(NONCE, "nonce", "an epoch has a nonce besides its counter, unique to the attempt")                     \
    X(COUNTER, "counter", "an epoch's counter is higher than any before")                                    \
    X(IDENTITY, "identity", "a group counts only in the segment, number and epoch, that it names")           \
    X(DIGEST, "digest", "headers and groups continue the digest of the group before")                        \
    X(ANSWER_LATE, "answer-late", "durable is answered after the flush")                                     \
    X(FLUSH_FINAL, "flush-final", "a failed flush ends the broker; no second one is believed")               \
    X(VOID, "void", "a start makes headers void that read blank")                                            \
    X(REUSE, "reuse", "a start uses no file that holds a valid header")                                      \
    X(BYPASS, "bypass", "a newest segment of which nothing is proved is bypassed")                           \
    X(BYPASS_FIRST, "bypass-first", "that holds for the first segment too")                                  \
    X(FLUSH_AT_START, "flush-at-start", "a start flushes files and folder before it reads")                  \
    X(LOCK, "lock", "a start waits for the I/O of a dead predecessor")                                       \
    X(CUT, "cut", "a segment is cut at its end after the header that says so was flushed")                   \
    X(FOLDER_SYNC, "folder-sync", "a file is used after the folder was flushed")                             \
    X(ROLL, "roll", "a failed group is ended by a successor's header, not only forgotten")                   \
    X(ROLL_DURABLE, "roll-durable", "a failure is answered after the header that decides it was flushed")    \
    X(ROLL_WRITTEN, "roll-written", "a failure is answered after that header was written at all")            \
    X(HEADER_CHECKED, "header-checked", "a header that cannot be written ends the broker")                   \
    X(CHECKPOINT_DURABLE, "checkpoint-durable", "a checkpoint speaks of flushed groups only")                \
    X(CHECKPOINT_PLACE, "checkpoint-place", "its position is in the segment that holds its group")           \
    X(UPTO, "durable-upto", "durable_upto names flushed groups only")                                        \
    X(EVIDENCE, "evidence", "files without a header are judged by durable_upto, not by group numbers")       \
    X(STREAM_NAMES, "stream-names", "chunks are found by the stream's id, not by the batch's name")          \
    X(STREAM_FAILS, "stream-fails", "a stream of which a chunk was lost is never committed")                 \
    X(DUPLICATE, "duplicate", "a number that is committed is answered as a duplicate")                       \
    X(ORDER, "order", "a number is admitted only behind the one before it")                                  \
    X(CATALOGUE, "catalogue", "after a failed group the catalogue entry is written again")                   \
    X(BURN, "burn", "sequences that were answered and lost are not given again")

enum rule {
#define X(id, name, words) RULE_##id,
    RULES(X)
#undef X
        RULE_COUNT
};

extern const char *const rule_names[RULE_COUNT];
extern const char *const rule_words[RULE_COUNT];

struct variant {         /* where leaving a rule out is found at little cost */
    const char *program; /* NULL: nowhere up to two faults and two crashes, a second line of defence */
    unsigned faults, crashes;
};

extern const struct variant variants[RULE_COUNT];

/* --------------------------------------------------------------------------------------------------- run */

enum { CHOICES = 120 };

struct choices {
    uint8_t taken[CHOICES], of[CHOICES];
    unsigned count, at;
};

struct run { /* one macro step under way */
    struct state s;
    struct choices choices;
    struct values *values;
    const struct program *program;
    const bool *dropped;
    const char *violation; /* what was broken, NULL: nothing */
    FILE *words;           /* the trace, when it is told */
};

unsigned choose(struct run *r, unsigned of);
void say(struct run *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool violated(struct run *r, const char *what);
const char *uid_text(unsigned uid, char text[8]);

static inline bool keeps(const struct run *r, enum rule rule)
{
    return !r->dropped[rule];
}

static inline uint8_t u8(unsigned n)
{
    return (uint8_t)n;
}

static inline unsigned uid_of(unsigned name, unsigned attempt)
{
    return name * ATTEMPTS + attempt;
}

static inline const struct value *current_value(const struct run *r, unsigned file, unsigned at)
{
    return value_get(r->values, r->s.files[file].blocks[at].current);
}

/* device.c */
bool file_there(const struct run *r, unsigned file);
bool crash_point(struct run *r);
bool fault(struct run *r, const char *what);
bool write_blocks(struct run *r, unsigned file, unsigned at, const value_id *values, unsigned count,
                  const char *what, bool *failed);
bool flush_file(struct run *r, unsigned file, const char *what, bool *failed);
bool sync_folder(struct run *r, bool *failed);
void cut_behind(struct run *r, unsigned file, unsigned end);
bool set_entry(struct run *r, unsigned file, bool there);
bool set_checkpoint(struct run *r, unsigned which, value_id value);
void set_settled(struct block *block, value_id value);
bool make_file(struct run *r, unsigned *file, bool *failed);
void power_cut(struct run *r);
void late_writes_land(struct run *r);
bool end_life(struct run *r, const char *why);
uint8_t fresh_nonce(const struct run *r);

/* commit.c, clients.c */
struct group_plan {
    struct frame frames[FRAMES];
    uint8_t attempts[FRAMES];
    uint8_t count, blocks, topics, producers;
};

bool run_step(struct run *r);
bool group_commit(struct run *r, struct group_plan *plan);
bool flush_now(struct run *r, const char *what);
bool checkpoint_begin(struct run *r);
bool checkpoint_step(struct run *r);
void group_failed(struct run *r, const struct group_plan *plan);
unsigned spare_count(const struct run *r, bool large);
bool is_spare(const struct run *r, unsigned file);
bool valid_header(const struct run *r, unsigned file);

/* recover.c */
bool start_step(struct run *r);

struct found { /* what a start has found in the log, and what readers of it would see */
    uint8_t visible[VISIBLE], visible_count;
    uint8_t next_sequence[TOPICS], last_number[TOPICS];
    uint8_t topics, producers;
    struct {
        struct frame frame;
        uint8_t attempt, segment;
    } chunks[VISIBLE];
    uint8_t chunk_count;
};

/* ledger.c */
bool found_group(struct run *r, struct found *found, const struct value *group, const struct value *body,
                 bool reader);
bool ledger_served(struct run *r, const struct found *found);
bool ledger_committed(struct run *r, const struct group_plan *plan);
bool ledger_flushed(struct run *r);
bool ledger_accepted(struct run *r, unsigned topic, unsigned sequence, unsigned uid);
bool ledger_duplicate(struct run *r, unsigned name);
bool ledger_failed(struct run *r, unsigned uid);

/* search.c */
struct options {
    const struct program *program;
    unsigned faults, crashes;
    uint64_t limit; /* states; 0: none */
    bool dropped[RULE_COUNT];
    FILE *words; /* where the trace of a violation goes; NULL: nowhere */
};

struct result {
    uint64_t states, runs;
    uint32_t values;
    bool complete;
    const char *violation; /* NULL: none */
    unsigned used;         /* faults and crashes of the shortest trace */
};

void search(const struct options *options, struct result *result);
