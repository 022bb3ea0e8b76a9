/* limits.h: the numbers both sides hold each other to. The public ones are repeated in walrus.h and compared
 * there by static assertions in libclient. */
#ifndef WALRUS_SHARED_LIMITS_H
#define WALRUS_SHARED_LIMITS_H

#include <stdint.h>

#define MAX_BATCH_ENTRIES 2000u
#define MAX_BATCH_BYTES   (10ull << 30) /* counting ENTRY_OVERHEAD for each entry */
#define ENTRY_OVERHEAD    64u
#define MAX_TOPIC_NAME    255u
#define PAYLOAD_ALIGN     16u /* entries start at multiples of this in arena, frame and window */

/* A batch up to this many payload bytes (entries padded to PAYLOAD_ALIGN) may come as one descriptor and
 * becomes one frame; anything larger comes as chunks. A group (4 MiB) always has room for one such frame. */
#define MAX_WHOLE_PAYLOAD (3u << 20)
#define MAX_CHUNK_PAYLOAD (512u << 10)

#define MIN_QUEUE_ENTRIES     8u
#define MAX_QUEUE_ENTRIES     4096u
#define DEFAULT_QUEUE_ENTRIES 256u
#define MIN_ARENA_BYTES       (64u << 10)
#define MAX_ARENA_BYTES       (1u << 30)
#define DEFAULT_ARENA_BYTES   (1u << 20)
#define MIN_WINDOW_BYTES      (64u << 10)
#define MAX_WINDOW_BYTES      (64u << 20)
#define DEFAULT_WINDOW_BYTES  (256u << 10)

#endif
