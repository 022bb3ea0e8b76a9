#include "layout.h"

uint64_t layout_fingerprint(void)
{
    static const uint64_t facts[] = {
        LAYOUT_VERSION,
        sizeof(struct client_words),
        sizeof(struct broker_words),
        sizeof(struct descriptor),
        sizeof(struct entry_record),
        sizeof(struct completion),
        sizeof(struct run),
        sizeof(struct topic_record),
        sizeof(struct watermark),
        offsetof(struct client_words, cq_head),
        offsetof(struct client_words, wake_at),
        offsetof(struct client_words, window_head),
        offsetof(struct broker_words, sq_head),
        offsetof(struct broker_words, cq_tail),
        offsetof(struct broker_words, parked),
        PAYLOAD_ALIGN,
        MAX_WHOLE_PAYLOAD,
        MAX_CHUNK_PAYLOAD,
    };
    uint64_t sum = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < array_count(facts); i++)
        sum = (sum ^ facts[i]) * UINT64_C(0x100000001b3);
    return sum;
}

bool layout_place(struct layout_sizes *s)
{
    if (!is_power_of_two(s->queue_entries) || s->queue_entries < MIN_QUEUE_ENTRIES ||
        s->queue_entries > MAX_QUEUE_ENTRIES)
        return false;
    if (s->arena_bytes < MIN_ARENA_BYTES || s->arena_bytes > MAX_ARENA_BYTES ||
        s->arena_bytes % LAYOUT_PAGE != 0)
        return false;
    if (!is_power_of_two(s->window_bytes) || s->window_bytes < MIN_WINDOW_BYTES ||
        s->window_bytes > MAX_WINDOW_BYTES)
        return false;
    s->arena_at = align_up(LAYOUT_PAGE + (uint64_t)s->queue_entries * sizeof(struct descriptor), LAYOUT_PAGE);
    s->client_file_bytes = s->arena_at + s->arena_bytes;
    s->window_at =
        align_up(LAYOUT_PAGE + (uint64_t)s->queue_entries * sizeof(struct completion), LAYOUT_PAGE);
    s->broker_file_bytes = s->window_at + s->window_bytes;
    return true;
}
