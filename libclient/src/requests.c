/* requests.c: descriptors out, completions in.
 *
 * Happy path
 *   1. walrus__submit takes a free request, writes its index and generation into user_data, pushes the
 *      descriptor, fences, and rings the doorbell only if the broker has parked this connection.
 *   2. walrus__pump pops completions. user_data names the request; who waits for it gets the completion; its
 *      extent of the arena is free again; the request is free.
 *
 * Failure modes
 *   - no free request: -EAGAIN. There are queue_entries - 1, so submitted and unanswered plus answered and
 *     unpopped never exceed what the completion ring holds: it cannot overflow.
 *   - the broker's words are impossible (an index too far ahead, a user_data nobody waits for): the
 *     connection ends, -EPROTO.
 *   - the connection is lost: the ring is emptied first, then every open request is answered -ECONNRESET,
 *     oldest first, by the same way as a completion.
 *   - a refusal with MORE: see struct request. MORE on anything else: what follows with the same user_data
 *     only frees the request.
 *
 * Invariants: a request is in the list oldest..newest exactly while its kind is not REQUEST_FREE. kept
 * never overflows: only asynchronous batches come there, at most twice each, and walrus_batch_submit bounds
 * those by queue_entries - 1. */
#include "handle.h"

#include <sys/socket.h>
#include <unistd.h>

int walrus__requests_init(struct walrus *handle)
{
    handle->requests = calloc(handle->queue_entries, sizeof *handle->requests);
    handle->kept = calloc(KEPT_SLOTS(handle), sizeof *handle->kept);
    if (handle->requests == NULL || handle->kept == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < handle->queue_entries; i++)
        handle->requests[i].later = i + 1 < handle->queue_entries ? i + 1 : NO_REQUEST;
    handle->free_request = 0;
    handle->oldest = handle->newest = NO_REQUEST;
    return 0;
}

uint64_t walrus__request_word(const struct walrus *handle, uint32_t index)
{
    return (uint64_t)handle->requests[index].generation << 32 | index;
}

static void link_newest(struct walrus *handle, uint32_t index)
{
    struct request *request = &handle->requests[index];
    request->earlier = handle->newest;
    request->later = NO_REQUEST;
    if (handle->newest != NO_REQUEST)
        handle->requests[handle->newest].later = index;
    else
        handle->oldest = index;
    handle->newest = index;
    handle->outstanding++;
}

static void request_release(struct walrus *handle, uint32_t index)
{
    struct request *request = &handle->requests[index];
    if (request->earlier != NO_REQUEST)
        handle->requests[request->earlier].later = request->later;
    else
        handle->oldest = request->later;
    if (request->later != NO_REQUEST)
        handle->requests[request->later].earlier = request->earlier;
    else
        handle->newest = request->earlier;
    request->kind = REQUEST_FREE;
    request->generation++;
    request->later = handle->free_request;
    handle->free_request = index;
    handle->outstanding--;
}

/* The full fence pairs with the broker's between its store of `parked` and its second look at sq_tail
 * (layout.h, doorbell). */
void walrus__ring_doorbell(struct walrus *handle)
{
    full_fence();
    if (word_load(&handle->broker->parked) != PARKED)
        return;
    uint64_t one = 1;
    ssize_t n;
    do
        n = write(handle->doorbell, &one, sizeof one);
    while (n < 0 && errno == EINTR); /* -EAGAIN: it has been rung often enough */
}

bool walrus__push(struct walrus *handle, struct descriptor *descriptor)
{
    return ring_push_descriptor(&handle->submission, descriptor) == 1;
}

int walrus__submit(struct walrus *handle, struct submission *submission, uint32_t *index_out)
{
    if (handle->lost != 0)
        return walrus__fail_lost(handle);
    if (!walrus__has_credit(handle))
        return walrus__fail(handle, -EAGAIN, REASON_RING,
                            "%u queue entries are in flight or not reaped: reap, then try again",
                            handle->outstanding);
    uint32_t index = handle->free_request;
    struct request *request = &handle->requests[index];
    handle->free_request = request->later;
    request->kind = (uint8_t)submission->kind;
    request->op = submission->descriptor.op;
    request->extent = submission->extent;
    request->batch = submission->batch;
    request->answer = submission->answer;
    request->user_data = submission->user_data;
    request->number = submission->known != NULL ? submission->descriptor.number : 0;
    request->known = submission->known;
    if (request->known != NULL)
        request->known->in_flight++;
    request->refused = false;
    request->notify = submission->known != NULL && (submission->descriptor.flags & DESCRIPTOR_NOTIFY) != 0;
    if (request->notify)
        handle->second_answers++;
    link_newest(handle, index);

    submission->descriptor.user_data = walrus__request_word(handle, index);
    submission->descriptor.published_ns = walrus__now();
    if (index_out != NULL)
        *index_out = index;
    if (handle->again != NULL)
        walrus__reconnect_keep(handle, index, &submission->descriptor);
    /* No step here: it could change the topic number that the caller has just looked up, or answer. */
    if (handle->link != LINK_UP)
        return 0; /* it is sent with what was in flight, once there is a broker */
    if (!walrus__push(handle, &submission->descriptor)) {
        /* Credit says that there is room: the broker answered what it never took, or its index is wild. */
        request->kind = REQUEST_NOBODY;
        request->extent = NO_EXTENT;
        request->batch = NULL;
        request->answer = NULL;
        walrus__lose(handle, -EPROTO,
                     "the broker's submission index is impossible; the connection has been ended");
        return walrus__fail_lost(handle);
    }
    walrus__ring_doorbell(handle);
    return 0;
}

/* --------------------------------------------------------------------------------- completions */

void walrus__fill_receipt(struct walrus_receipt *receipt, const struct completion *c)
{
    bool done = c->result == 0;
    *receipt = (struct walrus_receipt){
        .first_sequence = done ? c->first_sequence : 0,
        .count = done ? c->entries : 0,
        .epoch = c->epoch,
        .group = c->group,
        .flags = ((c->flags & COMPLETION_DUPLICATE) != 0 ? (uint32_t)WALRUS_RECEIPT_DUPLICATE : 0) |
                 ((c->flags & COMPLETION_EARLIER_LOST) != 0 ? (uint32_t)WALRUS_RECEIPT_EARLIER_LOST : 0) |
                 ((c->flags & COMPLETION_MORE) != 0 ? (uint32_t)WALRUS_RECEIPT_MORE : 0) |
                 ((c->flags & COMPLETION_TRY_NOW) != 0 ? (uint32_t)WALRUS_RECEIPT_TRY_NOW : 0),
        .level = c->level,
        .reason = c->reason,
        .retry_after_us = c->retry_after_us,
        .published_ns = c->published_ns,
        .drained_ns = c->drained_ns,
        .submitted_ns = c->submitted_ns,
        .durable_ns = c->durable_ns,
        .signalled_ns = c->signalled_ns,
        .number = c->number,
    };
}

void walrus__keep(struct walrus *handle, const struct walrus_completion *completion)
{
    check_bug(walrus__kept_count(handle) < KEPT_SLOTS(handle));
    handle->kept[handle->kept_tail & (KEPT_SLOTS(handle) - 1)] = *completion;
    handle->kept_tail++;
}

static void keep_whole(struct walrus *handle, const struct completion *c, uint64_t user_data)
{
    check_bug(walrus__kept_count(handle) < KEPT_SLOTS(handle));
    struct walrus_completion *kept = &handle->kept[handle->kept_tail & (KEPT_SLOTS(handle) - 1)];
    kept->user_data = user_data;
    kept->result = c->result;
    kept->reserved = 0;
    walrus__fill_receipt(&kept->receipt, c);
    handle->kept_tail++;
}

/* The second completion of a refused write: whoever waited for a try may have it now. */
static void deliver_second(struct walrus *handle, struct request *request, struct completion *c)
{
    c->flags = COMPLETION_TRY_NOW;
    c->number = 0;
    if (request->kind == REQUEST_BATCH)
        keep_whole(handle, c, request->user_data);
    else if (request->kind == REQUEST_ANSWER)
        request->answer->try_now = true;
    request->kind = REQUEST_NOBODY;
    request->answer = NULL;
}

/* The first completion of a write settles its number; of a refusal with MORE the request goes on waiting for
 * the second one. */
static void write_answered(struct walrus *handle, struct request *request, struct completion *c)
{
    c->number = request->number;
    if (c->result == 0 && request->known->earlier_lost) {
        c->flags |= COMPLETION_EARLIER_LOST;
        request->known->earlier_lost = false;
    }
    walrus__write_answered(handle, request, c);
    if (request->notify)
        handle->second_answers--;
    bool more = (c->flags & COMPLETION_MORE) != 0;
    c->flags &= ~(uint32_t)COMPLETION_TRY_NOW; /* only a second one says so */
    request->refused = more && request->notify && c->result < 0;
    if (more && !request->refused)
        c->flags &= ~(uint32_t)COMPLETION_MORE; /* what follows finds nobody, and only frees the request */
    request->notify = false;
}

/* Brings a completion to who waits for it. The request is detached, unless it is a refusal with a second
 * completion to come. */
static void deliver(struct walrus *handle, struct request *request, struct completion *c)
{
    if (request->refused) {
        deliver_second(handle, request, c);
        return;
    }
    if (request->known != NULL)
        write_answered(handle, request, c);
    uint8_t kind = request->kind;
    struct walrus_batch *batch = request->batch;
    struct answer *answer = request->answer;
    request->batch = NULL;
    if (!request->refused) {
        request->kind = REQUEST_NOBODY;
        request->answer = NULL;
    }
    if (request->extent != NO_EXTENT)
        walrus__room_give_back(handle, request->extent);
    request->extent = NO_EXTENT;
    switch (kind) {
    case REQUEST_BATCH:
        if (batch != NULL)
            walrus__stream_end_done(batch, c, request->user_data);
        else
            keep_whole(handle, c, request->user_data);
        break;
    case REQUEST_CHUNK:
        walrus__stream_chunk_done(batch, c);
        break;
    case REQUEST_ANSWER:
        answer->completion = *c;
        answer->done = true;
        break;
    default: /* abandoned: the window goes on behind what it brought */
        if ((request->op == OP_READ || request->op == OP_TOPICS) && c->result > 0 && handle->lost == 0) {
            const uint8_t *ignored;
            if (walrus__window_accept(handle, c, &ignored) == 0)
                walrus__window_drop(handle);
        }
        break;
    }
}

void walrus__abandon(struct walrus *handle, uint32_t index)
{
    struct request *request = &handle->requests[index];
    check_bug(request->kind == REQUEST_ANSWER);
    request->kind = REQUEST_NOBODY;
    request->answer = NULL;
}

static bool has_count(uint8_t op)
{
    return op == OP_READ || op == OP_TOPICS || op == OP_QUERY;
}

/* false: the broker broke the protocol. */
static bool dispatch(struct walrus *handle, struct completion *c)
{
    uint32_t index = (uint32_t)c->user_data;
    if (index >= handle->queue_entries)
        return false;
    struct request *request = &handle->requests[index];
    if (request->kind == REQUEST_FREE || request->generation != (uint32_t)(c->user_data >> 32))
        return false;
    /* Not an errno, or a count where there is none; a wrong count is found by who asked. */
    if (c->result < -4095 || (c->result > 0 && !has_count(request->op)) ||
        (c->result == -EINPROGRESS && request->op != OP_QUERY)) /* the library's own word */
        return false;
    handle->dispatched++;
    if (c->result == -ESHUTDOWN && walrus__reconnect_holds(handle, index))
        return true; /* it stays in flight */
    if (c->result == -ESTALE)
        walrus__reconnect_fenced(handle);
    uint32_t generation = request->generation;
    bool more = (c->flags & COMPLETION_MORE) != 0 && !request->refused;
    deliver(handle, request, c);
    if (!more && request->generation == generation) /* else the connection was lost meanwhile */
        request_release(handle, index);
    return true;
}

uint32_t walrus__pump(struct walrus *handle)
{
    uint32_t count = 0;
    if (handle->link != LINK_UP && handle->lost == 0)
        walrus__reconnect_step(handle);
    while (handle->lost == 0 && handle->link == LINK_UP) {
        struct completion c;
        int popped = ring_pop_completion(&handle->completion, &c);
        if (popped == 0)
            break;
        if (popped < 0) {
            walrus__lose(handle, -EPROTO,
                         "the broker's completion index is impossible; the connection has been ended");
            break;
        }
        count++;
        if (!dispatch(handle, &c)) {
            walrus__lose(handle, -EPROTO,
                         "the broker answered something that was not asked; the connection has been ended");
            break;
        }
    }
    return count;
}

void walrus__answer_request(struct walrus *handle, uint32_t index, struct completion *completion)
{
    completion->user_data = walrus__request_word(handle, index);
    completion->epoch = handle->welcome.epoch;
    completion->signalled_ns = walrus__now();
    bool known = dispatch(handle, completion);
    check_bug(known);
}

/* ------------------------------------------------------------------------------------- the end */

void walrus__end(struct walrus *handle, int code, const char *words)
{
    check_bug(handle->lost == 0 && code < 0);
    walrus__fail(handle, code, REASON_NONE, "%s", words);
    handle->lost = code;
    handle->lost_words = handle->error;
    if (handle->socket >= 0)
        shutdown(handle->socket, SHUT_RDWR); /* the broker learns of it, and the fd stays readable */
    walrus__reconnect_over(handle);
    while (handle->oldest != NO_REQUEST) {
        struct completion c = {.user_data = walrus__request_word(handle, handle->oldest),
                               .result = -ECONNRESET};
        bool known = dispatch(handle, &c);
        check_bug(known);
    }
}

void walrus__lose(struct walrus *handle, int code, const char *format, ...)
{
    if (handle->lost != 0)
        return;
    if (code == -ECONNRESET)
        walrus__pump(handle); /* what the broker answered before it died */
    if (handle->lost != 0)
        return;
    char words[sizeof handle->error.text];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    if (code == -ECONNRESET && handle->again != NULL &&
        walrus__reconnect_begin(handle, &code, words, sizeof words))
        return;
    walrus__end(handle, code, words);
}
