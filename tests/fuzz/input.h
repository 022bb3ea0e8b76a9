/* input.h: an input that is eaten from both ends: what to do from the front, what each read of shared
 * memory says from the back, so that a change of one does not move the other. At its end it says zeros. */
#ifndef WALRUS_FUZZ_INPUT_H
#define WALRUS_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct input {
    const uint8_t *from, *to;
};

static inline bool input_over(const struct input *input)
{
    return input->from == input->to;
}

static inline uint8_t input_byte(struct input *input)
{
    return input_over(input) ? 0 : *input->from++;
}

static inline uint64_t input_number(struct input *input, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)input_byte(input) << (8 * i);
    return value;
}

static inline uint8_t input_back(struct input *input)
{
    return input_over(input) ? 0 : *--input->to;
}

static inline uint64_t input_back_number(struct input *input, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | input_back(input);
    return value;
}

/* A number as attackers like them: near a limit, near zero, or any. */
static inline uint64_t input_back_value(struct input *input)
{
    uint8_t kind = input_back(input);
    unsigned shift = kind & 63;
    switch (kind >> 6) {
    case 0:
        return input_back(input);
    case 1:
        return (UINT64_C(1) << shift) + input_back(input) - 128;
    case 2:
        return input_back_number(input, 4);
    default:
        return input_back_number(input, 8);
    }
}

#endif
