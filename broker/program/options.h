/* options.h: what walrusd was told. Command line beats environment beats file beats default. */
#ifndef WALRUS_PROGRAM_OPTIONS_H
#define WALRUS_PROGRAM_OPTIONS_H

#include "../../shared/base.h"

#define OPTION_TEXT_MAX 4096

struct options {
    char data_folder[OPTION_TEXT_MAX]; /* "" = the default */
    char socket[OPTION_TEXT_MAX];      /* "" = the default */
    char instance[OPTION_TEXT_MAX];    /* "" = none */
    uint32_t socket_mode;
    uint8_t level;            /* enum level of new topics */
    int64_t interval_ns;      /* with LEVEL_WRITTEN; else 0 */
    int backend;              /* enum io_backend; 0 = auto */
    int64_t spin_ns;          /* SPIN_ADAPTIVE if not said */
    uint32_t commit_align;    /* 0 = what the device wants */
    uint64_t segment_bytes;   /* 0 = the log's default */
    uint64_t memory_bytes;    /* 0 = the log's default */
    uint32_t max_connections; /* these and the next ones: 0 = the default of server or log */
    uint32_t max_in_flight;
    uint64_t max_shared;
    uint32_t max_topics;
    uint32_t max_producers;
    uint64_t max_batch_bytes;
    int64_t idle_stream_ns;
    bool finished; /* --help or --version: the text is out, nothing more to do */
};

/* 0, or -EINVAL and one line that names the option and where it came from. -ENOENT, ...: the file of --config
 * cannot be read. */
int options_parse(int argc, char **argv, struct options *options, struct error *err) must_check;

/* "4096", "64K", "48M", "1G". */
bool options_size(const char *text, uint64_t *out) must_check;

#endif
