/* format.h: what lies on the disk, byte by byte. The only definition; FORMAT.md beside it says what the
 * fields mean, when something is valid and what a start does with every case. All integers are little-endian;
 * reserved bytes are zero and checked. Nothing here is believed before the checksum that covers it was
 * compared. */
#ifndef WALRUS_LOG_FORMAT_H
#define WALRUS_LOG_FORMAT_H

#include "../../shared/base.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the disk format is little-endian and so must the host be");

#define FORMAT_VERSION  3u
#define BLOCK_MIN       4096u
#define BLOCK_MAX       65536u
#define GROUP_MAX       (4u << 20)  /* bytes of a group, padding included */
#define PIECE_BYTES     (64u << 10) /* payload bytes under one checksum */
#define SEGMENT_SMALL   (20ull << 20)
#define SEGMENT_DEFAULT (64ull << 20)
#define SEGMENT_MIN     ((4ull << 20) + (128ull << 10))
#define SEGMENT_MAX     (1ull << 30)
#define UNFLUSHED_MAX   (16ull << 20) /* a flush follows within this much log at every level */

#define STORE_FILE      "walrus.store"
#define CHECKPOINT_FILE "checkpoint-%u" /* 0 and 1 */
#define CHECKPOINT_NEW  "checkpoint.new"
#define SEGMENT_FILE    "%08llu.segment" /* the file number, which is not the segment number */
#define SEGMENT_NEW     "%08llu.new"
#define INDEX_FILE      "%08llu.index"
#define INDEX_NEW       "index.new"

#define STORE_MAGIC      UINT64_C(0x31524f5453524c57) /* "WLRSTOR1" */
#define SEGMENT_MAGIC    UINT64_C(0x3147455353524c57) /* "WLRSSEG1" */
#define SEGMENT_VOID     UINT64_C(0x3144494f56524c57) /* "WLRVOID1" */
#define GROUP_MAGIC      UINT64_C(0x3150554f52474c57) /* "WLGROUP1" */
#define FRAME_MAGIC      UINT32_C(0x4d52464c)         /* "LFRM" */
#define CHECKPOINT_MAGIC UINT64_C(0x31544e4b43524c57) /* "WLRCKNT1" */
#define INDEX_MAGIC      UINT64_C(0x3158444e49524c57) /* "WLRINDX1" */

struct digest {
    uint64_t low, high;
};

/* ------------------------------------------------------ STORE_FILE, one block of 4096 bytes, written once */

struct store_header {
    uint64_t magic;         /*   0-7    STORE_MAGIC */
    uint32_t version;       /*   8-11   FORMAT_VERSION */
    uint32_t reserved0;     /*  12-15   zero */
    uint8_t store_id[16];   /*  16-31   random */
    uint64_t created_ns;    /*  32-39   wall clock */
    uint8_t reserved1[212]; /*  40-251  zero */
    uint32_t crc;           /* 252-255  of bytes 0-251, seed 0 */
};

/* ------------------------------------------------------------------- segment: a header block, then groups */

struct segment_header {
    uint64_t magic;       /*   0-7    SEGMENT_MAGIC, or SEGMENT_VOID with everything else zero but the crc */
    uint32_t version;     /*   8-11   FORMAT_VERSION */
    uint32_t block;       /*  12-15   bytes of the header block and unit of the groups (--commit-align) */
    uint8_t store_id[16]; /*  16-31 */
    uint64_t number; /*  32-39   of the segment, from 1, without gap along the chain of those that count */
    uint64_t file;   /*  40-47   number in the file's name */
    uint64_t length; /*  48-55   of the file when prepared; groups end at or before it */
    uint64_t epoch;  /*  56-63   counter */
    uint64_t epoch_nonce;          /*  64-71   unique to the start attempt */
    uint64_t previous_number;      /*  72-79   0: the first segment of the store */
    uint64_t previous_end;         /*  80-87   where the groups of that segment end: this decides it */
    uint64_t first_group;          /*  88-95   number of the first group in here */
    struct digest previous_digest; /*  96-111  of the last group that counts before first_group */
    uint64_t durable_upto;  /* 112-119  groups up to this one were flushed when this header was written */
    uint64_t oldest_number; /* 120-127  oldest segment of the store */
    uint64_t salt[2];    /* 128-143  secret, random: seeds every checksum and digest of the groups in here */
    uint64_t created_ns; /* 144-151  wall clock */
    uint8_t reserved[100]; /* 152-251  zero */
    uint32_t crc;          /* 252-255  of bytes 0-251, seed 0 */
};

struct group_header {
    uint64_t magic;                /*   0-7 */
    uint32_t header_bytes;         /*   8-11   sizeof(struct group_header) */
    uint32_t flags;                /*  12-15   zero */
    uint64_t number;               /*  16-23   from 1, without gap along the log */
    uint64_t epoch;                /*  24-31   as in the segment's header */
    uint64_t epoch_nonce;          /*  32-39 */
    uint64_t segment;              /*  40-47   number */
    uint64_t offset;               /*  48-55   in the file */
    uint32_t length;               /*  56-59   whole blocks */
    uint32_t used;                 /*  60-63   bytes before the zero padding */
    uint64_t durable_upto;         /*  64-71   last group known flushed when this one was sealed */
    struct digest previous_digest; /*  72-87   of the header of group number - 1 */
    uint64_t time_ns;              /*  88-95   wall clock when sealed */
    uint32_t frames;               /*  96-99 */
    uint32_t frames_crc;           /* 100-103  of bytes 0-123 of all frame headers, in order, seeded */
    uint8_t reserved[84];          /* 104-187  zero */
    uint32_t crc;                  /* 188-191  of bytes 0-187, seeded */
};

enum frame_kind {
    FRAME_BATCH = 1,    /* a whole batch, or an append */
    FRAME_CHUNK = 2,    /* part of a stream; counts only if its last chunk is in the log */
    FRAME_LAST = 3,     /* last chunk: this one commits the batch */
    FRAME_TOPIC = 4,    /* system: a catalogue entry; payload is struct topic_entry */
    FRAME_PRODUCER = 5, /* system: likewise, struct producer_entry */
};

/* A frame: this header, `entries` records (struct entry_record), `pieces` checksums (uint32_t), zeros to a
 * multiple of 16, then
 * the payload: entries one behind the other, each starting at a multiple of 16. Frames start at multiples of
 * 16. */
struct frame_header {
    uint32_t magic;          /*   0-3 */
    uint16_t kind;           /*   4-5    enum frame_kind */
    uint16_t flags;          /*   6-7    zero */
    uint32_t header_bytes;   /*   8-11   header, records and checksums with padding */
    uint32_t payload_bytes;  /*  12-15   a multiple of 16 */
    uint32_t topic;          /*  16-19   0: system */
    uint32_t entries;        /*  20-23   records in this frame */
    uint64_t first_sequence; /*  24-31   BATCH, LAST: of the batch's first entry */
    uint64_t producer;       /*  32-39   BATCH, LAST: id in the catalogue; 0: not numbered */
    uint64_t number;         /*  40-47   BATCH, LAST: with a producer: its last number on this topic + 1 */
    uint64_t stream;         /*  48-55   CHUNK, LAST: names the batch; epoch << 32 | counter */
    uint32_t chunk;          /*  56-59   CHUNK, LAST: number in the stream, from 0 */
    uint32_t ended;          /*  60-63   entries that end in this frame */
    uint64_t batch_entries;  /*  64-71   BATCH, LAST: entries of the whole batch */
    uint64_t batch_bytes;    /*  72-79   BATCH, LAST: payload bytes of the whole batch, padded */
    uint64_t first_segment;  /*  80-87   LAST: no chunk lies in a segment before this one */
    uint64_t time_ns;        /*  88-95   wall clock when taken */
    uint32_t offset;         /*  96-99   of this frame in its group */
    uint32_t pieces;         /* 100-103  checksums: payload_bytes / PIECE_BYTES, rounded up */
    uint32_t table_crc;      /* 104-107  of records, checksums and padding, seeded */
    uint8_t level;           /* 108      enum level at which it was to be answered */
    uint8_t reserved[15];    /* 109-123  zero */
    uint32_t crc;            /* 124-127  of bytes 0-123, seeded */
};

struct topic_entry {
    uint32_t topic;      /*  0-3   id, from 1, never used again */
    uint8_t level;       /*  4     enum level */
    uint8_t reserved[3]; /*  5-7   zero */
    uint32_t name_bytes; /*  8-11  the name follows */
    uint32_t uid;        /* 12-15  who made it; NO_UID: nobody that counts */
};

struct producer_entry {
    uint64_t producer;   /*  0-7   id, epoch << 32 | counter, never used again */
    uint32_t uid;        /*  8-11  whose it is */
    uint32_t name_bytes; /* 12-15  the name follows; 0: anonymous */
};

/* -------------------------------------------------------- checkpoint: header, segments, topics, producers */

struct checkpoint_header {
    uint64_t magic;        /*   0-7 */
    uint32_t version;      /*   8-11 */
    uint32_t flags;        /*  12-15   enum checkpoint_flag */
    uint8_t store_id[16];  /*  16-31 */
    uint64_t counter;      /*  32-39   the higher one of the two files counts */
    uint64_t epoch;        /*  40-47 */
    uint64_t segment;      /*  48-55   position: behind the last group that is flushed: a hint */
    uint64_t offset;       /*  56-63 */
    uint64_t group;        /*  64-71   that group's number: evidence: the log reaches at least here */
    struct digest digest;  /*  72-87   of that group's header */
    uint64_t segments;     /*  88-95   struct checkpoint_segment that follow */
    uint64_t topics;       /*  96-103  struct checkpoint_topic, each with its name, that follow */
    uint64_t bytes;        /* 104-111  of the whole file */
    uint32_t next_topic;   /* 112-115  next topic id */
    uint32_t body_crc;     /* 116-119  of everything behind this header, seed 0 */
    uint64_t producers;    /* 120-127  struct checkpoint_producer, with name and pairs, that follow */
    uint64_t horizon;      /* 128-135  producer ids up to this one may have been forgotten */
    uint8_t reserved[116]; /* 136-251  zero */
    uint32_t crc;          /* 252-255 */
};

enum checkpoint_flag { CHECKPOINT_CLEAN = 1 };

struct checkpoint_segment { /* closed segments of the chain, oldest first */
    uint64_t number;
    uint64_t file;
    uint64_t end;
    uint64_t first_group;
};

struct checkpoint_topic {
    uint32_t topic;         /*  0-3 */
    uint8_t level;          /*  4 */
    uint8_t reserved[3];    /*  5-7   zero */
    uint64_t next_sequence; /*  8-15 */
    uint32_t name_bytes;    /* 16-19  the name follows, zeros to a multiple of 8 */
    uint32_t uid;           /* 20-23  as in topic_entry */
};

struct checkpoint_producer {
    uint64_t producer;   /*  0-7 */
    uint32_t uid;        /*  8-11 */
    uint32_t name_bytes; /* 12-15  the name follows, zeros to a multiple of 8; 0: anonymous */
    uint64_t pairs;      /* 16-23  struct checkpoint_pair that follow the name */
};

struct checkpoint_pair {
    uint32_t topic;          /*  0-3 */
    uint32_t reserved;       /*  4-7   zero */
    uint64_t number;         /*  8-15  last one committed */
    uint64_t first_sequence; /* 16-23  of that batch */
    uint64_t entries;        /* 24-31  of that batch */
};

/* ----------------------------------------------------------- sidecar: where a closed segment's frames lie */

struct index_header {
    uint64_t magic;       /*  0-7 */
    uint32_t version;     /*  8-11 */
    uint32_t topics;      /* 12-15  struct index_topic that follow, by topic */
    uint8_t store_id[16]; /* 16-31 */
    uint64_t segment;     /* 32-39 */
    uint64_t epoch_nonce; /* 40-47  of the segment's header: a sidecar of another life does not count */
    uint64_t end;         /* 48-55  where the segment's groups end */
    uint32_t rows;        /* 56-59  struct index_row of batches that follow, by topic and sequence */
    uint32_t chunks;      /* 60-63  struct index_row of chunks that follow, in log order */
    uint32_t body_crc;    /* 64-67  of everything behind this header, seed 0 */
    uint8_t reserved[56]; /* 68-123 zero */
    uint32_t crc;         /* 124-127 */
};

struct index_topic {
    uint32_t topic;
    uint32_t first_row;
    uint32_t rows;
    uint32_t reserved;
};

struct index_row {
    uint64_t sequence; /*  0-7   first one of the batch (chunk rows: bytes of the first record) */
    uint64_t stream;   /*  8-15  zero: a whole batch */
    uint32_t topic;    /* 16-19 */
    uint32_t entries;  /* 20-23  of the batch (chunk rows: that end in the chunk) */
    uint32_t offset;   /* 24-27  of the frame in the segment */
    uint32_t bytes;    /* 28-31  of the frame */
    uint32_t chunk;    /* 32-35  chunk rows: its number */
    uint32_t payload;  /* 36-39  payload bytes of the frame */
};

/* -------------------------------------------------------------------- proof */

#define FORMAT_AT(type, field, at)                                                                           \
    _Static_assert(offsetof(struct type, field) == (at), #type "." #field " moved")
_Static_assert(sizeof(struct store_header) == 256, "store_header");
FORMAT_AT(store_header, version, 8);
FORMAT_AT(store_header, store_id, 16);
FORMAT_AT(store_header, created_ns, 32);
FORMAT_AT(store_header, crc, 252);
_Static_assert(sizeof(struct segment_header) == 256, "segment_header");
FORMAT_AT(segment_header, version, 8);
FORMAT_AT(segment_header, block, 12);
FORMAT_AT(segment_header, store_id, 16);
FORMAT_AT(segment_header, number, 32);
FORMAT_AT(segment_header, file, 40);
FORMAT_AT(segment_header, length, 48);
FORMAT_AT(segment_header, epoch, 56);
FORMAT_AT(segment_header, epoch_nonce, 64);
FORMAT_AT(segment_header, previous_number, 72);
FORMAT_AT(segment_header, previous_end, 80);
FORMAT_AT(segment_header, first_group, 88);
FORMAT_AT(segment_header, previous_digest, 96);
FORMAT_AT(segment_header, durable_upto, 112);
FORMAT_AT(segment_header, oldest_number, 120);
FORMAT_AT(segment_header, salt, 128);
FORMAT_AT(segment_header, created_ns, 144);
FORMAT_AT(segment_header, crc, 252);
_Static_assert(sizeof(struct group_header) == 192, "group_header");
FORMAT_AT(group_header, header_bytes, 8);
FORMAT_AT(group_header, number, 16);
FORMAT_AT(group_header, epoch, 24);
FORMAT_AT(group_header, epoch_nonce, 32);
FORMAT_AT(group_header, segment, 40);
FORMAT_AT(group_header, offset, 48);
FORMAT_AT(group_header, length, 56);
FORMAT_AT(group_header, used, 60);
FORMAT_AT(group_header, durable_upto, 64);
FORMAT_AT(group_header, previous_digest, 72);
FORMAT_AT(group_header, time_ns, 88);
FORMAT_AT(group_header, frames, 96);
FORMAT_AT(group_header, frames_crc, 100);
FORMAT_AT(group_header, crc, 188);
_Static_assert(sizeof(struct frame_header) == 128, "frame_header");
FORMAT_AT(frame_header, kind, 4);
FORMAT_AT(frame_header, header_bytes, 8);
FORMAT_AT(frame_header, payload_bytes, 12);
FORMAT_AT(frame_header, topic, 16);
FORMAT_AT(frame_header, entries, 20);
FORMAT_AT(frame_header, first_sequence, 24);
FORMAT_AT(frame_header, producer, 32);
FORMAT_AT(frame_header, number, 40);
FORMAT_AT(frame_header, stream, 48);
FORMAT_AT(frame_header, chunk, 56);
FORMAT_AT(frame_header, ended, 60);
FORMAT_AT(frame_header, batch_entries, 64);
FORMAT_AT(frame_header, batch_bytes, 72);
FORMAT_AT(frame_header, first_segment, 80);
FORMAT_AT(frame_header, time_ns, 88);
FORMAT_AT(frame_header, offset, 96);
FORMAT_AT(frame_header, pieces, 100);
FORMAT_AT(frame_header, table_crc, 104);
FORMAT_AT(frame_header, level, 108);
FORMAT_AT(frame_header, crc, 124);
_Static_assert(sizeof(struct topic_entry) == 16, "topic_entry");
FORMAT_AT(topic_entry, level, 4);
FORMAT_AT(topic_entry, name_bytes, 8);
FORMAT_AT(topic_entry, uid, 12);
_Static_assert(sizeof(struct producer_entry) == 16, "producer_entry");
FORMAT_AT(producer_entry, uid, 8);
FORMAT_AT(producer_entry, name_bytes, 12);
_Static_assert(sizeof(struct checkpoint_header) == 256, "checkpoint_header");
FORMAT_AT(checkpoint_header, store_id, 16);
FORMAT_AT(checkpoint_header, counter, 32);
FORMAT_AT(checkpoint_header, epoch, 40);
FORMAT_AT(checkpoint_header, segment, 48);
FORMAT_AT(checkpoint_header, offset, 56);
FORMAT_AT(checkpoint_header, group, 64);
FORMAT_AT(checkpoint_header, digest, 72);
FORMAT_AT(checkpoint_header, segments, 88);
FORMAT_AT(checkpoint_header, topics, 96);
FORMAT_AT(checkpoint_header, bytes, 104);
FORMAT_AT(checkpoint_header, next_topic, 112);
FORMAT_AT(checkpoint_header, body_crc, 116);
FORMAT_AT(checkpoint_header, producers, 120);
FORMAT_AT(checkpoint_header, horizon, 128);
FORMAT_AT(checkpoint_header, crc, 252);
_Static_assert(sizeof(struct checkpoint_segment) == 32, "checkpoint_segment");
_Static_assert(sizeof(struct checkpoint_topic) == 24, "checkpoint_topic");
FORMAT_AT(checkpoint_topic, next_sequence, 8);
FORMAT_AT(checkpoint_topic, name_bytes, 16);
FORMAT_AT(checkpoint_topic, uid, 20);
_Static_assert(sizeof(struct checkpoint_producer) == 24, "checkpoint_producer");
FORMAT_AT(checkpoint_producer, name_bytes, 12);
FORMAT_AT(checkpoint_producer, pairs, 16);
_Static_assert(sizeof(struct checkpoint_pair) == 32, "checkpoint_pair");
FORMAT_AT(checkpoint_pair, number, 8);
FORMAT_AT(checkpoint_pair, entries, 24);
_Static_assert(sizeof(struct index_header) == 128, "index_header");
FORMAT_AT(index_header, segment, 32);
FORMAT_AT(index_header, epoch_nonce, 40);
FORMAT_AT(index_header, end, 48);
FORMAT_AT(index_header, rows, 56);
FORMAT_AT(index_header, chunks, 60);
FORMAT_AT(index_header, body_crc, 64);
FORMAT_AT(index_header, crc, 124);
_Static_assert(sizeof(struct index_topic) == 16, "index_topic");
_Static_assert(sizeof(struct index_row) == 40, "index_row");
FORMAT_AT(index_row, topic, 16);
FORMAT_AT(index_row, offset, 24);
FORMAT_AT(index_row, chunk, 32);

#endif
