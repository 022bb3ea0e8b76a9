/* engine_redis.c: a Redis server of our own with an append-only file that is flushed before each answer.
 *
 * Happy path: start it on a UNIX socket in the engine's folder (no TCP port, no snapshots, no rewrites),
 * wait for its PONG. A batch is one RPUSH with all entries as values: it is applied whole. Workers keep
 * their batches in flight by pipelining. Redis flushes once for all commands of one turn of its loop.
 *
 * Ways out: SIGTERM and wait, SIGKILL after a while; the kernel kills it with this process in any case
 * (PR_SET_PDEATHSIG), and nothing is installed or enabled as a service: Debian's package redis-tools holds
 * the server's program under the name redis-check-rdb, which goes by the name that it is called by. */
#include <fcntl.h>
#include <hiredis.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../phases.h"
#include "engine.h"

#define READY_NS    INT64_C(10000000000)
#define STOP_NS     INT64_C(10000000000)
#define LOOK_NS     5000000
#define VALUES_MOST 2000u
#define SOCKET      "redis.sock" /* this process is in the engine's folder: a socket's path must be short */

struct store {
    pid_t pid;
    char version[32];
    redisContext *context;
};

struct worker {
    redisContext *context;
    const char *arguments[VALUES_MOST + 2];
    size_t lengths[VALUES_MOST + 2];
};

static int failed(struct error *err, const char *what, const redisContext *context)
{
    return error_set(err, -EIO, "redis: %s: %s", what,
                     context != NULL && context->err != 0 ? context->errstr
                                                          : "an error reply, or out of memory");
}

__attribute__((noreturn)) static void be_server(const struct engine_options *options)
{
    static const char *const programs[] = {"/usr/bin/redis-server", "/usr/local/bin/redis-server",
                                           "/usr/bin/redis-check-rdb"};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const char *words[] = {"redis-server",
                           "--port",
                           "0",
                           "--unixsocket",
                           SOCKET,
                           "--unixsocketperm",
                           "700",
                           "--dir",
                           ".",
                           "--logfile",
                           "redis.log",
                           "--daemonize",
                           "no",
                           "--save",
                           "",
                           "--appendonly",
                           "yes",
                           "--appendfsync",
                           options->sync ? "always" : "no",
                           "--auto-aof-rewrite-percentage",
                           "0",
                           NULL};
    union {
        const char *const *constant;
        char *const *plain;
    } argv = {.constant = words};
    int none = open("/dev/null", O_RDWR);
    if (none < 0 || dup2(none, STDIN_FILENO) < 0 || dup2(none, STDOUT_FILENO) < 0)
        _exit(126);
    for (size_t i = 0; i < array_count(programs); i++)
        execv(programs[i], argv.plain);
    _exit(127);
}

static void redis_close(void *arg)
{
    struct store *store = arg;
    if (store->context != NULL)
        redisFree(store->context);
    if (store->pid > 0) {
        int64_t limit = now_ns() + STOP_NS;
        kill(store->pid, SIGTERM);
        while (waitpid(store->pid, NULL, WNOHANG) == 0) {
            if (now_ns() > limit)
                kill(store->pid, SIGKILL);
            pause_ns(LOOK_NS);
        }
    }
    free(store);
}

static int await_pong(struct store *store, struct error *err)
{
    for (int64_t limit = now_ns() + READY_NS; now_ns() < limit; pause_ns(LOOK_NS)) {
        int status;
        if (waitpid(store->pid, &status, WNOHANG) == store->pid) {
            store->pid = 0;
            return error_set(err, WIFEXITED(status) && WEXITSTATUS(status) == 127 ? -EOPNOTSUPP : -EIO,
                             "redis: there is no redis-server here, or it ended at once");
        }
        redisContext *context = redisConnectUnix(SOCKET);
        redisReply *reply = context != NULL && context->err == 0 ? redisCommand(context, "PING") : NULL;
        bool pong = reply != NULL && reply->type == REDIS_REPLY_STATUS;
        if (reply != NULL)
            freeReplyObject(reply);
        if (pong) {
            store->context = context;
            return 0;
        }
        if (context != NULL)
            redisFree(context);
    }
    return error_set(err, -ETIMEDOUT, "redis: no answer after 10 s");
}

static int redis_open(const struct engine_options *options, void **out, struct error *err)
{
    struct store *store = calloc(1, sizeof *store);
    if (store == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    store->pid = fork();
    if (store->pid == 0)
        be_server(options);
    int code = store->pid < 0 ? error_set(err, -errno, "fork: %s", strerror(errno)) : await_pong(store, err);
    if (code < 0)
        redis_close(store);
    else
        *out = store;
    return code;
}

static int redis_worker_open(void *arg, void **out, struct error *err)
{
    (void)arg;
    struct worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    worker->context = redisConnectUnix(SOCKET);
    if (worker->context == NULL || worker->context->err != 0) {
        int code = failed(err, "connecting", worker->context);
        if (worker->context != NULL)
            redisFree(worker->context);
        free(worker);
        return code;
    }
    *out = worker;
    return 0;
}

static int redis_send(void *arg, const struct engine_batch *batch, struct error *err)
{
    struct worker *worker = arg;
    char key[32];
    int done = 0;
    check_bug(batch->entries <= VALUES_MOST);
    snprintf(key, sizeof key, "topic-%u", batch->topic);
    worker->arguments[0] = "RPUSH";
    worker->lengths[0] = 5;
    worker->arguments[1] = key;
    worker->lengths[1] = strlen(key);
    for (uint32_t i = 0; i < batch->entries; i++) {
        worker->arguments[2 + i] = (const char *)batch->data + i * batch->size;
        worker->lengths[2 + i] = batch->size;
    }
    int count = (int)batch->entries + 2;
    if (redisAppendCommandArgv(worker->context, count, worker->arguments, worker->lengths) != REDIS_OK)
        return failed(err, "sending", worker->context);
    while (done == 0)
        if (redisBufferWrite(worker->context, &done) != REDIS_OK)
            return failed(err, "sending", worker->context);
    return 0;
}

static int redis_receive(void *arg, struct error *err)
{
    struct worker *worker = arg;
    void *answer = NULL;
    if (redisGetReply(worker->context, &answer) != REDIS_OK)
        return failed(err, "receiving", worker->context);
    const redisReply *reply = answer;
    int code = reply->type == REDIS_REPLY_INTEGER ? 0 : failed(err, "writing", worker->context);
    freeReplyObject(answer);
    return code;
}

static void redis_worker_close(void *arg)
{
    struct worker *worker = arg;
    redisFree(worker->context);
    free(worker);
}

static int redis_count(void *arg, uint32_t topic, uint64_t *entries, struct error *err)
{
    struct store *store = arg;
    redisReply *reply = redisCommand(store->context, "LLEN topic-%u", topic);
    int code = 0;
    if (reply != NULL && reply->type == REDIS_REPLY_INTEGER)
        *entries = (uint64_t)reply->integer;
    else
        code = failed(err, "counting", store->context);
    if (reply != NULL)
        freeReplyObject(reply);
    return code;
}

static const char *redis_version(void *arg)
{
    struct store *store = arg;
    redisReply *reply = redisCommand(store->context, "INFO server");
    const char *at = reply != NULL && reply->str != NULL ? strstr(reply->str, "redis_version:") : NULL;
    snprintf(store->version, sizeof store->version, "Redis %.*s",
             at != NULL ? (int)strcspn(at + 14, "\r\n") : 0, at != NULL ? at + 14 : "");
    if (reply != NULL)
        freeReplyObject(reply);
    return store->version;
}

const struct engine engine_redis = {
    .name = "redis",
    .how = "one RPUSH per batch, AOF flushed always, UNIX socket; a connection per producer, pipelined",
    .pipelines = true,
    .open = redis_open,
    .worker_open = redis_worker_open,
    .send = redis_send,
    .receive = redis_receive,
    .worker_close = redis_worker_close,
    .count = redis_count,
    .close = redis_close,
    .version = redis_version,
};
