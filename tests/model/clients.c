/* clients.c: what is submitted next, and what clients do with an outcome; admission as in broker/log/gather.c
 * and producers.c.
 *
 *   1. What must be submitted again (`again`) goes first: after a failure a new attempt of the same bytes;
 *      after a crash each numbered batch of unknown outcome with its number, and each other one that was not
 *      there. A stream is submitted again from its first chunk.
 *   2. But a group that was gathered before a failure was answered goes before (`gathered`): chunks of a lost
 *      stream in it are dead bytes, numbers behind a gap are not admitted.
 *   3. Else the next op of the program. A checkpoint under way may take a step before any of these; its
 *      I/O and a group's touch different files, so that no other interleaving tells anything more. So may a
 *      flush of what was answered at written, and the checkpoint that a start wants.
 *   4. After the last op: power cut and start, twice, without faults. */
#include "model.h"

#include "../../shared/base.h"

#include <string.h>

static unsigned name_of(char name)
{
    return (unsigned)(name - 'a');
}

/* ------------------------------------------------------------------------------------------- admission */

static void submit_again(struct run *r, unsigned name)
{
    r->s.again |= u8(1u << name);
}

static void add_frame(struct run *r, struct group_plan *plan, const struct frame *frame)
{
    check_bug(plan->count < FRAMES);
    bool whole = frame->kind == FRAME_BATCH;
    plan->attempts[plan->count] = whole ? r->s.attempt[frame->name] : u8(r->s.broker.stream_attempt - 1u);
    plan->frames[plan->count++] = *frame;
}

/* Sequences of level accepted are given when the write is admitted, because it is answered then. */
static bool accept_early(struct run *r, struct frame *frame)
{
    struct broker *b = &r->s.broker;
    frame->sequence = b->next_assign[frame->topic]++;
    return ledger_accepted(r, frame->topic, frame->sequence, uid_of(frame->name, r->s.attempt[frame->name]));
}

static bool admit_whole(struct run *r, struct group_plan *plan, unsigned name)
{
    const struct batch *batch = &r->program->batches[name];
    unsigned admitted = r->s.broker.last_number[batch->topic];
    for (unsigned i = 0; i < plan->count; i++)
        if (plan->frames[i].topic == batch->topic && plan->frames[i].number != 0)
            admitted = plan->frames[i].number;
    if (batch->number != 0 && batch->number <= admitted && keeps(r, RULE_DUPLICATE))
        return ledger_duplicate(r, name);
    if (batch->number > admitted + 1 && keeps(r, RULE_ORDER)) {
        submit_again(r, name); /* -EAGAIN, REASON_ORDER */
        return true;
    }
    struct frame frame = {
        .kind = FRAME_BATCH, .name = u8(name), .topic = batch->topic, .number = batch->number};
    r->s.ledger.inflight |= 1u << uid_of(name, r->s.attempt[name]);
    if (r->program->levels[batch->topic] == LEVEL_ACCEPTED && !accept_early(r, &frame))
        return false;
    add_frame(r, plan, &frame);
    return true;
}

static void stream_begin(struct run *r, unsigned name)
{
    struct broker *b = &r->s.broker;
    b->stream = ++b->streams;
    b->stream_attempt = u8(r->s.attempt[name] + 1u);
    b->stream_chunks = 0;
    b->stream_failed = false;
    b->stream_segment = b->segments[b->segment_count - 1].number;
}

static void admit_chunk(struct run *r, struct group_plan *plan, unsigned name, unsigned chunk)
{
    struct broker *b = &r->s.broker;
    const struct batch *batch = &r->program->batches[name];
    if (chunk == 0)
        stream_begin(r, name);
    if (b->stream == 0 || b->stream_chunks != chunk)
        return; /* its stream went with a broker that died; or it was refused before */
    bool last = chunk + 1u == batch->chunks && (!b->stream_failed || !keeps(r, RULE_STREAM_FAILS));
    struct frame frame = {.kind = last ? FRAME_LAST : FRAME_CHUNK,
                          .name = u8(name),
                          .topic = batch->topic,
                          .number = last ? batch->number : 0,
                          .stream_epoch = b->epoch,
                          .stream = b->stream,
                          .chunk = b->stream_chunks++,
                          .first_segment = last ? b->stream_segment : 0};
    if (!b->stream_failed)
        r->s.ledger.inflight |= 1u << uid_of(name, r->s.attempt[name]);
    add_frame(r, plan, &frame);
}

static bool admit(struct run *r, struct group_plan *plan, unsigned name, unsigned chunk)
{
    if (r->program->batches[name].chunks == 0)
        return admit_whole(r, plan, name);
    admit_chunk(r, plan, name, chunk);
    return true;
}

/* group_seal(): sequences and catalogue entries. */
static void seal(struct run *r, struct group_plan *plan)
{
    struct broker *b = &r->s.broker;
    for (unsigned i = 0; i < plan->count; i++) {
        struct frame *frame = &plan->frames[i];
        if (frame->kind != FRAME_CHUNK && r->program->levels[frame->topic] != LEVEL_ACCEPTED)
            frame->sequence = b->next_assign[frame->topic]++;
        if ((b->topics & 1u << frame->topic) == 0)
            plan->topics |= u8(1u << frame->topic);
        if (frame->number != 0 && b->producers == 0)
            plan->producers = 1;
    }
    if (!keeps(r, RULE_CATALOGUE)) { /* taken for written when they were sealed */
        b->topics |= plan->topics;
        b->producers |= plan->producers;
    }
}

/* -------------------------------------------------------------------------------------------- outcomes */

void group_failed(struct run *r, const struct group_plan *plan)
{
    struct broker *b = &r->s.broker;
    say(r, " the group is rolled back for good");
    for (unsigned i = 0; i < plan->count; i++) {
        const struct frame *frame = &plan->frames[i];
        if (r->program->levels[frame->topic] != LEVEL_ACCEPTED || !keeps(r, RULE_BURN))
            b->next_assign[frame->topic] = b->next_sequence[frame->topic];
        if (frame->kind != FRAME_BATCH) {
            if (frame->stream != b->stream || b->stream_failed)
                continue;
            b->stream_failed = true;
            r->s.again_chunk = 0;
        }
        (void)ledger_failed(r, uid_of(frame->name, plan->attempts[i]));
    }
    r->s.gathered = r->s.next_op < program_ops(r->program);
}

/* ------------------------------------------------------------------------------------------ what is next */

static bool step_again(struct run *r)
{
    struct group_plan plan = {.blocks = 2};
    unsigned names = r->s.again;
    say(r, "submitted again:");
    for (unsigned name = 0; name < NAMES; name++)
        if (names & 1u << name && r->program->batches[name].chunks == 0) {
            r->s.again &= u8(~(1u << name));
            if (plan.count == FRAMES)
                submit_again(r, name);
            else if (!admit_whole(r, &plan, name))
                return false;
        }
    for (unsigned name = 0; name < NAMES && plan.count == 0; name++)
        if (r->s.again & 1u << name && r->program->batches[name].chunks != 0) {
            const struct batch *batch = &r->program->batches[name];
            if (r->s.again_chunk == 0 && batch->number != 0 &&
                batch->number <= r->s.broker.last_number[batch->topic]) {
                r->s.again &= u8(~(1u << name));
                return ledger_duplicate(r, name);
            }
            admit_chunk(r, &plan, name, r->s.again_chunk++);
            if (r->s.again_chunk == batch->chunks) {
                r->s.again &= u8(~(1u << name));
                r->s.again_chunk = 0;
            }
            break;
        }
    seal(r, &plan);
    return group_commit(r, &plan);
}

static bool step_stop(struct run *r)
{
    say(r, "clean stop");
    while (r->s.broker.checkpoint_step != 0)
        if (!checkpoint_step(r))
            return false;
    if (!flush_now(r, "the segment at the end") || !checkpoint_begin(r))
        return false;
    while (r->s.broker.checkpoint_step != 0)
        if (!checkpoint_step(r))
            return false;
    return end_life(r, "stopped");
}

static bool step_op(struct run *r, const struct op *op)
{
    struct group_plan plan = {.blocks = op->blocks};
    switch (op->kind) {
    case OP_CHECKPOINT:
        say(r, "a checkpoint is due");
        return checkpoint_begin(r);
    case OP_STOP:
        return step_stop(r);
    default:
        break;
    }
    say(r, "op %u:", r->s.next_op);
    for (unsigned i = 0; i < FRAMES && op->parts[i].name != 0; i++) {
        unsigned name = name_of(op->parts[i].name);
        bool first = r->s.attempt[name] == 0;
        bool dead = r->s.broker.stream_failed && r->program->batches[name].chunks != 0;
        if (!first && !dead)
            continue; /* it was submitted again before its turn came */
        if (!admit(r, &plan, name, op->parts[i].chunk))
            return false;
    }
    seal(r, &plan);
    return group_commit(r, &plan);
}

static bool step_end(struct run *r)
{
    if (!crash_point(r)) /* idle, with all answers given */
        return false;
    r->s.faults = r->s.crashes = 0;
    if (r->s.end_phase == 2) {
        r->s.mode = MODE_END;
        return true;
    }
    r->s.end_phase++;
    say(r, "nothing is left to do; power cut %u of 2", r->s.end_phase);
    (void)end_life(r, "the broker is gone");
    r->s.ledger.written = 0;
    r->s.mode = MODE_POWER;
    return true;
}

/* One macro step of a broker that serves. */
bool run_step(struct run *r)
{
    unsigned ops = program_ops(r->program);
    bool more = r->s.next_op < ops || r->s.again != 0;
    if (r->s.broker.checkpoint_step != 0 && (!more || choose(r, 2) == 1)) {
        say(r, "the checkpoint under way:");
        return checkpoint_step(r);
    }
    if (r->s.broker.checkpoint_wanted && choose(r, 2) == 1) {
        say(r, "a checkpoint is due after the start");
        return checkpoint_begin(r);
    }
    if (r->s.broker.unflushed > 0 && choose(r, 2) == 1) {
        say(r, "the interval has passed");
        return flush_now(r, "the segment");
    }
    bool gathered = r->s.gathered && r->s.next_op < ops;
    r->s.gathered = false;
    if (r->s.again != 0 && !gathered)
        return step_again(r);
    if (r->s.next_op < ops)
        return step_op(r, &r->program->ops[r->s.next_op++]);
    return step_end(r);
}
