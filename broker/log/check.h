/* check.h: reads a stopped store from end to end and says what is damaged, where. Never writes, never locks
 * for long. */
#ifndef WALRUS_LOG_CHECK_H
#define WALRUS_LOG_CHECK_H

#include "../io/io.h"

enum finding_kind {
    FINDING_DAMAGE, /* committed data is damaged or missing: a start would be refused, or a read would fail */
    FINDING_TORN,   /* an unfinished group at the tail: normal after a crash; a start cuts it */
    FINDING_NOTE,   /* something to know: left-over file, stale checkpoint */
};

struct finding {
    enum finding_kind kind;
    const char *file;  /* name in the store folder, or "" */
    uint64_t segment;  /* number, 0 = none */
    uint64_t offset;   /* in the file */
    const char *topic; /* "" if not known */
    uint64_t sequence; /* first sequence of the batch, 0 = not known */
    uint64_t batch;    /* batch number, 0 = anonymous or not known */
    const char *text;  /* what, and the way out */
};

struct check_report {
    char store_id[33];
    bool clean_stop;
    uint64_t epoch;
    uint64_t segments, groups, batches, entries, payload_bytes, topics;
    uint64_t damaged, torn, notes;
};

/* Calls found() for each finding. 0 when the store could be read to the end (look at report->damaged), or the
 * error that stopped the check: -ENOTEMPTY, -ENOENT not a store; -EPROTONOSUPPORT; -EBUSY a living broker
 * holds it; -EIO; ... */
int log_check(struct io *io, void (*found)(void *context, const struct finding *finding), void *context,
              struct check_report *report, struct error *err) must_check;

#endif
