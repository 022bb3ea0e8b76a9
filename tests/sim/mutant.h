/* mutant.h: mistakes in the real log's numbers. The mutation test is linked with --wrap for the functions of
 * broker/log that they change; without a mistake these do what they always do. */
#ifndef WALRUS_SIM_MUTANT_H
#define WALRUS_SIM_MUTANT_H

enum mutant {
    MUTANT_NONE,
    MUTANT_TAKES_DUPLICATES,    /* the check of numbers below the last one is off */
    MUTANT_TAKES_ANY_ORDER,     /* the check of numbers above the next one is off */
    MUTANT_KEEPS_WHAT_FOLLOWS,  /* nothing is dropped behind a number that failed */
    MUTANT_LOSES_PAIRS,         /* a start takes no pairs from the checkpoint */
    MUTANT_LOSES_HORIZON,       /* a start takes no horizon from the checkpoint */
    MUTANT_COUNTS_EARLY,        /* what is admitted counts as committed */
    MUTANT_TAKES_FORGOTTEN,     /* an id below the horizon is taken for a new one */
    MUTANT_NUMBERS_WITHOUT_LOG, /* a start takes no numbers from the log, only from the checkpoint */
};

extern enum mutant mutant;

#endif
