/* topics.c: names and numbers of topics.
 *
 *   1. log_topic() finds a topic by name or makes one in memory: no id, not in the catalogue, nothing on
 *      disk.
 *   2. When a group with its first write is sealed the topic gets an id, and its catalogue entry (a
 *      FRAME_TOPIC) goes into the
 *      same group: so a topic is in the log if and only if one of its batches was.
 *   3. When that group completes the topic is `committed`. If the group fails, the next group with a write of
 *      it carries the entry again, with the same id.
 *
 * Invariants: an id is never given to two names; a committed topic is never freed; an uncommitted one is when
 * its last reference goes. Names are bytes, never a path. */
#include "internal.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

bool topic_name_valid(const char *name, size_t length)
{
    if (length == 0 || length > MAX_TOPIC_NAME)
        return false;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c < 0x20 || c == 0x7f)
            return false;
    }
    return true;
}

static size_t name_slot(const struct log *log, const char *name, size_t length)
{
    return (size_t)XXH3_64bits(name, length) & (log->name_room - 1);
}

static struct topic *find(const struct log *log, const char *name, size_t length)
{
    if (log->name_room == 0)
        return NULL;
    for (struct topic *t = log->by_name[name_slot(log, name, length)]; t != NULL; t = t->hash_next)
        if (t->name_length == length && memcmp(t->name, name, length) == 0)
            return t;
    return NULL;
}

static int grow_names(struct log *log)
{
    uint32_t room = log->name_room == 0 ? 256 : log->name_room * 2;
    struct topic **old = log->by_name;
    uint32_t old_room = log->name_room;
    struct topic **table = calloc(room, sizeof(struct topic *));
    if (table == NULL)
        return -ENOMEM;
    log->by_name = table;
    log->name_room = room;
    for (uint32_t i = 0; i < old_room; i++) {
        while (old[i] != NULL) {
            struct topic *t = old[i];
            old[i] = t->hash_next;
            struct topic **slot = &table[name_slot(log, t->name, t->name_length)];
            t->hash_next = *slot;
            *slot = t;
        }
    }
    free(old);
    return 0;
}

/* ------------------------------------------------------------------------ watermarks, and topics of a uid */

/* A slot is given up only with a topic that never got an entry, so that it never goes backwards for
 * anybody. */
static uint32_t watermark_take(struct log *log)
{
    if (log->watermarks_freed > 0)
        return log->watermark_pile[--log->watermarks_freed];
    if (log->options.watermarks != NULL && log->watermarks_used < log->options.watermark_slots)
        return log->watermarks_used++;
    return NO_WATERMARK;
}

static void watermark_give(struct log *log, uint32_t slot)
{
    if (slot == NO_WATERMARK)
        return;
    struct watermark *mark = &log->options.watermarks[slot];
    __atomic_store_n(&mark->durable_next, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&mark->written_next, 0, __ATOMIC_RELEASE);
    log->watermark_pile[log->watermarks_freed++] = slot;
}

void topic_watermark(const struct log *log, const struct topic *topic)
{
    if (topic->watermark == NO_WATERMARK)
        return;
    struct watermark *mark = &log->options.watermarks[topic->watermark];
    __atomic_store_n(&mark->written_next, topic->written_next, __ATOMIC_RELEASE);
    __atomic_store_n(&mark->durable_next, topic->durable_next, __ATOMIC_RELEASE);
}

static struct uid_count *uid_find(const struct log *log, uint32_t uid)
{
    for (uint32_t i = 0; i < log->uid_count; i++)
        if (log->uids[i].uid == uid)
            return &log->uids[i];
    return NULL;
}

static int uid_add(struct log *log, uint32_t uid)
{
    struct uid_count *of_uid = uid_find(log, uid);
    if (of_uid == NULL) {
        struct uid_count *uids = realloc(log->uids, (log->uid_count + 1) * sizeof *uids);
        if (uids == NULL)
            return -ENOMEM;
        log->uids = uids;
        of_uid = &uids[log->uid_count++];
        *of_uid = (struct uid_count){.uid = uid};
    }
    of_uid->topics++;
    return 0;
}

static void uid_remove(struct log *log, uint32_t uid)
{
    struct uid_count *of_uid = uid_find(log, uid);
    check_bug(of_uid != NULL && of_uid->topics > 0);
    of_uid->topics--;
}

static bool uid_has_room(const struct log *log, uint32_t uid)
{
    if (uid == NO_UID)
        return true;
    const struct uid_count *of_uid = uid_find(log, uid);
    return of_uid == NULL || of_uid->topics < log->options.max_topics_of_uid;
}

/* ------------------------------------------------------------------------------------------ names and ids */

static int create(struct log *log, const char *name, size_t length, uint8_t level, uint32_t uid,
                  struct topic **out)
{
    if (log->topic_count >= log->name_room) {
        int error = grow_names(log);
        if (error != 0)
            return error;
    }
    struct topic *t = calloc(1, sizeof *t);
    if (t == NULL)
        return -ENOMEM;
    if (uid_add(log, uid) != 0) {
        free(t);
        return -ENOMEM;
    }
    t->uid = uid;
    t->watermark = watermark_take(log);
    memcpy(t->name, name, length);
    t->name_length = (uint8_t)length;
    t->level = level;
    t->next_sequence = t->next_assign = t->written_next = t->durable_next = 1;
    struct topic **slot = &log->by_name[name_slot(log, name, length)];
    t->hash_next = *slot;
    *slot = t;
    log->topic_count++;
    topic_watermark(log, t);
    *out = t;
    return 0;
}

int log_topic(struct log *log, const char *name, size_t length, uint8_t level, uint32_t uid, bool make,
              struct topic **out)
{
    if (!topic_name_valid(name, length) || level > LEVEL_DURABLE)
        return -EINVAL;
    struct topic *t = find(log, name, length);
    if (t == NULL) {
        if (!make)
            return -ENOENT;
        if (log->topic_count >= log->options.max_topics || !uid_has_room(log, uid))
            return -EDQUOT;
        int error = create(log, name, length, level != 0 ? level : log->options.level, uid, &t);
        if (error != 0)
            return error;
    }
    t->refs++;
    *out = t;
    return 0;
}

static void topic_free(struct log *log, struct topic *topic)
{
    struct topic **link = &log->by_name[name_slot(log, topic->name, topic->name_length)];
    while (*link != topic) {
        check_bug(*link != NULL);
        link = &(*link)->hash_next;
    }
    *link = topic->hash_next;
    log->topic_count--;
    if (topic->id != 0)
        log->by_id[topic->id] = NULL;
    check_bug(!topic->unflushed && !topic->touched && topic->word == NULL);
    uid_remove(log, topic->uid);
    watermark_give(log, topic->watermark);
    free(topic->rows);
    free(topic);
}

void log_topic_release(struct log *log, struct topic *topic)
{
    check_bug(topic->refs > 0);
    /* One whose early answers were lost is kept too: its sequences are burnt, and somebody must be told. */
    bool nothing_given = topic->next_assign == 1 && !topic->lost;
    if (--topic->refs == 0 && !topic->committed && !topic->sealed && nothing_given && topic->waiters == NULL)
        topic_free(log, topic);
}

struct topic *topic_by_id(const struct log *log, uint32_t id)
{
    return id < log->by_id_room ? log->by_id[id] : NULL;
}

static int enter_id(struct log *log, uint32_t id, struct topic *topic)
{
    if (id >= log->by_id_room) {
        uint32_t room = log->by_id_room == 0 ? 256 : log->by_id_room;
        while (room <= id)
            room *= 2;
        struct topic **table = realloc(log->by_id, room * sizeof(struct topic *));
        if (table == NULL)
            return -ENOMEM;
        memset(table + log->by_id_room, 0, (room - log->by_id_room) * sizeof(struct topic *));
        log->by_id = table;
        log->by_id_room = room;
    }
    check_bug(log->by_id[id] == NULL);
    log->by_id[id] = topic;
    topic->id = id;
    return 0;
}

int topic_assign_id(struct log *log, struct topic *topic)
{
    check_bug(topic->id == 0);
    int error = enter_id(log, log->next_topic, topic);
    if (error == 0)
        log->next_topic++;
    return error;
}

int topic_restore(struct log *log, uint32_t id, uint8_t level, uint32_t uid, const char *name, size_t length,
                  uint64_t next)
{
    if (id == 0 || (id > log->next_topic && id - log->next_topic > ID_GAP_MOST) || level < LEVEL_ACCEPTED ||
        level > LEVEL_DURABLE || next == 0 || next > UINT64_MAX / 2 || !topic_name_valid(name, length) ||
        topic_by_id(log, id) != NULL || find(log, name, length) != NULL)
        return -EBADMSG;
    struct topic *t;
    int error = create(log, name, length, level, uid, &t);
    if (error == 0)
        error = enter_id(log, id, t);
    if (error != 0)
        return error;
    t->committed = true;
    t->next_sequence = t->next_assign = t->written_next = t->durable_next = next;
    topic_watermark(log, t);
    if (log->next_topic <= id)
        log->next_topic = id + 1;
    log->stats.topics++;
    return 0;
}

uint64_t topic_visible_next(const struct topic *topic)
{
    return topic->level == LEVEL_DURABLE ? topic->durable_next : topic->written_next;
}

void log_topic_view(const struct topic *topic, struct topic_view *view)
{
    *view = (struct topic_view){
        .id = topic->committed ? topic->id : 0,
        .name = topic->name,
        .name_length = topic->name_length,
        .level = topic->level,
        .first_sequence = 1,
        .visible_next = topic_visible_next(topic),
        .durable_next = topic->durable_next,
        .watermark = topic->watermark,
        .uid = topic->uid,
    };
}

bool log_topic_busy(const struct topic *topic, const void *owner)
{
    return topic->batches > 0 && topic->owner != owner;
}

void **log_topic_word(struct topic *topic)
{
    return &topic->word;
}

void log_on_topic_free(struct log *log, void (*call)(void *context, struct topic *topic), void *context)
{
    log->on_topic_free = call;
    log->on_topic_free_context = context;
}

struct topic *log_topic_after(struct log *log, uint32_t id)
{
    for (uint64_t next = (uint64_t)id + 1; next < log->next_topic; next++) {
        struct topic *t = topic_by_id(log, (uint32_t)next);
        if (t != NULL && t->committed)
            return t;
    }
    return NULL;
}

void log_topic_wait(struct topic *topic, struct topic_waiter *waiter)
{
    check_bug(waiter->link == NULL);
    waiter->next = topic->waiters;
    if (waiter->next != NULL)
        waiter->next->link = &waiter->next;
    waiter->link = &topic->waiters;
    topic->waiters = waiter;
}

void log_topic_wait_cancel(struct topic_waiter *waiter)
{
    if (waiter->link == NULL)
        return;
    *waiter->link = waiter->next;
    if (waiter->next != NULL)
        waiter->next->link = waiter->link;
    waiter->link = NULL;
    waiter->next = NULL;
}

/* A woken waiter may wait again at once, which puts it on the topic's new list, not on the one being run. */
void topic_wake(struct topic *topic)
{
    struct topic_waiter *list = topic->waiters;
    if (list == NULL)
        return;
    topic->waiters = NULL;
    list->link = &list;
    while (list != NULL) {
        struct topic_waiter *waiter = list;
        log_topic_wait_cancel(waiter);
        waiter->wake(waiter);
    }
}

/* --------------------------------------------------------------------------------------- catalogue frames */

static uint32_t entry_payload(const struct topic *topic)
{
    return (uint32_t)align_up(sizeof(struct topic_entry) + topic->name_length, PAYLOAD_ALIGN);
}

uint32_t topic_entry_bytes(const struct topic *topic)
{
    return frame_header_bytes(1, entry_payload(topic)) + entry_payload(topic);
}

void topic_entry_write(const struct topic *topic, void *at, uint64_t time_ns)
{
    _Alignas(16) uint8_t payload[sizeof(struct topic_entry) + MAX_TOPIC_NAME + PAYLOAD_ALIGN] = {0};
    struct topic_entry entry = {
        .topic = topic->id, .level = topic->level, .name_bytes = topic->name_length, .uid = topic->uid};
    memcpy(payload, &entry, sizeof entry);
    memcpy(payload + sizeof entry, topic->name, topic->name_length);
    struct frame_header *frame = at;
    *frame = (struct frame_header){
        .magic = FRAME_MAGIC,
        .kind = FRAME_TOPIC,
        .header_bytes = frame_header_bytes(1, entry_payload(topic)),
        .payload_bytes = entry_payload(topic),
        .entries = 1,
        .ended = 1,
        .time_ns = time_ns,
        .pieces = 1,
        .level = topic->level,
    };
    *frame_records(frame) = (struct entry_record){.length = (uint32_t)sizeof entry + topic->name_length};
    frame_copy_payload(frame, 1, payload, frame->payload_bytes);
}

bool topic_entry_read(const struct frame_header *frame, struct topic_entry *entry, const char **name)
{
    const uint8_t *payload = (const uint8_t *)frame + frame->header_bytes;
    if (frame->payload_bytes < sizeof *entry)
        return false;
    memcpy(entry, payload, sizeof *entry);
    if (entry->name_bytes > frame->payload_bytes - sizeof *entry || !all_zero(entry->reserved, 3))
        return false;
    *name = (const char *)payload + sizeof *entry;
    return topic_name_valid(*name, entry->name_bytes);
}

void topics_free(struct log *log)
{
    for (uint32_t i = 0; i < log->name_room; i++) {
        while (log->by_name[i] != NULL) {
            struct topic *t = log->by_name[i];
            log->by_name[i] = t->hash_next;
            while (t->waiters != NULL)
                log_topic_wait_cancel(t->waiters);
            free(t->rows);
            free(t);
        }
    }
    free(log->by_name);
    free(log->by_id);
    free(log->uids);
    free(log->watermark_pile);
    log->uids = NULL;
    log->uid_count = 0;
    log->watermark_pile = NULL;
    log->by_name = NULL;
    log->by_id = NULL;
    log->name_room = log->by_id_room = 0;
}
