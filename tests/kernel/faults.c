#include "kernel.h"
int job_full(struct work *work, struct error *err)
{
    (void)work;
    (void)error_set(err, -ENOSYS, "not yet");
    return SOAK_SKIPPED;
}
int job_failing(struct work *work, struct error *err)
{
    (void)work;
    (void)error_set(err, -ENOSYS, "not yet");
    return SOAK_SKIPPED;
}
