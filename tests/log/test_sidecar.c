/* Sidecars whose sums are right and whose rows are wrong, and the rebuild of an index that is missing:
 * neither may bring a reader anything but the committed bytes, or an error. */
#include "life.h"

static struct life life;
static struct disk disk;
static const int A;
static char sidecar[40]; /* of the first segment */

static void make(void)
{
    life_make(&life);
    life_start(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(sidecars, .init = make, .fini = clean, .timeout = 60);

static void put_stream(const char *name, uint32_t chunks)
{
    struct stream stream = {.owner = &A};
    for (uint32_t i = 0; i < chunks; i++) {
        struct sent *sent =
            SEND(&life, .name = name, .kind = WRITE_CHUNK, .owner = &A, .entries = 1, .bytes = 100,
                 .from = 1 + i, .stream = &stream, .first = i == 0, .last = i + 1 == chunks);
        cr_assert_eq(sent->refused, 0);
        life_settle(&life);
    }
    life_committed(&life, name, chunks);
}

/* The first of a few segments holds two topics whose batches look alike, and a stream. Nothing runs. */
static void closed_segment(void)
{
    life_put(&life, "a", 3, 100);
    life_put(&life, "b", 3, 100);
    put_stream("s", 3);
    for (unsigned i = 0; i < 4; i++)
        life_put(&life, "bulk", 1, 3000000);
    life_quiet(&life);
    life_stop(&life);
    disk_scan(&life, &disk);
    snprintf(sidecar, sizeof sidecar, "%.8s.index", disk.segments[0].name);
    cr_assert_gt(disk.segment_count, 2u);
}

/* ------------------------------------------------------------------------------------------ forged rows */

struct image {
    uint64_t size;
    uint8_t *bytes;
    struct index_header *header;
    struct index_row *rows, *chunks;
};

static struct image image_take(void)
{
    struct image image = {.size = file_size_of(&life, sidecar)};
    image.bytes = malloc(image.size);
    cr_assert_not_null(image.bytes);
    file_peek(&life, sidecar, 0, image.bytes, image.size);
    image.header = (struct index_header *)(void *)image.bytes;
    image.rows = (struct index_row *)(void *)(image.bytes + sizeof *image.header +
                                              image.header->topics * sizeof(struct index_topic));
    image.chunks = image.rows + image.header->rows;
    return image;
}

/* With right sums. */
static void image_put(const struct life *to, struct image *image)
{
    struct index_header *h = image->header;
    h->body_crc = crc32c(0, image->bytes + sizeof *h, image->size - sizeof *h);
    h->crc = crc32c(0, h, offsetof(struct index_header, crc));
    file_poke(to, sidecar, 0, image->bytes, image->size);
}

/* A row that says where another one's frame lies. */
static void point_to(struct index_row *row, const struct index_row *other)
{
    row->offset = other->offset;
    row->bytes = other->bytes;
    row->payload = other->payload;
}

static void reads_as_damaged(const char *name, const char *words)
{
    struct reading r = {.name = name, .from = 1};
    life_read(&life, &r);
    cr_assert_eq(r.read.result, -EBADMSG, "got %d", r.read.result);
    reading_free(&r);
    cr_assert(life_said(&life, words), "%s", life.said);
}

Test(sidecars, g16_rows_outside_the_segment_are_not_believed_whatever_their_sums)
{
    closed_segment();
    struct image image = image_take();
    const struct index_row row = image.rows[0];
    uint32_t end = (uint32_t)disk.segments[0].end;
    struct index_row wrong[] = {row, row, row, row};
    wrong[0].offset = end + BLOCK_MIN;
    wrong[1].bytes = end - row.offset + PAYLOAD_ALIGN;
    wrong[2].bytes = GROUP_MAX + PAYLOAD_ALIGN;
    wrong[3].bytes = sizeof(struct frame_header) - PAYLOAD_ALIGN;
    for (size_t i = 0; i < array_count(wrong); i++) {
        struct life copy;
        life_copy(&copy, &life);
        image.rows[0] = wrong[i];
        image_put(&copy, &image);
        life_start(&copy);
        cr_assert_eq(life_read_all(&copy, "a", 1, 0), 3u, "row %zu", i);
        cr_assert(life_said(&copy, "rebuilt"), "row %zu was believed", i);
        life_remove(&copy);
    }
    free(image.bytes);
}

Test(sidecars, g18_a_row_that_points_to_the_batch_of_another_topic_is_found_out)
{
    closed_segment();
    struct image image = image_take();
    cr_assert(image.rows[0].topic != image.rows[1].topic && image.rows[0].sequence == image.rows[1].sequence);
    point_to(&image.rows[0], &image.rows[1]);
    image_put(&life, &image);
    life_start(&life);
    reads_as_damaged("a", "the frame of another batch");
    cr_assert_eq(life_read_all(&life, "b", 1, 0), 3u);
    free(image.bytes);
}

Test(sidecars, g18_a_row_that_points_to_another_chunk_of_its_stream_is_found_out)
{
    closed_segment();
    struct image image = image_take();
    cr_assert_eq(image.header->chunks, 3u);
    point_to(&image.chunks[0], &image.chunks[1]);
    image_put(&life, &image);
    life_start(&life);
    reads_as_damaged("s", "the frame of another chunk");
    free(image.bytes);
}

/* -------------------------------------------------------------------------------------------- the rebuild */

static void file_delete_sidecar(void)
{
    file_delete(&life, sidecar);
    life_start(&life);
}

Test(sidecars, g27_an_index_is_not_rebuilt_from_a_group_with_a_damaged_frame)
{
    closed_segment();
    const struct disk_group *g = &disk.groups[1];
    cr_assert_str_eq(g->file, disk.segments[0].name);
    file_flip(&life, g->file, g->header.offset + sizeof(struct group_header) + 64, 0); /* batch_entries */
    file_delete_sidecar();
    reads_as_damaged("a", "no valid group");
}

Test(sidecars, g14_an_index_is_not_rebuilt_from_what_a_short_read_left_out)
{
    closed_segment();
    file_delete_sidecar();
    io_fault_set(life.io, IO_READ,
                 &(struct fault){.action = FAULT_SHORT, .bytes = BLOCK_MIN, .nth = 1, .from_then_on = true});
    reads_as_damaged("a", "the file is too short");
    io_fault_clear(life.io, IO_READ);
    cr_assert_eq(life_read_all(&life, "a", 1, 0), 3u, "the next read tries again");
}
