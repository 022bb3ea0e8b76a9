/* lines.h: cuts what a descriptor delivers into lines of any length and content. */
#ifndef WALRUS_PROGRAM_LINES_H
#define WALRUS_PROGRAM_LINES_H

#include <stdbool.h>
#include <stddef.h>

/* Zeroed, with fd set, is ready for use; lines_free at the end (does not close fd). */
struct lines {
    int fd;
    char *buffer;
    size_t capacity;
    size_t start;   /* of the line that is not yet complete */
    size_t scanned; /* no newline from start to here */
    size_t end;     /* of what was read */
    bool ended;     /* the descriptor has delivered everything */
};

/* The next line that is there, without its newline: 1, and data valid until the next call of lines_read. 0:
 * none without reading more (or, when `ended`, none at all). The rest after the last newline is a line when
 * the input has ended. */
int lines_next(struct lines *lines, const char **data, size_t *length);

/* Reads once more; blocks if the descriptor does. 1 something came or the end was reached, 0 not now
 * (-EAGAIN, -EINTR), or a negative errno. */
int lines_read(struct lines *lines);

void lines_free(struct lines *lines);

#endif
