/* run.c: see run.h. */
#include "run.h"

#define MAX_TURNS  400000u
#define READ_BYTES (1u << 20)
#define READ_LEAST (64u << 10)

struct pending {
    struct write write;
    struct run_state *run;
    struct sim_stream *stream;
    uint32_t batch;
    uint32_t role; /* + 1; 0: not numbered */
    struct pending *next, **link;
};

static void say(void *context, enum say priority, const char *line)
{
    (void)context;
    (void)priority;
    (void)line;
}

static void note_written(void *context, const char *name, const void *bytes, uint64_t length)
{
    struct run_state *run = context;
    (void)name;
    ledger_note_written(run->ledger, bytes, length);
}

/* A header block that a start has made void: "WLRVOID1". */
static bool is_void(const void *block)
{
    return memcmp(block, "WLRVOID1", 8) == 0;
}

void run_begin(struct run_state *run, struct image *image, struct ledger *ledger, uint64_t seed)
{
    memset(run, 0, sizeof *run);
    run->disk = disk_start(image, seed);
    run->io = disk_io(run->disk);
    run->options.segment_bytes = SIM_SEGMENT;
    run->options.memory_bytes = 24u << 20;
    run->options.prepare_only_spare = true;
    run->idle_ns = UINT64_C(3000000000);
    run->ledger = ledger;
    run->seed = seed_fork(seed, 10);
    run->payload = aligned_alloc(64, MAX_WHOLE_PAYLOAD);
    run->records = malloc(MAX_BATCH_ENTRIES * sizeof *run->records);
    check_bug(run->payload != NULL && run->records != NULL);
    disk_set_watch(run->disk, &(struct disk_watch){run, note_written, is_void});
}

bool run_alive(const struct run_state *run)
{
    return run->log != NULL && !disk_gone(run->disk) && log_failed(run->log) == NULL;
}

bool run_troubled(const struct run_state *run)
{
    return run->trouble || disk_gone(run->disk) || disk_faults_hit(run->disk) > 0;
}

bool run_start(struct run_state *run)
{
    run->options.io = run->io;
    run->options.max_anonymous = run->ledger->max_anonymous;
    run->options.say = say;
    check_bug(run->log == NULL);
    run->start_error = log_start(&run->options, &run->log, &run->error);
    run->started = run->start_error == 0;
    run->events_at_start = disk_events(run->disk);
    if (run->start_error == 0) {
        if (disk_lands_later(run->disk))
            ledger_fail(run->ledger, "G11: it serves, and a write of its predecessor is still to land");
        if (run_alive(run))
            run_resume(run);
        return true;
    }
    run->log = NULL;
    if (run->rot && run->start_error == -EBADMSG)
        run->damage_seen = true;
    else if (!run_troubled(run))
        ledger_fail(run->ledger, "a start without any fault fails with %d: %s", run->start_error,
                    run->error.text);
    if (run->error.text[0] == 0)
        ledger_fail(run->ledger, "a start fails with %d and no words", run->start_error);
    return false;
}

/* ------------------------------------------------------------------------------ writes */

struct topic *run_topic(struct run_state *run, uint32_t number)
{
    if (run->topics[number] != NULL)
        return run->topics[number];
    char name[32];
    int length = snprintf(name, sizeof name, "topic %u", number);
    uint8_t level = run->ledger->levels[number];
    int error = log_topic(run->log, name, (size_t)length, level, NO_UID, true, &run->topics[number]);
    if (error != 0) {
        ledger_fail(run->ledger, "log_topic fails with %d", error);
        return NULL;
    }
    return run->topics[number];
}

static void unlink_pending(struct pending *pending)
{
    *pending->link = pending->next;
    if (pending->next != NULL)
        pending->next->link = pending->link;
    pending->run->inflight--;
    if (pending->role != 0)
        pending->run->producer_inflight[pending->role - 1]--;
    free(pending);
}

static void answered_ok(struct run_state *run, struct batch *batch, const struct write *write)
{
    struct ledger *ledger = run->ledger;
    uint8_t least = ledger->levels[batch->topic] == 0 ? LEVEL_DURABLE : ledger->levels[batch->topic];
    if (write->level > least)
        least = write->level;
    if (write->level_reached < least)
        ledger_fail(ledger, "batch %u is answered at level %u, asked for was %u", batch->id,
                    write->level_reached, least);
    if (batch->sequenced && batch->first_sequence != write->first_sequence)
        ledger_fail(ledger, "batch %u lies at sequence %llu, its receipt says %llu", batch->id,
                    (unsigned long long)batch->first_sequence, (unsigned long long)write->first_sequence);
    if (write->committed != batch->entries)
        ledger_fail(ledger, "batch %u has %u entries, its receipt says %llu", batch->id, batch->entries,
                    (unsigned long long)write->committed);
    if (batch->order <= run->last_done[batch->topic])
        ledger_fail(ledger, "completions of topic %u come out of commit order: batch %u", batch->topic,
                    batch->id);
    run->last_done[batch->topic] = batch->order;
    uint32_t last = 0, flying;
    if (write->producer != NULL)
        ledger_numbers(ledger, batch->producer, batch->topic, &last, &flying);
    if (write->producer != NULL && batch->number != last + 1)
        ledger_fail(ledger, "G5: topic %u: number %u of producer %u is committed after its number %u",
                    batch->topic, batch->number, batch->producer, last);
    struct log_stats stats;
    log_stats(run->log, &stats);
    batch->epoch = stats.epoch;
    batch->fate = FATE_OK;
    batch->level = write->level_reached;
    batch->sequenced = true;
    batch->first_sequence = write->first_sequence;
    batch->group = write->group;
    bool flushed = write->level_reached == LEVEL_DURABLE;
    if (flushed && write->group != ledger->flushed_group) {
        ledger->flushes++;
        ledger->flushed_group = write->group;
    }
    batch->flush = ledger->flushes + !flushed;
    if (write->level_reached == LEVEL_DURABLE)
        ledger->durable_group = max_u64(ledger->durable_group, write->group);
    run->acked++;
}

/* -EAGAIN: a number before it has failed, so no byte of it went to the disk (those of a stream's chunks may
 * have). */
static void dropped(struct run_state *run, struct batch *batch, const struct write *write)
{
    if (write->producer == NULL || write->reason != REASON_ORDER ||
        log_last_number(run->log, write->producer, write->topic) + 1 == write->number)
        ledger_fail(run->ledger, "batch %u is dropped as out of order (reason %u), and it was not", batch->id,
                    write->reason);
    batch->fate = batch->streamed ? FATE_FAILED : FATE_REFUSED;
    run->dropped++;
}

static void answered(struct write *write)
{
    struct pending *pending = (struct pending *)(void *)write;
    struct run_state *run = pending->run;
    struct sim_stream *stream = pending->stream;
    struct batch *batch = ledger_at(run->ledger, pending->batch);
    bool heard = !disk_gone(run->disk);
    bool decides = stream == NULL || write->last || write->result != 0;
    if (heard && run->log != NULL && log_failed(run->log) != NULL)
        ledger_fail(run->ledger, "G10: batch %u is answered after the log has failed", batch->id);
    if (stream != NULL && stream->dead) { /* known already; the batch may have been sent again */
        if (heard && write->result >= 0)
            ledger_fail(run->ledger, "batch %u is answered %d, and a chunk of it was lost", batch->id,
                        write->result);
        heard = false;
    }
    if (heard && decides)
        batch->flying = false;
    if (heard && decides && batch->fate == FATE_OPEN) {
        if (write->result == 0) {
            answered_ok(run, batch, write);
        } else {
            if (batch->shown)
                ledger_fail(run->ledger, "batch %u was shown to readers and is then answered %d", batch->id,
                            write->result);
            if (!run_troubled(run))
                ledger_fail(run->ledger, "batch %u is answered %d on a sound disk", batch->id, write->result);
            if (write->result == -EAGAIN) {
                dropped(run, batch, write);
            } else {
                batch->fate = FATE_FAILED;
                batch->flush = run->ledger->flushes;
            }
        }
    }
    if (stream != NULL && decides)
        stream->open = false;
    unlink_pending(pending);
}

/* The log has taken the whole batch. */
static void admitted(struct run_state *run, uint32_t batch_id, const struct write *write)
{
    if (ledger_at(run->ledger, batch_id)->fate != FATE_OPEN)
        ledger_reopen(run->ledger, batch_id);
    struct batch *batch = ledger_at(run->ledger, batch_id);
    batch->order = run->ledger->next_order++;
    batch->complete = true;
    batch->flying = write->producer != NULL;
}

/* Refused, or (1) not wanted, because that number is committed. */
static void not_taken(struct run_state *run, uint32_t batch_id, const struct write *write, int error)
{
    struct batch *batch = ledger_at(run->ledger, batch_id);
    run->reason = write->reason;
    if (error != 1 && write->kind != WRITE_CHUNK && batch->order == 0)
        batch->fate = FATE_REFUSED;
}

/* Hands one write to the log; the payload lies in run->payload. 0, 1 (that number is committed) or the
 * refusal. */
static int submit(struct run_state *run, const struct write *model, uint32_t batch_id, uint32_t role,
                  struct sim_stream *stream)
{
    bool whole = model->kind != WRITE_CHUNK || model->last;
    struct pending *pending = calloc(1, sizeof *pending);
    check_bug(pending != NULL);
    pending->write = *model;
    pending->write.payload = run->payload;
    pending->write.records = run->records;
    pending->write.done = answered;
    pending->run = run;
    pending->batch = batch_id;
    pending->stream = stream;
    pending->role = role;
    if (role != 0)
        pending->write.producer = run->producers[role - 1];
    if (!run->wrote && !run->checked)
        ledger_limbo(run->ledger);
    run->wrote = true;
    uint32_t topic = ledger_at(run->ledger, batch_id)->topic, last = 0, before = 0;
    if (role != 0)
        run_numbers(run, run->ledger->roles[role - 1], topic, &last, &before);
    int error = log_write(run->log, &pending->write);
    if (role != 0 && whole)
        run_judge_number(run, &pending->write, ledger_at(run->ledger, batch_id), error, last, before);
    if (error != 0) {
        not_taken(run, batch_id, &pending->write, error);
        free(pending);
        return error;
    }
    if (whole)
        admitted(run, batch_id, &pending->write);
    pending->next = run->pending;
    if (pending->next != NULL)
        pending->next->link = &pending->next;
    pending->link = &run->pending;
    run->pending = pending;
    run->inflight++;
    if (role != 0)
        run->producer_inflight[role - 1]++;
    memset(run->payload, 0xdd, model->payload_bytes); /* the log has its copy */
    return 0;
}

int run_send(struct run_state *run, uint32_t batch_id, const void *owner, uint8_t level, uint32_t role,
             uint64_t number)
{
    const struct batch *batch = ledger_at(run->ledger, batch_id);
    struct topic *to = run_topic(run, batch->topic);
    if (to == NULL)
        return -ENOMEM;
    uint64_t used = 0;
    for (uint32_t i = 0; i < batch->entries; i++) {
        uint64_t length = entry_length(batch, i);
        check_bug(used + align_up(length, PAYLOAD_ALIGN) <= MAX_WHOLE_PAYLOAD);
        run->records[i] = (struct entry_record){.length = (uint32_t)length};
        entry_fill(batch, i, 0, run->payload + used, length);
        memset(run->payload + used + length, 0, align_up(length, PAYLOAD_ALIGN) - length);
        used += align_up(length, PAYLOAD_ALIGN);
    }
    bool append = batch->entries == 1 && (role != 0 || (uintptr_t)owner % 2 == (uintptr_t)run % 2);
    struct write write = {.kind = append ? WRITE_APPEND : WRITE_BATCH,
                          .level = level,
                          .topic = to,
                          .owner = owner,
                          .entries = batch->entries,
                          .payload_bytes = (uint32_t)used,
                          .number = number};
    return submit(run, &write, batch_id, role, NULL);
}

int run_try_write(struct run_state *run, uint32_t topic, uint32_t owner, uint32_t entries, uint32_t bytes,
                  uint8_t level)
{
    if (!run_alive(run))
        return -ESHUTDOWN;
    uint32_t batch = ledger_add(run->ledger, topic, entries, bytes)->id;
    return run_send(run, batch, (const char *)run + owner, level, 0, 0);
}

int run_write(struct run_state *run, uint32_t topic, uint32_t owner, uint32_t entries, uint32_t bytes)
{
    for (uint32_t i = 0; run_alive(run); i++) {
        int error = run_try_write(run, topic, owner, entries, bytes, 0);
        if (error != -EAGAIN && error != -EBUSY)
            return error;
        if (i > MAX_TURNS) {
            ledger_fail(run->ledger, "a write gets %d for ever", error);
            return error;
        }
        run_pump(run, INT64_C(50000000));
    }
    return -ESHUTDOWN;
}

/* ------------------------------------------------------------------------------ streams */

struct sim_stream *run_stream_of(struct run_state *run, uint32_t batch, const void *owner)
{
    struct topic *to = run_topic(run, ledger_at(run->ledger, batch)->topic);
    if (to == NULL)
        return NULL;
    struct sim_stream *stream = calloc(1, sizeof *stream);
    check_bug(stream != NULL);
    stream->run = run;
    stream->batch = batch;
    stream->stream.topic = to;
    stream->stream.owner = owner == NULL ? stream : owner;
    stream->open = true;
    stream->next = run->streams;
    run->streams = stream;
    return stream;
}

struct sim_stream *run_stream(struct run_state *run, uint32_t topic, uint32_t entries, uint32_t bytes)
{
    if (!run_alive(run))
        return NULL;
    return run_stream_of(run, ledger_add(run->ledger, topic, entries, bytes)->id, NULL);
}

/* Lays out the next pieces in run->payload. */
static struct write next_chunk(struct run_state *run, struct sim_stream *stream, uint32_t limit,
                               uint32_t *entry, uint64_t *offset)
{
    const struct batch *batch = ledger_at(run->ledger, stream->batch);
    struct write write = {
        .kind = WRITE_CHUNK, .first = !stream->stream.admitted, .topic = stream->stream.topic};
    write.owner = stream->stream.owner;
    write.stream = &stream->stream;
    limit = (uint32_t)min_u64(max_u64(limit, 8192), MAX_CHUNK_PAYLOAD);
    uint64_t used = 0;
    while (*entry < batch->entries) {
        uint64_t left = entry_length(batch, *entry) - *offset, part = left;
        if (used + align_up(left, PAYLOAD_ALIGN) > limit)
            part = (limit - used) & ~UINT64_C(4095);
        if (part == 0 && left > 0)
            break;
        run->records[write.entries++] =
            (struct entry_record){.length = (uint32_t)part, .flags = part < left ? ENTRY_CONTINUES : 0};
        entry_fill(batch, *entry, *offset, run->payload + used, part);
        memset(run->payload + used + part, 0, align_up(part, PAYLOAD_ALIGN) - part);
        used += align_up(part, PAYLOAD_ALIGN);
        *offset += part;
        if (part < left)
            break;
        *entry += 1;
        *offset = 0;
    }
    write.payload_bytes = (uint32_t)used;
    write.last = *entry == batch->entries;
    return write;
}

/* The number comes with the last chunk. One that somebody else claims by now is not this batch's any more. */
static void number_last(struct run_state *run, const struct sim_stream *stream, struct write *write)
{
    uint32_t role = stream->role - 1;
    struct batch *batch = ledger_at(run->ledger, stream->batch);
    write->number = stream->number != 0 ? stream->number : run_next_number(run, role, batch->topic);
    if (stream->number == 0)
        ledger_claim(run->ledger, batch, run->ledger->roles[role], (uint32_t)write->number);
}

bool run_chunk(struct run_state *run, struct sim_stream *stream, uint32_t bytes)
{
    if (!run_alive(run) || stream == NULL || !stream->open || stream->sent_last)
        return false;
    uint32_t entry = stream->entry;
    uint64_t offset = stream->offset;
    struct write write = next_chunk(run, stream, bytes, &entry, &offset);
    struct batch before = *ledger_at(run->ledger, stream->batch);
    if (stream->role != 0 && write.last)
        number_last(run, stream, &write);
    int error = submit(run, &write, stream->batch, stream->role, stream);
    if (error != 0 && stream->number == 0) /* it has claimed nothing */
        *ledger_at(run->ledger, stream->batch) = before;
    if (error == 1) {
        stream->open = false;
        stream->sent_last = true;
        return false;
    }
    if (error == -EAGAIN || error == -EBUSY || (error == -ENOSPC && !stream->stream.failed)) {
        run_pump(run, INT64_C(50000000));
        return run_alive(run) && stream->open;
    }
    if (error != 0) {
        bool too_many = error == -EDQUOT && stream->role > SIM_NAMED && run->ledger->max_anonymous != 0;
        if (!run_troubled(run) && !stream->stream.failed && !too_many)
            ledger_fail(run->ledger, "a chunk is refused with %d on a sound disk", error);
        run_abort(run, stream);
        return false;
    }
    stream->entry = entry;
    stream->offset = offset;
    stream->sent_last = write.last;
    return !write.last;
}

void run_stream_all(struct run_state *run, struct sim_stream *stream, uint32_t bytes)
{
    for (uint32_t i = 0; run_chunk(run, stream, bytes); i++) {
        if (i > 4000) {
            run_abort(run, stream);
            return;
        }
    }
}

void run_abort(struct run_state *run, struct sim_stream *stream)
{
    if (!run_alive(run) || stream == NULL || stream->sent_last)
        return;
    struct batch *batch = ledger_at(run->ledger, stream->batch);
    log_stream_abort(run->log, &stream->stream);
    if (batch->fate == FATE_OPEN)
        batch->fate = FATE_FAILED;
    stream->open = false;
    stream->sent_last = true;
}

/* ------------------------------------------------------------------------------ time */

void run_pump(struct run_state *run, int64_t limit_ns)
{
    if (!run_alive(run))
        return;
    int64_t due = log_turn(run->log);
    if (!run_alive(run))
        return;
    int64_t now = io_now(run->io);
    int64_t wait = due <= now ? 0 : due - now;
    io_wait(run->io, wait < limit_ns ? wait : limit_ns);
}

void run_settle(struct run_state *run)
{
    for (uint32_t i = 0; run_alive(run) && (run->inflight > 0 || log_busy(run->log)); i++) {
        /* A stream that waits for its next chunk keeps nothing in flight. */
        if (i > MAX_TURNS) {
            ledger_fail(run->ledger, "%u writes are never answered", run->inflight);
            return;
        }
        run_pump(run, INT64_C(100000000));
    }
}

void run_idle(struct run_state *run, int64_t ns)
{
    int64_t end = io_now(run->io) + ns;
    for (uint32_t i = 0; run_alive(run) && io_now(run->io) < end; i++) {
        if (i > MAX_TURNS) {
            ledger_fail(run->ledger, "the log never goes idle");
            return;
        }
        run_pump(run, end - io_now(run->io));
    }
}

static void release_topics(struct run_state *run)
{
    for (uint32_t i = 0; i < SIM_TOPICS; i++) {
        if (run->topics[i] != NULL)
            log_topic_release(run->log, run->topics[i]);
        run->topics[i] = NULL;
    }
}

void run_stop(struct run_state *run)
{
    if (!run_alive(run))
        return;
    for (struct sim_stream *stream = run->streams; stream != NULL; stream = stream->next) {
        if (stream->open)
            run_abort(run, stream);
    }
    release_topics(run);
    run_release_producers(run);
    struct error error = {0};
    struct log *log = run->log;
    int result = log_stop(log, &error);
    run->log = NULL;
    if (result == 0 && !disk_gone(run->disk)) {
        run->stopped = true;
        run->ledger->lossy |= run_troubled(run);
        ledger_stopped(run->ledger);
        if (run->inflight > 0)
            ledger_fail(run->ledger, "a clean stop leaves %u writes unanswered", run->inflight);
    } else if (!run_troubled(run)) {
        ledger_fail(run->ledger, "a clean stop fails with %d: %s", result, error.text);
    }
}

struct image *run_end(struct run_state *run)
{
    if (run->log != NULL) {
        if (!disk_gone(run->disk) && log_failed(run->log) == NULL)
            disk_crash_now(run->disk);
        release_topics(run);
        log_abandon(run->log);
        run->log = NULL;
    }
    if (run->trouble || disk_faults_hit(run->disk) > 0)
        run->ledger->lossy = true;
    if (run->io->inflight > 0)
        ledger_fail(run->ledger, "%u ops are left in flight at the end", run->io->inflight);
    while (run->io->inflight > 0)
        io_wait(run->io, -1);
    while (run->pending != NULL)
        unlink_pending(run->pending);
    while (run->streams != NULL) {
        struct sim_stream *stream = run->streams;
        run->streams = stream->next;
        free(stream);
    }
    run_hostile_end(run);
    if (disk_violation(run->disk) != NULL)
        ledger_fail(run->ledger, "%s", disk_violation(run->disk));
    for (uint32_t i = 0; i < run->ledger->count; i++) {
        struct batch *batch = &run->ledger->batches[i];
        batch->flying = false;
        if (batch->fate == FATE_REFUSED && batch->on_disk)
            ledger_fail(run->ledger, "G4: bytes of batch %u, which was refused, went to the disk", batch->id);
    }
    free(run->payload);
    free(run->records);
    return disk_end(run->disk);
}

/* ------------------------------------------------------------------------------ reads */

struct reader {
    struct log_read read;
    bool finished;
};

static void read_done(struct log_read *read)
{
    ((struct reader *)(void *)read)->finished = true;
}

static uint8_t *read_buffer(void)
{
    static uint8_t buffer[READ_BYTES] __attribute__((aligned(4096)));
    return buffer;
}

/* One log_read, waited for. False: the machine went, or an error that is no promise broken. */
static bool read_once(struct run_state *run, struct reader *reader)
{
    reader->finished = false;
    reader->read.buffer = read_buffer();
    reader->read.buffer_bytes = reader->read.max_bytes <= READ_LEAST / 2 ? READ_LEAST : READ_BYTES;
    reader->read.done = read_done;
    log_read(run->log, &reader->read);
    for (uint32_t i = 0; !reader->finished && run_alive(run); i++) {
        run_pump(run, INT64_C(100000000));
        if (i > MAX_TURNS) {
            ledger_fail(run->ledger, "a read is never answered");
            break;
        }
    }
    if (!reader->finished)
        return false;
    if (reader->read.result >= 0)
        return true;
    if (run->rot && reader->read.result == -EBADMSG)
        run->damage_seen = true;
    else if (!run_troubled(run) && run_alive(run))
        ledger_fail(run->ledger, "a read of topic from %llu fails with %d",
                    (unsigned long long)reader->read.from, reader->read.result);
    return false;
}

static bool feed_runs(struct run_state *run, struct scan *scan, const struct log_read *read)
{
    uint32_t at = 0, entries = 0;
    const uint8_t *buffer = read->buffer;
    while (at < read->used) {
        const struct run *head = (const struct run *)(const void *)(buffer + at);
        uint64_t records =
            align_up(sizeof *head + (uint64_t)head->entries * sizeof(struct entry_record), PAYLOAD_ALIGN);
        if (head->bytes > read->used - at || records > head->bytes ||
            head->payload_bytes > head->bytes - records) {
            ledger_fail(run->ledger, "a read returns a run that does not fit");
            return false;
        }
        const struct entry_record *record = (const struct entry_record *)(const void *)(head + 1);
        const uint8_t *payload = buffer + at + records;
        uint64_t used = 0;
        for (uint32_t i = 0; i < head->entries; i++, record++, entries++) {
            if (align_up(record->length, PAYLOAD_ALIGN) > head->payload_bytes - used) {
                ledger_fail(run->ledger, "a read returns records that do not fit");
                return false;
            }
            scan_feed(scan, head, head->first_sequence + i, payload + used, record->length);
            used += align_up(record->length, PAYLOAD_ALIGN);
        }
        at += head->bytes;
    }
    if ((uint32_t)read->result != entries)
        ledger_fail(run->ledger, "a read returns %u entries and says %d", entries, read->result);
    return run->ledger->failure[0] == 0;
}

void run_read_some(struct run_state *run, uint32_t topic)
{
    if (!run_alive(run))
        return;
    struct topic *from = run_topic(run, topic);
    struct topic_view view;
    if (from == NULL)
        return;
    log_topic_view(from, &view);
    struct reader reader = {0};
    reader.read.topic = from;
    reader.read.max_entries = 1 + (uint32_t)seed_below(&run->seed, 50);
    reader.read.max_bytes = 1 + (uint32_t)seed_below(&run->seed, 32u << 10);
    reader.read.from = view.visible_next > 1 ? 1 + seed_below(&run->seed, view.visible_next) : 0;
    struct scan scan = {0};
    scan_begin(&scan, run->ledger, topic, false);
    if (read_once(run, &reader) && reader.read.result > 0)
        feed_runs(run, &scan, &reader.read);
    free(scan.seen);
}

static void last_numbers(const struct run_state *run, const struct topic *topic, uint64_t last[SIM_ROLES])
{
    for (uint32_t role = 0; role < SIM_ROLES; role++)
        last[role] =
            run->producers[role] != NULL ? log_last_number(run->log, run->producers[role], topic) : 0;
}

/* The last number that a reader finds is the last one that is committed; it may move while he reads. */
static void check_last_numbers(struct run_state *run, uint32_t topic, const uint64_t before[SIM_ROLES],
                               const uint32_t *numbers)
{
    uint64_t after[SIM_ROLES];
    last_numbers(run, run_topic(run, topic), after);
    for (uint32_t role = 0; role < SIM_ROLES; role++) {
        if (run->producers[role] == NULL)
            continue;
        uint8_t producer = run->ledger->roles[role];
        uint64_t seen = numbers[producer - 1];
        if (seen < before[role] || seen > after[role])
            ledger_fail(
                run->ledger,
                "G5: topic %u: the last number of producer %u is %llu, a reader finds its number %llu", topic,
                producer, (unsigned long long)after[role], (unsigned long long)seen);
    }
}

/* Everything of one topic. False: it could not be read to the end. */
static bool read_all(struct run_state *run, uint32_t topic, uint8_t *seen)
{
    struct topic *from = run_topic(run, topic);
    if (from == NULL)
        return false;
    uint64_t before[SIM_ROLES];
    last_numbers(run, from, before);
    struct scan scan = {0};
    scan_begin(&scan, run->ledger, topic, true);
    struct reader reader = {.read = {.topic = from, .max_entries = MAX_BATCH_ENTRIES}};
    bool little = seed_chance(&run->seed, 200);
    reader.read.max_bytes = (little ? READ_LEAST : READ_BYTES) / 2;
    bool good = true;
    for (uint32_t i = 0; good && run->ledger->failure[0] == 0; i++) {
        reader.read.entry_offset = scan.offset;
        good = read_once(run, &reader);
        if (!good || reader.read.result == 0)
            break;
        good = feed_runs(run, &scan, &reader.read);
        uint64_t expected = scan.next_sequence;
        bool gaps = run->ledger->levels[topic] != 0 && run->ledger->levels[topic] != LEVEL_DURABLE &&
                    scan.offset == 0;
        if (good && (gaps ? reader.read.next_sequence < expected : reader.read.next_sequence != expected))
            ledger_fail(run->ledger, "topic %u: a read ends at sequence %llu and says %llu", topic,
                        (unsigned long long)expected, (unsigned long long)reader.read.next_sequence);
        reader.read.from = reader.read.next_sequence;
        if (i > MAX_TURNS)
            ledger_fail(run->ledger, "topic %u never ends", topic);
    }
    for (uint32_t i = 1; i <= run->ledger->count && i <= scan.ledger->count; i++)
        seen[i] |= scan.seen[i];
    if (good) {
        if (run_alive(run))
            check_last_numbers(run, topic, before, scan.numbers);
        scan_end(&scan);
    } else {
        free(scan.seen);
    }
    return good;
}

void run_check(struct run_state *run)
{
    uint8_t *seen = calloc(run->ledger->count + 1, 1);
    check_bug(seen != NULL);
    bool good = true;
    for (uint32_t topic = 0; topic < SIM_TOPICS && good && run_alive(run); topic++) {
        bool used = false;
        for (uint32_t i = 0; i < run->ledger->count && !used; i++)
            used = run->ledger->batches[i].topic == topic;
        if (used)
            good = read_all(run, topic, seen);
    }
    if (good && run_alive(run) && run->ledger->failure[0] == 0) {
        ledger_settle(run->ledger, seen, run->end_before);
        run->checked = true;
        run->visible = 1;
        for (uint32_t i = 1; i <= run->ledger->count; i++)
            run->visible += seen[i] != 0 ? seed_mix(i) << 1 : 0;
        if (run->visible_before != 0 && run->visible != run->visible_before)
            ledger_fail(run->ledger, "G6: a start shows other batches than one of the same bytes did before");
    }
    free(seen);
}
