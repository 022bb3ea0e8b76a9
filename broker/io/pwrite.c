/* pwrite.c: the back end for systems that refuse io_uring: pread, pwrite and fdatasync in the I/O thread. A
 * durable write is one pwritev2 with RWF_DSYNC. */
#include "threaded.h"

static int64_t pwrite_perform(struct threaded *threaded, struct io_op *op)
{
    (void)threaded;
    return file_perform(op);
}

int pwrite_start(struct real *real, struct error *err)
{
    return threaded_start(real, pwrite_perform, err);
}
