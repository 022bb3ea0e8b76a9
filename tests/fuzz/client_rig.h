/* client_rig.h: the library in memory (kernel.h) and a broker that would do right, if only its memory said
 * what it wrote there: for the targets `broker_file` and `message`. */
#ifndef WALRUS_FUZZ_CLIENT_RIG_H
#define WALRUS_FUZZ_CLIENT_RIG_H

#include "../../libclient/include/walrus.h"
#include "../../shared/message.h"
#include "../../shared/ring.h"
#include "input.h"
#include "kernel.h"

#define CLIENT_ENTRIES 16
#define TOPICS_MOST    32

struct client_rig {
    struct input *input; /* NULL: everybody is honest */
    walrus *handle;
    bool hostile_welcome;
    bool down;     /* nobody listens */
    bool gone;     /* the broker of this connection hung up */
    bool message;  /* it sent something behind its welcome */
    bool welcomed; /* on this connection */
    int socket;    /* of this connection */
    int signal;    /* descriptors, as the library has them; -1 none */
    int doorbell;
    int client_slot, broker_slot, watermark_slot; /* -1: none */
    struct layout_sizes sizes;
    uint32_t sq_head, cq_tail;
    uint64_t window_tail, sequence, group;
    uint32_t topics; /* opened, in this life */
    uint64_t lives;
    uint32_t last_head; /* of the completion that was read last */
    bool any_read;
    uint64_t reads, polls;
    bool numbered; /* it has a producer */
};

extern struct client_rig client_rig;

/* Sets the hooks; nobody has connected. */
void client_rig_begin(struct input *input);
/* As walrus_connect, to a socket of this broker. */
int client_rig_connect(struct walrus_connect_options options);
/* Closes the handle, if there is one, and checks that nothing is left behind. */
void client_rig_end(void);
/* The broker answers up to `most` descriptors. */
void client_rig_serve(uint32_t most);

#endif
