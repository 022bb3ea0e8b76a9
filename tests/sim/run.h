/* run.h: one life of a log on a simulated disk, with clients that write everything they do into the ledger.
 *
 *   run_begin, run_start, then writes, reads, time; then run_stop (a clean stop) or nothing (a crash);
 *   run_end gives the image.
 *
 * Once the machine is gone, or the log has fail-stopped, every call does nothing, so that a scenario
 * simply runs out. */
#ifndef WALRUS_SIM_RUN_H
#define WALRUS_SIM_RUN_H

#include "../../broker/log/log.h"
#include "disk.h"
#include "ledger.h"

#define SIM_SEGMENT ((4ull << 20) + (128ull << 10))

struct pending;

struct sim_stream {
    struct stream stream;
    struct run_state *run;
    uint32_t batch;
    uint32_t entry; /* the next byte to send */
    uint64_t offset;
    bool open; /* not ended in any way */
    bool sent_last;
    struct sim_stream *next;
};

struct run_state {
    struct disk *disk;
    struct io *io;
    struct ledger *ledger;
    struct log *log;
    struct topic *topics[SIM_TOPICS];
    struct seed seed;
    struct pending *pending;
    uint32_t inflight;
    struct sim_stream *streams;
    uint64_t last_done[SIM_TOPICS]; /* order of the batch answered last */
    uint8_t *payload;
    struct entry_record *records;
    enum end end_before;
    bool started, stopped;
    bool checked; /* what the start made of the lives before was read and judged */
    bool wrote;
    bool trouble;     /* no sound disk: starts and reads may fail */
    bool rot;         /* bytes were damaged: -EBADMSG is an answer */
    bool damage_seen; /* and it was given */
    int start_error;
    struct error error;
    uint64_t events_at_start; /* events when the start was done */
    uint64_t acked;           /* answers 0 in this life */
};

void run_begin(struct run_state *run, struct image *image, struct ledger *ledger, uint64_t seed);
bool run_start(struct run_state *run);
bool run_alive(const struct run_state *run);
/* Kills with everything in flight, unless the log was stopped. Returns the image. */
struct image *run_end(struct run_state *run) must_check;

/* Writes. `owner` is any small number: the handle. 0 or the refusal; retried while the refusal says so. */
int run_write(struct run_state *run, uint32_t topic, uint32_t owner, uint32_t entries, uint32_t bytes);
/* The same once, at a level, refusals and all. */
int run_try_write(struct run_state *run, uint32_t topic, uint32_t owner, uint32_t entries, uint32_t bytes,
                  uint8_t level);
struct sim_stream *run_stream(struct run_state *run, uint32_t topic, uint32_t entries, uint32_t bytes);
/* Sends the next chunk of at most `bytes`; true while there is more to send. */
bool run_chunk(struct run_state *run, struct sim_stream *stream, uint32_t bytes);
/* All of it; gives up when nothing more is taken. */
void run_stream_all(struct run_state *run, struct sim_stream *stream, uint32_t bytes);
void run_abort(struct run_state *run, struct sim_stream *stream);

void run_pump(struct run_state *run, int64_t limit_ns); /* one turn and one wait */
void run_settle(struct run_state *run);                 /* until every write was answered */
void run_idle(struct run_state *run, int64_t ns);
void run_stop(struct run_state *run);

/* Reads a little of a topic from a place of its own choice. */
void run_read_some(struct run_state *run, uint32_t topic);
/* Reads everything of every topic and judges it: what run->end_before (how the life before ended) allows. */
void run_check(struct run_state *run);

#endif
