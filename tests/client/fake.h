/* fake.h: a broker in a thread of the test, which does what the test says.
 *
 * It does the real handshake over a real socket with real sealed memfds, and runs the real rings; batches
 * are kept in memory. Its thread can be paused: then the test itself takes the turns, so that nothing
 * depends on time. */
#ifndef WALRUS_TEST_FAKE_H
#define WALRUS_TEST_FAKE_H

#include <pthread.h>

#include "../../libclient/include/walrus.h"
#include "../../shared/message.h"
#include "../../shared/ring.h"

#define FAKE_ANY_WRITE 255 /* OP_APPEND, OP_BATCH, OP_CHUNK */

/* Results of rules that are no errno. */
#define FAKE_DIE       1 /* hangs up instead of answering */
#define FAKE_DIE_AFTER 2 /* answers as usual, then hangs up */
#define FAKE_WILD_TAIL 3 /* cq_tail goes far ahead */
#define FAKE_NOT_ASKED 4 /* answers something nobody asked */
#define FAKE_TWICE     5 /* answers as usual, twice */
#define FAKE_DIE_MUTE  6 /* does it, and hangs up instead of answering */

enum fake_handshake {
    HANDSHAKE_GOOD,
    HANDSHAKE_SILENT,  /* accepts, never answers */
    HANDSHAKE_HANG_UP, /* closes without a word */
    HANDSHAKE_REFUSE,  /* status and words of the options */
    HANDSHAKE_SHORT,   /* half a welcome */
    HANDSHAKE_BAD_MAGIC,
    HANDSHAKE_OTHER_LAYOUT, /* accepts with another fingerprint */
    HANDSHAKE_NO_FDS,
    HANDSHAKE_THREE_FDS,
    HANDSHAKE_SIX_FDS,
    HANDSHAKE_UNSEALED,
    HANDSHAKE_SHORT_FILE,
    HANDSHAKE_PIPE_FOR_DOORBELL,
    HANDSHAKE_WORDS_DIFFER, /* the first page says other sizes */
    HANDSHAKE_SIZES_WILD,
    HANDSHAKE_UNKNOWN_FLAG,     /* in the welcome */
    HANDSHAKE_RESERVED,         /* not zero */
    HANDSHAKE_NO_PRODUCER,      /* though one was asked for */
    HANDSHAKE_OWN_PRODUCER,     /* though none was asked for */
    HANDSHAKE_FEWER_WATERMARKS, /* than the welcome says */
};

struct fake_entry {
    uint8_t *data; /* NULL if swallowed */
    uint64_t length;
    uint64_t batch; /* which commit brought it */
    uint8_t type;
};

struct fake_topic {
    char name[MAX_TOPIC_NAME + 1];
    uint64_t id; /* 0: not written yet */
    struct fake_entry *entries;
    uint64_t count, capacity;
    bool busy;            /* a stream is in progress */
    bool other;           /* a batch of another handle is in progress: see fake_free_topic */
    uint64_t last_number; /* of the one producer there is; checked if it is numbered */
};

/* What the next requests of an op are answered instead. */
struct fake_rule {
    int op;
    int after; /* so many go through first */
    int times;
    int result;
    uint8_t reason;
    uint32_t flags;
};

struct fake_stream {
    uint32_t number;
    bool open, failed;
    uint32_t topic;
    uint32_t chunks;
    uint64_t first; /* entries of its topic before it */
    struct fake_entry *entries;
    uint64_t count, capacity;
    bool open_entry;
};

struct fake {
    enum fake_handshake handshake;
    int refuse_status;
    const char *refuse_text;
    bool swallow; /* keep lengths, not bytes */
    bool busy;    /* its thread never sleeps */
    /* Loops of doing nothing, from 0 up to these, in turn: move the two sides against each other. */
    uint64_t pause_before_answer, pause_before_park;
    uint32_t queue_entries; /* 0: as asked for */
    uint32_t refuse_times;  /* HANDSHAKE_REFUSE ends after so many; 0: never */
    bool forgets;           /* the next anonymous producer that comes again gets a new id */
    uint64_t max_batch_bytes;
    uint32_t watermark_slots;

    char folder[64], path[96];
    int listener, control, socket;
    uint32_t lives;        /* connections welcomed */
    uint32_t number_shift; /* topic numbers of this life are larger by so much */
    uint32_t slot_shift;   /* watermark slots told from now on are larger by so much */
    uint64_t producer;     /* id given last */
    bool mute;
    int doorbell, signal;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool paused, standing, stop;

    struct hello hello;
    struct layout_sizes sizes;
    uint8_t *client_file, *broker_file; /* mapped */
    struct client_words *client;
    struct broker_words *words;
    uint8_t *arena, *window;
    struct watermark *watermarks; /* of this life; NULL without slots. The slot of a topic is its index + 2 */
    uint64_t window_tail;
    struct ring sq, cq;

    struct fake_topic *topics[64]; /* numbers are indices + 1 */
    uint32_t topic_count;
    struct fake_stream streams[16];
    struct fake_rule rules[8];
    uint32_t rule_count;
    struct descriptor *held; /* taken and not answered */
    uint32_t held_count;
    bool hold_writes, hold_reads, hold_opens;
    struct descriptor follows[16];
    uint32_t follow_count;
    struct descriptor *waiting; /* queued on a topic of another handle, in order */
    struct descriptor *listed;  /* refused with MORE, in order */
    uint32_t waiting_count, listed_count;

    void (*spoil)(struct fake *fake,
                  struct completion *completion); /* last look at an answer to READ or TOPICS */

    uint64_t seen[16];        /* descriptors by op */
    uint64_t taken, answered; /* descriptors */
    uint64_t commits, doorbells, signals, bytes_swallowed, aborts;
    struct descriptor last; /* taken */
    uint32_t largest_chunk;
};

void fake_start(struct fake *fake);
/* Ends the thread, frees everything. */
void fake_stop(struct fake *fake);
/* The thread stands still when this returns; the test takes the turns with fake_turn. */
void fake_pause(struct fake *fake);
void fake_resume(struct fake *fake);
/* Takes and answers what is published. Returns how many descriptors. */
uint32_t fake_turn(struct fake *fake);
void fake_idle(uint64_t loops);
/* The topic is another handle's from now on: -EBUSY, or queued ... */
void fake_take_topic(struct fake *fake, const char *name);
/* ... until now: what waits is served, in order; if nothing does, the longest refused may try. */
void fake_free_topic(struct fake *fake, const char *name);
/* Queued writes whose deadline has passed are answered -ETIMEDOUT. */
void fake_expire(struct fake *fake);
/* Answers the first `count` held requests. */
void fake_answer_held(struct fake *fake, uint32_t count);
void fake_rule(struct fake *fake, struct fake_rule rule);
/* Posts a completion and signals as layout.h says. */
void fake_post(struct fake *fake, const struct completion *completion);
/* The socket hangs up; nothing is answered any more. Who calls again is welcomed. */
void fake_die(struct fake *fake);
/* As the end of the process, and a new one: between the two there is no socket. Not while it is paused. */
void fake_down(struct fake *fake);
void fake_up(struct fake *fake);
struct fake_topic *fake_topic(struct fake *fake, const char *name);

/* A handle on the fake with the given options (socket_path is filled in); fails the test if there is none. */
walrus *fake_connect(struct fake *fake, struct walrus_connect_options options);
#define CONNECT(fake, ...)                                                                                   \
    fake_connect(                                                                                            \
        (fake), (struct walrus_connect_options){.size = sizeof(struct walrus_connect_options), __VA_ARGS__})
walrus_topic *open_topic(walrus *handle, const char *name);
/* poll(2) on the handle's fd without waiting. */
bool fd_readable(const walrus *handle);

#endif
