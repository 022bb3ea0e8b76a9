/* broker_rig.h: a broker in memory (the real sessions on the real log, kernel.h and memory_disk.h below)
 * and its peers, for the targets `ring` and `message`. */
#ifndef WALRUS_FUZZ_BROKER_RIG_H
#define WALRUS_FUZZ_BROKER_RIG_H

#include "../../broker/session/session.h"
#include "input.h"
#include "kernel.h"
#include "memory_disk.h"

#define PEERS       4
#define TAKEN_MOST  512 /* descriptors of one peer that are followed */
#define RIG_ENTRIES 16  /* of a ring */

enum taken_state { TAKEN_OPEN = 1, TAKEN_REFUSED, TAKEN_ANSWERED };

/* A descriptor as the broker got it: the one read of its slot. */
struct taken {
    struct descriptor descriptor;
    uint8_t state; /* enum taken_state */
};

struct peer {
    int socket;     /* -1: not accepted */
    bool hello_due; /* to be received */
    bool gone;      /* it hung up */
    bool welcomed;
    struct hello hello;
    size_t hello_bytes; /* 0: nobody is here */
    int message_flags;  /* of what is received: MSG_CTRUNC */
    struct welcome welcome;
    int client_slot, broker_slot; /* -1: none */
    struct layout_sizes sizes;
    uint32_t tail, reaped; /* as an honest client would have them */
    uint32_t topics;       /* numbers 1 to this were given */
    uint32_t taken_count;
    uint32_t last_head; /* of the slot that was read last */
    bool any_read;
    bool lied; /* about what it reaped: answers may be overwritten */
};

struct rig {
    struct memory_disk disk;
    struct log *log;
    struct server *server;
    int epoll, listener;
    struct peer peers[PEERS];
    struct input *input;
    bool hostile; /* reads take their values from the input */
    /* of the log_write that is going on */
    uint64_t arena_read, arena_allowed;
    uint32_t refuse_count;
    int refuse;
    uint8_t refuse_reason;
};

extern struct rig rig;

/* A broker that has just started; `greet` prepares it further, in one of RIG_SHAPES ways. Where the kernel
 * can save it all, it is done once for each. */
#define RIG_SHAPES 8u
void rig_start(struct input *input, unsigned shape, void (*greet)(unsigned shape));
/* Stops everything, and checks that everything was answered and given back. `log_too`: the log as well,
 * which costs as much as all the rest. */
void rig_stop(bool log_too);
void rig_turn(unsigned turns);
struct hello rig_hello(void);
/* Somebody connects and will say peer->hello. NULL: no place for one more. */
struct peer *rig_connect(void);
void rig_hang_up(struct peer *peer);
void rig_ring(struct peer *peer);
/* Publishes a descriptor, if there is room in the ring as the peer sees it. */
bool rig_push(struct peer *peer, const struct descriptor *descriptor);
/* Looks at what was answered. */
void rig_reap(struct peer *peer);
/* Writes into its arena. */
void rig_put(struct peer *peer, uint64_t offset, const void *from, size_t length);

#endif
