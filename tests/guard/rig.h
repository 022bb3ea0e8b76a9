/* rig.h: client and broker in one process and one thread, taking turns as the caller says, so that what each
 * of them costs can be counted and comes out the same every time. Library, sessions, log and shared memory
 * are the real ones. */
#ifndef WALRUS_GUARD_RIG_H
#define WALRUS_GUARD_RIG_H

#include "../../broker/io/real.h"
#include "../../broker/session/server.h"
#include "../../libclient/include/walrus.h"

#define RIG_TOPICS 64u

/* A plain program: what goes wrong ends it. */
#define need(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                  \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

struct rig {
    struct watch connected; /* first; readable once the client's blocking calls are over */
    bool is_connected;
    char folder[64];
    char socket_path[96];
    int epoll_fd;
    struct io *io;
    struct log *log;
    struct watermarks watermarks;
    struct server *server;
    walrus *handle;
    walrus_topic *topics[RIG_TOPICS];
    uint32_t topic_count;
};

/* A broker on an empty store, one client, `topics` topics of that level. `uring`: the real back end and the
 * real clock. Else every op is done at once, in the caller's thread, and each look at the clock moves it by
 * the same step. */
void rig_start(struct rig *rig, uint32_t topics, uint8_t level, bool uring);
void rig_stop(struct rig *rig);
/* Until nothing is left to do and the connection is parked: every count begins from the same state. */
void rig_settle(struct rig *rig);
/* The client has a completion that it has not taken. */
bool rig_answered(const struct rig *rig);

/* Since the program began, whoever did it: calls of malloc and its kin; of clock_gettime and of the broker's
 * io, now and wall; bytes given to memcpy and memmove, where that is a call, and to the checksum. */
struct rig_calls {
    uint64_t allocations, clock, copied, summed;
};
extern struct rig_calls rig_calls;
/* Instructions are being counted. Those of a checksum are not: how it is made depends on the processor. */
extern bool rig_collecting;

#endif
