/* topics.c: topic handles, batch numbers asked for, watermarks, and the catalogue one topic at a time.
 *
 * walrus_next_topic asks for records from an id on and keeps what came beyond the first, so that going
 * through N topics takes about N records' worth of windows, not N windows. The window itself is free again
 * at once. */
#include "handle.h"

void walrus__topic_unused(struct walrus_topic *topic)
{
    if (!topic->closed || topic->open_batches > 0)
        return;
    struct walrus *handle = topic->handle;
    if (topic->previous != NULL)
        topic->previous->next = topic->next;
    else
        handle->topics = topic->next;
    if (topic->next != NULL)
        topic->next->previous = topic->previous;
    struct known_topic *known = topic->known;
    free(topic);
    walrus__known_release(handle, known);
}

int walrus_topic_open(walrus *handle, const char *name, size_t length,
                      const struct walrus_topic_options *given, walrus_topic **topic_out)
{
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    if (topic_out == NULL)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "topic_open: no place for the topic");
    *topic_out = NULL;
    struct walrus_topic_options options;
    code = walrus__options(handle, &options, sizeof options, given, "walrus_topic_options");
    if (code < 0)
        return code;
    if (options.level > LEVEL_DURABLE)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "level %u: there is no such level", options.level);
    if (name == NULL || !walrus__name_valid(name, length))
        return walrus__bad_name(handle);
    if (handle->lost != 0)
        return walrus__fail_lost(handle);
    struct walrus_topic *topic = calloc(1, sizeof *topic);
    if (topic == NULL)
        return walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for a topic handle");
    code = walrus__known_open(handle, name, length, options.level, true, FOR_EVER, &topic->known);
    walrus__leave(handle);
    if (code < 0) {
        free(topic);
        return code;
    }
    topic->handle = handle;
    topic->next = handle->topics;
    if (topic->next != NULL)
        topic->next->previous = topic;
    handle->topics = topic;
    *topic_out = topic;
    return 0;
}

void walrus_topic_close(walrus_topic *topic)
{
    if (topic == NULL || walrus__enter(topic->handle) < 0 || topic->closed)
        return;
    struct walrus *handle = topic->handle;
    topic->closed = true;
    walrus__topic_unused(topic);
    walrus__sweep_topics(handle);
    walrus__leave(handle);
}

/* ------------------------------------------------------------------------ numbers and watermarks */

uint64_t walrus_topic_last_number(const walrus_topic *topic)
{
    if (topic == NULL || walrus__enter(topic->handle) < 0)
        return 0;
    walrus__pump(topic->handle->self);
    walrus__leave(topic->handle->self);
    return topic->known->last_number;
}

static int check_query(const walrus_topic *topic, uint64_t number)
{
    if (topic == NULL)
        return -EINVAL;
    struct walrus *handle = topic->handle;
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    if (topic->closed)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "the topic handle is closed: open the topic again");
    if (!walrus__numbered(handle))
        return walrus__fail(handle, -EINVAL, REASON_NONE,
                            "query: this handle has no producer: connect with a producer's name, or with "
                            "WALRUS_RECONNECT");
    if (number == 0)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "query: numbers begin at 1");
    return handle->lost != 0 ? walrus__fail_lost(handle) : 0;
}

static int ask_number(struct walrus *handle, struct known_topic *known, uint64_t number,
                      struct completion *completion)
{
    if (walrus__wait_credit(handle) < 0)
        return walrus__fail_lost(handle);
    struct answer answer = {.done = false};
    struct submission submission = {
        .descriptor = {.op = OP_QUERY, .topic = known->number, .number = number},
        .kind = REQUEST_ANSWER,
        .extent = NO_EXTENT,
        .answer = &answer,
    };
    int code = walrus__submit(handle, &submission, NULL);
    if (code < 0)
        return code;
    code = walrus__wait_answer(handle, &answer, FOR_EVER, false);
    check_bug(code == 0);
    *completion = answer.completion;
    if (completion->result < 0)
        return handle->lost != 0 ? walrus__fail_lost(handle)
                                 : walrus__fail_answer(handle, completion->result, completion->reason,
                                                       "query of topic", known->name);
    if (completion->result > 1) {
        walrus__lose(handle, -EPROTO, "the broker answered a query with %d; the connection has been ended",
                     completion->result);
        return walrus__fail_lost(handle);
    }
    return completion->result;
}

int walrus_query(walrus_topic *topic, uint64_t number, struct walrus_receipt *receipt)
{
    int code = check_query(topic, number);
    if (receipt != NULL)
        memset(receipt, 0, sizeof *receipt);
    if (code < 0)
        return code;
    struct walrus *handle = topic->handle;
    struct completion completion = {.result = 0};
    code = ask_number(handle, topic->known, number, &completion);
    if (code == 1 && number > topic->known->last_number)
        topic->known->last_number = number;
    if (code == 1 && receipt != NULL)
        *receipt = (struct walrus_receipt){
            .first_sequence = completion.first_sequence, .count = completion.entries, .number = number};
    walrus__leave(handle);
    return code;
}

/* The broker writes the words while we read them: each is one load, with acquire, so that whoever has seen a
 * sequence below the mark also reads what the broker wrote before. */
static uint64_t watermark(const walrus_topic *topic, bool durable)
{
    if (topic == NULL || walrus__enter(topic->handle) < 0)
        return 0;
    const struct walrus *handle = topic->handle;
    uint32_t slot = topic->known->watermark;
    if (handle->watermarks == NULL || slot >= handle->watermark_slots)
        return 0;
    const struct watermark *mark = &handle->watermarks[slot];
    return __atomic_load_n(durable ? &mark->durable_next : &mark->written_next, __ATOMIC_ACQUIRE);
}

uint64_t walrus_topic_durable_next(const walrus_topic *topic)
{
    return watermark(topic, true);
}

uint64_t walrus_topic_written_next(const walrus_topic *topic)
{
    return watermark(topic, false);
}

/* ----------------------------------------------------------------------------------- catalogue */

/* A record at `at` of `length` bytes that were copied out of the window. Its size, or 0 if it is nonsense. */
static uint32_t check_record(const uint8_t *at, uint32_t length, struct topic_record *record)
{
    if (length < sizeof *record)
        return 0;
    memcpy(record, at, sizeof *record);
    if (record->bytes > length || record->bytes < sizeof *record || record->bytes % PAYLOAD_ALIGN != 0)
        return 0;
    if (record->name_bytes > record->bytes - sizeof *record ||
        !walrus__name_valid((const char *)at + sizeof *record, record->name_bytes))
        return 0;
    return record->bytes;
}

static int ask_topics(struct walrus *handle, uint64_t above)
{
    if (handle->lost != 0 || walrus__wait_credit(handle) < 0)
        return walrus__fail_lost(handle);
    struct answer answer = {.done = false};
    struct submission submission = {
        .descriptor = {.op = OP_TOPICS,
                       .number = above,
                       .max_entries = MAX_BATCH_ENTRIES,
                       .max_bytes = (uint32_t)handle->window_bytes},
        .kind = REQUEST_ANSWER,
        .extent = NO_EXTENT,
        .answer = &answer,
    };
    int code = walrus__submit(handle, &submission, NULL);
    if (code < 0)
        return code;
    code = walrus__wait_answer(handle, &answer, FOR_EVER, false);
    check_bug(code == 0);
    if (answer.completion.result < 0)
        return handle->lost != 0 ? walrus__fail_lost(handle)
                                 : walrus__fail_answer(handle, answer.completion.result,
                                                       answer.completion.reason, "topics of", "the broker");
    handle->listing_at = handle->listing_end = 0;
    if (answer.completion.window_bytes == 0 || answer.completion.result == 0)
        return 0;
    const uint8_t *bytes;
    code = walrus__window_accept(handle, &answer.completion, &bytes);
    if (code < 0)
        return walrus__fail_lost(handle);
    uint8_t *copy = realloc(handle->listing, answer.completion.window_bytes);
    if (copy != NULL) {
        memcpy(copy, bytes, answer.completion.window_bytes);
        handle->listing = copy;
        handle->listing_end = answer.completion.window_bytes;
    }
    walrus__window_drop(handle);
    return copy != NULL
               ? 0
               : walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for %u bytes of topic records",
                              answer.completion.window_bytes);
}

static int next_topic(struct walrus *handle, struct walrus_topic_info *info)
{
    uint64_t above = info->id;
    if (above == 0 || above != handle->listing_id || handle->listing_at == handle->listing_end) {
        handle->listing_id = 0;
        int code = ask_topics(handle, above);
        if (code < 0)
            return code;
        if (handle->listing_end == 0)
            return 0;
    }
    struct topic_record record;
    const uint8_t *at = handle->listing + handle->listing_at;
    uint32_t bytes = check_record(at, handle->listing_end - handle->listing_at, &record);
    if (bytes == 0 || record.id <= above) {
        walrus__lose(
            handle, -EPROTO,
            "the broker listed topics with a record that is impossible; the connection has been ended");
        return walrus__fail_lost(handle);
    }
    handle->listing_at += bytes;
    handle->listing_id = record.id;
    *info = (struct walrus_topic_info){.size = sizeof *info,
                                       .id = record.id,
                                       .next_sequence = record.next_sequence,
                                       .durable_next = record.durable_next,
                                       .level = record.level};
    memcpy(info->name, at + sizeof record, record.name_bytes);
    return 1;
}

int walrus_next_topic(walrus *handle, struct walrus_topic_info *info)
{
    int code = walrus__enter(handle);
    if (code < 0)
        return code;
    if (info == NULL || info->size < sizeof *info)
        return walrus__fail(handle, -EINVAL, REASON_NONE, "next_topic: set info->size to sizeof *info");
    size_t size = info->size;
    code = next_topic(handle, info);
    info->size = size;
    walrus__leave(handle);
    return code;
}
