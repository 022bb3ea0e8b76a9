/* kernel_heap.h: what kernel.c knows of the product's heap (kernel_heap.c). */
#ifndef WALRUS_FUZZ_KERNEL_HEAP_H
#define WALRUS_FUZZ_KERNEL_HEAP_H

#if defined(__has_feature)
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1 /* as gcc says it */
#endif
#endif

struct heap_saved;
void heap_reset(void);
struct heap_saved *heap_save(void);
void heap_restore(const struct heap_saved *saved);

#endif
