/* store_buffer.h: put before every file of the library (-include), so that its stores of shared words are
 * seen by the others only when a fence, or the end of the buffer, makes them: as on a processor, but each
 * time, and in the order that hurts most. See store_buffer.c. */
#ifndef WALRUS_TEST_STORE_BUFFER_H
#define WALRUS_TEST_STORE_BUFFER_H

#include <stddef.h>
#include <stdint.h>

void store_buffer_store(void *pointer, size_t bytes, uint64_t value);
uint64_t store_buffer_load(const void *pointer, size_t bytes);
void store_buffer_fence(void);

/* At the first load of *then that comes after a store of *first, the others take their step: after the load
 * has its value, before the stores that no fence has made visible are. */
void store_buffer_trap(const void *first, const void *then, void (*step)(void));

#ifdef STORE_BUFFER_INSIDE
/* NOLINTBEGIN(bugprone-reserved-identifier): that is the point */
#define __atomic_store_n(pointer, value, order) store_buffer_store((pointer), sizeof *(pointer), (value))
#define __atomic_load_n(pointer, order)                                                                      \
    ((__typeof__(+*(pointer)))store_buffer_load((pointer), sizeof *(pointer)))
#define __atomic_thread_fence(order) store_buffer_fence()
/* NOLINTEND(bugprone-reserved-identifier) */
#endif

#endif
