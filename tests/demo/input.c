/* input.c: the real text: what a Debian machine has lying about. */
#include <fcntl.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include "demo.h"

#define MAX_TEXT ((size_t)256 << 20)

/* In this order, until there are enough lines. */
static const struct source {
    const char *pattern;
    const char *words;
} sources[] = {
    {"/var/lib/dpkg/status", "package database"},
    {"/var/lib/dpkg/info/*.list", "file lists of packages"},
    {"/usr/share/common-licenses/*", "licences"},
    {"/usr/share/doc/*/copyright", "copyright files"},
    {"/var/log/*.log", "logs"},
};

struct reading {
    struct input *input;
    size_t capacity;
    size_t lines;
    size_t limit;
};

static int read_file(struct reading *reading, const char *path)
{
    struct input *input = reading->input;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0; /* not ours to read */
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return 0;
    }
    size_t start = input->bytes;
    for (;;) {
        if (reading->capacity - input->bytes < (1u << 20)) {
            size_t capacity = reading->capacity + ((size_t)16 << 20);
            char *text = realloc(input->text, capacity);
            if (text == NULL) {
                close(fd);
                return -ENOMEM;
            }
            input->text = text;
            reading->capacity = capacity;
        }
        ssize_t got = read(fd, input->text + input->bytes, (size_t)1 << 19);
        if (got <= 0 || input->bytes + (size_t)got > MAX_TEXT)
            break;
        input->bytes += (size_t)got;
    }
    close(fd);
    if (input->bytes > start && input->text[input->bytes - 1] != '\n')
        input->text[input->bytes++] = '\n';
    for (size_t at = start; at < input->bytes; at++)
        reading->lines += input->text[at] == '\n';
    return 0;
}

static int read_source(struct reading *reading, const struct source *source)
{
    glob_t found;
    if (glob(source->pattern, 0, NULL, &found) != 0)
        return 0;
    int rc = 0;
    for (size_t i = 0; i < found.gl_pathc && rc == 0 && reading->lines < reading->limit; i++)
        rc = read_file(reading, found.gl_pathv[i]);
    globfree(&found);
    return rc;
}

/* The text does not move any more: where its lines are. */
static int find_lines(struct input *input, size_t count)
{
    check_bug(count > 0);
    input->lines = calloc(count, sizeof *input->lines);
    if (input->lines == NULL)
        return -ENOMEM;
    const char *from = input->text;
    for (input->count = 0; input->count < count; input->count++) {
        const char *newline = memchr(from, '\n', (size_t)(input->text + input->bytes - from));
        check_bug(newline != NULL);
        input->lines[input->count] = (struct line){from, (size_t)(newline - from)};
        from = newline + 1;
    }
    input->bytes = (size_t)(from - input->text);
    return 0;
}

int input_read(struct input *input, size_t least, size_t lines, struct error *err)
{
    struct reading reading = {.input = input, .limit = lines};
    unsigned rounds = 0;
    size_t at = 0;
    int rc = 0;
    do {
        size_t before = reading.lines;
        for (size_t i = 0; i < array_count(sources) && rc == 0 && reading.lines < lines; i++) {
            size_t had = reading.lines;
            rc = read_source(&reading, &sources[i]);
            if (rounds == 0 && reading.lines > had)
                at += (size_t)snprintf(input->sources + at, sizeof input->sources - at, "%s%s (%s)",
                                       at > 0 ? ", " : "", sources[i].words, sources[i].pattern);
        }
        if (reading.lines == before)
            break;
        rounds++;
    } while (rc == 0 && reading.lines < least);
    if (rc == 0 && reading.lines < least)
        return error_set(err, -ENODATA,
                         "found only %zu lines of text on this machine, fewer than %zu: lower --lines",
                         reading.lines, least);
    if (rc == 0)
        rc = find_lines(input, reading.lines < lines ? reading.lines : lines);
    if (rc != 0)
        return error_set(err, rc, "reading the machine's text: %s", strerror(-rc));
    if (rounds > 1)
        snprintf(input->sources + at, sizeof input->sources - at, ", read %u times over", rounds);
    return 0;
}

void input_free(struct input *input)
{
    free(input->lines);
    free(input->text);
}
