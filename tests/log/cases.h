/* cases.h: the stores that the recovery suites damage, and what must be true of every start after it. */
#ifndef WALRUS_TESTS_LOG_CASES_H
#define WALRUS_TESTS_LOG_CASES_H

#include "life.h"

extern struct life life;
extern struct disk disk; /* what was last scanned */

/* Five groups of two topics in the newest segment, all answered; the last one is proved by nothing. */
void five_groups(void);
void crashed(void);
/* Three segments or more, without a checkpoint. */
void crashed_with_segments(void);
void stopped(void);
void stopped_with_segments(void);
/* G6: what a start shows, every later start shows. */
void serves_the_same_for_ever(void);
void says_where(const char *file, uint64_t offset);
/* Refused with the place, at every start, and the store is left as it is. */
void damaged_at(const char *file, uint64_t offset);

#endif
