/* check.c: reads a stopped store from end to end; changes nothing.
 *
 *   1. Identity, list, checkpoints.
 *   2. Headers of all segment files; the chain from the highest number back to the first.
 *   3. Every group of every segment, every checksum. Damage is named as exactly as it can be: the frame
 *      (topic, sequence, batch) if the group's header is sound, else the place; then the walk goes on behind
 *      it, so that one run names everything.
 *   4. The tail: an unfinished group is normal after a crash; one that something proves to have been
 *      committed is damage.
 *
 * It is the reader's view, not a start: it waits for nobody and decides nothing. A living broker is noticed
 * by its locks. */
#include "check.h"
#include "internal.h"

#define CHECK_BYTES (UINT64_C(2) * GROUP_MAX)

struct topic_name {
    uint32_t id;
    char name[MAX_TOPIC_NAME + 1];
};

struct check {
    struct io *io;
    void (*found)(void *context, const struct finding *finding);
    void *context;
    struct check_report *report;
    struct error *err;
    struct store_list list;
    uint8_t store_id[16];
    uint8_t *buffer;
    struct topic_name *names; /* by id, as catalogue frames and checkpoints tell */
    uint32_t name_count, name_room;
    const struct store_file *file; /* being walked */
    uint64_t from, to;             /* of it in the buffer */
    uint64_t next_group, proved;
    struct digest digest;
    bool resync; /* chain facts unknown until the next valid group */
};

/* By id: ids rise along the log and in a checkpoint, so a new one nearly always goes to the end. */
static uint32_t name_place(const struct check *c, uint32_t id)
{
    uint32_t low = 0, high = c->name_count;
    if (high > 0 && c->names[high - 1].id < id)
        return high;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (c->names[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static const char *name_of(const struct check *c, uint32_t id)
{
    uint32_t at = name_place(c, id);
    return at < c->name_count && c->names[at].id == id ? c->names[at].name : "";
}

static void tell(struct check *c, enum finding_kind kind, uint64_t offset, const struct frame_header *frame,
                 const char *text)
{
    char name[32] = "";
    if (c->file != NULL)
        snprintf(name, sizeof name, SEGMENT_FILE, (unsigned long long)c->file->file_number);
    struct finding f = {
        .kind = kind,
        .file = name,
        .segment = c->file != NULL ? c->file->header.number : 0,
        .offset = offset,
        .topic = frame != NULL ? name_of(c, frame->topic) : "",
        .sequence = frame != NULL ? frame->first_sequence : 0,
        .batch = frame != NULL ? frame->number : 0,
        .text = text,
    };
    if (kind == FINDING_DAMAGE)
        c->report->damaged++;
    else if (kind == FINDING_TORN)
        c->report->torn++;
    else
        c->report->notes++;
    c->found(c->context, &f);
}

static int name_topic(struct check *c, uint32_t id, const char *name, size_t length)
{
    uint32_t at = name_place(c, id);
    if (length > MAX_TOPIC_NAME || (at < c->name_count && c->names[at].id == id))
        return 0;
    if (c->name_count == c->name_room) {
        uint32_t room = c->name_room == 0 ? 64 : c->name_room * 2;
        struct topic_name *names = realloc(c->names, room * sizeof *names);
        if (names == NULL)
            return -ENOMEM;
        c->names = names;
        c->name_room = room;
    }
    memmove(&c->names[at + 1], &c->names[at], (c->name_count++ - at) * sizeof *c->names);
    c->names[at] = (struct topic_name){.id = id};
    memcpy(c->names[at].name, name, length);
    return 0;
}

static int read_checkpoints(struct check *c)
{
    for (unsigned which = 0; which < 2; which++) {
        struct checkpoint_view view;
        const char *why;
        int error = checkpoint_read(c->io, c->store_id, which, &view, &why);
        if (error != 0)
            return error_set(c->err, error, "store %s: cannot read checkpoint-%u: %s", c->io->folder, which,
                             strerror(-error));
        if (why != NULL)
            tell(c, FINDING_NOTE, 0, NULL,
                 "a checkpoint does not check out; a start uses the other one or walks the log");
        if (view.bytes == NULL)
            continue;
        c->proved = max_u64(c->proved, view.header.group);
        if (view.header.epoch >= c->report->epoch)
            c->report->clean_stop = (view.header.flags & CHECKPOINT_CLEAN) != 0;
        size_t at = 0;
        struct checkpoint_topic topic;
        const char *name;
        while (error == 0 && checkpoint_next_topic(&view, &at, &topic, &name))
            error = name_topic(c, topic.topic, name, topic.name_bytes);
        free(view.bytes);
        if (error != 0)
            return error_set(c->err, error, "store %s: out of memory", c->io->folder);
    }
    return 0;
}

static int open_all(struct check *c)
{
    char name[32];
    for (size_t i = 0; i < c->list.count; i++) {
        struct store_file *f = &c->list.files[i];
        snprintf(name, sizeof name, SEGMENT_FILE, (unsigned long long)f->file_number);
        int error = io_open_file(c->io, name, false, IO_FILE_READ_ONLY, &f->file);
        if (error != 0)
            return error_set(c->err, error, "store %s: cannot open %s: %s", c->io->folder, name,
                             strerror(-error));
        if (c->io->functions->lock(c->io, f->file) == -EWOULDBLOCK)
            return error_set(c->err, -EBUSY, "store %s: a broker is using it (%s is locked); stop it first",
                             c->io->folder, name);
        struct error header = {0};
        error = store_header_read(c->io, f, c->store_id, c->buffer, &header);
        if (error == -EBADMSG) {
            c->file = f;
            tell(c, FINDING_DAMAGE, 0, NULL, header.text);
            f->valid = false;
        } else if (error != 0) {
            *c->err = header;
            return error;
        }
        if (f->valid && f->header.epoch > c->report->epoch)
            c->report->epoch = f->header.epoch;
    }
    c->file = NULL;
    return 0;
}

static int load(struct check *c, uint64_t at, const uint8_t **bytes, uint64_t *have)
{
    if (at < c->from || at > c->to || (c->to - at < GROUP_MAX && c->to < c->file->size)) {
        uint64_t length = at < c->file->size ? min_u64(CHECK_BYTES, c->file->size - at) : 0;
        uint32_t align = c->io->functions->file_align(c->io, c->file->file);
        int64_t got =
            io_read_at(c->io, c->file->file, c->buffer, at, align_up(length, align > 1 ? align : 1));
        if (got < 0)
            return error_set(c->err, (int)got,
                             "store %s: cannot read file " SEGMENT_FILE " at offset %llu: %s", c->io->folder,
                             (unsigned long long)c->file->file_number, (unsigned long long)at,
                             strerror((int)-got));
        c->from = at;
        c->to = at + (uint64_t)got;
    }
    *bytes = c->buffer + (at - c->from);
    *have = c->to - at;
    return 0;
}

static int count_group(struct check *c, const uint8_t *group, const struct group_header *g)
{
    const struct frame_header *frame = NULL;
    c->report->groups++;
    while ((frame = group_next_frame(group, g, frame)) != NULL) {
        if (frame->kind == FRAME_TOPIC) {
            struct topic_entry entry;
            const char *name;
            if (topic_entry_read(frame, &entry, &name)) {
                c->report->topics++;
                if (name_topic(c, entry.topic, name, entry.name_bytes) != 0)
                    return error_set(c->err, -ENOMEM, "store %s: out of memory", c->io->folder);
            }
            continue;
        }
        if (frame->kind == FRAME_PRODUCER)
            continue;
        c->report->payload_bytes += frame->payload_bytes;
        if (frame->kind == FRAME_CHUNK)
            continue;
        c->report->batches++;
        c->report->entries += frame->batch_entries;
    }
    return 0;
}

/* The group's header is sound and something in it is not: names each frame that is damaged. */
static void name_frames(struct check *c, const uint8_t *group, const struct group_header *g,
                        const struct segment_identity *identity)
{
    uint32_t at = sizeof *g;
    uint64_t before = c->report->damaged;
    for (uint32_t i = 0; i < g->frames; i++) {
        const struct frame_header *frame = (const struct frame_header *)(const void *)(group + at);
        if (!frame_check(frame, g->used - at, identity->seed, true)) {
            bool header = frame_check(frame, g->used - at, identity->seed, false);
            tell(c, FINDING_DAMAGE, g->offset + at, header ? frame : NULL,
                 header ? "the payload of a committed batch does not match its checksum; restore the file "
                          "from a backup"
                        : "a frame header of a committed group does not match its checksum; restore the file "
                          "from a backup");
            if (!header)
                return;
        }
        at += frame->header_bytes + frame->payload_bytes;
    }
    if (c->report->damaged == before)
        tell(c, FINDING_DAMAGE, g->offset + g->used, NULL,
             "the padding of a committed group, or the sum over its frames, does not check out; restore the "
             "file from a backup");
}

/* Behind a group whose header is damaged: the next place where a valid one stands, or `limit`. */
static int resync(struct check *c, const struct segment_identity *identity, uint64_t limit, uint64_t *at)
{
    c->resync = true;
    for (*at += identity->block; *at < limit; *at += identity->block) {
        const uint8_t *bytes;
        uint64_t have;
        struct group_header g;
        int error = load(c, *at, &bytes, &have);
        if (error != 0)
            return error;
        if (have >= sizeof g && group_check_header(bytes, identity, *at, limit, &g) == GROUP_VALID)
            return 0;
    }
    *at = limit;
    return 0;
}

/* The newest segment has no valid group at `*at`, and nothing so far says that there was one. A valid group
 * behind it may: then *at is moved there and *more is true. */
static int judge_tail(struct check *c, const struct segment_identity *identity, uint64_t limit, uint64_t *at,
                      bool *more)
{
    const uint8_t *bytes;
    uint64_t have, next = *at, behind = min_u64(limit, *at + CHECK_BYTES);
    *more = false;
    int error = load(c, *at, &bytes, &have);
    if (error != 0)
        return error;
    bool blank = all_zero(bytes, have < identity->block ? have : identity->block);
    uint64_t expected = c->next_group;
    error = resync(c, identity, behind, &next);
    if (error == 0 && next < behind)
        error = load(c, next, &bytes, &have);
    if (error != 0)
        return error;
    struct group_header g;
    if (next < behind) {
        memcpy(&g, bytes, sizeof g);
        if (g.durable_upto >= expected) {
            tell(c, FINDING_DAMAGE, *at, NULL,
                 "a committed group is damaged: a group behind it says that it was flushed");
            *at = next;
            *more = true;
            return 0;
        }
    }
    if (expected <= c->proved)
        tell(c, FINDING_DAMAGE, *at, NULL,
             "a committed group is not there: a checkpoint or header says that it was flushed");
    else if (!blank)
        tell(c, FINDING_TORN, *at, NULL, "an unfinished group at the tail; the next start cuts it");
    return 0;
}

/* What to do with the bytes at `*at`: counts a sound group, names a damaged one, and moves *at behind it.
 * *more: go on. */
static int walk_group(struct check *c, const struct segment_identity *identity, bool newest, uint64_t limit,
                      uint64_t *at, bool *more)
{
    const uint8_t *bytes = NULL;
    uint64_t have = 0;
    struct group_header g = {0};
    int error = load(c, *at, &bytes, &have);
    if (error != 0)
        return error;
    bool valid = have >= sizeof g && group_check_header(bytes, identity, *at, limit, &g) == GROUP_VALID;
    bool follows =
        valid && (c->resync || (g.number == c->next_group && digest_equal(g.previous_digest, c->digest)));
    bool sound = follows && g.length <= have && group_check_body(bytes, &g, identity) == GROUP_VALID;
    if (!sound && newest && !(follows && g.number <= c->proved))
        return judge_tail(c, identity, limit, at, more);
    *more = true;
    if (sound) {
        error = count_group(c, bytes, &g);
        if (error != 0)
            return error;
        c->proved = max_u64(c->proved, g.durable_upto);
    } else if (follows && g.length <= have) {
        name_frames(c, bytes, &g, identity);
    } else {
        tell(c, FINDING_DAMAGE, *at, NULL,
             "no valid group where one was committed; restore the file from a backup");
        return resync(c, identity, limit, at);
    }
    c->resync = false;
    c->next_group = g.number + 1;
    c->digest = digest_of(identity->seed, bytes, sizeof g);
    *at += g.length;
    return 0;
}

/* `end`: where the successor says it ends; 0: the newest. */
static int walk_segment(struct check *c, struct store_file *f, uint64_t end)
{
    struct segment_identity identity = segment_identity_of(&f->header);
    uint64_t at = identity.block, limit = end != 0 ? end : f->size;
    c->file = f;
    c->from = c->to = 0;
    if (f->size < limit) {
        char text[160];
        snprintf(text, sizeof text,
                 "it is truncated (want %llu bytes, have %llu); restore the file from a backup",
                 (unsigned long long)limit, (unsigned long long)f->size);
        tell(c, FINDING_DAMAGE, f->size, NULL, text);
        limit = f->size;
    }
    bool more = true;
    while (at < limit && more) {
        int error = walk_group(c, &identity, end == 0, limit, &at, &more);
        if (error != 0)
            return error;
    }
    if (end == 0 && more && !c->resync && c->next_group <= c->proved)
        tell(c, FINDING_DAMAGE, at, NULL,
             "the log ends here, but a checkpoint or header says that more was flushed: a segment is "
             "missing, or its header is damaged");
    return 0;
}

static struct store_file *find_number(struct check *c, uint64_t number)
{
    struct store_file *best = NULL;
    for (size_t i = 0; i < c->list.count; i++) {
        struct store_file *f = &c->list.files[i];
        if (f->valid && f->header.number == number && (best == NULL || f->header.epoch > best->header.epoch))
            best = f;
    }
    return best;
}

static int walk_all(struct check *c)
{
    uint64_t highest = 0;
    for (size_t i = 0; i < c->list.count; i++)
        if (c->list.files[i].valid)
            highest = max_u64(highest, c->list.files[i].header.number);
    struct store_file **chain = calloc(c->list.count + 1, sizeof(struct store_file *));
    if (chain == NULL)
        return error_set(c->err, -ENOMEM, "store %s: out of memory", c->io->folder);
    size_t count = 0;
    for (uint64_t number = highest; number != 0 && count < c->list.count;) {
        struct store_file *f = find_number(c, number);
        if (f == NULL) {
            char text[128];
            snprintf(text, sizeof text,
                     "segment %llu is missing, or its header is damaged; restore the file from a backup",
                     (unsigned long long)number);
            c->file = NULL;
            tell(c, FINDING_DAMAGE, 0, NULL, text);
            c->resync = true;
            break;
        }
        chain[count++] = f;
        c->proved = max_u64(c->proved, f->header.first_group - 1);
        if (f->header.durable_upto != UINT64_MAX)
            c->proved = max_u64(c->proved, f->header.durable_upto);
        number = f->header.previous_number;
    }
    int error = 0;
    c->report->segments = count;
    if (c->resync && count > 0)
        c->next_group = chain[count - 1]->header.first_group;
    for (size_t i = count; i-- > 0 && error == 0;) {
        const struct segment_header *h = &chain[i]->header;
        c->file = chain[i];
        if (!c->resync && i + 1 < count &&
            (h->first_group != c->next_group || !digest_equal(h->previous_digest, c->digest)))
            tell(c, FINDING_DAMAGE, 0, NULL, "its header does not continue the segment before it");
        c->next_group = h->first_group;
        c->digest = h->previous_digest;
        c->resync = false;
        error = walk_segment(c, chain[i], i > 0 ? chain[i - 1]->header.previous_end : 0);
    }
    c->file = NULL;
    if (error == 0 && count == 0 && c->proved > 0)
        tell(c, FINDING_DAMAGE, 0, NULL, "a checkpoint is there, but no valid segment");
    free(chain);
    return error;
}

/* As a start does it: a newest segment whose header is damaged is in nobody's chain. */
static int look_behind_headers(struct check *c)
{
    for (size_t i = 0; i < c->list.count; i++) {
        struct store_file *f = &c->list.files[i];
        uint64_t lost;
        if (f->valid)
            continue;
        int error = store_lost_group(c->io, f, c->buffer, c->report->segments > 0 ? c->next_group : 0, &lost);
        if (error != 0)
            return error_set(c->err, error, "store %s: cannot read file " SEGMENT_FILE ": %s", c->io->folder,
                             (unsigned long long)f->file_number, strerror(-error));
        if (lost == 0)
            continue;
        f->header.number = 0; /* not to be believed */
        c->file = f;
        char text[160];
        snprintf(text, sizeof text,
                 "the header of file " SEGMENT_FILE
                 " is damaged, and group %llu, which was committed, lies behind it; restore the file from a "
                 "backup",
                 (unsigned long long)f->file_number, (unsigned long long)lost);
        tell(c, FINDING_DAMAGE, 0, NULL, text);
    }
    c->file = NULL;
    return 0;
}

int log_check(struct io *io, void (*found)(void *context, const struct finding *finding), void *context,
              struct check_report *report, struct error *err)
{
    struct check c = {
        .io = io, .found = found, .context = context, .report = report, .err = err, .next_group = 1};
    memset(report, 0, sizeof *report);
    int error = store_list_read(io, &c.list, err);
    if (error != 0)
        return error;
    c.buffer = log_aligned(CHECK_BYTES);
    if (c.buffer == NULL)
        error = error_set(err, -ENOMEM, "store %s: out of memory", io->folder);
    else if (!c.list.has_store)
        error = error_set(err, c.list.empty ? -ENOENT : -ENOTEMPTY,
                          "store %s: it is not a Walrus store (no " STORE_FILE ")", io->folder);
    else
        error = store_identity_read(io, c.store_id, err);
    if (error == 0)
        store_id_format(c.store_id, report->store_id);
    if (error == 0)
        error = open_all(&c);
    if (error == 0)
        error = read_checkpoints(&c);
    if (error == 0)
        error = walk_all(&c);
    if (error == 0)
        error = look_behind_headers(&c);
    for (size_t i = 0; i < c.list.count; i++)
        if (c.list.files[i].file != NULL)
            (void)io_simple(io, IO_CLOSE, c.list.files[i].file, NULL, NULL);
    store_list_free(&c.list);
    free(c.names);
    free(c.buffer);
    return error;
}
