/* restore.c: what a start learns about topics and producers: first from the checkpoint, then from each group
 * that recover.c finds behind it. Both are checked; what contradicts itself is damage, never an assert.
 *
 * Invariant: applied in log order, once each: sequences and numbers of what follows can only go on from what
 * was there before. */
#include "internal.h"

static int restore_topics(struct log *log, const struct checkpoint_view *view, size_t *at, struct error *err)
{
    struct checkpoint_topic t;
    const char *name;
    for (uint64_t i = 0; i < view->header.topics; i++) {
        bool there = checkpoint_next_topic(view, at, &t, &name);
        check_bug(there); /* checkpoint_read has counted them */
        int error = topic_restore(log, t.topic, t.level, t.uid, name, t.name_bytes, t.next_sequence);
        if (error != 0)
            return error_set(err, error, "store %s: checkpoint: topic %u: %s", log->io->folder, t.topic,
                             strerror(-error));
    }
    return 0;
}

static int restore_pairs(struct log *log, const struct checkpoint_producer *p, const uint8_t *pairs)
{
    for (uint64_t i = 0; i < p->pairs; i++) {
        struct checkpoint_pair pair;
        memcpy(&pair, pairs + i * sizeof pair, sizeof pair);
        struct topic *t = topic_by_id(log, pair.topic);
        struct number_state state = {
            .number = pair.number, .first_sequence = pair.first_sequence, .entries = pair.entries};
        int error = t == NULL || pair.reserved != 0 ? -EBADMSG : number_restore(log, p->producer, t, &state);
        if (error != 0)
            return error;
    }
    return 0;
}

int restore_checkpoint(struct log *log, const struct checkpoint_view *view, struct error *err)
{
    size_t at = 0;
    int error = restore_topics(log, view, &at, err);
    if (error != 0)
        return error;
    if (view->header.next_topic > log->next_topic && view->header.next_topic - log->next_topic > ID_GAP_MOST)
        return error_set(err, -EBADMSG, "store %s: checkpoint: next topic id %u makes no sense",
                         log->io->folder, view->header.next_topic);
    if (log->next_topic < view->header.next_topic)
        log->next_topic = view->header.next_topic;
    struct checkpoint_producer p;
    const char *name;
    const uint8_t *pairs;
    log->producers.horizon = view->header.horizon;
    for (uint64_t i = 0; i < view->header.producers; i++) {
        bool there = checkpoint_next_producer(view, &at, &p, &name, &pairs);
        check_bug(there);
        error = producer_restore(log, p.producer, p.uid, name, p.name_bytes);
        if (error == 0)
            error = restore_pairs(log, &p, pairs);
        if (error != 0)
            return error_set(err, error, "store %s: checkpoint: producer %llu: %s", log->io->folder,
                             (unsigned long long)p.producer, strerror(-error));
    }
    return 0;
}

static int restore_entry(struct log *log, const struct frame_header *frame)
{
    const char *name;
    if (frame->kind == FRAME_TOPIC) {
        struct topic_entry entry;
        return topic_entry_read(frame, &entry, &name)
                   ? topic_restore(log, entry.topic, entry.level, entry.uid, name, entry.name_bytes, 1)
                   : -EBADMSG;
    }
    struct producer_entry entry;
    return producer_entry_read(frame, &entry, &name)
               ? producer_restore(log, entry.producer, entry.uid, name, entry.name_bytes)
               : -EBADMSG;
}

static int restore_batch(struct log *log, const struct frame_header *frame, const char **what)
{
    struct topic *t = topic_by_id(log, frame->topic);
    *what = "a batch of a topic that is not in the catalogue";
    if (t == NULL)
        return -EBADMSG;
    if (frame->kind == FRAME_CHUNK)
        return 0;
    *what = "a batch whose sequences were given before";
    if (frame->first_sequence < t->next_sequence || frame->batch_entries == 0 ||
        frame->batch_entries > MAX_BATCH_ENTRIES)
        return -EBADMSG;
    *what = "a batch whose sequences make no sense";
    if (frame->first_sequence > UINT64_MAX / 2 - frame->batch_entries) /* topic_restore says the same */
        return -EBADMSG;
    t->next_sequence = t->next_assign = t->written_next = t->durable_next =
        frame->first_sequence + frame->batch_entries;
    topic_watermark(log, t);
    *what = "a batch number that is not the next one of its producer";
    struct number_state state = {frame->number, frame->first_sequence, frame->batch_entries, true};
    return frame->producer != 0 ? number_restore(log, frame->producer, t, &state) : 0;
}

int restore_group(struct log *log, const uint8_t *group, const struct group_header *header, const char **what)
{
    const struct frame_header *frame = NULL;
    while ((frame = group_next_frame(group, header, frame)) != NULL) {
        if (frame->kind != FRAME_TOPIC && frame->kind != FRAME_PRODUCER)
            continue;
        *what = "a catalogue entry makes no sense, or contradicts one before";
        int error = restore_entry(log, frame);
        if (error != 0)
            return error;
    }
    while ((frame = group_next_frame(group, header, frame)) != NULL) {
        if (frame->kind == FRAME_TOPIC || frame->kind == FRAME_PRODUCER)
            continue;
        int error = restore_batch(log, frame, what);
        if (error != 0)
            return error;
    }
    return 0;
}
