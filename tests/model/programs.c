/* programs.c: what the clients do, each as a short list of groups, and the names of the rules. Batches are
 * letters; "a'" in a trace is a's second submission. */
#include "model.h"

#include <string.h>

#define DURABLE  LEVEL_DURABLE
#define WRITTEN  LEVEL_WRITTEN
#define ACCEPTED LEVEL_ACCEPTED

/* A group of two blocks (header and some frames; the rest), or of one. */
#define G2(...)                                                                                              \
    {                                                                                                        \
        OP_GROUP, 2,                                                                                         \
        {                                                                                                    \
            __VA_ARGS__                                                                                      \
        }                                                                                                    \
    }
#define G1(...)                                                                                              \
    {                                                                                                        \
        OP_GROUP, 1,                                                                                         \
        {                                                                                                    \
            __VA_ARGS__                                                                                      \
        }                                                                                                    \
    }
#define W(letter)                                                                                            \
    {                                                                                                        \
        letter, 0                                                                                            \
    }
#define C(letter, chunk)                                                                                     \
    {                                                                                                        \
        letter, chunk                                                                                        \
    }
#define CHECKPOINT                                                                                           \
    {                                                                                                        \
        OP_CHECKPOINT, 0,                                                                                    \
        {                                                                                                    \
            {                                                                                                \
                0, 0                                                                                         \
            }                                                                                                \
        }                                                                                                    \
    }
#define STOP                                                                                                 \
    {                                                                                                        \
        OP_STOP, 0,                                                                                          \
        {                                                                                                    \
            {                                                                                                \
                0, 0                                                                                         \
            }                                                                                                \
        }                                                                                                    \
    }

const struct program programs[] = {
    {.name = "three-groups",
     .about = "one topic, three groups, room for all of them",
     .levels = {DURABLE, DURABLE},
     .length = 7,
     .large = 2,
     .header_only = 1,
     .small = true,
     .ops = {G2(W('a')), G2(W('b')), G2(W('c'))}},
    {.name = "two-topics",
     .about = "two topics, groups of one and two blocks",
     .levels = {DURABLE, DURABLE},
     .length = 5,
     .large = 2,
     .header_only = 1,
     .batches = {[1] = {.topic = 1}, [3] = {.topic = 1}},
     .ops = {G2(W('a'), W('b')), G1(W('c')), G2(W('d'))}},
    {.name = "roll",
     .about = "one group of one block: a write fails, and fails again",
     .levels = {DURABLE, DURABLE},
     .length = 4,
     .large = 2,
     .header_only = 1,
     .small = true,
     .cuts = true,
     .ops = {G1(W('a')), G1(W('b'))}},
    {.name = "header-only",
     .about = "a full disk, with header-only spares to roll back into",
     .levels = {DURABLE, DURABLE},
     .length = 5,
     .large = 0,
     .header_only = 2,
     .small = true,
     .cuts = true,
     .full = true,
     .ops = {G2(W('a')), G1(W('b'))}},
    {.name = "no-spares",
     .about = "the first moments of a broker: a roll-back waits for its spare",
     .levels = {DURABLE, DURABLE},
     .length = 4,
     .large = 0,
     .header_only = 0,
     .small = true,
     .ops = {G2(W('a')), G1(W('b'))}},
    {.name = "change",
     .about = "a change of segment before each group, spares made on the way",
     .levels = {DURABLE, DURABLE},
     .length = 3,
     .large = 2,
     .header_only = 0,
     .ops = {G2(W('a')), G2(W('b')), G2(W('c'))}},
    {.name = "stream",
     .about = "a stream over two groups, other batches beside it",
     .levels = {DURABLE, DURABLE},
     .length = 5,
     .large = 2,
     .header_only = 1,
     .batches = {[1] = {.topic = 1, .chunks = 2}},
     .ops = {G1(C('b', 0)), G1(W('a')), G1(C('b', 1))}},
    {.name = "numbered-stream",
     .about = "a numbered stream, chunks of several blocks, a number behind it",
     .levels = {DURABLE, DURABLE},
     .length = 5,
     .large = 2,
     .header_only = 1,
     .batches = {[0] = {.number = 1, .chunks = 2}, [1] = {.number = 2}},
     .ops = {G2(C('a', 0)), G1(C('a', 1)), G1(W('b'))}},
    {.name = "checkpoint",
     .about = "checkpoints between groups, and a change of segment",
     .levels = {DURABLE, DURABLE},
     .length = 3,
     .large = 2,
     .header_only = 1,
     .ops = {G2(W('a')), CHECKPOINT, G1(W('b')), G1(W('c')), CHECKPOINT, G1(W('d'))}},
    {.name = "checkpoint-starts",
     .about = "numbered batches, and a checkpoint after each start",
     .levels = {DURABLE, DURABLE},
     .length = 4,
     .large = 2,
     .header_only = 1,
     .checkpoints = true,
     .batches = {[0] = {.number = 1}, [1] = {.number = 2}},
     .ops = {G1(W('a')), G1(W('b'))}},
    {.name = "stream-checkpoint",
     .about = "a checkpoint between the chunks of a stream",
     .levels = {DURABLE, DURABLE},
     .length = 5,
     .large = 2,
     .header_only = 1,
     .checkpoints = true,
     .batches = {[1] = {.topic = 1, .chunks = 2}},
     .ops = {G1(C('b', 0), W('a')), CHECKPOINT, G1(C('b', 1))}},
    {.name = "clean-stop",
     .about = "clean stop and start between groups, with numbers",
     .levels = {DURABLE, DURABLE},
     .length = 4,
     .large = 2,
     .header_only = 1,
     .batches = {[0] = {.number = 1}, [1] = {.number = 2}},
     .cuts = true,
     .checkpoints = true,
     .ops = {G1(W('a')), STOP, G1(W('b')), STOP}},
    {.name = "written",
     .about = "answers at written before the flush, a change of segment, then a durable one",
     .levels = {WRITTEN, DURABLE},
     .length = 3,
     .large = 2,
     .header_only = 1,
     .batches = {[3] = {.topic = 1}},
     .ops = {G1(W('a')), G1(W('b')), G1(W('c')), G1(W('d'))}},
    {.name = "written-checkpoint",
     .about = "answers at written, and a checkpoint that waits for the flush",
     .levels = {WRITTEN, WRITTEN},
     .length = 4,
     .large = 2,
     .header_only = 1,
     .ops = {G1(W('a')), CHECKPOINT, G1(W('b')), G1(W('c'))}},
    {.name = "accepted",
     .about = "answers at accepted, before the group is sealed",
     .levels = {ACCEPTED, DURABLE},
     .length = 4,
     .large = 2,
     .header_only = 1,
     .batches = {[2] = {.topic = 1}},
     .cuts = true,
     .ops = {G1(W('a')), G1(W('b'), W('c'))}},
    {.name = "numbers",
     .about = "numbered batches, two in one group; what is unknown is submitted again",
     .levels = {DURABLE, DURABLE},
     .length = 4,
     .large = 2,
     .header_only = 1,
     .small = true,
     .batches = {[0] = {.number = 1}, [1] = {.number = 2}, [2] = {.number = 3}},
     .cuts = true,
     .ops = {G1(W('a')), G2(W('b'), W('c'))}},
    {.name = "same-boot",
     .about = "two groups; a flush fails, and another start in the same boot",
     .levels = {DURABLE, DURABLE},
     .length = 5,
     .large = 2,
     .header_only = 1,
     .small = true,
     .cuts = true,
     .ops = {G2(W('a')), G2(W('b'))}},
    {.name = "recycled",
     .about = "spares that hold groups of an earlier life",
     .levels = {DURABLE, DURABLE},
     .length = 3,
     .large = 2,
     .header_only = 1,
     .recycled = true,
     .ops = {G1(W('a')), G2(W('b')), G1(W('c'))}},
    {.name = "mmap",
     .about = "a back end whose failed write leaves nothing known: it ends the broker",
     .levels = {DURABLE, DURABLE},
     .length = 5,
     .large = 2,
     .header_only = 1,
     .final_errors = true,
     .ops = {G2(W('a')), G2(W('b'))}},
    {.name = "empty-folder",
     .about = "the first start of all, then one group",
     .levels = {DURABLE, DURABLE},
     .length = 3,
     .empty = true,
     .small = true,
     .cuts = true,
     .ops = {G2(W('a'))}},
};

const size_t program_count = sizeof programs / sizeof programs[0];

const struct program *program_find(const char *name)
{
    for (size_t i = 0; i < program_count; i++)
        if (strcmp(programs[i].name, name) == 0)
            return &programs[i];
    return NULL;
}

unsigned program_ops(const struct program *program)
{
    unsigned n = 0;
    while (n < OPS && program->ops[n].kind != 0)
        n++;
    return n;
}

const char *const rule_names[RULE_COUNT] = {
#define X(id, name, words) [RULE_##id] = (name),
    RULES(X)
#undef X
};

const char *const rule_words[RULE_COUNT] = {
#define X(id, name, words) [RULE_##id] = (words),
    RULES(X)
#undef X
};

const struct variant variants[RULE_COUNT] = {
    [RULE_FLUSH_BEFORE_HEADER] = {"written", 1, 1},
    [RULE_COPY] = {"roll", 1, 1},
    [RULE_COPY_FIRST] = {"roll", 1, 1},
    [RULE_NONCE] = {"written-checkpoint", 1, 1},
    [RULE_COUNTER] = {"clean-stop", 0, 1},
    [RULE_IDENTITY] = {"recycled", 0, 1},
    [RULE_DIGEST] = {NULL, 2, 2},
    [RULE_ANSWER_LATE] = {"roll", 0, 1},
    [RULE_FLUSH_FINAL] = {"roll", 1, 1},
    [RULE_VOID] = {"empty-folder", 2, 2},
    [RULE_REUSE] = {"roll", 0, 1},
    [RULE_BYPASS] = {"two-topics", 1, 1},
    [RULE_BYPASS_FIRST] = {"empty-folder", 1, 1},
    [RULE_FLUSH_AT_START] = {"empty-folder", 0, 2},
    [RULE_LOCK] = {"two-topics", 0, 2},
    [RULE_CUT] = {"roll", 1, 1},
    [RULE_FOLDER_SYNC] = {"change", 0, 1},
    [RULE_ROLL] = {"roll", 1, 1},
    [RULE_ROLL_DURABLE] = {"header-only", 1, 1},
    [RULE_ROLL_WRITTEN] = {"roll", 1, 1},
    [RULE_HEADER_CHECKED] = {"two-topics", 1, 1},
    [RULE_CHECKPOINT_DURABLE] = {"written-checkpoint", 1, 1},
    [RULE_CHECKPOINT_PLACE] = {"clean-stop", 1, 1},
    [RULE_UPTO] = {"accepted", 1, 1},
    [RULE_EVIDENCE] = {"roll", 1, 1},
    [RULE_STREAM_NAMES] = {"stream", 1, 1},
    [RULE_STREAM_FAILS] = {"numbered-stream", 2, 0},
    [RULE_DUPLICATE] = {"numbers", 1, 1},
    [RULE_ORDER] = {"numbers", 2, 0},
    [RULE_CATALOGUE] = {"roll", 2, 0},
    [RULE_BURN] = {"accepted", 2, 0},
};
