/* `walrus append --producer` on a real broker: killed at any point, or its broker killed, and run again on
 * the same input, each line is there exactly once. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "program.h"

#define LINES 60000u

static struct place place;
static char *input; /* LINES lines: "line N" */
static size_t input_length;
static char input_path[PATH_MAX];

static void make(void)
{
    place_make(&place);
    input = malloc((size_t)LINES * 16);
    cr_assert(input != NULL);
    input_length = 0;
    for (unsigned i = 1; i <= LINES; i++)
        input_length += (size_t)snprintf(input + input_length, 16, "line %u\n", i);
    snprintf(input_path, sizeof input_path, "%s/input", place.folder);
    int fd = open(input_path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && write(fd, input, input_length) == (ssize_t)input_length && close(fd) == 0);
}

static void clean(void)
{
    free(input);
    place_remove(&place);
}

TestSuite(producer, .init = make, .fini = clean, .timeout = 300);

/* Each line of the input, once, in order. */
static void expect_input(void)
{
    struct child child;
    walrus(&place, &child, "", "read", "t");
    expect_end(&place, &child, 0, NULL);
    size_t same = 0;
    while (same < input_length && same < child.output.length && input[same] == child.output.data[same])
        same++;
    expect(child.output.length == input_length && same == input_length, &place, NULL,
           "%zu bytes came back, %zu were written; they differ from byte %zu on: %.60s", child.output.length,
           input_length, same, child.output.data + same);
    child_free(&child);
}

/* How many lines are there. */
static size_t count_lines(void)
{
    struct child child;
    size_t lines = 0;
    walrus(&place, &child, "", "read", "t");
    for (size_t i = 0; i < child.output.length; i++)
        lines += child.output.data[i] == '\n';
    child_free(&child);
    return lines;
}

static void start_run(struct child *child, const char *batch)
{
    walrus_start(&place, child, "append", "t", "--producer", "p", "--batch", batch, "--file", input_path);
}

/* Lets it work until some more is there, or it has ended. */
static void let_work(const struct child *child, size_t more)
{
    size_t wanted = count_lines() + more;
    int64_t limit = clock_ms() + LIMIT_MS;
    while (wanted < LINES && count_lines() < wanted && kill(child->pid, 0) == 0 && clock_ms() < limit)
        continue;
}

/* -------------------------------------------------------------------------------- kills */

Test(producer, g5_killed_again_and_again_and_run_again_each_line_is_there_once)
{
    struct child child;
    broker_start(&place, NULL);
    for (unsigned kills = 0; kills < 12; kills++) {
        start_run(&child, "7");
        if (kills % 3 == 0)
            pause_ms((int)kills); /* early: while it connects, or skips */
        else
            let_work(&child, 500 * kills);
        kill(child.pid, SIGKILL);
        child_wait(&child, LIMIT_MS);
        child_free(&child);
    }
    start_run(&child, "7");
    child_wait(&child, LIMIT_MS);
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    expect_input();
    start_run(&child, "7"); /* everything is skipped */
    child_wait(&child, LIMIT_MS);
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    expect_input();
}

Test(producer, g5_a_run_outlives_the_kills_of_its_broker)
{
    struct child child;
    broker_start(&place, NULL);
    start_run(&child, "5");
    for (size_t kills = 1; kills <= 5; kills++) {
        let_work(&child, 400 * kills);
        broker_kill(&place);
        broker_start(&place, NULL);
    }
    child_wait(&child, LIMIT_MS);
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    expect_input();
}

Test(producer, g5_broker_and_run_killed_together_and_the_input_read_from_a_pipe)
{
    struct child child;
    broker_start(&place, NULL);
    for (unsigned kills = 1; kills <= 5; kills++) {
        walrus_start(&place, &child, "append", "t", "--producer", "p", "--batch", "100");
        (void)child_write(&child, input, input_length / 6 * kills);
        (void)child_await_read(&child);
        if (kills % 2 == 0)
            kill(child.pid, SIGKILL);
        broker_kill(&place);
        kill(child.pid, SIGKILL);
        child_wait(&child, LIMIT_MS);
        child_free(&child);
        broker_start(&place, NULL);
    }
    walrus_with(&place, &child, input, input_length,
                list_of("append", "t", "--producer", "p", "--batch", "100"));
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    expect_input();
}

Test(producer, a_run_that_is_ended_by_a_signal_leaves_whole_batches_and_is_completed_by_the_next)
{
    struct child child;
    uint64_t committed = 0;
    broker_start(&place, NULL);
    walrus_start(&place, &child, "append", "t", "--producer", "p", "--batch", "1000");
    cr_assert(child_write(&child, input, input_length / 2) && child_await_read(&child));
    kill(child.pid, SIGTERM);
    child_wait(&child, LIMIT_MS);
    expect_end(&place, &child, 1, "ended by SIGTERM before the end of the input");
    cr_assert(number_behind(child.errors.data, "; ", &committed) && committed % 1000 == 0);
    cr_assert(count_lines() == committed, "%zu lines are there, it said %zu", count_lines(),
              (size_t)committed);
    child_free(&child);
    start_run(&child, "1000");
    child_wait(&child, LIMIT_MS);
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    expect_input();
}

Test(producer, a_run_whose_broker_stays_away_gives_up_and_is_completed_by_the_next)
{
    struct child child;
    broker_start(&place, NULL);
    walrus_start(&place, &child, "append", "t", "--producer", "p", "--batch", "10", "--retry=1s");
    cr_assert(child_write(&child, input, input_length / 2) && child_await_read(&child));
    broker_kill(&place);
    (void)child_write(&child, input + input_length / 2, 1000);
    child_wait(&child, LIMIT_MS);
    expect_end(&place, &child, 1, "committed");
    child_free(&child);
    broker_start(&place, NULL);
    start_run(&child, "10");
    child_wait(&child, LIMIT_MS);
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    expect_input();
}

Test(producer, an_idle_run_connects_again_and_goes_on)
{
    struct child child;
    broker_start(&place, NULL);
    walrus_start(&place, &child, "append", "t", "--producer", "p", "--batch", "10");
    cr_assert(child_write(&child, input, input_length / 2) && child_await_read(&child));
    broker_kill(&place);
    broker_start(&place, NULL);
    cr_assert(child_write(&child, input + input_length / 2, input_length - input_length / 2));
    child_finish(&child, LIMIT_MS);
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    expect_input();
}

/* -------------------------------------------------------------------------------- another input */

static void expect_refused(const char *text, size_t length, const char *batch, const char *words)
{
    struct child child;
    walrus_with(&place, &child, text, length, list_of("append", "t", "--producer", "p", "--batch", batch));
    expect_end(&place, &child, 1, words);
    child_free(&child);
}

Test(producer, another_input_or_another_batch_is_refused_and_nothing_is_written)
{
    struct child child;
    static const char text[] = "1\n2\n3\n4\n5\n";
    broker_start(&place, NULL);
    for (int restarts = 0; restarts < 2; restarts++) {
        walrus(&place, &child, text, "append", "t", "--producer", "p", "--batch", "2");
        expect_end(&place, &child, 0, NULL);
        child_free(&child);
        expect_refused("1\n2\n3\n4\n5\n6\n", 12, "2",
                       "batch 3 of producer 'p' was committed with 1 lines, this input has 2 there");
        expect_refused("1\n2\n3\n4\n", 8, "2", "is committed already, and this input ends before it");
        expect_refused("1\n2\n3\n4\n6\n", 10, "2", "was committed with other lines");
        expect_refused(text, 10, "1", "was committed with other lines");
        expect_refused("", 0, "2", "is committed already, and this input ends before it");
        cr_assert(count_lines() == 5);
        broker_kill(&place); /* it is remembered over a restart */
        broker_start(&place, NULL);
    }
    walrus(&place, &child, text, "append", "u", "--producer", "p", "--batch", "2");
    expect_end(&place, &child, 0, NULL); /* another topic has numbers of its own */
    child_free(&child);
}

/* -------------------------------------------------------------------------------- one holder */

Test(producer, a_name_that_is_held_is_refused_with_the_holders_pid_and_can_be_taken_over)
{
    struct child holder, child;
    char pid[32];
    broker_start(&place, NULL);
    walrus_start(&place, &holder, "append", "t", "--producer", "p", "--batch", "1");
    cr_assert(child_write(&holder, "line 1\n", 7));
    int64_t limit = clock_ms() + LIMIT_MS;
    while (count_lines() < 1 && clock_ms() < limit)
        pause_ms(1);
    snprintf(pid, sizeof pid, "%d", (int)holder.pid);
    walrus(&place, &child, "line 1\nline 2\n", "append", "t", "--producer", "p", "--batch", "1");
    expect_end(&place, &child, 3, pid);
    child_free(&child);
    walrus(&place, &child, "line 1\nline 2\n", "append", "t", "--producer", "p", "--batch", "1",
           "--take-over");
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    cr_assert(child_write(&holder, "not any more\n", 13));
    child_finish(&holder, LIMIT_MS);
    expect_end(&place, &holder, 1, "1 line is committed\n");
    child_free(&holder);
    cr_assert(count_lines() == 2);
}

/* -------------------------------------------------------------------------------- streams */

static void expect_one_entry(void)
{
    struct child child;
    walrus(&place, &child, "", "read", "t", "--raw");
    expect_end(&place, &child, 0, NULL);
    expect(child.output.length == input_length && memcmp(child.output.data, input, input_length) == 0, &place,
           NULL, "%zu bytes came back", child.output.length);
    child_free(&child);
}

Test(producer, a_stream_is_written_once_however_often_it_is_run)
{
    struct child child;
    broker_start(&place, NULL);
    for (int i = 0; i < 3; i++) {
        walrus(&place, &child, "", "append", "t", "--stream", "--producer", "p", "--file", input_path);
        expect_end(&place, &child, 0, NULL);
        child_free(&child);
        expect_one_entry();
        if (i == 1) {
            broker_kill(&place);
            broker_start(&place, NULL);
        }
    }
}

Test(producer, a_stream_from_a_file_outlives_the_kill_of_its_broker)
{
    struct child child;
    size_t length = (size_t)256 << 20;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/large", place.folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && ftruncate(fd, (off_t)length) == 0 && close(fd) == 0);
    broker_start(&place, NULL);
    walrus_start(&place, &child, "append", "t", "--stream", "--producer", "p", "--file", path);
    char offset[64], line[64] = "";
    snprintf(offset, sizeof offset, "/proc/%d/io", (int)child.pid);
    int64_t limit = clock_ms() + LIMIT_MS;
    uint64_t got = 0;
    while (got < length / 8 && clock_ms() < limit) { /* in the middle of it */
        FILE *file = fopen(offset, "re");
        if (file == NULL || fgets(line, sizeof line, file) == NULL || !number_behind(line, "rchar: ", &got))
            got = 0;
        if (file != NULL)
            fclose(file);
    }
    cr_assert(got >= length / 8 && got < length, "not in the middle: %zu", (size_t)got);
    broker_kill(&place);
    broker_start(&place, NULL);
    child_wait(&child, LIMIT_MS);
    expect_end(&place, &child, 0, NULL);
    child_free(&child);
    walrus(&place, &child, "", "topics", "--json");
    expect(strstr(child.output.data, "\"last_sequence\":1,") != NULL, &place, &child, "not one entry");
    child_free(&child);
}
