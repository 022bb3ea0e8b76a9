/* message.h: the words of the control socket (UNIX, SOCK_SEQPACKET), one message each.
 *
 *   client                                broker
 *     connect                        ->     accept; SO_PEERCRED; a deadline for the hello
 *     struct hello                   ->     checks version range, fingerprint, sizes, quota; attaches the
 *                                           producer, which may have to wait until what its former holder
 *                                           had published is resolved
 *                                    <-     struct welcome, status 0, with five fds by SCM_RIGHTS: client
 *                                           memfd, broker memfd, doorbell eventfd, signal eventfd, and the
 *                                           watermark memfd of all connections
 *                                    <-     or struct welcome, status < 0, words in `text`, no fds; then
 *                                           the broker closes
 *   After that nothing more is sent; either side's death is the other one's POLLHUP. A client that sends
 *   anything else is ended.
 */
#ifndef WALRUS_SHARED_MESSAGE_H
#define WALRUS_SHARED_MESSAGE_H

#include "base.h"

#define MESSAGE_MAGIC UINT64_C(0x57414c4d53473032) /* "WALMSG02" */

enum welcome_fd {
    FD_CLIENT_FILE = 0,
    FD_BROKER_FILE = 1,
    FD_DOORBELL = 2,
    FD_SIGNAL = 3,
    FD_WATERMARKS = 4,
    FD_COUNT = 5
};

enum hello_flag {
    HELLO_REQUIRE_URING = 1 << 0, /* -EOPNOTSUPP unless io_uring is the active back end */
    HELLO_TAKE_OVER = 1 << 1,     /* the name may have a living holder: it is fenced (-ESTALE) */
    HELLO_PRODUCER = 1 << 2, /* without a name: an anonymous producer id is wanted, or `producer` again */
    HELLO_FLAGS = (1 << 3) - 1,
};

#define MAX_PRODUCER_NAME 255u /* bytes, by the rules of topic names */

struct hello {
    uint64_t magic;         /*  0-7 */
    uint32_t version_min;   /*  8-11  layout versions the client can speak */
    uint32_t version_max;   /* 12-15 */
    uint64_t fingerprint;   /* 16-23  of version_max */
    uint32_t flags;         /* 24-27  enum hello_flag */
    uint32_t queue_entries; /* 28-31 */
    uint64_t arena_bytes;   /* 32-39 */
    uint64_t window_bytes;  /* 40-47 */
    uint64_t producer;    /* 48-55  PRODUCER: the anonymous id held before, to go on with it; 0 = a new one */
    uint32_t name_bytes;  /* 56-59  of the producer's name; 0 = none */
    uint8_t reserved[68]; /* 60-127 zero */
    char name[256];       /* 128-383 zero behind name_bytes */
};
_Static_assert(sizeof(struct hello) == 384, "hello");
_Static_assert(offsetof(struct hello, fingerprint) == 16 && offsetof(struct hello, arena_bytes) == 32 &&
                   offsetof(struct hello, producer) == 48 && offsetof(struct hello, name) == 128,
               "hello");

enum welcome_flag {
    WELCOME_RESUMED = 1 << 0, /* `producer` is the one that the hello named: its numbers go on. Without it an
                               * anonymous client has a new id, and nothing of the old one was ever
                               * committed */
};

struct welcome {
    uint64_t magic;           /*  0-7 */
    int32_t status;           /*  8-11  0 or a negative errno */
    uint32_t version;         /* 12-15  agreed layout version */
    uint64_t fingerprint;     /* 16-23  the broker's */
    uint32_t queue_entries;   /* 24-27 */
    uint32_t io_backend;      /* 28-31  enum io_backend */
    uint64_t arena_bytes;     /* 32-39 */
    uint64_t window_bytes;    /* 40-47 */
    uint64_t epoch;           /* 48-55 */
    uint32_t broker_pid;      /* 56-59  for words only */
    uint8_t default_level;    /* 60     enum level */
    uint8_t flags;            /* 61     enum welcome_flag */
    uint8_t reserved0[2];     /* 62-63  zero */
    uint64_t producer;        /* 64-71  id of the producer attached; 0 = none */
    uint64_t max_batch_bytes; /* 72-79  limit of a batch, counted as MAX_BATCH_BYTES is */
    uint32_t watermark_slots; /* 80-83  in the watermark file */
    uint8_t reserved[44];     /* 84-127 zero */
    char text[384];           /* 128-511 NUL-terminated */
};
_Static_assert(sizeof(struct welcome) == 512, "welcome");
_Static_assert(offsetof(struct welcome, arena_bytes) == 32 && offsetof(struct welcome, default_level) == 60 &&
                   offsetof(struct welcome, producer) == 64 &&
                   offsetof(struct welcome, watermark_slots) == 80 && offsetof(struct welcome, text) == 128,
               "welcome");

enum io_backend { IO_BACKEND_URING = 1, IO_BACKEND_PWRITE = 2, IO_BACKEND_MMAP = 3 };

#endif
