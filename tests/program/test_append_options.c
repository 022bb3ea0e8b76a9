/* `walrus append` with --queue, --retry, --stream, --producer over a fake of the library: what each asks of
 * the library, exit codes and words for each failure. */
#include <criterion/criterion.h>
#include <signal.h>
#include <unistd.h>

#include "faked.h"

TestSuite(append_options, .init = faked_make, .fini = faked_clean, .timeout = 300);

static void setting(char out[32], const char *name, int value)
{
    snprintf(out, 32, "%s=%d", name, value);
}

#define expect_text(child, wanted) expect_record(child, wanted, strlen(wanted))

/* A file with this content in the test's folder. */
static const char *make_file(const char *content)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/input", faked_folder);
    FILE *file = fopen(path, "w");
    cr_assert(file != NULL && fputs(content, file) >= 0 && fclose(file) == 0);
    return path;
}

/* -------------------------------------------------------------------------------- what is asked for */

Test(append_options, without_options_nothing_is_asked_for)
{
    struct child child;
    run(&child, list_of("FAKE_NOTES=1"), "a\n", "append", "t");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "connect: producer none, flags 0, reconnect 0\nsubmit: queue 0, number 0\n1\n1:a\n");
    child_free(&child);
}

Test(append_options, queue_is_asked_for_before_the_first_line_and_at_the_end)
{
    struct child child;
    run(&child, list_of("FAKE_NOTES=1"), "a\nb\n", "append", "t", "--queue", "--batch", "1");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child,
                "connect: producer none, flags 0, reconnect 0\nset_queue: 1\nsubmit: queue 1, number 0\n"
                "1\n1:a\nset_queue: 1\nsubmit: queue 1, number 0\n1\n1:b\n");
    child_free(&child);
}

Test(append_options, retry_takes_a_time_or_a_number_of_tries)
{
    static const struct {
        const char *option;
        unsigned tries;
        long long ns;
    } cases[] = {{"--retry", 0, 30000000000},     {"--retry=7", 7, 0},
                 {"--retry=250ms", 0, 250000000}, {"--retry=3s", 0, 3000000000},
                 {"--retry=2m", 0, 120000000000}, {"--retry=1h", 0, 3600000000000}};
    for (size_t i = 0; i < array_count(cases); i++) {
        struct child child;
        char wanted[256];
        run(&child, list_of("FAKE_NOTES=1"), "a\nb\n", "append", "t", cases[i].option, "--queue");
        expect_end(NULL, &child, 0, NULL);
        snprintf(wanted, sizeof wanted,
                 "connect: producer none, flags 0, reconnect 0\n"
                 "blocking: queue 1, number 0, tries %u, deadline %lld\n2\n1:a\n1:b\n",
                 cases[i].tries, cases[i].ns);
        expect_text(&child, wanted);
        child_free(&child);
        unlink(faked_record);
    }
    static const char *const wrong[] = {"--retry=",   "--retry=0",    "--retry=x",
                                        "--retry=5x", "--retry=-1s",  "--retry=s",
                                        "--retry=0s", "--retry=1.5s", "--retry=99999999999999999999s"};
    for (size_t i = 0; i < array_count(wrong); i++)
        expect_usage(list_of("append", "t", wrong[i]), "a number of tries, or a time");
}

Test(append_options, producer_numbers_the_batches_and_connects_again)
{
    struct child child;
    run(&child, list_of("FAKE_NOTES=1"), "a\nb\nc\n", "append", "t", "--producer", "p", "--batch", "2",
        "--take-over");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "connect: producer p, flags 6, reconnect 0\n"
                        "blocking: queue 0, number 1, tries 0, deadline 0\n2\n1:a\n1:b\n"
                        "blocking: queue 0, number 2, tries 0, deadline 0\n1\n1:c\n");
    child_free(&child);
    unlink(faked_record);
    run(&child, list_of("FAKE_NOTES=1"), "a\n", "append", "t", "--producer", "p", "--retry=9s");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "connect: producer p, flags 2, reconnect 9000000000\n"
                        "blocking: queue 0, number 1, tries 0, deadline 9000000000\n1\n1:a\n");
    child_free(&child);
}

Test(append_options, stream_makes_one_entry_of_the_bytes_as_they_are)
{
    struct child child;
    static const char input[] = "a\n\nb\0c\nno newline";
    static const char wanted[] = "1\na\n\nb\0c\nno newline";
    faked_run(&child, none, input, sizeof input - 1, list_of("append", "t", "--stream"));
    expect_end(NULL, &child, 0, NULL);
    expect_record(&child, wanted, sizeof wanted - 1);
    child_free(&child);
    unlink(faked_record);
    run(&child, none, "", "append", "t", "--stream");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "1\n");
    child_free(&child);
}

Test(append_options, stream_passes_on_queue_and_the_number_of_its_producer)
{
    struct child child;
    run(&child, list_of("FAKE_NOTES=1"), "", "append", "t", "--stream", "--queue", "--producer", "p",
        "--file", make_file("abc"));
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "connect: producer p, flags 2, reconnect 0\nset_queue: 1\nsubmit: queue 1, number 1\n"
                        "1\nabc");
    child_free(&child);
}

Test(append_options, options_that_do_not_go_together_exit_2)
{
    expect_usage(list_of("append", "t", "--take-over"), "of which --producer?");
    expect_usage(list_of("append", "t", "--producer", "p", "--linger", "5"), "exactly --batch lines");
    expect_usage(list_of("append", "t", "--stream", "--batch", "5"), "the whole input is one batch");
    expect_usage(list_of("append", "t", "--stream", "--linger", "5"), "the whole input is one batch");
    expect_usage(list_of("append", "t", "--producer", ""), "a producer's name has at least 1 byte");
    expect_usage(list_of("append", "t", "--producer", "a\tb"), "a producer's name has no control characters");
    expect_usage(list_of("read", "t", "--raw", "--json"), "one of the two");
    struct child child;
    run(&child, none, "x\n", "append", "t", "--stream", "--retry");
    expect_end(NULL, &child, 2, "--stream with --retry needs input that can be read again");
    child_free(&child);
}

Test(append_options, help_says_what_each_option_does)
{
    static const char *const words[] = {"--queue",    "--retry",     "--stream",
                                        "--producer", "--take-over", "exactly once"};
    struct child child;
    run(&child, none, "", "append", "--help");
    expect_end(NULL, &child, 0, NULL);
    for (size_t i = 0; i < array_count(words); i++)
        expect(strstr(child.output.data, words[i]) != NULL, NULL, &child, "--help lacks %s", words[i]);
    child_free(&child);
}

Test(append_options, read_prints_raw_bytes_without_newlines)
{
    struct child child;
    run(&child, list_of("FAKE_ENTRIES=3"), "", "read", "t", "--raw");
    expect_end(NULL, &child, 0, NULL);
    expect_output(NULL, &child, "entry 1entry 2entry 3");
    child_free(&child);
}

/* -------------------------------------------------------------------------------- failures of kept lines */

/* Batch 2 of 3, of two lines each, fails. */
static void expect_failure(const char *option, int code, const char *where, int exit_code, const char *words)
{
    struct child child;
    char code_setting[32], where_setting[32];
    setting(code_setting, "FAKE_CODE", code);
    snprintf(where_setting, sizeof where_setting, "FAKE_WHERE=%s", where);
    run(&child, list_of("FAKE_FAIL_BATCH=2", code_setting, where_setting), "1\n2\n3\n4\n5\n", "append", "t",
        "--batch", "2", option, "p");
    expect_end(NULL, &child, exit_code, words);
    expect(child.errors.data[child.errors.length - 1] == '\n' && strchr(child.errors.data, '\n')[1] == '\0',
           NULL, &child, "not one line on stderr");
    expect_text(&child, "2\n1:1\n1:2\n");
    child_free(&child);
    unlink(faked_record);
}

Test(append_options, a_batch_that_fails_for_good_ends_with_the_librarys_words_and_the_count)
{
    static const int again[] = {EBUSY, EAGAIN, ENOSPC, ETIMEDOUT};
    for (size_t i = 0; i < array_count(again); i++)
        expect_failure("--producer", again[i], "blocking", 3,
                       "topic 't': fake words about the write; 2 lines are committed\n");
    static const int failed[] = {EIO, EINVAL, EDQUOT, ESHUTDOWN, ESTALE, ENOMEM};
    for (size_t i = 0; i < array_count(failed); i++)
        expect_failure("--producer", failed[i], "blocking", 1,
                       "fake words about the write; 2 lines are committed\n");
}

Test(append_options, an_answer_that_comes_after_the_deadline_is_waited_for)
{
    expect_failure("--producer", EBUSY, "late", 3, "2 lines are committed\n");
    struct child child;
    run(&child, list_of("FAKE_LATE=1"), "1\n2\n3\n", "append", "t", "--retry", "--batch", "2");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "2\n1:1\n1:2\n1\n1:3\n");
    child_free(&child);
}

Test(append_options, lines_whose_fate_is_unknown_are_counted_and_the_way_out_is_said)
{
    expect_failure(
        "--producer", ECONNRESET, "blocking", 1,
        "2 lines are committed, 2 lines are unknown (they may or may not be committed: run it again, "
        "and it writes what is missing)\n");
    struct child child;
    run(&child, list_of("FAKE_FAIL_BATCH=2", "FAKE_CODE=104", "FAKE_WHERE=blocking"), "1\n2\n3\n", "append",
        "t", "--batch", "2", "--retry");
    expect_end(
        NULL, &child, 1,
        "1 line is unknown (they may or may not be committed: read the end of the topic to find out)\n");
    child_free(&child);
}

Test(append_options, a_large_batch_that_a_lost_connection_rolled_back_is_sent_again)
{
    struct child child;
    char code[32];
    setting(code, "FAKE_CODE", ECANCELED);
    run(&child, list_of("FAKE_FAIL_BATCH=1", code, "FAKE_WHERE=blocking", "FAKE_ONCE=3"), "1\n2\n", "append",
        "t", "--producer", "p");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "2\n1:1\n1:2\n");
    child_free(&child);
    unlink(faked_record);
    run(&child, list_of("FAKE_FAIL_BATCH=1", code, "FAKE_WHERE=blocking"), "1\n2\n", "append", "t",
        "--retry");
    expect_end(NULL, &child, 1, "0 lines are committed\n");
    child_free(&child);
}

/* -------------------------------------------------------------------------------- what an earlier run did
 */

Test(append_options, batches_of_an_earlier_run_are_skipped)
{
    struct child child;
    run(&child, list_of("FAKE_LAST=2", "FAKE_NOTES=1"), "1\n2\n3\n4\n5\n", "append", "t", "--producer", "p",
        "--batch", "2");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "connect: producer p, flags 2, reconnect 0\n"
                        "blocking: queue 0, number 3, tries 0, deadline 0\n1\n1:5\n");
    child_free(&child);
    unlink(faked_record);
    run(&child, list_of("FAKE_LAST=3"), "1\n2\n3\n4\n5\n", "append", "t", "--producer", "p", "--batch", "2");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "");
    child_free(&child);
}

Test(append_options, the_last_batch_of_an_earlier_run_is_compared_if_it_is_known_where_it_is)
{
    struct child child;
    const char *same = "x\nentry 1\nentry 2\nmore\n";
    run(&child, list_of("FAKE_LAST=1", "FAKE_COUNT=2", "FAKE_ENTRIES=9"), "entry 1\nentry 2\nmore\n",
        "append", "t", "--producer", "p", "--batch", "2");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "1\n4:more\n");
    child_free(&child);
    unlink(faked_record);
    run(&child, list_of("FAKE_LAST=1", "FAKE_COUNT=2", "FAKE_ENTRIES=9"), same, "append", "t", "--producer",
        "p", "--batch", "2");
    expect_end(
        NULL, &child, 1,
        "batch 1 of producer 'p' was committed with other lines than this input has there: give the same "
        "input");
    expect_text(&child, "");
    child_free(&child);
    run(&child, list_of("FAKE_LAST=1", "FAKE_COUNT=2", "FAKE_ENTRIES=9"), same, "append", "t", "--producer",
        "p", "--batch", "3");
    expect_end(NULL, &child, 1, "was committed with 2 lines, this input has 3 there");
    expect_text(&child, "");
    child_free(&child);
}

Test(append_options, an_input_that_is_shorter_than_what_is_committed_is_refused)
{
    struct child child;
    run(&child, list_of("FAKE_LAST=5"), "1\n2\n3\n", "append", "t", "--producer", "p", "--batch", "2");
    expect_end(NULL, &child, 1,
               "batch 3 of producer 'p' is committed already, and this input ends before it");
    expect_text(&child, "");
    child_free(&child);
}

Test(append_options, when_the_last_batch_cannot_be_asked_for_nothing_is_written)
{
    struct child child;
    char code[32];
    setting(code, "FAKE_CODE", ESTALE);
    run(&child, list_of("FAKE_LAST=1", "FAKE_FAIL_BATCH=1", code, "FAKE_WHERE=query"), "1\n2\n", "append",
        "t", "--producer", "p", "--batch", "1");
    expect_end(NULL, &child, 1, "another program took this producer over: stop; 0 lines are committed\n");
    expect_text(&child, "");
    child_free(&child);
}

Test(append_options, when_the_last_batch_cannot_be_read_it_is_not_compared)
{
    struct child child;
    char code[32];
    setting(code, "FAKE_CODE", EBADMSG);
    run(&child, list_of("FAKE_LAST=1", "FAKE_COUNT=1", "FAKE_FAIL_BATCH=1", code, "FAKE_WHERE=read"),
        "1\n2\n", "append", "t", "--producer", "p", "--batch", "1");
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "1\n1:2\n");
    child_free(&child);
}

/* -------------------------------------------------------------------------------- signals */

Test(append_options, a_signal_with_a_producer_leaves_out_an_unfinished_batch)
{
    struct child child;
    faked_begin(&child, list_of("FAKE_GREET=1"), list_of("append", "t", "--producer", "p", "--batch", "2"));
    cr_assert(child_await(&child, &child.output, "connected\n"));
    cr_assert(child_write(&child, "1\n2\n3\n", 6) && child_await_read(&child));
    kill(child.pid, SIGTERM);
    child_wait(&child, LIMIT_MS);
    expect_end(
        NULL, &child, 1,
        "ended by SIGTERM before the end of the input; 2 lines are committed, those of an unfinished batch "
        "are not\n");
    expect_text(&child, "2\n1:1\n1:2\n");
    child_free(&child);
}

Test(append_options, a_signal_with_retry_commits_what_was_read)
{
    struct child child;
    faked_begin(&child, list_of("FAKE_GREET=1"), list_of("append", "t", "--retry", "--linger", "2000000000"));
    cr_assert(child_await(&child, &child.output, "connected\n"));
    cr_assert(child_write(&child, "1\n2\nhalf", 8) && child_await_read(&child));
    kill(child.pid, SIGINT);
    child_wait(&child, LIMIT_MS);
    expect_end(NULL, &child, 1, "2 lines are committed, an unfinished one is not\n");
    expect_text(&child, "2\n1:1\n1:2\n");
    child_free(&child);
}

Test(append_options, a_signal_rolls_a_stream_back)
{
    struct child child;
    faked_begin(&child, list_of("FAKE_GREET=1"), list_of("append", "t", "--stream"));
    cr_assert(child_await(&child, &child.output, "connected\n"));
    cr_assert(child_write(&child, "half", 4) && child_await_read(&child));
    kill(child.pid, SIGINT);
    child_wait(&child, LIMIT_MS);
    expect_end(NULL, &child, 1, "ended by SIGINT before the end of the input; nothing is committed\n");
    expect_text(&child, "");
    child_free(&child);
}

Test(append_options, a_silence_closes_a_batch_with_retry_and_never_with_a_producer)
{
    struct child child;
    faked_begin(&child, none, list_of("append", "t", "--retry", "--linger", "10"));
    cr_assert(child_write(&child, "1\n", 2));
    int64_t limit = clock_ms() + LIMIT_MS;
    while (!file_contains(faked_record, "1\n1:1\n") && clock_ms() < limit)
        pause_ms(5);
    expect(file_contains(faked_record, "1\n1:1\n"), NULL, &child, "the silence closed no batch");
    child_free(&child);
    unlink(faked_record);
    faked_begin(&child, none, list_of("append", "t", "--producer", "p"));
    cr_assert(child_write(&child, "1\n", 2) && child_await_read(&child));
    pause_ms(300); /* time in which it could do wrong */
    cr_assert(child_write(&child, "2\n", 2));
    child_finish(&child, LIMIT_MS);
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "2\n1:1\n1:2\n");
    child_free(&child);
}

/* -------------------------------------------------------------------------------- failures of a stream */

static void expect_stream(const char *const *settings, const char *const *more, int exit_code,
                          const char *words, const char *wanted)
{
    struct child child;
    const char *arguments[16] = {"append", "t", "--stream"};
    for (size_t i = 0; more[i] != NULL; i++)
        arguments[3 + i] = more[i];
    faked_run(&child, settings, "abc", 3, arguments);
    expect_end(NULL, &child, exit_code, words);
    expect_text(&child, wanted);
    child_free(&child);
    unlink(faked_record);
}

Test(append_options, a_stream_that_fails_says_that_nothing_is_committed)
{
    static const struct {
        int code, exit_code;
        const char *where, *words;
    } cases[] = {
        {EBUSY, 3, "completion",
         "in progress on this topic: try again; 3 bytes were read, nothing is committed\n"},
        {ENOSPC, 3, "completion", "3 bytes were read, nothing is committed\n"},
        {EIO, 1, "completion", "3 bytes were read, nothing is committed\n"},
        {ECANCELED, 1, "completion", "3 bytes were read, nothing is committed\n"},
        {ECONNRESET, 1, "completion", "3 bytes were read, it may or may not be committed: read the end"},
        {EBUSY, 3, "add", "fake words about the part; 0 bytes were read, nothing is committed\n"},
        {EINVAL, 1, "add", "fake words about the part"},
        {EAGAIN, 3, "begin", "nothing is committed\n"},
        {EAGAIN, 3, "submit", "nothing is committed\n"},
        {ESHUTDOWN, 1, "submit", "nothing is committed\n"},
    };
    for (size_t i = 0; i < array_count(cases); i++) {
        char code[32], where[32];
        setting(code, "FAKE_CODE", cases[i].code);
        snprintf(where, sizeof where, "FAKE_WHERE=%s", cases[i].where);
        expect_stream(list_of("FAKE_FAIL_BATCH=1", code, where), none, cases[i].exit_code, cases[i].words,
                      "");
    }
}

Test(append_options, a_stream_whose_fate_is_unknown_is_run_again_with_a_producer)
{
    expect_stream(list_of("FAKE_FAIL_BATCH=1", "FAKE_CODE=104"), list_of("--producer", "p"), 1,
                  "it is not known whether it is committed: run it again\n", "");
}

Test(append_options, a_stream_of_an_earlier_run_is_not_written_again)
{
    expect_stream(list_of("FAKE_LAST=1"), list_of("--producer", "p"), 0, NULL, "");
}

Test(append_options, a_stream_from_a_file_is_sent_again_from_where_it_began)
{
    struct child child;
    char code[32];
    const char *path = make_file("skipped\nabc");
    char shell[256];
    /* bash's read leaves the descriptor behind the line that it took. */
    snprintf(shell, sizeof shell, "{ read -r _; exec \"$0\" append t --stream --retry=3; } < %s", path);
    setting(code, "FAKE_CODE", EBUSY);
    struct start start = {.arguments = list_of("/bin/bash", "-c", shell, program_path("WALRUS_TEST_FAKE")),
                          .environment =
                              list_of(faked_setting, "FAKE_FAIL_BATCH=1", "FAKE_ALL=1", code, "FAKE_ONCE=2")};
    child_start(&child, &start);
    child_finish(&child, LIMIT_MS);
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "1\nabc");
    child_free(&child);
    unlink(faked_record);

    const char *file = make_file("abc");
    run(&child, list_of("FAKE_ALL=1", "FAKE_FAIL_BATCH=1", code), "", "append", "t", "--stream", "--retry=3",
        "--file", file);
    expect_end(NULL, &child, 3, "nothing is committed\n");
    child_free(&child);
    setting(code, "FAKE_CODE", EIO);
    run(&child, list_of("FAKE_ALL=1", "FAKE_FAIL_BATCH=1", code, "FAKE_ONCE=1"), "", "append", "t",
        "--stream", "--retry=3", "--file", file);
    expect_end(NULL, &child, 1, "the device failed");
    expect_text(&child, "");
    child_free(&child);
    setting(code, "FAKE_CODE", ECANCELED);
    run(&child, list_of("FAKE_ALL=1", "FAKE_FAIL_BATCH=1", code, "FAKE_ONCE=1"), "", "append", "t",
        "--stream", "--producer", "p", "--file", file);
    expect_end(NULL, &child, 0, NULL);
    expect_text(&child, "1\nabc");
    child_free(&child);
}

Test(append_options, a_stream_whose_input_cannot_be_read_commits_nothing)
{
    struct child child;
    run(&child, none, "", "append", "t", "--stream", "--file", faked_folder);
    expect_end(NULL, &child, 1, "Is a directory; nothing is committed\n");
    expect_text(&child, "");
    child_free(&child);
    run(&child, none, "", "append", "t", "--producer", "p", "--file", faked_folder);
    expect_end(NULL, &child, 1, "Is a directory; 0 lines are committed\n");
    child_free(&child);
}
