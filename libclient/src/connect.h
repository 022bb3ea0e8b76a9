/* connect.h: one attempt at a connection. connect.c takes its steps, for walrus_connect one after the other,
 * for reconnect.c as far as each goes without waiting. */
#ifndef WALRUS_CLIENT_CONNECT_H
#define WALRUS_CLIENT_CONNECT_H

#include "handle.h"

#include <sys/un.h>

/* What is acquired lies here until the handle adopts it. */
struct attempt {
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    struct hello hello;
    bool waits;       /* may wait, until `deadline` */
    int64_t deadline; /* CLOCK_MONOTONIC */
    int socket;
    int fds[FD_COUNT];
    struct welcome welcome; /* checked */
    struct layout_sizes sizes;
    void *client_map, *broker_map, *watermark_map;
    size_t watermark_map_bytes;
    struct error *err;
};

/* Nothing is acquired yet. */
void walrus__attempt_begin(struct attempt *attempt);
/* Connects the socket and sends the hello. */
int walrus__attempt_call(struct attempt *attempt) must_check;
/* Takes the welcome and checks it. -EAGAIN: it has not come yet (only if it may not wait). `refused` says
 * that the code is the broker's own. */
int walrus__attempt_welcome(struct attempt *attempt, bool *refused) must_check;
/* Maps the files and checks the first page. */
int walrus__attempt_map(struct attempt *attempt) must_check;
/* Gives back everything that is still its own. */
void walrus__attempt_release(struct attempt *attempt);
/* Everything is the handle's from here on, which has nothing (left) of a connection; rings begin anew. */
void walrus__adopt(struct walrus *handle, struct attempt *attempt);

/* Both ends of a connection learn that it is over. Closes *fd and sets it to -1. */
void walrus__hang_up(int *fd);
void walrus__close_fd(int *fd);

#endif
