/* topics.c: `walrus topics`: the catalogue. */
#include <inttypes.h>
#include <string.h>

#include "command.h"

#define NAME "topics"

static const char *level_word(uint8_t level)
{
    static const char *const words[] = {"default", "none", "interval", "sync"};
    return level < 4 ? words[level] : "unknown";
}

static bool print_topic(const struct common *common, const struct walrus_topic_info *info)
{
    uint64_t last = info->next_sequence > 0 ? info->next_sequence - 1 : 0;
    uint64_t durable = info->durable_next > 0 ? info->durable_next - 1 : 0;
    size_t length = strnlen(info->name, sizeof info->name);
    if (!common->json)
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

static int list(const struct common *common, walrus *handle)
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
        if (first && !common->json)
            printf("%20s %20s  %-8s  %s\n", "LAST SEQUENCE", "DURABLE UP TO", "LEVEL", "TOPIC");
        first = false;
        if (!print_topic(common, &info))
            return finish_output(NAME);
    }
}

int command_topics(int argc, char **argv)
{
    static const struct own_arguments own = {.words = "List the topics of the broker."};
    struct common common = {.takes_json = true};
    parse_arguments(argc, argv, &own, &common);
    walrus *handle = NULL;
    int code = connect_to_broker(NAME, &common, NULL, &handle);
    if (code != EXIT_DONE)
        return code;
    code = list(&common, handle);
    walrus_close(handle);
    if (code != EXIT_DONE || ferror(stdout)) /* said already */
        return code;
    return finish_output(NAME);
}
