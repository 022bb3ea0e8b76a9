/* harness.h: a server over the fake log, real sockets and memfds, and clients that do exactly what a test
 * says, right or wrong, all in one process. */
#ifndef WALRUS_SESSION_HARNESS_H
#define WALRUS_SESSION_HARNESS_H

#include <criterion/criterion.h>
#include <pthread.h>

#include "../../broker/session/session.h"
#include "fake_log.h"

struct rig {
    char folder[64];
    char socket_path[96];
    struct io *io;
    struct log log;
    struct server *server;
    int epoll_fd;
    /* rig_run: the loop in a thread of its own */
    pthread_t thread;
    struct watch stop;
    bool running;
    bool stop_asked;
    int turn_result;
};

/* With `options` NULL: defaults. backend 0 = pwrite. The loop does not sleep (rig->log.deadline = 0) until
 * the test says so. */
void rig_start(struct rig *rig, const struct server_options *options, int backend);
void rig_stop(struct rig *rig);
void rig_turn(struct rig *rig, int turns);
void rig_run(struct rig *rig);  /* from now on the loop runs, and sleeps, in a thread */
void rig_halt(struct rig *rig); /* until here */
/* The same with the loop in the test's own thread: turn until stop_asked, which a write to stop.fd brings
 * about. */
void rig_watch_stop(struct rig *rig);
void rig_unwatch_stop(struct rig *rig);
int open_descriptors(void);

/* What the library would be. */
struct client {
    int socket, files[2], doorbell, signal, watermarks;
    struct welcome welcome;
    struct layout_sizes sizes;
    struct client_words *words;
    uint8_t *arena;
    void *broker_mapping; /* read-only, as the next two see it */
    const struct broker_words *broker;
    const uint8_t *window;
    struct ring sq, cq;
};

struct hello hello_good(void);
int client_dial(const struct rig *rig); /* connected socket, nothing said */
/* The two halves of the next one: says hello without turning; takes the welcome if it has come (then *status
 * is its status, and with 0 the files are mapped). */
void client_say_hello(const struct rig *rig, struct client *client, const struct hello *hello, size_t bytes);
bool client_take_welcome(struct client *client, int *status);
/* Sends `bytes` of the hello and turns until the welcome is there. Its status. */
int client_handshake(struct rig *rig, struct client *client, const struct hello *hello, size_t bytes);
void client_connect(struct rig *rig, struct client *client); /* asserts that it works */
void client_close(struct client *client);
bool client_ended(struct client *client); /* the broker has hung up */

void client_push(struct client *client,
                 const struct descriptor *d); /* publishes, rings the doorbell if parked */
bool client_pop(struct client *client, struct completion *out);
/* Turns until there is a completion. Asserts that it comes. */
struct completion client_answer(struct rig *rig, struct client *client);
struct completion client_call(struct rig *rig, struct client *client, const struct descriptor *d);
uint32_t client_topic(struct rig *rig, struct client *client, const char *name);

/* Puts entries of the given texts at `offset`; the descriptor to publish them with. */
struct descriptor client_batch(struct client *client, uint32_t topic, uint32_t offset, uint32_t count,
                               const char *const *texts);
struct descriptor client_text(struct client *client, uint32_t topic, uint32_t offset, const char *text);

#endif
