/* internal.h: the state of one log, shared by the files of this folder and nobody else.
 *
 *   store.c       the folder: identity, names, who holds it            (start)
 *   recover.c     walking the log, deciding the tail, copying          (start)
 *   restore.c     topics and producers from checkpoint and groups      (start)
 *   topics.c      names, ids, catalogue entries, waiters
 *   producers.c   numbered batches: who, and how far
 *   gather.c      admission of a write, copy into the gathering group  (steps 4 and 5 of DESIGN section 2)
 *   commit.c      seal, write, flush, roll back, change of segment     (step 6)
 *   pool.c        segments prepared ahead
 *   index.c       where the frames lie: in memory, sidecar, rebuild    (step 7)
 *   read.c        log_read                                             (step 8)
 *   checkpoint.c  so that a start need not walk the whole log
 *   check.c       the offline check
 *   log.c         start, turn, stop */
#ifndef WALRUS_LOG_INTERNAL_H
#define WALRUS_LOG_INTERNAL_H

#include "group.h"
#include "log.h"

#define NS_PER_SECOND INT64_C(1000000000)
#define NOTES_MAX     8192u   /* frames in one group */
#define BUFFERS_MAX   4u      /* group buffers: gathering, in flight, recent ones for readers at the tail */
#define SLOTS_MAX     3u      /* reads of older data at once */
#define ROWS_MAX      200000u /* index rows of a segment; a fuller one is closed early */
#define CHUNK_SHARE   (128u << 10)     /* chunk bytes of a group beside small writes */
#define SMALL_LINGER  INT64_C(1000000) /* so long after a small write the next one is expected */
#define POOL_SEGMENTS 2u /* prepared ahead: one to change to, one so that a start on a full disk finds room */
#define POOL_HEADERS  2u /* header-only spares, for roll-back and start on a full disk */
#define POOL_MAX      8u
#define WRITE_OPS     8u
#define ID_GAP_MOST                                                                                          \
    (1u << 20) /* topic ids are given one by one; those of first batches that failed are left out */

/* ------------------------------------------------------------------------------------------------ topics */

struct topic {
    struct topic *hash_next;
    uint32_t id; /* 0 until its catalogue entry was first sealed */
    uint32_t uid;
    uint32_t watermark; /* slot, or NO_WATERMARK */
    uint8_t level;
    uint8_t name_length;
    bool committed; /* its catalogue entry is in the log */
    bool sealed;    /* its catalogue entry is in the group in flight */
    uint32_t refs;
    uint64_t next_sequence; /* takes effect when a group completes */
    uint64_t next_assign;   /* runs ahead of it for the groups in flight and, at level accepted, gathering */
    uint64_t written_next, durable_next;
    const void *owner; /* of the batches in progress */
    uint32_t batches;  /* in progress: admitted, completion not yet posted */
    uint32_t strong;   /* writes gathered that are not answered early */
    bool lost;         /* data answered below durable was lost; told with the next completion */
    bool unflushed;    /* on log->unflushed_topics */
    bool touched;      /* on log->touched: has rows in the current segment */
    struct topic *unflushed_next, *touched_next;
    struct index_row *rows; /* of the current segment, by sequence */
    uint32_t row_count, row_room;
    struct topic_waiter *waiters;
    void *word; /* the session's */
    char name[MAX_TOPIC_NAME + 1];
};

/* ------------------------------------------------------------------------------------- segments and index */

struct index_image { /* a sidecar as it lies in a file: checked once, then trusted */
    uint8_t *bytes;
    size_t size;
    const struct index_topic *topics;
    const struct index_row *rows, *chunks;
    uint32_t topic_count, row_count, chunk_count;
};

/* --------------------------------------------------------------------------------------------- producers */

struct pair { /* what a producer has on a topic: the state is drawn in producers.c */
    struct pair *hash_next;
    struct pair *next; /* of the producer */
    struct producer *producer;
    struct topic *topic;
    uint64_t last, admitted;
    uint64_t first_sequence, entries; /* of `last` */
};

struct producer {
    struct producer *id_next, *name_next;
    struct producer *earlier, *later; /* all, by id */
    uint64_t id;
    uint32_t uid;
    uint32_t user; /* index of its uid in producers.users */
    uint32_t refs;
    uint32_t pair_count;
    bool committed;      /* its catalogue entry is in the log */
    bool sealed;         /* its catalogue entry is in the group in flight */
    uint8_t name_length; /* 0: anonymous */
    struct pair *pairs;
    void *word; /* the session's */
    char name[];
};

/* What one uid has of producers; anonymous: committed ones. */
struct producer_user {
    uint32_t uid, named, named_pairs, anonymous, anonymous_pairs;
};

struct producers {
    struct producer *first, *last;
    struct producer **by_id, **by_name; /* id_room slots each */
    struct pair **pairs;
    uint32_t id_room, pair_room;
    uint32_t count, named, anonymous; /* anonymous: committed ones */
    uint32_t named_pairs, anonymous_pairs;
    struct producer_user *users;
    uint32_t user_count;
    uint32_t next; /* counter of the last id given in this epoch */
    uint64_t horizon;
};

struct uid_count {
    uint32_t uid, topics;
};

struct segment {
    uint64_t number, file_number, length;
    uint64_t end; /* closed: where its groups end; current: where the next group goes */
    uint64_t first_group;
    struct segment_identity identity; /* valid if `known` */
    bool known;
    bool cut;                 /* truncated at its end already */
    bool sidecar_wanted;      /* its image is in memory and not yet in a file */
    int load_error;           /* why its image cannot be had; told to the reads that wait, then forgotten */
    struct io_file *file;     /* NULL: not open */
    struct index_image image; /* bytes == NULL: not in memory */
    uint64_t image_used;      /* log->clock when last used */
};

/* Prepared file: allocated, durable under its name, header block blank. */
struct spare {
    uint64_t file_number, length;
    uint64_t zeroed; /* from its start on, as far as is known */
    struct io_file *file;
};

/* ------------------------------------------------------------------------------------------------ groups */

struct frame_note {
    struct topic *topic;
    struct stream *stream; /* NULL: not a chunk, or its stream was aborted */
    struct pair *pair;     /* NULL: not numbered */
    struct write *write;   /* NULL: answered already, or a chunk */
    uint32_t at;           /* of the frame in the buffer */
    bool last;             /* of a stream */
};

struct group {
    uint8_t *data; /* GROUP_MAX bytes, aligned to BLOCK_MAX */
    struct frame_note *notes;
    uint32_t count;
    uint32_t used;
    uint32_t reserve; /* for catalogue entries that sealing will add */
    uint32_t chunk_bytes;
    uint32_t small; /* frames that are not chunks */
    bool needs_flush;
    /* once sealed */
    uint64_t number, offset, segment;
    uint32_t length;
    int64_t submitted_ns;
    bool recent; /* committed: readers may look in here */
};

enum commit_state {
    COMMIT_IDLE,
    COMMIT_ROLL_WAIT,     /* a write failed and the spare to roll into is still being prepared */
    COMMIT_CHANGE_FLUSH,  /* current segment is flushed before its successor's header is written */
    COMMIT_CHANGE_HEADER, /* header of the successor is being written */
    COMMIT_CHANGE_PROVE,  /* ... and flushed: from then on it decides the predecessor's end */
    COMMIT_WRITE,         /* the group's writes are in the device */
    COMMIT_FLUSH,         /* the flush after them */
};

struct commit {
    enum commit_state state;
    struct group *group; /* in flight, NULL: none (a change or flush alone may be under way) */
    struct io_op ops[WRITE_OPS];
    uint32_t op_count, op_left;
    int64_t error;                 /* first bad result of the group's writes */
    unsigned attempts;             /* times the group was written */
    bool roll;                     /* the change under way ends the segment before a failed group */
    bool give_up;                  /* ... and the group is answered with its error, not written again */
    struct spare next;             /* the segment being changed to */
    struct segment_header *header; /* one block of it */
    struct io_op op;               /* flush, header */
    struct io_op cut;              /* truncation of the predecessor */
    bool cutting;
};

/* Of the gathered group, for those that were just answered: see delay.c. */
struct delay {
    uint32_t expected; /* writes; 0: nobody is waited for */
    int64_t until;
    bool waiting;
    uint32_t skip, skip_next; /* waits to leave out, now and after the next one in vain */
};

/* ----------------------------------------------------------------------------------------------- the rest */

enum pool_state {
    POOL_IDLE,
    POOL_CREATE,
    POOL_ALLOCATE,
    POOL_FLUSH,
    POOL_RENAME,
    POOL_SYNC,
    POOL_ZERO,
    POOL_FLUSH_ZEROS,
    POOL_UNDO
};

struct pool {
    struct spare ready[POOL_MAX];
    uint32_t count;
    enum pool_state state;
    struct spare making; /* not among the ready ones */
    uint32_t lack_zeros; /* how many of these do */
    int error;           /* why the last try failed; 0: it did not */
    int64_t retry_at;
    uint64_t next_file;     /* number for the next file */
    bool closing, unlinked; /* steps of POOL_UNDO */
    struct io_op op;
    char name[32], new_name[32];
    uint8_t *zeros; /* 1 MiB */
    bool zeros_cleared;
};

enum checkpoint_state {
    CHECKPOINT_IDLE,
    CHECKPOINT_CREATE,
    CHECKPOINT_WRITE,
    CHECKPOINT_FLUSH,
    CHECKPOINT_CLOSE,
    CHECKPOINT_RENAME,
    CHECKPOINT_SYNC,
    CHECKPOINT_UNDO
};

struct checkpoint {
    enum checkpoint_state state;
    uint64_t counter;
    uint64_t last_size;
    uint64_t log_bytes_at; /* stats.log_bytes when the last one was taken */
    uint64_t group;        /* that the last one names */
    int64_t dirty_since;   /* 0: nothing new since */
    int64_t retry_at;
    bool wanted; /* now: a start walked the log, the next one need not again */
    uint8_t *bytes;
    size_t size;
    struct io_file *file;
    struct io_op op;
    char name[32];
};

/* Loads the index image of a closed segment, one at a time: see index.c. */
enum loader_state {
    LOADER_IDLE,
    LOADER_OPEN,
    LOADER_HEADER,
    LOADER_SIDECAR_OPEN,
    LOADER_SIDECAR_READ,
    LOADER_SIDECAR_CLOSE,
    LOADER_SCAN
};

struct row_vector {
    struct index_row *rows;
    uint32_t count, room;
};

struct loader {
    enum loader_state state;
    struct segment *segment; /* wanted; NULL: none */
    struct segment *failed;  /* has a load_error that nobody has heard of yet */
    struct io_file *sidecar;
    uint8_t *bytes;
    size_t size;
    uint8_t *buffer; /* aligned, for header and scan: 2 * GROUP_MAX */
    uint64_t at, loaded_from, loaded_to;
    struct row_vector rows, chunks;
    struct io_op op;
    char name[32];
    int error;
};

/* Writes sidecars, one at a time. */
enum sidecar_state {
    SIDECAR_IDLE,
    SIDECAR_UNLINK,
    SIDECAR_CREATE,
    SIDECAR_WRITE,
    SIDECAR_CLOSE,
    SIDECAR_RENAME
};

struct sidecar_writer {
    enum sidecar_state state;
    bool failed;
    struct segment *segment;
    struct io_file *file;
    struct io_op op;
    char name[32];
};

struct read_slot { /* a stretch of one segment in memory */
    uint8_t *buffer;
    uint64_t segment, from, to; /* to == 0: empty */
    uint64_t used;              /* log->clock */
    bool loading;
    bool cut;  /* the last load got less than it wanted */
    int error; /* of the last load, for the stretch above */
    struct io_op op;
};

/* Where a stream's reader was: so that reading on does not begin at chunk 0. */
struct stream_cursor {
    uint64_t stream;
    uint64_t segment; /* where to look for `chunk` first */
    uint32_t chunk;
    uint64_t entry;        /* number within the batch of the entry that the chunk begins in */
    uint64_t entry_offset; /* bytes of it before the chunk */
    uint64_t entry_bytes;  /* whole length of that entry, if it began in an earlier chunk */
    uint64_t used;
};
#define CURSORS_MAX 16u

struct log {
    struct log_options options;
    struct io *io;
    uint8_t store_id[16];
    char store_id_text[33];
    uint64_t epoch, epoch_nonce;
    uint32_t block;
    uint64_t clock; /* counts uses, for least-recently-used decisions */

    struct segment **segments; /* the chain, oldest first; the last one is current */
    uint32_t segment_count, segment_room;
    uint64_t next_group;       /* number of the next group */
    struct digest last_digest; /* of the header of group next_group - 1 */
    uint64_t durable_upto;
    uint64_t unflushed_bytes;
    int64_t unflushed_since;
    int64_t group_ns;      /* moving average: from submission of a group to its completion */
    int64_t last_group_ns; /* when the last group was committed */

    struct topic **by_id; /* index = id */
    uint32_t by_id_room, next_topic;
    struct topic **by_name;
    uint32_t name_room, topic_count;
    struct uid_count *uids; /* topics made by each uid */
    uint32_t uid_count;
    uint32_t *watermark_pile; /* slots given back */
    uint32_t watermarks_freed, watermarks_used;
    void (*on_topic_free)(void *context, struct topic *topic);
    void *on_topic_free_context;
    struct topic *unflushed_topics, *touched;
    struct producers producers;
    struct row_vector chunk_rows; /* of the current segment, in log order */
    uint32_t current_rows;
    size_t image_bytes; /* of all images in memory */
    uint32_t sidecars_wanted;
    uint32_t next_stream;
    uint32_t streams_open;

    struct group groups[BUFFERS_MAX];
    uint32_t group_count;
    struct group *gather;
    int64_t small_at;                        /* when the last write that is not a chunk was taken */
    int64_t wall_ahead, wall_seen;           /* of the wall clock to the other; when that was looked at */
    struct write *early_first, **early_last; /* to be answered in the next log_turn */
    struct commit commit;
    struct delay delay;
    struct pool pool;
    struct checkpoint checkpoint;
    struct loader loader;
    struct sidecar_writer sidecar;

    struct read_slot slots[SLOTS_MAX];
    uint32_t slot_count;
    struct stream_cursor cursors[CURSORS_MAX];
    struct log_read *reads_first, **reads_last; /* waiting for data or index */

    bool stopping, abandoned;
    bool flush_wanted;
    struct error failed;
    struct log_stats stats;
};

/* log.c */
void log_say(struct log *log, enum say priority, const char *format, ...) printf_like(3, 4);
/* Fail-stop: nothing is answered any more. */
void log_fail(struct log *log, const char *format, ...) printf_like(2, 3);
/* At the end of an op beside the log, on a prepared file, a checkpoint or the folder: a flush that failed,
 * and not for want of room, is a fail-stop. The device's cache is one: a flush of the log that says "good" a
 * moment later does not bring back what this one dropped (G10). */
void log_flush_lost(struct log *log, const struct io_op *op, const char *what);
static inline struct segment *log_current(const struct log *log)
{
    return log->segments[log->segment_count - 1];
}
/* Appends to the chain. -ENOMEM. */
int log_push_segment(struct log *log, const struct segment *segment) must_check;
int64_t log_flush_limit(const struct log *log);
/* The wall clock when the other one was at `now`, which was a moment ago: most times without looking. */
uint64_t log_wall(struct log *log, int64_t now);
void *log_aligned(size_t size); /* aligned to BLOCK_MAX, zeroed pages on demand; NULL */

/* store.c */
struct store_file { /* one *.segment file of the folder */
    uint64_t file_number;
    uint64_t size;
    struct io_file *file; /* open and locked if the start looks into it */
    struct segment_header header;
    bool closed; /* the checkpoint says all there is to say: not opened */
    bool valid, blank;
    bool used; /* on the chain, or given to the pool */
};
struct store_list {
    struct store_file *files; /* by file number */
    size_t count;
    bool has_store, empty;
    char foreign[64];    /* a name that does not belong here, or "" */
    char not_a_file[64]; /* a name of ours that is a link or a folder, or "" */
    uint64_t highest_file;
    struct io_entry *left_over; /* names that a start removes: *.new and the like */
    size_t left_over_count;
};
int store_list_read(struct io *io, struct store_list *list, struct error *err) must_check;
void store_list_free(struct store_list *list);
int store_identity_read(struct io *io, uint8_t store_id[16], struct error *err) must_check;
/* Claims the folder, makes a new store of an empty one, reads the identity and the list. */
int store_open(struct log *log, struct store_list *list, struct error *err) must_check;
/* Opens, locks (waiting for a dead predecessor's I/O) and flushes one file and reads its header. */
int store_file_open(struct log *log, struct store_file *file, uint8_t *block, int64_t give_up_at,
                    struct error *err) must_check;
int store_header_read(struct io *io, struct store_file *file, const uint8_t store_id[16], uint8_t *block,
                      struct error *err) must_check;
/* Looks behind a header that does not count: a torn write of a segment that never was, or the rotten one of a
 * segment of the log? In the first, groups are copies and say that no more was durable than the chain has; in
 * the second they were written one after the other's flush, and say that more was. Nothing of them can be
 * verified without the salt; as evidence it is enough. `next_group`: the first one that the chain does not
 * have; 0: there is no chain, so no group was ever written before a header was flushed, and any group is
 * evidence. *lost: a group that was committed, or 0. The buffer has 512 KiB. */
int store_lost_group(struct io *io, const struct store_file *file, uint8_t *buffer, uint64_t next_group,
                     uint64_t *lost) must_check;
struct store_file *store_find_file(const struct store_list *list, uint64_t file_number);
/* Why a header does not count: NULL if it does. */
const char *segment_header_fault(const struct segment_header *header, const uint8_t store_id[16],
                                 uint64_t file_number);
void segment_header_fill(struct segment_header *header); /* crc */
struct segment_identity segment_identity_of(const struct segment_header *header);
void store_id_format(const uint8_t store_id[16], char text[33]);

/* Blocking helpers for start and stop. */
int64_t io_simple(struct io *io, enum io_kind kind, struct io_file *file, const char *name,
                  const char *new_name);
int io_open_file(struct io *io, const char *name, bool create, uint32_t flags,
                 struct io_file **file) must_check;
/* Bytes read, fewer at the end of the file; or an error. */
int64_t io_read_at(struct io *io, struct io_file *file, void *buffer, uint64_t offset, uint64_t length);
int io_write_full(struct io *io, struct io_file *file, void *buffer, uint64_t offset,
                  uint64_t length) must_check;
/* A small file, whole, into malloc'ed memory. */
int io_load(struct io *io, const char *name, uint64_t most, uint8_t **bytes, size_t *size) must_check;

/* recover.c */
int recover(struct log *log, struct store_list *list, struct error *err) must_check;

/* topics.c */
struct topic *topic_by_id(const struct log *log, uint32_t id);
/* For recovery: enters a topic of the catalogue. */
int topic_restore(struct log *log, uint32_t id, uint8_t level, uint32_t uid, const char *name, size_t length,
                  uint64_t next) must_check;
void topic_watermark(const struct log *log, const struct topic *topic); /* after its ends moved */
bool topic_name_valid(const char *name, size_t length);
int topic_assign_id(struct log *log, struct topic *topic) must_check;
void topic_wake(struct topic *topic);
uint64_t topic_visible_next(const struct topic *topic);
void topics_free(struct log *log);
uint32_t topic_entry_bytes(const struct topic *topic); /* of its catalogue frame */
void topic_entry_write(const struct topic *topic, void *at, uint64_t time_ns);
/* Decodes a catalogue frame's payload. */
bool topic_entry_read(const struct frame_header *frame, struct topic_entry *entry, const char **name);

/* producers.c */
static inline uint64_t producer_next_id(struct log *log)
{
    return (log->epoch << 32) | ++log->producers.next;
}
/* 0: `number` is the next one, or the write has none; 1: committed before, the results are filled in; -EAGAIN
 * out of order; -EINVAL, -EDQUOT. */
int number_check(struct log *log, struct write *write) must_check;
/* The pair of a write that number_check let through, made if need be; *out = NULL if it has none. -ENOMEM. */
int number_reserve(struct log *log, const struct write *write, struct pair **out) must_check;
void number_admit(struct pair *pair, uint64_t number);
void number_commit(struct log *log, struct pair *pair, const struct frame_header *frame);
uint32_t producer_entry_bytes(const struct producer *producer); /* of its catalogue frame */
void producer_entry_write(const struct producer *producer, void *at, uint64_t time_ns);
bool producer_entry_read(const struct frame_header *frame, struct producer_entry *entry, const char **name);
/* For recovery. */
struct number_state {
    uint64_t number, first_sequence, entries;
    bool next_only; /* from the log: must be the next one; else from a checkpoint: must be the first */
};
int producer_restore(struct log *log, uint64_t id, uint32_t uid, const char *name, size_t length) must_check;
int number_restore(struct log *log, uint64_t producer, struct topic *topic,
                   const struct number_state *state) must_check;
void producers_settle(struct log *log); /* at the end of a start: forgets what is too much */
void producers_free(struct log *log);

/* gather.c */
/* The group in flight failed: drops what has gathered behind a number that is free again, and answers it. */
void gather_drop_out_of_order(struct log *log);
void gather_answer_early(struct log *log);
void gather_stream_fail(struct log *log, struct stream *s, int error);
void gather_stream_end(struct log *log, struct stream *s); /* its last chunk was committed */
void batch_ended(struct log *log, struct topic *topic);

/* commit.c */
void commit_turn(struct log *log);
bool commit_fits(const struct log *log, uint64_t bytes);

/* delay.c */
void delay_answered(struct log *log, uint32_t answered, int64_t now);
bool delay_wanted(struct log *log, const struct group *g);

/* pool.c */
void pool_turn(struct log *log);
bool pool_take(struct log *log, uint64_t at_least, bool any, struct spare *out);
bool pool_can_spare(const struct log *log);
bool pool_fits(const struct log *log, uint64_t at_least); /* one that is ready is so long */
void pool_put(struct log *log, struct spare spare);
bool pool_busy(const struct log *log);
int64_t pool_deadline(const struct log *log);
void pool_free(struct log *log);
/* At start: makes one file now. */
int pool_make_now(struct log *log, uint64_t length, bool zero, struct spare *out,
                  struct error *err) must_check;
uint64_t pool_segment_length(const struct log *log);

/* restore.c */
struct checkpoint_view;
int restore_checkpoint(struct log *log, const struct checkpoint_view *view, struct error *err) must_check;
/* One walked group. -ENOMEM, or -EBADMSG and *what. */
int restore_group(struct log *log, const uint8_t *group, const struct group_header *header,
                  const char **what) must_check;

/* checkpoint.c */
void checkpoint_turn(struct log *log);
int64_t checkpoint_deadline(const struct log *log);
int checkpoint_write_now(struct log *log, bool clean, struct error *err) must_check;
struct checkpoint_view { /* a checkpoint read from disk and checked */
    struct checkpoint_header header;
    uint8_t *bytes;
    const struct checkpoint_segment *segments;
    const uint8_t *topics;
};
/* checkpoint-`which`, checked; bytes == NULL: not there or not valid (then *why says so, unless it is not
 * there). */
int checkpoint_read(struct io *io, const uint8_t store_id[16], unsigned which, struct checkpoint_view *view,
                    const char **why) must_check;
/* Steps over the topics of a checked checkpoint; false at the end. */
bool checkpoint_next_topic(const struct checkpoint_view *view, size_t *at, struct checkpoint_topic *topic,
                           const char **name);
/* Then over its producers; `pairs` are producer->pairs rows of struct checkpoint_pair. */
bool checkpoint_next_producer(const struct checkpoint_view *view, size_t *at,
                              struct checkpoint_producer *producer, const char **name, const uint8_t **pairs);

/* index.c */
int index_add(struct log *log, struct topic *topic, const struct frame_header *frame,
              uint64_t segment_offset) must_check;
/* Makes the image of the current segment's rows; the rows are forgotten. */
int index_close(struct log *log, struct segment *segment) must_check;
/* Forgets the rows without an image. */
void index_drop_rows(struct log *log);
int index_build(struct log *log, struct segment *segment, const struct row_vector *rows,
                const struct row_vector *chunks) must_check;
bool index_image_check(struct index_image *image, const struct segment *segment, const uint8_t store_id[16]);
const struct index_topic *index_image_topic(const struct index_image *image, uint32_t topic);
int row_push(struct row_vector *vector, const struct index_row *row) must_check;
struct index_row row_of(const struct frame_header *frame, uint64_t segment_offset);
/* The segment's image is in memory: 1. Being loaded: 0 (reads are tried again after). Cannot be had: negative
 * errno. */
int index_need(struct log *log, struct segment *segment) must_check;
void index_turn(struct log *log);
/* At stop: writes the sidecar of a segment whose image was just made. */
void index_write_now(struct log *log, struct segment *segment);
bool index_busy(const struct log *log);
void index_free(struct log *log);

/* read.c */
void reads_turn(struct log *log);
bool reads_busy(const struct log *log);

#endif
