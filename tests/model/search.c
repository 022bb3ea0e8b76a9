/* search.c: every state that a program can reach within a budget of faults and crashes.
 *
 *   1. States wait in one queue for each number of faults and crashes used; the lowest is served first, in
 *      order of arrival: so the first violation found has the fewest of them, and then the fewest steps.
 *   2. A state's macro step runs once for every sequence of choices (depth first, the last choice counts up).
 *   3. What it leads to is new if no equal state, budget apart, was reached with at least as large a budget.
 *   4. Each new state keeps its parent and the choices that led to it: a trace is told by running them again.
 *
 * Invariant: everything that decides the future is in struct state, so equal bytes have equal futures. */
#include "model.h"

#include "../../shared/base.h"

#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

enum {
    WORDS = (sizeof(struct state) + 7) / 8,
    MAP = (WORDS + 63) / 64,
    CHUNK = 1 << 20,
    COSTS = 8,
    BUDGETS = 4
};

struct node {
    uint32_t parent;
    uint32_t path; /* where its choices lie; the length comes first */
};

struct chunk {
    struct chunk *next;
    size_t used, at; /* in words */
    uint64_t words[CHUNK / 8];
};

struct queue {
    struct chunk *first, *last;
};

struct seen {
    uint64_t high;
    uint64_t low; /* its lowest 16 bits: the budgets it was reached with */
};

struct search {
    const struct options *options;
    struct values *values;
    struct queue queues[COSTS];
    struct node *nodes;
    size_t node_count, node_room;
    uint8_t *paths;
    size_t path_bytes, path_room;
    struct seen *seen;
    size_t seen_room;
    uint64_t runs;
};

/* -------------------------------------------------------------------------------------- where it begins */

/* Groups of an earlier life, with the very numbers and the digest that the second group will have: but
 * another nonce and salt. */
static void fill_with_old_groups(struct state *s, struct values *values, const struct program *program)
{
    struct value g;
    memset(&g, 0, sizeof g);
    g.kind = VALUE_GROUP;
    g.epoch = g.length = g.frame_count = g.topics = 1;
    g.frames[0] = (struct frame){.kind = FRAME_BATCH, .sequence = 1};
    g.number = g.segment = g.at = 1;
    g.nonce = 1;
    g.digest = value_digest(values, value_intern(values, &g));
    g.frames[0].name = NAMES - 1;
    g.frames[0].sequence = 2;
    g.topics = 0;
    g.nonce = 2;
    for (unsigned f = 1; f <= program->large; f++)
        for (unsigned at = 1; at < program->length; at++) {
            g.number = u8(1 + at);
            g.segment = u8(1 + f);
            g.at = u8(at);
            set_settled(&s->files[f].blocks[at], value_intern(values, &g));
        }
}

static void begin_with_store(struct state *s, struct values *values, const struct program *program)
{
    struct value header;
    memset(&header, 0, sizeof header);
    header.kind = VALUE_HEADER;
    header.epoch = header.nonce = header.number = header.group = 1;
    for (unsigned f = 0; f < 1u + program->large + program->header_only; f++) {
        s->files[f].length = f <= program->large ? program->length : 1;
        set_settled(&s->files[f].entry, 1);
    }
    set_settled(&s->files[0].blocks[0], value_intern(values, &header));
    s->files[0].committed = 1;
    if (program->recycled)
        fill_with_old_groups(s, values, program);
    struct broker *b = &s->broker;
    b->epoch = b->nonce = b->next_group = 1;
    b->segments[0] = (struct place){1, 0, 1};
    b->segment_count = 1;
    memset(b->next_sequence, 1, sizeof b->next_sequence);
    memset(b->next_assign, 1, sizeof b->next_assign);
    s->ledger.served_epoch = 1;
    s->mode = MODE_RUN;
}

static void initial(struct run *r, const struct options *options, struct values *values)
{
    memset(r, 0, sizeof *r);
    r->values = values;
    r->program = options->program;
    r->dropped = options->dropped;
    r->s.mode = MODE_START;
    if (!options->program->empty)
        begin_with_store(&r->s, values, options->program);
    r->s.faults = u8(options->faults);
    r->s.crashes = u8(options->crashes);
}

static void step(struct run *r)
{
    r->choices.at = 0;
    r->violation = NULL;
    if (r->s.mode == MODE_POWER)
        power_cut(r);
    else if (r->s.mode == MODE_START)
        (void)start_step(r);
    else
        (void)run_step(r);
}

/* -------------------------------------------------------------------------------- queues of packed states */

static void push(struct search *search, unsigned cost, uint32_t node, const struct state *s)
{
    uint64_t words[WORDS] = {0}, map[MAP] = {0};
    memcpy(words, s, sizeof *s);
    struct queue *q = &search->queues[cost];
    if (q->last == NULL || q->last->used + 1 + MAP + WORDS > array_count(q->last->words)) {
        struct chunk *chunk = malloc(sizeof *chunk);
        check_bug(chunk != NULL);
        chunk->next = NULL;
        chunk->used = chunk->at = 0;
        *(q->last != NULL ? &q->last->next : &q->first) = chunk;
        q->last = chunk;
    }
    uint64_t *out = &q->last->words[q->last->used];
    *out++ = node;
    uint64_t *map_at = out;
    out += MAP;
    for (unsigned i = 0; i < WORDS; i++)
        if (words[i] != 0) {
            map[i / 64] |= UINT64_C(1) << (i % 64);
            *out++ = words[i];
        }
    memcpy(map_at, map, sizeof map);
    q->last->used = (size_t)(out - q->last->words);
}

static bool pop(struct search *search, unsigned *cost, uint32_t *node, struct state *s)
{
    for (*cost = 0; *cost < COSTS; ++*cost) {
        struct queue *q = &search->queues[*cost];
        while (q->first != NULL && q->first->at == q->first->used && q->first != q->last) {
            struct chunk *done = q->first;
            q->first = done->next;
            free(done);
        }
        if (q->first == NULL || q->first->at == q->first->used)
            continue;
        const uint64_t *in = &q->first->words[q->first->at];
        uint64_t words[WORDS] = {0};
        *node = (uint32_t)*in++;
        const uint64_t *map = in;
        in += MAP;
        for (unsigned i = 0; i < WORDS; i++)
            if ((map[i / 64] & UINT64_C(1) << (i % 64)) != 0)
                words[i] = *in++;
        q->first->at = (size_t)(in - q->first->words);
        memcpy(s, words, sizeof *s);
        return true;
    }
    return false;
}

/* ------------------------------------------------------------------------------------------- seen before */

static struct seen *seen_slot(struct seen *table, size_t room, uint64_t high, uint64_t low)
{
    size_t at = high & (room - 1);
    while ((table[at].high | table[at].low) != 0 &&
           (table[at].high != high || table[at].low >> 16 != low >> 16))
        at = (at + 1) & (room - 1);
    return &table[at];
}

static void seen_grow(struct search *search)
{
    size_t room = search->seen_room == 0 ? 1 << 16 : search->seen_room * 2;
    struct seen *table = calloc(room, sizeof *table);
    check_bug(table != NULL);
    for (size_t i = 0; i < search->seen_room; i++)
        if ((search->seen[i].high | search->seen[i].low) != 0)
            *seen_slot(table, room, search->seen[i].high, search->seen[i].low) = search->seen[i];
    free(search->seen);
    search->seen = table;
    search->seen_room = room;
}

/* Budgets that are at least as large as this one. */
static uint64_t larger_budgets(unsigned faults, unsigned crashes)
{
    uint64_t mask = 0;
    for (unsigned f = faults; f < BUDGETS; f++)
        for (unsigned c = crashes; c < BUDGETS; c++)
            mask |= UINT64_C(1) << (f * BUDGETS + c);
    return mask;
}

static bool is_new(struct search *search, const struct state *state)
{
    if (search->node_count * 2 >= search->seen_room)
        seen_grow(search);
    struct state s;
    memcpy(&s, state, sizeof s);
    s.faults = s.crashes = 0;
    XXH128_hash_t hash = XXH3_128bits(&s, sizeof s);
    uint64_t low = hash.low64 & ~UINT64_C(0xffff);
    struct seen *slot = seen_slot(search->seen, search->seen_room, hash.high64, low);
    if ((slot->low & larger_budgets(state->faults, state->crashes)) != 0)
        return false;
    slot->high = hash.high64;
    slot->low |= low | UINT64_C(1) << (state->faults * BUDGETS + state->crashes);
    return true;
}

/* -------------------------------------------------------------------------------------------------- trace */

static uint32_t note_node(struct search *search, uint32_t parent, const struct choices *choices)
{
    if (search->node_count == search->node_room) {
        search->node_room = search->node_room == 0 ? 1 << 14 : search->node_room * 2;
        search->nodes = realloc(search->nodes, search->node_room * sizeof *search->nodes);
        check_bug(search->nodes != NULL && search->node_room <= UINT32_MAX);
    }
    if (search->path_bytes + CHOICES + 1 > search->path_room) {
        search->path_room = search->path_room == 0 ? 1 << 18 : search->path_room * 2;
        search->paths = realloc(search->paths, search->path_room);
        check_bug(search->paths != NULL && search->path_room <= UINT32_MAX);
    }
    search->nodes[search->node_count] = (struct node){parent, (uint32_t)search->path_bytes};
    search->paths[search->path_bytes++] = u8(choices->at);
    memcpy(search->paths + search->path_bytes, choices->taken, choices->at);
    search->path_bytes += choices->at;
    return (uint32_t)search->node_count++;
}

static void take_path(const struct search *search, struct run *r, uint32_t node)
{
    const uint8_t *path = search->paths + search->nodes[node].path;
    memset(&r->choices, 0, sizeof r->choices);
    r->choices.count = path[0];
    memcpy(r->choices.taken, path + 1, path[0]);
    step(r);
}

static void tell(const struct search *search, uint32_t node)
{
    size_t depth = 0;
    for (uint32_t n = node; n != 0; n = search->nodes[n].parent)
        depth++;
    uint32_t *line = calloc(depth + 1, sizeof *line);
    check_bug(line != NULL);
    for (uint32_t n = node, at = (uint32_t)depth; n != 0; n = search->nodes[n].parent)
        line[--at] = n;
    struct run r;
    initial(&r, search->options, search->values);
    r.words = search->options->words;
    for (size_t i = 0; i < depth; i++)
        take_path(search, &r, line[i]);
    free(line);
}

/* ------------------------------------------------------------------------------------------------- search */

static bool next_choices(struct choices *c)
{
    c->count = c->at;
    while (c->count > 0 && c->taken[c->count - 1] + 1 == c->of[c->count - 1])
        c->count--;
    if (c->count == 0)
        return false;
    c->taken[c->count - 1]++;
    return true;
}

/* Every way on from one state; the violation if there is one. */
static const char *expand(struct search *search, uint32_t node, unsigned cost, const struct state *from)
{
    const struct options *o = search->options;
    struct run r;
    initial(&r, o, search->values);
    do {
        memcpy(&r.s, from, sizeof r.s);
        step(&r);
        search->runs++;
        if (r.violation != NULL) {
            uint32_t last = note_node(search, node, &r.choices);
            if (o->words != NULL)
                tell(search, last);
            return r.violation;
        }
        if (r.s.mode == MODE_END || !is_new(search, &r.s))
            continue;
        unsigned used = r.s.end_phase > 0 ? cost : o->faults + o->crashes - r.s.faults - r.s.crashes;
        push(search, used, note_node(search, node, &r.choices), &r.s);
    } while (next_choices(&r.choices));
    return NULL;
}

void search(const struct options *options, struct result *result)
{
    struct search search = {.options = options, .values = values_new()};
    struct run r;
    struct state s;
    unsigned cost = 0;
    uint32_t node;
    check_bug(options->faults < BUDGETS && options->crashes < BUDGETS);
    *result = (struct result){0};
    initial(&r, options, search.values);
    note_node(&search, 0, &r.choices);
    (void)is_new(&search, &r.s);
    push(&search, 0, 0, &r.s);
    while (result->violation == NULL && (options->limit == 0 || search.node_count < options->limit) &&
           pop(&search, &cost, &node, &s))
        result->violation = expand(&search, node, cost, &s);
    result->complete = result->violation == NULL && !pop(&search, &cost, &node, &s);
    result->states = search.node_count;
    result->runs = search.runs;
    result->values = values_count(search.values);
    result->used = cost;
    for (unsigned i = 0; i < COSTS; i++)
        while (search.queues[i].first != NULL) {
            struct chunk *chunk = search.queues[i].first;
            search.queues[i].first = chunk->next;
            free(chunk);
        }
    free(search.nodes);
    free(search.paths);
    free(search.seen);
    values_free(search.values);
}
