/* faked.h: running `walrus` over the fake of the library (fake_client.c), and what the fake has recorded. */
#ifndef WALRUS_TEST_FAKED_H
#define WALRUS_TEST_FAKED_H

#include "program.h"

extern char faked_folder[64];
extern char faked_record[128]; /* what the fake has committed */
extern char faked_setting[160];

/* .init and .fini of a suite. */
void faked_make(void);
void faked_clean(void);

/* Starts it; `settings` are FAKE_...=..., at most 8. */
void faked_begin(struct child *child, const char *const *settings, const char *const *arguments);
/* To its end. */
void faked_run(struct child *child, const char *const *settings, const char *input, size_t length,
               const char *const *arguments);
#define none list_of(NULL)
#define run(child, settings, input, ...)                                                                     \
    faked_run(child, settings, input, strlen(input), list_of(__VA_ARGS__))

void expect_record(const struct child *child, const char *wanted, size_t length);
/* Exit code 2 with these words, and nothing was done. */
void expect_usage(const char *const *arguments, const char *words);

#endif
