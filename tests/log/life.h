/* life.h: lives of a log on a real folder, for the suites here: start, write, read, stop or crash, look at
 * the bytes.
 *
 *   struct life life;
 *   life_make(&life);  life_start(&life);  life_put(&life, "t", 3, 100);  life_crash(&life);
 *   life_start(&life); life_verify(&life); life_stop(&life);              life_remove(&life);
 *
 * Every entry's bytes follow from its topic, its sequence and its length, so that what a read returns can be
 * judged without keeping it; the model counts how many entries of each topic were answered with 0. The io of
 * a life is broker/io/fault.h around a real back end, with a clock that a test can move and a record of all
 * ops. Every wait is bounded. */
#ifndef WALRUS_TESTS_LOG_LIFE_H
#define WALRUS_TESTS_LOG_LIFE_H

#include "../../broker/io/fault.h"
#include "../../broker/log/check.h"
#include "../../broker/log/group.h"
#include "../../broker/log/log.h"
#include "../../shared/message.h"

#include <criterion/criterion.h>

#define MILLISECOND   INT64_C(1000000)
#define SECOND        (1000 * MILLISECOND)
#define MODEL_TOPICS  32u
#define MOST_SEGMENTS 64u

struct life;

/* ------------------------------------------------------------------------------------------------ lives */

/* One op, as it was submitted. `name` is that of the op, or of the op's file at that moment. */
struct op_record {
    enum io_kind kind;
    bool background;
    uint64_t offset, length;
    char name[40], new_name[40];
};

/* Of the ops of one kind that are not background ones, counted from when this was set: the i-th (from 0)
 * fails with `error` (negative) if bit i is set; the op does not reach the disk. With `everything`,
 * background ops count too. */
struct plan {
    uint64_t failing, seen;
    int error;
    bool everything;
    bool after; /* the op is done, and fails all the same */
};

struct model_topic {
    char name[MAX_TOPIC_NAME + 1];
    uint64_t next; /* sequence of the next entry */
};

struct life {
    char folder[64];
    struct log_options options;
    int backend;      /* enum io_backend; pwrite */
    int64_t ahead;    /* what is added to the clock */
    int random_error; /* what the source of random numbers returns if not 0 */
    struct plan plans[IO_KIND_COUNT];
    size_t
        dies_at; /* from this op on (counted from 1) every op fails, as if the machine were gone; 0: never */
    void (*on_sleep)(struct life *life);
    struct io *io;
    struct io_functions functions;
    const struct io_functions *inner;
    struct log *log;
    struct error error;
    struct op_record *ops;
    size_t op_count, op_room;
    char *said;
    size_t said_length;
    struct sent *sents;
    struct model_topic model[MODEL_TOPICS];
    size_t model_count;
};

/* The lives of this process are made in a file system in memory, if there is one with room: for tests of many
 * lives, where what counts is which ops are made and not how long the device takes for them. */
void life_use_memory(void);
/* A scratch folder and the smallest segments; nothing is started. */
void life_make(struct life *life);
/* Another life's folder, byte for byte, and its model: for damage that is tried many times. */
void life_copy(struct life *life, const struct life *from);
void life_remove(struct life *life);

/* Opens the io only, for faults that must be there before the start. */
void life_open(struct life *life);
/* Closes it again, and frees what was sent. For whoever has ended the log itself. */
void life_close(struct life *life);
int life_try_start(struct life *life);
void life_start(struct life *life);
/* Fails the test unless the start is refused with `code` and the words contain `words`. */
void life_refused(struct life *life, int code, const char *words);
void life_stop(struct life *life);
/* As kill -9: what was submitted lands, nothing else is written. */
void life_crash(struct life *life);

/* One log_turn and, if something is in flight, one bounded wait. */
void life_turn(struct life *life);
/* Until every write that was taken is done, or the log has failed. */
void life_settle(struct life *life);
/* Until nothing is in flight: segments are prepared, sidecars written. */
void life_quiet(struct life *life);
/* Until `count` ops of the kind are held (io_fault_hold). */
void life_until_held(struct life *life, enum io_kind kind, unsigned count);
bool life_said(const struct life *life, const char *words);
struct log_stats life_stats(const struct life *life);

/* ----------------------------------------------------------------------------------------------- writes */

struct request {
    const char *name; /* of the topic, created at `topic_level` if it is not there */
    enum write_kind kind;
    const void *owner;
    uint32_t entries, bytes; /* bytes of each entry */
    uint64_t from; /* its content is that of the entries from this sequence on; 0: the model's next */
    uint8_t level, topic_level;
    struct stream *stream;
    bool first, last;
    bool goes_on;        /* the last record is a piece that goes on */
    const uint8_t *data; /* of the one entry, if it is not the model's */
    struct producer *producer;
    uint64_t number;
};

struct sent {
    struct write write;
    struct life *life;
    int refused; /* what log_write said */
    bool done;
    unsigned order; /* of the answers, from 1 */
    uint8_t *payload;
    struct entry_record *records;
    struct sent *next;
};

/* Calls log_write once. Freed with the life. */
struct sent *life_send(struct life *life, const struct request *request);
#define SEND(life, ...) life_send(life, &(struct request){__VA_ARGS__})
/* Calls log_write again with the same write. */
int life_again(struct sent *sent);
/* A batch of one topic, answered with 0, and known to the model. */
void life_put(struct life *life, const char *topic, uint32_t entries, uint32_t bytes);
/* The model learns that `entries` of the topic were committed. */
void life_committed(struct life *life, const char *topic, uint32_t entries);
uint64_t life_next(struct life *life, const char *topic);
struct topic *life_topic(struct life *life, const char *name);
void entry_fill(uint8_t *data, uint64_t length, const char *topic, uint64_t sequence);
bool entry_right(const uint8_t *data, uint64_t length, const char *topic, uint64_t sequence);

/* ------------------------------------------------------------------------------------------------ reads */

struct reading {
    const char *name;
    uint64_t from, entry_offset;
    uint32_t max_entries, max_bytes, buffer_bytes; /* 0: much */
    /* results */
    struct log_read read;
    struct life *life;
    uint8_t *buffer;
    bool done;
    uint64_t entries, bytes; /* of whole entries */
    bool right;              /* all of them are what the model says, in order, without gap */
};
/* One log_read to its end. The buffer is freed by reading_free. */
void life_read(struct life *life, struct reading *reading);
void life_read_begin(struct life *life, struct reading *reading);
void life_read_end(struct life *life, struct reading *reading);
void reading_free(struct reading *reading);
/* Reads the topic from `from` to its end, entry by entry, pieces put together. How many; all are right. */
uint64_t life_read_all(struct life *life, const char *name, uint64_t from, uint32_t buffer_bytes);
/* Every topic of the model holds exactly the entries that were answered with 0. */
void life_verify(struct life *life);

/* ------------------------------------------------------------------------------------ bytes on the disk */

struct disk_segment {
    char name[40];
    struct segment_header header;
    uint64_t size;
    uint64_t end; /* where its groups end, as the successor says; the newest: where valid groups end */
};
struct disk_group {
    char file[40];
    struct group_header header;
    struct segment_identity identity;
};
struct disk {
    struct disk_segment segments[MOST_SEGMENTS]; /* by number, as the chain goes */
    size_t segment_count;
    struct disk_group groups[4096];
    size_t group_count;
    struct disk_segment spares[MOST_SEGMENTS]; /* blank or void */
    size_t spare_count;
};
void disk_scan(const struct life *life, struct disk *disk);
const struct disk_segment *disk_newest(const struct disk *disk);
const struct disk_group *disk_last(const struct disk *disk);
/* Changes the frames of the newest group and gives it right sums again: what a broker with a mistake would
 * have written. */
void disk_forge_last(const struct life *life, void (*change)(struct frame_header *frame));

char *file_path(const struct life *life, const char *name); /* one of a few static buffers */
uint64_t file_size_of(const struct life *life, const char *name);
bool file_there(const struct life *life, const char *name);
void file_peek(const struct life *life, const char *name, uint64_t offset, void *bytes, size_t length);
void file_poke(const struct life *life, const char *name, uint64_t offset, const void *bytes, size_t length);
void file_flip(const struct life *life, const char *name, uint64_t offset, unsigned bit);
void file_zero(const struct life *life, const char *name, uint64_t offset, uint64_t length);
void file_cut(const struct life *life, const char *name, uint64_t length);
void file_delete(const struct life *life, const char *name);
void file_copy(const struct life *from, const char *name, const struct life *to, const char *new_name);
void file_header_poke(const struct life *life, const char *name,
                      struct segment_header *header); /* with its crc */
unsigned files_with(const struct life *life, const char *ending);
/* A number over names, sizes, times of change and bytes of all files. */
uint64_t folder_digest(const struct life *life);

#endif
