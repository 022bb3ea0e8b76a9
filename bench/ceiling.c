#include "ceiling.h"

#include <fcntl.h>
#include <isa-l.h>
#include <liburing.h>
#include <sys/wait.h>
#include <unistd.h>

#include "payload.h"
#include "phases.h"

#define SLOTS      16u
#define MOST_BYTES (4u << 20)
#define PIECES     8u /* the copies go into pieces of memory in turn, as a broker's groups do */
#define PIECE      (1u << 20)

struct indices {
    uint32_t tail; /* the filler's */
    uint8_t separate0[60];
    uint32_t head; /* the copier's */
    uint8_t separate1[60];
    uint32_t stop;
    uint8_t separate2[60];
};

struct slots {
    struct indices *indices;
    uint8_t *memory;
    uint64_t lengths_bytes, slot_bytes;
};

static void fill(const struct slots *slots, const struct load *load, const struct payload_pool *pool)
{
    struct indices *at = slots->indices;
    uint32_t tail = 0;
    while (__atomic_load_n(&at->stop, __ATOMIC_RELAXED) == 0) {
        if (tail - __atomic_load_n(&at->head, __ATOMIC_ACQUIRE) >= SLOTS) {
            relax();
            continue;
        }
        uint8_t *slot = slots->memory + tail % SLOTS * slots->slot_bytes;
        uint32_t *lengths = (uint32_t *)(void *)slot;
        uint64_t word = payload_batch_word(0, 0, tail);
        for (uint32_t i = 0; i < load->batch; i++) {
            lengths[i] = (uint32_t)load->size;
            payload_fill(pool, word, i, slot + slots->lengths_bytes + i * load->size, load->size);
        }
        __atomic_store_n(&at->tail, ++tail, __ATOMIC_RELEASE);
    }
}

/* Copies one slot; false if its lengths do not add up. */
static bool take(const struct slots *slots, const struct load *load, uint32_t head, uint8_t *to,
                 uint32_t *crc)
{
    const uint8_t *slot = slots->memory + head % SLOTS * slots->slot_bytes;
    uint64_t sum = 0;
    memcpy(to, slot, slots->slot_bytes);
    const uint32_t *lengths = (const uint32_t *)(const void *)to;
    for (uint32_t i = 0; i < load->batch; i++)
        sum += lengths[i];
    *crc = crc32_iscsi(to, (int)slots->slot_bytes, *crc);
    return sum == load_batch_bytes(load);
}

/* The pieces, and the device behind them if there is one. */
struct sink {
    uint8_t *memory;
    uint64_t piece_bytes, used; /* of the current piece */
    uint32_t current, free_count;
    uint32_t free_pieces[PIECES];
    int fd; /* -1: no device */
    struct io_uring ring;
    bool ring_made;
    uint64_t offset, file_bytes;
};

static int sink_open(struct sink *sink, uint64_t slot_bytes, const struct raw_file *file)
{
    sink->piece_bytes = align_up(max_u64(PIECE, slot_bytes), RAW_BLOCK);
    sink->memory = device_memory(PIECES * sink->piece_bytes);
    if (sink->memory == NULL)
        return -ENOMEM;
    memset(sink->memory, 0, PIECES * sink->piece_bytes);
    for (uint32_t i = 1; i < PIECES; i++)
        sink->free_pieces[sink->free_count++] = i;
    if (file == NULL)
        return 0;
    sink->file_bytes = file->bytes;
    sink->fd = open(file->path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (sink->fd < 0)
        return -errno;
    int result = io_uring_queue_init(PIECES, &sink->ring, 0);
    sink->ring_made = result == 0;
    return result;
}

static void sink_close(struct sink *sink)
{
    if (sink->ring_made)
        io_uring_queue_exit(&sink->ring); /* waits for what is in flight */
    if (sink->fd >= 0)
        close(sink->fd);
    free(sink->memory);
}

/* The current piece is full: writes it and goes on in the next free one, waiting for one if need be. */
static int sink_turn(struct sink *sink)
{
    sink->used = 0;
    if (sink->fd < 0) {
        sink->current = (sink->current + 1) % PIECES;
        return 0;
    }
    if (sink->offset + sink->piece_bytes > sink->file_bytes)
        sink->offset = 0;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&sink->ring);
    check_bug(sqe != NULL);
    io_uring_prep_write(sqe, sink->fd, sink->memory + sink->current * sink->piece_bytes,
                        (unsigned)sink->piece_bytes, sink->offset);
    io_uring_sqe_set_data64(sqe, sink->current);
    sink->offset += sink->piece_bytes;
    int result = io_uring_submit(&sink->ring);
    while (result >= 0) {
        struct io_uring_cqe *cqe;
        result = sink->free_count == 0 ? io_uring_wait_cqe(&sink->ring, &cqe)
                                       : io_uring_peek_cqe(&sink->ring, &cqe);
        if (result == -EAGAIN && sink->free_count > 0)
            break;
        if (result < 0)
            return result;
        if (cqe->res != (int)sink->piece_bytes)
            return -EIO;
        sink->free_pieces[sink->free_count++] = (uint32_t)io_uring_cqe_get_data64(cqe);
        io_uring_cqe_seen(&sink->ring, cqe);
    }
    sink->current = sink->free_pieces[--sink->free_count];
    return result == -EAGAIN ? 0 : result;
}

static int copy(const struct slots *slots, const struct load *load, struct sink *sink, int64_t duration_ns,
                const volatile sig_atomic_t *interrupted, struct raw_numbers *result)
{
    struct indices *at = slots->indices;
    uint32_t head = 0, crc = 0;
    uint64_t turns = 0;
    int64_t from = now_ns();
    for (;;) {
        if (++turns % 64 == 0 &&
            (now_ns() - from >= duration_ns || (interrupted != NULL && *interrupted != 0)))
            break;
        if (__atomic_load_n(&at->tail, __ATOMIC_ACQUIRE) == head) {
            relax();
            continue;
        }
        if (sink->used + slots->slot_bytes > sink->piece_bytes) {
            int code = sink_turn(sink);
            if (code < 0)
                return code;
        }
        if (!take(slots, load, head, sink->memory + sink->current * sink->piece_bytes + sink->used, &crc))
            return -EBADMSG;
        sink->used += slots->slot_bytes;
        __atomic_store_n(&at->head, ++head, __ATOMIC_RELEASE);
    }
    double seconds = (double)(now_ns() - from) / 1e9;
    result->commits_per_s = head / seconds;
    result->bytes_per_s = result->commits_per_s * (double)load_batch_bytes(load);
    snprintf(result->method, sizeof result->method, "fill, copy, CRC-32C (%08x), %s", crc,
             sink->fd >= 0 ? "written to the device" : "no disk");
    return 0;
}

int ceiling_run(const struct load *load, const struct raw_file *file, int64_t duration_ns,
                const volatile sig_atomic_t *interrupted, struct raw_numbers *result, struct error *err)
{
    struct slots slots = {.lengths_bytes = align_up(load->batch * UINT64_C(4), 64)};
    struct sink sink = {.fd = -1};
    struct payload_pool pool = {0};
    slots.slot_bytes = align_up(slots.lengths_bytes + load_batch_bytes(load), 64);
    memset(result, 0, sizeof *result);
    if (slots.slot_bytes > MOST_BYTES)
        return error_set(err, -EINVAL, "the copying yardstick takes batches of at most 4 MiB");
    size_t bytes = 4096 + SLOTS * slots.slot_bytes;
    uint8_t *memory = shared_memory(bytes);
    int code = memory == NULL ? -ENOMEM : payload_pool_make(&pool, (uint64_t)now_ns());
    if (code == 0)
        code = sink_open(&sink, slots.slot_bytes, file);
    if (code != 0) {
        error_set(err, code, "the copying yardstick cannot start: %s", strerror(-code));
        goto out;
    }
    slots.indices = (struct indices *)(void *)memory;
    slots.memory = memory + 4096;
    pid_t pid = fork();
    if (pid == 0) {
        child_begin();
        fill(&slots, load, &pool);
        _exit(0);
    }
    if (pid < 0) {
        code = error_set(err, -errno, "cannot fork: %s", strerror(errno));
        goto out;
    }
    code = copy(&slots, load, &sink, duration_ns, interrupted, result);
    __atomic_store_n(&slots.indices->stop, 1, __ATOMIC_RELAXED);
    waitpid(pid, NULL, 0);
    if (code < 0)
        error_set(err, code, "the copying yardstick: %s", strerror(-code));
out:
    sink_close(&sink);
    payload_pool_release(&pool);
    shared_memory_release(memory, bytes);
    return code;
}
