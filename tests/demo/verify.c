/* verify.c: what is in the store against what was sent and what was answered.
 *
 *   1. Each topic is read from its first entry to its end; (--break damages a copy of what was read: the
 *      checks must notice).
 *   2. The entries are the topic's lines: as many, in order, numbered 1, 2, 3, ..., each byte for byte.
 *   3. The ledgers: each batch that was answered or found lies where its receipt says, whole; batches neither
 *      overlap nor leave a line out. So nothing that was answered is missing or twice, and no batch is there
 *      in part. */
#include "demo.h"

struct seen {
    uint64_t sequence;
    char *data;
    size_t length;
};

struct store_topic {
    const struct topic_range *range;
    struct seen *entries;
    size_t count;
    size_t capacity;
};

struct ledger {
    struct ledger_record *records;
    size_t count;
};

/* -------------------------------------------------------------------------------- reading back */

static int keep(struct store_topic *topic, const struct walrus_entry *entry)
{
    if (topic->count == topic->capacity) {
        size_t capacity = topic->capacity == 0 ? 4096 : 2 * topic->capacity;
        struct seen *entries = realloc(topic->entries, capacity * sizeof *entries);
        if (entries == NULL)
            return -ENOMEM;
        topic->entries = entries;
        topic->capacity = capacity;
    }
    struct seen *seen = &topic->entries[topic->count];
    seen->sequence = entry->sequence;
    seen->length = entry->length;
    seen->data = malloc(entry->length + 1);
    if (seen->data == NULL)
        return -ENOMEM;
    memcpy(seen->data, entry->data, entry->length);
    topic->count++;
    return 0;
}

static int read_topic(walrus *handle, struct store_topic *topic, struct error *err)
{
    uint64_t from = 1;
    for (;;) {
        struct walrus_read_options options = {.size = sizeof options};
        walrus_entries *entries = NULL;
        int rc = walrus_batch_read_for_topic(handle, topic->range->name, from, &options, &entries);
        if (rc == 0)
            return 0;
        if (rc < 0)
            return error_set(err, rc, "topic %s: cannot read from entry %llu: %s", topic->range->name,
                             (unsigned long long)from, walrus_error(handle));
        struct walrus_entry entry;
        rc = 0;
        for (size_t i = 0; rc == 0 && walrus_entries_get(entries, i, &entry) > 0; i++)
            rc = keep(topic, &entry);
        from = walrus_entries_next(entries);
        walrus_entries_release(entries);
        if (rc != 0)
            return error_set(err, rc, "out of memory");
        if (interrupted != 0)
            return error_set(err, -EINTR, "interrupted by signal %d", (int)interrupted);
    }
}

static void free_topic(struct store_topic *topic)
{
    for (size_t i = 0; i < topic->count; i++)
        free(topic->entries[i].data);
    free(topic->entries);
}

/* -------------------------------------------------------------------------------- --break */

static void drop(struct store_topic *topic, size_t at, size_t count)
{
    for (size_t i = at; i < at + count; i++)
        free(topic->entries[i].data);
    memmove(&topic->entries[at], &topic->entries[at + count],
            (topic->count - at - count) * sizeof *topic->entries);
    topic->count -= count;
}

/* Numbers anew, as a store would that lost entries without leaving a gap. */
static void renumber(struct store_topic *topic)
{
    for (size_t i = 0; i < topic->count; i++)
        topic->entries[i].sequence = i + 1;
}

static void break_drop(struct store_topic *topic)
{
    drop(topic, topic->count / 2, 1);
}

static void break_drop_renumbered(struct store_topic *topic)
{
    drop(topic, topic->count / 2, 1);
    renumber(topic);
}

static void break_tail(struct store_topic *topic)
{
    drop(topic, topic->count - 1, 1);
}

static void break_topic(struct store_topic *topic)
{
    drop(topic, 0, topic->count);
}

static void break_duplicate(struct store_topic *topic)
{
    size_t at = topic->count / 2;
    const struct seen *seen = &topic->entries[at];
    struct walrus_entry entry = {.data = seen->data, .length = seen->length, .sequence = seen->sequence};
    if (keep(topic, &entry) != 0)
        return;
    struct seen copy = topic->entries[topic->count - 1];
    memmove(&topic->entries[at + 1], &topic->entries[at], (topic->count - 1 - at) * sizeof copy);
    topic->entries[at] = copy;
}

static void break_swap(struct store_topic *topic)
{
    size_t at = topic->count / 2, other = at;
    while (other > 0 && topic->entries[at].length == topic->entries[other].length &&
           memcmp(topic->entries[at].data, topic->entries[other].data, topic->entries[at].length) == 0)
        other--;
    struct seen moved = topic->entries[at];
    topic->entries[at].data = topic->entries[other].data;
    topic->entries[at].length = topic->entries[other].length;
    topic->entries[other].data = moved.data;
    topic->entries[other].length = moved.length;
}

static void break_flip(struct store_topic *topic)
{
    for (size_t i = topic->count / 2; i < topic->count; i++) {
        if (topic->entries[i].length > 0) {
            topic->entries[i].data[0] ^= 1;
            return;
        }
    }
}

static void break_invent(struct store_topic *topic)
{
    struct walrus_entry entry = {.data = "never sent", .length = 10, .sequence = topic->count + 1};
    if (keep(topic, &entry) != 0)
        return;
}

static const struct break_mode {
    const char *name;
    void (*damage)(struct store_topic *topic); /* NULL: the ledger is damaged instead */
} modes[] = {
    {"drop", break_drop},
    {"drop-renumbered", break_drop_renumbered},
    {"tail", break_tail},
    {"topic", break_topic},
    {"duplicate", break_duplicate},
    {"swap", break_swap},
    {"flip", break_flip},
    {"invent", break_invent},
    {"ledger", NULL},
};

const char *break_modes(void)
{
    static char words[200];
    size_t at = 0;
    for (size_t i = 0; i < array_count(modes); i++)
        at += (size_t)snprintf(words + at, sizeof words - at, "%s%s", i > 0 ? ", " : "", modes[i].name);
    return words;
}

bool break_mode_known(const char *mode)
{
    for (size_t i = 0; i < array_count(modes); i++) {
        if (strcmp(modes[i].name, mode) == 0)
            return true;
    }
    return false;
}

/* A receipt that names other entries. */
static void damage_ledger(struct ledger *ledger, unsigned topic)
{
    size_t at = ledger->count - 1;
    while (at > 0 && ledger->records[at].topic != topic)
        at--;
    ledger->records[at].sequence++;
}

static void damage(const char *mode, struct store_topic *topic, unsigned number, struct ledger *ledger)
{
    for (size_t i = 0; i < array_count(modes) && mode != NULL; i++) {
        if (strcmp(modes[i].name, mode) != 0)
            continue;
        if (modes[i].damage != NULL)
            modes[i].damage(topic);
        else
            damage_ledger(ledger, number);
    }
}

/* -------------------------------------------------------------------------------- comparing */

static int compare_content(const struct demo *demo, const struct store_topic *topic, struct error *err)
{
    const struct topic_range *range = topic->range;
    size_t count = topic->count < range->count ? topic->count : range->count;
    for (size_t i = 0; i < count; i++) {
        const struct seen *seen = &topic->entries[i];
        const struct line *line = &demo->input.lines[range->first + i];
        if (seen->sequence != i + 1)
            return error_set(
                err, -EBADMSG,
                "topic %s: where entry %zu belongs comes entry %llu: lost, twice or out of order",
                range->name, i + 1, (unsigned long long)seen->sequence);
        if (seen->length != line->length || memcmp(seen->data, line->data, line->length) != 0)
            return error_set(err, -EBADMSG,
                             "topic %s: entry %zu is not the line that was sent (%zu bytes, not %zu)",
                             range->name, i + 1, seen->length, line->length);
    }
    if (topic->count != range->count)
        return error_set(err, -EBADMSG, "topic %s: %zu entries, but %zu lines were committed", range->name,
                         topic->count, range->count);
    return 0;
}

/* The records of one topic are in order in its producer's ledger. */
static int compare_ledger(const struct demo *demo, const struct store_topic *topic, unsigned number,
                          const struct ledger *ledger, struct error *err)
{
    size_t covered = 0;
    for (size_t i = 0; i < ledger->count; i++) {
        const struct ledger_record *record = &ledger->records[i];
        if (record->topic != number)
            continue;
        if (record->first != covered || record->count == 0 || record->sequence != record->first + 1)
            return error_set(err, -EBADMSG,
                             "topic %s: the batch of %llu lines at line %llu has a receipt for entry %llu; "
                             "lines up to %zu are "
                             "accounted for",
                             topic->range->name, (unsigned long long)record->count,
                             (unsigned long long)record->first, (unsigned long long)record->sequence,
                             covered);
        for (uint64_t at = record->sequence - 1; at < record->sequence - 1 + record->count; at++) {
            const struct line *line = &demo->input.lines[topic->range->first + at];
            if (at >= topic->count || topic->entries[at].sequence != at + 1 ||
                topic->entries[at].length != line->length ||
                memcmp(topic->entries[at].data, line->data, line->length) != 0)
                return error_set(
                    err, -EBADMSG,
                    "topic %s: of the batch of %llu entries at entry %llu, entry %llu is missing",
                    topic->range->name, (unsigned long long)record->count,
                    (unsigned long long)record->sequence, (unsigned long long)at + 1);
        }
        covered += record->count;
    }
    if (covered != topic->range->count)
        return error_set(err, -EBADMSG, "topic %s: the ledger accounts for %zu of %zu lines",
                         topic->range->name, covered, topic->range->count);
    return 0;
}

static int read_ledger(const struct demo *demo, unsigned producer, struct ledger *ledger, struct error *err)
{
    char path[PATH_MAX + 32];
    ledger_path(demo, producer, path);
    FILE *file = fopen(path, "re");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        if (file != NULL)
            fclose(file);
        return error_set(err, -EIO, "cannot read %s: %s", path, strerror(errno));
    }
    long bytes = ftell(file);
    ledger->count = bytes > 0 ? (size_t)bytes / sizeof *ledger->records : 0;
    ledger->records = calloc(ledger->count + 1, sizeof *ledger->records);
    rewind(file);
    bool good = ledger->records != NULL &&
                fread(ledger->records, sizeof *ledger->records, ledger->count, file) == ledger->count &&
                ledger->count > 0;
    fclose(file);
    return good ? 0 : error_set(err, -EIO, "cannot read %s", path);
}

/* -------------------------------------------------------------------------------- everything */

static int by_latency(const void *a, const void *b)
{
    const int64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

struct latencies {
    int64_t *values;
    size_t count;
};

static int collect(struct latencies *latencies, const struct ledger *ledger, struct verified *result)
{
    check_bug(ledger->count > 0); /* read_ledger refuses an empty one */
    int64_t *values = realloc(latencies->values, (latencies->count + ledger->count) * sizeof *values);
    if (values == NULL)
        return -ENOMEM;
    latencies->values = values;
    for (size_t i = 0; i < ledger->count; i++) {
        if (ledger->records[i].kind == LEDGER_ANSWERED) {
            values[latencies->count++] = ledger->records[i].latency_ns;
            result->answered++;
        } else {
            result->found++;
        }
    }
    return 0;
}

static int verify_producer(const struct demo *demo, walrus *handle, unsigned producer,
                           struct latencies *latencies, struct verified *result, struct error *err)
{
    struct ledger ledger = {0};
    int rc = read_ledger(demo, producer, &ledger, err);
    if (rc == 0 && collect(latencies, &ledger, result) != 0)
        rc = error_set(err, -ENOMEM, "out of memory");
    for (unsigned i = 0; i < TOPICS_PER_PRODUCER && rc == 0; i++) {
        unsigned number = producer * TOPICS_PER_PRODUCER + i;
        struct store_topic topic = {.range = &demo->topics[number]};
        rc = read_topic(handle, &topic, err);
        if (rc == 0 && number == demo->topic_count / 2)
            damage(demo->break_mode, &topic, number, &ledger);
        if (rc == 0)
            rc = compare_content(demo, &topic, err);
        if (rc == 0)
            rc = compare_ledger(demo, &topic, number, &ledger, err);
        result->entries += topic.count;
        for (size_t at = 0; at < topic.count; at++)
            result->bytes += topic.entries[at].length;
        free_topic(&topic);
    }
    free(ledger.records);
    return rc;
}

int verify(const struct demo *demo, struct verified *result, struct error *err)
{
    char words[512] = "";
    struct walrus_connect_options options = {.size = sizeof options,
                                             .socket_path = demo->broker.socket,
                                             .error = words,
                                             .error_size = sizeof words};
    walrus *handle = NULL;
    struct latencies latencies = {0};
    *result = (struct verified){0};
    int rc = walrus_connect(&handle, &options);
    if (rc != 0)
        return error_set(err, rc, "cannot connect to read back: %s (%s)", words, strerror(-rc));
    for (unsigned i = 0; i < demo->producers && rc == 0; i++)
        rc = verify_producer(demo, handle, i, &latencies, result, err);
    walrus_close(handle);
    if (rc == 0 && latencies.count > 0) {
        qsort(latencies.values, latencies.count, sizeof *latencies.values, by_latency);
        result->p50_ns = latencies.values[latencies.count / 2];
        result->p99_ns = latencies.values[latencies.count - 1 - latencies.count / 100];
    }
    free(latencies.values);
    return rc;
}
