/* The catalogue of producers, what a checkpoint keeps of it, what is damage in it; watermarks. */
#include "numbers.h"

#include "../../broker/log/checksum.h"

TestSuite(producers, .init = make, .fini = clean, .timeout = 60);

/* ---------------------------------------------------------------------------------------------- catalogue */

Test(producers, a_name_belongs_to_the_uid_that_made_it)
{
    struct producer *p = named("p"), *again, *other;
    commit_one(p, "t", 1);
    cr_assert_eq(log_producer_named(life.log, "p", 1, 8, &other), -EACCES);
    cr_assert_eq(log_producer_named(life.log, "p", 1, 7, &again), 0);
    cr_assert_eq(again, p);
    cr_assert_eq(log_producer_again(life.log, log_producer_id(p), 7, &other), -EACCES, "it has a name");
    let_go(again);
    let_go(p);
    restart();
    cr_assert_eq(log_producer_named(life.log, "p", 1, 8, &other), -EACCES);
    cr_assert_eq(log_producer_named(life.log, "", 0, 7, &other), -EINVAL);
    cr_assert_eq(log_producer_named(life.log, "a\nb", 3, 7, &other), -EINVAL);
}

Test(producers, a_name_that_committed_nothing_is_forgotten_when_it_is_let_go)
{
    struct producer *p = named("p"), *other;
    let_go(p);
    cr_assert_eq(log_producer_named(life.log, "p", 1, 8, &other), 0, "it is free for another uid");
    let_go(other);
}

Test(producers, g5_an_anonymous_id_is_known_again_after_a_restart)
{
    struct producer *p = anonymous(), *again;
    uint64_t id = log_producer_id(p);
    commit_one(p, "t", 1);
    let_go(p);
    restart();
    cr_assert_eq(log_producer_again(life.log, id, 8, &again), -EACCES);
    cr_assert_eq(log_producer_again(life.log, id, 7, &again), 0);
    cr_assert_eq(last_of(again, "t"), 1u);
    expect_duplicate(send_one(again, "t", 1), 1);
    commit_one(again, "t", 2);
    let_go(again);
    struct producer *fresh = anonymous();
    cr_assert_gt(log_producer_id(fresh), id);
    uint64_t unused = log_producer_id(fresh);
    let_go(fresh);
    cr_assert_eq(log_producer_again(life.log, unused, 7, &again), -ENOENT, "nothing was committed under it");
    cr_assert_eq(log_producer_again(life.log, unused + 1, 7, &again), -ENODATA, "it was never given");
    cr_assert_eq(log_producer_again(life.log, UINT64_MAX, 7, &again), -ENODATA);
}

Test(producers, g5_a_forgotten_id_is_never_taken_for_a_new_one)
{
    life_stop(&life);
    life.options.max_anonymous = 3;
    life_start(&life);
    life_quiet(&life);
    uint64_t ids[6];
    struct producer *held = anonymous(), *again;
    uint64_t held_id = log_producer_id(held);
    commit_one(held, "t", 1);
    for (unsigned i = 0; i < array_count(ids); i++) {
        struct producer *p = anonymous();
        ids[i] = log_producer_id(p);
        commit_one(p, "t", 1);
        let_go(p);
    }
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(log_producer_again(life.log, ids[i], 7, &again), -ENODATA, "id %u", i);
    cr_assert_eq(log_producer_again(life.log, ids[5], 7, &again), 0);
    expect_duplicate(send_one(again, "t", 1), life_next(&life, "t") - 3);
    let_go(again);
    commit_one(held, "t", 2); /* as long as somebody holds it, it is not forgotten */
    commit_one(held, "u", 1);
    let_go(held);
    struct producer *one_more = anonymous();
    commit_one(one_more, "u", 1);
    let_go(one_more);
    for (unsigned round = 0; round < 3; round++) {
        cr_assert_eq(log_producer_again(life.log, held_id, 7, &again), -ENODATA);
        for (unsigned i = 0; i < 4; i++)
            cr_assert_eq(log_producer_again(life.log, ids[i], 7, &again), -ENODATA, "round %u, id %u", round,
                         i);
        cr_assert_eq(log_producer_again(life.log, ids[5], 7, &again), 0);
        let_go(again);
        if (round == 0)
            life_stop(&life); /* writes a checkpoint */
        else
            life_crash(&life);
        life_start(&life);
    }
    life_verify(&life);
}

Test(producers, g24_names_and_pairs_are_limited)
{
    life_stop(&life);
    life.options.max_named = 2;
    life_start(&life);
    struct producer *p = named("p"), *q = named("q"), *r;
    cr_assert_eq(log_producer_named(life.log, "r", 1, 7, &r), -EDQUOT);
    commit_one(p, "t", 1);
    commit_one(q, "t", 1);
    cr_assert_eq(send_one(p, "u", 1)->refused, -EDQUOT);
    commit_one(p, "t", 2);
    struct producer *free_of_it = anonymous();
    commit_one(free_of_it, "u", 1);
    let_go(free_of_it);
    let_go(q);
    let_go(p);
}

Test(producers, g24_one_uid_cannot_use_up_the_names_and_pairs_of_all)
{
    life_stop(&life);
    life.options.max_named = 3;
    life.options.max_named_of_uid = 2;
    life_start(&life);
    struct producer *p = named("p"), *q = named("q"), *r, *s;
    cr_assert_eq(log_producer_named(life.log, "r", 1, 7, &r), -EDQUOT);
    commit_one(p, "t", 1);
    commit_one(q, "t", 1);
    cr_assert_eq(send_one(p, "u", 1)->refused, -EDQUOT);
    let_go(q);
    let_go(p);
    restart(); /* counts them anew */
    cr_assert_eq(log_producer_named(life.log, "r", 1, 7, &r), -EDQUOT);
    p = named("p");
    cr_assert_eq(send_one(p, "u", 1)->refused, -EDQUOT);
    cr_assert_eq(log_producer_named(life.log, "r", 1, 8, &r), 0, "another uid");
    commit_one(r, "u", 1);
    cr_assert_eq(log_producer_named(life.log, "s", 1, 8, &s), -EDQUOT, "the total");
    let_go(r);
    let_go(p);
}

/* Else one user could make the broker forget what another one is about to send again. */
Test(producers, g24_the_anonymous_producers_of_the_uid_that_has_the_most_are_forgotten_first)
{
    life_stop(&life);
    life.options.max_anonymous = 3;
    life_start(&life);
    struct producer *honest;
    cr_assert_eq(log_producer_anonymous(life.log, 8, &honest), 0);
    uint64_t id = log_producer_id(honest);
    commit_one(honest, "t", 1);
    let_go(honest);
    for (int i = 0; i < 10; i++) {
        struct producer *one = anonymous();
        commit_one(one, "t", 1);
        let_go(one);
    }
    for (int round = 0; round < 2; round++) {
        cr_assert_eq(log_producer_again(life.log, id, 8, &honest), 0, "the oldest of all, and remembered");
        cr_assert_eq(last_of(honest, "t"), 1);
        let_go(honest);
        restart();
    }
}

Test(producers, g24_topics_of_one_uid_are_limited_across_restarts)
{
    life_stop(&life);
    life.options.max_topics_of_uid = 2;
    life_start(&life);
    struct topic *topic, *kept;
    cr_assert_eq(log_topic(life.log, "a", 1, 0, 7, true, &kept), 0);
    cr_assert_eq(log_topic(life.log, "b", 1, 0, 7, true, &topic), 0);
    cr_assert_eq(log_topic(life.log, "c", 1, 0, 7, true, &topic), -EDQUOT);
    cr_assert_eq(log_topic(life.log, "c", 1, 0, 8, true, &topic), 0, "another uid");
    life_put(&life, "b", 1, 10); /* keeps the uid that made it */
    life_put(&life, "c", 1, 10);
    log_topic_release(life.log, kept); /* never written to: it does not count any more */
    cr_assert_eq(log_topic(life.log, "d", 1, 0, 7, true, &topic), 0);
    life_put(&life, "d", 1, 10);
    restart();
    cr_assert_eq(log_topic(life.log, "e", 1, 0, 7, true, &topic), -EDQUOT);
    struct topic_view view;
    cr_assert_eq(log_topic(life.log, "c", 1, 0, 9, false, &topic), 0);
    log_topic_view(topic, &view);
    cr_assert_eq(view.uid, 8u);
}

/* ------------------------------------------------------------------------------------ checkpoint, damage */

Test(producers, g5_the_log_alone_gives_the_same_numbers_as_its_checkpoint)
{
    struct producer *p = named("p"), *q = anonymous();
    uint64_t id = log_producer_id(q);
    for (uint64_t n = 1; n <= 5; n++) {
        commit_one(p, "t", n);
        commit_one(q, "u", n);
    }
    let_go(p);
    let_go(q);
    life_stop(&life);
    for (unsigned i = 0; i < 2; i++) {
        life_start(&life);
        p = named("p");
        cr_assert_eq(log_producer_again(life.log, id, 7, &q), 0);
        cr_assert_eq(last_of(p, "t"), 5u);
        cr_assert_eq(last_of(q, "u"), 5u);
        uint64_t sequence;
        cr_assert_eq(ask(q, "u", 5, &sequence), 1);
        cr_assert_eq(sequence, 13u);
        let_go(p);
        let_go(q);
        life_crash(&life);
        if (file_there(&life, "checkpoint-0"))
            file_delete(&life, "checkpoint-0");
        if (file_there(&life, "checkpoint-1"))
            file_delete(&life, "checkpoint-1");
    }
}

static void skip_a_number(struct frame_header *frame)
{
    frame->number += frame->producer != 0;
}

static void name_somebody_else(struct frame_header *frame)
{
    frame->producer += frame->producer != 0;
}

static void damage_the_entry(struct frame_header *frame)
{
    if (frame->kind == FRAME_PRODUCER) {
        struct producer_entry *entry = (void *)((uint8_t *)frame + frame->header_bytes);
        entry->name_bytes = frame->payload_bytes;
        frame_copy_payload(frame, 1, entry, frame->payload_bytes);
    }
}

static void change_the_id(struct frame_header *frame)
{
    if (frame->kind == FRAME_PRODUCER) {
        struct producer_entry *entry = (void *)((uint8_t *)frame + frame->header_bytes);
        entry->producer = 0;
        frame_copy_payload(frame, 1, entry, frame->payload_bytes);
    }
}

static void forged(void (*change)(struct frame_header *frame), const char *words)
{
    struct producer *p = named("p");
    commit_one(p, "t", last_of(p, "t") + 1);
    let_go(p);
    life_crash(&life);
    disk_forge_last(&life, change);
    life_refused(&life, -EBADMSG, words);
}

Test(producers, g13_a_number_that_is_not_the_next_one_is_damage)
{
    forged(skip_a_number, "not the next one of its producer");
}

Test(producers, g13_a_batch_of_a_producer_that_is_not_in_the_catalogue_is_damage)
{
    forged(name_somebody_else, "not the next one of its producer");
}

Test(producers, g16_a_catalogue_entry_longer_than_its_frame_is_damage)
{
    forged(damage_the_entry, "a catalogue entry makes no sense");
}

Test(producers, g13_a_catalogue_entry_without_an_id_is_damage)
{
    forged(change_the_id, "a catalogue entry makes no sense");
}

static void a_topic_far_away(struct frame_header *frame)
{
    if (frame->kind == FRAME_TOPIC) {
        struct topic_entry *entry = (void *)((uint8_t *)frame + frame->header_bytes);
        entry->topic = UINT32_MAX / 2 - 1;
        frame_copy_payload(frame, 1, entry, frame->payload_bytes);
    }
}

static void count_findings(void *context, const struct finding *finding)
{
    *(unsigned *)context += finding->kind == FINDING_DAMAGE;
}

Test(producers, g16_an_id_far_behind_all_others_takes_no_memory)
{
    forged(a_topic_far_away, "a catalogue entry makes no sense");
    life_open(&life);
    struct check_report report;
    unsigned damage = 0;
    cr_assert_eq(log_check(life.io, count_findings, &damage, &report, &life.error), 0);
}

/* Changes the checkpoint of a stopped store at `offset` behind its last producer's beginning and gives it
 * right sums again. */
static void forge_checkpoint(size_t offset, uint64_t add)
{
    const char *name = file_there(&life, "checkpoint-1") ? "checkpoint-1" : "checkpoint-0";
    struct checkpoint_header header;
    static uint8_t bytes[4096];
    cr_assert_leq(file_size_of(&life, name), sizeof bytes);
    file_peek(&life, name, 0, bytes, file_size_of(&life, name));
    memcpy(&header, bytes, sizeof header);
    /* one producer "p" with one pair lies at the end */
    uint8_t *producer =
        bytes + header.bytes - sizeof(struct checkpoint_pair) - 8 - sizeof(struct checkpoint_producer);
    uint64_t value;
    memcpy(&value, producer + offset, sizeof value);
    value += add;
    memcpy(producer + offset, &value, sizeof value);
    header.body_crc = crc32c(0, bytes + sizeof header, header.bytes - sizeof header);
    header.crc = crc32c(0, &header, offsetof(struct checkpoint_header, crc));
    memcpy(bytes, &header, sizeof header);
    file_poke(&life, name, 0, bytes, header.bytes);
    if (file_there(&life, "checkpoint-0") && strcmp(name, "checkpoint-1") == 0)
        file_delete(&life, "checkpoint-0");
}

static void forge_header_of_checkpoint(uint32_t next_topic)
{
    const char *name = file_there(&life, "checkpoint-1") ? "checkpoint-1" : "checkpoint-0";
    struct checkpoint_header header;
    file_peek(&life, name, 0, &header, sizeof header);
    header.next_topic = next_topic;
    header.crc = crc32c(0, &header, offsetof(struct checkpoint_header, crc));
    file_poke(&life, name, 0, &header, sizeof header);
}

static void stopped_with_one_producer(void)
{
    struct producer *p = named("p");
    commit_one(p, "t", 1);
    let_go(p);
    life_stop(&life);
}

Test(producers, g16_counts_of_a_checkpoint_that_do_not_add_up_make_it_not_count)
{
    stopped_with_one_producer();
    forge_checkpoint(offsetof(struct checkpoint_producer, pairs), 1000);
    life_start(&life);
    cr_assert(life_said(&life, "its counts are wrong"));
    struct producer *p = named("p");
    cr_assert_eq(last_of(p, "t"), 1u, "the log alone tells");
    let_go(p);
}

Test(producers, g13_a_checkpoint_with_a_number_of_an_unknown_topic_is_refused)
{
    stopped_with_one_producer();
    forge_checkpoint(sizeof(struct checkpoint_producer) + 8 + offsetof(struct checkpoint_pair, topic), 77);
    life_refused(&life, -EBADMSG, "checkpoint: producer");
}

Test(producers, g13_a_checkpoint_with_a_number_0_is_refused)
{
    stopped_with_one_producer();
    forge_checkpoint(sizeof(struct checkpoint_producer) + 8 + offsetof(struct checkpoint_pair, number),
                     UINT64_MAX);
    life_refused(&life, -EBADMSG, "checkpoint: producer");
}

Test(producers, g16_a_next_topic_id_out_of_nowhere_is_refused)
{
    stopped_with_one_producer();
    forge_header_of_checkpoint(UINT32_MAX);
    life_refused(&life, -EBADMSG, "next topic id");
}

Test(producers, g24_topics_of_one_anonymous_producer_are_limited)
{
    life_stop(&life);
    life.options.max_anonymous = 3;
    life_start(&life);
    struct producer *p = anonymous();
    commit_one(p, "a", 1);
    commit_one(p, "b", 1);
    commit_one(p, "c", 1);
    cr_assert_eq(send_one(p, "d", 1)->refused, -EDQUOT);
    commit_one(p, "a", 2);
    let_go(p);
}

/* ------------------------------------------------------------------------------------------- watermarks */

Test(producers, watermarks_follow_what_is_written_and_what_is_flushed)
{
    static struct watermark marks[2];
    life_remove(&life);
    life_make(&life);
    life.options.segment_bytes = SEGMENT_SMALL; /* smaller ones are flushed at once */
    life.options.interval_ns = 1000 * SECOND;
    life.options.watermarks = marks;
    life.options.watermark_slots = array_count(marks);
    life_start(&life);
    life_quiet(&life);
    struct topic *t = life_topic(&life, "t");
    struct topic_view view;
    log_topic_view(t, &view);
    struct watermark *mark = &marks[view.watermark];
    cr_assert_eq(mark->written_next, 1u);
    cr_assert_eq(mark->durable_next, 1u);
    life_put(&life, "t", 5, 100);
    cr_assert_eq(mark->written_next, 6u);
    cr_assert_eq(mark->durable_next, 6u);
    SEND(&life, .name = "loose", .kind = WRITE_BATCH, .entries = 4, .bytes = 10,
         .topic_level = LEVEL_WRITTEN);
    life_settle(&life);
    struct topic *loose = life_topic(&life, "loose");
    log_topic_view(loose, &view);
    cr_assert_eq(marks[view.watermark].written_next, 5u);
    cr_assert_eq(marks[view.watermark].durable_next, 1u);
    life_put(&life, "t", 1, 100); /* its flush covers everything before it */
    cr_assert_eq(marks[view.watermark].durable_next, 5u);
    struct topic *third = life_topic(&life, "third");
    log_topic_view(third, &view);
    cr_assert_eq(view.watermark, NO_WATERMARK, "there are no more slots");
    log_topic_release(life.log, third);
    log_topic_release(life.log, loose);
    log_topic_release(life.log, t);
    life_crash(&life);
    memset(marks, 0, sizeof marks);
    life_start(&life);
    t = life_topic(&life, "t");
    log_topic_view(t, &view);
    cr_assert_eq(marks[view.watermark].durable_next, 7u, "as recovered");
    log_topic_release(life.log, t);
}

Test(producers, a_slot_of_a_topic_that_was_never_written_is_given_to_the_next)
{
    static struct watermark marks[1];
    life_stop(&life);
    life.options.watermarks = marks;
    life.options.watermark_slots = array_count(marks);
    life_start(&life);
    for (unsigned i = 0; i < 3; i++) {
        struct topic *t = life_topic(&life, i == 0 ? "a" : i == 1 ? "b" : "c");
        struct topic_view view;
        log_topic_view(t, &view);
        cr_assert_eq(view.watermark, 0u);
        cr_assert_eq(marks[0].written_next, 1u);
        log_topic_release(life.log, t);
        cr_assert_eq(marks[0].written_next, 0u);
    }
}
