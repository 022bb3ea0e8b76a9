/* read.c: entries of a topic, verified, into a buffer of the caller (step 8 of DESIGN section 2).
 *
 *   1. Find the row of the batch that holds `from`: in the current segment's rows, else by bisection over the
 *      closed segments' images.
 *   2. Get its frame: from a group buffer that is still in memory (readers at the tail never touch the disk),
 *      from a slot, or by loading a stretch of the segment that begins with it into the slot used longest
 *      ago.
 *   3. Check the frame as if a disk had returned it; emit runs of whole entries while buffer, entry and byte
 *      limits allow.
 *   4. A batch that came in chunks: go from chunk to chunk with a cursor, so that reading on does not begin
 *      at chunk 0.
 *   5. Whatever was emitted is the answer; a read that has nothing yet and needs data or an index that is not
 *      in memory waits in log->reads and is tried again each turn. The first in that list is served first, so
 *      every load helps somebody.
 *
 * Failure: damaged bytes are -EBADMSG with segment, offset, topic and batch in the log, never skipped; a read
 * error is what the device said. Entries already emitted in front of the damage are answered first. */
#include "internal.h"

#define SLOT_BYTES (GROUP_MAX + 2 * BLOCK_MAX)
#define READ_AHEAD (1u << 20)

enum { WAITS = 0, SERVED = 1, ENOUGH = 2 }; /* besides negative errnos */

struct place {
    struct segment *segment;
    struct index_row row;
};

/* --------------------------------------------------------------------------------------- frames in memory */

static void slot_loaded(struct io_op *op)
{
    struct read_slot *slot = op->owner;
    slot->loading = false;
    slot->error = op->result < 0 ? (int)op->result : 0;
    slot->cut = op->result < (int64_t)op->length;
    slot->to = slot->from + (op->result > 0 ? (uint64_t)op->result : 0);
}

static void slot_load(struct log *log, const struct segment *s, const struct index_row *row)
{
    struct read_slot *slot = NULL;
    for (uint32_t i = 0; i < log->slot_count; i++)
        if (!log->slots[i].loading && (slot == NULL || log->slots[i].used < slot->used))
            slot = &log->slots[i];
    if (slot == NULL)
        return;
    if (slot->buffer == NULL)
        slot->buffer = log_aligned(SLOT_BYTES);
    slot->segment = s->number;
    uint32_t align = log->io->functions->file_align(log->io, s->file);
    uint32_t unit = align > BLOCK_MIN ? align : BLOCK_MIN;
    slot->from = row->offset & ~(uint64_t)(unit - 1);
    uint64_t to = align_up((uint64_t)row->offset + row->bytes, unit);
    uint64_t end = align_up(s->end, unit);
    if (to - slot->from < READ_AHEAD)
        to = min_u64(slot->from + READ_AHEAD, end);
    slot->to = to; /* until it is loaded: what will be there */
    slot->used = ++log->clock;
    slot->error = slot->buffer == NULL ? -ENOMEM : 0;
    if (slot->error != 0)
        return;
    slot->loading = true;
    slot->op = (struct io_op){.kind = IO_READ,
                              .file = s->file,
                              .buffer = slot->buffer,
                              .offset = slot->from,
                              .length = to - slot->from,
                              .done = slot_loaded,
                              .owner = slot};
    io_submit(log->io, &slot->op);
}

static bool covers(const struct read_slot *slot, const struct segment *s, const struct index_row *row)
{
    return slot->segment == s->number && row->offset >= slot->from && row->offset <= slot->to &&
           row->bytes <= slot->to - row->offset;
}

static int damaged(struct log *log, const struct log_read *r, const struct place *p, const char *what)
{
    check_bug(p->segment != NULL);
    log->stats.damaged_reads++;
    log_say(log, SAY_ERROR,
            "topic \"%s\": batch from sequence %llu is damaged (segment %llu, file " SEGMENT_FILE
            ", offset %u: %s); run \"walrus check %s\"",
            r->topic->name, (unsigned long long)p->row.sequence, (unsigned long long)p->segment->number,
            (unsigned long long)p->segment->file_number, p->row.offset, what, log->io->folder);
    return -EBADMSG;
}

/* The frame of a row, checked. SERVED and *frame; WAITS: being loaded; or an error. */
static int frame_get(struct log *log, const struct log_read *r, const struct place *p,
                     const struct frame_header **frame)
{
    const struct segment *s = p->segment;
    for (uint32_t i = 0; i < log->group_count; i++) {
        const struct group *g = &log->groups[i];
        if (g->recent && g->segment == s->number && p->row.offset >= g->offset &&
            p->row.offset - g->offset < g->used) {
            *frame = (const struct frame_header *)(const void *)(g->data + (p->row.offset - g->offset));
            log->stats.read_cache_hits++;
            return SERVED;
        }
    }
    for (uint32_t i = 0; i < log->slot_count; i++) {
        struct read_slot *slot = &log->slots[i];
        if (slot->buffer == NULL || slot->to == 0 || slot->segment != s->number)
            continue;
        if (slot->error != 0 && !slot->loading && p->row.offset >= slot->from &&
            p->row.offset - slot->from < SLOT_BYTES) {
            int error = slot->error;
            slot->error = 0;
            slot->to = 0;
            log_say(log, SAY_ERROR, "read of segment %llu at offset %u failed: %s",
                    (unsigned long long)s->number, p->row.offset, strerror(-error));
            return error;
        }
        if (!covers(slot, s, &p->row)) {
            if (!slot->loading && slot->cut && p->row.offset >= slot->from &&
                p->row.offset - slot->from < BLOCK_MIN) {
                slot->to = 0;
                return damaged(log, r, p, "the file ends before it");
            }
            continue;
        }
        if (slot->loading)
            return WAITS;
        const uint8_t *at = slot->buffer + (p->row.offset - slot->from);
        slot->used = ++log->clock;
        if (!frame_check(at, p->row.bytes, s->identity.seed, true))
            return damaged(log, r, p, "checksum mismatch");
        *frame = (const struct frame_header *)(const void *)at;
        if ((*frame)->topic != r->topic->id || (*frame)->stream != p->row.stream)
            return damaged(log, r, p, "the frame of another batch");
        return SERVED;
    }
    if (p->row.offset + (uint64_t)p->row.bytes > s->end)
        return damaged(log, r, p, "it lies behind the segment's end");
    slot_load(log, s, &p->row);
    return WAITS;
}

/* ------------------------------------------------------------------------------------------ emitting runs */

static uint8_t *read_room(struct log_read *r, uint32_t *room)
{
    *room = r->buffer_bytes - r->used;
    return r->buffer + r->used;
}

static void run_end(struct log *log, struct log_read *r, struct run *run, const struct frame_header *frame,
                    uint64_t sequence)
{
    if (r->result == 0)
        r->first_sequence = run->first_sequence;
    if (sequence > r->topic->durable_next) {
        run->flags |= RUN_UNSTABLE;
        r->unstable = true;
    }
    run->time_ns = frame->time_ns;
    r->used += run->bytes;
    r->result += (int)run->entries;
    log->stats.read_entries += run->entries;
    log->stats.read_bytes += run->payload_bytes;
}

/* Whole entries from record `first` on, `count` of them at most; `at` is where their payload begins. How many
 * fitted. */
static uint32_t emit_entries(struct log *log, struct log_read *r, const struct frame_header *frame,
                             uint64_t epoch, uint32_t first, uint32_t count, const uint8_t *at,
                             uint64_t sequence, uint32_t *bytes_left)
{
    const struct entry_record *records = (const struct entry_record *)(const void *)(frame + 1) + first;
    uint32_t room, fitted = 0;
    uint64_t payload = 0;
    uint8_t *to = read_room(r, &room);
    if (room < sizeof(struct run) + 16)
        return 0;
    room -= (uint32_t)sizeof(struct run);
    while (fitted < count && (uint32_t)r->result + fitted < r->max_entries) {
        uint64_t padded = align_up(records[fitted].length, PAYLOAD_ALIGN);
        uint64_t table = align_up((uint64_t)(fitted + 1) * sizeof *records, PAYLOAD_ALIGN);
        if (table + payload + padded > room)
            break;
        if (records[fitted].length > *bytes_left && (r->result > 0 || fitted > 0)) {
            *bytes_left = 0;
            break;
        }
        payload += padded;
        *bytes_left -= records[fitted].length < *bytes_left ? records[fitted].length : *bytes_left;
        fitted++;
        if (*bytes_left == 0)
            break;
    }
    if (fitted == 0)
        return 0;
    uint32_t table = (uint32_t)align_up((uint64_t)fitted * sizeof *records, PAYLOAD_ALIGN);
    struct run *run = (struct run *)(void *)to;
    *run = (struct run){
        .bytes = (uint32_t)(sizeof *run + table + payload),
        .entries = fitted,
        .first_sequence = sequence,
        .epoch = epoch,
        .payload_bytes = (uint32_t)payload,
    };
    memset(to + sizeof *run, 0, table);
    memcpy(to + sizeof *run, records, fitted * sizeof *records);
    memcpy(to + sizeof *run + table, at, payload);
    run_end(log, r, run, frame, sequence + fitted);
    return fitted;
}

struct piece {
    const uint8_t *at;
    uint64_t length;       /* bytes left in this frame */
    uint64_t entry_offset; /* of `at` in the entry */
    uint64_t entry_bytes;
    uint8_t type;
};

/* A piece of one entry; always alone in its answer. False: no room for any. */
static bool emit_piece(struct log *log, struct log_read *r, const struct frame_header *frame, uint64_t epoch,
                       const struct piece *piece, uint64_t sequence)
{
    uint32_t room;
    uint8_t *to = read_room(r, &room);
    uint32_t head = sizeof(struct run) + 16;
    if (r->result > 0 || room < head + 4096)
        return false;
    uint64_t length = piece->length;
    if (length > room - head)
        length = (room - head) & ~UINT32_C(4095);
    uint32_t padded = (uint32_t)align_up(length, PAYLOAD_ALIGN);
    struct run *run = (struct run *)(void *)to;
    *run = (struct run){
        .bytes = head + padded,
        .entries = 1,
        .first_sequence = sequence,
        .epoch = epoch,
        .entry_bytes = piece->entry_bytes,
        .entry_offset = piece->entry_offset,
        .flags =
            RUN_PIECE | (piece->entry_offset + length == piece->entry_bytes ? (uint32_t)RUN_LAST_PIECE : 0),
        .payload_bytes = padded,
    };
    struct entry_record record[2] = {{.length = (uint32_t)length, .type = piece->type}};
    memcpy(to + sizeof *run, record, 16);
    memcpy(to + head, piece->at, length);
    memset(to + head + length, 0, padded - length);
    run_end(log, r, run, frame, sequence + 1);
    if (piece->entry_offset + length == piece->entry_bytes)
        r->next_sequence = sequence + 1;
    return true;
}

static const uint8_t *payload_at(const struct frame_header *frame, uint32_t record)
{
    const struct entry_record *records = (const struct entry_record *)(const void *)(frame + 1);
    const uint8_t *at = (const uint8_t *)frame + frame->header_bytes;
    for (uint32_t i = 0; i < record; i++)
        at += align_up(records[i].length, PAYLOAD_ALIGN);
    return at;
}

/* ------------------------------------------------------------------------------------------ whole batches */

static int serve_whole(struct log *log, struct log_read *r, const struct place *p, uint32_t *bytes_left)
{
    const struct frame_header *frame = NULL;
    int got = frame_get(log, r, p, &frame);
    if (got != SERVED)
        return got;
    check_bug(frame != NULL);
    if (frame->kind != FRAME_BATCH || frame->first_sequence != p->row.sequence ||
        frame->entries != p->row.entries)
        return damaged(log, r, p, "the frame of another batch");
    uint64_t sequence = r->next_sequence;
    uint32_t first = (uint32_t)(sequence - p->row.sequence);
    uint32_t count = (uint32_t)min_u64(frame->entries - first, r->end_sequence - sequence);
    const uint8_t *at = payload_at(frame, first);
    const struct entry_record *record = (const struct entry_record *)(const void *)(frame + 1) + first;
    if (r->entry_offset == 0) {
        uint32_t fitted =
            emit_entries(log, r, frame, p->segment->identity.epoch, first, count, at, sequence, bytes_left);
        r->next_sequence += fitted;
        if (fitted > 0)
            return fitted == count && *bytes_left > 0 ? SERVED : ENOUGH;
    }
    if (r->entry_offset > record->length)
        return -EINVAL;
    struct piece piece = {.at = at + r->entry_offset,
                          .length = record->length - r->entry_offset,
                          .entry_offset = r->entry_offset,
                          .entry_bytes = record->length,
                          .type = record->type};
    (void)emit_piece(log, r, frame, p->segment->identity.epoch, &piece, sequence);
    return ENOUGH;
}

/* -------------------------------------------------------------------------------------- batches in chunks */

static struct stream_cursor *cursor_find(struct log *log, uint64_t stream, uint64_t entry, uint64_t offset)
{
    struct stream_cursor *best = NULL;
    for (uint32_t i = 0; i < CURSORS_MAX; i++) {
        struct stream_cursor *c = &log->cursors[i];
        if (c->stream != stream || c->entry > entry || (c->entry == entry && c->entry_offset > offset))
            continue;
        if (best == NULL || c->chunk > best->chunk)
            best = c;
    }
    return best;
}

static struct stream_cursor *cursor_new(struct log *log, const struct stream_cursor *from)
{
    struct stream_cursor *oldest = &log->cursors[0];
    for (uint32_t i = 1; i < CURSORS_MAX; i++)
        if (log->cursors[i].used < oldest->used)
            oldest = &log->cursors[i];
    *oldest = *from;
    oldest->used = ++log->clock;
    return oldest;
}

static struct segment *segment_by_number(struct log *log, uint64_t number, uint32_t *index)
{
    uint32_t low = 0, high = log->segment_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (log->segments[middle]->number < number)
            low = middle + 1;
        else
            high = middle;
    }
    *index = low;
    return low < log->segment_count ? log->segments[low] : NULL; /* the first one not below it */
}

static bool chunk_row(const struct index_row *rows, uint32_t count, uint64_t stream, uint32_t chunk,
                      struct index_row *out)
{
    for (uint32_t i = 0; i < count; i++) {
        if (rows[i].stream == stream && rows[i].chunk == chunk) {
            *out = rows[i];
            return true;
        }
    }
    return false;
}

/* Chunks are named by stream and number; `from`, which a disk may have said, is the segment where to begin
 * looking, the batch's own the last one. */
static int chunk_find(struct log *log, const struct log_read *r, const struct place *batch, uint32_t chunk,
                      uint64_t from, struct place *out)
{
    uint64_t stream = batch->row.stream;
    uint32_t index;
    (void)segment_by_number(log, from, &index);
    for (; index < log->segment_count && log->segments[index]->number <= batch->segment->number; index++) {
        struct segment *s = log->segments[index];
        out->segment = s;
        bool found;
        if (index + 1 == log->segment_count) {
            found = chunk_row(log->chunk_rows.rows, log->chunk_rows.count, stream, chunk, &out->row);
        } else {
            int need = index_need(log, s);
            if (need <= 0)
                return need;
            found = chunk_row(s->image.chunks, s->image.chunk_count, stream, chunk, &out->row);
        }
        if (found)
            return SERVED;
    }
    return damaged(log, r, batch, "a chunk of it is missing");
}

/* Whole length of the entry of which `so_far` bytes lie up to the end of chunk c->chunk: the rows of the
 * chunks behind it tell. A chunk in which no entry ends is one piece. */
static int entry_total(struct log *log, const struct log_read *r, const struct place *batch,
                       const struct stream_cursor *c, uint64_t so_far, uint64_t *total)
{
    uint64_t segment = c->segment;
    for (uint32_t chunk = c->chunk + 1;; chunk++) {
        struct place p = {0};
        int found = chunk_find(log, r, batch, chunk, segment, &p);
        if (found != SERVED)
            return found;
        segment = p.segment->number;
        so_far += p.row.sequence;
        if (p.row.entries > 0) {
            *total = so_far;
            return SERVED;
        }
    }
}

/* Record `i` of the chunk is where reading goes on: a run of whole entries, or a piece. */
static int serve_record(struct log *log, struct log_read *r, const struct place *batch,
                        const struct frame_header *frame, uint32_t i, const struct stream_cursor *c,
                        uint64_t offset, uint32_t *bytes_left)
{
    const struct entry_record *record = (const struct entry_record *)(const void *)(frame + 1) + i;
    bool goes_on = (record->flags & ENTRY_CONTINUES) != 0;
    uint64_t epoch = batch->segment->identity.epoch;
    if (offset == 0 && r->entry_offset == 0 && !goes_on) {
        uint32_t count = (uint32_t)min_u64(frame->ended - i, r->end_sequence - r->next_sequence);
        uint32_t fitted =
            emit_entries(log, r, frame, epoch, i, count, payload_at(frame, i), r->next_sequence, bytes_left);
        r->next_sequence += fitted;
        if (fitted > 0)
            return fitted == count && *bytes_left > 0 ? SERVED : ENOUGH;
    }
    uint64_t skip = r->entry_offset - offset, total = record->length;
    if (skip > record->length)
        return -EINVAL;
    if (offset != 0) {
        total = c->entry_bytes;
    } else if (goes_on) {
        int got = entry_total(log, r, batch, c, record->length, &total);
        if (got != SERVED)
            return got;
    }
    struct piece piece = {.at = payload_at(frame, i) + skip,
                          .length = record->length - skip,
                          .entry_offset = r->entry_offset,
                          .entry_bytes = total,
                          .type = record->type};
    (void)emit_piece(log, r, frame, epoch, &piece, r->next_sequence);
    return ENOUGH;
}

/* The chunk that the cursor stands at: emits what is wanted of it, or moves the cursor behind it. */
static int serve_chunk(struct log *log, struct log_read *r, const struct place *batch, const struct place *p,
                       struct stream_cursor *c, uint32_t *bytes_left)
{
    const struct frame_header *frame = NULL;
    int got = frame_get(log, r, p, &frame);
    if (got != SERVED)
        return got;
    if (frame->chunk != c->chunk || (frame->kind != FRAME_CHUNK && frame->kind != FRAME_LAST))
        return damaged(log, r, p, "the frame of another chunk");
    const struct entry_record *records = (const struct entry_record *)(const void *)(frame + 1);
    uint64_t want = r->next_sequence - batch->row.sequence;
    struct stream_cursor next = *c;
    next.chunk++;
    for (uint32_t i = 0; i < frame->entries; i++) {
        bool goes_on = (records[i].flags & ENTRY_CONTINUES) != 0;
        bool inside = next.entry_offset <= r->entry_offset &&
                      (r->entry_offset - next.entry_offset < records[i].length || !goes_on);
        if (next.entry == want && inside)
            return serve_record(log, r, batch, frame, i, c, next.entry_offset, bytes_left);
        if (goes_on && next.entry_offset == 0) {
            got = entry_total(log, r, batch, c, records[i].length, &next.entry_bytes);
            if (got != SERVED)
                return got;
        }
        next.entry += !goes_on;
        next.entry_offset = goes_on ? next.entry_offset + records[i].length : 0;
    }
    if (frame->kind == FRAME_LAST)
        return damaged(log, r, p, "its chunks hold fewer entries than it has");
    cursor_new(log, &next);
    return SERVED;
}

static int serve_stream(struct log *log, struct log_read *r, const struct place *batch, uint32_t *bytes_left)
{
    uint64_t want = r->next_sequence - batch->row.sequence;
    struct stream_cursor *c = cursor_find(log, batch->row.stream, want, r->entry_offset);
    if (c == NULL) {
        const struct frame_header *last;
        int got = frame_get(log, r, batch, &last);
        if (got != SERVED)
            return got;
        if (last->kind != FRAME_LAST || last->first_sequence != batch->row.sequence)
            return damaged(log, r, batch, "the frame of another batch");
        c = cursor_new(log,
                       &(struct stream_cursor){.stream = batch->row.stream, .segment = last->first_segment});
    }
    c->used = ++log->clock;
    struct place chunk = {0};
    int found = chunk_find(log, r, batch, c->chunk, c->segment, &chunk);
    if (found != SERVED)
        return found;
    c->segment = chunk.segment->number;
    return serve_chunk(log, r, batch, &chunk, c, bytes_left);
}

/* -------------------------------------------------------------------------------------- finding the batch */

/* The last row with a sequence at or below `from`, or if the batch there ends before it (burnt sequences),
 * the next row. */
static const struct index_row *row_at(const struct index_row *rows, uint32_t count, uint64_t from)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (rows[middle].sequence <= from)
            low = middle + 1;
        else
            high = middle;
    }
    if (low > 0 && from - rows[low - 1].sequence < rows[low - 1].entries)
        return &rows[low - 1];
    return low < count ? &rows[low] : NULL;
}

/* Bisection over closed segments: search = {low, high, best + 1, next to try + 1}; it survives waiting for
 * images. */
static int bisect(struct log *log, struct log_read *r)
{
    uint64_t *low = &r->search[0], *high = &r->search[1], *best = &r->search[2], *probe = &r->search[3];
    while (*low < *high) {
        if (*probe == 0)
            *probe = (*low + *high) / 2 + 1;
        struct segment *s = log->segments[*probe - 1];
        int need = index_need(log, s);
        if (need == WAITS)
            return WAITS;
        /* One that cannot be read is stepped over here: if what is wanted may lie in it, locate() meets it
         * again and says so. */
        const struct index_topic *t = need < 0 ? NULL : index_image_topic(&s->image, r->topic->id);
        if (t == NULL) {
            if (--*probe == 0 || *probe - 1 < *low) { /* none from here down to low */
                *low = (*low + *high) / 2 + 1;
                *probe = 0;
            }
            continue;
        }
        if (s->image.rows[t->first_row].sequence <= r->next_sequence) {
            *best = *probe;
            uint64_t middle = (*low + *high) / 2;
            *low = middle + 1;
        } else {
            *high = *probe - 1;
        }
        *probe = 0;
    }
    return SERVED;
}

static int locate(struct log *log, struct log_read *r, struct place *out)
{
    struct topic *t = r->topic;
    uint64_t from = r->next_sequence;
    struct segment *current = log_current(log);
    if (t->row_count > 0 && from >= t->rows[0].sequence) {
        const struct index_row *row = row_at(t->rows, t->row_count, from);
        if (row == NULL)
            return -ENODATA;
        *out = (struct place){current, *row};
        return SERVED;
    }
    if (r->search[1] == UINT64_MAX) {
        r->search[0] = 0;
        r->search[1] = log->segment_count - 1;
        r->search[2] = r->search[3] = 0;
    }
    int got = bisect(log, r);
    if (got != SERVED)
        return got;
    /* From the segment found on, the first row at or behind `from`: burnt sequences may push it into a later
     * segment. */
    for (uint64_t i = r->search[2] == 0 ? 0 : r->search[2] - 1; i + 1 < log->segment_count; i++) {
        struct segment *s = log->segments[i];
        int need = index_need(log, s);
        if (need <= 0)
            return need;
        r->search[2] = i + 1;
        const struct index_topic *it = index_image_topic(&s->image, t->id);
        const struct index_row *row =
            it == NULL ? NULL : row_at(s->image.rows + it->first_row, it->rows, from);
        if (row != NULL) {
            *out = (struct place){s, *row};
            return SERVED;
        }
    }
    if (t->row_count == 0)
        return -ENODATA;
    *out = (struct place){current, t->rows[0]};
    return SERVED;
}

/* ----------------------------------------------------------------------------------------------- one read */

/* True when the read is finished. */
static bool read_step(struct log *log, struct log_read *r)
{
    uint32_t bytes_left = r->max_bytes;
    r->end_sequence = topic_visible_next(r->topic);
    while (r->next_sequence < r->end_sequence && (uint32_t)r->result < r->max_entries) {
        struct place place = {0};
        int got = locate(log, r, &place);
        if (got == SERVED) {
            if (place.row.sequence > r->next_sequence) {
                r->next_sequence = place.row.sequence; /* burnt sequences are skipped */
                r->entry_offset = 0;
                if (r->next_sequence >= r->end_sequence)
                    break;
            }
            got = place.row.stream == 0 ? serve_whole(log, r, &place, &bytes_left)
                                        : serve_stream(log, r, &place, &bytes_left);
        }
        if (got == SERVED)
            continue;
        if (got == WAITS && r->result == 0)
            return false;
        if (got < 0 && r->result == 0)
            r->result = got;
        break;
    }
    return true;
}

void log_read(struct log *log, struct log_read *r)
{
    check_bug(r->done != NULL && r->topic != NULL && r->buffer_bytes >= 16384);
    log->stats.reads++;
    r->result = 0;
    r->used = 0;
    r->unstable = false;
    r->first_sequence = 0;
    r->next_sequence = r->from == 0 ? 1 : r->from;
    r->search[1] = UINT64_MAX; /* no search begun */
    r->next = NULL;
    if (r->max_entries == 0 || r->max_entries > MAX_BATCH_ENTRIES || r->entry_offset % 4096 != 0)
        r->result = -EINVAL;
    *log->reads_last = r;
    log->reads_last = &r->next;
}

void reads_turn(struct log *log)
{
    /* `done` may add reads: they go to the end of the list and are looked at too. */
    struct log_read **link = &log->reads_first;
    while (*link != NULL) {
        struct log_read *r = *link;
        bool finished = r->result < 0 || log->failed.code != 0 || read_step(log, r);
        if (!finished) {
            link = &r->next;
            continue;
        }
        *link = r->next;
        if (*link == NULL)
            log->reads_last = link;
        if (log->failed.code != 0 && r->result == 0)
            r->result = -ESHUTDOWN;
        r->done(r);
    }
    /* Every read that waited for it has heard of it; the next one tries again. */
    if (log->loader.failed != NULL)
        log->loader.failed->load_error = 0;
    log->loader.failed = NULL;
}

bool reads_busy(const struct log *log)
{
    for (uint32_t i = 0; i < log->slot_count; i++)
        if (log->slots[i].loading)
            return true;
    return false;
}
