/* test_start.c: named stories of a start and of a full disk that a random run tells too rarely. */
#include "explore.h"

#include <criterion/criterion.h>

struct story {
    struct image *image;
    struct ledger ledger;
    struct run_state run;
};

static void begin(struct story *story)
{
    *story = (struct story){.image = image_new(UINT64_MAX)};
    ledger_init(&story->ledger);
    run_begin(&story->run, story->image, &story->ledger, 3);
}

static void next_life(struct story *story, enum end end)
{
    run_begin(&story->run, story->image, &story->ledger, 4);
    story->run.end_before = end;
}

static void end(struct story *story)
{
    story->image = run_end(&story->run);
    cr_assert(story->ledger.failure[0] == 0, "%s", story->ledger.failure);
}

static void finish(struct story *story)
{
    image_free(story->image);
    ledger_free(&story->ledger);
}

Test(start, g11_names_a_living_holder_by_pid_and_refuses)
{
    struct story story;
    begin(&story);
    cr_assert(run_start(&story.run));
    run_write(&story.run, 0, 1, 2, 100);
    run_settle(&story.run);
    run_stop(&story.run);
    end(&story);
    next_life(&story, END_STOP);
    story.run.trouble = true;
    disk_set_holder(story.run.disk, 4242);
    uint64_t before = image_hash(story.image);
    cr_assert_not(run_start(&story.run));
    cr_assert_eq(story.run.start_error, -EBUSY);
    cr_assert_not_null(strstr(story.run.error.text, "4242"), "%s", story.run.error.text);
    end(&story);
    cr_assert_eq(image_hash(story.image), before, "a refused start changed the store");
    finish(&story);
}

/* A group is in the device when its broker is killed; it lands a second later, while the next broker is
 * starting. */
Test(start, g11_waits_for_the_writes_of_a_dead_predecessor)
{
    uint32_t waited = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        struct story story;
        begin(&story);
        cr_assert(run_start(&story.run));
        run_write(&story.run, 0, 1, 2, 100);
        run_settle(&story.run);
        run_idle(&story.run, INT64_C(3000000000));
        run_write(&story.run, 0, 1, 20, 1000);
        log_turn(story.run.log);
        disk_crash_at(story.run.disk, disk_events(story.run.disk) + 1);
        run_settle(&story.run);
        end(&story);
        struct choices choices = choices_chance(seed);
        struct image *killed = image_crash(story.image, CRASH_KILL, &choices);
        image_free(story.image);
        story.image = killed;
        bool late = killed->landing_count > 0;
        int64_t last = 0;
        for (uint32_t i = 0; i < killed->landing_count; i++)
            last = last > killed->landings[i].due ? last : killed->landings[i].due;
        next_life(&story, END_KILL);
        cr_assert(run_start(&story.run), "%s", story.run.error.text);
        if (late) {
            waited++;
            cr_assert_geq(io_now(story.run.io), last,
                          "it served before the last write of the dead had landed");
        }
        run_check(&story.run);
        end(&story);
        finish(&story);
    }
    cr_assert_gt(waited, 0);
}

Test(start, g9_reads_go_on_when_the_disk_is_full_and_writes_heal_by_themselves)
{
    struct story story;
    begin(&story);
    cr_assert(run_start(&story.run));
    run_write(&story.run, 0, 1, 5, 1000);
    run_settle(&story.run);
    run_idle(&story.run, INT64_C(5000000000));
    story.run.trouble = true;
    disk_set_space(story.run.disk, 0);
    int error = 0;
    for (uint32_t i = 0; i < 400 && error != -ENOSPC; i++) {
        error = run_try_write(&story.run, i % 3, 1, 1, 200000, 0);
        for (uint32_t n = 0; n < 5; n++)
            run_pump(&story.run, INT64_C(20000000));
    }
    cr_assert_eq(error, -ENOSPC);
    run_settle(&story.run);
    cr_assert(run_alive(&story.run), "%s", log_failed(story.run.log)->text);
    run_check(&story.run);
    cr_assert(story.run.checked, "reads must go on");
    disk_set_space(story.run.disk, UINT64_MAX);
    run_idle(&story.run, INT64_C(30000000000));
    uint64_t acked = story.run.acked;
    cr_assert_eq(run_write(&story.run, 0, 1, 3, 100), 0);
    run_settle(&story.run);
    cr_assert_eq(story.run.acked, acked + 1);
    run_stop(&story.run);
    end(&story);
    finish(&story);
}

Test(start, g9_starts_and_serves_reads_on_a_full_disk)
{
    struct story story;
    begin(&story);
    cr_assert(run_start(&story.run));
    for (uint32_t i = 0; i < 6; i++) {
        run_write(&story.run, 0, 1, 5, 1000);
        run_settle(&story.run);
    }
    run_idle(&story.run, INT64_C(5000000000));
    end(&story);
    struct choices choices = choices_mask(0);
    struct image *cut = image_crash(story.image, CRASH_POWER, &choices);
    image_free(story.image);
    story.image = cut;
    story.image->space = 0;
    next_life(&story, END_POWER);
    story.run.trouble = true;
    cr_assert(run_start(&story.run), "%s", story.run.error.text);
    run_check(&story.run);
    cr_assert(story.run.checked);
    end(&story);
    finish(&story);
}

/* What the crash and fault tests of this scenario rest on. */
Test(start, g15_a_recycled_segment_file_is_written_over_groups_of_an_earlier_life)
{
    const struct scenario *scenario = scenario_find("recycled-segment");
    struct story story;
    begin(&story);
    scenario->before(&story.run);
    end(&story);
    struct choices choices = choices_mask(UINT64_MAX);
    struct image *killed = image_crash(story.image, CRASH_KILL, &choices);
    image_free(story.image);
    story.image = killed;
    cr_assert(scenario->between(&story.image, &story.ledger), "%s", story.ledger.failure);
    next_life(&story, END_POWER);
    scenario->act(&story.run);
    run_check(&story.run);
    cr_assert(story.run.checked);
    cr_assert_gt(disk_overwrites(story.run.disk), 0, "no block of an earlier life is written over");
    end(&story);
    finish(&story);
}
