/* memory.c: the shared memory of a connection: filled before it is welcomed, given back after its end.
 *
 * It is allocated in full at connect, since a late page would be a SIGBUS. 1 GiB of it takes a quarter of a
 * second, and as long again at the end: the loop has no such time, so all but small ones are a worker's.
 *
 *               filled, or small
 *      FILLING -----------------> READY
 *         |                         |  the session ends, or the handshake does
 *         |  the handshake ends     |
 *         +-----------> DROPPING <--+
 *                          |  unmapped, closed: the quota is the user's again
 *                          v
 *                        freed
 *
 * Happy path
 *   1. memory_begin makes the two memfds and charges the account. Up to INLINE_BYTES it fills them itself.
 *   2. Else the handshake waits (HANDSHAKE_FILLS). The worker fills SLICE_BYTES at a time; between two slices
 *      the next one in the row has its turn, one of another user first.
 *   3. memory_map maps and seals them; session.c uses them.
 *   4. memory_drop unmaps and closes them, here or in the worker.
 *
 * Failure modes: no memory, no descriptors: the handshake is refused. No worker to be had: all is done here,
 * as slowly as it is.
 *
 * Invariants
 *   - a memory that the worker has (server->memory_working) is not touched here but for `handshake`.
 *   - the account is charged from memory_begin until the memory is really back. */
#include "session.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define INLINE_BYTES (UINT64_C(2) << 20)
#define SLICE_BYTES  (UINT64_C(4) << 20)
#define WORKER_NICE  19

enum memory_state { MEMORY_FILLING, MEMORY_READY, MEMORY_DROPPING };

enum { CLIENT_FILE, BROKER_FILE, FILES };

struct memory {
    struct server *server;
    struct account *account;
    struct handshake *handshake; /* FILLING: who waits for it; NULL: nobody any more */
    enum memory_state state;
    bool of_the_dead;
    int files[FILES]; /* -1: closed */
    uint64_t bytes[FILES];
    uint8_t *at[FILES]; /* NULL: not mapped */
    uint64_t filled;    /* of both, one behind the other */
    struct io_op op;
    TAILQ_ENTRY(memory) link; /* server->memories */
};

static uint64_t whole(const struct memory *memory)
{
    return memory->bytes[CLIENT_FILE] + memory->bytes[BROKER_FILE];
}

/* ------------------------------------------------------------------------------------- the work */

/* 0 or a negative errno. */
static int fill(struct memory *memory, uint64_t most)
{
    for (int i = 0; i < FILES && most > 0; i++) {
        uint64_t before = i == CLIENT_FILE ? 0 : memory->bytes[CLIENT_FILE];
        if (memory->filled >= before + memory->bytes[i])
            continue;
        uint64_t from = memory->filled - before;
        uint64_t part = min_u64(most, memory->bytes[i] - from);
        if (fallocate(memory->files[i], 0, (off_t)from, (off_t)part) != 0)
            return -errno;
        memory->filled += part;
        most -= part;
    }
    return 0;
}

static void give_back(struct memory *memory)
{
    if (memory->of_the_dead && memory->at[CLIENT_FILE] != NULL)
        (void)madvise(memory->at[CLIENT_FILE], memory->bytes[CLIENT_FILE], MADV_REMOVE);
    for (int i = 0; i < FILES; i++) {
        if (memory->at[i] != NULL)
            munmap(memory->at[i], memory->bytes[i]);
        if (memory->files[i] >= 0)
            close(memory->files[i]);
        memory->at[i] = NULL;
        memory->files[i] = -1;
    }
}

/* In the worker's thread. */
static int64_t perform(void *context, struct io_op *op)
{
    (void)context;
    struct memory *memory = op->owner;
    if (getpriority(PRIO_PROCESS, 0) != WORKER_NICE)
        setpriority(PRIO_PROCESS, 0, WORKER_NICE); /* of this thread: the loop goes first */
    if (memory->state == MEMORY_FILLING)
        return fill(memory, SLICE_BYTES);
    give_back(memory);
    return 0;
}

/* ------------------------------------------------------------------------------------- the row */

static void memory_free(struct memory *memory)
{
    struct server *server = memory->server;
    server->values.session_shared_bytes -= whole(memory);
    account_release(server, memory->account, whole(memory));
    server->stat_dirty = true;
    free(memory);
}

/* The first of another user than the last one's, else the first. */
static struct memory *next_in_row(const struct server *server)
{
    struct memory *memory;
    TAILQ_FOREACH(memory, &server->memories, link)
    if (memory->account->uid != server->memory_uid)
        return memory;
    return TAILQ_FIRST(&server->memories);
}

static void go_on(struct server *server)
{
    struct memory *memory = next_in_row(server);
    if (memory == NULL || server->memory_working != NULL)
        return;
    TAILQ_REMOVE(&server->memories, memory, link);
    server->memory_working = memory;
    server->memory_uid = memory->account->uid;
    memory->op = (struct io_op){.owner = memory};
    struct op_queue ops = {0};
    op_queue_push(&ops, &memory->op);
    worker_submit(&server->memory_worker, &ops);
}

static void worked(struct memory *memory)
{
    struct server *server = memory->server;
    struct handshake *handshake = memory->handshake;
    if (memory->state == MEMORY_DROPPING) {
        memory_free(memory);
    } else if (handshake == NULL) {
        memory->state = MEMORY_DROPPING;
        TAILQ_INSERT_TAIL(&server->memories, memory, link);
    } else if (memory->op.result == 0 && memory->filled < whole(memory)) {
        TAILQ_INSERT_TAIL(&server->memories, memory, link);
    } else {
        memory->state = MEMORY_READY;
        memory->handshake = NULL;
        handshake_filled(handshake, (int)memory->op.result);
    }
}

static void worker_ready(struct watch *watch, uint32_t events)
{
    (void)events;
    struct server *server = container_of(watch, struct server, memory_watch);
    struct op_queue done = {0};
    event_clear(watch->fd);
    worker_reap(&server->memory_worker, &done);
    struct io_op *op = op_queue_pop(&done);
    if (op != NULL) {
        check_bug(op->owner == server->memory_working);
        server->memory_working = NULL;
        worked(op->owner);
    }
    go_on(server);
}

/* False: there is no worker to be had. */
static bool have_worker(struct server *server)
{
    if (server->memory_watch.fd >= 0)
        return true;
    server->memory_watch =
        (struct watch){.ready = worker_ready, .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (server->memory_watch.fd < 0)
        return false;
    if (server_watch(server, &server->memory_watch, EPOLLIN) != 0)
        goto close_event;
    if (worker_start(&server->memory_worker, "walrus-memory", server->memory_watch.fd, perform, NULL) == 0)
        return true;
    server_unwatch(server, &server->memory_watch);
close_event:
    close(server->memory_watch.fd);
    server->memory_watch.fd = -1;
    return false;
}

void memory_start(struct server *server)
{
    TAILQ_INIT(&server->memories);
    server->memory_watch.fd = -1;
}

/* Every connection has ended: what is left is on its way back. */
void memory_stop(struct server *server)
{
    if (server->memory_watch.fd < 0)
        return;
    while (server->memory_working != NULL) {
        poll(&(struct pollfd){.fd = server->memory_watch.fd, .events = POLLIN}, 1, -1);
        worker_ready(&server->memory_watch, 0);
    }
    worker_stop(&server->memory_worker);
    server_unwatch(server, &server->memory_watch);
    close(server->memory_watch.fd);
}

/* ------------------------------------------------------------------------------------- one of them */

int memory_begin(struct handshake *handshake)
{
    struct server *server = handshake->server;
    struct memory *memory = calloc(1, sizeof *memory);
    if (memory == NULL)
        return -ENOMEM;
    *memory =
        (struct memory){.server = server,
                        .account = handshake->account,
                        .handshake = handshake,
                        .files = {-1, -1},
                        .bytes = {handshake->sizes.client_file_bytes, handshake->sizes.broker_file_bytes}};
    int rc = shared_file("walrus-client", 0, &memory->files[CLIENT_FILE]);
    if (rc == 0)
        rc = shared_file("walrus-broker", 0, &memory->files[BROKER_FILE]);
    bool here = whole(memory) <= INLINE_BYTES || !have_worker(server);
    if (rc == 0 && here)
        rc = fill(memory, whole(memory));
    if (rc != 0) {
        give_back(memory);
        free(memory);
        return rc;
    }
    handshake->account->shared += whole(memory);
    server->values.session_shared_bytes += whole(memory);
    handshake->memory = memory;
    if (here) {
        memory->state = MEMORY_READY;
        memory->handshake = NULL;
        return 0;
    }
    TAILQ_INSERT_TAIL(&server->memories, memory, link);
    go_on(server);
    return 1;
}

int memory_map(struct memory *memory, uint8_t **client, uint8_t **broker)
{
    static const int extra_seals[FILES] = {0, F_SEAL_FUTURE_WRITE};
    for (int i = 0; i < FILES; i++) {
        int rc = shared_map(memory->files[i], memory->bytes[i], extra_seals[i], &memory->at[i]);
        if (rc != 0)
            return rc; /* memory_drop unmaps the other one */
    }
    *client = memory->at[CLIENT_FILE];
    *broker = memory->at[BROKER_FILE];
    return 0;
}

void memory_files(const struct memory *memory, int files[2])
{
    memcpy(files, memory->files, sizeof memory->files);
}

void memory_files_close(struct memory *memory)
{
    for (int i = 0; i < FILES; i++) {
        close(memory->files[i]);
        memory->files[i] = -1;
    }
}

/* A child of it may have kept the files, and the quota comes back: let what it has of the client file be a
 * hole. Never while the client lives: it may have hung up to connect once more, and to send again what is in
 * its arena. (The broker file is sealed against holes as against writing.) */
void memory_of_the_dead(struct memory *memory)
{
    memory->of_the_dead = true;
}

void memory_drop(struct memory *memory)
{
    struct server *server = memory->server;
    if (memory->state == MEMORY_FILLING) {
        memory->handshake = NULL;
        if (memory == server->memory_working)
            return; /* when its slice is done */
        TAILQ_REMOVE(&server->memories, memory, link);
    }
    memory->state = MEMORY_DROPPING;
    if (whole(memory) <= INLINE_BYTES || !have_worker(server)) {
        give_back(memory);
        memory_free(memory);
        return;
    }
    TAILQ_INSERT_TAIL(&server->memories, memory, link);
    go_on(server);
}
