/* A broker that breaks the protocol: the connection ends with words, nothing crashes. Also the arena's
 * bookkeeping by itself. */
#include "fake.h"

#include "../../libclient/src/handle.h"

#include <criterion/criterion.h>
#include <sys/socket.h>

static struct fake fake;
static walrus *handle;

static void begin(void)
{
    fake_start(&fake);
    handle = CONNECT(&fake, .queue_entries = 8, .window_bytes = MIN_WINDOW_BYTES);
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(hostile, .init = begin, .fini = end);

static int append(void)
{
    return walrus_append_for_topic(handle, "t", "entry", 5, NULL, NULL);
}

/* The connection was ended because of the broker: what is in flight is unknown, everything after is
 * refused, with words. */
static void expect_ended(const char *part_of_words)
{
    cr_assert(fd_readable(handle));
    cr_assert_eq(append(), -EPROTO);
    cr_assert_not_null(strstr(walrus_error(handle), part_of_words), "%s", walrus_error(handle));
    cr_assert_not_null(strstr(walrus_error(handle), "ended"), "%s", walrus_error(handle));
    struct walrus_completion c;
    while (walrus_in_flight(handle) > 0) {
        cr_assert_eq(walrus_reap(handle, &c, 1), 1);
        cr_assert_eq(c.result, -ECONNRESET);
    }
    cr_assert_eq(walrus_reap(handle, &c, 1), -EPROTO);
}

Test(hostile, a_wild_completion_index)
{
    cr_assert_eq(append(), 0);
    fake_rule(&fake, (struct fake_rule){.op = OP_APPEND, .times = 1, .result = FAKE_WILD_TAIL});
    cr_assert_eq(append(), -ECONNRESET);
    expect_ended("completion index");
}

Test(hostile, a_completion_index_that_goes_back)
{
    cr_assert_eq(append(), 0);
    fake_pause(&fake);
    word_store_release(&fake.words->cq_tail, word_load(&fake.words->cq_tail) - 1);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), -EPROTO);
    expect_ended("completion index");
}

Test(hostile, an_answer_nobody_asked_for)
{
    fake_rule(&fake, (struct fake_rule){.op = OP_APPEND, .times = 1, .result = FAKE_NOT_ASKED});
    cr_assert_eq(append(), -ECONNRESET);
    expect_ended("not asked");
}

Test(hostile, the_same_answer_twice)
{
    fake_rule(&fake, (struct fake_rule){.op = OP_APPEND, .times = 1, .result = FAKE_TWICE});
    cr_assert_eq(append(), 0);
    fake_pause(&fake);
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), -EPROTO);
    expect_ended("not asked");
}

Test(hostile, a_user_data_beyond_the_requests)
{
    fake_pause(&fake);
    fake_post(&fake, &(struct completion){.user_data = 0xffffffff});
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), -EPROTO);
    expect_ended("not asked");
}

Test(hostile, a_result_that_is_no_errno)
{
    fake_rule(&fake, (struct fake_rule){.op = OP_APPEND, .times = 1, .result = INT32_MIN});
    cr_assert_eq(append(), -ECONNRESET);
    expect_ended("not asked");
}

Test(hostile, a_submission_index_that_cannot_be)
{
    walrus_topic *topic = open_topic(handle, "t");
    fake_pause(&fake);
    word_store_release(&fake.words->sq_head, word_load(&fake.words->sq_head) + 1000);
    int code = 0;
    for (int i = 0; i < 8 && code == 0; i++) {
        walrus_batch *batch;
        code = walrus_batch_begin(topic, &batch);
        if (code == 0)
            code = walrus_batch_add(batch, "x", 1);
        if (code == 0)
            code = walrus_batch_submit(batch, NULL);
    }
    /* The library looks at the index only when its ring looks full; credit says that it is not before. */
    cr_assert(code == -EAGAIN || code == -EPROTO, "%d", code);
    fake_die(&fake);
}

Test(hostile, a_message_on_the_socket)
{
    cr_assert_eq(append(), 0);
    fake_pause(&fake);
    cr_assert_eq(send(fake.socket, "boo", 3, MSG_NOSIGNAL), 3);
    cr_assert(fd_readable(handle));
    struct walrus_completion c;
    cr_assert_eq(walrus_reap(handle, &c, 1), -EPROTO);
    expect_ended("message");
}

Test(hostile, asynchronous_batches_in_flight_are_unknown)
{
    walrus_topic *topic = open_topic(handle, "t");
    fake_pause(&fake);
    for (int i = 0; i < 3; i++) {
        walrus_batch *batch;
        cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
        cr_assert_eq(walrus_batch_add(batch, "x", 1), 0);
        cr_assert_eq(walrus_batch_submit(batch, NULL), 0);
    }
    word_store_release(&fake.words->cq_tail, 12345);
    cr_assert_eq(walrus_wait(handle, 3, -1), 0);
    expect_ended("completion index");
}

/* --------------------------------------------------------------------------------------- reads */

static uint32_t spoil_at; /* which word of the run is overwritten */
static uint64_t spoil_with;

static void spoil_run(struct fake *f, struct completion *c)
{
    uint8_t *run = f->window + (c->window_at & (f->sizes.window_bytes - 1));
    uint32_t value = (uint32_t)spoil_with;
    memcpy(run + spoil_at, &value, sizeof value);
}

static void spoil_run64(struct fake *f, struct completion *c)
{
    memcpy(f->window + (c->window_at & (f->sizes.window_bytes - 1)) + spoil_at, &spoil_with,
           sizeof spoil_with);
}

static void spoil_at_word(struct fake *f, struct completion *c)
{
    (void)f;
    c->window_at = spoil_with;
}

static void spoil_bytes(struct fake *f, struct completion *c)
{
    (void)f;
    c->window_bytes = (uint32_t)spoil_with;
}

static void spoil_result(struct fake *f, struct completion *c)
{
    (void)f;
    c->result = (int32_t)spoil_with;
}

/* Reads topic "t" (two entries of 5 bytes) while `spoil` has the last word. */
static void read_spoiled(void (*spoil)(struct fake *, struct completion *), uint32_t at, uint64_t value,
                         const char *words)
{
    struct fake other = {.spoil = spoil};
    spoil_at = at;
    spoil_with = value;
    fake_start(&other);
    walrus *victim = CONNECT(&other, .window_bytes = MIN_WINDOW_BYTES);
    for (int i = 0; i < 2; i++)
        cr_assert_eq(walrus_append_for_topic(victim, "t", "entry", 5, NULL, NULL), 0);
    walrus_entries *entries;
    int code = walrus_batch_read_for_topic(victim, "t", 1, NULL, &entries);
    cr_assert_eq(code, -EPROTO, "at %u value %llx: %d", at, (unsigned long long)value, code);
    cr_assert_null(entries);
    cr_assert_not_null(strstr(walrus_error(victim), words), "%s", walrus_error(victim));
    cr_assert_eq(walrus_append_for_topic(victim, "t", "x", 1, NULL, NULL), -EPROTO);
    walrus_close(victim);
    fake_stop(&other);
}

Test(hostile, window_places_that_cannot_be)
{
    uint64_t places[] = {16 << 20, 1, 8, UINT64_MAX, MIN_WINDOW_BYTES - 16, MIN_WINDOW_BYTES};
    for (size_t i = 0; i < array_count(places) - 1; i++)
        read_spoiled(spoil_at_word, 0, places[i], "outside the window");
    uint64_t sizes[] = {UINT32_MAX, MIN_WINDOW_BYTES + 16, 7};
    for (size_t i = 0; i < array_count(sizes); i++)
        read_spoiled(spoil_bytes, 0, sizes[i], "outside the window");
    read_spoiled(spoil_bytes, 0, 0, "brought none");
    read_spoiled(spoil_bytes, 0, 32, "less than a run");
    read_spoiled(spoil_result, 0, 0, "bytes but no entries");
}

/* The user still reads what lies there. */
Test(hostile, g27_an_answer_that_lies_over_entries_that_are_held)
{
    struct fake other = {.spoil = NULL};
    fake_start(&other);
    walrus *victim = CONNECT(&other, .window_bytes = MIN_WINDOW_BYTES);
    for (int i = 0; i < 2; i++)
        cr_assert_eq(walrus_append_for_topic(victim, "t", "entry", 5, NULL, NULL), 0);
    walrus_entries *held, *entries;
    cr_assert_gt(walrus_batch_read_for_topic(victim, "t", 1, NULL, &held), 0);
    fake_pause(&other);
    other.spoil = spoil_at_word;
    spoil_with = 0; /* where the first answer lies */
    fake_resume(&other);
    cr_assert_eq(walrus_batch_read_for_topic(victim, "t", 1, NULL, &entries), -EPROTO);
    cr_assert_not_null(strstr(walrus_error(victim), "outside the window"), "%s", walrus_error(victim));
    walrus_entries_release(held);
    walrus_close(victim);
    fake_stop(&other);
}

Test(hostile, runs_that_cannot_be)
{
    read_spoiled(spoil_run, offsetof(struct run, bytes), 0, "size of a run");
    read_spoiled(spoil_run, offsetof(struct run, bytes), 88, "size of a run");
    read_spoiled(spoil_run, offsetof(struct run, bytes), 1 << 20, "size of a run");
    read_spoiled(spoil_run, offsetof(struct run, bytes), 64, "payload larger");
    read_spoiled(spoil_run, offsetof(struct run, entries), 0, "number of entries");
    read_spoiled(spoil_run, offsetof(struct run, entries), UINT32_MAX, "number of entries");
    read_spoiled(spoil_run, offsetof(struct run, entries), 3, "payload larger");
    read_spoiled(spoil_run, offsetof(struct run, entries), 100, "payload larger");
    read_spoiled(spoil_run, offsetof(struct run, payload_bytes), UINT32_MAX, "payload larger");
    read_spoiled(spoil_run, offsetof(struct run, payload_bytes), 0, "longer than its run");
    read_spoiled(spoil_run64, offsetof(struct run, first_sequence), 0, "does not rise");
    read_spoiled(spoil_run64, offsetof(struct run, first_sequence), UINT64_MAX, "does not rise");
    read_spoiled(spoil_run64, offsetof(struct run, first_sequence), 2,
                 "does not rise"); /* the second run is 2, too */
    read_spoiled(spoil_run, sizeof(struct run), UINT32_MAX,
                 "longer than its run"); /* length of the first record */
    read_spoiled(spoil_run, sizeof(struct run), 17, "longer than its run");
    read_spoiled(spoil_run, sizeof(struct run) + 4, 0x0100, "a piece among"); /* its flags */
    read_spoiled(spoil_run, offsetof(struct run, flags), RUN_PIECE,
                 "does not follow"); /* entry_bytes 0, 5 bytes in it */
}

/* ---------------------------------------------------------------------------------- runs alone */

static _Alignas(16) uint8_t window[4096];

/* One run of one entry or piece behind what is there. Returns the new length. */
static uint32_t put(uint32_t at, struct run run, struct entry_record record)
{
    run.entries = 1;
    run.payload_bytes = (uint32_t)align_up(record.length, 16);
    run.bytes = (uint32_t)sizeof run + 16 + run.payload_bytes;
    memcpy(window + at, &run, sizeof run);
    memcpy(window + at + sizeof run, &record, sizeof record);
    memset(window + at + sizeof run + 16, (int)run.first_sequence, run.payload_bytes);
    return at + run.bytes;
}

static int take(uint32_t length, struct assembly *assembly, uint32_t max_entries)
{
    struct walrus_entries *entries = walrus__entries_new(handle);
    struct runs runs = {.bytes = window, .length = length, .asked = 1, .max_entries = max_entries};
    struct error err = {.code = 0};
    int code = walrus__runs_read(&runs, entries, assembly, &err);
    if (code == 0)
        code = (int)entries->count;
    else
        cr_assert_neq(err.text[0], '\0');
    walrus__entries_free(entries);
    return code;
}

static int take_pieces(struct run first, uint32_t first_length, struct run second, uint32_t second_length)
{
    struct assembly assembly = {.buffer = NULL};
    first.flags |= RUN_PIECE;
    uint32_t length = put(0, first, (struct entry_record){.length = first_length});
    length = put(length, second, (struct entry_record){.length = second_length});
    int code = take(length, &assembly, 10);
    free(assembly.buffer);
    return code;
}

Test(hostile, pieces_that_cannot_be)
{
    struct run piece = {.first_sequence = 1, .entry_bytes = 64},
               rest = {.first_sequence = 1, .entry_bytes = 64, .flags = RUN_PIECE};
    rest.entry_offset = 32;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), 1); /* a good one */
    rest.entry_offset = 16;
    cr_assert_eq(take_pieces(piece, 32, rest, 48), 1); /* it may overlap */
    cr_assert_eq(take_pieces(piece, 32, rest, 16), -EPROTO);
    cr_assert_eq(take_pieces(piece, 32, rest, 8), -EPROTO);
    cr_assert_eq(take_pieces(piece, 32, rest, 49), -EPROTO);
    rest.entry_offset = 48;
    cr_assert_eq(take_pieces(piece, 32, rest, 16), -EPROTO);
    rest.entry_offset = UINT64_MAX;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), -EPROTO);
    rest.entry_offset = 32;
    rest.entry_bytes = 65;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), -EPROTO);
    rest.entry_bytes = 64;
    rest.first_sequence = 2;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), -EPROTO);
    rest.first_sequence = 1;
    rest.flags = 0;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), -EPROTO);
    rest.flags = RUN_PIECE;
    piece.entry_offset = 16;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), -EPROTO);
    piece.entry_offset = 0;
    piece.entry_bytes = UINT64_MAX;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), -EPROTO);
    piece.entry_bytes = 31;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), -EPROTO);
    piece.entry_bytes = 32;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), -EPROTO); /* the same sequence again */
    rest.first_sequence = 2;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), -EPROTO); /* begins in the middle */
    rest.entry_offset = 0;
    cr_assert_eq(take_pieces(piece, 32, rest, 32),
                 1); /* the begin of the next: that one is for the next read */
    rest.entry_bytes = 1 << 30;
    cr_assert_eq(take_pieces(piece, 32, rest, 32), 1);
    struct run whole = {.first_sequence = 2};
    cr_assert_eq(take_pieces(piece, 32, whole, 0), 2);
}

Test(hostile, no_more_entries_than_were_asked_for)
{
    uint32_t length = 0;
    for (uint64_t i = 1; i <= 5; i++)
        length = put(length, (struct run){.first_sequence = i}, (struct entry_record){.length = (uint32_t)i});
    struct assembly assembly = {.buffer = NULL};
    cr_assert_eq(take(length, &assembly, 5), 5);
    cr_assert_eq(take(length, &assembly, 4), -EPROTO);
    cr_assert_eq(take(length - 16, &assembly, 5), -EPROTO);
    cr_assert_eq(take(0, &assembly, 5), 0);
}

Test(hostile, g16_runs_of_noise_never_crash)
{
    uint64_t seed = 88172645463325252ull;
    for (int round = 0; round < 100000; round++) {
        uint32_t length = 0;
        for (uint64_t i = 1; i <= 4; i++)
            length = put(length,
                         (struct run){.first_sequence = i,
                                      .flags = i > 2 ? RUN_PIECE : 0,
                                      .entry_bytes = i > 2 ? 40 : 0,
                                      .entry_offset = i == 4 ? 20 : 0},
                         (struct entry_record){.length = 20});
        for (int k = 0; k < 3; k++) { /* a few words are something else */
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            uint32_t value = (seed >> 40 & 3) == 0 ? (uint32_t)seed : (uint32_t)(seed & 0x7f);
            memcpy(window + (seed >> 32) % (length / 4) * 4, &value, sizeof value);
        }
        struct assembly assembly = {.buffer = NULL};
        int code = take(length, &assembly, 3);
        if (code != -EPROTO && code != -ENOMEM && (code < 0 || code > 3))
            cr_assert_fail("%d", code);
        free(assembly.buffer);
    }
}

/* -------------------------------------------------------------------------------------- topics */

Test(hostile, topic_records_that_cannot_be)
{
    static const struct {
        void (*spoil)(struct fake *, struct completion *);
        uint32_t at;
        uint64_t value;
    } cases[] = {
        {spoil_run, offsetof(struct topic_record, bytes), 0},
        {spoil_run, offsetof(struct topic_record, bytes), 7},
        {spoil_run, offsetof(struct topic_record, bytes), 1 << 20},
        {spoil_run, offsetof(struct topic_record, name_bytes), 0},
        {spoil_run, offsetof(struct topic_record, name_bytes), 300},
        {spoil_run, offsetof(struct topic_record, name_bytes), UINT32_MAX},
        {spoil_run64, offsetof(struct topic_record, id), 0},
        {spoil_run64, sizeof(struct topic_record), 0}, /* control characters in the name */
        {spoil_at_word, 0, UINT64_MAX},
        {spoil_bytes, 0, UINT32_MAX},
    };
    for (size_t i = 0; i < array_count(cases); i++) {
        struct fake other = {.spoil = cases[i].spoil};
        spoil_at = cases[i].at;
        spoil_with = cases[i].value;
        fake_start(&other);
        walrus *victim = CONNECT(&other, .window_bytes = MIN_WINDOW_BYTES);
        cr_assert_eq(walrus_append_for_topic(victim, "t", "entry", 5, NULL, NULL), 0);
        struct walrus_topic_info info = {.size = sizeof info};
        cr_assert_eq(walrus_next_topic(victim, &info), -EPROTO, "case %zu", i);
        walrus_close(victim);
        fake_stop(&other);
    }
}

/* --------------------------------------------------------------------------------------- arena */

Test(arena, extents_merge_again_whatever_the_order)
{
    struct arena arena;
    cr_assert_eq(walrus__arena_init(&arena, 4096, 1 << 20, 64), 0);
    uint32_t owned[64], sizes[64], count = 0, seed = 1, bytes;
    for (int step = 0; step < 50000; step++) {
        seed = seed * 1103515245 + 12345;
        uint32_t r = seed >> 8;
        uint32_t largest = walrus__arena_largest(&arena, &bytes);
        if (count < 64 && (r & 1) == 0 && largest != NO_EXTENT) {
            uint32_t want = 1 + r % 40000;
            want = want < bytes ? want : bytes;
            owned[count] = walrus__arena_take(&arena, largest, want);
            sizes[count] = (uint32_t)align_up(want, ARENA_GRAIN);
            count++;
        } else if (count > 0 && (r & 6) == 0) {
            uint32_t i = r % count;
            uint32_t now = walrus__arena_grow(&arena, owned[i], sizes[i] + r % 5000);
            cr_assert_geq(now, sizes[i]);
            sizes[i] = now;
        } else if (count > 0 && (r & 6) == 2) {
            uint32_t i = r % count;
            sizes[i] = (uint32_t)align_up(1 + sizes[i] / 2, ARENA_GRAIN);
            walrus__arena_shrink(&arena, owned[i], sizes[i]);
        } else if (count > 0) {
            uint32_t i = r % count;
            walrus__arena_give_back(&arena, owned[i]);
            owned[i] = owned[--count];
            sizes[i] = sizes[count];
        }
        uint32_t taken = 0;
        for (uint32_t i = 0; i < count; i++) {
            const struct extent *e = &arena.extents[owned[i]];
            if (e->bytes != sizes[i] || e->free)
                cr_assert_fail("extent %u", i);
            taken += e->bytes;
            if (step % 64 == 0) {
                for (uint32_t k = 0; k < i; k++) {
                    const struct extent *f = &arena.extents[owned[k]];
                    if (e->offset < f->offset + f->bytes && f->offset < e->offset + e->bytes)
                        cr_assert_fail("extents %u and %u overlap", i, k);
                }
            }
        }
        uint32_t nobodys = 0;
        for (uint32_t i = arena.first_free; i != UINT32_MAX; i = arena.extents[i].next)
            nobodys += arena.extents[i].bytes;
        if (taken + nobodys != 1u << 20)
            cr_assert_fail("%u owned, %u free", taken, nobodys);
    }
    while (count > 0)
        walrus__arena_give_back(&arena, owned[--count]);
    uint32_t all = walrus__arena_largest(&arena, &bytes);
    cr_assert_eq(bytes, 1u << 20);
    cr_assert_eq(arena.extents[all].offset, 4096);
    walrus__arena_release(&arena);
}

/* ----------------------------------------------------------------------------------- the waits of a retry */

/* Handles that were refused together must not come back together. */
Test(hostile, waits_are_drawn_from_the_whole_of_their_bound_and_differ_between_handles)
{
    enum { DRAWS = 1000, BOUND = 1000000 };
    struct walrus handles[2] = {{.random = 0}, {.random = 0}};
    int64_t least = BOUND, most = 0, sum = 0;
    unsigned equal = 0;
    for (unsigned i = 0; i < DRAWS; i++) {
        int64_t a = walrus__random(&handles[0], BOUND), b = walrus__random(&handles[1], BOUND);
        cr_assert(a >= 0 && a <= BOUND && b >= 0 && b <= BOUND);
        least = a < least ? a : least;
        most = a > most ? a : most;
        sum += a;
        equal += a == b;
    }
    cr_assert_lt(least, BOUND / 20);
    cr_assert_gt(most, BOUND - BOUND / 20);
    cr_assert(sum / DRAWS > BOUND * 2 / 5 && sum / DRAWS < BOUND * 3 / 5, "%lld", (long long)(sum / DRAWS));
    cr_assert_lt(equal, 10u);
    cr_assert_eq(walrus__random(&handles[0], 0), 0);
}
