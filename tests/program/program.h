/* program.h: running the real programs from a test: a place of their own for each test, children with
 * captured output, and a limit on every wait. When something fails, the broker's messages are part of the
 * failure.
 *
 * The programs' paths come from the environment (meson sets it): WALRUS_TEST_WALRUS, WALRUS_TEST_WALRUSD, ...
 * */
#ifndef WALRUS_TEST_PROGRAM_H
#define WALRUS_TEST_PROGRAM_H

#include <limits.h>
#include <stdarg.h>
#include <sys/types.h>

#include "../../shared/base.h"

#define LIMIT_MS 60000 /* of any wait that ought to be short: a hanging program, not a slow machine */

/* -------------------------------------------------------------------------------- children */

struct text {
    char *data; /* NUL behind the end */
    size_t length;
};

struct child {
    pid_t pid;
    int in, out, err; /* our ends; -1 = closed */
    struct text output, errors;
    bool ended;
    int code; /* exit code, 128 + signal, or -1: killed because it was over the limit */
};

struct start {
    const char *const *arguments;   /* [0] is the path */
    const char *const *environment; /* "NAME=VALUE", added */
    const char *errors_to;          /* append stderr to this file instead */
    int output_to;                  /* a descriptor instead of the pipe; 0 = the pipe */
    bool close_output;
};

/* The child dies with the test. */
void child_start(struct child *child, const struct start *start);
/* Writes to its stdin, reading its output meanwhile. false: it does not read any more, or the limit. */
bool child_write(struct child *child, const char *data, size_t length);
/* Waits until it has read all that was written. false: the limit. */
bool child_await_read(struct child *child);
void child_close_input(struct child *child);
/* Reads until its stdout (or stderr) contains the words. false: it ended, or the limit. */
bool child_await(struct child *child, const struct text *where, const char *words);
/* Reads the rest, waits for its end, within the limit; then it is killed and the code is -1. Returns the
 * code. */
int child_wait(struct child *child, int limit_ms);
/* The same, after closing its stdin. */
int child_finish(struct child *child, int limit_ms);
void child_free(struct child *child);

/* -------------------------------------------------------------------------------- a broker's place */

struct place {
    char folder[PATH_MAX / 2];
    char store[PATH_MAX];
    char socket[PATH_MAX];
    char log[PATH_MAX]; /* stderr of its brokers, one after the other */
    struct child broker;
    bool serving;
};

void place_make(struct place *place);
void place_remove(struct place *place);

const char *program_path(const char *variable);

#define list_of(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Starts walrusd on the place's store and socket with more arguments (NULL: none); fails the test unless it
 * says that it is ready. */
void broker_start_with(struct place *place, const char *const *more);
#define broker_start(place, ...) broker_start_with(place, list_of(__VA_ARGS__))
/* The same without waiting for "ready": for starts that must be refused. Ends within the limit. */
void broker_try(struct place *place, struct child *child, const char *const *more);
void broker_kill(struct place *place);
/* SIGTERM; returns its exit code. */
int broker_stop(struct place *place);

/* Runs `walrus ARGUMENTS` on the place's socket to its end. */
void walrus_with(struct place *place, struct child *child, const char *input, size_t length,
                 const char *const *arguments);
#define walrus(place, child, input, ...) walrus_with(place, child, input, strlen(input), list_of(__VA_ARGS__))
/* Starts it and leaves it running. */
void walrus_start_with(struct place *place, struct child *child, const char *const *arguments);
#define walrus_start(place, child, ...) walrus_start_with(place, child, list_of(__VA_ARGS__))

/* -------------------------------------------------------------------------------- expectations */

/* cr_skip ends the test without its .fini. */
#define skip(place, ...)                                                                                     \
    do {                                                                                                     \
        place_remove(place);                                                                                 \
        cr_skip(__VA_ARGS__);                                                                                \
    } while (0)

/* Fails the test with the words, what the child printed and the broker's messages. `place` and `child` may be
 * NULL. */
__attribute__((noreturn)) void fail_at(const char *file, int line, const struct place *place,
                                       const struct child *child, const char *format, ...) printf_like(5, 6);
#define expect(condition, place, child, ...)                                                                 \
    do {                                                                                                     \
        if (!(condition))                                                                                    \
            fail_at(__FILE__, __LINE__, place, child, __VA_ARGS__);                                          \
    } while (0)
/* Exit code, and words that must be in stderr (NULL: it must be empty). */
#define expect_end(place, child, wanted_code, words)                                                         \
    do {                                                                                                     \
        expect((child)->code == (wanted_code), place, child, "exit code %d, not %d", (child)->code,          \
               wanted_code);                                                                                 \
        expect((words) != NULL || (child)->errors.length == 0, place, child, "stderr ought to be empty");    \
        expect((words) == NULL || strstr((child)->errors.data, (words) != NULL ? (words) : "") != NULL,      \
               place, child, "stderr lacks \"%s\"", (words) != NULL ? (words) : "");                         \
    } while (0)
#define expect_output(place, child, wanted)                                                                  \
    expect((child)->output.length == strlen(wanted) &&                                                       \
               memcmp((child)->output.data, wanted, strlen(wanted)) == 0,                                    \
           place, child, "stdout is not what it ought to be")

bool file_contains(const char *path, const char *words);
int64_t clock_ms(void);
/* A little pause between two looks at something that has no descriptor to wait for. */
void pause_ms(int ms);
/* A new folder with a short name under /tmp. */
void folder_make(char *out, size_t size);
void remove_folder(const char *path);
/* The number behind the first occurrence of the words in the text; false if there is none. */
bool number_behind(const char *text, const char *words, uint64_t *number);

#endif
