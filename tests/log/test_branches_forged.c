/* Every field of every structure on the disk with other values, and sums that are right: what stands between
 * the code and such a store is its own checks. G13, G16, G27.
 *
 * One of each kind of structure is forged field by field, at each step of four bytes, in a store that was
 * stopped and one that was killed. A start refuses with words, or serves and then every read ends; what it
 * served once it serves again. The check says why a start was refused, and changes nothing. */
#include "../../broker/log/check.h"
#include "../../broker/log/log.h"
#include "../fuzz/store_image.h"

#include <criterion/criterion.h>

#define WINDOW     (64u << 10)
#define SLACK      (16u << 10)
#define READS_MOST 200u
#define TURNS_MOST 200000u

/* The address sanitizer looks for wrong memory, on the same paths, and takes a hundred times as long for a
 * start; the search through all values is the plain build's. */
#ifdef __SANITIZE_ADDRESS__
#define FIELD_STEP 7u /* of so many fields one, another one in each store */
#define VALUE_STEP 2u
#else
#define FIELD_STEP 1u
#define VALUE_STEP 1u
#endif

static struct base bases[BASES_MOST];
static struct memory_disk disk;
static _Alignas(64) uint8_t window[WINDOW];
static unsigned refused, served, unseen; /* unseen: refused, and the check found nothing */
static char forging[200];

struct reader {
    struct log_read read;
    bool done;
};

static void read_done(struct log_read *read)
{
    ((struct reader *)(void *)read)->done = true;
}

static uint64_t read_topic(struct log *log, struct topic *topic)
{
    uint64_t entries = 0;
    struct reader r = {.read = {.topic = topic, .from = 1}};
    for (unsigned reads = 0; reads < READS_MOST; reads++) {
        r.read.max_entries = MAX_BATCH_ENTRIES;
        r.read.max_bytes = WINDOW;
        r.read.buffer = window;
        r.read.buffer_bytes = WINDOW;
        r.read.done = read_done;
        r.done = false;
        log_read(log, &r.read);
        for (unsigned turn = 0; !r.done; turn++) {
            cr_assert_lt(turn, TURNS_MOST, "a read does not end: %s", forging);
            log_turn(log);
            if (!r.done && disk.io.inflight > 0)
                io_wait(&disk.io, -1);
        }
        cr_assert_leq(r.read.used, WINDOW);
        if (r.read.result <= 0 || r.read.next_sequence == r.read.from)
            break;
        entries += (uint64_t)r.read.result;
        r.read.from = r.read.next_sequence;
    }
    return entries;
}

/* One life: false if it is refused. */
static bool live(uint64_t *entries)
{
    struct error err = {0};
    struct log *log;
    struct log_options options = {
        .io = &disk.io, .segment_bytes = SEGMENT_MIN, .memory_bytes = 24u << 20, .prepare_only_spare = true};
    int error = log_start(&options, &log, &err);
    if (error != 0) {
        cr_assert(err.text[0] != 0 && memory_disk_idle(&disk), "%s", forging);
        return false;
    }
    struct topic_view view = {.id = 0};
    *entries = 0;
    for (struct topic *t; (t = log_topic_after(log, view.id)) != NULL;) {
        log_topic_view(t, &view);
        *entries += read_topic(log, t);
    }
    error = log_stop(log, &err);
    cr_assert(error == 0 && memory_disk_idle(&disk), "%s: %s", forging, err.text);
    return true;
}

static void count_damage(void *context, const struct finding *finding)
{
    *(unsigned *)context += finding->kind == FINDING_DAMAGE;
}

static bool check_sees_it(void)
{
    struct check_report report;
    struct error err = {0};
    unsigned damages = 0;
    disk.changes = 0;
    int error = log_check(&disk.io, count_damage, &damages, &report, &err);
    cr_assert_eq(disk.changes, 0u, "the check changed something: %s", forging);
    return error != 0 || damages > 0;
}

static void forge(const struct base *base, const struct change_to *changes, uint32_t count, unsigned sums)
{
    uint64_t entries[2] = {0, 0};
    memory_disk_clear(&disk, 7);
    base_changed(base, changes, count, sums, &disk);
    memory_disk_cut(&disk, SLACK);
    bool seen = check_sees_it();
    if (!live(&entries[0])) {
        refused++;
        unseen += !seen;
        if (!seen && getenv("WALRUS_TEST_SHOW") != NULL)
            fprintf(stderr, "unseen: %s\n", forging);
        return;
    }
    served++;
    memory_disk_cut(&disk, SLACK);
    cr_assert(live(&entries[1]), "served once, then refused: %s", forging);
    cr_assert_eq(entries[0], entries[1], "%s: %llu entries, then %llu", forging,
                 (unsigned long long)entries[0], (unsigned long long)entries[1]);
}

static uint64_t value_at(const struct base *base, uint32_t place, uint32_t offset, uint32_t width)
{
    uint64_t value = 0;
    const struct place *p = &base->places[place];
    memcpy(&value, base->files[p->file].bytes + p->offset + offset, width);
    return value;
}

static void forge_field(const struct base *base, uint32_t place, uint32_t offset, uint32_t width)
{
    uint64_t old = value_at(base, place, offset, width);
    const uint64_t values[] = {0, old + 1, old - 1, UINT64_MAX, UINT32_MAX / 2, 1u << 20};
    for (size_t v = place % VALUE_STEP; v < array_count(values); v += VALUE_STEP) {
        for (unsigned sums = SUMS_RIGHT; sums <= (SUMS_RIGHT | SUMS_CHAIN); sums += SUMS_CHAIN) {
            snprintf(forging, sizeof forging, "store %td: %s: place %u of kind %d, %u bytes at %u are %llx",
                     base - bases, base->files[base->places[place].file].name, place,
                     base->places[place].kind, width, offset, (unsigned long long)values[v]);
            const struct change_to change = {place, offset, width - 1, values[v]};
            forge(base, &change, 1, sums);
        }
    }
}

/* The last place of the kind in each file: what lies before it must be believed first. */
static bool last_of_kind(const struct base *base, uint32_t place)
{
    for (uint32_t i = place + 1; i < base->place_count; i++)
        if (base->places[i].file == base->places[place].file &&
            base->places[i].kind == base->places[place].kind)
            return false;
    return true;
}

static void forge_kinds(uint32_t kinds)
{
    refused = served = unseen = 0;
    bases_make(bases);
    memory_disk_init(&disk);
    for (uint32_t b = 0; b < BASES_MOST; b++) {
        const struct base *base = &bases[b];
        for (uint32_t i = 0; i < base->place_count; i++) {
            const struct place *p = &base->places[i];
            if ((kinds & 1u << p->kind) == 0 || !last_of_kind(base, i))
                continue;
            uint32_t most = p->length < 128 ? p->length : 128;
            for (uint32_t at = 0; at + 4 <= most; at += 4) {
                if ((at / 4 + b) % FIELD_STEP != 0)
                    continue;
                forge_field(base, i, at, 4);
                if (at % 8 == 0 && at + 8 <= most)
                    forge_field(base, i, at, 8);
            }
            for (uint32_t at = 128; at < p->length && p->kind != PLACE_BODY && p->length <= 256;
                 at += FIELD_STEP) {
                snprintf(forging, sizeof forging, "store %u: place %u: byte %u is 1", b, i, at);
                forge(base, &(struct change_to){i, at, 0, 1}, 1, SUMS_RIGHT); /* what must be zero */
            }
        }
    }
    cr_assert(served > 0 && (refused > 0 || (kinds & 1u << PLACE_CHECKPOINT) != 0), "%u refused, %u served",
              refused, served);
    memory_disk_free(&disk);
}

TestSuite(forged, .timeout = 120);

Test(forged, g16_no_field_of_a_checkpoint_or_a_sidecar_is_believed_unchecked)
{
    forge_kinds(1u << PLACE_CHECKPOINT | 1u << PLACE_INDEX | 1u << PLACE_BODY);
}

Test(forged, g13_no_field_of_a_segment_or_the_identity_is_believed_unchecked)
{
    forge_kinds(1u << PLACE_SEGMENT | 1u << PLACE_STORE);
}

Test(forged, g13_no_field_of_a_group_is_believed_unchecked)
{
    forge_kinds(1u << PLACE_GROUP);
}

Test(forged, g13_no_field_of_a_frame_is_believed_unchecked)
{
    forge_kinds(1u << PLACE_FRAME | 1u << PLACE_TABLE | 1u << PLACE_PAYLOAD);
}
