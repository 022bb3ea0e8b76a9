/* fake_client.c: stands in for libwalrus-client under the real sources of `walrus`, to provoke what a broker
 * does seldom: each error code at a chosen batch, death with a batch in flight, a library that is short of
 * memory. The environment steers it:
 *
 *   FAKE_FILE            committed batches are written there: "N\n" (lines), then LENGTH:DATA\n for each
 *   FAKE_NOTES=1         the options of the connection and of each batch, too: see note()
 *   FAKE_FAIL_BATCH=K    batch number K (from 1) ...
 *   FAKE_CODE=C          ... ends with -C; FAKE_ALL=1: each batch from it on
 *   FAKE_WHERE=W         "completion" (default), "submit", "add" (its first line), "begin", "open",
 * "connect", "blocking" (the call that sends lines again), "late" (the same, by a completion), "read",
 * "query" FAKE_LATE=1          completions can be reaped only after a wait, never at once FAKE_ONCE=N the
 * failure clears after N times FAKE_LAST=N          the producer's last number; FAKE_COUNT=N: the lines that
 * it has, "entry 1", ... FAKE_GREET=1         says "connected" on stdout, so that a test knows
 *   FAKE_ENTRIES=N       a read finds N entries; FAKE_BINARY=1: they are not UTF-8 */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "command.h"

struct walrus {
    int fd;
    FILE *file;
    int batches;  /* begun */
    int failures; /* given out */
    bool in_flight, waited;
    struct walrus_completion completion;
    char words[64];
};

struct walrus_topic {
    walrus *handle;
};

struct walrus_batch {
    walrus *handle;
    int number;
    size_t lines;
    char *text;
    size_t length;
};

struct walrus_entries {
    uint64_t from;
    size_t count;
};

int command_stat(int argc, char **argv)
{
    (void)argc, (void)argv;
    return EXIT_USAGE;
}

int command_check(int argc, char **argv)
{
    (void)argc, (void)argv;
    return EXIT_USAGE;
}

int command_torture(int argc, char **argv)
{
    (void)argc, (void)argv;
    return EXIT_USAGE;
}

static int number_of(const char *name)
{
    const char *text = getenv(name);
    return text != NULL ? (int)strtol(text, NULL, 10) : 0;
}

static int failure(walrus *handle, const char *where, int batch)
{
    const char *wanted = getenv("FAKE_WHERE");
    int first = number_of("FAKE_FAIL_BATCH");
    bool meant = batch == first || (number_of("FAKE_ALL") != 0 && batch > first);
    if (!meant || strcmp(wanted != NULL ? wanted : "completion", where) != 0)
        return 0;
    if (number_of("FAKE_ONCE") != 0 && handle->failures >= number_of("FAKE_ONCE"))
        return 0;
    handle->failures++;
    return -number_of("FAKE_CODE");
}

static void note(const walrus *handle, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(const walrus *handle, const char *format, ...)
{
    va_list list;
    if (handle->file == NULL || number_of("FAKE_NOTES") == 0)
        return;
    va_start(list, format);
    vfprintf(handle->file, format, list);
    va_end(list);
    fflush(handle->file);
}

const char *walrus_version(void)
{
    return WALRUS_VERSION_STRING;
}

int walrus_connect(walrus **handle, const struct walrus_connect_options *options)
{
    walrus *fake = calloc(1, sizeof *fake);
    if (fake == NULL)
        abort();
    int rc = failure(fake, "connect", 1);
    if (rc < 0) {
        snprintf(options->error, options->error_size, "fake words about the connection");
        free(fake);
        return rc;
    }
    fake->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    fake->file = getenv("FAKE_FILE") != NULL ? fopen(getenv("FAKE_FILE"), "a") : NULL;
    *handle = fake;
    note(fake, "connect: producer %s, flags %u, reconnect %lld\n",
         options->producer != NULL ? options->producer : "none", options->flags,
         (long long)options->reconnect_ns);
    if (number_of("FAKE_GREET") != 0) {
        printf("connected\n");
        fflush(stdout);
    }
    return 0;
}

void walrus_close(walrus *handle)
{
    if (handle->file != NULL)
        fclose(handle->file);
    close(handle->fd);
    free(handle);
}

const char *walrus_error(const walrus *handle)
{
    return handle->words;
}

int walrus_fd(const walrus *handle)
{
    return handle->fd;
}

int walrus_topic_open(walrus *handle, const char *name, size_t length,
                      const struct walrus_topic_options *options, walrus_topic **topic)
{
    (void)name, (void)length, (void)options;
    int rc = failure(handle, "open", 1);
    if (rc < 0)
        return rc;
    *topic = malloc(sizeof **topic);
    if (*topic == NULL)
        abort();
    (*topic)->handle = handle;
    return 0;
}

void walrus_topic_close(walrus_topic *topic)
{
    free(topic);
}

int walrus_batch_begin(walrus_topic *topic, walrus_batch **batch)
{
    walrus *handle = topic->handle;
    int rc = failure(handle, "begin", handle->batches + 1);
    if (rc < 0)
        return rc;
    *batch = calloc(1, sizeof **batch);
    if (*batch == NULL)
        abort();
    (*batch)->handle = handle;
    (*batch)->number = ++handle->batches;
    return 0;
}

uint64_t walrus_topic_last_number(const walrus_topic *topic)
{
    (void)topic;
    return (uint64_t)number_of("FAKE_LAST");
}

int walrus_query(walrus_topic *topic, uint64_t number, struct walrus_receipt *receipt)
{
    int rc = failure(topic->handle, "query", 1);
    if (rc < 0)
        return rc;
    *receipt = (struct walrus_receipt){.number = number, .count = (uint64_t)number_of("FAKE_COUNT")};
    receipt->first_sequence = receipt->count > 0 ? 1 : 0;
    return 1;
}

int walrus_batch_set_queue(walrus_batch *batch, int queue)
{
    note(batch->handle, "set_queue: %d\n", queue);
    return 0;
}

int walrus_batch_add_part(walrus_batch *batch, const void *data, size_t length, int more)
{
    int rc = batch->length == 0 ? failure(batch->handle, "add", batch->number) : 0;
    if (rc < 0) {
        snprintf(batch->handle->words, sizeof batch->handle->words, "fake words about the part");
        return rc;
    }
    batch->text = realloc(batch->text, batch->length + length + 1);
    if (batch->text == NULL)
        abort();
    if (length > 0)
        memcpy(batch->text + batch->length, data, length);
    batch->length += length;
    if (!more)
        batch->lines++;
    return 0;
}

int walrus_batch_append_for_topic(walrus *handle, const char *topic, const struct walrus_slice *entries,
                                  size_t count, const struct walrus_write_options *options,
                                  struct walrus_receipt *receipt)
{
    (void)topic, (void)receipt;
    if (options == NULL)
        abort(); /* `walrus append` always says what it wants */
    int number = ++handle->batches;
    int rc = failure(handle, "blocking", number);
    int late = failure(handle, "late", number);
    note(handle, "blocking: queue %u, number %llu, tries %u, deadline %lld\n", options->queue,
         (unsigned long long)options->number, options->retry != NULL ? options->retry->max_tries : 0,
         (long long)options->deadline_ns);
    if (rc < 0) {
        snprintf(handle->words, sizeof handle->words, "fake words about the write");
        handle->batches -= rc == -ECANCELED; /* it is sent again */
        return rc;
    }
    if (handle->file != NULL && late == 0) {
        fprintf(handle->file, "%zu\n", count);
        for (size_t i = 0; i < count; i++) {
            fprintf(handle->file, "%zu:", entries[i].length);
            fwrite(entries[i].data, 1, entries[i].length, handle->file);
            fputc('\n', handle->file);
        }
        fflush(handle->file);
    }
    if (late == 0 && number_of("FAKE_LATE") == 0)
        return 0;
    handle->in_flight = true;
    handle->waited = false;
    handle->completion = (struct walrus_completion){.user_data = options->user_data, .result = late};
    eventfd_write(handle->fd, 1);
    return -EINPROGRESS;
}

int walrus_batch_add(walrus_batch *batch, const void *data, size_t length)
{
    int rc = batch->lines == 0 ? failure(batch->handle, "add", batch->number) : 0;
    if (rc < 0) {
        snprintf(batch->handle->words, sizeof batch->handle->words, "fake words about the entry");
        return rc;
    }
    batch->text = realloc(batch->text, batch->length + length + 32);
    if (batch->text == NULL)
        abort();
    batch->length += (size_t)snprintf(batch->text + batch->length, 24, "%zu:", length);
    memcpy(batch->text + batch->length, data, length);
    batch->length += length;
    batch->text[batch->length++] = '\n';
    batch->lines++;
    return 0;
}

void walrus_batch_abort(walrus_batch *batch)
{
    if (batch == NULL)
        return;
    free(batch->text);
    free(batch);
}

int walrus_batch_submit(walrus_batch *batch, const struct walrus_submit_options *options)
{
    walrus *handle = batch->handle;
    if (handle->in_flight || options == NULL)
        abort(); /* `walrus append` has one batch in flight at most */
    note(handle, "submit: queue %u, number %llu\n", options->queue, (unsigned long long)options->number);
    int rc = failure(handle, "submit", batch->number);
    if (rc == -EAGAIN)
        return rc;
    if (rc == 0) {
        handle->in_flight = true;
        handle->waited = number_of("FAKE_LATE") == 0;
        handle->completion = (struct walrus_completion){.user_data = options->user_data};
        handle->completion.result = failure(handle, "completion", batch->number);
        if (handle->completion.result == 0 && handle->file != NULL) {
            fprintf(handle->file, "%zu\n", batch->lines);
            fwrite(batch->text, 1, batch->length, handle->file);
            fflush(handle->file);
        }
        eventfd_write(handle->fd, 1);
    }
    walrus_batch_abort(batch);
    return rc;
}

int walrus_reap(walrus *handle, struct walrus_completion *completions, int max)
{
    eventfd_t unused;
    if (max < 1 || !handle->in_flight || !handle->waited)
        return 0;
    handle->in_flight = false;
    eventfd_read(handle->fd, &unused);
    completions[0] = handle->completion;
    return 1;
}

int walrus_wait(walrus *handle, int count, int64_t timeout_ns)
{
    (void)timeout_ns;
    if (count > 1 || !handle->in_flight)
        return -EINVAL;
    handle->waited = true;
    return 0;
}

int walrus_batch_read_for_topic(walrus *handle, const char *topic, uint64_t from,
                                const struct walrus_read_options *options, walrus_entries **entries)
{
    uint64_t there = (uint64_t)number_of("FAKE_ENTRIES");
    int rc = failure(handle, "read", 1);
    if (rc < 0)
        return rc;
    if (strcmp(topic, "unknown") == 0)
        return -ENOENT;
    if (strcmp(topic, "damaged") == 0 && from > 1)
        return -EBADMSG;
    *entries = NULL;
    if (from > there)
        return 0;
    *entries = malloc(sizeof **entries);
    if (*entries == NULL)
        abort();
    (*entries)->from = from;
    (*entries)->count = 1;
    (void)options;
    return 1;
}

size_t walrus_entries_count(const walrus_entries *entries)
{
    return entries->count;
}

int walrus_entries_get(const walrus_entries *entries, size_t index, struct walrus_entry *entry)
{
    static char data[32];
    if (index >= entries->count)
        return 0;
    uint64_t sequence = entries->from + index;
    int length = number_of("FAKE_BINARY") != 0
                     ? snprintf(data, sizeof data, "\xff%c%llu", 0, (unsigned long long)sequence)
                     : snprintf(data, sizeof data, "entry %llu", (unsigned long long)sequence);
    *entry = (struct walrus_entry){.data = data,
                                   .length = (uint64_t)length,
                                   .sequence = sequence,
                                   .time_ns = UINT64_C(1700000000000000001),
                                   .epoch = 7};
    return 1;
}

uint64_t walrus_entries_next(const walrus_entries *entries)
{
    return entries->from + entries->count;
}

void walrus_entries_release(walrus_entries *entries)
{
    free(entries);
}

int walrus_next_topic(walrus *handle, struct walrus_topic_info *info)
{
    (void)handle;
    if (info->id >= 2)
        return 0;
    info->id++;
    info->next_sequence = 3;
    info->durable_next = 2;
    info->level = WALRUS_LEVEL_DURABLE;
    snprintf(info->name, sizeof info->name, "%s", info->id == 1 ? "first topic" : "\xff second");
    return 1;
}
