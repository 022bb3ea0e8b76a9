#include "real.h"
size_t uring_size(void)
{
    return sizeof(struct real);
}
int uring_start(struct real *real, struct error *err)
{
    (void)real;
    return error_set(err, -EOPNOTSUPP, "this build has no io_uring back end");
}
