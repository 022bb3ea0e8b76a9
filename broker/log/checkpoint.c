/* checkpoint.c: what a start would otherwise have to walk the whole log for: topics with their next
 * sequences, the closed segments, and a position behind which to begin.
 *
 *   1. checkpoint_turn(): due (enough log since the last, or a second of quiet with something new) and
 *      everything flushed.
 *   2. The state is copied into one block of memory at that moment; nothing unflushed is in it.
 *   3. In the background: create checkpoint.new, write, flush, close, rename over the older of checkpoint-0
 *      and -1, flush the folder. The newer one is never touched, so that one valid checkpoint is always
 *      there.
 *
 * The position is a hint (a start may have copied the groups behind it elsewhere); that group number `group`
 * was flushed is a fact, and a log that does not reach it is damaged. Position and digest name the last group
 * itself, in the segment that holds it, never an
 * empty segment: a start may bypass that.
 *
 * Failure: said, tried again a second later; a start then walks more. */
#include "internal.h"

#define CHECKPOINT_LOG     (16ull << 20)
#define CHECKPOINT_IDLE_NS NS_PER_SECOND
#define RETRY_NS           NS_PER_SECOND
#define CHECKPOINT_MOST    (64ull << 20)

static void step_done(struct io_op *op);

/* ------------------------------------------------------------------------------------------------ making */

/* The segment that holds group next_group - 1: the current one, or, if that has none yet, one before it. */
static uint32_t last_segment_with_groups(const struct log *log)
{
    uint32_t i = log->segment_count - 1;
    while (i > 0 && log->segments[i]->end <= log->segments[i]->identity.block) /* 0 in one not looked into */
        i--;
    return i;
}

static size_t topic_bytes(const struct topic *t)
{
    return sizeof(struct checkpoint_topic) + align_up(t->name_length, 8);
}

/* Pairs of which nothing is committed, and producers without any other, are not in the log either. */
static uint64_t committed_pairs(const struct producer *p)
{
    uint64_t pairs = 0;
    for (const struct pair *pair = p->pairs; pair != NULL; pair = pair->next)
        pairs += pair->last != 0;
    return pairs;
}

static size_t producer_bytes(const struct producer *p)
{
    return sizeof(struct checkpoint_producer) + align_up(p->name_length, 8) +
           committed_pairs(p) * sizeof(struct checkpoint_pair);
}

static uint8_t *write_producers(const struct log *log, uint8_t *at)
{
    for (const struct producer *p = log->producers.first; p != NULL; p = p->later) {
        if (!p->committed)
            continue;
        struct checkpoint_producer entry = {
            .producer = p->id, .uid = p->uid, .name_bytes = p->name_length, .pairs = committed_pairs(p)};
        memcpy(at, &entry, sizeof entry);
        memcpy(at + sizeof entry, p->name, p->name_length);
        at += sizeof entry + align_up(p->name_length, 8);
        for (const struct pair *pair = p->pairs; pair != NULL; pair = pair->next) {
            if (pair->last == 0)
                continue;
            struct checkpoint_pair row = {.topic = pair->topic->id,
                                          .number = pair->last,
                                          .first_sequence = pair->first_sequence,
                                          .entries = pair->entries};
            memcpy(at, &row, sizeof row);
            at += sizeof row;
        }
    }
    return at;
}

static int serialize(struct log *log, bool clean)
{
    struct checkpoint *c = &log->checkpoint;
    uint32_t position = last_segment_with_groups(log);
    size_t size = sizeof(struct checkpoint_header) + position * sizeof(struct checkpoint_segment);
    uint64_t topics = 0, producers = 0;
    for (const struct producer *p = log->producers.first; p != NULL; p = p->later) {
        producers += p->committed;
        size += p->committed ? producer_bytes(p) : 0;
    }
    for (uint32_t id = 1; id < log->next_topic; id++) {
        const struct topic *t = topic_by_id(log, id);
        if (t != NULL && t->committed) {
            topics++;
            size += topic_bytes(t);
        }
    }
    uint8_t *bytes = calloc(1, size);
    if (bytes == NULL)
        return -ENOMEM;
    struct checkpoint_header header = {
        .magic = CHECKPOINT_MAGIC,
        .version = FORMAT_VERSION,
        .flags = clean ? CHECKPOINT_CLEAN : 0,
        .counter = c->counter + 1,
        .epoch = log->epoch,
        .segment = log->segments[position]->number,
        .offset = log->segments[position]->end,
        .group = log->next_group - 1,
        .digest = log->last_digest,
        .segments = position,
        .topics = topics,
        .bytes = size,
        .next_topic = log->next_topic,
        .producers = producers,
        .horizon = log->producers.horizon,
    };
    memcpy(header.store_id, log->store_id, sizeof header.store_id);
    uint8_t *at = bytes + sizeof header;
    for (uint32_t i = 0; i < position; i++, at += sizeof(struct checkpoint_segment)) {
        const struct segment *s = log->segments[i];
        struct checkpoint_segment entry = {s->number, s->file_number, s->end, s->first_group};
        memcpy(at, &entry, sizeof entry);
    }
    for (uint32_t id = 1; id < log->next_topic; id++) {
        const struct topic *t = topic_by_id(log, id);
        if (t == NULL || !t->committed)
            continue;
        struct checkpoint_topic entry = {.topic = id,
                                         .level = t->level,
                                         .next_sequence = t->next_sequence,
                                         .name_bytes = t->name_length,
                                         .uid = t->uid};
        memcpy(at, &entry, sizeof entry);
        memcpy(at + sizeof entry, t->name, t->name_length);
        at += topic_bytes(t);
    }
    at = write_producers(log, at);
    check_bug(at == bytes + size);
    header.body_crc = crc32c(0, bytes + sizeof header, size - sizeof header);
    header.crc = crc32c(0, &header, offsetof(struct checkpoint_header, crc));
    memcpy(bytes, &header, sizeof header);
    c->bytes = bytes;
    c->size = size;
    c->group = header.group;
    c->log_bytes_at = log->stats.log_bytes;
    c->dirty_since = 0;
    c->wanted = false;
    return 0;
}

static void step(struct log *log, enum checkpoint_state state, struct io_op op)
{
    struct checkpoint *c = &log->checkpoint;
    c->state = state;
    op.background = true;
    op.owner = log;
    op.done = step_done;
    c->op = op;
    io_submit(log->io, &c->op);
}

static void end(struct log *log)
{
    struct checkpoint *c = &log->checkpoint;
    free(c->bytes);
    c->bytes = NULL;
    c->state = CHECKPOINT_IDLE;
}

static void failed(struct log *log, const char *what, int64_t error)
{
    struct checkpoint *c = &log->checkpoint;
    if (c->retry_at == 0)
        log_say(log, SAY_WARNING,
                "cannot write a checkpoint (%s): %s; a start would take longer, nothing else", what,
                strerror(error < 0 ? (int)-error : EIO));
    c->retry_at = io_now(log->io) + RETRY_NS;
    if (c->dirty_since == 0)
        c->dirty_since = io_now(log->io);
    if (c->file != NULL) {
        step(log, CHECKPOINT_UNDO, (struct io_op){.kind = IO_CLOSE, .file = c->file});
        c->file = NULL;
    } else {
        end(log);
    }
}

static void step_done(struct io_op *op)
{
    static const char *const names[] = {
        [CHECKPOINT_CREATE] = "create", [CHECKPOINT_WRITE] = "write",
        [CHECKPOINT_FLUSH] = "flush",   [CHECKPOINT_CLOSE] = "close",
        [CHECKPOINT_RENAME] = "rename", [CHECKPOINT_SYNC] = "flush of the folder"};
    struct log *log = op->owner;
    struct checkpoint *c = &log->checkpoint;
    if (log->abandoned)
        return;
    enum checkpoint_state state = c->state;
    if (state == CHECKPOINT_UNDO) {
        end(log);
        return;
    }
    log_flush_lost(log, op, "the flush of a checkpoint");
    if (op->result < 0 && state != CHECKPOINT_IDLE) {
        failed(log, names[state], op->result);
        return;
    }
    switch (state) {
    case CHECKPOINT_IDLE: /* the unlink before the create; there may have been nothing */
        step(log, CHECKPOINT_CREATE,
             (struct io_op){.kind = IO_CREATE, .name = CHECKPOINT_NEW, .flags = IO_FILE_BUFFERED});
        break;
    case CHECKPOINT_CREATE:
        c->file = op->file;
        step(log, CHECKPOINT_WRITE,
             (struct io_op){.kind = IO_WRITE, .file = c->file, .buffer = c->bytes, .length = c->size});
        break;
    case CHECKPOINT_WRITE:
        if (op->result != (int64_t)op->length)
            failed(log, "short write", -ENOSPC);
        else
            step(log, CHECKPOINT_FLUSH, (struct io_op){.kind = IO_FLUSH, .file = c->file});
        break;
    case CHECKPOINT_FLUSH:
        step(log, CHECKPOINT_CLOSE, (struct io_op){.kind = IO_CLOSE, .file = c->file});
        c->file = NULL;
        break;
    case CHECKPOINT_CLOSE:
        snprintf(c->name, sizeof c->name, CHECKPOINT_FILE, (unsigned)((c->counter + 1) & 1));
        step(log, CHECKPOINT_RENAME,
             (struct io_op){.kind = IO_RENAME, .name = CHECKPOINT_NEW, .new_name = c->name});
        break;
    case CHECKPOINT_RENAME:
        step(log, CHECKPOINT_SYNC, (struct io_op){.kind = IO_SYNC_DIRECTORY});
        break;
    case CHECKPOINT_SYNC:
        c->counter++;
        c->last_size = c->size;
        c->retry_at = 0;
        log->stats.checkpoints++;
        end(log);
        break;
    case CHECKPOINT_UNDO:
        check_bug(false);
    }
}

static bool due(const struct log *log)
{
    const struct checkpoint *c = &log->checkpoint;
    if (c->dirty_since == 0)
        return false;
    check_bug(log->next_group > 1); /* only a group makes it dirty */
    int64_t now = io_now(log->io);
    if (c->retry_at != 0 && now < c->retry_at)
        return false;
    if (c->wanted)
        return true;
    uint64_t since = log->stats.log_bytes - c->log_bytes_at;
    if (since >= max_u64(CHECKPOINT_LOG, 8 * c->last_size))
        return true;
    return now - log->last_group_ns >= CHECKPOINT_IDLE_NS;
}

int64_t checkpoint_deadline(const struct log *log)
{
    const struct checkpoint *c = &log->checkpoint;
    if (c->dirty_since == 0 || c->state != CHECKPOINT_IDLE || c->bytes != NULL)
        return INT64_MAX;
    int64_t at = c->wanted ? 0 : log->last_group_ns + CHECKPOINT_IDLE_NS;
    return c->retry_at > at ? c->retry_at : at;
}

static void begin(struct log *log, bool clean)
{
    struct checkpoint *c = &log->checkpoint;
    int error = serialize(log, clean);
    if (error != 0) {
        c->retry_at = io_now(log->io) + RETRY_NS;
        return;
    }
    step(log, CHECKPOINT_IDLE, (struct io_op){.kind = IO_UNLINK, .name = CHECKPOINT_NEW});
}

void checkpoint_turn(struct log *log)
{
    struct checkpoint *c = &log->checkpoint;
    if (c->bytes != NULL || log->failed.code != 0 || log->stopping || !due(log))
        return;
    if (log->unflushed_bytes > 0)
        log->flush_wanted = true; /* levels below durable: it is taken after that flush */
    else
        begin(log, false);
}

int checkpoint_write_now(struct log *log, bool clean, struct error *err)
{
    struct checkpoint *c = &log->checkpoint;
    check_bug(log->unflushed_bytes == 0);
    while (c->bytes != NULL)
        io_wait(log->io, -1);
    if (log->next_group == 1)
        return 0; /* nothing was ever committed */
    uint64_t before = c->counter;
    begin(log, clean);
    io_kick(log->io);
    while (c->bytes != NULL)
        io_wait(log->io, -1);
    if (c->counter == before)
        return error_set(err, -EIO, "store %s: the last checkpoint could not be written; the data is safe",
                         log->io->folder);
    return 0;
}

/* ------------------------------------------------------------------------------------------------ reading */

bool checkpoint_next_topic(const struct checkpoint_view *view, size_t *at, struct checkpoint_topic *topic,
                           const char **name)
{
    size_t left = view->header.bytes - (size_t)(view->topics - view->bytes);
    check_bug(*at <= left);
    if (left - *at < sizeof *topic)
        return false;
    memcpy(topic, view->topics + *at, sizeof *topic);
    size_t room = left - *at - sizeof *topic;
    if (topic->name_bytes > MAX_TOPIC_NAME || align_up(topic->name_bytes, 8) > room)
        return false;
    *name = (const char *)view->topics + *at + sizeof *topic;
    *at += sizeof *topic + align_up(topic->name_bytes, 8);
    return true;
}

bool checkpoint_next_producer(const struct checkpoint_view *view, size_t *at,
                              struct checkpoint_producer *producer, const char **name, const uint8_t **pairs)
{
    size_t left = view->header.bytes - (size_t)(view->topics - view->bytes);
    check_bug(*at <= left);
    if (left - *at < sizeof *producer)
        return false;
    memcpy(producer, view->topics + *at, sizeof *producer);
    size_t room = left - *at - sizeof *producer;
    if (producer->name_bytes > MAX_TOPIC_NAME || align_up(producer->name_bytes, 8) > room)
        return false;
    room -= align_up(producer->name_bytes, 8);
    if (producer->pairs > room / sizeof(struct checkpoint_pair))
        return false;
    *name = (const char *)view->topics + *at + sizeof *producer;
    *pairs = (const uint8_t *)*name + align_up(producer->name_bytes, 8);
    *at += sizeof *producer + align_up(producer->name_bytes, 8) +
           producer->pairs * sizeof(struct checkpoint_pair);
    return true;
}

static const char *view_fault(struct checkpoint_view *view, size_t size, const uint8_t store_id[16])
{
    struct checkpoint_header *h = &view->header;
    if (size < sizeof *h)
        return "it is too short";
    memcpy(h, view->bytes, sizeof *h);
    if (h->magic != CHECKPOINT_MAGIC || h->crc != crc32c(0, h, offsetof(struct checkpoint_header, crc)))
        return "its header is damaged";
    if (h->version != FORMAT_VERSION || memcmp(h->store_id, store_id, 16) != 0)
        return "it belongs to another store or version";
    if (h->bytes != size || h->group == 0 || h->group > UINT64_MAX / 2 || h->counter > UINT64_MAX / 2 ||
        h->epoch >= UINT32_MAX || h->segment > UINT64_MAX / 2 || h->next_topic == 0 ||
        !all_zero(h->reserved, sizeof h->reserved) ||
        h->body_crc != crc32c(0, view->bytes + sizeof *h, size - sizeof *h))
        return "its body is damaged";
    if (h->segments > (size - sizeof *h) / sizeof(struct checkpoint_segment))
        return "its counts are wrong";
    view->segments = (const struct checkpoint_segment *)(const void *)(view->bytes + sizeof *h);
    view->topics = (const uint8_t *)(view->segments + h->segments);
    for (uint64_t i = 0; i < h->segments; i++)
        if (view->segments[i].end < BLOCK_MIN || view->segments[i].end % BLOCK_MIN != 0)
            return "its segments make no sense";
    size_t at = 0;
    struct checkpoint_topic topic;
    const char *name;
    for (uint64_t i = 0; i < h->topics; i++)
        if (!checkpoint_next_topic(view, &at, &topic, &name))
            return "its counts are wrong";
    struct checkpoint_producer producer;
    const uint8_t *pairs;
    for (uint64_t i = 0; i < h->producers; i++)
        if (!checkpoint_next_producer(view, &at, &producer, &name, &pairs))
            return "its counts are wrong";
    return NULL;
}

int checkpoint_read(struct io *io, const uint8_t store_id[16], unsigned which, struct checkpoint_view *view,
                    const char **why)
{
    char name[32];
    size_t size;
    *view = (struct checkpoint_view){0};
    *why = NULL;
    snprintf(name, sizeof name, CHECKPOINT_FILE, which);
    int error = io_load(io, name, CHECKPOINT_MOST, &view->bytes, &size);
    if (error == -ENOENT)
        return 0;
    if (error == -EFBIG)
        *why = "it is too large";
    else if (error != 0)
        return error;
    else
        *why = view_fault(view, size, store_id);
    if (*why != NULL) {
        free(view->bytes);
        *view = (struct checkpoint_view){0};
    }
    return 0;
}
