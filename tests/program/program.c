#include "program.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int64_t clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void pause_ms(int ms)
{
    poll(NULL, 0, ms);
}

const char *program_path(const char *variable)
{
    const char *path = getenv(variable);
    cr_assert(path != NULL && access(path, X_OK) == 0,
              "%s does not name a program; run this through meson test", variable);
    return path;
}

/* -------------------------------------------------------------------------------- children */

static void on_signal(int number, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    sigaction(number, &action, NULL);
}

__attribute__((noreturn)) static void be_child(const struct start *start, int in, int out, int err,
                                               pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(126);
    if (start->errors_to != NULL)
        err = open(start->errors_to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (start->output_to != 0)
        out = start->output_to;
    if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
        _exit(126);
    if (start->close_output)
        close(1);
    on_signal(SIGPIPE, SIG_DFL);
    for (size_t i = 0; start->environment != NULL && start->environment[i] != NULL; i++)
        putenv(strdup(start->environment[i]));
    char *arguments[64] = {NULL};
    for (size_t i = 0; start->arguments[i] != NULL && i + 1 < array_count(arguments); i++)
        arguments[i] = strdup(start->arguments[i]);
    if (arguments[0] != NULL)
        execv(arguments[0], arguments);
    dprintf(2, "cannot start %s: %s\n", start->arguments[0], strerror(errno));
    _exit(126);
}

static void empty(struct text *text)
{
    text->data = calloc(1, 1);
    text->length = 0;
    cr_assert(text->data != NULL);
}

void child_start(struct child *child, const struct start *start)
{
    int in[2], out[2], err[2];
    pid_t parent = getpid();
    *child = (struct child){.in = -1, .out = -1, .err = -1};
    empty(&child->output);
    empty(&child->errors);
    cr_assert(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0);
    on_signal(SIGPIPE, SIG_IGN); /* a child that ends early is a finding, not our end */
    fflush(NULL);
    child->pid = fork();
    cr_assert(child->pid >= 0, "fork: %s", strerror(errno));
    if (child->pid == 0)
        be_child(start, in[0], out[1], err[1], parent);
    close(in[0]);
    close(out[1]);
    close(err[1]);
    child->in = in[1];
    child->out = out[0];
    child->err = err[0];
    fcntl(child->in, F_SETFL, O_NONBLOCK);
}

static void drain(struct text *text, int *fd)
{
    char buffer[65536];
    ssize_t got = read(*fd, buffer, sizeof buffer);
    if (got <= 0) {
        close(*fd);
        *fd = -1;
        return;
    }
    text->data = realloc(text->data, text->length + (size_t)got + 1);
    cr_assert(text->data != NULL);
    memcpy(text->data + text->length, buffer, (size_t)got);
    text->length += (size_t)got;
    text->data[text->length] = '\0';
}

/* One look at all pipes, at most until `limit`. `want_write`: also until stdin takes more. false at the
 * limit. */
static bool turn(struct child *child, int64_t limit, bool want_write)
{
    struct pollfd fds[3] = {{.fd = child->out, .events = POLLIN},
                            {.fd = child->err, .events = POLLIN},
                            {.fd = want_write ? child->in : -1, .events = POLLOUT}};
    int64_t left = limit - clock_ms();
    if (left <= 0)
        return false;
    if (poll(fds, 3, (int)left) < 0 && errno != EINTR)
        return false;
    if (fds[0].revents != 0)
        drain(&child->output, &child->out);
    if (fds[1].revents != 0)
        drain(&child->errors, &child->err);
    return true;
}

bool child_write(struct child *child, const char *data, size_t length)
{
    int64_t limit = clock_ms() + LIMIT_MS;
    while (length > 0) {
        ssize_t put = write(child->in, data, length);
        if (put < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        if (put > 0) {
            data += put;
            length -= (size_t)put;
        } else if (!turn(child, limit, true)) {
            return false;
        }
    }
    return true;
}

bool child_await_read(struct child *child)
{
    int64_t limit = clock_ms() + LIMIT_MS;
    int left = 0;
    while (ioctl(child->in, FIONREAD, &left) == 0 && left > 0) {
        if ((child->out < 0 && child->err < 0) || clock_ms() > limit)
            return false;
        pause_ms(1);
    }
    return left == 0;
}

void child_close_input(struct child *child)
{
    if (child->in >= 0)
        close(child->in);
    child->in = -1;
}

bool child_await(struct child *child, const struct text *where, const char *words)
{
    int64_t limit = clock_ms() + LIMIT_MS;
    while (strstr(where->data, words) == NULL) {
        if ((child->out < 0 && child->err < 0) || !turn(child, limit, false))
            return strstr(where->data, words) != NULL;
    }
    return true;
}

int child_wait(struct child *child, int limit_ms)
{
    int64_t limit = clock_ms() + limit_ms;
    if (child->ended)
        return child->code;
    bool in_time = true;
    while (in_time && (child->out >= 0 || child->err >= 0))
        in_time = turn(child, limit, false);
    int status = 0;
    while (in_time && waitpid(child->pid, &status, WNOHANG) == 0) {
        in_time = clock_ms() < limit;
        pause_ms(1); /* its pipes are closed: it is about to end */
    }
    if (!in_time) {
        kill(child->pid, SIGKILL);
        waitpid(child->pid, &status, 0);
    }
    child->ended = true;
    child->code = !in_time ? -1 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return child->code;
}

int child_finish(struct child *child, int limit_ms)
{
    child_close_input(child);
    return child_wait(child, limit_ms);
}

void child_free(struct child *child)
{
    if (child->pid == 0)
        return;
    if (!child->ended) {
        kill(child->pid, SIGKILL);
        waitpid(child->pid, NULL, 0);
    }
    child_close_input(child);
    if (child->out >= 0)
        close(child->out);
    if (child->err >= 0)
        close(child->err);
    free(child->output.data);
    free(child->errors.data);
    *child = (struct child){0};
}

/* -------------------------------------------------------------------------------- a broker's place */

void folder_make(char *out, size_t size)
{
    snprintf(out, size, "/tmp/walrus-test-XXXXXX"); /* short: a socket lies in it */
    cr_assert(mkdtemp(out) != NULL, "mkdtemp: %s", strerror(errno));
}

void place_make(struct place *place)
{
    *place = (struct place){0};
    folder_make(place->folder, sizeof place->folder);
    snprintf(place->store, sizeof place->store, "%s/store", place->folder);
    snprintf(place->socket, sizeof place->socket, "%s/sock", place->folder);
    snprintf(place->log, sizeof place->log, "%s/walrusd.log", place->folder);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    (void)remove(path); /* what cannot be removed does not keep the rest */
    return 0;
}

void remove_folder(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void place_remove(struct place *place)
{
    child_free(&place->broker);
    if (place->folder[0] != '\0') {
        umount2(place->store, MNT_DETACH); /* some tests mount something there */
        remove_folder(place->folder);
    }
    *place = (struct place){0};
}

#define MOST_ARGUMENTS 40

static void gather(const char *out[MOST_ARGUMENTS], size_t at, const char *const *more)
{
    for (size_t i = 0; more != NULL && more[i] != NULL; i++) {
        cr_assert(at + 1 < MOST_ARGUMENTS);
        out[at++] = more[i];
    }
    out[at] = NULL;
}

static void broker_launch(struct place *place, struct child *child, const char *const *more, bool log_to_file)
{
    const char *arguments[MOST_ARGUMENTS] = {program_path("WALRUS_TEST_WALRUSD"), "--data-dir", place->store,
                                             "--socket", place->socket};
    gather(arguments, 5, more);
    struct start start = {.arguments = arguments, .errors_to = log_to_file ? place->log : NULL};
    child_start(child, &start);
}

void broker_start_with(struct place *place, const char *const *more)
{
    char ready[PATH_MAX + 40];
    expect(!place->serving, place, NULL, "a broker serves here already");
    child_free(&place->broker);
    broker_launch(place, &place->broker, more, true);
    snprintf(ready, sizeof ready, "walrusd: ready on %s\n", place->socket);
    expect(child_await(&place->broker, &place->broker.output, ready), place, &place->broker,
           "the broker does not get ready");
    place->serving = true;
}

void broker_try(struct place *place, struct child *child, const char *const *more)
{
    broker_launch(place, child, more, false);
    child_finish(child, LIMIT_MS);
}

void broker_kill(struct place *place)
{
    expect(place->serving, place, NULL, "no broker serves here");
    kill(place->broker.pid, SIGKILL);
    int code = child_finish(&place->broker, LIMIT_MS);
    expect(code == 128 + SIGKILL, place, &place->broker, "the broker ended by itself: %d", code);
    place->serving = false;
}

int broker_stop(struct place *place)
{
    expect(place->serving, place, NULL, "no broker serves here");
    kill(place->broker.pid, SIGTERM);
    place->serving = false;
    return child_finish(&place->broker, LIMIT_MS);
}

void walrus_start_with(struct place *place, struct child *child, const char *const *arguments)
{
    const char *all[MOST_ARGUMENTS] = {program_path("WALRUS_TEST_WALRUS")};
    char socket[PATH_MAX + 16];
    gather(all, 1, arguments);
    snprintf(socket, sizeof socket, "WALRUS_SOCKET=%s", place->socket);
    struct start start = {.arguments = all, .environment = list_of(socket)};
    child_start(child, &start);
}

void walrus_with(struct place *place, struct child *child, const char *input, size_t length,
                 const char *const *arguments)
{
    walrus_start_with(place, child, arguments);
    if (length > 0)
        (void)child_write(child, input, length);
    child_finish(child, LIMIT_MS);
}

/* -------------------------------------------------------------------------------- expectations */

static void print_text(const char *title, const char *data, size_t length)
{
    const size_t most = 4000;
    fprintf(stderr, "  ---- %s (%zu bytes)\n%.*s%s", title, length, (int)(length < most ? length : most),
            data, length > 0 && data[length - 1] != '\n' ? "\n" : "");
}

static void print_file(const char *path)
{
    char text[8192];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    off_t size = lseek(fd, 0, SEEK_END);
    ssize_t got = pread(fd, text, sizeof text, size > (off_t)sizeof text ? size - (off_t)sizeof text : 0);
    close(fd);
    fprintf(stderr, "  ---- the broker's messages\n%.*s", (int)(got > 0 ? got : 0), text);
}

void fail_at(const char *file, int line, const struct place *place, const struct child *child,
             const char *format, ...)
{
    char words[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(words, sizeof words, format, list);
    va_end(list);
    fprintf(stderr, "%s:%d: %s\n", file, line, words);
    if (child != NULL && child->output.data != NULL) {
        print_text("its stdout", child->output.data, child->output.length);
        print_text("its stderr", child->errors.data, child->errors.length);
    }
    if (place != NULL)
        print_file(place->log);
    cr_assert_fail("%s:%d: %s", file, line, words);
    abort();
}

bool file_contains(const char *path, const char *words)
{
    struct text text;
    empty(&text);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0)
        drain(&text, &fd);
    bool found = memmem(text.data, text.length, words, strlen(words)) != NULL;
    free(text.data);
    return found;
}

bool number_behind(const char *text, const char *words, uint64_t *number)
{
    for (const char *at = strstr(text, words); at != NULL; at = strstr(at + 1, words)) {
        const char *digits = at + strlen(words);
        char *end;
        errno = 0;
        *number = strtoull(digits, &end, 10);
        if (errno == 0 && *digits >= '0' && *digits <= '9')
            return true;
    }
    return false;
}
