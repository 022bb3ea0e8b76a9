/* topics.c: `walrus topics`: the catalogue. */
#include <inttypes.h>
#include <string.h>

#include "command.h"

#define NAME "topics"

struct listing {
    struct connection connection;
    bool json;
};

static const char *level_word(uint8_t level)
{
    static const char *const words[] = {"default", "none", "interval", "sync"};
    return level < 4 ? words[level] : "unknown";
}

static bool print_topic(const struct listing *listing, const struct walrus_topic_info *info)
{
    uint64_t last = info->next_sequence > 0 ? info->next_sequence - 1 : 0;
    uint64_t durable = info->durable_next > 0 ? info->durable_next - 1 : 0;
    size_t length = strnlen(info->name, sizeof info->name);
    if (!listing->json)
        return printf("%20" PRIu64 " %20" PRIu64 "  %-8s  %.*s\n", last, durable, level_word(info->level),
                      (int)length, info->name) >= 0;
    json_t *object = json_object();
    bool good = object != NULL && json_set_bytes(object, "topic", info->name, length) == 0;
    good = good && json_object_set_new(object, "id", json_integer((json_int_t)info->id)) == 0;
    good = good && json_object_set_new(object, "last_sequence", json_integer((json_int_t)last)) == 0;
    good = good && json_object_set_new(object, "durable_sequence", json_integer((json_int_t)durable)) == 0;
    good = good && json_object_set_new(object, "durability", json_string(level_word(info->level))) == 0;
    if (!good) {
        json_decref(object);
        return false;
    }
    return print_json(object);
}

static int list(const struct listing *listing, walrus *handle)
{
    struct walrus_topic_info info = {.size = sizeof info};
    bool first = true;
    for (;;) {
        int rc = walrus_next_topic(handle, &info);
        if (rc < 0) {
            const char *said = walrus_error(handle);
            complain(NAME, "cannot list the topics: %s", said[0] != '\0' ? said : failure_words(rc, 0));
            return exit_code_of(rc);
        }
        if (rc == 0)
            return EXIT_DONE;
        if (first && !listing->json)
            printf("%20s %20s  %-8s  %s\n", "LAST SEQUENCE", "DURABLE UP TO", "LEVEL", "TOPIC");
        first = false;
        if (!print_topic(listing, &info))
            return finish_output(NAME);
    }
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct listing *listing = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &listing->connection;
        return 0;
    case 'j':
        listing->json = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "takes no argument; '%s' is one", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int command_topics(int argc, char **argv)
{
    static const struct argp_option options[] = {{"json", 'j', NULL, 0, "One JSON object per topic", 0}, {0}};
    static const struct argp_child children[] = {{&connection_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {options,  parse, NULL, "List the topics of the broker.",
                                     children, NULL,  NULL};
    struct listing listing = {0};
    argp_parse(&argp, argc, argv, 0, NULL, &listing);
    walrus *handle = NULL;
    int code = connect_to_broker(NAME, &listing.connection, &handle);
    if (code != EXIT_DONE)
        return code;
    code = list(&listing, handle);
    walrus_close(handle);
    if (code != EXIT_DONE || ferror(stdout)) /* said already */
        return code;
    return finish_output(NAME);
}
