/* The client's memory is read once: what was checked and summed is the copy. A client that changes its memory
 * at the worst moment is here a step that is taken right behind each copy (this program is linked with --wrap
 * for memcpy), so that a second look would see something else, each time. */
#include "life.h"

static struct life life;
static const int A, B;
static const void *watched;
static void (*behind_the_copy)(void);
static unsigned steps;
static struct sent *sent;

/* NOLINTBEGIN(bugprone-reserved-identifier): the linker's names */
void *__real_memcpy(void *to, const void *from, size_t length);
void *__wrap_memcpy(void *to, const void *from, size_t length);
/* NOLINTEND(bugprone-reserved-identifier) */

void *__wrap_memcpy(void *to, const void *from, size_t length)
{
    void *result = __real_memcpy(to, from, length);
    if (watched != NULL && from == watched) {
        watched = NULL;
        steps++;
        behind_the_copy();
    }
    return result;
}

static void make(void)
{
    life_make(&life);
    life_start(&life);
    life_quiet(&life);
}

static void clean(void)
{
    life_remove(&life);
}

TestSuite(copy, .init = make, .fini = clean, .timeout = 60);

/* A batch that was refused once, so that it can be changed before it is sent again. */
static void send_refused(uint32_t entries, uint32_t bytes)
{
    struct sent *first =
        SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .from = 1, .entries = 1, .bytes = 16);
    cr_assert_eq(first->refused, 0);
    life_committed(&life, "t", 1);
    sent = SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &B, .entries = entries, .bytes = bytes);
    cr_assert_eq(sent->refused, -EBUSY);
    life_settle(&life);
    cr_assert(first->done);
}

static int send_again(const void *watch, void (*step)(void))
{
    watched = watch;
    behind_the_copy = step;
    steps = 0;
    int result = life_again(sent);
    cr_assert_eq(steps, 1, "it was copied %u times", steps);
    watched = NULL;
    return result;
}

static void spoil_records(void)
{
    sent->records[0].length = UINT32_MAX;
    sent->records[1].flags = UINT8_MAX;
}

static void mend_records(void)
{
    sent->records[0].length = 100;
}

static void spoil_payload(void)
{
    memset(sent->payload, 0xee, sent->write.payload_bytes);
}

static void committed_as_it_was(uint32_t entries)
{
    life_settle(&life);
    cr_assert(sent->done);
    cr_assert_eq(sent->write.result, 0);
    life_committed(&life, "t", entries);
    life_verify(&life); /* from memory */
    life_crash(&life);
    life_start(&life);
    life_verify(&life); /* from the disk, with all its sums */
}

Test(copy, g20_records_that_change_behind_their_copy_change_nothing)
{
    send_refused(3, 100);
    cr_assert_eq(send_again(sent->records, spoil_records), 0);
    committed_as_it_was(3);
}

Test(copy, g20_records_that_are_mended_behind_their_copy_are_refused)
{
    send_refused(3, 100);
    sent->records[0].length = 1000;
    cr_assert_eq(send_again(sent->records, mend_records), -EINVAL);
}

Test(copy, g20_a_payload_that_changes_behind_its_copy_changes_nothing)
{
    send_refused(3, 100);
    cr_assert_eq(send_again(sent->payload, spoil_payload), 0);
    committed_as_it_was(3);
}
