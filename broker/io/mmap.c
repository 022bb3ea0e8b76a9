#include "threaded.h"
int mmap_start(struct real *real, struct error *err)
{
    (void)real;
    return error_set(err, -EOPNOTSUPP, "this build has no mmap back end");
}
