/* Reads: from anywhere, across segments, in pieces, with and without the index, beside writes, over
 * damage. */
#include "life.h"

static struct life life;
static struct disk disk;
static const int A;

static void make(void)
{
    life_make(&life);
    life_start(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(reading, .init = make, .fini = clean, .timeout = 60);

static void again(void)
{
    life_crash(&life);
    life_start(&life);
}

/* ------------------------------------------------------------------------------------------------ where */

/* Five segments; "often" is everywhere, "old" in the first one only, "middle" once in the middle, "young"
 * at the end. */
static void many_segments(void)
{
    life_put(&life, "old", 3, 100);
    for (unsigned i = 0; i < 12; i++) {
        life_put(&life, "often", 1 + i % 3, 400000);
        life_put(&life, "bulk", 1, 1000000);
        if (i == 6)
            life_put(&life, "middle", 2, 50);
    }
    life_put(&life, "young", 1, 10);
    life_quiet(&life);
    cr_assert_gt(life_stats(&life).segments, 4u);
}

Test(reading, from_any_sequence_of_any_topic_over_several_segments)
{
    const char *names[] = {"old", "often", "bulk", "middle", "young"};
    many_segments();
    for (unsigned round = 0; round < 2; round++) {
        for (size_t i = 0; i < array_count(names); i++) {
            uint64_t next = life_next(&life, names[i]);
            for (uint64_t from = 1; from <= next; from++)
                cr_assert_eq(life_read_all(&life, names[i], from, 0), next - from, "%s from %llu", names[i],
                             (unsigned long long)from);
        }
        again();
    }
}

Test(reading, from_0_is_from_the_first_entry)
{
    many_segments();
    struct reading r = {.name = "often"};
    life_read(&life, &r);
    cr_assert_eq(r.read.first_sequence, 1u);
    cr_assert(r.right);
    reading_free(&r);
}

Test(reading, at_the_end_there_is_nothing_and_beyond_it_neither)
{
    life_put(&life, "t", 3, 10);
    uint64_t from[] = {4, 5, 1000000, UINT64_MAX};
    for (size_t i = 0; i < array_count(from); i++) {
        struct reading r = {.name = "t", .from = from[i]};
        life_read(&life, &r);
        cr_assert_eq(r.read.result, 0, "from %llu: %d", (unsigned long long)from[i], r.read.result);
        cr_assert_eq(r.read.end_sequence, 4u);
        cr_assert_eq(r.read.used, 0u);
        reading_free(&r);
    }
}

Test(reading, a_topic_that_lies_in_one_old_segment_is_found_among_many)
{
    many_segments();
    for (unsigned i = 0; i < 12; i++)
        life_put(&life, "bulk", 1, 1500000);
    life_quiet(&life);
    cr_assert_gt(life_stats(&life).segments, 8u);
    cr_assert_eq(life_read_all(&life, "middle", 1, 0), 2u);
    cr_assert_eq(life_read_all(&life, "old", 2, 0), 2u);
    life_put(&life, "old", 2, 30); /* a gap of many segments between two batches of a topic */
    cr_assert_eq(life_read_all(&life, "old", 1, 0), 5u);
    cr_assert_eq(life_read_all(&life, "old", 4, 0), 2u);
    again();
    life_verify(&life);
}

/* --------------------------------------------------------------------------------------------- how much */

Test(reading, max_entries_is_kept)
{
    life_put(&life, "t", 10, 20);
    life_put(&life, "t", 10, 20);
    uint32_t limits[] = {1, 2, 9, 10, 11, 19, 20, 2000};
    for (size_t i = 0; i < array_count(limits); i++) {
        struct reading r = {.name = "t", .from = 1, .max_entries = limits[i]};
        life_read(&life, &r);
        uint32_t want = limits[i] < 20 ? limits[i] : 20;
        cr_assert_eq(r.read.result, (int)want);
        cr_assert_eq(r.read.next_sequence, 1 + want);
        cr_assert(r.right);
        reading_free(&r);
    }
}

Test(reading, a_read_returns_2000_entries_at_most)
{
    life_put(&life, "t", 1500, 4);
    life_put(&life, "t", 1500, 4);
    struct reading r = {.name = "t", .from = 1};
    life_read(&life, &r);
    cr_assert_eq(r.read.result, 2000);
    cr_assert(r.right);
    reading_free(&r);
    struct reading none = {.name = "t", .from = 1, .max_entries = 2001};
    life_read(&life, &none);
    cr_assert_eq(none.read.result, -EINVAL);
    reading_free(&none);
}

Test(reading, max_bytes_is_kept_but_one_entry_comes_whatever_it_is)
{
    life_put(&life, "t", 6, 1000);
    uint32_t limits[] = {1, 999, 1000, 1999, 2000, 3500, 6000, 100000}, want[] = {1, 1, 1, 1, 2, 3, 6, 6};
    for (size_t i = 0; i < array_count(limits); i++) {
        struct reading r = {.name = "t", .from = 1, .max_bytes = limits[i]};
        life_read(&life, &r);
        cr_assert_eq(r.read.result, (int)want[i], "%u bytes: %d entries", limits[i], r.read.result);
        cr_assert(r.right);
        reading_free(&r);
    }
}

Test(reading, a_small_buffer_gives_as_many_entries_as_fit)
{
    life_put(&life, "t", 40, 1000);
    cr_assert_eq(life_read_all(&life, "t", 1, 16384), 40u);
    life_put(&life, "t", 2000, 0);
    cr_assert_eq(life_read_all(&life, "t", 1, 16384), 2040u);
}

Test(reading, an_entry_larger_than_the_buffer_comes_in_pieces)
{
    life_put(&life, "t", 1, 10);
    life_put(&life, "t", 1, 2000000);
    life_put(&life, "t", 3, 33333);
    uint32_t sizes[] = {16384, 65536, 70000, 1 << 20};
    for (size_t i = 0; i < array_count(sizes); i++) {
        cr_assert_eq(life_read_all(&life, "t", 1, sizes[i]), 5u);
        again();
    }
}

Test(reading, an_offset_into_an_entry_is_taken_as_it_is_asked)
{
    life_put(&life, "t", 2, 100000);
    uint8_t *whole = malloc(100000);
    entry_fill(whole, 100000, "t", 2);
    for (uint64_t offset = 4096; offset < 100000; offset += 4096 * 5) {
        struct reading r = {.name = "t", .from = 2, .entry_offset = offset, .buffer_bytes = 16384};
        struct run run;
        struct entry_record record;
        life_read(&life, &r);
        cr_assert_eq(r.read.result, 1);
        memcpy(&run, r.buffer, sizeof run);
        memcpy(&record, r.buffer + sizeof run, sizeof record);
        cr_assert(run.flags & RUN_PIECE);
        cr_assert_eq(run.entry_offset, offset);
        cr_assert_eq(run.entry_bytes, 100000u);
        cr_assert_arr_eq(r.buffer + sizeof run + PAYLOAD_ALIGN, whole + offset, record.length);
        reading_free(&r);
    }
    free(whole);
    uint64_t wrong[] = {1, 4095, 102400, UINT64_C(1) << 40};
    for (size_t i = 0; i < array_count(wrong); i++) {
        struct reading r = {.name = "t", .from = 2, .entry_offset = wrong[i]};
        life_read(&life, &r);
        cr_assert_eq(r.read.result, -EINVAL, "offset %llu: %d", (unsigned long long)wrong[i], r.read.result);
        reading_free(&r);
    }
}

Test(reading, every_run_says_when_and_in_which_epoch_it_was_committed)
{
    life_put(&life, "t", 1, 10);
    uint64_t first = life_stats(&life).epoch;
    again();
    life_put(&life, "t", 1, 10);
    for (uint64_t from = 1; from <= 2; from++) {
        struct reading r = {.name = "t", .from = from, .max_entries = 1};
        struct run run;
        life_read(&life, &r);
        memcpy(&run, r.buffer, sizeof run);
        cr_assert_gt(run.time_ns, UINT64_C(1600000000) * 1000000000);
        if (from == 2)
            cr_assert_gt(run.epoch, first);
        reading_free(&r);
    }
}

/* ---------------------------------------------------------------------------------------------- streams */

static void put_stream(const char *name, unsigned chunks, uint32_t entries, uint32_t bytes)
{
    struct stream stream = {.owner = &A};
    uint64_t from = life_next(&life, name);
    for (unsigned i = 0; i < chunks; i++) {
        struct sent *sent =
            SEND(&life, .name = name, .kind = WRITE_CHUNK, .owner = &A, .entries = entries, .bytes = bytes,
                 .from = from + i * entries, .stream = &stream, .first = i == 0, .last = i + 1 == chunks);
        for (unsigned turns = 0; sent->refused == -EAGAIN; turns++) {
            cr_assert_lt(turns, 20000u);
            life_turn(&life);
            life_again(sent);
        }
        cr_assert_eq(sent->refused, 0);
        if (i % 4 == 3)
            life_put(&life, "between", 1, 300000);
    }
    life_settle(&life);
    life_committed(&life, name, chunks * entries);
}

Test(reading, streams_are_read_from_any_entry_over_segments)
{
    put_stream("s", 30, 3, 90000);
    life_put(&life, "s", 2, 10);
    put_stream("s", 5, 7, 1000);
    life_quiet(&life);
    cr_assert_gt(life_stats(&life).segments, 2u);
    uint64_t next = life_next(&life, "s");
    for (unsigned round = 0; round < 2; round++) {
        uint64_t from[] = {1, 2, 4, 44, 45, 89, 90, 91, 92, 93, 100, next - 1};
        for (size_t i = 0; i < array_count(from); i++)
            cr_assert_eq(life_read_all(&life, "s", from[i], 65536u * (uint32_t)(1 + i % 3)), next - from[i]);
        again();
    }
    life_verify(&life);
}

Test(reading, two_readers_of_two_streams_do_not_disturb_each_other)
{
    put_stream("one", 12, 2, 50000);
    put_stream("two", 12, 2, 60000);
    uint64_t at[2] = {1, 1};
    while (at[0] < 25 || at[1] < 25) {
        struct reading r[2] = {{.name = "one", .from = at[0], .buffer_bytes = 131072},
                               {.name = "two", .from = at[1], .buffer_bytes = 131072}};
        for (unsigned i = 0; i < 2; i++)
            life_read_begin(&life, &r[i]);
        for (unsigned i = 0; i < 2; i++) {
            life_read_end(&life, &r[i]);
            cr_assert(at[i] == 25 || (r[i].right && r[i].read.result > 0));
            at[i] = r[i].read.next_sequence;
            reading_free(&r[i]);
        }
    }
}

/* -------------------------------------------------------------------------------------------- the index */

static void no_sidecars(void)
{
    disk_scan(&life, &disk);
    for (size_t i = 0; i + 1 < disk.segment_count; i++) {
        char name[40];
        snprintf(name, sizeof name, "%.8s.index", disk.segments[i].name);
        if (file_there(&life, name))
            file_delete(&life, name);
    }
}

Test(reading, a_rebuilt_index_gives_what_the_sidecar_gave)
{
    many_segments();
    put_stream("s", 10, 2, 70000);
    life_quiet(&life);
    cr_assert_gt(files_with(&life, ".index"), 3u, "sidecars are written in the background");
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
    life_crash(&life);
    no_sidecars();
    life_start(&life);
    life_verify(&life);
    cr_assert(life_said(&life, "rebuilt"));
}

Test(reading, a_damaged_sidecar_is_ignored)
{
    many_segments();
    life_crash(&life);
    disk_scan(&life, &disk);
    for (size_t i = 0; i + 1 < disk.segment_count; i++) {
        char name[40];
        snprintf(name, sizeof name, "%.8s.index", disk.segments[i].name);
        uint64_t size = file_there(&life, name) ? file_size_of(&life, name) : 0;
        if (size == 0)
            continue;
        switch (i % 4) {
        case 0:
            file_flip(&life, name, size - 3, 1);
            break;
        case 1:
            file_flip(&life, name, 57, 7);
            break;
        case 2:
            file_cut(&life, name, size / 2);
            break;
        default:
            file_cut(&life, name, 0);
        }
    }
    life_start(&life);
    life_verify(&life);
    cr_assert(life_said(&life, "rebuilt"));
}

Test(reading, g15_a_sidecar_of_another_segment_is_ignored)
{
    many_segments();
    life_crash(&life);
    disk_scan(&life, &disk);
    char one[40], two[40];
    snprintf(one, sizeof one, "%.8s.index", disk.segments[0].name);
    snprintf(two, sizeof two, "%.8s.index", disk.segments[1].name);
    file_copy(&life, one, &life, two);
    life_start(&life);
    life_verify(&life);
}

Test(reading, g15_a_sidecar_of_another_life_is_ignored)
{
    many_segments();
    life_crash(&life);
    disk_scan(&life, &disk);
    unsigned fields[] = {offsetof(struct index_header, epoch_nonce), offsetof(struct index_header, store_id),
                         offsetof(struct index_header, segment), offsetof(struct index_header, end)};
    for (size_t i = 0; i < array_count(fields); i++) {
        char name[40];
        struct index_header header;
        snprintf(name, sizeof name, "%.8s.index", disk.segments[i].name);
        file_peek(&life, name, 0, &header, sizeof header);
        ((uint8_t *)&header)[fields[i]] ^= 1;
        header.crc = crc32c(0, &header, offsetof(struct index_header, crc));
        file_poke(&life, name, 0, &header, sizeof header);
    }
    life_start(&life);
    life_verify(&life);
    for (size_t i = 0; i < array_count(fields); i++) {
        char words[40];
        snprintf(words, sizeof words, "index of segment %llu rebuilt",
                 (unsigned long long)disk.segments[i].header.number);
        cr_assert(life_said(&life, words), "byte %u is not looked at; said:\n%s", fields[i], life.said);
    }
}

Test(reading, g16_a_sidecar_with_made_up_numbers_and_right_sums_is_ignored)
{
    many_segments();
    life_crash(&life);
    disk_scan(&life, &disk);
    char name[40];
    snprintf(name, sizeof name, "%.8s.index", disk.segments[0].name);
    for (unsigned at = 12; at < 64; at += at == 12 ? 20 : 4) {
        struct life copy;
        struct index_header header;
        uint32_t huge = UINT32_MAX;
        life_copy(&copy, &life);
        file_peek(&copy, name, 0, &header, sizeof header);
        memcpy((uint8_t *)&header + at, &huge, sizeof huge);
        header.crc = crc32c(0, &header, offsetof(struct index_header, crc));
        file_poke(&copy, name, 0, &header, sizeof header);
        life_start(&copy);
        cr_assert_eq(life_read_all(&copy, "old", 1, 0), 3u, "byte %u", at);
        life_remove(&copy);
    }
}

Test(reading, errors_while_a_sidecar_is_written_or_read_are_harmless)
{
    many_segments();
    uint64_t at = 1;
    enum io_kind kinds[] = {IO_CREATE, IO_WRITE, IO_RENAME};
    for (size_t i = 0; i < array_count(kinds); i++) {
        life_quiet(&life);
        io_fault_set(life.io, kinds[i],
                     &(struct fault){.action = FAULT_FAIL_BEFORE,
                                     .error = EIO,
                                     .nth = 1,
                                     .only_background = true,
                                     .from_then_on = true});
        life_put(&life, "bulk", 1, 2000000);
        life_put(&life, "bulk", 1, 2000000);
        for (unsigned turn = 0; turn < 50; turn++)
            life_turn(&life);
        io_fault_clear(life.io, kinds[i]);
        life.ahead += 2 * SECOND;
        life_quiet(&life);
        at++;
    }
    life_verify(&life);
    again();
    io_fault_set(life.io, IO_OPEN, &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EMFILE, .nth = 1});
    struct reading r = {.name = "old", .from = 1};
    life_read(&life, &r);
    cr_assert(r.read.result == 3 || r.read.result == -EMFILE, "%d", r.read.result);
    reading_free(&r);
    life_verify(&life);
}

/* From the n-th op of the kind on that a read needs, all of them fail. */
static void index_fails_at(enum io_kind kind, uint64_t nth, int error)
{
    many_segments();
    life_stop(&life);
    life_start(&life);
    io_fault_set(
        life.io, kind,
        &(struct fault){.action = FAULT_FAIL_BEFORE, .error = error, .nth = nth, .from_then_on = true});
    struct reading r = {.name = "old", .from = 1};
    life_read(&life, &r);
    cr_assert_eq(r.read.result, -error, "%d", r.read.result);
    reading_free(&r);
    io_fault_clear(life.io, kind);
    life_verify(&life);
}

Test(reading, a_segment_that_cannot_be_opened_is_told_and_the_next_read_works)
{
    index_fails_at(IO_OPEN, 1, EMFILE);
}

Test(reading, a_sidecar_that_cannot_be_opened_is_told_and_the_next_read_works)
{
    index_fails_at(IO_OPEN, 2, EMFILE);
}

Test(reading, a_header_that_cannot_be_read_is_told_and_the_next_read_works)
{
    index_fails_at(IO_READ, 1, EIO);
}

Test(reading, a_failed_read_is_told_and_the_next_one_works)
{
    many_segments();
    again();
    life_verify(&life); /* the index is in memory */
    io_fault_set(life.io, IO_READ,
                 &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = 1, .from_then_on = true});
    unsigned failed = 0;
    const char *names[] = {"old", "often", "bulk", "middle"};
    for (size_t i = 0; i < array_count(names); i++) {
        struct reading r = {.name = names[i], .from = 1};
        life_read(&life, &r);
        cr_assert(r.read.result == -EIO || (r.read.result > 0 && r.right), "%d", r.read.result);
        failed += r.read.result == -EIO;
        reading_free(&r);
    }
    cr_assert_gt(failed, 0u);
    io_fault_clear(life.io, IO_READ);
    life_verify(&life);
}

/* ----------------------------------------------------------------------------------------------- damage */

/* The group that holds the first frame of the topic with this first sequence. */
static const struct disk_group *group_of(uint64_t number)
{
    for (size_t i = 0; i < disk.group_count; i++)
        if (disk.groups[i].header.number == number)
            return &disk.groups[i];
    cr_assert_fail("no group %llu", (unsigned long long)number);
    return NULL;
}

Test(reading, g27_a_damaged_payload_is_ebadmsg_with_its_place_and_everything_else_is_read)
{
    life_put(&life, "t", 2, 100);
    struct sent *sent =
        SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 2, .bytes = 100);
    life_settle(&life);
    life_committed(&life, "t", 2);
    uint64_t group = sent->write.group;
    life_put(&life, "t", 2, 100);
    life_put(&life, "u", 1, 100);
    life_put(&life, "bulk", 1, 3000000);
    life_put(&life, "bulk", 1, 3000000);
    life_quiet(&life);
    life_stop(&life);
    disk_scan(&life, &disk);
    const struct disk_group *g = group_of(group);
    file_flip(&life, g->file, g->header.offset + g->header.used - 20, 3);
    life_start(&life); /* a checkpoint vouches for it: nothing reads it now */
    struct reading before = {.name = "t", .from = 1};
    life_read(&life, &before);
    cr_assert_eq(before.read.result, 2, "what lies before the damage comes first");
    cr_assert(before.right);
    reading_free(&before);
    for (unsigned i = 0; i < 2; i++) {
        struct reading r = {.name = "t", .from = 3};
        life_read(&life, &r);
        cr_assert_eq(r.read.result, -EBADMSG);
        cr_assert_eq(r.read.used, 0u);
        reading_free(&r);
    }
    cr_assert(life_said(&life, "topic \"t\"") && life_said(&life, "sequence 3") &&
                  life_said(&life, g->file) && life_said(&life, "offset"),
              "%s", life.said);
    cr_assert_gt(life_stats(&life).damaged_reads, 0u);
    cr_assert_eq(life_read_all(&life, "t", 5, 0), 2u);
    cr_assert_eq(life_read_all(&life, "u", 1, 0), 1u);
    cr_assert_eq(life_read_all(&life, "bulk", 1, 0), 2u);
    life_put(&life, "t", 1, 10);
    cr_assert_eq(life_read_all(&life, "t", 5, 0), 3u);
}

Test(reading, g27_no_flipped_bit_of_a_closed_segment_is_ever_returned_as_data)
{
    life_put(&life, "t", 3, 40);
    life_put(&life, "u", 1, 500);
    life_put(&life, "t", 1, 60);
    life_put(&life, "bulk", 1, 3000000);
    life_put(&life, "bulk", 1, 3000000);
    life_quiet(&life);
    life_stop(&life);
    disk_scan(&life, &disk);
    uint64_t end = disk.groups[2].header.offset + disk.groups[2].header.length;
    unsigned noticed = 0, step = 0;
    for (uint64_t at = BLOCK_MIN; at < end; at += 97, step++) {
        if (at % BLOCK_MIN > disk.groups[0].header.used + 400)
            continue;
        struct life copy = {0};
        life_copy(&copy, &life);
        file_flip(&copy, disk.groups[0].file, at, step % 8);
        life_start(&copy);
        const char *names[] = {"t", "u"};
        for (unsigned i = 0; i < 2; i++) {
            uint64_t next = life_next(&copy, names[i]);
            for (uint64_t from = 1; from < next; from++) {
                struct reading r = {.name = names[i], .from = from};
                life_read(&copy, &r);
                cr_assert(r.read.result == -EBADMSG || (r.read.result > 0 && r.right), "byte %llu: %d",
                          (unsigned long long)at, r.read.result);
                noticed += r.read.result == -EBADMSG;
                reading_free(&r);
            }
        }
        life_remove(&copy);
    }
    cr_assert_gt(noticed, 10u);
}

Test(reading, g13_damage_that_the_index_cannot_pass_is_ebadmsg_with_its_place)
{
    many_segments();
    life_stop(&life);
    disk_scan(&life, &disk);
    no_sidecars();
    const struct disk_group *g = &disk.groups[1];
    file_flip(&life, g->file, g->header.offset + 40,
              3); /* its header: the index of this segment cannot be built */
    life_start(&life);
    struct reading r = {.name = "old", .from = 1};
    life_read(&life, &r);
    cr_assert_eq(r.read.result, -EBADMSG);
    reading_free(&r);
    cr_assert(life_said(&life, g->file) && life_said(&life, "offset"), "%s", life.said);
    cr_assert_eq(life_read_all(&life, "young", 1, 0), 1u);
    life_put(&life, "young", 2, 10);
    cr_assert_eq(life_read_all(&life, "young", 1, 0), 3u);
}

Test(reading, a_closed_segment_that_vanished_is_ebadmsg_and_the_rest_is_read)
{
    many_segments();
    life_stop(&life);
    disk_scan(&life, &disk);
    life_start(&life);
    file_delete(&life, disk.segments[0].name);
    struct reading r = {.name = "old", .from = 1};
    life_read(&life, &r);
    cr_assert_eq(r.read.result, -EBADMSG);
    reading_free(&r);
    cr_assert_eq(life_read_all(&life, "young", 1, 0), 1u);
}

/* ---------------------------------------------------------------------------------------- beside writes */

Test(reading, reads_while_writing_see_whole_batches_in_order)
{
    uint64_t seen = 1;
    for (unsigned i = 0; i < 40; i++) {
        struct sent *sent =
            SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 5, .bytes = 30000);
        for (unsigned turns = 0; sent->refused == -EAGAIN; turns++) {
            cr_assert_lt(turns, 20000u);
            life_turn(&life);
            life_again(sent);
        }
        if (i > 0) {
            struct reading r = {.name = "t", .from = seen, .max_entries = 7};
            life_read_begin(&life, &r);
            life_read_end(&life, &r);
            cr_assert_geq(r.read.result, 0);
            cr_assert(r.read.result == 0 || r.right);
            cr_assert_eq((r.read.end_sequence - 1) % 5, 0u, "half a batch is visible");
            seen = r.read.next_sequence;
            reading_free(&r);
        }
        life_settle(&life);
        life_committed(&life, "t", 5);
    }
    cr_assert_gt(seen, 100u);
    life_verify(&life);
}

Test(reading, readers_at_the_tail_do_not_touch_the_disk)
{
    life_put(&life, "t", 3, 1000);
    life_quiet(&life);
    uint64_t reads = io_fault_count(life.io, IO_READ);
    cr_assert_eq(life_read_all(&life, "t", 1, 0), 3u);
    cr_assert_eq(io_fault_count(life.io, IO_READ), reads);
    cr_assert_gt(life_stats(&life).read_cache_hits, 0u);
}

Test(reading, commits_go_on_while_a_read_waits_for_the_disk)
{
    many_segments();
    again();
    life_quiet(&life);
    io_fault_hold(life.io, IO_READ, true);
    struct reading r = {.name = "old", .from = 1};
    life_read_begin(&life, &r);
    life_until_held(&life, IO_READ, 1);
    for (unsigned i = 0; i < 5; i++)
        life_put(&life, "young", 1, 10);
    cr_assert(!r.done);
    io_fault_hold(life.io, IO_READ, false);
    io_fault_release(life.io, IO_READ, 10);
    life_read_end(&life, &r);
    cr_assert_eq(r.read.result, 3);
    reading_free(&r);
}

Test(reading, many_reads_at_once_are_all_answered)
{
    many_segments();
    again();
    struct reading r[40];
    const char *names[] = {"old", "often", "bulk", "middle", "young"};
    for (unsigned i = 0; i < array_count(r); i++) {
        r[i] = (struct reading){.name = names[i % 5], .from = 1 + i % 2, .buffer_bytes = 1 << 20};
        if (i % 5 == 4)
            r[i].from = 1;
        life_read_begin(&life, &r[i]);
    }
    for (unsigned i = 0; i < array_count(r); i++) {
        life_read_end(&life, &r[i]);
        cr_assert(r[i].read.result > 0 && r[i].right, "read %u of %s: %d", i, r[i].name, r[i].read.result);
        reading_free(&r[i]);
    }
}

Test(reading, a_read_of_a_failed_log_is_answered_or_dropped_but_harms_nothing)
{
    life_put(&life, "t", 3, 10);
    life.plans[IO_FLUSH] = (struct plan){.failing = 1, .error = -EIO};
    SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 10);
    life_settle(&life);
    cr_assert_not_null(log_failed(life.log));
    struct reading r = {.name = "t", .from = 1};
    life_read_begin(&life, &r);
    for (unsigned i = 0; i < 10; i++)
        life_turn(&life);
    cr_assert(!r.done || r.read.result != 1);
    life_crash(&life);
    reading_free(&r);
}

Test(reading, thousands_of_topics_are_all_found)
{
    life_remove(&life);
    life_make(&life);
    life_start(&life);
    char name[32];
    for (unsigned i = 0; i < 3000; i++) {
        snprintf(name, sizeof name, "topic %u", i % 1000);
        struct sent *sent = SEND(&life, .name = name, .kind = WRITE_APPEND, .entries = 1, .bytes = 1000,
                                 .from = 1 + i / 1000);
        for (unsigned turns = 0; sent->refused == -EAGAIN; turns++) {
            life_turn(&life);
            life_again(sent);
        }
        cr_assert_eq(sent->refused, 0);
    }
    life_settle(&life);
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < 1000; i += 37) {
            snprintf(name, sizeof name, "topic %u", i);
            cr_assert_eq(life_read_all(&life, name, 1, 0), 3u);
            cr_assert_eq(life_read_all(&life, name, 3, 0), 1u);
        }
        again();
    }
}
