#include "io.h"

static void run_done(struct io_op *op)
{
    *(bool *)op->owner = true;
}

int64_t io_run(struct io *io, struct io_op *op)
{
    bool finished = false;
    op->owner = &finished;
    op->done = run_done;
    io_submit(io, op);
    io_kick(io);
    while (!finished)
        io_wait(io, -1);
    return op->result;
}

void io_signal_send(struct io *io, struct io_signal *signal)
{
    if (io->functions->signal_send != NULL)
        io->functions->signal_send(io, signal);
}

void io_signal_cancel(struct io *io, struct io_signal *signal)
{
    if (io->functions->signal_cancel != NULL)
        io->functions->signal_cancel(io, signal);
}
