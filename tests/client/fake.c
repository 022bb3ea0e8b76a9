/* fake.c: what the fake answers. */
#include "fake_inside.h"

#include <criterion/criterion.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* At once, and by a crash: an assertion that fails in a tear-down, or in another thread, counts for
 * nothing. */
void fake_mistake(struct fake *fake, const char *what, uint64_t number)
{
    fprintf(stderr, "fake: the library did wrong: %s (%llu), op %u\n", what, (unsigned long long)number,
            fake->last.op);
    abort();
}

/* --------------------------------------------------------------------------------- completions */

void fake_post(struct fake *fake, const struct completion *completion)
{
    struct completion c = *completion;
    if (fake->mute)
        return;
    c.epoch = 6 + fake->lives;
    c.signalled_ns = now_ns();
    uint32_t old = fake->cq.mirror.p_tail;
    if (ring_push_completion(&fake->cq, &c) != 1) {
        fake_mistake(fake, "completion ring full: the library went over its credit", old);
        return;
    }
    fake->answered += (c.flags & COMPLETION_MORE) == 0;
    full_fence();
    uint32_t wake_at = word_load(&fake->client->wake_at);
    if (fake->cq.mirror.p_tail - wake_at - 1 < fake->cq.mirror.p_tail - old) {
        uint64_t one = 1;
        cr_assert_eq(write(fake->signal, &one, sizeof one), (ssize_t)sizeof one);
        fake->signals++;
    }
}

static void answer(struct fake *fake, const struct descriptor *d, int result, uint8_t reason, uint32_t flags)
{
    fake_post(fake, &(struct completion){.user_data = d->user_data,
                                         .result = result,
                                         .reason = reason,
                                         .flags = flags,
                                         .published_ns = d->published_ns,
                                         .drained_ns = d->published_ns + 1});
}

void fake_rule(struct fake *fake, struct fake_rule rule)
{
    cr_assert_lt(fake->rule_count, array_count(fake->rules));
    fake->rules[fake->rule_count++] = rule;
}

static bool is_write(uint8_t op)
{
    return op == OP_APPEND || op == OP_BATCH || op == OP_CHUNK;
}

static struct fake_rule *matching_rule(struct fake *fake, uint8_t op)
{
    for (uint32_t i = 0; i < fake->rule_count; i++) {
        struct fake_rule *rule = &fake->rules[i];
        if (rule->times == 0 || (rule->op != op && !(rule->op == FAKE_ANY_WRITE && is_write(op))))
            continue;
        if (rule->after > 0) {
            rule->after--;
            continue;
        }
        rule->times--;
        return rule;
    }
    return NULL;
}

/* -------------------------------------------------------------------------------------- topics */

struct fake_topic *fake_topic(struct fake *fake, const char *name)
{
    for (uint32_t i = 0; i < fake->topic_count; i++) {
        if (strcmp(fake->topics[i]->name, name) == 0)
            return fake->topics[i];
    }
    return NULL;
}

static void open_name(struct fake *fake, const struct descriptor *d)
{
    char name[MAX_TOPIC_NAME + 1] = "";
    if (d->payload_bytes == 0 || d->payload_bytes > MAX_TOPIC_NAME ||
        d->arena_offset > fake->sizes.arena_bytes - d->payload_bytes) {
        fake_mistake(fake, "name outside the arena", d->arena_offset);
        answer(fake, d, -EINVAL, 0, 0);
        return;
    }
    memcpy(name, fake->arena + d->arena_offset, d->payload_bytes);
    struct fake_topic *topic = fake_topic(fake, name);
    bool create = (d->flags & DESCRIPTOR_CREATE) != 0;
    if ((topic == NULL || topic->id == 0) && !create) {
        answer(fake, d, -ENOENT, 0, 0);
        return;
    }
    uint32_t number = 0;
    while (number < fake->topic_count && fake->topics[number] != topic)
        number++;
    if (topic == NULL) {
        cr_assert_lt(fake->topic_count, array_count(fake->topics));
        topic = calloc(1, sizeof *topic);
        memcpy(topic->name, name, sizeof name);
        number = fake->topic_count++;
        fake->topics[number] = topic;
    }
    fake_post(fake, &(struct completion){.user_data = d->user_data,
                                         .flags = topic->id != 0 ? COMPLETION_CREATED : 0,
                                         .entries = number + 1 + fake->number_shift,
                                         .level = LEVEL_DURABLE,
                                         .window_at = number + 2 + fake->slot_shift,
                                         .number = fake->producer != 0 ? topic->last_number : 0});
}

static struct fake_entry *add_entry(struct fake_entry **entries, uint64_t *count, uint64_t *capacity)
{
    if (*count == *capacity) {
        *capacity = *capacity > 0 ? 2 * *capacity : 64;
        *entries = realloc(*entries, *capacity * sizeof **entries);
        cr_assert_not_null(*entries);
    }
    struct fake_entry *entry = &(*entries)[(*count)++];
    *entry = (struct fake_entry){.data = NULL};
    return entry;
}

static void commit(struct fake *fake, uint32_t number, const struct fake_entry *entries, uint64_t count,
                   uint64_t *first)
{
    struct fake_topic *topic = fake->topics[number];
    fake->commits++;
    if (topic->id == 0)
        topic->id = number + 1;
    *first = topic->count + 1;
    for (uint64_t i = 0; i < count; i++) {
        struct fake_entry *to = add_entry(&topic->entries, &topic->count, &topic->capacity);
        *to = entries[i];
        to->batch = fake->commits;
    }
}

/* -------------------------------------------------------------------------------------- writes */

/* Checks a payload as layout.h promises it and adds its entries. */
static bool take_payload(struct fake *fake, const struct descriptor *d, struct fake_entry **entries,
                         uint64_t *count, uint64_t *capacity, bool *open_entry)
{
    uint64_t all = d->payload_bytes + (uint64_t)d->entries * sizeof(struct entry_record);
    uint32_t most = d->op == OP_CHUNK ? MAX_CHUNK_PAYLOAD : MAX_WHOLE_PAYLOAD;
    if (d->arena_offset % PAYLOAD_ALIGN != 0 || d->payload_bytes % PAYLOAD_ALIGN != 0 ||
        d->payload_bytes > most || d->entries > MAX_BATCH_ENTRIES || all > fake->sizes.arena_bytes ||
        d->arena_offset > fake->sizes.arena_bytes - all) {
        fake_mistake(fake, "payload", d->arena_offset);
        return false;
    }
    const uint8_t *payload = fake->arena + d->arena_offset;
    const uint8_t *records = payload + d->payload_bytes;
    uint32_t at = 0;
    for (uint32_t i = 0; i < d->entries; i++) {
        struct entry_record record;
        memcpy(&record, records + i * sizeof record, sizeof record);
        uint32_t padded = (uint32_t)align_up(record.length, PAYLOAD_ALIGN);
        bool goes_on = (record.flags & ENTRY_CONTINUES) != 0;
        if (padded > d->payload_bytes - at || record.header_bytes != 0 ||
            (record.flags & ~ENTRY_FLAGS) != 0) {
            fake_mistake(fake, "record", i);
            return false;
        }
        if (goes_on && (d->op != OP_CHUNK || (d->flags & DESCRIPTOR_LAST) != 0 || i + 1 != d->entries ||
                        record.length % 4096 != 0 || record.length == 0)) {
            fake_mistake(fake, "a piece that may not go on", record.length);
            return false;
        }
        for (uint32_t k = record.length; k < padded; k++) {
            if (payload[at + k] != 0)
                fake_mistake(fake, "padding is not zero", at + k);
        }
        struct fake_entry *entry;
        if (*open_entry)
            entry = &(*entries)[*count - 1];
        else
            entry = add_entry(entries, count, capacity);
        *open_entry = goes_on;
        entry->type = record.type;
        if (!fake->swallow) {
            entry->data = realloc(entry->data, entry->length + record.length + 1);
            memcpy(entry->data + entry->length, payload + at, record.length);
        }
        entry->length += record.length;
        fake->bytes_swallowed += record.length;
        at += padded;
    }
    if (at != d->payload_bytes)
        fake_mistake(fake, "payload_bytes is not the padded sum", at);
    return true;
}

static void answer_write(struct fake *fake, const struct descriptor *d, uint64_t first, uint64_t count)
{
    fake_post(fake, &(struct completion){.user_data = d->user_data,
                                         .first_sequence = count > 0 ? first : 0,
                                         .entries = (uint32_t)count,
                                         .level = LEVEL_DURABLE,
                                         .group = fake->commits,
                                         .published_ns = d->published_ns,
                                         .drained_ns = d->published_ns + 1,
                                         .submitted_ns = d->published_ns + 2,
                                         .durable_ns = d->published_ns + 3,
                                         .number = d->number});
}

static void free_entries(struct fake_entry *entries, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        free(entries[i].data);
    free(entries);
}

/* As the broker: n only after n - 1, and once. True: it was answered. */
static bool number_refused(struct fake *fake, const struct descriptor *d)
{
    const struct fake_topic *topic = fake->topics[d->topic - 1];
    if (fake->producer == 0) {
        if (d->number != 0)
            fake_mistake(fake, "a number without a producer", d->number);
        return false;
    }
    if (d->number == 0)
        fake_mistake(fake, "a producer's write without a number", d->topic);
    if (d->number <= topic->last_number)
        fake_post(fake, &(struct completion){.user_data = d->user_data,
                                             .flags = COMPLETION_DUPLICATE,
                                             .level = LEVEL_DURABLE,
                                             .number = d->number});
    else if (d->number > topic->last_number + 1)
        answer(fake, d, -EAGAIN, REASON_ORDER, 0);
    else
        return false;
    return true;
}

/* Another handle has the topic. True: it waits, or was refused. */
static bool topic_refused(struct fake *fake, const struct descriptor *d)
{
    if (!fake->topics[d->topic - 1]->other)
        return false;
    if ((d->flags & DESCRIPTOR_QUEUE) != 0) {
        fake->waiting[fake->waiting_count++] = *d;
    } else if ((d->flags & DESCRIPTOR_NOTIFY) != 0) {
        fake->listed[fake->listed_count++] = *d;
        answer(fake, d, -EBUSY, REASON_TOPIC, COMPLETION_MORE);
    } else {
        answer(fake, d, -EBUSY, REASON_TOPIC, 0);
    }
    return true;
}

static void whole(struct fake *fake, const struct descriptor *d)
{
    struct fake_entry *entries = NULL;
    uint64_t count = 0, capacity = 0, first;
    bool open_entry = false;
    if (d->topic > 0 && d->topic <= fake->topic_count && topic_refused(fake, d))
        return;
    if (d->topic == 0 || d->topic > fake->topic_count ||
        !take_payload(fake, d, &entries, &count, &capacity, &open_entry)) {
        answer(fake, d, -EINVAL, 0, 0);
        return;
    }
    if (fake->topics[d->topic - 1]->busy) {
        answer(fake, d, -EBUSY, REASON_TOPIC, 0);
        free_entries(entries, count);
        return;
    }
    if (number_refused(fake, d)) {
        free_entries(entries, count);
        return;
    }
    commit(fake, d->topic - 1, entries, count, &first);
    fake->topics[d->topic - 1]->last_number = d->number;
    free(entries);
    answer_write(fake, d, first, count);
}

static struct fake_stream *find_stream(struct fake *fake, uint32_t number, bool make)
{
    for (uint32_t i = 0; i < array_count(fake->streams); i++) {
        if (fake->streams[i].open && fake->streams[i].number == number)
            return &fake->streams[i];
    }
    for (uint32_t i = 0; make && i < array_count(fake->streams); i++) {
        if (!fake->streams[i].open) {
            fake->streams[i] = (struct fake_stream){.number = number, .open = true};
            return &fake->streams[i];
        }
    }
    return NULL;
}

void fake_end_stream(struct fake *fake, struct fake_stream *stream, bool keep)
{
    for (uint64_t i = 0; !keep && i < stream->count; i++)
        free(stream->entries[i].data);
    free(stream->entries);
    stream->open = false;
    if (stream->topic > 0)
        fake->topics[stream->topic - 1]->busy = false;
}

static void chunk(struct fake *fake, const struct descriptor *d, int forced, uint8_t reason)
{
    bool first = (d->flags & DESCRIPTOR_FIRST) != 0, last = (d->flags & DESCRIPTOR_LAST) != 0;
    if (first && forced == 0 && fake->topics[d->topic - 1]->other && (d->flags & DESCRIPTOR_QUEUE) != 0) {
        topic_refused(fake, d);
        return;
    }
    if (!first && (d->flags & DESCRIPTOR_QUEUE) != 0)
        fake_mistake(fake, "a chunk that is not the first one would queue", d->chunk);
    if (first && forced == 0 && fake->topics[d->topic - 1]->other) {
        forced = -EBUSY;
        reason = REASON_TOPIC;
    }
    struct fake_stream *stream = find_stream(fake, d->stream, first);
    if (stream == NULL || d->topic == 0 || d->topic > fake->topic_count || (first && d->chunk != 0) ||
        (!stream->failed && stream->chunks != d->chunk)) {
        fake_mistake(fake, "chunk of no stream, or out of order", d->chunk);
        answer(fake, d, -EINVAL, 0, 0);
        return;
    }
    fake->largest_chunk = d->payload_bytes > fake->largest_chunk ? d->payload_bytes : fake->largest_chunk;
    stream->topic = d->topic;
    if (!stream->failed && forced < 0)
        stream->failed = true;
    if (stream->failed) {
        answer(fake, d, forced < 0 ? forced : -ECANCELED, reason, 0);
        if (last)
            fake_end_stream(fake, stream, false);
        return;
    }
    fake->topics[d->topic - 1]->busy = true;
    stream->chunks++;
    if (!take_payload(fake, d, &stream->entries, &stream->count, &stream->capacity, &stream->open_entry)) {
        stream->failed = true;
        answer(fake, d, -EINVAL, 0, 0);
        return;
    }
    if (!last) {
        answer(fake, d, 0, 0, COMPLETION_COPIED);
        return;
    }
    if (number_refused(fake, d)) {
        fake_end_stream(fake, stream, false);
        return;
    }
    uint64_t first_sequence, count = stream->count;
    fake->topics[d->topic - 1]->last_number = d->number;
    commit(fake, d->topic - 1, stream->entries, count, &first_sequence);
    fake_end_stream(fake, stream, true);
    answer_write(fake, d, first_sequence, count);
}

static void abort_stream(struct fake *fake, const struct descriptor *d)
{
    struct fake_stream *stream = find_stream(fake, d->stream, false);
    fake->aborts++;
    if (stream != NULL)
        fake_end_stream(fake, stream, false);
    answer(fake, d, stream != NULL ? 0 : -ENOENT, 0, 0);
}

/* --------------------------------------------------------------------------------------- reads */

/* Where `want` bytes of window are; how many there are. */
static uint64_t window_room(struct fake *fake, uint64_t want, uint64_t *at)
{
    uint64_t head = __atomic_load_n(&fake->client->window_head, __ATOMIC_ACQUIRE);
    uint64_t size = fake->sizes.window_bytes, used = fake->window_tail - head;
    if (used > size) {
        fake_mistake(fake, "window_head is wild", head);
        return 0;
    }
    uint64_t room = size - used, to_end = size - (fake->window_tail & (size - 1));
    bool skip = to_end < want && room > to_end && room - to_end > to_end;
    *at = fake->window_tail + (skip ? to_end : 0);
    return skip ? room - to_end : min_u64(room, to_end);
}

static uint32_t put_run(uint8_t *to, const struct run *run, const struct entry_record *records,
                        const struct fake_entry *entries, uint64_t offset)
{
    uint32_t record_bytes = (uint32_t)align_up(run->entries * sizeof *records, PAYLOAD_ALIGN);
    memset(to, 0, run->bytes);
    memcpy(to, run, sizeof *run);
    memcpy(to + sizeof *run, records, run->entries * sizeof *records);
    uint8_t *payload = to + sizeof *run + record_bytes;
    for (uint32_t i = 0; i < run->entries; i++) {
        if (entries[i].data != NULL)
            memcpy(payload, entries[i].data + offset, records[i].length);
        payload += align_up(records[i].length, PAYLOAD_ALIGN);
    }
    return run->bytes;
}

/* Answers a read; false if it must wait (follow). */
static bool read_entries(struct fake *fake, const struct descriptor *d)
{
    struct fake_topic *topic =
        d->topic > 0 && d->topic <= fake->topic_count ? fake->topics[d->topic - 1] : NULL;
    bool follow = (d->flags & DESCRIPTOR_FOLLOW) != 0;
    if (topic == NULL || (topic->id == 0 && !follow)) {
        answer(fake, d, topic == NULL ? -EINVAL : -ENOENT, 0, 0);
        return true;
    }
    if (d->number > topic->count && follow)
        return false;
    struct completion c = {.user_data = d->user_data,
                           .first_sequence = d->number,
                           .next_sequence = d->number,
                           .end_sequence = topic->count + 1};
    if (d->number == 0 || d->number > topic->count) {
        fake_post(fake, &c);
        return true;
    }
    uint64_t at, room = window_room(fake, d->max_bytes + 512, &at);
    if (room < 16384) {
        answer(fake, d, -EAGAIN, REASON_WINDOW, 0);
        return true;
    }
    uint64_t begin = at;
    uint32_t payload_left = d->max_bytes;
    struct fake_entry *e = &topic->entries[d->number - 1];
    uint64_t offset = (uint64_t)d->entry_offset_4k * 4096;
    while (c.next_sequence <= topic->count && (uint32_t)c.result < d->max_entries) {
        uint64_t left = e->length - offset, used = at - begin;
        uint64_t run_bytes = sizeof(struct run) + 16 + align_up(left, PAYLOAD_ALIGN);
        struct entry_record record = {.length = (uint32_t)left, .type = e->type};
        struct run run = {
            .entries = 1, .first_sequence = c.next_sequence, .time_ns = 1000 + c.next_sequence, .epoch = 7};
        bool fits = run_bytes <= room - used && offset == 0;
        if (c.result > 0 && (!fits || left > payload_left))
            break;
        if (!fits) {
            uint64_t piece = min_u64(left, (room - used - sizeof run - 16) & ~UINT64_C(4095));
            record.length = (uint32_t)piece;
            run.flags = RUN_PIECE;
            run.entry_bytes = e->length;
            run.entry_offset = offset;
        }
        run.payload_bytes = (uint32_t)align_up(record.length, PAYLOAD_ALIGN);
        run.bytes = (uint32_t)sizeof run + 16 + run.payload_bytes;
        at += put_run(fake->window + (at & (fake->sizes.window_bytes - 1)), &run, &record, e, offset);
        c.result++;
        payload_left -= record.length < payload_left ? record.length : payload_left;
        offset += record.length;
        if (offset < e->length)
            break;
        offset = 0;
        e++;
        c.next_sequence++;
    }
    c.window_at = begin;
    c.window_bytes = (uint32_t)(at - begin);
    fake->window_tail = at;
    if (fake->spoil != NULL)
        fake->spoil(fake, &c);
    fake_post(fake, &c);
    return true;
}

static void list_topics(struct fake *fake, const struct descriptor *d)
{
    uint64_t at, room = window_room(fake, 4096, &at);
    struct completion c = {.user_data = d->user_data, .window_at = at};
    for (uint32_t i = (uint32_t)d->number; i < fake->topic_count && c.result < 3; i++) {
        struct fake_topic *topic = fake->topics[i];
        if (topic->id == 0)
            continue;
        uint32_t length = (uint32_t)strlen(topic->name);
        struct topic_record record = {.bytes = (uint32_t)align_up(sizeof record + length, PAYLOAD_ALIGN),
                                      .name_bytes = length,
                                      .id = topic->id,
                                      .next_sequence = topic->count + 1,
                                      .durable_next = topic->count + 1,
                                      .level = LEVEL_DURABLE};
        if (record.bytes > room - c.window_bytes)
            break;
        uint8_t *to = fake->window + (at & (fake->sizes.window_bytes - 1)) + c.window_bytes;
        memcpy(to, &record, sizeof record);
        memcpy(to + sizeof record, topic->name, length);
        c.window_bytes += record.bytes;
        c.result++;
    }
    fake->window_tail = at + c.window_bytes;
    if (fake->spoil != NULL)
        fake->spoil(fake, &c);
    fake_post(fake, &c);
}

static void remove_at(struct descriptor *list, uint32_t *count, uint32_t at)
{
    memmove(list + at, list + at + 1, (--*count - at) * sizeof *list);
}

void fake_take_topic(struct fake *fake, const char *name)
{
    fake_topic(fake, name)->other = true;
}

static void serve(struct fake *fake, const struct descriptor *d);

void fake_free_topic(struct fake *fake, const char *name)
{
    struct fake_topic *topic = fake_topic(fake, name);
    bool served = false;
    topic->other = false;
    for (uint32_t i = 0; i < fake->waiting_count;) {
        struct descriptor d = fake->waiting[i];
        if (fake->topics[d.topic - 1] != topic) {
            i++;
            continue;
        }
        remove_at(fake->waiting, &fake->waiting_count, i);
        serve(fake, &d);
        served = true;
    }
    for (uint32_t i = 0; !served && i < fake->listed_count; i++) {
        struct descriptor d = fake->listed[i];
        if (fake->topics[d.topic - 1] != topic)
            continue;
        remove_at(fake->listed, &fake->listed_count, i);
        answer(fake, &d, 0, 0, COMPLETION_TRY_NOW);
        break;
    }
}

void fake_expire(struct fake *fake)
{
    int64_t now = now_ns();
    for (uint32_t i = 0; i < fake->waiting_count;) {
        struct descriptor d = fake->waiting[i];
        if (d.deadline_ns == 0 || d.deadline_ns > now) {
            i++;
            continue;
        }
        remove_at(fake->waiting, &fake->waiting_count, i);
        answer(fake, &d, -ETIMEDOUT, 0, 0);
    }
}

/* True: it was in the list, and ends. */
static bool cancelled(struct fake *fake, struct descriptor *list, uint32_t *count, uint64_t word)
{
    for (uint32_t i = 0; i < *count; i++) {
        struct descriptor d = list[i];
        if (d.user_data != word)
            continue;
        remove_at(list, count, i);
        answer(fake, &d, -ECANCELED, 0, 0);
        return true;
    }
    return false;
}

static void cancel(struct fake *fake, const struct descriptor *d)
{
    if (cancelled(fake, fake->waiting, &fake->waiting_count, d->number) ||
        cancelled(fake, fake->listed, &fake->listed_count, d->number)) {
        answer(fake, d, 0, 0, 0);
        return;
    }
    for (uint32_t i = 0; i < fake->follow_count; i++) {
        if (fake->follows[i].user_data != d->number)
            continue;
        answer(fake, &fake->follows[i], -ECANCELED, 0, 0);
        fake->follows[i] = fake->follows[--fake->follow_count];
        answer(fake, d, 0, 0, 0);
        return;
    }
    answer(fake, d, -ENOENT, 0, 0);
}

static void look_at_follows(struct fake *fake)
{
    for (uint32_t i = 0; i < fake->follow_count;) {
        struct descriptor d = fake->follows[i];
        if (read_entries(fake, &d))
            fake->follows[i] = fake->follows[--fake->follow_count];
        else
            i++;
    }
}

/* --------------------------------------------------------------------------------------- turns */

static void misbehave(struct fake *fake, const struct descriptor *d, int how)
{
    switch (how) {
    case FAKE_DIE:
        fake_die(fake);
        break;
    case FAKE_DIE_MUTE:
        fake->mute = true;
        serve(fake, d);
        fake->mute = false;
        fake_die(fake);
        break;
    case FAKE_DIE_AFTER:
        serve(fake, d);
        fake_die(fake);
        break;
    case FAKE_WILD_TAIL:
        word_store_release(&fake->words->cq_tail, word_load(&fake->words->cq_tail) + 100000);
        cr_assert_eq(eventfd_write(fake->signal, 1), 0);
        break;
    case FAKE_NOT_ASKED:
        fake_post(fake, &(struct completion){.user_data = d->user_data + (UINT64_C(1) << 40)});
        break;
    default:
        serve(fake, d);
        answer(fake, d, 0, 0, 0);
        break;
    }
}

static void serve(struct fake *fake, const struct descriptor *d)
{
    struct fake_rule *rule = matching_rule(fake, d->op);
    if (rule != NULL && rule->result > 0) {
        misbehave(fake, d, rule->result);
        return;
    }
    if (rule != NULL && d->op != OP_CHUNK) {
        answer(fake, d, rule->result, rule->reason, rule->flags);
        return;
    }
    switch (d->op) {
    case OP_OPEN:
        open_name(fake, d);
        break;
    case OP_CLOSE:
        answer(fake, d, 0, 0, 0);
        break;
    case OP_APPEND:
    case OP_BATCH:
        whole(fake, d);
        look_at_follows(fake);
        break;
    case OP_CHUNK:
        chunk(fake, d, rule != NULL ? rule->result : 0, rule != NULL ? rule->reason : 0);
        look_at_follows(fake);
        break;
    case OP_ABORT:
        abort_stream(fake, d);
        break;
    case OP_READ:
        if (!read_entries(fake, d))
            fake->follows[fake->follow_count++] = *d;
        break;
    case OP_TOPICS:
        list_topics(fake, d);
        break;
    case OP_CANCEL:
        cancel(fake, d);
        break;
    case OP_QUERY:
        answer(fake, d, d->number <= fake->topics[d->topic - 1]->last_number, 0, 0);
        break;
    default:
        fake_mistake(fake, "unknown op", d->op);
        break;
    }
}

static bool is_held(const struct fake *fake, uint8_t op)
{
    return (fake->hold_writes && is_write(op)) || (fake->hold_reads && (op == OP_READ || op == OP_TOPICS)) ||
           (fake->hold_opens && op == OP_OPEN);
}

void fake_idle(uint64_t loops)
{
    for (uint64_t i = 0; i < loops; i++)
        __asm__("" ::: "memory");
}

uint32_t fake_turn(struct fake *fake)
{
    uint32_t count = 0;
    struct descriptor d;
    while (fake->socket >= 0 && ring_pop_descriptor(&fake->sq, &d) == 1) {
        count++;
        if (d.topic > 0 && d.topic <= fake->number_shift)
            fake_mistake(fake, "a topic number of an earlier life", d.topic);
        d.topic -= d.topic > 0 ? fake->number_shift : 0;
        fake->taken++;
        uint64_t unreaped = fake->cq.mirror.p_tail - word_load_acquire(&fake->client->cq_head);
        if (fake->taken - fake->answered + unreaped > ring_capacity(&fake->cq))
            fake_mistake(fake, "more in flight and unreaped than the ring holds", unreaped);
        fake->seen[d.op & 15]++;
        fake->last = d;
        if (d.published_ns <= 0 || d.published_ns > now_ns())
            fake_mistake(fake, "published_ns", (uint64_t)d.published_ns);
        if (fake->pause_before_answer > 0)
            fake_idle(fake->taken * 13 % fake->pause_before_answer);
        if (is_held(fake, d.op))
            fake->held[fake->held_count++] = d;
        else
            serve(fake, &d);
    }
    return count;
}

void fake_answer_held(struct fake *fake, uint32_t count)
{
    cr_assert_leq(count, fake->held_count);
    for (uint32_t i = 0; i < count; i++)
        serve(fake, &fake->held[i]);
    fake->held_count -= count;
    memmove(fake->held, fake->held + count, fake->held_count * sizeof *fake->held);
}
