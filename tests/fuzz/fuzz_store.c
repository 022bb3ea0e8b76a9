/* fuzz_store.c: recovery over a store that somebody else wrote. G13, G14, G16, G27.
 *
 * Input: byte 0 chooses the store, byte 1 which sums are made right (enum sums); then changes of 12 bytes
 * each: place (2), offset (2), width (1), value (7, and zero above).
 *
 * What must hold, whatever the input says:
 *   - `walrus check` (log_check) ends and writes nothing;
 *   - a start refuses with words, or serves; then every read of every topic ends, with bytes inside its
 *     buffer, or -EBADMSG and the like;
 *   - what was started once, and stopped, starts again and shows the same number of entries. */
#include "store_image.h"

#include "../../broker/log/check.h"
#include "../../broker/log/log.h"

#define CHANGE_BYTES 12u
#define CHANGES_MOST 16u
#define READS_MOST   200u
#define TURNS_MOST   200000u
#define WINDOW       (64u << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct base bases[BASES_MOST];

static void found(void *context, const struct finding *finding)
{
    uint64_t *sum = context;
    *sum += strlen(finding->file) + strlen(finding->topic) + strlen(finding->text);
}

static void check(struct image *image)
{
    uint64_t hash = image_hash(image), sum = 0;
    struct disk *disk = disk_start(image_copy(image), 1);
    struct check_report report;
    struct error err = {0};
    int error = log_check(disk_io(disk), found, &sum, &report, &err);
    check_bug(error == 0 || err.text[0] != 0);
    struct image *after = disk_end(disk);
    check_bug(image_hash(after) == hash || after->time != image->time);
    image_free(after);
}

struct reader {
    struct log_read read;
    bool done;
};

static void read_done(struct log_read *read)
{
    ((struct reader *)(void *)read)->done = true;
}

/* What lies in the buffer is what a client would look at: every byte of it is touched. */
static uint64_t look_at(const struct log_read *read)
{
    uint64_t sum = 0;
    check_bug(read->used <= read->buffer_bytes);
    for (uint32_t i = 0; i < read->used; i++)
        sum += read->buffer[i];
    return sum;
}

static uint64_t read_topic(struct log *log, struct io *io, struct topic *topic, uint8_t *buffer)
{
    uint64_t entries = 0;
    struct reader reader = {.read = {.topic = topic, .from = 1}};
    for (unsigned reads = 0; reads < READS_MOST; reads++) {
        reader.read.max_entries = MAX_BATCH_ENTRIES;
        reader.read.max_bytes = WINDOW;
        reader.read.buffer = buffer;
        reader.read.buffer_bytes = WINDOW;
        reader.read.done = read_done;
        reader.done = false;
        log_read(log, &reader.read);
        for (unsigned turn = 0; !reader.done; turn++) {
            check_bug(turn < TURNS_MOST);
            log_turn(log);
            if (!reader.done && io->inflight > 0)
                io_wait(io, -1);
        }
        if (reader.read.result <= 0)
            break;
        look_at(&reader.read);
        entries += (uint64_t)reader.read.result;
        if (reader.read.next_sequence == reader.read.from)
            break; /* a piece of a large entry */
        reader.read.from = reader.read.next_sequence;
    }
    return entries;
}

static uint64_t read_all(struct log *log, struct io *io, uint8_t *buffer)
{
    uint64_t entries = 0;
    unsigned topics = 0;
    for (struct topic *t = log_topic_after(log, 0); t != NULL && topics < 50; topics++) {
        struct topic_view view;
        log_topic_view(t, &view);
        entries += read_topic(log, io, t, buffer);
        t = log_topic_after(log, view.id);
    }
    return entries;
}

/* One life. The image is taken over; NULL: the start was refused. */
static struct image *live(struct image *image, uint64_t *entries, uint8_t *buffer)
{
    struct error err = {0};
    struct log *log;
    struct disk *disk = disk_start(image, 7);
    struct log_options options = {
        .io = disk_io(disk), .segment_bytes = SEGMENT_MIN, .memory_bytes = 24u << 20};
    options.prepare_only_spare = true;
    int error = log_start(&options, &log, &err);
    if (error != 0) {
        check_bug(err.text[0] != 0);
        image_free(disk_end(disk));
        return NULL;
    }
    *entries = read_all(log, disk_io(disk), buffer);
    error = log_stop(log, &err);
    check_bug(error == 0 || err.text[0] != 0);
    return disk_end(disk);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t *buffer;
    if (buffer == NULL) {
        bases_make(bases);
        buffer = aligned_alloc(64, WINDOW);
        check_bug(buffer != NULL);
    }
    if (size < 2 + CHANGE_BYTES)
        return 0;
    struct change_to changes[CHANGES_MOST];
    uint32_t count = 0;
    for (size_t at = 2; at + CHANGE_BYTES <= size && count < CHANGES_MOST; at += CHANGE_BYTES) {
        const uint8_t *from = data + at;
        struct change_to *c = &changes[count++];
        *c = (struct change_to){.place = from[0] | (uint32_t)from[1] << 8,
                                .offset = from[2] | (uint32_t)from[3] << 8,
                                .width = from[4]};
        memcpy(&c->value, from + 5, 7);
    }
    const struct base *base = &bases[data[0] % BASES_MOST];
    struct image *image = base_changed(base, changes, count, data[1] & (SUMS_RIGHT | SUMS_CHAIN));
    check(image);
    uint64_t first = 0, second = 0;
    image = live(image, &first, buffer);
    if (image == NULL)
        return 0;
    image = live(image, &second, buffer);
    check_bug(image != NULL && first == second);
    image_free(image);
    return 0;
}
