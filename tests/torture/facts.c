/* facts.c: what the folder lies on, and how fast its device says that it has flushed. */
#include <sys/stat.h>
#include <unistd.h>

#include "../../bench/machine.h"
#include "../../broker/io/io.h"
#include "../../broker/program/paths.h"
#include "../../shared/message.h"
#include "torture.h"

#define PROBE_BYTES    (64u << 10)
#define PROBE_COUNT    200u
#define PROBE_LIMIT_NS INT64_C(2000000000)
#define PROBE_FILE     "walrus-flush-probe"
#define IMPLAUSIBLE_US 25.0 /* a flash device needs more for the bus alone, power-loss protection or not */

struct probe {
    struct io *io;
    struct io_file *file;
    uint8_t *bytes;
    double us[PROBE_COUNT];
    uint32_t count;
};

static int one(struct probe *probe, struct io_op op, const char *what, struct error *err)
{
    int64_t result = io_run(probe->io, &op);
    if (op.kind == IO_CREATE)
        probe->file = op.file;
    if (result < 0 || (op.kind == IO_WRITE && result != (int64_t)op.length))
        return error_set(err, result < 0 ? (int)result : -EIO, "%s a file in %s: %s", what, probe->io->folder,
                         strerror(result < 0 ? (int)-result : EIO));
    return 0;
}

/* Writes 64 KiB and flushes, over and over, in space that was written before. */
static int measure(struct probe *probe, struct error *err)
{
    struct io_op write = {
        .kind = IO_WRITE, .file = probe->file, .buffer = probe->bytes, .length = PROBE_BYTES};
    struct io_op flush = {.kind = IO_FLUSH, .file = probe->file};
    int64_t begin = io_now(probe->io);
    int rc = one(probe, write, "writing", err);
    if (rc == 0)
        rc = one(probe, flush, "flushing", err);
    while (rc == 0 && probe->count < PROBE_COUNT && io_now(probe->io) - begin < PROBE_LIMIT_NS) {
        probe->bytes[probe->count % PROBE_BYTES]++;
        int64_t from = io_now(probe->io);
        rc = one(probe, write, "writing", err);
        if (rc == 0)
            rc = one(probe, flush, "flushing", err);
        probe->us[probe->count++] = (double)(io_now(probe->io) - from) / 1e3;
    }
    return rc;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int probe_flush(struct io *io, struct torture_facts *facts, struct error *err)
{
    struct probe probe = {.io = io, .bytes = aligned_alloc(64u << 10, PROBE_BYTES)};
    if (probe.bytes == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    memset(probe.bytes, 0x5a, PROBE_BYTES);
    int rc = one(&probe, (struct io_op){.kind = IO_CREATE, .name = PROBE_FILE}, "making", err);
    if (rc == 0) {
        facts->direct = io->functions->file_align(io, probe.file) > 1 && io->backend != IO_BACKEND_MMAP;
        rc = measure(&probe, err);
        if (one(&probe, (struct io_op){.kind = IO_CLOSE, .file = probe.file}, "closing", NULL) != 0 ||
            one(&probe, (struct io_op){.kind = IO_UNLINK, .name = PROBE_FILE}, "removing", err) != 0)
            rc = rc == 0 ? -EIO : rc;
    }
    if (rc == 0 && probe.count > 0) {
        qsort(probe.us, probe.count, sizeof probe.us[0], ascending);
        facts->flush_p50_us = probe.us[probe.count / 2];
        facts->flush_p99_us = probe.us[probe.count * 99 / 100];
        facts->implausible = facts->flush_p50_us < IMPLAUSIBLE_US;
    }
    free(probe.bytes);
    return rc;
}

static void say_backend(struct torture_facts *facts, int backend)
{
    const char *name = backend == IO_BACKEND_URING ? "uring" : backend == IO_BACKEND_MMAP ? "mmap" : "pwrite";
    snprintf(facts->backend, sizeof facts->backend, "%s", name);
}

int torture_look(const struct torture *torture, struct torture_facts *facts, struct error *err)
{
    struct machine *machine = calloc(1, sizeof *machine);
    struct io *io = NULL;
    struct io_real_options options = {
        .folder = torture->folder, .backend = torture->backend, .watch_fd = -1, .allow_direct = true};
    if (machine == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    memset(facts, 0, sizeof *facts);
    machine_look(machine, torture->folder);
    memcpy(facts->device, machine->device, sizeof facts->device);
    memcpy(facts->write_cache, machine->write_cache, sizeof facts->write_cache);
    memcpy(facts->kernel, machine->kernel, sizeof facts->kernel);
    facts->physical_block = machine->physical_block;
    free(machine);
    file_system_of(torture->folder, facts->file_system, &facts->promised);
    int rc = io_real_create(&options, &io, facts->fallback, err);
    if (rc != 0)
        return rc;
    facts->logical_block = io->logical_block;
    facts->align = io->align;
    say_backend(facts, io->backend);
    rc = probe_flush(io, facts, err);
    io->functions->destroy(io);
    return rc;
}
