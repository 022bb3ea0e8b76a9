/* index.c: where the frames of each topic lie (step 7 of DESIGN section 2).
 *
 *   current segment   rows in memory: of batches per topic by sequence, of chunks in log order
 *   closed segment    an image: header, topics, rows, chunks in one block of memory, just as the sidecar file
 *                     NNN.index has it
 *
 *   1. index_add() after each committed group.
 *   2. index_close() at a change of segment sorts the rows into an image; the sidecar is written in the
 *      background.
 *   3. index_need() brings an image into memory for a read: from the sidecar, or, where that is missing or
 *      does not check out, from the log itself, a few MiB a turn. The read waits; everything else goes on.
 *
 * Nothing here is needed to know what is committed: sidecars are written without a flush, believed only if
 * their checksum, the segment's number, its epoch nonce and its end fit, and thrown away otherwise. Memory:
 * rows are bounded by ROWS_MAX (a segment with more is closed early), images by IMAGE_BYTES_MAX (least
 * recently used goes first). */
#include "internal.h"

#define IMAGE_BYTES_MAX (8u << 20)
#define SCAN_BYTES      (UINT64_C(2) * GROUP_MAX)

static void loader_done(struct io_op *op);
static void sidecar_done(struct io_op *op);

/* ------------------------------------------------------------------------------------------------ rows */

int row_push(struct row_vector *v, const struct index_row *row)
{
    if (v->count == v->room) {
        uint32_t room = v->room == 0 ? 64 : v->room * 2;
        struct index_row *rows = realloc(v->rows, room * sizeof *rows);
        if (rows == NULL)
            return -ENOMEM;
        v->rows = rows;
        v->room = room;
    }
    v->rows[v->count++] = *row;
    return 0;
}

struct index_row row_of(const struct frame_header *frame, uint64_t segment_offset)
{
    bool batch = frame->kind == FRAME_BATCH || frame->kind == FRAME_LAST;
    return (struct index_row){
        .sequence = batch ? frame->first_sequence : 0,
        .stream = frame->stream,
        .topic = frame->topic,
        .entries = batch ? (uint32_t)frame->batch_entries : frame->ended,
        .offset = (uint32_t)(segment_offset + frame->offset),
        .bytes = frame->header_bytes + frame->payload_bytes,
        .chunk = frame->chunk,
        .payload = frame->payload_bytes,
    };
}

static int add_batch_row(struct topic *t, const struct index_row *row)
{
    struct row_vector v = {.rows = t->rows, .count = t->row_count, .room = t->row_room};
    if (v.room == 0) {
        v.rows = malloc(4 * sizeof *v.rows);
        if (v.rows == NULL)
            return -ENOMEM;
        v.room = 4;
    }
    int error = row_push(&v, row);
    t->rows = v.rows;
    t->row_count = v.count;
    t->row_room = v.room;
    return error;
}

/* Chunk rows carry the length of their first piece, so that a reader can add up an entry that lies in many of
 * them. */
static int chunk_row_push(struct row_vector *v, const struct frame_header *frame, uint64_t segment_offset)
{
    struct index_row row = row_of(frame, segment_offset);
    const struct entry_record *records = (const struct entry_record *)(const void *)(frame + 1);
    row.sequence = frame->entries > 0 ? records[0].length : 0;
    row.entries = frame->ended;
    return row_push(v, &row);
}

int index_add(struct log *log, struct topic *topic, const struct frame_header *frame, uint64_t segment_offset)
{
    struct index_row row = row_of(frame, segment_offset);
    int error = 0;
    if (frame->stream != 0) {
        error = chunk_row_push(&log->chunk_rows, frame, segment_offset);
        log->current_rows++;
    }
    if (error != 0 || (frame->kind != FRAME_BATCH && frame->kind != FRAME_LAST))
        return error;
    if (!topic->touched) {
        topic->touched = true;
        topic->touched_next = log->touched;
        log->touched = topic;
    }
    log->current_rows++;
    return add_batch_row(topic, &row);
}

void index_drop_rows(struct log *log)
{
    while (log->touched != NULL) {
        struct topic *t = log->touched;
        log->touched = t->touched_next;
        t->touched = false;
        t->row_count = 0;
        if (t->row_room > 64) {
            free(t->rows);
            t->rows = NULL;
            t->row_room = 0;
        }
    }
    log->chunk_rows.count = 0;
    log->current_rows = 0;
}

/* ------------------------------------------------------------------------------------------------ images */

static void image_point(struct index_image *image)
{
    const struct index_header *header = (const struct index_header *)(const void *)image->bytes;
    image->topic_count = header->topics;
    image->row_count = header->rows;
    image->chunk_count = header->chunks;
    image->topics = (const struct index_topic *)(const void *)(image->bytes + sizeof *header);
    image->rows = (const struct index_row *)(const void *)(image->topics + image->topic_count);
    image->chunks = image->rows + image->row_count;
}

static int by_topic_and_sequence(const void *a, const void *b)
{
    const struct index_row *x = a, *y = b;
    if (x->topic != y->topic)
        return x->topic < y->topic ? -1 : 1;
    return x->sequence < y->sequence ? -1 : x->sequence > y->sequence;
}

static bool rows_ordered(const struct row_vector *rows)
{
    for (uint32_t i = 1; i < rows->count; i++)
        if (by_topic_and_sequence(&rows->rows[i - 1], &rows->rows[i]) >= 0)
            return false;
    return true;
}

/* `rows` are sorted by topic and sequence. */
int index_build(struct log *log, struct segment *segment, const struct row_vector *rows,
                const struct row_vector *chunks)
{
    check_bug(segment->image.bytes == NULL && rows_ordered(rows));
    uint32_t topics = 0;
    for (uint32_t i = 0; i < rows->count; i++)
        topics += i == 0 || rows->rows[i].topic != rows->rows[i - 1].topic;
    size_t row_bytes = (size_t)rows->count * sizeof(struct index_row);
    size_t chunk_bytes = (size_t)chunks->count * sizeof(struct index_row);
    size_t size = sizeof(struct index_header) + topics * sizeof(struct index_topic) + row_bytes + chunk_bytes;
    uint8_t *bytes = calloc(1, size);
    if (bytes == NULL)
        return -ENOMEM;
    struct index_header header = {
        .magic = INDEX_MAGIC,
        .version = FORMAT_VERSION,
        .topics = topics,
        .segment = segment->number,
        .epoch_nonce = segment->identity.epoch_nonce,
        .end = segment->end,
        .rows = rows->count,
        .chunks = chunks->count,
    };
    memcpy(header.store_id, log->store_id, sizeof header.store_id);
    struct index_topic *topic = (struct index_topic *)(void *)(bytes + sizeof header);
    uint8_t *to = (uint8_t *)(topic + topics);
    if (row_bytes > 0)
        memcpy(to, rows->rows, row_bytes);
    if (chunk_bytes > 0)
        memcpy(to + row_bytes, chunks->rows, chunk_bytes);
    for (uint32_t i = 0; i < rows->count; i++) {
        if (i == 0 || rows->rows[i].topic != rows->rows[i - 1].topic) {
            *topic = (struct index_topic){.topic = rows->rows[i].topic, .first_row = i};
            topic++;
        }
        topic[-1].rows++;
    }
    header.body_crc = crc32c(0, bytes + sizeof header, size - sizeof header);
    header.crc = crc32c(0, &header, offsetof(struct index_header, crc));
    memcpy(bytes, &header, sizeof header);
    segment->image.bytes = bytes;
    segment->image.size = size;
    image_point(&segment->image);
    log->image_bytes += size;
    segment->image_used = ++log->clock;
    segment->sidecar_wanted = true;
    log->sidecars_wanted++;
    return 0;
}

static int topic_order(const void *a, const void *b)
{
    const struct topic *x = *(struct topic *const *)a, *y = *(struct topic *const *)b;
    return x->id < y->id ? -1 : x->id > y->id;
}

int index_close(struct log *log, struct segment *segment)
{
    uint32_t topics = 0, total = 0;
    for (struct topic *t = log->touched; t != NULL; t = t->touched_next) {
        topics++;
        total += t->row_count;
    }
    int error = -ENOMEM;
    struct row_vector rows = {.rows = malloc((total + 1) * sizeof(struct index_row))};
    struct topic **order = malloc((topics + 1) * sizeof(struct topic *));
    if (rows.rows != NULL && order != NULL) {
        uint32_t n = 0;
        for (struct topic *t = log->touched; t != NULL; t = t->touched_next)
            order[n++] = t;
        qsort(order, n, sizeof(struct topic *), topic_order);
        for (uint32_t i = 0; i < n; i++) {
            memcpy(rows.rows + rows.count, order[i]->rows, order[i]->row_count * sizeof(struct index_row));
            rows.count += order[i]->row_count;
        }
        error = index_build(log, segment, &rows, &log->chunk_rows);
    }
    free(order);
    free(rows.rows);
    if (error == 0)
        index_drop_rows(log);
    return error;
}

/* What a file returned: every count and reference is checked, then the image is trusted. */
bool index_image_check(struct index_image *image, const struct segment *segment, const uint8_t store_id[16])
{
    struct index_header header;
    if (image->size < sizeof header)
        return false;
    memcpy(&header, image->bytes, sizeof header);
    if (header.magic != INDEX_MAGIC || header.version != FORMAT_VERSION ||
        header.crc != crc32c(0, &header, offsetof(struct index_header, crc)) ||
        memcmp(header.store_id, store_id, sizeof header.store_id) != 0 || header.segment != segment->number ||
        header.epoch_nonce != segment->identity.epoch_nonce || header.end != segment->end ||
        !all_zero(header.reserved, sizeof header.reserved))
        return false;
    uint64_t size = sizeof header + (uint64_t)header.topics * sizeof(struct index_topic) +
                    ((uint64_t)header.rows + header.chunks) * sizeof(struct index_row);
    if (size != image->size ||
        header.body_crc != crc32c(0, image->bytes + sizeof header, image->size - sizeof header))
        return false;
    image_point(image);
    uint32_t next = 0;
    for (uint32_t i = 0; i < image->topic_count; i++) {
        const struct index_topic *t = &image->topics[i];
        if (t->first_row != next || t->rows == 0 || t->rows > image->row_count - next ||
            (i > 0 && t->topic <= t[-1].topic))
            return false;
        for (uint32_t r = next; r < next + t->rows; r++)
            if (image->rows[r].topic != t->topic)
                return false;
        next += t->rows;
    }
    for (uint32_t i = 0; i < image->row_count + image->chunk_count; i++) {
        const struct index_row *row = &image->rows[i];
        if (row->offset > segment->end || row->bytes > segment->end - row->offset || row->bytes > GROUP_MAX ||
            row->bytes < sizeof(struct frame_header))
            return false;
    }
    return next == image->row_count;
}

const struct index_topic *index_image_topic(const struct index_image *image, uint32_t topic)
{
    uint32_t low = 0, high = image->topic_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (image->topics[middle].topic < topic)
            low = middle + 1;
        else
            high = middle;
    }
    return low < image->topic_count && image->topics[low].topic == topic ? &image->topics[low] : NULL;
}

static void image_drop(struct log *log, struct segment *s)
{
    log->image_bytes -= s->image.size;
    free(s->image.bytes);
    s->image = (struct index_image){0};
}

/* Keeps the image just made or used, whatever its size. */
static void images_trim(struct log *log)
{
    while (log->image_bytes > IMAGE_BYTES_MAX) {
        struct segment *oldest = NULL;
        for (uint32_t i = 0; i + 1 < log->segment_count; i++) {
            struct segment *s = log->segments[i];
            if (s->image.bytes == NULL || s->sidecar_wanted || s == log->sidecar.segment ||
                s->image_used == log->clock)
                continue;
            if (oldest == NULL || s->image_used < oldest->image_used)
                oldest = s;
        }
        if (oldest == NULL)
            return;
        image_drop(log, oldest);
    }
}

/* ------------------------------------------------------------------------------------------------ loader */

int index_need(struct log *log, struct segment *segment)
{
    if (segment->image.bytes != NULL) {
        segment->image_used = ++log->clock;
        return 1;
    }
    if (segment->load_error != 0)
        return segment->load_error;
    struct loader *l = &log->loader;
    if (l->state == LOADER_IDLE && l->segment == NULL && log->failed.code == 0) {
        l->segment = segment;
        l->error = 0;
        if (l->buffer == NULL)
            l->buffer = log_aligned(SCAN_BYTES);
        if (l->buffer == NULL) {
            l->segment = NULL;
            return -ENOMEM;
        }
    }
    return 0;
}

static void loader_step(struct log *log, enum loader_state state, struct io_op op)
{
    struct loader *l = &log->loader;
    l->state = state;
    op.owner = log;
    op.done = loader_done;
    l->op = op;
    io_submit(log->io, &l->op);
}

static void loader_end(struct log *log, int error)
{
    struct loader *l = &log->loader;
    if (error != 0) {
        if (l->failed != NULL)
            l->failed->load_error = 0;
        l->failed = l->segment;
        l->segment->load_error = error;
    }
    free(l->bytes);
    l->bytes = NULL;
    free(l->rows.rows);
    free(l->chunks.rows);
    l->rows = l->chunks = (struct row_vector){0};
    l->segment = NULL;
    l->state = LOADER_IDLE;
    images_trim(log);
}

static void loader_damage(struct log *log, const char *what, uint64_t offset)
{
    const struct segment *s = log->loader.segment;
    log->stats.damaged_reads++;
    log_say(log, SAY_ERROR,
            "segment %llu (file " SEGMENT_FILE ") is damaged at offset %llu: %s; run \"walrus check %s\"",
            (unsigned long long)s->number, (unsigned long long)s->file_number, (unsigned long long)offset,
            what, log->io->folder);
    loader_end(log, -EBADMSG);
}

static void scan_read(struct log *log)
{
    struct loader *l = &log->loader;
    struct segment *s = l->segment;
    uint64_t length = min_u64(SCAN_BYTES, s->end - l->at);
    l->loaded_from = l->at;
    loader_step(
        log, LOADER_SCAN,
        (struct io_op){
            .kind = IO_READ, .file = s->file, .buffer = l->buffer, .offset = l->at, .length = length});
}

static int scan_group(struct loader *l, const uint8_t *group, const struct group_header *header)
{
    const struct frame_header *frame = NULL;
    while ((frame = group_next_frame(group, header, frame)) != NULL) {
        if (frame->kind == FRAME_TOPIC || frame->kind == FRAME_PRODUCER)
            continue;
        struct index_row row = row_of(frame, header->offset);
        int error = frame->stream != 0 ? chunk_row_push(&l->chunks, frame, header->offset) : 0;
        if (error == 0 && frame->kind != FRAME_CHUNK)
            error = row_push(&l->rows, &row);
        if (error != 0)
            return error;
    }
    return 0;
}

static void scan_finish(struct log *log)
{
    struct loader *l = &log->loader;
    if (l->rows.count > 0)
        qsort(l->rows.rows, l->rows.count, sizeof(struct index_row), by_topic_and_sequence);
    if (!rows_ordered(&l->rows)) {
        loader_damage(log, "two batches with one sequence", 0);
        return;
    }
    log_say(log, SAY_DEBUG, "index of segment %llu rebuilt: %u batches",
            (unsigned long long)l->segment->number, l->rows.count);
    loader_end(log, index_build(log, l->segment, &l->rows, &l->chunks));
}

static void scan_loaded(struct log *log, uint64_t length)
{
    struct loader *l = &log->loader;
    struct segment *s = l->segment;
    uint64_t to = l->loaded_from + length;
    while (l->at < s->end) {
        uint64_t have = to - l->at;
        const uint8_t *group = l->buffer + (l->at - l->loaded_from);
        struct group_header header;
        if (have < sizeof header || (have < GROUP_MAX && to < s->end && have < SCAN_BYTES / 2)) {
            scan_read(log);
            return;
        }
        if (group_check_header(group, &s->identity, l->at, s->end, &header) != GROUP_VALID ||
            header.length > have || group_check_body(group, &header, &s->identity) != GROUP_VALID) {
            loader_damage(log, "no valid group where one was committed", l->at);
            return;
        }
        int error = scan_group(l, group, &header);
        if (error != 0) {
            loader_end(log, error);
            return;
        }
        l->at += header.length;
    }
    scan_finish(log);
}

static void scan_begin(struct log *log)
{
    struct loader *l = &log->loader;
    l->at = l->segment->identity.block;
    if (l->at >= l->segment->end)
        scan_finish(log);
    else
        scan_read(log);
}

static void sidecar_open(struct log *log)
{
    struct loader *l = &log->loader;
    snprintf(l->name, sizeof l->name, INDEX_FILE, (unsigned long long)l->segment->file_number);
    loader_step(
        log, LOADER_SIDECAR_OPEN,
        (struct io_op){.kind = IO_OPEN, .name = l->name, .flags = IO_FILE_BUFFERED | IO_FILE_READ_ONLY});
}

static void header_loaded(struct log *log, int64_t result)
{
    struct loader *l = &log->loader;
    struct segment *s = l->segment;
    struct segment_header header;
    memcpy(&header, l->buffer, sizeof header);
    const char *fault = result < (int64_t)sizeof header
                            ? "it is too short"
                            : segment_header_fault(&header, log->store_id, s->file_number);
    if (fault == NULL && header.number != s->number)
        fault = "it is the header of another segment";
    if (fault != NULL) {
        loader_damage(log, fault, 0);
        return;
    }
    s->identity = segment_identity_of(&header);
    s->known = true;
    sidecar_open(log);
}

static void sidecar_loaded(struct log *log)
{
    struct loader *l = &log->loader;
    struct index_image image = {.bytes = l->bytes, .size = l->size};
    if (l->bytes != NULL && index_image_check(&image, l->segment, log->store_id)) {
        l->bytes = NULL;
        l->segment->image = image;
        l->segment->image_used = ++log->clock;
        log->image_bytes += image.size;
        loader_end(log, 0);
        return;
    }
    scan_begin(log);
}

static void sidecar_opened(struct log *log, struct io_op *op)
{
    struct loader *l = &log->loader;
    if (op->result < 0) {
        if (op->result == -ENOENT)
            scan_begin(log);
        else
            loader_end(log, (int)op->result);
        return;
    }
    l->sidecar = op->file;
    l->size = log->io->functions->file_size(log->io, op->file);
    uint64_t most = sizeof(struct index_header) + (uint64_t)(2 * ROWS_MAX + NOTES_MAX * 2) *
                                                      (sizeof(struct index_row) + sizeof(struct index_topic));
    l->bytes = l->size >= sizeof(struct index_header) && l->size <= most ? malloc(l->size) : NULL;
    if (l->bytes == NULL) {
        loader_step(log, LOADER_SIDECAR_CLOSE, (struct io_op){.kind = IO_CLOSE, .file = l->sidecar});
        return;
    }
    loader_step(
        log, LOADER_SIDECAR_READ,
        (struct io_op){
            .kind = IO_READ, .file = l->sidecar, .buffer = l->bytes, .length = l->size, .background = true});
}

static void loader_done(struct io_op *op)
{
    struct log *log = op->owner;
    struct loader *l = &log->loader;
    if (log->abandoned)
        return;
    switch (l->state) {
    case LOADER_OPEN:
        if (op->result < 0) {
            log_say(log, SAY_ERROR, "segment %llu: cannot open file " SEGMENT_FILE ": %s",
                    (unsigned long long)l->segment->number, (unsigned long long)l->segment->file_number,
                    strerror((int)-op->result));
            loader_end(log, op->result == -ENOENT ? -EBADMSG : (int)op->result);
            break;
        }
        l->segment->file = op->file;
        l->state = LOADER_IDLE; /* index_turn goes on */
        break;
    case LOADER_HEADER:
        if (op->result < 0)
            loader_end(log, (int)op->result);
        else
            header_loaded(log, op->result);
        break;
    case LOADER_SIDECAR_OPEN:
        sidecar_opened(log, op);
        break;
    case LOADER_SIDECAR_READ:
        if (op->result != (int64_t)l->size) {
            free(l->bytes);
            l->bytes = NULL;
        }
        loader_step(log, LOADER_SIDECAR_CLOSE, (struct io_op){.kind = IO_CLOSE, .file = l->sidecar});
        break;
    case LOADER_SIDECAR_CLOSE:
        sidecar_loaded(log);
        break;
    case LOADER_SCAN:
        if (op->result < 0)
            loader_end(log, (int)op->result);
        else if (op->result != (int64_t)op->length)
            loader_damage(log, "the file is too short", op->offset + (uint64_t)op->result);
        else
            scan_loaded(log, op->length);
        break;
    case LOADER_IDLE:
        check_bug(false);
    }
}

static void loader_turn(struct log *log)
{
    struct loader *l = &log->loader;
    if (l->state != LOADER_IDLE || l->segment == NULL)
        return;
    struct segment *s = l->segment;
    if (s->file == NULL) {
        snprintf(l->name, sizeof l->name, SEGMENT_FILE, (unsigned long long)s->file_number);
        loader_step(log, LOADER_OPEN,
                    (struct io_op){.kind = IO_OPEN, .name = l->name, .flags = IO_FILE_READ_ONLY});
    } else if (!s->known) {
        loader_step(
            log, LOADER_HEADER,
            (struct io_op){.kind = IO_READ, .file = s->file, .buffer = l->buffer, .length = BLOCK_MIN});
    } else {
        sidecar_open(log);
    }
}

/* --------------------------------------------------------------------------------------- writing sidecars */

static void sidecar_step(struct log *log, enum sidecar_state state, struct io_op op)
{
    struct sidecar_writer *w = &log->sidecar;
    w->state = state;
    op.background = true;
    op.owner = log;
    op.done = sidecar_done;
    w->op = op;
    io_submit(log->io, &w->op);
}

static void sidecar_end(struct log *log)
{
    struct sidecar_writer *w = &log->sidecar;
    w->segment->sidecar_wanted = false;
    log->sidecars_wanted--;
    w->segment = NULL;
    w->state = SIDECAR_IDLE;
    images_trim(log);
}

/* Errors are harmless: the index is built again when it is needed. */
static void sidecar_done(struct io_op *op)
{
    struct log *log = op->owner;
    struct sidecar_writer *w = &log->sidecar;
    if (log->abandoned)
        return;
    switch (w->state) {
    case SIDECAR_UNLINK:
        sidecar_step(log, SIDECAR_CREATE,
                     (struct io_op){.kind = IO_CREATE, .name = INDEX_NEW, .flags = IO_FILE_BUFFERED});
        break;
    case SIDECAR_CREATE:
        if (op->result < 0) {
            sidecar_end(log);
            break;
        }
        w->file = op->file;
        sidecar_step(log, SIDECAR_WRITE,
                     (struct io_op){.kind = IO_WRITE,
                                    .file = w->file,
                                    .buffer = w->segment->image.bytes,
                                    .length = w->segment->image.size});
        break;
    case SIDECAR_WRITE:
        w->failed = op->result != (int64_t)op->length;
        sidecar_step(log, SIDECAR_CLOSE, (struct io_op){.kind = IO_CLOSE, .file = w->file});
        break;
    case SIDECAR_CLOSE:
        if (w->failed) {
            sidecar_end(log);
            break;
        }
        snprintf(w->name, sizeof w->name, INDEX_FILE, (unsigned long long)w->segment->file_number);
        sidecar_step(log, SIDECAR_RENAME,
                     (struct io_op){.kind = IO_RENAME, .name = INDEX_NEW, .new_name = w->name});
        break;
    case SIDECAR_RENAME:
        sidecar_end(log);
        break;
    case SIDECAR_IDLE:
        check_bug(false);
    }
}

void index_write_now(struct log *log, struct segment *segment)
{
    check_bug(log->sidecar.state == SIDECAR_IDLE && segment->sidecar_wanted);
    log->sidecar.segment = segment;
    sidecar_step(log, SIDECAR_UNLINK, (struct io_op){.kind = IO_UNLINK, .name = INDEX_NEW});
    io_kick(log->io);
    while (log->sidecar.state != SIDECAR_IDLE)
        io_wait(log->io, -1);
}

static void sidecar_turn(struct log *log)
{
    struct sidecar_writer *w = &log->sidecar;
    if (w->state != SIDECAR_IDLE || log->sidecars_wanted == 0 || log->stopping)
        return;
    for (uint32_t i = log->segment_count; i-- > 0;) {
        if (log->segments[i]->sidecar_wanted) {
            w->segment = log->segments[i];
            sidecar_step(log, SIDECAR_UNLINK, (struct io_op){.kind = IO_UNLINK, .name = INDEX_NEW});
            return;
        }
    }
}

void index_turn(struct log *log)
{
    if (log->failed.code != 0)
        return;
    loader_turn(log);
    sidecar_turn(log);
}

bool index_busy(const struct log *log)
{
    return log->loader.state != LOADER_IDLE || log->sidecar.state != SIDECAR_IDLE;
}

void index_free(struct log *log)
{
    free(log->loader.bytes);
    free(log->loader.buffer);
    free(log->loader.rows.rows);
    free(log->loader.chunks.rows);
    for (uint32_t i = 0; i < log->segment_count; i++)
        free(log->segments[i]->image.bytes);
    free(log->chunk_rows.rows);
}
