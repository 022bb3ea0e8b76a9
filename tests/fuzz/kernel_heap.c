/* kernel_heap.c: the product's heap in fuzz targets (kernel.h): nothing in it is used twice, so that it can
 * be saved and brought back in one piece, and so that the address sanitizer sees what is used after its
 * end. */
#include "kernel_heap.h"
#include "../../shared/base.h"
#include "kernel.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)   ((void)(at), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif

#define HEAP_BYTES  (16u << 20)
#define LARGE_BYTES (64u << 10) /* from here on a block of its own, whose content is not saved */
#define LARGE_MOST  32
#define LARGE_ALIGN (2u << 20) /* the most that anybody asks for */
#define MOST_BYTES  (32u << 20)

static uint8_t *heap;
static size_t heap_used, heap_most;

static struct large {
    void *at;
    size_t bytes;
    bool used;
} larges[LARGE_MOST];

/* In front of each one in the heap, and nobody's but ours: between two blocks there is always one. */
struct block {
    size_t bytes;
    uint64_t used;
};

static struct block *block_at(size_t at)
{
    return (struct block *)(void *)(heap + at);
}

static size_t whole_block(size_t bytes)
{
    return sizeof(struct block) + align_up(bytes, 16);
}

static void guard_large(const struct large *large)
{
    /* NOLINTNEXTLINE(bugprone-branch-clone): without the sanitizer both are nothing */
    if (large->used)
        ASAN_UNPOISON_MEMORY_REGION(large->at, large->bytes);
    else
        ASAN_POISON_MEMORY_REGION(large->at, large->bytes);
}

static void *large_take(struct large *large, size_t bytes)
{
    if (large->at == NULL) {
        *large = (struct large){.bytes = bytes};
        int error = posix_memalign(&large->at, LARGE_ALIGN, align_up(bytes, 65536));
        check_bug(error == 0);
    }
    large->used = true;
    guard_large(large);
    return large->at;
}

static void *large_block(size_t bytes)
{
    if (bytes > MOST_BYTES) { /* the machine is not that large */
        errno = ENOMEM;
        return NULL;
    }
    for (int i = 0; i < LARGE_MOST; i++) {
        struct large *large = &larges[i];
        if (large->used || (large->at != NULL && large->bytes != bytes))
            continue;
        return large_take(large, bytes);
    }
    for (int i = 0; i < LARGE_MOST; i++) {
        if (larges[i].used)
            continue;
        guard_large(&(struct large){larges[i].at, larges[i].bytes, true});
        free(larges[i].at);
        larges[i].at = NULL;
        return large_take(&larges[i], bytes);
    }
    bug(__FILE__, __LINE__, "more large blocks than a target needs");
}

void *kernel_malloc(size_t bytes)
{
    if (bytes >= LARGE_BYTES)
        return large_block(bytes);
    size_t whole = whole_block(bytes);
    if (heap == NULL)
        heap = aligned_alloc(4096, HEAP_BYTES);
    check_bug(heap != NULL && whole <= HEAP_BYTES - heap_used);
    struct block *block = block_at(heap_used);
    ASAN_UNPOISON_MEMORY_REGION(block, whole);
    *block = (struct block){.bytes = bytes, .used = 1};
    heap_used += whole;
    heap_most = max_u64(heap_most, heap_used);
    uint8_t *at = (uint8_t *)(block + 1);
    ASAN_POISON_MEMORY_REGION(at + bytes, whole - sizeof *block - bytes);
    ASAN_POISON_MEMORY_REGION(block, sizeof *block);
    return at;
}

static struct block *block_of(void *pointer)
{
    struct block *block = (struct block *)pointer - 1;
    ASAN_UNPOISON_MEMORY_REGION(block, sizeof *block);
    return block;
}

/* What is whose, after the heap was brought back: all is open when this is called. */
static void guard_heap(void)
{
#ifdef __SANITIZE_ADDRESS__
    for (size_t at = 0, whole; at < heap_used; at += whole) {
        struct block *block = block_at(at);
        size_t bytes = block->used ? block->bytes : 0;
        whole = whole_block(block->bytes);
        ASAN_POISON_MEMORY_REGION((uint8_t *)(block + 1) + bytes, whole - sizeof *block - bytes);
        ASAN_POISON_MEMORY_REGION(block, sizeof *block);
    }
    ASAN_POISON_MEMORY_REGION(heap + heap_used, heap_most - heap_used);
    for (int i = 0; i < LARGE_MOST; i++)
        if (larges[i].at != NULL)
            guard_large(&larges[i]);
#endif
}

void *kernel_calloc(size_t count, size_t bytes)
{
    check_bug(bytes == 0 || count <= SIZE_MAX / bytes);
    void *at = kernel_malloc(count * bytes);
    if (at != NULL)
        memset(at, 0, count * bytes);
    return at;
}

void *kernel_aligned_alloc(size_t alignment, size_t bytes)
{
    check_bug(bytes >= LARGE_BYTES && alignment <= LARGE_ALIGN);
    return large_block(bytes);
}

void *kernel_realloc(void *old, size_t bytes)
{
    void *at = kernel_malloc(bytes);
    if (old == NULL || at == NULL)
        return at;
    size_t had = 0;
    for (int i = 0; i < LARGE_MOST; i++)
        if (larges[i].at == old)
            had = larges[i].bytes;
    if (had == 0)
        had = block_of(old)->bytes;
    memcpy(at, old, had < bytes ? had : bytes);
    kernel_free(old);
    return at;
}

void kernel_free(void *pointer)
{
    if (pointer == NULL)
        return;
    if ((uintptr_t)pointer - (uintptr_t)heap < HEAP_BYTES) {
        struct block *block = block_of(pointer);
        check_bug(block->used == 1);
        block->used = 0;
        ASAN_POISON_MEMORY_REGION(block, whole_block(block->bytes));
        return;
    }
    for (int i = 0; i < LARGE_MOST; i++) {
        if (larges[i].at != pointer)
            continue;
        check_bug(larges[i].used);
        larges[i].used = false;
        guard_large(&larges[i]);
        return;
    }
    free(pointer); /* the target's */
}

void heap_reset(void)
{
    heap_used = 0;
    for (int i = 0; i < LARGE_MOST; i++)
        larges[i].used = false;
    if (heap != NULL)
        guard_heap();
}

struct heap_saved {
    bool large_used[LARGE_MOST];
    size_t used;
    uint8_t *bytes;
};

struct heap_saved *heap_save(void)
{
    struct heap_saved *saved = malloc(sizeof *saved);
    check_bug(saved != NULL);
    saved->used = heap_used;
    saved->bytes = malloc(heap_used);
    check_bug(saved->bytes != NULL);
    for (int i = 0; i < LARGE_MOST; i++)
        saved->large_used[i] = larges[i].used;
    ASAN_UNPOISON_MEMORY_REGION(heap, heap_most);
    memcpy(saved->bytes, heap, heap_used);
    guard_heap();
    return saved;
}

void heap_restore(const struct heap_saved *saved)
{
    for (int i = 0; i < LARGE_MOST; i++)
        larges[i].used = saved->large_used[i];
    ASAN_UNPOISON_MEMORY_REGION(heap, heap_most);
    heap_used = saved->used;
    memcpy(heap, saved->bytes, heap_used);
    guard_heap();
}
