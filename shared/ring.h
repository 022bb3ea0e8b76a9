/* ring.h: the two rings of a connection, on Concurrency Kit's single-producer single-consumer ring.
 *
 * ck_ring_t keeps size, mask and both indices in one struct that both sides write. Between processes that do
 * not trust each other this cannot lie in shared memory: in a sealed file the consumer faults when it writes
 * c_head, in a writable one a hostile mask makes the other side read out of bounds. So each side keeps a
 * private ck_ring_t as a mirror; only two index words and the slots are shared, each word in the file of its
 * writer (layout.h has the protocol):
 *
 *      producer's private ck_ring_t          shared                       consumer's private ck_ring_t
 *        p_tail  --- release-store --->  tail word (producer's file) --- acquire-load, check --->  p_tail
 *        c_head  <-- acquire-load, check --- head word (consumer's file) <--- release-store ---  c_head
 *                                        slots (producer's file)
 *
 *   R1  the producer's release-store of tail pairs with the consumer's acquire-load: the slot is filled
 *       before it is seen.
 *   R2  the consumer's release-store of head pairs with the producer's acquire-load: the slot is copied
 *       before it is reused.
 *
 * The peer's word is read once into a local and accepted only if the distance to the own index is at most
 * size - 1 (CK keeps one slot free); anything else is -EPROTO and the caller ends the connection. The mirror
 * of the peer's index is refreshed only when the ring looks full (producer) or empty (consumer).
 * ck_ring_valid and ck_ring_repair are wrong for single-producer rings and are not used. */
#ifndef WALRUS_SHARED_RING_H
#define WALRUS_SHARED_RING_H

#include <ck_ring.h>

#include "layout.h"

CK_RING_PROTOTYPE(descriptor, descriptor)
CK_RING_PROTOTYPE(completion, completion)

/* Index words are C11 atomics to the compiler (and to TSan), plain uint32_t to the layout. */
static inline uint32_t word_load_acquire(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* NOLINTNEXTLINE(readability-non-const-parameter): the builtin writes through it */
static inline void word_store_release(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline uint32_t word_load(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* NOLINTNEXTLINE(readability-non-const-parameter) */
static inline void word_store(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* The full fence of both wake-up protocols of layout.h. TSan knows no stand-alone fences; there a locked
 * instruction on a word of our own does the same. */
static inline void full_fence(void)
{
#if defined(__SANITIZE_THREAD__)
    static uint32_t dummy;
    (void)__atomic_fetch_add(&dummy, 1, __ATOMIC_SEQ_CST);
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

struct ring {
    ck_ring_t mirror;          /* private */
    uint32_t *own_word;        /* shared, written here: tail (producer) or head (consumer) */
    const uint32_t *peer_word; /* shared, written by the peer */
    void *slots;               /* shared; struct descriptor[] or struct completion[] */
};

static inline void ring_init(struct ring *ring, uint32_t size, uint32_t *own_word, const uint32_t *peer_word,
                             void *slots)
{
    check_bug(is_power_of_two(size));
    ck_ring_init(&ring->mirror, size);
    ring->own_word = own_word;
    ring->peer_word = peer_word;
    ring->slots = slots;
}

static inline uint32_t ring_capacity(const struct ring *ring)
{
    return ring->mirror.size - 1;
}

/* Producer: looks at the consumer's head again. Slots free, or -EPROTO. */
static inline int ring_refresh_free(struct ring *ring)
{
    uint32_t head = word_load_acquire(ring->peer_word); /* R2 */
    uint32_t used = ring->mirror.p_tail - head;
    if (used > ring->mirror.p_tail - ring->mirror.c_head) /* beyond the tail, or taken back */
        return -EPROTO;
    ring->mirror.c_head = head;
    return (int)(ring_capacity(ring) - used);
}

/* Consumer: looks at the producer's tail again. Slots filled, or -EPROTO. */
static inline int ring_refresh_filled(struct ring *ring)
{
    uint32_t tail = word_load_acquire(ring->peer_word); /* R1 */
    uint32_t filled = tail - ring->mirror.c_head;
    uint32_t seen = ring->mirror.p_tail - ring->mirror.c_head;
    if (filled > ring_capacity(ring) || filled < seen) /* or taken back */
        return -EPROTO;
    ring->mirror.p_tail = tail;
    return (int)filled;
}

/* Producer: puts one element and publishes it. 1 done, 0 full, -EPROTO the consumer's word is impossible. */
#define RING_PUSH(name)                                                                                      \
    static inline int ring_push_##name(struct ring *ring, struct name *element)                              \
    {                                                                                                        \
        if (ring->mirror.p_tail - ring->mirror.c_head >= ring_capacity(ring)) {                              \
            int room = ring_refresh_free(ring);                                                              \
            if (room <= 0)                                                                                   \
                return room;                                                                                 \
        }                                                                                                    \
        bool pushed = ck_ring_enqueue_spsc_##name(&ring->mirror, ring->slots, element);                      \
        check_bug(pushed);                                                                                   \
        word_store_release(ring->own_word, ring->mirror.p_tail); /* R1 */                                    \
        return 1;                                                                                            \
    }

/* Consumer: copies one element out and gives its slot back. 1 done, 0 empty, -EPROTO the producer's word is
 * impossible. */
#define RING_POP(name)                                                                                       \
    static inline int ring_pop_##name(struct ring *ring, struct name *element)                               \
    {                                                                                                        \
        if (ring->mirror.p_tail == ring->mirror.c_head) {                                                    \
            int filled = ring_refresh_filled(ring);                                                          \
            if (filled <= 0)                                                                                 \
                return filled;                                                                               \
        }                                                                                                    \
        bool popped = ck_ring_dequeue_spsc_##name(&ring->mirror, ring->slots, element);                      \
        check_bug(popped);                                                                                   \
        word_store_release(ring->own_word, ring->mirror.c_head); /* R2 */                                    \
        return 1;                                                                                            \
    }

RING_PUSH(descriptor)
RING_POP(descriptor)
RING_PUSH(completion)
RING_POP(completion)

#endif
