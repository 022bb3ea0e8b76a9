/* hostile.c: clients of a run that send what nobody should. The log is behind the session layer, but what it
 * is handed is hostile memory all the same: counts, lengths and flags that do not add up, chunks out of
 * place. Each must be refused, with not a byte of it on the disk (G4, G16). */
#include "run.h"

static void never(struct write *write)
{
    (void)write;
}

static int lengths_do_not_add_up(struct write *write, struct entry_record *records)
{
    records[1].length += PAYLOAD_ALIGN;
    return write->kind != WRITE_CHUNK;
}

static int length_is_huge(struct write *write, struct entry_record *records)
{
    records[0].length = UINT32_MAX;
    return write->kind != WRITE_CHUNK;
}

static int entry_goes_on_for_ever(struct write *write, struct entry_record *records)
{
    records[0].flags = ENTRY_CONTINUES;
    return write->entries > 1;
}

static int flag_is_unknown(struct write *write, struct entry_record *records)
{
    records[write->entries - 1].flags = 0x80;
    return 1;
}

static int record_has_a_header(struct write *write, struct entry_record *records)
{
    records[0].header_bytes = 16;
    return write->entries > 0;
}

static int payload_is_not_aligned(struct write *write, struct entry_record *records)
{
    (void)records;
    write->payload_bytes -= 1;
    return 1;
}

static int payload_is_too_large(struct write *write, struct entry_record *records)
{
    (void)records;
    write->payload_bytes =
        (write->kind == WRITE_CHUNK ? MAX_CHUNK_PAYLOAD : MAX_WHOLE_PAYLOAD) + PAYLOAD_ALIGN;
    return 1;
}

static int payload_is_missing(struct write *write, struct entry_record *records)
{
    (void)records;
    write->payload_bytes = 0;
    return 1;
}

static int entries_are_too_many(struct write *write, struct entry_record *records)
{
    (void)records;
    write->entries = MAX_BATCH_ENTRIES + 1;
    return 1;
}

static int entries_are_none(struct write *write, struct entry_record *records)
{
    (void)records;
    write->entries = 0;
    return 1;
}

static int level_is_unknown(struct write *write, struct entry_record *records)
{
    (void)records;
    write->level = LEVEL_DURABLE + 1;
    return 1;
}

static int first_chunk_is_not_the_first(struct write *write, struct entry_record *records)
{
    (void)records;
    write->first = !write->first;
    return write->kind == WRITE_CHUNK;
}

static int kind_is_unknown(struct write *write, struct entry_record *records)
{
    (void)records;
    write->kind = (enum write_kind)77;
    return 1;
}

/* Each spoils a write. */
static int (*const spoilers[])(struct write *write, struct entry_record *records) = {
    lengths_do_not_add_up, length_is_huge,         entry_goes_on_for_ever, flag_is_unknown,
    record_has_a_header,   payload_is_not_aligned, payload_is_too_large,   payload_is_missing,
    entries_are_too_many,  entries_are_none,       level_is_unknown,       first_chunk_is_not_the_first,
    kind_is_unknown,
};

/* The whole batch laid out in run->payload, as a write that is in order. */
static struct write honest(struct run_state *run, const struct batch *batch, struct topic *topic)
{
    uint64_t used = 0;
    for (uint32_t i = 0; i < batch->entries; i++) {
        uint64_t length = entry_length(batch, i), padded = align_up(length, PAYLOAD_ALIGN);
        run->records[i] = (struct entry_record){.length = (uint32_t)length};
        memset(run->payload + used, 0, padded);
        entry_fill(batch, i, 0, run->payload + used, length);
        used += padded;
    }
    return (struct write){.kind = WRITE_BATCH,
                          .topic = topic,
                          .entries = batch->entries,
                          .payload_bytes = (uint32_t)used,
                          .payload = run->payload,
                          .records = run->records,
                          .done = never};
}

struct attempt {
    struct attempt *next; /* taken ones, in run->taken */
    struct write write;
    struct stream stream;
};

/* True: it was taken. */
static bool try_it(struct run_state *run, struct attempt *attempt, uint32_t which)
{
    struct write *write = &attempt->write;
    int error = log_write(run->log, write);
    if (error >= 0)
        ledger_fail(run->ledger, "G16: hostile write %u is answered %d", which, error);
    else if (error != -EINVAL && error != -EBUSY && error != -EAGAIN && !run_troubled(run))
        ledger_fail(run->ledger, "G16: hostile write %u is refused with %d", which, error);
    if (write->stream != NULL && error < 0)
        log_stream_abort(run->log, write->stream);
    return error >= 0;
}

void run_hostile(struct run_state *run, uint32_t number)
{
    struct topic *topic = run_alive(run) ? run_topic(run, number) : NULL;
    if (topic == NULL)
        return;
    uint32_t first = (uint32_t)seed_below(&run->seed, array_count(spoilers));
    uint32_t count = 1 + (uint32_t)seed_below(&run->seed, array_count(spoilers));
    for (uint32_t i = 0; i < count && run_alive(run); i++) {
        uint32_t which = (first + i) % array_count(spoilers);
        struct batch *batch = ledger_add(run->ledger, number, 3, 200);
        struct attempt *attempt = calloc(1, sizeof *attempt);
        check_bug(attempt != NULL);
        struct write *write = &attempt->write;
        *write = honest(run, batch, topic);
        attempt->stream.topic = topic;
        batch->fate = FATE_REFUSED;
        write->owner = attempt;
        if (seed_chance(&run->seed, 400)) {
            write->kind = WRITE_CHUNK;
            write->first = true;
            write->last = seed_chance(&run->seed, 500);
            write->stream = &attempt->stream;
        }
        if (spoilers[which](write, run->records) && try_it(run, attempt, which)) {
            attempt->next = run->taken; /* the log may still look at it */
            run->taken = attempt;
            return;
        }
        free(attempt);
    }
}

void run_hostile_end(struct run_state *run)
{
    while (run->taken != NULL) {
        struct attempt *attempt = run->taken;
        run->taken = attempt->next;
        free(attempt);
    }
}
