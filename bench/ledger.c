/* ledger.c: reads back and checks.
 *
 * Happy path, per topic: read entries from the first sequence on. Entries with room for a stamp name
 * themselves; the expected bytes are made again from that name and compared. Batches must lie in one piece,
 * entries in order, each batch once; at the end every acknowledged batch must have been seen. Sequences must
 * rise by one from 1. Shorter entries are made again too: as a sum of hashes that does not depend on their
 * order.
 *
 * Failure modes: what is missing, twice, torn or different goes into result->trouble, the first finding
 * only; reading that fails is an error. */
#include "ledger.h"

#include <pthread.h>
#include <xxhash.h>

#include "../libclient/include/walrus.h"
#include "phases.h"
#include "producers.h"

#define WINDOW_BYTES  (4u << 20)
#define SAMPLE_ABOVE  2000u /* topics: a read of a scattered topic waits for the device many times */
#define SAMPLE_TOPICS 500u
#define READERS       16u /* connections, when there are as many topics */

void ledger_begin(struct ledger *ledger, const char *topic_prefix)
{
    memset(ledger, 0, sizeof *ledger);
    snprintf(ledger->topic_prefix, sizeof ledger->topic_prefix, "%s", topic_prefix);
}

void ledger_release(struct ledger *ledger)
{
    free(ledger->lines);
    free(ledger->loads);
    memset(ledger, 0, sizeof *ledger);
}

uint32_t ledger_run(struct ledger *ledger)
{
    return ledger->next_run++;
}

int ledger_add(struct ledger *ledger, const struct load *load, uint32_t run, const uint64_t *batches)
{
    struct load *loads = reallocarray(ledger->loads, ledger->load_count + 1, sizeof *loads);
    if (loads == NULL)
        return -ENOMEM;
    ledger->loads = loads;
    loads[ledger->load_count] = *load;
    struct ledger_line *lines =
        reallocarray(ledger->lines, ledger->line_count + load->producers, sizeof *lines);
    if (lines == NULL)
        return -ENOMEM;
    ledger->lines = lines;
    for (uint32_t i = 0; i < load->producers; i++)
        lines[ledger->line_count++] = (struct ledger_line){
            .run = run, .producer = i, .load = (uint32_t)ledger->load_count, .batches = batches[i]};
    ledger->load_count++;
    return 0;
}

/* State of reading one topic. */
struct reader {
    const struct ledger *ledger;
    const struct payload_pool *pool;
    struct read_back *result;
    uint8_t **seen;    /* per ledger line: a bit per batch */
    uint8_t *expected; /* one entry */
    uint32_t topic;
    uint64_t next_sequence;
    const struct ledger_line *open; /* the batch that must go on with the next entry; NULL: none */
    uint64_t open_batch, open_index;
    uint64_t short_count, short_sum; /* entries without room for a stamp */
};

static void trouble(struct reader *r, uint64_t sequence, const char *what)
{
    if (r->result->trouble[0] == 0)
        snprintf(r->result->trouble, sizeof r->result->trouble, "topic %s-%u, entry %llu: %s",
                 r->ledger->topic_prefix, r->topic, (unsigned long long)sequence, what);
}

/* The lines of a run lie behind one another, one for each producer. */
static const struct ledger_line *find_line(const struct ledger *ledger, uint32_t run, uint32_t producer)
{
    for (size_t i = 0; i < ledger->line_count; i += ledger->loads[ledger->lines[i].load].producers)
        if (ledger->lines[i].run == run)
            return producer < ledger->loads[ledger->lines[i].load].producers ? &ledger->lines[i + producer]
                                                                             : NULL;
    return NULL;
}

static bool test_and_set(uint8_t *bits, uint64_t at)
{
    /* Other readers set other bits of the same byte. */
    uint8_t bit = (uint8_t)(1u << at % 8);
    return (__atomic_fetch_or(&bits[at / 8], bit, __ATOMIC_RELAXED) & bit) != 0;
}

/* The first entry of a batch: is it one that is expected here, for the first time? */
static void check_batch_start(struct reader *r, const struct walrus_entry *entry,
                              const struct payload_name *name)
{
    const struct ledger_line *line = find_line(r->ledger, name->run, name->producer);
    if (line == NULL || name->batch >= line->batches)
        trouble(r, entry->sequence, "was never acknowledged, or its stamp is damaged");
    else if (producers_topic(&r->ledger->loads[line->load], name->producer, name->batch) != r->topic)
        trouble(r, entry->sequence, "belongs to another topic");
    else if (name->index != 0)
        trouble(r, entry->sequence, "the beginning of its batch is missing");
    else if (test_and_set(r->seen[line - r->ledger->lines], name->batch))
        trouble(r, entry->sequence, "its batch is there twice");
    else {
        r->open = line;
        r->open_batch = name->batch;
        r->open_index = 0;
    }
}

static void check_stamped(struct reader *r, const struct walrus_entry *entry)
{
    struct payload_name name = payload_name_of(entry->data);
    if (r->open == NULL)
        check_batch_start(r, entry, &name);
    if (r->open == NULL)
        return;
    const struct load *load = &r->ledger->loads[r->open->load];
    if (name.run != r->open->run || name.producer != r->open->producer || name.batch != r->open_batch ||
        name.index != r->open_index)
        trouble(r, entry->sequence,
                "is not the next one of its batch: a batch is torn or mixed with another");
    else if (entry->length != load->size)
        trouble(r, entry->sequence, "has another length");
    else {
        payload_fill(r->pool, payload_batch_word(name.run, name.producer, name.batch), name.index,
                     r->expected, load->size);
        if (memcmp(r->expected, entry->data, load->size) != 0)
            trouble(r, entry->sequence, "has other bytes than were written");
    }
    if (++r->open_index == load->batch)
        r->open = NULL;
}

static void check_entry(struct reader *r, const struct walrus_entry *entry)
{
    if (entry->sequence != r->next_sequence)
        trouble(r, entry->sequence, "sequences do not rise by one");
    r->next_sequence = entry->sequence + 1;
    r->result->entries++;
    r->result->bytes += entry->length;
    if (entry->length >= PAYLOAD_STAMP)
        check_stamped(r, entry);
    else {
        r->short_count++;
        r->short_sum += XXH3_64bits(entry->data, entry->length);
    }
}

/* What the short entries of this topic must add up to. */
static void check_short(struct reader *r)
{
    uint64_t count = 0, sum = 0;
    for (size_t i = 0; i < r->ledger->line_count; i++) {
        const struct ledger_line *line = &r->ledger->lines[i];
        const struct load *load = &r->ledger->loads[line->load];
        if (load->size >= PAYLOAD_STAMP)
            continue;
        for (uint64_t batch = 0; batch < line->batches; batch++) {
            if (producers_topic(load, line->producer, batch) != r->topic)
                continue;
            uint64_t word = payload_batch_word(line->run, line->producer, batch);
            for (uint32_t k = 0; k < load->batch; k++) {
                payload_fill(r->pool, word, k, r->expected, load->size);
                sum += XXH3_64bits(r->expected, load->size);
                count++;
            }
        }
    }
    if (count != r->short_count)
        trouble(r, r->next_sequence, "the number of short entries is not what was acknowledged");
    else if (sum != r->short_sum)
        trouble(r, r->next_sequence, "the checksum of the short entries is not that of what was written");
}

/* The inverse of producers_topic: did this line write to the topic? */
static bool line_wrote(const struct ledger_line *line, const struct load *load, uint32_t topic)
{
    if (load->topics <= load->producers)
        return line->batches > 0 && line->producer % load->topics == topic;
    return topic < load->topics && topic % load->producers == line->producer &&
           line->batches > topic / load->producers;
}

static bool topic_written(const struct ledger *ledger, uint32_t topic)
{
    for (size_t i = 0; i < ledger->line_count; i++)
        if (line_wrote(&ledger->lines[i], &ledger->loads[ledger->lines[i].load], topic))
            return true;
    return false;
}

static int read_topic(struct reader *r, walrus *handle, const volatile sig_atomic_t *interrupted,
                      struct error *err)
{
    char name[WALRUS_MAX_TOPIC_NAME + 1];
    snprintf(name, sizeof name, "%s-%u", r->ledger->topic_prefix, r->topic);
    r->next_sequence = 1;
    r->open = NULL;
    r->short_count = r->short_sum = 0;
    for (;;) {
        walrus_entries *entries;
        struct walrus_read_options options = {.size = sizeof options};
        int count = walrus_batch_read_for_topic(handle, name, r->next_sequence, &options, &entries);
        if (count < 0)
            return error_set(err, count, "reading topic %s from %llu: %s (%s)", name,
                             (unsigned long long)r->next_sequence, walrus_error(handle), strerror(-count));
        if (interrupted != NULL && *interrupted != 0) {
            walrus_entries_release(entries);
            return error_set(err, -EINTR, "interrupted");
        }
        if (count == 0)
            break;
        struct walrus_entry entry;
        for (size_t i = 0; i < (size_t)count; i++)
            if (walrus_entries_get(entries, i, &entry))
                check_entry(r, &entry);
            else
                trouble(r, r->next_sequence, "the read said that it is there, and it is not");
        walrus_entries_release(entries);
    }
    if (r->open != NULL)
        trouble(r, r->next_sequence, "the topic ends inside a batch");
    check_short(r);
    r->result->topics++;
    return 0;
}

/* After all topics: every stamped batch must have been seen. */
static void check_all_seen(struct reader *r)
{
    for (size_t i = 0; i < r->ledger->line_count && r->result->trouble[0] == 0; i++) {
        const struct ledger_line *line = &r->ledger->lines[i];
        if (r->ledger->loads[line->load].size < PAYLOAD_STAMP)
            continue;
        check_bug(r->seen != NULL && r->seen[i] != NULL);
        for (uint64_t batch = 0; batch < line->batches; batch++)
            if (producers_topic(&r->ledger->loads[line->load], line->producer, batch) % r->result->sample ==
                    0 &&
                (r->seen[i][batch / 8] >> (batch % 8) & 1) == 0) {
                snprintf(r->result->trouble, sizeof r->result->trouble,
                         "batch %llu of producer %u in round %u was acknowledged and is not there",
                         (unsigned long long)batch, line->producer, line->run);
                break;
            }
    }
}

static int make_seen(struct reader *r)
{
    r->seen = calloc(r->ledger->line_count + 1, sizeof *r->seen);
    if (r->seen == NULL)
        return -ENOMEM; /* ledger_read_back frees all of it */
    for (size_t i = 0; i < r->ledger->line_count; i++)
        if ((r->seen[i] = calloc(1, r->ledger->lines[i].batches / 8 + 1)) == NULL)
            return -ENOMEM;
    return 0;
}

/* One of several that read every READERS-th topic, each over a connection of its own: scattered topics are
 * read one piece after the other, and the device can do more than one at a time. */
struct part {
    struct reader reader;
    struct read_back result;
    struct error error;
    pthread_t thread;
    const char *socket_path;
    const volatile sig_atomic_t *interrupted;
    uint32_t first, step, topics;
};

static int read_part(struct part *part)
{
    struct reader *r = &part->reader;
    char words[300] = "";
    walrus *handle = NULL;
    uint64_t largest = PAYLOAD_STAMP;
    for (size_t i = 0; i < r->ledger->load_count; i++)
        largest = max_u64(largest, r->ledger->loads[i].size);
    r->expected = malloc(largest);
    if (r->expected == NULL)
        return error_set(&part->error, -ENOMEM, "out of memory for reading back");
    struct walrus_connect_options options = {.size = sizeof options,
                                             .socket_path = part->socket_path,
                                             .window_bytes = WINDOW_BYTES,
                                             .error = words,
                                             .error_size = sizeof words};
    int code = walrus_connect(&handle, &options);
    if (code < 0)
        error_set(&part->error, code, "cannot connect to read back: %s", words);
    for (r->topic = part->first; r->topic < part->topics && code == 0; r->topic += part->step)
        if (topic_written(r->ledger, r->topic))
            code = read_topic(r, handle, part->interrupted, &part->error);
    walrus_close(handle);
    free(r->expected);
    return code;
}

static void *part_main(void *arg)
{
    (void)read_part(arg);
    return NULL;
}

static void add_part(struct read_back *result, const struct part *part)
{
    result->topics += part->result.topics;
    result->entries += part->result.entries;
    result->bytes += part->result.bytes;
    if (result->trouble[0] == 0)
        memcpy(result->trouble, part->result.trouble, sizeof result->trouble);
}

static int read_all(struct reader *all, struct part *parts, uint32_t topics, const char *socket_path,
                    const volatile sig_atomic_t *interrupted, struct error *err)
{
    uint32_t count = topics / all->result->sample < READERS ? 1 : READERS, started = 0;
    int code = 0;
    for (; started < count && code == 0; started++) {
        struct part *part = &parts[started];
        *part = (struct part){.reader = *all,
                              .socket_path = socket_path,
                              .interrupted = interrupted,
                              .first = started * all->result->sample,
                              .step = count * all->result->sample,
                              .topics = topics};
        part->reader.result = &part->result;
        if (pthread_create(&part->thread, NULL, part_main, part) != 0) {
            code = error_set(err, -EAGAIN, "cannot start a thread for reading back");
            break;
        }
    }
    for (uint32_t i = 0; i < started; i++) {
        pthread_join(parts[i].thread, NULL);
        if (code == 0 && parts[i].error.code < 0)
            code = error_set(err, parts[i].error.code, "%s", parts[i].error.text);
        add_part(all->result, &parts[i]);
    }
    return code;
}

int ledger_read_back(const struct ledger *ledger, const struct payload_pool *pool, const char *socket_path,
                     const volatile sig_atomic_t *interrupted, struct read_back *result, struct error *err)
{
    struct reader reader = {.ledger = ledger, .pool = pool, .result = result};
    uint32_t topics = 0;
    int64_t from = now_ns();
    struct part *parts = calloc(READERS, sizeof *parts);
    int code = parts == NULL ? -ENOMEM : make_seen(&reader);
    if (code < 0) {
        error_set(err, code, "out of memory for reading back");
        goto out;
    }
    for (size_t i = 0; i < ledger->load_count; i++)
        topics = ledger->loads[i].topics > topics ? ledger->loads[i].topics : topics;
    result->sample = topics > SAMPLE_ABOVE ? topics / SAMPLE_TOPICS : 1;
    code = read_all(&reader, parts, topics, socket_path, interrupted, err);
    if (code == 0) {
        check_all_seen(&reader);
        result->done = true;
        result->seconds = (double)(now_ns() - from) / 1e9;
    }
out:
    for (size_t i = 0; reader.seen != NULL && i < ledger->line_count; i++)
        free(reader.seen[i]);
    free(reader.seen);
    free(parts);
    return code;
}
