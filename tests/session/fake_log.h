/* fake_log.h: a log in memory behind log.h, for the tests of sessions. It admits, answers at the next turn
 * and remembers; knobs make it refuse, hold back and fail. */
#ifndef WALRUS_FAKE_LOG_H
#define WALRUS_FAKE_LOG_H

#include "../../broker/log/log.h"

struct fake_entry {
    uint32_t length;
    uint8_t type;
    uint8_t *bytes;
};

struct topic {
    struct topic *next;
    char name[MAX_TOPIC_NAME + 1];
    size_t name_length;
    uint32_t id;
    uint8_t level;
    int refs;
    const void *owner; /* of the batches in progress */
    uint32_t batches;
    struct fake_entry *entries;
    size_t count;
    struct topic_waiter *waiters;
    void *word;
};

struct producer {
    struct producer *next;
    uint64_t id;
    uint32_t uid;
    char name[MAX_TOPIC_NAME + 1]; /* "" = anonymous */
    size_t name_length;
    int refs;
    void *word;
    bool committed; /* something of it was: it is remembered */
};

/* What a producer has committed on a topic, and what of it is on its way. */
struct fake_number {
    struct fake_number *next;
    const struct producer *producer;
    const struct topic *topic;
    uint64_t last, admitted;
};

struct log {
    struct io *io;
    struct topic *topics;
    struct producer *producers;
    struct fake_number *numbers;
    uint64_t last_producer; /* id */
    uint64_t horizon;       /* ids up to it are forgotten */
    uint32_t max_named;     /* 0 = any number */
    uint32_t next_id;
    struct write *first, **last;
    struct log_read *reads;
    struct log_stats stats;
    struct error failure;
    int64_t deadline;  /* what log_turn returns: 0 = the loop never sleeps (tests that step) */
    bool hold_answers; /* log_turn answers nothing */
    bool hold_reads;
    int refuse; /* the next `refuse_count` writes are refused with this */
    uint8_t refuse_reason;
    int refuse_count;
    bool fail_on_turn; /* log_failed from the next turn on */
    int aborts;        /* log_stream_abort calls */
    int writes_seen;   /* log_write calls */
    int room;          /* so many writes are taken between two turns, then -EAGAIN, MEMORY; 0 = any number */
    int taken;         /* since the last turn that answered */
    int fail;          /* the next `fail_count` writes are taken, and answered with this */
    uint8_t fail_reason;
    int fail_count;
    int64_t group_takes_ns; /* as the stamps of a write have it */
    void (*on_topic_free)(void *context, struct topic *topic);
    void *on_topic_free_context;
    uint64_t busy_hash;
};

void fake_log_init(struct log *log, struct io *io);
void fake_log_clear(struct log *log);
struct topic *fake_topic(struct log *log, const char *name);       /* NULL: not there */
struct producer *fake_producer(struct log *log, const char *name); /* NULL: not there */
/* References that sessions hold, to topics and producers. */
int fake_references(const struct log *log);
/* Puts an entry in without a session. */
void fake_append(struct log *log, const char *name, const void *data, uint32_t length);

#endif
