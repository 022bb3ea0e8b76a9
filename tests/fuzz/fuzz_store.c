/* fuzz_store.c: recovery over a store that somebody else wrote. G13, G14, G16, G27.
 *
 * Input: byte 0 chooses the store, byte 1 which sums are made right (enum sums); then changes of 12 bytes
 * each: place (2), offset (2), width (1), value (7, and zero above). The zeros behind the log, in files that
 * were allocated in full, are cut off, since megabytes of them cost more than all the rest; with the upper
 * four bits of byte 1 set they stay, for those inputs whose bytes add up to a multiple of 16 (that is not
 * inherited: else half of the inputs would soon have them).
 *
 * What must hold, whatever the input says:
 *   - `walrus check` (log_check) ends and writes nothing;
 *   - a start refuses with words, or serves; then every read of every topic ends, with bytes inside its
 *     buffer, or -EBADMSG and the like;
 *   - what was started once, and stopped, starts again and shows the same number of entries. */
#include "store_image.h"

#include "../../broker/log/check.h"
#include "../../broker/log/log.h"

#include <malloc.h>

#define CHANGE_BYTES 12u
#define CHANGES_MOST 16u
#define READS_MOST   200u
#define TURNS_MOST   200000u
#define WINDOW       (64u << 10)
#define SLACK        (8u << 10)
#define WHOLE_FILES  0xf0u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct base bases[BASES_MOST];
static struct memory_disk disk;

static void found(void *context, const struct finding *finding)
{
    uint64_t *sum = context;
    *sum += strlen(finding->file) + strlen(finding->topic) + strlen(finding->text);
}

static void check(void)
{
    uint64_t sum = 0;
    struct check_report report;
    struct error err = {0};
    disk.changes = 0;
    int error = log_check(&disk.io, found, &sum, &report, &err);
    check_bug(error == 0 || err.text[0] != 0);
    check_bug(disk.changes == 0 && memory_disk_idle(&disk));
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

/* One life. False: the start was refused. */
static bool live(uint64_t *entries, uint8_t *buffer)
{
    struct error err = {0};
    struct log *log;
    struct log_options options = {
        .io = &disk.io, .segment_bytes = SEGMENT_MIN, .memory_bytes = 24u << 20, .prepare_only_spare = true};
    int error = log_start(&options, &log, &err);
    if (error != 0) {
        check_bug(err.text[0] != 0 && memory_disk_idle(&disk));
        return false;
    }
    *entries = read_all(log, &disk.io, buffer);
    error = log_stop(log, &err);
    check_bug(error == 0 || err.text[0] != 0);
    check_bug(memory_disk_idle(&disk));
    return true;
}

static void prepare(uint8_t **buffer)
{
    /* A start takes some buffers of megabytes of which it uses little: they stay in the heap, with their
     * pages. */
    mallopt(M_MMAP_THRESHOLD, 64 << 20);
    mallopt(M_TRIM_THRESHOLD, 512 << 20);
    bases_make(bases);
    memory_disk_init(&disk);
    *buffer = aligned_alloc(64, WINDOW);
    check_bug(*buffer != NULL);
}

static bool keeps_zeros(const uint8_t *data, size_t size)
{
    unsigned sum = 0;
    if ((data[1] & WHOLE_FILES) != WHOLE_FILES)
        return false;
    for (size_t i = 0; i < size; i++)
        sum += data[i];
    return sum % 16 == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t *buffer;
    if (buffer == NULL)
        prepare(&buffer);
    uint8_t padded[2 + CHANGE_BYTES] = {0};
    if (size < sizeof padded) { /* one change in any case: each execution is a start */
        if (size > 0)
            memcpy(padded, data, size);
        data = padded;
        size = sizeof padded;
    }
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
    bool whole = keeps_zeros(data, size);
    memory_disk_clear(&disk, 7);
    base_changed(base, changes, count, data[1] & (SUMS_RIGHT | SUMS_CHAIN), &disk);
    uint64_t entries[2] = {0, 0};
    for (unsigned life = 0; life < 2; life++) {
        if (!whole)
            memory_disk_cut(&disk, SLACK);
        if (life == 0)
            check();
        if (!live(&entries[life], buffer)) {
            check_bug(life == 0);
            return 0;
        }
        check_bug(life == 0 || entries[0] == entries[1]);
    }
    return 0;
}
