/* recover.c: a start, step by step as broker/log/recover.c does it; the numbers are those of its comment.
 *
 *   1. checkpoints  2. lock, flush, read headers  3. chain  4. walk  5. tail or damage  6. what to copy
 *   7. void headers  8. copies, flush; header, flush: the decision. Then tidy, and serve.
 *
 * Each I/O may be cut off by a crash, and may fail: then this start is refused and the next one decides. A
 * start that met no fault must serve: nothing here damages what was flushed, so each refusal that the code
 * can give is a violation. */
#include "model.h"

#include "../../shared/base.h"

#include <string.h>

struct link {
    const struct value *header;
    uint8_t file, end; /* end: where the next one says it ends; 0: the newest */
};

struct placed { /* a walked group that may have to be copied */
    value_id id;
    uint8_t link, number, at;
    value_id before; /* digest */
};

struct walk {
    struct run *r;
    const struct value *checkpoint;
    struct link chain[SEGMENTS];
    unsigned chain_count;
    bool closed[FILES];
    unsigned next_group, known, need, epoch, counter;
    value_id digest;
    struct placed placed[VISIBLE];
    unsigned placed_count;
    unsigned tail;
    struct found found;    /* by the whole log */
    struct found restored; /* by the checkpoint and what lies behind it */
};

static bool refused_start(struct run *r)
{
    return end_life(r, "the start is refused; the next one decides");
}

static void must_reach(struct walk *w, unsigned group)
{
    w->need = group > w->need ? group : w->need;
}

/* --------------------------------------------------------------------------------------- 1. checkpoints */

static void choose_checkpoint(struct walk *w)
{
    struct run *r = w->r;
    for (unsigned i = 0; i < 2; i++) {
        const struct value *c = value_get(r->values, r->s.checkpoint[i].current);
        if (c == NULL)
            continue;
        must_reach(w, c->group);
        if (w->checkpoint == NULL || c->number > w->checkpoint->number)
            w->checkpoint = c;
    }
    const struct value *c = w->checkpoint;
    if (c == NULL)
        return;
    w->counter = c->number;
    w->restored.topics = c->topics;
    w->restored.producers = c->producers;
    memcpy(w->restored.next_sequence, c->next_sequence, sizeof c->next_sequence);
    memcpy(w->restored.last_number, c->last_number, sizeof c->last_number);
    for (unsigned i = 0; i < c->closed_count; i++)
        w->closed[c->closed[i].file] = true;
}

/* ------------------------------------------------------------------------------------ 2. and 3. the chain */

static bool open_files(struct walk *w)
{
    struct run *r = w->r;
    bool failed;
    if (fault(r, "a read fails"))
        return refused_start(r);
    for (unsigned f = 0; f < FILES && keeps(r, RULE_FLUSH_AT_START); f++) {
        if (!file_there(r, f) || w->closed[f])
            continue;
        if (!flush_file(r, f, "what the dead broker left", &failed))
            return false;
        if (failed)
            return refused_start(r);
    }
    if (keeps(r, RULE_FLUSH_AT_START) && !sync_folder(r, &failed))
        return false;
    if (keeps(r, RULE_FLUSH_AT_START) && failed)
        return refused_start(r);
    for (unsigned f = 0; f < FILES; f++)
        if (file_there(r, f) && !w->closed[f] && valid_header(r, f) &&
            current_value(r, f, 0)->epoch > w->epoch)
            w->epoch = current_value(r, f, 0)->epoch;
    if (w->checkpoint != NULL && w->checkpoint->epoch > w->epoch)
        w->epoch = w->checkpoint->epoch;
    return true;
}

/* Of two headers with one number the higher epoch counts. */
static bool find_number(struct walk *w, unsigned number, unsigned *file)
{
    const struct value *best = NULL;
    *file = FILES;
    for (unsigned f = 0; f < FILES; f++) {
        if (!file_there(w->r, f) || w->closed[f] || !valid_header(w->r, f))
            continue;
        const struct value *h = current_value(w->r, f, 0);
        if (h->number != number)
            continue;
        if (best != NULL && best->epoch == h->epoch)
            return violated(w->r, "REFUSED: two headers with one number and epoch");
        if (best == NULL || h->epoch > best->epoch) {
            best = h;
            *file = f;
        }
    }
    return true;
}

static bool build_chain(struct walk *w)
{
    struct run *r = w->r;
    unsigned highest = 0, end = 0, stop = w->checkpoint != NULL ? w->checkpoint->segment : 0;
    for (unsigned f = 0; f < FILES; f++)
        if (file_there(r, f) && !w->closed[f] && valid_header(r, f) &&
            current_value(r, f, 0)->number > highest)
            highest = current_value(r, f, 0)->number;
    struct link backwards[SEGMENTS] = {{.header = NULL}};
    for (unsigned number = highest; number != 0;) {
        unsigned f;
        if (!find_number(w, number, &f))
            return false;
        if (f == FILES)
            return violated(r, "REFUSED: a segment of the chain is missing");
        check_bug(w->chain_count < SEGMENTS);
        const struct value *h = current_value(r, f, 0);
        backwards[w->chain_count++] = (struct link){h, u8(f), u8(end)};
        end = h->at;
        number = number == stop ? 0 : h->segment;
    }
    for (unsigned i = 0; i < w->chain_count; i++)
        w->chain[i] = backwards[w->chain_count - 1 - i];
    if (stop != 0 && (w->chain_count == 0 || w->chain[0].header->number != stop))
        return violated(r, "REFUSED: the segment that a checkpoint names is not in the log any more");
    if (w->chain_count == 0 && w->need > 0)
        return violated(r, "REFUSED: a checkpoint is there, but no segment");
    return true;
}

/* ------------------------------------------------------------------------------------- 4. and 5. walking */

static bool header_counts(const struct run *r, const struct value *h, const struct value *g, unsigned at,
                          unsigned limit)
{
    if (g == NULL || g->kind != VALUE_GROUP || at + g->length > limit)
        return false;
    return !keeps(r, RULE_IDENTITY) ||
           (g->segment == h->number && g->epoch == h->epoch && g->nonce == h->nonce && g->at == at);
}

/* The body, or NULL. A group of one block holds its own. */
static const struct value *group_body(const struct run *r, unsigned file, const struct value *g, unsigned at)
{
    if (g->length == 1)
        return g;
    const struct value *b = current_value(r, file, at + 1);
    bool fits = b != NULL && b->kind == VALUE_BODY && b->epoch == g->epoch && b->nonce == g->nonce &&
                b->segment == g->segment && b->frame_count == g->frame_count && b->topics == g->topics &&
                memcmp(b->frames, g->frames, sizeof b->frames) == 0;
    return fits ? b : NULL;
}

static const struct value *next_group(struct walk *w, const struct link *l, unsigned at,
                                      const struct value **body)
{
    struct run *r = w->r;
    unsigned length = r->s.files[l->file].length, limit = l->end != 0 ? l->end : length;
    if (at >= length)
        return NULL;
    const struct value *g = current_value(r, l->file, at);
    if (!header_counts(r, l->header, g, at, limit) || g->number != w->next_group ||
        (keeps(r, RULE_DIGEST) && g->digest != w->digest))
        return NULL;
    *body = group_body(r, l->file, g, at);
    return *body != NULL ? g : NULL;
}

/* A valid header behind the tail says what was flushed before it. */
static void look_behind(struct walk *w, const struct link *l)
{
    unsigned length = w->r->s.files[l->file].length;
    for (unsigned at = w->tail + 1; at < length; at++) {
        const struct value *g = current_value(w->r, l->file, at);
        if (header_counts(w->r, l->header, g, at, length) && keeps(w->r, RULE_IDENTITY))
            must_reach(w, g->durable_upto);
    }
}

static bool walk_segment(struct walk *w, unsigned index, unsigned at)
{
    struct run *r = w->r;
    const struct link *l = &w->chain[index];
    for (;;) {
        if (l->end != 0 && at == l->end)
            return true;
        const struct value *body, *g = next_group(w, l, at, &body);
        if (g == NULL && l->end != 0)
            return violated(r, "REFUSED: a segment is damaged before the end that its successor names");
        if (g == NULL) {
            w->tail = at;
            look_behind(w, l);
            return true;
        }
        if (g->durable_upto < w->known && g->durable_upto + 1 < l->header->group)
            return violated(r, "REFUSED: the count of flushed groups falls");
        check_bug(w->placed_count < VISIBLE);
        value_id id = r->s.files[l->file].blocks[at].current;
        w->placed[w->placed_count++] = (struct placed){id, u8(index), u8(w->next_group), u8(at), w->digest};
        if (!found_group(r, &w->found, g, body, true) || !found_group(r, &w->restored, g, body, false))
            return false;
        w->known = g->durable_upto > w->known ? g->durable_upto : w->known;
        w->digest = value_digest(r->values, id);
        w->next_group++;
        at += g->length;
    }
}

/* Groups that the checkpoint stands for: no start reads them, readers do. */
static bool read_closed(struct walk *w, unsigned file, unsigned end)
{
    struct run *r = w->r;
    const struct value *h = current_value(r, file, 0);
    for (unsigned at = 1; at < end;) {
        const struct value *g = current_value(r, file, at);
        const struct value *body =
            h != NULL && header_counts(r, h, g, at, end) ? group_body(r, file, g, at) : NULL;
        if (body == NULL)
            return violated(r, "G1: a closed segment is damaged");
        if (!found_group(r, &w->found, g, body, true))
            return false;
        at += g->length;
    }
    return true;
}

static bool begin_at_checkpoint(struct walk *w)
{
    const struct value *c = w->checkpoint;
    for (unsigned i = 0; i < c->closed_count; i++) {
        if (!file_there(w->r, c->closed[i].file))
            return violated(w->r, "REFUSED: a closed segment is missing");
        if (!read_closed(w, c->closed[i].file, c->closed[i].end))
            return false;
    }
    if (w->chain[0].end != 0 && c->at > w->chain[0].end)
        return violated(w->r, "REFUSED: a checkpoint names a place that the segment does not have");
    if (!read_closed(w, w->chain[0].file, c->at))
        return false;
    w->next_group = c->group + 1u;
    w->digest = c->digest;
    w->known = c->group;
    return true;
}

static bool walk_chain(struct walk *w)
{
    struct run *r = w->r;
    for (unsigned i = 0; i < w->chain_count; i++) {
        const struct value *h = w->chain[i].header;
        bool at_checkpoint = i == 0 && w->checkpoint != NULL;
        if (at_checkpoint) {
            if (!begin_at_checkpoint(w))
                return false;
        } else if (i == 0) {
            if (h->segment != 0 || h->group != 1)
                return violated(r, "REFUSED: the segment before the first one is missing");
        } else if (h->group != w->next_group || (keeps(r, RULE_DIGEST) && h->digest != w->digest)) {
            return violated(r, "REFUSED: a header does not continue the segment before it");
        }
        if (!at_checkpoint) {
            w->known = h->group - 1u > w->known ? h->group - 1u : w->known;
            must_reach(w, h->durable_upto);
        }
        if (!walk_segment(w, i, at_checkpoint ? w->checkpoint->at : 1))
            return false;
    }
    must_reach(w, w->known);
    if (w->chain_count > 0 && w->need >= w->next_group)
        return violated(r, "REFUSED: a group was flushed and is not there");
    return true;
}

/* Segments whose header has rotted: what lies behind it says that more was flushed than the chain has. */
static bool lost_headers(struct walk *w)
{
    struct run *r = w->r;
    for (unsigned f = 0; f < FILES; f++) {
        if (!file_there(r, f) || w->closed[f] || valid_header(r, f))
            continue;
        for (unsigned at = 1; at < r->s.files[f].length;) {
            const struct value *g = current_value(r, f, at);
            if (g == NULL || g->kind != VALUE_GROUP || g->at != at)
                break;
            if ((keeps(r, RULE_EVIDENCE) ? g->durable_upto : g->number) >= w->next_group)
                return violated(r, "REFUSED: a header is damaged, and a committed group lies behind it");
            at += g->length;
        }
    }
    return true;
}

/* ---------------------------------------------------------------------------------------- 7. void headers */

static bool void_blanks(struct walk *w)
{
    struct run *r = w->r;
    static const value_id blank = 0;
    for (unsigned f = 0; f < FILES && keeps(r, RULE_VOID); f++) {
        if (!file_there(r, f) || w->closed[f] || valid_header(r, f) || r->s.files[f].blocks[0].count == 0)
            continue; /* a header block that is blank for good stays what it is */
        bool failed;
        if (!write_blocks(r, f, 0, &blank, 1, "void", &failed))
            return false;
        if (failed || !flush_file(r, f, "the void header", &failed))
            return failed ? refused_start(r) : false;
        if (failed)
            return refused_start(r);
    }
    return true;
}

static bool in_chain(const struct walk *w, unsigned file, unsigned keep)
{
    for (unsigned i = 0; i < keep; i++)
        if (w->chain[i].file == file)
            return true;
    return w->closed[file];
}

/* A large file of the pool, else a new one; on a full disk a header-only one, if nothing is to be copied. */
static bool take_file(struct walk *w, unsigned keep, bool copies, unsigned *file)
{
    struct run *r = w->r;
    for (unsigned f = 0; f < FILES; f++) {
        bool usable = keeps(r, RULE_REUSE) ? !valid_header(r, f) : !in_chain(w, f, keep);
        if (file_there(r, f) && !w->closed[f] && usable && r->s.files[f].length > 1) {
            *file = f;
            return true;
        }
    }
    for (unsigned f = 0; f < FILES && r->program->full && !copies; f++)
        if (file_there(r, f) && !w->closed[f] && !valid_header(r, f) && choose(r, 2) == 1) {
            *file = f;
            return true;
        }
    bool failed;
    if (!make_file(r, file, &failed))
        return false;
    return failed ? refused_start(r) : true;
}

/* -------------------------------------------------------------------------------------- 8. the decision */

struct decision {
    struct value header;
    unsigned first, keep, file, end; /* first: of the groups to copy; end: of the new segment */
    value_id digest;
};

/* 6. What is copied, what is bypassed. */
static void decide(struct walk *w, struct decision *d)
{
    struct run *r = w->r;
    struct value *h = &d->header;
    memset(d, 0, sizeof *d);
    while (d->first < w->placed_count && (w->placed[d->first].number <= w->known || !keeps(r, RULE_COPY)))
        d->first++;
    bool copies = d->first < w->placed_count;
    const struct placed *p = &w->placed[d->first];
    unsigned end = copies ? p->at : w->tail;
    const struct link *last = w->chain_count > 0 ? &w->chain[w->chain_count - 1] : NULL;
    d->keep = w->chain_count;
    h->kind = VALUE_HEADER;
    h->number = last != NULL ? u8(last->header->number + 1u) : 1;
    h->group = u8(copies ? p->number : w->next_group);
    h->digest = copies ? p->before : w->digest;
    bool bypass = last != NULL && end <= 1 && keeps(r, RULE_BYPASS) &&
                  (w->chain_count > 1 || w->checkpoint != NULL || keeps(r, RULE_BYPASS_FIRST));
    if (bypass) {
        d->keep--;
        h->segment = last->header->segment;
        end = last->header->at;
    } else if (last != NULL) {
        h->segment = last->header->number;
    }
    h->at = last != NULL ? u8(end) : 0;
    h->durable_upto = u8(w->next_group - 1u);
    h->epoch = u8(w->epoch + keeps(r, RULE_COUNTER));
    h->nonce = keeps(r, RULE_NONCE) ? fresh_nonce(r) : 1;
    d->digest = h->digest;
    say(r,
        "  decision: %u groups in the log, %u proved; segment %u, epoch %u.%u, behind segment %u, block %u",
        w->next_group - 1, w->known, h->number, h->epoch, h->nonce, h->segment, h->at);
}

static bool copy_groups(struct walk *w, struct decision *d)
{
    struct run *r = w->r;
    bool failed;
    if (d->first < w->placed_count && fault(r, "a read fails"))
        return refused_start(r);
    d->end = 1;
    for (unsigned i = d->first; i < w->placed_count; i++) {
        struct value g = *value_get(r->values, w->placed[i].id);
        g.epoch = d->header.epoch;
        g.nonce = d->header.nonce;
        g.segment = d->header.number;
        g.at = u8(d->end);
        g.durable_upto = u8(w->known);
        g.digest = d->digest;
        value_id values[2] = {value_intern(r->values, &g), 0};
        d->digest = value_digest(r->values, values[0]);
        g.kind = VALUE_BODY;
        g.number = g.at = g.durable_upto = 0;
        g.digest = 0;
        memset(g.attempts, 0, sizeof g.attempts);
        values[1] = value_intern(r->values, &g);
        if (!write_blocks(r, d->file, d->end, values, g.length, "a copy", &failed))
            return false;
        if (failed)
            return refused_start(r);
        d->end += g.length;
    }
    return true;
}

static bool flush_or_refuse(struct run *r, unsigned file, const char *what)
{
    bool failed;
    if (!flush_file(r, file, what, &failed))
        return false;
    return failed ? refused_start(r) : true;
}

static bool write_decision(struct walk *w, struct decision *d)
{
    struct run *r = w->r;
    bool failed;
    value_id header = value_intern(r->values, &d->header);
    if (keeps(r, RULE_COPY_FIRST) && (!copy_groups(w, d) || !flush_or_refuse(r, d->file, "the copies")))
        return false;
    if (!write_blocks(r, d->file, 0, &header, 1, "the header that decides", &failed))
        return false;
    if (failed)
        return refused_start(r);
    if (!flush_or_refuse(r, d->file, "the header that decides"))
        return false;
    return keeps(r, RULE_COPY_FIRST) || (copy_groups(w, d) && flush_or_refuse(r, d->file, "the copies"));
}

/* ------------------------------------------------------------------------------------------------ serving */

static void mark_committed(struct run *r)
{
    const struct broker *b = &r->s.broker;
    for (unsigned f = 0; f < FILES; f++)
        r->s.files[f].committed = 0;
    for (unsigned i = 0; i < b->segment_count; i++)
        r->s.files[b->segments[i].file].committed = u8((1u << b->segments[i].end) - 1);
}

/* What is served is on the disk, every block of it. */
static bool decision_is_durable(struct run *r)
{
    for (unsigned f = 0; f < FILES; f++)
        for (unsigned i = 0; i < r->s.files[f].length; i++)
            if ((r->s.files[f].committed & 1u << i) != 0 && r->s.files[f].blocks[i].count > 0)
                return violated(r, "G12: a start serves what is not on the disk");
    return true;
}

static bool tidy(struct walk *w, unsigned keep, unsigned file)
{
    struct run *r = w->r;
    const struct broker *b = &r->s.broker;
    for (unsigned i = 0; i + 1 < b->segment_count && keeps(r, RULE_CUT); i++)
        if (!w->closed[b->segments[i].file])
            cut_behind(r, b->segments[i].file, b->segments[i].end);
    for (unsigned f = 0; f < FILES; f++)
        if (file_there(r, f) && !in_chain(w, f, keep) && f != file && valid_header(r, f) &&
            !set_entry(r, f, false))
            return false;
    return true;
}

static bool serve(struct walk *w, const struct decision *d)
{
    struct run *r = w->r;
    struct broker *b = &r->s.broker;
    const struct found *found = &w->restored;
    for (unsigned i = 0; w->checkpoint != NULL && i < w->checkpoint->closed_count; i++)
        b->segments[b->segment_count++] = w->checkpoint->closed[i];
    for (unsigned i = 0; i < d->keep; i++) {
        const struct link *l = &w->chain[i];
        check_bug(b->segment_count < SEGMENTS - 1);
        b->segments[b->segment_count++] =
            (struct place){l->header->number, l->file, i + 1 == d->keep ? d->header.at : l->end};
    }
    b->segments[b->segment_count++] = (struct place){d->header.number, u8(d->file), u8(d->end)};
    mark_committed(r);
    if (!decision_is_durable(r) || !tidy(w, d->keep, d->file))
        return false;
    b->epoch = d->header.epoch;
    b->nonce = d->header.nonce;
    b->next_group = u8(w->next_group);
    b->durable_upto = u8(w->next_group - 1u);
    b->digest = d->digest;
    b->topics = found->topics;
    b->producers = found->producers;
    memcpy(b->last_number, found->last_number, sizeof b->last_number);
    memcpy(b->next_sequence, found->next_sequence, sizeof b->next_sequence);
    memcpy(b->next_assign, found->next_sequence, sizeof b->next_assign);
    b->checkpoint_counter = u8(w->counter);
    b->checkpoint_wanted = r->program->checkpoints && w->placed_count > 0;
    late_writes_land(r);
    if (!ledger_served(r, &w->found))
        return false;
    r->s.mode = MODE_RUN;
    return true;
}

bool start_step(struct run *r)
{
    struct walk w = {.r = r, .next_group = 1};
    memset(w.found.next_sequence, 1, sizeof w.found.next_sequence);
    memset(w.restored.next_sequence, 1, sizeof w.restored.next_sequence);
    struct decision d;
    say(r, "start:");
    choose_checkpoint(&w);
    if (!open_files(&w) || !build_chain(&w) || !walk_chain(&w) || !lost_headers(&w))
        return false;
    if (w.found.topics != w.restored.topics || w.found.producers != w.restored.producers ||
        memcmp(w.found.next_sequence, w.restored.next_sequence, sizeof w.found.next_sequence) != 0 ||
        memcmp(w.found.last_number, w.restored.last_number, sizeof w.found.last_number) != 0)
        return violated(r, "G5, G7: a checkpoint tells something else than the log");
    decide(&w, &d);
    if (!keeps(r, RULE_CUT) && d.keep > 0) /* the end that is decided in a moment */
        cut_behind(r, w.chain[d.keep - 1].file, d.header.at);
    if (!void_blanks(&w) || !take_file(&w, d.keep, d.first < w.placed_count, &d.file) ||
        !write_decision(&w, &d))
        return false;
    return serve(&w, &d);
}
