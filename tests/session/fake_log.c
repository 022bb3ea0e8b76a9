#include "fake_log.h"

/* A stream's entries until its last chunk: hung on the struct stream by its id. */
struct pending {
    struct pending *next;
    const struct stream *stream;
    struct fake_entry *entries;
    size_t count;
};
static struct pending *pendings; /* tests run one log per process */

void fake_log_init(struct log *log, struct io *io)
{
    *log = (struct log){.io = io, .next_id = 1};
    log->last = &log->first;
    log->stats.epoch = 7;
}

static void entries_free(struct fake_entry *entries, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(entries[i].bytes);
    free(entries);
}

void fake_log_clear(struct log *log)
{
    struct topic *next;
    for (struct topic *topic = log->topics; topic != NULL; topic = next) {
        next = topic->next;
        entries_free(topic->entries, topic->count);
        free(topic);
    }
    while (log->producers != NULL) {
        struct producer *producer = log->producers;
        log->producers = producer->next;
        free(producer);
    }
    while (log->numbers != NULL) {
        struct fake_number *number = log->numbers;
        log->numbers = number->next;
        free(number);
    }
}

struct topic *fake_topic(struct log *log, const char *name)
{
    for (struct topic *topic = log->topics; topic != NULL; topic = topic->next)
        if (strcmp(topic->name, name) == 0)
            return topic;
    return NULL;
}

int fake_references(const struct log *log)
{
    int refs = 0;
    for (const struct topic *topic = log->topics; topic != NULL; topic = topic->next)
        refs += topic->refs;
    for (const struct producer *producer = log->producers; producer != NULL; producer = producer->next)
        refs += producer->refs;
    return refs;
}

static void add_entry(struct fake_entry **entries, size_t *count, const void *data, uint32_t length,
                      uint8_t type)
{
    *entries = realloc(*entries, (*count + 1) * sizeof **entries);
    uint8_t *bytes = malloc(length + 1);
    check_bug(*entries != NULL && bytes != NULL);
    memcpy(bytes, data, length);
    (*entries)[(*count)++] = (struct fake_entry){.length = length, .type = type, .bytes = bytes};
}

static void publish(struct log *log, struct topic *topic)
{
    if (topic->id == 0) {
        topic->id = log->next_id++;
        log->stats.topics++;
    }
    struct topic_waiter *waiters = topic->waiters;
    topic->waiters = NULL;
    while (waiters != NULL) {
        struct topic_waiter *waiter = waiters;
        waiters = waiter->next;
        if (waiters != NULL)
            waiters->link = &waiters;
        waiter->link = NULL;
        waiter->wake(waiter);
    }
}

void fake_append(struct log *log, const char *name, const void *data, uint32_t length)
{
    struct topic *topic;
    int rc = log_topic(log, name, strlen(name), LEVEL_DURABLE, NO_UID, true, &topic);
    check_bug(rc == 0);
    add_entry(&topic->entries, &topic->count, data, length, 0);
    publish(log, topic);
    log_topic_release(log, topic);
}

/* ------------------------------------------------------------------------------------------------ log.h */

const struct error *log_failed(const struct log *log)
{
    return log->failure.code != 0 ? &log->failure : NULL;
}

int64_t log_delayed_until(const struct log *log)
{
    (void)log;
    return 0;
}

bool log_busy(const struct log *log)
{
    return log->first != NULL;
}

int log_topic(struct log *log, const char *name, size_t length, uint8_t level, uint32_t uid, bool make,
              struct topic **out)
{
    (void)uid;
    for (size_t i = 0; i < length; i++)
        if ((uint8_t)name[i] < 0x20 || name[i] == 0x7f)
            return -EINVAL;
    for (struct topic *topic = log->topics; topic != NULL; topic = topic->next)
        if (topic->name_length == length && memcmp(topic->name, name, length) == 0) {
            topic->refs++;
            *out = topic;
            return 0;
        }
    if (!make)
        return -ENOENT;
    struct topic *topic = calloc(1, sizeof *topic);
    check_bug(topic != NULL);
    memcpy(topic->name, name, length);
    topic->name_length = length;
    topic->level = level != 0 ? level : LEVEL_DURABLE;
    topic->refs = 1;
    topic->next = log->topics;
    log->topics = topic;
    *out = topic;
    return 0;
}

void log_topic_release(struct log *log, struct topic *topic)
{
    (void)log;
    check_bug(topic->refs > 0);
    topic->refs--;
    check_bug(topic->refs > 0 || topic->word == NULL);
}

/* ------------------------------------------------------------------------------------- producers */

struct producer *fake_producer(struct log *log, const char *name)
{
    for (struct producer *producer = log->producers; producer != NULL; producer = producer->next)
        if (strcmp(producer->name, name) == 0)
            return producer;
    return NULL;
}

static struct producer *producer_new(struct log *log, uint32_t uid)
{
    struct producer *producer = calloc(1, sizeof *producer);
    check_bug(producer != NULL);
    *producer = (struct producer){.next = log->producers, .id = ++log->last_producer, .uid = uid, .refs = 1};
    log->producers = producer;
    return producer;
}

int log_producer_named(struct log *log, const char *name, size_t length, uint32_t uid, struct producer **out)
{
    uint32_t named = 0;
    for (size_t i = 0; i < length; i++)
        if ((uint8_t)name[i] < 0x20 || name[i] == 0x7f)
            return -EINVAL;
    for (struct producer *producer = log->producers; producer != NULL; producer = producer->next) {
        named += producer->name_length != 0;
        if (producer->name_length != length || memcmp(producer->name, name, length) != 0)
            continue;
        if (producer->uid != uid)
            return -EACCES;
        producer->refs++;
        *out = producer;
        return 0;
    }
    if (log->max_named != 0 && named >= log->max_named)
        return -EDQUOT;
    *out = producer_new(log, uid);
    memcpy((*out)->name, name, length);
    (*out)->name_length = length;
    return 0;
}

int log_producer_anonymous(struct log *log, uint32_t uid, struct producer **out)
{
    *out = producer_new(log, uid);
    return 0;
}

int log_producer_again(struct log *log, uint64_t id, uint32_t uid, struct producer **out)
{
    for (struct producer *producer = log->producers; producer != NULL; producer = producer->next) {
        if (producer->id != id || (producer->name_length == 0 && producer->refs == 0 && !producer->committed))
            continue;
        if (producer->uid != uid || producer->name_length != 0)
            return -EACCES;
        producer->refs++;
        *out = producer;
        return 0;
    }
    return id <= log->horizon ? -ENODATA : -ENOENT;
}

void log_producer_release(struct log *log, struct producer *producer)
{
    (void)log;
    check_bug(producer->refs > 0);
    producer->refs--;
    check_bug(producer->refs > 0 || producer->word == NULL);
}

uint64_t log_producer_id(const struct producer *producer)
{
    return producer->id;
}

void **log_producer_word(struct producer *producer)
{
    return &producer->word;
}

static struct fake_number *number_of(const struct log *log, const struct producer *producer,
                                     const struct topic *topic)
{
    for (struct fake_number *number = log->numbers; number != NULL; number = number->next)
        if (number->producer == producer && number->topic == topic)
            return number;
    return NULL;
}

uint64_t log_last_number(const struct log *log, const struct producer *producer, const struct topic *topic)
{
    const struct fake_number *number = number_of(log, producer, topic);
    return number != NULL ? number->last : 0;
}

int log_query(const struct log *log, const struct producer *producer, const struct topic *topic,
              uint64_t number, uint64_t *first_sequence, uint64_t *entries)
{
    const struct fake_number *known = number_of(log, producer, topic);
    *first_sequence = *entries = 0;
    if (known == NULL || number > known->admitted)
        return 0;
    return number <= known->last ? 1 : -EINPROGRESS;
}

/* 0: it is this one's turn, and taken; 1: committed already; -EAGAIN: not its turn. */
static int number_admit(struct log *log, struct write *write)
{
    struct fake_number *number = number_of(log, write->producer, write->topic);
    if (number == NULL) {
        number = calloc(1, sizeof *number);
        check_bug(number != NULL);
        *number =
            (struct fake_number){.next = log->numbers, .producer = write->producer, .topic = write->topic};
        log->numbers = number;
    }
    if (write->number <= number->last) {
        write->flags = COMPLETION_DUPLICATE;
        write->first_sequence = write->committed = 0;
        return 1;
    }
    write->reason = REASON_ORDER;
    if (write->number != number->admitted + 1)
        return -EAGAIN;
    number->admitted++;
    return 0;
}

void log_topic_view(const struct topic *topic, struct topic_view *view)
{
    *view = (struct topic_view){.id = topic->id,
                                .name = topic->name,
                                .name_length = topic->name_length,
                                .level = topic->level,
                                .first_sequence = 1,
                                .visible_next = topic->count + 1,
                                .durable_next = topic->count + 1};
}

struct topic *log_topic_after(struct log *log, uint32_t id)
{
    struct topic *best = NULL;
    for (struct topic *topic = log->topics; topic != NULL; topic = topic->next)
        if (topic->id > id && (best == NULL || topic->id < best->id))
            best = topic;
    return best;
}

void log_topic_wait(struct topic *topic, struct topic_waiter *waiter)
{
    check_bug(waiter->link == NULL);
    waiter->next = topic->waiters;
    waiter->link = &topic->waiters;
    if (waiter->next != NULL)
        waiter->next->link = &waiter->next;
    topic->waiters = waiter;
}

void log_topic_wait_cancel(struct topic_waiter *waiter)
{
    check_bug(waiter->link != NULL);
    *waiter->link = waiter->next;
    if (waiter->next != NULL)
        waiter->next->link = waiter->link;
    waiter->link = NULL;
}

static struct pending *pending_of(const struct stream *stream, bool make)
{
    for (struct pending *pending = pendings; pending != NULL; pending = pending->next)
        if (pending->stream == stream)
            return pending;
    if (!make)
        return NULL;
    struct pending *pending = calloc(1, sizeof *pending);
    check_bug(pending != NULL);
    *pending = (struct pending){.next = pendings, .stream = stream};
    pendings = pending;
    return pending;
}

static void pending_drop(const struct stream *stream)
{
    for (struct pending **at = &pendings; *at != NULL; at = &(*at)->next)
        if ((*at)->stream == stream) {
            struct pending *pending = *at;
            *at = pending->next;
            entries_free(pending->entries, pending->count);
            free(pending);
            return;
        }
}

bool log_topic_busy(const struct topic *topic, const void *owner)
{
    return topic->batches > 0 && topic->owner != owner;
}

void **log_topic_word(struct topic *topic)
{
    return &topic->word;
}

void log_on_topic_free(struct log *log, void (*call)(void *context, struct topic *topic), void *context)
{
    log->on_topic_free = call;
    log->on_topic_free_context = context;
}

static void topic_idle(struct log *log, struct topic *topic)
{
    check_bug(topic->batches > 0);
    if (--topic->batches > 0)
        return;
    topic->owner = NULL;
    if (topic->word != NULL && log->on_topic_free != NULL)
        log->on_topic_free(log->on_topic_free_context, topic);
}

void log_stream_abort(struct log *log, struct stream *stream)
{
    check_bug(stream->admitted);
    log->aborts++;
    if (!stream->failed) {
        stream->failed = true;
        stream->error = -ECANCELED;
        topic_idle(log, stream->topic);
    }
    pending_drop(stream);
}

/* The copy the real log makes: records first, then what they describe. */
static int copy_payload(const struct write *write, struct fake_entry **entries, size_t *count)
{
    const struct entry_record *records = write->records;
    uint64_t at = 0;
    for (uint32_t i = 0; i < write->entries; i++) {
        struct entry_record record;
        memcpy(&record, &records[i], sizeof record);
        if (record.length > write->payload_bytes - at)
            return -EINVAL;
        add_entry(entries, count, (const uint8_t *)write->payload + at, record.length, record.type);
        at += align_up(record.length, PAYLOAD_ALIGN);
        if (at > write->payload_bytes)
            return -EINVAL;
    }
    return at == write->payload_bytes ? 0 : -EINVAL;
}

int log_write(struct log *log, struct write *write)
{
    struct topic *topic = write->topic;
    log->writes_seen++;
    if (log->refuse_count > 0) {
        log->refuse_count--;
        write->reason = log->refuse_reason;
        return log->refuse;
    }
    if (write->kind == WRITE_CHUNK && write->stream->failed)
        return write->stream->error;
    if (topic->owner != NULL && topic->owner != write->owner) {
        write->reason = REASON_TOPIC;
        return -EBUSY;
    }
    if (log->room != 0 && log->taken >= log->room) {
        write->reason = REASON_MEMORY;
        return -EAGAIN;
    }
    struct fake_entry *entries = NULL;
    size_t count = 0;
    int rc = copy_payload(write, &entries, &count);
    if (rc == 0 && write->producer != NULL && write->number != 0)
        rc = number_admit(log, write);
    if (rc != 0) {
        entries_free(entries, count);
        return rc;
    }
    if (write->kind == WRITE_CHUNK) {
        if (!write->stream->admitted) {
            write->stream->admitted = true;
            topic->owner = write->owner;
            topic->batches++;
        }
        struct pending *pending = pending_of(write->stream, true);
        for (size_t i = 0; i < count; i++)
            add_entry(&pending->entries, &pending->count, entries[i].bytes, entries[i].length,
                      entries[i].type);
        entries_free(entries, count);
    } else {
        if (write->kind == WRITE_BATCH) {
            topic->owner = write->owner;
            topic->batches++;
        }
        struct pending *pending = pending_of((const struct stream *)(const void *)write, true);
        pending->entries = entries;
        pending->count = count;
    }
    log->taken++;
    write->reason = REASON_NONE;
    write->next = NULL;
    *log->last = write;
    log->last = &write->next;
    return 0;
}

static void commit(struct log *log, struct write *write)
{
    const struct stream *key =
        write->kind == WRITE_CHUNK ? write->stream : (const struct stream *)(const void *)write;
    struct topic *topic = write->topic;
    write->result = 0;
    write->flags = 0;
    write->group = ++log->stats.groups;
    write->level_reached = topic->level;
    write->durable_ns = io_now(log->io);
    write->submitted_ns = write->durable_ns - log->group_takes_ns;
    if (log->fail_count > 0) {
        log->fail_count--;
        write->result = log->fail;
        write->reason = log->fail_reason;
        pending_drop(key);
        if (write->producer != NULL)
            number_of(log, write->producer, topic)->admitted = number_of(log, write->producer, topic)->last;
        if (write->kind == WRITE_BATCH)
            topic_idle(log, topic);
        write->done(write);
        return;
    }
    bool whole = write->kind != WRITE_CHUNK || (write->last && !write->stream->failed);
    if (whole) {
        struct pending *pending = pending_of(key, false);
        write->first_sequence = topic->count + 1;
        write->committed = pending != NULL ? pending->count : 0;
        for (size_t i = 0; pending != NULL && i < pending->count; i++)
            add_entry(&topic->entries, &topic->count, pending->entries[i].bytes, pending->entries[i].length,
                      pending->entries[i].type);
        pending_drop(key);
        if (write->producer != NULL) {
            number_of(log, write->producer, topic)->last = write->number;
            write->producer->committed = true;
        }
        log->stats.batches++;
        log->stats.entries += write->committed;
        if (write->kind != WRITE_APPEND)
            topic_idle(log, topic);
    }
    write->done(write);
    if (whole)
        publish(log, topic);
}

void log_read(struct log *log, struct log_read *read)
{
    read->next = log->reads;
    log->reads = read;
}

static void run_read(struct log_read *read)
{
    struct topic *topic = read->topic;
    uint64_t from = read->from == 0 ? 1 : read->from;
    uint32_t most = from > topic->count ? 0 : (uint32_t)(topic->count - from + 1);
    uint32_t n = 0;
    uint32_t payload = 0;
    if (most > read->max_entries)
        most = read->max_entries;
    while (n < most) {
        uint32_t more = (uint32_t)align_up(topic->entries[from - 1 + n].length, PAYLOAD_ALIGN);
        uint64_t head = align_up(sizeof(struct run) + (n + 1) * sizeof(struct entry_record), PAYLOAD_ALIGN);
        if (head + payload + more > read->buffer_bytes || (n > 0 && payload + more > read->max_bytes))
            break;
        payload += more;
        n++;
    }
    read->result = (int)n;
    read->first_sequence = n > 0 ? from : 0;
    read->next_sequence = from + n;
    read->end_sequence = topic->count + 1;
    read->unstable = false;
    read->used = 0;
    if (n == 0)
        return;
    uint32_t head = (uint32_t)align_up(sizeof(struct run) + n * sizeof(struct entry_record), PAYLOAD_ALIGN);
    struct run run = {
        .bytes = head + payload, .entries = n, .first_sequence = from, .payload_bytes = payload};
    memcpy(read->buffer, &run, sizeof run);
    uint32_t at = head;
    for (uint32_t i = 0; i < n; i++) {
        const struct fake_entry *entry = &topic->entries[from - 1 + i];
        struct entry_record record = {.length = entry->length, .type = entry->type};
        memcpy(read->buffer + sizeof run + i * sizeof record, &record, sizeof record);
        memcpy(read->buffer + at, entry->bytes, entry->length);
        at += (uint32_t)align_up(entry->length, PAYLOAD_ALIGN);
    }
    read->used = head + payload;
}

int64_t log_turn(struct log *log)
{
    if (log->fail_on_turn) {
        error_set(&log->failure, -EIO, "the test wanted it");
        return INT64_MAX;
    }
    if (!log->hold_answers) {
        log->taken = 0;
        struct write *write = log->first;
        log->first = NULL;
        log->last = &log->first;
        while (write != NULL) {
            struct write *next = write->next;
            commit(log, write);
            write = next;
        }
    }
    while (!log->hold_reads && log->reads != NULL) {
        struct log_read *read = log->reads;
        log->reads = read->next;
        run_read(read);
        read->done(read);
    }
    return log->deadline;
}

void log_stats(const struct log *log, struct log_stats *stats)
{
    *stats = log->stats;
}
