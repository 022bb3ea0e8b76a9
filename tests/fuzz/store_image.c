/* store_image.c: see store_image.h. Places are found by walking a sound store with the code that makes groups
 * and takes them apart; sums are mended bottom up: tables and frames, groups, chain, headers. */
#include "store_image.h"

#include "../../broker/log/log.h"

#define TOPICS   3u
#define LIVES    4u
#define PATIENCE 200000u

/* -------------------------------------------------------------------------------------- making the stores */

struct maker {
    struct memory_disk disk;
    struct log *log;
    unsigned pending;
    uint8_t payload[64 << 10];
    struct entry_record records[64];
};

static struct maker maker;

static void write_done(struct write *write)
{
    check_bug(write->result == 0);
    maker.pending--;
}

static void turn(void)
{
    int64_t due = log_turn(maker.log), now = io_now(&maker.disk.io);
    if (maker.disk.io.inflight > 0 || due > now)
        io_wait(&maker.disk.io, due - now);
}

static void settle(void)
{
    for (unsigned i = 0; maker.pending > 0; i++) {
        check_bug(i < PATIENCE);
        turn();
    }
}

static void send(struct write write, uint32_t entries, uint32_t bytes)
{
    static struct write writes[16];
    static unsigned next;
    struct write *w = &writes[next++ % array_count(writes)];
    *w = write;
    w->entries = entries;
    w->payload_bytes = (uint32_t)align_up(bytes, PAYLOAD_ALIGN) * entries;
    w->payload = maker.payload;
    w->records = maker.records;
    w->done = write_done;
    for (uint32_t i = 0; i < entries; i++)
        maker.records[i] = (struct entry_record){.length = bytes, .type = (uint8_t)i};
    int error;
    do {
        error = log_write(maker.log, w);
        if (error == -EAGAIN) {
            turn();
        }
    } while (error == -EAGAIN);
    check_bug(error == 0);
    maker.pending++;
}

static void one_life(unsigned life)
{
    static const char *const names[TOPICS] = {"a", "topic with a longer name", "loose"};
    struct topic *topics[TOPICS];
    struct producer *named = NULL, *anonymous = NULL;
    for (unsigned i = 0; i < TOPICS; i++) {
        int error = log_topic(maker.log, names[i], strlen(names[i]), i == 2 ? LEVEL_WRITTEN : LEVEL_DURABLE,
                              7, true, &topics[i]);
        check_bug(error == 0);
    }
    int error = log_producer_named(maker.log, "producer", 8, 7, &named);
    check_bug(error == 0);
    error = log_producer_anonymous(maker.log, 8, &anonymous);
    check_bug(error == 0);
    for (unsigned i = 0; i < 3; i++) {
        struct topic *t = topics[i % TOPICS];
        send((struct write){.kind = WRITE_BATCH, .topic = t, .owner = &maker}, 1 + i, 100);
        send((struct write){.kind = WRITE_APPEND, .topic = t, .owner = &maker}, 1, 20);
        settle();
        send((struct write){.kind = WRITE_BATCH,
                            .topic = t,
                            .owner = &maker,
                            .producer = i == 1 ? anonymous : named,
                            .number = log_last_number(maker.log, i == 1 ? anonymous : named, t) + 1},
             2, 3000);
        settle();
    }
    static struct stream stream;
    stream = (struct stream){.topic = topics[0], .owner = &maker};
    struct write chunk = {
        .kind = WRITE_CHUNK, .first = true, .topic = topics[0], .owner = &maker, .stream = &stream};
    send(chunk, 3, 5000);
    settle();
    chunk.first = false;
    chunk.last = life % 2 == 0;
    send(chunk, 2, 100);
    settle();
    if (!chunk.last)
        log_stream_abort(maker.log, &stream);
    log_producer_release(maker.log, named);
    log_producer_release(maker.log, anonymous);
    for (unsigned i = 0; i < TOPICS; i++)
        log_topic_release(maker.log, topics[i]);
}

static void make_store(uint32_t which, bool stopped, unsigned lives)
{
    memory_disk_clear(&maker.disk, which + 1);
    for (unsigned life = 0; life < lives; life++) {
        struct error err;
        struct log_options options = {
            .io = &maker.disk.io, .segment_bytes = SEGMENT_MIN, .memory_bytes = 24u << 20};
        options.prepare_only_spare = true;
        int error = log_start(&options, &maker.log, &err);
        check_bug(error == 0);
        one_life(life);
        if (life + 1 < lives || stopped) {
            error = log_stop(maker.log, &err);
            check_bug(error == 0);
        } else {
            log_abandon(maker.log);
        }
    }
}

/* ------------------------------------------------------------------------------------------------ places */

static uint32_t add_place(struct base *base, struct place place)
{
    struct place *places = realloc(base->places, (base->place_count + 1) * sizeof *places);
    check_bug(places != NULL);
    base->places = places;
    places[base->place_count] = place;
    return base->place_count++;
}

static void load_file(struct base *base, const struct memory_file *from)
{
    uint32_t used = (uint32_t)align_up(from->length, MEMORY_BLOCK);
    uint8_t *bytes = calloc(1, used + MEMORY_BLOCK);
    struct base_file *files = realloc(base->files, (base->file_count + 1) * sizeof *files);
    check_bug(bytes != NULL && files != NULL && from->length < 1u << 30);
    if (from->length > 0)
        memcpy(bytes, from->bytes, from->length);
    while (used > 0 && all_zero(bytes + used - MEMORY_BLOCK, MEMORY_BLOCK))
        used -= MEMORY_BLOCK;
    base->files = files;
    struct base_file *file = &files[base->file_count++];
    *file = (struct base_file){.bytes = bytes, .length = used, .size = from->size};
    memcpy(file->name, from->name, sizeof file->name);
}

static bool ends_with(const char *name, const char *ending)
{
    size_t length = strlen(name), end = strlen(ending);
    return length >= end && strcmp(name + length - end, ending) == 0;
}

static void frame_places(struct base *base, uint32_t file, uint32_t group, uint32_t at, const uint8_t *bytes)
{
    const struct group_header *header = (const void *)(bytes + at);
    uint32_t offset = sizeof *header;
    for (uint32_t i = 0; i < header->frames; i++) {
        const struct frame_header *frame = (const void *)(bytes + at + offset);
        uint32_t place =
            add_place(base, (struct place){PLACE_FRAME, file, at + offset, sizeof *frame, group});
        add_place(base, (struct place){PLACE_TABLE, file, at + offset + (uint32_t)sizeof *frame,
                                       frame->header_bytes - (uint32_t)sizeof *frame, place});
        if (frame->payload_bytes > 0)
            add_place(base, (struct place){PLACE_PAYLOAD, file, at + offset + frame->header_bytes,
                                           frame->payload_bytes, place});
        offset += frame->header_bytes + frame->payload_bytes;
    }
}

static void segment_places(struct base *base, uint32_t file)
{
    struct base_file *f = &base->files[file];
    const struct segment_header *header = (const void *)f->bytes;
    if (f->length < sizeof *header || header->magic != SEGMENT_MAGIC)
        return;
    uint32_t segment = add_place(base, (struct place){PLACE_SEGMENT, file, 0, sizeof *header, UINT32_MAX});
    for (uint32_t at = header->block; at + sizeof(struct group_header) <= f->length;) {
        const struct group_header *group = (const void *)(f->bytes + at);
        if (group->magic != GROUP_MAGIC)
            break;
        uint32_t place = add_place(base, (struct place){PLACE_GROUP, file, at, sizeof *group, segment});
        frame_places(base, file, place, at, f->bytes);
        at += group->length;
        f->length = f->length < at ? at : f->length; /* its padding may be blocks of zeros */
    }
}

static void find_places(struct base *base)
{
    for (uint32_t i = 0; i < MEMORY_FILES; i++)
        if (maker.disk.files[i].used && maker.disk.files[i].name[0] != '\0')
            load_file(base, &maker.disk.files[i]);
    for (uint32_t i = 0; i < base->file_count; i++) {
        const struct base_file *f = &base->files[i];
        if (ends_with(f->name, ".segment")) {
            segment_places(base, i);
        } else if (strcmp(f->name, STORE_FILE) == 0) {
            add_place(base, (struct place){PLACE_STORE, i, 0, sizeof(struct store_header), UINT32_MAX});
        } else if (strncmp(f->name, "checkpoint-", 11) == 0 || ends_with(f->name, ".index")) {
            bool checkpoint = f->name[0] == 'c';
            uint32_t length = checkpoint ? sizeof(struct checkpoint_header) : sizeof(struct index_header);
            uint64_t size = f->size;
            uint32_t header = add_place(
                base, (struct place){checkpoint ? PLACE_CHECKPOINT : PLACE_INDEX, i, 0, length, UINT32_MAX});
            if (size > length)
                add_place(base, (struct place){PLACE_BODY, i, length, (uint32_t)size - length, header});
        }
    }
}

uint32_t bases_make(struct base bases[BASES_MOST])
{
    memory_disk_init(&maker.disk);
    for (uint32_t i = 0; i < BASES_MOST; i++) {
        bases[i] = (struct base){.file_count = 0};
        make_store(i, i % 2 == 0, i < 2 ? 1 : LIVES);
        find_places(&bases[i]);
        check_bug(bases[i].place_count > 10);
        for (uint32_t p = 0; p < bases[i].place_count; p++) {
            const struct place *place = &bases[i].places[p];
            check_bug(place->offset + place->length <= bases[i].files[place->file].length);
        }
    }
    memory_disk_free(&maker.disk);
    return BASES_MOST;
}

/* -------------------------------------------------------------------------------------------------- sums */

static void put32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof value);
}

/* Plain: a crc at the header's end over all before it; a body's sum in the header. */
static void mend_plain(const struct place *p, uint8_t *bytes, const struct place *body)
{
    uint8_t *at = bytes + p->offset;
    if (body != NULL) {
        size_t field = p->kind == PLACE_CHECKPOINT ? offsetof(struct checkpoint_header, body_crc)
                                                   : offsetof(struct index_header, body_crc);
        put32(at + field, crc32c(0, bytes + body->offset, body->length));
    }
    put32(at + p->length - 4, crc32c(0, at, p->length - 4));
}

static struct sum_seed seed_of(const uint8_t *bytes)
{
    uint64_t salt[2];
    memcpy(salt, bytes + offsetof(struct segment_header, salt), sizeof salt);
    return seed_from_salt(salt);
}

static void mend_frame(const struct base *base, uint32_t place, uint8_t *bytes, struct sum_seed seed)
{
    const struct place *frame = &base->places[place], *table = frame + 1;
    const struct place *payload = table + 1;
    uint8_t *at = bytes + frame->offset;
    if (place + 2 < base->place_count && payload->kind == PLACE_PAYLOAD && payload->parent == place) {
        uint32_t pieces = frame_pieces(payload->length);
        uint32_t records =
            (uint32_t)sizeof(struct entry_record) *
            ((const struct frame_header *)(const void *)(base->files[frame->file].bytes + frame->offset))
                ->entries;
        for (uint32_t i = 0; i < pieces; i++) {
            uint32_t from = i * PIECE_BYTES;
            uint32_t length = payload->length - from < PIECE_BYTES ? payload->length - from : PIECE_BYTES;
            put32(bytes + table->offset + records + i * 4, crc32c(0, bytes + payload->offset + from, length));
        }
    }
    put32(at + offsetof(struct frame_header, table_crc),
          crc32c(seed.crc, bytes + table->offset, table->length));
    put32(at + offsetof(struct frame_header, crc), crc32c(seed.crc, at, offsetof(struct frame_header, crc)));
}

static void mend_group(const struct base *base, uint32_t place, uint8_t *bytes, struct sum_seed seed)
{
    const struct place *group = &base->places[place];
    uint8_t *at = bytes + group->offset;
    uint32_t sum = seed.crc;
    for (uint32_t i = place + 1;
         i < base->place_count && base->places[i].kind != PLACE_GROUP && base->places[i].file == group->file;
         i++)
        if (base->places[i].kind == PLACE_FRAME)
            sum = crc32c(sum, bytes + base->places[i].offset, offsetof(struct frame_header, crc));
    put32(at + offsetof(struct group_header, frames_crc), sum);
    put32(at + offsetof(struct group_header, crc), crc32c(seed.crc, at, offsetof(struct group_header, crc)));
}

/* Everything in one file, whether it was changed or not: what was right stays as it is. */
static void mend_segment(const struct base *base, uint32_t segment, uint8_t *bytes, bool chain)
{
    const struct place *p = &base->places[segment];
    struct digest last = {0, 0};
    bool has_last = false;
    mend_plain(p, bytes, NULL);
    struct sum_seed seed = seed_of(bytes);
    for (uint32_t i = segment + 1; i < base->place_count && base->places[i].file == p->file; i++)
        if (base->places[i].kind == PLACE_FRAME)
            mend_frame(base, i, bytes, seed);
    for (uint32_t i = segment + 1; i < base->place_count && base->places[i].file == p->file; i++) {
        const struct place *group = &base->places[i];
        if (group->kind != PLACE_GROUP)
            continue;
        if (chain && has_last)
            memcpy(bytes + group->offset + offsetof(struct group_header, previous_digest), &last,
                   sizeof last);
        mend_group(base, i, bytes, seed);
        last = digest_of(seed, bytes + group->offset, sizeof(struct group_header));
        has_last = true;
    }
}

static void mend_file(const struct base *base, uint32_t file, uint8_t *bytes, unsigned sums)
{
    for (uint32_t i = 0; i < base->place_count; i++) {
        const struct place *p = &base->places[i];
        if (p->file != file)
            continue;
        if (p->kind == PLACE_SEGMENT)
            mend_segment(base, i, bytes, (sums & SUMS_CHAIN) != 0);
        else if (p->kind == PLACE_STORE)
            mend_plain(p, bytes, NULL);
        else if (p->kind == PLACE_CHECKPOINT || p->kind == PLACE_INDEX)
            mend_plain(p, bytes, i + 1 < base->place_count && p[1].kind == PLACE_BODY ? p + 1 : NULL);
    }
}

/* ------------------------------------------------------------------------------------------------ changes */

void base_changed(const struct base *base, const struct change_to *changes, uint32_t count, unsigned sums,
                  struct memory_disk *disk)
{
    for (uint32_t f = 0; f < base->file_count; f++) {
        const struct base_file *file = &base->files[f];
        uint8_t *bytes = NULL;
        for (uint32_t i = 0; i < count; i++) {
            const struct place *p = &base->places[changes[i].place % base->place_count];
            if (p->file != f)
                continue;
            if (bytes == NULL)
                bytes = memory_disk_add(disk, file->name, file->bytes, file->length, file->size);
            uint32_t width = 1 + changes[i].width % 8;
            uint32_t offset = changes[i].offset % p->length;
            if (width > p->length - offset)
                width = p->length - offset;
            memcpy(bytes + p->offset + offset, &changes[i].value, width);
        }
        if (bytes == NULL)
            memory_disk_lend(disk, file->name, file->bytes, file->length, file->size);
        else if (sums != SUMS_AS_THEY_WERE)
            mend_file(base, f, bytes, sums);
    }
}
