/* ledger.c: see ledger.h. */
#include "ledger.h"

#include <xxhash.h>

struct stamp {
    uint64_t magic;
    uint32_t batch, entry;
    uint16_t entries;
    uint8_t topic, producer;
    uint32_t number;
    uint64_t check;
};
_Static_assert(sizeof(struct stamp) == STAMP_BYTES, "stamp");

static const char *const fate_names[] = {"open", "ok", "failed", "refused", "gone"};

void ledger_init(struct ledger *ledger)
{
    memset(ledger, 0, sizeof *ledger);
    ledger->next_order = 1;
}

void ledger_copy(struct ledger *to, const struct ledger *from)
{
    *to = *from;
    to->capacity = from->count + 4;
    to->batches = malloc(to->capacity * sizeof *to->batches);
    check_bug(to->batches != NULL);
    if (from->count > 0)
        memcpy(to->batches, from->batches, from->count * sizeof *to->batches);
}

void ledger_free(struct ledger *ledger)
{
    free(ledger->batches);
    ledger->batches = NULL;
    ledger->count = ledger->capacity = 0;
}

uint64_t ledger_hash(const struct ledger *ledger)
{
    uint64_t hash = ledger->count;
    for (uint32_t i = 0; i < ledger->count; i++) {
        const struct batch *batch = &ledger->batches[i];
        uint64_t bits = batch->fate | (uint64_t)batch->level << 8 | (uint64_t)batch->shown << 16 |
                        (uint64_t)batch->complete << 17 | (uint64_t)batch->sequenced << 18 |
                        (uint64_t)batch->denied << 19 | (uint64_t)batch->number << 20;
        hash = seed_mix(hash ^ bits) + batch->first_sequence;
    }
    for (uint32_t i = 0; i < ledger->producer_count; i++)
        hash = seed_mix(hash ^ ledger->producers[i].id) + ledger->producers[i].forgotten;
    for (uint32_t role = 0; role < SIM_ROLES; role++)
        hash = seed_mix(hash + ledger->roles[role]);
    return hash;
}

void ledger_fail(struct ledger *ledger, const char *format, ...)
{
    if (ledger->failure[0] != 0)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(ledger->failure, sizeof ledger->failure, format, args);
    va_end(args);
}

struct batch *ledger_add(struct ledger *ledger, uint32_t topic, uint32_t entries, uint32_t bytes)
{
    check_bug(topic < SIM_TOPICS);
    if (ledger->count == ledger->capacity) {
        ledger->capacity = ledger->capacity == 0 ? 64 : ledger->capacity * 2;
        ledger->batches = realloc(ledger->batches, ledger->capacity * sizeof *ledger->batches);
        check_bug(ledger->batches != NULL);
    }
    struct batch *batch = &ledger->batches[ledger->count++];
    memset(batch, 0, sizeof *batch);
    batch->id = ledger->count;
    batch->topic = (uint8_t)topic;
    batch->entries = entries;
    batch->bytes = bytes;
    return batch;
}

struct batch *ledger_at(struct ledger *ledger, uint32_t id)
{
    check_bug(id > 0 && id <= ledger->count);
    return &ledger->batches[id - 1];
}

/* ------------------------------------------------------------------------------ numbers */

bool ledger_producer_may_rot(const struct ledger *ledger, uint8_t producer)
{
    return ledger->rot_since != 0 && ledger->producers[producer - 1].since >= ledger->rot_since;
}

uint8_t ledger_add_producer(struct ledger *ledger, uint32_t role, uint64_t id)
{
    if (ledger->producer_count == SIM_PRODUCERS)
        return 0;
    for (uint32_t i = 0; i < ledger->producer_count; i++) {
        if (ledger->producers[i].id == id && !ledger_producer_may_rot(ledger, (uint8_t)(i + 1)))
            ledger_fail(ledger, "producer %u gets the id %llx of producer %u", ledger->producer_count + 1,
                        (unsigned long long)id, i + 1);
    }
    ledger->producers[ledger->producer_count++] =
        (struct known_producer){.id = id, .since = ledger->next_order, .role = (uint8_t)role};
    return (uint8_t)ledger->producer_count;
}

struct batch *ledger_claimant(struct ledger *ledger, uint8_t producer, uint32_t topic, uint32_t number)
{
    struct batch *last = NULL;
    for (uint32_t i = 0; i < ledger->count; i++) {
        struct batch *batch = &ledger->batches[i];
        if (batch->producer == producer && batch->topic == topic && batch->number == number &&
            batch->claim != 0 && (last == NULL || batch->claim > last->claim))
            last = batch;
    }
    return last;
}

void ledger_claim(struct ledger *ledger, struct batch *batch, uint8_t producer, uint32_t number)
{
    batch->producer = producer;
    batch->number = number;
    batch->claim = ++ledger->next_claim;
}

void ledger_numbers(const struct ledger *ledger, uint8_t producer, uint32_t topic, uint32_t *last,
                    uint32_t *admitted)
{
    *last = *admitted = 0;
    for (uint32_t i = 0; i < ledger->count; i++) {
        const struct batch *batch = &ledger->batches[i];
        if (batch->producer != producer || batch->topic != topic || batch->claim == 0)
            continue;
        if (batch->fate == FATE_OK && batch->number > *last)
            *last = batch->number;
        if ((batch->fate == FATE_OK || batch->flying) && batch->number > *admitted)
            *admitted = batch->number;
    }
}

void ledger_reopen(struct ledger *ledger, uint32_t id)
{
    struct batch lost = *ledger_at(ledger, id);
    if (lost.fate == FATE_GONE && lost.sequenced) {
        struct batch *ghost = ledger_add(ledger, lost.topic, lost.entries, lost.bytes);
        lost.id = ghost->id;
        lost.producer = 0;
        lost.number = lost.claim = 0;
        lost.denied = false;
        *ghost = lost;
    }
    struct batch *batch = ledger_at(ledger, id);
    batch->fate = FATE_OPEN;
    batch->level = 0;
    batch->group = batch->epoch = batch->first_sequence = 0;
    batch->on_disk = batch->sequenced = batch->limbo = batch->denied = false;
}

bool ledger_may_be_committed(const struct ledger *ledger, uint8_t producer)
{
    for (uint32_t i = 0; i < ledger->count; i++) {
        const struct batch *batch = &ledger->batches[i];
        if (batch->producer == producer && batch->order != 0)
            return true;
    }
    return false;
}

/* ------------------------------------------------------------------------------ bytes */

uint64_t entry_length(const struct batch *batch, uint32_t entry)
{
    if (entry == 0)
        return batch->bytes < STAMP_BYTES ? STAMP_BYTES : batch->bytes;
    uint64_t draw = seed_mix(((uint64_t)batch->id << 32) + entry);
    if (draw % 11 == 0)
        return 0;
    return batch->bytes / 2 + draw % (batch->bytes + 1);
}

static struct stamp stamp_of(const struct batch *batch, uint32_t entry)
{
    struct stamp stamp = {.magic = STAMP_MAGIC,
                          .batch = batch->id,
                          .entry = entry,
                          .entries = (uint16_t)batch->entries,
                          .topic = batch->topic,
                          .producer = batch->streamed ? 0 : batch->producer,
                          .number = batch->streamed ? 0 : batch->number};
    uint64_t who = (uint64_t)stamp.producer << 56 ^ (uint64_t)stamp.number << 24;
    stamp.check = seed_mix(((uint64_t)stamp.batch << 32) ^ stamp.entry ^ ((uint64_t)stamp.entries << 16) ^
                           stamp.topic ^ seed_mix(who));
    return stamp;
}

/* Every word of every entry is another one. */
static uint64_t fill_word(uint64_t check, uint64_t at)
{
    uint64_t word = (check ^ (at << 40)) + at * UINT64_C(0x9e3779b97f4a7c15);
    return word ^ (word >> 29);
}

void entry_fill(const struct batch *batch, uint32_t entry, uint64_t offset, uint8_t *to, uint64_t length)
{
    struct stamp stamp = stamp_of(batch, entry);
    uint64_t done = 0;
    if (offset < STAMP_BYTES) {
        done = min_u64(length, STAMP_BYTES - offset);
        memcpy(to, (const uint8_t *)&stamp + offset, done);
    }
    while (done < length) {
        uint64_t at = offset + done;
        if (at % 8 != 0 || length - done < 8) {
            to[done++] = (uint8_t)(fill_word(stamp.check, at / 8) >> (at % 8 * 8));
            continue;
        }
        for (; length - done >= 8; done += 8) {
            uint64_t word = fill_word(stamp.check, (offset + done) / 8);
            memcpy(to + done, &word, 8);
        }
    }
}

void ledger_note_written(struct ledger *ledger, const void *bytes, uint64_t length)
{
    const uint8_t *at = bytes;
    uint64_t magic;
    struct stamp stamp;
    for (uint64_t i = 0; i + sizeof stamp <= length; i += 8) {
        memcpy(&magic, at + i, sizeof magic);
        if (magic != STAMP_MAGIC)
            continue;
        memcpy(&stamp, at + i, sizeof stamp);
        if (stamp.batch == 0 || stamp.batch > ledger->count)
            continue;
        /* A short entry has only the beginning of a stamp, which could be that of another batch. */
        struct stamp whole = stamp_of(ledger_at(ledger, stamp.batch), stamp.entry);
        if (memcmp(&stamp, &whole, sizeof stamp) == 0)
            ledger->batches[stamp.batch - 1].on_disk = true;
    }
}

/* ------------------------------------------------------------------------------ readers */

void scan_begin(struct scan *scan, struct ledger *ledger, uint32_t topic, bool from_start)
{
    *scan = (struct scan){.ledger = ledger, .topic = topic, .from_start = from_start};
    scan->seen = calloc(ledger->count + 1, 1);
    check_bug(scan->seen != NULL);
}

/* What is committed of a producer on a topic is 1 to its last number, each once, in order. */
static void scan_number(struct scan *scan, const struct batch *batch, uint64_t sequence)
{
    uint32_t *last = &scan->numbers[batch->producer - 1];
    bool begins = !scan->from_start && *last == 0;
    if (!begins && batch->number != *last + 1)
        ledger_fail(
            scan->ledger,
            "G5: topic %u, sequence %llu: batch %u, number %u of producer %u, comes after its number %u",
            scan->topic, (unsigned long long)sequence, batch->id, batch->number, batch->producer, *last);
    *last = batch->number;
}

/* The stamp at the head of an entry: sets the batch, if one begins here, or if the reader began in the
 * middle. */
static bool scan_stamp(struct scan *scan, uint64_t sequence, const uint8_t *bytes, uint64_t length,
                       uint64_t epoch)
{
    struct ledger *ledger = scan->ledger;
    struct stamp stamp;
    if (length < sizeof stamp)
        return false;
    memcpy(&stamp, bytes, sizeof stamp);
    if (stamp.magic != STAMP_MAGIC || stamp.batch == 0 || stamp.batch > ledger->count)
        return false;
    struct batch *batch = ledger_at(ledger, stamp.batch);
    struct stamp expected = stamp_of(batch, stamp.entry);
    if (memcmp(&stamp, &expected, sizeof stamp) != 0 || batch->topic != scan->topic)
        return false;
    if (stamp.entry != 0 && (scan->from_start || scan->batches > 0)) {
        ledger_fail(ledger, "G2: topic %u, sequence %llu: batch %u begins with its entry %u", scan->topic,
                    (unsigned long long)sequence, batch->id, stamp.entry);
        return false;
    }
    scan->batch = batch->id;
    scan->entry = stamp.entry;
    scan->batches++;
    if (batch->producer != 0)
        scan_number(scan, batch, sequence);
    uint64_t first = sequence - stamp.entry;
    if (batch->sequenced && batch->first_sequence != first)
        ledger_fail(ledger, "batch %u lies at sequence %llu, its receipt says %llu", batch->id,
                    (unsigned long long)first, (unsigned long long)batch->first_sequence);
    if (scan->seen[batch->id])
        ledger_fail(ledger, "topic %u: batch %u is there twice", scan->topic, batch->id);
    if (!batch->sequenced) {
        batch->sequenced = true;
        batch->first_sequence = first;
    }
    batch->epoch = epoch;
    scan->seen[batch->id] = 1;
    return true;
}

/* That it failed is said by the header of a segment without a group, the last bytes that were flushed, and
 * those have rotted: without it the log ends with the bytes that failed (case B of FORMAT.md). */
static bool failure_rotted(const struct ledger *ledger, const struct batch *batch)
{
    return ledger->rot_since != 0 && batch->order >= ledger->rot_since && batch->complete &&
           batch->fate == FATE_FAILED && batch->flush + ledger->rot_flushes > ledger->flushes;
}

static void scan_order(struct scan *scan, struct batch *batch, uint64_t sequence)
{
    if (failure_rotted(scan->ledger, batch)) {
        scan->last_order = batch->order;
        return;
    }
    if (!batch->complete || batch->fate == FATE_FAILED || batch->fate == FATE_REFUSED ||
        batch->fate == FATE_GONE)
        ledger_fail(scan->ledger, "%s: batch %u (%s%s) is visible in topic %u at sequence %llu",
                    batch->complete ? "G3" : "G2", batch->id, fate_names[batch->fate],
                    batch->complete ? "" : ", incomplete", scan->topic, (unsigned long long)sequence);
    if (batch->order <= scan->last_order)
        ledger_fail(scan->ledger, "G7: batch %u comes out of order in topic %u", batch->id, scan->topic);
    scan->last_order = batch->order;
}

void scan_feed(struct scan *scan, const struct run *run, uint64_t sequence, const uint8_t *bytes,
               uint64_t length)
{
    bool piece = (run->flags & RUN_PIECE) != 0;
    uint64_t offset = piece ? run->entry_offset : 0;
    struct ledger *ledger = scan->ledger;
    if (ledger->failure[0] != 0)
        return;
    if (offset != scan->offset) {
        ledger_fail(ledger, "topic %u, sequence %llu: piece at %llu comes where %llu should", scan->topic,
                    (unsigned long long)sequence, (unsigned long long)offset,
                    (unsigned long long)scan->offset);
        return;
    }
    bool gap = sequence != scan->next_sequence && scan->next_sequence != 0 && offset == 0;
    uint8_t level = ledger->levels[scan->topic];
    if (gap && (scan->batch != 0 || level == 0 || level == LEVEL_DURABLE))
        ledger_fail(ledger, "G7: topic %u jumps from sequence %llu to %llu", scan->topic,
                    (unsigned long long)scan->next_sequence, (unsigned long long)sequence);
    if (scan->from_start && scan->next_sequence == 0 && sequence != 1 &&
        (level == 0 || level == LEVEL_DURABLE))
        ledger_fail(ledger, "G7: topic %u begins at sequence %llu", scan->topic,
                    (unsigned long long)sequence);
    if (scan->batch == 0) {
        if (!scan_stamp(scan, sequence, bytes, length, run->epoch)) {
            /* A reader that begins inside a batch may meet an entry too short for a stamp. */
            if (scan->from_start || scan->batches > 0 || length >= STAMP_BYTES)
                ledger_fail(ledger, "G2: topic %u, sequence %llu: no batch begins with these bytes",
                            scan->topic, (unsigned long long)sequence);
            scan->next_sequence = sequence + 1;
            return;
        }
        scan_order(scan, ledger_at(ledger, scan->batch), sequence);
    }
    struct batch *batch = ledger_at(ledger, scan->batch);
    uint8_t expected[4096];
    uint64_t whole = entry_length(batch, scan->entry);
    bool ends = !piece || offset + length == whole;
    bool fits = ends ? offset + length == whole : length % 4096 == 0 && length > 0 && offset + length < whole;
    if (!fits || (piece && run->entry_bytes != whole))
        ledger_fail(
            ledger, "G27: batch %u, entry %u: a %s of %llu bytes at %llu, of %llu; the entry has %llu",
            batch->id, scan->entry, piece ? "piece" : "run", (unsigned long long)length,
            (unsigned long long)offset, (unsigned long long)run->entry_bytes, (unsigned long long)whole);
    for (uint64_t at = 0; at < length && ledger->failure[0] == 0; at += sizeof expected) {
        uint64_t part = min_u64(sizeof expected, length - at);
        entry_fill(batch, scan->entry, offset + at, expected, part);
        if (memcmp(expected, bytes + at, part) != 0)
            ledger_fail(ledger, "G27: batch %u, entry %u: wrong bytes near offset %llu", batch->id,
                        scan->entry, (unsigned long long)(offset + at));
    }
    if (!(run->flags & RUN_UNSTABLE))
        batch->shown = true;
    scan->offset = offset + length;
    scan->next_sequence = sequence;
    if (!ends)
        return;
    scan->offset = 0;
    scan->next_sequence = sequence + 1;
    if (++scan->entry == batch->entries)
        scan->batch = 0;
}

void scan_end(struct scan *scan)
{
    if (scan->batch != 0)
        ledger_fail(scan->ledger, "G2: topic %u ends inside batch %u, at its entry %u of %u", scan->topic,
                    scan->batch, scan->entry, ledger_at(scan->ledger, scan->batch)->entries);
    free(scan->seen);
    scan->seen = NULL;
}

/* ------------------------------------------------------------------------------------------------ after a
 * start */

static bool answered_durable(const struct ledger *ledger, const struct batch *batch)
{
    if (batch->fate != FATE_OK)
        return false;
    return batch->level == LEVEL_DURABLE || (batch->group != 0 && batch->group <= ledger->durable_group);
}

void ledger_limbo(struct ledger *ledger)
{
    for (uint32_t i = 0; i < ledger->count; i++) {
        struct batch *batch = &ledger->batches[i];
        if (answered_durable(ledger, batch))
            batch->level = LEVEL_DURABLE;
        else if (batch->fate == FATE_OPEN || batch->fate == FATE_OK)
            batch->limbo = true;
        batch->denied = false;
        batch->group = 0; /* numbers of groups that were cut are given again */
    }
    ledger->durable_group = 0;
    ledger->flushed_group = 0;
}

void ledger_stopped(struct ledger *ledger)
{
    for (uint32_t i = 0; i < ledger->count; i++) {
        struct batch *batch = &ledger->batches[i];
        if (batch->fate == FATE_OK && !batch->limbo && (batch->level > LEVEL_ACCEPTED || !ledger->lossy))
            batch->level = LEVEL_DURABLE;
    }
}

static bool must_be_seen(const struct ledger *ledger, const struct batch *batch, enum end end)
{
    /* What nothing but the last flushed group says may rot away: any later one proves those before it. */
    if (ledger->rot_since != 0 && batch->order >= ledger->rot_since &&
        (batch->flush == 0 || batch->flush + ledger->rot_flushes > ledger->flushes))
        return false;
    if (batch->shown)
        return true;
    if (batch->fate != FATE_OK)
        return false;
    return answered_durable(ledger, batch) || (end != END_POWER && batch->level == LEVEL_WRITTEN);
}

void ledger_resolve(struct ledger *ledger, struct batch *batch, bool committed, enum end end)
{
    bool possible = batch->fate == FATE_OK || (batch->fate == FATE_OPEN && batch->complete);
    if (committed && !possible)
        ledger_fail(ledger,
                    "G5: number %u of producer %u on topic %u is said to be committed; batch %u is %s%s",
                    batch->number, batch->producer, batch->topic, batch->id, fate_names[batch->fate],
                    batch->complete ? "" : ", incomplete");
    if (!committed && must_be_seen(ledger, batch, end))
        ledger_fail(ledger,
                    "G5: number %u of producer %u on topic %u is said not to be committed; batch %u was "
                    "answered at level %u%s",
                    batch->number, batch->producer, batch->topic, batch->id, batch->level,
                    batch->shown ? " and shown to a reader" : "");
    if (committed) {
        batch->fate = FATE_OK;
        batch->level = LEVEL_DURABLE;
        batch->limbo = false;
    } else if (batch->fate == FATE_OPEN || batch->fate == FATE_OK) {
        batch->fate = FATE_GONE;
        batch->denied = true;
    }
}

static void settle_one(struct ledger *ledger, struct batch *batch, bool seen, enum end end)
{
    if (batch->fate == FATE_REFUSED || batch->fate == FATE_FAILED || batch->fate == FATE_GONE)
        return; /* being seen was judged by the scan */
    if (!seen && must_be_seen(ledger, batch, end))
        ledger_fail(ledger, "G1: batch %u of topic %u (answered at level %u, group %llu%s) is lost",
                    batch->id, batch->topic, batch->level, (unsigned long long)batch->group,
                    batch->shown ? ", shown to a reader" : "");
    if (seen) {
        batch->fate = FATE_OK;
        batch->level = LEVEL_DURABLE;
        batch->shown = true;
    } else {
        batch->fate = FATE_GONE;
    }
    batch->limbo = false;
    batch->group = 0;
}

/* A pair of epoch and sequence that was answered or shown is never given to another entry, even if it was
 * lost. */
static void check_burnt(struct ledger *ledger, const struct batch *lost)
{
    if (lost->fate != FATE_GONE || !lost->sequenced)
        return;
    for (uint32_t i = 0; i < ledger->count; i++) {
        const struct batch *batch = &ledger->batches[i];
        bool other =
            batch->topic == lost->topic && batch->fate == FATE_OK && batch->sequenced && batch != lost;
        if (other && batch->epoch == lost->epoch &&
            batch->first_sequence < lost->first_sequence + lost->entries &&
            lost->first_sequence < batch->first_sequence + batch->entries)
            ledger_fail(ledger,
                        "topic %u: sequence %llu of epoch %llu was given to batch %u and, once that was "
                        "lost, to batch %u",
                        batch->topic, (unsigned long long)batch->first_sequence,
                        (unsigned long long)batch->epoch, lost->id, batch->id);
    }
}

void ledger_settle(struct ledger *ledger, const uint8_t *seen, enum end end)
{
    uint64_t last[SIM_TOPICS] = {0};
    for (uint32_t i = 0; i < ledger->count; i++) {
        const struct batch *batch = &ledger->batches[i];
        if (seen[batch->id])
            last[batch->topic] = max_u64(last[batch->topic], batch->order);
    }
    for (uint32_t i = 0; i < ledger->count; i++) {
        struct batch *batch = &ledger->batches[i];
        bool counts = batch->fate == FATE_OPEN || batch->denied ||
                      (batch->fate == FATE_OK && (batch->level > LEVEL_ACCEPTED || !ledger->lossy));
        if (!seen[batch->id] && counts && !batch->limbo && batch->complete &&
            batch->order < last[batch->topic])
            ledger_fail(ledger, "G7: batch %u of topic %u is missing, a later one is there", batch->id,
                        batch->topic);
    }
    for (uint32_t i = 0; i < ledger->count; i++)
        settle_one(ledger, &ledger->batches[i], seen[i + 1], end);
    for (uint32_t i = 0; i < ledger->count; i++)
        ledger->batches[i].denied = false;
    for (uint32_t i = 0; i < ledger->count; i++)
        check_burnt(ledger, &ledger->batches[i]);
    ledger->durable_group = 0;
    ledger->lossy = false;
}
