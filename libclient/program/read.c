/* read.c: `walrus read`: a topic's entries, as lines or JSON.
 *
 * Reads until nothing is there at the next sequence. With --follow the next read then waits in the broker
 * (no polling) after what was printed so far has been flushed. A thread that sleeps until nobody reads our
 * output any more ends a waiting follower; without it `walrus read --follow T | head -1` would stay until
 * the next entry. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "command.h"

#define NAME "read"

struct reading {
    struct common common;
    uint64_t from;
    uint64_t left; /* entries still wanted */
    bool follow;
    bool raw;
};

/* -------------------------------------------------------------------------------- one entry */

static void format_time(char out[48], uint64_t time_ns)
{
    time_t seconds = (time_t)(time_ns / 1000000000u);
    struct tm tm;
    size_t at = gmtime_r(&seconds, &tm) != NULL ? strftime(out, 40, "%Y-%m-%dT%H:%M:%S", &tm) : 0;
    snprintf(out + at, 48 - at, ".%09uZ", (unsigned)(time_ns % 1000000000u));
}

static bool print_entry_json(const struct reading *reading, const struct walrus_entry *entry)
{
    char time[48];
    format_time(time, entry->time_ns);
    json_t *object = json_object();
    bool good = object != NULL;
    good = good && json_object_set_new(object, "sequence", json_integer((json_int_t)entry->sequence)) == 0;
    good = good && json_object_set_new(object, "time", json_string(time)) == 0;
    good = good && json_object_set_new(object, "time_ns", json_integer((json_int_t)entry->time_ns)) == 0;
    good = good && json_object_set_new(object, "epoch", json_integer((json_int_t)entry->epoch)) == 0;
    good = good && json_object_set_new(object, "type", json_integer(entry->type)) == 0;
    good = good && json_object_set_new(object, "durable", json_boolean(entry->unstable == 0)) == 0;
    good = good && json_set_bytes(object, "topic", reading->common.topic, strlen(reading->common.topic)) == 0;
    good = good && json_set_bytes(object, "data", entry->data, entry->length) == 0;
    if (!good) {
        json_decref(object);
        errno = ENOMEM;
        return false;
    }
    return print_json(object);
}

static bool print_entry(const struct reading *reading, const struct walrus_entry *entry)
{
    if (reading->common.json)
        return print_entry_json(reading, entry);
    if (entry->length > 0 && fwrite(entry->data, 1, entry->length, stdout) != entry->length)
        return false;
    return reading->raw || putchar_unlocked('\n') != EOF;
}

/* -------------------------------------------------------------------------------- reading */

static int read_failed(const struct reading *reading, walrus *handle, int rc)
{
    struct shown shown;
    char words[600];
    const char *said = walrus_error(handle);
    bool known = rc == -ENOENT || said[0] == '\0';
    snprintf(words, sizeof words, "%s", known ? failure_words(rc, 0) : said);
    complain(NAME, "topic '%s', entry %" PRIu64 ": %s", show(&shown, reading->common.topic), reading->from,
             words);
    return exit_code_of(rc);
}

/* Prints what one read returned. 0, or -1 with errno when printing failed. */
static int print_entries(struct reading *reading, const walrus_entries *entries)
{
    size_t count = walrus_entries_count(entries);
    for (size_t i = 0; i < count; i++) {
        struct walrus_entry entry;
        if (walrus_entries_get(entries, i, &entry) <= 0)
            break;
        if (!print_entry(reading, &entry))
            return -1;
        reading->left--;
    }
    return 0;
}

static int read_topic(struct reading *reading, walrus *handle)
{
    bool at_end = false;
    while (reading->left > 0) {
        if (at_end && fflush(stdout) != 0)
            return finish_output(NAME);
        struct walrus_read_options options = {.size = sizeof options, .follow_ns = at_end ? -1 : 0};
        if (reading->left < WALRUS_MAX_BATCH_ENTRIES)
            options.max_entries = (uint32_t)reading->left;
        walrus_entries *entries = NULL;
        int rc =
            walrus_batch_read_for_topic(handle, reading->common.topic, reading->from, &options, &entries);
        if (rc < 0 && reading->follow && ((rc == -ENOENT && !at_end) || rc == -ETIME || rc == -EINTR)) {
            at_end = true;
            continue;
        }
        if (rc < 0)
            return read_failed(reading, handle, rc);
        if (rc == 0 && !reading->follow)
            return EXIT_DONE;
        at_end = rc == 0;
        if (rc > 0) {
            int printed = print_entries(reading, entries);
            reading->from = walrus_entries_next(entries);
            walrus_entries_release(entries);
            if (printed < 0)
                return finish_output(NAME);
        }
    }
    return EXIT_DONE;
}

/* -------------------------------------------------------------------------------- nobody reads any more */

static void *watch_output(void *unused)
{
    struct pollfd fd = {.fd = STDOUT_FILENO, .events = 0};
    (void)unused;
    while (poll(&fd, 1, -1) < 0 && errno == EINTR)
        continue;
    if (fd.revents != 0)
        _exit(EXIT_DONE);
    return NULL;
}

/* Only a pipe or socket reports its reader's end. */
static void start_watching_output(void)
{
    struct stat st;
    pthread_t thread;
    if (fstat(STDOUT_FILENO, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)) &&
        pthread_create(&thread, NULL, watch_output, NULL) == 0)
        pthread_detach(thread);
}

/* -------------------------------------------------------------------------------- arguments */

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct reading *reading = state->input;
    switch (key) {
    case 'f':
        if (strcmp(arg, "earliest") == 0)
            reading->from = 1;
        else if (!parse_number(arg, 1, INT64_MAX, &reading->from))
            argp_error(state, "--from %s: 'earliest', or a sequence number from 1 on", arg);
        return 0;
    case 'm':
        if (!parse_number(arg, 0, UINT64_MAX, &reading->left))
            argp_error(state, "--max %s: a number of entries", arg);
        return 0;
    case 'F':
        reading->follow = true;
        return 0;
    case 'r':
        reading->raw = true;
        return 0;
    case ARGP_KEY_END:
        if (reading->raw && reading->common.json)
            argp_error(state, "--raw and --json: one of the two");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int command_read(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"from", 'f', "earliest|SEQ", 0, "Begin with the entry of this sequence number (default: earliest)",
         0},
        {"max", 'm', "N", 0, "Stop after N entries", 0},
        {"follow", 'F', NULL, 0, "At the end wait for more; an unknown topic is waited for", 0},
        {"raw", 'r', NULL, 0, "The bytes of the entries and nothing between them: no newlines are added", 0},
        {0},
    };
    struct reading reading = {
        .common = {.takes_topic = true, .takes_json = true}, .from = 1, .left = UINT64_MAX};
    const struct own_arguments own = {
        options, parse, &reading,
        "Print the entries of TOPIC, each as a line.\v"
        "With --json each entry is an object: sequence, time, topic, data (or data_base64), ... "
        "What `walrus append --stream` wrote is one entry: --from SEQ --max 1 --raw gives its exact "
        "bytes.\n\n"
        "An unknown topic is exit code 1, a sequence beyond the end prints nothing."};
    parse_arguments(argc, argv, &own, &reading.common);
    walrus *handle = NULL;
    int code = connect_to_broker(NAME, &reading.common, NULL, &handle);
    if (code != EXIT_DONE)
        return code;
    if (reading.follow)
        start_watching_output();
    code = read_topic(&reading, handle);
    walrus_close(handle);
    if (code != EXIT_DONE || ferror(stdout)) /* said already */
        return code;
    return finish_output(NAME);
}
