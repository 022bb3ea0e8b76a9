/* blocking.c: the smallest use of Walrus. Writes its arguments as one atomic batch to a topic, then reads the
 * topic.
 *
 *   cc blocking.c $(pkg-config --cflags --libs libwalrus-client) -o blocking
 *   ./blocking greetings hello world */
#include <walrus.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int complain(walrus *handle, const char *what)
{
    fprintf(stderr, "blocking: %s: %s\n", what, walrus_error(handle));
    walrus_close(handle);
    return 1;
}

static int write_batch(walrus *handle, const char *topic, char **words, size_t count)
{
    struct walrus_slice *entries = calloc(count + 1, sizeof *entries);
    if (entries == NULL)
        return -1;
    for (size_t i = 0; i < count; i++) {
        entries[i].data = words[i];
        entries[i].length = strlen(words[i]);
    }
    struct walrus_receipt receipt;
    int result = walrus_batch_append_for_topic(handle, topic, entries, count, NULL, &receipt);
    free(entries);
    if (result == 0)
        printf("committed %" PRIu64 " entries from sequence %" PRIu64 "\n", receipt.count,
               receipt.first_sequence);
    return result;
}

static int read_all(walrus *handle, const char *topic)
{
    uint64_t from = 1;
    for (;;) {
        walrus_entries *entries;
        int count = walrus_batch_read_for_topic(handle, topic, from, NULL, &entries);
        if (count <= 0)
            return count;
        struct walrus_entry entry;
        for (size_t i = 0; walrus_entries_get(entries, i, &entry); i++) {
            printf("%" PRIu64 ": ", entry.sequence);
            fwrite(entry.data, 1, (size_t)entry.length, stdout);
            putchar('\n');
        }
        from = walrus_entries_next(entries);
        walrus_entries_release(entries);
    }
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s TOPIC [ENTRY...]\n", argv[0]);
        return 2;
    }
    char words[512] = "";
    struct walrus_connect_options options = {
        .size = sizeof options, .error = words, .error_size = sizeof words};
    walrus *handle;
    if (walrus_connect(&handle, &options) < 0) {
        fprintf(stderr, "blocking: %s\n", words);
        return 1;
    }
    if (write_batch(handle, argv[1], argv + 2, (size_t)(argc - 2)) < 0)
        return complain(handle, "write");
    if (read_all(handle, argv[1]) < 0)
        return complain(handle, "read");
    walrus_close(handle);
    return 0;
}
