/* broker.h: a walrusd of our own, on a fresh store: started, waited for, stopped, killed, looked at. */
#ifndef WALRUS_BENCH_BROKER_H
#define WALRUS_BENCH_BROKER_H

#include <signal.h>
#include <sys/types.h>

#include "../shared/base.h"
#include "../shared/stat_page.h"

struct broker_options {
    const char *program; /* path of walrusd; NULL: next to this program, else from PATH */
    const char *data_folder;
    const char *socket_path;
    const char *durability;
    const char *io;       /* NULL: the broker's default */
    const char *log_path; /* its stderr goes there */
    const volatile sig_atomic_t *interrupted;
};

struct broker {
    pid_t pid;        /* 0: not running */
    int64_t ready_ns; /* from before exec to its line "ready" */
    char socket_path[108];
    char log_path[4096];
};

/* Looks for walrusd: beside this program, in the build tree, in PATH. -ENOENT. */
int broker_find(char *path, size_t size, struct error *err) must_check;
/* Starts it and waits (at most 60 s) until it says that it is ready. On error its last words are in err. */
int broker_start(struct broker *broker, const struct broker_options *options, struct error *err) must_check;
/* SIGTERM, and waits (at most 60 s). Another exit status than 0 is an error. */
int broker_stop(struct broker *broker, struct error *err) must_check;
/* SIGKILL. */
void broker_kill(struct broker *broker);
/* 0 if it still runs; -ESRCH and its last words if it has ended. */
int broker_check(struct broker *broker, struct error *err) must_check;
/* Waits until it writes nothing any more (it prepares space ahead), `limit_ns` at most. */
void broker_settle(const struct broker *broker, int64_t limit_ns);
/* Bytes of files in a store folder that are prepared and not used yet: large, and still blank where a
 * header would be. */
uint64_t broker_spare_bytes(const char *data_folder);
/* The counters file beside the socket. -ENOENT, -EPROTO, -EAGAIN: there is none that can be read. */
int broker_counters(const char *socket_path, struct stat_snapshot *snapshot) must_check;

#endif
