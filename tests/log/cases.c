/* cases.c: see cases.h. */
#include "cases.h"

struct life life;
struct disk disk;

/* Five groups of two topics in the newest segment, all answered; the last one is proved by nothing. */
void five_groups(void)
{
    life_start(&life);
    life_put(&life, "t", 2, 100);
    life_put(&life, "u", 1, 5000);
    life_put(&life, "t", 3, 10);
    life_put(&life, "u", 2, 20);
    life_put(&life, "t", 1, 9000);
    life_quiet(&life);
}

void crashed(void)
{
    five_groups();
    life_crash(&life);
    disk_scan(&life, &disk);
    cr_assert_eq(disk.group_count, 5u);
}

/* Three segments or more, without a checkpoint. */
void crashed_with_segments(void)
{
    five_groups();
    for (unsigned i = 0; i < 6; i++)
        life_put(&life, i % 2 ? "t" : "u", 2, 900000);
    life_quiet(&life);
    life_crash(&life);
    cr_assert(!file_there(&life, "checkpoint-0") && !file_there(&life, "checkpoint-1"));
    disk_scan(&life, &disk);
    cr_assert_geq(disk.segment_count, 3u);
}

void stopped(void)
{
    five_groups();
    life_stop(&life);
    disk_scan(&life, &disk);
}

void stopped_with_segments(void)
{
    crashed_with_segments();
    life_start(&life);
    life_stop(&life);
    disk_scan(&life, &disk);
}

/* G6: what a start shows, every later start shows. */
void serves_the_same_for_ever(void)
{
    for (unsigned i = 0; i < 3; i++) {
        life_start(&life);
        life_verify(&life);
        life_crash(&life);
    }
    life_start(&life);
    life_put(&life, "t", 2, 30);
    life_verify(&life);
    life_stop(&life);
    life_start(&life);
    life_verify(&life);
}

void says_where(const char *file, uint64_t offset)
{
    char words[64];
    cr_assert_not_null(strstr(life.error.text, file), "\"%s\" does not name %s", life.error.text, file);
    snprintf(words, sizeof words, "offset %llu", (unsigned long long)offset);
    cr_assert_not_null(strstr(life.error.text, words), "\"%s\" lacks \"%s\"", life.error.text, words);
}

/* Refused with the place, at every start, and the store is left as it is. */
void damaged_at(const char *file, uint64_t offset)
{
    for (unsigned i = 0; i < 2; i++) {
        uint64_t before = folder_digest(&life);
        life_refused(&life, -EBADMSG, "damaged");
        says_where(file, offset);
        cr_assert_eq(folder_digest(&life), before, "a refused start changed the store");
    }
}
