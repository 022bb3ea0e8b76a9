/* failing_memory.h: included before each source of broker/log in a library of its own, whose allocations a
 * test can make fail. Nothing else of the process is touched. */
#ifndef WALRUS_TESTS_LOG_FAILING_MEMORY_H
#define WALRUS_TESTS_LOG_FAILING_MEMORY_H

#include <stddef.h>
#include <stdlib.h>

void *failing_malloc(size_t size);
void *failing_calloc(size_t count, size_t size);
void *failing_realloc(void *old, size_t size);
void *failing_aligned_alloc(size_t alignment, size_t size);

#define malloc        failing_malloc
#define calloc        failing_calloc
#define realloc       failing_realloc
#define aligned_alloc failing_aligned_alloc

#endif
