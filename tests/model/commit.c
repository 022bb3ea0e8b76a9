/* commit.c: one group made durable, a change of segment, a roll-back, a checkpoint: broker/log/commit.c,
 * pool.c and checkpoint.c as they are built, each I/O one step.
 *
 *   group:   write -> flush if anything in it is answered at durable -> answers
 *   does not fit: change: flush what is unflushed -> header of a spare -> flush -> write there
 *   write failed: the same change from the group's start, then the group again, once; then once more, and its
 *            batches are answered as failed
 *   no spare for the roll-back: it waits for the pool; header or flush failed, no spare to be had: the broker
 *            ends, nothing is answered
 *   checkpoint: everything flushed -> taken -> (in the background: new file, flush) rename -> folder flush */
#include "model.h"

#include "../../shared/base.h"

#include <string.h>

static struct place *current_segment(struct run *r)
{
    return &r->s.broker.segments[r->s.broker.segment_count - 1];
}

/* ---------------------------------------------------------------------------------------------- spares */

bool valid_header(const struct run *r, unsigned file)
{
    const struct value *header = current_value(r, file, 0);
    return header != NULL && header->kind == VALUE_HEADER;
}

bool is_spare(const struct run *r, unsigned file)
{
    if (!file_there(r, file))
        return false;
    for (unsigned i = 0; i < r->s.broker.segment_count; i++)
        if (r->s.broker.segments[i].file == file)
            return false;
    return !valid_header(r, file);
}

unsigned spare_count(const struct run *r, bool large)
{
    unsigned n = 0;
    for (unsigned f = 0; f < FILES; f++)
        n += is_spare(r, f) && (r->s.files[f].length > 1) == large;
    return n;
}

/* The pool makes one in the background; a failed one is removed again. */
static bool make_spare(struct run *r, bool *failed)
{
    unsigned made;
    return make_file(r, &made, failed) && (!*failed || set_entry(r, made, false));
}

/* A change takes a large one and leaves one behind; it waits until there are two. */
static bool take_large(struct run *r, unsigned *file)
{
    bool failed; /* then it is tried again */
    while (spare_count(r, true) < 2)
        if (!make_spare(r, &failed))
            return false;
    for (*file = 0; !is_spare(r, *file) || r->s.files[*file].length == 1;)
        ++*file;
    return true;
}

/* The smallest that is large enough, else whatever there is. */
static unsigned best_spare(const struct run *r, unsigned blocks)
{
    unsigned best = FILES;
    for (unsigned f = 0; f < FILES; f++) {
        if (!is_spare(r, f))
            continue;
        bool fits = r->s.files[f].length >= blocks;
        if (best == FILES ||
            (fits && (r->s.files[best].length < blocks || r->s.files[f].length < r->s.files[best].length)))
            best = f;
    }
    return best;
}

static bool fail_stop(struct run *r, const char *why)
{
    (void)end_life(r, why);
    return false;
}

/* A roll-back waits for the pool once (ROLL_WAIT), unless that cannot make any. */
static bool take_any(struct run *r, unsigned blocks, bool give_up, unsigned *file)
{
    *file = best_spare(r, blocks);
    bool enough = *file < FILES && (give_up || r->s.files[*file].length >= blocks);
    bool failed;
    if (!enough && !r->program->full) {
        if (!make_spare(r, &failed))
            return false;
        *file = best_spare(r, blocks);
    }
    return *file < FILES || fail_stop(r, "fail-stop: no spare segment to roll back into");
}

/* ------------------------------------------------------------------------------------ flush and segments */

static bool flushed(struct run *r)
{
    r->s.broker.unflushed = 0;
    r->s.broker.durable_upto = u8(r->s.broker.next_group - 1u);
    return ledger_flushed(r);
}

static bool flush_or_stop(struct run *r, unsigned file, const char *what)
{
    bool failed;
    if (!flush_file(r, file, what, &failed))
        return false;
    if (failed && !keeps(r, RULE_FLUSH_FINAL))
        say(r, "  (dropped rule: flushed again, with success)");
    else if (failed)
        return fail_stop(r, "fail-stop: nothing in flight is answered");
    return true;
}

bool flush_now(struct run *r, const char *what)
{
    if (r->s.broker.unflushed == 0)
        return true;
    return flush_or_stop(r, current_segment(r)->file, what) && flushed(r);
}

static value_id next_header(struct run *r)
{
    const struct broker *b = &r->s.broker;
    const struct place *last = current_segment(r);
    struct value h;
    memset(&h, 0, sizeof h);
    h.kind = VALUE_HEADER;
    h.epoch = b->epoch;
    h.nonce = b->nonce;
    h.number = u8(last->number + 1u);
    h.segment = last->number;
    h.at = last->end;
    h.group = b->next_group;
    h.durable_upto = b->durable_upto;
    h.digest = b->digest;
    return value_intern(r->values, &h);
}

/* Steps CHANGE_FLUSH, CHANGE_HEADER, CHANGE_PROVE. */
static bool change(struct run *r, bool roll, bool give_up, unsigned blocks)
{
    struct broker *b = &r->s.broker;
    unsigned file;
    if (roll ? !take_any(r, 1 + blocks, give_up, &file) : !take_large(r, &file))
        return false;
    if (keeps(r, RULE_FLUSH_BEFORE_HEADER) && !flush_now(r, "the segment before its successor's header"))
        return false;
    value_id header = next_header(r);
    say(r, " %s: segment %u, in file %u, says that segment %u ends at block %u",
        roll ? "roll back" : "change", current_segment(r)->number + 1u, file, current_segment(r)->number,
        current_segment(r)->end);
    bool failed = false;
    if ((keeps(r, RULE_ROLL_WRITTEN) || !roll) &&
        !write_blocks(r, file, 0, &header, 1, "the header of a segment", &failed))
        return false;
    if (failed && keeps(r, RULE_HEADER_CHECKED))
        return fail_stop(r, "fail-stop: the header cannot be written");
    bool late = roll && !keeps(r, RULE_ROLL_DURABLE);
    if (!late && !flush_or_stop(r, file, "the header of a segment"))
        return false;
    cut_behind(r, current_segment(r)->file, current_segment(r)->end);
    b = &r->s.broker;
    check_bug(b->segment_count < SEGMENTS);
    b->segments[b->segment_count] =
        (struct place){u8(b->segments[b->segment_count - 1].number + 1u), u8(file), 1};
    b->segment_count++;
    r->s.files[file].committed |= 1;
    return true;
}

/* ----------------------------------------------------------------------------------------------- groups */

static void group_values(struct run *r, const struct group_plan *plan, value_id out[2])
{
    const struct broker *b = &r->s.broker;
    const struct place *segment = current_segment(r);
    struct value g;
    memset(&g, 0, sizeof g);
    g.kind = VALUE_GROUP;
    g.epoch = b->epoch;
    g.nonce = b->nonce;
    g.number = b->next_group;
    g.segment = segment->number;
    g.at = segment->end;
    g.length = plan->blocks;
    g.durable_upto = keeps(r, RULE_UPTO) ? b->durable_upto : u8(b->next_group - 1u);
    g.digest = b->digest;
    g.topics = plan->topics;
    g.producers = plan->producers;
    g.frame_count = plan->count;
    memcpy(g.frames, plan->frames, sizeof g.frames);
    memcpy(g.attempts, plan->attempts, sizeof g.attempts);
    out[0] = value_intern(r->values, &g);
    g.kind = VALUE_BODY; /* frames, seeded by the segment's salt; no place and no number */
    g.number = g.at = g.durable_upto = 0;
    g.digest = 0;
    memset(g.attempts, 0, sizeof g.attempts);
    out[1] = value_intern(r->values, &g);
}

static bool group_committed(struct run *r, const struct group_plan *plan, value_id header, bool durable)
{
    struct broker *b = &r->s.broker;
    struct place *segment = current_segment(r);
    r->s.files[segment->file].committed |= u8(((1u << plan->blocks) - 1) << segment->end);
    segment->end = u8(segment->end + plan->blocks);
    b->digest = value_digest(r->values, header);
    b->next_group++;
    b->unflushed++;
    b->topics |= plan->topics;
    b->producers |= plan->producers;
    for (unsigned i = 0; i < plan->count; i++) {
        const struct frame *f = &plan->frames[i];
        if (f->kind == FRAME_CHUNK)
            continue;
        b->next_sequence[f->topic] = u8(f->sequence + 1u);
        if (b->next_assign[f->topic] < b->next_sequence[f->topic])
            b->next_assign[f->topic] = b->next_sequence[f->topic];
        if (f->number != 0)
            b->last_number[f->topic] = f->number;
        if (f->kind == FRAME_LAST)
            b->stream = b->stream_attempt = b->stream_chunks = b->stream_segment = 0;
    }
    return ledger_committed(r, plan) && (!durable || flushed(r));
}

static bool group_written(struct run *r, const struct group_plan *plan, value_id header)
{
    bool needs_flush = false;
    for (unsigned i = 0; i < plan->count; i++)
        needs_flush |=
            plan->frames[i].kind != FRAME_CHUNK && r->program->levels[plan->frames[i].topic] == LEVEL_DURABLE;
    if (needs_flush && !keeps(r, RULE_ANSWER_LATE))
        return group_committed(r, plan, header, true) &&
               flush_or_stop(r, current_segment(r)->file, "the group");
    if (needs_flush && !flush_or_stop(r, current_segment(r)->file, "the group"))
        return false;
    return group_committed(r, plan, header, needs_flush);
}

bool group_commit(struct run *r, struct group_plan *plan)
{
    if (plan->count == 0)
        return true;
    const struct place *segment = current_segment(r);
    if (segment->end + plan->blocks > r->s.files[segment->file].length) {
        if (r->program->full && spare_count(r, true) < 2) {
            group_failed(r, plan); /* -ENOSPC: nothing of it was written */
            return true;
        }
        if (!change(r, false, false, plan->blocks))
            return false;
    }
    for (unsigned attempts = 1;; attempts++) {
        value_id values[2];
        bool failed;
        group_values(r, plan, values);
        segment = current_segment(r);
        say(r, " group %u to segment %u, block %u", r->s.broker.next_group, segment->number, segment->end);
        if (!write_blocks(r, segment->file, segment->end, values, plan->blocks, "the group", &failed))
            return false;
        if (!failed)
            return group_written(r, plan, values[0]);
        if (!keeps(r, RULE_ROLL))
            break;
        if (r->program->final_errors)
            return fail_stop(r, "fail-stop: what is on the disk is not known");
        if (!change(r, true, attempts >= 2, plan->blocks))
            return false;
        segment = current_segment(r);
        if (attempts >= 2 || segment->end + plan->blocks > r->s.files[segment->file].length)
            break;
    }
    group_failed(r, plan);
    return true;
}

/* ------------------------------------------------------------------------------------------- checkpoints */

enum { STEP_IDLE, STEP_RENAME, STEP_SYNC };

/* The segment that holds the last group: the current one, or, if that has none yet, one before it. */
static unsigned position_segment(const struct run *r)
{
    const struct broker *b = &r->s.broker;
    unsigned i = b->segment_count - 1u;
    while (i > 0 && b->segments[i].end <= 1 && keeps(r, RULE_CHECKPOINT_PLACE))
        i--;
    return i;
}

/* Takes the state as it is at this moment. */
bool checkpoint_begin(struct run *r)
{
    struct broker *b = &r->s.broker;
    if (b->checkpoint_step != STEP_IDLE)
        return true; /* one at a time */
    b->checkpoint_wanted = false;
    if (keeps(r, RULE_CHECKPOINT_DURABLE) && !flush_now(r, "the segment before a checkpoint"))
        return false;
    b = &r->s.broker;
    if (b->next_group == 1)
        return true; /* nothing was ever committed */
    unsigned position = position_segment(r);
    struct value c;
    memset(&c, 0, sizeof c);
    c.kind = VALUE_CHECKPOINT;
    c.epoch = b->epoch;
    c.number = u8(b->checkpoint_counter + 1u);
    c.segment = b->segments[position].number;
    c.at = b->segments[position].end;
    c.group = u8(b->next_group - 1u);
    c.digest = b->digest;
    c.topics = b->topics;
    c.producers = b->producers;
    c.closed_count = u8(position);
    memcpy(c.closed, b->segments, position * sizeof c.closed[0]);
    memcpy(c.next_sequence, b->next_sequence, sizeof c.next_sequence);
    memcpy(c.last_number, b->last_number, sizeof c.last_number);
    b->checkpoint = value_intern(r->values, &c);
    b->checkpoint_step = STEP_RENAME;
    say(r, " checkpoint %u is taken: group %u, segment %u, block %u", c.number, c.group, c.segment, c.at);
    return true;
}

/* Writing and flushing the file under its unfinished name is seen by nobody: it is part of the rename. */
bool checkpoint_step(struct run *r)
{
    struct broker *b = &r->s.broker;
    if (b->checkpoint_step == STEP_RENAME) {
        if (fault(r, "the checkpoint cannot be written")) {
            b->checkpoint_step = STEP_IDLE;
            b->checkpoint = 0;
            return true;
        }
        unsigned counter = b->checkpoint_counter + 1u;
        b->checkpoint_step = STEP_SYNC;
        return set_checkpoint(r, counter & 1, b->checkpoint);
    }
    bool failed;
    if (!sync_folder(r, &failed))
        return false;
    b = &r->s.broker;
    b->checkpoint_step = STEP_IDLE;
    b->checkpoint = 0;
    b->checkpoint_counter = u8(b->checkpoint_counter + !failed);
    return true;
}
