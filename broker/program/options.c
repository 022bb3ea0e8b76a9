/* options.c: collects the words from three places, the strongest last, then turns each into a value once.
 *
 *   1. argp reads the command line into `words`; --config names a file.
 *   2. The file (libinih: "name = value", the long option's name without dashes, optionally under [walrusd]),
 *      then the environment fill what is still empty, the environment first.
 *   3. Each word is converted and checked. An error names where the word came from. */
#include "options.h"

#include <argp.h>
#include <ini.h>

#include "../../shared/message.h"
#include "../../shared/paths.h"
#include "../session/server.h"

enum which {
    DATA_DIR,
    SOCKET,
    SOCKET_MODE,
    INSTANCE,
    DURABILITY,
    IO,
    SPIN_US,
    COMMIT_ALIGN,
    SEGMENT,
    MEMORY,
    MAX_BATCH,
    IDLE_STREAM,
    MAX_CONNECTIONS,
    MAX_IN_FLIGHT,
    MAX_SHARED,
    MAX_TOPICS,
    MAX_PRODUCERS,
    CONFIG,
    WHICH_COUNT
};

#define FIRST_KEY   1000 /* beyond the characters: no option has a short form */
#define KEY_HELP    'h'
#define KEY_VERSION 'V'

static const struct argp_option argp_list[] = {
    {"data-dir", FIRST_KEY + DATA_DIR, "DIR", 0, "Folder of the store (WALRUS_DATA_DIR)", 0},
    {"socket", FIRST_KEY + SOCKET, "PATH", 0, "Socket to serve on (WALRUS_SOCKET)", 0},
    {"socket-mode", FIRST_KEY + SOCKET_MODE, "MODE", 0, "Its permissions, octal (0600)", 0},
    {"instance", FIRST_KEY + INSTANCE, "KEY", 0,
     "Sub-folder of the data folder and of the socket's default folder (WALRUS_INSTANCE)", 0},
    {"durability", FIRST_KEY + DURABILITY, "LEVEL", 0,
     "Of new topics: sync (default), interval:MS (answer when written, flush every MS ms) or none", 0},
    {"io", FIRST_KEY + IO, "BACKEND", 0, "auto (default), uring, pwrite or mmap", 0},
    {"spin-us", FIRST_KEY + SPIN_US, "N", 0,
     "Look at rings and device for N microseconds before sleeping (default: adaptive; 0: never)", 0},
    {"commit-align", FIRST_KEY + COMMIT_ALIGN, "BYTES", 0,
     "Block size of commits (default: of the device, 4096 or more)", 0},
    {"segment", FIRST_KEY + SEGMENT, "BYTES", 0, "Length of the log's files (64M)", 0},
    {"memory", FIRST_KEY + MEMORY, "BYTES", 0, "Bound of the broker's private memory (48M)", 0},
    {"max-batch", FIRST_KEY + MAX_BATCH, "BYTES", 0,
     "Largest batch, counting 64 bytes for each entry: 1M to 1024G (10G)", 0},
    {"idle-stream", FIRST_KEY + IDLE_STREAM, "MS", 0,
     "Roll a streamed batch back when nothing came for so many ms: 1 to 86400000 (30000)", 0},
    {"max-connections", FIRST_KEY + MAX_CONNECTIONS, "N", 0,
     "Connections: 1 to 65536 (4096, or fewer if file descriptors are short)", 0},
    {"max-in-flight", FIRST_KEY + MAX_IN_FLIGHT, "N", 0,
     "Requests in flight, the queues of all connections together: 16 to 16777216 (1048576)", 0},
    {"max-shared", FIRST_KEY + MAX_SHARED, "BYTES", 0,
     "Arenas, windows and rings of all connections together: 1M to 1024G (half of the machine's memory)", 0},
    {"max-topics", FIRST_KEY + MAX_TOPICS, "N", 0, "Topics: 1 to 1048576 (65536)", 0},
    {"max-producers", FIRST_KEY + MAX_PRODUCERS, "N", 0,
     "Named producers, and topics that they write to (each pair counts): 1 to 1048576 of each (65536)", 0},
    {"config", FIRST_KEY + CONFIG, "FILE", 0, "Read options from FILE: lines of NAME = VALUE, names as above",
     0},
    {"version", KEY_VERSION, NULL, 0, "Print the version", -1},
    {"help", KEY_HELP, NULL, 0, "Print this", -1},
    {0},
};

static const char *const variables[WHICH_COUNT] = {
    [DATA_DIR] = "WALRUS_DATA_DIR",
    [SOCKET] = "WALRUS_SOCKET",
    [INSTANCE] = "WALRUS_INSTANCE",
};

/* One word and where it came from ("--segment", "WALRUS_SOCKET", "FILE: segment"). */
struct word {
    char text[OPTION_TEXT_MAX];
    char origin[OPTION_TEXT_MAX + 64];
    bool set;
};

struct parse {
    struct word *words;
    struct options *options;
    struct error *err;
    const char *file;
    int result;
};

static int word_set(struct word *word, const char *text, struct error *err, const char *format, ...)
    printf_like(4, 5);
static int word_set(struct word *word, const char *text, struct error *err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(word->origin, sizeof word->origin, format, args);
    va_end(args);
    if (strlen(text) >= sizeof word->text)
        return error_set(err, -EINVAL, "%s: longer than %zu bytes", word->origin, sizeof word->text - 1);
    memcpy(word->text, text, strlen(text) + 1);
    word->set = true;
    return 0;
}

/* ------------------------------------------------------------------------------------------------ three
 * places */

static error_t parse_argument(int key, char *text, struct argp_state *state)
{
    struct parse *parse = state->input;
    if (key >= FIRST_KEY && key < FIRST_KEY + WHICH_COUNT) {
        int which = key - FIRST_KEY;
        parse->result = word_set(&parse->words[which], text, parse->err, "--%s", argp_list[which].name);
        return parse->result == 0 ? 0 : EINVAL;
    }
    switch (key) {
    case KEY_HELP:
        argp_help(state->root_argp, stdout, ARGP_HELP_USAGE | ARGP_HELP_LONG | ARGP_HELP_DOC,
                  (char[]){"walrusd"});
        parse->options->finished = true;
        return 0;
    case KEY_VERSION:
        printf("walrusd %s\n", WALRUS_VERSION);
        parse->options->finished = true;
        return 0;
    case ARGP_KEY_ARG:
        parse->result =
            error_set(parse->err, -EINVAL, "unexpected argument \"%s\" (see walrusd --help)", text);
        return EINVAL;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int read_command_line(int argc, char **argv, struct parse *parse)
{
    static const struct argp argp = {
        .options = argp_list,
        .parser = parse_argument,
        .doc = "The broker of Walrus: commits batches of entries from local programs, whole and durably.\v"
               "Sizes take K, M or G. The command line beats the environment, which beats the file. Of each "
               "--max-... one user may have at most three quarters, of --max-shared half; --max-batch is not "
               "divided.",
    };
    int at = 0;
    error_t rc =
        argp_parse(&argp, argc, argv, ARGP_NO_EXIT | ARGP_NO_ERRS | ARGP_NO_HELP | ARGP_IN_ORDER, &at, parse);
    if (rc == 0)
        return 0;
    if (parse->result != 0)
        return parse->result;
    const char *bad = at > 1 && at <= argc ? argv[at - 1] : argc > 1 ? argv[argc - 1] : "";
    return error_set(parse->err, -EINVAL,
                     "option \"%s\" is unknown, ambiguous or lacks its value (see walrusd --help)", bad);
}

/* 1: taken, 0: stop (inih's way). */
static int parse_line(void *user, const char *section, const char *name, const char *value)
{
    struct parse *parse = user;
    if (section[0] != '\0' && strcmp(section, "walrusd") != 0)
        return 1; /* somebody else's */
    for (int which = 0; which < WHICH_COUNT; which++) {
        if (which == CONFIG || strcmp(name, argp_list[which].name) != 0)
            continue;
        if (parse->words[which].set)
            return 1; /* said on the command line or in the environment */
        parse->result = word_set(&parse->words[which], value, parse->err, "%s: %s", parse->file, name);
        return parse->result == 0;
    }
    parse->result = error_set(parse->err, -EINVAL, "%s: there is no option \"%s\"", parse->file, name);
    return 0;
}

static int read_file(struct parse *parse)
{
    if (!parse->words[CONFIG].set)
        return 0;
    parse->file = parse->words[CONFIG].text;
    errno = 0;
    int rc = ini_parse(parse->file, parse_line, parse);
    if (rc == 0)
        return 0;
    if (rc == -1)
        return error_set(parse->err, errno != 0 ? -errno : -ENOENT, "%s: cannot be read: %s", parse->file,
                         strerror(errno != 0 ? errno : ENOENT));
    if (parse->result != 0) {
        char place[32];
        snprintf(place, sizeof place, "line %d", rc);
        return error_wrap(parse->err, "%s", place);
    }
    return error_set(parse->err, -EINVAL, "%s: line %d is not NAME = VALUE", parse->file, rc);
}

static int read_environment(struct parse *parse)
{
    for (int which = 0; which < WHICH_COUNT; which++) {
        const char *value = variables[which] != NULL ? getenv(variables[which]) : NULL;
        if (parse->words[which].set || value == NULL || value[0] == '\0')
            continue;
        int rc = word_set(&parse->words[which], value, parse->err, "%s", variables[which]);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* ------------------------------------------------------------------------------------- values */

static bool whole_number(const char *text, uint64_t *out, const char **rest)
{
    if (text[0] < '0' || text[0] > '9')
        return false;
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    *rest = end;
    return errno == 0;
}

bool options_size(const char *text, uint64_t *out)
{
    const char *rest;
    uint64_t value;
    if (!whole_number(text, &value, &rest))
        return false;
    unsigned shift = 0;
    switch (*rest) {
    case 'k':
    case 'K':
        shift = 10;
        break;
    case 'm':
    case 'M':
        shift = 20;
        break;
    case 'g':
    case 'G':
        shift = 30;
        break;
    default:
        break;
    }
    if (shift != 0)
        rest++;
    if (*rest != '\0' || value > UINT64_MAX >> shift)
        return false;
    *out = value << shift;
    return true;
}

static int size_between(const struct word *word, uint64_t least, uint64_t most, const char *range,
                        uint64_t *out, struct error *err)
{
    if (!word->set)
        return 0;
    if (!options_size(word->text, out) || *out < least || *out > most)
        return error_set(err, -EINVAL, "%s: \"%.100s\" is not a size from %s", word->origin, word->text,
                         range);
    return 0;
}

static int set_mode(const struct word *word, uint32_t *mode, struct error *err)
{
    *mode = 0600;
    if (!word->set)
        return 0;
    char *end;
    unsigned long value = strtoul(word->text, &end, 8);
    if (word->text[0] < '0' || word->text[0] > '7' || *end != '\0' || value > 0777)
        return error_set(err, -EINVAL, "%s: \"%.100s\" is not an octal mode from 0 to 0777", word->origin,
                         word->text);
    *mode = (uint32_t)value;
    return 0;
}

static int set_durability(const struct word *word, struct options *options, struct error *err)
{
    static const char interval[] = "interval:";
    const char *text = word->set ? word->text : "sync";
    options->level = LEVEL_DURABLE;
    options->interval_ns = 0;
    if (strcmp(text, "sync") == 0)
        return 0;
    if (strcmp(text, "none") == 0) {
        options->level = LEVEL_ACCEPTED;
        return 0;
    }
    const char *rest = "";
    uint64_t ms = 0;
    if (strncmp(text, interval, sizeof interval - 1) != 0 ||
        !whole_number(text + sizeof interval - 1, &ms, &rest) || *rest != '\0' || ms < 1 || ms > 3600000)
        return error_set(err, -EINVAL, "%s: \"%.100s\" is not sync, interval:MS (1 to 3600000) or none",
                         word->origin, text);
    options->level = LEVEL_WRITTEN;
    options->interval_ns = (int64_t)ms * 1000000;
    return 0;
}

static int set_backend(const struct word *word, int *backend, struct error *err)
{
    static const struct {
        const char *name;
        int backend;
    } names[] = {
        {"auto", 0}, {"uring", IO_BACKEND_URING}, {"pwrite", IO_BACKEND_PWRITE}, {"mmap", IO_BACKEND_MMAP}};
    *backend = 0;
    if (!word->set)
        return 0;
    for (size_t i = 0; i < array_count(names); i++)
        if (strcmp(word->text, names[i].name) == 0) {
            *backend = names[i].backend;
            return 0;
        }
    return error_set(err, -EINVAL, "%s: \"%.100s\" is not auto, uring, pwrite or mmap", word->origin,
                     word->text);
}

static int set_spin(const struct word *word, int64_t *spin_ns, struct error *err)
{
    *spin_ns = SPIN_ADAPTIVE;
    if (!word->set)
        return 0;
    const char *rest = "";
    uint64_t us;
    if (!whole_number(word->text, &us, &rest) || *rest != '\0' || us > 1000000)
        return error_set(err, -EINVAL, "%s: \"%.100s\" is not a number of microseconds from 0 to 1000000",
                         word->origin, word->text);
    *spin_ns = (int64_t)us * 1000;
    return 0;
}

static int set_align(const struct word *word, uint32_t *align, struct error *err)
{
    uint64_t value = 0;
    int rc = size_between(word, 512, 64 << 10, "512 to 64K", &value, err);
    if (rc != 0)
        return rc;
    if (value != 0 && !is_power_of_two(value))
        return error_set(err, -EINVAL, "%s: \"%.100s\" is not a power of two", word->origin, word->text);
    *align = (uint32_t)value;
    return 0;
}

static int number_between(const struct word *word, uint64_t least, uint64_t most, uint64_t *out,
                          struct error *err)
{
    const char *rest = "";
    if (!word->set)
        return 0;
    if (!whole_number(word->text, out, &rest) || *rest != '\0' || *out < least || *out > most)
        return error_set(err, -EINVAL, "%s: \"%.100s\" is not a number from %llu to %llu", word->origin,
                         word->text, (unsigned long long)least, (unsigned long long)most);
    return 0;
}

/* What one broker, and one user of it, may use. */
static int set_limits(const struct word *words, struct options *options, struct error *err)
{
    const struct {
        int which;
        uint32_t least, most;
        uint32_t *out;
    } numbers[] = {
        {MAX_CONNECTIONS, 1, 65536, &options->max_connections},
        {MAX_IN_FLIGHT, 16, 1u << 24, &options->max_in_flight},
        {MAX_TOPICS, 1, 1u << 20, &options->max_topics},
        {MAX_PRODUCERS, 1, 1u << 20, &options->max_producers},
    };
    for (size_t i = 0; i < array_count(numbers); i++) {
        uint64_t value = 0;
        int rc = number_between(&words[numbers[i].which], numbers[i].least, numbers[i].most, &value, err);
        if (rc != 0)
            return rc;
        *numbers[i].out = (uint32_t)value;
    }
    uint64_t ms = 0;
    int rc = number_between(&words[IDLE_STREAM], 1, 86400000, &ms, err);
    options->idle_stream_ns = (int64_t)ms * 1000000;
    if (rc == 0)
        rc = size_between(&words[MAX_SHARED], 1u << 20, UINT64_C(1) << 40, "1M to 1024G",
                          &options->max_shared, err);
    if (rc == 0)
        rc = size_between(&words[MAX_BATCH], 1u << 20, UINT64_C(1) << 40, "1M to 1024G",
                          &options->max_batch_bytes, err);
    return rc;
}

static int set_texts(const struct word *words, struct options *options, struct error *err)
{
    memcpy(options->data_folder, words[DATA_DIR].text, sizeof options->data_folder);
    memcpy(options->socket, words[SOCKET].text, sizeof options->socket);
    memcpy(options->instance, words[INSTANCE].text, sizeof options->instance);
    if ((words[DATA_DIR].set && words[DATA_DIR].text[0] == '\0') ||
        (words[SOCKET].set && words[SOCKET].text[0] == '\0'))
        return error_set(err, -EINVAL, "%s: the path is empty",
                         words[SOCKET].set && words[SOCKET].text[0] == '\0' ? words[SOCKET].origin
                                                                            : words[DATA_DIR].origin);
    if (strlen(words[SOCKET].text) > PATHS_SOCKET_MAX)
        return error_set(
            err, -EINVAL,
            "%s: \"%.200s\" has %zu characters, a socket's path has at most %u: use a shorter one",
            words[SOCKET].origin, words[SOCKET].text, strlen(words[SOCKET].text), PATHS_SOCKET_MAX);
    if (words[INSTANCE].set && words[INSTANCE].text[0] != '\0' && !paths_instance_valid(words[INSTANCE].text))
        return error_set(
            err, -EINVAL,
            "%s: \"%.100s\" is not a key of 1 to %u letters, digits, '.', '_' or '-', not beginning with '.'",
            words[INSTANCE].origin, words[INSTANCE].text, PATHS_INSTANCE_MAX);
    return 0;
}

static int set_values(const struct word *words, struct options *options, struct error *err)
{
    int rc = set_texts(words, options, err);
    if (rc == 0)
        rc = set_mode(&words[SOCKET_MODE], &options->socket_mode, err);
    if (rc == 0)
        rc = set_durability(&words[DURABILITY], options, err);
    if (rc == 0)
        rc = set_backend(&words[IO], &options->backend, err);
    if (rc == 0)
        rc = set_spin(&words[SPIN_US], &options->spin_ns, err);
    if (rc == 0)
        rc = set_align(&words[COMMIT_ALIGN], &options->commit_align, err);
    if (rc == 0)
        rc = size_between(&words[SEGMENT], (4u << 20) + (128u << 10), 1u << 30,
                          "4224K (4 MiB + 128 KiB) to 1G", &options->segment_bytes, err);
    if (rc == 0)
        rc = size_between(&words[MEMORY], 24u << 20, UINT64_C(1) << 40, "24M to 1024G",
                          &options->memory_bytes, err);
    if (rc == 0)
        rc = set_limits(words, options, err);
    return rc;
}

int options_parse(int argc, char **argv, struct options *options, struct error *err)
{
    memset(options, 0, sizeof *options);
    struct word *words = calloc(WHICH_COUNT, sizeof *words);
    if (words == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    struct parse parse = {.words = words, .options = options, .err = err};
    int rc = read_command_line(argc, argv, &parse);
    if (rc == 0 && !options->finished) {
        rc = read_environment(&parse);
        if (rc == 0)
            rc = read_file(&parse);
        if (rc == 0)
            rc = set_values(words, options, err);
    }
    free(words);
    return rc;
}
