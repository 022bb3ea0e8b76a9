/* toy.c: see toy.h. One file; each write is a record of whole blocks: header, records, payload; one write,
 * one flush, one answer at a time. A stream is kept in memory and becomes one record. A write error ends
 * it (fail-stop), like a failed flush. A start reads the file up to the first invalid record, writes what
 * it has read into a new file, flushes that, renames it over the old one, syncs the folder, and only then
 * serves. */
#include "toy.h"

#include "run.h"

#include <time.h>
#include <xxhash.h>

#define LOG_BYTES   (8ull << 20)
#define MAX_RECORDS 512u
#define TOPICS      16u
#define OPEN_MAX    64u
#define MAGIC       UINT64_C(0x746f796c6f672121)

enum toy_mistake toy_mistake;

struct topic {
    uint32_t number;
    struct log *log;
    char name[32];
    uint64_t next;
    const void *owner;
    uint32_t busy;
};

/* In the log if a record names it; the others live as long as their broker. */
struct producer {
    uint64_t id;
    uint32_t uid;
    char name[16]; /* "": anonymous */
    struct producer *next;
};

struct record {
    uint64_t magic, sum, number, life, first_sequence;
    uint64_t producer, batch_number; /* 0: none */
    uint32_t topic, entries, payload_bytes, bytes, uid, reserved;
    char name[32], producer_name[16];
    struct entry_record entry[];
};

struct item { /* waiting or in flight */
    struct record *record;
    struct write *write;
    struct item *next;
};

struct log {
    struct io *io;
    struct io_file *file;
    struct topic topics[TOPICS];
    uint32_t topic_count;
    struct record *records[MAX_RECORDS];
    uint32_t record_count;
    uint64_t end, next_number, life, leaks;
    struct item *first, **last;
    struct log_read *reads;
    struct write *early;
    struct record *open[OPEN_MAX]; /* streams */
    struct producer *producers;
    uint64_t last_producer;
    struct io_op op;
    bool flying, flushing, abandoned;
    struct error failed;
};

static uint64_t sum_of(const struct record *record)
{
    return XXH3_64bits(&record->number, record->bytes - offsetof(struct record, number));
}

static uint8_t *payload_of(struct record *record)
{
    return (uint8_t *)record + sizeof *record + align_up(record->entries * sizeof(struct entry_record), 16);
}

static struct record *record_new(uint32_t entries, uint64_t payload_bytes)
{
    uint64_t bytes =
        align_up(sizeof(struct record) + align_up(entries * sizeof(struct entry_record), 16) + payload_bytes,
                 SIM_BLOCK);
    struct record *record = aligned_alloc(SIM_BLOCK, bytes);
    check_bug(record != NULL);
    memset(record, 0, bytes);
    record->magic = MAGIC;
    record->entries = entries;
    record->payload_bytes = (uint32_t)payload_bytes;
    record->bytes = (uint32_t)bytes;
    return record;
}

/* ------------------------------------------------------------------------------ commit */

static void take_record(struct log *log, struct record *record)
{
    check_bug(log->record_count < MAX_RECORDS);
    log->records[log->record_count++] = record;
}

static void answer_first(struct log *log, int result)
{
    struct item *item = log->first;
    log->first = item->next;
    if (log->first == NULL)
        log->last = &log->first;
    struct topic *topic = item->write->topic;
    if (item->write->kind != WRITE_APPEND && --topic->busy == 0)
        topic->owner = NULL;
    item->write->result = result;
    item->write->level_reached = LEVEL_DURABLE;
    item->write->first_sequence = item->record->first_sequence;
    item->write->committed = item->record->entries;
    item->write->group = item->record->number;
    if (result == 0)
        take_record(log, item->record);
    else
        free(item->record);
    item->write->done(item->write);
    free(item);
}

static void op_done(struct io_op *op)
{
    struct log *log = op->owner;
    log->flying = false;
    if (log->abandoned)
        return;
    bool counts = toy_mistake == TOY_COUNTS_SHORT_WRITES && op->kind == IO_WRITE && op->result > 0;
    bool good = op->kind == IO_WRITE ? op->result == (int64_t)op->length || counts : op->result == 0;
    if (!good && toy_mistake == TOY_FORGETS_FAILURES && op->kind == IO_WRITE) {
        struct record *record = log->first->record;
        log->end += record->bytes; /* whatever lies there */
        log->next_number = record->number + 1;
        log->topics[record->topic].next = record->first_sequence + record->entries;
        answer_first(log, -EIO);
        return;
    }
    if (!good) {
        error_set(&log->failed, -EIO, "toy log: an op failed with %lld", (long long)op->result);
        return;
    }
    if (op->kind == IO_WRITE && toy_mistake != TOY_ANSWERS_BEFORE_FLUSH) {
        log->flushing = true;
        return;
    }
    log->flushing = false;
    log->end += log->first->record->bytes;
    if (toy_mistake == TOY_WRITES_OVER && log->end > 12 * SIM_BLOCK)
        log->end -= SIM_BLOCK;
    answer_first(log, 0);
}

int64_t log_turn(struct log *log)
{
    if (log->flying || log->failed.code != 0 || log->first == NULL) {
        /* nothing to begin */
    } else if (log->flushing) {
        log->op = (struct io_op){.kind = IO_FLUSH, .file = log->file, .done = op_done, .owner = log};
        log->flying = true;
        io_submit(log->io, &log->op);
    } else {
        struct record *record = log->first->record;
        struct topic *topic = &log->topics[record->topic];
        record->number = log->next_number++;
        record->life = log->life;
        record->first_sequence = topic->next;
        topic->next += record->entries;
        record->sum = sum_of(record);
        log->op = (struct io_op){.kind = IO_WRITE, .file = log->file, .buffer = record, .offset = log->end};
        log->op.length = record->bytes;
        log->op.done = op_done;
        log->op.owner = log;
        log->flying = true;
        io_submit(log->io, &log->op);
    }
    while (log->reads != NULL) {
        struct log_read *read = log->reads;
        log->reads = read->next;
        read->done(read);
    }
    while (log->early != NULL) {
        struct write *write = log->early;
        log->early = write->next;
        write->done(write);
    }
    io_kick(log->io);
    return log->first != NULL && !log->flying ? io_now(log->io) : INT64_MAX;
}

bool log_busy(const struct log *log)
{
    return log->first != NULL;
}

const struct error *log_failed(const struct log *log)
{
    return log->failed.code != 0 ? &log->failed : NULL;
}

/* ------------------------------------------------------------------------------ writes */

/* What a stream has so far; its id is a slot + 1. */
static struct record *stream_record(const struct log *log, const struct stream *stream)
{
    return stream->id == 0 ? NULL : log->open[stream->id - 1];
}

static void stream_keep(struct log *log, struct stream *stream, struct record *record)
{
    if (stream->id == 0 && record != NULL) {
        while (stream->id < OPEN_MAX && log->open[stream->id] != NULL)
            stream->id++;
        check_bug(stream->id < OPEN_MAX);
        stream->id++;
    }
    if (stream->id != 0)
        log->open[stream->id - 1] = record;
    if (record == NULL)
        stream->id = 0;
}

/* The record so far and one more write behind it. */
static struct record *record_joined(struct record *old, const struct write *write)
{
    uint32_t before = old == NULL ? 0 : old->entries, join = old != NULL && write->stream->open_entry;
    uint64_t had = old == NULL ? 0 : old->payload_bytes;
    struct record *record = record_new(before + write->entries - join, had + write->payload_bytes);
    const struct entry_record *entries = write->records;
    if (old != NULL) {
        memcpy(record->entry, old->entry, before * sizeof record->entry[0]);
        memcpy(payload_of(record), payload_of(old), had);
    }
    for (uint32_t i = 0; i < write->entries; i++) {
        struct entry_record *to = &record->entry[before - join + i];
        to->length = entries[i].length + (i == 0 && join ? to->length : 0);
    }
    memcpy(payload_of(record) + had, write->payload, write->payload_bytes);
    return record;
}

static void leak(struct log *log, const struct write *write)
{
    uint8_t *block = aligned_alloc(SIM_BLOCK, SIM_BLOCK);
    check_bug(block != NULL);
    memset(block, 0, SIM_BLOCK);
    memcpy(block, write->payload, min_u64(SIM_BLOCK, write->payload_bytes));
    struct io_op op = {.kind = IO_WRITE, .file = log->file, .buffer = block, .length = SIM_BLOCK};
    op.offset = LOG_BYTES + SIM_BLOCK * log->leaks++;
    if (io_run(log->io, &op) < 0)
        log->failed.code = -EIO;
    free(block);
}

/* ------------------------------------------------------------------------------ numbers */

/* The last record of the producer on the topic. */
static const struct record *last_record(const struct log *log, const struct producer *producer,
                                        const struct topic *topic)
{
    const struct record *last = NULL;
    for (uint32_t i = 0; i < log->record_count; i++) {
        const struct record *record = log->records[i];
        if (record->producer == producer->id && record->topic == topic->number &&
            (toy_mistake != TOY_FORGETS_NUMBERS || record->life == log->life))
            last = record;
    }
    return last;
}

uint64_t log_last_number(const struct log *log, const struct producer *producer, const struct topic *topic)
{
    const struct record *last = last_record(log, producer, topic);
    return last != NULL ? last->batch_number : 0;
}

static uint64_t last_admitted(const struct log *log, const struct producer *producer,
                              const struct topic *topic)
{
    uint64_t admitted = log_last_number(log, producer, topic);
    for (const struct item *item = log->first; item != NULL; item = item->next) {
        if (item->write->producer == producer && item->write->topic == topic)
            admitted = item->write->number;
    }
    return admitted;
}

int log_query(const struct log *log, const struct producer *producer, const struct topic *topic,
              uint64_t number, uint64_t *first_sequence, uint64_t *entries)
{
    const struct record *last = last_record(log, producer, topic);
    *first_sequence = *entries = 0;
    if (number == 0 || number > last_admitted(log, producer, topic))
        return 0;
    if (last == NULL || number > last->batch_number)
        return -EINPROGRESS;
    if (number == last->batch_number) {
        *first_sequence = last->first_sequence;
        *entries = last->entries;
    }
    return number == last->batch_number && toy_mistake == TOY_DENIES_NUMBERS ? 0 : 1;
}

/* 0: it is the next one, or there is none. */
static int check_number(const struct log *log, struct write *write)
{
    if (write->producer == NULL || (write->kind == WRITE_CHUNK && !write->last))
        return 0;
    const struct record *last = last_record(log, write->producer, write->topic);
    if (write->number == 0)
        return -EINVAL;
    if (last != NULL && write->number <= last->batch_number) {
        if (toy_mistake == TOY_TAKES_DUPLICATES)
            return 0;
        bool known = write->number == last->batch_number;
        write->flags |= COMPLETION_DUPLICATE;
        write->first_sequence = known ? last->first_sequence : 0;
        write->committed = known ? last->entries : 0;
        write->level_reached = LEVEL_DURABLE;
        write->result = 0;
        return 1;
    }
    write->reason = REASON_ORDER;
    bool any = toy_mistake == TOY_TAKES_ANY_NUMBER;
    return any || write->number == last_admitted(log, write->producer, write->topic) + 1 ? 0 : -EAGAIN;
}

static struct producer *find_producer(const struct log *log, uint64_t id, const char *name)
{
    struct producer *producer = log->producers;
    while (producer != NULL && (name[0] == 0 ? producer->id != id : strcmp(producer->name, name) != 0))
        producer = producer->next;
    return producer;
}

static struct producer *new_producer(struct log *log, uint64_t id, uint32_t uid, const char *name)
{
    struct producer *producer = calloc(1, sizeof *producer);
    check_bug(producer != NULL);
    *producer = (struct producer){.id = id, .uid = uid, .next = log->producers};
    snprintf(producer->name, sizeof producer->name, "%s", name);
    log->producers = producer;
    return producer;
}

/* Time goes on from life to life, so that no id is given twice. */
static uint64_t new_producer_id(struct log *log)
{
    log->last_producer = max_u64(log->last_producer, (uint64_t)io_now(log->io)) + 1;
    return log->last_producer;
}

int log_producer_named(struct log *log, const char *name, size_t length, uint32_t uid, struct producer **out)
{
    char copy[16];
    snprintf(copy, sizeof copy, "%.*s", (int)length, name);
    *out = find_producer(log, 0, copy);
    if (*out == NULL)
        *out = new_producer(log, new_producer_id(log), uid, copy);
    return (*out)->uid != uid ? -EACCES : 0;
}

int log_producer_anonymous(struct log *log, uint32_t uid, struct producer **out)
{
    *out = new_producer(log, new_producer_id(log), uid, "");
    return 0;
}

int log_producer_again(struct log *log, uint64_t id, uint32_t uid, struct producer **out)
{
    *out = find_producer(log, id, "");
    if (*out == NULL)
        return id > max_u64(log->last_producer, (uint64_t)io_now(log->io)) ? -ENODATA : -ENOENT;
    return (*out)->uid != uid || (*out)->name[0] != 0 ? -EACCES : 0;
}

void log_producer_release(struct log *log, struct producer *producer)
{
    (void)log;
    (void)producer;
}

uint64_t log_producer_id(const struct producer *producer)
{
    return producer->id;
}

/* ------------------------------------------------------------------------------ writes */

static bool adds_up(const struct write *write)
{
    uint32_t most = write->kind == WRITE_CHUNK ? MAX_CHUNK_PAYLOAD : MAX_WHOLE_PAYLOAD;
    const struct entry_record *records = write->records;
    if (write->kind > WRITE_CHUNK || write->level > LEVEL_DURABLE || write->entries > MAX_BATCH_ENTRIES ||
        write->payload_bytes % PAYLOAD_ALIGN != 0 || write->payload_bytes > most ||
        (write->kind == WRITE_CHUNK && write->first == write->stream->admitted))
        return false;
    uint64_t sum = 0;
    bool sound = true;
    for (uint32_t i = 0; i < write->entries; i++) {
        bool goes_on = write->kind == WRITE_CHUNK && !write->last && i + 1 == write->entries;
        sum += align_up(records[i].length, PAYLOAD_ALIGN);
        sound = sound && records[i].header_bytes == 0 && records[i].flags <= (goes_on ? ENTRY_CONTINUES : 0);
    }
    return (sound || toy_mistake == TOY_BELIEVES_FLAGS) && sum == write->payload_bytes;
}

int log_write(struct log *log, struct write *write)
{
    struct topic *topic = write->topic;
    if (log->failed.code != 0)
        return -ESHUTDOWN;
    write->reason = REASON_NONE;
    write->flags = 0;
    if (!adds_up(write))
        return -EINVAL;
    int numbered = check_number(log, write);
    if (numbered == 1 && write->kind == WRITE_CHUNK)
        log_stream_abort(log, write->stream);
    if (numbered == 1)
        return 1;
    if (topic->busy > 0 && topic->owner != write->owner) {
        if (toy_mistake == TOY_WRITES_REFUSED && !log->flying)
            leak(log, write);
        return -EBUSY;
    }
    if (numbered != 0)
        return numbered;
    struct record *old = write->kind == WRITE_CHUNK ? stream_record(log, write->stream) : NULL;
    struct record *record = record_joined(old, write);
    if (log->end + record->bytes * 4 > LOG_BYTES || log->record_count + 32 > MAX_RECORDS) {
        free(record);
        return -ENOSPC;
    }
    snprintf(record->name, sizeof record->name, "%s", topic->name);
    record->topic = topic->number;
    if (write->producer != NULL) {
        record->producer = write->producer->id;
        record->uid = write->producer->uid;
        record->batch_number = write->number;
        snprintf(record->producer_name, sizeof record->producer_name, "%s", write->producer->name);
    }
    if (write->kind != WRITE_APPEND && (write->kind != WRITE_CHUNK || !write->stream->admitted)) {
        topic->busy++;
        topic->owner = write->owner;
    }
    write->result = 0;
    write->next = NULL;
    if (write->kind == WRITE_CHUNK) {
        const struct entry_record *entries = write->records;
        write->stream->admitted = true;
        write->stream->open_entry = write->entries > 0 && entries[write->entries - 1].flags & ENTRY_CONTINUES;
        stream_keep(log, write->stream, write->last ? NULL : record);
        free(old);
    }
    if (write->kind == WRITE_CHUNK && !write->last) {
        write->next = log->early;
        log->early = write;
        return 0;
    }
    struct item *item = calloc(1, sizeof *item);
    check_bug(item != NULL);
    *item = (struct item){.record = record, .write = write};
    *log->last = item;
    log->last = &item->next;
    return 0;
}

void log_stream_abort(struct log *log, struct stream *stream)
{
    if (stream->admitted && --stream->topic->busy == 0)
        stream->topic->owner = NULL;
    if (stream->admitted)
        free(stream_record(log, stream));
    stream_keep(log, stream, NULL);
    stream->admitted = false;
}

/* ------------------------------------------------------------------------------------------------ topics,
 * reads */

int log_topic(struct log *log, const char *name, size_t length, uint8_t level, uint32_t uid, bool make,
              struct topic **out)
{
    (void)uid;
    (void)level;
    for (uint32_t i = 0; i < log->topic_count; i++) {
        if (strlen(log->topics[i].name) == length && memcmp(log->topics[i].name, name, length) == 0) {
            *out = &log->topics[i];
            return 0;
        }
    }
    if (!make || log->topic_count == TOPICS || length >= sizeof log->topics[0].name)
        return make ? -EDQUOT : -ENOENT;
    struct topic *topic = &log->topics[log->topic_count];
    *topic = (struct topic){.number = log->topic_count++, .log = log, .next = 1};
    memcpy(topic->name, name, length);
    *out = topic;
    return 0;
}

void log_topic_release(struct log *log, struct topic *topic)
{
    (void)log;
    (void)topic;
}

static uint64_t visible_next(const struct topic *topic)
{
    uint64_t next = 1;
    for (uint32_t i = 0; i < topic->log->record_count; i++) {
        const struct record *record = topic->log->records[i];
        if (record->topic == topic->number)
            next = record->first_sequence + record->entries;
    }
    return next;
}

void log_topic_view(const struct topic *topic, struct topic_view *view)
{
    *view = (struct topic_view){
        .id = topic->number + 1, .name = topic->name, .level = LEVEL_DURABLE, .first_sequence = 1};
    view->name_length = strlen(topic->name);
    view->visible_next = view->durable_next = visible_next(topic);
}

/* One entry, or a piece of it. */
static void read_entry(struct log_read *read, struct record *record, uint32_t entry)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < entry; i++)
        at += align_up(record->entry[i].length, 16);
    uint64_t whole = record->entry[entry].length, left = whole - min_u64(whole, read->entry_offset);
    uint64_t part = min_u64(left, 16384);
    struct run *run = (struct run *)(void *)read->buffer;
    struct entry_record *to = (struct entry_record *)(void *)(run + 1);
    *run =
        (struct run){.entries = 1, .first_sequence = record->first_sequence + entry, .epoch = record->life};
    if (whole > part || read->entry_offset > 0) {
        run->flags = RUN_PIECE;
        run->entry_bytes = whole;
        run->entry_offset = read->entry_offset;
    }
    *to = (struct entry_record){.length = (uint32_t)part};
    uint64_t head = align_up(sizeof *run + sizeof *to, 16);
    memcpy(read->buffer + head, payload_of(record) + at + read->entry_offset, part);
    run->payload_bytes = (uint32_t)align_up(part, 16);
    run->bytes = read->used = (uint32_t)head + run->payload_bytes;
    read->result = 1;
    read->first_sequence = run->first_sequence;
    read->next_sequence = run->first_sequence + (read->entry_offset + part == whole);
}

void log_read(struct log *log, struct log_read *read)
{
    uint64_t from = read->from == 0 ? 1 : read->from;
    read->result = 0;
    read->used = 0;
    read->next_sequence = from;
    for (uint32_t i = 0; i < log->record_count; i++) {
        struct record *record = log->records[i];
        if (record->topic != read->topic->number || from < record->first_sequence)
            continue;
        if (from - record->first_sequence < record->entries) {
            read_entry(read, record, (uint32_t)(from - record->first_sequence));
            break;
        }
    }
    read->next = log->reads;
    log->reads = read;
}

/* ------------------------------------------------------------------------------------------------ start
 * and stop */

static int64_t simple(struct log *log, enum io_kind kind, struct io_file *file, const char *name,
                      const char *new_name)
{
    struct io_op op = {.kind = kind, .file = file, .name = name, .new_name = new_name, .length = LOG_BYTES};
    if (kind == IO_SYNC_DIRECTORY && toy_mistake == TOY_SKIPS_FOLDER_SYNC)
        return 0;
    int64_t result = io_run(log->io, &op);
    if (result == 0 && (kind == IO_CREATE || kind == IO_OPEN))
        log->file = op.file;
    return result;
}

static bool record_counts(const struct log *log, const struct record *record)
{
    if (record->magic != MAGIC || record->bytes > LOG_BYTES - log->end || record->bytes % SIM_BLOCK != 0 ||
        record->bytes == 0)
        return false;
    uint64_t need =
        sizeof *record + align_up(record->entries * sizeof(struct entry_record), 16) + record->payload_bytes;
    if (record->entries > MAX_BATCH_ENTRIES || need > record->bytes || record->number != log->next_number)
        return false;
    return toy_mistake == TOY_SKIPS_CHECKSUM || record->sum == sum_of(record);
}

static int keep_record(struct log *log, const struct record *from)
{
    struct record *record = aligned_alloc(SIM_BLOCK, from->bytes);
    struct topic *topic;
    check_bug(record != NULL);
    memcpy(record, from, from->bytes);
    record->name[sizeof record->name - 1] = 0;
    int error = log_topic(log, record->name, strlen(record->name), 0, NO_UID, true, &topic);
    if (error != 0 || log->record_count == MAX_RECORDS) {
        free(record);
        return -EBADMSG;
    }
    record->topic = topic->number;
    record->producer_name[sizeof record->producer_name - 1] = 0;
    if (record->producer != 0 && find_producer(log, record->producer, "") == NULL)
        new_producer(log, record->producer, record->uid, record->producer_name);
    topic->next = record->first_sequence + record->entries;
    take_record(log, record);
    log->end += record->bytes;
    log->next_number++;
    log->life = record->life + 1;
    return 0;
}

static int read_log(struct log *log, uint8_t *bytes)
{
    struct io_op op = {.kind = IO_READ, .file = log->file, .buffer = bytes, .length = LOG_BYTES};
    int64_t result = io_run(log->io, &op);
    if (result < 0 && toy_mistake != TOY_READS_ERRORS_AS_END)
        return (int)result;
    uint64_t got = result < 0 ? 0 : (uint64_t)result;
    if (got < log->io->functions->file_size(log->io, log->file) && got < LOG_BYTES &&
        toy_mistake != TOY_READS_ERRORS_AS_END)
        return -EIO;
    memset(bytes + got, 0, LOG_BYTES - got);
    while (log->end + sizeof(struct record) <= LOG_BYTES) {
        const struct record *record = (const struct record *)(const void *)(bytes + log->end);
        if (!record_counts(log, record))
            return 0;
        int error = keep_record(log, record);
        if (error != 0)
            return error;
    }
    return 0;
}

static int write_all(struct log *log)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < log->record_count; i++) {
        struct record *record = log->records[i];
        struct topic *topic = &log->topics[record->topic];
        record->sum = sum_of(record);
        (void)topic;
        struct io_op op = {
            .kind = IO_WRITE, .file = log->file, .buffer = record, .offset = at, .length = record->bytes};
        if (io_run(log->io, &op) != (int64_t)op.length)
            return -EIO;
        at += record->bytes;
    }
    return 0;
}

static int recover(struct log *log)
{
    int64_t error = simple(log, IO_OPEN, NULL, "log", NULL);
    if (error != 0 && error != -ENOENT)
        return (int)error;
    if (error == 0) {
        int64_t waited = 0;
        while (log->io->functions->lock(log->io, log->file) == -EWOULDBLOCK) {
            log->io->functions->sleep(log->io, 10000000);
            if ((waited += 10000000) > INT64_C(30000000000))
                return -ETIMEDOUT;
        }
        uint8_t *bytes = aligned_alloc(SIM_BLOCK, LOG_BYTES);
        check_bug(bytes != NULL);
        error = read_log(log, bytes);
        free(bytes);
        if (error != 0 || toy_mistake == TOY_KEEPS_THE_FILE || toy_mistake == TOY_WRITES_OVER)
            return (int)error;
        error = simple(log, IO_CLOSE, log->file, NULL, NULL);
        if (error != 0)
            return (int)error;
    }
    error = simple(log, IO_UNLINK, NULL, "log.new", NULL);
    if (error == 0 || error == -ENOENT)
        error = simple(log, IO_CREATE, NULL, "log.new", NULL);
    if (error == 0)
        error = simple(log, IO_ALLOCATE, log->file, NULL, NULL);
    if (error == 0)
        error = write_all(log);
    if (error == 0)
        error = simple(log, IO_FLUSH, log->file, NULL, NULL);
    if (error == 0)
        error = simple(log, IO_RENAME, NULL, "log.new", "log");
    return error != 0 ? (int)error : (int)simple(log, IO_SYNC_DIRECTORY, NULL, NULL, NULL);
}

void log_abandon(struct log *log)
{
    log->abandoned = true;
    while (log->io->inflight > 0)
        io_wait(log->io, -1);
    while (log->first != NULL) {
        struct item *item = log->first;
        log->first = item->next;
        free(item->record);
        free(item);
    }
    while (log->producers != NULL) {
        struct producer *producer = log->producers;
        log->producers = producer->next;
        free(producer);
    }
    for (uint32_t i = 0; i < log->record_count; i++)
        free(log->records[i]);
    for (uint32_t i = 0; i < OPEN_MAX; i++)
        free(log->open[i]);
    free(log);
}

int log_start(const struct log_options *options, struct log **out, struct error *err)
{
    struct log *log = calloc(1, sizeof *log);
    check_bug(log != NULL);
    log->io = options->io;
    log->last = &log->first;
    log->next_number = 1;
    log->life = 1;
    if (toy_mistake == TOY_DRAWS_FROM_THE_CLOCK) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        log->life = (uint64_t)now.tv_nsec;
    }
    int error = recover(log);
    if (error == 0) {
        *out = log;
        return 0;
    }
    log_abandon(log);
    return error_set(err, error, "toy log: recovery failed with %d", error);
}

void log_stats(const struct log *log, struct log_stats *stats)
{
    *stats = (struct log_stats){.epoch = log->life};
}

int log_stop(struct log *log, struct error *err)
{
    while (log->first != NULL && log->failed.code == 0) {
        log_turn(log);
        io_wait(log->io, 1000000);
    }
    int error = log->failed.code;
    if (error != 0)
        error_set(err, error, "%s", log->failed.text);
    log_abandon(log);
    return error;
}
