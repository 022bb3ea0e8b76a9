/* seed.h: what the suites of the seed's promises share: a broker as a child on a place of its own,
 * clients of the library in this process, entries whose bytes follow from topic and sequence. */
#ifndef WALRUS_TESTS_SEED_H
#define WALRUS_TESTS_SEED_H

#include "../program/program.h"

#include "../../libclient/include/walrus.h"
#include "../../shared/stat_page.h"

#include <criterion/criterion.h>

#define SMALL_SEGMENTS                                                                                       \
    "--segment", "4325376" /* the smallest there are, so that little data lies in several */

extern struct place place;
void place_begin(void); /* .init and .fini of the suites */
void place_end(void);
/* The store lies on a tmpfs of `bytes`, in a mount namespace of this process; skips where that is refused. */
void small_disk(uint64_t bytes);
void grow_disk(uint64_t bytes);

walrus *client(void);
struct walrus_connect_options client_options(void);
/* Entries of the batch are those from sequence `from` on. The result of the blocking call. */
int put(walrus *handle, const char *topic, uint64_t from, size_t entries, size_t bytes,
        struct walrus_receipt *receipt);
int put_one(walrus *handle, const char *topic, uint64_t sequence, size_t bytes);
/* The same, and it must be 0. */
void put_well(walrus *handle, const char *topic, uint64_t from, size_t entries, size_t bytes);
/* Reads on from *next to the end: every entry is right and none is missing. How many; or the error. */
int64_t read_on(walrus *handle, const char *topic, uint64_t *next);
/* The whole topic: how many entries; 0 if there is no such topic. */
int64_t count_of(walrus *handle, const char *topic);
void fill(void *data, size_t length, const char *topic, uint64_t sequence);

struct walrus_topic *topic_of(walrus *handle, const char *name);
/* Adds entries to a batch; stops at the first error. */
int add_entries(walrus_batch *batch, const char *topic, uint64_t from, size_t entries, size_t bytes);
/* Submits, waits, reaps: the result of the batch. */
int finish(walrus *handle, walrus_batch *batch, struct walrus_completion *completion);

/* The broker's counters, as of now or later than `updates_after`. */
struct stat_values counters(void);
uint64_t store_files(const char *ending);
uint64_t store_bytes(void); /* that the file system has given to the store */

#endif
