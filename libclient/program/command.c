#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "command.h"

/* -------------------------------------------------------------------------------- arguments */

struct parsing {
    const struct own_arguments *own;
    struct common *common;
};

static void parse_argument(struct common *common, const char *arg, struct argp_state *state)
{
    if (!common->takes_topic)
        argp_error(state, "takes no argument; '%s' is one", arg);
    if (state->arg_num > 0)
        argp_error(state, "one topic only; '%s' is one too many", arg);
    if (name_problem(arg) != NULL)
        argp_error(state, "a topic's name %s", name_problem(arg));
    common->topic = arg;
}

static error_t parse_common(int key, char *arg, struct argp_state *state)
{
    const struct parsing *parsing = state->input;
    struct common *common = parsing->common;
    switch (key) {
    case ARGP_KEY_INIT:
        if (parsing->own->options != NULL)
            state->child_inputs[0] = parsing->own->input;
        return 0;
    case 'S':
        if (arg[0] == '\0')
            argp_error(state, "--socket needs a path");
        common->socket_path = arg;
        return 0;
    case 'I':
        if (arg[0] == '\0')
            argp_error(state, "--instance needs a key");
        common->instance = arg;
        return 0;
    case 'j':
        common->json = true;
        return 0;
    case ARGP_KEY_ARG:
        parse_argument(common, arg, state);
        return 0;
    case ARGP_KEY_END:
        if (common->takes_topic && common->topic == NULL)
            argp_error(state, "which topic?");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* Those that not every command has come first. */
static const struct argp_option common_options[] = {
    {"json", 'j', NULL, 0, "Print JSON: one object for each thing listed", 0},
    {"socket", 'S', "PATH", 0, "Socket of the broker (else WALRUS_SOCKET, else the user's default)", 10},
    {"instance", 'I', "KEY", 0, "Instance of the broker (else WALRUS_INSTANCE, else none)", 10},
    {0},
};

void parse_arguments(int argc, char **argv, const struct own_arguments *own, struct common *common)
{
    const struct argp own_argp = {own->options, own->parse, NULL, NULL, NULL, NULL, NULL};
    const struct argp_child children[] = {{&own_argp, 0, NULL, 0}, {0}};
    const struct argp argp = {common->takes_json ? common_options : common_options + 1,
                              parse_common,
                              common->takes_topic ? "TOPIC" : NULL,
                              own->words,
                              own->options != NULL ? children : NULL,
                              NULL,
                              NULL};
    struct parsing parsing = {own, common};
    argp_parse(&argp, argc, argv, 0, NULL, &parsing);
}

bool parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *value)
{
    if (text[0] == '\0' || strspn(text, "0123456789") != strlen(text))
        return false;
    errno = 0;
    unsigned long long number = strtoull(text, NULL, 10);
    if (errno != 0 || number < least || number > most)
        return false;
    *value = number;
    return true;
}

const char *name_problem(const char *name)
{
    size_t length = strlen(name);
    if (length == 0)
        return "has at least 1 byte";
    if (length > WALRUS_MAX_TOPIC_NAME)
        return "has at most 255 bytes";
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)name[i];
        if (byte < 0x20 || byte == 0x7f)
            return "has no control characters";
    }
    return NULL;
}

/* -------------------------------------------------------------------------------- failures */

void complain(const char *command, const char *format, ...)
{
    va_list list;
    (void)fflush(stdout);
    flockfile(stderr);
    fprintf(stderr, "walrus %s: ", command);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    funlockfile(stderr);
}

int exit_code_of(int error)
{
    return error == -EBUSY || error == -EAGAIN || error == -ENOSPC ? EXIT_TRY_AGAIN : EXIT_FAILED;
}

static const char *try_again_words(uint8_t reason)
{
    switch (reason) {
    case WALRUS_REASON_MEMORY:
        return "the broker's buffers are full: try again, or give walrusd more --memory";
    case WALRUS_REASON_SPACE:
        return "the broker is preparing log space: try again";
    case WALRUS_REASON_ORDER:
        return "a batch before this one was not committed: try again";
    default:
        return "the broker is short of something that comes back by itself: try again";
    }
}

const char *failure_words(int error, uint8_t reason)
{
    switch (error) {
    case -EBUSY:
        return "a batch of another program is in progress on this topic: try again";
    case -EAGAIN:
        return try_again_words(reason);
    case -ENOSPC:
        return "the broker's disk is full: free some space, then try again";
    case -EDQUOT:
        return "a quota of the broker is used up (topics or memory of this user): ask who runs it";
    case -EINVAL:
        return "over a limit (2000 entries or 10 GiB in a batch)";
    case -EIO:
        return "the device failed; the batch is rolled back and never will appear: see the broker's "
               "messages";
    case -ECANCELED:
        return "the broker dropped the batch: it was idle for too long, or the connection was lost: try "
               "again";
    case -ETIMEDOUT:
        return "the broker did not take it in time: try again";
    case -ESTALE:
        return "another program took this producer over: stop";
    case -ESHUTDOWN:
        return "the broker is stopping: try again when it is back";
    case -ECONNRESET:
        return "the broker is gone: see its messages, start it again";
    case -ENOENT:
        return "no such topic: it is made by its first write; `walrus topics` lists those there are";
    case -ENODATA:
        return "these entries are not there any more: use --from earliest";
    case -EBADMSG:
        return "stored data is damaged: stop the broker and run `walrus check` on its data folder";
    case -EACCES:
        return "not allowed: the socket belongs to another user (walrusd --socket-mode)";
    case -ENOMEM:
        return "out of memory";
    default:
        return strerror(-error);
    }
}

int connect_to_broker(const char *command, const struct common *common,
                      const struct walrus_connect_options *more, walrus **handle)
{
    char words[512] = "";
    struct walrus_connect_options options = {0};
    if (more != NULL)
        options = *more;
    options.size = sizeof options;
    options.socket_path = common->socket_path;
    options.instance = common->instance;
    options.error = words;
    options.error_size = sizeof words;
    int rc = walrus_connect(handle, &options);
    if (rc == 0)
        return EXIT_DONE;
    if (words[0] != '\0')
        complain(command, "%s", words);
    else
        complain(command, "cannot connect to the broker: %s: is walrusd running?", strerror(-rc));
    return exit_code_of(rc);
}

/* -------------------------------------------------------------------------------- output */

const char *show(struct shown *shown, const char *text)
{
    size_t at = 0;
    for (const unsigned char *byte = (const unsigned char *)text; *byte != '\0'; byte++) {
        if (at + 5 > sizeof shown->text) {
            memcpy(shown->text + sizeof shown->text - 4, "...", 4);
            return shown->text;
        }
        if (*byte < 0x20 || *byte == 0x7f)
            at += (size_t)snprintf(shown->text + at, 5, "\\x%02x", *byte);
        else
            shown->text[at++] = (char)*byte;
    }
    shown->text[at] = '\0';
    return shown->text;
}

static char *base64(const char *data, size_t length)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (length > SIZE_MAX / 2)
        return NULL;
    char *text = malloc((length + 2) / 3 * 4 + 1);
    if (text == NULL)
        return NULL;
    char *to = text;
    for (size_t at = 0; at < length; at += 3) {
        size_t rest = length - at;
        uint32_t bits = (uint32_t)(unsigned char)data[at] << 16;
        bits |= rest > 1 ? (uint32_t)(unsigned char)data[at + 1] << 8 : 0;
        bits |= rest > 2 ? (uint32_t)(unsigned char)data[at + 2] : 0;
        *to++ = digits[bits >> 18];
        *to++ = digits[bits >> 12 & 63];
        *to++ = rest > 1 ? digits[bits >> 6 & 63] : '=';
        *to++ = rest > 2 ? digits[bits & 63] : '=';
    }
    *to = '\0';
    return text;
}

int json_set_bytes(json_t *object, const char *key, const char *data, size_t length)
{
    json_t *string = json_stringn(length == 0 ? "" : data, length); /* NULL if it is not UTF-8 */
    if (string != NULL)
        return json_object_set_new(object, key, string) == 0 ? 0 : -ENOMEM;
    char *text = base64(data, length);
    if (text == NULL)
        return -ENOMEM;
    char name[64];
    snprintf(name, sizeof name, "%s_base64", key);
    int rc = json_object_set_new(object, name, json_string(text));
    free(text);
    return rc == 0 ? 0 : -ENOMEM;
}

bool print_json(json_t *value)
{
    bool good = value != NULL && json_dumpf(value, stdout, JSON_COMPACT) == 0 && putchar('\n') != EOF;
    json_decref(value);
    return good;
}

int finish_output(const char *command)
{
    int error = ferror(stdout) ? errno : 0;
    if (error == 0 && fflush(stdout) != 0)
        error = errno;
    if (error == 0 || error == EPIPE)
        return EXIT_DONE;
    complain(command, "cannot write to standard output: %s", strerror(error));
    return EXIT_FAILED;
}
