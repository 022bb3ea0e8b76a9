/* base.h: the few words every file of Walrus uses: fixed-width types, compile-time helpers, asserts, errors.
 *
 * Asserts are for our own mistakes only: they stay on in release builds, they never see a value that another
 * process wrote or a disk returned. Such values are checked and answered with an error. */
#ifndef WALRUS_SHARED_BASE_H
#define WALRUS_SHARED_BASE_H

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define must_check        __attribute__((warn_unused_result))
#define printf_like(f, a) __attribute__((format(printf, f, a)))
#define array_count(a)    (sizeof(a) / sizeof((a)[0]))

/* A mistake of ours: say where and stop. Never reached by anything a peer or a disk can do. */
#define check_bug(condition)                                                                                 \
    do {                                                                                                     \
        if (__builtin_expect(!(condition), 0))                                                               \
            bug(__FILE__, __LINE__, #condition);                                                             \
    } while (0)
__attribute__((noreturn)) void bug(const char *file, int line, const char *condition);

/* Alignments are powers of two; the caller has checked that the sum does not wrap. */
static inline uint64_t align_up(uint64_t value, uint64_t alignment)
{
    return (value + alignment - 1) & ~(alignment - 1);
}

static inline bool is_power_of_two(uint64_t value)
{
    return value != 0 && (value & (value - 1)) == 0;
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* An error with its words: what, where, the way out. The first one set wins until it is cleared; a layer
 * above adds its place in front with error_wrap. `code` is a negative errno. */
struct error {
    int code;
    char text[508];
};

/* Sets code and words, returns the code, so that `return error_set(err, -EIO, ...)` reads well. `err` may be
 * NULL. */
int error_set(struct error *err, int code, const char *format, ...) printf_like(3, 4);
/* Puts "WORDS: " in front of the text that is there. Returns the code that is there. */
int error_wrap(struct error *err, const char *format, ...) printf_like(2, 3);

#endif
