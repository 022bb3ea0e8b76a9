/* runs.c: what the broker put into the window, read with suspicion.
 *
 * Happy path: run after run: header copied out, sizes checked by subtraction, each record copied out and
 * checked against what is left of the payload; an entry of a plain run points into the window; a piece of a
 * large entry is copied behind the pieces before it.
 *
 * Failure modes: anything impossible (sizes that do not add up, sequences that do not rise, a piece of
 * another entry): -EPROTO. The window may change under us if the broker is hostile; so every number is used
 * from its copy.
 *
 * Invariants: sequences of the entries returned rise strictly from `asked` on; at most max_entries; an
 * entry is never returned without its last byte. */
#include "handle.h"

#define MOST_ENTRY_BYTES (MAX_BATCH_BYTES - ENTRY_OVERHEAD)

static int add_entry(struct walrus_entries *entries, const struct walrus_entry *entry)
{
    if (entries->count == entries->capacity) {
        uint32_t capacity = entries->capacity > 0 ? 2 * entries->capacity : 64;
        struct walrus_entry *grown = realloc(entries->entries, capacity * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        entries->entries = grown;
        entries->capacity = capacity;
    }
    entries->entries[entries->count++] = *entry;
    return 0;
}

static int add_assembled(struct walrus_entries *entries, struct assembly *assembly)
{
    void **heap = realloc(entries->heap, (entries->heap_count + (size_t)1) * sizeof *heap);
    if (heap == NULL)
        return -ENOMEM;
    entries->heap = heap;
    assembly->entry.data = assembly->buffer;
    assembly->entry.length = assembly->bytes;
    int code = add_entry(entries, &assembly->entry);
    if (code < 0)
        return code;
    entries->heap[entries->heap_count++] = assembly->buffer;
    *assembly = (struct assembly){.buffer = NULL};
    return 0;
}

static struct walrus_entry entry_of(const struct run *run, uint64_t sequence,
                                    const struct entry_record *record)
{
    return (struct walrus_entry){
        .sequence = sequence,
        .time_ns = run->time_ns,
        .epoch = run->epoch,
        .type = record->type,
        .unstable = (run->flags & RUN_UNSTABLE) != 0,
    };
}

struct reader {
    const struct runs *runs;
    struct walrus_entries *entries;
    struct assembly *assembly;
    struct error *err;
    uint64_t least; /* sequences are not below it */
    uint32_t at;    /* bytes of the answer that were read */
    bool enough;    /* the rest is for the next read */
};

static int wrong(struct reader *r, const char *what)
{
    return error_set(r->err, -EPROTO, "the broker's answer to a read is impossible (%s at byte %u of %u)",
                     what, r->at, r->runs->length);
}

static int plain_run(struct reader *r, const struct run *run, const uint8_t *records, const uint8_t *payload)
{
    uint32_t left = run->payload_bytes;
    for (uint32_t i = 0; i < run->entries; i++) {
        if (r->entries->count == r->runs->max_entries)
            return wrong(r, "more entries than were asked for");
        struct entry_record record;
        memcpy(&record, records + i * sizeof record, sizeof record);
        if (record.length > left || walrus__padded(record.length) > left)
            return wrong(r, "an entry longer than its run");
        if ((record.flags & ENTRY_CONTINUES) != 0)
            return wrong(r, "a piece among whole entries");
        struct walrus_entry entry = entry_of(run, run->first_sequence + i, &record);
        entry.data = payload + (run->payload_bytes - left);
        entry.length = record.length;
        left -= walrus__padded(record.length);
        int code = add_entry(r->entries, &entry);
        if (code < 0)
            return error_set(r->err, code, "no memory for %u entries", r->entries->count + 1);
        r->least = entry.sequence + 1;
    }
    return 0;
}

/* The first piece of an entry that is seen: memory for all of it. */
static int begin_assembly(struct reader *r, const struct run *run)
{
    if (run->entry_offset != 0)
        return wrong(r, "a piece from the middle of an entry");
    if (run->entry_bytes > MOST_ENTRY_BYTES)
        return wrong(r, "an entry larger than there can be");
    if (r->entries->count > 0 && run->entry_bytes > r->runs->length) {
        r->enough = true; /* a large entry behind small ones: it comes with the next read */
        return 0;
    }
    r->assembly->buffer = malloc(run->entry_bytes > 0 ? run->entry_bytes : 1);
    if (r->assembly->buffer == NULL)
        return error_set(r->err, -ENOMEM, "no memory for an entry of %llu bytes",
                         (unsigned long long)run->entry_bytes);
    r->assembly->bytes = run->entry_bytes;
    r->assembly->got = 0;
    return 0;
}

static int piece_run(struct reader *r, const struct run *run, const uint8_t *records, const uint8_t *payload)
{
    struct assembly *a = r->assembly;
    struct entry_record record;
    memcpy(&record, records, sizeof record);
    if (run->entries != 1 || record.length > run->payload_bytes)
        return wrong(r, "a piece of several entries, or longer than its run");
    if (r->entries->count == r->runs->max_entries)
        return wrong(r, "more entries than were asked for");
    if (a->buffer == NULL) {
        int code = begin_assembly(r, run);
        if (code < 0 || r->enough)
            return code;
    } else if (run->first_sequence != a->entry.sequence || run->entry_bytes != a->bytes) {
        return wrong(r, "a piece of another entry");
    }
    if (run->entry_offset > a->got || record.length > a->bytes - run->entry_offset ||
        run->entry_offset + record.length < a->got ||
        (run->entry_offset + record.length == a->got && a->got < a->bytes))
        return wrong(r, "a piece that does not follow the one before it");
    uint64_t known = a->got - run->entry_offset;
    if (a->buffer == NULL)
        return wrong(r, "a piece of nothing");
    if (record.length > known)
        memcpy(a->buffer + a->got, payload + known, record.length - known);
    a->got += record.length - known;
    a->entry = entry_of(run, run->first_sequence, &record);
    if (a->got < a->bytes) {
        r->least = run->first_sequence;
        return 0;
    }
    int code = add_assembled(r->entries, a);
    if (code < 0)
        return error_set(r->err, code, "no memory for %u entries", r->entries->count + 1);
    r->least = run->first_sequence + 1;
    return 0;
}

static int one_run(struct reader *r)
{
    uint32_t left = r->runs->length - r->at;
    struct run run;
    if (left < sizeof run)
        return wrong(r, "less than a run");
    const uint8_t *at = r->runs->bytes + r->at;
    memcpy(&run, at, sizeof run);
    if (run.bytes > left || run.bytes < sizeof run || run.bytes % PAYLOAD_ALIGN != 0)
        return wrong(r, "the size of a run");
    uint32_t body = run.bytes - (uint32_t)sizeof run;
    if (run.entries == 0 || run.entries > MAX_BATCH_ENTRIES)
        return wrong(r, "the number of entries of a run");
    uint32_t records = (uint32_t)align_up(run.entries * sizeof(struct entry_record), PAYLOAD_ALIGN);
    if (records > body || run.payload_bytes > body - records)
        return wrong(r, "a payload larger than its run");
    bool goes_on = r->assembly->buffer != NULL && run.first_sequence == r->assembly->entry.sequence;
    if ((!goes_on && run.first_sequence < r->least) || run.first_sequence > UINT64_MAX - MAX_BATCH_ENTRIES)
        return wrong(r, "a sequence that does not rise");
    const uint8_t *record_at = at + sizeof run;
    int code;
    if ((run.flags & RUN_PIECE) != 0)
        code = piece_run(r, &run, record_at, record_at + records);
    else if (r->assembly->buffer != NULL)
        code = wrong(r, "a run where a piece must follow");
    else
        code = plain_run(r, &run, record_at, record_at + records);
    r->at += run.bytes;
    return code;
}

int walrus__runs_read(const struct runs *runs, struct walrus_entries *entries, struct assembly *assembly,
                      struct error *err)
{
    struct reader r = {
        .runs = runs, .entries = entries, .assembly = assembly, .err = err, .least = runs->asked};
    while (r.at < runs->length && !r.enough) {
        int code = one_run(&r);
        if (code < 0)
            return code;
    }
    if (assembly->buffer != NULL &&
        entries->count > 0) { /* the begin of a large one behind whole ones: next time */
        free(assembly->buffer);
        *assembly = (struct assembly){.buffer = NULL};
    }
    entries->next_sequence = r.least;
    return 0;
}
