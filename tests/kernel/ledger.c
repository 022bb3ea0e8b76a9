/* ledger.c: what was promised, kept outside the broker, and the judge that holds the store against it.
 *
 *   1. Producers write a record per batch: when it was sent, what was answered, at which position.
 *   2. ledger_judge reads every topic from its first entry to its last: each batch whole, once, in order of
 *      its producer's numbers, its bytes as they were made (G2, G27), the sequences without a gap, but for
 *      those that were answered at level accepted and lost with a group that could not be written.
 *   3. Then each record: what must be there is there, and where its receipt said (G1); what was refused or
 *      has failed is not (G3); nothing that came earlier in the log than something that is bound is missing,
 *      and no later entry has a place that was given to a lost one of a later epoch (G7).
 *   4. ledger_settle, after a restart: an open outcome is decided by what was seen, and never changes (G5).
 *
 * Invariant: the judge runs while no producer works. */
#include "kernel.h"
#include "device.h"

#define WINDOW_BYTES (4u << 20)

const char *const topic_names[TOPICS] = {"shared", "named", "streams", "written", "accepted"};

struct ledger *ledger_new(uint8_t needed)
{
    struct ledger *ledger = shared_new(sizeof *ledger);
    if (ledger != NULL)
        ledger->needed = needed;
    return ledger;
}

void ledger_free(struct ledger *ledger)
{
    shared_free(ledger, sizeof *ledger);
}

struct sight *sight_new(void)
{
    return calloc(1, sizeof(struct sight));
}

void sight_free(struct sight *sight)
{
    free(sight);
}

uint64_t work_position(const struct work *work)
{
    return work->device != NULL ? device_position(work->device) : 1;
}

bool ledger_is_full(const struct ledger *ledger, uint64_t most_bytes)
{
    for (uint32_t p = 0; p < PRODUCERS; p++)
        for (uint32_t s = 0; s < SLOTS; s++)
            if (ledger->used[p][s] >= RECORDS / 2)
                return true;
    return ledger->bytes > most_bytes;
}

/* ------------------------------------------------------------------------------------- reading */

/* The topic under way. */
struct reading {
    const struct ledger *ledger;
    struct sight *sight;
    uint32_t topic;
    uint64_t next;            /* sequence to come */
    struct content open;      /* the batch under way; count 0: none */
    uint64_t open_epoch;      /* of its entries */
    uint64_t last[PRODUCERS]; /* the last number met, per producer */
};

static uint32_t slot_of(uint32_t producer, uint32_t topic)
{
    for (uint32_t s = 0; s < SLOTS; s++)
        if (producer_topic(producer, s) == topic)
            return s;
    return SLOTS;
}

/* The first entry of a batch. */
static int batch_begins(struct reading *reading, const struct content *content, uint64_t epoch,
                        struct error *err)
{
    unsigned long long number = content->number;
    uint32_t producer = content->producer;
    uint32_t slot = producer < PRODUCERS ? slot_of(producer, reading->topic) : SLOTS;
    if (slot == SLOTS || number == 0 || number > reading->ledger->used[producer][slot])
        return error_set(err, -EBADMSG, "batch %llu of producer %u: nobody sent it here", number, producer);
    const struct record *record = &reading->ledger->records[producer][slot][number];
    uint64_t *sequence = &reading->sight->sequences[producer][slot][number];
    if (*sequence != 0)
        return error_set(err, -EBADMSG,
                         "G5: batch %llu of producer %u is there twice: from %llu and from %llu", number,
                         producer, (unsigned long long)*sequence, (unsigned long long)reading->next);
    if (content->index != 0 || content->count != record->count)
        return error_set(err, -EBADMSG, "G2: batch %llu of producer %u begins with entry %u of %u, it has %u",
                         number, producer, content->index, content->count, record->count);
    if (number <= reading->last[producer])
        return error_set(err, -EBADMSG, "G7: batch %llu of producer %u comes behind its batch %llu", number,
                         producer, (unsigned long long)reading->last[producer]);
    struct sight *sight = reading->sight;
    uint32_t *count = &sight->epoch_count[reading->topic];
    struct span *spans = sight->epochs[reading->topic];
    if (*count > 0 && spans[*count - 1].epoch > epoch)
        return error_set(err, -EBADMSG, "G7: an entry of epoch %llu behind one of epoch %llu",
                         (unsigned long long)epoch, (unsigned long long)spans[*count - 1].epoch);
    if ((*count == 0 || spans[*count - 1].epoch < epoch) && *count < MOST_EPOCHS)
        spans[(*count)++] = (struct span){.from = reading->next, .epoch = epoch};
    reading->last[producer] = number;
    reading->open = *content;
    reading->open_epoch = epoch;
    *sequence = reading->next;
    sight->there++;
    return 0;
}

/* Sequences are missing here: possible where nothing was promised for them and writes may fail. */
static bool note_gap(struct reading *reading, uint64_t to)
{
    struct sight *sight = reading->sight;
    uint32_t topic = reading->topic, *count = &sight->gap_count[topic];
    bool may_be = reading->ledger->may_fail && (topic == TOPIC_ACCEPTED || topic == TOPIC_SHARED);
    if (!may_be || reading->open.count != 0 || to < reading->next || *count == MOST_GAPS)
        return false;
    sight->gaps[topic][(*count)++] = (struct gap){.from = reading->next, .to = to};
    reading->next = to;
    return true;
}

static int read_entry(struct reading *reading, const struct walrus_entry *entry, struct error *err)
{
    struct content content, *open = &reading->open;
    int rc = content_read(entry->data, entry->length, &content, err);
    if (rc < 0)
        return error_wrap(err, "G27");
    if ((entry->sequence != reading->next && !note_gap(reading, entry->sequence)) ||
        content.topic != reading->topic)
        return error_set(err, -EBADMSG, "G7: where sequence %llu of topic %u was to come there is %llu of %u",
                         (unsigned long long)reading->next, reading->topic,
                         (unsigned long long)entry->sequence, content.topic);
    if (open->count == 0)
        rc = batch_begins(reading, &content, entry->epoch, err);
    else if (content.producer != open->producer || content.number != open->number ||
             content.index != open->index + 1 || content.count != open->count ||
             entry->epoch != reading->open_epoch)
        rc = error_set(err, -EBADMSG,
                       "G2: batch %llu of producer %u goes on, behind entry %u of %u, with entry %u of batch "
                       "%llu of producer %u",
                       (unsigned long long)open->number, open->producer, open->index, open->count,
                       content.index, (unsigned long long)content.number, content.producer);
    if (rc < 0)
        return rc;
    *open = content;
    if (content.index + 1 == content.count)
        open->count = 0;
    reading->next++;
    return 0;
}

static int read_some(struct reading *reading, const walrus_entries *entries, struct error *err)
{
    struct walrus_entry entry;
    int rc = 0;
    for (size_t i = 0; rc == 0 && walrus_entries_get(entries, i, &entry) == 1; i++)
        rc = read_entry(reading, &entry, err);
    return rc;
}

static int read_topic(walrus *handle, const struct ledger *ledger, uint32_t topic, struct sight *sight,
                      struct error *err)
{
    struct reading reading = {.ledger = ledger, .sight = sight, .topic = topic, .next = 1};
    for (;;) {
        walrus_entries *entries = NULL;
        int rc = walrus_batch_read_for_topic(handle, topic_names[topic], reading.next, NULL, &entries);
        if (rc == -ENOENT || rc == 0)
            break;
        if (rc < 0)
            return error_set(err, rc, "reading topic '%s' from %llu: %s", topic_names[topic],
                             (unsigned long long)reading.next, walrus_error(handle));
        rc = read_some(&reading, entries, err);
        walrus_entries_release(entries);
        if (rc == 0)
            rc = run_interrupted(err);
        if (rc < 0)
            return error_wrap(err, "topic '%s', entry %llu", topic_names[topic],
                              (unsigned long long)reading.next);
    }
    sight->entries[topic] = reading.next - 1;
    if (reading.open.count == 0)
        return 0;
    return error_set(err, -EBADMSG, "G2: topic '%s' ends with entry %u of %u of batch %llu of producer %u",
                     topic_names[topic], reading.open.index, reading.open.count,
                     (unsigned long long)reading.open.number, reading.open.producer);
}

/* ------------------------------------------------------------------------------------- judging */

/* The position in the log up to which an epoch's groups must be there: its last bound answer, or the last of
 * them that is seen. */
struct bound {
    uint64_t epochs[MOST_EPOCHS], groups[MOST_EPOCHS];
    uint32_t count;
};

static uint64_t *bound_of(struct bound *bound, uint64_t epoch)
{
    uint32_t i = 0;
    while (i < bound->count && bound->epochs[i] != epoch)
        i++;
    if (i == MOST_EPOCHS)
        return NULL;
    if (i == bound->count) {
        bound->epochs[i] = epoch;
        bound->groups[i] = 0;
        bound->count++;
    }
    return &bound->groups[i];
}

static void bound_learn(struct bound *bound, const struct record *record, uint64_t sequence,
                        uint64_t position)
{
    bool binds = record->there_from <= position || sequence != 0;
    if (!binds || record->group == 0 || record->fate != FATE_ACKED)
        return;
    uint64_t *group = bound_of(bound, record->epoch);
    if (group != NULL && record->group > *group)
        *group = record->group;
}

static uint64_t epoch_at(const struct sight *sight, uint32_t topic, uint64_t sequence)
{
    uint64_t epoch = 0;
    for (uint32_t i = 0; i < sight->epoch_count[topic]; i++)
        if (sight->epochs[topic][i].from <= sequence)
            epoch = sight->epochs[topic][i].epoch;
    return epoch;
}

/* It was answered at level accepted, and is one of those that are lost. */
static bool is_in_gap(const struct record *record, const struct sight *sight, uint32_t topic)
{
    for (uint32_t i = 0; i < sight->gap_count[topic] && record->level == WALRUS_LEVEL_ACCEPTED; i++)
        if (sight->gaps[topic][i].from <= record->sequence &&
            record->sequence + record->count <= sight->gaps[topic][i].to)
            return true;
    return false;
}

/* Nobody else's sequences are missing. */
static int judge_gaps(const struct ledger *ledger, const struct sight *sight, uint32_t topic,
                      struct error *err)
{
    uint64_t missing = 0, absent = 0;
    for (uint32_t i = 0; i < sight->gap_count[topic]; i++)
        missing += sight->gaps[topic][i].to - sight->gaps[topic][i].from;
    for (uint32_t p = 0; missing > 0 && p < PRODUCERS; p++)
        for (uint32_t s = 0; s < SLOTS; s++)
            for (uint64_t n = 1; n <= ledger->used[p][s] && producer_topic(p, s) == topic; n++)
                if (sight->sequences[p][s][n] == 0)
                    absent += ledger->records[p][s][n].count;
    if (missing <= absent)
        return 0;
    return error_set(err, -EBADMSG, "G7: topic '%s' lacks %llu sequences, its lost batches have %llu entries",
                     topic_names[topic], (unsigned long long)missing, (unsigned long long)absent);
}

static int judge_missing(const struct record *record, struct bound *bound, const struct sight *sight,
                         uint32_t topic, uint64_t position, struct error *err)
{
    if (record->there_from <= position)
        return error_set(
            err, -EBADMSG,
            "G1: LOST: %s at level %u, sequence %llu, epoch %llu, group %llu, by position %llu; its "
            "topic has %llu entries",
            record->fate == FATE_ACKED ? "it was answered" : "a start had it, and it was answered",
            record->level, (unsigned long long)record->sequence, (unsigned long long)record->epoch,
            (unsigned long long)record->group, (unsigned long long)record->there_from,
            (unsigned long long)sight->entries[topic]);
    if (record->fate != FATE_ACKED || record->epoch == 0 || is_in_gap(record, sight, topic))
        return 0;
    uint64_t *group = bound_of(bound, record->epoch);
    if (group != NULL && record->group != 0 && record->group <= *group)
        return error_set(
            err, -EBADMSG,
            "G7: LOST: it is of group %llu, and group %llu of the same life is there, or promised",
            (unsigned long long)record->group, (unsigned long long)*group);
    if (record->sequence <= sight->entries[topic] &&
        epoch_at(sight, topic, record->sequence) <= record->epoch)
        return error_set(err, -EBADMSG, "G7: it is not there, but what was committed behind it is");
    return 0;
}

static int judge_record(const struct record *record, uint64_t sequence, uint64_t position,
                        struct bound *bound, const struct sight *sight, uint32_t topic, struct error *err)
{
    if (sequence == 0)
        return judge_missing(record, bound, sight, topic, position, err);
    if (record->fate == FATE_NONE || record->sent_at > position)
        return error_set(err, -EBADMSG, "it is there before it was sent");
    if (record->gone_from <= position)
        return error_set(err, -EBADMSG, "G3: RETURNED: it had failed, or was not there, by position %llu",
                         (unsigned long long)record->gone_from);
    /* A start copies what it found at the end of the log into its own epoch. */
    uint64_t epoch = epoch_at(sight, topic, sequence);
    if (record->sequence != 0 && (record->sequence != sequence || record->epoch > epoch))
        return error_set(err, -EBADMSG, "G5: it is at %llu, epoch %llu; its receipt said %llu, epoch %llu",
                         (unsigned long long)sequence, (unsigned long long)epoch,
                         (unsigned long long)record->sequence, (unsigned long long)record->epoch);
    return 0;
}

static int judge_records(const struct ledger *ledger, uint64_t position, struct sight *sight,
                         struct error *err)
{
    struct bound *bound = calloc(1, sizeof *bound);
    int rc = bound != NULL ? 0 : error_set(err, -ENOMEM, "out of memory");
    for (uint32_t p = 0; rc == 0 && p < PRODUCERS; p++)
        for (uint32_t s = 0; s < SLOTS; s++)
            for (uint64_t n = 1; n <= ledger->used[p][s]; n++)
                bound_learn(bound, &ledger->records[p][s][n], sight->sequences[p][s][n], position);
    for (uint32_t p = 0; rc == 0 && p < PRODUCERS; p++)
        for (uint32_t s = 0; rc == 0 && s < SLOTS; s++)
            for (uint64_t n = 1; rc == 0 && n <= ledger->used[p][s]; n++) {
                uint64_t sequence = sight->sequences[p][s][n];
                uint32_t topic = producer_topic(p, s);
                sight->absent += sequence == 0;
                rc = judge_record(&ledger->records[p][s][n], sequence, position, bound, sight, topic, err);
                if (rc < 0)
                    (void)error_wrap(err, "topic '%s', batch %llu of producer %u, position %llu",
                                     topic_names[topic], (unsigned long long)n, p,
                                     (unsigned long long)position);
            }
    free(bound);
    for (uint32_t topic = 0; rc == 0 && topic < TOPICS; topic++)
        rc = judge_gaps(ledger, sight, topic, err);
    return rc;
}

int ledger_judge(const struct work *work, const struct ledger *ledger, uint64_t position, struct sight *sight,
                 struct error *err)
{
    walrus *handle;
    memset(sight, 0, sizeof *sight);
    int rc = soak_connect(&work->run, &(struct walrus_connect_options){.window_bytes = WINDOW_BYTES}, &handle,
                          err);
    if (rc < 0)
        return error_wrap(err, "the judge cannot connect");
    for (uint32_t topic = 0; topic < TOPICS && rc == 0; topic++)
        rc = read_topic(handle, ledger, topic, sight, err);
    walrus_close(handle);
    return rc == 0 ? judge_records(ledger, position, sight, err) : rc;
}

/* ------------------------------------------------------------------------------------- settling */

static int settle(struct record *record, uint64_t sequence, uint64_t position, const struct sight *sight,
                  uint32_t topic, struct error *err)
{
    bool is_open =
        record->fate == FATE_UNKNOWN || (record->fate == FATE_ACKED && record->there_from == NEVER);
    if (record->fate == FATE_SENT)
        return error_set(err, -EBADMSG, "its producer does not know that the life is over");
    if (!is_open)
        return 0;
    if (sequence != 0) {
        record->there_from = position;
        record->sequence = sequence;
        record->fate = FATE_THERE;
        return 0;
    }
    uint64_t entries = sight->entries[topic];
    if (record->fate == FATE_ACKED && record->sequence != 0 && record->sequence <= entries &&
        !is_in_gap(record, sight, topic))
        return error_set(err, -EBADMSG, "G7: it is gone, but of its topic %llu entries are there",
                         (unsigned long long)entries);
    record->gone_from = position;
    record->fate = FATE_GONE;
    record->sequence = record->epoch = record->group = 0;
    return 0;
}

int ledger_settle(const struct work *work, struct ledger *ledger, const struct sight *sight,
                  struct error *err)
{
    uint64_t position = work_position(work);
    int rc = 0;
    for (uint32_t p = 0; rc == 0 && p < PRODUCERS; p++)
        for (uint32_t s = 0; rc == 0 && s < SLOTS; s++)
            for (uint64_t n = 1; rc == 0 && n <= ledger->used[p][s]; n++) {
                uint32_t topic = producer_topic(p, s);
                rc =
                    settle(&ledger->records[p][s][n], sight->sequences[p][s][n], position, sight, topic, err);
                if (rc < 0)
                    (void)error_wrap(err, "topic '%s', batch %llu of producer %u", topic_names[topic],
                                     (unsigned long long)n, p);
            }
    return rc;
}

int sight_compare(const struct sight *one, const struct sight *other, struct error *err)
{
    for (uint32_t p = 0; p < PRODUCERS; p++)
        for (uint32_t s = 0; s < SLOTS; s++)
            for (uint64_t n = 1; n < RECORDS; n++)
                if (one->sequences[p][s][n] != other->sequences[p][s][n])
                    return error_set(
                        err, -EBADMSG,
                        "G6: batch %llu of producer %u in topic '%s' was at %llu, after the next "
                        "recovery it is at %llu (0: not there)",
                        (unsigned long long)n, p, topic_names[producer_topic(p, s)],
                        (unsigned long long)one->sequences[p][s][n],
                        (unsigned long long)other->sequences[p][s][n]);
    return 0;
}
