/* test_damage.c: bytes that rot, blocks and files that turn up in the wrong place, lengths made up by a
 * stranger. Whatever is done to a stopped store, the next start either refuses with words, or every read
 * gives the committed bytes or -EBADMSG: G13, G15, G16, G18, G27. Only at the end of a log that was not
 * proved durable may anything be missing without a word. */
#include "explore.h"

#include "../../broker/log/format.h"

#include <criterion/criterion.h>
#include <sys/resource.h>

uint32_t crc32c(uint32_t seed, const void *data,
                size_t length); /* broker/log/checksum.h, whose names clash with ours */

struct store {
    struct image *image;
    struct ledger ledger;
};

static void fill(struct run_state *run, uint32_t groups)
{
    run_start(run);
    for (uint32_t i = 0; i < groups; i++) {
        run_write(run, i % 3, 1, 1 + i % 4, 200 + 3000 * (i % 2));
        run_settle(run);
        run_number(run, i % 3, i % 3, 1 + i % 4, 100);
    }
    run_stream_all(run, run_stream(run, 1, 5, 9000), 20000);
    run_settle(run);
    run_stop(run);
}

/* A store that was stopped cleanly, twice. */
static void make_store(struct store *store, uint64_t seed)
{
    store->image = image_new(UINT64_MAX);
    ledger_init(&store->ledger);
    for (uint32_t life = 0; life < 2; life++) {
        struct run_state run;
        run_begin(&run, store->image, &store->ledger, seed + life);
        fill(&run, 4);
        cr_assert(run.stopped, "%s", store->ledger.failure);
        store->image = run_end(&run);
        cr_assert(store->ledger.failure[0] == 0, "%s", store->ledger.failure);
    }
}

static void free_store(struct store *store)
{
    image_free(store->image);
    ledger_free(&store->ledger);
}

/* Starts on the damaged image (which it takes) and reads everything. `what` names the damage. */
static bool judge_damage(const struct store *store, struct image *image, bool any_error, const char *what)
{
    struct ledger ledger = {0};
    struct run_state run;
    ledger_copy(&ledger, &store->ledger);
    run_begin(&run, image, &ledger, 99);
    run.rot = true;
    run.trouble = any_error;
    if (run_start(&run))
        run_check(&run);
    bool told = run.damage_seen || !run.started;
    if (run.start_error == -EBADMSG && strstr(run.error.text, "segment") == NULL &&
        strstr(run.error.text, "checkpoint") == NULL && strstr(run.error.text, "walrus.store") == NULL)
        ledger_fail(&ledger, "G13: the refusal does not say where: %s", run.error.text);
    image_free(run_end(&run));
    cr_assert(ledger.failure[0] == 0, "%s: %s", what, ledger.failure);
    ledger_free(&ledger);
    return told;
}

static bool is_segment(const char *name)
{
    return strstr(name, ".segment") != NULL;
}

Test(damage, g13_g27_a_flipped_bit_anywhere_is_found_or_harmless)
{
    struct store store;
    make_store(&store, 5);
    uint32_t told = 0, tried = 0;
    struct seed seed = {11};
    for (uint32_t n = 0; n < store.image->now.count; n++) {
        const char *name = store.image->now.list[n].name;
        uint64_t blocks = (image_size(store.image, name) + SIM_BLOCK - 1) / SIM_BLOCK;
        for (uint32_t b = 0; b < blocks; b++) {
            if (image_block_zero(store.image, name, b))
                continue;
            for (uint32_t i = 0; i < 16; i++) {
                struct image *image = image_copy(store.image);
                uint64_t at =
                    (uint64_t)b * SIM_BLOCK + (i < 8 ? seed_below(&seed, 256) : seed_below(&seed, SIM_BLOCK));
                if (at < image_size(store.image, name))
                    image_flip(image, name, at, (uint8_t)(1u << seed_below(&seed, 8)));
                char what[160];
                snprintf(what, sizeof what, "a bit of %s at %llu", name, (unsigned long long)at);
                told += judge_damage(&store, image, !is_segment(name), what);
                tried++;
            }
        }
    }
    cr_assert_gt(told * 4, tried, "only %u of %u flips were noticed", told, tried);
    free_store(&store);
}

Test(damage, g13_a_lost_block_anywhere_is_found_or_harmless)
{
    static const uint8_t zeros[SIM_BLOCK];
    struct store store;
    make_store(&store, 5);
    for (uint32_t n = 0; n < store.image->now.count; n++) {
        const char *name = store.image->now.list[n].name;
        for (uint32_t b = 0; is_segment(name) && b < image_size(store.image, name) / SIM_BLOCK; b++) {
            if (image_block_zero(store.image, name, b))
                continue;
            struct image *image = image_copy(store.image);
            image_set_block(image, name, b, zeros);
            char what[160];
            snprintf(what, sizeof what, "%s without its block %u", name, b);
            judge_damage(&store, image, false, what);
        }
    }
    free_store(&store);
}

Test(damage, g18_a_block_in_the_wrong_place_is_rejected)
{
    struct store store;
    make_store(&store, 5);
    struct seed seed = {13};
    uint32_t count = store.image->now.count;
    for (uint32_t i = 0; i < 3000; i++) {
        const char *from = store.image->now.list[seed_below(&seed, count)].name;
        const char *to = store.image->now.list[seed_below(&seed, count)].name;
        if (!is_segment(from) || !is_segment(to))
            continue;
        uint32_t a = (uint32_t)seed_below(&seed, min_u64(30, image_size(store.image, from) / SIM_BLOCK));
        uint32_t b = (uint32_t)seed_below(&seed, min_u64(30, image_size(store.image, to) / SIM_BLOCK));
        if (image_block_zero(store.image, from, a))
            continue;
        uint8_t one[SIM_BLOCK], two[SIM_BLOCK];
        struct image *image = image_copy(store.image);
        image_get_block(image, from, a, one);
        image_get_block(image, to, b, two);
        image_set_block(image, to, b, one);
        bool swap = seed_chance(&seed, 500);
        if (swap)
            image_set_block(image, from, a, two);
        char what[256];
        snprintf(what, sizeof what, "block %u of %s %s block %u of %s", a, from,
                 swap ? "swapped with" : "copied over", b, to);
        judge_damage(&store, image, false, what);
    }
    free_store(&store);
}

Test(damage, g15_files_of_another_life_or_store_are_never_taken_for_ours)
{
    struct store store, other, early = {0};
    make_store(&store, 5);
    make_store(&other, 500);
    early.image = image_copy(store.image);
    ledger_copy(&early.ledger, &store.ledger);
    struct run_state run;
    run_begin(&run, store.image, &store.ledger, 77);
    fill(&run, 3);
    store.image = run_end(&run);
    cr_assert(store.ledger.failure[0] == 0, "%s", store.ledger.failure);
    for (uint32_t n = 0; n < store.image->now.count; n++) {
        const char *name = store.image->now.list[n].name;
        const struct image *sources[] = {store.image, other.image, early.image};
        for (uint32_t s = 0; s < array_count(sources); s++) {
            for (uint32_t m = 0; m < sources[s]->now.count; m++) {
                const char *source = sources[s]->now.list[m].name;
                uint64_t size = image_size(sources[s], source);
                struct image *image = image_copy(store.image);
                image_resize_file(image, name, size);
                for (uint32_t b = 0; b * (uint64_t)SIM_BLOCK < size; b++) {
                    uint8_t bytes[SIM_BLOCK];
                    image_get_block(sources[s], source, b, bytes);
                    image_set_block(image, name, b, bytes);
                }
                char what[256];
                snprintf(what, sizeof what, "%s replaced by %s of store %u", name, source, s);
                judge_damage(&store, image, true, what);
            }
        }
    }
    free_store(&store);
    free_store(&other);
    free_store(&early);
}

Test(damage, g13_missing_cut_and_extra_files_are_found_or_harmless)
{
    struct store store;
    make_store(&store, 5);
    struct seed seed = {17};
    for (uint32_t n = 0; n < store.image->now.count; n++) {
        const char *name = store.image->now.list[n].name;
        uint64_t size = image_size(store.image, name);
        char what[256];
        struct image *image = image_copy(store.image);
        image_remove_file(image, name);
        snprintf(what, sizeof what, "without %s", name);
        judge_damage(&store, image, true, what);
        for (uint32_t i = 0; i < 12; i++) {
            image = image_copy(store.image);
            uint64_t to = i == 0 ? 0 : i == 1 ? size + 8192 : seed_below(&seed, min_u64(size, 100000) + 1);
            image_resize_file(image, name, to);
            snprintf(what, sizeof what, "%s cut to %llu bytes", name, (unsigned long long)to);
            judge_damage(&store, image, true, what);
        }
        image = image_copy(store.image);
        image_clone_file(image, name, is_segment(name) ? "00000999.segment" : "00000999.index");
        snprintf(what, sizeof what, "%s twice", name);
        judge_damage(&store, image, true, what);
        image = image_copy(store.image);
        image_clone_file(image, name, "notes.txt");
        judge_damage(&store, image, true, "a stranger's file");
    }
    free_store(&store);
}

/* ------------------------------------------------------------------------------------------------ hostile
 * numbers */

static uint64_t hostile_number(struct seed *seed)
{
    static const uint64_t numbers[] = {0,
                                       1,
                                       2,
                                       4095,
                                       4096,
                                       4097,
                                       65536,
                                       INT32_MAX,
                                       UINT32_MAX,
                                       UINT64_C(1) << 32,
                                       UINT64_C(1) << 62,
                                       INT64_MAX,
                                       UINT64_MAX - 4095,
                                       UINT64_MAX};
    return numbers[seed_below(seed, array_count(numbers))];
}

/* A header with one field made up and its checksum put right: length is where the crc is. */
static void forge(struct image *image, const char *name, uint32_t crc_at, struct seed *seed, char what[320])
{
    uint8_t bytes[SIM_BLOCK];
    image_get_block(image, name, 0, bytes);
    uint64_t number = hostile_number(seed);
    bool wide = seed_chance(seed, 600);
    uint32_t at = 12 + 4 * (uint32_t)seed_below(seed, (crc_at - 16) / 4);
    if (wide)
        at &= ~7u;
    memcpy(bytes + at, &number, wide ? 8 : 4);
    uint32_t crc = crc32c(0, bytes, crc_at);
    memcpy(bytes + crc_at, &crc, sizeof crc);
    image_set_block(image, name, 0, bytes);
    snprintf(what, 320, "%s with %llu at %u (%u bytes)", name, (unsigned long long)number, at,
             wide ? 8u : 4u);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

/* A made-up length that is believed then ends in -ENOMEM or worse. A sanitizer needs the address space for
 * itself, and has a limit of its own for one allocation. */
static void bound_memory(void)
{
#ifndef SANITIZED
    struct rlimit limit;
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = UINT64_C(1) << 30;
    cr_assert_eq(setrlimit(RLIMIT_AS, &limit), 0);
#endif
}

Test(damage, g16_made_up_numbers_crash_nothing_and_take_no_memory)
{
    struct store store;
    make_store(&store, 5);
    bound_memory();
    struct seed seed = {19};
    for (uint32_t i = 0; i < 1500; i++) {
        const char *name = store.image->now.list[seed_below(&seed, store.image->now.count)].name;
        uint32_t crc_at = strstr(name, ".index") != NULL ? 124 : 252;
        struct ledger ledger = {0};
        ledger_copy(&ledger, &store.ledger);
        struct image *image = image_copy(store.image);
        char what[320];
        forge(image, name, crc_at, &seed, what);
        struct run_state run;
        run_begin(&run, image, &ledger, 99);
        run.rot = run.trouble = true;
        if (run_start(&run))
            run_check(
                &run); /* a liar who knows the checksums may take data away; he must not add or mix any */
        image_free(run_end(&run));
        bool lost = strncmp(ledger.failure, "G1:", 3) == 0 || strncmp(ledger.failure, "G7:", 3) == 0 ||
                    strncmp(ledger.failure, "G5: anonymous", 13) == 0 ||
                    strstr(ledger.failure, "is said not to be committed") != NULL ||
                    strstr(ledger.failure, "is said never to have") != NULL;
        cr_assert(ledger.failure[0] == 0 || lost, "%s: %s", what, ledger.failure);
        ledger_free(&ledger);
    }
    free_store(&store);
}

/* Rows behind a checkpoint's header and its segments: of topics, producers and their pairs. */
static void forge_rows(struct image *image, const char *name, struct seed *seed, char what[320])
{
    uint8_t bytes[SIM_BLOCK];
    struct checkpoint_header header;
    image_get_block(image, name, 0, bytes);
    memcpy(&header, bytes, sizeof header);
    cr_assert_leq(header.bytes, sizeof bytes);
    uint64_t number = hostile_number(seed);
    uint32_t rows = (uint32_t)sizeof header;
    uint32_t at = rows + 4 * (uint32_t)seed_below(seed, (header.bytes - rows) / 4);
    bool wide = at + 8 <= header.bytes && seed_chance(seed, 600);
    memcpy(bytes + at, &number, wide ? 8 : 4);
    header.body_crc = crc32c(0, bytes + sizeof header, header.bytes - sizeof header);
    header.crc = crc32c(0, &header, offsetof(struct checkpoint_header, crc));
    memcpy(bytes, &header, sizeof header);
    image_set_block(image, name, 0, bytes);
    snprintf(what, 320, "%s with %llu at %u (%u bytes)", name, (unsigned long long)number, at,
             wide ? 8u : 4u);
}

/* Such a start may be told anything. It must be refused, or go on with it. */
Test(damage, g16_made_up_rows_of_a_checkpoint_crash_nothing_and_take_no_memory)
{
    struct store store;
    make_store(&store, 5);
    bound_memory();
    struct seed seed = {23};
    uint32_t served = 0;
    for (uint32_t i = 0; i < 1500; i++) {
        struct ledger ledger = {0};
        ledger_copy(&ledger, &store.ledger);
        struct image *image = image_copy(store.image);
        char what[320];
        forge_rows(image, "checkpoint-0", &seed, what);
        forge_rows(image, "checkpoint-1", &seed, what);
        struct run_state run;
        run_begin(&run, image, &ledger, 99);
        run.rot = run.trouble = true;
        if (run_start(&run)) {
            served++;
            run_check(&run);
            for (uint32_t role = 0; role < 3; role++)
                run_try_numbers(&run, role, role, 2, 1, 60, 0);
            run_settle(&run);
            run_stop(&run);
        }
        image_free(run_end(&run));
        cr_assert_null(strstr(ledger.failure, "never"), "%s: %s", what, ledger.failure);
        ledger_free(&ledger);
    }
    cr_assert_gt(served, 0);
    free_store(&store);
}
