/* append.h: what the files of `walrus append` share.
 *
 *   append.c         options, input, signals, what is said when it fails
 *   append_lines.c   lines into batches; one batch is under way while the next one is filled
 *   append_kept.c    the same with the lines of a batch kept until it is committed: --retry and --producer
 *   append_stream.c  the whole input as one entry: --stream */
#ifndef WALRUS_PROGRAM_APPEND_H
#define WALRUS_PROGRAM_APPEND_H

#include "command.h"
#include "lines.h"

/* --retry: of one batch. */
struct retry_limit {
    bool given;
    uint32_t tries;  /* 0: no limit */
    int64_t time_ns; /* 0: no limit */
};

struct append {
    struct common common;
    const char *file; /* NULL: standard input */
    uint32_t batch_lines;
    int linger_ms; /* < 0: not given */
    bool queue, stream, take_over;
    const char *producer; /* NULL: none */
    struct retry_limit retry;

    walrus *handle;
    walrus_topic *topic;
    int input;          /* descriptor */
    int interrupt;      /* descriptor that tells of a signal */
    uint64_t committed; /* lines; with --producer those of earlier runs, too */
};

/* What append_wait has found. */
enum news {
    NEWS_INPUT = 1 << 0,  /* something can be read, or the end */
    NEWS_BROKER = 1 << 1, /* a completion, or the broker's death */
};

/* Waits for input, the broker, a signal (interrupt_number() says so) or a silence of `limit_ms` (negative:
 * for ever), which is no news. An exit code: EXIT_DONE with *news set, else after a complaint. */
int append_wait(struct append *append, int limit_ms, unsigned *news) __attribute__((warn_unused_result));

/* The descriptor of the broker says something and nothing is in flight: 0, or the negative errno of a lost
 * connection. A handle that connects again does so in here. */
int append_probe(struct append *append) __attribute__((warn_unused_result));

/* One line on stderr: the topic, the words, how many lines are committed and how many (of those submitted
 * last) are unknown. Returns the exit code for `error`. */
int append_failed(const struct append *append, const char *words, int error, uint32_t unknown);
/* The same with the library's words for a call that just failed. */
int append_call_failed(const struct append *append, int error, uint32_t unknown);
/* The input cannot be read. Returns the exit code. */
int append_input_failed(const struct append *append, int error);
#define UNFINISHED_LINE ", an unfinished one is not"
/* Ended by a signal; `left` says what of the input was read and is not committed ("" if nothing). Returns
 * the exit code. */
int append_interrupted(const struct append *append, const char *left);
/* The library's words for a call that just failed, else ours. */
void append_words(const struct append *append, int error, char *words, size_t size);

const char *lines_word(uint64_t count);
int64_t now_ns(void);

/* The ways of writing; exit codes. */
int append_lines(struct append *append);
int append_kept(struct append *append);
int append_stream(struct append *append);

#endif
