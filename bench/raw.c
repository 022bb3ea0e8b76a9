/* raw.c: durable writes without a broker (see raw.h).
 *
 * Happy path of a run: open the file the method's way; fill a buffer of depth payloads with random bytes;
 * until the time is over: stamp every block (so that no two writes are the same), write, make durable, one
 * histogram sample per payload.
 *
 * "depth" under way means: for the methods that flush, one group of `depth` payloads per write and flush
 * (what a group commit of that many closed-loop callers does); for DSYNC_PARALLEL, `depth` single writes
 * in flight, each durable by itself.
 *
 * Failure modes: a short write or an error ends the run; O_DIRECT or io_uring refused is -EOPNOTSUPP for
 * that method. */
#include "raw.h"

#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include "payload.h"
#include "phases.h"

#define PREPARE_PIECE (4u << 20)
#define RANK_NS       INT64_C(250000000)
#define MOST_DEPTH    1024u

const char *const raw_method_names[RAW_METHODS] = {
    "O_DIRECT|O_DSYNC",
    "O_DIRECT + fdatasync",
    "io_uring + fdatasync",
    "buffered + fdatasync",
    "O_DIRECT|O_DSYNC, parallel through io_uring",
};

/* Random bytes in aligned memory. */
static uint8_t *random_buffer(uint64_t bytes)
{
    struct payload_pool pool;
    uint8_t *buffer = device_memory(bytes);
    if (buffer == NULL || payload_pool_make(&pool, (uint64_t)now_ns()) < 0) {
        free(buffer);
        return NULL;
    }
    payload_fill_long(&pool, buffer, bytes, 0);
    payload_pool_release(&pool);
    return buffer;
}

static void stamp_blocks(uint8_t *buffer, uint64_t bytes, uint64_t *stamp)
{
    for (uint64_t at = 0; at < bytes; at += RAW_BLOCK) {
        ++*stamp;
        memcpy(buffer + at, stamp, sizeof *stamp);
    }
}

static int write_all(int fd, const uint8_t *buffer, uint64_t bytes, uint64_t offset)
{
    while (bytes > 0) {
        ssize_t n = pwrite(fd, buffer, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        buffer += n;
        offset += (uint64_t)n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

/* Creates the file, allocates it, and, unless only allocated is wanted, writes all of it. */
static int make_space(const char *path, uint64_t bytes, enum raw_space space, struct error *err)
{
    int result = 0;
    uint64_t stamp = (uint64_t)now_ns();
    uint8_t *buffer = random_buffer(PREPARE_PIECE);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || buffer == NULL) {
        result = error_set(err, fd < 0 ? -errno : -ENOMEM, "cannot make %s: %s", path, strerror(errno));
        goto out;
    }
    if (posix_fallocate(fd, 0, (off_t)bytes) != 0) {
        result = error_set(err, -ENOSPC, "cannot allocate %llu bytes for %s; use another --dir",
                           (unsigned long long)bytes, path);
        goto out;
    }
    if (space != RAW_ALLOCATED) {
        int direct = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
        for (uint64_t at = 0; at < bytes && result == 0; at += PREPARE_PIECE) {
            stamp_blocks(buffer, PREPARE_PIECE, &stamp);
            result = write_all(direct >= 0 ? direct : fd, buffer, min_u64(PREPARE_PIECE, bytes - at), at);
        }
        if (direct >= 0)
            close(direct);
    }
    if (result == 0 && fsync(fd) < 0)
        result = -errno;
    if (result < 0)
        error_set(err, result, "writing %s: %s", path, strerror(-result));
out:
    if (fd >= 0)
        close(fd);
    free(buffer);
    return result;
}

int raw_prepare(struct raw_file *file, const char *path, uint64_t bytes, struct error *err)
{
    snprintf(file->path, sizeof file->path, "%s", path);
    file->bytes = align_up(bytes, PREPARE_PIECE);
    return make_space(path, file->bytes, RAW_PREPARED, err);
}

void raw_remove(struct raw_file *file)
{
    if (file->path[0] != 0)
        (void)unlink(file->path);
    file->path[0] = 0;
}

/* One run. */
struct raw {
    const struct raw_request *request;
    enum raw_method method;
    int fd;
    struct io_uring ring;
    bool ring_made;
    uint8_t *buffer;
    uint64_t rounded; /* payload in whole blocks */
    uint64_t group;   /* depth payloads */
    uint64_t offset, stamp;
    uint64_t payloads;
    struct payload_pool pool; /* fresh bytes come from here */
    int64_t writing_ns;       /* what the clock of the writes saw, in all */
    int64_t begun[MOST_DEPTH];
    struct histogram latency;
};

static uint64_t take_space(struct raw *raw, uint64_t bytes)
{
    if (raw->offset + bytes > raw->request->file->bytes)
        raw->offset = 0;
    uint64_t at = raw->offset;
    raw->offset += bytes;
    return at;
}

static int uring_wait_one(struct raw *raw, uint64_t *data)
{
    struct io_uring_cqe *cqe;
    int result = io_uring_wait_cqe(&raw->ring, &cqe);
    if (result < 0)
        return result;
    result = cqe->res;
    *data = io_uring_cqe_get_data64(cqe);
    io_uring_cqe_seen(&raw->ring, cqe);
    return result;
}

/* All payloads as parallel writes, then one flush. */
static int uring_group(struct raw *raw, uint64_t at)
{
    uint32_t depth = raw->request->depth;
    uint64_t data;
    int result;
    for (uint32_t i = 0; i < depth; i++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&raw->ring);
        check_bug(sqe != NULL);
        io_uring_prep_write(sqe, raw->fd, raw->buffer + i * raw->rounded, (unsigned)raw->rounded,
                            at + i * raw->rounded);
        /* As the broker does it: more than two at once are merged into one large request, which is slower. */
        if (io_uring_sq_ready(&raw->ring) == 2 && (result = io_uring_submit(&raw->ring)) < 0)
            return result;
    }
    result = io_uring_submit_and_wait(&raw->ring, depth);
    for (uint32_t i = 0; i < depth && result >= 0; i++) {
        result = uring_wait_one(raw, &data);
        if (result >= 0 && (uint64_t)result != raw->rounded)
            result = -EIO;
    }
    if (result < 0)
        return result;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&raw->ring);
    check_bug(sqe != NULL);
    io_uring_prep_fsync(sqe, raw->fd, IORING_FSYNC_DATASYNC);
    result = io_uring_submit_and_wait(&raw->ring, 1);
    if (result >= 0)
        result = uring_wait_one(raw, &data);
    return result < 0 ? result : 0;
}

static int write_group(struct raw *raw)
{
    uint64_t at = take_space(raw, raw->group);
    if (raw->request->fresh)
        payload_fill_long(&raw->pool, raw->buffer, raw->group, raw->stamp * 8 % PAYLOAD_POOL);
    stamp_blocks(raw->buffer, raw->group, &raw->stamp);
    int64_t from = now_ns();
    int result;
    if (raw->method == RAW_URING)
        result = uring_group(raw, at);
    else {
        result = write_all(raw->fd, raw->buffer, raw->group, at);
        if (result == 0 && raw->method != RAW_DSYNC && fdatasync(raw->fd) < 0)
            result = -errno;
    }
    int64_t took = now_ns() - from;
    raw->writing_ns += took;
    histogram_add(&raw->latency, took, raw->request->depth);
    raw->payloads += raw->request->depth;
    return result;
}

static void parallel_submit(struct raw *raw, uint32_t slot)
{
    uint8_t *buffer = raw->buffer + slot * raw->rounded;
    stamp_blocks(buffer, raw->rounded, &raw->stamp);
    struct io_uring_sqe *sqe = io_uring_get_sqe(&raw->ring);
    check_bug(sqe != NULL);
    raw->begun[slot] = now_ns();
    io_uring_prep_write(sqe, raw->fd, buffer, (unsigned)raw->rounded, take_space(raw, raw->rounded));
    io_uring_sqe_set_data64(sqe, slot);
}

/* Keeps `depth` writes in flight until the time is over, then takes in the rest. */
static int parallel_loop(struct raw *raw, int64_t until, uint64_t most)
{
    uint32_t flying = raw->request->depth;
    for (uint32_t i = 0; i < flying; i++)
        parallel_submit(raw, i);
    int result = io_uring_submit(&raw->ring);
    while (flying > 0 && result >= 0) {
        uint64_t slot;
        result = uring_wait_one(raw, &slot);
        if (result < 0)
            break;
        if ((uint64_t)result != raw->rounded)
            return -EIO;
        int64_t now = now_ns();
        histogram_add(&raw->latency, now - raw->begun[slot], 1);
        raw->payloads++;
        flying--;
        if (now < until && raw->payloads + flying < most) {
            parallel_submit(raw, (uint32_t)slot);
            flying++;
            result = io_uring_submit(&raw->ring);
        }
    }
    return result < 0 ? result : 0;
}

static int raw_open(struct raw *raw, struct error *err)
{
    static const int flags[RAW_METHODS] = {O_DIRECT | O_DSYNC, O_DIRECT, O_DIRECT, 0, O_DIRECT | O_DSYNC};
    const struct raw_request *request = raw->request;
    if (request->fresh && raw->method == RAW_DSYNC_PARALLEL)
        return error_set(err, -EOPNOTSUPP, "fresh bytes and writes in parallel");
    raw->rounded = align_up(request->payload, RAW_BLOCK);
    raw->group = raw->rounded * request->depth;
    if (raw->group > request->file->bytes || request->depth > MOST_DEPTH)
        return error_set(err, -EINVAL, "the raw file is too small for %u payloads of %llu bytes",
                         request->depth, (unsigned long long)request->payload);
    raw->fd = open(request->file->path, O_RDWR | O_CLOEXEC | flags[raw->method]);
    if (raw->fd < 0)
        return error_set(err, -EOPNOTSUPP, "%s: %s", raw_method_names[raw->method], strerror(errno));
    raw->buffer = random_buffer(raw->group);
    if (raw->buffer == NULL)
        return error_set(err, -ENOMEM, "out of memory for raw writes");
    if (raw->method == RAW_URING || raw->method == RAW_DSYNC_PARALLEL) {
        int result = io_uring_queue_init(request->depth + 1, &raw->ring,
                                         IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
        if (result < 0)
            result = io_uring_queue_init(request->depth + 1, &raw->ring, 0);
        if (result < 0)
            return error_set(err, -EOPNOTSUPP, "io_uring: %s", strerror(-result));
        raw->ring_made = true;
    }
    raw->stamp = (uint64_t)now_ns();
    histogram_clear(&raw->latency);
    if (request->fresh && payload_pool_make(&raw->pool, raw->stamp) < 0)
        return error_set(err, -ENOMEM, "out of memory for raw writes");
    return 0;
}

int raw_run(const struct raw_request *request, enum raw_method method, struct raw_numbers *result,
            struct error *err)
{
    struct raw *raw = calloc(1, sizeof *raw);
    if (raw == NULL)
        return error_set(err, -ENOMEM, "out of memory for raw writes");
    raw->request = request;
    raw->method = method;
    raw->fd = -1;
    memset(result, 0, sizeof *result);
    int code = raw_open(raw, err);
    if (code < 0)
        goto out;
    uint64_t most =
        request->most_bytes != 0 ? request->most_bytes / max_u64(request->payload, 1) : UINT64_MAX;
    int64_t from = now_ns(), until = from + request->duration_ns;
    if (method == RAW_DSYNC_PARALLEL)
        code = parallel_loop(raw, until, most);
    else
        while (code == 0 && now_ns() < until && raw->payloads < most &&
               (request->interrupted == NULL || *request->interrupted == 0))
            code = write_group(raw);
    double seconds = (double)(request->fresh ? raw->writing_ns : now_ns() - from) / 1e9;
    if (code < 0) {
        error_set(err, code, "raw writes (%s): %s", raw_method_names[method], strerror(-code));
        goto out;
    }
    snprintf(result->method, sizeof result->method, "%s", raw_method_names[method]);
    result->commits_per_s = (double)raw->payloads / seconds;
    result->bytes_per_s = result->commits_per_s * (double)request->payload;
    result->latency = histogram_quantiles(&raw->latency);
    result->curve = histogram_curve(&raw->latency);
out:
    if (raw->ring_made)
        io_uring_queue_exit(&raw->ring);
    if (raw->fd >= 0)
        close(raw->fd);
    payload_pool_release(&raw->pool);
    free(raw->buffer);
    free(raw);
    return code;
}

bool raw_better(const struct raw_numbers *a, const struct raw_numbers *b, uint32_t depth)
{
    return depth == 1 ? a->latency.p50 < b->latency.p50 : a->bytes_per_s > b->bytes_per_s;
}

int raw_rank(const struct raw_request *request, enum raw_method ranking[RAW_METHODS], struct error *err)
{
    struct raw_numbers numbers[RAW_METHODS] = {0};
    struct raw_request brief = *request;
    int count = 0;
    if (brief.duration_ns > RANK_NS)
        brief.duration_ns = RANK_NS;
    for (enum raw_method method = 0; method < RAW_METHODS; method++) {
        if (method == RAW_DSYNC_PARALLEL && request->depth == 1)
            continue;
        struct raw_numbers one = {0};
        int code = raw_run(&brief, method, &one, err);
        if (code == -EOPNOTSUPP)
            continue;
        if (code < 0)
            return code;
        int at = count++;
        for (; at > 0 && raw_better(&one, &numbers[at - 1], request->depth); at--) {
            numbers[at] = numbers[at - 1];
            ranking[at] = ranking[at - 1];
        }
        numbers[at] = one;
        ranking[at] = method;
    }
    return count > 0 ? count : error_set(err, -EOPNOTSUPP, "no way of writing durably works here");
}

int raw_sustained(const struct raw_request *request, const char *path, struct raw_numbers *result,
                  struct error *err)
{
    static const enum raw_method methods[] = {RAW_DSYNC, RAW_DIRECT, RAW_BUFFERED};
    struct raw_file file = {.bytes = align_up(request->most_bytes + (64u << 20), PREPARE_PIECE)};
    struct raw_request one = *request;
    snprintf(file.path, sizeof file.path, "%s", path);
    one.file = &file;
    memset(result, 0, sizeof *result);
    int code = 0;
    for (enum raw_space space = RAW_ALLOCATED; space <= RAW_WRITTEN && code == 0; space++)
        for (size_t i = 0; i < array_count(methods) && code == 0; i++) {
            struct raw_numbers run = {0};
            int64_t from = now_ns();
            code = make_space(path, file.bytes, space, err);
            double before = (double)(now_ns() - from) / 1e9;
            if (code == 0)
                code = raw_run(&one, methods[i], &run, err);
            raw_remove(&file);
            snprintf(file.path, sizeof file.path, "%s", path);
            if (code == -EOPNOTSUPP) {
                code = 0;
                continue;
            }
            if (code < 0 || run.commits_per_s <= 0)
                continue;
            double payloads = (double)run.latency.samples;
            run.commits_per_s = payloads / (payloads / run.commits_per_s + before);
            run.bytes_per_s = run.commits_per_s * (double)request->payload;
            if (run.bytes_per_s > result->bytes_per_s) {
                *result = run;
                size_t n = strlen(result->method);
                snprintf(result->method + n, sizeof result->method - n, "%s",
                         space == RAW_ALLOCATED ? ", allocated" : ", written before");
            }
        }
    raw_remove(&file);
    return code;
}
