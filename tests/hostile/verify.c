/* verify.c: everything is read back, once the attacks are over, and compared with the ledger.
 *
 *   own topics     exactly the acknowledged batches, each whole, in order, from sequence 1, without a gap
 *   shared topic   the same as a subsequence; every other entry is somebody else's. An entry that carries the
 *                  honest client's key and is not the next acknowledged one was refused, doubled or swapped
 *   "whole..."     stamped batches of attackers that were killed: each is there with all its entries, or not
 *   "once..."      stamped batches that a producer numbered: 1, 2, 3, ... each once
 *   all others     can be read to their end: no committed entry is damaged, whatever was done to
 *                  the memory it came from */
#include "hostile.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "walrus.h"

struct reader {
    walrus *handle;
    uint64_t seed;
    const struct ledger_record *records; /* of one topic, the acknowledged ones, in order */
    size_t count;
    size_t next;         /* record */
    uint32_t next_index; /* entry of it */
    struct verified *out;
    const char *topic;
    bool own;
    /* whole, once */
    struct stamp last;
    bool inside; /* last is not the last entry of its batch */
    uint64_t batches;
};

typedef int take_entry(struct reader *reader, const struct walrus_entry *entry, struct error *err);

static int read_topic(struct reader *reader, const char *topic, take_entry *take, struct error *err)
{
    uint64_t from = 1;
    for (;;) {
        walrus_entries *entries = NULL;
        int count = walrus_batch_read_for_topic(reader->handle, topic, from, NULL, &entries);
        if (count <= 0) {
            if (count < 0 && !(count == -ENOENT && !reader->own))
                return error_set(err, count, "topic %s cannot be read from sequence %llu: %s (%s)", topic,
                                 (unsigned long long)from, strerror(-count), walrus_error(reader->handle));
            return 0;
        }
        struct walrus_entry entry;
        for (size_t i = 0; walrus_entries_get(entries, i, &entry) == 1; i++) {
            reader->out->entries++;
            int rc = take(reader, &entry, err);
            if (rc != 0) {
                walrus_entries_release(entries);
                return rc;
            }
        }
        from = walrus_entries_next(entries);
        walrus_entries_release(entries);
    }
}

/* ------------------------------------------------------------------------------------- honest entries */

static int take_honest(struct reader *r, const struct walrus_entry *entry, struct error *err)
{
    struct stamp stamp;
    if (!stamp_check(r->seed, WRITER_HONEST, entry->data, entry->length, &stamp)) {
        r->out->others++;
        return r->own ? error_set(err, -EBADMSG, "topic %s, sequence %llu: not what the honest client wrote",
                                  r->topic, (unsigned long long)entry->sequence)
                      : 0;
    }
    if (r->next >= r->count)
        return error_set(err, -EBADMSG,
                         "topic %s, sequence %llu: batch %llu is there and was not acknowledged", r->topic,
                         (unsigned long long)entry->sequence, (unsigned long long)stamp.batch);
    const struct ledger_record *record = &r->records[r->next];
    if (stamp.batch != record->batch || stamp.index != r->next_index || stamp.count != record->count ||
        entry->sequence != record->first_sequence + stamp.index)
        return error_set(
            err, -EBADMSG,
            "topic %s, sequence %llu: entry %u of %u of batch %llu, but next would be entry %u of "
            "%u of batch %llu at %llu",
            r->topic, (unsigned long long)entry->sequence, stamp.index, stamp.count,
            (unsigned long long)stamp.batch, r->next_index, record->count, (unsigned long long)record->batch,
            (unsigned long long)(record->first_sequence + r->next_index));
    if (++r->next_index == record->count) {
        r->next_index = 0;
        r->next++;
    }
    return 0;
}

/* ------------------------------------------------------------------------------------- others' entries */

static int take_whole(struct reader *r, const struct walrus_entry *entry, struct error *err)
{
    struct stamp stamp;
    if (!stamp_check(r->seed, WRITER_HOSTILE, entry->data, entry->length, &stamp))
        return error_set(err, -EBADMSG, "topic %s, sequence %llu: not an entry that was written there",
                         r->topic, (unsigned long long)entry->sequence);
    uint32_t wanted = r->inside ? r->last.index + 1 : 0;
    if (stamp.index != wanted || (r->inside && stamp.batch != r->last.batch))
        return error_set(err, -EBADMSG,
                         "topic %s, sequence %llu: entry %u of %u of batch %llu after entry %u of %u of %llu",
                         r->topic, (unsigned long long)entry->sequence, stamp.index, stamp.count,
                         (unsigned long long)stamp.batch, r->last.index, r->last.count,
                         (unsigned long long)r->last.batch);
    r->inside = stamp.index + 1 < stamp.count;
    r->batches += !r->inside;
    r->last = stamp;
    return 0;
}

static int take_once(struct reader *r, const struct walrus_entry *entry, struct error *err)
{
    int rc = take_whole(r, entry, err);
    if (rc == 0 && r->last.batch != r->batches + r->inside)
        rc = error_set(err, -EBADMSG, "topic %s, sequence %llu: number %llu where %llu is due", r->topic,
                       (unsigned long long)entry->sequence, (unsigned long long)r->last.batch,
                       (unsigned long long)(r->batches + r->inside));
    return rc;
}

static int take_any(struct reader *r, const struct walrus_entry *entry, struct error *err)
{
    (void)r;
    (void)entry;
    (void)err;
    return 0;
}

static bool begins(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

static int verify_others(struct reader *all, uint64_t stamp_seed, struct error *err)
{
    struct walrus_topic_info info = {.size = sizeof info};
    int rc;
    while ((rc = walrus_next_topic(all->handle, &info)) == 1) {
        struct reader reader = {
            .handle = all->handle, .seed = stamp_seed, .out = all->out, .topic = info.name};
        bool whole = begins(info.name, WHOLE_TOPIC);
        bool once = begins(info.name, ONCE_TOPIC);
        all->out->topics++;
        rc = read_topic(&reader, info.name, whole ? take_whole : once ? take_once : take_any, err);
        if (rc != 0)
            return rc;
        if (reader.inside)
            return error_set(err, -EBADMSG, "topic %s ends inside batch %llu", info.name,
                             (unsigned long long)reader.last.batch);
    }
    return rc == 0 ? 0 : error_set(err, rc, "the catalogue cannot be read: %s", walrus_error(all->handle));
}

/* ------------------------------------------------------------------------------------- ledger */

static int load_ledger(const struct place *place, struct ledger_record **out, size_t *count,
                       struct error *err)
{
    struct stat info;
    int fd = open(place->ledger, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) != 0)
        return error_set(err, -errno, "%s: %s", place->ledger, strerror(errno));
    size_t bytes = (size_t)info.st_size;
    *out = malloc(bytes + 1);
    size_t used = 0;
    ssize_t got = 1;
    while (*out != NULL && used < bytes && got > 0) {
        got = read(fd, (char *)*out + used, bytes - used);
        used += got > 0 ? (size_t)got : 0;
    }
    close(fd);
    *count = used / sizeof **out;
    if (*out != NULL && used == bytes && bytes % sizeof **out == 0)
        return 0;
    free(*out);
    return error_set(err, -EIO, "%s cannot be read", place->ledger);
}

static int verify_honest(struct reader *all, uint32_t topic, const struct ledger_record *ledger, size_t count,
                         uint64_t seed, struct error *err)
{
    char name[32];
    honest_topic(topic, name);
    struct ledger_record *mine = malloc((count + 1) * sizeof *mine);
    if (mine == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    struct reader reader = {.handle = all->handle,
                            .seed = seed,
                            .records = mine,
                            .out = all->out,
                            .topic = name,
                            .own = topic < OWN_TOPICS};
    for (size_t i = 0; i < count; i++) {
        if (ledger[i].topic == topic && ledger[i].result == 0)
            mine[reader.count++] = ledger[i];
        all->out->refused += ledger[i].topic == topic && ledger[i].result != 0;
    }
    all->out->acknowledged += reader.count;
    int rc = read_topic(&reader, name, take_honest, err);
    if (rc == 0 && reader.next != reader.count)
        rc = error_set(err, -EBADMSG, "topic %s: batch %llu, acknowledged at sequence %llu, is lost", name,
                       (unsigned long long)mine[reader.next].batch,
                       (unsigned long long)mine[reader.next].first_sequence);
    free(mine);
    return rc;
}

int verify(const struct place *place, uint64_t seed, struct verified *out, struct error *err)
{
    struct ledger_record *ledger = NULL;
    size_t count = 0;
    char words[256] = "";
    struct reader all = {.out = out};
    *out = (struct verified){0};
    int rc = load_ledger(place, &ledger, &count, err);
    if (rc != 0)
        return rc;
    struct walrus_connect_options options = {.size = sizeof options,
                                             .socket_path = place->socket,
                                             .window_bytes = 4u << 20,
                                             .error = words,
                                             .error_size = sizeof words};
    rc = walrus_connect(&all.handle, &options);
    if (rc != 0) {
        error_set(err, rc, "reading back: %s", words);
        goto free_ledger;
    }
    for (uint32_t topic = 0; topic <= OWN_TOPICS && rc == 0; topic++)
        rc = verify_honest(&all, topic, ledger, count, seed, err);
    if (rc == 0)
        rc = verify_others(&all, seed, err);
    walrus_close(all.handle);
free_ledger:
    free(ledger);
    return rc;
}
