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
struct attempt;

struct sim_stream {
    struct stream stream;
    struct run_state *run;
    uint32_t batch;
    uint32_t entry; /* the next byte to send */
    uint64_t offset;
    uint32_t role;   /* + 1, of its producer; 0: none */
    uint32_t number; /* that its last chunk will have; 0: the next one then */
    bool open;       /* not ended in any way */
    bool sent_last;
    bool dead; /* a chunk of it was lost after the last one was taken: the answer will say so */
    struct sim_stream *next;
};

struct run_state {
    struct disk *disk;
    struct io *io;
    struct ledger *ledger;
    struct log_options options; /* of the start; run_begin has set them */
    uint64_t idle_ns;           /* random work idles less than that at a time */
    struct log *log;
    struct topic *topics[SIM_TOPICS];
    struct seed seed;
    struct pending *pending;
    struct attempt *taken; /* of hostile.c: what should have been refused */
    uint32_t inflight;
    struct sim_stream *streams;
    uint64_t last_done[SIM_TOPICS]; /* order of the batch answered last */
    struct producer *producers[SIM_ROLES];
    uint32_t producer_inflight[SIM_ROLES];
    uint8_t reason; /* of the last refusal */
    uint8_t *payload;
    struct entry_record *records;
    enum end end_before;
    uint64_t visible_before; /* what a start must show, if not 0: see `visible` */
    uint64_t visible;        /* what it has shown: a number for the set of batches, never 0 */
    uint32_t jobs_off;       /* kinds of random work that this run does without */
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
    uint64_t dropped;         /* numbers behind a failure in this life */
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

/* Numbered writes. A role is a program that numbers its batches: 0 to SIM_NAMED - 1 have names, the others
 * are anonymous. A start resumes those that were there before, and asks for every number.
 *
 * Sends `count` batches with the next numbers, without a wait between them; a number that was sent before and
 * is not committed is sent with the same content again, or with a new one. 0 or the refusal. */
int run_try_numbers(struct run_state *run, uint32_t role, uint32_t topic, uint32_t count, uint32_t entries,
                    uint32_t bytes, uint8_t level);
/* One, retried while the refusal says so. */
int run_number(struct run_state *run, uint32_t role, uint32_t topic, uint32_t entries, uint32_t bytes);
struct sim_stream *run_number_stream(struct run_state *run, uint32_t role, uint32_t topic, uint32_t entries,
                                     uint32_t bytes);
/* Sends a number that was sent before with the same content: in one piece, or as a stream. */
void run_again(struct run_state *run, uint32_t role, uint32_t topic, uint32_t number, bool stream);
/* Sends what was acknowledged (some) and what is not committed (all) again, and waits for the answers. */
void run_resubmit(struct run_state *run);
/* Sends numbers that no order allows. */
void run_disorder(struct run_state *run, uint32_t role, uint32_t topic);
/* Lets go of the role's producer, if nothing of it is in flight, and takes it again, or (`fresh`) another
 * one. */
void run_rejoin(struct run_state *run, uint32_t role, bool fresh);
/* Ids that are nobody's, or not this one's. */
void run_strangers(struct run_state *run);
/* Writes that are wrong in one way or another: all must be refused. */
void run_hostile(struct run_state *run, uint32_t number);
/* Once the log is gone. */
void run_hostile_end(struct run_state *run);
/* Asks for every number; the answers must be what the ledger says. */
void run_ask(struct run_state *run);

void run_pump(struct run_state *run, int64_t limit_ns); /* one turn and one wait */
void run_settle(struct run_state *run);                 /* until every write was answered */
void run_idle(struct run_state *run, int64_t ns);
void run_stop(struct run_state *run);

/* Reads a little of a topic from a place of its own choice. */
void run_read_some(struct run_state *run, uint32_t topic);
/* Reads everything of every topic and judges it: what run->end_before (how the life before ended) allows. */
void run_check(struct run_state *run);

/* For numbers.c. */
struct topic *run_topic(struct run_state *run, uint32_t number);
/* A batch of the ledger in one piece. With a role, its number is `number`, whatever the ledger says. */
int run_send(struct run_state *run, uint32_t batch, const void *owner, uint8_t level, uint32_t role,
             uint64_t number);
bool run_troubled(const struct run_state *run);
struct sim_stream *run_stream_of(struct run_state *run, uint32_t batch, const void *owner);
const void *run_owner(const struct run_state *run, uint32_t role);
/* What is committed and admitted now: see ledger_numbers. */
void run_numbers(struct run_state *run, uint8_t producer, uint32_t topic, uint32_t *last, uint32_t *admitted);
uint32_t run_next_number(struct run_state *run, uint32_t role, uint32_t topic);
/* A start serves: takes the producers of the lives before, and learns which of their numbers are
 * committed. */
void run_resume(struct run_state *run);
void run_release_producers(struct run_state *run);
/* The log has answered to a numbered write: is that right? `last`, `admitted`: before it. */
void run_judge_number(struct run_state *run, const struct write *write, const struct batch *batch, int error,
                      uint64_t last, uint64_t admitted);

#endif
