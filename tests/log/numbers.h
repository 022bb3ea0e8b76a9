/* numbers.h: what the suites of numbered batches share: one life, and producers of uid 7 that write batches
 * of three entries. */
#ifndef WALRUS_TESTS_LOG_NUMBERS_H
#define WALRUS_TESTS_LOG_NUMBERS_H

#include "life.h"

static struct life life;
static const int A, B; /* two handles */

static inline void make(void)
{
    life_make(&life);
    life_start(&life);
    life_quiet(&life);
}

static inline void clean(void)
{
    life_remove(&life);
}

/* ------------------------------------------------------------------------------------------------ helpers */

static inline struct producer *named(const char *name)
{
    struct producer *producer;
    cr_assert_eq(log_producer_named(life.log, name, strlen(name), 7, &producer), 0);
    return producer;
}

static inline struct producer *anonymous(void)
{
    struct producer *producer;
    cr_assert_eq(log_producer_anonymous(life.log, 7, &producer), 0);
    return producer;
}

static inline void let_go(struct producer *producer)
{
    log_producer_release(life.log, producer);
}

static inline uint64_t last_of(struct producer *producer, const char *name)
{
    struct topic *topic = life_topic(&life, name);
    uint64_t last = log_last_number(life.log, producer, topic);
    log_topic_release(life.log, topic);
    return last;
}

static inline int ask(struct producer *producer, const char *name, uint64_t number, uint64_t *sequence)
{
    struct topic *topic = life_topic(&life, name);
    uint64_t entries;
    int answer = log_query(life.log, producer, topic, number, sequence, &entries);
    log_topic_release(life.log, topic);
    return answer;
}

/* One batch of three entries. */
static inline struct sent *send_one(struct producer *producer, const char *topic, uint64_t number)
{
    return SEND(&life, .name = topic, .kind = WRITE_BATCH, .owner = &A, .entries = 3, .bytes = 100,
                .producer = producer, .number = number);
}

/* The same, for more than one in flight on topic "t": its content is that of the entries from `from` on. */
static inline struct sent *send_from(struct producer *producer, uint64_t number, uint64_t from)
{
    return SEND(&life, .name = "t", .kind = WRITE_BATCH, .owner = &A, .entries = 3, .bytes = 100,
                .from = from, .producer = producer, .number = number);
}

static inline void commit_one(struct producer *producer, const char *topic, uint64_t number)
{
    struct sent *sent = send_one(producer, topic, number);
    cr_assert_eq(sent->refused, 0, "refused %d", sent->refused);
    life_settle(&life);
    cr_assert_eq(sent->write.result, 0);
    life_committed(&life, topic, 3);
}

static inline void expect_order(const struct sent *sent)
{
    cr_assert_eq(sent->refused, -EAGAIN);
    cr_assert_eq(sent->write.reason, REASON_ORDER);
    cr_assert(!sent->done);
}

static inline void expect_duplicate(const struct sent *sent, uint64_t sequence)
{
    cr_assert_eq(sent->refused, 1);
    cr_assert_eq(sent->write.result, 0);
    cr_assert(sent->write.flags & COMPLETION_DUPLICATE);
    cr_assert_eq(sent->write.first_sequence, sequence);
    cr_assert(!sent->done);
}

static inline void restart(void)
{
    life_crash(&life);
    life_start(&life);
    life_quiet(&life);
}

#endif
