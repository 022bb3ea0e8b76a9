#include "faked.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <unistd.h>

char faked_folder[64];
char faked_record[128];
char faked_setting[160];

void faked_make(void)
{
    folder_make(faked_folder, sizeof faked_folder);
    snprintf(faked_record, sizeof faked_record, "%s/record", faked_folder);
    snprintf(faked_setting, sizeof faked_setting, "FAKE_FILE=%s", faked_record);
}

void faked_clean(void)
{
    remove_folder(faked_folder);
}

void faked_begin(struct child *child, const char *const *settings, const char *const *arguments)
{
    const char *all[16] = {program_path("WALRUS_TEST_FAKE")};
    const char *environment[10] = {faked_setting};
    for (size_t i = 0; arguments[i] != NULL; i++)
        all[i + 1] = arguments[i];
    for (size_t i = 0; settings[i] != NULL; i++)
        environment[i + 1] = settings[i];
    struct start start = {.arguments = all, .environment = environment};
    child_start(child, &start);
}

void faked_run(struct child *child, const char *const *settings, const char *input, size_t length,
               const char *const *arguments)
{
    faked_begin(child, settings, arguments);
    (void)child_write(child, input, length);
    child_finish(child, LIMIT_MS);
}

void expect_record(const struct child *child, const char *wanted, size_t length)
{
    static char got[2048];
    int fd = open(faked_record, O_RDONLY | O_CLOEXEC);
    ssize_t count = fd < 0 ? 0 : read(fd, got, sizeof got - 1);
    if (fd >= 0)
        close(fd);
    expect(count == (ssize_t)length && memcmp(got, wanted, length) == 0, NULL, child, "committed is: %.*s",
           (int)count, got);
}

void expect_usage(const char *const *arguments, const char *words)
{
    struct child child;
    faked_run(&child, none, "x\n", 2, arguments);
    expect_end(NULL, &child, 2, words);
    expect(child.output.length == 0 && access(faked_record, F_OK) != 0, NULL, &child, "it did something");
    child_free(&child);
}
