/* engine_rocksdb.c: RocksDB through its C interface.
 *
 * A batch is a WriteBatch with one key per entry (topic and sequence, big endian: a topic's entries lie in
 * order), written with sync. Threads are grouped by RocksDB itself: one of them writes and flushes for those
 * that wait. The rest is its defaults, but no compression: the payload is random. */
#include <rocksdb/c.h>
#include <stdio.h>

#include "engine.h"

#define KEY_BYTES 12u

struct store {
    rocksdb_t *db;
    rocksdb_options_t *options;
    bool sync;
    char version[32];
};

struct worker {
    struct store *store;
    rocksdb_writeoptions_t *how;
    rocksdb_writebatch_t *batch;
};

/* RocksDB's words are malloc'ed. */
static int failed(struct error *err, const char *what, char *words)
{
    int code = error_set(err, -EIO, "rocksdb: %s: %s", what, words);
    rocksdb_free(words);
    return code;
}

static void make_key(uint8_t key[KEY_BYTES], uint32_t topic, uint64_t sequence)
{
    for (int i = 0; i < 4; i++)
        key[i] = (uint8_t)(topic >> (24 - 8 * i));
    for (int i = 0; i < 8; i++)
        key[4 + i] = (uint8_t)(sequence >> (56 - 8 * i));
}

static void rocks_close(void *arg)
{
    struct store *store = arg;
    if (store->db != NULL)
        rocksdb_close(store->db);
    rocksdb_options_destroy(store->options);
    free(store);
}

static int rocks_open(const struct engine_options *options, void **out, struct error *err)
{
    char *words = NULL;
    struct store *store = calloc(1, sizeof *store);
    if (store == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    store->sync = options->sync;
    store->options = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(store->options, 1);
    rocksdb_options_set_compression(store->options, rocksdb_no_compression);
    store->db = rocksdb_open(store->options, "rocksdb", &words);
    if (words != NULL) {
        rocks_close(store);
        return failed(err, "opening", words);
    }
    *out = store;
    return 0;
}

static int rocks_reopen(void **store, const struct engine_options *options, struct error *err)
{
    rocks_close(*store);
    *store = NULL;
    return rocks_open(options, store, err);
}

static int rocks_worker_open(void *arg, void **out, struct error *err)
{
    struct worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    worker->store = arg;
    worker->how = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(worker->how, worker->store->sync);
    worker->batch = rocksdb_writebatch_create();
    *out = worker;
    return 0;
}

static int rocks_send(void *arg, const struct engine_batch *batch, struct error *err)
{
    struct worker *worker = arg;
    char *words = NULL;
    uint8_t key[KEY_BYTES];
    rocksdb_writebatch_clear(worker->batch);
    for (uint32_t i = 0; i < batch->entries; i++) {
        make_key(key, batch->topic, batch->first + i);
        rocksdb_writebatch_put(worker->batch, (const char *)key, KEY_BYTES,
                               (const char *)batch->data + i * batch->size, batch->size);
    }
    rocksdb_write(worker->store->db, worker->how, worker->batch, &words);
    return words != NULL ? failed(err, "writing", words) : 0;
}

static void rocks_worker_close(void *arg)
{
    struct worker *worker = arg;
    rocksdb_writebatch_destroy(worker->batch);
    rocksdb_writeoptions_destroy(worker->how);
    free(worker);
}

/* Entries are numbered without holes: the last one of the topic tells how many there are. */
static int rocks_count(void *arg, uint32_t topic, uint64_t *entries, struct error *err)
{
    struct store *store = arg;
    char *words = NULL;
    uint8_t beyond[KEY_BYTES];
    size_t length = 0;
    rocksdb_readoptions_t *how = rocksdb_readoptions_create();
    rocksdb_iterator_t *iterator = rocksdb_create_iterator(store->db, how);
    *entries = 0;
    make_key(beyond, topic, UINT64_MAX);
    rocksdb_iter_seek_for_prev(iterator, (const char *)beyond, KEY_BYTES);
    if (rocksdb_iter_valid(iterator)) {
        const uint8_t *key = (const uint8_t *)rocksdb_iter_key(iterator, &length);
        uint64_t last = 0;
        for (int i = 0; length == KEY_BYTES && i < 8; i++)
            last = last << 8 | key[4 + i];
        if (length == KEY_BYTES && memcmp(key, beyond, 4) == 0)
            *entries = last + 1;
    }
    rocksdb_iter_get_error(iterator, &words);
    rocksdb_iter_destroy(iterator);
    rocksdb_readoptions_destroy(how);
    return words != NULL ? failed(err, "reading", words) : 0;
}

static const char *rocks_version(void *arg)
{
    struct store *store = arg;
    snprintf(store->version, sizeof store->version, "RocksDB %s", WALRUS_ROCKSDB_VERSION);
    return store->version;
}

const struct engine engine_rocksdb = {
    .name = "rocksdb",
    .how = "WriteBatch, sync; a thread per batch in flight; no compression, else defaults",
    .open = rocks_open,
    .worker_open = rocks_worker_open,
    .send = rocks_send,
    .worker_close = rocks_worker_close,
    .count = rocks_count,
    .reopen = rocks_reopen,
    .close = rocks_close,
    .version = rocks_version,
};
