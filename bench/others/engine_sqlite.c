/* engine_sqlite.c: SQLite with WAL and synchronous=FULL.
 *
 * A batch is a transaction of inserts by one prepared statement; the primary key is made of topic and
 * sequence, so that a topic's entries lie in order and no second index is needed. SQLite has one writer at a
 * time: the workers take turns at a lock of this program, which is kinder to it than its own (that polls),
 * each with a connection of its own. The rest is its defaults, checkpoints of the WAL included. */
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>

#include "engine.h"

#define SEQUENCE_BITS 40u

struct store {
    pthread_mutex_t turn;
    char version[32];
    sqlite3 *db; /* for all but the workers */
    bool sync;
};

struct worker {
    struct store *store;
    sqlite3 *db;
    sqlite3_stmt *begin, *insert, *commit;
};

static int failed(struct error *err, const char *what, sqlite3 *db)
{
    return error_set(err, -EIO, "sqlite: %s: %s", what, db != NULL ? sqlite3_errmsg(db) : "out of memory");
}

static int connect_to(const struct store *store, sqlite3 **db, struct error *err)
{
    if (sqlite3_open("entries.db", db) != SQLITE_OK)
        return failed(err, "opening", *db);
    const char *pragmas = store->sync ? "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
                                      : "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;";
    if (sqlite3_busy_timeout(*db, 60000) != SQLITE_OK ||
        sqlite3_exec(*db, pragmas, NULL, NULL, NULL) != SQLITE_OK)
        return failed(err, "setting it up", *db);
    return 0;
}

static void lite_close(void *arg)
{
    struct store *store = arg;
    sqlite3_close(store->db);
    pthread_mutex_destroy(&store->turn);
    free(store);
}

static int lite_open(const struct engine_options *options, void **out, struct error *err)
{
    struct store *store = calloc(1, sizeof *store);
    if (store == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    pthread_mutex_init(&store->turn, NULL);
    store->sync = options->sync;
    int code = connect_to(store, &store->db, err);
    if (code == 0 &&
        sqlite3_exec(store->db, "CREATE TABLE IF NOT EXISTS entries(id INTEGER PRIMARY KEY, data BLOB)", NULL,
                     NULL, NULL) != SQLITE_OK)
        code = failed(err, "making the table", store->db);
    if (code < 0)
        lite_close(store);
    else
        *out = store;
    return code;
}

static int lite_reopen(void **store, const struct engine_options *options, struct error *err)
{
    lite_close(*store);
    *store = NULL;
    return lite_open(options, store, err);
}

static void lite_worker_close(void *arg)
{
    struct worker *worker = arg;
    sqlite3_finalize(worker->begin);
    sqlite3_finalize(worker->insert);
    sqlite3_finalize(worker->commit);
    sqlite3_close(worker->db);
    free(worker);
}

static int lite_worker_open(void *arg, void **out, struct error *err)
{
    struct worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    worker->store = arg;
    int code = connect_to(worker->store, &worker->db, err);
    if (code == 0 &&
        (sqlite3_prepare_v2(worker->db, "BEGIN IMMEDIATE", -1, &worker->begin, NULL) != SQLITE_OK ||
         sqlite3_prepare_v2(worker->db, "INSERT INTO entries VALUES(?, ?)", -1, &worker->insert, NULL) !=
             SQLITE_OK ||
         sqlite3_prepare_v2(worker->db, "COMMIT", -1, &worker->commit, NULL) != SQLITE_OK))
        code = failed(err, "preparing statements", worker->db);
    if (code < 0)
        lite_worker_close(worker);
    else
        *out = worker;
    return code;
}

static int step(sqlite3_stmt *statement)
{
    int code = sqlite3_step(statement);
    sqlite3_reset(statement);
    return code == SQLITE_DONE ? 0 : -EIO;
}

static int lite_send(void *arg, const struct engine_batch *batch, struct error *err)
{
    struct worker *worker = arg;
    pthread_mutex_lock(&worker->store->turn);
    int code = step(worker->begin);
    for (uint32_t i = 0; i < batch->entries && code == 0; i++) {
        sqlite3_int64 id = (sqlite3_int64)((uint64_t)batch->topic << SEQUENCE_BITS | (batch->first + i));
        if (sqlite3_bind_int64(worker->insert, 1, id) != SQLITE_OK ||
            sqlite3_bind_blob64(worker->insert, 2, batch->data + i * batch->size, batch->size,
                                SQLITE_STATIC) != SQLITE_OK)
            code = -EIO;
        else
            code = step(worker->insert);
    }
    if (code == 0)
        code = step(worker->commit);
    pthread_mutex_unlock(&worker->store->turn);
    return code < 0 ? failed(err, "writing", worker->db) : 0;
}

static int lite_count(void *arg, uint32_t topic, uint64_t *entries, struct error *err)
{
    struct store *store = arg;
    sqlite3_stmt *query = NULL;
    int code = 0;
    if (sqlite3_prepare_v2(store->db, "SELECT count(*) FROM entries WHERE id >= ? AND id < ?", -1, &query,
                           NULL) != SQLITE_OK ||
        sqlite3_bind_int64(query, 1, (sqlite3_int64)((uint64_t)topic << SEQUENCE_BITS)) != SQLITE_OK ||
        sqlite3_bind_int64(query, 2, (sqlite3_int64)(((uint64_t)topic + 1) << SEQUENCE_BITS)) != SQLITE_OK ||
        sqlite3_step(query) != SQLITE_ROW)
        code = failed(err, "counting", store->db);
    else
        *entries = (uint64_t)sqlite3_column_int64(query, 0);
    sqlite3_finalize(query);
    return code;
}

static const char *lite_version(void *arg)
{
    struct store *store = arg;
    snprintf(store->version, sizeof store->version, "SQLite %s", sqlite3_libversion());
    return store->version;
}

const struct engine engine_sqlite = {
    .name = "sqlite",
    .how = "a transaction per batch, WAL, synchronous=FULL; a thread and connection per batch in flight",
    .open = lite_open,
    .worker_open = lite_worker_open,
    .send = lite_send,
    .worker_close = lite_worker_close,
    .count = lite_count,
    .reopen = lite_reopen,
    .close = lite_close,
    .version = lite_version,
};
