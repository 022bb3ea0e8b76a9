#include "kernel.h"
int job_cries(struct work *work, struct error *err)
{
    (void)work;
    (void)error_set(err, -ENOSYS, "not yet");
    return SOAK_SKIPPED;
}
