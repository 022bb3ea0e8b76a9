/* support.h: what the suites of broker/io share: a scratch folder, an io over it, ops in one line, children.
 * */
#ifndef WALRUS_TESTS_IO_SUPPORT_H
#define WALRUS_TESTS_IO_SUPPORT_H

#include "../../broker/io/io.h"
#include "../../shared/message.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <sys/types.h>

#define SECOND INT64_C(1000000000)

/* A test that runs once on each back end: each_backend(suite, name) { ... *backend ... } */
#define each_backend(suite, name)                                                                            \
    ParameterizedTestParameters(suite, name)                                                                 \
    {                                                                                                        \
        static int backends[] = {IO_BACKEND_URING, IO_BACKEND_PWRITE, IO_BACKEND_MMAP};                      \
        return cr_make_param_array(int, backends, array_count(backends));                                    \
    }                                                                                                        \
    ParameterizedTest(int *backend, suite, name, .timeout = 60)

/* A folder of its own for each test, removed by folder_remove. */
char *folder_make(void);
void folder_remove(char *folder);
const char *path_in(const char *folder, const char *name); /* in a static buffer */
/* A folder on a tmpfs of its own with `bytes` of room, in a mount namespace of this process; skips where that
 * is refused. */
char *folder_make_small(uint64_t bytes);
void folder_remove_small(char *folder);

/* An io on the folder; skips the test where io_uring is asked for and not to be had. */
struct io *io_make(const char *folder, int backend, int watch_fd);
void io_end(struct io *io);

/* Fixture of most tests. */
struct fixture {
    char *folder;
    struct io *io;
    uint8_t *buffer; /* 2 MiB, aligned to 64 KiB, filled with a pattern */
};
#define BUFFER_BYTES (2u << 20)
struct fixture begin(int backend);
void end(struct fixture *fixture);
uint8_t *buffer_make(void);

/* Ops in one line: the result. */
int64_t do_create(struct io *io, const char *name, uint32_t flags, struct io_file **file);
int64_t do_open(struct io *io, const char *name, uint32_t flags, struct io_file **file);
int64_t do_close(struct io *io, struct io_file *file);
int64_t do_write(struct io *io, struct io_file *file, const void *buffer, uint64_t offset, uint64_t length);
int64_t do_write_durable(struct io *io, struct io_file *file, const void *buffer, uint64_t offset,
                         uint64_t length);
int64_t do_read(struct io *io, struct io_file *file, void *buffer, uint64_t offset, uint64_t length);
int64_t do_flush(struct io *io, struct io_file *file);
int64_t do_allocate(struct io *io, struct io_file *file, uint64_t length);
int64_t do_truncate(struct io *io, struct io_file *file, uint64_t length);
int64_t do_rename(struct io *io, const char *name, const char *new_name);
int64_t do_unlink(struct io *io, const char *name);
int64_t do_sync_directory(struct io *io);
uint64_t size_of_file(struct io *io, struct io_file *file);

/* fork; the child does not outlive the test. */
pid_t fork_child(void);
/* Runs body(context) in a child and returns what it returns (0 to 100), or 128 + the signal that ended it. */
int in_child(int (*body)(void *context), void *context);
/* Makes the system call `number` fail with `error` in this process and its later threads, from now on. */
void refuse_call(long number, int error);
void on_signal_do(int number, void (*handler)(int number));
int open_files(void); /* of this process */

#endif
