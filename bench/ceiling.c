#include "ceiling.h"

#include <isa-l.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "payload.h"
#include "phases.h"

#define SLOTS      16u
#define MOST_BYTES (4u << 20)
#define COPY_BYTES (8u << 20) /* the copies go round a buffer of this size, as a broker's groups do */

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

static int copy(const struct slots *slots, const struct load *load, uint8_t *to, int64_t duration_ns,
                const volatile int *interrupted, struct raw_numbers *result)
{
    struct indices *at = slots->indices;
    uint32_t head = 0, crc = 0;
    uint64_t offset = 0, turns = 0;
    int64_t from = now_ns();
    for (;;) {
        if (++turns % 64 == 0 &&
            (now_ns() - from >= duration_ns || (interrupted != NULL && *interrupted != 0)))
            break;
        if (__atomic_load_n(&at->tail, __ATOMIC_ACQUIRE) == head) {
            relax();
            continue;
        }
        if (offset + slots->slot_bytes > COPY_BYTES)
            offset = 0;
        if (!take(slots, load, head, to + offset, &crc))
            return -EIO;
        offset += slots->slot_bytes;
        __atomic_store_n(&at->head, ++head, __ATOMIC_RELEASE);
    }
    double seconds = (double)(now_ns() - from) / 1e9;
    result->commits_per_s = head / seconds;
    result->bytes_per_s = result->commits_per_s * (double)load_batch_bytes(load);
    snprintf(result->method, sizeof result->method, "fill, copy, CRC-32C (%08x), no disk", crc);
    return 0;
}

int ceiling_run(const struct load *load, int64_t duration_ns, const volatile int *interrupted,
                struct raw_numbers *result, struct error *err)
{
    struct slots slots = {.lengths_bytes = align_up(load->batch * 4u, 64)};
    slots.slot_bytes = align_up(slots.lengths_bytes + load_batch_bytes(load), 64);
    memset(result, 0, sizeof *result);
    if (slots.slot_bytes > MOST_BYTES)
        return error_set(err, -EINVAL, "the copying yardstick takes batches of at most 4 MiB");
    size_t bytes = 4096 + SLOTS * slots.slot_bytes;
    uint8_t *memory = shared_memory(bytes);
    uint8_t *to = malloc(COPY_BYTES);
    struct payload_pool pool = {0};
    int code = -ENOMEM;
    if (memory == NULL || to == NULL || payload_pool_make(&pool, (uint64_t)now_ns()) < 0) {
        error_set(err, code, "out of memory for the copying yardstick");
        goto out;
    }
    memset(to, 0, COPY_BYTES);
    slots.indices = (struct indices *)(void *)memory;
    slots.memory = memory + 4096;
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGINT, SIG_IGN);
        fill(&slots, load, &pool);
        _exit(0);
    }
    if (pid < 0) {
        code = error_set(err, -errno, "cannot fork: %s", strerror(errno));
        goto out;
    }
    code = copy(&slots, load, to, duration_ns, interrupted, result);
    __atomic_store_n(&slots.indices->stop, 1, __ATOMIC_RELAXED);
    waitpid(pid, NULL, 0);
    if (code < 0)
        error_set(err, code, "the copying yardstick read lengths that do not add up");
out:
    payload_pool_release(&pool);
    free(to);
    shared_memory_release(memory, bytes);
    return code;
}
