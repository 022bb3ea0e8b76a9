/* names.c: the topics that this handle has open at the broker, found by name.
 *
 *              OP_OPEN              last use let go, nothing       OP_CLOSE
 *   (nothing) ---------> in use     in flight                     ---------> (nothing)
 *                           |  ^ \______________________________ /
 *                           |  | found by name again            /
 *          last use let go  v  |                               /
 *                        lingers: writes are in flight -------'  the last of them is answered
 *
 * Uses are topic handles, open batches and the cache for the blocking calls, which holds up to MOST_NAMES of
 * them: the one used longest ago makes room. There is one known_topic for each name, and it stays while
 * writes are in flight, so that whoever opens the name again counts on in the same series of batch numbers.
 *
 * A topic that was asked for without DESCRIPTOR_CREATE is one that exists, so any later write may use it.
 * Completions are met in the middle of other calls, so the last of them only notes that there may be
 * something to give back (`unused_topics`); walrus__sweep_topics does it, at the end of a call, if there is
 * credit. */
#include "handle.h"

#define BUCKETS    256u
#define MOST_NAMES 1024u

bool walrus__name_valid(const char *name, size_t length)
{
    if (length == 0 || length > MAX_TOPIC_NAME)
        return false;
    for (size_t i = 0; i < length; i++) {
        uint8_t c = (uint8_t)name[i];
        if (c < 0x20 || c == 0x7f)
            return false;
    }
    return true;
}

int walrus__bad_name(struct walrus *handle)
{
    return walrus__fail(
        handle, -EINVAL, REASON_NONE,
        "a topic name has 1 to %u bytes and no control characters (0x00-0x1f, 0x7f): this one does not",
        MAX_TOPIC_NAME);
}

int walrus__check_name(struct walrus *handle, const char *name)
{
    if (name == NULL || !walrus__name_valid(name, strnlen(name, MAX_TOPIC_NAME + 1)))
        return walrus__bad_name(handle);
    return 0;
}

/* --------------------------------------------------------------------------------- what is open */

static uint32_t bucket_of(const char *name, size_t length)
{
    uint32_t sum = 2166136261u;
    for (size_t i = 0; i < length; i++)
        sum = (sum ^ (uint8_t)name[i]) * 16777619u;
    return sum % BUCKETS;
}

static bool is_named(const struct known_topic *known, const char *name, size_t length)
{
    return known != NULL && known->length == length && memcmp(known->name, name, length) == 0;
}

static struct known_topic *find(const struct walrus *handle, const char *name, size_t length, uint32_t bucket)
{
    struct known_topic *known = handle->names[bucket];
    while (known != NULL && !is_named(known, name, length))
        known = known->bucket_next;
    return known;
}

static void link_known(struct walrus *handle, struct known_topic *known)
{
    known->bucket_next = handle->names[known->bucket];
    handle->names[known->bucket] = known;
    known->next = handle->known;
    if (known->next != NULL)
        known->next->previous = known;
    handle->known = known;
}

static void unlink_known(struct walrus *handle, struct known_topic *known)
{
    struct known_topic **link = &handle->names[known->bucket];
    while (*link != known)
        link = &(*link)->bucket_next;
    *link = known->bucket_next;
    if (known->previous != NULL)
        known->previous->next = known->next;
    else
        handle->known = known->next;
    if (known->next != NULL)
        known->next->previous = known->previous;
}

void walrus__known_opened(struct walrus *handle, struct known_topic *known, const struct completion *c)
{
    known->number = c->entries;
    known->level = c->level;
    known->watermark = c->window_at < handle->watermark_slots ? (uint32_t)c->window_at : NO_WATERMARK;
    if (c->number > known->last_number)
        known->last_number = c->number;
    if (known->next_number <= known->last_number)
        known->next_number = known->last_number + 1;
}

/* Sends the question for a new name. There is one at a time: the name lies in the first NAME_BYTES. */
static int ask(struct walrus *handle, struct known_topic *known, int64_t deadline)
{
    int code = walrus__wait_credits(handle, 1, deadline);
    if (code == 0) /* until then a reconnection has names of its own there */
        code = walrus__wait_up(handle, deadline);
    if (code < 0)
        return code == -ETIME ? walrus__too_late(handle) : walrus__fail_lost(handle);
    memcpy(handle->arena, known->name, known->length);
    handle->opened = (struct answer){.done = false};
    struct submission submission = {
        .descriptor = {.op = OP_OPEN,
                       .level = known->wanted_level,
                       .flags = known->create ? DESCRIPTOR_CREATE : 0,
                       .arena_offset = 0,
                       .payload_bytes = known->length},
        .kind = REQUEST_ANSWER,
        .extent = NO_EXTENT,
        .answer = &handle->opened,
    };
    code = walrus__submit(handle, &submission, NULL);
    if (code == 0)
        handle->opening = known;
    return code;
}

/* Waits for the answer to the question that is under way, if there is one. 0; -ETIMEDOUT: it still is. */
static int take_answer(struct walrus *handle, int64_t deadline)
{
    struct known_topic *known = handle->opening;
    if (known == NULL)
        return 0;
    if (walrus__wait_answer(handle, &handle->opened, deadline, false) == -ETIME)
        return walrus__too_late(handle);
    handle->opening = NULL;
    const struct completion *c = &handle->opened.completion;
    if (c->result < 0) {
        int code = handle->lost != 0
                       ? walrus__fail_lost(handle)
                       : walrus__fail_answer(handle, c->result, c->reason, "topic", known->name);
        free(known);
        return code;
    }
    walrus__known_opened(handle, known, c);
    link_known(handle, known);
    handle->unused_topics = true;
    return 0;
}

static struct known_topic *known_new(const char *name, size_t length, uint32_t bucket)
{
    struct known_topic *known = calloc(1, sizeof *known + length + 1);
    if (known == NULL)
        return NULL;
    known->bucket = bucket;
    known->length = (uint32_t)length;
    memcpy(known->name, name, length);
    return known;
}

int walrus__known_open(struct walrus *handle, const char *name, size_t length, uint8_t level, bool create,
                       int64_t deadline, struct known_topic **known_out)
{
    if (handle->names == NULL) {
        handle->names = calloc(BUCKETS, sizeof(struct known_topic *));
        if (handle->names == NULL)
            return walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for topic names");
    }
    uint32_t bucket = bucket_of(name, length);
    struct known_topic *known = find(handle, name, length, bucket);
    if (known == NULL) {
        /* Another call may have left a question under way; its answer matters if the name is this one. */
        bool same = is_named(handle->opening, name, length);
        int code = take_answer(handle, deadline);
        if (code == -ETIMEDOUT || (code < 0 && (same || handle->lost != 0)))
            return code;
        known = find(handle, name, length, bucket);
    }
    if (known == NULL) {
        known = known_new(name, length, bucket);
        if (known == NULL)
            return walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for a topic name");
        known->wanted_level = level;
        known->create = create;
        int code = ask(handle, known, deadline);
        if (code < 0) {
            free(known);
            return code;
        }
        code = take_answer(handle, deadline);
        if (code < 0)
            return code;
    }
    known->create = known->create || create;
    known->uses++;
    *known_out = known;
    return 0;
}

/* Nobody uses it, nothing is in flight, and there is credit or no broker. */
static void give_back(struct walrus *handle, struct known_topic *known)
{
    unlink_known(handle, known);
    uint32_t number = known->number;
    free(known);
    if (handle->lost != 0)
        return;
    struct submission submission = {
        .descriptor = {.op = OP_CLOSE, .topic = number},
        .kind = REQUEST_NOBODY,
        .extent = NO_EXTENT,
    };
    if (walrus__submit(handle, &submission, NULL) < 0)
        check_bug(handle->lost != 0);
}

void walrus__sweep_topics(struct walrus *handle)
{
    if (!handle->unused_topics || (handle->lost == 0 && handle->link != LINK_UP))
        return; /* a reconnection has a list of them */
    handle->unused_topics = false;
    for (struct known_topic *known = handle->known, *next; known != NULL; known = next) {
        next = known->next;
        if (known->uses > 0 || known->in_flight > 0)
            continue;
        if (handle->lost == 0 && !walrus__has_credit(handle)) {
            handle->unused_topics = true;
            return;
        }
        give_back(handle, known);
    }
}

void walrus__known_release(struct walrus *handle, struct known_topic *known)
{
    check_bug(known->uses > 0);
    if (--known->uses == 0)
        handle->unused_topics = true;
}

/* --------------------------------------------------------------------------------------- cache */

static void unlink_use(struct walrus *handle, struct known_topic *known)
{
    if (known->newer != NULL)
        known->newer->older = known->older;
    else
        handle->name_newest = known->older;
    if (known->older != NULL)
        known->older->newer = known->newer;
    else
        handle->name_oldest = known->newer;
}

static void link_newest(struct walrus *handle, struct known_topic *known)
{
    known->newer = NULL;
    known->older = handle->name_newest;
    if (known->older != NULL)
        known->older->newer = known;
    else
        handle->name_oldest = known;
    handle->name_newest = known;
}

static void forget_oldest(struct walrus *handle)
{
    struct known_topic *oldest = handle->name_oldest;
    unlink_use(handle, oldest);
    oldest->cached = false;
    handle->name_count--;
    walrus__known_release(handle, oldest);
    walrus__sweep_topics(handle);
}

int walrus__known_for_call(struct walrus *handle, const char *name, bool create, int64_t deadline,
                           struct known_topic **known_out)
{
    if (handle->lost != 0)
        return walrus__fail_lost(handle);
    size_t length = strlen(name);
    struct known_topic *known =
        handle->names != NULL ? find(handle, name, length, bucket_of(name, length)) : NULL;
    if (known == NULL || !known->cached) {
        if (handle->name_count == MOST_NAMES)
            forget_oldest(handle);
        int code = walrus__known_open(handle, name, length, LEVEL_TOPIC, create, deadline, &known);
        if (code < 0)
            return code;
        check_bug(known != NULL);
        known->cached = true;
        handle->name_count++;
    } else {
        unlink_use(handle, known);
    }
    link_newest(handle, known);
    *known_out = known;
    return 0;
}

void walrus__names_release(struct walrus *handle)
{
    while (handle->known != NULL) {
        struct known_topic *known = handle->known;
        unlink_known(handle, known);
        free(known);
    }
    free(handle->opening);
    free(handle->names);
    handle->opening = NULL;
    handle->names = NULL;
    handle->name_newest = handle->name_oldest = NULL;
}
