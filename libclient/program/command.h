/* command.h: what the sub-commands of `walrus` share: their common arguments, exit codes, words of failures,
 * output. */
#ifndef WALRUS_PROGRAM_COMMAND_H
#define WALRUS_PROGRAM_COMMAND_H

#include <argp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <jansson.h>

#include "walrus.h"

enum exit_code { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_TRY_AGAIN = 3 };

/* One per sub-command; argv[0] is "walrus NAME". They return an exit code. */
int command_append(int argc, char **argv);
int command_read(int argc, char **argv);
int command_topics(int argc, char **argv);
int command_stat(int argc, char **argv);
int command_check(int argc, char **argv);
int command_torture(int argc, char **argv);

/* What the lines of several commands have in common. */
struct common {
    bool takes_topic; /* TOPIC is the one argument; else there is none */
    bool takes_json;  /* --json */
    /* results */
    const char *topic;
    bool json;
    const char *socket_path; /* NULL: not given */
    const char *instance;
};

/* What a command has beside that. */
struct own_arguments {
    const struct argp_option *options; /* ends with {0}; NULL: none */
    argp_parser_t parse;               /* for them and for the keys of argp; its input is `input` */
    void *input;
    const char *words; /* for --help, see argp_parse */
};

/* Parses the line; ends the program with EXIT_USAGE and words if it is wrong. */
void parse_arguments(int argc, char **argv, const struct own_arguments *own, struct common *common);

/* One line on stderr: "walrus NAME: WORDS". */
void complain(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* 3 for what clears by itself (-EBUSY, -EAGAIN, -ENOSPC), else 1. */
int exit_code_of(int error);

/* What a negative errno of the library means to the user and what to do, without the place. Static storage.
 * */
const char *failure_words(int error, uint8_t reason);

/* Connects, with more options (NULL: none), or complains; returns an exit code, EXIT_DONE with *handle set.
 */
int connect_to_broker(const char *command, const struct common *common,
                      const struct walrus_connect_options *more, walrus **handle)
    __attribute__((warn_unused_result));

/* NULL if `name` can be a topic's or a producer's name, else what is wrong with it, behind "a topic's name"
 * or the like. */
const char *name_problem(const char *name);

/* A whole decimal number from `least` to `most`; false for anything else. */
bool parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *value)
    __attribute__((warn_unused_result));

/* The text with control characters and bytes above 0x7e that are not UTF-8 made visible, for messages. */
struct shown {
    char text[4 * 256 + 4];
};
const char *show(struct shown *shown, const char *text);

/* Sets KEY to the bytes as a string if they are UTF-8, else KEY_base64 to their base64. 0 or -ENOMEM. */
int json_set_bytes(json_t *object, const char *key, const char *data, size_t length)
    __attribute__((warn_unused_result));

/* One compact JSON value and a newline; false when writing failed. Takes the reference. */
bool print_json(json_t *value);

/* Everything printed is out: EXIT_DONE; quietly EXIT_DONE as well if nobody reads any more (EPIPE: that is
 * how `| head` ends us); else a complaint and EXIT_FAILED. To be called at the end, or at once after
 * printing failed, while errno says why. */
int finish_output(const char *command);

#endif
