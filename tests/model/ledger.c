/* ledger.c: what clients and readers were told, and that it stays true (the guarantees by number).
 *
 * A *uid* is one attempt of one batch. Each is told at most once, and the ledger remembers for ever:
 *
 *     in flight -> acked      answered at durable, or visible when a start served: visible from then on (G1)
 *               -> written    answered at written: visible, unless power or a flush failed (levels)
 *               -> accepted   answered at accepted: no promise
 *               -> dead       answered as failed, or not visible when a start served: never visible (G3, G5)
 *
 * `visible` is the log in commit order; of it the first `public_count` were durable: readers of all levels
 * have seen them, and what a start finds begins with them (G7, G12). */
#include "model.h"

#include "../../shared/base.h"

#include <string.h>

static uint32_t bit(unsigned uid)
{
    return UINT32_C(1) << uid;
}

/* --------------------------------------------------------------------------------------------- answers */

/* (epoch, sequence) names one entry for ever: of two that were told the same in one life, one is lost. */
static bool given(struct run *r, unsigned topic, unsigned sequence, unsigned uid)
{
    struct ledger *l = &r->s.ledger;
    if (r->program->levels[topic] == LEVEL_DURABLE)
        return true;
    for (unsigned i = 0; i < l->given_count; i++)
        if (l->given[i].topic == topic && l->given[i].sequence == sequence && l->given[i].uid != uid)
            return violated(r, "levels: one epoch and sequence was given to two entries");
        else if (l->given[i].topic == topic && l->given[i].sequence == sequence)
            return true;
    check_bug(l->given_count < GIVEN);
    l->given[l->given_count++] = (struct given){u8(topic), u8(sequence), u8(uid)};
    return true;
}

bool ledger_accepted(struct run *r, unsigned topic, unsigned sequence, unsigned uid)
{
    char text[8];
    say(r, "  %s is answered at level accepted: sequence %u", uid_text(uid, text), sequence);
    r->s.ledger.accepted |= bit(uid);
    r->s.ledger.inflight &= ~bit(uid);
    return given(r, topic, sequence, uid);
}

bool ledger_committed(struct run *r, const struct group_plan *plan)
{
    struct ledger *l = &r->s.ledger;
    char text[8];
    for (unsigned i = 0; i < plan->count; i++) {
        const struct frame *frame = &plan->frames[i];
        if (frame->kind == FRAME_CHUNK)
            continue;
        unsigned uid = uid_of(frame->name, plan->attempts[i]);
        check_bug(l->visible_count < VISIBLE);
        l->visible[l->visible_count++] = u8(uid);
        l->inflight &= ~bit(uid);
        l->accepted &= ~bit(uid);
        l->written |= bit(uid);
        say(r, "  %s is in the log, sequence %u", uid_text(uid, text), frame->sequence);
        if (!given(r, frame->topic, frame->sequence, uid))
            return false;
    }
    return true;
}

/* Answers at durable, and watermarks: everything up to here. */
bool ledger_flushed(struct run *r)
{
    struct ledger *l = &r->s.ledger;
    char text[8];
    for (unsigned i = l->public_count; i < l->visible_count; i++) {
        l->acked |= bit(l->visible[i]);
        say(r, "  %s is told to be durable", uid_text(l->visible[i], text));
    }
    l->written = 0;
    l->public_count = l->visible_count;
    return true;
}

static unsigned names_visible(const struct ledger *l, unsigned name)
{
    unsigned n = 0;
    for (unsigned i = 0; i < l->visible_count; i++)
        n += l->visible[i] / ATTEMPTS == name;
    return n;
}

bool ledger_duplicate(struct run *r, unsigned name)
{
    say(r, "  %c is answered as a duplicate", (char)('a' + name));
    if (names_visible(&r->s.ledger, name) != 1)
        return violated(r, "G5: answered as a duplicate, but it is not in the log");
    return true;
}

bool ledger_failed(struct run *r, unsigned uid)
{
    struct ledger *l = &r->s.ledger;
    char text[8];
    unsigned name = uid / ATTEMPTS;
    say(r, "  %s is answered as failed", uid_text(uid, text));
    l->inflight &= ~bit(uid);
    l->accepted &= ~bit(uid);
    l->dead |= bit(uid);
    r->s.again &= u8(~(1u << name));
    if (r->s.attempt[name] + 1u < ATTEMPTS) {
        r->s.attempt[name]++;
        r->s.again |= u8(1u << name);
    } /* else the client gives it up */
    return true;
}

/* ------------------------------------------------------------------------------- what a reader finds */

static bool stream_whole(struct run *r, const struct found *found, const struct frame *last, uint8_t attempt)
{
    for (unsigned want = 0; want < last->chunk; want++) {
        bool there = false;
        for (unsigned i = 0; i < found->chunk_count && !there; i++) {
            const struct frame *chunk = &found->chunks[i].frame;
            bool same = keeps(r, RULE_STREAM_NAMES)
                            ? chunk->stream == last->stream && chunk->stream_epoch == last->stream_epoch
                            : chunk->name == last->name;
            if (!same || chunk->chunk != want || found->chunks[i].segment < last->first_segment)
                continue;
            if (found->chunks[i].attempt != attempt)
                return violated(r, "G2: a batch is made of chunks of two submissions");
            there = true;
        }
        if (!there)
            return violated(r, "G2: a batch is visible without one of its chunks");
    }
    return true;
}

/* Adds a group to what is found, as restore_group() does; `reader`: as readers, who need whole streams. */
bool found_group(struct run *r, struct found *found, const struct value *group, const struct value *body,
                 bool reader)
{
    if ((found->topics & group->topics) != 0 || (found->producers & group->producers) != 0)
        return violated(r, "REFUSED: a catalogue entry contradicts one before");
    found->topics |= group->topics;
    found->producers |= group->producers;
    for (unsigned i = 0; i < body->frame_count; i++) {
        const struct frame *f = &body->frames[i];
        if ((found->topics & 1u << f->topic) == 0)
            return violated(r, "REFUSED: a batch of a topic that is not in the catalogue");
        if (f->kind == FRAME_CHUNK) {
            check_bug(found->chunk_count < VISIBLE);
            found->chunks[found->chunk_count].frame = *f;
            found->chunks[found->chunk_count].segment = group->segment;
            found->chunks[found->chunk_count++].attempt = group->attempts[i];
            continue;
        }
        if (f->sequence < found->next_sequence[f->topic])
            return violated(r, "REFUSED: a batch whose sequences were given before");
        if (f->number != 0 && (found->producers == 0 || f->number != found->last_number[f->topic] + 1u))
            return violated(r, "REFUSED: a number that is not the next one of its producer");
        found->next_sequence[f->topic] = u8(f->sequence + 1u);
        found->last_number[f->topic] = f->number != 0 ? f->number : found->last_number[f->topic];
        if (reader && f->kind == FRAME_LAST && !stream_whole(r, found, f, group->attempts[i]))
            return false;
        check_bug(found->visible_count < VISIBLE);
        found->visible[found->visible_count++] = u8(uid_of(f->name, group->attempts[i]));
    }
    return true;
}

/* ------------------------------------------------------------------------------------ a start serves */

static bool check_promises(struct run *r, const struct found *found, uint32_t visible)
{
    const struct ledger *l = &r->s.ledger;
    uint32_t written = l->acked | l->written | l->accepted | l->inflight;
    if ((l->acked & ~visible) != 0)
        return violated(r, "G1: a batch that was answered at durable is lost");
    if ((l->dead & visible) != 0)
        return violated(r, "G3: a batch that was answered as failed, or decided to be lost, is visible");
    for (unsigned i = 0; i < l->visible_count; i++)
        written |= bit(l->visible[i]);
    if ((visible & ~written) != 0)
        return violated(r, "G15: a batch is visible that nobody has written");
    if ((l->written & ~visible) != 0)
        return violated(r, "levels: a batch that was answered at written did not survive its broker");
    for (unsigned i = 0; i < found->visible_count; i++) {
        if (i < l->public_count && found->visible[i] != l->visible[i])
            return violated(r, "G7: what readers saw changed its order");
        if (i < l->visible_count && found->visible[i] != l->visible[i])
            return violated(r, "G7: the log is not a prefix of the order in which it was written");
        for (unsigned k = 0; k < i; k++)
            if (found->visible[i] / ATTEMPTS == found->visible[k] / ATTEMPTS)
                return violated(r, "G5: a batch is in the log twice");
    }
    return true;
}

/* Numbers that a query would tell: exactly what is visible. */
static bool check_numbers(struct run *r, const struct found *found)
{
    for (unsigned name = 0; name < NAMES; name++) {
        const struct batch *batch = &r->program->batches[name];
        if (batch->number == 0)
            continue;
        bool there = false;
        for (unsigned i = 0; i < found->visible_count; i++)
            there |= found->visible[i] / ATTEMPTS == name;
        if (there != (batch->number <= found->last_number[batch->topic]))
            return violated(r, "G5: a query tells something else than the log holds");
    }
    return true;
}

static void decide_unknown(struct run *r, uint32_t visible)
{
    struct ledger *l = &r->s.ledger;
    char text[8];
    for (unsigned uid = 0; uid < NAMES * ATTEMPTS; uid++) {
        unsigned name = uid / ATTEMPTS;
        if ((l->inflight & bit(uid)) == 0)
            continue;
        bool there = (visible & bit(uid)) != 0, numbered = r->program->batches[name].number != 0;
        say(r, "  %s, whose outcome was unknown, is %s", uid_text(uid, text), there ? "there" : "not there");
        if (!there && r->s.attempt[name] + 1u < ATTEMPTS)
            r->s.attempt[name]++;
        else if (!there)
            continue;
        if (numbered || !there)
            r->s.again |= u8(1u << name);
    }
}

bool ledger_served(struct run *r, const struct found *found)
{
    struct ledger *l = &r->s.ledger;
    uint32_t visible = 0;
    char text[8];
    for (unsigned i = 0; i < found->visible_count; i++) {
        visible |= bit(found->visible[i]);
        say(r, "  served: %s", uid_text(found->visible[i], text));
    }
    if (!check_promises(r, found, visible) || !check_numbers(r, found))
        return false;
    if (r->s.broker.epoch <= l->served_epoch)
        return violated(r, "G15: two lives that served have one epoch");
    decide_unknown(r, visible);
    l->dead |= (l->inflight | l->accepted | l->acked) & ~visible;
    for (unsigned i = 0; i < l->visible_count; i++)
        if ((visible & bit(l->visible[i])) == 0)
            l->dead |= bit(l->visible[i]);
    l->acked |= visible;
    l->inflight = l->written = l->accepted = 0;
    memset(l->visible, 0, sizeof l->visible);
    memcpy(l->visible, found->visible, found->visible_count);
    l->visible_count = l->public_count = found->visible_count;
    l->served_epoch = r->s.broker.epoch;
    memset(l->given, 0, sizeof l->given);
    l->given_count = 0;
    return true;
}
