/* recover.c: a start decides, once and for ever, what is in the log. FORMAT.md has the table of cases; the
 * letters here are its.
 *
 *   1. The newer valid checkpoint: topics, closed segments, a position to begin at, and the fact that its
 *      group was flushed.
 *   2. Open, lock, flush and read the header of every segment file that the checkpoint does not call closed.
 *   3. The chain: from the highest number back along previous_number. Of two headers with one number the
 *      higher epoch counts.
 *   4. Walk groups from the position: numbers without gap, chained digests, each segment's own epoch,
 *      counters that never fall. A segment other than the newest must reach exactly to where its successor
 *      says it ends.
 *   5. The first invalid group of the newest segment is the tail (case T), unless something proves that it
 *      was durable (case D): durable_upto of any valid group or header, a checkpoint's group, a valid group
 *      of this segment behind it.
 *   6. Groups above the last proven one are valid but may be lost by a flush that failed unseen: they are
 *      copied into a new segment, always (case C). A newest segment none of whose groups is proved is
 *      bypassed (case B).
 *   7. Files whose header reads blank or torn may still hold a header from a write that failed: void is
 *      written over them, flushed.
 *   8. Copies, flush; then the new segment's header, flush. That one write is the decision. Only now is
 *      anything served.
 *
 * A crash anywhere in 1 to 8 changes nothing: until the header is durable the old chain is found again,
 * afterwards the new one is. Every error while reading refuses the start; nothing is ever taken for the end
 * of the log because it could not be read (G14). */
#include "internal.h"

#define WALK_BYTES (GROUP_MAX + BLOCK_MAX)
#define READ_BYTES (512u << 10) /* at once, unless a group is larger */

struct link { /* one segment of the chain that is walked */
    struct store_file *file;
    struct segment_identity identity;
    uint64_t end; /* where the next one says it ends; the newest: found by walking */
};

struct placed { /* a walked group that is not proved yet */
    uint32_t link;
    uint64_t number, offset;
    uint32_t length;
    struct digest before; /* digest of the group before it */
};

struct walk {
    struct log *log;
    struct store_list *list;
    struct error *err;
    struct checkpoint_view checkpoint;
    struct link *chain; /* oldest first */
    uint32_t chain_count;
    uint64_t next_group, known, need;
    const char *need_why;
    struct digest digest;
    struct placed *placed;
    uint32_t placed_count, placed_room;
    uint8_t *buffer;
    uint64_t loaded_from, loaded_to; /* what of `loaded` is in buffer */
    const struct store_file *loaded;
    uint64_t start_offset; /* in chain[0] */
    uint64_t tail;         /* in the newest segment */
};

static int damage(struct walk *w, const struct store_file *f, uint64_t offset, const char *what)
{
    return error_set(w->err, -EBADMSG,
                     "store %s: segment %llu (file " SEGMENT_FILE
                     ") is damaged at offset %llu: %s; run \"walrus check %s\"",
                     w->log->io->folder, (unsigned long long)f->header.number,
                     (unsigned long long)f->file_number, (unsigned long long)offset, what,
                     w->log->io->folder);
}

static void must_reach(struct walk *w, uint64_t group, const char *why)
{
    if (group > w->need) {
        w->need = group;
        w->need_why = why;
    }
}

/* ------------------------------------------------------------------------------------------ 1. checkpoint */

static int checkpoint_choose(struct walk *w)
{
    struct log *log = w->log;
    for (unsigned which = 0; which < 2; which++) {
        struct checkpoint_view view;
        const char *why;
        int error = checkpoint_read(log->io, log->store_id, which, &view, &why);
        if (error != 0)
            return error_set(w->err, error, "store %s: cannot read checkpoint-%u: %s", log->io->folder, which,
                             strerror(-error));
        if (why != NULL)
            log_say(log, SAY_WARNING, "checkpoint-%u does not count: %s", which, why);
        if (view.bytes == NULL)
            continue;
        must_reach(w, view.header.group, "a checkpoint was written after that");
        if (view.header.counter > log->checkpoint.counter) {
            free(w->checkpoint.bytes);
            w->checkpoint = view;
            log->checkpoint.counter = view.header.counter;
        } else {
            free(view.bytes);
        }
    }
    return w->checkpoint.bytes != NULL ? restore_checkpoint(log, &w->checkpoint, w->err) : 0;
}

/* The closed segments: there, and long enough. Nothing of them is read now. */
static int checkpoint_segments(struct walk *w)
{
    for (uint64_t i = 0; i < w->checkpoint.header.segments; i++) {
        const struct checkpoint_segment *s = &w->checkpoint.segments[i];
        struct store_file *f = store_find_file(w->list, s->file);
        if (f == NULL)
            return error_set(w->err, -EBADMSG,
                             "store %s: segment %llu (file " SEGMENT_FILE
                             ") is missing; run \"walrus check %s\"",
                             w->log->io->folder, (unsigned long long)s->number, (unsigned long long)s->file,
                             w->log->io->folder);
        if (f->size < s->end)
            return error_set(w->err, -EBADMSG,
                             "store %s: segment %llu (file " SEGMENT_FILE
                             ") is truncated (want %llu bytes, have %llu); run \"walrus check %s\"",
                             w->log->io->folder, (unsigned long long)s->number, (unsigned long long)s->file,
                             (unsigned long long)s->end, (unsigned long long)f->size, w->log->io->folder);
        f->closed = f->used = true;
    }
    return 0;
}

/* ---------------------------------------------------------------------------------------- 2. and 3. chain */

static int open_files(struct walk *w)
{
    struct log *log = w->log;
    int64_t give_up_at = io_now(log->io) + log->options.lock_wait_ns;
    for (size_t i = 0; i < w->list->count; i++) {
        struct store_file *f = &w->list->files[i];
        if (f->closed)
            continue;
        int error = store_file_open(log, f, w->buffer, give_up_at, w->err);
        if (error != 0)
            return error;
        if (f->valid && f->header.epoch > log->epoch)
            log->epoch = f->header.epoch;
    }
    int error = (int)io_simple(log->io, IO_SYNC_DIRECTORY, NULL, NULL, NULL);
    if (error != 0)
        return error_set(w->err, error, "store %s: cannot flush the folder: %s", log->io->folder,
                         strerror(-error));
    if (w->checkpoint.header.epoch > log->epoch)
        log->epoch = w->checkpoint.header.epoch;
    return 0;
}

static int find_number(struct walk *w, uint64_t number, struct store_file **out)
{
    struct store_file *best = NULL;
    for (size_t i = 0; i < w->list->count; i++) {
        struct store_file *f = &w->list->files[i];
        if (!f->valid || f->header.number != number)
            continue;
        if (best != NULL && best->header.epoch == f->header.epoch)
            return damage(w, f, 0, "two headers with one number and epoch");
        if (best == NULL || f->header.epoch > best->header.epoch)
            best = f;
    }
    *out = best;
    return 0;
}

static int build_chain(struct walk *w)
{
    uint64_t highest = 0;
    for (size_t i = 0; i < w->list->count; i++)
        if (w->list->files[i].valid)
            highest = max_u64(highest, w->list->files[i].header.number);
    w->chain = calloc(w->list->count + 1, sizeof *w->chain);
    if (w->chain == NULL)
        return error_set(w->err, -ENOMEM, "store %s: out of memory", w->log->io->folder);
    uint64_t stop = w->checkpoint.header.segment; /* 0: go back to the first one */
    uint64_t end = 0;
    for (uint64_t number = highest; number != 0;) {
        struct store_file *f = NULL;
        int error = find_number(w, number, &f);
        if (error != 0)
            return error;
        if (f == NULL)
            return error_set(
                w->err, -EBADMSG,
                "store %s: segment %llu is missing, or its header is damaged; run \"walrus check %s\"",
                w->log->io->folder, (unsigned long long)number, w->log->io->folder);
        if (end != 0 && f->size < end)
            return error_set(w->err, -EBADMSG,
                             "store %s: segment %llu (file " SEGMENT_FILE
                             ") is truncated (want %llu bytes, have %llu); run \"walrus check %s\"",
                             w->log->io->folder, (unsigned long long)number,
                             (unsigned long long)f->file_number, (unsigned long long)end,
                             (unsigned long long)f->size, w->log->io->folder);
        w->chain[w->chain_count++] =
            (struct link){.file = f, .identity = segment_identity_of(&f->header), .end = end};
        end = f->header.previous_end;
        number = number == stop ? 0 : f->header.previous_number;
    }
    for (uint32_t i = 0; i < w->chain_count / 2; i++) {
        struct link swap = w->chain[i];
        w->chain[i] = w->chain[w->chain_count - 1 - i];
        w->chain[w->chain_count - 1 - i] = swap;
    }
    if (stop != 0 && (w->chain_count == 0 || w->chain[0].file->header.number != stop))
        return error_set(w->err, -EBADMSG,
                         "store %s: segment %llu, which a checkpoint names, is not in the log any more; run "
                         "\"walrus check %s\"",
                         w->log->io->folder, (unsigned long long)stop, w->log->io->folder);
    return 0;
}

/* --------------------------------------------------------------------------------------------- 4. walking */

/* Makes `need` bytes of the file from `offset` on available, as far as the file goes. */
static int load(struct walk *w, const struct store_file *f, uint64_t offset, uint64_t need, uint64_t *have)
{
    check_bug(need <= GROUP_MAX);
    bool there = w->loaded == f && offset >= w->loaded_from && offset <= w->loaded_to;
    uint64_t left = there ? w->loaded_to - offset : 0;
    if (!there || (left < need && w->loaded_to < f->size)) {
        uint64_t want = max_u64(need, READ_BYTES);
        uint64_t length = offset < f->size ? min_u64(want, f->size - offset) : 0;
        uint32_t align = w->log->io->functions->file_align(w->log->io, f->file);
        int64_t got =
            io_read_at(w->log->io, f->file, w->buffer, offset, align_up(length, align > 1 ? align : 1));
        if (got < 0)
            return error_set(w->err, (int)got,
                             "store %s: segment %llu (file " SEGMENT_FILE
                             "): cannot read at offset %llu: %s; nothing was decided",
                             w->log->io->folder, (unsigned long long)f->header.number,
                             (unsigned long long)f->file_number, (unsigned long long)offset,
                             strerror((int)-got));
        w->loaded = f;
        w->loaded_from = offset;
        w->loaded_to = offset + (uint64_t)got;
        left = (uint64_t)got;
    }
    *have = left;
    return 0;
}

static int note_placed(struct walk *w, uint32_t link, const struct group_header *g)
{
    if (w->placed_count == w->placed_room) {
        uint32_t room = w->placed_room == 0 ? 256 : w->placed_room * 2;
        struct placed *placed = realloc(w->placed, room * sizeof *placed);
        if (placed == NULL)
            return error_set(w->err, -ENOMEM, "store %s: out of memory", w->log->io->folder);
        w->placed = placed;
        w->placed_room = room;
    }
    w->placed[w->placed_count++] = (struct placed){link, g->number, g->offset, g->length, w->digest};
    return 0;
}

static int apply_group(struct walk *w, const struct store_file *f, const uint8_t *group,
                       const struct group_header *g)
{
    const char *what = NULL;
    int error = restore_group(w->log, group, g, &what);
    if (error == -ENOMEM)
        return error_set(w->err, error, "store %s: out of memory", w->log->io->folder);
    return error != 0 ? damage(w, f, g->offset, what) : 0;
}

/* A valid group of this segment behind the tail: W = 1 says that everything up to its durable_upto was
 * flushed before it. A group is at most GROUP_MAX long, so the one behind a damaged one begins within
 * that. */
static int look_behind(struct walk *w, const struct link *l, uint64_t tail)
{
    for (uint64_t at = tail + l->identity.block; at <= tail + GROUP_MAX; at += l->identity.block) {
        uint64_t have = 0;
        int error = load(w, l->file, at, sizeof(struct group_header), &have);
        if (error != 0)
            return error;
        struct group_header g;
        if (have < sizeof g)
            break;
        if (group_check_header(w->buffer + (at - w->loaded_from), &l->identity, at, l->file->size, &g) ==
            GROUP_VALID)
            must_reach(w, g.durable_upto, "a group behind it says so");
    }
    return 0;
}

/* Why the bytes are not the header of the next group; NULL if they are. */
static const char *header_fault(const struct walk *w, const struct link *l, const uint8_t *bytes, uint64_t at,
                                uint64_t have, struct group_header *g)
{
    uint64_t limit = l->end != 0 ? l->end : l->file->size;
    if (have < sizeof *g || limit - at < sizeof *g)
        return "nothing there";
    enum group_verdict verdict = group_check_header(bytes, &l->identity, at, limit, g);
    if (verdict != GROUP_VALID)
        return verdict == GROUP_BLANK ? "zeros" : "no valid group header";
    if (g->number != w->next_group)
        return "a group with another number than expected";
    if (!digest_equal(g->previous_digest, w->digest))
        return "a group that does not continue the one before";
    return NULL;
}

/* The group at `at`, whole: *fault == NULL and *bytes, or why it is not the next one. */
static int next_group(struct walk *w, const struct link *l, uint64_t at, const uint8_t **bytes,
                      struct group_header *g, const char **fault)
{
    uint64_t have = 0;
    int error = load(w, l->file, at, sizeof *g, &have);
    if (error != 0)
        return error;
    *fault = header_fault(w, l, w->buffer + (at - w->loaded_from), at, have, g);
    if (*fault == NULL)
        error = load(w, l->file, at, g->length, &have);
    if (error != 0)
        return error;
    *bytes = w->buffer + (at - w->loaded_from);
    if (*fault == NULL && (g->length > have || group_check_body(*bytes, g, &l->identity) != GROUP_VALID))
        *fault = "a group whose frames do not check out";
    if (*fault != NULL && have >= sizeof *g && !all_zero(*bytes, sizeof *g))
        w->log->stats.start_bytes_cut = 1;
    return 0;
}

static int walk_segment(struct walk *w, uint32_t index)
{
    struct link *l = &w->chain[index];
    uint64_t at = index == 0 ? w->start_offset : l->identity.block;
    for (;;) {
        if (l->end != 0 && at == l->end)
            return 0;
        const uint8_t *bytes;
        struct group_header g;
        const char *fault;
        int error = next_group(w, l, at, &bytes, &g, &fault);
        if (error != 0)
            return error;
        if (fault != NULL) {
            if (l->end != 0)
                return damage(w, l->file, at, fault);
            w->tail = at;
            return look_behind(w, l, at);
        }
        if (g.durable_upto < w->known && g.durable_upto + 1 < l->file->header.first_group)
            return damage(w, l->file, at, "its count of flushed groups falls");
        error = note_placed(w, index, &g);
        if (error == 0)
            error = apply_group(w, l->file, bytes, &g);
        if (error != 0)
            return error;
        w->known = max_u64(w->known, g.durable_upto);
        w->digest = digest_of(l->identity.seed, bytes, sizeof g);
        w->next_group++;
        w->log->stats.start_groups_walked++;
        at += g.length;
    }
}

static int walk_chain(struct walk *w)
{
    const struct checkpoint_header *c = &w->checkpoint.header;
    for (uint32_t i = 0; i < w->chain_count; i++) {
        const struct store_file *f = w->chain[i].file;
        const struct segment_header *h = &f->header;
        if (i == 0 && w->checkpoint.bytes != NULL) {
            w->next_group = c->group + 1;
            w->digest = c->digest;
            w->known = c->group;
            w->start_offset = c->offset;
            if (c->offset < h->block || c->offset % h->block != 0 || c->offset > f->size ||
                (w->chain[0].end != 0 && c->offset > w->chain[0].end))
                return damage(w, f, c->offset, "a checkpoint names a place that the segment does not have");
        } else if (i == 0) {
            if (h->previous_number != 0 || h->first_group != 1)
                return damage(w, f, 0, "the segment before it is missing");
            w->start_offset = h->block;
        } else if (h->first_group != w->next_group || !digest_equal(h->previous_digest, w->digest)) {
            return damage(w, f, 0, "its header does not continue the segment before it");
        }
        if (i > 0 || w->checkpoint.bytes == NULL) {
            w->known = max_u64(w->known, h->first_group - 1);
            must_reach(w, h->durable_upto, "a segment's header says so");
        }
        int error = walk_segment(w, i);
        if (error != 0)
            return error;
    }
    must_reach(w, w->known, "a later group or header says so");
    if (w->need >= w->next_group) {
        const struct link *l = &w->chain[w->chain_count - 1];
        char what[160];
        snprintf(what, sizeof what, "group %llu was committed and is not there (%s)",
                 (unsigned long long)w->next_group, w->need_why);
        return damage(w, l->file, w->tail, what);
    }
    return 0;
}

/* A file whose header does not count may be a segment whose header has rotted. */
static int lost_headers(struct walk *w)
{
    const char *folder = w->log->io->folder;
    for (size_t i = 0; i < w->list->count; i++) {
        const struct store_file *f = &w->list->files[i];
        uint64_t lost;
        if (f->closed || f->valid)
            continue;
        w->loaded = NULL;
        int error = store_lost_group(w->log->io, f, w->buffer, w->chain_count > 0 ? w->next_group : 0, &lost);
        if (error != 0)
            return error_set(w->err, error,
                             "store %s: cannot read file " SEGMENT_FILE ": %s; nothing was decided", folder,
                             (unsigned long long)f->file_number, strerror(-error));
        if (lost != 0)
            return error_set(w->err, -EBADMSG,
                             "store %s: the header of file " SEGMENT_FILE
                             " is damaged, and group %llu, which was committed, lies behind it; run \"walrus "
                             "check %s\"",
                             folder, (unsigned long long)f->file_number, (unsigned long long)lost, folder);
    }
    return 0;
}

/* ---------------------------------------------------------------------------------- 6. to 8. the decision */

static int push(struct walk *w, struct segment s)
{
    int error = log_push_segment(w->log, &s);
    return error == 0 ? 0 : error_set(w->err, error, "store %s: out of memory", w->log->io->folder);
}

/* Everything of the old chain that stays, closed. `keep` of the walked ones; the last of them ends at
 * `end`. */
static int keep_chain(struct walk *w, uint32_t keep, uint64_t end)
{
    for (uint64_t i = 0; i < w->checkpoint.header.segments; i++) {
        const struct checkpoint_segment *c = &w->checkpoint.segments[i];
        int error = push(w, (struct segment){.number = c->number,
                                             .file_number = c->file,
                                             .length = c->end,
                                             .end = c->end,
                                             .first_group = c->first_group,
                                             .cut = true});
        if (error != 0)
            return error;
    }
    for (uint32_t i = 0; i < keep; i++) {
        struct link *l = &w->chain[i];
        l->file->used = true;
        int error = push(w, (struct segment){.number = l->file->header.number,
                                             .file_number = l->file->file_number,
                                             .length = l->file->size,
                                             .end = i + 1 == keep ? end : l->end,
                                             .first_group = l->file->header.first_group,
                                             .identity = l->identity,
                                             .known = true,
                                             .file = l->file->file});
        if (error != 0)
            return error;
    }
    return 0;
}

/* Blank and torn headers are made void; those of a whole, usable file go to the pool. */
static int void_blanks(struct walk *w)
{
    struct log *log = w->log;
    uint32_t block = log->block;
    for (size_t i = 0; i < w->list->count; i++) {
        struct store_file *f = &w->list->files[i];
        if (f->closed || f->valid)
            continue;
        if (f->size < BLOCK_MIN)
            continue; /* never finished; removed at the end */
        uint32_t length = f->size < block ? BLOCK_MIN : block;
        memset(w->buffer, 0, length);
        struct segment_header *h = (struct segment_header *)(void *)w->buffer;
        h->magic = SEGMENT_VOID;
        segment_header_fill(h);
        int error = io_write_full(log->io, f->file, w->buffer, 0, length);
        if (error == 0)
            error = (int)io_simple(log->io, IO_FLUSH, f->file, NULL, NULL);
        if (error != 0)
            return error_set(w->err, error,
                             "store %s: cannot make the header of file " SEGMENT_FILE " void: %s",
                             log->io->folder, (unsigned long long)f->file_number, strerror(-error));
        bool whole = f->size == block || f->size >= log->options.segment_bytes || f->size >= SEGMENT_SMALL;
        if (whole && f->size % block == 0 && log->pool.count < POOL_MAX) {
            /* What it lacks of zeroes is not known; not to be written anew at each start. */
            pool_put(log, (struct spare){.file_number = f->file_number,
                                         .length = f->size,
                                         .zeroed = f->size,
                                         .file = f->file});
            f->used = true;
        }
    }
    w->loaded = NULL;
    return 0;
}

static int take_file(struct walk *w, uint64_t copies, struct spare *out)
{
    struct log *log = w->log;
    uint64_t need = log->block + copies;
    bool large = false;
    for (uint32_t i = 0; i < log->pool.count; i++)
        large |= log->pool.ready[i].length >= need + GROUP_MAX;
    if (!large) {
        struct error later = {0};
        if (pool_make_now(log, max_u64(pool_segment_length(log), align_up(need + GROUP_MAX, BLOCK_MAX)),
                          w->chain_count == 0, out, &later) == 0)
            return 0;
        if (later.code != -ENOSPC && later.code != -EDQUOT)
            return *w->err = later, later.code;
        log_say(log, SAY_WARNING, "%s; starting in what was prepared before", later.text);
        log->pool.error = -ENOSPC;
    }
    if (!pool_take(log, large ? need + GROUP_MAX : need, true, out) || out->length < need)
        return error_set(w->err, -ENOSPC,
                         "store %s: no space for a new segment (%llu bytes); free some space on the disk",
                         log->io->folder, (unsigned long long)need);
    return 0;
}

static int copy_groups(struct walk *w, uint32_t first, struct segment *to)
{
    struct log *log = w->log;
    uint64_t known = w->known;
    for (uint32_t i = first; i < w->placed_count; i++) {
        const struct placed *p = &w->placed[i];
        const struct link *l = &w->chain[p->link];
        uint64_t have;
        int error = load(w, l->file, p->offset, p->length, &have);
        if (error != 0)
            return error;
        uint8_t *group = log->groups[0].data;
        struct group_header g;
        if (have < p->length)
            return damage(w, l->file, p->offset, "it changed while the start read it");
        memcpy(group, w->buffer + (p->offset - w->loaded_from), p->length);
        if (group_check_header(group, &l->identity, p->offset, l->file->size, &g) != GROUP_VALID ||
            g.number != p->number || g.length != p->length ||
            group_check_body(group, &g, &l->identity) != GROUP_VALID)
            return damage(w, l->file, p->offset, "it changed while the start read it");
        for (uint32_t at = sizeof g; at < g.used;) {
            struct frame_header *frame = (struct frame_header *)(void *)(group + at);
            frame_fill(frame, to->identity.seed);
            at += frame->header_bytes + frame->payload_bytes;
        }
        struct group_facts facts = {.number = g.number,
                                    .offset = to->end,
                                    .durable_upto = known,
                                    .time_ns = g.time_ns,
                                    .previous = w->digest,
                                    .used = g.used,
                                    .frames = g.frames};
        group_fill(group, &to->identity, &facts);
        const struct group_header *out = (const struct group_header *)(const void *)group;
        error = io_write_full(log->io, to->file, group, to->end, out->length);
        if (error != 0)
            return error_set(w->err, error, "store %s: cannot copy group %llu: %s", log->io->folder,
                             (unsigned long long)g.number, strerror(-error));
        const struct frame_header *frame = NULL;
        while ((frame = group_next_frame(group, out, frame)) != NULL)
            if (frame->kind != FRAME_TOPIC &&
                index_add(log, topic_by_id(log, frame->topic), frame, to->end) != 0)
                return error_set(w->err, -ENOMEM, "store %s: out of memory", log->io->folder);
        w->digest = digest_of(to->identity.seed, group, sizeof g);
        to->end += out->length;
        log->stats.start_groups_copied++;
    }
    return 0;
}

static int header_write(struct walk *w, const struct segment_header *header, struct io_file *file)
{
    struct log *log = w->log;
    memset(w->buffer, 0, log->block);
    memcpy(w->buffer, header, sizeof *header);
    w->loaded = NULL;
    int error = (int)io_simple(log->io, IO_FLUSH, file, NULL, NULL);
    if (error == 0)
        error = io_write_full(log->io, file, w->buffer, 0, log->block);
    if (error == 0)
        error = (int)io_simple(log->io, IO_FLUSH, file, NULL, NULL);
    if (error != 0)
        return error_set(w->err, error,
                         "store %s: cannot write the header of segment %llu: %s; nothing was decided",
                         log->io->folder, (unsigned long long)header->number, strerror(-error));
    return 0;
}

static int decide(struct walk *w)
{
    struct log *log = w->log;
    uint32_t first = 0; /* of the groups to copy */
    while (first < w->placed_count && w->placed[first].number <= w->known)
        first++;
    uint64_t copies = 0;
    for (uint32_t i = first; i < w->placed_count; i++)
        copies += align_up(w->placed[i].length, log->block);

    const struct link *last = w->chain_count > 0 ? &w->chain[w->chain_count - 1] : NULL;
    uint32_t keep = w->chain_count;
    uint64_t end = first < w->placed_count ? w->placed[first].offset : w->tail;
    struct segment_header h = {.magic = SEGMENT_MAGIC, .version = FORMAT_VERSION, .block = log->block};
    h.number = last != NULL ? last->file->header.number + 1 : 1;
    h.first_group = first < w->placed_count ? w->placed[first].number : w->next_group;
    h.previous_digest = first < w->placed_count ? w->placed[first].before : w->digest;
    if (last != NULL) {
        if (end <=
            last->identity.block) { /* case B: none of its groups is proved, so perhaps it is not either */
            keep--;
            h.previous_number = last->file->header.previous_number;
            end = last->file->header.previous_end;
        } else {
            h.previous_number = last->file->header.number;
        }
        h.previous_end = end;
        /* Unproved groups lie in the newest segment only: a header is not written before all of its
         * predecessor is flushed. */
        check_bug(first == w->placed_count || w->placed[first].link == w->chain_count - 1);
    }
    h.durable_upto = w->next_group - 1; /* the copies are flushed before this header is written */
    log->epoch++;
    h.epoch = log->epoch;
    int error = log->io->functions->random(log->io, &log->epoch_nonce, sizeof log->epoch_nonce);
    if (error == 0)
        error = log->io->functions->random(log->io, h.salt, sizeof h.salt);
    if (error != 0)
        return error_set(w->err, error, "store %s: no random numbers: %s", log->io->folder, strerror(-error));
    h.epoch_nonce = log->epoch_nonce;
    h.created_ns = (uint64_t)log->io->functions->wall(log->io);
    memcpy(h.store_id, log->store_id, sizeof h.store_id);

    error = keep_chain(w, keep, end);
    if (error == 0)
        error = void_blanks(w);
    struct spare spare;
    if (error == 0)
        error = take_file(w, copies, &spare);
    if (error != 0)
        return error;
    h.file = spare.file_number;
    h.length = spare.length;
    h.oldest_number = log->segment_count > 0 ? log->segments[0]->number : h.number;
    segment_header_fill(&h);
    struct segment s = {.number = h.number,
                        .file_number = spare.file_number,
                        .length = spare.length,
                        .end = log->block,
                        .first_group = h.first_group,
                        .identity = segment_identity_of(&h),
                        .known = true,
                        .file = spare.file};
    w->digest = h.previous_digest;
    error = copy_groups(w, first, &s);
    if (error == 0)
        error = header_write(w, &h, spare.file);
    if (error == 0)
        error = push(w, s);
    return error;
}

/* What is in nobody's chain: bypassed segments, unfinished files. After the decision is durable; if it is
 * lost, the next start does it again. */
static void tidy(struct walk *w)
{
    struct log *log = w->log;
    char name[32];
    for (size_t i = 0; i < w->list->count; i++) {
        struct store_file *f = &w->list->files[i];
        if (f->used || f->closed)
            continue;
        (void)io_simple(log->io, IO_CLOSE, f->file, NULL, NULL);
        f->file = NULL;
        snprintf(name, sizeof name, SEGMENT_FILE, (unsigned long long)f->file_number);
        (void)io_simple(log->io, IO_UNLINK, NULL, name, NULL);
    }
    for (size_t i = 0; i < w->list->left_over_count; i++)
        (void)io_simple(log->io, IO_UNLINK, NULL, w->list->left_over[i].name, NULL);
    for (uint32_t i = 0; i + 1 < log->segment_count; i++) {
        struct segment *s = log->segments[i];
        if (s->file == NULL || s->cut || s->length <= s->end)
            continue;
        struct io_op op = {.kind = IO_TRUNCATE, .background = true, .file = s->file, .length = s->end};
        s->cut = io_run(log->io, &op) == 0;
    }
}

int recover(struct log *log, struct store_list *list, struct error *err)
{
    struct walk w = {.log = log, .list = list, .err = err, .next_group = 1};
    log->pool.next_file = list->highest_file + 1;
    w.buffer = log_aligned(WALK_BYTES);
    int error = w.buffer == NULL ? error_set(err, -ENOMEM, "store %s: out of memory", log->io->folder)
                                 : checkpoint_choose(&w);
    if (error == 0)
        error = checkpoint_segments(&w);
    if (error == 0)
        error = open_files(&w);
    if (error == 0)
        error = build_chain(&w);
    if (error == 0 && w.chain_count == 0 && w.need > 0)
        error = error_set(err, -EBADMSG,
                          "store %s: a checkpoint is there, but no segment; run \"walrus check %s\"",
                          log->io->folder, log->io->folder);
    if (error == 0 && w.chain_count > 0)
        error = walk_chain(&w);
    if (error == 0)
        error = lost_headers(&w);
    if (error == 0)
        error = decide(&w);
    if (error == 0) {
        log->next_group = w.next_group;
        log->last_digest = w.digest;
        log->durable_upto = w.next_group - 1;
        const struct link *newest = w.chain_count > 0 ? &w.chain[w.chain_count - 1] : NULL;
        if (log->stats.start_bytes_cut != 0 && newest != NULL)
            log_say(
                log, SAY_NOTICE,
                "the tail of segment %llu was cut at offset %llu: an unfinished group, answered to nobody",
                (unsigned long long)newest->identity.number, (unsigned long long)w.tail);
        tidy(&w);
    }
    free(w.buffer);
    free(w.placed);
    free(w.chain);
    free(w.checkpoint.bytes);
    return error;
}
