/* toy.h: a small log of its own behind broker/log/log.h, with a switch for each mistake that the harness
 * must notice. It is how the harness itself is tested: right, it must pass; with any one mistake, it must
 * be caught. */
#ifndef WALRUS_SIM_TOY_H
#define WALRUS_SIM_TOY_H

enum toy_mistake {
    TOY_RIGHT,
    TOY_ANSWERS_BEFORE_FLUSH, /* G1 */
    TOY_SKIPS_CHECKSUM,       /* G2, G27 */
    TOY_FORGETS_FAILURES,     /* G3: answers an error and goes on behind bytes that may still count */
    TOY_KEEPS_THE_FILE,       /* G6: recovers in place, trusting bytes of a failed flush */
    TOY_WRITES_OVER,          /* G17: goes on in the last block */
    TOY_SKIPS_FOLDER_SYNC,    /* G19 */
    TOY_COUNTS_SHORT_WRITES,  /* G8 */
    TOY_READS_ERRORS_AS_END,  /* G14 */
    TOY_WRITES_REFUSED,       /* G4 */
    TOY_DRAWS_FROM_THE_CLOCK, /* G26 */
    TOY_TAKES_DUPLICATES,     /* G5: commits a number twice */
    TOY_TAKES_ANY_NUMBER,     /* G5: and leaves gaps */
    TOY_FORGETS_NUMBERS,      /* G5: a start knows none */
    TOY_DENIES_NUMBERS,       /* G5: says of the last one that it is not committed */
    TOY_BELIEVES_FLAGS,       /* G16: of records that a client made up */
    TOY_MISTAKES
};

extern enum toy_mistake toy_mistake;

#endif
