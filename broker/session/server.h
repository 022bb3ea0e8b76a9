/* server.h: the broker's side of all connections, as the program and the tests see it. One thread, no
 * globals.
 *
 * Happy path
 *   1. The program makes an epoll fd, gives it to io_real_create as watch_fd, starts the log, and calls
 *      server_create.
 *   2. server_turn() over and over: one turn of the loop (server.c), which sleeps when there is nothing to
 *      do.
 *   3. server_stop(): nothing new is taken, everything published until then is committed and answered; then
 *      log_stop().
 *   4. server_destroy(): whatever came since is answered -ESHUTDOWN, connections and memory go.
 *
 * Failure: server_turn and server_stop return -EIO once log_failed(); the program ends the process with
 * EXIT_FLUSH_FAILED and nothing is answered any more (G10). */
#ifndef WALRUS_SERVER_H
#define WALRUS_SERVER_H

#include <sys/epoll.h>

#include "../../shared/stat_page.h"
#include "../log/log.h"

struct server;

/* Something with a file descriptor in the server's epoll set. */
struct watch {
    void (*ready)(struct watch *watch, uint32_t events);
    int fd;
};

#define SPIN_ADAPTIVE INT64_C(-1)

/* The memory that all clients may read: who made it keeps it until log and server are gone. */
struct watermarks {
    struct watermark *slots; /* zeroed */
    uint32_t count;
    uint64_t bytes; /* mapped */
    int fd;
};

#define WATERMARK_SLOTS 65536u /* as many as there are topics by default */

/* Errors: as the system has them (-EMFILE, -ENOMEM, -ENOSPC). */
int watermarks_create(uint32_t slots, struct watermarks *out, struct error *err) must_check;
void watermarks_destroy(struct watermarks *watermarks);

struct server_options {
    struct io *io; /* borrowed, as are all below */
    struct log *log;
    int epoll_fd;                    /* the one that io watches */
    int listen_fd;                   /* listening, non-blocking; closed by the server when it stops */
    uint8_t default_level;           /* of topics created without one: told to clients */
    int64_t spin_ns;                 /* look at the rings so long before sleeping; 0 = never, SPIN_ADAPTIVE */
    int64_t handshake_ns;            /* a connection must have said hello by then; 0 = 5 s */
    int64_t attach_ns;               /* a producer's former holder must be decided by then; 0 = 30 s */
    int64_t idle_stream_ns;          /* a stream without a chunk for so long is rolled back; 0 = 30 s */
    uint32_t max_connections;        /* 0 = 4,096, or fewer if there are not that many file descriptors */
    uint32_t max_connections_of_uid; /* 0 = three quarters of max_connections */
    uint64_t max_shared;        /* bytes of arenas, windows and rings; 0 = half of the machine's memory */
    uint64_t max_shared_of_uid; /* 0 = half of max_shared */
    uint64_t max_queue;         /* entries in flight: of all rings together; 0 = 1,048,576 */
    uint64_t max_queue_of_uid;  /* 0 = three quarters of max_queue */
    uint64_t max_batch_bytes;   /* as the log has it, told to clients; 0 = MAX_BATCH_BYTES */
    const struct watermarks *watermarks; /* as the log has them; NULL: the server makes a few, all zero */
    struct stat_page *stat;              /* may be NULL; identity already written */
    void (*say)(void *context, enum say priority, const char *line);
    void *context;
};

int server_create(const struct server_options *options, struct server **out, struct error *err) must_check;

/* One turn; sleeps first if there is nothing to do. 0; -EIO the log has failed. */
int server_turn(struct server *server) must_check;

/* Takes no connection and no new work any more; turns until everything that had been published is answered,
 * follows are answered -ESHUTDOWN and nothing of any session is in the log, but no longer than patience_ns.
 * 0; -EIO the log has failed; -ETIMEDOUT something is still in the log (the caller gives up as if it had
 * failed, without its exit code). */
int server_stop(struct server *server, int64_t patience_ns) must_check;

/* After server_stop returned 0. */
void server_destroy(struct server *server);

/* Adds a descriptor of the caller's to the loop, or takes it out again. */
int server_watch(struct server *server, struct watch *watch, uint32_t events) must_check;
void server_unwatch(struct server *server, struct watch *watch);

/* Counters, for tests. */
const struct stat_values *server_values(const struct server *server);

/* Makes `<socket path>.stat` in full and maps it; `mode` as for open(). Errors: as the system has them. */
int stat_file_create(const char *path, uint32_t mode, struct stat_page **out, struct error *err) must_check;
void stat_file_close(struct stat_page *page);

#endif
