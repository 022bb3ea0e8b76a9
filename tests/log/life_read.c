#include "life.h"

#define MUCH (1u << 20)

static void read_done(struct log_read *read)
{
    struct reading *reading = read->owner;
    reading->done = true;
}

void life_read_begin(struct life *life, struct reading *r)
{
    r->life = life;
    r->done = false;
    uint32_t size = r->buffer_bytes != 0 ? r->buffer_bytes : MUCH;
    void *buffer = NULL;
    cr_assert_eq(posix_memalign(&buffer, 64, size), 0);
    r->buffer = buffer;
    struct topic *topic;
    cr_assert_eq(log_topic(life->log, r->name, strlen(r->name), 0, NO_UID, false, &topic), 0, "no topic %s",
                 r->name);
    r->read = (struct log_read){
        .topic = topic,
        .from = r->from,
        .entry_offset = r->entry_offset,
        .max_entries = r->max_entries != 0 ? r->max_entries : MAX_BATCH_ENTRIES,
        .max_bytes = r->max_bytes != 0 ? r->max_bytes : UINT32_MAX,
        .buffer = r->buffer,
        .buffer_bytes = size,
        .done = read_done,
        .owner = r,
    };
    log_read(life->log, &r->read);
}

/* Takes the runs apart as a client would, and holds them to their own rules. */
static void judge(struct reading *r)
{
    uint64_t sequence = r->read.first_sequence;
    uint32_t at = 0;
    int entries = 0;
    r->right = true;
    while (at < r->read.used) {
        struct run run;
        cr_assert_geq(r->read.used - at, sizeof run);
        memcpy(&run, r->buffer + at, sizeof run);
        uint32_t table = (uint32_t)align_up(run.entries * sizeof(struct entry_record), PAYLOAD_ALIGN);
        cr_assert_eq(run.bytes, sizeof run + table + run.payload_bytes);
        cr_assert_leq(run.bytes, r->read.used - at);
        cr_assert_eq(run.reserved, 0u);
        cr_assert_eq(run.first_sequence, sequence, "a gap inside one answer");
        const uint8_t *payload = r->buffer + at + sizeof run + table;
        for (uint32_t i = 0; i < run.entries; i++) {
            struct entry_record record;
            memcpy(&record, r->buffer + at + sizeof run + i * sizeof record, sizeof record);
            if ((run.flags & RUN_PIECE) == 0) {
                r->right = r->right && entry_right(payload, record.length, r->name, sequence) &&
                           record.type == (uint8_t)sequence;
                r->entries++;
                r->bytes += record.length;
            }
            payload += align_up(record.length, PAYLOAD_ALIGN);
            sequence++;
            entries++;
        }
        at += run.bytes;
    }
    cr_assert_eq(entries, r->read.result);
}

void life_read_end(struct life *life, struct reading *r)
{
    for (unsigned turns = 0; !r->done; turns++) {
        life_turn(life);
        cr_assert_lt(turns, 20000u, "a read of %s from %llu does not end", r->name,
                     (unsigned long long)r->from);
    }
    if (r->read.result > 0)
        judge(r);
    log_topic_release(life->log, r->read.topic);
}

void life_read(struct life *life, struct reading *r)
{
    life_read_begin(life, r);
    life_read_end(life, r);
}

void reading_free(struct reading *r)
{
    free(r->buffer);
    r->buffer = NULL;
}

struct joined { /* an entry that comes in pieces */
    uint8_t *data;
    uint64_t length;
};

/* The first run of the answer is a piece: adds it. True when the entry is whole. */
static bool join(struct joined *joined, const struct reading *r)
{
    struct run run;
    struct entry_record record;
    memcpy(&run, r->buffer, sizeof run);
    memcpy(&record, r->buffer + sizeof run, sizeof record);
    cr_assert_eq(run.entry_offset, joined->length, "the piece lies elsewhere than asked");
    joined->data = realloc(joined->data, joined->length + record.length + 1);
    check_bug(joined->data != NULL);
    memcpy(joined->data + joined->length, r->buffer + sizeof run + PAYLOAD_ALIGN, record.length);
    joined->length += record.length;
    cr_assert_geq(run.entry_bytes, joined->length, "%llu bytes came of an entry of %llu",
                  (unsigned long long)joined->length, (unsigned long long)run.entry_bytes);
    bool last = run.entry_bytes == joined->length;
    cr_assert(last || (record.length % 4096 == 0 && record.length > 0), "a piece of %u bytes", record.length);
    return last;
}

uint64_t life_read_all(struct life *life, const char *name, uint64_t from, uint32_t buffer_bytes)
{
    uint64_t sequence = from, count = 0;
    struct joined joined = {0};
    for (;;) {
        struct reading r = {
            .name = name, .from = sequence, .entry_offset = joined.length, .buffer_bytes = buffer_bytes};
        life_read(life, &r);
        cr_assert_geq(r.read.result, 0, "read of %s from %llu: %d; the log said:\n%s", name,
                      (unsigned long long)sequence, r.read.result,
                      life->said != NULL ? life->said : "nothing");
        if (r.read.result == 0) {
            reading_free(&r);
            break;
        }
        struct run run;
        memcpy(&run, r.buffer, sizeof run);
        cr_assert_eq(r.read.first_sequence, sequence, "entry %llu of %s is missing",
                     (unsigned long long)sequence, name);
        if ((run.flags & RUN_PIECE) != 0) {
            bool whole = join(&joined, &r);
            cr_assert_eq(r.read.next_sequence, whole ? sequence + 1 : sequence);
            if (whole) {
                cr_assert(entry_right(joined.data, joined.length, name, sequence),
                          "entry %llu of %s is wrong", (unsigned long long)sequence, name);
                free(joined.data);
                joined = (struct joined){0};
                count++;
            }
        } else {
            cr_assert(r.right, "entries of %s from %llu are wrong", name, (unsigned long long)sequence);
            count += r.entries;
        }
        sequence = r.read.next_sequence;
        reading_free(&r);
    }
    free(joined.data);
    return count;
}

void life_verify(struct life *life)
{
    for (size_t i = 0; i < life->model_count; i++) {
        const struct model_topic *t = &life->model[i];
        struct topic *topic;
        int error = log_topic(life->log, t->name, strlen(t->name), 0, NO_UID, false, &topic);
        if (error == -ENOENT && t->next == 1)
            continue;
        cr_assert_eq(error, 0, "topic %s is gone", t->name);
        struct topic_view view;
        log_topic_view(topic, &view);
        cr_assert_eq(view.visible_next, t->next, "%s: visible to %llu, committed to %llu", t->name,
                     (unsigned long long)view.visible_next, (unsigned long long)t->next);
        log_topic_release(life->log, topic);
        if (t->next > 1)
            cr_assert_eq(life_read_all(life, t->name, 1, 0), t->next - 1);
    }
}
