/* content.c: entries that say who wrote them, and the rules that they must keep when they are read. */
#include <xxhash.h>

#include "soak.h"

/* An entry: 40 bytes of these words, then words of a generator that they seed, the last one cut. */
struct stamp {
    uint32_t producer, topic;
    uint64_t number;
    uint32_t index, count;
    uint32_t length, zero;
    uint64_t hash; /* of the words above */
};
_Static_assert(sizeof(struct stamp) == CONTENT_LEAST, "stamp");

static void fill_rest(uint64_t seed, uint8_t *to, uint32_t length)
{
    for (uint32_t at = 0; at < length; at += 8) {
        uint64_t word = random_next(&seed);
        memcpy(to + at, &word, length - at < 8 ? length - at : 8);
    }
}

void content_fill(const struct content *content, uint8_t *to)
{
    struct stamp stamp = {.producer = content->producer,
                          .topic = content->topic,
                          .number = content->number,
                          .index = content->index,
                          .count = content->count,
                          .length = content->length};
    check_bug(content->length >= CONTENT_LEAST);
    stamp.hash = XXH3_64bits(&stamp, offsetof(struct stamp, hash));
    memcpy(to, &stamp, sizeof stamp);
    fill_rest(stamp.hash, to + sizeof stamp, content->length - (uint32_t)sizeof stamp);
}

int content_read(const void *data, uint64_t length, struct content *content, struct error *err)
{
    struct stamp stamp;
    if (length < sizeof stamp)
        return error_set(err, -EBADMSG, "an entry of %llu bytes: nobody wrote it",
                         (unsigned long long)length);
    memcpy(&stamp, data, sizeof stamp);
    if (stamp.length != length || stamp.hash != XXH3_64bits(&stamp, offsetof(struct stamp, hash)))
        return error_set(err, -EBADMSG, "an entry of %llu bytes that nobody wrote",
                         (unsigned long long)length);
    const uint8_t *rest = (const uint8_t *)data + sizeof stamp;
    uint64_t seed = stamp.hash;
    for (uint64_t at = 0; at < length - sizeof stamp; at += 8) {
        uint64_t word = random_next(&seed), left = length - sizeof stamp - at;
        if (memcmp(rest + at, &word, left < 8 ? left : 8) != 0)
            return error_set(err, -EBADMSG,
                             "producer %u, batch %llu, entry %u of %u: byte %llu or behind is damaged",
                             stamp.producer, (unsigned long long)stamp.number, stamp.index, stamp.count,
                             (unsigned long long)(at + sizeof stamp));
    }
    *content = (struct content){.producer = stamp.producer,
                                .topic = stamp.topic,
                                .number = stamp.number,
                                .index = stamp.index,
                                .count = stamp.count,
                                .length = stamp.length};
    return 0;
}

int in_order_next(struct in_order *of, uint32_t producers, uint32_t *open, const struct content *content,
                  struct error *err)
{
    unsigned long long number = content->number;
    if (content->producer >= producers)
        return error_set(err, -EBADMSG, "an entry of producer %u, which there is not", content->producer);
    if (*open != producers && *open != content->producer)
        return error_set(err, -EBADMSG, "batch %llu of producer %u lies within batch %llu of producer %u",
                         number, content->producer, (unsigned long long)of[*open].number, *open);
    struct in_order *expected = &of[content->producer];
    if (expected->next == 0) {
        expected->number++;
        expected->count = content->count;
    }
    if (content->number != expected->number || content->index != expected->next ||
        content->count != expected->count || content->index >= content->count)
        return error_set(err, -EBADMSG,
                         "producer %u: batch %llu, entry %u of %u, where batch %llu, entry %u was to come",
                         content->producer, number, content->index, content->count,
                         (unsigned long long)expected->number, expected->next);
    expected->next = content->index + 1 < content->count ? content->index + 1 : 0;
    *open = expected->next != 0 ? content->producer : producers;
    return 0;
}
