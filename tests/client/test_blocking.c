/* The blocking writes: limits, every documented error, receipts, what mixes with asynchronous batches. */
#include "fake.h"

#include <criterion/criterion.h>
#include <sys/mman.h>

static struct fake fake;
static walrus *handle;

static void begin(void)
{
    fake_start(&fake);
    handle = CONNECT(&fake, .arena_bytes = 1 << 20);
}

static void end(void)
{
    walrus_close(handle);
    fake_stop(&fake);
}

TestSuite(blocking, .init = begin, .fini = end);

static int append(const char *topic, const char *data, struct walrus_receipt *receipt)
{
    return walrus_append_for_topic(handle, topic, data, strlen(data), NULL, receipt);
}

static int append_batch(const char *topic, const struct walrus_slice *slices, size_t count)
{
    return walrus_batch_append_for_topic(handle, topic, slices, count, NULL, NULL);
}

Test(blocking, appends_one_entry_and_gives_a_receipt)
{
    struct walrus_receipt r;
    cr_assert_eq(append("t", "hello", &r), 0);
    cr_assert_eq(append("t", "world", &r), 0);
    cr_assert_eq(r.first_sequence, 2);
    cr_assert_eq(r.count, 1);
    cr_assert_eq(r.epoch, 7);
    cr_assert_eq(r.level, WALRUS_LEVEL_DURABLE);
    cr_assert_eq(r.group, 2);
    cr_assert(r.published_ns > 0 && r.drained_ns > r.published_ns && r.submitted_ns > r.drained_ns &&
              r.durable_ns > r.submitted_ns && r.signalled_ns > 0);
    fake_pause(&fake);
    cr_assert_eq(fake.seen[OP_APPEND], 2);
    cr_assert_eq(fake.seen[OP_OPEN], 1); /* the name is known from then on */
    struct fake_topic *t = fake_topic(&fake, "t");
    cr_assert_eq(t->count, 2);
    cr_assert_eq(memcmp(t->entries[0].data, "hello", 5), 0);
}

Test(blocking, takes_batches_of_0_1_and_2000_entries_and_refuses_2001)
{
    static struct walrus_slice slices[2001];
    static char data[2001][8];
    for (int i = 0; i < 2001; i++) {
        int length = snprintf(data[i], sizeof data[i], "%d", i);
        slices[i] = (struct walrus_slice){data[i], (size_t)length};
    }
    struct walrus_receipt r;
    cr_assert_eq(walrus_batch_append_for_topic(handle, "t", NULL, 0, NULL, &r), 0);
    cr_assert_eq(r.count, 0);
    cr_assert_eq(r.first_sequence, 0);
    cr_assert_eq(append_batch("t", slices, 1), 0);
    cr_assert_eq(append_batch("t", slices, 2000), 0);
    cr_assert_eq(append_batch("t", slices, 2001), -EINVAL);
    cr_assert_not_null(strstr(walrus_error(handle), "2001"), "%s", walrus_error(handle));
    fake_pause(&fake);
    struct fake_topic *t = fake_topic(&fake, "t");
    cr_assert_eq(t->count, 2001);
    for (uint64_t i = 1; i < 2001; i++) {
        cr_assert_eq(t->entries[i].length, slices[i - 1].length);
        cr_assert_eq(memcmp(t->entries[i].data, data[i - 1], slices[i - 1].length), 0);
        cr_assert_eq(t->entries[i].batch, 2);
    }
    cr_assert_eq(fake.commits, 2);
}

Test(blocking, entries_of_0_bytes_are_entries)
{
    struct walrus_slice slices[3] = {{NULL, 0}, {"x", 1}, {NULL, 0}};
    cr_assert_eq(append_batch("t", slices, 3), 0);
    cr_assert_eq(walrus_append_for_topic(handle, "t", NULL, 0, NULL, NULL), 0);
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "t")->count, 4);
}

Test(blocking, the_byte_limit_is_exact)
{
    /* Nothing is copied before the limit is checked, so the lengths alone matter here. */
    static char page[1];
    const uint64_t limit = WALRUS_MAX_BATCH_BYTES;
    struct walrus_slice slices[3] = {{page, limit / 2}, {page, limit / 2 - 3 * 64 + 1}, {page, 0}};
    cr_assert_eq(append_batch("t", slices, 3), -EINVAL);
    slices[0].length = SIZE_MAX;
    cr_assert_eq(append_batch("t", slices, 1), -EINVAL);
    slices[0].length = limit - 63;
    cr_assert_eq(append_batch("t", slices, 1), -EINVAL);
    slices[0].length = limit;
    cr_assert_eq(append_batch("t", slices, 1), -EINVAL);
    cr_assert_eq(walrus_append_for_topic(handle, "t", page, limit - 63, NULL, NULL), -EINVAL);
    fake_pause(&fake);
    cr_assert_eq(fake.seen[OP_CHUNK] + fake.seen[OP_BATCH] + fake.seen[OP_APPEND] + fake.seen[OP_OPEN], 0);
}

Test(blocking, a_batch_of_exactly_10_GiB_is_taken_in_chunks)
{
    /* 2,000 entries that all lie in the same pages; the fake swallows what it gets. */
    const size_t mapped = 8 << 20;
    char *same = mmap(NULL, mapped, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq((void *)same, MAP_FAILED);
    fake.swallow = true;
    static struct walrus_slice slices[2000];
    uint64_t left = WALRUS_MAX_BATCH_BYTES - 2000 * 64;
    for (int i = 0; i < 2000; i++) {
        slices[i] = (struct walrus_slice){same, i < 1999 ? (left / 2000) : 0};
    }
    slices[1999].length = left - 1999 * (left / 2000);
    cr_assert_leq(slices[1999].length, mapped);
    struct walrus_receipt r;
    cr_assert_eq(walrus_batch_append_for_topic(handle, "t", slices, 2000, NULL, &r), 0, "%s",
                 walrus_error(handle));
    cr_assert_eq(r.count, 2000);
    slices[0].length++;
    cr_assert_eq(append_batch("t", slices, 2000), -EINVAL);
    fake_pause(&fake);
    cr_assert_eq(fake.bytes_swallowed, left);
    cr_assert_eq(fake_topic(&fake, "t")->count, 2000);
    cr_assert_eq(fake.commits, 1);
    munmap(same, mapped);
}

Test(blocking, one_entry_of_300_MiB_goes_in_pieces)
{
    const size_t length = (300 << 20) + 5;
    char *same = mmap(NULL, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq((void *)same, MAP_FAILED);
    fake.swallow = true;
    cr_assert_eq(walrus_append_for_topic(handle, "t", same, length, NULL, NULL), 0, "%s",
                 walrus_error(handle));
    fake_pause(&fake);
    cr_assert_eq(fake_topic(&fake, "t")->count, 1);
    cr_assert_eq(fake_topic(&fake, "t")->entries[0].length, length);
    cr_assert_leq(fake.largest_chunk, MAX_CHUNK_PAYLOAD);
    munmap(same, length);
}

Test(blocking, chunks_carry_what_was_given)
{
    static struct walrus_slice slices[60];
    size_t total = 0;
    for (size_t i = 0; i < 60; i++) {
        slices[i].length = i * 1777 + (i % 7 == 0 ? 400000 : 0);
        uint8_t *data = malloc(slices[i].length + 1);
        for (size_t k = 0; k < slices[i].length; k++)
            data[k] = (uint8_t)(k * 31 + i + (k >> 9));
        slices[i].data = data;
        total += slices[i].length;
    }
    cr_assert_gt(total, 3u << 20);
    cr_assert_eq(append_batch("t", slices, 60), 0, "%s", walrus_error(handle));
    fake_pause(&fake);
    cr_assert_gt(fake.seen[OP_CHUNK], 10);
    struct fake_topic *t = fake_topic(&fake, "t");
    cr_assert_eq(t->count, 60);
    for (size_t i = 0; i < 60; i++) {
        cr_assert_eq(t->entries[i].length, slices[i].length);
        if (slices[i].length > 0)
            cr_assert_eq(memcmp(t->entries[i].data, slices[i].data, slices[i].length), 0, "entry %zu", i);
        free((void *)(uintptr_t)slices[i].data);
    }
}

Test(blocking, refuses_bad_names)
{
    char longest[257];
    memset(longest, 'n', 256);
    longest[256] = '\0';
    cr_assert_eq(append("", "x", NULL), -EINVAL);
    cr_assert_eq(append(longest, "x", NULL), -EINVAL);
    cr_assert_eq(append("a\tb", "x", NULL), -EINVAL);
    cr_assert_eq(append("a\x7f", "x", NULL), -EINVAL);
    cr_assert_eq(walrus_append_for_topic(handle, NULL, "x", 1, NULL, NULL), -EINVAL);
    longest[255] = '\0';
    cr_assert_eq(append(longest, "x", NULL), 0);
    cr_assert_eq(append("\xc3\xa4 /..", "x", NULL), 0); /* never a path */
}

Test(blocking, refuses_bad_arguments)
{
    struct walrus_slice bad = {NULL, 5};
    cr_assert_eq(append_batch("t", &bad, 1), -EINVAL);
    cr_assert_eq(append_batch("t", NULL, 1), -EINVAL);
    cr_assert_eq(walrus_append_for_topic(handle, "t", NULL, 1, NULL, NULL), -EINVAL);
    cr_assert_eq(walrus_append_for_topic(NULL, "t", "x", 1, NULL, NULL), -EINVAL);
    struct walrus_write_options level = {.size = sizeof level, .level = 9};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &level, NULL), -EINVAL);
    struct walrus_write_options size = {.size = 1};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &size, NULL), -EINVAL);
    cr_assert_not_null(strstr(walrus_error(handle), "walrus_write_options"));
    cr_assert_not_null(walrus_error(NULL));
}

Test(blocking, sends_the_level)
{
    struct walrus_write_options options = {.size = sizeof options, .level = WALRUS_LEVEL_WRITTEN};
    cr_assert_eq(walrus_append_for_topic(handle, "t", "x", 1, &options, NULL), 0);
    fake_pause(&fake);
    cr_assert_eq(fake.last.level, LEVEL_WRITTEN);
}

static void refused(int result, uint8_t reason, const char *part_of_words)
{
    struct walrus_receipt r;
    fake_rule(&fake,
              (struct fake_rule){.op = FAKE_ANY_WRITE, .times = 1, .result = result, .reason = reason});
    cr_assert_eq(append("t", "x", &r), result);
    cr_assert_eq(r.reason, reason);
    cr_assert_eq(r.count, 0);
    cr_assert_not_null(strstr(walrus_error(handle), part_of_words), "%s", walrus_error(handle));
    cr_assert_not_null(strstr(walrus_error(handle), "\"t\""), "%s", walrus_error(handle));
    cr_assert_eq(append("t", "x", NULL), 0); /* the handle goes on */
}

Test(blocking, passes_on_busy)
{
    refused(-EBUSY, REASON_TOPIC, "another handle");
    cr_assert_eq(walrus_reason(handle), WALRUS_REASON_NONE + WALRUS_REASON_TOPIC);
}

Test(blocking, passes_on_every_other_refusal)
{
    refused(-EIO, 0, "never will be");
    refused(-ENOSPC, 0, "full");
    refused(-EDQUOT, 0, "operator");
    refused(-ESHUTDOWN, 0, "stopping");
    refused(-ECANCELED, 0, "rolled back");
    refused(-ESTALE, 0, "newer holder");
    refused(-ETIMEDOUT, 0, "time ran out");
}

Test(blocking, tries_again_what_clears_by_itself)
{
    fake_rule(&fake, (struct fake_rule){
                         .op = FAKE_ANY_WRITE, .times = 3, .result = -EAGAIN, .reason = REASON_SPACE});
    cr_assert_eq(append("t", "x", NULL), 0);
    fake_pause(&fake);
    cr_assert_eq(fake.seen[OP_APPEND], 4);
    cr_assert_eq(fake.commits, 1);
}

Test(blocking, waits_for_the_second_answer_after_a_refusal_with_more)
{
    fake_rule(&fake, (struct fake_rule){.op = FAKE_ANY_WRITE,
                                        .times = 1,
                                        .result = -EBUSY,
                                        .reason = REASON_TOPIC,
                                        .flags = COMPLETION_MORE});
    cr_assert_eq(append("t", "x", NULL), -EBUSY);
    fake_pause(&fake);
    fake_post(&fake, &(struct completion){.user_data = fake.last.user_data});
    fake_resume(&fake);
    cr_assert_eq(append("t", "x", NULL), 0);
}

Test(blocking, a_refused_stream_says_why)
{
    size_t length = 2 << 20;
    char *data = calloc(1, length);
    fake_rule(&fake,
              (struct fake_rule){.op = OP_CHUNK, .times = 1, .result = -EBUSY, .reason = REASON_TOPIC});
    struct walrus_receipt r;
    cr_assert_eq(walrus_append_for_topic(handle, "t", data, length, NULL, &r), -EBUSY);
    cr_assert_eq(r.reason, REASON_TOPIC);
    fake_rule(&fake, (struct fake_rule){.op = OP_CHUNK, .after = 5, .times = 1, .result = -EIO});
    cr_assert_eq(walrus_append_for_topic(handle, "t", data, length, NULL, &r), -EIO);
    fake_rule(&fake, (struct fake_rule){
                         .op = OP_CHUNK, .after = 3, .times = 1, .result = -EAGAIN, .reason = REASON_MEMORY});
    cr_assert_eq(walrus_append_for_topic(handle, "t", data, length, NULL, &r), 0, "%s", walrus_error(handle));
    cr_assert_eq(r.count, 1);
    fake_pause(&fake);
    cr_assert_eq(fake.commits, 1);
    cr_assert_eq(fake_topic(&fake, "t")->count, 1);
    free(data);
}

Test(blocking, a_dead_broker_leaves_the_outcome_unknown)
{
    cr_assert_eq(append("t", "x", NULL), 0);
    fake_rule(&fake, (struct fake_rule){.op = FAKE_ANY_WRITE, .times = 1, .result = FAKE_DIE});
    cr_assert_eq(append("t", "x", NULL), -ECONNRESET);
    cr_assert_not_null(strstr(walrus_error(handle), "connect again"), "%s", walrus_error(handle));
    cr_assert_eq(append("t", "x", NULL), -ECONNRESET);
    cr_assert_eq(append_batch("t", NULL, 0), -ECONNRESET);
}

Test(blocking, an_answer_given_before_death_counts)
{
    fake_rule(&fake, (struct fake_rule){.op = FAKE_ANY_WRITE, .times = 1, .result = FAKE_DIE_AFTER});
    cr_assert_eq(append("t", "x", NULL), 0);
    cr_assert_eq(append("t", "x", NULL), -ECONNRESET);
}

Test(blocking, death_in_the_middle_of_a_stream)
{
    char *data = calloc(1, 3 << 20);
    fake_rule(&fake, (struct fake_rule){.op = OP_CHUNK, .after = 7, .times = 1, .result = FAKE_DIE});
    cr_assert_eq(walrus_append_for_topic(handle, "t", data, 3 << 20, NULL, NULL), -ECONNRESET);
    free(data);
}

Test(blocking, opening_a_topic_can_fail)
{
    fake_rule(&fake, (struct fake_rule){.op = OP_OPEN, .times = 1, .result = -EDQUOT});
    cr_assert_eq(append("t", "x", NULL), -EDQUOT);
    fake_rule(&fake, (struct fake_rule){.op = OP_OPEN, .times = 1, .result = -EDQUOT});
    walrus_topic *topic = (walrus_topic *)handle;
    cr_assert_eq(walrus_topic_open(handle, "u", 1, NULL, &topic), -EDQUOT);
    cr_assert_null(topic);
    cr_assert_eq(append("t", "x", NULL), 0);
}

Test(blocking, more_names_than_the_cache_holds)
{
    /* The fake has 64 topics; names go in and out of the cache of 1,024 only on a real broker, so here the
     * refusal counts. */
    for (int i = 0; i < 60; i++) {
        char name[16];
        snprintf(name, sizeof name, "topic-%d", i % 30);
        cr_assert_eq(append(name, "x", NULL), 0);
    }
    fake_pause(&fake);
    cr_assert_eq(fake.seen[OP_OPEN], 30);
}

Test(blocking, keeps_completions_of_asynchronous_batches_in_order)
{
    walrus_topic *topic = open_topic(handle, "t");
    for (uint64_t i = 0; i < 10; i++) {
        walrus_batch *batch;
        cr_assert_eq(walrus_batch_begin(topic, &batch), 0);
        cr_assert_eq(walrus_batch_add(batch, "async", 5), 0);
        struct walrus_submit_options options = {.size = sizeof options, .user_data = i};
        cr_assert_eq(walrus_batch_submit(batch, &options), 0);
    }
    struct walrus_receipt r;
    cr_assert_eq(append("t", "blocking", &r), 0);
    cr_assert_eq(r.first_sequence, 11);
    struct walrus_completion done[20];
    cr_assert_eq(walrus_reap(handle, done, 20), 10);
    for (uint64_t i = 0; i < 10; i++) {
        cr_assert_eq(done[i].user_data, i);
        cr_assert_eq(done[i].result, 0);
        cr_assert_eq(done[i].receipt.first_sequence, i + 1);
    }
}
