#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lines.h"

#define FIRST_CAPACITY ((size_t)256 << 10)

int lines_next(struct lines *lines, const char **data, size_t *length)
{
    if (lines->start == lines->end)
        return 0;
    const char *from = lines->buffer + lines->start;
    const char *newline = memchr(lines->buffer + lines->scanned, '\n', lines->end - lines->scanned);
    if (newline == NULL && !lines->ended) {
        lines->scanned = lines->end;
        return 0;
    }
    *data = from;
    *length = newline != NULL ? (size_t)(newline - from) : lines->end - lines->start;
    lines->start += *length + (newline != NULL);
    lines->scanned = lines->start;
    return 1;
}

/* Makes room at the end of the buffer: moves the open line to the front, then doubles. */
static int make_room(struct lines *lines)
{
    if (lines->start > 0) {
        if (lines->end > lines->start)
            memmove(lines->buffer, lines->buffer + lines->start, lines->end - lines->start);
        lines->end -= lines->start;
        lines->scanned -= lines->start;
        lines->start = 0;
    }
    if (lines->capacity - lines->end >= FIRST_CAPACITY / 2)
        return 0;
    if (lines->capacity > SIZE_MAX / 2)
        return -ENOMEM;
    size_t capacity = lines->capacity == 0 ? FIRST_CAPACITY : 2 * lines->capacity;
    char *buffer = realloc(lines->buffer, capacity);
    if (buffer == NULL)
        return -ENOMEM;
    lines->buffer = buffer;
    lines->capacity = capacity;
    return 0;
}

int lines_read(struct lines *lines)
{
    int rc = make_room(lines);
    if (rc < 0)
        return rc;
    ssize_t got = read(lines->fd, lines->buffer + lines->end, lines->capacity - lines->end);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (got == 0)
        lines->ended = true;
    lines->end += (size_t)got;
    return 1;
}

void lines_free(struct lines *lines)
{
    free(lines->buffer);
    lines->buffer = NULL;
}
