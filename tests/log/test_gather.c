/* Admission: what is taken into the gathering group and what is refused, with which code; -EBUSY as DESIGN
 * section 3 has it. */
#include "life.h"

#include <unistd.h>

static struct life life;
static const int A, B, C; /* owners: only their addresses count */

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

TestSuite(gather, .init = make, .fini = clean, .timeout = 60);

static uint64_t writes(void)
{
    return io_fault_count(life.io, IO_WRITE);
}

/* ----------------------------------------------------------------------------------------------- limits */

Test(gather, refuses_a_batch_of_0_entries)
{
    cr_assert_eq(SEND(&life, .name = "t", .kind = WRITE_BATCH, .entries = 0)->refused, -EINVAL);
}

Test(gather, takes_1_entry_and_2000_entries)
{
    life_put(&life, "t", 1, 10);
    life_put(&life, "t", 2000, 10);
    life_verify(&life);
}

Test(gather, g4_refuses_2001_entries_and_writes_nothing)
{
    uint64_t before = writes();
    struct sent *sent = SEND(&life, .name = "t", .kind = WRITE_BATCH, .entries = 2001, .bytes = 1);
    cr_assert_eq(sent->refused, -EINVAL);
    cr_assert_eq(sent->write.result, -EINVAL);
    life_quiet(&life);
    cr_assert(!sent->done, "a refused write must not be answered");
    cr_assert_eq(writes(), before);
    cr_assert_eq(life_stats(&life).refused_invalid, 1u);
}

Test(gather, an_append_is_one_entry)
{
    cr_assert_eq(SEND(&life, .name = "t", .kind = WRITE_APPEND, .entries = 2, .bytes = 1)->refused, -EINVAL);
    cr_assert_eq(SEND(&life, .name = "t", .kind = WRITE_APPEND, .entries = 0)->refused, -EINVAL);
    cr_assert_eq(SEND(&life, .name = "t", .kind = WRITE_APPEND, .entries = 1, .bytes = 1)->refused, 0);
    life_settle(&life);
    life_committed(&life, "t", 1);
    life_verify(&life);
}

Test(gather, an_entry_of_0_bytes_is_an_entry)
{
    life_put(&life, "t", 3, 0);
    life_put(&life, "t", 1, 5);
    life_verify(&life);
}

/* Each topic of a first write brings its catalogue entry into the group when that is sealed: room for it is
 * set aside when the write is taken, so a group that takes no more has room for all of them. */
Test(gather, g16_a_full_group_has_room_for_the_catalogue_entries_that_sealing_adds)
{
    enum { TOPICS = 200 };
    char name[MAX_TOPIC_NAME + 1];
    struct sent *sents[TOPICS];
    memset(name, 'n', MAX_TOPIC_NAME);
    name[MAX_TOPIC_NAME] = 0;
    for (uint32_t i = 0; i < TOPICS; i++) {
        name[0] = (char)('A' + i / 20);
        name[1] = (char)('A' + i % 20);
        sents[i] = SEND(&life, .name = name, .kind = WRITE_APPEND, .from = 1, .entries = 1, .bytes = 1);
        cr_assert_eq(sents[i]->refused, 0);
    }
    for (uint32_t bytes = 65536; bytes >= 16; bytes /= 4)
        while (SEND(&life, .name = "t", .kind = WRITE_APPEND, .from = 1, .entries = 1, .bytes = bytes)
                   ->refused == 0)
            continue;
    life_settle(&life);
    cr_assert_null(log_failed(life.log));
    for (uint32_t i = 0; i < TOPICS; i++)
        cr_assert(sents[i]->done && sents[i]->write.result == 0, "topic %u", i);
    cr_assert_eq(life_stats(&life).groups, 1u);
    life_crash(&life);
    life_start(&life);
    cr_assert_eq(life_stats(&life).topics, TOPICS + 1u);
}

Test(gather, takes_the_largest_whole_batch_and_refuses_one_piece_more)
{
    struct sent *more = SEND(&life, .name = "t", .kind = WRITE_BATCH, .entries = 1,
                             .bytes = MAX_WHOLE_PAYLOAD + PAYLOAD_ALIGN);
    cr_assert_eq(more->refused, -EINVAL);
    life_put(&life, "t", 1, MAX_WHOLE_PAYLOAD);
    life_put(&life, "t", 1024, MAX_WHOLE_PAYLOAD / 1024);
    life_verify(&life);
}

Test(gather, refuses_a_payload_that_is_not_padded)
{
    struct sent *sent = SEND(&life, .name = "t", .kind = WRITE_BATCH, .entries = 2001, .bytes = 1);
    sent->write.entries = 1;
    sent->write.payload_bytes = 24;
    sent->records[0].length = 24;
    cr_assert_eq(life_again(sent), -EINVAL);
}

/* A batch of 2 x 32 bytes with one number of its records changed; taken as it was before. */
static int with_record(void (*change)(struct entry_record *records, struct write *write))
{
    struct sent *sent = SEND(&life, .name = "t", .kind = WRITE_BATCH, .entries = 2001, .bytes = 32);
    sent->write.entries = 2;
    sent->write.payload_bytes = 64;
    change(sent->records, &sent->write);
    return life_again(sent);
}

static void nothing(struct entry_record *r, struct write *w)
{
    (void)r, (void)w;
}

static void longer(struct entry_record *r, struct write *w)
{
    (void)w;
    r[1].length = 33;
}

static void shorter(struct entry_record *r, struct write *w)
{
    (void)w;
    r[0].length = 16;
}

static void wraps(struct entry_record *r, struct write *w)
{
    (void)w;
    r[0].length = UINT32_MAX;
    r[1].length = 65;
}

static void goes_on(struct entry_record *r, struct write *w)
{
    (void)w;
    r[1].flags = ENTRY_CONTINUES;
}

static void unknown_flag(struct entry_record *r, struct write *w)
{
    (void)w;
    r[0].flags = 2;
}

static void headers(struct entry_record *r, struct write *w)
{
    (void)w;
    r[1].header_bytes = 1;
}

static void level(struct entry_record *r, struct write *w)
{
    (void)r;
    w->level = LEVEL_DURABLE + 1;
}

static void kind(struct entry_record *r, struct write *w)
{
    (void)r;
    w->kind = (enum write_kind)77;
}

static void more_payload(struct entry_record *r, struct write *w)
{
    (void)r;
    w->payload_bytes = 80;
}

Test(gather, refuses_records_that_do_not_add_up)
{
    cr_assert_eq(with_record(longer), -EINVAL);
    cr_assert_eq(with_record(shorter), -EINVAL);
    cr_assert_eq(with_record(wraps), -EINVAL);
    cr_assert_eq(with_record(more_payload), -EINVAL);
}

Test(gather, refuses_an_entry_that_goes_on_outside_a_stream)
{
    cr_assert_eq(with_record(goes_on), -EINVAL);
}

Test(gather, refuses_unknown_flags_headers_levels_and_kinds)
{
    cr_assert_eq(with_record(unknown_flag), -EINVAL);
    cr_assert_eq(with_record(headers), -EINVAL);
    cr_assert_eq(with_record(level), -EINVAL);
    cr_assert_eq(with_record(kind), -EINVAL);
}

Test(gather, g4_what_was_refused_leaves_no_trace)
{
    uint64_t before = writes();
    cr_assert_eq(with_record(longer), -EINVAL);
    cr_assert_eq(with_record(goes_on), -EINVAL);
    life_quiet(&life);
    cr_assert(!log_busy(life.log));
    cr_assert_eq(writes(), before);
    cr_assert_eq(with_record(nothing), 0);
    life_settle(&life);
    life_committed(&life, "t", 2);
    life_verify(&life);
}

Test(gather, g20_memory_that_changes_after_the_call_does_not_matter)
{
    struct sent *sent = SEND(&life, .name = "t", .kind = WRITE_BATCH, .entries = 3, .bytes = 1000);
    cr_assert_eq(sent->refused, 0);
    memset(sent->payload, 0xee, 3000);
    memset(sent->records, 0xee, 3 * sizeof *sent->records);
    life_settle(&life);
    life_committed(&life, "t", 3);
    life_verify(&life);
}

/* ----------------------------------------------------------------------------------------------- -EBUSY */

static struct sent *append(const void *owner)
{
    return SEND(&life, .name = "t", .kind = WRITE_APPEND, .owner = owner, .entries = 1, .bytes = 20);
}

static struct sent *batch(const void *owner)
{
    return SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = owner, .entries = 2, .bytes = 20);
}

#define busy(what)                                                                                           \
    do {                                                                                                     \
        const struct sent *s_ = (what);                                                                      \
        cr_assert_eq(s_->refused, -EBUSY, "%d", s_->refused);                                                \
        cr_assert_eq(s_->write.reason, REASON_TOPIC);                                                        \
    } while (0)
#define taken(what) cr_assert_eq((what)->refused, 0)

Test(gather, appends_of_two_owners_are_taken_together)
{
    taken(append(&A));
    taken(append(&B));
    taken(append(&A));
    uint64_t groups = life_stats(&life).groups;
    life_settle(&life);
    cr_assert_eq(life_stats(&life).groups, groups + 1, "three appends are one group");
}

Test(gather, a_batch_waits_behind_appends_of_others_and_is_taken)
{
    struct sent *first = append(&A), *second = batch(&B);
    taken(first);
    taken(second);
    life_settle(&life);
    cr_assert_lt(first->order, second->order);
    cr_assert_lt(first->write.first_sequence, second->write.first_sequence);
}

Test(gather, a_batch_or_an_append_of_another_owner_is_refused_while_a_batch_gathers)
{
    taken(batch(&A));
    busy(batch(&B));
    busy(append(&B));
    cr_assert_eq(life_stats(&life).refused_busy, 2u);
    life_settle(&life);
    taken(batch(&B));
    taken(append(&B));
}

Test(gather, a_batch_is_in_progress_while_its_group_is_in_the_device)
{
    io_fault_hold(life.io, IO_WRITE, true);
    struct sent *first = batch(&A);
    taken(first);
    life_until_held(&life, IO_WRITE, 1);
    busy(batch(&B));
    busy(append(&B));
    taken(batch(&A));
    cr_assert(!first->done);
    io_fault_hold(life.io, IO_WRITE, false);
    io_fault_release(life.io, IO_WRITE, 1);
    io_fault_hold(life.io, IO_FLUSH, true);
    life_until_held(&life, IO_FLUSH, 1);
    busy(batch(&B));
    io_fault_hold(life.io, IO_FLUSH, false);
    io_fault_release(life.io, IO_FLUSH, 1);
    life_settle(&life);
    taken(append(&B));
    life_settle(&life);
}

Test(gather, a_topic_is_free_again_inside_the_answer_itself)
{
    /* In progress lasts until just before the completion is posted: who hears it may be followed at once. */
    taken(batch(&A));
    life_settle(&life);
    taken(batch(&B));
    life_settle(&life);
    taken(batch(&C));
    life_settle(&life);
}

Test(gather, own_batches_go_together_in_one_group_in_order)
{
    struct sent *sent[5];
    for (unsigned i = 0; i < 5; i++) {
        sent[i] = SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 2, .bytes = 20,
                       .from = 1 + 2 * i);
        taken(sent[i]);
    }
    life_settle(&life);
    for (unsigned i = 0; i < 5; i++) {
        cr_assert_eq(sent[i]->write.group, sent[0]->write.group);
        cr_assert_eq(sent[i]->write.first_sequence, 1 + 2 * i);
        cr_assert(i == 0 || sent[i]->order > sent[i - 1]->order);
    }
    life_committed(&life, "t", 10);
    life_verify(&life);
}

Test(gather, batches_of_other_owners_to_other_topics_are_taken_in_parallel)
{
    taken(batch(&A));
    taken(SEND(&life, .name = "u", .kind = WRITE_BATCH, .owner = &B, .entries = 1, .bytes = 1));
    taken(SEND(&life, .name = "v", .kind = WRITE_BATCH, .owner = &C, .entries = 1, .bytes = 1));
    uint64_t groups = life_stats(&life).groups;
    life_settle(&life);
    cr_assert_eq(life_stats(&life).groups, groups + 1);
}

Test(gather, a_topic_is_free_after_its_batch_failed)
{
    /* The group's write, the header of the next segment, the second try. */
    life.plans[IO_WRITE] = (struct plan){.failing = 1 << 0 | 1 << 2, .error = -EIO};
    struct sent *sent = batch(&A);
    taken(sent);
    life_settle(&life);
    cr_assert_eq(sent->write.result, -EIO);
    life_quiet(&life);
    taken(batch(&B));
    life_settle(&life);
}

Test(gather, a_topic_is_free_after_a_refused_batch)
{
    cr_assert_eq(SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 2001)->refused,
                 -EINVAL);
    taken(batch(&B));
    life_settle(&life);
}

/* ---------------------------------------------------------------------------------------------- -EAGAIN */

Test(gather, a_full_group_says_again_and_takes_after_the_turn)
{
    unsigned taken_count = 0;
    struct sent *last;
    do {
        last = SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 1, .bytes = 900000,
                    .from = 1 + taken_count);
        taken_count += last->refused == 0;
    } while (last->refused == 0 && taken_count < 20);
    cr_assert_eq(last->refused, -EAGAIN);
    cr_assert_eq(last->write.reason, REASON_MEMORY);
    cr_assert_eq(taken_count, 4u, "a group holds 4 MiB");
    uint64_t from = 1 + taken_count;
    log_turn(life.log);
    int again = life_again(last);
    cr_assert_eq(again, 0, "after the turn another buffer gathers: %d", again);
    (void)from;
    life_settle(&life);
    life_committed(&life, "t", taken_count + 1);
    life_verify(&life);
}

Test(gather, the_frames_of_a_group_are_bounded_too)
{
    unsigned count = 0;
    int refused;
    do {
        refused = append(&A)->refused;
        count += refused == 0;
    } while (refused == 0 && count < 20000);
    cr_assert_eq(refused, -EAGAIN);
    cr_assert_eq(count, 8192u);
    life_settle(&life);
    cr_assert_eq(life_stats(&life).entries, 8192u);
}

Test(gather, space_that_is_being_prepared_says_again_and_clears_by_itself)
{
    /* Every change of segment needs a prepared one, and only one is prepared ahead here. */
    unsigned again = 0;
    for (unsigned i = 0; i < 12; i++) {
        struct sent *sent = SEND(&life, .name = "t", .kind = WRITE_BATCH, .entries = 1, .bytes = 3000000);
        for (unsigned turns = 0; sent->refused == -EAGAIN; turns++) {
            again += sent->write.reason == REASON_SPACE;
            cr_assert_lt(turns, 20000u);
            life_turn(&life);
            life_again(sent);
        }
        cr_assert_eq(sent->refused, 0);
        life_settle(&life);
        life_committed(&life, "t", 1);
    }
    life_verify(&life);
    cr_assert_gt(life_stats(&life).segments, 8u);
    (void)again;
}

/* ----------------------------------------------------------------------------------------------- topics */

Test(gather, topic_names_of_1_to_255_bytes_are_taken_and_others_refused)
{
    struct topic *topic;
    char name[300];
    memset(name, 'n', sizeof name);
    cr_assert_eq(log_topic(life.log, name, 0, 0, NO_UID, true, &topic), -EINVAL);
    cr_assert_eq(log_topic(life.log, name, 256, 0, NO_UID, true, &topic), -EINVAL);
    cr_assert_eq(log_topic(life.log, "a\nb", 3, 0, NO_UID, true, &topic), -EINVAL);
    cr_assert_eq(log_topic(life.log, "a\0b", 3, 0, NO_UID, true, &topic), -EINVAL);
    cr_assert_eq(log_topic(life.log, "\x7f", 1, 0, NO_UID, true, &topic), -EINVAL);
    cr_assert_eq(log_topic(life.log, "t", 1, LEVEL_DURABLE + 1, NO_UID, true, &topic), -EINVAL);
    cr_assert_eq(log_topic(life.log, "t", 1, 0, NO_UID, false, &topic), -ENOENT);
    name[255] = 0;
    for (unsigned length = 255; length > 30; length -= 45) {
        name[length] = 0;
        life_put(&life, name, 1, 10);
    }
    life_put(&life, "../../etc/passwd", 1, 10);
    life_put(&life, "\xff\xfe \xc3\xa4", 1, 10);
    life_crash(&life);
    life_start(&life);
    life_verify(&life);
}

Test(gather, a_topic_that_was_never_written_is_not_in_the_catalogue)
{
    struct topic *topic = life_topic(&life, "asked for");
    cr_assert_null(log_topic_after(life.log, 0));
    log_topic_release(life.log, topic);
    cr_assert_eq(log_topic(life.log, "asked for", 9, 0, NO_UID, false, &topic), -ENOENT, "it is forgotten");
}

Test(gather, the_number_of_topics_is_limited_with_edquot)
{
    life_crash(&life);
    life.options.max_topics = 3;
    life_start(&life);
    life_put(&life, "a", 1, 1);
    life_put(&life, "b", 1, 1);
    life_put(&life, "c", 1, 1);
    struct topic *topic;
    cr_assert_eq(log_topic(life.log, "d", 1, 0, NO_UID, true, &topic), -EDQUOT);
    cr_assert_eq(log_topic(life.log, "c", 1, 0, NO_UID, true, &topic), 0);
    log_topic_release(life.log, topic);
}

Test(gather, topics_are_listed_by_id_and_ids_stay)
{
    const char *names[] = {"one", "two", "three"};
    uint32_t ids[3];
    for (unsigned i = 0; i < 3; i++)
        life_put(&life, names[i], 1, 1);
    for (unsigned round = 0; round < 2; round++) {
        uint32_t id = 0;
        for (unsigned i = 0; i < 3; i++) {
            struct topic_view view;
            struct topic *topic = log_topic_after(life.log, id);
            cr_assert_not_null(topic);
            log_topic_view(topic, &view);
            cr_assert_str_eq(view.name, names[i]);
            cr_assert_gt(view.id, id);
            cr_assert(round == 0 || view.id == ids[i], "a topic got another id");
            ids[i] = id = view.id;
        }
        cr_assert_null(log_topic_after(life.log, id));
        life_crash(&life);
        life_start(&life);
    }
}

struct waiting {
    struct topic_waiter waiter;
    unsigned woken;
};

static void wake(struct topic_waiter *waiter)
{
    ((struct waiting *)waiter)->woken++;
}

Test(gather, who_waits_for_a_topic_is_woken_once_when_it_moves)
{
    struct waiting one = {.waiter.wake = wake}, two = {.waiter.wake = wake};
    struct topic *topic = life_topic(&life, "t");
    log_topic_wait(topic, &one.waiter);
    log_topic_wait(topic, &two.waiter);
    log_topic_wait_cancel(&two.waiter);
    log_topic_wait_cancel(&two.waiter);
    life_put(&life, "other", 1, 1);
    cr_assert_eq(one.woken, 0u);
    life_put(&life, "t", 1, 1);
    cr_assert_eq(one.woken, 1u);
    life_put(&life, "t", 1, 1);
    cr_assert_eq(one.woken, 1u);
    cr_assert_eq(two.woken, 0u);
    log_topic_release(life.log, topic);
}

Test(gather, a_stopping_log_refuses_with_eshutdown)
{
    io_fault_set(life.io, IO_FLUSH, &(struct fault){.action = FAULT_FAIL_BEFORE, .error = EIO, .nth = 1});
    taken(batch(&A));
    life_settle(&life);
    cr_assert_not_null(log_failed(life.log));
    cr_assert_eq(batch(&A)->refused, -ESHUTDOWN);
}
