/* The command line over a fake of the library (fake_client.c): arguments, exit codes, what append says when
 * something fails. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <unistd.h>

#include "faked.h"

TestSuite(command_line, .init = faked_make, .fini = faked_clean, .timeout = 300);

/* -------------------------------------------------------------------------------- append */

Test(command_line, append_makes_every_line_an_entry_and_every_n_lines_a_batch)
{
    struct child child;
    static const char input[] = "a\n\nb\0c\n\n\nlast";
    static const char wanted[] = "2\n1:a\n0:\n2\n3:b\0c\n0:\n2\n0:\n4:last\n";
    faked_run(&child, none, input, sizeof input - 1, list_of("append", "t", "--batch", "2"));
    expect_end(NULL, &child, 0, NULL);
    expect_record(&child, wanted, sizeof wanted - 1);
    child_free(&child);
}

Test(command_line, append_of_nothing_commits_nothing)
{
    struct child child;
    run(&child, none, "", "append", "t");
    expect_end(NULL, &child, 0, NULL);
    cr_assert(access(faked_record, F_OK) != 0 || !file_contains(faked_record, "\n"));
    child_free(&child);
}

Test(command_line, append_takes_lines_of_any_length)
{
    struct child child;
    size_t length = (size_t)9 << 20;
    char *input = malloc(length + 4);
    cr_assert(input != NULL);
    memset(input, 'x', length);
    memcpy(input + length, "\nz\n", 4);
    faked_run(&child, none, input, length + 3, list_of("append", "t"));
    expect_end(NULL, &child, 0, NULL);
    cr_assert(file_contains(faked_record, "2\n9437184:xxx") && file_contains(faked_record, "xxx\n1:z\n"));
    free(input);
    child_free(&child);
}

Test(command_line, append_closes_a_batch_after_a_silence)
{
    struct child child;
    faked_begin(&child, none, list_of("append", "t", "--linger", "20"));
    cr_assert(child_write(&child, "a\nb\nhalf a li", 13));
    int64_t limit = clock_ms() + LIMIT_MS;
    while (!file_contains(faked_record, "2\n1:a\n1:b\n") && clock_ms() < limit)
        pause_ms(5);
    expect(file_contains(faked_record, "2\n1:a\n1:b\n"), NULL, &child, "the silence closed no batch");
    cr_assert(child_write(&child, "ne\n", 3));
    child_finish(&child, LIMIT_MS);
    expect_end(NULL, &child, 0, NULL);
    static const char wanted[] = "2\n1:a\n1:b\n1\n11:half a line\n";
    expect_record(&child, wanted, sizeof wanted - 1);
    child_free(&child);
}

Test(command_line, append_reads_a_file)
{
    struct child child;
    char path[128];
    snprintf(path, sizeof path, "%s/input", faked_folder);
    FILE *file = fopen(path, "w");
    cr_assert(file != NULL && fputs("one\ntwo", file) >= 0 && fclose(file) == 0);
    run(&child, none, "", "append", "--file", path, "t");
    expect_end(NULL, &child, 0, NULL);
    expect_record(&child, "2\n3:one\n3:two\n", 14);
    child_free(&child);
}

Test(command_line, append_says_which_file_it_cannot_read)
{
    struct child child;
    run(&child, none, "", "append", "--file", "/nowhere/at/all", "t");
    expect_end(NULL, &child, 1,
               "cannot open /nowhere/at/all: No such file or directory; 0 lines are committed");
    child_free(&child);
    run(&child, none, "", "append", "--file", faked_folder, "t");
    expect_end(NULL, &child, 1, "Is a directory");
    child_free(&child);
}

Test(command_line, append_that_is_ended_by_a_signal_commits_the_lines_it_has_read)
{
    static const struct {
        int number;
        const char *input, *words, *wanted;
    } cases[] = {
        {SIGINT, "a\nb\n", "ended by SIGINT before the end of the input; 2 lines are committed\n",
         "2\n1:a\n1:b\n"},
        {SIGTERM, "a\nhalf a li",
         "ended by SIGTERM before the end of the input; 1 line is committed, an unfinished one is not\n",
         "1\n1:a\n"},
        {SIGTERM, "", "0 lines are committed\n", ""},
    };
    for (size_t i = 0; i < array_count(cases); i++) {
        struct child child;
        faked_begin(&child, list_of("FAKE_GREET=1"), list_of("append", "t", "--linger", "2000000000"));
        cr_assert(child_await(&child, &child.output, "connected\n"));
        cr_assert(child_write(&child, cases[i].input, strlen(cases[i].input)) && child_await_read(&child));
        kill(child.pid, cases[i].number);
        child_wait(&child, LIMIT_MS);
        expect_end(NULL, &child, 1, cases[i].words);
        expect_record(&child, cases[i].wanted, strlen(cases[i].wanted));
        child_free(&child);
        unlink(faked_record);
    }
}

Test(command_line, append_whose_signal_was_ignored_ignores_it)
{
    struct child child;
    struct start start = {.arguments = list_of("/bin/sh", "-c", "trap '' INT; exec \"$0\" append t",
                                               program_path("WALRUS_TEST_FAKE")),
                          .environment = list_of(faked_setting, "FAKE_GREET=1")};
    child_start(&child, &start);
    cr_assert(child_await(&child, &child.output, "connected\n"));
    kill(child.pid, SIGINT);
    cr_assert(child_write(&child, "a\n", 2));
    child_finish(&child, LIMIT_MS);
    expect_end(NULL, &child, 0, NULL);
    expect_record(&child, "1\n1:a\n", 6);
    child_free(&child);
}

/* Batch 3 of 4, of three lines each, fails. */
static void expect_failure(const char *code, const char *where, const char *late, int exit_code,
                           const char *words)
{
    struct child child;
    char code_setting[32], where_setting[32], late_setting[32];
    snprintf(code_setting, sizeof code_setting, "FAKE_CODE=%s", code);
    snprintf(where_setting, sizeof where_setting, "FAKE_WHERE=%s", where);
    snprintf(late_setting, sizeof late_setting, "FAKE_LATE=%s", late);
    run(&child, list_of("FAKE_FAIL_BATCH=3", code_setting, where_setting, late_setting),
        "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n", "append", "t", "--batch", "3");
    expect_end(NULL, &child, exit_code, words);
    expect(child.errors.data[child.errors.length - 1] == '\n' && strchr(child.errors.data, '\n')[1] == '\0',
           NULL, &child, "not one line on stderr");
    expect_record(&child, "3\n1:1\n1:2\n1:3\n3\n1:4\n1:5\n1:6\n", 28);
    child_free(&child);
    unlink(faked_record);
}

Test(command_line, append_exits_3_where_trying_again_helps_and_says_how_many_lines_are_committed)
{
    static const int codes[] = {EBUSY, EAGAIN, ENOSPC};
    for (size_t i = 0; i < array_count(codes); i++) {
        char code[16];
        snprintf(code, sizeof code, "%d", codes[i]);
        expect_failure(code, "completion", "0", 3, "6 lines are committed\n");
        expect_failure(code, "completion", "1", 3, "6 lines are committed\n");
        expect_failure(code, "submit", "1", 3, "6 lines are committed\n");
        expect_failure(code, "add", "1", 3, "6 lines are committed\n");
        expect_failure(code, "begin", "0", 3, "6 lines are committed\n");
    }
}

Test(command_line, append_exits_1_on_other_failures_and_says_how_many_lines_are_committed)
{
    static const int codes[] = {EIO, EDQUOT, EINVAL, ESHUTDOWN, ECANCELED, ENOMEM};
    for (size_t i = 0; i < array_count(codes); i++) {
        char code[16];
        snprintf(code, sizeof code, "%d", codes[i]);
        expect_failure(code, "completion", "1", 1, "6 lines are committed\n");
        expect_failure(code, "submit", "0", 1, "6 lines are committed\n");
        expect_failure(code, "add", "0", 1, "6 lines are committed\n");
    }
}

Test(command_line, append_whose_broker_died_says_how_many_lines_are_unknown)
{
    char code[16];
    snprintf(code, sizeof code, "%d", ECONNRESET);
    expect_failure(code, "completion", "0", 1, "6 lines are committed, 3 lines are unknown");
    expect_failure(code, "completion", "1", 1, "6 lines are committed, 3 lines are unknown");
    expect_failure(code, "submit", "1", 1, "6 lines are committed, 3 lines are unknown");
    /* The open batch was never sent whole. */
    expect_failure(code, "add", "1", 1, "6 lines are committed\n");
    expect_failure(code, "begin", "1", 1, "6 lines are committed\n");
}

Test(command_line, append_goes_on_when_the_batch_in_flight_held_what_was_missing)
{
    struct child child;
    char code[32];
    snprintf(code, sizeof code, "FAKE_CODE=%d", EAGAIN);
    static const char *const places[] = {"FAKE_WHERE=add", "FAKE_WHERE=begin"};
    for (size_t i = 0; i < array_count(places); i++) {
        run(&child, list_of("FAKE_FAIL_BATCH=2", code, places[i], "FAKE_LATE=1", "FAKE_ONCE=1"), "1\n2\n3\n",
            "append", "t", "--batch", "1");
        expect_end(NULL, &child, 0, NULL);
        expect_record(&child, "1\n1:1\n1\n1:2\n1\n1:3\n", 18);
        child_free(&child);
        unlink(faked_record);
    }
}

Test(command_line, append_passes_on_the_words_of_a_failed_connection)
{
    struct child child;
    char code[32];
    snprintf(code, sizeof code, "FAKE_CODE=%d", ENOTCONN);
    run(&child, list_of("FAKE_FAIL_BATCH=1", "FAKE_WHERE=connect", code), "1\n", "append", "t");
    expect_end(NULL, &child, 1, "walrus append: fake words about the connection\n");
    child_free(&child);
}

/* -------------------------------------------------------------------------------- arguments */

Test(command_line, wrong_usage_exits_2)
{
    expect_usage(list_of(NULL), "which command?");
    expect_usage(list_of("apend"), "there is no command 'apend'");
    expect_usage(list_of("append"), "which topic?");
    expect_usage(list_of("read"), "which topic?");
    expect_usage(list_of("append", "a", "b"), "one topic only");
    expect_usage(list_of("read", "a", "b"), "one topic only");
    expect_usage(list_of("topics", "a"), "takes no argument");
    expect_usage(list_of("append", "t", "--wrong"), "unrecognized option");
    expect_usage(list_of("append", "t", "--socket", ""), "--socket needs a path");
    expect_usage(list_of("append", "t", "--instance", ""), "--instance needs a key");
}

Test(command_line, numbers_out_of_range_exit_2)
{
    static const char *const batches[] = {"0", "2001", "-1", "x", "", "1x", "99999999999999999999"};
    for (size_t i = 0; i < array_count(batches); i++)
        expect_usage(list_of("append", "t", "--batch", batches[i]), "from 1 to 2000");
    static const char *const lingers[] = {"-1", "x", "2147483648", ""};
    for (size_t i = 0; i < array_count(lingers); i++)
        expect_usage(list_of("append", "t", "--linger", lingers[i]), "--linger");
    static const char *const starts[] = {"0", "-1", "latest", "", "18446744073709551616"};
    for (size_t i = 0; i < array_count(starts); i++)
        expect_usage(list_of("read", "t", "--from", starts[i]), "--from");
    expect_usage(list_of("read", "t", "--max", "many"), "--max");
}

Test(command_line, topic_names_are_1_to_255_bytes_without_control_characters)
{
    char name[300];
    struct child child;
    memset(name, 'n', sizeof name);
    name[256] = '\0';
    expect_usage(list_of("append", name), "at most 255 bytes");
    expect_usage(list_of("read", name), "at most 255 bytes");
    expect_usage(list_of("append", ""), "at least 1 byte");
    expect_usage(list_of("append", "a\tb"), "no control characters");
    expect_usage(list_of("append", "a\x7f"), "no control characters");
    expect_usage(list_of("read", "\n"), "no control characters");
    name[255] = '\0';
    run(&child, none, "x\n", "append", name);
    expect_end(NULL, &child, 0, NULL);
    child_free(&child);
    run(&child, none, "x\n", "append", "../\xff");
    expect_end(NULL, &child, 0, NULL);
    child_free(&child);
}

Test(command_line, every_command_has_help_and_version)
{
    static const char *const commands[] = {"append", "read", "topics"};
    struct child child;
    for (size_t i = 0; i < array_count(commands); i++) {
        run(&child, none, "", commands[i], "--help");
        expect_end(NULL, &child, 0, NULL);
        expect(strstr(child.output.data, "Usage: walrus ") == child.output.data, NULL, &child, "no usage");
        child_free(&child);
        run(&child, none, "", commands[i], "--version");
        expect_end(NULL, &child, 0, NULL);
        expect_output(NULL, &child, "walrus 0.1.0\n");
        child_free(&child);
    }
    run(&child, none, "", "--version");
    expect_end(NULL, &child, 0, NULL);
    expect_output(NULL, &child, "walrus 0.1.0\n");
    child_free(&child);
    run(&child, none, "", "--help");
    expect_end(NULL, &child, 0, NULL);
    child_free(&child);
}

/* -------------------------------------------------------------------------------- read, topics */

Test(command_line, read_prints_entries_as_lines_from_a_sequence_on_and_not_more_than_wanted)
{
    struct child child;
    run(&child, list_of("FAKE_ENTRIES=5"), "", "read", "t", "--from", "2", "--max", "3");
    expect_end(NULL, &child, 0, NULL);
    expect_output(NULL, &child, "entry 2\nentry 3\nentry 4\n");
    child_free(&child);
    run(&child, list_of("FAKE_ENTRIES=5"), "", "read", "t", "--from", "6");
    expect_end(NULL, &child, 0, NULL);
    expect_output(NULL, &child, "");
    child_free(&child);
    run(&child, list_of("FAKE_ENTRIES=5"), "", "read", "t", "--max", "0");
    expect_end(NULL, &child, 0, NULL);
    expect_output(NULL, &child, "");
    child_free(&child);
}

static void expect_member(const struct child *child, const json_t *object, const char *key,
                          const char *wanted)
{
    const char *got = json_string_value(json_object_get(object, key));
    expect(got != NULL && strcmp(got, wanted) == 0, NULL, child, "%s is not %s", key, wanted);
}

Test(command_line, read_prints_json_with_text_or_base64)
{
    struct child child;
    run(&child, list_of("FAKE_ENTRIES=1"), "", "read", "t", "--json");
    expect_end(NULL, &child, 0, NULL);
    json_t *object = json_loads(child.output.data, JSON_REJECT_DUPLICATES, NULL);
    expect(object != NULL && json_integer_value(json_object_get(object, "sequence")) == 1, NULL, &child,
           "not JSON");
    expect_member(&child, object, "data", "entry 1");
    expect_member(&child, object, "topic", "t");
    expect_member(&child, object, "time", "2023-11-14T22:13:20.000000001Z");
    json_decref(object);
    child_free(&child);

    run(&child, list_of("FAKE_ENTRIES=1", "FAKE_BINARY=1"), "", "read", "t", "--json");
    expect_end(NULL, &child, 0, NULL);
    object = json_loads(child.output.data, 0, NULL);
    cr_assert(object != NULL && json_object_get(object, "data") == NULL);
    expect_member(&child, object, "data_base64", "/wAx");
    json_decref(object);
    child_free(&child);
}

Test(command_line, read_of_an_unknown_topic_exits_1)
{
    struct child child;
    run(&child, none, "", "read", "unknown");
    expect_end(NULL, &child, 1, "walrus read: topic 'unknown', entry 1: no such topic");
    child_free(&child);
}

Test(command_line, read_prints_what_is_sound_before_it_stops_at_damage)
{
    struct child child;
    run(&child, list_of("FAKE_ENTRIES=5"), "", "read", "damaged");
    expect_end(NULL, &child, 1, "entry 2: stored data is damaged");
    expect_output(NULL, &child, "entry 1\n");
    child_free(&child);
}

Test(command_line, read_ends_quietly_when_nobody_reads_its_output)
{
    struct child child;
    faked_begin(&child, list_of("FAKE_ENTRIES=100000000"), list_of("read", "t"));
    cr_assert(child_await(&child, &child.output, "entry 3\n"));
    close(child.out);
    child.out = -1;
    int code = child_finish(&child, LIMIT_MS);
    expect(code == 0 || code == 128 + SIGPIPE, NULL, &child, "exit code %d", code);
    expect(child.errors.length == 0, NULL, &child, "not quiet");
    child_free(&child);
}

static void read_into(struct child *child, int output, bool closed)
{
    struct start start = {.arguments = list_of(program_path("WALRUS_TEST_FAKE"), "read", "t"),
                          .environment = list_of("FAKE_ENTRIES=100000"),
                          .output_to = output,
                          .close_output = closed};
    child_start(child, &start);
    child_finish(child, LIMIT_MS);
}

Test(command_line, read_says_that_its_output_cannot_be_written)
{
    struct child child;
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    cr_assert(full > 0);
    read_into(&child, full, false);
    expect_end(NULL, &child, 1, "cannot write to standard output: No space left on device");
    child_free(&child);
    close(full);
    read_into(&child, 0, true);
    expect_end(NULL, &child, 1, "cannot write to standard output: Bad file descriptor");
    child_free(&child);
}

Test(command_line, topics_are_listed_as_text_and_json)
{
    struct child child;
    run(&child, none, "", "topics");
    expect_end(NULL, &child, 0, NULL);
    cr_assert(strstr(child.output.data, "first topic\n") != NULL &&
              strstr(child.output.data, "\xff second\n") != NULL);
    child_free(&child);
    run(&child, none, "", "topics", "--json");
    expect_end(NULL, &child, 0, NULL);
    expect_output(NULL, &child,
                  "{\"topic\":\"first "
                  "topic\",\"id\":1,\"last_sequence\":2,\"durable_sequence\":1,\"durability\":\"sync\"}\n"
                  "{\"topic_base64\":\"/yBzZWNvbmQ=\",\"id\":2,\"last_sequence\":2,\"durable_sequence\":1,"
                  "\"durability\":\"sync\"}\n");
    child_free(&child);
}
