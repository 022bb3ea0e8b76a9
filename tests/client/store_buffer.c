/* store_buffer.c: a store buffer in software.
 *
 * Store-buffering is what the fences of the two wake-up protocols are there for (layout.h): each side stores
 * one word and loads the other one's, and both loads may be done before either store is seen. A test that
 * waits for the processor to do that sees it once in many thousand rounds, if at all. Here it happens every
 * time: stores are kept in a queue, in order; the own loads see them, nobody else does. A fence writes them
 * out. Only while a trap is set: at other times every store is seen at once. */
#include "store_buffer.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MOST 64

static struct {
    void *pointer;
    size_t bytes;
    uint64_t value;
} waiting[MOST];
static size_t count;
static const void *trap_first, *trap_then;
static void (*trap_step)(void);
static bool first_was_stored;

static void write_out(void)
{
    for (size_t i = 0; i < count; i++) {
        if (waiting[i].bytes == sizeof(uint32_t))
            __atomic_store_n((uint32_t *)waiting[i].pointer, (uint32_t)waiting[i].value, __ATOMIC_SEQ_CST);
        else
            __atomic_store_n((uint64_t *)waiting[i].pointer, waiting[i].value, __ATOMIC_SEQ_CST);
    }
    count = 0;
}

void store_buffer_store(void *pointer, size_t bytes, uint64_t value)
{
    if (bytes != sizeof(uint32_t) && bytes != sizeof(uint64_t))
        abort();
    if (count == MOST)
        write_out();
    waiting[count].pointer = pointer;
    waiting[count].bytes = bytes;
    waiting[count].value = value;
    count++;
    first_was_stored = first_was_stored || pointer == trap_first;
    if (trap_step == NULL)
        write_out();
}

uint64_t store_buffer_load(const void *pointer, size_t bytes)
{
    uint64_t value = 0;
    size_t i = count;
    while (i > 0 && waiting[i - 1].pointer != pointer)
        i--;
    if (i > 0)
        value = waiting[i - 1].value;
    else if (bytes == sizeof(uint32_t))
        value = __atomic_load_n((const uint32_t *)pointer, __ATOMIC_SEQ_CST);
    else
        value = __atomic_load_n((const uint64_t *)pointer, __ATOMIC_SEQ_CST);
    if (trap_step != NULL && first_was_stored && pointer == trap_then) {
        void (*step)(void) = trap_step;
        trap_step = NULL;
        step();
        write_out();
    }
    return value;
}

void store_buffer_fence(void)
{
    write_out();
}

void store_buffer_trap(const void *first, const void *then, void (*step)(void))
{
    write_out();
    trap_first = first;
    trap_then = then;
    trap_step = step;
    first_was_stored = false;
}
