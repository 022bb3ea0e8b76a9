/* names.c: topic numbers of this connection: asked for by name (OP_OPEN), held by topic handles and by a
 * cache for the blocking calls, given back (OP_CLOSE) when the last holder lets go.
 *
 * The cache holds up to MOST_NAMES names; the one used longest ago makes room. A number that was asked for
 * without DESCRIPTOR_CREATE is of a topic that exists, so any later write may use it. */
#include "handle.h"

#define BUCKETS    256u
#define MOST_NAMES 1024u

struct known_name {
    struct known_name *bucket_next;
    struct known_name *newer, *older; /* by last use */
    uint32_t number;
    uint32_t bucket;
    size_t length;
    char name[];
};

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

/* ------------------------------------------------------------------------------------- numbers */

static struct number_use *find_number(struct walrus *handle, uint32_t number)
{
    for (uint32_t i = 0; i < handle->number_count; i++) {
        if (handle->numbers[i].number == number)
            return &handle->numbers[i];
    }
    return NULL;
}

/* Room for one more number, before it is asked for. */
static int reserve_number(struct walrus *handle)
{
    if (handle->number_count < handle->number_capacity)
        return 0;
    uint32_t capacity = handle->number_capacity > 0 ? 2 * handle->number_capacity : 16;
    struct number_use *numbers = realloc(handle->numbers, capacity * sizeof *numbers);
    if (numbers == NULL)
        return walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for a topic number");
    handle->numbers = numbers;
    handle->number_capacity = capacity;
    return 0;
}

int walrus__open_number(struct walrus *handle, const char *name, size_t length, uint8_t level, bool create,
                        uint32_t *number, uint8_t *level_out)
{
    int code = reserve_number(handle);
    if (code < 0)
        return code;
    if (walrus__wait_credit(handle) < 0)
        return walrus__fail_lost(handle);
    memcpy(handle->arena, name,
           length); /* the first NAME_BYTES are for this; only one is asked for at a time */
    struct answer answer = {.done = false};
    struct submission submission = {
        .descriptor = {.op = OP_OPEN,
                       .level = level,
                       .flags = create ? DESCRIPTOR_CREATE : 0,
                       .arena_offset = 0,
                       .payload_bytes = (uint32_t)length},
        .kind = REQUEST_ANSWER,
        .extent = NO_EXTENT,
        .answer = &answer,
    };
    code = walrus__submit(handle, &submission, NULL);
    if (code < 0)
        return code;
    code = walrus__wait_answer(handle, &answer, FOR_EVER, false);
    check_bug(code == 0);
    char words[MAX_TOPIC_NAME + 1];
    memcpy(words, name, length);
    words[length] = '\0';
    if (answer.completion.result < 0)
        return handle->lost != 0 ? walrus__fail_lost(handle)
                                 : walrus__fail_answer(handle, answer.completion.result,
                                                       answer.completion.reason, "topic", words);
    *number = answer.completion.entries;
    if (level_out != NULL)
        *level_out = answer.completion.level;
    struct number_use *use = find_number(handle, *number);
    if (use == NULL) {
        use = &handle->numbers[handle->number_count++];
        *use = (struct number_use){.number = *number};
    }
    use->count++;
    return 0;
}

void walrus__close_number(struct walrus *handle, uint32_t number)
{
    struct number_use *use = find_number(handle, number);
    check_bug(use != NULL && use->count > 0);
    if (--use->count > 0)
        return;
    *use = handle->numbers[--handle->number_count];
    if (handle->lost != 0 || walrus__wait_credit(handle) < 0)
        return;
    struct submission submission = {
        .descriptor = {.op = OP_CLOSE, .topic = number},
        .kind = REQUEST_NOBODY,
        .extent = NO_EXTENT,
    };
    if (walrus__submit(handle, &submission, NULL) < 0)
        check_bug(handle->lost != 0);
}

/* --------------------------------------------------------------------------------------- cache */

static uint32_t hash(const char *name, size_t length)
{
    uint32_t sum = 2166136261u;
    for (size_t i = 0; i < length; i++)
        sum = (sum ^ (uint8_t)name[i]) * 16777619u;
    return sum;
}

static void unlink_use(struct walrus *handle, struct known_name *known)
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

static void link_newest(struct walrus *handle, struct known_name *known)
{
    known->newer = NULL;
    known->older = handle->name_newest;
    if (known->older != NULL)
        known->older->newer = known;
    else
        handle->name_oldest = known;
    handle->name_newest = known;
}

static void forget(struct walrus *handle, struct known_name *known)
{
    struct known_name **link = &handle->names[known->bucket];
    while (*link != known)
        link = &(*link)->bucket_next;
    *link = known->bucket_next;
    unlink_use(handle, known);
    handle->name_count--;
    free(known);
}

static int remember(struct walrus *handle, const char *name, size_t length, uint32_t bucket, uint32_t number)
{
    struct known_name *known = malloc(sizeof *known + length + 1);
    if (known == NULL) {
        walrus__close_number(handle, number);
        return walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for a topic name");
    }
    *known = (struct known_name){.number = number, .bucket = bucket, .length = length};
    memcpy(known->name, name, length);
    known->name[length] = '\0';
    known->bucket_next = handle->names[bucket];
    handle->names[bucket] = known;
    link_newest(handle, known);
    handle->name_count++;
    return 0;
}

int walrus__number_of(struct walrus *handle, const char *name, bool create, uint32_t *number)
{
    if (handle->lost != 0)
        return walrus__fail_lost(handle);
    if (handle->names == NULL) {
        handle->names = calloc(BUCKETS, sizeof *handle->names);
        if (handle->names == NULL)
            return walrus__fail(handle, -ENOMEM, REASON_NONE, "no memory for topic names");
    }
    size_t length = strlen(name);
    uint32_t bucket = hash(name, length) % BUCKETS;
    for (struct known_name *known = handle->names[bucket]; known != NULL; known = known->bucket_next) {
        if (known->length == length && memcmp(known->name, name, length) == 0) {
            unlink_use(handle, known);
            link_newest(handle, known);
            *number = known->number;
            return 0;
        }
    }
    if (handle->name_count == MOST_NAMES) {
        uint32_t oldest = handle->name_oldest->number;
        forget(handle, handle->name_oldest);
        walrus__close_number(handle, oldest);
    }
    int code = walrus__open_number(handle, name, length, LEVEL_TOPIC, create, number, NULL);
    if (code < 0)
        return code;
    return remember(handle, name, length, bucket, *number);
}

void walrus__names_release(struct walrus *handle)
{
    while (handle->name_newest != NULL)
        forget(handle, handle->name_newest);
    free(handle->names);
    free(handle->numbers);
    handle->names = NULL;
    handle->numbers = NULL;
}
