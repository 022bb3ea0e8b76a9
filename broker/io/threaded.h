/* threaded.h: a back end whose data work (READ, WRITE, FLUSH) is done, one op after the other, by one I/O
 * thread. pwrite and mmap are two of them. For broker/io only. */
#ifndef WALRUS_THREADED_H
#define WALRUS_THREADED_H

#include "real.h"

struct threaded {
    struct real real;         /* first */
    struct worker data;       /* the I/O thread */
    struct op_queue for_data; /* submitted, not yet handed over: one lock and one wake-up for all of them */
    int64_t (*perform)(struct threaded *threaded, struct io_op *op);
    void (*end)(void); /* what the back end undoes last, or NULL */
    int final_error;   /* mmap: the I/O thread's; the first error, after which no flush succeeds */
};

static inline struct threaded *threaded_of(struct real *real)
{
    return (struct threaded *)(void *)real;
}

int threaded_start(struct real *real, int64_t (*perform)(struct threaded *threaded, struct io_op *op),
                   struct error *err) must_check;

#endif
