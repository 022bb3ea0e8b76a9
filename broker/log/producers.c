/* producers.c: who numbers its batches, and which number of theirs was committed last on each topic.
 *
 *   1. log_producer_named, _anonymous, _again find or make a producer in memory: nothing on disk yet.
 *   2. number_check(), at admission: n is next (last admitted + 1), committed already (a duplicate), or out
 *      of order. number_admit() notes it in the pair (producer, topic).
 *   3. When a group with its first write is sealed, the producer's catalogue entry (a FRAME_PRODUCER) goes
 *      into the same group: a producer is in the log if and only if one of its batches was.
 *   4. number_commit(), when the group completes: the number is taken.
 *   5. numbers_reset(), when a group fails: what was admitted and not committed falls back; what the
 *      gathering group holds behind the gap is dropped by gather.c and answered -EAGAIN with REASON_ORDER.
 *
 *      last ------ numbers committed: 1 to last, without gap; a number in there is a duplicate
 *      admitted -- >= last: in the group in flight or gathering; admitted + 1 is the only one that may come
 *
 * Forgetting: named producers never. Of the anonymous ones those with the lowest ids that nobody holds, of
 * the uid that has the most, with all their pairs, when there are too many; the horizon then rises to the id.
 * So an id that is not known was never used if it lies above the horizon, and is not known any more if not.
 *
 * Failure modes: too many pairs or names: -EDQUOT; memory: -ENOMEM; both before anything was noted.
 *
 * Invariants: an id (epoch << 32 | counter) is never given twice, because no two starts that served share an
 * epoch; a pair that a write in flight uses is not freed, because the write holds the producer. */
#include "internal.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define PAIRS_PER_ANONYMOUS 16u /* on average; beyond it the oldest are forgotten */

/* ------------------------------------------------------------------------------------------------ tables */

static size_t id_slot(const struct producers *p, uint64_t id)
{
    return (size_t)XXH3_64bits(&id, sizeof id) & (p->id_room - 1);
}

static size_t name_slot(const struct producers *p, const char *name, size_t length)
{
    return (size_t)XXH3_64bits(name, length) & (p->id_room - 1);
}

static size_t pair_slot(const struct producers *p, const struct producer *producer, const struct topic *topic)
{
    const void *key[2] = {producer, topic};
    return (size_t)XXH3_64bits(key, sizeof key) & (p->pair_room - 1);
}

static int grow_producers(struct producers *p)
{
    if (p->count < p->id_room)
        return 0;
    uint32_t room = p->id_room == 0 ? 64 : p->id_room * 2;
    struct producer **by_id = calloc(room, sizeof(struct producer *));
    struct producer **by_name = calloc(room, sizeof(struct producer *));
    if (by_id == NULL || by_name == NULL) {
        free(by_id);
        free(by_name);
        return -ENOMEM;
    }
    free(p->by_id);
    free(p->by_name);
    p->by_id = by_id;
    p->by_name = by_name;
    p->id_room = room;
    for (struct producer *q = p->first; q != NULL; q = q->later) {
        struct producer **slot = &by_id[id_slot(p, q->id)];
        q->id_next = *slot;
        *slot = q;
        if (q->name_length > 0) {
            slot = &by_name[name_slot(p, q->name, q->name_length)];
            q->name_next = *slot;
            *slot = q;
        }
    }
    return 0;
}

static int grow_pairs(struct producers *p)
{
    if (p->named_pairs + p->anonymous_pairs < p->pair_room)
        return 0;
    uint32_t room = p->pair_room == 0 ? 256 : p->pair_room * 2;
    struct pair **table = calloc(room, sizeof(struct pair *));
    if (table == NULL)
        return -ENOMEM;
    free(p->pairs);
    p->pairs = table;
    p->pair_room = room;
    for (struct producer *q = p->first; q != NULL; q = q->later)
        for (struct pair *pair = q->pairs; pair != NULL; pair = pair->next) {
            struct pair **slot = &table[pair_slot(p, q, pair->topic)];
            pair->hash_next = *slot;
            *slot = pair;
        }
    return 0;
}

static struct producer *find_id(const struct producers *p, uint64_t id)
{
    if (p->id_room == 0)
        return NULL;
    struct producer *q = p->by_id[id_slot(p, id)];
    while (q != NULL && q->id != id)
        q = q->id_next;
    return q;
}

static struct producer *find_name(const struct producers *p, const char *name, size_t length)
{
    if (p->id_room == 0)
        return NULL;
    struct producer *q = p->by_name[name_slot(p, name, length)];
    while (q != NULL && (q->name_length != length || memcmp(q->name, name, length) != 0))
        q = q->name_next;
    return q;
}

static struct pair *find_pair(const struct producers *p, const struct producer *producer,
                              const struct topic *topic)
{
    if (p->pair_room == 0)
        return NULL;
    struct pair *pair = p->pairs[pair_slot(p, producer, topic)];
    while (pair != NULL && (pair->producer != producer || pair->topic != topic))
        pair = pair->hash_next;
    return pair;
}

/* Into the list of all, which is ordered by id: new ids are the highest there are. */
static void list_insert(struct producers *p, struct producer *producer)
{
    struct producer *before = p->last;
    while (before != NULL && before->id > producer->id)
        before = before->earlier;
    producer->earlier = before;
    producer->later = before != NULL ? before->later : p->first;
    *(before != NULL ? &before->later : &p->first) = producer;
    *(producer->later != NULL ? &producer->later->earlier : &p->last) = producer;
}

/* Index of the uid's counts; made if there are none yet. */
static int user_of(struct producers *p, uint32_t uid, uint32_t *index)
{
    for (uint32_t i = 0; i < p->user_count; i++) {
        if (p->users[i].uid == uid) {
            *index = i;
            return 0;
        }
    }
    struct producer_user *users = realloc(p->users, (p->user_count + 1) * sizeof *users);
    if (users == NULL)
        return -ENOMEM;
    p->users = users;
    *index = p->user_count++;
    users[*index] = (struct producer_user){.uid = uid};
    return 0;
}

static int create(struct log *log, uint64_t id, uint32_t uid, const char *name, size_t length,
                  struct producer **out)
{
    struct producers *p = &log->producers;
    uint32_t user;
    int error = grow_producers(p);
    if (error == 0)
        error = user_of(p, uid, &user);
    if (error != 0)
        return error;
    struct producer *q = calloc(1, sizeof *q + length);
    if (q == NULL)
        return -ENOMEM;
    q->id = id;
    q->uid = uid;
    q->user = user;
    q->name_length = (uint8_t)length;
    memcpy(q->name, name, length);
    list_insert(p, q);
    p->count++;
    struct producer **slot = &p->by_id[id_slot(p, id)];
    q->id_next = *slot;
    *slot = q;
    if (length > 0) {
        p->named++;
        p->users[user].named++;
        slot = &p->by_name[name_slot(p, name, length)];
        q->name_next = *slot;
        *slot = q;
    }
    *out = q;
    return 0;
}

static void count_pair(struct producers *p, const struct producer *producer, int change)
{
    struct producer_user *user = &p->users[producer->user];
    bool named = producer->name_length > 0;
    *(named ? &p->named_pairs : &p->anonymous_pairs) += (uint32_t)change;
    *(named ? &user->named_pairs : &user->anonymous_pairs) += (uint32_t)change;
}

static void count_anonymous(struct producers *p, const struct producer *producer, int change)
{
    p->anonymous += (uint32_t)change;
    p->users[producer->user].anonymous += (uint32_t)change;
}

static void unlink_pair(struct producers *p, struct pair *pair)
{
    struct pair **link = &p->pairs[pair_slot(p, pair->producer, pair->topic)];
    while (*link != pair)
        link = &(*link)->hash_next;
    *link = pair->hash_next;
    count_pair(p, pair->producer, -1);
}

static void producer_free(struct producers *p, struct producer *producer)
{
    check_bug(producer->refs == 0 && producer->word == NULL && !producer->sealed);
    while (producer->pairs != NULL) {
        struct pair *pair = producer->pairs;
        producer->pairs = pair->next;
        check_bug(pair->admitted == pair->last);
        unlink_pair(p, pair);
        free(pair);
    }
    struct producer **link = &p->by_id[id_slot(p, producer->id)];
    while (*link != producer)
        link = &(*link)->id_next;
    *link = producer->id_next;
    if (producer->name_length > 0) {
        link = &p->by_name[name_slot(p, producer->name, producer->name_length)];
        while (*link != producer)
            link = &(*link)->name_next;
        *link = producer->name_next;
        p->named--;
        p->users[producer->user].named--;
    }
    *(producer->earlier != NULL ? &producer->earlier->later : &p->first) = producer->later;
    *(producer->later != NULL ? &producer->later->earlier : &p->last) = producer->earlier;
    p->count--;
    free(producer);
}

void producers_free(struct log *log)
{
    struct producers *p = &log->producers;
    while (p->first != NULL) {
        struct producer *q = p->first;
        p->first = q->later;
        while (q->pairs != NULL) {
            struct pair *pair = q->pairs;
            q->pairs = pair->next;
            free(pair);
        }
        free(q);
    }
    free(p->by_id);
    free(p->by_name);
    free(p->pairs);
    free(p->users);
    *p = (struct producers){0};
}

/* ------------------------------------------------------------------------------------------- attaching */

int log_producer_named(struct log *log, const char *name, size_t length, uint32_t uid, struct producer **out)
{
    struct producers *p = &log->producers;
    if (!topic_name_valid(name, length))
        return -EINVAL;
    struct producer *q = find_name(p, name, length);
    if (q == NULL) {
        uint32_t user;
        int error = user_of(p, uid, &user);
        if (error != 0)
            return error;
        if (p->named >= log->options.max_named || p->users[user].named >= log->options.max_named_of_uid)
            return -EDQUOT;
        error = create(log, producer_next_id(log), uid, name, length, &q);
        if (error != 0)
            return error;
    } else if (q->uid != uid) {
        return -EACCES;
    }
    q->refs++;
    *out = q;
    return 0;
}

int log_producer_anonymous(struct log *log, uint32_t uid, struct producer **out)
{
    struct producer *q;
    int error = create(log, producer_next_id(log), uid, "", 0, &q);
    if (error != 0)
        return error;
    q->refs++;
    *out = q;
    return 0;
}

int log_producer_again(struct log *log, uint64_t id, uint32_t uid, struct producer **out)
{
    const struct producers *p = &log->producers;
    struct producer *q = find_id(p, id);
    if (q == NULL)
        return id <= p->horizon || id > ((log->epoch << 32) | p->next) ? -ENODATA : -ENOENT;
    if (q->uid != uid || q->name_length > 0)
        return -EACCES;
    q->refs++;
    *out = q;
    return 0;
}

/* There are too many anonymous ones, and of the uid with the most: nobody can make the broker forget those of
 * others. */
static bool too_many(const struct log *log, uint32_t *user)
{
    const struct producers *p = &log->producers;
    bool producers = p->anonymous > log->options.max_anonymous;
    bool pairs = p->anonymous_pairs > (uint64_t)log->options.max_anonymous * PAIRS_PER_ANONYMOUS;
    *user = 0;
    for (uint32_t i = 1; i < p->user_count; i++) {
        const struct producer_user *most = &p->users[*user], *other = &p->users[i];
        if (producers ? other->anonymous > most->anonymous : other->anonymous_pairs > most->anonymous_pairs)
            *user = i;
    }
    return producers || pairs;
}

/* The anonymous ones with the lowest ids that nobody holds. */
static void forget_oldest(struct log *log)
{
    struct producers *p = &log->producers;
    struct producer *q = p->first;
    uint32_t user, before;
    bool over = too_many(log, &user);
    while (q != NULL && over) {
        struct producer *later = q->later;
        if (q->user == user && q->name_length == 0 && q->committed && q->refs == 0) {
            p->horizon = max_u64(p->horizon, q->id);
            count_anonymous(p, q, -1);
            producer_free(p, q);
            before = user;
            over = too_many(log, &user);
            if (user != before)
                later = p->first;
        }
        q = later;
    }
}

void log_producer_release(struct log *log, struct producer *producer)
{
    check_bug(producer->refs > 0);
    if (--producer->refs > 0)
        return;
    if (!producer->committed && !producer->sealed)
        producer_free(&log->producers, producer);
    else
        forget_oldest(log);
}

uint64_t log_producer_id(const struct producer *producer)
{
    return producer->id;
}

void **log_producer_word(struct producer *producer)
{
    return &producer->word;
}

/* ---------------------------------------------------------------------------------------------- numbers */

uint64_t log_last_number(const struct log *log, const struct producer *producer, const struct topic *topic)
{
    const struct pair *pair = find_pair(&log->producers, producer, topic);
    return pair != NULL ? pair->last : 0;
}

int log_query(const struct log *log, const struct producer *producer, const struct topic *topic,
              uint64_t number, uint64_t *first_sequence, uint64_t *entries)
{
    *first_sequence = *entries = 0;
    const struct pair *pair = find_pair(&log->producers, producer, topic);
    if (number == 0 || pair == NULL || number > pair->admitted)
        return 0;
    if (number > pair->last)
        return -EINPROGRESS;
    if (number == pair->last) {
        *first_sequence = pair->first_sequence;
        *entries = pair->entries;
    }
    return 1;
}

/* Makes the pair if there is none. */
static int pair_of(struct log *log, struct producer *producer, struct topic *topic, struct pair **out)
{
    struct producers *p = &log->producers;
    *out = find_pair(p, producer, topic);
    if (*out != NULL)
        return 0;
    int error = grow_pairs(p);
    if (error != 0)
        return error;
    struct pair *pair = calloc(1, sizeof *pair);
    if (pair == NULL)
        return -ENOMEM;
    *pair = (struct pair){.producer = producer, .topic = topic, .next = producer->pairs};
    producer->pairs = pair;
    producer->pair_count++;
    struct pair **slot = &p->pairs[pair_slot(p, producer, topic)];
    pair->hash_next = *slot;
    *slot = pair;
    count_pair(p, producer, 1);
    *out = pair;
    return 0;
}

int number_check(struct log *log, struct write *w)
{
    const struct producers *p = &log->producers;
    if (w->producer == NULL || (w->kind == WRITE_CHUNK && !w->last))
        return 0;
    if (w->number == 0)
        return -EINVAL;
    const struct pair *pair = find_pair(p, w->producer, w->topic);
    uint64_t last = pair != NULL ? pair->last : 0, admitted = pair != NULL ? pair->admitted : 0;
    if (w->number <= last) {
        w->flags |= COMPLETION_DUPLICATE;
        w->first_sequence = w->number == last ? pair->first_sequence : 0;
        w->committed = w->number == last ? pair->entries : 0;
        /* Whether that batch itself is flushed is not known, but if all of the topic is, it is. */
        w->level_reached = w->topic->durable_next == w->topic->written_next ? LEVEL_DURABLE : LEVEL_WRITTEN;
        w->result = 0;
        return 1;
    }
    if (w->number != admitted + 1)
        return -EAGAIN;
    if (pair == NULL && w->producer->name_length > 0 &&
        (p->named_pairs >= log->options.max_named ||
         p->users[w->producer->user].named_pairs >= log->options.max_named_of_uid))
        return -EDQUOT;
    if (pair == NULL && w->producer->name_length == 0 &&
        w->producer->pair_count >= log->options.max_anonymous)
        return -EDQUOT;
    return 0;
}

int number_reserve(struct log *log, const struct write *w, struct pair **out)
{
    *out = NULL;
    if (w->producer == NULL || (w->kind == WRITE_CHUNK && !w->last))
        return 0;
    return pair_of(log, w->producer, w->topic, out);
}

void number_admit(struct pair *pair, uint64_t number)
{
    check_bug(number == pair->admitted + 1);
    pair->admitted = number;
}

void number_commit(struct log *log, struct pair *pair, const struct frame_header *frame)
{
    struct producer *q = pair->producer;
    check_bug(frame->number == pair->last + 1 && frame->number <= pair->admitted);
    pair->last = frame->number;
    pair->first_sequence = frame->first_sequence;
    pair->entries = frame->batch_entries;
    if (!q->committed) {
        check_bug(q->sealed);
        q->committed = true;
        q->sealed = false;
        if (q->name_length == 0) {
            count_anonymous(&log->producers, q, 1);
            forget_oldest(log);
        }
    }
}

/* --------------------------------------------------------------------------------------- catalogue frames */

static uint32_t entry_payload(const struct producer *producer)
{
    return (uint32_t)align_up(sizeof(struct producer_entry) + producer->name_length, PAYLOAD_ALIGN);
}

uint32_t producer_entry_bytes(const struct producer *producer)
{
    return frame_header_bytes(1, entry_payload(producer)) + entry_payload(producer);
}

void producer_entry_write(const struct producer *producer, void *at, uint64_t time_ns)
{
    _Alignas(16) uint8_t payload[sizeof(struct producer_entry) + MAX_TOPIC_NAME + PAYLOAD_ALIGN] = {0};
    struct producer_entry entry = {
        .producer = producer->id, .uid = producer->uid, .name_bytes = producer->name_length};
    memcpy(payload, &entry, sizeof entry);
    memcpy(payload + sizeof entry, producer->name, producer->name_length);
    struct frame_header *frame = at;
    *frame = (struct frame_header){
        .magic = FRAME_MAGIC,
        .kind = FRAME_PRODUCER,
        .header_bytes = frame_header_bytes(1, entry_payload(producer)),
        .payload_bytes = entry_payload(producer),
        .entries = 1,
        .ended = 1,
        .time_ns = time_ns,
        .pieces = 1,
    };
    *frame_records(frame) = (struct entry_record){.length = (uint32_t)sizeof entry + producer->name_length};
    frame_copy_payload(frame, 1, payload, frame->payload_bytes);
}

bool producer_entry_read(const struct frame_header *frame, struct producer_entry *entry, const char **name)
{
    const uint8_t *payload = (const uint8_t *)frame + frame->header_bytes;
    if (frame->payload_bytes < sizeof *entry)
        return false;
    memcpy(entry, payload, sizeof *entry);
    *name = (const char *)payload + sizeof *entry;
    if (entry->name_bytes > frame->payload_bytes - sizeof *entry)
        return false;
    return entry->name_bytes == 0 || topic_name_valid(*name, entry->name_bytes);
}

int producer_restore(struct log *log, uint64_t id, uint32_t uid, const char *name, size_t length)
{
    struct producers *p = &log->producers;
    if (id == 0 || (length > 0 && !topic_name_valid(name, length)) || find_id(p, id) != NULL ||
        (length > 0 && find_name(p, name, length) != NULL))
        return -EBADMSG;
    struct producer *q;
    int error = create(log, id, uid, name, length, &q);
    if (error != 0)
        return error;
    q->committed = true;
    if (length == 0)
        count_anonymous(p, q, 1);
    return 0;
}

int number_restore(struct log *log, uint64_t producer, struct topic *topic, const struct number_state *state)
{
    struct producer *q = find_id(&log->producers, producer);
    struct pair *pair;
    if (q == NULL)
        return -EBADMSG;
    int error = pair_of(log, q, topic, &pair);
    if (error != 0)
        return error;
    if (state->number == 0 || (state->next_only && state->number != pair->last + 1) ||
        (!state->next_only && pair->last != 0))
        return -EBADMSG;
    pair->last = pair->admitted = state->number;
    pair->first_sequence = state->first_sequence;
    pair->entries = state->entries;
    return 0;
}

void producers_settle(struct log *log)
{
    forget_oldest(log);
}
