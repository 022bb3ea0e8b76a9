/* kernel_heap.h: what kernel.c knows of the product's heap (kernel_heap.c). */
#ifndef WALRUS_FUZZ_KERNEL_HEAP_H
#define WALRUS_FUZZ_KERNEL_HEAP_H

struct heap_saved;
void heap_reset(void);
struct heap_saved *heap_save(void);
void heap_restore(const struct heap_saved *saved);

#endif
